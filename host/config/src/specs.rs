//! The options of Flumen's own tables, as data: checks, JSON Schema and reference come from here.

use std::time::Duration;

use flumen_event::limits::{BYTES_MAX, ROWS_MAX};
use flumen_pipeline::component::option;
use flumen_pipeline::{OptionKind, OptionSpec};

/// A text that has to be given.
const fn needed(name: &'static str, about: &'static str) -> OptionSpec {
    OptionSpec { required: true, ..option(name, OptionKind::Text, None, about) }
}

/// What a plugin may be granted.
pub const GRANTS: &[&str] = &["log", "metrics", "clock", "random", "state", "http", "tcp"];

const GRANT_ABOUT: &str = "What the plugin may import of the host: log, metrics, clock, random, state (only between sources and channels), \
                           http, tcp (these two with `egress`).";

/// The name of an unnamed source, channel or sink.
pub const UNNAMED: &str = "main";

/// The journal's own channel: no other may have its name.
pub const QUARANTINE: &str = "quarantine";

/// `[agent]`.
pub const AGENT: &[OptionSpec] = &[
    option(
        "name",
        OptionKind::Text,
        Some("\"flumen\""),
        "The agent's name, where destinations tell who wrote.",
    ),
    option(
        "data_dir",
        OptionKind::Text,
        Some("\".flumen\""),
        "Directory of journals, compile cache and control socket; relative to this file.",
    ),
    option(
        "plugin_dir",
        OptionKind::Text,
        Some("\"plugins\""),
        "Directory of the plugins NAME.wasm; relative to this file.",
    ),
    option(
        "drain_timeout",
        OptionKind::Duration { min: Duration::ZERO, max: Duration::from_secs(3_600) },
        Some("\"30s\""),
        "How long SIGTERM waits for sources and sinks to finish.",
    ),
    option(
        "watch",
        OptionKind::Bool,
        Some("true"),
        "An edit of a configuration file takes effect by itself; without it, at `flumen reload` or SIGHUP.",
    ),
    option(
        "memory_max",
        OptionKind::Size { min: 1 << 20, max: 1 << 50 },
        None,
        "Memory that the process may have. Above it sources wait, as for a full channel, until a tenth of it is free again; pipelines that \
         may take more are refused. Without it three quarters of the machine's memory, or of the cgroup's limit if that is less.",
    ),
    option(
        "pipelines",
        OptionKind::TextList,
        Some("[\"pipelines/*.toml\"]"),
        "Pipeline files, patterns of their names, or directories of them; relative to this file.",
    ),
];

/// The top of a pipeline file.
pub const PIPELINE: &[OptionSpec] = &[
    option("name", OptionKind::Text, None, "The pipeline's name; without it the file's name without .toml."),
    option(
        "interceptor_threads",
        OptionKind::Integer { min: 1, max: 64 },
        Some("1"),
        "Threads that run the interceptors of each source.",
    ),
    option(
        "interceptors_from",
        OptionKind::Text,
        None,
        "A directory: every NAME.wasm in it is an interceptor, behind those of this file, in the order of the file names; one that \
         is dropped in joins the flow, one that is taken out leaves it. Beside it, NAME.toml may have what an [[interceptor]] has \
         (config, grant, on_reject, on_error, …). Relative to this file.",
    ),
];

/// `reliability` at the top of a pipeline file.
pub const RELIABILITY: &[OptionSpec] = &[option(
    "reliability",
    OptionKind::Choice(&["end-to-end", "store-on-failure", "best-effort"]),
    None,
    "end-to-end: events are on disk until they are delivered (channels of kind file). store-on-failure: in memory, and on disk only \
     while a destination fails or is behind (spillable). best-effort: in memory alone, and dropped while a destination takes nothing \
     (memory). Without it the channels' kinds say it; `flumen check` says what can be lost.",
)];

/// The tables of a pipeline file.
pub const PIPELINE_TABLES: &[&str] =
    &["source", "interceptor", "channel", "sink", "group", "batch", "journal"];

/// `[batch]`.
pub const BATCH: &[OptionSpec] = &[
    option(
        "rows",
        OptionKind::Integer { min: 1, max: ROWS_MAX as i64 },
        Some("8192"),
        "A batch goes on when it has this many events.",
    ),
    option(
        "bytes",
        OptionKind::Size { min: 1 << 10, max: BYTES_MAX as u64 },
        Some("\"1 MiB\""),
        "A batch goes on when its bodies have this many bytes.",
    ),
    option(
        "linger",
        OptionKind::Duration { min: Duration::ZERO, max: Duration::from_secs(10) },
        Some("\"20ms\""),
        "A batch goes on this long after its first event.",
    ),
];

