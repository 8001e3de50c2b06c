//! What a journal knows when it opens.
//!
//! From the newest valid snapshot (or, when both slots are damaged, the newest valid checkpoint) it scans
//! forward. Frames that follow each other unbroken are taken. At a break it searches on: D is the highest
//! commit number that anything valid names as durable. Missing commits up to D are damage: they are
//! counted, named, their bytes copied aside, and what comes behind is kept. Everything behind the
//! last unbroken commit above D is a torn tail, which nobody was told of: it is cut.
//!
//! Constraints: the scan is bounded by the bytes between two snapshots; nothing is changed on disk before
//! all of it was read; commits after a recovery go to a new segment.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::Path;

use super::config::OpenError;
use super::damage;
use super::format::commit::{CommitHead, Location, decode_lists};
use super::format::frame::Kind;
use super::format::registers::Registers;
use super::format::segment::{HeaderFault, SEGMENT_HEADER_BYTES};
use super::format::snapshot::{SLOT_NAMES, SegmentInfo, Snapshot};
use super::segment::{Frame, SegmentFile, segment_id, segment_name};
use super::snapshots::{Slot, Snapshots};
use crate::disk::Disk;
use crate::limits;

/// A recovered journal, before the plan's channels are laid over it.
pub(super) struct Recovered {
    /// `None`: there is no journal yet.
    pub journal: Option<u128>,
    pub registers: Registers,
    pub segments: Vec<NamedSegment>,
    pub next_segment: u64,
    pub next_commit: u64,
    pub durable: u64,
    pub snapshots: Snapshots,
    pub damaged_commits: u64,
    pub damage_seen: BTreeSet<Location>,
}

/// A segment, with its channels by name: indexes are those of its own time.
#[derive(Debug, Clone)]
pub(super) struct NamedSegment {
    pub info: SegmentInfo,
    pub heads: BTreeMap<String, (u64, u64)>,
}

/// Where the scan begins and what is known there.
struct Base {
    registers: Registers,
    scan: Location,
    scan_crc: u32,
    durable: u64,
    next_segment: u64,
    segments: Vec<NamedSegment>,
}

/// A segment as the scan found it.
struct Scanned {
    file: SegmentFile,
    len: u64,
    checkpoint: Option<Registers>,
    /// Where the scan of it began.
    start: u64,
    frames: Vec<ScannedFrame>,
    /// Behind the last frame that was taken.
    taken: u64,
    /// Highest commit number that a frame here names as durable.
    durable: u64,
}

/// A valid commit frame.
struct ScannedFrame {
    range: Range<u64>,
    commit: u64,
    head: CommitHead,
    positions: Vec<(Vec<u8>, Vec<u8>)>,
    /// It follows the valid frame (or segment header) directly before it.
    chained: bool,
    /// No valid frame is before it in the segment, and the checkpoint is damaged.
    behind_bad_start: bool,
}

/// Reads a journal's directory and mends it.
pub(super) fn recover(disk: &dyn Disk, dir: &Path) -> Result<Recovered, OpenError> {
    let names = disk.list(dir).map_err(OpenError::io(format!("listing {}", dir.display())))?;
    let ids: BTreeSet<u64> = names.iter().filter_map(|name| segment_id(name)).collect();
    let slots = read_slots(disk, dir, &names)?;
    let newest = slots.iter().flatten().max_by_key(|snapshot| snapshot.generation);
    let journal = match newest {
        Some(snapshot) => Some(snapshot.journal),
        None => journal_of_segments(disk, dir, &ids)?,
    };
    let Some(journal) = journal else { return no_journal(dir, &names, &ids) };
    let base = match newest {
        Some(snapshot) => base_of_snapshot(snapshot, &ids),
        None => base_of_checkpoints(disk, dir, &ids, journal)?,
    };
    let mut scanned = Vec::new();
    for id in ids.range(base.scan.segment..) {
        scanned.extend(scan(disk, dir, *id, journal, &base).map_err(OpenError::io(segment_name(*id)))?);
    }
    let mut recovered = Recovered {
        journal: Some(journal),
        registers: base.registers,
        segments: base.segments,
        next_segment: base.next_segment.max(ids.last().map(|last| last + 1).unwrap_or_default()),
        next_commit: 0,
        durable: base.durable,
        snapshots: Snapshots { slots: slots.clone().map(|slot| slot.as_ref().map(slot_of)) },
        damaged_commits: 0,
        damage_seen: BTreeSet::new(),
    };
    recovered.take(disk, dir, &mut scanned);
    if newest.is_some() {
        unlink_leftovers(disk, dir, &ids, base.scan.segment, &recovered.segments);
    }
    recovered
        .cut(disk, dir, scanned)
        .map_err(OpenError::io(format!("cutting a torn tail in {}", dir.display())))?;
    Ok(recovered)
}

