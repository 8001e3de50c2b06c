//! A journal on a simulated disk whose committer does what it does when the schedule says so, and what must be true of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::super::basic::{config, numbers, specs};
use super::super::disk::{Call, MemDisk};
use super::figures::Figures;
use super::step::Step;
use super::truth::{LATE, Op, READERS, Truth, plugin_name};
use crate::file::space::Pause;
use crate::file::state::Phase;
use crate::file::writer::Writer;
use crate::file::{Compression, Durability, FileConfig, FileJournal, OpenError, readers};
use crate::limits;
use crate::{
    ByteColumn, Clock, Commit, CommitError, Delivery, Journal, Key, KeyId, Keys, ReadError, Reader, Ticket,
};

/// Turns of the committer without an end that nothing explains.
const TURNS_MAX: u32 = 500;

/// Commits on their way: their marks must differ.
const PENDING_MAX: usize = 40;

/// Time that passes when the schedule says so.
pub struct SimClock {
    start: Instant,
    passed: Mutex<Duration>,
}

impl SimClock {
    pub fn new() -> SimClock {
        SimClock { start: Instant::now(), passed: Mutex::default() }
    }

    pub fn pass(&self, time: Duration) {
        *self.passed.lock() += time;
    }
}

impl Clock for SimClock {
    fn now(&self) -> Instant {
        self.start + *self.passed.lock()
    }

    fn wall_ns(&self) -> i64 {
        1_000_000_000 + self.passed.lock().as_nanos() as i64
    }
}

/// One life of the journal, from an opening to its end.
struct Life {
    journal: FileJournal,
    writer: Writer,
    readers: Vec<Box<dyn Reader>>,
    /// Next event of each reader.
    at: [u64; 4],
    has_failed: bool,
    was_full: bool,
}

pub struct World {
    pub disk: MemDisk,
    /// Of the journal.
    pub id: u128,
    clock: Arc<SimClock>,
    life: Option<Life>,
    /// Durable commits, in their order.
    pub log: Vec<Op>,
    pub truth: Truth,
    pending: Vec<(Op, Box<dyn Ticket>)>,
    /// Refused, but perhaps on the disk.
    doubtful: Vec<Op>,
    was_full: bool,
    next_event: u64,
    next_serial: u64,
    late: Late,
    /// From the next opening on.
    config: FileConfig,
    /// Commits that the last start found and built on: on the disk, whatever the durability is.
    found: usize,
    /// Nothing was synced before the power went.
    may_lack: bool,
    pub figures: Figures,
}

/// The reader that comes and goes.
#[derive(Default)]
struct Late {
    /// It is there, and owed everything from this event on.
    owed: Option<u64>,
    /// It was there.
    has_come: bool,
    /// Where it may stand if it comes for the first time: as of an attempt that failed, of which the disk may know.
    perhaps: Vec<u64>,
}

/// Keys of all that may be encrypted; the one that writes comes first.
pub fn keys(writing: usize) -> Keys {
    let mut keys = ["a", "b"].map(|id| Key::new(KeyId::new(id).unwrap(), [id.as_bytes()[0]; 32]));
    keys.rotate_left(writing);
    keys.into_iter().collect()
}

pub fn small() -> FileConfig {
    FileConfig {
        segment_bytes: 16 << 10,
        window_bytes: 2 << 10,
        snapshot_every_bytes: 20 << 10,
        state_file_every_bytes: 6 << 10,
        reserve_bytes: 48 << 10,
        ..config()
    }
}

impl World {
    pub fn new(config: FileConfig) -> World {
        let mut world = World {
            disk: MemDisk::default(),
            id: 0,
            clock: Arc::new(SimClock::new()),
            life: None,
            log: Vec::new(),
            truth: Truth::default(),
            pending: Vec::new(),
            doubtful: Vec::new(),
            was_full: false,
            next_event: 0,
            next_serial: 1,
            late: Late::default(),
            config,
            found: 0,
            may_lack: false,
            figures: Figures::default(),
        };
        world.begin().unwrap();
        world
    }

