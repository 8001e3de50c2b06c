//! `flumen plugin shadow`: a new version beside the one that runs, on live events, without effect.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flumen_event::Batch;
use flumen_plugin::{PluginSlot, ShadowBounds};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::cmd::event_json;
use crate::exit::{FAILED, Failure};
use crate::{Output, cmd, control};

/// Arguments of `flumen plugin shadow`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 it ran, whatever it found; 1 it could not run.")]
pub struct Args {
    /// The new version: a component, or a core module that wit-bindgen made.
    file: PathBuf,
    /// Beside which one: PIPELINE/INTERCEPTOR, or PIPELINE if it has only one.
    #[arg(long, value_name = "PIPELINE[/INTERCEPTOR]")]
    on: String,
    /// Ends after so many seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Ends after so many events.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rows: u64,
    /// How many of the events are shown that the two do not agree on.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=100))]
    examples: u64,
    /// The agent's flumen.toml (to find its data directory). Default: flumen.toml in this directory.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The agent's data directory, instead of a configuration.
    #[arg(long, conflicts_with = "config")]
    data_dir: Option<PathBuf>,
}

/// The word of the request to the agent; the rest is JSON.
pub const REQUEST: &str = "shadow ";

/// Beyond its time: loading a large plugin takes a while.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    file: PathBuf,
    on: String,
    seconds: u64,
    rows: u64,
    examples: usize,
}

/// Asks the agent, waits, and prints.
pub fn run(args: Args, output: Output) -> Result<(), Failure> {
    let config: Vec<PathBuf> = args.config.into_iter().collect();
    let data_dir = cmd::data_dir(&config, args.data_dir)?;
    let request = Request {
        file: std::path::absolute(args.file)?,
        on: args.on,
        seconds: args.seconds,
        rows: args.rows,
        examples: usize::try_from(args.examples)?,
    };
    let text = format!("{REQUEST}{}", serde_json::to_string(&request)?);
    let patience = Duration::from_secs(args.seconds) + PATIENCE;
    let reply = control::ask_within(&data_dir, &text, patience)?;
    let answer: Value = serde_json::from_str(&reply)?;
    if output == Output::Json {
        println!("{}", reply.trim_end());
    }
    if let Some(error) = answer.get("error").and_then(Value::as_str) {
        if output == Output::Human {
            eprintln!("flumen: {error}");
        }
        return Err(Failure::Reported(FAILED));
    }
    if output == Output::Human {
        print(&answer);
    }
    Ok(())
}

fn print(answer: &Value) {
    let number = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
    let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or("?");
    let seconds = answer.get("seconds").and_then(Value::as_f64).unwrap_or(0.0);
    println!("beside {}: {} events in {seconds:.1} s", text("on"), number("events"));
    if number("events_left_out") > 0 {
        println!("  {} more came while it was busy, and were left out", number("events_left_out"));
    }
    println!("  same in both          {}", number("same"));
    println!("  changed               {}", number("changed"));
    println!("  only the running one  {}", number("only_running"));
    println!("  only the new one      {}", number("only_new"));
    let (running, new) = (number("quarantined_running"), number("quarantined_new"));
    println!(
        "  to quarantine         running {running}, new {new} ({} of them failures)",
        number("failed_new")
    );
    if let Some(reason) = answer.get("reason").and_then(Value::as_str) {
        println!("                        the new one: {reason}");
    }
    let (running, new) = (number("running_ns_per_event"), number("new_ns_per_event"));
    println!("  ns per event          running {running}, new {new}");
    for difference in answer.get("differences").and_then(Value::as_array).into_iter().flatten() {
        println!();
        for part in ["input", "running", "new"] {
            for event in difference.get(part).and_then(Value::as_array).into_iter().flatten() {
                println!("  {part:<8} {event}");
            }
        }
    }
}

/// What the agent answers.
pub fn answer(agent: &Arc<Agent>, request: &str) -> Option<String> {
    let request = request.strip_prefix(REQUEST)?;
    let shown = serde_json::from_str(request).map_err(|error| error.to_string());
    let shown = shown.and_then(|request: Request| show(agent, &request));
    Some(shown.unwrap_or_else(|error| json!({ "error": error })).to_string())
}

fn show(agent: &Agent, request: &Request) -> Result<Value, String> {
    let slot = find(agent, &request.on)?;
    let time = Duration::from_secs(request.seconds);
    let bounds = ShadowBounds { time, rows: request.rows, examples: request.examples };
    let report = slot.shadow(&request.file, bounds).map_err(|error| error.to_string())?;
    let events =
        |batch: &Batch| -> Vec<Value> { (0..batch.rows()).map(|row| event_json(batch, row)).collect() };
    let differences: Vec<Value> = (report.differences.iter())
        .map(|it| json!({ "input": events(&it.input), "running": events(&it.running), "new": events(&it.new) }))
        .collect();
    let mut value = serde_json::to_value(&report).map_err(|error| error.to_string())?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("on".into(), request.on.as_str().into());
        fields.insert("differences".into(), differences.into());
    }
    Ok(value)
}

fn find(agent: &Agent, on: &str) -> Result<Arc<PluginSlot>, String> {
    let (pipeline, interceptor) =
        on.split_once('/').map_or((on, None), |(pipeline, name)| (pipeline, Some(name)));
    let running = agent.pipelines();
    let found = running.iter().find(|running| running.pipeline.plan().name == pipeline);
    let found = found.ok_or_else(|| format!("no pipeline {pipeline} runs"))?;
    let plugins = found.plugins.lock().clone();
    let slots: Vec<&Arc<PluginSlot>> = plugins.all().collect();
    let slot = match (interceptor, slots.as_slice()) {
        (Some(name), _) => slots.iter().find(|slot| slot.plan().name == name),
        (None, [only]) => Some(only),
        (None, _) => None,
    };
    slot.map(|slot| (*slot).clone()).ok_or_else(|| {
        let names = slots.iter().map(|slot| slot.plan().name.as_str()).collect::<Vec<_>>().join(", ");
        match interceptor {
            _ if slots.is_empty() => format!("pipeline {pipeline} has no interceptors"),
            Some(name) => format!("pipeline {pipeline} has no interceptor {name}; it has {names}"),
            None => format!(
                "pipeline {pipeline} has several interceptors; name one of {names}: --on {pipeline}/NAME"
            ),
        }
    })
}
