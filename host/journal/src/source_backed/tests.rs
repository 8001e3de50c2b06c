//! The source-backed journal between sources that read again, a plugin that remembers, and a destination that is cut back.
//! A crash is a drop without a close.

mod failed;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_event::{Batch, BatchBuilder};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::api::Put;
use crate::clock::OsClock;
use crate::disk::OsDisk;
use crate::file::tests::disk::MemDisk;
use crate::file::{Durability, FileConfig};
use crate::state::{ByteColumn, StateOp, StateWrites};

const CHANNEL: ChannelId = ChannelId(0);
const READER: ReaderId = ReaderId(0);
/// Of the same channel.
const SECOND: ReaderId = ReaderId(1);

/// One channel with one reader, as the least there is.
const ALONE: &[(&str, &[&str])] = &[("main", &["out"])];
const TWO: &[(&str, &[&str])] = &[("main", &["out", "second"])];
/// Two destinations of everything, one of every third event.
const THREE: &[(&str, &[&str])] = &[("main", &["out", "second"]), ("side", &["third"])];
/// One that decides, and one that is cut back.
const DECIDES: &[(&str, &[&str])] = &[("main", &["out", "decides"])];
const DECIDES_ALONE: &[(&str, &[&str])] = &[("main", &["decides"])];
/// Added to a stream: what a destination refused.
const REFUSED: u64 = 100;

fn open_with(
    dir: &std::path::Path,
    channels: &[(&str, &[&str])],
    capacity_events: u64,
) -> Result<Arc<SourceBackedJournal>, OpenError> {
    let config = FileConfig {
        dir: dir.join("j"),
        segment_bytes: 16 << 10,
        window_bytes: 2 << 10,
        reserve_bytes: 0,
        durability: Durability::Os,
        ..FileConfig::default()
    };
    let spec = |name: &str, readers: &[&str], capacity_events| ChannelSpec {
        name: name.into(),
        readers: readers.iter().map(|reader| (*reader).to_owned()).collect(),
        capacity_events,
        capacity_bytes: u64::MAX,
    };
    let others = vec![spec("quarantine", &["keeper"], u64::MAX)];
    let own = channels.iter().map(|(name, readers)| spec(name, readers, capacity_events)).collect();
    SourceBackedJournal::open(config, own, others, Arc::new(OsDisk), Arc::new(OsClock))
}

fn open(dir: &std::path::Path) -> Arc<SourceBackedJournal> {
    open_with(dir, ALONE, 100).unwrap()
}

fn batch(stream: u64, numbers: &[u64]) -> Batch {
    let mut builder = BatchBuilder::with_capacity(numbers.len(), 0);
    numbers.iter().for_each(|number| builder.push(stream, *number, 1, b"a body"));
    builder.finish(Vec::new()).unwrap()
}

fn put(numbers: &[u64]) -> Commit {
    Commit { puts: vec![Put { channels: vec![CHANNEL], batch: batch(0, numbers) }], ..Commit::default() }
}

fn ack_of(reader: ReaderId, cursor: u64) -> Commit {
    Commit { acks: vec![Ack { channel: CHANNEL, reader, cursor }], ..Commit::default() }
}

fn ack(cursor: u64) -> Commit {
    ack_of(READER, cursor)
}

fn position(key: &[u8], value: u8) -> Commit {
    Commit { positions: vec![(key.to_vec(), vec![value])], ..Commit::default() }
}

#[test]
fn nothing_is_committed_before_it_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    let one =
        journal.commit(Commit { positions: position(b"s", 1).positions, ..put(&[1, 2]) }, None).unwrap();
    let alone = journal.commit(position(b"s", 2), None).unwrap();
    let two = journal.commit(Commit { positions: position(b"s", 3).positions, ..put(&[3]) }, None).unwrap();
    assert_eq!(journal.position(b"s"), Some(vec![3]), "what is on its way is seen");
    assert!(one.wait(Some(Duration::from_millis(5))).is_none());
    let mut reader = journal.open_reader(CHANNEL, READER);
    let first = reader.next(Duration::ZERO).unwrap().unwrap();
    assert_eq!((first.first, first.next, first.batch.rows()), (0, 1, 2), "a commit is one step");
    let sink = Commit { positions: position(b"sink", 9).positions, ..ack(first.next) };
    journal.commit(sink, None).unwrap().wait(None).unwrap().unwrap();
    for ticket in [&one, &alone] {
        ticket.wait(None).unwrap().unwrap();
    }
    assert!(two.wait(Some(Duration::ZERO)).is_none());
    drop((reader, one, alone));
    drop(journal);
    let journal = open(dir.path());
    assert_eq!(journal.position(b"s"), Some(vec![2]), "the commit that was not delivered was never made");
    assert_eq!(journal.position(b"sink"), Some(vec![9]));
    assert!(journal.open_reader(CHANNEL, READER).next(Duration::ZERO).unwrap().is_none());
    journal.commit(position(b"s", 4), None).unwrap().wait(None).unwrap().unwrap();
    assert_eq!(journal.position(b"s"), Some(vec![4]), "with nothing under way it is made at once");
}

