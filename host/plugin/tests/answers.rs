//! Whatever bytes a guest answers with: an exact reason or a valid batch, never a panic, never more than a batch may hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;

use std::collections::BTreeMap;

use arrow_array::Array;
use common::*;
use flumen_event::Batch;
use flumen_plugin::answer::{RawAnswer, RawColumn, RawHeader, decode};
use flumen_plugin::cases::{Case, CaseOutcome, ExpectedEvent};
use proptest::prelude::*;

fn input() -> Batch {
    let names: Vec<Option<&str>> = (0..10).map(|row| (row % 2 == 0).then_some("é")).collect();
    batch(&(0..10).map(|row| "x".repeat(row)).collect::<Vec<_>>()).with_header("old", names.into()).unwrap()
}

fn offsets(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Offsets that are right, or nearly: random bytes would never get past the first check.
fn column() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let values = prop::collection::vec("[a-zé]{0,3}", 0..14);
    let damage = prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
    let cut = prop::option::weighted(0.1, any::<prop::sample::Index>());
    (values, damage.clone(), damage, cut).prop_map(|(values, damage, data_damage, cut)| {
        let mut ends = vec![0_u32];
        let mut data = Vec::new();
        for value in values {
            data.extend_from_slice(value.as_bytes());
            ends.push(data.len() as u32);
        }
        let mut offsets = offsets(&ends);
        if let Some((at, value)) = damage {
            let at = at.index(offsets.len());
            offsets[at] = value;
        }
        if let (Some((at, value)), false) = (data_damage, data.is_empty()) {
            let at = at.index(data.len());
            data[at] = value;
        }
        if let Some(cut) = cut {
            offsets.truncate(cut.index(offsets.len() + 1));
        }
        (offsets, data)
    })
}

fn numbers(width: usize) -> impl Strategy<Value = Vec<u8>> {
    let small = prop::collection::vec(0_u32..12, 0..14).prop_map(move |rows| {
        rows.iter().flat_map(|row| (*row as u64).to_le_bytes()[..width].to_vec()).collect()
    });
    prop_oneof![8 => small, 1 => prop::collection::vec(any::<u8>(), 0..120)]
}

fn header() -> impl Strategy<Value = RawHeader> {
    let name = prop_oneof![4 => "[a-d]", 1 => Just("old".to_owned()), 1 => Just(String::new()), 1 => Just("n".repeat(256))];
    let present = prop::option::of(prop::collection::vec(any::<u8>(), 0..4));
    (name, column(), present).prop_map(|(name, (offsets, data), present)| RawHeader {
        name,
        offsets,
        data,
        present,
    })
}

fn answer() -> impl Strategy<Value = RawAnswer> {
    let body = prop::option::of(column().prop_map(|(offsets, data)| RawColumn { offsets, data }));
    let headers = prop::collection::vec(header(), 0..4);
    let rejected = prop::collection::vec((0_u32..12, "[a-zé]{0,3}"), 0..4);
    let remove = prop::collection::vec("old|[a-z]{0,2}", 0..3);
    let rows_from = prop::option::of(numbers(4));
    let time = prop::option::weighted(0.3, numbers(8));
    (rows_from, body, time, headers, remove, rejected).prop_map(
        |(rows_from, body, time, set_headers, remove_headers, rejected)| RawAnswer {
            rows_from,
            body,
            time,
            set_headers,
            remove_headers,
            rejected,
        },
    )
}

