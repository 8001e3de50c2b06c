//! The hard cases, each by name. `sim` meets them in the middle of everything else.

use std::sync::Arc;
use std::time::Duration;

use super::basic::*;
use super::disk::{Call, Fault, MemDisk};
use crate::clock::OsClock;
use crate::file::base::read_slots;
use crate::file::{Durability, FileConfig, FileJournal, OpenError};
use crate::{CommitError, Disk, Journal, Keys, OsDisk, StateOp, StateWrites};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

fn arm(disk: &MemDisk, call: Call, skip: u32, times: u32, code: i32) {
    disk.faults(|faults| faults.armed.push(Fault { call, skip, times, code }));
}

fn segments(disk: &MemDisk) -> Vec<String> {
    disk.names().into_iter().filter(|name| name.ends_with(".seg")).map(|name| format!("/j/{name}")).collect()
}

/// A dropped journal with a backlog of `commits` events over some segments.
fn backlog(commits: u64) -> MemDisk {
    let disk = MemDisk::default();
    let journal = open(&disk);
    for n in 0..commits {
        durable(&journal, put(&[A], batch(n, 1, 1_000)));
    }
    drop(journal);
    disk
}

#[test]
fn a_missing_segment_is_named_counted_and_survived() {
    let disk = backlog(60);
    let gone = segments(&disk)[1].clone();
    disk.take(&gone);
    for _ in 0..2 {
        let journal = open(&disk);
        let there = drain(journal.open_reader(A, R0).as_mut());
        let damaged = journal.status().damaged_commits;
        assert!(damaged > 5 && there.last() == Some(&59), "{damaged} {there:?}");
        assert_eq!(there.len() as u64 + damaged, 60);
        journal.close().unwrap();
    }
}

#[test]
fn a_segment_that_is_deleted_while_the_journal_is_open_is_counted() {
    let disk = backlog(60);
    let journal = open(&disk);
    disk.take(&segments(&disk)[1].clone());
    for reader in [R0, R1] {
        let there = drain(journal.open_reader(A, reader).as_mut());
        assert_eq!(there.len() as u64 + journal.status().damaged_commits, 60);
    }
}

#[test]
fn a_segment_of_another_journal_is_neither_read_nor_deleted() {
    let (disk, other) = (backlog(60), backlog(60));
    let place = segments(&disk)[1].clone();
    let foreign = other.bytes(&place);
    disk.set_bytes(&place, foreign.clone());
    let journal = open(&disk);
    let there = drain(journal.open_reader(A, R0).as_mut());
    assert_eq!(there.len() as u64 + journal.status().damaged_commits, 60);
    for reader in [R0, R1] {
        durable(&journal, ack(A, reader, 60));
    }
    durable(&journal, put(&[A], batch(60, 1, 20_000)));
    assert!(segments(&disk).len() < 4, "what is done with is deleted: {:?}", disk.names());
    assert_eq!(disk.bytes(&place), foreign);
}

#[test]
fn a_segment_of_a_newer_version_is_refused_and_left_alone() {
    let disk = backlog(3);
    let path = segments(&disk).pop().unwrap();
    let mut bytes = disk.bytes(&path);
    bytes[8] = 9;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    disk.set_bytes(&path, bytes.clone());
    let error = open_with(&disk, config(), specs()).err().unwrap();
    assert!(matches!(error, OpenError::NewerVersion { version: 9, .. }), "{error}");
    assert!(error.to_string().starts_with(&format!("{path} has format version 9; ")), "{error}");
    assert_eq!(disk.bytes(&path), bytes);
}

#[test]
fn a_segment_of_which_nothing_can_be_read_is_kept() {
    let disk = backlog(3);
    let path = segments(&disk).pop().unwrap();
    disk.set_bytes(&path, vec![0x5a; 16 << 10]);
    let journal = open(&disk);
    assert!(disk.0.lock().file(&path).is_none());
    assert_eq!(disk.bytes(&path.replace("/j/", "/j/damaged/")), vec![0x5a; 16 << 10]);
    assert_eq!(durable(&journal, put(&[A], batch(0, 1, 1))), 1);
}

