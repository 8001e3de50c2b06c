//! A plugin's configuration, held against the JSON Schema that the plugin gives of it.
//!
//! The schema is the plugin's, so it is not trusted: it is bounded in size ([`limits::OPTIONS_SCHEMA_BYTES_MAX`]), patterns run
//! in time that is linear in the text, and references lead nowhere outside of it.

use std::collections::{HashMap, HashSet};

use jsonschema::error::ValidationErrorKind;
use jsonschema::{Draft, PatternOptions, ValidationError};
use serde_json::Value;

use crate::failure::cut;
use crate::limits;

/// A value of the configuration that the plugin does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionError {
    /// Where: `config`, `config.index`, `config.headers.0`.
    pub place: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub fix: String,
}

/// Checks the configuration, as JSON; an empty schema takes any. The outer error is about the schema.
pub(crate) fn check(schema: &str, config: &str) -> Result<Vec<OptionError>, String> {
    if schema.trim().is_empty() {
        return Ok(Vec::new());
    }
    let schema: Value = serde_json::from_str(schema).map_err(|error| format!("it is not JSON: {error}"))?;
    check_weight(&schema)?;
    let config: Value =
        serde_json::from_str(config).map_err(|error| format!("the configuration: {error}"))?;
    let options =
        jsonschema::options().with_draft(Draft::Draft202012).with_pattern_options(PatternOptions::regex());
    let validator = options.build(&schema).map_err(|error| error.to_string())?;
    let errors = validator.iter_errors(&config).take(limits::OPTION_ERRORS_MAX);
    Ok(errors.flat_map(|error| explain(&error, &schema)).collect())
}

fn explain(error: &ValidationError<'_>, schema: &Value) -> Vec<OptionError> {
    let place = place(error.instance_path().as_str());
    let one = |place: String, reason: String, fix: String| OptionError { place, reason, fix };
    let text = || cut(&error.to_string(), limits::TEXT_BYTES_MAX).to_owned();
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected }
        | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
            let known = known(schema, error.schema_path().as_str());
            let fix = match known.is_empty() {
                true => "remove it".to_owned(),
                false => format!("remove it; known are {}", known.join(", ")),
            };
            let wrong = |key: &String| {
                one(format!("{place}.{key}"), format!("the plugin has no option `{key}`"), fix.clone())
            };
            unexpected.iter().map(wrong).collect()
        }
        ValidationErrorKind::Required { property } => {
            let key = property.as_str().unwrap_or_default();
            vec![one(place, format!("the plugin needs `{key}`"), format!("add {key}"))]
        }
        _ => {
            let about = described(schema, error.schema_path().as_str());
            let fix = about.unwrap_or_else(|| "see the plugin's documentation".to_owned());
            vec![one(place, text(), fix)]
        }
    }
}

/// `/headers/0` is `config.headers.0`.
fn place(pointer: &str) -> String {
    let steps = pointer.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~"));
    steps.fold("config".to_owned(), |place, step| format!("{place}.{step}"))
}

/// The schema above the keyword that was broken.
fn above<'a>(schema: &'a Value, path: &str) -> Option<&'a Value> {
    path.rsplit_once('/').and_then(|(above, _)| schema.pointer(above))
}

fn known(schema: &Value, path: &str) -> Vec<String> {
    let properties = above(schema, path).and_then(|schema| schema.get("properties"));
    properties.and_then(Value::as_object).into_iter().flatten().map(|(name, _)| format!("`{name}`")).collect()
}

fn described(schema: &Value, path: &str) -> Option<String> {
    let about = above(schema, path)?.get("description")?.as_str()?;
    Some(cut(about, limits::DESCRIPTION_BYTES_MAX).to_owned())
}

/// Keywords whose schemas look at the same value: a reference through nothing but these may never end.
const SAME_VALUE: [&str; 9] = ["$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "not", "if", "then", "else"];

/// Whether each value of a configuration is looked at by so few schemas that checking it ends soon.
fn check_weight(schema: &Value) -> Result<(), String> {
    let mut weights = Weights { root: schema, on_way: HashSet::new(), known: HashMap::new() };
    let mut todo = vec![schema];
    while let Some(value) = todo.pop() {
        match weights.of(value) {
            None => return Err("a `$ref` leads back to itself without a level between".to_owned()),
            Some(weight) if weight > limits::OPTION_SCHEMAS_MAX => {
                return Err(format!("over {} schemas look at one value", limits::OPTION_SCHEMAS_MAX));
            }
            Some(_) => {}
        }
        match value {
            Value::Object(fields) => todo.extend(fields.values()),
            Value::Array(items) => todo.extend(items),
            _ => {}
        }
    }
    Ok(())
}

struct Weights<'a> {
    root: &'a Value,
    on_way: HashSet<*const Value>,
    known: HashMap<*const Value, u64>,
}

