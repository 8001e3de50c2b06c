//! A reader: from the window while it keeps up, from the segments while it is behind.
//!
//! Constraints: what it hands out is durable; positions in the channel never go back by themselves and
//! never skip, except over events that are lost to damage, which the next delivery counts.
//!
//! Behind the window it walks the segments frame by frame from the place its acknowledged cursor names
//! (or the start of the segment that holds it), reading ahead; a frame without events for its channel
//! costs its head only. When the next event is in the window, the walk ends.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use flumen_event::layout;

use super::damage;
use super::format::commit::{CommitHead, Location, PutChannel, PutHead};
use super::format::frame::Kind;
use super::format::segment::SEGMENT_HEADER_BYTES;
use super::segment::{Frame, SegmentFile};
use super::state::{Delivered, Phase, Shared, State};
use crate::api::{Delivery, ReadError, Reader};
use crate::limits;

/// First byte of a mark: then the journal's id (16 bytes) and the cursor (8), little-endian.
const MARK_VERSION: u8 = 1;

/// A reader of one channel.
pub(super) struct FileReader {
    shared: Arc<Shared>,
    channel: usize,
    reader: usize,
    name: String,
    cursor: u64,
    lost: u64,
    walk: Option<Walk>,
    /// Reads that failed one after the other.
    failures: u32,
}

/// Where a reader is in the segments.
struct Walk {
    file: SegmentFile,
    /// Index of the channel in this segment's frames.
    channel: Option<u32>,
    offset: u64,
    /// Number of the last commit seen in this segment.
    last_commit: Option<u64>,
}

/// What to do next.
enum Plan {
    Deliver(Box<Delivery>),
    /// Walk on; the events up to here are durable.
    Walk {
        head: u64,
    },
    Nothing,
}

impl FileReader {
    pub fn new(shared: Arc<Shared>, channel: usize, reader: usize) -> FileReader {
        let (name, cursor) = {
            let state = shared.state.lock();
            let register = state.registers.channels.get(channel);
            let cursor =
                register.and_then(|register| register.readers.get(reader)).map(|reader| reader.cursor);
            (register.map(|register| register.name.clone()).unwrap_or_default(), cursor.unwrap_or_default())
        };
        FileReader { shared, channel, reader, name, cursor, lost: 0, walk: None, failures: 0 }
    }

    fn acknowledged_in(&self, state: &State) -> u64 {
        let register = state.registers.channels.get(self.channel);
        register
            .and_then(|register| register.readers.get(self.reader))
            .map(|reader| reader.cursor)
            .unwrap_or_default()
    }

