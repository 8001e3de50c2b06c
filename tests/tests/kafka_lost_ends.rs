//! A broker that dies may leave the end of a transaction out of a partition, though its coordinator takes it for done
//! (KAFKA-20734). Here the end is cut out of the broker's files, so that it happens for certain: the agent ends what was lost as it
//! was decided, by itself, and each event is there once.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::time::{Duration, Instant};

use flumen_tests::agent::Agent;
use flumen_tests::flow::{DELIVERED, wait_lines};
use flumen_tests::kafka::client::{self, TxnEnd};
use flumen_tests::kafka::{Broker, BrokerOptions, ConsumeOptions, Message, lost_ends};
use flumen_tests::scene::Scene;
use flumen_tests::{output, poll};

const ENDED: &str = "a broker had lost the end of a transaction";
/// Topics of a channel's transactions.
const CHANNEL: [&str; 4] = ["flumen-positions", "flumen-state", "events", "__consumer_offsets"];
/// A journal that had nothing to do for this long looks whether what it wrote last is to be seen (`IDLE_LOOK`).
const IDLE_LOOK: Duration = Duration::from_secs(5);

struct Flow {
    broker: Broker,
    scene: Scene,
    written: u64,
}

impl Flow {
    fn new(text: impl FnOnce(&str) -> String) -> Flow {
        let broker = Broker::start(&BrokerOptions::default()).unwrap();
        let mut scene = Scene::new().unwrap();
        scene.agent_name = "a".to_owned();
        let source = "[source]\ntype = \"tail\"\npaths = [\"{in}/*.log\"]\n";
        scene.pipeline(&format!("{source}{}", text(&broker.bootstrap()))).unwrap();
        Flow { broker, scene, written: 0 }
    }

    fn with_channel() -> Flow {
        Flow::new(|brokers| {
            format!(
                "[channel]\nkind = \"kafka\"\nbrokers = [\"{brokers}\"]\ntopic = \"events\"\npartitions = 2\nsession_timeout = \"3s\"\n\
                 [sink]\ntype = \"file\"\npath = \"{{out}}/all.log\"\nflush_interval = \"50ms\"\n"
            )
        })
    }

    fn with_sink() -> Flow {
        Flow::new(|brokers| {
            format!(
                "[sink.out]\ntype = \"kafka\"\nbrokers = [\"{brokers}\"]\ntopic = \"events\"\ntransaction_interval = \"100ms\"\n"
            )
        })
    }

    fn write(&mut self, lines: u64) {
        let path = self.scene.input().join("a.log");
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        let text: String = (self.written..self.written + lines).map(|n| format!("n={n}\n")).collect();
        file.write_all(text.as_bytes()).unwrap();
        self.written += lines;
    }

    /// Waits until the ends are in the files that are to be cut out of them: an agent is told of an end before it is there.
    fn wait_ended(&self, topics: &[&str]) {
        let client = self.broker.client();
        topics.iter().for_each(|topic| client.wait_ended(topic).unwrap());
    }

    /// Kills the broker, cuts ends out of its files, and starts it again: how many commits and aborts.
    fn lose(&mut self, topics: &[&str]) -> (usize, usize) {
        self.broker.kill().unwrap();
        let lost = lost_ends::cut_all(self.broker.dir(), topics).unwrap();
        self.broker.restart().unwrap();
        lost
    }

    /// Each line once in the sink's file, whatever there is beside.
    fn expect_in_file(&self, agent: &mut Agent) {
        wait_lines(&[&self.scene], &mut [agent], self.written).unwrap();
        let lines = output::lines(&self.scene.output).unwrap();
        self.expect(lines.into_iter().map(|line| String::from_utf8(line).unwrap()));
    }

    /// Each line once in the sink's topic.
    fn expect_in_topic(&self) {
        let mut lines = Vec::new();
        poll::until("the lines in the topic", DELIVERED, || {
            let records = client::consume(&ConsumeOptions::new(&self.broker.client(), "events"))?;
            lines = records.iter().map(|record| record.text()).collect();
            Ok(lines.len() as u64 >= self.written)
        })
        .unwrap_or_else(|error| panic!("{error}: {} lines", lines.len()));
        self.expect(lines.into_iter());
    }

    fn expect(&self, lines: impl Iterator<Item = String>) {
        let mut times = BTreeMap::<String, u64>::new();
        lines.for_each(|line| *times.entry(line).or_default() += 1);
        let expected = (0..self.written).map(|n| (format!("n={n}"), 1)).collect();
        assert_eq!(times, expected);
    }

