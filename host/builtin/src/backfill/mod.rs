//! Backfill: lines of log files, put in again from where they were lost. See `flumen backfill`.
//!
//! A source that runs once, beside the source whose way its events go ([`flumen_pipeline::backfill`]). It reads with tail's own reader, so
//! each line is the event that tail would make of it, with the same identity (`begin`).
//!
//! Map: `job` (what was asked for, and what the journal says of it), `begin` (files and their identity), `time` (times in lines),
//! `reading` (how lines become events), `reader` (which are meant), here the source that puts them and the look without putting.

mod begin;
mod job;
mod reader;
mod reading;
pub mod time;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flumen_event::Batch;
use flumen_pipeline::backfill::BackfillProgress;
use flumen_pipeline::feed::MakeSource;
use flumen_pipeline::plan::BatchPlan;
use flumen_pipeline::{
    ComponentKind, ComponentMetrics, Emission, Metric, Source, SourceContext, SourceError,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub use begin::begin;
pub use job::{
    BEGUN_MAX, Bounds, Cursor, DONE_MAX, Done, Job, JobFile, Stored, Words, begun, outdated, zone,
};
pub use reading::Reading;

use self::job::{AT, DONE, JOB};
use self::reader::{Reader, Taker, Trouble};
use crate::sources::now_ns;

/// What became of a backfill, once its source has ended; `None`: it was stopped before.
pub type Outcome = Arc<Mutex<Option<Result<Done, String>>>>;

/// Makes the source of a backfill that was just begun, or of one whose positions say how far it is.
pub fn make(job: Job, reading: Reading, progress: Arc<BackfillProgress>, outcome: Outcome) -> MakeSource {
    let (job, reading) = (Arc::new(job), Arc::new(reading));
    Box::new(move || {
        Ok(Box::new(Backfill {
            job: job.clone(),
            reading: reading.clone(),
            progress: progress.clone(),
            outcome: outcome.clone(),
        }))
    })
}

struct Backfill {
    job: Arc<Job>,
    reading: Arc<Reading>,
    progress: Arc<BackfillProgress>,
    outcome: Outcome,
}

impl Source for Backfill {
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        let outcome = match self.carry_out(context) {
            Ok(done) => Ok(done),
            Err(Trouble::Stopped(stopped)) => return Err(stopped.into()),
            Err(Trouble::File(reason)) => Err(reason),
        };
        // What it says of events is durable.
        context.settle()?;
        *self.outcome.lock() = Some(outcome);
        Ok(())
    }
}

impl Backfill {
    fn carry_out(&self, context: &mut SourceContext) -> Result<Done, Trouble> {
        let positions = context.positions();
        let stored = Stored::read(&positions).map_err(Trouble::File)?;
        if let Some(done) = stored.done {
            return Ok(done);
        }
        // Begun in an earlier life: what it meant then counts.
        let job = match stored.job {
            Some(job) => Arc::new(job),
            None => {
                let positions = vec![(JOB.to_vec(), json(&*self.job)?)];
                let begun = Emission { batch: Batch::empty(), positions, quarantined: Vec::new() };
                context.emit(begun)?;
                self.job.clone()
            }
        };
        let before = stored.at.events;
        self.progress.files.store(job.files.len() as u64, Ordering::Relaxed);
        self.progress.events.store(before, Ordering::Relaxed);
        let (batch, metrics) = (context.batch, context.metrics.clone());
        let reader = Reader::new(&job, &self.reading, stored.at, batch, metrics);
        let cursor =
            reader.run(&positions, &mut Puts { context: &mut *context, progress: &self.progress })?;
        let Cursor { events, bytes, quarantined, notes, .. } = cursor;
        let done =
            Done { begun_ns: job.begun_ns, ended_ns: now_ns(), events, before, bytes, quarantined, notes };
        let positions =
            vec![(JOB.to_vec(), Vec::new()), (AT.to_vec(), Vec::new()), (DONE.to_vec(), json(&done)?)];
        context.emit(Emission { batch: Batch::empty(), positions, quarantined: Vec::new() })?;
        Ok(done)
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, Trouble> {
    serde_json::to_vec(value).map_err(|error| Trouble::File(error.to_string()))
}

/// Puts events, each batch with how far the backfill is.
struct Puts<'a> {
    context: &'a mut SourceContext,
    progress: &'a BackfillProgress,
}

impl Taker for Puts<'_> {
    fn take(&mut self, mut events: Emission, cursor: &Cursor) -> Result<(), Trouble> {
        events.positions.push((AT.to_vec(), json(cursor)?));
        self.context.emit(events)?;
        self.progress.events.store(cursor.events, Ordering::Relaxed);
        Ok(())
    }

