//! Bringing the directory to what a committed position says.
//!
//! Every file that this sink can have touched is on record: it was put there before it was created,
//! and it stays until its final name is durable. So each listed file is cut to its committed length,
//! files of length 0 are removed, and nothing else is looked at.
//!
//! After an error inside the process the position may be older than the last one put on record; files
//! of this process that it does not list were created after it and are removed.
//!
//! How it fails: a listed file that is missing or shorter than committed was damaged by someone else.
//! That is logged as an error and counted, its bucket goes on in a new file, and delivery goes on. An
//! error of the system (permission, I/O) is returned, and recovery is tried again.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use flumen_pipeline::sink::SinkContext;
use flumen_pipeline::{Metric, SinkError};

use super::files::{Entry, Files, Phase, failed, final_path, open_path};
use super::position::{FileRecord, Position};

impl Files {
    /// Throws away what is in memory and takes everything after `committed` out of the directory.
    pub fn rebuild(&mut self, context: &SinkContext, committed: Position) -> Result<(), SinkError> {
        self.remove_unlisted(&committed)?;
        self.clear();
        self.next_number = self.next_number.max(committed.next_number);
        self.renew_codec();
        let same_settings = committed.fingerprint == self.fingerprint();
        let may_end = self.may_end(committed.fingerprint);
        for record in committed.files {
            let Some(mut entry) = self.restore(context, record, true)? else { continue };
            let record = &entry.recorded;
            let goes_on = entry.phase == Phase::Open
                && same_settings
                && !self.suspect.contains(&record.number)
                && !self.open.contains_key(&record.path)
                && self.open.len() < self.settings.open_files_max;
            // Without its end: it is written by the next flush.
            let ends = !goes_on && may_end && entry.phase == Phase::Open;
            if !goes_on {
                entry.file = entry.file.take().filter(|_| ends);
                entry.phase = if entry.phase == Phase::Open { Phase::Closing } else { entry.phase };
            }
            let number = entry.recorded.number;
            self.insert(entry);
            if ends {
                self.put_end(number);
            }
        }
        self.suspect.clear();
        self.sync_directories()
    }

    /// Files that were created by this process after the position was made.
    fn remove_unlisted(&mut self, committed: &Position) -> Result<(), SinkError> {
        let listed: BTreeSet<u64> = committed.files.iter().map(|record| record.number).collect();
        let unlisted = |entry: &&Entry| {
            !listed.contains(&entry.recorded.number) && matches!(entry.phase, Phase::Open | Phase::Closing)
        };
        let records: Vec<FileRecord> =
            self.entries.values().filter(unlisted).map(|e| e.recorded.clone()).collect();
        for record in records {
            self.remove(&open_path(&record))?;
            self.entries.remove(&record.number);
        }
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> Result<(), SinkError> {
        match self.disk.remove(path) {
            // Perhaps by a process that was killed before it synced the directory.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done.map_err(|e| failed("removing", path, &e))?,
        }
        self.changed_directories.extend(path.parent().map(Path::to_owned));
        Ok(())
    }

    /// One listed file as it was committed; `None`: it is not needed or not there.
    fn restore(
        &mut self,
        context: &SinkContext,
        mut record: FileRecord,
        may_return: bool,
    ) -> Result<Option<Entry>, SinkError> {
        let path = open_path(&record);
        if record.length == 0 {
            self.remove(&path)?;
            return Ok(None);
        }
        let file = match self.disk.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.restore_renamed(context, record, may_return);
            }
            Err(error) => return Err(failed("opening", &path, &error)),
        };
        let length = file.metadata().map_err(|e| failed("looking at", &path, &e))?.len();
        let mut phase = if record.closing { Phase::Closing } else { Phase::Open };
        if length < record.length {
            damaged(context, &path, &format!("has {length} bytes, {} were committed", record.length));
            if length == 0 {
                self.remove(&path)?;
                return Ok(None);
            }
            record.length = length;
            phase = Phase::Closing;
        } else {
            // Also when the length is right: it may be a cut that was not made durable.
            self.disk.cut(&path, &file, record.length).map_err(|e| failed("cutting", &path, &e))?;
        }
        let now_ms = (self.clock)();
        Ok(Some(Entry::new(phase, record, Some(file), now_ms)))
    }

    /// The `.open` name is gone: the rename was done, or the file is.
    fn restore_renamed(
        &mut self,
        context: &SinkContext,
        record: FileRecord,
        may_return: bool,
    ) -> Result<Option<Entry>, SinkError> {
        let [path, last] = [open_path(&record), final_path(&record)];
        if !self.disk.exists(&last).map_err(|e| failed("looking for", &last, &e))? {
            damaged(context, &path, &format!("is gone, with {} committed events", record.events));
            return Ok(None);
        }
        self.changed_directories.extend(last.parent().map(Path::to_owned));
        if record.closing || !may_return {
            return Ok(Some(Entry::new(Phase::Renamed, record, None, 0)));
        }
        // The journal is older than the rename: it lost commits (durability "os", a restored backup).
        // What follows the committed length will be delivered again, so it has to go.
        tracing::warn!(sink = &*context.name, file = %last.display(), "final file is newer than the journal; taken back");
        self.disk.rename(&last, &path).map_err(|e| failed("taking back", &last, &e))?;
        self.restore(context, record, false)
    }
}

/// Someone else changed or removed a file that was not final.
fn damaged(context: &SinkContext, path: &Path, what: &str) {
    context.metrics.add(Metric::SinkFilesDamaged, 1);
    tracing::error!(
        sink = &*context.name,
        file = %path.display(),
        "an open file was changed from outside: it {what}; delivered events in it are lost, delivery goes on in a new file"
    );
}
