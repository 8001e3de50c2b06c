//! Puts events that are still in a journal's files to a channel once more, because an operator asks for it.
//!
//! The events keep their identity; they are new events of the channel, so its sinks deliver them again. Each commit holds some of them
//! and how far the request is: the position `again/` and the request's text. So a request that was cut short (a crash, a stop) and is
//! asked for again in the same words goes on where it was, and no event is put twice by it. The last commit removes the position.
//!
//! Constraints: it reads the files as a tool does ([`flumen_journal::inspect`]) and holds nothing back: what every reader has acknowledged
//! may be deleted meanwhile, and is counted as missing.

use std::time::{Duration, Instant};

use arrow_array::StringArray;
use flumen_event::Batch;
use flumen_journal::inspect::{InspectError, Inspector};
use flumen_journal::{Commit, CommitError, Journal, Put};
use serde::{Deserialize, Serialize};

use crate::replay::HEADER_TO;

/// The prefix of the positions of requests under way.
pub const POSITIONS: &[u8] = b"again/";

/// How long a put waits for room in a channel before it is looked whether the agent stops.
const ROOM: Duration = Duration::from_millis(200);

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Again {
    /// The channel whose events are meant.
    pub channel: String,
    /// The number of the first.
    pub from: u64,
    /// The number behind the last.
    pub until: u64,
    /// Only events of this time or later, ns since the Unix epoch.
    pub since: Option<i64>,
    /// Only events before this time.
    pub before: Option<i64>,
    /// The channel that they enter.
    pub to: String,
    /// The only sink that gets them; `None`: all that read the channel.
    pub sink: Option<String>,
}

/// How far a request is, or what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgainReport {
    /// Events that were put.
    pub events: u64,
    /// Of these, events that were put before it was cut short.
    pub before: u64,
    /// Events of the range that are not in the journal any more.
    pub missing: u64,
}

/// Why it did not come to its end. Asked for again in the same words, it goes on where it was.
#[derive(Debug, thiserror::Error)]
pub enum AgainError {
    /// The journal has no such channel.
    #[error("the pipeline has no channel {0:?}")]
    NoChannel(String),
    /// Its files cannot be read.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// It takes no more.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The agent stops.
    #[error("the agent is stopping; the same command goes on where this one was")]
    Stopped,
    /// Events that do not fit into a batch with the header that names their sink.
    #[error("events from number {0} on cannot be addressed to a sink: {1}")]
    Address(u64, flumen_event::BatchError),
}

/// What a request has done, as a position's value.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Progress {
    cursor: u64,
    events: u64,
    missing: u64,
}

impl Again {
    /// The key of its position: its own words.
    pub fn key(&self) -> Vec<u8> {
        // A struct of numbers and strings is always JSON.
        [POSITIONS, &serde_json::to_vec(self).unwrap_or_default()].concat()
    }

    /// The rows of a batch that are meant.
    pub fn rows(&self, batch: &Batch, first: u64) -> Vec<u32> {
        let is_meant = |(row, time): &(u32, i64)| {
            (self.from..self.until).contains(&(first + u64::from(*row)))
                && self.since.is_none_or(|since| *time >= since)
                && self.before.is_none_or(|before| *time < before)
        };
        (0..).zip(batch.time().values().iter().copied()).filter(is_meant).map(|(row, _)| row).collect()
    }
}

/// Carries a request out, on a journal that is open, reading its files beside it.
pub fn put_again(
    journal: &dyn Journal,
    files: &Inspector,
    request: &Again,
    stops: &dyn Fn() -> bool,
) -> Result<AgainReport, AgainError> {
    let to = journal.channel(&request.to).ok_or_else(|| AgainError::NoChannel(request.to.clone()))?;
    let key = request.key();
    let stored = journal.position(&key).and_then(|value| serde_json::from_slice::<Progress>(&value).ok());
    let mut progress = stored.unwrap_or(Progress { cursor: request.from, ..Progress::default() });
    let before = progress.events;
    for rows in files.events(&request.channel, progress.cursor)? {
        let rows = rows?;
        if rows.first >= request.until {
            break;
        }
        progress.missing += rows.missing_before;
        progress.cursor = (rows.first + rows.batch.rows() as u64).min(request.until);
        let meant = request.rows(&rows.batch, rows.first);
        if meant.is_empty() {
            continue;
        }
        progress.events += meant.len() as u64;
        let address = |error| AgainError::Address(rows.first, error);
        let mut batch = rows.batch.take(&meant.into()).map_err(address)?;
        if let Some(sink) = &request.sink {
            let values = StringArray::from_iter_values(std::iter::repeat_n(sink, batch.rows()));
            batch = batch.with_header(HEADER_TO, values).map_err(address)?;
        }
        let value = serde_json::to_vec(&progress).unwrap_or_default();
        let puts = vec![Put { channels: vec![to], batch }];
        commit(journal, Commit { puts, positions: vec![(key.clone(), value)], ..Commit::default() }, stops)?;
    }
    // What is behind the last event that is there.
    progress.missing += request.until.saturating_sub(progress.cursor);
    commit(journal, Commit { positions: vec![(key, Vec::new())], ..Commit::default() }, stops)?;
    Ok(AgainReport { events: progress.events, before, missing: progress.missing })
}

fn commit(journal: &dyn Journal, commit: Commit, stops: &dyn Fn() -> bool) -> Result<(), AgainError> {
    let ticket = loop {
        match journal.commit(commit.clone(), Some(Instant::now() + ROOM)) {
            Err(CommitError::Full { .. }) if !stops() => {}
            Err(CommitError::Full { .. }) => return Err(AgainError::Stopped),
            other => break other?,
        }
    };
    loop {
        match ticket.wait(Some(ROOM)) {
            Some(outcome) => return Ok(outcome.map(|_| ())?),
            None if stops() => return Err(AgainError::Stopped),
            None => {}
        }
    }
}
