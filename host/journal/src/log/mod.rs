//! A journal in an append-only log that somebody else keeps durably (a topic of Kafka): what a failover of kind `kafka` has.
//!
//! The log ([`Log`]) takes groups of records, each group as a whole or not at all, from one writer: who opens it is that one, and whoever
//! was it before can write no more. Everything that a journal is stands in those records; on this machine there is nothing. Bodies are
//! not kept in memory: of each put that some reader still needs there is a line of an index, and a reader reads the log from there.
//!
//! **A record** is a piece of a *commit* or of a part of a *snapshot*, because a log has a largest record. Little-endian:
//! ```text
//!  0  4  "FLML"
//!  4  1  version
//!  5  1  kind: 1 commit, 2 part of a snapshot
//!  6  1  1: what follows the head is encrypted (`file/format/sealed.rs`)
//!  7  1  zero
//!  8  8  session: drawn at each opening
//! 16  8  number of the commit; of a snapshot that of the last commit in it
//! 24 16  journal id, drawn when the log was empty
//! 40  4  index of this piece
//! 44  4  pieces
//! 48  4  CRC-32C of what follows the header
//! 52  4  CRC-32C of bytes 0..52
//! 56  .  the piece; all of them one after the other are the content
//! ```
//! These 56 bytes stay where they are in every version, so that a newer one is told by name.
//! ```text
//! content of a commit:   u32 bytes of the head, u32 bytes of the data
//!                        head as in `file/format/commit.rs`, but that channels and readers are indexes of the names below, and that
//!                        places are zero
//!                        data: u32 names, blob each; positions and state as in `file/format/commit.rs`; padding to 8; the batches
//! content of a part:     u32 its index, u32 parts
//!                        first: the registers as in `file/format/registers.rs`; then each: writes as in `StateWrites`
//! ```
//! With keys the data and what follows a part's numbers are encrypted; in clear are numbers, sizes, times and cursors.
//!
//! **Opening** hands over all records. A commit changes positions, cursors, state and index; a snapshot replaces positions and cursors.
//! Then an empty commit of a new session is written, with the cursors of all readers: a writer that was taken over sees it when it
//! looks again, and gives up.
//!
//! **An unknown outcome** ([`LogError::Unknown`]): the log is opened again from where it was known. Is there a commit of this session
//! with a higher number than the last that counted, the group counts; is there one of another session, another writer has taken over;
//! else the group is appended once more.
//!
//! **Trimming.** When everything is acknowledged, or what nobody needs is much, the next group takes a snapshot with it: all of what
//! is handed in, under the lock, as of the last commit of that group. When it counts, the log is cut before it, and before the first put that a
//! reader needs. State and positions are in memory once more while such a group is written.
//!
//! How it fails: a log that cannot be reached makes commits wait, for as long as it takes; `status` says why. Records that are damaged
//! are passed over: a gap in the numbers of commits is what was lost, counted and told, and readers say how many events
//! ([`crate::Delivery::lost_before`]). A record of a newer version, or one whose key is not given, ends the journal with words.

mod cell;
mod commit;
mod committer;
mod contents;
mod encode;
mod journal;
mod reader;
mod record;
mod replay;
mod shared;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::api::ChannelSpec;
use crate::file::Compression;
use crate::keys::Keys;
use crate::limits;

pub use cell::CommitCell;
pub use contents::LogContents;
pub use journal::LogJournal;

/// What is asked of a log now and then while it is at work: true, it ends with an error.
pub type GiveUp<'a> = &'a dyn Fn() -> bool;

/// Makes readers of a log. What is wrong is told by the reader.
pub type Readers = Arc<dyn Fn() -> Box<dyn LogReader> + Send + Sync>;

/// Takes a record with its place.
pub type Take<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<(), LogError>;

/// Why a log did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LogError {
    /// It may be asked again. What was appended may count or not: an opening tells.
    #[error("{0}")]
    Unknown(String),
    /// It will never do it.
    #[error("{0}")]
    Final(String),
}

impl From<String> for LogError {
    fn from(reason: String) -> LogError {
        LogError::Unknown(reason)
    }
}

/// An append-only log that somebody else keeps. Places rise; they need not be without gaps.
pub trait Log: Send {
    /// Becomes the only writer: what an earlier one had begun and not finished is undone, and it can write no more. Hands over every
    /// record that counts from the place `from` on (or from the first that is there), in order. Returns a place that is behind all of
    /// these and not behind any that comes later.
    ///
    /// # Errors
    /// Also those of `take`, as they are.
    fn open(&mut self, from: u64, give_up: GiveUp<'_>, take: Take<'_>) -> Result<u64, LogError>;

    /// Appends records, all of them or none. Returns a place as [`Log::open`] does.
    ///
    /// # Errors
    /// After any of them it has to be opened again.
    fn append(&mut self, records: &[Vec<u8>], give_up: GiveUp<'_>) -> Result<u64, LogError>;

    /// Records before this place are not needed any more.
    ///
    /// # Errors
    /// They are still there. Nothing else is wrong.
    fn trim(&mut self, before: u64) -> Result<(), LogError>;

    /// Of an open one: bytes of the largest record.
    fn record_bytes_max(&self) -> usize;

    /// Called while there is nothing to append.
    fn idle(&mut self) {}

    /// How it is read beside.
    fn readers(&self) -> Readers;
}

/// Reads a log.
pub trait LogReader: Send {
    /// The next record is the first that counts at this place or behind it.
    fn seek(&mut self, place: u64);

    /// The next record with its place; `None`: there is none within `wait`.
    ///
    /// # Errors
    /// It may be asked again after a [`LogReader::seek`].
    fn next(&mut self, wait: Duration) -> Result<Option<(u64, Vec<u8>)>, LogError>;
}

/// What a [`LogJournal`] is made of.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Whose it is, for the log and for errors.
    pub name: String,
    /// Its channels, with their readers.
    pub channels: Vec<ChannelSpec>,
    /// Keys of encryption.
    pub keys: Keys,
    /// How batches are compressed.
    pub compression: Compression,
    /// See [`limits::LOG_SNAPSHOT_BYTES`].
    pub snapshot_bytes: u64,
    /// See [`limits::LOG_GARBAGE_BYTES`].
    pub garbage_bytes: u64,
    /// See [`limits::LOG_RETRY_FIRST`].
    pub retry_first: Duration,
    /// See [`limits::LOG_CLOSE`].
    pub close_within: Duration,
}

impl LogConfig {
    /// With the limits of [`limits`], compressed.
    pub fn new(name: &str, channels: Vec<ChannelSpec>, keys: Keys) -> LogConfig {
        LogConfig {
            name: name.to_owned(),
            channels,
            keys,
            compression: Compression::Lz4,
            snapshot_bytes: limits::LOG_SNAPSHOT_BYTES,
            garbage_bytes: limits::LOG_GARBAGE_BYTES,
            retry_first: limits::LOG_RETRY_FIRST,
            close_within: limits::LOG_CLOSE,
        }
    }
}
