//! `cargo xtask bench journal`: the file journal beside what its disk does, in one run: `host/journal/examples/journal_bench`,
//! which prints tables for people, and lines `figure NAME VALUE`.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flumen_tests::{locate, scene};
use serde_json::{Map, Value, json};

use super::{input, machine};
use crate::build;

const LIMIT: Duration = Duration::from_secs(3_600);

/// Figures without which the run has not measured what it should.
const NEEDED: [&str; 4] = ["commit_mb_s", "ratio_to_raw_sync", "commit_p50_ms", "commit_p99_ms"];

/// How long.
#[derive(clap::Args)]
pub struct Arguments {
    /// Rounds; medians of them are told
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// One JSON object as the last line
    #[arg(long)]
    json: bool,
}

/// Measures.
///
/// # Errors
/// If it does not build or run, or says something else.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    // The journal alone: it needs no wasmtime.
    let build =
        ["build", "--quiet", "--release", "--package", "flumen-journal", "--example", "journal_bench"];
    build::check(build::cargo().current_dir(locate::repository()?).args(build))?;
    let mut command = Command::new(locate::target_dir()?.join("release/examples/journal_bench"));
    command.arg(input::dir()?.join("journal")).arg(arguments.rounds.to_string());
    let answer = scene::run(command, LIMIT)?;
    print!("{}", answer.stdout);
    if !answer.status.success() {
        bail!("journal_bench: {} {}", answer.status, answer.stderr.trim());
    }
    let mut figures = figures(&answer.stdout).context("journal_bench says something else")?;
    if arguments.json {
        figures.insert("rounds".to_owned(), json!(arguments.rounds));
        figures.insert("machine".to_owned(), machine::describe());
        println!("{}", Value::Object(figures));
    }
    Ok(ExitCode::SUCCESS)
}

fn figures(told: &str) -> Option<Map<String, Value>> {
    let mut found = Map::new();
    for line in told.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["figure", name, value] = words.as_slice() {
            found.insert((*name).to_owned(), json!(value.parse::<f64>().ok()?));
        }
    }
    NEEDED.iter().all(|name| found.contains_key(*name)).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read() {
        let told = "a table 1 2\nfigure commit_mb_s 300.5\nfigure ratio_to_raw_sync 0.9\nfigure commit_p50_ms 1\n\
                    figure commit_p99_ms 2\nfigure one_commits_s 7\n";
        assert_eq!(figures(told).unwrap()["one_commits_s"], json!(7.0));
        assert_eq!(figures(told).unwrap().len(), 5);
        assert!(figures(&told.replace("ratio_to_raw_sync", "other")).is_none());
        assert!(figures("figure commit_mb_s many\n").is_none());
    }
}
