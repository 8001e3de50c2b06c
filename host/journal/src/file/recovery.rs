//! What a journal knows when it opens.
//!
//! From the newest valid snapshot (or, when both slots are damaged, the newest valid checkpoint: `base`) it scans
//! forward (`scan`). Frames that follow each other unbroken are taken. At a break it searches on: D is the highest
//! commit number that anything valid names as durable. Missing commits up to D are damage: they are
//! counted, named, their bytes copied aside, and what comes behind is kept. Everything behind the
//! last unbroken commit above D is a torn tail, which nobody was told of: it is cut.
//!
//! Constraints: the scan is bounded by the bytes between two snapshots; nothing is changed on disk before
//! all of it was read (`mend`); commits after a recovery go to a new segment.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use super::base::{
    base_of_checkpoints, base_of_snapshot, heads_by_name, heads_of, journal_of_segments, read_slots,
};
use super::config::OpenError;
use super::damage::{self, Lost};
use super::format::commit::Location;
use super::format::registers::Registers;
use super::format::segment::{HeaderFault, SEGMENT_HEADER_BYTES};
use super::format::snapshot::{SLOT_NAMES, SegmentInfo, Snapshot};
use super::mend;
use super::missing::{Missing, missing};
use super::scan::{Scanned, scan, void_from};
use super::segment::{SegmentFile, segment_id, segment_name};
use super::snapshots::{Slot, Snapshots};
use super::spares::spare_name;
use super::state_load;
use crate::api::ChannelSpec;
use crate::disk::Disk;
use crate::failover::{PROBE_NAME, REPLACED};
use crate::keys::Keys;
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
    pub lost: Lost,
    pub damage_seen: BTreeSet<Location>,
    /// Segments that are not there and are not reported yet.
    pub missing: Vec<Missing>,
}

/// A segment, with its channels by name: indexes are those of its own time.
#[derive(Debug, Clone)]
pub(super) struct NamedSegment {
    pub info: SegmentInfo,
    pub heads: BTreeMap<String, (u64, u64)>,
}

/// Reads a journal's directory and mends it. The plan says who still reads.
pub(super) fn recover(
    disk: &dyn Disk,
    dir: &Path,
    keys: &Keys,
    plan: &[ChannelSpec],
) -> Result<Recovered, OpenError> {
    let names = disk.list(dir).map_err(OpenError::io(format!("listing {}", dir.display())))?;
    let ids: BTreeSet<u64> = names.iter().filter_map(|name| segment_id(name)).collect();
    let slots = read_slots(disk, dir, &names, keys)?;
    let newest = slots.iter().flatten().max_by_key(|snapshot| snapshot.generation);
    let journal = match newest {
        Some(snapshot) => Some(snapshot.journal),
        None => journal_of_segments(disk, dir, &ids)?,
    };
    let Some(journal) = journal else { return no_journal(disk, dir, &names, &ids) };
    let base = match newest {
        Some(snapshot) => base_of_snapshot(snapshot),
        None => base_of_checkpoints(disk, dir, &ids, journal, keys)?,
    };
    let mut scanned = Vec::new();
    for id in ids.range(base.scan.segment..) {
        let segment = scan(disk, dir, *id, journal, &base, keys).map_err(OpenError::of_segment(dir, *id))?;
        if let Some(Err(HeaderFault::Newer(version))) = segment.as_ref().map(|segment| segment.file.header) {
            return Err(OpenError::NewerVersion { file: dir.join(segment_name(*id)), version });
        }
        scanned.extend(segment);
    }
    let mut recovered = Recovered {
        journal: Some(journal),
        registers: base.registers,
        segments: base.segments,
        next_segment: base.next_segment.max(ids.last().map(|last| last + 1).unwrap_or_default()),
        next_commit: 0,
        durable: base.durable.max(state_load::durable_commit(disk, dir, &names, journal)),
        snapshots: Snapshots { slots: slots.clone().map(|slot| slot.as_ref().map(slot_of)) },
        lost: Lost::default(),
        damage_seen: BTreeSet::new(),
        missing: Vec::new(),
    };
    // Before anything is changed: what readers will come to later has to be readable.
    let not_scanned =
        recovered.segments.iter().filter_map(|segment| Some((segment.info.id, segment.info.key?)));
    for (id, key) in not_scanned {
        let what = || dir.join(segment_name(id)).display().to_string();
        keys.find(key).map_err(|error| OpenError::Key { what: what(), error })?;
    }
    recovered.take(disk, dir, &mut scanned);
    if let Some(snapshot) = newest {
        recovered.missing = missing(snapshot, &ids, &recovered.registers, &recovered.segments, plan);
        recovered.report_missing(dir, None);
        mend::unlink_leftovers(disk, dir, journal, &ids, base.scan.segment, &recovered.segments);
    }
    for segment in &scanned {
        let mended = mend::mend(disk, dir, segment);
        let path = dir.join(segment_name(segment.file.id));
        let mended = mended.map_err(OpenError::io(format!("mending {}", path.display())))?;
        recovered.segments.retain(|known| mended || known.info.id != segment.file.id);
    }
    Ok(recovered)
}

