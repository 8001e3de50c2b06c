//! The memory journal alone: transactions, bounds, overflow, crashes. A crash is a drop without a close.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_event::{Batch, BatchBuilder};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::api::{Ack, ChannelSpec};
use crate::clock::OsClock;
use crate::disk::OsDisk;
use crate::file::tests::disk::MemDisk;
use crate::file::{Durability, FileConfig};

const A: ChannelId = ChannelId(0);
const OTHER: ChannelId = ChannelId(1);
const R0: ReaderId = ReaderId(0);
const R1: ReaderId = ReaderId(1);

fn spec(events: u64, bytes: u64, full: WhenFull) -> MemorySpec {
    let readers = vec!["r0".to_owned(), "r1".to_owned()];
    let channel = ChannelSpec { name: "a".into(), readers, capacity_events: events, capacity_bytes: bytes };
    MemorySpec { channel, full }
}

fn overflow(memory_events: u64) -> MemorySpec {
    spec(memory_events, u64::MAX, WhenFull::Overflow { events: u64::MAX, bytes: u64::MAX })
}

fn file_config(dir: &std::path::Path) -> FileConfig {
    FileConfig {
        dir: dir.join("j"),
        segment_bytes: 16 << 10,
        window_bytes: 2 << 10,
        reserve_bytes: 0,
        durability: Durability::Os,
        ..FileConfig::default()
    }
}

fn other(capacity_events: u64) -> ChannelSpec {
    ChannelSpec {
        name: "quarantine".into(),
        readers: vec!["keeper".into()],
        capacity_events,
        capacity_bytes: u64::MAX,
    }
}

fn open(dir: &std::path::Path, spec: MemorySpec) -> Arc<MemoryJournal> {
    MemoryJournal::open(file_config(dir), vec![spec], vec![other(10)], Arc::new(OsDisk), Arc::new(OsClock))
        .unwrap()
}

fn batch(from: u64, rows: u64, size: usize) -> Batch {
    let mut builder = BatchBuilder::with_capacity(rows as usize, 0);
    (from..from + rows).for_each(|number| builder.push(7, number, 1, "x".repeat(size).as_bytes()));
    builder.finish(Vec::new()).unwrap()
}

fn put(channel: ChannelId, batch: Batch) -> Commit {
    Commit { puts: vec![Put { channels: vec![channel], batch }], ..Commit::default() }
}

fn ack(channel: ChannelId, reader: ReaderId, cursor: u64) -> Commit {
    Commit { acks: vec![Ack { channel, reader, cursor }], ..Commit::default() }
}

fn done(journal: &MemoryJournal, commit: Commit) {
    journal.commit(commit, Some(Instant::now())).unwrap().wait(None).unwrap().unwrap();
}

fn take(reader: &mut dyn Reader) -> Vec<u64> {
    let found = reader.next(Duration::ZERO).unwrap();
    found.map_or(Vec::new(), |found| found.batch.position().values().to_vec())
}

fn drain(reader: &mut dyn Reader) -> Vec<u64> {
    let mut all = Vec::new();
    loop {
        match take(reader) {
            some if some.is_empty() => return all,
            some => all.extend(some),
        }
    }
}

fn figures_of(journal: &MemoryJournal) -> MemoryFigures {
    journal.status().memory.remove(0)
}

#[test]
fn a_rolled_back_take_is_at_the_head_again_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), spec(100, u64::MAX, WhenFull::Wait));
    for from in [0, 3, 6] {
        done(&journal, put(A, batch(from, 3, 5)));
    }
    let (mut one, mut two) = (journal.open_reader(A, R0), journal.open_reader(A, R1));
    assert_eq!(take(one.as_mut()), [0, 1, 2]);
    assert_eq!(take(one.as_mut()), [3, 4, 5]);
    one.seek(one.acknowledged()).unwrap();
    assert_eq!(drain(one.as_mut()), [0, 1, 2, 3, 4, 5, 6, 7, 8], "what was rolled back comes first");
    done(&journal, ack(A, R0, 4));
    one.seek(0).unwrap();
    assert_eq!(drain(one.as_mut()), [4, 5, 6, 7, 8], "what was acknowledged does not come back");
    assert_eq!(drain(two.as_mut()), [0, 1, 2, 3, 4, 5, 6, 7, 8], "another reader has its own list");
    assert_eq!(figures_of(&journal).events_at_risk, 9);
    done(&journal, ack(A, R1, 9));
    assert_eq!(figures_of(&journal).events_at_risk, 5);
    done(&journal, ack(A, R0, 9));
    let figures = figures_of(&journal);
    assert_eq!((figures.events_at_risk, figures.bytes), (0, 0));
}

