//! The loop: polls, builds batches, emits, and does what the group says.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_kafka::Context;
use flumen_kafka::group_commits::GroupCommits;
use flumen_kafka::rdkafka::ClientConfig;
use flumen_kafka::rdkafka::Message;
use flumen_kafka::rdkafka::consumer::{BaseConsumer, Consumer};
use flumen_kafka::rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use flumen_kafka::rdkafka::message::BorrowedMessage;
use flumen_kafka::told::Told;
use flumen_pipeline::{Metric, SourceContext, SourceError, Stopped};

use super::changes::Changes;
use super::limits;
use super::options::{Settings, What};
use super::out::Out;
use super::partitions::Table;
use super::record::{Outcome, Shape};
use super::trouble::Trouble;

/// Why a membership ends; a new one, of a new consumer, follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Another member with the same `instance` has taken over.
    Fenced,
    /// The group had given the partitions to others, and librdkafka kept them: see [`flumen_kafka::member`].
    Expelled,
}

/// One run of the source.
pub struct Reader<'a> {
    pub(super) settings: &'a Settings,
    pub(super) context: &'a mut SourceContext,
    pub(super) consumer: Arc<BaseConsumer<Context>>,
    pub(super) changes: Changes,
    pub(super) table: Table,
    pub(super) out: Out,
    pub(super) trouble: Trouble,
    /// Emissions that may not be durable yet: their number, and where they move partitions.
    pub(super) emissions: VecDeque<(u64, Vec<(usize, i64)>)>,
    pub(super) committed: Instant,
    pub(super) commits: GroupCommits,
    /// Nobody polls while the pipeline is full.
    told: Told,
    /// Partitions of a fixed list whose start is not known yet.
    pub(super) waiting: Vec<usize>,
    /// The member of the group that the partitions came to; `None` with a fixed list.
    pub(super) member: Option<String>,
    /// Why the membership has to end.
    pub(super) ends: Option<End>,
    shape: Shape,
    asked: Instant,
}

