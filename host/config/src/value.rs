//! One node against one [`OptionKind`]: the checked value, or an error at its place.

use std::collections::BTreeMap;

use flumen_pipeline::{OptionKind, Value};

use crate::code::Code;
use crate::duration::{format_duration, parse_duration};
use crate::report::Report;
use crate::size::{format_size, parse_size};
use crate::substitute::quote;
use crate::suggest;
use crate::tree::{Item, Node};

/// Checks the value of `key`. `None`: it is wrong, and reported.
pub(crate) fn check(key: &str, node: &Node, kind: &OptionKind, report: &mut Report<'_>) -> Option<Value> {
    match (kind, &node.item) {
        (_, Item::Broken) => None,
        (OptionKind::Text, Item::Text(text)) => Some(Value::Text(text.clone())),
        (OptionKind::Choice(words), Item::Text(text)) => choice(key, node, text, words, report),
        (OptionKind::Bool, Item::Bool(value)) => Some(Value::Bool(*value)),
        (OptionKind::Bool, Item::Text(text)) if node.substituted && text.parse::<bool>().is_ok() => {
            Some(Value::Bool(text == "true"))
        }
        (OptionKind::Integer { min, max }, Item::Integer(value)) => {
            integer(key, node, *value, (*min, *max), report)
        }
        // A variable is always text: `rate = "${env:RATE}"` has no other way to be a number.
        (OptionKind::Integer { min, max }, Item::Text(text)) if node.substituted => match text.trim().parse()
        {
            Ok(value) => integer(key, node, value, (*min, *max), report),
            Err(_) => wrong_substitution(key, node, "an integer", report),
        },
        (OptionKind::Bool, Item::Text(_)) if node.substituted => {
            wrong_substitution(key, node, "a boolean", report)
        }
        (OptionKind::Size { min, max }, Item::Text(_) | Item::Integer(_)) => {
            size(key, node, (*min, *max), report)
        }
        (OptionKind::Duration { .. }, Item::Text(text)) => duration(key, node, text, kind, report),
        (OptionKind::TextList, Item::List(nodes)) => {
            let texts: Vec<_> = nodes.iter().map(|node| element(key, node, report)).collect();
            texts.into_iter().collect::<Option<_>>().map(Value::TextList)
        }
        (OptionKind::TextMap, Item::Table(entries)) => {
            let texts: Vec<_> = entries
                .iter()
                .map(|entry| {
                    let name = format!("{key}.{}", entry.key);
                    Some((entry.key.clone(), element(&name, &entry.value, report)?))
                })
                .collect();
            texts.into_iter().collect::<Option<BTreeMap<_, _>>>().map(Value::TextMap)
        }
        _ => wrong_type(key, node, kind, report),
    }
}

fn choice(key: &str, node: &Node, text: &str, words: &[&str], report: &mut Report<'_>) -> Option<Value> {
    if words.contains(&text) {
        return Some(Value::Text(text.to_owned()));
    }
    let fix =
        if node.secret { format!("known are {}", suggest::listed(words)) } else { suggest::fix(text, words) };
    report.error(Code::BadChoice, &node.span, format!("`{key}` cannot be {}", shown(node)), fix);
    None
}

fn integer(key: &str, node: &Node, value: i64, range: (i64, i64), report: &mut Report<'_>) -> Option<Value> {
    if (range.0..=range.1).contains(&value) {
        return Some(Value::Integer(value));
    }
    out_of_range(key, node, range.0.to_string(), range.1.to_string(), report)
}

