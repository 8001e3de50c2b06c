//! All valid frames of a segment, those behind damage too: what a recovery decides on.
//!
//! Constraints: nothing is changed on disk, and nothing is decided; what the disk cannot read is zeros.

use std::io;
use std::ops::Range;
use std::path::Path;

use super::base::Base;
use super::format::commit::{CommitHead, decode_lists};
use super::format::frame::Kind;
use super::format::registers::Registers;
use super::format::segment::SEGMENT_HEADER_BYTES;
use super::segment::{Frame, SegmentFile, segment_name};
use crate::disk::{Disk, is_damage, try_again};
use crate::keys::Keys;

/// A segment as the scan found it.
pub(super) struct Scanned {
    pub file: SegmentFile,
    pub len: u64,
    /// Number of the first commit that it may hold, if anything in it says so.
    pub first_commit: Option<u64>,
    pub checkpoint: Option<Registers>,
    /// Where the scan of it began.
    pub start: u64,
    pub frames: Vec<ScannedFrame>,
    /// Behind the last frame that was taken.
    pub taken: u64,
    /// Where the frames begin that were taken, and of which nothing says that they are on the disk.
    pub unproven: Option<u64>,
    /// Highest commit number that a frame here names as durable.
    pub durable: u64,
}

/// A commit frame whose head, at least, is valid.
pub(super) struct ScannedFrame {
    /// Its data are not: it is missing, but which numbers its events had is known.
    pub is_damaged: bool,
    pub range: Range<u64>,
    pub commit: u64,
    pub head: CommitHead,
    pub positions: Vec<(Vec<u8>, Vec<u8>)>,
    /// It follows the valid frame (or segment header) directly before it.
    pub chained: bool,
    /// No valid frame is before it in the segment, and the checkpoint is damaged.
    pub behind_bad_start: bool,
}

/// `None`: the file system cannot open it any more. It is as if it were not there, and not touched.
pub(super) fn open(
    disk: &dyn Disk,
    dir: &Path,
    id: u64,
    journal: Option<u128>,
) -> io::Result<Option<SegmentFile>> {
    match SegmentFile::open_tolerant(disk, dir, id, journal.map(|journal| journal as u64)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if is_damage(&error) => {
            tracing::error!(dir = %dir.display(), segment = %segment_name(id), %error, "a segment cannot be opened");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// All valid frames of a segment from where the scan begins; `None` for a file of another journal.
pub(super) fn scan(
    disk: &dyn Disk,
    dir: &Path,
    id: u64,
    journal: u128,
    base: &Base,
    keys: &Keys,
) -> io::Result<Option<Scanned>> {
    let Some(file) = open(disk, dir, id, Some(journal))? else { return Ok(None) };
    let mut file = file.with_keys(keys);
    if file.header.is_ok() && !file.is_of(journal) {
        tracing::error!(dir = %dir.display(), segment = %segment_name(id), "a segment of another journal is ignored");
        return Ok(None);
    }
    let len = try_again(|| file.len())?;
    let from_middle = id == base.scan.segment && base.scan.offset > 0;
    let mut checkpoint = None;
    let (start, mut previous) = if from_middle {
        (base.scan.offset, Some(base.scan_crc))
    } else {
        checkpoint = file.checkpoint(len)?.map(|(registers, _)| registers);
        (SEGMENT_HEADER_BYTES as u64, file.header.as_ref().ok().map(|(_, crc)| *crc))
    };
    let first_commit = file.header.as_ref().ok().map(|(header, _)| header.first_commit);
    let mut scanned = Scanned {
        file,
        len,
        first_commit,
        checkpoint,
        start,
        frames: Vec::new(),
        taken: start,
        unproven: None,
        durable: 0,
    };
    let mut at = start;
    let mut seen = false;
    while at < len {
        let (frame, adjacent) = match scanned.file.frame(at, len, true)? {
            Some(frame) => (Some(frame), true),
            None => {
                if let Some(damaged) = scanned.file.frame(at, len, false)? {
                    scanned.add_damaged(&damaged);
                }
                (scanned.file.search(at + 8, len)?, false)
            }
        };
        let Some(frame) = frame else { break };
        let chained = adjacent && previous == Some(frame.header.previous_crc);
        let behind_bad_start = !seen && !from_middle && scanned.checkpoint.is_none();
        (at, previous, seen) = (frame.end(), Some(frame.crc), true);
        scanned.add(&frame, chained, behind_bad_start);
    }
    Ok(Some(scanned))
}

impl Scanned {
    fn add(&mut self, frame: &Frame, chained: bool, behind_bad_start: bool) {
        let (head, positions) = match frame.header.kind {
            Kind::Checkpoint => (CommitHead::default(), Vec::new()),
            Kind::Commit => {
                let head = CommitHead::decode(&frame.head);
                let lists = head
                    .as_ref()
                    .zip(frame.data.as_ref())
                    .and_then(|(head, data)| decode_lists(data.get(..head.lists_bytes as usize)?));
                // Valid CRCs over nonsense: written by a program with a fault. As good as damaged.
                let (Some(head), Some((positions, _))) = (head, lists) else { return };
                (head, positions)
            }
        };
        self.durable = self.durable.max(frame.header.durable);
        let range = frame.offset..frame.end();
        let commit = frame.header.commit;
        if frame.header.kind == Kind::Checkpoint {
            self.taken = self.taken.max(range.end);
            self.first_commit.get_or_insert(commit + 1);
            return;
        }
        self.first_commit.get_or_insert(commit);
        self.frames.push(ScannedFrame {
            is_damaged: false,
            range,
            commit,
            head,
            positions,
            chained,
            behind_bad_start,
        });
    }

    fn add_damaged(&mut self, frame: &Frame) {
        let head = CommitHead::decode(&frame.head).filter(|_| frame.header.kind == Kind::Commit);
        let Some(head) = head else { return };
        self.frames.push(ScannedFrame {
            is_damaged: true,
            range: frame.offset..frame.end(),
            commit: frame.header.commit,
            head,
            positions: Vec::new(),
            chained: false,
            behind_bad_start: false,
        });
    }

    /// The bytes in which something is missing before `until`: behind the last frame that was taken.
    pub fn gap(&self, until: u64) -> Range<u64> {
        self.taken..until.max(self.taken)
    }
}

/// Frames of a segment from this commit number on were written again to a later one.
pub(super) fn void_from(later: &[Scanned]) -> u64 {
    later.iter().filter_map(|segment| segment.first_commit).min().unwrap_or(u64::MAX)
}
