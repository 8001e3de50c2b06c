//! The agent: everything of one process, bound together, run and stopped.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::bridges::{self, BridgeView, RunningBridge};
use anyhow::Context;
use flumen_config::{Diagnostic, Sources as ConfigFiles};
use flumen_journal::{Disk, Durability, FileConfig, Journal, Keys, OsDisk};
use flumen_kafka::channel::KafkaJournal;
use flumen_pipeline::deliver::MakeSink;
use flumen_pipeline::feed::MakeSource;
use flumen_pipeline::kept::Kept;
use flumen_pipeline::limits::STOP_COMMIT;
use flumen_pipeline::pipeline::CodecMetrics;
use flumen_pipeline::plan::{
    AgentPlan, CodecPlan, InterceptorPlan, OnReject, PipelinePlan, SinkPlan, SourcePlan,
};
use flumen_pipeline::status::PipelineStatus;
use flumen_pipeline::{
    BuildError, ComponentKind, ComponentMetrics, DecoderLink, EncoderLink, Interceptor, MemoryGate, Parts,
    Pipeline, Sink, quarantine,
};
use flumen_plugin::{
    HostConfig, LoadError, PluginHost, PluginSink, PluginSlot, Role, SettingsError, SlotStatus,
};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use crate::exit::{Failure, counted};
use crate::journals::{self, Owner};
use crate::memory::{self, Budget, MemoryView};
use crate::registry;
use crate::reload::ReloadView;
use crate::running::{END_WAIT, RunningPipeline};
use crate::secondaries;
use crate::source_backed;

/// Compiled plugins, below the data directory.
pub const CACHE_DIR: &str = "cache";
/// Journals, below the data directory: `pipelines/NAME/journal` and `pipelines/NAME/quarantine`.
pub const PIPELINES_DIR: &str = "pipelines";
/// A pipeline's journal, below its directory.
pub const JOURNAL_DIR: &str = "journal";
/// Its quarantine, below its directory.
pub const QUARANTINE_DIR: &str = "quarantine";

const LOCK_FILE: &str = "agent.lock";

/// A running agent.
pub struct Agent {
    /// The paths that it was started with: a reload reads them again.
    pub paths: Vec<PathBuf>,
    pub(crate) plan: Mutex<Arc<AgentPlan>>,
    /// Where its plan came from.
    pub(crate) files: Mutex<Arc<ConfigFiles>>,
    /// Locked for a look or an exchange, never while something is waited for.
    pub(crate) pipelines: Mutex<Vec<Arc<RunningPipeline>>>,
    pub(crate) bridges: Mutex<Vec<Arc<RunningBridge>>>,
    /// 1 at the start, one more for each reload that changed something.
    pub(crate) generation: AtomicU64,
    /// Files that the last reload found errors in: perhaps not yet among `files`, and their next edit matters.
    pub(crate) suspects: Mutex<Vec<PathBuf>>,
    pub(crate) last_reload: Mutex<Option<ReloadView>>,
    /// Held by a reload and by the stop: one at a time.
    pub(crate) changing: Mutex<()>,
    /// While a reload is under way, parts that have ended are no sign that the agent has.
    pub(crate) is_changing: AtomicBool,
    pub(crate) host: Arc<PluginHost>,
    /// Holds the sources while the process has more memory than its budget.
    memory: Arc<MemoryGate>,
    /// What it could have here, as of the start.
    memory_limit: Option<memory::Limit>,
    started: Instant,
    _lock: File,
}

/// What `flumen status` prints.
#[derive(Debug, Serialize)]
pub struct AgentStatus {
    /// The agent's name.
    pub agent: String,
    /// Its version.
    pub version: &'static str,
    /// Its process.
    pub pid: u32,
    /// Seconds since it was ready.
    pub uptime_s: f64,
    /// 1 since the start, one more for each reload that changed something.
    pub generation: u64,
    /// The last reload, if there was one.
    pub last_reload: Option<ReloadView>,
    /// Its memory.
    #[serde(flatten)]
    pub memory: MemoryView,
    /// Its pipelines, then its bridges.
    pub pipelines: Vec<FlowView>,
}

