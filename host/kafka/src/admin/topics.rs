//! Topics: which there are, how their partitions are, how they are configured; making and deleting them.

use std::sync::Arc;
use std::time::Instant;

use rdkafka::admin::{ConfigEntry, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;
use rdkafka::{Offset, TopicPartitionList};
use serde::Serialize;

use crate::settings::Settings;
use crate::{limits, words};

use super::link::{Link, Trouble};

/// One topic.
#[derive(Debug, Clone, Serialize)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// By number.
    pub partitions: Vec<Partition>,
    /// What the broker says is wrong with it.
    pub error: Option<String>,
}

/// One partition.
#[derive(Debug, Clone, Serialize)]
pub struct Partition {
    /// Its number.
    pub id: i32,
    /// The broker that takes and gives its records; absent: none, it is out of order.
    pub leader: Option<i32>,
    /// Brokers that should have it.
    pub replicas: Vec<i32>,
    /// Brokers that have all of it.
    pub in_sync: Vec<i32>,
}

impl Topic {
    /// Kafka's own.
    pub fn is_internal(&self) -> bool {
        self.name.starts_with("__")
    }

    /// Partitions that nobody leads.
    pub fn leaderless(&self) -> impl Iterator<Item = &Partition> {
        self.partitions.iter().filter(|partition| partition.leader.is_none())
    }

    /// Partitions that some replica is behind with.
    pub fn under_replicated(&self) -> impl Iterator<Item = &Partition> {
        self.partitions.iter().filter(|partition| partition.in_sync.len() < partition.replicas.len())
    }

    /// The most copies that a partition should have.
    pub fn replication(&self) -> usize {
        self.partitions.iter().map(|partition| partition.replicas.len()).max().unwrap_or(0)
    }
}

/// Topics by name.
pub(super) fn of(metadata: &Metadata) -> Vec<Topic> {
    let mut topics: Vec<Topic> = metadata.topics().iter().map(topic).collect();
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    topics
}

fn topic(topic: &rdkafka::metadata::MetadataTopic) -> Topic {
    let mut partitions: Vec<Partition> = topic
        .partitions()
        .iter()
        .map(|partition| Partition {
            id: partition.id(),
            leader: Some(partition.leader()).filter(|leader| *leader >= 0),
            replicas: partition.replicas().to_vec(),
            in_sync: partition.isr().to_vec(),
        })
        .collect();
    partitions.sort_by_key(|partition| partition.id);
    let error = topic.error().map(|error| Code::from(error).to_string());
    Topic { name: topic.name().into(), partitions, error }
}

/// All topics, or one.
pub fn list(link: &Link, only: Option<&str>) -> Result<Vec<Topic>, Trouble> {
    if let Some(name) = only {
        check_name(name)?;
    }
    let topics = of(&link.metadata(only)?);
    match (only, topics.first()) {
        (Some(name), None) => Err(absent(name)),
        (Some(name), Some(topic)) if topic.partitions.is_empty() => match &topic.error {
            Some(error) if !error.contains("Unknown topic") => {
                Err(Trouble(format!("topic {name:?}: {}", authorised(error))))
            }
            _ => Err(absent(name)),
        },
        _ => Ok(topics),
    }
}

fn authorised(error: &str) -> String {
    if error.contains("authorization") {
        return format!("not authorised to look at it; ask for DESCRIBE ({error})");
    }
    error.to_string()
}

fn absent(name: &str) -> Trouble {
    Trouble(format!(
        "there is no topic {name:?}, or this login may not see it; `flumen kafka topics` lists all"
    ))
}

/// A name that no broker takes is told without asking one.
pub fn check_name(name: &str) -> Result<(), Trouble> {
    const CHARACTERS_MAX: usize = 249;
    let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let wrong = if name.is_empty() {
        "it is empty".to_string()
    } else if name == "." || name == ".." {
        "it is a way, not a name".to_string()
    } else if name.len() > CHARACTERS_MAX {
        format!("it has {} characters; {CHARACTERS_MAX} are the most", name.len())
    } else if let Some(character) = name.chars().find(|c| !is_legal(*c)) {
        format!("it has {character:?}; letters, digits, `.`, `_` and `-` are legal")
    } else {
        return Ok(());
    };
    Err(Trouble(format!("{name:?} cannot be a topic's name: {wrong}")))
}

/// Makes a topic. `replication`: `None` takes the broker's default.
pub fn create(
    link: &Link,
    name: &str,
    partitions: Option<i32>,
    replication: Option<i32>,
    configs: &[(String, String)],
) -> Result<(), Trouble> {
    check_name(name)?;
    // The client names a dead broker soon and in words; an administrative request only runs out of time.
    link.metadata(None)?;
    let replication = TopicReplication::Fixed(replication.unwrap_or(-1));
    let mut topic = NewTopic::new(name, partitions.unwrap_or(-1), replication);
    for (key, value) in configs {
        topic = topic.set(key, value);
    }
    let results = link.admin(|admin, options| admin.create_topics([&topic], options))?;
    each(link, results)?;
    wait_until_led(link, name);
    Ok(())
}

