//! What can go wrong with a channel of kind `kafka`: each is told by its name, and loses nothing that can be kept.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use flumen_tests::agent::Agent;
use flumen_tests::flow::{DELIVERED, finish, judge, load, wait_lines};
use flumen_tests::generator::{self, Load, Rotation};
use flumen_tests::kafka::{
    Broker, BrokerOptions, ConsumeOptions, Listener, Mechanism, Message, Record, client, security,
};
use flumen_tests::scene::Scene;
use flumen_tests::{limits, output, poll};

fn scene(name: &str, text: &str) -> Scene {
    let mut scene = Scene::new().unwrap();
    scene.agent_name = name.to_owned();
    scene.pipeline(text).unwrap();
    scene
}

fn channel(broker: &Broker, topic: &str, more: &str) -> String {
    let brokers = broker.bootstrap();
    format!(
        "[channel]\nkind = \"kafka\"\nbrokers = [\"{brokers}\"]\ntopic = \"{topic}\"\nsession_timeout = \"3s\"\n{more}\n"
    )
}

const SOURCE: &str = "[source]\ntype = \"tail\"\npaths = [\"{in}/*.log*\"]\n";
const SINK: &str = "[sink]\ntype = \"file\"\npath = \"{out}/all.log\"\nflush_interval = \"50ms\"\n";

