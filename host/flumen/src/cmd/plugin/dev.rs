//! `flumen plugin dev`: whenever a file is saved, build, run the cases, and show what the new version makes of a sample that
//! the old one did not. With `--into` it is put into the plugin directory of a running agent, which swaps it.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use flumen_author::Kind;
use flumen_event::Batch;
use flumen_pipeline::Processed;
use flumen_pipeline::plan::PluginLimits;
use flumen_plugin::cases::{Case, CaseOutcome, Step};
use flumen_plugin::sink_cases::SinkStep;
use flumen_plugin::{Alone, PluginHost};

use super::cases;
use crate::cmd::{Scratch, event_json, lines_batch};
use crate::exit::Failure;

/// What to watch.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The plugin's directory.
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Lines to run it on. Default: the inputs of its cases.
    #[arg(long)]
    sample: Option<PathBuf>,
    /// The plugin's configuration, as JSON. Default: that of the first case.
    #[arg(long)]
    config: Option<String>,
    /// Plugin directory of a running agent: a version whose cases pass is put there.
    #[arg(long, value_name = "PLUGIN_DIR")]
    into: Option<PathBuf>,
    /// Install what is missing of the toolchain.
    #[arg(long)]
    install: bool,
    /// Do it once and end.
    #[arg(long)]
    once: bool,
}

/// How often the directory is looked at: a person does not notice, and it is some dozens of files.
const LOOK: Duration = Duration::from_millis(200);
/// Lines of a sample.
const SAMPLE_LINES_MAX: usize = 10_000;
/// Lines of a difference that are shown.
const SHOWN_MAX: usize = 20;
/// What builds write, and what has no sources.
const NOT_SOURCES: [&str; 7] =
    ["build", "target", "node_modules", ".venv", ".git", "__pycache__", "Cargo.lock"];

/// Watches until it is interrupted.
pub fn run(host: &PluginHost, args: &Args) -> Result<(), Failure> {
    let mut session = Session::new(host, args)?;
    let mut seen = BTreeMap::new();
    loop {
        let now = sources(&args.dir)?;
        if now == seen {
            std::thread::sleep(LOOK);
            continue;
        }
        seen = now;
        let done = session.turn();
        if args.once {
            return done;
        }
        if let Err(error) = done {
            // The next save may mend it.
            error.report();
        }
        eprintln!("waiting for a change in {} (end with Ctrl-C)", args.dir.display());
    }
}

struct Session<'a> {
    host: &'a PluginHost,
    args: &'a Args,
    /// The component of the turn before, and what it made of the sample.
    previous: PathBuf,
    outputs: Option<Vec<String>>,
    scratch: Scratch,
    /// Whether it takes events and gives events, so that there is something to compare.
    has_sample: bool,
}

