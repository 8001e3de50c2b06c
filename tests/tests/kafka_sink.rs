//! The sink `kafka` on a real broker, judged by a client of other make that reads what is committed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use flumen_tests::agent::Agent;
use flumen_tests::flow::DELIVERED;
use flumen_tests::kafka::client::{self, TxnEnd};
use flumen_tests::kafka::{
    Broker, BrokerOptions, Client, ConsumeOptions, Listener, Mechanism, Message, Record, process, security,
};
use flumen_tests::scene::{self, Scene};
use flumen_tests::{limits, poll};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// A broker has one proxy.
static PROXY: Mutex<()> = Mutex::new(());

/// One broker for all tests of rules of access; each has topics of its own.
fn with_rules() -> &'static Broker {
    static BROKER: OnceLock<Broker> = OnceLock::new();
    BROKER.get_or_init(|| {
        let options = BrokerOptions { has_authorizer: true, ..BrokerOptions::default() };
        let broker = Broker::start(&options).unwrap();
        process::remove_after_exit(broker.dir()).unwrap();
        broker
    })
}

/// One input, and what came of it.
struct Flow {
    scene: Scene,
    client: Client,
    topic: String,
    written: u64,
    file: File,
}

impl Flow {
    /// `name` is the sink's and the topic's: tests share a broker, and an agent's name.
    fn new(broker: &Broker, name: &str, partitions: u32, options: &str) -> Flow {
        let flow = Flow::without_topic(broker, name, options);
        flow.client.create_topic(name, partitions, &[]).unwrap();
        flow
    }

    fn without_topic(broker: &Broker, name: &str, options: &str) -> Flow {
        Flow::of(broker.client(), &broker.bootstrap(), name, name, options)
    }

    fn of(client: Client, bootstrap: &str, name: &str, topic: &str, options: &str) -> Flow {
        let scene = Scene::new().unwrap();
        let file = OpenOptions::new().create(true).append(true).open(scene.input().join("a.log")).unwrap();
        let flow = Flow { scene, client, topic: name.to_owned(), written: 0, file };
        let topic =
            if options.starts_with("topic =") { String::new() } else { format!("topic = \"{topic}\"") };
        flow.options(bootstrap, name, &format!("{topic}\n{options}"));
        flow
    }

    fn options(&self, bootstrap: &str, name: &str, options: &str) {
        let interval =
            if options.contains("transaction_interval") { "" } else { "transaction_interval = \"100ms\"\n" };
        let progress = match options.contains("progress_topic") || options.contains("delivery") {
            true => String::new(),
            // What other tests leave open in theirs is not this one's.
            false => format!("progress_topic = \"{name}-progress\"\n"),
        };
        let text = format!(
            "[source.in]\ntype = \"tail\"\npaths = [\"{{in}}/*.log\"]\n\n[sink.{name}]\ntype = \"kafka\"\n\
             brokers = [\"{bootstrap}\"]\n{interval}{progress}{options}\n"
        );
        self.scene.pipeline(&text).unwrap();
    }

    fn write(&mut self, lines: u64) {
        let mut text = String::new();
        for seq in self.written..self.written + lines {
            text.push_str(&line(seq));
        }
        self.file.write_all(text.as_bytes()).unwrap();
        self.written += lines;
    }

    fn records(&self) -> Vec<Record> {
        client::consume(&ConsumeOptions::new(&self.client, &self.topic)).unwrap()
    }

    fn count(&self) -> u64 {
        let offsets = self.client.offsets(&self.topic).unwrap();
        offsets.iter().map(|partition| (partition.end - partition.begin).unsigned_abs()).sum()
    }

    /// Waits until each line is there, and checks that each is there once; `in_order`: within its partition.
    fn expect_all(&self, in_order: bool) {
        // Offsets count markers of transactions too, so that this is only where the looking begins.
        let (what, written) = (format!("{} lines", self.written), self.written);
        poll::until_counted("the topic to fill", DELIVERED, written, || Ok(self.count())).unwrap();
        let mut records = Vec::new();
        poll::until_counted(&what, DELIVERED, written, || {
            records = self.records();
            Ok(records.len() as u64)
        })
        .unwrap_or_else(|error| panic!("{error}: {}", self.verdict(&records, in_order)));
        assert_eq!(self.verdict(&records, in_order), "");
    }

