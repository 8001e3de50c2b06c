//! Sources, channels and sinks by name, and their types.

use std::collections::BTreeMap;

use flumen_pipeline::{ComponentKind, ComponentSpec};

use crate::code::Code;
use crate::report::Report;
use crate::specs;
use crate::substitute::quote;
use crate::suggest;
use crate::table::{TableReader, check_name};
use crate::tree::{Entry, Item, Node, Span};

/// Names that are used, and where first.
#[derive(Default)]
pub(crate) struct Names(BTreeMap<(&'static str, String), usize>);

impl Names {
    /// Takes a name; reports if it is taken.
    pub fn claim(&mut self, kind: ComponentKind, name: &str, span: &Span, report: &mut Report<'_>) {
        let line = report.file.text.get(..span.start).unwrap_or_default().matches('\n').count() + 1;
        if let Some(first) = self.0.get(&(kind.word(), name.to_owned())) {
            let reason = format!(
                "a second {} has the name `{}`; the first is on line {first}",
                kind.word(),
                report.quote(name)
            );
            report.error(Code::DuplicateName, span, reason, "give one of them another `name`");
            return;
        }
        self.0.insert((kind.word(), name.to_owned()), line);
    }
}

/// A source, channel or sink with its name.
pub(crate) struct Named<'a> {
    pub name: &'a str,
    pub node: &'a Node,
    /// The name's place.
    pub span: &'a Span,
}

/// The tables `[what.NAME]`, or the one table `[what]` without a name.
pub(crate) fn named<'a>(
    what: &str,
    entry: Option<&'a Entry>,
    is_own_key: impl Fn(&Entry) -> bool,
    report: &mut Report<'_>,
) -> Vec<Named<'a>> {
    let Some(entry) = entry else { return Vec::new() };
    let Item::Table(entries) = &entry.value.item else {
        if !matches!(entry.value.item, Item::Broken) {
            let reason = format!("`{what}` is a table, but this is {}", entry.value.type_word());
            report.error(
                Code::WrongType,
                &entry.value.span,
                reason,
                format!("write [{what}.NAME], or [{what}] if it is the only one"),
            );
        }
        return Vec::new();
    };
    let unnamed =
        entries.iter().any(|entry| is_own_key(entry) || !matches!(entry.value.item, Item::Table(_)));
    if unnamed {
        return vec![Named { name: specs::UNNAMED, node: &entry.value, span: &entry.key_span }];
    }
    let named = entries.iter().filter(|entry| check_name(what, &entry.key, &entry.key_span, report));
    named.map(|entry| Named { name: &entry.key, node: &entry.value, span: &entry.key_span }).collect()
}

/// `type = …` tells the table of a component from a table of such tables.
pub(crate) fn is_type(entry: &Entry) -> bool {
    entry.key == "type" && !matches!(entry.value.item, Item::Table(_))
}

/// The component's type among the known ones.
pub(crate) fn find_spec<'s>(
    what: &str,
    table: &mut TableReader<'_>,
    known: &'s [ComponentSpec],
    report: &mut Report<'_>,
) -> Option<&'s ComponentSpec> {
    let words: Vec<&str> = known.iter().map(|spec| spec.kind).collect();
    let Some(entry) = table.get("type") else {
        let reason = format!("{what} needs `type`");
        report.error(
            Code::MissingKey,
            table.span(),
            reason,
            format!("add type = \"…\": one of {}", suggest::listed(&words)),
        );
        return None;
    };
    match &entry.value.item {
        Item::Text(kind) => {
            let found = known.iter().find(|spec| spec.kind == kind);
            if found.is_none() {
                let secret = entry.value.secret;
                let shown = if secret { "(secret)".to_owned() } else { quote(kind) };
                let fix = suggest::fix(if secret { "" } else { kind }, &words);
                report.error(
                    Code::UnknownType,
                    &entry.value.span,
                    format!("{what}: there is no type `{shown}`"),
                    fix,
                );
            }
            found
        }
        Item::Broken => None,
        _ => {
            let reason = format!("`type` is a string, but this is {}", entry.value.type_word());
            report.error(
                Code::WrongType,
                &entry.value.span,
                reason,
                format!("write one of {}", suggest::listed(&words)),
            );
            None
        }
    }
}
