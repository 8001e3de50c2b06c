//! A reader: from the window while it keeps up, from the segments while it is behind.
//!
//! Constraints: what it hands out is durable; positions in the channel never go back by themselves and
//! never skip, except over events that are lost to damage, which the next delivery counts.
//!
//! Behind the window it walks the segments frame by frame from the place its acknowledged cursor names
//! (or the start of the segment that holds it), reading ahead; a frame without events for its channel
//! costs its head only. When the next event is in the window, the walk ends.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use flumen_event::Batch;

use super::damage;
use super::format::commit::{CommitHead, Location, PutChannel, PutHead};
use super::format::frame::Kind;
use super::format::segment::SEGMENT_HEADER_BYTES;
use super::segment::{Frame, SegmentFile, segment_name};
use super::state::{Delivered, Phase, Seat, Shared, State};
use crate::api::{Delivery, ReadError, Reader};
use crate::disk::is_damage;
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
    /// Where the next batch is in the window, probably.
    seat: Seat,
    walk: Option<Walk>,
    /// Reads that failed one after the other.
    failures: u32,
}

/// Where a reader is in the segments.
struct Walk {
    file: SegmentFile,
    /// Index of the channel in this segment's frames.
    channel: Option<u32>,
    /// Events and bytes of the channel that the segment may hold, where its own names of the channels are damaged: the index
    /// is that of today then, and what is not within was another channel's.
    within: Option<Range<(u64, u64)>>,
    offset: u64,
    /// Number of the last commit seen in this segment.
    last_commit: Option<u64>,
}