    /// What is wrong, in words.
    fn verdict(&self, records: &[Record], in_order: bool) -> String {
        let mut seen = BTreeMap::<u64, u32>::new();
        let mut last = BTreeMap::<i32, u64>::new();
        let mut crossed = 0;
        for record in records {
            let seq = seq(record);
            *seen.entry(seq).or_default() += 1;
            let before = last.insert(record.partition, seq);
            crossed += u64::from(before.is_some_and(|before| before >= seq));
        }
        let doubled: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).take(5).collect();
        let lost: Vec<_> = (0..self.written).filter(|seq| !seen.contains_key(seq)).take(5).collect();
        if doubled.is_empty()
            && lost.is_empty()
            && (crossed == 0 || !in_order)
            && seen.len() as u64 == self.written
        {
            return String::new();
        }
        format!(
            "{} of {}: doubled {doubled:?}, lost {lost:?}, out of order {crossed}",
            seen.len(),
            self.written
        )
    }

    fn wait_error(&self, text: &str) {
        // Before some of them the sink waits for 35 s.
        poll::until(&format!("{text:?} in status"), limits::CONDITION * 2, || {
            Ok(self.scene.status()?.is_some_and(|status| status.mentions(text)))
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}", self.scene.status()));
    }
}

fn line(seq: u64) -> String {
    format!("seq={seq} {}\n", "x".repeat(100 + (seq % 50) as usize))
}

fn seq(record: &Record) -> u64 {
    let text = record.text();
    let digits = text.strip_prefix("seq=").and_then(|rest| rest.split(' ').next());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("foreign: {text:?}"))
}

fn dice() -> SmallRng {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64;
    eprintln!("seed {seed}");
    SmallRng::seed_from_u64(seed)
}

/// Lets it deliver for a while, and kills it at a moment that nobody chose.
fn run_and_kill(flow: &mut Flow, dice: &mut SmallRng) {
    let mut agent = flow.scene.start_ready().unwrap();
    let before = flow.count();
    flow.write(3_000);
    poll::until("something new in the topic", limits::CONDITION, || {
        agent.expect_running()?;
        Ok(flow.count() > before)
    })
    .unwrap();
    flow.write(3_000);
    thread::sleep(Duration::from_millis(dice.random_range(0..400)));
    agent.kill().unwrap();
}

#[test]
fn exactly_once_across_kills_of_agent_and_broker() {
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    let mut flow = Flow::new(&broker, "kills", 3, "");
    let mut dice = dice();
    for _ in 0..4 {
        run_and_kill(&mut flow, &mut dice);
    }
    let agent = flow.scene.start_ready().unwrap();
    flow.write(3_000);
    poll::until("something new", limits::CONDITION, || Ok(flow.count() > 0)).unwrap();
    broker.kill().unwrap();
    flow.write(3_000);
    flow.wait_error("127.0.0.1");
    broker.restart().unwrap();
    flow.expect_all(true);
    // Killed together.
    flow.write(3_000);
    broker.kill().unwrap();
    agent.kill().unwrap();
    broker.restart().unwrap();
    let agent = flow.scene.start_ready().unwrap();
    flow.expect_all(true);
    agent.stop().unwrap();
    let agent = flow.scene.start_ready().unwrap();
    flow.write(10);
    flow.expect_all(true);
    agent.stop().unwrap();
}

#[test]
fn lanes_keep_the_promise_across_kills_and_when_their_number_changes() {
    let broker = Broker::shared().unwrap();
    let mut flow = Flow::new(broker, "lanes", 2, "lanes = 3");
    let mut dice = dice();
    // From 1 (nothing is recorded) to 3, then to 2, to 4.
    for lanes in [3, 3, 2, 4, 4] {
        flow.options(&broker.bootstrap(), "lanes", &format!("topic = \"lanes\"\nlanes = {lanes}"));
        run_and_kill(&mut flow, &mut dice);
    }
    let agent = flow.scene.start_ready().unwrap();
    flow.expect_all(false);
    agent.stop().unwrap();
}

#[test]
fn a_second_agent_with_the_same_data_fences_the_first() {
    let broker = Broker::shared().unwrap();
    let mut flow = Flow::new(broker, "zombie", 1, "");
    let agent = flow.scene.start_ready().unwrap();
    flow.write(1_000);
    flow.expect_all(true);
    agent.stop().unwrap();
    let copy = flow.scene.root().join("copy");
    scene::copy_tree(&flow.scene.data, &copy).unwrap();

    let mut first = flow.scene.start_ready().unwrap();
    first.wait_log("takes over", limits::CONDITION).unwrap();
    let config = fs::read_to_string(flow.scene.config()).unwrap();
    let data = flow.scene.data.display().to_string();
    let twin_config = flow.scene.root().join("twin.toml");
    fs::write(&twin_config, config.replace(&data, &copy.display().to_string())).unwrap();
    let mut command = std::process::Command::new(flumen_tests::locate::flumen().unwrap());
    command.arg("run").arg(&twin_config).current_dir(flow.scene.root()).env("NO_COLOR", "1");
    let mut twin = Agent::spawn(command, &flow.scene.root().join("twin.log")).unwrap();
    twin.wait_ready().unwrap();
    twin.wait_log("takes over", limits::CONDITION).unwrap();
    flow.write(1_000);
    first.wait_log("another agent named \"test\" has taken over this sink", limits::CONDITION).unwrap();
    flow.expect_all(true);
    flow.write(1_000);
    flow.expect_all(true);
    // Nothing is left for it to do.
    assert_eq!(first.wait_exit(limits::STOP).unwrap().code(), Some(1));
    twin.stop().unwrap();
}

