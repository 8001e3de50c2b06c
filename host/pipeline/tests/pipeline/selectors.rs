//! Which channels get which events: each event once in every channel that it belongs to, whatever crashes, and nothing left out in
//! silence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flumen_event::Batch;
use flumen_journal::{Commit, Journal};
use flumen_pipeline::deliver::MakeSink;
use flumen_pipeline::exchange::Makers;
use flumen_pipeline::feed::MakeSource;
use flumen_pipeline::kept::filter::Filter;
use flumen_pipeline::kept::{Action, Request};
use flumen_pipeline::plan::{OnReject, PipelinePlan, SelectorPlan, SelectorRule, SinkPlan, SourcePlan};
use flumen_pipeline::{ComponentMetrics, Interceptor, Processed, StopOutcome};

use crate::support::destination::Destination;
use crate::support::plugins::{Plugin, all, quarantine as out, rows_where};
use crate::support::script::Script;
use crate::support::world::{Running, World, interceptor, plan};
use crate::support::{Dice, Record, assert_exactly, until};

const TOTAL: u64 = 4_000;

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| name.to_string()).collect()
}

/// `a`, `b`, `c`, `d` in turn; every fifth event has none.
fn value(position: u64) -> Option<&'static str> {
    (!position.is_multiple_of(5)).then(|| ["a", "b", "c", "d"][(position % 4) as usize])
}

fn with_values(batch: Batch) -> Batch {
    let values = batch.position().iter().map(|position| value(position.unwrap())).collect();
    batch.with_header("category", values).unwrap()
}

fn tag() -> Arc<dyn Interceptor> {
    Plugin::new("tag", |batch| all(with_values(batch)))
}

fn multiplexing(default: &[&str]) -> SelectorPlan {
    let mapping = [("a", &["red"] as &[&str]), ("b", &["blue"]), ("c", &["red", "blue"])];
    let mapping = mapping.map(|(value, channels)| (value.to_owned(), names(channels))).into();
    let rule = SelectorRule::Multiplexing { header: "category".into(), mapping, default: names(default) };
    SelectorPlan { rule, optional: BTreeSet::new() }
}

fn belongs(channel: &str, position: u64) -> bool {
    match value(position) {
        Some("a") => channel == "red",
        Some("b") => channel == "blue",
        Some("c") => channel == "red" || channel == "blue",
        _ => channel == "rest",
    }
}

const CHANNELS: [&str; 3] = ["red", "blue", "rest"];

fn start(world: &World, destinations: &[Destination; 3]) -> Running {
    let sources = [1, 2].map(|stream| Script::new(stream, TOTAL, 40).make()).into();
    world.start(sources, vec![tag()], destinations.iter().map(Destination::sink).collect())
}

fn multiplexed(seed: u64) {
    let mut dice = Dice(seed);
    let sinks = [("red", "red"), ("blue", "blue"), ("rest", "rest")];
    let mut plan = plan(&["one", "two"], &CHANNELS.map(|name| (name, 300)), &sinks);
    plan.interceptors = vec![interceptor("tag", OnReject::Quarantine)];
    plan.sources.iter_mut().for_each(|source| source.selector = multiplexing(&["rest"]));
    let mut world = World::new(plan);
    let mut destinations = [Destination::new(), Destination::new(), Destination::new()];
    for _ in 0..5 {
        let running = start(&world, &destinations);
        let watched = &destinations[dice.roll(3) as usize];
        watched.wait_for_rows((watched.rows() + dice.roll(500) as usize).min(TOTAL as usize / 2));
        world = world.crash(running);
        destinations = destinations.map(|destination| destination.crash(&mut dice));
    }
    start(&world, &destinations).finish();
    for (channel, destination) in CHANNELS.iter().zip(&destinations) {
        let what = format!("seed {seed}, {channel}");
        assert_exactly(&destination.records(), &[1, 2], TOTAL, |position| belongs(channel, position), &what);
    }
}

