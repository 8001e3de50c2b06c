//! Commits that a channel has no room for, although its figures do not say that it is full: they go around it, or end at their deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use flumen_journal::{
    Ack, ChannelId, Commit, CommitError, FileConfig, Journal, JournalStatus, MemoryJournal, MemorySpec,
    OsClock, OsDisk, Put, Reader, ReaderId, SourceBackedJournal, Ticket, WhenFull,
};
use flumen_pipeline::channel_specs;
use flumen_pipeline::plan::{PipelinePlan, SelectorPlan, SelectorRule};
use flumen_pipeline::selector::Selector;

use crate::support::DEADLINE;
use crate::support::script::batch;
use crate::support::world::plan;

/// Events that each channel holds.
const CAPACITY: u64 = 100;
/// More than a channel has room for that holds [`NEARLY`].
const ROWS: u64 = 10;
const NEARLY: u64 = 95;
/// What a spillable channel holds in its file.
const SPILLED: u64 = 10;

fn file_config(dir: &Path) -> FileConfig {
    FileConfig {
        dir: dir.join("journal"),
        segment_bytes: 64 << 10,
        window_bytes: 32 << 10,
        reserve_bytes: 0,
        ..FileConfig::default()
    }
}

fn in_memory(dir: &Path, plan: &PipelinePlan, full: WhenFull) -> Arc<dyn Journal> {
    let mut own = channel_specs(plan);
    let others = own.split_off(plan.channels.len());
    let own = own.into_iter().map(|channel| MemorySpec { channel, full }).collect();
    MemoryJournal::open(file_config(dir), own, others, Arc::new(OsDisk), Arc::new(OsClock)).unwrap()
}

fn source_backed(dir: &Path, plan: &PipelinePlan) -> Arc<dyn Journal> {
    let mut own = channel_specs(plan);
    let others = own.split_off(plan.channels.len());
    SourceBackedJournal::open(file_config(dir), own, others, Arc::new(OsDisk), Arc::new(OsClock)).unwrap()
}

/// A channel that any batch goes to, and one of [`CAPACITY`] that may miss what it has no room for. The journal names that first.
fn with_optional(main: u64) -> PipelinePlan {
    let mut plan = plan(&["one"], &[("side", CAPACITY), ("main", main)], &[("a", "main"), ("b", "side")]);
    let rule = SelectorRule::Replicating(BTreeSet::new());
    plan.sources[0].selector = SelectorPlan { rule, optional: ["side".to_owned()].into() };
    plan
}

fn selector(plan: &PipelinePlan, journal: &Arc<dyn Journal>) -> Arc<Selector> {
    Arc::new(Selector::new(Some("one"), &plan.sources[0].selector, plan, journal.as_ref()).unwrap())
}

fn fill(journal: &Arc<dyn Journal>, channel: &str, from: u64, rows: u64) {
    let channels = vec![journal.channel(channel).unwrap()];
    let commit = Commit { puts: vec![Put { channels, batch: batch(1, from, rows) }], ..Commit::default() };
    journal.commit(commit, Some(Instant::now())).map(|_| ()).unwrap();
}

fn empty(journal: &Arc<dyn Journal>, channel: &str, reader: &str, cursor: u64) {
    let channel = journal.channel(channel).unwrap();
    let ack = Ack { channel, reader: journal.reader_id(channel, reader).unwrap(), cursor };
    journal.commit(Commit { acks: vec![ack], ..Commit::default() }, None).map(|_| ()).unwrap();
}

fn held(journal: &Arc<dyn Journal>, channel: &str) -> u64 {
    journal.status().channels.iter().find(|status| status.name == channel).unwrap().events
}

/// Hands a batch in that may wait for so long, in a thread: it would never end if it forgot its deadline.
fn hand_in(
    selector: &Arc<Selector>,
    journal: &Arc<dyn Journal>,
    rows: u64,
    wait: Duration,
) -> Result<(), CommitError> {
    let (end, ended) = mpsc::channel();
    let (selector, journal) = (selector.clone(), journal.clone());
    let puts = selector.puts(batch(1, 1_000, rows), journal.as_ref());
    let commit = Commit { puts, ..Commit::default() };
    let _thread = std::thread::spawn(move || {
        let outcome = selector.hand_in(journal.as_ref(), commit, Some(Instant::now() + wait));
        end.send(outcome.map(|_| ()))
    });
    ended.recv_timeout(DEADLINE).expect("it waits for longer than its deadline")
}

/// [`CAPACITY`] is not reached, so the figures do not say that it is full; nothing is waited for all the same.
fn goes_without_an_optional_one(what: &str, plan: &PipelinePlan, journal: &Arc<dyn Journal>) {
    let selector = selector(plan, journal);
    let before = held(journal, "side");
    for round in 1..=3 {
        let outcome = hand_in(&selector, journal, ROWS, Duration::ZERO);
        assert!(outcome.is_ok(), "{what}: {outcome:?}");
        assert_eq!((held(journal, "main"), held(journal, "side")), (round * ROWS, before), "{what}");
        assert_eq!(selector.left().skipped, BTreeMap::from([("side".to_owned(), round * ROWS)]), "{what}");
    }
    // A smaller one fits.
    let outcome = hand_in(&selector, journal, CAPACITY - NEARLY, Duration::ZERO);
    assert!(outcome.is_ok(), "{what}: {outcome:?}");
    let skipped = selector.left().skipped["side"];
    assert_eq!(held(journal, "side") - before + skipped, 3 * ROWS + CAPACITY - NEARLY, "{what}");
}

