//! The second half of a reload: what was prepared is taken over, one part after another. Each step says how it is undone; if
//! one fails, those before it are undone in reverse, and the old generation runs on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use flumen_config::Sources as ConfigFiles;
use flumen_pipeline::ComponentMetrics;
use flumen_pipeline::chain::{Link, Links};
use flumen_pipeline::deliver::MakeSink;
use flumen_pipeline::exchange::{ExchangeError, Makers, PipelineLinks};
use flumen_pipeline::feed::MakeSource;
use flumen_pipeline::plan::{AgentPlan, InterceptorPlan, PipelinePlan, SinkPlan, SourcePlan};
use flumen_pipeline::plan_diff::{Action, PipelineDiff, PlanDiff, Vanishing, VanishingPart};
use flumen_plugin::{PluginSlot, Role, SwapOutcome};

use super::disks::{self, Trouble};
use super::prepare::{Prepared, find, leaves_failover, words};
use super::refused;
use crate::agent::{Agent, Plugins, sink_maker, source_maker};
use crate::bridges::RunningBridge;
use crate::exit::Failure;
use crate::running::{Again, RunningPipeline};

/// How long a pipeline that restarts waits for its sinks before they are stopped at their next flush: a short backlog is
/// delivered, a long one stays in the journal for the successor.
const RESTART_GRACE: Duration = Duration::from_secs(1);

/// Makes parts with the plugins of the new plan, and on the way back with those of the old one.
struct PartMakers<'a>([(&'a PipelinePlan, &'a Plugins); 2]);

impl PartMakers<'_> {
    fn slot(&self, role: Role, part: &str, wanted: Option<&InterceptorPlan>) -> Option<Arc<PluginSlot>> {
        self.0.iter().find_map(|(plan, plugins)| plugins.part(plan, role, part, wanted?))
    }
}

impl Makers for PartMakers<'_> {
    fn source(&self, plan: &SourcePlan) -> (MakeSource, Option<Arc<ComponentMetrics>>) {
        source_maker(plan, self.slot(Role::Decoder, &plan.name, plan.codec.as_ref()))
    }

    fn sink(&self, plan: &SinkPlan) -> (MakeSink, Option<Arc<ComponentMetrics>>) {
        let encoder = self.slot(Role::Encoder, &plan.name, plan.codec.as_ref());
        sink_maker(plan, encoder, self.slot(Role::Sink, &plan.name, plan.plugin.as_ref()))
    }
}

/// A step that was done.
enum Step {
    /// Parts were exchanged: what ran before.
    Exchanged(Arc<RunningPipeline>, Arc<PipelinePlan>, PipelineLinks, Arc<Plugins>, u64),
    /// A pipeline restarted: the one before it, which has stopped.
    Restarted(Arc<RunningPipeline>),
    Stopped(Arc<RunningPipeline>),
    Started(Arc<RunningPipeline>),
    BridgeStopped(String),
    BridgeStarted(Arc<RunningBridge>),
}

/// What a reload works with.
struct Turn<'a> {
    agent: &'a Agent,
    old: Arc<AgentPlan>,
    old_files: Arc<ConfigFiles>,
    new: &'a AgentPlan,
    files: &'a ConfigFiles,
    generation: u64,
    drain: bool,
    steps: Vec<Step>,
    notes: Vec<String>,
}

impl Agent {
    pub(super) fn apply(&self, prepared: Prepared, drain: bool) -> Result<(PlanDiff, Vec<String>), Failure> {
        let Prepared { diff, plan, files, plugins, swaps, .. } = prepared;
        let mut turn = Turn {
            agent: self,
            old: self.plan(),
            old_files: self.files.lock().clone(),
            new: &plan,
            files: &files,
            generation: self.generation.load(Ordering::Acquire) + 1,
            drain,
            steps: Vec::new(),
            notes: Vec::new(),
        };
        match turn.run(&diff, &plugins) {
            Ok(()) => {
                let Turn { generation, mut notes, steps, .. } = turn;
                for step in &steps {
                    if let Step::Exchanged(running, ..) = step {
                        running.pipeline.retire_readers();
                    }
                }
                notes.extend(swaps.iter().filter_map(|(pipeline, slot)| swap(pipeline, slot)));
                if !diff.is_empty() || !swaps.is_empty() {
                    self.generation.store(generation, Ordering::Release);
                }
                let order: Vec<&str> = plan.pipelines.iter().map(|plan| plan.name.as_str()).collect();
                self.pipelines.lock().sort_by_key(|running| {
                    order.iter().position(|name| *name == running.pipeline.plan().name)
                });
                *self.plan.lock() = Arc::new(plan);
                *self.files.lock() = Arc::new(files);
                Ok((diff, notes))
            }
            Err(failure) => Err(turn.roll_back(failure)),
        }
    }
}