impl<'a> Reader<'a> {
    /// Makes the consumer; does not talk to a broker yet.
    pub fn new(settings: &'a Settings, context: &'a mut SourceContext) -> Result<Reader<'a>, SourceError> {
        let table = Table::new(context.name.clone(), context.positions()).map_err(SourceError::Retry)?;
        let who = format!("source {}", context.name);
        let client = Context::new(&who, settings.client.clone(), Some(context.metrics.clone()));
        let changes = Changes::default();
        client.set_rebalance(Arc::new(changes.clone()));
        let place = &context.place;
        let id = format!("flumen/{}/{}/{}", place.agent, place.pipeline, context.name);
        let config = config(settings, &id);
        let consumer: BaseConsumer<Context> =
            config.create_with_context(client).map_err(|error| SourceError::Retry(error.to_string()))?;
        let consumer = Arc::new(consumer);
        let no_thread = |error: std::io::Error| SourceError::Retry(format!("cannot start a thread: {error}"));
        let commits = GroupCommits::start(&context.name, consumer.clone()).map_err(no_thread)?;
        let told = Told::serve(&context.name, consumer.clone()).map_err(no_thread)?;
        Ok(Reader {
            consumer,
            changes,
            table,
            out: Out::new(context.name.clone(), context.batch),
            trouble: Trouble::new(context.name.clone(), context.metrics.clone()),
            emissions: VecDeque::new(),
            committed: Instant::now(),
            commits,
            told,
            waiting: Vec::new(),
            member: None,
            ends: None,
            shape: Shape { value: settings.value, own: settings.headers },
            asked: Instant::now(),
            settings,
            context,
        })
    }

    /// Reads until a stop or an error that needs a new consumer.
    pub fn run(&mut self) -> Result<(), SourceError> {
        let consumer = self.consumer.clone();
        self.begin(&consumer)?;
        loop {
            if self.context.stopping() {
                return Err(Stopped.into());
            }
            self.carry_out(&consumer)?;
            self.poll(&consumer)?;
            if self.out.is_full() || self.out.due_in().is_some_and(|due| due.is_zero()) {
                self.emit()?;
            }
            self.tick(&consumer)?;
        }
    }

    fn begin(&mut self, consumer: &BaseConsumer<Context>) -> Result<(), SourceError> {
        match &self.settings.what {
            What::Topics(topics) => {
                let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
                consumer.subscribe(&topics).map_err(|error| SourceError::Retry(error.to_string()))
            }
            What::Partitions(all) => {
                self.waiting = all.iter().map(|(topic, number)| self.table.index(topic, *number)).collect();
                self.begin_waiting(consumer)
            }
        }
    }

    /// Takes what is there, up to a full batch; waits when there is nothing.
    fn poll(&mut self, consumer: &BaseConsumer<Context>) -> Result<(), SourceError> {
        while let Some(error) = self.told.error() {
            self.failed(consumer, &error)?;
        }
        let wait = self.out.due_in().unwrap_or(limits::POLL).min(limits::POLL);
        let mut polled = consumer.poll(wait);
        for _ in 0..limits::POLL_RECORDS {
            match polled {
                None => return Ok(()),
                Some(Ok(record)) => self.take(&record)?,
                Some(Err(error)) => return self.failed(consumer, &error),
            }
            if self.out.is_full() {
                return Ok(());
            }
            polled = consumer.poll(Duration::ZERO);
        }
        match polled {
            Some(Ok(record)) => self.take(&record)?,
            Some(Err(error)) => return self.failed(consumer, &error),
            None => {}
        }
        Ok(())
    }

    fn take(&mut self, record: &BorrowedMessage<'_>) -> Result<(), SourceError> {
        self.trouble.over();
        let (number, offset) = (record.partition(), record.offset());
        // Of a partition that was given up, or taken already: fetched before the change.
        let Some(index) = self.table.reading(record.topic(), number) else { return Ok(()) };
        let decoded = match &self.settings.codec {
            None => None,
            Some(codec) => {
                let partition = self.table.get_mut(index).filter(|partition| offset >= partition.next);
                partition.and_then(|partition| self.shape.decode(codec, record, partition.stream))
            }
        };
        if decoded.as_ref().is_some_and(|decoded| !self.out.fits(decoded)) {
            self.emit()?;
        }
        let Some(partition) = self.table.get_mut(index).filter(|partition| offset >= partition.next) else {
            return Ok(());
        };
        self.out.touch(index, partition);
        partition.next = offset + 1;
        self.context.metrics.add(Metric::SourceBytesRead, record.payload_len() as u64);
        if self.settings.skips_tombstones && record.payload().is_none() {
            self.context.metrics.add(Metric::SourceRecordsSkipped, 1);
            return Ok(());
        }
        let outcome = match decoded {
            None => self.shape.add(record, partition, &mut self.out.kept, &mut self.out.rejected),
            Some(decoded) => self.shape.add_decoded(record, partition, decoded, &mut self.out),
        };
        if matches!(outcome, Outcome::Rejected { .. }) {
            self.context.metrics.add(Metric::SourceRecordsRejected, 1);
        }
        self.out.note(outcome);
        Ok(())
    }

    /// Hands the unfinished batch to the pipeline; waits while that is full.
    pub(super) fn emit(&mut self) -> Result<(), SourceError> {
        if self.out.is_empty() {
            return Ok(());
        }
        let (emission, moved) = self.out.take(&mut self.table)?;
        self.context.emit(emission)?;
        for (index, next) in &moved {
            if let Some(partition) = self.table.get_mut(*index) {
                partition.emitted = *next;
                partition.is_known = true;
            }
        }
        self.emissions.push_back((self.context.progress().emitted, moved));
        Ok(())
    }

    /// What is done by time.
    fn tick(&mut self, consumer: &BaseConsumer<Context>) -> Result<(), SourceError> {
        if self.committed.elapsed() >= limits::COMMIT_EVERY {
            self.commit_durable()?;
        }
        if !self.waiting.is_empty() && self.asked.elapsed() >= limits::ASK_AGAIN {
            self.begin_waiting(consumer)?;
            self.asked = Instant::now();
        }
        if self.waiting.is_empty() && self.trouble.is_due() {
            self.look(consumer);
        }
        Ok(())
    }

    /// Looks whether the trouble is over: without records to read nothing else would tell.
    fn look(&mut self, consumer: &BaseConsumer<Context>) {
        let metadata = match consumer.fetch_metadata(None, limits::ASK) {
            Ok(metadata) => metadata,
            Err(error) => return self.trouble.say(consumer.context().explain(&error)),
        };
        let exists = |topic: &str| {
            metadata.topics().iter().any(|there| there.name() == topic && there.error().is_none())
        };
        let missing: Vec<&str> = match &self.settings.what {
            What::Topics(topics) => {
                topics.iter().map(String::as_str).filter(|t| !t.starts_with('^') && !exists(t)).collect()
            }
            What::Partitions(all) => {
                all.iter().map(|(topic, _)| topic.as_str()).filter(|t| !exists(t)).collect()
            }
        };
        if missing.is_empty() {
            consumer.context().works();
            self.trouble.over();
        } else {
            self.trouble.say(waiting_for(&missing));
        }
    }

    /// An error that the consumer tells of. Most mend themselves inside librdkafka.
    fn failed(&mut self, consumer: &BaseConsumer<Context>, error: &KafkaError) -> Result<(), SourceError> {
        let code = match error {
            KafkaError::MessageConsumptionFatal(Code::FencedInstanceId) => return self.fenced(),
            KafkaError::MessageConsumptionFatal(_) => {
                return Err(SourceError::Retry(consumer.context().explain(error)));
            }
            other => other.rdkafka_error_code(),
        };
        match code {
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => self.gaps(consumer),
            Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition) => {
                self.look(consumer);
                Ok(())
            }
            Some(Code::GroupAuthorizationFailed) if !self.settings.uses_group() => Ok(()),
            _ => {
                self.trouble.say(consumer.context().explain(error));
                Ok(())
            }
        }
    }

    /// Another member has joined the group with the same `instance`.
    fn fenced(&mut self) -> Result<(), SourceError> {
        self.end(End::Fenced);
        Err(SourceError::Retry("fenced by another member of the group with the same `instance`".into()))
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        // The consumer's end gives its partitions up and waits until that is carried out.
        self.consumer.context().clear_rebalance();
        self.changes.abandon(&self.consumer);
    }
}

