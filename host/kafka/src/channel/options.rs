//! `[channel.NAME]` with kind = "kafka": its options, and what a pipeline's channels come to.

use std::sync::Arc;
use std::time::Duration;

use flumen_pipeline::component::option;
use flumen_pipeline::plan::FailoverPlan;
use flumen_pipeline::{BuildError, ComponentSpec, OptionKind, OptionSpec, Options};

use crate::settings::{CLIENT_OPTIONS, Settings, with_client_options};

const OWN: [OptionSpec; 7] = [
    option(
        "topic",
        OptionKind::Text,
        None,
        "The topic that holds the events; flumen-PIPELINE-CHANNEL without it.",
    ),
    option(
        "group",
        OptionKind::Text,
        None,
        "Consumer group of the channel's reader, the same for all agents that share its events; flumen-PIPELINE-CHANNEL-SINK without it.",
    ),
    option(
        "parse_as_flume_event",
        OptionKind::Bool,
        Some("false"),
        "Records are Avro events as Flume's own Kafka channel writes and reads them, not plain bodies.",
    ),
    option(
        "partitions",
        OptionKind::Integer { min: 1, max: 10_000 },
        Some("8"),
        "Partitions of the topic if it has to be made; as many agents can share the channel.",
    ),
    option(
        "replication",
        OptionKind::Integer { min: 1, max: 100 },
        None,
        "Copies of each partition of topics that have to be made; the cluster's default without it.",
    ),
    option(
        "retention",
        OptionKind::Duration { min: Duration::from_secs(60), max: Duration::from_secs(86_400 * 3_650) },
        Some("\"7d\""),
        "How long the topic keeps events, read or not, if it has to be made.",
    ),
    option(
        "session_timeout",
        OptionKind::Duration { min: Duration::from_secs(1), max: Duration::from_secs(1_800) },
        Some("\"20s\""),
        "An agent that is not heard of for this long loses its share of the channel to the others.",
    ),
];

const OPTIONS: [OptionSpec; CLIENT_OPTIONS.len() + OWN.len()] = with_client_options(OWN);

/// The options of the kind.
pub const SPEC: ComponentSpec = ComponentSpec {
    kind: "kafka",
    about: "The channel is a Kafka topic, which many agents can share.",
    options: &OPTIONS,
};

/// What a pipeline's Kafka journal is made of.
#[derive(Debug, Clone)]
pub struct JournalOptions {
    /// The agent's name: its positions and its transactional id carry it.
    pub agent: Arc<str>,
    /// The pipeline's name.
    pub pipeline: Arc<str>,
    /// Brokers and security.
    pub settings: Arc<Settings>,
    /// Copies of topics that have to be made; `None`: the cluster's default.
    pub replication: Option<i32>,
    /// See the option.
    pub session_timeout: Duration,
    /// Plugins of the pipeline remember something, so what they remembered is read at the start.
    pub keeps_state: bool,
    /// What becomes of events while the cluster cannot be reached.
    pub failover: Option<FailoverPlan>,
    /// The channels, in the order of the plan.
    pub channels: Vec<ChannelTopic>,
}

/// One channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelTopic {
    /// The channel's name.
    pub name: String,
    /// Its topic.
    pub topic: String,
    /// Partitions, if the topic has to be made.
    pub partitions: i32,
    /// Retention, if the topic has to be made.
    pub retention: Duration,
    /// Values are Flume's Avro events.
    pub is_flume: bool,
    /// Its readers (sinks), each with its consumer group.
    pub readers: Vec<(String, String)>,
}

impl JournalOptions {
    /// Reads the options of all channels of a pipeline: name, checked options, names of the sinks that read it. An error is of the
    /// channel with this index.
    pub fn new(
        agent: &str,
        pipeline: &str,
        channels: &[(&str, &Options, Vec<&str>)],
    ) -> Result<JournalOptions, (usize, BuildError)> {
        let mut journal: Option<JournalOptions> = None;
        let mut first = "";
        for (index, (name, options, readers)) in channels.iter().enumerate() {
            let at = |error: BuildError| (index, error);
            let settings = Settings::from_options(options).map_err(at)?;
            let topic = channel_topic(pipeline, name, options, readers).map_err(at)?;
            let replication = options.integer_opt("replication").and_then(|n| i32::try_from(n).ok());
            let session_timeout = options.duration_opt("session_timeout").unwrap_or(Duration::from_secs(20));
            match &mut journal {
                None => {
                    first = name;
                    journal = Some(JournalOptions {
                        agent: agent.into(),
                        pipeline: pipeline.into(),
                        settings: Arc::new(settings),
                        replication,
                        session_timeout,
                        keeps_state: false,
                        failover: None,
                        channels: vec![topic],
                    });
                }
                Some(journal) => {
                    journal.same_cluster(&settings, name, first).map_err(at)?;
                    journal.other_topic(&topic).map_err(at)?;
                    journal.channels.push(topic);
                }
            }
        }
        journal.ok_or((0, BuildError::new("", "there is no channel", "add one")))
    }

