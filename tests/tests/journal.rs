//! `flumen journal`: what the tools say of a live journal, of a stopped one and of a damaged one; and a replay, which puts each event once,
//! whatever is killed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flumen_tests::agent::Agent;
use flumen_tests::http::{Appender, Faults};
use flumen_tests::scene::{Answer, Scene};
use flumen_tests::status::Status;
use flumen_tests::{limits, output, poll};
use jiff::Timestamp;
use serde_json::Value;

const LINES: usize = 5_000;

/// `one` delivers; `held` finds a file where it wants a directory, so everything stays in the journal. `second` is there to be replayed
/// to: nothing is ever read for it.
const PIPELINE: &str = "[source.in]\ntype = \"tail\"\npaths = [\"{in}/a.log\"]\nselector = { kind = \"replicating\", channels = [\"main\"] }\n\
    [source.none]\ntype = \"tail\"\npaths = [\"{in}/none.log\"]\nselector = { kind = \"replicating\", channels = [\"second\"] }\n\
    [channel.main]\n[channel.second]\ncapacity = { events = 1_000 }\n\
    [sink.one]\ntype = \"file\"\nchannel = \"main\"\npath = \"{out}/one.log\"\nflush_interval = \"20ms\"\n\
    [sink.held]\ntype = \"file\"\nchannel = \"main\"\npath = \"{out}/held/held.log\"\n\
    [sink.second]\ntype = \"file\"\nchannel = \"second\"\npath = \"{out}/second/second.log\"\nflush_interval = \"20ms\"\n\
    [batch]\nrows = 500\n";

fn line(at: usize) -> String {
    format!("line {at}\n")
}

/// Without an agent and without lines.
fn prepared(pipeline: &str) -> Scene {
    let mut scene = Scene::new().unwrap();
    // What the held sink does not deliver is not waited for.
    scene.drain_timeout = "1s".to_owned();
    scene.pipeline(pipeline).unwrap();
    for blocked in ["held", "second"] {
        fs::write(scene.output.join(blocked), "").unwrap();
    }
    scene
}

fn filled() -> (Scene, Agent) {
    filled_as(PIPELINE)
}

fn filled_as(pipeline: &str) -> (Scene, Agent) {
    let scene = prepared(pipeline);
    fs::write(scene.input().join("a.log"), (0..LINES).map(line).collect::<String>()).unwrap();
    let agent = scene.start_ready().unwrap();
    poll::until("the lines", limits::CONDITION, || Ok(delivered(&scene, "one").len() == LINES)).unwrap();
    let last = format!("main:{}", LINES - 1);
    poll::until("its acknowledgement", limits::CONDITION, || {
        let told = json(&journal(&scene, &["trace"], &[&last, "--output", "json"]));
        Ok(told["puts"][0]["channels"][0]["readers"][1]["state"] == "acknowledged")
    })
    .unwrap();
    (scene, agent)
}

/// Writes more lines to a journal whose `main` has had those before, and waits until it has them.
fn append(scene: &Scene, lines: Range<usize>) {
    append_behind(scene, lines.clone(), lines.start as u64);
}

/// As [`append`], where `main` has had `head` events.
fn append_behind(scene: &Scene, lines: Range<usize>, head: u64) {
    let path = scene.input().join("a.log");
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(lines.clone().map(line).collect::<String>().as_bytes()).unwrap();
    let head = head + lines.len() as u64;
    poll::until("the lines in the journal", limits::CONDITION, || {
        let answer = journal(scene, &["inspect"], &["--output", "json"]);
        Ok(answer.status.success() && json(&answer)["channels"][0]["head"] == head)
    })
    .unwrap();
}

/// The numbers of the lines in the files of this name, sorted.
fn delivered(scene: &Scene, name: &str) -> Vec<usize> {
    let mut all = Vec::new();
    let mut dirs = vec![scene.output.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.file_name().unwrap().to_str().unwrap().starts_with(name) {
                // One that gets its final name meanwhile is seen the next time.
                let text = output::whole_lines(&path).unwrap().unwrap_or_default();
                let text = String::from_utf8(text).unwrap();
                all.extend(
                    text.lines().map(|line| line.strip_prefix("line ").unwrap().parse::<usize>().unwrap()),
                );
            }
        }
    }
    all.sort_unstable();
    all
}

