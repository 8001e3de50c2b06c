//! Selectors through the real binary, with SIGKILLs: each line once in every channel that it belongs to, and the figures that tell what
//! is left out.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use flumen_tests::scene::Scene;
use flumen_tests::{limits, output, poll};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const LINES: usize = 20_000;
const KILLS: usize = 8;

/// The input files in turn, which their lines' header names, and the channels of each.
const FILES: [(&str, &[&str]); 4] =
    [("good", &["good"]), ("both", &["good", "bad"]), ("bad", &["bad"]), ("other", &["rest"])];
const CHANNELS: [&str; 3] = ["good", "bad", "rest"];

fn line(at: usize) -> String {
    format!("line {at}\n")
}

fn sink(name: &str) -> String {
    format!(
        "[channel.{name}]\nkeep_alive = \"100ms\"\n[sink.{name}]\ntype = \"file\"\nchannel = \"{name}\"\npath = \"{{out}}/{name}.log\"\nflush_interval = \"20ms\"\n"
    )
}

/// The numbers of the lines in the files of this name, in order.
fn numbers(out: &Path, name: &str) -> Vec<usize> {
    let mut files: Vec<_> = fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.file_name().unwrap().to_str().unwrap().starts_with(name));
    files.sort();
    // One that gets its final name meanwhile is seen the next time.
    let text = files.iter().flat_map(|file| output::whole_lines(file).unwrap().unwrap_or_default()).collect();
    let text = String::from_utf8(text).unwrap();
    text.lines().map(|line| line.strip_prefix("line ").unwrap().parse().unwrap()).collect()
}

