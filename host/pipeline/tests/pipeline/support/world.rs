//! A pipeline's directory, its plan, and how it is started, crashed and looked at.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use flumen_journal::inspect::Inspector;
use flumen_journal::{ChannelSpec, FileConfig, FileJournal, Journal, OsClock, OsDisk};
use flumen_pipeline::component::Options;
use flumen_pipeline::deliver::MakeSink;
use flumen_pipeline::feed::MakeSource;
use flumen_pipeline::kept::gone;
use flumen_pipeline::limits::KEEP_ALIVE;
use flumen_pipeline::pipeline::CodecMetrics;
use flumen_pipeline::plan::{
    BatchPlan, ChannelKind, ChannelPlan, ErrorPlan, InterceptorPlan, JournalPlan, OnReject, PipelinePlan,
    PluginLimits, SelectorPlan, SinkPlan, SourcePlan,
};
use flumen_pipeline::status::ComponentStatus;
use flumen_pipeline::{Interceptor, MemoryGate, Parts, Pipeline, StopOutcome, channel_specs, quarantine};
use parking_lot::Mutex;

use super::disk::{Gate, GatedDisk};
use super::{DEADLINE, Record, records, until};

pub struct World {
    dir: tempfile::TempDir,
    pub gate: Arc<Gate>,
    pub plan: PipelinePlan,
    /// For acknowledgements on a full disk.
    pub reserve_bytes: u64,
    /// Of the process.
    pub memory: Arc<MemoryGate>,
    /// The life before this one, as it was when it was killed.
    before: Mutex<Option<Life>>,
}

/// A pipeline that was killed: its threads stand where they were.
struct Life {
    gate: Arc<Gate>,
    running: Box<dyn Any + Send>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.end_before();
    }
}

pub struct Running {
    pub pipeline: Pipeline,
    pub journal: Arc<FileJournal>,
}

/// Sources, channels with their capacity in events, sinks with their channel.
pub fn plan(sources: &[&str], channels: &[(&str, u64)], sinks: &[(&str, &str)]) -> PipelinePlan {
    PipelinePlan {
        name: "test".into(),
        file: PathBuf::new(),
        sources: sources
            .iter()
            .map(|name| SourcePlan {
                name: name.to_string(),
                kind: "script".into(),
                codec: None,
                options: Options::default(),
                selector: SelectorPlan::default(),
            })
            .collect(),
        interceptors: Vec::new(),
        interceptor_threads: 1,
        channels: channels
            .iter()
            .map(|(name, events)| ChannelPlan {
                name: name.to_string(),
                kind: ChannelKind::File,
                failover: None,
                failover_options: Options::default(),
                capacity_events: *events,
                capacity_bytes: u64::MAX,
                keep_alive: KEEP_ALIVE,
            })
            .collect(),
        sinks: sinks
            .iter()
            .map(|(name, channel)| SinkPlan {
                name: name.to_string(),
                kind: "destination".into(),
                channel: channel.to_string(),
                interceptors: Vec::new(),
                codec: None,
                options: Options::default(),
                plugin: None,
            })
            .collect(),
        groups: Vec::new(),
        batch: BatchPlan::default(),
        journal: JournalPlan::default(),
    }
}

pub fn interceptor(name: &str, on_reject: OnReject) -> InterceptorPlan {
    InterceptorPlan {
        name: name.into(),
        plugin: name.into(),
        config: String::new(),
        grants: Vec::new(),
        on_reject,
        errors: ErrorPlan::default(),
        limits: PluginLimits::default(),
        egress: None,
    }
}

impl World {
    pub fn new(plan: PipelinePlan) -> World {
        let (gate, memory, before) = Default::default();
        World { dir: tempfile::tempdir().unwrap(), gate, plan, reserve_bytes: 0, memory, before }
    }

    /// Segments are small, so that tests roll and delete them.
    pub fn open(&self, name: &str, channels: Vec<ChannelSpec>) -> Arc<FileJournal> {
        let config = FileConfig {
            dir: self.dir.path().join(name),
            segment_bytes: 64 << 10,
            window_bytes: 32 << 10,
            reserve_bytes: self.reserve_bytes,
            snapshot_every_bytes: 32 << 10,
            ..FileConfig::default()
        };
        FileJournal::open(config, channels, Arc::new(GatedDisk(self.gate.clone())), Arc::new(OsClock))
            .unwrap()
    }

