//! `cargo xtask test`: everything that has to hold, one step after the other; a step that fails does not
//! hide what the later ones say.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use flumen_tests::locate;

use crate::bindings;
use crate::build::{self, cargo, check};
use crate::fuzz;
use crate::report::step;
use crate::{host_tests, schema, sdk, tutorial};

/// What to leave out.
#[derive(clap::Args)]
pub struct Arguments {
    /// Leave out rustfmt and clippy
    #[arg(long)]
    no_lint: bool,
    /// Leave out the end-to-end tests
    #[arg(long)]
    no_e2e: bool,
}

/// What the tests said, summed over all runners.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    passed: u64,
    failed: u64,
    /// What each test that failed printed, without stack backtraces.
    reports: Vec<String>,
}

impl Tally {
    /// Adds what the runner `name` said; one that could not say it has failed.
    pub fn add(&mut self, name: &str, result: Result<Tally>) {
        let part = result.unwrap_or_else(|error| Tally {
            passed: 0,
            failed: 1,
            reports: vec![format!("{name}: {error:#}")],
        });
        self.passed += part.passed;
        self.failed += part.failed;
        self.reports.extend(part.reports);
    }
}

/// A check that is not a test runner's.
const ONE: Tally = Tally { passed: 1, failed: 0, reports: Vec::new() };

/// Lines of one test's output that are said again at the end: its beginning, where the assertion stands.
const REPORT_LINES: usize = 40;

/// Lines from each panic on that are said again, too: in a test that says much, or has threads, it stands further down.
const PANIC_LINES: usize = 12;

