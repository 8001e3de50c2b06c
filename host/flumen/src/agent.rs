//! The agent: everything of one process, bound together, run and stopped.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::bridges::{self, BridgeView, RunningBridge};
use anyhow::Context;
use flumen_config::{Diagnostic, Sources as ConfigFiles};
use flumen_journal::{Durability, FileConfig, FileJournal, Journal, OpenError, OsClock, OsDisk};
use flumen_kafka::channel::KafkaJournal;
use flumen_pipeline::kept::Kept;
use flumen_pipeline::plan::{
    AgentPlan, CodecPlan, InterceptorPlan, OnReject, PipelinePlan, SinkPlan, SourcePlan,
};
use flumen_pipeline::status::PipelineStatus;
use flumen_pipeline::{
    BuildError, ComponentKind, DecoderLink, EncoderLink, Interceptor, Parts, Pipeline, Sink, StopOutcome,
    channel_specs, quarantine,
};
use flumen_plugin::{
    HostConfig, LoadError, PluginHost, PluginSink, PluginSlot, Role, SettingsError, SlotStatus,
};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use crate::exit::Failure;
use crate::registry;

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
    /// Its plan.
    pub plan: AgentPlan,
    pipelines: Vec<(Pipeline, Vec<Arc<PluginSlot>>)>,
    bridges: Vec<RunningBridge>,
    started: Instant,
    _host: Arc<PluginHost>,
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
    /// Its plugins: decoders, those of the chain, those of each sink's chain, encoders, sinks that are plugins.
    pub plugins: Vec<SlotStatus>,
    /// What each sink promises across a crash.
    pub deliveries: BTreeMap<String, &'static str>,
}

impl Agent {
    /// Opens plugins and journals and starts all pipelines; stops at the first that cannot start.
    pub fn start(plan: AgentPlan, files: &ConfigFiles) -> Result<Agent, Failure> {
        std::fs::create_dir_all(&plan.data_dir)
            .with_context(|| format!("cannot make the data directory {}", plan.data_dir.display()))?;
        let lock = lock(&plan.data_dir)?;
        let host = PluginHost::new(HostConfig::new(plan.data_dir.join(CACHE_DIR)))
            .map_err(|error| anyhow::anyhow!("cannot start the plugin host: {error}"))?;
        let mut agent = Agent {
            plan,
            pipelines: Vec::new(),
            bridges: Vec::new(),
            started: Instant::now(),
            _host: host.clone(),
            _lock: lock,
        };
        let plan = agent.plan.clone();
        // All plugins first: a pipeline whose plugin is missing must not start another one half.
        let mut opened = Vec::new();
        let mut unfit = component_errors(&plan, files);
        unfit.extend(bridges::errors(&plan, files));
        for pipeline in &plan.pipelines {
            opened.push(open_plugins(&host, pipeline, &plan.plugin_dir, files, &mut unfit));
        }
        if !unfit.is_empty() {
            return Err(Failure::Config(unfit));
        }
        for (pipeline, plugins) in plan.pipelines.iter().zip(opened) {
            match start_pipeline(&plan, pipeline, &plugins, files) {
                Ok(running) => {
                    agent.pipelines.push((running, plugins.all().cloned().collect()));
                }
                Err(failure) => {
                    agent.stop();
                    return Err(failure);
                }
            }
        }
        for bridge in &plan.bridges {
            match RunningBridge::start(bridge, files) {
                Ok(running) => agent.bridges.push(running),
                Err(failure) => {
                    agent.stop();
                    return Err(failure);
                }
            }
        }
        agent.started = Instant::now();
        Ok(agent)
    }

    /// True when no source of any pipeline will bring more, and no bridge gets on (else one never ends).
    pub fn sources_ended(&self) -> bool {
        self.pipelines.iter().all(|(pipeline, _)| pipeline.sources_ended())
            && self.bridges.iter().all(|bridge| bridge.failure().is_some())
    }

    /// Why no pipeline and no bridge can go on, if none can.
    pub fn failure(&self) -> Option<String> {
        let pipelines = self.pipelines.iter().map(|(pipeline, _)| pipeline.failure());
        let all: Option<Vec<String>> =
            pipelines.chain(self.bridges.iter().map(RunningBridge::failure)).collect();
        all.map(|failures| failures.join("; "))
    }

