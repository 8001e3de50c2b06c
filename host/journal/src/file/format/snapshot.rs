//! The two snapshot slots, `snapshot.a` and `snapshot.b`, written in turn: a torn write costs one of them.
//!
//! ```text
//! offset size
//!      0    8  "FLUMENSN"
//!      8    1  version
//!      9    1  1: the payload is encrypted ([`super::sealed`])
//!     10    2  zero
//!     12    4  payload bytes
//!     16    8  generation: the higher of two valid slots is the newer
//!     24   16  journal id
//!     40   16  zero
//!     56    4  CRC-32C of the payload
//!     60    4  CRC-32C of bytes 0..60
//!     64    .  payload: registers; u64 scan segment, u64 scan offset, u32 CRC of the frame before it;
//!              u64 highest commit ever found or known durable; u64 next segment id;
//!              u32 segments, per segment: u64 id, u64 first commit, i64 created ns, u64 end of its frames,
//!              u32 channels, per channel of the registers: u64 events and u64 bytes put before the segment;
//!              from version 2 on u8 1 if the segment is encrypted, and then 16 bytes id and u64 fingerprint of its key
//! ```

use std::io;

use super::VERSION;
use super::commit::Location;
use super::registers::Registers;
use super::sealed::{Opener, Piece, Sealer};
use super::segment::HeaderFault;
use super::wire::Fields;
use crate::keys::{KeyError, KeyId, KeyName, Keys};
use crate::limits;

/// Bytes before the payload.
pub const SNAPSHOT_HEADER_BYTES: usize = 64;

/// The slots' file names.
pub const SLOT_NAMES: [&str; 2] = ["snapshot.a", "snapshot.b"];

const MAGIC: &[u8; 8] = b"FLUMENSN";

/// What is known of a segment without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its id.
    pub id: u64,
    /// Number of the first commit that it may hold.
    pub first_commit: u64,
    /// Nanoseconds since the Unix epoch.
    pub created_ns: i64,
    /// Where its frames end. Of the active segment: as of the last durable commit.
    pub end: u64,
    /// Per channel: events and bytes ever put before this segment (a lower bound if its checkpoint is damaged).
    pub heads: Vec<(u64, u64)>,
    /// The key of its frames, if they are encrypted.
    pub key: Option<KeyName>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The higher one is the newer.
    pub generation: u64,
    /// Of which journal.
    pub journal: u128,
    /// State as of `registers.last_commit`.
    pub registers: Registers,
    /// Frames from here on are not in the registers. Offset 0: from the start of that segment, if it is there.
    pub scan: Location,
    /// Header CRC of the frame before `scan`.
    pub scan_crc: u32,
    /// All commits up to this one were durable; new ones get higher numbers.
    pub durable: u64,
    /// Segment ids from here on were never used.
    pub next_segment: u64,
    /// The segments.
    pub segments: Vec<SegmentInfo>,
}

impl Snapshot {
    /// The slot's bytes.
    pub fn encode(&self) -> Vec<u8> {
        self.framed(self.payload(), false)
    }

    /// The slot's bytes, encrypted.
    pub fn encode_sealed(&self, sealer: &Sealer) -> io::Result<Vec<u8>> {
        let payload = self.payload();
        let sealed = sealer.seal(Piece::Snapshot, payload.len(), [payload.as_slice()])?;
        Ok(self.framed(sealed, true))
    }

    fn payload(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        self.registers.encode(&mut payload);
        payload.extend_from_slice(&self.scan.segment.to_le_bytes());
        payload.extend_from_slice(&self.scan.offset.to_le_bytes());
        payload.extend_from_slice(&self.scan_crc.to_le_bytes());
        payload.extend_from_slice(&self.durable.to_le_bytes());
        payload.extend_from_slice(&self.next_segment.to_le_bytes());
        payload.extend_from_slice(&(self.segments.len() as u32).to_le_bytes());
        for segment in &self.segments {
            payload.extend_from_slice(&segment.id.to_le_bytes());
            payload.extend_from_slice(&segment.first_commit.to_le_bytes());
            payload.extend_from_slice(&segment.created_ns.to_le_bytes());
            payload.extend_from_slice(&segment.end.to_le_bytes());
            payload.extend_from_slice(&(segment.heads.len() as u32).to_le_bytes());
            for (events, bytes) in &segment.heads {
                payload.extend_from_slice(&events.to_le_bytes());
                payload.extend_from_slice(&bytes.to_le_bytes());
            }
            payload.push(u8::from(segment.key.is_some()));
            if let Some(key) = segment.key {
                payload.extend_from_slice(key.id.bytes());
                payload.extend_from_slice(&key.fingerprint.to_le_bytes());
            }
        }
        payload
    }

