//! A plugin's configuration, held against the JSON Schema that the plugin gives of it.
//!
//! Of draft 2020-12 it knows what configurations are described with: `type`, `enum`, `const`, `properties`,
//! `patternProperties`, `additionalProperties`, `required`, `minProperties`, `maxProperties`, `items`, `minItems`, `maxItems`, `minLength`,
//! `maxLength`, `pattern`, `minimum`, `maximum`, `anyOf`, `oneOf`, `allOf` and `$ref` within the schema. What it does not know it leaves to
//! the plugin's `open`, which has the last word anyway: a configuration is never refused for a keyword that is not in this list.
//!
//! The schema is the plugin's, so it is not trusted: its size ([`limits::OPTIONS_SCHEMA_BYTES_MAX`]) and the steps of a check
//! ([`limits::OPTION_STEPS_MAX`]) are bounded, and patterns run in time that is linear in the text.

use regex::Regex;
use serde_json::{Map, Value};

use crate::failure::printable;
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
    let config: Value =
        serde_json::from_str(config).map_err(|error| format!("the configuration: {error}"))?;
    let mut check = Check { root: &schema, steps: 0, depth: 0, errors: Vec::new() };
    check.value(&schema, &config, "config")?;
    check.errors.truncate(limits::OPTION_ERRORS_MAX);
    Ok(check.errors)
}

struct Check<'a> {
    root: &'a Value,
    steps: usize,
    depth: usize,
    errors: Vec<OptionError>,
}

impl<'a> Check<'a> {
    fn value(&mut self, schema: &'a Value, value: &Value, place: &str) -> Result<(), String> {
        self.steps += 1;
        if self.steps > limits::OPTION_STEPS_MAX || self.depth > limits::OPTION_DEPTH_MAX {
            return Err("checking it has no end: a `$ref` leads back to itself, or too many schemas look at one value".to_owned());
        }
        self.depth += 1;
        let outcome = match schema {
            Value::Bool(false) => {
                self.wrong(schema, place, "nothing may stand here".to_owned());
                Ok(())
            }
            Value::Object(keywords) => self.keywords(schema, keywords, value, place),
            _ => Ok(()),
        };
        self.depth -= 1;
        outcome
    }

    fn keywords(
        &mut self,
        schema: &'a Value,
        keywords: &'a Map<String, Value>,
        value: &Value,
        place: &str,
    ) -> Result<(), String> {
        if let Some(reference) = keywords.get("$ref").and_then(Value::as_str) {
            let to = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
            self.value(to.ok_or_else(|| format!("`$ref` {reference:?} leads nowhere in it"))?, value, place)?;
        }
        if let Some(kind) = keywords.get("type")
            && !is_of_type(value, kind)
        {
            self.wrong(schema, place, format!("this is {}, not {}", type_of(value), types(kind)));
            return Ok(());
        }
        if let Some(words) = keywords.get("enum").and_then(Value::as_array)
            && !words.contains(value)
        {
            let words: Vec<String> = words.iter().map(Value::to_string).collect();
            self.wrong_with(
                place,
                "this is none of the values".to_owned(),
                format!("write one of {}", words.join(", ")),
            );
        }
        if let Some(only) = keywords.get("const").filter(|only| *only != value) {
            self.wrong(schema, place, format!("this is not {only}"));
        }
        match value {
            Value::Object(fields) => self.object(schema, keywords, fields, place)?,
            Value::Array(items) => self.array(schema, keywords, items, place)?,
            Value::String(text) => self.text(schema, keywords, text, place)?,
            Value::Number(number) => self.number(schema, keywords, number.as_f64().unwrap_or(0.0), place),
            _ => {}
        }
        self.combined(schema, keywords, value, place)
    }

