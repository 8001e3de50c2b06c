//! Codecs in the sandbox: what they answer, and that a failure costs the guilty events or bytes and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::sync::Arc;

use arrow_array::{Array, StringArray};
use common::{Sandbox, batch, batch_with, guest, header, patient, plan};
use flumen_event::Batch;
use flumen_pipeline::codec::{Encoded, Intake, Origin};
use flumen_pipeline::plan::{OnReject, PluginLimits};
use flumen_pipeline::{Decoder, DecoderLink, Encoder, EncoderLink};
use flumen_plugin::{LoadError, PluginVersion, Role};

const CODEC: &str = "hostile_codec";

fn open(sandbox: &Sandbox, role: Role, name: &str, config: &str, limits: PluginLimits) -> Arc<PluginVersion> {
    sandbox.host.open_as(role, &guest(name), name, config, &[], limits).unwrap()
}

fn decoder(sandbox: &Sandbox, name: &str, config: &str) -> Arc<PluginVersion> {
    open(sandbox, Role::Decoder, name, config, patient())
}

fn encoder(sandbox: &Sandbox, name: &str, config: &str) -> Arc<PluginVersion> {
    open(sandbox, Role::Encoder, name, config, patient())
}

fn payloads(encoded: &Encoded) -> Vec<String> {
    encoded.payloads.iter().map(|payload| String::from_utf8_lossy(payload.unwrap()).into_owned()).collect()
}

fn bodies(batch: &Batch) -> Vec<String> {
    batch.body().iter().map(|body| String::from_utf8_lossy(body.unwrap()).into_owned()).collect()
}

/// Everything of an input that comes again until nothing of it is consumed: events, quarantined bytes with reason.
fn read(link: &DecoderLink, input: &[u8], is_last: bool) -> (Vec<Batch>, Vec<(String, String)>, usize) {
    let (mut events, mut bad, mut at) = (Vec::new(), Vec::new(), 0);
    loop {
        let origin = Origin { stream: 1, base: at as u64, time: 5 };
        let Intake { consumed, events: found, quarantined } =
            link.decode(&input[at..], is_last, 1 << 20, origin);
        events.push(found);
        for group in quarantined {
            assert_eq!((&*group.by, group.hash.len()), (CODEC, 64));
            bad.extend(bodies(&group.batch).into_iter().zip(group.reasons));
        }
        at += consumed;
        if consumed == 0 || at == input.len() {
            return (events, bad, at);
        }
    }
}

fn slot(sandbox: &Sandbox, config: &str) -> DecoderLink {
    let plugins = common::plugins();
    let slot = sandbox.host.slot_of(Role::Decoder, plan(CODEC, config), &plugins).unwrap();
    DecoderLink::new(slot, OnReject::Quarantine)
}

/// Long enough for a busy machine, and short enough for a test that waits for it some times.
fn slow() -> PluginLimits {
    PluginLimits { time: std::time::Duration::from_secs(2), ..PluginLimits::default() }
}

/// Memory for an answer that is over its limit.
fn roomy() -> PluginLimits {
    PluginLimits { memory_bytes: 512 << 20, ..patient() }
}

#[test]
fn a_file_is_opened_for_the_role_that_it_has() {
    let sandbox = Sandbox::new();
    let open =
        |role, name: &str| sandbox.host.open_as(role, &guest(name), name, "{}", &[], patient()).map(|_| ());
    assert!(open(Role::Decoder, CODEC).is_ok() && open(Role::Encoder, CODEC).is_ok());
    for (role, name) in [(Role::Interceptor, CODEC), (Role::Decoder, "noop"), (Role::Encoder, "filter")] {
        let error = open(role, name).unwrap_err();
        assert!(matches!(error, LoadError::WrongRole { .. }), "{error}");
    }
    let error =
        sandbox.host.open_as(Role::Decoder, &guest(CODEC), CODEC, "{\"lie\":\"open\"}", &[], patient());
    assert!(matches!(error.unwrap_err(), LoadError::Refused { text, .. } if text == "it does not open"));
}

#[test]
fn lines_are_decoded_wherever_the_input_is_cut() {
    let sandbox = Sandbox::new();
    let link = slot(&sandbox, "{\"tag\":\"x\"}");
    let (events, bad, at) = read(&link, b"one\ntwo\tthree\nREJECT it\nfo", false);
    let events = Batch::concat(&events).unwrap();
    assert_eq!((bodies(&events), at), (vec!["one".into(), "two".into(), "three".into()], 24));
    assert_eq!(header(&events, "tag"), vec![Some("x".to_owned()); 3]);
    assert_eq!(events.position().value(0), 4);
    assert_eq!(events.position().value(1), 14);
    assert_eq!(events.time().values().to_vec(), [5; 3]);
    assert_eq!(bad, [("REJECT it\n".into(), "`REJECT` was read".into())]);
    let (events, _, at) = read(&link, b"one\nfo", true);
    assert_eq!((events.iter().map(Batch::rows).sum::<usize>(), at), (2, 6));
}

