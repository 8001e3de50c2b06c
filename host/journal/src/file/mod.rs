//! The file journal: the embedded default.
//!
//! Layers, bottom up: [`mod@format`] (bytes), `segment` (one file, read), `base`, `scan` and `recovery` (what is there at the start), `mend` and `missing` (what it
//! changes, and what it misses),
//! `state` (what threads share), `saver` and `state_load` (the file of what plugins remember), `accept` (a caller's commit), `writer`, `space`, `spares`, `snapshots`, `readers` (the committer),
//! `reader`, and [`FileJournal`] on top.
//!
//! ```text
//! DIR/lock             held while open
//! DIR/%016x.seg        segments
//! DIR/snapshot.a, .b   the small state, in turn
//! DIR/%016x.state      what plugins remember, as of a commit (`state.new`: on its way)
//! DIR/spare.N          deleted segments, for the next ones
//! DIR/reserve          space given up on a full disk, for acknowledgements
//! DIR/damaged/         copies of damaged ranges: SEGMENT-OFFSET.bin
//! ```
//!
//! Commits become durable in the order in which they were handed in, except that on a full disk
//! acknowledgements pass waiting events. A new channel begins at event 0; a new reader of a channel that
//! was there before begins at the channel's end, whether it comes at an opening or later (`readers`).
//!
//! # What is true, and what checks it
//! Each line is checked after every end, start and comparison of each schedule of `tests/sim` (random commits, reads, full disks,
//! errors of every call, power cuts, damage, on a simulated disk; the function that checks is named) and by the tests named beside it.
//! 2,000 schedules run in CI; 100,000 passed by hand (the figures are in `tests/sim`).
//!
//! 1. *Acknowledged is never lost*: a commit whose ticket said so is there after any end of the process or of the power
//!    (`World::meet_survivors`, `World::check`). What a start found and built on stays as well
//!    (`hard::what_is_only_in_memory_after_a_failed_sync_…`).
//! 2. *Nothing appears that was not put*, and nothing twice (`World::read`, `World::check`).
//! 3. *Order holds*: what is there is a beginning of what was handed in. Only on a full disk acknowledgements pass waiting commits, and
//!    none that changes the same as one that waits (`World::meet_survivors`, `hard::on_a_full_disk_…`).
//! 4. *A commit is whole or absent*: its events, positions, acknowledgements and state are there together or not at all
//!    (`World::check`; `hard::what_a_stop_on_a_full_disk_gives_up_…`).
//! 5. *Positions, cursors and state agree with the events*: they are those after the last commit that is there (`World::check`); after
//!    damage, those of one moment, with or without what the lost commits said (`harm::compare`).
//! 6. *After damage exactly the damaged range is missing*: each event outside of it comes once and in order, new ones too, over further
//!    crashes; what is missing is counted once and named; files of other journals and of newer versions stay (`harm::compare`,
//!    `harm::goes_on`, tests `damage::*`, `hard::*`).
//! 7. *One failed call never fails the journal*, and short troubles of reading cost nothing (`World::work`, `World::read`).
//! 8. *Everything ends*: turns of the committer, reads behind damage, a close on a full disk; each ticket gets an answer; with space again,
//!    nothing waits (`World::work`, `World::close`, `world::drain`).
//!
//! The limits of it. Of the last group nothing later says that it was durable, so damage to it after a crash looks like a torn write, and is cut
//! like one. If nothing is left of a segment and both slots are damaged too, it is named without a number of commits. With both slots
//! and every checkpoint damaged there is no journal to open.
//!
//! With the newest slot something else may be hit that alone said what became of a thing. Then it is named as lost, or comes again; nothing
//! is skipped in silence:
//! - a segment that was deleted counts as missing if the acknowledgement that let it go was hit too, or if there is no whole file of
//!   the plugins' state that says that they need it no more;
//! - a reader whose acknowledgement was hit stands where the one before it says: what is still there comes again, what is gone since is
//!   told as lost;
//! - the file of the plugins' state may know of commits that are cut as never durable;
//! - if the checkpoint of the segment is hit that began when a reader came, its frames' numbers mean nothing: its commits are lost;
//! - without any slot the journal is the one that most of the segments are of.

