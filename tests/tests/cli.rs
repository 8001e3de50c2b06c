//! The commands around the agent, through the real binary: what they print and how they end.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::io::{ErrorKind, Write};
use std::process::{Command, Output, Stdio};

use flumen_tests::{limits, locate, poll, scene::Scene};
use serde_json::Value;

const LINES: &str = concat!(
    "10.0.0.1 - - [10/Oct/2026:13:55:36 +0000] \"GET /a HTTP/1.1\" 200 5 \"-\" \"curl\"\n",
    "not a log line\n",
    "10.0.0.2 - - [10/Oct/2026:13:55:37 +0000] \"GET /b HTTP/1.1\" 503 5 \"-\" \"curl\"\n",
);

fn flumen(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(locate::flumen().unwrap());
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that finds its arguments wrong may be gone before it was given anything to read.
    match child.stdin.take().unwrap().write_all(input.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        other => other.unwrap(),
    }
    child.wait_with_output().unwrap()
}

fn json_lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn plugin_run_parses_lines_and_names_the_bad_one() {
    let plugin = locate::plugin("access-log").unwrap().display().to_string();
    let output = flumen(&["plugin", "run", &plugin], LINES);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let events = json_lines(&output);
    assert_eq!(events.len(), 2);
    assert_eq!(events[0]["headers"]["path"], "/a");
    assert_eq!(events[1]["headers"]["status"], "503");
    assert!(stderr(&output).contains("line 2 rejected: "), "{}", stderr(&output));
}

#[test]
fn plugin_run_says_which_key_of_the_configuration_is_wrong() {
    let plugin = locate::plugin("filter").unwrap().display().to_string();
    let output = flumen(&["plugin", "run", &plugin, "--config", r#"{"kepp": {"contains": "x"}}"#], LINES);
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("kepp"), "{}", stderr(&output));
}

#[test]
fn plugin_inspect_shows_what_a_file_is() {
    let plugin = locate::plugin("greedy").unwrap().display().to_string();
    let output = flumen(&["plugin", "inspect", &plugin, "--output", "json"], "");
    let found = &json_lines(&output)[0];
    assert_eq!(found["world"], "flumen:plugin/interceptor@0.2.0");
    assert_eq!(found["needs"].as_array().unwrap().len(), 3, "{found}");
    assert_eq!(found["imports"].as_array().unwrap().len(), 3, "{found}");
    assert_eq!(found["hash"].as_str().unwrap().len(), 64);
    assert!(found["size_bytes"].as_u64().unwrap() > 0);
    assert!(found["reads"].is_object(), "{found}");
}

#[test]
fn plugin_test_runs_cases_and_shows_a_difference() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("cases")).unwrap();
    std::fs::copy(locate::plugin("filter").unwrap(), dir.path().join("filter.wasm")).unwrap();
    let case = |output: &str| {
        format!(
            "config = {{ keep = {{ contains = \"5\" }} }}\n[[input]]\nbody = \"a5\"\n[[input]]\nbody = \"b\"\n{output}"
        )
    };
    let dir_name = dir.path().display().to_string();
    std::fs::write(dir.path().join("cases/good.toml"), case("[[output]]\nbody = \"a5\"\n")).unwrap();
    let output = flumen(&["plugin", "test", &dir_name], "");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    std::fs::write(dir.path().join("cases/wrong.toml"), case("[[output]]\nbody = \"b\"\n")).unwrap();
    let output = flumen(&["plugin", "test", &dir_name], "");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("FAILED wrong") && text.contains("2 passed, 1 failed"), "{text}");
}

/// Status, quarantine and journal of an agent that runs, for people and as JSON.
#[test]
fn a_running_agent_can_be_looked_at() {
    let scene = Scene::new().unwrap();
    scene.install("access-log", "access-log").unwrap();
    scene
        .pipeline(
            "[source.in]\ntype = \"tail\"\npaths = [\"{in}/*.log\"]\n\n[[interceptor]]\nplugin = \"access-log\"\n\n\
             [sink.out]\ntype = \"file\"\npath = \"{out}/{header.status}.log\"\nflush_interval = \"50ms\"\n",
        )
        .unwrap();
    std::fs::write(scene.input().join("a.log"), LINES).unwrap();
    let agent = scene.start_ready().unwrap();
    let data = scene.data.display().to_string();
    let json = |arguments: &[&str]| -> Value {
        let output = flumen(&[arguments, &["--data-dir", &data, "--output", "json"]].concat(), "");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        json_lines(&output).remove(0)
    };
    let status = poll::until_some("both sides have arrived", limits::READY, || {
        let has_all = |status: &Value| {
            let pipeline = &status["pipelines"][0];
            let sink = &pipeline["sinks"][0]["metrics"];
            let delivered = sink["events_delivered"] == 2 && sink["delivered_position"] == 2;
            // One figure is looked at after the other: these may be from before the lines came.
            let read = pipeline["sources"][0]["metrics"]["events_out"] == 3;
            let rejected = pipeline["interceptors"][0]["metrics"]["events_rejected"] == 1;
            read && rejected && delivered && pipeline["quarantine"]["events"] == 1
        };
        Ok(scene.status()?.map(|status| status.0).filter(has_all))
    })
    .unwrap();
    assert_eq!(status["pipelines"][0]["plugins"][0]["stats"]["traps"], 0);
    // The agent counts what is on its way to the disk.
    poll::until("the bad line on the disk", limits::CONDITION, || Ok(scene.quarantine()?.len() == 1))
        .unwrap();
    let list = json(&["quarantine", "list"]);
    assert_eq!(list["events"], 1);
    assert_eq!(list["groups"][0]["by"], "access-log");
    let shown = json(&["quarantine", "show"]);
    assert_eq!(shown["body"], "not a log line");
    assert!(
        shown["headers"]["flumen.reason"].as_str().unwrap().contains("not an access log line"),
        "{shown}"
    );
    let journal = format!("{data}/pipelines/main/journal");
    let inspected = flumen(&["journal", "inspect", &journal, "--commits", "--output", "json"], "");
    let inspected = &json_lines(&inspected)[0];
    assert_eq!(inspected["segments"][0]["damage"], serde_json::json!([]));
    assert!(inspected["segments"][0]["commits"].as_u64().unwrap() > 0, "{inspected}");
    let shown = scene.shown().unwrap();
    assert!(shown.contains("access-log"), "{shown}");
    let output = flumen(&["quarantine", "list", "--data-dir", &data], "");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("access-log"), "{text}");
    agent.stop().unwrap();
    let gone = flumen(&["status", "--data-dir", &data], "");
    assert_eq!(gone.status.code(), Some(1));
    assert!(stderr(&gone).contains("no agent answers"), "{}", stderr(&gone));
}

