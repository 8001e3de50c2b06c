//! Whether a disk takes what a journal writes.

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::{Disk, DiskFile, write_all_at};
use crate::limits;

/// Name of the file that is written and removed.
pub(crate) const PROBE_NAME: &str = "probe";

/// Writes a little to a directory, durably, and removes it again.
pub struct DiskProbe {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment_bytes: u64,
}

impl DiskProbe {
    /// Of a journal's directory and the length of its segments.
    pub fn new(disk: Arc<dyn Disk>, dir: PathBuf, segment_bytes: u64) -> DiskProbe {
        DiskProbe { disk, dir, segment_bytes }
    }

    /// True if the disk took it. With `has_room` it has room for a segment as well: a journal that goes back to a disk that is
    /// nearly full would leave it again at once.
    pub fn is_good(&self, has_room: bool) -> bool {
        self.write(if has_room { self.segment_bytes } else { 0 }).is_ok()
    }

    /// What it says against a little.
    ///
    /// # Errors
    /// Whatever the disk says: also that it is full.
    pub fn ask(&self) -> io::Result<()> {
        self.write(0)
    }

    fn write(&self, bytes: u64) -> io::Result<()> {
        let path = self.dir.join(PROBE_NAME);
        let gone = |outcome: io::Result<()>| match outcome {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        // Of a process that was killed.
        gone(self.disk.unlink(&path))?;
        let written = self.disk.create(&path).and_then(|file| fill(file.as_ref(), bytes));
        gone(self.disk.unlink(&path))?;
        written.and_then(|()| self.disk.sync_dir(&self.dir))
    }
}

fn fill(file: &dyn DiskFile, bytes: u64) -> io::Result<()> {
    file.preallocate(bytes.max(limits::PROBE_BYTES as u64))?;
    write_all_at(file, 0, &mut [IoSlice::new(&[0x5a; limits::PROBE_BYTES])])?;
    file.sync_data()
}
