//! The process is over its memory budget: who waits, for what, and that nobody waits for ever.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use flumen_journal::{FileConfig, Journal, MemoryJournal, MemorySpec, OsClock, OsDisk, WhenFull};
use flumen_pipeline::pipeline::CodecMetrics;
use flumen_pipeline::{MemoryChange, MemoryGate, Parts, Pipeline, StopOutcome, channel_specs, limits};

use crate::support::destination::Destination;
use crate::support::script::Script;
use crate::support::world::{World, plan};
use crate::support::{DEADLINE, assert_exactly, until};

const ROWS_MAX: u64 = 50;

fn hold(memory: &MemoryGate) {
    assert_eq!(memory.look(2, 1), Some(MemoryChange::Held));
}

fn release(memory: &MemoryGate) {
    assert_eq!(memory.look(0, 1), Some(MemoryChange::Released));
}

fn is_held(pipeline: &Pipeline) -> bool {
    pipeline.status().sources[0].state == "held"
}

fn in_memory(dir: &Path, world: &World) -> Arc<MemoryJournal> {
    let config = FileConfig {
        dir: dir.join("journal"),
        segment_bytes: 64 << 10,
        window_bytes: 32 << 10,
        reserve_bytes: 0,
        ..FileConfig::default()
    };
    let mut own = channel_specs(&world.plan);
    let others = own.split_off(world.plan.channels.len());
    let own = own.into_iter().map(|channel| MemorySpec { channel, full: WhenFull::Wait }).collect();
    MemoryJournal::open(config, own, others, Arc::new(OsDisk), Arc::new(OsClock)).unwrap()
}

fn start(world: &World, journal: Arc<MemoryJournal>, script: &Script, destination: &Destination) -> Pipeline {
    let parts = Parts {
        agent: "test".into(),
        plan: world.plan.clone(),
        journal,
        quarantine: world.open_quarantine(),
        sources: vec![script.make()],
        interceptors: Vec::new(),
        sinks: vec![destination.sink()],
        codecs: CodecMetrics::default(),
        memory: world.memory.clone(),
    };
    Pipeline::start(parts).unwrap()
}

/// While events are in the channel's memory the source waits for them, however long the sink stands still. When they are gone and the
/// process still has too much, waiting frees nothing: the rest goes through all the same, though the gate is never released.
#[test]
fn a_source_waits_for_what_it_has_in_memory_and_for_nothing_else() {
    const BEFORE: u64 = 500;
    // Some ten batches behind them: each waits for a tenth of a second.
    const TOTAL: u64 = BEFORE + 250;
    let world = World::new(plan(&["one"], &[("main", 100_000)], &[("out", "main")]));
    let dir = tempfile::tempdir().unwrap();
    let journal = in_memory(dir.path(), &world);
    let (destination, script) = (Destination::new(), Script::new(1, TOTAL, ROWS_MAX));
    destination.set_held(true);
    script.gate.store(BEFORE, Ordering::Release);
    let pipeline = start(&world, journal.clone(), &script, &destination);
    until("the first events are in the channel", || journal.status().channels[0].head >= BEFORE);

    hold(&world.memory);
    script.gate.store(u64::MAX, Ordering::Release);
    until("the source waits", || is_held(&pipeline));
    let head = journal.status().channels[0].head;
    assert!(head < TOTAL);
    let begin = Instant::now();
    until("it looks several times", || begin.elapsed() > limits::MEMORY_LOOK * 5);
    assert_eq!((journal.status().channels[0].head, world.memory.passed()), (head, 0), "it did not wait");
    assert!(is_held(&pipeline));

    destination.set_held(false);
    until("the source ends", || pipeline.sources_ended());
    assert!(world.memory.is_held());
    assert!(world.memory.passed() > 0);
    let status = pipeline.status();
    assert_eq!(status.sources[0].metrics["batches_held_by_memory"], world.memory.passed());
    assert_eq!(pipeline.stop(Instant::now() + DEADLINE), StopOutcome::Drained);
    assert_exactly(&destination.records(), &[1], TOTAL, |_| true, "out");
}

/// A channel on disk: its events are no memory, and a sink that stands still keeps the source waiting for nothing.
#[test]
fn events_on_disk_are_not_waited_for() {
    const TOTAL: u64 = 250;
    let world = World::new(plan(&["one"], &[("main", 100_000)], &[("out", "main")]));
    let (destination, script) = (Destination::new(), Script::new(1, TOTAL, ROWS_MAX));
    destination.set_held(true);
    hold(&world.memory);
    let running = world.start(vec![script.make()], Vec::new(), vec![destination.sink()]);
    until("everything is in the channel", || running.head("main") == TOTAL);
    assert!(world.memory.is_held() && world.memory.passed() > 0);
    assert_eq!(destination.rows(), 0);
    destination.set_held(false);
    running.finish();
    assert_exactly(&destination.records(), &[1], TOTAL, |_| true, "out");
}

/// Far more batches than go through one by one before the deadline.
#[test]
fn a_source_goes_on_at_once_when_it_is_released() {
    const TOTAL: u64 = 20_000;
    assert!(limits::MEMORY_LOOK * (TOTAL / ROWS_MAX) as u32 * 2 > DEADLINE);
    let world = World::new(plan(&["one"], &[("main", 100_000)], &[("out", "main")]));
    let (destination, script) = (Destination::new(), Script::new(1, TOTAL, ROWS_MAX));
    hold(&world.memory);
    let running = world.start(vec![script.make()], Vec::new(), vec![destination.sink()]);
    until("the source waits", || is_held(&running.pipeline));
    release(&world.memory);
    running.finish();
    assert!(!world.memory.is_held());
    assert_exactly(&destination.records(), &[1], TOTAL, |_| true, "out");
}

/// What was read and waits is not given up: of a pipe it could not be read again.
#[test]
fn a_stop_does_not_wait_for_memory() {
    let world = World::new(plan(&["one"], &[("main", 100_000)], &[("out", "main")]));
    let dir = tempfile::tempdir().unwrap();
    let journal = in_memory(dir.path(), &world);
    let (destination, script) = (Destination::new(), Script::new(1, 1_000, ROWS_MAX));
    destination.set_held(true);
    script.gate.store(500, Ordering::Release);
    let pipeline = start(&world, journal.clone(), &script, &destination);
    until("the first events are in the channel", || journal.status().channels[0].head >= 500);
    hold(&world.memory);
    script.gate.store(u64::MAX, Ordering::Release);
    until("the source waits", || is_held(&pipeline));
    let head = journal.status().channels[0].head;
    destination.set_held(false);
    let outcome = pipeline.stop(Instant::now() + DEADLINE);
    assert_eq!(outcome, StopOutcome::Drained);
    pipeline.wait_ended(Duration::from_secs(60)).unwrap();
    let delivered = destination.rows() as u64;
    assert!(delivered > head, "{delivered} of {head} and a batch");
    assert_exactly(&destination.records(), &[1], delivered, |_| true, "out");
}
