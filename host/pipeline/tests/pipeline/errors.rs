//! Above its error budget a plugin's policy decides: events wait, or go on unchanged. Nothing is lost either way.

use std::sync::Arc;
use std::time::Duration;

use flumen_event::Batch;
use flumen_pipeline::plan::{ErrorPlan, OnError, OnReject};
use flumen_pipeline::{Interceptor, Processed, StopOutcome};

use crate::support::destination::Destination;
use crate::support::plugins::{Plugin, all, label, quarantine as out, rows_where};
use crate::support::script::Script;
use crate::support::world::{World, interceptor, plan};
use crate::support::{Dice, assert_exactly, until};

const TOTAL: u64 = 3_000;
/// From here on the plugin fails on everything.
const BROKEN_FROM: u64 = 1_500;

fn breaks(batch: Batch) -> Processed {
    let failed = |position| position >= BROKEN_FROM || position % 100 == 99;
    Processed {
        kept: label(rows_where(&batch, |position| !failed(position)), "by", "old"),
        quarantined: vec![out(&batch, "breaks", false, failed)],
        dropped: 0,
    }
}

fn world(action: OnError, threads: usize) -> World {
    let mut plan = plan(&["one"], &[("main", 500)], &[("a", "main")]);
    let errors = ErrorPlan { action, batches_percent: 100, ..ErrorPlan::default() };
    plan.interceptors = vec![flumen_pipeline::plan::InterceptorPlan {
        errors,
        ..interceptor("breaks", OnReject::Quarantine)
    }];
    plan.interceptor_threads = threads;
    World::new(plan)
}

fn is_early_failure(position: u64) -> bool {
    position < BROKEN_FROM && position % 100 == 99
}

/// With one thread and with three: events wait, a crash and a stop lose nothing, and a new version gets what waited.
#[test]
fn stop_holds_the_source_until_another_version_is_there() {
    for threads in [1, 3] {
        let mut world = world(OnError::Stop, threads);
        let mut destination = Destination::new();
        let script = Script::new(1, TOTAL, 50);
        let held = |world: &World, destination: &Destination, plugin: Arc<dyn Interceptor>| {
            let running = world.start(vec![script.make()], vec![plugin], vec![destination.sink()]);
            until("it holds", || running.interceptor("breaks").state == "holding");
            let status = running.interceptor("breaks");
            assert!(status.error.unwrap().contains("events wait here"));
            assert_eq!(status.metrics["error_budget_passed"], 1);
            running
        };
        let running = held(&world, &destination, Plugin::new("breaks", breaks));
        world = world.crash(running);
        destination = destination.crash(&mut Dice(5));
        let running = held(&world, &destination, Plugin::new("breaks", breaks));
        assert!(matches!(
            running.stop_within(Duration::from_secs(10)),
            StopOutcome::Drained | StopOutcome::Left(_)
        ));

        let plugin = Plugin::new("breaks", breaks);
        let running = held(&world, &destination, plugin.clone());
        plugin.swap(|batch| all(label(batch, "by", "new")));
        running.finish();
        let quarantined = world.quarantined();
        let late: Vec<u64> = quarantined.iter().map(|r| r.position).filter(|p| *p >= BROKEN_FROM).collect();
        // Each run was judged by its own events: what it took to see that the plugin is broken is in quarantine.
        assert!(late.len() < 3 * 500, "{}", late.len());
        assert_exactly(
            &quarantined,
            &[1],
            TOTAL,
            |position| is_early_failure(position) || late.contains(&position),
            "quarantine",
        );
        let delivered = destination.records();
        assert_exactly(
            &delivered,
            &[1],
            TOTAL,
            |position| !is_early_failure(position) && !late.contains(&position),
            "delivered",
        );
        assert!(delivered.iter().all(|r| r.position < BROKEN_FROM || r.header("by") == "new"));
    }
}

#[test]
fn bypass_passes_events_on_unchanged_and_counts_them() {
    let world = world(OnError::Bypass, 2);
    let destination = Destination::new();
    let plugin = Plugin::new("breaks", breaks);
    let running = world.start(vec![Script::new(1, TOTAL, 50).make()], vec![plugin], vec![destination.sink()]);
    until("all are through", || running.pipeline.sources_ended());
    let status = running.interceptor("breaks");
    running.finish();
    assert_eq!(status.state, "bypassed");
    let delivered = destination.records();
    let bypassed: Vec<u64> =
        delivered.iter().filter(|r| r.header("by").is_empty()).map(|r| r.position).collect();
    assert_eq!(status.metrics["events_bypassed"], bypassed.len() as u64);
    assert!(bypassed.len() as u64 > (TOTAL - BROKEN_FROM) / 2, "{}", bypassed.len());
    let quarantined = world.quarantined();
    let positions: Vec<u64> = quarantined.iter().map(|r| r.position).collect();
    assert_exactly(&delivered, &[1], TOTAL, |position| !positions.contains(&position), "delivered");
    assert!(positions.iter().all(|p| *p >= BROKEN_FROM || is_early_failure(*p)));
}

/// A sink's own interceptor holds that sink alone, and what it delivered before is acknowledged.
#[test]
fn a_sink_that_is_held_finishes_what_it_has_and_holds_no_other() {
    let mut plan = plan(&["one"], &[("main", 100_000)], &[("a", "main"), ("b", "main")]);
    let errors = ErrorPlan { action: OnError::Stop, batches_percent: 100, ..ErrorPlan::default() };
    plan.sinks[0].interceptors = vec![flumen_pipeline::plan::InterceptorPlan {
        errors,
        ..interceptor("breaks", OnReject::Quarantine)
    }];
    let world = World::new(plan);
    let (mut held, free) = (Destination::new(), Destination::new());
    // By itself it would flush once an hour.
    held.policy.linger = Duration::from_secs(3_600);
    held.policy.bytes = u64::MAX;
    let plugin = Plugin::new("breaks", breaks);
    let sinks = vec![(held.make(), vec![plugin.clone() as Arc<dyn Interceptor>]), free.sink()];
    let running = world.start(vec![Script::new(1, TOTAL, 50).make()], Vec::new(), sinks);
    free.wait_for_rows(TOTAL as usize);
    let state = || running.pipeline.status().sinks[0].interceptors[0].state.clone();
    until("it holds", || state() == "holding");
    until("what came before is acknowledged", || running.cursors("main")[0] > 1_000);
    plugin.swap(all);
    running.finish();
    assert_exactly(&free.records(), &[1], TOTAL, |_| true, "the other");
    let quarantined: Vec<u64> = world.quarantined().iter().map(|r| r.position).collect();
    assert_exactly(&held.records(), &[1], TOTAL, |position| !quarantined.contains(&position), "held");
}
