//! The quarantine's own journal: the events that it keeps, those that left it, and the jobs of its operator.
//!
//! A *job* drops or replays the events of a [`Filter`]. It is a position of this journal (key `job/` and its id as 16 hex digits,
//! value JSON), so it goes on after a crash. A job goes through the events from the oldest to those that were there
//! when it was asked for, and marks what it took as [`gone`], with its own progress, in one commit. What a replay does
//! between is in [`crate::replay`]. Everything that changes this journal goes through [`Kept`].

pub mod filter;
pub mod gone;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow_array::Array;
use flumen_event::Batch;
use flumen_journal::{Ack, ChannelId, Commit, CommitError, Journal, Put, Reader, ReaderId};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use self::filter::Filter;
use self::gone::Gone;
use crate::limits;
use crate::quarantine::{HEADER_BY, HEADER_HASH, HEADER_ROLE, KEPT_CHANNEL, KEPT_READER};
use crate::sink::SinkError;
use crate::source::Wake;

/// The prefix of the keys of jobs.
pub const JOBS: &[u8] = b"job/";

/// What to do with events of the quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// They go through the present version of what could not take them, and on from there.
    Replay,
    /// They are deleted.
    Drop,
}

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What to do.
    pub action: Action,
    /// With which events.
    pub filter: Filter,
    /// With at most so many, the oldest.
    pub limit: Option<u64>,
}

/// A request under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What was asked for.
    pub request: Request,
    /// Events before this are done with.
    pub cursor: u64,
    /// Events from here on came after the request.
    pub until: u64,
    /// Events that it took.
    pub events: u64,
    /// Whose events a replay takes ([`route_of`]), as of its beginning: what it took has to be known after a crash, whatever
    /// the configuration says by then. `None`: it has not begun.
    pub routes: Option<BTreeSet<String>>,
}

impl Job {
    /// Of a position's value.
    pub fn decode(value: &[u8]) -> Option<Job> {
        serde_json::from_slice(value).ok()
    }

    fn encode(&self) -> Vec<u8> {
        // A struct of numbers and strings is always JSON.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The events of a batch that it takes.
    pub fn rows(&self, batch: &Batch, first: u64, gone: &Gone) -> Vec<u32> {
        let is_ours = |row: &u32| {
            let number = first + u64::from(*row);
            let in_time = (self.cursor..self.until).contains(&number) && !gone.contains(number);
            let routes = self.routes.as_ref();
            in_time && routes.is_none_or(|routes| routes.contains(&route_of(batch, *row as usize)))
        };
        self.request.filter.rows(batch, first).into_iter().filter(is_ours).collect()
    }
}

/// The id of a job by the key of its position, or of what stands for it in the pipeline's journal.
pub fn job_id(prefix: &[u8], key: &[u8]) -> Option<u64> {
    let hex = std::str::from_utf8(key.strip_prefix(prefix)?).ok()?;
    u64::from_str_radix(hex, 16).ok()
}

/// The key of a job.
pub fn job_key(prefix: &[u8], id: u64) -> Vec<u8> {
    [prefix, format!("{id:016x}").as_bytes()].concat()
}

/// Where an event came from, as `ROLE/NAME`. Of events that were kept by an older release the role of sources and sinks is empty.
pub fn route_of(batch: &Batch, row: usize) -> String {
    let text = |name: &str| {
        let column = batch.header(name).filter(|column| column.is_valid(row));
        column.map_or("", |column| column.value(row))
    };
    let role = match (text(HEADER_ROLE), text(HEADER_HASH)) {
        ("", hash) if !hash.is_empty() => "interceptor",
        (role, _) => role,
    };
    format!("{role}/{}", text(HEADER_BY))
}

/// How a job is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobReport {
    /// Its number.
    pub id: u64,
    /// What it does.
    pub action: Action,
    /// `waiting`, `running`, `done` or `failed`.
    pub state: String,
    /// Events that it took.
    pub events: u64,
    /// Of these, events that went back to quarantine with a new reason.
    pub again: u64,
    /// Why it ended before its end.
    pub error: Option<String>,
}

