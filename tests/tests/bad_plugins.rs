//! Plugins that misbehave in every way that the issue names. For each: the agent stays up, exactly the
//! guilty rows are in quarantine with their reason, all others are delivered once.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;

use anyhow::Result;
use flumen_tests::scene::Scene;
use flumen_tests::{limits, locate, output, poll};
use serde_json::Value;

/// Lines of a run; a few of them are guilty.
const LINES: usize = 400;

fn is_guilty(at: usize) -> bool {
    at == 0 || at == 123 || at == LINES - 1
}

fn line(at: usize, trigger: &str) -> String {
    if is_guilty(at) { format!("line {at} {trigger}") } else { format!("line {at} innocent") }
}

fn pipeline(plugin: &str, extra: &str) -> String {
    format!(
        "[source.in]\ntype = \"tail\"\npaths = [\"{{in}}/*.log\"]\n\n[[interceptor]]\nplugin = \"{plugin}\"\n{extra}\n\n[sink.out]\ntype = \"file\"\npath = \"{{out}}/all.log\"\nflush_interval = \"50ms\"\n"
    )
}

fn hostile(misdeed: &str, trigger: &str) -> String {
    // Waiting for a busy machine counts, so the limit is short only where its end is what the test is about.
    let time = if misdeed == "loop-on" { "1s" } else { "60s" };
    let limits = format!("limits = {{ time = \"{time}\" }}");
    pipeline(
        "hostile",
        &format!("config = {{ do = \"{misdeed}\", only_bodies_containing = \"{trigger}\" }}\n{limits}"),
    )
}

/// Events in quarantine as text: the whole entry, to be searched.
fn quarantined(scene: &Scene) -> Result<Vec<String>> {
    Ok(scene.quarantine()?.iter().map(Value::to_string).collect())
}

fn delivered(scene: &Scene) -> Vec<String> {
    output::lines(&scene.output).unwrap().into_iter().map(|line| String::from_utf8(line).unwrap()).collect()
}

/// `reason`: a word of the reason in quarantine.
fn check(misdeed: &str, trigger: &str, reason: &[&str]) {
    let scene = Scene::new().unwrap();
    scene.install("hostile", "hostile").unwrap();
    scene.pipeline(&hostile(misdeed, trigger)).unwrap();
    let text: String = (0..LINES).map(|at| line(at, trigger) + "\n").collect();
    fs::write(scene.input().join("a.log"), text).unwrap();
    let mut agent = scene.start_ready().unwrap();
    let innocent: Vec<String> = (0..LINES).filter(|at| !is_guilty(*at)).map(|at| line(at, trigger)).collect();
    poll::until("the innocent rows", limits::CONDITION, || {
        agent.expect_running()?;
        Ok(delivered(&scene).len() >= innocent.len())
    })
    .unwrap();
    // The agent goes on with what comes later.
    let mut file = fs::OpenOptions::new().append(true).open(scene.input().join("a.log")).unwrap();
    writeln!(file, "line after").unwrap();
    poll::until("the line after", limits::CONDITION, || Ok(delivered(&scene).len() > innocent.len()))
        .unwrap();
    poll::until("the guilty rows", limits::CONDITION, || Ok(quarantined(&scene)?.len() >= 3)).unwrap();
    agent.expect_running().unwrap();
    agent.stop().unwrap();
    let expected: Vec<String> = innocent.into_iter().chain(["line after".to_owned()]).collect();
    assert_eq!(delivered(&scene), expected);
    let found = quarantined(&scene).unwrap();
    assert_eq!(found.len(), 3, "{found:#?}");
    for at in (0..LINES).filter(|at| is_guilty(*at)) {
        let entry = found.iter().find(|entry| entry.contains(&line(at, trigger)));
        let entry = entry.unwrap_or_else(|| panic!("line {at} is not in quarantine: {found:#?}"));
        assert!(entry.contains("hostile"), "the plugin is not named: {entry}");
        assert!(
            reason.iter().any(|word| entry.to_lowercase().contains(word)),
            "no word of {reason:?} in {entry}"
        );
    }
}

#[test]
fn endless_loop() {
    check("loop-on", "LOOP", &["time"]);
}

#[test]
fn memory_bomb() {
    check("bomb-on", "BOMB", &["memory"]);
}

