//! Edits while a disk is away. Of a sink: where it goes on is for the next opening of its channel's journal to say, so it cannot end by
//! itself, and a reload neither waits for that nor loses what the sink has. Of what restarts a pipeline as a whole: one that could not
//! start again is not stopped, and one that was stopped all the same starts as soon as it can.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;

use flumen_tests::agent::Agent;
use flumen_tests::disk::{self, FailingDisk, Mount};
use flumen_tests::failover::{ROOM, journal, pipeline, to_dir, wait_place, wait_taken};
use flumen_tests::flow::{DELIVERED, judge, wait_lines, wait_progress, writer};
use flumen_tests::generator::Generator;
use flumen_tests::output::{self, LineCounter};
use flumen_tests::reload::{Stage, flow, threads};
use flumen_tests::scene::{Answer, PIPELINE, Scene};
use flumen_tests::soak_faults::counted_lost;
use flumen_tests::{limits, oracle, poll};

const SINKS: [&str; 2] = ["one", "two"];

/// A scene whose stop and whose `--drain` would wait for longer than a command may take.
fn scene() -> Scene {
    let mut scene = Scene::new().unwrap();
    scene.drain_timeout = "300s".to_owned();
    scene.pipeline("").unwrap();
    // On a busy machine the watch would take an edit over before the command asks for it.
    let config = fs::read_to_string(scene.config()).unwrap();
    fs::write(scene.config(), format!("{config}watch = false\n")).unwrap();
    scene
}

/// Writes the pipeline's file. In the text, `{in}` and `{out}` stand for the directories.
fn write(scene: &Scene, text: &str) {
    let text = text.replace("{in}", &scene.input().display().to_string());
    let text = text.replace("{out}", &scene.output.display().to_string());
    fs::write(scene.root().join(format!("{PIPELINE}.toml")), text).unwrap();
}

/// Tails through a channel of this kind into these sinks; the last one rolls its files at a size.
fn edit(scene: &Scene, channel: &str, sinks: &[&str], roll_size: &str) {
    let sink = |name: &&str| {
        format!(
            "[sink.{name}]\ntype = \"file\"\npath = \"{{out}}/{name}/all.log\"\nflush_interval = \"100ms\"\n"
        )
    };
    let sinks: String = sinks.iter().map(sink).collect();
    let failover = to_dir(scene, "file", "other");
    let text = format!(
        "[source]\ntype = \"tail\"\npaths = [\"{{in}}/*.log*\"]\n[journal]\nsegment = \"1 MiB\"\n\
         [channel]\nkind = \"{channel}\"\n{failover}{sinks}roll_size = \"{roll_size}\"\n"
    );
    write(scene, &text);
}

/// `flumen reload`, with or without more words.
fn reload(scene: &Scene, more: &[&str]) -> Answer {
    let config = scene.config().display().to_string();
    let words: Vec<&str> = ["reload"].into_iter().chain(more.iter().copied()).chain([&*config]).collect();
    scene.flumen(&words).unwrap()
}