impl Turn<'_> {
    fn run(&mut self, diff: &PlanDiff, plugins: &[Option<Arc<Plugins>>]) -> Result<(), Failure> {
        let action = |name: &str| diff.pipeline(name).map_or(Action::Stay, |diff| diff.action);
        let new = self.new;
        let with_plugins =
            || new.pipelines.iter().zip(plugins).filter_map(|(plan, it)| Some((plan, it.as_ref()?)));
        let restarts = |name: &str| diff.pipeline(name).is_some_and(|diff| !diff.restart.is_empty());
        // Before anything is stopped, of any of them.
        for (plan, _) in with_plugins().filter(|(plan, _)| action(&plan.name) == Action::Change) {
            let all = self.agent.pipelines();
            let present = find(&all, &plan.name);
            if let Some(running) = present.filter(|it| restarts(&plan.name) || it.failure().is_some()) {
                self.may_restart(running, plan)?;
            }
        }
        for (plan, plugins) in with_plugins().filter(|(plan, _)| action(&plan.name) == Action::Change) {
            self.change(plan, plugins, restarts(&plan.name))?;
        }
        for running in self.agent.pipelines() {
            if action(&running.pipeline.plan().name) == Action::Stop {
                self.stop(&running)?;
            }
        }
        let bridge = |name: &str| diff.bridges.iter().find(|bridge| bridge.name == name).map(|it| it.action);
        for running in self.agent.bridges() {
            if matches!(bridge(running.name()), Some(Action::Stop | Action::Change)) {
                self.stop_bridge(&running)?;
            }
        }
        // Last, because they may need what those above have let go: a file, a port.
        for (plan, plugins) in with_plugins().filter(|(plan, _)| action(&plan.name) == Action::Start) {
            let running = self.started(plan, plugins)?;
            self.agent.pipelines.lock().push(running.clone());
            self.steps.push(Step::Started(running));
        }
        for plan in &new.bridges {
            if matches!(bridge(&plan.name), Some(Action::Start | Action::Change)) {
                let running = Arc::new(RunningBridge::start(plan, self.files)?);
                self.agent.bridges.lock().push(running.clone());
                self.steps.push(Step::BridgeStarted(running));
            }
        }
        Ok(())
    }

    /// A pipeline of the new plan.
    fn started(&self, plan: &PipelinePlan, plugins: &Arc<Plugins>) -> Result<Arc<RunningPipeline>, Failure> {
        let (plugins, memory) = (plugins.clone(), self.agent.memory());
        let before = self.old.pipelines.iter().find(|before| before.name == plan.name);
        RunningPipeline::start(self.new, (plan, before), plugins, self.files, memory, self.generation)
    }

    fn change(&mut self, plan: &PipelinePlan, plugins: &Arc<Plugins>, restarts: bool) -> Result<(), Failure> {
        let all = self.agent.pipelines();
        let running = find(&all, &plan.name).ok_or_else(|| refused("a pipeline that changes is gone"))?;
        if restarts || running.failure().is_some() {
            return self.restart(running, plan, plugins);
        }
        let (old_plan, old_links) = (running.pipeline.plan(), running.pipeline.links());
        if changes_a_sink(&old_plan, plan) && running.is_cut_off() {
            return self.restart_cut_off(running, plan, plugins);
        }
        let new_links = links(plan, plugins, &old_plan, &old_links);
        let old_plugins = running.plugins.lock().clone();
        let makers = PartMakers([(plan, plugins), (&old_plan, &old_plugins)]);
        let grace = self.grace();
        match running.pipeline.exchange(plan.clone(), &new_links, &makers, Some(grace)) {
            Ok(()) => {}
            Err(ExchangeError::Start(error)) => {
                let at = self.files.diagnostic_for(&plan.name, error.kind, &error.component, &error.error);
                return Err(Failure::Config(vec![at]));
            }
            Err(ExchangeError::Held(held)) => return Err(held_after(&plan.name, &held, grace)),
            Err(error @ (ExchangeError::Stuck { .. } | ExchangeError::Reader(_))) => {
                // One that is stuck will not go on, whatever is known against a restart.
                if matches!(error, ExchangeError::Reader(_)) {
                    self.may_restart(running, plan)?;
                }
                tracing::warn!(pipeline = plan.name, "{error}: the pipeline restarts as a whole");
                self.notes.push(format!("pipeline {}: {error}, so it restarted as a whole", plan.name));
                return self.restart(running, plan, plugins);
            }
        }
        *running.plugins.lock() = plugins.clone();
        let before = running.generation.swap(self.generation, Ordering::AcqRel);
        self.steps.push(Step::Exchanged(running.clone(), old_plan, old_links, old_plugins, before));
        Ok(())
    }

    /// An edit of sinks of which none can end by itself ([`RunningPipeline::is_cut_off`]): the pipeline restarts as a whole, which loses
    /// nothing that a restart of the one sink would keep, or it is said at once why not.
    fn restart_cut_off(
        &mut self,
        running: &Arc<RunningPipeline>,
        plan: &PipelinePlan,
        plugins: &Arc<Plugins>,
    ) -> Result<(), Failure> {
        let (name, why) = (&plan.name, why_away(running));
        if let Some(what) = ends_with(running, plan) {
            return Err(cannot(running, &what));
        }
        // Before that the journal would have to be opened again on the disk that is away.
        if !running.has_left(Instant::now() + RESTART_GRACE) {
            return Err(cannot(running, "no sink of it can restart while nothing takes its events"));
        }
        self.may_restart(running, plan)?;
        let note =
            format!("pipeline {name}: no sink of it can end by itself now ({why}): it restarted as a whole");
        tracing::warn!("{note}");
        self.notes.push(note);
        self.restart(running, plan, plugins)
    }

    /// Whether a restart as a whole can succeed and loses nothing, as far as that is known before anything is stopped.
    fn may_restart(&self, running: &RunningPipeline, plan: &PipelinePlan) -> Result<(), Failure> {
        running.wait_moved(plan, Instant::now() + self.grace());
        let name = &plan.name;
        // One that has failed has stopped by itself.
        let has_failed = running.failure().is_some();
        // What is still in it counts as nothing, since nobody knows it.
        if !has_failed
            && running.is_unopened()
            && let Some(what) = ends_with(running, plan)
        {
            return Err(cannot(running, &what));
        }
        let unsaved = running.unsaved_events();
        if !has_failed && unsaved > 0 {
            let what =
                format!("it would lose the {unsaved} events that are in the memory of its channels alone");
            return Err(cannot(running, &what));
        }
        // A failover whose disk has failed is left in a moment, unless that takes nothing either.
        if !has_failed && running.is_dead() && !running.has_left(Instant::now() + RESTART_GRACE) {
            return Err(cannot(running, "it could not start again"));
        }
        match disks::trouble(plan, &self.old.data_dir) {
            Some(Trouble { dir, error }) => Err(refused(format!(
                "pipeline {name}: it has to restart as a whole, and could not start again: {} takes nothing ({error}); mend its disk first",
                dir.display()
            ))),
            None => Ok(()),
        }
    }

    fn restart(
        &mut self,
        running: &Arc<RunningPipeline>,
        plan: &PipelinePlan,
        plugins: &Arc<Plugins>,
    ) -> Result<(), Failure> {
        // Whom a disk that is away holds delivers nothing, however long it is given.
        let grace = if running.is_cut_off() { RESTART_GRACE } else { self.grace() };
        // A failure that it had is its own: the successor begins at what is committed.
        running.stop(Instant::now() + grace).ok();
        running.wait_ended()?;
        self.steps.push(Step::Restarted(running.clone()));
        let held = running.held(plan);
        if !held.is_empty() {
            return Err(held_after(&plan.name, &held, grace));
        }
        let fresh = self.started(plan, plugins)?;
        self.replace(running, fresh);
        Ok(())
    }

    /// How long sinks that end may take to deliver what they still have to.
    fn grace(&self) -> Duration {
        if self.drain { self.old.drain_timeout.max(RESTART_GRACE) } else { RESTART_GRACE }
    }

    fn replace(&self, old: &Arc<RunningPipeline>, new: Arc<RunningPipeline>) {
        let name = old.pipeline.plan().name.clone();
        let mut pipelines = self.agent.pipelines.lock();
        pipelines.retain(|running| running.pipeline.plan().name != name);
        pipelines.push(new);
    }

    fn stop(&mut self, running: &Arc<RunningPipeline>) -> Result<(), Failure> {
        let (plan, limit) = (running.pipeline.plan(), self.old.drain_timeout);
        let left = running.stop(Instant::now() + limit).unwrap_or_else(|_| running.pipeline.left());
        running.wait_ended()?;
        self.agent.pipelines.lock().retain(|other| !Arc::ptr_eq(other, running));
        self.steps.push(Step::Stopped(running.clone()));
        if left > 0 {
            let note = format!(
                "pipeline {} stopped with {left} events that were not delivered within {} s; they stay in its journal and go out when it is configured again",
                plan.name,
                limit.as_secs()
            );
            tracing::warn!("{note}");
            self.notes.push(note);
        }
        Ok(())
    }

    fn stop_bridge(&mut self, running: &Arc<RunningBridge>) -> Result<(), Failure> {
        running.ask_to_stop();
        running.wait(Instant::now() + self.old.drain_timeout);
        self.agent.bridges.lock().retain(|other| !Arc::ptr_eq(other, running));
        self.steps.push(Step::BridgeStopped(running.name().to_owned()));
        Ok(())
    }

    /// Undoes what was done. What cannot be undone is part of the answer, and of that pipeline's status.
    fn roll_back(mut self, failure: Failure) -> Failure {
        let mut lost = Vec::new();
        while let Some(step) = self.steps.pop() {
            if let Err(error) = self.undo(step) {
                tracing::error!("a reload could not be taken back: {error}");
                lost.push(error);
            }
        }
        if lost.is_empty() {
            return failure;
        }
        let (_, text) = failure.text();
        refused(format!("{text}\nand it could not be taken back: {}", lost.join("; ")))
    }

    fn undo(&self, step: Step) -> Result<(), String> {
        match step {
            Step::Exchanged(running, plan, links, plugins, generation) => {
                let (new_plan, new_plugins) = (running.pipeline.plan(), running.plugins.lock().clone());
                let makers = PartMakers([(&plan, &plugins), (&new_plan, &new_plugins)]);
                let undone = running.pipeline.exchange((*plan).clone(), &links, &makers, None);
                running.pipeline.retire_readers();
                *running.plugins.lock() = plugins;
                running.generation.store(generation, Ordering::Release);
                match undone {
                    Ok(()) => Ok(()),
                    Err(ExchangeError::Stuck { .. }) => self.start_again(&running),
                    Err(error) => Err(error.to_string()),
                }
            }
            Step::Restarted(running) => {
                let all = self.agent.pipelines();
                let successor = find(&all, &running.pipeline.plan().name);
                if let Some(successor) = successor.filter(|successor| !Arc::ptr_eq(successor, &running)) {
                    successor.stop(Instant::now() + RESTART_GRACE).ok();
                    successor.wait_ended().map_err(|error| error.to_string())?;
                }
                self.start_again(&running)
            }
            Step::Stopped(running) => {
                self.agent.pipelines.lock().push(running.clone());
                self.start_again(&running)
            }
            Step::Started(running) => {
                self.agent.pipelines.lock().retain(|other| !Arc::ptr_eq(other, &running));
                running.stop(Instant::now() + RESTART_GRACE).ok();
                running.wait_ended().map_err(|error| error.to_string())
            }
            Step::BridgeStopped(name) => {
                let plan = self.old.bridges.iter().find(|plan| plan.name == name).ok_or("no such bridge")?;
                let running = RunningBridge::start(plan, &self.old_files).map_err(|error| error.text().1)?;
                self.agent.bridges.lock().push(Arc::new(running));
                Ok(())
            }
            Step::BridgeStarted(running) => {
                self.agent.bridges.lock().retain(|other| !Arc::ptr_eq(other, &running));
                running.ask_to_stop();
                running.wait(Instant::now() + self.old.drain_timeout);
                Ok(())
            }
        }
    }

    /// A pipeline that was stopped runs again, with its plan and its plugins.
    fn start_again(&self, running: &Arc<RunningPipeline>) -> Result<(), String> {
        let plan = running.pipeline.plan();
        // Stopped already, unless an exchange hangs: then this closes the journal under it.
        running.stop(Instant::now()).ok();
        if let Err(error) = running.wait_ended() {
            let reason = format!("pipeline {} does not start again: {error:#}", plan.name);
            *running.broken.lock() = Some(reason.clone());
            return Err(reason);
        }
        let (plugins, generation) =
            (running.plugins.lock().clone(), running.generation.load(Ordering::Acquire));
        let memory = self.agent.memory();
        let before = self.new.pipelines.iter().find(|before| before.name == plan.name);
        let again =
            RunningPipeline::start(&self.old, (&plan, before), plugins, &self.old_files, memory, generation);
        match again {
            Ok(again) => {
                self.replace(running, again);
                Ok(())
            }
            Err(failure) => Err(running.starts_later(&failure, Again { before: before.cloned() })),
        }
    }
}

