//! The difference of two plans: what a reload would start, stop, change and leave alone. A plain value that is computed
//! before anything is touched, can be printed, and turned round ([`PlanDiff::flip`] is the way back).
//!
//! How a changed pipeline is taken over follows from it. Interceptors, sources and sinks are exchanged in place, each by
//! itself, and sinks come and go; a file channel's capacity is another number. What the journal is opened with (channels, its settings,
//! who reads a shared channel) is not exchanged: then the pipeline restarts as a whole, and `restart` says why. Whatever differs and is not named here restarts it, too: a setting that nobody thought of
//! must not be ignored.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use crate::component::Options;
use crate::plan::{
    AgentPlan, BridgePlan, ChannelKind, ChannelPlan, GroupPlan, InterceptorPlan, PipelinePlan, SecondaryKind,
    SinkPlan, SourcePlan, takes_over,
};

/// What becomes of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is new.
    Start,
    /// It is no longer there.
    Stop,
    /// It has other settings.
    Change,
    /// Nothing: it is not touched.
    Stay,
}

/// The difference of two agents' plans.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanDiff {
    /// Settings of the agent that differ.
    pub agent: Vec<&'static str>,
    /// All pipelines of both plans, by name.
    pub pipelines: Vec<PipelineDiff>,
    /// All bridges of both plans, by name.
    pub bridges: Vec<BridgeDiff>,
}

/// What becomes of a bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BridgeDiff {
    /// Its name.
    pub name: String,
    /// Start, stop, change or stay.
    pub action: Action,
}

/// What becomes of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PipelineDiff {
    /// Its name.
    pub name: String,
    /// Start, stop, change or stay.
    pub action: Action,
    /// Settings of the pipeline itself that differ and are taken over in place.
    pub settings: Vec<String>,
    /// Why it has to restart as a whole; empty: changed parts are exchanged while the others run on.
    pub restart: Vec<String>,
    /// Its parts: sources, interceptors, channels, sinks, each by name.
    pub components: Vec<ComponentDiff>,
}

/// What becomes of a part of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ComponentDiff {
    /// `source`, `interceptor`, `channel`, `sink` or `group`.
    pub kind: &'static str,
    /// Its name; of a sink's own interceptor `SINK/NAME`.
    pub name: String,
    /// Start, stop, change or stay.
    pub action: Action,
    /// The settings that differ.
    pub settings: Vec<String>,
}

/// A queue that a new plan has no more: what it holds would be left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vanishing {
    /// The channel.
    pub channel: String,
    /// What of it.
    pub part: VanishingPart,
}

/// What of a channel ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum VanishingPart {
    /// All of it, for whoever reads it.
    Whole,
    /// That this sink reads it.
    Sink(String),
    /// Where its events go while it takes none: with them, the positions of the sources are there then.
    Failover,
}

impl PlanDiff {
    /// What has to happen to come from `old` to `new`.
    pub fn between(old: &AgentPlan, new: &AgentPlan) -> PlanDiff {
        let different = [
            ("name", old.name != new.name),
            ("data_dir", old.data_dir != new.data_dir),
            ("plugin_dir", old.plugin_dir != new.plugin_dir),
            ("drain_timeout", old.drain_timeout != new.drain_timeout),
            ("watch", old.watch != new.watch),
            ("memory_max", old.memory_max_bytes != new.memory_max_bytes),
        ];
        let agent = different.into_iter().filter(|(_, is_different)| *is_different).map(|(name, _)| name);
        let pipelines = pairs(&old.pipelines, &new.pipelines, |plan: &PipelinePlan| plan.name.as_str());
        let bridges = pairs(&old.bridges, &new.bridges, |plan: &BridgePlan| plan.name.as_str());
        PlanDiff {
            agent: agent.collect(),
            pipelines: pipelines.into_iter().map(|(name, old, new)| pipeline(name, old, new)).collect(),
            bridges: (bridges.into_iter())
                .map(|(name, old, new)| BridgeDiff { name, action: action(old, new) })
                .collect(),
        }
    }

