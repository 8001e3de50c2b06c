//! What is done about bytes that should be frames and are not: copied aside, named, counted.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::Path;

use super::segment::{SegmentFile, segment_name};
use crate::disk::{Disk, write_all_at};
use crate::limits;

/// The directory in the journal's directory that damaged ranges are copied to.
pub const DAMAGED_DIR: &str = "damaged";

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

fn copy_aside(
    disk: &dyn Disk,
    dir: &Path,
    file: &SegmentFile,
    range: &Range<u64>,
    name: &str,
) -> io::Result<()> {
    let to_dir = dir.join(DAMAGED_DIR);
    disk.create_dir(&to_dir)?;
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
