//! Flumen with a Kafka sink: its pipeline file, and one run over a file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flumen_tests::agent::Agent;
use flumen_tests::poll;
use flumen_tests::scene::Scene;
use flumen_tests::status::Status;
use serde::Serialize;

use super::ground::{BATCH_BYTES, Ground};
use super::lines::{self, Lines};

/// Longest run: ten times what a busy machine needs.
const LIMIT: Duration = Duration::from_secs(300);

/// The sink's promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Transactions that hold the cursor.
    ExactlyOnce,
    /// An idempotent producer.
    AtLeastOnce,
}

/// What is measured of Flumen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant {
    /// The promise.
    pub delivery: Delivery,
    /// Producers side by side.
    pub lanes: u32,
}

impl Variant {
    /// For tables and JSON.
    #[must_use]
    pub fn name(self) -> String {
        let lanes = if self.lanes > 1 { format!(", {} lanes", self.lanes) } else { String::new() };
        format!("flumen, {}{lanes}", self.delivery.word())
    }
}

impl Delivery {
    fn word(self) -> &'static str {
        match self {
            Self::ExactlyOnce => "exactly-once",
            Self::AtLeastOnce => "at-least-once",
        }
    }
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// From ready until the first events were delivered and acknowledged.
    pub connect_ms: f64,
    /// From the file's appearance until all was delivered and acknowledged.
    pub seconds: f64,
    /// Events per second by that.
    pub events_s: f64,
    /// Their bytes.
    pub mb_s: f64,
    /// Processor time of the agent meanwhile.
    pub cpu_ns_per_event: f64,
    /// Processor time of the broker meanwhile.
    pub broker_cpu_ns_per_event: f64,
    /// The most resident memory.
    pub peak_rss_mb: f64,
    /// Nanoseconds per event of each step, by its own clock (steps run side by side).
    pub ns_per_event: BTreeMap<&'static str, f64>,
}

/// The sink, with the settings that all producers share.
#[must_use]
pub fn sink(ground: &Ground, topic: &str, variant: Variant, more: &str) -> String {
    format!(
        "[sink.out]\ntype = \"kafka\"\nbrokers = [\"{}\"]\ntopic = \"{topic}\"\npartitioner = \"sticky\"\n\
         value = \"raw\"\ncompression = \"none\"\nbatch_bytes = {BATCH_BYTES}\n\
         delivery = \"{}\"\nlanes = {}\n{more}",
        ground.bootstrap(),
        variant.delivery.word(),
        variant.lanes
    )
}

/// A source that reads one file.
#[must_use]
pub fn tail(path: &Path) -> String {
    format!("[source.in]\ntype = \"tail\"\npaths = [\"{}\"]\n", path.display())
}

/// A scene with a pipeline.
///
/// # Errors
/// If it cannot be written.
pub fn scene(ground: &Ground, binary: &Path, pipeline: &str) -> Result<Scene> {
    let mut scene = Scene::below(ground.dir())?;
    scene.binary = Some(binary.to_owned());
    scene.pipeline(pipeline)?;
    Ok(scene)
}

/// Runs it once over a file. As with the yardsticks, the time begins when everything is connected and the transactional
/// id is there: a few lines are delivered, then the whole file appears.
///
/// # Errors
/// If it does not deliver everything.
pub fn run(
    ground: &Ground,
    binary: &Path,
    topic: &str,
    lines: &Lines,
    variant: Variant,
    more: &str,
) -> Result<Run> {
    let pipeline = tail(Path::new("{in}/*.log")) + &sink(ground, topic, variant, more);
    let scene = scene(ground, binary, &pipeline)?;
    lines::write_prelude(&scene.input().join("prelude.log"), lines.event_bytes)?;
    let mut agent = scene.start_ready()?;
    let ready = Instant::now();
    delivered(&scene, &mut agent, lines::PRELUDE)?;
    let connect_ms = ready.elapsed().as_secs_f64() * 1e3;
    let before = (agent.cpu_ns()?, ground.cpu_ns()?);
    let begin = Instant::now();
    fs::hard_link(&lines.path, scene.input().join("all.log"))?;
    let status = delivered(&scene, &mut agent, lines::PRELUDE + lines.events)?;
    let seconds = begin.elapsed().as_secs_f64();
    let (cpu_ns, memory) = (agent.cpu_ns()? - before.0, agent.memory()?);
    let broker_ns = ground.cpu_ns()? - before.1;
    agent.stop()?;
    let events = lines.events as f64;
    Ok(Run {
        connect_ms,
        seconds,
        events_s: events / seconds,
        mb_s: lines.bytes() as f64 / 1e6 / seconds,
        cpu_ns_per_event: cpu_ns as f64 / events,
        broker_cpu_ns_per_event: broker_ns as f64 / events,
        peak_rss_mb: memory.peak as f64 / 1e6,
        ns_per_event: steps(&status, events),
    })
}

fn delivered(scene: &Scene, agent: &mut Agent, events: u64) -> Result<Status> {
    let waited = poll::until_some("all events delivered and acknowledged", LIMIT, || {
        agent.expect_running()?;
        let status = ask(scene)?;
        Ok((status.metric("sink", "events_delivered") >= events).then_some(status))
    });
    waited.with_context(|| agent.log_tail())
}

fn steps(status: &Status, events: f64) -> BTreeMap<&'static str, f64> {
    let figures = [
        ("read", status.metric("source", "read_ns")),
        ("split", status.metric("source", "split_ns")),
        ("source_blocked", status.metric("source", "blocked_ns")),
        ("commit_encode", status.journal("encode_ns")),
        ("commit_write", status.journal("write_ns")),
        ("commit_sync", status.journal("sync_ns")),
        ("deliver", status.metric("sink", "deliver_ns")),
        ("flush", status.metric("sink", "flush_ns")),
    ];
    figures.into_iter().map(|(name, ns)| (name, ns as f64 / events)).collect()
}

/// The agent's status by its control socket: `flumen status` as a process, many times a second, would take from the
/// two cores what is being measured.
///
/// # Errors
/// If it does not answer.
pub fn ask(scene: &Scene) -> Result<Status> {
    // A socket's path has at most 107 bytes; through the directory's descriptor it is always short.
    let dir = File::open(&scene.data)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/control.sock", dir.as_raw_fd()));
    let mut socket = UnixStream::connect(path).context("the agent's control socket")?;
    socket.write_all(b"status\n")?;
    let mut reply = String::new();
    socket.read_to_string(&mut reply)?;
    Ok(Status(serde_json::from_str(&reply).with_context(|| format!("no status: {reply}"))?))
}
