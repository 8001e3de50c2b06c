//! Named limits of everything that speaks Kafka, each with the reason for its number.

use std::time::Duration;

/// How often librdkafka hands out its statistics: often enough for a person who looks, too rarely to cost.
pub const STATISTICS_EVERY: Duration = Duration::from_secs(5);

/// Events of a client that are served at once (statistics, lines of the log, errors): more than wait after any trouble.
pub const EVENTS_AT_ONCE: usize = 256;

/// How often the clients of a sink are served while no events come. The question for a token comes well before the old one
/// ends.
pub const SERVE_EVERY: Duration = Duration::from_secs(1);

/// One question to a broker (metadata, offsets, watermarks): longer than a broker's pause for a garbage collection.
pub const REQUEST: Duration = Duration::from_secs(10);

/// The offsets of partitions that come are waited for this long, and nothing is read meanwhile. What takes longer is mostly the
/// transaction of a killed agent, which may take [`TRANSACTION`].
pub const GROUP_OFFSETS: Duration = Duration::from_secs(2);

/// Of partitions that wait for their offset, one is asked for in this time,
pub const ASK_AGAIN: Duration = Duration::from_millis(250);
/// for this long at most: nothing of the others is handed out meanwhile.
pub const ASK_ONE: Duration = Duration::from_millis(250);

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

/// Records under way that go by themselves are given this time, again and again, before those that fill no batch are
/// sent with them: longer than a batch takes on a busy broker, short beside a transaction.
pub const DRAIN_PROGRESS: Duration = Duration::from_millis(15);

/// How often it is looked whether they went: what follows them waits meanwhile.
pub const DRAIN_LOOK: Duration = Duration::from_millis(1);

/// So many full batches at most are waited for while librdkafka flushes, which keeps a processor busy.
pub const DRAIN_BATCHES: u64 = 2;

/// How often it is asked whether an open transaction still hides the end of the progress topic.
pub const STABLE_POLL: Duration = Duration::from_millis(50);

/// What reads to the end of a partition and is done waits there for so long, in ms, before a broker says that it is the end.
pub const END_WAIT_MS: &str = "10";

/// One step of ending a transaction: in between it is seen whether the pipeline stops.
pub const TRANSACTION_STEP: Duration = Duration::from_secs(1);

/// How long events of a client are served between two steps of a call that is not done.
pub const SERVE: Duration = Duration::from_millis(5);

/// Bytes of events that wait for the committer of a Kafka journal before a put waits: a few groups.
pub const QUEUE_BYTES: usize = 32 << 20;

/// Bytes of events of one transaction of a Kafka journal. At 100 MB/s a dozen
/// transactions a second, which costs little; larger ones hold everything up longer when one has to be sent again.
pub const GROUP_BYTES: usize = 8 << 20;

/// How long a group waits for more commits: a transaction takes some 10 ms whatever is in it.
pub const GROUP_LINGER: Duration = Duration::from_millis(5);

/// A transaction that is not ended within this time is ended by the broker: what a killed agent leaves open holds
/// up the readers of its topics for this long, unless it is started again before.
pub const TRANSACTION: Duration = Duration::from_secs(30);

/// What an open transaction hides is waited for this long before it is said: longer than [`TRANSACTION`] and the ten seconds
/// after which a broker looks for those that are over.
pub const HIDDEN: Duration = Duration::from_secs(45);

/// What stays hidden for this long after its producer was taken over has lost its end: markers that are written come at once.
pub const LOST_END: Duration = Duration::from_secs(2);

/// Records of the coordinators' topic that are read first for how an id's transactions ended: some thousand transactions of
/// all ids in its partition.
pub const COORDINATOR_RECORDS: i64 = 4_000;

/// A journal that has had nothing to do for this long looks whether what it wrote last is to be seen. If not, it looks
/// again, after twice the time each.
pub const IDLE_LOOK: Duration = Duration::from_secs(5);
/// How often it looks at most, over some five minutes: somebody else's transaction may hide it for as long as he likes.
pub const IDLE_LOOKS: u32 = 6;

/// Pauses between two tries to reach the cluster, first and longest.
pub const RECONNECT_FIRST: Duration = Duration::from_millis(200);
/// See [`RECONNECT_FIRST`].
pub const RECONNECT_MAX: Duration = Duration::from_secs(5);

/// Reading an agent's positions, or what its plugins remember, at its start: gigabytes of other agents' may be in the
/// same partition.
pub const READ_BACK: Duration = Duration::from_secs(300);

/// How long the topic of state keeps a tombstone after the key's value is gone (`delete.retention.ms`): longer than reading
/// takes at most, or a reader that saw the value could miss its removal. The default, a day, would be most of the topic
/// where keys live for minutes.
pub const STATE_TOMBSTONES: Duration = Duration::from_secs(600);

/// Bytes of a segment of the topic of state. The newest one is not compacted, and a start reads it as it is.
pub const STATE_SEGMENT_BYTES: u64 = 64 << 20;

/// Bytes of the largest record of the topic of state: a value of 1 MiB and a key of 1 KiB, with names and the batch's head.
pub const STATE_RECORD_BYTES: usize = (1 << 20) + (64 << 10);

/// How often a journal looks for entries that have expired, also when no plugin writes.
pub const STATE_SWEEP_EVERY: Duration = Duration::from_secs(5);

/// Partitions of the topics of positions and state. A start reads one of them; more would only be more files. Never to be
/// changed: where an agent's records are follows from it.
pub const REGISTER_PARTITIONS: i32 = 8;

/// Events of one delivery of a channel's reader, as of a source's batch.
pub const READ_ROWS: usize = 8_192;
/// Bytes of one delivery.
pub const READ_BYTES: usize = 1 << 20;

/// Bytes that a reader fetches ahead.
pub const READ_AHEAD_BYTES: usize = 16 << 20;

/// How often a Kafka journal looks after its brokers and its readers' lag.
pub const WATCH_EVERY: Duration = Duration::from_secs(5);

/// How long a closing journal waits for the transaction under way.
pub const CLOSE: Duration = Duration::from_secs(10);

/// What a broker takes as one record if it does not say (its default is 1,048,588 with the batch's head).
pub const RECORD_BYTES_DEFAULT: usize = 1_000_000;

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

/// How long a step of a transaction blocks before the committer looks whether Kafka was given up.
pub const SLICE: Duration = Duration::from_millis(500);

/// Reading a log to its end is given up when nothing has come for this long.
pub const READ_SILENCE: Duration = Duration::from_secs(30);

/// Bytes of a record of a failover's log, at most: what a broker takes by default, so that a topic that takes more needs no more memory.
pub const LOG_RECORD_BYTES_MAX: usize = 1 << 20;

/// What a record takes beside its value, with room to spare: the head of its batch, and its own.
pub const LOG_RECORD_OVERHEAD_BYTES: usize = 1 << 10;

/// Looking whether a failover is open in a log takes at most this long: a reload and a start wait for it.
pub const LOG_LOOK: Duration = Duration::from_secs(10);

/// A reader of a log that has heard nothing for this long tells what is wrong with its connection.
pub const LOG_SILENCE: Duration = Duration::from_secs(3);
