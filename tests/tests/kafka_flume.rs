//! Flume 1.11 itself on the other side of a topic: its Kafka source, sink and channel, in both directions.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use flumen_tests::agent::Agent;
use flumen_tests::kafka::{Broker, Flume, Message};
use flumen_tests::scene::Scene;
use flumen_tests::{output, poll};
use serde_json::Value;

/// Everything is delivered: Java starts, both sides join groups, on a busy machine.
const DELIVERED: Duration = Duration::from_secs(150);
const LINES: usize = 500;

type Headers = BTreeMap<String, String>;

/// An event as one side shows it: body and headers.
type Event = (String, Headers);

fn scene(name: &str, broker: &Broker, text: &str) -> Scene {
    let mut scene = Scene::new().unwrap();
    scene.agent_name = name.to_owned();
    scene.pipeline(&text.replace("{brokers}", &broker.bootstrap())).unwrap();
    scene
}

const TO_FILE: &str =
    "[sink]\ntype = \"file\"\npath = \"{out}/all.log\"\nencoding = \"json\"\nflush_interval = \"50ms\"\n";

fn line(number: usize) -> String {
    let minute = number % 60;
    format!("10.0.0.7 - - [21/Nov/2026:08:{minute:02}:00 +0000] \"GET /p/{number} HTTP/1.1\" 200 {number}")
}

fn write_lines(path: PathBuf) {
    let text: String = (0..LINES).map(|number| line(number) + "\n").collect();
    fs::write(path, text).unwrap();
}

/// What Flumen's file sink wrote.
fn flumens(scene: &Scene) -> Vec<Event> {
    let lines = output::lines(&scene.output).unwrap();
    // The last line may still be written.
    let events = lines.iter().map_while(|line| serde_json::from_slice::<Value>(line).ok());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let headers = |value: &Value| {
        let all = value.as_object().into_iter().flatten();
        all.map(|(name, value)| (name.clone(), text(value))).collect()
    };
    events.map(|event| (text(&event["body"]), headers(&event["headers"]))).collect()
}

/// A sink of Flume whose lines are `{name=value, name=value} body`.
fn file_roll(name: &str, channel: &str, scene: &Scene) -> String {
    format!(
        "a1.sinks.{name}.type=file_roll\na1.sinks.{name}.channel={channel}\na1.sinks.{name}.sink.rollInterval=0\n\
         a1.sinks.{name}.sink.directory={}\na1.sinks.{name}.sink.serializer=HEADER_AND_TEXT\n",
        scene.output.display()
    )
}

