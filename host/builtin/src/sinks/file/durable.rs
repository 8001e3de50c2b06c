//! The durable steps: syncs, the position of a flush, final names.
//!
//! Nothing is acknowledged that could still vanish: neither bytes, nor the names of files, nor the
//! directories above them, which an earlier process may have made without living to sync them.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use flumen_pipeline::sink::SinkContext;
use flumen_pipeline::{Metric, SinkError};

use super::files::{Entry, Files, Phase, failed, final_path, open_path};
use super::position::Position;
use crate::sinks::limits::PATHS_CACHED_MAX;

impl Files {
    /// Makes what was written to a file durable.
    pub fn sync(&mut self, number: u64) -> Result<(), SinkError> {
        let Some(entry) = self.entries.get_mut(&number).filter(|entry| entry.dirty) else { return Ok(()) };
        let path = open_path(&entry.recorded);
        let file =
            entry.file.as_ref().ok_or_else(|| SinkError::Retry(format!("{} is closed", path.display())))?;
        if let Err(error) = self.disk.sync(&path, file) {
            // The kernel may have dropped the pages and report the error only once.
            self.suspect.insert(number);
            return Err(failed("syncing", &path, &error));
        }
        // Synced, and gone as soon as it is closed: not to be acknowledged.
        let links = file.metadata().map_err(|e| failed("looking at", &path, &e))?.nlink();
        if links == 0 {
            return Err(SinkError::Retry(format!("{} was removed while it was written", path.display())));
        }
        entry.dirty = false;
        Ok(())
    }

    /// Makes everything durable and says what is there.
    pub fn flush(&mut self) -> Result<Position, SinkError> {
        self.swap_codec()?;
        for number in self.overdue() {
            self.finish(number)?;
        }
        self.write_all()?;
        let full: Vec<u64> = self.entries.iter().filter(|(_, e)| self.is_full(e)).map(|(n, _)| *n).collect();
        for number in full {
            self.finish(number)?;
        }
        let dirty: Vec<u64> = self.entries.iter().filter(|(_, entry)| entry.dirty).map(|(n, _)| *n).collect();
        for number in dirty {
            self.sync(number)?;
        }
        self.sync_directories()?;
        self.entries.retain(|_, entry| entry.phase != Phase::Renamed);
        self.closing_handles.clear();
        for entry in self.entries.values_mut() {
            entry.recorded.length = entry.length;
            entry.recorded.events = entry.events;
            if entry.phase == Phase::Closing {
                entry.recorded.closing = true;
                entry.awaits_commit = true;
                entry.file = None;
            }
        }
        Ok(self.recorded())
    }

    /// Compressed files reach their size only when a block is written.
    fn is_full(&self, entry: &Entry) -> bool {
        entry.phase == Phase::Open && entry.length >= self.settings.roll_bytes
    }

    /// Makes created, renamed and removed names durable.
    pub fn sync_directories(&mut self) -> Result<(), SinkError> {
        self.sync_ancestors()?;
        while let Some(directory) = self.changed_directories.first().cloned() {
            match self.disk.sync_directory(&directory) {
                // Someone removed it, with nothing in it that was written since: `sync` has seen to that.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done.map_err(|e| failed("syncing directory", &directory, &e))?,
            }
            self.changed_directories.remove(&directory);
        }
        Ok(())
    }

    fn sync_ancestors(&mut self) -> Result<(), SinkError> {
        use io::ErrorKind::{InvalidInput, NotFound, PermissionDenied, ReadOnlyFilesystem, Unsupported};
        for (directory, durable) in self.ancestors.iter_mut().filter(|(_, durable)| !**durable) {
            if let Some(parent) =
                directory.parent().filter(|parent| !self.changed_directories.contains(*parent))
            {
                match self.disk.sync_directory(parent) {
                    // A directory that we may not even read was not changed by us.
                    Err(error)
                        if matches!(
                            error.kind(),
                            PermissionDenied | NotFound | ReadOnlyFilesystem | InvalidInput | Unsupported
                        ) => {}
                    done => done.map_err(|e| failed("syncing directory", parent, &e))?,
                }
            }
            *durable = true;
        }
        // Only a saving: what is forgotten is synced once more.
        if self.ancestors.len() > PATHS_CACHED_MAX {
            self.ancestors.clear();
        }
        Ok(())
    }

    /// Gives final names to the files that a durable position calls closing.
    pub fn rename_closing(&mut self, context: &SinkContext, position: &Position) -> Result<(), SinkError> {
        for record in position.files.iter().filter(|record| record.closing) {
            let Some(entry) = self.entries.get_mut(&record.number) else { continue };
            if entry.phase != Phase::Closing
                || entry.recorded.path != record.path
                || entry.length != record.length
            {
                continue;
            }
            let [from, to] = [open_path(record), final_path(record)];
            self.disk.rename(&from, &to).map_err(|e| failed("renaming to its final name", &from, &e))?;
            entry.phase = Phase::Renamed;
            entry.file = None;
            self.changed_directories.extend(to.parent().map(Path::to_owned));
            context.metrics.add(Metric::SinkFilesFinished, 1);
        }
        Ok(())
    }
}
