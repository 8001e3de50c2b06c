//! Who fences whom: the transactions that the cluster knows, read from its coordinators' own topic.
//!
//! librdkafka has no request for it. The coordinators keep each transactional id's state as the newest record of
//! its key in `__transaction_state`; formats: `TransactionLogKey` and `TransactionLogValue` of Apache Kafka
//! (versions 0 and 1). Reading needs READ on that topic; without it the caller says so.

use std::collections::BTreeMap;
use std::time::Instant;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use serde::Serialize;

use crate::limits;

use super::bytes::Reader;
use super::link::{Link, Trouble};
use super::offsets;
use super::topics::Topic;

/// The coordinators' topic.
pub const TOPIC: &str = "__transaction_state";

/// One transactional id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Transaction {
    /// It.
    pub id: String,
    /// The number that the cluster gave its producer.
    pub producer_id: i64,
    /// Goes up by one whenever a producer takes the id over from another.
    pub epoch: i16,
    /// As Kafka's tools say it: `Empty`, `Ongoing`, `CompleteCommit`, ….
    pub state: &'static str,
    /// Partitions in the transaction that is going on, as `topic-number`.
    pub partitions: Vec<String>,
    /// When the state changed, in milliseconds since 1970.
    pub changed_ms: i64,
    /// After this time without an end the coordinator aborts it, in milliseconds.
    pub timeout_ms: i32,
}

/// What was read.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Transactions {
    /// By id.
    pub known: Vec<Transaction>,
    /// False: there was more than could be read in time, so newer states may be missing.
    pub is_complete: bool,
}

/// Reads the ids that `wanted` accepts. `topic`: [`TOPIC`] as the cluster describes it.
pub fn read(link: &Link, topic: &Topic, wanted: impl Fn(&str) -> bool) -> Result<Transactions, Trouble> {
    let mut found = BTreeMap::new();
    let is_complete = newest(link, topic, |key, value| {
        let Some(id) = read_key(key).filter(|id| wanted(id)) else { return };
        match value.map(|value| read_value(&id, value)) {
            Some(Some(transaction)) => drop(found.insert(id, transaction)),
            None => drop(found.remove(&id)),
            // A newer version than is known here: better not shown than shown wrong.
            Some(None) => {}
        }
    })?;
    Ok(Transactions { known: found.into_values().collect(), is_complete })
}

/// Reads a compacted topic from its beginning to what was its end when the reading began, within
/// [`limits::READ_STATE`]. False: time ran out.
pub(super) fn newest(
    link: &Link,
    topic: &Topic,
    mut visit: impl FnMut(&[u8], Option<&[u8]>),
) -> Result<bool, Trouble> {
    let ranges = offsets::ranges(link, std::slice::from_ref(topic))?;
    let mut open: BTreeMap<i32, i64> = ranges
        .iter()
        .filter(|(_, range)| range.count() > 0)
        .map(|((_, id), range)| (*id, range.end))
        .collect();
    if open.is_empty() {
        return Ok(true);
    }
    let reader = link.reader(None, true)?;
    let trouble = |error: &KafkaError| Trouble(reader.client().context().explain(error));
    let mut list = TopicPartitionList::new();
    for id in open.keys() {
        list.add_partition_offset(&topic.name, *id, Offset::Beginning).map_err(|error| trouble(&error))?;
    }
    reader.assign(&list).map_err(|error| trouble(&error))?;
    let end = Instant::now() + limits::READ_STATE;
    while !open.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        match reader.poll(left) {
            Some(Ok(record)) => {
                visit(record.key().unwrap_or_default(), record.payload());
                if open.get(&record.partition()).is_some_and(|end| record.offset() + 1 >= *end) {
                    open.remove(&record.partition());
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.remove(&partition);
            }
            Some(Err(error)) => return Err(trouble(&error)),
            None => {}
        }
    }
    Ok(true)
}

