//! librdkafka's errors as a person reads them: what happened, where, what to do.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::settings::{Sasl, Settings};

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
                Some(behind) => format!("no answer from {brokers}: {behind}"),
                None => format!("no answer from {brokers}; is a broker running there?"),
            };
        }
        Some(Code::UnknownTopic | Code::UnknownTopicOrPartition) => {
            "the topic does not exist; make it, or correct the name"
        }
        Some(Code::InvalidTopic) => {
            "the topic's name is not legal: letters, digits, `.`, `_` and `-` only, at most 249"
        }
        Some(Code::TopicAuthorizationFailed) => {
            "not authorised for the topic; ask for WRITE and DESCRIBE (a sink) or READ (a source)"
        }
        Some(Code::GroupAuthorizationFailed) => "not authorised for the consumer group; ask for READ on it",
        Some(Code::ClusterAuthorizationFailed) => "not authorised for the cluster; ask for IDEMPOTENT_WRITE",
        Some(Code::TransactionalIdAuthorizationFailed) => {
            "not authorised for the transactional id; ask for WRITE and DESCRIBE on transactional ids that begin with `flumen/`"
        }
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
            "no coordinator: the broker cannot make __transaction_state or __consumer_offsets. On a cluster of fewer than three \
             brokers set transaction.state.log.replication.factor=1, transaction.state.log.min.isr=1 and \
             offsets.topic.replication.factor=1 on the brokers"
        }
        _ => return error.to_string(),
    };
    format!("{text} ({error})")
}

/// An error that librdkafka tells of a connection.
pub fn connection(error: &KafkaError, reason: &str, settings: &Settings) -> String {
    let reason = reason.trim();
    let has = |text: &str| reason.to_ascii_lowercase().contains(text);
    let user = settings.username.as_deref().unwrap_or("this agent");
    let advice = if code(error) == Some(Code::Authentication) || has("authentication failed") || has("sasl") {
        match settings.sasl {
            Some(Sasl::OauthBearer) => "the broker refuses the token: look at `token_file`".into(),
            Some(_) => format!(
                "the broker refuses the password of `{user}`, or the mechanism: look at `username`, `password` and `sasl`"
            ),
            None => "the broker wants to know who this is: set `sasl`".into(),
        }
    } else if has("certificate has expired") || has("certificate expired") {
        if has("alert") {
            "the broker says that our certificate (`tls_certificate`) has expired".into()
        } else {
            "the broker's certificate has expired".into()
        }
    } else if has("certificate verify failed")
        || has("unknown ca")
        || has("self-signed")
        || has("self signed")
    {
        if has("alert") {
            "the broker does not accept our certificate (`tls_certificate`)".into()
        } else {
            "the broker's certificate is not signed by one of `tls_ca`, or is not for this name".into()
        }
    } else if has("ssl") && (has("wrong version number") || has("connecting to a plaintext")) {
        "the port does not talk TLS: use the broker's TLS port, or leave `tls` out".into()
    } else if has("disconnected") && has("security.protocol") {
        "the broker closed the connection at once: perhaps it wants TLS (`tls = true`)".into()
    } else {
        String::new()
    };
    if advice.is_empty() { reason.to_string() } else { format!("{advice} ({reason})") }
}

/// The code inside an error.
pub fn code(error: &KafkaError) -> Option<Code> {
    match error {
        KafkaError::Transaction(inner) => Some(inner.code()),
        other => other.rdkafka_error_code(),
    }
}
