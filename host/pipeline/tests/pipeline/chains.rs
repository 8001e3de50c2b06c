//! Interceptors on several threads: order, swaps, panics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flumen_event::Batch;
use flumen_pipeline::plan::OnReject;
use flumen_pipeline::{Interceptor, Processed};
use parking_lot::Mutex;

use crate::support::destination::Destination;
use crate::support::plugins::{Plugin, all, busy, keep, label};
use crate::support::script::Script;
use crate::support::world::{World, interceptor, plan};
use crate::support::{Dice, assert_exactly};

const TOTAL: u64 = 6_000;

fn world(names: &[&str]) -> World {
    let mut plan = plan(&["one", "two"], &[("main", 100_000)], &[("a", "main")]);
    plan.interceptors = names.iter().map(|name| interceptor(name, OnReject::Quarantine)).collect();
    plan.interceptor_threads = 4;
    World::new(plan)
}

#[test]
fn order_is_kept_by_four_threads_of_random_duration() {
    let world = world(&["slow", "filter"]);
    let dice = Mutex::new(Dice(11));
    let slow = Plugin::new("slow", move |batch| {
        let micros = dice.lock().roll(1_500);
        busy(Duration::from_micros(micros));
        all(batch)
    });
    let filter = Plugin::new("filter", |batch| keep(batch, |position| position % 3 != 0));
    let destination = Destination::new();
    let scripts = [1, 2].map(|stream| Script::new(stream, TOTAL, 30).make());
    world.start(scripts.into(), vec![slow, filter], vec![destination.sink()]).finish();
    assert_exactly(&destination.records(), &[1, 2], TOTAL, |position| position % 3 != 0, "after the filter");
}

fn version(number: u64) -> impl Fn(Batch) -> Processed + Send + Sync {
    let dice = Mutex::new(Dice(number));
    move |batch| {
        let micros = dice.lock().roll(300);
        busy(Duration::from_micros(micros));
        all(label(batch, "version", &number.to_string()))
    }
}

/// Every batch is processed by one version, and no batch by an older one than the batch before it.
#[test]
fn a_swap_takes_effect_at_one_batch_boundary() {
    let world = world(&["swapped"]);
    let plugin = Plugin::new("swapped", version(0)).slow_to_find(5);
    let destination = Destination::new();
    let scripts = [1, 2].map(|stream| Script::new(stream, TOTAL, 30));
    let raise = |to| scripts.iter().for_each(|script| script.gate.store(to, Ordering::Release));
    raise(TOTAL / 50);
    let sources = scripts.iter().map(Script::make).collect();
    let running =
        world.start(sources, vec![plugin.clone() as Arc<dyn Interceptor>], vec![destination.sink()]);
    for number in 1..=40 {
        // In the middle of what flows; what comes behind the gate comes after the swap.
        destination.wait_for_rows((2 * (number * TOTAL / 50 - TOTAL / 100)) as usize);
        plugin.swap(version(number));
        raise(if number < 40 { (number + 1) * TOTAL / 50 } else { u64::MAX });
    }
    running.finish();
    let records = destination.records();
    assert_exactly(&records, &[1, 2], TOTAL, |_| true, "swapped");
    for script in &scripts {
        let version_of: BTreeMap<u64, u64> = records
            .iter()
            .filter(|record| record.stream == script.stream)
            .map(|record| (record.position, record.header("version").parse().unwrap()))
            .collect();
        let mut last = 0;
        for start in script.starts() {
            let rows = start..start + script.rows_at(start);
            let versions: Vec<u64> = rows.map(|position| version_of[&position]).collect();
            assert!(
                versions.iter().all(|version| *version == versions[0]),
                "a batch of two versions: {versions:?}"
            );
            assert!(versions[0] >= last, "batch at {start} by version {} after version {last}", versions[0]);
            last = versions[0];
        }
        assert_eq!(last, 40, "the swaps took effect");
    }
}

#[test]
fn a_panic_quarantines_its_batch_and_the_others_go_on() {
    let world = world(&["panics", "after"]);
    let panics = Plugin::new("panics", |batch| {
        let mine = batch.stream().value(0) == 1;
        assert!(
            !(mine && batch.position().values().contains(&1_234)),
            "a fault of the test in an interceptor"
        );
        all(batch)
    });
    let after = Plugin::new("after", |batch| all(label(batch, "after", "yes")));
    let destination = Destination::new();
    let scripts = [1, 2].map(|stream| Script::new(stream, TOTAL, 30));
    let sources = scripts.iter().map(Script::make).collect();
    let running = world.start(sources, vec![panics, after], vec![destination.sink()]);
    crate::support::until("the sources end", || running.pipeline.sources_ended());
    let failed = running.interceptor("panics").metrics["events_failed"];
    running.finish();

    let start = scripts[0].starts().into_iter().rfind(|start| *start <= 1_234).unwrap();
    let guilty = start..start + scripts[0].rows_at(start);
    assert_eq!(failed, guilty.end - guilty.start);
    let (one, two): (Vec<_>, Vec<_>) =
        destination.records().into_iter().partition(|record| record.stream == 1);
    assert_exactly(&two, &[2], TOTAL, |_| true, "the other source");
    assert_exactly(&one, &[1], TOTAL, |position| !guilty.contains(&position), "the source with the panic");
    let quarantined = world.quarantined();
    assert_exactly(&quarantined, &[1], TOTAL, |position| guilty.contains(&position), "quarantine");
    assert!(quarantined.iter().all(|record| record.header("flumen.kind") == "failed"));
    assert!(
        quarantined
            .iter()
            .all(|record| record.header("flumen.by") == "panics" && record.header("after").is_empty())
    );
}

/// Looking up a version panics: the source is run again, and nothing is left in flight that nobody commits.
#[test]
fn a_panic_while_a_batch_is_stamped_leaves_nothing_in_flight() {
    struct Broken(Arc<Plugin>, std::sync::atomic::AtomicU64);
    impl Interceptor for Broken {
        fn name(&self) -> &str {
            "broken"
        }
        fn current(&self) -> Arc<dyn flumen_pipeline::InterceptorVersion> {
            let calls = self.1.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
            assert!(calls % 50 != 20, "a fault of the test in a look-up");
            self.0.current()
        }
    }
    let world = world(&["broken"]);
    let destination = Destination::new();
    let sources = [1, 2].map(|stream| Script::new(stream, TOTAL, 30).make());
    let broken = Arc::new(Broken(Plugin::new("broken", all), Default::default()));
    world.start(sources.into(), vec![broken], vec![destination.sink()]).finish();
    assert_exactly(&destination.records(), &[1, 2], TOTAL, |_| true, "after panics");
}