#[test]
fn what_the_broker_does_not_take_goes_to_quarantine() {
    let broker = Broker::shared().unwrap();
    for (name, compression, delivery) in [
        ("large-plain", "none", "exactly-once"),
        ("large-lz4", "lz4", "exactly-once"),
        ("large-again", "lz4", "at-least-once"),
    ] {
        let options = format!("compression = \"{compression}\"\ndelivery = \"{delivery}\"");
        let mut flow = Flow::without_topic(broker, name, &options);
        flow.client.create_topic(name, 1, &[("max.message.bytes", "20000")]).unwrap();
        let agent = flow.scene.start_ready().unwrap();
        flow.write(500);
        let mut noise = SmallRng::seed_from_u64(7);
        for _ in 0..3 {
            // It cannot be compressed to what the topic takes.
            let large: String = (0..60_000).map(|_| char::from(noise.random_range(b'!'..b'~'))).collect();
            writeln!(flow.file, "large {large}").unwrap();
            flow.write(500);
        }
        flow.expect_all(true);
        poll::until(
            "three rows in quarantine",
            limits::CONDITION,
            || Ok(flow.scene.quarantine()?.len() == 3),
        )
        .unwrap();
        let quarantined = flow.scene.quarantine().unwrap();
        for row in &quarantined {
            let reason = row.to_string();
            assert!(reason.contains("takes 20000 (max.message.bytes)"), "{}", &reason[reason.len() - 300..]);
        }
        flow.write(10);
        flow.expect_all(true);
        agent.stop().unwrap();
    }
}

/// Without transactions nothing of a refused batch comes again by itself: the guilty records alone go to quarantine, and
/// those beside them, and those of other batches under way, arrive.
#[test]
fn at_least_once_keeps_what_stands_beside_a_refused_record() {
    let broker = Broker::shared().unwrap();
    let client = broker.client();
    // The times of the last 50 years, and any to come: lines have fixed times.
    let takes = [
        ("message.timestamp.before.max.ms", "1577880000000"),
        ("message.timestamp.after.max.ms", "9223372036854775807"),
        ("retention.ms", "-1"),
    ];
    let line = |seq: u64, year: u32| {
        format!("10.0.0.1 - - [21/Nov/{year}:00:00:01 +0000] \"GET /{seq} HTTP/1.1\" 200 1 \"-\" \"-\"\n")
    };
    // One in the only batch; several in each of many batches.
    for (topic, batch_bytes, lines, every) in
        [("beside-one", "1 MB", 501, 501), ("beside-many", "8 KiB", 4_000, 37)]
    {
        client.create_topic(topic, 2, &takes).unwrap();
        let scene = Scene::new().unwrap();
        scene.install("access-log", "access-log").unwrap();
        let text = format!(
            "[source.in]\ntype = \"tail\"\npaths = [\"{{in}}/*.log\"]\n\n[[interceptor]]\nplugin = \"access-log\"\n\n\
             [sink.{topic}]\ntype = \"kafka\"\nbrokers = [\"{}\"]\ndelivery = \"at-least-once\"\n\
             topic = \"{topic}\"\nbatch_bytes = \"{batch_bytes}\"\n",
            broker.bootstrap()
        );
        scene.pipeline(&text).unwrap();
        let is_old = |seq: u64| seq % every == every / 2;
        let all: String = (0..lines).map(|seq| line(seq, if is_old(seq) { 1970 } else { 2026 })).collect();
        fs::write(scene.input().join("a.log"), all).unwrap();
        let agent = scene.start_ready().unwrap();
        let old = (0..lines).filter(|seq| is_old(*seq)).count();
        poll::until("the old ones in quarantine", limits::CONDITION, || Ok(scene.quarantine()?.len() >= old))
            .unwrap();
        let others = lines - old as u64;
        let records = || client::consume(&ConsumeOptions::new(&client, topic));
        poll::until_counted("the others in the topic", limits::CONDITION, others, || {
            Ok(records()?.len() as u64)
        })
        .unwrap();
        agent.stop().unwrap();
        let quarantined = scene.quarantine().unwrap();
        assert_eq!(quarantined.len(), old);
        for row in &quarantined {
            let reason = row.to_string();
            assert!(reason.contains("/Nov/1970:"), "{reason}");
            assert!(reason.contains("refuses the"), "{reason}");
        }
        let there: BTreeSet<String> = records().unwrap().iter().map(|record| record.text() + "\n").collect();
        let lost: Vec<u64> =
            (0..lines).filter(|seq| !is_old(*seq) && !there.contains(&line(*seq, 2026))).take(5).collect();
        assert!(lost.is_empty(), "{topic}: lost {lost:?}");
        assert_eq!(there.len() as u64, others);
    }
}

