//! Whether a cluster is fit for Flumen, as findings that a person can act on.
//!
//! Nothing is written but one thing: the question whether transactions are possible asks for a producer's number
//! under the transactional id [`PROBE_ID`], as a sink does under its own. It begins no transaction.

use std::sync::Arc;
use std::time::Instant;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::producer::{Producer, ThreadedProducer};
use serde::Serialize;

use crate::context::Context;
use crate::limits;
use crate::settings::Settings;

use super::brokers::{self, Cluster};
use super::link::{Link, Trouble};
use super::progress::{self, Records};
use super::topics::{self, Config, Topic};
use super::transactions::{self, Transactions};

/// The transactional id of the question; no sink has it, and it begins like theirs, so that the same rule of
/// access covers it.
pub const PROBE_ID: &str = "flumen/check";

/// What all transactional ids of Flumen begin with.
pub const ID_PREFIX: &str = "flumen/";

/// The topic in which exactly-once sinks keep their progress.
pub const PROGRESS_TOPIC: &str = "flumen-progress";

/// Names in a list; more are counted.
const NAMES_MAX: usize = 5;

/// How a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing is broken.
    Note,
    /// Something does not work, or will not.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// How it is.
    pub grade: Grade,
    /// What was looked at.
    pub about: String,
    /// What was seen.
    pub text: String,
    /// What to do.
    pub fix: Option<String>,
}

/// What is asked about beyond the cluster itself: a source or a sink of a pipeline.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// As messages name it: ``sink `out` ``.
    pub who: String,
    /// Topics that it names; templates and patterns are left out.
    pub topics: Vec<String>,
    /// It writes in transactions.
    pub is_transactional: bool,
    /// What its transactional ids begin with, behind [`ID_PREFIX`]: `agent/pipeline/sink/`; empty for a source.
    pub id_prefix: String,
    /// Whose progress: `agent/pipeline/channel/sink`; empty for a source.
    pub progress_of: String,
    /// Where it keeps its progress.
    pub progress_topic: String,
}

/// Everything that was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Nothing is [`Grade::Bad`].
    pub is_well: bool,
    /// In the order of looking.
    pub findings: Vec<Finding>,
    /// The brokers.
    pub cluster: Cluster,
    /// Transactional ids of Flumen.
    pub transactions: Option<Transactions>,
    /// How far its sinks are, and which process says so.
    pub progress: Option<Records>,
}

struct Look {
    settings: Arc<Settings>,
    findings: Vec<Finding>,
}

/// Looks at a cluster, and at what a component needs of it.
pub fn check(settings: &Arc<Settings>, target: Option<&Target>) -> Report {
    let cluster = brokers::survey(settings);
    let mut look = Look { settings: settings.clone(), findings: Vec::new() };
    look.brokers(&cluster);
    let alive = || cluster.brokers.iter().filter(|broker| broker.answer_ms.is_some());
    let (mut known, mut progress) = (None, None);
    if alive().next().is_some() {
        // From here on only those are asked that answer: one that is down has been told of.
        let names = alive().map(|broker| broker.name.clone()).collect();
        let settings = Arc::new(settings.with_brokers(names));
        match Link::open(&settings) {
            Ok(link) => {
                look.cluster(&link, &cluster, target);
                known = look.known(&link, &cluster, target);
                progress = look.records(&link, &cluster, target);
            }
            Err(trouble) => look.bad("connection", trouble, None),
        }
    }
    let is_well = look.findings.iter().all(|finding| finding.grade != Grade::Bad);
    Report { is_well, findings: look.findings, cluster, transactions: known, progress }
}

impl Look {
    fn add(&mut self, grade: Grade, about: impl Into<String>, text: impl ToString, fix: Option<&str>) {
        let fix = fix.map(str::to_owned);
        self.findings.push(Finding { grade, about: about.into(), text: text.to_string(), fix });
    }

    fn ok(&mut self, about: impl Into<String>, text: impl ToString) {
        self.add(Grade::Ok, about, text, None);
    }

    fn bad(&mut self, about: impl Into<String>, text: impl ToString, fix: Option<&str>) {
        self.add(Grade::Bad, about, text, fix);
    }

    fn brokers(&mut self, cluster: &Cluster) {
        for broker in &cluster.brokers {
            let about = format!("broker {}", broker.name);
            match (broker.answer_ms, &broker.error) {
                (Some(ms), _) => {
                    let how = self.settings.in_words();
                    let id = broker
                        .id
                        .map_or("known to the cluster by another name".into(), |id| format!("id {id}"));
                    self.ok(about, format!("answers, {ms} ms with connecting, {id}, {how}"));
                }
                (None, error) => self.bad(about, error.as_deref().unwrap_or("does not answer"), None),
            }
        }
    }

