//! Reads a journal's files without opening the journal, for tools.
//!
//! Constraints: changes nothing and takes no lock, so it works on a live journal and on a dead one. A
//! live one changes meanwhile: a segment may grow (its frames so far are listed) or disappear
//! (it is skipped). Of a live journal the last frames may not be durable yet.
//!
//! How it fails: a directory that is no journal, and errors of the disk. Damage is part of the answer.

pub mod trace;
pub mod verify;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flumen_event::Batch;
use thiserror::Error;

use crate::disk::Disk;
use crate::file::format::commit::{AckRecord, CommitHead, PutHead, decode_lists};
use crate::file::format::frame::Kind;
use crate::file::format::registers::Registers;
use crate::file::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::file::format::snapshot::{SLOT_NAMES, Snapshot};
use crate::file::{Frame, SegmentFile, segment_id, segment_name};
use crate::keys::{KeyName, Keys};
use crate::limits;
use crate::state::StateWrite;

/// Why a journal cannot be looked at.
#[derive(Debug, Error)]
pub enum InspectError {
    /// There are no journal files.
    #[error("{0} holds no journal")]
    NotAJournal(PathBuf),
    /// No channel has this name.
    #[error("the journal has no channel {name:?}; it has: {known}")]
    NoChannel {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The disk refused.
    #[error("{what}: {source}")]
    Io {
        /// File.
        what: String,
        /// The system's error.
        source: io::Error,
    },
}

/// A journal's directory.
pub struct Inspector {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    keys: Keys,
}

/// A segment file.
#[derive(Debug, Clone)]
pub struct SegmentView {
    /// Its id.
    pub id: u64,
    /// Its file name.
    pub name: String,
    /// Its length, with what is preallocated.
    pub file_bytes: u64,
    /// Its header, if it is valid.
    pub header: Option<SegmentHeader>,
    /// Its checkpoint, if it is valid.
    pub checkpoint: Option<Registers>,
    /// The key of its frames, if they are encrypted.
    pub key: Option<KeyName>,
}

/// What is found at one place of a segment.
#[derive(Debug, Clone)]
pub enum FrameView {
    /// A commit.
    Commit(CommitView),
    /// A checkpoint: its registers are [`SegmentView::checkpoint`].
    Checkpoint {
        /// Offset in the segment.
        offset: u64,
        /// Bytes of the frame.
        bytes: u64,
        /// The last commit in it.
        commit: u64,
    },
    /// Bytes that are no valid frame, with a valid one behind them.
    Damage {
        /// Offset in the segment.
        offset: u64,
        /// How many bytes.
        bytes: u64,
    },
}

/// A commit frame.
#[derive(Debug, Clone)]
pub struct CommitView {
    /// Offset in the segment.
    pub offset: u64,
    /// Bytes of the frame.
    pub bytes: u64,
    /// Commit number.
    pub commit: u64,
    /// Highest commit known to be durable when it was written.
    pub durable: u64,
    /// When, ns since the Unix epoch.
    pub time_ns: i64,
    /// Puts; channels by index in the segment's checkpoint.
    pub puts: Vec<PutHead>,
    /// Acks; channels and readers by index in the segment's checkpoint.
    pub acks: Vec<AckRecord>,
    /// Positions.
    pub positions: Vec<(Vec<u8>, Vec<u8>)>,
    /// State writes.
    pub state: Vec<StateWrite>,
}

/// A snapshot slot: its name, and what is in it, or why it is not valid.
pub type SlotView = (&'static str, Result<Snapshot, String>);

/// Rows of one put, as they lie in a channel.
#[derive(Debug, Clone)]
pub struct Rows {
    /// Cursor of the first row.
    pub first: u64,
    /// When they were committed, ns since the Unix epoch.
    pub time_ns: i64,
    /// The events.
    pub batch: Batch,
    /// Events before `first`, from where the last rows ended, that are not there (damaged or deleted).
    pub missing_before: u64,
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> InspectError {
    let what = what.into();
    move |source| InspectError::Io { what, source }
}

impl Inspector {
    /// A directory with journal files.
    pub fn open(disk: Arc<dyn Disk>, dir: impl AsRef<Path>) -> Result<Inspector, InspectError> {
        let dir = dir.as_ref().to_path_buf();
        let names = match disk.list(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(InspectError::NotAJournal(dir));
            }
            other => other.map_err(failed(dir.display().to_string()))?,
        };
        let ours = |name: &String| segment_id(name).is_some() || SLOT_NAMES.contains(&name.as_str());
        if !names.iter().any(ours) {
            return Err(InspectError::NotAJournal(dir));
        }
        Ok(Inspector { disk, dir, keys: Keys::default() })
    }

    /// With these keys for what is encrypted.
    pub fn with_keys(self, keys: &Keys) -> Inspector {
        Inspector { keys: keys.clone(), ..self }
    }

    /// Segments, oldest first.
    pub fn segments(&self) -> Result<Vec<SegmentView>, InspectError> {
        let mut views = Vec::new();
        for id in self.segment_ids()? {
            views.extend(self.open_segment(id)?.map(|(_, view)| view));
        }
        Ok(views)
    }

    /// Both snapshot slots.
    pub fn snapshots(&self) -> Vec<SlotView> {
        let read = |name: &str| {
            let file = self.disk.open(&self.dir.join(name), false)?;
            let mut bytes =
                vec![0; usize::try_from(file.len()?.min(limits::RECORD_BYTES_MAX)).unwrap_or_default()];
            file.read_at(0, &mut bytes)?;
            io::Result::Ok(bytes)
        };
        let slot = |name: &'static str| match read(name) {
            Err(error) => (name, Err(error.to_string())),
            Ok(bytes) if bytes.iter().all(|byte| *byte == 0) => (name, Err("not written yet".into())),
            Ok(bytes) => (name, Snapshot::decode_with(&bytes, &self.keys).map_err(|fault| fault.to_string())),
        };
        SLOT_NAMES.into_iter().map(slot).collect()
    }

    /// Names and sizes of the damaged ranges that were copied aside.
    pub fn damage(&self) -> Result<Vec<(String, u64)>, InspectError> {
        let dir = self.dir.join(crate::file::DAMAGED_DIR);
        let mut names = match self.disk.list(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed(dir.display().to_string()))?,
        };
        names.sort();
        let size = |name: String| {
            let file = self.disk.open(&dir.join(&name), false).and_then(|file| file.len());
            file.map(|bytes| (name.clone(), bytes)).map_err(failed(name))
        };
        names.into_iter().map(size).collect()
    }