    fn life(&mut self) -> &mut Life {
        self.life.as_mut().unwrap()
    }

    pub fn journal(&self) -> &FileJournal {
        &self.life.as_ref().unwrap().journal
    }

    /// Calls of the disk that failed so far.
    pub fn fired(&self) -> u32 {
        self.disk.0.lock().faults.fired
    }

    /// Opens the journal.
    pub fn begin(&mut self) -> Result<(), OpenError> {
        let disk = Arc::new(self.disk.clone());
        let mut specs = specs();
        if self.late.owed.is_some() {
            specs[0].readers.push("late".into());
        }
        let config = self.config.clone();
        let (journal, mut writer) = FileJournal::prepare(config, specs, disk, self.clock.clone())?;
        writer.is_stepped = true;
        self.id = journal.shared.journal;
        let readers: Vec<Box<dyn Reader>> =
            READERS.iter().map(|(channel, reader)| journal.open_reader(*channel, *reader)).collect();
        let at = [0, 1, 2, 3].map(|which: usize| readers[which].acknowledged());
        self.life = Some(Life { journal, writer, readers, at, has_failed: false, was_full: false });
        Ok(())
    }

    /// Readers that are there.
    pub fn readers(&self) -> impl Iterator<Item = usize> + use<> {
        (0..LATE).chain(self.late.owed.map(|_| LATE))
    }

    /// There was one more reader than at the first opening.
    pub fn has_come(&self) -> bool {
        self.late.has_come || !self.late.perhaps.is_empty()
    }

    fn come(&mut self) {
        if self.late.owed.is_some() || self.life().has_failed {
            return;
        }
        let fired = self.fired();
        let head = self.truth.channels[0].len() as u64;
        let reply = readers::ask(&self.journal().shared, READERS[LATE].0, "late").unwrap();
        self.work();
        match reply.wait() {
            Ok(id) => {
                assert_eq!(id, READERS[LATE].1);
                let reader = self.journal().open_reader(READERS[LATE].0, id);
                let at = reader.acknowledged();
                let is_known = self.late.has_come && at == self.truth.cursors[LATE];
                let is_new = !self.late.has_come && (at == head || self.late.perhaps.contains(&at));
                assert!(is_known || is_new, "it begins at {at} of {head}");
                self.truth.cursors[LATE] = at;
                (self.late.owed, self.late.has_come) = (Some(head), true);
                let life = self.life();
                (life.readers[LATE], life.at[LATE]) = (reader, at);
            }
            Err(error) => {
                assert!(self.fired() > fired || self.was_full, "{error}");
                self.late.perhaps.push(head);
            }
        }
    }

    /// Nobody is told to wait for it any more.
    pub fn go(&mut self) {
        if self.late.owed.take().is_some() && !self.life().has_failed {
            let (channel, reader) = READERS[LATE];
            self.journal().retire_reader(channel, reader);
            assert_eq!(self.journal().reader_id(channel, "late"), None);
            self.work();
        }
    }

    /// Hands a commit in.
    fn commit(&mut self, mut op: Op) {
        if self.life().has_failed {
            return;
        }
        if self.pending.len() >= PENDING_MAX {
            self.work();
            if self.life().has_failed || self.pending.len() >= PENDING_MAX {
                return;
            }
        }
        // An older acknowledgement says what the newest on its way does.
        op.ack = op.ack.map(|(which, cursor)| (which, cursor.max(self.acked(which))));
        op.serial = self.next_serial;
        self.next_serial += 1;
        let ticket = self.journal().commit(op.commit(), None).unwrap();
        self.pending.push((op, ticket));
        self.figures.commits += 1;
    }

    pub fn put(&mut self, channels: u8, rows: u64, size: usize) -> Option<(u8, u64, u64, usize)> {
        let first = self.next_event;
        self.next_event += rows;
        Some((channels, first, rows, size))
    }

    /// Only what is durable can be acknowledged.
    fn ack(&self, which: usize, share: u64) -> Option<(usize, u64)> {
        let head = self.truth.channels[usize::from(READERS[which].0.0)].len() as u64;
        let cursor = self.truth.cursors[which];
        Some((which, cursor + head.saturating_sub(cursor) * share / 100))
    }

