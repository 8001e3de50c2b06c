//! Readers that come and go while the journal is open.

use std::time::Duration;

use super::basic::*;
use super::disk::MemDisk;
use crate::file::format::snapshot::{SLOT_NAMES, Snapshot};
use crate::file::segment_name;
use crate::{ChannelSpec, Journal, ReaderId};

fn with_late() -> Vec<ChannelSpec> {
    vec![spec("a", &["r0", "r1", "late"], u64::MAX), spec("b", &["r0"], u64::MAX)]
}

/// It begins at the end, as it would at an opening, keeps what it is owed on disk, and is there after a restart.
#[test]
fn a_new_reader_begins_at_the_end() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    durable(&journal, put(&[A, B], batch(0, 10, 5)));
    let mut first = journal.open_reader(A, R0);
    let late = journal.add_reader(A, "late").unwrap();
    assert_eq!((late, journal.reader_id(A, "late")), (ReaderId(2), Some(late)));
    assert_eq!(journal.add_reader(A, "late").unwrap(), late, "twice is once");
    let mut reader = journal.open_reader(A, late);
    assert_eq!(reader.acknowledged(), 10);
    for n in 1..200 {
        durable(&journal, put(&[A], batch(n * 10, 10, 50)));
    }
    for reader in [R0, R1] {
        durable(&journal, ack(A, reader, 2_000));
    }
    assert_eq!(drain(reader.as_mut()), (10..2_000).collect::<Vec<_>>());
    assert_eq!(drain(first.as_mut()), Vec::<u64>::new(), "the others go on");
    durable(&journal, ack(A, late, 500));
    journal.close().unwrap();
    drop(journal);

    let journal = open_with(&disk, config(), with_late()).unwrap();
    let late = journal.reader_id(A, "late").unwrap();
    assert_eq!(drain(journal.open_reader(A, late).as_mut()), (500..2_000).collect::<Vec<_>>());
}

/// An older snapshot says that it reads still, and has what was deleted because it does not. That is not missing.
#[test]
fn what_went_with_a_reader_is_not_missing() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    let late = journal.add_reader(A, "late").unwrap();
    for n in 0..40 {
        durable(&journal, put(&[A], batch(n, 1, 1_000)));
    }
    for reader in [R0, R1] {
        durable(&journal, ack(A, reader, 40));
    }
    let before = journal.status().segments;
    journal.retire_reader(A, late);
    // The change is taken over before the next commit is written.
    durable(&journal, ack(A, R0, 40));
    assert!(journal.status().segments < before);
    drop(journal);
    let read = |slot: &&str| Snapshot::decode(&disk.bytes(&format!("/j/{slot}"))).unwrap();
    let newest = *SLOT_NAMES.iter().max_by_key(|slot| read(slot).generation).unwrap();
    let older = SLOT_NAMES.iter().map(read).min_by_key(|slot| slot.generation).unwrap();
    let names = disk.names();
    let mut named = older.segments.iter();
    assert!(
        named.any(|segment| !names.contains(&segment_name(segment.id))),
        "nothing to be taken for missing"
    );
    let path = format!("/j/{newest}");
    let mut bytes = disk.bytes(&path);
    bytes[70] ^= 1;
    disk.set_bytes(&path, bytes);
    assert_eq!(open(&disk).status().damaged_commits, 0);
}

