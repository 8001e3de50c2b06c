//! Reads a channel's topic for one sink, as a member of the sink's consumer group.
//!
//! A cursor counts what this session has read: it rises by the offsets that a delivery covers (more than its rows where a
//! transaction's end takes an offset). A table holds, for each delivery that is not acknowledged, the partitions' offsets
//! behind it; a mark is those offsets as bytes.
//!
//! Partitions come and go with the group. One that comes is read from the group's committed offset, or from a mark that a
//! destination stored. When one goes of which something was handed out and not acknowledged, the reader is *broken*:
//! it says [`ReadError::Moved`], every acknowledgement handed in meanwhile is refused, and only a seek mends it. What
//! the sink did since its last acknowledgement is undone then, and the partition's new owner does it.
//!
//! An acknowledgement in a transaction is checked twice. [`ReaderShared::check`] asks whether the partitions are still
//! the same assignment, *after* the member's generation was fetched: a revocation is seen here before the member joins
//! again, so a generation fetched before belongs to a time when the partitions were ours. The broker refuses the
//! generation if it is no longer the group's. The agent is a static member, so that a restart takes its partitions over at once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_journal::{Delivery, ReadError, Reader};
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::{Message, Offset, TopicPartitionList};

use super::mark::{self, Offsets};
use super::options::JournalOptions;
use super::queue::Queue;
use super::record::Decoder;
use crate::context::{Context, Rebalance};
use crate::{limits, words};

/// What the reader, the committer and the rebalances share.
pub(super) struct ReaderShared {
    pub name: String,
    pub topic: String,
    pub group: String,
    state: Mutex<State>,
    consumer: Mutex<Option<Arc<BaseConsumer<Context>>>>,
}

#[derive(Default)]
struct State {
    /// Rises with each seek: acknowledgements of before do not count after.
    epoch: u64,
    /// Why the reader has to go back.
    broken: Option<String>,
    /// Say so at the next read.
    is_told: bool,
    partitions: BTreeMap<i32, Partition>,
    assignments: u64,
    /// Behind what was handed out last.
    cursor: u64,
    /// Handed in as acknowledged.
    acknowledged: u64,
    /// Acknowledged in a transaction that counts.
    durable: u64,
    /// Offsets behind the last acknowledged delivery and those that are not acknowledged.
    table: VecDeque<(u64, Behind)>,
    /// Offsets that a destination has; what comes before them is not read again.
    marks: BTreeMap<i32, i64>,
    /// Events that retention took before they were read.
    lost: u64,
}

/// Partition, its assignment, next offset. A partition that went and came back was read by others meanwhile: what
/// is known of an earlier assignment says nothing of the present one.
type Behind = Vec<(i32, u64, i64)>;

#[derive(Debug, Clone, Copy)]
struct Partition {
    /// Which assignment: it may go and come back.
    assignment: u64,
    /// The next offset to hand out; `None` until the first record, if the broker did not say in time.
    read: Option<i64>,
    acknowledged: Option<i64>,
    durable: Option<i64>,
    /// Nothing followed what was read last.
    is_at_end: bool,
}

/// An acknowledgement as offsets.
pub(super) struct ReaderAck {
    pub reader: Arc<ReaderShared>,
    epoch: u64,
    cursor: u64,
    /// Partition, its assignment, next offset.
    pub offsets: Vec<(i32, u64, i64)>,
}

impl ReaderShared {
    pub fn new(name: &str, topic: &str, group: &str) -> Arc<ReaderShared> {
        let (state, consumer) = Default::default();
        Arc::new(ReaderShared {
            name: name.into(),
            topic: topic.into(),
            group: group.into(),
            state,
            consumer,
        })
    }

