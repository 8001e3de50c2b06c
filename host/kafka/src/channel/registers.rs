//! Records of `flumen-positions` and `flumen-state`: what an agent's pipeline remembers, in compacted topics that all
//! agents share.
//!
//! ```text
//! key    version 1, kind (c commit, p position, s state), u16 length and agent, u16 length and pipeline, then
//!        p: the position's key      s: u16 length and plugin, the state's key      c: nothing
//! value  c: version 1, u64 session, u64 number of the last group
//!        p: the position            s: u8 (1: an expiry follows), i64 expiry, the state's value
//! ```
//! Little-endian. No value (a tombstone) removes. All records of one agent and pipeline are in one partition, so they
//! are read in the order in which they were written.
//!
//! Which one must not depend on how many partitions there are now: they can be added, and where nothing is found an agent
//! would begin anew. It is one of the first [`limits::REGISTER_PARTITIONS`], with which Flumen makes the topics. Of a topic with
//! another number (somebody made it, or partitions were added) the newest record of one's own tells ([`Owner::find`]). The one case that
//! is not seen is a topic that was made with fewer and has grown to exactly that number.

use std::collections::BTreeSet;

use crate::limits;

const VERSION: u8 = 1;
const COMMIT: u8 = b'c';
const POSITION: u8 = b'p';
const STATE: u8 = b's';
/// Bytes before a state's value.
const STATE_HEAD_BYTES: usize = 9;

/// Whose registers.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    /// Agent and pipeline as they stand in a key.
    name: Vec<u8>,
}

/// Number of the last group of commits that counted, and who wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CommitRecord {
    /// Drawn at random when a journal is opened.
    pub session: u64,
    /// Rises by one with each group.
    pub number: u64,
}

/// A key of one's own, read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key<'a> {
    /// Of the commit record.
    Commit,
    /// Of a position.
    Position(&'a [u8]),
    /// Of what a plugin remembers: its name, and its own key.
    State(&'a str, &'a [u8]),
}

impl Owner {
    pub fn new(agent: &str, pipeline: &str) -> Owner {
        let mut name = Vec::new();
        for part in [agent, pipeline] {
            push_text(&mut name, part);
        }
        Owner { name }
    }

    fn key(&self, kind: u8) -> Vec<u8> {
        let mut key = vec![VERSION, kind];
        key.extend(&self.name);
        key
    }

    pub fn commit_key(&self) -> Vec<u8> {
        self.key(COMMIT)
    }

    pub fn position_key(&self, position: &[u8]) -> Vec<u8> {
        let mut key = self.key(POSITION);
        key.extend(position);
        key
    }

    pub fn state_key(&self, plugin: &str, state: &[u8]) -> Vec<u8> {
        let mut key = self.key(STATE);
        push_text(&mut key, plugin);
        key.extend(state);
        key
    }

    /// `None`: of somebody else, or no such key.
    pub fn own<'a>(&self, key: &'a [u8]) -> Option<Key<'a>> {
        let (head, rest) = key.split_first_chunk::<2>()?;
        let rest = rest.strip_prefix(self.name.as_slice())?;
        match head {
            [VERSION, COMMIT] if rest.is_empty() => Some(Key::Commit),
            [VERSION, POSITION] => Some(Key::Position(rest)),
            [VERSION, STATE] => {
                let (length, rest) = rest.split_first_chunk::<2>()?;
                let (plugin, key) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
                Some(Key::State(std::str::from_utf8(plugin).ok()?, key))
            }
            _ => None,
        }
    }

    /// The partition of all of its records, if nothing is there yet.
    fn partition(&self, partitions: i32) -> i32 {
        self.spread(partitions.min(limits::REGISTER_PARTITIONS))
    }

    /// The partition where its records are. `newest`: the time of its newest record in one, which is a question to the
    /// brokers: it is not asked of a topic as Flumen makes it, and elsewhere the likely ones come first.
    pub fn find<E>(
        &self,
        partitions: i32,
        mut newest: impl FnMut(i32) -> Result<Option<i64>, E>,
    ) -> Result<i32, E> {
        let usual = self.partition(partitions);
        if partitions <= 1 || partitions == limits::REGISTER_PARTITIONS {
            return Ok(usual);
        }
        // Earlier versions took one of all that there were.
        let likely = BTreeSet::from([usual, self.spread(partitions)]);
        let others: BTreeSet<i32> = (0..partitions).filter(|number| !likely.contains(number)).collect();
        for numbers in [likely, others] {
            let mut found: Option<(i64, i32)> = None;
            for number in numbers {
                found = found.max(newest(number)?.map(|time_ms| (time_ms, number)));
            }
            if let Some((_, number)) = found {
                return Ok(number);
            }
        }
        Ok(usual)
    }

    fn spread(&self, partitions: i32) -> i32 {
        let hash = blake3::hash(&self.name);
        let head = hash.as_bytes().first_chunk::<4>().map_or(0, |head| u32::from_le_bytes(*head));
        i32::try_from(head % u32::try_from(partitions.max(1)).unwrap_or(1)).unwrap_or(0)
    }
}

