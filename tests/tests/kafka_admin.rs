//! `flumen kafka` against a real broker: what it shows is what another client sees.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

use flumen_tests::kafka::client::TxnEnd;
use flumen_tests::kafka::{Broker, BrokerOptions, Bytes, ConsumeOptions, Message, client};
use flumen_tests::{limits, locate, poll};
use serde_json::Value;

fn command(broker: &Broker, line: &str) -> Command {
    let mut command = Command::new(locate::flumen().unwrap());
    command.arg("kafka").args(line.split_whitespace()).args(["-b", &broker.bootstrap()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn with_input(broker: &Broker, line: &str, input: &str) -> Output {
    let mut child = command(broker, line).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Of a command that changes nothing. It is asked again where nothing answered in the seconds that it waits: a busy machine may
/// stand still for as long.
fn run(broker: &Broker, line: &str) -> Output {
    let answer = poll::until_some(line, limits::CONDITION, || {
        let output = with_input(broker, line, "");
        Ok((!said(&output).contains("no answer")).then_some(output))
    });
    answer.unwrap()
}

/// A change that has to be made. One without an answer in time may be made all the same: who asks again is told so, in the words
/// of `made`.
fn change(broker: &Broker, line: &str, made: &str) {
    let mut is_again = false;
    poll::until(line, limits::CONDITION, || {
        let output = with_input(broker, line, "");
        if output.status.success() || (is_again && said(&output).contains(made)) {
            return Ok(true);
        }
        assert!(said(&output).contains("no answer"), "{line}: {}", said(&output));
        is_again = true;
        Ok(false)
    })
    .unwrap();
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// All that a command says.
fn said(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

/// Standard output of a command that has to end well.
fn well(broker: &Broker, line: &str) -> String {
    let output = run(broker, line);
    assert!(output.status.success(), "{line}: {}", said(&output));
    text(&output.stdout)
}

fn json(broker: &Broker, line: &str) -> Value {
    serde_json::from_str(&well(broker, line)).unwrap()
}

#[test]
fn topics_are_made_described_and_deleted() {
    let broker = Broker::shared().unwrap();
    let create = "topics create orders --partitions 3 --replication 1 --set cleanup.policy=compact";
    change(broker, create, "it exists already");
    let messages: Vec<Message> =
        (0..4).map(|n| Message { partition: Some(1), ..Message::value(format!("{n}")) }).collect();
    let keyed = messages.into_iter().map(|message| Message { key: Some(Bytes::from("k")), ..message });
    broker.client().produce("orders", &keyed.collect::<Vec<_>>()).unwrap();
    // The size of what cannot be read within some seconds is left out.
    let orders = poll::until_some("the topic with its size", limits::CONDITION, || {
        let topics = json(broker, "topics --json --sizes");
        let orders = topics.as_array().unwrap().iter().find(|topic| topic["name"] == "orders").cloned();
        Ok(orders.filter(|orders| orders["bytes_estimated"].is_u64()))
    })
    .unwrap();
    assert_eq!(orders["partitions"].as_array().unwrap().len(), 3);
    assert_eq!(orders["partitions"][0]["leader"], 1);
    assert_eq!(orders["offsets"][1]["end"], 4);
    assert_eq!(orders["records_at_most"], 4);
    assert!(orders["bytes_estimated"].as_u64().unwrap() >= 4 * 2, "{orders}");
    let described = well(broker, "topics describe orders");
    assert!(described.contains("cleanup.policy = compact\n"), "{described}");
    let refused = run(broker, "topics delete orders");
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("--yes"), "{}", text(&refused.stderr));
    change(broker, "topics delete orders --yes", "there is no topic \"orders\"");
    poll::until("the topic to be gone", limits::COMMAND, || Ok(!well(broker, "topics").contains("orders")))
        .unwrap();
    for (line, said) in [
        ("topics create a/b", "it has '/'"),
        ("topics create wide --replication 3", "fewer copies"),
        ("topics create odd --set no.such=1", "not one that a topic has"),
        ("topics describe nothing", "there is no topic \"nothing\""),
        ("topics delete nothing --yes", "there is no topic \"nothing\""),
        ("produce nothing", "there is no topic \"nothing\""),
        ("consume nothing", "there is no topic \"nothing\""),
    ] {
        let output = run(broker, line);
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(text(&output.stderr).contains(said), "{line}: {}", text(&output.stderr));
    }
    assert!(!well(broker, "topics").contains("nothing"), "asking for a topic made it");
}

#[test]
fn lines_are_written_and_read_as_they_are() {
    let broker = Broker::shared().unwrap();
    broker.client().create_topic("lines", 2, &[("max.message.bytes", "2000")]).unwrap();
    let input = format!("a:1\n:2\nno separator\nb:\u{e9}\nc:{}\nd:last", "x".repeat(3_000));
    let output = with_input(broker, "produce lines --key-separator : --header from=test", &input);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("line 3: has no \":\"") && said.contains("line 5: a record is larger"), "{said}");
    assert!(said.contains("4 records written to lines"), "{said}");
    let mut seen: Vec<(String, String, Option<String>)> =
        client::consume(&ConsumeOptions::new(&broker.client(), "lines"))
            .unwrap()
            .iter()
            .map(|record| (text(&record.key.as_ref().unwrap().0), record.text(), record.header("from")))
            .collect();
    seen.sort();
    let expected = [("", "2"), ("a", "1"), ("b", "\u{e9}"), ("d", "last")];
    let expected: Vec<_> =
        expected.map(|(key, value)| (key.into(), value.into(), Some("test".into()))).to_vec();
    assert_eq!(seen, expected);
    let mut values: Vec<String> =
        well(broker, "consume lines --from earliest").lines().map(str::to_owned).collect();
    values.sort();
    assert_eq!(values, ["1", "2", "last", "\u{e9}"]);
    assert_eq!(well(broker, "consume lines --from earliest --count 1").lines().count(), 1);
    assert_eq!(well(broker, "consume lines --from 2000-01-01T00:00:00Z").lines().count(), 4);
    let last: Value =
        serde_json::from_str(well(broker, "consume lines --from -1 --format json").lines().next().unwrap())
            .unwrap();
    assert_eq!(last["headers"], serde_json::json!([["from", "test"]]));
    assert_eq!(last["looks_like"], "text");
}

#[test]
fn only_committed_records_are_shown_and_flumes_avro_is_seen() {
    let broker = Broker::shared().unwrap();
    let client = broker.client();
    client.create_topic("avro", 1, &[]).unwrap();
    let datum = || Message::value(b"\x02\x08host\x08web1\x00\x0ahello".to_vec());
    client.produce_txn("avro", "avro-writer", &[datum()], TxnEnd::Commit).unwrap();
    client.produce_txn("avro", "avro-writer", &[Message::value("undone")], TxnEnd::Abort).unwrap();
    let raw = run(broker, "consume avro --from earliest");
    assert!(text(&raw.stderr).contains("look like Flume's Avro"), "{}", text(&raw.stderr));
    assert_eq!(raw.stdout, b"\x02\x08host\x08web1\x00\x0ahello\n");
    let decoded = json(broker, "consume avro --from earliest --format flume-avro");
    assert_eq!((&decoded["value"], &decoded["flume_headers"]["host"]), (&"hello".into(), &"web1".into()));
    assert_eq!(well(broker, "consume avro --from earliest --uncommitted --format json").lines().count(), 2);
}

#[test]
fn lag_is_what_a_group_has_not_read() {
    let broker = Broker::shared().unwrap();
    let client = broker.client();
    client.create_topic("read", 2, &[]).unwrap();
    let messages: Vec<Message> =
        (0..10).map(|n| Message { partition: Some(n % 2), ..Message::value(format!("{n}")) }).collect();
    client.produce("read", &messages).unwrap();
    let script = "import os, sys\nfrom confluent_kafka import Consumer\n\
        c = Consumer({'bootstrap.servers': sys.argv[1], 'group.id': 'readers', 'client.id': 'reader-1', 'auto.offset.reset': 'earliest', 'enable.auto.commit': False})\n\
        c.subscribe(['read'])\nn = 0\nwhile n < 3:\n  m = c.poll(1)\n  if m and not m.error():\n    n += 1\n    c.commit(m, asynchronous=False)\n\
        print('read', flush=True)\nsys.stdin.readline()\nc.close()\n";
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", broker.python()).args(["-c", script, &broker.bootstrap()]);
    let mut reader = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(reader.stdout.as_mut().unwrap()), &mut line)
        .unwrap();
    let groups = json(broker, "lag readers --json");
    let group = &groups[0];
    assert_eq!((&group["state"], &group["members"]), (&"Stable".into(), &1.into()), "{group}");
    let lag: i64 =
        group["partitions"].as_array().unwrap().iter().map(|one| one["lag"].as_i64().unwrap()).sum();
    assert_eq!(lag, 7, "{group}");
    let member = group["partitions"][0]["member"].as_str().unwrap();
    assert!(member.starts_with("reader-1 @ 127.0.0.1"), "{member}");
    drop(reader.stdin.take());
    reader.wait().unwrap();
    client.delete_records("read", 0, 5).unwrap();
    // It says good-bye at its end, and the broker hears of it a moment later.
    let mut shown = String::new();
    poll::until("the group to be empty", limits::CONDITION, || {
        shown = well(broker, "lag readers");
        Ok(shown.starts_with("group readers: Empty, 0 members"))
    })
    .unwrap_or_else(|error| panic!("{error}: {shown}"));
    assert!(well(broker, "lag --all").contains("readers"));
    let unknown = run(broker, "lag nobody");
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        text(&unknown.stderr).contains("no group \"nobody\" has offsets or members"),
        "{}",
        text(&unknown.stderr)
    );
}

#[test]
fn check_shows_who_fences_whom_and_what_is_missing() {
    let broker = Broker::shared().unwrap();
    let client = broker.client();
    client.create_topic("sold", 1, &[]).unwrap();
    // The broker is not to end the open one before it is looked at, however slow the machine is.
    let patient = client.clone().with([("transaction.timeout.ms".to_owned(), "900000".to_owned())]);
    for end in [TxnEnd::Commit, TxnEnd::Commit, TxnEnd::Open] {
        patient.produce_txn("sold", "flumen/agent/main/out/0", &[Message::value("x")], end).unwrap();
    }
    let mut report = Value::Null;
    // What cannot be read within some seconds is left out.
    poll::until("all transactions to be read in time", limits::CONDITION, || {
        report = json(broker, "check --json");
        Ok(report["transactions"]["is_complete"] == true)
    })
    .unwrap_or_else(|error| panic!("{error}: {report}"));
    assert_eq!(report["is_well"], true, "{report}");
    let known = &report["transactions"]["known"];
    let ours = known.as_array().unwrap().iter().find(|one| one["id"] == "flumen/agent/main/out/0").unwrap();
    assert_eq!(
        (&ours["state"], &ours["partitions"]),
        (&"Ongoing".into(), &serde_json::json!(["sold-0"])),
        "{ours}"
    );
    assert!(ours["epoch"].as_i64().unwrap() >= 2, "every start takes the id over: {ours}");
    let shown = well(broker, "check");
    assert!(shown.contains("flumen/agent/main/out/0  producer "), "{shown}");
    assert!(shown.ends_with("all is well\n"), "{shown}");
    client.create_topic("flumen-progress", 1, &[("cleanup.policy", "delete")]).unwrap();
    let bad = run(broker, "check");
    assert_eq!(bad.status.code(), Some(1));
    assert!(
        text(&bad.stdout).contains("BAD   topic flumen-progress: cleanup.policy is delete"),
        "{}",
        text(&bad.stdout)
    );
    client.delete_topic("flumen-progress").unwrap();
}

#[test]
fn a_cluster_too_small_for_transactions_is_told_with_the_fix() {
    let three = |name: &str| (name.to_owned(), "3".to_owned());
    let properties =
        vec![three("transaction.state.log.replication.factor"), three("transaction.state.log.min.isr")];
    let mut broker = Broker::start(&BrokerOptions { properties, ..BrokerOptions::default() }).unwrap();
    // It takes connections a moment before it knows that it is itself alive; who has a topic with a leader knows.
    broker.client().create_topic("any", 1, &[]).unwrap();
    let output = run(&broker, "check");
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stdout);
    assert!(
        shown.contains("BAD   transactions: not possible: __transaction_state should have 3 copies"),
        "{shown}"
    );
    assert!(shown.contains("set transaction.state.log.replication.factor=1"), "{shown}");
    // Nobody answers, and the connection stays open: the answer comes all the same.
    broker.pause().unwrap();
    let begun = std::time::Instant::now();
    let output = with_input(&broker, "check", "");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    assert!(begun.elapsed() < limits::COMMAND, "{:?}", begun.elapsed());
    broker.resume().unwrap();
    broker.kill().unwrap();
}

#[test]
fn an_interrupt_ends_a_wait_for_records() {
    let broker = Broker::shared().unwrap();
    broker.client().create_topic("quiet", 1, &[]).unwrap();
    for line in ["consume quiet", "produce quiet"] {
        let mut child = command(broker, line).spawn().unwrap();
        let stdin = child.stdin.take();
        let id = child.id();
        // /proc shows a signal as caught a moment before it is noted when it comes. SIGTERM is registered behind SIGINT: when it
        // is caught, an interrupt is noted.
        let terminate = 1_u64 << (rustix::process::Signal::TERM.as_raw() - 1);
        poll::until("the signals to be caught", limits::COMMAND, || {
            let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
            Ok(u64::from_str_radix(caught.trim(), 16)? & terminate != 0)
        })
        .unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let status =
            poll::until_some("the command to end", limits::COMMAND, || Ok(child.try_wait()?)).unwrap();
        assert!(status.success() && status.signal().is_none(), "{line}: {status}");
        drop(stdin);
    }
}