/// After a failed sync the system shows pages that are not on the disk: what a start finds there is written once more.
#[test]
fn what_is_only_in_memory_after_a_failed_sync_does_not_count() {
    for seed in 0..20 {
        let disk = MemDisk::default();
        let journal = open(&disk);
        disk.faults(|faults| faults.sync_errors = 0);
        // The roll's sync is fine, that of the group and both fresh segments fail.
        arm(&disk, Call::Sync, 1, 3, EIO);
        let ticket = journal.commit(put(&[A], batch(0, 1, 500)), None).unwrap();
        assert!(matches!(ticket.wait(None), Some(Err(CommitError::Failed(_)))));
        drop(journal);
        let journal = open(&disk);
        let found = drain(journal.open_reader(A, R0).as_mut());
        drop(journal);
        disk.crash(seed);
        assert_eq!(drain(open(&disk).open_reader(A, R0).as_mut()), found);
    }
}

/// When memory is short it shows what the disk has: nobody reads what a failed sync left.
#[test]
fn what_the_system_forgets_after_a_failed_sync_is_missed_by_nobody() {
    let from_disk = FileConfig { window_bytes: 0, ..config() };
    let all = |disk: &MemDisk| {
        let journal = open_with(disk, from_disk.clone(), specs()).unwrap();
        assert_eq!(drain(journal.open_reader(A, R0).as_mut()), [0, 1, 2]);
        assert_eq!(journal.status().damaged_commits, 0);
    };
    let mut forgotten = 0;
    for seed in 0..20 {
        let disk = MemDisk::default();
        let journal = open_with(&disk, from_disk.clone(), specs()).unwrap();
        durable(&journal, put(&[A], batch(0, 1, 500)));
        arm(&disk, Call::Sync, 0, 1, EIO);
        durable(&journal, put(&[A], batch(1, 1, 2_000)));
        forgotten += disk.evict(seed);
        durable(&journal, put(&[A], batch(2, 1, 10)));
        assert_eq!(drain(journal.open_reader(A, R0).as_mut()), [0, 1, 2], "seed {seed}");
        drop(journal);
        all(&disk);
        disk.crash(seed);
        all(&disk);
    }
    assert!(forgotten > 0);
}

/// What a start found there is on the disk by now.
#[test]
fn what_a_start_found_stays_when_the_system_forgets() {
    for seed in 0..20 {
        let disk = MemDisk::default();
        let journal = open(&disk);
        // The roll's sync is fine, that of the group and both fresh segments fail.
        arm(&disk, Call::Sync, 1, 3, EIO);
        let ticket = journal.commit(put(&[A], batch(0, 1, 500)), None).unwrap();
        assert!(matches!(ticket.wait(None), Some(Err(CommitError::Failed(_)))));
        drop(journal);
        let journal = open(&disk);
        let found = drain(journal.open_reader(A, R0).as_mut());
        assert_eq!(found, [0]);
        disk.evict(seed);
        assert_eq!(drain(journal.open_reader(A, R0).as_mut()), found, "seed {seed}");
    }
}

/// Without syncs a segment may be on the disk before those that were begun before it: what it says was committed then is not there.
#[test]
fn without_syncs_a_power_cut_leaves_a_beginning() {
    let os = FileConfig { durability: Durability::Os, snapshot_every_bytes: 1 << 30, ..config() };
    let mut lost = 0;
    for seed in 0..50 {
        let disk = MemDisk::default();
        let journal = open_with(&disk, os.clone(), specs()).unwrap();
        for n in 0..60_u64 {
            let mut commit = put(&[A], batch(n, 1, 1_000));
            commit.positions.push((b"file".to_vec(), (n + 1).to_le_bytes().to_vec()));
            durable(&journal, commit);
        }
        drop(journal);
        disk.crash(seed);
        let journal = open_with(&disk, os.clone(), specs()).unwrap();
        let found = drain(journal.open_reader(A, R0).as_mut());
        let there = found.len() as u64;
        assert_eq!(found, (0..there).collect::<Vec<_>>(), "seed {seed}");
        let status = journal.status();
        assert_eq!((status.last_commit, status.damaged_commits), (there, 0), "seed {seed}");
        let position = (there > 0).then(|| there.to_le_bytes().to_vec());
        assert_eq!(journal.position(b"file"), position, "seed {seed}");
        lost += 60 - there;
    }
    assert!(lost > 0);
}

