//! `failover` of a channel: what takes its events while it takes none.

use std::collections::BTreeMap;

use flumen_pipeline::Options;
use flumen_pipeline::plan::{BatchPlan, FailoverPlan, SecondaryKind};

use crate::channels::check_room;
use crate::code::Code;
use crate::memory_channels::read_room;
use crate::registry::Registry;
use crate::report::Report;
use crate::specs;
use crate::table::TableReader;
use crate::tree::{Entry, Item, Span};

/// All that may stand in, as the configuration calls it.
const KINDS: [SecondaryKind; 4] =
    [SecondaryKind::File, SecondaryKind::Memory, SecondaryKind::Spillable, SecondaryKind::Kafka];

/// A kind of channels that is none of a failover.
const SOURCE_BACKED: &str = "source-backed";

/// `failover` of a channel, as far as it is right.
#[derive(Debug, Default)]
pub(crate) struct Failover {
    pub plan: Option<FailoverPlan>,
    /// Checked options of a kind of the registry.
    pub options: Options,
    /// Where it stands, and each of these options as `failover.NAME`.
    pub spans: BTreeMap<String, Span>,
}

/// Reads `failover` of a channel of this kind; refuses the pairs that are not sound.
pub(crate) fn read_failover(
    entry: Option<&Entry>,
    channel: &str,
    kind: &str,
    batch: &BatchPlan,
    registry: &Registry,
    report: &mut Report<'_>,
) -> Failover {
    let Some(entry) = entry else { return Failover::default() };
    let mut read = Failover::default();
    read.spans.insert("failover".to_owned(), entry.value.span.clone());
    let Some(table) = TableReader::new("`failover`", &entry.value, report) else { return read };
    // Other agents have what such a channel has, wherever this one is.
    let is_shared = registry.channels.iter().any(|spec| spec.kind == kind);
    let place = Place { channel, kind, is_shared };
    read.plan = place.read(table, batch, registry, &mut read.options, &mut read.spans, report);
    read
}

/// The channel that has the failover.
struct Place<'a> {
    /// Its name, in words.
    channel: &'a str,
    kind: &'a str,
    /// It is kept elsewhere, and its failover beside the pipeline's journal.
    is_shared: bool,
}

