//! The source `kafka` through the real binary and a real broker: each committed record once, in order within its
//! partition, over whatever happens to agent, broker, group and topic.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flumen_tests::agent::Agent;
use flumen_tests::flow::DELIVERED;
use flumen_tests::kafka::client::{self as kafka_client, TxnEnd};
use flumen_tests::kafka::{Broker, BrokerOptions, Client, ConsumeOptions, Message};
use flumen_tests::scene::Scene;
use flumen_tests::{limits, output, poll};
use rustix::process::Signal;
use serde_json::Value;

/// A scene with an agent of that name. The group is named after the agent where none is given, and tests share a broker:
/// agents of two tests would be members of one group.
fn scene_of(agent: &str) -> Scene {
    let mut scene = Scene::new().unwrap();
    scene.agent_name = agent.to_owned();
    scene
}

/// A pipeline from the source to files of its own, one file, as text.
fn pipeline(scene: &Scene, brokers: &str, options: &str) {
    sink(scene, brokers, options, "encoding = \"text\"");
}

fn sink(scene: &Scene, brokers: &str, options: &str, sink: &str) {
    let text = format!(
        "[source]\ntype = \"kafka\"\nbrokers = [\"{brokers}\"]\n{options}\n\n[sink]\ntype = \"file\"\npath = \"{{out}}/all.log\"\n{sink}\nflush_interval = \"20ms\"\n"
    );
    scene.pipeline(&text).unwrap();
}

/// So that the source is in the middle of its input for long.
fn small_batches(scene: &Scene) {
    let path = scene.root().join(format!("{}.toml", flumen_tests::scene::PIPELINE));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{text}\n[batch]\nrows = 4\n")).unwrap();
}

fn message(partition: i32, number: usize) -> Message {
    Message { partition: Some(partition), ..Message::value(text(partition, number)) }
}

fn text(partition: i32, number: usize) -> String {
    format!("p={partition} n={number}")
}

fn messages(partition: i32, numbers: std::ops::Range<usize>) -> Vec<Message> {
    numbers.map(|number| message(partition, number)).collect()
}

fn lines(scene: &Scene) -> Vec<String> {
    let lines = output::lines(&scene.output).unwrap();
    lines.into_iter().map(|line| String::from_utf8(line).unwrap()).collect()
}

fn wait_lines(scene: &Scene, agent: &mut Agent, count: usize) -> Vec<String> {
    let mut counter = output::LineCounter::default();
    let waited = poll::until_counted(&format!("{count} lines"), DELIVERED, count as u64, || {
        agent.expect_running()?;
        counter.count(&scene.output)
    });
    waited.unwrap_or_else(|error| panic!("{error:#}: {} lines\n{}", lines(scene).len(), agent.log_tail()));
    lines(scene)
}

/// Numbers by partition, in the order of the output.
fn by_partition(lines: &[String]) -> BTreeMap<i32, Vec<usize>> {
    let mut all: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    for line in lines {
        let (partition, number) = line.strip_prefix("p=").unwrap().split_once(" n=").unwrap();
        all.entry(partition.parse().unwrap()).or_default().push(number.parse().unwrap());
    }
    all
}

/// Each number of each partition once, in order.
fn assert_each_once(lines: &[String], partitions: i32, count: usize) {
    let found = by_partition(lines);
    for partition in 0..partitions {
        let numbers = found.get(&partition).cloned().unwrap_or_default();
        if numbers != (0..count).collect::<Vec<_>>() {
            let missing: Vec<_> = (0..count).filter(|number| !numbers.contains(number)).take(10).collect();
            let mut sorted = numbers.clone();
            sorted.sort_unstable();
            let doubled: Vec<_> = sorted.windows(2).filter(|w| w[0] == w[1]).map(|w| w[0]).take(10).collect();
            panic!(
                "partition {partition}: {} of {count}; missing {missing:?}, doubled {doubled:?}, sorted {}",
                numbers.len(),
                numbers.is_sorted()
            );
        }
    }
    assert_eq!(lines.len(), partitions as usize * count);
}

fn gauge(scene: &Scene, name: &str) -> u64 {
    scene.answered().unwrap().metric("source", name)
}

fn quarantine(scene: &Scene) -> Vec<Value> {
    scene.quarantine().unwrap()
}

fn client(broker: &Broker, topic: &str, partitions: u32) -> Client {
    let client = broker.client();
    client.create_topic(topic, partitions, &[]).unwrap();
    client
}

