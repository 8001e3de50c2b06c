//! The memory budget of the process, on the real binary: what is refused beforehand, what is held while it runs, and that nothing is
//! lost by it or waits for ever.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fmt::Write;
use std::fs;

use flumen_tests::agent::Agent;
use flumen_tests::scene::{Answer, Scene};
use flumen_tests::{limits, output, poll};
use serde_json::Value;

const MIB: u64 = 1 << 20;

const SOURCE: &str = "[source.in]\ntype = \"tail\"\npaths = [\"{in}/*.log\"]\n";

/// What the agent logs at each change.
const HELD: &str = "the agent has more memory than it may";
const RELEASED: &str = "enough memory is free";
const TOO_SMALL: &str = "the memory budget is too small";

fn scene(memory_max: &str, pipeline: &str) -> Scene {
    let scene = Scene::new().unwrap();
    scene.pipeline(pipeline).unwrap();
    budget(&scene, memory_max);
    scene
}

/// Writes the budget into the agent's file, in place of the one that was there.
fn budget(scene: &Scene, memory_max: &str) {
    let text = fs::read_to_string(scene.config()).unwrap();
    let others = text.lines().filter(|line| !line.starts_with("memory_max"));
    let line = format!("memory_max = \"{memory_max}\"");
    let lines: Vec<&str> = others.chain([line.as_str()]).collect();
    fs::write(scene.config(), lines.join("\n") + "\n").unwrap();
}

fn ask(scene: &Scene, words: &[&str]) -> Answer {
    let config = scene.config().display().to_string();
    scene.flumen(&[words, &[&config]].concat()).unwrap()
}

fn status(scene: &Scene) -> Value {
    scene.answered().unwrap().0
}

fn is_held(status: &Value) -> bool {
    status["is_held_by_memory"].as_bool().unwrap()
}

fn wait(scene: &Scene, what: &str, is_met: impl Fn(&Value) -> bool) -> Value {
    let look = || Ok(Some(status(scene)).filter(|status| is_met(status)));
    poll::until_some(what, limits::CONDITION, look)
        .unwrap_or_else(|error| panic!("{error}: {}", status(scene)))
}

/// Lines that begin with their number, and are so long.
fn write_lines(scene: &Scene, lines: u64, bytes: usize) {
    let mut text = String::with_capacity(bytes * lines as usize);
    let filler = "x".repeat(bytes - 11);
    (0..lines).for_each(|number| writeln!(text, "{number:010}{filler}").unwrap());
    fs::write(scene.input().join("a.log"), text).unwrap();
}

/// Until so many lines are in the output, while the agent has no more than so much memory of its own.
fn wait_output(scene: &Scene, agent: &mut Agent, lines: u64, memory_max_bytes: u64) {
    let mut counter = output::LineCounter::default();
    let counted = poll::until_counted("lines in the output", limits::CONDITION, lines, || {
        agent.expect_running()?;
        let own = agent.memory()?.anonymous;
        assert!(own <= memory_max_bytes, "{own} bytes: {}", status(scene));
        counter.count(&scene.output)
    });
    counted.unwrap_or_else(|error| panic!("{error}: {}", status(scene)));
}

/// Each line is there once, in order.
fn judge(scene: &Scene, lines: u64) {
    let found = output::lines(&scene.output).unwrap();
    assert_eq!(found.len() as u64, lines);
    for (wanted, line) in found.iter().enumerate() {
        let number = std::str::from_utf8(&line[..10]).unwrap();
        assert_eq!(number.parse::<usize>().unwrap(), wanted, "a line is lost, doubled or out of order");
    }
}

fn times(agent: &Agent, text: &str) -> usize {
    agent.log().unwrap().matches(text).count()
}

