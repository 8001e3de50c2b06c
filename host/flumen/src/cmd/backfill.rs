//! `flumen backfill`: lines of log files go the way of a source once more. The running agent does it.
//!
//! The command waits for the end and says what was done. An agent goes on with it also when only the command was ended; one that was
//! ended goes on when the same command is given again (see [`flumen_pipeline::backfill`]). What came to its end is remembered, and the
//! same command then puts nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flumen_builtin::backfill::time::{Clock, FORMS};
use flumen_builtin::backfill::{
    self, BEGUN_MAX, Bounds, Count, Cursor, DONE_MAX, Done, Outcome, Reading, Stored, Words, outdated, zone,
};
use flumen_pipeline::backfill::{BackfillError, BackfillProgress};
use flumen_pipeline::plan::{PipelinePlan, SourcePlan};
use flumen_pipeline::reliability::Reliability;
use flumen_pipeline::{DecoderLink, Pipeline};
use flumen_plugin::Role;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::quarantine::time;
use crate::agent::{Agent, on_reject};
use crate::exit::{Failure, counted};
use crate::running::RunningPipeline;
use crate::{Output, cmd, control};

/// The request's first word on the control socket; a [`Wanted`] as JSON follows.
const WORD: &str = "backfill ";

/// How long an answer may take: the agent says nothing before it is done.
const PATIENCE: Duration = Duration::from_secs(24 * 3_600);

/// Arguments of `flumen backfill`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Which lines. Without a range, all that the files held when the command was given. A range is half open: --from is in it, --to is not. \
A line's time is the one at its beginning or near it, as RFC 3339 and ISO 8601 (2026-11-30T10:00:00Z, 2026-11-30 10:00:00,123), syslog \
(Nov 30 10:00:00), Apache ([30/Nov/2026:10:00:00 +0000]) and nginx (2026/11/30 10:00:00) write it, or seconds or milliseconds since \
1970. The first line with a time says which form its file has. A line without one belongs to the line before (a stack trace). A time \
without a zone is of this machine's zone, or of UTC with --utc. TIME is written in the same forms, may leave out the seconds or the time \
of day, or says how long ago (2h).

Each line becomes the event that the source `tail` would make of it, with the same identity if the source has read the file before \
(also under another name, or compressed): `dedup` by identity then leaves out what came already, and also what it had seen \
before a channel in memory lost it: take it out of the chain for that. Events go through the interceptors and the selector of the \
source; what they reject goes to quarantine. If the pipeline is full it waits.