/// What to do next.
enum Plan {
    Deliver {
        first: u64,
        batch: Batch,
    },
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
        FileReader {
            shared,
            channel,
            reader,
            name,
            cursor,
            lost: 0,
            seat: Seat::default(),
            walk: None,
            failures: 0,
        }
    }

    fn acknowledged_in(&self, state: &State) -> u64 {
        let register = state.registers.channels.get(self.channel);
        register
            .and_then(|register| register.readers.get(self.reader))
            .map(|reader| reader.cursor)
            .unwrap_or_default()
    }

    fn plan(&mut self, wait: Duration) -> Result<Plan, ReadError> {
        let shared = self.shared.as_ref();
        let mut until = None;
        let mut state = shared.state.lock();
        loop {
            if state.phase != Phase::Open {
                return Err(ReadError::Closing);
            }
            self.cursor = self.cursor.max(self.acknowledged_in(&state));
            let Some(channel) = state.channels.get(self.channel) else { return Ok(Plan::Nothing) };
            let (head, cursor) = (channel.durable_head, self.cursor);
            if cursor < head {
                let recent = channel.window.find(cursor, &mut self.seat);
                let Some(recent) = recent else { return Ok(Plan::Walk { head }) };
                let (place, batch) = (recent.place, recent.batch.clone());
                self.walk = None;
                state.delivered(self.channel, self.reader, place);
                drop(state);
                let skip = (cursor - place.first) as usize;
                return Ok(Plan::Deliver { first: cursor, batch: batch.slice(skip, batch.rows()) });
            }
            let now = shared.clock.now();
            match *until.get_or_insert_with(|| now.checked_add(wait)) {
                None => shared.published.wait(&mut state),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(now);
                    if left.is_zero() {
                        return Ok(Plan::Nothing);
                    }
                    shared.published.wait_for(&mut state, left);
                }
            }
        }
    }

    fn deliver(&mut self, first: u64, batch: Batch) -> Delivery {
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
                // What is missing is told from the frame before, which is not known yet.
                None if walk.last_commit.is_none() => {
                    self.rewind(&mut walk);
                    self.walk = Some(walk);
                    continue;
                }
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
                    && walk.within.as_ref().is_none_or(|within| is_within(put, part, within))
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
        let Some(batch) = loaded.then(|| frame.batch(put)).flatten() else {
            // The head is sound, so what is lost is known exactly.
            let missing = frame.header.commit..frame.header.commit + 1;
            self.damaged(walk, frame.offset, frame.end(), missing);
            walk.last_commit = Some(frame.header.commit);
            walk.offset = frame.end();
            if frame.header.commit < void_from {
                // Where recovery did not know of them, their numbers were given again.
                let behind = self.held_by(walk.file.id).map_or(u64::MAX, |held| held.end.0);
                self.lose_until(part.first.saturating_add(u64::from(put.rows)).min(behind));
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

    fn damaged(&self, walk: &Walk, from: u64, to: u64, missing: Range<u64>) {
        let place = Location { segment: walk.file.id, offset: from };
        {
            let mut state = self.shared.state.lock();
            if !state.damage_seen.insert(place) {
                return;
            }
            state.count_lost(&missing);
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
        let (disk, dir) = (self.shared.disk.as_ref(), &self.shared.dir);
        let is_last_try = self.failures >= limits::READ_FAILURES_MAX;
        let open = if is_last_try { SegmentFile::open_tolerant } else { SegmentFile::open };
        let mut file = match open(disk, dir, place.segment, low) {
            Ok(file) => file.with_keys(&self.shared.config.keys),
            // Deleted by hand: its events are lost, and the next frame tells how many.
            Err(error) if error.kind() == io::ErrorKind::NotFound || (is_last_try && is_damage(&error)) => {
                self.missing(place.segment, &error);
                return self.enter_next(place.segment);
            }
            Err(error) => return Err(error),
        };
        let names_crc = self.shared.state.lock().registers.names_crc();
        let (channel, within) = match (file.checkpoint(end)?, &file.header) {
            (Some((registers, _)), _) => (registers.channel(&self.name).map(|index| index as u32), None),
            (None, Ok((header, _))) if header.names_crc == names_crc => (Some(self.channel as u32), None),
            // Its own names are damaged, and those of today may be others: a reader came meanwhile, or the plan has changed.
            (None, _) => (Some(self.channel as u32), Some(self.held_by(place.segment).unwrap_or_default())),
        };
        let offset = place.offset.max(SEGMENT_HEADER_BYTES as u64);
        let mut walk = Walk { file, channel, within, offset, last_commit: None };
        if offset == SEGMENT_HEADER_BYTES as u64 {
            self.rewind(&mut walk);
        }
        Ok(Some(walk))
    }

    /// Events and bytes of this channel that a segment may hold.
    fn held_by(&self, id: u64) -> Option<Range<(u64, u64)>> {
        let state = self.shared.state.lock();
        let at = state.segments.iter().position(|segment| segment.id == id)?;
        let heads = |index: usize| state.segments.get(index)?.heads.get(self.channel).copied();
        let register = state.registers.channels.get(self.channel)?;
        // What is known of a damaged segment's own beginning may be its end, and that of one before it then too.
        let own = heads(at)?;
        let low = (0..at).rev().filter_map(heads).find(|before| *before != own).unwrap_or_default();
        Some(low..heads(at + 1).unwrap_or((register.head, register.head_bytes)))
    }

    /// To the segment's first frame: from there on it is known which commits have to come.
    fn rewind(&self, walk: &mut Walk) {
        let state = self.shared.state.lock();
        let info = state.segments.iter().find(|segment| segment.id == walk.file.id);
        walk.last_commit = Some(info.map_or(0, |segment| segment.first_commit.saturating_sub(1)));
        walk.offset = SEGMENT_HEADER_BYTES as u64;
    }

    /// A segment that should be there is not.
    fn missing(&self, id: u64, error: &io::Error) {
        let commits = {
            let mut state = self.shared.state.lock();
            let at = state.segments.iter().position(|segment| segment.id == id);
            let place = Location { segment: id, offset: 0 };
            // Deleted by the committer just now, or told already.
            let Some(at) = at.filter(|_| state.damage_seen.insert(place)) else { return };
            let first = state.segments.get(at).map_or(0, |segment| segment.first_commit);
            let next =
                state.segments.get(at + 1).map_or(state.status.last_commit + 1, |next| next.first_commit);
            state.count_lost(&(first..next))
        };
        tracing::error!(dir = %self.shared.dir.display(), segment = %segment_name(id), commits, %error,
            "a segment is not there: its commits are lost");
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

fn is_within(put: &PutHead, part: &PutChannel, within: &Range<(u64, u64)>) -> bool {
    let end = (part.first.saturating_add(u64::from(put.rows)), part.bytes_before.saturating_add(put.bytes));
    let (low, high) = (within.start, within.end);
    part.first >= low.0 && part.bytes_before >= low.1 && end.0 <= high.0 && end.1 <= high.1
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
                Plan::Deliver { first, batch } => return Ok(Some(self.deliver(first, batch))),
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
                    let window = state.channels.get(self.channel).and_then(|channel| channel.window.first());
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