/// What an edit takes from a pipeline of which nobody can say what is in that, or deliver it.
fn ends_with(running: &RunningPipeline, plan: &PipelinePlan) -> Option<String> {
    let gone = PipelineDiff::vanishing(&running.pipeline.plan(), plan);
    gone.iter().find_map(|Vanishing { channel, part }| match part {
        VanishingPart::Sink(sink) => {
            Some(format!("sink {sink} cannot deliver what it still has of channel {channel}"))
        }
        VanishingPart::Whole => Some(format!("what channel {channel} still has cannot be delivered")),
        // What is there is known, and held.
        VanishingPart::Failover => None,
    })
}

/// Why a disk is away, in the words of `status`.
fn why_away(running: &RunningPipeline) -> String {
    let why = running.pipeline.journal_status().waiting_for;
    why.unwrap_or_else(|| "the disk of its channel has failed".to_owned())
}

fn cannot(running: &RunningPipeline, what: &str) -> Failure {
    let (pipeline, why) = (running.pipeline.plan().name.clone(), why_away(running));
    // Not even its failover was read: that is in Kafka, and may be what is waited for.
    let is_opening = running.pipeline.journal_status().failover.as_deref() == Some("opening");
    let first = if is_opening { "the channel's disk, or Kafka," } else { "the channel's disk" };
    refused(format!("pipeline {pipeline}: {what} ({why}); mend {first} first"))
}

