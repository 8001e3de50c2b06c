//! Backfills: what an operator puts in again from files, as a source of its own for once.
//!
//! It goes the way of a source of the plan: the same interceptors, selector and channels, with the same back-pressure, and what a plugin
//! rejects goes to quarantine as that source's. So it *is* a feed ([`crate::feed`]), whose positions have keys of their own: each batch
//! and how far the backfill is are one commit. After a crash it goes on where it was when it is asked for again, as a replay of a
//! range of a channel does ([`crate::again`]): its id is made of the operator's words.
//!
//! What it reads, and what its positions say, is up to who makes its source. Positions begin as those of sources do, so that a journal
//! that fails over takes them along with their events; `#` is in no source's name.
//!
//! It ends with its pipeline, and when a reload changes the source whose way it goes, or takes it out: then what was
//! asked for has another meaning, and who wants it asks again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flumen_journal::Commit;
use parking_lot::Mutex;
use thiserror::Error;

use crate::again::{self, AgainError};
use crate::exchange::ExchangeError;
use crate::feed::{Feed, FeedState, MakeSource};
use crate::limits;
use crate::pipeline::{FeedPlan, Pipeline, StartError, wait_until};
use crate::plan::{PipelinePlan, SourcePlan};
use crate::status::{self, BackfillStatus};

/// What the keys of all positions of backfills begin with; behind it an id, `/`, and what the source of the backfill says.
pub const POSITIONS: &str = "source/#backfill/";

/// How far a backfill is, for whoever looks.
#[derive(Debug, Default)]
pub struct BackfillProgress {
    /// How many files there are.
    pub files: AtomicU64,
    /// Number of the one that is being read, from 1.
    pub file_number: AtomicU64,
    /// Events that were put, also before the agent started.
    pub events: AtomicU64,
    /// The file that is being read.
    pub file: Mutex<String>,
}

/// A backfill under way.
pub struct RunningBackfill {
    id: String,
    made_from: FeedPlan,
    progress: Arc<BackfillProgress>,
    pub(crate) feed: Feed,
}

/// Why a backfill was not begun, or did not come to its end.
#[derive(Debug, Error)]
pub enum BackfillError {
    /// Two at once would put each event twice.
    #[error(
        "the agent is at work on this backfill already: it goes on with it also when the command is ended, and \
         `flumen status` says how far it is"
    )]
    AtWork,
    /// The pipeline has no such source.
    #[error("the pipeline has no source {0:?}")]
    NoSource(String),
    /// It cannot be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The agent stops, or a reload changed the source.
    #[error(
        "it was stopped, by the end of the agent or by a reload that changes the source {0}: the same command goes on \
         where this one was"
    )]
    Stopped(String),
    /// The journal takes no more.
    #[error("{0}; the same command goes on where this one was, once the pipeline runs again")]
    Journal(String),
}

impl RunningBackfill {
    /// Why it failed: the journal's reason.
    pub(crate) fn failure(&self) -> String {
        self.feed.metrics.error().unwrap_or_else(|| "the journal takes no more events".into())
    }

    /// Figures for `status`.
    pub(crate) fn status(&self) -> BackfillStatus {
        let BackfillProgress { files, file_number, events, file } = &*self.progress;
        BackfillStatus {
            component: status::source(&self.feed),
            file: file.lock().clone(),
            file_number: file_number.load(Ordering::Relaxed),
            files: files.load(Ordering::Relaxed),
            events: events.load(Ordering::Relaxed),
        }
    }
}

impl Pipeline {
    /// Puts what a source of its own reads through the chain and the selector of the source `like`; returns when it has come to its end,
    /// and all of it is durable. Its positions are those of `id` ([`Pipeline::backfill_positions`]). `like` is what `make` was made
    /// for: if that is another one by now, nothing is begun.
    pub fn backfill(
        &self,
        id: &str,
        like: &SourcePlan,
        make: MakeSource,
        progress: Arc<BackfillProgress>,
    ) -> Result<(), BackfillError> {
        let running = self.begin_backfill(id, like, make, progress)?;
        // A thread that ends wakes nobody: a look now and then is enough for a command.
        while !running.feed.finished() {
            std::thread::sleep(limits::HOLD_POLL);
        }
        self.backfills.lock().retain(|other| !Arc::ptr_eq(other, &running));
        match running.feed.state() {
            FeedState::Failed => Err(BackfillError::Journal(running.failure())),
            _ if running.feed.wake.stopping() => Err(BackfillError::Stopped(like.name.clone())),
            _ => Ok(()),
        }
    }

