//! The committer: one thread per journal that gathers, writes, syncs and publishes. A caller that waits for its commit does the same in
//! its place while nobody else does ([`Writer::lead`]).
//!
//! Constraints: readers and tickets see a commit only after its group is durable. One group is one
//! `pwritev` and one `fdatasync`; while it runs the next one gathers in the queue.
//!
//! How it fails: an error that means "no space" makes it wait (see [`super::space`]); any other error is
//! final for the segment, which is never written or synced again: the group, still in memory, goes to
//! a fresh segment, whose first commit number makes the abandoned frames void. When fresh segments fail
//! too, the journal has failed: every ticket and every later commit gets the reason. So it does when whoever writes panics.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::config::Durability;
use super::format::commit::Location;
use super::format::frame::{FrameHeader, Kind};
use super::format::registers::Registers;
use super::format::sealed::{Piece, Sealer};
use super::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use super::format::snapshot::SegmentInfo;
use super::saver::StateFiles;
use super::segment::segment_name;
use super::snapshots::Snapshots;
use super::space::{Full, Pause};
use super::state::{Delivered, Phase, Queued, Recent, Shared};
use super::ticket::{Bell, Bells};
use parking_lot::{Mutex, MutexGuard};

use crate::api::CommitError;
use crate::disk::{DiskFile, write_all_at};
use crate::limits;

/// The segment that is written to.
pub(super) struct Active {
    file: Box<dyn DiskFile>,
    id: u64,
    /// Behind the last durable frame.
    pub end: u64,
    allocated: u64,
    /// Header CRC of the last durable frame.
    pub crc: u32,
    /// It lies in reserved space: for overtaking commits only.
    reserved: bool,
}

impl Active {
    pub fn place(&self) -> Location {
        Location { segment: self.id, offset: self.end }
    }

    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Why a write did not happen.
#[derive(Debug)]
pub(super) enum WriteError {
    /// There is no space; later there may be.
    Full(io::Error),
    /// The disk does not do what it should.
    Broken(io::Error),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => WriteError::Full(error),
            _ => WriteError::Broken(error),
        }
    }
}

/// Which commits may be written now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Select {
    /// All, in order.
    InOrder,
    /// Those that may overtake commits waiting for space.
    Overtaking,
}

/// What a group was.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Written {
    /// Commits.
    pub commits: usize,
    /// Those among them with puts.
    pub puts: usize,
}

/// The committer's own.
pub(super) struct Writer {
    pub shared: Arc<Shared>,
    /// As of the last durable commit.
    pub applied: Registers,
    pub active: Option<Active>,
    pub next_segment: u64,
    pub next_commit: u64,
    /// All commits up to this one are durable.
    pub durable: u64,
    pub snapshots: Snapshots,
    /// Segment bytes since the last snapshot.
    pub since_snapshot: u64,
    /// Deleted segments that are written again.
    pub spares: Vec<PathBuf>,
    /// The reserve file is there.
    pub reserve: bool,
    pub full: Option<Full>,
    /// Of what was published.
    pub bells: Bells,
    pub state_files: StateFiles,
    /// A test takes the steps one by one: nothing goes on beside them.
    #[cfg(test)]
    pub is_stepped: bool,
}

/// The committer's thread, until the journal is closed, dropped or failed.
pub(super) fn run(writer: &Mutex<Writer>) {
    let shared = writer.lock().shared.clone();
    loop {
        {
            let mut state = shared.state.lock();
            while state.queue.is_empty()
                && state.reader_changes.is_empty()
                && state.phase == Phase::Open
                && !shared.saved.load(Ordering::Acquire)
            {
                if shared.work.wait_for(&mut state, limits::STATE_SWEEP_EVERY).timed_out() {
                    MutexGuard::unlocked(&mut state, || sweep(&shared));
                }
            }
            match state.phase {
                Phase::Open => {}
                Phase::Closing if !state.queue.is_empty() => {}
                Phase::Closing => {
                    drop(state);
                    let mut writer = writer.lock();
                    // Who wrote in our place may have put back what found no space, or found that the disk fails.
                    if writer.is_live() && shared.state.lock().queue.is_empty() {
                        return writer.close();
                    }
                }
                _ => {
                    drop(state);
                    return writer.lock().drop_queue();
                }
            }
        }
        let mut writer = writer.lock();
        // Who wrote in our place may have found that the disk fails.
        if !writer.is_live() {
            continue;
        }
        match writer.turn() {
            Ok(None) => Writer::unlock(writer),
            Ok(Some(pause)) => writer.wait(&pause),
            Err(reason) => return writer.fail(&reason),
        }
    }
}

