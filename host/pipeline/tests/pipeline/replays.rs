//! Jobs of the quarantine: an event is in it or replayed or dropped, whatever crashes when.

use std::sync::Arc;
use std::time::Duration;

use flumen_event::Batch;
use flumen_journal::{Commit, Journal};
use flumen_pipeline::feed::MakeSource;
use flumen_pipeline::kept::filter::Filter;
use flumen_pipeline::kept::{Action, JobReport, Kept, Request, job_key};
use flumen_pipeline::plan::OnReject;
use flumen_pipeline::{
    Emission, Interceptor, Processed, Source, SourceContext, SourceError, quarantine, replay,
};

use crate::support::destination::Destination;
use crate::support::plugins::{Plugin, all, keep, label, quarantine as out, rows_where};
use crate::support::script::{Script, batch};
use crate::support::world::{Running, World, interceptor, plan};
use crate::support::{Dice, Record, assert_exactly, until};

const TOTAL: u64 = 2_000;

fn is_judged(position: u64) -> bool {
    position.is_multiple_of(7)
}

fn is_late(position: u64) -> bool {
    !is_judged(position) && position % 13 == 1
}

/// Still fails with the new version.
fn is_hopeless(position: u64) -> bool {
    position.is_multiple_of(77)
}

/// Left out by the new version.
fn is_left_out(position: u64) -> bool {
    position.is_multiple_of(7) && position % 5 == 1 && !is_hopeless(position)
}

fn old(batch: Batch) -> Processed {
    let batch = label(batch, "version", "old");
    Processed {
        kept: rows_where(&batch, |position| !is_judged(position)),
        quarantined: vec![out(&batch, "judge", false, is_judged)],
        dropped: 0,
    }
}

fn new(batch: Batch) -> Processed {
    assert!(batch.headers().iter().all(|header| !header.name.starts_with("flumen.")), "labels are gone");
    let batch = label(batch, "version", "new");
    let quarantined = vec![out(&batch, "judge", false, is_hopeless)];
    Processed { quarantined, ..keep(batch, |position| !is_hopeless(position) && !is_left_out(position)) }
}

fn late(batch: Batch) -> Processed {
    let quarantined = vec![out(&batch, "late", true, is_late)];
    Processed { quarantined, ..keep(batch, |position| !is_late(position)) }
}

/// The sink `b` has two interceptors; only the second one rejects.
fn world() -> World {
    let mut plan = plan(&["one"], &[("main", 100_000)], &[("a", "main"), ("b", "main")]);
    plan.interceptors =
        vec![interceptor("first", OnReject::Quarantine), interceptor("judge", OnReject::Quarantine)];
    plan.sinks[1].interceptors =
        vec![interceptor("early", OnReject::Quarantine), interceptor("late", OnReject::Quarantine)];
    World::new(plan)
}

/// Counts how often an event passes, in a header.
fn counted(name: &'static str) -> Arc<Plugin> {
    Plugin::new(name, move |batch| {
        let twice = batch.header(name).is_some_and(|header| header.iter().flatten().next().is_some());
        all(label(batch, name, if twice { "twice" } else { "once" }))
    })
}

fn start(world: &World, a: &Destination, b: &Destination, is_new: bool) -> Running {
    start_from(Script::new(1, TOTAL, 50).make(), world, a, b, is_new)
}

fn start_from(source: MakeSource, world: &World, a: &Destination, b: &Destination, is_new: bool) -> Running {
    let judge = if is_new { Plugin::new("judge", new) } else { Plugin::new("judge", old) };
    let late = if is_new { Plugin::new("late", all) } else { Plugin::new("late", late) };
    let chain: Vec<Arc<dyn Interceptor>> = vec![counted("first"), judge];
    let own: Vec<Arc<dyn Interceptor>> = vec![counted("early"), late];
    world.start(vec![source], chain, vec![a.sink(), (b.make(), own)])
}

/// All events in one batch, each with an address that no replay gave it.
struct Addressed(&'static str);

impl Source for Addressed {
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        if context.positions().is_empty() {
            let batch = label(batch(1, 0, TOTAL), replay::HEADER_TO, self.0);
            let positions = vec![(b"at".to_vec(), vec![1])];
            context.emit(Emission { batch, positions, quarantined: Vec::new() })?;
        }
        Ok(())
    }
}

fn addressed(to: &'static str) -> MakeSource {
    Box::new(move || Ok(Box::new(Addressed(to))))
}

fn all_of(action: Action, limit: Option<u64>) -> Request {
    Request { action, filter: Filter::default(), limit }
}

fn kept(running: &Running) -> Arc<Kept> {
    running.pipeline.kept().unwrap().clone()
}

fn sorted(mut records: Vec<Record>) -> Vec<Record> {
    records.sort_by_key(|record| record.position);
    records
}

fn wait_done(running: &Running) -> Vec<JobReport> {
    until("no job is left", || kept(running).next_job().is_none());
    kept(running).reports()
}