    /// The committer works until there is nothing to do, or nothing that can be done.
    pub fn work(&mut self) {
        let (mut turns, mut pauses) = (0, 0);
        let is_limited = {
            let image = self.disk.0.lock();
            image.faults.capacity.is_some()
                || !image.faults.armed.is_empty()
                || image.faults.power_left.is_some()
        };
        let life = self.life.as_mut().unwrap();
        while !life.has_failed && life.has_work() {
            turns += 1;
            assert!(turns < TURNS_MAX, "the committer does not come to an end");
            if let Some(pause) = life.turn(&self.disk) {
                life.was_full = true;
                self.clock.pass(pause.left);
                self.figures.waits += 1;
                pauses += 1;
                if pauses > 2 && is_limited {
                    break;
                }
            }
        }
        let (failed, is_full) = (life.has_failed, life.was_full);
        self.was_full |= is_full;
        self.resolve();
        assert!(failed || is_limited || self.pending.is_empty(), "commits wait, and nothing is in their way");
    }

    /// A commit beside the schedule.
    pub fn commit_now(&mut self, commit: Commit) -> Option<Result<(), CommitError>> {
        let ticket = self.journal().commit(commit, None).unwrap();
        self.work();
        ticket.wait(Some(Duration::ZERO)).map(|outcome| outcome.map(drop))
    }

    /// Takes over what became of the commits.
    fn resolve(&mut self) {
        let mut done = BTreeMap::new();
        for (op, ticket) in std::mem::take(&mut self.pending) {
            match ticket.wait(Some(Duration::ZERO)) {
                None => self.pending.push((op, ticket)),
                Some(Ok(number)) => drop(done.insert(number, op)),
                Some(Err(_)) => self.doubtful.push(op),
            }
        }
        for (number, op) in done {
            assert_eq!(number, self.log.len() as u64 + 1, "commit numbers have no gaps");
            self.durable(op);
        }
    }

    fn durable(&mut self, op: Op) {
        self.truth.apply(&op);
        self.log.push(op);
    }

    /// Everything is durable. False: that cannot be, and the journal is another one now.
    pub fn settle(&mut self) -> bool {
        self.disk.faults(|faults| (faults.capacity, faults.short_writes) = (None, None));
        self.disk.faults(|faults| faults.armed.clear());
        self.work();
        let settled = !self.life().has_failed && self.pending.is_empty();
        if !settled {
            self.end(&Step::Kill { written: true });
        }
        settled
    }

    /// A few deliveries, each of them compared.
    fn read(&mut self, which: usize, deliveries: u8) {
        for _ in 0..deliveries {
            let fired = self.fired();
            let life = self.life.as_mut().unwrap();
            let delivery = match life.readers[which].next(Duration::ZERO) {
                Ok(Some(delivery)) => delivery,
                Ok(None) => break,
                Err(ReadError::Closing) => break,
                Err(error) => {
                    assert!(self.fired() > fired, "{error}");
                    continue;
                }
            };
            self.compare(which, &delivery);
            self.life().at[which] = delivery.next;
        }
    }

    fn compare(&self, which: usize, delivery: &Delivery) {
        let at = self.life.as_ref().unwrap().at[which];
        assert!(delivery.first >= at, "reader {which} goes back");
        let channel = &self.truth.channels[usize::from(READERS[which].0.0)];
        let range = delivery.first as usize..delivery.next as usize;
        let expected: Vec<u64> = channel[range].iter().map(|(event, _)| *event).collect();
        assert_eq!(numbers(delivery), expected, "reader {which} at {}", delivery.first);
        // Nothing was kept for the one that was away.
        let not_owed = self.late.owed.filter(|_| which == LATE).unwrap_or_default();
        assert!(delivery.lost_before == 0 || delivery.first <= not_owed);
        let done = self.truth.cursors[which].max(self.acked(which)).max(not_owed);
        assert!(at == delivery.first || delivery.first <= done, "reader {which} skips");
    }