fn size(key: &str, node: &Node, range: (u64, u64), report: &mut Report<'_>) -> Option<Value> {
    let parsed = match &node.item {
        Item::Integer(value) => u64::try_from(*value).map_err(|_| None),
        Item::Text(text) => parse_size(text).map_err(Some),
        _ => return None,
    };
    match parsed {
        Ok(value) if (range.0..=range.1).contains(&value) => Some(Value::Size(value)),
        Err(Some(reason)) => {
            let reason = if node.secret { String::new() } else { format!(": {reason}") };
            let reason = format!("`{key}` cannot be {}{reason}", shown(node));
            let fix =
                "write bytes as a number, or a whole number with B, KiB, MiB, GiB, TiB, kB, MB, GB or TB";
            report.error(Code::BadSize, &node.span, reason, fix);
            None
        }
        _ => out_of_range(key, node, format_size(range.0), format_size(range.1), report),
    }
}

fn duration(key: &str, node: &Node, text: &str, kind: &OptionKind, report: &mut Report<'_>) -> Option<Value> {
    let OptionKind::Duration { min, max } = kind else { return None };
    match parse_duration(text) {
        Ok(value) if (*min..=*max).contains(&value) => Some(Value::Duration(value)),
        Ok(_) => out_of_range(key, node, format_duration(*min), format_duration(*max), report),
        Err(reason) => {
            let reason = if node.secret { String::new() } else { format!(": {reason}") };
            let reason = format!("`{key}` cannot be {}{reason}", shown(node));
            let fix = "write whole numbers with d, h, m, s or ms, such as \"250ms\", \"10s\", \"1h30m\"";
            report.error(Code::BadDuration, &node.span, reason, fix);
            None
        }
    }
}

fn element(key: &str, node: &Node, report: &mut Report<'_>) -> Option<String> {
    match &node.item {
        Item::Text(text) => Some(text.clone()),
        Item::Broken => None,
        _ => {
            let reason = format!("`{key}` holds strings, but this is {}", node.type_word());
            report.error(Code::WrongType, &node.span, reason, "put it in quotes");
            None
        }
    }
}

fn out_of_range(key: &str, node: &Node, min: String, max: String, report: &mut Report<'_>) -> Option<Value> {
    let reason = format!("`{key}` cannot be {}", shown(node));
    report.error(Code::OutOfRange, &node.span, reason, format!("give a value from {min} to {max}"));
    None
}

fn wrong_type(key: &str, node: &Node, kind: &OptionKind, report: &mut Report<'_>) -> Option<Value> {
    let (expected, fix) = match kind {
        OptionKind::Text => ("a string", "put it in quotes".to_owned()),
        OptionKind::Choice(words) => ("a string", format!("write one of {}", suggest::listed(words))),
        OptionKind::Bool => ("a boolean", "write true or false, without quotes".to_owned()),
        OptionKind::Integer { .. } => ("an integer", "write a whole number, without quotes".to_owned()),
        OptionKind::Size { .. } => {
            ("a size", "write bytes as a number, or a string such as \"64 MiB\"".to_owned())
        }
        OptionKind::Duration { .. } => {
            ("a duration", "write a string with a unit, such as \"250ms\", \"10s\", \"5m\"".to_owned())
        }
        OptionKind::TextList => ("a list of strings", "write [\"…\", \"…\"]".to_owned()),
        OptionKind::TextMap => ("a table of strings", "write { name = \"…\" }".to_owned()),
    };
    let reason = format!("`{key}` is {expected}, but this is {}", node.type_word());
    report.error(Code::WrongType, &node.span, reason, fix);
    None
}

fn wrong_substitution(key: &str, node: &Node, expected: &str, report: &mut Report<'_>) -> Option<Value> {
    let reason = format!("`{key}` is {expected}, and {} is none", shown(node));
    report.error(Code::WrongType, &node.span, reason, format!("put {expected} into the variable or file"));
    None
}

/// A wrong value in an error.
fn shown(node: &Node) -> String {
    match &node.item {
        _ if node.secret => "(secret)".into(),
        Item::Text(text) => format!("\"{}\"", quote(text)),
        Item::Integer(value) => value.to_string(),
        Item::Float(value) => value.to_string(),
        Item::Bool(value) => value.to_string(),
        _ => node.type_word().into(),
    }
}
