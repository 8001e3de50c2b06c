//! What all threads share: registers with everything handed in, the queue to the committer, the window.
//!
//! Constraints: one lock, held for bookkeeping only: never over I/O, encoding or checksums.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flumen_event::Batch;
use flumen_event::layout::Encoded;
use parking_lot::{Condvar, Mutex};
use smallvec::SmallVec;

use super::config::FileConfig;
use super::damage::Lost;
use super::format::commit::{AckRecord, CommitHead, Location};
use super::format::registers::Registers;
use super::format::sealed::Sealer;
use super::format::snapshot::SegmentInfo;
use super::readers::ReaderChange;
use super::ticket::{Bell, Owed};
use crate::api::{Ack, ChannelSpec, CommitError, JournalStatus};
use crate::clock::Clock;
use crate::disk::Disk;
use crate::limits;
use crate::state::StateWrites;
use crate::view::MemoryState;

/// Everything that the journal's threads, readers and tickets hold on to.
pub struct Shared {
    pub disk: Arc<dyn Disk>,
    pub clock: Arc<dyn Clock>,
    pub config: FileConfig,
    pub dir: PathBuf,
    pub journal: u128,
    /// Encrypts what is written from now on.
    pub sealer: Option<Sealer>,
    pub state: Mutex<State>,
    /// Of each channel, whether somebody reads it, so that it keeps events: for producers, without the lock.
    pub kept: Vec<AtomicBool>,
    /// What plugins remember, with everything handed in. Its lock comes before that of `state`, and is not held over waits.
    pub view: Arc<MemoryState>,
    /// A file of the plugins' state was written, or failed.
    pub saved: AtomicBool,
    /// The committer waits here: for commits, for the end.
    pub work: Condvar,
    /// Commits wait here for room in a channel.
    pub space: Condvar,
    /// Readers wait here for events.
    pub published: Arc<Condvar>,
}

/// Where the journal is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Takes commits.
    Open,
    /// Writes what it has taken, takes no more.
    Closing,
    /// Done; the text says what went wrong at the end.
    Closed(Option<Arc<str>>),
    /// The disk failed.
    Failed(Arc<str>),
    /// Dropped without a close: stops where it is, like a crash.
    Dropped,
}

/// Under the lock.
pub struct State {
    /// With everything handed in, durable or not.
    pub registers: Registers,
    /// Configured channels, by `ChannelId`.
    pub channels: Vec<Channel>,
    pub queue: VecDeque<Box<Queued>>,
    /// What the next commits wait for.
    pub bell: Arc<Bell>,
    pub next_order: u64,
    pub reader_changes: Vec<ReaderChange>,
    pub phase: Phase,
    /// Segments with frames that may be read, oldest first; the last is the active one, if any is active.
    pub segments: Vec<SegmentInfo>,
    pub window_bytes: u64,
    /// Damaged places already reported.
    pub damage_seen: BTreeSet<Location>,
    /// Commits that damage took.
    pub lost: Lost,
    pub status: JournalStatus,
}

/// A configured channel.
pub struct Channel {
    pub spec: ChannelSpec,
    /// Events that readers may see.
    pub durable_head: u64,
    /// Their bytes.
    pub durable_bytes: u64,
    pub window: Window,
    /// Per reader: what was delivered and not acknowledged.
    pub delivered: Vec<VecDeque<Delivered>>,
}

/// Recent batches, without gaps up to `durable_head`.
#[derive(Default)]
pub struct Window {
    recents: VecDeque<Recent>,
    /// How many it has let go of.
    gone: u64,
}

/// Which batch, of all that were ever in a window.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seat(u64);

impl Window {
    pub fn first(&self) -> Option<&Recent> {
        self.recents.front()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Recent> {
        self.recents.iter()
    }

    fn push(&mut self, recent: Recent) {
        self.recents.push_back(recent);
    }

    fn pop_if(&mut self, is_done: impl FnOnce(&Recent) -> bool) -> Option<Recent> {
        let gone = self.recents.pop_front_if(|recent| is_done(recent));
        self.gone += u64::from(gone.is_some());
        gone
    }

    /// The batch that holds a cursor, if it is there; `seat` is where it is looked for first, and then the one behind.
    pub fn find(&self, cursor: u64, seat: &mut Seat) -> Option<&Recent> {
        let holds = |recent: &&Recent| recent.place.first <= cursor && cursor < recent.place.end();
        let expected = seat.0.checked_sub(self.gone).and_then(|at| usize::try_from(at).ok());
        let at = match expected {
            Some(at) if self.recents.get(at).as_ref().is_some_and(holds) => at,
            _ => self.recents.partition_point(|recent| recent.place.end() <= cursor),
        };
        *seat = Seat(self.gone + at as u64 + 1);
        self.recents.get(at).filter(holds)
    }
}

/// A batch in the window.
pub struct Recent {
    pub place: Delivered,
    pub batch: Batch,
}

/// A put as a reader got it.
#[derive(Debug, Clone, Copy)]
pub struct Delivered {
    pub first: u64,
    pub rows: u64,
    pub bytes_before: u64,
    pub bytes: u64,
    pub time_ns: i64,
    pub location: Location,
}

impl Delivered {
    pub fn end(&self) -> u64 {
        self.first + self.rows
    }

