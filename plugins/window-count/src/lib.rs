//! Counts, sums and top values per key and window of event time. See README.md.
//!
//! In the state: under `m` the watermark, the time of the last event and when it came; under `w`, the end of a window (so that
//! keys are in the order in which windows close) and the key: what was counted there ([`aggregate`]).

mod aggregate;
mod settings;

use std::collections::{BTreeMap, BTreeSet};

use flumen_sdk::aggregate::{Aggregator, Events, Opened};
use flumen_sdk::prelude::*;
use flumen_sdk::state;

use crate::aggregate::Aggregate;
use crate::settings::{Late, Settings};

const META: &[u8] = b"m";
const WINDOW: u8 = b'w';

/// Windows that are looked at in one go.
const SCAN_MAX: u32 = 1_024;

/// Events that are made in one go: what is left follows with the next batch or tick. A batch has at most 65,536.
const EVENTS_MAX: usize = 32_768;

/// The plugin.
pub struct WindowCount {
    settings: Settings,
}

/// What is known of the time.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Meta {
    /// Windows that end here or before are closed.
    watermark: i64,
    /// The latest time of an event.
    latest: i64,
    /// The host's clock when the last tick saw a new event.
    seen: i64,
    /// `latest` at that tick.
    seen_latest: i64,
}

impl Aggregator for WindowCount {
    const OPTIONS: &'static str = include_str!("../options.json");

    fn open(config: Config) -> Result<(Self, Opened), String> {
        let settings = Settings::read(&config)?;
        let mut reads = Reads::time();
        for header in settings.headers() {
            reads = reads.and_header(header);
        }
        let tick_ms = settings.tick_ms();
        Ok((Self { settings }, Opened { reads, tick_ms }))
    }

    fn process(&mut self, batch: &BatchView) -> Result<(Difference, Option<Events>), String> {
        let times = batch.time().ok_or("the host did not pass the time")?;
        let mut meta = Meta::read()?;
        let mut counted: BTreeMap<Vec<u8>, Aggregate> = BTreeMap::new();
        let mut late = BTreeSet::new();
        let mut key = Vec::new();
        for (row, time) in times.iter().enumerate() {
            let mut is_counted = false;
            for end in self.settings.ends(time).filter(|end| *end > meta.watermark) {
                is_counted = true;
                self.window_key(batch, row, end, &mut key);
                if !counted.contains_key(key.as_slice()) {
                    counted.insert(key.clone(), Aggregate::default());
                }
                if let Some(aggregate) = counted.get_mut(key.as_slice()) {
                    aggregate.add(&self.settings, batch, row);
                }
            }
            if !is_counted {
                late.insert(row);
            }
            meta.latest = meta.latest.max(time);
        }
        self.store(counted)?;
        meta.watermark = meta.watermark.max(meta.latest.saturating_sub(self.settings.lateness_ns));
        let events = self.close(&meta)?;
        meta.write()?;
        Ok((self.rows(batch.rows(), &late), Some(events)))
    }

    fn tick(&mut self, now: i64) -> Result<Option<Events>, String> {
        let mut meta = Meta::read()?;
        let before = meta;
        if meta.latest != meta.seen_latest {
            (meta.seen, meta.seen_latest) = (now, meta.latest);
        } else if meta.latest != i64::MIN && now.saturating_sub(meta.seen) >= self.settings.idle_ns {
            // Nobody will move the watermark: the clock does, from the time of the last event on.
            let passed = now.saturating_sub(meta.seen);
            let time = meta.latest.saturating_add(passed);
            meta.watermark = meta.watermark.max(time.saturating_sub(self.settings.lateness_ns));
        }
        if meta != before {
            meta.write()?;
        }
        // Also when nothing is new: more may have closed with a batch than came out with it.
        Ok(Some(self.close(&meta)?))
    }
}

impl WindowCount {
    fn window_key(&self, batch: &BatchView, row: usize, end: i64, key: &mut Vec<u8>) {
        key.clear();
        key.push(WINDOW);
        key.extend_from_slice(&sortable(end).to_be_bytes());
        for index in 0..self.settings.by.len() {
            let value = batch.header(index).and_then(|header| header.get(row)).unwrap_or_default();
            // A key of the state has at most 1,024 bytes.
            let value = value.get(..value.len().min(self.settings.key_bytes_max())).unwrap_or_default();
            key.extend_from_slice(&(value.len() as u16).to_be_bytes());
            key.extend_from_slice(value);
        }
    }

