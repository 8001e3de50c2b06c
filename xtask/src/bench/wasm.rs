//! The Wasm plugins beside the same work in native code: `host/plugin/examples/plugin_bench`, which prints a
//! table of plugin, rows per batch and ns per event.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flumen_tests::{locate, scene};
use serde_json::{Map, Value, json};

use super::machine;
use crate::build;

const LIMIT: Duration = Duration::from_secs(900);
/// Rows of the batches that are compared: about what the pipeline makes.
const ROWS: &str = "8000";

/// Rows of the batches that the goals are about.
const GOAL_ROWS: &str = "1000";

/// The columns of a start, as they are named in the figures.
const STARTS: [&str; 4] = ["instantiate_us", "open_us", "load_ms", "first_load_ms"];

/// What to measure.
#[derive(clap::Args)]
pub struct Arguments {
    /// One JSON value on standard output
    #[arg(long)]
    json: bool,
}

/// `cargo xtask bench plugins`.
///
/// # Errors
/// If something does not build or run.
pub fn plugins(arguments: &Arguments) -> Result<ExitCode> {
    build::plugins()?;
    build::languages(&build::host(false)?)?;
    let (table, failed) = table()?;
    print!("{table}");
    if arguments.json {
        let figures =
            all_figures(&table).with_context(|| format!("plugin_bench says something else: {table}"))?;
        println!("{figures}");
    }
    // What could be measured is told in any case.
    failed.map_or(Ok(ExitCode::SUCCESS), |failed| bail!("{failed}"))
}

/// `NAME_ns_per_event` of batches of 1,000 rows, what a start takes of each plugin, and `swap_pause_p99_ms`.
fn all_figures(table: &str) -> Option<Value> {
    let mut found = Map::new();
    for line in table.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut put = |name: String, figure: &str| -> Option<()> {
            found.insert(name, json!(figure.parse::<f64>().ok()?));
            Some(())
        };
        if let [name, GOAL_ROWS, p50, _, _, start @ ..] = words.as_slice() {
            put(format!("{name}_ns_per_event"), p50)?;
            for (what, figure) in STARTS.iter().zip(start) {
                put(format!("{name}_{what}"), figure)?;
            }
        }
        if let ["swap", "pause", .., p99] = words.as_slice() {
            put("swap_pause_p99_ms".to_owned(), p99)?;
        }
    }
    let of = |name: &str| found.get(name).and_then(Value::as_f64);
    let ratio = of("rust_filter_ns_per_event")? / of("native_substring_ns_per_event")?;
    found.insert("wasm_to_native_ratio".to_owned(), json!(ratio));
    found.insert("machine".to_owned(), machine::describe());
    found.contains_key("swap_pause_p99_ms").then_some(Value::Object(found))
}

/// ns per event by plugin, and `wasm_to_native_ratio` of the filter.
///
/// # Errors
/// If it does not build or run.
pub fn run() -> Result<Value> {
    let (table, failed) = table()?;
    if let Some(failed) = failed {
        bail!("{failed}");
    }
    figures(&table).with_context(|| format!("plugin_bench says something else: {table}"))
}

/// What it printed, and what went wrong with a part of it.
fn table() -> Result<(String, Option<String>)> {
    // Built as `build::host` builds, for the same dependencies.
    let build = ["build", "--quiet", "--release", "--workspace", "--example", "plugin_bench"];
    build::check(build::cargo().current_dir(locate::repository()?).args(build))?;
    let mut command = Command::new(locate::target_dir()?.join("release/examples/plugin_bench"));
    command.arg(locate::plugins()?);
    let answer = scene::run(command, LIMIT)?;
    let failed = !answer.status.success();
    let failed = failed.then(|| format!("plugin_bench: {} {}", answer.status, answer.stderr.trim()));
    Ok((answer.stdout, failed))
}

fn figures(table: &str) -> Option<Value> {
    let mut found = Map::new();
    for line in table.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [plugin, ROWS, p50, ..] = words.as_slice() {
            found.insert(format!("{plugin}_ns_per_event"), json!(p50.parse::<f64>().ok()?));
        }
    }
    let figure = |name: &str| found.get(name).and_then(Value::as_f64);
    let ratio = figure("rust_filter_ns_per_event")? / figure("native_substring_ns_per_event")?;
    found.insert("wasm_to_native_ratio".to_owned(), json!(ratio));
    Some(Value::Object(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let table = "plugin  rows  p50 ns/ev\nnative_substring 1000 33.0 32.0 0\nnative_substring 8000 30.0 29.0 0\n\
                     rust_filter 1000 99 90 7 33.0 4.5 0.25 1.5\nrust_filter 8000 60.0 59.0 7 33.0 4.5 0.25 1.5\n\
                     swap pause of 200 swaps, ms: p50 0.1, max 2.0, p99 1.5\nVmRSS: 3 kB\n";
        let expected = json!({
            "native_substring_ns_per_event": 30.0, "rust_filter_ns_per_event": 60.0, "wasm_to_native_ratio": 2.0
        });
        assert_eq!(figures(table), Some(expected));
        let expected = json!({
            "native_substring_ns_per_event": 33.0, "rust_filter_ns_per_event": 99.0, "rust_filter_instantiate_us": 33.0,
            "rust_filter_open_us": 4.5, "rust_filter_load_ms": 0.25, "rust_filter_first_load_ms": 1.5,
            "wasm_to_native_ratio": 3.0, "swap_pause_p99_ms": 1.5, "machine": machine::describe()
        });
        assert_eq!(all_figures(table), Some(expected));
    }
}
