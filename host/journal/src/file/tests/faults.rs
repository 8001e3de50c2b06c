//! A disk that is full, and a disk that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::basic::*;
use super::disk::MemDisk;
use super::sim::world::SimClock;
use crate::file::{FileConfig, FileJournal, readers};
use crate::{Ack, Commit, CommitError, Journal, limits};

#[test]
fn an_error_on_sync_moves_on_to_a_fresh_segment() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    let mut reader = journal.open_reader(A, R0);
    for n in 0..20 {
        if n % 5 == 3 {
            disk.faults(|faults| faults.sync_errors = 1);
        }
        if n % 7 == 3 {
            disk.faults(|faults| faults.write_errors = 1);
        }
        durable(&journal, put(&[A], batch(n, 1, 10)));
    }
    assert_eq!(drain(reader.as_mut()), (0..20).collect::<Vec<_>>());
    // Four failed syncs and three failed writes, two of them of one group: no segment was used again.
    assert!(journal.status().segments >= 7, "{}", journal.status().segments);
    drop(journal);
    disk.crash(3);
    let journal = open(&disk);
    assert_eq!(drain(journal.open_reader(A, R1).as_mut()), (0..20).collect::<Vec<_>>());
    assert_eq!(journal.status().damaged_commits, 0);
    assert_eq!(journal.status().last_commit, 20);
}

#[test]
fn a_dead_disk_fails_the_journal() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    durable(&journal, put(&[A], batch(0, 1, 10)));
    disk.faults(|faults| faults.sync_errors = 1000);
    let ticket = journal.commit(put(&[A], batch(1, 1, 10)), None).unwrap();
    assert!(matches!(ticket.wait(Some(LIMIT)), Some(Err(CommitError::Failed(_)))));
    assert!(matches!(journal.commit(put(&[A], batch(1, 1, 10)), None), Err(CommitError::Failed(_))));
    assert!(matches!(journal.close(), Err(CommitError::Failed(_))));
    drop(journal);
    disk.faults(|faults| faults.sync_errors = 0);
    disk.crash(1);
    assert_eq!(drain(open(&disk).open_reader(A, R0).as_mut())[0], 0);
}

#[test]
fn short_writes_are_completed() {
    let disk = MemDisk::default();
    disk.faults(|faults| faults.short_writes = Some(37));
    let journal = open(&disk);
    for n in 0..20 {
        durable(&journal, put(&[A], batch(n * 10, 10, 30)));
    }
    drop(journal);
    assert_eq!(drain(open(&disk).open_reader(A, R0).as_mut()).len(), 200);
}