impl Place<'_> {
    /// The plan, if all of it is right; what the kind alone has, and where that stands.
    fn read(
        &self,
        mut table: TableReader<'_>,
        batch: &BatchPlan,
        registry: &Registry,
        own: &mut Options,
        spans: &mut BTreeMap<String, Span>,
        report: &mut Report<'_>,
    ) -> Option<FailoverPlan> {
        let span = table.span().clone();
        let what = format!("`failover` of the {}", self.channel);
        let secondary = self.kind(&mut table, report);
        let (_, general) = specs::FAILOVER.split_at(1);
        let checked = table.options(general, report);
        let memory = self.memory(secondary, &mut table, &what, batch, report);
        for spec in &registry.failovers {
            if secondary.is_some_and(|secondary| secondary.word() == spec.kind) {
                let checked = table.options(spec.options, report);
                *own = checked.options;
                spans
                    .extend(checked.spans.into_iter().map(|(name, span)| (format!("failover.{name}"), span)));
                continue;
            }
            for option in spec.options {
                let found = table.take_unknown(option.name);
                self.refuse_foreign(found, secondary, spec.kind, report);
            }
        }
        table.finish(report);
        let is_placed = self.check_dir(secondary, checked.spans.get("dir"), &span, report);
        let options = checked.options;
        let number = |name| options.integer_opt(name).and_then(|number| u32::try_from(number).ok());
        let capacity = (u64::try_from(options.integer_opt("events")?).ok()?, options.size_opt("bytes")?);
        check_room(&what, capacity, batch, &span, report);
        let plan = FailoverPlan {
            kind: secondary?,
            dir: options.text_opt("dir").map(Into::into),
            check_interval: options.duration_opt("check_interval")?,
            fail_after: number("fail_after")?,
            return_after: number("return_after")?,
            capacity_events: capacity.0,
            capacity_bytes: capacity.1,
            memory_events: memory.0,
            memory_bytes: memory.1,
        };
        is_placed.then_some(plan)
    }

    /// What takes the events; `None`: nothing that can, which is reported.
    fn kind(&self, table: &mut TableReader<'_>, report: &mut Report<'_>) -> Option<SecondaryKind> {
        let given = table.get("kind").map(|entry| &entry.value);
        let at = given.map_or_else(|| table.span().clone(), |node| node.span.clone());
        let channel = self.channel;
        if given.is_some_and(|node| matches!(&node.item, Item::Text(word) if word == SOURCE_BACKED)) {
            let reason = format!(
                "the {channel} cannot fail over to kind `{SOURCE_BACKED}`: that keeps no events, so its sources would wait meanwhile, as \
                 they do without a failover"
            );
            let fix = "set kind = \"file\", \"memory\" or \"spillable\" in `failover`, or remove it";
            report.error(Code::FailoverPair, &at, reason, fix);
            return None;
        }
        let (kind, _) = specs::FAILOVER.split_at(1);
        let checked = table.options(kind, report);
        let word = checked.options.text_opt("kind")?;
        let secondary = KINDS.into_iter().find(|kind| kind.word() == word)?;
        if self.is_shared && secondary.word() == self.kind {
            let reason = format!(
                "the {channel} of kind `{0}` cannot fail over to kind `{0}`: while its brokers are away, a topic takes nothing either",
                self.kind
            );
            let fix =
                "set kind = \"file\", \"memory\" or \"spillable\" in `failover`: that is on this machine";
            report.error(Code::FailoverPair, &at, reason, fix);
            return None;
        }
        Some(secondary)
    }

    /// Events and bytes that a spillable failover has in memory.
    fn memory(
        &self,
        secondary: Option<SecondaryKind>,
        table: &mut TableReader<'_>,
        what: &str,
        batch: &BatchPlan,
        report: &mut Report<'_>,
    ) -> (u64, u64) {
        if secondary == Some(SecondaryKind::Spillable) {
            let header = table.span().clone();
            return read_room(what, "memory", table.get("memory"), &header, batch, report);
        }
        let found = table.take_unknown("memory");
        self.refuse_foreign(found, secondary, SecondaryKind::Spillable.word(), report);
        (0, 0)
    }

    /// An option that only a failover of another kind has.
    fn refuse_foreign(
        &self,
        found: Option<&Entry>,
        secondary: Option<SecondaryKind>,
        of: &str,
        report: &mut Report<'_>,
    ) {
        // Without a kind of its own it is not known what belongs there.
        let Some((entry, secondary)) = found.zip(secondary) else { return };
        let (key, word) = (&entry.key, secondary.word());
        let reason = format!(
            "`{key}` of the failover of the {}: only one of kind `{of}` has that, and this one is of kind `{word}`",
            self.channel
        );
        let fix = if self.is_shared && of == self.kind {
            "remove it".to_owned()
        } else {
            format!("remove it, or set kind = \"{of}\"")
        };
        report.error(Code::FailoverPair, &entry.key_span, reason, fix);
    }

    /// A disk cannot take over from itself; what is shared stands with the rest of the pipeline, and what is in a topic on no disk of this
    /// machine. Whether it is right.
    fn check_dir(
        &self,
        secondary: Option<SecondaryKind>,
        given: Option<&Span>,
        span: &Span,
        report: &mut Report<'_>,
    ) -> bool {
        let channel = self.channel;
        match (secondary, given) {
            (_, Some(at)) if self.is_shared => {
                let reason = format!(
                    "`dir` of the failover of the {channel}: it stands beside the pipeline's journal, in the data directory"
                );
                report.error(Code::FailoverPair, at, reason, "remove `dir`");
                false
            }
            (Some(SecondaryKind::Kafka), Some(at)) => {
                let reason = format!(
                    "`dir` of the failover of the {channel}: of kind `kafka` its events are in a topic, not in a directory"
                );
                report.error(Code::FailoverPair, at, reason, "remove `dir`");
                false
            }
            (Some(SecondaryKind::File | SecondaryKind::Memory | SecondaryKind::Spillable), None)
                if !self.is_shared =>
            {
                let reason = format!(
                    "`failover` of the {channel} has no `dir`: on the disk of the channel it would fail together with it"
                );
                let fix = "add dir = \"…\", a directory on another disk";
                report.error(Code::MissingKey, span, reason, fix);
                false
            }
            _ => true,
        }
    }
}