#[test]
fn committed_records_arrive_once_with_their_place() {
    let broker = Broker::shared().unwrap();
    let client = client(broker, "plain", 2);
    client.produce("plain", &messages(0, 0..50)).unwrap();
    client.produce_txn("plain", "plain-1", &messages(1, 0..50), TxnEnd::Commit).unwrap();
    client.produce_txn("plain", "plain-1", &messages(1, 900..950), TxnEnd::Abort).unwrap();
    let scene = scene_of("plain");
    // So long that the group is not empty because of its end.
    let options = "topics = [\"plain\"]\nsession_timeout = \"60s\"";
    sink(&scene, &broker.bootstrap(), options, "encoding = \"json\"");
    let mut agent = scene.start_ready().unwrap();
    let all = wait_lines(&scene, &mut agent, 100);
    let first: Value = serde_json::from_str(&all[0]).unwrap();
    let headers = &first["headers"];
    assert_eq!((&headers["topic"], &headers["offset"]), (&Value::from("plain"), &Value::from("0")));
    assert!(headers["partition"].is_string() && headers["timestamp"].is_string(), "{first}");
    client.produce_txn("plain", "plain-1", &messages(1, 50..60), TxnEnd::Commit).unwrap();
    let all = wait_lines(&scene, &mut agent, 110);
    let group = "flumen/plain/main/main";
    poll::until("the group's offsets", limits::CONDITION, || {
        let offsets = client.group_offsets(group)?;
        Ok(offsets.iter().map(|o| o.offset).sum::<i64>() >= 50 + 50 + 1 + 50 + 1 + 10)
    })
    .unwrap();
    poll::until("the lag", limits::CONDITION, || {
        Ok(scene.status()?.is_some_and(|status| status.mentions("\"kafka/plain/1/lag\":0")))
    })
    .unwrap();
    agent.stop().unwrap();
    assert_eq!(all.len(), 110);
    poll::until("the agent to have left its group", limits::CONDITION / 2, || {
        Ok(client.members(group)?.members.is_empty())
    })
    .unwrap();
    // Nothing new: nothing comes again.
    let mut agent = scene.start_ready().unwrap();
    client.produce("plain", &[message(0, 50)]).unwrap();
    assert_eq!(wait_lines(&scene, &mut agent, 111).len(), 111);
    agent.stop().unwrap();
    assert_eq!(lines(&scene).len(), 111);
}

/// The transactional id of [`produce_until`]: tests share a broker.
fn producer_of(topic: &str) -> String {
    format!("producer-{topic}")
}

/// Transactions of 20 records over all partitions, every third aborted, until told to stop.
fn produce_until(client: &Client, topic: &str, partitions: i32, stop: &AtomicBool) {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let end = if number % 3 == 2 { TxnEnd::Abort } else { TxnEnd::Commit };
        let records: Vec<_> = (0..20).map(|n| message(n % partitions, number * 20 + n as usize)).collect();
        // Of a transaction that failed nobody knows whether it counts: the oracle says it in the end.
        if let Err(error) = client.produce_txn(topic, &producer_of(topic), &records, end) {
            eprintln!("producer: {error:#}");
        }
        number += 1;
    }
}

/// Waits until the last transaction of [`produce_until`] is over: a broker answers that it ended one before it has written
/// that to the partitions, and until then readers do not see it. Who takes the id over ends what is open; that an end is in each
/// partition is asked of these.
fn settle(client: &Client, topic: &str) {
    client.produce_txn(topic, &producer_of(topic), &[], TxnEnd::Abort).unwrap();
    client.wait_ended(topic).unwrap();
}

/// Ends the producer also when the test fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a client of other make reads, by partition.
fn oracle(client: &Client, topic: &str) -> BTreeMap<i32, Vec<String>> {
    let mut all: BTreeMap<i32, Vec<String>> = BTreeMap::new();
    for record in kafka_client::consume(&ConsumeOptions::new(client, topic)).unwrap() {
        all.entry(record.partition).or_default().push(record.text());
    }
    all
}

/// As `assert_eq`, with a few words instead of thousands of lines.
fn assert_same(found: &BTreeMap<i32, Vec<String>>, expected: &BTreeMap<i32, Vec<String>>) {
    for (partition, expected) in expected {
        let found = found.get(partition).cloned().unwrap_or_default();
        let first = found.iter().zip(expected).find(|(a, b)| a != b);
        let (count, of) = (found.len(), expected.len());
        assert!(
            first.is_none() && count == of,
            "partition {partition}: {count} of {of}, first unlike: {first:?}"
        );
    }
    assert_eq!(found.len(), expected.len());
}

fn bodies(lines: &[String]) -> BTreeMap<i32, Vec<String>> {
    let mut all: BTreeMap<i32, Vec<String>> = BTreeMap::new();
    for line in lines {
        let partition = line.strip_prefix("p=").unwrap().split_once(' ').unwrap().0.parse().unwrap();
        all.entry(partition).or_default().push(line.clone());
    }
    all
}