/// `[journal]`.
pub const JOURNAL: &[OptionSpec] = &[
    option(
        "durability",
        OptionKind::Choice(&["durable", "os"]),
        Some("\"durable\""),
        "durable: acknowledged is on disk (fdatasync). os: acknowledged is in the page cache, and a power \
         loss takes the last seconds.",
    ),
    option(
        "segment",
        OptionKind::Size { min: 16 << 10, max: 4 << 30 },
        Some("\"64 MiB\""),
        "Bytes of one segment file, the unit of deletion.",
    ),
    option(
        "compression",
        OptionKind::Choice(&["none", "lz4", "zstd"]),
        Some("\"none\""),
        "How batches are stored: lz4 is the cheaper one, zstd takes the least space. What is there already is read whatever \
         it is.",
    ),
    option(
        "memory",
        OptionKind::Size { min: 1 << 20, max: 64 << 30 },
        Some("\"24 MiB\""),
        "Memory for recent batches, so that sinks that keep up never read the disk.",
    ),
];

/// `[[journal.key]]`.
pub const JOURNAL_KEY: &[OptionSpec] = &[
    needed("id", "Names the key on disk: 1 to 16 letters, digits, `.`, `_` and `-`. A new key is a new id."),
    needed(
        "secret",
        "The key, 64 hexadecimal digits (`openssl rand -hex 32`), from a file or a variable: `${file:…}` or `${env:…}`.",
    ),
];

/// `[channel.NAME]`, without `capacity`.
pub const CHANNEL: &[OptionSpec] = &[
    option(
        "kind",
        OptionKind::Choice(&["file", "memory", "spillable", "source-backed", "kafka"]),
        Some("\"file\""),
        "Where the channel keeps its events. file: on disk. memory: in memory, lost if the agent dies. spillable: in memory while \
         that has room, then on disk until all of that is delivered. source-backed: in memory, and read again from its source after a \
         crash, so nothing is written twice. kafka: a topic. With `reliability` its own kind is the default.",
    ),
    option(
        "keep_alive",
        OptionKind::Duration { min: Duration::from_millis(1), max: Duration::from_secs(86_400) },
        Some("\"3s\""),
        "How long a put waits for a full channel before `flumen status` shows its source as busy. It waits on, and holds the source: \
         nothing is dropped, but with `drop_after`.",
    ),
];

/// `selector` of a source, without `mapping`.
pub const SELECTOR: &[OptionSpec] = &[
    OptionSpec {
        name: "kind",
        kind: OptionKind::Choice(&["replicating", "multiplexing", "load-balancing"]),
        required: true,
        default: None,
        about: "replicating: each event to all channels. multiplexing: the value of a header decides. load-balancing: each event to \
                one channel.",
    },
    option(
        "channels",
        OptionKind::TextList,
        None,
        "The channels of a replicating or load-balancing selector; without it all of the pipeline.",
    ),
    option(
        "optional",
        OptionKind::TextList,
        None,
        "Of the chosen channels, those that no event waits for: while one is full it is passed over, and what it misses is counted.",
    ),
    option(
        "header",
        OptionKind::Text,
        None,
        "multiplexing: the header whose value decides. load-balancing: events of one value go to one channel, in order; without it \
         batches take turns, and pass over full channels.",
    ),
    option(
        "default",
        OptionKind::TextList,
        None,
        "multiplexing: the channels of events with any other value, or without the header. []: they are left out, and counted.",
    ),
];

/// What is said of `mapping` there.
pub const MAPPING_ABOUT: &str =
    "multiplexing: for each value of the header the channel, or a list of channels, that its events go to.";

/// What only a channel of kind `memory` has.
pub const MEMORY_CHANNEL: &[OptionSpec] = &[option(
    "drop_after",
    OptionKind::Duration { min: Duration::ZERO, max: Duration::from_secs(86_400) },
    None,
    "When nothing was acknowledged for this long, events that find no room are dropped and counted. Without it sources wait; with \
     reliability = \"best-effort\" it is 3s.",
)];