/// Waits until `status` says it.
fn wait_status(scene: &Scene, words: &str) {
    poll::until(&format!("{words:?} in status"), DELIVERED, || {
        Ok(scene.status()?.is_some_and(|status| status.mentions(words)))
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", scene.status()));
}

fn lines(scene: &Scene) -> Vec<String> {
    let lines = output::lines(&scene.output).unwrap();
    lines.into_iter().map(|line| String::from_utf8(line).unwrap()).collect()
}

/// Writes so many numbered lines of three files at once.
fn write(scene: &Scene, lines: u64, seed: u64) -> Vec<u64> {
    let once = Load { bytes_per_s: 0, rotation: Rotation::None, lines: Some(lines), ..load(scene, seed) };
    generator::write_now(once).unwrap()
}

/// The broker dies when the journal in it is open, and events go to the file.
fn go_away(broker: &mut Broker, agent: &mut Agent, scene: &Scene) {
    agent.wait_log("Kafka journal opened", DELIVERED).unwrap();
    // Until its transaction has ended in the topic, too: a broker that dies in between may never end it (KAFKA-20734).
    let mut opened = ConsumeOptions::new(&broker.client(), "flumen-positions");
    opened.count = Some(1);
    assert!(!client::consume(&opened).unwrap().is_empty());
    broker.kill().unwrap();
    wait_file(agent, scene);
}

/// Waits until events go to the file. The log alone may tell of an earlier time, when the broker stood still for a moment.
fn wait_file(agent: &mut Agent, scene: &Scene) {
    agent.wait_log("events go to the file", DELIVERED).unwrap();
    wait_status(scene, "\"failover\":\"file\"");
}

/// Somebody adds partitions to the topics in which an agent keeps where it is: it is where it was.
#[test]
fn partitions_that_are_added_to_the_registers_make_no_agent_begin_anew() {
    let broker = Broker::start(&BrokerOptions::default()).unwrap();
    let client = broker.client();
    // Of 8 partitions an agent of this name has number 3, of 16 it would have number 11.
    let a = scene("grown", &format!("{SOURCE}{}", channel(&broker, "grown", "")));
    let there = || match client.offsets("grown") {
        Ok(all) if all.iter().any(|one| one.end > 0) => {
            Ok(client::consume(&ConsumeOptions::new(&client, "grown"))?.len() as u64)
        }
        _ => Ok(0),
    };
    let line = |number: u64| format!("line {number}\n");
    let mut written: String = (0..10).map(line).collect();
    fs::write(a.input().join("web-0.log"), &written).unwrap();
    let agent = a.start_ready().unwrap();
    poll::until_counted("the first lines", DELIVERED, 10, there).unwrap();
    agent.stop().unwrap();
    for topic in ["flumen-positions", "flumen-state"] {
        client.add_partitions(topic, 16).unwrap();
    }
    written.extend((10..20).map(line));
    fs::write(a.input().join("web-0.log"), &written).unwrap();
    let agent = a.start_ready().unwrap();
    poll::until_counted("the other lines", DELIVERED, 20, there).unwrap();
    agent.stop().unwrap();
    assert_eq!(there().unwrap(), 20);
}

/// The file that takes events while Kafka is away has an end too: sources wait then, with words, through a SIGKILL;
/// when Kafka is back everything is delivered once.
#[test]
fn a_full_failover_file_makes_sources_wait_and_loses_nothing() {
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    let failover =
        "failover = { check_interval = \"300ms\", fail_after = 2, return_after = 2, events = 2_000 }\n";
    let batch = "[batch]\nrows = 500\n";
    let a = scene("a", &format!("{SOURCE}{}{SINK}{batch}", channel(&broker, "full", failover)));
    let mut agent = a.start_ready().unwrap();
    go_away(&mut broker, &mut agent, &a);
    let written = write(&a, 30_000, 5);
    wait_status(&a, "the file is full");
    agent.kill().unwrap();
    agent = a.start().unwrap();
    wait_status(&a, "the file is full");
    let held = a.answered().unwrap();
    let taken = held.0.pointer("/pipelines/0/channels/0/events").and_then(serde_json::Value::as_u64).unwrap();
    assert!((2_000..4_000).contains(&taken), "{taken} events in the file: {held:?}");
    broker.restart().unwrap();
    wait_lines(&[&a], &mut [&mut agent], 30_000).unwrap();
    wait_status(&a, "\"failover\":\"shared\"");
    wait_status(&a, "\"waiting_for\":null");
    agent.stop().unwrap();
    finish(&[&a], 30_000).unwrap();
    let verdict = judge(&[&a], &written, |_| true).unwrap();
    assert!(verdict.holds() && verdict.events == 30_000, "{verdict}");
}

/// Kafka answers again, and its topic may not be written: the file goes on taking what comes, until it may.
#[test]
fn what_comes_while_kafka_answers_and_takes_nothing_goes_to_the_file() {
    let options = BrokerOptions { has_authorizer: true, ..BrokerOptions::default() };
    let mut broker = Broker::start(&options).unwrap();
    let client = broker.client();
    client.create_topic("barred", 2, &[]).unwrap();
    let more = format!(
        "{}\nfailover = {{ check_interval = \"300ms\", fail_after = 2, return_after = 2 }}\n",
        security::scram_options()
    );
    let channel = channel(&broker, "barred", &more)
        .replace(&broker.bootstrap(), &broker.bootstrap_on(Listener::SaslPlaintext));
    let a = scene("a", &format!("{SOURCE}{channel}{SINK}[batch]\nrows = 500\n"));
    let mut agent = a.start_ready().unwrap();
    agent.wait_log("Kafka journal opened", DELIVERED).unwrap();
    // Who has rules may do what they allow. They count before there is anything to write, and so when the agent returns. Rules count in
    // the order in which they were made, so another topic is asked: what is taken there before they count is no event of the channel.
    client.create_topic("behind", 1, &[]).unwrap();
    for topic in ["barred", "behind"] {
        // Reading first, which may look too: the channel is being read.
        for operation in ["read", "describe"] {
            client.acl(["allow", "alice", operation, "topic", topic]).unwrap();
        }
    }
    let alice = broker.client_sasl(Listener::SaslPlaintext, Mechanism::ScramSha512);
    poll::until("the rules to count", limits::CONDITION, || {
        let refused = alice.produce("behind", &[Message::value("x")]).err();
        Ok(refused.is_some_and(|error| error.to_string().contains("TOPIC_AUTHORIZATION_FAILED")))
    })
    .unwrap();
    go_away(&mut broker, &mut agent, &a);
    write(&a, 1_000, 9);
    wait_status(&a, "\"failover_events\":1000");
    broker.restart().unwrap();
    agent.wait_log("Kafka answers: the file's events are moved to it", DELIVERED).unwrap();
    let more: String = (0..1_000).map(|number| format!("late {number}\n")).collect();
    fs::write(a.input().join("late.log"), more).unwrap();
    wait_status(&a, "\"failover_events\":2000");
    client.acl(["allow", "alice", "write", "topic", "barred"]).unwrap();
    wait_lines(&[&a], &mut [&mut agent], 2_000).unwrap();
    wait_status(&a, "\"failover\":\"shared\"");
    agent.stop().unwrap();
    finish(&[&a], 2_000).unwrap();
    let found = lines(&a);
    let distinct: BTreeSet<&String> = found.iter().collect();
    assert_eq!((found.len(), distinct.len()), (2_000, 2_000));
}

/// Without its failover an agent would leave behind what is in the file: refused, with what to do, by a reload and by a start. And what the
/// file has lost to damage is shown.
#[test]
fn a_failover_file_in_use_is_not_left_and_its_damage_is_shown() {
    const LINES: u64 = 3_001;
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    let failover = "failover = { check_interval = \"300ms\", fail_after = 2, return_after = 2 }\n";
    let text =
        |failover: &str| format!("{SOURCE}{}{SINK}[batch]\nrows = 500\n", channel(&broker, "left", failover));
    let (with, without) = (text(failover), text(""));
    let a = scene("a", &with);
    let config = a.config().display().to_string();
    let mut agent = a.start_ready().unwrap();
    go_away(&mut broker, &mut agent, &a);
    write(&a, LINES - 1, 7);
    wait_status(&a, &format!("\"failover_events\":{}", LINES - 1));
    // A commit behind them: what is damaged was durable then, as anyone can see, and is no write that never ended.
    fs::write(a.input().join("last.log"), "the last\n").unwrap();
    wait_status(&a, &format!("\"failover_events\":{LINES}"));
    a.pipeline(&without).unwrap();
    let answer = a.flumen(&["reload", &config]).unwrap();
    let told = answer.stdout + &answer.stderr;
    assert!(
        told.contains(&format!("the failover of channel main is in use, and holds {LINES} events")),
        "{told}"
    );
    agent.kill().unwrap();
    let mut refused = a.start().unwrap();
    assert_eq!(refused.wait_exit(limits::READY).unwrap().code(), Some(78), "{}", refused.log_tail());
    for words in ["holds events and the positions of the sources", "give the channel that `failover` again"] {
        assert!(refused.log().unwrap().contains(words), "{}", refused.log_tail());
    }

    // One bit of one commit.
    let journal = a.data.join("pipelines/main");
    let trace =
        a.flumen(&["journal", "trace", journal.to_str().unwrap(), "main:600", "--output", "json"]).unwrap();
    let trace: serde_json::Value = serde_json::from_str(&trace.stdout).unwrap();
    let file = journal.join("journal").join(trace["segment"].as_str().unwrap());
    let mut bytes = fs::read(&file).unwrap();
    let at = trace["offset"].as_u64().unwrap() + trace["bytes"].as_u64().unwrap() / 2;
    bytes[usize::try_from(at).unwrap()] ^= 1;
    fs::write(&file, bytes).unwrap();
    a.pipeline(&with).unwrap();
    agent = a.start_ready().unwrap();
    wait_status(&a, "\"damaged_commits\":1");
    broker.restart().unwrap();
    let left = LINES - trace["puts"][0]["events"].as_u64().unwrap();
    wait_lines(&[&a], &mut [&mut agent], left).unwrap();
    wait_status(&a, "\"failover\":\"shared\"");
    a.pipeline(&without).unwrap();
    // If the broker stands still just now, the file is in use once more, and a reload is refused until it is not.
    let mut told = String::new();
    poll::until("the reload", DELIVERED, || {
        let answer = a.flumen(&["reload", &config])?;
        told = answer.stdout + &answer.stderr;
        Ok(answer.status.success())
    })
    .unwrap_or_else(|error| panic!("{error:#}: {told}"));
    agent.stop().unwrap();
    finish(&[&a], left).unwrap();
    // A source whose position was in the damaged commit reads that part again.
    let found = lines(&a);
    let distinct: BTreeSet<&String> = found.iter().collect();
    assert!(
        distinct.len() == found.len() && (left..=LINES).contains(&(found.len() as u64)),
        "{}",
        found.len()
    );
}

/// What the channel's topic does not take leaves the flow for the quarantine, with its size and the limit; around it,
/// everything arrives. So it is, too, when it came while Kafka was away.
#[test]
fn a_record_too_large_for_the_channel_goes_to_quarantine() {
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    broker.client().create_topic("narrow", 2, &[("max.message.bytes", "20000")]).unwrap();
    let failover = "failover = { check_interval = \"300ms\", fail_after = 2, return_after = 2 }\n";
    let a = scene("a", &format!("{SOURCE}{}{SINK}", channel(&broker, "narrow", failover)));
    let mut agent = a.start_ready().unwrap();
    let large = |letter: &str| letter.repeat(50_000);
    fs::write(a.input().join("a.log"), format!("one\n{}\ntwo\n", large("x"))).unwrap();
    poll::until("the lines around", DELIVERED, || Ok(lines(&a) == ["one", "two"])).unwrap();
    broker.kill().unwrap();
    wait_file(&mut agent, &a);
    fs::write(a.input().join("b.log"), format!("three\n{}\nfour\n", large("y"))).unwrap();
    let in_file = || Ok(a.status()?.is_some_and(|status| status.metric("source", "events_out") == 6));
    poll::until("the events in the file", DELIVERED, in_file).unwrap();
    broker.restart().unwrap();
    wait_lines(&[&a], &mut [&mut agent], 4).unwrap();
    // Each file's lines are in one partition, and in order there. Where the broker died before the first were acknowledged they
    // come again with the others.
    let found = lines(&a);
    let place = |line: &str| found.iter().position(|found| found == line).unwrap();
    assert!(place("one") < place("two") && place("three") < place("four"), "{found:?}");
    assert_eq!(found.len(), 4, "{found:?}");
    poll::until("both in quarantine", DELIVERED, || Ok(a.quarantine()?.len() == 2)).unwrap();
    for row in a.quarantine().unwrap() {
        let text = row.to_string();
        let reason = text.replace(&large("x"), "").replace(&large("y"), "");
        assert!(reason.contains("bytes are over the limit of the topic narrow (20000)"), "{reason}");
        assert!(text.contains(&large("x")) || text.contains(&large("y")), "the event itself is kept");
    }
    agent.stop().unwrap();
}

/// Retention takes what no agent had read yet: counted, named with topic, partition and number, and the rest is delivered.
#[test]
fn what_retention_took_is_counted_and_named() {
    let broker = Broker::start(&BrokerOptions::default()).unwrap();
    let one = "partitions = 1";
    let a = scene("a", &format!("{SOURCE}{}", channel(&broker, "kept-short", one)));
    let b = scene("b", &format!("{}{SINK}", channel(&broker, "kept-short", one)));
    let agent_a = a.start_ready().unwrap();
    let mut agent_b = b.start_ready().unwrap();
    let number = |numbers: std::ops::Range<u32>| numbers.map(|n| format!("n={n}\n")).collect::<String>();
    fs::write(a.input().join("a.log"), number(0..10)).unwrap();
    wait_lines(&[&b], &mut [&mut agent_b], 10).unwrap();
    agent_b.stop().unwrap();
    let group = "flumen-main-main-main";
    // The agent's last acknowledgement was answered before it is to be seen.
    broker.client().wait_ended("__consumer_offsets").unwrap();
    let begin = broker.client().group_offsets(group).unwrap()[0].offset;
    fs::write(a.input().join("b.log"), number(10..30)).unwrap();
    let records = poll::until_some("the events in the topic", DELIVERED, || {
        let records = client::consume(&ConsumeOptions::new(&broker.client(), "kept-short"))?;
        Ok((records.len() >= 30).then_some(records))
    })
    .unwrap();
    let is_left = |record: &&Record| record.offset < begin || record.offset >= begin + 5;
    let expected: Vec<String> = records.iter().filter(is_left).map(Record::text).collect();
    broker.client().delete_records("kept-short", 0, begin + 5).unwrap();
    let mut agent_b = b.start_ready().unwrap();
    wait_lines(&[&b], &mut [&mut agent_b], expected.len() as u64).unwrap();
    agent_b.wait_log("retention took what was not read yet", limits::CONDITION).unwrap();
    let counted = || Ok(b.status()?.is_some_and(|s| s.metric("sink", "events_lost_to_damage") == 5));
    poll::until("the count in status", limits::CONDITION, counted).unwrap();
    let log = agent_b.log().unwrap();
    let said = log.lines().find(|line| line.contains("retention took")).unwrap();
    assert!(said.contains("kept-short") && said.contains("events_at_most=5"), "{said}");
    agent_b.stop().unwrap();
    agent_a.stop().unwrap();
    finish(&[&b], expected.len() as u64).unwrap();
    // Of the five offsets one may be the end of a transaction.
    assert!((25..=26).contains(&expected.len()), "{expected:?}");
    assert_eq!(lines(&b), expected);
}

/// A transaction of an agent that died holds the group's offsets, and meanwhile the group changes: nobody knows where to begin,
/// so nobody begins, and nothing comes again. (A run in CI had 14,398 events twice: librdkafka takes "not stable" for
/// "the group has no offset" if its assignment changes while it asks.)
#[test]
fn offsets_that_a_transaction_holds_are_waited_for() {
    const COME: &str = "partitions of the channel come";
    let group = "held";
    let broker = Broker::shared().unwrap();
    let a = scene("a", &format!("{SOURCE}{}", channel(broker, "held", "partitions = 4")));
    let reads = format!("group = \"{group}\"");
    let [first, second] =
        ["b1", "b2"].map(|name| scene(name, &format!("{}{SINK}", channel(broker, "held", &reads))));
    let agent_a = a.start_ready().unwrap();
    let numbers =
        |files: std::ops::Range<u32>| files.flat_map(|file| (0..50).map(move |n| format!("{file}-{n:02}")));
    let write = |files: std::ops::Range<u32>| {
        for file in files {
            let text: String = numbers(file..file + 1).map(|line| line + "\n").collect();
            fs::write(a.input().join(format!("{file}.log")), text).unwrap();
        }
    };
    write(0..16);
    let mut agent = first.start_ready().unwrap();
    wait_lines(&[&first], &mut [&mut agent], 800).unwrap();
    agent.stop().unwrap();
    // A static member's place is kept until its session ends, and what is no member may write for an empty group only.
    poll::until("an empty group", DELIVERED, || Ok(broker.client().members(group)?.members.is_empty()))
        .unwrap();
    let held = broker.client().hold_offsets(group, "of-the-dead", Duration::from_secs(20)).unwrap();
    assert!(held > 1, "the lines are in several partitions");

    let mut agents = [first.start_ready().unwrap(), second.start_ready().unwrap()];
    for agent in &mut agents {
        agent.wait_log(COME, DELIVERED).unwrap();
    }
    write(16..32);
    let [one, two] = &mut agents;
    wait_lines(&[&first, &second], &mut [one, two], 1_600).unwrap();
    agents.into_iter().for_each(|agent| agent.stop().unwrap());
    agent_a.stop().unwrap();
    finish(&[&first, &second], 1_600).unwrap();
    let mut delivered = [lines(&first), lines(&second)].concat();
    delivered.sort();
    let mut expected: Vec<String> = numbers(0..32).collect();
    expected.sort();
    assert_eq!(delivered.len(), expected.len());
    assert_eq!(delivered, expected);
}

/// Two agents of one name on one channel, each with data of its own: the one that came first is fenced, says so, and
/// stops; nothing is doubled.
#[test]
fn the_first_of_two_agents_of_one_name_is_fenced() {
    let broker = Broker::shared().unwrap();
    let text = format!("{SOURCE}{}{SINK}", channel(broker, "twins", "group = \"twins\""));
    let (first, second) = (scene("twin", &text), scene("twin", &text));
    let mut agents: Vec<Agent> = Vec::new();
    agents.push(first.start_ready().unwrap());
    fs::write(first.input().join("a.log"), "one\n").unwrap();
    poll::until("the first line", DELIVERED, || Ok(lines(&first) == ["one"])).unwrap();
    agents.push(second.start_ready().unwrap());
    agents[1].wait_log("Kafka journal opened", DELIVERED).unwrap();
    fs::write(first.input().join("b.log"), "two\n").unwrap();
    fs::write(second.input().join("c.log"), "three\n").unwrap();
    agents[0].wait_log("another agent with the name `twin`", DELIVERED).unwrap();
    wait_status(&first, "another agent with the name `twin`");
    poll::until("the second's line", DELIVERED, || Ok(lines(&second).contains(&"three".to_owned()))).unwrap();
    for (agent, code) in agents.iter_mut().zip([1, 0]) {
        agent.signal(rustix::process::Signal::TERM).unwrap();
        assert_eq!(agent.wait_exit(limits::STOP).unwrap().code(), Some(code));
    }
    // Alone again, it takes back what it had written and could not acknowledge, and goes on: what it could not put is still in its
    // input. If the second was asked to stop while its group settled, it took its line back, and the first has it from the topic.
    let mut agent = first.start_ready().unwrap();
    wait_lines(&[&first, &second], &mut [&mut agent], 3).unwrap();
    poll::until("the line that waited", DELIVERED, || Ok(lines(&first).contains(&"two".to_owned()))).unwrap();
    agent.stop().unwrap();
    let mut all = [lines(&first), lines(&second)].concat();
    all.sort();
    assert_eq!(all, ["one", "three", "two"]);
}