    /// The acknowledged cursor, and what is handed out and not acknowledged.
    pub fn progress(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.acknowledged, state.cursor.saturating_sub(state.acknowledged))
    }

    /// Acknowledged offset of each partition that is ours, but of those that are read to their end and acknowledged: what
    /// is behind it there is the end of a transaction.
    pub fn unfinished(&self) -> Offsets {
        let state = self.state.lock();
        let is_open = |p: &Partition| !p.is_at_end || p.durable != p.read;
        let open = state.partitions.iter().filter(|(_, partition)| is_open(partition));
        open.filter_map(|(number, partition)| Some((*number, partition.durable?))).collect()
    }

    /// Turns an acknowledgement into offsets; `Err`: it comes too late.
    pub fn acknowledge(self: &Arc<Self>, cursor: u64) -> Result<ReaderAck, String> {
        let mut state = self.state.lock();
        if let Some(broken) = &state.broken {
            return Err(broken.clone());
        }
        let mut offsets = Vec::new();
        if cursor > state.acknowledged {
            let found = state.table.iter().find(|(behind, _)| *behind == cursor);
            let behind = found.map(|(_, offsets)| offsets.clone());
            let behind = behind.ok_or_else(|| format!("no delivery ends at {cursor}"))?;
            for (number, assignment, offset) in behind {
                let own = state.partitions.get_mut(&number).filter(|own| own.assignment == assignment);
                let Some(partition) = own else { continue };
                if partition.acknowledged.is_none_or(|before| before < offset) {
                    partition.acknowledged = Some(offset);
                    offsets.push((number, assignment, offset));
                }
            }
            state.acknowledged = cursor;
            state.table.retain(|(behind, _)| *behind >= cursor);
        }
        Ok(ReaderAck { reader: self.clone(), epoch: state.epoch, cursor, offsets })
    }

    /// Who the group thinks we are. Fetched before [`ReaderShared::check`].
    pub fn member(&self) -> Option<ConsumerGroupMetadata> {
        self.consumer.lock().clone()?.group_metadata()
    }

    /// An acknowledgement that can still count.
    pub fn check(&self, ack: &ReaderAck) -> Result<(), String> {
        let state = self.state.lock();
        if state.epoch != ack.epoch {
            return Err("an acknowledgement before it was refused".into());
        }
        if let Some(broken) = &state.broken {
            return Err(broken.clone());
        }
        let is_ours = |(number, assignment, _): &(i32, u64, i64)| {
            state.partitions.get(number).is_some_and(|partition| partition.assignment == *assignment)
        };
        if ack.offsets.iter().all(is_ours) {
            Ok(())
        } else {
            Err(format!("partitions of {} went to another agent", self.topic))
        }
    }

    /// The acknowledgement's transaction counts.
    pub fn committed(&self, ack: &ReaderAck) {
        let mut state = self.state.lock();
        if state.epoch != ack.epoch {
            return;
        }
        state.durable = state.durable.max(ack.cursor);
        for (number, assignment, offset) in &ack.offsets {
            if let Some(partition) = state.partitions.get_mut(number).filter(|p| p.assignment == *assignment)
            {
                partition.durable = Some(*offset);
            }
        }
    }

    /// The acknowledgement never counts: the reader has to go back.
    pub fn refuse(&self, ack: &ReaderAck, reason: &str) {
        let mut state = self.state.lock();
        if state.epoch == ack.epoch {
            state.set_broken(reason.to_owned());
        }
    }
}

impl State {
    fn set_broken(&mut self, reason: String) {
        self.broken.get_or_insert(reason);
        self.acknowledged = self.durable;
        for partition in self.partitions.values_mut() {
            partition.acknowledged = partition.durable;
        }
        self.is_told = false;
    }
}

/// Hears of partitions that come and go, inside the reader's own poll.
struct Listener(Arc<ReaderShared>);

impl Rebalance for Listener {
    fn assigned(&self, consumer: &BaseConsumer<Context>, partitions: &mut TopicPartitionList) {
        let topic = self.0.topic.as_str();
        let committed = consumer.committed_offsets(partitions.clone(), limits::REQUEST);
        if let Err(error) = &committed {
            // librdkafka asks again by itself, and the first record tells.
            tracing::info!(topic, %error, "the group's offsets are not known yet");
        }
        let numbers: Vec<i32> = partitions.elements().iter().map(|element| element.partition()).collect();
        tracing::info!(topic, group = self.0.group, partitions = ?numbers, "partitions of the channel come");
        for number in numbers {
            let offset = committed.as_ref().ok().map(|list| {
                let element = list.find_partition(topic, number);
                element.and_then(|element| element.offset().to_raw()).filter(|offset| *offset >= 0)
            });
            let low = consumer.fetch_watermarks(topic, number, limits::REQUEST).ok().map(|(low, _)| low);
            let mut state = self.0.state.lock();
            let begin = match (offset, low) {
                (None, _) | (Some(None), None) => None,
                (Some(Some(offset)), Some(low)) if offset < low => {
                    let lost = low.abs_diff(offset);
                    state.lost += lost;
                    tracing::error!(topic, number, lost, "retention took events that were not read yet");
                    Some(low)
                }
                (Some(Some(offset)), _) => Some(offset),
                (Some(None), Some(low)) => Some(low),
            };
            let read = begin.map(|begin| begin.max(state.marks.get(&number).copied().unwrap_or(begin)));
            state.assignments += 1;
            let assignment = state.assignments;
            let partition =
                Partition { assignment, read, acknowledged: begin, durable: begin, is_at_end: false };
            state.partitions.insert(number, partition);
            drop(state);
            if let Some(read) = read
                && let Err(error) = partitions.set_partition_offset(topic, number, Offset::Offset(read))
            {
                tracing::error!(topic, number, %error, "cannot set where to begin");
            }
        }
    }