    /// The difference of an agent that does not run yet.
    pub fn start(new: &AgentPlan) -> PlanDiff {
        let nothing = AgentPlan { pipelines: Vec::new(), bridges: Vec::new(), ..new.clone() };
        PlanDiff::between(&nothing, new)
    }

    /// Whether nothing has to happen.
    pub fn is_empty(&self) -> bool {
        self.agent.is_empty()
            && self.pipelines.iter().all(|pipeline| pipeline.action == Action::Stay)
            && self.bridges.iter().all(|bridge| bridge.action == Action::Stay)
    }

    /// The way back.
    #[must_use]
    pub fn flip(mut self) -> PlanDiff {
        for pipeline in &mut self.pipelines {
            pipeline.action = pipeline.action.flip();
            pipeline.components.iter_mut().for_each(|part| part.action = part.action.flip());
        }
        self.bridges.iter_mut().for_each(|bridge| bridge.action = bridge.action.flip());
        self
    }

    /// The difference of one pipeline.
    pub fn pipeline(&self, name: &str) -> Option<&PipelineDiff> {
        self.pipelines.iter().find(|pipeline| pipeline.name == name)
    }
}

impl Action {
    fn flip(self) -> Action {
        match self {
            Action::Start => Action::Stop,
            Action::Stop => Action::Start,
            same => same,
        }
    }

    fn sign(self) -> char {
        match self {
            Action::Start => '+',
            Action::Stop => '-',
            Action::Change => '~',
            Action::Stay => '=',
        }
    }
}

impl PipelineDiff {
    /// What comes to an end with the old plan: channels of this agent that the new one does not have (a journal in memory takes the
    /// events of a file over, not the other way round; a source-backed one takes none, and leaves none), readers of them, and a failover that
    /// is elsewhere from now on, or nowhere.
    pub fn vanishing(old: &PipelinePlan, new: &PipelinePlan) -> Vec<Vanishing> {
        let mut found = Vec::new();
        for channel in old.channels.iter().filter(|channel| !channel.is_shared()) {
            let goes_on = |other: &&ChannelPlan| match (&channel.kind, &other.kind) {
                // What is in it will be read again.
                (ChannelKind::SourceBacked, _) => true,
                (_, ChannelKind::SourceBacked) => false,
                (old, new) => !old.is_in_memory() || new.is_in_memory(),
            };
            let same = new.channels.iter().find(|other| other.name == channel.name && !other.is_shared());
            let stays = same.is_some_and(|other| goes_on(&other));
            if !stays {
                found.push(Vanishing { channel: channel.name.clone(), part: VanishingPart::Whole });
                continue;
            }
            let stays = new.readers(&channel.name);
            let gone = old.readers(&channel.name).into_iter().filter(|reader| !stays.contains(reader));
            let part = |reader: &str| VanishingPart::Sink(reader.to_owned());
            found.extend(gone.map(|reader| Vanishing { channel: channel.name.clone(), part: part(reader) }));
        }
        // One for all channels of a pipeline.
        let with_failover = old.channels.iter().find(|channel| channel.failover.is_some());
        if let Some(channel) = with_failover.filter(|channel| !keeps_failover(channel, new)) {
            found.push(Vanishing { channel: channel.name.clone(), part: VanishingPart::Failover });
        }
        found
    }
}

/// Whether the new plan goes on in the failover of this channel: in the same directory or topic, and what is in it can be read.
fn keeps_failover(channel: &ChannelPlan, new: &PipelinePlan) -> bool {
    let other = new.channels.iter().find_map(|other| Some((other, other.failover.as_ref()?)));
    channel.failover.as_ref().zip(other).is_some_and(|(old, (other, new))| {
        let is_same_place = channel.is_shared() == other.is_shared() && old.dir == new.dir;
        let is_same_topic = old.kind != SecondaryKind::Kafka || channel.has_topic_of(other);
        is_same_place && takes_over(old.kind, new.kind) && is_same_topic
    })
}

fn action<T: PartialEq>(old: Option<&T>, new: Option<&T>) -> Action {
    match (old, new) {
        (None, _) => Action::Start,
        (_, None) => Action::Stop,
        (Some(old), Some(new)) if old == new => Action::Stay,
        _ => Action::Change,
    }
}