    fn cluster(&mut self, link: &Link, cluster: &Cluster, target: Option<&Target>) {
        let size = cluster.brokers.iter().filter(|broker| broker.id.is_some()).count();
        let id = cluster.id.as_deref().unwrap_or("(not said)");
        let text = format!("{size} brokers, {} topics, id {id}", cluster.topics.len());
        self.ok("cluster", text);
        match cluster.controller {
            Some(id) => self.ok("controller", format!("requests go to broker {id}")),
            None => {
                self.bad("controller", "the cluster names none", Some("look at the controllers' own logs"))
            }
        }
        self.partitions(&cluster.topics);
        let progress = target.map_or(PROGRESS_TOPIC, |target| &target.progress_topic);
        self.transactions(link, cluster, size, target);
        self.progress(link, cluster, progress, target);
        if let Some(target) = target {
            target.topics.iter().for_each(|topic| self.topic(link, cluster, topic, target));
        }
    }

    fn partitions(&mut self, topics: &[Topic]) {
        let leaderless = named(topics, |topic| topic.leaderless().map(|partition| partition.id).collect());
        match leaderless {
            None => self.ok("leaders", "every partition has one"),
            Some(names) => self.bad(
                "leaders",
                format!("no leader: {names}"),
                Some("start the brokers that hold these partitions; until then they take and give nothing"),
            ),
        }
        let behind = named(topics, |topic| topic.under_replicated().map(|partition| partition.id).collect());
        match behind {
            None => self.ok("replicas", "all are in sync"),
            Some(names) => self.bad(
                "replicas",
                format!("not all in sync: {names}"),
                Some("a broker is down or behind; another failure can stop writes or lose records"),
            ),
        }
    }

    fn transactions(&mut self, link: &Link, cluster: &Cluster, size: usize, target: Option<&Target>) {
        const ABOUT: &str = "transactions";
        if target.is_some_and(|target| !target.is_transactional) {
            return;
        }
        let configs =
            match cluster.brokers.iter().find(|broker| broker.answer_ms.is_some()).and_then(|b| b.id) {
                Some(id) => topics::broker_configs(link, id).unwrap_or_default(),
                None => Vec::new(),
            };
        let wanted = number(&configs, "transaction.state.log.replication.factor");
        let has_topic = cluster.topics.iter().any(|topic| topic.name == transactions::TOPIC);
        if let (Some(wanted), false) = (wanted, has_topic)
            && usize::try_from(wanted).is_ok_and(|wanted| wanted > size)
        {
            let text = format!(
                "not possible: {} should have {wanted} copies, and there are {size} brokers",
                transactions::TOPIC
            );
            return self.bad(ABOUT, text, Some(SMALL_CLUSTER));
        }
        let begun = Instant::now();
        match init_transactions(&self.settings, link) {
            Ok(()) => self.ok(
                ABOUT,
                format!("possible; the coordinator answered in {} ms", begun.elapsed().as_millis()),
            ),
            Err(trouble) => {
                let fix = (!has_topic).then_some(SMALL_CLUSTER);
                self.bad(ABOUT, format!("no coordinator gave a producer's number: {trouble}"), fix);
            }
        }
    }

    fn progress(&mut self, link: &Link, cluster: &Cluster, name: &str, target: Option<&Target>) {
        if target.is_some_and(|target| !target.is_transactional) {
            return;
        }
        let about = format!("topic {name}");
        if !cluster.topics.iter().any(|topic| topic.name == name) {
            let text = "not there yet; the first sink with delivery = \"exactly-once\" makes it, or you do, if agents may not";
            let fix = format!("flumen kafka topics create {name} --set cleanup.policy=compact");
            return self.add(Grade::Note, about, text, Some(&fix));
        }
        match topics::configs(link, name) {
            Ok(configs) => match value(&configs, "cleanup.policy") {
                Some("compact") => self.ok(about, "there, compacted: progress is kept"),
                other => {
                    let other = other.unwrap_or("not said").to_string();
                    let fix = "set it to compact: else old progress is deleted, and a sink that slept would deliver twice";
                    self.bad(about, format!("cleanup.policy is {other}"), Some(fix));
                }
            },
            Err(trouble) => self.add(Grade::Note, about, format!("there; {trouble}"), None),
        }
    }