    fn revoked(&self, _: &BaseConsumer<Context>, partitions: &TopicPartitionList, is_lost: bool) {
        let mut state = self.0.state.lock();
        let mut open = false;
        let mut numbers = Vec::new();
        for element in partitions.elements() {
            numbers.push(element.partition());
            if let Some(partition) = state.partitions.remove(&element.partition()) {
                let unsettled = if is_lost { partition.durable } else { partition.acknowledged };
                open |= partition.read != unsettled;
            }
        }
        let topic = self.0.topic.as_str();
        tracing::info!(topic, group = self.0.group, partitions = ?numbers, is_lost, "partitions of the channel go");
        if open {
            state.set_broken(format!("partitions of {topic} went to another agent"));
        }
    }
}

/// The reader of a channel.
pub(super) struct KafkaReader {
    shared: Arc<ReaderShared>,
    options: Arc<JournalOptions>,
    is_flume: bool,
    queue: Arc<Queue>,
    consumer: Option<Arc<BaseConsumer<Context>>>,
    streams: BTreeMap<i32, u64>,
}

impl KafkaReader {
    pub fn new(
        shared: Arc<ReaderShared>,
        options: Arc<JournalOptions>,
        is_flume: bool,
        queue: Arc<Queue>,
    ) -> KafkaReader {
        KafkaReader { shared, options, is_flume, queue, consumer: None, streams: BTreeMap::new() }
    }

    fn consumer(&mut self) -> Result<Arc<BaseConsumer<Context>>, ReadError> {
        if let Some(consumer) = &self.consumer {
            return Ok(consumer.clone());
        }
        let (shared, options) = (&self.shared, &self.options);
        let session_ms = options.session_timeout.as_millis();
        let mut config = options.settings.config(&options.id());
        config.set("group.id", &shared.group);
        config.set("group.instance.id", format!("{}/{}", options.id(), shared.name));
        config.set("session.timeout.ms", session_ms.to_string());
        config.set("heartbeat.interval.ms", (session_ms / 5).clamp(100, 3_000).to_string());
        config.set("partition.assignment.strategy", "cooperative-sticky");
        config.set("isolation.level", "read_committed");
        config.set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
        config.set("enable.partition.eof", "true");
        config.set("auto.offset.reset", "earliest");
        config.set("queued.max.messages.kbytes", (limits::READ_AHEAD_BYTES >> 10).to_string());
        config.set("fetch.wait.max.ms", "100");
        let who = format!("channel of sink {}", shared.name);
        let context = Context::new(&who, options.settings.clone(), None);
        context.set_rebalance(Arc::new(Listener(shared.clone())));
        let made = config.create_with_context::<_, BaseConsumer<Context>>(context);
        let consumer = Arc::new(made.map_err(|error| self.failed(error.to_string()))?);
        consumer
            .subscribe(&[&shared.topic])
            .map_err(|error| self.failed(consumer.context().explain(&error)))?;
        *self.shared.consumer.lock() = Some(consumer.clone());
        self.consumer = Some(consumer.clone());
        Ok(consumer)
    }

    fn failed(&self, reason: String) -> ReadError {
        let what = format!("topic {}", self.shared.topic);
        ReadError::Io { what, source: std::io::Error::other(reason) }
    }

    /// Lets go of the membership: everything that was ours is lost.
    fn leave(&mut self) {
        *self.shared.consumer.lock() = None;
        self.consumer = None;
        let mut state = self.shared.state.lock();
        if !state.partitions.is_empty() {
            state.set_broken(format!("the membership in the group {} ended", self.shared.group));
            state.partitions.clear();
        }
    }