/// A pipeline or a bridge: the fields are the same as far as they have the same.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum FlowView {
    /// A pipeline.
    Pipeline(Box<PipelineView>),
    /// A bridge; `kind` says so.
    Bridge(BridgeView),
}

/// A pipeline and its plugins.
#[derive(Debug, Serialize)]
pub struct PipelineView {
    /// The pipeline.
    #[serde(flatten)]
    pub pipeline: PipelineStatus,
    /// The agent's generation in which it was started, or changed last.
    pub generation: u64,
    /// Its plugins: decoders, those of the chain, those of each sink's chain, encoders, sinks that are plugins.
    pub plugins: Vec<SlotStatus>,
    /// What each sink promises across a crash.
    pub deliveries: BTreeMap<String, &'static str>,
}

impl Agent {
    /// Opens plugins and journals and starts all pipelines; stops at the first that cannot start.
    pub fn start(paths: Vec<PathBuf>, plan: AgentPlan, files: ConfigFiles) -> Result<Agent, Failure> {
        // Durably: everything that is durable is below it.
        OsDisk
            .create_dir(&plan.data_dir)
            .map_err(with_fix)
            .with_context(|| format!("cannot make the data directory {}", plan.data_dir.display()))?;
        let lock = lock(&plan.data_dir)?;
        // What `flumen plugin test` or `flumen check` has compiled is not compiled again.
        let other_caches = crate::cmd::plugin::cache_dir().into_iter().collect();
        let config = HostConfig { other_caches, ..HostConfig::new(plan.data_dir.join(CACHE_DIR)) };
        let host = PluginHost::new(config)
            .map_err(|error| anyhow::anyhow!("cannot start the plugin host: {error}"))?;
        let files = Arc::new(files);
        let mut agent = Agent {
            paths,
            plan: Mutex::new(Arc::new(plan)),
            files: Mutex::new(files.clone()),
            pipelines: Mutex::default(),
            bridges: Mutex::default(),
            generation: AtomicU64::new(1),
            suspects: Mutex::default(),
            last_reload: Mutex::default(),
            changing: Mutex::default(),
            is_changing: AtomicBool::new(false),
            host: host.clone(),
            memory: Arc::default(),
            memory_limit: memory::limit(),
            started: Instant::now(),
            _lock: lock,
        };
        let plan = agent.plan();
        // All plugins first: a pipeline whose plugin is missing must not start another one half.
        let mut opened = Vec::new();
        let mut unfit = component_errors(&plan, &files);
        unfit.extend(bridges::errors(&plan, &files));
        for pipeline in &plan.pipelines {
            opened.push(open_plugins(&host, pipeline, &plan.plugin_dir, &files, &mut unfit));
        }
        if !unfit.is_empty() {
            return Err(Failure::Config(unfit));
        }
        let started = plan.pipelines.iter().zip(opened).try_for_each(|(pipeline, plugins)| {
            let plugins = Arc::new(plugins);
            let running = RunningPipeline::start(&plan, (pipeline, None), plugins, &files, &agent.memory, 1)?;
            agent.pipelines.lock().push(running);
            Ok(())
        });
        let started = started.and_then(|()| {
            plan.bridges.iter().try_for_each(|bridge| {
                agent.bridges.lock().push(Arc::new(RunningBridge::start(bridge, &files)?));
                Ok(())
            })
        });
        if let Err(failure) = started {
            agent.stop();
            return Err(failure);
        }
        agent.started = Instant::now();
        Ok(agent)
    }

    /// The plan that it runs.
    pub fn plan(&self) -> Arc<AgentPlan> {
        self.plan.lock().clone()
    }

    /// Its pipelines.
    pub fn pipelines(&self) -> Vec<Arc<RunningPipeline>> {
        self.pipelines.lock().clone()
    }