impl<'a> Session<'a> {
    fn new(host: &'a PluginHost, args: &'a Args) -> Result<Session<'a>, Failure> {
        let manifest = flumen_author::Manifest::read(&args.dir)?;
        let scratch = Scratch::new()?;
        let has_sample = matches!(manifest.kind, Kind::Interceptor | Kind::Aggregator);
        let previous = manifest.component(&args.dir);
        let mut session = Session { host, args, previous, outputs: None, scratch, has_sample };
        // A version from before: the first difference is one to it.
        if session.previous.is_file() {
            session.outputs = session.sample_outputs(&session.previous).ok();
        }
        Ok(session)
    }

    fn turn(&mut self) -> Result<(), Failure> {
        let fresh = self.scratch.path().join("fresh.wasm");
        let options = flumen_author::Options {
            install: self.args.install,
            output: Some(fresh.clone()),
            run: Some(super::author::started),
            ..flumen_author::Options::default()
        };
        let built = flumen_author::build(&self.args.dir, &options)?;
        let mut out = std::io::stdout();
        writeln!(out, "built in {:.1} s", built.took.as_secs_f64())?;
        let failed = self.failed_cases(&fresh)?;
        let outputs = self.sample_outputs(&fresh)?;
        self.show_difference(&outputs)?;
        self.outputs = Some(outputs);
        if failed > 0 {
            return Err(anyhow::anyhow!("the agent keeps its version: cases fail").into());
        }
        replace(&fresh, &self.previous)?;
        if let Some(dir) = &self.args.into {
            let name = self.previous.file_name().context("a plugin without a name")?;
            replace(&fresh, &dir.join(name))?;
            writeln!(out, "put into {}", dir.display())?;
        }
        Ok(())
    }

    fn failed_cases(&self, wasm: &Path) -> Result<usize, Failure> {
        let mut out = std::io::stdout();
        let (mut passed, mut failed) = (0, 0);
        for found in cases::read(&self.args.dir)? {
            match self.host.run_case(wasm, &found.case).map_err(unfit)? {
                CaseOutcome::Passed => passed += 1,
                CaseOutcome::Failed(difference) => {
                    failed += 1;
                    writeln!(out, "FAILED {}", found.case.name)?;
                    difference.lines().try_for_each(|line| writeln!(out, "       {line}"))?;
                }
            }
        }
        writeln!(out, "cases: {passed} passed, {failed} failed")?;
        Ok(failed)
    }

    fn sample_outputs(&self, wasm: &Path) -> Result<Vec<String>, Failure> {
        let mut outputs = Vec::new();
        // Codecs and sinks have their cases: those say the bytes, and the answers of the outside.
        if !self.has_sample {
            return Ok(outputs);
        }
        for (steps, config) in self.sample()? {
            let needs = self.host.inspect(wasm, &config).map_err(unfit)?.needs;
            let version =
                self.host.open(wasm, "dev", &config, &needs, PluginLimits::default()).map_err(unfit)?;
            let alone = Alone::new(version);
            for Step { input, now_ns, .. } in steps {
                outputs.extend(step_outputs(&alone, input, now_ns.unwrap_or(0)));
            }
        }
        Ok(outputs)
    }

    /// Batches and ticks, each list with the configuration that it goes with.
    fn sample(&self) -> Result<Vec<(Vec<Step>, String)>, Failure> {
        let found = cases::read(&self.args.dir)?;
        let mut opening = found.into_iter().map(|found| found.case).filter(|case| case.open_error.is_none());
        let Some(path) = &self.args.sample else {
            let with = |config: String| self.args.config.clone().unwrap_or(config);
            let steps = |case: Case| match (case.steps.is_empty(), case.input.is_empty()) {
                (true, true) => (Vec::new(), with(case.config_json)),
                (true, false) => (vec![step(case.input)], with(case.config_json)),
                (false, _) => (case.steps, with(case.config_json)),
            };
            return Ok(opening.map(steps).collect());
        };
        let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let lines = std::io::BufReader::new(file).split(b'\n').take(SAMPLE_LINES_MAX);
        let lines: Vec<Vec<u8>> = lines.collect::<Result<_, _>>()?;
        let config = self.args.config.clone().or_else(|| opening.next().map(|case| case.config_json));
        Ok(vec![(vec![step(timeless(&lines)?)], config.unwrap_or_else(|| "{}".into()))])
    }

    fn show_difference(&self, new: &[String]) -> Result<(), Failure> {
        let mut out = std::io::stdout();
        if !self.has_sample {
            return Ok(());
        }
        let Some(old) = &self.outputs else {
            writeln!(out, "sample: {} events come out", new.len())?;
            return Ok(());
        };
        let changes = difference(old, new);
        writeln!(
            out,
            "sample: {} events come out ({} before), {} lines differ",
            new.len(),
            old.len(),
            changes.len()
        )?;
        for (sign, line) in changes.iter().take(SHOWN_MAX) {
            writeln!(out, "  {sign} {line}")?;
        }
        if changes.len() > SHOWN_MAX {
            writeln!(out, "  ... and {} more", changes.len() - SHOWN_MAX)?;
        }
        Ok(())
    }
}

