//! Files of plugins and edits: what is missing or broken, a directory of interceptors, versions that are rolled back or run beside the
//! flow.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;

use flumen_tests::generator::{Generator, Load};
use flumen_tests::reload::{Stage, flow, threads};
use flumen_tests::{limits, locate, poll};
use serde_json::Value;

/// An edit whose plugin is missing is taken over when the plugin comes; a broken file of a plugin is part of the answer.
#[test]
fn plugins_are_part_of_the_answer() {
    let stage = Stage::new("");
    stage.write("web", &flow("web"));
    let agent = stage.scene.start_ready().unwrap();
    stage.write("web", &format!("{}\n[[interceptor]]\nplugin = \"late\"\n", flow("web")));
    stage.wait("the error", |status| status["last_reload"]["ok"] == false);
    stage.scene.install("swap-a", "late").unwrap();
    stage.wait("the new generation", |status| status["generation"] == 2);
    fs::write(stage.scene.plugin_dir().join("late.wasm"), "no plugin").unwrap();
    let answer = stage.ask(&["reload"]);
    assert_eq!(answer.status.code(), Some(78), "{}{}", answer.stdout, answer.stderr);
    assert!(answer.stderr.contains("late.wasm"), "{}", answer.stderr);
    stage.scene.install("swap-b", "late").unwrap();
    stage.reload();
    // The watch over plugin files may have been quicker, and says a moment later that all is well.
    stage.wait("one swap, and no error", |_| {
        let plugin = &stage.pipeline("web").unwrap()["plugins"][0];
        (&plugin["swaps"], &plugin["last_swap_error"]) == (&Value::from(1), &Value::Null)
    });
    agent.stop().unwrap();
}

/// A plugin's file whose schema refuses the options that run keeps out an edit of the same reload.
#[test]
fn options_that_a_new_file_refuses_change_nothing() {
    let stage = Stage::new("watch = false");
    let scene = &stage.scene;
    let chain = "\n[[interceptor]]\nplugin = \"filter\"\nconfig = { keep = { contains = \"e\" } }\n";
    scene.install("filter", "filter").unwrap();
    stage.write("web", &format!("{}{chain}", flow("web")));
    stage.write("other", &flow("other"));
    let agent = scene.start_ready().unwrap();
    // It opens as before; but its schema has another name for the option.
    let mut bytes = fs::read(locate::plugin("filter").unwrap()).unwrap();
    let at = bytes.windows(10).position(|part| part == b"\"contains\"").unwrap();
    bytes[at + 1] = b'k';
    fs::write(scene.plugin_dir().join("filter.wasm"), bytes).unwrap();
    stage.write("other", &format!("{}\n[batch]\nrows = 100\n", flow("other")));
    let answer = stage.ask(&["reload"]);
    assert_eq!(answer.status.code(), Some(78), "{}{}", answer.stdout, answer.stderr);
    assert!(answer.stderr.contains("the plugin has no option `contains`"), "{}", answer.stderr);
    let status = stage.status();
    assert_eq!((&status["generation"], &status["last_reload"]["ok"]), (&Value::from(1), &Value::from(false)));
    assert_eq!(stage.pipeline("web").unwrap()["plugins"][0]["swaps"], 0);
    scene.install("filter", "filter").unwrap();
    stage.reload();
    assert_eq!(stage.status()["generation"], 2);
    agent.stop().unwrap();
}

