//! Plugins with state: what they remember agrees with what came out, whatever happens.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arrow_array::UInt32Array;
use flumen_event::{Batch, BatchBuilder};
use flumen_journal::{ByteColumn, Journal, StateSize, StateStore};
use flumen_pipeline::chain::{Link, Links};
use flumen_pipeline::deliver::MakeSink;
use flumen_pipeline::exchange::{Makers, PipelineLinks};
use flumen_pipeline::feed::MakeSource;
use flumen_pipeline::plan::{
    ErrorPlan, InterceptorPlan, OnError, OnReject, PipelinePlan, SinkPlan, SourcePlan,
};
use flumen_pipeline::state::Session;
use flumen_pipeline::stateful::Stateful;
use flumen_pipeline::{ComponentMetrics, Interceptor, InterceptorVersion, Processed, StopOutcome};
use parking_lot::Mutex;

use crate::support::destination::Destination;
use crate::support::plugins::{Plugin, all, label, quarantine, rows_where};
use crate::support::script::Script;
use crate::support::world::{Running, World, interceptor, plan};
use crate::support::{Dice, Record, assert_exactly, until};

mod ticks;
mod turns;

const TOTAL: u64 = 3_000;

type Process = Box<dyn Fn(Batch, &mut Session) -> Processed + Send + Sync>;
type Tick = Box<dyn Fn(&mut Session) -> Result<(), String> + Send + Sync>;

/// A version made of closures.
struct Version {
    hash: &'static str,
    process: Process,
    tick: Option<Tick>,
    migrate: fn(&str, &mut Session) -> Result<(), String>,
    before: Option<Arc<dyn InterceptorVersion>>,
    /// Told of each batch on probation.
    tried: Option<Box<dyn Fn(bool) + Send + Sync>>,
}

impl InterceptorVersion for Version {
    fn process(&self, _: Batch) -> Processed {
        panic!("it needs its state")
    }

    fn process_with(&self, batch: Batch, session: &mut Session) -> Processed {
        (self.process)(batch, session)
    }

    fn hash(&self) -> &str {
        self.hash
    }

    fn version(&self) -> &str {
        self.hash
    }

    fn migrate(&self, from: &str, session: &mut Session) -> Result<(), String> {
        (self.migrate)(from, session)
    }

    fn before(&self) -> Option<Arc<dyn InterceptorVersion>> {
        self.before.clone()
    }

    fn tried(&self, has_failed: bool) {
        if let Some(tried) = &self.tried {
            tried(has_failed);
        }
    }

    fn tick_every(&self) -> Option<Duration> {
        self.tick.as_ref().map(|_| Duration::from_millis(5))
    }

    fn tick(&self, session: &mut Session) -> Result<(), String> {
        self.tick.as_ref().map_or(Ok(()), |tick| tick(session))
    }
}

struct Remembering {
    name: &'static str,
    current: Mutex<Arc<dyn InterceptorVersion>>,
    refused: Mutex<Vec<String>>,
}

impl Interceptor for Remembering {
    fn name(&self) -> &str {
        self.name
    }

    fn current(&self) -> Arc<dyn InterceptorVersion> {
        self.current.lock().clone()
    }

    fn refused(&self, _: &Arc<dyn InterceptorVersion>, reason: &str) {
        self.refused.lock().push(reason.to_owned());
    }
}

fn remembering(name: &'static str, version: Version) -> Arc<Remembering> {
    Arc::new(Remembering { name, current: Mutex::new(Arc::new(version)), refused: Mutex::default() })
}

/// A column, owned.
struct Column(Vec<u8>, Vec<u8>);

impl Column {
    fn of(rows: impl IntoIterator<Item = Vec<u8>>) -> Column {
        let (mut offsets, mut data) = (vec![0; 4], Vec::new());
        for row in rows {
            data.extend(row);
            offsets.extend_from_slice(&(data.len() as u32).to_le_bytes());
        }
        Column(offsets, data)
    }

    fn get(&self) -> ByteColumn<'_> {
        ByteColumn::new(&self.0, &self.1).unwrap()
    }
}

