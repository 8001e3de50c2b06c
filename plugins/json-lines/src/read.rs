//! A line of JSON as an event.

use std::borrow::Cow;

use flumen_sdk::codec::Decoded;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::Settings;

/// What a line says.
pub struct Event<'a> {
    body: Cow<'a, [u8]>,
    time: Option<i64>,
    headers: Vec<(String, String)>,
}

impl Event<'_> {
    /// Adds it to the answer.
    pub fn put(self, end: usize, out: &mut Decoded) {
        let mut event = out.event(end, &self.body);
        if let Some(time) = self.time {
            event = event.time(time);
        }
        for (name, value) in &self.headers {
            event = event.header(name, value);
        }
    }
}

/// Reads a line; the error says what is wrong with it.
pub fn event<'a>(settings: &Settings, line: &'a [u8]) -> Result<Event<'a>, String> {
    let mut object: Map<String, Value> =
        serde_json::from_slice(line).map_err(|error| format!("not an object of JSON: {error}"))?;
    let time = match object.remove(&settings.time) {
        None | Some(Value::Null) => None,
        Some(value) => Some(time(settings, &value)?),
    };
    let body = body(settings, &mut object, line)?;
    let mut headers = Vec::new();
    for field in &settings.fields {
        headers.extend(object.remove(field).and_then(|value| Some((field.clone(), text(value)?))));
    }
    match object.remove(&settings.headers) {
        None | Some(Value::Null) => {}
        Some(Value::Object(object)) => {
            headers.extend(object.into_iter().filter_map(|(name, value)| Some((name, text(value)?))));
        }
        Some(_) => return Err(format!("`{}` is not an object", settings.headers)),
    }
    headers.retain(|(name, _)| !name.is_empty() && name.len() <= HEADER_NAME_BYTES_MAX);
    Ok(Event { body, time, headers })
}

/// Longer names, and empty ones, cannot be headers.
const HEADER_NAME_BYTES_MAX: usize = 255;

fn body<'a>(
    settings: &Settings,
    object: &mut Map<String, Value>,
    line: &'a [u8],
) -> Result<Cow<'a, [u8]>, String> {
    if settings.body.is_empty() {
        return Ok(Cow::Borrowed(line.trim_ascii()));
    }
    if let Some(value) = object.remove(&settings.body) {
        return Ok(Cow::Owned(text(value).unwrap_or_default().into_bytes()));
    }
    let key = format!("{}_base64", settings.body);
    match object.remove(&key) {
        Some(Value::String(encoded)) => match crate::write::from_base64(&encoded) {
            Some(bytes) => Ok(Cow::Owned(bytes)),
            None => Err(format!("`{key}` is not base64")),
        },
        _ => Err(format!("there is no key `{}`", settings.body)),
    }
}

/// A string as it is, anything else as JSON; null is nothing.
fn text(value: Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}

fn time(settings: &Settings, value: &Value) -> Result<i64, String> {
    let wrong = |why: &str| format!("`{}` is not a time: {why}", settings.time);
    match value {
        Value::String(text) => {
            let time: Timestamp = text.parse().map_err(|_| wrong("write RFC 3339"))?;
            i64::try_from(time.as_nanosecond()).map_err(|_| wrong("only the years 1677 to 2262 can be"))
        }
        Value::Number(number) => {
            let unit = settings.time_unit.nanoseconds();
            let time = match number.as_i64() {
                Some(whole) => whole.checked_mul(unit as i64),
                None => number
                    .as_f64()
                    .map(|number| number * unit)
                    .filter(|time| time.abs() < i64::MAX as f64)
                    .map(|time| time as i64),
            };
            time.ok_or_else(|| wrong("the number is too large"))
        }
        _ => Err(wrong("it is neither a string nor a number")),
    }
}
