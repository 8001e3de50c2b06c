//! Producers that only produce: a plain program on librdkafka, and Kafka's own `kafka-producer-perf-test`.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flumen_tests::kafka::install;
use flumen_tests::{locate, scene};
use serde::{Deserialize, Serialize};

use super::ground::{BATCH_BYTES, Ground, JAVA_LINGER_MS, LINGER_MS};
use super::lines::Lines;
use crate::build;
use crate::report::step;

/// One run of a producer: ten times what a busy machine needs.
const LIMIT: Duration = Duration::from_secs(300);
/// librdkafka's queue: more than the connection takes up while the program sleeps.
const QUEUE_EVENTS: u32 = 500_000;
/// Bytes in kafka-producer-perf-test's MB.
const JAVA_MB: f64 = 1_048_576.0;

/// What a producer reached.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Speed {
    /// Events per second.
    pub events_s: f64,
    /// Their bytes.
    pub mb_s: f64,
    /// Processor time of the program, if it says so.
    pub cpu_ns_per_event: Option<f64>,
    /// Processor time of the broker meanwhile.
    #[serde(default)]
    pub broker_cpu_ns_per_event: f64,
}

/// Builds flumen and the programs of `host/kafka/examples`; the path of the former. In one go: built apart, they
/// would ask for different features of what both depend on, and librdkafka be built twice.
///
/// # Errors
/// If they do not build.
pub fn build_all() -> Result<PathBuf> {
    step("building flumen and the yardsticks (release)", || {
        let mut cargo = build::cargo();
        cargo.current_dir(locate::repository()?);
        cargo.args(["build", "--quiet", "--release", "--package", "flumen", "--package", "flumen-kafka"]);
        build::check(cargo.args(["--bins", "--examples"]))
    })?;
    Ok(locate::target_dir()?.join("release").join("flumen"))
}

fn program(name: &str) -> Result<PathBuf> {
    Ok(locate::target_dir()?.join("release").join("examples").join(name))
}

/// A plain producer; `transaction_ms` 0: without transactions.
///
/// # Errors
/// If it does not deliver everything.
pub fn plain(ground: &Ground, topic: &str, lines: &Lines, transaction_ms: u32) -> Result<Speed> {
    let mut command = Command::new(program("plain_producer")?);
    command.args([&ground.bootstrap(), topic, &lines.events.to_string(), &lines.event_bytes.to_string()]);
    command.arg(transaction_ms.to_string());
    for (name, value) in [
        ("acks", "all".to_owned()),
        ("compression.type", "none".to_owned()),
        ("linger.ms", LINGER_MS.to_string()),
        ("batch.size", BATCH_BYTES.to_string()),
        ("queue.buffering.max.messages", QUEUE_EVENTS.to_string()),
    ] {
        command.arg(format!("{name}={value}"));
    }
    let before = ground.cpu_ns()?;
    let answer = scene::run(command, LIMIT)?;
    if !answer.status.success() {
        bail!("plain_producer: {}", answer.stderr.trim());
    }
    let speed: Speed =
        serde_json::from_str(&answer.stdout).with_context(|| format!("no figures: {}", answer.stdout))?;
    Ok(Speed { broker_cpu_ns_per_event: (ground.cpu_ns()? - before) as f64 / lines.events as f64, ..speed })
}

/// `kafka-producer-perf-test` with Java's heap as in its script.
///
/// # Errors
/// If it does not deliver everything.
pub fn java(ground: &Ground, topic: &str, lines: &Lines) -> Result<Speed> {
    let lib = &install::ensure()?.lib;
    let mut command = Command::new("java");
    command.args(["-Xmx512m", "-cp", &format!("{}/*", lib.display())]);
    command.args(["org.apache.kafka.tools.ProducerPerformance", "--topic", topic, "--throughput", "-1"]);
    command.args(["--bootstrap-server", &ground.bootstrap()]);
    command.args(["--num-records", &lines.events.to_string()]);
    command.args(["--record-size", &lines.event_bytes.to_string(), "--command-property", "acks=all"]);
    command.args(["compression.type=none", &format!("linger.ms={JAVA_LINGER_MS}")]);
    command.arg(format!("batch.size={BATCH_BYTES}"));
    let before = ground.cpu_ns()?;
    let answer = scene::run(command, LIMIT)?;
    let last = answer.stdout.lines().last().unwrap_or_default();
    let (events_s, mb_s) = java_figures(last)
        .with_context(|| format!("kafka-producer-perf-test: {last} {}", answer.stderr.trim()))?;
    let broker_cpu_ns_per_event = (ground.cpu_ns()? - before) as f64 / lines.events as f64;
    Ok(Speed { events_s, mb_s, cpu_ns_per_event: None, broker_cpu_ns_per_event })
}

/// `1000000 records sent, 106000.5 records/sec (61.46 MB/sec), 412.33 ms avg latency, …`
fn java_figures(line: &str) -> Option<(f64, f64)> {
    let (_, rest) = line.split_once(" records sent, ")?;
    let (events_s, rest) = rest.split_once(" records/sec (")?;
    let (mb_s, _) = rest.split_once(" MB/sec)")?;
    Some((events_s.trim().parse().ok()?, mb_s.trim().parse::<f64>().ok()? * JAVA_MB / 1e6))
}

/// What a consumer saw in one stretch of time.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Window {
    /// Events per second.
    pub events_s: f64,
    /// Those that were no older than a second when they came.
    pub in_time_events_s: f64,
    /// Age of half of them at most, when they came.
    pub p50_ms: Option<f64>,
    /// Of 99 in a hundred.
    pub p99_ms: Option<f64>,
    /// Of all.
    pub max_ms: Option<f64>,
}

/// What the age of an event counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgeOf {
    /// The time in a line of [`super::lines`].
    Body,
    /// When the generator should have made it, at so many events a second.
    Due(u64),
}

/// A consumer that measures the age of what it reads. Dropped, it is killed.
pub struct DelayConsumer(Option<Child>);

impl DelayConsumer {
    /// Starts it on a topic. Its time begins with the first event.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(ground: &Ground, topic: &str, seconds: u64, window_s: u64, age: AgeOf) -> Result<Self> {
        let mut command = Command::new(program("delay_consumer")?);
        command.args([&ground.bootstrap(), topic, &seconds.to_string(), &window_s.to_string()]);
        match age {
            AgeOf::Body => command.arg("body"),
            AgeOf::Due(events_s) => command.arg(events_s.to_string()),
        };
        // A few lines of JSON: they fit into the pipe.
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(Self(Some(command.spawn().context("cannot start delay_consumer")?)))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it saw no event.
    pub fn windows(mut self) -> Result<Vec<Window>> {
        let child = self.0.take().context("it was asked before")?;
        let answer = child.wait_with_output()?;
        if !answer.status.success() {
            bail!("delay_consumer ended with {}", answer.status);
        }
        let text = String::from_utf8(answer.stdout)?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

impl Drop for DelayConsumer {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take()
            && child.kill().is_ok()
        {
            drop(child.wait());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_java_is_read() {
        let line = "1000000 records sent, 106000.5 records/sec (61.00 MB/sec), 412.33 ms avg latency, 604.00 ms max latency, 400 ms 50th.";
        let (events_s, mb_s) = java_figures(line).unwrap();
        assert!((events_s - 106_000.5).abs() < 0.01 && (mb_s - 63.96).abs() < 0.01);
    }
}
