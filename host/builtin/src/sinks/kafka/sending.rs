//! Rows to records.

use std::ffi::CString;
use std::sync::Arc;
use std::time::Instant;

use arrow_array::Array;
use flumen_event::Batch;
use flumen_kafka::produce::{Record, Values};
use flumen_kafka::rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use flumen_kafka::words;
use flumen_pipeline::SinkError;
use flumen_pipeline::sink::SinkContext;

use super::faults;
use super::link::{Delivered, Link};
use super::options::{Delivery, Partitioner, Settings};
use super::patience::Patience;
use super::routes::{LaneOf, TopicNames};
use super::values::{self, Columns, header_bytes};
use crate::sinks::limits;

/// A batch's number above, its row below: what librdkafka calls a record.
const ROW_BITS: u32 = 32;

pub(super) fn id(batch: usize, row: usize) -> usize {
    batch << ROW_BITS | row
}

pub(super) fn batch_and_row(id: usize) -> (usize, usize) {
    (id >> ROW_BITS, id & ((1 << ROW_BITS) - 1))
}

/// Why a batch was not handed over as a whole.
pub(super) enum Broken {
    /// A record before was refused: nothing more can be sent until that is settled.
    Refused,
    Error(SinkError),
}

impl From<SinkError> for Broken {
    fn from(error: SinkError) -> Broken {
        Broken::Error(error)
    }
}

impl Link {
    /// Takes a batch: hands its rows to the lanes.
    pub fn deliver(
        &mut self,
        context: &mut SinkContext,
        batch: Batch,
        patience: &Patience,
    ) -> Result<(), SinkError> {
        let (batch, values) = values::of(&self.settings, context, batch);
        if batch.is_empty() {
            return Ok(());
        }
        self.make_room(context, &batch, &values, patience)?;
        self.delivered.push(Delivered { batch, values, refused: Default::default() });
        let is_alone = self.handed.is_none_or(|at| at.elapsed() > limits::KAFKA_NOTHING_MORE);
        let sent = self.send_batch(context, self.delivered.len() - 1, patience);
        if is_alone && self.settings.delivery == Delivery::AtLeastOnce {
            // Few events come: each batch goes at once. With transactions nobody would see it before their end.
            self.lanes.iter().for_each(|lane| lane.lane.producer.kick(limits::KAFKA_KICK));
        }
        self.handed = Some(Instant::now());
        match sent {
            Ok(()) => Ok(()),
            Err(Broken::Error(error)) => Err(error),
            Err(Broken::Refused) => self.settle(context, patience),
        }
    }

    /// Everything once, as it is; returns how many were not delivered.
    pub fn send_once(
        &mut self,
        context: &mut SinkContext,
        batches: Vec<(Batch, Arc<Values>)>,
        patience: &Patience,
    ) -> Result<u64, SinkError> {
        let mut dropped = 0;
        // Of events that are delivered and not yet flushed: their acknowledgement takes it along.
        let waiting = context.take_quarantined();
        for (batch, values) in batches {
            self.make_room(context, &batch, &values, patience)?;
            let rows = batch.rows() as u64;
            self.delivered.push(Delivered { batch, values, refused: Default::default() });
            match self.send_batch(context, self.delivered.len() - 1, patience) {
                Ok(()) => {}
                Err(Broken::Refused) => dropped += rows,
                Err(Broken::Error(error)) => return Err(error),
            }
        }
        // Of these the journal knows nothing any more.
        let refused: u64 = context.take_quarantined().iter().map(|group| group.batch.rows() as u64).sum();
        context.quarantine_groups(waiting);
        while self
            .lanes
            .iter()
            .any(|lane| !lane.lane.producer.drain(limits::BROKER_SLOW, || patience.go_on()))
        {
            if !patience.go_on() {
                return Err(SinkError::Stopped);
            }
            self.say_what_is_waited_for(context);
        }
        let failed: Vec<(usize, Code)> =
            self.lanes.iter().flat_map(|lane| lane.lane.producer.failed()).collect();
        if let Some((_, code)) = failed.first() {
            let error = self.error(&KafkaError::MessageProduction(*code));
            context.metrics.set_error(Some(error.to_string()));
            tracing::error!(sink = &*context.name, events = failed.len(), %error, "not delivered, and lost (at-most-once)");
        } else {
            context.metrics.set_error(None);
        }
        for lane in &mut self.lanes {
            lane.lane.producer.release();
        }
        self.delivered.clear();
        Ok(dropped + refused + failed.len() as u64)
    }