#[test]
fn a_full_channel_waits_and_a_close_lets_everybody_go() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open_with(dir.path(), ALONE, 4).unwrap();
    let waiting = journal.commit(put(&[1, 2, 3]), None).unwrap();
    let full = journal.commit(put(&[4, 5]), Some(Instant::now() + Duration::from_millis(5)));
    assert!(matches!(full, Err(CommitError::Full { events: 3, .. })));
    std::thread::scope(|scope| {
        let late = scope.spawn(|| journal.commit(put(&[4, 5]), None).map(|ticket| ticket.wait(None)));
        journal.commit(ack(1), None).unwrap().wait(None).unwrap().unwrap();
        waiting.wait(None).unwrap().unwrap();
        let mut reader = journal.open_reader(CHANNEL, READER);
        assert_eq!(reader.next(Duration::from_secs(60)).unwrap().unwrap().batch.rows(), 2);
        let status = journal.status();
        assert_eq!((status.channels[0].events, status.channels[0].name.as_str()), (2, "main"));
        journal.close().unwrap();
        assert!(matches!(late.join().unwrap().unwrap(), Some(Err(CommitError::Closing))));
    });
}

/// That a disk has room again is not shown by acknowledgements, which is all that comes to it: it is not said to be full for ever.
#[test]
fn a_disk_that_has_room_again_is_not_waited_for() {
    let disk = MemDisk::default();
    let config = FileConfig {
        dir: "/j".into(),
        segment_bytes: 16 << 10,
        window_bytes: 2 << 10,
        reserve_bytes: 64 << 10,
        ..FileConfig::default()
    };
    let spec = |name: &str, reader: &str| ChannelSpec {
        name: name.into(),
        readers: vec![reader.into()],
        capacity_events: u64::MAX,
        capacity_bytes: u64::MAX,
    };
    let (own, others) = (vec![spec("main", "out")], vec![spec("quarantine", "keeper")]);
    let journal =
        SourceBackedJournal::open(config, own, others, Arc::new(disk.clone()), Arc::new(OsClock)).unwrap();
    // What nobody takes out of the quarantine keeps the segments behind it.
    let quarantine = journal.channel("quarantine").unwrap();
    let kept = Put { channels: vec![quarantine], batch: batch(0, &[1]) };
    journal.commit_and_wait(Commit { puts: vec![kept], ..Commit::default() }, None).unwrap();
    disk.faults(|faults| faults.capacity = Some(0));
    let until = Instant::now() + Duration::from_secs(60);
    let mut tickets = Vec::new();
    while journal.status().waiting_for.is_none() {
        assert!(Instant::now() < until, "it is never full");
        let number = tickets.len() as u64;
        journal.commit(put(&[number]), None).unwrap();
        let large = Commit { positions: vec![(b"sink".to_vec(), vec![7; 4 << 10])], ..ack(number + 1) };
        tickets.push(journal.commit(large, None).unwrap());
    }
    disk.faults(|faults| faults.capacity = None);
    for ticket in tickets {
        ticket.wait(Some(Duration::from_secs(60))).expect("there is room").unwrap();
    }
    assert_eq!(journal.status().waiting_for, None);
}

#[test]
fn what_another_kind_left_is_not_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let config = FileConfig { dir: dir.path().join("j"), reserve_bytes: 0, ..FileConfig::default() };
    let spec = ChannelSpec {
        name: "main".into(),
        readers: vec!["out".into()],
        capacity_events: u64::MAX,
        capacity_bytes: u64::MAX,
    };
    let file = FileJournal::open(config, vec![spec], Arc::new(OsDisk), Arc::new(OsClock)).unwrap();
    file.commit(put(&[1, 2]), None).unwrap().wait(None).unwrap().unwrap();
    file.close().unwrap();
    let refused = open_with(dir.path(), ALONE, 4).err().expect("it is refused");
    assert!(refused.to_string().contains("holds 2 events"), "{refused}");
}

