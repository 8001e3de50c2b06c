//! `cargo xtask bench kafka`: files to Kafka, beside producers that only produce, and beside Flume.
//!
//! One broker on this machine, four partitions, acks=all, no compression, the same linger and batch size for every
//! producer. Broker, agent and yardsticks share the machine's cores, so only figures of one run, in interleaved
//! rounds, say something about each other.

mod agent;
mod ground;
mod kills;
mod lines;
mod peer;
mod sustained;
mod table;
mod throughput;
mod yardstick;

use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use self::ground::Ground;
use super::machine;

/// How much, and what. Without one of `--sustained`, `--table` and `--kills`: throughput.
#[derive(clap::Args)]
pub struct Arguments {
    /// Bytes of each run's input, in MB
    #[arg(long, default_value_t = 500)]
    size_mb: u64,
    /// Interleaved rounds
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Bytes of an event; the last size's figures stand at the top of the JSON
    #[arg(long, value_delimiter = ',', default_values_t = [170, 608], value_parser = clap::value_parser!(u32).range(64..65_536))]
    event_bytes: Vec<u32>,
    /// Leave Flume 1.11 out
    #[arg(long)]
    no_flume: bool,
    /// 100,000 events/s of 608 bytes for minutes: does the delay grow?
    #[arg(long)]
    sustained: bool,
    /// Batches of 200, 2,000 and 10,000 events at 30,000 events/s: reached rate, and delay at the end
    #[arg(long)]
    table: bool,
    /// SIGKILLs over the input: what is lost and what comes twice
    #[arg(long, default_value_t = 0)]
    kills: u32,
    /// Seconds of load; without it 180 for --sustained, 60 for each line of --table, 30 for --kills
    #[arg(long)]
    seconds: Option<u64>,
    /// A further line of the sink's options, such as 'transaction_interval = "1s"'
    #[arg(long)]
    sink: Vec<String>,
    /// One JSON object as the last line
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Further lines of the sink.
    fn sink(&self) -> String {
        self.sink.iter().map(|line| format!("{line}\n")).collect()
    }
}

/// Measures.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let binary = yardstick::build_all()?;
    let ground = Ground::new()?;
    let mut answer = Map::new();
    if !arguments.sustained && !arguments.table && arguments.kills == 0 {
        let mut all = Vec::new();
        for event_bytes in &arguments.event_bytes {
            all.push(throughput::run(&ground, &binary, *event_bytes as usize, arguments)?);
        }
        all.iter().for_each(throughput::Figures::print);
        let sizes: Vec<Value> = all.iter().map(throughput::Figures::json).collect();
        let last = sizes.last().context("no event size was given")?;
        answer.extend(last.as_object().cloned().unwrap_or_default());
        answer.insert("sizes".to_owned(), json!(sizes));
    }
    if arguments.sustained {
        answer.insert("sustained".to_owned(), sustained::run(&ground, &binary, arguments)?);
    }
    if arguments.table {
        answer.insert("table".to_owned(), table::run(&ground, &binary, arguments)?);
    }
    if arguments.kills > 0 {
        answer.insert("kills".to_owned(), kills::run(&ground, &binary, arguments)?);
    }
    answer.insert("machine".to_owned(), machine::describe());
    if arguments.json {
        println!("{}", Value::Object(answer));
    }
    Ok(ExitCode::SUCCESS)
}