fn slot_of(snapshot: &Snapshot) -> Slot {
    Slot { generation: snapshot.generation, scan_segment: snapshot.scan.segment }
}

fn no_journal(dir: &Path, names: &[String], ids: &BTreeSet<u64>) -> Result<Recovered, OpenError> {
    // A slot without content is what a crash leaves of a journal that was being made.
    let ours = |name: &String| {
        [super::LOCK_NAME, super::RESERVE_NAME, super::saver::UNFINISHED, "lost+found"]
            .contains(&name.as_str())
            || SLOT_NAMES.contains(&name.as_str())
    };
    let foreign = names.iter().find(|name| !ours(name));
    if let Some(name) = foreign {
        let reason = if ids.is_empty() {
            format!("it holds {name}, and no journal")
        } else {
            "none of its segments and snapshots is valid".to_string()
        };
        return Err(OpenError::NotAJournal { dir: dir.to_path_buf(), reason });
    }
    Ok(Recovered {
        journal: None,
        registers: Registers::default(),
        segments: Vec::new(),
        next_segment: 1,
        next_commit: 1,
        durable: 0,
        snapshots: Snapshots::default(),
        damaged_commits: 0,
        damage_seen: BTreeSet::new(),
    })
}

fn read_slots(disk: &dyn Disk, dir: &Path, names: &[String]) -> Result<[Option<Snapshot>; 2], OpenError> {
    let mut slots = [None, None];
    for (slot, name) in slots.iter_mut().zip(SLOT_NAMES) {
        if !names.iter().any(|other| other == name) {
            continue;
        }
        let read = || {
            let file = disk.open(&dir.join(name), false)?;
            let bytes = file.len()?.min(limits::RECORD_BYTES_MAX);
            let mut bytes = vec![0; usize::try_from(bytes).unwrap_or_default()];
            file.read_at(0, &mut bytes)?;
            io::Result::Ok(bytes)
        };
        *slot = match read().map(|bytes| Snapshot::decode(&bytes)) {
            Ok(Ok(snapshot)) => Some(snapshot),
            Ok(Err(HeaderFault::Newer(version))) => {
                return Err(OpenError::NewerVersion { file: name.to_string(), version });
            }
            Ok(Err(HeaderFault::Invalid)) => None,
            Err(error) => {
                tracing::error!(dir = %dir.display(), slot = name, %error, "a snapshot cannot be read");
                None
            }
        };
    }
    Ok(slots)
}

fn journal_of_segments(disk: &dyn Disk, dir: &Path, ids: &BTreeSet<u64>) -> Result<Option<u128>, OpenError> {
    for id in ids.iter().rev() {
        let file = SegmentFile::open(disk, dir, *id, None).map_err(OpenError::io(segment_name(*id)))?;
        match file.header {
            Ok((header, _)) => return Ok(Some(header.journal)),
            Err(HeaderFault::Newer(version)) => {
                return Err(OpenError::NewerVersion { file: segment_name(*id), version });
            }
            Err(HeaderFault::Invalid) => {}
        }
    }
    Ok(None)
}

fn heads_by_name(registers: &Registers, heads: &[(u64, u64)]) -> BTreeMap<String, (u64, u64)> {
    registers.channels.iter().map(|channel| channel.name.clone()).zip(heads.iter().copied()).collect()
}

fn heads_of(registers: &Registers) -> Vec<(u64, u64)> {
    registers.channels.iter().map(|channel| (channel.head, channel.head_bytes)).collect()
}

fn base_of_snapshot(snapshot: &Snapshot, ids: &BTreeSet<u64>) -> Base {
    let here = snapshot.segments.iter().filter(|segment| ids.contains(&segment.id));
    let named = |info: &SegmentInfo| NamedSegment {
        info: info.clone(),
        heads: heads_by_name(&snapshot.registers, &info.heads),
    };
    Base {
        registers: snapshot.registers.clone(),
        scan: snapshot.scan,
        scan_crc: snapshot.scan_crc,
        durable: snapshot.durable,
        next_segment: snapshot.next_segment,
        segments: here.map(named).collect(),
    }
}

