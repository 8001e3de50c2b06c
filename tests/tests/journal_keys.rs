//! A journal that is encrypted: nothing of the events is on disk in clear, keys are exchanged over a SIGKILL, and a key that is
//! missing or wrong is told by its id and costs nothing.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;
use std::path::{Path, PathBuf};

use flumen_tests::scene::{PIPELINE, Scene};
use flumen_tests::{limits, output, poll};

const LINES: u64 = 3_000;

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// The pipeline with keys, each an id and the file that holds it.
fn pipeline(scene: &Scene, keys: &[(&str, &str)]) {
    let mut text = String::from(
        "[source.in]\ntype = \"tail\"\npaths = [\"{in}/*.log\"]\n\n[sink.out]\ntype = \"file\"\npath = \"{out}/all.log\"\n\n\
         [journal]\ncompression = \"lz4\"\n",
    );
    for (id, file) in keys {
        text += &format!("\n[[journal.key]]\nid = \"{id}\"\nsecret = \"${{file:{file}}}\"\n");
    }
    scene.pipeline(&text).unwrap();
}

/// Starts the agent, which must end by itself; what it says.
fn refused(scene: &Scene) -> String {
    let before = fs::read_to_string(scene.log()).unwrap().len();
    let mut agent = scene.start().unwrap();
    let status = agent.wait_exit(limits::STOP).unwrap();
    assert!(!status.success(), "{status}");
    fs::read_to_string(scene.log()).unwrap().split_off(before)
}

#[test]
fn keys_hide_what_is_on_disk_and_are_exchanged() {
    let scene = Scene::new().unwrap();
    for (name, digits) in [("a.key", "a1"), ("b.key", "b2")] {
        fs::write(scene.root().join(name), digits.repeat(32) + "\n").unwrap();
    }
    // The sink cannot write, so everything stays in the journal.
    fs::remove_dir(&scene.output).unwrap();
    fs::write(&scene.output, "in the way").unwrap();
    let lines: String =
        (0..LINES).map(|n| format!("{n} a line that is SECRET, at {}\n", n * 7_919)).collect();
    fs::write(scene.input().join("in.log"), &lines).unwrap();
    pipeline(&scene, &[("a", "a.key")]);
    let agent = scene.start_ready().unwrap();
    // What the source has read is on its way to the journal for a moment; what a sink failed on is on the disk.
    poll::until("the lines in the journal", limits::CONDITION, || {
        Ok(scene.status()?.is_some_and(|status| {
            let pipeline = &status.0["pipelines"][0];
            pipeline["channels"][0]["head"] == LINES && pipeline["sinks"][0]["state"] == "retrying"
        }))
    })
    .unwrap();
    agent.kill().unwrap();

    let dir = scene.data.join("pipelines").join(PIPELINE);
    let in_clear = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        [&b"SECRET"[..], b"in.log"].iter().any(|word| bytes.windows(word.len()).any(|part| part == *word))
    };
    let shown: Vec<PathBuf> = files_below(&dir).into_iter().filter(in_clear).collect();
    assert_eq!(shown, [""; 0].map(PathBuf::from));

    let journal = dir.join("journal").display().to_string();
    let answer = scene.flumen(&["journal", "inspect", &journal]).unwrap();
    assert!(!answer.status.success() && answer.stderr.contains("`a`, which is not given"), "{answer:?}");
    let answer = scene.flumen(&["journal", "inspect", &journal, "--key", "a=a.key"]).unwrap();
    assert!(answer.status.success() && answer.stdout.contains(", key a\n"), "{answer:?}");

    pipeline(&scene, &[("b", "b.key")]);
    let said = refused(&scene);
    assert!(said.contains("`a`, which is not given") && said.contains("[[journal.key]]"), "{said}");
    pipeline(&scene, &[("a", "b.key")]);
    let said = refused(&scene);
    assert!(said.contains("another key `a`"), "{said}");
    assert!(!dir.join("journal/damaged").exists());

    fs::remove_file(&scene.output).unwrap();
    fs::create_dir(&scene.output).unwrap();
    pipeline(&scene, &[("b", "b.key"), ("a", "a.key")]);
    let agent = scene.start_ready().unwrap();
    let mut counter = output::LineCounter::default();
    poll::until("everything", limits::CONDITION, || Ok(counter.count(&scene.output)? >= LINES)).unwrap();
    agent.stop().unwrap();
    let delivered = output::lines(&scene.output).unwrap();
    assert_eq!(delivered, lines.lines().map(|line| line.as_bytes().to_vec()).collect::<Vec<_>>());
}
