//! How far Flumen's sinks have delivered, as the topic of their progress says it: for people, read-only.
//!
//! Keys and values are JSON (the format stands where sinks write it). What is read here is shown, never acted on, so
//! fields that are not known are passed over.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::link::{Link, Trouble};
use super::topics::Topic;
use super::transactions;

/// The newest record of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// The sink: `agent/pipeline/channel/sink`.
    pub sink: String,
    /// Its lane; absent in the record by which a process claims the sink.
    pub lane: Option<u64>,
    /// Which process wrote it, as `host, pid 1`.
    pub by: String,
    /// When, as that process's clock said.
    pub time: String,
    /// The cursor in the journal, in hex.
    pub mark: Option<String>,
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Records {
    /// By sink and lane.
    pub known: Vec<Record>,
    /// Records whose key or value could not be read.
    pub unreadable: u64,
    /// False: there was more than could be read in time.
    pub is_complete: bool,
}

/// Reads the newest records of a sink (`agent/pipeline/channel/sink`), or of all if it is empty.
pub fn read(link: &Link, topic: &Topic, of: &str) -> Result<Records, Trouble> {
    let mut found: BTreeMap<Vec<u8>, Option<Record>> = BTreeMap::new();
    let is_complete = transactions::newest(link, topic, |key, value| {
        match value {
            Some(value) => found.insert(key.to_vec(), record(key, value)),
            None => found.remove(key),
        };
    })?;
    let unreadable = found.values().filter(|record| record.is_none()).count();
    let mut known: Vec<Record> =
        found.into_values().flatten().filter(|record| of.is_empty() || record.sink == of).collect();
    known.sort_by(|a, b| (&a.sink, a.lane).cmp(&(&b.sink, b.lane)));
    Ok(Records { known, unreadable: u64::try_from(unreadable).unwrap_or(u64::MAX), is_complete })
}

fn record(key: &[u8], value: &[u8]) -> Option<Record> {
    let (key, value): (Value, Value) =
        (serde_json::from_slice(key).ok()?, serde_json::from_slice(value).ok()?);
    let part = |name: &str| key.get(name).and_then(Value::as_str);
    let sink = format!("{}/{}/{}/{}", part("agent")?, part("pipeline")?, part("channel")?, part("sink")?);
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let host = text("/by/host").unwrap_or_else(|| "?".into());
    let pid = value.pointer("/by/pid").and_then(Value::as_u64).unwrap_or(0);
    Some(Record {
        sink,
        lane: key.get("lane").and_then(Value::as_u64),
        by: format!("{host}, pid {pid}"),
        time: text("/time").unwrap_or_default(),
        mark: text("/mark"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_its_sink_and_writer() {
        let key = br#"{"agent":"a","pipeline":"p","channel":"c","sink":"s","lane":2}"#;
        let value = br#"{"version":1,"mark":"0a","by":{"instance":"x","host":"h","pid":7},"time":"2026-10-10T00:00:00Z"}"#;
        let found = record(key, value).unwrap();
        assert_eq!((found.sink.as_str(), found.lane, found.by.as_str()), ("a/p/c/s", Some(2), "h, pid 7"));
        assert_eq!(found.mark.as_deref(), Some("0a"));
        assert_eq!(record(b"x", value), None);
        assert_eq!(record(b"{}", value), None);
    }
}