/// The faster of two is held where the slower has yet to come, and nothing is in the file before both are there.
#[test]
fn two_readers_meet_where_the_foremost_is() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open_with(dir.path(), TWO, 100).unwrap();
    for number in 0..6 {
        let commit = Commit { positions: position(b"s", number).positions, ..put(&[u64::from(number)]) };
        journal.commit(commit, None).unwrap();
    }
    let [mut fast, mut slow] = [READER, SECOND].map(|reader| journal.open_reader(CHANNEL, reader));
    let first = |reader: &mut Box<dyn Reader>| reader.next(Duration::ZERO).unwrap().map(|it| it.first);
    (0..3).for_each(|at| assert_eq!(first(&mut fast), Some(at)));
    assert_eq!(first(&mut slow), Some(0));
    assert!(!slow.flushes_at(1, true), "the other has passed that place");
    assert!(fast.flushes_at(3, false), "it is asked to come together where it is");
    assert_eq!(first(&mut fast), None, "it gets nothing before it has");
    let early = journal.commit(Commit { positions: position(b"a", 3).positions, ..ack(3) }, None).unwrap();
    assert_eq!(first(&mut fast), Some(3), "then it goes on");
    assert!(early.wait(Some(Duration::ZERO)).is_none());
    assert_eq!(journal.position(b"a"), None);
    assert_eq!(journal.status().channels[0].readers, [("out".to_owned(), 3), ("second".to_owned(), 0)]);
    (1..3).for_each(|at| assert_eq!(first(&mut slow), Some(at)));
    assert_eq!(first(&mut slow), None);
    assert!(slow.flushes_at(3, false));
    let late = journal.commit(ack_of(SECOND, 3), None).unwrap();
    for ticket in [early, late] {
        ticket.wait(Some(Duration::from_secs(60))).unwrap().unwrap();
    }
    drop((fast, slow));
    drop(journal);
    let journal = open_with(dir.path(), TWO, 100).unwrap();
    assert_eq!((journal.position(b"s"), journal.position(b"a")), (Some(vec![2]), Some(vec![3])));
}

/// What a reader acknowledged that began anew does not count, and one that is gone is not waited for.
#[test]
fn a_reader_begins_anew_or_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open_with(dir.path(), TWO, 100).unwrap();
    let ticket = journal.commit(put(&[1]), None).unwrap();
    let mut fast = journal.open_reader(CHANNEL, READER);
    assert_eq!(fast.next(Duration::ZERO).unwrap().unwrap().first, 0);
    let old = journal.commit(Commit { positions: position(b"a", 1).positions, ..ack(1) }, None).unwrap();
    let mut fast = journal.open_reader(CHANNEL, READER);
    assert!(matches!(old.wait(Some(Duration::from_secs(60))), Some(Err(CommitError::Refused(_)))));
    assert_eq!(fast.next(Duration::ZERO).unwrap().unwrap().first, 0, "it comes again");
    journal.retire_reader(CHANNEL, SECOND);
    assert!(ticket.wait(Some(Duration::ZERO)).is_none());
    assert_eq!(journal.reader_id(CHANNEL, "second"), None);
    journal.commit(Commit { positions: position(b"a", 2).positions, ..ack(1) }, None).unwrap();
    ticket.wait(None).unwrap().unwrap();
    assert_eq!(journal.position(b"a"), Some(vec![2]));
}

