//! The tail source against a random schedule of everything that happens to log files, with crashes.
//!
//! Oracle: every complete line is seen exactly once, and the lines of one writer in their order
//! within each stream. Run one seed with `FLUMEN_SEED=n`, more with `FLUMEN_SEEDS=n`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use flumen_pipeline::Value;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::{Journal, Run, Setup};

const STEPS: usize = 60;

struct World {
    root: tempfile::TempDir,
    random: SmallRng,
    journal: Journal,
    setup: Setup,
    run: Option<Run>,
    /// One per log: its open file, and whether its last line has no newline yet.
    logs: Vec<(PathBuf, File, String)>,
    /// Per log: the agent has committed something about its present file.
    known: Vec<bool>,
    rotated_match: bool,
    written: Vec<String>,
    number: usize,
    rotations: usize,
    trace: Vec<String>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = SmallRng::seed_from_u64(seed);
        let root = tempfile::tempdir().unwrap();
        // Either rotated files match the glob or they do not.
        let rotated_match = random.random_bool(0.5);
        let pattern = if rotated_match { "**/*.log*" } else { "**/*.log" };
        let mut setup = Setup::tail(root.path().join(pattern).to_str().unwrap())
            .set("exclude", Value::TextList(vec!["*.copy".into()]))
            .ms("last_line_timeout", 3_600_000)
            .ms("rescan_interval", 10)
            .ms("close_idle_after", if random.random_bool(0.5) { 1 } else { 60_000 })
            .set("max_open_files", Value::Integer(if random.random_bool(0.3) { 1 } else { 100 }));
        setup.batch.rows = random.random_range(1..50);
        World {
            root,
            random,
            journal: Journal::default(),
            setup,
            run: None,
            logs: Vec::new(),
            known: Vec::new(),
            rotated_match,
            written: Vec::new(),
            number: 0,
            rotations: 0,
            trace: Vec::new(),
        }
    }

    fn open(path: &PathBuf) -> File {
        OpenOptions::new().append(true).create(true).open(path).unwrap()
    }

    fn new_log(&mut self) {
        let name = format!("{}.log", self.logs.len());
        let path = if self.random.random_bool(0.5) {
            self.root.path().join(name)
        } else {
            let directory = self.root.path().join(format!("dir{}", self.logs.len()));
            std::fs::create_dir(&directory).unwrap();
            directory.join(name)
        };
        let file = World::open(&path);
        self.logs.push((path, file, String::new()));
        self.known.push(false);
    }

    fn write(&mut self, log: usize, partial: bool) {
        let lines = self.random.random_range(1..20);
        let mut text = String::new();
        let (path, file, begun) = &mut self.logs[log];
        for _ in 0..lines {
            self.number += 1;
            let padding = "x".repeat(self.random.random_range(0..60));
            let line = format!("{} {} {padding}", path.file_name().unwrap().display(), self.number);
            // What was written of the line so far ends up in front of the rest.
            self.written.push(format!("{begun}{line}"));
            begun.clear();
            text.push_str(&line);
            text.push('\n');
        }
        if partial {
            let half = format!("part{} ", self.number);
            text.push_str(&half);
            begun.push_str(&half);
        }
        file.write_all(text.as_bytes()).unwrap();
    }

    /// Everything written so far has been committed: the only safe moment for a truncation.
    fn catch_up(&mut self) {
        for log in 0..self.logs.len() {
            if !self.logs[log].2.is_empty() {
                self.write(log, false);
            }
        }
        if self.run.is_none() {
            self.run = Some(self.setup.start(&self.journal));
        }
        let written = self.written.len();
        self.journal.wait(&format!("{written} lines; {:?}", self.trace), |events| events.len() >= written);
        self.journal.commit(usize::MAX);
        for (known, (_, file, _)) in self.known.iter_mut().zip(&self.logs) {
            *known |= file.metadata().unwrap().len() > 0;
        }
    }

    fn step(&mut self) {
        let log = self.random.random_range(0..self.logs.len());
        let what = self.random.random_range(0..100);
        let done = match what {
            0..40 => {
                let partial = self.random.random_bool(0.3);
                self.write(log, partial);
                format!("write {log} partial {partial}")
            }
            40..45 => {
                self.new_log();
                "new log".into()
            }
            45..60 => {
                // A file that is rotated out of the glob before anything of it is committed cannot be found.
                if !self.rotated_match && !self.known[log] {
                    self.write(log, false);
                    self.catch_up();
                }
                self.rotations += 1;
                let (path, ..) = &self.logs[log];
                let to = path.with_extension(format!("log.{}", self.rotations));
                std::fs::rename(path, to).unwrap();
                // The writer goes on with the old file for a while.
                if !self.logs[log].2.is_empty() || self.random.random_bool(0.5) {
                    self.write(log, false);
                }
                self.logs[log].1 = World::open(&self.logs[log].0);
                self.known[log] = false;
                self.write(log, false);
                format!("rename {log}")
            }
            60..70 => {
                self.catch_up();
                let (path, file, _) = &self.logs[log];
                std::fs::copy(path, path.with_extension("copy")).unwrap();
                file.set_len(0).unwrap();
                if self.random.random_bool(0.5) {
                    self.write(log, false);
                }
                format!("copytruncate {log}")
            }
            70..75 => {
                self.catch_up();
                let (path, file, _) = &mut self.logs[log];
                std::fs::remove_file(&*path).unwrap();
                *file = World::open(path);
                self.known[log] = false;
                format!("remove {log}")
            }
            75..90 => match self.run.take() {
                Some(run) => {
                    let committed = self.random.random_range(0..5);
                    run.crash(committed);
                    format!("crash {committed}")
                }
                None => {
                    self.run = Some(self.setup.start(&self.journal));
                    "start".into()
                }
            },
            _ => match self.run.take() {
                Some(run) => {
                    run.stop();
                    "stop".into()
                }
                None => {
                    let run = self.setup.start(&self.journal);
                    run.crash_in(self.random.random_range(0..5));
                    let what = format!("a crash, or {} lines; {:?}", self.written.len(), self.trace);
                    self.journal.wait(&what, |events| events.len() >= self.written.len());
                    run.crash(0);
                    "start and crash".into()
                }
            },
        };
        self.trace.push(done);
    }

    fn check(&mut self, seed: u64) {
        self.catch_up();
        if let Some(run) = self.run.take() {
            run.stop();
        }
        let events = self.journal.events();
        let mut times: HashMap<&str, usize> = HashMap::new();
        for seen in &events {
            *times.entry(&seen.body).or_default() += 1;
        }
        let trace = &self.trace;
        for line in &self.written {
            let count = times.remove(line.as_str()).unwrap_or(0);
            if count != 1 {
                let seen: Vec<_> = events.iter().enumerate().filter(|(_, seen)| seen.body == *line).collect();
                panic!("seed {seed}: line {line:?} came {count} times: {seen:#?}; {trace:?}");
            }
        }
        assert!(times.is_empty(), "seed {seed}: never written: {times:?}; {trace:?}");
        let mut last: HashMap<u64, (u64, usize)> = HashMap::new();
        for seen in &events {
            let number: usize = seen.body.split(' ').rev().find_map(|word| word.parse().ok()).unwrap();
            let now = (seen.identity.position, number);
            let before = last.insert(seen.identity.stream, now);
            assert!(
                before.is_none_or(|b| b.0 < now.0 && b.1 < now.1),
                "seed {seed}: order {before:?} {seen:?}; {trace:?}"
            );
        }
    }
}

#[test]
fn every_line_exactly_once_and_in_order() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("FLUMEN_SEED");
    let count = number("FLUMEN_SEEDS").unwrap_or(if first.is_some() { 1 } else { 20 });
    let seeds = first.unwrap_or(0)..first.unwrap_or(0) + count;
    for seed in seeds {
        println!("seed {seed}");
        let mut world = World::new(seed);
        world.new_log();
        for _ in 0..STEPS {
            world.step();
        }
        world.check(seed);
    }
}
