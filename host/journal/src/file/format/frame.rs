//! The envelope of a commit or a checkpoint.
//!
//! ```text
//! offset size
//!      0    4  "FLMF"
//!      4    1  version
//!      5    1  kind: 1 commit, 2 checkpoint
//!      6    1  1: the data are encrypted ([`super::sealed`])
//!      7    1  zero
//!      8    4  data bytes, a multiple of 8
//!     12    4  head bytes, a multiple of 8
//!     16    8  commit number; of a checkpoint, that of the last commit before it
//!     24    8  highest commit number known to be durable when this was written
//!     32    8  segment id
//!     40    8  low half of the journal id
//!     48    4  header CRC of the frame before, of the segment's header for the first frame
//!     52    4  CRC-32C of the head
//!     56    4  CRC-32C of the data
//!     60    4  header CRC: CRC-32C of bytes 0..60
//!     64    .  head
//!      .    .  data
//! ```
//! The header's CRC covers those of head, data and the frame before, so a frame validates in one
//! place and after one past only. The head says what the frame holds, in a few bytes; the data are the
//! bodies: a reader of one channel skips those of the others without reading them.

use super::VERSION;
use super::wire::Fields;
use crate::limits;

/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 64;

/// What a frame begins with.
pub const MAGIC: &[u8; 4] = b"FLMF";

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One commit.
    Commit,
    /// The journal's registers.
    Checkpoint,
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame holds.
    pub kind: Kind,
    /// Its data are encrypted.
    pub is_sealed: bool,
    /// Bytes of the data.
    pub data_bytes: u32,
    /// Bytes of the head.
    pub head_bytes: u32,
    /// Commit number.
    pub commit: u64,
    /// Highest commit number known to be durable when this was written.
    pub durable: u64,
    /// Segment id.
    pub segment: u64,
    /// Low half of the journal id.
    pub journal: u64,
    /// Header CRC of the frame before.
    pub previous_crc: u32,
    /// CRC of the head.
    pub head_crc: u32,
    /// CRC of the data.
    pub data_crc: u32,
}

impl FrameHeader {
    /// Bytes of the whole frame.
    pub fn frame_bytes(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + u64::from(self.head_bytes) + u64::from(self.data_bytes)
    }

    /// Appends the header; returns its CRC, which the next frame names.
    pub fn encode(&self, out: &mut Vec<u8>) -> u32 {
        let start = out.len();
        out.extend_from_slice(MAGIC);
        let kind = match self.kind {
            Kind::Commit => 1,
            Kind::Checkpoint => 2,
        };
        out.extend_from_slice(&[VERSION, kind, u8::from(self.is_sealed), 0]);
        out.extend_from_slice(&self.data_bytes.to_le_bytes());
        out.extend_from_slice(&self.head_bytes.to_le_bytes());
        for number in [self.commit, self.durable, self.segment, self.journal] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for crc in [self.previous_crc, self.head_crc, self.data_crc] {
            out.extend_from_slice(&crc.to_le_bytes());
        }
        let crc = crc32c::crc32c(out.get(start..).unwrap_or_default());
        out.extend_from_slice(&crc.to_le_bytes());
        crc
    }

    /// The header in the first 64 bytes, and its CRC; `None` if it is not a valid one of this version.
    pub fn decode(bytes: &[u8]) -> Option<(FrameHeader, u32)> {
        let covered = bytes.get(..FRAME_HEADER_BYTES - 4)?;
        let mut fields = Fields::new(bytes);
        if fields.bytes(4)? != MAGIC || !(1..=VERSION).contains(&fields.u8()?) {
            return None;
        }
        let kind = match fields.u8()? {
            1 => Kind::Commit,
            2 => Kind::Checkpoint,
            _ => return None,
        };
        let (sealed, zero) = (fields.u8()?, fields.u8()?);
        let header = FrameHeader {
            kind,
            is_sealed: sealed == 1,
            data_bytes: fields.u32()?,
            head_bytes: fields.u32()?,
            commit: fields.u64()?,
            durable: fields.u64()?,
            segment: fields.u64()?,
            journal: fields.u64()?,
            previous_crc: fields.u32()?,
            head_crc: fields.u32()?,
            data_crc: fields.u32()?,
        };
        let crc = fields.u32()?;
        let aligned = header.data_bytes.is_multiple_of(8) && header.head_bytes.is_multiple_of(8);
        let small = u64::from(header.data_bytes) <= limits::COMMIT_BYTES_MAX
            && u64::from(header.head_bytes) <= limits::RECORD_BYTES_MAX;
        let known = sealed <= 1 && zero == 0;
        (aligned && small && known && crc == crc32c::crc32c(covered)).then_some((header, crc))
    }
}
