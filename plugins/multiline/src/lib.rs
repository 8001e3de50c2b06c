//! Joins lines that belong together, also when they come in different batches. See README.md.

mod join;

use std::collections::HashMap;
use std::time::Duration;

use flumen_sdk::aggregate::{Aggregator, Events, Opened};
use flumen_sdk::config::duration;
use flumen_sdk::prelude::*;
use flumen_sdk::state;
use join::{Boundary, Limits, Open};
use re::bytes::{Regex, RegexBuilder};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    start: Option<String>,
    #[serde(rename = "continue")]
    goes_on: Option<String>,
    end: Option<String>,
    by: String,
    timeout: String,
    max_lines: u32,
    max_bytes: usize,
    headers: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            start: None,
            goes_on: None,
            end: None,
            by: "stream".to_owned(),
            timeout: "5s".to_owned(),
            max_lines: 1_000,
            max_bytes: 256 << 10,
            headers: Vec::new(),
        }
    }
}

/// Bytes of one event: with what is kept beside its text it has to fit into one value of the state.
const BYTES_MAX: usize = 768 << 10;
/// A compiled pattern may take this much memory.
const PATTERN_BYTES_MAX: usize = 4 << 20;
/// A timeout is looked at four times, and ticks are commits.
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
/// Entries of the state that are looked at in one call.
const SCAN: u32 = 256;

/// The plugin.
pub struct Multiline {
    boundary: Boundary,
    limits: Limits,
    /// The header that tells streams apart; `None`: where the line was read.
    by: Option<String>,
    timeout_ns: i64,
    headers: Vec<String>,
}

impl Aggregator for Multiline {
    fn open(config: Config) -> Result<(Self, Opened), String> {
        let settings: Settings = config.parse()?;
        let boundary = boundary(&settings)?;
        let Settings { by, timeout, max_lines, max_bytes, headers, .. } = settings;
        if max_lines < 2 {
            return Err(format!("config.max_lines: {max_lines} joins nothing; write 2 or more"));
        }
        if !(1..=BYTES_MAX).contains(&max_bytes) {
            return Err(format!("config.max_bytes: {max_bytes} is not from 1 to {BYTES_MAX}"));
        }
        if let Some(place) = headers.iter().position(String::is_empty) {
            return Err(format!("config.headers[{place}]: an empty name; remove it"));
        }
        let timeout = duration(&timeout).filter(|time| *time >= TIMEOUT_MIN).ok_or_else(|| {
            format!("config.timeout: `{timeout}` is not a time of 100ms or more; write a number with ms, s, m, h or d, such as \"5s\"")
        })?;
        let timeout_ns = i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX);
        let by = match by.as_str() {
            "stream" => None,
            other => match other.strip_prefix("header.").filter(|name| !name.is_empty()) {
                Some(name) => Some(name.to_owned()),
                None => {
                    return Err(format!(
                        "config.by: `{other}` is not known; use \"stream\" or \"header.NAME\""
                    ));
                }
            },
        };
        let mut reads = Reads::body().and_time().and_identity();
        for name in by.iter().chain(&headers) {
            reads = reads.and_header(name);
        }
        let tick_ms = u32::try_from(timeout_ns / 4_000_000).unwrap_or(u32::MAX);
        let limits = Limits { lines: max_lines, bytes: max_bytes };
        Ok((Self { boundary, limits, by, timeout_ns, headers }, Opened { reads, tick_ms }))
    }

    fn process(&mut self, batch: &BatchView) -> Result<(Difference, Option<Events>), String> {
        let (Some(body), Some(times), Some((streams, _))) = (batch.body(), batch.time(), batch.identity())
        else {
            return Err("the host did not pass what lines are joined by".to_owned());
        };
        let by = self.by.as_deref().and_then(|name| batch.headers().find(|header| header.name() == name));
        let key = |row: usize| match (&self.by, by) {
            (None, _) => streams.get(row).unwrap_or(0).to_le_bytes().to_vec(),
            (Some(_), Some(by)) => [b"h", by.get(row).unwrap_or_default()].concat(),
            (Some(_), None) => b"h".to_vec(),
        };
        let (mut open, of_row) = self.opened(batch.rows(), key)?;
        let mut kept = KeptRows::with_capacity(batch.rows());
        let mut bodies = ColumnBuilder::with_capacity(batch.rows(), body.data().len());
        let mut new_times = NumberList::with_capacity(batch.rows());
        for (row, (line, time)) in body.iter().zip(times.iter()).enumerate() {
            let Some(group) = of_row.get(row).and_then(|group| open.get_mut(*group)) else { continue };
            if let Some(whole) = join::join(&self.boundary, &self.limits, &mut group.open, line, time) {
                kept.push(row);
                bodies.push(&whole.text);
                new_times.push(whole.time);
            }
            group.last_row = row;
        }
        self.remember(batch, open)?;
        let mut difference = Difference::unchanged();
        if !kept.is_empty() {
            difference.set_body(bodies).set_time(new_times);
        }
        difference.keep_rows(kept);
        Ok((difference, None))
    }

    fn tick(&mut self, now: i64) -> Result<Option<Events>, String> {
        let mut events = Events::new();
        let (mut over, mut seen_keys, mut seen) = (column(), column(), column());
        let mut after: Option<Vec<u8>> = None;
        loop {
            let entries = state::scan(b"", after.as_deref(), SCAN)?;
            for (key, value) in entries.iter() {
                let Some(mut open) = Open::decode(value) else { continue };
                if open.seen == 0 {
                    open.seen = now;
                    seen_keys.push(key);
                    seen.push(&open.encode());
                } else if now.saturating_sub(open.seen) >= self.timeout_ns {
                    let named = self.headers.iter().zip(&open.headers);
                    let headers: Vec<(&str, &str)> =
                        named.filter_map(|(name, value)| Some((name.as_str(), value.as_deref()?))).collect();
                    events.push(open.time, &open.text, &headers);
                    over.push(key);
                }
            }
            let last = entries.iter().last().map(|(key, _)| key.to_vec());
            if last.is_none() || entries.len() < SCAN as usize {
                break;
            }
            after = last;
        }
        if seen.rows() > 0 {
            state::put_many(seen_keys, seen, None)?;
        }
        if over.rows() > 0 {
            state::remove_many(over)?;
        }
        Ok(Some(events))
    }
}