    pub(crate) fn bridges(&self) -> Vec<Arc<RunningBridge>> {
        self.bridges.lock().clone()
    }

    /// What holds its sources while it has too much memory.
    pub fn memory(&self) -> &Arc<MemoryGate> {
        &self.memory
    }

    /// The memory that it may have.
    pub fn budget(&self) -> Option<Budget> {
        Budget::of(&self.plan(), self.memory_limit)
    }

    /// Bytes of events that channels have in memory, and of what plugins remember.
    pub fn taken_bytes(&self) -> (u64, u64) {
        let statuses: Vec<_> = self.pipelines().iter().map(|it| it.pipeline.journal_status()).collect();
        let in_channels = statuses.iter().flat_map(|status| &status.memory).map(|channel| channel.bytes);
        let remembered = statuses.iter().flat_map(|status| &status.state).map(|state| state.bytes);
        (in_channels.sum(), remembered.sum())
    }

    /// True when no source of any pipeline will bring more, and no bridge gets on (else one never ends).
    pub fn sources_ended(&self) -> bool {
        !self.is_changing.load(Ordering::Acquire)
            && self.pipelines().iter().all(|running| running.pipeline.sources_ended())
            && self.bridges().iter().all(|bridge| bridge.failure().is_some())
            && !self.is_changing.load(Ordering::Acquire)
    }

    /// Why no pipeline and no bridge can go on, if none can.
    pub fn failure(&self) -> Option<String> {
        if self.is_changing.load(Ordering::Acquire) {
            return None;
        }
        let (pipelines, bridges) = (self.pipelines(), self.bridges());
        let failures = pipelines.iter().map(|running| running.failure());
        let all: Option<Vec<String>> = failures.chain(bridges.iter().map(|it| it.failure())).collect();
        all.filter(|_| !self.is_changing.load(Ordering::Acquire)).map(|failures| failures.join("; "))
    }

    /// What it runs, in one line.
    pub fn in_short(&self) -> String {
        let plan = self.plan();
        let pipelines = counted(plan.pipelines.len(), "pipeline");
        match plan.bridges.len() {
            0 => pipelines,
            bridges => format!("{pipelines}, {}", counted(bridges, "bridge")),
        }
    }

    /// The longest that [`Agent::stop`] takes unless something hangs.
    pub fn stop_limit(&self) -> Duration {
        let drain = self.plan().drain_timeout;
        // Behind the deadline each pipeline waits for the last commits of its sinks and of its quarantine, one pipeline after the other.
        let pipelines = u32::try_from(self.pipelines().len()).unwrap_or(u32::MAX);
        let commits = STOP_COMMIT.saturating_mul(2).saturating_mul(pipelines);
        let reload = if self.is_changing.load(Ordering::Acquire) { drain + END_WAIT } else { Duration::ZERO };
        drain.saturating_add(commits).saturating_add(reload)
    }

    /// Stops all pipelines and bridges within the plan's limit. True if none had failed.
    pub fn stop(&self) -> bool {
        let _alone = self.changing.lock();
        let deadline = Instant::now() + self.plan().drain_timeout;
        let mut fine = true;
        let bridges = self.bridges();
        bridges.iter().for_each(|bridge| bridge.ask_to_stop());
        for running in self.pipelines() {
            fine &= running.stop(deadline).is_ok();
        }
        for bridge in bridges {
            fine &= bridge.wait(deadline);
        }
        fine
    }

    /// A pipeline that it runs.
    pub fn pipeline(&self, name: &str) -> Option<Arc<RunningPipeline>> {
        self.pipelines().iter().find(|running| running.pipeline.plan().name == name).cloned()
    }

    /// The quarantine of a pipeline, to ask for jobs.
    pub fn kept(&self, pipeline: &str) -> Option<Arc<Kept>> {
        self.pipeline(pipeline)?.pipeline.kept().cloned()
    }