/// Standard input is a source that ends: the agent drains and ends too.
#[test]
fn standard_input_to_the_console() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    std::fs::write(&file, "[source]\ntype = \"stdin\"\n\n[sink]\ntype = \"console\"\nencoding = \"json\"\n")
        .unwrap();
    let output = flumen(&["run", &file.display().to_string()], "one\ntwo\n");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let bodies: Vec<Value> = json_lines(&output).into_iter().map(|mut event| event["body"].take()).collect();
    assert_eq!(bodies, ["one", "two"]);
}

/// A generator with a count ends too, and says the same after every restart.
#[test]
fn a_generator_counts_across_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    let out = dir.path().join("out.log").display().to_string();
    let text = format!(
        "[source]\ntype = \"generator\"\ncount = 5000\nsize = 64\nseed = 7\n\n[sink]\ntype = \"file\"\npath = {out:?}\n"
    );
    std::fs::write(&file, text).unwrap();
    for _ in 0..2 {
        let output = flumen(&["run", &file.display().to_string()], "");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
    let mut lines = 0;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "log") {
            lines += std::fs::read_to_string(path).unwrap().lines().count();
        }
    }
    assert_eq!(lines, 5000, "the second run began again");
}

#[test]
fn schema_is_json() {
    for which in ["pipeline", "agent"] {
        let output = flumen(&["schema", which], "");
        let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(schema["$schema"].is_string(), "{which}");
    }
}

/// A bad option of a source, of a sink, and a missing plugin: `check` and `run` say all three, each with its line.
#[test]
fn errors_of_components_and_plugins_come_together() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    let text = "[source.in]\ntype = \"tail\"\npaths = [\"/nowhere/*.log\"]\nmultiline_start = \"(\"\n\n[[interceptor]]\n\
                plugin = \"absent\"\n\n[sink.out]\ntype = \"file\"\npath = \"/nowhere/{nothing}.log\"\n";
    std::fs::write(&file, text).unwrap();
    for command in ["check", "run"] {
        let output = flumen(&[command, &file.display().to_string()], "");
        assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
        for place in ["p.toml:4:", "p.toml:7:", "p.toml:11:"] {
            assert!(stderr(&output).contains(place), "{command}: no {place} in\n{}", stderr(&output));
        }
    }
}

/// A sink that keeps its own cursor, on a channel that agents share: what `check` promises, and what it refuses.
#[test]
fn a_kafka_sink_on_a_shared_channel_is_exactly_once_on_its_cluster_and_takes_one_lane() {
    let scene = Scene::new().unwrap();
    let check_on = |broker: &str, channel: &str, more: &str| {
        scene
            .pipeline(&format!(
                "[source.in]\ntype = \"stdin\"\n\n[channel.main]\n{channel}\n[sink.out]\ntype = \"kafka\"\nbrokers = [\"{broker}\"]\ntopic = \"t\"\n{more}"
            ))
            .unwrap();
        let config = scene.config().display().to_string();
        scene.flumen(&["check", &config]).unwrap()
    };
    let shared = "kind = \"kafka\"\nbrokers = [\"k:9092\"]\n";
    let check = |channel: &str, more: &str| check_on("k:9092", channel, more);
    let same = check(shared, "");
    assert!(same.status.success() && same.stdout.contains("exactly-once"), "{}{}", same.stdout, same.stderr);
    let other = check_on("other:9092", shared, "");
    assert!(
        other.status.success() && other.stdout.contains("at-least-once"),
        "{}{}",
        other.stdout,
        other.stderr
    );
    let own = check("kind = \"file\"\n", "lanes = 2\n");
    assert!(own.status.success() && own.stdout.contains("exactly-once"), "{}{}", own.stdout, own.stderr);
    let refused = check(shared, "lanes = 2\n");
    assert_eq!(refused.status.code(), Some(78), "{}", refused.stdout);
    assert!(refused.stderr.contains("2 lanes cannot read a channel of kind \"kafka\""), "{}", refused.stderr);
}
