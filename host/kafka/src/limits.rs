//! Named limits of everything that speaks Kafka, each with the reason for its number.

use std::time::Duration;

/// How often librdkafka hands out its statistics: often enough for a person who looks, too rarely to cost.
pub const STATISTICS_EVERY: Duration = Duration::from_secs(5);

/// One question to a broker (metadata, offsets, watermarks): longer than a broker's pause for a garbage collection.
pub const REQUEST: Duration = Duration::from_secs(10);

/// How long a connection may take. Shorter than librdkafka's 30 s, so that a dead broker is named soon.
pub const CONNECT: Duration = Duration::from_secs(10);

/// The same line of librdkafka's log is shown once in this time; it repeats a line per broker and second.
pub const LOG_REPEAT: Duration = Duration::from_secs(60);

/// Different lines of librdkafka's log that are remembered for [`LOG_REPEAT`].
pub const LOG_LINES_MAX: usize = 64;

/// An OAuth token without an expiry of its own is asked for again after this time.
pub const TOKEN_LIFE: Duration = Duration::from_secs(300);

/// One wait for records to be acknowledged before failures are looked at: short, so that a refusal is seen soon.
pub const DRAIN_STEP: Duration = Duration::from_millis(20);

/// How often it is asked whether an open transaction still hides the end of the progress topic.
pub const STABLE_POLL: Duration = Duration::from_millis(50);

/// One step of ending a transaction: in between it is seen whether the pipeline stops.
pub const TRANSACTION_STEP: Duration = Duration::from_secs(1);

/// How long events of a client are served between two steps of a call that is not done.
pub const SERVE: Duration = Duration::from_millis(5);
