//! The partitions that this source knows, and how far each is read.
//!
//! A position is committed with the records before it. Key: the topic, a NUL, the partition's number in decimal.
//! Value: version 1, the next offset to read (8 bytes), the generation (4 bytes), both little-endian. The generation
//! counts how often the topic was made anew under the same name, so that its offsets can begin again.

use std::collections::HashMap;
use std::sync::Arc;

const VERSION: u8 = 1;

/// How far a partition is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The offset of the next record.
    pub next: i64,
    /// How often the topic was made anew.
    pub generation: u32,
}

/// The key of a partition's position.
pub fn key(topic: &str, number: i32) -> Vec<u8> {
    format!("{topic}\0{number}").into_bytes()
}

/// A key back.
pub fn parse_key(key: &[u8]) -> Option<(&str, i32)> {
    let (topic, number) = std::str::from_utf8(key).ok()?.rsplit_once('\0')?;
    let number = number.parse().ok().filter(|number| *number >= 0)?;
    (!topic.is_empty()).then_some((topic, number))
}

/// A position as it is committed.
pub fn encode(position: Position) -> Vec<u8> {
    let mut value = Vec::with_capacity(13);
    value.push(VERSION);
    value.extend_from_slice(&position.next.to_le_bytes());
    value.extend_from_slice(&position.generation.to_le_bytes());
    value
}

/// A position back.
pub fn decode(value: &[u8]) -> Option<Position> {
    let (version, rest) = value.split_first()?;
    let (next, generation) = rest.split_at_checked(8)?;
    let next = i64::from_le_bytes(next.try_into().ok()?);
    let generation = u32::from_le_bytes(generation.try_into().ok()?);
    (*version == VERSION && next >= 0).then_some(Position { next, generation })
}

/// The stream of a partition's records. The cluster's id is not in it: an old broker does not tell it, and a stream
/// must be the same at every start.
pub fn stream(source: &str, topic: &str, number: i32, generation: u32) -> u64 {
    let text = format!("flumen kafka 1\0{source}\0{topic}\0{number}\0{generation}");
    let mut id = [0; 8];
    blake3::Hasher::new().update(text.as_bytes()).finalize_xof().fill(&mut id);
    u64::from_le_bytes(id)
}

/// One partition.
#[derive(Debug)]
pub struct Partition {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its number.
    pub number: i32,
    /// The number as text, for the header.
    pub number_text: Arc<str>,
    /// The stream of its records.
    pub stream: u64,
    /// See [`Position`].
    pub generation: u32,
    /// Read by this agent now.
    pub is_assigned: bool,
    /// There is a position, committed or under way.
    pub is_known: bool,
    /// Next offset to read, with what the unfinished batch holds.
    pub next: i64,
    /// Where this reading of it began, or went on.
    pub begun: i64,
    /// Next offset after what was handed to the pipeline.
    pub emitted: i64,
    /// Next offset after what is durable in the journal; -1: nothing is.
    pub durable: i64,
    /// What the group's offset on the broker is to our knowledge; -1: none.
    pub group: i64,
    /// The unfinished batch moves it.
    pub is_touched: bool,
}

impl Partition {
    /// How it is named in messages.
    pub fn name(&self) -> String {
        format!("{}:{}", self.topic, self.number)
    }

    /// Records handed to the pipeline that another member of the group reads again if it has the partition from now on. Without an offset of the
    /// group it begins where this one did.
    pub fn beyond_group(&self) -> u64 {
        let known = if self.group < 0 { self.begun } else { self.group };
        u64::try_from(self.emitted - known).unwrap_or(0)
    }
}

/// All partitions that were ever seen. Their number is the broker's, which bounds it.
#[derive(Debug)]
pub struct Table {
    source: Arc<str>,
    all: Vec<Partition>,
    by_topic: HashMap<Arc<str>, HashMap<i32, usize>>,
    last: usize,
}

