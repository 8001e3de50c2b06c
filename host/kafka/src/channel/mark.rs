//! A place in a topic as bytes: version 1, topic (u16 length, bytes), then per partition i32 and the next offset i64,
//! rising. Little-endian. What a destination stores beside the events, so it is foreign bytes when it comes back.

const VERSION: u8 = 1;

/// Next offset per partition, partitions rising.
pub(super) type Offsets = Vec<(i32, i64)>;

pub(super) fn encode(topic: &str, offsets: &[(i32, i64)]) -> Vec<u8> {
    let mut mark = vec![VERSION];
    mark.extend(u16::try_from(topic.len()).unwrap_or(u16::MAX).to_le_bytes());
    mark.extend(topic.as_bytes());
    for (partition, offset) in offsets {
        mark.extend(partition.to_le_bytes());
        mark.extend(offset.to_le_bytes());
    }
    mark
}

/// `None`: not a mark of this topic.
pub(super) fn decode(topic: &str, mark: &[u8]) -> Option<Offsets> {
    let rest = mark.strip_prefix(&[VERSION])?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (name, mut rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    if name != topic.as_bytes() {
        return None;
    }
    let mut offsets: Offsets = Vec::new();
    while let Some((partition, after)) = rest.split_first_chunk::<4>() {
        let (offset, after) = after.split_first_chunk::<8>()?;
        let (partition, offset) = (i32::from_le_bytes(*partition), i64::from_le_bytes(*offset));
        let rises = offsets.last().is_none_or(|(last, _)| *last < partition);
        if partition < 0 || offset < 0 || !rises {
            return None;
        }
        offsets.push((partition, offset));
        rest = after;
    }
    rest.is_empty().then_some(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_mark_comes_back_to_its_own_topic_only() {
        let offsets = vec![(0, 7), (3, 0), (9, i64::MAX)];
        let mark = encode("t", &offsets);
        assert_eq!(decode("t", &mark), Some(offsets));
        assert_eq!(decode("u", &mark), None);
        assert_eq!(decode("t", &encode("t", &[(3, 1), (2, 1)])), None);
        assert_eq!(decode("t", &encode("t", &[(0, -1)])), None);
        for end in 1..mark.len() {
            assert!(decode("t", &mark[..end]).is_none_or(|cut| cut.len() < 3), "{end}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_mark_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            decode("t", &bytes);
            decode("t", &[&encode("t", &[]), bytes.as_slice()].concat());
        }
    }
}
