//! Multiline events against random rotations, stops and crashes: each event whole, exactly once.
//!
//! Half of the rotations fall into the middle of an event: its first line ends the old file, the rest
//! begins the new one. Run one seed with `FLUMEN_SEED=n`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

mod support;

use std::io::Write;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::{Journal, Setup};

#[test]
fn every_event_whole_and_exactly_once() {
    let one = std::env::var("FLUMEN_SEED").ok().and_then(|text| text.parse::<u64>().ok());
    for seed in one.map_or(0..20, |seed| seed..seed + 1) {
        println!("seed {seed}");
        schedule(seed);
    }
}

fn schedule(seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("a.log");
    let journal = Journal::default();
    let mut setup = Setup::tail(path.to_str().unwrap())
        .text("multiline_start", "^E")
        .ms("last_line_timeout", 3_600_000)
        .ms("multiline_timeout", 3_600_000)
        .ms("rescan_interval", 10);
    setup.batch.rows = random.random_range(1..6);
    let open = || std::fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
    let mut file = open();
    let mut run = None;
    let mut events: Vec<String> = Vec::new();
    let mut trace: Vec<String> = Vec::new();
    for step in 0..40 {
        match random.random_range(0..10) {
            0..5 => {
                for _ in 0..random.random_range(1..8) {
                    let lines = random.random_range(0..4);
                    let rest: String = (0..lines).map(|line| format!("\n at {line}")).collect();
                    events.push(format!("E{}{rest}", events.len()));
                    file.write_all(format!("{}\n", events.last().unwrap()).as_bytes()).unwrap();
                }
                trace.push("write".into());
            }
            5..7 => match run.take() {
                None => run = Some(setup.start(&journal)),
                Some(running) if random.random_bool(0.5) => running.stop(),
                Some(running) => {
                    let committed = random.random_range(0..4);
                    running.crash(committed);
                    trace.push(format!("crash {committed}"));
                }
            },
            _ => {
                // The file must be known before it is rotated out of the glob.
                events.push(format!("E{}", events.len()));
                file.write_all(format!("{}\n", events.last().unwrap()).as_bytes()).unwrap();
                let running = run.take().unwrap_or_else(|| setup.start(&journal));
                journal.wait(&format!("seed {seed} step {step}: {trace:?}"), |seen| {
                    seen.len() + 1 >= events.len()
                });
                journal.wait_emissions(1);
                journal.commit(usize::MAX);
                let knows = events.len() > 1 && std::fs::metadata(&path).unwrap().len() > 6;
                if knows && random.random_bool(0.3) {
                    running.crash(0)
                } else {
                    run = Some(running)
                }
                let (last, within) = (events.len() - 1, random.random_bool(0.5));
                if knows {
                    std::fs::rename(&path, root.path().join(format!("a.log.{step}"))).unwrap();
                    file = open();
                    if within {
                        events[last].push_str("\n at the other file");
                        file.write_all(b" at the other file\n").unwrap();
                    }
                    events.push(format!("E{}", events.len()));
                    file.write_all(format!("{}\n", events.last().unwrap()).as_bytes()).unwrap();
                }
                trace.push(format!("rotate {knows} within {within} running {}", run.is_some()));
            }
        }
    }
    let running = run.take().unwrap_or_else(|| setup.start(&journal));
    file.write_all(b"E the end\n").unwrap();
    journal.wait(&format!("seed {seed}: {trace:?}"), |seen| seen.len() >= events.len());
    running.stop();
    let mut seen = journal.bodies();
    let number = |body: &String| body[1..].split('\n').next().unwrap().parse::<usize>().unwrap();
    seen.sort_by_key(number);
    assert_eq!(seen, events, "seed {seed}: {trace:?}");
}
