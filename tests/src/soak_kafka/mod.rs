//! The soak with a real Kafka broker: a busy writer, agents, a broker and the network between them, all of which
//! are harmed at random moments, plugins that are swapped meanwhile, and the oracle at the end.
//!
//! - [`harm`]: what is done, in which mix, and the random choices in it.
//! - [`pipelines`]: the agents' configuration for each [`Flow`].
//! - [`feeder`]: a producer on another client, for the flows that begin in Kafka.
//! - `stage`, `acts`, `outcome`: one run: who takes part, what is done to them, and what came of it.
//! - [`away`]: memory while the broker is away, and the way back.
//!
//! What comes out of Kafka is read by `confluent-kafka` with `read_committed`, into a file per topic, partition and
//! key; then the oracle of files judges it: each sequence number exactly once over all topics, in order within
//! each of these files. That is what the sink promises: with one lane in each partition, with several per key.
//! Agents reach the broker through the proxy, producers and the oracle do not.

pub mod away;
pub mod feeder;
pub mod harm;
pub mod pipelines;

mod acts;
mod outcome;
mod stage;

use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

pub use crate::interceptors::Plugin;
use crate::oracle::Verdict;
pub use harm::{Mix, Tally};
pub use outcome::spread_keys;
use stage::Stage;

/// Where events come from and go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flow {
    /// Rotated files, agent, sink `kafka`.
    FileToKafka,
    /// Rotated files, a source-backed channel, sinks `kafka` and `file`.
    SourceBacked,
    /// A producer in Python with aborted transactions, source `kafka`, agent, files.
    KafkaToFile,
    /// Rotated files, an agent, a channel in Kafka, a second agent, files.
    Channel,
    /// No agent: the producer in Python straight to the oracle. Proves harm, producer and oracle.
    Bare,
}

/// The sink's promise that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Delivery {
    /// What has to hold.
    ExactlyOnce,
    /// What has to show duplicates: the control.
    AtLeastOnce,
}

/// What to do.
#[derive(Debug, Clone)]
pub struct KafkaSoak {
    /// From where to where.
    pub flow: Flow,
    /// The interceptors of the agent that reads.
    pub plugin: Plugin,
    /// How often each harm is done.
    pub mix: Mix,
    /// Of all random choices.
    pub seed: u64,
    /// Producers side by side in the sink; `None`: one, or three where there is a key.
    pub lanes: Option<u32>,
    /// The sink's promise.
    pub delivery: Delivery,
    /// The broker aborts old transactions as soon as it starts, before it has leaders for their partitions: it loses ends
    /// of transactions then (KAFKA-20734) far more often than with its defaults.
    pub is_broker_eager: bool,
    /// Bytes per second into the input.
    pub bytes_per_s: u64,
    /// Where to work; the system's temporary directory by default.
    pub dir: Option<PathBuf>,
    /// The binary; `None`: the one beside the running program.
    pub binary: Option<PathBuf>,
    /// Keep the directory at the end.
    pub keep: bool,
    /// Says how far it is.
    pub is_talkative: bool,
}

impl KafkaSoak {
    /// A soak with the defaults.
    #[must_use]
    pub fn new(flow: Flow, plugin: Plugin, mix: Mix, seed: u64) -> Self {
        Self {
            flow,
            plugin,
            mix,
            seed,
            lanes: None,
            delivery: Delivery::ExactlyOnce,
            is_broker_eager: false,
            bytes_per_s: 1_000_000,
            dir: None,
            binary: None,
            keep: false,
            is_talkative: false,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// From where to where.
    pub flow: Flow,
    /// Interceptors.
    pub plugin: Plugin,
    /// The sink's promise.
    pub delivery: Delivery,
    /// What was done.
    pub harm: Tally,
    /// The oracle.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The oracle over the quarantine, for the lines that `access-log` rejects.
    pub quarantine: Verdict,
    /// The oracle over the files beside Kafka, where there are some.
    pub beside: Option<Verdict>,
    /// Keys of a topic that were found in more than one partition.
    pub spread_keys: u64,
    /// Records that are in the topics and do not count, since their transaction was aborted.
    pub undone: u64,
    /// Transactions that the broker ended without telling all their partitions (KAFKA-20734).
    pub skipped_markers: u64,
    /// Good plugin files copied over a running one.
    pub swaps: u32,
    /// Broken plugin files copied over a running one.
    pub broken_swaps: u32,
    /// Rotations of the input.
    pub rotations: u64,
    /// Whole run.
    pub seconds: f64,
    /// To repeat it.
    pub seed: u64,
}

impl Report {
    /// True if nothing was lost, doubled or out of order.
    #[must_use]
    pub fn holds(&self) -> bool {
        let is_beside_whole = self.beside.as_ref().is_none_or(Verdict::holds);
        self.verdict.holds() && self.quarantine.holds() && self.spread_keys == 0 && is_beside_whole
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            flow,
            plugin,
            delivery,
            harm,
            verdict,
            quarantine,
            spread_keys,
            undone,
            seconds,
            seed,
            ..
        } = self;
        let (swaps, broken, rotations, skipped) =
            (self.swaps, self.broken_swaps, self.rotations, self.skipped_markers);
        let beside = self.beside.as_ref().map_or(String::new(), |it| format!("\n  files:      {it}"));
        write!(
            formatter,
            "{flow:?}, plugin {plugin:?}, {delivery:?}: {harm}; {swaps} swaps ({broken} broken), {rotations} rotations, {undone} records undone, {spread_keys} keys spread, {skipped} markers skipped by the broker, {seconds:.1} s, seed {seed}\n  output:     {verdict}\n  quarantine: {quarantine}{beside}"
        )
    }
}

/// Runs it, with a broker of its own.
///
/// # Errors
/// If something else than the promise breaks: an agent ends by itself, the broker does not start.
pub fn run(soak: &KafkaSoak) -> Result<Report> {
    let started = Instant::now();
    let mut stage = Stage::new(soak)?;
    let result = stage.perform(started);
    let is_control = soak.delivery != Delivery::ExactlyOnce;
    if soak.keep || result.as_ref().map_or(true, |report| !is_control && !report.holds()) {
        stage.keep();
    }
    result.with_context(|| format!("{:?} with seed {}", soak.flow, soak.seed))
}
