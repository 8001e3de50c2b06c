//! Named limits of the sinks, each with the reason for its number.

use std::time::Duration;

/// Bytes of encoded text that a plain file gathers before one write(2). Stays in the L2 cache between
/// the copy into it and the copy out of it; 64 KiB costs four times the calls for nothing.
pub const WRITE_BYTES: usize = 256 << 10;

/// Bytes of encoded text that become one gzip member or zstd frame. Beyond this zstd's default
/// level gains a few percent at most, and every open file may hold this much.
pub const BLOCK_BYTES: usize = 1 << 20;

/// Bytes written to a file at which its sync begins, before a flush waits for it: a quarter of a flush, so that the disk works while the next
/// quarter is encoded, and each sync is still worth its commit.
pub const SYNC_AHEAD_BYTES: usize = 2 << 20;

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

/// Bytes of a topic's name: Kafka's own limit, because a broker makes a directory of it.
pub const TOPIC_BYTES_MAX: usize = 249;

/// Lanes of a Kafka sink: each is a client with connections and threads of its own.
pub const LANES_MAX: usize = 64;

/// Bytes of one record that librdkafka takes: its own greatest value. What is too large, the broker says.
pub const KAFKA_RECORD_BYTES_MAX: usize = 1_000_000_000;

/// Bytes of one record that a lane's client is set up for at first: what a topic takes if nobody says otherwise, and
/// some. librdkafka may take so much memory for each request.
pub const KAFKA_RECORD_BYTES_FIRST: usize = 1_100_000;

/// Bytes of records that wait in a lane's client: enough for a fast broker at the usual delays, small beside a transaction.
pub const KAFKA_QUEUE_BYTES: usize = 32 << 20;

/// Records that wait in a lane's client. Each costs some 250 bytes besides its value.
pub const KAFKA_QUEUE_EVENTS: usize = 100_000;

/// One wait for room in a lane's client. Short beside what the queue holds: the broker must not run dry.
pub const KAFKA_QUEUE_WAIT: Duration = Duration::from_millis(2);

/// `linger.ms` of a lane's client: longer than what its queue holds takes to a slow broker.
pub const KAFKA_LINGER: Duration = Duration::from_secs(1);

/// A batch that comes so long after the one before is sent at once: nothing more is waiting in the channel.
pub const KAFKA_NOTHING_MORE: Duration = Duration::from_millis(2);

/// How long it is waited for such a batch: an answer takes a millisecond or two; more only holds the next one up.
pub const KAFKA_KICK: Duration = Duration::from_millis(10);

/// Without room in a lane's client for so long, batches are sent that are not full.
pub const KAFKA_STUCK: Duration = Duration::from_millis(30);

/// How long what a topic is (partitions, limits) is believed. Partitions that were added are used after this time.
pub const TOPIC_KNOWN: Duration = Duration::from_secs(60);

/// Topics that a sink remembers; a template over headers may come to any number.
pub const TOPICS_KNOWN_MAX: usize = 4_096;

/// How long to wait for the broker's coordinator of transactions before it is said that there is none.
pub const TAKE_OVER: Duration = Duration::from_secs(30);

/// Waited for a broker this long, the reason is shown in `status`.
pub const BROKER_SLOW: Duration = Duration::from_secs(3);

/// Bytes of a record beside key, value and headers that count in a topic's `max.message.bytes`: the head of a batch
/// of one record (61 bytes) and the record's own lengths.
pub const KAFKA_RECORD_OVERHEAD_BYTES: usize = 90;

/// How long a step of the Kafka sink goes on after the pipeline began to stop: a commit takes milliseconds, and an agent
/// that does not stop is killed.
pub const KAFKA_STOP_GRACE: Duration = Duration::from_secs(5);

/// How the progress topic is made: compacted, in small segments (only closed ones are compacted), early: a sink
/// writes a record for each transaction, and only the newest is read.
pub const PROGRESS_TOPIC_CONFIG: [(&str, &str); 4] = [
    ("cleanup.policy", "compact"),
    ("segment.bytes", "8388608"),
    ("segment.ms", "3600000"),
    ("min.cleanable.dirty.ratio", "0.1"),
];