fn dir(scene: &Scene) -> PathBuf {
    scene.data.join("pipelines/main")
}

fn journal(scene: &Scene, words: &[&str], more: &[&str]) -> Answer {
    let dir = dir(scene).display().to_string();
    let mut all = vec!["journal"];
    all.extend(words);
    all.push(&dir);
    all.extend(more);
    scene.flumen(&all).unwrap()
}

fn replay(scene: &Scene, more: &[&str]) -> Answer {
    let config = scene.config().display().to_string();
    let mut all = vec!["journal", "replay", &config];
    all.extend(more);
    scene.flumen(&all).unwrap()
}

fn json(answer: &Answer) -> Value {
    serde_json::from_str(answer.stdout.lines().next().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {}{}", answer.stdout, answer.stderr))
}

fn said(answer: Answer) -> String {
    assert!(answer.status.success(), "{}{}", answer.stdout, answer.stderr);
    answer.stdout
}

#[test]
fn a_live_journal_is_read_and_a_batch_is_followed() {
    let (scene, agent) = filled();
    let told = json(&journal(&scene, &["inspect"], &["--output", "json"]));
    let main = &told["channels"][0];
    assert_eq!((&main["channel"], &main["head"]), (&"main".into(), &LINES.into()), "{told}");
    assert!(told["rates"]["events_per_s"].as_f64().unwrap() > 0.0, "{told}");
    let shown = said(journal(&scene, &["inspect"], &[]));
    assert!(shown.contains("5000 behind") && shown.contains("events/s"), "{shown}");

    let told = said(journal(&scene, &["verify"], &[]));
    assert!(told.contains("nothing is damaged"), "{told}");
    let told = json(&journal(&scene, &["verify"], &["--output", "json"]));
    assert_eq!((&told["sound"], &told["events"]), (&true.into(), &LINES.into()), "{told}");

    let all = said(journal(&scene, &["export"], &["--channel", "main"]));
    let events: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), LINES);
    let number = |event: &Value| event["number"].as_u64().unwrap() as usize;
    assert!(events.iter().enumerate().all(|(at, event)| number(event) == at));
    assert_eq!((&events[7]["body"], &events[7]["channel"]), (&"line 7".into(), &"main".into()));
    let some = said(journal(&scene, &["export"], &["--channel", "main", "--number", "17..40"]));
    assert_eq!(some.lines().count(), 23);
    let none = said(journal(&scene, &["export"], &["--channel", "main", "--before", "1h"]));
    assert_eq!(none, "");
    let wrong = journal(&scene, &["export"], &[]);
    assert!(!wrong.status.success() && wrong.stderr.contains("--channel"), "{}", wrong.stderr);

    // By an event, by the commit that it is in, and by the event's identity.
    let found = json(&journal(&scene, &["trace"], &["main:600", "--output", "json"]));
    let commit = found["commit"].as_u64().unwrap().to_string();
    assert!(found["positions"][0]["key"].as_str().unwrap().starts_with("source/in/"), "{found}");
    let readers = found["puts"][0]["channels"][0]["readers"].as_array().unwrap();
    let states: Vec<_> = readers.iter().map(|it| (it["reader"].as_str(), it["state"].as_str())).collect();
    assert_eq!(states[1], (Some("one"), Some("acknowledged")), "{found}");
    assert_eq!(states[0].0, Some("held"), "{found}");
    assert_eq!(readers[1]["positions"][0], "sink/one", "{found}");
    let identity = &events[600];
    let identity = format!("{}/{}", identity["stream"], identity["position"]);
    for id in [commit.as_str(), identity.as_str()] {
        assert_eq!(json(&journal(&scene, &["trace"], &[id, "--output", "json"]))["commit"], found["commit"]);
    }
    let shown = said(journal(&scene, &["trace"], &[&commit]));
    for part in [
        "read ",
        "committed ",
        "put ",
        "channel ",
        "one ",
        "acknowledged, by commit",
        "with the position sink/one",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    for (id, reason) in
        [("99999", "the last commit is"), ("main:99999", "the channel ends at 5000"), ("x", "names no batch")]
    {
        let wrong = journal(&scene, &["trace"], &[id]);
        assert!(!wrong.status.success() && wrong.stderr.contains(reason), "{id}: {}", wrong.stderr);
    }
    agent.stop().unwrap();
}

