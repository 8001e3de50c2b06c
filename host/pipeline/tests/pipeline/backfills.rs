//! Backfills: events from elsewhere go the way of a source, each once, whatever crashes when.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_journal::Journal;
use flumen_pipeline::backfill::{BackfillError, BackfillProgress, POSITIONS};
use flumen_pipeline::deliver::MakeSink;
use flumen_pipeline::exchange::Makers;
use flumen_pipeline::feed::MakeSource;
use flumen_pipeline::plan::{OnReject, PipelinePlan, SelectorRule, SinkPlan, SourcePlan};
use flumen_pipeline::{ComponentMetrics, Interceptor, Processed, StopOutcome, quarantine};

use crate::support::destination::Destination;
use crate::support::plugins::{Plugin, quarantine as out, rows_where};
use crate::support::script::Script;
use crate::support::world::{Running, World, interceptor, plan};
use crate::support::{DEADLINE, Dice, assert_exactly, until};

/// Events of each source, and of the backfill.
const TOTAL: u64 = 2_000;

/// The backfill's stream.
const LOST: u64 = 9;

fn good(position: u64) -> bool {
    position % 97 != 3
}

/// The source `one` goes to `main` and its sink `a`, `two` goes to `second` and its sink `b`.
fn two_ways() -> PipelinePlan {
    let channels = [("main", 700), ("second", 500)];
    let mut plan = plan(&["one", "two"], &channels, &[("a", "main"), ("b", "second")]);
    for (source, channel) in plan.sources.iter_mut().zip(["main", "second"]) {
        source.selector.rule = SelectorRule::Replicating([channel.to_owned()].into());
    }
    plan.interceptors = vec![interceptor("picky", OnReject::Quarantine)];
    plan
}

fn start(world: &World, a: &Destination, b: &Destination) -> Running {
    let picky = Plugin::new("picky", |batch| Processed {
        kept: rows_where(&batch, good),
        quarantined: vec![out(&batch, "picky", true, |position| !good(position))],
        dropped: 0,
    });
    let chain: Vec<Arc<dyn Interceptor>> = vec![picky];
    let sources = [1, 2].map(|stream| Script::new(stream, TOTAL, 40).make());
    world.start(sources.into(), chain, vec![a.sink(), b.sink()])
}

fn backfill(running: &Running, id: &str, like: &str, source: MakeSource) -> Result<(), BackfillError> {
    let plan = running.pipeline.plan();
    let known = plan.sources.iter().find(|source| source.name == like);
    let mut wanted = known.unwrap_or(&plan.sources[0]).clone();
    like.clone_into(&mut wanted.name);
    running.pipeline.backfill(id, &wanted, source, Arc::<BackfillProgress>::default())
}

fn lost() -> MakeSource {
    Script::new(LOST, TOTAL, 40).make()
}

/// The same interceptors, selector and quarantine; asked for again it goes on at its end, until it is forgotten.
#[test]
fn it_goes_the_way_of_its_source() {
    let (world, a, b) = (World::new(two_ways()), Destination::new(), Destination::new());
    let running = start(&world, &a, &b);
    assert!(matches!(backfill(&running, "x", "three", lost()), Err(BackfillError::NoSource(_))));
    backfill(&running, "x", "two", lost()).unwrap();
    assert_eq!(running.pipeline.backfill_positions("x"), [(b"at".to_vec(), TOTAL.to_le_bytes().to_vec())]);
    assert_eq!(running.pipeline.all_backfill_positions()[0].0, b"x/at");
    backfill(&running, "x", "two", lost()).unwrap();
    // Another one has positions of its own, and those of the source are not touched.
    backfill(&running, "xy", "one", Script::new(8, TOTAL, 40).make()).unwrap();
    until("the sources end", || running.pipeline.sources_ended());
    let of_source = running.pipeline.source_positions("two");
    assert_eq!(of_source, [(b"at".to_vec(), TOTAL.to_le_bytes().to_vec())]);
    running.pipeline.forget_backfills(&["x".to_owned()]).unwrap();
    assert!(running.pipeline.backfill_positions("x").is_empty());
    assert_eq!(running.journal.positions(POSITIONS.as_bytes()).len(), 1, "the other one is still known");
    running.finish();
    assert_exactly(&a.records(), &[1, 8], TOTAL, good, "a");
    assert_exactly(&b.records(), &[2, LOST], TOTAL, good, "b");
    let quarantined = world.quarantined();
    assert_exactly(&quarantined, &[1, 2, 8, LOST], TOTAL, |position| !good(position), "quarantine");
    for record in quarantined.iter().filter(|record| record.stream == LOST) {
        assert_eq!(record.header(quarantine::HEADER_SOURCE), "two", "a replay knows its selector");
    }
}

/// It waits for room as a source does, is not begun twice, holds the end of the sources back, and ends with the pipeline.
#[test]
fn it_waits_for_room_and_is_seen_until_it_is_stopped() {
    let (world, a, b) = (World::new(two_ways()), Destination::new(), Destination::new());
    let running = start(&world, &a, &b);
    until("the sources end", || running.pipeline.sources_ended());
    b.wait_for_rows((0..TOTAL).filter(|position| good(*position)).count());
    b.set_held(true);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| backfill(&running, "x", "two", lost()));
        until("the channel is full", || {
            let status = running.journal.status();
            running.pipeline.runs_backfill("x")
                && status.channels.iter().any(|channel| channel.name == "second" && channel.events >= 500)
        });
        assert!(!running.pipeline.runs_backfill("y"));
        assert!(matches!(backfill(&running, "x", "two", lost()), Err(BackfillError::AtWork)));
        assert!(!running.pipeline.sources_ended(), "an agent whose sources have ended would stop");
        let status = running.pipeline.status();
        assert_eq!((status.backfills.len(), status.backfills[0].component.name.as_str()), (1, "two"));
        b.set_held(false);
        waiting.join().unwrap().unwrap();
        assert!(running.pipeline.status().backfills.is_empty());

        let stays = Script { stays: true, ..Script::new(8, TOTAL, 40) };
        let made = stays.make();
        let staying = scope.spawn(|| backfill(&running, "y", "two", made));
        until("all was handed over", || stays.emitted.load(std::sync::atomic::Ordering::Acquire) == TOTAL);
        assert_eq!(running.pipeline.stop(Instant::now() + DEADLINE), StopOutcome::Drained);
        assert!(matches!(staying.join().unwrap(), Err(BackfillError::Stopped(_))));
        assert!(matches!(backfill(&running, "z", "two", lost()), Err(BackfillError::Stopped(_))));
    });
    assert_exactly(&b.records(), &[2, LOST, 8], TOTAL, good, "b");
}

