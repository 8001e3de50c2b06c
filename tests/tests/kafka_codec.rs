//! Codecs at Kafka, on a real broker: values made by a Wasm codec, exactly once across kills, with the codec swapped and
//! rows that it traps on; messages that hold several events.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::thread;
use std::time::Duration;

use flumen_tests::kafka::client;
use flumen_tests::kafka::{Broker, BrokerOptions, Client, ConsumeOptions, Message, Record};
use flumen_tests::scene::Scene;
use flumen_tests::{limits, locate, output, poll};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use serde_json::Value;

type KeyAndValue = (Option<Vec<u8>>, Option<Vec<u8>>);

fn dice() -> SmallRng {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64;
    eprintln!("seed {seed}");
    SmallRng::seed_from_u64(seed)
}

/// The same plugin with other bytes, copied over it as `cp` does.
fn swap(scene: &Scene, plugin: &str, turn: u8) {
    let mut bytes = fs::read(locate::plugin(plugin).unwrap()).unwrap();
    bytes.extend_from_slice(&[0, 3, 1, b't', turn]);
    fs::write(scene.plugin_dir().join(format!("{plugin}.wasm")), bytes).unwrap();
}

fn records(client: &Client, topic: &str) -> Vec<Record> {
    client::consume(&ConsumeOptions::new(client, topic)).unwrap()
}

fn count(client: &Client, topic: &str) -> u64 {
    let offsets = client.offsets(topic).unwrap();
    offsets.iter().map(|partition| (partition.end - partition.begin).unsigned_abs()).sum()
}

fn seq(text: &str) -> u64 {
    let digits: String =
        text.split("seq=").nth(1).unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("foreign: {text:?}"))
}

fn once<'a>(texts: impl Iterator<Item = &'a str>, expected: u64) {
    let mut seen: BTreeMap<u64, u32> = BTreeMap::new();
    texts.for_each(|text| *seen.entry(seq(text)).or_default() += 1);
    let doubled: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).take(5).collect();
    let lost: Vec<_> = (0..expected).filter(|seq| !seen.contains_key(seq)).take(5).collect();
    assert!(
        doubled.is_empty() && lost.is_empty(),
        "{} of {expected}: doubled {doubled:?}, lost {lost:?}",
        seen.len()
    );
}

/// Lines with events, and some that the codec rejects or traps on.
struct Lines {
    file: File,
    next: u64,
    bad: u64,
}

impl Lines {
    fn new(scene: &Scene) -> Lines {
        let file = OpenOptions::new().create(true).append(true).open(scene.input().join("a.log")).unwrap();
        Lines { file, next: 0, bad: 0 }
    }

    fn write(&mut self, lines: u64, dice: &mut SmallRng) {
        let mut text = String::new();
        for _ in 0..lines {
            match dice.random_range(0..500) {
                0 => text.push_str(&format!("bad {} TRAP\n", self.bad)),
                1..4 => text.push_str(&format!("REJECT {}\n", self.bad)),
                _ => {
                    text.push_str(&format!("seq={} {}\n", self.next, "x".repeat(100)));
                    self.next += 1;
                    continue;
                }
            }
            self.bad += 1;
        }
        self.file.write_all(text.as_bytes()).unwrap();
    }
}

