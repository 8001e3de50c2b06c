//! The `config` table of the pipeline, as JSON.

/// The configuration of one plugin instance.
#[derive(Clone, Debug)]
pub struct Config {
    json: String,
}

impl Config {
    /// From JSON text.
    pub fn new(json: impl Into<String>) -> Self {
        Self { json: json.into() }
    }

    /// The JSON text; `{}` if the pipeline has no `config`.
    pub fn as_json(&self) -> &str {
        &self.json
    }

    /// For plugins that have no configuration: an error if there is some.
    pub fn none(&self) -> Result<(), String> {
        let blank = |byte: &u8| byte.is_ascii_whitespace();
        let text: Vec<u8> = self.json.bytes().filter(|byte| !blank(byte)).collect();
        match text.as_slice() {
            b"" | b"{}" => Ok(()),
            _ => Err("config: this plugin takes no configuration; remove the `config` table".to_owned()),
        }
    }

    /// Into a serde type, with errors that name the key. Give the type `#[serde(deny_unknown_fields)]`: a misspelt key
    /// then is an error and not a default.
    #[cfg(feature = "config")]
    pub fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, String> {
        let text = if self.json.trim().is_empty() { "{}" } else { &self.json };
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let parsed = serde_path_to_error::deserialize(&mut deserializer)
            .map_err(|error| explain(&error.path().to_string(), &error.inner().to_string()))?;
        deserializer.end().map_err(|error| explain(".", &error.to_string()))?;
        Ok(parsed)
    }
}

/// A time as configurations write it: a whole number and its unit, `ms`, `s`, `m`, `h` or `d`.
pub fn duration(text: &str) -> Option<core::time::Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(milliseconds).map(core::time::Duration::from_millis)
}

/// From serde's words to the user's: the key first, then what to do. Line and column are those of a JSON text that the
/// user never saw.
#[cfg(feature = "config")]
fn explain(path: &str, message: &str) -> String {
    let message = message.split_once(" at line ").map_or(message, |(message, _)| message);
    let at = if path == "." { "config".to_owned() } else { format!("config.{path}") };
    if let Some((field, expected)) =
        message.strip_prefix("unknown field `").and_then(|rest| rest.split_once("`, expected "))
    {
        // The path of an unknown key ends in the key itself.
        let parent = path.strip_suffix(field).map_or(path, |parent| parent.trim_end_matches('.'));
        let parent =
            if parent.is_empty() || parent == "." { "config".to_owned() } else { format!("config.{parent}") };
        let expected = expected.strip_prefix("one of ").unwrap_or(expected);
        return format!("{parent}: unknown key `{field}`; the keys are {expected}");
    }
    if let Some(field) =
        message.strip_prefix("unknown field `").and_then(|rest| rest.strip_suffix("`, there are no fields"))
    {
        return format!("config: unknown key `{field}`; this plugin takes no configuration");
    }
    if let Some(field) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        return format!("{at}: the key `{field}` is missing; add it");
    }
    if let Some((variant, expected)) =
        message.strip_prefix("unknown variant `").and_then(|rest| rest.split_once("`, expected "))
    {
        let expected = expected.strip_prefix("one of ").unwrap_or(expected);
        return format!("{at}: `{variant}` is not known; use {expected}");
    }
    if let Some((found, expected)) =
        message.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected "))
    {
        return format!("{at}: found {found}; write {expected}");
    }
    format!("{at}: {message}")
}

#[cfg(all(test, feature = "config"))]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    #[allow(dead_code)]
    struct Settings {
        limit: u32,
        names: Vec<Name>,
        inner: Inner,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Inner {
        depth: u8,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Name {
        One,
        Two,
    }

    #[test]
    fn errors_name_the_key_and_the_fix() {
        let check = |json: &str, expected: &str| {
            assert_eq!(Config::new(json).parse::<Settings>().unwrap_err(), expected);
        };
        check(r#"{"limt":1}"#, "config: unknown key `limt`; the keys are `limit`, `names`, `inner`");
        check(r#"{"limit":"x"}"#, "config.limit: found string \"x\"; write u32");
        check(r#"{"names":["one","three"]}"#, "config.names[1]: `three` is not known; use `one` or `two`");
        check(r#"{"inner":{}}"#, "config.inner: the key `depth` is missing; add it");
        check(r#"{"inner":{"dept":1}}"#, "config.inner: unknown key `dept`; the keys are `depth`");
        check("{}}", "config: trailing characters");
        assert!(Config::new("").parse::<Settings>().is_ok());
        assert!(Config::new(r#"{"names":["two"]}"#).parse::<Settings>().is_ok());
    }

    #[test]
    fn times_have_a_number_and_a_unit() {
        let milliseconds = |text| duration(text).map(|time| time.as_millis());
        assert_eq!(
            [milliseconds("250ms"), milliseconds("90s"), milliseconds("2d")],
            [Some(250), Some(90_000), Some(172_800_000)]
        );
        for wrong in ["", "s", "5", "5 s", "-5s", "1.5s", "5w", "99999999999999999999d"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn no_configuration_means_none() {
        assert!(Config::new(" { } ").none().is_ok());
        assert!(Config::new(r#"{"a":1}"#).none().is_err());
    }
}
