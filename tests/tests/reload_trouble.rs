//! Edits of a sink while the disk of its source-backed channel is away: where the sink goes on is for the next opening of the journal to
//! say, so it cannot end by itself, and a reload neither waits for that nor loses what the sink has.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use flumen_tests::agent::Agent;
use flumen_tests::disk::{self, FailingDisk, Mount};
use flumen_tests::failover::{ROOM, journal, to_dir, wait_place, wait_taken};
use flumen_tests::flow::{DELIVERED, wait_progress, writer};
use flumen_tests::generator::Generator;
use flumen_tests::output::{self, LineCounter};
use flumen_tests::scene::{Answer, Scene};
use flumen_tests::{oracle, poll};

const SINKS: [&str; 2] = ["one", "two"];

/// A scene whose stop and whose `--drain` would wait for longer than a command may take.
fn scene() -> Scene {
    let mut scene = Scene::new().unwrap();
    scene.drain_timeout = "300s".to_owned();
    edit(&scene, &SINKS, "2 MiB");
    scene
}

/// Tails into these sinks; the last one rolls its files at a size.
fn edit(scene: &Scene, sinks: &[&str], roll_size: &str) {
    let sink = |name: &&str| {
        format!(
            "[sink.{name}]\ntype = \"file\"\npath = \"{{out}}/{name}/all.log\"\nflush_interval = \"100ms\"\n"
        )
    };
    let sinks: String = sinks.iter().map(sink).collect();
    let failover = to_dir(scene, "file", "other");
    let text = format!(
        "[source]\ntype = \"tail\"\npaths = [\"{{in}}/*.log*\"]\n[journal]\nsegment = \"1 MiB\"\n\
         [channel]\nkind = \"source-backed\"\n{failover}{sinks}roll_size = \"{roll_size}\"\n"
    );
    scene.pipeline(&text).unwrap();
}

/// `flumen reload`, with or without more words.
fn reload(scene: &Scene, more: &[&str]) -> Answer {
    let config = scene.config().display().to_string();
    let words: Vec<&str> = ["reload"].into_iter().chain(more.iter().copied()).chain([&*config]).collect();
    scene.flumen(&words).unwrap()
}

/// An edit of one sink, which is taken over at once, and the source goes on.
fn edit_a_sink(scene: &Scene, agent: &Agent, roll_size: &str, more: &[&str]) {
    edit(scene, &SINKS, roll_size);
    let answer = reload(scene, more);
    let text = format!("{}{}", answer.stdout, answer.stderr);
    assert!(answer.status.success(), "{text}\n{}", agent.log_tail());
    assert!(text.contains("~ sink two (roll_size)"), "{text}");
    assert!(text.contains("no sink of it can end by itself now"), "{text}");
    assert!(!text.contains("did not stop within"), "its limit had to pass first: {text}");
    wait_place(scene, agent, "file").unwrap();
    wait_taken(scene, 1_000).unwrap();
}

/// The disk is well again: each of the sinks has every line once, in order.
fn judge_each(scene: &Scene, generator: Generator) {
    edit(scene, &SINKS, "2 MiB");
    let agent = scene.start_ready().unwrap();
    wait_place(scene, &agent, "primary").unwrap();
    let written = generator.stop().unwrap();
    let total: u64 = written.iter().sum();
    assert!(total > 5_000, "{total} lines are not much of a load");
    let outputs = SINKS.map(|name| scene.output.join(name));
    for out in &outputs {
        let mut counter = LineCounter::default();
        poll::until_counted("everything", DELIVERED, total, || counter.count(out)).unwrap();
    }
    agent.stop().unwrap();
    for out in &outputs {
        let verdict = oracle::judge(&output::sequences(out).unwrap(), &written, |_| true).unwrap();
        assert!(verdict.holds(), "{}: {verdict}", out.display());
    }
}

/// The agent began without the disk: its sinks have not been told yet where they were.
#[test]
fn a_sink_is_edited_while_its_channel_cannot_be_opened() {
    if !disk::may_mount() {
        eprintln!("not run: the channel needs a disk of its own, and this is not root");
        return;
    }
    let mut scene = scene();
    let _mount = Mount::tmpfs(&journal(&scene), ROOM).unwrap();
    let breaks = |scene: &mut Scene, faults: &str| {
        scene.env = vec![("FLUMEN_FAULTS".to_owned(), faults.to_owned())];
        scene.start_ready().unwrap()
    };
    // The disk is said to be away, and events go to the failover.
    let agent = breaks(&mut scene, "eio=1@journal.probe");
    let generator = writer(&scene, 83).unwrap();
    wait_place(&scene, &agent, "file").unwrap();
    wait_taken(&scene, 1_000).unwrap();
    agent.kill().unwrap();
    // And it is.
    let agent = breaks(&mut scene, "eio=1@journal");
    wait_place(&scene, &agent, "file").unwrap();
    wait_taken(&scene, 1_000).unwrap();
    edit_a_sink(&scene, &agent, "1 MiB", &[]);
    edit_a_sink(&scene, &agent, "3 MiB", &["--drain"]);

    // One that goes has to deliver first, and cannot.
    let generation = || scene.answered().unwrap().0["generation"].clone();
    let before = generation();
    edit(&scene, &SINKS[..1], "3 MiB");
    let asked: [&[&str]; 2] = [&[], &["--drain"]];
    for more in asked {
        let answer = reload(&scene, more);
        assert_eq!(answer.status.code(), Some(1), "{}{}", answer.stdout, answer.stderr);
        let reason = "sink two cannot deliver what it still has of channel main";
        assert!(answer.stderr.contains(reason), "{}", answer.stderr);
        assert!(answer.stderr.contains("mend the channel's disk first"), "{}", answer.stderr);
        assert_eq!(generation(), before);
    }
    wait_taken(&scene, 1_000).unwrap();
    agent.kill().unwrap();
    scene.env.clear();
    judge_each(&scene, generator);
}

/// The disk fails under the sinks: what they have and have not acknowledged is void, whoever restarts.
#[test]
fn a_sink_is_edited_whose_disk_fails_under_it() {
    if !disk::may_mount() {
        eprintln!("not run: a disk that fails has to be mounted, and this is not root");
        return;
    }
    let scene = scene();
    let mut failing = FailingDisk::new(&journal(&scene)).unwrap();
    let agent = scene.start_ready().unwrap();
    let generator = writer(&scene, 89).unwrap();
    wait_progress(&[&scene], 2_000).unwrap();
    failing.fail_under(&agent).unwrap();
    wait_place(&scene, &agent, "file").unwrap();
    wait_taken(&scene, 1_000).unwrap();
    edit_a_sink(&scene, &agent, "1 MiB", &[]);
    agent.kill().unwrap();
    failing.repair().unwrap();
    judge_each(&scene, generator);
}
