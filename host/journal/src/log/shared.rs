//! What all threads share: registers and the view of the state with everything handed in, the queue to the committer, and the index of
//! what readers still need.
//!
//! Constraints: the lock of the view comes before that of the state; neither is held over what the log does.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use flumen_event::layout::Encoded;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{CommitCell, LogConfig, Readers};
use crate::api::{Ack, CommitError, JournalStatus};
use crate::clock::Clock;
use crate::file::format::commit::{AckRecord, CommitHead, Location};
use crate::file::format::registers::{ChannelRegister, Registers};
use crate::file::format::sealed::Sealer;
use crate::view::MemoryState;

/// Everything that the journal's threads, readers and tickets hold on to.
pub(super) struct Shared {
    pub config: LogConfig,
    pub clock: Arc<dyn Clock>,
    pub readers: Readers,
    /// What plugins remember, with everything handed in.
    pub view: MemoryState,
    pub state: Mutex<State>,
    /// The committer waits here.
    pub work: Condvar,
    /// Everybody else waits here: for the opening, for room, for events.
    pub changed: Condvar,
    pub encode_ns: AtomicU64,
}

/// Where the journal is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// Takes commits, as soon as it is read.
    Open,
    /// Writes what it has taken until then, takes no more.
    Closing(Instant),
    /// Done.
    Closed,
    /// The log is not ours any more, or cannot be read.
    Failed(Arc<str>),
    /// Dropped without a close: stops where it is, like a crash.
    Dropped,
}

/// Under the lock.
pub(super) struct State {
    pub phase: Phase,
    /// `None` until the log was read.
    pub opened: Option<Opened>,
    /// With everything handed in, durable or not; the configured channels and readers come first, in their order.
    pub registers: Registers,
    /// By `ChannelId`.
    pub channels: Vec<Channel>,
    pub queue: VecDeque<Queued>,
    /// Of what was handed in and does not count yet.
    pub queue_bytes: usize,
    /// Number of the next commit.
    pub next_number: u64,
    /// Why commits wait.
    pub waiting_for: Option<String>,
    /// Since when an append is under way.
    pub appending: Option<Instant>,
    pub figures: JournalStatus,
    /// Something of what was handed in did not get into the log.
    pub is_unfinished: bool,
    /// Commits that a reader found damaged.
    pub damaged: BTreeSet<u64>,
}

/// What the log said.
#[derive(Clone)]
pub(super) struct Opened {
    pub journal: [u8; 16],
    pub sealer: Option<Arc<Sealer>>,
}

/// A configured channel.
pub(super) struct Channel {
    pub capacity_events: u64,
    pub capacity_bytes: u64,
    /// Somebody reads it.
    pub is_kept: bool,
    /// Events that readers may see.
    pub durable_head: u64,
    /// Of puts that count and that some reader needs, in order.
    pub index: VecDeque<Entry>,
}

/// Where a put is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Number of its commit.
    pub commit: u64,
    /// Which of the commit's puts.
    pub put: usize,
    pub first: u64,
    pub rows: u64,
    pub bytes_before: u64,
    pub bytes: u64,
    pub time_ns: i64,
    /// At or before the commit.
    pub place: u64,
    /// Bytes of the log before it.
    pub log_bytes: u64,
}

impl Entry {
    pub fn end(&self) -> u64 {
        self.first.saturating_add(self.rows)
    }

    /// Bytes ever put before a cursor in it.
    fn bytes_at(&self, cursor: u64) -> u64 {
        let into = cursor.saturating_sub(self.first).min(self.rows);
        let share = u128::from(self.bytes) * u128::from(into) / u128::from(self.rows.max(1));
        self.bytes_before.saturating_add(share as u64)
    }
}

/// A commit on its way.
pub(super) struct Queued {
    pub number: u64,
    pub head: CommitHead,
    pub data: Encoded,
    /// The channels that the indexes in the head mean.
    pub channels: Vec<usize>,
    pub cell: Arc<CommitCell>,
}

impl Queued {
    pub fn bytes(&self) -> usize {
        self.head.encoded_bytes() as usize + self.data.len()
    }
}

impl Shared {
    /// Waits until the log was read, or never will be.
    pub fn wait_read(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        while state.opened.is_none() && state.phase == Phase::Open {
            self.changed.wait(&mut state);
        }
        state
    }

    /// What the log said; `None`: it was never read.
    pub fn opened(&self) -> Option<Opened> {
        self.wait_read().opened.clone()
    }

