//! Two journals on two disks in memory that fill, fail and lose what was not synced. A source remembers in its position how far it is,
//! a plugin the same in its state, and a destination is cut back to the sink's position, as in a pipeline.

mod acknowledgements;
mod close;
mod disks;
mod double;
mod elsewhere;
mod late;
mod replaced;
mod schedules;
mod unread;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use flumen_event::BatchBuilder;

use super::state::Place;
use super::*;
use crate::api::{
    Ack, ChannelId, ChannelSpec, Commit, CommitError, Journal, Put, ReadError, Reader, ReaderId, Ticket,
    Unsaved,
};
use crate::clock::OsClock;
use crate::file::tests::disk::{Call, Fault, MemDisk};
use crate::file::{FileConfig, FileJournal, OpenError};
use crate::memory::{MemoryJournal, MemorySpec, WhenFull};
use crate::source_backed::SourceBackedJournal;
use crate::state::{ByteColumn, StateOp};
use elsewhere::{Elsewhere, Gate};

const MAIN: ChannelId = ChannelId(0);
const OUT: ReaderId = ReaderId(0);
const QUARANTINE: ChannelId = ChannelId(1);
const KEEPER: ReaderId = ReaderId(0);
const SINK: &[u8] = b"sink/out";
const PLUGIN: &str = "counter";
const LIMIT: Duration = Duration::from_secs(60);
const CHECK_INTERVAL: Duration = Duration::from_millis(5);
/// Probes that fail before the primary is left, for tests that count on its not being left without a reason: a probe that hangs for so
/// many intervals counts as well, and on a busy machine a thread may stand still for seconds. A disk that fails is left at once.
const PATIENT: u32 = 1_200;
/// Where it may be left at any time.
const HASTY: u32 = 2;
const EIO: i32 = 5;
const EROFS: i32 = 30;

fn plan(kind: SecondaryKind, fail_after: u32, check_interval: Duration) -> FailoverPlan {
    FailoverPlan {
        kind,
        dir: None,
        check_interval,
        fail_after,
        return_after: 2,
        capacity_events: u64::MAX,
        capacity_bytes: u64::MAX,
        memory_events: u64::MAX,
        memory_bytes: u64::MAX,
    }
}

fn config() -> FileConfig {
    FileConfig {
        dir: "/j".into(),
        segment_bytes: 16 << 10,
        window_bytes: 4 << 10,
        snapshot_every_bytes: 24 << 10,
        reserve_bytes: 64 << 10,
        ..FileConfig::default()
    }
}

