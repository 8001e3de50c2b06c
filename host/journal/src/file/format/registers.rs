//! The journal's whole small state, as of one commit: what a checkpoint and a snapshot hold.
//!
//! ```text
//! u64 last commit, u64 number of the last commit with plugin state
//! u32 channels, per channel: blob name, u8 live, u64 events ever put, u64 their bytes,
//!     u32 readers, per reader: blob name, u8 live, u64 cursor, u64 bytes before it, u64 segment, u64 offset
//! u32 positions, per position: blob key, blob value
//! ```
//! A channel or reader that is not live is kept for its numbers: it is no longer configured, and goes on
//! from there should it come back.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::commit::{AckRecord, CommitHead, Location};
use super::wire::{Fields, put_blob};

/// How far one reader is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReaderRegister {
    /// Its name.
    pub name: String,
    /// It is configured.
    pub live: bool,
    /// Events finished with.
    pub cursor: u64,
    /// Their bytes.
    pub bytes: u64,
    /// A frame at or before the one that holds the cursor.
    pub location: Location,
}

/// How much was ever put to one channel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChannelRegister {
    /// Its name.
    pub name: String,
    /// It is configured.
    pub live: bool,
    /// Events ever put.
    pub head: u64,
    /// Their bytes.
    pub head_bytes: u64,
    /// Its readers, the configured ones first.
    pub readers: Vec<ReaderRegister>,
}

/// All registers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Registers {
    /// Number of the last commit in them.
    pub last_commit: u64,
    /// Number of the last commit with plugin state.
    pub state_generation: u64,
    /// Channels, the configured ones first, in their order.
    pub channels: Vec<ChannelRegister>,
    /// Positions by key.
    pub positions: BTreeMap<Arc<[u8]>, Arc<[u8]>>,
}

impl ChannelRegister {
    /// The cursor before which no configured reader needs anything; `None` without readers.
    pub fn needed(&self) -> Option<u64> {
        let live = self.readers.iter().filter(|reader| self.live && reader.live);
        live.map(|reader| reader.cursor).min()
    }

    /// Events and bytes that some configured reader has not acknowledged.
    pub fn held(&self) -> (u64, u64) {
        let live = || self.readers.iter().filter(|reader| self.live && reader.live);
        let events = live().map(|reader| self.head.saturating_sub(reader.cursor)).max();
        let bytes = live().map(|reader| self.head_bytes.saturating_sub(reader.bytes)).max();
        match events {
            Some(0) | None => (0, 0),
            Some(events) => (events, bytes.unwrap_or_default()),
        }
    }
}

impl Registers {
    /// Takes over an acknowledgement; an older one changes nothing.
    pub fn acknowledge(&mut self, ack: &AckRecord) {
        let channel = self.channels.get_mut(usize::from(ack.channel));
        let Some(channel) = channel else { return };
        // Only after damage is an acknowledged event unknown: its number is not used again.
        channel.head = channel.head.max(ack.cursor);
        channel.head_bytes = channel.head_bytes.max(ack.bytes);
        if let Some(reader) = channel.readers.get_mut(usize::from(ack.reader))
            && ack.cursor > reader.cursor
        {
            reader.cursor = ack.cursor;
            reader.bytes = ack.bytes.max(reader.bytes);
            reader.location = ack.location.max(reader.location);
        }
    }

    /// Sets or removes a position.
    pub fn set_position(&mut self, key: &Arc<[u8]>, value: &Arc<[u8]>) {
        if value.is_empty() {
            self.positions.remove(key);
        } else {
            self.positions.insert(key.clone(), value.clone());
        }
    }

    /// Takes over the puts and acks of a commit whose indexes are those of these registers.
    pub fn apply(&mut self, commit: u64, head: &CommitHead) {
        self.last_commit = self.last_commit.max(commit);
        if head.has_state {
            self.state_generation = commit;
        }
        self.count(head);
        head.acks.iter().for_each(|ack| self.acknowledge(ack));
    }

    /// Only the numbers that a commit gave to its events: they are not used again.
    pub fn count(&mut self, head: &CommitHead) {
        for put in &head.puts {
            for part in &put.channels {
                if let Some(channel) = self.channels.get_mut(part.channel as usize) {
                    channel.head = channel.head.max(part.first.saturating_add(u64::from(put.rows)));
                    channel.head_bytes = channel.head_bytes.max(part.bytes_before.saturating_add(put.bytes));
                }
            }
        }
    }

    /// CRC-32C of all names in order: equal means that indexes mean the same.
    pub fn names_crc(&self) -> u32 {
        let mut names = Vec::new();
        for channel in &self.channels {
            put_blob(&mut names, channel.name.as_bytes());
            names.extend_from_slice(&(channel.readers.len() as u32).to_le_bytes());
            channel.readers.iter().for_each(|reader| put_blob(&mut names, reader.name.as_bytes()));
        }
        crc32c::crc32c(&names)
    }

    /// Index of a channel by name.
    pub fn channel(&self, name: &str) -> Option<usize> {
        self.channels.iter().position(|channel| channel.name == name)
    }

    /// Appends the registers, without padding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.last_commit.to_le_bytes());
        out.extend_from_slice(&self.state_generation.to_le_bytes());
        out.extend_from_slice(&(self.channels.len() as u32).to_le_bytes());
        for channel in &self.channels {
            put_blob(out, channel.name.as_bytes());
            out.push(u8::from(channel.live));
            out.extend_from_slice(&channel.head.to_le_bytes());
            out.extend_from_slice(&channel.head_bytes.to_le_bytes());
            out.extend_from_slice(&(channel.readers.len() as u32).to_le_bytes());
            for reader in &channel.readers {
                put_blob(out, reader.name.as_bytes());
                out.push(u8::from(reader.live));
                for number in [reader.cursor, reader.bytes, reader.location.segment, reader.location.offset] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
            }
        }
        out.extend_from_slice(&(self.positions.len() as u32).to_le_bytes());
        for (key, value) in &self.positions {
            put_blob(out, key);
            put_blob(out, value);
        }
    }

    /// The registers, and what follows them is left in `fields`.
    pub fn decode(fields: &mut Fields<'_>) -> Option<Registers> {
        let (last_commit, state_generation) = (fields.u64()?, fields.u64()?);
        let channels = fields.count(25)?;
        let channels = (0..channels).map(|_| decode_channel(fields)).collect::<Option<Vec<_>>>()?;
        let positions = fields.count(8)?;
        let positions = (0..positions)
            .map(|_| Some((fields.blob()?.into(), fields.blob()?.into())))
            .collect::<Option<_>>()?;
        Some(Registers { last_commit, state_generation, channels, positions })
    }
}

fn decode_channel(fields: &mut Fields<'_>) -> Option<ChannelRegister> {
    let name = fields.text()?.to_string();
    let (live, head, head_bytes) = (fields.u8()? == 1, fields.u64()?, fields.u64()?);
    let readers = fields.count(37)?;
    let readers = (0..readers)
        .map(|_| {
            Some(ReaderRegister {
                name: fields.text()?.to_string(),
                live: fields.u8()? == 1,
                cursor: fields.u64()?,
                bytes: fields.u64()?,
                location: Location { segment: fields.u64()?, offset: fields.u64()? },
            })
        })
        .collect::<Option<Vec<_>>>()?;
    Some(ChannelRegister { name, live, head, head_bytes, readers })
}
