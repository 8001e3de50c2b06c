//! The Wasm plugins beside the same work in native code: `host/plugin/examples/plugin_bench`, which prints a
//! table of plugin, rows per batch and ns per event.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flumen_tests::{locate, scene};
use serde_json::{Map, Value, json};

use crate::build;

const LIMIT: Duration = Duration::from_secs(900);
/// Rows of the batches that are compared: about what the pipeline makes.
const ROWS: &str = "8000";

/// Rows of the batches that the goals are about.
const GOAL_ROWS: &str = "1000";

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
    build::languages()?;
    let table = table()?;
    if arguments.json {
        let figures = all_figures(&table).with_context(|| format!("plugin_bench says something else: {table}"))?;
        println!("{figures}");
    } else {
        print!("{table}");
    }
    Ok(ExitCode::SUCCESS)
}

/// `NAME_ns_per_event`, `NAME_instantiate_us`, `NAME_load_ms` of batches of 1,000 rows, and `swap_pause_p99_ms`.
fn all_figures(table: &str) -> Option<Value> {
    let mut found = Map::new();
    for line in table.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [name, GOAL_ROWS, p50, _, _, start @ ..] = words.as_slice() {
            found.insert(format!("{name}_ns_per_event"), json!(p50.parse::<f64>().ok()?));
            if let [instantiate, load] = start {
                found.insert(format!("{name}_instantiate_us"), json!(instantiate.parse::<f64>().ok()?));
                found.insert(format!("{name}_load_ms"), json!(load.parse::<f64>().ok()?));
            }
        }
        if let ["swap", "pause", .., p99] = words.as_slice() {
            found.insert("swap_pause_p99_ms".to_owned(), json!(p99.parse::<f64>().ok()?));
        }
    }
    found.contains_key("swap_pause_p99_ms").then_some(Value::Object(found))
}

/// ns per event by plugin, and `wasm_to_native_ratio` of the filter.
///
/// # Errors
/// If it does not build or run.
pub fn run() -> Result<Value> {
    let table = table()?;
    figures(&table).with_context(|| format!("plugin_bench says something else: {table}"))
}

fn table() -> Result<String> {
    let mut command: Command = build::cargo();
    command.current_dir(locate::repository()?);
    command.args(["run", "--quiet", "--release", "--package", "flumen-plugin", "--example", "plugin_bench", "--"]);
    command.arg(locate::plugins()?);
    let answer = scene::run(command, LIMIT)?;
    if !answer.status.success() {
        bail!("plugin_bench: {} {}", answer.status, answer.stderr.trim());
    }
    Ok(answer.stdout)
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
        let table = "plugin  rows  p50 ns/ev\nnative_substring 8000 30.0 29.0 0\nrust_filter 1000 99 90 7 33.0 0.25\n\
                     rust_filter 8000 60.0 59.0 7 33.0 0.25\nswap pause of 200 swaps, ms: p99 1.5\nVmRSS: 3 kB\n";
        let expected = json!({
            "native_substring_ns_per_event": 30.0, "rust_filter_ns_per_event": 60.0, "wasm_to_native_ratio": 2.0
        });
        assert_eq!(figures(table), Some(expected));
        let expected = json!({
            "rust_filter_ns_per_event": 99.0, "rust_filter_instantiate_us": 33.0, "rust_filter_load_ms": 0.25,
            "swap_pause_p99_ms": 1.5
        });
        assert_eq!(all_figures(table), Some(expected));
    }
}
