//! Input and disks that are not as they should be: nothing committed is lost, the log says what is wrong,
//! and everything goes on without a restart once the cause is gone.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use flumen_tests::agent::Agent;
use flumen_tests::disk::{self, Mount};
use flumen_tests::generator::{self, Load, Rotation};
use flumen_tests::output::LineCounter;
use flumen_tests::scene::Scene;
use flumen_tests::{limits, oracle, output, poll};

const PIPELINE: &str = "[source.in]\ntype = \"tail\"\npaths = [\"{in}/*.log\"]\nlast_line_timeout = \"500ms\"\n\n[sink.out]\ntype = \"file\"\npath = \"{out}/all.log\"\nflush_interval = \"50ms\"\n";

fn scene() -> Scene {
    let scene = Scene::new().unwrap();
    scene.pipeline(PIPELINE).unwrap();
    scene
}

fn append(path: &Path, bytes: &[u8]) {
    fs::OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(bytes).unwrap();
}

fn wait_lines(scene: &Scene, agent: &mut Agent, count: usize) {
    let waited = poll::until(&format!("{count} lines in the output"), limits::CONDITION, || {
        agent.expect_running()?;
        Ok(output::lines(&scene.output)?.len() >= count)
    });
    waited.unwrap_or_else(|error| panic!("{error:#}; {}", agent.log_tail()));
}

/// Bodies are bytes: what is not UTF-8 and what is NUL passes unchanged.
#[test]
fn invalid_utf8_and_nul_bytes() {
    let scene = scene();
    let lines: [&[u8]; 5] = [b"fine", b"\xff\xfe\x80 not UTF-8", b"NUL \0 inside", b"", b"\0"];
    append(&scene.input().join("a.log"), &[lines.join(&b'\n'), b"\n".to_vec()].concat());
    let mut agent = scene.start_ready().unwrap();
    wait_lines(&scene, &mut agent, lines.len());
    agent.stop().unwrap();
    assert_eq!(output::lines(&scene.output).unwrap(), lines);
}

/// 50 MB without a newline: split by the limit, every byte there, in order.
#[test]
fn a_line_of_50_mb() {
    let scene = scene();
    const LONG: usize = 50 << 20;
    const LIMIT: usize = 1 << 20;
    let mut text = b"before\n".to_vec();
    text.extend((0..LONG).map(|at| b'a' + (at % 23) as u8));
    text.extend(b"\nafter\n");
    append(&scene.input().join("a.log"), &text);
    let mut agent = scene.start_ready().unwrap();
    wait_lines(&scene, &mut agent, 2 + LONG / LIMIT);
    let status = scene.answered().unwrap();
    assert!(status.metric("source", "lines_split") > 0, "{:#}", status.0);
    let peak = agent.memory().unwrap().peak;
    agent.stop().unwrap();
    let lines = output::lines(&scene.output).unwrap();
    assert_eq!(lines.first().unwrap(), b"before");
    assert_eq!(lines.last().unwrap(), b"after");
    let middle = lines[1..lines.len() - 1].concat();
    assert!(
        middle == text[7..7 + LONG],
        "the parts do not add up to the line: {} bytes of {LONG}",
        middle.len()
    );
    assert!(peak < 300 << 20, "{} MB resident for one long line", peak >> 20);
}

#[test]
fn an_empty_file_and_one_that_shrinks() {
    let scene = scene();
    let (empty, shrinking) = (scene.input().join("empty.log"), scene.input().join("shrinking.log"));
    append(&empty, b"");
    append(&shrinking, b"one\ntwo\nthree\n");
    let mut agent = scene.start_ready().unwrap();
    wait_lines(&scene, &mut agent, 3);
    // Shorter than what was read: a new beginning.
    fs::write(&shrinking, "four\n").unwrap();
    wait_lines(&scene, &mut agent, 4);
    append(&empty, b"five\n");
    wait_lines(&scene, &mut agent, 5);
    agent.stop().unwrap();
    assert_eq!(output::lines(&scene.output).unwrap(), [&b"one"[..], b"two", b"three", b"four", b"five"]);
}

#[test]
fn a_directory_where_a_file_was() {
    let scene = scene();
    let path = scene.input().join("a.log");
    append(&path, b"one\n");
    let mut agent = scene.start_ready().unwrap();
    wait_lines(&scene, &mut agent, 1);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    append(&scene.input().join("b.log"), b"two\n");
    wait_lines(&scene, &mut agent, 2);
    fs::remove_dir(&path).unwrap();
    append(&path, b"three\n");
    wait_lines(&scene, &mut agent, 3);
    agent.stop().unwrap();
    assert_eq!(output::lines(&scene.output).unwrap(), [&b"one"[..], b"two", b"three"]);
}

