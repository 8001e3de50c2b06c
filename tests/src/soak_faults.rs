//! A soak with faults of the disk (`docs/faults.md`): what the faults are, and how an end is told where some events may be lost.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::Rng;
use rand::rngs::StdRng;

use crate::agent::Agent;
use crate::generator::Generator;
use crate::interceptors::Plugin;
use crate::output::LineCounter;
use crate::scene::Scene;
use crate::soak_tidy::Tidy;
use crate::{flow, limits, poll};

/// With faults one life in so many has a disk that fails so often that the agent gives up.
const BAD_DISK_ODDS: u32 = 5;
/// Between two looks through a whole output.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Lines of each file that are waited for where others may be lost: some of them are kept, whatever the plugin drops.
const LINES_BEHIND_LOSSES: u64 = 50;

/// Faults of one life, as `FLUMEN_FAULTS` has them. Never the same twice: a start that is refused would be refused for ever.
#[must_use]
pub fn faults(random: &mut StdRng) -> String {
    let seed = random.random_range(0..1_000_000);
    if random.random_ratio(1, BAD_DISK_ODDS) {
        return format!(
            "seed={seed},eio=0.2@journal.sync,eio=0.05@journal.write,eio=0.01@journal.name,eio=0.02@read"
        );
    }
    let full_ms = random.random_range(50..400);
    format!(
        "seed={seed},eio=0.01@sync,eio=0.005@write,eio=0.005@name,eio=0.005@read,enospc=0.01,full=1000:{full_ms}"
    )
}

/// Events that all starts of an agent so far said were lost with the memory of the one before.
///
/// # Errors
/// If the log cannot be read.
pub fn counted_lost(scene: &Scene) -> Result<u64> {
    counted_in(&fs::read_to_string(scene.log())?)
}

fn counted_in(log: &str) -> Result<u64> {
    let lines = log.lines().filter(|line| line.contains("were in memory when the agent died, and are lost"));
    let number = |line: &str, name: &str| {
        let (_, behind) = line.split_once(&format!(" {name}="))?;
        behind.split_whitespace().next()?.parse::<u64>().ok()
    };
    let loss = |line: &str| Some((number(line, "acknowledged")?, number(line, "events")?));
    let losses = lines.map(|line| loss(line).with_context(|| format!("no numbers in: {line}")));
    let mut losses: Vec<(u64, u64)> = losses.collect::<Result<_>>()?;
    // A start that dies before its own first commit leaves the same loss to the next one, which says it again.
    losses.dedup();
    Ok(losses.iter().map(|(_, events)| events).sum())
}

/// Stops a generator some lines later: what it writes from now on is the end of each file.
///
/// # Errors
/// If it does not write.
pub fn stop_behind(generator: Generator) -> Result<Vec<u64>> {
    let before = generator.written();
    poll::until("more lines to be written", limits::CONDITION, || {
        let written = generator.written();
        Ok(written.iter().zip(&before).all(|(now, before)| *now > before + LINES_BEHIND_LOSSES))
    })?;
    generator.stop()
}

/// Waits until everything that is not lost is there: the last line of each file, behind which nothing of it comes, and as many lines, in the
/// output and in quarantine, as there have to be. The last lines alone would not do: what was written to a file just before it was
/// rotated may come behind the first lines of the next one, and what is rejected takes a way of its own.
///
/// # Errors
/// If it does not come.
pub fn wait_all(
    scene: &Scene,
    agent: &mut Agent,
    tidy: &Tidy,
    plugin: Plugin,
    written: &[u64],
) -> Result<()> {
    let last = |lines: &u64| (0..*lines).rev().find(|seq| plugin.keeps(*seq));
    let last: Vec<Option<u64>> = written.iter().map(last).collect();
    let expected = plugin.kept(written).saturating_sub(counted_lost(scene)?);
    let (mut counter, mut looked) = (LineCounter::default(), None::<Instant>);
    let mut wait_counted = |agent: &mut Agent| {
        poll::until_counted("everything in the output", flow::DELIVERED, expected, || {
            agent.expect_running()?;
            Ok(counter.count(&scene.output)? + tidy.lines)
        })
    };
    wait_counted(agent)?;
    poll::until("the last lines in the output", flow::DELIVERED, || {
        agent.expect_running()?;
        if looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return Ok(false);
        }
        looked = Some(Instant::now());
        tidy.has(scene, &last)
    })?;
    // What a kill takes back counted as well, as long as it was there: it is gone before anything comes behind it.
    wait_counted(agent)?;
    let rejected = written.iter().flat_map(|lines| 0..*lines).filter(|seq| plugin.rejects(*seq)).count();
    poll::until("what is rejected in quarantine", flow::DELIVERED, || {
        Ok(rejected == 0 || scene.quarantine()?.len() >= rejected)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

    use super::*;

    #[test]
    fn a_loss_that_is_said_again_counts_once_and_one_as_large_twice() {
        let line = |events: u64, acknowledged: u64| {
            format!(
                "ERROR these events were in memory when the agent died, and are lost channel=main events={events} acknowledged={acknowledged}\n"
            )
        };
        let log =
            [line(316, 10), line(316, 10), "INFO ready\n".to_owned(), line(316, 400), line(5, 900)].concat();
        assert_eq!(counted_in(&log).unwrap(), 316 + 316 + 5);
        assert!(counted_in(&line(1, 2).replace(" acknowledged", " since")).is_err());
    }
}
