//! `flumen kafka topics`: list, describe, make and delete.

use flumen_kafka::admin::offsets::Range;
use flumen_kafka::admin::topics::{Config, Topic};
use flumen_kafka::admin::{Link, offsets, sizes, topics};
use serde::Serialize;

use super::connection::{Connection, pair};
use super::table;
use crate::cmd::print_json;
use crate::exit::Failure;

/// Arguments of `flumen kafka topics`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// List Kafka's own topics too.
    #[arg(long)]
    all: bool,
    /// Read a few records of each partition to estimate how many bytes there are.
    #[arg(long)]
    sizes: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show partitions, offsets and configuration of a topic.
    Describe {
        /// Its name.
        name: String,
    },
    /// Make a topic.
    Create {
        /// Its name.
        name: String,
        /// How many partitions; the broker's default if not given.
        #[arg(long)]
        partitions: Option<i32>,
        /// How many copies of each; the broker's default if not given.
        #[arg(long)]
        replication: Option<i32>,
        /// A setting of the topic, as name=value.
        #[arg(long = "set", value_parser = pair, value_name = "NAME=VALUE")]
        configs: Vec<(String, String)>,
    },
    /// Delete a topic with everything in it.
    Delete {
        /// Its name.
        name: String,
        /// Really.
        #[arg(long)]
        yes: bool,
    },
}

/// Does it.
pub fn run(args: &Args, connection: &Connection, is_json: bool) -> Result<(), Failure> {
    let link = Link::open(&connection.settings)?;
    match &args.command {
        None => list(&link, args.all, args.sizes, is_json),
        Some(Command::Describe { name }) => describe(&link, name, is_json),
        Some(Command::Create { name, partitions, replication, configs }) => {
            topics::create(&link, name, *partitions, *replication, configs)?;
            println!("made {name}");
            Ok(())
        }
        Some(Command::Delete { name, yes: false }) => {
            Err(anyhow::anyhow!("deleting {name} deletes everything in it, at once; if so, add --yes").into())
        }
        Some(Command::Delete { name, yes: true }) => {
            topics::delete(&link, name)?;
            println!("deleted {name}");
            Ok(())
        }
    }
}

#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    topic: Topic,
    /// By the number of the partition; absent: it has no leader.
    offsets: Vec<Option<Range>>,
    records_at_most: i64,
    bytes_estimated: Option<u64>,
}

fn lines(link: &Link, topics: Vec<Topic>, with_sizes: bool) -> Result<Vec<Line>, Failure> {
    let ranges = offsets::ranges(link, &topics)?;
    let mut sizes = if with_sizes { sizes::estimate(link, &topics, &ranges)? } else { Default::default() };
    let line = |topic: Topic| {
        let of = |id| ranges.get(&(topic.name.clone(), id)).copied();
        let offsets: Vec<Option<Range>> = topic.partitions.iter().map(|partition| of(partition.id)).collect();
        let records_at_most = offsets.iter().flatten().map(|range| range.count()).sum();
        Line { bytes_estimated: sizes.remove(&topic.name), topic, offsets, records_at_most }
    };
    Ok(topics.into_iter().map(line).collect())
}

fn list(link: &Link, with_internal: bool, with_sizes: bool, is_json: bool) -> Result<(), Failure> {
    let mut topics = topics::list(link, None)?;
    topics.retain(|topic| with_internal || !topic.is_internal());
    let lines = lines(link, topics, with_sizes)?;
    if is_json {
        return print_json(&lines);
    }
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            let topic = &line.topic;
            let (leaderless, behind) = (topic.leaderless().count(), topic.under_replicated().count());
            let state = match (leaderless, behind) {
                (0, 0) => "ok".to_string(),
                (0, behind) => format!("{behind} BEHIND"),
                (leaderless, _) => format!("{leaderless} WITHOUT LEADER"),
            };
            let mut row = vec![
                topic.name.clone(),
                topic.partitions.len().to_string(),
                topic.replication().to_string(),
                line.records_at_most.to_string(),
                state,
            ];
            if with_sizes {
                row.insert(4, line.bytes_estimated.map_or("?".into(), flumen_config::format_size));
            }
            row
        })
        .collect();
    let mut head = vec!["topic", "partitions", "copies", "records", "state"];
    if with_sizes {
        head.insert(4, "about");
    }
    print!("{}", table(&head, &rows));
    Ok(())
}

#[derive(Serialize)]
struct Description {
    #[serde(flatten)]
    line: Line,
    configs: Vec<Config>,
}

fn describe(link: &Link, name: &str, is_json: bool) -> Result<(), Failure> {
    let topics = topics::list(link, Some(name))?;
    let line =
        lines(link, topics, true)?.pop().ok_or_else(|| anyhow::anyhow!("there is no topic {name:?}"))?;
    let configs = topics::configs(link, name)?;
    let description = Description { line, configs };
    if is_json {
        return print_json(&description);
    }
    let Description { line, configs } = &description;
    let about = line.bytes_estimated.map_or("?".into(), flumen_config::format_size);
    println!(
        "{name}: {} partitions, {} copies, at most {} records, about {about} before compression\n",
        line.topic.partitions.len(),
        line.topic.replication(),
        line.records_at_most
    );
    let brokers = |ids: &[i32]| ids.iter().map(i32::to_string).collect::<Vec<_>>().join(" ");
    let rows: Vec<Vec<String>> = line
        .topic
        .partitions
        .iter()
        .zip(&line.offsets)
        .map(|(partition, range)| {
            let offset = |value: Option<i64>| value.map_or("?".into(), |value| value.to_string());
            vec![
                partition.id.to_string(),
                partition.leader.map_or("NONE".into(), |leader| leader.to_string()),
                brokers(&partition.replicas),
                brokers(&partition.in_sync),
                offset(range.map(|range| range.first)),
                offset(range.map(|range| range.end)),
            ]
        })
        .collect();
    print!("{}", table(&["partition", "leader", "replicas", "in sync", "first", "end"], &rows));
    println!();
    for config in configs.iter().filter(|config| config.is_set) {
        println!("{} = {}", config.name, config.value.as_deref().unwrap_or("(secret)"));
    }
    for name in ["cleanup.policy", "max.message.bytes", "min.insync.replicas", "retention.ms"] {
        if let Some(config) = configs.iter().find(|config| config.name == name && !config.is_set) {
            println!("{name} = {} (default)", config.value.as_deref().unwrap_or_default());
        }
    }
    Ok(())
}