fn specs(readers: &[&str]) -> Vec<ChannelSpec> {
    let spec = |name: &str, readers: &[&str]| ChannelSpec {
        name: name.into(),
        readers: readers.iter().map(|reader| (*reader).to_owned()).collect(),
        capacity_events: u64::MAX,
        capacity_bytes: u64::MAX,
    };
    vec![spec("main", readers), spec("quarantine", &["keeper"])]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PrimaryKind {
    File,
    Memory,
    Spillable,
    SourceBacked,
}

fn open_primary(
    kind: PrimaryKind,
    disk: &MemDisk,
    mut specs: Vec<ChannelSpec>,
    unsaved: Option<Unsaved>,
) -> Result<Arc<dyn Journal>, OpenError> {
    let (disk, clock) = (Arc::new(disk.clone()), Arc::new(OsClock));
    match kind {
        PrimaryKind::File => Ok(FileJournal::open(config(), specs, disk, clock)?),
        PrimaryKind::Memory => {
            let channels = vec![MemorySpec { channel: specs.remove(0), full: WhenFull::Wait }];
            Ok(MemoryJournal::reopen(config(), channels, specs, unsaved, disk, clock)?)
        }
        PrimaryKind::Spillable => {
            let channels = vec![overflowing(specs.remove(0))];
            Ok(MemoryJournal::reopen(config(), channels, specs, unsaved, disk, clock)?)
        }
        PrimaryKind::SourceBacked => {
            let channels = vec![specs.remove(0)];
            Ok(SourceBackedJournal::open(config(), channels, specs, disk, clock)?)
        }
    }
}

/// In memory few events; its file holds what the channel does.
fn overflowing(spec: ChannelSpec) -> MemorySpec {
    let full = WhenFull::Overflow { events: spec.capacity_events, bytes: spec.capacity_bytes };
    MemorySpec { channel: ChannelSpec { capacity_events: 50, capacity_bytes: u64::MAX, ..spec }, full }
}

struct World {
    primary: MemDisk,
    secondary: MemDisk,
    kinds: (PrimaryKind, SecondaryKind),
    fail_after: u32,
    check_interval: Duration,
    /// Of the channel `main`.
    readers: &'static [&'static str],
    /// Events that the secondary may hold.
    failover_events: u64,
    /// If the secondary is elsewhere.
    gate: Option<Arc<Gate>>,
    /// Its sink takes what there is while the test waits for something. Where commits wait for sinks there is no other way.
    is_eager: bool,
    /// The user says that the primary was replaced.
    is_replaced: Arc<AtomicBool>,
    journal: Option<Arc<FailoverJournal>>,
    reader: Option<Box<dyn Reader>>,
    /// What each source reads next.
    next: [u64; 2],
    /// Of each source, what it was told is durable.
    durable: [u64; 2],
    tickets: Vec<(usize, u64, Box<dyn Ticket>)>,
    /// The destination: stream and position of each event.
    out: Vec<(u64, u64)>,
}

impl World {
    fn new(primary: PrimaryKind, secondary: SecondaryKind, fail_after: u32) -> World {
        World::probed((primary, secondary), fail_after, CHECK_INTERVAL)
    }

    /// Two file journals; the primary's disk has failed, and events go to the secondary.
    fn away() -> World {
        let mut world = World::new(PrimaryKind::File, SecondaryKind::File, PATIENT);
        world.put(0, 10);
        world.check();
        break_disk(&world.primary, EIO);
        world.put(0, 10);
        world.wait_place("file");
        world
    }

    fn probed(kinds: (PrimaryKind, SecondaryKind), fail_after: u32, check_interval: Duration) -> World {
        let mut world = World::unopened(kinds, fail_after, check_interval, &["out"]);
        world.open().unwrap();
        world
    }