    /// Stops all pipelines and bridges within the plan's limit. True if none had failed.
    pub fn stop(&self) -> bool {
        let deadline = Instant::now() + self.plan.drain_timeout;
        let mut fine = true;
        self.bridges.iter().for_each(RunningBridge::ask_to_stop);
        for (pipeline, _) in &self.pipelines {
            let name = &pipeline.plan().name;
            match pipeline.stop(deadline) {
                StopOutcome::Drained => tracing::info!(pipeline = name, "stopped; everything is delivered"),
                StopOutcome::Left(events) => {
                    tracing::info!(
                        pipeline = name,
                        events,
                        "stopped; not everything is delivered: the next start goes on with it"
                    );
                }
                StopOutcome::Failed(reason) => {
                    fine = false;
                    tracing::error!(pipeline = name, reason, "stopped after a failure");
                }
            }
        }
        for bridge in &self.bridges {
            fine &= bridge.wait(deadline);
        }
        fine
    }

    /// The quarantine of a pipeline, to ask for jobs.
    pub fn kept(&self, pipeline: &str) -> Option<Arc<Kept>> {
        let running = self.pipelines.iter().find(|(running, _)| running.plan().name == pipeline);
        running.and_then(|(pipeline, _)| pipeline.kept().cloned())
    }

    /// Figures of everything.
    pub fn status(&self) -> AgentStatus {
        let view = |(pipeline, slots): &(Pipeline, Vec<Arc<PluginSlot>>)| {
            let plugins = slots.iter().map(|slot| slot.status()).collect();
            let plan = pipeline.plan();
            let deliveries = plan.sinks.iter().map(|sink| {
                let slot =
                    slots.iter().find(|slot| slot.plan().name == sink.name && slot.role() == Role::Sink);
                (sink.name.clone(), registry::delivery(plan, sink, slot.map(|slot| &**slot)).0)
            });
            let deliveries = deliveries.collect();
            FlowView::Pipeline(Box::new(PipelineView { pipeline: pipeline.status(), plugins, deliveries }))
        };
        let bridges = self.bridges.iter().map(|bridge| FlowView::Bridge(bridge.status()));
        AgentStatus {
            agent: self.plan.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs_f64(),
            pipelines: self.pipelines.iter().map(view).chain(bridges).collect(),
        }
    }
}

fn lock(data_dir: &Path) -> Result<File, Failure> {
    let path = data_dir.join(LOCK_FILE);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Failure::Locked(locked(data_dir))),
        Err(error) => Err(anyhow::anyhow!("cannot lock {}: {error}", path.display()).into()),
    }
}

fn locked(data_dir: &Path) -> String {
    format!("another agent uses {}; stop it, or give this one a data_dir of its own", data_dir.display())
}

