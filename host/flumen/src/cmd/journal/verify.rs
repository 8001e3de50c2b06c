//! `verify`: everything is read, and what is damaged is said, in words and by the exit code.

use flumen_journal::inspect::Inspector;
use flumen_journal::inspect::verify::{Damage, Verdict, verify};
use serde_json::{Value, json};

use crate::Output;
use crate::cmd::{print_json, status};
use crate::exit::{FAILED, Failure};

/// Reads and reports.
pub fn run(inspector: &Inspector, output: Output) -> Result<(), Failure> {
    let verdict = verify(inspector)?;
    match output {
        Output::Json => print_json(&report(&verdict))?,
        Output::Human => print(&verdict),
    }
    if verdict.is_sound() { Ok(()) } else { Err(Failure::Reported(FAILED)) }
}

fn report(verdict: &Verdict) -> Value {
    let damage = |damage: &Damage| {
        let Damage { file, offset, bytes, reason } = damage;
        json!({ "file": file, "offset": offset, "bytes": bytes, "reason": reason })
    };
    json!({
        "sound": verdict.is_sound(), "segments": verdict.segments, "commits": verdict.commits,
        "first_commit": verdict.range.map(|range| range.0), "last_commit": verdict.range.map(|range| range.1),
        "events": verdict.events, "bytes": verdict.bytes, "void_frames": verdict.void_frames,
        "state_files": verdict.state_files, "state_blocks": verdict.state_blocks,
        "damage": verdict.damage.iter().map(damage).collect::<Vec<_>>(), "notes": verdict.notes,
    })
}

fn print(verdict: &Verdict) {
    let (first, last) = verdict.range.unwrap_or_default();
    println!(
        "read      {} segments, {} commits ({first} to {last}), {} events, {}",
        verdict.segments,
        verdict.commits,
        verdict.events,
        status::size(verdict.bytes)
    );
    if verdict.state_files > 0 {
        println!("state     {} files, {} blocks", verdict.state_files, verdict.state_blocks);
    }
    for Damage { file, offset, bytes, reason } in &verdict.damage {
        let at = offset.map_or_else(String::new, |offset| format!(" at {offset}"));
        let bytes = bytes.map_or_else(String::new, |bytes| format!(", {bytes} bytes"));
        println!("DAMAGE    {file}{at}{bytes}: {reason}");
    }
    verdict.notes.iter().for_each(|note| println!("note      {note}"));
    if verdict.is_sound() {
        println!("sound     nothing is damaged");
    } else {
        println!(
            "          the agent skips what is damaged, counts it, and goes on; what is left can be read with `flumen journal export`"
        );
    }
}
