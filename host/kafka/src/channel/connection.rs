//! A transactional producer that is ready, and what was read after `init_transactions` ended all that was open.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use rdkafka::Message;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::BorrowedMessage;
use rdkafka::producer::{BaseProducer, Producer};

use super::options::JournalOptions;
use super::registers::{CommitRecord, Key, Owner};
use super::remembered::Remembered;
use super::topics::{self, POSITIONS, STATE, Topic};
use crate::context::Context;
use crate::read_back::{self, Partition};
use crate::settings::without_statistics;
use crate::topics::Topics;
use crate::{limits, words};

/// A producer and the topics that it writes.
pub(super) struct Connection {
    pub producer: Arc<BaseProducer<Context>>,
    pub topics: Vec<Topic>,
    /// The largest record that the topic of state takes.
    pub state_record_bytes: usize,
    pub places: Places,
}

/// The partitions of the owner's records. They stay the same for a session, whatever is added meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Places {
    pub positions: i32,
    pub state: i32,
}

/// What was read of the topic of positions.
#[derive(Debug, Default)]
pub(super) struct ReadBack {
    /// Positions of this agent and pipeline, newest value each; an empty one was removed.
    pub positions: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The newest commit record.
    pub record: Option<CommitRecord>,
    /// Where to go on reading.
    pub next: i64,
}

impl Connection {
    /// Fences every earlier producer of this agent and pipeline, and ends its transaction. Where its records are is not known yet:
    /// see [`Connection::find_places`].
    pub fn open(
        options: &JournalOptions,
        is_first: bool,
        give_up: &dyn Fn() -> bool,
    ) -> Result<Connection, String> {
        // What is wrong with the connection is told best here: an admin client hears of timeouts alone.
        let who = format!("journal {}", options.pipeline);
        let explain = |error: KafkaError| words::explain(&error, &options.settings, None);
        let questions = Topics::new(&who, &options.settings).map_err(explain)?;
        questions.partitions(POSITIONS).map_err(|error| questions.explain(&error))?;
        if is_first {
            topics::make_missing(options)?;
        }
        let (topics, state_record_bytes) = topics::look(options)?;
        let producer = producer(options, &topics, state_record_bytes)?;
        // Serves what must be served before the first request: a token for oauthbearer.
        producer.poll(std::time::Duration::from_millis(10));
        in_slices(&producer, give_up, |slice| producer.init_transactions(slice))
            .map_err(|error| format!("beginning transactions: {}", producer.context().explain(&error)))?;
        producer.context().works();
        Ok(Connection { producer, topics, state_record_bytes, places: Places::default() })
    }

    /// Finds the partitions of the owner's records. Called with no transaction of ours open.
    pub fn find_places(
        &self,
        options: &JournalOptions,
        owner: &Owner,
        give_up: &dyn Fn() -> bool,
    ) -> Result<Places, String> {
        let find = |topic: &str, is_asked: bool| self.find_place(options, owner, topic, is_asked, give_up);
        Ok(Places { positions: find(POSITIONS, true)?, state: find(STATE, options.keeps_state)? })
    }

    fn find_place(
        &self,
        options: &JournalOptions,
        owner: &Owner,
        topic: &str,
        is_asked: bool,
        give_up: &dyn Fn() -> bool,
    ) -> Result<i32, String> {
        let partitions = topics::partitions_of(&self.producer, topic)?;
        owner.find(partitions, |partition| {
            let mut newest: Option<i64> = None;
            if is_asked {
                read_partition(options, (topic, partition), 0, give_up, |message| {
                    if owner.own(message.key().unwrap_or_default()).is_some() {
                        newest = newest.max(Some(message.timestamp().to_millis().unwrap_or(0)));
                    }
                })?;
            }
            Ok(newest)
        })
    }

    /// Reads the owner's positions from an offset to the end. Called with no transaction of ours open.
    pub fn read_back(
        &self,
        options: &JournalOptions,
        owner: &Owner,
        from: i64,
        give_up: &dyn Fn() -> bool,
    ) -> Result<ReadBack, String> {
        let mut read = ReadBack::default();
        read.next = read_partition(options, (POSITIONS, self.places.positions), from, give_up, |message| {
            read.take(owner, message.key().unwrap_or_default(), message.payload());
        })?;
        Ok(read)
    }