    fn stream(&mut self, partition: i32) -> u64 {
        let topic = self.shared.topic.as_str();
        *self.streams.entry(partition).or_insert_with(|| {
            let hash = blake3::hash(format!("{topic}/{partition}").as_bytes());
            hash.as_bytes().first_chunk::<8>().map_or(0, |head| u64::from_le_bytes(*head))
        })
    }

    /// Why the reader has to go back, once.
    fn moved(&self) -> Result<(), ReadError> {
        let mut state = self.shared.state.lock();
        match state.broken.clone() {
            Some(reason) if !state.is_told => {
                state.is_told = true;
                Err(ReadError::Moved(reason))
            }
            // Nobody went back: nothing is handed out on top of what cannot be acknowledged.
            Some(reason) => Err(self.failed(reason)),
            None => Ok(()),
        }
    }

    /// A record of a partition that is ours and was not handed out: moves the place behind it.
    fn take(&mut self, message: &impl Message, decoder: &mut Decoder) -> u64 {
        let (number, next) = (message.partition(), message.offset() + 1);
        let covered = {
            let mut state = self.shared.state.lock();
            let Some(partition) = state.partitions.get_mut(&number) else { return 0 };
            let read = *partition.read.get_or_insert(message.offset());
            partition.acknowledged.get_or_insert(read);
            partition.durable.get_or_insert(read);
            if next <= read {
                return 0;
            }
            partition.read = Some(next);
            partition.is_at_end = false;
            next.abs_diff(read)
        };
        let stream = self.stream(number);
        decoder.push(message, stream);
        covered
    }

    fn poll(&mut self, wait: Duration) -> Result<Option<Delivery>, ReadError> {
        let consumer = self.consumer()?;
        let until = Instant::now() + wait;
        let mut decoder = Decoder::new(self.is_flume);
        let mut covered = 0;
        loop {
            let left = if decoder.rows() > 0 {
                Duration::ZERO
            } else {
                until.saturating_duration_since(Instant::now())
            };
            match consumer.poll(left) {
                Some(Ok(message)) => covered += self.take(&message, &mut decoder),
                Some(Err(KafkaError::PartitionEOF(number))) => {
                    if let Some(partition) = self.shared.state.lock().partitions.get_mut(&number) {
                        partition.is_at_end = true;
                    }
                }
                Some(Err(error)) => self.complain(&consumer, &error)?,
                // A rebalance ends a poll early.
                None if decoder.rows() == 0 && Instant::now() < until => {}
                None => break,
            }
            self.moved()?;
            let is_full = decoder.rows() >= limits::READ_ROWS || decoder.bytes() >= limits::READ_BYTES;
            if is_full || decoder.has_many_columns() || self.queue.is_closing() {
                break;
            }
        }
        self.moved()?;
        if decoder.rows() == 0 {
            return Ok(None);
        }
        consumer.context().works();
        let batch = decoder.finish().map_err(|error| self.failed(error.to_string()))?;
        let mut state = self.shared.state.lock();
        let first = state.cursor;
        state.cursor += covered;
        let behind = state.partitions.iter();
        let behind = behind.filter_map(|(number, p)| Some((*number, p.assignment, p.read?))).collect();
        let entry = (state.cursor, behind);
        state.table.push_back(entry);
        let lost_before = std::mem::take(&mut state.lost);
        Ok(Some(Delivery { first, next: state.cursor, batch, lost_before }))
    }

    /// What cannot go on with this membership ends it.
    fn complain(&mut self, consumer: &BaseConsumer<Context>, error: &KafkaError) -> Result<(), ReadError> {
        let is_fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
        let reason = match words::code(error) {
            Some(Code::FencedInstanceId) => {
                "another agent with the same name reads this channel: give each agent a name of its own"
                    .into()
            }
            Some(
                Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::SaslAuthenticationFailed
                | Code::Authentication,
            ) => consumer.context().explain(error),
            _ if is_fatal => consumer.context().explain(error),
            // Brokers that come and go are librdkafka's business; `status` shows them.
            _ => return Ok(()),
        };
        if is_fatal {
            self.leave();
        }
        Err(self.failed(reason))
    }

