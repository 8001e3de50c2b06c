//! `flumen status`: what the running agent says of itself.

use std::collections::BTreeMap;
use std::path::PathBuf;

use flumen_pipeline::memory::release_bytes;
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
    let data_dir = cmd::data_dir(&args.paths, args.data_dir)?;
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
    memory(status);
    reload(status);
    for pipeline in list(status, "pipelines") {
        if pipeline.get("kind").and_then(Value::as_str) == Some("bridge") {
            bridge(pipeline);
            continue;
        }
        println!("\npipeline {}", text(pipeline, "name"));
        if let Some(failure) = pipeline.get("failure").and_then(Value::as_str) {
            println!("  FAILED: {failure}");
        }
        for source in list(pipeline, "sources") {
            let (events, bytes) = (metric(source, "events_out"), metric(source, "bytes_out"));
            line("source", source, &format!("{events} events, {}", size(bytes)));
        }
        for backfill in list(pipeline, "backfills") {
            let (events, read) = (number(backfill, "events"), size(metric(backfill, "bytes_read")));
            let (at, files) = (number(backfill, "file_number"), number(backfill, "files"));
            let file = text(backfill, "file");
            let figures = format!("{events} events put, {read} read, file {at} of {files}: {file}");
            line("backfill", backfill, &figures);
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
            at_risk(channel);
        }
        for sink in list(pipeline, "sinks") {
            for interceptor in list(sink, "interceptors") {
                interceptor_line("  interceptor", interceptor);
            }
            let (events, bytes) = (metric(sink, "events_delivered"), metric(sink, "bytes_delivered"));
            let position = metric(sink, "delivered_position");
            let promise =
                pipeline.get("deliveries").map_or("?", |promises| text(promises, text(sink, "name")));
            line(
                "sink",
                sink,
                &format!("{events} events, {}, delivered to position {position}, {promise}", size(bytes)),
            );
        }
        list(pipeline, "groups").iter().for_each(group_lines);
        for plugin in list(pipeline, "plugins") {
            plugin_line(plugin);
        }
        if let Some(quarantine) = pipeline.get("quarantine") {
            println!("  quarantine   {} events", number(quarantine, "events"));
        }
        if let Some(journal) = pipeline.get("journal") {
            println!(
                "  journal      commit {}, {} in {} segments, {} damaged commits, {} damaged blocks of state",
                number(journal, "last_commit"),
                size(number(journal, "segment_bytes")),
                number(journal, "segments"),
                number(journal, "damaged_commits"),
                number(journal, "damaged_state_blocks")
            );
            for state in journal.get("state").and_then(Value::as_array).into_iter().flatten() {
                let plugin = state.get("plugin").and_then(Value::as_str).unwrap_or_default();
                // What the host itself remembers of a plugin is of no interest here.
                if !plugin.starts_with('#') {
                    let (keys, bytes) = (number(state, "keys"), size(number(state, "bytes")));
                    let left = if is_left_over(pipeline, plugin) { LEFT_OVER } else { "" };
                    println!("  state        {plugin} remembers {keys} keys, {bytes} of memory{left}");
                }
            }
            if let Some(reason) = journal.get("waiting_for").and_then(Value::as_str) {
                println!("  journal      WAITING: {reason}");
            }
        }
    }
}

/// A group, and each of its sinks: which one is at work, which one rests, and what waits for whom.
fn group_lines(group: &Value) {
    println!(
        "  group        {:<16} {} on {}",
        text(group, "name"),
        text(group, "kind"),
        text(group, "channel")
    );
    for member in list(group, "members") {
        let (in_flight, in_doubt) = (number(member, "in_flight"), number(member, "in_doubt"));
        let rests = member.get("rests_for_s").and_then(Value::as_f64).unwrap_or(0.0);
        let rest = if rests > 0.0 { format!(", rests for {rests:.1} s") } else { String::new() };
        let doubt = match in_doubt {
            0 => String::new(),
            events => format!(", {events} of them wait for its destination to say whether it has them"),
        };
        println!(
            "               {:<16} {:<10} {in_flight} events not acknowledged{doubt}{rest}",
            text(member, "sink"),
            text(member, "state"),
        );
    }
}

fn bridge(bridge: &Value) {
    println!("\nbridge {} ({})", text(bridge, "name"), text(bridge, "file"));
    if let Some(failure) = bridge.get("failure").and_then(Value::as_str) {
        println!("  FAILED: {failure}");
    }
    for source in list(bridge, "sources") {
        let (events, bytes) = (metric(source, "events_out"), metric(source, "bytes_out"));
        line("source", source, &format!("{events} records read, {}", size(bytes)));
    }
    for sink in list(bridge, "sinks") {
        let (records, files) = (metric(sink, "events_delivered"), metric(sink, "files_finished"));
        let open = sink.get("open_bucket").and_then(Value::as_str).unwrap_or("none yet");
        line("sink", sink, &format!("{records} records in {files} files, open bucket {open}"));
    }
}

/// Of a channel in memory: what would be lost now, and what was.
fn at_risk(channel: &Value) {
    let reliability = text(channel, "reliability");
    if reliability == "end-to-end" || reliability == "?" {
        return;
    }
    let counts = [
        ("events_lost", "lost when the agent died"),
        ("events_dropped", "dropped"),
        ("events_overflowed", "went to disk"),
    ];
    let counted =
        counts.iter().map(|(key, words)| (number(channel, key), words)).filter(|(count, _)| *count > 0);
    let counted: String = counted.map(|(count, words)| format!(", {count} {words}")).collect();
    println!("               {reliability}: {} events at risk{counted}", number(channel, "events_at_risk"));
}

