//! The byte layout against random batches and random bytes.
#![allow(clippy::unwrap_used, clippy::let_underscore_must_use, clippy::indexing_slicing, reason = "tests")]

use arrow_array::{BinaryArray, Int64Array, StringArray, UInt64Array};
use arrow_buffer::Buffer;
use flumen_event::layout::{self, Encoder, decode, encode};
use flumen_event::{Batch, HeaderColumn, Identity};
use proptest::collection::vec;
use proptest::prelude::*;

type Row = (i64, Vec<u8>, u64, u64, Option<String>, String);

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let time = prop_oneof![Just(7i64), any::<i64>()];
    let stream = prop_oneof![Just(3u64), any::<u64>()];
    let value = prop_oneof![Just("same".to_string()), "[a-zé]{0,6}"];
    vec(
        (time, vec(any::<u8>(), 0..40), stream, any::<u64>(), proptest::option::of("[a-z]{0,5}"), value),
        0..40,
    )
}

fn batch_of(rows: &[Row]) -> Batch {
    let nullable: StringArray = rows.iter().map(|r| r.4.as_deref()).collect();
    let constant: StringArray = rows.iter().map(|_| Some("host-1")).collect();
    let value: StringArray = rows.iter().map(|r| Some(r.5.as_str())).collect();
    Batch::new(
        Int64Array::from_iter_values(rows.iter().map(|r| r.0)),
        BinaryArray::from_iter_values(rows.iter().map(|r| &r.1)),
        vec![
            HeaderColumn { name: "level".into(), values: nullable },
            HeaderColumn { name: "host".into(), values: constant },
            HeaderColumn { name: "file".into(), values: value },
        ],
        UInt64Array::from_iter_values(rows.iter().map(|r| r.2)),
        UInt64Array::from_iter_values(rows.iter().map(|r| r.3)),
    )
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn round_trip_of_slices(rows in rows(), first in 0usize..20, len in 0usize..40) {
        let batch = batch_of(&rows).slice(first, len);
        let encoded = encode(&batch);
        let bytes = encoded.to_vec();
        prop_assert_eq!(bytes.len(), encoded.len());
        prop_assert_eq!(layout::encoded_len(&bytes), Some(bytes.len()));
        let back = decode(Buffer::from(bytes.as_slice())).unwrap();
        prop_assert_eq!(&back, &batch);
        // The layout is a function of the events, not of how they lay in memory.
        prop_assert_eq!(encode(&back).to_vec().len(), bytes.len());
    }

    #[test]
    fn pieces_of_any_size_follow_each_other(pieces in vec((0usize..9000, 0u8..3), 0..12)) {
        let (mut encoder, mut expected, mut large) = (Encoder::default(), Vec::new(), Vec::new());
        for (number, (size, way)) in pieces.iter().enumerate() {
            let piece = Buffer::from_vec(std::vec::from_elem(number as u8, *size));
            expected.extend_from_slice(&piece);
            match way {
                0 => encoder.bytes(&piece),
                1 => {
                    large.extend((*size >= 4096).then(|| piece.as_ptr()));
                    encoder.buffer(piece);
                }
                _ => {
                    let mut inner = Encoder::default();
                    inner.bytes(b"inner");
                    inner.buffer(piece);
                    // As a whole it is a multiple of 8.
                    let end = expected.len() + (5 + size).next_multiple_of(8);
                    expected.splice(expected.len() - size..expected.len() - size, *b"inner");
                    expected.resize(end - size, 0);
                    encoder.encoded(inner.finish());
                }
            }
            prop_assert_eq!(encoder.len(), expected.len());
        }
        let encoded = encoder.finish();
        expected.resize(expected.len().next_multiple_of(8), 0);
        prop_assert_eq!(encoded.to_vec(), expected);
        prop_assert_eq!(encoded.parts().map(<[u8]>::len).sum::<usize>(), encoded.len());
        // What is large is referenced.
        prop_assert!(large.iter().all(|at| encoded.parts().any(|part| part.as_ptr() == *at)));
    }

    #[test]
    fn mutations_never_panic(rows in rows(), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>()) {
        let mut bytes = encode(&batch_of(&rows)).to_vec();
        for (index, value) in &changes {
            let at = index.index(bytes.len());
            bytes[at] = *value;
        }
        if let Ok(batch) = decode(Buffer::from(bytes.as_slice())) {
            // What is accepted keeps every invariant.
            for row in 0..batch.rows() {
                let _ = batch.body().value(row).len() + batch.headers().iter().map(|h| h.values.value(row).len()).sum::<usize>();
            }
        }
        let shorter = &bytes[..cut.index(bytes.len())];
        prop_assert!(decode(Buffer::from(shorter)).is_err());
    }

    #[test]
    fn head_mutations_never_panic(rows in rows(), at in 0usize..64, value in any::<u8>()) {
        let mut bytes = encode(&batch_of(&rows)).to_vec();
        bytes[at] = value;
        let _ = decode(Buffer::from(bytes.as_slice())).map(|batch| batch.bytes());
    }

    #[test]
    fn noise_never_panics(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode(Buffer::from(bytes.as_slice())).map(|batch| batch.bytes());
    }
}

