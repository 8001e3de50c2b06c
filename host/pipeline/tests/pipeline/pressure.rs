//! Slow sinks: whom they hold back, and when.

use std::sync::atomic::Ordering;

use flumen_journal::Journal;
use flumen_pipeline::limits;

use crate::support::destination::Destination;
use crate::support::script::Script;
use crate::support::world::{World, plan};
use crate::support::{assert_exactly, until};

const TOTAL: u64 = 20_000;
const CAPACITY: u64 = 1_000;
const ROWS_MAX: u64 = 50;
const THREADS: u64 = 1;

/// `slow` waits at its first delivery. `fast` gets everything until the capacity of the slow one's channel is
/// reached, and then the source is held back: what is in flight is bounded. When there is room again all goes on.
fn slow_and_fast(channels: &[(&str, u64)], fast_channel: &str) {
    let world = World::new(plan(&["one"], channels, &[("slow", "main"), ("fast", fast_channel)]));
    let (slow, fast) = (Destination::new(), Destination::new());
    slow.set_held(true);
    let script = Script::new(1, TOTAL, ROWS_MAX);
    let running = world.start(vec![script.make()], Vec::new(), vec![slow.sink(), fast.sink()]);

    // Emitted, and not handed to the journal: the batches that have a permit, and one that the committer waits with.
    let in_flight_max = (limits::QUEUE_BATCHES as u64 + THREADS) * ROWS_MAX;
    let bounded = || {
        let emitted = script.emitted.load(Ordering::Acquire);
        let head = running.head("main");
        assert!(emitted <= head + in_flight_max, "{emitted} emitted, {head} in the channel");
        emitted
    };
    until("the channel is full", || {
        bounded();
        running.head("main") >= CAPACITY
    });
    fast.wait_for_rows(running.head("main") as usize);
    until("the source is held back", || {
        // Full permits: it cannot get further. The source may count a batch later than the channel does.
        bounded() >= running.head("main") + limits::QUEUE_BATCHES as u64 + THREADS
    });
    let head = running.head("main");
    assert!((CAPACITY..CAPACITY + ROWS_MAX).contains(&head), "a put waits at the capacity: {head}");
    assert_eq!(slow.rows(), 0);
    assert!(!running.pipeline.sources_ended());
    assert_exactly(&fast.records(), &[1], head, |_| true, "fast, while slow is held");

    slow.set_held(false);
    until("the source ends", || {
        bounded();
        let held = running.journal.status().channels.iter().map(|channel| channel.events).max().unwrap();
        assert!(held < CAPACITY + ROWS_MAX, "{held} events in a channel");
        running.pipeline.sources_ended()
    });
    running.finish();
    assert_exactly(&slow.records(), &[1], TOTAL, |_| true, "slow");
    assert_exactly(&fast.records(), &[1], TOTAL, |_| true, "fast");
}

#[test]
fn a_slow_sink_on_its_own_channel() {
    slow_and_fast(&[("main", CAPACITY), ("other", CAPACITY)], "other");
}

#[test]
fn a_slow_sink_on_the_same_channel() {
    slow_and_fast(&[("main", CAPACITY)], "main");
}