    /// Figures of everything.
    pub fn status(&self) -> AgentStatus {
        let pipelines = self.pipelines();
        let flows = pipelines.iter().map(|running| FlowView::Pipeline(Box::new(running.view())));
        let bridges = self.bridges();
        let bridges = bridges.iter().map(|bridge| FlowView::Bridge(bridge.status()));
        AgentStatus {
            agent: self.plan().name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs_f64(),
            generation: self.generation.load(Ordering::Acquire),
            last_reload: self.last_reload.lock().clone(),
            memory: MemoryView::of(&self.memory, self.budget()),
            pipelines: flows.chain(bridges).collect(),
        }
    }
}

fn lock(data_dir: &Path) -> Result<File, Failure> {
    let path = data_dir.join(LOCK_FILE);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(with_fix).with_context(|| format!("cannot open {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Failure::Locked(locked(data_dir))),
        Err(error) => Err(anyhow::anyhow!("cannot lock {}: {error}", path.display()).into()),
    }
}

/// What to do about a data directory that cannot be written.
fn with_fix(error: io::Error) -> anyhow::Error {
    let fix = match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            "; mount it writable (`dmesg` says whether an error made it read-only), or give the agent a data_dir elsewhere"
        }
        io::ErrorKind::PermissionDenied => "; the user that runs flumen needs write permission there",
        _ => "",
    };
    anyhow::anyhow!("{error}{fix}")
}

/// Why a directory cannot be used that another agent has.
pub fn locked(data_dir: &Path) -> String {
    format!("another agent uses {}; stop it, or give this one a data_dir of its own", data_dir.display())
}

/// What sources and sinks say against their options, all of them, and whether all together fit into the memory.
pub fn component_errors(plan: &AgentPlan, files: &ConfigFiles) -> Vec<Diagnostic> {
    let mut wrong: Vec<Diagnostic> = memory::error(plan, files).into_iter().collect();
    for (pipeline, channel, error) in secondaries::same_topic(plan) {
        wrong.push(files.diagnostic_for(&pipeline, ComponentKind::Channel, &channel, &error));
    }
    for pipeline in &plan.pipelines {
        let mut note = |kind, component: &str, error: BuildError| {
            wrong.push(files.diagnostic_for(&pipeline.name, kind, component, &error));
        };
        for source in &pipeline.sources {
            if let Err(error) = registry::build_source(source, None) {
                note(ComponentKind::Source, &source.name, error);
            }
        }
        if let Err((channel, error)) = registry::kafka_journal(&plan.name, pipeline) {
            note(ComponentKind::Channel, &channel, error);
        }
        if let Err((channel, error)) = registry::failover_topic(&plan.name, pipeline) {
            note(ComponentKind::Channel, &channel, error);
        }
        source_backed::errors(pipeline).into_iter().for_each(|(kind, part, error)| note(kind, &part, error));
        let journal = pipeline_dir(&plan.data_dir, &pipeline.name).join(JOURNAL_DIR);
        if let Some((channel, error)) = journals::same_disk(pipeline, &journal) {
            note(ComponentKind::Channel, &channel, error);
        }
        for sink in &pipeline.sinks {
            // What a plugin says against its options is told when it is opened.
            let built =
                if sink.plugin.is_some() { Ok(()) } else { registry::build_sink(sink, None).map(|_| ()) };
            let fits = built.and_then(|()| registry::check_place(pipeline, sink));
            if let Err(error) = fits {
                note(ComponentKind::Sink, &sink.name, error);
            }
        }
    }
    wrong
}

/// The opened plugins of one pipeline.
#[derive(Default)]
pub struct Plugins {
    /// Those of the chain.
    pub chain: Vec<Arc<PluginSlot>>,
    /// Those of each sink, in the order of the plan.
    pub sinks: Vec<Vec<Arc<PluginSlot>>>,
    /// The decoder of each source.
    pub decoders: Vec<Option<Arc<PluginSlot>>>,
    /// The encoder of each sink.
    pub encoders: Vec<Option<Arc<PluginSlot>>>,
    /// Of each sink, the plugin that delivers, if one does.
    pub deliver: Vec<Option<Arc<PluginSlot>>>,
}