#[test]
fn a_put_that_fails_leaves_nothing_and_waits_for_room() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), spec(10, u64::MAX, WhenFull::Wait));
    done(&journal, put(A, batch(0, 8, 5)));
    let both = Commit { positions: vec![(b"p".to_vec(), b"1".to_vec())], ..put(A, batch(8, 3, 5)) };
    let full = journal.commit(both.clone(), Some(Instant::now() + Duration::from_millis(5)));
    assert!(matches!(full, Err(CommitError::Full { events: 8, .. })));
    assert_eq!(journal.position(b"p"), None, "nothing of it is there");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| journal.commit(both, None).unwrap().wait(None).unwrap().unwrap());
        for reader in [R0, R1] {
            done(&journal, ack(A, reader, 8));
        }
        waiting.join().unwrap();
    });
    assert_eq!(drain(journal.open_reader(A, R0).as_mut()), [8, 9, 10]);
    assert_eq!(journal.position(b"p").as_deref(), Some(b"1".as_slice()));
}

#[test]
fn memory_is_counted_as_it_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let capacity = 200_000;
    let journal = open(dir.path(), spec(u64::MAX, capacity, WhenFull::Wait));
    // Three rows of each large batch: they must neither keep it nor be counted as if they did.
    let large = batch(0, 1_000, 400);
    let mut puts = 0;
    while journal.commit(put(A, large.slice(10, 3)), Some(Instant::now())).is_ok() {
        puts += 1;
        let state = journal.shared.state.lock();
        let held: usize = state.channels[0].held.iter().map(|held| held.batch.memory_bytes()).sum();
        assert!(held as u64 <= capacity, "{held}");
        assert_eq!(held as u64, state.channels[0].held_bytes);
    }
    assert!(puts > 50, "{puts} small parts fit");
    let larger = open(&dir.path().join("2"), spec(u64::MAX, capacity, WhenFull::Wait));
    done(&larger, put(A, large));
    assert!(larger.commit(put(A, batch(0, 1, 1)), Some(Instant::now())).is_err(), "alone it may be larger");
}

#[test]
fn what_finds_no_room_for_long_is_dropped_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), spec(4, u64::MAX, WhenFull::Drop(Duration::from_millis(30))));
    done(&journal, put(A, batch(0, 4, 5)));
    let late = Commit { positions: vec![(b"p".to_vec(), b"2".to_vec())], ..put(A, batch(4, 2, 5)) };
    assert!(journal.commit(late.clone(), Some(Instant::now())).is_err(), "it waits first");
    journal.commit(late, None).unwrap().wait(None).unwrap().unwrap();
    done(&journal, put(A, batch(6, 1, 5)));
    assert_eq!(figures_of(&journal).dropped, 3, "and those behind it do not wait again");
    assert_eq!(journal.position(b"p").as_deref(), Some(b"2".as_slice()), "the source goes on");
    for reader in [R0, R1] {
        done(&journal, ack(A, reader, 4));
    }
    done(&journal, put(A, batch(7, 2, 5)));
    assert_eq!(drain(journal.open_reader(A, R0).as_mut()), [7, 8]);
    assert_eq!(figures_of(&journal).dropped, 3);
}

#[test]
fn events_overflow_into_the_file_and_drain_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), overflow(10));
    for from in (0..60).step_by(5) {
        done(&journal, put(A, batch(from, 5, 100)));
    }
    let figures = figures_of(&journal);
    assert_eq!((figures.events_at_risk, figures.overflowed, figures.overflows), (10, 50, true));
    let mut one = journal.open_reader(A, R0);
    assert_eq!(take(one.as_mut()), [0, 1, 2, 3, 4]);
    for reader in [R0, R1] {
        done(&journal, ack(A, reader, 12));
    }
    // There is room in memory, but what is in the file is older.
    done(&journal, put(A, batch(60, 5, 100)));
    assert_eq!(figures_of(&journal).events_at_risk, 0);
    assert_eq!(drain(one.as_mut()), (12..65).collect::<Vec<_>>());
    for reader in [R0, R1] {
        done(&journal, ack(A, reader, 65));
    }
    assert_eq!(regions(&journal), []);
    done(&journal, put(A, batch(65, 5, 100)));
    let figures = figures_of(&journal);
    assert_eq!(
        (figures.events_at_risk, figures.overflows),
        (5, false),
        "drained: events are in memory again"
    );
    assert_eq!(drain(one.as_mut()), (65..70).collect::<Vec<_>>());
    let segments = journal.status().segments;
    assert!(segments <= 4, "{segments}: the file keeps what is drained");
}