    /// Reads what the plugins remember, all of it; the number of records, with those of others. As above.
    pub fn read_state(
        &self,
        options: &JournalOptions,
        owner: &Owner,
        remembered: &Remembered,
        give_up: &dyn Fn() -> bool,
    ) -> Result<u64, String> {
        remembered.clear();
        let mut records = 0;
        read_partition(options, (STATE, self.places.state), 0, give_up, |message| {
            records += 1;
            remembered.load(owner, message.key().unwrap_or_default(), message.payload());
        })?;
        Ok(records)
    }
}

/// Reads what counts in a partition, from an offset to the end that is there now. Returns where to go on reading.
fn read_partition(
    options: &JournalOptions,
    (topic, number): (&str, i32),
    from: i64,
    give_up: &dyn Fn() -> bool,
    mut take: impl FnMut(&BorrowedMessage<'_>),
) -> Result<i64, String> {
    let (who, client_id) = (format!("journal {}", options.pipeline), format!("{}/positions", options.id()));
    let partition = Partition {
        who: &who,
        client_id: &client_id,
        settings: &options.settings,
        topic,
        number,
        hides: "which of our transactions count",
        within: Some(limits::READ_BACK),
    };
    read_back::read(&partition, from, give_up, |message| {
        take(message);
        Ok(())
    })
}

/// A step of a transaction that may take long: asked again until it is done, [`limits::TRANSACTION`] passed, or
/// nobody wants it any more.
pub(crate) fn in_slices(
    producer: &BaseProducer<Context>,
    give_up: &dyn Fn() -> bool,
    step: impl Fn(std::time::Duration) -> Result<(), KafkaError>,
) -> Result<(), KafkaError> {
    let until = Instant::now() + limits::TRANSACTION;
    loop {
        let error = match step(limits::SLICE) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let may_go_on = match &error {
            KafkaError::Transaction(error) => error.is_retriable() && !error.is_fatal(),
            KafkaError::Flush(code) => *code == Code::OperationTimedOut,
            _ => false,
        };
        if !may_go_on || give_up() || Instant::now() > until {
            return Err(error);
        }
        producer.poll(std::time::Duration::ZERO);
    }
}

impl ReadBack {
    fn take(&mut self, owner: &Owner, key: &[u8], value: Option<&[u8]>) {
        match (owner.own(key), value) {
            (Some(Key::Commit), Some(value)) => match CommitRecord::decode(value) {
                Some(record) => self.record = Some(record),
                None => {
                    tracing::error!("a commit record in {POSITIONS} is not readable; the one before counts")
                }
            },
            (Some(Key::Position(position)), value) => {
                self.positions.insert(position.to_vec(), value.unwrap_or_default().to_vec());
            }
            _ => {}
        }
    }
}

fn producer(
    options: &JournalOptions,
    topics: &[Topic],
    state_record_bytes: usize,
) -> Result<Arc<BaseProducer<Context>>, String> {
    let largest = topics.iter().map(|topic| topic.record_bytes).fold(state_record_bytes, usize::max);
    let smallest =
        topics.iter().map(|topic| topic.record_bytes).min().unwrap_or(limits::RECORD_BYTES_DEFAULT);
    let mut config = without_statistics(options.settings.config(&format!("{}/journal", options.id())));
    config.set("transactional.id", options.transactional_id());
    config.set("transaction.timeout.ms", limits::TRANSACTION.as_millis().to_string());
    config.set("message.max.bytes", largest.clamp(1_000, 1_000_000_000).to_string());
    config.set("batch.size", smallest.clamp(1, limits::RECORD_BYTES_DEFAULT).to_string());
    config.set("queue.buffering.max.messages", "1000000");
    let context = Context::new(&format!("journal {}", options.pipeline), options.settings.clone(), None);
    config.create_with_context(context).map(Arc::new).map_err(|error| error.to_string())
}