/// The sink stands still, and the channel in memory fills, which with the program itself is more than the budget. The source waits, the
/// status and the log say why, and everything arrives when the sink goes on.
#[test]
fn an_agent_over_its_budget_holds_its_sources_and_loses_nothing() {
    // More than the channel holds.
    const LINES: u64 = 3_000;
    // Tailed files take some KiB each, which nobody counts beforehand: what is counted is never over a budget that is accepted.
    const FILES: u64 = 4_000;
    // What is counted: the channel, recent batches and batches on their way.
    const COUNTED: u64 = 20 * MIB;
    // What a look comes too late for, the journal's group, and free blocks that go back at the next look.
    const MARGIN: u64 = 96 * MIB;
    let channel = "[channel]\nkind = \"memory\"\ncapacity = { bytes = \"16 MiB\" }\n";
    let small = "[journal]\nmemory = \"1 MiB\"\n[batch]\nbytes = \"256 KiB\"\n";
    let sink = "[sink.out]\ntype = \"file\"\npath = \"{out}/held/all.log\"\n";
    let scene = scene("1 GiB", &format!("{channel}{small}{SOURCE}{sink}"));
    let in_the_way = scene.output.join("held");
    fs::write(&in_the_way, "in the way").unwrap();
    (0..FILES)
        .for_each(|number| drop(fs::File::create(scene.input().join(format!("{number}.log"))).unwrap()));
    let mut agent = scene.start_ready().unwrap();
    // The journal has where each of them begins.
    wait(&scene, "the files to be found", |status| {
        status["pipelines"][0]["journal"]["bytes_written"].as_u64() >= Some(FILES * 100)
    });
    // Below nine tenths of the budget without events, above it with a channel that is nearly full. Of another look: a status tells the memory
    // first, which may be from before they were found.
    let idle = status(&scene)["memory_bytes"].as_u64().unwrap();
    let max = COUNTED.max(idle / 9 * 10 + 2 * MIB);
    budget(&scene, &max.to_string());
    let answer = ask(&scene, &["reload"]);
    assert!(answer.status.success(), "{} {}", answer.stdout, answer.stderr);
    assert_eq!(status(&scene)["memory_max_bytes"], max);
    // Long ones: of short ones a fourth of what is counted is allocated and not used.
    write_lines(&scene, LINES, 20_000);
    let held = wait(&scene, "the agent to hold its sources", is_held);
    assert_eq!(held["memory_max_from"], "`memory_max`");
    assert!(held["times_held_by_memory"].as_u64() >= Some(1), "{held}");
    agent.wait_log(HELD, limits::CONDITION).unwrap();
    // Nothing is acknowledged, so nothing is freed, and nothing goes by.
    let pipeline = &held["pipelines"][0];
    assert!(pipeline["sources"][0]["metrics"]["events_out"].as_u64().unwrap() < LINES, "{held}");
    assert_eq!(held["batches_passed_by_memory"], 0);
    let shown = scene.shown().unwrap();
    assert!(shown.contains("HELD: sources wait until it is below"), "{shown}");
    let own = agent.memory().unwrap().anonymous;
    assert!(own <= max + MARGIN, "{own}");

    fs::remove_file(in_the_way).unwrap();
    wait_output(&scene, &mut agent, LINES, max + MARGIN);
    wait(&scene, "the sources to be released", |status| !is_held(status));
    agent.wait_log(RELEASED, limits::CONDITION).unwrap();
    assert_eq!(times(&agent, TOO_SMALL), 0, "{}", agent.log_tail());
    agent.stop().unwrap();
    judge(&scene, LINES);
}