/// Lets each position through once, whatever stream it is of. Some attempts fail half way.
fn dedup() -> Arc<Remembering> {
    let calls = AtomicU64::new(0);
    let process = move |batch: Batch, session: &mut Session| {
        let keys =
            Column::of(batch.position().values().iter().map(|position| position.to_be_bytes().to_vec()));
        if calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(3) {
            session.insert_if_absent(&keys.get(), None, None).unwrap();
            session.reject();
        }
        let new = session.insert_if_absent(&keys.get(), None, None).unwrap();
        session.accept();
        let is_new = |row: &u32| new[*row as usize / 8] & (1 << (row % 8)) != 0;
        let rows: UInt32Array = (0..batch.rows() as u32).filter(is_new).collect();
        let kept = batch.take(&rows).unwrap();
        let dropped = (batch.rows() - kept.rows()) as u64;
        Processed { kept, quarantined: Vec::new(), dropped }
    };
    let process: Process = Box::new(process);
    let version =
        Version { hash: "d1", process, tick: None, migrate: |_, _| Ok(()), before: None, tried: None };
    remembering("dedup", version)
}

fn number(session: &mut Session, key: &str) -> u64 {
    let values = session.get_many(&Column::of([key.into()]).get(), 100).unwrap();
    values.data.as_slice().try_into().map(u64::from_le_bytes).unwrap_or_default()
}

fn set(session: &mut Session, key: &str, to: u64) {
    let value = Column::of([to.to_le_bytes().to_vec()]);
    session.put_many(&Column::of([key.into()]).get(), &value.get(), None).unwrap();
}

fn one_event(body: &str) -> Batch {
    let mut builder = BatchBuilder::with_capacity(1, 0);
    builder.push(0, 0, 1, body.as_bytes());
    builder.finish(Vec::new()).unwrap()
}

/// Counts events; tells the count after every tenth batch, and at a tick if it has changed.
fn counter(hash: &'static str, migrate: fn(&str, &mut Session) -> Result<(), String>) -> Version {
    let calls = AtomicU64::new(0);
    let process = move |batch: Batch, session: &mut Session| {
        let count = number(session, "count") + batch.rows() as u64;
        set(session, "count", count);
        if calls.fetch_add(1, Ordering::Relaxed) % 10 == 9 {
            set(session, "told", count);
            session.emit(one_event(&format!("count {count}")));
        }
        session.accept();
        Processed { kept: batch, quarantined: Vec::new(), dropped: 0 }
    };
    let tick = |session: &mut Session| {
        let (count, told) = (number(session, "count"), number(session, "told"));
        if count > told {
            set(session, "told", count);
            session.emit(one_event(&format!("count {count}")));
        }
        Ok(())
    };
    let (process, tick): (Process, Option<Tick>) = (Box::new(process), Some(Box::new(tick)));
    Version { hash, process, tick, migrate, before: None, tried: None }
}

fn with_state(name: &str) -> InterceptorPlan {
    InterceptorPlan { grants: vec!["state".into()], ..interceptor(name, OnReject::Quarantine) }
}

/// The first event that it fails on holds its batch.
fn held_at_once() -> ErrorPlan {
    ErrorPlan { action: OnError::Stop, events_percent: 0, events_min: 1, ..ErrorPlan::default() }
}

fn world() -> World {
    let mut plan = plan(&["one", "two"], &[("main", 700)], &[("a", "main")]);
    let label = interceptor("label", OnReject::Quarantine);
    plan.interceptors =
        vec![interceptor("before", OnReject::Quarantine), with_state("dedup"), with_state("counter"), label];
    plan.interceptor_threads = 3;
    World::new(plan)
}

fn start(world: &World, destination: &Destination, counter: Arc<Remembering>) -> Running {
    start_with(&scripts(), world, destination, counter)
}

fn scripts() -> [Script; 2] {
    [1, 2].map(|stream| Script::new(stream, TOTAL, 40))
}

/// What comes behind the gate comes after what the test does before it raises it.
fn raise(scripts: &[Script; 2], to: u64) {
    scripts.iter().for_each(|script| script.gate.store(to, Ordering::Release));
}

fn start_with(
    scripts: &[Script; 2],
    world: &World,
    destination: &Destination,
    counter: Arc<Remembering>,
) -> Running {
    let sources = scripts.iter().map(Script::make).collect();
    let before = Plugin::new("before", all);
    let behind = Plugin::new("label", |batch| all(label(batch, "seen", "yes")));
    world.start(sources, vec![before, dedup(), counter, behind], vec![destination.sink()])
}

