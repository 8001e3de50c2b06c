//! The names of all metrics, and the counters behind them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a metric belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComponentKind {
    /// A source.
    Source,
    /// An interceptor (of a source's chain or of a sink).
    Interceptor,
    /// A sink.
    Sink,
    /// A codec (of a source or a sink).
    Codec,
    /// A channel that is more than a queue of the pipeline's own journal.
    Channel,
}

impl ComponentKind {
    /// The word in `status` and docs.
    pub fn word(self) -> &'static str {
        match self {
            ComponentKind::Source => "source",
            ComponentKind::Interceptor => "interceptor",
            ComponentKind::Sink => "sink",
            ComponentKind::Codec => "codec",
            ComponentKind::Channel => "channel",
        }
    }
}

macro_rules! metrics {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $kind:ident;)+) => {
        /// Every metric. Adding one is adding a variant: counters, `status` and docs follow.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Metric { $($(#[doc = $doc])+ $variant,)+ }

        impl Metric {
            /// All of them, in the order of the docs.
            pub const ALL: &'static [Metric] = &[$(Metric::$variant),+];

            /// The name in `status`.
            pub fn name(self) -> &'static str {
                match self { $(Metric::$variant => $name),+ }
            }

            /// What it belongs to.
            pub fn component(self) -> ComponentKind {
                match self { $(Metric::$variant => ComponentKind::$kind),+ }
            }

            /// One sentence for the docs.
            pub fn about(self) -> &'static str {
                match self { $(Metric::$variant => concat!($($doc),+)),+ }
            }
        }
    };
}

metrics! {
    /// Events handed to the pipeline.
    SourceEvents = "events_out", Source;
    /// Body bytes handed to the pipeline.
    SourceBytes = "bytes_out", Source;
    /// Bytes read from the input, before splitting.
    SourceBytesRead = "bytes_read", Source;
    /// Files being read.
    SourceFilesOpen = "files_open", Source;
    /// Rotations seen (rename or copytruncate).
    SourceRotations = "rotations", Source;
    /// Files whose identity was ambiguous, topics that were made anew: begun again as a new stream.
    SourceGenerations = "new_generations", Source;
    /// Lines over the limit that were split.
    SourceLinesSplit = "lines_split", Source;
    /// Lines over the limit that went to quarantine.
    SourceLinesRejected = "lines_rejected", Source;
    /// Records of a broker that went to quarantine: not understood, or over a limit.
    SourceRecordsRejected = "records_rejected", Source;
    /// Records without a value that were left out because the configuration says so.
    SourceRecordsSkipped = "records_skipped", Source;
    /// Records that the broker deleted before they were read (an upper bound).
    SourceRecordsLost = "records_lost", Source;
    /// Records that another agent may have read too, because this one lost its partitions (an upper bound).
    SourceRecordsTwice = "records_perhaps_twice", Source;
    /// Partitions being read.
    SourcePartitions = "partitions", Source;
    /// Changes of the partitions that this agent reads.
    SourceRebalances = "rebalances", Source;
    /// Errors after which the source was tried again.
    SourceErrors = "errors", Source;
    /// Time spent reading, in nanoseconds.
    SourceReadNs = "read_ns", Source;
    /// Time spent splitting into events, in nanoseconds.
    SourceSplitNs = "split_ns", Source;
    /// Time spent waiting for room in the pipeline, in nanoseconds.
    SourceBlockedNs = "blocked_ns", Source;
    /// How often a channel was full for longer than its `keep_alive`.
    SourceBusy = "times_busy", Source;
    /// Batches that waited because the agent had more memory than its budget.
    SourceHeld = "batches_held_by_memory", Source;
    /// Events given to the plugin.
    InterceptorEventsIn = "events_in", Interceptor;
    /// Events that went on.
    InterceptorEventsOut = "events_out", Interceptor;
    /// Events that the plugin left out on purpose.
    InterceptorDropped = "events_dropped", Interceptor;
    /// Events that the plugin rejected.
    InterceptorRejected = "events_rejected", Interceptor;
    /// Events that the plugin failed on.
    InterceptorFailed = "events_failed", Interceptor;
    /// Events that passed the plugin by unchanged, because it was over its error budget.
    InterceptorBypassed = "events_bypassed", Interceptor;
    /// How often the plugin passed its error budget.
    InterceptorBudgetPassed = "error_budget_passed", Interceptor;
    /// Time that batches waited for another version of the plugin, in nanoseconds.
    InterceptorHeldNs = "held_ns", Interceptor;
    /// Batches processed.
    InterceptorCalls = "batches", Interceptor;
    /// Time spent in the plugin and its crossings, in nanoseconds.
    InterceptorNs = "busy_ns", Interceptor;
    /// Ticks that the plugin failed at.
    InterceptorTicksFailed = "ticks_failed", Interceptor;
    /// Bytes decoded.
    CodecBytesIn = "bytes_in", Codec;
    /// Events given to the encoder.
    CodecEventsIn = "events_in", Codec;
    /// Events decoded, or encoded.
    CodecEventsOut = "events_out", Codec;
    /// Bytes of payloads.
    CodecBytesOut = "bytes_out", Codec;
    /// Events, or pieces of the stream, that the codec rejected.
    CodecRejected = "rejected", Codec;
    /// Events, or pieces of the stream, that the codec failed on.
    CodecFailed = "failed", Codec;
    /// Batches, or inputs.
    CodecCalls = "calls", Codec;
    /// Time spent in the codec and its crossings, in nanoseconds.
    CodecNs = "busy_ns", Codec;
    /// Events delivered and acknowledged.
    SinkEvents = "events_delivered", Sink;
    /// Body bytes delivered and acknowledged.
    SinkBytes = "bytes_delivered", Sink;
    /// Cursor in the channel up to which events are delivered and acknowledged.
    SinkCursor = "delivered_position", Sink;
    /// Cursor in the channel up to which events were handed to the sink; what is not delivered of them may be on its way.
    SinkHandedOut = "handed_out_position", Sink;
    /// Events that the destination can never take.
    SinkQuarantined = "events_quarantined", Sink;
    /// Events acknowledged and not delivered, as `at-most-once` allows.
    SinkDropped = "events_dropped", Sink;
    /// Flushes.
    SinkFlushes = "flushes", Sink;
    /// Errors after which the sink recovered and delivered again.
    SinkErrors = "errors", Sink;
    /// Time spent delivering, in nanoseconds.
    SinkDeliverNs = "deliver_ns", Sink;
    /// Time spent making it durable, in nanoseconds.
    SinkFlushNs = "flush_ns", Sink;
    /// Events lost to damage in the journal before they were delivered.
    SinkLostToDamage = "events_lost_to_damage", Sink;
    /// Files being written.
    SinkFilesOpen = "files_open", Sink;
    /// Files that got their final name.
    SinkFilesFinished = "files_finished", Sink;
    /// Files not yet final that someone else removed or cut: events in them are lost.
    SinkFilesDamaged = "files_damaged", Sink;
}