/// While a destination does not take a batch, the batch is told to be handed out to that sink, and acknowledged by the other.
#[test]
fn a_batch_that_a_sink_has_and_does_not_get_rid_of_is_handed_out() {
    let appender = Appender::start(1).unwrap();
    let (mut scene, address) = (Scene::new().unwrap(), appender.server.address);
    scene.drain_timeout = "1s".to_owned();
    scene.install("http-append", "http-append").unwrap();
    let text = format!(
        "[source]\ntype = \"tail\"\npaths = [\"{{in}}/a.log\"]\n\
         [sink.one]\ntype = \"file\"\npath = \"{{out}}/one.log\"\nflush_interval = \"20ms\"\n\
         [sink.two]\nplugin = \"http-append\"\ngrant = [\"http\"]\nlinger = \"20ms\"\n\
         config = {{ url = \"{}/lines\" }}\negress = {{ allow = [\"{address}\"] }}\n",
        appender.server.url()
    );
    scene.pipeline(&text).unwrap();
    let agent = scene.start_ready().unwrap();
    let sink = |what: &str, is_met: &dyn Fn(&Value) -> bool| {
        let of = |status: Status| status.0["pipelines"][0]["sinks"][1].clone();
        let look = || Ok(scene.status()?.map(of).filter(|sink| is_met(sink)));
        poll::until_some(what, limits::CONDITION, look).unwrap();
    };
    // It has asked how far its destination is, before that says "not now" to everything.
    sink("the sink", &|sink| sink["state"] == "running" && appender.counted().0 > 0);
    appender.faults(Faults { busy: 100, ..Faults::default() });
    fs::write(scene.input().join("a.log"), line(0)).unwrap();
    let reader = |number: usize, name: &str, state: &str| {
        let mut told = Value::Null;
        poll::until(&format!("{name} to be {state}"), limits::CONDITION, || {
            let answer = journal(&scene, &["trace"], &["main:0", "--output", "json"]);
            if !answer.status.success() {
                // The line is not in the journal yet.
                return Ok(false);
            }
            told = json(&answer);
            let reader = &told["puts"][0]["channels"][0]["readers"][number];
            // The tool reads a live journal: where the reader is, a moment after the commits.
            let is_told = state != "acknowledged" || reader["commit"].is_u64();
            Ok(reader["reader"] == name && reader["state"] == state && is_told)
        })
        .unwrap_or_else(|error| panic!("{error}: {told}"));
        told["puts"][0]["channels"][0]["readers"][number].clone()
    };
    reader(0, "one", "acknowledged");
    let held = reader(1, "two", "handed out");
    assert_eq!((&held["cursor"], &held["handed_out"], &held["commit"]), (&0.into(), &1.into(), &Value::Null));
    // So it stays while it is tried again and again, and the whole life is told to a person, too.
    sink("another try", &|sink| sink["metrics"]["errors"].as_u64() > Some(1));
    let mut shown = String::new();
    let parts = ["read ", "committed ", "acknowledged, by commit", "handed out, the reader is at 0"];
    poll::until("the whole life", limits::CONDITION, || {
        // What is handed out the agent says, which a busy machine may keep from answering in time.
        shown = said(journal(&scene, &["trace"], &["main:0"]));
        Ok(parts.iter().all(|part| shown.contains(part)))
    })
    .unwrap_or_else(|error| panic!("{error}: {shown}"));
    appender.faults(Faults::default());
    reader(1, "two", "acknowledged");
    assert_eq!(appender.lines(), [line(0).trim_end()]);
    agent.stop().unwrap();
}