#[test]
fn the_value_of_a_header_decides_over_crashes() {
    (0..4).for_each(multiplexed);
}

#[test]
fn rows_for_several_channels_are_on_disk_once_and_those_for_none_are_counted() {
    let mut plan = plan(&["one"], &[("red", 10_000), ("blue", 10_000)], &[("a", "red"), ("b", "blue")]);
    plan.interceptors = vec![interceptor("tag", OnReject::Quarantine)];
    plan.sources[0].selector = multiplexing(&[]);
    let world = World::new(plan);
    let (red, blue) = (Destination::new(), Destination::new());
    let script = Script { stays: true, ..Script::new(1, TOTAL, 50) };
    // What is acknowledged goes from the disk, perhaps while it is looked at.
    red.set_held(true);
    blue.set_held(true);
    let running = world.start(vec![script.make()], vec![tag()], vec![red.sink(), blue.sink()]);
    let wanted = |channel| (0..TOTAL).filter(|position| belongs(channel, *position)).count();
    until("all is committed", || {
        ["red", "blue"].into_iter().all(|channel| running.head(channel) == wanted(channel) as u64)
    });
    // Behind them, so that they are on the disk.
    let last = Commit { positions: vec![(b"test".to_vec(), vec![1])], ..Commit::default() };
    running.journal.commit(last, None).unwrap().wait(None).unwrap().unwrap();
    let unrouted = (0..TOTAL).filter(|position| belongs("rest", *position)).count() as u64;
    until("what has no channel is counted", || {
        let source = running.pipeline.status().sources.remove(0);
        source.metrics.get("selector/unrouted_events") == Some(&unrouted)
    });
    let inspector = world.inspect();
    let (mut rows, mut shared) = (0, 0);
    for segment in inspector.segments().unwrap() {
        for frame in inspector.frames(segment.id).unwrap() {
            let flumen_journal::inspect::FrameView::Commit(commit) = frame else { continue };
            for put in &commit.puts {
                rows += u64::from(put.rows);
                shared += u64::from(put.rows) * u64::from(put.channels.len() == 2);
            }
        }
    }
    let both = (0..TOTAL).filter(|position| value(*position) == Some("c")).count() as u64;
    // All are there, and none has a row twice.
    assert_eq!(rows, TOTAL - unrouted);
    assert_eq!(shared, both);
    red.set_held(false);
    blue.set_held(false);
    red.wait_for_rows(wanted("red"));
    blue.wait_for_rows(wanted("blue"));
    assert!(matches!(running.stop_within(Duration::from_secs(30)), StopOutcome::Drained));
}

/// The optional channel fills, for its sink is held; the other one gets everything meanwhile.
#[test]
fn an_optional_channel_holds_up_nothing_and_what_it_misses_is_counted() {
    let mut plan = plan(&["one"], &[("main", 100_000), ("side", 200)], &[("a", "main"), ("b", "side")]);
    let rule = SelectorRule::Replicating(BTreeSet::new());
    plan.sources[0].selector = SelectorPlan { rule, optional: names(&["side"]) };
    let world = World::new(plan);
    let (main, side) = (Destination::new(), Destination::new());
    side.set_held(true);
    let script = Script { stays: true, ..Script::new(1, TOTAL, 20) };
    let running = world.start(vec![script.make()], Vec::new(), vec![main.sink(), side.sink()]);
    main.wait_for_rows(TOTAL as usize);
    until("all is emitted and committed", || running.head("main") == TOTAL);
    let put = running.head("side");
    assert!((200..220).contains(&put), "{put}");
    until("every event is in the channel, or counted", || {
        let source = running.pipeline.status().sources.remove(0);
        source.metrics.get("optional channel side/skipped_events") == Some(&(TOTAL - put))
    });
    side.set_held(false);
    side.wait_for_rows(put as usize);
    assert_exactly(&main.records(), &[1], TOTAL, |_| true, "main");
    assert_exactly(&side.records(), &[1], put, |_| true, "side");
    assert!(matches!(running.stop_within(Duration::from_secs(30)), StopOutcome::Drained));
}