/// No more is at risk than the memory holds, also of one commit that is larger (as those that come back from a failover may be).
#[test]
fn what_is_larger_than_the_memory_goes_to_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), overflow(10));
    done(&journal, put(A, batch(0, 11, 100)));
    let figures = figures_of(&journal);
    assert_eq!((figures.events_at_risk, figures.overflowed), (0, 11));
    assert_eq!(drain(journal.open_reader(A, R0).as_mut()), (0..11).collect::<Vec<_>>());
    for reader in [R0, R1] {
        done(&journal, ack(A, reader, 11));
    }
    done(&journal, put(A, batch(11, 10, 100)));
    assert_eq!(figures_of(&journal).events_at_risk, 10);
}

#[test]
fn a_clean_close_loses_nothing_and_a_crash_what_was_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    for kind in [overflow(10), spec(100, u64::MAX, WhenFull::Wait)] {
        let dir = dir.path().join(format!("{:?}", kind.full));
        let journal = open(&dir, kind.clone());
        for from in (0..30).step_by(3) {
            done(&journal, put(A, batch(from, 3, 100)));
        }
        done(&journal, ack(A, R0, 4));
        done(&journal, ack(A, R1, 2));
        journal.close().unwrap();
        assert!(matches!(journal.commit(put(A, batch(0, 1, 1)), None), Err(CommitError::Closing)));
        drop(journal);
        let journal = open(&dir, kind.clone());
        assert_eq!(figures_of(&journal).lost, 0);
        let mark = journal.open_reader(A, R0).mark(9);
        assert_eq!(drain(journal.open_reader(A, R0).as_mut()), (4..30).collect::<Vec<_>>());
        assert_eq!(drain(journal.open_reader(A, R1).as_mut()), (2..30).collect::<Vec<_>>());
        drop(journal);
        // Nothing was in memory, so that crash cost nothing.
        let journal = open(&dir, kind.clone());
        assert_eq!(drain(journal.open_reader(A, R1).as_mut()), (2..30).collect::<Vec<_>>());
        assert_eq!(journal.open_reader(A, R0).resolve(&mark), Some(9), "marks outlive everything");
        for reader in [R0, R1] {
            done(&journal, ack(A, reader, 30));
        }
        done(&journal, put(A, batch(30, 4, 100)));
        done(&journal, ack(A, R0, 31));
        assert_eq!(figures_of(&journal).events_at_risk, 4);
        drop(journal);
        let journal = open(&dir, kind);
        assert_eq!(figures_of(&journal).lost, 4);
        assert_eq!(journal.open_reader(A, R0).acknowledged(), 34, "numbers are not given twice");
        done(&journal, put(A, batch(34, 1, 1)));
        for reader in [R0, R1] {
            assert_eq!(drain(journal.open_reader(A, reader).as_mut()), [34]);
        }
    }
}

#[test]
fn a_file_channel_goes_on_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let kind = overflow(10);
    let file = FileJournal::open(
        file_config(dir.path()),
        vec![ChannelSpec { capacity_events: u64::MAX, ..kind.channel.clone() }, other(10)],
        Arc::new(OsDisk),
        Arc::new(OsClock),
    );
    let file = file.unwrap();
    for from in [0, 5, 10] {
        file.commit(put(A, batch(from, 5, 10)), None).unwrap().wait(None).unwrap().unwrap();
    }
    file.commit(ack(A, R0, 7), None).unwrap();
    file.close().unwrap();
    let journal = open(dir.path(), kind);
    done(&journal, put(A, batch(15, 2, 10)));
    assert_eq!(drain(journal.open_reader(A, R0).as_mut()), (7..17).collect::<Vec<_>>());
    assert_eq!(drain(journal.open_reader(A, R1).as_mut()), (0..17).collect::<Vec<_>>());
    assert_eq!(figures_of(&journal).lost, 0);
}

