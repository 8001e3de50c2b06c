//! The first half of a reload: everything that can be known and made before anything is touched.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_config::Sources as ConfigFiles;
use flumen_pipeline::ComponentKind;
use flumen_pipeline::plan::{AgentPlan, InterceptorPlan, PipelinePlan};
use flumen_pipeline::plan_diff::{Action, PipelineDiff, PlanDiff, Vanishing, VanishingPart};
use flumen_plugin::{LoadError, PluginSlot, Role};

use super::refused;
use crate::agent::{Agent, Plugins, component_errors, open_parts, plugin_errors};
use crate::exit::Failure;
use crate::running::RunningPipeline;
use crate::{bridges, cmd};

/// A reload that may begin.
pub struct Prepared {
    /// What it does.
    pub diff: PlanDiff,
    /// What a person should know beside.
    pub notes: Vec<String>,
    pub(super) plan: AgentPlan,
    pub(super) files: ConfigFiles,
    /// Of each pipeline that starts or changes, by its place in the plan: its plugins, opened.
    pub(super) plugins: Vec<Option<Arc<Plugins>>>,
    /// Plugins that stay, and whose files are new: each with its pipeline.
    pub(super) swaps: Vec<(String, Arc<PluginSlot>)>,
}

/// How often it is looked whether a failover was moved, or is in use.
const MOVED_LOOK: Duration = Duration::from_millis(20);

/// Settings that are bound to what the process holds.
const BOUND: &[&str] = &["name", "data_dir", "plugin_dir"];

impl Agent {
    /// Reads, checks, and opens whatever would be new. `may_drain`: queues that would vanish may hold events; `with_plugins`:
    /// files of plugins that stay are looked at, too.
    pub(super) fn prepare(&self, may_drain: bool, with_plugins: bool) -> Result<Prepared, Failure> {
        let (plan, files) = cmd::load(&self.paths)?;
        let old = self.plan();
        let diff = PlanDiff::between(&old, &plan);
        let bound: Vec<&str> = diff.agent.iter().copied().filter(|name| BOUND.contains(name)).collect();
        if !bound.is_empty() {
            let settings = bound.join(" and ");
            return Err(refused(format!(
                "`{settings}` of the agent cannot change while it runs; restart it, or take the edit back"
            )));
        }
        let mut wrong = component_errors(&plan, &files);
        wrong.extend(bridges::errors(&plan, &files));
        let running = self.pipelines();
        let (mut plugins, mut swaps) = (Vec::new(), Vec::new());
        for pipeline in &plan.pipelines {
            let action = diff.pipeline(&pipeline.name).map(|diff| diff.action);
            let present = find(&running, &pipeline.name);
            let unfit = |name: &str, error: &LoadError| -> Vec<_> {
                let kind = ComponentKind::Interceptor;
                let errors = plugin_errors(error);
                errors.iter().map(|error| files.diagnostic_for(&pipeline.name, kind, name, error)).collect()
            };
            if action == Some(Action::Stay) {
                plugins.push(None);
                let slots = present.map(|present| present.plugins.lock().clone()).filter(|_| with_plugins);
                for slot in slots.iter().flat_map(|slots| slots.all()) {
                    match slot.check_file() {
                        Ok(false) => {}
                        Ok(true) => swaps.push((pipeline.name.clone(), slot.clone())),
                        Err(error) => wrong.extend(unfit(&slot.plan().name, &error)),
                    }
                }
                continue;
            }
            let mut open = |sink: Option<&str>, interceptors: &[InterceptorPlan]| {
                let mut slots = Vec::new();
                for interceptor in interceptors {
                    let kept = present.and_then(|present| present.slot(sink, interceptor));
                    let open = || {
                        self.host.slot_within(
                            Role::Interceptor,
                            interceptor.clone(),
                            &plan.plugin_dir,
                            Duration::ZERO,
                        )
                    };
                    match kept.map_or_else(open, Ok) {
                        Ok(slot) => slots.push(slot),
                        Err(error) => wrong.extend(unfit(&interceptor.name, &error)),
                    }
                }
                slots
            };
            let chain = open(None, &pipeline.interceptors);
            let sinks = pipeline.sinks.iter().map(|sink| open(Some(&sink.name), &sink.interceptors));
            let sinks = sinks.collect();
            let kept =
                present.filter(|_| diff.pipeline(&pipeline.name).is_some_and(|it| it.restart.is_empty()));
            let kept = kept.map(|present| (present.pipeline.plan(), present.plugins.lock().clone()));
            let kept = |role, part: &str, wanted: &InterceptorPlan| {
                kept.as_ref().and_then(|(plan, plugins)| plugins.part(plan, role, part, wanted))
            };
            let parts = open_parts(&self.host, pipeline, &plan.plugin_dir, &files, &mut wrong, &kept);
            plugins.push(Some(Arc::new(Plugins { chain, sinks, ..parts })));
        }
        if !wrong.is_empty() {
            return Err(Failure::Config(wrong));
        }
        let mut notes = held_back(&running, &plan, &diff, may_drain)?;
        for (pipeline, slot) in &swaps {
            notes.push(format!("pipeline {pipeline}: the file of plugin {} is new", slot.plan().name));
        }
        Ok(Prepared { diff, notes, plan, files, plugins, swaps })
    }
}

