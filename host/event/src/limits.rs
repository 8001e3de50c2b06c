//! Limits of a batch. Each is checked where a batch is made, so that no later step has to.

/// Rows in one batch. Row numbers cross the sandbox as `u32`, and a bisection of a failing
/// batch takes at most 2 log2 of this many calls.
pub const ROWS_MAX: usize = 65_536;

/// Bytes of all columns of one batch. Arrow's 32-bit offsets end at 2 GiB; a batch has to fit
/// several times into a small process (source, plugin, journal window, sink).
pub const BYTES_MAX: usize = 128 << 20;

/// Memory that a batch may hold beyond what it uses before it is copied out of it: allocations are in steps, and a copy of less
/// is not worth it.
pub const COMPACT_SLACK_BYTES: usize = 4 << 10;

/// Different header names in one batch. A parser has tens; more is a mistake (names made of data).
pub const HEADERS_MAX: usize = 1_024;

/// Bytes of a header's name.
pub const HEADER_NAME_BYTES_MAX: usize = 255;

/// Bytes of a rejection's reason that are kept.
pub const REASON_BYTES_MAX: usize = 512;
