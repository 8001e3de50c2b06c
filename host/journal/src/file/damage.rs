//! What is done about bytes that should be frames and are not: copied aside, named, counted.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::segment::{SegmentFile, segment_name};
use crate::disk::{Disk, write_all_at};
use crate::limits;

/// The directory in the journal's directory that damaged ranges are copied to.
pub const DAMAGED_DIR: &str = "damaged";

/// Numbers of commits that are known to be lost: each is counted once, whoever finds it missing and where.
#[derive(Debug, Clone, Default)]
pub struct Lost {
    /// In order, without overlaps.
    ranges: Vec<Range<u64>>,
}

impl Lost {
    /// Adds numbers; returns how many of them are new.
    pub fn add(&mut self, range: &Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let before = self.count();
        let touches = |other: &Range<u64>| other.start <= range.end && range.start <= other.end;
        let (joined, mut rest): (Vec<_>, Vec<_>) = self.ranges.drain(..).partition(touches);
        let start = joined.iter().map(|other| other.start).min().unwrap_or(range.start).min(range.start);
        let end = joined.iter().map(|other| other.end).max().unwrap_or(range.end).max(range.end);
        rest.push(start..end);
        rest.sort_by_key(|range| range.start);
        self.ranges = rest;
        self.count() - before
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }
}

/// Copies a range aside (once), and says what is missing. Never an error: the damage is already done.
pub fn report(disk: &dyn Disk, dir: &Path, file: &SegmentFile, range: Range<u64>, missing: &Range<u64>) {
    let name = segment_name(file.id);
    let copy = format!("{}-{:08x}.bin", name.trim_end_matches(".seg"), range.start);
    let copied = copy_aside(disk, dir, file, &range, &copy);
    let (first, last) = (missing.start, missing.end.saturating_sub(1));
    tracing::error!(
        dir = %dir.display(), segment = %name, offset = range.start, bytes = range.end - range.start,
        first_missing_commit = first, last_missing_commit = last,
        copy = %format!("{DAMAGED_DIR}/{copy}"), copied = copied.is_ok(),
        "part of a segment is damaged: its commits are lost, all others are kept"
    );
    if let Err(error) = copied {
        tracing::warn!(dir = %dir.display(), %error, "the damaged bytes could not be copied aside");
    }
}

/// The directory for what is damaged.
pub fn make_dir(disk: &dyn Disk, dir: &Path) -> io::Result<PathBuf> {
    let damaged = dir.join(DAMAGED_DIR);
    disk.create_dir(&damaged)?;
    Ok(damaged)
}

fn copy_aside(
    disk: &dyn Disk,
    dir: &Path,
    file: &SegmentFile,
    range: &Range<u64>,
    name: &str,
) -> io::Result<()> {
    let to_dir = make_dir(disk, dir)?;
    let to = match disk.create(&to_dir.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other?,
    };
    let end = range.end.min(range.start + limits::DAMAGE_COPY_BYTES_MAX);
    let mut memory = vec![0; limits::READ_AHEAD_BYTES];
    let mut at = range.start;
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(memory.len());
        let read = file.raw(at, memory.get_mut(..wanted).unwrap_or_default())?;
        if read == 0 {
            break;
        }
        write_all_at(
            to.as_ref(),
            at - range.start,
            &mut [IoSlice::new(memory.get(..read).unwrap_or_default())],
        )?;
        at += read as u64;
    }
    to.sync_data()?;
    disk.sync_dir(&to_dir)
}

#[cfg(test)]
mod tests {
    use super::Lost;

    #[test]
    fn each_number_is_counted_once() {
        let mut lost = Lost::default();
        let added =
            [(5..8, 3), (20..21, 1), (5..8, 0), (7..10, 2), (1..3, 2), (3..5, 2), (0..30, 20), (4..4, 0)];
        for (range, new) in added {
            assert_eq!(lost.add(&range), new, "{range:?}");
        }
        assert_eq!(lost.count(), 30);
    }
}