    fn unopened(
        kinds: (PrimaryKind, SecondaryKind),
        fail_after: u32,
        check_interval: Duration,
        readers: &'static [&'static str],
    ) -> World {
        World {
            primary: MemDisk::default(),
            secondary: MemDisk::default(),
            kinds,
            fail_after,
            check_interval,
            readers,
            failover_events: u64::MAX,
            gate: None,
            is_eager: kinds.0 == PrimaryKind::SourceBacked,
            is_replaced: Arc::default(),
            journal: None,
            reader: None,
            next: [0; 2],
            durable: [0; 2],
            tickets: Vec::new(),
            out: Vec::new(),
        }
    }

    fn is_late(&self) -> bool {
        self.kinds.0 == PrimaryKind::SourceBacked
    }

    fn parts(&self) -> Result<Parts, OpenError> {
        let plan = plan(self.kinds.1, self.fail_after, self.check_interval);
        let plan = FailoverPlan { capacity_events: self.failover_events, ..plan };
        let specs = specs(self.readers);
        let channels: Vec<ChannelSpec> = specs.iter().map(|spec| channel_spec(&spec.name, &plan)).collect();
        let (disk, clock) = (Arc::new(self.secondary.clone()), Arc::new(OsClock));
        let secondary: Arc<dyn Journal> = match plan.kind {
            SecondaryKind::File => FileJournal::open(config(), channels, disk, clock)?,
            SecondaryKind::Memory => {
                let spec = |channel| MemorySpec { channel, full: WhenFull::Wait };
                let channels = channels.into_iter().map(spec).collect();
                MemoryJournal::open(config(), channels, Vec::new(), disk, clock)?
            }
            SecondaryKind::Spillable => {
                let channels = channels.into_iter().map(overflowing).collect();
                MemoryJournal::open(config(), channels, Vec::new(), disk, clock)?
            }
            SecondaryKind::Kafka => unreachable!("there is no broker here"),
        };
        let secondary: Arc<dyn Journal> = match &self.gate {
            Some(gate) => Arc::new(Elsewhere::new(secondary, gate.clone())),
            None => secondary,
        };
        let (kind, disk) = (self.kinds.0, self.primary.clone());
        let probe = DiskProbe::new(Arc::new(self.primary.clone()), config().dir, config().segment_bytes);
        let is_replaced = self.is_replaced.clone();
        Ok(Parts {
            name: "test".into(),
            plan,
            dir: config().dir,
            opener: Box::new(move |specs, unsaved| open_primary(kind, &disk, specs, unsaved)),
            is_replaced: Box::new(move || is_replaced.swap(false, Ordering::Relaxed)),
            channels: specs,
            late: usize::from(self.is_late()),
            probe: Box::new(move |has_room| probe.is_good(has_room)),
            secondary,
            clock: Arc::new(OsClock),
        })
    }

    /// As an agent starts: sources and destination begin where the journal says.
    fn open(&mut self) -> Result<(), OpenError> {
        let journal = FailoverJournal::open(self.parts()?)?;
        self.reader = Some(journal.open_reader(MAIN, OUT));
        for stream in 0..2 {
            self.next[stream] = number(journal.position(&source(stream)));
            assert!(self.next[stream] >= self.durable[stream], "what was durable is lost: {stream}");
        }
        self.journal = Some(journal);
        Ok(())
    }

    fn journal(&self) -> &Arc<FailoverJournal> {
        self.journal.as_ref().unwrap()
    }

    /// The destination is cut back to the sink's position; waits for the primary.
    fn recover_sink(&mut self) {
        loop {
            let position = usize::try_from(number(self.journal().position(SINK))).unwrap();
            assert!(position <= self.out.len(), "the destination has what the position says");
            self.out.truncate(position);
            let cursor = self.reader.as_ref().unwrap().acknowledged();
            match self.reader.as_mut().unwrap().seek(cursor) {
                Ok(()) => return,
                // The primary was opened anew meanwhile.
                Err(ReadError::Moved(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The same while everything goes on: if the primary's disk is broken again, somebody mends it.
    fn go_back(&mut self) {
        let (done, waits) = std::sync::mpsc::channel::<()>();
        let disk = self.primary.clone();
        let watch = std::thread::spawn(move || {
            if waits.recv_timeout(Duration::from_millis(300)) == Err(RecvTimeoutError::Timeout) {
                mend(&disk);
            }
        });
        self.recover_sink();
        drop(done);
        watch.join().unwrap();
    }

    /// As an agent's sinks and plugins begin.
    fn recover(&mut self) {
        self.recover_sink();
        for stream in 0..2 {
            let key = [stream as u8];
            let (offsets, data) = ([0, 0, 0, 0, 1, 0, 0, 0], key);
            let keys = ByteColumn::new(&offsets, &data).unwrap();
            let mut value = None;
            let store = self.journal().state().unwrap();
            store.get_many(PLUGIN, &keys, 0, &mut |_, found| value = found.map(<[u8]>::to_vec));
            assert_eq!(number(value), self.next[stream], "state and position of {stream} disagree");
        }
    }

    fn put(&mut self, stream: usize, rows: u64) {
        self.put_of(stream, rows, &[b'x'; 200]);
    }

    fn put_of(&mut self, stream: usize, rows: u64, body: &[u8]) {
        let from = self.next[stream];
        let mut builder = BatchBuilder::with_capacity(rows as usize, 0);
        (from..from + rows).for_each(|row| builder.push(stream as u64, row, 1, body));
        self.next[stream] += rows;
        let value = self.next[stream].to_le_bytes();
        let mut state = StateWrites::new(PLUGIN.into());
        state.push(StateOp { key: &[stream as u8], value: Some(&value), expiry: None });
        let commit = Commit {
            puts: vec![Put { channels: vec![MAIN], batch: builder.finish(Vec::new()).unwrap() }],
            positions: vec![(source(stream), value.to_vec())],
            state: vec![state],
            acks: Vec::new(),
        };
        let until = Instant::now() + LIMIT;
        let wait = if self.is_eager { Duration::from_millis(20) } else { LIMIT };
        let ticket = loop {
            match self.journal().commit(commit.clone(), Some(Instant::now() + wait)) {
                Err(CommitError::Full { .. }) if self.is_eager && Instant::now() < until => {
                    self.take(10);
                }
                taken => break taken.unwrap(),
            }
        };
        self.tickets.push((stream, self.next[stream], ticket));
    }

    /// Whether a commit is told that it has no place, in its time.
    fn finds_no_place(&self) -> bool {
        let commit =
            Commit { puts: vec![Put { channels: vec![MAIN], batch: one_event() }], ..Commit::default() };
        let begin = Instant::now();
        let full = self.journal().commit(commit, Some(begin + Duration::from_millis(50)));
        assert!(begin.elapsed() < LIMIT / 4, "it is not kept from its deadline");
        matches!(full, Err(CommitError::Full { .. }))
    }

    fn internal_place(&self) -> Place {
        self.journal().shared_for_tests().state.lock().place
    }

    fn wait_internal(&mut self, place: Place) {
        self.wait(&format!("{place:?}"), |world| world.internal_place() == place);
    }

    /// Delivers what there is, up to a number of deliveries; true if there was something.
    fn take(&mut self, deliveries: u32) -> bool {
        let mut any = false;
        for _ in 0..deliveries {
            let Some(commit) = self.deliver() else { break };
            any = true;
            match self.journal().commit(commit, None) {
                Ok(ticket) => drop(ticket),
                Err(CommitError::Refused(_)) if self.is_late() => self.go_back(),
                Err(error) => panic!("an acknowledgement failed: {error}"),
            }
        }
        any
    }

    /// Delivers the next; its acknowledgement.
    fn deliver(&mut self) -> Option<Commit> {
        let delivery = match self.reader.as_mut().unwrap().next(Duration::ZERO) {
            Err(ReadError::Moved(_)) if self.is_late() => {
                self.go_back();
                return None;
            }
            delivery => delivery.unwrap()?,
        };
        let (streams, positions) = (delivery.batch.stream(), delivery.batch.position());
        self.out.extend(streams.values().iter().copied().zip(positions.values().iter().copied()));
        Some(Commit {
            acks: vec![Ack { channel: MAIN, reader: OUT, cursor: delivery.next }],
            positions: vec![(SINK.to_vec(), (self.out.len() as u64).to_le_bytes().to_vec())],
            ..Commit::default()
        })
    }

    /// Waits until everything that was put is durable.
    fn wait_durable(&mut self) {
        self.wait("durable", |world| {
            world.settle();
            world.tickets.is_empty()
        });
    }

    /// A clean stop and a start, when everything is in the primary: what waits for it is in no other place.
    fn restart(&mut self) {
        self.wait_durable();
        self.wait("home", |world| {
            let open = {
                let mut state = world.journal().shared_for_tests().state.lock();
                state.look();
                let is_idle = [&state.flights, &state.acks, &state.held].iter().all(|list| list.is_empty());
                state.alive().filter(|_| is_idle && state.place == Place::Home).cloned()
            };
            // One that has failed by itself is opened anew first; one that is about to says so of what comes behind.
            let behind = || Commit { positions: vec![(b"own".to_vec(), vec![1])], ..Commit::default() };
            let ticket = open.and_then(|open| open.journal.commit(behind(), None).ok());
            ticket.is_some_and(|ticket| matches!(ticket.wait(None), Some(Ok(_))))
        });
        self.journal().close().unwrap();
        (self.reader, self.journal) = (None, None);
        self.open().unwrap();
        self.recover();
    }

    /// Waits until `status` says this of the primary.
    fn wait_reason(&mut self, text: &str) {
        self.wait(text, |world| {
            world.journal().status().waiting_for.is_some_and(|reason| reason.contains(text))
        });
    }

    fn settle(&mut self) {
        for (stream, next, ticket) in std::mem::take(&mut self.tickets) {
            match ticket.wait(Some(Duration::ZERO)) {
                Some(Ok(_)) => self.durable[stream] = self.durable[stream].max(next),
                Some(Err(error)) => panic!("a commit failed: {error}"),
                None => self.tickets.push((stream, next, ticket)),
            }
        }
    }

    fn crash(&mut self, seed: u64) {
        self.settle();
        (self.reader, self.journal) = (None, None);
        self.tickets.clear();
        self.primary.crash(seed);
        self.secondary.crash(seed + 1);
    }

    fn place(&self) -> String {
        self.journal().status().failover.unwrap()
    }

    fn wait(&mut self, what: &str, mut is_met: impl FnMut(&mut World) -> bool) {
        let until = Instant::now() + LIMIT;
        while !is_met(self) {
            if self.is_eager && self.reader.is_some() {
                self.take(10);
            }
            let (out, next) = (self.out.len(), self.next);
            if Instant::now() >= until && std::env::var("FLUMEN_FAILOVER_TRACE").is_ok() {
                for stream in 0..2 {
                    let missing =
                        (0..next[stream as usize]).filter(|row| !self.out.contains(&(stream, *row)));
                    eprintln!("missing of {stream}: {:?}", missing.collect::<Vec<_>>());
                }
            }
            assert!(Instant::now() < until, "{what}: {out} of {next:?}: {:?}", self.journal().status());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn wait_place(&mut self, place: &str) {
        self.wait(place, |world| world.place() == place);
    }

    /// Everything is delivered, once, each stream in its order.
    fn check(&mut self) {
        self.wait("tickets", |world| {
            world.settle();
            world.tickets.is_empty()
        });
        let all = self.next[0] + self.next[1];
        self.wait("deliveries", |world| !world.take(100) && world.out.len() as u64 >= all);
        for stream in 0..2 {
            let own = self.out.iter().filter(|(of, _)| *of == stream as u64).map(|(_, position)| *position);
            let own: Vec<u64> = own.collect();
            assert_eq!(own, (0..self.next[stream]).collect::<Vec<_>>(), "stream {stream}");
        }
    }
}

fn one_event() -> flumen_event::Batch {
    let mut builder = BatchBuilder::with_capacity(1, 0);
    builder.push(9, 0, 1, b"x");
    builder.finish(Vec::new()).unwrap()
}

fn source(stream: usize) -> Vec<u8> {
    format!("source/{stream}").into_bytes()
}

fn number(value: Option<Vec<u8>>) -> u64 {
    value.map_or(0, |value| u64::from_le_bytes(value.try_into().unwrap()))
}

fn break_disk(disk: &MemDisk, code: i32) {
    let all = [Call::Write, Call::Sync, Call::Create, Call::Preallocate, Call::Rename, Call::SyncDir];
    let fault = |call| Fault { call, skip: 0, times: u32::MAX, code };
    disk.faults(|faults| faults.armed = all.into_iter().map(fault).collect());
}

fn mend(disk: &MemDisk) {
    disk.faults(|faults| {
        faults.armed.clear();
        faults.capacity = None;
    });
}