#[test]
fn a_clone_that_is_changed_leaves_the_others_as_they_are() {
    let row = (1, b"body".to_vec(), 2, 3, Some("there".to_string()), "name".to_string());
    let batch = batch_of(&[row.clone(), row]);
    let (before, header) = (format!("{batch:?}"), batch.headers()[0].name.clone());
    let other = StringArray::from(vec!["other"; 2]);
    assert_eq!(batch.clone().with_header(&header, other).unwrap().header(&header).unwrap().value(1), "other");
    assert!(batch.clone().without_header(&header).header(&header).is_none());
    let identity = Identity { stream: 77, position: 5 };
    assert_eq!(batch.clone().identified(identity).identity(0), Some(identity));
    assert_eq!(batch.slice(0, 2), batch);
    assert_eq!(batch.slice(1, 9).rows(), 1);
    assert_eq!(format!("{batch:?}"), before);
}

#[test]
fn bodies_are_not_copied() {
    let bodies: Vec<Vec<u8>> = (0..100).map(|n| vec![n; 100]).collect();
    let batch = Batch::new(
        Int64Array::from(vec![1; 100]),
        BinaryArray::from_iter_values(&bodies),
        vec![],
        UInt64Array::from(vec![1; 100]),
        UInt64Array::from_iter_values(0..100),
    )
    .unwrap()
    .slice(10, 50);
    let body = batch.body().value(0).as_ptr();
    assert!(encode(&batch).parts().any(|part| part.as_ptr() == body), "a part is the body column itself");
    let bytes = Buffer::from(encode(&batch).to_vec().as_slice());
    let range = bytes.as_slice().as_ptr_range();
    let back = decode(bytes).unwrap();
    assert!(range.contains(&back.body().value(0).as_ptr()), "decoding points into the bytes");
    assert_eq!(back, batch);
    let misaligned = Buffer::from([&[0u8][..], &encode(&batch).to_vec()].concat().as_slice()).slice(1);
    assert_eq!(decode(misaligned).unwrap(), batch);
}

#[test]
fn constants_are_small() {
    let same: StringArray =
        (0..1000).map(|_| Some("a rather long value of a header, the same in all rows")).collect();
    let batch = Batch::new(
        Int64Array::from(vec![5; 1000]),
        BinaryArray::from_iter_values((0..1000).map(|_| b"x")),
        vec![HeaderColumn { name: "h".into(), values: same }],
        UInt64Array::from(vec![9; 1000]),
        UInt64Array::from_iter_values(0..1000),
    )
    .unwrap();
    let encoded = encode(&batch);
    assert!(encoded.len() < 1000 * (4 + 1 + 8) + 300, "{}", encoded.len());
    assert_eq!(decode(Buffer::from(encoded.to_vec().as_slice())).unwrap(), batch);
}

#[test]
fn empty_batch() {
    let bytes = encode(&Batch::empty()).to_vec();
    assert_eq!(decode(Buffer::from(bytes.as_slice())).unwrap(), Batch::empty());
}
