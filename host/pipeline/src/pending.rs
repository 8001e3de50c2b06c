//! What a sink put into quarantine and whose destination is about to store the cursor behind it.
//!
//! A record: version 1, the mark (u16 length, bytes), then each batch, labelled with its reasons (u64 length, bytes of
//! [`flumen_event::layout`]). Little-endian. It stands in the journal, as the value of a position, from before the destination's
//! commit to the commit that follows it. Several, of steps of which each may still be carried out: version 2, then each record (u64
//! length, bytes).

use std::collections::HashSet;

use arrow_array::UInt32Array;
use arrow_buffer::Buffer;
use flumen_event::{Batch, Identity, layout};

use crate::sink::SinkError;

const VERSION: u8 = 1;
const SEVERAL: u8 = 2;

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

/// The value of the position; empty for none.
pub(crate) fn encode(records: &[Record]) -> Vec<u8> {
    match records {
        [] => Vec::new(),
        [only] => encode_one(only),
        several => {
            let mut value = vec![SEVERAL];
            several.iter().for_each(|record| push(&mut value, &encode_one(record)));
            value
        }
    }
}

/// A mark is a few dozen bytes.
fn encode_one(Record { mark, batches }: &Record) -> Vec<u8> {
    let mut record = vec![VERSION];
    record.extend(u16::try_from(mark.len()).unwrap_or(u16::MAX).to_le_bytes());
    record.extend(mark);
    batches.iter().for_each(|batch| push(&mut record, &layout::encode(batch).to_vec()));
    record
}

/// `None`: not such a value.
pub(crate) fn decode(value: &[u8]) -> Option<Vec<Record>> {
    match value.strip_prefix(&[SEVERAL]) {
        Some(records) => parts(records)?.into_iter().map(decode_one).collect(),
        None => Some(vec![decode_one(value)?]),
    }
}

fn decode_one(record: &[u8]) -> Option<Record> {
    let rest = record.strip_prefix(&[VERSION])?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (mark, batches) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    let batch = |bytes: &[u8]| layout::decode(Buffer::from(bytes)).ok();
    Some(Record {
        mark: mark.to_vec(),
        batches: parts(batches)?.into_iter().map(batch).collect::<Option<_>>()?,
    })
}

fn push(out: &mut Vec<u8>, part: &[u8]) {
    out.extend((part.len() as u64).to_le_bytes());
    out.extend(part);
}

fn parts(mut rest: &[u8]) -> Option<Vec<&[u8]>> {
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<8>()?;
        let (part, after) = after.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        parts.push(part);
        rest = after;
    }
    Some(parts)
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
        let record = Record { mark: b"mark".to_vec(), batches: vec![batch(1, 5), batch(2, 1)] };
        let value = encode(std::slice::from_ref(&record));
        assert_eq!(decode(&value), Some(vec![record.clone()]));
        for end in 1..value.len() {
            let cut = decode(&value[..end]);
            assert!(cut.is_none_or(|cut| cut[0].batches.len() < 2), "cut at {end}");
        }
        let several = [record, Record { mark: b"next".to_vec(), batches: vec![batch(1, 9)] }];
        assert_eq!(decode(&encode(&several)).unwrap(), several);
        assert!(encode(&[]).is_empty());
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