/// A batch, at the beginning of time: the same in every run.
fn step(input: Batch) -> Step {
    Step { now_ns: None, input, expected: Vec::new(), rejected: Vec::new(), sink: SinkStep::default() }
}

/// One line for each event that comes out, and for each that leaves. Without an input it is a tick.
fn step_outputs(alone: &Alone, input: Batch, now_ns: i64) -> Vec<String> {
    let (processed, made) = match input.is_empty() {
        false => alone.process(input, Some(now_ns)),
        true => match alone.tick(Some(now_ns)) {
            Ok(made) => (Processed { kept: Batch::empty(), quarantined: Vec::new(), dropped: 0 }, made),
            Err(reason) => return vec![format!("the tick failed: {reason}")],
        },
    };
    let mut outputs = Vec::new();
    for batch in std::iter::once(&processed.kept).chain(&made) {
        outputs.extend((0..batch.rows()).map(|row| event_json(batch, row).to_string()));
    }
    for group in &processed.quarantined {
        for (row, reason) in group.reasons.iter().enumerate().take(group.batch.rows()) {
            let what = if group.rejected { "rejected" } else { "failed" };
            outputs.push(format!("{what} {}: {reason}", group.batch.position().value(row)));
        }
    }
    outputs
}

/// Lines whose time is always the same: it would differ in every run.
fn timeless(lines: &[Vec<u8>]) -> anyhow::Result<Batch> {
    let batch = lines_batch(lines, 0)?;
    let mut builder = flumen_event::BatchBuilder::default();
    for row in 0..batch.rows() {
        builder.push(0, row as u64, 0, batch.body().value(row));
    }
    Ok(builder.finish(Vec::new())?)
}

/// Lines that are in one list only, in their order: `-` was there, `+` is new.
fn difference<'a>(old: &'a [String], new: &'a [String]) -> Vec<(char, &'a str)> {
    let mut counts: BTreeMap<&str, isize> = BTreeMap::new();
    new.iter().for_each(|line| *counts.entry(line).or_default() += 1);
    let mut out = Vec::new();
    for line in old {
        let count = counts.entry(line).or_default();
        *count -= 1;
        if *count < 0 {
            out.push(('-', line.as_str()));
        }
    }
    for line in new {
        if let Some(count) = counts.get_mut(line.as_str()).filter(|count| **count > 0) {
            *count -= 1;
            out.push(('+', line.as_str()));
        }
    }
    out
}

/// Every file of the directory with its time of change.
fn sources(dir: &Path) -> anyhow::Result<BTreeMap<PathBuf, SystemTime>> {
    let mut out = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if NOT_SOURCES.contains(&name.as_str()) || name.ends_with(".wasm") || name.ends_with(".new") {
                continue;
            }
            // An editor's temporary file may be gone by now.
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            if metadata.is_dir() {
                todo.push(path);
            } else {
                out.insert(path, metadata.modified()?);
            }
        }
    }
    Ok(out)
}

/// In one step: an agent that watches never sees half a file.
fn replace(from: &Path, to: &Path) -> anyhow::Result<()> {
    let fresh = to.with_extension("wasm.new");
    std::fs::copy(from, &fresh).with_context(|| format!("cannot write {}", fresh.display()))?;
    std::fs::rename(&fresh, to).with_context(|| format!("cannot write {}", to.display()))
}

fn unfit(error: flumen_plugin::LoadError) -> Failure {
    Failure::Unfit(vec![error.to_string()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_and_what_is_new() {
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let (old, new) = (lines("a b b c"), lines("a b d c d"));
        assert_eq!(difference(&old, &new), [('-', "b"), ('+', "d"), ('+', "d")]);
        assert!(difference(&old, &old).is_empty());
    }
}
