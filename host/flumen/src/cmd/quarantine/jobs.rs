//! `replay` and `drop`: jobs of the running agent. An agent that is not running finds a replay when it starts; what is to be
//! dropped is dropped at once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use flumen_journal::{FileJournal, Journal, OpenError, OsClock, OsDisk};
use flumen_pipeline::kept::filter::Filter;
use flumen_pipeline::kept::{Action, JobReport, Kept, Request, job_key};
use flumen_pipeline::{SinkError, quarantine as q, replay};
use serde::{Deserialize, Serialize};

use super::Place;
use crate::agent::{Agent, JOURNAL_DIR, QUARANTINE_DIR, pipeline_dir, quarantine_files};
use crate::cmd::print_json;
use crate::exit::{FAILED, Failure, counted};
use crate::{Output, control};

/// The request's first word on the control socket; a [`Wanted`] as JSON follows.
const WORD: &str = "quarantine";

/// How often the agent is asked how far it is.
const LOOK: Duration = Duration::from_millis(100);

/// How long an answer may take: a job is on record before it is answered, and a disk may be slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// A request for one pipeline.
#[derive(Debug, Serialize, Deserialize)]
struct Wanted {
    pipeline: String,
    /// Without one: how is the job doing that has this id?
    request: Option<Request>,
    id: u64,
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Job(JobReport),
    /// The agent does not run it.
    NoPipeline,
    Error(String),
}

/// What became of one pipeline's job.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    pipeline: &'a str,
    #[serde(flatten)]
    report: JobReport,
}

/// The agent's side: answers a request, if it is one of these.
pub fn answer(agent: &Agent, request: &str) -> Option<String> {
    let wanted = request.strip_prefix(WORD)?;
    let reply = carry_out(agent, wanted).unwrap_or_else(|error| Reply::Error(format!("{error:#}")));
    serde_json::to_string(&reply).ok()
}

fn carry_out(agent: &Agent, wanted: &str) -> Result<Reply> {
    let Wanted { pipeline, request, id } = serde_json::from_str(wanted)?;
    let Some(kept) = agent.kept(&pipeline) else { return Ok(Reply::NoPipeline) };
    let id = match request {
        Some(request) => kept.request(request).map_err(refused)?,
        None => id,
    };
    kept.report(id).map(Reply::Job).context("the agent does not know of this job; was it started again?")
}

fn refused(error: SinkError) -> anyhow::Error {
    anyhow::anyhow!("the quarantine's journal does not take it: {error}")
}

/// The command's side.
pub(super) fn ask(
    place: &Place,
    action: Action,
    filter: Filter,
    limit: Option<u64>,
    output: Output,
) -> Result<(), Failure> {
    let request = Request { action, filter, limit };
    let is_running = control::is_answered(&place.data_dir);
    let mut outcomes = Vec::new();
    for pipeline in &place.pipelines {
        let report = match is_running {
            true => ask_agent(place, pipeline, &request)?,
            false => None,
        };
        let report = match report {
            None => without_agent(place, pipeline, &request)?,
            report => report,
        };
        outcomes.extend(report.map(|report| Outcome { pipeline, report }));
    }
    let failed = outcomes.iter().any(|outcome| outcome.report.error.is_some());
    if output == Output::Json {
        print_json(&serde_json::json!({ "jobs": outcomes }))?;
    } else {
        outcomes.iter().for_each(|outcome| println!("{}", told(outcome)));
    }
    if failed { Err(Failure::Reported(FAILED)) } else { Ok(()) }
}

fn told(outcome: &Outcome<'_>) -> String {
    let Outcome { pipeline, report } = outcome;
    let events = counted(usize::try_from(report.events).unwrap_or(usize::MAX), "event");
    let done = match (report.action, report.state.as_str()) {
        (Action::Replay, "waiting") => "the agent is not running: it replays them when it starts".to_owned(),
        (Action::Replay, _) if report.again > 0 => {
            format!("{events} replayed, {} of them failed again and stay, with the new reason", report.again)
        }
        (Action::Replay, _) => format!("{events} replayed"),
        (Action::Drop, _) => format!("{events} dropped"),
    };
    match &report.error {
        Some(error) => format!("{pipeline}: {done}; then it ended: {error}"),
        None => format!("{pipeline}: {done}"),
    }
}

/// Asks, and waits for the end. `None`: the agent does not run this pipeline.
fn ask_agent(place: &Place, pipeline: &str, request: &Request) -> Result<Option<JobReport>> {
    let send = |wanted: &Wanted| -> Result<Option<JobReport>> {
        let words = format!("{WORD} {}", serde_json::to_string(wanted)?);
        let reply = control::ask_within(&place.data_dir, &words, PATIENCE)?;
        match serde_json::from_str(&reply).with_context(|| format!("the agent answers {reply}"))? {
            Reply::Job(report) => Ok(Some(report)),
            Reply::NoPipeline => Ok(None),
            Reply::Error(error) => Err(anyhow::anyhow!("{error}")),
        }
    };
    let mut wanted = Wanted { pipeline: pipeline.to_owned(), request: Some(request.clone()), id: 0 };
    let Some(mut report) = send(&wanted)? else { return Ok(None) };
    (wanted.request, wanted.id) = (None, report.id);
    while matches!(report.state.as_str(), "waiting" | "running") {
        std::thread::sleep(LOOK);
        let present =
            send(&wanted).context("the agent has the job and goes on with it when it runs again")?;
        report =
            present.context("the pipeline was taken out of the agent; the job goes on when it is back")?;
    }
    Ok(Some(report))
}

/// Opens the quarantine's journal. `None`: the pipeline has none yet.
fn without_agent(place: &Place, pipeline: &str, request: &Request) -> Result<Option<JobReport>, Failure> {
    let dir = pipeline_dir(&place.data_dir, pipeline);
    if !dir.join(QUARANTINE_DIR).exists() {
        return Ok(None);
    }
    let files = quarantine_files(&dir, flumen_journal::Durability::Durable, &place.keys(pipeline));
    let opened = FileJournal::open(files, vec![q::kept_channel_spec()], Arc::new(OsDisk), Arc::new(OsClock));
    let journal = match opened {
        Err(OpenError::Locked(_)) => {
            let reason = format!("an agent that does not answer uses {}", place.data_dir.display());
            return Err(Failure::Locked(reason));
        }
        other => other.map_err(anyhow::Error::new)?,
    };
    let kept = Kept::new(journal.clone()).context("it is no quarantine")?;
    catch_up(&kept, place, pipeline)?;
    let id = kept.request(request.clone()).map_err(refused)?;
    if request.action == Action::Drop {
        let job = kept.jobs().remove(&id).context("the job is gone")?;
        kept.drop_events(id, &job).map_err(refused)?;
    }
    let report = kept.report(id);
    journal.close().map_err(anyhow::Error::new)?;
    Ok(report)
}

/// What a replay that was cut short has in the pipeline's journal already is not there to be dropped.
fn catch_up(kept: &Kept, place: &Place, pipeline: &str) -> Result<()> {
    let jobs = kept.jobs();
    if jobs.is_empty() {
        return Ok(());
    }
    let journal = place.inspector(pipeline, JOURNAL_DIR)?.present()?;
    for (id, job) in jobs {
        let done = journal.positions.get(job_key(replay::POSITIONS, id).as_slice());
        if let Some(done) = replay::replayed_to(done.map(|value| value.to_vec())) {
            kept.catch_up(id, &job, done).map_err(refused)?;
        }
    }
    Ok(())
}