fn counts(records: &[Record]) -> Vec<&Record> {
    records.iter().filter(|record| record.body.starts_with("count ")).collect()
}

/// Each position once over both streams; each count once, rising, numbered without a gap, and the last one true.
fn check(destination: &Destination, what: &str) {
    let records = destination.records();
    assert!(
        records.iter().all(|record| record.header("seen") == "yes"),
        "{what}: behind the plugins with state"
    );
    let positions: Vec<u64> = records
        .iter()
        .filter(|record| [1, 2].contains(&record.stream))
        .map(|record| record.position)
        .collect();
    assert_eq!(positions.len() as u64, TOTAL, "{what}: no key twice");
    assert_eq!(positions.into_iter().collect::<BTreeSet<_>>(), (0..TOTAL).collect(), "{what}: every key");
    let counts = counts(&records);
    let numbers: Vec<u64> = counts.iter().map(|record| record.position).collect();
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>(), "{what}: numbers of emitted events");
    assert!(counts.iter().all(|record| record.stream == counts[0].stream && record.stream > 2));
    let told: Vec<u64> = counts.iter().map(|record| record.body[6..].parse().unwrap()).collect();
    assert!(told.is_sorted_by(|a, b| a < b), "{what}: {told:?}");
    assert_eq!(told.last(), Some(&TOTAL), "{what}: what it remembers agrees with what came out");
}

fn finish(running: Running, destination: &Destination) {
    let is_told = || destination.records().iter().any(|record| record.body == format!("count {TOTAL}"));
    until("the last count", is_told);
    running.finish();
}

fn run(seed: u64, crashes_per_hundred: u64) {
    let mut dice = Dice(seed);
    let (mut world, mut destination) = (world(), Destination::new());
    let counter = || remembering("counter", counter("c1", |_, _| panic!("it is the same version")));
    for _ in 0..6 {
        let running = start(&world, &destination, counter());
        destination.wait_for_rows((destination.rows() + dice.roll(900) as usize).min(TOTAL as usize));
        if dice.roll(100) < crashes_per_hundred {
            world = world.crash(running);
            destination = destination.crash(&mut dice);
        } else {
            let outcome = running.stop_within(Duration::from_millis(dice.roll(20)));
            assert!(
                matches!(outcome, StopOutcome::Drained | StopOutcome::Left(_)),
                "seed {seed}: {outcome:?}"
            );
        }
    }
    let running = start(&world, &destination, counter());
    finish(running, &destination);
    check(&destination, &format!("seed {seed}"));
}

#[test]
fn each_key_once_over_clean_stops() {
    (0..2).for_each(|seed| run(seed, 0));
}

#[test]
fn each_key_once_over_crashes() {
    (200..206).for_each(|seed| run(seed, 100));
}

#[test]
fn a_new_version_takes_over_the_state_once_or_the_old_one_goes_on() {
    let (world, destination) = (world(), Destination::new());
    let counter_plugin = remembering("counter", counter("c1", |_, _| panic!("there was none before")));
    let scripts = scripts();
    raise(&scripts, 400);
    let running = start_with(&scripts, &world, &destination, counter_plugin.clone());
    destination.wait_for_rows(300);
    let refuses = counter("c2", |from, session| {
        assert_eq!(from, "c1");
        set(session, "count", 1_000_000);
        Err("no".into())
    });
    *counter_plugin.current.lock() = Arc::new(refuses);
    raise(&scripts, 1_500);
    destination.wait_for_rows(900);
    assert_eq!(*counter_plugin.refused.lock(), ["no"]);
    let takes = counter("c3", |from, session| {
        assert_eq!(from, "c1");
        let count = number(session, "migrated") + 1;
        set(session, "migrated", count);
        Ok(())
    });
    *counter_plugin.current.lock() = Arc::new(takes);
    raise(&scripts, u64::MAX);
    finish(running, &destination);
    check(&destination, "after the swaps");
    let journal = world.open_journal();
    let store = journal.state().unwrap();
    let mut session = Session::new(store, "test", &"counter".into(), u64::MAX, 0);
    assert_eq!(number(&mut session, "migrated"), 1);
    assert_eq!(session.writer(), Some(("c3".into(), "c3".into())));
}

struct NoMakers;