#[test]
fn each_record_once_over_kills_of_agent_and_broker() {
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    let client = client(&broker, "kills", 3);
    let mut scene = Scene::new().unwrap();
    // What a stop that waits for the broker would take.
    scene.drain_timeout = "55s".to_owned();
    pipeline(
        &scene,
        &broker.bootstrap(),
        "topics = [\"kills\"]\ninstance = \"a\"\nsession_timeout = \"10s\"",
    );
    // Small batches and a backlog: whatever happens, happens in the middle.
    small_batches(&scene);
    client.produce("kills", &(0..3).flat_map(|p| messages(p, 100_000..104_000)).collect::<Vec<_>>()).unwrap();
    let stop = AtomicBool::new(false);
    let producer = client.clone().within(Duration::from_secs(10));
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        scope.spawn(|| produce_until(&producer, "kills", 3, &stop));
        for round in 0..6 {
            let mut agent = scene.start_ready().unwrap();
            let before = lines(&scene).len();
            wait_lines(&scene, &mut agent, before + 40);
            if round == 3 {
                broker.kill().unwrap();
                broker.restart().unwrap();
                wait_lines(&scene, &mut agent, before + 80);
            }
            agent.kill().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    settle(&client, "kills");
    let expected = oracle(&client, "kills");
    let count: usize = expected.values().map(Vec::len).sum();
    let mut agent = scene.start_ready().unwrap();
    let all = wait_lines(&scene, &mut agent, count);
    assert_same(&bodies(&all), &expected);
    // A stop does not wait for a broker that is away.
    broker.kill().unwrap();
    agent.wait_log("nothing listens there", limits::CONDITION).unwrap();
    let begun = std::time::Instant::now();
    agent.stop().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    assert_eq!(lines(&scene).len(), count);
}

#[test]
fn agents_of_a_group_come_and_go_and_each_record_is_read_once() {
    let broker = Broker::shared().unwrap();
    let client = client(broker, "shared", 4);
    let scenes = [Scene::new().unwrap(), Scene::new().unwrap()];
    for scene in &scenes {
        pipeline(
            scene,
            &broker.bootstrap(),
            // Nobody dies here. Who stands still for a whole session loses partitions, and records may come twice.
            "topics = [\"shared\"]\ngroup = \"sharers\"\nsession_timeout = \"30s\"",
        );
    }
    scenes.iter().for_each(small_batches);
    client
        .produce("shared", &(0..4).flat_map(|p| messages(p, 100_000..105_000)).collect::<Vec<_>>())
        .unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        scope.spawn(|| produce_until(&client, "shared", 4, &stop));
        let mut first = scenes[0].start_ready().unwrap();
        wait_lines(&scenes[0], &mut first, 20);
        for _ in 0..2 {
            let mut second = scenes[1].start_ready().unwrap();
            let before = lines(&scenes[1]).len();
            wait_lines(&scenes[1], &mut second, before + 20);
            second.stop().unwrap();
        }
        // And the other way round.
        let mut second = scenes[1].start_ready().unwrap();
        let before = lines(&scenes[1]).len();
        wait_lines(&scenes[1], &mut second, before + 20);
        first.stop().unwrap();
        let before = lines(&scenes[1]).len();
        wait_lines(&scenes[1], &mut second, before + 40);
        stop.store(true, Ordering::Relaxed);
        second.stop().unwrap();
    });
    settle(&client, "shared");
    let expected = oracle(&client, "shared");
    let count: usize = expected.values().map(Vec::len).sum();
    let mut last = scenes[0].start_ready().unwrap();
    let both = || [lines(&scenes[0]), lines(&scenes[1])].concat();
    let there = lines(&scenes[1]).len();
    wait_lines(&scenes[0], &mut last, count.saturating_sub(there));
    last.stop().unwrap();
    let sorted = |mut all: BTreeMap<i32, Vec<String>>| {
        all.values_mut().for_each(|values| values.sort());
        all
    };
    assert_same(&sorted(bodies(&both())), &sorted(expected.clone()));
    assert!(scenes.iter().all(|scene| lines(scene).len() >= 20));
    // In order within a partition, in each agent's output.
    for scene in &scenes {
        for (partition, found) in bodies(&lines(scene)) {
            let mut order = expected[&partition].iter();
            assert!(found.iter().all(|line| order.any(|other| other == line)), "partition {partition}");
        }
    }
}