    fn has_read(&mut self, bytes: usize) {
        self.context.metrics.add(Metric::SourceBytesRead, bytes as u64);
    }

    fn begins(&mut self, file: &JobFile, cursor: &Cursor) {
        self.progress.file_number.store(cursor.file as u64 + 1, Ordering::Relaxed);
        self.progress.file.lock().clone_from(&file.path);
    }

    fn wait(&mut self, rest: Duration) -> Result<bool, Trouble> {
        self.context.wait(rest)?;
        Ok(true)
    }

    fn look(&self) -> Result<(), Trouble> {
        match self.context.stopping() {
            true => Err(flumen_pipeline::Stopped.into()),
            false => Ok(()),
        }
    }
}

/// What is in the range.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Lines, or as many events where a codec finds them.
    pub lines: u64,
    /// Events.
    pub events: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Lines over the limit, which would go to quarantine.
    pub quarantined: u64,
    /// The first of them.
    pub first: Option<Counted>,
    /// The last of them.
    pub last: Option<Counted>,
    /// What an operator should know of the files.
    pub notes: Vec<String>,
}

/// One event of a range.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Its file.
    pub file: String,
    /// Its position there.
    pub position: u64,
    /// The beginning of its first line.
    pub line: String,
}

/// Looks at what a backfill would put, and puts nothing. `positions`: its own, if it was begun: then of what is left.
pub fn count(job: &Job, reading: &Reading, positions: &[(Vec<u8>, Vec<u8>)]) -> Result<Count, String> {
    let stored = Stored::read(positions)?;
    let job = stored.job.as_ref().unwrap_or(job);
    let metrics = ComponentMetrics::new(ComponentKind::Source, job.words.source.as_str().into());
    let reader = Reader::new(job, reading, stored.at, BatchPlan::default(), metrics);
    let mut counts = Counts { count: Count::default(), file: String::new(), has_lines: reading.has_lines() };
    let cursor = reader.run(positions, &mut counts).map_err(|error| error.to_string())?;
    Ok(Count { notes: cursor.notes, ..counts.count })
}

struct Counts {
    count: Count,
    file: String,
    has_lines: bool,
}

impl Taker for Counts {
    fn take(&mut self, events: Emission, _cursor: &Cursor) -> Result<(), Trouble> {
        let (batch, count) = (&events.batch, &mut self.count);
        count.events += batch.rows() as u64;
        count.bytes += batch.body_bytes() as u64;
        count.quarantined += events.quarantined.iter().map(|group| group.batch.rows() as u64).sum::<u64>();
        for body in batch.body().iter().flatten() {
            let more = if self.has_lines { memchr::memchr_iter(b'\n', body).count() as u64 } else { 0 };
            count.lines += 1 + more;
        }
        let counted = |row: usize| Counted {
            file: self.file.clone(),
            position: batch.position().value(row),
            line: begin::shown(
                batch.body().value(row).split(|byte| *byte == b'\n').next().unwrap_or_default(),
            ),
        };
        if let Some(last) = batch.rows().checked_sub(1) {
            count.first.get_or_insert_with(|| counted(0));
            count.last = Some(counted(last));
        }
        Ok(())
    }

    fn has_read(&mut self, _bytes: usize) {}

    fn begins(&mut self, file: &JobFile, _cursor: &Cursor) {
        self.file.clone_from(&file.path);
    }

    /// What a writer has not finished is counted as it is.
    fn wait(&mut self, _rest: Duration) -> Result<bool, Trouble> {
        Ok(false)
    }

    fn look(&self) -> Result<(), Trouble> {
        Ok(())
    }
}
