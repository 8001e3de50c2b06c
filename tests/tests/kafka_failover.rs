//! A channel on this machine that fails over to a topic of a real broker: over full disks and kills each line comes once, a broker that is not
//! there at the start is waited for, and a failover in use is not left.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;

use flumen_tests::agent::Agent;
use flumen_tests::disk::{self, Mount};
use flumen_tests::failover::{
    DRAIN_S, ROOM, fill_until, full_again_and_again, journal, make_room, pipeline, to_kafka, wait_place,
    wait_taken,
};
use flumen_tests::flow::{DELIVERED, judge, load, wait_lines, writer};
use flumen_tests::generator::{self, Load, Rotation};
use flumen_tests::interceptors::Plugin;
use flumen_tests::kafka::{Broker, BrokerOptions, ConsumeOptions, Record, client};
use flumen_tests::scene::Scene;
use flumen_tests::{limits, poll};
use serde_json::Value;

/// An agent of this name, whose channel has that in its table.
fn scene(name: &str, channel: &str, plugins: &str) -> Scene {
    let mut scene = Scene::new().unwrap();
    scene.agent_name = name.to_owned();
    scene.drain_timeout = format!("{DRAIN_S}s");
    scene.pipeline(&format!("{plugins}{}", pipeline(channel))).unwrap();
    scene
}

/// The channel's disk is full again and again, and the agent killed, before, meanwhile and on the way back: each line once, and of those that
/// are written twice one.
fn each_line_once_with_a_topic_of(channel: &str, seed: u64) {
    if !disk::may_mount() {
        eprintln!("not run: a disk to be filled has to be mounted, and this is not root");
        return;
    }
    let broker = Broker::shared().unwrap();
    let topic = format!("meanwhile-{channel}");
    let text = format!("kind = \"{channel}\"\n{}", to_kafka(&broker.bootstrap(), &topic));
    let scene = scene(channel, &text, Plugin::Dedup.interceptors());
    Plugin::Dedup.install(&scene).unwrap();
    let verdict = full_again_and_again(&scene, "kafka", seed).unwrap();
    eprintln!("{verdict}");
    assert!(verdict.holds() && verdict.events > 15_000, "{verdict}");
    let there = broker.client().offsets(&topic).unwrap();
    assert!(there.len() == 1 && there[0].end > 0, "the events were in one partition: {there:?}");
}

#[test]
fn a_file_channel_fails_over_to_a_topic() {
    each_line_once_with_a_topic_of("file", 83);
}

#[test]
fn a_source_backed_channel_fails_over_to_a_topic() {
    each_line_once_with_a_topic_of("source-backed", 89);
}

/// What is waited for, as `status` has it.
fn waiting_for(scene: &Scene) -> Option<String> {
    let status = scene.status().unwrap()?;
    status.0.pointer("/pipelines/0/journal/waiting_for").and_then(Value::as_str).map(str::to_owned)
}

/// Writes so many lines of three files at once.
fn write(scene: &Scene, lines: u64, seed: u64) -> Vec<u64> {
    let once = Load { bytes_per_s: 0, rotation: Rotation::None, lines: Some(lines), ..load(scene, seed) };
    generator::write_now(once).unwrap()
}

