//! Whatever a codec answers with: an exact reason, or an answer that a source or sink can rely on. Never a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use arrow_array::Array;
use flumen_plugin::answer::{RawColumn, RawEvents, RawHeader};
use flumen_plugin::codec_answer::{RawBad, RawDecoded, RawEncoded, decoded, encoded};
use proptest::prelude::*;

const INPUT_BYTES: usize = 20;

fn bytes(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// A column of so many rows, or nearly.
fn column(rows: usize) -> impl Strategy<Value = RawColumn> {
    let values = prop::collection::vec("[a-zé]{0,3}", rows..=rows);
    let damage = prop::option::weighted(0.1, (any::<prop::sample::Index>(), any::<u8>()));
    (values, damage).prop_map(|(values, damage)| {
        let mut ends = vec![0_u32];
        let mut data = Vec::new();
        for value in values {
            data.extend_from_slice(value.as_bytes());
            ends.push(data.len() as u32);
        }
        let mut offsets = bytes(&ends);
        if let Some((at, value)) = damage {
            let at = at.index(offsets.len());
            offsets[at] = value;
        }
        RawColumn { offsets, data }
    })
}

fn header(rows: usize) -> impl Strategy<Value = RawHeader> {
    let present = prop::option::of(prop::collection::vec(any::<u8>(), rows.div_ceil(8)..=rows.div_ceil(8)));
    ("[a-c]{0,2}", column(rows), present).prop_map(|(name, column, present)| RawHeader {
        name,
        offsets: column.offsets,
        data: column.data,
        present,
    })
}

fn raw_decoded() -> impl Strategy<Value = RawDecoded> {
    // Mostly in order, as they have to be.
    let numbers = |most: usize| {
        (prop::collection::vec(0_u32..22, 0..=most), prop::bool::weighted(0.8)).prop_map(
            |(mut all, sorted)| {
                if sorted {
                    all.sort_unstable();
                }
                all
            },
        )
    };
    (numbers(5), numbers(6), 0_u32..23, prop::option::weighted(0.2, 0_u32..9)).prop_flat_map(
        |(ends, edges, consumed, claim)| {
            let rows = ends.len();
            let bad: Vec<RawBad> = edges
                .chunks_exact(2)
                .map(|edge| RawBad { begin: edge[0], end: edge[1], reason: "é".repeat(400) })
                .collect();
            let time = prop::option::of(prop::collection::vec(any::<u8>(), rows * 8..=rows * 8));
            (column(rows), prop::collection::vec(header(rows), 0..3), time).prop_map(
                move |(body, headers, time)| RawDecoded {
                    consumed,
                    events: RawEvents { rows: claim.unwrap_or(rows as u32), body, time, headers },
                    ends: bytes(&ends),
                    bad: bad.clone(),
                },
            )
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_let_through_of_a_decoder_can_be_relied_on(raw in raw_decoded()) {
        let (consumed, ends) = (raw.consumed as usize, raw.ends.clone());
        let Ok(answer) = decoded(raw, INPUT_BYTES) else { return Ok(()) };
        prop_assert!(answer.consumed == consumed && consumed <= INPUT_BYTES);
        let rows = answer.events.body.len();
        prop_assert_eq!(bytes(&answer.ends), ends);
        prop_assert_eq!(answer.ends.len(), rows);
        prop_assert!(answer.ends.iter().all(|end| *end >= 1 && *end as usize <= consumed));
        prop_assert!(answer.ends.is_sorted());
        prop_assert!(answer.events.time.as_ref().is_none_or(|time| time.len() == rows));
        prop_assert!(answer.events.headers.iter().all(|header| header.values.len() == rows));
        let mut before = 0;
        for bad in &answer.bad {
            prop_assert!(bad.bytes.start >= before && bad.bytes.start < bad.bytes.end);
            prop_assert!(bad.bytes.end <= consumed && bad.is_rejected && bad.reason.len() <= 512);
            let inside = |end: &u32| (bad.bytes.start + 1..=bad.bytes.end).contains(&(*end as usize));
            prop_assert!(!answer.ends.iter().any(inside), "{:?} {:?}", answer.ends, bad);
            before = bad.bytes.end;
        }
        if consumed == 0 {
            prop_assert!(rows == 0 && answer.bad.is_empty(), "nothing comes of nothing, or it would come again");
        }
    }

    #[test]
    fn what_is_let_through_of_an_encoder_can_be_relied_on(
        raw in (0_usize..8).prop_flat_map(|rows| (column(rows), prop::collection::vec((0_u32..9, "[a-z]{0,3}"), 0..4))),
        rows in 0_usize..9,
    ) {
        let (payloads, rejected) = raw;
        let count = rejected.len();
        if let Ok(answer) = encoded(RawEncoded { payloads, rejected }, rows) {
            prop_assert_eq!(answer.payloads.len() + count, rows);
            prop_assert_eq!(answer.rejected.len(), count);
        }
    }
}

fn lines(ends: &[u32], bad: &[(u32, u32)], consumed: u32) -> Result<(), String> {
    let rows = ends.len();
    let body = RawColumn { offsets: bytes(&vec![0; rows + 1]), data: Vec::new() };
    let events = RawEvents { rows: rows as u32, body, time: None, headers: Vec::new() };
    let bad = bad.iter().map(|(begin, end)| RawBad { begin: *begin, end: *end, reason: String::new() });
    let raw = RawDecoded { consumed, events, ends: bytes(ends), bad: bad.collect() };
    decoded(raw, INPUT_BYTES).map(|_| ()).map_err(|error| error.to_string())
}

#[test]
fn each_lie_is_named() {
    assert_eq!(lines(&[1, 4, 4, 9], &[(4, 7), (9, 20)], 20), Ok(()));
    assert_eq!(lines(&[], &[], 0), Ok(()));
    for (ends, bad, consumed, reason) in [
        (&[][..], &[][..], 21, "consumed: 21 bytes of 20"),
        (&[0], &[], 5, "ends: event 0 ends at 0"),
        (&[4, 3], &[], 5, "ends: event 1 ends at 3, which is before 4"),
        (&[6], &[], 5, "ends: the last event ends at 6, only 5"),
        (&[], &[(3, 3)], 5, "bad: range 0 is 3..3"),
        (&[], &[(0, 3), (2, 4)], 5, "bad: range 1 is 2..4"),
        (&[], &[(0, 6)], 5, "bad: range 0 is 0..6"),
        (&[3], &[(1, 3)], 5, "bad: an event ends at 3, in range 0: 1..3"),
        (&[1, 3], &[(2, 4)], 5, "bad: an event ends at 3"),
    ] {
        let error = lines(ends, bad, consumed).unwrap_err();
        assert!(error.contains(reason), "{error:?} has no {reason:?}");
    }
}