    fn plan(&mut self, wait: Duration) -> Result<Plan, ReadError> {
        let shared = self.shared.clone();
        let deadline = shared.clock.now().checked_add(wait);
        let mut state = shared.state.lock();
        loop {
            if state.phase != Phase::Open {
                return Err(ReadError::Closing);
            }
            self.cursor = self.cursor.max(self.acknowledged_in(&state));
            let Some(channel) = state.channels.get(self.channel) else { return Ok(Plan::Nothing) };
            let (head, cursor) = (channel.durable_head, self.cursor);
            if cursor < head {
                let at = channel.window.partition_point(|recent| recent.place.end() <= cursor);
                let recent = channel.window.get(at).filter(|recent| recent.place.first <= cursor);
                let Some(recent) = recent else { return Ok(Plan::Walk { head }) };
                let (place, batch) = (recent.place, recent.batch.clone());
                self.walk = None;
                state.delivered(self.channel, self.reader, place);
                let skip = (cursor - place.first) as usize;
                return Ok(Plan::Deliver(Box::new(self.deliver(cursor, batch.slice(skip, batch.rows())))));
            }
            match deadline {
                None => shared.published.wait(&mut state),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(shared.clock.now());
                    if left.is_zero() {
                        return Ok(Plan::Nothing);
                    }
                    shared.published.wait_for(&mut state, left);
                }
            }
        }
    }

    fn deliver(&mut self, first: u64, batch: flumen_event::Batch) -> Delivery {
        self.cursor = first + batch.rows() as u64;
        Delivery { first, next: self.cursor, batch, lost_before: std::mem::take(&mut self.lost) }
    }

    /// The put that holds the cursor, or the next one behind damage; `None` when all up to `head` is lost.
    fn read(&mut self, head: u64) -> io::Result<Option<Delivery>> {
        loop {
            let mut walk = match self.walk.take() {
                Some(walk) => walk,
                None => match self.start()? {
                    Some(walk) => walk,
                    None => return Ok(None),
                },
            };
            let view = self.view(walk.file.id);
            let Some((end, void_from)) = view else { continue };
            if walk.offset >= end {
                match self.enter_next(walk.file.id)? {
                    Some(next) => {
                        self.walk = Some(next);
                        continue;
                    }
                    None => return Ok(None),
                }
            }
            let frame = match walk.file.frame(walk.offset, end, false)? {
                Some(frame) => frame,
                None => match self.skip_damage(&mut walk, end, void_from)? {
                    Some(frame) => frame,
                    None => {
                        walk.offset = end;
                        self.walk = Some(walk);
                        continue;
                    }
                },
            };
            if frame.header.kind == Kind::Commit && frame.header.commit >= void_from {
                walk.offset = end;
                self.walk = Some(walk);
                continue;
            }
            let found = self.take(&mut walk, frame, end, void_from)?;
            self.walk = Some(walk);
            match found {
                Some(delivery) => return Ok(Some(delivery)),
                None if self.cursor >= head => return Ok(None),
                None => {}
            }
        }
    }

    /// Rows for this reader in a frame, and the walk moves behind it.
    fn take(
        &mut self,
        walk: &mut Walk,
        mut frame: Frame,
        end: u64,
        void_from: u64,
    ) -> io::Result<Option<Delivery>> {
        let head = if frame.header.kind == Kind::Commit { CommitHead::decode(&frame.head) } else { None };
        let wanted = head.as_ref().and_then(|head| {
            let puts = head.puts.iter();
            let mut parts = puts.flat_map(|put| put.channels.iter().map(move |part| (put, *part)));
            parts.find(|(put, part)| {
                Some(part.channel) == walk.channel
                    && part.first.saturating_add(u64::from(put.rows)) > self.cursor
            })
        });
        let Some((put, part)) = wanted else {
            walk.last_commit = Some(frame.header.commit);
            walk.offset = frame.end();
            return Ok(None);
        };
        let time_ns = head.as_ref().map(|head| head.time_ns).unwrap_or_default();
        if put.data_bytes == 0 {
            // Put while nobody was configured to read it.
            self.lose_until(part.first.saturating_add(u64::from(put.rows)));
            return Ok(None);
        }
        let loaded = frame.data.is_some() || walk.file.load(&mut frame, end)?;
        let batch = frame.data.as_ref().filter(|_| loaded).and_then(|data| {
            let (at, bytes) = (usize::try_from(put.data_offset).ok()?, usize::try_from(put.data_bytes).ok()?);
            let sound = bytes > 0 && at.checked_add(bytes)? <= data.len();
            let batch = layout::decode(sound.then(|| data.slice_with_length(at, bytes))?).ok()?;
            (batch.rows() == put.rows as usize).then_some(batch)
        });
        let Some(batch) = batch else {
            // The head is sound, so what is lost is known exactly.
            let missing = frame.header.commit..frame.header.commit + 1;
            self.damaged(walk, frame.offset, frame.end(), missing);
            walk.last_commit = Some(frame.header.commit);
            walk.offset = frame.end();
            if frame.header.commit < void_from {
                self.lose_until(part.first.saturating_add(u64::from(put.rows)));
            }
            return Ok(None);
        };
        // The same frame may hold more for this channel, so the walk stays; the cursor moves on.
        self.lose_until(part.first);
        let place = delivered(put, &part, time_ns, Location { segment: walk.file.id, offset: frame.offset });
        self.shared.state.lock().delivered(self.channel, self.reader, place);
        let (first, skip) = (self.cursor, (self.cursor - part.first) as usize);
        walk.last_commit = Some(frame.header.commit);
        walk.offset = frame.offset;
        Ok(Some(self.deliver(first, batch.slice(skip, batch.rows()))))
    }

    /// Events before `first` are gone: damage took them, or they were put while this reader was not configured.
    fn lose_until(&mut self, first: u64) {
        if first > self.cursor {
            let lost = first - self.cursor;
            tracing::error!(channel = %self.name, lost, from = self.cursor, "events are not on disk any more");
            self.lost += lost;
            self.cursor = first;
        }
    }

    fn damaged(&self, walk: &Walk, from: u64, to: u64, missing: std::ops::Range<u64>) {
        let place = Location { segment: walk.file.id, offset: from };
        {
            let mut state = self.shared.state.lock();
            if !state.damage_seen.insert(place) {
                return;
            }
            state.status.damaged_commits += missing.end.saturating_sub(missing.start);
        }
        damage::report(self.shared.disk.as_ref(), &self.shared.dir, &walk.file, from..to, &missing);
    }

    /// The next valid frame of this segment behind damage.
    fn skip_damage(&mut self, walk: &mut Walk, end: u64, void_from: u64) -> io::Result<Option<Frame>> {
        let from = walk.offset;
        let mut at = from + 8;
        let found = loop {
            match walk.file.search(at, end)? {
                // A body may hold what looks like a frame of the past: numbers only rise.
                Some(frame) if walk.last_commit.is_some_and(|last| frame.header.commit <= last) => {
                    at = frame.offset + 8
                }
                other => break other,
            }
        };
        let found = found.filter(|frame| frame.header.commit < void_from);
        let next_commit = found.as_ref().map(|frame| frame.header.commit).unwrap_or(void_from);
        let known = walk.last_commit.map(|last| last + 1).unwrap_or(next_commit);
        self.damaged(walk, from, found.as_ref().map(|frame| frame.offset).unwrap_or(end), known..next_commit);
        if let Some(frame) = &found {
            walk.offset = frame.offset;
        }
        Ok(found)
    }

    fn start(&self) -> io::Result<Option<Walk>> {
        let place = self.shared.state.lock().locate(self.channel, self.reader, self.cursor);
        match place {
            Some(place) => self.enter(place),
            None => Ok(None),
        }
    }

    fn enter_next(&self, after: u64) -> io::Result<Option<Walk>> {
        let next = self.shared.state.lock().segments.iter().map(|segment| segment.id).find(|id| *id > after);
        match next {
            Some(segment) => self.enter(Location { segment, offset: 0 }),
            None => Ok(None),
        }
    }

    fn enter(&self, place: Location) -> io::Result<Option<Walk>> {
        let Some((end, _)) = self.view(place.segment) else { return self.enter_next(place.segment) };
        let low = Some(self.shared.journal as u64);
        let mut file =
            match SegmentFile::open(self.shared.disk.as_ref(), &self.shared.dir, place.segment, low) {
                Ok(file) => file,
                // Deleted by hand: its events are lost, and the next frame tells how many.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return self.enter_next(place.segment);
                }
                Err(error) => return Err(error),
            };
        let own = {
            let state = self.shared.state.lock();
            (state.registers.names_crc(), Some(self.channel as u32))
        };
        if self.failures >= limits::READ_FAILURES_MAX {
            file.tolerate_bad_sectors();
        }
        let channel = match (file.checkpoint(end)?, &file.header) {
            (Some((registers, _)), _) => registers.channel(&self.name).map(|index| index as u32),
            (None, Ok((header, _))) if header.names_crc == own.0 => own.1,
            (None, _) => None,
        };
        let offset = place.offset.max(SEGMENT_HEADER_BYTES as u64);
        Ok(Some(Walk { file, channel, offset, last_commit: None }))
    }

    /// Where a segment's durable frames end, and from which commit number on its frames are void.
    fn view(&self, id: u64) -> Option<(u64, u64)> {
        let state = self.shared.state.lock();
        let at = state.segments.iter().position(|segment| segment.id == id)?;
        let void_from = state.segments.get(at + 1).map(|next| next.first_commit);
        let void_from = void_from.unwrap_or(state.status.last_commit + 1);
        Some((state.segments.get(at)?.end, void_from))
    }
}

