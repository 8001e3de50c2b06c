//! One running pipeline: its feeds, its outlets, its quarantine keeper.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flumen_journal::{ChannelSpec, CommitError, Journal};
use parking_lot::Mutex;

use crate::chain::{Chain, Link};
use crate::component::{BuildError, Place};
use crate::deliver::{MakeSink, Outlet, OutletPlace, OutletState};
use crate::feed::{Feed, FeedState, FeedTarget, MakeSource, spawn};
use crate::interceptor::Interceptor;
use crate::kept::Kept;
use crate::metrics::{ComponentKind, ComponentMetrics};
use crate::plan::{InterceptorPlan, PipelinePlan};
use crate::quarantine::{self, Keeper};
use crate::replay::{ReplayPlace, Replayer};
use crate::source::Wake;
use crate::stateful::{Stateful, TickTarget, run_ticks};
use crate::status::{self, PipelineStatus};

/// Everything that a pipeline is made of, bound by the caller: the plan's names are resolved, and
/// the whole thing runs in a test as it does in the agent.
pub struct Parts {
    /// The agent's name.
    pub agent: Arc<str>,
    /// The plan that the parts were made from.
    pub plan: PipelinePlan,
    /// Opened with [`channel_specs`].
    pub journal: Arc<dyn Journal>,
    /// Opened with [`quarantine::kept_channel_spec`].
    pub quarantine: Arc<dyn Journal>,
    /// One per source of the plan, in its order.
    pub sources: Vec<MakeSource>,
    /// One per interceptor of the plan, in its order.
    pub interceptors: Vec<Arc<dyn Interceptor>>,
    /// One per sink of the plan, in its order, with its own interceptors.
    pub sinks: Vec<(MakeSink, Vec<Arc<dyn Interceptor>>)>,
    /// Counters of the codecs that sources and sinks were made with.
    pub codecs: Vec<Arc<ComponentMetrics>>,
}

/// A part that could not be made: which component, and why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{component}: {error}")]
pub struct StartError {
    /// What it is.
    pub kind: ComponentKind,
    /// Name of the source or sink; empty for the pipeline.
    pub component: String,
    /// What is wrong.
    pub error: BuildError,
}

/// The channels of a plan's journal: those of the file, and the quarantine.
pub fn channel_specs(plan: &PipelinePlan) -> Vec<ChannelSpec> {
    let spec = |channel: &crate::plan::ChannelPlan| ChannelSpec {
        name: channel.name.clone(),
        readers: plan.sinks.iter().filter(|s| s.channel == channel.name).map(|s| s.name.clone()).collect(),
        capacity_events: channel.capacity_events,
        capacity_bytes: channel.capacity_bytes,
    };
    plan.channels.iter().map(spec).chain([quarantine::channel_spec()]).collect()
}

/// A pipeline under way.
pub struct Pipeline {
    plan: PipelinePlan,
    journal: Arc<dyn Journal>,
    quarantine: Arc<dyn Journal>,
    kept: Option<Arc<Kept>>,
    chain: Arc<Chain>,
    feeds: Vec<Feed>,
    outlets: Vec<Outlet>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    keeper_wake: Wake,
    replayer: Mutex<Option<JoinHandle<()>>>,
    ticker: Mutex<Option<JoinHandle<()>>>,
    ticker_wake: Wake,
    tick_failure: Arc<Mutex<Option<String>>>,
    codecs: Vec<Arc<ComponentMetrics>>,
}

/// How a stop went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopOutcome {
    /// Everything in the channels was delivered and acknowledged.
    Drained,
    /// The limit passed first; this many events stay in the journal for the next start.
    Left(u64),
    /// The journal had failed.
    Failed(String),
}

