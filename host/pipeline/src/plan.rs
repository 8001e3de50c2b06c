//! A pipeline as plain values: what the user's text means, after all checks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

pub use flumen_journal::failover::{FailoverPlan, SecondaryKind};
pub use flumen_journal::{Compression, Key, KeyId, Keys};

use crate::component::Options;

/// The agent: settings that all pipelines share.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentPlan {
    /// The agent's name (a destination may have to know who wrote).
    pub name: String,
    /// Journals, compile cache and the control socket live below this directory.
    pub data_dir: PathBuf,
    /// Plugins `NAME.wasm` are looked up here.
    pub plugin_dir: PathBuf,
    /// How long a SIGTERM waits for sources and sinks to finish.
    pub drain_timeout: Duration,
    /// Whether an edit of a configuration file takes effect by itself.
    pub watch: bool,
    /// Memory that the process may have; `None`: a share of what the machine has.
    pub memory_max_bytes: Option<u64>,
    /// The pipelines.
    pub pipelines: Vec<PipelinePlan>,
    /// The bridges that run beside them.
    pub bridges: Vec<BridgePlan>,
}

/// A bridge: a TOML file of flat tables, one of them `[bridge]`.
#[derive(Debug, Clone, PartialEq)]
pub struct BridgePlan {
    /// The file's stem.
    pub name: String,
    /// The file that it came from.
    pub file: PathBuf,
    /// Checked options of the tables that the file has, by their names.
    pub tables: BTreeMap<&'static str, Options>,
}

/// One pipeline: one TOML file.
#[derive(Debug, Clone, PartialEq)]
pub struct PipelinePlan {
    /// The file's stem, or `name` in it. Also the directory of its journal.
    pub name: String,
    /// The file that it came from.
    pub file: PathBuf,
    /// Where events come from.
    pub sources: Vec<SourcePlan>,
    /// The chain between sources and channels, in order.
    pub interceptors: Vec<InterceptorPlan>,
    /// Threads that run the chain of each source.
    pub interceptor_threads: usize,
    /// Channels; which of them a source puts to is its selector's choice.
    pub channels: Vec<ChannelPlan>,
    /// Where events go.
    pub sinks: Vec<SinkPlan>,
    /// Sinks that read a channel as one.
    pub groups: Vec<GroupPlan>,
    /// How batches grow.
    pub batch: BatchPlan,
    /// The journal.
    pub journal: JournalPlan,
}

/// A source.
#[derive(Debug, Clone, PartialEq)]
pub struct SourcePlan {
    /// Its name in the pipeline.
    pub name: String,
    /// `type` in the file.
    pub kind: String,
    /// What turns its bytes into events, if that is a plugin.
    pub codec: Option<CodecPlan>,
    /// Checked options.
    pub options: Options,
    /// Which channels get its events.
    pub selector: SelectorPlan,
}

/// Which channels get the events of a source. The default: all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SelectorPlan {
    /// How they are chosen.
    pub rule: SelectorRule,
    /// Of the chosen ones, those that are passed over, and counted, while they are full.
    pub optional: BTreeSet<String>,
}

/// How a selector chooses channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SelectorRule {
    /// Every event goes to all of these; without any, to all of the pipeline.
    Replicating(BTreeSet<String>),
    /// The value of a header decides.
    Multiplexing {
        /// The header's name.
        header: String,
        /// The channels of each value.
        mapping: BTreeMap<String, BTreeSet<String>>,
        /// Those of any other value, and of events without the header; none: such events are left out, and counted.
        default: BTreeSet<String>,
    },
    /// Every event goes to one of several.
    LoadBalancing {
        /// Which; without any, all of the pipeline.
        channels: BTreeSet<String>,
        /// Events with the same value of this header go to the same channel, in order; `None`: batches take turns.
        header: Option<String>,
    },
}

impl Default for SelectorRule {
    fn default() -> Self {
        SelectorRule::Replicating(BTreeSet::new())
    }
}

impl SelectorPlan {
    /// The channels that it may choose, of all of the pipeline.
    pub fn channels<'a>(&'a self, all: impl IntoIterator<Item = &'a str>) -> BTreeSet<&'a str> {
        let named = |names: &'a BTreeSet<String>| names.iter().map(String::as_str).collect::<BTreeSet<_>>();
        match &self.rule {
            SelectorRule::Replicating(channels) | SelectorRule::LoadBalancing { channels, .. } => {
                if channels.is_empty() { all.into_iter().collect() } else { named(channels) }
            }
            SelectorRule::Multiplexing { mapping, default, .. } => {
                mapping.values().chain([default]).flat_map(named).collect()
            }
        }
    }
}