    pub fn send_all(&mut self, context: &mut SinkContext, patience: &Patience) -> Result<(), Broken> {
        (0..self.delivered.len()).try_for_each(|index| self.send_batch(context, index, patience))
    }

    pub fn say_what_is_waited_for(&self, context: &SinkContext) {
        let reason = self.lanes.iter().find_map(|lane| lane.lane.producer.context().last_error());
        let reason = reason.unwrap_or_else(|| "the broker takes its time".into());
        context.metrics.set_error(Some(format!("waiting for the broker: {reason}")));
    }

    pub fn send_batch(
        &mut self,
        context: &mut SinkContext,
        index: usize,
        patience: &Patience,
    ) -> Result<(), Broken> {
        let rows = self.delivered.get(index).map_or(0, |delivered| delivered.batch.rows());
        self.send_rows(context, index, 0..rows, patience)
    }

    /// Hands rows of a batch to the lanes. Those that cannot go at all are put into quarantine.
    pub fn send_rows(
        &mut self,
        context: &mut SinkContext,
        index: usize,
        rows: std::ops::Range<usize>,
        patience: &Patience,
    ) -> Result<(), Broken> {
        let Some(delivered) = self.delivered.get(index) else { return Ok(()) };
        let (batch, values) = (delivered.batch.clone(), delivered.values.clone());
        let settings = self.settings.clone();
        let columns = Columns::new(&settings, &batch);
        let mut names = TopicNames::new(&settings, &batch);
        let lane_of = LaneOf::new(&settings, &batch, self.used);
        let partition_header = match &settings.partitioner {
            Partitioner::Header(name) => batch.header(name),
            _ => None,
        };
        let mut refused: Vec<(usize, String)> = Vec::new();
        let mut headers: Vec<(&CString, &[u8])> = Vec::new();
        let mut scratch = [0; 16];
        let mut last_topic: Option<(String, usize)> = None;
        // Values are compared with a topic's limit only where they go as they are.
        let is_limited = settings.compression == "none";
        let has_refused = !delivered.refused.is_empty();
        let has_alone = !self.alone.is_empty();
        let batch_bytes = self.sizes.batch;
        for lane in self.lanes.iter_mut().take(self.used) {
            lane.lane.producer.hold(values.clone());
            lane.lane.producer.serve();
        }
        for row in rows {
            if has_refused
                && self.delivered.get(index).is_some_and(|delivered| delivered.refused.contains(&row))
            {
                continue;
            }
            let route = match self.route(&settings, names.of(row), &mut last_topic)? {
                Ok(route) => route,
                Err(reason) => {
                    refused.push((row, reason));
                    continue;
                }
            };
            let key = columns.key(row, &mut scratch);
            columns.headers(row, &mut headers);
            let value = values.get(row);
            let header =
                partition_header.filter(|header| header.is_valid(row)).map(|header| header.value(row));
            let Some(found) = self.routes.get_mut(route) else { continue };
            let bytes = record_bytes(value, key, &headers);
            if let Some(limit) = found.record_bytes_max.filter(|limit| is_limited && bytes > *limit) {
                refused.push((
                    row,
                    format!(
                        "the record has {bytes} bytes; topic {:?} takes {limit} (max.message.bytes)",
                        found.name
                    ),
                ));
                continue;
            }
            let bytes = (value.len() + key.map_or(0, <[u8]>::len)) as u64;
            let partition = match found.partition(&settings.partitioner, key, header, bytes, batch_bytes) {
                Ok(partition) => Some(partition),
                Err(reason) => {
                    refused.push((row, reason));
                    continue;
                }
            };
            let time_ms = settings.event_time.then(|| batch.time().value(row).div_euclid(1_000_000).max(0));
            let id = id(index, row);
            let is_alone = has_alone && self.alone.contains(&id);
            let lane = lane_of.row(row);
            let topic = self.topic_id(lane, route)?;
            let record = Record { topic, partition, key, time_ms, headers: &headers, id };
            if is_alone {
                self.drain_lane(lane, patience)?;
            }
            self.send(lane, &record, row, route, patience, context)?;
            if is_alone {
                self.drain_lane(lane, patience)?;
            }
        }
        self.quarantine(context, index, refused)?;
        Ok(())
    }

