//! `flumen journal`: what is on disk, read-only, also while the agent runs.

use std::path::PathBuf;
use std::sync::Arc;

use flumen_journal::OsDisk;
use flumen_journal::inspect::{FrameView, Inspector};
use serde_json::{Value, json};

use crate::cmd::print_json;
use crate::exit::Failure;
use crate::{Output, cmd};

/// What to do with a journal.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show segments, commits, cursors and positions.
    Inspect {
        /// A journal's directory (`DATA_DIR/pipelines/NAME/journal`).
        dir: PathBuf,
        /// Show every commit, not only counts.
        #[arg(long)]
        commits: bool,
    },
}

/// Does it.
pub fn run(command: Command, output: Output) -> Result<(), Failure> {
    let Command::Inspect { dir, commits } = command;
    let inspector = Inspector::open(Arc::new(OsDisk), &dir)?;
    let report = report(&inspector, commits)?;
    if output == Output::Json {
        return print_json(&report);
    }
    print(&report, commits);
    Ok(())
}

fn report(inspector: &Inspector, commits: bool) -> Result<Value, Failure> {
    let registers = inspector.registers()?.unwrap_or_default();
    let channels: Vec<Value> = registers
        .channels
        .iter()
        .map(|channel| {
            let readers: Vec<Value> =
                channel.readers.iter().map(|r| json!({ "reader": r.name, "cursor": r.cursor })).collect();
            json!({ "channel": channel.name, "head": channel.head, "readers": readers })
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
                    if commits {
                        listed.push(json!({
                            "commit": commit.commit, "offset": commit.offset, "bytes": commit.bytes,
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
            "events": events, "valid_header": segment.header.is_some(), "damage": damage, "frames": listed,
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
        "segments": segments, "snapshots": snapshots, "damaged": damaged,
    }))
}

fn print(report: &Value, commits: bool) {
    let list =
        |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let number = |value: &Value, key: &str| value.get(key).and_then(Value::as_u64).unwrap_or(0);
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or("?").to_string();
    let size = |value: &Value, key: &str| cmd::status::size(number(value, key));
    println!(
        "cursors and positions as of commit {} (the newest snapshot or checkpoint)",
        number(report, "last_commit")
    );
    for channel in list(report, "channels") {
        println!("channel   {:<16} {} events put", text(&channel, "channel"), number(&channel, "head"));
        for reader in list(&channel, "readers") {
            println!(
                "  reader  {:<16} acknowledged up to {}",
                text(&reader, "reader"),
                number(&reader, "cursor")
            );
        }
    }
    for position in list(report, "positions") {
        println!("position  {} ({} bytes)", text(&position, "key"), number(&position, "bytes"));
    }
    for segment in list(report, "segments") {
        println!(
            "segment   {}  {} commits, {} events, {} used of {}",
            text(&segment, "segment"),
            number(&segment, "commits"),
            number(&segment, "events"),
            size(&segment, "used_bytes"),
            size(&segment, "file_bytes")
        );
        for damage in list(&segment, "damage") {
            println!("  DAMAGE  at {}, {} bytes", number(&damage, "offset"), number(&damage, "bytes"));
        }
        for frame in list(&segment, "frames").iter().filter(|_| commits) {
            println!(
                "  commit  {} at {}: {} bytes, {} puts, {} events, {} acks, {} positions",
                number(frame, "commit"),
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
