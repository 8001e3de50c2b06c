//! What plugins remember on channels of kind `kafka`: in the same transaction as their events, so that each of some
//! doubled lines comes out once, whoever is killed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use flumen_tests::flow::{DELIVERED, finish, judge, load, wait_lines, wait_progress};
use flumen_tests::generator::{Generator, Load};
use flumen_tests::interceptors::Plugin;
use flumen_tests::kafka::{Broker, BrokerOptions};
use flumen_tests::scene::Scene;
use flumen_tests::{output, poll};
use rustix::process::Signal;

const LINES: u32 = 20_000;

/// An agent around the channel `shared`.
fn scene(name: &str, broker: &Broker, topic: &str, text: &str, more: &str) -> Scene {
    let mut scene = Scene::new().unwrap();
    scene.agent_name = name.to_owned();
    let brokers = broker.bootstrap();
    let channel = format!(
        "[channel]\nkind = \"kafka\"\nbrokers = [\"{brokers}\"]\ntopic = \"{topic}\"\nsession_timeout = \"3s\"\n{more}"
    );
    scene.pipeline(&format!("{text}{channel}")).unwrap();
    scene
}

/// It tails, and `dedup` lets each line through once. `more`: options of the channel.
fn source(name: &str, broker: &Broker, topic: &str, more: &str) -> Scene {
    let text =
        format!("{}[source]\ntype = \"tail\"\npaths = [\"{{in}}/*.log*\"]\n", Plugin::Dedup.interceptors());
    let scene = scene(name, broker, topic, &text, more);
    Plugin::Dedup.install(&scene).unwrap();
    scene
}

fn sink(name: &str, broker: &Broker, topic: &str) -> Scene {
    let text = "[sink]\ntype = \"file\"\npath = \"{out}/all.log\"\nroll_size = \"2 MiB\"\nflush_interval = \"100ms\"\n";
    scene(name, broker, topic, text, "")
}

/// Some lines are written twice. The agent that remembers is killed in the middle of its transactions, the one that delivers too,
/// and the broker: each line is delivered once.
#[test]
fn doubled_lines_come_out_once_through_kills() {
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    let (a, b) = (source("a", &broker, "once", ""), sink("b", &broker, "once"));
    let (mut agent_a, mut agent_b) = (a.start().unwrap(), b.start().unwrap());
    let generator = Generator::start(Load { has_doubles: true, ..load(&a, 31) }).unwrap();
    for kill in 0..15 {
        wait_progress(&[&b], 1_000).unwrap();
        match kill % 5 {
            3 => {
                agent_a.kill().unwrap();
                agent_b.kill().unwrap();
                (agent_a, agent_b) = (a.start().unwrap(), b.start().unwrap());
            }
            4 => {
                broker.kill().unwrap();
                broker.restart().unwrap();
            }
            _ => {
                agent_a.kill().unwrap();
                agent_a = a.start().unwrap();
            }
        }
    }
    let written = generator.stop().unwrap();
    wait_lines(&[&b], &mut [&mut agent_a, &mut agent_b], written.iter().sum()).unwrap();
    agent_a.stop().unwrap();
    agent_b.stop().unwrap();
    finish(&[&b], written.iter().sum()).unwrap();
    let verdict = judge(&[&b], &written, |_| true).unwrap();
    eprintln!("{verdict}");
    assert!(verdict.holds() && verdict.events > 15_000, "{verdict}");
}