    /// Bytes ever put before a cursor in this put.
    fn bytes_at(&self, cursor: u64) -> u64 {
        let into = cursor.saturating_sub(self.first).min(self.rows);
        let share = u128::from(self.bytes) * u128::from(into) / u128::from(self.rows.max(1));
        self.bytes_before + share as u64
    }
}

/// Key and value.
pub type Position = (Arc<[u8]>, Arc<[u8]>);

/// A commit on its way.
pub struct Queued {
    /// In which it was handed in.
    pub order: u64,
    pub head: CommitHead,
    pub data: Encoded,
    pub data_crc: u32,
    /// Per put of the head: the batch.
    pub batches: SmallVec<[Batch; 1]>,
    pub positions: Vec<Position>,
    /// If there is any.
    pub plugin_state: Option<Arc<[StateWrites]>>,
    pub ticket: Owed,
}

impl Queued {
    /// Bytes of its frame.
    pub fn frame_bytes(&self) -> u64 {
        super::format::frame::FRAME_HEADER_BYTES as u64 + self.head.encoded_bytes() + self.data.len() as u64
    }

    /// It may pass puts that wait for space: what a reader finished with, and what little goes with it.
    pub fn may_overtake(&self) -> bool {
        let is_small = self.head.puts.is_empty() || self.data.len() as u64 <= limits::OVERTAKING_BYTES_MAX;
        is_small && !self.head.acks.is_empty()
    }
}

impl Shared {
    /// After a reader came or went.
    pub fn note_kept(&self, state: &State) {
        for (is_kept, register) in self.kept.iter().zip(&state.registers.channels) {
            is_kept.store(register.needed().is_some(), Ordering::Release);
        }
    }
}

impl State {
    /// Whether commits are taken.
    pub fn check_open(&self) -> Result<(), CommitError> {
        match &self.phase {
            Phase::Open => Ok(()),
            Phase::Failed(reason) => Err(CommitError::Failed(reason.clone())),
            Phase::Closing | Phase::Closed(_) | Phase::Dropped => Err(CommitError::Closing),
        }
    }

    /// A channel of these that has no room now.
    pub fn full_channel(&self, channels: &[usize]) -> Option<CommitError> {
        channels.iter().find_map(|index| {
            let spec = &self.channels.get(*index)?.spec;
            let (events, bytes) = self.registers.channels.get(*index)?.held();
            let full = events > 0 && (events >= spec.capacity_events || bytes >= spec.capacity_bytes);
            full.then(|| CommitError::Full { channel: spec.name.clone(), events, bytes })
        })
    }

    /// An acknowledgement with what is stored with it, and takes it over.
    pub fn acknowledge(&mut self, ack: Ack) -> Option<AckRecord> {
        let (c, r) = (usize::from(ack.channel.0), usize::from(ack.reader.0));
        let channel = self.channels.get_mut(c)?;
        let delivered = channel.delivered.get_mut(r)?;
        let register = self.registers.channels.get(c)?;
        let reader = register.readers.get(r)?;
        let cursor = if ack.cursor > channel.durable_head {
            let (given, head) = (ack.cursor, channel.durable_head);
            tracing::warn!(channel = %register.name, reader = %reader.name, given, head,
                "acknowledgement past the channel's end, taken as its end");
            head
        } else {
            ack.cursor
        };
        let mut record = AckRecord {
            channel: ack.channel.0,
            reader: ack.reader.0,
            cursor,
            bytes: reader.bytes,
            location: reader.location,
        };
        if cursor <= reader.cursor {
            record.cursor = reader.cursor;
            return Some(record);
        }
        let mut last = None;
        while let Some(done) = delivered.pop_front_if(|place| place.end() <= cursor) {
            last = Some(done);
        }
        match delivered.front().filter(|place| place.first <= cursor).copied().or(last) {
            Some(place) if place.end() >= cursor => {
                record.bytes = place.bytes_at(cursor);
                record.location = place.location;
            }
            // Not delivered since the start (a destination knew its cursor): by proportion of what is durable. With what is on its way
            // the channel could seem to have more bytes than it ever had.
            _ => {
                let events = u128::from(channel.durable_head.saturating_sub(reader.cursor)).max(1);
                let bytes = u128::from(channel.durable_bytes.saturating_sub(reader.bytes));
                record.bytes += (bytes * u128::from(cursor - reader.cursor) / events) as u64;
            }
        }
        self.registers.acknowledge(&record);
        self.release(c);
        Some(record)
    }

