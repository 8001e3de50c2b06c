//! Named limits of the harness, each with the reason for its number. All are upper bounds for a busy
//! machine of two cores; a healthy run stays far below them.

use std::time::Duration;

/// How often a condition is looked at: short beside everything that is waited for.
pub const POLL: Duration = Duration::from_millis(10);

/// From the start of the process to its ready line. Compiling a plugin in the dev profile is the long part.
pub const READY: Duration = Duration::from_secs(60);

/// From SIGTERM to the end of the process: the agent's own drain limit, and some.
pub const STOP: Duration = Duration::from_secs(60);

/// One command of the CLI that is not `run`.
pub const COMMAND: Duration = Duration::from_secs(60);

/// Without any new line in the output for this long, a drain is given up and judged as it is. The start of an agent is
/// in it, which a busy machine draws out.
pub const NO_PROGRESS: Duration = Duration::from_secs(90);

/// For a condition of a test (a file appears, rows are in quarantine) unless the test says otherwise.
pub const CONDITION: Duration = Duration::from_secs(60);

/// Bytes of the agent's log that go into an error: its end, where the reason stands.
pub const LOG_TAIL_BYTES: u64 = 4_000;

/// Problems that a verdict names one by one; more only fill the screen.
pub const PROBLEMS_NAMED: usize = 12;

/// Size of the image that stands for the machine's disk in power cuts. Sparse: what is not written takes no memory.
pub const DISK_IMAGE_BYTES: u64 = 1 << 30;

/// From the start of an agent to its death at a kill point that it passes in its first second or two, on a busy machine.
pub const KILL_POINT: Duration = Duration::from_secs(120);

/// From the start of a Kafka broker to its ready line: 3 s of a quiet machine, most of it CPU; 60 s were
/// too few for four brokers at once beside thirty compilers.
pub const BROKER_READY: Duration = Duration::from_secs(180);

/// One call of the oracle on Kafka, unless the test says otherwise: reading a million records takes a few seconds.
pub const KAFKA_CALL: Duration = Duration::from_secs(60);

/// Blocks of ports that a broker tries. Two processes pick the same one of some thousands rarely.
pub const PORT_ATTEMPTS: u32 = 5;

/// A download of jars or of a Python package, tens of megabytes, over a slow line.
pub const FETCH: Duration = Duration::from_secs(600);

/// apt-get has its own limits for downloads; killed while it unpacks, it leaves dpkg broken.
pub const APT: Duration = Duration::MAX;

/// How often an idle connection of the proxy looks whether it was cut.
pub const PROXY_LOOK: Duration = Duration::from_millis(20);

/// Bytes that the proxy moves at once.
pub const PROXY_BUFFER_BYTES: usize = 64 << 10;

/// From the word to stop to the end of `feed.py`: a commit that waits for a broker which has just come back.
pub const KAFKA_FEED_END: Duration = Duration::from_secs(90);

/// As [`NO_PROGRESS`], with Kafka in the flow: a transaction that somebody left open, and a member of a group that
/// is gone, hold up readers until the broker's patience ends.
pub const KAFKA_NO_PROGRESS: Duration = Duration::from_secs(90);

/// How often a drain into Kafka is looked at: each look is a process.
pub const KAFKA_LOOK: Duration = Duration::from_millis(500);

/// From a harm until events flow again: a group's session, a transaction's timeout, a pause between two attempts to
/// connect. Beyond it the next harm comes all the same.
pub const KAFKA_FLOW: Duration = Duration::from_secs(30);

/// From the start of OpenSearch until its indices answer: 4 s of a quiet machine; see [`BROKER_READY`].
pub const OPENSEARCH_READY: Duration = Duration::from_secs(180);