    /// Adds what was counted now to what was counted before.
    fn store(&self, counted: BTreeMap<Vec<u8>, Aggregate>) -> Result<(), String> {
        if counted.is_empty() {
            return Ok(());
        }
        let before = state::get_many(column(counted.keys()))?;
        let mut values = ColumnBuilder::with_capacity(counted.len(), counted.len() * 32);
        let mut bytes = Vec::new();
        for (row, aggregate) in counted.values().enumerate() {
            let mut all = match before.get(row) {
                Some(bytes) => Aggregate::read(bytes).ok_or("what it remembers is not what it wrote")?,
                None => Aggregate::default(),
            };
            all.merge(aggregate, self.settings.top_kept());
            bytes.clear();
            all.write(&mut bytes);
            values.push(&bytes);
        }
        state::put_many(column(counted.keys()), values, None)
    }

    /// Closes windows that end at the watermark or before: an event for each key.
    fn close(&self, meta: &Meta) -> Result<Events, String> {
        let mut events = Events::new();
        loop {
            let found = state::scan(&[WINDOW], None, SCAN_MAX)?;
            let mut closed = Vec::new();
            for (key, value) in found.iter() {
                let Some((end, values)) = read_key(key) else {
                    return Err("a key that it did not write".to_owned());
                };
                if end > meta.watermark {
                    break;
                }
                let aggregate = Aggregate::read(value).ok_or("what it remembers is not what it wrote")?;
                self.settings.emit(&mut events, end, &values, &aggregate);
                closed.push(key.to_vec());
            }
            let is_done = closed.len() < found.len() || found.is_empty() || events.len() >= EVENTS_MAX;
            if !closed.is_empty() {
                state::remove_many(column(closed.iter()))?;
            }
            if is_done {
                return Ok(events);
            }
        }
    }

    fn rows(&self, rows: usize, late: &BTreeSet<usize>) -> Difference {
        let mut difference = Difference::unchanged();
        if self.settings.late == Late::Reject {
            late.iter().for_each(|row| {
                difference.reject(*row, "it is late: all windows of its time are closed");
            });
        }
        let is_rejected = |row: &usize| self.settings.late == Late::Reject && late.contains(row);
        match self.settings.pass {
            false => {
                difference.keep_rows(KeptRows::with_capacity(0));
            }
            true if late.is_empty() => {}
            true => {
                difference.keep_rows((0..rows).filter(|row| !is_rejected(row)).collect());
            }
        }
        difference
    }
}

fn column<'a>(keys: impl ExactSizeIterator<Item = &'a Vec<u8>>) -> ColumnBuilder {
    let mut column = ColumnBuilder::with_capacity(keys.len(), keys.len() * 40);
    keys.for_each(|key| column.push(key));
    column
}

/// Numbers in the order of their big-endian bytes.
fn sortable(number: i64) -> u64 {
    number as u64 ^ 1 << 63
}

/// The end of a window, and the values of the key.
fn read_key(key: &[u8]) -> Option<(i64, Vec<&[u8]>)> {
    let rest = key.strip_prefix(&[WINDOW])?;
    let (end, mut rest) = rest.split_first_chunk::<8>()?;
    let end = (u64::from_be_bytes(*end) ^ 1 << 63) as i64;
    let mut values = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let (value, behind) = behind.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        values.push(value);
        rest = behind;
    }
    rest.is_empty().then_some((end, values))
}

impl Meta {
    fn read() -> Result<Meta, String> {
        let values = state::get_many(column([META.to_vec()].iter()))?;
        let Some(bytes) = values.get(0) else {
            return Ok(Meta { watermark: i64::MIN, latest: i64::MIN, seen: i64::MIN, seen_latest: i64::MIN });
        };
        match bytes.as_chunks::<8>() {
            ([watermark, latest, seen, seen_latest], []) => Ok(Meta {
                watermark: i64::from_le_bytes(*watermark),
                latest: i64::from_le_bytes(*latest),
                seen: i64::from_le_bytes(*seen),
                seen_latest: i64::from_le_bytes(*seen_latest),
            }),
            _ => Err("what it remembers is not what it wrote".to_owned()),
        }
    }

    fn write(&self) -> Result<(), String> {
        let bytes = [self.watermark, self.latest, self.seen, self.seen_latest].map(i64::to_le_bytes).concat();
        state::put_many(column([META.to_vec()].iter()), column([bytes].iter()), None)
    }
}

flumen_sdk::aggregator!(WindowCount);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_order_in_which_windows_close() {
        let ends = [i64::MIN, -5, 0, 5, i64::MAX];
        assert!(ends.map(sortable).is_sorted());
        let key =
            [&[WINDOW][..], &sortable(-5).to_be_bytes(), &[0, 1], b"a", &[0, 0], &[0, 2], b"bc"].concat();
        assert_eq!(read_key(&key), Some((-5, vec![&b"a"[..], b"", b"bc"])));
        assert_eq!(read_key(&key[..key.len() - 1]), None);
        assert_eq!(read_key(b"x"), None);
    }
}
