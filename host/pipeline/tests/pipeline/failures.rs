//! A disk that fails, and parts that cannot be made.

use std::sync::atomic::Ordering;
use std::time::Duration;

use flumen_pipeline::pipeline::CodecMetrics;
use flumen_pipeline::{BuildError, Parts, Pipeline, StopOutcome};

use crate::support::destination::Destination;
use crate::support::script::Script;
use crate::support::world::{World, plan};
use crate::support::{Dice, assert_exactly, until};

const TOTAL: u64 = 2_000;

/// The journal fails while only a sink has something to commit: the pipeline says so all the same.
#[test]
fn a_failed_journal_is_reported_and_loses_nothing() {
    let mut world = World::new(plan(&["one"], &[("main", 5_000)], &[("a", "main")]));
    let mut destination = Destination::new();
    destination.set_held(true);
    let mut script = Script::new(1, TOTAL, 40);
    script.stays = true;
    let running = world.start(vec![script.make()], Vec::new(), vec![destination.sink()]);
    until("all is in the channel", || running.head("main") == TOTAL && running.pipeline.failure().is_none());
    world.gate.break_writes();
    destination.set_held(false);
    until("the failure is reported", || running.pipeline.failure().is_some());
    world = world.crash(running);
    destination = destination.crash(&mut Dice(1));

    script.stays = false;
    world.start(vec![script.make()], Vec::new(), vec![destination.sink()]).finish();
    assert_exactly(&destination.records(), &[1], TOTAL, |_| true, "after the restart");
}

#[test]
fn stopping_a_failed_pipeline_says_why() {
    let world = World::new(plan(&["one"], &[("main", 5_000)], &[("a", "main")]));
    let destination = Destination::new();
    // Nothing comes before the disk is broken: else all may be through by then.
    let script = Script::new(1, TOTAL, 40);
    script.gate.store(0, Ordering::Release);
    let running = world.start(vec![script.make()], Vec::new(), vec![destination.sink()]);
    world.gate.break_writes();
    script.gate.store(u64::MAX, Ordering::Release);
    until("the failure is reported", || {
        running.pipeline.failure().is_some() || running.pipeline.sources_ended()
    });
    let outcome = running.stop_within(Duration::from_millis(100));
    assert!(matches!(outcome, StopOutcome::Failed(_)), "{outcome:?}");
}

/// A part that cannot be made: what was started before it is stopped, and the journals are free.
#[test]
fn a_failed_start_leaves_nothing_running() {
    let world = World::new(plan(&["one"], &[("main", 500)], &[("a", "main"), ("b", "main")]));
    let destination = Destination::new();
    let parts = Parts {
        agent: "test".into(),
        plan: world.plan.clone(),
        journal: world.open_journal(),
        quarantine: world.open_quarantine(),
        sources: vec![Script::new(1, TOTAL, 40).make()],
        interceptors: Vec::new(),
        codecs: CodecMetrics::default(),
        memory: world.memory.clone(),
        sinks: vec![
            destination.sink(),
            (Box::new(|| Err(BuildError::new("path", "is not there", "make it"))), Vec::new()),
        ],
    };
    let error = Pipeline::start(parts).err().unwrap();
    assert_eq!(error.component, "b");

    let second = Destination::new();
    let sinks = vec![destination.sink(), second.sink()];
    world.start(vec![Script::new(1, TOTAL, 40).make()], Vec::new(), sinks).finish();
    assert_exactly(&destination.records(), &[1], TOTAL, |_| true, "a");
    assert_exactly(&second.records(), &[1], TOTAL, |_| true, "b");
}
