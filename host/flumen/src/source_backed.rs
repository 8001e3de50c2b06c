//! What a pipeline with a source-backed channel may be made of, so that it delivers each event once: the rest is refused, with the
//! reason (groups of sinks are refused where the file is read). The reasons are those of [`flumen_journal::source_backed`].
//!
//! A failover changes nothing of that. While it is in use events are kept in it, and their sources need not be read again for them; they
//! come back into the channel as from a source, and what is in the channel is again read from where it came, the failover or the source.

use flumen_pipeline::plan::{ChannelKind, PipelinePlan, SinkPlan};
use flumen_pipeline::{BuildError, ComponentKind};

use crate::registry;

/// Sources that begin again where their position says, and give the same events.
const READ_AGAIN: &[&str] = &["tail", "kafka", "generator"];

/// Everything that does not fit, with kind and name of the part.
pub fn errors(plan: &PipelinePlan) -> Vec<(ComponentKind, String, BuildError)> {
    if !plan.channels.iter().any(|channel| channel.kind == ChannelKind::SourceBacked) {
        return Vec::new();
    }
    let mut wrong = Vec::new();
    let other_kind = "give the channel kind = \"file\" or \"spillable\"";
    for source in plan.sources.iter().filter(|source| !READ_AGAIN.contains(&source.kind.as_str())) {
        let reason = format!(
            "a source-backed channel keeps no events: after a crash they are read again, which a source of type `{}` cannot",
            source.kind
        );
        wrong.push((ComponentKind::Source, source.name.clone(), BuildError::new("type", reason, other_kind)));
    }
    let decides =
        |sink: &&SinkPlan| sink.kind == "kafka" && registry::delivery(plan, sink, None).0 == "exactly-once";
    let first = plan.sinks.iter().find(decides).map(|sink| sink.name.as_str());
    for sink in &plan.sinks {
        let lanes = sink.options.integer_opt("lanes").unwrap_or(1);
        let (option, reason, fix) = if sink.plugin.is_some() {
            let reason = "a plugin that delivers takes a batch in parts, and keeps its cursor at its destination: neither is known to what a source-backed channel reads again";
            ("plugin", reason.to_owned(), other_kind.to_owned())
        } else if !decides(&sink) {
            continue;
        } else if lanes > 1 {
            let reason = format!(
                "{lanes} lanes end their transactions one after the other: after a crash between two of them a source-backed channel has no events for those that are behind"
            );
            ("lanes", reason, format!("leave `lanes` out, or {other_kind}"))
        } else if let Some(first) = first.filter(|first| *first != sink.name) {
            let reason = format!(
                "it and {first} are exactly-once to Kafka, each in a transaction of its own: after a crash between the two a source-backed channel has no events for the one that is behind"
            );
            let fix = "make a pipeline of each (each reads its sources by itself), or set delivery = \"at-least-once\"";
            ("delivery", reason, fix.to_owned())
        } else {
            continue;
        };
        wrong.push((ComponentKind::Sink, sink.name.clone(), BuildError::new(option, reason, fix)));
    }
    wrong
}
