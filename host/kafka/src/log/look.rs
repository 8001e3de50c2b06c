//! Whether a failover is open in the log, for somebody who takes nothing over.

use std::time::Instant;

use flumen_journal::Keys;
use flumen_journal::failover::STATE;
use flumen_journal::log::{LogContents, LogError};
use rdkafka::Message;

use super::options::LogOptions;
use crate::topics::Topics;
use crate::{limits, read_back, words};

/// Whether events went to the failover and have not come back. A topic that is not there has none.
///
/// # Errors
/// If it cannot be known within [`limits::LOG_LOOK`]: in words.
pub fn is_in_use(options: &LogOptions, keys: &Keys) -> Result<bool, String> {
    look(options, keys).map_err(|reason| {
        format!(
            "whether the failover in the topic {} of {} is in use cannot be known: {reason}; try again when that is mended",
            options.topic,
            options.settings.brokers.join(", ")
        )
    })
}

fn look(options: &LogOptions, keys: &Keys) -> Result<bool, String> {
    let until = Instant::now() + limits::LOG_LOOK;
    let (who, id) = (options.who(), options.id());
    let questions = Topics::new(&who, &options.settings)
        .map_err(|error| words::explain(&error, &options.settings, None))?;
    if questions.partitions(&options.topic).map_err(|error| questions.explain(&error))?.is_none() {
        return Ok(false);
    }
    let mut contents = LogContents::new(&options.name(), keys);
    let give_up = || Instant::now() > until;
    let read = read_back::read(&options.partition(&who, &id), 0, &give_up, |message| {
        let place = u64::try_from(message.offset()).unwrap_or(0);
        options
            .check_owner(&id, message.key())
            .and_then(|()| contents.take(place, message.payload().unwrap_or_default()))
    });
    read.map_err(|error: LogError| error.to_string())?;
    Ok(contents.position(STATE).is_some())
}

#[cfg(test)]
mod tests {
    use super::super::options::tests::options;
    use super::*;
    use flumen_pipeline::Value;
    use rdkafka::mocking::MockCluster;

    #[test]
    fn without_a_topic_there_is_no_failover_in_use() {
        let cluster = MockCluster::new(1).unwrap();
        let brokers = Value::TextList(vec![cluster.bootstrap_servers()]);
        let given = [("brokers", brokers), ("topic", Value::Text("t".into()))];
        let log = LogOptions::new("a", "p", &options(&given)).unwrap();
        let error = rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
        cluster.topic_error("t", error).unwrap();
        assert_eq!(is_in_use(&log, &Keys::default()), Ok(false));
    }
}