/// What an earlier process promised is known when the destination is asked: its mark, or another one.
#[test]
fn nobody_is_told_a_position_before_a_destination_decided() {
    for is_kept in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let journal = open_with(dir.path(), DECIDES_ALONE, 100).unwrap();
        journal.commit(Commit { positions: position(b"s", 1).positions, ..put(&[1]) }, None).unwrap();
        let mut reader = journal.open_reader(CHANNEL, READER);
        assert_eq!(reader.next(Duration::ZERO).unwrap().unwrap().next, 1);
        let promise = reader.promise(1, &[], Duration::ZERO).unwrap().unwrap();
        promise.ticket.wait(None).unwrap().unwrap();
        drop((reader, journal));
        let journal = open_with(dir.path(), DECIDES_ALONE, 100).unwrap();
        let mut reader = journal.open_reader(CHANNEL, READER);
        assert!(!journal.state().unwrap().is_ready());
        let early = journal.commit(put(&[9]), Some(Instant::now() + Duration::from_millis(5)));
        assert!(matches!(early, Err(CommitError::Full { .. })), "what it would follow is not known");
        std::thread::scope(|scope| {
            let asks = scope.spawn(|| (journal.position(b"s"), journal.positions(b"")));
            let other = journal.clone();
            assert_eq!(
                scope.spawn(move || other.position(b"t")).join().unwrap(),
                None,
                "it does not hang on it"
            );
            assert!(!asks.is_finished());
            let mark = if is_kept { promise.mark.clone() } else { Vec::new() };
            assert_eq!(reader.resolve(&mark), is_kept.then_some(0));
            reader.seek(0).unwrap();
            let told = is_kept.then(|| vec![1]);
            let all = is_kept.then(|| (b"s".to_vec(), vec![1])).into_iter().collect();
            assert_eq!(asks.join().unwrap(), (told, all));
        });
        assert!(journal.state().unwrap().is_ready());
        journal.commit(put(&[9]), None).unwrap();
    }
}

/// What a destination that decides has of its own: all of one transaction, or none.
#[derive(Default)]
struct Stored {
    length: usize,
    mark: Vec<u8>,
    /// Refused since the last flush.
    refused: Vec<(u64, u64)>,
}

/// A destination. Its length is its sink's position.
struct Sink {
    decides: Option<Stored>,
    channel: ChannelId,
    reader_id: ReaderId,
    key: Vec<u8>,
    reader: Option<Box<dyn Reader>>,
    holds: Vec<(u64, u64)>,
    /// As of the last flush.
    flushed: u64,
    cursor: u64,
    acked: u64,
}

/// Two sources that read numbers, a plugin that drops every number of a pair but the first and rejects some, others each time;
/// and destinations. Every third number goes to the channel `side`, too.
struct World {
    dir: tempfile::TempDir,
    channels: &'static [(&'static str, &'static [&'static str])],
    journal: Option<Arc<SourceBackedJournal>>,
    sinks: Vec<Sink>,
    read: [u64; 2],
    /// What the plugin answers depends on it.
    calls: u64,
}

#[derive(Debug, Clone)]
enum Step {
    /// A source reads, in one commit.
    Read {
        source: u64,
        rows: u64,
    },
    /// A position alone.
    Note {
        source: u64,
    },
    Deliver {
        sink: usize,
        most: usize,
    },
    Flush {
        sink: usize,
    },
    /// The sink's position alone, as before a file is made.
    Record {
        sink: usize,
    },
    /// The sink is made anew in the running process.
    Recover {
        sink: usize,
    },
    /// A destination decides, and nobody hears of it; `is_stored`: it has the transaction.
    Half {
        is_stored: bool,
        is_crash: bool,
    },
    Crash,
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    let sink = 0usize..3;
    prop_oneof![
        8 => (0u64..2, 1u64..9).prop_map(|(source, rows)| Step::Read { source, rows }),
        1 => (0u64..2).prop_map(|source| Step::Note { source }),
        9 => (sink.clone(), 1usize..5).prop_map(|(sink, most)| Step::Deliver { sink, most }),
        6 => sink.clone().prop_map(|sink| Step::Flush { sink }),
        2 => sink.clone().prop_map(|sink| Step::Record { sink }),
        1 => sink.prop_map(|sink| Step::Recover { sink }),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(is_stored, is_crash)| Step::Half { is_stored, is_crash }),
        2 => Just(Step::Crash),
        1 => Just(Step::Close),
    ]
}

fn key(source: u64) -> Vec<u8> {
    format!("source/{source}").into_bytes()
}

fn number_of(value: Option<Vec<u8>>) -> u64 {
    value.map_or(0, |value| u64::from_le_bytes(value.as_slice().try_into().unwrap()))
}

