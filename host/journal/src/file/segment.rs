//! One segment file, read: frames by offset, and the search for the next valid one behind damage.
//!
//! Constraints: reads in chunks into 8-byte aligned memory, never past the `end` that the caller names
//! (bytes behind it may still be changing). A chunk begins with a frame: who reads frames in order reads each byte once, but for
//! the beginning of a frame that a chunk ends in, and keeps one chunk in memory. A frame is handed out only when all its CRCs are
//! right. Data that cannot be decrypted with the keys that were given are an error ([`crate::KeyError`]), never damage.

use std::io;
use std::path::Path;

use arrow_buffer::{Buffer, MutableBuffer};
use flumen_event::{Batch, layout};

use super::format::commit::PutHead;
use super::format::frame::{FRAME_HEADER_BYTES, FrameHeader, Kind, MAGIC};
use super::format::packed;
use super::format::registers::Registers;
use super::format::sealed::{Opener, Piece};
use super::format::segment::{HeaderFault, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::format::wire::Fields;
use crate::disk::{Disk, DiskFile, read_again, try_again};
use crate::keys::{KeyName, Keys};
use crate::limits;

/// What is given up around a place that the disk cannot read: what the system reads at once.
const PAGE_BYTES: u64 = 4096;

/// The file name of a segment.
pub fn segment_name(id: u64) -> String {
    format!("{id:016x}.seg")
}

/// The id in a segment's file name.
pub fn segment_id(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// A valid frame.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Its place in the segment.
    pub offset: u64,
    /// Its header.
    pub header: FrameHeader,
    /// The header's CRC.
    pub crc: u32,
    /// Its head.
    pub head: Buffer,
    /// Its data, if they were asked for.
    pub data: Option<Buffer>,
}

impl Frame {
    /// Where the next frame begins.
    pub fn end(&self) -> u64 {
        self.offset + self.header.frame_bytes()
    }

    /// The registers in a checkpoint.
    pub fn registers(&self) -> Option<Registers> {
        let data = self.data.as_ref().filter(|_| self.header.kind == Kind::Checkpoint)?;
        Registers::decode(&mut Fields::new(data))
    }

    /// The batch of a put of this commit; `None` if its data were not read, or are none.
    pub fn batch(&self, put: &PutHead) -> Option<Batch> {
        let data = self.data.as_ref()?;
        let (at, bytes) = (usize::try_from(put.data_offset).ok()?, usize::try_from(put.data_bytes).ok()?);
        let is_inside = bytes > 0 && at.checked_add(bytes)? <= data.len();
        let stored = is_inside.then(|| data.slice_with_length(at, bytes))?;
        let batch = layout::decode(packed::unpack(put.compression, stored)?).ok()?;
        (batch.rows() == put.rows as usize).then_some(batch)
    }
}

/// An open segment file.
pub struct SegmentFile {
    file: Box<dyn DiskFile>,
    /// Its id, from the name.
    pub id: u64,
    /// Its header, and the header's CRC.
    pub header: Result<(SegmentHeader, u32), HeaderFault>,
    journal_low: u64,
    opener: Opener,
    chunk: Buffer,
    chunk_offset: u64,
    tolerant: bool,
    /// Behind the last place that the disk could not read.
    unreadable_until: u64,
}

#[allow(clippy::len_without_is_empty, reason = "a length that has to be asked for, and may fail")]
impl SegmentFile {
    /// Opens a segment of a journal; a damaged header is not an error here.
    pub fn open(disk: &dyn Disk, dir: &Path, id: u64, journal_low: Option<u64>) -> io::Result<SegmentFile> {
        SegmentFile::open_file(disk.open(&dir.join(segment_name(id)), false)?, id, journal_low, false)
    }

    /// As [`SegmentFile::open`], but what the disk cannot read counts as damage, not as an error.
    pub fn open_tolerant(
        disk: &dyn Disk,
        dir: &Path,
        id: u64,
        journal_low: Option<u64>,
    ) -> io::Result<SegmentFile> {
        let path = dir.join(segment_name(id));
        SegmentFile::open_file(try_again(|| disk.open(&path, false))?, id, journal_low, true)
    }

    fn open_file(
        file: Box<dyn DiskFile>,
        id: u64,
        journal_low: Option<u64>,
        tolerant: bool,
    ) -> io::Result<SegmentFile> {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let (header, chunk) = (Err(HeaderFault::Invalid), Buffer::from_vec(Vec::<u8>::new()));
        let journal_low = journal_low.unwrap_or_default();
        let mut segment = SegmentFile {
            file,
            id,
            header,
            journal_low,
            opener: Opener::new(&Keys::default()),
            chunk,
            chunk_offset: 0,
            tolerant,
            unreadable_until: 0,
        };
        match segment.file.read_at(0, &mut bytes) {
            Err(_) if tolerant => drop(segment.read_around_bad_pages(0, &mut bytes)),
            other => drop(other?),
        }
        segment.header = match SegmentHeader::decode(&bytes) {
            Ok((header, _)) if header.segment != id => Err(HeaderFault::Invalid),
            other => other,
        };
        if let (Ok((header, _)), 0) = (&segment.header, journal_low) {
            segment.journal_low = header.journal as u64;
        }
        Ok(segment)
    }

    /// With these keys for what is encrypted.
    pub fn with_keys(mut self, keys: &Keys) -> SegmentFile {
        self.opener = Opener::new(keys);
        self
    }

    /// The key of the frames that were read, if they are encrypted: a segment has one.
    pub fn key(&self) -> Option<KeyName> {
        self.opener.name()
    }

    /// Length of the file.
    pub fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    /// True when the header is valid and of the journal with that id.
    pub fn is_of(&self, journal: u128) -> bool {
        matches!(self.header, Ok((header, _)) if header.journal == journal)
    }

    /// Bytes of the file as they are, for copying aside.
    pub fn raw(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, into)
    }

    /// The valid frame at `offset`, or `None`. With `with_data` the data are read and checked as well.
    pub fn frame(&mut self, offset: u64, end: u64, with_data: bool) -> io::Result<Option<Frame>> {
        let Some(header) = self.read(offset, FRAME_HEADER_BYTES as u64, end)? else { return Ok(None) };
        let Some((header, crc)) = FrameHeader::decode(&header) else { return Ok(None) };
        if header.segment != self.id || header.journal != self.journal_low {
            return Ok(None);
        }
        let frame_end = offset.saturating_add(header.frame_bytes());
        if frame_end > end {
            return Ok(None);
        }
        let head_at = offset + FRAME_HEADER_BYTES as u64;
        let bytes = match with_data {
            true => header.frame_bytes(),
            false => FRAME_HEADER_BYTES as u64 + u64::from(header.head_bytes),
        };
        self.fetch(offset, bytes, end)?;
        let Some(head) = self.read(head_at, u64::from(header.head_bytes), end)? else { return Ok(None) };
        if crc32c::crc32c(&head) != header.head_crc {
            return Ok(None);
        }
        let mut frame = Frame { offset, header, crc, head, data: None };
        Ok(if !with_data || self.load(&mut frame, end)? { Some(frame) } else { None })
    }

    /// Reads the data of a frame; false when they are damaged.
    pub fn load(&mut self, frame: &mut Frame, end: u64) -> io::Result<bool> {
        let at = frame.offset + FRAME_HEADER_BYTES as u64 + u64::from(frame.header.head_bytes);
        self.fetch(frame.offset, frame.header.frame_bytes(), end)?;
        let data = self.read(at, u64::from(frame.header.data_bytes), end)?;
        let data = data.filter(|data| crc32c::crc32c(data) == frame.header.data_crc);
        frame.data = match data {
            Some(sealed) if frame.header.is_sealed => {
                self.opener.open(Piece::Frame, self.journal_low, &sealed).map_err(io::Error::other)?
            }
            data => data,
        };
        Ok(frame.data.is_some())
    }

    /// The first valid frame at or behind `from`, with its data.
    pub fn search(&mut self, from: u64, end: u64) -> io::Result<Option<Frame>> {
        let mut at = from.next_multiple_of(8);
        // A file that lost its end has a part of what was there.
        let end = end.min(self.file.len()?);
        while at + FRAME_HEADER_BYTES as u64 <= end {
            let bytes = (limits::READ_AHEAD_BYTES as u64).min(end - at) / 8 * 8;
            let Some(chunk) = self.read(at, bytes, end)? else { return Ok(None) };
            for (word, candidate) in chunk.chunks_exact(8).zip((at..).step_by(8)) {
                if word.starts_with(MAGIC)
                    && let Some(frame) = self.frame(candidate, end, true)?
                {
                    return Ok(Some(frame));
                }
            }
            at += bytes;
        }
        Ok(None)
    }

    /// The checkpoint that the segment begins with. It names segment and journal itself, so it counts with a damaged header too.
    pub fn checkpoint(&mut self, end: u64) -> io::Result<Option<(Registers, Frame)>> {
        let frame = self.frame(SEGMENT_HEADER_BYTES as u64, end, true)?;
        let frame = frame.filter(|frame| {
            self.header.is_ok_and(|(_, crc)| crc == frame.header.previous_crc) || self.header.is_err()
        });
        Ok(frame.and_then(|frame| Some((frame.registers()?, frame))))
    }

    /// Has the first `bytes` of a frame in memory. A chunk that began within the frame would be given up for its header when the
    /// frame is looked at again, and what is behind it would be read twice.
    fn fetch(&mut self, offset: u64, bytes: u64, end: u64) -> io::Result<()> {
        self.read(offset, bytes, end).map(drop)
    }

    /// Bytes at an offset, from the chunk in memory or the disk; `None` when `end` or the file's end is before.
    fn read(&mut self, offset: u64, bytes: u64, end: u64) -> io::Result<Option<Buffer>> {
        if offset.saturating_add(bytes) > end {
            return Ok(None);
        }
        if let Some(part) = self.cached(offset, bytes) {
            return Ok(Some(part));
        }
        let chunk_end = self.chunk_offset + self.chunk.len() as u64;
        let in_order = !self.chunk.is_empty() && (self.chunk_offset..=chunk_end).contains(&offset);
        let wanted = match bytes {
            large if large > limits::READ_AHEAD_BYTES as u64 / 4 => large + 4096,
            _ if in_order => limits::READ_AHEAD_BYTES as u64,
            small => small.max(limits::READ_FIRST_BYTES as u64),
        };
        let wanted = usize::try_from(wanted.min(end - offset)).unwrap_or(usize::MAX);
        let mut memory = MutableBuffer::from_len_zeroed(wanted);
        let read = match self.file.read_at(offset, memory.as_slice_mut()) {
            Err(_) if self.tolerant => self.read_around_bad_pages(offset, memory.as_slice_mut()),
            other => other?,
        };
        if in_order {
            // What comes is fetched while this is worked on.
            let behind = offset + wanted as u64;
            self.file.will_need(behind, (wanted as u64).min(end.saturating_sub(behind)));
        }
        memory.truncate(read);
        self.chunk = memory.into();
        self.chunk_offset = offset;
        Ok(self.cached(offset, bytes))
    }

    /// From this offset on everything could be read so far.
    pub fn unreadable_until(&self) -> u64 {
        self.unreadable_until
    }

    /// Page by page: one that cannot be read is zeros, which are no frame.
    fn read_around_bad_pages(&mut self, offset: u64, into: &mut [u8]) -> usize {
        let (mut at, mut rest) = (offset, into);
        while !rest.is_empty() {
            let wanted = (PAGE_BYTES - at % PAGE_BYTES).min(rest.len() as u64) as usize;
            let (page, behind) = std::mem::take(&mut rest).split_at_mut(wanted);
            match read_again(self.file.as_ref(), at, page) {
                Ok(read) if read < wanted => return (at - offset) as usize + read,
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(segment = %segment_name(self.id), offset = at, %error, "a page cannot be read");
                    page.fill(0);
                    self.unreadable_until = self.unreadable_until.max(at + wanted as u64);
                }
            }
            (at, rest) = (at + wanted as u64, behind);
        }
        (at - offset) as usize
    }

    fn cached(&self, offset: u64, bytes: u64) -> Option<Buffer> {
        let start = usize::try_from(offset.checked_sub(self.chunk_offset)?).ok()?;
        let bytes = usize::try_from(bytes).ok()?;
        (start.checked_add(bytes)? <= self.chunk.len()).then(|| self.chunk.slice_with_length(start, bytes))
    }
}
