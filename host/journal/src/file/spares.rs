//! Segments that are done with, kept to be written again.
//!
//! Blocks that were written before are made durable faster than fresh ones: the file system has nothing to note of them, and
//! their pages are in memory already (the table in ARCHITECTURE.md). So up to [`limits::SPARES_MAX`] deleted segments become
//! `spare.N`, and a new segment begins in one if there is one.
//!
//! Constraints: what stands in a spare never counts, since a frame is one of its segment's id alone. So a spare gets its header and
//! checkpoint first, then its name, and frames when the name is durable: no two segments of one id ever have frames. That takes
//! syncs, so there are spares in a durable journal only. A segment of another key, or of none, is no spare of an encrypted journal:
//! it would keep its text. On a full disk there are none: their space is given back.
//!
//! How it fails: what goes wrong with a spare costs the spare. Those of an earlier opening are deleted.

use std::io;
use std::path::{Path, PathBuf};

use super::config::Durability;
use super::format::sealed::Sealer;
use super::format::snapshot::SegmentInfo;
use super::mend;
use super::segment::segment_name;
use super::writer::Writer;
use crate::disk::{Disk, DiskFile};
use crate::limits;

pub(super) fn spare_name(number: usize) -> String {
    format!("spare.{number}")
}

/// Deletes what an earlier opening kept.
pub(super) fn unlink_spares(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    for number in 0..limits::SPARES_MAX {
        match disk.unlink(&dir.join(spare_name(number))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

impl Writer {
    /// A segment whose deletion is recorded: keeps its file or unlinks it.
    pub fn let_go(&mut self, segment: &SegmentInfo) {
        let path = self.shared.dir.join(segment_name(segment.id));
        if mend::is_foreign(self.shared.disk.as_ref(), &self.shared.dir, self.shared.journal, segment.id) {
            tracing::warn!(path = %path.display(), "a segment of another journal is in the place of one that is done with: it stays");
            return;
        }
        if self.is_spare(segment) {
            let free = (0..limits::SPARES_MAX).map(|number| self.shared.dir.join(spare_name(number)));
            let free = free.into_iter().find(|spare| !self.spares.contains(spare));
            if let Some(spare) = free
                && self.shared.disk.rename(&path, &spare).is_ok()
            {
                return self.spares.push(spare);
            }
        }
        if let Err(error) = self.shared.disk.unlink(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a segment that is done with cannot be deleted");
        }
    }

    fn is_spare(&self, segment: &SegmentInfo) -> bool {
        // Of a shorter one little was written.
        let is_long = segment.end >= self.shared.config.segment_bytes / 2;
        let is_durable = self.shared.config.durability == Durability::Durable;
        is_long
            && is_durable
            && self.full.is_none()
            && segment.key == self.shared.sealer.as_ref().map(Sealer::name)
    }

    /// Gives the space of all spares back.
    pub fn drop_spares(&mut self) {
        for path in std::mem::take(&mut self.spares) {
            if let Err(error) = self.shared.disk.unlink(&path) {
                tracing::warn!(path = %path.display(), %error, "a spare segment stays behind");
            }
        }
    }

    /// A spare to begin a segment in, and its name until then.
    pub fn take_spare(&mut self) -> Option<(Box<dyn DiskFile>, PathBuf)> {
        while let Some(path) = self.spares.pop() {
            match self.shared.disk.open(&path, true) {
                Ok(file) => return Some((file, path)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a spare segment cannot be used");
                }
            }
        }
        None
    }
}
