//! A pipeline under way: how it is started, stopped and looked at, whatever becomes of the agent's plan.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flumen_config::Sources as ConfigFiles;
use flumen_journal::Journal;
use flumen_pipeline::plan::{AgentPlan, ChannelPlan, PipelinePlan, SinkPlan};
use flumen_pipeline::{MemoryGate, Pipeline, StopOutcome};
use flumen_plugin::Role;
use parking_lot::Mutex;

use crate::agent::{PipelineView, Plugins, start_pipeline};
use crate::exit::Failure;
use crate::registry;

/// How long a pipeline that is stopped for good, or to restart, may take until its last thread has ended.
pub const END_WAIT: Duration = Duration::from_secs(60);

/// A pipeline under way, and its plugins.
pub struct RunningPipeline {
    pub(crate) pipeline: Pipeline,
    /// Of its channels.
    journal: Arc<dyn Journal>,
    pub(crate) plugins: Mutex<Arc<Plugins>>,
    /// The generation of the agent in which it was started, or changed last.
    pub(crate) generation: AtomicU64,
    /// Why it could not be started again after it was stopped.
    pub(crate) broken: Mutex<Option<String>>,
    /// It is to be, as soon as it can ([`crate::reload`]).
    pub(crate) again: Mutex<Option<Again>>,
}

/// How a pipeline is started again that a reload has stopped.
#[derive(Clone)]
pub(crate) struct Again {
    /// Its plan in that reload: what was begun with it may be on its disk.
    pub before: Option<PipelinePlan>,
}

impl RunningPipeline {
    /// Opens its journals and starts it. `plans`: its plan, and the one until now in a reload.
    pub fn start(
        agent: &AgentPlan,
        plans: (&PipelinePlan, Option<&PipelinePlan>),
        plugins: Arc<Plugins>,
        files: &ConfigFiles,
        memory: &Arc<MemoryGate>,
        generation: u64,
    ) -> Result<Arc<RunningPipeline>, Failure> {
        let (pipeline, journal) = start_pipeline(agent, plans, &plugins, files, memory)?;
        Ok(Arc::new(RunningPipeline {
            pipeline,
            journal,
            plugins: Mutex::new(plugins),
            generation: AtomicU64::new(generation),
            broken: Mutex::default(),
            again: Mutex::default(),
        }))
    }

    /// Stops it, and says how that went. `Err`: it had failed.
    pub fn stop(&self, deadline: Instant) -> Result<u64, String> {
        // Whoever stops it says what becomes of it.
        *self.again.lock() = None;
        let plan = self.pipeline.plan();
        let name = &plan.name;
        match self.pipeline.stop(deadline) {
            StopOutcome::Drained => {
                tracing::info!(pipeline = name, "stopped; everything is delivered");
                Ok(0)
            }
            StopOutcome::Left(events) => {
                tracing::info!(
                    pipeline = name,
                    events,
                    "stopped; not everything is delivered: the next start goes on with it"
                );
                Ok(events)
            }
            StopOutcome::Failed(reason) => {
                tracing::error!(pipeline = name, reason, "stopped after a failure");
                Err(reason)
            }
        }
    }

    /// After a stop, waits until nothing of it is at work any more.
    pub fn wait_ended(&self) -> anyhow::Result<()> {
        self.pipeline.wait_ended(END_WAIT).map_err(|part| {
            let reason = format!("{part} does not end: it hangs in a call of the system");
            *self.broken.lock() = Some(format!("stopped for a reload, and {reason}"));
            anyhow::anyhow!("{reason}; nothing may take its place before that (restart the agent)")
        })
    }

    /// Whether its sinks wait for a disk that is away, and none of them can end by itself. Its journal acknowledges late and has failed:
    /// where a sink goes on is for the next opening to say, which it asks without a limit, and what it has acknowledged comes to count no
    /// more. Or it was never opened. The end of the journal lets them all go, as when the agent stops.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.is_dead() && (self.journal.acknowledges_late() || self.is_unopened())
    }

    /// Whether the disk of its own channels has failed, under a failover or for good.
    pub(crate) fn is_dead(&self) -> bool {
        let is_shared = self.pipeline.plan().channels.iter().any(ChannelPlan::is_shared);
        !is_shared && !self.journal.takes_acknowledgements()
    }

    /// Whether that disk has refused since the start: nobody knows what its sinks still have to deliver, so not what plugins remember either.
    pub(crate) fn is_unopened(&self) -> bool {
        self.is_dead() && self.journal.state().is_some_and(|state| !state.is_ready())
    }

    /// Events in the memory of its channels whose disk has failed: they wait there for its next opening, and a stop would lose them.
    pub(crate) fn unsaved_events(&self) -> u64 {
        let plan = self.pipeline.plan();
        let is_in_memory = plan.channels.iter().all(|channel| channel.kind.is_in_memory());
        if !is_in_memory || !self.is_dead() || self.is_unopened() {
            return 0;
        }
        // Behind them are those of its failover, which has a disk of its own.
        let status = self.journal.status();
        status.memory.iter().take(plan.channels.len()).map(|figures| figures.events_at_risk).sum()
    }

    /// Why it cannot go on, if it cannot.
    pub fn failure(&self) -> Option<String> {
        self.broken.lock().clone().or_else(|| self.pipeline.failure())
    }

    /// Figures for `status`.
    pub fn view(&self) -> PipelineView {
        let mut pipeline = self.pipeline.status();
        pipeline.failure = self.failure();
        let (plan, slots) = (self.pipeline.plan(), self.plugins.lock().clone());
        let plugins = slots.all().map(|slot| slot.status()).collect();
        let promise = |sink: &SinkPlan| {
            let slot = slots.all().find(|slot| slot.plan().name == sink.name && slot.role() == Role::Sink);
            (sink.name.clone(), registry::delivery(&plan, sink, slot.map(|slot| &**slot)).0)
        };
        let deliveries = plan.sinks.iter().map(promise).collect();
        let generation = self.generation.load(Ordering::Acquire);
        PipelineView { pipeline, generation, plugins, deliveries }
    }
}
