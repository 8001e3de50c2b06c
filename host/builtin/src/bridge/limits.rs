//! Named limits of the bridge, each with the reason for its number.

use std::time::Duration;

/// Partitions that one topic may have here: their buffers (a block each) stay below half a gigabyte.
pub const PARTITIONS_MAX: usize = 512;

/// Earlier buckets to which one bucket's run may append late records, per partition; what belongs to still
/// more of them (a clock gone wild) goes to `late/`. Each costs a file and a buffer.
pub const LATE_BUCKETS_MAX: usize = 64;

/// Buckets of one `--from --to`: ten years of hours. More is a typing mistake.
pub const BUCKETS_MAX: usize = 100_000;

/// Later buckets that are looked at to find one that was made before: a week of hours. It matters only where a partition
/// was silent, and buckets are made out of order while records still come.
pub const LATER_BUCKETS: usize = 168;

/// Bytes of a `_SUCCESS` file: thousands of files and partitions.
pub const MANIFEST_BYTES_MAX: u64 = 16 << 20;

/// Bytes of one line in a tree's file. Longer is no line of a log.
pub const LINE_BYTES_MAX: usize = 64 << 20;

/// One wait for a record: how fast a stop and the end of an idle partition are noticed.
pub const POLL: Duration = Duration::from_millis(100);

/// After the broker has confirmed the end of an idle partition, nothing may come for this long before it is
/// closed: a fetch (500 ms) that was on its way has come by then.
pub const IDLE_QUIET: Duration = Duration::from_millis(1_500);

/// Without a word from the brokers for this long a run for named buckets gives up.
pub const SILENCE: Duration = Duration::from_secs(60);

/// `--follow` looks for done files this often.
pub const PAUSE: Duration = Duration::from_secs(2);

/// Brokers that are in trouble are asked this often whether they answer again.
pub const PROBE_EVERY: Duration = Duration::from_secs(2);

/// For one such answer: a stop waits for it.
pub const PROBE: Duration = Duration::from_secs(1);

/// Records that a worker reads before it adds them to the shared counters.
pub const TELL_RECORDS: u64 = 1_000;

/// Kilobytes that librdkafka reads ahead for all partitions of one worker.
pub const READ_AHEAD_KB: u32 = 16 << 10;
