//! The Wasm plugins beside the same work in native code: `host/plugin/examples/plugin_bench`, which prints a
//! table of plugin, rows per batch and ns per event.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flumen_tests::{locate, scene};
use serde_json::{Map, Value, json};

use crate::build;

const LIMIT: Duration = Duration::from_secs(900);
/// Rows of the batches that are compared: about what the pipeline makes.
const ROWS: &str = "8000";

/// ns per event by plugin, and `wasm_to_native_ratio` of the filter.
///
/// # Errors
/// If it does not build or run.
pub fn run() -> Result<Value> {
    let mut command: Command = build::cargo();
    command.current_dir(locate::repository()?);
    command.args(["run", "--quiet", "--release", "--package", "flumen-plugin", "--example", "plugin_bench"]);
    let answer = scene::run(command, LIMIT)?;
    if !answer.status.success() {
        bail!("plugin_bench: {} {}", answer.status, answer.stderr.trim());
    }
    figures(&answer.stdout).with_context(|| format!("plugin_bench says something else: {}", answer.stdout))
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
    let ratio = figure("filter_ns_per_event")? / figure("native_filter_ns_per_event")?;
    found.insert("wasm_to_native_ratio".to_owned(), json!(ratio));
    Some(Value::Object(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let table = "plugin  rows  p50 ns/ev\nnative_filter 8000 30.0 29.0\nfilter 1000 99 90 7\nfilter 8000 60.0 59.0 7\nVmRSS: 3 kB\n";
        let expected = json!({ "native_filter_ns_per_event": 30.0, "filter_ns_per_event": 60.0, "wasm_to_native_ratio": 2.0 });
        assert_eq!(figures(table), Some(expected));
    }
}
