//! Questions about topics, and making one: partitions, limits, offsets. Nothing here changes a topic that exists.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Instant;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};

use crate::context::Context;
use crate::limits;
use crate::settings::Settings;

/// Asks the brokers. Never makes a topic by asking, whatever `auto.create.topics.enable` says.
pub struct Topics {
    who: String,
    settings: Arc<Settings>,
    consumer: BaseConsumer<Context>,
}

/// Limits that a topic's configuration sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicLimits {
    /// `max.message.bytes`: the largest batch of records, compressed.
    pub record_bytes_max: Option<usize>,
    /// `cleanup.policy`.
    pub cleanup_policy: Option<String>,
    /// `min.insync.replicas`: with fewer in sync nothing is taken.
    pub in_sync_min: Option<usize>,
    /// `retention.ms`; -1: for ever.
    pub retention_ms: Option<i64>,
    /// `retention.bytes`, of a partition; -1: all of them.
    pub retention_bytes: Option<i64>,
}

/// How whole a topic is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copies {
    /// Of the partition with the fewest: replicas that have everything.
    pub in_sync: usize,
    /// Replicas that there should be.
    pub replicas: usize,
    /// Brokers that are alive.
    pub brokers: usize,
}

impl Topics {
    /// `who` as for [`Context::new`].
    pub fn new(who: &str, settings: &Arc<Settings>) -> KafkaResult<Topics> {
        let mut config = settings.config(who);
        config.set("allow.auto.create.topics", "false");
        // No member of it: librdkafka wants a name before it takes an assignment.
        config.set("group.id", "flumen-questions").set("enable.auto.commit", "false");
        config.set("isolation.level", "read_uncommitted");
        let consumer = crate::admin::questioner(who, settings, &config)?;
        Ok(Topics { who: who.into(), settings: settings.clone(), consumer })
    }

    /// The newest trouble of the connection behind an error.
    pub fn explain(&self, error: &KafkaError) -> String {
        // The error itself comes with the connection's events, which only a poll serves.
        self.serve();
        self.consumer.client().context().explain(error)
    }

    /// Serves what waits, without a pause: where nothing is asked for long.
    pub fn look(&self) {
        crate::admin::serve(&self.consumer);
    }

    /// Serves what waits: errors, lines of the log, the question for a token. Nothing else polls this client.
    fn serve(&self) {
        for _ in 0..limits::EVENTS_AT_ONCE {
            match self.consumer.poll(limits::SERVE) {
                Some(Err(error)) => tracing::debug!(who = self.who, %error, "while asking about topics"),
                Some(Ok(_)) => {}
                None => return,
            }
        }
    }

    /// How many partitions a topic has; `None` if there is no such topic.
    pub fn partitions(&self, topic: &str) -> KafkaResult<Option<i32>> {
        self.serve();
        let metadata = self.consumer.fetch_metadata(Some(topic), limits::REQUEST)?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(None);
        };
        match found.error().map(Code::from) {
            None => Ok(i32::try_from(found.partitions().len()).ok().filter(|count| *count > 0)),
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => Ok(None),
            // Partitions without a leader for the moment are partitions.
            Some(Code::LeaderNotAvailable) => Ok(i32::try_from(found.partitions().len()).ok()),
            Some(code) => Err(KafkaError::MetadataFetch(code)),
        }
    }

    /// The cluster's own name; `None` if no broker says it in time.
    pub fn cluster_id(&self) -> Option<String> {
        self.serve();
        self.consumer.client().fetch_cluster_id(limits::REQUEST)
    }

    /// How whole a topic is; `None` if it is not there, or not to be seen.
    pub fn copies(&self, topic: &str) -> KafkaResult<Option<Copies>> {
        self.serve();
        let metadata = self.consumer.fetch_metadata(Some(topic), limits::REQUEST)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let worst = found.and_then(|found| found.partitions().iter().min_by_key(|one| one.isr().len()));
        let brokers = metadata.brokers().len();
        Ok(worst.map(|one| Copies { in_sync: one.isr().len(), replicas: one.replicas().len(), brokers }))
    }

    /// The end of a partition, with what open transactions wrote.
    pub fn end(&self, topic: &str, partition: i32) -> KafkaResult<i64> {
        self.serve();
        self.consumer.fetch_watermarks(topic, partition, limits::REQUEST).map(|(_, end)| end)
    }

    fn admin(&self) -> KafkaResult<AdminClient<Context>> {
        crate::admin::admin_client(&self.who, &self.settings)
    }

    /// Makes a topic, with as many copies as the cluster makes by itself. It may be there already.
    pub fn create(&self, name: &str, partitions: i32, config: &[(&str, &str)]) -> KafkaResult<()> {
        self.create_copied(name, partitions, None, config)
    }

    /// The same with so many copies; `None`: as many as the cluster makes by itself.
    pub fn create_copied(
        &self,
        name: &str,
        partitions: i32,
        replication: Option<i32>,
        config: &[(&str, &str)],
    ) -> KafkaResult<()> {
        let replication = TopicReplication::Fixed(replication.unwrap_or(-1));
        let mut topic = NewTopic::new(name, partitions, replication);
        for (key, value) in config {
            topic = topic.set(key, value);
        }
        let options = AdminOptions::new()
            .request_timeout(Some(limits::REQUEST))
            .operation_timeout(Some(limits::REQUEST));
        let admin = self.admin()?;
        for outcome in wait_for(admin.create_topics([&topic], &options))? {
            match outcome {
                Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(KafkaError::AdminOp(code)),
            }
        }
        Ok(())
    }

    /// The limits of a topic; empty where we may not ask.
    pub fn limits(&self, topic: &str) -> KafkaResult<TopicLimits> {
        let options = AdminOptions::new().request_timeout(Some(limits::REQUEST));
        let admin = self.admin()?;
        let answers = wait_for(admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options))?;
        let mut found = TopicLimits::default();
        for answer in answers {
            match answer {
                Ok(resource) => {
                    let value = |name: &str| resource.get(name).and_then(|entry| entry.value.clone());
                    found.record_bytes_max = value("max.message.bytes").and_then(|bytes| bytes.parse().ok());
                    found.cleanup_policy = value("cleanup.policy");
                    found.in_sync_min = value("min.insync.replicas").and_then(|count| count.parse().ok());
                    found.retention_ms = value("retention.ms").and_then(|ms| ms.parse().ok());
                    found.retention_bytes = value("retention.bytes").and_then(|bytes| bytes.parse().ok());
                }
                Err(Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed) => {}
                Err(code) => return Err(KafkaError::AdminOp(code)),
            }
        }
        Ok(found)
    }
}

/// Waits for a future on this thread. rdkafka's admin futures are completed by a thread of their client, and
/// have a timeout of their own; beyond twice that something is broken.
fn wait_for<T>(future: impl Future<Output = KafkaResult<T>>) -> KafkaResult<T> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut task = TaskContext::from_waker(&waker);
    let mut future = pin!(future);
    let deadline = Instant::now() + limits::REQUEST * 2;
    loop {
        if let Poll::Ready(outcome) = future.as_mut().poll(&mut task) {
            return outcome;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(KafkaError::AdminOp(Code::OperationTimedOut));
        }
        std::thread::park_timeout(left);
    }
}
