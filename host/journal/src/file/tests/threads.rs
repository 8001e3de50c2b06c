//! The journal with its own thread, in full flight when it ends: what the simulation, which takes its steps one by one, cannot show.
//!
//! The promise in one sentence: after any end the journal is what it was after some beginning of the commits that were handed in, and
//! no commit that was acknowledged is missing from it.

use std::collections::BTreeMap;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::basic::*;
use super::disk::MemDisk;
use super::sim::truth::{LATE, Op, READERS, Truth};
use super::sim::world::{keys, small, state_of};
use crate::file::{Compression, FileConfig, FileJournal};
use crate::{CommitError, Journal, Ticket};

/// Runs, of some ends each.
const RUNS: u64 = 150;

/// Commits between two ends, at most: their marks differ (see [`Op`]).
const COMMITS_MAX: usize = 30;

/// Of a commit that was waited for.
struct Known(Result<u64, CommitError>);

impl Ticket for Known {
    fn wait(&self, _: Option<Duration>) -> Option<Result<u64, CommitError>> {
        Some(self.0.clone())
    }
}

struct Run {
    random: SmallRng,
    disk: MemDisk,
    journal: Arc<FileJournal>,
    /// Before what is on its way.
    truth: Truth,
    commits: u64,
    on_their_way: Vec<(Op, Box<dyn Ticket>)>,
    next_event: u64,
    next_serial: u64,
}

fn open_as(random: &mut SmallRng, disk: &MemDisk) -> Arc<FileJournal> {
    let compression = [Compression::None, Compression::Lz4, Compression::Zstd][random.random_range(0..3)];
    let config = FileConfig { compression, keys: keys(random.random_range(0..2)), ..small() };
    open_with(disk, config, specs()).unwrap()
}

impl Run {
    fn new(seed: u64) -> Run {
        let (mut random, disk) = (SmallRng::seed_from_u64(seed), MemDisk::default());
        let journal = open_as(&mut random, &disk);
        Run {
            random,
            disk,
            journal,
            truth: Truth::default(),
            commits: 0,
            on_their_way: Vec::new(),
            next_event: 0,
            next_serial: 1,
        }
    }

    fn op(&mut self) -> Op {
        let mut op = Op { serial: self.next_serial, ..Op::default() };
        self.next_serial += 1;
        if self.random.random_bool(0.6) {
            let rows = self.random.random_range(1..20);
            op.put = Some((
                self.random.random_range(1..4),
                self.next_event,
                rows,
                self.random.random_range(0..400),
            ));
            self.next_event += rows;
        }
        if self.random.random_bool(0.4) {
            // Only what is durable can be acknowledged.
            let which = self.random.random_range(0..LATE);
            let head = self.truth.channels[usize::from(READERS[which].0.0)].len() as u64;
            op.ack = Some((which, self.random.random_range(self.truth.cursors[which]..=head)));
        }
        if self.random.random_bool(0.3) {
            op.position = Some((self.random.random_range(0..4), self.random.random()));
        }
        if self.random.random_bool(0.4) {
            let (plugin, key, count) = (
                self.random.random_range(0..2),
                self.random.random_range(0..12),
                self.random.random_range(1..9),
            );
            op.remember = Some((plugin, key, count, self.random.random()));
        }
        op
    }

    fn commit_some(&mut self) {
        for _ in 0..self.random.random_range(0..COMMITS_MAX) {
            let op = self.op();
            if self.random.random_bool(0.2) {
                let outcome = self.journal.commit_and_wait(op.commit(), None);
                let is_over = outcome.is_err();
                self.on_their_way.push((op, Box::new(Known(outcome))));
                if is_over {
                    return;
                }
                continue;
            }
            let Ok(ticket) = self.journal.commit(op.commit(), None) else { return };
            self.on_their_way.push((op, ticket));
        }
    }

