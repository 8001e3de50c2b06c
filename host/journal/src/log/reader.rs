//! A reader: from the log, at the place that the index says, and on from there.
//!
//! Constraints: what it hands out counts. What counts and was not handed out is never "nothing": a read waits for it, and is an error if it
//! does not come, because who finds nothing believes that it has everything. Positions never skip, except over events that are lost
//! to damage, which the next delivery counts.
//!
//! Each reader reads the whole log, with the puts of other channels; a stretch of these is skipped.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use flumen_event::Batch;

use super::commit::LogCommit;
use super::record::{Assembler, Fault, Header, Kind, decode};
use super::shared::{Entry, Phase, Shared};
use super::{LogError, LogReader};
use crate::api::{Delivery, ReadError, Reader};
use crate::file::format::sealed::Opener;
use crate::limits;

/// First byte of a mark: then the journal's id (16 bytes) and the cursor (8), little-endian.
const MARK_VERSION: u8 = 3;

/// A reader of one channel.
pub(super) struct LogChannelReader {
    shared: Arc<Shared>,
    channel: usize,
    reader: usize,
    cursor: u64,
    lost: u64,
    log: Option<Box<dyn LogReader>>,
    /// The next record is the first here or behind, and of a commit behind this one; `None`: nobody knows.
    at: Option<(u64, u64)>,
    assembler: Assembler,
    opener: Opener,
    /// The commit that was read last: it may have more puts for this channel.
    last: Option<(u64, LogCommit)>,
}

/// What to do next.
enum Plan {
    /// This put counts, and holds the cursor.
    Read(Entry),
    /// Nothing before this event is there.
    Gone(u64),
    Nothing,
}

impl LogChannelReader {
    pub fn new(shared: Arc<Shared>, channel: usize, reader: usize) -> LogChannelReader {
        let cursor = shared.acknowledged(channel, reader);
        let opener = Opener::new(&shared.config.keys);
        LogChannelReader {
            shared,
            channel,
            reader,
            cursor,
            lost: 0,
            log: None,
            at: None,
            assembler: Assembler::default(),
            opener,
            last: None,
        }
    }

    fn plan(&mut self, wait: Duration) -> Result<Plan, ReadError> {
        let shared = self.shared.clone();
        let deadline = shared.clock.now().checked_add(wait);
        let mut state = shared.state.lock();
        loop {
            if state.phase != Phase::Open {
                return Err(ReadError::Closing);
            }
            self.cursor = self.cursor.max(state.acknowledged(self.channel, self.reader));
            let Some(channel) = state.channels.get(self.channel) else { return Ok(Plan::Nothing) };
            if self.cursor < channel.durable_head {
                let at = channel.index.partition_point(|entry| entry.end() <= self.cursor);
                return Ok(match channel.index.get(at) {
                    Some(entry) if entry.first <= self.cursor => Plan::Read(entry.clone()),
                    Some(entry) => Plan::Gone(entry.first),
                    None => Plan::Gone(channel.durable_head),
                });
            }
            let left = deadline
                .map_or(limits::LOG_READ, |deadline| deadline.saturating_duration_since(shared.clock.now()));
            if left.is_zero() {
                return Ok(Plan::Nothing);
            }
            shared.changed.wait_for(&mut state, left);
        }
    }

    fn lose_until(&mut self, cursor: u64) {
        let lost = cursor.saturating_sub(self.cursor);
        let (log, channel) = (&self.shared.config.name, self.channel);
        tracing::error!(log, channel, lost, from = self.cursor, "events are lost to damage");
        self.lost += lost;
        self.cursor = cursor;
    }

