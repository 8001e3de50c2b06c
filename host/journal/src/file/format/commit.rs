//! The payload of a commit frame.
//!
//! ```text
//! head
//!   0  4  puts
//!   4  4  acks
//!   8  8  when, ns since the Unix epoch
//!  16  4  bytes of the lists at the start of the data (without padding)
//!  20  4  flags: 1 plugin state was written
//!   per put:  u16 channels, u8 compression (0 none, 1 LZ4, 2 Zstandard), u8 zero, u32 rows, u64 offset of the
//!             batch in the data, u64 its bytes there (0: kept by no channel), u64 bytes that count in a
//!             channel's capacity;
//!             per channel: u32 index, u32 zero, u64 number of the first event, u64 bytes ever put before
//!   per ack:  u16 channel, u16 reader, u32 zero, u64 cursor, u64 bytes ever put before the cursor,
//!             u64 segment and u64 offset of a frame at or before the one that holds the cursor
//! data
//!   lists:    u32 positions, per position: blob key, blob value (empty: removed);
//!             u32 state writes, per write: blob plugin, blob key, u8 flags (1 value, 2 expiry),
//!             i64 expiry, blob value;   blob: u32 length, bytes
//!   padding to 8, then the batches (see `flumen_event::layout`; compressed ones: [`super::packed`])
//! ```
//! Channel and reader indexes are those of the checkpoint of the same segment.

use smallvec::SmallVec;

use super::packed::Compression;
use super::wire::{Fields, put_blob};
use crate::state::{StateWrite, StateWrites, decode_op, encode_op};

/// A frame's place: segment id and offset in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Location {
    /// Segment id.
    pub segment: u64,
    /// Offset of the frame in it.
    pub offset: u64,
}

/// One channel's part in a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutChannel {
    /// Index of the channel.
    pub channel: u32,
    /// Number of the put's first event in the channel.
    pub first: u64,
    /// Bytes ever put to the channel before.
    pub bytes_before: u64,
}

/// A put, without its batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutHead {
    /// Its channels.
    pub channels: SmallVec<[PutChannel; 1]>,
    /// Events.
    pub rows: u32,
    /// Where the batch begins in the data.
    pub data_offset: u64,
    /// Its bytes there; zero when no channel keeps it.
    pub data_bytes: u64,
    /// How they are compressed.
    pub compression: Compression,
    /// What it counts in a channel's capacity.
    pub bytes: u64,
}

/// An acknowledgement as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckRecord {
    /// Index of the channel.
    pub channel: u16,
    /// Index of the reader.
    pub reader: u16,
    /// Events finished with.
    pub cursor: u64,
    /// Their bytes.
    pub bytes: u64,
    /// A frame at or before the one that holds the cursor.
    pub location: Location,
}

/// The head of a commit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommitHead {
    /// Puts: one, nearly always.
    pub puts: SmallVec<[PutHead; 1]>,
    /// Acks.
    pub acks: Vec<AckRecord>,
    /// Nanoseconds since the Unix epoch.
    pub time_ns: i64,
    /// Bytes of the lists.
    pub lists_bytes: u32,
    /// Plugin state was written.
    pub has_state: bool,
}

impl CommitHead {
    /// Bytes that `encode` appends.
    pub fn encoded_bytes(&self) -> u64 {
        let parts: usize = self.puts.iter().map(|put| put.channels.len()).sum();
        (24 + self.puts.len() * 32 + parts * 24 + self.acks.len() * 40) as u64
    }

