//! Which events behind the quarantine's cursor are gone: replayed or dropped from the middle.
//!
//! A channel is acknowledged from its beginning only. So what leaves it elsewhere is marked in bitmaps, one for
//! [`BLOCK_EVENTS`] events, each a position of the quarantine's journal: key `gone/` and the block's number as 16 hex digits,
//! value 512 bytes, least bit first. The quarantine's bound on events bounds them: 125 KB. When everything before an event
//! is gone, the cursor moves there, and bitmaps behind it are removed.

use std::collections::{BTreeMap, BTreeSet};

/// Events of one bitmap.
pub const BLOCK_EVENTS: u64 = 4_096;
const BLOCK_BYTES: usize = (BLOCK_EVENTS / 8) as usize;

/// The prefix of the keys.
pub const PREFIX: &[u8] = b"gone/";

/// Marks by block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gone(BTreeMap<u64, [u8; BLOCK_BYTES]>);

impl Gone {
    /// As they stand in the journal. What is no bitmap is left out: its events come back, none is lost.
    pub fn read<'a>(positions: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Gone {
        let block = |key: &[u8], value: &[u8]| {
            let block = key.strip_prefix(PREFIX).and_then(|hex| std::str::from_utf8(hex).ok());
            let block = block.and_then(|hex| u64::from_str_radix(hex, 16).ok());
            Some((block?, value.try_into().ok()?))
        };
        Gone(positions.filter_map(|(key, value)| block(key, value)).collect())
    }

    /// Whether an event is gone.
    pub fn contains(&self, number: u64) -> bool {
        let (byte, bit) = place(number);
        let block = self.0.get(&(number / BLOCK_EVENTS));
        block.and_then(|block| block.get(byte)).is_some_and(|byte| byte & bit != 0)
    }

    /// Marks an event.
    pub fn mark(&mut self, number: u64) {
        let (byte, bit) = place(number);
        let block = self.0.entry(number / BLOCK_EVENTS).or_insert([0; BLOCK_BYTES]);
        if let Some(byte) = block.get_mut(byte) {
            *byte |= bit;
        }
    }

    /// The first event from `cursor` on that is not gone, or `head`.
    pub fn first_left(&self, cursor: u64, head: u64) -> u64 {
        let mut at = cursor;
        while at < head {
            match self.0.get(&(at / BLOCK_EVENTS)) {
                None => return at,
                Some(_) if !self.contains(at) => return at,
                Some(_) => at += 1,
            }
        }
        head
    }

    /// Events from `cursor` on that are gone.
    pub fn count_from(&self, cursor: u64) -> u64 {
        let whole =
            |block: &[u8; BLOCK_BYTES]| block.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
        let of = |(number, block): (&u64, &[u8; BLOCK_BYTES])| {
            let first = number * BLOCK_EVENTS;
            match cursor <= first {
                true => whole(block),
                false => {
                    (cursor..first + BLOCK_EVENTS).filter(|number| self.contains(*number)).count() as u64
                }
            }
        };
        self.0.range(cursor / BLOCK_EVENTS..).map(of).sum()
    }

    /// Forgets the blocks that end at or before `cursor`, and says which.
    pub fn forget(&mut self, cursor: u64) -> Vec<u64> {
        let kept = self.0.split_off(&(cursor / BLOCK_EVENTS));
        std::mem::replace(&mut self.0, kept).into_keys().collect()
    }

    /// The positions that make the journal hold these blocks as they are here; a block that is not here is removed.
    pub fn positions(&self, blocks: &BTreeSet<u64>) -> Vec<(Vec<u8>, Vec<u8>)> {
        let key = |block: &u64| [PREFIX, format!("{block:016x}").as_bytes()].concat();
        let value = |block: &u64| self.0.get(block).map_or_else(Vec::new, |block| block.to_vec());
        blocks.iter().map(|block| (key(block), value(block))).collect()
    }
}

fn place(number: u64) -> (usize, u8) {
    let bit = number % BLOCK_EVENTS;
    ((bit / 8) as usize, 1 << (bit % 8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_set_of_numbers(
            marked in proptest::collection::btree_set(0_u64..20_000, 0..200),
            prefix in 0_u64..9_000,
            cursor in 0_u64..20_000,
        ) {
            let marked: BTreeSet<u64> = marked.into_iter().chain(0..prefix).collect();
            let mut gone = Gone::default();
            marked.iter().for_each(|number| gone.mark(*number));
            let blocks: BTreeSet<u64> = marked.iter().map(|number| number / BLOCK_EVENTS).collect();
            let positions = gone.positions(&blocks);
            let read = Gone::read(positions.iter().map(|(key, value)| (key.as_slice(), value.as_slice())));
            prop_assert_eq!(&read, &gone);
            for number in [0, 1, cursor, cursor + 1, 4_095, 4_096, 19_999] {
                prop_assert_eq!(gone.contains(number), marked.contains(&number));
            }
            let left = (cursor..20_000).find(|number| !marked.contains(number)).unwrap_or(20_000);
            prop_assert_eq!(gone.first_left(cursor, 20_000), left);
            prop_assert_eq!(gone.count_from(cursor), marked.range(cursor..).count() as u64);
            let forgotten = gone.forget(cursor);
            prop_assert!(forgotten.iter().all(|block| (block + 1) * BLOCK_EVENTS <= cursor));
            prop_assert_eq!(gone.count_from(cursor), marked.range(cursor..).count() as u64);
        }

        #[test]
        fn any_positions_are_read(key in proptest::collection::vec(any::<u8>(), 0..30), value in proptest::collection::vec(any::<u8>(), 0..600)) {
            let key = [PREFIX, &key].concat();
            Gone::read([(key.as_slice(), value.as_slice())].into_iter());
        }
    }
}
