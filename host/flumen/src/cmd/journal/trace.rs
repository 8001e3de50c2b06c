//! `trace`: one batch's life. What the files say; and, if the agent runs, what it has handed out and not yet delivered.

use std::path::Path;
use std::time::Duration;

use flumen_journal::inspect::trace::{ChannelTrace, ReaderTrace, Trace, Wanted, trace};
use serde_json::{Value, json};

use super::{Place, shown_time};
use crate::cmd::{print_json, status};
use crate::exit::Failure;
use crate::{Output, control};

/// Follows it and tells.
pub fn run(place: &Place, id: &str, output: Output) -> Result<(), Failure> {
    let wanted = wanted(id)?;
    let inspector = place.inspector()?;
    let Some(found) = trace(&inspector, &wanted)? else {
        return Err(gone(&inspector, id, &wanted)?);
    };
    let handed_out = HandedOut::ask(&place.journal_dir());
    let report = report(&found, &handed_out);
    if output == Output::Json {
        return print_json(&report);
    }
    print(&found, &handed_out);
    Ok(())
}

fn wanted(id: &str) -> Result<Wanted, Failure> {
    let number = |text: &str| text.trim_start_matches('#').parse::<u64>().ok();
    let event = id.rsplit_once(':').and_then(|(channel, event)| Some((channel.to_owned(), number(event)?)));
    let identity =
        id.split_once('/').and_then(|(stream, position)| Some((number(stream)?, number(position)?)));
    match (number(id), event, identity) {
        (Some(commit), ..) => Ok(Wanted::Commit(commit)),
        (_, Some((channel, number)), _) => Ok(Wanted::Event { channel, number }),
        (_, _, Some((stream, position))) => Ok(Wanted::Identity { stream, position }),
        _ => Err(anyhow::anyhow!(
            "{id:?} names no batch: write a commit as 17, an event of a channel as main:1234, or an identity as STREAM/POSITION"
        )
        .into()),
    }
}

/// Why there is nothing to follow.
fn gone(
    inspector: &flumen_journal::inspect::Inspector,
    id: &str,
    wanted: &Wanted,
) -> Result<Failure, Failure> {
    let present = inspector.present()?;
    let first =
        inspector.segments()?.iter().find_map(|segment| segment.header).map(|header| header.first_commit);
    let first = first.unwrap_or_default();
    let done = "every reader has acknowledged it, and its segment is deleted";
    let reason = match wanted {
        Wanted::Commit(number) if *number < first => {
            format!("the journal begins with commit {first}: {done}")
        }
        Wanted::Commit(_) => format!("the last commit is {}", present.last_commit),
        Wanted::Event { channel, number } => {
            match present.channels.iter().find(|known| known.name == *channel) {
                None => "there is no such channel".to_owned(),
                Some(known) if *number >= known.head => format!("the channel ends at {}", known.head),
                Some(_) => done.to_owned(),
            }
        }
        Wanted::Identity { .. } => format!("no event from commit {first} on has it"),
    };
    Ok(anyhow::anyhow!("{id} is not in the journal: {reason}").into())
}

/// How long the agent may take: without its answer what it handed out seems to wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the running agent says of its sinks; empty without one.
struct HandedOut(Vec<(String, u64)>);

impl HandedOut {
    /// Asks the agent whose pipeline this journal is of.
    fn ask(journal: &Path) -> HandedOut {
        HandedOut(Self::sinks(journal).unwrap_or_default())
    }

    fn sinks(journal: &Path) -> Option<Vec<(String, u64)>> {
        let journal = journal.canonicalize().ok()?;
        let pipeline = journal.parent()?;
        let name = pipeline.file_name()?.to_str()?;
        let reply = control::ask_within(pipeline.parent()?.parent()?, "status", PATIENCE).ok()?;
        let status: Value = serde_json::from_str(&reply).ok()?;
        let pipelines = status.get("pipelines")?.as_array()?;
        let of_name = |pipeline: &&Value| pipeline.get("name").and_then(Value::as_str) == Some(name);
        let sinks = pipelines.iter().find(of_name)?.get("sinks")?.as_array()?;
        let figure = |sink: &Value| {
            let at = sink.get("metrics")?.get("handed_out_position")?.as_u64()?;
            Some((sink.get("name")?.as_str()?.to_owned(), at))
        };
        Some(sinks.iter().filter_map(figure).collect())
    }