/// Without snapshots: from the newest segment whose checkpoint is valid.
fn base_of_checkpoints(
    disk: &dyn Disk,
    dir: &Path,
    ids: &BTreeSet<u64>,
    journal: u128,
) -> Result<Base, OpenError> {
    tracing::error!(dir = %dir.display(), "no snapshot is valid: the journal's state is taken from its segments");
    let mut base = Base {
        registers: Registers::default(),
        scan: Location { segment: ids.first().copied().unwrap_or(1), offset: 0 },
        scan_crc: 0,
        durable: 0,
        next_segment: 1,
        segments: Vec::new(),
    };
    let mut heads = BTreeMap::new();
    for id in ids {
        let io = || OpenError::io(segment_name(*id));
        let mut file = SegmentFile::open(disk, dir, *id, Some(journal as u64)).map_err(io())?;
        let len = file.len().map_err(io())?;
        let Ok((header, _)) = file.header else { continue };
        if header.journal != journal {
            continue;
        }
        let mut info = SegmentInfo {
            id: *id,
            first_commit: header.first_commit,
            created_ns: header.created_ns,
            end: len,
            heads: Vec::new(),
        };
        if let Some((registers, frame)) = file.checkpoint(len).map_err(io())? {
            info.heads = heads_of(&registers);
            heads = heads_by_name(&registers, &info.heads);
            base.durable = base.durable.max(frame.header.durable);
            base.registers = registers;
            base.scan = Location { segment: *id, offset: 0 };
        }
        base.segments.push(NamedSegment { info, heads: heads.clone() });
    }
    Ok(base)
}

