//! Two journals on two disks in memory that fill, fail and lose what was not synced. A source remembers in its position how far it is,
//! a plugin the same in its state, and a destination is cut back to the sink's position, as in a pipeline.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flumen_event::BatchBuilder;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::api::{
    Ack, ChannelId, ChannelSpec, Commit, CommitError, Journal, Put, Reader, ReaderId, Ticket, Unsaved,
};
use crate::clock::OsClock;
use crate::file::tests::disk::{Call, Fault, MemDisk};
use crate::file::{FileConfig, FileJournal, OpenError};
use crate::memory::{MemoryJournal, MemorySpec, WhenFull};
use crate::state::{ByteColumn, StateOp};

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

fn specs() -> Vec<ChannelSpec> {
    let spec = |name: &str, reader: &str| ChannelSpec {
        name: name.into(),
        readers: vec![reader.into()],
        capacity_events: u64::MAX,
        capacity_bytes: u64::MAX,
    };
    vec![spec("main", "out"), spec("quarantine", "keeper")]
}

#[derive(Debug, Clone, Copy)]
enum PrimaryKind {
    File,
    Spillable,
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
        PrimaryKind::Spillable => {
            let channel = ChannelSpec { capacity_events: 50, ..specs.remove(0) };
            let full = WhenFull::Overflow { events: u64::MAX, bytes: u64::MAX };
            let channels = vec![MemorySpec { channel, full }];
            Ok(MemoryJournal::reopen(config(), channels, specs, unsaved, disk, clock)?)
        }
    }
}

struct World {
    primary: MemDisk,
    secondary: MemDisk,
    kinds: (PrimaryKind, SecondaryKind),
    fail_after: u32,
    check_interval: Duration,
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

    fn probed(kinds: (PrimaryKind, SecondaryKind), fail_after: u32, check_interval: Duration) -> World {
        let mut world = World {
            primary: MemDisk::default(),
            secondary: MemDisk::default(),
            kinds,
            fail_after,
            check_interval,
            is_replaced: Arc::default(),
            journal: None,
            reader: None,
            next: [0; 2],
            durable: [0; 2],
            tickets: Vec::new(),
            out: Vec::new(),
        };
        world.open().unwrap();
        world
    }