impl Pipeline {
    /// Starts sinks first, then sources: what the journal still holds goes out before new events come.
    /// When a part cannot be made, what was started is stopped again and the journals are closed.
    pub fn start(parts: Parts) -> Result<Pipeline, StartError> {
        let Parts { agent, plan, journal, quarantine, sources, interceptors, sinks, codecs } = parts;
        let chain = Arc::new(links(interceptors, &plan.interceptors));
        let kept = Kept::new(quarantine.clone());
        let mut pipeline = Pipeline {
            plan,
            journal,
            quarantine,
            kept,
            chain,
            feeds: Vec::new(),
            outlets: Vec::new(),
            keeper: Mutex::new(None),
            keeper_wake: Wake::default(),
            replayer: Mutex::new(None),
            ticker: Mutex::new(None),
            ticker_wake: Wake::default(),
            tick_failure: Arc::default(),
            codecs,
        };
        match pipeline.start_threads(&agent, sources, sinks) {
            Ok(()) => Ok(pipeline),
            Err(error) => {
                pipeline.stop(Instant::now());
                Err(error)
            }
        }
    }

    fn start_threads(
        &mut self,
        agent: &Arc<str>,
        sources: Vec<MakeSource>,
        sinks: Vec<(MakeSink, Vec<Arc<dyn Interceptor>>)>,
    ) -> Result<(), StartError> {
        let Pipeline { plan, journal, kept, chain, feeds, outlets, keeper, keeper_wake, replayer, .. } = self;
        let bug = |component: &str, reason: &str| StartError {
            kind: ComponentKind::Sink,
            component: component.into(),
            error: BuildError::new("", reason, "this is a bug of Flumen: report it"),
        };
        let missing = |component: &str| bug(component, "has no channel in the journal");
        if sources.len() != plan.sources.len()
            || sinks.len() != plan.sinks.len()
            || chain.0.len() != plan.interceptors.len()
        {
            return Err(bug("", "has fewer parts than its plan"));
        }
        let quarantine_channel =
            journal.channel(crate::quarantine::CHANNEL).ok_or_else(|| missing("quarantine"))?;
        let stateful = Stateful::of(chain, &plan.name, journal.as_ref()).map_err(|error| StartError {
            kind: ComponentKind::Interceptor,
            component: error.plugin,
            error: BuildError::new(
                "",
                error.reason,
                "see the plugin's own docs, or take it out of the pipeline",
            ),
        })?;
        for (sink, (make, interceptors)) in plan.sinks.iter().zip(sinks) {
            let channel = journal.channel(&sink.channel).ok_or_else(|| missing(&sink.name))?;
            let reader = journal.reader_id(channel, &sink.name).ok_or_else(|| missing(&sink.name))?;
            let place =
                OutletPlace { journal: journal.clone(), channel, reader, quarantine: quarantine_channel };
            if let Some(plugin) = sink.interceptors.iter().find(|plugin| plugin.keeps_state()) {
                return Err(StartError {
                    kind: ComponentKind::Sink,
                    component: sink.name.clone(),
                    error: stateful_sink(plugin),
                });
            }
            let own = links(interceptors, &sink.interceptors);
            let stands = Place {
                agent: agent.clone(),
                pipeline: plan.name.as_str().into(),
                channel: sink.channel.as_str().into(),
            };
            let outlet = Outlet::start(&sink.name, make, own, place, stands);
            outlets.push(outlet.map_err(|error| StartError {
                kind: ComponentKind::Sink,
                component: sink.name.clone(),
                error,
            })?);
        }
        let kept = kept.as_ref().ok_or_else(|| missing("quarantine"))?;
        let moves = Keeper { from: journal.clone(), to: kept.clone(), wake: keeper_wake.clone() };
        let thread = spawn(&format!("quarantine-{}", plan.name), move || moves.run())
            .map_err(|error| StartError { kind: ComponentKind::Sink, component: String::new(), error })?;
        *keeper.lock() = Some(thread);
        let channels: Vec<_> =
            plan.channels.iter().filter_map(|channel| journal.channel(&channel.name)).collect();
        let replays = Replayer::new(
            plan,
            ReplayPlace {
                journal: journal.clone(),
                kept: kept.clone(),
                chain: chain.clone(),
                stateful: stateful.clone(),
                channels: channels.clone(),
                quarantine: quarantine_channel,
            },
        );
        let thread = spawn(&format!("replay-{}", plan.name), move || replays.run())
            .map_err(|error| StartError { kind: ComponentKind::Sink, component: String::new(), error })?;
        *replayer.lock() = Some(thread);
        if let Some(stateful) = stateful.clone() {
            let target = TickTarget {
                journal: journal.clone(),
                channels: channels.clone(),
                quarantine: quarantine_channel,
            };
            *self.ticker.lock() =
                Some(start_ticks(&plan.name, stateful, target, &self.ticker_wake, &self.tick_failure)?);
        }
        for (source, make) in plan.sources.iter().zip(sources) {
            if channels.len() != plan.channels.len() {
                return Err(missing(&source.name));
            }
            let target = FeedTarget {
                journal: journal.clone(),
                channels: channels.clone(),
                quarantine: quarantine_channel,
                stateful: stateful.clone(),
            };
            let stands =
                Place { agent: agent.clone(), pipeline: plan.name.as_str().into(), channel: "".into() };
            let threads = plan.interceptor_threads;
            let feed = Feed::start(&source.name, make, chain.clone(), threads, plan.batch, target, stands);
            feeds.push(feed.map_err(|error| StartError {
                kind: ComponentKind::Source,
                component: source.name.clone(),
                error,
            })?);
        }
        Ok(())
    }