/// A pipeline whose quarantine holds what its plugins could not take.
fn filled(world: &World) -> [Destination; 2] {
    let (a, b) = (Destination::new(), Destination::new());
    start(world, &a, &b, false).finish();
    [a, b]
}

fn check_replayed(world: &World, a: &Destination, b: &Destination) {
    let is_gone = |position| is_hopeless(position) || is_left_out(position);
    assert_exactly(&sorted(a.records()), &[1], TOTAL, |position| !is_gone(position), "a");
    assert_exactly(&sorted(b.records()), &[1], TOTAL, |position| !is_gone(position), "b");
    let left = sorted(world.quarantined());
    assert_exactly(&left, &[1], TOTAL, is_hopeless, "quarantine");
    for record in a.records().iter().chain(&b.records()) {
        assert_eq!(record.header("first"), "once", "an event begins with the interceptor that failed on it");
        assert_eq!(record.header("version"), if is_judged(record.position) { "new" } else { "old" });
        assert!(record.headers.keys().all(|name| !name.starts_with("flumen.")), "{record:?}");
    }
    assert!(b.records().iter().all(|record| record.header("early") == "once"));
    for record in left {
        assert_eq!(record.header("version"), "new", "the new reason: {record:?}");
        assert_eq!(record.header(quarantine::HEADER_BY), "judge");
    }
}

#[test]
fn a_replay_goes_on_from_where_each_event_failed() {
    let world = world();
    let [a, b] = filled(&world);
    let before = world.quarantined().len() as u64;
    let running = start(&world, &a, &b, true);
    let request = |by: &str, limit| {
        let filter = Filter { by: Some(by.into()), ..Filter::default() };
        kept(&running).request(Request { action: Action::Replay, filter, limit }).unwrap()
    };
    let ids =
        [request("late", Some(10)), request("nobody", None), request("late", None), request("judge", None)];
    let reports = wait_done(&running);
    let events = ids.map(|id| reports.iter().find(|report| report.id == id).unwrap().events);
    assert_eq!((events[0], events[1], events.iter().sum::<u64>()), (10, 0, before));
    let again = (0..TOTAL).filter(|position| is_hopeless(*position)).count() as u64;
    assert_eq!(reports.iter().map(|report| report.again).sum::<u64>(), again);
    until("those that failed again are kept", || kept(&running).events() == again);
    until("nothing of the jobs is left", || running.journal.positions(replay::POSITIONS).is_empty());
    running.finish();
    check_replayed(&world, &a, &b);
}

/// An address from outside leads no event past a sink or its interceptors: only a replay may give one.
#[test]
fn an_address_from_outside_does_not_count() {
    for to in ["nobody", "a", "b/late"] {
        let (world, a, b) = (world(), Destination::new(), Destination::new());
        start_from(addressed(to), &world, &a, &b, false).finish();
        let is_taken = |position| !is_judged(position);
        assert_exactly(&a.records(), &[1], TOTAL, is_taken, to);
        assert_exactly(&b.records(), &[1], TOTAL, |position| is_taken(position) && !is_late(position), to);

        let running = start_from(addressed(to), &world, &a, &b, true);
        kept(&running).request(all_of(Action::Replay, None)).unwrap();
        wait_done(&running);
        running.finish();
        check_replayed(&world, &a, &b);
    }
}

/// The time of a life that ends with a crash: each may be a little longer than the one before, so that on any machine one of them gets
/// on. A crash leaves its threads behind.
fn live(dice: &mut Dice, lives: &mut u64) {
    *lives += 1;
    std::thread::park_timeout(Duration::from_micros(dice.roll(3_000 + 300 * *lives)));
}

#[test]
fn crashes_at_any_point_of_a_replay_neither_lose_nor_double() {
    let mut crashes = 0;
    // More rounds where the replay is quick beside this thread.
    for seed in 1..=40 {
        if seed > 4 && crashes > 8 {
            break;
        }
        let mut dice = Dice(seed);
        let mut world = world();
        let [mut a, mut b] = filled(&world);
        let events = world.quarantined().len() as u64;
        let mut running = start(&world, &a, &b, true);
        // Many small jobs: many commits to crash between.
        (0..events.div_ceil(20)).for_each(|_| {
            kept(&running).request(all_of(Action::Replay, Some(20))).unwrap();
        });
        let mut lives = 0;
        while kept(&running).next_job().is_some() {
            live(&mut dice, &mut lives);
            world = world.crash(running);
            (a, b) = (a.crash(&mut dice), b.crash(&mut dice));
            running = start(&world, &a, &b, true);
            crashes += 1;
        }
        running.finish();
        // Those that fail again are taken by a later job as well, which ends where they began.
        check_replayed(&world, &a, &b);
    }
    assert!(crashes > 8, "{crashes} crashes only");
}

