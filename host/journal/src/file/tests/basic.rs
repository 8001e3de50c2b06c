//! The ordinary path, and what a test needs to write it down.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_event::{Batch, BatchBuilder};

use super::disk::MemDisk;
use crate::clock::OsClock;
use crate::file::{FileConfig, FileJournal, OpenError};
use crate::{Ack, ChannelId, ChannelSpec, Commit, CommitError, Delivery, Journal, Put, Reader, ReaderId};

pub const A: ChannelId = ChannelId(0);
pub const B: ChannelId = ChannelId(1);
pub const R0: ReaderId = ReaderId(0);
pub const R1: ReaderId = ReaderId(1);

/// For what must come, on the busiest machine.
pub const LIMIT: Duration = Duration::from_secs(60);

pub fn spec(name: &str, readers: &[&str], capacity_events: u64) -> ChannelSpec {
    let readers = readers.iter().map(|reader| reader.to_string()).collect();
    ChannelSpec { name: name.into(), readers, capacity_events, capacity_bytes: u64::MAX }
}

pub fn specs() -> Vec<ChannelSpec> {
    vec![spec("a", &["r0", "r1"], u64::MAX), spec("b", &["r0"], u64::MAX)]
}

pub fn config() -> FileConfig {
    FileConfig {
        dir: "/j".into(),
        segment_bytes: 16 << 10,
        window_bytes: 4 << 10,
        snapshot_every_bytes: 24 << 10,
        reserve_bytes: 64 << 10,
        ..FileConfig::default()
    }
}

pub fn open(disk: &MemDisk) -> Arc<FileJournal> {
    open_with(disk, config(), specs()).unwrap()
}

pub fn open_with(
    disk: &MemDisk,
    config: FileConfig,
    specs: Vec<ChannelSpec>,
) -> Result<Arc<FileJournal>, OpenError> {
    FileJournal::open(config, specs, Arc::new(disk.clone()), Arc::new(OsClock))
}

/// Events `from..from + rows` whose bodies are their number and `size` bytes more.
pub fn batch(from: u64, rows: u64, size: usize) -> Batch {
    let mut builder = BatchBuilder::with_capacity(rows as usize, 0);
    for number in from..from + rows {
        builder.push(7, number, 1, format!("{number}:{}", "x".repeat(size)).as_bytes());
    }
    builder.finish(Vec::new()).unwrap()
}

pub fn put(channels: &[ChannelId], batch: Batch) -> Commit {
    Commit { puts: vec![Put { channels: channels.to_vec(), batch }], ..Commit::default() }
}

pub fn ack(channel: ChannelId, reader: ReaderId, cursor: u64) -> Commit {
    Commit { acks: vec![Ack { channel, reader, cursor }], ..Commit::default() }
}

pub fn durable(journal: &FileJournal, commit: Commit) -> u64 {
    journal.commit(commit, None).unwrap().wait(Some(LIMIT)).expect("in time").unwrap()
}

/// Waits for what must come.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// All events that are there now, by their identity's position.
pub fn drain(reader: &mut dyn Reader) -> Vec<u64> {
    let mut all = Vec::new();
    while let Some(delivery) = reader.next(Duration::ZERO).unwrap() {
        all.extend(numbers(&delivery));
    }
    all
}

pub fn numbers(delivery: &Delivery) -> Vec<u64> {
    delivery.batch.position().values().to_vec()
}

