//! Channel failover: while a journal (the *primary*) cannot take events, they go to another one (the *secondary*).
//!
//! One mechanism for every pair. [`Health`] probes the primary at an interval; after so many failures in a row it says *down*,
//! after so many good answers *up*. [`Away`] is the secondary's side: what is written there, and how it comes back. Who commits to the
//! primary drives it ([`Primary`]): the committer of a Kafka journal, or [`FailoverJournal`] in front of a journal on a local disk.
//!
//! - **Leaving.** The positions of the sources as they are now go into the secondary with the first events, so that from here on
//!   they are whole there. What was handed to the primary and is not known to be durable is *in doubt*: it goes there too, each
//!   commit with its number.
//! - **Away.** Events, positions and what plugins write go to the secondary. Acknowledgements are for the primary alone: sinks read it
//!   alone. If it still takes them (its disk is full), sinks go on; else they wait.
//! - **Return.** The secondary's events are moved to the primary in order, each step one commit with the events and a mark of
//!   where the secondary was read to (a hop). What was in doubt is skipped if the primary has its number. The last step carries
//!   state and positions. Then the secondary is closed, and only then the primary takes the next commit.
//!
//! So after a crash: is the secondary not open, the primary's positions count; is it open, the secondary's count, and the primary's mark
//! tells what was moved. Each event is in one of them, once, in the order of its stream.
//!
//! What plugins write meanwhile is in the secondary with their events, and goes to the primary before the positions: as long as the
//! secondary is open, it is laid over what the primary has. The primary alone has all of it, so after a start with the
//! secondary open and the primary away the plugins wait, and with them the events.
//!
//! A secondary of kind `memory` has all of this but the events on its disk: a crash takes those that were not moved, counted as
//! that kind counts them.
//!
//! How it fails: a secondary that fails, fails the journal; one that is full makes sources wait. A directory that holds another journal
//! than the one that was left (a disk that is not mounted) is not gone back to: events stay in the secondary, until the old one is there
//! again or its user says that it was replaced ([`REPLACED`], at a start).

mod away;
mod doubt;
mod flight;
mod health;
mod journal;
mod open;
mod probe;
mod reader;
mod state;
mod store;
mod switch;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

pub use away::{Away, AwayError, CURSOR, Moved, READER, SOURCES, STATE, StatePlace, channel_spec};
pub use health::Health;
pub use journal::FailoverJournal;
pub use open::{Opener, Parts, Probe, REPLACED, Replaced};
pub use probe::DiskProbe;
pub(crate) use probe::PROBE_NAME;

use crate::state::StateWrites;

/// Positions by key.
pub type Positions = BTreeMap<Vec<u8>, Vec<u8>>;

/// What takes the events meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecondaryKind {
    /// A file channel.
    File,
    /// A memory channel.
    Memory,
}

impl SecondaryKind {
    /// The word in the configuration, and in `status`.
    pub fn word(self) -> &'static str {
        match self {
            SecondaryKind::File => "file",
            SecondaryKind::Memory => "memory",
        }
    }
}

/// When a channel fails over, and to what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailoverPlan {
    /// What takes the events meanwhile.
    pub kind: SecondaryKind,
    /// The directory of the secondary, below which each pipeline has its own; `None`: beside the journal.
    pub dir: Option<PathBuf>,
    /// How often the primary is probed.
    pub check_interval: Duration,
    /// Failed probes in a row until events go to the secondary.
    pub fail_after: u32,
    /// Good probes in a row until they go back.
    pub return_after: u32,
    /// A put waits while the secondary holds this many events.
    pub capacity_events: u64,
    /// A put waits while the secondary holds this many bytes.
    pub capacity_bytes: u64,
}

/// Who commits to the primary, on the way back.
pub trait Primary {
    /// Why a step did not happen.
    type Trouble: From<AwayError>;

    /// One commit: events of channels by index, positions (an empty value removes), and what plugins wrote. When it returns, it counts.
    fn step(
        &mut self,
        moved: &[Moved],
        positions: &[(Vec<u8>, Vec<u8>)],
        state: &[StateWrites],
    ) -> Result<(), Self::Trouble>;
}
