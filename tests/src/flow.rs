//! Lines on their way from a generator through agents into files: waited for, and judged, over several outputs at once.

use std::time::Duration;

use anyhow::Result;

use crate::agent::Agent;
use crate::generator::{Generator, Load, Rotation};
use crate::oracle::Verdict;
use crate::output::LineCounter;
use crate::scene::Scene;
use crate::{oracle, output, poll};

/// Until something more is delivered, on a busy machine, after a broker's restart and an open transaction's end.
pub const DELIVERED: Duration = Duration::from_secs(120);

/// Writes three files, rotated by rename, into the scene's input: 1 MB/s.
///
/// # Errors
/// If they cannot be made.
pub fn writer(scene: &Scene, seed: u64) -> Result<Generator> {
    Generator::start(load(scene, seed))
}

/// What [`writer`] writes.
#[must_use]
pub fn load(scene: &Scene, seed: u64) -> Load {
    Load {
        dir: scene.input(),
        files: 3,
        bytes_per_s: 1_000_000,
        rotate_bytes: 700_000,
        rotation: Rotation::Rename,
        lines: None,
        has_malformed: false,
        has_doubles: false,
        seed,
    }
}

/// Lines in all outputs.
fn count(outputs: &[&Scene], counters: &mut [LineCounter]) -> Result<u64> {
    outputs.iter().zip(counters).map(|(scene, counter)| counter.count(&scene.output)).sum()
}

/// Waits until the outputs together have so many lines. If they do not, says what is there: the verdict tells the rest.
///
/// # Errors
/// If an output cannot be read.
pub fn wait_lines(outputs: &[&Scene], agents: &mut [&mut Agent], expected: u64) -> Result<()> {
    let mut counters: Vec<LineCounter> = outputs.iter().map(|_| LineCounter::default()).collect();
    let waited = poll::until_counted("all events in the outputs", DELIVERED, expected, || {
        agents.iter_mut().try_for_each(|agent| agent.expect_running())?;
        count(outputs, &mut counters)
    });
    if let Err(error) = waited {
        let logs: Vec<String> = agents.iter().map(|agent| agent.log_tail()).collect();
        eprintln!("{error:#}\n{}", logs.join("\n"));
    }
    Ok(())
}

/// Behind the end of the agents of these outputs: what a sink on a Kafka channel took back, because its group changed just when it was
/// asked to stop, is delivered by its next start. Says nothing if it is not: the verdict does.
///
/// # Errors
/// If an output cannot be read, or an agent does not start or end well.
pub fn finish(outputs: &[&Scene], expected: u64) -> Result<()> {
    /// The group may change again.
    const STARTS_MAX: u32 = 3;
    for _ in 0..STARTS_MAX {
        let mut counters: Vec<LineCounter> = outputs.iter().map(|_| LineCounter::default()).collect();
        let there = count(outputs, &mut counters)?;
        if there >= expected {
            break;
        }
        eprintln!("{there} of {expected} lines are there at the end: once more");
        let mut agents: Vec<Agent> =
            outputs.iter().map(|scene| scene.start_ready()).collect::<Result<_>>()?;
        wait_lines(outputs, &mut agents.iter_mut().collect::<Vec<_>>(), expected)?;
        agents.into_iter().try_for_each(Agent::stop)?;
    }
    Ok(())
}

/// Waits until the outputs have got on by so many lines, so that a kill hits work under way.
///
/// # Errors
/// If they do not.
pub fn wait_progress(outputs: &[&Scene], lines: u64) -> Result<()> {
    let mut counters: Vec<LineCounter> = outputs.iter().map(|_| LineCounter::default()).collect();
    let before = count(outputs, &mut counters)?;
    poll::until("progress", DELIVERED, || Ok(count(outputs, &mut counters)? >= before + lines))
}

/// Every line once over all outputs, in order within a file in each.
///
/// # Errors
/// If an output cannot be read.
pub fn judge(outputs: &[&Scene], written: &[u64], is_kept: impl Fn(u64) -> bool) -> Result<Verdict> {
    let mut all = output::Sequences::new();
    for (number, scene) in outputs.iter().enumerate() {
        let own = output::sequences(&scene.output)?;
        all.extend(own.into_iter().map(|(bucket, files)| (format!("{number}/{bucket}"), files)));
    }
    oracle::judge(&all, written, is_kept)
}
