//! The generator across restarts, and standard input.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use flumen_pipeline::{Metric, Value};
use support::{Journal, Setup};

#[test]
fn generator_goes_on_at_the_committed_number() {
    for format in ["lines", "access-log"] {
        let journal = Journal::default();
        let mut setup = Setup::new("generator").text("format", format).set("rate", Value::Integer(0));
        setup.batch.rows = 10;
        setup = setup.set("count", Value::Integer(1_000));
        for committed in [3, 1, 20] {
            let run = setup.start(&journal);
            journal.wait_count(500);
            run.crash(committed);
        }
        assert_eq!(journal.events().len(), 240);
        setup.start(&journal).join();
        let again = Journal::default();
        setup.start(&again).join();
        assert_eq!(journal.events(), again.events(), "the same events, crashes or not");
        let positions: Vec<u64> = journal.events().iter().map(|seen| seen.identity.position).collect();
        assert_eq!(positions, (0..1_000).collect::<Vec<u64>>());
        assert_eq!(
            journal.events().iter().map(|seen| seen.identity.stream).collect::<BTreeSet<_>>().len(),
            1
        );
        // At its end it stays at its end.
        setup.start(&journal).join();
        assert_eq!(journal.events().len(), 1_000);
    }
}

/// Runs in a process of its own, started by the test below with something to read.
#[test]
fn stdin_child() {
    let Ok(expected) = std::env::var("FLUMEN_TEST_STDIN") else { return };
    let journal = Journal::default();
    let mut setup = Setup::new("stdin").set("max_line", Value::Size(64));
    match expected.as_str() {
        "stop" => {
            let run = setup.start(&journal);
            journal.wait_count(1);
            run.stop();
        }
        "restart" | "refused" => {
            // Only the stop makes the source emit.
            setup.batch.linger = Duration::from_secs(3_600);
            let run = setup.start(&journal);
            run.wait_metric(Metric::SourceBytesRead, 6);
            if expected == "refused" {
                run.crash_in(0);
            }
            run.stop();
            println!("\nstopped with {}", journal.events().len());
            setup.start(&journal).join();
        }
        _ => setup.start(&journal).join(),
    }
    let bodies: Vec<String> = journal
        .events()
        .iter()
        .map(|seen| format!("{}{}", seen.body, if seen.continued { "+" } else { "" }))
        .collect();
    println!("\n{}", bodies.join("|"));
}

fn child(mode: &str) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "stdin_child", "--nocapture"])
        .env("FLUMEN_TEST_STDIN", mode)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn stdin_is_read_to_its_end() {
    let mut child = child("end");
    let long = "y".repeat(100);
    child.stdin.take().unwrap().write_all(format!("one\n\n{long}\nlast").as_bytes()).unwrap();
    let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert!(output.contains(&format!("one||{}|{}+|last", "y".repeat(64), "y".repeat(36))), "{output}");
}

#[test]
fn stdin_stops_while_nothing_comes() {
    let mut child = child("stop");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one\n").unwrap();
    let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    drop(stdin);
    assert!(output.contains("\none\n"), "{output}");
}

/// What the first source has read is emitted when it stops, or by the second one, and the line that it was in is whole.
#[test]
fn stdin_that_is_restarted_loses_nothing_and_tears_no_line() {
    for (mode, emitted) in [("restart", 1), ("refused", 0)] {
        let mut child = child(mode);
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"one\nha").unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut seen = String::new();
        while !seen.contains("\nstopped with ") {
            assert!(output.read_line(&mut seen).unwrap() > 0, "{mode}: {seen}");
        }
        assert!(seen.ends_with(&format!("stopped with {emitted}\n")), "{mode}: {seen}");
        stdin.write_all(b"lf\n").unwrap();
        drop(stdin);
        output.read_to_string(&mut seen).unwrap();
        assert!(child.wait().unwrap().success(), "{mode}: {seen}");
        assert!(seen.contains("\none|half\n"), "{mode}: {seen}");
    }
}
