//! Snapshots and the deletion of segments that nobody needs any more.
//!
//! Constraints: of two slots the newer valid one is never overwritten; a segment goes only when every
//! configured reader is past it, a file of the plugins' state covers it, both slots begin to scan behind it, and a snapshot without it is durable.

use std::io::{self, IoSlice};

use super::config::Durability;
use super::format::commit::Location;
use super::format::snapshot::{SLOT_NAMES, SegmentInfo, Snapshot};
use super::writer::Writer;
use crate::disk::write_all_at;
use crate::limits;

/// A slot whose content is known to be valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub generation: u64,
    /// Segment at which a recovery from it begins to scan.
    pub scan_segment: u64,
}

/// What is known of the two slots.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Snapshots {
    pub slots: [Option<Slot>; 2],
}

impl Snapshots {
    /// The slot to write next: an invalid one, or the older.
    fn next(&self) -> (usize, u64) {
        let [a, b] = self.slots.map(|slot| slot.map(|slot| slot.generation));
        (usize::from(b < a), a.max(b).unwrap_or_default() + 1)
    }

    /// Segments before this one are needed by no slot.
    fn scan_segment(&self) -> u64 {
        let [a, b] = self.scans();
        a.min(b)
    }

    /// Segments before this one are needed by no slot once one more snapshot is written.
    fn next_scan_segment(&self) -> u64 {
        let [a, b] = self.scans();
        a.max(b)
    }

    fn scans(&self) -> [u64; 2] {
        self.slots.map(|slot| slot.map(|slot| slot.scan_segment).unwrap_or_default())
    }
}

impl Writer {
    /// After each group: snapshots when enough was written, deletion when enough was acknowledged.
    ///
    /// While much waits, the snapshot that is due records what is deleted as well: each one is a sync that the others wait for. Nobody
    /// waits for any of it whose commit is durable.
    pub fn maintain(&mut self) {
        if self.since_snapshot >= self.shared.config.snapshot_every_bytes {
            // A failure is reported, and tried again after as many bytes: the other slot is still good.
            self.since_snapshot = 0;
            self.bells.ring();
            let mut gone = self.no_longer_needed();
            gone.retain(|segment| segment.id < self.snapshots.next_scan_segment());
            if self.delete(&gone) == 0
                && let Err(error) = self.snapshot()
            {
                tracing::error!(dir = %self.shared.dir.display(), %error, "no snapshot: the next start scans more");
            }
        }
        if self.state_files.needs_care() {
            self.bells.ring();
            self.maintain_state();
        }
        let waiting: u64 = self.shared.state.lock().queue.iter().map(|queued| queued.frame_bytes()).sum();
        if waiting < limits::MUCH_WAITS_BYTES {
            let gone = self.no_longer_needed();
            if !gone.is_empty() {
                self.bells.ring();
                self.delete(&gone);
            }
        }
    }