/// The state in one record of [`TOPIC`], if it is of this id and can be read.
pub(crate) fn of_record(key: Option<&[u8]>, value: Option<&[u8]>, id: &str) -> Option<Transaction> {
    read_key(key?).filter(|of| of == id).and_then(|id| read_value(&id, value?))
}

fn read_key(bytes: &[u8]) -> Option<String> {
    let mut bytes = Reader(bytes);
    (bytes.i16()? == 0).then_some(())?;
    bytes.string()
}

fn read_value(id: &str, bytes: &[u8]) -> Option<Transaction> {
    let mut bytes = Reader(bytes);
    let is_flexible = match bytes.i16()? {
        0 => false,
        1 => true,
        _ => return None,
    };
    let (producer_id, epoch) = (bytes.i64()?, bytes.i16()?);
    let (timeout_ms, state) = (bytes.i32()?, state(bytes.i8()?)?);
    let partitions =
        if is_flexible { compact_partitions(&mut bytes)? } else { plain_partitions(&mut bytes)? };
    let changed_ms = bytes.i64()?;
    Some(Transaction { id: id.into(), producer_id, epoch, state, partitions, changed_ms, timeout_ms })
}

/// A negative count is null: no transaction is going on.
fn plain_partitions(bytes: &mut Reader<'_>) -> Option<Vec<String>> {
    let mut all = Vec::new();
    for _ in 0..bytes.i32()? {
        let topic = bytes.string()?;
        for _ in 0..bytes.i32()? {
            all.push(format!("{topic}-{}", bytes.i32()?));
        }
    }
    Some(all)
}

/// Counts and lengths are one more than they say, zero is null; each structure ends with tagged fields.
fn compact_partitions(bytes: &mut Reader<'_>) -> Option<Vec<String>> {
    let mut all = Vec::new();
    for _ in 1..bytes.varint()?.max(1) {
        let length = usize::try_from(bytes.varint()?.checked_sub(1)?).ok()?;
        let topic = String::from_utf8(bytes.take(length)?.to_vec()).ok()?;
        for _ in 1..bytes.varint()?.max(1) {
            all.push(format!("{topic}-{}", bytes.i32()?));
        }
        for _ in 0..bytes.varint()? {
            bytes.varint()?;
            let length = usize::try_from(bytes.varint()?).ok()?;
            bytes.take(length)?;
        }
    }
    Some(all)
}

fn state(number: i8) -> Option<&'static str> {
    const STATES: [&str; 8] = [
        "Empty",
        "Ongoing",
        "PrepareCommit",
        "PrepareAbort",
        "CompleteCommit",
        "CompleteAbort",
        "Dead",
        "PrepareEpochFence",
    ];
    STATES.get(usize::try_from(number).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_versions_are_read() {
        let mut plain = vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 3, 0, 0, 0xea, 0x60, 1];
        plain.extend(b"\x00\x00\x00\x01\x00\x01t\x00\x00\x00\x01\x00\x00\x00\x05");
        plain.extend([0, 0, 0, 0, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0, 66]);
        let expected = Transaction {
            id: "x".into(),
            producer_id: 9,
            epoch: 3,
            state: "Ongoing",
            partitions: vec!["t-5".into()],
            changed_ms: 77,
            timeout_ms: 60_000,
        };
        assert_eq!(read_value("x", &plain), Some(expected.clone()));
        let mut compact = vec![0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 3, 0, 0, 0xea, 0x60, 1];
        compact.extend(b"\x02\x02t\x02\x00\x00\x00\x05\x00");
        compact.extend([0, 0, 0, 0, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0, 66, 0]);
        assert_eq!(read_value("x", &compact), Some(expected));
        assert_eq!(read_key(b"\x00\x00\x00\x02ab").as_deref(), Some("ab"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_state_or_none(bytes: Vec<u8>) {
            read_key(&bytes);
            read_value("x", &bytes);
        }
    }
}
