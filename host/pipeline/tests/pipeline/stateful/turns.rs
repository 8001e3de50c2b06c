//! What a turn writes counts with its commit or not at all, and is bounded; no version works on state that it did not take over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use flumen_event::Batch;
use flumen_journal::{Commit, Journal, StateWrites};
use flumen_pipeline::chain::{Link, Links};
use flumen_pipeline::plan::{ErrorPlan, InterceptorPlan, OnReject};
use flumen_pipeline::quarantine::{HEADER_BY, HEADER_REASON, HEADER_ROLE};
use flumen_pipeline::state::Session;
use flumen_pipeline::stateful::{Stateful, StatefulOutput, Turn};
use flumen_pipeline::{Interceptor, Processed, Quarantined};

use super::{
    Column, Process, Remembering, Version, convert, counter, counts, exchange, held_at_once, number,
    one_event, remembering, set, with_state, world,
};
use crate::support::destination::Destination;
use crate::support::plugins::{Plugin, all, quarantine};
use crate::support::script::Script;
use crate::support::world::{World, interceptor, plan};
use crate::support::{assert_exactly, until};

/// Counts events, in this format of the state.
fn counts_in(format: u64, session: &mut Session, batch: &Batch) {
    assert_eq!(number(session, "format").max(1), format, "it works on state that it took over");
    let count = number(session, "count") + batch.rows() as u64;
    set(session, "count", count);
    session.accept();
}

fn none_before(_: &str, _: &mut Session) -> Result<(), String> {
    panic!("there was none before")
}

fn counting(format: u64) -> Process {
    Box::new(move |batch, session| {
        counts_in(format, session, &batch);
        all(batch)
    })
}

/// The chain is this plugin alone.
fn alone(plugin: &Arc<Remembering>, errors: ErrorPlan, journal: &dyn Journal) -> Arc<Stateful> {
    let plan = InterceptorPlan { errors, ..with_state("counter") };
    let links: Links = Arc::new(vec![Arc::new(Link::new(plugin.clone(), &plan))]);
    let stateful = Stateful::new("test", journal.state());
    stateful.exchange(&links, Duration::ZERO, || {}).unwrap();
    stateful
}

/// An event is processed, or its batch is held.
fn held(stateful: &Stateful, turn: &mut Turn) -> Result<StatefulOutput, &'static str> {
    stateful.process(turn, one_event("x"), &mut || Err("held"))
}

fn put_state(journal: &dyn Journal, state: Vec<StateWrites>) {
    let commit = Commit { state, ..Commit::default() };
    journal.commit(commit, None).unwrap();
}

fn remembered_by_counter(journal: &dyn Journal) -> Session {
    Session::new(journal.state().unwrap(), "test", &"counter".into(), u64::MAX, 0)
}

/// A version that could take over the state when it was looked at, and cannot when the first batch is there: the batch waits, and the
/// version is asked again.
#[test]
fn no_version_processes_before_it_has_taken_over_the_state() {
    static ASKED: AtomicU64 = AtomicU64::new(0);
    let world = world();
    let journal = world.open_journal();
    let mut before = remembered_by_counter(&*journal);
    set(&mut before, "count", 100);
    before.accept();
    before.seal();
    before.set_writer("c1", "c1");
    put_state(&*journal, before.into_writes());

    let migrate: fn(&str, &mut Session) -> Result<(), String> = |from, session| {
        assert_eq!(from, "c1");
        match ASKED.fetch_add(1, Ordering::AcqRel) {
            1 | 2 => Err("not now".into()),
            _ => convert(session, 1, 2),
        }
    };
    let version = Version { process: counting(2), tick: None, ..counter("c2", migrate) };
    let stateful = alone(&remembering("counter", version), ErrorPlan::default(), &*journal);
    let mut turn = stateful.turn();
    assert_eq!(held(&stateful, &mut turn).err(), Some("held"));
    drop(turn);
    let mut turn = stateful.turn();
    let mut hold = || {
        std::thread::sleep(Duration::from_millis(5));
        Ok::<(), &str>(())
    };
    let output = stateful.process(&mut turn, one_event("x"), &mut hold).ok().unwrap();
    assert_eq!(ASKED.load(Ordering::Acquire), 4);
    assert!(output.quarantined.is_empty(), "{:?}", output.quarantined[0].reasons);
    put_state(&*journal, turn.take_state());
    let mut after = remembered_by_counter(&*journal);
    assert_eq!((number(&mut after, "count"), number(&mut after, "format")), (101, 2));
    assert_eq!(after.writer(), Some(("c2".into(), "c2".into())));
}

