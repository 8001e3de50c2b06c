//! Sink groups through the real binary, with SIGKILLs and destinations that are away: each line at one sink, once.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use flumen_tests::agent::Agent;
use flumen_tests::http::Appender;
use flumen_tests::scene::Scene;
use flumen_tests::{limits, output, poll};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::Value;

const LINES: usize = 20_000;
const KILLS: usize = 8;
const SINKS: [&str; 3] = ["a", "b", "c"];

fn seed() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64
}

fn pipeline(group: &str) -> String {
    let sinks: String = SINKS
        .iter()
        .map(|name| {
            format!(
                "[sink.{name}]\ntype = \"file\"\npath = \"{{out}}/{name}/{name}.log\"\nflush_interval = \"20ms\"\nroll_count = 3_000\n"
            )
        })
        .collect();
    format!(
        "[source.in]\ntype = \"tail\"\npaths = [\"{{in}}/*.log\"]\n{sinks}[group.all]\n{group}\nsinks = [\"a\", \"b\", \"c\"]\n\
         penalty = \"10ms\"\npenalty_max = \"1s\"\n[batch]\nrows = 200\n"
    )
}

/// The numbers of the lines at a sink, whatever its directory is called now.
fn delivered(scene: &Scene, sink: &str) -> Vec<usize> {
    let mut all = Vec::new();
    for dir in [dir(scene, sink), away(scene, sink)].into_iter().filter(|dir| dir.is_dir()) {
        for entry in fs::read_dir(dir).unwrap() {
            // One that gets its final name meanwhile is seen the next time.
            let text = output::whole_lines(&entry.unwrap().path()).unwrap().unwrap_or_default();
            let text = String::from_utf8(text).unwrap();
            all.extend(
                text.lines().map(|line| line.strip_prefix("line ").unwrap().parse::<usize>().unwrap()),
            );
        }
    }
    all
}

fn line_number(line: &str) -> usize {
    line.strip_prefix("line ").unwrap().parse().unwrap()
}

fn everything(scene: &Scene) -> Vec<usize> {
    let mut all: Vec<usize> = SINKS.iter().flat_map(|sink| delivered(scene, sink)).collect();
    all.sort_unstable();
    all
}

fn dir(scene: &Scene, sink: &str) -> PathBuf {
    scene.output.join(sink)
}

fn away(scene: &Scene, sink: &str) -> PathBuf {
    scene.output.join(format!("{sink}.away"))
}

/// A file stands where the sink's directory was: it can neither write nor look at what it has.
fn take_away(scene: &Scene, sink: &str) {
    if dir(scene, sink).is_dir() {
        fs::write(away(scene, sink), "").unwrap();
        exchange(scene, sink);
    }
}

fn bring_back(scene: &Scene, sink: &str) {
    if away(scene, sink).is_dir() {
        exchange(scene, sink);
        fs::remove_file(away(scene, sink)).unwrap();
    }
}

/// At once: a sink that finds nothing there makes the directory anew.
fn exchange(scene: &Scene, sink: &str) {
    renameat_with(CWD, dir(scene, sink), CWD, away(scene, sink), RenameFlags::EXCHANGE).unwrap();
}

fn write(scene: &Scene, range: std::ops::Range<usize>) {
    let mut file = OpenOptions::new().create(true).append(true).open(scene.input().join("a.log")).unwrap();
    file.write_all(range.map(|at| format!("line {at}\n")).collect::<String>().as_bytes()).unwrap();
}

fn members(scene: &Scene) -> Vec<Value> {
    let status = scene.answered().unwrap().0;
    status["pipelines"][0]["groups"][0]["members"].as_array().unwrap().clone()
}

/// Until a member would get what comes.
fn wait_member(scene: &Scene, member: usize) {
    let is_ready = || Ok(members(scene)[member]["state"] == "ready");
    poll::until(&format!("member {member} to be ready"), limits::CONDITION, is_ready).unwrap();
}

