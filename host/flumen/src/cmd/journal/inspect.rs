//! `inspect`: segments, commits, cursors, positions and rates.

use flumen_journal::inspect::{FrameView, Inspector};
use serde_json::{Value, json};

use super::shown_time;
use crate::cmd::print_json;
use crate::exit::Failure;
use crate::{Output, cmd};

/// Prints what is on disk.
pub fn run(inspector: &Inspector, commits: bool, output: Output) -> Result<(), Failure> {
    let report = report(inspector, commits)?;
    if output == Output::Json {
        return print_json(&report);
    }
    print(&report, commits);
    Ok(())
}

/// What went through the journal in a time.
#[derive(Default)]
struct Rates {
    /// When the first and the last commit were made, ns since the Unix epoch.
    span: Option<(i64, i64)>,
    commits: u64,
    events: u64,
    bytes: u64,
}

impl Rates {
    fn add(&mut self, time_ns: i64, events: u64, bytes: u64) {
        self.span = Some(self.span.map_or((time_ns, time_ns), |(a, b)| (a.min(time_ns), b.max(time_ns))));
        self.commits += 1;
        self.events += events;
        self.bytes += bytes;
    }

    /// Per second over the whole span; nothing to say of less than two commits.
    fn report(&self) -> Value {
        let Some((from, to)) = self.span.filter(|(from, to)| from < to) else { return Value::Null };
        let seconds = (to - from) as f64 / 1e9;
        let rate = |amount: u64| amount as f64 / seconds;
        json!({
            "from": shown_time(from), "to": shown_time(to), "commits_per_s": rate(self.commits),
            "events_per_s": rate(self.events), "bytes_per_s": rate(self.bytes),
        })
    }
}

fn report(inspector: &Inspector, commits: bool) -> Result<Value, Failure> {
    let registers = inspector.present()?;
    let mut rates = Rates::default();
    let channels: Vec<Value> = registers
        .channels
        .iter()
        .map(|channel| {
            let readers: Vec<Value> =
                channel.readers.iter().map(|r| json!({ "reader": r.name, "cursor": r.cursor, "live": r.live, "behind": channel.head.saturating_sub(r.cursor) })).collect();
            json!({ "channel": channel.name, "head": channel.head, "live": channel.live, "readers": readers })
        })
        .collect();
    let key = |key: &[u8]| key.escape_ascii().to_string();
    let positions: Vec<Value> =
        registers.positions.iter().map(|(k, value)| json!({ "key": key(k), "bytes": value.len() })).collect();
    let mut segments = Vec::new();
    for segment in inspector.segments()? {
        let frames = inspector.frames(segment.id)?;
        let (mut count, mut events, mut bytes, mut damage) = (0u64, 0u64, 0u64, Vec::new());
        let mut listed = Vec::new();
        for frame in &frames {
            match frame {
                FrameView::Commit(commit) => {
                    count += 1;
                    bytes += commit.bytes;
                    let rows: u64 = commit.puts.iter().map(|put| u64::from(put.rows)).sum();
                    events += rows;
                    rates.add(commit.time_ns, rows, commit.bytes);
                    if commits {
                        listed.push(json!({
                            "commit": commit.commit, "time": shown_time(commit.time_ns), "offset": commit.offset, "bytes": commit.bytes,
                            "durable": commit.durable, "puts": commit.puts.len(), "events": rows,
                            "acks": commit.acks.len(), "positions": commit.positions.len(),
                        }));
                    }
                }
                FrameView::Checkpoint { bytes: frame_bytes, .. } => bytes += frame_bytes,
                FrameView::Damage { offset, bytes } => {
                    damage.push(json!({ "offset": offset, "bytes": bytes }))
                }
            }
        }
        segments.push(json!({
            "segment": segment.name, "file_bytes": segment.file_bytes, "used_bytes": bytes, "commits": count,
            "key": segment.key.map(|key| key.id.to_string()), "events": events, "valid_header": segment.header.is_some(), "damage": damage, "frames": listed,
        }));
    }
    let snapshots: Vec<Value> = inspector
        .snapshots()
        .into_iter()
        .map(|(name, slot)| match slot {
            Ok(snapshot) => json!({ "slot": name, "last_commit": snapshot.registers.last_commit }),
            Err(error) => json!({ "slot": name, "invalid": error }),
        })
        .collect();
    let damaged: Vec<Value> = inspector
        .damage()?
        .into_iter()
        .map(|(file, bytes)| json!({ "file": file, "bytes": bytes }))
        .collect();
    Ok(json!({
        "last_commit": registers.last_commit, "channels": channels, "positions": positions,
        "rates": rates.report(), "segments": segments, "snapshots": snapshots, "damaged": damaged,
    }))
}

