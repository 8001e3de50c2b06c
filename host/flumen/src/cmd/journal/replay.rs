//! `replay`: events of a channel to a channel once more. First it says what it would do; with `--yes` the running agent does it, or the
//! command itself if none runs.
//!
//! A command that was cut short goes on when it is given again in the same words (see [`flumen_pipeline::again`]). An agent goes on
//! with it also when only the command was ended: then the same one is refused until that is done.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use flumen_journal::inspect::Inspector;
use flumen_journal::{FileConfig, FileJournal, Journal, OpenError, OsClock, OsDisk};
use flumen_pipeline::again::{Again, AgainReport, Bounds, Progress, put_again};
use flumen_pipeline::channel_specs;
use flumen_pipeline::plan::PipelinePlan;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Chosen, shown_time};
use crate::agent::{Agent, JOURNAL_DIR, pipeline_dir};
use crate::cmd::print_json;
use crate::exit::Failure;
use crate::{Output, cmd, control};

/// The request's first word on the control socket; a [`Wanted`] as JSON follows.
const WORD: &str = "journal-replay ";

/// How long an answer may take: the agent says nothing before it is done.
const PATIENCE: Duration = Duration::from_secs(24 * 3_600);

/// What this process is at: the pipeline, and the request's key. Two at once would put each event twice.
static UNDER_WAY: Mutex<BTreeSet<(String, Vec<u8>)>> = Mutex::new(BTreeSet::new());

/// Arguments of `flumen journal replay`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The agent's flumen.toml, or its pipeline files. Default: flumen.toml in this directory.
    paths: Vec<PathBuf>,
    /// The pipeline; may be left out if there is only one.
    #[arg(long)]
    pipeline: Option<String>,
    #[command(flatten)]
    chosen: Chosen,
    /// The channel that the events enter; without it the one that they are from.
    #[arg(long)]
    to: Option<String>,
    /// The only sink that gets them; without it all that read the channel.
    #[arg(long)]
    sink: Option<String>,
    /// Give up what the same command began and did not end: no more of it is put. What was put stays. Given again, the command
    /// begins anew.
    #[arg(long)]
    give_up: bool,
    /// Do it.
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Wanted {
    pipeline: String,
    request: Again,
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Done(AgainReport),
    /// The agent does not run it.
    NoPipeline,
    Error(String),
}

/// A request that this process is at, as long as it lives.
struct UnderWay((String, Vec<u8>));

impl UnderWay {
    /// `None`: it is at this one already.
    fn begin(pipeline: &str, request: &Again) -> Option<UnderWay> {
        let which = (pipeline.to_owned(), request.key());
        let is_new = UNDER_WAY.lock().insert(which.clone());
        is_new.then(|| UnderWay(which))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.lock().remove(&self.0);
    }
}

/// The agent's side: answers a request, if it is one of these.
pub fn answer(agent: &Agent, request: &str) -> Option<String> {
    let wanted = request.strip_prefix(WORD)?;
    let reply = carry_out(agent, wanted).unwrap_or_else(|error| Reply::Error(format!("{error:#}")));
    serde_json::to_string(&reply).ok()
}

fn carry_out(agent: &Agent, wanted: &str) -> Result<Reply> {
    let Wanted { pipeline, request } = serde_json::from_str(wanted)?;
    let dir = pipeline_dir(&agent.plan().data_dir, &pipeline).join(JOURNAL_DIR);
    let Some(running) = agent.pipeline(&pipeline) else { return Ok(Reply::NoPipeline) };
    let _under_way = UnderWay::begin(&pipeline, &request).context(
        "the agent is at work on this replay already: it goes on with it also when the command is ended. \
         Without --yes this command says how far it is",
    )?;
    let plan = agent.plan();
    let plan = plan.pipelines.iter().find(|plan| plan.name == pipeline);
    let keys = plan.map(|plan| plan.journal.keys.clone()).unwrap_or_default();
    let files = Inspector::open(Arc::new(OsDisk), dir)?.with_keys(&keys);
    Ok(Reply::Done(running.pipeline.put_again(&files, &request)?))
}