/// Kills at random moments; before each start, each sink's destination is there or away.
fn kills(group: &str) {
    let seed = seed();
    eprintln!("seed {seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let scene = Scene::new().unwrap();
    scene.pipeline(&pipeline(group)).unwrap();
    let mut written = 0;
    for _ in 0..KILLS {
        for sink in SINKS {
            match dice.random_range(0..3) {
                0 => take_away(&scene, sink),
                _ => bring_back(&scene, sink),
            }
        }
        let agent = scene.start_ready().unwrap();
        for _ in 0..dice.random_range(1..8) {
            let until = (written + dice.random_range(100..700)).min(LINES);
            write(&scene, written..until);
            written = until;
            std::thread::park_timeout(Duration::from_millis(dice.random_range(0..30)));
        }
        agent.kill().unwrap();
    }
    SINKS.iter().for_each(|sink| bring_back(&scene, sink));
    write(&scene, written..LINES);
    let agent = scene.start_ready().unwrap();
    let count = || Ok(everything(&scene).len() as u64);
    poll::until_counted("all lines", limits::CONDITION, LINES as u64, count).unwrap();
    agent.stop().unwrap();
    assert!(everything(&scene) == (0..LINES).collect::<Vec<_>>(), "seed {seed}: not each line once");
}

#[test]
fn failover_over_kills() {
    kills("kind = \"failover\"");
}

#[test]
fn load_balancing_over_kills() {
    for balance in ["round-robin", "random", "least-in-flight"] {
        kills(&format!("kind = \"load-balancing\"\nbalance = \"{balance}\""));
    }
}

#[test]
fn the_best_sink_is_used_while_it_is_well_and_status_and_check_say_so() {
    let scene = Scene::new().unwrap();
    // A sink that has nothing to look at is ready although it cannot write, and asks anew right behind giving back what it failed on. It
    // rests for longer than it waits before it does that, so that others come first.
    let rests = "penalty = \"2s\"\npenalty_max = \"1m\"";
    let failover = pipeline("kind = \"failover\"").replace("penalty = \"10ms\"\npenalty_max = \"1s\"", rests);
    assert!(failover.contains(rests), "{failover}");
    scene.pipeline(&failover).unwrap();
    let check = scene.flumen(&["check", scene.config().to_str().unwrap()]).unwrap().stdout;
    assert!(check.contains("group        all              exactly-once (failover of a, b, c)"), "{check}");
    assert!(check.contains("waits until its destination says whether it is there"), "{check}");
    fs::create_dir(dir(&scene, "a")).unwrap();
    take_away(&scene, "a");
    let agent = scene.start_ready().unwrap();
    // One that has just begun is waited for, but not as long as a busy machine may let its thread stand still.
    wait_member(&scene, 1);
    write(&scene, 0..1_000);
    poll::until("the second has them", limits::CONDITION, || Ok(delivered(&scene, "b").len() == 1_000))
        .unwrap();
    let shown = scene.shown().unwrap();
    assert!(shown.contains("group        all              failover on main"), "{shown}");
    bring_back(&scene, "a");
    wait_member(&scene, 0);
    write(&scene, 1_000..2_000);
    poll::until("the best has them", limits::CONDITION, || Ok(delivered(&scene, "a").len() == 1_000))
        .unwrap();
    assert_eq!(delivered(&scene, "c").len(), 0);
    // Another order is another start; another option of a sink is not.
    scene.pipeline(&failover.replace("[\"a\", \"b\"", "[\"b\", \"a\"")).unwrap();
    let plan = scene.flumen(&["plan", scene.config().to_str().unwrap()]).unwrap().stdout;
    assert!(
        plan.contains("restarts as a whole, sink groups differ") && plan.contains("~ group all (sinks)"),
        "{plan}"
    );
    scene.pipeline(&failover.replacen("roll_count = 3_000", "roll_count = 500", 1)).unwrap();
    let plan = scene.flumen(&["reload", scene.config().to_str().unwrap()]).unwrap();
    assert!(plan.status.success(), "{}{}", plan.stdout, plan.stderr);
    // It began anew.
    wait_member(&scene, 0);
    write(&scene, 2_000..3_000);
    poll::until("the best has these too", limits::CONDITION, || Ok(delivered(&scene, "a").len() == 2_000))
        .unwrap();
    agent.stop().unwrap();
    assert_eq!(everything(&scene), (0..3_000).collect::<Vec<_>>());
}

/// A plugin that appends over HTTP and a file, at work at once. Each is away for a while; what it had in doubt waits for it, over a
/// SIGKILL too, and the other goes on.
#[test]
fn a_plugin_and_a_file_share_the_load_and_stand_in_for_each_other() {
    let appender = Appender::start(1).unwrap();
    let scene = Scene::new().unwrap();
    scene.install("http-append", "http-append").unwrap();
    let (url, address) = (appender.server.url(), appender.server.address);
    scene
        .pipeline(&format!(
            "[source.in]\ntype = \"tail\"\npaths = [\"{{in}}/*.log\"]\n[batch]\nrows = 50\n\
             [sink.a]\ntype = \"file\"\npath = \"{{out}}/a/a.log\"\nflush_interval = \"20ms\"\nroll_count = 300\n\
             [sink.web]\nplugin = \"http-append\"\ngrant = [\"http\"]\nlinger = \"20ms\"\nconfig = {{ url = \"{url}/lines\" }}\n\
             egress = {{ allow = [\"{address}\"], timeout = \"2s\" }}\n\
             [group.all]\nkind = \"load-balancing\"\nsinks = [\"a\", \"web\"]\npenalty = \"10ms\"\npenalty_max = \"1s\"\n"
        ))
        .unwrap();
    let check = scene.flumen(&["check", scene.config().to_str().unwrap()]).unwrap().stdout;
    assert!(
        check.contains("group        all              exactly-once (load-balancing of a, web)"),
        "{check}"
    );

    let mut agent = scene.start_ready().unwrap();
    let mut written = 0;
    let at_work = || Ok(!delivered(&scene, "a").is_empty() && !appender.is_empty());
    write_until(&scene, &mut agent, &mut written, "both at work", at_work);

    appender.server.down(true);
    write_until(&scene, &mut agent, &mut written, "the plugin to fail", || is_unwell(&scene, 1));
    let (before, at_web, first) = (delivered(&scene, "a").len(), appender.len(), written);
    write(&scene, written..written + 1_000);
    written += 1_000;
    let has_all = || Ok(delivered(&scene, "a").len() >= before + 1_000);
    poll::until("the file has what comes", limits::CONDITION, has_all).unwrap();
    // A request that was being stored when the server went down may be stored late; none of these lines was in one.
    assert!(appender.lines().iter().all(|line| line_number(line) < first));
    agent.kill().unwrap();
    agent = scene.start_ready().unwrap();
    appender.server.down(false);
    let is_back = || Ok(appender.len() > at_web);
    write_until(&scene, &mut agent, &mut written, "the plugin at work again", is_back);

    take_away(&scene, "a");
    write_until(&scene, &mut agent, &mut written, "the file to fail", || is_unwell(&scene, 0));
    let before = appender.len();
    write(&scene, written..written + 1_000);
    written += 1_000;
    let has_all = || Ok(appender.len() >= before + 1_000);
    poll::until("the plugin has what comes", limits::CONDITION, has_all).unwrap();
    bring_back(&scene, "a");
    let total = || {
        let lines = appender.lines();
        let at_web = lines.iter().map(|line| line_number(line));
        let mut all: Vec<usize> = delivered(&scene, "a").into_iter().chain(at_web).collect();
        all.sort_unstable();
        all
    };
    poll::until("all lines", limits::CONDITION, || Ok(total().len() >= written)).unwrap();
    agent.stop().unwrap();
    assert!(total() == (0..written).collect::<Vec<_>>(), "not each line once");
}

/// Writes bit by bit until something is true: which member gets what comes, nobody says.
fn write_until(
    scene: &Scene,
    agent: &mut Agent,
    written: &mut usize,
    what: &str,
    is_done: impl Fn() -> anyhow::Result<bool>,
) {
    poll::until(what, limits::CONDITION, || {
        agent.expect_running()?;
        write(scene, *written..*written + 100);
        *written += 100;
        is_done()
    })
    .unwrap_or_else(|error| panic!("{error:#}: {:?}\n{}", scene.status(), agent.log_tail()));
}

fn is_unwell(scene: &Scene, member: usize) -> anyhow::Result<bool> {
    Ok(members(scene)[member]["state"] != "ready")
}

/// The promise of a Kafka sink ends where the topic's retention begins: `check` says so where records have the times of their events.
#[test]
fn check_says_what_retention_does_to_old_events() {
    let scene = Scene::new().unwrap();
    let told = |more: &str| {
        let sink = "[sink]\ntype = \"kafka\"\nbrokers = [\"127.0.0.1:1\"]\ntopic = \"t\"\n";
        scene.pipeline(&format!("[source]\ntype = \"stdin\"\n{sink}{more}")).unwrap();
        scene.flumen(&["check", scene.config().to_str().unwrap()]).unwrap().stdout
    };
    for (more, is_told) in
        [("", true), ("timestamp = \"event\"\n", true), ("timestamp = \"broker\"\n", false)]
    {
        let text = told(more);
        assert!(text.contains("exactly-once (kafka)"), "{text}");
        assert_eq!(text.contains("older than its retention.ms"), is_told, "{text}");
    }
}

/// What a member has is on record by the channel's numbers, which only a file keeps for ever: other kinds are refused, with what to do.
#[test]
fn a_channel_that_a_group_cannot_read_is_refused() {
    let scene = Scene::new().unwrap();
    let kafka = "kind = \"kafka\"\nbrokers = [\"127.0.0.1:1\"]";
    for (kind, channel) in [
        ("memory", "kind = \"memory\""),
        ("spillable", "kind = \"spillable\""),
        ("source-backed", "kind = \"source-backed\""),
        ("kafka", kafka),
    ] {
        scene.pipeline(&format!("[channel.main]\n{channel}\n{}", pipeline("kind = \"failover\""))).unwrap();
        let answer = scene.flumen(&["check", scene.config().to_str().unwrap()]).unwrap();
        let text = answer.stdout + &answer.stderr;
        assert_eq!(answer.status.code(), Some(78), "{text}");
        for part in [
            &*format!("its channel `main` is of kind `{kind}`, and a group needs one of kind `file`"),
            "only there a number stands for the same event for ever",
            "give the channel the kind `file`, or take the group out",
            "main.toml",
        ] {
            assert!(text.contains(part), "{kind}: {part:?} is not in {text}");
        }
    }
}