    /// Waits until the group has given us partitions. What is read meanwhile is read again after the seek that follows.
    fn await_partitions(&mut self) -> bool {
        let until = Instant::now() + limits::READ_BACK;
        while self.shared.state.lock().partitions.is_empty() {
            if Instant::now() > until || self.queue.is_closing() {
                return false;
            }
            if !self.queue.is_open() {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            let Ok(consumer) = self.consumer() else { return false };
            consumer.poll(Duration::from_millis(100));
        }
        true
    }

    /// Reads on from these offsets, all partitions.
    fn reposition(&self, offsets: &Offsets) -> Result<(), KafkaError> {
        let Some(consumer) = &self.consumer else { return Ok(()) };
        let mut list = TopicPartitionList::new();
        for (number, offset) in offsets {
            list.add_partition_offset(&self.shared.topic, *number, Offset::Offset(*offset))?;
        }
        if list.count() > 0 {
            // Not a seek: that fails while a partition is not fetched yet.
            consumer.incremental_unassign(&list)?;
            consumer.incremental_assign(&list)?;
        }
        Ok(())
    }
}

impl Reader for KafkaReader {
    fn next(&mut self, wait: Duration) -> Result<Option<Delivery>, ReadError> {
        if self.queue.is_closing() {
            return Err(ReadError::Closing);
        }
        self.moved()?;
        if !self.queue.is_open() {
            // The topics may not be there yet.
            std::thread::sleep(wait.min(Duration::from_millis(50)));
            return Ok(None);
        }
        self.poll(wait)
    }

    fn seek(&mut self, cursor: u64) -> Result<(), ReadError> {
        let offsets: Offsets = {
            let mut state = self.shared.state.lock();
            state.epoch += 1;
            state.broken = None;
            state.acknowledged = state.durable;
            let behind = state.table.iter().find(|(behind, _)| *behind == cursor).map(|(_, o)| o.clone());
            let behind = behind.unwrap_or_default();
            state.table.clear();
            state.cursor = cursor;
            let mut offsets = Vec::new();
            for (number, partition) in &mut state.partitions {
                partition.acknowledged = partition.durable;
                let is_own = |(of, assignment, _): &&_| of == number && *assignment == partition.assignment;
                let at = behind.iter().find(is_own).map(|(_, _, offset)| *offset);
                partition.read = at.max(partition.durable);
                partition.is_at_end = false;
                offsets.extend(partition.read.map(|read| (*number, read)));
            }
            if !behind.is_empty() {
                state.table.push_back((cursor, behind));
            }
            offsets
        };
        self.reposition(&offsets).map_err(|error| self.failed(error.to_string()))
    }

    fn acknowledged(&self) -> u64 {
        let state = self.shared.state.lock();
        if state.broken.is_some() { state.durable } else { state.acknowledged }
    }

    fn mark(&self, cursor: u64) -> Vec<u8> {
        let state = self.shared.state.lock();
        let offsets: Offsets = match state.table.iter().find(|(behind, _)| *behind == cursor) {
            Some((_, behind)) => behind.iter().map(|(number, _, offset)| (*number, *offset)).collect(),
            None => {
                state.partitions.iter().filter_map(|(number, p)| Some((*number, p.acknowledged?))).collect()
            }
        };
        mark::encode(&self.shared.topic, &offsets)
    }

    fn resolve(&mut self, mark: &[u8]) -> Option<u64> {
        let offsets = mark::decode(&self.shared.topic, mark)?;
        if !self.await_partitions() {
            return None;
        }
        let consumer = self.consumer.clone()?;
        let topic = self.shared.topic.as_str();
        for (number, offset) in &offsets {
            let high = consumer.fetch_watermarks(topic, *number, limits::REQUEST).ok()?.1;
            if *offset > high {
                return None;
            }
        }
        let mut state = self.shared.state.lock();
        let mut cursor = state.durable;
        let mut behind = Vec::new();
        for (number, partition) in &state.partitions {
            let stored = offsets.iter().find(|(of, _)| of == number).map(|(_, offset)| *offset);
            let Some(begin) = partition.durable else { continue };
            let offset = stored.unwrap_or(begin).max(begin);
            cursor += offset.abs_diff(begin);
            behind.push((*number, partition.assignment, offset));
        }
        state.marks.extend(offsets);
        if cursor > state.durable {
            state.table.push_back((cursor, behind));
        }
        Some(cursor)
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        self.leave();
    }
}
