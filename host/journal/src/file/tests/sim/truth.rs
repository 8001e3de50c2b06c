//! The journal as it should be: what was handed in, and what follows from it.

use std::collections::{BTreeMap, BTreeSet};

use super::super::basic::{A, B, R0, R1, batch};

use crate::{Ack, ChannelId, Commit, Put, ReaderId, StateOp, StateWrites};

/// Readers that are always there, and at [`LATE`] one that comes and goes.
pub const READERS: [(ChannelId, ReaderId); 4] = [(A, R0), (A, R1), (B, R0), (A, ReaderId(2))];

/// The one of [`READERS`] that comes and goes.
pub const LATE: usize = 3;

/// Commits that carry different marks: more are never on their way at once.
const MARKS: u64 = 64;

/// One commit as it was handed in.
#[derive(Debug, Clone, Default)]
pub struct Op {
    /// Its place among all that were ever handed in; each commit leaves it at a position of its own.
    pub serial: u64,
    /// Channels (bits), first event, events, bytes of each.
    pub put: Option<(u8, u64, u64, usize)>,
    /// Which of [`READERS`], its cursor.
    pub ack: Option<(usize, u64)>,
    pub position: Option<(u8, u8)>,
    /// Plugin, first key, keys, value: 0 removes, 254 has expired already.
    pub remember: Option<(u8, u8, u8, u8)>,
}

/// Key of a commit's mark.
fn mark(serial: u64) -> Vec<u8> {
    vec![b'm', (serial % MARKS) as u8]
}

/// The commit that left a mark.
pub fn serial_of(positions: &[(Vec<u8>, Vec<u8>)]) -> Option<u64> {
    let (_, value) = positions.iter().find(|(key, _)| key.first() == Some(&b'm'))?;
    Some(u64::from_le_bytes(value.as_slice().try_into().ok()?))
}

pub fn plugin_name(plugin: u8) -> &'static str {
    ["dedup", "windows"][usize::from(plugin)]
}

impl Op {
    /// On a full disk it may pass those that wait.
    pub fn may_overtake(&self) -> bool {
        self.ack.is_some()
    }

    /// Both change the same.
    pub fn conflicts(&self, other: &Op) -> bool {
        let mask = |op: &Op| op.put.map(|put| put.0).unwrap_or_default();
        let reader = |op: &Op| op.ack.map(|ack| ack.0);
        let key = |op: &Op| op.position.map(|position| position.0);
        let keys = |op: &Op| -> BTreeSet<(u8, u8)> {
            let (plugin, first, count, _) = op.remember.unwrap_or_default();
            (first..first + count).map(|key| (plugin, key)).collect()
        };
        mask(self) & mask(other) != 0
            || (reader(self).is_some() && reader(self) == reader(other))
            || (key(self).is_some() && key(self) == key(other))
            || !keys(self).is_disjoint(&keys(other))
    }

    pub fn channels(&self) -> Vec<ChannelId> {
        let mask = self.put.map(|put| put.0).unwrap_or_default();
        [A, B].into_iter().filter(|id| mask & (1 << id.0) != 0).collect()
    }

    /// Whether the journal's positions say that it is there.
    pub fn left_its_mark(&self, positions: &BTreeMap<Vec<u8>, Vec<u8>>) -> bool {
        positions.get(&mark(self.serial)).is_some_and(|value| *value == self.serial.to_le_bytes())
    }

    pub fn commit(&self) -> Commit {
        let mut commit = Commit::default();
        commit.positions.push((mark(self.serial), self.serial.to_le_bytes().to_vec()));
        if let Some((_, first, rows, size)) = self.put {
            commit.puts.push(Put { channels: self.channels(), batch: batch(first, rows, size) });
        }
        if let Some((which, cursor)) = self.ack {
            let (channel, reader) = READERS[which];
            commit.acks.push(Ack { channel, reader, cursor });
        }
        if let Some((key, value)) = self.position {
            commit.positions.push((vec![key], if value == 0 { Vec::new() } else { vec![value; 20] }));
        }
        if let Some((plugin, first, count, value)) = self.remember {
            let mut writes = StateWrites::new(plugin_name(plugin).into());
            let bytes = vec![value; usize::from(value)];
            for key in first..first + count {
                let expiry = (value == 254).then_some(1);
                let value = (value != 0).then_some(bytes.as_slice());
                writes.push(StateOp { key: &[key; 20], value, expiry });
            }
            commit.state.push(writes);
        }
        commit
    }
}

/// What a journal says after some commits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Truth {
    /// Events, and the commit that each came with.
    pub channels: [Vec<(u64, u64)>; 2],
    pub cursors: [u64; 4],
    pub positions: BTreeMap<Vec<u8>, Vec<u8>>,
    pub state: BTreeMap<(u8, u8), Vec<u8>>,
}

impl Truth {
    pub fn apply(&mut self, op: &Op) {
        if let Some((_, first, rows, _)) = op.put {
            for channel in op.channels() {
                let events = (first..first + rows).map(|event| (event, op.serial));
                self.channels[usize::from(channel.0)].extend(events);
            }
        }
        self.apply_registers(op);
    }

    fn apply_registers(&mut self, op: &Op) {
        if let Some((which, cursor)) = op.ack {
            self.cursors[which] = self.cursors[which].max(cursor);
        }
        self.positions.insert(mark(op.serial), op.serial.to_le_bytes().to_vec());
        match op.position {
            Some((key, 0)) => drop(self.positions.remove(&vec![key])),
            Some((key, value)) => drop(self.positions.insert(vec![key], vec![value; 20])),
            None => {}
        }
        if let Some((plugin, first, count, value)) = op.remember {
            for key in first..first + count {
                match value {
                    0 | 254 => self.state.remove(&(plugin, key)),
                    _ => self.state.insert((plugin, key), vec![value; usize::from(value)]),
                };
            }
        }
    }

    /// After these commits; of those that are lost, nothing is known but that their events had numbers.
    pub fn without(log: &[Op], lost: &BTreeSet<u64>) -> Truth {
        let mut truth = Truth::default();
        for op in log {
            if !lost.contains(&op.serial) {
                truth.apply_registers(op);
            }
        }
        truth
    }
}
