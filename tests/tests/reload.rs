//! Edits of a running agent's configuration: by command, by signal, by the watch; taken over as a whole, or not at all.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;

use flumen_tests::output::LineCounter;
use flumen_tests::reload::{Stage, flow, start_output, stop_output, threads};
use flumen_tests::{limits, poll};
use rustix::process::Signal;
use serde_json::Value;

#[test]
fn pipelines_start_and_stop_with_their_files() {
    let stage = Stage::new("");
    stage.write("one", &flow("one"));
    let generator = stage.generator(500_000);
    let agent = stage.scene.start_ready().unwrap();
    // No command: the watch sees it.
    stage.write("two", &flow("two"));
    stage.wait("the second pipeline", |status| status["pipelines"].as_array().unwrap().len() == 2);
    stage.wait("its events", |_| {
        stage.pipeline("two").unwrap()["sinks"][0]["metrics"]["events_delivered"].as_u64().unwrap() > 100
    });
    fs::remove_file(stage.path("two")).unwrap();
    stage.wait("its end", |status| status["pipelines"].as_array().unwrap().len() == 1);
    let lines = LineCounter::default().count(&stage.scene.output.join("two")).unwrap();
    // It goes on where it ended.
    stage.write("two", &flow("two"));
    stage.wait("the second pipeline again", |status| status["pipelines"].as_array().unwrap().len() == 2);
    poll::until("more of it", limits::CONDITION, || {
        Ok(LineCounter::default().count(&stage.scene.output.join("two"))? > lines)
    })
    .unwrap();
    assert_eq!(stage.pipeline("one").unwrap()["generation"], 1);
    stage
        .wait("the generation", |status| status["generation"] == 4 && status["last_reload"]["by"] == "watch");
    stage.judge(agent, generator, "two");
}

/// The kinds of channels and the journal's settings restart the pipeline, exactly-once as any restart.
#[test]
fn a_pipeline_restarts_under_load_and_others_do_not() {
    let stage = Stage::new("watch = false");
    stage.write("web", &flow("web"));
    stage.write("other", &flow("other"));
    let generator = stage.generator(2_000_000);
    let agent = stage.scene.start_ready().unwrap();
    let kind = |kind: &str| format!("[channel.main]\nkind = \"{kind}\"\n");
    let segment = "[journal]\nsegment = \"1 MiB\"\n".to_owned();
    let plans = [kind("spillable"), kind("memory"), segment, kind("source-backed"), String::new()];
    for (turn, more) in plans.iter().enumerate() {
        stage.write("web", &format!("{}\n{more}", flow("web")));
        let answer = stage.ask(&["reload", "--drain"]);
        assert!(answer.status.success(), "{}{}", answer.stdout, answer.stderr);
        assert!(answer.stdout.contains("restarts as a whole"), "{}", answer.stdout);
        assert_eq!(stage.pipeline("web").unwrap()["generation"], turn + 2);
        assert_eq!(stage.pipeline("other").unwrap()["generation"], 1);
    }
    stage.judge(agent, generator, "web");
}

/// A broken edit changes nothing, whatever part of it is broken, and says why in the answer, the status and the log.
#[test]
fn a_broken_edit_changes_nothing() {
    let stage = Stage::new("watch = false");
    stage.scene.install("swap-a", "one").unwrap();
    // Small files, so that the sink soon has to open one.
    let out = flow("web").replace("encoding", "roll_size = \"128 KiB\"\nencoding");
    let good = format!("{out}\n[[interceptor]]\nplugin = \"one\"\n");
    stage.write("web", &good);
    stage.write("other", &flow("other"));
    let generator = stage.generator(1_000_000);
    let mut agent = stage.scene.start_ready().unwrap();
    let before = (threads(&agent, "source-", 2), threads(&agent, "sink-", 2));
    let edits: [(&str, String, i32, &str); 5] = [
        ("text", format!("{good}\n[["), 78, "syntax"),
        ("option", good.replace("flush_interval", "flush_intervall"), 78, "did you mean"),
        ("plugin", good.replace("plugin = \"one\"", "plugin = \"nowhere\""), 78, "nowhere"),
        ("source", good.replace("paths = [", "multiline_start = '('\npaths = ["), 78, "multiline_start"),
        ("channel", good.replace("[sink.out]", "[channel.new]\n[sink.out]\nchannel = \"new\""), 1, "--drain"),
    ];
    for (what, text, code, reason) in edits {
        // Another pipeline's good edit in the same reload must not be taken over either.
        stage.write("other", &format!("{}\n[batch]\nrows = 100\n", flow("other")));
        stage.write("web", &text);
        if code == 1 {
            // There has to be something to leave behind.
            stop_output(&stage);
        }
        let answer = stage.ask(&["reload"]);
        assert_eq!(answer.status.code(), Some(code), "{what}: {}{}", answer.stdout, answer.stderr);
        assert!(answer.stderr.contains(reason), "{what}: {}", answer.stderr);
        let status = stage.status();
        assert_eq!(status["generation"], 1, "{what}");
        assert_eq!(status["last_reload"]["ok"], false, "{what}");
        assert!(status["last_reload"]["text"].as_str().unwrap().contains(reason), "{what}: {status}");
        agent.wait_log("not reloaded", limits::CONDITION).unwrap();
        let after = (threads(&agent, "source-", 2), threads(&agent, "sink-", 2));
        assert_eq!(after, before, "{what}: something was touched");
        assert_eq!(stage.ask(&["plan"]).status.code(), Some(if code == 1 { 0 } else { code }), "{what}");
    }
    start_output(&stage);
    stage.write("web", &good);
    stage.write("other", &flow("other"));
    assert!(stage.reload().stdout.contains("still generation 1"));
    assert_eq!(stage.status()["last_reload"]["ok"], true);
    stage.judge(agent, generator, "web");
}