/// The union of two lists by name, in the order of the names: the same in both directions.
fn pairs<'a, T>(
    old: &'a [T],
    new: &'a [T],
    name: impl Fn(&T) -> &str,
) -> Vec<(String, Option<&'a T>, Option<&'a T>)> {
    let names: BTreeSet<&str> = old.iter().chain(new).map(&name).collect();
    let find = |list: &'a [T], wanted: &str| list.iter().find(|item| name(item) == wanted);
    names.into_iter().map(|wanted| (wanted.to_owned(), find(old, wanted), find(new, wanted))).collect()
}

fn pipeline(name: String, old: Option<&PipelinePlan>, new: Option<&PipelinePlan>) -> PipelineDiff {
    let none = |plan: &PipelinePlan| PipelinePlan {
        sources: Vec::new(),
        interceptors: Vec::new(),
        channels: Vec::new(),
        sinks: Vec::new(),
        groups: Vec::new(),
        ..plan.clone()
    };
    let (settings, restart, components) = match (old, new) {
        (Some(old), Some(new)) => (in_place(old, new), reasons(old, new), components(old, new)),
        (Some(old), None) => (Vec::new(), Vec::new(), components(old, &none(old))),
        (None, Some(new)) => (Vec::new(), Vec::new(), components(&none(new), new)),
        (None, None) => Default::default(),
    };
    PipelineDiff { name, action: action(old, new), settings, restart, components }
}

/// Settings of the pipeline itself that the running one can take over.
fn in_place(old: &PipelinePlan, new: &PipelinePlan) -> Vec<String> {
    let mut settings = Vec::new();
    if old.file != new.file {
        settings.push("file".to_owned());
    }
    let mut order = |of: String, old: &[InterceptorPlan], new: &[InterceptorPlan]| {
        let common = |list: &[InterceptorPlan], other: &[InterceptorPlan]| -> Vec<String> {
            let stays = |one: &&InterceptorPlan| other.iter().any(|two| two.name == one.name);
            list.iter().filter(stays).map(|one| one.name.clone()).collect()
        };
        if common(old, new) != common(new, old) {
            settings.push(format!("order of interceptors{of}"));
        }
    };
    order(String::new(), &old.interceptors, &new.interceptors);
    for (name, old, new) in pairs(&old.sinks, &new.sinks, |sink: &SinkPlan| sink.name.as_str()) {
        if let (Some(old), Some(new)) = (old, new) {
            order(format!(" of {name}"), &old.interceptors, &new.interceptors);
        }
    }
    settings
}

/// Why the journal has to be opened anew.
fn reasons(old: &PipelinePlan, new: &PipelinePlan) -> Vec<String> {
    let mut reasons = Vec::new();
    if !same_channels(old, new) {
        reasons.push("channels differ".to_owned());
    }
    if old.journal != new.journal {
        reasons.push("journal settings differ".to_owned());
    }
    if old.groups != new.groups {
        reasons.push("sink groups differ".to_owned());
    }
    let is_shared = |sink: Option<&SinkPlan>| {
        let is_its = |channel: &&ChannelPlan| sink.is_some_and(|sink| sink.channel == channel.name);
        old.channels.iter().chain(&new.channels).filter(is_its).any(ChannelPlan::is_shared)
    };
    for (name, old, new) in pairs(&old.sinks, &new.sinks, |sink: &SinkPlan| sink.name.as_str()) {
        match (old, new) {
            _ if !is_shared(old) && !is_shared(new) => {}
            (None, _) => reasons.push(format!("sink {name} begins to read a shared channel")),
            (_, None) => reasons.push(format!("sink {name} no longer reads a shared channel")),
            (Some(old), Some(new)) if old.channel != new.channel => {
                reasons.push(format!("sink {name} reads another channel, and one is shared"));
            }
            _ => {}
        }
    }
    let known = PipelinePlan {
        file: old.file.clone(),
        sources: old.sources.clone(),
        interceptors: old.interceptors.clone(),
        interceptor_threads: old.interceptor_threads,
        channels: old.channels.clone(),
        sinks: old.sinks.clone(),
        groups: old.groups.clone(),
        batch: old.batch,
        journal: old.journal.clone(),
        ..new.clone()
    };
    if known != *old {
        reasons.push("settings of the pipeline differ".to_owned());
    }
    reasons
}