fn balanced(header: Option<&str>) -> (World, [Destination; 3]) {
    let sinks = [("red", "red"), ("blue", "blue"), ("rest", "rest")];
    let mut plan = plan(&["one"], &CHANNELS.map(|name| (name, 300)), &sinks);
    plan.interceptors = vec![interceptor("tag", OnReject::Quarantine)];
    let rule = SelectorRule::LoadBalancing { channels: BTreeSet::new(), header: header.map(str::to_owned) };
    plan.sources[0].selector = SelectorPlan { rule, optional: BTreeSet::new() };
    (World::new(plan), [Destination::new(), Destination::new(), Destination::new()])
}

fn by_position(mut records: Vec<Record>) -> Vec<Record> {
    records.sort_by_key(|record| record.position);
    records
}

#[test]
fn balanced_by_a_header_each_value_keeps_its_channel_and_its_order_over_crashes() {
    let (mut world, mut destinations) = balanced(Some("category"));
    let mut dice = Dice(11);
    for round in 0..4 {
        let running = world.start(
            vec![Script::new(1, TOTAL, 40).make()],
            vec![tag()],
            destinations.iter().map(Destination::sink).collect(),
        );
        if round == 3 {
            running.finish();
            break;
        }
        let rows = || destinations.iter().map(Destination::rows).sum::<usize>();
        let wanted = (rows() + 700).min(TOTAL as usize);
        until("it gets on", || rows() >= wanted);
        world = world.crash(running);
        destinations = destinations.map(|destination| destination.crash(&mut dice));
    }
    let mut of_value: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    let mut everything = Vec::new();
    for (index, destination) in destinations.iter().enumerate() {
        let records = destination.records();
        for record in &records {
            of_value.entry(record.header("category").to_owned()).or_default().insert(index);
        }
        let positions: Vec<u64> = records.iter().map(|record| record.position).collect();
        assert!(positions.is_sorted(), "{index}: {positions:?}");
        everything.extend(records);
    }
    assert!(of_value.len() == 5 && of_value.values().all(|places| places.len() == 1), "{of_value:?}");
    assert!(of_value.values().flatten().collect::<BTreeSet<_>>().len() > 1, "{of_value:?}");
    assert_exactly(&by_position(everything), &[1], TOTAL, |_| true, "all channels");
}

#[test]
fn balanced_in_turns_a_full_channel_is_passed_over() {
    let (world, destinations) = balanced(None);
    destinations[1].set_held(true);
    let script = Script { stays: true, ..Script::new(1, TOTAL, 20) };
    let sinks = destinations.iter().map(Destination::sink).collect();
    // In parts that fit into one channel: where a sink's thread stands still for a moment its channel does not fill.
    let starts = script.starts();
    script.gate.store(0, Ordering::Release);
    let running = world.start(vec![script.make()], vec![tag()], sinks);
    for gate in (200..=TOTAL).step_by(200) {
        script.gate.store(gate, Ordering::Release);
        let end = starts.iter().copied().find(|start| *start >= gate).unwrap_or(TOTAL);
        until("the part is committed", || CHANNELS.iter().map(|name| running.head(name)).sum::<u64>() == end);
        until("the part is delivered", || {
            ["red", "rest"].iter().all(|name| running.cursors(name) == [running.head(name)])
        });
    }
    let held = running.head("blue");
    assert!((300..320).contains(&held), "{held}");
    destinations[1].set_held(false);
    destinations[1].wait_for_rows(held as usize);
    assert!(running.head("red") > 500 && running.head("rest") > 500);
    assert!(matches!(running.stop_within(Duration::from_secs(30)), StopOutcome::Drained));
    let everything = destinations.iter().flat_map(Destination::records).collect();
    assert_exactly(&by_position(everything), &[1], TOTAL, |_| true, "all channels");
}