    fn drain_lane(&mut self, lane: usize, patience: &Patience) -> Result<(), Broken> {
        let Some(state) = self.lanes.get(lane) else { return Ok(()) };
        let timeout = self.settings.transaction_timeout;
        let producer = &state.lane.producer;
        match producer.drain(timeout, || patience.go_on() && !producer.has_failed()) {
            true if !producer.has_failed() => Ok(()),
            _ if producer.has_failed() => Err(Broken::Refused),
            _ => Err(self.error(&KafkaError::Flush(Code::OperationTimedOut)).into()),
        }
    }

    /// The route of a topic, or of `topic_default` where that is not to be; the inner error is a reason for quarantine.
    fn route(
        &mut self,
        settings: &Settings,
        name: Result<&str, String>,
        last: &mut Option<(String, usize)>,
    ) -> Result<Result<usize, String>, SinkError> {
        let reason = match name {
            Ok(name) => {
                if let Some((last, route)) = last
                    && last == name
                {
                    return Ok(Ok(*route));
                }
                let route = self.find_route(name)?;
                let found = self.routes.get_mut(route);
                if found.as_ref().is_some_and(|route| route.is_open()) {
                    *last = Some((name.to_owned(), route));
                    return Ok(Ok(route));
                }
                let (is_denied, is_read_only) =
                    found.map_or((false, false), |route| (route.is_denied, route.is_read_only));
                if settings.topic.plain().is_some() {
                    return Err(self.topic_missing(name, is_denied));
                }
                match (is_denied, is_read_only) {
                    (true, _) => self.denied(name),
                    (_, true) => unwritable(name),
                    _ => format!("topic {name:?} does not exist"),
                }
            }
            Err(reason) => reason,
        };
        let Some(default) = &settings.topic_default else { return Ok(Err(reason)) };
        let route = self.find_route(default)?;
        match self.routes.get_mut(route).map(|route| (route.partitions, route.is_denied)) {
            Some((Some(_), _)) => Ok(Ok(route)),
            found => Err(self.topic_missing(default, found.is_some_and(|(_, is_denied)| is_denied))),
        }
    }

    pub fn find_route(&mut self, name: &str) -> Result<usize, SinkError> {
        let found = self.routes.find(name, &self.topics);
        found.map_err(|error| {
            let text = self.topics.explain(&error);
            match words::code(&error).is_some_and(is_of_topic) {
                true => SinkError::Retry(format!("topic {name:?}: {text}")),
                false => SinkError::Retry(text),
            }
        })
    }

    /// The brokers do not let us see a topic.
    fn denied(&self, name: &str) -> String {
        let error = KafkaError::MetadataFetch(Code::TopicAuthorizationFailed);
        format!("topic {name:?}: {}", words::explain(&error, &self.settings.client, None))
    }

    /// The topic that everything goes to, or what has no other, cannot be sent to.
    pub fn topic_missing(&mut self, name: &str, is_denied: bool) -> SinkError {
        self.routes.forget();
        if is_denied {
            return SinkError::Retry(self.denied(name));
        }
        SinkError::Retry(format!(
            "topic {name:?} does not exist; make it (for instance `kafka-topics.sh --create --topic {name} \
             --partitions 6 …`), or correct the name. Delivery goes on by itself when it is there"
        ))
    }

    fn topic_id(&mut self, lane: usize, route: usize) -> Result<flumen_kafka::produce::TopicId, SinkError> {
        let Some(state) = self.lanes.get_mut(lane) else {
            return Err(SinkError::Retry("no such lane".into()));
        };
        if let Some(Some(id)) = state.topic_ids.get(route) {
            return Ok(*id);
        }
        let name = self.routes.name(route);
        match state.lane.producer.topic(name) {
            Ok(id) => {
                if state.topic_ids.len() <= route {
                    state.topic_ids.resize(route + 1, None);
                }
                if let Some(place) = state.topic_ids.get_mut(route) {
                    *place = Some(id);
                }
                Ok(id)
            }
            Err(error) => Err(self.error(&error)),
        }
    }

