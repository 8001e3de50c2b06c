//! Limits of the journal, each with the reason for its number.

use std::time::Duration;

/// Bytes of a segment unless the configuration says otherwise. The unit of deletion: small enough that
/// a slow reader does not hold much that is done with, large enough that a roll (two syncs) is rare.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// The smallest segment a configuration may ask for: header, checkpoint and a few commits.
pub const SEGMENT_BYTES_MIN: u64 = 16 << 10;

/// Bytes of one group unless the configuration says otherwise: some ten milliseconds of a common SSD,
/// which bounds how long the first commit of a group waits for the last.
pub const GROUP_BYTES_MAX: u64 = 8 << 20;

/// Memory for recent batches over all channels unless the configuration says otherwise: a few groups,
/// so that sinks that keep up never read the disk.
pub const WINDOW_BYTES: u64 = 24 << 20;

/// Bytes of the file that is given up to write acknowledgements on a full disk: some ten thousand
/// acknowledgements, and a checkpoint of as many positions.
pub const RESERVE_BYTES: u64 = 4 << 20;

/// Encoded bytes of an acknowledgement with events (what a sink rejects goes to quarantine with it) that may still be written on
/// a full disk: some of them fit in half of [`RESERVE_BYTES`], and what they acknowledge makes more space than they take.
pub const OVERTAKING_BYTES_MAX: u64 = 64 << 10;

/// Encoded bytes of one commit. Twice the largest batch: a source's batch with its headers added.
pub const COMMIT_BYTES_MAX: u64 = 256 << 20;

/// Laid-out bytes of a batch below which it is not compressed: what is saved is less than what it costs to say so.
pub const COMPRESS_BYTES_MIN: usize = 256;

/// Memory of a thread for what it compresses, kept from one commit to the next: a column of a common batch.
pub const COMPRESS_SCRATCH_BYTES_MAX: usize = 4 << 20;

/// Level of Zstandard: higher ones cost a source's thread more than a disk gains by them.
pub const ZSTD_LEVEL: i32 = 1;

/// Bytes of a frame's head, of a checkpoint or of a snapshot: bounds what is read before it is checked.
pub const RECORD_BYTES_MAX: u64 = 64 << 20;

/// Deleted segments whose files are kept for the next ones: a roll takes one, and a sink that keeps up gives one back.
pub const SPARES_MAX: usize = 2;

/// Segment bytes written between two snapshots: bounds what is scanned at the start.
pub const SNAPSHOT_EVERY_BYTES: u64 = 32 << 20;

/// Bytes of waiting commits at which deleting what is done with is put off until a snapshot is due: at the disk's own rate a few more
/// syncs for each segment are felt.
pub const MUCH_WAITS_BYTES: u64 = 1 << 20;

/// Bytes preallocated for a snapshot slot, so that a full disk does not stop a small journal's snapshots.
pub const SNAPSHOT_BYTES_MIN: u64 = 64 << 10;

/// Bytes read at once when small frames are read in order: a disk gives its full rate for them, and each reader that is behind has one
/// such piece in memory. Frames above a quarter of it are read one by one.
pub const READ_AHEAD_BYTES: usize = 1 << 20;

/// Bytes read when nothing is known of what comes: the first read of a segment, a frame's header.
pub const READ_FIRST_BYTES: usize = 64 << 10;

/// Deliveries per reader whose place on disk is remembered until they are acknowledged. A reader with
/// more in flight resumes, after a restart, from an earlier place, and skips from there.
pub const DELIVERED_MAX: usize = 4_096;

/// Reads that fail one after the other before what cannot be read counts as damage: a bad sector must not
/// stop a sink for ever, a short trouble must not cost data.
pub const READ_FAILURES_MAX: u32 = 5;

/// Channels and readers that are no longer configured, whose cursors are kept.
pub const RETIRED_MAX: usize = 1_024;

/// Bytes of one damaged range that are copied aside for a person to look at.
pub const DAMAGE_COPY_BYTES_MAX: u64 = 64 << 20;

/// Fresh segments tried for one group after the disk failed; then the journal has failed.
pub const FRESH_SEGMENTS_MAX: usize = 2;

/// First pause before a write is tried again on a full disk.
pub const FULL_RETRY_MIN: Duration = Duration::from_millis(10);

/// Longest such pause: how late the journal notices space that others made.
pub const FULL_RETRY_MAX: Duration = Duration::from_millis(500);

/// Segment bytes written between two files of the plugins' state, at least: bounds what is read at the start.
pub const STATE_FILE_EVERY_BYTES: u64 = 64 << 20;

/// The same as a multiple of the state's own bytes: a large state is written out less often, so that it costs the
/// disk at most half of what the segments do.
pub const STATE_FILE_EVERY_TIMES: u64 = 2;