    /// Somebody with the transactional id of the agent, which is not there, writes events and takes them back.
    fn abort(&self, id: &str, topic: &str, partitions: i32) {
        let message = |partition| Message { partition: Some(partition), ..Message::value("taken back") };
        let messages: Vec<Message> = (0..partitions).map(message).collect();
        self.broker.client().produce_txn(topic, id, &messages, TxnEnd::Abort).unwrap();
        self.wait_ended(&[topic]);
    }
}

/// Commits of the journal's last transactions are lost: its own record, events, and what its reader acknowledged.
#[test]
fn a_channel_ends_its_lost_commits() {
    let mut flow = Flow::with_channel();
    let mut agent = flow.scene.start_ready().unwrap();
    for _ in 0..3 {
        flow.write(200);
        flow.expect_in_file(&mut agent);
    }
    // Killed, it could have a transaction under way: its abort would end what is lost before anybody can look.
    agent.stop().unwrap();
    flow.wait_ended(&["flumen-positions", "events", "__consumer_offsets"]);
    let (commits, aborts) = flow.lose(&CHANNEL);
    assert!(commits >= 2 && aborts == 0, "{commits} commits, {aborts} aborts");
    let mut agent = flow.scene.start_ready().unwrap();
    agent.wait_log(ENDED, DELIVERED).unwrap();
    flow.write(200);
    flow.expect_in_file(&mut agent);
    agent.stop().unwrap();
}

/// Events that were taken back, and whose end is lost, are not brought back by the next commit.
#[test]
fn a_channel_ends_its_lost_aborts() {
    let mut flow = Flow::with_channel();
    let mut agent = flow.scene.start_ready().unwrap();
    flow.write(200);
    flow.expect_in_file(&mut agent);
    agent.stop().unwrap();
    flow.abort("flumen/a/main/journal", "events", 2);
    assert_eq!(flow.lose(&["events"]), (0, 2));
    let mut agent = flow.scene.start_ready().unwrap();
    flow.write(400);
    flow.expect_in_file(&mut agent);
    agent.wait_log(ENDED, DELIVERED).unwrap();
    agent.stop().unwrap();
}

/// The agent lives on while the broker loses the end of what it wrote last, and nothing more comes: what is hidden is shown.
#[test]
fn a_channel_that_is_idle_ends_what_was_lost() {
    let mut flow = Flow::with_channel();
    let mut agent = flow.scene.start_ready().unwrap();
    loop {
        let begun = Instant::now();
        flow.write(10);
        flow.expect_in_file(&mut agent);
        // Only the reader stands still: its group has all of this, and the last line is to be hidden before it sees it.
        agent.signal(rustix::process::Signal::STOP).unwrap();
        if begun.elapsed() < IDLE_LOOK {
            break;
        }
        // It may have looked already, which it does once: with more lines it looks again.
        agent.signal(rustix::process::Signal::CONT).unwrap();
    }
    flow.wait_ended(&["events", "flumen-positions"]);
    let (commits, _) = flow.lose(&["events", "flumen-positions"]);
    assert!(commits > 0);
    agent.signal(rustix::process::Signal::CONT).unwrap();
    agent.wait_log(ENDED, DELIVERED).unwrap();
    flow.write(10);
    flow.expect_in_file(&mut agent);
    agent.stop().unwrap();
}

/// The sink's progress is hidden with the events that it tells of: both are shown, and nothing comes again.
#[test]
fn a_sink_ends_its_lost_commits() {
    let mut flow = Flow::with_sink();
    flow.broker.client().create_topic("events", 1, &[]).unwrap();
    let agent = flow.scene.start_ready().unwrap();
    flow.write(200);
    flow.expect_in_topic();
    agent.kill().unwrap();
    flow.wait_ended(&["flumen-progress", "events"]);
    assert_eq!(flow.lose(&["flumen-progress", "events"]), (2, 0));
    let mut agent = flow.scene.start_ready().unwrap();
    agent.wait_log(ENDED, DELIVERED).unwrap();
    agent.wait_log("the next event there shows it", DELIVERED).unwrap();
    flow.write(200);
    flow.expect_in_topic();
    agent.stop().unwrap();
}

/// Events of a sink that were taken back stay so.
#[test]
fn a_sink_ends_its_lost_aborts() {
    let mut flow = Flow::with_sink();
    flow.broker.client().create_topic("events", 1, &[]).unwrap();
    let agent = flow.scene.start_ready().unwrap();
    flow.write(200);
    flow.expect_in_topic();
    agent.stop().unwrap();
    flow.abort("flumen/a/main/out/0", "events", 1);
    assert_eq!(flow.lose(&["events"]), (0, 1));
    let mut agent = flow.scene.start_ready().unwrap();
    flow.write(200);
    flow.expect_in_topic();
    agent.wait_log(ENDED, DELIVERED).unwrap();
    agent.stop().unwrap();
}
