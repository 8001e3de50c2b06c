//! `flumen quarantine`: what could not be processed is shown, replayed through the present version exactly once, or dropped, on a
//! running agent and on a stopped one.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flumen_tests::agent::Agent;
use flumen_tests::scene::{Answer, Scene};
use flumen_tests::{limits, locate, output, poll};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

const LINES: usize = 2_000;

const PIPELINE: &str = "[source.in]\ntype = \"tail\"\npaths = [\"{in}/*.log\"]\n\n[[interceptor]]\nplugin = \"judge\"\n\n\
    [sink.out]\ntype = \"file\"\npath = \"{out}/all.log\"\nflush_interval = \"20ms\"\n";

fn is_bad(at: usize) -> bool {
    at.is_multiple_of(4)
}

/// Every fourth line is no access log: the plugin of that name rejects it.
fn line(at: usize) -> String {
    if is_bad(at) {
        return format!("nonsense {at}");
    }
    format!("10.0.0.1 - - [10/Oct/2025:13:55:36 +0000] \"GET /{at} HTTP/1.1\" 200 5 \"-\" \"x\"")
}

/// An agent whose quarantine has every fourth line, and whose output has the others.
fn filled() -> (Scene, Agent) {
    let scene = Scene::new().unwrap();
    scene.install("access-log", "judge").unwrap();
    scene.pipeline(PIPELINE).unwrap();
    let text: String = (0..LINES).map(|at| line(at) + "\n").collect();
    fs::write(scene.input().join("a.log"), text).unwrap();
    let agent = scene.start_ready().unwrap();
    let bad = (0..LINES).filter(|at| is_bad(*at)).count();
    poll::until("the good lines", limits::CONDITION, || Ok(delivered(&scene).len() == LINES - bad)).unwrap();
    poll::until("the bad lines", limits::CONDITION, || Ok(scene.quarantine()?.len() == bad)).unwrap();
    (scene, agent)
}

fn delivered(scene: &Scene) -> Vec<String> {
    output::lines(&scene.output).unwrap().into_iter().map(|line| String::from_utf8(line).unwrap()).collect()
}

fn bodies(scene: &Scene) -> Vec<String> {
    let events = scene.quarantine().unwrap();
    events.iter().map(|event| event["body"].as_str().unwrap().to_owned()).collect()
}

fn quarantine(scene: &Scene, words: &[&str]) -> Answer {
    let config = scene.config().display().to_string();
    let mut all = vec!["quarantine", words[0], &config];
    all.extend(&words[1..]);
    scene.flumen(&all).unwrap()
}

fn said(scene: &Scene, words: &[&str]) -> String {
    let answer = quarantine(scene, words);
    assert!(answer.status.success(), "{words:?}: {}{}", answer.stdout, answer.stderr);
    answer.stdout
}

fn swap(scene: &Scene, plugin: &str) {
    scene.install(plugin, "judge").unwrap();
    let hash = blake3_of(plugin);
    poll::until("the swap", limits::CONDITION, || {
        let status = scene.status()?.map(|status| status.0.to_string()).unwrap_or_default();
        Ok(status.contains(&hash))
    })
    .unwrap();
}

/// As `flumen plugin inspect` says.
fn blake3_of(plugin: &str) -> String {
    let path = locate::plugin(plugin).unwrap().display().to_string();
    let mut command = Command::new(locate::flumen().unwrap());
    let out = command.args(["plugin", "inspect", &path, "--output", "json"]).output().unwrap();
    let value: Value = serde_json::from_slice(&out.stdout).unwrap();
    value["hash"].as_str().unwrap().to_owned()
}