    fn begin_backfill(
        &self,
        id: &str,
        like: &SourcePlan,
        make: MakeSource,
        progress: Arc<BackfillProgress>,
    ) -> Result<Arc<RunningBackfill>, BackfillError> {
        // Held while it begins: of two that are the same, one does.
        let mut backfills = self.backfills.lock();
        if self.is_stopping() {
            return Err(BackfillError::Stopped(like.name.clone()));
        }
        if backfills.iter().any(|running| running.id == id) {
            return Err(BackfillError::AtWork);
        }
        let plan = self.plan();
        let source = plan.sources.iter().find(|source| source.name == like.name);
        let source = source.ok_or_else(|| BackfillError::NoSource(like.name.clone()))?;
        if source != like {
            return Err(BackfillError::Stopped(like.name.clone()));
        }
        let feed = self.new_feed(&plan, source, make, prefix(id).into_bytes())?;
        let made_from = FeedPlan::of(&plan, source);
        let running = Arc::new(RunningBackfill { id: id.to_owned(), made_from, progress, feed });
        backfills.push(running.clone());
        Ok(running)
    }

    /// Whether it is at work on this one.
    pub fn runs_backfill(&self, id: &str) -> bool {
        self.backfills.lock().iter().any(|running| running.id == id)
    }

    /// Those under way.
    pub(crate) fn backfills(&self) -> Vec<Arc<RunningBackfill>> {
        self.backfills.lock().clone()
    }

    /// The positions of a backfill: their keys behind its id, and their values.
    pub fn backfill_positions(&self, id: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.positions(prefix(id).as_bytes())
    }

    /// Those of all backfills: their keys begin with the id and `/`.
    pub fn all_backfill_positions(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.positions(POSITIONS.as_bytes())
    }

    /// Those of a source, without the name in front of their keys.
    pub fn source_positions(&self, source: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.positions(&crate::feed::positions_of(source))
    }

    fn positions(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let behind = |key: Vec<u8>| key.strip_prefix(prefix).map(<[u8]>::to_vec).unwrap_or(key);
        let positions = self.journal.positions(prefix).into_iter();
        positions.map(|(key, value)| (behind(key), value)).collect()
    }

    /// Removes the positions of backfills: what they did is forgotten, and asked for again they begin anew.
    pub fn forget_backfills(&self, ids: &[String]) -> Result<(), AgainError> {
        let keys = ids.iter().flat_map(|id| self.journal.positions(prefix(id).as_bytes()));
        let positions: Vec<_> = keys.map(|(key, _)| (key, Vec::new())).collect();
        if positions.is_empty() {
            return Ok(());
        }
        let commit = Commit { positions, ..Commit::default() };
        again::commit(self.journal.as_ref(), commit, &|| self.is_stopping())
    }

    /// Stops those whose source is another one in the plan.
    pub(crate) fn stop_backfills(&self, plan: &PipelinePlan) -> Result<(), ExchangeError> {
        let stays = |running: &RunningBackfill| {
            plan.sources.iter().any(|source| running.made_from == FeedPlan::of(plan, source))
        };
        let going: Vec<_> = self.backfills().into_iter().filter(|running| !stays(running)).collect();
        going.iter().for_each(|running| running.feed.wake.stop());
        let limit: Duration = limits::PART_STOP;
        wait_until(Instant::now() + limit, || going.iter().all(|it| it.feed.finished()));
        match going.iter().find(|running| !running.feed.finished()) {
            Some(stuck) => Err(ExchangeError::Stuck { kind: "backfill", name: stuck.feed.name.to_string() }),
            None => Ok(()),
        }
    }
}

fn prefix(id: &str) -> String {
    format!("{POSITIONS}{id}/")
}