    fn framed(&self, payload: Vec<u8>, is_sealed: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(SNAPSHOT_HEADER_BYTES + payload.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[VERSION, u8::from(is_sealed), 0, 0]);
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.journal.to_le_bytes());
        out.extend_from_slice(&[0; 16]);
        out.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&payload);
        out
    }

    /// The snapshot in a slot's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Snapshot, HeaderFault> {
        Self::decode_with(bytes, &Keys::default())
    }

    /// The snapshot in a slot's bytes, which may be encrypted.
    pub fn decode_with(bytes: &[u8], keys: &Keys) -> Result<Snapshot, HeaderFault> {
        let version = Self::version(bytes).ok_or(HeaderFault::Invalid)?;
        if version > VERSION {
            return Err(HeaderFault::Newer(version));
        }
        Self::fields(bytes, version, keys)?.ok_or(HeaderFault::Invalid)
    }

    /// The generation of a slot whose header is valid.
    pub fn generation(bytes: &[u8]) -> Option<u64> {
        Self::version(bytes).and_then(|_| Fields::new(bytes.get(16..)?).u64())
    }

    fn version(bytes: &[u8]) -> Option<u8> {
        let covered = bytes.get(..SNAPSHOT_HEADER_BYTES - 4)?;
        let crc = Fields::new(bytes.get(SNAPSHOT_HEADER_BYTES - 4..)?).u32()?;
        let mut fields = Fields::new(bytes);
        let magic = fields.bytes(8)? == MAGIC;
        let version = fields.u8()?;
        (magic && version != 0 && crc == crc32c::crc32c(covered)).then_some(version)
    }

    fn fields(bytes: &[u8], version: u8, keys: &Keys) -> Result<Option<Snapshot>, KeyError> {
        let Some((head, payload)) = Self::envelope(bytes) else { return Ok(None) };
        if !head.is_sealed {
            return Ok(Self::decode_payload(&head, payload, version));
        }
        let opened = Opener::new(keys).open(Piece::Snapshot, head.journal as u64, payload)?;
        Ok(opened.and_then(|payload| Self::decode_payload(&head, &payload, version)))
    }

    fn envelope(bytes: &[u8]) -> Option<(Head, &[u8])> {
        let mut header = Fields::new(bytes);
        header.bytes(9)?;
        let (sealed, zero) = (header.u8()?, header.u16()?);
        let payload_bytes = header.u32()? as usize;
        let (generation, journal) = (header.u64()?, header.u128()?);
        header.bytes(16)?;
        let payload_crc = header.u32()?;
        header.u32()?;
        let payload = header.bytes(payload_bytes)?;
        let is_sound = payload_bytes as u64 <= limits::RECORD_BYTES_MAX
            && crc32c::crc32c(payload) == payload_crc
            && (sealed <= 1 && zero == 0);
        is_sound.then_some((Head { generation, journal, is_sealed: sealed == 1 }, payload))
    }

    fn decode_payload(head: &Head, payload: &[u8], version: u8) -> Option<Snapshot> {
        let Head { generation, journal, .. } = *head;
        let mut fields = Fields::new(payload);
        let registers = Registers::decode(&mut fields)?;
        let scan = Location { segment: fields.u64()?, offset: fields.u64()? };
        let scan_crc = fields.u32()?;
        let (durable, next_segment) = (fields.u64()?, fields.u64()?);
        let segments = fields.count(36)?;
        let segments =
            (0..segments).map(|_| decode_segment(&mut fields, version)).collect::<Option<Vec<_>>>()?;
        let snapshot =
            Snapshot { generation, journal, registers, scan, scan_crc, durable, next_segment, segments };
        fields.is_empty().then_some(snapshot)
    }
}

/// What stands before the payload.
struct Head {
    generation: u64,
    journal: u128,
    is_sealed: bool,
}

fn decode_segment(fields: &mut Fields<'_>, version: u8) -> Option<SegmentInfo> {
    let (id, first_commit, created_ns, end) = (fields.u64()?, fields.u64()?, fields.i64()?, fields.u64()?);
    let heads = fields.count(16)?;
    let heads = (0..heads).map(|_| Some((fields.u64()?, fields.u64()?))).collect::<Option<Vec<_>>>()?;
    let is_sealed = if version > 1 { fields.u8()? } else { 0 };
    let key = match is_sealed {
        0 => None,
        1 => Some(KeyName {
            id: KeyId::of_bytes(fields.bytes(16)?.try_into().ok()?)?,
            fingerprint: fields.u64()?,
        }),
        _ => return None,
    };
    Some(SegmentInfo { id, first_commit, created_ns, end, heads, key })
}