/// Whether a sink that runs is none of the new plan's, or one of that does not run: a late channel has no reader for it before it is opened
/// anew. Its own interceptors are exchanged under it.
fn changes_a_sink(old: &PipelinePlan, new: &PipelinePlan) -> bool {
    let made_from = |sink: &SinkPlan| SinkPlan { interceptors: Vec::new(), ..sink.clone() };
    let sinks = |plan: &PipelinePlan| plan.sinks.iter().map(made_from).collect::<Vec<_>>();
    let (old, new) = (sinks(old), sinks(new));
    old.iter().any(|sink| !new.contains(sink)) || new.iter().any(|sink| !old.contains(sink))
}

/// Sinks that would end did not deliver in time what they still have to.
fn held_after(pipeline: &str, held: &[(Vanishing, u64)], grace: Duration) -> Failure {
    let fix = match leaves_failover(held) {
        true => "mend the channel's disk, or Kafka, first: what is in the failover is moved then",
        false => "mend the sink first, or reload with --drain",
    };
    let held = words(pipeline, held);
    refused(format!("{held} after {} s; {fix}", grace.as_secs()))
}

/// Swaps a plugin whose new file was found fit a moment ago; says what came of it.
fn swap(pipeline: &str, slot: &PluginSlot) -> Option<String> {
    let name = &slot.plan().name;
    match slot.reload_now() {
        // Its own watch was quicker, or it was written once more.
        Ok(SwapOutcome::Unchanged) => None,
        Ok(SwapOutcome::Swapped { from, to }) => {
            Some(format!("pipeline {pipeline}: plugin {name} swapped, {from:.12} to {to:.12}"))
        }
        Err(error) => Some(format!("pipeline {pipeline}: plugin {name} is not swapped: {error}")),
    }
}