/// The controller says that a topic is made before all brokers know of it. Without it in time all is well too: what
/// is asked next may only find it missing for a moment.
fn wait_until_led(link: &Link, name: &str) {
    let end = Instant::now() + limits::ADMIN;
    while Instant::now() < end {
        let is_led = |topic: &Topic| !topic.partitions.is_empty() && topic.leaderless().next().is_none();
        let all = link.metadata(None).map(|metadata| of(&metadata)).unwrap_or_default();
        if all.iter().any(|topic| topic.name == name && is_led(topic)) {
            return;
        }
        std::thread::sleep(limits::ADMIN_SLICE / 20);
    }
}

/// Deletes a topic with all that is in it.
pub fn delete(link: &Link, name: &str) -> Result<(), Trouble> {
    check_name(name)?;
    list(link, Some(name))?;
    let results = link.admin(|admin, options| admin.delete_topics(&[name], options))?;
    each(link, results)
}

/// Deletes what stands in a partition before an offset.
pub fn delete_records(link: &Link, topic: &str, partition: i32, before: i64) -> Result<(), Trouble> {
    let mut list = TopicPartitionList::new();
    let added = list.add_partition_offset(topic, partition, Offset::Offset(before));
    added.map_err(|error| link.trouble(&error))?;
    let answer = link.admin(|admin, options| admin.delete_records(&list, options))?;
    for element in answer.elements() {
        if let Err(error) = element.error() {
            let why = match words::code(&error) {
                Some(code @ (Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed)) => {
                    format!("not authorised; ask for DELETE on the topic ({code})")
                }
                _ => link.trouble(&error).0,
            };
            return Err(Trouble(format!("deleting records of topic {topic:?} before {before}: {why}")));
        }
    }
    Ok(())
}

fn each(link: &Link, results: Vec<Result<String, (String, Code)>>) -> Result<(), Trouble> {
    results.into_iter().try_for_each(|result| match result {
        Ok(_) => Ok(()),
        Err((name, code)) => Err(Trouble(format!("topic {name:?}: {}", refused(code, link.settings())))),
    })
}

fn refused(code: Code, settings: &Arc<Settings>) -> String {
    match code {
        Code::TopicAlreadyExists => "it exists already".into(),
        Code::InvalidReplicationFactor => {
            "there are not as many brokers as --replication asks for; ask for fewer copies".into()
        }
        Code::InvalidPartitions => "the number of partitions is not possible; ask for 1 or more".into(),
        Code::InvalidConfig => "a setting is not one that a topic has, or its value is not possible".into(),
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
            format!("not authorised; ask for CREATE, DELETE or ALTER on the topic or the cluster ({code})")
        }
        Code::PolicyViolation => "a policy of the cluster (create.topic.policy.class.name) forbids it".into(),
        other => words::explain(&KafkaError::AdminOp(other), settings, None),
    }
}

/// One setting of a topic or broker.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    /// Its name.
    pub name: String,
    /// Its value; absent if it is secret.
    pub value: Option<String>,
    /// It is no default of the software.
    pub is_set: bool,
}

impl From<ConfigEntry> for Config {
    fn from(entry: ConfigEntry) -> Config {
        let is_set = !entry.is_default && entry.source != ConfigSource::Default;
        Config { name: entry.name, value: entry.value.filter(|_| !entry.is_sensitive), is_set }
    }
}

/// What a topic is configured as, by name.
pub fn configs(link: &Link, topic: &str) -> Result<Vec<Config>, Trouble> {
    described(link, ResourceSpecifier::Topic(topic))
}

/// What a broker is configured as, by name. That broker itself is asked.
pub fn broker_configs(link: &Link, id: i32) -> Result<Vec<Config>, Trouble> {
    described(link, ResourceSpecifier::Broker(id))
}

fn described(link: &Link, what: ResourceSpecifier<'_>) -> Result<Vec<Config>, Trouble> {
    let results = link.admin(|admin, options| admin.describe_configs([&what], options))?;
    let mut all = Vec::new();
    for result in results {
        let resource = result.map_err(|code| match code {
            Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
                Trouble(format!("not authorised to see the configuration; ask for DESCRIBE_CONFIGS ({code})"))
            }
            other => link.trouble(&KafkaError::AdminOp(other)),
        })?;
        all.extend(resource.entries.into_iter().map(Config::from));
    }
    all.sort_by(|a: &Config, b: &Config| a.name.cmp(&b.name));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_broker_takes_are_told() {
        for (name, part) in [("", "empty"), ("..", "way"), ("a b", "' '"), ("a/b", "'/'"), ("日", "'日'")] {
            let told = check_name(name).unwrap_err().to_string();
            assert!(told.contains(part), "{told}");
        }
        assert!(check_name(&"a".repeat(250)).is_err());
        assert_eq!(check_name("a.b_c-1"), Ok(()));
    }
}
