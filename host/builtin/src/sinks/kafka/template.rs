//! The `topic` option: a name, or a name with headers in it.
//!
//! ```text
//! {header.NAME}            a header; nothing for events that lack it
//! {header.NAME:-default}   with a word for these
//! ```
//!
//! A rendered name goes to the broker as it is: one that is not legal is never bent into one that is.

use std::sync::Arc;

use arrow_array::{Array, StringArray};
use flumen_event::Batch;
use flumen_event::limits::HEADER_NAME_BYTES_MAX;
use flumen_pipeline::BuildError;

use crate::sinks::limits::TOPIC_BYTES_MAX;

/// A checked `topic` option.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Header { name: Arc<str>, default: String },
}

fn error(reason: impl Into<String>, fix: impl Into<String>) -> BuildError {
    BuildError::new("topic", reason, fix)
}

impl Template {
    pub fn parse(text: &str) -> Result<Template, BuildError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, inner)) = rest.split_once('{') {
            parts.push(Part::Text(before.into()));
            let (placeholder, after) = inner
                .split_once('}')
                .ok_or_else(|| error(format!("the placeholder `{{{inner}` has no end"), "add `}`"))?;
            parts.push(placeholder_part(placeholder)?);
            rest = after;
        }
        parts.push(Part::Text(rest.into()));
        let illegal = |text: &str| text.chars().find(|c| !is_legal_char(*c));
        for text in parts.iter().map(Part::text) {
            if let Some(illegal) = illegal(text) {
                return Err(error(
                    format!("has {illegal:?}, which is not legal in a topic's name"),
                    "use letters, digits, `.`, `_` and `-`, and `{header.NAME}` for a header's value",
                ));
            }
        }
        let template = Template { parts };
        match template.plain() {
            Some(name) if !is_legal(name) => Err(error(
                format!("{name:?} is not a legal name"),
                format!(
                    "use 1 to {TOPIC_BYTES_MAX} letters, digits, `.`, `_` and `-`, and neither `.` nor `..` alone"
                ),
            )),
            _ => Ok(template),
        }
    }

    /// The name, if it is the same for all events.
    pub fn plain(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part::Text(name)] => Some(name),
            _ => None,
        }
    }

    /// The columns of a batch that names are made of.
    pub fn columns<'a>(&self, batch: &'a Batch) -> Vec<Option<&'a StringArray>> {
        let column = |part: &Part| match part {
            Part::Text(_) => None,
            Part::Header { name, .. } => batch.header(name),
        };
        self.parts.iter().map(column).collect()
    }

    /// The name for a row, into `name`.
    pub fn render(&self, columns: &[Option<&StringArray>], row: usize, name: &mut String) {
        name.clear();
        for (part, column) in self.parts.iter().zip(columns) {
            match part {
                Part::Text(text) => name.push_str(text),
                Part::Header { default, .. } => {
                    let value = column.filter(|column| column.is_valid(row)).map(|column| column.value(row));
                    name.push_str(value.filter(|value| !value.is_empty()).unwrap_or(default));
                }
            }
        }
    }
}

impl Part {
    fn text(&self) -> &str {
        match self {
            Part::Text(text) | Part::Header { default: text, .. } => text,
        }
    }
}

fn placeholder_part(text: &str) -> Result<Part, BuildError> {
    let Some(header) = text.strip_prefix("header.") else {
        let fix = match text.starts_with("time") {
            true => "topics by time grow without end; let the consumer read by timestamp".to_owned(),
            false => format!("for a header write `{{header.{text}}}`"),
        };
        return Err(error(format!("`{{{text}}}` is not a placeholder"), fix));
    };
    let (name, default) = header.split_once(":-").unwrap_or((header, ""));
    if name.is_empty() || name.len() > HEADER_NAME_BYTES_MAX {
        return Err(error(format!("`{{{text}}}` names no header"), "write `{header.NAME}`"));
    }
    Ok(Part::Header { name: name.into(), default: default.into() })
}

fn is_legal_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// True for what Kafka takes as a topic's name.
pub(super) fn is_legal(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= TOPIC_BYTES_MAX
        && !matches!(name, "." | "..")
        && name.chars().all(is_legal_char)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_event::{BatchBuilder, HeaderColumn};

    #[test]
    fn names_follow_headers() {
        let mut builder = BatchBuilder::default();
        (0..3).for_each(|row| builder.push(1, row, 0, b"x"));
        let values: StringArray = [Some("a"), None, Some("")].into_iter().collect();
        let batch = builder.finish(vec![HeaderColumn { name: "host".into(), values }]).unwrap();
        let render = |template: &str, row| {
            let template = Template::parse(template).unwrap();
            let mut name = String::new();
            template.render(&template.columns(&batch), row, &mut name);
            name
        };
        assert_eq!(render("web", 0), "web");
        assert_eq!(render("web-{header.host}.{header.no:-x}", 0), "web-a.x");
        assert_eq!(render("web-{header.host}", 1), "web-");
        assert_eq!(render("web-{header.host:-other}", 2), "web-other");
    }

    #[test]
    fn every_error_has_a_reason_and_a_fix() {
        for (topic, reason, fix) in [
            ("", "not a legal name", "letters"),
            ("..", "not a legal name", "neither"),
            ("a b", "' '", "letters"),
            ("a-{header.x", "no end", "add"),
            ("a-{host}", "not a placeholder", "{header.host}"),
            ("a-{time:%Y}", "not a placeholder", "without end"),
            ("a-{header.}", "names no header", "{header.NAME}"),
            ("a-{header.x:-/}", "'/'", "letters"),
            ("a-}", "'}'", "letters"),
        ] {
            let error = Template::parse(topic).unwrap_err();
            assert!(error.reason.contains(reason) && error.fix.contains(fix), "{topic}: {error:?}");
        }
        assert!(Template::parse(&"x".repeat(TOPIC_BYTES_MAX + 1)).is_err());
    }
}
