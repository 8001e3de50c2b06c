//! Files by a codec: a beginning, what the codec makes of each batch, an end.
//!
//! The *seed* of a file is a hash of its name, which is on record before the file exists: so it is the same for every
//! call about the file, also after a crash. The beginning is written with the first events, and is in the committed
//! length with them or not at all. The end is written when the file takes no more.
//!
//! A file is by one version of the codec. When that is swapped, the next flush finishes all files with the old one's
//! end; until then the old version works on. A file whose version is gone after a restart gets the end of the present one.
//!
//! How it fails: rows that the codec cannot encode go to quarantine. Without a beginning nothing is written, and delivery is
//! tried again; a file whose end fails is finished without it, and the log says so.

use flumen_event::Batch;
use flumen_pipeline::SinkError;
use flumen_pipeline::codec::Encoded;
use flumen_pipeline::sink::SinkContext;

use super::files::{Entry, Files, Phase, final_path, open_path};
use super::position::FileRecord;
use super::route::{Bucket, Run};
use super::writing::lost_track;
use crate::sinks::limits::BUFFERED_BYTES_MAX;

/// The part of a fingerprint that tells versions of a codec apart; the other part is of the settings.
const VERSION_BITS: u64 = 0xffff_ffff;

/// The file's own number.
pub(super) fn seed(record: &FileRecord) -> u64 {
    let hash = blake3::hash(final_path(record).as_os_str().as_encoded_bytes());
    hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl Files {
    /// Takes the version that is there now, for files that begin now. Those of another must have been finished.
    pub fn renew_codec(&mut self) {
        self.version = self.settings.codec.as_ref().map(|codec| codec.current());
    }

    /// True if a swap waits for the next flush.
    pub fn is_codec_swapped(&self) -> bool {
        let present = self.settings.codec.as_ref().map(|codec| codec.current());
        match (&present, &self.version) {
            (Some(present), Some(version)) => present.hash() != version.hash(),
            _ => false,
        }
    }

    /// At a flush: files of a version that was swapped are finished, and the new one takes its place.
    pub fn swap_codec(&mut self) -> Result<(), SinkError> {
        if self.is_codec_swapped() {
            let open: Vec<u64> = self.open.values().copied().collect();
            open.into_iter().try_for_each(|number| self.finish(number))?;
            self.renew_codec();
        }
        Ok(())
    }

    /// What files of these settings and this version have in common.
    pub fn fingerprint(&self) -> u64 {
        match &self.version {
            None => self.settings.fingerprint,
            Some(version) => {
                let hash = blake3::hash(version.hash().as_bytes());
                let bits = hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
                (self.settings.fingerprint & !VERSION_BITS) | (bits & VERSION_BITS)
            }
        }
    }

    /// True if an end of ours fits a file with this fingerprint.
    pub fn may_end(&self, fingerprint: u64) -> bool {
        self.version.is_some() && fingerprint & !VERSION_BITS == self.fingerprint() & !VERSION_BITS
    }

    /// Appends rows of one bucket, in order, in as many files as their settings ask for.
    pub fn append_encoded(
        &mut self,
        context: &mut SinkContext,
        bucket: &Bucket,
        batch: &Batch,
        runs: &[Run],
        now_ms: u64,
    ) -> Result<(), SinkError> {
        self.uses += 1;
        let rows = rows_of(batch, runs)?;
        let mut first = 0;
        while first < rows.rows() {
            self.announce_one(context, bucket)?;
            let Some(number) = self.open.get(&bucket.path).copied() else { continue };
            let entry = self.entries.get(&number).ok_or_else(lost_track)?;
            let part = rows.slice(first, self.room(entry, &rows, first));
            let (Some(codec), Some(version)) = (&self.settings.codec, self.version.clone()) else {
                return Err(lost_track());
            };
            let encoded = codec.encode(version.as_ref(), &part, Some(seed(&entry.recorded)));
            if !encoded.rows.is_empty() {
                // Someone else may have taken the name meanwhile: what is encoded is for another file then.
                if self.ready(context, bucket)? != number {
                    continue;
                }
                self.put(number, &encoded)?;
                self.after_encode(number, now_ms)?;
            }
            context.quarantine_groups(encoded.quarantined);
            first += part.rows();
        }
        if self.buffered_bytes >= BUFFERED_BYTES_MAX { self.write_all() } else { Ok(()) }
    }

    /// How many of the rows from `first` on may go to the file as one: by their number and, as far as that can be
    /// known before, by their bytes. At least one.
    fn room(&self, entry: &Entry, rows: &Batch, first: usize) -> usize {
        let events = self.settings.roll_events.map_or(u64::MAX, |most| most.saturating_sub(entry.events));
        let most = usize::try_from(events).unwrap_or(usize::MAX).min(rows.rows() - first).max(1);
        let filled = entry.length + entry.buffer.len() as u64;
        let bytes = self.settings.roll_bytes.saturating_sub(filled);
        let offsets = rows.body().value_offsets();
        let from = offsets.get(first).copied().unwrap_or(0);
        let ends = offsets.get(first + 1..).unwrap_or_default();
        let fitting = ends.partition_point(|end| u64::from((end - from).unsigned_abs()) < bytes);
        most.min(fitting + 1)
    }

    /// Puts payloads into a file's buffer, behind the file's beginning if they are the first.
    fn put(&mut self, number: u64, encoded: &Encoded) -> Result<(), SinkError> {
        let entry = self.entries.get_mut(&number).ok_or_else(lost_track)?;
        let before = entry.buffer.len();
        if entry.length == 0
            && entry.events == 0
            && let Some(version) = &self.version
        {
            let begin = version.begin(seed(&entry.recorded)).map_err(|error| {
                let path = open_path(&entry.recorded);
                SinkError::Retry(format!("the codec did not begin {}: {error}", path.display()))
            })?;
            entry.buffer.extend_from_slice(&begin);
        }
        entry.buffer.extend_from_slice(encoded.bytes());
        entry.events += encoded.rows.rows() as u64;
        if entry.used != self.uses {
            self.by_use.remove(&(entry.used, number));
            self.by_use.insert((self.uses, number));
            entry.used = self.uses;
        }
        self.buffered_bytes += entry.buffer.len() - before;
        Ok(())
    }

    /// Puts the end behind everything in a file.
    pub fn put_end(&mut self, number: u64) {
        let (Some(version), Some(entry)) = (&self.version, self.entries.get_mut(&number)) else { return };
        match version.end(seed(&entry.recorded)) {
            Ok(end) => {
                self.buffered_bytes += end.len();
                entry.buffer.extend_from_slice(&end);
            }
            Err(error) => {
                let path = open_path(&entry.recorded);
                tracing::error!(file = %path.display(), %error, "the codec did not end a file; it is finished without");
            }
        }
    }

    /// A file that was announced and never written: nothing is there.
    pub fn drop_planned(&mut self, number: u64) -> bool {
        let path = match self.entries.get(&number) {
            Some(entry) if entry.phase == Phase::Planned => entry.recorded.path.clone(),
            _ => return false,
        };
        self.open.remove(&path);
        self.entries.remove(&number);
        true
    }
}

/// The rows of one bucket, in order.
pub(super) fn rows_of(batch: &Batch, runs: &[Run]) -> Result<Batch, SinkError> {
    if let [only] = runs {
        return Ok(batch.slice(only.rows.start, only.rows.len()));
    }
    let rows: Vec<u32> = runs.iter().flat_map(|run| run.rows.clone()).map(|row| row as u32).collect();
    batch.take(&rows.into()).map_err(|error| SinkError::Retry(error.to_string()))
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