impl Plugins {
    /// The codec or the sink that is a plugin, of a part of this name and exactly this plan. `plan`: the pipeline's that these were
    /// opened for.
    pub fn part(
        &self,
        plan: &PipelinePlan,
        role: Role,
        part: &str,
        wanted: &InterceptorPlan,
    ) -> Option<Arc<PluginSlot>> {
        let place = match role {
            Role::Decoder => plan.sources.iter().position(|source| source.name == part),
            _ => plan.sinks.iter().position(|sink| sink.name == part),
        };
        let slots = match role {
            Role::Decoder => &self.decoders,
            Role::Encoder => &self.encoders,
            Role::Sink => &self.deliver,
            Role::Interceptor | Role::Aggregator => return None,
        };
        slots.get(place?)?.as_ref().filter(|slot| slot.plan() == wanted).cloned()
    }

    /// All of them, in the order of the flow.
    pub fn all(&self) -> impl Iterator<Item = &Arc<PluginSlot>> {
        let sinks = self.sinks.iter().flatten().chain(self.encoders.iter().flatten());
        let sources = self.decoders.iter().flatten();
        sources.chain(&self.chain).chain(sinks).chain(self.deliver.iter().flatten())
    }
}

/// Opens every plugin of a pipeline; what does not open is noted with its place in the file.
pub fn open_plugins(
    host: &PluginHost,
    plan: &PipelinePlan,
    plugin_dir: &Path,
    files: &ConfigFiles,
    unfit: &mut Vec<Diagnostic>,
) -> Plugins {
    let mut open = |role: Role, plugin: &InterceptorPlan| match host.slot_of(role, plugin.clone(), plugin_dir)
    {
        Ok(slot) => Some(slot),
        Err(error) => {
            let (kind, name) = (ComponentKind::Interceptor, &plugin.name);
            let errors = plugin_errors(&error);
            unfit.extend(errors.iter().map(|error| files.diagnostic_for(&plan.name, kind, name, error)));
            None
        }
    };
    let mut chain = |plugins: &[InterceptorPlan]| {
        plugins.iter().filter_map(|plugin| open(Role::Interceptor, plugin)).collect()
    };
    let (all, sinks) =
        (chain(&plan.interceptors), plan.sinks.iter().map(|sink| chain(&sink.interceptors)).collect());
    Plugins { chain: all, sinks, ..open_parts(host, plan, plugin_dir, files, unfit, &|_, _, _| None) }
}

/// The plugin of a part (its name), in a role, if it stays.
pub type KeptSlots<'a> = dyn Fn(Role, &str, &InterceptorPlan) -> Option<Arc<PluginSlot>> + 'a;

/// The same for codecs and for sinks that are plugins, alone. `kept` knows those that stay.
pub fn open_parts(
    host: &PluginHost,
    plan: &PipelinePlan,
    plugin_dir: &Path,
    files: &ConfigFiles,
    unfit: &mut Vec<Diagnostic>,
    kept: &KeptSlots<'_>,
) -> Plugins {
    let mut open = |role: Role, part: &str, plugin: &InterceptorPlan| {
        let opened = || host.slot_of(role, plugin.clone(), plugin_dir);
        let note = |error: LoadError| {
            let (kind, name) = match role {
                Role::Sink => (ComponentKind::Sink, part),
                _ => (ComponentKind::Interceptor, plugin.name.as_str()),
            };
            let errors = plugin_errors(&error);
            unfit.extend(errors.iter().map(|error| files.diagnostic_for(&plan.name, kind, name, error)));
        };
        kept(role, part, plugin).map_or_else(opened, Ok).map_err(note).ok()
    };
    let decoders = plan.sources.iter();
    let decoders = decoders.map(|it| open(Role::Decoder, &it.name, it.codec.as_ref()?)).collect();
    let encoders = plan.sinks.iter().map(|it| open(Role::Encoder, &it.name, it.codec.as_ref()?)).collect();
    let deliver = plan.sinks.iter().map(|it| open(Role::Sink, &it.name, it.plugin.as_ref()?)).collect();
    Plugins { decoders, encoders, deliver, ..Plugins::default() }
}

