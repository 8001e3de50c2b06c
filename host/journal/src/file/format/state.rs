//! A file of the plugins' state, `%016x.state`: everything that was remembered when it was written.
//!
//! ```text
//! header, 64 bytes
//!   0  8  "FLUMENST"
//!   8  1  version
//!   9  1  1: the payloads are encrypted ([`super::sealed`])
//!  10  6  zero
//!  16 16  journal id
//!  32  8  number of a commit: everything up to it is in the file, and nothing that is younger than the file's name
//!  40  8  segment and
//!  48  8  offset in it, at which the commits behind that one begin
//!  56  4  zero
//!  60  4  CRC-32C of bytes 0..60
//! blocks, each a multiple of 8 bytes long
//!   0  4  "STBK", or "STND" for the last block
//!   4  4  payload bytes
//!   8  4  CRC-32C of the payload
//!  12  4  CRC-32C of bytes 0..12, behind the number of the commit
//!  16  .  payload: blob plugin, then writes as in `StateWrites`; of the last block: u64 blocks before it
//! ```
//! A walk over a view that changes meanwhile writes it: an entry may be younger than the commit in the header. So the file
//! counts together with all commits behind that one, and has its name only when they are durable.

use super::VERSION;
use super::commit::Location;
use super::segment::HeaderFault;
use super::wire::{Fields, pad};
use crate::limits;

/// Bytes of the header.
pub const STATE_HEADER_BYTES: usize = 64;

/// Bytes of a block before its payload.
pub const BLOCK_HEADER_BYTES: usize = 16;

const MAGIC: &[u8; 8] = b"FLUMENST";
const BLOCK: &[u8; 4] = b"STBK";
const END: &[u8; 4] = b"STND";

/// The header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateHeader {
    /// Of which journal.
    pub journal: u128,
    /// Everything up to this commit is in the file.
    pub commit: u64,
    /// Where the commits behind it begin.
    pub scan: Location,
    /// The payloads are encrypted.
    pub is_sealed: bool,
}

/// A block's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHeader {
    /// The last one.
    pub is_end: bool,
    /// Bytes of its payload.
    pub payload_bytes: u32,
    /// Their CRC.
    pub payload_crc: u32,
}

impl StateHeader {
    /// The header's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(STATE_HEADER_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[VERSION, u8::from(self.is_sealed), 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&self.journal.to_le_bytes());
        for number in [self.commit, self.scan.segment, self.scan.offset] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&[0; 4]);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header in a file's first bytes.
    pub fn decode(bytes: &[u8]) -> Result<StateHeader, HeaderFault> {
        let fields = || {
            let covered = bytes.get(..STATE_HEADER_BYTES - 4)?;
            let crc = Fields::new(bytes.get(STATE_HEADER_BYTES - 4..)?).u32()?;
            let mut fields = Fields::new(covered);
            let is_magic = fields.bytes(8)? == MAGIC;
            let version = fields.u8()?;
            let is_sealed = fields.u8()? == 1;
            fields.bytes(6)?;
            let journal = fields.u128()?;
            let (commit, segment, offset) = (fields.u64()?, fields.u64()?, fields.u64()?);
            let header = StateHeader { journal, commit, scan: Location { segment, offset }, is_sealed };
            (is_magic && version != 0 && crc == crc32c::crc32c(covered)).then_some((version, header))
        };
        match fields() {
            Some((version, _)) if version > VERSION => Err(HeaderFault::Newer(version)),
            Some((_, header)) => Ok(header),
            None => Err(HeaderFault::Invalid),
        }
    }
}

fn header_crc(covered: &[u8], commit: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&commit.to_le_bytes()), covered)
}

/// Appends a block, padded.
pub fn encode_block(is_end: bool, payload: &[u8], commit: u64, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(if is_end { END } else { BLOCK });
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    let crc = header_crc(out.get(start..).unwrap_or_default(), commit);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(payload);
    pad(out);
}

impl BlockHeader {
    /// The header in these bytes, of a file with this commit; `None` if there is none.
    pub fn decode(bytes: &[u8], commit: u64) -> Option<BlockHeader> {
        let covered = bytes.get(..BLOCK_HEADER_BYTES - 4)?;
        let mut fields = Fields::new(bytes);
        let magic = fields.bytes(4)?;
        let is_end = magic == END;
        let (payload_bytes, payload_crc, crc) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let is_valid = (is_end || magic == BLOCK)
            && crc == header_crc(covered, commit)
            && u64::from(payload_bytes) <= limits::RECORD_BYTES_MAX;
        is_valid.then_some(BlockHeader { is_end, payload_bytes, payload_crc })
    }

    /// Bytes of the whole block.
    pub fn block_bytes(&self) -> u64 {
        BLOCK_HEADER_BYTES as u64 + u64::from(self.payload_bytes).next_multiple_of(8)
    }
}
