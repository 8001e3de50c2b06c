//! `[channel.NAME]`: the queues between sources and sinks.

use flumen_pipeline::plan::{BatchPlan, ChannelKind, ChannelPlan, FailoverPlan};
use flumen_pipeline::{ComponentKind, Options};

use crate::code::Code;
use crate::named::{Named, named};
use crate::registry::Registry;
use crate::report::Report;
use crate::sources::{ComponentSpans, PipelineSpans};
use crate::specs;
use crate::table::TableReader;
use crate::tree::{Entry, Item, Span};

/// A channel and the place of its name.
pub(crate) struct Channel {
    pub plan: ChannelPlan,
    pub span: Span,
}

/// Reads `[channel.NAME]`; without one there is a channel `main`.
pub(crate) fn read_channels(
    entry: Option<&Entry>,
    batch: &BatchPlan,
    registry: &Registry,
    spans: &mut PipelineSpans,
    report: &mut Report<'_>,
) -> Vec<Channel> {
    // These are tables too, and no names of a channel.
    let is_table = |key: &str| matches!(key, "capacity" | "failover" | "properties");
    let is_own = |entry: &Entry| is_table(&entry.key) || !matches!(entry.value.item, Item::Table(_));
    let mut channels = Vec::new();
    for Named { name, node, span } in named("channel", entry, is_own, report) {
        let what = format!("channel `{name}`");
        if name == specs::QUARANTINE {
            let reason = "the channel `quarantine` exists already: events that failed go there";
            report.error(Code::ReservedName, span, reason, "give the channel another name");
        }
        let Some(mut table) = TableReader::new(&what, node, report) else { continue };
        let kind = table.options(specs::CHANNEL, report).options;
        let kind = kind.text_opt("kind").unwrap_or("file");
        if let Some(shared) = registry.channels.iter().find(|spec| spec.kind == kind) {
            let checked = table.options(shared.options, report);
            let failover = table.get("failover").and_then(|entry| read_failover(entry, report));
            let header = table.span().clone();
            table.finish(report);
            spans.add(ComponentKind::Channel, name, ComponentSpans { header, options: checked.spans });
            let kind = ChannelKind::Shared { kind: kind.to_owned(), options: checked.options, failover };
            let plan = ChannelPlan { kind, ..default_channel(name) };
            channels.push(Channel { plan, span: span.clone() });
            continue;
        }
        let capacity = table.get("capacity");
        let header = table.span().clone();
        table.finish(report);
        let (options, at) = match capacity {
            None => (Options::default(), header),
            Some(capacity) => {
                let table = TableReader::new("`capacity`", &capacity.value, report);
                let options = table.map(|mut table| {
                    let options = table.options(specs::CAPACITY, report).options;
                    table.finish(report);
                    options
                });
                (options.unwrap_or_default(), capacity.value.span.clone())
            }
        };
        let mut plan = default_channel(name);
        if let Some(events) = options.integer_opt("events").and_then(|events| u64::try_from(events).ok()) {
            plan.capacity_events = events;
        }
        plan.capacity_bytes = options.size_opt("bytes").unwrap_or(plan.capacity_bytes);
        if plan.capacity_events < batch.rows as u64 || plan.capacity_bytes < batch.bytes as u64 {
            let reason = format!("a full batch does not fit into the {what}");
            let fix = "raise its capacity, or lower `rows` and `bytes` in [batch]";
            report.error(Code::BatchTooLarge, &at, reason, fix);
        }
        channels.push(Channel { plan, span: span.clone() });
    }
    check_kinds(&channels, report);
    if channels.is_empty() {
        channels.push(Channel { plan: default_channel(specs::UNNAMED), span: 0..0 });
    }
    channels
}

fn default_channel(name: &str) -> ChannelPlan {
    ChannelPlan {
        name: name.into(),
        capacity_events: 10_000_000,
        capacity_bytes: 8 << 30,
        kind: ChannelKind::File,
    }
}

fn read_failover(entry: &Entry, report: &mut Report<'_>) -> Option<FailoverPlan> {
    let mut table = TableReader::new("`failover`", &entry.value, report)?;
    let options = table.options(specs::FAILOVER, report).options;
    table.finish(report);
    let number = |name| options.integer_opt(name).and_then(|number| u32::try_from(number).ok());
    Some(FailoverPlan {
        check_interval: options.duration_opt("check_interval")?,
        fail_after: number("fail_after")?,
        return_after: number("return_after")?,
        capacity_events: u64::try_from(options.integer_opt("events")?).ok()?,
        capacity_bytes: options.size_opt("bytes")?,
    })
}

/// One commit puts to all channels of a pipeline, and it cannot span two kinds of store, nor fail over for one of them only.
fn check_kinds(channels: &[Channel], report: &mut Report<'_>) {
    let word = |channel: &Channel| match &channel.plan.kind {
        ChannelKind::File => ("file".to_owned(), None),
        ChannelKind::Shared { kind, failover, .. } => (kind.clone(), *failover),
    };
    let Some(first) = channels.first() else { return };
    let (kind, failover) = word(first);
    for channel in channels.iter().skip(1) {
        let (own, own_failover) = word(channel);
        let (name, other) = (&channel.plan.name, &first.plan.name);
        if own != kind {
            let reason = format!(
                "the channel `{name}` is of kind `{own}`, but `{other}` is of kind `{kind}`: one commit puts to both"
            );
            let fix = "give all channels of a pipeline the same kind, or make two pipelines";
            report.error(Code::MixedChannels, &channel.span, reason, fix);
        } else if own_failover != failover {
            let reason =
                format!("the channels `{name}` and `{other}` differ in `failover`: they fail over together");
            report.error(
                Code::MixedChannels,
                &channel.span,
                reason,
                "give all channels of a pipeline the same `failover`",
            );
        }
    }
}

/// Reports the channels that none of `read` names.
pub(crate) fn check_read(channels: &[Channel], read: &[String], report: &mut Report<'_>) {
    for Channel { plan, span } in channels {
        let name = &plan.name;
        // A shared channel is read by other agents.
        if plan.is_shared() || read.contains(name) {
            continue;
        }
        let reason = format!("no sink reads the channel `{name}`: it would fill and hold the sources");
        let fix = format!("remove the channel, or add channel = \"{name}\" to a sink");
        report.error(Code::UnreadChannel, span, reason, fix);
    }
}
