//! Channels of kind `kafka`, on a real broker and the real binary: pipelines with one side only, agents that share a
//! channel, kills of everything, Flume's bytes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::os::unix::process::ExitStatusExt;
use std::time::{SystemTime, UNIX_EPOCH};

use flumen_tests::agent::Agent;
use flumen_tests::flow::{DELIVERED, finish, judge, wait_lines, wait_progress, writer};
use flumen_tests::generator::status_of;
use flumen_tests::kafka::{Broker, BrokerOptions, ConsumeOptions, Message, client};
use flumen_tests::scene::Scene;
use flumen_tests::{output, poll};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;

/// An agent around a channel. `{brokers}` in the text stands for the broker.
fn scene(name: &str, broker: &Broker, text: &str) -> Scene {
    let mut scene = Scene::new().unwrap();
    scene.agent_name = name.to_owned();
    scene.pipeline(&text.replace("{brokers}", &broker.bootstrap())).unwrap();
    scene
}

fn channel(more: &str) -> String {
    format!("[channel]\nkind = \"kafka\"\nbrokers = [\"{{brokers}}\"]\nsession_timeout = \"3s\"\n{more}\n")
}

fn source_only(more: &str) -> String {
    format!("[source]\ntype = \"tail\"\npaths = [\"{{in}}/web-*.log*\"]\n{}", channel(more))
}

fn sink_only(more: &str) -> String {
    let sink = "[sink]\ntype = \"file\"\npath = \"{out}/all.log\"\nroll_size = \"2 MiB\"\nflush_interval = \"100ms\"\n";
    format!("{}{sink}", channel(more))
}

/// File to channel on agent A with a Wasm interceptor in the way, channel to file on agent B; A, B and the broker killed.
#[test]
fn file_to_channel_to_file_is_exactly_once_through_kills() {
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    let filter = "[[interceptor]]\nplugin = \"filter\"\nconfig = { drop = { contains = '\" 404 ' } }\n";
    let a = scene("a", &broker, &format!("{filter}{}", source_only("topic = \"shared\"")));
    a.install("filter", "filter").unwrap();
    let b = scene("b", &broker, &sink_only("topic = \"shared\""));
    let (mut agent_a, mut agent_b) = (a.start().unwrap(), b.start().unwrap());
    let generator = writer(&a, 1).unwrap();
    for kill in 0..12 {
        wait_progress(&[&b], 1_500).unwrap();
        match kill % 6 {
            0 | 2 => {
                agent_a.kill().unwrap();
                agent_a = a.start().unwrap();
            }
            1 | 3 => {
                agent_b.kill().unwrap();
                agent_b = b.start().unwrap();
            }
            4 => {
                agent_a.kill().unwrap();
                agent_b.kill().unwrap();
                (agent_a, agent_b) = (a.start().unwrap(), b.start().unwrap());
            }
            _ => {
                broker.kill().unwrap();
                broker.restart().unwrap();
            }
        }
    }
    let written = generator.stop().unwrap();
    let is_kept = |seq: u64| status_of(seq) != 404;
    let expected: u64 =
        written.iter().map(|lines| (0..*lines).filter(|seq| is_kept(*seq)).count() as u64).sum();
    wait_lines(&[&b], &mut [&mut agent_a, &mut agent_b], expected).unwrap();
    agent_a.stop().unwrap();
    agent_b.stop().unwrap();
    finish(&[&b], expected).unwrap();
    let verdict = judge(&[&b], &written, is_kept).unwrap();
    eprintln!("{verdict}");
    assert!(verdict.holds() && verdict.events > 20_000, "{verdict}");
}

