//! Channels in memory, on the real binary: what is bounded, what a kill costs and how that is told, what a clean stop keeps,
//! what goes to disk and comes back in order, what is dropped.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;

use flumen_tests::agent::Agent;
use flumen_tests::generator::{self, Load, Rotation};
use flumen_tests::oracle::Verdict;
use flumen_tests::scene::{Answer, Scene};
use flumen_tests::{limits, oracle, output, poll};
use rustix::process::Signal;
use serde_json::Value;

/// Held in memory at most: two of the batches that `tail` makes fit, and a third.
const MEMORY: &str = "{ events = 20_000, bytes = \"16 MiB\" }";
const LINES: u64 = 100_000;

struct World {
    scene: Scene,
    written: Vec<u64>,
}

impl World {
    /// Lines are there, and the sink cannot write: its directory is a file.
    fn new(channel: &str) -> World {
        let mut scene = Scene::new().unwrap();
        scene.drain_timeout = "1s".to_owned();
        let source = "[source.in]\ntype = \"tail\"\npaths = [\"{in}/*.log*\"]\n";
        let sink = "[sink.out]\ntype = \"file\"\npath = \"{out}/held/all.log\"\n";
        let batch = "[batch]\nbytes = \"4 MiB\"\n";
        scene.pipeline(&format!("{channel}\n{batch}{source}{sink}")).unwrap();
        fs::write(scene.output.join("held"), "in the way").unwrap();
        let written = generator::write_now(load(&scene, LINES, 1)).unwrap();
        World { scene, written }
    }

    fn total(&self) -> u64 {
        self.written.iter().sum()
    }

    fn release(&self) {
        fs::remove_file(self.scene.output.join("held")).unwrap();
    }

    fn status(&self) -> Value {
        self.scene.answered().unwrap().0
    }

    fn channel(&self) -> Value {
        self.status()["pipelines"][0]["channels"][0].clone()
    }

    fn wait(&self, what: &str, is_met: impl Fn(&Value) -> bool) -> Value {
        let look = || {
            let pipeline = self.status()["pipelines"][0].clone();
            Ok(is_met(&pipeline).then(|| pipeline["channels"][0].clone()))
        };
        poll::until_some(what, limits::CONDITION, look)
            .unwrap_or_else(|error| panic!("{error}: {}", self.status()))
    }

    /// Until the sink has tried in vain and the source has nothing more to read, or no room for it.
    fn wait_read(&self, lines: u64) -> Value {
        self.wait("lines to be read", |pipeline| {
            let source = &pipeline["sources"][0]["metrics"];
            pipeline["sinks"][0]["state"] == "retrying" && source["events_out"].as_u64().unwrap() >= lines
        })
    }

    fn wait_delivered(&self) {
        self.wait("everything delivered", |pipeline| {
            let source = &pipeline["sources"][0]["metrics"];
            let channel = &pipeline["channels"][0];
            source["events_out"].as_u64().unwrap() + number(channel, "head") > 0
                && number(channel, "events") == 0
        });
    }

    fn judge(&self) -> Verdict {
        let sequences = output::sequences(&self.scene.output).unwrap();
        oracle::judge(&sequences, &self.written, |_| true).unwrap()
    }

    /// Until so many lines are in the output, whole.
    fn wait_output(&self, agent: &mut Agent, lines: u64) {
        let mut counter = output::LineCounter::default();
        let counted = poll::until_counted("lines in the output", limits::CONDITION, lines, || {
            agent.expect_running()?;
            counter.count(&self.scene.output)
        });
        counted.unwrap_or_else(|error| panic!("{error}: {}", self.status()));
    }

    fn ask(&self, words: &[&str]) -> Answer {
        let config = self.scene.config().display().to_string();
        self.scene.flumen(&[words, &[&config]].concat()).unwrap()
    }
}

