//! Flume 1.11 with its Kafka sink: TAILDIR, a file channel or one in memory.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flumen_tests::{agent, poll};
use serde::Serialize;
use tempfile::TempDir;

use super::super::flume::{self, Daemon};
use super::ground::{BATCH_BYTES, Ground, JAVA_LINGER_MS};
use super::lines::Lines;

/// It would need minutes for the whole input: measured over this time.
const RUN_TIME: Duration = Duration::from_secs(40);
/// Java starts, the agent starts, the connection is made; after a kill the channel is replayed before.
const FIRST_EVENT: Duration = Duration::from_secs(120);
/// Between two questions to the oracle, which cost 0.3 s of processor time each.
const LOOK: Duration = Duration::from_secs(2);

/// Flume's channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// On disk, synced.
    File,
    /// In memory, as in S3's table.
    Memory,
}

/// What was measured.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Run {
    /// Events per second, from the first one that came.
    pub events_s: f64,
    /// Their bytes.
    pub mb_s: f64,
    /// Processor time of the agent, Java's start included.
    pub cpu_ns_per_event: f64,
    /// The most resident memory.
    pub peak_rss_mb: f64,
}

/// An agent over an input, its state in a directory of its own.
pub struct Flume {
    lib: &'static Path,
    home: TempDir,
    configuration: String,
}

impl Flume {
    /// Sets one up; it does not run yet.
    ///
    /// # Errors
    /// If it cannot be installed.
    pub fn new(ground: &Ground, topic: &str, input: &Path, channel: Channel, batch: u32) -> Result<Self> {
        let lib = flumen_tests::kafka::flume::ensure()?;
        let home = ground.scratch("flume-")?;
        let configuration = configuration(ground, topic, input, home.path(), channel, batch);
        Ok(Self { lib, home, configuration })
    }

    /// Starts it, or starts it again after a kill.
    ///
    /// # Errors
    /// If java does not run here.
    pub fn start(&self) -> Result<Daemon> {
        flume::start_agent(self.lib, self.home.path(), &self.configuration)
    }

    /// The end of its log, for errors.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(12)..).unwrap_or_default().join("\n")
    }
}

/// Waits until the topic has more than `than`; the new end.
///
/// # Errors
/// If nothing comes.
pub fn wait_growth(ground: &Ground, topic: &str, than: u64) -> Result<u64> {
    poll::until_some("the topic to grow", FIRST_EVENT, || {
        Ok(Some(ground.end(topic)?).filter(|end| *end > than))
    })
}

/// Runs it for a while.
///
/// # Errors
/// If it delivers nothing.
pub fn run(ground: &Ground, topic: &str, lines: &Lines) -> Result<Run> {
    const BATCH: u32 = 5_000;
    let flume = Flume::new(ground, topic, &lines.path, Channel::File, BATCH)?;
    let daemon = flume.start()?;
    let first = wait_growth(ground, topic, 0).with_context(|| flume.log_tail())?;
    let begin = Instant::now();
    let (mut end, mut seconds) = (first, f64::NAN);
    while begin.elapsed() < RUN_TIME && end < lines.events {
        std::thread::sleep(LOOK);
        end = ground.end(topic)?;
        seconds = begin.elapsed().as_secs_f64();
    }
    let (cpu_ns, memory) = (agent::cpu_ns(daemon.0.id())?, agent::memory(daemon.0.id())?);
    let events_s = (end - first) as f64 / seconds;
    Ok(Run {
        events_s,
        mb_s: events_s * lines.event_bytes as f64 / 1e6,
        cpu_ns_per_event: cpu_ns as f64 / end as f64,
        peak_rss_mb: memory.peak as f64 / 1e6,
    })
}

fn configuration(
    ground: &Ground,
    topic: &str,
    input: &Path,
    home: &Path,
    channel: Channel,
    batch: u32,
) -> String {
    let home = home.display();
    let channel = match channel {
        Channel::File => format!(
            "a1.channels.c.type=file\na1.channels.c.checkpointDir={home}/state/cp\n\
             a1.channels.c.dataDirs={home}/state/data\n"
        ),
        Channel::Memory => "a1.channels.c.type=memory\n".to_owned(),
    };
    format!(
        "a1.sources=s\na1.sources.s.type=TAILDIR\na1.sources.s.filegroups=f\na1.sources.s.filegroups.f={}\n\
         a1.sources.s.positionFile={home}/state/pos.json\na1.sources.s.batchSize={batch}\n\
         a1.sources.s.maxBatchCount=9223372036854775807\na1.sources.s.channels=c\na1.channels=c\n{channel}\
         a1.channels.c.capacity=1000000\na1.channels.c.transactionCapacity={batch}\na1.sinks=k\n\
         a1.sinks.k.type=org.apache.flume.sink.kafka.KafkaSink\na1.sinks.k.channel=c\n\
         a1.sinks.k.kafka.bootstrap.servers={}\na1.sinks.k.kafka.topic={topic}\na1.sinks.k.flumeBatchSize={batch}\n\
         a1.sinks.k.kafka.producer.acks=all\na1.sinks.k.kafka.producer.compression.type=none\n\
         a1.sinks.k.kafka.producer.linger.ms={JAVA_LINGER_MS}\na1.sinks.k.kafka.producer.batch.size={BATCH_BYTES}\n",
        input.display(),
        ground.bootstrap(),
    )
}
