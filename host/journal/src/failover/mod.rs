//! Channel failover: while a journal (the *primary*) cannot take events, they go to another one (the *secondary*).
//!
//! One mechanism for every pair. [`Health`] probes the primary at an interval; after so many failures in a row it says *down*,
//! after so many good answers *up*. [`Away`] is the secondary's side: what is written there, and how it comes back. Who commits to the
//! primary drives it ([`Primary`]): the committer of a Kafka journal, or [`FailoverJournal`] in front of a journal on a local disk.
//!
//! - **Leaving.** The positions of the sources as they are now go into the secondary with the first events, so that from here on
//!   they are whole there. What was handed to the primary and is not known to be durable is *in doubt*: it goes there too, each
//!   commit with its number. As long as not all of that has arrived there the way out can be given up.
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
//! A primary that acknowledges late (`late.rs`) has other cursors with each opening, and its commits count when their sinks have
//! acknowledged them.
//!
//! **Each event once, whenever it ends.** An event is *done with* in the primary when its commit is durable there, and for a late one that is
//! when its sinks have it. At any moment:
//! - The secondary is not open: the sources' positions are the primary's, and cover exactly the events that are done with there. What is in
//!   the secondary counts for nothing, and the next opening forgets it.
//! - It is opened by one commit, behind all that was in doubt. From then on the sources' positions are the secondary's, and cover what is
//!   done with in the primary and what is in the secondary. Both have only what was in doubt: whose number the primary has is skipped
//!   there. Numbers rise in the order of commits, and one is in the commit whose events it counts, so the last says it of all.
//! - A way out is given up before that commit is handed in, never behind it: nobody could say then which of the two counts. So the secondary is
//!   not open, and what arrives there of it counts for nothing, before a crash and behind one; the next opening waits for it, and
//!   passes it over. The primary still has what was in doubt on its way. One that failed is opened anew: its number says what it has, and
//!   the rest is handed in once more, with its numbers and in its order, before anything else is and before anybody reads it.
//! - While it is moved, the events of a step and the marks behind them are one commit of the primary. As long as that is not durable the
//!   secondary keeps them, and the primary has neither; of a late primary that died its sinks have undone them. A step of which it is not
//!   known is waited for, or the primary opened anew, before anything is moved again.
//! - The last commit of the primary has the positions; they are those that the secondary has. The secondary is closed behind it by
//!   one commit. Between the two, both say the same, and there is nothing to be moved. What it held is removed behind that, or by the
//!   next opening: it counts for nothing.
//!
//! Nothing waits with a lock held: what is put while it is not said where to finds a `Place` (`state.rs`) in which it waits for its deadline,
//! and acknowledgements, positions, `status` and the end of the journal go on.
//!
//! **Both in trouble.** A secondary whose disk is full holds nobody up when the primary is well again: a way out is given up, and what opens
//! and closes it takes the space that a journal keeps for acknowledgements ([`Away`]). Its room is waited for in three cases:
//! - It has used up that space, too.
//! - Events were put to it while it was open, and found no room. They may arrive there at any time, so nobody else takes them before it
//!   is closed, and it is not closed without them. What is moved out of it makes room for them, unless somebody else takes it.
//! - The primary has failed with a promise of which its destination has not said what became: it cannot say what it has.
//!
//! How it fails: a secondary that fails, fails the journal; one that is full makes sources wait, and one that was not reached yet makes
//! everybody wait at the start. A directory that holds another journal than the one that was left (a disk that is not mounted) is not
//! gone back to: events stay in the secondary, until the old one is there again or its user says that it was replaced ([`REPLACED`], at a
//! start).

mod away;
mod commit;
mod doubt;
mod flight;
mod health;
mod journal;
mod known;
mod late;
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
    /// A memory channel that overflows into a file.
    Spillable,
    /// A topic of Kafka ([`crate::log`]).
    Kafka,
}

impl SecondaryKind {
    /// The word in the configuration, and in `status`.
    pub fn word(self) -> &'static str {
        match self {
            SecondaryKind::File => "file",
            SecondaryKind::Memory => "memory",
            SecondaryKind::Spillable => "spillable",
            SecondaryKind::Kafka => "kafka",
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
    /// Events that a spillable secondary holds in memory before it goes to its file.
    pub memory_events: u64,
    /// The same in bytes.
    pub memory_bytes: u64,
}

/// Who commits to the primary, on the way back.
pub trait Primary {
    /// Why a step did not happen.
    type Trouble: From<AwayError>;

    /// One commit: events of channels by index, positions (an empty value removes), and what plugins wrote. When it returns, it counts; that
    /// may take as long as a sink does, and nobody holds a lock of the secondary's side meanwhile.
    fn step(
        &mut self,
        moved: &[Moved],
        positions: &[(Vec<u8>, Vec<u8>)],
        state: &[StateWrites],
    ) -> Result<(), Self::Trouble>;
}