/// Everything that arrow does not check again when values are read.
fn check_valid(batch: &Batch) {
    let rows = batch.rows();
    assert_eq!((batch.time().len(), batch.stream().len(), batch.position().len()), (rows, rows, rows));
    assert!(rows <= flumen_event::limits::ROWS_MAX && batch.bytes() <= flumen_event::limits::BYTES_MAX);
    let ends = |offsets: &[i32], bytes: usize| {
        assert_eq!(offsets.len(), rows + 1);
        assert!(offsets[0] >= 0 && offsets.is_sorted() && offsets[rows] as usize <= bytes);
    };
    ends(batch.body().value_offsets(), batch.body().values().len());
    for header in batch.headers() {
        ends(header.values.value_offsets(), header.values.values().len());
        for row in 0..rows {
            let value = header.values.value(row);
            assert!(std::str::from_utf8(value.as_bytes()).is_ok());
            assert!(header.values.is_valid(row) || value.is_empty());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]
    #[test]
    fn any_answer_is_a_reason_or_a_valid_batch(answer in answer()) {
        let input = input();
        if let Ok(difference) = decode(answer, input.rows())
            && let Ok(applied) = difference.apply(&input)
        {
            check_valid(&applied.kept);
            check_valid(&applied.rejected);
            assert_eq!(applied.rejected.rows(), applied.reasons.len());
            let mut seen: Vec<u64> = positions(&applied.kept);
            seen.extend(positions(&applied.rejected));
            seen.sort();
            seen.dedup();
            // Every input row is kept, rejected or dropped.
            assert_eq!(seen.len() + applied.dropped, input.rows());
        }
    }
}

#[track_caller]
fn lies(answer: RawAnswer, reason: &str) {
    let input = input();
    let text = match decode(answer, input.rows()) {
        Err(error) => error.to_string(),
        Ok(difference) => difference.apply(&input).unwrap_err().to_string(),
    };
    assert_eq!(text, reason);
}

fn body(offsets_of: &[u32], data: &str) -> RawAnswer {
    let body = RawColumn { offsets: offsets(offsets_of), data: data.into() };
    RawAnswer { body: Some(body), ..RawAnswer::default() }
}

fn set(name: &str, offsets_of: &[u32], data: &[u8], present: Option<Vec<u8>>) -> RawAnswer {
    let header = RawHeader { name: name.into(), offsets: offsets(offsets_of), data: data.into(), present };
    RawAnswer { set_headers: vec![header], ..RawAnswer::default() }
}

#[test]
fn every_rule_has_its_reason() {
    let zero = [0_u32; 11];
    lies(body(&[0, 1], "x"), "body: 8 bytes of offsets, 10 rows need 44");
    lies(body(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], "x"), "body: the first offset is 1, not 0");
    lies(body(&zero, "x"), "body: the last offset is 0, the data has 1 bytes");
    lies(
        body(&[0, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1], "x"),
        "body: offset 2 is less than the one before it, or beyond the data",
    );
    lies(
        body(&[0, u32::MAX, 1, 1, 1, 1, 1, 1, 1, 1, 1], "x"),
        "body: offset 1 is less than the one before it, or beyond the data",
    );
    lies(set("", &zero, b"", None), "set-headers: the name \"\" is empty or over 255 bytes");
    let half = [0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2];
    lies(set("h", &half, "é".as_bytes(), None), "header \"h\": row 0 is not UTF-8");
    lies(set("h", &half, b"a\xff", None), "header \"h\": row 1 is not UTF-8");
    lies(set("h", &zero, b"", Some(vec![255])), "header \"h\": 1 bytes of presence for 10 rows");
    lies(set("h", &zero, b"", Some(vec![255; 3])), "header \"h\": 3 bytes of presence for 10 rows");
    lies(set("h", &half, b"ab", Some(vec![253, 255])), "header \"h\": row 1 is not present but has a value");
    let mut twice = set("h", &zero, b"", None);
    twice.set_headers.extend(set("h", &zero, b"", None).set_headers);
    lies(twice, "set-headers: the name \"h\" is given twice");
    let rows_from = |rows: &[u32]| RawAnswer { rows_from: Some(offsets(rows)), ..RawAnswer::default() };
    lies(
        RawAnswer { rows_from: Some(vec![0; 5]), ..RawAnswer::default() },
        "rows-from: 5 bytes are not a list of 4-byte numbers",
    );
    lies(rows_from(&[10]), "rows-from names row 10, the batch has 10");
    lies(rows_from(&vec![1; 65_537]), "rows-from: 65537 rows, a batch has at most 65536");
    lies(RawAnswer { time: Some(vec![0; 79]), ..RawAnswer::default() }, "time: 79 bytes for 10 rows of 8");
    let rejected = |rows: &[u32]| RawAnswer {
        rejected: rows.iter().map(|row| (*row, String::new())).collect(),
        ..RawAnswer::default()
    };
    lies(rejected(&[10]), "rejected names row 10, the batch has 10");
    lies(rejected(&[1, 1]), "row 1 is rejected and also kept, or rejected twice");
    lies(rejected(&[0; 11]), "rejected: 11 rejections of 10 rows");
    lies(
        RawAnswer { rows_from: Some(offsets(&[3])), ..rejected(&[3]) },
        "row 3 is rejected and also kept, or rejected twice",
    );
}

#[test]
fn a_few_row_numbers_do_not_make_gigabytes() {
    let large = batch(&["x".repeat(1 << 20)]);
    let rows_from = Some(offsets(&vec![0; 60_000]));
    let repeated = RawAnswer { rows_from: rows_from.clone(), ..RawAnswer::default() };
    let error = decode(repeated, 1).unwrap().apply(&large).unwrap_err().to_string();
    assert!(error.starts_with("bytes of a batch: 62914560000 is over the limit"), "{error}");
    // With bodies of its own, the same is a splitter at work.
    let body =
        Some(RawColumn { offsets: offsets(&(0..=60_000).collect::<Vec<_>>()), data: vec![b'y'; 60_000] });
    let applied =
        decode(RawAnswer { rows_from, body, ..RawAnswer::default() }, 1).unwrap().apply(&large).unwrap();
    assert_eq!((applied.kept.rows(), applied.kept.body_bytes()), (60_000, 60_000));
}

