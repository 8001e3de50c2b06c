//! A caller that writes in the committer's place, and the committer beside it: nobody is left asleep, and one writes at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::basic::*;
use super::disk::{Call, MemDisk};
use crate::clock::OsClock;
use crate::file::state::Phase;
use crate::file::writer::Writer;
use crate::file::{FileConfig, FileJournal};
use crate::{Ack, Commit, CommitError, Journal, StateOp, StateWrites};

/// Others get the processor so often, to do what they must not: where the program is right nothing waits for them.
const YIELDS: u32 = 10_000;

/// On a full disk the caller's own acknowledgement passes a put, whose producer called the committer while the put was taken out.
#[test]
fn what_a_caller_leaves_behind_wakes_the_committer() {
    let disk = MemDisk::default();
    let (journal, mut writer) =
        FileJournal::prepare(config(), specs(), Arc::new(disk.clone()), Arc::new(OsClock)).unwrap();
    journal.commit(put(&[A], batch(0, 1, 10)), None).unwrap();
    writer.work().unwrap();
    disk.faults(|faults| faults.capacity = Some(1));
    let writer = Mutex::new(writer);
    let waiting = journal.commit(put(&[A], batch(1, 1, 20_000)), None).unwrap();
    let own = journal.commit(ack(A, R0, 1), None).unwrap();
    let (shared, is_asleep) = (journal.shared.clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let committer = scope.spawn(|| {
            let mut state = shared.state.lock();
            is_asleep.store(true, Ordering::SeqCst);
            shared.work.wait_for(&mut state, LIMIT).timed_out()
        });
        while !is_asleep.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        // It has the lock until it sleeps.
        drop(shared.state.lock());
        Writer::lead(writer.lock());
        assert!(!committer.join().unwrap(), "nobody is woken for what waits");
    });
    assert!(matches!(own.wait(Some(Duration::ZERO)), Some(Ok(2))));
    assert!(waiting.wait(Some(Duration::ZERO)).is_none());
}

/// The one that is woken gets the processor, often that of whoever woke it: it can write at once.
#[test]
fn who_is_woken_may_write() {
    // No snapshot is due, which nobody would wait for.
    let config = FileConfig { snapshot_every_bytes: 1 << 30, ..config() };
    let disk = Arc::new(MemDisk::default());
    let (journal, writer) = FileJournal::prepare(config, specs(), disk, Arc::new(OsClock)).unwrap();
    let writer = Mutex::new(writer);
    for number in 0..200 {
        let bell = journal.shared.state.lock().bell.clone();
        journal.commit(put(&[A], batch(number, 1, 10)), None).unwrap();
        std::thread::scope(|scope| {
            let woken = scope.spawn(|| {
                while !bell.has_rung() {
                    std::thread::yield_now();
                }
                writer.try_lock().is_some()
            });
            Writer::lead(writer.lock());
            assert!(woken.join().unwrap());
        });
    }
}

/// A snapshot, the deletion of segments and the files of the plugins' state are nothing that a durable commit waits for.
#[test]
fn nobody_waits_for_upkeep() {
    type Upkeep = fn(&FileJournal, &mut Writer) -> Commit;
    let snapshot: Upkeep = |_, writer| {
        writer.since_snapshot = config().snapshot_every_bytes;
        put(&[A], batch(1, 1, 10))
    };
    let deletion: Upkeep = |journal, writer| {
        let bytes = config().segment_bytes as usize;
        let _unread = journal.commit(put(&[A], batch(1, 1, bytes)), None).unwrap();
        writer.work().unwrap();
        let acks = [R0, R1].map(|reader| Ack { channel: A, reader, cursor: 2 });
        Commit { acks: acks.to_vec(), ..Commit::default() }
    };
    let state: Upkeep = |_, _| {
        let mut writes = StateWrites::new("plugin".into());
        writes.push(StateOp { key: b"key", value: Some(b"value"), expiry: None });
        Commit { state: vec![writes], ..put(&[A], batch(1, 1, 10)) }
    };
    for (upkeep, begins_with) in [(snapshot, Call::Open), (deletion, Call::Open), (state, Call::Create)] {
        let disk = MemDisk::default();
        let (journal, mut writer) =
            FileJournal::prepare(config(), specs(), Arc::new(disk.clone()), Arc::new(OsClock)).unwrap();
        let first = journal.commit(put(&[A], batch(0, 1, 10)), None).unwrap();
        writer.turn().unwrap();
        assert!(!writer.bells.is_empty(), "it rings when others may write");
        writer.bells.ring();
        assert!(matches!(first.wait(Some(Duration::ZERO)), Some(Ok(_))));
        let commit = upkeep(&journal, &mut writer);
        let ticket = journal.commit(commit, None).unwrap();
        disk.faults(|faults| faults.panics = Some(begins_with));
        assert!(writer.turn().is_err(), "{begins_with:?}: there was nothing to do");
        assert!(writer.bells.is_empty(), "{begins_with:?}");
        assert!(matches!(ticket.wait(Some(Duration::ZERO)), Some(Ok(_))));
    }
}