/// A batch that is held leaves nothing behind, also not that its version took over the state: what is committed is of the one before.
#[test]
fn a_batch_that_is_held_takes_nothing_over() {
    let world = world();
    let journal = world.open_journal();
    let first = Version { process: counting(1), tick: None, ..counter("c1", none_before) };
    let plugin = remembering("counter", first);
    let stateful = alone(&plugin, held_at_once(), &*journal);
    let mut turn = stateful.turn();
    assert!(held(&stateful, &mut turn).is_ok());
    put_state(&*journal, turn.take_state());
    turn.handed_in();
    drop(turn);

    let fails: Process = Box::new(|batch, session| {
        counts_in(2, session, &batch);
        let guilty = quarantine(&batch, "counter", false, |_| true);
        Processed { kept: Batch::empty(), quarantined: vec![guilty], dropped: 0 }
    });
    let converts: fn(&str, &mut Session) -> Result<(), String> = |_, session| convert(session, 1, 2);
    let second = Version { process: fails, tick: None, ..counter("c2", converts) };
    *plugin.current.lock() = Arc::new(second);
    assert_eq!(held(&stateful, &mut stateful.turn()).err(), Some("held"));

    *plugin.current.lock() = Arc::new(counter("c3", |_, _| Err("no".into())));
    let mut turn = stateful.turn();
    let output = held(&stateful, &mut turn).expect("the first version goes on");
    assert!(output.quarantined.is_empty(), "{:?}", output.quarantined[0].reasons);
    assert_eq!(*plugin.refused.lock(), ["no"]);
    put_state(&*journal, turn.take_state());
    let mut after = remembered_by_counter(&*journal);
    assert_eq!((number(&mut after, "count"), number(&mut after, "format")), (2, 0));
    assert_eq!(after.writer(), Some(("c1".into(), "c1".into())));
}

/// A batch whose rows are tried one by one writes the same keys in each attempt.
#[test]
fn of_many_writes_of_a_key_the_newest_is_committed() {
    const VALUE_BYTES: usize = 64 << 10;
    let world = world();
    let journal = world.open_journal();
    let mut session = remembered_by_counter(&*journal);
    let keys = Column::of([b"a".to_vec(), b"b".to_vec()]);
    for attempt in 0..200_u8 {
        let values = Column::of([vec![attempt; VALUE_BYTES], vec![attempt; VALUE_BYTES]]);
        session.put_many(&keys.get(), &values.get(), None).unwrap();
        session.accept();
        if attempt % 3 == 0 {
            session.seal();
        }
    }
    session.seal();
    let newest = session.get_many(&keys.get(), 1 << 20).unwrap();
    assert!(newest.data.len() == 2 * VALUE_BYTES && newest.data.iter().all(|byte| *byte == 199));
    let writes = session.into_writes();
    let bytes: usize = writes.iter().map(|writes| writes.bytes()).sum();
    assert!(bytes < 2 << 20, "{bytes} bytes");
    put_state(&*journal, writes);
    let newest = remembered_by_counter(&*journal).get_many(&keys.get(), 1 << 20).unwrap();
    assert!(newest.data.len() == 2 * VALUE_BYTES && newest.data.iter().all(|byte| *byte == 199));
}

fn heavy() -> Batch {
    one_event(&"x".repeat(50 << 20))
}

