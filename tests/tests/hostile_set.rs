//! The hostile set on the real binary: one pipeline's plugin is swapped for each of its guests in turn, and each is
//! reported by name and reason; the pipeline beside it delivers every line once, in order, all the while.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic"
)]

#[path = "../../host/plugin/tests/forge/mod.rs"]
mod forge;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flumen_tests::scene::Scene;
use flumen_tests::{limits, output, poll};
use forge::Forge;
use forge::set::{Fate, Hostile};
use serde_json::Value;

/// Until a guest works. What takes seconds to compile on a quiet machine takes minutes on a busy one.
const SWAPPED: Duration = Duration::from_secs(300);

/// Between two lines of the good pipeline.
const PACE: Duration = Duration::from_millis(5);

fn pipeline(name: &str, more: &str) -> String {
    format!(
        "[source.in]\ntype = \"tail\"\npaths = [\"{{in}}/{name}.log\"]\n\n[[interceptor]]\nplugin = \"{name}\"\n{more}\n\n\
         [sink.out]\ntype = \"file\"\npath = \"{{out}}/{name}/all.log\"\nflush_interval = \"20ms\"\n"
    )
}

/// Puts a file in place at once: a guest that is half there is another test.
fn put(scene: &Scene, bytes: &[u8]) {
    let dir = scene.plugin_dir();
    fs::write(dir.join("victim.tmp"), bytes).unwrap();
    fs::rename(dir.join("victim.tmp"), dir.join("victim.wasm")).unwrap();
}

fn append(path: &Path, line: &str) {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "{line}").unwrap();
}

/// What `status` says of the victim's plugin.
fn plugin(scene: &Scene) -> Value {
    let status = scene.answered().unwrap().0;
    let pipelines = status["pipelines"].as_array().unwrap();
    pipelines.iter().find(|pipeline| pipeline["name"] == "victim").unwrap()["plugins"][0].clone()
}