fn slot_of(snapshot: &Snapshot) -> Slot {
    Slot { generation: snapshot.generation, scan_segment: snapshot.scan.segment }
}

/// What is there of a journal beside its segments and what plugins remember: without those it is no reason not to begin one.
fn is_ours(name: &str) -> bool {
    let names = [super::LOCK_NAME, super::RESERVE_NAME, super::saver::UNFINISHED, super::DAMAGED_DIR];
    names.contains(&name)
        || [PROBE_NAME, REPLACED, "lost+found"].contains(&name)
        || SLOT_NAMES.contains(&name)
        || (0..limits::SPARES_MAX).any(|number| name == spare_name(number))
}

fn no_journal(
    disk: &dyn Disk,
    dir: &Path,
    names: &[String],
    ids: &BTreeSet<u64>,
) -> Result<Recovered, OpenError> {
    let mut is_begun = false;
    for id in ids {
        let blank = SegmentFile::open(disk, dir, *id, None).and_then(|file| mend::is_blank(&file));
        is_begun |= !blank.map_err(OpenError::of_segment(dir, *id))?;
    }
    // Slots and segments without content are what a crash leaves of a journal that was being made.
    let foreign = names.iter().find(|name| !is_ours(name) && (segment_id(name).is_none() || is_begun));
    if let Some(name) = foreign {
        let reason = if ids.is_empty() {
            format!("it holds {name}, and no journal; move that elsewhere, or name another directory")
        } else {
            "none of its segments and snapshots is valid; put back a copy of the directory, or move it elsewhere: then a new journal \
             begins, which knows nothing of what was read and delivered"
                .to_string()
        };
        return Err(OpenError::NotAJournal { dir: dir.to_path_buf(), reason });
    }
    Ok(Recovered {
        journal: None,
        registers: Registers::default(),
        segments: Vec::new(),
        next_segment: ids.last().map_or(1, |last| last + 1),
        next_commit: 1,
        durable: 0,
        snapshots: Snapshots::default(),
        lost: Lost::default(),
        damage_seen: BTreeSet::new(),
        missing: Vec::new(),
    })
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
            // A segment that is not there made them void as well.
            let later = self.segments.iter().find(|known| known.info.id > segment.file.id);
            let void_from = later.map_or(void_from, |later| void_from.min(later.info.first_commit));
            let mut missing = None;
            // Without syncs a segment may be on the disk whose checkpoint is ahead of what is left before it: all ends there.
            if let Some(checkpoint) = segment.checkpoint.take()
                && (checkpoint.last_commit == last || (last..=durable).contains(&checkpoint.last_commit))
            {
                missing = Some(last + 1..checkpoint.last_commit + 1).filter(|missing| !missing.is_empty());
                last = checkpoint.last_commit;
                self.registers = checkpoint;
            }
            if let Some(missing) = missing {
                // Nothing is left of what was before the first segment.
                let (at, gap) = before.clone().unwrap_or((usize::MAX, 0..0));
                self.damage(disk, dir, scanned.get(at), gap, missing);
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
            // Up to here each frame follows the one before: behind it may lie what a failed write left, chained in itself.
            let mut unbroken = segment.taken;
            for frame in std::mem::take(&mut segment.frames) {
                let is_next = frame.chained && frame.range.start == unbroken;
                if is_next {
                    unbroken = frame.range.end;
                }
                if frame.commit >= void_from || frame.commit <= last || !same_names {
                    rejected += usize::from(!same_names);
                    continue;
                }
                if frame.is_damaged {
                    if frame.commit <= durable {
                        self.registers.count(&frame.head);
                    }
                    continue;
                }
                let missing = last + 1..frame.commit;
                let follows = is_next || frame.behind_bad_start;
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
                (segment.taken, unbroken) = (frame.range.end, frame.range.end);
                if last > durable {
                    segment.unproven.get_or_insert(frame.range.start);
                }
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
            let created_ns = header.map(|header| header.created_ns).unwrap_or_default();
            let found = scanned.get(index);
            let first_commit = found.and_then(|segment| segment.first_commit).unwrap_or(first);
            let key = found.and_then(|segment| segment.file.key());
            let is_whole = found.is_some_and(|segment| segment.start == SEGMENT_HEADER_BYTES as u64);
            let info = SegmentInfo { id, first_commit, created_ns, end: taken, heads: Vec::new(), key };
            self.remember(info, &heads, is_whole);
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
    fn remember(&mut self, info: SegmentInfo, heads: &BTreeMap<String, (u64, u64)>, is_whole: bool) {
        if let Some(known) = self.segments.iter_mut().find(|segment| segment.info.id == info.id) {
            known.info.end = info.end;
            if is_whole {
                known.heads.clone_from(heads);
                known.info.first_commit = known.info.first_commit.min(info.first_commit);
            }
            return;
        }
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
        self.lost.add(&missing);
        match segment.filter(|_| !gap.is_empty()) {
            Some(segment) => {
                self.damage_seen.insert(Location { segment: segment.file.id, offset: gap.start });
                damage::report(disk, dir, &segment.file, gap, &missing);
            }
            None => tracing::error!(dir = %dir.display(), first = missing.start, last = missing.end - 1,
                "commits are lost: the segment that held them is not there"),
        }
    }
}
