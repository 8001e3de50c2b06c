//! `failover` of a channel: what takes its events while it takes none.

use flumen_pipeline::plan::{BatchPlan, FailoverPlan, SecondaryKind};

use crate::channels::check_room;
use crate::code::Code;
use crate::report::Report;
use crate::specs;
use crate::table::TableReader;
use crate::tree::{Entry, Span};

/// Where a channel keeps its events, as far as that says what it may fail over to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Primary {
    /// On a disk of this machine.
    File,
    /// There too, but in memory first.
    Spillable,
    Memory,
    SourceBacked,
    Shared,
}

fn primary(kind: &str) -> Primary {
    match kind {
        "file" => Primary::File,
        "spillable" => Primary::Spillable,
        "memory" => Primary::Memory,
        "source-backed" => Primary::SourceBacked,
        _ => Primary::Shared,
    }
}

/// Reads `failover` of a channel of this kind; refuses the pairs that are not sound.
pub(crate) fn read_failover(
    entry: Option<&Entry>,
    channel: &str,
    kind: &str,
    batch: &BatchPlan,
    report: &mut Report<'_>,
) -> Option<FailoverPlan> {
    let entry = entry?;
    let span = &entry.value.span;
    let mut table = TableReader::new("`failover`", &entry.value, report)?;
    let checked = table.options(specs::FAILOVER, report);
    table.finish(report);
    let options = checked.options;
    let secondary = match options.text_opt("kind") {
        Some("memory") => SecondaryKind::Memory,
        _ => SecondaryKind::File,
    };
    if let Some((reason, fix)) = unsound(primary(kind), secondary) {
        let at = checked.spans.get("kind").unwrap_or(span);
        report.error(Code::FailoverPair, at, format!("the {channel} of kind `{kind}`: {reason}"), fix);
        return None;
    }
    let dir = options.text_opt("dir").map(Into::into);
    check_dir(primary(kind), dir.is_some(), checked.spans.get("dir").unwrap_or(span), channel, report)?;
    let number = |name| options.integer_opt(name).and_then(|number| u32::try_from(number).ok());
    let capacity = (u64::try_from(options.integer_opt("events")?).ok()?, options.size_opt("bytes")?);
    check_room(&format!("`failover` of the {channel}"), capacity, batch, span, report);
    Some(FailoverPlan {
        kind: secondary,
        dir,
        check_interval: options.duration_opt("check_interval")?,
        fail_after: number("fail_after")?,
        return_after: number("return_after")?,
        capacity_events: capacity.0,
        capacity_bytes: capacity.1,
    })
}

/// Why a pair of kinds is none, and what to do.
fn unsound(primary: Primary, secondary: SecondaryKind) -> Option<(&'static str, &'static str)> {
    match (primary, secondary) {
        (Primary::Memory, _) => Some((
            "memory has no disk that could fail; what it may lack is room",
            "give the channel kind = \"spillable\": it goes to a file when its memory is full, and drains in order",
        )),
        (Primary::SourceBacked, _) => Some((
            "it keeps no events that could be kept elsewhere: what is not delivered stays with its sources",
            "remove `failover`, or give the channel kind = \"file\"",
        )),
        (Primary::Spillable, SecondaryKind::Memory) => Some((
            "its events are in memory already while that has room",
            "raise its `memory`, or set kind = \"file\" in `failover`",
        )),
        (Primary::File | Primary::Shared, _) | (Primary::Spillable, SecondaryKind::File) => None,
    }
}

/// A disk cannot take over from itself; what is shared stands with the rest of the pipeline.
fn check_dir(
    primary: Primary,
    is_given: bool,
    at: &Span,
    channel: &str,
    report: &mut Report<'_>,
) -> Option<()> {
    match (primary, is_given) {
        (Primary::Shared, true) => {
            let reason = format!(
                "`dir` of the failover of the {channel}: it stands beside the pipeline's journal, in the data directory"
            );
            report.error(Code::FailoverPair, at, reason, "remove `dir`");
            None
        }
        (Primary::File | Primary::Spillable, false) => {
            let reason = format!(
                "`failover` of the {channel} has no `dir`: on the disk of the channel it would fail together with it"
            );
            let fix = "add dir = \"…\", a directory on another disk";
            report.error(Code::MissingKey, at, reason, fix);
            None
        }
        _ => Some(()),
    }
}