#[test]
fn put_read_ack_reopen() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    let mut reader = journal.open_reader(A, R0);
    let mut commit = put(&[A, B], batch(0, 10, 5));
    commit.positions.push((b"file".to_vec(), b"10".to_vec()));
    assert_eq!(durable(&journal, commit), 1);
    assert_eq!(drain(reader.as_mut()), (0..10).collect::<Vec<_>>());
    assert_eq!(durable(&journal, ack(A, R0, 4)), 2);
    assert_eq!(reader.acknowledged(), 4);
    assert_eq!(journal.position(b"file").unwrap(), b"10");
    journal.close().unwrap();
    journal.close().unwrap();
    assert!(reader.next(Duration::ZERO).is_err());
    assert!(matches!(journal.commit(Commit::default(), None), Err(CommitError::Closing)));
    drop(journal);

    let journal = open(&disk);
    assert_eq!(journal.position(b"file").unwrap(), b"10");
    assert_eq!(journal.positions(b"fi"), [(b"file".to_vec(), b"10".to_vec())]);
    let mut reader = journal.open_reader(A, R0);
    let first = reader.next(Duration::ZERO).unwrap().unwrap();
    assert_eq!((first.first, numbers(&first)), (4, (4..10).collect()));
    assert_eq!(drain(journal.open_reader(A, R1).as_mut()), (0..10).collect::<Vec<_>>());
    assert_eq!(drain(journal.open_reader(B, R0).as_mut()), (0..10).collect::<Vec<_>>());
    assert_eq!(durable(&journal, put(&[A], batch(10, 3, 5))), 3);
    assert_eq!(drain(reader.as_mut()), [10, 11, 12]);
    reader.seek(6).unwrap();
    assert_eq!(drain(reader.as_mut()), (6..13).collect::<Vec<_>>());
}

#[test]
fn a_backlog_over_many_segments_is_read_without_gaps_and_deleted_when_done() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    for n in 0..400 {
        durable(&journal, put(&[A], batch(n * 5, 5, 60)));
    }
    assert!(journal.status().segments > 5, "{:?}", journal.status());
    let expected: Vec<u64> = (0..2000).collect();
    let mut slow = journal.open_reader(A, R1);
    assert_eq!(drain(slow.as_mut()), expected);
    assert_eq!(drain(journal.open_reader(A, R0).as_mut()), expected);
    durable(&journal, ack(A, R0, 2000));
    drop(journal);

    let journal = open(&disk);
    let mut slow = journal.open_reader(A, R1);
    for cursor in (0..2000).step_by(100) {
        slow.seek(cursor).unwrap();
        assert_eq!(slow.next(Duration::ZERO).unwrap().unwrap().first, cursor);
        durable(&journal, ack(A, R1, cursor));
    }
    durable(&journal, ack(A, R1, 2000));
    durable(&journal, put(&[B], batch(0, 1, 1)));
    let segments = disk.names().iter().filter(|name| name.ends_with(".seg")).count();
    assert!(segments <= 3, "{:?}", disk.names());
    assert_eq!(journal.status().channels[0].bytes, 0);
}

#[test]
fn a_full_channel_makes_a_put_wait() {
    let disk = MemDisk::default();
    let journal = open_with(&disk, config(), vec![spec("a", &["r0"], 10)]).unwrap();
    durable(&journal, put(&[A], batch(0, 20, 1)));
    let soon = Instant::now() + Duration::from_millis(20);
    match journal.commit(put(&[A], batch(20, 1, 1)), Some(soon)) {
        Err(CommitError::Full { channel, events, .. }) => assert_eq!((channel.as_str(), events), ("a", 20)),
        _ => panic!("expected Full"),
    }
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| durable(&journal, put(&[A], batch(20, 1, 1))));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        durable(&journal, ack(A, R0, 15));
        assert_eq!(waiting.join().unwrap(), 3);
    });
}

#[test]
fn two_opens_are_locked() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    assert!(matches!(open_with(&disk, config(), specs()), Err(OpenError::Locked(_))));
    journal.close().unwrap();
    open(&disk);
}

#[test]
fn on_the_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let config = FileConfig { dir: dir.path().join("j"), ..config() };
    let open = || FileJournal::open(config.clone(), specs(), Arc::new(crate::OsDisk), Arc::new(OsClock));
    let journal = open().unwrap();
    assert!(matches!(open(), Err(OpenError::Locked(_))));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let journal = &journal;
            scope.spawn(move || {
                for n in 0..50 {
                    durable(journal, put(&[A], batch(thread * 1000 + n, 1, 300)));
                }
            });
        }
        let mut reader = journal.open_reader(A, R0);
        let mut seen = 0;
        while seen < 200 {
            let delivery = reader.next(LIMIT).unwrap().expect("in time");
            assert_eq!(delivery.first, seen);
            seen += delivery.batch.rows() as u64;
            durable(&journal, ack(A, R0, seen));
        }
    });
    drop(journal);
    let journal = open().unwrap();
    assert_eq!(drain(journal.open_reader(A, R1).as_mut()).len(), 200);
    assert_eq!(drain(journal.open_reader(A, R0).as_mut()), [0; 0]);
}