/// A codec: a plugin in another world, with the same settings.
pub type CodecPlan = InterceptorPlan;

/// An interceptor.
#[derive(Debug, Clone, PartialEq)]
pub struct InterceptorPlan {
    /// Its name in the pipeline: the plugin's, unless `name` is given.
    pub name: String,
    /// Name of the plugin: `plugins/NAME.wasm`, or a path.
    pub plugin: String,
    /// The plugin's own configuration, as JSON text.
    pub config: String,
    /// Host powers: `log`, `metrics`, `clock`.
    pub grants: Vec<String>,
    /// What becomes of rows that the plugin rejects.
    pub on_reject: OnReject,
    /// How much it may fail, and what happens then.
    pub errors: ErrorPlan,
    /// Limits of its instances.
    pub limits: PluginLimits,
    /// Where `http` and `tcp` may lead; `None`: nowhere.
    pub egress: Option<EgressPlan>,
}

/// The way out of a plugin that is granted `http` or `tcp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressPlan {
    /// `host:port`, `*.domain:port`, addresses.
    pub allow: Vec<String>,
    /// What the host puts in where the plugin names it.
    pub secrets: BTreeMap<String, SecretPlan>,
    /// Certificates to believe instead of the system's.
    pub ca: Option<PathBuf>,
    /// Time for one call.
    pub timeout: Duration,
    /// Bytes of one request.
    pub request_bytes: u64,
    /// Bytes of one answer.
    pub response_bytes: u64,
    /// Connections open at once.
    pub connections: u32,
    /// Calls for one batch.
    pub calls_per_batch: u32,
}

/// A secret, and where it may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretPlan {
    /// What is sent.
    pub value: Secret,
    /// As `allow`; `None`: everywhere that is allowed.
    pub hosts: Option<Vec<String>>,
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("(secret)")
    }
}

impl InterceptorPlan {
    /// It is granted state: its batches go one by one, in order.
    pub fn keeps_state(&self) -> bool {
        self.grants.iter().any(|grant| grant == "state")
    }
}

/// What becomes of rejected rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReject {
    /// They go to the quarantine channel with their reason.
    Quarantine,
    /// They are counted and dropped.
    Drop,
}

/// What happens when a plugin fails on more than its error budget. Rows that it rejects are not failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// Rows that it fails on go to quarantine, below the budget and above.
    Quarantine,
    /// Events wait (nothing is lost) until there is another version of the plugin.
    Stop,
    /// Events go on unchanged, and are counted.
    Bypass,
}

impl OnError {
    /// The word in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            OnError::Quarantine => "quarantine",
            OnError::Stop => "stop",
            OnError::Bypass => "bypass",
        }
    }
}

/// A plugin's error budget. Below it, and by default above it, what a plugin fails on goes to quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorPlan {
    /// What happens above it.
    pub action: OnError,
    /// Percent of the events that it may fail on.
    pub events_percent: u8,
    /// Percent of the batches that it may fail in, if only on one event.
    pub batches_percent: u8,
    /// Over which time.
    pub window: Duration,
    /// It is not judged by fewer events than these, the last ones.
    pub events_min: u64,
}

impl Default for ErrorPlan {
    fn default() -> Self {
        // A bad event in every second batch costs a dozen calls for each: by then the plugin is what is wrong.
        ErrorPlan {
            action: OnError::Quarantine,
            events_percent: 10,
            batches_percent: 50,
            window: Duration::from_secs(60),
            events_min: 100,
        }
    }
}

/// Limits of one plugin's instances, on by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PluginLimits {
    /// Time per batch (and for `open`).
    pub time: Duration,
    /// Linear memory of one instance.
    pub memory_bytes: u64,
    /// All bytes of one answer.
    pub answer_bytes: u64,
    /// Lines per second to the agent's log.
    pub log_lines_per_s: u32,
    /// Calls per second to its counters and gauges.
    pub metric_calls_per_s: u32,
    /// Bytes that all host calls of one batch may carry.
    pub host_call_bytes: u64,
    /// Memory of everything that the plugin may remember.
    pub state_bytes: u64,
    /// Batches after which an instance is replaced by a fresh one, so that a guest that leaks stays harmless.
    pub recycle_batches: u64,
    /// Percent of `memory_bytes` above which an instance is replaced after its batch: its memory never shrinks.
    pub recycle_memory_percent: u8,
    /// What a swapped version has to stand.
    pub probation: Probation,
}