/// A full segment was synced at its end: what is missing of it is damage, which is counted, and what comes behind it stays.
#[test]
fn without_syncs_damage_in_a_full_segment_costs_its_own_commits() {
    let os = FileConfig { durability: Durability::Os, snapshot_every_bytes: 1 << 30, ..config() };
    let disk = MemDisk::default();
    let journal = open_with(&disk, os.clone(), specs()).unwrap();
    for n in 0..60 {
        durable(&journal, put(&[A], batch(n, 1, 1_000)));
    }
    drop(journal);
    let full = segments(&disk)[1].clone();
    let mut bytes = disk.bytes(&full);
    bytes[8_000] ^= 1;
    disk.set_bytes(&full, bytes);
    let journal = open_with(&disk, os, specs()).unwrap();
    let found = drain(journal.open_reader(A, R0).as_mut());
    let lost = journal.status().damaged_commits;
    assert!(
        (1..7).contains(&lost) && found.len() as u64 + lost == 60 && found.last() == Some(&59),
        "{lost}: {found:?}"
    );
}

/// It stops the opening or costs nothing, and the next one finds everything.
#[test]
fn one_error_at_an_opening_costs_nothing() {
    let all = |journal: &FileJournal, what: &str| {
        let found = drain(journal.open_reader(A, R0).as_mut());
        assert_eq!(found, (40..=60).collect::<Vec<_>>(), "{what}");
        assert_eq!(journal.status().damaged_commits, 0, "{what}");
    };
    for call in [Call::CreateDir, Call::List, Call::Len] {
        let mut has_fired = true;
        let mut skip = 0;
        while std::mem::take(&mut has_fired) {
            let what = format!("{call:?} after {skip}");
            let disk = backlog(60);
            let journal = open(&disk);
            // What is done with is deleted.
            for reader in [R0, R1] {
                durable(&journal, ack(A, reader, 40));
            }
            durable(&journal, put(&[A], batch(60, 1, 10)));
            drop(journal);
            arm(&disk, call, skip, 1, EIO);
            match open_with(&disk, config(), specs()) {
                Ok(journal) => all(&journal, &what),
                Err(error) => assert!(matches!(error, OpenError::Io { .. }), "{what}: {error}"),
            }
            has_fired = disk.0.lock().faults.fired > 0;
            disk.faults(|faults| faults.armed.clear());
            all(&open(&disk), &what);
            skip += 1;
        }
        assert!(skip > 1, "{call:?} is not met at an opening");
    }
}

/// A slot that counts as invalid for it may be the newest one.
#[test]
fn one_error_of_a_snapshots_length_does_not_cost_the_snapshot() {
    let disk = backlog(60);
    open(&disk).close().unwrap();
    let generations = || {
        let slots = read_slots(&disk, "/j".as_ref(), &disk.names(), &Keys::default()).unwrap();
        slots.map(|slot| slot.map(|slot| slot.generation))
    };
    let sound = generations();
    assert!(sound.iter().all(Option::is_some), "{sound:?}");
    for skip in 0..2 {
        arm(&disk, Call::Len, skip, 1, EIO);
        assert_eq!(generations(), sound, "of slot {skip}");
        assert_eq!(disk.0.lock().faults.fired, skip + 1);
    }
}

/// A fresh segment that failed on a full disk may come back after a power cut: it must not make void what was
/// written to the old one since.
#[test]
fn a_segment_that_was_given_up_does_not_come_back() {
    for seed in 0..30 {
        let disk = MemDisk::default();
        let journal = open(&disk);
        durable(&journal, put(&[A], batch(0, 1, 10_000)));
        arm(&disk, Call::SyncDir, 0, 1, ENOSPC);
        arm(&disk, Call::Preallocate, 1, 100_000, ENOSPC);
        let waits = journal.commit(put(&[A], batch(1, 1, 10_000)), None).unwrap();
        while journal.status().waiting_for.is_none() {
            std::thread::yield_now();
        }
        assert_eq!(durable(&journal, ack(A, R0, 1)), 2);
        assert!(waits.wait(Some(Duration::ZERO)).is_none());
        drop(journal);
        disk.crash(seed);
        disk.faults(|faults| faults.armed.clear());
        let journal = open(&disk);
        assert_eq!(journal.open_reader(A, R0).acknowledged(), 1, "seed {seed}");
    }
}

/// An acknowledgement says that all before it is done, what the reader put elsewhere included.
#[test]
fn on_a_full_disk_no_acknowledgement_passes_a_put_of_its_reader() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    durable(&journal, put(&[A], batch(0, 10, 10)));
    disk.faults(|faults| faults.capacity = Some(0));
    let big = journal.commit(put(&[A, B], batch(10, 1, 30_000)), None).unwrap();
    // Behind it in B, so it waits; and what the same reader acknowledges later waits with it.
    let mut rejected = put(&[B], batch(5, 1, 10));
    rejected.acks = ack(A, R0, 5).acks;
    let rejected = journal.commit(rejected, None).unwrap();
    let later = journal.commit(ack(A, R0, 9), None).unwrap();
    let other = journal.commit(ack(A, R1, 9), None).unwrap();
    assert!(other.wait(Some(LIMIT)).unwrap().is_ok());
    for waits in [&big, &rejected, &later] {
        assert!(waits.wait(Some(Duration::ZERO)).is_none());
    }
    disk.faults(|faults| faults.capacity = None);
    for ticket in [big, rejected, later] {
        ticket.wait(Some(LIMIT)).unwrap().unwrap();
    }
}

