//! Reloads: the one way from an edit to a running agent, whoever asks for it.
//!
//! `flumen reload`, SIGHUP and the watch over the configuration's files send a request to one thread. Requests that come
//! while a reload is under way are answered by the next one, together: none is dropped, and ten edits cost one reload.
//! The answer is what really happened: taken over with a generation number, nothing to do, or nothing changed and why.
//!
//! A pipeline that was stopped for a reload that failed, and does not start again either, is tried until it does (`again.rs`).

mod again;
mod apply;
mod disks;
mod prepare;
mod watch;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use flumen_config::Diagnostic;
use flumen_pipeline::plan_diff::PlanDiff;
use serde::{Serialize, Serializer};

use crate::agent::Agent;
use crate::exit::Failure;
use crate::supervisor::Supervisor;

/// Who asked for a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// `flumen reload`.
    Command,
    /// SIGHUP.
    Signal,
    /// A file changed.
    Watch,
}

/// What came of a request: what `flumen reload` and `flumen plan` are told.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    /// False: nothing changed.
    pub ok: bool,
    /// The exit code of the command.
    pub code: u8,
    /// The agent's generation afterwards.
    pub generation: u64,
    /// Whether anything differs from what ran.
    pub changed: bool,
    /// What starts, stops, changes and stays; absent if the configuration has errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanDiff>,
    /// Errors with their places, if it is the configuration.
    pub errors: Vec<Diagnostic>,
    /// What a person should know beside.
    pub notes: Vec<String>,
    /// All of it for people.
    pub text: String,
}

/// The last reload, for `flumen status`.
#[derive(Debug, Clone, Serialize)]
pub struct ReloadView {
    /// Who asked.
    pub by: By,
    /// Whether it did what it should.
    pub ok: bool,
    /// How long ago.
    #[serde(rename = "seconds_ago", serialize_with = "seconds_since")]
    pub at: Instant,
    /// What it said.
    pub text: String,
}

fn seconds_since<S: Serializer>(at: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(at.elapsed().as_secs_f64())
}

struct Request {
    by: By,
    drain: bool,
    reply: Option<Sender<Arc<Answer>>>,
}

/// Where reloads are asked for.
#[derive(Clone)]
pub struct Reloader(Sender<Request>);

impl Reloader {
    /// Starts the thread that reloads, and the one that watches files. Both end with the agent.
    pub fn start(agent: &Arc<Agent>, supervisor: Arc<Supervisor>) -> anyhow::Result<Reloader> {
        let (sender, requests) = unbounded();
        let (reloader, weak) = (Reloader(sender), Arc::downgrade(agent));
        std::thread::Builder::new()
            .name("reload".into())
            .spawn(move || run(&weak, &requests, &supervisor))?;
        watch::start(agent, &reloader)?;
        Ok(reloader)
    }

    /// Asks for one and does not wait.
    pub fn ask(&self, by: By) {
        // Fails only when the agent is gone.
        self.0.send(Request { by, drain: false, reply: None }).ok();
    }

    /// Asks for one and waits for its answer.
    pub fn ask_and_wait(&self, by: By, drain: bool) -> Option<Arc<Answer>> {
        let (reply, answer) = bounded(1);
        self.0.send(Request { by, drain, reply: Some(reply) }).ok()?;
        answer.recv().ok()
    }
}

fn run(agent: &Weak<Agent>, requests: &Receiver<Request>, supervisor: &Supervisor) {
    loop {
        let first = requests.recv_timeout(again::PAUSE);
        let Some(agent) = agent.upgrade() else { return };
        let first = match first {
            Ok(first) => first,
            Err(RecvTimeoutError::Timeout) => {
                agent.start_again();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        // The files are read after this: whatever these requests are about is in what is read.
        let together: Vec<Request> = std::iter::once(first).chain(requests.try_iter()).collect();
        let drain = together.iter().any(|request| request.drain);
        let by = together.iter().map(|request| request.by).find(|by| *by != By::Watch).unwrap_or(By::Watch);
        supervisor.reloading();
        let answer = Arc::new(agent.reload(by, drain));
        // Before the answers: when `systemctl reload` (which is `flumen reload`) returns, the unit is shown as running again.
        supervisor.reloaded(&status_after(&agent, &answer));
        for reply in together.into_iter().filter_map(|request| request.reply) {
            // Who asked may have gone away.
            reply.send(answer.clone()).ok();
        }
    }
}

/// One line for `systemctl status`.
fn status_after(agent: &Agent, answer: &Answer) -> String {
    let runs = agent.in_short();
    if answer.ok { runs } else { format!("{runs}; the last reload was not taken over, see `flumen status`") }
}

impl Agent {
    /// Reads configuration and plugins again and takes over what changed: all of it, or nothing.
    pub fn reload(&self, by: By, drain: bool) -> Answer {
        let _alone = self.changing.lock();
        self.is_changing.store(true, Ordering::Release);
        // Plugin files have a watch of their own; who asks for everything gets the truth about them, too.
        let with_plugins = by != By::Watch;
        let prepared = self.prepare(drain, with_plugins);
        let outcome = prepared.and_then(|prepared| self.apply(prepared, drain));
        self.is_changing.store(false, Ordering::Release);
        let answer = self.answer(outcome);
        let (generation, text) = (answer.generation, answer.text.trim_end());
        match (answer.ok, answer.changed) {
            (true, true) => tracing::info!(?by, generation, "reloaded:\n{text}"),
            (true, false) => tracing::debug!(?by, generation, "reloaded, nothing has changed"),
            // An edit that is looked at twice (by a command and by the watch) is told once.
            (false, _) if by == By::Watch && self.said_last(&answer) => {}
            (false, _) => {
                tracing::error!(?by, generation, "not reloaded, everything runs on as it was:\n{text}")
            }
        }
        let view = ReloadView { by, ok: answer.ok, at: Instant::now(), text: answer.text.clone() };
        *self.last_reload.lock() = Some(view);
        answer
    }

    /// What a reload would do, checked as far as it can be without doing it.
    pub fn plan_reload(&self) -> Answer {
        let _alone = self.changing.lock();
        let outcome = self.prepare(true, true).map(|prepared| (prepared.diff, prepared.notes));
        self.answer(outcome)
    }

    fn said_last(&self, answer: &Answer) -> bool {
        self.last_reload.lock().as_ref().is_some_and(|last| !last.ok && last.text == answer.text)
    }

    fn answer(&self, outcome: Result<(PlanDiff, Vec<String>), Failure>) -> Answer {
        let generation = self.generation.load(Ordering::Acquire);
        match outcome {
            Ok((diff, notes)) => {
                let mut text = diff.to_string();
                notes.iter().for_each(|note| text.push_str(&format!("note: {note}\n")));
                let (changed, errors) = (!diff.is_empty() || !notes.is_empty(), Vec::new());
                Answer { ok: true, code: 0, generation, changed, plan: Some(diff), errors, notes, text }
            }
            Err(failure) => {
                let (code, text) = failure.text();
                let errors = match failure {
                    Failure::Config(errors) => errors,
                    _ => Vec::new(),
                };
                *self.suspects.lock() = errors.iter().map(|error| error.file.clone()).collect();
                let (plan, notes) = (None, Vec::new());
                Answer { ok: false, code, generation, changed: false, plan, errors, notes, text }
            }
        }
    }
}

/// Nothing was touched, for a reason that is not in the configuration's text.
fn refused(reason: impl Into<String>) -> Failure {
    Failure::Other(anyhow::anyhow!(reason.into()))
}