    /// Frames of a segment, in order; nothing for a segment that is gone.
    pub fn frames(&self, segment: u64) -> Result<Vec<FrameView>, InspectError> {
        let Some((mut file, view)) = self.open_segment(segment)? else { return Ok(Vec::new()) };
        let mut frames = Vec::new();
        let mut at = SEGMENT_HEADER_BYTES as u64;
        while let Some((frame, damage)) = self.next_frame(&mut file, at, view.file_bytes)? {
            frames.extend(damage.map(|bytes| FrameView::Damage { offset: at, bytes }));
            at = frame.end();
            frames.push(frame_view(&frame));
        }
        Ok(frames)
    }

    /// Channels with their readers and numbers, as of the newest valid record (snapshot or checkpoint).
    pub fn registers(&self) -> Result<Option<Registers>, InspectError> {
        let slots = self.snapshots().into_iter().filter_map(|(_, slot)| slot.ok()).map(|slot| slot.registers);
        let checkpoints = self.segments()?.into_iter().filter_map(|segment| segment.checkpoint);
        Ok(checkpoints.chain(slots).max_by_key(|registers| registers.last_commit))
    }

    /// Channels and positions as of the last commit: the newest checkpoint, and what was committed after it. Of a live journal the
    /// last commits may not be durable yet.
    pub fn present(&self) -> Result<Registers, InspectError> {
        let segments = self.segments()?;
        let newest = segments.iter().rposition(|segment| segment.checkpoint.is_some());
        let mut left = segments.into_iter().skip(newest.unwrap_or_default());
        let Some(SegmentView { id, checkpoint: Some(mut registers), .. }) = left.next() else {
            return Ok(self.registers()?.unwrap_or_default());
        };
        for id in std::iter::once(id).chain(left.map(|segment| segment.id)) {
            for frame in self.frames(id)? {
                if let FrameView::Commit(commit) = frame
                    && commit.commit > registers.last_commit
                {
                    commit.apply_to(&mut registers);
                }
            }
        }
        Ok(registers)
    }