impl Writer {
    /// One round in the thread of a caller that waits for its commit: neither the committer nor the caller has to be woken.
    /// What it cannot write now is left to the committer, which can wait.
    pub fn lead(mut writer: MutexGuard<'_, Writer>) {
        if writer.is_live()
            && let Err(reason) = writer.turn()
        {
            writer.fail(&reason);
        }
        // Who handed in what was put back called the committer perhaps while it was not in the queue.
        if !writer.shared.state.lock().queue.is_empty() {
            writer.shared.work.notify_one();
        }
        Writer::unlock(writer);
    }

    /// Others may write, and then whoever waits for what was written is woken: it takes the processor, and the disk would have nothing
    /// to do meanwhile.
    fn unlock(mut writer: MutexGuard<'_, Writer>) {
        let mut bells = std::mem::take(&mut writer.bells);
        drop(writer);
        bells.ring();
    }

    /// It is open, or writes what it has taken.
    fn is_live(&self) -> bool {
        matches!(self.shared.state.lock().phase, Phase::Open | Phase::Closing)
    }

    /// [`Writer::write_some`], whoever does it; what it publishes rings when others may write. A panic in it (a bug) leaves things half
    /// done: nobody may write after that, as after a failure of the disk.
    pub fn turn(&mut self) -> Result<Option<Pause>, Arc<str>> {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.write_some()));
        outcome.unwrap_or_else(|_| {
            Err(format!("writing {} panicked (a bug of Flumen)", self.shared.dir.display()).into())
        })
    }

    /// One round of a test that takes the steps one by one.
    #[cfg(test)]
    pub fn work(&mut self) -> Result<Option<Pause>, Arc<str>> {
        let outcome = self.write_some();
        self.bells.ring();
        outcome
    }

    /// Writes what can be written; says how long to wait when nothing can. `Err`: the journal has failed.
    fn write_some(&mut self) -> Result<Option<Pause>, Arc<str>> {
        self.change_readers();
        if self.may_try_in_order() {
            match self.write_retrying(Select::InOrder)? {
                Ok(written) => {
                    if written.puts > 0 {
                        self.no_longer_full();
                    }
                    self.maintain();
                    return Ok(None);
                }
                Err(error) => self.now_full(&error)?,
            }
        }
        self.work_while_full()
    }

    /// One group; on a broken segment, again on a fresh one.
    pub fn write_retrying(&mut self, select: Select) -> Result<Result<Written, io::Error>, Arc<str>> {
        let mut fresh = 0;
        loop {
            match self.write_group(select) {
                Ok(written) => return Ok(Ok(written)),
                Err(WriteError::Full(error)) => return Ok(Err(error)),
                Err(WriteError::Broken(error)) if fresh == limits::FRESH_SEGMENTS_MAX => {
                    return Err(format!("writing {}: {error}", self.shared.dir.display()).into());
                }
                Err(WriteError::Broken(error)) => {
                    let segment = self.active.as_ref().map(|active| segment_name(active.id));
                    tracing::error!(dir = %self.shared.dir.display(), ?segment, %error,
                        "the disk failed: the segment is abandoned and its last commits are written to a fresh one");
                    self.active = None;
                    fresh += 1;
                }
            }
        }
    }

    /// Gathers one group, writes it, makes it durable, publishes it.
    fn write_group(&mut self, select: Select) -> Result<Written, WriteError> {
        let first = {
            let state = self.shared.state.lock();
            let first = match select {
                Select::InOrder => Some(0),
                Select::Overtaking => super::space::overtaking(&state.queue).first().copied(),
            };
            first.and_then(|index| state.queue.get(index)).map(|queued| queued.frame_bytes())
        };
        let Some(first) = first else { return Ok(Written::default()) };
        let room = self.room_for(first, select == Select::Overtaking)?;
        let group = self.gather(select, room);
        match self.write(&group) {
            Ok(locations) => {
                let puts = group.iter().filter(|queued| !queued.head.puts.is_empty()).count();
                let written = Written { commits: group.len(), puts };
                self.publish(group, &locations);
                Ok(written)
            }
            Err(error) => {
                let mut state = self.shared.state.lock();
                if select == Select::InOrder {
                    group.into_iter().rev().for_each(|queued| state.queue.push_front(queued));
                } else {
                    state.queue.extend(group);
                    state.queue.make_contiguous().sort_by_key(|queued| queued.order);
                }
                Err(error)
            }
        }
    }

    /// Takes commits from the queue that fit in `room` bytes and one group.
    fn gather(&self, select: Select, room: u64) -> VecDeque<Box<Queued>> {
        let mut state = self.shared.state.lock();
        let mut left = room.min(self.shared.config.group_bytes_max);
        let mut is_first = true;
        let mut fits = |queued: &Queued| {
            let size = queued.frame_bytes();
            let allowed = if std::mem::take(&mut is_first) { room } else { left };
            left = left.saturating_sub(size);
            size <= allowed
        };
        let group = match select {
            Select::InOrder => {
                let count = state.queue.iter().take_while(|queued| fits(queued)).count();
                state.queue.drain(..count).collect()
            }
            Select::Overtaking => {
                let mut group = VecDeque::new();
                for index in super::space::overtaking(&state.queue) {
                    let at = index - group.len();
                    if !state.queue.get(at).is_some_and(|queued| fits(queued)) {
                        break;
                    }
                    group.extend(state.queue.remove(at));
                }
                group
            }
        };
        // What comes from here on waits for another group.
        state.bell = Bell::new(&self.shared.published);
        group
    }

    fn write(&mut self, group: &VecDeque<Box<Queued>>) -> Result<Vec<Location>, WriteError> {
        let Some(active) = &self.active else { return Ok(Vec::new()) };
        let bytes_of_heads = |queued: &Queued| queued.frame_bytes() as usize - queued.data.len();
        // Behind each other: headers and heads of all frames, in memory of their own.
        let mut heads = Vec::with_capacity(group.iter().map(|queued| bytes_of_heads(queued)).sum());
        let mut locations = Vec::with_capacity(group.len());
        let (mut crc, mut end, mut commit) = (active.crc, active.end, self.next_commit);
        let mut head = Vec::new();
        for queued in group {
            head.clear();
            queued.head.encode(&mut head);
            let header = FrameHeader {
                kind: Kind::Commit,
                is_sealed: self.shared.sealer.is_some(),
                data_bytes: queued.data.len() as u32,
                head_bytes: head.len() as u32,
                commit,
                durable: self.durable,
                segment: active.id,
                journal: self.shared.journal as u64,
                previous_crc: crc,
                head_crc: crc32c::crc32c(&head),
                data_crc: queued.data_crc,
            };
            crc = header.encode(&mut heads);
            heads.extend_from_slice(&head);
            locations.push(Location { segment: active.id, offset: end });
            end += header.frame_bytes();
            commit += 1;
        }
        let parts = group.iter().map(|queued| 1 + queued.data.parts().len()).sum();
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(parts);
        let mut rest = heads.as_slice();
        for queued in group {
            let head;
            (head, rest) = rest.split_at_checked(bytes_of_heads(queued)).unwrap_or((rest, &[]));
            slices.push(IoSlice::new(head));
            slices.extend(queued.data.parts().map(IoSlice::new));
        }
        let started = self.shared.clock.now();
        write_all_at(active.file.as_ref(), active.end, &mut slices)?;
        let written = self.shared.clock.now();
        if self.shared.config.durability == Durability::Durable {
            // Whatever it says, this segment's pages can no longer be trusted: never "full, try again".
            active.file.sync_data().map_err(WriteError::Broken)?;
        }
        let synced = self.shared.clock.now();
        let bytes = end - active.end;
        if let Some(active) = &mut self.active {
            (active.end, active.crc) = (end, crc);
        }
        self.next_commit = commit;
        self.since_snapshot += bytes;
        self.state_files.since_bytes += bytes;
        if self.shared.config.durability == Durability::Durable {
            self.durable = commit - 1;
        }
        let mut state = self.shared.state.lock();
        state.status.syncs += 1;
        state.status.bytes_written += bytes;
        state.status.write_ns += nanos(written.saturating_duration_since(started));
        state.status.sync_ns += nanos(synced.saturating_duration_since(written));
        Ok(locations)
    }

    /// Makes a durable group visible; its bells wake the readers, too.
    fn publish(&mut self, group: VecDeque<Box<Queued>>, locations: &[Location]) {
        let first = self.next_commit - group.len() as u64;
        let (mut recent, mut tickets) = (Vec::with_capacity(group.len()), Vec::with_capacity(group.len()));
        for ((queued, commit), location) in group.into_iter().zip(first..).zip(locations) {
            let Queued { head, batches, positions, ticket, .. } = *queued;
            self.applied.apply(commit, &head);
            if head.has_state
                && let Some(active) = &self.active
            {
                self.state_files.committed(active.id);
            }
            for (key, value) in &positions {
                self.applied.set_position(key, value);
            }
            for (put, batch) in head.puts.iter().zip(batches) {
                let batches = std::iter::repeat_n(batch, put.channels.len());
                for (part, batch) in put.channels.iter().zip(batches) {
                    let place = Delivered {
                        first: part.first,
                        rows: u64::from(put.rows),
                        bytes_before: part.bytes_before,
                        bytes: put.bytes,
                        time_ns: head.time_ns,
                        location: *location,
                    };
                    recent.push((part.channel as usize, Recent { place, batch }));
                }
            }
            tickets.push((ticket, commit));
        }
        let mut state = self.shared.state.lock();
        if let (Some(active), Some(info)) = (&self.active, state.segments.last_mut()) {
            info.end = active.end;
        }
        for (channel, recent) in recent {
            state.publish(channel, recent);
        }
        state.trim_window(self.shared.config.window_bytes);
        state.status.commits += tickets.len() as u64;
        state.status.last_commit = self.next_commit - 1;
        drop(state);
        tickets.iter().for_each(|(ticket, commit)| self.bells.settle(ticket.cell(), *commit));
    }

    /// Bytes free in the active segment, after a roll if `bytes` did not fit.
    fn room_for(&mut self, bytes: u64, from_reserve: bool) -> Result<u64, WriteError> {
        if let Some(active) = &self.active
            && active.allocated - active.end >= bytes
            && (from_reserve || !active.reserved)
        {
            return Ok(active.allocated - active.end);
        }
        if !from_reserve {
            self.reserve_before_puts()?;
        }
        match self.roll(bytes, self.shared.config.segment_bytes, false) {
            // Half of the reserve: the other half is for the snapshots that deletion needs.
            Err(WriteError::Full(_)) if from_reserve && self.release_reserve() => {
                self.roll(bytes, self.shared.config.reserve_bytes / 2, true)?;
            }
            other => other?,
        }
        Ok(self.active.as_ref().map(|active| active.allocated - active.end).unwrap_or_default())
    }

    /// A new segment with room for `bytes`, of `size` or more.
    pub fn roll(&mut self, bytes: u64, size: u64, reserved: bool) -> Result<(), WriteError> {
        let mut checkpoint = Vec::new();
        self.applied.encode(&mut checkpoint);
        super::format::wire::pad(&mut checkpoint);
        if let Some(sealer) = &self.shared.sealer {
            checkpoint = sealer.seal(Piece::Frame, checkpoint.len(), [checkpoint.as_slice()])?;
        }
        let id = self.next_segment;
        self.next_segment += 1;
        let start = SEGMENT_HEADER_BYTES as u64 + 64 + checkpoint.len() as u64;
        let allocated = size.max(start + bytes).max(limits::SEGMENT_BYTES_MIN).next_multiple_of(4096);
        let path = self.shared.dir.join(segment_name(id));
        let created_ns = self.shared.clock.wall_ns();
        let header = SegmentHeader {
            journal: self.shared.journal,
            segment: id,
            first_commit: self.next_commit,
            created_ns,
            names_crc: self.applied.names_crc(),
        };
        let (file, made) = match self.take_spare() {
            Some(spare) => spare,
            None => (self.shared.disk.create(&path)?, path.clone()),
        };
        match self.begin_segment(file.as_ref(), &made, &header, &checkpoint, allocated) {
            Ok(crc) => {
                let ended = self.active.replace(Active { file, id, end: start, allocated, crc, reserved });
                self.ended(ended);
            }
            Err(error) => {
                drop(file);
                // By either name: a spare may have got the segment's. Its header would make void what is written meanwhile.
                let mut gone = Ok(());
                for name in [&made, &path] {
                    let unlinked = self.shared.disk.unlink(name);
                    gone = gone.and(unlinked.or_else(|error| match error.kind() {
                        io::ErrorKind::NotFound => Ok(()),
                        _ => Err(error),
                    }));
                }
                if let Err(error) = gone.and_then(|()| self.shared.disk.sync_dir(&self.shared.dir)) {
                    tracing::warn!(path = %path.display(), %error, "an unfinished segment stays behind");
                    self.active = None;
                }
                return Err(error);
            }
        }
        self.since_snapshot += start;
        let heads = self.applied.channels.iter().map(|channel| (channel.head, channel.head_bytes)).collect();
        let key = self.shared.sealer.as_ref().map(Sealer::name);
        let info = SegmentInfo { id, first_commit: self.next_commit, created_ns, end: start, heads, key };
        self.shared.state.lock().segments.push(info);
        Ok(())
    }

    fn begin_segment(
        &self,
        file: &dyn DiskFile,
        made: &Path,
        header: &SegmentHeader,
        checkpoint: &[u8],
        allocated: u64,
    ) -> Result<u32, WriteError> {
        file.preallocate(allocated)?;
        let (mut bytes, header_crc) = {
            let (bytes, crc) = header.encode();
            (bytes.to_vec(), crc)
        };
        let frame = FrameHeader {
            kind: Kind::Checkpoint,
            is_sealed: self.shared.sealer.is_some(),
            data_bytes: checkpoint.len() as u32,
            head_bytes: 0,
            commit: self.next_commit - 1,
            durable: self.durable,
            segment: header.segment,
            journal: header.journal as u64,
            previous_crc: header_crc,
            head_crc: crc32c::crc32c(&[]),
            data_crc: crc32c::crc32c(checkpoint),
        };
        let crc = frame.encode(&mut bytes);
        write_all_at(file, 0, &mut [IoSlice::new(&bytes), IoSlice::new(checkpoint)])?;
        if self.shared.config.durability == Durability::Durable {
            file.sync_data()?;
        }
        let path = self.shared.dir.join(segment_name(header.segment));
        if made != path {
            self.shared.disk.rename(made, &path)?;
        }
        if self.shared.config.durability == Durability::Durable {
            self.shared.disk.sync_dir(&self.shared.dir)?;
        }
        Ok(crc)
    }

    /// Gives the rest of a full segment back.
    fn ended(&mut self, ended: Option<Active>) {
        let Some(ended) = ended else { return };
        if self.shared.config.durability == Durability::Os {
            let synced = ended.file.sync_data().and_then(|()| self.shared.disk.sync_dir(&self.shared.dir));
            match synced {
                // What is missing of it from here on is damage, and what comes behind it stays.
                Ok(()) => self.durable = self.next_commit - 1,
                Err(error) => {
                    tracing::error!(segment = %segment_name(ended.id), %error, "a full segment may not be on disk");
                }
            }
        }
        if let Err(error) = ended.file.truncate(ended.end) {
            tracing::warn!(segment = %segment_name(ended.id), %error, "a full segment keeps its unused space");
        }
    }

    pub fn fail(&mut self, reason: &Arc<str>) {
        self.bells.ring();
        self.cancel_saving();
        self.active = None;
        tracing::error!(dir = %self.shared.dir.display(), %reason, "the journal has failed and takes no more commits");
        self.shared.state.lock().fail(reason);
        self.wake_everyone();
    }

    pub fn drop_queue(&mut self) {
        self.cancel_saving();
        self.active = None;
        let queue = {
            let mut state = self.shared.state.lock();
            state.refuse_reader_changes(&CommitError::Closing.to_string());
            std::mem::take(&mut state.queue)
        };
        queue.into_iter().for_each(|queued| queued.ticket.resolve(Err(CommitError::Closing)));
        self.wake_everyone();
    }

    /// After the last commit: a snapshot, so that the next start scans nothing.
    pub fn close(&mut self) {
        self.cancel_saving();
        let snapshot = self.snapshot();
        if let Some(active) = self.active.take()
            && let Err(error) = active.file.truncate(active.end)
        {
            tracing::warn!(segment = %segment_name(active.id), %error, "the last segment keeps its unused space");
        }
        let trouble: Option<Arc<str>> =
            snapshot.err().map(|error| format!("the last snapshot: {error}").into());
        let mut state = self.shared.state.lock();
        state.refuse_reader_changes(&CommitError::Closing.to_string());
        state.phase = Phase::Closed(trouble);
        drop(state);
        self.wake_everyone();
    }

    fn wake_everyone(&self) {
        self.shared.published.notify_all();
        self.shared.space.notify_all();
        self.shared.work.notify_all();
    }
}

/// What has expired is forgotten, also when nobody writes.
fn sweep(shared: &Shared) {
    let mut view = shared.view.view().lock();
    if !view.is_empty() {
        view.sweep_some(shared.clock.wall_ns(), &mut |_, _| {});
    }
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
