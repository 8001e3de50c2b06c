//! What plugins remembered, at the start: the newest file of the state, and the commits behind it.
//!
//! Constraints: what is read is bounded by the file and by the segments between two files. A damaged block costs its keys, a
//! damaged commit its own; both are named and counted, and never stop the start.

use std::io;
use std::path::Path;

use arrow_buffer::Buffer;

use super::config::OpenError;
use super::format::commit::{CommitHead, Location};
use super::format::frame::Kind;
use super::format::sealed::{Opener, Piece};
use super::format::segment::{HeaderFault, SEGMENT_HEADER_BYTES};
use super::format::state::{BLOCK_HEADER_BYTES, BlockHeader, STATE_HEADER_BYTES, StateHeader};
use super::format::wire::Fields;
use super::recovery::{NamedSegment, Recovered};
use super::saver::{StateFiles, UNFINISHED, state_files};
use super::segment::{Frame, SegmentFile};
use crate::disk::{Disk, DiskFile, is_damage, read_again, try_again};
use crate::keys::Keys;
use crate::limits;
use crate::state::decode_op;
use crate::view::{MemoryState, View};

/// The state and where it was found.
pub(super) struct Loaded {
    pub view: MemoryState,
    pub files: StateFiles,
    /// Blocks that could not be used; a file of which nothing can be used counts as one.
    pub damaged_blocks: u64,
}

/// Reads the state; unlinks files that are not needed.
pub(super) fn load(
    disk: &dyn Disk,
    dir: &Path,
    recovered: &mut Recovered,
    keys: &Keys,
) -> Result<Loaded, OpenError> {
    let mut view = View::default();
    let mut files = StateFiles::default();
    let mut damaged_blocks = 0;
    let names = disk.list(dir).map_err(OpenError::io(format!("listing {}", dir.display())))?;
    let Some(journal) = recovered.journal else {
        return Ok(Loaded { view: MemoryState::of(view), files, damaged_blocks });
    };
    let found = state_files(dir, &names);
    let mut scan = Location::default();
    let mut covered = 0;
    for (commit, path) in &found {
        let read = read_file(disk, path, journal, keys, &mut view);
        match read.map_err(OpenError::io(path.display().to_string()))? {
            Ok((header, damaged)) => {
                (scan, covered, files.newest) = (header.scan, header.commit, Some(*commit));
                damaged_blocks += damaged;
                break;
            }
            Err(HeaderFault::Newer(version)) => {
                return Err(OpenError::NewerVersion { file: path.clone(), version });
            }
            Err(HeaderFault::Key(error)) => {
                return Err(OpenError::Key { what: path.display().to_string(), error });
            }
            Err(HeaderFault::Invalid) => {
                damaged_blocks += 1;
                tracing::error!(file = %path.display(),
                    "the plugins' state in this file cannot be used: what they remembered is lost but for the newest commits");
            }
        }
    }
    if recovered.registers.state_generation > covered {
        let first = recovered.segments.iter().map(|segment| segment.info.id).find(|id| *id >= scan.segment);
        files.uncovered = first;
        recovered.report_missing(dir, Some(covered));
        files.since_bytes = replay(disk, dir, recovered, keys, scan, covered, &mut view)?;
    }
    let old = found.iter().filter(|(commit, _)| files.newest.is_some_and(|newest| *commit < newest));
    let unfinished = names.iter().any(|name| name == UNFINISHED).then(|| dir.join(UNFINISHED));
    for path in old.map(|(_, path)| path.clone()).chain(unfinished) {
        unlink(disk, &path);
    }
    Ok(Loaded { view: MemoryState::of(view), files, damaged_blocks })
}