    /// Events of a channel from a cursor on, put by put; what is not there any more is skipped and counted.
    pub fn events(&self, channel: &str, from: u64) -> Result<Events<'_>, InspectError> {
        let registers = self.registers()?.unwrap_or_default();
        if registers.channel(channel).is_none() {
            let known: Vec<&str> = registers.channels.iter().map(|channel| channel.name.as_str()).collect();
            return Err(InspectError::NoChannel { name: channel.into(), known: known.join(", ") });
        }
        let segments = self.segments()?;
        let before = |segment: &SegmentView| {
            let head = segment.checkpoint.as_ref().and_then(|c| c.channels.get(c.channel(channel)?));
            head.is_none_or(|head| head.head <= from)
        };
        let start = segments.iter().rposition(before).unwrap_or_default();
        let mut left: Vec<SegmentView> = segments.into_iter().skip(start).collect();
        left.reverse();
        Ok(Events {
            inspector: self,
            channel: channel.into(),
            cursor: from,
            last_commit: 0,
            left,
            open: None,
        })
    }

    fn segment_ids(&self) -> Result<Vec<u64>, InspectError> {
        let names = self.disk.list(&self.dir).map_err(failed(self.dir.display().to_string()))?;
        let mut ids: Vec<u64> = names.iter().filter_map(|name| segment_id(name)).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// `None`: it disappeared.
    fn open_segment(&self, id: u64) -> Result<Option<(SegmentFile, SegmentView)>, InspectError> {
        let mut file = match SegmentFile::open_tolerant(self.disk.as_ref(), &self.dir, id, None) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed(segment_name(id)))?.with_keys(&self.keys),
        };
        let file_bytes = file.len().map_err(failed(segment_name(id)))?;
        let checkpoint = file.checkpoint(file_bytes).map_err(failed(segment_name(id)))?;
        let header = file.header.ok().map(|(header, _)| header);
        let checkpoint = checkpoint.map(|(registers, _)| registers);
        let key = file.key();
        Ok(Some((file, SegmentView { id, name: segment_name(id), file_bytes, header, checkpoint, key })))
    }

    /// The next valid frame, and the bytes of damage before it.
    fn next_frame(
        &self,
        file: &mut SegmentFile,
        at: u64,
        end: u64,
    ) -> Result<Option<(Frame, Option<u64>)>, InspectError> {
        let name = segment_name(file.id);
        if let Some(frame) = file.frame(at, end, true).map_err(failed(name.clone()))? {
            return Ok(Some((frame, None)));
        }
        let found = file.search(at + 8, end).map_err(failed(name))?;
        Ok(found.map(|frame| {
            let damage = frame.offset - at;
            (frame, Some(damage))
        }))
    }
}

impl CommitView {
    fn apply_to(&self, registers: &mut Registers) {
        let head = CommitHead {
            time_ns: self.time_ns,
            lists_bytes: 0,
            has_state: !self.state.is_empty(),
            puts: self.puts.clone().into(),
            acks: self.acks.clone(),
        };
        registers.apply(self.commit, &head);
        for (key, value) in &self.positions {
            registers.set_position(&key.as_slice().into(), &value.as_slice().into());
        }
    }
}