#[test]
fn a_full_disk_makes_puts_wait_and_lets_acks_pass() {
    let disk = MemDisk::default();
    let config = FileConfig { reserve_bytes: 24 << 10, ..config() };
    let journal = open_with(&disk, config.clone(), vec![spec("a", &["r0"], u64::MAX)]).unwrap();
    disk.faults(|faults| faults.capacity = Some(400 << 10));
    let mut tickets = Vec::new();
    let mut n = 0;
    // Until the disk is full and some more wait.
    while journal.status().waiting_for.is_none() {
        let mut commit = put(&[A], batch(n, 1, 2000));
        commit.positions.push((b"source".to_vec(), n.to_le_bytes().to_vec()));
        tickets.push(journal.commit(commit, None).unwrap());
        n += 1;
        std::thread::sleep(Duration::from_micros(300));
    }
    assert!(journal.status().waiting_for.unwrap().contains("space on the disk"));
    for _ in 0..5 {
        tickets.push(journal.commit(put(&[A], batch(n, 1, 2000)), None).unwrap());
        n += 1;
    }
    // A source's position alone keeps its place behind the puts.
    let alone = Commit { positions: vec![(b"source".to_vec(), b"late".to_vec())], ..Commit::default() };
    let alone = journal.commit(alone, None).unwrap();
    let before = journal.status().last_commit;
    // More acknowledgements than the rest of the segment has room for: the reserve is used.
    for nth in 1..=60 {
        let ack = Ack { channel: A, reader: R0, cursor: nth / 30 };
        let mark = (b"sink".to_vec(), vec![nth as u8; 100]);
        let commit = Commit { acks: vec![ack], positions: vec![mark], ..Commit::default() };
        let ticket = journal.commit(commit, None).unwrap();
        ticket.wait(Some(LIMIT)).expect("acks go on").unwrap();
    }
    assert!(journal.status().waiting_for.is_some());
    {
        // Whoever tries the puts again makes the file, to see whether it gets its space. Between two tries it is not there.
        let writer = journal.writer.as_ref().unwrap().lock();
        assert!(!writer.reserve && !disk.names().contains(&"reserve".to_string()), "the reserve is in use");
    }
    assert_eq!(journal.status().last_commit, before + 60);
    assert!(alone.wait(Some(Duration::ZERO)).is_none());
    assert!(tickets.last().unwrap().wait(Some(Duration::ZERO)).is_none());
    // Reading and acknowledging makes space, and everything arrives, once and in order.
    let mut reader = journal.open_reader(A, R0);
    let mut seen = 2;
    while seen < n {
        let delivery = reader.next(LIMIT).unwrap().expect("in time");
        assert_eq!(numbers(&delivery), (seen..seen + delivery.batch.rows() as u64).collect::<Vec<_>>());
        seen += delivery.batch.rows() as u64;
        durable(&journal, ack(A, R0, seen));
    }
    for ticket in &tickets {
        ticket.wait(Some(LIMIT)).expect("in time").unwrap();
    }
    alone.wait(Some(LIMIT)).expect("in time").unwrap();
    durable(&journal, put(&[A], batch(n, 1, 1)));
    // It is said behind the commit that found space, which is one before this one.
    assert!(journal.status().waiting_for.is_none());
    assert!(disk.names().contains(&"reserve".to_string()), "the reserve is made again: {:?}", disk.names());
    drop(journal);
    disk.crash(5);
    let journal = open_with(&disk, config, vec![spec("a", &["r0"], u64::MAX)]).unwrap();
    assert_eq!(journal.position(b"source").unwrap(), b"late");
    assert_eq!(drain(journal.open_reader(A, R0).as_mut()), [n]);
}

/// What acknowledgements leave of the reserve is not for puts, however often they are tried meanwhile.
#[test]
fn puts_that_are_tried_again_take_nothing_of_the_reserve() {
    let (disk, clock) = (MemDisk::default(), Arc::new(SimClock::new()));
    let config = FileConfig { reserve_bytes: 24 << 10, ..config() };
    let specs = vec![spec("a", &["r0"], u64::MAX)];
    let (journal, mut writer) =
        FileJournal::prepare(config, specs, Arc::new(disk.clone()), clock.clone()).unwrap();
    disk.faults(|faults| faults.capacity = Some(400 << 10));
    let mut n = 0_u64;
    while journal.status().waiting_for.is_none() {
        let position = (b"source".to_vec(), n.to_le_bytes().to_vec());
        let commit = Commit { positions: vec![position], ..put(&[A], batch(n, 1, 2000)) };
        journal.commit(commit, None).unwrap();
        writer.work().unwrap();
        n += 1;
    }
    let before = journal.status().last_commit;
    for nth in 1..=60 {
        clock.pass(limits::FULL_RETRY_MAX);
        let mark = (b"sink".to_vec(), vec![nth as u8; 100]);
        let ticket = journal.commit(Commit { positions: vec![mark], ..ack(A, R0, nth / 30) }, None).unwrap();
        writer.work().unwrap();
        assert!(matches!(ticket.wait(Some(Duration::ZERO)), Some(Ok(_))), "acknowledgement {nth}");
    }
    assert_eq!(journal.status().last_commit, before + 60);
    assert!(journal.status().waiting_for.is_some());
}