    /// The furthest that a commit on its way acknowledges.
    fn acked(&self, which: usize) -> u64 {
        let acks = self.pending.iter().map(|(op, _)| op).chain(&self.doubtful).filter_map(|op| op.ack);
        acks.filter(|(reader, _)| *reader == which).map(|(_, cursor)| cursor).max().unwrap_or_default()
    }

    /// The journal is what the truth says.
    pub fn check(&self) {
        let journal = self.journal();
        let positions: BTreeMap<_, _> = journal.positions(b"").into_iter().collect();
        assert_eq!(positions, self.truth.positions);
        assert_eq!(state_of(journal), self.truth.state);
        assert_eq!(journal.status().last_commit, self.log.len() as u64);
        for which in self.readers() {
            let (channel, reader) = READERS[which];
            let mut reader = journal.open_reader(channel, reader);
            assert_eq!(reader.acknowledged(), self.truth.cursors[which], "reader {which}");
            let events = &self.truth.channels[usize::from(channel.0)][self.truth.cursors[which] as usize..];
            let events: Vec<u64> = events.iter().map(|(event, _)| *event).collect();
            let (found, lost) = drain(reader.as_mut());
            if which < LATE {
                assert_eq!((found, lost), (events, 0), "reader {which}");
            } else {
                // Of what passed while it was away, some may be there.
                let not_owed = self.late.owed.unwrap_or_default().saturating_sub(self.truth.cursors[LATE]);
                assert!(events.ends_with(&found) && (events.len() - found.len()) as u64 <= not_owed);
                assert!(lost <= not_owed, "the late one lost {lost}");
            }
        }
        assert_eq!(journal.status().damaged_commits, 0);
    }

    /// The life ends as the step says, and the next begins.
    pub fn end(&mut self, step: &Step) {
        self.figures.other_ends += usize::from(matches!(step, Step::Close | Step::Kill { .. }));
        match *step {
            Step::Close => {
                let (fired, has_failed) = (self.fired(), self.life().has_failed);
                let is_full = self.was_full || self.disk.0.lock().faults.capacity.is_some();
                let closed = self.close();
                assert!(closed || has_failed || self.fired() > fired || is_full);
            }
            Step::Kill { written } => {
                self.drop_life();
                if written {
                    self.disk.write_back();
                }
            }
            Step::Crash { power, seed, again } => {
                self.doom(power);
                self.lose_power(seed);
                if let Some((power, seed)) = again {
                    self.disk.faults(|faults| faults.power_left = Some(power));
                    if self.begin().is_ok() {
                        self.meet_survivors();
                        self.doom(power / 2);
                    }
                    self.lose_power(seed);
                }
            }
            _ => {}
        }
        self.disk.faults(|faults| (faults.capacity, faults.power_left) = (None, None));
        let fired = self.fired();
        if let Err(error) = self.begin() {
            assert!(self.fired() > fired, "{error}");
            self.disk.faults(|faults| faults.armed.clear());
            self.begin().unwrap();
        }
        self.meet_survivors();
    }

    /// A few more commits while the power goes.
    fn doom(&mut self, power: u64) {
        if self.life().has_failed {
            return;
        }
        self.disk.faults(|faults| faults.power_left = Some(power));
        for n in 0..6u8 {
            let put = self.put(1 + n % 3, 1 + u64::from(n), 300);
            let remember = Some((n % 2, n, 4, n * 7));
            self.commit(Op { put, remember, position: Some((n % 4, n)), ..Op::default() });
            if n == 2 {
                self.work();
            }
        }
        self.work();
    }

    pub fn lose_power(&mut self, seed: u64) {
        self.drop_life();
        self.disk.crash(seed);
        self.may_lack = self.config.durability == Durability::Os;
        self.figures.power_cuts += 1;
    }