fn line(kind: &str, component: &Value, figures: &str) {
    println!("  {kind:<12} {:<16} {:<9} {figures}", text(component, "name"), text(component, "state"));
    if let Some(error) = component.get("error").and_then(Value::as_str) {
        let since = component.get("error_for_s").and_then(Value::as_f64).unwrap_or(0.0);
        println!("               error for {since:.0} s: {error}");
    }
    gauges(component).iter().for_each(|line| println!("               {line}"));
}

/// What a component tells besides the metrics of its kind: names with `/`, one line for what is before the last.
fn gauges(component: &Value) -> Vec<String> {
    let mut groups: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in component.get("metrics").and_then(Value::as_object).into_iter().flatten() {
        if let (Some((group, name)), Some(value)) = (name.rsplit_once('/'), value.as_u64()) {
            groups.entry(group).or_default().push(gauge(name, value));
        }
    }
    groups.into_iter().map(|(group, gauges)| format!("{group}: {}", gauges.join(", "))).collect()
}

/// `rtt_p99_us` of 1500 is `rtt p99 1.5 ms`.
fn gauge(name: &str, value: u64) -> String {
    let (words, shown) = match name.rsplit_once('_') {
        Some((words, "us")) => (words, format!("{:.1} ms", value as f64 / 1_000.0)),
        Some((words, "bytes")) => (words, size(value)),
        Some((words, "events")) => (words, format!("{value} events")),
        _ => (name, value.to_string()),
    };
    format!("{} {shown}", words.replace('_', " "))
}

fn interceptor_line(kind: &str, interceptor: &Value) {
    let events = metric(interceptor, "events_in");
    let each = metric(interceptor, "busy_ns").checked_div(events).unwrap_or(0);
    let bypassed = match metric(interceptor, "events_bypassed") {
        0 => String::new(),
        bypassed => format!("{bypassed} passed it by, "),
    };
    let figures = format!(
        "{events} in, {} out, {} dropped, {} rejected, {} failed, {bypassed}{each} ns per event",
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
    let rollbacks = number(plugin, "rollbacks");
    if plugin.get("on_probation").and_then(Value::as_bool) == Some(true) {
        println!("               new, on probation");
    }
    if rollbacks > 0 {
        println!("               {rollbacks} new versions were rolled back");
    }
    if let Some(egress) = stats.get("egress").filter(|egress| egress.is_object()) {
        println!(
            "               egress: {} calls, {} failed ({} denied, {} timeouts), {} sent, {} received, {} connections open",
            number(egress, "calls"),
            number(egress, "failures"),
            number(egress, "denied"),
            number(egress, "timeouts"),
            size(number(egress, "bytes_sent")),
            size(number(egress, "bytes_received")),
            number(egress, "open_connections")
        );
    }
    if let Some(error) = plugin.get("last_swap_error").and_then(Value::as_str) {
        println!("               swap failed, the old version runs on: {error}");
    }
}

/// What the process has of its own, and what it may have.
fn memory(status: &Value) {
    let Some(bytes) = status.get("memory_bytes").and_then(Value::as_u64) else { return };
    let Some(max_bytes) = status.get("memory_max_bytes").and_then(Value::as_u64) else {
        return println!("memory {}", size(bytes));
    };
    println!("memory {} of {} ({})", size(bytes), size(max_bytes), text(status, "memory_max_from"));
    if status.get("is_held_by_memory").and_then(Value::as_bool) == Some(true) {
        println!("  HELD: sources wait until it is below {}", size(release_bytes(max_bytes)));
    }
}

/// The generation, if it ever changed, and what the last reload said.
fn reload(status: &Value) {
    let generation = number(status, "generation");
    let Some(last) = status.get("last_reload").filter(|last| !last.is_null()) else { return };
    let (by, seconds) = (text(last, "by"), last.get("seconds_ago").and_then(Value::as_f64).unwrap_or(0.0));
    if last.get("ok").and_then(Value::as_bool) == Some(true) {
        println!("generation {generation}, last reload ({by}) {seconds:.0} s ago");
    } else {
        println!(
            "generation {generation}; the last reload ({by}) {seconds:.0} s ago FAILED and changed nothing:"
        );
        text(last, "text").lines().for_each(|line| println!("  {line}"));
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

/// What is said of the state of an interceptor that was taken out: an edit that is taken back finds it.
const LEFT_OVER: &str = "; no plugin here has this name now: it is kept for one that has";

/// Whether no plugin of the pipeline has the name of what is remembered.
fn is_left_over(pipeline: &Value, name: &str) -> bool {
    !list(pipeline, "plugins").iter().any(|plugin| text(plugin, "name") == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_without_a_plugin_is_left_over() {
        let pipeline = serde_json::json!({ "plugins": [{ "name": "dedup" }] });
        assert!(!is_left_over(&pipeline, "dedup"));
        assert!(is_left_over(&pipeline, "count"));
        assert!(is_left_over(&serde_json::json!({}), "dedup"));
    }

    #[test]
    fn gauges_of_one_broker_stand_in_one_line() {
        let component = serde_json::json!({ "metrics": {
            "events_delivered": 7, "kafka/out_queue_events": 3, "kafka/out_queue_bytes": 2048,
            "kafka/k1:9092/rtt_p99_us": 1500, "kafka/k1:9092/retries": 2,
        }});
        assert_eq!(
            gauges(&component),
            ["kafka: out queue 2.0 KiB, out queue 3 events", "kafka/k1:9092: retries 2, rtt p99 1.5 ms"]
        );
    }
}