#[test]
fn values_by_a_codec_across_kills_of_agent_and_broker_with_swaps() {
    const TOPIC: &str = "codec";
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    let client = broker.client();
    client.create_topic(TOPIC, 3, &[]).unwrap();
    let scene = Scene::new().unwrap();
    scene.install("hostile-codec", "hostile-codec").unwrap();
    let pipeline = |lanes: u32| {
        let text = format!(
            "[source.in]\ntype = \"tail\"\npaths = [\"{{in}}/*.log\"]\n\n[sink.codec]\ntype = \"kafka\"\n\
             brokers = [\"{}\"]\ntopic = \"{TOPIC}\"\ntransaction_interval = \"100ms\"\nlanes = {lanes}\n\
             [sink.codec.codec]\nplugin = \"hostile-codec\"\nconfig = {{ tag = \"> \" }}\n",
            broker.bootstrap()
        );
        scene.pipeline(&text).unwrap();
    };
    pipeline(1);
    let mut lines = Lines::new(&scene);
    let mut dice = dice();
    for turn in 0..5 {
        // From one lane to two: what was quarantined beside half committed lanes is settled too.
        pipeline(if turn < 3 { 1 } else { 2 });
        swap(&scene, "hostile-codec", turn);
        let mut agent = scene.start_ready().unwrap();
        let before = count(&client, TOPIC);
        lines.write(3_000, &mut dice);
        poll::until("something new in the topic", limits::CONDITION, || {
            agent.expect_running()?;
            Ok(count(&client, TOPIC) > before)
        })
        .unwrap();
        swap(&scene, "hostile-codec", 100 + turn);
        lines.write(3_000, &mut dice);
        thread::sleep(Duration::from_millis(dice.random_range(0..400)));
        agent.kill().unwrap();
    }
    let agent = scene.start_ready().unwrap();
    lines.write(3_000, &mut dice);
    poll::until("something", limits::CONDITION, || Ok(count(&client, TOPIC) > 0)).unwrap();
    broker.kill().unwrap();
    lines.write(3_000, &mut dice);
    broker.restart().unwrap();
    let mut found = Vec::new();
    poll::until_counted("all records", limits::CONDITION * 2, lines.next, || {
        found = records(&client, TOPIC);
        Ok(found.len() as u64)
    })
    .unwrap_or_else(|error| panic!("{error}: {} records; {:?}", found.len(), scene.status()));
    let texts: Vec<String> = found.iter().map(Record::text).collect();
    assert!(texts.iter().all(|text| text.starts_with("> seq=")), "each value is the codec's");
    once(texts.iter().map(String::as_str), lines.next);
    poll::until("the quarantine", limits::CONDITION, || Ok(scene.quarantine()?.len() as u64 >= lines.bad))
        .unwrap();
    agent.stop().unwrap();
    let quarantined = scene.quarantine().unwrap();
    let bodies: BTreeSet<&str> = quarantined.iter().map(|event| event["body"].as_str().unwrap()).collect();
    assert_eq!(
        (quarantined.len() as u64, bodies.len() as u64),
        (lines.bad, lines.bad),
        "each once, as it came"
    );
}

#[test]
fn flume_avro_in_wasm_is_flume_avro() {
    let broker = Broker::shared().unwrap();
    let client = broker.client();
    for topic in ["avro-built-in", "avro-wasm"] {
        client.create_topic(topic, 1, &[]).unwrap();
    }
    let scene = Scene::new().unwrap();
    scene.install("flume-avro", "flume-avro").unwrap();
    let sink = |name: &str, value: &str| {
        format!(
            "[sink.{name}]\ntype = \"kafka\"\nbrokers = [\"{}\"]\ntopic = \"{name}\"\nkey = \"body-hash\"\n{value}\n\n",
            broker.bootstrap()
        )
    };
    let text = format!(
        "[source.in]\ntype = \"tail\"\npaths = [\"{{in}}/*.log\"]\n\n{}{}",
        sink("avro-built-in", "value = \"flume-avro\""),
        sink("avro-wasm", "codec = { plugin = \"flume-avro\" }"),
    );
    scene.pipeline(&text).unwrap();
    let lines = ["hello", "", "ü ö", "\u{1}\t\"", &"long ".repeat(5_000)].map(|line| format!("{line}\n"));
    fs::write(scene.input().join("a.log"), lines.concat()).unwrap();
    let agent = scene.start_ready().unwrap();
    let all = |topic: &str| {
        let mut found = Vec::new();
        poll::until(topic, limits::CONDITION, || {
            found = records(&client, topic);
            Ok(found.len() >= lines.len())
        })
        .unwrap();
        found
    };
    let (built_in, wasm) = (all("avro-built-in"), all("avro-wasm"));
    agent.stop().unwrap();
    let of = |records: &[Record]| -> Vec<KeyAndValue> {
        let bytes = |bytes: &Option<flumen_tests::kafka::Bytes>| bytes.as_ref().map(|bytes| bytes.0.clone());
        records.iter().map(|record| (bytes(&record.key), bytes(&record.value))).collect()
    };
    assert_eq!(of(&built_in), of(&wasm), "keys are of the body, not of the value; values are the same bytes");

    // And back: by the codec at the source of another pipeline.
    let mut reader = Scene::new().unwrap();
    // Tests share a broker, and a group has the agent's name.
    reader.agent_name = "avro-reader".to_owned();
    reader.install("flume-avro", "flume-avro").unwrap();
    let text = format!(
        "[source.in]\ntype = \"kafka\"\nbrokers = [\"{}\"]\ntopics = [\"avro-built-in\"]\nheaders = [\"offset\"]\n\
         codec = {{ plugin = \"flume-avro\" }}\n\n[sink]\ntype = \"file\"\npath = \"{{out}}/all.log\"\nencoding = \"json\"\nflush_interval = \"20ms\"\n",
        broker.bootstrap()
    );
    reader.pipeline(&text).unwrap();
    let agent = reader.start_ready().unwrap();
    poll::until("all lines", limits::CONDITION, || Ok(output::lines(&reader.output)?.len() >= lines.len()))
        .unwrap();
    agent.stop().unwrap();
    let path = scene.input().join("a.log").display().to_string();
    for (line, expected) in output::lines(&reader.output).unwrap().iter().zip(&lines) {
        let event: Value = serde_json::from_slice(line).unwrap();
        assert_eq!(event["body"], expected.trim_end_matches('\n'));
        assert_eq!(event["headers"]["file"], path);
        assert_eq!(event["headers"]["offset"], event["position"].to_string(), "the position is the offset");
    }
}