    /// As [`Journal::close`], step by step; false: it told of a trouble.
    pub fn close(&mut self) -> bool {
        let mut life = self.life.take().unwrap();
        if !life.has_failed {
            life.journal.shared.state.lock().phase = Phase::Closing;
            let mut turns = 0;
            while !life.has_failed && !life.writer.shared.state.lock().queue.is_empty() {
                turns += 1;
                assert!(turns < TURNS_MAX, "the journal does not come to its end");
                let pause = life.turn(&self.disk);
                self.clock.pass(pause.map(|pause| pause.left).unwrap_or_default());
            }
            if !life.has_failed {
                life.writer.close();
            }
        }
        let closed = life.journal.close().is_ok();
        drop(life);
        self.resolve();
        assert!(self.pending.is_empty(), "a ticket without an answer");
        closed
    }

    /// As a journal that is dropped.
    pub fn drop_life(&mut self) {
        let Some(mut life) = self.life.take() else { return };
        if !life.has_failed {
            life.writer.drop_queue();
        }
        drop(life);
        self.resolve();
        assert!(self.pending.is_empty(), "a ticket without an answer");
    }

    /// Without syncs a power cut leaves a beginning of what was acknowledged: what the last start found, at least.
    fn miss_unsynced(&mut self) {
        let there = self.journal().status().last_commit as usize;
        assert!(there >= self.found, "of {} commits that a start found, {there} are there", self.found);
        if there < self.log.len() {
            self.figures.unsynced += self.log.len() - there;
            self.log.truncate(there);
            self.truth = Truth::default();
            self.log.iter().for_each(|op| self.truth.apply(op));
        }
    }

    /// Which of the refused commits are there after all; and nothing else may be.
    fn meet_survivors(&mut self) {
        if std::mem::take(&mut self.may_lack) {
            self.miss_unsynced();
        }
        let positions: BTreeMap<_, _> = self.journal().positions(b"").into_iter().collect();
        let candidates = std::mem::take(&mut self.doubtful);
        for (index, op) in candidates.iter().enumerate().filter(|(_, op)| op.left_its_mark(&positions)) {
            let missing = candidates[..index].iter().filter(|before| !before.left_its_mark(&positions));
            for before in missing {
                let may = self.was_full && op.may_overtake() && !op.conflicts(before);
                assert!(may, "a commit is there that follows one that is not: {op:?} behind {before:?}");
            }
        }
        let survivors = candidates.into_iter().filter(|op| op.left_its_mark(&positions));
        survivors.collect::<Vec<_>>().into_iter().for_each(|op| self.durable(op));
        self.was_full = self.disk.0.lock().faults.armed.iter().any(|fault| fault.code == 28);
        self.check();
        self.found = self.log.len();
    }

    pub fn step(&mut self, step: &Step) {
        self.figures.steps += 1;
        match *step {
            Step::Put { channels, rows, size } => {
                let put = self.put(channels, rows, size);
                self.commit(Op { put, ..Op::default() });
            }
            Step::Ack { which, share } => {
                let ack = self.ack(which, share);
                self.commit(Op { ack, ..Op::default() });
            }
            Step::Position { key, value } => {
                self.commit(Op { position: Some((key, value)), ..Op::default() })
            }
            Step::Remember { plugin, key, count, value } => {
                self.commit(Op { remember: Some((plugin, key, count, value)), ..Op::default() });
            }
            Step::All { channels, rows, which, share, key } => {
                let (put, ack) = (self.put(channels, rows, 50), self.ack(which, share));
                let (position, remember) = (Some((key, 9)), Some((key % 2, key, 3, 9)));
                self.commit(Op { put, ack, position, remember, ..Op::default() });
            }
            Step::Come => self.come(),
            Step::Go => self.go(),
            Step::AckLate { share } => {
                if self.late.owed.is_some() {
                    let ack = self.ack(LATE, share);
                    self.commit(Op { ack, ..Op::default() });
                }
            }
            Step::Setting { compression, key } => {
                self.config.compression =
                    [Compression::None, Compression::Lz4, Compression::Zstd][compression];
                if key > 0 {
                    self.config.keys = keys(key - 1);
                }
            }
            Step::Work => self.work(),
            Step::Read { which, deliveries } => {
                if self.readers().any(|there| there == which) {
                    self.read(which, deliveries);
                }
            }
            Step::Check => {
                if self.settle() {
                    self.check();
                }
            }
            Step::Fault { call, .. } => {
                let mut fault = step.fault().unwrap();
                self.was_full |= fault.code == 28;
                let is_reading = |call: Call| matches!(call, Call::Read | Call::Open | Call::List);
                self.disk.faults(|faults| {
                    if is_reading(call) {
                        // More in a row are damage.
                        fault.times = fault.times.min(limits::READ_FAILURES_MAX - 1);
                        faults.armed.retain(|other| !is_reading(other.call));
                    }
                    faults.armed.push(fault);
                });
            }
            Step::ShortWrites { bytes } => self.disk.faults(|faults| faults.short_writes = Some(bytes)),
            Step::Evict { seed } => self.figures.evicted += self.disk.evict(seed),
            Step::Full { free } => {
                let used = self.disk.used();
                self.disk.faults(|faults| faults.capacity = Some(used + free));
                self.was_full = true;
            }
            Step::Space => self.disk.faults(|faults| faults.capacity = None),
            Step::Close | Step::Kill { .. } | Step::Crash { .. } => self.end(step),
        }
    }
}

