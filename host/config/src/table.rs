//! A table being read: every key that is asked for is known, all others are errors at the end.

use std::collections::BTreeMap;

use flumen_pipeline::{OptionKind, OptionSpec, Options, Value};

use crate::code::Code;
use crate::limits;
use crate::report::{Report, UserFile};
use crate::substitute::quote;
use crate::suggest;
use crate::tree::{self, Entry, Item, Node, Span};
use crate::value;

/// Reads one table.
pub(crate) struct TableReader<'a> {
    /// What the table is, for errors: "source `access`".
    what: String,
    span: Span,
    entries: &'a [Entry],
    known: Vec<&'a str>,
    /// Keys that do not belong here and were reported.
    reported: Vec<&'a str>,
}

/// Options that were checked, and where they stand.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    pub options: Options,
    /// Only of options that the file has: key and value.
    pub spans: BTreeMap<String, Span>,
}

impl<'a> TableReader<'a> {
    /// Begins; `None`: it is no table, which is reported.
    pub fn new(what: impl Into<String>, node: &'a Node, report: &mut Report<'_>) -> Option<Self> {
        let what = what.into();
        match &node.item {
            Item::Table(entries) => Some(TableReader {
                what,
                span: node.span.clone(),
                entries,
                known: Vec::new(),
                reported: Vec::new(),
            }),
            Item::Broken => None,
            _ => {
                let reason = format!("{what} is a table, but this is {}", node.type_word());
                report.error(
                    Code::WrongType,
                    &node.span,
                    reason,
                    "write it as a table: [name] and lines of key = value",
                );
                None
            }
        }
    }

    /// Where the table begins.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// The value of a key.
    pub fn get(&mut self, key: &'a str) -> Option<&'a Entry> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// A key that does not belong here, for an error of its own.
    pub fn take_unknown(&mut self, key: &str) -> Option<&'a Entry> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        self.reported.push(&entry.key);
        Some(entry)
    }

    /// Checks the options of a spec, fills in defaults, reports what is missing.
    pub fn options(&mut self, specs: &'a [OptionSpec], report: &mut Report<'_>) -> Checked {
        let mut checked = Checked::default();
        for spec in specs {
            let value = match self.get(spec.name) {
                Some(entry) => {
                    checked.spans.insert(spec.name.into(), entry.value.span.clone());
                    self.option(spec, &entry.value, report)
                }
                None if spec.required => {
                    let reason = format!("{} needs `{}`", self.what, spec.name);
                    let fix = format!("add {} = {}: {}", spec.name, example(spec), spec.about);
                    report.error(Code::MissingKey, &self.span, reason, fix);
                    None
                }
                None => self.default(spec, report),
            };
            if let Some(value) = value {
                checked.options.0.insert(spec.name.into(), value);
            }
        }
        checked
    }

    fn option(&self, spec: &OptionSpec, node: &Node, report: &mut Report<'_>) -> Option<Value> {
        let value = value::check(spec.name, node, &spec.kind, report)?;
        let empty = match &value {
            Value::Text(text) => text.is_empty(),
            Value::TextList(list) => list.is_empty(),
            _ => false,
        };
        if empty && spec.required {
            let reason = format!("`{}` of {} cannot be empty", spec.name, self.what);
            report.error(Code::EmptyValue, &node.span, reason, format!("give a value: {}", spec.about));
            return None;
        }
        Some(value)
    }

    fn default(&self, spec: &OptionSpec, report: &mut Report<'_>) -> Option<Value> {
        let text = spec.default?;
        let value = default_value(spec, text);
        if value.is_none() {
            let reason = format!("the default {text} of `{}` is wrong", spec.name);
            report.error(
                Code::BadDefault,
                &self.span,
                reason,
                "report this as a mistake in Flumen, and give the option",
            );
        }
        value
    }

    /// Reports the keys that nobody asked for.
    pub fn finish(self, report: &mut Report<'_>) {
        for entry in self.entries {
            let key = entry.key.as_str();
            if self.known.contains(&key) || self.reported.contains(&key) {
                continue;
            }
            let reason = format!("{} has no key `{}`", self.what, quote(&entry.key));
            let fix = match suggest::nearest(&entry.key, self.known.iter().copied()) {
                _ if report.is_full() => String::new(),
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => format!("remove it; known are {}", suggest::listed(&self.known)),
            };
            report.error(Code::UnknownKey, &entry.key_span, reason, fix);
        }
    }
}

/// The value of a default as it is written in the spec; `None`: it is wrong.
pub(crate) fn default_value(spec: &OptionSpec, text: &str) -> Option<Value> {
    let line = UserFile { path: "default".into(), text: format!("v = {text}").into() };
    let root = tree::parse(&line.text).ok()?;
    let Item::Table(entries) = &root.item else { return None };
    value::check(spec.name, &entries.first()?.value, &spec.kind, &mut Report::new(&line))
}

fn example(spec: &OptionSpec) -> &'static str {
    match spec.kind {
        OptionKind::Text | OptionKind::Choice(_) => "\"…\"",
        OptionKind::Bool => "true",
        OptionKind::Integer { .. } => "1",
        OptionKind::Size { .. } => "\"64 MiB\"",
        OptionKind::Duration { .. } => "\"10s\"",
        OptionKind::TextList => "[\"…\"]",
        OptionKind::TextMap => "{ name = \"…\" }",
    }
}

/// A name: `[a-z0-9][a-z0-9_-]*`, at most 64 characters. Reports what is none.
pub(crate) fn check_name(what: &str, name: &str, span: &Span, report: &mut Report<'_>) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let head = name.chars().next().is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let right = head && name.chars().all(inner) && name.len() <= limits::NAME_CHARS_MAX;
    if !right {
        let article = if what.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        let reason = format!("`{}` cannot be the name of {article} {what}", report.quote(name));
        let fix = format!(
            "use lower-case letters, digits, `_` and `-`, beginning with a letter or digit, at most {} of them",
            limits::NAME_CHARS_MAX
        );
        report.error(Code::BadName, span, reason, fix);
    }
    right
}