/// Producers are made anew for a record that is larger than any before; what was sent with the old ones is not lost, nor
/// doubled.
#[test]
fn a_record_larger_than_any_before_is_delivered_in_its_place() {
    let broker = Broker::shared().unwrap();
    for (name, delivery, interval) in [
        // The transaction is open when the large one comes.
        ("grows", "exactly-once", "5s"),
        ("grows-lanes", "exactly-once", "100ms"),
        ("grows-again", "at-least-once", "100ms"),
    ] {
        let lanes = if name == "grows-lanes" { 3 } else { 1 };
        let options =
            format!("delivery = \"{delivery}\"\nlanes = {lanes}\ntransaction_interval = \"{interval}\"");
        let mut flow = Flow::without_topic(broker, name, &options);
        let pipeline = flow.scene.root().join("main.toml");
        let text = fs::read_to_string(&pipeline).unwrap();
        fs::write(&pipeline, text.replace("type = \"tail\"", "type = \"tail\"\nmax_line = \"8 MiB\""))
            .unwrap();
        flow.client.create_topic(name, 1, &[("max.message.bytes", "10000000")]).unwrap();
        let agent = flow.scene.start_ready().unwrap();
        flow.write(500);
        for bytes in [1_500_000, 3_000_000, 100] {
            let large = format!("{} {}\n", line(flow.written).trim_end(), "x".repeat(bytes));
            flow.file.write_all(large.as_bytes()).unwrap();
            flow.written += 1;
            flow.write(500);
        }
        flow.expect_all(lanes == 1);
        assert!(flow.scene.quarantine().unwrap().is_empty(), "{name}");
        assert!(!agent.log().unwrap().contains("sink failed"), "{name}: {}", agent.log_tail());
        agent.stop().unwrap();
    }
}

#[test]
fn a_missing_topic_is_waited_for() {
    let broker = Broker::shared().unwrap();
    let mut flow = Flow::without_topic(broker, "late", "");
    let agent = flow.scene.start_ready().unwrap();
    flow.write(100);
    flow.wait_error("topic \\\"late\\\" does not exist");
    flow.client.create_topic("late", 2, &[]).unwrap();
    flow.expect_all(true);
    agent.stop().unwrap();
}