/// On a full disk acknowledgements pass puts. So they say nothing of a channel's numbers: events that were never stored, and that their
/// source has still, would be counted as lost.
#[test]
fn an_acknowledgement_says_nothing_of_a_channels_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), overflow(1));
    for from in 0..4 {
        done(&journal, put(A, batch(from, 1, 5)));
    }
    let record = || journal.shared.file.position(&channel_key("a"));
    let before = record();
    for reader in [R0, R1] {
        done(&journal, ack(A, reader, 4));
    }
    assert!(journal.shared.state.lock().channels[0].registers.regions.is_empty(), "the file is drained");
    assert_eq!(record(), before);
    drop(journal);
    // What was done with is done with all the same.
    let journal = open(dir.path(), overflow(1));
    assert_eq!(figures_of(&journal).lost, 0);
    done(&journal, put(A, batch(4, 1, 5)));
    for reader in [R0, R1] {
        let delivery = journal.open_reader(A, reader).next(Duration::ZERO).unwrap().unwrap();
        assert_eq!((delivery.first, delivery.batch.position().values().to_vec()), (4, vec![4]));
    }
}

/// On a full disk acknowledgements pass puts: their numbers may be on disk when the events are not.
#[test]
fn numbers_of_events_that_did_not_come_to_the_file_are_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), overflow(1));
    for from in 0..4 {
        done(&journal, put(A, batch(from, 1, 5)));
    }
    let mut registers = journal.shared.state.lock().channels[0].registers.clone();
    assert_eq!(registers.regions.len(), 1);
    registers.head += 5;
    registers.regions[0].rows += 5;
    let positions = vec![(channel_key("a"), registers.encode())];
    let ahead = Commit { positions, ..Commit::default() };
    journal.shared.file.commit(ahead, None).unwrap().wait(None).unwrap().unwrap();
    drop(journal);
    let journal = open(dir.path(), overflow(1));
    done(&journal, put(A, batch(9, 3, 5)));
    for reader in [R0, R1] {
        let mut reader = journal.open_reader(A, reader);
        let mut found = Vec::new();
        while let Some(delivery) = reader.next(Duration::ZERO).unwrap() {
            let numbers = delivery.batch.position().values().to_vec();
            assert_eq!(delivery.first, numbers[0], "an event keeps its number");
            found.extend(numbers);
        }
        assert_eq!(found, [1, 2, 3, 9, 10, 11]);
    }
}

#[test]
fn a_full_quarantine_holds_its_puts_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), spec(100, u64::MAX, WhenFull::Wait));
    assert_eq!(journal.channel("quarantine"), Some(OTHER));
    done(&journal, put(OTHER, batch(0, 10, 5)));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| journal.commit(put(OTHER, batch(10, 1, 5)), None).unwrap().wait(None));
        done(&journal, put(A, batch(0, 5, 5)));
        done(&journal, ack(A, R0, 5));
        let reader = journal.reader_id(OTHER, "keeper").unwrap();
        let mut keeper = journal.open_reader(OTHER, reader);
        assert_eq!(drain(keeper.as_mut()), (0..10).collect::<Vec<_>>());
        done(&journal, ack(OTHER, reader, 10));
        waiting.join().unwrap().unwrap().unwrap();
        assert_eq!(drain(keeper.as_mut()), [10]);
    });
}

/// Whoever handed in what the disk did not take was told, and has it elsewhere: a stop loses nothing of it.
#[test]
fn what_failed_with_the_disk_is_not_at_risk() {
    let (disk, specs) = (MemDisk::default(), vec![spec(100, u64::MAX, WhenFull::Wait)]);
    let config = file_config(std::path::Path::new("/"));
    let opened =
        MemoryJournal::open(config, specs, vec![other(10)], Arc::new(disk.clone()), Arc::new(OsClock));
    let journal = opened.unwrap();
    done(&journal, put(A, batch(0, 8, 5)));
    disk.faults(|faults| faults.write_errors = u32::MAX);
    let ticket = journal.commit(put(A, batch(8, 3, 5)), None).unwrap();
    assert!(matches!(ticket.wait(None), Some(Err(CommitError::Failed(_)))));
    assert_eq!(figures_of(&journal).events_at_risk, 8);
    assert_eq!(take(journal.open_reader(A, R0).as_mut()), (0..8).collect::<Vec<_>>());
}

