//! Each broker by its name: does it answer, as whom, how fast.
//!
//! Every broker is asked by a client of its own that knows no other, so that an answer or an error belongs to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::limits;
use crate::settings::Settings;

use super::link::{Link, Trouble};
use super::native;
use super::topics::{self, Topic};

/// One broker.
#[derive(Debug, Clone, Serialize)]
pub struct Broker {
    /// `host:port`.
    pub name: String,
    /// Its number in the cluster; absent if no broker that answers knows it by this name.
    pub id: Option<i32>,
    /// How long connecting, logging in and the first answer took, in milliseconds; absent: it did not answer.
    pub answer_ms: Option<u64>,
    /// Why it did not.
    pub error: Option<String>,
}

/// What the brokers say of themselves.
#[derive(Debug, Clone, Serialize)]
pub struct Cluster {
    /// The cluster's id.
    pub id: Option<String>,
    /// Who the cluster says is its controller. With KRaft that is any broker, which passes requests on.
    pub controller: Option<i32>,
    /// Those that were named and those that the cluster knows, by name.
    pub brokers: Vec<Broker>,
    /// All topics that this login may see.
    #[serde(skip)]
    pub topics: Vec<Topic>,
}

struct Answer {
    took: Duration,
    id: Option<String>,
    controller: Option<i32>,
    brokers: BTreeMap<String, i32>,
    topics: Vec<Topic>,
}

/// Asks every broker. No broker answers: the cluster is empty, and each broker has its error.
pub fn survey(settings: &Arc<Settings>) -> Cluster {
    let mut answers = BTreeMap::new();
    ask_all(settings, settings.brokers.clone(), &mut answers);
    let known: BTreeMap<String, i32> =
        answers.values().flatten().flat_map(|answer| answer.brokers.clone()).collect();
    let others = known.keys().filter(|name| !answers.contains_key(*name)).cloned().collect();
    ask_all(settings, others, &mut answers);
    let mut cluster = Cluster { id: None, controller: None, brokers: Vec::new(), topics: Vec::new() };
    for (name, answer) in answers {
        let (answer_ms, error) = match &answer {
            Ok(answer) => (Some(u64::try_from(answer.took.as_millis()).unwrap_or(u64::MAX)), None),
            Err(trouble) => (None, Some(trouble.to_string())),
        };
        cluster.brokers.push(Broker { id: known.get(&name).copied(), name, answer_ms, error });
        if let Ok(answer) = answer
            && cluster.topics.len() <= answer.topics.len()
        {
            (cluster.id, cluster.controller) = (answer.id, answer.controller);
            cluster.topics = answer.topics;
        }
    }
    cluster
}

fn ask_all(
    settings: &Arc<Settings>,
    names: Vec<String>,
    answers: &mut BTreeMap<String, Result<Answer, Trouble>>,
) {
    for some in names.chunks(limits::PROBES_MAX) {
        std::thread::scope(|scope| {
            let asked: Vec<_> = some.iter().map(|name| (name, scope.spawn(|| ask(settings, name)))).collect();
            for (name, thread) in asked {
                let answer = thread.join().unwrap_or_else(|_| Err(Trouble("the question failed".into())));
                answers.insert(name.clone(), answer);
            }
        });
    }
}

fn ask(settings: &Settings, name: &str) -> Result<Answer, Trouble> {
    let alone = Arc::new(settings.with_brokers(vec![name.into()]));
    let begun = Instant::now();
    let link = Link::open(&alone)?;
    let metadata = link.metadata(None)?;
    let took = begun.elapsed();
    Ok(Answer {
        took,
        id: link.client().fetch_cluster_id(limits::ADMIN_SLICE),
        controller: native::controller(link.client(), limits::ADMIN_SLICE),
        brokers: metadata.brokers().iter().map(|b| (format!("{}:{}", b.host(), b.port()), b.id())).collect(),
        topics: topics::of(&metadata),
    })
}