/// What a version of a plugin has to stand after a swap; else the version before it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probation {
    /// For so many batches; 0: none.
    pub batches: u64,
    /// For so long at most.
    pub time: Duration,
    /// Batches that it may fail in where the version before does not.
    pub failures: u64,
    /// How many times as much an event may cost; 0: whatever it costs.
    pub slowdown: u64,
}

impl Probation {
    /// What counts where the pipeline's file says nothing.
    pub const DEFAULT: Probation =
        Probation { batches: 200, time: Duration::from_secs(300), failures: 2, slowdown: 10 };
}

impl PluginLimits {
    /// What counts where the pipeline's file says nothing.
    pub const DEFAULT: PluginLimits = PluginLimits {
        time: Duration::from_secs(1),
        memory_bytes: 64 << 20,
        answer_bytes: 64 << 20,
        log_lines_per_s: 10,
        metric_calls_per_s: 100_000,
        // Two times the keys of a full batch, and as much to read.
        host_call_bytes: 16 << 20,
        state_bytes: crate::limits::STATE_BYTES_MAX,
        recycle_batches: 10_000,
        recycle_memory_percent: 75,
        probation: Probation::DEFAULT,
    };
}

impl Default for PluginLimits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A channel.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelPlan {
    /// Its name in the pipeline.
    pub name: String,
    /// A put waits at this many events.
    pub capacity_events: u64,
    /// A put waits at this many bytes.
    pub capacity_bytes: u64,
    /// How long a put waits before its source is shown as busy.
    pub keep_alive: Duration,
    /// Where it keeps its events.
    pub kind: ChannelKind,
    /// What becomes of events while that takes none; `None`: sources wait.
    pub failover: Option<FailoverPlan>,
    /// Checked options of a failover that is no journal on this machine: brokers, topic and login of kind `kafka`.
    pub failover_options: Options,
}

/// Where a channel keeps its events.
#[derive(Debug, Clone, PartialEq)]
pub enum ChannelKind {
    /// In the pipeline's file journal.
    File,
    /// In memory; the capacity is that of the memory.
    Memory {
        /// When nothing was acknowledged for this long, events that find no room are dropped; `None`: they wait.
        drop_after: Option<Duration>,
    },
    /// In memory while that has room, and in the file journal from then until it is drained. The capacity is that of the file.
    Spillable {
        /// Events in memory.
        memory_events: u64,
        /// The memory that they take.
        memory_bytes: u64,
    },
    /// In memory, and read again by its source after a crash: positions, acknowledgements and state are in the file journal.
    SourceBacked,
    /// In something that several agents share: events may come from and go to elsewhere.
    Shared {
        /// `kind` in the file.
        kind: String,
        /// Checked options.
        options: Options,
    },
}

impl ChannelKind {
    /// The word in the configuration.
    pub fn word(&self) -> &str {
        match self {
            ChannelKind::File => "file",
            ChannelKind::Memory { .. } => "memory",
            ChannelKind::Spillable { .. } => "spillable",
            ChannelKind::SourceBacked => "source-backed",
            ChannelKind::Shared { kind, .. } => kind,
        }
    }

    /// It has a memory journal.
    pub fn is_in_memory(&self) -> bool {
        matches!(self, ChannelKind::Memory { .. } | ChannelKind::Spillable { .. })
    }
}

/// Whether a failover of kind `new`, in the place of one of kind `old`, goes on with what is in it: a journal in memory takes the
/// events of a file over, not the other way round.
pub fn takes_over(old: SecondaryKind, new: SecondaryKind) -> bool {
    let is_in_memory = |kind| matches!(kind, SecondaryKind::Memory | SecondaryKind::Spillable);
    match (old, new) {
        (SecondaryKind::Kafka, _) | (_, SecondaryKind::Kafka) => old == new,
        _ => !is_in_memory(old) || is_in_memory(new),
    }
}

impl ChannelPlan {
    /// Other agents may put to it or read it.
    pub fn is_shared(&self) -> bool {
        matches!(self.kind, ChannelKind::Shared { .. })
    }

    /// Both have no failover, or the same.
    pub fn has_failover_of(&self, other: &ChannelPlan) -> bool {
        self.failover == other.failover && self.failover_options == other.failover_options
    }