/// The command's side.
pub fn run(args: Args, output: Output) -> Result<(), Failure> {
    let (agent, _) = cmd::load(&args.paths)?;
    let plan = the_pipeline(&agent.pipelines, args.pipeline.as_deref())?;
    let dir = pipeline_dir(&agent.data_dir, &plan.name).join(JOURNAL_DIR);
    let files = Inspector::open(Arc::new(OsDisk), &dir)?.with_keys(&plan.journal.keys);
    let mut request = args.chosen.request(&files)?;
    request.to = args.to.unwrap_or(request.to);
    request.sink = args.sink;
    request.gives_up = args.give_up;
    // What is given up may have been for what is gone.
    if !request.gives_up {
        check(plan, &request)?;
    }
    if !args.yes {
        let begun = begun(&files, &request)?;
        return match request.gives_up {
            true => told_to_give_up(plan, &request, begun, output),
            false => told(&files, plan, &request, begun, output),
        };
    }
    let report = match control::is_answered(&agent.data_dir) {
        true => ask_agent(&agent.data_dir, plan, &request)?,
        false => None,
    };
    let report = match report {
        Some(report) => report,
        None => without_agent(&dir, plan, &files, &request)?,
    };
    if request.gives_up && report.went_on.is_none() {
        return Err(nothing_begun());
    }
    request.bounds = report.went_on.unwrap_or(request.bounds);
    if output == Output::Json {
        return print_json(
            &serde_json::json!({ "pipeline": plan.name, "request": request, "report": report }),
        );
    }
    print(plan, &request, &report);
    Ok(())
}

/// What was done.
fn print(plan: &PipelinePlan, request: &Again, report: &AgainReport) {
    let AgainReport { events, before, missing, went_on } = report;
    let Again { channel, to, bounds, .. } = request;
    if request.gives_up {
        println!(
            "{}: given up; {before} events of {channel} ({}) had entered {to}",
            plan.name,
            shown(bounds)
        );
        return;
    }
    println!("{}: {events} events of {channel} entered {to} again", plan.name);
    if went_on.is_some() {
        println!("  {before} of them before the command was cut short; it went on with what it meant then:");
        println!("  {}", shown(bounds));
    }
    if *missing > 0 {
        println!("  {missing} events of the range are not in the journal any more, or damaged");
    }
}

/// Bounds as people write them.
fn shown(bounds: &Bounds) -> String {
    let Bounds { from, until, since, before } = bounds;
    let since = since.map_or_else(String::new, |since| format!(", of {} or later", shown_time(since)));
    let before = before.map_or_else(String::new, |before| format!(", before {}", shown_time(before)));
    format!("{from} to {}{since}{before}", until.saturating_sub(1))
}

/// How far the same command came that was cut short, or that the agent is at.
fn begun(files: &Inspector, request: &Again) -> Result<Option<Progress>, Failure> {
    let present = files.present()?;
    Ok(present.positions.get(request.key().as_slice()).and_then(|value| Progress::read(value)))
}

fn nothing_begun() -> Failure {
    anyhow::anyhow!("there is nothing to give up: no replay in these words was begun and not ended").into()
}

fn the_pipeline<'a>(pipelines: &'a [PipelinePlan], name: Option<&str>) -> Result<&'a PipelinePlan, Failure> {
    let known = || pipelines.iter().map(|plan| plan.name.as_str()).collect::<Vec<_>>().join(", ");
    match (name, pipelines) {
        (None, [only]) => Ok(only),
        (None, _) => Err(anyhow::anyhow!("say which pipeline (--pipeline): {}", known()).into()),
        (Some(name), _) => pipelines
            .iter()
            .find(|plan| plan.name == name)
            .ok_or_else(|| anyhow::anyhow!("no pipeline {name:?}; there are: {}", known()).into()),
    }
}

/// Whether there is such a channel, and such a sink on it.
fn check(plan: &PipelinePlan, request: &Again) -> Result<(), Failure> {
    if !plan.channels.iter().any(|channel| channel.name == request.to) {
        let known: Vec<&str> = plan.channels.iter().map(|channel| channel.name.as_str()).collect();
        let reason = format!("no channel {:?} to replay to; there are: {}", request.to, known.join(", "));
        return Err(anyhow::anyhow!(reason).into());
    }
    let Some(sink) = &request.sink else { return Ok(()) };
    let on_channel = plan.sinks.iter().filter(|sink| sink.channel == request.to);
    let known: Vec<&str> = on_channel.map(|sink| sink.name.as_str()).collect();
    if !known.contains(&sink.as_str()) {
        let reason =
            format!("no sink {sink:?} reads the channel {}; there are: {}", request.to, known.join(", "));
        return Err(anyhow::anyhow!(reason).into());
    }
    Ok(())
}

/// The dry run of `--give-up`.
fn told_to_give_up(
    plan: &PipelinePlan,
    request: &Again,
    begun: Option<Progress>,
    output: Output,
) -> Result<(), Failure> {
    let Some(begun) = begun else { return Err(nothing_begun()) };
    if output == Output::Json {
        return print_json(&serde_json::json!({
            "dry_run": true, "pipeline": plan.name, "request": request, "begun": begun,
        }));
    }
    let Again { channel, to, .. } = request;
    println!(
        "{}: a replay would be given up of which {} events of {channel} ({}) entered {to}",
        plan.name,
        begun.events,
        shown(&begun.bounds)
    );
    println!("nothing was done; add --yes to do it");
    Ok(())
}

