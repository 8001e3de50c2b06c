//! Kafka sinks on Kafka channels: the channel's acknowledgement is in the sink's transaction, so that it does not matter
//! which agent gets an event after a death.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::path::Path;
use std::time::Instant;

use flumen_tests::agent::Agent;
use flumen_tests::flow::{self, DELIVERED};
use flumen_tests::generator::{Generator, Load, is_malformed};
use flumen_tests::kafka::{Broker, BrokerOptions, Client, client};
use flumen_tests::oracle::Verdict;
use flumen_tests::scene::Scene;
use flumen_tests::{oracle, output, poll};
use rustix::process::Signal;

/// What it says when it finds out that it is not who it was.
const JOINS_ANEW: &str = "while this agent stood still: joining anew";

/// The channel's readers.
const GROUP: &str = "flumen-main-main-main";

/// What a reader says when the group gives it partitions.
const TAKEN_OVER: &str = "partitions of the channel come";

/// An agent whose Kafka sink reads the channel `between` and writes the topic `out`.
fn carrier(name: &str, broker: &Broker, before: &str) -> Scene {
    let mut scene = Scene::new().unwrap();
    scene.agent_name = name.to_owned();
    let brokers = format!("brokers = [\"{}\"]", broker.bootstrap());
    let text = format!(
        "[channel]\nkind = \"kafka\"\n{brokers}\ntopic = \"between\"\nsession_timeout = \"3s\"\n\
         [sink]\ntype = \"kafka\"\n{brokers}\ntopic = \"out\"\ntransaction_interval = \"50ms\"\ntransaction_timeout = \"10s\"\n{before}"
    );
    scene.pipeline(&text).unwrap();
    scene
}

fn feeder(broker: &Broker) -> Scene {
    let mut scene = Scene::new().unwrap();
    scene.agent_name = "feeder".to_owned();
    let text = format!(
        "[source]\ntype = \"tail\"\npaths = [\"{{in}}/web-*.log*\"]\n\
         [channel]\nkind = \"kafka\"\nbrokers = [\"{}\"]\ntopic = \"between\"\n",
        broker.bootstrap()
    );
    scene.pipeline(&text).unwrap();
    scene
}

/// Committed values of the topic, collected into the scene's output directory as the oracle reads it.
fn collect(client: &Client, dir: &Path) -> u64 {
    client::collect(client, &["out".to_owned()], dir).unwrap()
}

fn judge(dir: &Path, written: &[u64], is_kept: impl Fn(u64) -> bool) -> Verdict {
    oracle::judge(&output::sequences(dir).unwrap(), written, is_kept).unwrap()
}

/// Waits until the topic has so many more committed records.
fn wait_more(client: &Client, records: i64) {
    let end = || Ok::<i64, anyhow::Error>(client.offsets("out")?.iter().map(|one| one.end).sum());
    let before = end().unwrap();
    poll::until("progress", DELIVERED, || Ok(end()? >= before + records)).unwrap();
}

/// What both have in quarantine: each line that is no access-log line once.
fn judge_quarantine(scenes: &[Scene], written: &[u64]) -> Verdict {
    let dir = tempfile::tempdir().unwrap();
    for (number, scene) in scenes.iter().enumerate() {
        let lines: String = scene.quarantine().unwrap().iter().map(|entry| format!("{entry}\n")).collect();
        std::fs::write(dir.path().join(format!("q{number}.log")), lines).unwrap();
    }
    judge(dir.path(), written, is_malformed)
}

/// Waits until the group has given everything to this agent. What the agent logs may come before anybody looks: on a busy machine
/// the group may have given the other one up by itself a moment ago.
fn wait_alone(client: &Client, scene: &Scene) {
    let name = format!("/{}/", scene.agent_name);
    let is_it = |member: &client::Member| member.client_id.contains(&name);
    poll::until("an agent to be alone in the group", DELIVERED, || {
        let group = client.members(GROUP)?;
        let is_alone = group.members.len() == 1 && group.members.iter().all(is_it);
        Ok(is_alone && group.state == "STABLE")
    })
    .unwrap();
}

fn carriers(broker: &Broker) -> [Scene; 2] {
    let filter = "[[sink.interceptor]]\nplugin = \"access-log\"\n";
    let scenes = ["b1", "b2"].map(|name| carrier(name, broker, filter));
    scenes.iter().for_each(|scene| scene.install("access-log", "access-log").unwrap());
    scenes
}

/// Both have a share before the first dies.
fn start(scenes: &[Scene]) -> Vec<Agent> {
    let mut agents: Vec<Agent> = scenes.iter().map(|scene| scene.start_ready().unwrap()).collect();
    for agent in &mut agents {
        agent.wait_log(TAKEN_OVER, DELIVERED).unwrap();
    }
    agents
}

