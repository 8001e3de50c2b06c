//! One running pipeline: its feeds, its outlets, its quarantine keeper.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flumen_journal::inspect::Inspector;
use flumen_journal::{ChannelSpec, CommitError, Journal, JournalStatus};
use parking_lot::Mutex;

use crate::again::{self, Again, AgainError, AgainReport};
use crate::backfill::RunningBackfill;
use crate::chain::{Chain, Link, Links};
use crate::component::{BuildError, Place};
use crate::deliver::{MakeSink, Outlet, OutletPlace, OutletState};
use crate::exchange::ExchangeError;
use crate::feed::{Feed, FeedState, FeedTarget, MakeSource, positions_of, spawn};
use crate::group::SinkGroup;
use crate::interceptor::Interceptor;
use crate::kept::Kept;
use crate::limits;
use crate::memory::MemoryGate;
use crate::metrics::{ComponentKind, ComponentMetrics};
use crate::plan::{BatchPlan, InterceptorPlan, PipelinePlan, SinkPlan, SourcePlan};
use crate::quarantine::{self, Keeper};
use crate::replay::{ReplayPlace, Replayer};
use crate::selector::PresentSelectors;
use crate::source::Wake;
use crate::stateful::{CannotBegin, Stateful, TickTarget, run_ticks};
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
    pub codecs: CodecMetrics,
    /// Holds the sources while the process has too much memory.
    pub memory: Arc<MemoryGate>,
}

/// Counters of codecs, by the names of the parts that were made with them.
#[derive(Default)]
pub struct CodecMetrics {
    /// Of sources.
    pub sources: BTreeMap<String, Arc<ComponentMetrics>>,
    /// Of sinks.
    pub sinks: BTreeMap<String, Arc<ComponentMetrics>>,
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
        readers: plan.readers(&channel.name).into_iter().map(str::to_owned).collect(),
        capacity_events: channel.capacity_events,
        capacity_bytes: channel.capacity_bytes,
    };
    plan.channels.iter().map(spec).chain([quarantine::channel_spec()]).collect()
}

/// A pipeline under way.
pub struct Pipeline {
    pub(crate) agent: Arc<str>,
    pub(crate) plan: Arc<Mutex<Arc<PipelinePlan>>>,
    pub(crate) journal: Arc<dyn Journal>,
    quarantine: Arc<dyn Journal>,
    kept: Option<Arc<Kept>>,
    pub(crate) chain: Arc<Chain>,
    /// The part of the chain that keeps state.
    stateful: Arc<Stateful>,
    /// In the order of the plan, as are the outlets. Locked for a look or an exchange, never while something is waited for.
    pub(crate) feeds: Mutex<Vec<Arc<RunningFeed>>>,
    pub(crate) outlets: Mutex<Vec<Arc<RunningOutlet>>>,
    pub(crate) backfills: Mutex<Vec<Arc<RunningBackfill>>>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    keeper_wake: Wake,
    replayer: Mutex<Option<JoinHandle<()>>>,
    ticker: Mutex<Option<JoinHandle<()>>>,
    ticker_wake: Wake,
    tick_failure: Arc<Mutex<Option<String>>>,
    pub(crate) codecs: Mutex<CodecMetrics>,
    selectors: PresentSelectors,
    /// Of the plan that it was started with: other groups are another start.
    groups: Vec<Arc<SinkGroup>>,
    memory: Arc<MemoryGate>,
}

/// A source under way, and what it was made from.
pub(crate) struct RunningFeed {
    pub(crate) made_from: FeedPlan,
    pub(crate) feed: Feed,
}

/// What a feed is made from: one that was made from something else has to restart.
#[derive(Clone, PartialEq)]
pub(crate) struct FeedPlan {
    pub(crate) source: SourcePlan,
    pub(crate) batch: BatchPlan,
    pub(crate) threads: usize,
    /// Of each channel.
    pub(crate) keep_alive: BTreeMap<String, Duration>,
}

