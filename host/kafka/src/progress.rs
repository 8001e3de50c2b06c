//! How far a sink has delivered, kept in a compacted topic by the transactions that deliver.
//!
//! All records are in partition 0, so that a topic which gets more partitions forgets nothing. Keys and values are
//! JSON, for the person who looks with a console consumer. Bytes of a key never change: fields in this order, no
//! spaces.
//!
//! ```text
//! key    {"agent":"a","pipeline":"p","channel":"c","sink":"s","lane":0}           how far a lane is
//! value  {"version":1,"mark":"<hex>","lanes":1,"since":"<hex>","by":{"instance":"…","host":"…","pid":1},"time":"…"}
//! key    {"agent":"a","pipeline":"p","channel":"c","sink":"s","claim":true}        who delivers
//! value  {"version":1,"by":{…},"time":"…"}
//! ```
//!
//! `mark`: the journal's cursor, as `Reader::mark` makes it. `lanes`: how many there were, and `since`: the mark from
//! which on there were so many; lane 0's record alone says what counts. A lane without a record is as far as `since`.
//!
//! How it fails: what cannot be read is counted, and an older good record of the same key counts in its place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::admin::partition_reader;
use crate::read_back::{self, Met};
use crate::settings::Settings;
use crate::topics::Topics;
use crate::{limits, words};

/// The partition of all records.
pub const PARTITION: i32 = 0;

const VERSION: u32 = 1;

/// Whose progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// The agent's name.
    pub agent: String,
    /// The pipeline's.
    pub pipeline: String,
    /// The channel's.
    pub channel: String,
    /// The sink's.
    pub sink: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Key {
    #[serde(flatten)]
    who: Who,
    #[serde(skip_serializing_if = "Option::is_none")]
    lane: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    claim: Option<bool>,
}

/// Which process wrote a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    /// Different for every sink that ever ran.
    pub instance: String,
    /// Where, for people.
    pub host: String,
    /// Its process, for people.
    pub pid: u32,
}

/// How far a lane is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The journal's cursor.
    pub mark: Vec<u8>,
    /// How many lanes there were.
    pub lanes: u16,
    /// From where on; empty: from the beginning.
    pub since: Vec<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ProgressValue {
    version: u32,
    mark: String,
    lanes: u16,
    since: String,
    by: By,
    time: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct ClaimValue {
    version: u32,
    by: By,
    time: String,
}

/// What the topic says of one sink.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Per lane the newest record that can be read.
    pub lanes: BTreeMap<u16, Progress>,
    /// Who claimed the sink last, and when.
    pub claim: Option<(By, String)>,
    /// Records of this sink that cannot be read.
    pub corrupted: u64,
}

/// Why progress could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// A broker did not answer, or refused.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// Someone's open transaction hides the end of the topic.
    #[error("{}", words::hidden(topic, PARTITION, *from, brokers, *waited_s, "how far this sink is"))]
    Hidden {
        /// The topic.
        topic: String,
        /// Where the transaction begins.
        from: i64,
        /// Whom to ask.
        brokers: String,
        /// How long we waited.
        waited_s: u64,
    },
    /// The pipeline is stopping.
    #[error("stopping")]
    Stopped,
}

impl Who {
    /// The key of a lane's progress.
    pub fn lane_key(&self, lane: u16) -> Vec<u8> {
        to_json(&Key { who: self.clone(), lane: Some(lane), claim: None })
    }

    /// The key of the claim.
    pub fn claim_key(&self) -> Vec<u8> {
        to_json(&Key { who: self.clone(), lane: None, claim: Some(true) })
    }
}

impl Progress {
    /// The value of a record.
    pub fn encode(&self, by: &By) -> Vec<u8> {
        let value = ProgressValue {
            version: VERSION,
            mark: hex(&self.mark),
            lanes: self.lanes,
            since: hex(&self.since),
            by: by.clone(),
            time: jiff::Timestamp::now().to_string(),
        };
        to_json(&value)
    }

    /// `None`: not such a value.
    pub fn decode(bytes: &[u8]) -> Option<Progress> {
        let value: ProgressValue = serde_json::from_slice(bytes).ok()?;
        let (mark, since) = (unhex(&value.mark)?, unhex(&value.since)?);
        (value.version == VERSION && value.lanes > 0).then_some(Progress { mark, lanes: value.lanes, since })
    }
}

impl By {
    /// The value of a claim.
    pub fn claim(&self) -> Vec<u8> {
        let time = jiff::Timestamp::now().to_string();
        to_json(&ClaimValue { version: VERSION, by: self.clone(), time })
    }
}

impl Found {
    /// Takes a record in. Those of others, and those of newer kinds, are none of ours.
    fn take(&mut self, who: &Who, key: &[u8], value: Option<&[u8]>) {
        let Ok(key) = serde_json::from_slice::<Key>(key) else { return };
        if key.who != *who {
            return;
        }
        let value = value.unwrap_or_default();
        match key {
            Key { lane: Some(lane), claim: None, .. } => match Progress::decode(value) {
                Some(progress) => drop(self.lanes.insert(lane, progress)),
                None => self.corrupted += 1,
            },
            Key { lane: None, claim: Some(true), .. } => match serde_json::from_slice::<ClaimValue>(value) {
                Ok(claim) if claim.version == VERSION => self.claim = Some((claim.by, claim.time)),
                _ => self.corrupted += 1,
            },
            _ => {}
        }
    }
}