/// Whether the open journal can go on with the new channels: all that differs is how much those in files hold, and how long puts wait.
fn same_channels(old: &PipelinePlan, new: &PipelinePlan) -> bool {
    let alike = |old: &ChannelPlan, new: &ChannelPlan| {
        let known = ChannelPlan { keep_alive: old.keep_alive, ..new.clone() };
        let in_file = old.kind == ChannelKind::File;
        let known = match in_file {
            true => ChannelPlan {
                capacity_events: old.capacity_events,
                capacity_bytes: old.capacity_bytes,
                ..known
            },
            false => known,
        };
        known == *old
    };
    old.channels.len() == new.channels.len()
        && old.channels.iter().zip(&new.channels).all(|(old, new)| alike(old, new))
}

fn components(old: &PipelinePlan, new: &PipelinePlan) -> Vec<ComponentDiff> {
    let mut all = Vec::new();
    let mut shared = Vec::new();
    if old.batch != new.batch {
        shared.push("batch".to_owned());
    }
    if old.interceptor_threads != new.interceptor_threads {
        shared.push("interceptor_threads".to_owned());
    }
    let keep_alive =
        |plan: &PipelinePlan| -> Vec<_> { plan.channels.iter().map(|it| it.keep_alive).collect() };
    if same_channels(old, new) && keep_alive(old) != keep_alive(new) {
        shared.push("keep_alive".to_owned());
    }
    for (name, old, new) in pairs(&old.sources, &new.sources, |plan: &SourcePlan| plan.name.as_str()) {
        let both = old.zip(new);
        let mut settings = both.map_or(Vec::new(), |(old, new)| options(&old.options, &new.options));
        settings.extend(both.filter(|(old, new)| old.kind != new.kind).map(|_| "type".to_owned()));
        settings.extend(both.filter(|(old, new)| old.codec != new.codec).map(|_| "codec".to_owned()));
        settings
            .extend(both.filter(|(old, new)| old.selector != new.selector).map(|_| "selector".to_owned()));
        settings.extend(both.iter().flat_map(|_| shared.iter().cloned()));
        settings.extend(
            (settings.is_empty() && both.is_some_and(|(old, new)| old != new)).then(|| "settings".to_owned()),
        );
        all.push(component("source", name, old.is_some(), new.is_some(), settings));
    }
    interceptors("", &old.interceptors, &new.interceptors, &mut all);
    for (name, old, new) in pairs(&old.channels, &new.channels, |plan| plan.name.as_str()) {
        let mut settings = Vec::new();
        if let (Some(old), Some(new)) = (old, new) {
            let is_same =
                (old.capacity_events, old.capacity_bytes) == (new.capacity_events, new.capacity_bytes);
            settings.extend((!is_same).then(|| "capacity".to_owned()));
            settings.extend((old.kind != new.kind).then(|| "kind".to_owned()));
            settings.extend((old.keep_alive != new.keep_alive).then(|| "keep_alive".to_owned()));
            settings.extend((!old.has_failover_of(new)).then(|| "failover".to_owned()));
            settings.extend((settings.is_empty() && old != new).then(|| "settings".to_owned()));
        }
        all.push(component("channel", name, old.is_some(), new.is_some(), settings));
    }
    for (name, old, new) in pairs(&old.sinks, &new.sinks, |plan: &SinkPlan| plan.name.as_str()) {
        let mut settings = Vec::new();
        if let (Some(old), Some(new)) = (old, new) {
            settings = options(&old.options, &new.options);
            settings.extend((old.kind != new.kind).then(|| "type".to_owned()));
            settings.extend((old.channel != new.channel).then(|| "channel".to_owned()));
            settings.extend((old.codec != new.codec).then(|| "codec".to_owned()));
            settings.extend((old.plugin != new.plugin).then(|| "plugin".to_owned()));
            let alike = SinkPlan { interceptors: new.interceptors.clone(), ..old.clone() };
            settings.extend((settings.is_empty() && alike != *new).then(|| "settings".to_owned()));
        }
        all.push(component("sink", name.clone(), old.is_some(), new.is_some(), settings));
        let chain = |plan: Option<&SinkPlan>| plan.map_or(Vec::new(), |plan| plan.interceptors.clone());
        interceptors(&format!("{name}/"), &chain(old), &chain(new), &mut all);
    }
    for (name, old, new) in pairs(&old.groups, &new.groups, |plan: &GroupPlan| plan.name.as_str()) {
        let mut settings = Vec::new();
        if let (Some(old), Some(new)) = (old, new) {
            let differ = [
                ("channel", old.channel != new.channel),
                ("sinks", old.sinks != new.sinks),
                ("kind", old.kind != new.kind),
                ("penalty", (old.penalty, old.penalty_max) != (new.penalty, new.penalty_max)),
            ];
            settings
                .extend(differ.iter().filter(|(_, differs)| *differs).map(|(name, _)| (*name).to_owned()));
        }
        all.push(component("group", name, old.is_some(), new.is_some(), settings));
    }
    all
}