    fn parts(&self) -> Result<Parts, OpenError> {
        let plan = plan(self.kinds.1, self.fail_after, self.check_interval);
        let channels: Vec<ChannelSpec> = specs().iter().map(|spec| channel_spec(&spec.name, &plan)).collect();
        let (disk, clock) = (Arc::new(self.secondary.clone()), Arc::new(OsClock));
        let secondary: Arc<dyn Journal> = match plan.kind {
            SecondaryKind::File => FileJournal::open(config(), channels, disk, clock)?,
            SecondaryKind::Memory => {
                let spec = |channel| MemorySpec { channel, full: WhenFull::Wait };
                let channels = channels.into_iter().map(spec).collect();
                MemoryJournal::open(config(), channels, Vec::new(), disk, clock)?
            }
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
            channels: specs(),
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
    fn recover(&mut self) {
        let position = number(self.journal().position(SINK));
        self.out.truncate(usize::try_from(position).unwrap());
        let cursor = self.reader.as_ref().unwrap().acknowledged();
        self.reader.as_mut().unwrap().seek(cursor).unwrap();
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
        let from = self.next[stream];
        let mut builder = BatchBuilder::with_capacity(rows as usize, 0);
        (from..from + rows).for_each(|row| builder.push(stream as u64, row, 1, &[b'x'; 200]));
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
        let ticket = self.journal().commit(commit, Some(Instant::now() + LIMIT)).unwrap();
        self.tickets.push((stream, self.next[stream], ticket));
    }

    /// Delivers what there is, up to a number of deliveries; true if there was something.
    fn take(&mut self, deliveries: u32) -> bool {
        let mut any = false;
        for _ in 0..deliveries {
            let Some(commit) = self.deliver() else { break };
            any = true;
            drop(self.journal().commit(commit, None).unwrap());
        }
        any
    }

    /// Delivers the next; its acknowledgement.
    fn deliver(&mut self) -> Option<Commit> {
        let delivery = self.reader.as_mut().unwrap().next(Duration::ZERO).unwrap()?;
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
            let mut state = world.journal().shared_for_tests().state.lock();
            state.look();
            let is_idle = [&state.flights, &state.acks, &state.held].iter().all(|list| list.is_empty());
            is_idle && state.alive().is_some() && state.place == super::state::Place::Home
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

/// Events that waited for the full disk are in doubt, and are there once; its sinks go on meanwhile.
#[test]
fn a_full_disk_is_left_and_its_sinks_go_on() {
    for (primary, secondary) in [
        (PrimaryKind::File, SecondaryKind::File),
        (PrimaryKind::File, SecondaryKind::Memory),
        (PrimaryKind::Spillable, SecondaryKind::File),
    ] {
        let mut world = World::new(primary, secondary, PATIENT);
        (0..40).for_each(|_| world.put(0, 10));
        world.check();
        (0..40).for_each(|_| world.put(1, 10));
        world.wait("durable", |world| {
            world.settle();
            world.tickets.is_empty()
        });
        world.primary.faults(|faults| faults.capacity = Some(0));
        (0..60).for_each(|_| world.put(0, 10));
        world.wait_place(secondary.word());
        (0..40).for_each(|_| world.put(1, 10));
        let put = world.next;
        world.wait("durable in the secondary", |world| {
            world.settle();
            world.durable == put
        });
        assert!(world.take(10), "what is in the primary is delivered");
        let status = world.journal().status();
        assert_eq!(status.failovers, 1);
        assert!(status.waiting_for.unwrap().contains("space on the disk"));
        mend(&world.primary);
        world.wait_place("primary");
        world.put(0, 10);
        world.check();
        assert_eq!(world.journal().status().waiting_for, None);
        world.journal().close().unwrap();
    }
}

/// A disk that takes nothing at all: sinks wait with it, sources do not.
#[test]
fn a_disk_that_fails_is_left_and_opened_anew() {
    for code in [EIO, EROFS] {
        let mut world = World::new(PrimaryKind::File, SecondaryKind::File, PATIENT);
        (0..10).for_each(|_| world.put(0, 10));
        world.wait("a delivery", |world| world.take(1));
        break_disk(&world.primary, code);
        // Its acknowledgement is on its way to the disk that fails.
        world.take(1);
        (0..20).for_each(|_| world.put(0, 10));
        world.wait_place("file");
        world.take(100);
        (0..20).for_each(|_| world.put(1, 10));
        let put = world.next;
        world.wait("durable", |world| {
            world.settle();
            world.durable == put
        });
        mend(&world.primary);
        world.wait_place("primary");
        world.wait("acknowledgements", |world| {
            world.journal().status().channels[0].readers[0].1 == world.out.len() as u64
        });
        world.check();
        // Only what is committed counts after this.
        world.journal().close().unwrap();
        (world.reader, world.journal) = (None, None);
        world.open().unwrap();
        world.recover();
        world.check();
    }
}

/// As long as the secondary is open, sources begin without the primary; without it nobody begins.
#[test]
fn a_start_while_the_primary_is_away() {
    let mut world = World::new(PrimaryKind::File, SecondaryKind::File, PATIENT);
    (0..10).for_each(|_| world.put(0, 10));
    world.check();
    break_disk(&world.primary, EIO);
    (0..10).for_each(|_| world.put(0, 10));
    world.wait_place("file");
    (0..10).for_each(|_| world.put(1, 10));
    world.crash(3);
    break_disk(&world.primary, EIO);
    world.open().unwrap();
    assert_eq!(world.place(), "file");
    (0..10).for_each(|_| world.put(1, 10));
    mend(&world.primary);
    world.recover();
    world.wait_place("primary");
    world.check();
    world.crash(4);
    break_disk(&world.primary, EIO);
    assert!(matches!(world.open(), Err(OpenError::Io { .. })));
}

/// A secondary that is full makes sources wait, and the way back makes room.
#[test]
fn a_full_secondary_makes_sources_wait() {
    let mut world = World::new(PrimaryKind::File, SecondaryKind::File, PATIENT);
    world.put(0, 10);
    world.check();
    break_disk(&world.primary, EIO);
    world.put(0, 10);
    world.wait_place("file");
    world.journal().shared_for_tests().secondary.set_capacity(MAIN, 20, u64::MAX);
    world.put(0, 10);
    let full = world.journal().commit(
        Commit { puts: vec![Put { channels: vec![MAIN], batch: one_event() }], ..Commit::default() },
        Some(Instant::now() + Duration::from_millis(50)),
    );
    assert!(matches!(full, Err(CommitError::Full { .. })), "{:?}", full.err());
    mend(&world.primary);
    world.put(0, 10);
    world.wait_place("primary");
    world.check();
}

/// What was put to the secondary, and waits for its disk when everything that can be read of it was moved.
#[test]
fn what_is_on_its_way_to_the_secondary_comes_back_too() {
    let mut world = World::new(PrimaryKind::File, SecondaryKind::File, PATIENT);
    break_disk(&world.primary, EIO);
    world.put(0, 10);
    world.wait_place("file");
    world.secondary.faults(|faults| faults.capacity = Some(0));
    (0..60).for_each(|_| world.put(0, 10));
    mend(&world.primary);
    world.wait_place("returning");
    let moved = |world: &mut World| world.journal().shared_for_tests().order.try_lock().is_none();
    world.wait("the last step", moved);
    mend(&world.secondary);
    world.wait_place("primary");
    world.check();
}

fn one_event() -> flumen_event::Batch {
    let mut builder = BatchBuilder::with_capacity(1, 0);
    builder.push(9, 0, 1, b"x");
    builder.finish(Vec::new()).unwrap()
}

fn syncs(disk: &MemDisk) -> u64 {
    disk.0.lock().faults.syncs
}

/// Two acknowledgements, of which the second puts as well, are written, and then the disk fails before it says so: they are there when
/// it is back. The first once more would set the sink's position back, and leave its cursor.
#[test]
fn an_acknowledgement_that_is_there_is_not_sent_again() {
    let kinds = (PrimaryKind::File, SecondaryKind::File);
    let mut world = World::probed(kinds, PATIENT, Duration::from_millis(300));
    (0..3).for_each(|_| world.put(0, 10));
    world.wait_durable();
    let (first, mut second) = (world.deliver().unwrap(), world.deliver().unwrap());
    let quarantined = || vec![Put { channels: vec![QUARANTINE], batch: one_event() }];
    second.puts = quarantined();
    let disk = world.primary.clone();
    // The probe syncs as well, so it has to have been just now.
    let before = syncs(&disk);
    world.wait("a probe", |_| syncs(&disk) > before);
    let tickets = {
        let mut image = disk.0.lock();
        // Of what the committer has when the others come; they are its next group.
        image.faults.armed = vec![Fault { call: Call::Sync, skip: 1, times: u32::MAX, code: EIO }];
        let own = Commit { puts: quarantined(), ..Commit::default() };
        let own = world.journal().commit(own, None).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let acks = [first, second].map(|commit| world.journal().commit(commit, None).unwrap());
        drop(image);
        own.wait(Some(LIMIT)).unwrap().unwrap();
        acks
    };
    // All in one group share the sync that is well: then this one meets the other.
    let one_more = Commit { puts: quarantined(), ..Commit::default() };
    drop(world.journal().commit(one_more, None).unwrap());
    world.wait_place("file");
    mend(&world.primary);
    world.wait_place("primary");
    for ticket in tickets {
        ticket.wait(Some(LIMIT)).unwrap().unwrap();
    }
    assert_eq!(number(world.journal().position(SINK)), 20);
    world.crash(1);
    mend(&world.primary);
    world.open().unwrap();
    world.recover();
    assert_eq!(world.out.len(), 20, "the destination is cut back behind what is acknowledged");
    world.check();
}

/// An acknowledgement with events for a quarantine that is full waits; the keeper's makes the room, and has come behind it.
#[test]
fn an_acknowledgement_that_finds_a_channel_full_holds_no_other_reader_up() {
    let mut world = World::new(PrimaryKind::File, SecondaryKind::File, PATIENT);
    let quarantined = || vec![Put { channels: vec![QUARANTINE], batch: one_event() }];
    world.journal().set_capacity(QUARANTINE, 1, u64::MAX);
    drop(world.journal().commit(Commit { puts: quarantined(), ..Commit::default() }, None).unwrap());
    (0..2).for_each(|_| world.put(0, 10));
    world.wait_durable();
    let full = Commit { puts: quarantined(), ..world.deliver().unwrap() };
    let behind = world.deliver().unwrap();
    break_disk(&world.primary, EIO);
    world.put(0, 10);
    world.wait_place("file");
    let keeper = Ack { channel: QUARANTINE, reader: KEEPER, cursor: 1 };
    let keeper = Commit { acks: vec![keeper], ..Commit::default() };
    let tickets = [full, behind, keeper].map(|commit| world.journal().commit(commit, None).unwrap());
    mend(&world.primary);
    for ticket in tickets {
        ticket.wait(Some(LIMIT)).expect("it waits for what is behind it").unwrap();
    }
    world.wait_place("primary");
    assert_eq!(number(world.journal().position(SINK)), 20, "what the same reader had behind it stays there");
    world.check();
}

/// A disk that fails takes nothing of what was in memory, as long as the agent lives: over openings that fail, too.
#[test]
fn what_is_in_memory_outlives_its_disk() {
    let mut world = World::new(PrimaryKind::Spillable, SecondaryKind::File, PATIENT);
    (0..4).for_each(|_| world.put(0, 10));
    world.wait_durable();
    assert!(world.take(1));
    let late = world.deliver().unwrap();
    break_disk(&world.primary, EIO);
    // It does not come to the disk.
    drop(world.journal().commit(late, None).unwrap());
    world.put(0, 5);
    world.wait_place("file");
    // An opening was tried, and has failed.
    world.wait_reason("mending ");
    assert_eq!(world.journal().status().memory[0].channel, "main");
    assert!(world.journal().status().memory[0].events_at_risk >= 20);
    world.put(1, 5);
    mend(&world.primary);
    world.wait_place("primary");
    assert_eq!(world.journal().status().memory[0].lost, 0);
    world.check();
    world.restart();
    world.check();
}

/// The disk is not mounted any more, and its directory is empty: events do not go there, nor does what is in the secondary.
#[test]
fn a_directory_that_holds_another_journal_is_not_gone_back_to() {
    for kind in [PrimaryKind::File, PrimaryKind::Spillable] {
        let mut world = World::new(kind, SecondaryKind::File, PATIENT);
        (0..4).for_each(|_| world.put(0, 10));
        world.wait_durable();
        fail_listed(&mut world);
        let mounted = world.primary.copy();
        put_in_place(&world.primary, &MemDisk::default());
        mend(&world.primary);
        world.wait_reason("it is a new one, not the one that the failover stands in for");
        world.put(1, 10);
        std::thread::sleep(20 * CHECK_INTERVAL);
        assert_eq!(world.place(), "file");
        fail_listed(&mut world);
        put_in_place(&world.primary, &mounted);
        mend(&world.primary);
        world.wait_place("primary");
        world.check();
    }
}

/// A start finds no journal where one was left: it goes on in the secondary, until the user says that the disk was replaced.
#[test]
fn a_start_asks_before_it_takes_a_replaced_disk() {
    let mut world = World::new(PrimaryKind::File, SecondaryKind::File, PATIENT);
    (0..4).for_each(|_| world.put(0, 10));
    world.check();
    break_disk(&world.primary, EIO);
    world.put(0, 10);
    world.wait_place("file");
    world.wait_durable();
    world.crash(5);
    put_in_place(&world.primary, &MemDisk::default());
    mend(&world.primary);
    world.open().unwrap();
    world.wait_reason("make the file /j/replaced, and start it");
    assert_eq!(world.place(), "file");
    world.put(1, 10);
    world.wait_durable();
    world.crash(6);
    mend(&world.primary);
    world.is_replaced.store(true, Ordering::Relaxed);
    world.open().unwrap();
    world.wait_place("primary");
    world.check();
    assert!(!world.is_replaced.load(Ordering::Relaxed), "it counts once");
}

/// What a journal leaves beside its segments is no reason to refuse its directory; what is somebody else's is.
#[test]
fn what_is_left_of_a_journal_is_no_reason_not_to_begin_one() {
    let disk = MemDisk::default();
    for name in ["probe", "spare.0", "spare.1", "damaged", REPLACED] {
        disk.add(&format!("/j/{name}"), b"x".to_vec());
    }
    open_primary(PrimaryKind::File, &disk, specs(), None).unwrap().close().unwrap();
    let disk = MemDisk::default();
    disk.add("/j/notes.txt", b"x".to_vec());
    let refused = open_primary(PrimaryKind::File, &disk, specs(), None);
    assert!(matches!(refused, Err(OpenError::NotAJournal { .. })));
}

/// The primary's disk fails, so that not even an opening of it is under way.
fn fail_listed(world: &mut World) {
    break_disk(&world.primary, EIO);
    let list = Fault { call: Call::List, skip: 0, times: u32::MAX, code: EIO };
    world.primary.faults(|faults| faults.armed.push(list));
    if world.place() == "primary" {
        world.put(0, 10);
    }
    world.wait_reason("listing /j");
}

/// What is on a disk now is what is on another one.
fn put_in_place(disk: &MemDisk, other: &MemDisk) {
    disk.names().iter().for_each(|name| disk.take(&format!("/j/{name}")));
    for name in other.names() {
        let path = format!("/j/{name}");
        disk.add(&path, other.bytes(&path));
    }
}

/// Random puts, deliveries, full disks, disks that fail and come back, and crashes at any moment of all of it.
#[test]
fn each_event_once_over_switches_and_crashes() {
    schedules(12, (PrimaryKind::File, SecondaryKind::File));
}

/// The same of those where a crash costs what is in memory: with clean stops.
#[test]
fn each_event_once_over_switches_with_memory() {
    schedules(4, (PrimaryKind::File, SecondaryKind::Memory));
    schedules(4, (PrimaryKind::Spillable, SecondaryKind::File));
}

fn schedules(seeds: u64, kinds: (PrimaryKind, SecondaryKind)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("FLUMEN_FAILOVER_SEED").unwrap_or(0);
    for seed in first..first + number("FLUMEN_FAILOVER_SEEDS").unwrap_or(seeds) {
        eprintln!("{kinds:?} seed {seed}");
        schedule(seed, kinds);
    }
}

/// The secondary's disk is full for a while. Who leaves the primary meanwhile waits, so somebody else has to make room.
fn fill_for_a_while(disk: &MemDisk, pause: Duration) {
    let disk = disk.clone();
    disk.faults(|faults| faults.capacity = Some(0));
    std::thread::spawn(move || {
        std::thread::sleep(pause);
        disk.faults(|faults| faults.capacity = None);
    });
}

fn schedule(seed: u64, kinds: (PrimaryKind, SecondaryKind)) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut world = World::probed(kinds, HASTY, CHECK_INTERVAL);
    let may_crash = matches!(kinds, (PrimaryKind::File, SecondaryKind::File));
    let mut is_broken = false;
    for _ in 0..120 {
        let step = random.random_range(0..44);
        if std::env::var("FLUMEN_FAILOVER_TRACE").is_ok() {
            eprintln!(
                "{step} {} {:?} durable {:?} out {}",
                world.place(),
                world.next,
                world.durable,
                world.out.len()
            );
        }
        match step {
            0..16 => world.put(random.random_range(0..2), random.random_range(1..30)),
            16..26 => drop(world.take(random.random_range(1..5))),
            26..28 => {
                break_disk(&world.primary, if random.random_bool(0.5) { EIO } else { EROFS });
                is_broken = true;
            }
            28..30 => {
                let bytes = random.random_range(0..200_000);
                world.primary.faults(|faults| faults.capacity = Some(bytes));
                is_broken = true;
            }
            30..34 => {
                mend(&world.primary);
                is_broken = false;
            }
            34..38 => std::thread::sleep(Duration::from_millis(random.random_range(0..80))),
            38..40 => {
                // One call: more of them would fail the secondary.
                let call = if random.random_bool(0.5) { Call::Write } else { Call::Sync };
                let fault = Fault { call, skip: random.random_range(0..4), times: 1, code: EIO };
                world.secondary.faults(|faults| faults.armed = vec![fault]);
            }
            40..42 => {
                fill_for_a_while(&world.secondary, Duration::from_millis(random.random_range(1..60)));
            }
            _ if !may_crash => {
                [&world.primary, &world.secondary].into_iter().for_each(mend);
                is_broken = false;
                world.restart();
            }
            _ => {
                world.crash(random.random());
                [&world.primary, &world.secondary].into_iter().for_each(mend);
                is_broken = false;
                world.open().unwrap();
                world.recover();
            }
        }
        world.settle();
    }
    if is_broken {
        mend(&world.primary);
    }
    mend(&world.secondary);
    world.wait_place("primary");
    world.check();
    if may_crash {
        world.crash(seed);
        [&world.primary, &world.secondary].into_iter().for_each(mend);
        world.open().unwrap();
        world.recover();
    } else {
        world.restart();
    }
    world.check();
}
