//! The file journal: the embedded default.
//!
//! Layers, bottom up: [`mod@format`] (bytes), `segment` (one file, read), `recovery` (what is there at the start),
//! `state` (what threads share), `saver` and `state_load` (the file of what plugins remember), `accept` (a caller's commit), `writer`, `space`, `snapshots`, `readers` (the committer),
//! `reader`, and [`FileJournal`] on top.
//!
//! ```text
//! DIR/lock             held while open
//! DIR/%016x.seg        segments
//! DIR/snapshot.a, .b   the small state, in turn
//! DIR/%016x.state      what plugins remember, as of a commit (`state.new`: on its way)
//! DIR/reserve          space given up on a full disk, for acknowledgements
//! DIR/damaged/         copies of damaged ranges: SEGMENT-OFFSET.bin
//! ```
//!
//! Commits become durable in the order in which they were handed in, except that on a full disk
//! acknowledgements pass waiting events. A new channel begins at event 0; a new reader of a channel that
//! was there before begins at the channel's end, whether it comes at an opening or later (`readers`).

mod accept;
mod config;
mod damage;
pub mod format;
mod reader;
mod readers;
mod recovery;
mod saver;
mod segment;
mod snapshots;
mod space;
mod state;
mod state_load;
mod writer;

#[cfg(test)]
mod tests;

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
pub use segment::{Frame, SegmentFile, segment_id, segment_name};

use crate::api::{
    AddReaderError, ChannelId, ChannelSpec, ChannelStatus, Commit, CommitError, Journal, JournalStatus,
    Reader, ReaderId, Ticket,
};
use crate::clock::Clock;
use crate::disk::{Disk, DiskLock};
use crate::limits;
use crate::state::StateStore;
use accept::EncodeTime;
use format::registers::{ChannelRegister, ReaderRegister, Registers};
use reader::FileReader;
use recovery::Recovered;
use saver::StateFiles;
use state::{Channel, Phase, Shared, State};
use writer::Writer;

/// File of the directory's lock.
pub(crate) const LOCK_NAME: &str = "lock";

/// File whose space is given up on a full disk.
pub(crate) const RESERVE_NAME: &str = "reserve";

/// A journal in a directory.
pub struct FileJournal {
    shared: Arc<Shared>,
    spent: EncodeTime,
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
        let dir = config.dir.clone();
        disk.create_dir(&dir).map_err(OpenError::io(format!("making {}", dir.display())))?;
        let lock = disk.lock(&dir).map_err(OpenError::io(format!("locking {}", dir.display())))?;
        let lock = lock.ok_or_else(|| OpenError::Locked(dir.clone()))?;
        let recovered = recovery::recover(disk.as_ref(), &dir)?;
        let loaded = state_load::load(disk.as_ref(), &dir, &recovered)?;
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
            damaged_commits: recovered.damaged_commits,
            ..JournalStatus::default()
        };
        let state = State {
            channels: live_channels(&registers, channels),
            queue: VecDeque::new(),
            next_order: 0,
            reader_changes: Vec::new(),
            phase: Phase::Open,
            segments: segments.collect(),
            window_bytes: 0,
            damage_seen: recovered.damage_seen.clone(),
            status,
            registers: registers.clone(),
        };
        let shared = Arc::new(Shared {
            disk,
            clock: clock.clone(),
            config,
            dir,
            journal: recovered.journal.unwrap_or_else(|| new_journal_id(clock.as_ref())),
            state: Mutex::new(state),
            view: Arc::new(loaded.view),
            saved: AtomicBool::new(false),
            work: Condvar::new(),
            space: Condvar::new(),
            published: Condvar::new(),
        });
        let writer = first_snapshot(&shared, registers, &recovered, loaded.files)?;
        let committer = std::thread::Builder::new().name("journal".into()).spawn(move || writer.run());
        let committer = committer.map_err(OpenError::io("starting the journal's thread"))?;
        Ok(Arc::new(FileJournal {
            shared,
            spent: EncodeTime::default(),
            committer: Mutex::new(Some(committer)),
            lock: Mutex::new(Some(lock)),
        }))
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
        let committer = self.committer.lock().take();
        if committer.is_some_and(|committer| committer.join().is_err()) {
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
        reserve: false,
        full: None,
        state_files,
    };
    writer.prepare_slots();
    if let Err(error) = writer.snapshot() {
        match writer::WriteError::from(error) {
            writer::WriteError::Full(error) => {
                tracing::warn!(dir = %shared.dir.display(), %error, "no snapshot at the start: the disk is full");
            }
            writer::WriteError::Broken(source) => {
                return Err(OpenError::Io {
                    what: format!("a snapshot in {}", shared.dir.display()),
                    source,
                });
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
        window: VecDeque::new(),
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

    fn commit(&self, commit: Commit, deadline: Option<Instant>) -> Result<Box<dyn Ticket>, CommitError> {
        accept::commit(&self.shared, &self.spent, commit, deadline)
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
        status.encode_ns = self.spent.total_ns();

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