fn waiting_for(missing: &[&str]) -> String {
    let named = missing.get(..limits::NAMED_MAX.min(missing.len())).unwrap_or_default().join(", ");
    let more = missing.len().saturating_sub(limits::NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(
        "waiting for topics that do not exist, or that this user may not see: {named}{more}; make them, or correct `topics`"
    )
}

fn config(settings: &Settings, id: &str) -> ClientConfig {
    let mut config = settings.client.config(id);
    let chosen = |config: &ClientConfig, name: &str| config.get(name).is_some();
    let ms = |time: Duration| time.as_millis().to_string();
    for (name, value) in [
        ("check.crcs", "true".into()),
        ("max.poll.interval.ms", ms(limits::POLL_INTERVAL_MAX)),
        ("fetch.max.bytes", limits::FETCH_BYTES.to_string()),
        ("fetch.queue.backoff.ms", ms(limits::READ_AHEAD_PAUSE)),
    ] {
        // A smaller answer that the user wants must hold what is fetched.
        let is_bounded = name == "fetch.max.bytes" && chosen(&config, "receive.message.max.bytes");
        if !chosen(&config, name) && !is_bounded {
            config.set(name, value);
        }
    }
    config.set("topic.metadata.refresh.interval.ms", ms(limits::METADATA_EVERY));
    config.set("queued.max.messages.kbytes", (settings.read_ahead >> 10).to_string());
    // As many as the memory holds: small records must not be fetched one answer at a time.
    config.set("queued.min.messages", "1000000");
    config.set("group.id", settings.group.as_deref().unwrap_or(id));
    config.set("session.timeout.ms", ms(settings.session_timeout));
    config.set("heartbeat.interval.ms", ms((settings.session_timeout / 5).min(Duration::from_secs(3))));
    if let Some(instance) = &settings.instance {
        config.set("group.instance.id", instance);
    }
    config.set("partition.assignment.strategy", "cooperative-sticky");
    config.set("isolation.level", "read_committed");
    config.set("enable.auto.commit", "false");
    config.set("enable.auto.offset.store", "false");
    config.set("auto.offset.reset", "error");
    config
}