#[test]
fn damage_is_named_and_what_is_left_is_exported() {
    let (scene, agent) = filled();
    agent.kill().unwrap();
    let told = json(&journal(&scene, &["trace"], &["main:600", "--output", "json"]));
    let file = dir(&scene).join("journal").join(told["segment"].as_str().unwrap());
    let mut bytes = fs::read(&file).unwrap();
    let at = told["offset"].as_u64().unwrap() + told["bytes"].as_u64().unwrap() / 2;
    bytes[usize::try_from(at).unwrap()] ^= 1;
    fs::write(&file, bytes).unwrap();
    let answer = journal(&scene, &["verify"], &[]);
    assert_eq!(answer.status.code(), Some(1), "{}", answer.stdout);
    let missing = format!("the commits {0} to {0} before it are missing", told["commit"]);
    assert!(answer.stdout.contains("DAMAGE") && answer.stdout.contains(&missing), "{}", answer.stdout);
    let left = journal(&scene, &["export"], &["--channel", "main"]);
    let rows = told["puts"][0]["events"].as_u64().unwrap() as usize;
    assert_eq!(left.stdout.lines().count(), LINES - rows);
    assert!(
        left.stderr.contains(&format!("{rows} events of the range are not in the journal")),
        "{}",
        left.stderr
    );
}

/// The agent goes on without what the plugin remembered there, and says so.
#[test]
fn damaged_state_of_a_plugin_is_counted_by_status() {
    let scene = Scene::new().unwrap();
    scene.install("dedup", "dedup").unwrap();
    let text = "[[interceptor]]\nplugin = \"dedup\"\ngrant = [\"state\"]\nconfig = { by = \"body\", window = \"2h\" }\n\
        [source]\ntype = \"tail\"\npaths = [\"{in}/a.log\"]\n\
        [sink]\ntype = \"file\"\npath = \"{out}/one.log\"\nflush_interval = \"20ms\"\n";
    scene.pipeline(text).unwrap();
    fs::write(scene.input().join("a.log"), (0..LINES).map(line).collect::<String>()).unwrap();
    let agent = scene.start_ready().unwrap();
    let state_file = || {
        let files = fs::read_dir(dir(&scene).join("journal"))?.collect::<Result<Vec<_>, _>>()?;
        let mut paths = files.into_iter().map(|file| file.path());
        Ok(paths.find(|path| path.extension().is_some_and(|extension| extension == "state")))
    };
    poll::until_some("a file of the state", limits::CONDITION, state_file).unwrap();
    poll::until("the lines", limits::CONDITION, || Ok(delivered(&scene, "one").len() == LINES)).unwrap();
    agent.stop().unwrap();
    let path = state_file().unwrap().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let agent = scene.start_ready().unwrap();
    let status = scene.answered().unwrap().0;
    assert_eq!(status["pipelines"][0]["journal"]["damaged_state_blocks"], 1, "{status}");
    assert_eq!(status["pipelines"][0]["journal"]["damaged_commits"], 0, "{status}");
    let shown = scene.shown().unwrap();
    assert!(shown.contains("0 damaged commits, 1 damaged blocks of state"), "{shown}");
    agent.stop().unwrap();
}

