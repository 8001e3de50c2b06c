//! The log's only writer: a transaction per append.

use std::sync::Arc;
use std::time::Duration;

use flumen_journal::log::{GiveUp, Log, LogError, LogReader, Readers, Take};
use rdkafka::Message;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::options::LogOptions;
use super::reader::KafkaLogReader;
use super::topic;
use crate::admin::{Link, topics};
use crate::channel::in_slices;
use crate::context::Context;
use crate::ends::{self, Nature};
use crate::settings::without_statistics;
use crate::{limits, read_back, words};

/// The header of a record that ends a transaction whose end a broker lost. It has no value, which readers of a log pass over.
const NOTHING: &str = "flumen.nothing";

/// See [`super`].
pub(super) struct KafkaLog {
    options: LogOptions,
    producer: Option<Arc<BaseProducer<Context>>>,
    record_bytes_max: usize,
    /// An offset behind what was appended, and not behind what comes.
    end: i64,
}

impl KafkaLog {
    pub fn new(options: LogOptions) -> KafkaLog {
        KafkaLog { options, producer: None, record_bytes_max: limits::RECORD_BYTES_DEFAULT, end: 0 }
    }

    /// A producer that has taken the id over, with nothing open or lost.
    fn connect(&mut self, give_up: GiveUp<'_>) -> Result<Arc<BaseProducer<Context>>, String> {
        let batch_bytes = topic::ensure(&self.options, give_up)?;
        self.record_bytes_max = batch_bytes
            .min(limits::LOG_RECORD_BYTES_MAX)
            .saturating_sub(limits::LOG_RECORD_OVERHEAD_BYTES)
            .max(limits::LOG_RECORD_OVERHEAD_BYTES);
        let producer = self.producer(batch_bytes)?;
        // Serves what must be served before the first request: a token for oauthbearer.
        producer.poll(Duration::from_millis(10));
        in_slices(&producer, give_up, |slice| producer.init_transactions(slice))
            .map_err(|error| format!("beginning transactions: {}", producer.context().explain(&error)))?;
        producer.context().works();
        let id = self.options.id();
        let owner = ends::Owner {
            who: &self.options.who(),
            settings: &self.options.settings,
            transactional_id: &id,
            nature: &|_: &str| Nature::Events(Some((NOTHING, b"".as_slice()))),
            groups: &[],
            anchor: &self.options.topic,
        };
        let (producer, looked) = ends::settle(&owner, producer, Arc::as_ref, give_up)?;
        if let Err(reason) = looked {
            let topic = &*self.options.topic;
            tracing::info!(topic, "whether a broker lost the end of a transaction is not known: {reason}");
        }
        Ok(producer)
    }

    fn producer(&self, batch_bytes: usize) -> Result<Arc<BaseProducer<Context>>, String> {
        let settings = &self.options.settings;
        let mut config = without_statistics(settings.config(&self.options.id()));
        config.set("transactional.id", self.options.id());
        config.set("transaction.timeout.ms", limits::TRANSACTION.as_millis().to_string());
        config.set("message.max.bytes", batch_bytes.clamp(1_000, 1_000_000_000).to_string());
        config.set("batch.size", batch_bytes.clamp(1, limits::RECORD_BYTES_DEFAULT).to_string());
        config.set("queue.buffering.max.messages", "1000000");
        // What is worth it is compressed in the records.
        config.set("compression.type", "none");
        let context = Context::new(&self.options.who(), settings.clone(), None);
        let made = config.create_with_context(context).map(Arc::new);
        made.map_err(|error| words::explain(&error, settings, None))
    }