#[test]
fn messages_of_several_events_across_kills() {
    const TOPIC: &str = "several";
    let broker = Broker::shared().unwrap();
    let client = broker.client();
    client.create_topic(TOPIC, 2, &[]).unwrap();
    let mut scene = Scene::new().unwrap();
    // Tests share a broker, and a group has the agent's name.
    scene.agent_name = "several".to_owned();
    scene.install("hostile-codec", "hostile-codec").unwrap();
    let text = format!(
        "[source.in]\ntype = \"kafka\"\nbrokers = [\"{}\"]\ntopics = [\"{TOPIC}\"]\ninstance = \"a\"\nsession_timeout = \"6s\"\n\
         codec = {{ plugin = \"hostile-codec\" }}\n\n[sink]\ntype = \"file\"\npath = \"{{out}}/all.log\"\nencoding = \"json\"\n\
         flush_interval = \"20ms\"\n\n[batch]\nrows = 64\n",
        broker.bootstrap()
    );
    scene.pipeline(&text).unwrap();
    let mut dice = dice();
    let (mut next, mut bad) = (0_u64, 0_u64);
    let mut produce = |dice: &mut SmallRng| {
        let mut messages = Vec::new();
        for _ in 0..400 {
            let mut text = String::new();
            for _ in 0..dice.random_range(1..6_u32) {
                match dice.random_range(0..100) {
                    0 => text.push_str(&format!("REJECT {bad}\n")),
                    1 => text.push_str(&format!("bad {bad} TRAP\n")),
                    _ => {
                        text.push_str(&format!("seq={next} a\tseq={} b\n", next + 1));
                        next += 2;
                        continue;
                    }
                }
                bad += 1;
            }
            messages.push(Message { partition: Some(dice.random_range(0..2)), ..Message::value(text) });
        }
        client.produce(TOPIC, &messages).unwrap();
    };
    for _ in 0..4 {
        produce(&mut dice);
        let mut agent = scene.start_ready().unwrap();
        let before = output::bytes(&scene.output).unwrap();
        poll::until("something new in the output", limits::CONDITION, || {
            agent.expect_running()?;
            Ok(output::bytes(&scene.output)? != before)
        })
        .unwrap();
        produce(&mut dice);
        thread::sleep(Duration::from_millis(dice.random_range(0..300)));
        agent.kill().unwrap();
    }
    let agent = scene.start_ready().unwrap();
    let counted = || Ok(output::lines(&scene.output)?.len() as u64);
    poll::until_counted("all events", limits::CONDITION, next, counted).unwrap();
    poll::until("the quarantine", limits::CONDITION, || Ok(scene.quarantine()?.len() as u64 >= bad)).unwrap();
    agent.stop().unwrap();
    let mut places = BTreeSet::new();
    let mut bodies = Vec::new();
    for line in output::lines(&scene.output).unwrap() {
        let event: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(event["headers"]["topic"], TOPIC);
        assert!(places.insert((event["stream"].to_string(), event["position"].to_string())), "{event}");
        bodies.push(event["body"].as_str().unwrap().to_owned());
    }
    once(bodies.iter().map(String::as_str), next);
    assert_eq!(bodies.len() as u64, next);
    let quarantined = scene.quarantine().unwrap();
    let bodies: BTreeSet<&str> = quarantined.iter().map(|event| event["body"].as_str().unwrap()).collect();
    assert_eq!((quarantined.len() as u64, bodies.len() as u64), (bad, bad));
    let with_place = quarantined.iter().all(|event| event["headers"]["offset"].is_string());
    assert!(with_place, "bytes that are no event say where they were: {:?}", quarantined.first());
}
