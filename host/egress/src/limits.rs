//! Named limits, each with the reason for its number. Limits that a user may change are in [`crate::Settings`].

use std::time::Duration;

/// Name lookups that may be under way at once. The system's resolver cannot be interrupted, so one that hangs keeps its
/// thread beyond the deadline of its call; more than these are refused.
pub const LOOKUPS_MAX: usize = 16;

/// How long a looked-up address is used again: requests come in rows, and the system's resolver is a thread and a file read.
pub const LOOKUP_KEPT: Duration = Duration::from_secs(5);

/// Names whose addresses are kept.
pub const LOOKUPS_KEPT_MAX: usize = 256;

/// Addresses of one name that are tried.
pub const ADDRESSES_MAX: usize = 8;

/// The head of an answer.
pub const RESPONSE_HEAD_BYTES_MAX: usize = 64 << 10;

/// Headers of a request.
pub const REQUEST_HEADERS_MAX: usize = 64;

/// Bytes of all names and values of a request's headers: what servers take at most.
pub const REQUEST_HEAD_BYTES_MAX: usize = 32 << 10;

/// A connection that was not used for so long is not used again: most servers close theirs later.
pub const IDLE_MAX: Duration = Duration::from_secs(15);

/// Bytes that wait in memory on each side of a connection: more than [`RESPONSE_HEAD_BYTES_MAX`], which is parsed as a whole.
pub const BUFFER_BYTES: usize = 128 << 10;

/// How long bytes that may be the beginning of a secret are held back when nothing follows: what the other side has sent comes sooner,
/// and one that waits for an answer must not wait for a read's whole timeout.
pub const HELD_MAX: Duration = Duration::from_millis(250);

/// Bytes of an error's text that are kept.
pub const TEXT_BYTES_MAX: usize = 512;
