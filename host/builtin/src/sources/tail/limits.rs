//! Named limits of the tail source, each with the reason for its number.

use std::time::Duration;

/// Bytes of one read. Large enough that the system call is noise, small enough for the L2 cache.
pub const CHUNK_BYTES: usize = 512 << 10;

/// Bytes at the start of a file that tell it from others; grows with the file up to this.
pub const HEAD_BYTES: usize = 1_024;

/// Bytes before the committed offset that must be the same at a resume.
pub const TAIL_BYTES: usize = 64;

/// Largest `max_line` and `multiline_max_bytes`: an event has to fit many times into a batch.
pub const LINE_BYTES_MAX: u64 = 16 << 20;

/// Directories below each other that `**` follows: deeper is a loop of bind mounts.
pub const DEPTH_MAX: usize = 32;

/// Links behind each other that lead to a file: as many as the kernel follows.
pub const LINKS_MAX: usize = 40;

/// Files of one source. More is a glob that matches too much; the rest waits, and is reported.
pub const FILES_MAX: usize = 200_000;

/// Changed paths that notifications may queue up; past it everything is scanned instead.
pub const NOTIFIED_PATHS_MAX: usize = 8_192;

/// Shortest time between two walks over the globs that notifications asked for.
pub const RESCAN_MIN: Duration = Duration::from_millis(20);

/// A walk may take one part in this many of the time: 10,000 files are scanned less often than 10.
pub const RESCAN_SHARE: u32 = 200;

/// Pause after a round that reached the end of all files: bounds wakes per second, not throughput.
pub const ROUND_PAUSE: Duration = Duration::from_millis(2);

/// A file that grew within this time is looked at every `poll_interval`; others at each rescan.
pub const ACTIVE_FOR: Duration = Duration::from_secs(10);

/// Positions of files that are gone are kept this long: a rotated file may come back compressed.
pub const FORGET_AFTER: Duration = Duration::from_secs(3_600);

/// The same where the directory is gone too, or on another device: perhaps it is only unmounted.
pub const FORGET_UNMOUNTED_AFTER: Duration = Duration::from_secs(7 * 86_400);

/// A message about the same path is repeated after this time.
pub const COMPLAIN_AGAIN: Duration = Duration::from_secs(60);

/// Paths whose messages are remembered.
pub const COMPLAINTS_MAX: usize = 1_024;

/// Shortest pause before a broken archive is tried again after it changed.
pub const ARCHIVE_RETRY: Duration = Duration::from_millis(200);