fn load(scene: &Scene, lines: u64, seed: u64) -> Load {
    Load {
        dir: scene.input(),
        files: 2,
        bytes_per_s: 0,
        rotate_bytes: 5_000_000,
        rotation: Rotation::Rename,
        lines: Some(lines),
        has_malformed: false,
        has_doubles: false,
        seed,
    }
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// The source waits when the memory is full. What is in it when the agent is killed is lost, counted to the last event, and nothing
/// else: the rest arrives once, in order.
#[test]
fn a_kill_costs_what_was_in_memory_and_says_how_much() {
    let world = World::new(&format!("[channel]\nkind = \"memory\"\ncapacity = {MEMORY}"));
    let mut agent = world.scene.start_ready().unwrap();
    let channel = world.wait_read(20_000);
    let at_risk = number(&channel, "events_at_risk");
    assert!((1..=20_000).contains(&at_risk), "{channel}");
    assert_eq!(channel["reliability"], "best-effort");
    agent.expect_running().unwrap();
    agent.kill().unwrap();
    world.release();
    let mut agent = world.scene.start_ready().unwrap();
    let lost = number(&world.channel(), "events_lost");
    assert!((1..=20_000).contains(&lost), "{lost}");
    let text = world.scene.shown().unwrap();
    assert!(text.contains(&format!("{lost} lost when the agent died")), "{text}");
    world.wait_output(&mut agent, world.total() - lost);
    agent.stop().unwrap();
    let verdict = world.judge();
    assert_eq!(verdict.lost, lost, "{verdict}");
    assert_eq!((verdict.doubled, verdict.out_of_order, verdict.foreign), (0, 0, 0), "{verdict}");
}

/// What could not be delivered in time is kept over a clean stop, although it was in memory.
#[test]
fn a_clean_stop_keeps_what_is_in_memory() {
    let world = World::new(&format!("[channel]\nkind = \"memory\"\ncapacity = {MEMORY}"));
    let mut agent = world.scene.start_ready().unwrap();
    assert!(number(&world.wait_read(20_000), "events_at_risk") > 0);
    for _ in 0..2 {
        agent.signal(Signal::TERM).unwrap();
        assert!(agent.wait_exit(limits::STOP).unwrap().success());
        agent = world.scene.start_ready().unwrap();
    }
    world.release();
    assert_eq!(number(&world.channel(), "events_lost"), 0);
    world.wait_output(&mut agent, world.total());
    agent.stop().unwrap();
    let verdict = world.judge();
    assert!(verdict.holds(), "{verdict}");
}

/// More than the memory holds goes to disk, while the sink fails and no longer, in order; `reliability` alone asks for it.
#[test]
fn what_finds_no_room_goes_to_disk_and_is_drained_first() {
    let world = World::new(&format!("reliability = \"store-on-failure\"\n[channel]\nmemory = {MEMORY}"));
    let mut agent = world.scene.start_ready().unwrap();
    // What the source has read is on its way to the channel for a moment.
    let channel = world.wait("everything in the channel", |pipeline| {
        pipeline["sinks"][0]["state"] == "retrying"
            && number(&pipeline["channels"][0], "head") == world.total()
    });
    assert_eq!(channel["reliability"], "store-on-failure");
    assert!((1..=20_000).contains(&number(&channel, "events_at_risk")), "{channel}");
    assert!(number(&channel, "events_overflowed") >= LINES / 2, "{channel}");
    // Over a clean stop what is in memory goes before what is on disk.
    agent.signal(Signal::TERM).unwrap();
    assert!(agent.wait_exit(limits::STOP).unwrap().success());
    let mut agent = world.scene.start_ready().unwrap();
    world.release();
    world.wait_output(&mut agent, world.total());
    world.wait_delivered();
    let verdict = world.judge();
    assert!(verdict.holds(), "{verdict}");
    assert_eq!(number(&world.channel(), "events_overflowed"), 0, "nothing since the start");
    agent.stop().unwrap();
}

/// A destination that takes nothing does not hold a best-effort flow: events are dropped and counted; what was kept comes.
#[test]
fn a_best_effort_flow_drops_and_counts() {
    let world = World::new(&format!(
        "reliability = \"best-effort\"\n[channel]\ncapacity = {MEMORY}\ndrop_after = \"100ms\""
    ));
    let mut agent = world.scene.start_ready().unwrap();
    let all = world.total();
    let channel = world.wait("everything put or dropped", |pipeline| {
        let channel = &pipeline["channels"][0];
        number(channel, "head") + number(channel, "events_dropped") == all
    });
    let dropped = number(&channel, "events_dropped");
    assert!(dropped >= LINES / 2, "{channel}");
    world.release();
    world.wait_output(&mut agent, all - dropped);
    agent.stop().unwrap();
    let verdict = world.judge();
    assert_eq!(verdict.lost, dropped, "{verdict}");
    assert_eq!((verdict.doubled, verdict.out_of_order, verdict.foreign), (0, 0, 0), "{verdict}");
}

/// The words, what each can lose, and the words that contradict each other, with place and fix.
#[test]
fn check_says_what_can_be_lost_and_what_contradicts() {
    let check = |channel: &str| {
        let world = World::new(channel);
        let answer = world.ask(&["check"]);
        (answer.status.code(), answer.stdout + &answer.stderr)
    };
    for (channel, promised) in [
        ("", "end-to-end (file): nothing is lost"),
        ("reliability = \"end-to-end\"", "end-to-end (file): nothing is lost"),
        ("reliability = \"store-on-failure\"", "at most 1000000 events or 256 MiB"),
        (
            "reliability = \"best-effort\"",
            "when nothing is acknowledged for 3 s, events that find no room are dropped",
        ),
        ("[channel]\nkind = \"memory\"", "best-effort (memory): an end without a clean stop"),
    ] {
        let (code, text) = check(channel);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains(promised), "{channel}: {text}");
    }
    for (channel, reason) in [
        (
            "reliability = \"end-to-end\"\n[channel]\nkind = \"memory\"",
            "is of kind `memory`, which is best-effort",
        ),
        (
            "reliability = \"best-effort\"\n[channel]\nkind = \"file\"",
            "set reliability = \"end-to-end\" at the top",
        ),
        ("reliability = \"perhaps\"", "bad-choice"),
        (
            "[channel]\nkind = \"memory\"\ncapacity = { events = 10 }",
            "a full batch does not fit into the memory",
        ),
        ("[channel]\nkind = \"file\"\ndrop_after = \"1s\"", "has no key `drop_after`"),
    ] {
        let (code, text) = check(channel);
        assert_eq!(code, Some(78), "{channel}: {text}");
        assert!(text.contains(reason) && text.contains("main.toml:"), "{channel}: {text}");
    }
}

