//! `flumen status`: what the running agent says of itself.

use std::path::PathBuf;

use serde_json::Value;

use crate::exit::Failure;
use crate::{Output, cmd, control};

/// Arguments of `flumen status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The agent's flumen.toml (to find its data directory). Default: flumen.toml in this directory.
    paths: Vec<PathBuf>,
    /// The agent's data directory, instead of a configuration.
    #[arg(long, conflicts_with = "paths")]
    data_dir: Option<PathBuf>,
}

/// Asks and prints.
pub fn run(args: Args, output: Output) -> Result<(), Failure> {
    let data_dir = match args.data_dir {
        Some(data_dir) => data_dir,
        None => cmd::load(&args.paths)?.0.data_dir,
    };
    let reply = control::ask(&data_dir, "status")?;
    if output == Output::Json {
        println!("{reply}");
        return Ok(());
    }
    print(&serde_json::from_str(&reply)?);
    Ok(())
}

fn print(status: &Value) {
    println!(
        "agent {}  version {}  pid {}  up {:.0} s",
        text(status, "agent"),
        text(status, "version"),
        number(status, "pid"),
        status.get("uptime_s").and_then(Value::as_f64).unwrap_or(0.0)
    );
    for pipeline in list(status, "pipelines") {
        println!("\npipeline {}", text(pipeline, "name"));
        if let Some(failure) = pipeline.get("failure").and_then(Value::as_str) {
            println!("  FAILED: {failure}");
        }
        for source in list(pipeline, "sources") {
            let (events, bytes) = (metric(source, "events_out"), metric(source, "bytes_out"));
            line("source", source, &format!("{events} events, {}", size(bytes)));
        }
        for interceptor in list(pipeline, "interceptors") {
            interceptor_line("interceptor", interceptor);
        }
        for channel in list(pipeline, "channels") {
            let oldest = channel.get("oldest_unacknowledged_s").and_then(Value::as_f64);
            println!(
                "  channel      {:<16} {} events waiting, {}, {:.1} % full{}",
                text(channel, "name"),
                number(channel, "events"),
                size(number(channel, "bytes")),
                channel.get("fill_percent").and_then(Value::as_f64).unwrap_or(0.0),
                oldest.map_or(String::new(), |age| format!(", oldest {age:.1} s"))
            );
        }
        for sink in list(pipeline, "sinks") {
            for interceptor in list(sink, "interceptors") {
                interceptor_line("  interceptor", interceptor);
            }
            let (events, bytes) = (metric(sink, "events_delivered"), metric(sink, "bytes_delivered"));
            let position = metric(sink, "delivered_position");
            line(
                "sink",
                sink,
                &format!("{events} events, {}, delivered to position {position}", size(bytes)),
            );
        }
        for plugin in list(pipeline, "plugins") {
            plugin_line(plugin);
        }
        if let Some(quarantine) = pipeline.get("quarantine") {
            println!("  quarantine   {} events", number(quarantine, "events"));
        }
        if let Some(journal) = pipeline.get("journal") {
            println!(
                "  journal      commit {}, {} in {} segments, {} damaged commits",
                number(journal, "last_commit"),
                size(number(journal, "segment_bytes")),
                number(journal, "segments"),
                number(journal, "damaged_commits")
            );
            if let Some(reason) = journal.get("waiting_for").and_then(Value::as_str) {
                println!("  journal      WAITING: {reason}");
            }
        }
    }
}

fn line(kind: &str, component: &Value, figures: &str) {
    println!("  {kind:<12} {:<16} {:<9} {figures}", text(component, "name"), text(component, "state"));
    if let Some(error) = component.get("error").and_then(Value::as_str) {
        println!("               error: {error}");
    }
}

fn interceptor_line(kind: &str, interceptor: &Value) {
    let events = metric(interceptor, "events_in");
    let each = metric(interceptor, "busy_ns").checked_div(events).unwrap_or(0);
    let figures = format!(
        "{events} in, {} out, {} dropped, {} rejected, {} failed, {each} ns per event",
        metric(interceptor, "events_out"),
        metric(interceptor, "events_dropped"),
        metric(interceptor, "events_rejected"),
        metric(interceptor, "events_failed")
    );
    line(kind, interceptor, &figures);
}

fn plugin_line(plugin: &Value) {
    let stats = plugin.get("stats").cloned().unwrap_or_default();
    println!(
        "  plugin       {:<16} {:.12} generation {}, {} calls, {} traps, {} timeouts",
        text(plugin, "name"),
        text(plugin, "hash"),
        number(plugin, "version_generation"),
        number(&stats, "calls"),
        number(&stats, "traps"),
        number(&stats, "timeouts")
    );
    if let Some(error) = plugin.get("last_swap_error").and_then(Value::as_str) {
        println!("               swap failed, the old version runs on: {error}");
    }
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("?")
}

fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn metric(component: &Value, name: &str) -> u64 {
    component.get("metrics").map_or(0, |metrics| number(metrics, name))
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    units.iter().find(|(_, unit)| bytes >= *unit).map_or_else(
        || format!("{bytes} B"),
        |(name, unit)| format!("{:.1} {name}", bytes as f64 / *unit as f64),
    )
}