/// The links of a plan: those of interceptors that stay are the present ones, and one that takes another's place goes on with
/// its counters.
fn links(
    plan: &PipelinePlan,
    plugins: &Plugins,
    old: &PipelinePlan,
    present: &PipelineLinks,
) -> PipelineLinks {
    let chain =
        |sink: Option<&str>, new: &[InterceptorPlan], old: &[InterceptorPlan], slots: &[Arc<PluginSlot>]| {
            let link = |(interceptor, slot): (&InterceptorPlan, &Arc<PluginSlot>)| match present
                .find(sink, &interceptor.name)
            {
                Some(link) if old.contains(interceptor) => link.clone(),
                Some(link) => Arc::new(Link::in_place_of(link, slot.clone(), interceptor)),
                None => Arc::new(Link::new(slot.clone(), interceptor)),
            };
            Links::new(new.iter().zip(slots).map(link).collect())
        };
    let own = |sink: &str| {
        old.sinks.iter().find(|other| other.name == sink).map(|sink| sink.interceptors.as_slice())
    };
    let sinks: BTreeMap<String, Links> = (plan.sinks.iter().zip(&plugins.sinks))
        .map(|(sink, slots)| {
            let old = own(&sink.name).unwrap_or_default();
            (sink.name.clone(), chain(Some(&sink.name), &sink.interceptors, old, slots))
        })
        .collect();
    PipelineLinks { chain: chain(None, &plan.interceptors, &old.interceptors, &plugins.chain), sinks }
}
