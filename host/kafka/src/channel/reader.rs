//! Reads a channel's topic for one sink, as a member of the sink's consumer group.
//!
//! A cursor counts what this session has read: it rises by the offsets that a delivery covers (more than its rows where a
//! transaction's end takes an offset). A table holds, for each delivery that is not acknowledged, the partitions' offsets
//! behind it; a mark is those offsets as bytes.
//!
//! Partitions come and go with the group ([`super::assignment`]). One that comes is read from the group's committed offset, or
//! from a mark that a destination stored. When one goes of which something was handed out and not acknowledged, the reader is *broken*:
//! it says [`ReadError::Moved`], every acknowledgement handed in meanwhile is refused, and only a seek mends it. What
//! the sink did since its last acknowledgement is undone then, and the partition's new owner does it.
//!
//! An acknowledgement in a transaction is checked twice. [`ReaderShared::check`] asks whether the partitions are still
//! the same assignment, *after* the member's generation was fetched: a revocation is seen here before the member joins
//! again, so a generation fetched before belongs to a time when the partitions were ours. The broker refuses the
//! generation if it is no longer the group's. A member that the group had expelled may join as another one and not be told that its
//! partitions were given away ([`crate::member`]): what came to another member is refused here, and the reader joins anew.
//! The agent is a static member, so that a restart takes its partitions over at once.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_journal::{Delivery, ReadError, Reader};
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::assignment::{Asking, Listener, out_of_range, reposition};
use super::handover::Acknowledger;
use super::mark::{self, Offsets};
use super::options::JournalOptions;
use super::queue::Queue;
use super::record::{Decoder, is_nothing};
use super::share::ReaderShared;
use crate::context::Context;
use crate::settings::without_statistics;
use crate::{limits, words};

/// The reader of a channel.
pub(super) struct KafkaReader {
    shared: Arc<ReaderShared>,
    options: Arc<JournalOptions>,
    is_flume: bool,
    queue: Arc<Queue>,
    consumer: Option<Arc<BaseConsumer<Context>>>,
    streams: BTreeMap<i32, u64>,
    asking: Asking,
}

impl KafkaReader {
    pub fn new(
        shared: Arc<ReaderShared>,
        options: Arc<JournalOptions>,
        is_flume: bool,
        queue: Arc<Queue>,
    ) -> KafkaReader {
        let (consumer, streams) = Default::default();
        KafkaReader { shared, options, is_flume, queue, consumer, streams, asking: Asking::new() }
    }

    fn consumer(&mut self) -> Result<Arc<BaseConsumer<Context>>, ReadError> {
        if let Some(consumer) = &self.consumer {
            return Ok(consumer.clone());
        }
        let (shared, options) = (&self.shared, &self.options);
        let session_ms = options.session_timeout.as_millis();
        // While its sink stands still nobody polls it.
        let mut config = without_statistics(options.settings.config(&options.id()));
        config.set("group.id", &shared.group);
        config.set("group.instance.id", format!("{}/{}", options.id(), shared.name));
        config.set("session.timeout.ms", session_ms.to_string());
        config.set("heartbeat.interval.ms", (session_ms / 5).clamp(100, 3_000).to_string());
        config.set("partition.assignment.strategy", "cooperative-sticky");
        config.set("isolation.level", "read_committed");
        config.set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
        config.set("enable.partition.eof", "true");
        // See assignment.rs.
        config.set("auto.offset.reset", "error");
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
        if let Some(consumer) = self.consumer.take() {
            // Whoever holds it a moment longer drops it: what it gives up then is no news of the next membership.
            consumer.context().clear_rebalance();
        }
        let mut state = self.shared.state();
        if !state.partitions.is_empty() {
            state.set_broken(format!("the membership in the group {} ended", self.shared.group));
            state.partitions.clear();
        }
    }

    /// Only a new membership claims nothing.
    fn leave_if_expelled(&mut self) {
        let is_expelled = std::mem::take(&mut self.shared.state().is_expelled);
        if is_expelled {
            let (topic, group) = (self.shared.topic.as_str(), self.shared.group.as_str());
            tracing::warn!(
                topic,
                group,
                "the group gave our partitions to others while this agent stood still: joining anew"
            );
            self.leave();
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
        let mut state = self.shared.state();
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
        if is_nothing(message) {
            // As the end of a transaction: what follows covers its offset.
            return 0;
        }
        let covered = {
            let mut state = self.shared.state();
            let Some(partition) = state.partitions.get_mut(&number) else { return 0 };
            let Some(read) = partition.read.filter(|read| *read < next) else { return 0 };
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
        self.asking.step(&self.shared, &consumer);
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
                    if let Some(partition) = self.shared.state().partitions.get_mut(&number) {
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
        let mut state = self.shared.state();
        let first = state.cursor;
        state.cursor += covered;
        let behind = state.partitions.iter();
        let behind = behind.filter_map(|(number, p)| Some((*number, p.assignment, p.read?))).collect();
        let entry = (state.cursor, behind);
        state.table.push_back(entry);
        state.resolved.clear();
        let lost_before = std::mem::take(&mut state.lost);
        Ok(Some(Delivery { first, next: state.cursor, batch, lost_before }))
    }

    /// What cannot go on with this membership ends it; what is gone is passed over.
    fn complain(&mut self, consumer: &BaseConsumer<Context>, error: &KafkaError) -> Result<(), ReadError> {
        let is_fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
        let reason = match words::code(error) {
            Some(Code::FencedInstanceId) => {
                "another agent with the same name reads this channel: give each agent a name of its own"
                    .into()
            }
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => {
                return out_of_range(&self.shared, consumer).map_err(|reason| self.failed(reason));
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
        while self.shared.state().partitions.is_empty() {
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
}

impl Reader for KafkaReader {
    fn next(&mut self, wait: Duration) -> Result<Option<Delivery>, ReadError> {
        if self.queue.is_closing() {
            return Err(ReadError::Closing);
        }
        self.leave_if_expelled();
        self.moved()?;
        if !self.queue.is_open() {
            // The topics may not be there yet.
            std::thread::sleep(wait.min(Duration::from_millis(50)));
            return Ok(None);
        }
        self.poll(wait)
    }

    fn seek(&mut self, cursor: u64) -> Result<(), ReadError> {
        self.leave_if_expelled();
        let offsets: Offsets = {
            let mut state = self.shared.state();
            state.epoch += 1;
            state.broken = None;
            state.acknowledged = state.durable;
            let behind = state.table.iter().find(|(behind, _)| *behind == cursor).map(|(_, o)| o.clone());
            let behind = state.take_mark(cursor).or(behind).unwrap_or_default();
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
        let Some(consumer) = &self.consumer else { return Ok(()) };
        reposition(&self.shared, consumer, &offsets).map_err(|error| self.failed(error.to_string()))
    }

    fn acknowledged(&self) -> u64 {
        let state = self.shared.state();
        if state.broken.is_some() { state.durable } else { state.acknowledged }
    }

    fn acknowledger(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(Acknowledger::new(self.shared.clone(), self.options.settings.clone()))
    }

    fn mark(&self, cursor: u64) -> Vec<u8> {
        let state = self.shared.state();
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
        Some(self.shared.state().resolve(offsets))
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        self.leave();
    }
}