/// After a kill everything is read again, and nothing is on disk twice.
#[test]
fn a_source_backed_channel_reads_again() {
    let world = World::new("[channel]\nkind = \"source-backed\"");
    let mut agent = world.scene.start_ready().unwrap();
    let channel = world.wait("everything in the channel", |pipeline| {
        pipeline["sinks"][0]["state"] == "retrying"
            && number(&pipeline["channels"][0], "events") == world.total()
    });
    assert_eq!(
        (channel["reliability"].as_str(), number(&channel, "events_at_risk")),
        (Some("end-to-end"), 0)
    );
    let journal = world.status()["pipelines"][0]["journal"].clone();
    assert!(number(&journal, "bytes_written") < 100_000, "{journal}");
    agent.expect_running().unwrap();
    agent.kill().unwrap();
    let mut agent = world.scene.start_ready().unwrap();
    world.wait_read(world.total());
    // A stop that cannot deliver leaves everything to the next start, too.
    agent.signal(Signal::TERM).unwrap();
    assert!(agent.wait_exit(limits::STOP).unwrap().success());
    let mut agent = world.scene.start_ready().unwrap();
    world.release();
    world.wait_output(&mut agent, world.total());
    world.wait_delivered();
    let journal = world.status()["pipelines"][0]["journal"].clone();
    assert!(number(&journal, "bytes_written") < 1_000_000, "no body is in it: {journal}");
    agent.stop().unwrap();
    let verdict = world.judge();
    assert!(verdict.holds(), "{verdict}");
}