/// An edit of one sink, which is taken over at once, and the source goes on.
fn edit_a_sink(scene: &Scene, agent: &Agent, channel: &str, roll_size: &str, more: &[&str]) {
    edit(scene, channel, &SINKS, roll_size);
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
fn judge_each(scene: &Scene, channel: &str, generator: Generator) {
    edit(scene, channel, &SINKS, "2 MiB");
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
fn a_sink_is_edited_while_its_channel_cannot_be_opened_of(channel: &str, seed: u64) {
    if !disk::may_mount() {
        eprintln!("not run: the channel needs a disk of its own, and this is not root");
        return;
    }
    let mut scene = scene();
    edit(&scene, channel, &SINKS, "2 MiB");
    let _mount = Mount::tmpfs(&journal(&scene), ROOM).unwrap();
    let breaks = |scene: &mut Scene, faults: &str| {
        scene.env = vec![("FLUMEN_FAULTS".to_owned(), faults.to_owned())];
        scene.start_ready().unwrap()
    };
    // The disk is said to be away, and events go to the failover.
    let agent = breaks(&mut scene, "eio=1@journal.probe");
    if channel == "memory" {
        // What came to it before would be lost with the kill.
        wait_place(&scene, &agent, "file").unwrap();
    }
    let generator = writer(&scene, seed).unwrap();
    wait_place(&scene, &agent, "file").unwrap();
    wait_taken(&scene, 1_000).unwrap();
    agent.kill().unwrap();
    // And it is.
    let agent = breaks(&mut scene, "eio=1@journal");
    wait_place(&scene, &agent, "file").unwrap();
    wait_taken(&scene, 1_000).unwrap();
    edit_a_sink(&scene, &agent, channel, "1 MiB", &[]);
    edit_a_sink(&scene, &agent, channel, "3 MiB", &["--drain"]);

    // One that goes has to deliver first, and cannot.
    let generation = || scene.answered().unwrap().0["generation"].clone();
    let before = generation();
    edit(&scene, channel, &SINKS[..1], "3 MiB");
    let refused = || {
        let asked: [&[&str]; 2] = [&[], &["--drain"]];
        for more in asked {
            let answer = reload(&scene, more);
            assert_eq!(answer.status.code(), Some(1), "{}{}", answer.stdout, answer.stderr);
            let reason = "sink two cannot deliver what it still has of channel main";
            assert!(answer.stderr.contains(reason), "{}", answer.stderr);
            assert!(answer.stderr.contains("mend the channel's disk first"), "{}", answer.stderr);
            assert_eq!(generation(), before);
        }
    };
    refused();
    // Nor where the pipeline restarts for another reason.
    let file = scene.root().join(format!("{PIPELINE}.toml"));
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("segment = \"1 MiB\"", "segment = \"2 MiB\"")).unwrap();
    refused();
    wait_taken(&scene, 1_000).unwrap();
    agent.kill().unwrap();
    scene.env.clear();
    judge_each(&scene, channel, generator);
}

#[test]
fn a_sink_is_edited_while_its_channel_cannot_be_opened() {
    a_sink_is_edited_while_its_channel_cannot_be_opened_of("source-backed", 83);
}

#[test]
fn a_sink_is_edited_while_its_file_channel_cannot_be_opened() {
    a_sink_is_edited_while_its_channel_cannot_be_opened_of("file", 97);
}

#[test]
fn a_sink_is_edited_while_its_memory_channel_cannot_be_opened() {
    a_sink_is_edited_while_its_channel_cannot_be_opened_of("memory", 101);
}

/// The disk fails under the sinks: what they have and have not acknowledged is void, whoever restarts.
#[test]
fn a_sink_is_edited_whose_disk_fails_under_it() {
    if !disk::may_mount() {
        eprintln!("not run: a disk that fails has to be mounted, and this is not root");
        return;
    }
    const CHANNEL: &str = "source-backed";
    let scene = scene();
    edit(&scene, CHANNEL, &SINKS, "2 MiB");
    let mut failing = FailingDisk::new(&journal(&scene)).unwrap();
    let agent = scene.start_ready().unwrap();
    let generator = writer(&scene, 89).unwrap();
    wait_progress(&[&scene], 2_000).unwrap();
    failing.fail_under(&agent).unwrap();
    wait_place(&scene, &agent, "file").unwrap();
    wait_taken(&scene, 1_000).unwrap();
    edit_a_sink(&scene, &agent, CHANNEL, "1 MiB", &[]);
    agent.kill().unwrap();
    failing.repair().unwrap();
    judge_each(&scene, CHANNEL, generator);
}

/// What is in the memory of a channel waits there for the disk that has failed. A restart as a whole would lose it, and is refused; the
/// kill loses it, and the next start says how much.
#[test]
fn a_restart_that_would_lose_what_is_in_memory_is_refused() {
    if !disk::may_mount() {
        eprintln!("not run: a disk that fails has to be mounted, and this is not root");
        return;
    }
    let scene = scene();
    let channel = format!("kind = \"memory\"\n{}", to_dir(&scene, "file", "other"));
    let edit = |segment: &str| {
        let text = pipeline(&channel).replace("segment = \"1 MiB\"", &format!("segment = \"{segment}\""));
        write(&scene, &text.replace("{out}/", "{out}/held/"));
    };
    edit("1 MiB");
    // Nothing is delivered.
    let held = scene.output.join("held");
    fs::write(&held, "in the way").unwrap();
    let mut failing = FailingDisk::new(&journal(&scene)).unwrap();
    let mut agent = scene.start_ready().unwrap();
    let generator = writer(&scene, 103).unwrap();
    // What a sink has seen is counted on the disk.
    let has_tried = || Ok(scene.answered()?.0["pipelines"][0]["sinks"][0]["state"] == "retrying");
    poll::until("a sink that has tried", limits::CONDITION, has_tried).unwrap();
    failing.fail_under(&agent).unwrap();
    wait_place(&scene, &agent, "file").unwrap();
    edit("2 MiB");
    let asked: [&[&str]; 2] = [&[], &["--drain"]];
    for more in asked {
        let answer = reload(&scene, more);
        assert_eq!(answer.status.code(), Some(1), "{}{}", answer.stdout, answer.stderr);
        let reason = "events that are in the memory of its channels alone";
        assert!(answer.stderr.contains(reason), "{}", answer.stderr);
        assert!(answer.stderr.contains("mend the channel's disk first"), "{}", answer.stderr);
        assert_eq!(scene.answered().unwrap().0["generation"], 1);
    }
    wait_taken(&scene, 500).unwrap();
    agent.kill().unwrap();
    failing.repair().unwrap();
    fs::remove_file(&held).unwrap();
    agent = scene.start_ready().unwrap();
    wait_place(&scene, &agent, "primary").unwrap();
    let (written, lost) = (generator.stop().unwrap(), counted_lost(&scene).unwrap());
    assert!(lost > 0, "there was something to lose");
    wait_lines(&[&scene], &mut [&mut agent], written.iter().sum::<u64>() - lost).unwrap();
    agent.stop().unwrap();
    let verdict = judge(&[&scene], &written, |_| true).unwrap();
    assert!(verdict.holds_but_for(lost), "{lost} counted as lost: {verdict}");
}

/// A failover that nobody needs, on a disk that has failed, gets another place: that edit is the mend, so it is not asked of that disk.
/// Back there it is refused.
#[test]
fn a_failover_is_moved_away_from_a_disk_that_has_failed() {
    if !disk::may_mount() {
        eprintln!("not run: a disk that fails has to be mounted, and this is not root");
        return;
    }
    let scene = scene();
    let edit = |dir: &str| write(&scene, &pipeline(&to_dir(&scene, "file", dir)));
    edit("other");
    let _mount = Mount::tmpfs(&journal(&scene), ROOM).unwrap();
    let failing = FailingDisk::new(&scene.root().join("other")).unwrap();
    let mut agent = scene.start_ready().unwrap();
    let generator = writer(&scene, 107).unwrap();
    wait_progress(&[&scene], 500).unwrap();
    failing.fail_under(&agent).unwrap();
    edit("third");
    let answer = reload(&scene, &[]);
    assert!(answer.status.success(), "{}{}\n{}", answer.stdout, answer.stderr, agent.log_tail());
    wait_taken(&scene, 500).unwrap();
    edit("other");
    let answer = reload(&scene, &[]);
    assert_eq!(answer.status.code(), Some(1), "{}{}", answer.stdout, answer.stderr);
    let reason = format!("could not start again: {} takes nothing", failing.dir().join(PIPELINE).display());
    assert!(answer.stderr.contains(&reason), "{}", answer.stderr);
    wait_taken(&scene, 500).unwrap();
    let written = generator.stop().unwrap();
    wait_lines(&[&scene], &mut [&mut agent], written.iter().sum()).unwrap();
    agent.stop().unwrap();
    let verdict = judge(&[&scene], &written, |_| true).unwrap();
    assert!(verdict.holds(), "{verdict}");
}

/// Two pipelines of the same lines, one of which is edited so that it restarts as a whole.
fn two() -> (Stage, Generator, Agent) {
    let stage = Stage::new("watch = false");
    stage.write("web", &flow("web"));
    stage.write("other", &flow("other"));
    let generator = stage.generator(500_000);
    let agent = stage.scene.start_ready().unwrap();
    wait_delivered(&stage, "web");
    (stage, generator, agent)
}

/// Edits what needs the journal of `web` opened anew, and of `other` what does not.
fn edit_both(stage: &Stage) {
    stage.write("web", &format!("{}\n[journal]\nsegment = \"1 MiB\"\n", flow("web")));
    stage.write("other", &format!("{}\n[batch]\nrows = 100\n", flow("other")));
}

/// Its sink goes on.
fn wait_delivered(stage: &Stage, name: &str) {
    let delivered = || {
        let pipeline = stage.pipeline(name).unwrap();
        pipeline["sinks"][0]["metrics"]["events_delivered"].as_u64().unwrap()
    };
    let before = delivered();
    stage.wait("more events", |_| delivered() > before + 500);
}

/// A disk of it takes nothing, so it could not be opened again: nothing is stopped for that, of no pipeline.
#[test]
fn a_pipeline_that_could_not_start_again_is_not_stopped() {
    let (stage, generator, agent) = two();
    let before = (threads(&agent, "source-", 2), threads(&agent, "sink-", 2));
    // A file where the directory was of one of its journals, which goes on in what it has open.
    let [dir, moved] = ["quarantine", "moved"].map(|name| stage.scene.data.join("pipelines/web").join(name));
    fs::rename(&dir, &moved).unwrap();
    fs::write(&dir, "in the way").unwrap();
    edit_both(&stage);
    let answer = stage.ask(&["reload"]);
    assert_eq!(answer.status.code(), Some(1), "{}{}", answer.stdout, answer.stderr);
    let reason = format!("could not start again: {} takes nothing", dir.display());
    assert!(answer.stderr.contains(&reason), "{}", answer.stderr);
    assert!(answer.stderr.contains("mend its disk first"), "{}", answer.stderr);
    let after = (threads(&agent, "source-", 2), threads(&agent, "sink-", 2));
    assert_eq!(after, before, "something was stopped");
    assert_eq!(stage.status()["generation"], 1);
    assert!(stage.pipeline("web").unwrap()["failure"].is_null());
    wait_delivered(&stage, "web");
    fs::remove_file(&dir).unwrap();
    fs::rename(&moved, &dir).unwrap();
    stage.reload();
    assert_eq!(stage.pipeline("web").unwrap()["generation"], 2);
    stage.judge(agent, generator, "web");
}

/// What is in the way is found when it has stopped, and holds its old plan up, too: that starts when it can, and nobody has to ask.
#[test]
fn a_pipeline_that_was_stopped_in_vain_starts_by_itself() {
    let (stage, generator, mut agent) = two();
    // A directory where a file would be.
    let record = stage.scene.data.join("pipelines/web/failover");
    fs::create_dir(&record).unwrap();
    edit_both(&stage);
    let answer = stage.ask(&["reload"]);
    assert_eq!(answer.status.code(), Some(1), "{}{}", answer.stdout, answer.stderr);
    for reason in ["could not be taken back", "does not start again, and is tried every 5 s", "failover"] {
        assert!(answer.stderr.contains(reason), "{}", answer.stderr);
    }
    let failure = stage.pipeline("web").unwrap()["failure"].clone();
    assert!(failure.as_str().unwrap().contains("does not start again"), "{failure}");
    wait_delivered(&stage, "other");
    fs::remove_dir(&record).unwrap();
    agent.wait_log("it was stopped for a reload, and runs again", limits::CONDITION).unwrap();
    let status = stage.status();
    assert_eq!(status["generation"], 1);
    assert_eq!(status["last_reload"]["ok"], false, "nobody has asked again");
    let web = stage.pipeline("web").unwrap();
    assert!(web["failure"].is_null() && web["generation"] == 1, "{web}");
    wait_delivered(&stage, "web");
    stage.judge(agent, generator, "web");
}
