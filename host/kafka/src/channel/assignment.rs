//! Partitions that a channel's reader gets and gives up, and where it begins in them.
//!
//! librdkafka never looks an offset up by itself here. While a transaction holds offsets of the group (a killed agent's
//! does until it ends), the broker answers that they are not stable; librdkafka 2.12 asks again, but if its assignment has
//! changed meanwhile it takes that answer for "the group has none" (`rd_kafka_assignment_apply_offsets`) and begins at the
//! first record: everything would come again. So a partition *waits* until its offset is known, and only then goes to
//! librdkafka; the others are read meanwhile. `auto.offset.reset` is `error`: no place is ever chosen by anyone else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::mark::Offsets;
use super::share::ReaderShared;
use crate::context::{Context, Rebalance};
use crate::{limits, member};

/// Hears of partitions that come and go, inside the reader's own poll.
pub(super) struct Listener(pub Arc<ReaderShared>);

impl Rebalance for Listener {
    fn assigned(&self, consumer: &BaseConsumer<Context>, partitions: &mut TopicPartitionList) {
        let shared = self.0.as_ref();
        let numbers = numbers(partitions);
        let (topic, group) = (shared.topic.as_str(), shared.group.as_str());
        tracing::info!(topic, group, partitions = ?numbers, "partitions of the channel come");
        let member = member::id(consumer);
        shared.state().come(&numbers, &member);
        // Also without any: the group waits for the call.
        begin(shared, consumer, ask(shared, consumer, &numbers, limits::GROUP_OFFSETS));
        let waiting = shared.state().waiting();
        if !waiting.is_empty() {
            tracing::info!(
                topic,
                group,
                partitions = ?waiting,
                "the group's offsets are not known yet: a transaction that holds them has not ended, or no broker answers"
            );
        }
    }

    fn revoked(&self, consumer: &BaseConsumer<Context>, partitions: &TopicPartitionList, is_lost: bool) {
        let shared = self.0.as_ref();
        let numbers = numbers(partitions);
        let (topic, group) = (shared.topic.as_str(), shared.group.as_str());
        let is_open = shared.state().go(&numbers, is_lost);
        tracing::info!(topic, group, partitions = ?numbers, is_lost, "partitions of the channel go");
        if is_open {
            shared.state().set_broken(format!("partitions of {topic} went to another agent"));
        }
        // Without those that waited.
        let begun = consumer.assignment().unwrap_or_default();
        let mut list = TopicPartitionList::new();
        for number in numbers {
            if begun.find_partition(topic, number).is_some() {
                list.add_partition(topic, number);
            }
        }
        if let Err(error) = consumer.incremental_unassign(&list) {
            tracing::error!(topic, %error, "partitions cannot be given up");
        }
    }

    fn takes_over(&self) -> bool {
        true
    }
}

fn numbers(partitions: &TopicPartitionList) -> Vec<i32> {
    partitions.elements().iter().map(|element| element.partition()).collect()
}

/// Where a partition begins for the group.
struct Begin {
    partition: i32,
    offset: i64,
    /// Offsets before it that were not read and are gone.
    lost: u64,
}

/// The group's offset of each of these partitions; the first that is there, if it has none. What is not known within
/// `patience` is left out.
fn ask(
    shared: &ReaderShared,
    consumer: &BaseConsumer<Context>,
    numbers: &[i32],
    patience: Duration,
) -> Vec<Begin> {
    let topic = shared.topic.as_str();
    let mut list = TopicPartitionList::new();
    for number in numbers {
        list.add_partition(topic, *number);
    }
    let Ok(committed) = consumer.committed_offsets(list, patience) else { return Vec::new() };
    let find = |number: &i32| {
        let element = committed.find_partition(topic, *number)?;
        // Not stable: that is an error of the partition alone, with no offset.
        element.error().ok()?;
        let (low, _) = consumer.fetch_watermarks(topic, *number, limits::REQUEST).ok()?;
        let group = element.offset().to_raw().filter(|offset| *offset >= 0).unwrap_or(low);
        let lost = u64::try_from(low - group).unwrap_or(0);
        Some(Begin { partition: *number, offset: group.max(low), lost })
    };
    numbers.iter().filter_map(find).collect()
}