/// Whatever fails after parts were taken over brings the old ones back: here the journal of a new pipeline.
#[test]
fn a_reload_that_fails_half_way_is_taken_back() {
    let stage = Stage::new("watch = false");
    stage.write("gone", &flow("gone"));
    stage.write("web", &flow("web"));
    stage.write("whole", &flow("whole"));
    let generator = stage.generator(1_000_000);
    let agent = stage.scene.start_ready().unwrap();
    // A file where the new pipeline's directory would be made.
    fs::write(stage.scene.data.join("pipelines/new"), "in the way").unwrap();
    fs::remove_file(stage.path("gone")).unwrap();
    stage.write("new", &flow("new"));
    stage.scene.install("swap-a", "one").unwrap();
    stage.write("web", &format!("{}\n[[interceptor]]\nplugin = \"one\"\n[batch]\nrows = 10\n", flow("web")));
    stage.write("whole", &format!("{}\n[journal]\nsegment = \"1 MiB\"\n", flow("whole")));
    let answer = stage.ask(&["reload"]);
    assert_eq!(answer.status.code(), Some(1), "{}{}", answer.stdout, answer.stderr);
    assert!(answer.stderr.contains("pipelines/new"), "{}", answer.stderr);
    let status = stage.status();
    assert_eq!(status["generation"], 1);
    let mut names: Vec<_> =
        status["pipelines"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["gone", "web", "whole"]);
    assert!(stage.pipeline("web").unwrap()["interceptors"].as_array().unwrap().is_empty());
    assert!(status["pipelines"].as_array().unwrap().iter().all(|it| it["failure"].is_null()), "{status:#}");
    let delivered =
        |name: &str| stage.pipeline(name).unwrap()["sinks"][0]["metrics"]["events_delivered"].as_u64();
    let before: Vec<_> = names.iter().map(|name| delivered(name)).collect();
    stage.wait("all of them go on", |_| {
        names.iter().zip(&before).all(|(name, before)| delivered(name) > *before)
    });
    fs::remove_file(stage.scene.data.join("pipelines/new")).unwrap();
    stage.reload();
    assert_eq!(stage.status()["generation"], 2);
    stage.judge(agent, generator, "web");
}

/// SIGHUP takes the same way; many of them together are one reload, and none is lost.
#[test]
fn sighup_reloads() {
    let stage = Stage::new("watch = false");
    stage.write("web", &flow("web"));
    let mut agent = stage.scene.start_ready().unwrap();
    stage.write("web", &format!("{}\n[batch]\nrows = 100\n", flow("web")));
    (0..20).for_each(|_| agent.signal(Signal::HUP).unwrap());
    stage.wait("the new generation", |status| {
        status["generation"] == 2 && status["last_reload"]["by"] == "signal"
    });
    stage.write("web", "nonsense");
    agent.signal(Signal::HUP).unwrap();
    stage.wait("the error", |status| status["last_reload"]["ok"] == false);
    agent.expect_running().unwrap();
    let shown = stage.scene.shown().unwrap();
    assert!(shown.contains("FAILED and changed nothing"), "{shown}");
    agent.stop().unwrap();
}

/// Without the watch an edit waits to be asked for.
#[test]
fn the_watch_can_be_turned_off() {
    let stage = Stage::new("watch = false");
    stage.write("web", &flow("web"));
    let agent = stage.scene.start_ready().unwrap();
    stage.write("web", &format!("{}\n[batch]\nrows = 100\n", flow("web")));
    let plan = stage.ask(&["plan", "--exit-code"]);
    assert_eq!(plan.status.code(), Some(3), "{}{}", plan.stdout, plan.stderr);
    assert!(plan.stdout.contains("~ source in (batch)"), "{}", plan.stdout);
    // The look at the files is a second apart, a reload would have come long ago.
    assert_eq!(stage.status()["last_reload"], Value::Null);
    stage.reload();
    assert_eq!(stage.ask(&["plan", "--exit-code"]).status.code(), Some(0));
    // It can be turned on and off while the agent runs.
    let config = fs::read_to_string(stage.scene.config()).unwrap();
    fs::write(stage.scene.config(), config.replace("watch = false", "watch = true")).unwrap();
    stage.reload();
    stage.write("web", &flow("web"));
    stage.wait("the edit", |status| status["generation"] == 4);
    // What the process holds cannot change.
    fs::write(stage.scene.config(), config.replace("data_dir = \"", "data_dir = \"/elsewhere")).unwrap();
    let data = stage.scene.data.display().to_string();
    let answer = stage.scene.flumen(&["reload", "--data-dir", &data]).unwrap();
    assert_eq!(answer.status.code(), Some(1));
    assert!(answer.stderr.contains("`data_dir` of the agent cannot change"), "{}", answer.stderr);
    agent.stop().unwrap();
}

/// `flumen plan` without an agent.
#[test]
fn without_an_agent_everything_starts() {
    let stage = Stage::new("");
    stage.write("web", &flow("web"));
    let plan = stage.ask(&["plan"]);
    assert_eq!(plan.status.code(), Some(0), "{}", plan.stderr);
    assert!(
        plan.stdout.contains("no agent runs") && plan.stdout.contains("+ pipeline web"),
        "{}",
        plan.stdout
    );
    assert_eq!(stage.ask(&["plan", "--exit-code"]).status.code(), Some(3));
    assert_eq!(stage.ask(&["reload"]).status.code(), Some(1));
    stage.write("web", "nonsense");
    assert_eq!(stage.ask(&["plan"]).status.code(), Some(78));
}
