//! What a sink put into quarantine and whose destination is about to store the cursor behind it.
//!
//! A record is the value of a position: version 1, the mark (u16 length, bytes), then each batch, labelled with
//! its reasons (u64 length, bytes of [`flumen_event::layout`]). Little-endian. It stands in the journal from before
//! the destination's commit to the commit that follows it.

use std::collections::HashSet;

use arrow_array::UInt32Array;
use arrow_buffer::Buffer;
use flumen_event::{Batch, Identity, layout};

use crate::sink::SinkError;

const VERSION: u8 = 1;

/// A record, read back.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    /// What the destination was about to store.
    pub mark: Vec<u8>,
    /// The events, with their reasons as headers.
    pub batches: Vec<Batch>,
}

/// The key of a sink's record.
pub(crate) fn key(sink: &str) -> Vec<u8> {
    format!("pending/{sink}").into_bytes()
}

/// A record. A mark is a few dozen bytes.
pub(crate) fn encode<'a>(mark: &[u8], batches: impl Iterator<Item = &'a Batch>) -> Vec<u8> {
    let mut record = vec![VERSION];
    record.extend(u16::try_from(mark.len()).unwrap_or(u16::MAX).to_le_bytes());
    record.extend(mark);
    for batch in batches {
        let bytes = layout::encode(batch).to_vec();
        record.extend((bytes.len() as u64).to_le_bytes());
        record.extend(bytes);
    }
    record
}

/// `None`: not such a record.
pub(crate) fn decode(record: &[u8]) -> Option<Record> {
    let rest = record.strip_prefix(&[VERSION])?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (mark, mut rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    let mut batches = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<8>()?;
        let (bytes, after) = after.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        batches.push(layout::decode(Buffer::from(bytes)).ok()?);
        rest = after;
    }
    Some(Record { mark: mark.to_vec(), batches })
}

/// The events of a batch whose identities are not in another.
pub(crate) fn without(batch: &Batch, other: &Batch) -> Result<Batch, SinkError> {
    let others: HashSet<Identity> = (0..other.rows()).filter_map(|row| other.identity(row)).collect();
    let is_left = |row: &usize| batch.identity(*row).is_some_and(|identity| !others.contains(&identity));
    let rows: Vec<u32> = (0..batch.rows()).filter(is_left).map(|row| row as u32).collect();
    batch.take(&UInt32Array::from(rows)).map_err(|error| SinkError::Retry(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_event::BatchBuilder;
    use proptest::prelude::*;

    fn batch(stream: u64, rows: u64) -> Batch {
        let mut builder = BatchBuilder::default();
        (0..rows).for_each(|row| builder.push(stream, row, 7, format!("row {row}").as_bytes()));
        builder.finish(vec![]).unwrap()
    }

    #[test]
    fn a_record_comes_back() {
        let batches = vec![batch(1, 5), batch(2, 1)];
        let record = encode(b"mark", batches.iter());
        assert_eq!(decode(&record), Some(Record { mark: b"mark".to_vec(), batches }));
        for end in 1..record.len() {
            let cut = decode(&record[..end]);
            assert!(cut.is_none_or(|cut| cut.batches.len() < 2), "cut at {end}");
        }
    }

    #[test]
    fn what_another_batch_has_is_left_out() {
        let all = batch(1, 5);
        let left = without(&all, &all.slice(1, 2)).unwrap();
        assert_eq!(left.position().values(), &[0, 3, 4]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            decode(&bytes);
        }
    }
}