/// The commit of the newest file: all up to it were durable when the file got its name.
pub(super) fn durable_commit(disk: &dyn Disk, dir: &Path, names: &[String], journal: u128) -> u64 {
    let header = |path: &Path| {
        let mut bytes = [0; STATE_HEADER_BYTES];
        disk.open(path, false).and_then(|file| read_again(file.as_ref(), 0, &mut bytes)).ok()?;
        StateHeader::decode(&bytes).ok().filter(|header| header.journal == journal)
    };
    let found = state_files(dir, names);
    found.iter().find_map(|(_, path)| header(path)).map(|header| header.commit).unwrap_or_default()
}

fn unlink(disk: &dyn Disk, path: &Path) {
    if let Err(error) = disk.unlink(path) {
        tracing::warn!(path = %path.display(), %error, "a file of the plugins' state that is not needed stays behind");
    }
}

/// The header, and how many blocks are damaged.
fn read_file(
    disk: &dyn Disk,
    path: &Path,
    journal: u128,
    keys: &Keys,
    view: &mut View,
) -> io::Result<Result<(StateHeader, u64), HeaderFault>> {
    let file = try_again(|| disk.open(path, false))?;
    let mut bytes = [0; STATE_HEADER_BYTES];
    read(file.as_ref(), path, 0, &mut bytes)?;
    let header = match StateHeader::decode(&bytes) {
        Ok(header) if header.journal != journal => return Ok(Err(HeaderFault::Invalid)),
        Ok(header) => header,
        Err(fault) => return Ok(Err(fault)),
    };
    let len = file.len()?;
    let mut opener = header.is_sealed.then(|| Opener::new(keys));
    let (mut at, mut blocks, mut damaged) = (STATE_HEADER_BYTES as u64, 0_u64, 0_u64);
    // How many blocks there were, as the last one says.
    let mut told = None;
    while at < len && told.is_none() {
        let Some((block, place)) = next_block(file.as_ref(), path, at, len, header.commit)? else { break };
        damaged += u64::from(place > at);
        at = place + block.block_bytes();
        let payload = read_payload(file.as_ref(), path, place, &block, &mut opener, journal)?;
        let is_used = match payload {
            Some(payload) if block.is_end => {
                told = Fields::new(&payload).u64();
                told.is_some()
            }
            Some(payload) => {
                let is_used = take(&payload, view).is_some();
                blocks += u64::from(is_used);
                is_used
            }
            None => false,
        };
        damaged += u64::from(!is_used);
    }
    // Without the last block it is that one, at least.
    let damaged = told.map_or(damaged.max(1), |told| told.abs_diff(blocks));
    if damaged > 0 {
        tracing::error!(file = %path.display(), blocks, damaged,
            "a file of the plugins' state is damaged: the keys in its damaged blocks are forgotten");
    }
    Ok(Ok((header, damaged)))
}

/// What a block holds; `None` if it is damaged.
fn read_payload(
    file: &dyn DiskFile,
    path: &Path,
    place: u64,
    block: &BlockHeader,
    opener: &mut Option<Opener>,
    journal: u128,
) -> io::Result<Option<Buffer>> {
    let mut payload = vec![0; block.payload_bytes as usize];
    let read = read(file, path, place + BLOCK_HEADER_BYTES as u64, &mut payload)?;
    if read < payload.len() || crc32c::crc32c(&payload) != block.payload_crc {
        return Ok(None);
    }
    match opener {
        Some(opener) => opener.open(Piece::State, journal as u64, &payload).map_err(io::Error::other),
        None => Ok(Some(Buffer::from_vec(payload))),
    }
}

/// What the disk cannot read is zeros: a damaged block.
fn read(file: &dyn DiskFile, path: &Path, offset: u64, into: &mut [u8]) -> io::Result<usize> {
    match read_again(file, offset, into) {
        Err(error) if is_damage(&error) => {
            tracing::error!(file = %path.display(), offset, %error, "a part of the plugins' state cannot be read");
            into.fill(0);
            Ok(into.len())
        }
        other => other,
    }
}