#[test]
fn what_a_stop_on_a_full_disk_gives_up_is_not_remembered() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    let remember = |key: &[u8]| {
        let mut writes = StateWrites::new("dedup".into());
        writes.push(StateOp { key, value: Some(b"1"), expiry: None });
        vec![writes]
    };
    let mut first = put(&[A], batch(0, 1, 10));
    first.state = remember(b"kept");
    durable(&journal, first);
    disk.faults(|faults| faults.capacity = Some(0));
    let mut second = put(&[A], batch(1, 1, 30_000));
    second.state = remember(b"given up");
    let second = journal.commit(second, None).unwrap();
    while journal.status().waiting_for.is_none() {
        std::thread::yield_now();
    }
    journal.close().unwrap();
    assert!(matches!(second.wait(None), Some(Err(CommitError::Failed(_)))));
    disk.faults(|faults| faults.capacity = None);
    let journal = open(&disk);
    let mut known = Vec::new();
    journal.state().unwrap().scan("dedup", b"", None, 0, &mut |key, _| {
        known.push(key.to_vec());
        true
    });
    assert_eq!(known, [b"kept".to_vec()]);
}

#[test]
fn a_journal_that_was_begun_on_a_full_disk_and_never_finished_opens() {
    let disk = MemDisk::default();
    disk.faults(|faults| faults.capacity = Some(0));
    drop(open(&disk));
    // The first segment has a name, and nothing of it is on the disk.
    disk.add("/j/0000000000000001.seg", vec![0; 16 << 10]);
    disk.faults(|faults| faults.capacity = None);
    let journal = open(&disk);
    assert_eq!(durable(&journal, put(&[A], batch(0, 1, 1))), 1);
}

#[test]
fn a_page_that_cannot_be_read_costs_its_commits_only() {
    let disk = backlog(30);
    let path = segments(&disk)[0].clone();
    disk.spoil(&path, 0);
    let journal = open(&disk);
    let mut reader = journal.open_reader(A, R0);
    let (mut there, mut failures) = (Vec::new(), 0);
    loop {
        match reader.next(Duration::ZERO) {
            Ok(Some(delivery)) => there.extend(numbers(&delivery)),
            Ok(None) => break,
            Err(_) => failures += 1,
        }
        assert!(failures < 10, "it does not come to an end");
    }
    // Header, checkpoint and the first commits lie in that page.
    assert!(failures > 0 && there.len() >= 26 && there.last() == Some(&29), "{there:?}");
    assert_eq!(there.len() as u64 + journal.status().damaged_commits, 30);
}

#[test]
fn a_read_only_disk_is_told_and_nothing_is_lost_by_it() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    durable(&journal, put(&[A], batch(0, 1, 10)));
    for call in [Call::Write, Call::Create, Call::Sync, Call::Unlink, Call::Rename, Call::Preallocate] {
        arm(&disk, call, 0, 100_000, EROFS);
    }
    let ticket = journal.commit(put(&[A], batch(1, 1, 10)), None).unwrap();
    let outcome = ticket.wait(Some(LIMIT)).unwrap();
    let words = outcome.unwrap_err().to_string();
    assert!(words.contains("/j") && words.contains("Read-only file system"), "{words}");
    drop(journal);
    let error = open_with(&disk, config(), specs()).err().unwrap().to_string();
    assert!(error.contains("Read-only file system"), "{error}");
    disk.faults(|faults| faults.armed.clear());
    assert_eq!(drain(open(&disk).open_reader(A, R0).as_mut())[0], 0);
}

#[test]
fn a_new_directory_is_made_with_those_above_it() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("a/b/c");
    OsDisk.create_dir(&deep).unwrap();
    OsDisk.create_dir(&deep).unwrap();
    let config = FileConfig { dir: deep.clone(), ..config() };
    FileJournal::open(config, specs(), Arc::new(OsDisk), Arc::new(OsClock)).unwrap();
    assert!(deep.join("snapshot.a").is_file());
}