    /// Whether two failovers of kind `kafka` are in the same topic: on one cluster, as far as lists of brokers say.
    pub fn has_topic_of(&self, other: &ChannelPlan) -> bool {
        let topic = |plan: &ChannelPlan| plan.failover_options.text_opt("topic").map(str::to_owned);
        let brokers = |plan: &ChannelPlan| {
            plan.failover_options.list_opt("brokers").map(<[String]>::to_vec).unwrap_or_default()
        };
        let known = brokers(other);
        topic(self) == topic(other) && brokers(self).iter().any(|broker| known.contains(broker))
    }
}

/// A sink.
#[derive(Debug, Clone, PartialEq)]
pub struct SinkPlan {
    /// Its name in the pipeline.
    pub name: String,
    /// `type` in the file.
    pub kind: String,
    /// The channel that it reads.
    pub channel: String,
    /// Stateless interceptors of this sink alone, in order.
    pub interceptors: Vec<InterceptorPlan>,
    /// What turns events into bytes, if that is a plugin.
    pub codec: Option<CodecPlan>,
    /// Checked options.
    pub options: Options,
    /// The plugin that delivers, if no built-in sink does.
    pub plugin: Option<InterceptorPlan>,
}

/// A sink group: each event of its channel goes to one of its sinks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupPlan {
    /// Its name in the pipeline, which no sink has; also that of its reader in the channel.
    pub name: String,
    /// The channel that it reads, and all its sinks.
    pub channel: String,
    /// Its sinks; of a failover group the best first.
    pub sinks: Vec<String>,
    /// Which of them gets what.
    pub kind: GroupKind,
    /// How long a sink rests after a failure; twice as long after each further one in a row.
    pub penalty: Duration,
    /// How long at most.
    pub penalty_max: Duration,
}

/// Which sink of a group gets events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupKind {
    /// The first one that is well.
    Failover,
    /// All of them, at once.
    LoadBalancing(Balance),
}

/// How a load-balancing group chooses among the sinks that wait for events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// The next one in the circle.
    RoundRobin,
    /// Any.
    Random,
    /// The one with the fewest events that it has not acknowledged.
    LeastInFlight,
}

impl PipelinePlan {
    /// The group that a sink is in.
    pub fn group_of(&self, sink: &str) -> Option<&GroupPlan> {
        self.groups.iter().find(|group| group.sinks.iter().any(|member| member == sink))
    }

    /// The name of the reader by which a sink reads its channel: its own, or its group's.
    pub fn reader_of<'a>(&'a self, sink: &'a SinkPlan) -> &'a str {
        self.group_of(&sink.name).map_or(&sink.name, |group| &group.name)
    }

    /// The readers of a channel, each once.
    pub fn readers(&self, channel: &str) -> Vec<&str> {
        let mut readers: Vec<&str> = Vec::new();
        for sink in self.sinks.iter().filter(|sink| sink.channel == channel) {
            let reader = self.reader_of(sink);
            if !readers.contains(&reader) {
                readers.push(reader);
            }
        }
        readers
    }
}

/// `kind` of a sink that is a plugin.
pub const PLUGIN_SINK: &str = "plugin";

/// How batches grow: a batch goes on when any of these is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlan {
    /// Events.
    pub rows: usize,
    /// Body bytes.
    pub bytes: usize,
    /// Time since the first event.
    pub linger: Duration,
}

impl Default for BatchPlan {
    fn default() -> Self {
        // 4,000 rows cost no more per event than 1,000 (measured), and 1 MiB stays inside the L2 cache.
        BatchPlan { rows: 8_192, bytes: 1 << 20, linger: Duration::from_millis(20) }
    }
}

/// Settings of the pipeline's journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalPlan {
    /// Every acknowledgement durable (`fdatasync`), or page cache only.
    pub durable: bool,
    /// Bytes of one segment file.
    pub segment_bytes: u64,
    /// Memory for recent batches.
    pub window_bytes: u64,
    /// How batches are stored from now on.
    pub compression: Compression,
    /// Encrypted with the first from now on, read with any; none: not encrypted.
    pub keys: Keys,
}

impl Default for JournalPlan {
    fn default() -> Self {
        JournalPlan {
            durable: true,
            segment_bytes: 64 << 20,
            window_bytes: 24 << 20,
            compression: Compression::None,
            keys: Keys::default(),
        }
    }
}