/// Begins to read these.
fn begin(shared: &ReaderShared, consumer: &BaseConsumer<Context>, found: Vec<Begin>) {
    let topic = shared.topic.as_str();
    let mut offsets = Offsets::new();
    let mut state = shared.state();
    for Begin { partition, offset, lost } in found {
        let Some(read) = state.begin(partition, offset) else { continue };
        offsets.push((partition, read));
        state.lost += lost;
        tell_lost(topic, partition, lost);
    }
    drop(state);
    let begun = list(topic, &offsets).and_then(|list| consumer.incremental_assign(&list));
    if let Err(error) = begun {
        tracing::error!(topic, %error, "partitions cannot be taken");
        offsets.iter().for_each(|(partition, _)| shared.state().wait(*partition));
    }
}

fn tell_lost(topic: &str, number: i32, lost: u64) {
    if lost > 0 {
        // Ends of transactions have offsets, too.
        let events_at_most = lost;
        tracing::error!(topic, number, events_at_most, "retention took what was not read yet");
    }
}

fn list(topic: &str, offsets: &Offsets) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for (number, offset) in offsets {
        list.add_partition_offset(topic, *number, Offset::Offset(*offset))?;
    }
    Ok(list)
}

/// Reads on from these offsets.
pub(super) fn reposition(
    shared: &ReaderShared,
    consumer: &BaseConsumer<Context>,
    offsets: &Offsets,
) -> Result<(), KafkaError> {
    let list = list(&shared.topic, offsets)?;
    if list.count() > 0 {
        // Not a seek: that fails while a partition is not fetched yet.
        consumer.incremental_unassign(&list)?;
        consumer.incremental_assign(&list)?;
    }
    Ok(())
}

/// A broker does not have the offset that a partition is to be read at: retention took it, which is counted, or it lost
/// records.
///
/// # Errors
/// There is nothing to read at; in words.
pub(super) fn out_of_range(shared: &ReaderShared, consumer: &BaseConsumer<Context>) -> Result<(), String> {
    let topic = shared.topic.as_str();
    let mut offsets = Offsets::new();
    for (number, read) in shared.state().places() {
        let (low, high) = consumer
            .fetch_watermarks(topic, number, limits::REQUEST)
            .map_err(|error| consumer.context().explain(&error))?;
        if read > high {
            return Err(format!(
                "{topic}, partition {number}: reading goes on at offset {read}, and the partition ends at {high}: its broker \
                 lost records that it had acknowledged; to go on without them, stop the agents and set the offset of the \
                 group {} (kafka-consumer-groups.sh --reset-offsets)",
                shared.group
            ));
        }
        let lost = u64::try_from(low - read).unwrap_or(0);
        tell_lost(topic, number, lost);
        let next = read.max(low);
        shared.state().pass(number, next, lost);
        offsets.push((number, next));
    }
    reposition(shared, consumer, &offsets).map_err(|error| consumer.context().explain(&error))
}

/// Asks for the offsets of partitions that wait, one after the other, so that one whose offset cannot be had does not
/// hold up the others.
pub(super) struct Asking {
    last: Instant,
    turn: usize,
}

impl Asking {
    pub fn new() -> Asking {
        Asking { last: Instant::now(), turn: 0 }
    }

    /// To be called before each poll.
    pub fn step(&mut self, shared: &ReaderShared, consumer: &BaseConsumer<Context>) {
        if self.last.elapsed() < limits::ASK_AGAIN {
            return;
        }
        self.last = Instant::now();
        let waiting = shared.state().waiting();
        let Some(place) = self.turn.checked_rem(waiting.len()) else { return };
        self.turn = self.turn.wrapping_add(1);
        let Some(number) = waiting.get(place) else { return };
        let found = ask(shared, consumer, &[*number], limits::ASK_ONE);
        if let Some(Begin { partition, offset, .. }) = found.first() {
            tracing::info!(topic = shared.topic, partition, offset, "the group's offset is known");
            begin(shared, consumer, found);
        }
    }
}