#[test]
fn a_decoder_that_fails_costs_the_record_that_it_fails_on() {
    let sandbox = Sandbox::new();
    for (word, reason, limits) in [
        ("TRAP", "trapped", patient()),
        ("FAIL", "`FAIL` was read", patient()),
        ("BOMB", "limits.memory", patient()),
        ("LOOP", "longer than", slow()),
    ] {
        let mut settings = plan(CODEC, "{}");
        settings.limits = limits;
        let slot = sandbox.host.slot_of(Role::Decoder, settings, &common::plugins()).unwrap();
        let link = DecoderLink::new(slot.clone(), OnReject::Quarantine);
        // A record that never returns takes most of the time that there is for all of them.
        let second = if word == "LOOP" { "TRAP" } else { word };
        let text = format!("one\ntwo {word}\nthree\nfour {second} five\nsix\n");
        let (events, bad, at) = read(&link, text.as_bytes(), false);
        let events = Batch::concat(&events).unwrap();
        assert_eq!(bodies(&events), ["one", "three", "six"], "{word}: {bad:?}");
        let guilty: Vec<&str> = bad.iter().map(|(bytes, _)| bytes.as_str()).collect();
        assert_eq!(guilty, [format!("two {word}\n"), format!("four {second} five\n")], "{word}");
        assert!(bad[0].1.contains(reason), "{bad:?}");
        assert_eq!(at, text.len());
        assert_eq!(slot.stats().bisections, 2, "{word}");
    }
}

#[test]
fn lies_of_a_decoder_are_failures() {
    let sandbox = Sandbox::new();
    for (lie, reason) in [
        ("consumed", "consumed: 9 bytes of 8"),
        ("ends", "ends: event 2 ends at 0"),
        ("bad", "bad: an event ends at 4, in range 0: 0..8"),
        ("huge", "larger than its limit"),
    ] {
        let mut settings = plan(CODEC, &format!("{{\"lie\":{lie:?}}}"));
        settings.limits = roomy();
        let slot = sandbox.host.slot_of(Role::Decoder, settings, &common::plugins()).unwrap();
        let link = DecoderLink::new(slot, OnReject::Quarantine);
        let (events, bad, at) = read(&link, b"one\ntwo\n", true);
        assert_eq!((events.iter().map(Batch::rows).sum::<usize>(), at), (0, 8), "{lie}");
        let all: String = bad.iter().map(|(bytes, _)| bytes.as_str()).collect();
        assert_eq!(all, "one\ntwo\n", "{lie}: {bad:?}");
        assert!(
            bad[0].1.contains(reason) || bad.iter().any(|(_, why)| why.contains(reason)),
            "{lie}: {bad:?}"
        );
    }
}