    fn topic(&mut self, link: &Link, cluster: &Cluster, name: &str, target: &Target) {
        let about = format!("topic {name} of {}", target.who);
        let Some(topic) = cluster.topics.iter().find(|topic| topic.name == name) else {
            let trouble = topics::list(link, Some(name)).err();
            let text = trouble.map_or_else(|| "is not listed".to_string(), |trouble| trouble.to_string());
            let fix = format!(
                "flumen kafka topics create {name}, or correct the name; else ask for DESCRIBE on it"
            );
            return self.bad(about, text, Some(&fix));
        };
        let shape = format!("{} partitions, {} copies", topic.partitions.len(), topic.replication());
        match topics::configs(link, name) {
            Ok(configs) => {
                let limit = value(&configs, "max.message.bytes").unwrap_or("not said").to_string();
                let in_sync = value(&configs, "min.insync.replicas").unwrap_or("not said").to_string();
                self.ok(
                    about,
                    format!("{shape}, records up to {limit} bytes, min.insync.replicas {in_sync}"),
                );
            }
            Err(trouble) => self.add(Grade::Note, about, format!("{shape}; {trouble}"), None),
        }
    }

    fn known(&mut self, link: &Link, cluster: &Cluster, target: Option<&Target>) -> Option<Transactions> {
        const ABOUT: &str = "transactional ids";
        let topic = cluster.topics.iter().find(|topic| topic.name == transactions::TOPIC)?;
        let prefix = format!("{ID_PREFIX}{}", target.map_or("", |target| &target.id_prefix));
        let wanted = |id: &str| id != PROBE_ID && id.starts_with(&prefix);
        match transactions::read(link, topic, wanted) {
            Ok(known) => {
                let more = if known.is_complete { "" } else { "; there is more than could be read in time" };
                self.ok(ABOUT, format!("{} that begin with {prefix}{more}", known.known.len()));
                Some(known)
            }
            Err(trouble) => {
                let fix = format!("to see who fences whom, ask for READ on {}", transactions::TOPIC);
                self.add(Grade::Note, ABOUT, format!("not to be seen: {trouble}"), Some(&fix));
                None
            }
        }
    }

    fn records(&mut self, link: &Link, cluster: &Cluster, target: Option<&Target>) -> Option<Records> {
        let name = target.map_or(PROGRESS_TOPIC, |target| &target.progress_topic);
        let topic = cluster.topics.iter().find(|topic| topic.name == name)?;
        match progress::read(link, topic, target.map_or("", |target| &target.progress_of)) {
            Ok(records) => {
                if records.unreadable > 0 {
                    let text = format!("{} keys have a record that cannot be read", records.unreadable);
                    self.bad(
                        "progress",
                        text,
                        Some("an older record counts in its place; see who else writes to the topic"),
                    );
                }
                Some(records)
            }
            Err(trouble) => {
                self.add(Grade::Note, "progress", format!("not to be seen: {trouble}"), None);
                None
            }
        }
    }
}

const SMALL_CLUSTER: &str = "on a cluster of fewer than three brokers set transaction.state.log.replication.factor=1, \
     transaction.state.log.min.isr=1 and offsets.topic.replication.factor=1 on the brokers and restart them, or use \
     delivery = \"at-least-once\"";

fn init_transactions(settings: &Arc<Settings>, link: &Link) -> Result<(), Trouble> {
    let mut config = link.settings().config("flumen-kafka");
    config.set("transactional.id", PROBE_ID);
    let context = Context::new("kafka", settings.clone(), None);
    let producer: ThreadedProducer<Context> =
        ThreadedProducer::from_config_and_context(&config, context).map_err(|error| link.trouble(&error))?;
    let outcome = producer.init_transactions(limits::ADMIN);
    outcome.map_err(|error| Trouble(producer.client().context().explain(&error)))
}

fn value<'a>(configs: &'a [Config], name: &str) -> Option<&'a str> {
    configs.iter().find(|config| config.name == name)?.value.as_deref()
}

fn number(configs: &[Config], name: &str) -> Option<i64> {
    value(configs, name)?.parse().ok()
}

/// `topic (0, 3), other (1)`; `None`: no topic has any.
fn named(topics: &[Topic], partitions: impl Fn(&Topic) -> Vec<i32>) -> Option<String> {
    let some: Vec<(&str, Vec<i32>)> = topics
        .iter()
        .map(|topic| (topic.name.as_str(), partitions(topic)))
        .filter(|(_, partitions)| !partitions.is_empty())
        .collect();
    let listed: Vec<String> = some
        .iter()
        .take(NAMES_MAX)
        .map(|(name, partitions)| {
            let shown: Vec<String> = partitions.iter().take(NAMES_MAX).map(i32::to_string).collect();
            let more = if partitions.len() > NAMES_MAX { ", …" } else { "" };
            format!("{name} ({}{more})", shown.join(", "))
        })
        .collect();
    let more = some.len().saturating_sub(NAMES_MAX);
    let more = if more > 0 { format!(" and {more} topics more") } else { String::new() };
    (!some.is_empty()).then(|| format!("{}{more}", listed.join(", ")))
}
