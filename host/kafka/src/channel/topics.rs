//! The topics of a journal: made if they are missing, and what they look like.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Instant;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::{BaseProducer, Producer};

use super::options::JournalOptions;
use crate::context::Context;
use crate::limits;

/// The compacted topic of positions and commit records, shared by all agents of a cluster.
pub(super) const POSITIONS: &str = "flumen-positions";
/// The compacted topic of plugins' state.
pub(super) const STATE: &str = "flumen-state";

/// What one topic looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Topic {
    pub name: String,
    pub partitions: i32,
    /// The largest record that it takes.
    pub record_bytes: usize,
    pub is_flume: bool,
}

/// Makes what is missing. Without the right to make topics they only have to be there: [`look`] says if not.
pub(super) fn make_missing(options: &JournalOptions) -> Result<(), String> {
    let admin = admin(options)?;
    let replication = || TopicReplication::Fixed(options.replication.unwrap_or(-1));
    let retentions: Vec<String> =
        options.channels.iter().map(|c| c.retention.as_millis().to_string()).collect();
    let mut topics: Vec<NewTopic<'_>> = (options.channels.iter().zip(&retentions))
        .map(|(channel, retention)| {
            NewTopic::new(&channel.topic, channel.partitions, replication()).set("retention.ms", retention)
        })
        .collect();
    let compacted = |name| {
        let topic = NewTopic::new(name, limits::REGISTER_PARTITIONS, replication());
        topic.set("cleanup.policy", "compact")
    };
    let numbers = [limits::STATE_RECORD_BYTES as u64, limits::STATE_SEGMENT_BYTES, tombstones_ms()];
    let [record_bytes, segment_bytes, tombstones_ms] = numbers.map(|number| number.to_string());
    topics.push(compacted(POSITIONS));
    topics.push(
        compacted(STATE)
            .set("max.message.bytes", &record_bytes)
            .set("segment.bytes", &segment_bytes)
            .set("delete.retention.ms", &tombstones_ms),
    );
    let call = admin.create_topics(topics.iter(), &admin_options());
    let results = block_on(call).ok_or("no answer to the question for topics")?;
    for result in results.map_err(|error| admin.inner().context().explain(&error))? {
        match result {
            Ok(topic) => tracing::info!(topic, "made the topic"),
            Err((
                _,
                Code::TopicAlreadyExists | Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed,
            )) => {}
            Err((topic, code)) => return Err(format!("cannot make the topic {topic}: {code}")),
        }
    }
    Ok(())
}

fn tombstones_ms() -> u64 {
    limits::STATE_TOMBSTONES.as_millis() as u64
}

/// What the channels' topics look like, in the order of the options, and the largest record of the topic of state.
pub(super) fn look(options: &JournalOptions) -> Result<(Vec<Topic>, usize), String> {
    let admin = admin(options)?;
    let mut topics = Vec::new();
    for channel in &options.channels {
        topics.push(Topic {
            name: channel.topic.clone(),
            partitions: partitions(&admin, &channel.topic)?,
            record_bytes: limits::RECORD_BYTES_DEFAULT,
            is_flume: channel.is_flume,
        });
    }
    let names = topics.iter().map(|topic| topic.name.as_str()).chain([STATE]);
    let resources: Vec<_> = names.map(ResourceSpecifier::Topic).collect();
    let mut state_bytes = limits::RECORD_BYTES_DEFAULT;
    // Not everybody may ask for a topic's settings; the default is right nearly everywhere then.
    if let Some(Ok(answers)) = block_on(admin.describe_configs(resources.iter(), &admin_options())) {
        let sizes: Vec<Option<usize>> = answers
            .iter()
            .map(|answer| answer.as_ref().ok()?.get("max.message.bytes")?.value.as_ref()?.parse().ok())
            .collect();
        let known = topics.iter_mut().map(|topic| &mut topic.record_bytes).chain([&mut state_bytes]);
        for (known, size) in known.zip(sizes) {
            *known = size.unwrap_or(*known);
        }
    }
    Ok((topics, state_bytes.min(limits::STATE_RECORD_BYTES)))
}

/// Partitions of the topic of positions (it may have been made by somebody else, with another number).
pub(super) fn partitions_of(producer: &BaseProducer<Context>, topic: &str) -> Result<i32, String> {
    let metadata = producer.client().fetch_metadata(Some(topic), limits::REQUEST);
    let metadata = metadata.map_err(|error| producer.context().explain(&error))?;
    counted(&metadata, topic)
}

fn partitions(admin: &AdminClient<Context>, topic: &str) -> Result<i32, String> {
    let metadata = admin.inner().fetch_metadata(Some(topic), limits::REQUEST);
    counted(&metadata.map_err(|error| admin.inner().context().explain(&error))?, topic)
}

fn counted(metadata: &rdkafka::metadata::Metadata, topic: &str) -> Result<i32, String> {
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let count = found.filter(|found| found.error().is_none()).map_or(0, |found| found.partitions().len());
    match i32::try_from(count) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(format!(
            "there is no topic {topic}, and this agent may not make it: make it, or correct the name"
        )),
    }
}

fn admin(options: &JournalOptions) -> Result<AdminClient<Context>, String> {
    let who = format!("journal {}", options.pipeline);
    crate::admin::admin_client(&who, &options.settings)
        .map_err(|error| crate::words::explain(&error, &options.settings, None))
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(limits::REQUEST)).operation_timeout(Some(limits::REQUEST))
}

/// Waits for an answer of the admin client, whose own thread wakes this one.
fn block_on<F: Future>(future: F) -> Option<F::Output> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    // The request has a limit of its own; this one is for a client that never answers.
    let until = Instant::now() + limits::REQUEST * 2;
    loop {
        match future.as_mut().poll(&mut TaskContext::from_waker(&waker)) {
            Poll::Ready(output) => return Some(output),
            Poll::Pending => std::thread::park_timeout(until.checked_duration_since(Instant::now())?),
        }
    }
}
