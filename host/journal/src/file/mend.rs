//! What recovery changes on disk, once it knows what there is.
//!
//! Constraints: nothing that may hold a commit is deleted. What was read is made durable before anybody builds on it: after a
//! failed sync the system shows pages that are not on the disk, and never writes them again by itself. So the bytes of commits
//! that nothing proves to be durable are written once more, where they are.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::path::Path;

use super::damage::{self, DAMAGED_DIR};
use super::format::segment::SEGMENT_HEADER_BYTES;
use super::recovery::NamedSegment;
use super::scan::Scanned;
use super::segment::{SegmentFile, segment_name};
use crate::disk::{Disk, DiskFile, write_all_at};
use crate::limits;

/// Cuts what was not taken, so that it is never looked at again, and makes durable what was. `false`: it is no segment any more.
pub(super) fn mend(disk: &dyn Disk, dir: &Path, segment: &Scanned) -> io::Result<bool> {
    let path = dir.join(segment_name(segment.file.id));
    if segment.file.header.is_err() && segment.taken <= SEGMENT_HEADER_BYTES as u64 {
        if is_blank(&segment.file)? {
            // A crash while it was made.
            disk.unlink(&path)?;
            disk.sync_dir(dir)?;
        } else {
            set_aside(disk, dir, segment.file.id)?;
        }
        return Ok(false);
    }
    let file = disk.open(&path, true)?;
    if segment.file.unreadable_until() > segment.taken {
        tracing::error!(dir = %dir.display(), segment = %segment_name(segment.file.id), from = segment.taken,
            to = segment.file.unreadable_until(),
            "the disk cannot read the end of this segment: commits that may be there are lost, the bytes stay");
    } else if segment.taken < segment.len {
        file.truncate(segment.taken)?;
    }
    if let Some(from) = segment.unproven {
        rewrite(&segment.file, file.as_ref(), from, segment.taken)?;
    }
    file.sync_data()?;
    Ok(true)
}

/// Nothing was ever written to it: its first sector, which holds more than the header, is written whole or not at all.
pub(super) fn is_blank(file: &SegmentFile) -> io::Result<bool> {
    let mut start = [0; 2 * SEGMENT_HEADER_BYTES];
    match file.raw(0, &mut start) {
        Ok(_) => Ok(start.iter().all(|byte| *byte == 0)),
        Err(error) if crate::disk::is_damage(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A whole segment that cannot be read is kept for a person to look at.
fn set_aside(disk: &dyn Disk, dir: &Path, id: u64) -> io::Result<()> {
    let (name, to_dir) = (segment_name(id), damage::make_dir(disk, dir)?);
    disk.rename(&dir.join(&name), &to_dir.join(&name))?;
    disk.sync_dir(&to_dir)?;
    disk.sync_dir(dir)?;
    tracing::error!(dir = %dir.display(), segment = %name, copy = %format!("{DAMAGED_DIR}/{name}"),
        "nothing in this segment can be read: its commits are lost, the file is kept");
    Ok(())
}

fn rewrite(from: &SegmentFile, to: &dyn DiskFile, start: u64, end: u64) -> io::Result<()> {
    let mut memory = vec![0; limits::READ_AHEAD_BYTES];
    let mut at = start;
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(memory.len());
        let part = memory.get_mut(..wanted).unwrap_or_default();
        let read = from.raw(at, part)?;
        let part = part.get(..read).filter(|part| !part.is_empty()).ok_or(io::ErrorKind::UnexpectedEof)?;
        write_all_at(to, at, &mut [IoSlice::new(part)])?;
        at += read as u64;
    }
    Ok(())
}

/// Somebody put a segment of another journal in the place of one of this.
pub(super) fn is_foreign(disk: &dyn Disk, dir: &Path, journal: u128, id: u64) -> bool {
    let file = SegmentFile::open_tolerant(disk, dir, id, Some(journal as u64));
    file.is_ok_and(|file| file.header.is_ok() && !file.is_of(journal))
}

/// Segments whose deletion was recorded but did not happen.
pub(super) fn unlink_leftovers(
    disk: &dyn Disk,
    dir: &Path,
    journal: u128,
    ids: &BTreeSet<u64>,
    scan: u64,
    known: &[NamedSegment],
) {
    for id in ids.range(..scan).filter(|id| !known.iter().any(|segment| segment.info.id == **id)) {
        let gone = match is_foreign(disk, dir, journal, *id) {
            true => Err(io::Error::other("it is of another journal")),
            false => disk.unlink(&dir.join(segment_name(*id))),
        };
        if let Err(error) = gone {
            tracing::warn!(dir = %dir.display(), segment = %segment_name(*id), %error, "a segment that is not needed stays behind");
        }
    }
}