/// Root reads everything, so the agent runs without the two capabilities that let it.
#[test]
fn no_permission() {
    let mut scene = scene();
    if disk::may_mount() {
        let words = [
            "setpriv",
            "--bounding-set=-dac_override,-dac_read_search",
            "--inh-caps=-dac_override,-dac_read_search",
        ];
        scene.wrapper = words.map(str::to_owned).to_vec();
    }
    let (closed, open) = (scene.input().join("closed.log"), scene.input().join("open.log"));
    append(&closed, b"secret\n");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    append(&open, b"one\n");
    let mut agent = scene.start_ready().unwrap();
    wait_lines(&scene, &mut agent, 1);
    agent.wait_log("closed.log", limits::CONDITION).unwrap();
    assert!(agent.log().unwrap().to_lowercase().contains("permission denied"), "{}", agent.log_tail());
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o644)).unwrap();
    wait_lines(&scene, &mut agent, 2);
    agent.stop().unwrap();
    assert_eq!(output::lines(&scene.output).unwrap(), [&b"one"[..], b"secret"]);
}

/// Writes a log of 43 MB.
fn write_log(scene: &Scene) -> Vec<u64> {
    let load = Load {
        dir: scene.input(),
        files: 1,
        bytes_per_s: 0,
        rotate_bytes: 0,
        rotation: Rotation::None,
        lines: Some(250_000),
        has_malformed: false,
        has_doubles: false,
        seed: 9,
    };
    generator::write_now(load).unwrap()
}

/// Waits for all of it, and judges.
fn expect_all(scene: &Scene, mut agent: Agent, written: &[u64]) {
    let total: u64 = written.iter().sum();
    let mut counter = LineCounter::default();
    let waited = poll::until_counted("everything after space was made", limits::CONDITION, total, || {
        agent.expect_running()?;
        counter.count(&scene.output)
    });
    waited.unwrap_or_else(|error| panic!("{error:#}; {}", agent.log_tail()));
    agent.stop().unwrap();
    let verdict = oracle::judge(&output::sequences(&scene.output).unwrap(), written, |_| true).unwrap();
    assert!(verdict.holds(), "{verdict:#?}");
}

fn wait_says_full(agent: &mut Agent) {
    let waited = poll::until("a word about the full disk in the log", limits::CONDITION, || {
        agent.expect_running()?;
        let log = agent.log()?.to_lowercase();
        Ok(log.contains("no space") || log.contains("disk is full") || log.contains("disk full"))
    });
    waited.unwrap_or_else(|error| panic!("{error:#}; {}", agent.log_tail()));
}

/// The output's disk takes a quarter of what is to be written; then it grows, and the agent goes on.
#[test]
fn full_disk_for_the_output() {
    if !disk::may_mount() {
        eprintln!("not run: a disk to be filled has to be mounted, and this is not root");
        return;
    }
    let mut scene = Scene::new().unwrap();
    let mount = Mount::tmpfs(&scene.root().join("small"), 12 << 20).unwrap();
    scene.output = mount.dir().join("out");
    scene.pipeline(PIPELINE).unwrap();
    let written = write_log(&scene);
    let mut agent = scene.start_ready().unwrap();
    wait_says_full(&mut agent);
    mount.resize(400 << 20).unwrap();
    expect_all(&scene, agent, &written);
}

/// The journal's disk is nearly taken by something else, and the sink is held back, so that the journal
/// cannot give anything back; then the other thing goes away.
#[test]
fn full_disk_for_the_journal() {
    if !disk::may_mount() {
        eprintln!("not run: a disk to be filled has to be mounted, and this is not root");
        return;
    }
    let mut scene = Scene::new().unwrap();
    let mount = Mount::tmpfs(&scene.root().join("small"), 400 << 20).unwrap();
    scene.data = mount.dir().join("data");
    let small_segments = PIPELINE.to_owned() + "\n[journal]\nsegment = \"4 MiB\"\n";
    scene.pipeline(&small_segments).unwrap();
    let written = write_log(&scene);
    // What no sink can make a directory of.
    fs::remove_dir(&scene.output).unwrap();
    fs::write(&scene.output, "in the way").unwrap();
    let ballast = mount.dir().join("ballast");
    fs::write(&ballast, vec![1; 368 << 20]).unwrap();
    let mut agent = scene.start_ready().unwrap();
    let bytes_out = || scene.answered().map(|status| status.metric("source", "bytes_out"));
    wait_says_full(&mut agent);
    let at_full = bytes_out().unwrap();
    let all: u64 = written.iter().sum();
    fs::remove_file(&ballast).unwrap();
    poll::until_counted("events of the source", limits::CONDITION, all, || {
        Ok(scene.answered()?.metric("source", "events_out"))
    })
    .unwrap();
    assert!(at_full < bytes_out().unwrap());
    fs::remove_file(&scene.output).unwrap();
    fs::create_dir(&scene.output).unwrap();
    expect_all(&scene, agent, &written);
}