    /// How far a reader is, if the agent runs.
    fn of(&self, reader: &str) -> Option<u64> {
        self.0.iter().find(|(name, _)| name == reader).map(|(_, at)| *at)
    }
}

/// The word for where a put is at a reader.
fn state(channel: &ChannelTrace, reader: &ReaderTrace, handed_out: &HandedOut) -> &'static str {
    let handed_out = handed_out.of(&reader.name);
    match (reader.acknowledged, reader.cursor) {
        (Some(_), _) => "acknowledged",
        (_, cursor) if cursor >= channel.end => "acknowledged",
        (_, cursor) if cursor > channel.first => "acknowledged in part",
        _ if handed_out.is_some_and(|at| at >= channel.end) => "handed out",
        _ if handed_out.is_some_and(|at| at > channel.first) => "handed out in part",
        _ => "waiting",
    }
}

fn report(trace: &Trace, handed_out: &HandedOut) -> Value {
    let reader = |channel: &ChannelTrace, reader: &ReaderTrace| {
        let positions: Vec<String> =
            reader.positions.iter().map(|key| key.escape_ascii().to_string()).collect();
        json!({
            "reader": reader.name, "state": state(channel, reader, handed_out), "cursor": reader.cursor,
            "handed_out": handed_out.of(&reader.name), "commit": reader.acknowledged.map(|(commit, _)| commit),
            "time": reader.acknowledged.map(|(_, time)| shown_time(time)), "positions": positions,
        })
    };
    let channel = |channel: &ChannelTrace| {
        let readers: Vec<Value> = channel.readers.iter().map(|it| reader(channel, it)).collect();
        json!({ "channel": channel.name, "first": channel.first, "end": channel.end, "readers": readers })
    };
    let puts = trace.puts.iter().map(|put| {
        let identity = |(stream, first, last): &(u64, u64, u64)| {
            json!({ "stream": stream, "first": first, "last": last })
        };
        json!({
            "events": put.rows, "bytes": put.bytes,
            "identities": put.identities.iter().map(identity).collect::<Vec<_>>(),
            "channels": put.channels.iter().map(channel).collect::<Vec<_>>(),
        })
    });
    let positions = trace
        .commit
        .positions
        .iter()
        .map(|(key, value)| json!({ "key": key.escape_ascii().to_string(), "bytes": value.len() }));
    json!({
        "commit": trace.commit.commit, "time": shown_time(trace.commit.time_ns), "segment": trace.segment,
        "offset": trace.commit.offset, "bytes": trace.commit.bytes, "durable": trace.is_durable,
        "positions": positions.collect::<Vec<_>>(), "state_writes": trace.commit.state.len(),
        "puts": puts.collect::<Vec<_>>(),
    })
}

fn print(trace: &Trace, handed_out: &HandedOut) {
    let commit = &trace.commit;
    for (key, value) in &commit.positions {
        println!("read          {} ({} bytes of position)", key.escape_ascii(), value.len());
    }
    let durable =
        if trace.is_durable { "durable" } else { "the last one: nothing behind it says that it is durable" };
    let (at, size) = (shown_time(commit.time_ns), status::size(commit.bytes));
    println!(
        "committed     {} at {at}, {size} in {} at {}, {durable}",
        commit.commit, trace.segment, commit.offset
    );
    if !commit.state.is_empty() {
        println!("              {} writes of plugins' state", commit.state.len());
    }
    for put in &trace.puts {
        println!("put           {} events, {}", put.rows, status::size(put.bytes));
        for (stream, first, last) in &put.identities {
            println!("              identities {stream}/{first} to {stream}/{last}");
        }
        for channel in &put.channels {
            let ChannelTrace { name, first, end, readers } = channel;
            println!("  channel     {name}: {first} to {}", end.saturating_sub(1));
            for reader in readers {
                let state = state(channel, reader, handed_out);
                let told = match reader.acknowledged {
                    Some((commit, time)) => format!("by commit {commit} at {}", shown_time(time)),
                    None => format!("the reader is at {}", reader.cursor),
                };
                println!("    {:<12} {state}, {told}", reader.name);
                for key in &reader.positions {
                    println!("                 with the position {}", key.escape_ascii());
                }
            }
        }
    }
}