fn delivered(put: &PutHead, part: &PutChannel, time_ns: i64, location: Location) -> Delivered {
    Delivered {
        first: part.first,
        rows: u64::from(put.rows),
        bytes_before: part.bytes_before,
        bytes: put.bytes,
        time_ns,
        location,
    }
}

impl Reader for FileReader {
    fn next(&mut self, wait: Duration) -> Result<Option<Delivery>, ReadError> {
        loop {
            let head = match self.plan(wait)? {
                Plan::Deliver(delivery) => return Ok(Some(*delivery)),
                Plan::Nothing => return Ok(None),
                Plan::Walk { head } => head,
            };
            let outcome = self.read(head);
            self.failures = if outcome.is_err() { self.failures + 1 } else { 0 };
            match outcome {
                Ok(Some(delivery)) => return Ok(Some(delivery)),
                Ok(None) => {
                    // Up to here the segments have nothing more: what the window does not have either is lost.
                    let state = self.shared.state.lock();
                    let window = state.channels.get(self.channel).and_then(|channel| channel.window.front());
                    let until =
                        window.map(|recent| recent.place.first).filter(|first| *first < head).unwrap_or(head);
                    drop(state);
                    self.walk = None;
                    self.lose_until(until);
                }
                Err(source) => {
                    self.walk = None;
                    let what = format!("channel {} at event {}", self.name, self.cursor);
                    return Err(ReadError::Io { what, source });
                }
            }
        }
    }

    fn seek(&mut self, cursor: u64) -> Result<(), ReadError> {
        let acknowledged = self.acknowledged();
        self.cursor = cursor.max(acknowledged);
        self.walk = None;
        self.lost = 0;
        Ok(())
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged_in(&self.shared.state.lock())
    }

    fn mark(&self, cursor: u64) -> Vec<u8> {
        let mut mark = vec![MARK_VERSION];
        mark.extend(self.shared.journal.to_le_bytes());
        mark.extend(cursor.to_le_bytes());
        mark
    }

    fn resolve(&mut self, mark: &[u8]) -> Option<u64> {
        let (version, rest) = mark.split_first()?;
        let (journal, cursor) = rest.split_first_chunk::<16>()?;
        let cursor = u64::from_le_bytes(cursor.try_into().ok()?);
        let is_own = *version == MARK_VERSION && u128::from_le_bytes(*journal) == self.shared.journal;
        let state = self.shared.state.lock();
        let head = state.channels.get(self.channel).map_or(0, |channel| channel.durable_head);
        (is_own && cursor <= head).then_some(cursor)
    }
}