/// `capacity` of a channel of kind `memory` or `source-backed`, and `memory` of a channel or a failover of kind `spillable`.
pub const MEMORY_CAPACITY: &[OptionSpec] = &[
    option(
        "events",
        OptionKind::Integer { min: 1, max: 1_000_000_000 },
        Some("1000000"),
        "Events that are held in memory.",
    ),
    option(
        "bytes",
        OptionKind::Size { min: 1 << 10, max: 1 << 40 },
        Some("\"256 MiB\""),
        "Memory that they take, counted as it is: bodies, headers and all.",
    ),
];

/// `failover` of a channel, without the options of a kind alone. Its kind is the first.
pub const FAILOVER: &[OptionSpec] = &[
    option(
        "kind",
        OptionKind::Choice(&["file", "memory", "spillable", "kafka"]),
        Some("\"file\""),
        "Where events go meanwhile. file: on another disk. memory: an end without a clean stop loses what is there. spillable: in memory \
         while that has room, then on that disk. kafka: in a topic of one partition, not for a channel of kind `kafka`.",
    ),
    option(
        "dir",
        OptionKind::Text,
        None,
        "A directory on another disk; each pipeline has its own below it. Needed for `file`, `memory` and `spillable`, but not of a channel \
         of kind `kafka`, whose failover is in the data directory. Of kind memory only positions and what plugins remember are there.",
    ),
    option(
        "check_interval",
        OptionKind::Duration { min: Duration::from_millis(100), max: Duration::from_secs(3_600) },
        Some("\"5s\""),
        "How often the channel is probed.",
    ),
    option(
        "fail_after",
        OptionKind::Integer { min: 1, max: 1_000 },
        Some("3"),
        "Failed probes in a row until events go to the failover.",
    ),
    option(
        "return_after",
        OptionKind::Integer { min: 1, max: 1_000 },
        Some("3"),
        "Good probes in a row until what is in the failover is moved, and events go back.",
    ),
    option(
        "events",
        OptionKind::Integer { min: 1, max: 1_000_000_000_000 },
        Some("10000000"),
        "Sources wait when the failover holds this many events.",
    ),
    option(
        "bytes",
        OptionKind::Size { min: 1 << 10, max: 1 << 50 },
        Some("\"8 GiB\""),
        "Sources wait when the failover holds this many bytes.",
    ),
];

/// `capacity` of a channel.
pub const CAPACITY: &[OptionSpec] = &[
    option(
        "events",
        OptionKind::Integer { min: 1, max: 1_000_000_000_000 },
        Some("10000000"),
        "A put waits when the channel holds this many events.",
    ),
    option(
        "bytes",
        OptionKind::Size { min: 1 << 10, max: 1 << 50 },
        Some("\"8 GiB\""),
        "A put waits when the channel holds this many bytes.",
    ),
];

/// `[[interceptor]]`, without `config` and `limits`.
pub const INTERCEPTOR: &[OptionSpec] = &[
    OptionSpec {
        name: "plugin",
        kind: OptionKind::Text,
        required: true,
        default: None,
        about: "The plugin NAME of the plugin directory, or a path inside of it that ends in .wasm.",
    },
    option("name", OptionKind::Text, None, "Its name in the pipeline; without it the plugin's."),
    option("grant", OptionKind::TextList, Some("[]"), GRANT_ABOUT),
    option(
        "on_reject",
        OptionKind::Choice(&["quarantine", "drop"]),
        Some("\"quarantine\""),
        "What becomes of events that the plugin rejects: kept in quarantine, or counted and dropped.",
    ),
    option(
        "on_error",
        OptionKind::Choice(&["quarantine", "stop", "bypass"]),
        Some("\"quarantine\""),
        "What happens when the plugin fails (trap, timeout, memory, lying answer) on more than its error budget. quarantine: \
         those events go to quarantine, as below the budget. stop: events wait for another version of the plugin, and \
         nothing is lost. bypass: events go on unchanged, and are counted.",
    ),
];

/// The same in a file beside the plugin's: name and plugin are the file's.
pub const INTERCEPTOR_FILE: &[OptionSpec] = INTERCEPTOR.split_at(2).1;

/// `error_budget` of an interceptor.
pub const ERROR_BUDGET: &[OptionSpec] = &[
    option(
        "events_percent",
        OptionKind::Integer { min: 0, max: 100 },
        Some("10"),
        "Percent of the events that the plugin may fail on.",
    ),
    option(
        "batches_percent",
        OptionKind::Integer { min: 0, max: 100 },
        Some("50"),
        "Percent of the batches in which it may fail on an event.",
    ),
    option(
        "window",
        OptionKind::Duration { min: Duration::from_secs(1), max: Duration::from_secs(86_400) },
        Some("\"1m\""),
        "The time that it is judged by.",
    ),
    option(
        "events_min",
        OptionKind::Integer { min: 1, max: 1_000_000_000 },
        Some("100"),
        "It is not judged by fewer than its last events of this number, however old they are.",
    ),
];