/// The quarantine's journal and what is known of it.
pub struct Kept {
    journal: Arc<dyn Journal>,
    channel: ChannelId,
    operator: ReaderId,
    state: Mutex<State>,
    /// Wakes who carries out jobs.
    pub wake: Wake,
    expired: AtomicU64,
}

#[derive(Default)]
struct State {
    gone: Gone,
    jobs: BTreeMap<u64, Job>,
    reports: VecDeque<JobReport>,
}

/// Events that a job takes next.
pub(crate) struct Chunk {
    /// Batches as they are kept, the number of their first row, and the rows that are meant.
    pub(crate) parts: Vec<(u64, Batch, Vec<u32>)>,
    /// The job's cursor behind them.
    pub(crate) next: u64,
}

impl Chunk {
    pub(crate) fn numbers(&self) -> Vec<u64> {
        let of = |(first, _, rows): &(u64, Batch, Vec<u32>)| {
            let first = *first;
            rows.iter().map(move |row| first + u64::from(*row)).collect::<Vec<_>>()
        };
        self.parts.iter().flat_map(of).collect()
    }
}

impl Kept {
    /// Of a journal that was opened with [`crate::quarantine::kept_channel_spec`]; `None`: it was not.
    pub fn new(journal: Arc<dyn Journal>) -> Option<Arc<Kept>> {
        let channel = journal.channel(KEPT_CHANNEL)?;
        let operator = journal.reader_id(channel, KEPT_READER)?;
        let marks = journal.positions(gone::PREFIX);
        let gone = Gone::read(marks.iter().map(|(key, value)| (key.as_slice(), value.as_slice())));
        let mut jobs = BTreeMap::new();
        for (key, value) in journal.positions(JOBS) {
            match (job_id(JOBS, &key), Job::decode(&value)) {
                (Some(id), Some(job)) => _ = jobs.insert(id, job),
                _ => tracing::error!("a job of the quarantine is not readable and is left out"),
            }
        }
        let state = Mutex::new(State { gone, jobs, reports: VecDeque::new() });
        let (wake, expired) = (Wake::default(), AtomicU64::new(0));
        Some(Arc::new(Kept { journal, channel, operator, state, wake, expired }))
    }

    /// Events that it keeps.
    pub fn events(&self) -> u64 {
        let state = self.state.lock();
        let (_, acknowledged, events) = self.figures();
        events.saturating_sub(state.gone.count_from(acknowledged))
    }

    /// Events that expired since the start.
    pub fn expired(&self) -> u64 {
        self.expired.load(Ordering::Relaxed)
    }

    /// The head, the cursor, and what is between them.
    fn figures(&self) -> (u64, u64, u64) {
        let status = self.journal.status();
        let channel = status.channels.get(usize::from(self.channel.0));
        let (head, events) = channel.map_or((0, 0), |channel| (channel.head, channel.events));
        (head, head - events, events)
    }

    /// A value of the journal's positions.
    pub(crate) fn position(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.journal.position(key)
    }

    /// Keeps events; `positions` are of whom they came from.
    pub(crate) fn put(&self, batch: Batch, positions: Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), SinkError> {
        self.expire()?;
        let puts = vec![Put { channels: vec![self.channel], batch }];
        self.commit(Commit { puts, positions, ..Commit::default() })
    }

    /// Makes room: past a bound, the oldest quarter goes.
    fn expire(&self) -> Result<(), SinkError> {
        let bytes = self.journal.status().channels.get(usize::from(self.channel.0)).map_or(0, |c| c.bytes);
        let (_, acknowledged, events) = self.figures();
        if events < limits::QUARANTINE_EVENTS_MAX && bytes < limits::QUARANTINE_BYTES_MAX {
            return Ok(());
        }
        let mut state = self.state.lock();
        let cursor = acknowledged + events.div_ceil(4);
        let gone = state.gone.count_from(acknowledged) - state.gone.count_from(cursor);
        self.move_cursor(&mut state, cursor, BTreeSet::new(), Vec::new())?;
        let expired = cursor - acknowledged - gone;
        self.expired.fetch_add(expired, Ordering::Relaxed);
        tracing::error!(events = expired, "quarantine is full: its oldest events expired");
        Ok(())
    }