mod accept;
mod base;
mod config;
mod damage;
pub mod format;
mod mend;
mod missing;
mod reader;
mod readers;
mod recovery;
mod saver;
mod scan;
mod segment;
mod snapshots;
mod space;
mod spares;
mod state;
mod state_load;
mod ticket;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

pub use config::{Durability, FileConfig, OpenError};
pub use damage::DAMAGED_DIR;
pub use format::packed::Compression;
pub(crate) use saver::UNFINISHED;
pub use saver::state_file_commit;
pub use segment::{Frame, SegmentFile, segment_id, segment_name};

use crate::api::{
    AddReaderError, ChannelId, ChannelSpec, ChannelStatus, Commit, CommitError, Journal, JournalStatus,
    Reader, ReaderId, Ticket,
};
use crate::clock::Clock;
use crate::disk::{Disk, DiskLock};
use crate::limits;
use crate::state::StateStore;
use format::registers::{ChannelRegister, ReaderRegister, Registers};
use format::sealed::Sealer;
use reader::FileReader;
use recovery::Recovered;
use saver::StateFiles;
use state::{Channel, Phase, Shared, State, Window};
use ticket::{Bell, Bells};
use writer::Writer;

/// File of the directory's lock.
pub(crate) const LOCK_NAME: &str = "lock";

/// File whose space is given up on a full disk.
pub(crate) const RESERVE_NAME: &str = "reserve";

/// A journal in a directory.
pub struct FileJournal {
    shared: Arc<Shared>,
    /// Who holds it writes. `None`: a test does, step by step.
    writer: Option<Arc<Mutex<Writer>>>,
    committer: Mutex<Option<JoinHandle<()>>>,
    lock: Mutex<Option<Box<dyn DiskLock>>>,
}