#[test]
fn an_optional_channel_without_room_for_a_batch_is_left_out_at_once() {
    let plan = with_optional(100_000);
    for (what, full) in
        [("memory", WhenFull::Wait), ("spillable", WhenFull::Overflow { events: SPILLED, bytes: u64::MAX })]
    {
        let dir = tempfile::tempdir().unwrap();
        let journal = in_memory(dir.path(), &plan, full);
        fill(&journal, "side", 0, NEARLY);
        if what == "spillable" {
            // All that the file holds; with the memory's capacity the sum is not reached.
            fill(&journal, "side", NEARLY, SPILLED);
        }
        goes_without_an_optional_one(what, &plan, &journal);
    }
    let dir = tempfile::tempdir().unwrap();
    let journal = source_backed(dir.path(), &plan);
    fill(&journal, "side", 0, NEARLY);
    goes_without_an_optional_one("source-backed", &plan, &journal);
}

#[test]
fn an_optional_channel_without_room_hides_no_other_and_has_its_events_when_there_is_some() {
    let plan = with_optional(CAPACITY);
    let dir = tempfile::tempdir().unwrap();
    let journal = in_memory(dir.path(), &plan, WhenFull::Wait);
    fill(&journal, "main", 0, NEARLY);
    fill(&journal, "side", 0, NEARLY);
    let selector = selector(&plan, &journal);
    for wait in [Duration::ZERO, Duration::from_millis(500)] {
        let outcome = hand_in(&selector, &journal, ROWS, wait);
        assert!(
            matches!(&outcome, Err(CommitError::Full { channel, .. }) if channel == "main"),
            "{outcome:?}"
        );
    }
    assert!(selector.left().skipped.is_empty(), "nothing was handed in");
    empty(&journal, "main", "a", NEARLY);
    empty(&journal, "side", "b", NEARLY);
    hand_in(&selector, &journal, ROWS, Duration::ZERO).unwrap();
    assert_eq!((held(&journal, "main"), held(&journal, "side")), (ROWS, ROWS));
    assert!(selector.left().skipped.is_empty());
}

#[test]
fn in_turns_a_channel_without_room_for_a_batch_is_passed_over() {
    let channels = ["red", "blue", "rest"];
    let sinks = [("red", "red"), ("blue", "blue"), ("rest", "rest")];
    let mut plan = plan(&["one"], &channels.map(|name| (name, CAPACITY)), &sinks);
    let rule = SelectorRule::LoadBalancing { channels: BTreeSet::new(), header: None };
    plan.sources[0].selector = SelectorPlan { rule, optional: BTreeSet::new() };
    let dir = tempfile::tempdir().unwrap();
    let journal = in_memory(dir.path(), &plan, WhenFull::Wait);
    fill(&journal, "red", 0, NEARLY);
    fill(&journal, "blue", 0, NEARLY);
    let selector = selector(&plan, &journal);
    // Whoever's turn it is.
    for round in 1..=CAPACITY / ROWS {
        hand_in(&selector, &journal, ROWS, Duration::ZERO).unwrap();
        assert_eq!(held(&journal, "rest"), round * ROWS);
    }
    let outcome = hand_in(&selector, &journal, ROWS, Duration::from_millis(500));
    assert!(matches!(outcome, Err(CommitError::Full { .. })), "{outcome:?}");
    empty(&journal, "blue", "blue", NEARLY);
    hand_in(&selector, &journal, ROWS, Duration::ZERO).unwrap();
    assert_eq!(channels.map(|name| held(&journal, name)), [NEARLY, ROWS, CAPACITY]);
}

/// Says as a Kafka journal does that its channels have no bound of their own.
struct Unbounded(Arc<dyn Journal>);

impl Journal for Unbounded {
    fn channel(&self, name: &str) -> Option<ChannelId> {
        self.0.channel(name)
    }

    fn reader_id(&self, channel: ChannelId, reader: &str) -> Option<ReaderId> {
        self.0.reader_id(channel, reader)
    }

    fn commit(&self, commit: Commit, deadline: Option<Instant>) -> Result<Box<dyn Ticket>, CommitError> {
        self.0.commit(commit, deadline)
    }

    fn position(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.position(key)
    }

    fn positions(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.0.positions(prefix)
    }

    fn open_reader(&self, channel: ChannelId, reader: ReaderId) -> Box<dyn Reader> {
        self.0.open_reader(channel, reader)
    }

    fn status(&self) -> JournalStatus {
        let mut status = self.0.status();
        for channel in &mut status.channels {
            (channel.capacity_events, channel.capacity_bytes) = (0, 0);
        }
        status
    }

    fn close(&self) -> Result<(), CommitError> {
        self.0.close()
    }
}

#[test]
fn a_channel_without_a_bound_is_never_full() {
    let plan = with_optional(100_000);
    let dir = tempfile::tempdir().unwrap();
    let journal = in_memory(dir.path(), &plan, WhenFull::Wait);
    let journal: Arc<dyn Journal> = Arc::new(Unbounded(journal));
    let selector = selector(&plan, &journal);
    for _ in 0..3 {
        hand_in(&selector, &journal, ROWS, Duration::ZERO).unwrap();
    }
    assert_eq!((held(&journal, "main"), held(&journal, "side")), (3 * ROWS, 3 * ROWS));
    assert!(selector.left().skipped.is_empty(), "{:?}", selector.left());
}