    fn combined(
        &mut self,
        schema: &'a Value,
        keywords: &'a Map<String, Value>,
        value: &Value,
        place: &str,
    ) -> Result<(), String> {
        for part in list(keywords, "allOf") {
            self.value(part, value, place)?;
        }
        for keyword in ["anyOf", "oneOf"] {
            let parts = list(keywords, keyword);
            if parts.is_empty() {
                continue;
            }
            let mut tried = Vec::new();
            let before = std::mem::take(&mut self.errors);
            for part in parts {
                self.value(part, value, place)?;
                tried.push(std::mem::take(&mut self.errors));
            }
            self.errors = before;
            let fits = tried.iter().filter(|errors| errors.is_empty()).count();
            match (fits, tried.as_mut_slice()) {
                (0, [only]) => self.errors.append(only),
                // The way that got deepest is what was meant.
                (0, several) => {
                    let deepest = several
                        .iter_mut()
                        .max_by_key(|errors| errors.iter().map(|error| error.place.len()).max());
                    let deepest = deepest.map(std::mem::take).unwrap_or_default();
                    match deepest.iter().any(|error| error.place != place) {
                        true => self.errors.extend(deepest),
                        false => {
                            self.wrong(schema, place, "this fits none of the ways to write it".to_owned())
                        }
                    }
                }
                (2.., _) if keyword == "oneOf" => {
                    self.wrong(
                        schema,
                        place,
                        "this fits several ways to write it, and only one may be meant".to_owned(),
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn object(
        &mut self,
        schema: &'a Value,
        keywords: &'a Map<String, Value>,
        fields: &Map<String, Value>,
        place: &str,
    ) -> Result<(), String> {
        let properties = keywords.get("properties").and_then(Value::as_object);
        let patterns = keywords.get("patternProperties").and_then(Value::as_object);
        for (key, value) in fields {
            let place = format!("{place}.{key}");
            let known = properties.and_then(|properties| properties.get(key));
            let mut is_known = known.is_some();
            if let Some(schema) = known {
                self.value(schema, value, &place)?;
            }
            for (pattern, schema) in patterns.into_iter().flatten() {
                if regex(pattern)?.is_match(key) {
                    is_known = true;
                    self.value(schema, value, &place)?;
                }
            }
            match keywords.get("additionalProperties") {
                Some(Value::Bool(false)) if !is_known => {
                    let names = properties.into_iter().flatten().map(|(name, _)| format!("`{name}`"));
                    let names: Vec<String> = names.collect();
                    let fix = match names.is_empty() {
                        true => "remove it".to_owned(),
                        false => format!("remove it; known are {}", names.join(", ")),
                    };
                    self.wrong_with(&place, format!("the plugin has no option `{key}`"), fix);
                }
                Some(schema) if !is_known => self.value(schema, value, &place)?,
                _ => {}
            }
        }
        for key in list(keywords, "required").iter().filter_map(Value::as_str) {
            if !fields.contains_key(key) {
                let about = properties.and_then(|properties| properties.get(key)).and_then(described);
                let fix = about.map_or(format!("add {key}"), |about| format!("add {key}: {about}"));
                self.wrong_with(place, format!("the plugin needs `{key}`"), fix);
            }
        }
        self.count(schema, keywords, ("minProperties", "maxProperties", "keys"), fields.len(), place);
        Ok(())
    }

    fn array(
        &mut self,
        schema: &'a Value,
        keywords: &'a Map<String, Value>,
        items: &[Value],
        place: &str,
    ) -> Result<(), String> {
        if let Some(each) = keywords.get("items") {
            for (at, item) in items.iter().enumerate() {
                self.value(each, item, &format!("{place}.{at}"))?;
            }
        }
        self.count(schema, keywords, ("minItems", "maxItems", "items"), items.len(), place);
        Ok(())
    }

    fn text(
        &mut self,
        schema: &'a Value,
        keywords: &Map<String, Value>,
        text: &str,
        place: &str,
    ) -> Result<(), String> {
        if let Some(pattern) = keywords.get("pattern").and_then(Value::as_str)
            && !regex(pattern)?.is_match(text)
        {
            self.wrong(schema, place, format!("this does not match {pattern}"));
        }
        self.count(schema, keywords, ("minLength", "maxLength", "characters"), text.chars().count(), place);
        Ok(())
    }

    fn number(&mut self, schema: &'a Value, keywords: &Map<String, Value>, number: f64, place: &str) {
        let limit = |keyword: &str| keywords.get(keyword).and_then(Value::as_f64);
        if let Some(min) = limit("minimum").filter(|min| number < *min) {
            self.wrong(schema, place, format!("this is less than {min}"));
        }
        if let Some(max) = limit("maximum").filter(|max| number > *max) {
            self.wrong(schema, place, format!("this is more than {max}"));
        }
    }

    fn count(
        &mut self,
        schema: &'a Value,
        keywords: &Map<String, Value>,
        (min, max, what): (&str, &str, &str),
        count: usize,
        place: &str,
    ) {
        let limit = |keyword: &str| keywords.get(keyword).and_then(Value::as_u64);
        let count = count as u64;
        if let Some(min) = limit(min).filter(|min| count < *min) {
            self.wrong(schema, place, format!("this has fewer than {min} {what}"));
        }
        if let Some(max) = limit(max).filter(|max| count > *max) {
            self.wrong(schema, place, format!("this has more than {max} {what}"));
        }
    }

    fn wrong(&mut self, schema: &Value, place: &str, reason: String) {
        let fix = described(schema).unwrap_or_else(|| "see the plugin's documentation".to_owned());
        self.wrong_with(place, reason, fix);
    }

    fn wrong_with(&mut self, place: &str, reason: String, fix: String) {
        // Both may be the schema's words.
        let shown = |text: String| printable(&text, limits::TEXT_BYTES_MAX);
        self.errors.push(OptionError { place: place.to_owned(), reason: shown(reason), fix: shown(fix) });
    }
}

fn list<'a>(keywords: &'a Map<String, Value>, keyword: &str) -> &'a [Value] {
    keywords.get(keyword).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn regex(pattern: &str) -> Result<Regex, String> {
    Regex::new(pattern).map_err(|error| format!("the pattern {pattern:?} is none: {error}"))
}

fn described(schema: &Value) -> Option<String> {
    schema.get("description").and_then(Value::as_str).map(str::to_owned)
}

fn is_of_type(value: &Value, kind: &Value) -> bool {
    let is = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0)
        }
        _ => true,
    };
    match kind {
        Value::String(kind) => is(kind),
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).any(is),
        _ => true,
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Object(_) => "a table",
        Value::Array(_) => "a list",
        Value::String(_) => "a string",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::Null => "nothing",
    }
}

