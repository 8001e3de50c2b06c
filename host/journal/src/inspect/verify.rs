//! Reads all of a journal and says what is damaged: every segment, frame, batch, snapshot and block of the plugins' state.
//!
//! What counts as damage: bytes that are no valid frame and have valid ones behind them; a frame whose batches cannot be decoded, or that
//! does not follow the one before; commit numbers that are missing between the first and the last; a segment without a valid header
//! or checkpoint, or of another journal; both snapshots; a block of a state file. Not damage: what is torn at the very end (the next start
//! cuts it off), one bad snapshot (the other one counts), frames that a later segment made void, and ranges that an earlier start
//! copied aside, which are listed as what they are.
//!
//! Of a live journal, segments may go while it reads: those were done with, and are the oldest ones.

use std::collections::BTreeMap;
use std::path::Path;

use super::{InspectError, Inspector, failed};
use crate::disk::DiskFile;
use crate::file::format::commit::{CommitHead, decode_lists};
use crate::file::format::frame::Kind;
use crate::file::format::segment::SEGMENT_HEADER_BYTES;
use crate::file::format::state::{BLOCK_HEADER_BYTES, BlockHeader, STATE_HEADER_BYTES, StateHeader};
use crate::file::{Frame, state_file_commit};
use crate::limits;

/// What a journal's files hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Segments read.
    pub segments: u64,
    /// Commits that count.
    pub commits: u64,
    /// The first of them, and the last.
    pub range: Option<(u64, u64)>,
    /// Events in their puts, each once whatever the number of channels.
    pub events: u64,
    /// Bytes of valid frames.
    pub bytes: u64,
    /// Frames that a later segment made void.
    pub void_frames: u64,
    /// Files of the plugins' state, and the blocks in them.
    pub state_files: u64,
    /// Their blocks.
    pub state_blocks: u64,
    /// What is damaged.
    pub damage: Vec<Damage>,
    /// What is worth knowing and costs nothing.
    pub notes: Vec<String>,
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file; of missing commits the one that they should be before.
    pub file: String,
    /// Where in it.
    pub offset: Option<u64>,
    /// How many bytes.
    pub bytes: Option<u64>,
    /// What is wrong.
    pub reason: String,
}

impl Verdict {
    /// Nothing is damaged.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }

    fn add(&mut self, file: &str, offset: Option<u64>, bytes: Option<u64>, reason: impl Into<String>) {
        self.damage.push(Damage { file: file.to_owned(), offset, bytes, reason: reason.into() });
    }
}

/// What is known from the frames before.
#[derive(Default)]
struct Before {
    /// The commit before.
    commit: Option<u64>,
    /// By channel name: the number of the next event.
    heads: BTreeMap<String, u64>,
}

/// Reads everything.
pub fn verify(inspector: &Inspector) -> Result<Verdict, InspectError> {
    let mut verdict = Verdict::default();
    let mut before = Before::default();
    let mut journal = None;
    let views = inspector.segments()?;
    for (at, view) in views.iter().enumerate() {
        let later =
            views.iter().skip(at + 1).filter_map(|view| view.header.map(|header| header.first_commit));
        let void_from = later.min().unwrap_or(u64::MAX);
        let Some((mut file, view)) = inspector.open_segment(view.id)? else { continue };
        let name = view.name.clone();
        verdict.segments += 1;
        match view.header {
            None => verdict.add(&name, Some(0), Some(SEGMENT_HEADER_BYTES as u64), "the header is not valid"),
            Some(header) if journal.is_some_and(|journal| journal != header.journal) => {
                verdict.add(&name, Some(0), None, "the segment is of another journal");
                continue;
            }
            Some(header) => journal = Some(header.journal),
        }
        if view.checkpoint.is_none() {
            verdict.add(&name, Some(SEGMENT_HEADER_BYTES as u64), None, "the checkpoint is not valid");
        }
        let names: Vec<String> =
            view.checkpoint.iter().flat_map(|c| &c.channels).map(|channel| channel.name.clone()).collect();
        let mut previous = None;
        let mut offset = SEGMENT_HEADER_BYTES as u64;
        while let Some((frame, damaged)) = inspector.next_frame(&mut file, offset, view.file_bytes)? {
            if let Some(bytes) = damaged {
                verdict.add(
                    &name,
                    Some(offset),
                    Some(bytes),
                    "bytes that are no valid frame, before valid ones",
                );
                previous = None;
            }
            if previous.is_some_and(|crc| crc != frame.header.previous_crc) {
                verdict.add(&name, Some(frame.offset), None, "the frame does not follow the one before it");
            }
            previous = Some(frame.crc);
            offset = frame.end();
            verdict.bytes += frame.header.frame_bytes();
            if frame.header.kind != Kind::Commit {
                continue;
            }
            if frame.header.commit >= void_from {
                verdict.void_frames += 1;
                continue;
            }
            read_commit(&name, &names, &frame, &mut before, &mut verdict);
        }
    }
    read_snapshots(inspector, &mut verdict);
    read_state(inspector, &mut verdict)?;
    for (file, bytes) in inspector.damage()? {
        let note = format!("{file}: {bytes} damaged bytes that an earlier start found and copied aside");
        verdict.notes.push(note);
    }
    Ok(verdict)
}