/// The counters of one component.
#[derive(Debug)]
pub struct ComponentMetrics {
    /// What it is.
    pub kind: ComponentKind,
    /// Its name in the pipeline.
    pub name: Arc<str>,
    values: Vec<AtomicU64>,
    gauges: parking_lot::Mutex<BTreeMap<String, u64>>,
    last_error: parking_lot::Mutex<Option<(String, Instant)>>,
}

impl ComponentMetrics {
    /// All at zero.
    pub fn new(kind: ComponentKind, name: Arc<str>) -> Arc<Self> {
        let values = Metric::ALL.iter().map(|_| AtomicU64::new(0)).collect();
        let (gauges, last_error) = Default::default();
        Arc::new(ComponentMetrics { kind, name, values, gauges, last_error })
    }

    /// Adds to a counter.
    pub fn add(&self, metric: Metric, amount: u64) {
        if let Some(value) = self.values.get(metric as usize) {
            value.fetch_add(amount, Ordering::Relaxed);
        }
    }

    /// Sets a gauge.
    pub fn set(&self, metric: Metric, to: u64) {
        if let Some(value) = self.values.get(metric as usize) {
            value.store(to, Ordering::Relaxed);
        }
    }

    /// Reads a value.
    pub fn get(&self, metric: Metric) -> u64 {
        self.values.get(metric as usize).map_or(0, |value| value.load(Ordering::Relaxed))
    }

    /// Replaces the gauges whose names are only known while it runs (those of each broker): of all names
    /// that begin with `prefix`, only these remain.
    pub fn set_gauges(&self, prefix: &str, gauges: impl IntoIterator<Item = (String, u64)>) {
        let mut present = self.gauges.lock();
        present.retain(|name, _| !name.starts_with(prefix));
        present.extend(gauges);
    }

    /// What [`ComponentMetrics::set_gauges`] set.
    pub fn gauges(&self) -> BTreeMap<String, u64> {
        self.gauges.lock().clone()
    }

    /// Remembers why the component is not working now; `None`: it works again.
    pub fn set_error(&self, error: Option<String>) {
        let mut last = self.last_error.lock();
        // Another reason does not end the trouble, so its beginning stays.
        let since = last.as_ref().map_or_else(Instant::now, |(_, since)| *since);
        *last = error.map(|error| (error, since));
    }

    /// The present error, in words.
    pub fn error(&self) -> Option<String> {
        self.last_error.lock().as_ref().map(|(error, _)| error.clone())
    }

    /// How long it has not been working.
    pub fn error_for(&self) -> Option<Duration> {
        self.last_error.lock().as_ref().map(|(_, since)| since.elapsed())
    }
}