fn print(report: &Value, commits: bool) {
    let list =
        |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let number = |value: &Value, key: &str| value.get(key).and_then(Value::as_u64).unwrap_or(0);
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or("?").to_string();
    let size = |value: &Value, key: &str| cmd::status::size(number(value, key));
    println!("cursors and positions as of commit {}", number(report, "last_commit"));
    if let Some(rates) = report.get("rates").filter(|rates| !rates.is_null()) {
        let rate = |key: &str| rates.get(key).and_then(Value::as_f64).unwrap_or(0.0);
        println!(
            "rates     {:.1} commits/s, {:.0} events/s, {}/s ({} to {})",
            rate("commits_per_s"),
            rate("events_per_s"),
            cmd::status::size(rate("bytes_per_s") as u64),
            text(rates, "from"),
            text(rates, "to")
        );
    }
    for channel in list(report, "channels") {
        println!("channel   {:<16} {} events put", text(&channel, "channel"), number(&channel, "head"));
        for reader in list(&channel, "readers") {
            let is_live = reader.get("live").and_then(Value::as_bool).unwrap_or(true);
            println!(
                "  reader  {:<16} acknowledged up to {}, {} behind{}",
                text(&reader, "reader"),
                number(&reader, "cursor"),
                number(&reader, "behind"),
                if is_live { "" } else { " (gone)" }
            );
        }
    }
    for position in list(report, "positions") {
        println!("position  {} ({} bytes)", text(&position, "key"), number(&position, "bytes"));
    }
    for segment in list(report, "segments") {
        println!(
            "segment   {}  {} commits, {} events, {} used of {}{}",
            text(&segment, "segment"),
            number(&segment, "commits"),
            number(&segment, "events"),
            size(&segment, "used_bytes"),
            size(&segment, "file_bytes"),
            segment.get("key").and_then(Value::as_str).map(|key| format!(", key {key}")).unwrap_or_default()
        );
        for damage in list(&segment, "damage") {
            println!("  DAMAGE  at {}, {} bytes", number(&damage, "offset"), number(&damage, "bytes"));
        }
        for frame in list(&segment, "frames").iter().filter(|_| commits) {
            println!(
                "  commit  {} {} at {}: {} bytes, {} puts, {} events, {} acks, {} positions",
                number(frame, "commit"),
                text(frame, "time"),
                number(frame, "offset"),
                number(frame, "bytes"),
                number(frame, "puts"),
                number(frame, "events"),
                number(frame, "acks"),
                number(frame, "positions")
            );
        }
    }
    for slot in list(report, "snapshots") {
        match slot.get("invalid").and_then(Value::as_str) {
            Some(reason) => println!("snapshot  {}  not valid: {reason}", text(&slot, "slot")),
            None => {
                println!("snapshot  {}  as of commit {}", text(&slot, "slot"), number(&slot, "last_commit"))
            }
        }
    }
    for damaged in list(report, "damaged") {
        println!("damaged   {} ({} bytes), copied aside", text(&damaged, "file"), number(&damaged, "bytes"));
    }
}