fn filter_case() -> Case {
    let event = |body: &str| ExpectedEvent { body: body.into(), ..ExpectedEvent::default() };
    Case {
        name: "contains".into(),
        config_json: r#"{"keep":{"contains":"503"}}"#.into(),
        input: batch(&["a 503", "b 200", "c 503"]),
        expected: vec![event("a 503"), event("c 503")],
        rejected: Vec::new(),
        open_error: None,
        steps: Vec::new(),
        codec: None,
    }
}

#[test]
fn a_case_passes_or_shows_the_difference() {
    let sandbox = Sandbox::new();
    let run = |case: &Case| sandbox.host.run_case(&guest("filter"), case).unwrap();
    assert_eq!(run(&filter_case()), CaseOutcome::Passed);

    let mut case = filter_case();
    case.expected[1].body = b"c 504".to_vec();
    case.expected[1].headers = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    case.rejected.push((1, "no".into()));
    let CaseOutcome::Failed(text) = run(&case) else { panic!("it passed") };
    assert_eq!(
        text,
        "output 1 differs\n  body\n    expected: \"c 504\"\n    actual:   \"c 503\"\n  header a\n    expected: \"b\"\n    \
         actual:   no such header\nrow 1 is not rejected\n  expected a part: no"
    );
    let mut case = filter_case();
    case.expected.truncate(1);
    assert_eq!(run(&case), CaseOutcome::Failed("output 1 was not expected\n  actual:   \"c 503\" {}".into()));
    let case = Case {
        config_json: r#"{"kep":1}"#.into(),
        open_error: Some("unknown key `kep`".into()),
        ..filter_case()
    };
    assert_eq!(run(&case), CaseOutcome::Passed);
    let case = Case { open_error: Some("anything".into()), ..filter_case() };
    assert!(matches!(run(&case), CaseOutcome::Failed(text) if text.starts_with("it opened, but")));
}

#[test]
fn headers_cross_from_the_middle_of_a_batch_and_when_there_are_none() {
    let sandbox = Sandbox::new();
    let open = |rule: &str| sandbox.open("filter", &format!(r#"{{"keep":{rule}}}"#), patient()).unwrap();
    let kept = |rule: &str, batch: &Batch| {
        let processed = flumen_pipeline::InterceptorVersion::process(&*open(rule), batch.clone());
        assert!(processed.quarantined.is_empty(), "{:?}", processed.quarantined);
        assert_eq!(processed.kept.rows() as u64 + processed.dropped, batch.rows() as u64);
        positions(&processed.kept)
    };
    let values: Vec<Option<String>> = (0..40).map(|row| (row % 3 == 0).then(|| format!("é{row}"))).collect();
    let whole = batch_with(40, &[], "").with_header("h", values.into()).unwrap();
    for (first, rows) in [(0, 40), (1, 20), (7, 9), (8, 32), (39, 1), (38, 2)] {
        let part = whole.slice(first, rows);
        let third: Vec<u64> =
            (first..first + rows).filter(|row| row % 3 == 0).map(|row| row as u64).collect();
        assert_eq!(kept(r#"{"header":"h","present":true}"#, &part), third);
        let named = format!("é{}", third.last().copied().unwrap_or(0));
        let last: Vec<u64> = third.last().copied().into_iter().collect();
        assert_eq!(kept(&format!(r#"{{"header":"h","equals":"{named}"}}"#), &part), last);
        assert_eq!(kept(r#"{"header":"none","present":true}"#, &part), Vec::<u64>::new());
        assert_eq!(kept(r#"{"header":"none","present":false}"#, &part).len(), rows);
    }
}

#[test]
fn an_access_log_goes_all_the_way() {
    let sandbox = Sandbox::new();
    let version = sandbox.open("access_log", "{}", patient()).unwrap();
    let good = r#"192.0.2.7 - bob [01/Jan/2026:00:00:00 +0000] "GET /a?b HTTP/1.1" 200 17 "-" "curl/8""#;
    let input = batch(&[good, "nonsense", good]);
    let processed = flumen_pipeline::InterceptorVersion::process(&*version, input);
    assert_eq!(positions(&processed.kept), [0, 2]);
    let values = |text: &str| vec![Some(text.to_owned()); 2];
    assert_eq!(header_values(&processed.kept, "path"), values("/a?b"));
    assert_eq!(header_values(&processed.kept, "user"), values("bob"));
    assert_eq!(header_values(&processed.kept, "referer"), vec![None; 2]);
    assert_eq!(processed.kept.time().value(1), 1_767_225_600_000_000_000);
    let [rejected] = &processed.quarantined[..] else { panic!("{:?}", processed.quarantined) };
    assert!(rejected.rejected);
    assert_eq!(
        (positions(&rejected.batch), rejected.reasons[0].as_str()),
        (vec![1], "not an access log line: no space after the client at byte 8")
    );
}

use common::header as header_values;
