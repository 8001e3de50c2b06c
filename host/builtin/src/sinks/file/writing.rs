//! How events get into files: encoded into a buffer per file, written a block at a time.
//!
//! Plain text is written as soon as there is a block that stays in the cache; compressed text when it is worth
//! a frame. All buffers together are bounded. A full file is finished where it is full, and the next row
//! opens the next one.

use std::ops::Range;

use flumen_event::Batch;
use flumen_pipeline::SinkError;
use flumen_pipeline::sink::SinkContext;

use super::compress::Compression;
use super::files::{Entry, Files, failed, open_path};
use super::options::Settings;
use super::route::{Bucket, Run};
use crate::sinks::limits::{BUFFERED_BYTES_MAX, BUFFERS_KEPT};

/// Bytes in the buffer at which it is written: a block, or what is missing to a full file. How
/// long a block becomes when it is compressed is not known before.
fn block_end(settings: &Settings, entry: &Entry) -> usize {
    let left = usize::try_from(settings.roll_bytes.saturating_sub(entry.length)).unwrap_or(usize::MAX);
    if settings.compression == Compression::None {
        settings.block_bytes.min(left)
    } else {
        settings.block_bytes
    }
}

/// A bug: better seen and recovered from than events that go nowhere.
pub(super) fn lost_track() -> SinkError {
    SinkError::Retry("the sink lost track of an open file (a bug of Flumen)".into())
}

impl Files {
    /// Appends rows of one bucket, in order, in as many files as their settings ask for.
    pub fn append(
        &mut self,
        context: &mut SinkContext,
        bucket: &Bucket,
        batch: &Batch,
        runs: &[Run],
        now_ms: u64,
    ) -> Result<(), SinkError> {
        self.uses += 1;
        let mut current = None;
        for run in runs {
            let mut rows = run.rows.clone();
            while !rows.is_empty() {
                let number = match current {
                    Some(number) => number,
                    None => self.ready(context, bucket)?,
                };
                rows.start += self.encode(number, batch, rows.clone())?;
                let finished = self.after_encode(number, now_ms)?;
                current = (!finished).then_some(number);
            }
        }
        if self.buffered_bytes >= BUFFERED_BYTES_MAX { self.write_all() } else { Ok(()) }
    }

    /// Encodes rows into a file's buffer, up to a block or the end of the file. Returns how many.
    fn encode(&mut self, number: u64, batch: &Batch, rows: Range<usize>) -> Result<usize, SinkError> {
        let entry = self.entries.get_mut(&number).ok_or_else(lost_track)?;
        let room =
            self.settings.roll_events.map_or(u64::MAX, |most| most.saturating_sub(entry.events).max(1));
        let end = rows.end.min(rows.start.saturating_add(usize::try_from(room).unwrap_or(usize::MAX)));
        let until = block_end(&self.settings, entry);
        let before = entry.buffer.len();
        let taken = self.encoder.encode(batch, rows.start..end, &mut entry.buffer, until);
        entry.events += taken as u64;
        if entry.used != self.uses {
            self.by_use.remove(&(entry.used, number));
            self.by_use.insert((self.uses, number));
            entry.used = self.uses;
        }
        self.buffered_bytes += entry.buffer.len() - before;
        Ok(taken)
    }

    /// Writes a full block and finishes a full file. True: finished.
    pub(super) fn after_encode(&mut self, number: u64, now_ms: u64) -> Result<bool, SinkError> {
        let entry = self.entries.get_mut(&number).ok_or_else(lost_track)?;
        entry.used_ms = now_ms;
        let counted = self.settings.roll_events.is_some_and(|most| entry.events >= most);
        if entry.buffer.len() >= block_end(&self.settings, entry) {
            self.write_out(number)?;
        }
        let entry = self.entries.get(&number).ok_or_else(lost_track)?;
        let sized = entry.length >= self.settings.roll_bytes;
        if counted || sized {
            self.finish(number)?;
        }
        Ok(counted || sized)
    }

    /// Writes the buffer of a file.
    pub fn write_out(&mut self, number: u64) -> Result<(), SinkError> {
        let Some(entry) = self.entries.get_mut(&number).filter(|entry| !entry.buffer.is_empty()) else {
            return Ok(());
        };
        let path = open_path(&entry.recorded);
        let file =
            entry.file.as_ref().ok_or_else(|| SinkError::Retry(format!("{} is closed", path.display())))?;
        let block = self.compressor.block(&entry.buffer).map_err(|e| failed("compressing", &path, &e))?;
        entry.dirty = true;
        self.disk.write_at(&path, file, block, entry.length).map_err(|e| failed("writing", &path, &e))?;
        entry.length += block.len() as u64;
        self.buffered_bytes = self.buffered_bytes.saturating_sub(entry.buffer.len());
        entry.buffer.clear();
        Ok(())
    }

    /// Writes all buffers.
    pub fn write_all(&mut self) -> Result<(), SinkError> {
        let numbers: Vec<u64> =
            self.entries.iter().filter(|(_, e)| !e.buffer.is_empty()).map(|(n, _)| *n).collect();
        let keep = self.open.len() <= BUFFERS_KEPT;
        for number in numbers {
            self.write_out(number)?;
            if let Some(entry) = self.entries.get_mut(&number).filter(|_| !keep) {
                entry.buffer = Vec::new();
            }
        }
        Ok(())
    }
}