/// Of topics by a header, one that we may not see, or not write, is like one that is not there: the others' events go on.
#[test]
fn a_topic_of_a_header_that_is_closed_to_us_stops_nothing() {
    let broker = with_rules();
    let client = broker.client();
    let alice = broker.client_sasl(Listener::SaslPlaintext, Mechanism::ScramSha256);
    // Who may describe a topic, and is allowed nothing else of it, may not write it.
    for (name, may_describe, delivery, why) in [
        ("seen", "deny", "exactly-once", "not authorised for the topic"),
        ("written", "allow", "exactly-once", "ask for WRITE on it"),
        ("again", "allow", "at-least-once", "ask for WRITE on it"),
    ] {
        let (open, closed) = (format!("{name}-200"), format!("{name}-404"));
        for topic in [&open, &closed] {
            client.create_topic(topic, 1, &[("retention.ms", "-1")]).unwrap();
        }
        client.acl([may_describe, "alice", "describe", "topic", &closed]).unwrap();
        // Any other error than this one says nothing of the rule.
        poll::until("the rule to count", limits::CONDITION, || {
            let refused = match may_describe {
                "allow" => alice.produce(&closed, &[Message::value("before")]).err(),
                _ => alice.offsets(&closed).err(),
            };
            Ok(refused.is_some_and(|error| error.to_string().contains("TOPIC_AUTHORIZATION_FAILED")))
        })
        .unwrap();
        let scene = Scene::new().unwrap();
        scene.install("access-log", "access-log").unwrap();
        let text = format!(
            "[source.in]\ntype = \"tail\"\npaths = [\"{{in}}/*.log\"]\n\n[[interceptor]]\nplugin = \"access-log\"\n\n\
             [sink.{name}]\ntype = \"kafka\"\nbrokers = [\"{}\"]\ntransaction_interval = \"50ms\"\ndelivery = \"{delivery}\"\n\
             topic = \"{name}-{{header.status}}\"\ntopics = [\"{name}-*\"]\n{}\n",
            broker.bootstrap_on(Listener::SaslPlaintext),
            security::scram_options()
        );
        scene.pipeline(&text).unwrap();
        let line = |status: &str| {
            format!("10.0.0.1 - - [21/Nov/2026:00:00:01 +0000] \"GET / HTTP/1.1\" {status} 1 \"-\" \"-\"\n")
        };
        fs::write(scene.input().join("a.log"), ["200", "404", "200"].map(line).concat()).unwrap();
        let agent = scene.start_ready().unwrap();
        let delivered = || Ok(client::consume(&ConsumeOptions::new(&client, &open))?.len() as u64);
        poll::until_counted("two records", limits::CONDITION, 2, delivered).unwrap();
        poll::until("a row in quarantine", limits::CONDITION, || Ok(scene.quarantine()?.len() == 1)).unwrap();
        let reason = scene.quarantine().unwrap()[0].to_string();
        assert!(reason.contains(&closed) && reason.contains(why), "{delivery}: {reason}");
        agent.stop().unwrap();
        assert_eq!((delivered().unwrap(), scene.quarantine().unwrap().len()), (2, 1), "{delivery}");
    }
}

#[test]
fn a_refused_authorisation_is_waited_for() {
    let broker = with_rules();
    let bootstrap = broker.bootstrap_on(Listener::SaslPlaintext);
    let mut flow = Flow::of(broker.client(), &bootstrap, "closed", "closed", &security::scram_options());
    flow.client.create_topic("closed", 1, &[]).unwrap();
    let agent = flow.scene.start_ready().unwrap();
    flow.write(100);
    flow.expect_all(true);
    // In the middle of its work.
    flow.client.acl(["allow", "bob", "write", "topic", "closed"]).unwrap();
    poll::until("the rule to count", limits::CONDITION, || {
        flow.write(1);
        Ok(flow.scene.status()?.is_some_and(|status| status.mentions("not authorised for the topic")))
    })
    .unwrap();
    flow.client.acl(["allow", "alice", "write", "topic", "closed"]).unwrap();
    flow.expect_all(true);
    agent.stop().unwrap();
}

#[test]
fn a_corrupted_progress_record_is_passed_over() {
    let broker = Broker::shared().unwrap();
    let mut flow = Flow::new(broker, "corrupted", 1, "progress_topic = \"corrupted-progress\"");
    let agent = flow.scene.start_ready().unwrap();
    flow.write(1_000);
    flow.expect_all(true);
    agent.stop().unwrap();
    let key = r#"{"agent":"test","pipeline":"main","channel":"main","sink":"corrupted","lane":0}"#;
    let foreign = Message { key: Some(key.into()), partition: Some(0), ..Message::value("not progress") };
    flow.client.produce("corrupted-progress", &[foreign]).unwrap();
    let mut agent = flow.scene.start_ready().unwrap();
    flow.write(1_000);
    flow.expect_all(true);
    agent.wait_log("records of this sink's progress cannot be read", limits::CONDITION).unwrap();
    agent.stop().unwrap();
}

