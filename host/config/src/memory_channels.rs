//! Channels of kind `memory`, `spillable` and `source-backed`, and what `reliability` makes of channels.

use flumen_pipeline::Options;
use flumen_pipeline::plan::{BatchPlan, ChannelKind, ChannelPlan};
use flumen_pipeline::reliability::{DROP_AFTER, MEMORY_BYTES, MEMORY_EVENTS, Reliability};

use crate::code::Code;
use crate::report::Report;
use crate::specs;
use crate::table::{Checked, TableReader};
use crate::tree::{Entry, Span};

/// `reliability`, and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub word: Reliability,
}

/// Reads `reliability` at the top of a pipeline file.
pub(crate) fn read_reliability(top: &mut TableReader<'_>, report: &mut Report<'_>) -> Option<Wanted> {
    let options = top.options(specs::RELIABILITY, report).options;
    let given = options.text_opt("reliability")?;
    let word = Reliability::ALL.into_iter().find(|known| known.word() == given)?;
    Some(Wanted { word })
}

/// The kind of a channel: its own word, or the one that goes with `reliability`; two that contradict each other are an error.
pub(crate) fn kind_word<'a>(
    what: &str,
    own: &'a Checked,
    wanted: Option<&Wanted>,
    report: &mut Report<'_>,
) -> &'a str {
    let given = own.spans.get("kind").zip(own.options.text_opt("kind"));
    let Some(Wanted { word: wanted }) = wanted else { return given.map_or("file", |(_, kind)| kind) };
    let Some((span, kind)) = given else {
        return match wanted {
            Reliability::EndToEnd => "file",
            Reliability::StoreOnFailure => "spillable",
            Reliability::BestEffort => "memory",
        };
    };
    let makes = match kind {
        "memory" => Reliability::BestEffort,
        "spillable" => Reliability::StoreOnFailure,
        _ => Reliability::EndToEnd,
    };
    if makes != *wanted {
        let (makes, wanted) = (makes.word(), wanted.word());
        let reason = format!(
            "the {what} is of kind `{kind}`, which is {makes}, but `reliability` of the pipeline is {wanted}"
        );
        let fix = format!("remove `kind` here, or set reliability = \"{makes}\" at the top");
        report.error(Code::Reliability, span, reason, fix);
    }
    kind
}

/// A channel of one of the kinds in memory, from its table.
pub(crate) fn read_memory_channel<'a>(
    what: &str,
    kind: &str,
    plan: ChannelPlan,
    table: &mut TableReader<'a>,
    wanted: Option<&Wanted>,
    batch: &BatchPlan,
    report: &mut Report<'_>,
) -> ChannelPlan {
    let header = table.span().clone();
    if kind == "source-backed" {
        let (capacity_events, capacity_bytes) =
            read_room(what, "capacity", table.get("capacity"), &header, batch, report);
        return ChannelPlan { capacity_events, capacity_bytes, kind: ChannelKind::SourceBacked, ..plan };
    }
    if kind == "memory" {
        let own = table.options(specs::MEMORY_CHANNEL, report).options;
        let is_best_effort = wanted.is_some_and(|wanted| wanted.word == Reliability::BestEffort);
        let drop_after = own.duration_opt("drop_after").or(is_best_effort.then_some(DROP_AFTER));
        let (capacity_events, capacity_bytes) =
            read_room(what, "capacity", table.get("capacity"), &header, batch, report);
        return ChannelPlan {
            capacity_events,
            capacity_bytes,
            kind: ChannelKind::Memory { drop_after },
            ..plan
        };
    }
    let (memory_events, memory_bytes) =
        read_room(what, "memory", table.get("memory"), &header, batch, report);
    let kind = ChannelKind::Spillable { memory_events, memory_bytes };
    ChannelPlan { kind, ..plan }
}

/// Events and bytes of a table, which a full batch has to fit into.
pub(crate) fn read_room(
    what: &str,
    key: &str,
    entry: Option<&Entry>,
    header: &Span,
    batch: &BatchPlan,
    report: &mut Report<'_>,
) -> (u64, u64) {
    let table = entry.and_then(|entry| TableReader::new(format!("`{key}`"), &entry.value, report));
    let options = table.map_or_else(Options::default, |mut table| {
        let options = table.options(specs::MEMORY_CAPACITY, report).options;
        table.finish(report);
        options
    });
    let events = options.integer_opt("events").and_then(|events| u64::try_from(events).ok());
    let (events, bytes) =
        (events.unwrap_or(MEMORY_EVENTS), options.size_opt("bytes").unwrap_or(MEMORY_BYTES));
    if events < batch.rows as u64 || bytes < batch.bytes as u64 {
        let at = entry.map_or(header, |entry| &entry.value.span);
        let reason = format!("a full batch does not fit into the memory of the {what}");
        let fix =
            format!("raise `events` and `bytes` of its `{key}`, or lower `rows` and `bytes` in [batch]");
        report.error(Code::BatchTooLarge, at, reason, fix);
    }
    (events, bytes)
}

/// The channel of a pipeline that has none in its file.
pub(crate) fn only_channel(plan: ChannelPlan, wanted: Option<&Wanted>) -> ChannelPlan {
    let kind = wanted.map_or(ChannelKind::File, |wanted| wanted.word.kind());
    match kind {
        ChannelKind::Memory { .. } => {
            ChannelPlan { capacity_events: MEMORY_EVENTS, capacity_bytes: MEMORY_BYTES, kind, ..plan }
        }
        kind => ChannelPlan { kind, ..plan },
    }
}