    /// A close, a process that ends, or a power cut: in the middle of it all.
    fn end(&mut self) {
        let how = self.random.random_range(0..5);
        if how == 4 {
            let power = self.random.random_range(0..30);
            self.disk.faults(|faults| faults.power_left = Some(power));
        }
        self.commit_some();
        if self.random.random_bool(0.5) {
            self.on_their_way.iter().for_each(|(_, ticket)| drop(ticket.wait(None)));
        }
        if how == 0 {
            self.journal.close().unwrap();
        }
        // The last one that holds it: it stops where it is.
        self.journal = open_as(&mut SmallRng::seed_from_u64(0), &MemDisk::default());
        if how > 1 {
            self.disk.crash(self.random.random());
        }
        self.journal = open_as(&mut self.random, &self.disk);
        self.meet_survivors();
    }

    fn meet_survivors(&mut self) {
        let ops = std::mem::take(&mut self.on_their_way);
        let is_acknowledged = |(_, ticket): &&(Op, Box<dyn Ticket>)| ticket.wait(None).unwrap().is_ok();
        let acknowledged = ops.iter().take_while(is_acknowledged).count();
        let survived = (self.journal.status().last_commit - self.commits) as usize;
        assert!(acknowledged <= survived, "{survived} commits are there, {acknowledged} were acknowledged");
        assert!(survived <= ops.len(), "commits are there that nobody handed in");
        ops[..survived].iter().for_each(|(op, _)| self.truth.apply(op));
        self.commits += survived as u64;
        self.check();
    }

    fn check(&self) {
        let positions: BTreeMap<_, _> = self.journal.positions(b"").into_iter().collect();
        assert_eq!(positions, self.truth.positions);
        assert_eq!(state_of(&self.journal), self.truth.state);
        for (which, (channel, reader)) in READERS[..LATE].iter().copied().enumerate() {
            let mut reader = self.journal.open_reader(channel, reader);
            let cursor = self.truth.cursors[which];
            assert_eq!(reader.acknowledged(), cursor, "reader {which}");
            let events = &self.truth.channels[usize::from(channel.0)][cursor as usize..];
            let events: Vec<u64> = events.iter().map(|(event, _)| *event).collect();
            assert_eq!(drain(reader.as_mut()), events, "reader {which}");
        }
        assert_eq!(self.journal.status().damaged_commits, 0);
    }
}

#[test]
fn in_full_flight_the_journal_ends_and_is_what_it_was() {
    for seed in 0..RUNS {
        eprintln!("seed {seed}");
        let mut run = Run::new(seed);
        for _ in 0..6 {
            run.end();
        }
    }
}

/// A close in the middle of callers that write themselves, on a disk that is full soon in every second round: each is answered, and what was acknowledged is there.
#[test]
fn callers_that_write_themselves_are_answered_through_a_close() {
    const CALLERS: u64 = 4;
    for round in 0..100 {
        let disk = MemDisk::default();
        let journal = open(&disk);
        if round % 2 == 0 {
            let capacity = disk.used() + round * 1_000;
            disk.faults(|faults| faults.capacity = Some(capacity));
        }
        let begin = Barrier::new(CALLERS as usize + 1);
        let acknowledged: Vec<u64> = std::thread::scope(|scope| {
            let call = |caller: u64| {
                begin.wait();
                let commits = (0..).map(|n| caller * 1_000_000 + n);
                let is_there =
                    |event: &u64| journal.commit_and_wait(put(&[A], batch(*event, 1, 500)), None).is_ok();
                commits.take_while(is_there).collect::<Vec<_>>()
            };
            let callers: Vec<_> = (0..CALLERS).map(|caller| scope.spawn(move || call(caller))).collect();
            begin.wait();
            // A full disk is told; what was acknowledged is durable either way.
            journal.close().ok();
            callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
        });
        drop(journal);
        disk.faults(|faults| faults.capacity = None);
        let found = drain(open(&disk).open_reader(A, R0).as_mut());
        let mut sorted = found.clone();
        sorted.sort_unstable();
        assert!(acknowledged.iter().all(|event| sorted.binary_search(event).is_ok()), "round {round}");
        sorted.dedup();
        assert_eq!(sorted.len(), found.len(), "round {round}");
    }
}
