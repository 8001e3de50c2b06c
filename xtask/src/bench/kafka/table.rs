//! S3's table: 30,000 events/s, and what becomes of them with batches of 200, 2,000 and 10,000 events.
//!
//! Lines are written into a file at that rate; each begins with the time of its writing, and a consumer looks how
//! old it is when it comes. There the batch decided whether Flume kept up: with 10,000 it did, with 2,000 it was
//! 15 minutes behind, with 200 more than an hour.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Arguments;
use super::agent::{self, Delivery, Variant};
use super::ground::{Ground, remove};
use super::lines::{Writer, write_prelude};
use super::peer::{self, Channel, Flume};
use super::sustained::row;
use super::yardstick::{AgeOf, DelayConsumer, Window};
use crate::report::step;

const EVENTS_S: u64 = 30_000;
const EVENT_BYTES: usize = 608;
const SECONDS: u64 = 60;
/// The last stretch is what the table shows.
const WINDOW_S: u64 = 5;
const BATCHES: [u32; 3] = [200, 2_000, 10_000];
/// Past it, a batch goes on with fewer events: for what comes last.
const BATCH_LINGER: &str = "1s";

/// Who.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// Batches of the size, transactions as they are by default.
    Flumen,
    /// Each batch a transaction.
    FlumenEachBatch,
    /// With a channel in memory, as in S3.
    Flume,
    /// With its channel on disk: what promises as much as our journal.
    FlumeFile,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Who::Flumen => "flumen",
            Who::FlumenEachBatch => "flumen, a transaction per batch",
            Who::Flume => "Flume 1.11, memory channel",
            Who::FlumeFile => "Flume 1.11, file channel",
        }
    }
}

/// Measures.
///
/// # Errors
/// If nothing comes.
pub fn run(ground: &Ground, binary: &Path, arguments: &Arguments) -> Result<Value> {
    let seconds = arguments.seconds.unwrap_or(SECONDS);
    let mut rows = Vec::new();
    for batch in BATCHES {
        for who in [Who::Flumen, Who::FlumenEachBatch, Who::Flume, Who::FlumeFile] {
            if matches!(who, Who::Flume | Who::FlumeFile) && arguments.no_flume {
                continue;
            }
            let window = step(&format!("{}, batches of {batch}, {seconds} s", who.name()), || {
                measure(ground, binary, who, batch, seconds, &arguments.sink())
            })?;
            eprintln!("    {}", row(&window));
            rows.push((who, batch, window));
        }
    }
    println!("\n{EVENTS_S} events/s of {EVENT_BYTES} bytes: the last {WINDOW_S} of {seconds} s");
    println!("{:<34} {:>7} {:>10} {:>8} {:>8} {:>8}", "", "batch", "events/s", "p50 ms", "p99 ms", "max ms");
    for (who, batch, window) in &rows {
        println!("{:<34} {batch:>7} {}", who.name(), row(window));
    }
    let rows: Vec<Value> = rows
        .iter()
        .map(|(who, batch, window)| json!({ "who": who.name(), "batch_events": batch, "window": window }))
        .collect();
    Ok(
        json!({ "events_s": EVENTS_S, "event_bytes": EVENT_BYTES, "seconds": seconds, "window_s": WINDOW_S, "rows": rows }),
    )
}

fn measure(ground: &Ground, binary: &Path, who: Who, batch: u32, seconds: u64, more: &str) -> Result<Window> {
    let topic = format!("table-{}-{batch}", who as u8);
    let input = ground.path("table.log");
    remove(&input)?;
    // When these have come, everything is connected.
    write_prelude(&input, EVENT_BYTES)?;
    let windows = ground.with_topic(&topic, |topic| match who {
        Who::Flume | Who::FlumeFile => {
            let channel = if who == Who::Flume { Channel::Memory } else { Channel::File };
            let flume = Flume::new(ground, topic, &input, channel, batch)?;
            let _daemon = flume.start()?;
            observe(ground, topic, &input, seconds).with_context(|| flume.log_tail())
        }
        _ => {
            let scene = agent::scene(ground, binary, &pipeline(ground, topic, &input, who, batch, more))?;
            let agent = scene.start_ready()?;
            observe(ground, topic, &input, seconds).with_context(|| agent.log_tail())
        }
    })?;
    remove(&input)?;
    windows.last().copied().context("no window")
}

fn observe(ground: &Ground, topic: &str, input: &Path, seconds: u64) -> Result<Vec<Window>> {
    peer::wait_growth(ground, topic, 0)?;
    let consumer = DelayConsumer::start(ground, topic, seconds, WINDOW_S, AgeOf::Body)?;
    let writer = Writer::start(input, EVENTS_S, u64::MAX, EVENT_BYTES)?;
    let windows = consumer.windows();
    writer.stop()?;
    windows
}

fn pipeline(ground: &Ground, topic: &str, input: &Path, who: Who, batch: u32, more: &str) -> String {
    let variant = Variant { delivery: Delivery::ExactlyOnce, lanes: 1 };
    let transaction = match who {
        Who::FlumenEachBatch => format!("transaction_bytes = {}\n", batch as usize * EVENT_BYTES),
        _ => String::new(),
    };
    let sink = agent::sink(ground, topic, variant, &(transaction + more));
    format!(
        "[batch]\nrows = {batch}\nbytes = \"16 MiB\"\nlinger = \"{BATCH_LINGER}\"\n{}{sink}",
        agent::tail(input)
    )
}