/// Makes a source of the plan, as often as it has to be made; and the counters of its codec.
pub fn source_maker(
    plan: &SourcePlan,
    decoder: Option<Arc<PluginSlot>>,
) -> (MakeSource, Option<Arc<ComponentMetrics>>) {
    let codec = decoder.map(|slot| DecoderLink::new(slot, on_reject(&plan.codec)));
    let metrics = codec.as_ref().map(|codec| codec.metrics().clone());
    let plan = plan.clone();
    (Box::new(move || registry::build_source(&plan, codec.as_ref())), metrics)
}

/// The same of a sink, which may be a plugin itself.
pub fn sink_maker(
    plan: &SinkPlan,
    encoder: Option<Arc<PluginSlot>>,
    deliver: Option<Arc<PluginSlot>>,
) -> (MakeSink, Option<Arc<ComponentMetrics>>) {
    let codec = encoder.map(|slot| EncoderLink::new(slot, on_reject(&plan.codec)));
    let metrics = codec.as_ref().map(|codec| codec.metrics().clone());
    let plan = plan.clone();
    let make = move || match &deliver {
        Some(slot) => {
            PluginSink::new(slot.clone(), &plan.options).map(|sink| Box::new(sink) as Box<dyn Sink>)
        }
        None => registry::build_sink(&plan, codec.as_ref()),
    };
    (Box::new(make), metrics)
}

/// What becomes of what a codec rejects.
pub fn on_reject(codec: &Option<CodecPlan>) -> OnReject {
    codec.as_ref().map_or(OnReject::Quarantine, |codec| codec.on_reject)
}

/// A load error as the options that it is about.
pub fn plugin_errors(error: &LoadError) -> Vec<BuildError> {
    match error {
        LoadError::Options { errors, .. } => {
            let each = errors.iter();
            each.map(|error| BuildError::new(&error.place, error.reason.as_str(), &*error.fix)).collect()
        }
        error => vec![plugin_error(error)],
    }
}

fn plugin_error(error: &LoadError) -> BuildError {
    let (option, fix) = match error {
        LoadError::Refused { .. } => ("config", "correct the plugin's configuration"),
        LoadError::NotGranted { .. } => ("grant", "grant it, if the plugin may have it"),
        LoadError::Egress { error: SettingsError::Allow(_), .. } => ("egress.allow", "correct the entry"),
        LoadError::Egress { error: SettingsError::Secret { .. }, .. } => {
            ("egress.secrets", "correct its `hosts`")
        }
        LoadError::Egress { error: SettingsError::Ca(_), .. } => {
            ("egress.ca", "name a file in PEM (-----BEGIN CERTIFICATE-----)")
        }
        LoadError::Missing { .. } => (
            "plugin",
            "copy it there, or set `plugin_dir` in flumen.toml; without one it is `plugins` beside the pipeline's file",
        ),
        LoadError::Read { .. } => ("plugin", "check that it is a file and that the agent's user may read it"),
        _ => ("plugin", "`flumen plugin inspect FILE` shows what a file is"),
    };
    BuildError::new(option, error.to_string(), fix)
}

/// The directory of one pipeline.
pub fn pipeline_dir(data_dir: &Path, pipeline: &str) -> PathBuf {
    data_dir.join(PIPELINES_DIR).join(pipeline)
}

/// Interceptors of slots.
pub fn interceptors(slots: &[Arc<PluginSlot>]) -> Vec<Arc<dyn Interceptor>> {
    slots.iter().map(|slot| slot.clone() as Arc<dyn Interceptor>).collect()
}

