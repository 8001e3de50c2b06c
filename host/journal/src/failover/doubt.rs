//! The record of what was handed to the primary and not known to be durable when events began to go to the secondary.
//!
//! u64 number of channels, then per commit: u64 number, and per channel the u64 cursor behind its events in the secondary.
//! Little-endian.

/// A commit in doubt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Doubt {
    pub number: u64,
    /// Per channel, the cursor behind its events.
    pub ends: Vec<u64>,
}

pub(super) fn encode(channels: usize, all: &[Doubt]) -> Vec<u8> {
    let mut record = (channels as u64).to_le_bytes().to_vec();
    for doubt in all {
        record.extend(doubt.number.to_le_bytes());
        record.extend(doubt.ends.iter().flat_map(|end| end.to_le_bytes()));
    }
    record
}

/// `None` if these bytes are none.
pub(super) fn decode(record: &[u8]) -> Option<Vec<Doubt>> {
    let (channels, rest) = record.split_first_chunk::<8>()?;
    let block = usize::try_from(u64::from_le_bytes(*channels)).ok()?.checked_add(1)?.checked_mul(8)?;
    if !rest.len().is_multiple_of(block) {
        return None;
    }
    let number = |bytes: &[u8]| bytes.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let doubts = rest.chunks_exact(block).map(|block| {
        let mut numbers = block.chunks_exact(8).map(number);
        Doubt { number: numbers.next().unwrap_or(0), ends: numbers.collect() }
    });
    Some(doubts.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..90)) {
            if let Some(all) = decode(&bytes) {
                let channels = bytes.first_chunk().map_or(0, |first| u64::from_le_bytes(*first) as usize);
                prop_assert_eq!(encode(channels, &all), bytes);
            }
        }

        #[test]
        fn a_record_comes_back(all in proptest::collection::vec((any::<u64>(), any::<[u64; 3]>()), 0..5)) {
            let all: Vec<Doubt> =
                all.into_iter().map(|(number, ends)| Doubt { number, ends: ends.to_vec() }).collect();
            prop_assert_eq!(decode(&encode(3, &all)), Some(all));
        }
    }
}