/// Who has something for the committer calls it once, perhaps a moment before it begins to wait for space.
#[test]
fn what_came_before_a_pause_ends_it() {
    let (disk, clock) = (MemDisk::default(), Arc::new(SimClock::new()));
    let (journal, mut writer) =
        FileJournal::prepare(config(), specs(), Arc::new(disk.clone()), clock).unwrap();
    disk.faults(|faults| faults.capacity = Some(0));
    let waiting = journal.commit(put(&[A], batch(0, 1, 10)), None).unwrap();
    let mut pause = writer.work().unwrap().expect("the disk is full");
    pause.left = LIMIT;
    let is_ended = || {
        let begun = Instant::now();
        writer.wait(&pause);
        begun.elapsed() < LIMIT
    };
    journal.shared.saved.store(true, Ordering::Release);
    assert!(is_ended(), "a file of the plugins' state is written");
    journal.shared.saved.store(false, Ordering::Release);
    let _reply = readers::ask(&journal.shared, A, "late").unwrap();
    assert!(is_ended(), "a reader comes");
    assert!(waiting.wait(Some(Duration::ZERO)).is_none());
}

/// What waits for space is nothing of which it is a share.
#[test]
fn an_acknowledgement_counts_bytes_that_are_there() {
    let disk = MemDisk::default();
    let specs = || vec![spec("a", &["r0"], u64::MAX)];
    let journal = open_with(&disk, config(), specs()).unwrap();
    durable(&journal, put(&[A], batch(0, 2, 10)));
    let bytes = journal.status().channels[0].bytes;
    disk.faults(|faults| faults.capacity = Some(0));
    let waiting = journal.commit(put(&[A], batch(2, 1, 20_000)), None).unwrap();
    durable(&journal, ack(A, R0, 1));
    drop(journal);
    assert!(waiting.wait(Some(Duration::ZERO)).unwrap().is_err());
    disk.faults(|faults| faults.capacity = None);
    assert_eq!(open_with(&disk, config(), specs()).unwrap().status().channels[0].bytes, bytes / 2);
}

#[test]
fn space_that_others_free_is_noticed_and_close_does_not_hang() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    disk.faults(|faults| faults.capacity = Some(0));
    let wait = journal.commit(put(&[A], batch(0, 1, 10)), None).unwrap();
    assert!(wait.wait(Some(Duration::from_millis(50))).is_none());
    disk.faults(|faults| faults.capacity = None);
    wait.wait(Some(LIMIT)).expect("in time").unwrap();
    disk.faults(|faults| faults.capacity = Some(0));
    let stuck = journal.commit(put(&[A], batch(1, 1, 100_000)), None).unwrap();
    journal.close().unwrap();
    assert!(matches!(stuck.wait(Some(Duration::ZERO)), Some(Err(CommitError::Failed(_)))));
    drop(journal);
    disk.faults(|faults| faults.capacity = None);
    assert_eq!(drain(open(&disk).open_reader(A, R0).as_mut()), [0]);
}

#[test]
fn commits_of_many_threads_share_syncs_and_keep_their_order() {
    const THREADS: usize = 8;
    let disk = MemDisk::default();
    let journal = open(&disk);
    let next = AtomicU64::new(0);
    // Nobody writes before each thread has handed its first commit in: these are one group, however the threads are run.
    let held = journal.writer.as_ref().unwrap().lock();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..50 {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    durable(&journal, put(&[A, B], batch(n, 1, 10)));
                }
            });
        }
        until("a commit of each", || journal.shared.state.lock().queue.len() == THREADS);
        drop(held);
    });
    let mut a = drain(journal.open_reader(A, R0).as_mut());
    assert_eq!(a, drain(journal.open_reader(B, R0).as_mut()), "one order for all channels");
    a.sort();
    assert_eq!(a, (0..400).collect::<Vec<_>>());
    // At least the first group was one sync.
    assert!(journal.status().syncs <= 400 - (THREADS as u64 - 1), "{}", journal.status().syncs);
}