/// Errors of the disk under the agent's own files (the journal beside the channel, which holds the quarantine and what came while
/// Kafka was away, and the sink's files), with kills of the agent and of the broker between them.
#[test]
fn faults_of_the_disk_lose_and_double_nothing() {
    const LIVES: u32 = 9;
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    let failover = "topic = \"over-faults\"\nfailover = { check_interval = \"300ms\", fail_after = 2, return_after = 2 }\n";
    let text = sink_only(failover)
        .replace("[sink]", "[source]\ntype = \"tail\"\npaths = [\"{in}/web-*.log*\"]\n[sink]");
    let mut a = scene("a", &broker, &text);
    let generator = writer(&a, 3).unwrap();
    let faults_met = |a: &Scene| {
        std::fs::read_to_string(a.log()).map_or(0, |log| log.matches("refused on purpose").count())
    };
    for life in 0..LIVES {
        // The journal has much to write when events go to the file; otherwise the sink alone has.
        let is_away = life % 3 == 2;
        let faults = if is_away {
            "eio=0.1@journal.sync,eio=0.03@journal.write,eio=0.01@journal.name,eio=0.01@read"
        } else {
            "eio=0.03@sync,eio=0.01@write,eio=0.005@name,eio=0.005@read,enospc=0.01,full=1000:200"
        };
        let seed: u32 = random.random();
        a.env = vec![("FLUMEN_FAULTS".to_owned(), format!("seed={seed},{faults}"))];
        let mut agent = a.start().unwrap();
        a.env.clear();
        agent.wait_ready_or_end().unwrap();
        let (met, mut counter) = (faults_met(&a), output::LineCounter::default());
        let before = counter.count(&a.output).unwrap();
        if is_away {
            // What the journal in Kafka has says where sources go on: without that nothing can go to the file.
            poll::until("the journal", DELIVERED, || {
                Ok(agent.log()?.contains("Kafka journal opened") || agent.expect_running().is_err())
            })
            .unwrap();
            broker.kill().unwrap();
        }
        poll::until("a life with faults in it", DELIVERED, || {
            let lived = if is_away {
                // They go there already if a life before was killed while they did.
                let log = agent.log()?;
                log.contains("events go to the file") || log.contains("the file's events are moved to it")
            } else {
                counter.count(&a.output)? > before + 1_000
            };
            Ok((lived && faults_met(&a) > met) || agent.expect_running().is_err())
        })
        .unwrap();
        let (status, log) = agent.end().unwrap();
        let is_killed = status.signal() == Some(Signal::KILL.as_raw());
        assert!(is_killed || (status.code() == Some(1) && !log.contains("panicked")), "{status}\n{log}");
        if is_away {
            broker.restart().unwrap();
        }
    }
    assert!(faults_met(&a) > 0);
    let mut agent = a.start().unwrap();
    let written = generator.stop().unwrap();
    wait_lines(&[&a], &mut [&mut agent], written.iter().sum()).unwrap();
    agent.stop().unwrap();
    finish(&[&a], written.iter().sum()).unwrap();
    let verdict = judge(&[&a], &written, |_| true).unwrap();
    eprintln!("{verdict}; {} steps refused", faults_met(&a));
    assert!(verdict.holds(), "{verdict}");
}

/// Two agents with sinks share a channel; each is killed in turn, and the other takes its share over.
#[test]
fn agents_that_share_a_channel_deliver_each_event_once() {
    let broker = Broker::shared().unwrap();
    let topic = "topic = \"between\"";
    let a = scene("a", broker, &source_only(topic));
    // A group of their own: another test's agents are on the same broker.
    let sinks = sink_only(&format!("{topic}\ngroup = \"between\""));
    let scenes = [scene("b1", broker, &sinks), scene("b2", broker, &sinks)];
    let outputs: Vec<&Scene> = scenes.iter().collect();
    let agent_a = a.start().unwrap();
    let mut agents: Vec<Agent> = scenes.iter().map(|scene| scene.start().unwrap()).collect();
    let generator = writer(&a, 2).unwrap();
    // Both have a share.
    for scene in &scenes {
        wait_progress(&[scene], 500).unwrap();
    }
    for kill in 0..4 {
        let (killed, other) = (kill % 2, (kill + 1) % 2);
        agents.remove(killed).kill().unwrap();
        // Its session ends, and the other gets everything. The group says so: what the other logs may come before anybody looks.
        let name = format!("/{}/", scenes[other].agent_name);
        let is_other = |member: &client::Member| member.client_id.contains(&name);
        poll::until("the other to be alone in the group", DELIVERED, || {
            let group = broker.client().members("between")?;
            let is_alone = group.members.len() == 1 && group.members.iter().all(is_other);
            Ok(is_alone && group.state == "STABLE")
        })
        .unwrap();
        wait_progress(&[&scenes[other]], 2_000).unwrap();
        agents.insert(killed, scenes[killed].start().unwrap());
        wait_progress(&[&scenes[killed]], 500).unwrap();
    }
    let written = generator.stop().unwrap();
    let (first, second) = agents.split_at_mut(1);
    wait_lines(&outputs, &mut [&mut first[0], &mut second[0]], written.iter().sum()).unwrap();
    agent_a.stop().unwrap();
    agents.into_iter().for_each(|agent| agent.stop().unwrap());
    finish(&outputs, written.iter().sum()).unwrap();
    let verdict = judge(&outputs, &written, |_| true).unwrap();
    eprintln!("{verdict}");
    assert!(verdict.holds() && verdict.events > 20_000, "{verdict}");
}

