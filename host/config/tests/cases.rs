//! Case files of plugins.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use flumen_config::{
    CaseEvent, CaseFile, CaseRequest, CodecCase, MemoryEnv, SinkStep, SystemEnv, load_case, render,
};

fn case(text: &str) -> Result<CaseFile, String> {
    let mut env = MemoryEnv::default();
    env.files.insert("case.toml".into(), text.into());
    load_case("case.toml".as_ref(), &env).map_err(|errors| render(&errors))
}

#[test]
fn a_case() {
    let case = case(
        r#"
        config = { keep = { contains = "${503}" } }
        [[input]]
        body = "text"
        time = "1970-01-01T00:00:01.000000002+00:00"
        headers = { a = "b" }
        [[input]]
        body_base64 = "//4AgA=="
        time = 1970-01-01T01:00:00+01:00
        [[output]]
        body = ""
        [[rejected]]
        row = 1
        reason = "why"
        "#,
    )
    .unwrap();
    let event = |body: &[u8], time_ns, headers: &[(&str, &str)]| CaseEvent {
        body: body.to_vec(),
        time_ns,
        headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
    };
    let expected = CaseFile {
        config_json: r#"{"keep":{"contains":"${503}"}}"#.into(),
        inputs: vec![
            event(b"text", Some(1_000_000_002), &[("a", "b")]),
            event(b"\xff\xfe\x00\x80", Some(0), &[]),
        ],
        outputs: vec![event(b"", None, &[])],
        rejected: vec![(1, "why".into())],
        open_error: None,
        codec: None,
        steps: Vec::new(),
    };
    assert_eq!(case, expected);
}

#[test]
fn a_case_that_must_not_open() {
    let case = case("open_error = \"part\"").unwrap();
    assert_eq!((case.open_error.as_deref(), case.config_json.as_str()), (Some("part"), "{}"));
}

#[test]
fn wrong_cases() {
    let wrong = case(
        r#"
config = 5
colour = "red"
[[input]]
bdy = "x"
[[input]]
body = "x"
body_base64 = "eA=="
[[input]]
body_base64 = "eA"
[[input]]
body = 5
[[input]]
body = "x"
time = "yesterday"
[[input]]
body = "x"
time = 2026-01-01T00:00:00
[[input]]
body = "x"
time = "9999-01-01T00:00:00Z"
headers = { a = 1 }
[output]
body = "x"
[[rejected]]
row = 99
[[rejected]]
reason = "x"
"#,
    );
    insta::assert_snapshot!("case", wrong.unwrap_err());
    let both = case("open_error = \"x\"\n[[input]]\nbody = \"x\"");
    insta::assert_snapshot!("case_open_error", both.unwrap_err());
}

#[test]
fn the_cases_of_the_first_plugins_can_be_read() {
    let plugins = common::here("../../plugins");
    let mut count = 0;
    for plugin in std::fs::read_dir(plugins).unwrap() {
        let Ok(cases) = std::fs::read_dir(plugin.unwrap().path().join("cases")) else { continue };
        for file in cases {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|ending| ending == "toml") {
                load_case(&path, &SystemEnv).unwrap_or_else(|errors| panic!("{}", render(&errors)));
                count += 1;
            }
        }
    }
    assert!(count > 0);
}

#[test]
fn cases_of_codecs() {
    let decode =
        case("[decode]\nbase64 = \"AAE=\"\nis_last = false\nleft = 1\n[[bad]]\ntext = \"x\"\nreason = \"y\"")
            .unwrap();
    let expected = CodecCase::Decode {
        input: vec![0, 1],
        is_last: false,
        left: 1,
        bad: vec![(b"x".to_vec(), "y".into())],
    };
    assert_eq!(decode.codec, Some(expected));
    let encode = case("[encode]\npayloads_base64 = [\"AAE=\"]").unwrap();
    assert_eq!(encode.codec, Some(CodecCase::Messages(vec![vec![0, 1]])));
    assert_eq!(case("[encode]\nfile = \"x\"").unwrap().codec, Some(CodecCase::File(b"x".to_vec())));
    for (text, reason) in [
        ("[decode]", "has `text` or `base64`"),
        ("[decode]\ntext = \"a\"\nbase64 = \"AA==\"", "has `text` or `base64`"),
        ("[decode]\nbase64 = \"A\"", "is not base64"),
        ("[decode]\ntext = \"a\"\n[encode]\nfile = \"x\"", "not both"),
        ("[[bad]]\ntext = \"a\"", "there is no `decode`"),
        ("[encode]", "one of `payloads`"),
        ("[encode]\npayloads = []\nfile = \"x\"", "one of `payloads`"),
    ] {
        let wrong = case(text).unwrap_err();
        assert!(wrong.contains(reason), "{reason:?} is not in {wrong}");
    }
}

#[test]
fn cases_of_sinks() {
    let case_of_sink = case(
        r#"
        [[step]]
        recovered = "c1"
        [[step.request]]
        method = "GET"
        url = "http://a/b"
        headers = { x = "1" }
        answer = "text"
        answer_headers = { y = "2" }
        [[step]]
        cursor = "c2"
        retry = "busy"
        retry_after = "5s"
        [[step.input]]
        body = "x"
        [[step.request]]
        body = "x"
        fails = "timed-out"
        "#,
    )
    .unwrap();
    let map = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into();
    let asked = SinkStep {
        recovered: Some(b"c1".to_vec()),
        requests: vec![CaseRequest {
            method: Some("GET".into()),
            url: Some("http://a/b".into()),
            headers: map("x", "1"),
            status: 200,
            answer: "text".into(),
            answer_headers: map("y", "2"),
            ..CaseRequest::default()
        }],
        ..SinkStep::default()
    };
    let delivers = SinkStep {
        cursor: b"c2".to_vec(),
        retry: Some("busy".into()),
        retry_after: Some(Duration::from_secs(5)),
        requests: vec![CaseRequest {
            body: Some("x".into()),
            fails: Some("timed-out".into()),
            status: 200,
            ..CaseRequest::default()
        }],
        ..SinkStep::default()
    };
    let steps: Vec<SinkStep> = case_of_sink.steps.into_iter().map(|step| step.sink).collect();
    assert_eq!(steps, [asked, delivers]);
    for (text, reason) in [
        ("[[step]]\nretry = \"a\"\nerror = \"b\"", "`retry` or `error`"),
        ("[[step]]\n[[step.request]]\nstatus = 99", "status"),
        ("[[step]]\n[[step.request]]\nstatus = 200\nfails = \"denied\"", "has no answer"),
        ("[[step]]\n[[step.request]]\nfails = \"maybe\"", "timed-out"),
    ] {
        let error = case(text).unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
}