/// One of two agents dies, or stands still until the group has given its share away, with transactions under way; the broker
/// dies, too. What each had delivered and what the group has of it is one: nothing is lost, nothing doubled, and what
/// the sink's own interceptor takes out of the flow is in one quarantine.
#[test]
fn a_kafka_sink_on_a_shared_channel_is_exactly_once() {
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    let client = broker.client();
    client.create_topic("out", 1, &[]).unwrap();
    let a = feeder(&broker);
    let agent_a = a.start_ready().unwrap();
    let scenes = carriers(&broker);
    let checked = scenes[0].flumen(&["check", &scenes[0].config().display().to_string()]).unwrap();
    assert!(checked.stdout.contains("exactly-once (kafka)"), "{checked:?}");
    let mut agents = start(&scenes);
    let generator = Generator::start(Load { has_malformed: true, ..flow::load(&a, 21) }).unwrap();
    for round in 0..8 {
        wait_more(&client, 2_000);
        let (victim, other) = (round % 2, (round + 1) % 2);
        match round {
            0..4 => {
                agents.remove(victim).kill().unwrap();
                if round < 2 {
                    // Back at once, it finds its own partitions; later, the other has them.
                    wait_alone(&client, &scenes[other]);
                }
                agents.insert(victim, scenes[victim].start().unwrap());
            }
            4..6 => {
                agents[victim].signal(Signal::STOP).unwrap();
                wait_alone(&client, &scenes[other]);
                wait_more(&client, 1_000);
                agents[victim].signal(Signal::CONT).unwrap();
            }
            6 => {
                broker.kill().unwrap();
                broker.restart().unwrap();
            }
            _ => {
                for (agent, scene) in std::mem::take(&mut agents).into_iter().zip(&scenes) {
                    agent.kill().unwrap();
                    agents.push(scene.start().unwrap());
                }
            }
        }
    }
    // The last lines that are none may be alone behind all that goes to the topic, and nobody reads them once the agents are gone.
    let quarantined = |written: &[u64]| {
        let malformed = |lines: &u64| (0..*lines).filter(|seq| is_malformed(*seq)).count() as u64;
        let expected: u64 = written.iter().map(malformed).sum();
        let all = poll::until_counted("all that is malformed in quarantine", DELIVERED, expected, || {
            let mut there = 0;
            for scene in &scenes {
                there += scene.quarantine()?.len() as u64;
            }
            Ok(there)
        });
        all.unwrap_or_else(|error| eprintln!("{error:#}"));
    };
    let written = finish(&client, agent_a, agents, generator, |seq| !is_malformed(seq), quarantined);
    let verdict = judge_quarantine(&scenes, &written);
    eprintln!("{verdict}");
    assert!(verdict.holds() && verdict.events > 50, "{verdict}");
}

/// Sees to it that everything comes, ends all, and judges. `beside`: waits for what comes elsewhere, and says nothing if it does not: the
/// verdict does.
fn finish(
    client: &Client,
    agent_a: Agent,
    mut agents: Vec<Agent>,
    generator: Generator,
    kept: impl Fn(u64) -> bool,
    beside: impl FnOnce(&[u64]),
) -> Vec<u64> {
    let written = generator.stop().unwrap();
    let expected: u64 = written.iter().map(|lines| (0..*lines).filter(|seq| kept(*seq)).count() as u64).sum();
    let seen = tempfile::tempdir().unwrap();
    let all = poll::until_counted("all events in the topic", DELIVERED, expected, || {
        agents.iter_mut().try_for_each(Agent::expect_running)?;
        Ok(collect(client, seen.path()))
    });
    if let Err(error) = all {
        eprintln!("{error:#}\n{}\n{}", agents[0].log_tail(), agents[1].log_tail());
    }
    beside(&written);
    agent_a.stop().unwrap();
    agents.into_iter().for_each(|agent| agent.stop().unwrap());
    collect(client, seen.path());
    let verdict = judge(seen.path(), &written, kept);
    eprintln!("{verdict}");
    assert!(verdict.holds() && verdict.events > 15_000, "{verdict}");
    written
}

/// A sink that is busy while its group changes does not hear of it; its agent stands still until the group has expelled it. librdkafka
/// joins as another member then and claims what the old one had: nothing of that is acknowledged.
#[test]
fn an_agent_that_was_expelled_while_its_group_changed_delivers_nothing_twice() {
    let broker = Broker::start(&BrokerOptions::default()).unwrap();
    let client = broker.client();
    client.create_topic("out", 1, &[]).unwrap();
    let a = feeder(&broker);
    let agent_a = a.start_ready().unwrap();
    let slow = "[[sink.interceptor]]\nplugin = \"hostile\"\nconfig = { do = \"slow\" }\nlimits = { time = \"1m\" }\n";
    let scenes = [carrier("b1", &broker, ""), carrier("b2", &broker, slow)];
    scenes[1].install("hostile", "hostile").unwrap();
    let agents = start(&scenes);
    let generator = flow::writer(&a, 23).unwrap();
    let expel = |agent: &Agent, other: &Scene| {
        agent.signal(Signal::STOP).unwrap();
        wait_alone(&client, other);
        agent.signal(Signal::CONT).unwrap();
    };
    let knows = || agents[1].log().unwrap().contains(JOINS_ANEW);
    let begun = Instant::now();
    for round in 0.. {
        // Which rounds bite is chance, and nobody knows how often: a number of them that is sure on every machine takes as long as this.
        assert!(
            begun.elapsed() < DELIVERED * 5,
            "it never was another member with partitions of the old one in {round} rounds:\n{}",
            agents[1].log_tail()
        );
        // Twice at least: it goes on after the first.
        if round >= 2 && knows() {
            break;
        }
        wait_more(&client, 1_000);
        expel(&agents[0], &scenes[1]);
        // It joins anew; what the slow one has to give up for it that one hears of when it reads again.
        poll::until("two members", DELIVERED, || {
            let group = client.members(GROUP)?;
            Ok(group.members.len() == 2 && group.state == "STABLE")
        })
        .unwrap();
        expel(&agents[1], &scenes[0]);
    }
    finish(&client, agent_a, agents, generator, |_| true, |_| ());
}
