//! `selector` of a source: which channels get its events.

use std::collections::{BTreeMap, BTreeSet};

use flumen_pipeline::plan::{SelectorPlan, SelectorRule};

use crate::channels::Channel;
use crate::code::Code;
use crate::report::Report;
use crate::specs;
use crate::suggest;
use crate::table::TableReader;
use crate::tree::{Entry, Item, Node, Span};

/// The options of each kind, beside `kind`.
const KEYS: &[(&str, &[&str])] = &[
    ("replicating", &["channels", "optional"]),
    ("multiplexing", &["header", "mapping", "default", "optional"]),
    ("load-balancing", &["channels", "header"]),
];

/// Reads the table of a source.
pub(crate) fn read_selector(
    source: &str,
    entry: Option<&Entry>,
    channels: &[Channel],
    report: &mut Report<'_>,
) -> SelectorPlan {
    let Some(entry) = entry else { return SelectorPlan::default() };
    let Some(mut table) = TableReader::new("`selector`", &entry.value, report) else {
        return SelectorPlan::default();
    };
    let checked = table.options(specs::SELECTOR, report);
    let mapping = table.get("mapping");
    let header = table.span().clone();
    table.finish(report);
    let Some(kind) = checked.options.text_opt("kind") else { return SelectorPlan::default() };
    let own = KEYS.iter().find(|(known, _)| *known == kind).map_or(&[] as &[&str], |(_, keys)| keys);
    let mut given: Vec<(&str, &Span)> = checked
        .spans
        .iter()
        .filter(|(key, _)| *key != "kind")
        .map(|(key, span)| (key.as_str(), span))
        .collect();
    given.extend(mapping.map(|entry| ("mapping", &entry.key_span)));
    for (key, span) in given.iter().filter(|(key, _)| !own.contains(key)) {
        let reason = format!("a selector of kind `{kind}` has no `{key}`");
        report.error(
            Code::UnknownKey,
            span,
            reason,
            format!("remove it; known are {}", suggest::listed(own)),
        );
    }
    let names = Names { source, channels, kind };
    let mut list = |key: &str| names.list(key, checked.options.list_opt(key), checked.spans.get(key), report);
    let (named, optional, default) = (list("channels"), list("optional"), list("default"));
    if let Some(span) =
        checked.spans.get("channels").filter(|_| checked.options.list_opt("channels") == Some(&[]))
    {
        let fix = "name channels, or take `channels` out: then they are all of the pipeline";
        report.error(Code::EmptyValue, span, "`channels` of a selector cannot be empty", fix);
    }
    let header_name = checked.options.text_opt("header").filter(|name| !name.is_empty());
    let rule = match kind {
        "multiplexing" => {
            let mut missing = |key: &str, fix: &str| {
                let reason = format!("a selector of kind `multiplexing` needs `{key}`");
                report.error(Code::MissingKey, &header, reason, fix);
            };
            if header_name.is_none() {
                missing("header", "add header = \"…\": the header whose value decides");
            }
            if mapping.is_none() {
                missing("mapping", "add mapping = { VALUE = \"CHANNEL\" }");
            }
            if !checked.spans.contains_key("default") {
                missing(
                    "default",
                    "add default = [\"CHANNEL\"] for events of any other value; [] leaves them out, and counts them",
                );
            }
            let mapping = mapping.map(|entry| names.mapping(&entry.value, report)).unwrap_or_default();
            SelectorRule::Multiplexing {
                header: header_name.unwrap_or_default().to_owned(),
                mapping,
                default,
            }
        }
        "load-balancing" => {
            let count = if named.is_empty() { channels.len() } else { named.len() };
            if count < 2 {
                let reason = "there is nothing to balance between: the selector has one channel";
                let fix = "name several in `channels`, or take the selector out";
                report.error(Code::BadChoice, checked.spans.get("channels").unwrap_or(&header), reason, fix);
            }
            SelectorRule::LoadBalancing { channels: named, header: header_name.map(str::to_owned) }
        }
        _ => SelectorRule::Replicating(named),
    };
    let plan = SelectorPlan { rule, optional };
    let chosen = plan.channels(channels.iter().map(|channel| channel.plan.name.as_str()));
    for name in plan.optional.iter().filter(|name| !chosen.contains(name.as_str())) {
        let reason = format!("`optional` has the channel `{name}`, which the selector does not choose");
        let span = checked.spans.get("optional").unwrap_or(&header);
        report.error(Code::UnknownChannel, span, reason, "remove it, or let the selector choose it too");
    }
    plan
}

