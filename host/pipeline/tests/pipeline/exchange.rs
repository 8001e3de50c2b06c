//! Sinks that come and go in a running pipeline: nothing else is touched, and what they are owed they get, exactly once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use flumen_pipeline::deliver::MakeSink;
use flumen_pipeline::exchange::{ExchangeError, Makers};
use flumen_pipeline::feed::MakeSource;
use flumen_pipeline::plan::{PipelinePlan, SinkPlan, SourcePlan};
use flumen_pipeline::plan_diff::VanishingPart;
use flumen_pipeline::{ComponentMetrics, StopOutcome};

use crate::support::destination::Destination;
use crate::support::script::Script;
use crate::support::world::{Running, World, plan};
use crate::support::{DEADLINE, Dice, assert_exactly, until};

const TOTAL: u64 = 4_000;

struct Parts {
    script: Script,
    destinations: BTreeMap<&'static str, Destination>,
}

impl Makers for Parts {
    fn source(&self, _: &SourcePlan) -> (MakeSource, Option<Arc<ComponentMetrics>>) {
        panic!("sources are not touched")
    }

    fn sink(&self, plan: &SinkPlan) -> (MakeSink, Option<Arc<ComponentMetrics>>) {
        (self.destinations[&*plan.name].make(), None)
    }
}

fn with_sinks(sinks: &[&str]) -> PipelinePlan {
    let sinks: Vec<_> = sinks.iter().map(|sink| (*sink, "main")).collect();
    plan(&["one"], &[("main", 10_000)], &sinks)
}

impl Parts {
    fn new() -> Parts {
        let script = Script { stays: true, ..Script::new(1, TOTAL, 20) };
        script.gate.store(0, Ordering::Release);
        let destinations = ["a", "b", "c"].map(|name| (name, Destination::new())).into();
        Parts { script, destinations }
    }

    fn start(&self, world: &World) -> Running {
        let sinks = world.plan.sinks.iter().map(|sink| self.destinations[&*sink.name].sink());
        world.start(vec![self.script.make()], Vec::new(), sinks.collect())
    }

    /// Lets the source go on, and waits until a sink has it.
    fn feed(&self, until: u64, sink: &str, from: u64) {
        self.script.gate.store(until, Ordering::Release);
        let starts = self.script.starts();
        let end = starts.into_iter().find(|start| *start >= until).unwrap_or(TOTAL);
        self.destinations[sink].wait_for_rows((end - from) as usize);
    }

    fn exchange(&self, running: &Running, sinks: &[&str], drain: Duration) -> Result<(), ExchangeError> {
        let (plan, links) = (with_sinks(sinks), running.pipeline.links());
        running.pipeline.exchange(plan, &links, self, Some(drain))?;
        running.pipeline.retire_readers();
        Ok(())
    }

    fn positions(&self, sink: &str) -> Vec<u64> {
        self.destinations[sink].records().iter().map(|record| record.position).collect()
    }
}

/// A sink comes at the channel's end, and one goes when it has delivered what was there; the source never stops.
#[test]
fn a_sink_comes_and_another_goes() {
    let (world, parts) = (World::new(with_sinks(&["a", "b"])), Parts::new());
    let running = parts.start(&world);
    parts.feed(1_000, "a", 0);
    let from = running.head("main");
    parts.destinations["b"].set_held(true);
    parts.exchange(&running, &["a", "b", "c"], DEADLINE).unwrap();
    parts.feed(2_000, "a", 0);
    parts.feed(2_000, "c", from);
    // It has to deliver what is there; what comes meanwhile is not its any more.
    let owed = running.head("main");
    std::thread::scope(|scope| {
        let going = scope.spawn(|| parts.exchange(&running, &["a", "c"], DEADLINE));
        parts.feed(2_500, "a", 0);
        parts.destinations["b"].set_held(false);
        going.join().unwrap().unwrap();
    });
    let b = parts.positions("b");
    assert!(b.len() as u64 >= owed, "{} of {owed}", b.len());
    assert_eq!(b, (0..b.len() as u64).collect::<Vec<_>>());
    assert_eq!(running.cursors("main").len(), 2, "it holds nothing any more");
    parts.feed(TOTAL, "a", 0);
    parts.feed(TOTAL, "c", from);
    assert_eq!(parts.positions("b"), b);
    // The source counts a batch when it has handed it over: the sinks may be quicker.
    let emitted = || parts.script.emitted.load(Ordering::Acquire);
    until("the source has counted its last batch", || emitted() >= TOTAL);
    assert_eq!(emitted(), TOTAL, "the source did not restart");
    assert_eq!(running.pipeline.stop(Instant::now() + DEADLINE), StopOutcome::Drained);
    assert_exactly(&parts.destinations["a"].records(), &[1], TOTAL, |_| true, "a");
    assert_exactly(&parts.destinations["c"].records(), &[1], TOTAL, |position| position >= from, "c");
}

/// A sink that cannot deliver what it is owed does not go, and everything is as it was.
#[test]
fn a_sink_that_holds_events_stays() {
    let (world, parts) = (World::new(with_sinks(&["a", "b"])), Parts::new());
    let running = parts.start(&world);
    parts.destinations["b"].set_pause(Duration::from_millis(500));
    parts.feed(1_000, "a", 0);
    let held = parts.exchange(&running, &["a", "c"], Duration::from_millis(50));
    let Err(ExchangeError::Held(held)) = held else { panic!("{held:?}") };
    assert_eq!((held.len(), &held[0].0.part), (1, &VanishingPart::Sink("b".to_owned())));
    assert!(held[0].1 > 0);
    let names: Vec<_> = running.pipeline.status().sinks.into_iter().map(|sink| sink.component.name).collect();
    assert_eq!(names, ["a", "b"]);
    parts.destinations["b"].set_pause(Duration::ZERO);
    parts.feed(TOTAL, "a", 0);
    parts.feed(TOTAL, "b", 0);
    assert_eq!(running.pipeline.stop(Instant::now() + DEADLINE), StopOutcome::Drained);
    for sink in ["a", "b"] {
        assert_exactly(&parts.destinations[sink].records(), &[1], TOTAL, |_| true, sink);
    }
    assert!(parts.positions("c").is_empty());
}

/// The agent dies while sinks come and go: a sink that came is owed everything since, whatever was on its way.
#[test]
fn a_crash_after_a_sink_came() {
    for seed in 0..8 {
        let (mut world, mut parts) = (World::new(with_sinks(&["a"])), Parts::new());
        let mut dice = Dice(seed);
        let running = parts.start(&world);
        parts.feed(500 + dice.roll(500), "a", 0);
        let from = running.head("main");
        parts.exchange(&running, &["a", "c"], DEADLINE).unwrap();
        parts.script.gate.store(u64::MAX, Ordering::Release);
        parts.destinations["c"].wait_for_rows(1 + dice.roll(1_500) as usize);
        world = world.crash(running);
        parts.destinations.values_mut().for_each(|it| *it = it.crash(&mut dice));
        world.plan = with_sinks(&["a", "c"]);
        let running = parts.start(&world);
        until("everything", || running.cursors("main").iter().all(|cursor| *cursor == TOTAL));
        assert_eq!(running.pipeline.stop(Instant::now() + DEADLINE), StopOutcome::Drained);
        assert_exactly(&parts.destinations["a"].records(), &[1], TOTAL, |_| true, &format!("a, seed {seed}"));
        let what = format!("c, seed {seed}");
        assert_exactly(&parts.destinations["c"].records(), &[1], TOTAL, |position| position >= from, &what);
    }
}