/// What that sink wrote.
fn flumes(scene: &Scene) -> Vec<Event> {
    let files = output::files(&scene.output).unwrap();
    // A letter of several bytes may be partly written, in a line that is not complete.
    let read = |file: &PathBuf| String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
    let text: String = files.iter().map(read).collect();
    let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
    let event = |line: &str| {
        let (headers, body) = line.strip_prefix('{').unwrap().split_once("} ").unwrap();
        let pairs = headers.split(", ").filter_map(|pair| pair.split_once('='));
        (body.to_owned(), pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    };
    complete.lines().map(event).collect()
}

/// Waits for so many events on a side; what came, in the order of the bodies.
fn wait(
    what: &str,
    count: usize,
    agents: &mut [&mut Agent],
    flume: &mut Flume,
    look: impl Fn() -> Vec<Event>,
) -> Vec<Event> {
    let waited = poll::until(what, DELIVERED, || {
        agents.iter_mut().try_for_each(|agent| agent.expect_running())?;
        flume.expect_running()?;
        Ok(look().len() >= count)
    });
    let mut events = look();
    if let Err(error) = waited {
        let logs: Vec<String> = agents.iter().map(|agent| agent.log_tail()).collect();
        panic!("{error:#}: {} of {count}\n{}\n{}", events.len(), logs.join("\n"), flume.log_tail());
    }
    events.sort();
    events
}

/// Each line once.
fn assert_lines(events: &[Event]) {
    let bodies: BTreeSet<&str> = events.iter().map(|(body, _)| body.as_str()).collect();
    let missing: Vec<String> =
        (0..LINES).map(line).filter(|line| !bodies.contains(line.as_str())).take(5).collect();
    assert_eq!((events.len(), bodies.len(), missing), (LINES, LINES, vec![]));
}

fn names(headers: &Headers) -> Vec<&str> {
    headers.keys().map(String::as_str).collect()
}

/// Values that Flumen's sink wrote, and odd ones of another producer: Flume's source and Flumen's see the same bodies
/// and the same headers, those of the record's place included.
#[test]
fn flumes_source_and_ours_see_the_same() {
    const TOPIC: &str = "to-flume";
    let broker = Broker::shared().unwrap();
    broker.client().create_topic(TOPIC, 2, &[]).unwrap();
    let writer = format!(
        "[source]\ntype = \"tail\"\npaths = [\"{{in}}/*.log\"]\n\n[[interceptor]]\nplugin = \"access-log\"\n\n\
         [sink]\ntype = \"kafka\"\nbrokers = [\"{{brokers}}\"]\ntopic = \"{TOPIC}\"\nvalue = \"flume-avro\"\n\
         key = \"header.path\"\ntransaction_interval = \"200ms\"\n"
    );
    let writer = scene("flume-w", broker, &writer);
    writer.install("access-log", "access-log").unwrap();
    write_lines(writer.input().join("web.log"));
    let reader = format!(
        "[source]\ntype = \"kafka\"\nbrokers = [\"{{brokers}}\"]\ntopics = [\"{TOPIC}\"]\nvalue = \"flume-avro\"\n\n{TO_FILE}"
    );
    let reader = scene("flume-r", broker, &reader);
    let theirs = Scene::new().unwrap();
    let configuration = format!(
        "a1.sources=s\na1.channels=c\na1.sinks=k\na1.channels.c.type=memory\na1.channels.c.capacity=10000\n\
         a1.channels.c.transactionCapacity=1000\na1.sources.s.type=org.apache.flume.source.kafka.KafkaSource\n\
         a1.sources.s.channels=c\na1.sources.s.kafka.bootstrap.servers={}\na1.sources.s.kafka.topics={TOPIC}\n\
         a1.sources.s.kafka.consumer.group.id=flume\na1.sources.s.useFlumeEventFormat=true\n\
         a1.sources.s.kafka.consumer.auto.offset.reset=earliest\n\
         a1.sources.s.kafka.consumer.isolation.level=read_committed\n{}",
        broker.bootstrap(),
        file_roll("k", "c", &theirs)
    );
    let mut flume = Flume::start(&configuration).unwrap();
    let (mut writes, mut reads) = (writer.start().unwrap(), reader.start().unwrap());
    let umlauts = umlauts();
    let odd: [(&[u8], Option<&str>); 5] = [
        (b"\x00\x0aplain", None),
        // A block that says its size, then a second block.
        (b"\x01\x0e\x02a\x06one\x02\x02b\x00\x00\x0csecond", None),
        // The key of the event and the key of the record.
        (b"\x02\x06key\x0ainner\x00\x06key", Some("outer")),
        // What the event brings as headers of a record's place.
        (b"\x06\x0atopic\x02t\x12timestamp\x021\x0coffset\x02x\x00\x0aplace", None),
        (&umlauts, Some("Schlüssel")),
    ];
    let odd = odd.map(|(value, key)| Message { key: key.map(Into::into), ..Message::value(value.to_vec()) });
    broker.client().produce(TOPIC, &odd).unwrap();
    let count = LINES + odd.len();
    let ours =
        wait("all events in Flumen's output", count, &mut [&mut writes, &mut reads], &mut flume, || {
            flumens(&reader)
        });
    let seen =
        wait("all events in Flume's output", count, &mut [&mut writes, &mut reads], &mut flume, || {
            flumes(&theirs)
        });
    writes.stop().unwrap();
    reads.stop().unwrap();
    flume.kill().unwrap();
    for (our, their) in ours.iter().zip(&seen) {
        assert_eq!(our, their, "ours and Flume's");
    }
    assert_eq!((ours.len(), seen.len()), (count, count));
    let (lines, others): (Vec<Event>, Vec<Event>) =
        seen.into_iter().partition(|(body, _)| body.contains("GET"));
    assert_lines(&lines);
    for (body, headers) in &lines {
        let path = body.split(' ').nth(6).unwrap();
        let file = writer.input().join("web.log").display().to_string();
        for (name, value) in
            [("path", path), ("key", path), ("method", "GET"), ("file", &file), ("topic", TOPIC)]
        {
            assert_eq!(headers.get(name).map(String::as_str), Some(value), "{name} of {body}");
        }
    }
    assert_eq!(
        others.iter().map(|(body, _)| body.as_str()).collect::<Vec<_>>(),
        ["Köln-Süd", "key", "place", "plain", "second"]
    );
    assert_eq!(others[1].1["key"], "outer");
    assert_eq!((&*others[2].1["topic"], &*others[2].1["offset"]), ("t", "x"));
}

/// Header `straße`, body `Köln-Süd`, with the lengths of their bytes.
fn umlauts() -> Vec<u8> {
    let mut datum = vec![2];
    for text in ["straße", "Größe"] {
        datum.push(text.len() as u8 * 2);
        datum.extend_from_slice(text.as_bytes());
    }
    datum.push(0);
    datum.push("Köln-Süd".len() as u8 * 2);
    datum.extend_from_slice("Köln-Süd".as_bytes());
    datum
}

/// A source of Flume: the file's lines, with the headers `file`, `site`, and the path as `key`.
fn taildir(name: &str, channel: &str, file: &std::path::Path) -> String {
    let s = format!("a1.sources.{name}");
    format!(
        "{s}.type=TAILDIR\n{s}.channels={channel}\n{s}.filegroups=f\n{s}.filegroups.f={}\n\
         {s}.positionFile={{home}}/{name}.json\n{s}.fileHeader=true\n{s}.interceptors=i j\n{s}.interceptors.i.type=static\n\
         {s}.interceptors.i.key=site\n{s}.interceptors.i.value=K\\u00f6ln\n{s}.interceptors.j.type=regex_extractor\n\
         {s}.interceptors.j.regex=GET /p/(\\\\d+)\n{s}.interceptors.j.serializers=a\n\
         {s}.interceptors.j.serializers.a.name=key\n",
        file.display()
    )
}

/// The headers that [`taildir`] gives.
fn assert_taildir(events: &[Event], file: &std::path::Path) {
    for (body, headers) in events {
        let number = body.rsplit(' ').next().unwrap();
        let expected = [("file", &*file.display().to_string()), ("site", "Köln"), ("key", number)];
        for (name, value) in expected {
            assert_eq!(headers.get(name).map(String::as_str), Some(value), "{name} of {body}: {headers:?}");
        }
    }
}

/// What Flume's Kafka sink writes, our source reads.
#[test]
fn what_flumes_sink_writes_is_read() {
    const TOPIC: &str = "from-flume";
    let broker = Broker::shared().unwrap();
    broker.client().create_topic(TOPIC, 2, &[]).unwrap();
    let reader = format!(
        "[source]\ntype = \"kafka\"\nbrokers = [\"{{brokers}}\"]\ntopics = [\"{TOPIC}\"]\nvalue = \"flume-avro\"\n\n{TO_FILE}"
    );
    let reader = scene("flume-s", broker, &reader);
    let file = reader.input().join("web.log");
    write_lines(file.clone());
    let configuration = format!(
        "a1.sources=s\na1.channels=c\na1.sinks=k\na1.channels.c.type=memory\na1.channels.c.capacity=10000\n\
         a1.channels.c.transactionCapacity=1000\n{}a1.sinks.k.type=org.apache.flume.sink.kafka.KafkaSink\n\
         a1.sinks.k.channel=c\na1.sinks.k.kafka.bootstrap.servers={}\na1.sinks.k.kafka.topic={TOPIC}\n\
         a1.sinks.k.kafka.producer.acks=all\na1.sinks.k.useFlumeEventFormat=true\n",
        taildir("s", "c", &file),
        broker.bootstrap()
    );
    let mut flume = Flume::start(&configuration).unwrap();
    let mut agent = reader.start().unwrap();
    let events = wait("all events of Flume", LINES, &mut [&mut agent], &mut flume, || flumens(&reader));
    agent.stop().unwrap();
    flume.kill().unwrap();
    assert_lines(&events);
    assert_taildir(&events, &file);
    assert_eq!(names(&events[0].1), ["file", "key", "offset", "partition", "site", "timestamp", "topic"]);
    assert!(reader.quarantine().unwrap().is_empty());
}

fn our_channel(topic: &str) -> String {
    format!(
        "[channel]\nkind = \"kafka\"\nbrokers = [\"{{brokers}}\"]\ntopic = \"{topic}\"\nparse_as_flume_event = true\n\
         partitions = 2\nsession_timeout = \"30s\"\n"
    )
}

/// Its group is named as the topic.
fn their_channel(name: &str, broker: &Broker, topic: &str) -> String {
    let c = format!("a1.channels.{name}");
    format!(
        "{c}.type=org.apache.flume.channel.kafka.KafkaChannel\n{c}.kafka.bootstrap.servers={}\n{c}.kafka.topic={topic}\n\
         {c}.kafka.consumer.group.id={topic}\n{c}.parseAsFlumeEvent=true\n\
         {c}.kafka.consumer.auto.offset.reset=earliest\n{c}.kafka.consumer.isolation.level=read_committed\n",
        broker.bootstrap()
    )
}

/// One topic as the channel of both: Flumen's sources and Flume's sink, Flume's source and Flumen's sink.
#[test]
fn a_kafka_channel_is_shared_with_flume_in_both_directions() {
    let broker = Broker::shared().unwrap();
    let puts = format!(
        "[source]\ntype = \"tail\"\npaths = [\"{{in}}/*.log\"]\n\n[[interceptor]]\nplugin = \"access-log\"\n\n{}",
        our_channel("channel-to-flume")
    );
    let puts = scene("flume-p", broker, &puts);
    puts.install("access-log", "access-log").unwrap();
    write_lines(puts.input().join("web.log"));
    let takes = scene("flume-t", broker, &format!("{}{TO_FILE}", our_channel("channel-from-flume")));
    // The lines are older than a week: what a channel holds is as old as its stay there, whatever the events' times say.
    for topic in ["channel-to-flume", "channel-from-flume"] {
        broker.client().create_topic(topic, 2, &[("retention.ms", "604800000")]).unwrap();
    }
    let theirs = Scene::new().unwrap();
    let file = theirs.input().join("web.log");
    write_lines(file.clone());
    let configuration = format!(
        "a1.sources=s\na1.channels=in out\na1.sinks=k\n{}{}{}{}",
        their_channel("in", broker, "channel-to-flume"),
        their_channel("out", broker, "channel-from-flume"),
        taildir("s", "out", &file),
        file_roll("k", "in", &theirs)
    );
    let mut flume = Flume::start(&configuration).unwrap();
    let (mut put, mut take) = (puts.start().unwrap(), takes.start().unwrap());
    let seen = wait("all events in Flume's output", LINES, &mut [&mut put, &mut take], &mut flume, || {
        flumes(&theirs)
    });
    let taken =
        wait("all events of Flume", LINES, &mut [&mut put, &mut take], &mut flume, || flumens(&takes));
    put.stop().unwrap();
    take.stop().unwrap();
    flume.kill().unwrap();
    assert_lines(&seen);
    for (body, headers) in &seen {
        let path = body.split(' ').nth(6).unwrap();
        assert_eq!((&*headers["path"], &*headers["method"]), (path, "GET"), "{body}");
        assert!(headers["file"].ends_with("web.log"), "{headers:?}");
    }
    assert_lines(&taken);
    assert_taildir(&taken, &file);
    assert_eq!(names(&taken[0].1), ["file", "key", "site"]);
}

/// Waits until a group has committed all of a topic; a transaction's end may be what is behind the last record.
fn wait_committed(broker: &Broker, topic: &str) {
    let client = broker.client();
    poll::until("the group's offsets", DELIVERED, || {
        let groups = client.group_offsets(topic)?;
        let committed =
            |number| groups.iter().find(|one| one.partition == number).map_or(0, |one| one.offset);
        Ok(client.offsets(topic)?.iter().all(|one| committed(one.partition) >= one.end - 1))
    })
    .unwrap();
}

/// Who follows Flume in its group goes on where Flume stopped, and Flume goes on where we stopped.
#[test]
fn a_group_goes_from_flume_to_us_and_back() {
    const TOPIC: &str = "handed-over";
    let broker = Broker::shared().unwrap();
    broker.client().create_topic(TOPIC, 2, &[]).unwrap();
    let produce = |numbers: std::ops::Range<usize>| {
        let value = |number: usize| [b"\x00\x08", format!("{number:04}").as_bytes()].concat();
        let message =
            |number| Message { partition: Some(number as i32 % 2), ..Message::value(value(number)) };
        broker.client().produce(TOPIC, &numbers.map(message).collect::<Vec<_>>()).unwrap();
    };
    let bodies = |events: Vec<Event>| events.into_iter().map(|(body, _)| body).collect::<Vec<_>>();
    let expected =
        |numbers: std::ops::Range<usize>| numbers.map(|number| format!("{number:04}")).collect::<Vec<_>>();
    let flume_into = |scene: &Scene| {
        let (channel, sink) = (their_channel("c", broker, TOPIC), file_roll("k", "c", scene));
        Flume::start(&format!("a1.channels=c\na1.sinks=k\n{channel}{sink}")).unwrap()
    };
    let (first, last) = (Scene::new().unwrap(), Scene::new().unwrap());
    produce(0..100);
    let mut flume = flume_into(&first);
    let seen = wait("Flume's share", 100, &mut [], &mut flume, || flumes(&first));
    assert_eq!(bodies(seen), expected(0..100));
    wait_committed(broker, TOPIC);
    flume.stop().unwrap();

    produce(100..200);
    let ours = scene("flume-h", broker, &format!("{}group = \"{TOPIC}\"\n\n{TO_FILE}", our_channel(TOPIC)));
    let mut agent = ours.start().unwrap();
    let waited = poll::until("our share", DELIVERED, || {
        agent.expect_running()?;
        Ok(flumens(&ours).len() >= 100)
    });
    waited.unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log_tail()));
    agent.stop().unwrap();

    produce(200..300);
    let mut flume = flume_into(&last);
    let seen = wait("Flume's second share", 100, &mut [], &mut flume, || flumes(&last));
    wait_committed(broker, TOPIC);
    flume.stop().unwrap();
    let mut taken = flumens(&ours);
    taken.sort();
    assert_eq!((bodies(taken), bodies(seen)), (expected(100..200), expected(200..300)));
}
