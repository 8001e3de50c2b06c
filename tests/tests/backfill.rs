//! `flumen backfill` on the real binary: what a kill cost is put in again from the log file, each line once, whatever is killed meanwhile.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;
use std::process::{Child, Command, Stdio};

use flumen_tests::agent::Agent;
use flumen_tests::scene::{Answer, PIPELINE, Scene};
use flumen_tests::{limits, locate, output, poll};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const LINES: usize = 5_000;

/// A source that finds nothing by itself, and small batches: many commits to kill between.
const FLOW: &str = "[source.in]\ntype = \"tail\"\npaths = [\"{in}/a.log\"]\n\
    [sink.out]\ntype = \"file\"\npath = \"{out}/held/all.log\"\nflush_interval = \"20ms\"\n\
    [batch]\nrows = 100\n";

/// A line of each second from ten o'clock on.
fn time(at: usize) -> String {
    format!("2026-11-30T{:02}:{:02}:{:02}Z", 10 + at / 3_600, at / 60 % 60, at % 60)
}

fn lines(count: usize) -> String {
    (0..count).map(|at| format!("{} line {at}\n", time(at))).collect()
}

struct World {
    scene: Scene,
    /// The log file.
    log: String,
}

impl World {
    /// The log is there, and the sink cannot write: its directory is a file. `name`: `a.log` is tailed.
    fn new(channel: &str, name: &str, count: usize) -> World {
        let mut scene = Scene::new().unwrap();
        scene.drain_timeout = "1s".to_owned();
        scene.pipeline(&format!("{channel}\n{FLOW}")).unwrap();
        fs::write(scene.output.join("held"), "in the way").unwrap();
        let log = scene.input().join(name);
        fs::write(&log, lines(count)).unwrap();
        World { log: log.display().to_string(), scene }
    }

    fn release(&self) {
        fs::remove_file(self.scene.output.join("held")).unwrap();
    }

    fn words(&self, more: &[&str]) -> Vec<String> {
        let config = self.scene.config().display().to_string();
        let words = ["backfill", &config, "--file", &self.log, "--output", "json"];
        words.iter().chain(more).map(ToString::to_string).collect()
    }

    fn ask(&self, more: &[&str]) -> Answer {
        self.scene.flumen(&self.words(more)).unwrap()
    }

    fn told(&self, more: &[&str]) -> Value {
        let answer = self.ask(more);
        assert!(answer.status.success(), "{}{}", answer.stdout, answer.stderr);
        serde_json::from_str(&answer.stdout).unwrap()
    }

    fn refused(&self, more: &[&str]) -> String {
        let answer = self.ask(more);
        assert!(!answer.status.success(), "{}{}", answer.stdout, answer.stderr);
        answer.stderr
    }

    fn pipeline(&self) -> Value {
        self.scene.answered().unwrap().0["pipelines"][0].clone()
    }

    fn wait(&self, what: &str, is_met: impl Fn(&Value) -> bool) -> Value {
        let look = || {
            let pipeline = self.pipeline();
            Ok(is_met(&pipeline).then_some(pipeline))
        };
        poll::until_some(what, limits::CONDITION, look)
            .unwrap_or_else(|error| panic!("{error}: {}", self.pipeline()))
    }

    fn wait_head(&self, head: u64) -> Value {
        self.wait("events in the channel", |pipeline| number(&pipeline["channels"][0], "head") >= head)
    }

    /// Until they are in the journal's files: what is handed in and not written yet goes with the agent that is killed.
    fn wait_written(&self, head: u64) {
        let dir = self.scene.data.join("pipelines").join(PIPELINE).display().to_string();
        poll::until("events in the journal's files", limits::CONDITION, || {
            let answer = self.scene.flumen(&["journal", "inspect", &dir, "--output", "json"])?;
            if !answer.status.success() {
                return Ok(false);
            }
            let told: Value = serde_json::from_str(&answer.stdout)?;
            let channels = told["channels"].as_array().unwrap();
            let main = channels.iter().find(|channel| channel["channel"] == "main").unwrap();
            Ok(number(main, "head") >= head)
        })
        .unwrap();
    }

    /// The command, under way.
    fn begin(&self) -> Child {
        let mut command = Command::new(locate::flumen().unwrap());
        command.args(self.words(&[])).stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().unwrap()
    }

    /// The numbers of the lines in the output, sorted.
    fn delivered(&self) -> Vec<usize> {
        let number = |line: Vec<u8>| {
            let line = String::from_utf8(line).unwrap();
            line.rsplit_once("line ").unwrap().1.parse::<usize>().unwrap()
        };
        let mut all: Vec<usize> = match self.scene.output.join("held").is_dir() {
            true => output::lines(&self.scene.output).unwrap().into_iter().map(number).collect(),
            false => Vec::new(),
        };
        all.sort_unstable();
        all
    }

