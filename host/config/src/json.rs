//! TOML values as JSON: a plugin's own configuration is handed over so. Dates become strings.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::code::Code;
use crate::report::Report;
use crate::tree::{Item, Node, Span};

/// The value as JSON. `None`: it has no JSON form, which is reported.
pub(crate) fn to_json(node: &Node, report: &mut Report<'_>) -> Option<Value> {
    Some(match &node.item {
        Item::Text(text) | Item::Datetime(text) => Value::String(text.clone()),
        Item::Integer(value) => Value::from(*value),
        Item::Float(value) => match serde_json::Number::from_f64(*value) {
            Some(number) => Value::Number(number),
            None => {
                let reason = "a plugin's config is JSON, which has neither inf nor nan";
                report.error(Code::WrongType, &node.span, reason, "write a finite number");
                return None;
            }
        },
        Item::Bool(value) => Value::Bool(*value),
        Item::List(nodes) => {
            let values: Vec<_> = nodes.iter().map(|node| to_json(node, report)).collect();
            Value::Array(values.into_iter().collect::<Option<_>>()?)
        }
        Item::Table(entries) => {
            let values: Vec<_> = entries
                .iter()
                .map(|entry| Some((entry.key.clone(), to_json(&entry.value, report)?)))
                .collect();
            sorted(values.into_iter().collect::<Option<_>>()?)
        }
        Item::Broken => return None,
    })
}

/// An object in the order of its keys, whatever order serde_json was built to keep: the same
/// configuration is the same text.
pub(crate) fn sorted(entries: BTreeMap<String, Value>) -> Value {
    Value::Object(entries.into_iter().collect())
}

/// Where each value of a configuration stands: `config.a.0`. Of a key that may be wrong itself it is the key.
pub(crate) fn config_spans(place: &str, node: &Node, spans: &mut BTreeMap<String, Span>) {
    match &node.item {
        Item::Table(entries) => entries.iter().for_each(|entry| {
            let place = format!("{place}.{}", entry.key);
            spans.insert(place.clone(), entry.key_span.clone());
            config_spans(&place, &entry.value, spans);
        }),
        Item::List(nodes) => nodes.iter().enumerate().for_each(|(at, node)| {
            let place = format!("{place}.{at}");
            spans.insert(place.clone(), node.span.clone());
            config_spans(&place, node, spans);
        }),
        _ => {}
    }
}

/// The configuration table `config` as text; `{}` if there is none.
pub(crate) fn config_text(what: &str, config: Option<&Node>, report: &mut Report<'_>) -> Option<String> {
    let Some(node) = config else { return Some("{}".into()) };
    if !matches!(node.item, Item::Table(_) | Item::Broken) {
        let reason = format!("`config` of {what} is a table, but this is {}", node.type_word());
        report.error(Code::WrongType, &node.span, reason, "write config = { key = \"value\" }");
        return None;
    }
    to_json(node, report).map(|value| value.to_string())
}