    fn transaction(
        &self,
        producer: &BaseProducer<Context>,
        records: &[Vec<u8>],
        give_up: GiveUp<'_>,
    ) -> Result<(), String> {
        let explain = |error: KafkaError| producer.context().explain(&error);
        drop(producer.context().take_failed());
        producer.context().take_delivered_to();
        producer.begin_transaction().map_err(explain)?;
        let id = self.options.id();
        for record in records {
            self.send(producer, &id, record, give_up)?;
        }
        in_slices(producer, give_up, |slice| producer.flush(slice)).map_err(explain)?;
        if let Some((_, code)) = producer.context().take_failed().first() {
            return Err(explain(KafkaError::MessageProduction(*code)));
        }
        in_slices(producer, give_up, |slice| producer.commit_transaction(slice)).map_err(explain)?;
        producer.context().works();
        Ok(())
    }

    /// Hands a record to librdkafka; waits while its queue is full.
    fn send(
        &self,
        producer: &BaseProducer<Context>,
        id: &str,
        value: &[u8],
        give_up: GiveUp<'_>,
    ) -> Result<(), String> {
        let mut record: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(&self.options.topic, 0).partition(0).key(id.as_bytes()).payload(value);
        loop {
            match producer.send(record) {
                Ok(()) => return Ok(()),
                Err((error, back)) if words::code(&error) == Some(Code::QueueFull) && !give_up() => {
                    producer.poll(limits::DRAIN_STEP);
                    record = back;
                }
                Err((error, _)) => return Err(producer.context().explain(&error)),
            }
        }
    }
}

fn place(offset: i64) -> u64 {
    u64::try_from(offset).unwrap_or(0)
}

impl Log for KafkaLog {
    fn open(&mut self, from: u64, give_up: GiveUp<'_>, take: Take<'_>) -> Result<u64, LogError> {
        self.producer = None;
        let from = i64::try_from(from).unwrap_or(i64::MAX);
        if from > 0 {
            topic::check_kept(&self.options, from)?;
        }
        let producer = self.connect(give_up)?;
        let (who, id) = (self.options.who(), self.options.id());
        let next = read_back::read(&self.options.partition(&who, &id), from, give_up, |message| {
            let record = message.payload().unwrap_or_default();
            self.options.check_owner(&id, message.key()).and_then(|()| take(place(message.offset()), record))
        });
        self.end = next?;
        self.producer = Some(producer);
        Ok(place(self.end))
    }

    fn append(&mut self, records: &[Vec<u8>], give_up: GiveUp<'_>) -> Result<u64, LogError> {
        let Some(producer) = self.producer.clone() else {
            return Err(LogError::Unknown("the log is not open".into()));
        };
        if let Err(reason) = self.transaction(&producer, records, give_up) {
            // Whatever is open is ended by the next opening.
            self.producer = None;
            return Err(reason.into());
        }
        let delivered = producer.context().take_delivered_to();
        if (1..=self.end).contains(&delivered) {
            // Brokers that make topics by themselves have made a new one of that name.
            self.producer = None;
            let how = topic::ends_before(delivered, self.end);
            return Err(LogError::Unknown(topic::gone(&self.options.topic, &how)));
        }
        self.end = self.end.max(delivered);
        Ok(place(self.end))
    }

    fn trim(&mut self, before: u64) -> Result<(), LogError> {
        let told = |trouble: crate::admin::Trouble| LogError::Unknown(trouble.0);
        let link = Link::open(&self.options.settings).map_err(told)?;
        let before = i64::try_from(before).unwrap_or(i64::MAX);
        topics::delete_records(&link, &self.options.topic, 0, before).map_err(told)
    }

    fn record_bytes_max(&self) -> usize {
        self.record_bytes_max
    }

    fn idle(&mut self) {
        if let Some(producer) = &self.producer {
            // Each takes one event: lines of the log and errors come faster than this is called while brokers are away.
            (0..limits::EVENTS_AT_ONCE).for_each(|_| producer.poll(Duration::ZERO));
        }
    }

    fn readers(&self) -> Readers {
        let options = self.options.clone();
        Arc::new(move || -> Box<dyn LogReader> { Box::new(KafkaLogReader::new(options.clone())) })
    }
}