/// The broker is not there when the agent starts: whether events are in the topic is not known, and so are the positions of the sources.
/// They wait, and `status` says for what. When it is there all goes on; when it goes away again nobody needs it.
#[test]
fn a_start_waits_for_the_broker_and_says_so() {
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    let brokers = broker.bootstrap();
    broker.kill().unwrap();
    let a = scene("waits", &to_kafka(&brokers, "meanwhile"), "");
    let written = write(&a, 3_000, 97);
    let mut agent = a.start().unwrap();
    let unread = "what is in the failover (kafka) is not known yet";
    let says = || {
        let reason = waiting_for(&a).unwrap_or_default();
        Ok(reason.starts_with(unread) && reason.contains(&brokers))
    };
    poll::until("the broker in `waiting_for`", DELIVERED, says)
        .unwrap_or_else(|error| panic!("{error:#}: {:?}\n{}", a.status(), agent.log_tail()));
    let status = a.answered().unwrap();
    assert_eq!(
        (status.metric("source", "events_out"), status.mentions("\"failover\":\"opening\"")),
        (0, true)
    );
    broker.restart().unwrap();
    wait_lines(&[&a], &mut [&mut agent], 3_000).unwrap();
    wait_place(&a, &agent, "primary").unwrap();
    poll::until("nothing to wait for", DELIVERED, || Ok(waiting_for(&a).is_none())).unwrap();

    broker.kill().unwrap();
    fs::write(a.input().join("late.log"), "late 1\nlate 2\n").unwrap();
    wait_lines(&[&a], &mut [&mut agent], 3_002).unwrap();
    agent.stop().unwrap();
    fs::remove_file(a.input().join("late.log")).unwrap();
    let mut verdict = judge(&[&a], &written, |_| true).unwrap();
    // Two lines that are no generator's.
    verdict.foreign -= 2;
    assert!(verdict.holds() && verdict.events == 3_000, "{verdict}");
}

/// Without the failover, or with another topic, a start would leave behind what is in it: refused with brokers and topic, and so is one that
/// cannot ask because the broker is away, without a hang. Nothing of it is lost.
#[test]
fn a_topic_in_use_is_not_left() {
    if !disk::may_mount() {
        eprintln!("not run: a disk to be filled has to be mounted, and this is not root");
        return;
    }
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    let brokers = broker.bootstrap();
    let own = to_kafka(&brokers, "meanwhile");
    let mut a = scene("left", &own, "");
    // Nothing is delivered, so nothing makes room on the disk.
    let held = a.output.join("held");
    fs::write(&held, "in the way").unwrap();
    let edit = |scene: &Scene, channel: &str| {
        scene.pipeline(&pipeline(channel).replace("{out}/", "{out}/held/")).unwrap();
    };
    let config = a.config().display().to_string();
    let asked = |scene: &Scene, words: &[&str]| {
        let answer = scene.flumen(&[words, &[&config]].concat()).unwrap();
        (answer.status.code(), answer.stdout + &answer.stderr)
    };
    edit(&a, &own);
    let mount = Mount::tmpfs(&journal(&a), ROOM).unwrap();
    let mut agent = a.start_ready().unwrap();
    let generator = writer(&a, 101).unwrap();
    wait_taken(&a, 1_000).unwrap();
    fill_until(&a, &agent, &mount, "kafka").unwrap();
    wait_taken(&a, 2_000).unwrap();
    let elsewhere = to_kafka(&brokers, "another");
    for other in ["", &elsewhere] {
        edit(&a, other);
        let (code, text) = asked(&a, &["reload"]);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("the failover of channel main is in use, and holds "), "{text}");
    }
    agent.stop().unwrap();

    let place = format!("of kind `kafka` in the topic meanwhile of {brokers}");
    let refused = |scene: &Scene, reason: &str, fix: &str| {
        let (code, text) = asked(scene, &["check"]);
        assert_eq!(code, Some(78), "{text}");
        let mut start = scene.start().unwrap();
        assert_eq!(start.wait_exit(limits::READY).unwrap().code(), Some(78), "{}", start.log_tail());
        for text in [text, start.log().unwrap()] {
            assert!(text.contains(&place) && text.contains("main.toml"), "{text}");
            assert!(text.contains(reason) && text.contains(fix), "{text}");
        }
    };
    for other in ["", &elsewhere] {
        edit(&a, other);
        let fix = "give the channel that `failover` again";
        refused(&a, "holds events and the positions of the sources", fix);
    }
    broker.kill().unwrap();
    refused(&a, "may hold events, and cannot be looked at", "bring those brokers back");
    broker.restart().unwrap();

    a.drain_timeout = "60s".to_owned();
    edit(&a, &own);
    agent = a.start_ready().unwrap();
    fill_until(&a, &agent, &mount, "kafka").unwrap();
    fs::remove_file(&held).unwrap();
    make_room(&mount).unwrap();
    wait_place(&a, &agent, "primary").unwrap();
    agent.stop().unwrap();
    // Nothing is there any more: the topic says so.
    edit(&a, "");
    agent = a.start_ready().unwrap();
    let record = a.data.join("pipelines/main/failover");
    assert!(!record.exists(), "the record of a failover that is no more");
    finish(&a, &mut agent, generator);
    agent.stop().unwrap();
}