/// One sink that cannot write holds the source, not what the others have under way; a kill in that, and each has everything once.
#[test]
fn a_source_backed_channel_waits_for_its_slowest_sink() {
    let world = World::new(&format!(
        "{}\n[sink.free]\ntype = \"file\"\npath = \"{{out}}-free/all.log\"\nflush_interval = \"50ms\"\n",
        "[channel]\nkind = \"source-backed\"\ncapacity = { events = 40_000, bytes = \"32 MiB\" }"
    ));
    let free = std::path::PathBuf::from(format!("{}-free", world.scene.output.display()));
    let mut agent = world.scene.start_ready().unwrap();
    let mut counter = output::LineCounter::default();
    poll::until("lines of the free sink", limits::CONDITION, || Ok(counter.count(&free)? > 0)).unwrap();
    let channel = world.wait("a full channel", |pipeline| pipeline["sources"][0]["state"] == "busy");
    assert!((1..=40_000).contains(&number(&channel, "events")), "{channel}");
    agent.expect_running().unwrap();
    agent.kill().unwrap();
    let mut agent = world.scene.start_ready().unwrap();
    world.wait("a full channel", |pipeline| pipeline["sources"][0]["state"] == "busy");
    world.release();
    world.wait_output(&mut agent, world.total());
    world.wait_delivered();
    agent.stop().unwrap();
    let verdict = world.judge();
    assert!(verdict.holds(), "{verdict}");
    let verdict = oracle::judge(&output::sequences(&free).unwrap(), &world.written, |_| true).unwrap();
    assert!(verdict.holds(), "{verdict}");
}

/// Where each event once cannot be kept, `check` says why.
#[test]
fn check_refuses_what_a_source_backed_channel_cannot_keep() {
    const TAIL: &str = "[source]\ntype = \"tail\"\npaths = [\"/a\"]\n";
    const FILE: &str = "[sink.one]\ntype = \"file\"\npath = \"/b\"\n";
    const KAFKA: &str = "[sink.one]\ntype = \"kafka\"\nbrokers = [\"k:1\"]\ntopic = \"t\"\n";
    let scene = Scene::new().unwrap();
    let check = |text: &str| {
        scene.pipeline(&format!("[channel]\nkind = \"source-backed\"\n{text}")).unwrap();
        let answer = scene.flumen(&["check", &scene.config().display().to_string()]).unwrap();
        (answer.status.code(), answer.stdout + &answer.stderr)
    };
    for good in [
        format!("{TAIL}{FILE}"),
        format!("{TAIL}{FILE}[sink.two]\ntype = \"null\"\n"),
        format!("{TAIL}{KAFKA}delivery = \"at-least-once\"\n"),
        format!("{TAIL}{KAFKA}[sink.two]\ntype = \"null\"\n"),
    ] {
        let (code, text) = check(&good);
        assert_eq!(code, Some(0), "{text}");
    }
    for (bad, reason) in [
        (
            format!(
                "{TAIL}{FILE}[sink.two]\ntype = \"null\"\n[group.g]\nkind = \"failover\"\nsinks = [\"one\", \"two\"]\n"
            ),
            "a group needs one of kind `file`",
        ),
        (format!("{TAIL}{KAFKA}lanes = 2\n"), "2 lanes end their transactions one after the other"),
        (
            format!("{TAIL}{KAFKA}{}", KAFKA.replace("sink.one", "sink.two")),
            "it and one are exactly-once to Kafka",
        ),
        (format!("[source]\ntype = \"stdin\"\n{FILE}"), "which a source of type `stdin` cannot"),
    ] {
        let (code, text) = check(&bad);
        assert_eq!(code, Some(78), "{bad}: {text}");
        assert!(text.contains(reason), "{bad}: {text}");
    }
}