#[test]
fn trap_on_chosen_rows() {
    check("trap-on", "TRAP", &["trap", "unreachable"]);
}

#[test]
fn lying_offsets() {
    check("lying-offsets", "LIES", &["offset"]);
}

#[test]
fn invalid_utf8() {
    check("bad-utf8", "UGLY", &["utf-8"]);
}

#[test]
fn answer_of_100_mb() {
    check("huge-answer", "HUGE", &["memory", "answer", "bytes"]);
}

/// A file that is no plugin, copied over a running one: nothing changes, and `status` and the log say why.
fn check_refused(bad: &[u8], reasons: &[&str]) {
    let scene = Scene::new().unwrap();
    scene.install("swap-a", "swap").unwrap();
    let json = pipeline("swap", "").replace("[sink.out]", "[sink.out]\nencoding = \"json\"");
    scene.pipeline(&json).unwrap();
    let path = scene.input().join("a.log");
    fs::write(&path, "one\n").unwrap();
    let mut agent = scene.start_ready().unwrap();
    poll::until("the first line", limits::CONDITION, || Ok(delivered(&scene).len() == 1)).unwrap();

    fs::write(scene.plugin_dir().join("swap.wasm"), bad).unwrap();
    poll::until("the refusal in status", limits::CONDITION, || {
        agent.expect_running()?;
        let status = scene.status()?.map(|status| status.0.to_string().to_lowercase()).unwrap_or_default();
        Ok(reasons.iter().any(|reason| status.contains(reason)))
    })
    .unwrap();
    poll::until("the refusal in the log", limits::CONDITION, || {
        let log = agent.log()?.to_lowercase();
        Ok(reasons.iter().any(|reason| log.contains(reason)))
    })
    .unwrap();

    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"two\n").unwrap();
    poll::until("the second line", limits::CONDITION, || Ok(delivered(&scene).len() == 2)).unwrap();

    // A good file afterwards is taken.
    scene.install("swap-b", "swap").unwrap();
    let mut count = 2;
    poll::until("the good version", limits::CONDITION, || {
        agent.expect_running()?;
        fs::OpenOptions::new().append(true).open(&path)?.write_all(b"more\n")?;
        count += 1;
        poll::until("one more line", limits::CONDITION, || Ok(delivered(&scene).len() == count))?;
        Ok(delivered(&scene).last().is_some_and(|line| line.contains("\"version\":\"b\"")))
    })
    .unwrap();
    agent.stop().unwrap();
    let lines = delivered(&scene);
    assert!(lines[0].contains("\"version\":\"a\"") && lines[1].contains("\"version\":\"a\""), "{lines:?}");
    assert_eq!(lines.len(), count);
    assert!(quarantined(&scene).unwrap().is_empty());
}

#[test]
fn truncated_file() {
    let whole = fs::read(locate::plugin("swap-b").unwrap()).unwrap();
    check_refused(&whole[..whole.len() / 2], &["damaged", "incomplete"]);
}

#[test]
fn no_wasm() {
    check_refused(b"#!/bin/sh\necho not a plugin\n", &["not webassembly"]);
}

#[test]
fn unknown_imports() {
    // A component that imports the function `evil`:
    // (component (type (func)) (import "evil" (func (type 0))))
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    bytes.extend(b"\x07\x05\x01\x40\x00\x01\x00");
    bytes.extend(b"\x0a\x09\x01\x00\x04evil\x01\x00");
    check_refused(&bytes, &["evil", "imports", "exports"]);
}

/// Whatever was tried, a plugin that cannot be opened never starts to process.
#[test]
fn refuses_to_open_at_start() {
    let scene = Scene::new().unwrap();
    scene.install("hostile", "hostile").unwrap();
    scene.pipeline(&hostile("open-error", "x")).unwrap();
    let mut agent = scene.start().unwrap();
    let status = agent.wait_exit(limits::READY).unwrap();
    assert_eq!(status.code(), Some(78), "{}", agent.log_tail());
    assert!(agent.log().unwrap().contains("open-error"), "{}", agent.log_tail());
    let names: BTreeSet<_> = output::files(&scene.output).unwrap().into_iter().collect();
    assert!(names.is_empty(), "{names:?}");
}