/// Everything is there, once.
fn finish(scene: &Scene, agent: &mut Agent, generator: generator::Generator) {
    let written = generator.stop().unwrap();
    wait_lines(&[scene], &mut [agent], written.iter().sum()).unwrap();
    let verdict = judge(&[scene], &written, |_| true).unwrap();
    assert!(verdict.holds() && verdict.events > 3_000, "{verdict}");
}

/// A topic that is deleted while the agent is down takes with it what was there: that is told, and the first start tells nothing.
#[test]
fn a_topic_that_was_deleted_meanwhile_is_told() {
    let broker = Broker::shared().unwrap();
    let a = scene("deleted", &to_kafka(&broker.bootstrap(), "deleted"), "");
    let told = || {
        let text = fs::read_to_string(a.log()).unwrap();
        text.matches("the topic of the failover is not there, though the pipeline had it before").count()
    };
    for expected in [0, 1] {
        let agent = a.start_ready().unwrap();
        wait_place(&a, &agent, "primary").unwrap();
        agent.stop().unwrap();
        assert_eq!(told(), expected);
        broker.client().delete_topic("deleted").unwrap();
    }
}

/// With keys nothing of an event is in the topic in clear: it is no place that the pipeline's journal keeps to itself.
#[test]
fn what_is_in_the_topic_is_encrypted_with_the_keys_of_the_journal() {
    if !disk::may_mount() {
        eprintln!("not run: a disk to be filled has to be mounted, and this is not root");
        return;
    }
    let broker = Broker::shared().unwrap();
    for is_sealed in [false, true] {
        let topic = format!("sealed-{is_sealed}");
        let a = scene(&topic, "", "");
        let key = a.root().join("journal.key");
        fs::write(&key, "5a".repeat(32)).unwrap();
        let keys = format!("[[journal.key]]\nid = \"a\"\nsecret = \"${{file:{}}}\"\n", key.display());
        let text = pipeline(&to_kafka(&broker.bootstrap(), &topic));
        let keys = if is_sealed { keys } else { String::new() };
        a.pipeline(&format!("{text}{keys}")).unwrap();
        let mount = Mount::tmpfs(&journal(&a), ROOM).unwrap();
        let mut agent = a.start_ready().unwrap();
        // The channel's journal is made when the topic was read.
        wait_place(&a, &agent, "primary").unwrap();
        fill_until(&a, &agent, &mount, "kafka").unwrap();
        let written = write(&a, 600, 103);
        let taken = || Ok(a.status()?.is_some_and(|status| status.metric("source", "events_out") == 600));
        poll::until("the events in the topic", DELIVERED, taken).unwrap();
        // The agent is told of an end before readers are.
        broker.client().wait_ended(&topic).unwrap();
        let records = client::consume(&ConsumeOptions::new(&broker.client(), &topic)).unwrap();
        let shows = |record: &Record| record.text().contains("HTTP/");
        assert_eq!(records.iter().any(shows), !is_sealed, "{} records", records.len());
        make_room(&mount).unwrap();
        wait_lines(&[&a], &mut [&mut agent], 600).unwrap();
        agent.stop().unwrap();
        let verdict = judge(&[&a], &written, |_| true).unwrap();
        assert!(verdict.holds() && verdict.events == 600, "{verdict}");
    }
}
