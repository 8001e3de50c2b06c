//! One call of the disk fails, once, at a place that is known: the journal goes on, and after a power cut everything is there, once.
//!
//! `sim` meets these and all others in the middle of everything else; here each has its name.

use std::sync::Arc;
use std::time::Duration;

use super::basic::*;
use super::disk::{Call, Fault, MemDisk};
use super::sim::world::SimClock;
use crate::file::FileJournal;
use crate::file::state::Phase;
use crate::file::writer::Writer;
use crate::{Commit, Journal, StateOp, StateWrites, limits};

const EIO: i32 = 5;

/// What the power leaves is a matter of luck: so often it goes.
const POWER_CUTS: u64 = 10;

/// A journal whose committer takes its turns when the test says so: which call of the disk comes next is known.
struct Stepped {
    disk: MemDisk,
    clock: Arc<SimClock>,
    journal: FileJournal,
    writer: Writer,
    /// Durable ones.
    commits: u64,
    /// Durable ones of the first channel.
    events: u64,
    /// All before this one are acknowledged by both of its readers.
    done: u64,
}

impl Stepped {
    fn new() -> Stepped {
        let (disk, clock) = (MemDisk::default(), Arc::new(SimClock::new()));
        let (journal, mut writer) =
            FileJournal::prepare(config(), specs(), Arc::new(disk.clone()), clock.clone()).unwrap();
        writer.is_stepped = true;
        Stepped { disk, clock, journal, writer, commits: 0, events: 0, done: 0 }
    }

    /// One turn makes it durable, whatever fails.
    fn commit(&mut self, commit: Commit) {
        let ticket = self.journal.commit(commit, None).unwrap();
        self.writer.work().unwrap();
        self.commits += 1;
        let number = ticket.wait(Some(Duration::ZERO)).expect("it is durable").unwrap();
        assert_eq!(number, self.commits);
    }

    /// One event.
    fn put(&mut self, bytes: usize) {
        self.commit(put(&[A], batch(self.events, 1, bytes)));
        self.events += 1;
    }

    /// An event with what a plugin remembers.
    fn put_and_remember(&mut self) {
        let mut writes = StateWrites::new("dedup".into());
        writes.push(StateOp { key: b"key", value: Some(b"1"), expiry: None });
        self.commit(Commit { state: vec![writes], ..put(&[A], batch(self.events, 1, 10)) });
        self.events += 1;
    }

    /// An event behind which a snapshot is due.
    fn put_before_snapshot(&mut self) {
        self.writer.since_snapshot = config().snapshot_every_bytes;
        self.put(10);
    }

    fn acknowledge_all(&mut self) {
        self.done = self.events;
        for reader in [R0, R1] {
            self.commit(ack(A, reader, self.done));
        }
    }

    /// The next such call fails, behind some that do not.
    fn fail(&self, call: Call, behind: u32) {
        self.disk.faults(|faults| faults.armed.push(Fault { call, skip: behind, times: 1, code: EIO }));
    }

    fn has_failed_once(&self) -> bool {
        self.disk.0.lock().faults.fired == 1
    }

    fn segments(&self) -> u64 {
        self.journal.status().segments
    }

    /// The power goes; the journal that is there then.
    fn survives(self, seed: u64) -> Arc<FileJournal> {
        let Stepped { disk, journal, writer, commits, events, done, .. } = self;
        drop((journal, writer));
        disk.crash(seed);
        let journal = open(&disk);
        for reader in [R0, R1] {
            let found = drain(journal.open_reader(A, reader).as_mut());
            assert_eq!(found, (done..events).collect::<Vec<_>>(), "seed {seed}");
        }
        let status = journal.status();
        assert_eq!((status.last_commit, status.damaged_commits), (commits, 0), "seed {seed}");
        assert_eq!(durable(&journal, put(&[A], batch(events, 1, 10))), commits + 1);
        assert_eq!(drain(journal.open_reader(A, R0).as_mut()).last(), Some(&events));
        journal
    }
}

