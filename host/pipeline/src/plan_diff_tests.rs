//! What a plan's difference says, and that it is the same in both directions.

use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::component::Value;
use crate::limits::KEEP_ALIVE;
use crate::plan::{
    BatchPlan, ChannelKind, ChannelPlan, ErrorPlan, FailoverPlan, GroupKind, GroupPlan, JournalPlan,
    OnReject, PluginLimits, SelectorPlan,
};

fn interceptor(name: &str, config: u8) -> InterceptorPlan {
    InterceptorPlan {
        name: name.into(),
        plugin: name.into(),
        config: format!("{{\"n\":{config}}}"),
        grants: Vec::new(),
        on_reject: OnReject::Quarantine,
        errors: ErrorPlan::default(),
        limits: PluginLimits::default(),
        egress: None,
    }
}

fn options(value: u8) -> Options {
    Options([("path".to_owned(), Value::Text(format!("secret{value}")))].into())
}

fn sink(name: &str, channel: &str, value: u8) -> SinkPlan {
    SinkPlan {
        name: name.into(),
        kind: "file".into(),
        channel: channel.into(),
        interceptors: Vec::new(),
        codec: None,
        options: options(value),
        plugin: None,
    }
}

fn channel(name: &str, capacity_events: u64) -> ChannelPlan {
    ChannelPlan {
        name: name.into(),
        capacity_events,
        capacity_bytes: 1 << 30,
        keep_alive: KEEP_ALIVE,
        kind: ChannelKind::File,
        failover: None,
        failover_options: Options::default(),
    }
}

fn plan(name: &str) -> PipelinePlan {
    PipelinePlan {
        name: name.into(),
        file: PathBuf::from(format!("{name}.toml")),
        sources: vec![SourcePlan {
            name: "in".into(),
            kind: "tail".into(),
            codec: None,
            options: options(0),
            selector: SelectorPlan::default(),
        }],
        interceptors: vec![interceptor("a", 0), interceptor("b", 0)],
        interceptor_threads: 1,
        channels: vec![channel("main", 1_000)],
        sinks: vec![sink("out", "main", 0)],
        groups: Vec::new(),
        batch: BatchPlan::default(),
        journal: JournalPlan::default(),
    }
}

fn agent(pipelines: Vec<PipelinePlan>) -> AgentPlan {
    AgentPlan {
        name: "test".into(),
        data_dir: "data".into(),
        plugin_dir: "plugins".into(),
        drain_timeout: Duration::from_secs(30),
        watch: true,
        memory_max_bytes: None,
        pipelines,
        bridges: Vec::new(),
    }
}

/// The difference that one edit of a pipeline makes, and how it prints.
fn edit(change: impl FnOnce(&mut PipelinePlan)) -> (PipelineDiff, String) {
    let (old, mut new) = (plan("web"), plan("web"));
    change(&mut new);
    let diff = PlanDiff::between(&agent(vec![old]), &agent(vec![new]));
    let text = diff.to_string();
    (diff.pipelines.into_iter().next().unwrap(), text)
}

#[test]
fn another_memory_budget_touches_no_pipeline() {
    let old = agent(vec![plan("a")]);
    let new = AgentPlan { memory_max_bytes: Some(1 << 30), ..old.clone() };
    let diff = PlanDiff::between(&old, &new);
    assert_eq!((diff.agent.as_slice(), diff.is_empty()), (["memory_max"].as_slice(), false));
    assert!(diff.pipelines.iter().all(|pipeline| pipeline.action == Action::Stay));
}

#[test]
fn equal_plans_touch_nothing() {
    let both = agent(vec![plan("a"), plan("b")]);
    let diff = PlanDiff::between(&both, &both.clone());
    assert!(diff.is_empty());
    assert_eq!(diff.to_string(), "= pipeline a\n= pipeline b\nno change\n");
}

#[test]
fn what_is_new_starts_and_what_is_gone_stops() {
    let (old, new) = (agent(vec![plan("a"), plan("b")]), agent(vec![plan("b"), plan("c")]));
    assert_eq!(PlanDiff::between(&old, &new).to_string(), "- pipeline a\n= pipeline b\n+ pipeline c\n");
    assert_eq!(PlanDiff::start(&new).to_string(), "+ pipeline b\n+ pipeline c\n");
}