    /// The events of a put; `None`: they are lost to damage.
    fn read(&mut self, entry: &Entry) -> Result<Option<Batch>, LogError> {
        if let Some((number, commit)) = &self.last
            && *number == entry.commit
        {
            return Ok(found(commit, entry));
        }
        self.last = None;
        let readers = &self.shared.readers;
        let log = self.log.get_or_insert_with(|| readers());
        // Entries come in the order of the log, so what is wanted is behind the last commit that was read, unless somebody went back.
        let is_near = |place: u64| entry.place.saturating_sub(place) <= limits::LOG_SKIP_RECORDS;
        let reads_on = self.at.is_some_and(|(place, commit)| commit < entry.commit && is_near(place));
        if !reads_on {
            log.seek(entry.place);
            self.assembler.clear();
        }
        self.at = None;
        let journal = self.shared.opened().map(|opened| opened.journal);
        let mut until = self.shared.clock.now() + limits::LOG_READ;
        loop {
            let left = until.saturating_duration_since(self.shared.clock.now());
            if left.is_zero() || self.shared.state.lock().phase != Phase::Open {
                let reason = format!("commit {} of the log did not come in time", entry.commit);
                return Err(LogError::Unknown(reason));
            }
            let Some((place, record)) = log.next(left.min(limits::LOG_TICK))? else { continue };
            // However slow the log is, a large commit comes.
            until = self.shared.clock.now() + limits::LOG_READ;
            let header = match decode(&record) {
                // What somebody else writes here says nothing of what is missing.
                Ok((header, _)) | Err(Fault::Damaged(Some(header))) if Some(header.journal) != journal => {
                    continue;
                }
                Ok((header, piece)) => {
                    if let Some((header, content)) = self.assembler.take(&header, piece)
                        && is_wanted(&header, entry)
                    {
                        self.at = Some((place + 1, entry.commit));
                        let commit = LogCommit::decode(&header, &content, &mut self.opener);
                        let commit = commit.map_err(|error| LogError::Final(error.to_string()))?;
                        let Some(commit) = commit else { return Ok(None) };
                        let found = found(&commit, entry);
                        self.last = Some((entry.commit, commit));
                        return Ok(found);
                    }
                    header
                }
                Err(Fault::Damaged(Some(header))) if is_wanted(&header, entry) => {
                    self.assembler.clear();
                    return Ok(None);
                }
                Err(_) => continue,
            };
            // All before it was handed over.
            let is_last = header.kind == Kind::Snapshot || header.index + 1 == header.pieces;
            if header.number > entry.commit || (header.number == entry.commit && is_last) {
                self.assembler.clear();
                return Ok(None);
            }
        }
    }
}

fn is_wanted(header: &Header, entry: &Entry) -> bool {
    header.kind == Kind::Commit && header.number == entry.commit
}

fn found(commit: &LogCommit, entry: &Entry) -> Option<Batch> {
    let put = commit.head.puts.get(entry.put)?;
    commit.batch(put).filter(|batch| batch.rows() as u64 == entry.rows)
}

impl Reader for LogChannelReader {
    fn next(&mut self, wait: Duration) -> Result<Option<Delivery>, ReadError> {
        loop {
            let entry = match self.plan(wait)? {
                Plan::Nothing => return Ok(None),
                Plan::Gone(until) => {
                    self.lose_until(until);
                    continue;
                }
                Plan::Read(entry) => entry,
            };
            let read = self.read(&entry).map_err(|error| ReadError::Io {
                what: format!("the log of {}", self.shared.config.name),
                source: io::Error::other(error.to_string()),
            });
            match read? {
                None => {
                    self.shared.state.lock().note_damaged(entry.commit);
                    self.lose_until(entry.end());
                }
                Some(batch) => {
                    let first = self.cursor;
                    let skip = usize::try_from(first - entry.first).unwrap_or(usize::MAX);
                    let batch = batch.slice(skip, batch.rows());
                    self.cursor = entry.end();
                    let lost_before = std::mem::take(&mut self.lost);
                    return Ok(Some(Delivery { first, next: self.cursor, batch, lost_before }));
                }
            }
        }
    }

    fn seek(&mut self, cursor: u64) -> Result<(), ReadError> {
        self.cursor = cursor.max(self.acknowledged());
        self.lost = 0;
        Ok(())
    }

    fn acknowledged(&self) -> u64 {
        self.shared.acknowledged(self.channel, self.reader)
    }

    fn mark(&self, cursor: u64) -> Vec<u8> {
        // Whoever has a cursor has read.
        let journal = self.shared.opened().map(|opened| opened.journal).unwrap_or_default();
        let mut mark = vec![MARK_VERSION];
        mark.extend(journal);
        mark.extend(cursor.to_le_bytes());
        mark
    }

    fn resolve(&mut self, mark: &[u8]) -> Option<u64> {
        let (version, rest) = mark.split_first()?;
        let (journal, cursor) = rest.split_first_chunk::<16>()?;
        let cursor = u64::from_le_bytes(cursor.try_into().ok()?);
        let state = self.shared.wait_read();
        let head = state.registers.channels.get(self.channel)?.head;
        let is_own = state.opened.as_ref().is_some_and(|opened| opened.journal == *journal);
        (*version == MARK_VERSION && is_own && cursor <= head).then_some(cursor)
    }
}