/// The broker aborts a transaction that takes too long and says *fenced*, as of a second agent: there is none, so
/// delivery begins anew.
#[test]
fn a_connection_that_hangs_beyond_the_transaction_is_no_second_agent() {
    let broker = Broker::shared().unwrap();
    let _alone = PROXY.lock().unwrap();
    let proxy = broker.proxy().unwrap();
    // What is sent at the transaction's end, after the half of its time, is given up another 40 s later: a while after the
    // broker, which looks for old transactions every 10 s, has aborted it, so that the connection is back in time.
    let options = "transaction_timeout = \"40s\"\ntransaction_interval = \"20s\"";
    let mut flow = Flow::of(broker.client(), &broker.bootstrap_proxied(), "hangs", "hangs", options);
    flow.client.create_topic("hangs", 1, &[]).unwrap();
    let mut agent = flow.scene.start_ready().unwrap();
    flow.write(1_000);
    flow.expect_all(true);
    let mut uncommitted = ConsumeOptions::new(&flow.client, "hangs");
    uncommitted.is_uncommitted = true;
    // A busy machine may come to the pause behind the transaction's end, or learn of the broker's end so late that the agent has given
    // up by itself, which takes the id over without a word: then there is another one. Each line is there once all the same.
    let end = |flow: &Flow| flow.client.offsets("hangs").unwrap()[0].end;
    poll::until("a pause within a transaction", limits::CONDITION * 6, || {
        let (before, there) = (end(&flow), client::consume(&uncommitted)?.len());
        flow.write(1_000);
        poll::until("all records in the open transaction", limits::CONDITION, || {
            Ok(client::consume(&uncommitted)?.len() >= there + 1_000)
        })?;
        proxy.pause()?;
        // What is aborted hides the end no longer: all records and a marker.
        poll::until("the end of the transaction", limits::CONDITION * 2, || Ok(end(&flow) > before + 1_000))?;
        // At once: the agent is to hear of it before it gives up.
        proxy.resume()?;
        flow.expect_all(true);
        // It says so before it delivers anew.
        Ok(agent.log()?.contains("the broker aborted a transaction of ours"))
    })
    .unwrap();
    flow.write(1_000);
    flow.expect_all(true);
    agent.expect_running().unwrap();
    // The same with all connections cut at once.
    flow.write(10_000);
    proxy.cut().unwrap();
    flow.write(1_000);
    proxy.mend().unwrap();
    flow.expect_all(true);
    agent.stop().unwrap();
}

impl Flow {
    /// Lets the agent take lines into its journal while there is no topic, and copies its data then: a journal that
    /// holds everything and has acknowledged nothing, as after a crash right behind a commit of the broker.
    fn journal_unacknowledged(&mut self, partitions: u32, lines: u64) -> std::path::PathBuf {
        self.write(lines);
        let agent = self.scene.start_ready().unwrap();
        poll::until_counted("the lines in the journal", limits::CONDITION, lines, || {
            Ok(self.scene.status()?.map_or(0, |status| status.metric("source", "events_out")))
        })
        .unwrap();
        agent.kill().unwrap();
        let copy = self.scene.root().join("copy");
        scene::copy_tree(&self.scene.data, &copy).unwrap();
        self.client.create_topic(&self.topic, partitions, &[]).unwrap();
        copy
    }

    fn go_back_to(&self, copy: &std::path::Path) {
        fs::remove_dir_all(&self.scene.data).unwrap();
        scene::copy_tree(copy, &self.scene.data).unwrap();
    }
}

/// A producer whose open transaction is not ended by the broker before the test is done with it.
fn patient(client: &Client) -> Client {
    client.clone().with([("transaction.timeout.ms".to_owned(), "900000".to_owned())])
}

/// Another producer's open transaction stands before our newest progress: it is waited for, not overlooked.
#[test]
fn progress_behind_an_open_transaction_is_not_overlooked() {
    let broker = Broker::shared().unwrap();
    let _alone = PROXY.lock().unwrap();
    let proxy = broker.proxy().unwrap();
    let options = "progress_topic = \"hidden-progress\"\ntransaction_bytes = \"8 KiB\"";
    let mut flow = Flow::of(broker.client(), &broker.bootstrap_proxied(), "hidden", "hidden", options);
    let copy = flow.journal_unacknowledged(1, 400_000);
    // By itself, whatever stands still here meanwhile: some of the lines, which take several MB compressed, are there then.
    proxy.pause_after(1 << 20);
    let agent = flow.scene.start_ready().unwrap();
    poll::until("the pause", limits::CONDITION, || Ok(proxy.is_paused())).unwrap();
    assert!((flow.records().len() as u64) < flow.written, "everything was delivered before the pause");
    let other = [Message { key: Some("k".into()), partition: Some(0), ..Message::value("of another") }];
    patient(&flow.client).produce_txn("hidden-progress", "other", &other, TxnEnd::Open).unwrap();
    proxy.resume().unwrap();
    flow.expect_all(true);
    agent.kill().unwrap();
    flow.go_back_to(&copy);
    let mut agent = flow.scene.start_ready().unwrap();
    agent.wait_log("takes over", limits::CONDITION).unwrap();
    flow.client.produce_txn("hidden-progress", "other", &other, TxnEnd::Commit).unwrap();
    flow.write(100);
    flow.expect_all(true);
    agent.stop().unwrap();
}