#[test]
fn a_replay_is_tried_first_and_then_done_by_the_agent_or_without_it() {
    let (scene, agent) = filled();
    let range = ["--channel", "main", "--number", "100..300", "--sink", "one"];
    let dry = said(replay(&scene, &range));
    assert!(dry.contains("200 events of main (100 to 299") && dry.contains("nothing was done"), "{dry}");
    assert!(dry.contains("delivered by   one\n"), "{dry}");
    let head = || json(&journal(&scene, &["inspect"], &["--output", "json"]))["channels"][0]["head"].as_u64();
    assert_eq!(head(), Some(LINES as u64));
    let done = said(replay(&scene, &[&range[..], &["--yes"]].concat()));
    assert_eq!(done, "main: 200 events of main entered main again\n");
    poll::until("they are delivered again", limits::CONDITION, || {
        Ok(delivered(&scene, "one").len() == LINES + 200)
    })
    .unwrap();
    agent.stop().unwrap();

    let range = ["--channel", "main", "--number", "290..310", "--output", "json", "--yes"];
    let done = json(&replay(&scene, &range));
    assert_eq!((&done["report"]["events"], &done["report"]["missing"]), (&20.into(), &0.into()), "{done}");
    assert_eq!(head(), Some(LINES as u64 + 220));
    fs::remove_file(scene.output.join("held")).unwrap();
    let agent = scene.start_ready().unwrap();
    // The 200 were for the sink `one` alone.
    poll::until("all is delivered", limits::CONDITION, || {
        Ok(delivered(&scene, "one").len() == LINES + 220 && delivered(&scene, "held").len() == LINES + 20)
    })
    .unwrap();
    agent.stop().unwrap();
    let times = |name: &str, at: usize| delivered(&scene, name).iter().filter(|found| **found == at).count();
    for at in [99, 100, 289, 290, 299, 300, 309, 310] {
        let to_one = 1 + usize::from((100..300).contains(&at)) + usize::from((290..310).contains(&at));
        assert_eq!(
            (times("one", at), times("held", at)),
            (to_one, 1 + usize::from((290..310).contains(&at))),
            "{at}"
        );
    }
    for (words, reason) in [
        (&["--channel", "main", "--to", "x"][..], "there are: main, second"),
        (&["--channel", "main", "--sink", "second"], "there are: one, held"),
        (&["--channel", "none"], "no channel \"none\""),
    ] {
        let wrong = replay(&scene, words);
        assert!(!wrong.status.success() && wrong.stderr.contains(reason), "{words:?}: {}", wrong.stderr);
    }
}

/// By the events' own time, which is when the source read them, not when they were committed. `--since` takes what is at its bound,
/// `--before` does not.
#[test]
fn events_are_chosen_by_their_time() {
    let scene = prepared(PIPELINE);
    let agent = scene.start_ready().unwrap();
    // All of a group is in the journal before the time is taken that the next one begins after.
    let mut starts = Vec::new();
    for group in [0..700, 700..1_200, 1_200..2_000] {
        starts.push(Timestamp::now().to_string());
        append(&scene, group);
    }
    let (first, second, third) = (starts[0].as_str(), starts[1].as_str(), starts[2].as_str());
    let event = json(&journal(&scene, &["export"], &["--channel", "main", "--number", "700"]));
    let (own, committed) = (event["time"].as_str().unwrap(), event["committed"].as_str().unwrap());
    let [read_at, committed_at] = [own, committed].map(|time| time.parse::<Timestamp>().unwrap());
    assert!(read_at < committed_at, "{event}");

    let cases: [(&[&str], Range<usize>); 13] = [
        (&["--since", first], 0..2_000),
        (&["--before", first], 0..0),
        (&["--since", second], 700..2_000),
        (&["--before", second], 0..700),
        (&["--since", second, "--before", third], 700..1_200),
        (&["--since", third, "--before", second], 0..0),
        (&["--since", second, "--number", "600..800"], 700..800),
        (&["--since", "1h"], 0..2_000),
        (&["--before", "1h"], 0..0),
        (&["--since", own], 700..2_000),
        (&["--before", own], 0..700),
        (&["--since", committed, "--number", "700"], 0..0),
        (&["--before", committed, "--number", "700"], 700..701),
    ];
    for (bounds, expected) in cases {
        let words = [&["--channel", "main"][..], bounds].concat();
        let exported = said(journal(&scene, &["export"], &words));
        let number = |event: &str| serde_json::from_str::<Value>(event).unwrap()["number"].as_u64().unwrap();
        let found: Vec<usize> = exported.lines().map(|event| number(event) as usize).collect();
        assert!(found.iter().copied().eq(expected.clone()), "{bounds:?}: {found:?}");
        let told = json(&replay(&scene, &[&words[..], &["--output", "json"]].concat()));
        assert_eq!(
            (&told["dry_run"], &told["events"], &told["missing"]),
            (&true.into(), &expected.len().into(), &0.into()),
            "{bounds:?}: {told}"
        );
    }

    // The agent is told the same bounds.
    let words = ["--channel", "main", "--since", second, "--before", third, "--sink", "one", "--yes"];
    assert_eq!(said(replay(&scene, &words)), "main: 500 events of main entered main again\n");
    let mut all: Vec<usize> = (0..2_000).chain(700..1_200).collect();
    all.sort_unstable();
    poll::until("the second group again", limits::CONDITION, || Ok(delivered(&scene, "one") == all)).unwrap();
    agent.stop().unwrap();
}