impl CommitRecord {
    pub fn encode(self) -> Vec<u8> {
        let mut value = vec![VERSION];
        value.extend(self.session.to_le_bytes());
        value.extend(self.number.to_le_bytes());
        value
    }

    pub fn decode(value: &[u8]) -> Option<CommitRecord> {
        let (session, rest) = value.strip_prefix(&[VERSION])?.split_first_chunk::<8>()?;
        let (number, rest) = rest.split_first_chunk::<8>()?;
        let record =
            CommitRecord { session: u64::from_le_bytes(*session), number: u64::from_le_bytes(*number) };
        rest.is_empty().then_some(record)
    }
}

/// A state's value, and when it expires.
pub(super) fn state_value(value: &[u8], expiry: Option<i64>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(STATE_HEAD_BYTES + value.len());
    bytes.push(u8::from(expiry.is_some()));
    bytes.extend(expiry.unwrap_or(0).to_le_bytes());
    bytes.extend(value);
    bytes
}

/// Value and expiry; `None` if these bytes are none.
pub(super) fn read_state_value(bytes: &[u8]) -> Option<(&[u8], Option<i64>)> {
    let (head, value) = bytes.split_first_chunk::<STATE_HEAD_BYTES>()?;
    let [flag, expiry @ ..] = *head;
    let expiry = i64::from_le_bytes(expiry);
    match flag {
        0 => Some((value, None)),
        1 => Some((value, Some(expiry))),
        _ => None,
    }
}

fn push_text(key: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    key.extend(length.to_le_bytes());
    key.extend(text.as_bytes().get(..usize::from(length)).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_told_apart() {
        let (owner, other) = (Owner::new("a", "bc"), Owner::new("ab", "c"));
        let position = owner.position_key(b"source/x");
        assert_eq!(owner.own(&position), Some(Key::Position(b"source/x")));
        assert_eq!(other.own(&position), None);
        assert_eq!(owner.own(&owner.commit_key()), Some(Key::Commit));
        assert_eq!(owner.own(&owner.state_key("p", b"k")), Some(Key::State("p", b"k")));
        assert_eq!(other.own(&owner.state_key("p", b"k")), None);
        assert!((0..8).contains(&owner.partition(8)));
    }

    #[test]
    fn partitions_that_are_added_move_nothing() {
        let never = |_: i32| -> Result<Option<i64>, ()> { panic!("asked the brokers") };
        for name in ["a", "b", "web-1", "web-2", "grown"] {
            let owner = Owner::new(name, "main");
            let made = owner.find(limits::REGISTER_PARTITIONS, never).unwrap();
            for partitions in [9, 16, 50] {
                let is_there = |number: i32| Ok::<_, ()>((number == made).then_some(1_i64));
                assert_eq!(owner.find(partitions, is_there), Ok(made));
                // Of an agent that begins.
                assert_eq!(owner.find(partitions, |_| Ok::<_, ()>(None)), Ok(made));
            }
        }
    }

    #[test]
    fn the_newest_record_tells_where_ours_are() {
        // Its partition of 16 is 11, of 8 it is 3, of 6 it is 5.
        let owner = Owner::new("grown", "main");
        let find = |partitions: i32, there: &[(i32, i64)]| {
            owner.find(partitions, |number| {
                Ok::<_, ()>(there.iter().find(|(at, _)| *at == number).map(|(_, time_ms)| *time_ms))
            })
        };
        assert_eq!(find(16, &[(11, 2), (3, 1)]), Ok(11));
        assert_eq!(find(16, &[(11, 1), (3, 2)]), Ok(3));
        // Made with three or six: neither of the two.
        assert_eq!(find(16, &[(2, 7), (5, 8)]), Ok(5));
        assert_eq!(find(6, &[(2, 7)]), Ok(2));
        assert_eq!(find(6, &[]), Ok(5));
    }

    #[test]
    fn a_commit_record_comes_back() {
        let record = CommitRecord { session: 7, number: u64::MAX };
        assert_eq!(CommitRecord::decode(&record.encode()), Some(record));
        for end in 0..record.encode().len() {
            assert_eq!(CommitRecord::decode(&record.encode()[..end]), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            CommitRecord::decode(&bytes);
            Owner::new("a", "b").own(&bytes);
            if let Some((value, expiry)) = read_state_value(&bytes) {
                let again = state_value(value, expiry);
                prop_assert_eq!(read_state_value(&again), Some((value, expiry)));
            }
        }

        #[test]
        fn what_a_plugin_remembers_comes_back(
            plugin in "[a-z#]{0,9}",
            key in proptest::collection::vec(any::<u8>(), 0..40),
            value in proptest::collection::vec(any::<u8>(), 0..40),
            expiry in proptest::option::of(any::<i64>()),
        ) {
            let owner = Owner::new("agent", "pipeline");
            let (whole, with_expiry) = (owner.state_key(&plugin, &key), state_value(&value, expiry));
            prop_assert_eq!(owner.own(&whole), Some(Key::State(&plugin, &key)));
            prop_assert_eq!(read_state_value(&with_expiry), Some((&*value, expiry)));
        }
    }
}
