//! What is on record of a member: which ranges of the channel it has, in its own sequence.
//!
//! The value of the position `group/GROUP/SINK`: version 1, then little-endian u64: the next number of its sequence, the end of
//! what was ever assigned to it in the channel, then for each range its first number in the sequence, its first event in the
//! channel and the one behind its last. A range that its destination is known not to have, and that nobody has taken over yet, has no
//! number (all bits set): a mark behind the numbers that it had says nothing of it.

use std::collections::VecDeque;

const VERSION: u8 = 1;
/// The number of a range that is in no sequence.
const NO_NUMBER: u64 = u64::MAX;

/// The key of a member's record.
pub fn key(group: &str, sink: &str) -> Vec<u8> {
    format!("group/{group}/{sink}").into_bytes()
}

/// The beginning of the keys of all members of a group.
pub fn prefix(group: &str) -> Vec<u8> {
    key(group, "")
}

/// A range of the channel, as a part of a member's sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Number of its first event in the sequence.
    pub first: u64,
    /// Number of its first event in the channel.
    pub from: u64,
    /// The number behind its last event in the channel.
    pub until: u64,
}

impl Span {
    /// How many events.
    pub fn events(&self) -> u64 {
        self.until - self.from
    }

    /// The number behind its last event in the sequence.
    pub fn end(&self) -> u64 {
        self.first + self.events()
    }

    /// The part at and behind a number of the sequence; `None`: there is none.
    pub fn behind(&self, number: u64) -> Option<Span> {
        let into = number.saturating_sub(self.first);
        (into < self.events()).then(|| Span {
            first: self.first + into,
            from: self.from + into,
            until: self.until,
        })
    }

    /// The part before a number of the sequence; `None`: there is none.
    pub fn before(&self, number: u64) -> Option<Span> {
        let events = number.saturating_sub(self.first).min(self.events());
        (events > 0).then(|| Span { until: self.from + events, ..*self })
    }
}

/// What a member has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The next number of its sequence.
    pub next: u64,
    /// The end of what was ever assigned to it, in the channel.
    pub end: u64,
    /// Its ranges, in the order of its sequence.
    pub spans: VecDeque<Span>,
}

impl Record {
    /// As a position's value; `released`: ranges that are in its record only until somebody takes them over.
    pub fn encode(&self, released: &[Span]) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend([self.next, self.end].iter().flat_map(|number| number.to_le_bytes()));
        let released = released.iter().map(|span| Span { first: NO_NUMBER, ..*span });
        for Span { first, from, until } in self.spans.iter().copied().chain(released) {
            bytes.extend([first, from, until].iter().flat_map(|number| number.to_le_bytes()));
        }
        bytes
    }

    /// Of a position's value, with what is released; `None`: it is none.
    pub fn decode(bytes: &[u8]) -> Option<(Record, Vec<Span>)> {
        let numbers = bytes.strip_prefix(&[VERSION])?;
        let (numbers, []) = numbers.as_chunks::<8>() else { return None };
        let numbers: Vec<u64> = numbers.iter().map(|number| u64::from_le_bytes(*number)).collect();
        let [next, end, spans @ ..] = numbers.as_slice() else { return None };
        let (spans, []) = spans.as_chunks::<3>() else { return None };
        let span = |[first, from, until]: &[u64; 3]| Span { first: *first, from: *from, until: *until };
        let spans: Vec<Span> = spans.iter().map(span).collect();
        let is_right = spans.iter().all(|span| span.from < span.until);
        let (released, mut spans): (Vec<Span>, Vec<Span>) =
            spans.into_iter().partition(|span| span.first == NO_NUMBER);
        spans.sort_by_key(|span| span.first);
        is_right.then(|| (Record { next: *next, end: *end, spans: spans.into() }, released))
    }

    /// Assigns a range, and says where it is in the sequence.
    pub fn assign(&mut self, from: u64, until: u64) -> Span {
        let span = Span { first: self.next, from, until };
        self.next = span.end();
        self.end = self.end.max(until);
        match self.spans.back_mut() {
            // What follows is one range with what was before.
            Some(last) if last.end() == span.first && last.until == from => last.until = until,
            _ => self.spans.push_back(span),
        }
        span
    }

    /// Takes out what is before a number of the sequence, and says where it began in the channel.
    pub fn finish(&mut self, number: u64) -> Option<u64> {
        let mut lowest: Option<u64> = None;
        while let Some(front) = self.spans.front().copied().filter(|front| front.first < number) {
            lowest = Some(lowest.map_or(front.from, |lowest| lowest.min(front.from)));
            match front.behind(number) {
                Some(rest) => {
                    if let Some(front) = self.spans.front_mut() {
                        *front = rest;
                    }
                    break;
                }
                None => self.spans.pop_front(),
            };
        }
        lowest
    }

    /// Takes out what is at or behind a number of the sequence.
    pub fn take_from(&mut self, number: u64) -> Vec<Span> {
        let taken = self.spans.iter().filter_map(|span| span.behind(number)).collect();
        self.spans = self.spans.iter().filter_map(|span| span.before(number)).collect();
        taken
    }

    /// The first number that is not finished.
    pub fn acknowledged(&self) -> u64 {
        self.spans.front().map_or(self.next, |front| front.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_assigned_finished_and_taken_back() {
        let mut record = Record::default();
        record.assign(0, 10);
        record.assign(10, 15);
        record.assign(30, 40);
        assert_eq!(record.spans.len(), 2, "what follows is one range");
        assert_eq!((record.next, record.end, record.acknowledged()), (25, 40, 0));
        assert_eq!(Record::decode(&record.encode(&[])), Some((record.clone(), Vec::new())));

        assert_eq!(record.finish(12), Some(0));
        assert_eq!((record.acknowledged(), record.spans[0].from), (12, 12));
        let taken = record.take_from(14);
        assert_eq!(taken, [Span { first: 14, from: 14, until: 15 }, Span { first: 15, from: 30, until: 40 }]);
        let (read, released) = Record::decode(&record.encode(&taken)).unwrap();
        assert_eq!((&read, read.spans.len(), released.len()), (&record, 1, 2));
        assert_eq!(
            released.iter().map(|span| (span.from, span.until)).collect::<Vec<_>>(),
            [(14, 15), (30, 40)]
        );
        assert_eq!(record.finish(14), Some(12));
        assert_eq!((record.acknowledged(), record.finish(14)), (25, None), "numbers are not used again");
        assert_eq!(record.assign(2, 5), Span { first: 25, from: 2, until: 5 });
        for wrong in [&b""[..], &[1], &[1, 2, 3], &[2; 17], &[1; 25]] {
            assert_eq!(Record::decode(wrong), None, "{wrong:?}");
        }
    }
}