/// What a plugin could not take goes to the channels of its source when it is replayed.
#[test]
fn a_replay_goes_where_its_source_puts() {
    let mut plan =
        plan(&["one", "two"], &[("red", 10_000), ("blue", 10_000)], &[("a", "red"), ("b", "blue")]);
    plan.interceptors = vec![interceptor("judge", OnReject::Quarantine)];
    for (source, channel) in plan.sources.iter_mut().zip(["red", "blue"]) {
        source.selector.rule = SelectorRule::Replicating(names(&[channel]));
    }
    let world = World::new(plan);
    let (red, blue) = (Destination::new(), Destination::new());
    let scripts = || [1, 2].map(|stream| Script::new(stream, 1_000, 50).make()).into();
    let judge = Plugin::new("judge", |batch| Processed {
        kept: rows_where(&batch, |position| !position.is_multiple_of(3)),
        quarantined: vec![out(&batch, "judge", true, |position| position.is_multiple_of(3))],
        dropped: 0,
    });
    world.start(scripts(), vec![judge], vec![red.sink(), blue.sink()]).finish();
    assert_eq!(world.quarantined().len(), 668);
    let fine = Plugin::new("judge", all);
    let running = world.start(scripts(), vec![fine], vec![red.sink(), blue.sink()]);
    let request = Request { action: Action::Replay, filter: Filter::default(), limit: None };
    running.pipeline.kept().unwrap().request(request).unwrap();
    until("it is replayed", || running.pipeline.kept().unwrap().next_job().is_none());
    running.finish();
    assert_exactly(&by_position(red.records()), &[1], 1_000, |_| true, "red");
    assert_exactly(&by_position(blue.records()), &[2], 1_000, |_| true, "blue");
}

struct Parts {
    script: Script,
    destinations: BTreeMap<String, Destination>,
}

impl Makers for Parts {
    fn source(&self, _: &SourcePlan) -> (MakeSource, Option<Arc<ComponentMetrics>>) {
        (self.script.make(), None)
    }

    fn sink(&self, plan: &SinkPlan) -> (MakeSink, Option<Arc<ComponentMetrics>>) {
        (self.destinations[&plan.name].make(), None)
    }
}

/// A full channel: the source is busy after `keep_alive`. A larger capacity is taken over in place, and so is another selector.
#[test]
fn a_source_is_told_of_a_full_channel_and_an_edit_helps() {
    // Only the channel of the sink that is held fills, however slow the other one is.
    let mut plan = plan(&["one"], &[("main", 100_000), ("side", 100)], &[("a", "main"), ("b", "side")]);
    plan.channels.iter_mut().for_each(|channel| channel.keep_alive = Duration::from_millis(20));
    let world = World::new(plan.clone());
    let destinations: BTreeMap<_, _> = ["a", "b"].map(|name| (name.to_owned(), Destination::new())).into();
    destinations["b"].set_held(true);
    let script = Script { stays: true, ..Script::new(1, TOTAL, 20) };
    let sinks = ["a", "b"].map(|name| destinations[name].sink()).into();
    let running = world.start(vec![script.make()], Vec::new(), sinks);
    let source = || running.pipeline.status().sources.remove(0);
    until("the source is busy", || source().state == "busy");
    assert_eq!(source().metrics["times_busy"], 1);
    assert!(source().metrics["waits for the full channel side/events"] >= 100);

    let parts = Parts { script, destinations: destinations.clone() };
    let exchange = |plan: &PipelinePlan| {
        running.pipeline.exchange(plan.clone(), &running.pipeline.links(), &parts, None).unwrap();
    };
    plan.channels[1].capacity_events = 1_000;
    exchange(&plan);
    until("it goes on, and is busy again", || running.head("side") >= 1_000 && source().state == "busy");
    plan.channels[1].capacity_events = 2_000;
    exchange(&plan);
    until("it goes on once more", || running.head("side") >= 2_000);

    // The rest goes to the other channel alone. A source that waits with a commit is not exchanged: it has room first.
    plan.channels[1].capacity_events = 100_000;
    exchange(&plan);
    until("nothing is left", || running.head("side") == TOTAL && source().state == "running");
    destinations["b"].set_held(false);
    assert!(matches!(running.stop_within(Duration::from_secs(30)), StopOutcome::Drained));
    for (name, destination) in &destinations {
        assert_exactly(&destination.records(), &[1], TOTAL, |_| true, name);
    }
}