/// Reads all that is committed up to now. The end is asked for first, with what open transactions wrote; then it is
/// waited for until none of them hides it: our own newest record could stand behind another agent's open one.
///
/// A broker that lost the end of a transaction (KAFKA-20734) hides the end for good. Of our own it was ended before
/// ([`crate::ends`]), if the coordinator could be asked; else, and of others, a person ends it ([`ReadError::Hidden`] says
/// how). Until then no transaction of the lanes may be committed, since that would end a lost one of ours as if it counted.
pub fn read(
    topics: &Topics,
    settings: &Arc<Settings>,
    topic: &str,
    who: &Who,
    wait: Duration,
    go_on: &dyn Fn() -> bool,
) -> Result<Found, ReadError> {
    let end = topics.end(topic, PARTITION)?;
    let consumer = partition_reader(&who.sink, settings, "flumen-questions", "read_committed")?;
    let begin = Instant::now();
    let mut next = loop {
        // Up to the first transaction that is open.
        let (low, stable) = consumer.fetch_watermarks(topic, PARTITION, limits::REQUEST)?;
        if stable >= end {
            break low;
        }
        if !go_on() {
            return Err(ReadError::Stopped);
        }
        if begin.elapsed() > wait {
            let (brokers, waited_s) = (settings.brokers.join(","), begin.elapsed().as_secs());
            return Err(ReadError::Hidden { topic: topic.into(), from: stable, brokers, waited_s });
        }
        std::thread::sleep(limits::STABLE_POLL);
    };
    read_back::assign(&consumer, topic, PARTITION, next)?;
    let mut found = Found::default();
    let mut last = Instant::now();
    let mut met = Met::default();
    loop {
        match consumer.poll(limits::STABLE_POLL) {
            Some(Ok(record)) => {
                found.take(who, record.key().unwrap_or_default(), record.payload());
                last = Instant::now();
                next = record.offset() + 1;
                // Where many sinks write, the topic itself has no end.
                if next >= end {
                    return Ok(found);
                }
            }
            // Behind the last record before `end` there may be markers of transactions alone.
            Some(Err(KafkaError::PartitionEOF(_)))
                if met.counts(&consumer, topic, PARTITION, next, end)? =>
            {
                return Ok(found);
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None => {}
            Some(Err(error)) => return Err(error.into()),
        }
        if !go_on() {
            return Err(ReadError::Stopped);
        }
        if last.elapsed() > limits::REQUEST {
            let code = rdkafka::error::RDKafkaErrorCode::OperationTimedOut;
            return Err(KafkaError::MessageConsumption(code).into());
        }
    }
}

/// These values always have a JSON form.
fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn who() -> Who {
        Who { agent: "a\"1".into(), pipeline: "p".into(), channel: "c".into(), sink: "s".into() }
    }

    fn by() -> By {
        By { instance: "i".into(), host: "h".into(), pid: 7 }
    }

    #[test]
    fn bytes_of_a_key_never_change() {
        let key = br#"{"agent":"a\"1","pipeline":"p","channel":"c","sink":"s","lane":3}"#;
        assert_eq!(who().lane_key(3), key);
        let key = br#"{"agent":"a\"1","pipeline":"p","channel":"c","sink":"s","claim":true}"#;
        assert_eq!(who().claim_key(), key);
    }

    #[test]
    fn the_newest_good_record_counts_and_others_are_none_of_ours() {
        let progress = |mark: u8| Progress { mark: vec![mark, 0xff], lanes: 2, since: vec![] };
        let mut found = Found::default();
        let other = Who { sink: "t".into(), ..who() };
        found.take(&who(), &who().lane_key(0), Some(&progress(1).encode(&by())));
        found.take(&who(), &who().lane_key(0), Some(&progress(2).encode(&by())));
        found.take(&who(), &who().lane_key(0), Some(b"{\"version\":1}"));
        found.take(&who(), &who().lane_key(1), None);
        found.take(&who(), &other.lane_key(0), Some(&progress(3).encode(&by())));
        found.take(&who(), b"\xff", Some(b"x"));
        found.take(&who(), &who().claim_key(), Some(&by().claim()));
        assert_eq!(found.lanes, BTreeMap::from([(0, progress(2))]));
        assert_eq!(found.corrupted, 2);
        assert_eq!(found.claim.unwrap().0, by());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(mark: Vec<u8>, lanes in 1u16.., since: Vec<u8>) {
            let progress = Progress { mark, lanes, since };
            prop_assert_eq!(Progress::decode(&progress.encode(&by())), Some(progress));
        }

        #[test]
        fn any_bytes_have_an_answer(key: Vec<u8>, value: Vec<u8>, text: String) {
            let mut found = Found::default();
            found.take(&who(), &key, Some(&value));
            found.take(&who(), &who().lane_key(0), Some(&value));
            let json = format!("{{\"version\":1,\"mark\":{text:?},\"lanes\":1,\"since\":\"\"}}");
            found.take(&who(), &who().lane_key(0), Some(json.as_bytes()));
            prop_assert!(found.lanes.is_empty());
            prop_assert_eq!(found.corrupted, 2);
        }
    }
}
