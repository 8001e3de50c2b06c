//! One worker: a consumer with some partitions of one topic, read for one bucket.
//!
//! Partitions are assigned by hand; no group is joined and nothing is committed to the brokers. A partition is read until its
//! commit offset, or until it has been silent for long enough. An error that could mean a skipped record ends the
//! run, which leaves no trace but files in the work directory; only what librdkafka mends alone is waited out.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flumen_kafka::rdkafka::consumer::{BaseConsumer, Consumer};
use flumen_kafka::rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use flumen_kafka::rdkafka::{Message, Offset, TopicPartitionList};
use flumen_kafka::settings::without_statistics;
use flumen_kafka::{Context, words};
use flumen_pipeline::ComponentMetrics;

use super::calendar::{Bucket, time_text};
use super::error::BridgeError;
use super::kafka::remade;
use super::limits::{IDLE_QUIET, POLL, PROBE, PROBE_EVERY, READ_AHEAD_KB, SILENCE, TELL_RECORDS};
use super::options::{KafkaInput, Settings};
use super::partition::{Finished, Reading, Stretch};
use super::spool::Press;
use super::watch::Watch;

/// A consumer for looking and reading.
pub(super) fn consumer(
    input: &KafkaInput,
    metrics: Option<Arc<ComponentMetrics>>,
) -> Result<BaseConsumer<Context>, BridgeError> {
    let has_metrics = metrics.is_some();
    let context = Context::new("bridge", input.client.clone(), metrics);
    let mut config = match has_metrics {
        true => input.client.config("flumen-bridge"),
        false => without_statistics(input.client.config("flumen-bridge")),
    };
    // librdkafka wants a name even where no group is joined.
    config.set("group.id", "flumen-bridge");
    config.set("enable.auto.commit", "false");
    config.set("enable.auto.offset.store", "false");
    config.set("enable.partition.eof", "true");
    config.set("isolation.level", "read_committed");
    config.set("auto.offset.reset", "error");
    config.set("check.crcs", "true");
    config.set("queued.max.messages.kbytes", READ_AHEAD_KB.to_string());
    let refused = |error: KafkaError| BridgeError::Refused(words::explain(&error, &input.client, None));
    let consumer: BaseConsumer<Context> = config.create_with_context(context).map_err(refused)?;
    // It is asked before it is polled.
    flumen_kafka::admin::give_token(consumer.client(), &input.client).map_err(refused)?;
    Ok(consumer)
}

/// What all workers of a run share.
pub(super) struct Run<'a> {
    pub settings: &'a Settings,
    pub input: &'a KafkaInput,
    pub topic: &'a str,
    pub bucket: Bucket,
    /// Waits for what is still to come; otherwise says that it is not complete.
    pub live: bool,
    /// Asked to stop from outside.
    pub stop: &'a AtomicBool,
    /// Told of what is read.
    pub watch: &'a Watch,
    /// Another worker has failed.
    pub failed: &'a AtomicBool,
    pub work: &'a Path,
}

/// Reads some partitions to the end of the bucket.
pub(super) fn read(run: &Run<'_>, stretches: &[Stretch]) -> Result<Vec<Finished>, BridgeError> {
    let done = Worker::new(run, stretches).and_then(|mut worker| {
        worker.read()?;
        let Worker { readings, mut press, .. } = worker;
        readings.into_values().map(|reading| reading.finish(&mut press)).collect()
    });
    if done.is_err() {
        run.failed.store(true, Ordering::Relaxed);
    }
    done
}

struct Worker<'a> {
    run: &'a Run<'a>,
    consumer: BaseConsumer<Context>,
    press: Press,
    readings: HashMap<i32, Reading>,
    open: usize,
    /// When the brokers last gave a sign of life.
    heard: Instant,
    /// When brokers in trouble were last asked whether they answer again.
    probed: Instant,
    is_in_trouble: bool,
    /// Records and bytes that were read and not told of yet.
    read: (u64, u64),
}

