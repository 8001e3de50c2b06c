//! Counts events by the value of a header, in windows of event time.
//!
//! In the state: under the end of a window (so that keys are in the order in which windows close) and the value, the count.
//! A window closes when an event behind its end comes, or when the clock is a whole window behind its end. What comes later
//! still is counted anew: the counts of a window and a value add up to its events.

use std::collections::BTreeMap;

use flumen_sdk::aggregate::{Aggregator, Events, Opened};
use flumen_sdk::prelude::*;
use flumen_sdk::state;

/// Windows that are looked at in one go.
const SCAN_MAX: u32 = 1_000;
/// Events that are made in one go: what is left follows with the next batch or tick. A batch has at most 65,536.
const EVENTS_MAX: usize = 32_768;
/// A key of the state has at most 1,024 bytes.
const VALUE_BYTES_MAX: usize = 1_000;

#[derive(Deserialize)]
#[serde(crate = "flumen_sdk::serde", deny_unknown_fields)]
struct Options {
    by: String,
    #[serde(default = "one_minute")]
    window_s: u32,
}

fn one_minute() -> u32 {
    60
}

struct Count {
    by: String,
    window_ns: i64,
}

impl Aggregator for Count {
    const OPTIONS: &'static str = r#"{
        "type": "object", "additionalProperties": false, "required": ["by"],
        "properties": {
            "by": { "type": "string", "minLength": 1, "description": "The header whose values are counted." },
            "window_s": { "type": "integer", "minimum": 1, "maximum": 86400, "default": 60, "description": "Seconds of a window." }
        }
    }"#;

    fn open(config: Config) -> Result<(Self, Opened), String> {
        let Options { by, window_s } = config.parse()?;
        let reads = Reads::time().and_header(&by);
        // Ten times in a window, and at least every ten seconds.
        let tick_ms = (window_s * 100).min(10_000);
        Ok((Self { by, window_ns: i64::from(window_s) * 1_000_000_000 }, Opened { reads, tick_ms }))
    }

    fn process(&mut self, batch: &BatchView) -> Result<(Difference, Option<Events>), String> {
        let (times, values) = batch.time().zip(batch.header(0)).ok_or("the host passed other columns")?;
        let mut counts: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        let mut latest = i64::MIN;
        for (row, time) in times.iter().enumerate() {
            let value = values.get_str(row).unwrap_or("-");
            let value = value.get(..value.floor_char_boundary(VALUE_BYTES_MAX)).unwrap_or(value);
            let key = [&sortable(self.end_of(time)), value.as_bytes()].concat();
            *counts.entry(key).or_default() += 1;
            latest = latest.max(time);
        }
        add(&counts)?;
        let events = self.close(latest)?;
        // The counts go on in place of the events.
        let mut rows = Difference::unchanged();
        rows.keep_rows(KeptRows::with_capacity(0));
        Ok((rows, Some(events)))
    }

    fn tick(&mut self, now: i64) -> Result<Option<Events>, String> {
        self.close(now.saturating_sub(self.window_ns)).map(Some)
    }
}

impl Count {
    /// The end of the window that a time is in.
    fn end_of(&self, time: i64) -> i64 {
        (time.div_euclid(self.window_ns) + 1).saturating_mul(self.window_ns)
    }

    /// The counts of all windows that end at a time or before it.
    fn close(&self, time: i64) -> Result<Events, String> {
        let mut events = Events::new();
        loop {
            let found = state::scan(b"", None, SCAN_MAX)?;
            let mut closed = ColumnBuilder::with_capacity(0, 0);
            for (key, count) in found.iter() {
                let (end, value) = read_key(key)?;
                if end > time {
                    break;
                }
                events.push(end, read_count(count)?.to_string().as_bytes(), &[(&self.by, value)]);
                closed.push(key);
            }
            let closes = closed.rows();
            if closes > 0 {
                state::remove_many(closed)?;
            }
            if closes < SCAN_MAX as usize || events.len() >= EVENTS_MAX {
                return Ok(events);
            }
        }
    }
}

/// Adds to what was counted before.
fn add(counts: &BTreeMap<Vec<u8>, u64>) -> Result<(), String> {
    let keys = || {
        let mut keys = ColumnBuilder::with_capacity(counts.len(), counts.len() * 32);
        counts.keys().for_each(|key| keys.push(key));
        keys
    };
    let before = state::get_many(keys())?;
    let mut sums = ColumnBuilder::with_capacity(counts.len(), counts.len() * 8);
    for (row, count) in counts.values().enumerate() {
        let sum = before.get(row).map_or(Ok(0), read_count)? + count;
        sums.push(&sum.to_le_bytes());
    }
    state::put_many(keys(), sums, None)
}

fn read_count(bytes: &[u8]) -> Result<u64, String> {
    bytes.try_into().map(u64::from_le_bytes).map_err(|_| "what it remembers is not what it wrote".to_owned())
}

/// Numbers in the order of their bytes.
fn sortable(number: i64) -> [u8; 8] {
    (number as u64 ^ 1 << 63).to_be_bytes()
}

/// The end of a window, and the value.
fn read_key(key: &[u8]) -> Result<(i64, &str), String> {
    let read = || {
        let (end, value) = key.split_first_chunk::<8>()?;
        Some(((u64::from_be_bytes(*end) ^ 1 << 63) as i64, std::str::from_utf8(value).ok()?))
    };
    read().ok_or_else(|| "what it remembers is not what it wrote".to_owned())
}

flumen_sdk::aggregator!(Count);
