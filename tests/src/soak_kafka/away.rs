//! Memory while the broker is away and the input goes on: bounded, and everything arrives afterwards.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::stage::{Input, Stage};
use super::{Flow, KafkaSoak, Mix, Plugin};
use crate::agent::Agent;
use crate::limits;
use crate::oracle::Verdict;

/// How the broker is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Absence {
    /// SIGSTOP: connections stay open and nobody answers.
    Stopped,
    /// SIGKILL: connections are refused.
    Killed,
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Away {
    /// How the broker is away.
    pub absence: Absence,
    /// How long.
    pub lasts: Duration,
    /// Rate, directory, binary, seed and lanes; what it says about harm does not count.
    pub soak: KafkaSoak,
}

/// What came of it. Memory is resident and of the agent's own (without pages of files).
#[derive(Debug, Clone, Serialize)]
pub struct AwayReport {
    /// How the broker was away.
    pub absence: Absence,
    /// How long.
    pub away_seconds: f64,
    /// Lines written in all.
    pub lines: u64,
    /// Lines written while the broker was away.
    pub lines_away: u64,
    /// Most memory before.
    pub before_bytes: u64,
    /// Most memory in the first third of the absence.
    pub early_bytes: u64,
    /// Most memory in the last third.
    pub late_bytes: u64,
    /// Most memory on the way back.
    pub drain_bytes: u64,
    /// From the broker's return until everything had arrived.
    pub drain_seconds: f64,
    /// The oracle.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// To repeat it.
    pub seed: u64,
}

impl fmt::Display for AwayReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        let Self { absence, away_seconds, lines, lines_away, drain_seconds, verdict, seed, .. } = self;
        write!(
            formatter,
            "broker {absence:?} for {away_seconds:.0} s, {lines} lines, {lines_away} of them meanwhile; MiB before {}, first third {}, last third {}, drain {}; drained in {drain_seconds:.1} s, seed {seed}\n  {verdict}",
            mib(self.before_bytes),
            mib(self.early_bytes),
            mib(self.late_bytes),
            mib(self.drain_bytes),
        )
    }
}

/// Delivery before the broker goes.
const BEFORE: Duration = Duration::from_secs(5);
/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Runs it.
///
/// # Errors
/// If something else than the promise breaks.
pub fn run(away: &Away) -> Result<AwayReport> {
    let soak =
        KafkaSoak { flow: Flow::FileToKafka, mix: Mix::default(), plugin: Plugin::None, ..away.soak.clone() };
    let mut stage = Stage::new(&soak)?;
    let result = perform(&mut stage, away);
    if soak.keep || result.as_ref().map_or(true, |report| !report.verdict.holds()) {
        stage.keep();
    }
    result.with_context(|| format!("the broker away, with seed {}", soak.seed))
}

fn perform(stage: &mut Stage, away: &Away) -> Result<AwayReport> {
    let Input::Files(generator) = stage.start_input()? else { anyhow::bail!("no files") };
    stage.start_agents()?;
    agent(stage)?.wait_ready()?;
    let before_bytes = most_memory(stage, BEFORE)?;
    let lines = || generator.written().iter().sum::<u64>();
    let lines_before = lines();
    let gone = Instant::now();
    match away.absence {
        Absence::Stopped => stage.broker.pause()?,
        Absence::Killed => stage.broker.kill()?,
    }
    let third = away.lasts / 3;
    let early_bytes = most_memory(stage, third)?;
    most_memory(stage, third)?;
    let late_bytes = most_memory(stage, third)?;
    let lines_away = lines() - lines_before;
    let written = generator.stop()?;
    match away.absence {
        Absence::Stopped => stage.broker.resume()?,
        Absence::Killed => stage.broker.restart()?,
    }
    let away_seconds = gone.elapsed().as_secs_f64();
    let back = Instant::now();
    let expected = written.iter().sum::<u64>();
    let mut drain_bytes = 0;
    let mut progress = (0, Instant::now());
    while progress.0 < expected && progress.1.elapsed() < limits::KAFKA_NO_PROGRESS {
        drain_bytes = drain_bytes.max(most_memory(stage, limits::KAFKA_LOOK)?);
        let count = stage.count()?;
        if count > progress.0 {
            progress = (count, Instant::now());
        }
    }
    let drain_seconds = back.elapsed().as_secs_f64();
    stage.drain(&written)?;
    Ok(AwayReport {
        absence: away.absence,
        away_seconds,
        lines: expected,
        lines_away,
        before_bytes,
        early_bytes,
        late_bytes,
        drain_bytes,
        drain_seconds,
        verdict: stage.judge(&written)?,
        seed: away.soak.seed,
    })
}

fn agent<'s>(stage: &'s mut Stage) -> Result<&'s mut Agent> {
    stage.hosts.first_mut().context("no scene")?.agent()
}

/// The most memory of its own that the agent had within a time.
fn most_memory(stage: &mut Stage, lasts: Duration) -> Result<u64> {
    let (start, mut most) = (Instant::now(), 0);
    while start.elapsed() < lasts {
        most = most.max(agent(stage)?.memory()?.anonymous);
        thread::sleep(LOOK);
    }
    Ok(most)
}
