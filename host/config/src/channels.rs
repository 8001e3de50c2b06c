//! `[channel.NAME]`: the queues between sources and sinks.

use flumen_pipeline::limits::KEEP_ALIVE;
use flumen_pipeline::plan::{BatchPlan, ChannelKind, ChannelPlan};
use flumen_pipeline::{ComponentKind, Options};

use crate::code::Code;
use crate::failover::read_failover;
use crate::memory_channels::{Wanted, kind_word, only_channel, read_memory_channel};
use crate::named::{Named, named};
use crate::registry::Registry;
use crate::report::Report;
use crate::size::format_size;
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
    wanted: Option<&Wanted>,
    registry: &Registry,
    spans: &mut PipelineSpans,
    report: &mut Report<'_>,
) -> Vec<Channel> {
    // These are tables too, and no names of a channel.
    let is_table = |key: &str| matches!(key, "capacity" | "memory" | "failover" | "properties");
    let is_own = |entry: &Entry| is_table(&entry.key) || !matches!(entry.value.item, Item::Table(_));
    let mut channels = Vec::new();
    for Named { name, node, span } in named("channel", entry, is_own, report) {
        let what = format!("channel `{name}`");
        if name == specs::QUARANTINE {
            let reason = "the channel `quarantine` exists already: events that failed go there";
            report.error(Code::ReservedName, span, reason, "give the channel another name");
        }
        let Some(mut table) = TableReader::new(&what, node, report) else { continue };
        let own = table.options(specs::CHANNEL, report);
        let keep_alive = own.options.duration_opt("keep_alive").unwrap_or(KEEP_ALIVE);
        let kind = kind_word(&what, &own, wanted, report);
        if let Some(shared) = registry.channels.iter().find(|spec| spec.kind == kind) {
            let checked = table.options(shared.options, report);
            let failover = read_failover(table.get("failover"), &what, kind, batch, registry, report);
            let header = table.span().clone();
            table.finish(report);
            let options = checked.spans.into_iter().chain(failover.spans).collect();
            spans.add(ComponentKind::Channel, name, ComponentSpans { header, options });
            let kind = ChannelKind::Shared { kind: kind.to_owned(), options: checked.options };
            let (failover, failover_options) = (failover.plan, failover.options);
            let plan = ChannelPlan { kind, keep_alive, failover, failover_options, ..default_channel(name) };
            channels.push(Channel { plan, span: span.clone() });
            continue;
        }
        let header = table.span().clone();
        if matches!(kind, "memory" | "source-backed") {
            let plan = ChannelPlan { keep_alive, ..default_channel(name) };
            let plan = read_memory_channel(&what, kind, plan, &mut table, wanted, batch, report);
            let failover = read_failover(table.get("failover"), &what, kind, batch, registry, report);
            table.finish(report);
            spans.add(ComponentKind::Channel, name, ComponentSpans { header, options: failover.spans });
            let (failover, failover_options) = (failover.plan, failover.options);
            let plan = ChannelPlan { failover, failover_options, ..plan };
            channels.push(Channel { plan, span: span.clone() });
            continue;
        }
        let capacity = table.get("capacity");
        let failover = read_failover(table.get("failover"), &what, kind, batch, registry, report);
        let kind = match kind {
            "spillable" => {
                let plan = default_channel(name);
                read_memory_channel(&what, kind, plan, &mut table, wanted, batch, report).kind
            }
            _ => ChannelKind::File,
        };
        table.finish(report);
        let places = ComponentSpans { header: header.clone(), options: failover.spans };
        spans.add(ComponentKind::Channel, name, places);
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
        let (failover, failover_options) = (failover.plan, failover.options);
        let mut plan = ChannelPlan { keep_alive, kind, failover, failover_options, ..default_channel(name) };
        if let Some(events) = options.integer_opt("events").and_then(|events| u64::try_from(events).ok()) {
            plan.capacity_events = events;
        }
        plan.capacity_bytes = options.size_opt("bytes").unwrap_or(plan.capacity_bytes);
        check_room(&what, (plan.capacity_events, plan.capacity_bytes), batch, &at, report);
        channels.push(Channel { plan, span: span.clone() });
    }
    check_kinds(&channels, report);
    if channels.is_empty() {
        let plan = only_channel(default_channel(specs::UNNAMED), wanted);
        channels.push(Channel { plan, span: 0..0 });
    }
    channels
}

fn default_channel(name: &str) -> ChannelPlan {
    ChannelPlan {
        name: name.into(),
        capacity_events: 10_000_000,
        capacity_bytes: 8 << 30,
        keep_alive: KEEP_ALIVE,
        kind: ChannelKind::File,
        failover: None,
        failover_options: Options::default(),
    }
}

/// A put waits until its channel is below its capacity. So a batch that is larger than all of it would go in whole and leave
/// the channel far over what it may hold.
pub(crate) fn check_room(
    what: &str,
    room: (u64, u64),
    batch: &BatchPlan,
    at: &Span,
    report: &mut Report<'_>,
) {
    let (rows, bytes) = (batch.rows as u64, batch.bytes as u64);
    let (events, size) = room;
    if events < rows {
        let reason =
            format!("a full batch of {rows} events does not fit into the {what}, which holds {events}");
        let fix = format!("set `events` to {rows} or more, or `rows` in [batch] to {events} or fewer");
        report.error(Code::BatchTooLarge, at, reason, fix);
    }
    if size < bytes {
        let (full, holds) = (format_size(bytes), format_size(size));
        let reason = format!("a full batch of {full} does not fit into the {what}, which holds {holds}");
        let fix = format!("set `bytes` to \"{full}\" or more, or `bytes` in [batch] to \"{holds}\" or less");
        report.error(Code::BatchTooLarge, at, reason, fix);
    }
}

/// One commit puts to all channels of a pipeline, and it cannot span two kinds of store, nor fail over for one of them only.
fn check_kinds(channels: &[Channel], report: &mut Report<'_>) {
    let Some(first) = channels.first() else { return };
    let kind = first.plan.kind.word();
    for channel in channels.iter().skip(1) {
        let own = channel.plan.kind.word();
        let (name, other) = (&channel.plan.name, &first.plan.name);
        if own != kind {
            let reason = format!(
                "the channel `{name}` is of kind `{own}`, but `{other}` is of kind `{kind}`: one commit puts to both"
            );
            let fix = "give all channels of a pipeline the same kind, or make two pipelines";
            report.error(Code::MixedChannels, &channel.span, reason, fix);
        } else if !channel.plan.has_failover_of(&first.plan) {
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
