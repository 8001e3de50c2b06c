//! What a bridge tells of a topic while it works: its state, the reason if it does not get on, and figures.
//!
//! In the words of a pipeline: its one source is the topic, its one sink are the buckets. `events_out` of the source counts
//! what was read since the start; around the borders of buckets records are read twice, and after an error again.
//! `events_delivered` of the sink counts what stands in files of buckets with `_SUCCESS`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};

use flumen_pipeline::feed::FeedState;
use flumen_pipeline::status::{self, ComponentStatus};
use flumen_pipeline::{ComponentKind, ComponentMetrics, Metric};
use parking_lot::Mutex;

use super::calendar::Bucket;
use super::{BridgeError, Done};

/// What is known of one topic.
#[derive(Debug)]
pub struct Watch {
    source: Arc<ComponentMetrics>,
    sink: Arc<ComponentMetrics>,
    state: AtomicU8,
    buckets: Mutex<Buckets>,
    /// Each worker's consumer has statistics of its own; those that are gone do not count.
    workers: Mutex<Vec<Weak<ComponentMetrics>>>,
}

#[derive(Debug, Default)]
struct Buckets {
    open: Option<String>,
    closed: u64,
    late: u64,
    dropped: u64,
    appended: u64,
}

/// A topic in `flumen status`.
#[derive(Debug)]
pub struct WatchStatus {
    /// What is read.
    pub source: ComponentStatus,
    /// The buckets.
    pub sink: ComponentStatus,
    /// The bucket that is being made.
    pub open_bucket: Option<String>,
}

impl Watch {
    /// Of a topic, or of a tree.
    pub fn new(name: &str) -> Watch {
        let metrics = |kind| ComponentMetrics::new(kind, name.into());
        let (buckets, workers) = Default::default();
        Watch {
            source: metrics(ComponentKind::Source),
            sink: metrics(ComponentKind::Sink),
            state: AtomicU8::new(FeedState::Running as u8),
            buckets,
            workers,
        }
    }

    /// It gets on.
    pub fn works(&self) {
        self.source.set_error(None);
        self.sink.set_error(None);
        self.set(FeedState::Running);
    }

    /// It does not get on and is tried again.
    pub fn retries(&self, error: &BridgeError) {
        let at_files = matches!(error, BridgeError::Io { .. } | BridgeError::Locked { .. });
        let (with, without) = if at_files { (&self.sink, &self.source) } else { (&self.source, &self.sink) };
        let metric = if at_files { Metric::SinkErrors } else { Metric::SourceErrors };
        with.add(metric, 1);
        with.set_error(Some(error.to_string()));
        without.set_error(None);
        self.set(FeedState::Retrying);
    }

    /// What is read does not answer, and is waited for.
    pub(super) fn waits(&self, reason: String) {
        self.source.set_error(Some(reason));
        self.set(FeedState::Retrying);
    }

    /// It will not get on without a person.
    pub fn fails(&self, reason: String) {
        self.source.set_error(None);
        self.sink.set_error(Some(reason));
        self.set(FeedState::Failed);
    }

    /// It was stopped.
    pub fn ends(&self) {
        self.set(FeedState::Ended);
    }

    /// Why it will not get on.
    pub fn failure(&self) -> Option<String> {
        (self.state() == FeedState::Failed).then(|| self.sink.error().unwrap_or_default())
    }

    fn set(&self, state: FeedState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    fn state(&self) -> FeedState {
        let states = [FeedState::Running, FeedState::Retrying, FeedState::Ended];
        let now = self.state.load(Ordering::Relaxed);
        states.into_iter().find(|state| *state as u8 == now).unwrap_or(FeedState::Failed)
    }

    /// This bucket is being made.
    pub(super) fn opens(&self, bucket: Bucket) {
        self.buckets.lock().open = Some(bucket.label());
    }

    /// Records were read.
    pub(super) fn reads(&self, records: u64, bytes: u64) {
        self.source.add(Metric::SourceEvents, records);
        self.source.add(Metric::SourceBytes, bytes);
    }

    /// A bucket has its `_SUCCESS`.
    pub(super) fn closes(&self, done: &Done) {
        self.works();
        if !done.made {
            return;
        }
        let Done { manifest, .. } = done;
        let late = &manifest.late;
        self.sink.add(Metric::SinkEvents, manifest.records + late.side + late.appended);
        self.sink.add(Metric::SinkBytes, manifest.all_files().map(|file| file.bytes).sum());
        self.sink.add(Metric::SinkFilesFinished, manifest.all_files().count() as u64);
        let mut buckets = self.buckets.lock();
        buckets.closed += 1;
        buckets.late += late.side + late.appended + late.dropped;
        buckets.appended += late.appended;
        buckets.dropped += late.dropped;
    }

    /// For the statistics of one worker's consumer, as long as that lives.
    pub(super) fn worker(&self) -> Arc<ComponentMetrics> {
        let metrics = ComponentMetrics::new(ComponentKind::Source, self.source.name.clone());
        let mut workers = self.workers.lock();
        workers.retain(|worker| worker.strong_count() > 0);
        workers.push(Arc::downgrade(&metrics));
        metrics
    }

    /// Records that can be read and were not, by partition (`kafka/TOPIC/PARTITION/lag`).
    fn lags(&self) -> BTreeMap<String, u64> {
        let workers = self.workers.lock();
        let gauges = workers.iter().filter_map(Weak::upgrade).flat_map(|worker| worker.gauges());
        gauges.filter(|(name, _)| name.ends_with("/lag")).collect()
    }

    /// Figures.
    pub fn status(&self) -> WatchStatus {
        let word = status::feed_word(self.state());
        let mut source = status::component(&self.source, word);
        source.metrics.extend(self.lags());
        let mut sink = status::component(&self.sink, word);
        let buckets = self.buckets.lock();
        let gauges = [
            ("bridge/buckets_closed", buckets.closed),
            ("bridge/late", buckets.late),
            ("bridge/late_appended", buckets.appended),
            ("bridge/late_dropped", buckets.dropped),
        ];
        sink.metrics.extend(gauges.map(|(name, value)| (name.to_owned(), value)));
        WatchStatus { source, sink, open_bucket: buckets.open.clone() }
    }
}