fn read_commit(segment: &str, names: &[String], frame: &Frame, before: &mut Before, verdict: &mut Verdict) {
    let (number, offset) = (frame.header.commit, frame.offset);
    if let Some(last) = before.commit.filter(|last| number > last + 1) {
        let (from, to) = (last + 1, number - 1);
        verdict.add(segment, Some(offset), None, format!("the commits {from} to {to} before it are missing"));
        before.heads.clear();
    }
    if before.commit.is_some_and(|last| number <= last) {
        verdict.add(segment, Some(offset), None, format!("the commit {number} comes after a later one"));
    }
    before.commit = Some(number);
    verdict.commits += 1;
    verdict.range = Some((verdict.range.map_or(number, |(first, _)| first), number));
    let Some(head) = CommitHead::decode(&frame.head) else {
        verdict.add(segment, Some(offset), None, format!("the head of the commit {number} is not readable"));
        return;
    };
    let lists = frame.data.as_ref().and_then(|data| data.get(..head.lists_bytes as usize));
    if lists.and_then(decode_lists).is_none() {
        let reason = format!("the positions and states of the commit {number} are not readable");
        verdict.add(segment, Some(offset), None, reason);
    }
    for put in &head.puts {
        verdict.events += u64::from(put.rows);
        // Without data: nobody was to read them.
        let rows = if put.data_bytes == 0 {
            Some(put.rows as usize)
        } else {
            frame.batch(put).map(|batch| batch.rows())
        };
        if rows != Some(put.rows as usize) {
            let reason = format!("{} events of the commit {number} are not readable", put.rows);
            verdict.add(segment, Some(offset + put.data_offset), Some(put.data_bytes), reason);
        }
        for part in &put.channels {
            let Some(name) = names.get(part.channel as usize) else { continue };
            let next = part.first + u64::from(put.rows);
            let head = before.heads.insert(name.clone(), next);
            if head.is_some_and(|head| head != part.first) {
                let (first, head) = (part.first, head.unwrap_or_default());
                let reason = format!("the channel {name} goes on at event {first}, after {head}");
                verdict.add(segment, Some(offset), None, reason);
            }
        }
    }
}

fn read_snapshots(inspector: &Inspector, verdict: &mut Verdict) {
    let slots = inspector.snapshots();
    let is_any_valid = slots.iter().any(|(_, slot)| slot.is_ok());
    let is_fresh =
        slots.iter().all(|(_, slot)| slot.as_ref().is_err_and(|reason| reason == "not written yet"));
    for (name, slot) in slots {
        match slot {
            Ok(_) => {}
            Err(reason) if is_any_valid || is_fresh => verdict.notes.push(format!("{name}: {reason}")),
            Err(reason) => verdict.add(name, None, None, format!("no snapshot is valid; this one: {reason}")),
        }
    }
}

fn read_state(inspector: &Inspector, verdict: &mut Verdict) -> Result<(), InspectError> {
    let names = inspector.disk.list(&inspector.dir).map_err(failed(inspector.dir.display().to_string()))?;
    for name in names.into_iter().filter(|name| state_file_commit(name).is_some()) {
        let file = match inspector.disk.open(&inspector.dir.join(Path::new(&name)), false) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(failed(name.clone()))?,
        };
        verdict.state_files += 1;
        read_state_file(&name, file.as_ref(), verdict).map_err(failed(name.clone()))?;
    }
    Ok(())
}

fn read_state_file(name: &str, file: &dyn DiskFile, verdict: &mut Verdict) -> std::io::Result<()> {
    let len = file.len()?;
    let mut bytes = [0; STATE_HEADER_BYTES];
    file.read_at(0, &mut bytes)?;
    let Ok(header) = StateHeader::decode(&bytes) else {
        verdict.add(name, Some(0), Some(STATE_HEADER_BYTES as u64), "the header is not valid");
        return Ok(());
    };
    let mut at = STATE_HEADER_BYTES as u64;
    while at < len {
        let mut bytes = [0; BLOCK_HEADER_BYTES];
        file.read_at(at, &mut bytes)?;
        let Some(block) = BlockHeader::decode(&bytes, header.commit) else {
            verdict.add(
                name,
                Some(at),
                Some(len - at),
                "a block's header is not valid: what is behind it is not read",
            );
            return Ok(());
        };
        verdict.state_blocks += 1;
        let bytes = u64::from(block.payload_bytes).min(limits::RECORD_BYTES_MAX);
        let mut payload = vec![0; usize::try_from(bytes).unwrap_or_default()];
        let read = file.read_at(at + BLOCK_HEADER_BYTES as u64, &mut payload)?;
        if read < payload.len() || crc32c::crc32c(&payload) != block.payload_crc {
            verdict.add(
                name,
                Some(at),
                Some(block.block_bytes()),
                "a block of the plugins' state is damaged",
            );
        }
        if block.is_end {
            return Ok(());
        }
        at += block.block_bytes();
    }
    verdict.add(name, Some(at), None, "the file ends before its last block");
    Ok(())
}