    /// Makes the slots' files and their space, so that a full disk does not stop a small journal's snapshots.
    pub fn prepare_slots(&self) {
        for name in SLOT_NAMES {
            let path = self.shared.dir.join(name);
            let made = match self.shared.disk.create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => Err(error),
                Ok(file) => file.preallocate(limits::SNAPSHOT_BYTES_MIN),
            };
            if let Err(error) = made.and_then(|()| self.shared.disk.sync_dir(&self.shared.dir)) {
                tracing::warn!(path = %path.display(), %error, "no space is set aside for snapshots");
            }
        }
    }

    /// Writes the durable state to the older slot.
    pub fn snapshot(&mut self) -> io::Result<()> {
        if self.shared.config.durability == Durability::Os {
            // What a snapshot refers to must not be younger on disk than the snapshot.
            if let Some(active) = &self.active {
                active.sync()?;
            }
            self.shared.disk.sync_dir(&self.shared.dir)?;
            self.durable = self.next_commit - 1;
        }
        let (scan, scan_crc) = match &self.active {
            Some(active) => (active.place(), active.crc),
            None => (Location { segment: self.next_segment, offset: 0 }, 0),
        };
        let (index, generation) = self.snapshots.next();
        let snapshot = Snapshot {
            generation,
            journal: self.shared.journal,
            registers: self.applied.clone(),
            scan,
            scan_crc,
            durable: self.durable,
            next_segment: self.next_segment,
            segments: self.shared.state.lock().segments.clone(),
        };
        let slot = self.snapshots.slots.get_mut(index);
        let name = SLOT_NAMES.get(index).copied().unwrap_or_default();
        let slot = slot.ok_or_else(|| io::Error::other("no such slot"))?;
        *slot = None;
        let path = self.shared.dir.join(name);
        let bytes = match &self.shared.sealer {
            Some(sealer) => snapshot.encode_sealed(sealer)?,
            None => snapshot.encode(),
        };
        let file = match self.shared.disk.open(&path, true) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = self.shared.disk.create(&path)?;
                self.shared.disk.sync_dir(&self.shared.dir)?;
                file
            }
            Err(error) => return Err(error),
        };
        if file.len()? < bytes.len() as u64 {
            file.preallocate((bytes.len() as u64).max(limits::SNAPSHOT_BYTES_MIN).next_multiple_of(4096))?;
        }
        write_all_at(file.as_ref(), 0, &mut [IoSlice::new(&bytes)])?;
        if let Err(error) = file.sync_data() {
            // Its pages are not to be trusted again: the next attempt gets a new file.
            self.shared.disk.unlink(&path)?;
            return Err(error);
        }
        *slot = Some(Slot { generation, scan_segment: scan.segment });
        Ok(())
    }

    /// Deletes the oldest segments that nobody needs; returns how many.
    pub fn collect(&mut self) -> usize {
        let gone = self.no_longer_needed();
        self.delete(&gone)
    }

    fn delete(&mut self, gone: &[SegmentInfo]) -> usize {
        let Some(last) = gone.last().map(|segment| segment.id) else { return 0 };
        if let Err(error) = self.record_deletion(gone, last) {
            tracing::warn!(dir = %self.shared.dir.display(), %error, "segments that are done with stay for now");
            return 0;
        }
        for segment in gone {
            self.let_go(segment);
        }
        if let Err(error) = self.shared.disk.sync_dir(&self.shared.dir) {
            tracing::warn!(dir = %self.shared.dir.display(), %error, "deleted segments may come back after a crash");
        }
        gone.len()
    }

    /// The oldest segments that end before every cursor. Never the newest: its checkpoint is the
    /// third copy of the registers, should both slots be damaged.
    fn no_longer_needed(&self) -> Vec<SegmentInfo> {
        let state_needs = self.state_files.needs_from();
        let state = self.shared.state.lock();
        let ends = state.segments.iter().skip(1).map(|segment| &segment.heads);
        let done = |heads: &Vec<(u64, u64)>| {
            let needed = self.applied.channels.iter().map(|channel| channel.needed());
            needed.zip(heads).all(|(needed, (end, _))| needed.is_none_or(|needed| needed >= *end))
        };
        state
            .segments
            .iter()
            .zip(ends)
            .take_while(|(segment, end)| done(end) && state_needs.is_none_or(|needed| segment.id < needed))
            .map(|(segment, _)| segment.clone())
            .collect()
    }

    fn record_deletion(&mut self, gone: &[SegmentInfo], last: u64) -> io::Result<()> {
        let before = {
            let mut state = self.shared.state.lock();
            let before = state.segments.clone();
            state.segments.retain(|segment| !gone.contains(segment));
            before
        };
        for attempt in 0..3 {
            if attempt > 0 && self.snapshots.scan_segment() > last {
                return Ok(());
            }
            if let Err(error) = self.snapshot() {
                let retry = matches!(error.kind(), io::ErrorKind::StorageFull) && self.release_reserve();
                if !retry {
                    self.shared.state.lock().segments = before;
                    return Err(error);
                }
            }
        }
        if self.snapshots.scan_segment() > last {
            return Ok(());
        }
        self.shared.state.lock().segments = before;
        Err(io::Error::other("the snapshots do not get past them"))
    }
}