    /// The plan that it runs.
    pub fn plan(&self) -> &PipelinePlan {
        &self.plan
    }

    /// The quarantine, to ask for jobs.
    pub fn kept(&self) -> Option<&Arc<Kept>> {
        self.kept.as_ref()
    }

    /// True when all sources have come to their end (standard input was closed, a generator is done).
    pub fn sources_ended(&self) -> bool {
        // Without sources of its own it gets its events from elsewhere.
        !self.feeds.is_empty()
            && self.feeds.iter().all(|feed| feed.finished() && feed.state() == FeedState::Ended)
    }

    /// Why the pipeline cannot go on, if it cannot.
    pub fn failure(&self) -> Option<String> {
        let feed = self.feeds.iter().find(|feed| feed.state() == FeedState::Failed);
        if let Some(feed) = feed {
            return Some(feed.metrics.error().unwrap_or_else(|| "the journal takes no more events".into()));
        }
        if let Some(reason) = self.tick_failure.lock().clone() {
            return Some(reason);
        }
        let outlet = self.outlets.iter().find(|outlet| outlet.state() == OutletState::Failed);
        outlet
            .map(|outlet| outlet.metrics.error().unwrap_or_else(|| "the journal takes no more events".into()))
    }

    /// Stops: sources first, then sinks when their channels are empty, or at `deadline` at the next
    /// flush. Whatever the outcome, nothing is lost: what was not delivered is in the journal.
    pub fn stop(&self, deadline: Instant) -> StopOutcome {
        for feed in &self.feeds {
            feed.wake.stop();
        }
        if let Some(kept) = &self.kept {
            kept.wake.stop();
        }
        self.ticker_wake.stop();
        let has_ticked = || self.ticker.lock().as_ref().is_none_or(JoinHandle::is_finished);
        wait_until(deadline, || self.feeds.iter().all(Feed::finished) && has_ticked());
        if let Some(replayer) = self.replayer.lock().take() {
            wait_until(deadline, || replayer.is_finished());
        }
        for outlet in &self.outlets {
            outlet.finish.stop();
        }
        wait_until(deadline, || self.outlets.iter().all(Outlet::finished));
        for outlet in &self.outlets {
            outlet.wake.stop();
        }
        // Past the limit there is still one flush and one commit to wait for.
        wait_until(Instant::now() + crate::limits::STOP_COMMIT, || self.outlets.iter().all(Outlet::finished));
        self.keeper_wake.stop();
        if let Some(keeper) = self.keeper.lock().take() {
            wait_until(Instant::now() + crate::limits::STOP_COMMIT, || keeper.is_finished());
        }
        let left = self.journal.status().channels.iter().map(|channel| channel.events).max().unwrap_or(0);
        let failure = self.failure();
        let closed = self.journal.close().and(self.quarantine.close());
        match (failure, closed) {
            (Some(reason), _) => StopOutcome::Failed(reason),
            (None, Err(error)) if !matches!(error, CommitError::Closing) => {
                StopOutcome::Failed(error.to_string())
            }
            _ if left > 0 => StopOutcome::Left(left),
            _ => StopOutcome::Drained,
        }
    }