#[test]
fn an_agent_that_stood_still_says_what_may_come_twice() {
    let broker = Broker::shared().unwrap();
    let client = client(broker, "still", 2);
    let scenes = [Scene::new().unwrap(), Scene::new().unwrap()];
    for scene in &scenes {
        // Short, as the second waits for its end, and longer than a busy machine lets the second stand still.
        let options = "topics = [\"still\"]\ngroup = \"still\"\nsession_timeout = \"20s\"";
        pipeline(scene, &broker.bootstrap(), options);
    }
    client.produce("still", &[messages(0, 0..50), messages(1, 0..50)].concat()).unwrap();
    let mut first = scenes[0].start_ready().unwrap();
    wait_lines(&scenes[0], &mut first, 100);
    poll::until("the group's offsets", limits::CONDITION, || {
        Ok(client.group_offsets("still")?.iter().map(|offset| offset.offset).sum::<i64>() == 100)
    })
    .unwrap();
    first.signal(Signal::STOP).unwrap();
    let mut second = scenes[1].start_ready().unwrap();
    // Not before: what the first asked the broker for when it was stopped could be answered with these.
    second.wait_log("partitions=2", limits::CONDITION).unwrap();
    client.produce("still", &[messages(0, 50..60), messages(1, 50..60)].concat()).unwrap();
    wait_lines(&scenes[1], &mut second, 20);
    first.signal(Signal::CONT).unwrap();
    first.wait_log("the group gave partitions of this agent to others", limits::CONDITION).unwrap();
    // It joins again, and the partitions are shared.
    first.wait_log("partitions=1", limits::CONDITION).unwrap();
    client.produce("still", &[messages(0, 60..70), messages(1, 60..70)].concat()).unwrap();
    let both = || [lines(&scenes[0]), lines(&scenes[1])].concat();
    let once = || both().into_iter().collect::<BTreeSet<_>>();
    poll::until("all lines", limits::CONDITION, || Ok(once().len() >= 140)).unwrap();
    let twice = gauge(&scenes[0], "records_perhaps_twice");
    first.stop().unwrap();
    second.stop().unwrap();
    let expected = [messages(0, 0..70), messages(1, 0..70)].concat();
    let expected: BTreeSet<_> =
        expected.iter().map(|message| message.value.as_ref().unwrap().text()).collect();
    assert_eq!(once(), expected);
    // All it had read was known to the group. Where the thread that learns of the group's decision was late, it read on
    // for a moment after it woke: then it says so.
    assert_eq!((both().len() - expected.len()) as u64, twice);
}

/// What each loss of partitions counted, from an agent's log.
fn at_most(log: &str) -> Vec<u64> {
    let after = log.split("records_at_most=").skip(1);
    after.map(|text| text.split_ascii_whitespace().next().unwrap().parse().unwrap()).collect()
}

/// Its partition is lost and comes back while what it read is on its way through a slow plugin: the group must not hear of that before it is
/// durable, or a kill loses it.
#[test]
fn what_is_on_its_way_when_a_partition_comes_back_is_not_passed_by_the_group() {
    let broker = Broker::shared().unwrap();
    let client = client(broker, "regained", 1);
    let options = "topics = [\"regained\"]\ngroup = \"regained\"\nsession_timeout = \"3s\"\n";
    let slow =
        "[[interceptor]]\nplugin = \"hostile\"\nconfig = { do = \"slow\" }\nlimits = { time = \"1m\" }\n";
    let scene = scene_of("regained");
    scene.install("hostile", "hostile").unwrap();
    pipeline(&scene, &broker.bootstrap(), &format!("{options}{slow}"));
    small_batches(&scene);
    let mut agent = scene.start_ready().unwrap();
    agent.wait_log("partitions=1", limits::CONDITION).unwrap();
    client.produce("regained", &messages(0, 0..100)).unwrap();
    poll::until("records to be read", limits::CONDITION, || Ok(gauge(&scene, "bytes_read") > 0)).unwrap();
    let changes = |agent: &Agent| agent.log().map(|log| log.matches("partitions being read").count());
    let changed = changes(&agent).unwrap();
    agent.signal(Signal::STOP).unwrap();
    poll::until("nobody in the group", limits::CONDITION, || {
        Ok(client.members("regained")?.members.is_empty())
    })
    .unwrap();
    agent.signal(Signal::CONT).unwrap();
    let comes_back = || Ok(changes(&agent)? >= changed + 2);
    poll::until("the partition to come back", limits::CONDITION, comes_back).unwrap();
    let known = || -> i64 {
        client.group_offsets("regained").unwrap().iter().map(|offset| offset.offset.max(0)).sum()
    };
    let before = known();
    // On a busy machine all the others may have been durable and known by then.
    client.produce("regained", &messages(0, 100..104)).unwrap();
    poll::until("the group to hear of more", limits::CONDITION * 5, || Ok(known() > before)).unwrap();
    agent.kill().unwrap();
    pipeline(&scene, &broker.bootstrap(), options);
    let mut agent = scene.start_ready().unwrap();
    let expected: BTreeSet<String> = (0..104).map(|number| text(0, number)).collect();
    poll::until_counted("all records", limits::CONDITION, 104, || {
        agent.expect_running()?;
        Ok(lines(&scene).into_iter().collect::<BTreeSet<_>>().len() as u64)
    })
    .unwrap();
    agent.stop().unwrap();
    assert_eq!(lines(&scene).into_iter().collect::<BTreeSet<_>>(), expected);
}

