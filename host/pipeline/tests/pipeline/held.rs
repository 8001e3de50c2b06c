//! A sink that is held in the middle of a delivery: what came before that delivery is flushed meanwhile, and nothing of it is.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::StringArray;
use flumen_event::Batch;
use flumen_journal::{Commit, Journal, Put};
use flumen_pipeline::plan::{ErrorPlan, InterceptorPlan, OnError, OnReject};
use flumen_pipeline::{Group, Interceptor, Processed, replay};

use crate::support::destination::Destination;
use crate::support::plugins::{Plugin, all, quarantine as out, rows_where};
use crate::support::script::{Script, batch};
use crate::support::world::{Running, World, interceptor, plan};
use crate::support::{Dice, assert_exactly, until};

/// One sink with these interceptors: the first batch that one fails on is held.
fn world(names: &[&str]) -> World {
    let errors = ErrorPlan { action: OnError::Stop, events_min: 1, ..ErrorPlan::default() };
    let held = |name: &&str| InterceptorPlan { errors, ..interceptor(name, OnReject::Quarantine) };
    let mut plan = plan(&["one"], &[("main", 100_000)], &[("a", "main")]);
    plan.sinks[0].interceptors = names.iter().map(held).collect();
    World::new(plan)
}

/// By itself it would flush once an hour.
fn patient() -> Destination {
    let mut destination = Destination::new();
    destination.policy.linger = Duration::from_secs(3_600);
    destination.policy.bytes = u64::MAX;
    destination
}

/// The source has nothing: events are put into the channel, one delivery after the other.
fn start(world: &World, destination: &Destination, own: Vec<Arc<dyn Interceptor>>) -> Running {
    world.start(vec![Script::new(1, 0, 1).make()], Vec::new(), vec![(destination.make(), own)])
}

fn put(running: &Running, batch: Batch) {
    let channels = vec![running.journal.channel("main").unwrap()];
    let commit = Commit { puts: vec![Put { channels, batch }], ..Commit::default() };
    running.journal.commit(commit, None).unwrap().wait(None).unwrap().unwrap();
}

fn first_fails_from(first: u64) -> Arc<Plugin> {
    Plugin::new("first", move |batch| Processed {
        kept: rows_where(&batch, |position| position < first),
        quarantined: vec![out(&batch, "first", false, |position| position >= first)],
        dropped: 0,
    })
}

fn is_refused(position: u64) -> bool {
    (10..15).contains(&position)
}

fn second() -> Arc<Plugin> {
    Plugin::new("second", |batch| Processed {
        kept: rows_where(&batch, |position| !is_refused(position)),
        quarantined: vec![out(&batch, "second", true, is_refused)],
        dropped: 0,
    })
}

/// A delivery of two parts, as a replay makes them: of the first the second interceptor refuses rows, with the second part the first
/// interceptor is held. A crash comes when what was before the delivery is flushed.
#[test]
fn what_a_held_delivery_refused_is_in_quarantine_once() {
    const ROWS: u64 = 30;
    let mut world = world(&["first", "second"]);
    let mut destination = patient();
    let running = start(&world, &destination, vec![first_fails_from(20), second()]);
    put(&running, batch(1, 0, 10));
    destination.wait_for_rows(10);
    let to: StringArray = (10..ROWS).map(|position| (position < 20).then_some("a/second")).collect();
    put(&running, batch(1, 10, ROWS - 10).with_header(replay::HEADER_TO, to).unwrap());
    let sink = || running.pipeline.status().sinks.remove(0);
    until("it holds", || sink().interceptors[0].state == "holding");
    until("what came before is flushed", || sink().component.metrics["delivered_position"] == 10);
    until("and acknowledged", || running.cursors("main") == [10]);
    world = world.crash(running);
    destination = destination.crash(&mut Dice(1));

    start(&world, &destination, vec![Plugin::new("first", all), second()]).finish();
    assert_exactly(&destination.records(), &[1], ROWS, |position| !is_refused(position), "delivered");
    assert_exactly(&world.quarantined(), &[1], ROWS, is_refused, "quarantine");
}

/// Of what a sink takes between two flushes the held delivery is a part, although there was a flush while it waited.
#[test]
fn a_held_delivery_counts_for_the_next_flush() {
    const MOST: usize = 100;
    let world = world(&["first"]);
    let mut destination = patient();
    destination.group = Some(Group { rows: MOST, bytes: usize::MAX });
    let plugin = first_fails_from(60);
    let running = start(&world, &destination, vec![plugin.clone()]);
    put(&running, batch(1, 0, 60));
    destination.wait_for_rows(60);
    put(&running, batch(1, 60, 30));
    put(&running, batch(1, 90, 100));
    until("what came before is flushed", || destination.flushed() == 60);
    plugin.swap(all);
    running.finish();
    assert_exactly(&destination.records(), &[1], 190, |_| true, "delivered");
    assert!(destination.largest_flush() <= MOST, "{} events in one flush", destination.largest_flush());
}
