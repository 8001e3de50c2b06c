//! Where partitions begin and end, all in one question for each leader.

use std::collections::BTreeMap;

use rdkafka::consumer::Consumer;
use rdkafka::{Offset, TopicPartitionList};
use serde::Serialize;

use crate::limits;

use super::link::{Link, Trouble};
use super::topics::Topic;

/// The offsets of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Range {
    /// Of the oldest record that is still there.
    pub first: i64,
    /// Of the next record that will be written.
    pub end: i64,
}

impl Range {
    /// Offsets in it. Markers of transactions and compacted records take offsets too, so there may be fewer records.
    pub fn count(self) -> i64 {
        (self.end - self.first).max(0)
    }
}

/// By topic and partition. A partition without a leader is left out: nobody knows.
pub fn ranges(link: &Link, topics: &[Topic]) -> Result<BTreeMap<(String, i32), Range>, Trouble> {
    let (first, end) = (at(link, topics, Offset::Beginning)?, at(link, topics, Offset::End)?);
    let range = |(key, first)| end.get(&key).map(|end| (key, Range { first, end: *end }));
    Ok(first.into_iter().filter_map(range).collect())
}

/// The first offset whose record is of this time (in milliseconds since 1970) or later; absent: the end.
pub fn at_time(link: &Link, topics: &[Topic], time_ms: i64) -> Result<BTreeMap<(String, i32), i64>, Trouble> {
    at(link, topics, Offset::Offset(time_ms))
}

/// librdkafka asks brokers for a time; the beginning and the end are times of Kafka's protocol too (-2 and -1).
fn at(link: &Link, topics: &[Topic], time: Offset) -> Result<BTreeMap<(String, i32), i64>, Trouble> {
    let mut list = TopicPartitionList::new();
    for topic in topics {
        for partition in topic.partitions.iter().filter(|partition| partition.leader.is_some()) {
            list.add_partition_offset(&topic.name, partition.id, time)
                .map_err(|error| link.trouble(&error))?;
        }
    }
    if list.count() == 0 {
        return Ok(BTreeMap::new());
    }
    let reader = link.reader(None, false)?;
    let answer = reader
        .offsets_for_times(list, limits::ADMIN)
        .map_err(|error| Trouble(reader.client().context().explain(&error)))?;
    let mut offsets = BTreeMap::new();
    for element in answer.elements() {
        if let (Ok(()), Offset::Offset(offset)) = (element.error(), element.offset()) {
            offsets.insert((element.topic().to_string(), element.partition()), offset);
        }
    }
    Ok(offsets)
}
