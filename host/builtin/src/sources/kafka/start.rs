//! Where reading a partition begins.

use flumen_kafka::Context;
use flumen_kafka::rdkafka::consumer::{BaseConsumer, Consumer};
use flumen_kafka::rdkafka::{Offset, TopicPartitionList};

use super::limits::ASK;
use super::options::Start;
use super::partitions::Table;

/// Asks that failed: what, in words.
pub type Asked<T> = Result<T, String>;

/// A list of partitions, each with the same offset.
pub fn list(table: &Table, indexes: &[usize], offset: impl Fn(usize) -> Offset) -> Asked<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(indexes.len());
    for index in indexes {
        if let Some(partition) = table.get(*index) {
            list.add_partition_offset(&partition.topic, partition.number, offset(*index))
                .map_err(|error| error.to_string())?;
        }
    }
    Ok(list)
}

/// The group's offset of each partition, if it has one.
pub fn group_offsets(
    consumer: &BaseConsumer<Context>,
    table: &mut Table,
    indexes: &[usize],
) -> Asked<Vec<Option<i64>>> {
    let asked = list(table, indexes, |_| Offset::Invalid)?;
    let explain =
        |error| format!("cannot ask for the group's offsets: {}", consumer.context().explain(&error));
    let answer = consumer.committed_offsets(asked, ASK).map_err(explain)?;
    offsets(&answer, table, indexes, explain)
}

/// The offset of the first record of that time or later in each partition; `Offset::Beginning` and `Offset::End`
/// stand for themselves.
pub fn offsets_at(
    consumer: &BaseConsumer<Context>,
    table: &mut Table,
    indexes: &[usize],
    at: Offset,
) -> Asked<Vec<Option<i64>>> {
    if indexes.is_empty() {
        return Ok(Vec::new());
    }
    let asked = list(table, indexes, |_| at)?;
    let explain = |error| format!("cannot ask for offsets: {}", consumer.context().explain(&error));
    let answer = consumer.offsets_for_times(asked, ASK).map_err(explain)?;
    offsets(&answer, table, indexes, explain)
}

fn offsets(
    answer: &TopicPartitionList,
    table: &mut Table,
    indexes: &[usize],
    explain: impl Fn(flumen_kafka::rdkafka::error::KafkaError) -> String,
) -> Asked<Vec<Option<i64>>> {
    let mut found = vec![None; indexes.len()];
    for element in answer.elements() {
        element
            .error()
            .map_err(|error| format!("{} ({}:{})", explain(error), element.topic(), element.partition()))?;
        let index = table.index(element.topic(), element.partition());
        if let Some(place) = indexes.iter().position(|other| *other == index)
            && let Some(slot) = found.get_mut(place)
            && let Offset::Offset(offset) = element.offset()
        {
            *slot = Some(offset);
        }
    }
    Ok(found)
}

/// Where each of these begins, and the group's offset: the further of journal and group, else `start`.
pub fn starts(
    consumer: &BaseConsumer<Context>,
    table: &mut Table,
    indexes: &[usize],
    uses_group: bool,
    start: Start,
) -> Asked<Vec<(usize, i64, Option<i64>)>> {
    let group = match uses_group {
        true => group_offsets(consumer, table, indexes)?,
        false => vec![None; indexes.len()],
    };
    let mut found = Vec::with_capacity(indexes.len());
    let (mut at_start, mut at_first) = (Vec::new(), Vec::new());
    for (index, group) in indexes.iter().zip(group) {
        let Some(partition) = table.get(*index) else { continue };
        let journal = partition.is_known.then_some(partition.emitted);
        if let Some(offset) = journal.max(group) {
            found.push((*index, offset, group));
        } else if start == Start::Earliest || table.knows_topic(&partition.topic) {
            at_first.push(*index);
        } else {
            at_start.push(*index);
        }
    }
    found.extend(all(consumer, table, &at_first, Offset::Beginning)?);
    match start {
        Start::Earliest | Start::Latest => found.extend(all(consumer, table, &at_start, Offset::End)?),
        Start::Time(ms) => {
            // A negative time would stand for the beginning or the end.
            let offsets = offsets_at(consumer, table, &at_start, Offset::Offset(ms.max(0)))?;
            let (mut reached, mut beyond) = (Vec::new(), Vec::new());
            for (index, offset) in at_start.into_iter().zip(offsets) {
                match offset {
                    Some(offset) => reached.push((index, offset, None)),
                    None => beyond.push(index),
                }
            }
            found.extend(reached);
            found.extend(all(consumer, table, &beyond, Offset::End)?);
        }
    }
    Ok(found)
}

fn all(
    consumer: &BaseConsumer<Context>,
    table: &mut Table,
    indexes: &[usize],
    at: Offset,
) -> Asked<Vec<(usize, i64, Option<i64>)>> {
    let offsets = offsets_at(consumer, table, indexes, at)?;
    let mut found = Vec::with_capacity(indexes.len());
    for (index, offset) in indexes.iter().zip(offsets) {
        let name = || table.get(*index).map(|partition| partition.name()).unwrap_or_default();
        let offset = offset.ok_or_else(|| format!("the broker names no offset of {}", name()))?;
        found.push((*index, offset, None));
    }
    Ok(found)
}