#[test]
fn interceptors_sources_and_sinks_are_exchanged_in_place() {
    let (diff, text) = edit(|plan| {
        plan.interceptors = vec![interceptor("b", 1), interceptor("c", 0)];
        plan.sources[0].options = options(1);
        plan.sinks[0].options = options(1);
    });
    assert!(diff.restart.is_empty(), "{text}");
    assert_eq!(
        text,
        "~ pipeline web\n  ~ source in (path)\n  - interceptor a\n  ~ interceptor b (config)\n  + interceptor c\n  = channel main\n  ~ sink out (path)\n"
    );
    assert!(!text.contains("secret"), "a value is printed");
    let (diff, text) = edit(|plan| plan.interceptors.reverse());
    assert_eq!((diff.action, diff.restart.len()), (Action::Change, 0), "{text}");
    assert!(text.contains("order of interceptors"), "{text}");
    let (diff, _) = edit(|plan| plan.sinks[0].interceptors.push(interceptor("d", 0)));
    let parts: Vec<_> = diff.components.iter().map(|part| (part.name.as_str(), part.action)).collect();
    assert!(parts.contains(&("out", Action::Stay)) && parts.contains(&("out/d", Action::Start)));
}

#[test]
fn sinks_come_and_go_in_place() {
    let (diff, text) = edit(|plan| {
        plan.sinks = vec![sink("new", "main", 0)];
        plan.sinks[0].codec = Some(interceptor("codec", 0));
    });
    assert!(diff.restart.is_empty(), "{text}");
    assert!(text.contains("  + sink new\n  - sink out\n"), "{text}");
}

#[test]
fn channels_and_the_journal_need_a_restart_and_so_do_readers_of_a_shared_channel() {
    type Edit = fn(&mut PipelinePlan);
    let shared = |plan: &mut PipelinePlan| {
        let mut shared = channel("shared", 1_000);
        shared.kind = ChannelKind::Shared { kind: "kafka".into(), options: Options::default() };
        plan.channels.push(shared);
        plan.sinks.push(sink("far", "shared", 0));
    };
    let edits: [(&str, Edit); 6] = [
        ("sink groups differ", |plan| {
            plan.groups.push(GroupPlan {
                name: "all".into(),
                channel: "main".into(),
                sinks: vec!["out".into(), "far".into()],
                kind: GroupKind::Failover,
                penalty: Duration::from_secs(1),
                penalty_max: Duration::from_secs(1),
            });
        }),
        ("channels differ", |plan| plan.channels.push(channel("more", 1))),
        ("journal settings differ", |plan| plan.journal.durable = false),
        ("sink more begins to read a shared channel", |plan| plan.sinks.push(sink("more", "shared", 0))),
        ("sink far no longer reads a shared channel", |plan| plan.sinks[1].name = "new".into()),
        ("sink far reads another channel, and one is shared", |plan| plan.sinks[1].channel = "main".into()),
    ];
    for (reason, change) in edits {
        let (mut old, mut new) = (plan("web"), plan("web"));
        shared(&mut old);
        shared(&mut new);
        change(&mut new);
        let diff = PlanDiff::between(&agent(vec![old]), &agent(vec![new]));
        let (text, diff) = (diff.to_string(), &diff.pipelines[0]);
        assert!(diff.restart.iter().any(|found| found == reason), "{reason}: {text}");
    }
}

#[test]
fn selectors_capacities_and_keep_alive_are_taken_over_in_place() {
    type Edit = fn(&mut PipelinePlan);
    let edits: [(&str, Edit); 4] = [
        ("  ~ source in (selector)\n", |plan| plan.sources[0].selector.optional = ["main".to_owned()].into()),
        ("  ~ channel main (capacity)\n", |plan| plan.channels[0].capacity_events = 1),
        ("  ~ channel main (capacity)\n", |plan| plan.channels[0].capacity_bytes = 1),
        ("  ~ source in (keep_alive)\n", |plan| plan.channels[0].keep_alive = Duration::from_secs(9)),
    ];
    for (line, change) in edits {
        let (old, mut new) = (plan("web"), plan("web"));
        change(&mut new);
        let diff = PlanDiff::between(&agent(vec![old]), &agent(vec![new]));
        let (text, diff) = (diff.to_string(), &diff.pipelines[0]);
        assert!(diff.restart.is_empty() && text.contains(line), "{text}");
    }
}