/// `limits` of an interceptor.
pub const LIMITS: &[OptionSpec] = &[
    option(
        "time",
        OptionKind::Duration { min: Duration::from_millis(1), max: Duration::from_secs(600) },
        Some("\"1s\""),
        "Time for one batch, and for opening.",
    ),
    option(
        "memory",
        OptionKind::Size { min: 1 << 20, max: 4 << 30 },
        Some("\"64 MiB\""),
        "Memory of one instance.",
    ),
    option(
        "answer",
        OptionKind::Size { min: 1 << 10, max: 2 << 30 },
        Some("\"64 MiB\""),
        "Bytes of one answer.",
    ),
    option(
        "log_lines_per_s",
        OptionKind::Integer { min: 0, max: 100_000 },
        Some("10"),
        "Lines per second to the agent's log.",
    ),
    option(
        "metric_calls_per_s",
        OptionKind::Integer { min: 0, max: 1_000_000_000 },
        Some("100000"),
        "Calls per second to its counters and gauges.",
    ),
    option(
        "host_call_bytes",
        OptionKind::Size { min: 0, max: 1 << 30 },
        Some("\"16 MiB\""),
        "Bytes that calls of log, metrics and state may carry for one batch.",
    ),
    option(
        "state",
        OptionKind::Size { min: 1 << 16, max: 1 << 40 },
        Some("\"256 MiB\""),
        "Memory of everything that the plugin remembers: some 100 bytes for each key of 40.",
    ),
    option(
        "recycle_batches",
        OptionKind::Integer { min: 1, max: 1_000_000_000 },
        Some("10000"),
        "Batches after which an instance is replaced by a fresh one.",
    ),
    option(
        "probation_batches",
        OptionKind::Integer { min: 0, max: 1_000_000 },
        Some("200"),
        "A swapped version is on probation for this many batches; 0: never.",
    ),
    option(
        "probation_time",
        OptionKind::Duration { min: Duration::ZERO, max: Duration::from_secs(86_400) },
        Some("\"5m\""),
        "Or for this time, whichever ends first.",
    ),
    option(
        "probation_failures",
        OptionKind::Integer { min: 0, max: 1_000_000 },
        Some("2"),
        "The version before comes back after more batches than these in which the new one failed and it did not; it processes them.",
    ),
    option(
        "probation_slowdown",
        OptionKind::Integer { min: 0, max: 1_000_000 },
        Some("10"),
        "It also comes back if an event costs this many times as much as before, and over a microsecond; 0: whatever it costs.",
    ),
    option(
        "recycle_memory_percent",
        OptionKind::Integer { min: 1, max: 100 },
        Some("75"),
        "Percent of `memory` above which an instance is replaced after its batch.",
    ),
];

/// `limits` of a sink that is a plugin: its time is that of a network.
// Worked out by the compiler: an index that is wrong does not build.
#[allow(clippy::indexing_slicing)]
pub const SINK_LIMITS: &[OptionSpec] = &{
    let mut all = [LIMITS[0]; LIMITS.len()];
    let mut at = 1;
    while at < LIMITS.len() {
        all[at] = LIMITS[at];
        at += 1;
    }
    all[0].default = Some("\"30s\"");
    all
};

/// The default of `time` there.
pub const SINK_TIME: Duration = Duration::from_secs(30);

/// `egress` of a plugin, without `secrets`.
pub const EGRESS: &[OptionSpec] = &[
    OptionSpec {
        name: "allow",
        kind: OptionKind::TextList,
        required: true,
        default: None,
        about: "Where it may connect to: \"host:port\", \"*.domain:port\" (names below it), addresses. A pattern never \
                reaches private networks, and a name reaches neither loopback nor link-local addresses unless they are named.",
    },
    option(
        "ca",
        OptionKind::Text,
        None,
        "Certificates in PEM to believe instead of the system's; relative to this file.",
    ),
    option(
        "timeout",
        OptionKind::Duration { min: Duration::from_millis(1), max: Duration::from_secs(600) },
        Some("\"10s\""),
        "Time for one call; the time of the batch bounds it too.",
    ),
    option("request", OptionKind::Size { min: 1, max: 1 << 30 }, Some("\"64 MiB\""), "Bytes of one request."),
    option("response", OptionKind::Size { min: 1, max: 1 << 30 }, Some("\"16 MiB\""), "Bytes of one answer."),
    option(
        "connections",
        OptionKind::Integer { min: 1, max: 1_024 },
        Some("8"),
        "Connections open at once, idle ones included.",
    ),
    option(
        "calls_per_batch",
        OptionKind::Integer { min: 1, max: 1_000_000 },
        Some("100"),
        "Requests, connects, reads and writes for one batch.",
    ),
];