/// The dry run. `begun`: it would go on with that.
fn told(
    files: &Inspector,
    plan: &PipelinePlan,
    request: &Again,
    begun: Option<Progress>,
    output: Output,
) -> Result<(), Failure> {
    let (mut events, mut bytes, mut missing) = (0, 0, 0);
    let mut times: Option<(i64, i64)> = None;
    let bounds = begun.as_ref().map_or(request.bounds, |begun| begun.bounds);
    let start = begun.as_ref().map_or(bounds.from, |begun| begun.cursor);
    let mut cursor = start;
    for rows in files.events(&request.channel, cursor)? {
        let rows = rows?;
        if rows.first >= bounds.until {
            break;
        }
        missing += rows.missing_before;
        cursor = rows.first + rows.batch.rows() as u64;
        for row in bounds.rows(&rows.batch, rows.first) {
            events += 1;
            bytes += rows.batch.body().value(row as usize).len() as u64;
            let time = rows.batch.time().value(row as usize);
            times = Some(times.map_or((time, time), |(first, last)| (first.min(time), last.max(time))));
        }
    }
    missing += bounds.until.saturating_sub(cursor);
    let on_channel = plan.sinks.iter().filter(|sink| sink.channel == request.to);
    let meant = |name: &&str| request.sink.as_ref().is_none_or(|sink| sink == name);
    let sinks: Vec<&str> = on_channel.map(|sink| sink.name.as_str()).filter(meant).collect();
    if output == Output::Json {
        return print_json(&serde_json::json!({
            "dry_run": true, "pipeline": plan.name, "request": Again { bounds, ..request.clone() },
            "begun": begun, "events": events, "bytes": bytes, "missing": missing, "sinks": sinks,
        }));
    }
    let Again { channel, to, .. } = request;
    let last = bounds.until.saturating_sub(1);
    println!(
        "{}: {events} events of {channel} ({start} to {last}, {}) would enter {to} again",
        plan.name,
        cmd::status::size(bytes)
    );
    if let Some(begun) = &begun {
        println!(
            "  goes on        with what the same command meant at its beginning ({}); {} events entered already",
            shown(&bounds),
            begun.events
        );
        println!("                 (--give-up ends that, and the command then begins anew)");
    }
    if let Some((first, last)) = times {
        println!("  their times    {} to {}", shown_time(first), shown_time(last));
    }
    println!("  delivered by   {}", sinks.join(", "));
    if missing > 0 {
        println!("  missing        {missing} events of the range, not in the journal any more, or damaged");
    }
    println!("nothing was done; add --yes to do it");
    Ok(())
}

/// Asks, and waits for the end. `None`: the agent does not run this pipeline.
fn ask_agent(data_dir: &Path, plan: &PipelinePlan, request: &Again) -> Result<Option<AgainReport>> {
    let wanted = Wanted { pipeline: plan.name.clone(), request: request.clone() };
    let words = format!("{WORD}{}", serde_json::to_string(&wanted)?);
    let reply = control::ask_within(data_dir, &words, PATIENCE)
        .context("the agent ended meanwhile; the same command goes on where it was")?;
    match serde_json::from_str(&reply).with_context(|| {
        format!("the agent answers {reply:?}; if it ended meanwhile, the same command goes on")
    })? {
        Reply::Done(report) => Ok(Some(report)),
        Reply::NoPipeline => Ok(None),
        Reply::Error(error) => Err(anyhow::anyhow!("{error}")),
    }
}

/// Opens the journal as the agent would.
fn without_agent(
    dir: &Path,
    plan: &PipelinePlan,
    files: &Inspector,
    request: &Again,
) -> Result<AgainReport, Failure> {
    if let Some(shared) = plan.channels.iter().find(|channel| channel.is_shared()) {
        let reason = format!("the channel {} is not in files: start the agent, it does it", shared.name);
        return Err(anyhow::anyhow!(reason).into());
    }
    let config = FileConfig {
        dir: dir.to_owned(),
        segment_bytes: plan.journal.segment_bytes,
        window_bytes: plan.journal.window_bytes,
        compression: plan.journal.compression,
        keys: plan.journal.keys.clone(),
        ..FileConfig::default()
    };
    let opened = FileJournal::open(config, channel_specs(plan), Arc::new(OsDisk), Arc::new(OsClock));
    let journal = match opened {
        Err(OpenError::Locked(_)) => {
            let reason = format!("an agent that does not answer uses {}", dir.display());
            return Err(Failure::Locked(reason));
        }
        other => other.map_err(anyhow::Error::new)?,
    };
    // Nobody makes room while no agent runs.
    let full = || {
        journal.status().channels.iter().any(|it| it.name == request.to && it.events >= it.capacity_events)
    };
    let done = put_again(journal.as_ref(), files, request, &full).map_err(anyhow::Error::new);
    journal.close().map_err(anyhow::Error::new)?;
    Ok(done.context(
        "without an agent nobody makes room in the channel: start it, and give the same command again",
    )?)
}
