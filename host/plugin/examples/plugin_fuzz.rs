//! Fuzzes the loading of plugins and the decoding of their answers through the real engine.
//!
//! `plugin_fuzz --minutes 1 [--seed N] [--keep DIR] [--only ITERATION]`; `cargo xtask fuzz` runs it. A case depends on the seed and
//! its number alone. Nine of ten are answers: a forged guest answers with what stands in its batch, so no case has to be
//! compiled. The others are files: a valid one, changed in its sections. What must hold: no panic, no case without
//! an end, an error in words, each row in one place.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a tool for developers"
)]

#[path = "../tests/forge/mod.rs"]
mod forge;
#[path = "../tests/judge/mod.rs"]
mod judge;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_event::{Batch, BatchBuilder};
use flumen_pipeline::InterceptorVersion;
use flumen_pipeline::plan::PluginLimits;
use flumen_plugin::{HostConfig, PluginHost, PluginVersion};
use forge::mutate::{Dice, EDGES, mutate};
use forge::{ANSWER_AT, Answer, DATA_AT, Forge, numbers, word};
use judge::{is_printable, judge};

/// A case that takes longer is a find: loading, compiling and two calls.
const CASE_MAX: Duration = Duration::from_secs(20);
/// Files over this are not mutated: they only take long.
const FILE_BYTES_MAX: usize = 40_000;

struct Settings {
    time: Duration,
    seed: u64,
    keep: PathBuf,
    only: Option<u64>,
}

