//! One file per command.

pub mod backfill;
pub mod bridge;
pub mod check;
pub mod journal;
pub mod kafka;
pub mod plan;
pub mod plugin;
pub mod quarantine;
pub mod reload;
pub mod run;
pub mod schema;
pub mod status;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use flumen_config::{Code, Sources, SystemEnv};
use flumen_pipeline::plan::AgentPlan;

use crate::exit::Failure;
use crate::registry::registry;

/// Reads the configuration; all errors at once.
pub fn load(paths: &[PathBuf]) -> Result<(AgentPlan, Sources), Failure> {
    let default = [PathBuf::from("flumen.toml")];
    let unnamed = paths.is_empty();
    let paths = if unnamed { &default } else { paths };
    flumen_config::load_agent(paths, &registry(), &SystemEnv).map_err(|mut diagnostics| {
        if unnamed
            && let [only] = diagnostics.as_mut_slice()
            && only.code == Code::FileNotFound
        {
            only.fix = "name a pipeline's file, or go where flumen.toml is".into();
        }
        Failure::Config(diagnostics)
    })
}

/// The data directory of the agent that is meant, to reach it: also if its configuration is wrong at the moment.
pub fn data_dir(paths: &[PathBuf], given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let default = [PathBuf::from("flumen.toml")];
    let found = given.or_else(|| {
        let paths = if paths.is_empty() { &default } else { paths };
        flumen_config::find_data_dir(paths, &registry(), &SystemEnv)
    });
    found.map_or_else(|| Ok(load(paths)?.0.data_dir), Ok)
}

/// Prints a value as JSON on one line.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{}", serde_json::to_string(value)?)?;
    Ok(())
}

/// Pipelines that have a directory below the data directory.
pub fn pipelines_in(data_dir: &Path) -> Result<Vec<String>, Failure> {
    let dir = data_dir.join(crate::agent::PIPELINES_DIR);
    let entries = std::fs::read_dir(&dir).map_err(|error| {
        anyhow::anyhow!("{}: {error} (is {} an agent's data_dir?)", dir.display(), data_dir.display())
    })?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// A private directory for one command, removed with it.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes it in the system's temporary directory.
    pub fn new() -> anyhow::Result<Scratch> {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let name = format!("flumen-{}-{}", std::process::id(), since.as_nanos());
        let path = std::env::temp_dir().join(name);
        // `create_dir` fails on an existing one, so nobody else's directory is ever used.
        std::fs::create_dir(&path).with_context(|| {
            format!("cannot make the temporary directory {} (set TMPDIR)", path.display())
        })?;
        Ok(Scratch(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a temporary directory");
        }
    }
}

/// A batch of lines, for trying things: the time is now, the identity is the line's number.
pub fn lines_batch(lines: &[Vec<u8>], first: u64) -> anyhow::Result<flumen_event::Batch> {
    let now = jiff::Timestamp::now().as_nanosecond();
    let mut builder =
        flumen_event::BatchBuilder::with_capacity(lines.len(), lines.iter().map(Vec::len).sum());
    for (line, position) in lines.iter().zip(first..) {
        builder.push(0, position, i64::try_from(now)?, line);
    }
    Ok(builder.finish(Vec::new())?)
}

/// One event as a JSON value: what `plugin run` and `quarantine show` print.
pub fn event_json(batch: &flumen_event::Batch, row: usize) -> serde_json::Value {
    use arrow_array::Array;
    let body = batch.body().value(row);
    let headers: serde_json::Map<String, serde_json::Value> = batch
        .headers()
        .iter()
        .filter(|header| header.values.is_valid(row))
        .map(|header| (header.name.to_string(), header.values.value(row).into()))
        .collect();
    let time = jiff::Timestamp::from_nanosecond(batch.time().value(row).into()).map(|time| time.to_string());
    serde_json::json!({
        "time": time.unwrap_or_default(),
        "body": String::from_utf8_lossy(body),
        "headers": headers,
        "stream": batch.stream().value(row),
        "position": batch.position().value(row),
    })
}