/// The lines of one stream.
struct Group {
    key: Vec<u8>,
    open: Option<Open>,
    was_open: bool,
    last_row: usize,
}

impl Multiline {
    /// What is open of the streams in this batch, and which stream each row is of.
    fn opened(
        &self,
        rows: usize,
        key: impl Fn(usize) -> Vec<u8>,
    ) -> Result<(Vec<Group>, Vec<usize>), String> {
        let mut numbers: HashMap<Vec<u8>, usize> = HashMap::new();
        let mut of_row = Vec::with_capacity(rows);
        let mut keys: Vec<Vec<u8>> = Vec::new();
        for row in 0..rows {
            let key = key(row);
            let number = *numbers.entry(key).or_insert_with_key(|key| {
                keys.push(key.clone());
                keys.len() - 1
            });
            of_row.push(number);
        }
        let mut asked = ColumnBuilder::with_capacity(keys.len(), keys.len() * 8);
        keys.iter().for_each(|key| asked.push(key));
        let values = state::get_many(asked)?;
        let groups = keys.into_iter().enumerate().map(|(number, key)| {
            let open = match values.get(number) {
                None => None,
                Some(value) => {
                    Some(Open::decode(value).ok_or("the state of another plugin, or of another version")?)
                }
            };
            Ok(Group { key, was_open: open.is_some(), open, last_row: 0 })
        });
        Ok((groups.collect::<Result<_, String>>()?, of_row))
    }

    fn remember(&self, batch: &BatchView, groups: Vec<Group>) -> Result<(), String> {
        let (mut keys, mut values, mut closed) = (column(), column(), column());
        for Group { key, open, was_open, last_row } in groups {
            match open {
                Some(mut open) => {
                    let header = |name: &String| batch.headers().find(|header| header.name() == name);
                    let value =
                        |name| header(name).and_then(|header| header.get_str(last_row)).map(str::to_owned);
                    open.headers = self.headers.iter().map(value).collect();
                    keys.push(&key);
                    values.push(&open.encode());
                }
                None if was_open => closed.push(&key),
                None => {}
            }
        }
        if keys.rows() > 0 {
            state::put_many(keys, values, None)?;
        }
        match closed.rows() {
            0 => Ok(()),
            _ => state::remove_many(closed),
        }
    }
}

fn column() -> ColumnBuilder {
    ColumnBuilder::with_capacity(0, 0)
}

fn boundary(settings: &Settings) -> Result<Boundary, String> {
    let compile = |key: &str, pattern: &str| -> Result<Regex, String> {
        let compiled = RegexBuilder::new(pattern).unicode(false).size_limit(PATTERN_BYTES_MAX).build();
        compiled.map_err(|error| format!("config.{key}: {error}"))
    };
    match (&settings.start, &settings.goes_on, &settings.end) {
        (Some(start), None, None) => Ok(Boundary::Start(compile("start", start)?)),
        (None, Some(goes_on), None) => Ok(Boundary::Continue(compile("continue", goes_on)?)),
        (None, None, Some(end)) => Ok(Boundary::End(compile("end", end)?)),
        (None, None, None) => {
            Err("config: which lines belong together? give `start`, `continue` or `end`, such as `start = '^\\d{4}-'`".to_owned())
        }
        _ => Err("config: more than one of `start`, `continue` and `end`; give one of them".to_owned()),
    }
}

flumen_sdk::aggregator!(Multiline);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_key() {
        let error = |config: &str| Multiline::open(Config::new(config)).map(|_| ()).unwrap_err();
        assert!(error("{}").starts_with("config: which lines belong together?"));
        assert!(error(r#"{"start":"a","end":"b"}"#).starts_with("config: more than one"));
        assert!(error(r#"{"start":"("}"#).starts_with("config.start: regex parse error"));
        assert!(error(r#"{"start":"a","timeout":"5"}"#).starts_with("config.timeout: `5` is not a time"));
        assert!(error(r#"{"start":"a","by":"path"}"#).starts_with("config.by: `path` is not known"));
        assert!(error(r#"{"start":"a","max_lines":1}"#).starts_with("config.max_lines: 1 joins nothing"));
        assert!(error(r#"{"start":"a","max_bytes":9000000}"#).starts_with("config.max_bytes: 9000000"));
    }
}