/// What sources and sinks say against their options, all of them.
pub fn component_errors(plan: &AgentPlan, files: &ConfigFiles) -> Vec<Diagnostic> {
    let mut wrong = Vec::new();
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
pub struct Plugins {
    /// Those of the chain.
    pub chain: Vec<Arc<PluginSlot>>,
    /// Those of each sink.
    pub sinks: Vec<Vec<Arc<PluginSlot>>>,
    /// The decoder of each source.
    pub decoders: Vec<Option<Arc<PluginSlot>>>,
    /// The encoder of each sink.
    pub encoders: Vec<Option<Arc<PluginSlot>>>,
    /// Of each sink, the plugin that delivers, if one does.
    pub deliver: Vec<Option<Arc<PluginSlot>>>,
}

impl Plugins {
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
    let decoders = plan.sources.iter().map(|source| open(Role::Decoder, source.codec.as_ref()?)).collect();
    let encoders = plan.sinks.iter().map(|sink| open(Role::Encoder, sink.codec.as_ref()?)).collect();
    let deliver = plan.sinks.iter().map(|sink| {
        let opened = host.slot_of(Role::Sink, sink.plugin.clone()?, plugin_dir);
        let note = |error: LoadError| {
            let (kind, errors) = (ComponentKind::Sink, plugin_errors(&error));
            unfit
                .extend(errors.iter().map(|error| files.diagnostic_for(&plan.name, kind, &sink.name, error)));
        };
        opened.map_err(note).ok()
    });
    let deliver = deliver.collect();
    Plugins { chain: all, sinks, decoders, encoders, deliver }
}

/// A load error as the options that it is about.
fn plugin_errors(error: &LoadError) -> Vec<BuildError> {
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

fn start_pipeline(
    agent: &AgentPlan,
    plan: &PipelinePlan,
    plugins: &Plugins,
    files: &ConfigFiles,
) -> Result<Pipeline, Failure> {
    let dir = pipeline_dir(&agent.data_dir, &plan.name);
    let durability = if plan.journal.durable { Durability::Durable } else { Durability::Os };
    let main = FileConfig {
        dir: dir.join(JOURNAL_DIR),
        segment_bytes: plan.journal.segment_bytes,
        window_bytes: plan.journal.window_bytes,
        durability,
        ..FileConfig::default()
    };
    let quarantine = quarantine_files(&dir, durability);
    let kafka = registry::kafka_journal(&agent.name, plan).map_err(|(channel, error)| {
        Failure::Config(vec![files.diagnostic_for(&plan.name, ComponentKind::Channel, &channel, &error)])
    })?;
    let journal: Arc<dyn Journal> = match kafka {
        None => open_journal(main, channel_specs(plan))?,
        Some(options) => {
            let local = open_journal(main, KafkaJournal::local_channels(&options))?;
            KafkaJournal::open(options, local).context("cannot open the journal of a Kafka channel")?
        }
    };
    let kept = open_journal(quarantine, vec![quarantine::kept_channel_spec()])?;
    let interceptors = |slots: &[Arc<PluginSlot>]| {
        slots.iter().map(|slot| slot.clone() as Arc<dyn Interceptor>).collect::<Vec<Arc<dyn Interceptor>>>()
    };
    let on_reject =
        |codec: &Option<CodecPlan>| codec.as_ref().map_or(OnReject::Quarantine, |codec| codec.on_reject);
    let decoder = |(source, slot): (&SourcePlan, &Option<Arc<PluginSlot>>)| {
        slot.clone().map(|slot| DecoderLink::new(slot, on_reject(&source.codec)))
    };
    let encoder = |(sink, slot): (&SinkPlan, &Option<Arc<PluginSlot>>)| {
        slot.clone().map(|slot| EncoderLink::new(slot, on_reject(&sink.codec)))
    };
    let decoders: Vec<_> = plan.sources.iter().zip(&plugins.decoders).map(decoder).collect();
    let encoders: Vec<_> = plan.sinks.iter().zip(&plugins.encoders).map(encoder).collect();
    let codecs = decoders.iter().flatten().map(DecoderLink::metrics);
    let codecs = codecs.chain(encoders.iter().flatten().map(EncoderLink::metrics)).cloned().collect();
    let parts = Parts {
        agent: agent.name.as_str().into(),
        plan: plan.clone(),
        journal,
        quarantine: kept,
        sources: (plan.sources.iter().cloned().zip(decoders))
            .map(|(source, codec)| {
                Box::new(move || registry::build_source(&source, codec.as_ref()))
                    as flumen_pipeline::feed::MakeSource
            })
            .collect(),
        interceptors: interceptors(&plugins.chain),
        sinks: (plan.sinks.iter().cloned().zip(encoders).zip(&plugins.sinks).zip(&plugins.deliver))
            .map(|(((sink, codec), slots), deliver)| {
                let deliver = deliver.clone();
                let make = move || match &deliver {
                    Some(slot) => PluginSink::new(slot.clone(), &sink.options)
                        .map(|sink| Box::new(sink) as Box<dyn Sink>),
                    None => registry::build_sink(&sink, codec.as_ref()),
                };
                (Box::new(make) as flumen_pipeline::deliver::MakeSink, interceptors(slots))
            })
            .collect(),
        codecs,
    };
    Pipeline::start(parts).map_err(|error| {
        Failure::Config(vec![files.diagnostic_for(&plan.name, error.kind, &error.component, &error.error)])
    })
}

/// The journal of a pipeline's quarantine. It is rarely used: small segments, hardly any memory.
pub fn quarantine_files(pipeline_dir: &Path, durability: Durability) -> FileConfig {
    FileConfig {
        dir: pipeline_dir.join(QUARANTINE_DIR),
        segment_bytes: 16 << 20,
        window_bytes: 1 << 20,
        reserve_bytes: 0,
        durability,
        ..FileConfig::default()
    }
}

fn open_journal(
    config: FileConfig,
    channels: Vec<flumen_journal::ChannelSpec>,
) -> Result<Arc<dyn Journal>, Failure> {
    let dir = config.dir.clone();
    match FileJournal::open(config, channels, Arc::new(OsDisk), Arc::new(OsClock)) {
        Ok(journal) => Ok(journal),
        Err(OpenError::Locked(_)) => Err(Failure::Locked(locked(&dir))),
        Err(error) => Err(anyhow::Error::new(error).into()),
    }
}
