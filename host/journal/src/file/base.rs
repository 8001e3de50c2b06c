//! Where a recovery begins: at the newest valid snapshot, or, when both slots are damaged, at the newest valid checkpoint.
//!
//! How it fails: a slot or a segment that needs a key that was not given, or is of a newer format, stops the start by name. What is
//! damaged is passed by.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use super::config::OpenError;
use super::format::commit::Location;
use super::format::registers::Registers;
use super::format::segment::{HeaderFault, SEGMENT_HEADER_BYTES};
use super::format::snapshot::{SLOT_NAMES, SegmentInfo, Snapshot};
use super::recovery::NamedSegment;
use super::scan::open;
use super::segment::segment_name;
use crate::disk::{Disk, read_again, try_again};
use crate::keys::{KeyError, Keys};
use crate::limits;

/// Where the scan begins and what is known there.
pub(super) struct Base {
    pub registers: Registers,
    pub scan: Location,
    pub scan_crc: u32,
    pub durable: u64,
    pub next_segment: u64,
    pub segments: Vec<NamedSegment>,
}

/// The valid ones of the two slots.
pub(super) fn read_slots(
    disk: &dyn Disk,
    dir: &Path,
    names: &[String],
    keys: &Keys,
) -> Result<[Option<Snapshot>; 2], OpenError> {
    let mut slots = [None, None];
    let mut without_key: Option<(u64, &str, KeyError)> = None;
    for (slot, name) in slots.iter_mut().zip(SLOT_NAMES) {
        if !names.iter().any(|other| other == name) {
            continue;
        }
        let read = || {
            let file = try_again(|| disk.open(&dir.join(name), false))?;
            let bytes = try_again(|| file.len())?.min(limits::RECORD_BYTES_MAX);
            let mut bytes = vec![0; usize::try_from(bytes).unwrap_or_default()];
            read_again(file.as_ref(), 0, &mut bytes)?;
            io::Result::Ok(bytes)
        };
        let decode = |bytes: Vec<u8>| (Snapshot::decode_with(&bytes, keys), Snapshot::generation(&bytes));
        let (decoded, generation) = match read().map(decode) {
            Ok((decoded, generation)) => (Ok(decoded), generation.unwrap_or_default()),
            Err(error) => (Err(error), 0),
        };
        *slot = match decoded {
            Ok(Ok(snapshot)) => Some(snapshot),
            Ok(Err(HeaderFault::Key(error))) => {
                if without_key.is_none_or(|(newest, ..)| newest < generation) {
                    without_key = Some((generation, name, error));
                }
                None
            }
            Ok(Err(HeaderFault::Newer(version))) => {
                return Err(OpenError::NewerVersion { file: dir.join(name), version });
            }
            Ok(Err(HeaderFault::Invalid)) => None,
            Err(error) => {
                tracing::error!(dir = %dir.display(), slot = name, %error, "a snapshot cannot be read");
                None
            }
        };
    }
    // The older slot may be from before a key was given up.
    match without_key {
        Some((generation, name, error))
            if slots.iter().flatten().all(|snapshot: &Snapshot| snapshot.generation < generation) =>
        {
            Err(OpenError::Key { what: dir.join(name).display().to_string(), error })
        }
        _ => Ok(slots),
    }
}

/// The journal that most segments are of: one of another journal may lie between them.
pub(super) fn journal_of_segments(
    disk: &dyn Disk,
    dir: &Path,
    ids: &BTreeSet<u64>,
) -> Result<Option<u128>, OpenError> {
    let mut journals: BTreeMap<u128, (usize, u64)> = BTreeMap::new();
    for id in ids {
        let Some(file) = open(disk, dir, *id, None).map_err(OpenError::of_segment(dir, *id))? else {
            continue;
        };
        match file.header {
            Ok((header, _)) => {
                let (count, newest) = journals.entry(header.journal).or_default();
                (*count, *newest) = (*count + 1, *id);
            }
            Err(HeaderFault::Newer(version)) => {
                return Err(OpenError::NewerVersion { file: dir.join(segment_name(*id)), version });
            }
            Err(HeaderFault::Invalid | HeaderFault::Key(_)) => {}
        }
    }
    Ok(journals.into_iter().max_by_key(|(_, found)| *found).map(|(journal, _)| journal))
}

pub(super) fn heads_by_name(registers: &Registers, heads: &[(u64, u64)]) -> BTreeMap<String, (u64, u64)> {
    registers.channels.iter().map(|channel| channel.name.clone()).zip(heads.iter().copied()).collect()
}

pub(super) fn heads_of(registers: &Registers) -> Vec<(u64, u64)> {
    registers.channels.iter().map(|channel| (channel.head, channel.head_bytes)).collect()
}

/// From a snapshot.
pub(super) fn base_of_snapshot(snapshot: &Snapshot) -> Base {
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
        segments: snapshot.segments.iter().map(named).collect(),
    }
}

/// Without snapshots: from the newest segment whose checkpoint is valid.
pub(super) fn base_of_checkpoints(
    disk: &dyn Disk,
    dir: &Path,
    ids: &BTreeSet<u64>,
    journal: u128,
    keys: &Keys,
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
    // Of a segment without a checkpoint the one behind it tells how far its channels are at most: readers begin before it.
    let mut unknown: Vec<usize> = Vec::new();
    for id in ids {
        let io = || OpenError::of_segment(dir, *id);
        let Some(file) = open(disk, dir, *id, Some(journal)).map_err(io())? else { continue };
        let mut file = file.with_keys(keys);
        let len = try_again(|| file.len()).map_err(io())?;
        if file.header.is_ok() && !file.is_of(journal) {
            continue;
        }
        let checkpoint = file.checkpoint(len).map_err(io())?;
        let (first_commit, created_ns) = match (&file.header, &checkpoint) {
            (Ok((header, _)), _) => (header.first_commit, header.created_ns),
            (_, Some((_, frame))) => (frame.header.commit + 1, 0),
            _ => match file.search(SEGMENT_HEADER_BYTES as u64, len).map_err(io())? {
                Some(frame) => (frame.header.commit, 0),
                // How many commits it had is not known: a reader names its bytes.
                None => (u64::MAX, 0),
            },
        };
        let mut info =
            SegmentInfo { id: *id, first_commit, created_ns, end: len, heads: Vec::new(), key: file.key() };
        if let Some((registers, frame)) = checkpoint {
            info.heads = heads_of(&registers);
            let heads = heads_by_name(&registers, &info.heads);
            for index in unknown.drain(..) {
                if let Some(segment) = base.segments.get_mut(index) {
                    segment.heads.clone_from(&heads);
                    segment.info.first_commit = segment.info.first_commit.min(first_commit);
                }
            }
            base.segments.push(NamedSegment { info, heads });
            base.durable = base.durable.max(frame.header.durable);
            base.registers = registers;
            base.scan = Location { segment: *id, offset: 0 };
        } else {
            unknown.push(base.segments.len());
            base.segments.push(NamedSegment { info, heads: BTreeMap::new() });
        }
    }
    Ok(base)
}