/// As much as a row may make, all rows of a batch may not.
#[test]
fn what_is_made_for_one_commit_is_bounded_in_sum() {
    let (world, heavy) = (world(), heavy());
    let journal = world.open_journal();
    let mut session = remembered_by_counter(&*journal);
    for _ in 0..2 {
        session.emit(heavy.clone());
        session.fits().unwrap();
        session.accept();
        session.seal();
    }
    session.emit(heavy.clone());
    let reason = session.fits().unwrap_err();
    assert!(reason.contains("3 events of its own"), "{reason}");
    session.reject();
    session.emit(one_event("x"));
    session.fits().unwrap();
    session.accept();
    session.seal();
    assert_eq!(session.take_events().iter().map(Batch::rows).sum::<usize>(), 3);
    session.emit(heavy);
    assert!(session.fits().is_err(), "those that go on count, too");
    session.reject();

    let values = Column::of((0..64).map(|_| vec![0; 1 << 20]));
    let mut put = |from: u32| {
        let keys = Column::of((from..from + 64).map(|key| key.to_be_bytes().to_vec()));
        let put = session.put_many(&keys.get(), &values.get(), None);
        session.accept();
        put
    };
    assert_eq!((put(0), put(64)), (Ok(()), Ok(())));
    let reason = put(128).unwrap_err();
    assert!(reason.contains("for one commit"), "{reason}");
}

/// A plugin host that counts an attempt as good of which too much was made: all of its batch is guilty, and nothing of it remembered.
#[test]
fn a_batch_that_makes_too_many_events_is_guilty() {
    let (world, heavy) = (world(), heavy());
    let journal = world.open_journal();
    let process: Process = Box::new(move |batch, session| {
        for _ in 0..4 {
            counts_in(1, session, &batch);
            session.emit(heavy.clone());
            session.accept();
        }
        // Of an attempt after those: it says nothing about them.
        session.reject();
        all(batch)
    });
    let version = Version { process, tick: None, ..counter("c1", none_before) };
    let stateful = alone(&remembering("counter", version), ErrorPlan::default(), &*journal);
    let mut turn = stateful.turn();
    let output = held(&stateful, &mut turn).ok().unwrap();
    assert!(output.kept.iter().all(Batch::is_empty));
    let [guilty] = output.quarantined.as_slice() else { panic!("one group") };
    assert!(guilty.reasons[0].contains("events of its own"), "{:?}", guilty.reasons);
    assert_eq!((guilty.batch.rows(), guilty.rejected), (1, false));
    put_state(&*journal, turn.take_state());
    assert_eq!(number(&mut remembered_by_counter(&*journal), "count"), 0);
}

/// More than one commit takes, in few bytes of memory.
fn too_much(heavy: &Batch) -> Vec<Quarantined> {
    let group = || Quarantined {
        batch: heavy.clone(),
        reasons: vec!["heavy".into()],
        by: "counter".into(),
        hash: "abc".into(),
        rejected: false,
    };
    (0..6).map(|_| group()).collect()
}

/// The pipeline goes on: the batch is in quarantine as it came, with the reason, and the plugin never saw it.
#[test]
fn a_batch_of_which_too_much_becomes_goes_to_quarantine_as_it_came() {
    const EVENTS: u64 = 400;
    let mut plan = plan(&["one"], &[("main", 700)], &[("a", "main")]);
    plan.interceptors = vec![with_state("counter")];
    let (world, destination, heavy) = (World::new(plan), Destination::new(), heavy());
    let script = Script::new(1, EVENTS, 40);
    let from = script.starts().into_iter().rev().find(|at| *at <= 200).unwrap();
    let bad = from..from + script.rows_at(from);
    let process: Process = Box::new(move |batch, session| {
        counts_in(1, session, &batch);
        let is_bad = batch.position().values().contains(&from);
        Processed { quarantined: if is_bad { too_much(&heavy) } else { Vec::new() }, ..all(batch) }
    });
    let version = Version { process, tick: None, ..counter("c1", none_before) };
    let chain: Vec<Arc<dyn Interceptor>> = vec![remembering("counter", version)];
    world.start(vec![script.make()], chain, vec![destination.sink()]).finish();

    assert_exactly(&destination.records(), &[1], EVENTS, |position| !bad.contains(&position), "delivered");
    let left = world.quarantined();
    assert_exactly(&left, &[1], EVENTS, |position| bad.contains(&position), "quarantine");
    for record in &left {
        assert_eq!(record.header(HEADER_BY), "one");
        assert_eq!(record.header(HEADER_ROLE), "source");
        assert!(record.header(HEADER_REASON).contains("limit"), "{record:?}");
    }
    let journal = world.open_journal();
    let count = number(&mut remembered_by_counter(&*journal), "count");
    assert_eq!(count, EVENTS - (bad.end - bad.start));
}