impl Life {
    /// A turn of the committer; how long it waits for space then.
    ///
    /// One write, one sync, one roll that fails never fails the journal: so many fresh segments get the group. So if it fails, the
    /// first try and that of each fresh segment met an error of its own in this turn, or the power is gone.
    fn turn(&mut self, disk: &MemDisk) -> Option<Pause> {
        let (broke, segment) = (disk.0.lock().faults.broke, self.writer.next_segment);
        let reason = match self.writer.work() {
            Ok(pause) => return pause,
            Err(reason) => reason,
        };
        let (errors, is_cut) = {
            let image = disk.0.lock();
            ((image.faults.broke - broke) as usize, image.faults.power_left == Some(0))
        };
        let fresh = self.writer.next_segment - segment;
        assert!(fresh >= limits::FRESH_SEGMENTS_MAX as u64, "failed after {fresh} fresh segments: {reason}");
        assert!(is_cut || errors > limits::FRESH_SEGMENTS_MAX, "{errors} errors failed it: {reason}");
        self.writer.fail(&reason);
        self.has_failed = true;
        None
    }

    fn has_work(&self) -> bool {
        let state = self.writer.shared.state.lock();
        let is_saved = self.writer.shared.saved.load(std::sync::atomic::Ordering::Acquire);
        !state.queue.is_empty() || !state.reader_changes.is_empty() || is_saved
    }
}

/// Everything that plugins remember.
pub fn state_of(journal: &FileJournal) -> BTreeMap<(u8, u8), Vec<u8>> {
    let state = journal.state().unwrap();
    let mut found = BTreeMap::new();
    for plugin in 0..2 {
        let (mut offsets, mut data) = (vec![0; 4], Vec::new());
        for key in 0..24u8 {
            data.extend_from_slice(&[key; 20]);
            offsets.extend_from_slice(&(data.len() as u32).to_le_bytes());
        }
        let keys = ByteColumn::new(&offsets, &data).unwrap();
        state.get_many(plugin_name(plugin), &keys, 1_000, &mut |index, value| {
            if let Some(value) = value {
                found.insert((plugin, index as u8), value.to_vec());
            }
        });
    }
    found
}

/// What a reader gets from now on, and how many events it is told to be lost.
pub fn drain(reader: &mut dyn Reader) -> (Vec<u64>, u64) {
    let (mut events, mut lost, mut failures) = (Vec::new(), 0, 0);
    loop {
        match reader.next(Duration::ZERO) {
            Ok(Some(delivery)) => {
                lost += delivery.lost_before;
                events.extend(numbers(&delivery));
            }
            Ok(None) => return (events, lost),
            Err(error) => {
                failures += 1;
                assert!(failures < 20, "reading does not come to an end: {error}");
            }
        }
    }
}