/// Two agents with an `instance` each. The second has a full pipeline: it does not hear what the group wants from it, and stands still until
/// the group has expelled it. librdkafka then joins as another member and keeps what the group has given away
/// (`flumen_kafka::member`): the agent has to find out, count what it read meanwhile, and tell the group nothing of it.
#[test]
fn an_agent_that_was_expelled_while_its_group_changed_counts_what_comes_twice() {
    let broker = Broker::shared().unwrap();
    let client = client(broker, "expelled", 4);
    let slow =
        "[[interceptor]]\nplugin = \"hostile\"\nconfig = { do = \"slow\" }\nlimits = { time = \"1m\" }\n";
    let scenes = ["a", "b"].map(scene_of);
    for (scene, interceptor) in scenes.iter().zip(["", slow]) {
        let name = &scene.agent_name;
        let options = format!(
            "topics = [\"expelled\"]\ngroup = \"expelled\"\ninstance = \"{name}\"\nsession_timeout = \"3s\"\n{interceptor}"
        );
        scene.install("hostile", "hostile").unwrap();
        pipeline(scene, &broker.bootstrap(), &options);
    }
    let stable = |what: &str, count: usize, name: &str| {
        poll::until(what, limits::CONDITION, || {
            let group = client.members("expelled")?;
            let is_there = group.members.iter().any(|member| member.client_id.contains(name));
            Ok(group.members.len() == count && is_there && group.state == "STABLE")
        })
        .unwrap();
    };
    let mut agents = scenes.each_ref().map(|scene| scene.start_ready().unwrap());
    let expel = |agent: &Agent, other: &str| {
        agent.signal(Signal::STOP).unwrap();
        stable("the other to be alone in the group", 1, other);
        agent.signal(Signal::CONT).unwrap();
    };
    let stop = AtomicBool::new(false);
    let knows = |agent: &Agent| agent.log().unwrap().contains("joining anew");
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        scope.spawn(|| produce_until(&client, "expelled", 4, &stop));
        let begun = Instant::now();
        for round in 0.. {
            let tail = || agents[1].log_tail();
            let is_late = begun.elapsed() > limits::CONDITION * 10;
            assert!(!is_late, "it never was another member with partitions of the old one:\n{}", tail());
            // Twice at least: it goes on after the first.
            if round >= 2 && knows(&agents[1]) {
                break;
            }
            stable("two members", 2, "/b/");
            expel(&agents[0], "/b/");
            // It joins anew, and the slow one has to give something up for it.
            stable("two members", 2, "/a/");
            let changes = || agents[1].log().unwrap().matches("partitions being read").count();
            let before = changes();
            expel(&agents[1], "/a/");
            // When it is stopped in the end it has to know, or nobody counts what it has on its way.
            poll::until("the slow one to hear of it", limits::CONDITION * 5, || Ok(changes() > before))
                .unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    settle(&client, "expelled");
    let expected: BTreeSet<String> = oracle(&client, "expelled").into_values().flatten().collect();
    let both = || [lines(&scenes[0]), lines(&scenes[1])].concat();
    poll::until_counted("all records", limits::CONDITION, expected.len() as u64, || {
        agents.iter_mut().try_for_each(Agent::expect_running)?;
        Ok(both().into_iter().collect::<BTreeSet<_>>().len() as u64)
    })
    .unwrap();
    let counted: u64 = scenes.iter().map(|scene| gauge(scene, "records_perhaps_twice")).sum();
    agents.into_iter().for_each(|agent| agent.stop().unwrap());
    let both = both();
    let found: BTreeSet<_> = both.iter().cloned().collect();
    assert_eq!(found, expected);
    // With what was counted since.
    let twice: u64 =
        scenes.iter().flat_map(|scene| at_most(&std::fs::read_to_string(scene.log()).unwrap())).sum();
    assert!(counted <= twice, "{counted} were counted, {twice} are in the logs");
    let doubled = both.len() - found.len();
    eprintln!("{} records, {doubled} came twice, {twice} at most", found.len());
    assert!(doubled as u64 <= twice, "{doubled} came twice, {twice} were counted");
}

#[test]
fn two_agents_of_one_instance_do_not_take_the_partitions_from_each_other_for_ever() {
    let broker = Broker::shared().unwrap();
    let client = client(broker, "rivals", 1);
    client.produce("rivals", &messages(0, 0..20)).unwrap();
    let scenes = [Scene::new().unwrap(), Scene::new().unwrap()];
    for scene in &scenes {
        let options =
            "topics = [\"rivals\"]\ngroup = \"rivals\"\ninstance = \"a\"\nsession_timeout = \"30s\"";
        pipeline(scene, &broker.bootstrap(), options);
    }
    let mut first = scenes[0].start_ready().unwrap();
    wait_lines(&scenes[0], &mut first, 20);
    let second = scenes[1].start_ready().unwrap();
    first.wait_log("joining anew", limits::CONDITION).unwrap();
    poll::until("one of them to give in", limits::CONDITION, || {
        Ok([&first, &second]
            .iter()
            .any(|agent| agent.log().unwrap().contains("give each agent its own `instance`")))
    })
    .unwrap();
    client.produce("rivals", &messages(0, 20..40)).unwrap();
    let both = || [lines(&scenes[0]), lines(&scenes[1])].concat();
    // All: what the other read last may come behind the last record.
    poll::until("the records behind", limits::CONDITION, || {
        let both = both();
        Ok((0..40).all(|number| both.contains(&text(0, number))))
    })
    .unwrap();
    first.stop().unwrap();
    second.stop().unwrap();
}

#[test]
fn topics_and_partitions_that_come_later_are_read_from_their_first_record() {
    let broker = Broker::shared().unwrap();
    let client = broker.client();
    let scene = scene_of("later");
    let options = "topics = [\"later\", \"^later[.].*\"]\nstart = \"latest\"\nsession_timeout = \"6s\"";
    pipeline(&scene, &broker.bootstrap(), options);
    let mut agent = scene.start_ready().unwrap();
    agent
        .wait_log(
            "waiting for topics that do not exist, or that this user may not see: later;",
            limits::CONDITION,
        )
        .unwrap();
    client.create_topic("later", 1, &[]).unwrap();
    agent.wait_log("partition=\"later:0\"", limits::CONDITION).unwrap();
    // The line comes before the state that it tells of.
    poll::until("the trouble to be over", limits::CONDITION, || {
        Ok(scene.status()?.is_some_and(|status| !status.mentions("waiting for topics")))
    })
    .unwrap();
    client.produce("later", &messages(0, 0..10)).unwrap();
    wait_lines(&scene, &mut agent, 10);
    client.add_partitions("later", 2).unwrap();
    client.produce("later", &messages(1, 0..10)).unwrap();
    assert_each_once(&wait_lines(&scene, &mut agent, 20), 2, 10);
    client.create_topic("later.pattern", 1, &[]).unwrap();
    agent.wait_log("partition=\"later.pattern:0\"", limits::CONDITION).unwrap();
    client.produce("later.pattern", &[Message::value("p=2 n=0")]).unwrap();
    wait_lines(&scene, &mut agent, 21);
    agent.stop().unwrap();
}

#[test]
fn deleted_records_are_named_and_counted_and_the_policy_decides() {
    let broker = Broker::shared().unwrap();
    let client = client(broker, "overrun", 1);
    client.produce("overrun", &messages(0, 0..10)).unwrap();
    let scene = scene_of("overrun");
    let options = "topics = [\"overrun\"]\nsession_timeout = \"6s\"\non_gap = ";
    pipeline(&scene, &broker.bootstrap(), &format!("{options}\"stop\""));
    let mut agent = scene.start_ready().unwrap();
    wait_lines(&scene, &mut agent, 10);
    agent.stop().unwrap();
    client.produce("overrun", &messages(0, 10..30)).unwrap();
    client.delete_records("overrun", 0, 25).unwrap();
    let mut agent = scene.start_ready().unwrap();
    agent
        .wait_log("overrun:0 before they were read: offsets 10 to 24, at most 15 records", limits::CONDITION)
        .unwrap();
    // The line comes before the state that it tells of.
    poll::until("the reason in status", limits::CONDITION, || {
        Ok(scene.status()?.is_some_and(|status| status.mentions("on_gap is")))
    })
    .unwrap();
    assert_eq!(gauge(&scene, "records_lost"), 0);
    agent.stop().unwrap();
    assert_eq!(lines(&scene).len(), 10);
    pipeline(&scene, &broker.bootstrap(), &format!("{options}\"continue\""));
    let mut agent = scene.start_ready().unwrap();
    let all = wait_lines(&scene, &mut agent, 15);
    assert_eq!(by_partition(&all)[&0], (0..10).chain(25..30).collect::<Vec<_>>());
    assert_eq!(gauge(&scene, "records_lost"), 15);
    // The same while it runs, and a topic that is made anew.
    agent.stop().unwrap();
    client.delete_topic("overrun").unwrap();
    client.create_topic("overrun", 1, &[]).unwrap();
    client.produce("overrun", &messages(0, 100..103)).unwrap();
    let mut agent = scene.start_ready().unwrap();
    let all = wait_lines(&scene, &mut agent, 18);
    assert_eq!(by_partition(&all)[&0][15..], [100, 101, 102]);
    agent.wait_log("the topic was made anew", limits::CONDITION).unwrap();
    client.produce("overrun", &messages(0, 103..105)).unwrap();
    wait_lines(&scene, &mut agent, 20);
    agent.stop().unwrap();
    let mut agent = scene.start_ready().unwrap();
    client.produce("overrun", &messages(0, 105..106)).unwrap();
    assert_eq!(by_partition(&wait_lines(&scene, &mut agent, 21))[&0][15..], [100, 101, 102, 103, 104, 105]);
    agent.stop().unwrap();
}

#[test]
fn start_decides_where_nothing_is_stored() {
    let broker = Broker::shared().unwrap();
    let client = client(broker, "starts", 1);
    let at = |ms: i64, number: usize| Message { timestamp_ms: Some(ms), ..message(0, number) };
    // An hour ago, and minutes behind it: what is older than the topic's retention would be deleted.
    let hour_ago = jiff::Timestamp::now().as_millisecond() - 3_600_000;
    let minute = |n: i64| hour_ago + n * 60_000;
    let between = jiff::Timestamp::from_millisecond(minute(1) - 30_000).unwrap().to_string();
    client.produce("starts", &[at(minute(0), 0), at(minute(1), 1), at(minute(2), 2)]).unwrap();
    let timestamp = |time: &str| format!("start = \"timestamp\"\nstart_time = \"{time}\"");
    let cases = [
        ("start = \"earliest\"".to_string(), vec![0, 1, 2, 3]),
        (String::new(), vec![0, 1, 2, 3]),
        ("start = \"latest\"".to_string(), vec![3]),
        (timestamp(&between), vec![1, 2, 3]),
        (timestamp("2031-01-01T00:00:00Z"), vec![3]),
    ];
    let scenes: Vec<Scene> = cases.iter().map(|_| Scene::new().unwrap()).collect();
    let mut agents = Vec::new();
    for (number, (scene, (options, _))) in scenes.iter().zip(&cases).enumerate() {
        let options = format!(
            "topics = [\"starts\"]\ngroup = \"starts-{number}\"\ninstance = \"a\"\nsession_timeout = \"6s\"\n{options}"
        );
        pipeline(scene, &broker.bootstrap(), &options);
        agents.push(scene.start_ready().unwrap());
    }
    for agent in &mut agents {
        agent.wait_log("reading begins", limits::CONDITION).unwrap();
    }
    // What it meant is in the journal: a crash before the first record does not ask again.
    let latest = &scenes[2];
    for group in ["starts-2", "starts-4"] {
        poll::until("the start in the group", limits::CONDITION, || {
            Ok(client.group_offsets(group)?.first().is_some_and(|offset| offset.offset == 3))
        })
        .unwrap();
    }
    agents.remove(2).kill().unwrap();
    client.produce("starts", &[at(minute(3), 3)]).unwrap();
    agents.insert(2, latest.start_ready().unwrap());
    for ((scene, agent), (_, expected)) in scenes.iter().zip(&mut agents).zip(&cases) {
        let all = wait_lines(scene, agent, expected.len());
        assert_eq!(&by_partition(&all)[&0], expected);
    }
    agents.into_iter().for_each(|agent| agent.stop().unwrap());
}

#[test]
fn values_of_flume_become_events_and_poison_goes_to_quarantine() {
    let broker = Broker::shared().unwrap();
    let client = client(broker, "flume", 1);
    let golden = b"\x02\x08host\x08web1\x00\x0ahello".to_vec();
    let odd = Message { key: Some(vec![0xff].into()), ..Message::value(golden.clone()) };
    let tombstone = Message { key: Some("gone".into()), ..Message::default() };
    let records = [Message::value(golden), Message::value("plain text"), odd, tombstone];
    client.produce("flume", &records).unwrap();
    let scene = scene_of("flume");
    let options = "topics = [\"flume\"]\nvalue = \"flume-avro\"\nheaders = [\"offset\", \"key\"]\nsession_timeout = \"6s\"";
    sink(&scene, &broker.bootstrap(), options, "encoding = \"json\"");
    let mut agent = scene.start_ready().unwrap();
    let all = wait_lines(&scene, &mut agent, 3);
    let expected = [
        serde_json::json!(["hello", {"host": "web1", "offset": "0"}]),
        serde_json::json!(["hello", {"host": "web1", "offset": "2", "key.hex": "ff"}]),
        serde_json::json!(["", {"offset": "3", "key": "gone", "tombstone": "true"}]),
    ];
    for (line, expected) in all.iter().zip(expected) {
        let mut event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::json!([event["body"].take(), event["headers"].take()]), expected);
    }
    poll::until("the poison record in quarantine", limits::CONDITION, || Ok(quarantine(&scene).len() == 1))
        .unwrap();
    let poison = quarantine(&scene)[0].to_string();
    for part in ["plain text", "not in Flume's Avro format", "\"offset\":\"1\""] {
        assert!(poison.contains(part), "{part} in {poison}");
    }
    assert_eq!(gauge(&scene, "records_rejected"), 1);
    agent.stop().unwrap();
}