/// A sink under way, and what it was made from (its interceptors aside: they are exchanged under it).
pub(crate) struct RunningOutlet {
    pub(crate) made_from: SinkPlan,
    pub(crate) outlet: Outlet,
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
        let Parts { agent, plan, journal, quarantine, sources, interceptors, sinks, codecs, memory } = parts;
        let chain = Chain::new(links(interceptors, &plan.interceptors));
        let kept = Kept::new(quarantine.clone());
        let stateful = Stateful::new(&plan.name, journal.state());
        let made = plan.groups.iter().filter_map(|group| SinkGroup::new(group, journal.clone()));
        let groups: Vec<_> = made.collect();
        let plan = Arc::new(Mutex::new(Arc::new(plan)));
        let selectors = PresentSelectors::new(plan.clone(), journal.clone());
        let pipeline = Pipeline {
            agent,
            plan,
            selectors,
            groups,
            journal,
            quarantine,
            kept,
            chain: Arc::new(chain),
            stateful,
            feeds: Mutex::default(),
            outlets: Mutex::default(),
            backfills: Mutex::default(),
            keeper: Mutex::new(None),
            keeper_wake: Wake::default(),
            replayer: Mutex::new(None),
            ticker: Mutex::new(None),
            ticker_wake: Wake::default(),
            tick_failure: Arc::default(),
            codecs: Mutex::new(codecs),
            memory,
        };
        match pipeline.start_threads(sources, sinks) {
            Ok(()) => Ok(pipeline),
            Err(error) => {
                pipeline.stop(Instant::now());
                Err(error)
            }
        }
    }

    fn start_threads(
        &self,
        sources: Vec<MakeSource>,
        sinks: Vec<(MakeSink, Vec<Arc<dyn Interceptor>>)>,
    ) -> Result<(), StartError> {
        let plan = self.plan();
        if sources.len() != plan.sources.len()
            || sinks.len() != plan.sinks.len()
            || self.chain.links().len() != plan.interceptors.len()
        {
            return Err(bug(ComponentKind::Sink, "", "has fewer parts than its plan"));
        }
        self.stateful.exchange(&self.chain.links(), Duration::ZERO, || {}).map_err(cannot_begin)?;
        for (sink, (make, interceptors)) in plan.sinks.iter().zip(sinks) {
            check_stateless(sink)?;
            let own = links(interceptors, &sink.interceptors);
            let outlet = self.start_outlet(sink, make, own)?;
            self.outlets.lock().push(outlet);
        }
        self.start_keepers(&plan)?;
        for (source, make) in plan.sources.iter().zip(sources) {
            let feed = self.start_feed(&plan, source, make)?;
            self.feeds.lock().push(feed);
        }
        Ok(())
    }

    /// The threads of the quarantine: the one that fills it, and the one that replays from it.
    fn start_keepers(&self, plan: &PipelinePlan) -> Result<(), StartError> {
        let missing = || bug(ComponentKind::Sink, "quarantine", "has no channel in the journal");
        let no_thread = |error| StartError { kind: ComponentKind::Sink, component: String::new(), error };
        let kept = self.kept.as_ref().ok_or_else(missing)?;
        let quarantine = self.journal.channel(quarantine::CHANNEL).ok_or_else(missing)?;
        let moves = Keeper { from: self.journal.clone(), to: kept.clone(), wake: self.keeper_wake.clone() };
        let thread = spawn(&format!("quarantine-{}", plan.name), move || moves.run()).map_err(no_thread)?;
        *self.keeper.lock() = Some(thread);
        let (journal, stateful) = (self.journal.clone(), self.stateful.clone());
        self.start_ticks(plan)?;
        let replays = Replayer::new(ReplayPlace {
            stateful,
            plan: self.plan.clone(),
            journal,
            kept: kept.clone(),
            chain: self.chain.clone(),
            selectors: self.selectors.clone(),
            quarantine,
        });
        let thread = spawn(&format!("replay-{}", plan.name), move || replays.run()).map_err(no_thread)?;
        *self.replayer.lock() = Some(thread);
        Ok(())
    }

    /// The chain's links, between two batches; what keeps state is exchanged in a turn.
    pub(crate) fn exchange_chain(&self, plan: &PipelinePlan, links: &Links) -> Result<(), ExchangeError> {
        let take_over = || self.chain.exchange(links.clone());
        let exchanged = self.stateful.exchange(links, limits::PART_STOP, take_over).map_err(cannot_begin)?;
        if !exchanged {
            return Err(ExchangeError::Stuck { kind: "chain", name: "with state".to_owned() });
        }
        Ok(self.start_ticks(plan)?)
    }

    /// The thread that tells plugins with state that time passes, once there are any.
    fn start_ticks(&self, plan: &PipelinePlan) -> Result<(), StartError> {
        let mut ticker = self.ticker.lock();
        if ticker.is_some() || !self.stateful.is_needed() {
            return Ok(());
        }
        let missing = || bug(ComponentKind::Sink, "quarantine", "has no channel in the journal");
        let quarantine = self.journal.channel(quarantine::CHANNEL).ok_or_else(missing)?;
        let (journal, selectors) = (self.journal.clone(), self.selectors.clone());
        let target = TickTarget { journal, selectors, quarantine };
        let (stateful, wake) = (self.stateful.clone(), &self.ticker_wake);
        *ticker = Some(start_ticks(&plan.name, stateful, target, wake, &self.tick_failure)?);
        Ok(())
    }

    pub(crate) fn start_outlet(
        &self,
        sink: &SinkPlan,
        make: MakeSink,
        own: Links,
    ) -> Result<Arc<RunningOutlet>, StartError> {
        let journal = &self.journal;
        let missing = || bug(ComponentKind::Sink, &sink.name, "has no channel in the journal");
        let quarantine = journal.channel(quarantine::CHANNEL).ok_or_else(missing)?;
        let channel = journal.channel(&sink.channel).ok_or_else(missing)?;
        let plan = self.plan();
        let reader_name: Arc<str> = plan.reader_of(sink).into();
        let reader = journal.reader_id(channel, &reader_name).ok_or_else(missing)?;
        let member = match plan.group_of(&sink.name) {
            None => None,
            Some(group) => {
                let running = self.groups.iter().find(|running| running.plan == *group);
                Some(running.and_then(|running| running.member(&sink.name)).ok_or_else(missing)?)
            }
        };
        let journal = journal.clone();
        let place = OutletPlace { journal, channel, reader, reader_name, member, quarantine };
        let stands = self.place(&sink.channel);
        let outlet = Outlet::start(&sink.name, make, Chain::new(own), place, stands);
        let outlet = outlet.map_err(|error| StartError {
            kind: ComponentKind::Sink,
            component: sink.name.clone(),
            error,
        })?;
        let made_from = SinkPlan { interceptors: Vec::new(), ..sink.clone() };
        Ok(Arc::new(RunningOutlet { made_from, outlet }))
    }

    pub(crate) fn start_feed(
        &self,
        plan: &PipelinePlan,
        source: &SourcePlan,
        make: MakeSource,
    ) -> Result<Arc<RunningFeed>, StartError> {
        let feed = self.new_feed(plan, source, make, positions_of(&source.name))?;
        Ok(Arc::new(RunningFeed { made_from: FeedPlan::of(plan, source), feed }))
    }

    /// Starts a feed whose events go the way of this source's. `prefix`: see [`FeedTarget::prefix`].
    pub(crate) fn new_feed(
        &self,
        plan: &PipelinePlan,
        source: &SourcePlan,
        make: MakeSource,
        prefix: Vec<u8>,
    ) -> Result<Feed, StartError> {
        let journal = &self.journal;
        let missing = || bug(ComponentKind::Source, &source.name, "has no channel in the journal");
        let quarantine = journal.channel(quarantine::CHANNEL).ok_or_else(missing)?;
        let selectors = self.selectors.get().ok_or_else(missing)?;
        let selector = selectors.get(Some(&source.name)).clone();
        let (journal, stateful, memory) = (journal.clone(), self.stateful.clone(), self.memory.clone());
        let keep_alive = keep_alive(plan);
        let target = FeedTarget { journal, selector, keep_alive, quarantine, stateful, memory, prefix };
        let (chain, stands) = (self.chain.clone(), self.place(""));
        let (threads, batch) = (plan.interceptor_threads, plan.batch);
        let feed = Feed::start(&source.name, make, chain, threads, batch, target, stands);
        feed.map_err(|error| StartError {
            kind: ComponentKind::Source,
            component: source.name.clone(),
            error,
        })
    }

    fn place(&self, channel: &str) -> Place {
        let pipeline = self.plan.lock().name.as_str().into();
        Place { agent: self.agent.clone(), pipeline, channel: channel.into() }
    }

    fn feeds(&self) -> Vec<Arc<RunningFeed>> {
        self.feeds.lock().clone()
    }

    fn outlets(&self) -> Vec<Arc<RunningOutlet>> {
        self.outlets.lock().clone()
    }

    /// The plan that it runs.
    pub fn plan(&self) -> Arc<PipelinePlan> {
        self.plan.lock().clone()
    }

    /// The quarantine, to ask for jobs.
    pub fn kept(&self) -> Option<&Arc<Kept>> {
        self.kept.as_ref()
    }

    /// Puts events of its journal's files to one of its channels once more; returns when that is done, or the pipeline stops.
    pub fn put_again(&self, files: &Inspector, request: &Again) -> Result<AgainReport, AgainError> {
        again::put_again(self.journal.as_ref(), files, request, &|| self.is_stopping())
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.keeper_wake.stopping() || self.ticker_wake.stopping()
    }

    /// True when all sources have come to their end (standard input was closed, a generator is done).
    pub fn sources_ended(&self) -> bool {
        // Without sources of its own it gets its events from elsewhere.
        let feeds = self.feeds();
        !feeds.is_empty()
            && feeds.iter().all(|it| it.feed.finished() && it.feed.state() == FeedState::Ended)
            && self.backfills().iter().all(|it| it.feed.finished())
    }

    /// Why the pipeline cannot go on, if it cannot.
    pub fn failure(&self) -> Option<String> {
        let feeds = self.feeds();
        if let Some(failed) = feeds.iter().find(|it| it.feed.state() == FeedState::Failed) {
            return Some(
                failed.feed.metrics.error().unwrap_or_else(|| "the journal takes no more events".into()),
            );
        }
        let backfills = self.backfills();
        if let Some(failed) = backfills.iter().find(|it| it.feed.state() == FeedState::Failed) {
            return Some(failed.failure());
        }
        if let Some(reason) = self.tick_failure.lock().clone() {
            return Some(reason);
        }
        let outlets = self.outlets();
        let failed = outlets.iter().find(|it| it.outlet.state() == OutletState::Failed);
        failed
            .map(|it| it.outlet.metrics.error().unwrap_or_else(|| "the journal takes no more events".into()))
    }

    /// Stops: sources first, then sinks when their channels are empty, or at `deadline` at the next
    /// flush. Whatever the outcome, nothing is lost: what was not delivered is in the journal.
    pub fn stop(&self, deadline: Instant) -> StopOutcome {
        // First: from then on no backfill begins.
        self.ticker_wake.stop();
        let (feeds, outlets, backfills) = (self.feeds(), self.outlets(), self.backfills());
        for running in &feeds {
            running.feed.wake.stop();
        }
        for running in &backfills {
            running.feed.wake.stop();
        }
        if let Some(kept) = &self.kept {
            kept.wake.stop();
        }
        let have_read =
            || feeds.iter().all(|it| it.feed.finished()) && backfills.iter().all(|it| it.feed.finished());
        let has_ticked = || self.ticker.lock().as_ref().is_none_or(JoinHandle::is_finished);
        wait_until(deadline, || have_read() && has_ticked());
        if let Some(replayer) = &*self.replayer.lock() {
            wait_until(deadline, || replayer.is_finished());
        }
        for running in &outlets {
            running.outlet.finish.stop();
        }
        let all_finished = || outlets.iter().all(|it| it.outlet.finished());
        wait_until(deadline, all_finished);
        for running in &outlets {
            running.outlet.wake.stop();
        }
        // Past the limit there is still one flush and one commit to wait for. With nowhere to commit it to there is none: what was
        // delivered and is not acknowledged is for the next start, as after a crash.
        let is_in_vain = || !self.journal.takes_acknowledgements();
        wait_until(Instant::now() + crate::limits::STOP_COMMIT, || all_finished() || is_in_vain());
        self.keeper_wake.stop();
        if let Some(keeper) = &*self.keeper.lock() {
            wait_until(Instant::now() + crate::limits::STOP_COMMIT, || keeper.is_finished() || is_in_vain());
        }
        let left = self.left();
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

    /// Events in the channel that holds most.
    pub fn left(&self) -> u64 {
        self.journal.status().channels.iter().map(|channel| channel.events).max().unwrap_or(0)
    }

    /// Figures of its journal, after a stop as well.
    pub fn journal_status(&self) -> JournalStatus {
        self.journal.status()
    }

    /// After a stop: waits until all its threads have ended, and says whose have not. Nobody else may work in their places
    /// before: a sink that hangs in a system call could still write.
    pub fn wait_ended(&self, limit: Duration) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        let (feeds, outlets, backfills) = (self.feeds(), self.outlets(), self.backfills());
        let at_work = || {
            let feed = feeds.iter().find(|it| !it.feed.finished()).map(|it| &it.feed.name);
            let backfill = backfills.iter().find(|it| !it.feed.finished()).map(|it| &it.feed.name);
            let feed = feed.or(backfill);
            let outlet = outlets.iter().find(|it| !it.outlet.finished()).map(|it| &it.outlet.name);
            let keeps = |thread: &Mutex<Option<JoinHandle<()>>>| {
                thread.lock().as_ref().is_some_and(|thread| !thread.is_finished())
            };
            let keeper = || {
                [&self.keeper, &self.replayer, &self.ticker]
                    .into_iter()
                    .any(keeps)
                    .then(|| "the quarantine".to_owned())
            };
            feed.or(outlet).map(ToString::to_string).or_else(keeper)
        };
        wait_until(deadline, || at_work().is_none());
        at_work().map_or(Ok(()), Err)
    }

    /// Figures for `status`.
    pub fn status(&self) -> PipelineStatus {
        let (plan, feeds, outlets) = (self.plan(), self.feeds(), self.outlets());
        let kept = self.kept.as_ref();
        let journal = self.journal.status();
        let codecs = self.codecs.lock();
        let of_sources = plan.sources.iter().filter_map(|source| codecs.sources.get(&source.name));
        let of_sinks = plan.sinks.iter().filter_map(|sink| codecs.sinks.get(&sink.name));
        PipelineStatus {
            name: plan.name.clone(),
            file: plan.file.display().to_string(),
            failure: self.failure(),
            sources: feeds.iter().map(|it| status::source(&it.feed)).collect(),
            backfills: self.backfills().iter().map(|it| it.status()).collect(),
            codecs: (of_sources.chain(of_sinks))
                .map(|metrics| status::component(metrics, "running"))
                .collect(),
            interceptors: link_status(&self.chain),
            channels: status::channels(&plan, &journal),
            sinks: outlets
                .iter()
                .map(|running| {
                    let outlet = &running.outlet;
                    let word = status::outlet_word(outlet.state());
                    let component = status::component(&outlet.metrics, word);
                    status::SinkStatus { component, interceptors: link_status(&outlet.chain) }
                })
                .collect(),
            groups: self.groups.iter().map(|group| group.status()).collect(),
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
        self.feeds().iter().for_each(|it| it.feed.wake.stop());
        self.backfills().iter().for_each(|it| it.feed.wake.stop());
        self.outlets().iter().for_each(|it| it.outlet.wake.stop());
        self.keeper_wake.stop();
        if let Some(kept) = &self.kept {
            kept.wake.stop();
        }
        self.ticker_wake.stop();
    }
}