/// The block at `from`, or the next one behind damage.
fn next_block(
    file: &dyn DiskFile,
    path: &Path,
    from: u64,
    len: u64,
    commit: u64,
) -> io::Result<Option<(BlockHeader, u64)>> {
    let mut bytes = [0; BLOCK_HEADER_BYTES];
    read(file, path, from, &mut bytes)?;
    if let Some(block) = BlockHeader::decode(&bytes, commit) {
        return Ok(Some((block, from)));
    }
    let mut at = from;
    let mut chunk = vec![0; limits::READ_AHEAD_BYTES];
    while at < len {
        let read = read(file, path, at, &mut chunk)?;
        let seen = chunk.get(..read).unwrap_or_default();
        for (offset, candidate) in seen.windows(BLOCK_HEADER_BYTES).enumerate().step_by(8) {
            if let Some(block) = BlockHeader::decode(candidate, commit) {
                return Ok(Some((block, at + offset as u64)));
            }
        }
        // The last candidate of this chunk may reach into the next.
        let step = read.saturating_sub(BLOCK_HEADER_BYTES) / 8 * 8 + 8;
        at += step as u64;
    }
    Ok(None)
}

/// Takes a block's writes over; `None` if they are none.
fn take(payload: &[u8], view: &mut View) -> Option<()> {
    let mut fields = Fields::new(payload);
    let plugin = fields.text()?;
    while !fields.is_empty() {
        view.apply_op(plugin, decode_op(&mut fields)?);
    }
    Some(())
}

/// Takes over what commits behind `covered` wrote; returns the bytes that were read.
fn replay(
    disk: &dyn Disk,
    dir: &Path,
    recovered: &Recovered,
    keys: &Keys,
    scan: Location,
    covered: u64,
    view: &mut View,
) -> Result<u64, OpenError> {
    let (mut last, mut bytes) = (covered, 0);
    let journal = recovered.journal.unwrap_or_default();
    let segments = &recovered.segments;
    for (index, segment) in segments.iter().enumerate().filter(|(_, segment)| segment.info.id >= scan.segment)
    {
        let void_from = void_from(segments.get(index + 1..).unwrap_or_default());
        let (id, end) = (segment.info.id, segment.info.end);
        let io = || OpenError::of_segment(dir, id);
        let mut file = match SegmentFile::open_tolerant(disk, dir, id, Some(journal as u64)) {
            // Recovery or a reader counts it.
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_damage(&error) => continue,
            other => other.map_err(io())?.with_keys(keys),
        };
        let mut at = if id == scan.segment { scan.offset } else { SEGMENT_HEADER_BYTES as u64 };
        bytes += end.saturating_sub(at);
        while at < end {
            let frame = match file.frame(at, end, true).map_err(io())? {
                Some(frame) => frame,
                // Damage: recovery or a reader counts it.
                None => match file.search(at + 8, end).map_err(io())? {
                    Some(frame) => frame,
                    None => break,
                },
            };
            at = frame.end();
            let commit = frame.header.commit;
            if frame.header.kind == Kind::Commit && commit > last && commit < void_from {
                last = commit;
                take_frame(&frame, view);
            }
        }
    }
    Ok(bytes)
}

fn void_from(later: &[NamedSegment]) -> u64 {
    later.iter().map(|segment| segment.info.first_commit).min().unwrap_or(u64::MAX)
}

fn take_frame(frame: &Frame, view: &mut View) -> Option<()> {
    let head = CommitHead::decode(&frame.head).filter(|head| head.has_state)?;
    let lists = frame.data.as_ref()?.get(..head.lists_bytes as usize)?;
    let mut fields = Fields::new(lists);
    for _ in 0..fields.count(8)? {
        fields.blob()?;
        fields.blob()?;
    }
    for _ in 0..fields.count(21)? {
        let plugin = fields.text()?;
        view.apply_op(plugin, decode_op(&mut fields)?);
    }
    Some(())
}