/// Some lines more to their files.
fn write(scene: &Scene, range: std::ops::Range<usize>) {
    for (file, (name, _)) in FILES.iter().enumerate() {
        let text: String = range.clone().filter(|at| at % FILES.len() == file).map(line).collect();
        let path = scene.input().join(format!("{name}.log"));
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
}

/// Batches hold rows of several files; each part goes its way in the one commit of all.
#[test]
fn rows_of_a_batch_go_to_their_channels_over_kills() {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64;
    eprintln!("seed {seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let scene = Scene::new().unwrap();
    let mapping: Vec<String> = FILES[..3]
        .iter()
        .map(|(name, channels)| format!("\"{}/{name}.log\" = {channels:?}", scene.input().display()))
        .collect();
    let sinks: String = CHANNELS.iter().map(|name| sink(name)).collect();
    scene
        .pipeline(&format!(
            "[source.in]\ntype = \"tail\"\npaths = [\"{{in}}/*.log\"]\nfile_header = true\n[source.in.selector]\nkind = \"multiplexing\"\n\
             header = \"file\"\nmapping = {{ {} }}\ndefault = [\"rest\"]\n{sinks}[batch]\nrows = 500\n",
            mapping.join(", ")
        ))
        .unwrap();
    let mut written = 0;
    for _ in 0..KILLS {
        let agent = scene.start_ready().unwrap();
        for _ in 0..dice.random_range(1..8) {
            let until = (written + dice.random_range(100..700)).min(LINES);
            write(&scene, written..until);
            written = until;
            std::thread::park_timeout(Duration::from_millis(dice.random_range(0..15)));
        }
        agent.kill().unwrap();
    }
    write(&scene, written..LINES);
    let agent = scene.start_ready().unwrap();
    let belongs = |channel: &str, at: usize| FILES[at % FILES.len()].1.contains(&channel);
    let wanted = |channel: &str| (0..LINES).filter(|at| belongs(channel, *at)).collect::<Vec<_>>();
    // As long as lines come: how long all of them take is the machine's affair.
    let total = CHANNELS.iter().map(|name| wanted(name).len() as u64).sum();
    poll::until_counted("all lines", limits::CONDITION, total, || {
        Ok(CHANNELS.iter().map(|name| numbers(&scene.output, name).len() as u64).sum())
    })
    .unwrap();
    agent.stop().unwrap();
    for name in CHANNELS {
        let found = numbers(&scene.output, name);
        for file in 0..FILES.len() {
            let of_file: Vec<usize> = found.iter().copied().filter(|at| at % FILES.len() == file).collect();
            assert!(of_file.is_sorted(), "seed {seed}: {name} has lines of a file out of order");
        }
        let mut found = found;
        found.sort_unstable();
        assert_eq!(found, wanted(name), "seed {seed}, {name}");
    }
}

/// Events put to the channel `side`, and those that it missed.
fn side_figures(scene: &Scene) -> (u64, u64) {
    let status = scene.answered().unwrap().0;
    let pipeline = &status["pipelines"][0];
    let side = pipeline["channels"].as_array().unwrap().iter().find(|channel| channel["name"] == "side");
    let skipped = pipeline["sources"][0]["metrics"]["optional channel side/skipped_events"].as_u64();
    (side.unwrap()["head"].as_u64().unwrap(), skipped.unwrap_or_default())
}

/// The optional channel is small, and its sink writes where no file can be: the flow does not wait for it, and `status` counts. An
/// edit then takes it out of the selector, in place.
#[test]
fn an_optional_channel_that_is_full_is_told_of_and_an_edit_takes_it_out() {
    let scene = Scene::new().unwrap();
    let pipeline = |selector: &str| {
        scene
            .pipeline(&format!(
                "[source.in]\ntype = \"tail\"\npaths = [\"{{in}}/*.log\"]\nselector = {selector}\n\
                 [channel.main]\n[channel.side]\ncapacity = {{ events = 1_000 }}\n\
                 [sink.main]\ntype = \"file\"\nchannel = \"main\"\npath = \"{{out}}/main.log\"\nflush_interval = \"20ms\"\n\
                 [sink.side]\ntype = \"file\"\nchannel = \"side\"\npath = \"{{out}}/blocked/side.log\"\n[batch]\nrows = 500\n"
            ))
            .unwrap();
    };
    pipeline("{ kind = \"replicating\", optional = [\"side\"] }");
    // A file where the sink wants a directory.
    fs::write(scene.output.join("blocked"), "").unwrap();
    fs::write(scene.input().join("a.log"), (0..LINES).map(line).collect::<String>()).unwrap();
    let agent = scene.start_ready().unwrap();
    poll::until("every line is in the channel or counted", limits::CONDITION, || {
        let (put, skipped) = side_figures(&scene);
        Ok(put + skipped == LINES as u64)
    })
    .unwrap();
    let (put, _) = side_figures(&scene);
    assert!((1_000..1_500).contains(&put), "{put}");
    poll::until("all lines", limits::CONDITION, || Ok(numbers(&scene.output, "main").len() == LINES))
        .unwrap();
    let shown = scene.shown().unwrap();
    assert!(
        shown.contains(&format!("optional channel side: skipped {} events", LINES as u64 - put)),
        "{shown}"
    );

    pipeline("{ kind = \"replicating\", channels = [\"main\"] }");
    let wrong = scene.flumen(&["check", scene.config().to_str().unwrap()]).unwrap();
    assert!(
        wrong.stderr.contains("error[unfed-channel]: no source puts to the channel `side`"),
        "{}",
        wrong.stderr
    );
    pipeline("{ kind = \"load-balancing\", header = \"none\" }");
    let plan = scene.flumen(&["plan", scene.config().to_str().unwrap()]).unwrap();
    assert!(plan.stdout.contains("~ source in (selector)"), "{}{}", plan.stdout, plan.stderr);
    assert!(!plan.stdout.contains("restarts as a whole"), "{}", plan.stdout);
    drop(agent);
}

/// A channel in memory is full for a batch before it has reached its capacity: of two batches only the first fits.
#[test]
fn an_optional_channel_in_memory_without_room_for_a_batch_is_no_reason_to_wait() {
    let scene = Scene::new().unwrap();
    scene
        .pipeline(
            "[source.in]\ntype = \"tail\"\npaths = [\"{in}/*.log\"]\n\
             selector = { kind = \"replicating\", optional = [\"side\"] }\n\
             [channel.main]\nkind = \"memory\"\n\
             [channel.side]\nkind = \"memory\"\ncapacity = { events = 1_000 }\n\
             [sink.main]\ntype = \"file\"\nchannel = \"main\"\npath = \"{out}/main.log\"\nflush_interval = \"20ms\"\n\
             [sink.side]\ntype = \"file\"\nchannel = \"side\"\npath = \"{out}/blocked/side.log\"\n[batch]\nrows = 700\n",
        )
        .unwrap();
    // A file where the sink wants a directory.
    fs::write(scene.output.join("blocked"), "").unwrap();
    fs::write(scene.input().join("a.log"), (0..LINES).map(line).collect::<String>()).unwrap();
    let agent = scene.start_ready().unwrap();
    poll::until("every line is in the channel or counted", limits::CONDITION, || {
        let (put, skipped) = side_figures(&scene);
        Ok(put + skipped == LINES as u64)
    })
    .unwrap();
    let (put, _) = side_figures(&scene);
    assert!((1..=1_000).contains(&put), "{put}");
    poll::until("all lines", limits::CONDITION, || Ok(numbers(&scene.output, "main").len() == LINES))
        .unwrap();
    drop(agent);
}