/// A transaction on the progress topic that nobody ends: the sink waits, says what it is and how to end it, and goes on when
/// that was done as it said.
#[test]
fn a_hanging_transaction_on_the_progress_topic_is_named_and_can_be_ended() {
    let broker = Broker::shared().unwrap();
    let options = "progress_topic = \"hung-progress\"\ntransaction_timeout = \"5s\"";
    let mut flow = Flow::new(broker, "hung", 1, options);
    let agent = flow.scene.start_ready().unwrap();
    flow.write(100);
    flow.expect_all(true);
    agent.stop().unwrap();
    flow.client.wait_ended("hung-progress").unwrap();
    let from = flow.client.offsets("hung-progress").unwrap()[0].end;
    let other = [Message { key: Some("k".into()), partition: Some(0), ..Message::value("of another") }];
    patient(&flow.client).produce_txn("hung-progress", "hung-other", &other, TxnEnd::Open).unwrap();
    let agent = flow.scene.start_ready().unwrap();
    flow.write(100);
    let abort = format!("abort --topic hung-progress --partition 0 --start-offset {from}");
    flow.wait_error(&abort);
    assert!(flow.records().len() < 200, "delivered without knowing where to go on");
    let words: Vec<&str> = abort.split(' ').collect();
    let ended = broker.tool("org.apache.kafka.tools.TransactionsCommand", &words).unwrap();
    assert!(ended.status.success(), "{ended:?}");
    flow.expect_all(true);
    agent.stop().unwrap();
}

/// One lane is set back to an old progress, as if it alone had not committed: its rows come again, and no others.
#[test]
fn a_lane_that_is_behind_gets_its_own_rows_and_no_others() {
    const LINES: u64 = 80_000;
    let broker = Broker::shared().unwrap();
    let progress = "behind-progress";
    let options = format!("lanes = 4\ntransaction_bytes = \"256 KiB\"\nprogress_topic = \"{progress}\"");
    let mut flow = Flow::without_topic(broker, "behind", &options);
    let copy = flow.journal_unacknowledged(1, LINES);
    let agent = flow.scene.start_ready().unwrap();
    flow.expect_all(false);
    agent.stop().unwrap();
    let mut by_key: BTreeMap<String, Vec<Record>> = BTreeMap::new();
    for record in client::consume(&ConsumeOptions::new(&flow.client, progress)).unwrap() {
        if record.text().contains("\"lanes\":4") {
            by_key.entry(record.key.clone().unwrap().text()).or_default().push(record);
        }
    }
    // The one with the most transactions: on a busy machine the first of another may hold all but the last part of the file.
    let lane = by_key.values().max_by_key(|records| records.len()).expect("lanes");
    let old = Message {
        key: lane[0].key.clone(),
        value: lane[0].value.clone(),
        partition: Some(0),
        ..Message::default()
    };
    flow.client.produce(progress, &[old]).unwrap();
    flow.go_back_to(&copy);
    let agent = flow.scene.start_ready().unwrap();
    flow.write(1);
    poll::until("the last line", limits::CONDITION, || {
        Ok(flow.records().iter().any(|record| seq(record) == LINES))
    })
    .unwrap();
    agent.stop().unwrap();
    // The last line may be there before what another lane has delivered behind it is to be seen.
    flow.client.wait_ended("behind").unwrap();
    let mut times = BTreeMap::<u64, u64>::new();
    flow.records().iter().for_each(|record| *times.entry(seq(record)).or_default() += 1);
    assert_eq!((times.len() as u64, times.values().max()), (LINES + 1, Some(&2)));
    // By MiB of the file, which is what a lane gets as a whole.
    let (mut at, mut parts) = (0, BTreeMap::<u64, u64>::new());
    for seq in 0..LINES {
        *parts.entry(at >> 20).or_default() += times[&seq] - 1;
        at += line(seq).len() as u64;
    }
    let first = parts.iter().find(|(_, doubled)| **doubled > 0).map(|(part, _)| *part);
    let first = first.expect("what the lane lacks comes again");
    assert!(
        parts.iter().any(|(part, doubled)| *part > first && *doubled == 0),
        "rows of other lanes: {parts:?}"
    );
}

