//! A failover of kind "kafka": its options.

use std::sync::Arc;

use flumen_journal::log::LogError;
use flumen_pipeline::component::option;
use flumen_pipeline::{BuildError, ComponentSpec, OptionKind, OptionSpec, Options};

use crate::channel::check_topic;
use crate::read_back::Partition;
use crate::settings::{CLIENT_OPTIONS, Settings, with_client_options};

const OWN: [OptionSpec; 2] = [
    option(
        "topic",
        OptionKind::Text,
        None,
        "The topic that holds the events meanwhile, of this agent and pipeline alone; flumen-failover-AGENT-PIPELINE without it.",
    ),
    option(
        "replication",
        OptionKind::Integer { min: 1, max: 100 },
        None,
        "Copies of the topic if it has to be made; the cluster's default without it.",
    ),
];

const OPTIONS: [OptionSpec; CLIENT_OPTIONS.len() + OWN.len()] = with_client_options(OWN);

/// The options of the kind.
pub const SPEC: ComponentSpec =
    ComponentSpec { kind: "kafka", about: "Events go to a topic of Kafka meanwhile.", options: &OPTIONS };

/// What a failover's journal in Kafka is made of.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// The agent's name: its transactional id carries it.
    pub agent: Arc<str>,
    /// The pipeline's name.
    pub pipeline: Arc<str>,
    /// Brokers and security.
    pub settings: Arc<Settings>,
    /// The topic.
    pub topic: Arc<str>,
    /// Copies of the topic if it has to be made; `None`: the cluster's default.
    pub replication: Option<i32>,
    /// The pipeline had this failover before this start.
    pub is_known: bool,
}

impl LogOptions {
    /// Reads checked options.
    ///
    /// # Errors
    /// If they cannot work together, or the topic can have no such name.
    pub fn new(agent: &str, pipeline: &str, options: &Options) -> Result<LogOptions, BuildError> {
        let settings = Arc::new(Settings::from_options(options)?);
        let default = || format!("flumen-failover-{agent}-{pipeline}");
        let topic = options.text_opt("topic").map_or_else(default, str::to_owned);
        check_topic(&topic)?;
        let replication = options.integer_opt("replication").and_then(|copies| i32::try_from(copies).ok());
        Ok(LogOptions {
            agent: agent.into(),
            pipeline: pipeline.into(),
            settings,
            topic: topic.into(),
            replication,
            is_known: false,
        })
    }

    /// With what is on record of it: a topic that was there, and has to be made, is told.
    pub fn known(self, is_known: bool) -> LogOptions {
        LogOptions { is_known, ..self }
    }

    /// The id of its transactions, and the name of its clients.
    pub(super) fn id(&self) -> String {
        format!("flumen/{}/{}/failover", self.agent, self.pipeline)
    }

    /// Who asks, for the log.
    pub(super) fn who(&self) -> String {
        format!("failover {}", self.pipeline)
    }

    /// What it is, for errors.
    pub(super) fn name(&self) -> String {
        format!("topic {}", self.topic)
    }

    /// Whether a record, whose key is the id of who wrote it, is of this agent and pipeline. Others take other ids over, so nobody would
    /// stop either, and each would take the other's events for its own.
    pub(super) fn check_owner(&self, id: &str, key: Option<&[u8]>) -> Result<(), LogError> {
        match key.filter(|key| key.starts_with(b"flumen/") && *key != id.as_bytes()) {
            None => Ok(()),
            Some(other) => Err(LogError::Unknown(format!(
                "the topic {} holds records of {}, and this is {id}: a failover needs a topic of its own; name another one (`topic`), \
                 which is made if it is missing",
                self.topic,
                String::from_utf8_lossy(other)
            ))),
        }
    }

    /// The partition.
    pub(super) fn partition<'a>(&'a self, who: &'a str, client_id: &'a str) -> Partition<'a> {
        Partition {
            who,
            client_id,
            settings: &self.settings,
            topic: &self.topic,
            number: 0,
            hides: "events that went to the failover",
            within: None,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use flumen_pipeline::Value;

    pub(in crate::log) fn options(entries: &[(&str, Value)]) -> Options {
        let brokers = ("brokers".to_owned(), Value::TextList(vec!["k:9092".into()]));
        let others = entries.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        Options(std::iter::once(brokers).chain(others).collect())
    }

    #[test]
    fn names_follow_from_agent_and_pipeline() {
        let made = LogOptions::new("a1", "web", &options(&[])).unwrap();
        assert_eq!((&*made.topic, made.replication), ("flumen-failover-a1-web", None));
        assert_eq!(made.id(), "flumen/a1/web/failover");
        let given = [("topic", Value::Text("t".into())), ("replication", Value::Integer(3))];
        let made = LogOptions::new("a1", "web", &options(&given)).unwrap();
        assert_eq!((&*made.topic, made.replication), ("t", Some(3)));
        let wrong = LogOptions::new("a1", "web", &options(&[("topic", Value::Text("a b".into()))]));
        assert_eq!(wrong.unwrap_err().option, "topic");
    }

    /// The default names of different agents can be the same.
    #[test]
    fn records_of_another_agent_or_pipeline_are_refused() {
        let one = LogOptions::new("a-b", "c", &options(&[])).unwrap();
        let other = LogOptions::new("a", "b-c", &options(&[])).unwrap();
        assert_eq!(one.topic, other.topic);
        let check = |key: Option<&[u8]>| one.check_owner(&one.id(), key).map_err(|error| error.to_string());
        assert_eq!(check(Some(one.id().as_bytes())), Ok(()));
        // Somebody's record that is none of ours is passed over.
        assert_eq!((check(None), check(Some(b"k".as_slice()))), (Ok(()), Ok(())));
        let told = check(Some(other.id().as_bytes())).unwrap_err();
        assert!(told.contains("flumen/a/b-c/failover") && told.contains("name another one"), "{told}");
    }
}
