//! Named limits of the pipeline, each with the reason for its number.

use std::time::Duration;

/// Batches between a source and its interceptors. Two let one side work while the other waits;
/// more only adds memory.
pub const QUEUE_BATCHES: usize = 2;

/// Commits of one source that are handed in but not yet durable. Enough to fill the next group while
/// one syncs; bounds what is read again after a crash.
pub const COMMITS_IN_FLIGHT: usize = 8;

/// First pause before a failed source or sink is tried again; doubles up to [`RETRY_MAX`].
pub const RETRY_FIRST: Duration = Duration::from_millis(100);

/// Longest pause between two tries: a cause that is gone is noticed within this time.
pub const RETRY_MAX: Duration = Duration::from_secs(5);

/// Longest pause that a sink may choose itself: a server that says "come back tomorrow" is asked sooner.
pub const OWN_PAUSE_MAX: Duration = Duration::from_secs(300);

/// How long a sink waits for events before it looks at its timers.
pub const SINK_WAIT: Duration = Duration::from_millis(100);

/// Nothing came for so long: a burst is over. Longer than a source gathers a batch of a steady flow.
pub const BURST_END: Duration = Duration::from_millis(40);

/// Acknowledgements of one sink that are handed in but not yet durable.
pub const ACKS_IN_FLIGHT: usize = 16;

/// Bytes that a sink sends to quarantine in one commit: a sink whose destination takes nothing must
/// neither fill the memory until its next flush nor make a commit that the journal refuses.
pub const SINK_QUARANTINE_BYTES: usize = 8 << 20;

/// Steps of a destination whose outcome is not known, and each of which may still be carried out: what went to quarantine with them is on
/// record. A request that is overtaken by so many others has been lost.
pub const PENDING_STEPS_MAX: usize = 16;

/// Events that the quarantine keeps. With [`QUARANTINE_BYTES_MAX`] it bounds the disk that a plugin
/// which rejects everything can take.
pub const QUARANTINE_EVENTS_MAX: u64 = 1_000_000;

/// Bytes that the quarantine keeps.
pub const QUARANTINE_BYTES_MAX: u64 = 1 << 30;

/// How long the committer of a source waits for the next batch before it looks whether earlier commits
/// have become durable.
pub const COMMIT_POLL: Duration = Duration::from_millis(2);

/// How long a put waits for a full channel before its source is shown as busy, unless the configuration says otherwise. Flume's number.
pub const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// How often a commit that waits for a channel past its `keep_alive` is handed in again.
pub const FULL_LOOK: Duration = Duration::from_secs(1);

/// How often a source that the memory budget holds looks whether what it has brought is gone; and so how far apart its batches are at
/// least, once waiting frees nothing more: a flow of events goes on, and memory does not grow.
pub const MEMORY_LOOK: Duration = Duration::from_millis(100);

/// One part in so many of the memory budget has to be free before held sources go on: hundreds of batches of the usual budgets.
pub const MEMORY_RELEASE_PART: u64 = 10;

/// Ranges of a channel that a member of a group has and has not acknowledged: as many deliveries, each some thousand events. One that
/// has more gets nothing before its next flush.
pub const GROUP_SPANS: usize = 256;

/// How long a group's better member that has just begun is waited for before others get its events: an open file, a first connection.
pub const GROUP_BEGINS: Duration = Duration::from_secs(2);

/// How often a plugin that is bypassed is given a batch again: often enough to notice that it works, and seldom enough that a
/// batch on which it always takes its whole time costs little.
pub const BYPASS_PROBE: Duration = Duration::from_secs(10);

/// How often a batch that is held looks for another version of its plugin, and for the pipeline's stop.
pub const HOLD_POLL: Duration = Duration::from_millis(20);

/// Bytes of a key of a plugin's state; promised in the WIT.
pub const STATE_KEY_BYTES_MAX: usize = 1_024;

/// Bytes of a value; promised in the WIT.
pub const STATE_VALUE_BYTES_MAX: usize = 1 << 20;

/// Keys that one scan gives, whatever it asks for.
pub const STATE_SCAN_MAX: usize = 65_536;

/// What one plugin may remember unless its pipeline says otherwise: two and a half million keys of 40 bytes.
pub const STATE_BYTES_MAX: u64 = 256 << 20;

/// Bytes that one plugin's state may write for one commit: three quarters of what the journal takes, so that even a migration of most
/// of the state is one commit, and events have room beside it.
pub const STATE_WRITES_BYTES_MAX: u64 = 192 << 20;

/// Bytes of writes that later ones replaced from which on they are left out, if they are half of all: less is not worth the copy.
pub const STATE_STALE_BYTES: usize = 1 << 20;

/// Bytes of events that one plugin may make of its own for one commit: as many as the largest batch.
pub const EMITTED_BYTES_MAX: u64 = flumen_event::limits::BYTES_MAX as u64;

/// How many events these may be: 16 of the largest batches, for an aggregator that tells all of its groups at one tick.
pub const EMITTED_ROWS_MAX: u64 = 16 * flumen_event::limits::ROWS_MAX as u64;

/// How soon versions that did not take over the state are asked again: a busy machine may have been why.
pub const TAKE_OVER_AGAIN: Duration = Duration::from_secs(1);

/// How often it is looked whether a new version of a plugin wants to be ticked.
pub const TICK_LOOK: Duration = Duration::from_secs(1);

/// How long a stopping sink waits for its last commit: longer than a sync on a very busy disk.
pub const STOP_COMMIT: Duration = Duration::from_secs(10);

/// How long an exchange waits for one source or sink to end: as long as an orderly stop on a very busy disk. One that takes
/// longer (its channel is full, its destination hangs) makes the pipeline restart as a whole, which closes the journal under it.
pub const PART_STOP: Duration = Duration::from_secs(15);

/// Events that a job of the quarantine takes in one commit: as many as a batch of a source.
pub const JOB_ROWS: usize = 8_192;

/// Bytes that it reads for one commit.
pub const JOB_BYTES: usize = 8 << 20;

/// How often it is looked for jobs that nobody has told of.
pub const JOB_LOOK: Duration = Duration::from_secs(60);

/// Reports of jobs of the quarantine that are kept after their end, for who asked.
pub const JOB_REPORTS_MAX: usize = 64;