#[test]
fn queues_that_vanish_are_named() {
    let mut old = plan("web");
    old.channels.push(channel("side", 10));
    old.sinks.push(sink("archive", "main", 0));
    old.sinks.push(sink("aside", "side", 0));
    let mut new = old.clone();
    assert!(PipelineDiff::vanishing(&old, &new).is_empty());
    new.channels.pop();
    new.sinks = vec![sink("out", "main", 0)];
    let gone = |channel: &str, part| Vanishing { channel: channel.into(), part };
    let archive = VanishingPart::Sink("archive".into());
    assert_eq!(
        PipelineDiff::vanishing(&old, &new),
        [gone("main", archive), gone("side", VanishingPart::Whole)]
    );
    assert!(PipelineDiff::vanishing(&new, &old).is_empty());
}

/// A plan whose channel fails over to this kind in a directory.
fn with_failover(kind: SecondaryKind, dir: &str) -> PipelinePlan {
    let mut plan = plan("web");
    plan.channels[0].failover = Some(FailoverPlan {
        kind,
        dir: Some(dir.into()),
        check_interval: Duration::from_secs(1),
        fail_after: 3,
        return_after: 3,
        capacity_events: 10,
        capacity_bytes: 10,
        memory_events: 0,
        memory_bytes: 0,
    });
    plan
}

/// The same with a topic.
fn with_topic(topic: &str, brokers: &[&str]) -> PipelinePlan {
    let mut plan = with_failover(SecondaryKind::Kafka, "");
    let channel = &mut plan.channels[0];
    channel.failover.as_mut().unwrap().dir = None;
    let brokers = brokers.iter().map(|broker| (*broker).to_owned()).collect();
    channel.failover_options.0.insert("brokers".into(), Value::TextList(brokers));
    if !topic.is_empty() {
        channel.failover_options.0.insert("topic".into(), Value::Text(topic.into()));
    }
    plan
}

/// Whether the failover is left, and nothing else.
fn leaves_failover(old: &PipelinePlan, new: &PipelinePlan) -> bool {
    let found = PipelineDiff::vanishing(old, new);
    let failover = Vanishing { channel: "main".into(), part: VanishingPart::Failover };
    assert!(found.is_empty() || found == [failover], "{found:?}");
    !found.is_empty()
}

#[test]
fn a_failover_vanishes_unless_the_new_plan_goes_on_in_its_place() {
    let (file, memory, spillable) = (SecondaryKind::File, SecondaryKind::Memory, SecondaryKind::Spillable);
    let (old, none) = (with_failover(file, "/b"), plan("web"));
    let mut slower = old.clone();
    slower.channels[0].failover.as_mut().unwrap().fail_after = 9;
    let leaves = leaves_failover;
    assert!(!leaves(&old, &old) && !leaves(&old, &slower) && !leaves(&none, &old));
    assert!(leaves(&old, &none) && leaves(&old, &with_failover(file, "/c")));
    // What is in a file is taken into memory, not the other way round.
    for in_memory in [memory, spillable] {
        let other = with_failover(in_memory, "/b");
        assert!(!leaves(&old, &other) && leaves(&other, &old) && leaves(&other, &none));
        assert!(!leaves(&other, &with_failover(memory, "/b")));
        assert!(!leaves(&other, &with_failover(spillable, "/b")));
        assert!(leaves(&other, &with_failover(spillable, "/c")));
    }
    let diff = super::pipeline("web".into(), Some(&old), Some(&none));
    assert_eq!(diff.restart, ["channels differ"]);
    assert!(diff.components.iter().any(|part| part.kind == "channel" && part.settings == ["failover"]));
}

