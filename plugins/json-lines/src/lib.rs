//! Events as lines of JSON. See README.md.

mod read;
mod write;

use flumen_sdk::codec::{Decoded, Decoder, Encoder, Payloads};
use flumen_sdk::prelude::*;

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// The key of the body; empty: the body is the whole object.
    body: String,
    /// The key of the time; empty: none.
    time: String,
    /// What a number in it counts.
    time_unit: Unit,
    /// The key of an object that holds headers; empty: none.
    headers: String,
    /// Keys beside these that are headers.
    fields: Vec<String>,
}

#[derive(Clone, Copy, Deserialize)]
enum Unit {
    #[serde(rename = "s")]
    Seconds,
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "us")]
    Microseconds,
    #[serde(rename = "ns")]
    Nanoseconds,
}

impl Unit {
    fn nanoseconds(self) -> f64 {
        match self {
            Unit::Seconds => 1e9,
            Unit::Milliseconds => 1e6,
            Unit::Microseconds => 1e3,
            Unit::Nanoseconds => 1.0,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            body: "body".to_owned(),
            time: "time".to_owned(),
            time_unit: Unit::Milliseconds,
            headers: "headers".to_owned(),
            fields: Vec::new(),
        }
    }
}

impl Settings {
    fn parse(config: &Config) -> Result<Settings, String> {
        let settings: Settings = config.parse()?;
        let Settings { body, time, headers, fields, .. } = &settings;
        let mut keys: Vec<&String> =
            [body, time, headers].into_iter().filter(|key| !key.is_empty()).collect();
        keys.extend(fields);
        for (index, key) in keys.iter().enumerate() {
            if key.is_empty() {
                return Err("config.fields: a key is empty; remove it".to_owned());
            }
            if keys.iter().take(index).any(|other| other == key) {
                return Err(format!(
                    "config: the key `{key}` is used twice; give each part a key of its own"
                ));
            }
        }
        Ok(settings)
    }
}

struct Reader(Settings);

impl Decoder for Reader {
    const OPTIONS: &'static str = include_str!("../options.json");

    fn open(config: Config) -> Result<Self, String> {
        Settings::parse(&config).map(Reader)
    }

    fn decode(&mut self, input: &[u8], is_last: bool, out: &mut Decoded) -> Result<(), String> {
        let mut start = 0;
        while let Some(rest) = input.get(start..).filter(|rest| !rest.is_empty()) {
            let newline = memchr::memchr(b'\n', rest);
            let length = match newline {
                Some(newline) => newline,
                None if is_last => rest.len(),
                None => break,
            };
            let end = start + length + usize::from(newline.is_some());
            let line = rest.get(..length).unwrap_or_default();
            // A blank line is nothing.
            if !line.trim_ascii().is_empty() {
                match read::event(&self.0, line) {
                    Ok(event) => event.put(end, out),
                    Err(reason) => out.bad(start..end, reason),
                }
            }
            out.consume(end);
            start = end;
        }
        Ok(())
    }
}

struct Writer {
    settings: Settings,
    /// The line under construction: a row that turns out to be none leaves nothing behind.
    line: Vec<u8>,
}

impl Encoder for Writer {
    fn open(config: Config) -> Result<(Self, Reads), String> {
        let settings = Settings::parse(&config)?;
        let mut reads = Reads::body();
        if !settings.time.is_empty() {
            reads = reads.and_time();
        }
        reads = match settings.headers.is_empty() {
            false => reads.and_all_headers(),
            true => settings.fields.iter().cloned().fold(reads, Reads::and_header),
        };
        Ok((Writer { settings, line: Vec::new() }, reads))
    }

    fn encode(&mut self, batch: &BatchView, file: Option<u64>, out: &mut Payloads) -> Result<(), String> {
        let Some(body) = batch.body() else { return Err("no body was passed".to_owned()) };
        let columns: Vec<(HeaderColumn, bool)> = batch
            .headers()
            .map(|column| (column, self.settings.fields.iter().any(|field| field == column.name())))
            .collect();
        let times = batch.time();
        for (row, body) in body.iter().enumerate() {
            self.line.clear();
            let time = times.and_then(|times| times.get(row));
            if let Err(reason) = write::event(&self.settings, body, time, &columns, row, &mut self.line) {
                out.reject(row, reason);
                continue;
            }
            if file.is_some() {
                self.line.push(b'\n');
            }
            out.push(&self.line);
        }
        Ok(())
    }
}

flumen_sdk::codec!(Reader, Writer);