    fn wait_delivered(&self, agent: &mut Agent, count: usize) {
        poll::until_counted("lines in the output", limits::CONDITION, count as u64, || {
            agent.expect_running()?;
            Ok(self.delivered().len() as u64)
        })
        .unwrap_or_else(|error| panic!("{error}: {}", self.pipeline()));
    }
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// The case that it is for: events in memory die with the agent, and the range is put in again.
#[test]
fn what_a_kill_cost_a_memory_channel_is_put_in_again() {
    const COUNT: usize = 2_000;
    let memory = "[channel]\nkind = \"memory\"\ncapacity = { events = 20_000, bytes = \"16 MiB\" }";
    let world = World::new(memory, "a.log", COUNT);
    let agent = world.scene.start_ready().unwrap();
    world.wait_head(COUNT as u64);
    agent.kill().unwrap();
    world.release();
    let mut agent = world.scene.start_ready().unwrap();
    let lost = number(&world.pipeline()["channels"][0], "events_lost") as usize;
    assert!(lost > 0);
    world.wait_delivered(&mut agent, COUNT - lost);
    // What was not lost was read again: the range is what is missing in front of that.
    assert_eq!(world.delivered(), (lost..COUNT).collect::<Vec<_>>());

    let (from, to) = (time(0), time(lost));
    let range = ["--pipeline", PIPELINE, "--source", "in", "--from", &from, "--to", &to];
    let head = number(&world.pipeline()["channels"][0], "head");
    let told = world.told(&[&range[..], &["--dry-run"]].concat());
    let count = &told["dry_run"]["count"];
    assert_eq!((number(count, "lines"), number(count, "events")), (lost as u64, lost as u64), "{told}");
    assert_eq!(count["first"]["line"], format!("{} line 0", time(0)), "{told}");
    assert_eq!(count["last"]["line"], format!("{} line {}", time(lost - 1), lost - 1), "{told}");
    let (from, to) = (time(10), time(20));
    let told = world.told(&["--from", &from, "--to", &to, "--dry-run"]);
    assert_eq!(number(&told["dry_run"]["count"], "lines"), 10, "half open: {told}");
    assert_eq!(number(&world.pipeline()["channels"][0], "head"), head, "a look puts nothing");

    let told = world.told(&range);
    assert_eq!((number(&told["put"], "events"), number(&told["put"], "before")), (lost as u64, 0), "{told}");
    assert_eq!(told["in_memory"][0], "main", "{told}");
    world.wait_delivered(&mut agent, COUNT);
    agent.stop().unwrap();
    assert_eq!(world.delivered(), (0..COUNT).collect::<Vec<_>>());
}

/// A kill while it waits for room: the same command goes on. Then it has come to its end, and puts nothing until that is forgotten.
#[test]
fn a_backfill_that_is_killed_goes_on_and_one_that_is_done_does_nothing() {
    let world = World::new("[channel]\ncapacity = { events = 1_000 }", "lost.log", LINES);
    let agent = world.scene.start_ready().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| world.ask(&[]));
        let pipeline = world.wait_head(1_000);
        let backfill = &pipeline["backfills"][0];
        assert_eq!((&backfill["name"], &backfill["file"]), (&"in".into(), &world.log.as_str().into()));
        assert!(world.scene.shown().unwrap().contains("file 1 of 1"));
        assert!(world.refused(&[]).contains("at work on this backfill already"));
        assert!(world.refused(&["--forget"]).contains("at work"));
        world.wait_written(1_000);
        agent.kill().unwrap();
        let answer = waiting.join().unwrap();
        assert!(!answer.status.success() && answer.stderr.contains("the same command"), "{}", answer.stderr);
    });
    world.release();
    // What is written meanwhile is tail's, not the backfill's.
    fs::write(&world.log, lines(LINES + 100)).unwrap();
    let mut agent = world.scene.start_ready().unwrap();
    let dry = world.told(&["--dry-run"]);
    let (left, begun) =
        (number(&dry["dry_run"]["count"], "lines"), number(&dry["dry_run"]["begun"], "events"));
    assert!(begun >= 900 && left + begun == LINES as u64, "{dry}");
    let told = world.told(&[]);
    assert_eq!(
        (number(&told["put"], "events"), number(&told["put"], "before")),
        (LINES as u64, begun),
        "{told}"
    );
    world.wait_delivered(&mut agent, LINES);

    let told = world.told(&[]);
    assert_eq!(number(&told["was_done"], "events"), LINES as u64, "{told}");
    let head = world.wait_head(0)["channels"][0]["head"].clone();
    assert_eq!(head, LINES, "nothing was put");
    let told = world.told(&["--forget"]);
    assert_eq!(number(&told["forgotten"], "events"), LINES as u64, "{told}");
    assert!(world.refused(&["--forget"]).contains("nothing to forget"));
    let told = world.told(&["--to-byte", "30"]);
    assert_eq!(number(&told["put"], "events"), 2, "other words are another backfill: {told}");
    world.wait_delivered(&mut agent, LINES + 2);
    agent.stop().unwrap();
    let mut all: Vec<usize> = (0..LINES).chain(0..2).collect();
    all.sort_unstable();
    assert_eq!(world.delivered(), all);
}