/// All valid frames of a segment from where the scan begins; `None` for a file of another journal.
fn scan(disk: &dyn Disk, dir: &Path, id: u64, journal: u128, base: &Base) -> io::Result<Option<Scanned>> {
    let mut file = SegmentFile::open(disk, dir, id, Some(journal as u64))?;
    file.tolerate_bad_sectors();
    if file.header.is_ok() && !file.is_of(journal) {
        tracing::error!(dir = %dir.display(), segment = %segment_name(id), "a segment of another journal is ignored");
        return Ok(None);
    }
    let len = file.len()?;
    let from_middle = id == base.scan.segment && base.scan.offset > 0;
    let mut checkpoint = None;
    let (start, mut previous) = if from_middle {
        (base.scan.offset, Some(base.scan_crc))
    } else {
        checkpoint = file.checkpoint(len)?.map(|(registers, _)| registers);
        (SEGMENT_HEADER_BYTES as u64, file.header.as_ref().ok().map(|(_, crc)| *crc))
    };
    let mut scanned = Scanned { file, len, checkpoint, start, frames: Vec::new(), taken: start, durable: 0 };
    let mut at = start;
    let mut seen = false;
    while at < len {
        let (frame, adjacent) = match scanned.file.frame(at, len, true)? {
            Some(frame) => (Some(frame), true),
            None => (scanned.file.search(at + 8, len)?, false),
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
        if frame.header.kind == Kind::Checkpoint {
            self.taken = self.taken.max(range.end);
            return;
        }
        let commit = frame.header.commit;
        self.frames.push(ScannedFrame { range, commit, head, positions, chained, behind_bad_start });
    }

    /// The bytes in which something is missing before `until`: behind the last frame that was taken.
    fn gap(&self, until: u64) -> Range<u64> {
        self.taken..until.max(self.taken)
    }
}

impl Recovered {
    /// Applies what was found, in order, and decides for every break whether it is damage or the end.
    fn take(&mut self, disk: &dyn Disk, dir: &Path, scanned: &mut [Scanned]) {
        let durable = scanned.iter().map(|segment| segment.durable).max().unwrap_or_default();
        let durable = durable.max(self.durable);
        let mut last = self.registers.last_commit;
        let mut heads = self.segments.last().map(|segment| segment.heads.clone()).unwrap_or_default();
        let mut before: Option<(usize, Range<u64>)> = None;
        for index in 0..scanned.len() {
            let void_from = void_from(scanned.get(index + 1..).unwrap_or_default());
            let Some(segment) = scanned.get_mut(index) else { continue };
            let mut missing = None;
            if let Some(checkpoint) = segment.checkpoint.take()
                && checkpoint.last_commit >= last
            {
                missing = Some(last + 1..checkpoint.last_commit + 1).filter(|missing| !missing.is_empty());
                last = checkpoint.last_commit;
                self.registers = checkpoint;
            }
            if let (Some(missing), Some((index, gap))) = (missing, &before) {
                self.damage(disk, dir, scanned.get(*index), gap.clone(), missing);
            }
            let first = last + 1;
            let Some(segment) = scanned.get_mut(index) else { continue };
            let header = segment.file.header.ok().map(|(header, _)| header);
            let same_names = header.is_none_or(|header| header.names_crc == self.registers.names_crc());
            if segment.start == SEGMENT_HEADER_BYTES as u64 {
                heads = heads_by_name(&self.registers, &heads_of(&self.registers));
            }
            let mut rejected = 0;
            let mut damaged = Vec::new();
            for frame in std::mem::take(&mut segment.frames) {
                if frame.commit >= void_from || frame.commit <= last || !same_names {
                    rejected += usize::from(!same_names);
                    continue;
                }
                let missing = last + 1..frame.commit;
                let follows = frame.chained || frame.behind_bad_start;
                if !(if missing.is_empty() { follows } else { missing.end - 1 <= durable }) {
                    continue;
                }
                if !missing.is_empty() {
                    damaged.push((segment.gap(frame.range.start), missing));
                }
                self.registers.apply(frame.commit, &frame.head);
                for (key, value) in frame.positions {
                    self.registers.set_position(&key.into(), &value.into());
                }
                last = frame.commit;
                segment.taken = frame.range.end;
            }
            if rejected > 0 {
                tracing::error!(segment = %segment_name(segment.file.id), commits = rejected,
                    "the names of this segment's channels are damaged: its commits cannot be used");
            }
            let (id, taken) = (segment.file.id, segment.taken);
            let tail = segment.gap(segment.len);
            for (gap, missing) in damaged {
                // What is missing began where the segment before ended, if nothing is missing here.
                let (index, gap) = match &before {
                    Some((earlier, tail)) if gap.is_empty() => (*earlier, tail.clone()),
                    _ => (index, gap),
                };
                self.damage(disk, dir, scanned.get(index), gap, missing);
            }
            before = Some((index, tail));
            let (first, created_ns) = header.map(|h| (h.first_commit, h.created_ns)).unwrap_or((first, 0));
            self.remember(id, taken, first, created_ns, &heads);
        }
        if durable > last {
            let (index, gap) = before.unwrap_or_default();
            self.damage(disk, dir, scanned.get(index), gap, last + 1..durable + 1);
        }
        self.durable = durable.max(last);
        self.next_commit = self.durable + 1;
        self.registers.last_commit = self.durable;
    }

    /// A scanned segment in the list of segments.
    fn remember(
        &mut self,
        id: u64,
        end: u64,
        first_commit: u64,
        created_ns: i64,
        heads: &BTreeMap<String, (u64, u64)>,
    ) {
        if let Some(known) = self.segments.iter_mut().find(|segment| segment.info.id == id) {
            known.info.end = end;
            return;
        }
        let info = SegmentInfo { id, first_commit, created_ns, end, heads: Vec::new() };
        self.segments.push(NamedSegment { info, heads: heads.clone() });
    }

    fn damage(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        segment: Option<&Scanned>,
        gap: Range<u64>,
        missing: Range<u64>,
    ) {
        self.damaged_commits += missing.end - missing.start;
        match segment {
            Some(segment) => {
                self.damage_seen.insert(Location { segment: segment.file.id, offset: gap.start });
                damage::report(disk, dir, &segment.file, gap, &missing);
            }
            None => tracing::error!(dir = %dir.display(), first = missing.start, last = missing.end - 1,
                "commits are lost: the segment that held them is not there"),
        }
    }

    /// Cuts what was not taken, so that it is never looked at again.
    fn cut(&mut self, disk: &dyn Disk, dir: &Path, scanned: Vec<Scanned>) -> io::Result<()> {
        for segment in scanned {
            let path = dir.join(segment_name(segment.file.id));
            if segment.file.header.is_err() && segment.taken <= SEGMENT_HEADER_BYTES as u64 {
                // A crash while it was made, or nothing in it that could be read (and that is copied aside).
                self.segments.retain(|known| known.info.id != segment.file.id);
                disk.unlink(&path)?;
                disk.sync_dir(dir)?;
                continue;
            }
            if segment.taken >= segment.len {
                continue;
            }
            let file = disk.open(&path, true)?;
            file.truncate(segment.taken)?;
            file.sync_data()?;
        }
        Ok(())
    }
}

/// Frames of a segment from this commit number on were written again to a later one.
fn void_from(later: &[Scanned]) -> u64 {
    let first =
        later.iter().filter_map(|segment| segment.file.header.ok().map(|(header, _)| header.first_commit));
    first.min().unwrap_or(u64::MAX)
}

/// Segments whose deletion was recorded but did not happen.
fn unlink_leftovers(disk: &dyn Disk, dir: &Path, ids: &BTreeSet<u64>, scan: u64, known: &[NamedSegment]) {
    for id in ids.range(..scan).filter(|id| !known.iter().any(|segment| segment.info.id == **id)) {
        if let Err(error) = disk.unlink(&dir.join(segment_name(*id))) {
            tracing::warn!(dir = %dir.display(), segment = %segment_name(*id), %error, "a deleted segment stays behind");
        }
    }
}
