//! Hot swap: a plugin file copied over while data flows. No event lost, doubled, or processed by half of each.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;

use flumen_tests::generator::{Generator, Load, Rotation};
use flumen_tests::oracle;
use flumen_tests::output::{self, LineCounter};
use flumen_tests::scene::Scene;
use flumen_tests::{limits, locate, poll};
use serde_json::Value;

const PIPELINE: &str = "[source.in]\ntype = \"tail\"\npaths = [\"{in}/web-*.log*\"]\n\n[[interceptor]]\nplugin = \"swap\"\n\n[sink.out]\ntype = \"file\"\npath = \"{out}/all.log\"\nencoding = \"json\"\nflush_interval = \"50ms\"\n";

fn load(scene: &Scene) -> Load {
    Load {
        dir: scene.input(),
        files: 1,
        bytes_per_s: 2_000_000,
        rotate_bytes: 1_000_000,
        rotation: Rotation::Rename,
        lines: None,
        has_malformed: false,
        has_doubles: false,
        seed: 3,
    }
}

#[test]
fn good_broken_and_half_written_files_under_load() {
    let scene = Scene::new().unwrap();
    scene.install("swap-a", "swap").unwrap();
    scene.pipeline(PIPELINE).unwrap();
    let generator = Generator::start(load(&scene)).unwrap();
    let mut agent = scene.start_ready().unwrap();
    let last_version = || -> anyhow::Result<Option<String>> {
        let last = output::last_line(&scene.output)?.unwrap_or_default();
        let event: Option<Value> = serde_json::from_slice(&last).ok();
        Ok(event.and_then(|event| Some(event.get("headers")?.get("version")?.as_str()?.to_owned())))
    };
    let target = scene.plugin_dir().join("swap.wasm");
    let mut wait_version = |version: &str| {
        poll::until(&format!("version {version}"), limits::CONDITION, || {
            agent.expect_running()?;
            Ok(last_version()?.as_deref() == Some(version))
        })
        .unwrap();
    };
    // The one that a start finds has its part, too: what is copied over it before the first line is what the agent begins with.
    wait_version("a");
    for turn in 0..4 {
        let (plugin, version) = if turn % 2 == 0 { ("swap-b", "b") } else { ("swap-a", "a") };
        let whole = fs::read(locate::plugin(plugin).unwrap()).unwrap();
        // Half-written first: written piece by piece as a slow `scp` does.
        fs::write(&target, &whole[..whole.len() / 3]).unwrap();
        fs::write(&target, &whole[..whole.len() / 2]).unwrap();
        fs::write(&target, &whole).unwrap();
        wait_version(version);
    }
    let written = generator.stop().unwrap();
    let total: u64 = written.iter().sum();
    let mut counter = LineCounter::default();
    poll::until_counted("everything", limits::CONDITION, total, || counter.count(&scene.output)).unwrap();
    agent.stop().unwrap();
    let sequences = output::sequences(&scene.output).unwrap();
    let verdict = oracle::judge(&sequences, &written, |_| true).unwrap();
    assert!(verdict.holds(), "{verdict:#?}");
    // Versions change at a border and never flicker: a…ab…ba…ab…ba…a
    let versions: Vec<String> = output::lines(&scene.output)
        .unwrap()
        .iter()
        .map(|line| {
            serde_json::from_slice::<Value>(line).unwrap()["headers"]["version"].as_str().unwrap().to_owned()
        })
        .collect();
    let changes = versions.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert_eq!(changes, 4, "the version changed {changes} times");
}