impl Table {
    /// What was committed. A position that is not understood is an error: it must not be skipped.
    pub fn new(source: Arc<str>, committed: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Table, String> {
        let mut table = Table { source, all: Vec::new(), by_topic: HashMap::new(), last: 0 };
        for (key, value) in committed {
            let known = parse_key(&key).zip(decode(&value));
            let Some(((topic, number), position)) = known else {
                let key = String::from_utf8_lossy(&key).replace('\0', ":");
                return Err(format!(
                    "the committed position of {key} is not understood: of a newer release?"
                ));
            };
            let index = table.index(topic, number);
            table.set(index, position);
            if let Some(partition) = table.all.get_mut(index) {
                partition.durable = position.next;
            }
        }
        Ok(table)
    }

    /// The place of a partition; made if it was not seen before.
    pub fn index(&mut self, topic: &str, number: i32) -> usize {
        if let Some(index) = self.by_topic.get(topic).and_then(|numbers| numbers.get(&number)) {
            return *index;
        }
        let topic: Arc<str> = match self.by_topic.get_key_value(topic) {
            Some((known, _)) => known.clone(),
            None => topic.into(),
        };
        let index = self.all.len();
        self.all.push(Partition {
            stream: stream(&self.source, &topic, number, 0),
            topic: topic.clone(),
            number,
            number_text: number.to_string().into(),
            generation: 0,
            is_assigned: false,
            is_known: false,
            next: 0,
            begun: 0,
            emitted: 0,
            durable: -1,
            group: -1,
            is_touched: false,
        });
        self.by_topic.entry(topic).or_default().insert(number, index);
        index
    }

    /// The partition of a record, if it is read now.
    #[inline]
    pub fn reading(&mut self, topic: &str, number: i32) -> Option<usize> {
        // Records come in runs of one partition.
        let is_last = |p: &Partition| p.number == number && *p.topic == *topic;
        if !self.all.get(self.last).is_some_and(is_last) {
            self.last = *self.by_topic.get(topic)?.get(&number)?;
        }
        self.all.get(self.last).is_some_and(|partition| partition.is_assigned).then_some(self.last)
    }

    /// One partition.
    #[inline]
    pub fn get(&self, index: usize) -> Option<&Partition> {
        self.all.get(index)
    }

    /// One partition.
    #[inline]
    pub fn get_mut(&mut self, index: usize) -> Option<&mut Partition> {
        self.all.get_mut(index)
    }

    /// All, with their places.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Partition)> {
        self.all.iter().enumerate()
    }

    /// All.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Partition> {
        self.all.iter_mut()
    }

    /// Those that are read now.
    pub fn assigned(&self) -> Vec<usize> {
        self.iter().filter(|(_, partition)| partition.is_assigned).map(|(index, _)| index).collect()
    }

    /// True if a partition of this topic has a position.
    pub fn knows_topic(&self, topic: &str) -> bool {
        let numbers = self.by_topic.get(topic).into_iter().flat_map(HashMap::values);
        numbers.filter_map(|index| self.all.get(*index)).any(|partition| partition.is_known)
    }

    /// Reading begins, or goes on, here.
    pub fn set(&mut self, index: usize, position: Position) {
        let source = self.source.clone();
        if let Some(partition) = self.all.get_mut(index) {
            if partition.generation != position.generation {
                partition.stream = stream(&source, &partition.topic, partition.number, position.generation);
            }
            partition.generation = position.generation;
            partition.is_known = true;
            partition.next = position.next;
            partition.begun = position.next;
            partition.emitted = position.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn positions_come_back() {
        let position = Position { next: 1 << 40, generation: 3 };
        assert_eq!(decode(&encode(position)), Some(position));
        assert_eq!(encode(Position { next: 258, generation: 1 }), b"\x01\x02\x01\0\0\0\0\0\0\x01\0\0\0");
        assert_eq!(parse_key(&key("a.b", 12)), Some(("a.b", 12)));
        for wrong in [&b"t"[..], b"\x000", b"t\0-1", b"t\0x", b"\xff\x000"] {
            assert_eq!(parse_key(wrong), None);
        }
        let committed = vec![(key("t", 1), encode(position)), (key("t", 7), encode(position))];
        let mut table = Table::new("k".into(), committed).unwrap();
        let index = table.index("t", 1);
        assert_eq!((table.get(index).unwrap().next, table.get(index).unwrap().durable), (1 << 40, 1 << 40));
        assert_eq!(table.get(index).unwrap().stream, stream("k", "t", 1, 3));
        assert!(table.knows_topic("t") && !table.knows_topic("u"));
        assert_eq!(table.reading("t", 1), None);
        assert!(Table::new("k".into(), vec![(key("t", 1), vec![2; 13])]).unwrap_err().contains("t:1"));
    }

    #[test]
    fn what_the_group_does_not_know_of_is_read_again_from_where_it_was_begun() {
        let mut table = Table::new("k".into(), Vec::new()).unwrap();
        let index = table.index("t", 0);
        table.set(index, Position { next: 100, generation: 0 });
        let partition = table.get_mut(index).unwrap();
        partition.emitted = 130;
        assert_eq!(partition.beyond_group(), 30);
        partition.group = 120;
        assert_eq!(partition.beyond_group(), 10);
        // The group's offset may be before the position in the journal, and behind it after it was set by hand.
        partition.group = 90;
        assert_eq!(partition.beyond_group(), 40);
        partition.group = 200;
        assert_eq!(partition.beyond_group(), 0);
    }

    #[test]
    fn streams_tell_partitions_apart() {
        let all = [
            stream("k", "t", 1, 0),
            stream("k", "t", 1, 1),
            stream("k", "t", 2, 0),
            stream("k", "u", 1, 0),
            stream("l", "t", 1, 0),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[..index].contains(one));
        }
        // What is committed today must be found by every later release.
        assert_eq!(stream("k", "t", 1, 0), 1_725_579_274_794_733_769);
    }

    proptest! {
        #[test]
        fn foreign_bytes_are_a_position_or_nothing(key: Vec<u8>, value: Vec<u8>) {
            parse_key(&key);
            if let Some(position) = decode(&value) {
                prop_assert_eq!(encode(position), value);
            }
        }
    }
}