#[test]
fn events_are_chosen_replayed_and_dropped_while_the_agent_runs() {
    let (scene, mut agent) = filled();
    let list = said(&scene, &["list"]);
    assert!(list.contains("judge") && list.ends_with("500 events\n"), "{list}");
    assert!(said(&scene, &["list", "--kind", "failed"]).ends_with("0 events\n"));
    assert!(said(&scene, &["list", "--by", "judge", "--since", "1h"]).ends_with("500 events\n"));
    let shown = said(&scene, &["show", "--number", "7..9"]);
    assert!(
        shown.contains("#7 ") && shown.contains("nonsense 28") && shown.contains("nonsense 32"),
        "{shown}"
    );
    assert_eq!(shown.lines().count(), 4, "{shown}");

    // The same version again: they stay, each once.
    assert_eq!(
        said(&scene, &["replay", "--limit", "10"]),
        "main: 10 events replayed, 10 of them failed again and stay, with the new reason\n"
    );
    poll::until("they are kept again", limits::CONDITION, || Ok(scene.quarantine()?.len() == 500)).unwrap();
    assert_eq!(said(&scene, &["drop", "--number", "0..20"]), "main: 10 events dropped\n");
    let unsaid = quarantine(&scene, &["drop"]);
    assert!(!unsaid.status.success() && unsaid.stderr.contains("--all"), "{}", unsaid.stderr);

    swap(&scene, "noop");
    let told = said(&scene, &["replay", "--output", "json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (&told["jobs"][0]["events"], &told["jobs"][0]["state"]),
        (&490.into(), &"done".into()),
        "{told}"
    );
    assert!(said(&scene, &["list"]).ends_with("0 events\n"));
    poll::until("all lines", limits::CONDITION, || Ok(delivered(&scene).len() == LINES - 10)).unwrap();
    agent.expect_running().unwrap();
    agent.stop().unwrap();
    let mut lines = delivered(&scene);
    lines.sort();
    lines.dedup();
    // The first ten went to the end of the quarantine when they failed again; 11 to 20 were dropped.
    let dropped = |at: &usize| is_bad(*at) && (40..80).contains(at);
    let mut wanted: Vec<String> = (0..LINES).filter(|at| !dropped(at)).map(line).collect();
    wanted.sort();
    assert_eq!(lines, wanted);
}

#[test]
fn a_stopped_agent_drops_at_once_and_replays_when_it_starts() {
    let (scene, agent) = filled();
    agent.stop().unwrap();
    assert_eq!(said(&scene, &["drop", "--limit", "100"]), "main: 100 events dropped\n");
    assert_eq!(bodies(&scene).len(), 400);
    scene.install("noop", "judge").unwrap();
    let told = said(&scene, &["replay", "--limit", "300"]);
    assert!(told.contains("replays them when it starts"), "{told}");
    assert_eq!(bodies(&scene).len(), 400, "until then they are there");
    let agent = scene.start_ready().unwrap();
    poll::until("300 are replayed", limits::CONDITION, || Ok(delivered(&scene).len() == LINES - 200))
        .unwrap();
    poll::until("100 are left", limits::CONDITION, || Ok(bodies(&scene).len() == 100)).unwrap();
    agent.stop().unwrap();
    let (all, left) = (delivered(&scene), bodies(&scene));
    for at in (0..LINES).filter(|at| is_bad(*at)) {
        let times = |lines: &[String]| lines.iter().filter(|known| **known == line(at)).count();
        let wanted = if at < 400 {
            (0, 0)
        } else if at < 1_600 {
            (1, 0)
        } else {
            (0, 1)
        };
        assert_eq!((times(&all), times(&left)), wanted, "{}", line(at));
    }
}

/// The command, under way.
fn replaying(scene: &Scene) -> Child {
    let config = scene.config().display().to_string();
    let mut command = Command::new(locate::flumen().unwrap());
    command.args(["quarantine", "replay", &config, "--limit", "30"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// At every kill, an event is in quarantine or on its way, and it arrives once.
#[test]
fn sigkill_at_any_point_of_a_replay_neither_loses_nor_doubles() {
    let seed = std::env::var("FLUMEN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (scene, agent) = filled();
    agent.kill().unwrap();
    scene.install("noop", "judge").unwrap();
    let (mut kills, mut in_vain) = (0, 0);
    let mut last = usize::MAX;
    loop {
        let left = bodies(&scene).len();
        assert!(left <= last, "{left} events after {last}");
        if left == 0 {
            break;
        }
        // On a busy machine the command may take longer to get to the agent: lives that brought nothing are followed by longer ones.
        in_vain = if left == last { in_vain + 1 } else { 0 };
        last = left;
        let agent = scene.start_ready().unwrap();
        let mut commands = [replaying(&scene), replaying(&scene)];
        std::thread::sleep(Duration::from_millis(random.random_range(0..120 * (1 + in_vain))));
        agent.kill().unwrap();
        kills += 1;
        for command in &mut commands {
            // It ends by itself: done, or the agent is gone.
            command.wait().unwrap();
        }
        assert!(kills < 400, "{left} events are left");
    }
    let agent = scene.start_ready().unwrap();
    poll::until("all lines", limits::CONDITION, || Ok(delivered(&scene).len() >= LINES)).unwrap();
    agent.stop().unwrap();
    let mut lines = delivered(&scene);
    lines.sort();
    let mut wanted: Vec<String> = (0..LINES).map(line).collect();
    wanted.sort();
    assert_eq!(lines.len(), LINES, "after {kills} kills");
    assert_eq!(lines, wanted);
    assert!(kills >= 5, "{kills} kills");
}
