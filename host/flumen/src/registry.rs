//! Which components there are: the one place where their specs meet the configuration.

use flumen_builtin::{bridge, sinks, sources};
use flumen_config::{CodecUse, Registry};
use flumen_kafka::channel::JournalOptions;
use flumen_kafka::log::LogOptions;
use flumen_pipeline::plan::{
    ChannelKind, ChannelPlan, InterceptorPlan, PipelinePlan, SecondaryKind, SinkPlan, SourcePlan,
};
use flumen_pipeline::{BuildError, DecoderLink, EncoderLink, Options, Sink, Source};
use flumen_plugin::PluginSlot;

/// The specs, for the configuration.
pub fn registry() -> Registry {
    Registry {
        sources: sources::sources().into_iter().map(|source| source.spec).collect(),
        sinks: sinks::sinks().into_iter().map(|sink| sink.spec).collect(),
        channels: vec![flumen_kafka::channel::SPEC],
        failovers: vec![flumen_kafka::log::SPEC],
        bridge: bridge::TABLES.to_vec(),
        decoders: sources::sources()
            .into_iter()
            .filter_map(|source| {
                let instead_of = source.codec?.instead_of;
                Some(CodecUse { kind: source.spec.kind, instead_of })
            })
            .collect(),
        encoders: sinks::sinks()
            .into_iter()
            .filter_map(|sink| {
                let instead_of = sink.codec?.instead_of;
                Some(CodecUse { kind: sink.spec.kind, instead_of })
            })
            .collect(),
    }
}

/// What the pipeline's Kafka journal is made of, if its channels are topics; an error has the channel's name.
pub fn kafka_journal(
    agent: &str,
    plan: &PipelinePlan,
) -> Result<Option<JournalOptions>, (String, BuildError)> {
    let mut channels = Vec::new();
    for channel in &plan.channels {
        let ChannelKind::Shared { options, .. } = &channel.kind else { continue };
        let readers = plan.sinks.iter().filter(|sink| sink.channel == channel.name);
        channels.push((channel.name.as_str(), options, readers.map(|sink| sink.name.as_str()).collect()));
    }
    if channels.is_empty() {
        return Ok(None);
    }
    // The configuration has seen that all are alike.
    let failover = plan.channels.iter().find_map(|channel| channel.failover.clone());
    let keeps_state = plan.interceptors.iter().any(InterceptorPlan::keeps_state);
    let made = JournalOptions::new(agent, &plan.name, &channels);
    made.map(|options| Some(JournalOptions { failover, keeps_state, ..options })).map_err(|(index, error)| {
        (channels.get(index).map(|(name, ..)| (*name).to_owned()).unwrap_or_default(), error)
    })
}

/// What the failover of the pipeline's channels is made of, if it is a topic; an error has the channel's name.
pub fn failover_topic(agent: &str, plan: &PipelinePlan) -> Result<Option<LogOptions>, (String, BuildError)> {
    let Some(channel) = plan.channels.iter().find(|channel| fails_over_to_kafka(channel)) else {
        return Ok(None);
    };
    let made = LogOptions::new(agent, &plan.name, &channel.failover_options);
    made.map(Some).map_err(|error| (channel.name.clone(), in_failover(error)))
}

fn fails_over_to_kafka(channel: &ChannelPlan) -> bool {
    channel.failover.as_ref().is_some_and(|failover| failover.kind == SecondaryKind::Kafka)
}

/// The error of an option that stands in `failover` of a channel.
fn in_failover(error: BuildError) -> BuildError {
    let option = match error.option.as_str() {
        "" => "failover".to_owned(),
        option => format!("failover.{option}"),
    };
    BuildError { option, ..error }
}

/// The same as [`check_files`] for the failover of a channel.
pub fn check_failover_files(channel: &ChannelPlan) -> Result<(), BuildError> {
    check_files(&channel.failover_options).map_err(in_failover)
}

/// Builds a source of the plan. Without its codec, if it has one, only to see whether its options are right.
pub fn build_source(plan: &SourcePlan, codec: Option<&DecoderLink>) -> Result<Box<dyn Source>, BuildError> {
    let found = sources::sources().into_iter().find(|source| source.spec.kind == plan.kind);
    let found = found.ok_or_else(|| unknown(&plan.kind))?;
    match (found.codec, codec) {
        (Some(takes), Some(codec)) => (takes.build)(&plan.options, codec.clone()),
        _ => (found.build)(&plan.options),
    }
}