    pub fn open_journal(&self) -> Arc<FileJournal> {
        self.open("journal", channel_specs(&self.plan))
    }

    /// Looks at the journal's files, whether it is open or not.
    pub fn inspect(&self) -> Inspector {
        Inspector::open(Arc::new(OsDisk), self.dir.path().join("journal")).unwrap()
    }

    pub fn open_quarantine(&self) -> Arc<FileJournal> {
        self.open("quarantine", vec![quarantine::kept_channel_spec()])
    }

    pub fn start(
        &self,
        sources: Vec<MakeSource>,
        interceptors: Vec<Arc<dyn Interceptor>>,
        sinks: Vec<(MakeSink, Vec<Arc<dyn Interceptor>>)>,
    ) -> Running {
        self.end_before();
        let (journal, quarantine) = (self.open_journal(), self.open_quarantine());
        let parts = Parts {
            agent: "test".into(),
            plan: self.plan.clone(),
            journal: journal.clone(),
            quarantine,
            sources,
            interceptors,
            sinks,
            codecs: CodecMetrics::default(),
            memory: self.memory.clone(),
        };
        Running { pipeline: Pipeline::start(parts).unwrap(), journal }
    }

    /// Kills the pipeline: the disk stops, and what is on it then is the world that comes back.
    /// Destinations are cut at or after this moment by the caller, and before the next start: then what was killed ends.
    pub fn crash(self, running: impl Any + Send) -> World {
        self.gate.close();
        let next = World::new(self.plan.clone());
        copy(self.dir.path(), next.dir.path());
        *next.before.lock() = Some(Life { gate: self.gate.clone(), running: Box::new(running) });
        next
    }

    /// Nobody looks at what the life before has any more: its threads end, and nobody waits for them.
    fn end_before(&self) {
        if let Some(Life { gate, running }) = self.before.lock().take() {
            thread::spawn(move || {
                gate.end();
                drop(running);
            });
        }
    }

    /// What the quarantine keeps, in order. The pipeline is stopped.
    pub fn quarantined(&self) -> Vec<Record> {
        let journal = self.open_quarantine();
        let channel = journal.channel(quarantine::KEPT_CHANNEL).unwrap();
        let mut reader =
            journal.open_reader(channel, journal.reader_id(channel, quarantine::KEPT_READER).unwrap());
        let marks = journal.positions(gone::PREFIX);
        let gone = gone::Gone::read(marks.iter().map(|(key, value)| (key.as_slice(), value.as_slice())));
        let mut all = Vec::new();
        while let Some(delivery) = reader.next(Duration::ZERO).unwrap() {
            assert_eq!(delivery.lost_before, 0);
            let rows = (delivery.first..).zip(records(&delivery.batch));
            all.extend(rows.filter(|(number, _)| !gone.contains(*number)).map(|(_, record)| record));
        }
        journal.close().unwrap();
        all
    }
}

impl Running {
    /// Waits for the end of the sources, then drains.
    pub fn finish(self) {
        until("the sources end", || self.pipeline.sources_ended());
        assert_eq!(self.pipeline.stop(Instant::now() + DEADLINE), StopOutcome::Drained);
    }

    pub fn stop_within(self, limit: Duration) -> StopOutcome {
        self.pipeline.stop(Instant::now() + limit)
    }

    /// Cursors of the readers of a channel.
    pub fn cursors(&self, channel: &str) -> Vec<u64> {
        let status = self.journal.status();
        let channel = status.channels.iter().find(|status| status.name == channel).unwrap();
        channel.readers.iter().map(|(_, cursor)| *cursor).collect()
    }

    pub fn head(&self, channel: &str) -> u64 {
        self.journal.status().channels.iter().find(|status| status.name == channel).unwrap().head
    }

    pub fn interceptor(&self, name: &str) -> ComponentStatus {
        self.pipeline.status().interceptors.into_iter().find(|status| status.name == name).unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}