#[test]
fn an_encoder_gives_a_payload_for_each_row() {
    let sandbox = Sandbox::new();
    let version = encoder(&sandbox, CODEC, r#"{"tag":">","begin":"begin {seed}\n","end":"end {seed}\n"}"#);
    let input = batch(&["one", "REJECT", "two"]);
    let encoded = version.encode(&input, None);
    assert_eq!(payloads(&encoded), [">one", ">two"]);
    assert_eq!(common::positions(&encoded.rows), [0, 2]);
    assert_eq!(bodies(&encoded.rows), ["one", "two"], "rows stay as they came");
    let [rejected] = encoded.quarantined.as_slice() else { panic!("{:?}", encoded.quarantined) };
    assert!(rejected.rejected && bodies(&rejected.batch) == ["REJECT"]);
    assert_eq!(rejected.reasons, ["`REJECT` was written"]);
    assert_eq!(payloads(&version.encode(&input, Some(1))), [">one\n", ">two\n"]);
    assert_eq!(version.begin(255).unwrap(), b"begin 00000000000000ff\n");
    assert_eq!(version.end(255).unwrap(), b"end 00000000000000ff\n");
    assert_eq!(version.encode(&Batch::empty(), None).rows.rows(), 0);
}

#[test]
fn an_encoder_that_fails_costs_the_rows_that_it_fails_on() {
    let sandbox = Sandbox::new();
    for (word, reason, limits) in [
        ("TRAP", "trapped", patient()),
        ("FAIL", "`FAIL` was read", patient()),
        ("BOMB", "limits.memory", patient()),
        ("LOOP", "longer than", slow()),
    ] {
        let version = open(&sandbox, Role::Encoder, CODEC, "{}", limits);
        let bad: &[usize] = if word == "LOOP" { &[700] } else { &[3, 700] };
        let input = batch_with(1_000, bad, word);
        let encoded = version.encode(&input, None);
        let good: Vec<u64> = (0..1_000).filter(|row| !bad.contains(&(*row as usize))).collect();
        assert_eq!(common::positions(&encoded.rows), good, "{word}");
        let expected: Vec<String> = good.iter().map(|row| format!("row {row}")).collect();
        assert_eq!(payloads(&encoded), expected, "{word}: each payload is its row's");
        let failed: Vec<u64> =
            encoded.quarantined.iter().flat_map(|group| common::positions(&group.batch)).collect();
        assert_eq!(failed, bad.iter().map(|row| *row as u64).collect::<Vec<_>>(), "{word}");
        for group in &encoded.quarantined {
            assert!(!group.rejected && group.reasons[0].contains(reason), "{group:?}");
            assert_eq!((&*group.by, &*group.hash), (CODEC, version.hash()));
        }
    }
}

#[test]
fn lies_of_an_encoder_are_failures() {
    let sandbox = Sandbox::new();
    for (lie, reason) in [("payloads", "payloads:"), ("bad", "payloads:"), ("huge", "larger than its limit")]
    {
        let version = open(&sandbox, Role::Encoder, CODEC, &format!("{{\"lie\":{lie:?}}}"), roomy());
        let encoded = version.encode(&batch(&["one", "two"]), None);
        assert_eq!((encoded.rows.rows(), encoded.payloads.len()), (0, 0), "{lie}");
        let reasons: Vec<&String> = encoded.quarantined.iter().flat_map(|group| &group.reasons).collect();
        assert_eq!(reasons.len(), 2, "{lie}");
        assert!(reasons.iter().all(|why| why.contains(reason)), "{lie}: {reasons:?}");
    }
    let version = encoder(&sandbox, CODEC, r#"{"no_begin":true,"no_end":true}"#);
    assert!(version.begin(1).unwrap_err().to_string().contains("no beginning"));
    assert!(version.end(1).unwrap_err().to_string().contains("no end"));
}

#[test]
fn rejected_rows_can_be_dropped() {
    let sandbox = Sandbox::new();
    let slot = sandbox.host.slot_of(Role::Encoder, plan(CODEC, "{}"), &common::plugins()).unwrap();
    let link = EncoderLink::new(slot, OnReject::Drop);
    let encoded = link.encode(link.current().as_ref(), &batch(&["REJECT", "TRAP", "ok"]), None);
    assert_eq!(payloads(&encoded), ["ok"]);
    assert_eq!(encoded.quarantined.len(), 1, "what it fails on is never dropped");
    let count = |metric| link.metrics().get(metric);
    use flumen_pipeline::Metric::{CodecEventsIn, CodecEventsOut, CodecFailed, CodecRejected};
    assert_eq!([CodecEventsIn, CodecEventsOut, CodecFailed, CodecRejected].map(count), [3, 1, 1, 1]);
}

#[test]
fn first_party_codecs_read_what_they_write() {
    let sandbox = Sandbox::new();
    let host: StringArray = [Some("web1"), None, Some("ü\"\n")].into_iter().collect();
    let text = batch(&["hello", "", "line\nbreak \u{1}"]).with_header("host", host.clone()).unwrap();
    let binary = batch(&[b"\xff\x00".as_slice(), b"{}", b"\""]).with_header("host", host).unwrap();
    for name in ["flume_avro", "json_lines"] {
        for input in [&text, &binary] {
            let encoded = encoder(&sandbox, name, "{}").encode(input, Some(1));
            assert!(encoded.quarantined.is_empty() && encoded.rows.rows() == 3, "{:?}", encoded.quarantined);
            let decoded = decoder(&sandbox, name, "{}").decode(encoded.bytes(), false);
            assert_eq!(decoded.consumed, encoded.bytes().len(), "{name}");
            assert!(decoded.bad.is_empty(), "{name}: {:?}", decoded.bad);
            assert_eq!(&decoded.events.body, input.body(), "{name}");
            let [column] = decoded.events.headers.as_slice() else { panic!("{:?}", decoded.events.headers) };
            assert_eq!((&*column.name, &column.values), ("host", input.header("host").unwrap()), "{name}");
            if name == "json_lines" {
                assert_eq!(decoded.events.time.as_ref(), Some(input.time()));
            }
        }
    }
    // shared with Flume: a header, then the body.
    let golden = encoder(&sandbox, "flume_avro", "{}").encode(&text.slice(0, 1), None);
    assert_eq!(golden.bytes(), b"\x02\x08host\x08web1\x00\x0ahello");
}