/// Two agents with the same pipeline share the channel; each remembers for itself, through a stop and through a SIGKILL. While
/// Kafka is away at a start, events wait, and the agent answers. With the topic emptied, what was dropped comes again.
#[test]
fn each_agent_remembers_for_itself_and_across_restarts() {
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    let (one, two) = (source("one", &broker, "own", ""), source("two", &broker, "own", ""));
    let out = sink("out", &broker, "own");
    let (mut agent_one, mut agent_two) = (one.start().unwrap(), two.start().unwrap());
    let mut agent_out = out.start().unwrap();
    let lines = |from: u32| (from..from + LINES).map(|line| format!("line {line}\n")).collect::<String>();
    let append =
        |scene: &Scene, name: &str, text: &str| std::fs::write(scene.input().join(name), text).unwrap();
    append(&one, "1.log", &lines(0));
    append(&two, "1.log", &lines(0));
    let count = u64::from(LINES);
    wait_lines(&[&out], &mut [&mut agent_one, &mut agent_two, &mut agent_out], 2 * count).unwrap();

    agent_one.stop().unwrap();
    agent_two.kill().unwrap();
    broker.kill().unwrap();
    (agent_one, agent_two) = (one.start_ready().unwrap(), two.start_ready().unwrap());
    append(&one, "2.log", &lines(0));
    append(&two, "2.log", &lines(0));
    append(&one, "3.log", &lines(LINES));
    one.answered().unwrap();
    broker.restart().unwrap();
    wait_lines(&[&out], &mut [&mut agent_one, &mut agent_two, &mut agent_out], 3 * count).unwrap();
    let read = |scene: &Scene, lines: u64| {
        let all = || Ok(scene.status()?.is_some_and(|status| status.metric("source", "events_out") == lines));
        poll::until("all lines read", DELIVERED, all).unwrap();
    };
    read(&one, 2 * count);
    read(&two, count);
    // With the version that wrote them.
    agent_one.wait_log(&format!("keys={}", LINES + 1), DELIVERED).unwrap();
    let remembered = format!("\"keys\":{}", 2 * LINES);
    poll::until("the keys in status", DELIVERED, || {
        Ok(one.status()?.is_some_and(|s| s.mentions(&remembered)))
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", one.status()));
    agent_one.stop().unwrap();
    agent_two.stop().unwrap();
    let mut seen = output::lines(&out.output).unwrap();
    seen.sort();
    let text = |line: u32| format!("line {line}").into_bytes();
    let mut expected: Vec<Vec<u8>> = (0..LINES).flat_map(|line| [text(line), text(line)]).collect();
    expected.extend((LINES..2 * LINES).map(text));
    expected.sort();
    assert_eq!(seen.len(), expected.len());
    assert_eq!(seen, expected);

    // The control: without what stands in the topic, the same lines come again.
    let client = broker.client();
    client.alter_config("flumen-state", &[("cleanup.policy", "compact,delete")]).unwrap();
    client.wait_ended("flumen-state").unwrap();
    for one in client.offsets("flumen-state").unwrap() {
        // The broker hears of the new policy some moments after the controller, and refuses until then.
        let mut refusal = String::new();
        let deleted = poll::until("the records to be deleted", DELIVERED, || {
            let answer = client.delete_records("flumen-state", one.partition, one.end);
            refusal = answer.as_ref().err().map(ToString::to_string).unwrap_or_default();
            Ok(answer.is_ok())
        });
        deleted.unwrap_or_else(|error| panic!("{error:#}: {refusal}"));
    }
    agent_one = one.start().unwrap();
    append(&one, "4.log", &lines(0));
    wait_lines(&[&out], &mut [&mut agent_one, &mut agent_out], 4 * count).unwrap();
    agent_one.stop().unwrap();
    agent_out.stop().unwrap();
    finish(&[&out], 4 * count).unwrap();
    assert_eq!(output::lines(&out.output).unwrap().len() as u64, 4 * count);
}

/// While the broker is away, lines and what is remembered of them are in a file; a line of before, of meanwhile and of after comes
/// out once, though the agent is killed in each state, and on the way back.
#[test]
fn doubled_lines_come_out_once_through_a_failover() {
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    let failover = "failover = { check_interval = \"300ms\", fail_after = 2, return_after = 2 }\n";
    let a = source("a", &broker, "away", failover);
    let b = sink("b", &broker, "away");
    let (mut agent, mut agent_b) = (a.start().unwrap(), b.start().unwrap());
    let generator =
        Generator::start(Load { has_doubles: true, bytes_per_s: 500_000, ..load(&a, 37) }).unwrap();
    let taken = |events: u64| {
        poll::until("events in the file", DELIVERED, || {
            Ok(a.status()?.is_some_and(|status| status.metric("source", "events_out") > events))
        })
        .unwrap();
    };
    for round in 0..3 {
        // Only a journal that has read its positions can go to the file.
        agent.wait_log("Kafka journal opened", DELIVERED).unwrap();
        wait_progress(&[&b], 1_500).unwrap();
        broker.kill().unwrap();
        agent.wait_log("events go to the file", DELIVERED).unwrap();
        // The log may tell of an earlier time, when the broker stood still for a moment.
        poll::until("the file in status", DELIVERED, || {
            Ok(a.status()?.is_some_and(|status| status.mentions("\"failover\":\"file\"")))
        })
        .unwrap();
        let before = a.answered().unwrap().metric("source", "events_out");
        taken(before + 3_000);
        if round > 0 {
            agent.kill().unwrap();
            agent = a.start_ready().unwrap();
        }
        broker.restart().unwrap();
        agent.wait_log("the file's events are moved to it", DELIVERED).unwrap();
        if round == 2 {
            agent.kill().unwrap();
            agent = a.start().unwrap();
        }
        // The life that was to be killed on the way back may have come to the end of it, so all lives count.
        poll::until("events go to Kafka again", DELIVERED, || {
            Ok(std::fs::read_to_string(a.log())?.matches("events go to Kafka again").count() > round)
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log_tail()));
        // Everything that is remembered is in Kafka now.
        agent.kill().unwrap();
        agent = a.start().unwrap();
    }
    let written = generator.stop().unwrap();
    wait_lines(&[&b], &mut [&mut agent, &mut agent_b], written.iter().sum()).unwrap();
    agent.stop().unwrap();
    agent_b.stop().unwrap();
    finish(&[&b], written.iter().sum()).unwrap();
    let verdict = judge(&[&b], &written, |_| true).unwrap();
    eprintln!("{verdict}");
    assert!(verdict.holds() && verdict.events > 15_000, "{verdict}");
}

/// An agent stands still with transactions under way, and another of its name takes over, with the same lines before it: what
/// the first remembered counts as far as its events do, so that each line is there once. The first is fenced, and its last
/// writes do not count.
#[test]
fn what_a_fenced_agent_remembered_counts_as_far_as_its_events_do() {
    const MANY: u32 = 400_000;
    let broker = Broker::start(&BrokerOptions::default()).unwrap();
    let (first, second) = (source("twin", &broker, "fenced", ""), source("twin", &broker, "fenced", ""));
    let out = sink("out", &broker, "fenced");
    let mut agent_out = out.start_ready().unwrap();
    let mut agent_first = first.start_ready().unwrap();
    agent_first.wait_log("Kafka journal opened", DELIVERED).unwrap();
    let text: String = (0..MANY).map(|line| format!("line {line}\n")).collect();
    for scene in [&first, &second] {
        std::fs::write(scene.input().join("1.log"), &text).unwrap();
    }
    wait_progress(&[&out], 1_000).unwrap();
    agent_first.signal(Signal::STOP).unwrap();
    let before = output::lines(&out.output).unwrap().len();
    assert!(before < MANY as usize, "it was done before it stood still");
    let mut agent_second = second.start().unwrap();
    wait_lines(&[&out], &mut [&mut agent_second, &mut agent_out], u64::from(MANY)).unwrap();
    // It learns that it is fenced when it writes: it may have been through with the others before it stood still.
    std::fs::write(first.input().join("2.log"), "line 0\n").unwrap();
    agent_first.signal(Signal::CONT).unwrap();
    agent_first.wait_log("another agent with the name `twin`", DELIVERED).unwrap();
    agent_second.stop().unwrap();
    agent_out.stop().unwrap();
    finish(&[&out], u64::from(MANY)).unwrap();
    let mut seen = output::lines(&out.output).unwrap();
    seen.sort();
    let mut expected: Vec<Vec<u8>> = text.lines().map(|line| line.as_bytes().to_vec()).collect();
    expected.sort();
    assert_eq!(seen.len(), expected.len());
    assert!(seen == expected);
}