/// When each file and directory was changed, and a file's bytes.
type Tree = BTreeMap<PathBuf, (SystemTime, Vec<u8>)>;

/// Everything below a directory, and the directory itself: whatever is made there and removed again changes its time.
fn tree(dir: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut open = vec![dir.to_owned()];
    while let Some(path) = open.pop() {
        let about = fs::metadata(&path).unwrap();
        let mut bytes = Vec::new();
        if about.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            bytes = fs::read(&path).unwrap();
        }
        tree.insert(path, (about.modified().unwrap(), bytes));
    }
    tree
}

/// Without the bytes: nobody would read them.
fn differences(before: &Tree, after: &Tree) -> Vec<PathBuf> {
    let paths: BTreeSet<&PathBuf> = before.keys().chain(after.keys()).collect();
    paths.into_iter().filter(|path| before.get(*path) != after.get(*path)).cloned().collect()
}

/// All that only reads, for people and for programs.
fn use_all_tools(scene: &Scene, lines: usize) {
    let forms: [&[&str]; 2] = [&[], &["--output", "json"]];
    for form in forms {
        said(journal(scene, &["inspect"], form));
        said(journal(scene, &["inspect", "--commits"], form));
        said(journal(scene, &["verify"], form));
        said(journal(scene, &["trace"], &[&["main:600"][..], form].concat()));
        said(replay(scene, &[&["--channel", "main", "--to", "second"][..], form].concat()));
    }
    let all = said(journal(scene, &["export"], &["--channel", "main"]));
    assert_eq!(all.lines().count(), lines);
}

/// They may be used at any time: beside an agent that is at work, and on what a crash left, before anybody has mended it.
#[test]
fn the_tools_change_nothing_in_the_directory() {
    // Small segments, since all of their bytes are compared.
    let (scene, mut agent) = filled_as(&format!("{PIPELINE}[journal]\nsegment = \"1 MiB\"\n"));
    let dir = dir(&scene);
    let nothing: [PathBuf; 0] = [];
    let written = || {
        let status = scene.answered().unwrap();
        (status.journal("commits"), status.journal("bytes_written"))
    };
    assert!(written().0 > 0 && written().1 > 0, "the figures are there");
    // There is nothing left to do for the agent. Should it commit something all the same, that look does not count.
    poll::until("an agent that writes nothing meanwhile", limits::CONDITION, || {
        let (written_before, before) = (written(), tree(&dir));
        use_all_tools(&scene, LINES);
        let after = tree(&dir);
        if written() != written_before {
            return Ok(false);
        }
        assert_eq!(differences(&before, &after), nothing);
        Ok(true)
    })
    .unwrap();
    agent.expect_running().unwrap();
    append(&scene, LINES..LINES + 10);
    poll::until("the new lines", limits::CONDITION, || Ok(delivered(&scene, "one").len() == LINES + 10))
        .unwrap();

    agent.kill().unwrap();
    let before = tree(&dir);
    assert!(before.keys().any(|path| path.extension().is_some_and(|it| it == "seg")), "{:?}", before.keys());
    use_all_tools(&scene, LINES + 10);
    assert_eq!(differences(&before, &tree(&dir)), nothing);
    fs::remove_file(scene.output.join("held")).unwrap();
    let agent = scene.start_ready().unwrap();
    poll::until("all that was held", limits::CONDITION, || Ok(delivered(&scene, "held").len() == LINES + 10))
        .unwrap();
    agent.stop().unwrap();
}

/// Gives a replay that fills a channel and then stands still, and kills the agent. `channel`: its index in `inspect`. Meanwhile the same
/// command is refused: the agent would put everything twice.
fn kill_when_full(scene: &Scene, agent: Agent, words: &[&str], channel: usize, capacity: u64) {
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| scene.flumen(words).unwrap());
        poll::until("the channel is full", limits::CONDITION, || {
            let told = json(&journal(scene, &["inspect"], &["--output", "json"]));
            Ok(told["channels"][channel]["head"].as_u64() >= Some(capacity))
        })
        .unwrap();
        let same = scene.flumen(words).unwrap();
        assert!(!same.status.success() && same.stderr.contains("at work on this replay"), "{}", same.stderr);
        agent.kill().unwrap();
        let answer = waiting.join().unwrap();
        assert!(!answer.status.success() && answer.stderr.contains("the same command"), "{}", answer.stderr);
    });
}

