//! `cargo xtask bench dedup`: file to file through `dedup`, which remembers every line: its keys are all alive at the end.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;

use super::flumen::{self, Variant};
use super::{input, machine};
use crate::build;

/// What to measure.
#[derive(clap::Args)]
pub struct Arguments {
    /// Size of the input in MB; a line has 173 bytes, and is a key
    #[arg(long, default_value_t = 350)]
    size_mb: u64,
    /// Measure this binary, in place of a release build
    #[arg(long)]
    binary: Option<PathBuf>,
    /// One JSON object as the last line
    #[arg(long)]
    json: bool,
}

/// Events per second that have to be reached, at a million keys or more.
const EVENTS_PER_S_MIN: f64 = 200_000.0;

/// Measures; fails below [`EVENTS_PER_S_MIN`].
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let binary = match &arguments.binary {
        Some(binary) => binary.clone(),
        None => {
            build::plugins()?;
            build::host(true)?
        }
    };
    let input = input::of_size(arguments.size_mb)?;
    if input.lines < 1_000_000 {
        bail!("{} lines are fewer than a million keys: raise --size-mb", input.lines);
    }
    let dir = input::dir()?;
    let events_per_s = |run: &flumen::Run| input.lines as f64 / run.seconds;
    let without = flumen::run(&binary, &input, Variant::NoPlugin, &dir)?;
    let with = flumen::run(&binary, &input, Variant::Dedup, &dir)?;
    println!("{} lines, {} keys alive at the end", input.lines, input.lines);
    for (name, run) in [(Variant::NoPlugin.name(), &without), (Variant::Dedup.name(), &with)] {
        let (rate, cpu, memory) = (events_per_s(run), run.cpu_ns_per_event, run.anonymous_rss_mb);
        println!(
            "{name:36} {rate:10.0} events/s  {cpu:6.0} ns of CPU per event  {memory:5.0} MB of its own at the end"
        );
    }
    let key_bytes = (with.anonymous_rss_mb - without.anonymous_rss_mb) * 1e6 / input.lines as f64;
    println!("memory for each key, about: {key_bytes:.0} bytes");
    let rate = events_per_s(&with);
    if arguments.json {
        let figures = json!({
            "dedup_events_per_s": rate,
            "dedup_keys": input.lines,
            "dedup_memory_bytes_per_key": key_bytes,
            "dedup_cpu_ns_per_event": with.cpu_ns_per_event,
            "no_plugin_events_per_s": events_per_s(&without),
            "machine": machine::describe(),
        });
        println!("{figures}");
    }
    Ok(if rate >= EVENTS_PER_S_MIN { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