    /// Hands one record to a lane; waits while the lane is full.
    fn send(
        &mut self,
        lane: usize,
        record: &Record<'_>,
        row: usize,
        route: usize,
        patience: &Patience,
        context: &SinkContext,
    ) -> Result<(), Broken> {
        let is_transactional = self.settings.delivery == Delivery::ExactlyOnce;
        let is_by_header = self.settings.topic.plain().is_none();
        let Some(state) = self.lanes.get_mut(lane) else { return Ok(()) };
        if !state.lane.is_open() {
            if let Err(error) = state.lane.begin() {
                return Err(self.error(&error).into());
            }
            if is_transactional {
                faults::passed("transaction.begun");
            }
        }
        let mut waiting_since: Option<Instant> = None;
        loop {
            let Some(state) = self.lanes.get_mut(lane) else { return Ok(()) };
            let producer = &mut state.lane.producer;
            let code = match producer.send(record, row) {
                Ok(()) => return Ok(()),
                // The brokers did not let us write another record there, and librdkafka does not ask again: so it is of this one, too.
                Err(code @ Code::TopicAuthorizationFailed) if is_by_header && !is_transactional => {
                    producer.context().note_failed(record.id, code);
                    return Ok(());
                }
                Err(code) => code,
            };
            // Reports of what went wrong before may only be on their way.
            producer.poll(limits::KAFKA_QUEUE_WAIT);
            if code == Code::QueueFull && waiting_since.is_some_and(|at| at.elapsed() > limits::KAFKA_STUCK) {
                // Full of records that fill no batch, of very many partitions: they do not go by themselves.
                producer.kick(limits::KAFKA_QUEUE_WAIT);
            }
            // Without transactions a refusal holds up nothing else.
            if is_transactional && (producer.has_failed() || producer.context().has_unwritable()) {
                return Err(Broken::Refused);
            }
            if code != Code::QueueFull {
                return Err(self.send_error(code, route).into());
            }
            if !patience.go_on() {
                return Err(SinkError::Stopped.into());
            }
            let since = *waiting_since.get_or_insert_with(Instant::now);
            if since.elapsed() > limits::BROKER_SLOW {
                waiting_since = Some(Instant::now());
                self.say_what_is_waited_for(context);
            }
        }
    }

    fn send_error(&mut self, code: Code, route: usize) -> SinkError {
        let topic = self.routes.name(route).to_owned();
        if code == Code::UnknownPartition {
            self.routes.forget();
            if let Partitioner::Fixed(number) = self.settings.partitioner {
                return SinkError::Retry(format!(
                    "topic {topic:?}: there is no partition {number}: correct `partition`, or give the topic more partitions"
                ));
            }
        }
        self.record_error(&topic, code)
    }

    /// Why a record was not taken.
    pub fn record_error(&mut self, topic: &str, code: Code) -> SinkError {
        match self.error(&KafkaError::MessageProduction(code)) {
            SinkError::Retry(text) if is_of_topic(code) => {
                SinkError::Retry(format!("topic {topic:?}: {text}"))
            }
            error => error,
        }
    }

    fn quarantine(
        &mut self,
        context: &mut SinkContext,
        index: usize,
        refused: Vec<(usize, String)>,
    ) -> Result<(), SinkError> {
        let Some(delivered) = self.delivered.get_mut(index) else { return Ok(()) };
        if refused.is_empty() {
            return Ok(());
        }
        let rows: Vec<u32> = refused.iter().map(|(row, _)| *row as u32).collect();
        let batch =
            delivered.batch.take(&rows.into()).map_err(|error| SinkError::Retry(error.to_string()))?;
        delivered.refused.extend(refused.iter().map(|(row, _)| *row));
        context.quarantine(batch, refused.into_iter().map(|(_, reason)| reason).collect());
        Ok(())
    }
}

/// The brokers let us see a topic, and not write it.
fn unwritable(name: &str) -> String {
    format!("topic {name:?}: {} ({})", words::NO_TOPIC_WRITE, Code::TopicAuthorizationFailed)
}

/// Errors whose words speak of a topic without its name.
fn is_of_topic(code: Code) -> bool {
    matches!(
        code,
        Code::TopicAuthorizationFailed
            | Code::UnknownTopicOrPartition
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::InvalidTopic
    )
}

/// Bytes of a record, as a batch of this record alone would have.
fn record_bytes(value: &[u8], key: Option<&[u8]>, headers: &[(&CString, &[u8])]) -> usize {
    let headers: usize = headers.iter().map(|(name, value)| header_bytes(name, value.len())).sum();
    value.len() + key.map_or(0, <[u8]>::len) + headers + limits::KAFKA_RECORD_OVERHEAD_BYTES
}
