//! A disk that cannot be written: at the start, and from one moment to the next. The agent says so and ends, or waits; nothing is
//! lost, nothing comes twice.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::path::Path;

use flumen_tests::agent::Agent;
use flumen_tests::disk::{self, FailingDisk, Mount};
use flumen_tests::generator::Generator;
use flumen_tests::scene::Scene;
use flumen_tests::{flow, limits};

const PIPELINE: &str = "[source.in]\ntype = \"tail\"\npaths = [\"{in}/*.log*\"]\n\n[sink.out]\ntype = \"file\"\npath = \"{out}/all.log\"\nflush_interval = \"50ms\"\n";

/// What a person reads: the system's word.
const REASON: &str = "Read-only file system";

/// Lines in the output before the disk fails: so it fails under work.
const LINES_BEFORE: u64 = 2_000;

fn may_mount() -> bool {
    if !disk::may_mount() {
        eprintln!("not run: a disk that turns read-only has to be mounted, and this is not root");
    }
    disk::may_mount()
}

/// Ends by itself, with exit code 1, and says which directory and why.
fn expect_refusal(agent: &mut Agent, dir: &Path) {
    let status = agent.wait_exit(limits::READY).unwrap();
    let log = agent.log().unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    let is_named = |line: &str| line.contains(REASON) && line.contains(&dir.display().to_string());
    assert!(log.lines().any(is_named), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

/// Everything that was written, each line once.
fn expect_all(scene: &Scene, generator: Generator) {
    let written = generator.stop().unwrap();
    let mut agent = scene.start_ready().unwrap();
    flow::wait_lines(&[scene], &mut [&mut agent], written.iter().sum()).unwrap();
    agent.stop().unwrap();
    let verdict = flow::judge(&[scene], &written, |_| true).unwrap();
    assert!(verdict.holds(), "{verdict}");
}

/// Nothing of an agent can be made there, or what is there cannot be used: both are told, and nothing is changed.
#[test]
fn a_data_directory_that_is_read_only_at_the_start_is_refused() {
    if !may_mount() {
        return;
    }
    let mut scene = Scene::new().unwrap();
    let mount = Mount::tmpfs(&scene.root().join("disk"), 256 << 20).unwrap();
    scene.data = mount.dir().join("data");
    scene.pipeline(PIPELINE).unwrap();
    let generator = flow::writer(&scene, 1).unwrap();
    mount.set_read_only(true).unwrap();
    expect_refusal(&mut scene.start().unwrap(), mount.dir());
    mount.set_read_only(false).unwrap();
    let agent = scene.start_ready().unwrap();
    flow::wait_progress(&[&scene], LINES_BEFORE).unwrap();
    // With an unfinished end, so that the start has something to mend.
    agent.kill().unwrap();
    mount.set_read_only(true).unwrap();
    expect_refusal(&mut scene.start().unwrap(), mount.dir());
    mount.set_read_only(false).unwrap();
    expect_all(&scene, generator);
}

/// The journal fails loudly, with the reason; a supervisor's next starts are refused until the disk is mended.
#[test]
fn a_journal_whose_disk_turns_read_only_stops_loudly() {
    if !may_mount() {
        return;
    }
    let mut scene = Scene::new().unwrap();
    let mut disk = FailingDisk::new(&scene.root().join("failing")).unwrap();
    scene.data = disk.dir().join("data");
    scene.pipeline(PIPELINE).unwrap();
    let generator = flow::writer(&scene, 2).unwrap();
    let mut agent = scene.start_ready().unwrap();
    flow::wait_progress(&[&scene], LINES_BEFORE).unwrap();
    disk.fail_under(&agent).unwrap();
    expect_refusal(&mut agent, disk.dir());
    assert!(agent.log().unwrap().contains("the journal has failed"), "{}", agent.log_tail());
    expect_refusal(&mut scene.start().unwrap(), disk.dir());
    disk.repair().unwrap();
    expect_all(&scene, generator);
}

/// The sink says so and tries on; the journal takes more events meanwhile.
#[test]
fn an_output_whose_disk_turns_read_only_is_waited_for() {
    if !may_mount() {
        return;
    }
    let mut scene = Scene::new().unwrap();
    let mut disk = FailingDisk::new(&scene.root().join("failing")).unwrap();
    scene.output = disk.dir().join("out");
    scene.pipeline(PIPELINE).unwrap();
    let generator = flow::writer(&scene, 3).unwrap();
    let mut agent = scene.start_ready().unwrap();
    flow::wait_progress(&[&scene], LINES_BEFORE).unwrap();
    disk.fail_under(&agent).unwrap();
    agent.wait_log(REASON, limits::CONDITION).unwrap();
    let events_in = || scene.answered().unwrap().metric("source", "events_out");
    let before = events_in();
    flumen_tests::poll::until("the source to go on", limits::CONDITION, || Ok(events_in() > before)).unwrap();
    agent.expect_running().unwrap();
    // It has a file of the disk open.
    agent.kill().unwrap();
    disk.repair().unwrap();
    expect_all(&scene, generator);
}
