//! Start, signals and exit codes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use flumen_tests::generator::{self, Load, Rotation};
use flumen_tests::scene::Scene;
use flumen_tests::{limits, oracle, output, poll};
use rustix::process::Signal;

const PIPELINE: &str = "[source.in]\ntype = \"tail\"\npaths = [\"{in}/*.log*\"]\n\n[sink.out]\ntype = \"file\"\npath = \"{out}/all.log\"\n";

fn load(scene: &Scene, lines: u64) -> Load {
    Load {
        dir: scene.input(),
        files: 2,
        bytes_per_s: 0,
        rotate_bytes: 5_000_000,
        rotation: Rotation::Rename,
        lines: Some(lines),
        has_malformed: false,
        has_doubles: false,
        seed: 5,
    }
}

/// What was read is delivered before the end, and the next run goes on where this one ended.
#[test]
fn sigterm_drains() {
    let scene = Scene::new().unwrap();
    scene.pipeline(PIPELINE).unwrap();
    let written = generator::write_now(load(&scene, 150_000)).unwrap();
    for _ in 0..3 {
        let mut agent = scene.start_ready().unwrap();
        agent.wait_log("ready", limits::READY).unwrap();
        agent.stop().unwrap();
        assert!(
            output::files(&scene.output)
                .unwrap()
                .iter()
                .all(|path| !path.display().to_string().ends_with(".open"))
        );
    }
    let total: u64 = written.iter().sum();
    let agent = scene.start_ready().unwrap();
    let mut counter = output::LineCounter::default();
    poll::until_counted("everything", limits::CONDITION, total, || counter.count(&scene.output)).unwrap();
    agent.stop().unwrap();
    let verdict = oracle::judge(&output::sequences(&scene.output).unwrap(), &written, |_| true).unwrap();
    assert!(verdict.holds(), "{verdict:#?}");
}

#[test]
fn a_second_sigterm_ends_at_once() {
    let mut scene = Scene::new().unwrap();
    scene.drain_timeout = "10m".to_owned();
    scene.pipeline(PIPELINE).unwrap();
    // The sink cannot write, so the drain cannot end.
    fs::remove_dir(&scene.output).unwrap();
    fs::write(&scene.output, "in the way").unwrap();
    fs::write(scene.input().join("a.log"), "one\n").unwrap();
    let mut agent = scene.start_ready().unwrap();
    poll::until("the line in the journal", limits::CONDITION, || {
        Ok(scene.status()?.is_some_and(|status| status.metric("source", "events_out") == 1))
    })
    .unwrap();
    agent.signal(Signal::TERM).unwrap();
    agent.wait_log("sinks drain", limits::CONDITION).unwrap();
    agent.expect_running().unwrap();
    agent.signal(Signal::TERM).unwrap();
    let status = agent.wait_exit(limits::STOP).unwrap();
    assert_ne!(status.code(), Some(0), "an end without a drain is no success: {status}");

    // Nothing is lost by it.
    fs::remove_file(&scene.output).unwrap();
    fs::create_dir(&scene.output).unwrap();
    let agent = scene.start_ready().unwrap();
    poll::until("the line", limits::CONDITION, || Ok(output::lines(&scene.output)? == [b"one"])).unwrap();
    agent.stop().unwrap();
}

#[test]
fn two_agents_on_one_data_directory() {
    let scene = Scene::new().unwrap();
    scene.pipeline(PIPELINE).unwrap();
    let mut first = scene.start_ready().unwrap();
    let mut second = scene.start().unwrap();
    assert_eq!(second.wait_exit(limits::READY).unwrap().code(), Some(75), "{}", second.log_tail());
    first.expect_running().unwrap();
    first.stop().unwrap();
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let shift = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
    !bytes.iter().fold(!0, |crc: u32, byte| (0..8).fold(crc ^ u32::from(*byte), shift))
}

/// A segment or a snapshot as another version writes it: the version is at 8, the CRC of all before it at 60.
fn of_version(bytes: &[u8], version: u8) -> Vec<u8> {
    let crc = |bytes: &[u8]| crc32c(&bytes[..60]).to_le_bytes();
    let mut bytes = bytes.to_vec();
    assert_eq!(bytes[60..64], crc(&bytes), "the header is another one than this test knows");
    bytes[8] = version;
    let crc = crc(&bytes);
    bytes[60..64].copy_from_slice(&crc);
    bytes
}

