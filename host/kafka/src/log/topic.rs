//! The topic: made if it is missing, refused if it is not what a log needs.

use std::time::Instant;

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::options::LogOptions;
use crate::limits;
use crate::topics::{TopicLimits, Topics};

/// What the topic is made with: records go when they are deleted, and not before.
const CONFIG: [(&str, &str); 3] =
    [("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")];

fn questions(options: &LogOptions) -> Result<Topics, String> {
    let questions = Topics::new(&options.who(), &options.settings);
    questions.map_err(|error| crate::words::explain(&error, &options.settings, None))
}

/// Whether the topic still has what stood before an offset: a new one of its name is not that topic.
pub(super) fn check_kept(options: &LogOptions, until: i64) -> Result<(), String> {
    let topic = &*options.topic;
    let questions = questions(options)?;
    let explain = |error: KafkaError| questions.explain(&error);
    if questions.partitions(topic).map_err(explain)?.is_none() {
        return Err(gone(topic, "is not there any more"));
    }
    let end = questions.end(topic, 0).map_err(explain)?;
    if end < until { Err(gone(topic, &ends_before(end, until))) } else { Ok(()) }
}

/// How it is seen that a topic is not the one of before.
pub(super) fn ends_before(end: i64, until: i64) -> String {
    format!("ends at offset {end}, and had records up to {until}")
}

/// The topic lost what was written to it. `how` it is seen.
pub(super) fn gone(topic: &str, how: &str) -> String {
    format!(
        "the topic {topic} {how}: somebody deleted it, or brokers lost what they had. Events in it that were not moved back yet are lost; \
         start the agent again to go on without them, from the positions that the channel itself has"
    )
}

/// Looks at the topic, and makes it if it is missing. Returns bytes of the largest batch that it takes.
pub(super) fn ensure(options: &LogOptions, give_up: &dyn Fn() -> bool) -> Result<usize, String> {
    let topic = &*options.topic;
    // What is wrong with the connection is told best here: an admin client hears of timeouts alone.
    let questions = questions(options)?;
    let explain = |error: KafkaError| questions.explain(&error);
    let partitions = match questions.partitions(topic).map_err(explain)? {
        Some(partitions) => partitions,
        None => {
            let made = questions.create_copied(topic, 1, options.replication, &CONFIG);
            made.map_err(|error| refused(topic, &error, &questions))?;
            if options.is_known {
                tracing::error!(
                    topic,
                    "the topic of the failover is not there, though the pipeline had it before, and was made: if somebody deleted it, \
                     events in it that were not moved back are lost"
                );
            } else {
                tracing::info!(topic, "made the topic");
            }
            wait_made(&questions, topic, give_up)?
        }
    };
    let found = questions.limits(topic).map_err(explain)?;
    check(topic, partitions, &found)?;
    Ok(found.record_bytes_max.unwrap_or(limits::RECORD_BYTES_DEFAULT))
}

/// The controller says that a topic is made before all brokers know of it.
fn wait_made(questions: &Topics, topic: &str, give_up: &dyn Fn() -> bool) -> Result<i32, String> {
    let until = Instant::now() + limits::REQUEST;
    loop {
        let found = questions.partitions(topic).map_err(|error| questions.explain(&error))?;
        if let Some(partitions) = found {
            return Ok(partitions);
        }
        if Instant::now() > until || give_up() {
            return Err(format!("the topic {topic} was made, and no broker knows it yet"));
        }
        std::thread::sleep(limits::STABLE_POLL);
    }
}

/// Why the topic was not made.
fn refused(topic: &str, error: &KafkaError, questions: &Topics) -> String {
    let settings = CONFIG.map(|(name, value)| format!("{name}={value}")).join(", ");
    match error {
        KafkaError::AdminOp(Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed) => format!(
            "there is no topic {topic}, and this agent may not make it: make it, with 1 partition and {settings}, or allow CREATE"
        ),
        KafkaError::AdminOp(Code::InvalidReplicationFactor) => format!(
            "the topic {topic} cannot be made: the cluster has fewer brokers than `replication` asks for; ask for fewer copies"
        ),
        KafkaError::AdminOp(Code::PolicyViolation) => format!(
            "the topic {topic} cannot be made: a policy of the cluster (create.topic.policy.class.name) forbids it; make it by hand, with \
             1 partition and {settings}"
        ),
        error => format!("the topic {topic} cannot be made: {}", questions.explain(error)),
    }
}

/// Whether a topic can be a log.
fn check(topic: &str, partitions: i32, found: &TopicLimits) -> Result<(), String> {
    if partitions != 1 {
        return Err(format!(
            "the topic {topic} has {partitions} partitions, and a failover needs one, since the order there is that of the events: name \
             another topic (`topic`), which is made if it is missing"
        ));
    }
    let set = |setting: &str| {
        format!(
            "`kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config {setting}`, or name another topic (`topic`)"
        )
    };
    if found.cleanup_policy.as_ref().is_some_and(|policy| policy.contains("compact")) {
        return Err(format!(
            "the topic {topic} is compacted (cleanup.policy), which would take events: {}",
            set("cleanup.policy=delete")
        ));
    }
    let limits = [("retention.ms", found.retention_ms), ("retention.bytes", found.retention_bytes)];
    for (name, value) in limits {
        if let Some(value) = value.filter(|value| *value >= 0) {
            return Err(format!(
                "the topic {topic} deletes records by itself ({name}={value}): events that wait there for longer would be lost: {}",
                set(&format!("{name}=-1"))
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(policy: &str, ms: i64, bytes: i64) -> TopicLimits {
        TopicLimits {
            cleanup_policy: Some(policy.into()),
            retention_ms: Some(ms),
            retention_bytes: Some(bytes),
            ..TopicLimits::default()
        }
    }

    #[test]
    fn a_topic_that_would_lose_events_is_refused_with_what_to_do() {
        assert_eq!(check("t", 1, &found("delete", -1, -1)), Ok(()));
        // Not everybody may ask.
        assert_eq!(check("t", 1, &TopicLimits::default()), Ok(()));
        for (partitions, found, parts) in [
            (3, found("delete", -1, -1), ["3 partitions", "name another topic"]),
            (1, found("compact", -1, -1), ["compacted", "--add-config cleanup.policy=delete"]),
            (1, found("compact,delete", -1, -1), ["compacted", "cleanup.policy=delete"]),
            (1, found("delete", 604_800_000, -1), ["retention.ms=604800000", "--add-config retention.ms=-1"]),
            (1, found("delete", -1, 0), ["retention.bytes=0", "--add-config retention.bytes=-1"]),
        ] {
            let told = check("t", partitions, &found).unwrap_err();
            assert!(parts.iter().all(|part| told.contains(part)) && told.contains("topic t "), "{told}");
        }
    }
}