impl Makers for NoMakers {
    fn source(&self, _: &SourcePlan) -> (MakeSource, Option<Arc<ComponentMetrics>>) {
        panic!("sources are not touched")
    }

    fn sink(&self, _: &SinkPlan) -> (MakeSink, Option<Arc<ComponentMetrics>>) {
        panic!("sinks are not touched")
    }
}

/// The chain becomes these of the first one's interceptors.
fn exchange(running: &Running, first: &(PipelinePlan, PipelineLinks), names: &[&str]) {
    let (mut plan, links) = first.clone();
    let place = |name: &&str| plan.interceptors.iter().position(|plugin| plugin.name == **name).unwrap();
    let places: Vec<usize> = names.iter().map(place).collect();
    let chain = Links::new(places.iter().map(|place| links.chain[*place].clone()).collect());
    plan.interceptors = places.iter().map(|place| plan.interceptors[*place].clone()).collect();
    let links = PipelineLinks { chain, ..links };
    running.pipeline.exchange(plan, &links, &NoMakers, None).unwrap();
}

/// Interceptors come, go and change places in a chain that keeps state, while batches flow: each key once, and events that the
/// counter makes are numbered without a gap.
#[test]
fn a_chain_that_keeps_state_is_exchanged_in_the_flow() {
    let (world, destination) = (world(), Destination::new());
    let counter = remembering("counter", counter("c1", |_, _| panic!("it is the same version")));
    let running = start(&world, &destination, counter);
    let first = (world.plan.clone(), running.pipeline.links());
    let chains: [&[&str]; 5] = [
        &["dedup", "label"],
        &["before", "dedup", "counter", "label"],
        &["dedup", "label", "counter"],
        &["dedup"],
        &["label", "before", "dedup", "counter"],
    ];
    for turn in 0..25 {
        destination.wait_for_rows(100 * turn);
        exchange(&running, &first, chains[turn % chains.len()]);
    }
    until("the sources end", || running.pipeline.sources_ended());
    running.finish();
    let records = destination.records();
    let positions: Vec<u64> = records
        .iter()
        .filter(|record| [1, 2].contains(&record.stream))
        .map(|record| record.position)
        .collect();
    assert_eq!(positions.len() as u64, TOTAL, "no key twice");
    assert_eq!(positions.into_iter().collect::<BTreeSet<_>>(), (0..TOTAL).collect(), "every key");
    let numbers: Vec<u64> = counts(&records).iter().map(|record| record.position).collect();
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>(), "numbers of emitted events");
    assert!(world.quarantined().is_empty());
}

/// A batch that waits in its turn for another version gives the turn up for another chain, and is processed by that.
#[test]
fn a_batch_that_is_held_goes_through_the_new_chain() {
    let mut plan = plan(&["one"], &[("main", 700)], &[("a", "main")]);
    let bad = InterceptorPlan { errors: held_at_once(), ..with_state("bad") };
    plan.interceptors = vec![bad, interceptor("label", OnReject::Quarantine)];
    let (world, destination) = (World::new(plan), Destination::new());
    let process = |batch: Batch, _: &mut Session| {
        let guilty = quarantine(&batch, "bad", false, |_| true);
        Processed { kept: Batch::empty(), quarantined: vec![guilty], dropped: 0 }
    };
    let process: Process = Box::new(process);
    let bad = Version { hash: "b", process, tick: None, migrate: |_, _| Ok(()), before: None, tried: None };
    let label = Plugin::new("label", |batch| all(label(batch, "seen", "yes")));
    let sources = vec![Script::new(1, TOTAL, 40).make()];
    let running = world.start(sources, vec![remembering("bad", bad), label], vec![destination.sink()]);
    let first = (world.plan.clone(), running.pipeline.links());
    until("a batch is held", || running.pipeline.status().interceptors[0].state == "holding");
    exchange(&running, &first, &["label"]);
    running.finish();
    let records = destination.records();
    assert!(records.iter().all(|record| record.header("seen") == "yes"));
    assert_exactly(&records, &[1], TOTAL, |_| true, "by the new chain");
    assert!(world.quarantined().is_empty());
}

/// The format of the state is that of the version which wrote it last.
fn convert(session: &mut Session, from: u64, to: u64) -> Result<(), String> {
    let format = number(session, "format").max(1);
    if format != from {
        return Err(format!("it is of format {format}, not {from}"));
    }
    set(session, "format", to);
    let times = number(session, "conversions") + 1;
    set(session, "conversions", times);
    Ok(())
}

