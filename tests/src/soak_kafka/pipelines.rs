//! The agents' pipelines. Small transactions and segments: much happens at their borders, and a transaction is
//! open at almost any moment.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use super::{Delivery, Flow, KafkaSoak, Plugin};
use crate::generator::status_of;

/// `transaction_timeout` of the sink, short so that a pause outlives it now and then.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(6);
/// `transaction_interval` of the sink, by seed: commits again and again, or kills between two of them.
const INTERVALS_MS: [u32; 3] = [20, 100, 400];
/// Partitions of every topic.
pub const PARTITIONS: u32 = 3;
/// After a SIGKILL the group keeps a member's partitions for it this long.
const SESSION: &str = "session_timeout = \"3s\"\n";
/// Where there is one topic, and the prefix of topics by status.
const TOPIC: &str = "soak";
/// Behind the name of the output: the directory of the files beside Kafka.
pub const BESIDE: &str = "-beside";
/// Producers of a sink whose records have a key, if they are not said.
const LANES: u32 = 3;
/// Their largest number, where it changes between two lives.
const LANES_MAX: u32 = 4;

/// The topics that have to be there.
#[must_use]
pub fn topics(soak: &KafkaSoak) -> Vec<String> {
    match (soak.flow, soak.plugin) {
        (Flow::Channel, _) => Vec::new(),
        (Flow::FileToKafka | Flow::SourceBacked, Plugin::AccessLog) => {
            let mut statuses: Vec<u16> = (0..100).map(status_of).collect();
            statuses.sort_unstable();
            statuses.dedup();
            statuses.iter().map(|status| format!("{TOPIC}-{status}")).collect()
        }
        _ => vec![TOPIC.to_owned()],
    }
}

/// The pipeline of each agent, in the order of the flow.
#[must_use]
pub fn texts(soak: &KafkaSoak, brokers: &str) -> Vec<String> {
    let interceptors = soak.plugin.interceptors();
    let journal = "[journal]\nsegment = \"4 MiB\"\n";
    let tail = format!("[source.in]\ntype = \"tail\"\npaths = [\"{{in}}/web-*.log*\"]\n{interceptors}");
    let file = "[sink.out]\ntype = \"file\"\npath = \"{out}/all.log\"\nroll_size = \"2 MiB\"\nflush_interval = \"100ms\"\n";
    let channel = format!(
        "[channel.shared]\nkind = \"kafka\"\nbrokers = [\"{brokers}\"]\ntopic = \"{TOPIC}-channel\"\n"
    );
    match soak.flow {
        Flow::Bare => Vec::new(),
        Flow::FileToKafka => vec![format!("{tail}{journal}{}", sink(soak, brokers))],
        Flow::SourceBacked => {
            let beside =
                file.replace("sink.out", "sink.beside").replace("{out}/", &format!("{{out}}{BESIDE}/"));
            let channel = "[channel]\nkind = \"source-backed\"\n";
            vec![format!("{tail}{channel}{journal}{}{beside}", sink(soak, brokers))]
        }
        Flow::KafkaToFile => {
            // A known name comes back at once; without one the group waits until the old member is given up.
            let instance = if soak.plugin == Plugin::None { "" } else { "instance = \"one\"\n" };
            let source = format!(
                "[source.in]\ntype = \"kafka\"\nbrokers = [\"{brokers}\"]\ntopics = [\"{TOPIC}\"]\ngroup = \"{TOPIC}\"\nstart = \"earliest\"\n{SESSION}{instance}"
            );
            vec![format!("{source}{interceptors}{journal}{file}")]
        }
        Flow::Channel => vec![format!("{tail}{channel}"), format!("{channel}{file}")],
    }
}

/// Whether the number of lanes may change between two lives: with a key, since order is then kept per key.
#[must_use]
pub fn may_change_lanes(soak: &KafkaSoak) -> bool {
    soak.flow == Flow::FileToKafka && soak.lanes.is_none() && soak.plugin != Plugin::None
}

/// The same soak with another number of lanes.
#[must_use]
pub fn with_other_lanes(soak: &KafkaSoak, random: &mut StdRng) -> KafkaSoak {
    KafkaSoak { lanes: Some(random.random_range(1..=LANES_MAX)), ..soak.clone() }
}

fn sink(soak: &KafkaSoak, brokers: &str) -> String {
    let delivery = match soak.delivery {
        Delivery::ExactlyOnce => "exactly-once",
        Delivery::AtLeastOnce => "at-least-once",
    };
    let (topic, key, lanes) = match soak.plugin {
        Plugin::None => (format!("topic = \"{TOPIC}\""), "none", 1),
        Plugin::Filter | Plugin::Dedup => (format!("topic = \"{TOPIC}\""), "header.file", LANES),
        Plugin::AccessLog => {
            let topic = format!("topic = \"{TOPIC}-{{header.status}}\"\ntopics = [\"{TOPIC}-*\"]");
            (topic, "header.status", LANES)
        }
    };
    let lanes = if soak.flow == Flow::SourceBacked { 1 } else { soak.lanes.unwrap_or(lanes) };
    let interval_ms = INTERVALS_MS.get(soak.seed as usize % INTERVALS_MS.len()).copied().unwrap_or_default();
    let timeout_s = TRANSACTION_TIMEOUT.as_secs();
    format!(
        "[sink.out]\ntype = \"kafka\"\nbrokers = [\"{brokers}\"]\n{topic}\nkey = \"{key}\"\nlanes = {lanes}\ndelivery = \"{delivery}\"\ntransaction_interval = \"{interval_ms}ms\"\ntransaction_bytes = \"1 MiB\"\ntransaction_timeout = \"{timeout_s}s\"\n"
    )
}