    /// Whether whoever speaks to the log gives up: nobody waits for it any more.
    pub fn gives_up(&self) -> bool {
        self.state.lock().gives_up(self.clock.now())
    }

    /// Events of the channel that the reader has acknowledged.
    pub fn acknowledged(&self, channel: usize, reader: usize) -> u64 {
        self.wait_read().acknowledged(channel, reader)
    }
}

impl State {
    /// Whether commits are taken.
    pub fn check_open(&self) -> Result<(), CommitError> {
        match &self.phase {
            Phase::Open => Ok(()),
            Phase::Failed(reason) => Err(CommitError::Failed(reason.clone())),
            Phase::Closing(_) | Phase::Closed | Phase::Dropped => Err(CommitError::Closing),
        }
    }

    /// See [`Shared::gives_up`].
    pub fn gives_up(&self, now: Instant) -> bool {
        match self.phase {
            Phase::Open => false,
            // Nothing was handed in.
            Phase::Closing(_) if self.opened.is_none() => true,
            Phase::Closing(until) => now >= until,
            Phase::Closed | Phase::Failed(_) | Phase::Dropped => true,
        }
    }

    /// A channel of these that has no room now.
    pub fn full_channel(&self, channels: &[usize]) -> Option<CommitError> {
        channels.iter().find_map(|index| {
            let channel = self.channels.get(*index)?;
            let register = self.registers.channels.get(*index)?;
            let (events, bytes) = register.held();
            let full = events > 0 && (events >= channel.capacity_events || bytes >= channel.capacity_bytes);
            full.then(|| CommitError::Full { channel: register.name.clone(), events, bytes })
        })
    }

    pub fn acknowledged(&self, channel: usize, reader: usize) -> u64 {
        let register = self.registers.channels.get(channel);
        register.and_then(|register| register.readers.get(reader)).map_or(0, |reader| reader.cursor)
    }

    /// Takes an acknowledgement over; what is stored of it.
    pub fn acknowledge(&mut self, ack: Ack) -> Option<AckRecord> {
        let index = usize::from(ack.channel.0);
        let register = self.registers.channels.get(index)?;
        let reader = register.readers.get(usize::from(ack.reader.0))?;
        // Events on their way are before this commit, so their acknowledgement holds.
        let cursor = ack.cursor.min(register.head).max(reader.cursor);
        let bytes = match cursor == reader.cursor {
            true => reader.bytes,
            false => self.channels.get(index)?.bytes_at(register, reader.cursor, reader.bytes, cursor),
        };
        let location = Location::default();
        let record = AckRecord { channel: ack.channel.0, reader: ack.reader.0, cursor, bytes, location };
        self.registers.acknowledge(&record);
        self.release(index);
        Some(record)
    }

    /// Forgets where that is which nobody needs any more.
    pub fn release(&mut self, channel: usize) {
        let needed = self.registers.channels.get(channel).and_then(ChannelRegister::needed);
        let (needed, Some(channel)) = (needed.unwrap_or(u64::MAX), self.channels.get_mut(channel)) else {
            return;
        };
        while channel.index.pop_front_if(|entry| entry.end() <= needed).is_some() {}
    }

    /// Counts a commit that a reader found damaged, once.
    pub fn note_damaged(&mut self, commit: u64) {
        if self.damaged.insert(commit) {
            self.figures.damaged_commits += 1;
        }
    }

    /// Nothing of what is handed in is needed by a reader.
    pub fn is_all_acknowledged(&self) -> bool {
        self.registers.channels.iter().all(|register| register.held().0 == 0)
    }

    /// The first put that a reader needs, in the order of the log.
    pub fn first_needed(&self) -> Option<&Entry> {
        let first = self.channels.iter().filter_map(|channel| channel.index.front());
        first.min_by_key(|entry| entry.place)
    }
}

impl Channel {
    /// Bytes ever put before a cursor that is behind the one of a reader.
    fn bytes_at(&self, register: &ChannelRegister, from: u64, bytes: u64, cursor: u64) -> u64 {
        if cursor >= register.head {
            return register.head_bytes;
        }
        let at = self.index.partition_point(|entry| entry.end() <= cursor);
        let known = self.index.get(at).filter(|entry| entry.first <= cursor);
        known.map_or_else(
            || {
                // On its way, or lost: by proportion.
                let events = u128::from(register.head.saturating_sub(from)).max(1);
                let more = u128::from(register.head_bytes.saturating_sub(bytes));
                bytes.saturating_add((more * u128::from(cursor.saturating_sub(from)) / events) as u64)
            },
            |entry| entry.bytes_at(cursor),
        )
    }
}
