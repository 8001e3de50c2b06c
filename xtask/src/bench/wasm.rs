//! The Wasm plugins beside the same work in native code: `host/plugin/examples/plugin_bench`.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flumen_tests::{locate, scene};
use serde_json::Value;

use crate::build;

const LIMIT: Duration = Duration::from_secs(600);

/// The last line of `plugin_bench --json`.
///
/// # Errors
/// If it does not build or run.
pub fn run() -> Result<Value> {
    let mut command: Command = build::cargo();
    command.current_dir(locate::repository()?).env(locate::PLUGINS_VAR, locate::plugins()?);
    command.args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "flumen-plugin",
        "--example",
        "plugin_bench",
        "--",
    ]);
    command.arg("--json").arg(locate::plugins()?);
    let answer = scene::run(command, LIMIT)?;
    if !answer.status.success() {
        bail!("plugin_bench: {} {}", answer.status, answer.stderr.trim());
    }
    let last = answer.stdout.lines().last().context("plugin_bench said nothing")?;
    serde_json::from_str(last).with_context(|| format!("plugin_bench gave no JSON: {last}"))
}
