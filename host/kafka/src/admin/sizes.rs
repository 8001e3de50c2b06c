//! About how many bytes a topic holds. Brokers tell that only of their own disks, so a few of the newest records of
//! each partition are read, and their size is taken for all: before compression, without indexes and copies.

use std::collections::BTreeMap;
use std::time::Instant;

use rdkafka::consumer::Consumer;
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use crate::limits;

use super::link::{Link, Trouble};
use super::offsets::Range;
use super::topics::Topic;

/// What a record takes besides key, value and headers: lengths, offset, time.
const RECORD_BYTES: u64 = 10;

/// By topic, in bytes; a topic of which nothing could be read in time is left out.
pub fn estimate(
    link: &Link,
    topics: &[Topic],
    ranges: &BTreeMap<(String, i32), Range>,
) -> Result<BTreeMap<String, u64>, Trouble> {
    let mut sampled: BTreeMap<(String, i32), (u64, u64)> = BTreeMap::new();
    let mut list = TopicPartitionList::new();
    let mut open = BTreeMap::new();
    for ((topic, partition), range) in ranges.iter().filter(|(_, range)| range.count() > 0) {
        let from = Offset::Offset(range.first.max(range.end - limits::SAMPLE_RECORDS));
        list.add_partition_offset(topic, *partition, from).map_err(|error| link.trouble(&error))?;
        open.insert((topic.clone(), *partition), range.end);
    }
    if !open.is_empty() {
        let reader = link.reader(None, false)?;
        reader.assign(&list).map_err(|error| link.trouble(&error))?;
        let end = Instant::now() + limits::READ_STATE;
        while !open.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match reader.poll(left) {
                Some(Ok(record)) => {
                    let key = (record.topic().to_string(), record.partition());
                    let headers = record.headers().map_or(0, |headers| {
                        headers
                            .iter()
                            .map(|header| header.key.len() + header.value.map_or(0, <[u8]>::len))
                            .sum()
                    });
                    let bytes = record.key().map_or(0, <[u8]>::len) + record.payload_len() + headers;
                    if open.get(&key).is_some_and(|end| record.offset() + 1 >= *end) {
                        open.remove(&key);
                    }
                    let (records, sum) = sampled.entry(key).or_default();
                    *records += 1;
                    *sum += u64::try_from(bytes).unwrap_or(u64::MAX) + RECORD_BYTES;
                }
                // The error does not name the topic; another partition of that number is asked for less long.
                Some(Err(rdkafka::error::KafkaError::PartitionEOF(partition))) => {
                    if let Some(key) = open.keys().find(|(_, id)| *id == partition).cloned() {
                        open.remove(&key);
                    }
                }
                Some(Err(error)) => return Err(Trouble(reader.client().context().explain(&error))),
                None => {}
            }
        }
    }
    let mut sizes = BTreeMap::new();
    for topic in topics {
        let of = |id: i32| {
            let key = (topic.name.clone(), id);
            let count = ranges.get(&key)?.count().unsigned_abs();
            if count == 0 {
                return Some(0);
            }
            let (records, sum) = sampled.get(&key)?;
            Some(
                u64::try_from(u128::from(*sum) * u128::from(count) / u128::from(*records).max(1))
                    .unwrap_or(u64::MAX),
            )
        };
        if let Some(bytes) = topic.partitions.iter().map(|partition| of(partition.id)).sum::<Option<u64>>() {
            sizes.insert(topic.name.clone(), bytes);
        }
    }
    Ok(sizes)
}
