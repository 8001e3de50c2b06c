//! Named limits of the sinks, each with the reason for its number.

/// Bytes of encoded text that a plain file gathers before one write(2). Stays in the L2 cache between
/// the copy into it and the copy out of it; 64 KiB costs four times the calls for nothing.
pub const WRITE_BYTES: usize = 256 << 10;

/// Bytes of encoded text that become one gzip member or zstd frame. Beyond this zstd's default
/// level gains a few percent at most, and every open file may hold this much.
pub const BLOCK_BYTES: usize = 1 << 20;

/// Bytes of encoded text in all files of one sink together. When it is reached all of them are
/// written: memory stays bounded however many files are open.
pub const BUFFERED_BYTES_MAX: usize = 32 << 20;

/// Open files that keep their buffer across a flush; with more, empty buffers are given back.
pub const BUFFERS_KEPT: usize = 8;

/// Bytes of a header's value in a path: two fit into a file name (255 bytes) with text around them.
pub const PATH_VALUE_BYTES_MAX: usize = 128;

/// Bytes of one part of a path between two `/`. Leaves room for `-`, the running number and `.open`
/// within the 255 bytes of Linux.
pub const PATH_SEGMENT_BYTES_MAX: usize = 220;

/// Bytes of the path option. With every placeholder at its longest the path stays below the 4,096 bytes of Linux.
pub const PATH_TEMPLATE_BYTES_MAX: usize = 1_024;

/// Placeholders in a path, for the same reason.
pub const PATH_PLACEHOLDERS_MAX: usize = 16;

/// Distinct combinations of header values and time whose paths are remembered. Thrown away as a
/// whole when it is full, between two batches.
pub const PATHS_CACHED_MAX: usize = 8_192;
