//! What plugins remember: in memory, in its file, and when the file or the disk is not as it should be.

use super::basic::*;
use super::disk::{Call, Fault, MemDisk};
use crate::file::{FileConfig, FileJournal};
use crate::{ByteColumn, Commit, Journal, MemoryState, StateOp, StateStore, StateWrites};

const FOREVER: Option<i64> = None;

fn writes(range: std::ops::Range<u64>, value: &[u8], expiry: Option<i64>) -> StateWrites {
    let mut writes = StateWrites::new("dedup".into());
    for number in range {
        let key = format!("{number:040}");
        writes.push(StateOp { key: key.as_bytes(), value: Some(value), expiry });
    }
    writes
}

fn remember(range: std::ops::Range<u64>, value: &[u8], expiry: Option<i64>) -> Commit {
    Commit { state: vec![writes(range, value, expiry)], ..Commit::default() }
}

/// The numbers that are there.
fn known(store: &dyn StateStore, range: std::ops::Range<u64>, now_ns: i64) -> Vec<u64> {
    let (mut offsets, mut data) = (vec![0; 4], Vec::new());
    for number in range.clone() {
        data.extend_from_slice(format!("{number:040}").as_bytes());
        offsets.extend_from_slice(&(data.len() as u32).to_le_bytes());
    }
    let mut found = Vec::new();
    let keys = ByteColumn::new(&offsets, &data).unwrap();
    store.get_many("dedup", &keys, now_ns, &mut |index, value| {
        found.extend(value.is_some().then_some(range.start + index as u64));
    });
    found
}

fn state_files(disk: &MemDisk) -> Vec<String> {
    disk.names().into_iter().filter(|name| name.ends_with(".state")).collect()
}

fn small() -> FileConfig {
    FileConfig { state_file_every_bytes: 16 << 10, ..config() }
}

/// Events that are acknowledged, and a key each, over many segments.
fn run(journal: &FileJournal, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let mut commit = put(&[A], batch(n, 1, 600));
        commit.state = vec![writes(n..n + 1, b"v", FOREVER)];
        durable(journal, commit);
        for reader in [R0, R1] {
            durable(journal, ack(A, reader, n + 1));
        }
    }
}

#[test]
fn segments_go_when_a_file_covers_their_state() {
    let disk = MemDisk::default();
    let journal = open_with(&disk, small(), specs()).unwrap();
    run(&journal, 0..500);
    // 500 keys are over 50 KB, so a file is due every 100 KB of segments: not all 35 segments may be there.
    until("few segments", || {
        durable(&journal, ack(A, R0, 500));
        journal.status().segments < 16
    });
    // A new one has its name before the old one goes.
    until("one file", || state_files(&disk).len() == 1);
    drop(journal);
    disk.crash(5);
    let journal = open_with(&disk, small(), specs()).unwrap();
    assert_eq!(known(&*journal.state().unwrap(), 0..600, 0), (0..500).collect::<Vec<_>>());
    assert_eq!(journal.status().state[0].keys, 500);
    assert_eq!(journal.status().damaged_commits, 0);
}

#[test]
fn a_file_is_made_early_and_state_without_new_writes_keeps_no_segment() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    durable(&journal, remember(0..3, b"", FOREVER));
    until("a first file", || {
        durable(&journal, Commit { positions: vec![(b"p".to_vec(), vec![1])], ..Commit::default() });
        !state_files(&disk).is_empty()
    });
    for n in 0..200 {
        durable(&journal, put(&[A], batch(n, 1, 600)));
        durable(&journal, ack(A, R0, n + 1));
        durable(&journal, ack(A, R1, n + 1));
    }
    assert!(journal.status().segments < 4, "{}", journal.status().segments);
    journal.close().unwrap();
    let journal = open(&disk);
    assert_eq!(known(&*journal.state().unwrap(), 0..5, 0), [0, 1, 2]);
}

#[test]
fn what_has_expired_is_forgotten_in_memory_and_on_disk() {
    let disk = MemDisk::default();
    let journal = open_with(&disk, small(), specs()).unwrap();
    let state = journal.state().unwrap();
    durable(&journal, remember(0..2_000, b"gone", Some(1_000)));
    durable(&journal, remember(2_000..2_010, b"", FOREVER));
    assert_eq!(known(&*state, 0..2_010, 1_001), (2_000..2_010).collect::<Vec<_>>());
    // Between two looks a sweep may come.
    until("all that is there", || known(&*state, 0..2_010, 1_000).len() as u64 == state.size("dedup").keys);
    // Every write looks at two old ones.
    for n in 0..40 {
        durable(&journal, remember(2_000 + n * 50..2_050 + n * 50, b"", FOREVER));
    }
    state.sweep("dedup", 2_000);
    assert_eq!(state.size("dedup").keys, 2_000);
    run(&journal, 0..60);
    until("one file", || state_files(&disk).len() == 1);
    until("a file without them", || {
        durable(&journal, remember(2_000..2_001, b"", FOREVER));
        durable(&journal, put(&[A], batch(60, 1, 9_000)));
        let name = state_files(&disk).pop().unwrap_or_default();
        let bytes = disk.0.lock().file(&format!("/j/{name}")).unwrap_or_default();
        !bytes.is_empty() && !bytes.windows(4).any(|window| window == b"gone")
    });
}