#[test]
fn a_failover_in_a_topic_vanishes_unless_it_is_the_same_one_of_the_same_cluster() {
    let leaves = leaves_failover;
    let old = with_topic("t", &["a:9092", "b:9092"]);
    let unnamed = with_topic("", &["a:9092"]);
    let mut more = old.clone();
    more.channels[0].failover_options.0.insert("tls".into(), Value::Bool(true));
    assert!(!leaves(&old, &old) && !leaves(&old, &more) && !leaves(&unnamed, &unnamed));
    // Brokers come and go: one that stays tells of the others.
    assert!(!leaves(&old, &with_topic("t", &["b:9092", "c:9092"])));
    assert!(leaves(&old, &with_topic("t", &["c:9092"])) && leaves(&old, &with_topic("u", &["a:9092"])));
    assert!(leaves(&old, &unnamed) && leaves(&unnamed, &with_topic("t", &["a:9092"])));
    for kind in [SecondaryKind::File, SecondaryKind::Memory, SecondaryKind::Spillable] {
        let local = with_failover(kind, "/b");
        assert!(leaves(&old, &local) && leaves(&local, &old));
    }
    assert!(leaves(&old, &plan("web")) && !leaves(&plan("web"), &old));
    let diff = super::pipeline("web".into(), Some(&old), Some(&more));
    assert_eq!(diff.restart, ["channels differ"]);
    assert!(diff.components.iter().any(|part| part.kind == "channel" && part.settings == ["failover"]));
}

#[test]
fn a_channel_that_changes_its_kind_vanishes_unless_the_new_one_takes_its_events_over() {
    let (memory, spillable) = (
        ChannelKind::Memory { drop_after: None },
        ChannelKind::Spillable { memory_events: 10_000, memory_bytes: 1 << 20 },
    );
    let all = [ChannelKind::File, memory, spillable, ChannelKind::SourceBacked];
    let vanish = |old: &ChannelKind, new: &ChannelKind| {
        let with = |kind: &ChannelKind| {
            let mut plan = plan("web");
            plan.channels[0].kind = kind.clone();
            plan
        };
        !PipelineDiff::vanishing(&with(old), &with(new)).is_empty()
    };
    let (file, in_memory, late) = (&all[0], &all[1..3], &all[3]);
    for one in in_memory {
        assert!(!vanish(file, one) && vanish(one, file) && vanish(one, late) && !vanish(late, one));
        assert!(in_memory.iter().all(|other| !vanish(one, other)));
    }
    assert!(vanish(file, late) && !vanish(late, file));
    assert!(all.iter().all(|kind| !vanish(kind, kind)));
}

prop_compose! {
    fn some_plan(name: &'static str)(
        interceptors in proptest::sample::subsequence(vec!["a", "b", "c"], 0..=3),
        config in 0..2u8,
        sinks in proptest::sample::subsequence(vec!["x", "y"], 1..=2),
        value in 0..2u8,
        capacity in 1..3u64,
        threads in 1..3usize,
    ) -> PipelinePlan {
        PipelinePlan {
            interceptors: interceptors.into_iter().map(|name| interceptor(name, config)).collect(),
            sinks: sinks.into_iter().map(|name| sink(name, "main", value)).collect(),
            channels: vec![channel("main", capacity)],
            interceptor_threads: threads,
            ..plan(name)
        }
    }
}

fn some_agent() -> impl Strategy<Value = AgentPlan> {
    let pipelines = (proptest::option::of(some_plan("p")), proptest::option::of(some_plan("q")));
    pipelines.prop_map(|(p, q)| agent(p.into_iter().chain(q).collect()))
}

proptest! {
    /// The way back is the difference in the other direction, and a difference is empty only between equal plans.
    #[test]
    fn a_difference_can_be_turned_round(old in some_agent(), new in some_agent()) {
        let (there, mut back) = (PlanDiff::between(&old, &new), PlanDiff::between(&new, &old));
        prop_assert_eq!(there.is_empty(), old == new);
        let mut flipped = there.flip();
        // The reasons of a restart are told in the words of their direction.
        let strip = |diff: &mut PlanDiff| diff.pipelines.iter_mut().for_each(|pipeline| {
            pipeline.restart.truncate(usize::from(!pipeline.restart.is_empty()));
            pipeline.restart.iter_mut().for_each(String::clear);
        });
        strip(&mut flipped);
        strip(&mut back);
        prop_assert_eq!(flipped, back);
    }
}