    /// Figures for `status`.
    pub fn status(&self) -> PipelineStatus {
        let kept = self.kept.as_ref();
        let journal = self.journal.status();
        PipelineStatus {
            name: self.plan.name.clone(),
            file: self.plan.file.display().to_string(),
            failure: self.failure(),
            sources: self
                .feeds
                .iter()
                .map(|f| status::component(&f.metrics, status::feed_word(f.state())))
                .collect(),
            interceptors: self
                .chain
                .0
                .iter()
                .map(|link| status::component(&link.metrics, link.state()))
                .collect(),
            codecs: self.codecs.iter().map(|metrics| status::component(metrics, "running")).collect(),
            channels: journal.channels.iter().map(status::channel).collect(),
            sinks: self
                .outlets
                .iter()
                .map(|outlet| status::SinkStatus {
                    component: status::component(&outlet.metrics, status::outlet_word(outlet.state())),
                    interceptors: outlet
                        .chain
                        .0
                        .iter()
                        .map(|l| status::component(&l.metrics, l.state()))
                        .collect(),
                })
                .collect(),
            journal: status::journal(&journal),
            quarantine: status::QuarantineStatus {
                events: kept.map_or(0, |kept| kept.events()),
                expired: kept.map_or(0, |kept| kept.expired()),
                jobs: kept.map_or_else(Vec::new, |kept| kept.reports()),
            },
        }
    }
}

impl Drop for Pipeline {
    /// Without a stop: its threads end on their own, at the next flush.
    fn drop(&mut self) {
        self.feeds.iter().for_each(|feed| feed.wake.stop());
        self.outlets.iter().for_each(|outlet| outlet.wake.stop());
        self.keeper_wake.stop();
        if let Some(kept) = &self.kept {
            kept.wake.stop();
        }
        self.ticker_wake.stop();
    }
}

fn links(interceptors: Vec<Arc<dyn Interceptor>>, plans: &[InterceptorPlan]) -> Chain {
    let link = |(interceptor, plan): (_, &InterceptorPlan)| {
        let link = Link::new(interceptor, plan.on_reject, plan.errors);
        if plan.keeps_state() { link.with_state(plan.limits.state_bytes) } else { link }
    };
    Chain(interceptors.into_iter().zip(plans).map(link).collect())
}

/// A lost acknowledgement would be processed again, with state that has seen it already.
fn stateful_sink(plugin: &InterceptorPlan) -> BuildError {
    BuildError::new(
        "grant",
        format!(
            "the plugin {} keeps state, which only an interceptor between sources and channels may",
            plugin.name
        ),
        "move it to the interceptors of the pipeline (`[[interceptor]]`)",
    )
}

fn start_ticks(
    pipeline: &str,
    stateful: Arc<Stateful>,
    target: TickTarget,
    wake: &Wake,
    failure: &Arc<Mutex<Option<String>>>,
) -> Result<JoinHandle<()>, StartError> {
    let (wake, failure) = (wake.clone(), failure.clone());
    let ticks = move || {
        if let Err(error) = run_ticks(&stateful, &target, &wake)
            && !matches!(error, CommitError::Closing)
        {
            tracing::error!(%error, "the journal takes no more events; the pipeline stops");
            *failure.lock() = Some(error.to_string());
        }
    };
    spawn(&format!("tick-{pipeline}"), ticks).map_err(|error| StartError {
        kind: ComponentKind::Interceptor,
        component: String::new(),
        error,
    })
}

/// Threads have no wait with a deadline, and a stop happens once: a short poll is all it takes.
fn wait_until(deadline: Instant, condition: impl Fn() -> bool) {
    while !condition() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
}
