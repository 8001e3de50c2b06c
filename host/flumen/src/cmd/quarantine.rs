//! `flumen quarantine`: events that could not be processed or delivered, read-only, also while the agent runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::Array;
use flumen_event::Batch;
use flumen_journal::OsDisk;
use flumen_journal::inspect::{Events, InspectError, Inspector};
use flumen_pipeline::quarantine as q;
use serde_json::{Value, json};

use crate::agent::{QUARANTINE_DIR, pipeline_dir};
use crate::cmd::{self, event_json, pipelines_in, print_json};
use crate::exit::Failure;
use crate::{Output, cmd::load};

/// What to do with the quarantine.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Count events by pipeline, plugin and reason.
    List(Which),
    /// Print the events themselves, each with its reason.
    Show {
        #[command(flatten)]
        which: Which,
        /// Print at most this many events.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// Only events that this plugin or component could not take.
        #[arg(long)]
        by: Option<String>,
    },
}

/// Whose quarantine.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// The agent's flumen.toml (to find its data directory). Default: flumen.toml in this directory.
    paths: Vec<PathBuf>,
    /// The agent's data directory, instead of a configuration.
    #[arg(long, conflicts_with = "paths")]
    data_dir: Option<PathBuf>,
    /// Only this pipeline.
    #[arg(long)]
    pipeline: Option<String>,
}

/// Does it.
pub fn run(command: Command, output: Output) -> Result<(), Failure> {
    match command {
        Command::List(which) => list(which, output),
        Command::Show { which, limit, by } => show(which, limit, by.as_deref(), output),
    }
}

/// Calls `visit` with each batch of each pipeline's quarantine until it says stop.
fn each_batch(
    which: Which,
    mut visit: impl FnMut(&str, u64, &Batch) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let data_dir = match which.data_dir {
        Some(data_dir) => data_dir,
        None => load(&which.paths)?.0.data_dir,
    };
    let names = match which.pipeline {
        Some(name) => {
            let known = pipelines_in(&data_dir)?;
            if !known.contains(&name) {
                return Err(anyhow::anyhow!("no pipeline {name:?}; there are: {}", known.join(", ")).into());
            }
            vec![name]
        }
        None => pipelines_in(&data_dir)?,
    };
    for name in names {
        let dir = pipeline_dir(&data_dir, &name).join(QUARANTINE_DIR);
        let inspector = Inspector::open(Arc::new(OsDisk), &dir)?;
        let registers = inspector.registers()?.unwrap_or_default();
        let kept = registers.channels.iter().find(|channel| channel.name == q::KEPT_CHANNEL);
        let from = kept.and_then(|channel| channel.readers.first()).map_or(0, |reader| reader.cursor);
        let mut events: Events<'_> = match inspector.events(q::KEPT_CHANNEL, from) {
            Ok(events) => events,
            Err(InspectError::NoChannel { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        while let Some(rows) = events.next().transpose()? {
            if !visit(&name, rows.first, &rows.batch)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn header<'a>(batch: &'a Batch, name: &str, row: usize) -> &'a str {
    batch.header(name).filter(|values| values.is_valid(row)).map_or("", |values| values.value(row))
}

fn list(which: Which, output: Output) -> Result<(), Failure> {
    type Group = (String, String, String, String, String);
    let mut groups: BTreeMap<Group, u64> = BTreeMap::new();
    each_batch(which, |pipeline, _, batch| {
        for row in 0..batch.rows() {
            let of = |name: &str| header(batch, name, row).to_string();
            let group = (
                pipeline.to_string(),
                of(q::HEADER_BY),
                of(q::HEADER_KIND),
                of(q::HEADER_HASH),
                of(q::HEADER_REASON),
            );
            *groups.entry(group).or_default() += 1;
        }
        Ok(true)
    })?;
    let total: u64 = groups.values().sum();
    if output == Output::Json {
        let groups: Vec<Value> = groups
            .into_iter()
            .map(|((pipeline, by, kind, hash, reason), events)| {
                json!({ "pipeline": pipeline, "by": by, "kind": kind, "hash": hash, "reason": reason, "events": events })
            })
            .collect();
        return print_json(&json!({ "events": total, "groups": groups }));
    }
    for ((pipeline, by, kind, hash, reason), events) in &groups {
        let version = if hash.is_empty() { String::new() } else { format!(" {hash:.12}") };
        println!("{events:>8}  {pipeline}  {by}{version} {kind}: {reason}");
    }
    println!("{}", crate::exit::counted(usize::try_from(total)?, "event"));
    Ok(())
}

fn show(which: Which, limit: usize, by: Option<&str>, output: Output) -> Result<(), Failure> {
    let mut left = limit;
    each_batch(which, |pipeline, first, batch| {
        for (row, number) in (0..batch.rows()).zip(first..) {
            if by.is_some_and(|by| by != header(batch, q::HEADER_BY, row)) {
                continue;
            }
            if left == 0 {
                eprintln!("there are more; raise --limit");
                return Ok(false);
            }
            left -= 1;
            if output == Output::Json {
                let mut event = event_json(batch, row);
                if let Some(event) = event.as_object_mut() {
                    event.insert("pipeline".into(), pipeline.into());
                    event.insert("number".into(), number.into());
                }
                cmd::print_json(&event)?;
            } else {
                let body = String::from_utf8_lossy(batch.body().value(row)).escape_debug().to_string();
                let (plugin, kind) = (header(batch, q::HEADER_BY, row), header(batch, q::HEADER_KIND, row));
                println!(
                    "#{number} {pipeline}: {plugin} {kind}: {}\n    {body}",
                    header(batch, q::HEADER_REASON, row)
                );
            }
        }
        Ok(true)
    })
}
