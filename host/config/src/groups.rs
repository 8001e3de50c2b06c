//! `[group.NAME]`: sinks that read a channel as one.

use std::time::Duration;

use flumen_pipeline::ComponentKind;
use flumen_pipeline::plan::{Balance, ChannelKind, GroupKind, GroupPlan, SinkPlan};

use crate::channels::Channel;
use crate::code::Code;
use crate::named::{Named, Names, named};
use crate::report::Report;
use crate::specs;
use crate::suggest;
use crate::table::TableReader;
use crate::tree::{Entry, Item, Span};

/// Reads the groups. `sinks`: those that there are, unless one of them is wrong.
pub(crate) fn read_groups(
    entry: Option<&Entry>,
    sinks: Option<&[SinkPlan]>,
    channels: &[Channel],
    names: &mut Names,
    report: &mut Report<'_>,
) -> Vec<GroupPlan> {
    let is_own = |entry: &Entry| !matches!(entry.value.item, Item::Table(_));
    let mut groups: Vec<GroupPlan> = Vec::new();
    for Named { name, node, span } in named("group", entry, is_own, report) {
        let what = format!("group `{name}`");
        let Some(mut table) = TableReader::new(&what, node, report) else { continue };
        // Its reader stands beside those of sinks.
        names.claim(ComponentKind::Sink, name, span, report);
        let checked = table.options(specs::GROUP, report);
        let header = table.span().clone();
        table.finish(report);
        let options = &checked.options;
        let at = |key: &str| checked.spans.get(key).unwrap_or(&header).clone();
        let kind = match (options.text_opt("kind"), options.text_opt("balance")) {
            (Some("failover"), balance) => {
                if balance.is_some() && checked.spans.contains_key("balance") {
                    let reason = "a group of kind `failover` has no `balance`";
                    let fix = "remove it: the first of `sinks` that is well gets everything";
                    report.error(Code::UnknownKey, &at("balance"), reason, fix);
                }
                GroupKind::Failover
            }
            (Some(_), Some("random")) => GroupKind::LoadBalancing(Balance::Random),
            (Some(_), Some("least-in-flight")) => GroupKind::LoadBalancing(Balance::LeastInFlight),
            (Some(_), _) => GroupKind::LoadBalancing(Balance::RoundRobin),
            (None, _) => continue,
        };
        let members = options.list_opt("sinks").unwrap_or_default();
        let duration = |key: &str| options.duration_opt(key).unwrap_or(Duration::from_secs(1));
        let (penalty, penalty_max) = (duration("penalty"), duration("penalty_max"));
        if penalty_max < penalty {
            let reason = "`penalty_max` is less than `penalty`";
            report.error(
                Code::OutOfRange,
                &at("penalty_max"),
                reason,
                "give it at least the time of `penalty`",
            );
        }
        let Some(sinks) = sinks else { continue };
        let fitting = Members { group: &what, sinks, channels, span: at("sinks") };
        let Some(channel) = fitting.check(members, &groups, report) else { continue };
        let sinks = members.to_vec();
        groups.push(GroupPlan { name: name.into(), channel, sinks, kind, penalty, penalty_max });
    }
    groups
}

struct Members<'a> {
    group: &'a str,
    sinks: &'a [SinkPlan],
    channels: &'a [Channel],
    span: Span,
}

impl Members<'_> {
    /// Whether the sinks can be a group, and the channel that they read.
    fn check(&self, members: &[String], groups: &[GroupPlan], report: &mut Report<'_>) -> Option<String> {
        let Members { group, sinks, channels, span } = self;
        let errors = report.diagnostics.len();
        let known: Vec<&str> = sinks.iter().map(|sink| sink.name.as_str()).collect();
        let mut channel: Option<&SinkPlan> = None;
        for (at, name) in members.iter().enumerate() {
            let Some(sink) = sinks.iter().find(|sink| sink.name == *name) else {
                let reason = format!("{group}: there is no sink `{}`", report.quote(name));
                report.error(Code::UnknownSink, span, reason, suggest::fix(name, &known));
                continue;
            };
            if members.iter().take(at).any(|other| other == name) {
                let reason = format!("{group} has the sink `{name}` twice");
                report.error(Code::DuplicateName, span, reason, "name it once");
            }
            if let Some(other) = groups.iter().find(|other| other.sinks.contains(name)) {
                let reason = format!("the sink `{name}` is in the group `{}` already", other.name);
                report.error(Code::DuplicateName, span, reason, "a sink is in one group");
            }
            match channel {
                Some(first) if first.channel != sink.channel => {
                    let reason = format!(
                        "{group}: the sink `{name}` reads the channel `{}`, and `{}` reads `{}`",
                        sink.channel, first.name, first.channel
                    );
                    let fix = "let all sinks of a group read the same channel: each event of it goes to one of them";
                    report.error(Code::UnknownChannel, span, reason, fix);
                }
                Some(_) => {}
                None => channel = Some(sink),
            }
        }
        if members.len() < 2 && report.diagnostics.len() == errors {
            let reason = format!("{group} has one sink");
            report.error(Code::EmptyValue, span, reason, "name at least two, or take the group out");
        }
        let channel = channel.map(|sink| sink.channel.clone());
        let kind = channels.iter().find(|known| Some(&known.plan.name) == channel.as_ref());
        if let Some(kind) = kind.map(|known| &known.plan.kind).filter(|kind| **kind != ChannelKind::File) {
            let (name, word) = (channel.as_deref().unwrap_or_default(), kind.word());
            let reason = format!(
                "{group}: its channel `{name}` is of kind `{word}`, and a group needs one of kind `file`: what each of its \
                 sinks has is on record by the numbers of events, and only there a number stands for the same event for ever"
            );
            let fix = "give the channel the kind `file`, or take the group out";
            report.error(Code::MixedChannels, span, reason, fix);
        }
        channel.filter(|_| report.diagnostics.len() == errors)
    }
}