impl<'a> Worker<'a> {
    fn new(run: &'a Run<'a>, stretches: &[Stretch]) -> Result<Worker<'a>, BridgeError> {
        let consumer = consumer(run.input, run.live.then(|| run.watch.worker()))?;
        let mut assignment = TopicPartitionList::new();
        let mut readings = HashMap::new();
        for stretch in stretches {
            assignment
                .add_partition_offset(run.topic, stretch.partition, Offset::Offset(stretch.begin))
                .map_err(|error| BridgeError::Kafka(error.to_string()))?;
            readings.insert(stretch.partition, Reading::new(run, *stretch));
        }
        consumer.assign(&assignment).map_err(|error| BridgeError::Kafka(error.to_string()))?;
        let open = readings.len();
        let press = Press::new(&run.settings.output);
        let now = Instant::now();
        // What was wrong before is over with the first word from a broker.
        let is_in_trouble = run.live;
        Ok(Worker {
            run,
            consumer,
            press,
            readings,
            open,
            heard: now,
            probed: now,
            is_in_trouble,
            read: (0, 0),
        })
    }

    fn read(&mut self) -> Result<(), BridgeError> {
        while self.open > 0 {
            if self.run.stop.load(Ordering::Relaxed) || self.run.failed.load(Ordering::Relaxed) {
                return Err(BridgeError::Stopped);
            }
            let finished = match self.consumer.poll(POLL) {
                None => {
                    self.tell();
                    self.look_at_trouble();
                    self.look_at_silent()?;
                    continue;
                }
                Some(Ok(message)) => {
                    self.heard = Instant::now();
                    self.read.0 += 1;
                    self.read.1 += message.payload().map_or(0, |body| body.len() as u64);
                    let Some(reading) = self.readings.get_mut(&message.partition()) else { continue };
                    if reading.scan.is_done() {
                        continue;
                    }
                    reading.is_at_end = false;
                    reading.confirmed = None;
                    reading.take(self.run, &mut self.press, &message)?;
                    reading.scan.is_done().then_some(message.partition())
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.heard = Instant::now();
                    self.tell();
                    if let Some(reading) = self.readings.get_mut(&partition) {
                        reading.is_at_end = true;
                    }
                    self.look_at_silent()?;
                    None
                }
                Some(Err(error)) => {
                    self.judge(&error)?;
                    None
                }
            };
            if let Some(partition) = finished {
                self.closed(partition)?;
            } else if self.read.0 >= TELL_RECORDS {
                self.tell();
            }
        }
        Ok(())
    }

    /// What was read since the last time. Not with each record: workers share the counters.
    fn tell(&mut self) {
        let (records, bytes) = std::mem::take(&mut self.read);
        if records > 0 {
            self.run.watch.reads(records, bytes);
        }
        if self.is_in_trouble && self.heard > self.probed {
            self.is_in_trouble = false;
            self.consumer.context().works();
            self.run.watch.works();
        }
    }

    /// Brokers that do not answer are waited for, and shown until they do. librdkafka tells of errors, not of their end, and
    /// where there is nothing to read no record shows it: so they are asked.
    fn look_at_trouble(&mut self) {
        if !self.run.live || self.heard.elapsed() < PROBE_EVERY || self.probed.elapsed() < PROBE_EVERY {
            return;
        }
        let Some(reason) = self.consumer.context().last_error() else { return };
        let mut open = self.readings.iter().filter(|(_, reading)| !reading.scan.is_done());
        let answers = |partition| self.consumer.fetch_watermarks(self.run.topic, partition, PROBE).is_ok();
        let is_well = open.all(|(partition, _)| answers(*partition));
        self.probed = Instant::now();
        // A connection that was closed for being idle is an error too, and none that anybody has to see.
        self.is_in_trouble = true;
        if is_well {
            self.heard = Instant::now();
            self.tell();
        } else {
            self.run.watch.waits(format!("topic `{}`: {reason}", self.run.topic));
        }
    }

    /// Nothing more is wanted of a partition.
    fn closed(&mut self, partition: i32) -> Result<(), BridgeError> {
        self.open -= 1;
        self.tell();
        self.consumer.context().works();
        let mut list = TopicPartitionList::new();
        list.add_partition(self.run.topic, partition);
        self.consumer.pause(&list).map_err(|error| BridgeError::Kafka(error.to_string()))
    }

    /// Partitions at their end: closed when they have been silent for long enough.
    fn look_at_silent(&mut self) -> Result<(), BridgeError> {
        if !self.run.live && self.heard.elapsed() > SILENCE {
            let brokers = self.run.input.client.brokers.join(", ");
            let behind = self.consumer.context().last_error();
            let behind = behind.unwrap_or_else(|| "is a broker running there?".into());
            return Err(BridgeError::Kafka(format!("no answer from {brokers}: {behind}")));
        }
        let due_ns = self.run.bucket.end_ns.saturating_add(self.run.settings.lateness_ns);
        let due_ns = due_ns.saturating_add(self.run.input.idle_ns);
        let is_due = now_ns() >= due_ns;
        let mut closed = Vec::new();
        for (partition, reading) in &mut self.readings {
            if !reading.is_at_end || reading.scan.is_done() {
                continue;
            }
            if reading.stretch.end.is_some() {
                // The last records below the commit offset may be gone by compaction.
                reading.scan.close();
                closed.push(*partition);
            } else if !is_due && !self.run.live {
                return Err(self.run.incomplete(reading, due_ns));
            } else if is_due {
                match reading.confirmed {
                    None => {
                        let limit = flumen_kafka::limits::REQUEST;
                        match self.consumer.fetch_watermarks(self.run.topic, *partition, limit) {
                            Ok(_) => reading.confirmed = Some(Instant::now()),
                            Err(error) if self.run.live => {
                                tracing::debug!(%error, "the end of a partition is not confirmed")
                            }
                            Err(error) => {
                                return Err(BridgeError::Kafka(self.consumer.context().explain(&error)));
                            }
                        }
                    }
                    Some(at) if at.elapsed() >= IDLE_QUIET => {
                        reading.scan.close();
                        closed.push(*partition);
                    }
                    Some(_) => {}
                }
            }
        }
        closed.into_iter().try_for_each(|partition| self.closed(partition))
    }

    /// Waits out what librdkafka mends alone, and fails for everything else.
    fn judge(&self, error: &KafkaError) -> Result<(), BridgeError> {
        let text = self.consumer.context().explain(error);
        match words::code(error) {
            Some(
                Code::AllBrokersDown
                | Code::BrokerTransportFailure
                | Code::Resolve
                | Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::LeaderNotAvailable
                | Code::NotLeaderForPartition
                | Code::NodeUpdate
                // No group is used; whoever may not use one needs none.
                | Code::GroupAuthorizationFailed
                | Code::CoordinatorNotAvailable
                | Code::NotCoordinator,
            ) => Ok(()),
            Some(
                Code::UnknownTopic
                | Code::UnknownTopicOrPartition
                | Code::UnknownPartition
                | Code::TopicAuthorizationFailed
                | Code::SaslAuthenticationFailed
                | Code::Authentication,
            ) => Err(BridgeError::Refused(format!("topic `{}`: {text}", self.run.topic))),
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => Err(self.out_of_range(&text)),
            _ => Err(BridgeError::Kafka(format!("topic `{}`: {text}", self.run.topic))),
        }
    }
}