impl World {
    fn new(channels: &'static [(&'static str, &'static [&'static str])]) -> World {
        let dir = tempfile::tempdir().unwrap();
        let mut sinks = Vec::new();
        for (channel, (_, readers)) in channels.iter().enumerate() {
            sinks.extend(readers.iter().enumerate().map(|(reader, name)| Sink {
                decides: (*name == "decides").then(Stored::default),
                channel: ChannelId(channel as u16),
                reader_id: ReaderId(reader as u16),
                key: format!("sink/{name}").into_bytes(),
                reader: None,
                holds: Vec::new(),
                flushed: 0,
                cursor: 0,
                acked: 0,
            }));
        }
        let mut world = World { dir, channels, journal: None, sinks, read: [0; 2], calls: 0 };
        world.start();
        world
    }

    fn journal(&self) -> &Arc<SourceBackedJournal> {
        self.journal.as_ref().unwrap()
    }

    fn quarantine(&self) -> ChannelId {
        self.journal().channel("quarantine").unwrap()
    }

    fn start(&mut self) {
        self.journal = Some(open_with(self.dir.path(), self.channels, 100).unwrap());
        // Whoever decides first: until then the others are not told where they were.
        let mut order: Vec<usize> = (0..self.sinks.len()).collect();
        order.sort_by_key(|at| self.sinks[*at].decides.is_none());
        order.into_iter().for_each(|sink| self.recover(sink));
        self.read = [0, 1].map(|source| number_of(self.journal().position(&key(source))));
    }

    /// The destination goes back to its position, the reader to what is acknowledged.
    fn recover(&mut self, at: usize) {
        let journal = self.journal().clone();
        let Some(sink) = self.sinks.get_mut(at) else { return };
        let mut reader = journal.open_reader(sink.channel, sink.reader_id);
        if let Some(stored) = &mut sink.decides {
            // What was not committed there is aborted.
            sink.holds.truncate(stored.length);
            stored.refused.clear();
            let from = match stored.mark.is_empty() {
                true => reader.acknowledged(),
                false => reader.resolve(&stored.mark).expect("its own mark").max(reader.acknowledged()),
            };
            reader.seek(from).unwrap();
            (sink.cursor, sink.acked) = (from, reader.acknowledged());
            let is_ahead = from > sink.acked;
            sink.reader = Some(reader);
            if is_ahead {
                self.acknowledge(at, Vec::new());
            }
            return;
        }
        sink.flushed = number_of(journal.position(&sink.key));
        assert!(sink.flushed <= sink.holds.len() as u64, "the destination has what the position says");
        sink.holds.truncate(sink.flushed as usize);
        reader.seek(0).unwrap();
        (sink.cursor, sink.acked) = (reader.acknowledged(), reader.acknowledged());
        sink.reader = Some(reader);
    }

    fn read(&mut self, source: u64, rows: u64) {
        let from = self.read[source as usize];
        let mut commit = Commit::default();
        let (mut kept, mut rejected) = (Vec::new(), Vec::new());
        let mut writes = StateWrites::new("dedup".into());
        for number in from..from + rows {
            self.calls += 1;
            if number % 7 == 6 || self.calls.is_multiple_of(11) {
                rejected.push(number);
                continue;
            }
            let pair = [source.to_le_bytes(), (number / 2).to_le_bytes()].concat();
            let mut is_known = writes.iter().any(|op| op.key == pair);
            let offsets = [0u32.to_le_bytes(), 16u32.to_le_bytes()].concat();
            let column = ByteColumn::new(&offsets, &pair).unwrap();
            let state = self.journal().state().unwrap();
            state.get_many("dedup", &column, 0, &mut |_, value| is_known |= value.is_some());
            if !is_known {
                kept.push(number);
                writes.push(StateOp { key: &pair, value: Some(b"1"), expiry: None });
            }
        }
        let third: Vec<u64> = kept.iter().copied().filter(|number| number % 3 == 0).collect();
        let side = self.channels.get(1).map(|_| (ChannelId(1), third));
        for (channel, numbers) in
            [Some((CHANNEL, kept)), side, Some((self.quarantine(), rejected))].into_iter().flatten()
        {
            commit.puts.push(Put { channels: vec![channel], batch: batch(source, &numbers) });
        }
        commit.state.push(writes);
        commit.positions.push((key(source), (from + rows).to_le_bytes().to_vec()));
        if self.journal().commit(commit, Some(Instant::now())).is_ok() {
            self.read[source as usize] += rows;
        }
    }

    /// False: there was nothing, or it is to flush first, which it does.
    fn deliver(&mut self, at: usize) -> bool {
        let Some(sink) = self.sinks.get_mut(at) else { return false };
        let reader = sink.reader.as_mut().unwrap();
        let delivery = reader.next(Duration::ZERO).unwrap();
        if let Some(delivery) = &delivery {
            let rows = delivery.batch.rows();
            let identities = (0..rows).map(|row| delivery.batch.identity(row).unwrap());
            let identities = identities.map(|identity| (identity.stream, identity.position));
            match &mut sink.decides {
                None => sink.holds.extend(identities),
                Some(stored) => {
                    let (refused, taken): (Vec<_>, Vec<_>) = identities.partition(|(_, it)| it % 5 == 4);
                    sink.holds.extend(taken);
                    stored.refused.extend(refused);
                }
            }
            sink.cursor = delivery.next;
        }
        if reader.flushes_at(sink.cursor, false) {
            self.flush(at);
        }
        delivery.is_some()
    }

    fn commit_position(&mut self, at: usize, cursor: u64) {
        let sink = &self.sinks[at];
        let commit = Commit {
            positions: vec![(sink.key.clone(), sink.flushed.to_le_bytes().to_vec())],
            acks: vec![Ack { channel: sink.channel, reader: sink.reader_id, cursor }],
            ..Commit::default()
        };
        self.journal().commit(commit, None).unwrap();
    }

    fn acknowledge(&mut self, at: usize, puts: Vec<Put>) {
        let sink = &mut self.sinks[at];
        sink.acked = sink.cursor;
        let ack = Ack { channel: sink.channel, reader: sink.reader_id, cursor: sink.cursor };
        self.journal().commit(Commit { acks: vec![ack], puts, ..Commit::default() }, None).unwrap();
    }

    /// What was promised; `None`: others have to come as far.
    fn store(&mut self, at: usize, is_stored: bool) -> Option<Vec<Put>> {
        let quarantine = self.quarantine();
        let sink = self.sinks.get_mut(at)?;
        let stored = sink.decides.as_mut()?;
        let of = |stream: u64| -> Vec<u64> {
            stored.refused.iter().filter(|(of, _)| *of == stream).map(|(_, number)| *number).collect()
        };
        let put =
            |stream: u64| Put { channels: vec![quarantine], batch: batch(stream + REFUSED, &of(stream)) };
        let puts: Vec<Put> = (0..2).map(put).filter(|put| !put.batch.is_empty()).collect();
        let reader = sink.reader.as_mut()?;
        let promise = reader.promise(sink.cursor, &puts, Duration::ZERO).unwrap()?;
        promise.ticket.wait(None).unwrap().unwrap();
        if is_stored {
            (stored.length, stored.mark) = (sink.holds.len(), promise.mark);
            stored.refused.clear();
        }
        Some(puts)
    }

    fn flush(&mut self, at: usize) {
        if self.sinks.get(at).is_some_and(|sink| sink.decides.is_some()) {
            if let Some(puts) = self.store(at, true) {
                self.acknowledge(at, puts);
            }
            return;
        }
        let Some(sink) = self.sinks.get_mut(at) else { return };
        sink.flushed = sink.holds.len() as u64;
        sink.acked = sink.cursor;
        let cursor = sink.cursor;
        self.commit_position(at, cursor);
    }

    /// Something is delivered and not flushed, and it may be flushed here.
    fn is_due(&mut self, at: usize) -> bool {
        let Some(sink) = self.sinks.get_mut(at) else { return false };
        let is_due = sink.cursor > sink.acked;
        is_due && sink.reader.as_mut().unwrap().flushes_at(sink.cursor, true)
    }

    fn flush_if_due(&mut self, at: usize) {
        if self.is_due(at) {
            self.flush(at);
        }
    }

    fn crash(&mut self) {
        self.sinks.iter_mut().for_each(|sink| sink.reader = None);
        self.journal = None;
        self.start();
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Read { source, rows } => self.read(source, rows),
            Step::Note { source } => {
                let value = self.read[source as usize].to_le_bytes().to_vec();
                let commit = Commit { positions: vec![(key(source), value)], ..Commit::default() };
                self.journal().commit(commit, None).unwrap();
            }
            Step::Deliver { sink, most } => drop((0..most).find(|_| !self.deliver(sink))),
            Step::Flush { sink } => self.flush_if_due(sink),
            Step::Record { sink } if self.sinks.get(sink).is_some_and(|it| it.decides.is_none()) => {
                self.commit_position(sink, 0)
            }
            Step::Record { .. } => {}
            Step::Recover { sink } => self.recover(sink),
            Step::Half { is_stored, is_crash } => {
                let decides = self.sinks.iter().position(|sink| sink.decides.is_some());
                let Some(at) = decides.filter(|at| self.is_due(*at)) else { return };
                if self.store(at, is_stored).is_some() {
                    if is_crash { self.crash() } else { self.recover(at) }
                }
            }
            Step::Crash => self.crash(),
            Step::Close => {
                self.journal().close().unwrap();
                self.crash();
            }
        }
    }

    /// Until every destination has everything.
    fn drain(&mut self) {
        for _ in 0..3 {
            for sink in 0..self.sinks.len() {
                while self.deliver(sink) {}
                self.flush_if_due(sink);
            }
        }
        // The last acknowledgements have to be durable.
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let status = self.journal().status();
            if status.channels.iter().take(self.channels.len()).all(|it| it.events == 0) {
                return;
            }
            assert!(Instant::now() < until, "{status:?}");
            std::thread::yield_now();
        }
    }

    fn in_quarantine(&self) -> BTreeMap<(u64, u64), u32> {
        let mut found: BTreeMap<(u64, u64), u32> = BTreeMap::new();
        let keeper = self.journal().reader_id(self.quarantine(), "keeper").unwrap();
        let mut reader = self.journal().open_reader(self.quarantine(), keeper);
        while let Some(delivery) = reader.next(Duration::ZERO).unwrap() {
            for row in 0..delivery.batch.rows() {
                let identity = delivery.batch.identity(row).unwrap();
                *found.entry((identity.stream, identity.position)).or_default() += 1;
            }
        }
        found
    }

    /// Everything that was ever read is in quarantine once, or in each destination once, or its pair is.
    fn judge(&mut self) {
        self.crash();
        for source in 0..2 {
            self.read(source, 10);
        }
        self.drain();
        self.crash();
        let quarantined = self.in_quarantine();
        assert!(quarantined.values().all(|times| *times == 1), "{quarantined:?}");
        for source in 0..2 {
            let of = |sink: &Sink| -> Vec<u64> {
                let own = sink.holds.iter().filter(|(stream, _)| *stream == source);
                own.map(|(_, number)| *number).collect()
            };
            let mut found = of(&self.sinks[0]);
            if self.sinks[0].decides.is_some() {
                let refused = quarantined.keys().filter(|(of, _)| *of == source + REFUSED);
                found.extend(refused.map(|(_, number)| *number));
                found.sort_unstable();
            }
            assert!(found.is_sorted_by(|one, two| one / 2 < two / 2), "order, and once of a pair: {found:?}");
            for number in 0..self.read[source as usize] {
                let is_there = found.iter().any(|known| known / 2 == number / 2);
                let is_out = quarantined.contains_key(&(source, number));
                assert!(is_there || is_out, "{source} {number} is lost");
                assert!(!(is_out && found.contains(&number)), "{source} {number} is in both");
            }
            for sink in self.sinks.iter().skip(1) {
                let of_all =
                    found.iter().copied().filter(|number| sink.channel == CHANNEL || number % 3 == 0);
                let (refused, of_all): (Vec<u64>, Vec<u64>) =
                    of_all.partition(|number| sink.decides.is_some() && number % 5 == 4);
                assert_eq!(of(sink), of_all, "source {source}, {:?}", sink.key);
                for number in refused {
                    assert!(quarantined.contains_key(&(source + REFUSED, number)), "{source} {number}");
                }
            }
        }
    }
}

/// `FLUMEN_CASES=20000` for a long run.
fn cases() -> u32 {
    std::env::var("FLUMEN_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn each_event_once_over_crashes(steps in vec(step(), 1..80)) {
        let mut world = World::new(ALONE);
        steps.iter().for_each(|step| world.step(step));
        world.judge();
    }

    #[test]
    fn each_event_once_at_each_of_several_destinations(steps in vec(step(), 1..120)) {
        let mut world = World::new(THREE);
        steps.iter().for_each(|step| world.step(step));
        world.judge();
    }

    #[test]
    fn each_event_once_where_a_destination_decides(steps in vec(step(), 1..120), is_alone: bool) {
        let mut world = World::new(if is_alone { DECIDES_ALONE } else { DECIDES });
        steps.iter().for_each(|step| world.step(step));
        world.judge();
    }
}