/// What a version on probation wrote for a batch that it fails on is undone: the version before takes the state over and processes
/// the batch, and both may go on with what is committed. After too many the old one is back.
#[test]
fn the_version_before_stands_in_for_one_that_fails_on_probation() {
    const FAILURES: u64 = 5;
    let (world, destination) = (world(), Destination::new());
    let back = |from: &str, session: &mut Session| {
        assert_eq!(from, "c2");
        convert(session, 2, 1)
    };
    let old: Arc<dyn InterceptorVersion> = Arc::new(counter("c1", back));
    let plugin = Arc::new(Remembering {
        name: "counter",
        current: Mutex::new(old.clone()),
        refused: Mutex::default(),
    });
    let scripts = scripts();
    raise(&scripts, 400);
    let running = start_with(&scripts, &world, &destination, plugin.clone());
    destination.wait_for_rows(300);

    let good = counter("c2", |from, session| {
        assert_eq!(from, "c1");
        convert(session, 1, 2)
    });
    let (calls, failures) = (AtomicU64::new(0), Arc::new(AtomicU64::new(0)));
    let (process, slot, count, before) = (good.process, plugin.clone(), failures.clone(), old.clone());
    let process = move |batch: Batch, session: &mut Session| {
        assert_eq!(number(session, "format"), 2, "it never sees the format of the other");
        if calls.fetch_add(1, Ordering::Relaxed) % 3 < 2 {
            return process(batch, session);
        }
        set(session, "count", 1_000_000);
        session.emit(one_event("count 1000000"));
        session.accept();
        let guilty = quarantine(&batch, "counter", false, |_| true);
        Processed { kept: Batch::empty(), quarantined: vec![guilty], dropped: 0 }
    };
    let tried = move |has_failed| {
        if count.fetch_add(u64::from(has_failed), Ordering::AcqRel) + u64::from(has_failed) > FAILURES {
            *slot.current.lock() = before.clone();
        }
    };
    let new = Version {
        process: Box::new(process),
        before: Some(old.clone()),
        tried: Some(Box::new(tried)),
        ..good
    };
    *plugin.current.lock() = Arc::new(new);
    raise(&scripts, u64::MAX);
    finish(running, &destination);
    assert_eq!(failures.load(Ordering::Acquire), FAILURES + 1);
    check(&destination, "after the rollback");
    assert!(world.quarantined().is_empty(), "nothing for the new version's sake");
    let journal = world.open_journal();
    let mut session = Session::new(journal.state().unwrap(), "test", &"counter".into(), u64::MAX, 0);
    assert_eq!(session.writer(), Some(("c1".into(), "c1".into())));
    // There and back for each batch that it failed on.
    let conversions = number(&mut session, "conversions");
    assert_eq!((conversions, number(&mut session, "format")), (2 * (FAILURES + 1), 1));
}

/// Where the version before does no better, or does not take the state back, what the new one made counts.
#[test]
fn a_failure_that_is_the_events_fault_is_no_reason_to_go_back() {
    for refuses in [false, true] {
        let (world, destination) = (world(), Destination::new());
        let fails = |session: &mut Session, batch: Batch, count: u64| {
            set(session, "count", count);
            session.accept();
            let guilty = quarantine(&batch, "counter", false, |position| position == 1_500);
            let kept = rows_where(&batch, |position| position != 1_500);
            Processed { kept, quarantined: vec![guilty], dropped: 0 }
        };
        let version = |hash, own: u64, migrate, before| Version {
            hash,
            process: Box::new(move |batch, session| {
                let count = number(session, "count") + own * batch.rows() as u64;
                fails(session, batch, count)
            }),
            tick: None,
            migrate,
            before,
            tried: Some(Box::new(move |has_failed| assert!(!has_failed))),
        };
        let back: fn(&str, &mut Session) -> Result<(), String> =
            if refuses { |_, _| Err("no way back".into()) } else { |_, _| Ok(()) };
        let old: Arc<dyn InterceptorVersion> = Arc::new(version("c1", 1_000, back, None));
        let plugin = remembering("counter", version("c2", 1, |_, _| Ok(()), Some(old)));
        start(&world, &destination, plugin).finish();
        assert_eq!(destination.records().len() as u64, TOTAL - 1);
        assert_eq!(world.quarantined().len(), 1);
        let journal = world.open_journal();
        let mut session = Session::new(journal.state().unwrap(), "test", &"counter".into(), u64::MAX, 0);
        assert_eq!(
            (number(&mut session, "count"), session.writer()),
            (TOTAL, Some(("c2".into(), "c2".into())))
        );
    }
}