/// The bytes of wire.md, D6: what Flume's channel writes is read, and what we write Flume reads.
#[test]
fn flumes_events_are_read_and_written() {
    let broker = Broker::shared().unwrap();
    let flume = "topic = \"as-flume\"\nparse_as_flume_event = true";
    let header = "type = \"tail\"\nfile_header = true";
    let a = scene("fa", broker, &source_only(flume).replace("type = \"tail\"", header));
    let agent_a = a.start_ready().unwrap();
    std::fs::write(a.input().join("web-0.log"), "hello\n").unwrap();
    let mut first = ConsumeOptions::new(&broker.client(), "as-flume");
    first.count = Some(1);
    let records = poll::until_some("the record", DELIVERED, || {
        let exists = broker.client().offsets("as-flume").is_ok_and(|all| all.iter().any(|one| one.end > 0));
        if exists { Ok(Some(client::consume(&first)?)) } else { Ok(None) }
    });
    let record = &records.unwrap()[0];
    let path = a.input().join("web-0.log").display().to_string();
    assert!(path.len() < 64, "the length is one byte");
    let length = [path.len() as u8 * 2];
    let golden = [b"\x02\x08file", &length[..], path.as_bytes(), b"\x00\x0ahello"].concat();
    assert_eq!(record.value.as_ref().unwrap().0, golden);
    agent_a.stop().unwrap();

    // As another producer leaves them: a block with its size, no headers, no Flume event at all.
    let foreign = [&b"\x01\x14\x08host\x08web2\x00\x0athere"[..], b"\x00\x06all", b"plain"];
    let messages: Vec<Message> = foreign.iter().map(|value| Message::value(value.to_vec())).collect();
    broker.client().produce("as-flume", &messages).unwrap();
    let json = "encoding = \"json\"\n";
    let b = scene("fb", broker, &format!("{}{json}", sink_only(flume)));
    let mut agent_b = b.start_ready().unwrap();
    wait_lines(&[&b], &mut [&mut agent_b], 4).unwrap();
    agent_b.stop().unwrap();
    finish(&[&b], 4).unwrap();
    let mut lines: Vec<String> =
        output::lines(&b.output).unwrap().into_iter().map(|line| String::from_utf8(line).unwrap()).collect();
    lines.sort_by_key(|line| line.contains("problem"));
    let has =
        |words: [&str; 2]| lines.iter().filter(|line| words.iter().all(|word| line.contains(word))).count();
    assert_eq!(lines.len(), 4, "{lines:?}");
    for words in [["hello", "web-0.log"], ["there", "web2"], ["all", ""], ["plain", "not a Flume event"]] {
        assert_eq!(has(words), 1, "{words:?} in {lines:?}");
    }
}