    /// Appends the head; its length is a multiple of 8.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.puts.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.acks.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.time_ns.to_le_bytes());
        out.extend_from_slice(&self.lists_bytes.to_le_bytes());
        out.extend_from_slice(&u32::from(self.has_state).to_le_bytes());
        for put in &self.puts {
            out.extend_from_slice(&(put.channels.len() as u16).to_le_bytes());
            out.extend_from_slice(&[put.compression.number(), 0]);
            out.extend_from_slice(&put.rows.to_le_bytes());
            for number in [put.data_offset, put.data_bytes, put.bytes] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            for channel in &put.channels {
                out.extend_from_slice(&u64::from(channel.channel).to_le_bytes());
                out.extend_from_slice(&channel.first.to_le_bytes());
                out.extend_from_slice(&channel.bytes_before.to_le_bytes());
            }
        }
        for ack in &self.acks {
            out.extend_from_slice(&ack.channel.to_le_bytes());
            out.extend_from_slice(&ack.reader.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            for number in [ack.cursor, ack.bytes, ack.location.segment, ack.location.offset] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
    }

    /// The head; `None` if the bytes are not exactly one.
    pub fn decode(bytes: &[u8]) -> Option<CommitHead> {
        let mut fields = Fields::new(bytes);
        let (puts, acks) = (fields.u32()? as usize, fields.u32()? as usize);
        let time_ns = fields.i64()?;
        let lists_bytes = fields.u32()?;
        let flags = fields.u32()?;
        if flags > 1 || puts.checked_mul(32)?.checked_add(acks.checked_mul(40)?)? > bytes.len() {
            return None;
        }
        let puts = (0..puts).map(|_| decode_put(&mut fields)).collect::<Option<SmallVec<_>>>()?;
        let acks = (0..acks).map(|_| decode_ack(&mut fields)).collect::<Option<Vec<_>>>()?;
        let head = CommitHead { puts, acks, time_ns, lists_bytes, has_state: flags == 1 };
        fields.is_empty().then_some(head)
    }
}

fn decode_put(fields: &mut Fields<'_>) -> Option<PutHead> {
    let channels = fields.u16()?;
    let (compression, zero) = (Compression::of(fields.u8()?)?, fields.u8()?);
    let rows = fields.u32()?;
    let (data_offset, data_bytes, bytes) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let channels = (0..channels)
        .map(|_| {
            let channel = u32::try_from(fields.u64()?).ok()?;
            Some(PutChannel { channel, first: fields.u64()?, bytes_before: fields.u64()? })
        })
        .collect::<Option<SmallVec<_>>>()?;
    (zero == 0).then_some(PutHead { channels, rows, data_offset, data_bytes, compression, bytes })
}

fn decode_ack(fields: &mut Fields<'_>) -> Option<AckRecord> {
    let (channel, reader, zero) = (fields.u16()?, fields.u16()?, fields.u32()?);
    let (cursor, bytes) = (fields.u64()?, fields.u64()?);
    let location = Location { segment: fields.u64()?, offset: fields.u64()? };
    (zero == 0).then_some(AckRecord { channel, reader, cursor, bytes, location })
}

/// Appends positions and state writes, without padding.
pub fn encode_lists(positions: &[(Vec<u8>, Vec<u8>)], state: &[StateWrites], out: &mut Vec<u8>) {
    out.extend_from_slice(&(positions.len() as u32).to_le_bytes());
    for (key, value) in positions {
        put_blob(out, key);
        put_blob(out, value);
    }
    let count: u32 = state.iter().map(StateWrites::len).sum();
    out.extend_from_slice(&count.to_le_bytes());
    for writes in state {
        for op in writes.iter() {
            put_blob(out, writes.plugin().as_bytes());
            encode_op(op, out);
        }
    }
}

/// Positions by key, then state writes.
pub type Lists = (Vec<(Vec<u8>, Vec<u8>)>, Vec<StateWrite>);

/// Positions and state writes; `None` if the bytes are not exactly those.
pub fn decode_lists(bytes: &[u8]) -> Option<Lists> {
    let mut fields = Fields::new(bytes);
    let positions = fields.count(8)?;
    let positions = (0..positions)
        .map(|_| Some((fields.blob()?.to_vec(), fields.blob()?.to_vec())))
        .collect::<Option<Vec<_>>>()?;
    let writes = fields.count(21)?;
    let writes = (0..writes)
        .map(|_| {
            let plugin = fields.text()?.to_string();
            let op = decode_op(&mut fields)?;
            let (key, value) = (op.key.to_vec(), op.value.map(<[u8]>::to_vec));
            Some(StateWrite { plugin, key, value, expiry: op.expiry })
        })
        .collect::<Option<Vec<_>>>()?;
    fields.is_empty().then_some((positions, writes))
}