/// A secret of `egress` that does not go everywhere.
pub const SECRET: &[OptionSpec] = &[
    OptionSpec {
        name: "value",
        kind: OptionKind::Text,
        required: true,
        default: None,
        about: "Where it is kept: \"${file:path}\" or \"${env:NAME}\".",
    },
    option(
        "hosts",
        OptionKind::TextList,
        None,
        "Where it may be sent, as in `allow`; without it everywhere.",
    ),
];

/// `[sink.NAME]` with a plugin, without `config`, `limits` and `egress`.
pub const PLUGIN_SINK: &[OptionSpec] = &[
    OptionSpec {
        name: "plugin",
        kind: OptionKind::Text,
        required: true,
        default: None,
        about: "The plugin NAME of the plugin directory that delivers, instead of a `type`; or a path that ends in .wasm.",
    },
    option("grant", OptionKind::TextList, Some("[]"), GRANT_ABOUT),
    option(
        "batch_events",
        OptionKind::Integer { min: 1, max: ROWS_MAX as i64 },
        Some("1000"),
        "The plugin gets this many events at once, or fewer.",
    ),
    option(
        "batch_bytes",
        OptionKind::Size { min: 1, max: BYTES_MAX as u64 / 2 },
        Some("\"4 MiB\""),
        "The plugin gets bodies of this many bytes at once, or fewer (one event may be larger).",
    ),
    option(
        "linger",
        OptionKind::Duration { min: Duration::from_millis(1), max: Duration::from_secs(60) },
        Some("\"1s\""),
        "The plugin gets what is there this long after its first event.",
    ),
];

/// `[group.NAME]`.
pub const GROUP: &[OptionSpec] = &[
    OptionSpec {
        name: "kind",
        kind: OptionKind::Choice(&["failover", "load-balancing"]),
        required: true,
        default: None,
        about: "failover: the first sink that is well gets everything. load-balancing: all sinks are at work at once, each event at \
                one of them.",
    },
    OptionSpec {
        name: "sinks",
        kind: OptionKind::TextList,
        required: true,
        default: None,
        about: "The sinks, which read the same channel; of kind failover the best first.",
    },
    option(
        "balance",
        OptionKind::Choice(&["round-robin", "random", "least-in-flight"]),
        Some("\"round-robin\""),
        "Which of the sinks that wait for events gets the next ones: the next in the circle, any, or the one with the fewest events \
         that it has not acknowledged.",
    ),
    option(
        "penalty",
        OptionKind::Duration { min: Duration::from_millis(1), max: Duration::from_secs(3_600) },
        Some("\"1s\""),
        "A sink that fails rests this long; twice as long after each further failure in a row.",
    ),
    option(
        "penalty_max",
        // Longer than a sink's first pauses between tries: one that opens and cannot write would be well again before it fails.
        OptionKind::Duration { min: Duration::from_secs(1), max: Duration::from_secs(86_400) },
        Some("\"30s\""),
        "It rests this long at most.",
    ),
];

/// What every sink takes beside its type's options.
pub const SINK: &[OptionSpec] = &[option(
    "channel",
    OptionKind::Text,
    None,
    "The channel that it reads; may be left out if there is only one.",
)];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::default_value;

    #[test]
    fn every_default_is_right() {
        for spec in [
            AGENT,
            PIPELINE,
            BATCH,
            JOURNAL,
            RELIABILITY,
            CHANNEL,
            GROUP,
            SELECTOR,
            MEMORY_CHANNEL,
            MEMORY_CAPACITY,
            FAILOVER,
            CAPACITY,
            INTERCEPTOR,
            ERROR_BUDGET,
            LIMITS,
            SINK_LIMITS,
            EGRESS,
            SECRET,
            PLUGIN_SINK,
            SINK,
        ]
        .concat()
        {
            let Some(default) = spec.default else { continue };
            assert!(default_value(&spec, default).is_some(), "{} = {default}", spec.name);
        }
    }
}