/// Runs everything.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut tally = Tally::default();
    let mut failures = Vec::new();
    let mut note = |name: &str, result: Result<Tally>| match result {
        Ok(part) => {
            tally.passed += part.passed;
            tally.failed += part.failed;
            // Again at the end, where a log of a hundred thousand lines is looked at first.
            failures.extend(part.reports);
            if part.failed > 0 {
                failures.push(format!("{name}: {} failed", part.failed));
            }
        }
        Err(error) => {
            tally.failed += 1;
            failures.push(format!("{name}: {error:#}"));
        }
    };
    build::plugins()?;
    let binary = build::host_and_tests()?;
    // Before the tests on the real binary, which run some of them.
    note("plugins in every language", build::languages(&binary).map(|()| ONE));
    note("tests of the host", host_tests::run(arguments.no_e2e));
    note("tests of the guests", guest_tests());
    match plugins_with_cases() {
        Ok(plugins) => plugins.iter().for_each(|plugin| {
            note(&format!("cases of {plugin}"), plugin_cases(&binary, plugin));
        }),
        Err(error) => note("cases of plugins", Err(error)),
    }
    for example in build::examples() {
        note(&format!("cases of {}", example.name), example_cases(&binary, &example));
    }
    note("SDKs for Python and JavaScript", sdk::test().map(|()| ONE));
    // The quickest one; the others differ in a few words and in their toolchains.
    note("first plugin in C, word by word", tutorial::page(&binary, "c", false).map(|()| ONE));
    note("bindings", bindings::check().map(|()| ONE));
    note("fuzzing", fuzz::fuzz(1.0, None, None).map(|()| ONE));
    note("schema", schema::check(&binary).map(|()| ONE));
    if !arguments.no_lint {
        note("lints", lint().map(|_| ONE));
    }
    for failure in &failures {
        eprintln!("FAILED: {failure}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// rustfmt and clippy over host and guests.
pub fn lint() -> Result<ExitCode> {
    let root = locate::repository()?;
    let guests = root.join("plugins");
    step("rustfmt", || {
        check(cargo().current_dir(&root).args(["fmt", "--all", "--check"]))?;
        check(cargo().current_dir(&guests).args(["fmt", "--all", "--check"]))
    })?;
    let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    step("clippy, host", || check(cargo().current_dir(&root).args(clippy)))?;
    step("clippy, guests", || check(guest_cargo(&guests).args(clippy)))?;
    Ok(ExitCode::SUCCESS)
}

fn guest_tests() -> Result<Tally> {
    let guests = locate::repository()?.join("plugins");
    step("tests of the guests (native)", || {
        count(guest_cargo(&guests).args(["test", "--workspace", "--no-fail-fast"]), "")
    })
}

/// cargo in the guests' workspace, for this machine. Its target directory is its own.
fn guest_cargo(guests: &PathBuf) -> Command {
    let mut command = cargo();
    command.current_dir(guests).env("CARGO_TARGET_DIR", guests.join("target"));
    command
}

/// The cases of a plugin through the real host.
/// All first-party plugins that have some, by name.
fn plugins_with_cases() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(locate::repository()?.join("plugins"))? {
        let entry = entry?;
        if entry.path().join("cases").is_dir() {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found.sort();
    Ok(found)
}

fn plugin_cases(binary: &PathBuf, plugin: &str) -> Result<Tally> {
    run_cases(binary, plugin, &locate::repository()?.join("plugins").join(plugin), &[])
}

/// The cases of a kind's example, the same in each language.
fn example_cases(binary: &PathBuf, example: &build::Example) -> Result<Tally> {
    let component = locate::plugin(&example.name)?;
    let dir = locate::repository()?.join(&example.dir);
    run_cases(binary, &example.name, &dir, &["--wasm".as_ref(), component.as_os_str()])
}

fn run_cases(binary: &PathBuf, plugin: &str, dir: &Path, more: &[&OsStr]) -> Result<Tally> {
    let cases =
        fs::read_dir(dir.join("cases")).with_context(|| format!("{plugin} has no cases"))?.count() as u64;
    if cases == 0 {
        bail!("{plugin} has no cases");
    }
    step(&format!("flumen plugin test {plugin} ({cases} cases)"), || {
        check(
            Command::new(binary)
                .args(["plugin", "test"])
                .arg(dir)
                .args(more)
                .env(locate::PLUGINS_VAR, locate::plugins()?),
        )?;
        Ok(Tally { passed: cases, ..Tally::default() })
    })
}

/// Runs tests, shows what they say, each line with a prefix, and adds up their summary lines.
pub fn count(command: &mut Command, prefix: &str) -> Result<Tally> {
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {command:?}"))?;
    let out = child.stdout.take().context("cargo has no output")?;
    let mut tally = Tally::default();
    let mut report: Option<Report> = None;
    for line in BufReader::new(out).lines() {
        let line = line?;
        println!("{prefix}{line}");
        if let Some((passed, failed)) = summary(&line) {
            tally.passed += passed;
            tally.failed += failed;
        }
        let is_next = line.starts_with("---- ") && line.ends_with(" ----");
        if is_next || line == "failures:" {
            tally.reports.extend(report.take().map(|report| report.lines.join("\n")));
            report = is_next.then(Report::default);
        }
        if let Some(report) = &mut report {
            report.add(line);
        }
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        bail!("it ended with {status} (what it says is above)");
    }
    Ok(tally)
}

/// What is said again of one test.
#[derive(Default)]
struct Report {
    lines: Vec<String>,
    /// So many more lines belong to a panic.
    of_panic: usize,
}

impl Report {
    fn add(&mut self, line: String) {
        if is_of_backtrace(&line) {
            return;
        }
        if line.contains(" panicked at ") {
            self.of_panic = PANIC_LINES;
        }
        if self.lines.len() < REPORT_LINES || self.of_panic > 0 {
            self.of_panic = self.of_panic.saturating_sub(1);
            self.lines.push(line);
        }
    }
}

/// `   7: core::panicking::panic_fmt`, or the line with its place below it.
fn is_of_backtrace(line: &str) -> bool {
    let text = line.trim_start();
    let number = text.split_once(": ").map(|(number, _)| number);
    text.is_empty()
        || (text.len() < line.len()
            && (text.starts_with("at ") || number.is_some_and(|number| number.parse::<u32>().is_ok())))
}

/// Passed and failed: `test result: ok. 12 passed; 0 failed; …`
fn summary(line: &str) -> Option<(u64, u64)> {
    let rest = line.trim().strip_prefix("test result: ")?;
    let figure = |word: &str| -> Option<u64> {
        let (before, _) = rest.split_once(word)?;
        before.trim_end().rsplit(' ').next()?.parse().ok()
    };
    Some((figure(" passed")?, figure(" failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.30s";
        assert_eq!(summary(line), Some((12, 3)));
        assert_eq!(summary("test x ... ok"), None);
    }

    #[test]
    fn what_failed_is_said_again_at_the_end() {
        let log = "test a ... FAILED\n\nfailures:\n\n---- a stdout ----\nthread 'a' panicked at x.rs:1:2:\n  left: 1\nstack backtrace:\n   0: core::panicking\n             at x.rs:1:2\n---- b stdout ----\nno\n\n\nfailures:\n    a\n    b\n\ntest result: FAILED. 1 passed; 2 failed; 0 ignored\n";
        let tally = count(Command::new("printf").args(["%s", log]), "").unwrap();
        let a = "---- a stdout ----\nthread 'a' panicked at x.rs:1:2:\n  left: 1\nstack backtrace:";
        assert_eq!((tally.passed, tally.failed), (1, 2));
        assert_eq!(tally.reports, [a, "---- b stdout ----\nno"]);
    }

    #[test]
    fn a_panic_behind_much_output_is_said_again() {
        let much = "a step\n".repeat(3 * REPORT_LINES);
        let log = format!(
            "---- a stdout ----\n{much}thread '<unnamed>' panicked at x.rs:1:2:\nnever reached\n{much}failures:\n    a\n\ntest result: FAILED. 0 passed; 1 failed; 0 ignored\n"
        );
        let tally = count(Command::new("printf").args(["%s", &log]), "").unwrap();
        let report = tally.reports.first().unwrap();
        assert!(report.contains("panicked at x.rs:1:2:\nnever reached\n"), "{report}");
        assert_eq!(report.lines().count(), REPORT_LINES + PANIC_LINES);
    }
}