Each batch and how far the command is are one commit. The command may be ended (the agent goes on with it; `flumen status` says how \
far it is), and the agent may be killed: the same command, in the same words, goes on where it was, with what it meant at the \
beginning. What is in a channel in memory when the agent is killed is lost, as ever. When it has come to its end the same command puts \
nothing and says so; --forget changes that. The agent remembers the last 256 of a pipeline; at most 16 are not at their end. A file that is truncated or overwritten \
meanwhile ends it with the reason, one that is renamed in its directory is read on.")]
pub struct Args {
    /// The agent's flumen.toml (to find its data directory). Default: flumen.toml in this directory.
    paths: Vec<PathBuf>,
    /// The agent's data directory, instead of a configuration.
    #[arg(long, conflicts_with = "paths")]
    data_dir: Option<PathBuf>,
    /// The pipeline; may be left out if there is only one.
    #[arg(long)]
    pipeline: Option<String>,
    /// The source whose way the events go; may be left out if the pipeline has only one.
    #[arg(long)]
    source: Option<String>,
    /// A file, plain or .gz or .zst, on the agent's machine; may be repeated, and they are read in this order.
    #[arg(long = "file", value_name = "PATH", required = true)]
    files: Vec<String>,
    /// Only lines of this time or later.
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Only lines before this time.
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Only lines that begin at this byte of the file or behind it (of its content, if it is an archive).
    #[arg(long, value_name = "OFFSET")]
    from_byte: Option<u64>,
    /// Only lines that begin before this byte.
    #[arg(long, value_name = "OFFSET")]
    to_byte: Option<u64>,
    /// Times without a zone are of UTC.
    #[arg(long)]
    utc: bool,
    /// Say how much is in the range, the first and the last of it, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Forget what the same command did, whether it came to its end or not: nothing is put, what was put stays. Given again
    /// without this, the command begins anew.
    #[arg(long, conflicts_with = "dry_run")]
    forget: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Wanted {
    pipeline: Option<String>,
    source: Option<String>,
    /// Their source is the agent's to find.
    words: Words,
    act: Act,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Act {
    Put,
    Look,
    Forget,
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Done(Box<Answer>),
    Error(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    pipeline: String,
    words: Words,
    /// Channels that are in memory.
    in_memory: Vec<String>,
    #[serde(flatten)]
    what: What,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum What {
    /// All of it was put.
    Put(Done),
    /// That was done before; nothing was put now.
    WasDone(Done),
    /// Nothing was put; `begun`: it would go on there.
    DryRun { count: Box<Count>, begun: Option<Cursor> },
    /// It will begin anew.
    Forgotten { events: u64 },
}

/// The agent's side: answers a request, if it is one of these.
pub fn answer(agent: &Agent, request: &str) -> Option<String> {
    let wanted = request.strip_prefix(WORD)?;
    let reply = match carry_out(agent, wanted) {
        Ok(answer) => Reply::Done(Box::new(answer)),
        Err(error) => Reply::Error(format!("{error:#}")),
    };
    serde_json::to_string(&reply).ok()
}

fn carry_out(agent: &Agent, wanted: &str) -> Result<Answer> {
    let Wanted { pipeline, source, words, act } = serde_json::from_str(wanted)?;
    let running = the_pipeline(agent, pipeline.as_deref())?;
    let plan = running.pipeline.plan();
    let source = the_source(&plan, source.as_deref())?;
    let words = Words { source: source.name.clone(), ..words };
    let what = match act {
        Act::Forget => forget(&running.pipeline, &words)?,
        Act::Put | Act::Look => put_or_look(&running, source, &words, act)?,
    };
    let in_memory = plan.channels.iter();
    let in_memory = in_memory.filter(|channel| Reliability::of(&channel.kind) != Reliability::EndToEnd);
    let in_memory = in_memory.map(|channel| channel.name.clone()).collect();
    Ok(Answer { pipeline: plan.name.clone(), words, in_memory, what })
}

fn put_or_look(running: &RunningPipeline, source: &SourcePlan, words: &Words, act: Act) -> Result<What> {
    let (pipeline, id) = (&running.pipeline, words.id());
    if act == Act::Put && pipeline.runs_backfill(&id) {
        return Err(BackfillError::AtWork.into());
    }
    let positions = pipeline.backfill_positions(&id);
    let stored = Stored::read(&positions).map_err(anyhow::Error::msg)?;
    if let Some(done) = stored.done {
        return Ok(What::WasDone(done));
    }
    let reading = reading(running, source)?;
    let begun = stored.job.is_some().then_some(stored.at);
    let job = match stored.job {
        Some(job) => job,
        None => {
            let bounds = bounds(words)?;
            reading.check(&source.name, bounds).map_err(anyhow::Error::msg)?;
            if act == Act::Put {
                check_begun(pipeline)?;
            }
            let known = pipeline.source_positions(&source.name);
            backfill::begin(words.clone(), bounds, &known).map_err(anyhow::Error::msg)?
        }
    };
    if act == Act::Look {
        let count = backfill::count(&job, &reading, &positions).map_err(anyhow::Error::msg)?;
        return Ok(What::DryRun { count: Box::new(count), begun });
    }
    let (progress, outcome) = (Arc::<BackfillProgress>::default(), Outcome::default());
    let make = backfill::make(job, reading, progress.clone(), outcome.clone());
    let ended = pipeline.backfill(&id, source, make, progress);
    let outcome = outcome.lock().take();
    let done = match (outcome, ended) {
        (Some(outcome), _) => outcome.map_err(anyhow::Error::msg)?,
        (None, Err(error)) => return Err(error.into()),
        (None, Ok(())) => bail!("the backfill ended without a word: this is a bug of Flumen, report it"),
    };
    let old = outdated(&pipeline.all_backfill_positions(), DONE_MAX);
    if let Err(error) = pipeline.forget_backfills(&old) {
        tracing::warn!(%error, "old backfills are not forgotten yet: the next one does that");
    }
    Ok(What::Put(done))
}

/// Another one may begin.
fn check_begun(pipeline: &Pipeline) -> Result<()> {
    let begun = backfill::begun(&pipeline.all_backfill_positions());
    if begun.len() < BEGUN_MAX {
        return Ok(());
    }
    let oldest = begun.first().map(|job| job.words.shown()).unwrap_or_default();
    bail!(
        "{} backfills of this pipeline have begun and are not at their end, as many as may be; wait for those under way (`flumen status`), \
         end one with the same command, or forget it with --forget. The oldest is: {oldest}",
        begun.len()
    )
}

fn forget(pipeline: &Pipeline, words: &Words) -> Result<What> {
    let id = words.id();
    if pipeline.runs_backfill(&id) {
        return Err(BackfillError::AtWork.into());
    }
    let positions = pipeline.backfill_positions(&id);
    if positions.is_empty() {
        bail!("there is nothing to forget: no backfill in these words was begun, or it is one of long ago");
    }
    // Also what cannot be understood.
    let stored = Stored::read(&positions).unwrap_or_default();
    pipeline.forget_backfills(&[id])?;
    Ok(What::Forgotten { events: stored.done.map_or(stored.at.events, |done| done.events) })
}

fn the_pipeline(agent: &Agent, name: Option<&str>) -> Result<Arc<RunningPipeline>> {
    let all = agent.pipelines();
    let names: Vec<String> = all.iter().map(|running| running.pipeline.plan().name.clone()).collect();
    match (name, all.as_slice()) {
        (None, [only]) => Ok(only.clone()),
        (None, _) => bail!("say which pipeline (--pipeline): {}", names.join(", ")),
        (Some(name), _) => agent
            .pipeline(name)
            .with_context(|| format!("the agent runs no pipeline {name:?}; there are: {}", names.join(", "))),
    }
}

fn the_source<'a>(plan: &'a PipelinePlan, name: Option<&str>) -> Result<&'a SourcePlan> {
    let names = || plan.sources.iter().map(|source| source.name.as_str()).collect::<Vec<_>>().join(", ");
    match (name, plan.sources.as_slice()) {
        (None, [only]) => Ok(only),
        (None, []) => bail!("the pipeline {} has no source whose way the events could go", plan.name),
        (None, _) => bail!("say which source's way the events go (--source): {}", names()),
        (Some(name), sources) => sources.iter().find(|source| source.name == name).with_context(|| {
            format!("the pipeline {} has no source {name:?}; there are: {}", plan.name, names())
        }),
    }
}

/// As the source reads now, with its codec.
fn reading(running: &RunningPipeline, source: &SourcePlan) -> Result<Reading> {
    let plugins = running.plugins.lock().clone();
    let plan = running.pipeline.plan();
    let codec = match &source.codec {
        None => None,
        Some(codec) => {
            let slot = plugins.part(&plan, Role::Decoder, &source.name, codec);
            let slot = slot.with_context(|| {
                format!(
                    "the codec of the source {} is just being exchanged: give the command again",
                    source.name
                )
            })?;
            Some(DecoderLink::new(slot, on_reject(&source.codec)))
        }
    };
    Reading::of(source, codec).map_err(|error| anyhow::anyhow!("{}: {}", error.reason, error.fix))
}

/// What the words mean now.
fn bounds(words: &Words) -> Result<Bounds> {
    let now = Timestamp::now();
    let clock = Clock::new(zone(words.utc), i64::try_from(now.as_nanosecond())?);
    let at = |option: &str, text: &Option<String>| {
        let read = |text: &str| match clock.of_text(text) {
            Some(time) => Ok(time),
            None => {
                time(text, now).with_context(|| format!("{option}: known are 2h (so long ago), and {FORMS}"))
            }
        };
        text.as_deref().map(read).transpose()
    };
    Ok(Bounds {
        from_ns: at("--from", &words.from)?,
        to_ns: at("--to", &words.to)?,
        from_byte: words.from_byte,
        to_byte: words.to_byte,
    })
}

/// The command's side.
pub fn run(args: Args, output: Output) -> Result<(), Failure> {
    let data_dir = cmd::data_dir(&args.paths, args.data_dir.clone())?;
    let wanted = wanted(args)?;
    if !control::is_answered(&data_dir) {
        let reason = format!(
            "no agent answers in {}: a backfill goes through the running agent, so start it first",
            data_dir.display()
        );
        return Err(anyhow::anyhow!(reason).into());
    }
    let request = format!("{WORD}{}", serde_json::to_string(&wanted)?);
    let reply = control::ask_within(&data_dir, &request, PATIENCE)
        .context("if the agent ended meanwhile, the same command goes on where it was")?;
    let reply: Reply = serde_json::from_str(&reply).with_context(|| {
        format!("the agent answers {reply:?}; if it ended meanwhile, the same command goes on where it was")
    })?;
    match reply {
        Reply::Error(error) => Err(anyhow::anyhow!("{error}").into()),
        Reply::Done(answer) if output == Output::Json => cmd::print_json(&answer),
        Reply::Done(answer) => {
            print(&answer);
            Ok(())
        }
    }
}

fn wanted(args: Args) -> Result<Wanted> {
    let has_bytes = args.from_byte.is_some() || args.to_byte.is_some();
    if has_bytes && args.files.len() > 1 {
        bail!("--from-byte and --to-byte are bytes of one file: name one file");
    }
    let whole = |path: &String| {
        let path = std::path::absolute(path).with_context(|| format!("--file {path}"))?;
        path.into_os_string().into_string().map_err(|path| anyhow::anyhow!("{} is not UTF-8", path.display()))
    };
    let files = args.files.iter().map(whole).collect::<Result<Vec<_>>>()?;
    let act = match (args.dry_run, args.forget) {
        (true, _) => Act::Look,
        (_, true) => Act::Forget,
        _ => Act::Put,
    };
    let words = Words {
        source: String::new(),
        files,
        from: args.from,
        to: args.to,
        from_byte: args.from_byte,
        to_byte: args.to_byte,
        utc: args.utc,
    };
    Ok(Wanted { pipeline: args.pipeline, source: args.source, words, act })
}

/// For a person.
fn print(answer: &Answer) {
    let Answer { pipeline, words, in_memory, what } = answer;
    let (files, source) = (counted(words.files.len(), "file"), &words.source);
    match what {
        What::Put(done) => {
            let (events, bytes) = (done.events, cmd::status::size(done.bytes));
            println!("{pipeline}: {events} events of {files} ({bytes}) went the way of the source {source}");
            if done.before > 0 {
                println!("  {} of them before it was cut short", done.before);
            }
            quarantined(done.quarantined, "went");
            notes(&done.notes);
            for channel in in_memory {
                println!(
                    "  the channel {channel} is in memory: what it has not delivered is lost if the agent is killed (`flumen status`)"
                );
            }
        }
        What::WasDone(done) => {
            let (events, ended) = (done.events, shown_time(done.ended_ns));
            println!(
                "{pipeline}: nothing was put: this backfill came to its end at {ended}, with {events} events"
            );
            notes(&done.notes);
            println!("  to put them once more, give the same command with --forget, and then again without");
        }
        What::DryRun { count, begun } => {
            let Count { lines, events, bytes, quarantined: rejected, first, last, notes: told } = &**count;
            let bytes = cmd::status::size(*bytes);
            println!(
                "{pipeline}: {lines} lines of {files} ({events} events, {bytes}) would go the way of the source {source}"
            );
            if let Some(begun) = begun {
                println!(
                    "  goes on    with what the same command meant at its beginning; {} events were put",
                    begun.events
                );
            }
            for (name, event) in [("first", first), ("last", last)] {
                if let Some(event) = event {
                    println!("  {name:<9}  {} at byte {}: {}", event.file, event.position, event.line);
                }
            }
            quarantined(*rejected, "would go");
            notes(told);
            println!("nothing was done; without --dry-run it is");
        }
        What::Forgotten { events } => {
            println!(
                "{pipeline}: forgotten; {events} events were put, and stay. Given again, the command begins anew"
            );
        }
    }
}

fn quarantined(events: u64, what: &str) {
    if events > 0 {
        println!("  {events} more {what} to quarantine (lines over max_line, or bytes that are no event)");
    }
}

fn notes(notes: &[String]) {
    notes.iter().for_each(|note| println!("  {note}"));
}

fn shown_time(time_ns: i64) -> String {
    Timestamp::from_nanosecond(time_ns.into()).map_or_else(|_| "?".to_owned(), |time| time.to_string())
}
