//! Named limits of the Kafka source, each with the reason for its number.

use std::time::Duration;

/// Largest value of a record that becomes an event, as with lines: an event has to fit many times into a batch.
/// What is larger goes to quarantine, in parts of this size.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

/// Key and headers of one record together: they become columns, which every later step carries along.
pub const HEADER_BYTES_MAX: usize = 1 << 20;

/// Headers of one record: a record of more has data for names, and would use up the names of a batch.
pub const HEADERS_MAX: usize = 256;

/// Header names in one batch, after which it goes on: leaves room below the batch's limit for the next record
/// (with [`HEADERS_MAX`] of its own) and for what interceptors add.
pub const NAMES_MAX: usize = 512;

/// Bytes of header columns in one batch, their offsets included: headers that only few rows have are mostly offsets.
pub const COLUMN_BYTES_MAX: usize = 8 << 20;

/// Bytes of all events that a codec makes of one record, with the record's headers repeated for each: they have to be in
/// one batch.
pub const DECODED_BYTES_MAX: usize = 48 << 20;

/// Bytes that one batch sends to quarantine, after which it goes on.
pub const REJECTED_BYTES_MAX: usize = 4 << 20;

/// Largest answer of a broker (librdkafka's default). A record of this size, in parts, still fits into one commit.
pub const RECEIVE_BYTES_MAX: u64 = 100_000_000;

/// Records read ahead: two batches of the default size per partition of a busy topic, and bounded memory.
pub const READ_AHEAD_KBYTES: u32 = 32 << 10;

/// Bytes of one fetch over all partitions: half of what is read ahead, so that one is used while the next comes.
pub const FETCH_BYTES: u32 = 16 << 20;

/// Pause of the fetching when enough is read ahead. librdkafka's 1 s lets a fast pipeline run dry.
pub const READ_AHEAD_PAUSE: Duration = Duration::from_millis(10);

/// Longest wait in one poll: how late a stop or a timer is noticed.
pub const POLL: Duration = Duration::from_millis(100);

/// Records taken from what is read ahead before timers are looked at.
pub const POLL_RECORDS: usize = 256;

/// How often the group's offsets are committed to the broker: how old others' view of the lag is.
pub const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// How often new topics and partitions are looked for.
pub const METADATA_EVERY: Duration = Duration::from_secs(10);

/// One question to a broker. Short, because nothing is read while it waits; it is asked again.
pub const ASK: Duration = Duration::from_secs(5);

/// Pause before a question is asked again, and between looks whether a trouble is over.
pub const ASK_AGAIN: Duration = Duration::from_secs(2);

/// How long a leaving member waits until what it read is durable, so that who takes over begins behind it. A full
/// pipeline does not drain sooner; what is not durable by then is in the journal all the same, or is read again.
pub const LEAVE: Duration = Duration::from_secs(20);

/// How long a leaving member waits for the broker's answer to its last offsets.
pub const LEAVE_COMMIT: Duration = Duration::from_secs(5);

/// A member that does not poll for this long is thrown out of the group. The heartbeats of librdkafka's own thread
/// tell that the agent lives; a full pipeline must not cost it its partitions, so this is librdkafka's largest value.
pub const POLL_INTERVAL_MAX: Duration = Duration::from_secs(86_400);

/// Missing topics that a message names.
pub const NAMED_MAX: usize = 5;

/// How often the offsets of partitions that are given up are sent when the group refuses them: a coordinator that
/// moves refuses for a moment, and the other members wait meanwhile.
pub const HAND_OVER_TRIES: usize = 10;

/// Pause between them.
pub const HAND_OVER_AGAIN: Duration = Duration::from_millis(500);