struct Remade(Script);

impl Makers for Remade {
    fn source(&self, _: &SourcePlan) -> (MakeSource, Option<Arc<ComponentMetrics>>) {
        (self.0.make(), None)
    }

    fn sink(&self, _: &SinkPlan) -> (MakeSink, Option<Arc<ComponentMetrics>>) {
        (Destination::new().make(), None)
    }
}

/// A reload that changes the source ends it; asked for again it goes on, the new way. One that changes another source does not touch it.
#[test]
fn a_reload_of_its_source_ends_it() {
    let (world, a, b) = (World::new(two_ways()), Destination::new(), Destination::new());
    let running = start(&world, &a, &b);
    until("the sources end", || running.pipeline.sources_ended());
    let script = Script::new(LOST, TOTAL, 40);
    script.gate.store(TOTAL / 2, std::sync::atomic::Ordering::Release);
    let exchange = |source: usize, channel: &str| {
        let mut plan = (*running.pipeline.plan()).clone();
        plan.sources[source].selector.rule = SelectorRule::Replicating([channel.to_owned()].into());
        let makers = Remade(Script::new(source as u64 + 1, TOTAL, 40));
        running.pipeline.exchange(plan, &running.pipeline.links(), &makers, None).unwrap();
    };
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| backfill(&running, "x", "two", script.make()));
        let emitted = || script.emitted.load(std::sync::atomic::Ordering::Acquire);
        until("half was handed over", || emitted() >= TOTAL / 2);
        exchange(0, "second");
        assert!(running.pipeline.runs_backfill("x"));
        exchange(1, "main");
        assert!(matches!(waiting.join().unwrap(), Err(BackfillError::Stopped(_))));
    });
    script.gate.store(u64::MAX, std::sync::atomic::Ordering::Release);
    backfill(&running, "x", "two", script.make()).unwrap();
    running.finish();
    let lost = |destination: &Destination| {
        let records = destination.records().into_iter();
        records.filter(|record| record.stream == LOST).collect::<Vec<_>>()
    };
    let end = lost(&b).last().unwrap().position;
    assert!(end < TOTAL - 1, "{end}");
    assert_exactly(&lost(&b), &[LOST], end + 1, good, "b before");
    assert_exactly(&lost(&a), &[LOST], TOTAL, |position| good(position) && position > end, "a behind");
}

/// What was made for a source as it was would be put in the way that it has now.
#[test]
fn it_is_not_begun_when_its_source_has_changed_meanwhile() {
    let (world, a, b) = (World::new(two_ways()), Destination::new(), Destination::new());
    let running = start(&world, &a, &b);
    let mut before = running.pipeline.plan().sources[1].clone();
    before.selector.rule = SelectorRule::Replicating(["main".to_owned()].into());
    let begun = running.pipeline.backfill("x", &before, lost(), Arc::<BackfillProgress>::default());
    assert!(matches!(begun, Err(BackfillError::Stopped(_))), "{begun:?}");
    assert!(running.pipeline.backfill_positions("x").is_empty());
    running.finish();
    assert_exactly(&a.records(), &[1], TOTAL, good, "a");
    assert_exactly(&b.records(), &[2], TOTAL, good, "b");
}

#[test]
fn crashes_at_any_point_neither_lose_nor_double() {
    let mut crashes = 0;
    // More rounds where the backfill is quick beside this thread.
    for seed in 1..=40 {
        if seed > 4 && crashes > 8 {
            break;
        }
        let mut dice = Dice(seed);
        let (mut world, mut a, mut b) = (World::new(two_ways()), Destination::new(), Destination::new());
        let mut lives = 0;
        let last = loop {
            let running = Arc::new(start(&world, &a, &b));
            let shared = running.clone();
            let asked = std::thread::spawn(move || backfill(&shared, "x", "two", lost()).is_ok());
            // Each life may be a little longer than the one before: on any machine one of them gets to the end.
            lives += 1;
            std::thread::park_timeout(Duration::from_micros(dice.roll(3_000 + 1_500 * lives)));
            if asked.is_finished() {
                assert!(asked.join().unwrap());
                break Arc::into_inner(running).unwrap();
            }
            // A crash leaves its threads behind.
            world = world.crash(running);
            (a, b) = (a.crash(&mut dice), b.crash(&mut dice));
            crashes += 1;
        };
        last.finish();
        assert_exactly(&a.records(), &[1], TOTAL, good, &format!("a, seed {seed}"));
        assert_exactly(&b.records(), &[2, LOST], TOTAL, good, &format!("b, seed {seed}"));
        let what = format!("quarantine, seed {seed}");
        assert_exactly(&world.quarantined(), &[1, 2, LOST], TOTAL, |position| !good(position), &what);
    }
    assert!(crashes > 8, "{crashes} crashes only");
}