    /// Lets go of batches in the window that all readers have acknowledged.
    pub fn release(&mut self, channel: usize) {
        let needed = self.registers.channels.get(channel).and_then(|register| register.needed());
        let (Some(needed), Some(channel)) = (needed, self.channels.get_mut(channel)) else { return };
        while let Some(done) = channel.window.pop_if(|recent| recent.place.end() <= needed) {
            self.window_bytes -= done.place.bytes;
        }
    }

    /// Makes durable events of a channel visible.
    pub fn publish(&mut self, channel: usize, recent: Recent) {
        let needed = self.registers.channels.get(channel).and_then(|register| register.needed());
        let Some(channel) = self.channels.get_mut(channel) else { return };
        channel.durable_head = recent.place.end();
        channel.durable_bytes = recent.place.bytes_before + recent.place.bytes;
        if needed.is_some_and(|needed| needed < recent.place.end()) {
            self.window_bytes += recent.place.bytes;
            channel.window.push(recent);
        }
    }

    /// Forgets the oldest batches until the window is within its bytes.
    pub fn trim_window(&mut self, bytes_max: u64) {
        while self.window_bytes > bytes_max {
            let age = |channel: &&mut Channel| channel.window.first().map(|recent| recent.place.location);
            let oldest = self.channels.iter_mut().filter(|channel| age(channel).is_some()).min_by_key(age);
            let Some(gone) = oldest.and_then(|channel| channel.window.pop_if(|_| true)) else { return };
            self.window_bytes -= gone.place.bytes;
        }
    }

    /// Remembers where a reader got events from, until it acknowledges them.
    pub fn delivered(&mut self, channel: usize, reader: usize, place: Delivered) {
        let delivered = self.channels.get_mut(channel).and_then(|channel| channel.delivered.get_mut(reader));
        let Some(delivered) = delivered else { return };
        let new = delivered.back().is_none_or(|last| last.end() <= place.first);
        if new && delivered.len() < limits::DELIVERED_MAX {
            delivered.push_back(place);
        }
    }

    /// Where a reader starts to read the disk for `cursor`: at or before the frame that holds it.
    pub fn locate(&self, channel: usize, reader: usize, cursor: u64) -> Option<Location> {
        let before = |segment: &&SegmentInfo| segment.heads.get(channel).is_some_and(|head| head.0 <= cursor);
        let segment = self.segments.iter().rev().find(before).or(self.segments.first())?;
        let start = Location { segment: segment.id, offset: 0 };
        let register = self.registers.channels.get(channel)?.readers.get(reader)?;
        let known = if register.cursor <= cursor { register.location } else { Location::default() };
        let near = self.channels.get(channel).and_then(|channel| {
            let places = channel.delivered.get(reader)?;
            places.iter().rev().find(|place| place.first <= cursor).map(|place| place.location)
        });
        Some(start.max(known).max(near.unwrap_or_default()))
    }

    /// Counts commits that are found missing; returns how many of them nobody knew of.
    pub fn count_lost(&mut self, missing: &Range<u64>) -> u64 {
        let new = self.lost.add(missing);
        self.status.damaged_commits += new;
        new
    }

    /// Wakes nobody; the caller does.
    pub fn fail(&mut self, reason: &Arc<str>) {
        self.phase = Phase::Failed(reason.clone());
        for queued in self.queue.drain(..) {
            queued.ticket.resolve(Err(CommitError::Failed(reason.clone())));
        }
        self.refuse_reader_changes(reason);
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn recent(first: u64, rows: u64) -> Recent {
        let location = Location::default();
        let place = Delivered { first, rows, bytes_before: 0, bytes: 0, time_ns: 0, location };
        Recent { place, batch: Batch::empty() }
    }

    /// Wherever it is looked for first: what it finds is what holds the cursor.
    #[test]
    fn a_window_finds_what_holds_a_cursor() {
        let mut random = SmallRng::seed_from_u64(7);
        for _ in 0..200 {
            let (mut window, mut end, mut seats) = (Window::default(), 0, [Seat::default(); 3]);
            for _ in 0..100 {
                match random.random_range(0..4) {
                    0 => drop(window.pop_if(|_| true)),
                    1 => {
                        let rows = random.random_range(1..5);
                        window.push(recent(end, rows));
                        end += rows;
                    }
                    _ => {
                        let (cursor, seat) = (random.random_range(0..end + 3), random.random_range(0..3));
                        let holds = |it: &&Recent| (it.place.first..it.place.end()).contains(&cursor);
                        let expected = window.iter().find(holds).map(|it| it.place.first);
                        let found = window.find(cursor, &mut seats[seat]).map(|it| it.place.first);
                        assert_eq!(found, expected);
                    }
                }
            }
        }
    }
}