/// Tells the count at ticks only.
fn telling() -> Version {
    Version { process: counting(1), ..counter("c1", none_before) }
}

fn is_made(batch: &Batch) -> bool {
    batch.stream().values().iter().any(|stream| *stream != 1)
}

/// The counts, numbered without a gap, the last one true.
fn check_told(destination: &Destination, events: u64) {
    let records = destination.records();
    let counts = counts(&records);
    let numbers: Vec<u64> = counts.iter().map(|record| record.position).collect();
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>(), "numbers of emitted events");
    assert_eq!(counts.last().map(|record| record.body.clone()), Some(format!("count {events}")));
}

/// What a tick made is too large for a commit: it is as if there had been no tick.
#[test]
fn a_tick_of_which_too_much_becomes_comes_again() {
    const EVENTS: u64 = 50;
    let mut plan = plan(&["one"], &[("main", 700)], &[("a", "main")]);
    plan.interceptors = vec![with_state("counter"), interceptor("behind", OnReject::Quarantine)];
    let (world, destination, heavy) = (World::new(plan), Destination::new(), heavy());
    let is_first = Arc::new(AtomicBool::new(true));
    let first = is_first.clone();
    let behind = Plugin::new("behind", move |batch| {
        let is_too_much = is_made(&batch) && first.swap(false, Ordering::AcqRel);
        Processed { quarantined: if is_too_much { too_much(&heavy) } else { Vec::new() }, ..all(batch) }
    });
    let chain: Vec<Arc<dyn Interceptor>> = vec![remembering("counter", telling()), behind];
    let sources = vec![Script::new(1, EVENTS, 10).make()];
    let running = world.start(sources, chain, vec![destination.sink()]);
    let is_told = || destination.records().iter().any(|record| record.body == format!("count {EVENTS}"));
    until("the last count", is_told);
    running.finish();
    assert!(!is_first.load(Ordering::Acquire));
    check_told(&destination, EVENTS);
    assert!(world.quarantined().is_empty());
}

/// A tick whose events are held gives its turn up for another chain, as a batch does, and comes again.
#[test]
fn a_tick_that_is_held_comes_again_in_the_new_chain() {
    const EVENTS: u64 = 50;
    let mut plan = plan(&["one"], &[("main", 700)], &[("a", "main")]);
    let bad = InterceptorPlan { errors: held_at_once(), ..interceptor("bad", OnReject::Quarantine) };
    plan.interceptors = vec![with_state("counter"), bad];
    let (world, destination) = (World::new(plan), Destination::new());
    let bad = Plugin::new("bad", |batch| match is_made(&batch) {
        true => {
            let guilty = quarantine(&batch, "bad", false, |_| true);
            Processed { kept: Batch::empty(), quarantined: vec![guilty], dropped: 0 }
        }
        false => all(batch),
    });
    let chain: Vec<Arc<dyn Interceptor>> = vec![remembering("counter", telling()), bad];
    let sources = vec![Script::new(1, EVENTS, 10).make()];
    let running = world.start(sources, chain, vec![destination.sink()]);
    let first = (world.plan.clone(), running.pipeline.links());
    until("a tick is held", || running.pipeline.status().interceptors[1].state == "holding");
    exchange(&running, &first, &["counter"]);
    let is_told = || destination.records().iter().any(|record| record.body == format!("count {EVENTS}"));
    until("the last count", is_told);
    running.finish();
    check_told(&destination, EVENTS);
    assert!(world.quarantined().is_empty());
}