impl<'a> Weights<'a> {
    /// How many schemas look at a value that this one looks at; `None`: without end.
    fn of(&mut self, value: &'a Value) -> Option<u64> {
        let key: *const Value = value;
        if let Some(weight) = self.known.get(&key) {
            return Some(*weight);
        }
        if !self.on_way.insert(key) {
            return None;
        }
        let parts: Vec<&'a Value> = match value {
            Value::Object(fields) => SAME_VALUE.iter().filter_map(|keyword| fields.get(*keyword)).collect(),
            Value::Array(items) => items.iter().collect(),
            _ => Vec::new(),
        };
        let mut weight = 1_u64;
        for part in parts {
            let reference = part.as_str().and_then(|reference| reference.strip_prefix('#'));
            let part = match reference {
                Some(pointer) => self.root.pointer(pointer),
                None => Some(part),
            };
            weight = weight.saturating_add(part.map_or(Some(0), |part| self.of(part))?);
        }
        self.on_way.remove(&key);
        self.known.insert(key, weight);
        Some(weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = r##"{"type":"object","additionalProperties":false,"required":["url"],
        "properties":{"url":{"type":"string","pattern":"^https?://","description":"Where to."},
        "headers":{"type":"array","items":{"type":"string","minLength":1}},
        "auth":{"type":"object","additionalProperties":false,"properties":{"secret":{"type":"string"}}},
        "rule":{"$ref":"#/$defs/rule"}},
        "$defs":{"rule":{"type":"object","properties":{"all":{"type":"array","items":{"$ref":"#/$defs/rule"}}}}}}"##;

    fn places(config: &str) -> Vec<String> {
        check(SCHEMA, config).unwrap().into_iter().map(|error| error.place).collect()
    }

    #[test]
    fn each_error_has_its_place() {
        assert!(places(r#"{"url":"http://x","rule":{"all":[{"all":[]}]}}"#).is_empty());
        assert_eq!(places("{}"), ["config"]);
        assert_eq!(places(r#"{"url":"x"}"#), ["config.url"]);
        assert_eq!(places(r#"{"url":"http://x","urll":1}"#), ["config.urll"]);
        assert_eq!(places(r#"{"url":"http://x","auth":{"secrets":1}}"#), ["config.auth.secrets"]);
        assert_eq!(places(r#"{"url":"http://x","headers":["a",""]}"#), ["config.headers.1"]);
        let [error] = check(SCHEMA, r#"{"url":"x"}"#).unwrap().try_into().unwrap();
        assert_eq!(error.fix, "Where to.");
        let [error] = check(SCHEMA, r#"{"url":"http://x","auth":{"a":1}}"#).unwrap().try_into().unwrap();
        assert!(error.fix.contains("`secret`"), "{error:?}");
        assert_eq!(check("", "{}"), Ok(Vec::new()));
    }

    #[test]
    fn a_schema_that_does_harm_is_refused() {
        for (schema, part) in [
            ("{", "not JSON"),
            (r#"{"type":5}"#, ""),
            (r##"{"$ref":"#"}"##, "back to itself"),
            (
                r##"{"$defs":{"a":{"allOf":[{"$ref":"#/$defs/b"}]},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}"##,
                "back to itself",
            ),
            (r#"{"$ref":"http://127.0.0.1:1/x"}"#, ""),
            (r#"{"$ref":"file:///etc/passwd"}"#, ""),
            (r#"{"properties":{"a":{"pattern":"(a"}}}"#, ""),
        ] {
            let error = check(schema, r#"{"a":"x"}"#).unwrap_err();
            assert!(error.contains(part), "{schema}: {error}");
        }
        let doubled = |number| {
            format!(
                r##""s{number}":{{"allOf":[{{"$ref":"#/$defs/s{}"}},{{"$ref":"#/$defs/s{}"}}]}}"##,
                number + 1,
                number + 1
            )
        };
        let all: Vec<String> = (0..40).map(doubled).collect();
        let bomb = format!(r##"{{"$ref":"#/$defs/s0","$defs":{{{},"s40":{{}}}}}}"##, all.join(","));
        assert!(check(&bomb, "{}").unwrap_err().contains("look at one value"));
        // Linear in the text: with backtracking this would not end.
        let text = "a".repeat(40);
        let config = format!(r#"{{"a":"{text}!"}}"#);
        assert_eq!(check(r#"{"properties":{"a":{"pattern":"^(a+)+$"}}}"#, &config).unwrap().len(), 1);
    }
}
