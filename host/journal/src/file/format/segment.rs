//! The first 64 bytes of a segment file.
//!
//! ```text
//! offset size
//!      0    8  "FLUMENSG"
//!      8    1  version
//!      9    7  zero
//!     16   16  journal id: random, made with the journal
//!     32    8  segment id, as in the file's name
//!     40    8  number of the first commit that this segment may hold
//!     48    8  when it was made, ns since the Unix epoch
//!     56    4  CRC-32C of the names of channels and readers, which the indexes in its frames refer to
//!     60    4  CRC-32C of bytes 0..60; the chain of the segment's frames begins with it
//! ```

use thiserror::Error;

use super::VERSION;
use super::wire::Fields;
use crate::keys::KeyError;

/// Bytes of the header.
pub const SEGMENT_HEADER_BYTES: usize = 64;

const MAGIC: &[u8; 8] = b"FLUMENSG";

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Of which journal.
    pub journal: u128,
    /// Its number among the journal's segments.
    pub segment: u64,
    /// Frames of earlier segments with this commit number or a higher one are void.
    pub first_commit: u64,
    /// Nanoseconds since the Unix epoch.
    pub created_ns: i64,
    /// See [`super::registers::Registers::names_crc`].
    pub names_crc: u32,
}

/// Why bytes are not a header that this code reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HeaderFault {
    /// No valid header at all.
    #[error("damaged, or cut off while it was written")]
    Invalid,
    /// A valid one, of a newer format.
    #[error("of the newer format {0}")]
    Newer(u8),
    /// A valid one; what is behind it cannot be decrypted with the keys that were given.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl SegmentHeader {
    /// The bytes, and their CRC.
    pub fn encode(&self) -> ([u8; SEGMENT_HEADER_BYTES], u32) {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[VERSION, 0, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&self.journal.to_le_bytes());
        out.extend_from_slice(&self.segment.to_le_bytes());
        out.extend_from_slice(&self.first_commit.to_le_bytes());
        out.extend_from_slice(&self.created_ns.to_le_bytes());
        out.extend_from_slice(&self.names_crc.to_le_bytes());
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes.iter_mut().zip(out).for_each(|(to, from)| *to = from);
        (bytes, crc)
    }

    /// The header in the first 64 bytes, and their CRC.
    pub fn decode(bytes: &[u8]) -> Result<(SegmentHeader, u32), HeaderFault> {
        let read = || {
            let covered = bytes.get(..SEGMENT_HEADER_BYTES - 4)?;
            let mut fields = Fields::new(bytes);
            let magic = fields.bytes(8)? == MAGIC;
            let version = fields.u8()?;
            let zeros = fields.bytes(7)?.iter().all(|byte| *byte == 0);
            let header = SegmentHeader {
                journal: fields.u128()?,
                segment: fields.u64()?,
                first_commit: fields.u64()?,
                created_ns: fields.i64()?,
                names_crc: fields.u32()?,
            };
            let crc = fields.u32()?;
            let sound = magic && crc == crc32c::crc32c(covered);
            (sound && version != 0).then_some((header, crc, version, zeros))
        };
        match read() {
            Some((_, _, version, _)) if version > VERSION => Err(HeaderFault::Newer(version)),
            Some((header, crc, _, true)) => Ok((header, crc)),
            _ => Err(HeaderFault::Invalid),
        }
    }
}
