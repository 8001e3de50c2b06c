//! `flumen kafka lag`: how far behind consumer groups are.

use flumen_kafka::admin::Link;
use flumen_kafka::admin::groups::{self, Group};

use super::connection::Connection;
use super::table;
use crate::cmd::print_json;
use crate::exit::Failure;

/// Arguments of `flumen kafka lag`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The group.
    #[arg(required_unless_present = "all")]
    group: Option<String>,
    /// All groups.
    #[arg(long, conflicts_with = "group")]
    all: bool,
}

/// Asks and prints.
pub fn run(args: &Args, connection: &Connection, is_json: bool) -> Result<(), Failure> {
    let link = Link::open(&connection.settings)?;
    let topics = groups::topics(&link)?;
    let names = match &args.group {
        Some(group) => vec![group.clone()],
        None => groups::names(&link)?,
    };
    let mut found = Vec::new();
    for name in &names {
        found.extend(groups::describe(&link, name, &topics)?);
    }
    if let (Some(group), true) = (&args.group, found.is_empty()) {
        let known = groups::names(&link)?.join(", ");
        let known =
            if known.is_empty() { "there are none".to_string() } else { format!("there are: {known}") };
        return Err(anyhow::anyhow!("no group {group:?} has offsets or members; {known}").into());
    }
    if is_json {
        return print_json(&found);
    }
    if args.all {
        let rows: Vec<Vec<String>> = found.iter().map(summary).collect();
        print!("{}", table(&["group", "state", "members", "partitions", "lag"], &rows));
        return Ok(());
    }
    found.iter().for_each(print);
    Ok(())
}

fn summary(group: &Group) -> Vec<String> {
    vec![
        group.name.clone(),
        group.state.clone(),
        group.members.to_string(),
        group.partitions.len().to_string(),
        group.lag().to_string(),
    ]
}

fn print(group: &Group) {
    println!("group {}: {}, {} members, lag {}\n", group.name, group.state, group.members, group.lag());
    let number = |value: Option<i64>| value.map_or("-".to_string(), |value| value.to_string());
    let rows: Vec<Vec<String>> = group
        .partitions
        .iter()
        .map(|lag| {
            vec![
                lag.topic.clone(),
                lag.partition.to_string(),
                number(lag.committed),
                number(lag.end),
                number(lag.lag),
                lag.member.clone().unwrap_or_default(),
            ]
        })
        .collect();
    print!("{}", table(&["topic", "partition", "committed", "end", "lag", "member"], &rows));
    for lag in group.partitions.iter().filter(|lag| lag.lost > 0) {
        println!(
            "{} records of {} partition {} were deleted before the group read them",
            lag.lost, lag.topic, lag.partition
        );
    }
}
