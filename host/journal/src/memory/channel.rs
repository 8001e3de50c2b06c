//! One memory channel under the lock: what is held, where the next put goes, what an acknowledgement lets go of.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_event::Batch;

use super::registers::{Region, Registers};
use crate::api::{ChannelId, ChannelSpec, CommitError, Ticket};

/// A memory channel as the pipeline's plan names it.
#[derive(Debug, Clone)]
pub struct MemorySpec {
    /// Name, readers, and the capacity of the memory.
    pub channel: ChannelSpec,
    /// What becomes of puts that the memory has no room for.
    pub full: WhenFull,
}

/// What becomes of a put to a full channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// It waits.
    Wait,
    /// It waits; when nothing was acknowledged for this long its events are dropped, and counted.
    Drop(Duration),
    /// It goes to the file, and so do all puts behind it until the file is drained. It waits when the file holds so much.
    Overflow {
        /// Events in the file.
        events: u64,
        /// Their bytes.
        bytes: u64,
    },
}

/// A put in memory.
pub struct Held {
    pub first: u64,
    pub batch: Batch,
    /// Memory that it takes.
    pub bytes: u64,
    pub time_ns: i64,
    /// Of its commit: readers see it when that is done.
    pub ticket: Arc<dyn Ticket>,
}

impl Held {
    pub fn end(&self) -> u64 {
        self.first + self.batch.rows() as u64
    }
}

/// A channel.
pub struct Channel {
    pub spec: MemorySpec,
    pub registers: Registers,
    /// The two file channels, by [`super::registers::Store`].
    pub files: [ChannelId; 2],
    /// Events ever put to them.
    pub file_heads: [u64; 2],
    /// In order. Regions are before or behind all of them.
    pub held: VecDeque<Held>,
    pub held_bytes: u64,
    /// The last commit with events for a file.
    pub spilling: Option<Arc<dyn Ticket>>,
    /// Since when puts find no room, and nothing was acknowledged.
    pub full_since: Option<Instant>,
    pub lost: u64,
    pub dropped: u64,
    pub overflowed: u64,
}

/// Where a commit's events of one channel go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Memory,
    File,
    Dropped,
    /// The channel is full; `Some`: from then on they are dropped.
    Wait(Option<Instant>),
}

/// What a reader finds at a cursor.
pub enum Place {
    Held(Box<Batch>, Arc<dyn Ticket>),
    /// In this region; the ticket of the last put to a file.
    File(Region, Option<Arc<dyn Ticket>>),
    /// Nothing before this event.
    Gone(u64),
    End,
}

impl Channel {
    /// Where events go that take so much memory and, in a file, so many bytes. `files`: what the channel's files hold.
    pub fn way(&mut self, rows: u64, bytes: u64, files: (u64, u64), now: Instant) -> Way {
        let spec = &self.spec.channel;
        let events =
            self.held.back().zip(self.held.front()).map_or(0, |(last, first)| last.end() - first.first);
        let fits = events + rows <= spec.capacity_events && self.held_bytes + bytes <= spec.capacity_bytes;
        match self.spec.full {
            WhenFull::Overflow { events, bytes } => {
                // What is larger than the memory goes to the file: no more is at risk than was said.
                if self.registers.regions.is_empty() && fits {
                    return Way::Memory;
                }
                if files.0 < events && files.1 < bytes {
                    return Way::File;
                }
            }
            _ if fits || self.held.is_empty() => return Way::Memory,
            WhenFull::Wait => {}
            WhenFull::Drop(after) => {
                let until = *self.full_since.get_or_insert(now) + after;
                return if now >= until { Way::Dropped } else { Way::Wait(Some(until)) };
            }
        }
        self.full_since.get_or_insert(now);
        Way::Wait(None)
    }

    /// Holds so much from now on. What it has stays, however much that is. Of one that overflows it is what its file holds: its memory holds
    /// what it held, or more would be at risk than was said.
    pub fn set_capacity(&mut self, events: u64, bytes: u64) {
        let spec = &mut self.spec;
        match &mut spec.full {
            WhenFull::Overflow { events: known, bytes: known_bytes } => {
                (*known, *known_bytes) = (events, bytes);
            }
            WhenFull::Wait | WhenFull::Drop(_) => {
                (spec.channel.capacity_events, spec.channel.capacity_bytes) = (events, bytes);
            }
        }
    }

    /// Whether all events that are put go to the file now: there are some before them.
    pub fn overflows(&self) -> bool {
        matches!(self.spec.full, WhenFull::Overflow { .. }) && !self.registers.regions.is_empty()
    }

    /// The error of a put that waited in vain.
    pub fn full(&self) -> CommitError {
        let events = self.registers.needed().map_or(0, |needed| self.registers.head - needed);
        CommitError::Full { channel: self.spec.channel.name.clone(), events, bytes: self.held_bytes }
    }

    /// Lets go of what all readers have acknowledged.
    pub fn release(&mut self) {
        let needed = self.registers.needed().unwrap_or(u64::MAX);
        while let Some(done) = self.held.pop_front_if(|held| held.end() <= needed) {
            self.held_bytes -= done.bytes;
        }
    }

    /// The files have it.
    pub fn forget_held(&mut self) {
        self.held.clear();
        self.held_bytes = 0;
    }

    /// What is there for a reader at a cursor.
    pub fn place(&self, cursor: u64) -> Place {
        if cursor >= self.registers.head {
            return Place::End;
        }
        if let Some(region) =
            self.registers.regions.iter().find(|region| region.first <= cursor && cursor < region.end())
        {
            return Place::File(*region, self.spilling.clone());
        }
        let at = self.held.partition_point(|held| held.end() <= cursor);
        let next = match self.held.get(at) {
            Some(held) if held.first <= cursor => {
                let batch = held.batch.slice((cursor - held.first) as usize, held.batch.rows());
                return Place::Held(Box::new(batch), held.ticket.clone());
            }
            next => next.map(|held| held.first),
        };
        let ends = next.into_iter().chain(self.registers.next_in_files(cursor));
        Place::Gone(ends.min().unwrap_or(self.registers.head))
    }

    /// Events in memory that some reader has not acknowledged. Of a commit that failed with the disk there are none: whoever handed it in was
    /// told, and has them elsewhere.
    pub fn at_risk(&self) -> u64 {
        let needed = self.registers.needed().unwrap_or(self.registers.head);
        let first = self.held.front().map_or(u64::MAX, |held| held.first.max(needed));
        let has_failed = |held: &Held| matches!(held.ticket.wait(Some(Duration::ZERO)), Some(Err(_)));
        // Behind one that failed all have.
        let last = self.held.iter().rfind(|held| !has_failed(held));
        last.map_or(0, |held| held.end().saturating_sub(first))
    }
}