impl Worker<'_> {
    /// The records to be read next are not there: before the beginning of the log, or behind its end.
    fn out_of_range(&self, text: &str) -> BridgeError {
        let topic = self.run.topic;
        for (partition, reading) in self.readings.iter().filter(|(_, reading)| !reading.scan.is_done()) {
            let asked = self.consumer.fetch_watermarks(topic, *partition, flumen_kafka::limits::REQUEST);
            let position = reading.scan.position;
            if let Some((_, high)) = asked.ok().filter(|(_, high)| position > *high) {
                return remade(topic, *partition, position, high);
            }
        }
        match self.run.input.may_miss {
            // The next attempt counts what is gone.
            true => BridgeError::Kafka(format!("topic `{topic}`: retention overtook the reading")),
            false => BridgeError::Gap(format!(
                "topic `{topic}`: retention overtook the reading ({text}); see the option `gaps`"
            )),
        }
    }
}

impl Run<'_> {
    fn incomplete(&self, reading: &Reading, due_ns: i64) -> BridgeError {
        let newest = reading
            .scan
            .watermark_ns
            .map_or("nothing was read".into(), |time| format!("its newest is {}", time_text(time)));
        let wanted = time_text(self.bucket.end_ns.saturating_add(self.settings.lateness_ns));
        BridgeError::Incomplete {
            bucket: format!("{} {}", self.topic, self.bucket.label()),
            waits: format!(
                "partition {} has no record of {wanted} or later ({newest}); without one it is taken as complete at {}",
                reading.stretch.partition,
                time_text(due_ns)
            ),
        }
    }
}

/// The clock of the machine.
pub(super) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