/// Opens the journals of a pipeline and starts its threads; with the one of its channels. In a reload it is known what its plan was before.
pub fn start_pipeline(
    agent: &AgentPlan,
    (plan, before): (&PipelinePlan, Option<&PipelinePlan>),
    plugins: &Plugins,
    files: &ConfigFiles,
    memory: &Arc<MemoryGate>,
) -> Result<(Pipeline, Arc<dyn Journal>), Failure> {
    let dir = pipeline_dir(&agent.data_dir, &plan.name);
    let durability = if plan.journal.durable { Durability::Durable } else { Durability::Os };
    let main = FileConfig {
        dir: dir.join(JOURNAL_DIR),
        segment_bytes: plan.journal.segment_bytes,
        window_bytes: plan.journal.window_bytes,
        compression: plan.journal.compression,
        keys: plan.journal.keys.clone(),
        durability,
        ..FileConfig::default()
    };
    let quarantine = quarantine_files(&dir, durability, &plan.journal.keys);
    let wrong = |(channel, error): (String, BuildError)| {
        Failure::Config(vec![files.diagnostic_for(&plan.name, ComponentKind::Channel, &channel, &error)])
    };
    let kafka = registry::kafka_journal(&agent.name, plan).map_err(wrong)?;
    let topic = registry::failover_topic(&agent.name, plan).map_err(wrong)?;
    let owner = Owner { agent: &agent.name, plan, dir: &dir, before };
    if let Some(left) = secondaries::left_behind(&owner) {
        return Err(wrong(left));
    }
    let journal: Arc<dyn Journal> = match kafka {
        None => journals::open_own(main, &owner, topic)?,
        Some(options) => {
            let local = journals::open_beside(main, &owner, &options)?;
            KafkaJournal::open(options, local).context("cannot open the journal of a Kafka channel")?
        }
    };
    let kept = journals::open_file(quarantine, QUARANTINE_DIR, vec![quarantine::kept_channel_spec()])?;
    let mut codecs = CodecMetrics::default();
    let sources = plan.sources.iter().zip(&plugins.decoders).map(|(source, decoder)| {
        let (make, codec) = source_maker(source, decoder.clone());
        codecs.sources.extend(codec.map(|codec| (source.name.clone(), codec)));
        make
    });
    let sources = sources.collect();
    let of_sinks = plan.sinks.iter().zip(&plugins.encoders).zip(&plugins.deliver).zip(&plugins.sinks);
    let sinks = of_sinks.map(|(((sink, encoder), deliver), slots)| {
        let (make, codec) = sink_maker(sink, encoder.clone(), deliver.clone());
        codecs.sinks.extend(codec.map(|codec| (sink.name.clone(), codec)));
        (make, interceptors(slots))
    });
    let sinks = sinks.collect();
    let parts = Parts {
        agent: agent.name.as_str().into(),
        plan: plan.clone(),
        journal: journal.clone(),
        quarantine: kept,
        sources,
        interceptors: interceptors(&plugins.chain),
        sinks,
        codecs,
        memory: memory.clone(),
    };
    let pipeline = Pipeline::start(parts).map_err(|error| {
        Failure::Config(vec![files.diagnostic_for(&plan.name, error.kind, &error.component, &error.error)])
    })?;
    Ok((pipeline, journal))
}

/// Memory for recent batches of a pipeline's quarantine.
pub const QUARANTINE_WINDOW_BYTES: u64 = 1 << 20;

/// The journal of a pipeline's quarantine. It is rarely used: small segments, hardly any memory.
pub fn quarantine_files(pipeline_dir: &Path, durability: Durability, keys: &Keys) -> FileConfig {
    FileConfig {
        dir: pipeline_dir.join(QUARANTINE_DIR),
        segment_bytes: 16 << 20,
        window_bytes: QUARANTINE_WINDOW_BYTES,
        reserve_bytes: 0,
        durability,
        keys: keys.clone(),
        ..FileConfig::default()
    }
}