fn types(kind: &Value) -> String {
    let word = |kind: &Value| match kind.as_str() {
        Some("object") => "a table".to_owned(),
        Some("array") => "a list".to_owned(),
        Some("integer") => "a whole number".to_owned(),
        Some(kind) => format!("a {kind}"),
        None => kind.to_string(),
    };
    match kind {
        Value::Array(kinds) => kinds.iter().map(word).collect::<Vec<_>>().join(" or "),
        kind => word(kind),
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
    fn a_schemas_words_have_nothing_that_a_terminal_obeys() {
        let schema = r#"{"properties":{"a":{"type":"string","description":"\u001b[2JWhere.\n"}}}"#;
        let [error] = check(schema, r#"{"a":1}"#).unwrap().try_into().unwrap();
        assert_eq!(error.fix, "\\u{1b}[2JWhere.\\n");
    }

    #[test]
    fn a_schema_that_does_harm_is_refused() {
        let doubled = |number| {
            let next = number + 1;
            format!(
                r##""s{number}":{{"allOf":[{{"$ref":"#/$defs/s{next}"}},{{"$ref":"#/$defs/s{next}"}}]}}"##
            )
        };
        let all: Vec<String> = (0..40).map(doubled).collect();
        let bomb = format!(r##"{{"$ref":"#/$defs/s0","$defs":{{{},"s40":{{}}}}}}"##, all.join(","));
        for (schema, part) in [
            ("{", "not JSON"),
            (r##"{"$ref":"#"}"##, "no end"),
            (&bomb, "no end"),
            (r#"{"$ref":"file:///etc/passwd"}"#, "nowhere"),
            (r#"{"properties":{"a":{"pattern":"(a"}}}"#, "pattern"),
        ] {
            let error = check(schema, r#"{"a":"x"}"#).unwrap_err();
            assert!(error.contains(part), "{schema}: {error}");
        }
        // Linear in the text: with backtracking this would not end.
        let config = format!(r#"{{"a":"{}!"}}"#, "a".repeat(40));
        assert_eq!(check(r#"{"properties":{"a":{"pattern":"^(a+)+$"}}}"#, &config).unwrap().len(), 1);
    }

    #[test]
    fn ways_to_write_a_value() {
        let schema = r#"{"properties":{"a":{"anyOf":[{"type":"string"},{"type":"object","additionalProperties":false,
            "properties":{"b":{"type":"integer","minimum":1,"maximum":5}}}]},"c":{"enum":["x","y"]},
            "d":{"type":["string","boolean"]},"e":{"items":{"minLength":2},"maxItems":2}}}"#;
        let errors = |config: &str| {
            let errors = check(schema, config).unwrap().into_iter();
            errors.map(|error| format!("{}: {}", error.place, error.reason)).collect::<Vec<_>>()
        };
        assert!(errors(r#"{"a":"x","c":"y","d":true,"e":["ab"],"f":1}"#).is_empty());
        assert!(errors(r#"{"a":{"b":3}}"#).is_empty());
        assert_eq!(errors(r#"{"a":{"b":9}}"#), ["config.a.b: this is more than 5"]);
        assert_eq!(errors(r#"{"a":1}"#), ["config.a: this fits none of the ways to write it"]);
        assert_eq!(errors(r#"{"c":"z"}"#), ["config.c: this is none of the values"]);
        assert_eq!(errors(r#"{"d":1}"#), ["config.d: this is a number, not a string or a boolean"]);
        assert_eq!(errors(r#"{"e":["a"]}"#), ["config.e.0: this has fewer than 2 characters"]);
    }

    proptest::proptest! {
        #[test]
        fn any_schema_has_an_end(schema in "[{}\\[\\]\",:a-z$#/0-9]{0,200}", config in "[{}\\[\\]\",:a-z0-9]{0,60}") {
            let _outcome = check(&schema, &config);
        }
    }
}
