//! Stops within a limit.

use std::time::{Duration, Instant};

use flumen_journal::Journal;
use flumen_pipeline::StopOutcome;

use crate::support::assert_exactly;
use crate::support::destination::Destination;
use crate::support::script::Script;
use crate::support::world::{World, plan};

const TOTAL: u64 = 2_000;

#[test]
fn what_a_slow_sink_did_not_deliver_is_left_and_delivered_next_time() {
    let world = World::new(plan(&["one"], &[("main", 1_500)], &[("a", "main"), ("slow", "main")]));
    let (fast, slow) = (Destination::new(), Destination::new());
    slow.set_pause(Duration::from_millis(20));
    let script = Script::new(1, TOTAL, 20);
    let running = world.start(vec![script.make()], Vec::new(), vec![fast.sink(), slow.sink()]);
    slow.wait_for_rows(30);
    let journal = running.journal.clone();
    let outcome = running.stop_within(Duration::from_millis(100));
    let channel = journal.status().channels.swap_remove(0);
    drop(journal);
    // Everything that was delivered is flushed and acknowledged, and all the rest is counted.
    assert_eq!(outcome, StopOutcome::Left(channel.head - slow.rows() as u64));
    assert_eq!(slow.rows() as u64, channel.readers[1].1);
    assert!(channel.events > 100, "{} left", channel.events);

    slow.set_pause(Duration::ZERO);
    world.start(vec![script.make()], Vec::new(), vec![fast.sink(), slow.sink()]).finish();
    assert_exactly(&fast.records(), &[1], TOTAL, |_| true, "fast");
    assert_exactly(&slow.records(), &[1], TOTAL, |_| true, "slow");
}

#[test]
fn a_stop_does_not_wait_for_a_destination_that_is_down() {
    let world = World::new(plan(&["one"], &[("main", 500)], &[("a", "main")]));
    let destination = Destination::new();
    destination.set_down(true);
    let script = Script::new(1, TOTAL, 20);
    let running = world.start(vec![script.make()], Vec::new(), vec![destination.sink()]);
    crate::support::until("the channel is full", || running.head("main") >= 500);
    let begin = Instant::now();
    let outcome = running.stop_within(Duration::from_millis(200));
    assert!(begin.elapsed() < Duration::from_secs(5), "it took {:?}", begin.elapsed());
    assert!(matches!(outcome, StopOutcome::Left(500..520)), "{outcome:?}");
    assert_eq!(destination.rows(), 0);

    destination.set_down(false);
    world.start(vec![script.make()], Vec::new(), vec![destination.sink()]).finish();
    assert_exactly(&destination.records(), &[1], TOTAL, |_| true, "after the restart");
}

#[test]
fn a_waiting_source_stops_at_once() {
    let world = World::new(plan(&["one"], &[("main", 500)], &[("a", "main")]));
    let destination = Destination::new();
    let mut script = Script::new(1, 100, 20);
    script.stays = true;
    let running = world.start(vec![script.make()], Vec::new(), vec![destination.sink()]);
    destination.wait_for_rows(100);
    assert!(!running.pipeline.sources_ended());
    assert_eq!(running.stop_within(Duration::from_secs(30)), StopOutcome::Drained);
    assert_exactly(&destination.records(), &[1], 100, |_| true, "all");
}