/// The committer has seen a commit, and waits for the caller that writes, which finds that the disk fails.
#[test]
fn nobody_writes_after_a_failure() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    durable(&journal, put(&[A], batch(0, 1, 10)));
    let writer = journal.writer.clone().unwrap();
    let mut held = writer.lock();
    let ticket = journal.commit(put(&[A], batch(1, 1, 10)), None).unwrap();
    (0..YIELDS).for_each(|_| std::thread::yield_now());
    // A snapshot is due.
    held.since_snapshot = config().snapshot_every_bytes;
    held.fail(&"as the test wants".into());
    let syncs = || disk.0.lock().faults.syncs;
    let before = syncs();
    drop(held);
    assert!(matches!(ticket.wait(Some(LIMIT)), Some(Err(CommitError::Failed(_)))));
    assert!(matches!(journal.close(), Err(CommitError::Failed(_))));
    assert_eq!(syncs(), before);
}

/// The same while the journal is being closed: a last snapshot would make its failure an orderly end.
#[test]
fn nobody_closes_what_has_failed() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    durable(&journal, put(&[A], batch(0, 1, 10)));
    let writer = journal.writer.clone().unwrap();
    let mut held = writer.lock();
    std::thread::scope(|scope| {
        let closed = scope.spawn(|| journal.close());
        while journal.shared.state.lock().phase == Phase::Open {
            std::thread::yield_now();
        }
        // The committer finds nothing to write, and waits for the writer.
        (0..YIELDS).for_each(|_| std::thread::yield_now());
        let syncs = || disk.0.lock().faults.syncs;
        let before = syncs();
        held.fail(&"as the test wants".into());
        drop(held);
        let outcome = closed.join().unwrap();
        assert!(matches!(outcome, Err(CommitError::Failed(_))), "{outcome:?}");
        assert_eq!(syncs(), before);
    });
}

/// What it may have left half done is written by nobody, also if the caller's thread goes on; whoever waits is told.
#[test]
fn a_panic_of_whoever_writes_fails_the_journal() {
    for is_caller in [false, true] {
        let disk = MemDisk::default();
        let journal = open(&disk);
        durable(&journal, put(&[A], batch(0, 1, 10)));
        disk.faults(|faults| faults.panics = Some(Call::Write));
        let commit = put(&[A], batch(1, 1, 10));
        let outcome = match is_caller {
            true => journal.commit_and_wait(commit, None),
            false => journal.commit(commit, None).unwrap().wait(Some(LIMIT)).expect("in time"),
        };
        disk.faults(|faults| faults.panics = None);
        let told = |outcome: &Result<u64, CommitError>| match outcome {
            Err(CommitError::Failed(reason)) => reason.contains("panicked (a bug of Flumen)"),
            _ => false,
        };
        assert!(told(&outcome), "{outcome:?}");
        let next = journal.commit_and_wait(put(&[A], batch(1, 1, 10)), None);
        assert!(told(&next), "{next:?}");
        assert!(told(&journal.close().map(|()| 0)));
        drop(journal);
        assert_eq!(drain(open(&disk).open_reader(A, R0).as_mut()), [0]);
    }
}

/// Or it would say that all is durable, and let go of the directory, while the first one still writes.
#[test]
fn a_second_close_waits_for_the_first() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    durable(&journal, put(&[A], batch(0, 1, 10)));
    let writer = journal.writer.clone().unwrap();
    // The committer does not come to an end.
    let held = writer.lock();
    std::thread::scope(|scope| {
        let close = || {
            let outcome = journal.close();
            (outcome.is_ok(), journal.shared.state.lock().phase.clone())
        };
        let first = scope.spawn(close);
        while journal.committer.try_lock().is_some_and(|committer| committer.is_some()) {
            std::thread::yield_now();
        }
        let second = scope.spawn(close);
        for _ in 0..YIELDS {
            std::thread::yield_now();
        }
        assert!(!second.is_finished());
        drop(held);
        for closed in [first, second] {
            assert_eq!(closed.join().unwrap(), (true, Phase::Closed(None)));
        }
    });
    open(&disk);
}