#[test]
fn topics_keys_and_headers_follow_the_event() {
    let broker = Broker::shared().unwrap();
    let client = broker.client();
    // Records have the time that their lines say, and a broker deletes what is a week old.
    for topic in ["status-200", "status-rest"] {
        client.create_topic(topic, 3, &[("retention.ms", "-1")]).unwrap();
    }
    let scene = Scene::new().unwrap();
    scene.install("access-log", "access-log").unwrap();
    let pipeline = |default: &str| {
        format!(
            "[source.in]\ntype = \"tail\"\npaths = [\"{{in}}/*.log\"]\n\n[[interceptor]]\nplugin = \"access-log\"\n\n\
             [sink.by-status]\ntype = \"kafka\"\nbrokers = [\"{}\"]\ntransaction_interval = \"50ms\"\n\
             topic = \"status-{{header.status}}\"\ntopics = [\"status-2*\"]\n{default}key = \"header.status\"\n\
             progress_topic = \"by-status-progress\"\nheaders = [\"status\"]\nvalue = \"json\"\n",
            broker.bootstrap()
        )
    };
    let line = |status: &str| {
        format!("10.0.0.1 - - [21/Nov/2026:00:00:01 +0000] \"GET / HTTP/1.1\" {status} 1 \"-\" \"-\"\n")
    };
    let read = |topic: &str| client::consume(&ConsumeOptions::new(&client, topic)).unwrap();
    scene.pipeline(&pipeline("topic_default = \"status-rest\"\n")).unwrap();
    // 201 is in `topics`, and not there.
    fs::write(scene.input().join("a.log"), ["200", "404", "201", "200"].map(line).concat()).unwrap();
    let agent = scene.start_ready().unwrap();
    poll::until("four records", limits::CONDITION, || {
        Ok(read("status-200").len() + read("status-rest").len() == 4)
    })
    .unwrap();
    let records = read("status-200");
    assert_eq!(records.len(), 2);
    let first = &records[0];
    assert_eq!(
        (first.key.clone().unwrap().text(), first.header("status").unwrap()),
        ("200".into(), "200".into())
    );
    assert_eq!((first.headers.len(), first.timestamp_ms), (1, Some(1_795_219_201_000)));
    // Where Java's producer puts the key "200".
    assert_eq!(first.partition, 1);
    let value: serde_json::Value = serde_json::from_str(&first.text()).unwrap();
    assert_eq!(value["headers"]["status"], "200");
    agent.stop().unwrap();

    scene.pipeline(&pipeline("")).unwrap();
    let agent = scene.start_ready().unwrap();
    let mut file = OpenOptions::new().append(true).open(scene.input().join("a.log")).unwrap();
    file.write_all(["404", "201", "200"].map(line).concat().as_bytes()).unwrap();
    poll::until("one more record", limits::CONDITION, || Ok(read("status-200").len() == 3)).unwrap();
    poll::until("two rows in quarantine", limits::CONDITION, || Ok(scene.quarantine()?.len() == 2)).unwrap();
    let reasons = scene.quarantine().unwrap();
    assert!(reasons[0].to_string().contains("is not in `topics`"), "{}", reasons[0]);
    assert!(reasons[1].to_string().contains("does not exist"), "{}", reasons[1]);
    agent.stop().unwrap();
}

#[test]
fn values_in_flumes_format_and_fixed_partitions() {
    let broker = Broker::shared().unwrap();
    let mut flow = Flow::new(
        broker,
        "flume-avro",
        3,
        "value = \"flume-avro\"\npartitioner = \"fixed\"\npartition = 2\ntimestamp = \"event\"",
    );
    writeln!(flow.file, "hello").unwrap();
    let agent = flow.scene.start_ready().unwrap();
    poll::until("the record", limits::CONDITION, || Ok(flow.records().len() == 1)).unwrap();
    let record = &flow.records()[0];
    let value = record.value.clone().unwrap().0;
    assert!(value.ends_with(b"\x0ahello"), "{value:?}");
    assert_eq!((record.partition, record.timestamp_type.as_deref()), (2, Some("create")));
    agent.stop().unwrap();
}

#[test]
fn at_least_once_and_at_most_once() {
    let broker = Broker::shared().unwrap();
    for delivery in ["at-least-once", "at-most-once"] {
        let mut flow = Flow::new(broker, delivery, 2, &format!("delivery = \"{delivery}\""));
        let agent = flow.scene.start_ready().unwrap();
        flow.write(5_000);
        flow.expect_all(true);
        agent.kill().unwrap();
        let agent = flow.scene.start_ready().unwrap();
        flow.write(5_000);
        poll::until("what was written last", limits::CONDITION, || {
            Ok(flow.records().iter().any(|record| seq(record) == flow.written - 1))
        })
        .unwrap();
        agent.stop().unwrap();
        let seen: BTreeSet<u64> = flow.records().iter().map(seq).collect();
        match delivery {
            "at-least-once" => assert_eq!(seen.len() as u64, flow.written),
            _ => assert_eq!(flow.records().len(), seen.len(), "at most once"),
        }
        let check = flow.scene.flumen(&["check", flow.scene.config().to_str().unwrap()]).unwrap();
        assert!(check.stdout.contains(delivery), "{}", check.stdout);
    }
}