#[test]
fn fixed_partitions_need_no_group_and_compacted_topics_have_gaps() {
    let broker = Broker::shared().unwrap();
    let client = broker.client();
    let compact = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.001"),
        ("max.compaction.lag.ms", "1000"),
    ];
    client.create_topic("compacted", 3, &compact).unwrap();
    let keyed =
        |number: usize| Message { key: Some(format!("k{}", number % 5).into()), ..message(1, number) };
    for first in [0, 10, 20] {
        client.produce("compacted", &(first..first + 10).map(keyed).collect::<Vec<_>>()).unwrap();
    }
    let elsewhere = Message { partition: Some(0), ..keyed(0) };
    client.produce("compacted", &[elsewhere]).unwrap();
    let scene = Scene::new().unwrap();
    let options = "partitions = [\"compacted:1-2\", \"absent:0\"]";
    pipeline(&scene, &broker.bootstrap(), options);
    let mut agent = scene.start_ready().unwrap();
    agent.wait_log("1 partitions cannot be read yet, absent:0 first", limits::CONDITION).unwrap();
    let last = |lines: &[String]| by_partition(lines).get(&1).and_then(|numbers| numbers.last().copied());
    poll::until("the last record", limits::CONDITION, || Ok(last(&lines(&scene)) == Some(29))).unwrap();
    client.create_topic("absent", 1, &[]).unwrap();
    client.produce("absent", &[Message::value("p=7 n=7")]).unwrap();
    poll::until("the topic that was missing", limits::CONDITION, || {
        agent.expect_running()?;
        Ok(by_partition(&lines(&scene)).contains_key(&7))
    })
    .unwrap();
    agent.kill().unwrap();
    client.produce("compacted", &[keyed(30)]).unwrap();
    let mut agent = scene.start_ready().unwrap();
    poll::until("the record after the kill", limits::CONDITION, || Ok(last(&lines(&scene)) == Some(30)))
        .unwrap();
    let found = by_partition(&lines(&scene));
    assert!(found[&1].is_sorted_by(|a, b| a < b), "{found:?}");
    assert_eq!(found.keys().collect::<Vec<_>>(), [&1, &7], "partition 0 was not asked for");
    assert_eq!(gauge(&scene, "records_lost"), 0);
    assert!(client.group_offsets("flumen/test/main/main").unwrap().iter().all(|o| o.topic != "compacted"));
    agent.expect_running().unwrap();
    agent.stop().unwrap();
}