fn frame_view(frame: &Frame) -> FrameView {
    let (offset, bytes, commit) = (frame.offset, frame.header.frame_bytes(), frame.header.commit);
    let head = if frame.header.kind == Kind::Commit { CommitHead::decode(&frame.head) } else { None };
    let Some(head) = head else { return FrameView::Checkpoint { offset, bytes, commit } };
    let lists = frame.data.as_ref().and_then(|data| decode_lists(data.get(..head.lists_bytes as usize)?));
    let (positions, state) = lists.unwrap_or_default();
    let (durable, time_ns) = (frame.header.durable, head.time_ns);
    let (puts, acks) = (head.puts.into_vec(), head.acks);
    FrameView::Commit(CommitView { offset, bytes, commit, durable, time_ns, puts, acks, positions, state })
}

/// Iterates over the rows of one channel.
pub struct Events<'a> {
    inspector: &'a Inspector,
    channel: String,
    cursor: u64,
    last_commit: u64,
    left: Vec<SegmentView>,
    open: Option<OpenSegment>,
}

struct OpenSegment {
    file: SegmentFile,
    view: SegmentView,
    channel: u32,
    at: u64,
    /// From this commit number on the frames are void: they were written again to a later segment.
    void_from: u64,
}

impl Events<'_> {
    fn advance(&mut self) -> Result<Option<Rows>, InspectError> {
        loop {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => match self.open_next()? {
                    Some(open) => open,
                    None => return Ok(None),
                },
            };
            let Some((frame, _)) =
                self.inspector.next_frame(&mut open.file, open.at, open.view.file_bytes)?
            else {
                continue;
            };
            let repeated = frame.header.commit < self.last_commit;
            if frame.header.kind != Kind::Commit || frame.header.commit >= open.void_from || repeated {
                open.at = frame.end();
                self.open = Some(open);
                continue;
            }
            self.last_commit = frame.header.commit;
            let rows = self.rows(&frame, open.channel);
            if rows.is_none() {
                open.at = frame.end();
            }
            self.open = Some(open);
            if rows.is_some() {
                return Ok(rows);
            }
        }
    }

    fn open_next(&mut self) -> Result<Option<OpenSegment>, InspectError> {
        while let Some(view) = self.left.pop() {
            let later = self.left.iter().filter_map(|view| view.header.map(|header| header.first_commit));
            let void_from = later.min().unwrap_or(u64::MAX);
            let channel = view.checkpoint.as_ref().and_then(|c| c.channel(&self.channel));
            let (Some(channel), Some((file, view))) = (channel, self.inspector.open_segment(view.id)?) else {
                continue;
            };
            let at = SEGMENT_HEADER_BYTES as u64;
            return Ok(Some(OpenSegment { file, view, channel: channel as u32, at, void_from }));
        }
        Ok(None)
    }

    /// The next rows of the channel in this frame.
    fn rows(&mut self, frame: &Frame, channel: u32) -> Option<Rows> {
        let head = CommitHead::decode(&frame.head)?;
        let parts = head.puts.iter().flat_map(|put| put.channels.iter().map(move |part| (put, part)));
        let mut wanted = parts.filter(|(_, part)| part.channel == channel);
        wanted.find_map(|(put, part)| {
            let skip = self.cursor.saturating_sub(part.first);
            if skip >= u64::from(put.rows) || put.data_bytes == 0 {
                return None;
            }
            let batch = frame.batch(put)?;
            let batch = batch.slice(usize::try_from(skip).ok()?, batch.rows());
            let first = part.first + skip;
            let missing_before = first.saturating_sub(self.cursor);
            self.cursor = first + batch.rows() as u64;
            Some(Rows { first, time_ns: head.time_ns, batch, missing_before })
        })
    }
}

impl Iterator for Events<'_> {
    type Item = Result<Rows, InspectError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}