/// Components of a directory are interceptors in the order of their names: dropped in, taken out, replaced, broken.
#[test]
fn a_directory_of_interceptors() {
    let stage = Stage::new("");
    let dir = stage.scene.root().join("pipelines/web.d");
    fs::create_dir(&dir).unwrap();
    stage.write("web", &format!("interceptors_from = \"web.d\"\n{}", flow("web")));
    let generator = stage.generator(1_000_000);
    let mut agent = stage.scene.start_ready().unwrap();
    let put = |plugin: &str, name: &str| {
        fs::copy(locate::plugin(plugin).unwrap(), dir.join(name)).unwrap();
    };
    let chain = || -> Vec<String> {
        let web = stage.pipeline("web").unwrap();
        let plugins = web["plugins"].as_array().unwrap();
        plugins.iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
    };
    let mut names: Vec<&str> = Vec::new();
    for (plugin, name) in [("swap-a", "20-a"), ("swap-b", "10-b"), ("noop", "30-noop")] {
        put(plugin, &format!("{name}.wasm"));
        names.push(name);
        names.sort();
        stage.wait("the interceptor in the flow", |_| chain() == names);
    }
    let source = threads(&agent, "source-in", 1);
    // An error may be there already: of a file that was seen half-copied.
    let told = |part: &str| -> String {
        poll::until_some(&format!("the error about {part}"), limits::CONDITION, || {
            let last = stage.status()["last_reload"].clone();
            let text = last["text"].as_str().filter(|text| last["ok"] == false && text.contains(part));
            Ok(text.map(str::to_owned))
        })
        .unwrap()
    };
    // A bad one changes nothing and is told.
    fs::write(dir.join("15-bad.wasm"), "no plugin").unwrap();
    let text = told("15-bad.wasm");
    assert!(text.contains("15-bad.wasm") && text.contains("interceptors_from"), "{text}");
    agent.wait_log("15-bad.wasm", limits::CONDITION).unwrap();
    assert_eq!(chain(), names);
    // Mended, it joins; taken out, they leave.
    put("noop", "15-bad.wasm");
    stage.wait("the mended one", |_| chain() == ["10-b", "15-bad", "20-a", "30-noop"]);
    for name in ["15-bad", "20-a", "10-b", "30-noop"] {
        fs::remove_file(dir.join(format!("{name}.wasm"))).unwrap();
        stage.wait("one that left", |_| !chain().contains(&name.to_owned()));
    }
    stage.wait("the good state", |status| status["last_reload"]["ok"] == true);
    assert_eq!(source, threads(&agent, "source-in", 1));
    // With settings beside it, which are watched, too; an error is told at its place in that file. They come at once: an empty file is
    // good settings.
    let settings = |text: &str| {
        fs::write(dir.join(".40-f"), text).unwrap();
        fs::rename(dir.join(".40-f"), dir.join("40-f.toml")).unwrap();
    };
    settings("config = { drop = { contains = \"nobody writes this\" } }\n");
    put("filter", "40-f.wasm");
    stage.wait("the one with settings", |_| chain() == ["40-f"]);
    // The generation is counted at the end of a reload, for which a plan waits.
    stage.ask(&["plan"]);
    let generation = stage.status()["generation"].as_u64().unwrap();
    settings("config = { drop = { containz = \"x\" } }\n");
    let text = told("containz");
    assert!(text.contains("40-f.toml:1:") && text.contains("containz"), "{text}");
    settings("config = { drop = { contains = \"nor this\" } }\non_reject = \"drop\"\n");
    stage.wait("the edit", |status| status["generation"] == generation + 1);
    assert_eq!((chain(), source), (vec!["40-f".to_owned()], threads(&agent, "source-in", 1)));
    stage.judge(agent, generator, "web");
}

/// A new version with a bug is rolled back under load: nothing is lost, doubled, or put into quarantine.
#[test]
fn a_buggy_version_is_rolled_back() {
    let stage = Stage::new("");
    stage.scene.install("swap-a", "swap").unwrap();
    stage.write("web", &format!("{}\n[[interceptor]]\nplugin = \"swap\"\n", flow("web")));
    let generator = stage.generator(1_000_000);
    let mut agent = stage.scene.start_ready().unwrap();
    let plugin = || stage.pipeline("web").unwrap()["plugins"][0].clone();
    for turn in 1..=2 {
        stage.scene.install("swap-trap", "swap").unwrap();
        stage.wait("the rollback", |_| plugin()["rollbacks"] == turn);
        let error = plugin()["last_swap_error"].as_str().unwrap().to_owned();
        assert!(error.contains("rolled back"), "{error}");
        agent.wait_log("plugin rolled back", limits::CONDITION).unwrap();
        // Another good one, so that the bad one is new again.
        stage.scene.install(if turn == 1 { "swap-b" } else { "swap-a" }, "swap").unwrap();
        stage.wait("the next version", |_| plugin()["last_swap_error"].is_null());
    }
    assert_eq!(stage.pipeline("web").unwrap()["quarantine"]["events"], 0);
    stage.judge(agent, generator, "web");
}