impl FeedPlan {
    pub(crate) fn of(plan: &PipelinePlan, source: &SourcePlan) -> FeedPlan {
        let (source, batch, threads) = (source.clone(), plan.batch, plan.interceptor_threads);
        FeedPlan { source, batch, threads, keep_alive: keep_alive(plan) }
    }
}

fn keep_alive(plan: &PipelinePlan) -> BTreeMap<String, Duration> {
    plan.channels.iter().map(|channel| (channel.name.clone(), channel.keep_alive)).collect()
}

fn cannot_begin(error: CannotBegin) -> StartError {
    let fix = "see the plugin's own docs, or take it out of the pipeline";
    let (kind, error, component) =
        (ComponentKind::Interceptor, BuildError::new("", error.reason, fix), error.plugin);
    StartError { kind, component, error }
}

fn bug(kind: ComponentKind, component: &str, reason: &str) -> StartError {
    let error = BuildError::new("", reason, "this is a bug of Flumen: report it");
    StartError { kind, component: component.into(), error }
}

fn link_status(chain: &Chain) -> Vec<status::ComponentStatus> {
    chain.links().iter().map(|link| status::component(&link.metrics, link.state())).collect()
}

fn links(interceptors: Vec<Arc<dyn Interceptor>>, plans: &[InterceptorPlan]) -> Links {
    let link = |(interceptor, plan): (_, &InterceptorPlan)| Arc::new(Link::new(interceptor, plan));
    Arc::new(interceptors.into_iter().zip(plans).map(link).collect())
}

/// A lost acknowledgement would be processed again, with state that has seen it already.
/// State has to be in the commit of what was made with it, which a sink's commit is not.
pub(crate) fn check_stateless(sink: &SinkPlan) -> Result<(), StartError> {
    let found = sink.interceptors.iter().find(|plugin| plugin.keeps_state());
    found.map_or(Ok(()), |plugin| {
        let (kind, component) = (ComponentKind::Sink, sink.name.clone());
        Err(StartError { kind, component, error: stateful_sink(plugin) })
    })
}

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
pub(crate) fn wait_until(deadline: Instant, condition: impl Fn() -> bool) {
    while !condition() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
}