/// The same command then goes on where it was, with what it meant: there are more lines meanwhile, and an hour ago is later.
#[test]
fn a_replay_that_is_killed_goes_on_and_no_event_is_put_twice() {
    let (scene, agent) = filled();
    let config = scene.config().display().to_string();
    let chosen = ["--channel", "main", "--to", "second", "--since", "1h", "--output", "json"];
    let words = [&["journal", "replay", &config, "--yes"][..], &chosen].concat();
    kill_when_full(&scene, agent, &words, 1, 1_000);
    fs::remove_file(scene.output.join("second")).unwrap();
    let agent = scene.start_ready().unwrap();
    append(&scene, LINES..LINES + 100);

    let dry = json(&replay(&scene, &chosen));
    let (left, begun) = (dry["events"].as_u64().unwrap(), dry["begun"]["events"].as_u64().unwrap());
    assert!(begun >= 1_000 && left + begun == LINES as u64 && dry["request"]["until"] == LINES, "{dry}");
    let done = json(&scene.flumen(&words).unwrap());
    let report = &done["report"];
    assert_eq!((&report["events"], &report["missing"]), (&LINES.into(), &0.into()), "{done}");
    assert_eq!((&report["before"], &report["went_on"]["until"]), (&begun.into(), &LINES.into()), "{done}");

    // It has come to its end: there is nothing to give up, and the same words begin anew.
    let none = replay(&scene, &[&chosen[..], &["--give-up", "--yes"]].concat());
    assert!(!none.status.success() && none.stderr.contains("nothing to give up"), "{}", none.stderr);
    let done = json(&scene.flumen(&words).unwrap());
    let report = &done["report"];
    assert_eq!((&report["events"], &report["before"]), (&(LINES + 100).into(), &0.into()), "{done}");
    let mut all: Vec<usize> = (0..LINES).chain(0..LINES + 100).collect();
    all.sort_unstable();
    poll::until("all lines", limits::CONDITION, || Ok(delivered(&scene, "second").len() >= all.len()))
        .unwrap();
    agent.stop().unwrap();
    assert_eq!(delivered(&scene, "second"), all);
}

/// What it puts to the channel itself is behind what it meant: it does not become part of that.
#[test]
fn a_replay_to_its_own_channel_that_is_killed_puts_each_event_once_more() {
    let narrow = PIPELINE.replace("[channel.main]\n", "[channel.main]\ncapacity = { events = 6_000 }\n");
    let (scene, agent) = filled_as(&narrow);
    let config = scene.config().display().to_string();
    let words =
        ["journal", "replay", &config, "--channel", "main", "--since", "1h", "--yes", "--output", "json"];
    kill_when_full(&scene, agent, &words, 0, 6_000);
    // Room for the rest. Since the held sink takes nothing, all of it is still there.
    scene.pipeline(&narrow.replace("6_000", "20_000")).unwrap();
    let agent = scene.start_ready().unwrap();
    let told = json(&journal(&scene, &["inspect"], &["--output", "json"]));
    append_behind(&scene, LINES..LINES + 100, told["channels"][0]["head"].as_u64().unwrap());

    let done = json(&scene.flumen(&words).unwrap());
    let report = &done["report"];
    assert_eq!((&report["events"], &report["missing"]), (&LINES.into(), &0.into()), "{done}");
    assert_eq!(report["went_on"]["until"], LINES, "{done}");
    let mut all: Vec<usize> = (0..LINES).chain(0..LINES + 100).collect();
    all.sort_unstable();
    poll::until("all lines", limits::CONDITION, || Ok(delivered(&scene, "one").len() >= all.len())).unwrap();
    agent.stop().unwrap();
    assert_eq!(delivered(&scene, "one"), all);
}
