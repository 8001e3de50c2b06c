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

/// A command waits this long for an answer of the cluster: with what comes before and after it, a dead broker is
/// told of within ten seconds.
pub const ADMIN: Duration = Duration::from_secs(7);

/// A command asks again after this long; by then a trouble of the connection has come up, and asking on is in vain.
pub const ADMIN_SLICE: Duration = Duration::from_secs(1);

/// Brokers that are asked side by side; each costs a few threads for a moment.
pub const PROBES_MAX: usize = 32;

/// Reading a topic of progress or transactions to its end takes at most this long; what came by then is shown.
pub const READ_STATE: Duration = Duration::from_secs(5);

/// A consumer that looks at a topic fetches at most this much ahead; it is a tool beside an agent.
pub const LOOK_AHEAD_KIB: u32 = 16 * 1024;

/// Records that are read of a partition to estimate how large its records are.
pub const SAMPLE_RECORDS: i64 = 100;
