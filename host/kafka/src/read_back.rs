//! Reading a partition from an offset to the end that is there now: what counts, and nothing that a transaction hides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset, TopicPartitionList};

use crate::admin::questioner;
use crate::context::Context;
use crate::settings::Settings;
use crate::{limits, words};

/// What is read, and by whom.
pub(crate) struct Partition<'a> {
    /// As for [`Context::new`].
    pub who: &'a str,
    pub client_id: &'a str,
    pub settings: &'a Arc<Settings>,
    pub topic: &'a str,
    pub number: i32,
    /// What may stand behind a transaction that does not end, as [`words::hidden`] says it.
    pub hides: &'a str,
    /// All of it has to come within this time; `None`: for as long as records come.
    pub within: Option<Duration>,
}

impl Partition<'_> {
    /// A consumer that joins no group and reads partitions.
    pub fn reader(&self, isolation: &str) -> Result<BaseConsumer<Context>, String> {
        let mut config = self.settings.config(self.client_id);
        // Never joined: librdkafka wants a name before it hands out an assignment.
        config.set("group.id", "flumen-positions-reader");
        config.set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
        config.set("isolation.level", isolation);
        config.set("enable.partition.eof", "true");
        config.set("auto.offset.reset", "earliest");
        config.set("queued.max.messages.kbytes", (limits::READ_AHEAD_BYTES >> 10).to_string());
        config.set("fetch.wait.max.ms", limits::END_WAIT_MS);
        questioner(self.who, self.settings, &config)
            .map_err(|error| words::explain(&error, self.settings, None))
    }
}

/// Lets a consumer read a partition from an offset on.
pub(crate) fn assign(
    reader: &BaseConsumer<Context>,
    topic: &str,
    number: i32,
    from: i64,
) -> Result<(), KafkaError> {
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, number, Offset::Offset(from))?;
    reader.assign(&assignment)
}

/// Whether the end of a partition that a reader meets is there, or only as far as a new leader knows: until its followers told it how
/// far they are, it answers a fetch with what it knows, and a question for its end not at all (KIP-207). So an end that comes before the
/// one that was asked for counts when it is met again at the same place behind an answer to such a question.
#[derive(Default)]
pub(crate) struct Met {
    confirmed: Option<i64>,
}

impl Met {
    /// The reader is at an end; `next`: behind its last record. True: nothing comes before `end`; else it reads on from `next`.
    pub fn counts(
        &mut self,
        reader: &BaseConsumer<Context>,
        topic: &str,
        number: i32,
        next: i64,
        end: i64,
    ) -> Result<bool, KafkaError> {
        if self.confirmed == Some(next) {
            return Ok(true);
        }
        if reader.fetch_watermarks(topic, number, limits::REQUEST)?.1 >= end {
            self.confirmed = Some(next);
        }
        assign(reader, topic, number, next)?;
        Ok(false)
    }
}