pub(super) fn find<'a>(running: &'a [Arc<RunningPipeline>], name: &str) -> Option<&'a Arc<RunningPipeline>> {
    running.iter().find(|running| running.pipeline.plan().name == name)
}

impl RunningPipeline {
    /// The slot that runs exactly this, if there is one: it stays.
    fn slot(&self, sink: Option<&str>, wanted: &InterceptorPlan) -> Option<Arc<PluginSlot>> {
        let (plan, plugins) = (self.pipeline.plan(), self.plugins.lock().clone());
        let slots = match sink {
            None => &plugins.chain,
            Some(sink) => plugins.sinks.get(plan.sinks.iter().position(|other| other.name == sink)?)?,
        };
        slots.iter().find(|slot| slot.plan() == wanted).cloned()
    }

    /// Queues that end with the present plan and hold events: each with their number. A failover that is in use is one whatever it
    /// holds: the positions of the sources are there.
    pub(super) fn held(&self, plan: &PipelinePlan) -> Vec<(Vanishing, u64)> {
        let status = self.pipeline.journal_status();
        let held = |vanishing: &Vanishing| {
            let channel = status.channels.iter().find(|channel| channel.name == vanishing.channel)?;
            let events = match &vanishing.part {
                VanishingPart::Whole => channel.events,
                VanishingPart::Sink(sink) => {
                    let reader = channel.readers.iter().find(|(name, _)| name == sink);
                    reader.map_or(0, |(_, cursor)| channel.head.saturating_sub(*cursor))
                }
                VanishingPart::Failover => {
                    return status.is_away().then_some(status.failover_events);
                }
            };
            (events > 0).then_some(events)
        };
        let gone = PipelineDiff::vanishing(&self.pipeline.plan(), plan).into_iter();
        gone.filter_map(|vanishing| held(&vanishing).map(|events| (vanishing, events))).collect()
    }
}

impl RunningPipeline {
    /// Where the new plan leaves a failover, waits until what is in it was moved: after a stop nothing moves it.
    pub(super) fn wait_moved(&self, plan: &PipelinePlan, until: Instant) {
        while leaves_failover(&self.held(plan)) && Instant::now() < until {
            std::thread::sleep(MOVED_LOOK);
        }
    }

    /// Whether its events go to a failover, which takes a moment when the disk has just failed: waits until then.
    pub(super) fn has_left(&self, until: Instant) -> bool {
        loop {
            let is_away = self.pipeline.journal_status().is_away();
            if is_away || Instant::now() >= until {
                return is_away;
            }
            std::thread::sleep(MOVED_LOOK);
        }
    }
}

/// What would be left behind, in words.
pub(super) fn words(pipeline: &str, held: &[(Vanishing, u64)]) -> String {
    let one = |(vanishing, events): &(Vanishing, u64)| {
        let channel = &vanishing.channel;
        match &vanishing.part {
            VanishingPart::Whole => format!("channel {channel} still holds {events} events"),
            VanishingPart::Sink(sink) => {
                format!("sink {sink} has not delivered {events} events of channel {channel}")
            }
            VanishingPart::Failover => format!(
                "the failover of channel {channel} is in use, and holds {events} events and the positions of the sources"
            ),
        }
    };
    format!("pipeline {pipeline}: {}", held.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// Whether what is held is in a failover.
pub(super) fn leaves_failover(held: &[(Vanishing, u64)]) -> bool {
    held.iter().any(|(vanishing, _)| vanishing.part == VanishingPart::Failover)
}

/// What a person does about what is held.
fn to_drain(is_away: bool) -> &'static str {
    match is_away {
        true => {
            "it is moved as soon as the channel's disk, or Kafka, is well (`failover` and `waiting_for` of the journal in `flumen status`): \
             `flumen reload --drain` waits for that, for `drain_timeout`"
        }
        false => "`flumen reload --drain` stops the sources and waits until all is delivered",
    }
}

/// Refuses an edit that would leave events behind, or notes that they have to be drained. A sink that ends while its pipeline runs
/// on is given a moment to deliver them ([`super::apply`]).
fn held_back(
    running: &[Arc<RunningPipeline>],
    plan: &AgentPlan,
    diff: &PlanDiff,
    may_drain: bool,
) -> Result<Vec<String>, Failure> {
    let mut notes = Vec::new();
    for new in &plan.pipelines {
        let Some(present) = find(running, &new.name) else { continue };
        let held = present.held(new);
        if held.is_empty() {
            continue;
        }
        let is_away = leaves_failover(&held);
        let held = words(&new.name, &held);
        if diff.pipeline(&new.name).is_some_and(|diff| diff.restart.is_empty()) {
            notes.push(format!("{held}: it delivers what is there before it ends"));
            continue;
        }
        if !may_drain {
            return Err(refused(format!("{held}, and would end with them; {}", to_drain(is_away))));
        }
        notes.push(format!("{held}: this has to be drained first (flumen reload --drain)"));
    }
    Ok(notes)
}