/// One commit waits for both channels, and the journal names one at a time.
#[test]
fn a_wait_for_several_full_channels_is_counted_once() {
    let mut plan = plan(&["one"], &[("main", 100), ("side", 100)], &[("a", "main"), ("b", "side")]);
    plan.channels.iter_mut().for_each(|channel| channel.keep_alive = Duration::from_millis(20));
    let world = World::new(plan.clone());
    let destinations: BTreeMap<_, _> = ["a", "b"].map(|name| (name.to_owned(), Destination::new())).into();
    destinations.values().for_each(|destination| destination.set_held(true));
    let script = Script { stays: true, ..Script::new(1, TOTAL, 20) };
    let sinks = ["a", "b"].map(|name| destinations[name].sink()).into();
    let running = world.start(vec![script.make()], Vec::new(), sinks);
    let source = || running.pipeline.status().sources.remove(0);
    let waits_for =
        |name: &str| source().metrics.contains_key(&format!("waits for the full channel {name}/events"));
    until("it waits for the first channel", || waits_for("main"));

    let parts = Parts { script, destinations: destinations.clone() };
    let exchange = |plan: &PipelinePlan| {
        running.pipeline.exchange(plan.clone(), &running.pipeline.links(), &parts, None).unwrap();
    };
    plan.channels[0].capacity_events = 100_000;
    exchange(&plan);
    until("it waits for the second channel", || waits_for("side"));
    assert_eq!(source().metrics["times_busy"], 1);

    plan.channels[1].capacity_events = 100_000;
    exchange(&plan);
    destinations.values().for_each(|destination| destination.set_held(false));
    destinations.values().for_each(|destination| destination.wait_for_rows(TOTAL as usize));
    assert!(matches!(running.stop_within(Duration::from_secs(30)), StopOutcome::Drained));
}

#[test]
fn another_selector_is_taken_over_between_two_batches() {
    let plan = plan(&["one"], &[("main", 10_000), ("side", 10_000)], &[("a", "main"), ("b", "side")]);
    let world = World::new(plan.clone());
    let destinations: BTreeMap<_, _> = ["a", "b"].map(|name| (name.to_owned(), Destination::new())).into();
    let script = Script { stays: true, ..Script::new(1, TOTAL, 20) };
    script.gate.store(1_000, Ordering::Release);
    let sinks = ["a", "b"].map(|name| destinations[name].sink()).into();
    let running = world.start(vec![script.make()], Vec::new(), sinks);
    until("the first part is there", || running.head("main") >= 1_000);
    let first = running.head("main");
    let parts = Parts { script: script.clone(), destinations: destinations.clone() };
    let mut next = plan;
    next.sources[0].selector.rule = SelectorRule::Replicating(names(&["main"]));
    running.pipeline.exchange(next, &running.pipeline.links(), &parts, None).unwrap();
    script.gate.store(u64::MAX, Ordering::Release);
    destinations["a"].wait_for_rows(TOTAL as usize);
    destinations["b"].wait_for_rows(first as usize);
    assert!(matches!(running.stop_within(Duration::from_secs(30)), StopOutcome::Drained));
    assert_exactly(&destinations["a"].records(), &[1], TOTAL, |_| true, "main");
    assert_exactly(&destinations["b"].records(), &[1], first, |_| true, "side");
    assert_eq!(running_heads(&world), (TOTAL, first));
}

fn running_heads(world: &World) -> (u64, u64) {
    let journal = world.open_journal();
    let head = |name: &str| {
        let status = journal.status();
        status.channels.iter().find(|channel| channel.name == name).unwrap().head
    };
    let heads = (head("main"), head("side"));
    journal.close().unwrap();
    heads
}