/// Builds a sink of the plan. Without its codec, if it has one, only to see whether its options are right.
pub fn build_sink(plan: &SinkPlan, codec: Option<&EncoderLink>) -> Result<Box<dyn Sink>, BuildError> {
    let found = sinks::sinks().into_iter().find(|sink| sink.spec.kind == plan.kind);
    let found = found.ok_or_else(|| unknown(&plan.kind))?;
    match (found.codec, codec) {
        (Some(takes), Some(codec)) => (takes.build)(&plan.options, codec.clone()),
        _ => (found.build)(&plan.options),
    }
}

/// What a sink of the plan promises, and why if it is less than the sink alone would.
///
/// A sink that keeps its own cursor at its destination, on a channel that agents share: if the channel is on the same
/// cluster, its acknowledgement is in the sink's transaction. Else what it delivered and had not acknowledged when it died may be
/// delivered again by the agent that gets its partitions.
///
/// Of a plugin it is known when it is open.
pub fn delivery(
    pipeline: &PipelinePlan,
    plan: &SinkPlan,
    plugin: Option<&PluginSlot>,
) -> (&'static str, Option<&'static str>) {
    if plan.plugin.is_some() {
        return match plugin.is_some_and(PluginSlot::recovers) {
            true if is_shared(pipeline, plan) => (
                "at-least-once",
                Some("its channel is shared, and what another agent gets of it may come again"),
            ),
            true => ("exactly-once", None),
            false => ("at-least-once", Some("the plugin keeps no cursor at its destination")),
        };
    }
    let found = sinks::sinks().into_iter().find(|sink| sink.spec.kind == plan.kind);
    match found.map_or("unknown", |sink| (sink.delivery)(&plan.options)) {
        "exactly-once"
            if keeps_cursor(plan) && is_shared(pipeline, plan) && !is_same_cluster(pipeline, plan) =>
        {
            (
                "at-least-once",
                Some("its channel has other brokers, and one transaction cannot span two clusters"),
            )
        }
        promise => (promise, None),
    }
}

/// What becomes of what a sink has delivered, where a person may not expect it.
pub fn note(plan: &SinkPlan) -> Option<&'static str> {
    let by_event = plan.kind == "kafka" && plan.options.text_opt("timestamp") != Some("broker");
    by_event.then_some(
        "records have the times of their events: a topic deletes at once what is older than its retention.ms when it comes \
         (timestamp = \"broker\" gives them the time of sending)",
    )
}

/// What a sink cannot do in its place, whatever its own options are.
pub fn check_place(pipeline: &PipelinePlan, plan: &SinkPlan) -> Result<(), BuildError> {
    let lanes = plan.options.integer_opt("lanes").unwrap_or(1);
    if lanes > 1 && keeps_cursor(plan) && is_shared(pipeline, plan) {
        let reason = format!(
            "{lanes} lanes cannot read a channel of kind \"kafka\": its order changes with its readers"
        );
        return Err(BuildError::new("lanes", reason, "leave it out, and let more agents share the channel"));
    }
    Ok(())
}

/// True for the sinks that store the journal's mark at their destination.
fn keeps_cursor(plan: &SinkPlan) -> bool {
    plan.kind == "kafka"
}

fn is_shared(pipeline: &PipelinePlan, plan: &SinkPlan) -> bool {
    pipeline.channels.iter().any(|channel| channel.name == plan.channel && channel.is_shared())
}

/// Whether the lists of brokers have one in common. The agent asks the brokers themselves.
fn is_same_cluster(pipeline: &PipelinePlan, plan: &SinkPlan) -> bool {
    let channel = pipeline.channels.iter().find(|channel| channel.name == plan.channel);
    let Some(ChannelKind::Shared { options, .. }) = channel.map(|channel| &channel.kind) else {
        return false;
    };
    let brokers = |options: &Options| options.list_opt("brokers").map(<[String]>::to_vec).unwrap_or_default();
    let own = brokers(&plan.options);
    brokers(options).iter().any(|broker| own.contains(broker))
}

fn unknown(kind: &str) -> BuildError {
    BuildError::new("type", format!("there is no {kind:?}"), "see `flumen schema`")
}

/// Whether files that a component's options name are there and of the right kind. Building one touches no file.
pub fn check_files(options: &Options) -> Result<(), BuildError> {
    match options.list_opt("brokers").map(|_| flumen_kafka::Settings::from_options(options)) {
        Some(Ok(settings)) => settings.check_files(),
        // Wrong options are told by whoever builds the component.
        Some(Err(_)) | None => Ok(()),
    }
}