/// Hands over what counts from an offset to the end that is there now. Returns where to go on reading.
pub(crate) fn read<E: From<String>>(
    partition: &Partition<'_>,
    from: i64,
    give_up: &dyn Fn() -> bool,
    mut take: impl FnMut(&BorrowedMessage<'_>) -> Result<(), E>,
) -> Result<i64, E> {
    let Partition { settings, topic, number, hides, within, .. } = *partition;
    let begin = Instant::now();
    let reader = partition.reader("read_committed")?;
    let explain = |error: &KafkaError| format!("reading {topic}: {}", reader.context().explain(error));
    let ends = partition.reader("read_uncommitted")?;
    let (low, end) = ends.fetch_watermarks(topic, number, limits::REQUEST).map_err(|e| explain(&e))?;
    // An open transaction of another agent hides all that follows it, ours too; and one of ours if a broker lost its end.
    let hidden = Instant::now();
    loop {
        let stable = reader.fetch_watermarks(topic, number, limits::REQUEST);
        let stable = stable.map_err(|e| explain(&e))?.1;
        if stable >= end {
            break;
        }
        let waited = hidden.elapsed();
        if waited > limits::HIDDEN || give_up() {
            let brokers = settings.brokers.join(",");
            return Err(words::hidden(topic, number, stable, &brokers, waited.as_secs(), hides).into());
        }
        std::thread::sleep(limits::STABLE_POLL);
    }
    let mut next = from.max(low);
    assign(&reader, topic, number, next).map_err(|e| explain(&e))?;
    let mut last = Instant::now();
    let mut met = Met::default();
    loop {
        match reader.poll(limits::SLICE) {
            Some(Ok(message)) => {
                last = Instant::now();
                next = message.offset() + 1;
                take(&message)?;
                // Where many agents write, the topic itself has no end.
                if next >= end {
                    return Ok(next);
                }
            }
            // Behind the last record before `end` there may be markers of transactions alone.
            Some(Err(KafkaError::PartitionEOF(_)))
                if met.counts(&reader, topic, number, next, end).map_err(|e| explain(&e))? =>
            {
                return Ok(next);
            }
            Some(Err(error)) if is_lasting(&error) => return Err(explain(&error).into()),
            _ => {}
        }
        let (since, limit) = within.map_or((last, limits::READ_SILENCE), |within| (begin, within));
        if give_up() {
            let (after, left) = (begin.elapsed().as_secs(), end.saturating_sub(next));
            let told = format!("reading {topic}: given up after {after} s, {left} records before its end");
            return Err(told.into());
        }
        if since.elapsed() > limit {
            return Err(format!("reading {topic}: no end within {} s", limit.as_secs()).into());
        }
    }
}

/// Errors that asking again does not mend.
pub(crate) fn is_lasting(error: &KafkaError) -> bool {
    matches!(
        words::code(error),
        Some(
            Code::UnknownTopic
                | Code::UnknownTopicOrPartition
                | Code::UnknownPartition
                | Code::TopicAuthorizationFailed
                | Code::Authentication
                | Code::SaslAuthenticationFailed
        )
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use flumen_pipeline::{Options, Value};
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};

    use super::*;

    /// librdkafka's own mock of a broker.
    fn broker<'a>() -> MockCluster<'a, DefaultProducerContext> {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        cluster
    }

    fn produce(cluster: &MockCluster<'_, DefaultProducerContext>, records: usize) {
        let producer: BaseProducer = settings(cluster).config("test").create().unwrap();
        for _ in 0..records {
            producer.send(BaseRecord::<str, str>::to("t").partition(0).payload("x")).unwrap();
        }
        producer.flush(limits::REQUEST).unwrap();
    }

    /// For that broker.
    pub(crate) fn settings(cluster: &MockCluster<'_, DefaultProducerContext>) -> Arc<Settings> {
        let brokers = Value::TextList(vec![cluster.bootstrap_servers()]);
        let options = Options([("brokers".to_owned(), brokers)].into());
        Arc::new(Settings::from_options(&options).unwrap())
    }

    /// Behind the last record before an end that is met.
    fn read_to_end(reader: &BaseConsumer<Context>, mut next: i64) -> i64 {
        let until = Instant::now() + limits::REQUEST;
        while Instant::now() < until {
            match reader.poll(limits::SLICE) {
                Some(Ok(message)) => next = message.offset() + 1,
                Some(Err(KafkaError::PartitionEOF(_))) => return next,
                _ => {}
            }
        }
        panic!("no end in time");
    }

    /// From the beginning.
    fn reading(settings: &Arc<Settings>) -> BaseConsumer<Context> {
        let (who, client_id, topic, number, hides, within) = ("test", "test", "t", 0, "", None);
        let partition = Partition { who, client_id, settings, topic, number, hides, within };
        let reader = partition.reader("read_committed").unwrap();
        assign(&reader, topic, number, 0).unwrap();
        reader
    }

    #[test]
    fn an_end_that_a_new_leader_does_not_know_yet_is_read_on_to() {
        let cluster = broker();
        produce(&cluster, 5);
        let settings = settings(&cluster);
        let (reader, mut met) = (reading(&settings), Met::default());
        let mut next = 0;
        // The leader before said that there are ten. However often this one says otherwise.
        for _ in 0..3 {
            next = read_to_end(&reader, next);
            assert_eq!(next, 5);
            assert!(!met.counts(&reader, "t", 0, next, 10).unwrap());
        }
        produce(&cluster, 5);
        while next < 10 {
            next = read_to_end(&reader, next);
        }
        assert_eq!(next, 10);
    }

    /// As behind markers of transactions, which nobody sees.
    #[test]
    fn an_end_that_is_met_again_behind_a_question_for_it_counts() {
        let cluster = broker();
        produce(&cluster, 5);
        let settings = settings(&cluster);
        let (reader, mut met) = (reading(&settings), Met::default());
        assert_eq!(read_to_end(&reader, 0), 5);
        assert!(!met.counts(&reader, "t", 0, 5, 5).unwrap());
        assert_eq!(read_to_end(&reader, 5), 5);
        assert!(met.counts(&reader, "t", 0, 5, 5).unwrap());
    }
}