#[test]
fn what_is_over_the_limit_is_refused_and_nothing_of_it_written() {
    let world = world();
    let journal = world.open_journal();
    let session = || Session::new(journal.state().unwrap(), "test", &"dedup".into(), 10_000, 0);
    let keys = |range: std::ops::Range<u32>| Column::of(range.map(|key| format!("{key:040}").into_bytes()));
    let mut first = session();
    first.insert_if_absent(&keys(0..100).get(), None, None).unwrap();
    let error = first.put_many(&keys(0..10).get(), &keys(0..10).get(), None).unwrap_err();
    assert!(error.contains("limits.state"), "{error}");
    // The same keys again cost nothing, and what is removed makes room.
    first.put_many(&keys(0..1).get(), &Column::of([vec![]]).get(), None).unwrap();
    first.remove_many(&keys(0..50).get()).unwrap();
    first.insert_if_absent(&keys(100..140).get(), None, None).unwrap();
    first.accept();
    let found = first.scan(b"", None, 1_000, 1 << 20).unwrap();
    assert_eq!(found.keys, keys(50..140).into_parts());
    // Columns that are none, keys that are none.
    assert!(first.remove_many(&Column::of([vec![]]).get()).is_err());
    assert!(first.remove_many(&Column::of([vec![0; 1_025]]).get()).is_err());
    assert!(first.put_many(&keys(0..2).get(), &keys(0..1).get(), None).is_err());
    assert!(first.put_many(&keys(0..1).get(), &Column::of([vec![0; (1 << 20) + 1]]).get(), None).is_err());
    assert!(first.get_many(&keys(0..1).get(), 0).is_ok());
}

impl Column {
    fn into_parts(self) -> (Vec<u8>, Vec<u8>) {
        (self.0, self.1)
    }
}

/// What a batch wrote lies over what the journal has, in look-ups and in scans.
#[test]
fn a_session_sees_its_own_writes_over_those_before() {
    let world = world();
    let journal = world.open_journal();
    // A time that has not come, so that the journal sweeps nothing meanwhile: it does so by the clock.
    let now_ns = i64::MAX / 2;
    let session = || Session::new(journal.state().unwrap(), "test", &"p".into(), u64::MAX, now_ns);
    let column = |rows: &[&str]| Column::of(rows.iter().map(|row| row.as_bytes().to_vec()));
    let mut before = session();
    before
        .put_many(&column(&["a1", "a2", "a3", "b1"]).get(), &column(&["1", "2", "3", "4"]).get(), None)
        .unwrap();
    before.put_many(&column(&["a0"]).get(), &column(&["old"]).get(), Some(0)).unwrap();
    before.accept();
    before.seal();
    let commit = flumen_journal::Commit { state: before.into_writes(), ..Default::default() };
    journal.commit(commit, None).unwrap();
    let mut now = session();
    now.remove_many(&column(&["a2"]).get()).unwrap();
    now.put_many(&column(&["a4", "a1"]).get(), &column(&["new", "over"]).get(), None).unwrap();
    now.accept();
    now.put_many(&column(&["a25"]).get(), &column(&["staged"]).get(), None).unwrap();
    let found = now.scan(b"a", Some(b"a0"), 3, 1_000).unwrap();
    assert_eq!(found.keys, column(&["a1", "a25", "a3"]).into_parts());
    assert_eq!(found.values, column(&["over", "staged", "3"]).into_parts());
    assert_eq!(now.scan(b"a", Some(b"a3"), 3, 1_000).unwrap().keys, column(&["a4"]).into_parts());
    now.reject();
    let values = now.get_many(&column(&["a0", "a1", "a2", "a25", "a4", "b1"]).get(), 1_000).unwrap();
    assert_eq!((values.data.as_slice(), values.present), (&b"oldovernew4"[..], vec![0b11_0011]));
    // Of equal keys the first is set.
    let values = column(&["x", "y", "z"]);
    let set = now.insert_if_absent(&column(&["n", "n", "a1"]).get(), Some(&values.get()), None).unwrap();
    assert_eq!(set, [0b001]);
    assert_eq!(now.get_many(&column(&["n"]).get(), 100).unwrap().data, b"x");
    assert!(Session::default().get_many(&column(&["n"]).get(), 100).is_err());
}