    /// One commit: the cursor, the bitmaps that changed, and positions beside them.
    fn move_cursor(
        &self,
        state: &mut State,
        cursor: u64,
        mut blocks: BTreeSet<u64>,
        mut positions: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<(), SinkError> {
        blocks.extend(state.gone.forget(cursor));
        positions.extend(state.gone.positions(&blocks));
        let acks = vec![Ack { channel: self.channel, reader: self.operator, cursor }];
        self.commit(Commit { acks, positions, ..Commit::default() })
    }

    fn commit(&self, commit: Commit) -> Result<(), SinkError> {
        self.journal.commit_and_wait(commit, None).map(|_| ()).map_err(stopped_or_retry)
    }

    /// Takes a request down; it is carried out even if the agent dies now.
    pub fn request(&self, request: Request) -> Result<u64, SinkError> {
        let mut state = self.state.lock();
        let (head, acknowledged, _) = self.figures();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        // Ids of jobs that are done stand in the pipeline's journal for a moment, so none is used again.
        let id = state.jobs.last_key_value().map_or(now, |(last, _)| now.max(last + 1));
        let job = Job { request, cursor: acknowledged, until: head, events: 0, routes: None };
        let positions = vec![(job_key(JOBS, id), job.encode())];
        self.commit(Commit { positions, ..Commit::default() })?;
        state.jobs.insert(id, job);
        drop(state);
        self.wake.wake();
        Ok(id)
    }

    /// The job that is next.
    pub fn next_job(&self) -> Option<(u64, Job)> {
        self.state.lock().jobs.first_key_value().map(|(id, job)| (*id, job.clone()))
    }

    /// All jobs under way.
    pub fn jobs(&self) -> BTreeMap<u64, Job> {
        self.state.lock().jobs.clone()
    }

    /// How a job is doing, or how it went.
    pub fn report(&self, id: u64) -> Option<JobReport> {
        self.reports().into_iter().find(|report| report.id == id)
    }

    /// All jobs under way, and those that ended not long ago.
    pub fn reports(&self) -> Vec<JobReport> {
        let state = self.state.lock();
        let known = |id: u64| state.reports.iter().any(|report| report.id == id);
        let waiting = state.jobs.iter().filter(|(id, _)| !known(**id));
        let waiting = waiting.map(|(id, job)| report(*id, job, "waiting"));
        state.reports.iter().cloned().chain(waiting).collect()
    }

    fn note(state: &mut State, changed: JobReport) {
        match state.reports.iter_mut().find(|report| report.id == changed.id) {
            Some(report) => *report = changed,
            None => state.reports.push_back(changed),
        }
        if state.reports.len() > limits::JOB_REPORTS_MAX {
            state.reports.pop_front();
        }
    }

    /// A reader for the events of a job; one at a time.
    pub(crate) fn reader(&self) -> Box<dyn Reader> {
        self.journal.open_reader(self.channel, self.operator)
    }

    /// What the job takes next, up to `until`; an empty chunk is its end.
    pub(crate) fn chunk(&self, reader: &mut dyn Reader, job: &Job, until: u64) -> Result<Chunk, SinkError> {
        let limit = job.request.limit.unwrap_or(u64::MAX).saturating_sub(job.events);
        let mut room = usize::try_from(limit).unwrap_or(usize::MAX).min(limits::JOB_ROWS);
        let (mut chunk, mut bytes) = (Chunk { parts: Vec::new(), next: until }, 0);
        reader.seek(job.cursor).map_err(retry)?;
        while room > 0 && bytes < limits::JOB_BYTES {
            let Some(delivery) = reader.next(Duration::ZERO).map_err(retry)? else { return Ok(chunk) };
            if delivery.first >= until {
                return Ok(chunk);
            }
            let mut rows = job.rows(&delivery.batch, delivery.first, &self.state.lock().gone);
            rows.retain(|row| delivery.first + u64::from(*row) < until);
            if rows.len() >= room {
                rows.truncate(room);
            }
            room -= rows.len();
            bytes += delivery.batch.bytes();
            let last = rows.last().filter(|_| room == 0).map(|row| delivery.first + u64::from(*row) + 1);
            let end = last.unwrap_or(delivery.first + delivery.batch.rows() as u64).min(until);
            if !rows.is_empty() {
                chunk.parts.push((delivery.first, delivery.batch, rows));
            }
            if room == 0 || bytes >= limits::JOB_BYTES {
                chunk.next = end;
            }
        }
        Ok(chunk)
    }

    /// The events leave the quarantine, and the job moves behind them. `again`: of them, those that came back.
    pub(crate) fn take(&self, id: u64, numbers: &[u64], job: &Job, again: u64) -> Result<(), SinkError> {
        let mut state = self.state.lock();
        let before = state.gone.clone();
        let mut blocks = BTreeSet::new();
        for number in numbers {
            state.gone.mark(*number);
            blocks.insert(number / gone::BLOCK_EVENTS);
        }
        let (head, acknowledged, _) = self.figures();
        let cursor = state.gone.first_left(acknowledged, head);
        let positions = vec![(job_key(JOBS, id), job.encode())];
        if let Err(error) = self.move_cursor(&mut state, cursor, blocks, positions) {
            state.gone = before;
            return Err(error);
        }
        state.jobs.insert(id, job.clone());
        let again = again + state.reports.iter().find(|r| r.id == id).map_or(0, |report| report.again);
        Self::note(&mut state, JobReport { again, ..report(id, job, "running") });
        Ok(())
    }

    /// The job ends, for a reason if it did not come to its end.
    pub(crate) fn finish(&self, id: u64, error: Option<String>) -> Result<(), SinkError> {
        let mut state = self.state.lock();
        let positions = vec![(job_key(JOBS, id), Vec::new())];
        self.commit(Commit { positions, ..Commit::default() })?;
        let Some(job) = state.jobs.remove(&id) else { return Ok(()) };
        let again = state.reports.iter().find(|report| report.id == id).map_or(0, |report| report.again);
        let word = if error.is_some() { "failed" } else { "done" };
        tracing::info!(job = id, action = ?job.request.action, events = job.events, ?error, "quarantine: a job is {word}");
        Self::note(&mut state, JobReport { again, error, ..report(id, &job, word) });
        Ok(())
    }

    /// Carries out a job that drops events.
    pub fn drop_events(&self, id: u64, job: &Job) -> Result<(), SinkError> {
        let (mut reader, mut job) = (self.reader(), job.clone());
        loop {
            let chunk = self.chunk(reader.as_mut(), &job, job.until)?;
            let numbers = chunk.numbers();
            if numbers.is_empty() && chunk.next >= job.until {
                return self.finish(id, None);
            }
            job.cursor = chunk.next;
            job.events += numbers.len() as u64;
            self.take(id, &numbers, &job, 0)?;
            if job.request.limit.is_some_and(|limit| job.events >= limit) {
                return self.finish(id, None);
            }
        }
    }

    /// Takes over what was replayed before a crash: everything of the job before `done` is in the pipeline's journal.
    pub fn catch_up(&self, id: u64, job: &Job, done: u64) -> Result<Job, SinkError> {
        let (mut reader, mut job) = (self.reader(), job.clone());
        // The limit was kept to when these were replayed.
        let limit = job.request.limit.take();
        while job.cursor < done {
            let chunk = self.chunk(reader.as_mut(), &job, done)?;
            job.cursor = chunk.next;
            let numbers = chunk.numbers();
            job.events += numbers.len() as u64;
            let saved = Job { request: Request { limit, ..job.request.clone() }, ..job.clone() };
            self.take(id, &numbers, &saved, 0)?;
        }
        job.request.limit = limit;
        Ok(job)
    }
}

fn report(id: u64, job: &Job, state: &str) -> JobReport {
    let action = job.request.action;
    JobReport { id, action, state: state.into(), events: job.events, again: 0, error: None }
}

fn stopped_or_retry(error: CommitError) -> SinkError {
    match error {
        CommitError::Closing => SinkError::Stopped,
        other => SinkError::Retry(other.to_string()),
    }
}

fn retry(error: impl std::fmt::Display) -> SinkError {
    SinkError::Retry(error.to_string())
}