/// What was accepted stays, however little the channel holds from now on; what is new waits until that is more.
#[test]
fn a_capacity_that_becomes_less_takes_nothing_back() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), spec(10, u64::MAX, WhenFull::Wait));
    done(&journal, put(A, batch(0, 8, 5)));
    journal.set_capacity(A, 2, u64::MAX);
    assert_eq!(journal.status().channels[0].capacity_events, 2);
    let full = journal.commit(put(A, batch(8, 1, 5)), Some(Instant::now()));
    assert!(matches!(full, Err(CommitError::Full { events: 8, .. })));
    assert_eq!(drain(journal.open_reader(A, R1).as_mut()), (0..8).collect::<Vec<_>>());
    journal.set_capacity(A, 9, u64::MAX);
    done(&journal, put(A, batch(8, 1, 5)));
    assert_eq!(drain(journal.open_reader(A, R0).as_mut()), (0..9).collect::<Vec<_>>());
    // One that is in the file alone.
    done(&journal, put(OTHER, batch(0, 10, 5)));
    assert!(journal.commit(put(OTHER, batch(10, 1, 5)), Some(Instant::now())).is_err());
    journal.set_capacity(OTHER, 11, u64::MAX);
    done(&journal, put(OTHER, batch(10, 1, 5)));
}

/// Of a channel that overflows the capacity is its file's: no more is at risk than was said.
#[test]
fn a_capacity_of_a_channel_that_overflows_is_that_of_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), overflow(10));
    for from in (0..20).step_by(5) {
        done(&journal, put(A, batch(from, 5, 5)));
    }
    journal.set_capacity(A, 3, u64::MAX);
    let full = journal.commit(put(A, batch(20, 1, 5)), Some(Instant::now()));
    assert!(matches!(full, Err(CommitError::Full { events: 20, .. })));
    journal.set_capacity(A, u64::MAX, u64::MAX);
    done(&journal, put(A, batch(20, 5, 5)));
    let figures = figures_of(&journal);
    assert_eq!((figures.events_at_risk, figures.overflowed), (10, 15));
    assert_eq!(drain(journal.open_reader(A, R0).as_mut()), (0..25).collect::<Vec<_>>());
    for reader in [R0, R1] {
        done(&journal, ack(A, reader, 25));
    }
    // The file is drained: its memory holds what it held.
    for from in [25, 30, 35] {
        done(&journal, put(A, batch(from, 5, 5)));
    }
    assert_eq!(figures_of(&journal).events_at_risk, 10);
}

#[test]
fn a_reader_comes_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), overflow(4));
    done(&journal, put(A, batch(0, 3, 5)));
    let late = journal.add_reader(A, "late").unwrap();
    assert_eq!(journal.reader_id(A, "late"), Some(late));
    for from in [3, 6] {
        done(&journal, put(A, batch(from, 3, 5)));
    }
    assert_eq!(drain(journal.open_reader(A, late).as_mut()), (3..9).collect::<Vec<_>>());
    for reader in [R0, R1] {
        done(&journal, ack(A, reader, 9));
    }
    done(&journal, ack(A, late, 4));
    journal.retire_reader(A, late);
    assert_eq!(journal.reader_id(A, "late"), None);
    done(&journal, put(A, batch(9, 3, 5)));
    assert_eq!(drain(journal.open_reader(A, R0).as_mut()), [9, 10, 11]);
    assert_eq!(journal.add_reader(A, "late").unwrap(), late);
    assert_eq!(drain(journal.open_reader(A, late).as_mut()), [9, 10, 11], "what passed meanwhile is gone");
}

#[derive(Debug, Clone)]
enum Step {
    Put { rows: u64, size: usize },
    Ack { reader: u16, share: u64 },
    Position { value: u8 },
    Read { reader: u16 },
    Close,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1u64..9, 0usize..400).prop_map(|(rows, size)| Step::Put { rows, size }),
        6 => (0u16..2, 0u64..=100).prop_map(|(reader, share)| Step::Ack { reader, share }),
        2 => any::<u8>().prop_map(|value| Step::Position { value }),
        4 => (0u16..2).prop_map(|reader| Step::Read { reader }),
        1 => Just(Step::Close),
        1 => Just(Step::Crash),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Where {
    Memory,
    File,
    Lost,
}

