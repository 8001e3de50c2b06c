//! librdkafka's errors as a person reads them: what happened, where, what to do.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::diagnosis;
use crate::settings::Settings;

/// A transaction that does not end hides what follows it. `what`: what may stand there.
pub fn hidden(topic: &str, partition: i32, from: i64, brokers: &str, waited_s: u64, what: &str) -> String {
    format!(
        "a transaction on topic {topic:?} is open since before offset {from} (partition {partition}) and was waited for {waited_s} s: \
         behind it may stand {what}, so nothing is delivered until it ends. It ends by itself at its \
         producer's timeout; if it does not, a broker has lost its end. An agent ends those of its own if it may READ \
         `__transaction_state`. `kafka-transactions.sh --bootstrap-server {brokers} \
         find-hanging --topic {topic} --partition {partition}` shows such a one, and the same with `abort --topic {topic} \
         --partition {partition} --start-offset {from}` ends it; delivery goes on by itself then. Before, look at `list`: if the \
         producer's state is CompleteCommit, an abort would take back what counts"
    )
}

/// An error of a call. `behind`: the newest trouble of the connection, which a timeout hides.
pub fn explain(error: &KafkaError, settings: &Settings, behind: Option<&str>) -> String {
    let code = code(error);
    let text = match code {
        Some(
            Code::OperationTimedOut
            | Code::MessageTimedOut
            | Code::RequestTimedOut
            | Code::AllBrokersDown
            | Code::BrokerTransportFailure,
        ) => {
            let brokers = settings.brokers.join(", ");
            return match behind {
                Some(behind) => behind.to_string(),
                None => format!("no answer from {brokers}; is a broker running there?"),
            };
        }
        Some(Code::UnknownTopic | Code::UnknownTopicOrPartition) => {
            "the topic does not exist; make it, or correct the name"
        }
        Some(Code::InvalidTopic) => {
            "the topic's name is not legal: letters, digits, `.`, `_` and `-` only, at most 249"
        }
        Some(Code::TopicAuthorizationFailed) => NO_TOPIC_ACCESS,
        Some(Code::PurgeQueue | Code::PurgeInflight) if behind.is_some() => {
            return behind.unwrap_or_default().to_string();
        }
        Some(Code::GroupAuthorizationFailed) => "not authorised for the consumer group; ask for READ on it",
        Some(Code::ClusterAuthorizationFailed) => "not authorised for the cluster; ask for IDEMPOTENT_WRITE",
        Some(Code::TransactionalIdAuthorizationFailed) => NO_ID_ACCESS,
        Some(Code::SaslAuthenticationFailed | Code::Authentication) => {
            return connection(error, &error.to_string(), settings);
        }
        Some(Code::MessageSizeTooLarge) => {
            "a record is larger than the broker takes (message.max.bytes, or the topic's max.message.bytes)"
        }
        Some(Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend) => {
            "too few replicas are in sync (min.insync.replicas); brokers are down or behind"
        }
        Some(Code::ProducerFenced | Code::Fenced | Code::InvalidProducerEpoch) => {
            "fenced: another agent with the same name has taken over"
        }
        Some(Code::CoordinatorNotAvailable) => {
            "no coordinator: too few brokers are alive for __transaction_state or __consumer_offsets (start those that are \
             down), or they cannot be made: on a cluster of fewer than three brokers set transaction.state.log.replication.factor=1, transaction.state.log.min.isr=1 and \
             offsets.topic.replication.factor=1 on the brokers"
        }
        _ => match error {
            KafkaError::ClientCreation(reason) => return diagnosis::of_creation(reason, settings),
            _ => return error.to_string(),
        },
    };
    // The library's own name of it, for those who search for it.
    match code {
        Some(code) => format!("{text} ({code})"),
        None => text.to_string(),
    }
}

/// An error that librdkafka tells of a connection: which of all that can be wrong it is, and where to look.
pub fn connection(error: &KafkaError, reason: &str, settings: &Settings) -> String {
    diagnosis::of(code(error), reason, settings)
}

/// A line of librdkafka's log about a transaction that failed.
pub fn transaction(line: &str) -> String {
    // In which of its states it failed says nothing to a person.
    let behind_state = line.split_once("failed in state ").and_then(|(_, rest)| rest.split_once(": "));
    let what = behind_state.map_or(line, |(_, what)| what);
    let advice = if what.contains("TOPIC_AUTHORIZATION_FAILED") {
        NO_TOPIC_ACCESS
    } else if what.contains("TRANSACTIONAL_ID_AUTHORIZATION_FAILED") {
        NO_ID_ACCESS
    } else {
        return what.to_string();
    };
    format!("{advice} ({})", what.split(" (after ").next().unwrap_or(what))
}

/// The topic of a line of librdkafka's log, if it tells that a transaction may not write it. All records of that transaction are
/// reported, and as purged.
pub fn unwritable(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("Failed to add partition \"")?;
    let (topic, why) = rest.split_once('"')?;
    why.ends_with("Topic authorization failed").then_some(topic)
}

const NO_TOPIC_ACCESS: &str =
    "not authorised for the topic; ask for WRITE and DESCRIBE (a sink) or READ (a source)";

/// Of a topic that is to be seen.
pub const NO_TOPIC_WRITE: &str = "not authorised to write to the topic; ask for WRITE on it";

const NO_ID_ACCESS: &str = "not authorised for the transactional id; ask for WRITE and DESCRIBE on transactional ids that begin with `flumen/`";

/// A line of librdkafka's log, if it tells of a connection that the other side ended before anything was said.
pub fn early_end(line: &str, settings: &Settings) -> Option<String> {
    diagnosis::is_early_end(line).then(|| diagnosis::of(None, line, settings))
}

/// The code inside an error.
pub fn code(error: &KafkaError) -> Option<Code> {
    match error {
        KafkaError::Transaction(inner) => Some(inner.code()),
        other => other.rdkafka_error_code(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as librdkafka 2.12 writes them.
    #[test]
    fn a_topic_that_a_transaction_may_not_write_is_named() {
        let line = |why: &str| {
            format!(
                "[thrd:main]: 127.0.0.1:9092/1: Failed to add partition \"web-404\" [2] to transaction: Broker: {why}"
            )
        };
        assert_eq!(unwritable(&line("Topic authorization failed")), Some("web-404"));
        assert_eq!(unwritable(&line("Operation not attempted")), None);
        assert_eq!(unwritable("Broker: Topic authorization failed"), None);
    }
}