#[test]
fn as_a_segment_is_begun() {
    for call in [Call::Create, Call::Preallocate, Call::Write, Call::Sync, Call::SyncDir] {
        for seed in 0..POWER_CUTS {
            let mut it = Stepped::new();
            it.put(10);
            it.fail(call, 0);
            // More than the first segment has room for.
            it.put(20_000);
            assert!(it.has_failed_once(), "{call:?}");
            assert_eq!(it.segments(), 2, "{call:?}: the one that was given up is none");
            it.put(10);
            it.survives(seed);
        }
    }
}

#[test]
fn as_a_spare_becomes_a_segment() {
    for seed in 0..POWER_CUTS {
        let mut it = Stepped::new();
        while !it.disk.names().iter().any(|name| name.starts_with("spare")) {
            it.put(300);
            it.acknowledge_all();
            assert!(it.events < 400, "no segment was kept");
        }
        it.put(10);
        it.fail(Call::Rename, 0);
        it.put(20_000);
        assert!(it.has_failed_once());
        it.put(10);
        it.survives(seed);
    }
}

#[test]
fn at_the_close() {
    for call in [Call::Open, Call::Len, Call::Write, Call::Sync, Call::Truncate] {
        for seed in 0..POWER_CUTS {
            let mut it = Stepped::new();
            (0..3).for_each(|_| it.put(10));
            it.fail(call, 0);
            it.journal.shared.state.lock().phase = Phase::Closing;
            it.writer.close();
            assert!(it.has_failed_once(), "{call:?}");
            // A last snapshot that is missing is told. Space that stays with the last segment is not.
            assert_eq!(it.journal.close().is_ok(), call == Call::Truncate, "{call:?}");
            it.survives(seed);
        }
    }
}

#[test]
fn in_a_snapshot() {
    // The group before it is written and synced as well.
    for (call, behind) in [(Call::Open, 0), (Call::Len, 0), (Call::Write, 1), (Call::Sync, 1)] {
        for seed in 0..POWER_CUTS {
            let mut it = Stepped::new();
            it.put(10);
            it.put_before_snapshot();
            assert!(it.writer.snapshots.slots.iter().all(Option::is_some));
            it.fail(call, behind);
            it.put_before_snapshot();
            assert!(it.has_failed_once(), "{call:?}");
            assert!(it.writer.snapshots.slots.contains(&None), "{call:?}: it was another call");
            if seed % 2 == 0 {
                it.put_before_snapshot();
                assert!(it.writer.snapshots.slots.iter().all(Option::is_some), "{call:?}");
            }
            it.put(10);
            it.survives(seed);
        }
    }
}

#[test]
fn as_the_names_of_deleted_segments_go() {
    for seed in 0..POWER_CUTS {
        let mut it = Stepped::new();
        while it.segments() < 2 {
            it.put(300);
        }
        it.fail(Call::SyncDir, 0);
        it.acknowledge_all();
        assert!(it.has_failed_once());
        assert_eq!(it.segments(), 1);
        it.put(10);
        it.survives(seed);
    }
}

#[test]
fn as_a_file_of_the_plugins_state_gets_its_name() {
    for call in [Call::Rename, Call::SyncDir] {
        for seed in 0..POWER_CUTS {
            let mut it = Stepped::new();
            // Its file is written in the same turn, and gets its name in the next one.
            it.put_and_remember();
            it.fail(call, 0);
            it.writer.work().unwrap();
            assert!(it.has_failed_once(), "{call:?}");
            if seed % 2 == 0 {
                it.clock.pass(limits::STATE_FILE_RETRY);
                it.put(10);
                it.writer.work().unwrap();
                assert!(it.disk.names().iter().any(|name| name.ends_with(".state")), "it is tried again");
            }
            it.put(10);
            let journal = it.survives(seed);
            let mut known = Vec::new();
            journal.state().unwrap().scan("dedup", b"", None, 0, &mut |key, _| {
                known.push(key.to_vec());
                true
            });
            assert_eq!(known, [b"key".to_vec()], "{call:?}, seed {seed}");
        }
    }
}