/// A store that has to be read from elsewhere first.
struct Elsewhere {
    store: Arc<dyn StateStore>,
    is_ready: AtomicBool,
}

impl Elsewhere {
    fn store(&self) -> &dyn StateStore {
        assert!(self.is_ready(), "asked before it is ready");
        self.store.as_ref()
    }
}

impl StateStore for Elsewhere {
    fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }
    fn get_many(
        &self,
        plugin: &str,
        keys: &ByteColumn<'_>,
        now_ns: i64,
        each: &mut dyn FnMut(usize, Option<&[u8]>),
    ) {
        self.store().get_many(plugin, keys, now_ns, each);
    }
    fn scan(
        &self,
        plugin: &str,
        prefix: &[u8],
        after: Option<&[u8]>,
        now_ns: i64,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) {
        self.store().scan(plugin, prefix, after, now_ns, each);
    }
    fn size(&self, plugin: &str) -> StateSize {
        self.store().size(plugin)
    }
    fn sweep(&self, plugin: &str, now_ns: i64) {
        self.store().sweep(plugin, now_ns);
    }
    fn sizes(&self) -> Vec<StateSize> {
        self.store().sizes()
    }
}

/// State that is elsewhere: the pipeline starts without it, the first batch waits until it is there, and then until a version
/// takes it over; a stop ends either wait.
#[test]
fn the_first_batch_waits_for_the_state_and_for_a_version_that_takes_it_over() {
    let world = world();
    let journal = world.open_journal();
    let mut before = Session::new(journal.state().unwrap(), "test", &"counter".into(), u64::MAX, 0);
    set(&mut before, "count", 100);
    before.accept();
    before.seal();
    before.set_writer("c1", "c1");
    let commit = flumen_journal::Commit { state: before.into_writes(), ..Default::default() };
    journal.commit(commit, None).unwrap();

    let store = Arc::new(Elsewhere { store: journal.state().unwrap(), is_ready: AtomicBool::new(false) });
    let plugin = remembering("counter", counter("c2", |_, _| Err("no".into())));
    let plan = with_state("counter");
    let links: Links = Arc::new(vec![Arc::new(Link::new(plugin.clone(), &plan))]);
    let stateful = Stateful::new("test", Some(store.clone()));
    stateful.exchange(&links, Duration::ZERO, || {}).unwrap();
    let mut turn = stateful.turn();
    let stopped = stateful.process(&mut turn, one_event("x"), &mut || Err("stopped"));
    assert_eq!(stopped.err(), Some("stopped"));
    let from_first: fn(&str, &mut Session) -> Result<(), String> = |from, _| {
        assert_eq!(from, "c1");
        Ok(())
    };
    let mut waits = 0;
    let mut hold = || {
        waits += 1;
        match waits {
            3 => store.is_ready.store(true, Ordering::Relaxed),
            6 => *plugin.current.lock() = Arc::new(counter("c3", from_first)),
            7.. => return Err("it takes the state over"),
            _ => {}
        }
        Ok(())
    };
    let output = stateful.process(&mut turn, one_event("x"), &mut hold).ok().unwrap();
    assert_eq!((output.kept.len(), waits), (1, 6));
    let commit = flumen_journal::Commit { state: turn.take_state(), ..Default::default() };
    journal.commit(commit, None).unwrap();
    let mut after = Session::new(journal.state().unwrap(), "test", &"counter".into(), u64::MAX, 0);
    assert_eq!(number(&mut after, "count"), 101);
    assert_eq!(after.writer(), Some(("c3".into(), "c3".into())));
    // At a start with the state at hand it is told at once.
    let refused = remembering("counter", counter("c4", |_, _| Err("no".into())));
    let links: Links = Arc::new(vec![Arc::new(Link::new(refused, &plan))]);
    assert!(Stateful::new("test", journal.state()).exchange(&links, Duration::ZERO, || {}).is_err());
    assert!(Stateful::new("test", None).exchange(&links, Duration::ZERO, || {}).is_err());
}