fn quarantined(scene: &Scene) -> Vec<Value> {
    let data = scene.data.display().to_string();
    let words = [
        "quarantine",
        "show",
        "--pipeline",
        "victim",
        "--data-dir",
        &data,
        "--limit",
        "9999",
        "--output",
        "json",
    ];
    let answer = scene.flumen(&words).unwrap();
    assert!(answer.status.success(), "{}", answer.stderr);
    answer.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn lines(scene: &Scene, name: &str) -> Vec<String> {
    let dir = scene.output.join(name);
    let lines = if dir.exists() { output::lines(&dir).unwrap() } else { Vec::new() };
    lines.into_iter().map(|line| String::from_utf8(line).unwrap()).collect()
}

/// The file that is there is refused, and the old version works on.
fn check_refused(scene: &Scene, hostile: &Hostile, part: &str, running: &[u8]) {
    let error = || plugin(scene)["last_swap_error"].as_str().map(str::to_owned);
    put(scene, &hostile.bytes);
    // The name of the file is not that of the unit test.
    let part = part.replace("guest.wasm", "victim.wasm");
    poll::until(hostile.name, SWAPPED, || {
        let told = error().unwrap_or_default();
        let is_refused = told.contains(&part) && told.contains("victim.wasm");
        if !is_refused && told.contains("took longer than") {
            // It stood still on a busy machine before it did what it is here for.
            put(scene, &hostile.bytes);
        }
        Ok(is_refused)
    })
    .unwrap();
    put(scene, running);
    poll::until("the file that runs is back", limits::CONDITION, || Ok(error().is_none())).unwrap();
}

/// The file that is there works, or fails as it should. How many of its lines came too late on a busy machine, for no fault of its own.
fn check_swapped(scene: &Scene, hostile: &Hostile) -> usize {
    let before = plugin(scene)["swaps"].as_u64().unwrap();
    put(scene, &hostile.bytes);
    poll::until(hostile.name, SWAPPED, || {
        let told = plugin(scene);
        if told["last_swap_error"].as_str().is_some_and(|error| error.contains("took longer than")) {
            // It stood still when it was opened.
            put(scene, &hostile.bytes);
        }
        Ok(told["swaps"].as_u64().unwrap() > before)
    })
    .unwrap();
    let (mut late, path) = (0, scene.input().join("victim.log"));
    let line_after = |late: usize| format!("for {}{}", hostile.name, "+".repeat(late));
    append(&path, &line_after(late));
    poll::until(hostile.name, SWAPPED, || {
        let line = line_after(late);
        if matches!(hostile.fate, Fate::Works) && lines(scene, "victim").contains(&line) {
            return Ok(true);
        }
        let events = quarantined(scene);
        let Some(event) = events.iter().find(|event| event["body"] == line.as_str()) else {
            return Ok(false);
        };
        let reason = event["headers"]["flumen.reason"].as_str().unwrap();
        if matches!(hostile.fate, Fate::Fails(part) if reason.contains(part)) {
            return Ok(true);
        }
        // A guest that has much to do may have too little of a busy machine.
        assert!(reason.contains("took longer than"), "{}: {reason}", hostile.name);
        late += 1;
        append(&path, &line_after(late));
        Ok(false)
    })
    .unwrap();
    late
}

#[test]
fn a_good_pipeline_flows_beside_each_of_them() {
    let scene = Scene::new().unwrap();
    scene.pipeline(&pipeline("good", "")).unwrap();
    let good = fs::read_to_string(scene.root().join("main.toml")).unwrap();
    // On probation the version before would come back and process what these fail on.
    let grant =
        "grant = [\"log\", \"metrics\", \"clock\"]\nlimits = { time = \"500ms\", probation_batches = 0 }";
    scene.pipeline(&pipeline("victim", grant)).unwrap();
    fs::rename(scene.root().join("main.toml"), scene.root().join("victim.toml")).unwrap();
    fs::write(scene.root().join("main.toml"), good).unwrap();
    let config =
        fs::read_to_string(scene.config()).unwrap().replace("main.toml", "main.toml\", \"victim.toml");
    fs::write(scene.config(), config).unwrap();
    let (mut running, mut late) = (Forge::good().module(), 0);
    fs::write(scene.plugin_dir().join("good.wasm"), &running).unwrap();
    put(&scene, &running);
    let mut agent = scene.start_ready().unwrap();
    let is_over = AtomicBool::new(false);
    let set = forge::set::all();
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut written, path) = (0, scene.input().join("good.log"));
            while !is_over.load(Ordering::Acquire) {
                append(&path, &format!("line {written}"));
                written += 1;
                std::thread::sleep(PACE);
            }
            written
        });
        let started = Instant::now();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for hostile in &set {
                match hostile.fate {
                    // Here all is granted.
                    Fate::Refused("plugin-not-granted", _) => continue,
                    Fate::Refused(_, part) => check_refused(&scene, hostile, part, &running),
                    _ => {
                        late += check_swapped(&scene, hostile);
                        running = hostile.bytes.clone();
                    }
                }
                agent.expect_running().unwrap();
            }
        }));
        is_over.store(true, Ordering::Release);
        let written = writer.join().unwrap();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        eprintln!("{} guests in {:?}, {written} lines beside them", set.len(), started.elapsed());
        written
    });
    poll::until("the good lines", limits::CONDITION, || Ok(lines(&scene, "good").len() >= written)).unwrap();
    agent.stop().unwrap();
    let wanted: Vec<String> = (0..written).map(|line| format!("line {line}")).collect();
    assert!(lines(&scene, "good") == wanted, "the good pipeline lost, doubled or mixed up lines");
    // Of the victim's lines, each is in one place.
    let is = |fate: fn(&Fate) -> bool| set.iter().filter(|hostile| fate(&hostile.fate)).count();
    assert_eq!(quarantined(&scene).len(), is(|fate| matches!(fate, Fate::Fails(_))) + late);
    assert_eq!(lines(&scene, "victim").len(), is(|fate| matches!(fate, Fate::Works)));
}