fn main() -> ExitCode {
    let settings = settings();
    fs::create_dir_all(&settings.keep).expect("the directory of the cases");
    println!("seed {}", settings.seed);
    let mut fuzz = Fuzz::new(&settings.keep);
    let started = Instant::now();
    let mut iteration = settings.only.unwrap_or(0);
    while started.elapsed() < settings.time {
        fuzz.case(settings.seed, iteration);
        if settings.only.is_some() {
            break;
        }
        iteration += 1;
    }
    let Fuzz { files, opened, answers, accepted, failures, .. } = fuzz;
    println!(
        "{files} files ({opened} of them opened), {answers} answers ({accepted} of them accepted), {failures} failures, {:.0} s, seed {}",
        started.elapsed().as_secs_f64(),
        settings.seed
    );
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn settings() -> Settings {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let value =
        |name: &str| words.iter().position(|word| word == name).and_then(|at| words.get(at + 1)).cloned();
    let number = |name: &str| value(name).map(|text| text.parse::<f64>().expect("a number"));
    let whole = |name: &str| value(name).map(|text| text.parse::<u64>().expect("a whole number"));
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock").as_nanos() as u64;
    Settings {
        time: Duration::from_secs_f64(number("--minutes").unwrap_or(1.0) * 60.0),
        seed: whole("--seed").unwrap_or(now),
        keep: value("--keep").unwrap_or_else(|| "target/fuzz".to_owned()).into(),
        only: whole("--only"),
    }
}

struct Fuzz {
    keep: PathBuf,
    scratch: tempfile::TempDir,
    host: Arc<PluginHost>,
    corpus: Vec<Vec<u8>>,
    mirror: Arc<PluginVersion>,
    files: u64,
    opened: u64,
    answers: u64,
    accepted: u64,
    failures: u64,
}

impl Fuzz {
    fn new(keep: &Path) -> Fuzz {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let config = HostConfig { watch: false, ..HostConfig::new(scratch.path().join("cache")) };
        let host = PluginHost::new(config).expect("a plugin host");
        // It answers with the bytes of the bodies.
        let process = format!(
            "(memory.copy (i32.const {ANSWER_AT}) (local.get 4) (local.get 5)) (i32.const {ANSWER_AT})"
        );
        let path = scratch.path().join("mirror.wasm");
        fs::write(&path, Forge { memory: "4", process, ..Forge::good() }.module()).expect("the mirror");
        let limits = PluginLimits { time: Duration::from_secs(5), ..PluginLimits::default() };
        let mirror = host.open(&path, "mirror", "{}", &[], limits).expect("the mirror opens");
        let set = forge::set::all().into_iter().map(|hostile| hostile.bytes);
        let small = set.filter(|bytes| bytes.len() > 8 && bytes.len() < FILE_BYTES_MAX);
        let good = [Forge::good().module(), Forge::good().component()];
        // As often as all the hostile ones together.
        let corpus = good.iter().cycle().take(120).cloned().chain(small).collect();
        let keep = keep.to_owned();
        Fuzz {
            keep,
            scratch,
            host,
            corpus,
            mirror,
            files: 0,
            opened: 0,
            answers: 0,
            accepted: 0,
            failures: 0,
        }
    }

    fn case(&mut self, seed: u64, iteration: u64) {
        let mut dice = Dice(seed ^ iteration.wrapping_mul(0xD134_2543_DE82_EF95));
        let started = Instant::now();
        let is_file = dice.below(10) == 0;
        let outcome = catch_unwind(AssertUnwindSafe(|| match is_file {
            true => self.file(&mut dice, iteration),
            false => self.answer(&mut dice),
        }));
        let outcome = outcome.unwrap_or_else(|_| Err("a panic".to_owned()));
        let outcome = match started.elapsed() {
            took if took > CASE_MAX => outcome.and(Err(format!("it took {took:?}"))),
            _ => outcome,
        };
        if let Err(reason) = outcome {
            self.failures += 1;
            println!("FAILED: --seed {seed} --only {iteration}: {reason}");
            let kept = self.keep.join(format!("failure-{seed}-{iteration}.wasm"));
            if is_file && fs::copy(self.current(), &kept).is_ok() {
                println!("the file is kept as {}", kept.display());
            }
        }
    }

    /// Where a file stands while it is tried: if the process dies of it, it is there.
    fn current(&self) -> PathBuf {
        self.keep.join("current.wasm")
    }

    fn file(&mut self, dice: &mut Dice, iteration: u64) -> Result<(), String> {
        let chosen = dice.of(&self.corpus).clone();
        let bytes = mutate(&chosen, &self.corpus, dice);
        let path = self.current();
        fs::write(&path, &bytes).map_err(|error| error.to_string())?;
        self.files += 1;
        if iteration.is_multiple_of(5_000) {
            // Compiled files would fill the disk.
            self.renew();
        }
        let limits = PluginLimits { time: Duration::from_millis(50), ..PluginLimits::default() };
        let grants = ["log", "metrics", "clock"].map(str::to_owned);
        let version = match self.host.open(&path, "fuzz", "{}", &grants, limits) {
            Ok(version) => version,
            Err(error) => {
                let text = error.to_string();
                let is_in_words = text.contains("current.wasm") && is_printable(&text) && text.len() < 16_384;
                return match is_in_words && !text.contains("the compiler failed on it") {
                    true => Ok(()),
                    false => Err(format!("its error is {text:?}")),
                };
            }
        };
        self.opened += 1;
        let input = batch(&[b"first", b"second", b"third"]);
        judge(&input, &version.process(input.clone()))
    }

    fn renew(&mut self) {
        let dir = self.scratch.path().join("cache");
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.for_each(|entry| _ = fs::remove_file(entry.path()));
    }

    fn answer(&mut self, dice: &mut Dice) -> Result<(), String> {
        self.answers += 1;
        let rows = 1 + dice.below(3);
        let mut answer = right_answer(rows, dice);
        let harms = dice.below(5);
        (0..harms).for_each(|_| harm(&mut answer, dice));
        let mut image = numbers(&answer.words);
        image.resize((DATA_AT - ANSWER_AT) as usize, 0);
        image.extend(&answer.data);
        let mut bodies: Vec<&[u8]> = vec![&image];
        bodies.resize(rows, b"y");
        let input = batch(&bodies);
        let processed = self.mirror.process(input.clone());
        let is_accepted = processed.quarantined.iter().all(|group| group.rejected);
        self.accepted += u64::from(is_accepted);
        if harms == 0 && !is_accepted {
            return Err(format!("a right answer is refused: {:?}", processed.quarantined[0].reasons));
        }
        judge(&input, &processed)
    }
}

fn batch(bodies: &[&[u8]]) -> Batch {
    let mut builder = BatchBuilder::default();
    (0..).zip(bodies).for_each(|(position, body)| builder.push(1, position, 5, body));
    builder.finish(vec![]).expect("a batch")
}

/// An answer that keeps to all rules.
fn right_answer(rows: usize, dice: &mut Dice) -> Answer {
    let mut answer = Answer::unchanged();
    let rejected: Vec<u32> = (0..rows as u32).filter(|_| dice.below(4) == 0).collect();
    let left: Vec<u32> = (0..rows as u32).filter(|row| !rejected.contains(row)).collect();
    let mut out = left.len();
    if dice.below(2) == 0 && !left.is_empty() {
        let from: Vec<u32> = (0..dice.below(5)).map(|_| *dice.of(&left)).collect();
        out = from.len();
        answer = answer.some(word::ROWS_FROM, &numbers(&from));
    }
    let column = |dice: &mut Dice| {
        let mut offsets = vec![0_u32];
        let mut data = Vec::new();
        (0..out).for_each(|_| {
            data.extend_from_slice(&"é€x😀"[..*dice.of(&[0, 2, 5, 6, 10])].as_bytes()[..]);
            offsets.push(data.len() as u32);
        });
        (offsets, data)
    };
    if dice.below(2) == 0 {
        let (offsets, data) = column(dice);
        answer = answer.body(&offsets, &data);
    }
    if dice.below(3) == 0 {
        answer = answer.some(word::TIME, &vec![9; out * 8]);
    }
    let columns: Vec<_> = (0..dice.below(3)).map(|_| (column(dice), dice.below(2) == 0)).collect();
    let present = vec![0xff_u8; out.div_ceil(8)];
    let names: [&[u8]; 2] = [b"a", "ü".as_bytes()];
    let headers: Vec<forge::Header<'_>> = columns
        .iter()
        .zip(names)
        .map(|(((offsets, data), has), name)| (name, &offsets[..], &data[..], has.then_some(&present[..])))
        .collect();
    answer = answer.headers(&headers);
    let reasons: Vec<(u32, &[u8])> = rejected.iter().map(|row| (*row, &b"no"[..])).collect();
    answer.rejected(&reasons)
}

/// One rule less.
fn harm(answer: &mut Answer, dice: &mut Dice) {
    let edge = *dice.of(&EDGES) as u32;
    match dice.below(6) {
        0 => answer.words[dice.below(18)] = edge,
        1 => {
            let at = dice.below(18);
            answer.words[at] = answer.words[at].wrapping_add(*dice.of(&[1, 2, 4, u32::MAX, u32::MAX - 3]));
        }
        2 => answer.words[dice.below(18)] = DATA_AT + dice.below(answer.data.len() + 64) as u32,
        _ if answer.data.is_empty() => answer.words[dice.below(18)] = dice.next() as u32,
        3 => {
            let at = dice.below(answer.data.len());
            answer.data[at] ^= 1 << dice.below(8);
        }
        4 => {
            let at = dice.below(answer.data.len());
            answer.data[at] = edge as u8;
        }
        _ => {
            let at = dice.below(answer.data.len().div_ceil(4)) * 4;
            let end = (at + 4).min(answer.data.len());
            answer.data[at..end].copy_from_slice(&edge.to_le_bytes()[..end - at]);
        }
    }
}
