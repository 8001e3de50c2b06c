//! What plugins remembered, at the start: the newest file of the state, and the commits behind it.
//!
//! Constraints: what is read is bounded by the file and by the segments between two files. A damaged block costs its keys, a
//! damaged commit its own; both are named and counted, and never stop the start.

use std::io;
use std::path::Path;

use super::config::OpenError;
use super::format::commit::{CommitHead, Location};
use super::format::frame::Kind;
use super::format::segment::{HeaderFault, SEGMENT_HEADER_BYTES};
use super::format::state::{BLOCK_HEADER_BYTES, BlockHeader, STATE_HEADER_BYTES, StateHeader};
use super::format::wire::Fields;
use super::recovery::{NamedSegment, Recovered};
use super::saver::{StateFiles, UNFINISHED, state_files};
use super::segment::{Frame, SegmentFile, segment_name};
use crate::disk::{Disk, DiskFile};
use crate::limits;
use crate::state::decode_op;
use crate::view::{MemoryState, View};

/// The state and where it was found.
pub(super) struct Loaded {
    pub view: MemoryState,
    pub files: StateFiles,
}

/// Reads the state; unlinks files that are not needed.
pub(super) fn load(disk: &dyn Disk, dir: &Path, recovered: &Recovered) -> Result<Loaded, OpenError> {
    let mut view = View::default();
    let mut files = StateFiles::default();
    let names = disk.list(dir).map_err(OpenError::io(format!("listing {}", dir.display())))?;
    let Some(journal) = recovered.journal else { return Ok(Loaded { view: MemoryState::of(view), files }) };
    let found = state_files(dir, &names);
    let mut scan = Location::default();
    let mut covered = 0;
    for (commit, path) in &found {
        let read = read_file(disk, path, journal, &mut view);
        match read.map_err(OpenError::io(path.display().to_string()))? {
            Ok(header) => {
                (scan, covered, files.newest) = (header.scan, header.commit, Some(*commit));
                break;
            }
            Err(HeaderFault::Newer(version)) => {
                return Err(OpenError::NewerVersion { file: path.display().to_string(), version });
            }
            Err(HeaderFault::Invalid) => tracing::error!(file = %path.display(),
                "the plugins' state in this file cannot be used: what they remembered is lost but for the newest commits"),
        }
    }
    if recovered.registers.state_generation > covered {
        let first = recovered.segments.iter().map(|segment| segment.info.id).find(|id| *id >= scan.segment);
        files.uncovered = first;
        files.since_bytes = replay(disk, dir, recovered, journal, scan, covered, &mut view)?;
    }
    let old = found.iter().filter(|(commit, _)| files.newest.is_some_and(|newest| *commit < newest));
    let unfinished = names.iter().any(|name| name == UNFINISHED).then(|| dir.join(UNFINISHED));
    for path in old.map(|(_, path)| path.clone()).chain(unfinished) {
        unlink(disk, &path);
    }
    Ok(Loaded { view: MemoryState::of(view), files })
}

fn unlink(disk: &dyn Disk, path: &Path) {
    if let Err(error) = disk.unlink(path) {
        tracing::warn!(path = %path.display(), %error, "a file of the plugins' state that is not needed stays behind");
    }
}

fn read_file(
    disk: &dyn Disk,
    path: &Path,
    journal: u128,
    view: &mut View,
) -> io::Result<Result<StateHeader, HeaderFault>> {
    let file = disk.open(path, false)?;
    let mut bytes = [0; STATE_HEADER_BYTES];
    file.read_at(0, &mut bytes)?;
    let header = match StateHeader::decode(&bytes) {
        Ok(header) if header.journal != journal => return Ok(Err(HeaderFault::Invalid)),
        Ok(header) => header,
        Err(fault) => return Ok(Err(fault)),
    };
    let len = file.len()?;
    let (mut at, mut blocks, mut is_whole) = (STATE_HEADER_BYTES as u64, 0_u64, false);
    while at < len {
        let Some((block, place)) = next_block(file.as_ref(), at, len, header.commit)? else { break };
        at = place + block.block_bytes();
        let mut payload = vec![0; block.payload_bytes as usize];
        let read = file.read_at(place + BLOCK_HEADER_BYTES as u64, &mut payload)?;
        if read < payload.len() || crc32c::crc32c(&payload) != block.payload_crc {
            continue;
        }
        if block.is_end {
            is_whole = Fields::new(&payload).u64() == Some(blocks);
            break;
        }
        blocks += u64::from(take(&payload, view).is_some());
    }
    if !is_whole {
        tracing::error!(file = %path.display(), blocks,
            "a file of the plugins' state is damaged: the keys in its damaged blocks are forgotten");
    }
    Ok(Ok(header))
}

/// The block at `from`, or the next one behind damage.
fn next_block(
    file: &dyn DiskFile,
    from: u64,
    len: u64,
    commit: u64,
) -> io::Result<Option<(BlockHeader, u64)>> {
    let mut bytes = [0; BLOCK_HEADER_BYTES];
    file.read_at(from, &mut bytes)?;
    if let Some(block) = BlockHeader::decode(&bytes, commit) {
        return Ok(Some((block, from)));
    }
    let mut at = from;
    let mut chunk = vec![0; limits::READ_AHEAD_BYTES];
    while at < len {
        let read = file.read_at(at, &mut chunk)?;
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
    journal: u128,
    scan: Location,
    covered: u64,
    view: &mut View,
) -> Result<u64, OpenError> {
    let (mut last, mut bytes) = (covered, 0);
    let segments = &recovered.segments;
    for (index, segment) in segments.iter().enumerate().filter(|(_, segment)| segment.info.id >= scan.segment)
    {
        let void_from = void_from(segments.get(index + 1..).unwrap_or_default());
        let (id, end) = (segment.info.id, segment.info.end);
        let io = || OpenError::io(segment_name(id));
        let mut file = SegmentFile::open(disk, dir, id, Some(journal as u64)).map_err(io())?;
        file.tolerate_bad_sectors();
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
