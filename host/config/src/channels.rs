//! `[channel.NAME]`: the queues between sources and sinks.

use flumen_pipeline::Options;
use flumen_pipeline::plan::{BatchPlan, ChannelPlan};

use crate::code::Code;
use crate::named::{Named, named};
use crate::report::Report;
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
    report: &mut Report<'_>,
) -> Vec<Channel> {
    // `capacity` is a table too, and no name of a channel.
    let is_own = |entry: &Entry| entry.key == "capacity" || !matches!(entry.value.item, Item::Table(_));
    let mut channels = Vec::new();
    for Named { name, node, span } in named("channel", entry, is_own, report) {
        let what = format!("channel `{name}`");
        if name == specs::QUARANTINE {
            let reason = "the channel `quarantine` exists already: events that failed go there";
            report.error(Code::ReservedName, span, reason, "give the channel another name");
        }
        let Some(mut table) = TableReader::new(&what, node, report) else { continue };
        table.options(specs::CHANNEL, report);
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
    if channels.is_empty() {
        channels.push(Channel { plan: default_channel(specs::UNNAMED), span: 0..0 });
    }
    channels
}

fn default_channel(name: &str) -> ChannelPlan {
    ChannelPlan { name: name.into(), capacity_events: 10_000_000, capacity_bytes: 8 << 30 }
}

/// Reports the channels that none of `read` names.
pub(crate) fn check_read(channels: &[Channel], read: &[String], report: &mut Report<'_>) {
    for Channel { plan: ChannelPlan { name, .. }, span } in channels {
        if read.contains(name) {
            continue;
        }
        let reason = format!("no sink reads the channel `{name}`: it would fill and hold the sources");
        let fix = format!("remove the channel, or add channel = \"{name}\" to a sink");
        report.error(Code::UnreadChannel, span, reason, fix);
    }
}