/// What was put, and where it is.
#[derive(Default)]
struct Model {
    events: Vec<Where>,
    cursors: [u64; 2],
    position: Option<u8>,
}

impl Model {
    fn owed(&self, reader: u16) -> Vec<u64> {
        let from = self.cursors[usize::from(reader)];
        (from..self.events.len() as u64).filter(|event| self.events[*event as usize] != Where::Lost).collect()
    }

    /// How many events that somebody has not acknowledged are there.
    fn count(&self, place: Where) -> u64 {
        let needed = self.cursors[0].min(self.cursors[1]) as usize;
        self.events[needed..].iter().filter(|event| **event == place).count() as u64
    }

    fn crash(&mut self) {
        let in_memory = self.events.iter_mut().filter(|event| **event == Where::Memory);
        in_memory.for_each(|event| *event = Where::Lost);
    }

    /// Readers go to the next event that is left.
    fn open(&mut self) {
        for cursor in &mut self.cursors {
            let left = self.events[*cursor as usize..].iter().position(|event| *event != Where::Lost);
            *cursor = left.map_or(self.events.len() as u64, |left| *cursor + left as u64);
        }
    }
}

fn run(kind: &MemorySpec, steps: &[Step]) {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path(), kind.clone());
    let mut model = Model::default();
    let check = |journal: &MemoryJournal, model: &Model| {
        for reader in [0, 1] {
            assert_eq!(
                drain(journal.open_reader(A, ReaderId(reader)).as_mut()),
                model.owed(reader),
                "reader {reader}"
            );
        }
        assert_eq!(journal.position(b"p"), model.position.map(|value| vec![value]));
        assert_eq!(figures_of(journal).events_at_risk, model.count(Where::Memory));
    };
    let mut readers = [R0, R1].map(|reader| journal.open_reader(A, reader));
    for step in steps {
        match *step {
            Step::Put { rows, size } => {
                let before = figures_of(&journal).overflowed;
                let mut commit = put(A, batch(model.events.len() as u64, rows, size));
                let value = rows as u8;
                commit.positions.push((b"p".to_vec(), vec![value]));
                if let Ok(ticket) = journal.commit(commit, Some(Instant::now())) {
                    ticket.wait(None).unwrap().unwrap();
                    let place =
                        if figures_of(&journal).overflowed > before { Where::File } else { Where::Memory };
                    model.events.extend((0..rows).map(|_| place));
                    model.position = Some(value);
                }
            }
            Step::Ack { reader, share } => {
                let cursor = &mut model.cursors[usize::from(reader)];
                *cursor += (model.events.len() as u64 - *cursor) * share / 100;
                done(&journal, ack(A, ReaderId(reader), *cursor));
            }
            Step::Position { value } => {
                model.position = Some(value);
                let positions = vec![(b"p".to_vec(), vec![value])];
                done(&journal, Commit { positions, ..Commit::default() });
            }
            Step::Read { reader } => drop(readers[usize::from(reader)].next(Duration::ZERO).unwrap()),
            Step::Close | Step::Crash => {
                if matches!(step, Step::Close) {
                    journal.close().unwrap();
                    let saved = model.events.iter_mut().filter(|event| **event == Where::Memory);
                    saved.for_each(|event| *event = Where::File);
                }
                model.crash();
                drop(readers);
                drop(journal);
                journal = open(dir.path(), kind.clone());
                assert_eq!(figures_of(&journal).lost, model.count(Where::Lost));
                model.open();
                readers = [R0, R1].map(|reader| journal.open_reader(A, reader));
            }
        }
        check(&journal, &model);
    }
}

/// `FLUMEN_CASES=20000` for a long run.
fn cases() -> u32 {
    std::env::var("FLUMEN_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::with_cases(cases()) })]

    /// Order, cursors, positions, what is at risk, and what a crash costs, for a queue that waits and one that overflows.
    #[test]
    fn the_memory_journal_is_its_model(steps in vec(step(), 1..60), overflows in any::<bool>()) {
        let kind = if overflows { overflow(12) } else { spec(40, 20_000, WhenFull::Wait) };
        run(&kind, &steps);
    }
}