    /// One transaction cannot span two clusters.
    fn same_cluster(&self, settings: &Settings, name: &str, first: &str) -> Result<(), BuildError> {
        if *self.settings == *settings {
            return Ok(());
        }
        let reason = format!(
            "the channels `{first}` and `{name}` are not of one cluster, reached in one way; one commit cannot span two"
        );
        Err(BuildError::new(
            "brokers",
            reason,
            "give all channels of the pipeline the same brokers and security",
        ))
    }

    fn other_topic(&self, topic: &ChannelTopic) -> Result<(), BuildError> {
        match self.channels.iter().find(|other| other.topic == topic.topic) {
            None => Ok(()),
            Some(other) => {
                let reason = format!("the channel `{}` has the topic `{}` already", other.name, topic.topic);
                Err(BuildError::new("topic", reason, "give each channel a topic of its own"))
            }
        }
    }

    /// What begins the names of this journal's clients and its transactional id.
    pub(crate) fn id(&self) -> String {
        format!("flumen/{}/{}", self.agent, self.pipeline)
    }

    /// The id of its transactions.
    pub(crate) fn transactional_id(&self) -> String {
        format!("{}/journal", self.id())
    }
}

/// Whether this can be the name of a topic.
pub(crate) fn check_topic(topic: &str) -> Result<(), BuildError> {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.is_empty() || topic.len() > 249 || !topic.chars().all(is_legal) || topic == "." || topic == ".."
    {
        let fix = "letters, digits, `.`, `_` and `-` only, at most 249";
        return Err(BuildError::new("topic", format!("{topic:?} cannot be the name of a topic"), fix));
    }
    Ok(())
}

fn channel_topic(
    pipeline: &str,
    name: &str,
    options: &Options,
    readers: &[&str],
) -> Result<ChannelTopic, BuildError> {
    let topic = options.text_opt("topic").map_or_else(|| format!("flumen-{pipeline}-{name}"), str::to_owned);
    check_topic(&topic)?;
    let group = options.text_opt("group");
    if let (Some(group), [_, _, ..]) = (group, readers) {
        let reason = format!(
            "several sinks read the channel, and in one group `{group}` each event would come to one of them only"
        );
        return Err(BuildError::new("group", reason, "leave `group` out: each sink has a group of its own"));
    }
    let groups = readers.iter().map(|reader| {
        let group = group.map_or_else(|| format!("flumen-{pipeline}-{name}-{reader}"), str::to_owned);
        ((*reader).to_owned(), group)
    });
    Ok(ChannelTopic {
        name: name.into(),
        partitions: options.integer_opt("partitions").and_then(|n| i32::try_from(n).ok()).unwrap_or(8),
        retention: options.duration_opt("retention").unwrap_or(Duration::from_secs(7 * 86_400)),
        is_flume: options.flag_opt("parse_as_flume_event").unwrap_or(false),
        readers: groups.collect(),
        topic,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_pipeline::Value;
    use std::collections::BTreeMap;

    fn options(entries: &[(&str, &str)]) -> Options {
        let mut all = BTreeMap::from([("brokers".to_string(), Value::TextList(vec!["k:9092".into()]))]);
        for (name, value) in entries {
            let value = match *name {
                "brokers" => Value::TextList(vec![value.to_string()]),
                _ => Value::Text(value.to_string()),
            };
            all.insert(name.to_string(), value);
        }
        Options(all)
    }

    #[test]
    fn names_follow_from_pipeline_channel_and_sink() {
        let plain = options(&[]);
        let made = JournalOptions::new("a1", "web", &[("main", &plain, vec!["out"])]).unwrap();
        assert_eq!(made.channels[0].topic, "flumen-web-main");
        assert_eq!(made.channels[0].readers, [("out".into(), "flumen-web-main-out".into())]);
        assert_eq!(made.id(), "flumen/a1/web");
    }

    #[test]
    fn channels_that_cannot_be_together_are_refused() {
        let (plain, other) = (options(&[]), options(&[("brokers", "elsewhere:1")]));
        let wrong = |channels: &[(&str, &Options, Vec<&str>)]| {
            let (index, error) = JournalOptions::new("a1", "web", channels).unwrap_err();
            (index, error.option)
        };
        assert_eq!(wrong(&[("a", &plain, vec![]), ("b", &other, vec![])]), (1, "brokers".into()));
        let (one, group) = (options(&[("topic", "t")]), options(&[("group", "g")]));
        assert_eq!(wrong(&[("a", &one, vec![]), ("b", &one, vec![])]), (1, "topic".into()));
        assert_eq!(wrong(&[("a", &group, vec!["x", "y"])]), (0, "group".into()));
        let bad = options(&[("topic", "a b")]);
        assert_eq!(wrong(&[("a", &bad, vec![])]), (0, "topic".into()));
    }
}