/// Nothing is kept for it any more, nobody waits for it; if it comes back, it goes on where it was.
#[test]
fn a_reader_that_retires_holds_nothing() {
    let disk = MemDisk::default();
    let specs = vec![spec("a", &["r0", "r1"], 100), spec("b", &["r0"], u64::MAX)];
    let journal = open_with(&disk, config(), specs).unwrap();
    durable(&journal, put(&[A], batch(0, 130, 5)));
    durable(&journal, ack(A, R0, 130));
    durable(&journal, ack(A, R1, 30));
    let soon = std::time::Instant::now() + Duration::from_millis(20);
    assert!(journal.commit(put(&[A], batch(130, 50, 5)), Some(soon)).is_err(), "full for the sake of r1");
    let waiting = std::thread::scope(|scope| {
        let put = scope.spawn(|| durable(&journal, put(&[A], batch(130, 50, 5))));
        journal.retire_reader(A, R1);
        put.join().unwrap()
    });
    assert_eq!(waiting, 4);
    assert_eq!(journal.reader_id(A, "r1"), None);
    assert!(journal.commit(ack(A, R1, 40), None).is_err(), "it does not read any more");
    let readers = journal.status().channels[0].readers.clone();
    assert_eq!(readers, [("r0".to_owned(), 130)]);
    assert_eq!(journal.add_reader(A, "r1").unwrap(), R1);
    assert_eq!(drain(journal.open_reader(A, R1).as_mut()), (30..180).collect::<Vec<_>>());
    // The last one: a channel that nobody reads keeps nothing.
    journal.retire_reader(A, R0);
    journal.retire_reader(A, R1);
    assert!(journal.add_reader(A, "r2").unwrap_err().to_string().contains("nobody reads"));
}

/// The power goes at any point of an addition, or behind it: a reader that was added is there and owed everything since.
#[test]
fn a_crash_at_any_point_of_an_addition() {
    for power in 0..24 {
        for seed in 0..6 {
            let disk = MemDisk::default();
            let journal = open(&disk);
            durable(&journal, put(&[A], batch(0, 10, 5)));
            disk.faults(|faults| faults.power_left = Some(power));
            let added = journal.add_reader(A, "late");
            let more = journal.commit(put(&[A], batch(10, 5, 5)), None);
            let more = more.is_ok_and(|ticket| ticket.wait(None).unwrap().is_ok());
            let acknowledged = added.as_ref().is_ok_and(|late| {
                let commit = journal.commit(ack(A, *late, 12), None);
                commit.is_ok_and(|ticket| ticket.wait(None).unwrap().is_ok())
            });
            drop(journal);
            disk.crash(seed);
            let journal = open_with(&disk, config(), with_late()).unwrap();
            let case = format!("power {power}, seed {seed}: {added:?}, {more}, {acknowledged}");
            assert_eq!(journal.status().damaged_commits, 0, "{case}");
            let all = drain(journal.open_reader(A, R0).as_mut());
            assert!(all.len() >= if more { 15 } else { 10 }, "{case}");
            durable(&journal, put(&[A], batch(20, 2, 5)));
            let found = drain(journal.open_reader(A, journal.reader_id(A, "late").unwrap()).as_mut());
            assert!(found.ends_with(&[20, 21]), "{case}: {found:?}");
            if added.is_ok() {
                let from = found[0];
                assert!(
                    from == 12 || !acknowledged && from == all.get(10).copied().unwrap_or(20),
                    "{case}: {found:?}"
                );
            }
        }
    }
}

/// A disk without space, or one that fails, adds no reader; everything else goes on, also through a crash.
#[test]
fn a_disk_that_is_full_or_fails_adds_no_reader() {
    for fails in [false, true] {
        let disk = MemDisk::default();
        let journal = open(&disk);
        durable(&journal, put(&[A], batch(0, 10, 5)));
        match fails {
            true => disk.faults(|faults| faults.write_errors = 1),
            false => disk.faults(|faults| faults.capacity = Some(1)),
        }
        let error = journal.add_reader(A, "late").unwrap_err();
        assert!(error.to_string().contains("writing /j"), "{error}");
        assert_eq!(journal.reader_id(A, "late"), None);
        disk.faults(|faults| (faults.capacity, faults.write_errors) = (None, 0));
        durable(&journal, put(&[A], batch(10, 10, 5)));
        drop(journal);
        for seed in 0..10 {
            disk.crash(seed);
            let journal = open(&disk);
            assert_eq!(drain(journal.open_reader(A, R0).as_mut()), (0..20).collect::<Vec<_>>());
            assert_eq!(journal.status().damaged_commits, 0);
        }
    }
    let journal = open(&MemDisk::default());
    journal.close().unwrap();
    assert!(journal.add_reader(A, "late").is_err());
}