/// The program alone takes more: nothing that waiting could free. Events go on, one batch at a time, and the log says once what is wrong.
#[test]
fn a_budget_that_is_too_small_slows_down_and_stops_nothing() {
    // Some 16 batches.
    const LINES: u64 = 5_000;
    let small = "[journal]\nmemory = \"1 MiB\"\n[batch]\nbytes = \"64 KiB\"\n";
    let sink = "[sink.out]\ntype = \"file\"\npath = \"{out}/all.log\"\n";
    let scene = scene("4 MiB", &format!("{small}{SOURCE}{sink}"));
    let mut agent = scene.start_ready().unwrap();
    wait(&scene, "the agent to be over its budget", is_held);
    write_lines(&scene, LINES, 200);
    wait_output(&scene, &mut agent, LINES, u64::MAX);
    agent.wait_log(TOO_SMALL, limits::CONDITION).unwrap();
    let after = status(&scene);
    assert!(is_held(&after) && after["batches_passed_by_memory"].as_u64().unwrap() > 2, "{after}");
    let source = &after["pipelines"][0]["sources"][0];
    assert!(source["metrics"]["batches_held_by_memory"].as_u64().unwrap() > 2, "{after}");
    assert_eq!((times(&agent, HELD), times(&agent, TOO_SMALL)), (1, 1), "{}", agent.log_tail());

    // A larger one is taken over in place, without a restart.
    budget(&scene, "1 GiB");
    let answer = ask(&scene, &["reload"]);
    assert!(answer.status.success(), "{}{}", answer.stdout, answer.stderr);
    let released = wait(&scene, "the sources to be released", |status| !is_held(status));
    assert_eq!(released["memory_max_bytes"], 1024 * MIB);
    assert_eq!(released["pid"], after["pid"]);
    agent.stop().unwrap();
    judge(&scene, LINES);
}

/// Pipelines that may take more than the budget: `check`, `run` and a reload refuse them, with what would fit.
#[test]
fn what_may_take_more_than_the_budget_is_refused_with_what_fits() {
    let pipeline = |mib: u64| {
        let channel = format!("[channel]\nkind = \"memory\"\ncapacity = {{ bytes = \"{mib} MiB\" }}\n");
        format!("{channel}{SOURCE}[sink.out]\ntype = \"null\"\n")
    };
    let scene = scene("100 MiB", &pipeline(90));
    for command in ["check", "run"] {
        let answer = ask(&scene, &[command]);
        assert_eq!(answer.status.code(), Some(78), "{command}: {}", answer.stdout);
        // 24 MiB for the journal, one for the quarantine's, three batches of one: 118 in all.
        for text in [
            "error[memory-max]: pipelines may take 118.0 MiB of memory, which is more than `memory_max` (100.0 MiB)",
            "flumen.toml:7:14",
            "lower `bytes` in the `capacity` of channel `main` of pipeline `main` to \"72 MiB\" or less",
            "`memory_max` of \"118 MiB\" or more holds all of it",
        ] {
            assert!(answer.stderr.contains(text), "{command}: no {text} in {}", answer.stderr);
        }
    }
    budget(&scene, "118 MiB");
    let answer = ask(&scene, &["check"]);
    let sum = "memory of all pipelines: 118.0 MiB at most, of 118.0 MiB (`memory_max`)";
    assert!(answer.status.success() && answer.stdout.contains(sum), "{}{}", answer.stdout, answer.stderr);
    let answer = ask(&scene, &["check", "--output", "json"]);
    let report: Value = serde_json::from_str(&answer.stdout).unwrap();
    let memory = &report["memory"];
    assert_eq!((&memory["bytes"], &memory["max_bytes"]), (&(118 * MIB).into(), &(118 * MIB).into()));
    let largest = &memory["pipelines"][0]["parts"][0];
    assert_eq!((&largest["what"], &largest["bytes"]), (&"channel `main`".into(), &(90 * MIB).into()));

    let agent = scene.start_ready().unwrap();
    budget(&scene, "100 MiB");
    let answer = ask(&scene, &["reload"]);
    assert_eq!(answer.status.code(), Some(78), "{}", answer.stdout);
    assert!(format!("{}{}", answer.stdout, answer.stderr).contains("118.0 MiB"), "{}", answer.stderr);
    assert_eq!(status(&scene)["memory_max_bytes"], 118 * MIB, "nothing has changed");
    agent.stop().unwrap();
}