/// While the broker is away events go to the file; when it is back they are moved, in order, through kills of the agent in
/// both states. A pipeline with a sink: it reads Kafka, and its acknowledgements wait meanwhile.
#[test]
fn events_go_to_a_file_while_kafka_is_away_and_are_moved_back_in_order() {
    const AWAY: &str = "events go to the file";
    const RETURNS: &str = "the file's events are moved to it";
    const BACK: &str = "events go to Kafka again";
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    let failover = "failover = { check_interval = \"300ms\", fail_after = 2, return_after = 2 }\n";
    let filter = "[[interceptor]]\nplugin = \"filter\"\nconfig = { drop = { contains = '\" 404 ' } }\n";
    let sink = sink_only("").split_once("[sink]").map(|(_, sink)| format!("[sink]{sink}")).unwrap();
    let a = scene("a", &broker, &format!("{filter}{}{sink}", source_only(failover)));
    a.install("filter", "filter").unwrap();
    let mut agent = a.start().unwrap();
    let generator = writer(&a, 3).unwrap();
    let mode = |word: &str| {
        poll::until(word, DELIVERED, || {
            Ok(a.status()?.is_some_and(|status| status.mentions(&format!("\"failover\":\"{word}\""))))
        })
        .unwrap();
    };
    for round in 0..2 {
        wait_progress(&[&a], 1_500).unwrap();
        mode("shared");
        broker.kill().unwrap();
        agent.wait_log(AWAY, DELIVERED).unwrap();
        mode("file");
        // Sources go on, without Kafka, in this life and in the next.
        let before: u64 = generator.written().iter().sum();
        let taken = |agent: &Agent| {
            let _running = agent.id();
            Ok(a.status()?.is_some_and(|status| status.metric("source", "events_out") > 3_000))
        };
        poll::until("events in the file", DELIVERED, || taken(&agent)).unwrap();
        agent.kill().unwrap();
        agent = a.start().unwrap();
        poll::until("events in the file of the next life", DELIVERED, || taken(&agent)).unwrap();
        poll::until("more lines", DELIVERED, || Ok(generator.written().iter().sum::<u64>() > before))
            .unwrap();
        broker.restart().unwrap();
        agent.wait_log(RETURNS, DELIVERED).unwrap();
        if round == 0 {
            // In the middle of the way back.
            agent.kill().unwrap();
            agent = a.start().unwrap();
        }
        // The life that was to be killed in the middle may have come to the end of it, so all lives count.
        let is_back = || Ok(std::fs::read_to_string(a.log())?.matches(BACK).count() > round);
        poll::until(BACK, DELIVERED, is_back)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log_tail()));
        mode("shared");
    }
    let written = generator.stop().unwrap();
    let is_kept = |seq: u64| status_of(seq) != 404;
    let expected: u64 =
        written.iter().map(|lines| (0..*lines).filter(|seq| is_kept(*seq)).count() as u64).sum();
    wait_lines(&[&a], &mut [&mut agent], expected).unwrap();
    agent.stop().unwrap();
    finish(&[&a], expected).unwrap();
    let verdict = judge(&[&a], &written, is_kept).unwrap();
    eprintln!("{verdict}");
    assert!(verdict.holds() && verdict.events > 20_000, "{verdict}");
}

/// The same to memory: the events of meanwhile are on no disk, and come back in order. Memory that is full makes sources wait.
#[test]
fn events_go_to_memory_while_kafka_is_away_and_are_moved_back_in_order() {
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    let failover = "failover = { kind = \"memory\", check_interval = \"300ms\", fail_after = 2, return_after = 2, events = 20_000 }\n";
    let sink = sink_only("").split_once("[sink]").map(|(_, sink)| format!("[sink]{sink}")).unwrap();
    let a = scene("a", &broker, &format!("{}{sink}", source_only(failover)));
    let mut agent = a.start().unwrap();
    let generator = writer(&a, 5).unwrap();
    let wait = |word: &str| {
        poll::until(word, DELIVERED, || Ok(a.status()?.is_some_and(|status| status.mentions(word))))
            .unwrap_or_else(|error| panic!("{error:#}: {:?}", a.status()));
    };
    wait_progress(&[&a], 1_500).unwrap();
    broker.kill().unwrap();
    wait("\"failover\":\"memory\"");
    wait("the memory is full");
    let at_risk = a.answered().unwrap();
    let at_risk =
        at_risk.0.pointer("/pipelines/0/channels/0/events_at_risk").and_then(serde_json::Value::as_u64);
    // What was on its way when the broker died goes there whole, though it be more: a few commits of a source's batches.
    const UNDER_WAY: u64 = 8 * 8_192;
    assert!(at_risk.is_some_and(|events| (10_000..20_000 + UNDER_WAY).contains(&events)), "{at_risk:?}");
    broker.restart().unwrap();
    wait("\"failover\":\"shared\"");
    let written = generator.stop().unwrap();
    wait_lines(&[&a], &mut [&mut agent], written.iter().sum()).unwrap();
    agent.stop().unwrap();
    finish(&[&a], written.iter().sum()).unwrap();
    let verdict = judge(&[&a], &written, |_| true).unwrap();
    assert!(verdict.holds() && verdict.events > 20_000, "{verdict}");
}