impl FileJournal {
    /// Opens a journal, or makes one in an empty or absent directory.
    pub fn open(
        config: FileConfig,
        channels: Vec<ChannelSpec>,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<FileJournal>, OpenError> {
        let (mut journal, writer) = FileJournal::prepare(config, channels, disk, clock)?;
        let writer = Arc::new(Mutex::new(writer));
        journal.writer = Some(writer.clone());
        let committer =
            std::thread::Builder::new().name("journal".into()).spawn(move || writer::run(&writer));
        *journal.committer.lock() = Some(committer.map_err(OpenError::io("starting the journal's thread"))?);
        Ok(Arc::new(journal))
    }

    /// An open journal, and its committer, which does nothing yet.
    fn prepare(
        config: FileConfig,
        channels: Vec<ChannelSpec>,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
    ) -> Result<(FileJournal, Writer), OpenError> {
        let dir = config.dir.clone();
        disk.create_dir(&dir).map_err(OpenError::io(format!("making {}", dir.display())))?;
        let lock = disk.lock(&dir).map_err(OpenError::io(format!("locking {}", dir.display())))?;
        let lock = lock.ok_or_else(|| OpenError::Locked(dir.clone()))?;
        let mut recovered = recovery::recover(disk.as_ref(), &dir, &config.keys, &channels)?;
        let loaded = state_load::load(disk.as_ref(), &dir, &mut recovered, &config.keys)?;
        let journal = recovered.journal.unwrap_or_else(|| new_journal_id(clock.as_ref()));
        let sealer = config.keys.writing().map(|key| Sealer::new(key, journal)).transpose();
        let sealer = sealer.map_err(OpenError::io("preparing the encryption"))?;
        let registers = lay_out(&recovered.registers, &channels);
        let segments = recovered.segments.iter().map(|segment| {
            let mut info = segment.info.clone();
            let head =
                |channel: &ChannelRegister| segment.heads.get(&channel.name).copied().unwrap_or_default();
            info.heads = registers.channels.iter().map(head).collect();
            info
        });
        let status = JournalStatus {
            last_commit: recovered.registers.last_commit,
            damaged_commits: recovered.lost.count(),
            damaged_state_blocks: loaded.damaged_blocks,
            ..JournalStatus::default()
        };
        let published = Arc::default();
        let state = State {
            channels: live_channels(&registers, channels),
            queue: VecDeque::new(),
            bell: Bell::new(&published),
            next_order: 0,
            reader_changes: Vec::new(),
            phase: Phase::Open,
            segments: segments.collect(),
            window_bytes: 0,
            damage_seen: recovered.damage_seen.clone(),
            lost: recovered.lost.clone(),
            status,
            registers: registers.clone(),
        };
        let kept = state.channels.iter().map(|_| AtomicBool::new(false)).collect();
        let shared = Arc::new(Shared {
            kept,
            disk,
            clock: clock.clone(),
            config,
            dir,
            journal,
            sealer,
            state: Mutex::new(state),
            view: Arc::new(loaded.view),
            saved: AtomicBool::new(false),
            work: Condvar::new(),
            space: Condvar::new(),
            published,
        });
        shared.note_kept(&shared.state.lock());
        let writer = first_snapshot(&shared, registers, &recovered, loaded.files)?;
        let (committer, lock) = (Mutex::new(None), Mutex::new(Some(lock)));
        Ok((FileJournal { shared, writer: None, committer, lock }, writer))
    }

    /// What plugins remember, for a journal that is built on this one.
    pub(crate) fn remembered(&self) -> &Arc<crate::view::MemoryState> {
        &self.shared.view
    }

    fn stop(&self, phase: Phase) {
        {
            let mut state = self.shared.state.lock();
            if state.phase == Phase::Open {
                state.phase = phase;
            }
        }
        self.shared.work.notify_all();
        self.shared.space.notify_all();
        self.shared.published.notify_all();
        // Held until the thread has ended: only then whoever else closes the journal comes back, and the directory is let go of.
        let mut committer = self.committer.lock();
        if committer.take().is_some_and(|committer| committer.join().is_err()) {
            tracing::error!(dir = %self.shared.dir.display(), "the journal's thread panicked");
        }
        drop(self.lock.lock().take());
    }
}

/// The first snapshot of this opening: it names the journal, and takes what recovery found as done.
fn first_snapshot(
    shared: &Arc<Shared>,
    registers: Registers,
    recovered: &Recovered,
    state_files: StateFiles,
) -> Result<Writer, OpenError> {
    let mut writer = Writer {
        shared: shared.clone(),
        applied: registers,
        active: None,
        next_segment: recovered.next_segment,
        next_commit: recovered.next_commit,
        durable: recovered.durable,
        snapshots: recovered.snapshots,
        since_snapshot: 0,
        spares: Vec::new(),
        reserve: false,
        full: None,
        bells: Bells::default(),
        state_files,
        #[cfg(test)]
        is_stepped: false,
    };
    writer.prepare_slots();
    if let Err(error) = spares::unlink_spares(shared.disk.as_ref(), &shared.dir) {
        tracing::warn!(dir = %shared.dir.display(), %error, "spare segments stay behind");
    }
    if let Err(error) = writer.snapshot() {
        match writer::WriteError::from(error) {
            writer::WriteError::Full(error) => {
                tracing::warn!(dir = %shared.dir.display(), %error, "no snapshot at the start: the disk is full");
            }
            writer::WriteError::Broken(source) => {
                return Err(OpenError::io(format!("a snapshot in {}", shared.dir.display()))(source));
            }
        }
    }
    writer.collect();
    if shared.config.reserve_bytes > 0 {
        writer.make_reserve();
    }
    Ok(writer)
}

/// Random enough to tell journals apart: the standard library's hash keys come from the system.
fn new_journal_id(clock: &dyn Clock) -> u128 {
    let half = || {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_i64(clock.wall_ns());
        u128::from(hasher.finish())
    };
    half() << 64 | half()
}

/// The plan's channels and readers first, in their order, then those that are no longer in the plan.
fn lay_out(old: &Registers, specs: &[ChannelSpec]) -> Registers {
    let mut channels: Vec<ChannelRegister> = Vec::with_capacity(specs.len());
    for spec in specs {
        let known = old.channels.iter().find(|channel| channel.name == spec.name);
        let fresh = ChannelRegister { name: spec.name.clone(), ..ChannelRegister::default() };
        let mut channel =
            ChannelRegister { live: true, readers: Vec::new(), ..known.unwrap_or(&fresh).clone() };
        let before = known.map(|known| known.readers.as_slice()).unwrap_or_default();
        for name in &spec.readers {
            let at_end = ReaderRegister {
                name: name.clone(),
                cursor: channel.head,
                bytes: channel.head_bytes,
                ..ReaderRegister::default()
            };
            let reader = before.iter().find(|reader| reader.name == *name).unwrap_or(&at_end);
            channel.readers.push(ReaderRegister { live: true, ..reader.clone() });
        }
        let gone = before.iter().filter(|reader| !spec.readers.contains(&reader.name));
        channel
            .readers
            .extend(gone.take(limits::RETIRED_MAX).map(|reader| retire(&channel.name, channel.head, reader)));
        channels.push(channel);
    }
    let gone = old.channels.iter().filter(|channel| !specs.iter().any(|spec| spec.name == channel.name));
    for channel in gone.take(limits::RETIRED_MAX) {
        let readers =
            channel.readers.iter().map(|reader| retire(&channel.name, channel.head, reader)).collect();
        channels.push(ChannelRegister { live: false, readers, ..channel.clone() });
    }
    Registers { channels, ..old.clone() }
}

fn retire(channel: &str, head: u64, reader: &ReaderRegister) -> ReaderRegister {
    let events = head.saturating_sub(reader.cursor);
    if reader.live && events > 0 {
        tracing::warn!(channel, reader = %reader.name, events,
            "this reader is no longer configured: events that it has not acknowledged are left behind");
    }
    ReaderRegister { live: false, ..reader.clone() }
}

fn live_channels(registers: &Registers, specs: Vec<ChannelSpec>) -> Vec<Channel> {
    let channel = |(spec, register): (ChannelSpec, &ChannelRegister)| Channel {
        durable_head: register.head,
        durable_bytes: register.head_bytes,
        window: Window::default(),
        delivered: vec![VecDeque::new(); register.readers.len()],
        spec,
    };
    specs.into_iter().zip(&registers.channels).map(channel).collect()
}

impl Journal for FileJournal {
    fn channel(&self, name: &str) -> Option<ChannelId> {
        let state = self.shared.state.lock();
        let index = state.channels.iter().position(|channel| channel.spec.name == name)?;
        u16::try_from(index).ok().map(ChannelId)
    }