/// The same of a version that keeps state, with lines that come twice: each comes out once, so what the buggy version wrote for
/// the batches that it failed on is undone, and what was remembered before is still there. Kills come in between.
#[test]
fn a_buggy_version_with_state_is_rolled_back() {
    let stage = Stage::new("");
    stage.scene.install("remembers", "once").unwrap();
    stage
        .write("web", &format!("{}\n[[interceptor]]\nplugin = \"once\"\ngrant = [\"state\"]\n", flow("web")));
    let generator = Generator::start(Load { has_doubles: true, ..stage.load(1_000_000) }).unwrap();
    let plugin = || stage.pipeline("web").unwrap()["plugins"][0].clone();
    for _ in 0..2 {
        let agent = stage.scene.start_ready().unwrap();
        stage.wait("a flow", |_| {
            stage.pipeline("web").unwrap()["sinks"][0]["metrics"]["events_delivered"].as_u64().unwrap()
                > 1_000
        });
        stage.scene.install("remembers-trap", "once").unwrap();
        stage.wait("the rollback", |_| plugin()["rollbacks"] == 1);
        assert!(plugin()["last_swap_error"].as_str().unwrap().contains("rolled back"), "{}", plugin());
        stage.scene.install("remembers", "once").unwrap();
        stage.wait("the good file", |_| plugin()["last_swap_error"].is_null());
        agent.kill().unwrap();
    }
    let agent = stage.scene.start_ready().unwrap();
    assert_eq!(stage.pipeline("web").unwrap()["quarantine"]["events"], 0);
    stage.judge(agent, generator, "web");
}

#[test]
fn a_new_version_runs_beside_the_flow() {
    let stage = Stage::new("");
    stage.scene.install("swap-a", "swap").unwrap();
    stage.write("web", &format!("{}\n[[interceptor]]\nplugin = \"swap\"\n", flow("web")));
    let generator = stage.generator(1_000_000);
    let agent = stage.scene.start_ready().unwrap();
    let data = stage.scene.data.display().to_string();
    let shadow = |plugin: &str, on: &str, json: bool| {
        let file = locate::plugin(plugin).unwrap().display().to_string();
        let output = if json { "json" } else { "human" };
        let words = [
            "plugin",
            "shadow",
            &file,
            "--on",
            on,
            "--data-dir",
            &data,
            "--rows",
            "2000",
            "--seconds",
            "60",
            "--output",
            output,
        ];
        stage.scene.flumen(&words).unwrap()
    };
    let answer = shadow("swap-b", "web", true);
    assert!(answer.status.success(), "{}", answer.stderr);
    let report: Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!((&report["same"], &report["changed"]), (&Value::from(0), &report["events"]));
    assert_eq!(report["differences"][0]["new"][0]["headers"]["version"], "b");
    let answer = shadow("swap-trap", "web/swap", false);
    assert!(
        answer.stdout.contains("only the running one") && answer.stdout.contains("ns per event"),
        "{}",
        answer.stdout
    );
    let answer = shadow("swap-b", "web/none", false);
    assert_eq!(answer.status.code(), Some(1));
    assert!(answer.stderr.contains("it has swap"), "{}", answer.stderr);
    let web = stage.pipeline("web").unwrap();
    assert_eq!(
        (&web["plugins"][0]["swaps"], &web["quarantine"]["events"]),
        (&Value::from(0), &Value::from(0))
    );
    stage.judge(agent, generator, "web");
}