#[test]
fn a_damaged_block_costs_its_own_keys() {
    let disk = MemDisk::default();
    let journal = open_with(&disk, FileConfig { segment_bytes: 1 << 20, ..small() }, specs()).unwrap();
    durable(&journal, remember(0..5_000, b"value", FOREVER));
    until("a file", || {
        durable(&journal, put(&[A], batch(0, 1, 10)));
        !state_files(&disk).is_empty()
    });
    journal.close().unwrap();
    drop(journal);
    let path = format!("/j/{}", state_files(&disk)[0]);
    let whole = disk.bytes(&path);
    let damaged = || open_with(&disk.copy(), small(), specs()).unwrap().status().damaged_state_blocks;
    assert_eq!(damaged(), 0);
    // Up to seven zeros fill a block up to a multiple of eight, and count for nothing. Where blocks end is different in each process: at a
    // multiple of eight there is never such a zero.
    let middle = whole.len() / 2 / 8 * 8;
    for place in [70, 64, middle, whole.len() - 4] {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x10;
        disk.set_bytes(&path, bytes);
        let journal = open_with(&disk.copy(), small(), specs()).unwrap();
        let keys = journal.status().state.first().map(|size| size.keys).unwrap_or_default();
        assert!((4_900..=5_000).contains(&keys), "{keys} keys after damage at {place}");
        assert_eq!((damaged(), journal.status().damaged_commits), (1, 0), "damage at {place}");
    }
    // Without a header there is no telling.
    let mut bytes = whole.clone();
    bytes[20] ^= 1;
    disk.set_bytes(&path, bytes);
    assert_eq!(damaged(), 1);
    for length in [0, 10, 64, 80, whole.len() / 3] {
        disk.set_bytes(&path, whole[..length].to_vec());
        assert_eq!(damaged(), 1, "{length}");
    }
}

#[test]
fn a_full_disk_gets_a_file_of_the_state_and_goes_on() {
    let disk = MemDisk::default();
    // The segments that only the state still needs fill the disk before a file is due.
    let config = FileConfig { state_file_every_bytes: 1 << 30, reserve_bytes: 0, ..config() };
    let journal = open_with(&disk, config, specs()).unwrap();
    durable(&journal, remember(0..1, b"", FOREVER));
    until("a first file", || {
        durable(&journal, ack(A, R0, 0));
        !state_files(&disk).is_empty()
    });
    disk.faults(|faults| faults.capacity = Some(420 << 10));
    run(&journal, 0..900);
    assert_eq!(known(&*journal.state().unwrap(), 0..900, 0).len(), 900);
}

/// It does not count then, and when a later one has its name, nothing knows of it any more.
#[test]
fn a_file_whose_name_may_not_last_is_removed_again() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    // The segment is there before the error, which is for the next name that is made durable.
    durable(&journal, put(&[A], batch(0, 1, 10)));
    disk.faults(|faults| faults.armed.push(Fault { call: Call::SyncDir, skip: 0, times: 1, code: 5 }));
    durable(&journal, remember(0..3, b"", FOREVER));
    until("the error", || disk.0.lock().faults.fired == 1);
    until("its removal", || state_files(&disk).is_empty());
    drop(journal);
    assert_eq!(known(&*open(&disk).state().unwrap(), 0..5, 0), [0, 1, 2]);
}

#[test]
fn a_key_costs_little_more_than_a_hundred_bytes() {
    let state = MemoryState::default();
    for n in 0..100 {
        state.apply(&writes(n * 1_000..n * 1_000 + 1_000, b"", FOREVER), 0);
    }
    let size = state.size("dedup");
    assert_eq!((size.keys, size.bytes), (100_000, 100_000 * 96));
    // Once they are scanned, they are in order, and cost the same.
    let mut found = Vec::new();
    let prefix = format!("{:037}", 5);
    state.scan("dedup", prefix.as_bytes(), Some(format!("{:040}", 5_997).as_bytes()), 0, &mut |key, _| {
        found.push(String::from_utf8(key.to_vec()).unwrap());
        true
    });
    assert_eq!(found, [format!("{:040}", 5_998), format!("{:040}", 5_999)]);
    assert_eq!(state.size("dedup"), size);
    let mut removals = StateWrites::new("dedup".into());
    for number in 0..100_000 {
        removals.push(StateOp { key: format!("{number:040}").as_bytes(), value: None, expiry: None });
    }
    state.apply(&removals, 0);
    assert_eq!((state.size("dedup").keys, state.size("dedup").bytes), (0, 0));
}

#[test]
fn lying_columns_are_refused() {
    let number = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>();
    assert!(ByteColumn::new(&number(&[0, 1, 3]), b"abc").is_some_and(|column| column.row(1) == b"bc"));
    for wrong in
        [vec![], number(&[1, 3]), number(&[0, 2, 1, 3]), number(&[0, 2]), number(&[0, 4]), vec![0, 0, 0]]
    {
        assert!(ByteColumn::new(&wrong, b"abc").is_none(), "{wrong:?}");
    }
}