/// Bytes of a block in a file of the state: what one damaged place costs, and what is copied at once.
pub const STATE_BLOCK_BYTES: usize = 256 << 10;

/// Bytes of such a file between two syncs: none of them is long enough to hold up commits.
pub const STATE_SYNC_BYTES: u64 = 4 << 20;

/// Bytes taken beforehand for such a file, at least.
pub const STATE_FILE_BYTES_MIN: u64 = 64 << 10;

/// Pause before a file of the state is tried again on a full disk.
pub const STATE_FILE_RETRY: Duration = Duration::from_secs(5);

/// Ordered keys that are looked at in one go, to sweep or to write them.
pub const STATE_SWEEP_KEYS: usize = 1_024;

/// Entries that one commit may look at for dead ones.
pub const STATE_SWEEP_CREDIT_MAX: usize = 65_536;

/// How often an idle journal looks for dead entries, and which part of them it looks at.
pub const STATE_SWEEP_EVERY: Duration = Duration::from_secs(5);

/// See [`STATE_SWEEP_EVERY`]: all are looked at once in five minutes.
pub const STATE_SWEEP_SHARE: usize = 60;

/// Slots of a part of a table that are never given back.
pub const STATE_PART_SLACK: usize = 1_024;

/// Longest wait of a channel in memory without a look at what else may have happened.
pub const MEMORY_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long the close of a channel in memory waits until what was in memory is in the file: longer than a sync on a very busy disk.
pub const MEMORY_CLOSE_WAIT: Duration = Duration::from_secs(30);

/// Bytes that a source-backed channel may withhold besides events: they become one commit with their acknowledgement.
pub const WITHHELD_BYTES_MAX: usize = 32 << 20;

/// Bytes that a probe of a disk writes: a block, so that a disk that takes nothing is seen.
pub const PROBE_BYTES: usize = 4 << 10;

/// Bytes of one step from a failover's secondary to its primary: a group of commits.
pub const FAILOVER_STEP_BYTES: usize = 8 << 20;

/// How often a failover looks at its primary, and whoever waits for a commit at which of the two it waits: far shorter than an interval
/// of probes, and nothing that costs.
pub const FAILOVER_TICK: Duration = Duration::from_millis(50);

/// Pause before a put is tried again that found its channel full: its room is that of another journal, and not ours to watch.
pub const FAILOVER_FULL_RETRY: Duration = Duration::from_millis(20);

/// Bytes of one commit to a failover's secondary of what was on its way to the primary.
pub const FAILOVER_OPEN_BYTES: usize = 64 << 20;

/// How long such a commit waits for room. There is some unless more was on its way than the secondary may hold.
pub const FAILOVER_OPEN_WAIT: Duration = Duration::from_secs(1);

/// How long a step from a failover's secondary to its primary is waited for: puts wait meanwhile.
pub const FAILOVER_STEP_WAIT: Duration = Duration::from_secs(5);

/// A commit below this is laid out in memory that is taken once.
pub const SMALL_COMMIT_BYTES: usize = 16 << 10;

/// Bytes of one group of commits that a journal in a log appends: as those of a Kafka journal's transaction.
pub const LOG_GROUP_BYTES: usize = 8 << 20;

/// Bytes of commits that wait for such a log before a put waits: a few groups.
pub const LOG_QUEUE_BYTES: usize = 32 << 20;

/// Bytes of a log in which everything is acknowledged, and that is cut: a start reads no more than some seconds' worth.
pub const LOG_SNAPSHOT_BYTES: u64 = 8 << 20;

/// Bytes at the beginning of a log that nobody needs, while something behind them is: then it is cut, too. Twice a snapshot's bytes if
/// that is more, so that snapshots cost at most half of what is written.
pub const LOG_GARBAGE_BYTES: u64 = 64 << 20;

/// Pauses between two tries to reach a log, first and longest.
pub const LOG_RETRY_FIRST: Duration = Duration::from_millis(200);
/// See [`LOG_RETRY_FIRST`].
pub const LOG_RETRY_MAX: Duration = Duration::from_secs(5);

/// Pause before a cut that was refused is tried again.
pub const LOG_TRIM_RETRY: Duration = Duration::from_secs(60);

/// How long a closing journal tries to bring what was handed in to its log.
pub const LOG_CLOSE: Duration = Duration::from_secs(10);

/// How long a reader waits for the next record of what is in the log, before it says that it cannot be read now.
pub const LOG_READ: Duration = Duration::from_secs(10);

/// A reader that needs a record at most so many behind the last one reads on; a seek costs a question.
pub const LOG_SKIP_RECORDS: u64 = 1_000;

/// An append that takes longer than this is told: a log tries for long before it says that it cannot.
pub const LOG_SLOW: Duration = Duration::from_secs(5);

/// How often an idle journal looks after its log.
pub const LOG_TICK: Duration = Duration::from_millis(500);