/// The sink's topic is not there, so nothing is delivered, and the full channel holds the source: nobody takes records, but the client's
/// statistics go on.
#[test]
fn a_source_that_is_held_still_serves_what_its_client_tells() {
    let broker = Broker::shared().unwrap();
    let client = client(broker, "held", 1);
    client.produce("held", &messages(0, 0..2_000)).unwrap();
    let brokers = broker.bootstrap();
    let scene = scene_of("held");
    let text = format!(
        "[source]\ntype = \"kafka\"\nbrokers = [\"{brokers}\"]\ntopics = [\"held\"]\n\n[channel]\ncapacity = {{ events = 100 }}\n\n\
         [sink]\ntype = \"kafka\"\nbrokers = [\"{brokers}\"]\ndelivery = \"at-least-once\"\ntopic = \"held-nowhere\"\n"
    );
    scene.pipeline(&text).unwrap();
    small_batches(&scene);
    let agent = scene.start_ready().unwrap();
    let bytes = format!("kafka/{brokers}/sent_bytes");
    let (mut events, mut reports) = (0, BTreeSet::new());
    poll::until("statistics of a source that takes no records", limits::CONDITION, || {
        let status = scene.answered()?;
        let now = status.metric("source", "events_out");
        if now != events {
            (events, reports) = (now, BTreeSet::new());
        }
        // The member's heartbeats.
        reports.insert(status.metric("source", &bytes));
        Ok(status.mentions("\"state\":\"busy\"") && reports.len() >= 3)
    })
    .unwrap();
    assert!(events < 2_000, "{events} of 2,000 records found room in a channel of 100");
    client.create_topic("held-nowhere", 1, &[]).unwrap();
    poll::until_counted("the records", limits::CONDITION, 2_000, || {
        Ok(kafka_client::consume(&ConsumeOptions::new(&client, "held-nowhere"))?.len() as u64)
    })
    .unwrap();
    agent.stop().unwrap();
}