fn interceptors(
    prefix: &str,
    old: &[InterceptorPlan],
    new: &[InterceptorPlan],
    all: &mut Vec<ComponentDiff>,
) {
    for (name, old, new) in pairs(old, new, |plan: &InterceptorPlan| plan.name.as_str()) {
        let mut settings = Vec::new();
        if let (Some(old), Some(new)) = (old, new) {
            let differ = [
                ("plugin", old.plugin != new.plugin),
                ("config", old.config != new.config),
                ("grant", old.grants != new.grants),
                ("on_reject", old.on_reject != new.on_reject),
                ("on_error", old.errors != new.errors),
                ("limits", old.limits != new.limits),
                ("egress", old.egress != new.egress),
            ];
            settings
                .extend(differ.iter().filter(|(_, differs)| *differs).map(|(name, _)| (*name).to_owned()));
            settings.extend((settings.is_empty() && old != new).then(|| "settings".to_owned()));
        }
        all.push(component("interceptor", format!("{prefix}{name}"), old.is_some(), new.is_some(), settings));
    }
}

fn component(
    kind: &'static str,
    name: String,
    was: bool,
    will_be: bool,
    settings: Vec<String>,
) -> ComponentDiff {
    let action = match (was, will_be) {
        (false, _) => Action::Start,
        (_, false) => Action::Stop,
        _ if settings.is_empty() => Action::Stay,
        _ => Action::Change,
    };
    ComponentDiff { kind, name, action, settings }
}

/// The names of options that differ. Their values may be secrets.
fn options(old: &Options, new: &Options) -> Vec<String> {
    let names: BTreeSet<&String> = old.0.keys().chain(new.0.keys()).collect();
    names.into_iter().filter(|name| old.0.get(*name) != new.0.get(*name)).cloned().collect()
}

impl fmt::Display for PlanDiff {
    /// A line for each part: `+` starts, `-` stops, `~` changes, `=` stays. Of what starts, stops or stays as a whole the
    /// parts are not listed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for setting in &self.agent {
            writeln!(f, "~ agent {setting}")?;
        }
        for pipeline in &self.pipelines {
            write!(f, "{pipeline}")?;
        }
        for bridge in &self.bridges {
            writeln!(f, "{} bridge {}", bridge.action.sign(), bridge.name)?;
        }
        if self.is_empty() { writeln!(f, "no change") } else { Ok(()) }
    }
}

impl fmt::Display for PipelineDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pipeline {}", self.action.sign(), self.name)?;
        if !self.settings.is_empty() {
            write!(f, " ({})", self.settings.join(", "))?;
        }
        match self.restart.as_slice() {
            [] => writeln!(f)?,
            reasons => writeln!(f, ": restarts as a whole, {}", reasons.join(", "))?,
        }
        if self.action != Action::Change {
            return Ok(());
        }
        for part in &self.components {
            write!(f, "  {} {} {}", part.action.sign(), part.kind, part.name)?;
            if !part.settings.is_empty() {
                write!(f, " ({})", part.settings.join(", "))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "plan_diff_tests.rs"]
mod tests;