/// After a step back to an older Flumen: it says so and changes nothing, and with the newer one all is there.
#[test]
fn a_journal_of_a_newer_version_is_refused_by_name_and_left_alone() {
    let mut scene = Scene::new().unwrap();
    scene.drain_timeout = "1s".to_owned();
    scene.pipeline(&format!("{PIPELINE}\n[journal]\nsegment = \"1 MiB\"\n")).unwrap();
    // The sink cannot write, so the line stays in the journal.
    fs::remove_dir(&scene.output).unwrap();
    fs::write(&scene.output, "in the way").unwrap();
    fs::write(scene.input().join("a.log"), "one\n").unwrap();
    let agent = scene.start_ready().unwrap();
    poll::until("the line in the journal", limits::CONDITION, || {
        Ok(scene.status()?.is_some_and(|status| status.0["pipelines"][0]["channels"][0]["head"] == 1))
    })
    .unwrap();
    agent.stop().unwrap();

    let dir = scene.data.join("pipelines/main/journal");
    let files = || -> BTreeMap<PathBuf, Vec<u8>> {
        let all = output::files(&dir).unwrap().into_iter();
        all.map(|path| (path.clone(), fs::read(&path).unwrap()))
            .filter(|(_, bytes)| bytes.starts_with(b"FLUMENS"))
            .collect()
    };
    let sound = files();
    // Of the segments the newest, of the two slots either: both are read.
    let last = |magic: &[u8]| {
        let (path, _) = sound.iter().rfind(|(_, bytes)| bytes.starts_with(magic)).unwrap();
        path.clone()
    };
    for path in [last(b"FLUMENSG"), last(b"FLUMENSN")] {
        let known = sound[&path][8];
        fs::write(&path, of_version(&sound[&path], known + 7)).unwrap();
        let before = files();
        let mut agent = scene.start().unwrap();
        let status = agent.wait_exit(limits::READY).unwrap();
        let log = agent.log().unwrap();
        assert_eq!(status.code(), Some(1), "{log}");
        let told = format!(
            "{} has format version {}; this program reads up to {known}: start the release of Flumen that wrote it, or a newer one",
            path.display(),
            known + 7
        );
        let is_told = |line: &str| line.matches(&told).count() == 1;
        assert!(log.lines().any(is_told) && !log.contains("panicked"), "{log}");
        assert!(files() == before, "{}: something was changed", path.display());
        fs::write(&path, &sound[&path]).unwrap();
    }

    fs::remove_file(&scene.output).unwrap();
    fs::create_dir(&scene.output).unwrap();
    let agent = scene.start_ready().unwrap();
    poll::until("the line", limits::CONDITION, || Ok(output::lines(&scene.output)? == [b"one"])).unwrap();
    agent.stop().unwrap();
}

#[test]
fn bad_config_and_usage() {
    let scene = Scene::new().unwrap();
    scene
        .pipeline("[source.in]\ntype = \"tale\"\npaths = [\"{in}/*.log\"]\n\n[sink.out]\ntype = \"null\"\n")
        .unwrap();
    let mut agent = scene.start().unwrap();
    assert_eq!(agent.wait_exit(limits::READY).unwrap().code(), Some(78), "{}", agent.log_tail());
    assert!(agent.log().unwrap().contains("tail"), "no `did you mean`: {}", agent.log_tail());
    let config = scene.config().display().to_string();
    assert_eq!(scene.flumen(&["check", &config]).unwrap().status.code(), Some(78));
    assert_eq!(scene.flumen(&["no-such-command"]).unwrap().status.code(), Some(2));
    scene.pipeline(PIPELINE).unwrap();
    assert_eq!(scene.flumen(&["check", &config]).unwrap().status.code(), Some(0));
}

/// A multi-line event stays one, across a rotation and restarts in the middle of it.
#[test]
fn stack_trace_across_rotation_and_restart() {
    let scene = Scene::new().unwrap();
    let multiline = PIPELINE
        .replace("*.log*\"]", "*.log*\"]\nmultiline_start = '^[0-9]{4} '\nmultiline_timeout = \"1h\"");
    let json = multiline.replace("[sink.out]", "[sink.out]\nencoding = \"json\"\nflush_interval = \"50ms\"");
    scene.pipeline(&json).unwrap();
    let path = scene.input().join("a.log");
    let append = |text: &str| {
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    };
    let events = || -> Vec<String> {
        output::lines(&scene.output)
            .unwrap()
            .iter()
            .filter_map(|line| {
                Some(serde_json::from_slice::<serde_json::Value>(line).ok()?["body"].as_str()?.to_owned())
            })
            .collect()
    };
    append("2026 first\n2026 boom\n  at a\n");
    let agent = scene.start_ready().unwrap();
    poll::until("the first event", limits::CONDITION, || Ok(events().len() == 1)).unwrap();
    agent.kill().unwrap();
    append("  at b\n");
    fs::rename(&path, scene.input().join("a.log.1")).unwrap();
    append("  at c\n");
    let agent = scene.start_ready().unwrap();
    agent.kill().unwrap();
    let agent = scene.start_ready().unwrap();
    append("  at d\n2026 last\n2026 end\n");
    poll::until("the trace and what follows", limits::CONDITION, || Ok(events().len() == 3)).unwrap();
    agent.stop().unwrap();
    let found = events();
    assert_eq!(
        found[..3],
        ["2026 first", "2026 boom\n  at a\n  at b\n  at c\n  at d", "2026 last"],
        "{found:#?}"
    );
}