/// The crash is between the two journals: what the pipeline's has is only marked.
#[test]
fn what_was_replayed_before_a_crash_is_taken_over_as_it_is_on_record() {
    let mut plan = plan(&["one"], &[("main", 500)], &[("a", "main")]);
    plan.interceptors = vec![interceptor("judge", OnReject::Quarantine)];
    let world = World::new(plan);
    let (journal, kept_journal) = (world.open_journal(), world.open_quarantine());
    let kept = Kept::new(kept_journal.clone()).unwrap();
    let events = quarantine::puts(
        flumen_journal::ChannelId(0),
        vec![out(&batch(9, 0, 20), "judge", true, |_| true)],
        "interceptor",
        None,
    );
    let channel = kept_journal.channel(quarantine::KEPT_CHANNEL).unwrap();
    let puts = events.into_iter().map(|put| flumen_journal::Put { channels: vec![channel], ..put }).collect();
    kept_journal.commit(Commit { puts, ..Commit::default() }, None).unwrap().wait(None).unwrap().unwrap();
    let filter = Filter { numbers: Some((4, 20)), ..Filter::default() };
    let id = kept.request(Request { action: Action::Replay, filter, limit: Some(14) }).unwrap();
    let positions = vec![(job_key(replay::POSITIONS, id), 12_u64.to_le_bytes().to_vec())];
    journal.commit(Commit { positions, ..Commit::default() }, None).unwrap().wait(None).unwrap().unwrap();
    journal.close().unwrap();
    kept_journal.close().unwrap();
    drop((journal, kept_journal, kept));

    let destination = Destination::new();
    let chain: Vec<Arc<dyn Interceptor>> = vec![Plugin::new("judge", all)];
    let running = world.start(vec![Script::new(1, 0, 5).make()], chain, vec![destination.sink()]);
    let reports = wait_done(&running);
    assert_eq!((reports[0].events, reports[0].state.as_str()), (14, "done"));
    running.finish();
    // 4 to 11 were replayed; 12 to 17 are now; the limit is reached then.
    assert_exactly(&destination.records(), &[9], 20, |position| (12..18).contains(&position), "delivered");
    assert_exactly(&world.quarantined(), &[9], 20, |position| !(4..18).contains(&position), "quarantine");
}

#[test]
fn dropped_events_are_gone_and_the_others_stay_over_crashes() {
    let mut dice = Dice(9);
    let mut world = world();
    let [mut a, mut b] = filled(&world);
    let mut running = start(&world, &a, &b, false);
    let reason = |number: u64| Filter { reason: Some(format!("reason {number}")), ..Filter::default() };
    // The reason ends with the position: those of the 1,000s, one job for each hundred.
    (10..20).for_each(|hundred| {
        kept(&running)
            .request(Request { action: Action::Drop, filter: reason(hundred), limit: None })
            .unwrap();
    });
    let mut lives = 0;
    while kept(&running).next_job().is_some() {
        live(&mut dice, &mut lives);
        world = world.crash(running);
        (a, b) = (a.crash(&mut dice), b.crash(&mut dice));
        running = start(&world, &a, &b, false);
    }
    eprintln!("{lives} lives");
    let events = kept(&running).events();
    running.finish();
    let is_dropped = |position: u64| {
        let text = format!("reason {position}");
        (10..20).any(|hundred| text.contains(&format!("reason {hundred}")))
    };
    let left = sorted(world.quarantined());
    assert_eq!(events, left.len() as u64);
    let is_kept = |position| (is_judged(position) || is_late(position)) && !is_dropped(position);
    assert_exactly(&left, &[1], TOTAL, is_kept, "quarantine");
    assert!(left.len() > 100 && left.len() < 400, "{}", left.len());
}

/// Whose plugin is no longer there has nowhere to go: it stays.
#[test]
fn events_of_a_plugin_that_is_gone_stay() {
    let mut world = world();
    filled(&world);
    let mut plan = plan(&["one"], &[("main", 100_000)], &[("a", "main"), ("b", "main")]);
    plan.sinks[1].interceptors = vec![interceptor("late", OnReject::Quarantine)];
    world.plan = plan;
    let (a, b) = (Destination::new(), Destination::new());
    let late: Vec<Arc<dyn Interceptor>> = vec![Plugin::new("late", all)];
    a.set_forgetful();
    b.set_forgetful();
    let running =
        world.start(vec![Script::new(1, TOTAL, 50).make()], Vec::new(), vec![a.sink(), (b.make(), late)]);
    kept(&running).request(all_of(Action::Replay, None)).unwrap();
    let replayed = (0..TOTAL).filter(|position| is_late(*position)).count() as u64;
    let reports = wait_done(&running);
    assert_eq!(reports[0].events, replayed);
    b.wait_for_rows(replayed as usize);
    running.finish();
    assert!(a.records().is_empty(), "only the sink whose interceptor rejected them gets them");
    assert_exactly(&sorted(b.records()), &[1], TOTAL, is_late, "b");
    assert_exactly(&sorted(world.quarantined()), &[1], TOTAL, is_judged, "quarantine");
}