    fn reader_id(&self, channel: ChannelId, reader: &str) -> Option<ReaderId> {
        let state = self.shared.state.lock();
        let readers = &state.registers.channels.get(usize::from(channel.0))?.readers;
        let is_it = |known: &ReaderRegister| known.live && known.name == reader;
        u16::try_from(readers.iter().position(is_it)?).ok().map(ReaderId)
    }

    fn add_reader(&self, channel: ChannelId, reader: &str) -> Result<ReaderId, AddReaderError> {
        readers::add(&self.shared, channel, reader)
    }

    fn retire_reader(&self, channel: ChannelId, reader: ReaderId) {
        readers::retire(&self.shared, channel, reader);
    }

    fn set_capacity(&self, channel: ChannelId, events: u64, bytes: u64) {
        if let Some(channel) = self.shared.state.lock().channels.get_mut(usize::from(channel.0)) {
            (channel.spec.capacity_events, channel.spec.capacity_bytes) = (events, bytes);
        }
        self.shared.space.notify_all();
    }

    fn commit(&self, commit: Commit, deadline: Option<Instant>) -> Result<Box<dyn Ticket>, CommitError> {
        accept::commit(&self.shared, commit, deadline)
    }

    fn commit_and_wait(&self, commit: Commit, deadline: Option<Instant>) -> Result<u64, CommitError> {
        accept::commit_and_wait(&self.shared, self.writer.as_deref(), commit, deadline)
    }