/// Killed again and again, while it waits for room and while lines flow: each arrives once.
#[test]
fn kills_at_any_moment_neither_lose_nor_double() {
    const COUNT: usize = 20_000;
    /// Kills while the sink takes nothing: then it is not at its end, however fast the machine is.
    const HELD: usize = 2;
    let world = World::new("[channel]\ncapacity = { events = 300 }", "lost.log", COUNT);
    let is_full = || number(&world.pipeline()["channels"][0], "head") >= 300;
    let mut cut_short = 0;
    for kill in 0..6 {
        if kill == HELD {
            world.release();
        }
        let mut agent = world.scene.start_ready().unwrap();
        let enough = world.delivered().len() + 200 * (kill % 3);
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| world.ask(&[]));
            poll::until("more lines", limits::CONDITION, || {
                agent.expect_running()?;
                let is_there = if kill < HELD { is_full() } else { world.delivered().len() > enough };
                Ok(is_there || asked.is_finished())
            })
            .unwrap();
            agent.kill().unwrap();
            cut_short += usize::from(!asked.join().unwrap().status.success());
        });
    }
    assert!(cut_short >= HELD, "killed {cut_short} times before its end");
    let mut agent = world.scene.start_ready().unwrap();
    // As long as lines come: how long all of them take is the machine's affair.
    let mut command = world.begin();
    world.wait_delivered(&mut agent, COUNT);
    let ended = poll::until_some("the end of the command", limits::CONDITION, || Ok(command.try_wait()?));
    assert!(ended.unwrap().success(), "{}", agent.log_tail());
    agent.stop().unwrap();
    assert_eq!(world.delivered(), (0..COUNT).collect::<Vec<_>>());
}

/// A signal ends the command, not the work. TERM: who runs tests in the background has INT ignored.
#[test]
fn the_agent_goes_on_when_only_the_command_is_ended() {
    let world = World::new("[channel]\ncapacity = { events = 1_000 }", "lost.log", LINES);
    let mut agent = world.scene.start_ready().unwrap();
    let mut command = world.begin();
    world.wait_head(1_000);
    kill_process(Pid::from_raw(command.id() as i32).unwrap(), Signal::TERM).unwrap();
    assert!(!command.wait().unwrap().success());
    assert!(world.refused(&[]).contains("at work on this backfill already"));
    world.release();
    world.wait_delivered(&mut agent, LINES);
    world.wait("its end", |pipeline| pipeline["backfills"].as_array().unwrap().is_empty());
    assert_eq!(number(&world.told(&[])["was_done"], "events"), LINES as u64);
    agent.stop().unwrap();
    assert_eq!(world.delivered(), (0..LINES).collect::<Vec<_>>());
}

/// Each that has begun is remembered until its end: there are so many at most, and what to do with the oldest is said.
#[test]
fn backfills_that_do_not_come_to_their_end_are_limited() {
    const BEGUN_MAX: usize = 16;
    let world = World::new("", "lost.gz", 0);
    // The head of an archive and a block as it is, and nothing behind that: it is put, and then nothing can be read.
    let text = lines(10);
    let length = (text.len() as u16).to_le_bytes();
    let mut archive = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 0];
    archive.extend(length);
    archive.extend(length.map(|byte| !byte));
    archive.extend(text.bytes());
    fs::write(&world.log, archive).unwrap();
    let agent = world.scene.start_ready().unwrap();
    let breaks_off = |from: usize| {
        let error = world.refused(&["--from-byte", &from.to_string()]);
        assert!(error.contains("ends too early"), "{error}");
    };
    (1..=BEGUN_MAX).for_each(breaks_off);
    let error = world.refused(&["--from-byte", "17"]);
    assert!(error.contains("16 backfills") && error.contains("lost.gz --from-byte 1"), "{error}");
    // Those that have begun go on.
    breaks_off(1);
    world.told(&["--from-byte", "1", "--forget"]);
    breaks_off(17);
    agent.kill().unwrap();
}

/// What is wrong is said with what to do, and nothing is put.
#[test]
fn what_is_wrong_is_said_before_anything_is_put() {
    let world = World::new("", "lost.log", 10);
    assert!(world.refused(&[]).contains("a backfill goes through the running agent"));
    let agent = world.scene.start_ready().unwrap();
    let says = |more: &[&str], words: &str| {
        let error = world.refused(more);
        assert!(error.contains(words), "{more:?}: {error}");
    };
    says(&["--pipeline", "other"], "there are: main");
    says(&["--source", "other"], "there are: in");
    says(&["--file", "/no/such.log"], "/no/such.log");
    says(&["--file", &world.log], "name one of them");
    says(&["--from", "yesterday"], "--from: known are");
    says(&["--from", "2026-11-30T11:00:00Z", "--to", "2026-11-30T10:00:00Z"], "the range is empty");
    says(&["--file", "/etc/hostname", "--from-byte", "7"], "name one file");
    let timeless = world.scene.input().join("timeless.log");
    fs::write(&timeless, "no time\n").unwrap();
    says(&["--file", &timeless.display().to_string(), "--from", "2h"], "its first line is \"no time\"");
    assert_eq!(number(&world.pipeline()["channels"][0], "head"), 0);
    agent.stop().unwrap();
}