/// Names of channels, held against those that there are.
struct Names<'a> {
    source: &'a str,
    channels: &'a [Channel],
    kind: &'a str,
}

impl Names<'_> {
    fn list(
        &self,
        key: &str,
        names: Option<&[String]>,
        span: Option<&Span>,
        report: &mut Report<'_>,
    ) -> BTreeSet<String> {
        let span = span.cloned().unwrap_or(0..0);
        names.into_iter().flatten().filter(|name| self.check(key, name, &span, report)).cloned().collect()
    }

    fn check(&self, key: &str, name: &str, span: &Span, report: &mut Report<'_>) -> bool {
        let known: Vec<&str> = self.channels.iter().map(|channel| channel.plan.name.as_str()).collect();
        let is_known = known.contains(&name);
        if !is_known {
            let reason =
                format!("`{key}` of source `{}`: there is no channel `{}`", self.source, report.quote(name));
            report.error(Code::UnknownChannel, span, reason, suggest::fix(name, &known));
        }
        is_known
    }

    /// `VALUE = "CHANNEL"`, or `VALUE = ["CHANNEL", "CHANNEL"]`.
    fn mapping(&self, node: &Node, report: &mut Report<'_>) -> BTreeMap<String, BTreeSet<String>> {
        let mut mapping = BTreeMap::new();
        let Item::Table(entries) = &node.item else {
            if !matches!(node.item, Item::Broken) {
                let reason = format!("`mapping` is a table, but this is {}", node.type_word());
                let fix = "write mapping = { VALUE = \"CHANNEL\" }";
                report.error(Code::WrongType, &node.span, reason, fix);
            }
            return mapping;
        };
        if entries.is_empty() && self.kind == "multiplexing" {
            let fix = "write mapping = { VALUE = \"CHANNEL\" }";
            report.error(Code::EmptyValue, &node.span, "`mapping` has no value", fix);
        }
        for entry in entries {
            let value = &entry.value;
            let names: Vec<&Node> = match &value.item {
                Item::List(nodes) => nodes.iter().collect(),
                _ => vec![value],
            };
            let mut channels = BTreeSet::new();
            for name in names {
                match &name.item {
                    Item::Text(text) => {
                        if self.check("mapping", text, &name.span, report) {
                            channels.insert(text.clone());
                        }
                    }
                    Item::Broken => {}
                    _ => {
                        let reason =
                            format!("`mapping` holds names of channels, but this is {}", name.type_word());
                        let fix = "write a channel's name in quotes, or a list of names";
                        report.error(Code::WrongType, &name.span, reason, fix);
                    }
                }
            }
            mapping.insert(entry.key.clone(), channels);
        }
        mapping
    }
}

/// Reports the channels that no source puts to.
pub(crate) fn check_fed(channels: &[Channel], selectors: &[&SelectorPlan], report: &mut Report<'_>) {
    let all = || channels.iter().map(|channel| channel.plan.name.as_str());
    let fed: BTreeSet<&str> = selectors.iter().flat_map(|selector| selector.channels(all())).collect();
    for Channel { plan, span } in channels.iter().filter(|channel| !channel.plan.is_shared()) {
        if !fed.contains(plan.name.as_str()) {
            let reason =
                format!("no source puts to the channel `{}`: whoever reads it gets nothing", plan.name);
            let fix = "remove the channel, or let the selector of a source choose it";
            report.error(Code::UnfedChannel, span, reason, fix);
        }
    }
}