    fn failure(&self) -> Option<Arc<str>> {
        match &self.shared.state.lock().phase {
            Phase::Failed(reason) => Some(reason.clone()),
            _ => None,
        }
    }

    fn position(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.shared.state.lock().registers.positions.get(key).map(|value| value.to_vec())
    }

    fn positions(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let state = self.shared.state.lock();
        let from = state.registers.positions.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded));
        let with_prefix = from.take_while(|(key, _)| key.starts_with(prefix));
        with_prefix.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    }

    fn state(&self) -> Option<Arc<dyn StateStore>> {
        Some(self.shared.view.clone())
    }

    fn open_reader(&self, channel: ChannelId, reader: ReaderId) -> Box<dyn Reader> {
        Box::new(FileReader::new(self.shared.clone(), usize::from(channel.0), usize::from(reader.0)))
    }

    fn status(&self) -> JournalStatus {
        let now_ns = self.shared.clock.wall_ns();
        // The view's lock comes before the other one.
        let remembered = self.shared.view.sizes();
        let state = self.shared.state.lock();
        let mut status = state.status.clone();
        status.state = remembered;
        if status.commits >= state.next_order {
            // What it waited for last: where acknowledgements alone come, nothing shows that the disk has room again.
            status.waiting_for = None;
        }
        status.segments = state.segments.len() as u64;
        status.segment_bytes = state.segments.iter().map(|segment| segment.end).sum();
        status.channels =
            (0..state.channels.len()).filter_map(|index| channel_status(&state, index, now_ns)).collect();
        status
    }

    fn close(&self) -> Result<(), CommitError> {
        self.stop(Phase::Closing);
        match &self.shared.state.lock().phase {
            Phase::Failed(reason) | Phase::Closed(Some(reason)) => Err(CommitError::Failed(reason.clone())),
            _ => Ok(()),
        }
    }
}

fn channel_status(state: &State, index: usize, now_ns: i64) -> Option<ChannelStatus> {
    let (channel, register) = (state.channels.get(index)?, state.registers.channels.get(index)?);
    let (events, bytes) = register.held();
    let oldest = register.needed().filter(|cursor| *cursor < register.head).map(|cursor| {
        let holds = |place: &&state::Delivered| place.first <= cursor && cursor < place.end();
        let delivered = channel.delivered.iter().flatten().find(holds).map(|place| place.time_ns);
        let recent =
            || channel.window.iter().map(|recent| &recent.place).find(holds).map(|place| place.time_ns);
        let segment = || {
            let before = |head: &(u64, u64)| head.0 <= cursor;
            let segments = state.segments.iter().rev();
            segments.clone().find(|s| s.heads.get(index).is_some_and(before)).map(|s| s.created_ns)
        };
        let since = delivered.or_else(recent).or_else(segment).unwrap_or(now_ns);
        now_ns.saturating_sub(since).max(0) as f64 / 1e9
    });
    let readers = register.readers.iter().filter(|reader| reader.live);
    Some(ChannelStatus {
        name: register.name.clone(),
        head: register.head,
        events,
        bytes,
        capacity_events: channel.spec.capacity_events,
        capacity_bytes: channel.spec.capacity_bytes,
        oldest_unacknowledged_s: oldest,
        readers: readers.map(|reader| (reader.name.clone(), reader.cursor)).collect(),
    })
}

impl Drop for FileJournal {
    /// Without a close: stops where it is, like a crash. What was not durable is not written.
    fn drop(&mut self) {
        self.stop(Phase::Dropped);
    }
}
