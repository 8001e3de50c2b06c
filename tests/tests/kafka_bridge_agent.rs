//! Bridges that an agent runs beside its pipelines, on a real broker.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use flumen_tests::kafka::{Broker, BrokerOptions, Client, ConsumeOptions, Message, client};
use flumen_tests::scene::Scene;
use flumen_tests::{limits, output, poll};
use serde_json::Value;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// An agent with the pipeline `main` (a file to files) and bridges.
struct World {
    scene: Scene,
    bootstrap: String,
    client: Client,
    base: i64,
}

impl World {
    fn on(broker: &Broker) -> World {
        let scene = Scene::new().unwrap();
        let pipeline = "[source]\ntype = \"tail\"\npaths = [\"{in}/*.log\"]\n[sink]\ntype = \"file\"\npath = \"{out}/lines\"\nflush_interval = \"50ms\"\n";
        scene.pipeline(pipeline).unwrap();
        let agent = fs::read_to_string(scene.config()).unwrap();
        fs::write(scene.config(), agent.replace("[\"main.toml\"]", "[\"main.toml\", \"bridges/*.toml\"]"))
            .unwrap();
        fs::create_dir(scene.root().join("bridges")).unwrap();
        fs::write(scene.input().join("a.log"), "one\ntwo\n").unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        let base = now / HOUR * HOUR - 8 * HOUR;
        World { scene, bootstrap: broker.bootstrap(), client: broker.client(), base }
    }

    /// A topic with two partitions, and the bridge's file for it.
    fn bridge(&self, topic: &str, options: &str) {
        self.client.create_topic(topic, 2, &[]).unwrap();
        let from = jiff::Timestamp::from_millisecond(self.base).unwrap();
        let text = format!(
            "[bridge]\npath = \"{}/{{topic}}/{{time:%Y-%m-%d/%H}}\"\nfrom = \"{from}\"\n{options}\n\
             [kafka]\nbrokers = [\"{}\"]\ntopics = [\"{topic}\"]\nidle = \"2d\"\n",
            self.scene.root().join("hours").display(),
            self.bootstrap,
        );
        fs::write(self.scene.root().join(format!("bridges/{topic}.toml")), text).unwrap();
    }

    /// Records at (partition, minutes after the base, value).
    fn produce(&self, topic: &str, records: &[(i32, i64, &str)]) {
        let message = |(partition, minute, value): &(i32, i64, &str)| Message {
            partition: Some(*partition),
            timestamp_ms: Some(self.base + minute * MINUTE),
            ..Message::value(*value)
        };
        let messages: Vec<Message> = records.iter().map(message).collect();
        self.client.produce(topic, &messages).unwrap();
    }

    fn dir(&self, topic: &str, hour: i64) -> PathBuf {
        let time = jiff::Timestamp::from_millisecond(self.base + hour * HOUR).unwrap();
        let time = time.to_zoned(jiff::tz::TimeZone::UTC).strftime("%Y-%m-%d/%H").to_string();
        self.scene.root().join("hours").join(topic).join(time)
    }

    fn wait_hour(&self, topic: &str, hour: i64) {
        let marker = self.dir(topic, hour).join("_SUCCESS");
        poll::until(&format!("hour {hour} of {topic}"), limits::CONDITION, || Ok(marker.is_file())).unwrap();
    }

    /// What stands in the files of an hour, those of late records too.
    fn lines(&self, topic: &str, hour: i64) -> Vec<String> {
        let files = output::files(&self.dir(topic, hour)).unwrap();
        let parts = files.iter().filter(|file| !file.ends_with("_SUCCESS"));
        let text: String = parts.map(|file| fs::read_to_string(file).unwrap()).collect();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// A bridge in `flumen status`, once a condition holds.
    fn wait_status(&self, what: &str, name: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = poll::until_some(what, limits::CONDITION, || {
            let Some(status) = self.scene.status()? else { return Ok(None) };
            let pipelines = status.0["pipelines"].as_array().unwrap();
            let bridge = pipelines.iter().find(|pipeline| pipeline["name"] == name).unwrap();
            last = bridge.clone();
            Ok(holds(bridge).then(|| bridge.clone()))
        });
        found.unwrap_or_else(|error| panic!("{error:#}: {last}"))
    }

    /// What the pipeline has written.
    fn piped(&self) -> String {
        let files = output::files(&self.scene.output).unwrap();
        files.iter().map(|file| fs::read_to_string(file).unwrap_or_default()).collect()
    }

    fn words(&self) -> String {
        self.scene.shown().unwrap()
    }
}

#[test]
fn an_agent_closes_hours_beside_its_pipeline_each_record_once_through_kills() {
    let world = World::on(Broker::shared().unwrap());
    world.bridge("agenthours", "");
    let mut records: Vec<(i32, i64, String)> =
        (0..3_000).map(|n: i64| ((n % 2) as i32, n * 185 / 3_000, format!("record {n}"))).collect();
    records.extend([(0, 195, "end".to_owned()), (1, 195, "end".to_owned()), (0, 5, "late".to_owned())]);
    let all: Vec<(i32, i64, &str)> = records.iter().map(|(p, m, text)| (*p, *m, text.as_str())).collect();
    let mut agent = world.scene.start_ready().unwrap();
    for (number, part) in all.chunks(500).enumerate() {
        world.produce("agenthours", part);
        if number == 2 {
            world.wait_hour("agenthours", 0);
        }
        agent.kill().unwrap();
        agent = world.scene.start_ready().unwrap();
    }
    for hour in 0..3 {
        world.wait_hour("agenthours", hour);
    }
    // The fourth hour is closed by later records; the late one is in its `late/`.
    world.produce("agenthours", &[(0, 255, "end"), (1, 255, "end")]);
    world.wait_hour("agenthours", 3);
    let open = jiff::Timestamp::from_millisecond(world.base + 4 * HOUR).unwrap().to_string();
    // All at once: figures are taken one after the other while it works, and a broker that stands still for a moment is a trouble.
    let bridge = world.wait_status("the fifth hour", "agenthours", |bridge| {
        let (source, sink) = (&bridge["sources"][0], &bridge["sinks"][0]);
        let has = |part: &Value, name: &str, least: u64| {
            part["metrics"][name].as_u64().is_some_and(|figure| figure >= least)
        };
        sink["open_bucket"].as_str().is_some_and(|bucket| bucket.starts_with(&open[..13]))
            && source["state"] == "running"
            && has(source, "events_out", 4)
            && has(sink, "events_delivered", 3)
    });
    let (source, sink) = (&bridge["sources"][0], &bridge["sinks"][0]);
    assert_eq!((&bridge["kind"], &bridge["failure"]), (&"bridge".into(), &Value::Null), "{bridge}");
    assert_eq!((&source["name"], &source["state"]), (&"agenthours".into(), &"running".into()));
    assert!(source["metrics"]["events_out"].as_u64().unwrap() >= 4, "{bridge}");
    assert!(sink["metrics"]["events_delivered"].as_u64().unwrap() >= 3, "{bridge}");
    assert_eq!(
        (&sink["metrics"]["bridge/late"], &sink["metrics"]["bridge/late_dropped"]),
        (&1.into(), &0.into())
    );
    assert!(sink["metrics"]["bridge/buckets_closed"].as_u64().unwrap() >= 1, "{bridge}");
    let words = world.words();
    for part in
        ["pipeline main", "bridge agenthours", "records read", "open bucket", "buckets closed", "late 1"]
    {
        assert!(words.contains(part), "{part:?} is not in {words}");
    }
    world.wait_status("lag", "agenthours", |bridge| {
        bridge["sources"][0]["metrics"]["kafka/agenthours/0/lag"].as_u64() == Some(0)
    });
    agent.stop().unwrap();

    let read = client::consume(&ConsumeOptions::new(&world.client, "agenthours")).unwrap();
    let mut expected: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    for record in &read {
        // The late one came when its hour was closed: it stands with the hour that was open.
        let hour =
            if record.text() == "late" { 3 } else { (record.timestamp_ms.unwrap() - world.base) / HOUR };
        expected.entry(hour).or_default().push(record.text());
    }
    for hour in 0..4 {
        let expected = expected.get_mut(&hour).unwrap();
        expected.sort();
        assert_eq!(&world.lines("agenthours", hour), expected, "hour {hour}");
    }
    assert!(!world.dir("agenthours", 4).exists(), "the fifth hour is open");
    assert_eq!(world.piped(), "one\ntwo\n", "the pipeline beside it");
}

#[test]
fn brokers_that_are_down_are_shown_and_waited_for() {
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    let world = World::on(&broker);
    world.bridge("agentoutage", "");
    world.produce("agentoutage", &[(0, 1, "a1"), (0, 75, "a75"), (1, 2, "b2")]);
    let agent = world.scene.start_ready().unwrap();
    // After an error of a busy broker they are read again, and counted.
    let has_read = |bridge: &Value| {
        bridge["sources"][0]["metrics"]["events_out"].as_u64().is_some_and(|events| events >= 3)
    };
    world.wait_status("the first records", "agentoutage", has_read);
    broker.kill().unwrap();
    let retrying = |bridge: &Value| bridge["sources"][0]["state"] == "retrying";
    // The first error may be a question that was under way, without the broker's address.
    world.wait_status("the outage", "agentoutage", |bridge| {
        let error = bridge["sources"][0]["error"].as_str().unwrap_or_default();
        retrying(bridge) && error.contains("agentoutage") && error.contains("127.0.0.1")
    });
    let pipelines = world.scene.answered().unwrap().0["pipelines"].clone();
    assert_eq!(pipelines[0]["sources"][0]["state"], "running", "the pipeline does not care: {pipelines}");
    assert!(world.words().contains("error for"), "{}", world.words());
    broker.restart().unwrap();
    // Without any new record it is seen that they are back.
    let running = |bridge: &Value| {
        bridge["sources"][0]["state"] == "running" && bridge["sources"][0]["error"].is_null()
    };
    world.wait_status("the end of the outage", "agentoutage", running);
    world.produce("agentoutage", &[(1, 75, "b75")]);
    world.wait_hour("agentoutage", 0);
    assert_eq!(world.lines("agentoutage", 0), ["a1", "b2"]);
    // An agent that starts while they are down waits too, and can be stopped.
    agent.stop().unwrap();
    broker.kill().unwrap();
    let agent = world.scene.start_ready().unwrap();
    world.wait_status("the outage from the start", "agentoutage", retrying);
    agent.stop().unwrap();
}

#[test]
fn a_bridge_that_fails_for_good_leaves_the_others_alone() {
    let world = World::on(Broker::shared().unwrap());
    world.bridge("agentgood", "");
    world.bridge("agentbad", "");
    let state = world.scene.root().join("hours/_flumen");
    fs::create_dir_all(&state).unwrap();
    fs::write(state.join("agentbad.progress"), "{}").unwrap();
    let mut agent = world.scene.start_ready().unwrap();
    let bridge = world.wait_status("the failure", "agentbad", |bridge| {
        // The state is looked at before the failure is.
        !bridge["failure"].is_null() && bridge["sinks"][0]["state"] == "failed"
    });
    assert!(bridge["failure"].as_str().unwrap().contains("agentbad.progress cannot be trusted"), "{bridge}");
    assert!(world.words().contains("FAILED:"));
    world.produce("agentgood", &[(0, 1, "one"), (0, 75, "end"), (1, 75, "end")]);
    world.wait_hour("agentgood", 0);
    fs::write(world.scene.input().join("b.log"), "three\n").unwrap();
    let goes_on = || Ok(world.piped().contains("three"));
    poll::until("the pipeline", limits::CONDITION, goes_on).unwrap();
    agent.expect_running().unwrap();
    agent.signal(rustix::process::Signal::TERM).unwrap();
    assert_eq!(agent.wait_exit(limits::STOP).unwrap().code(), Some(1), "as for failed pipelines");
}

/// Trees with done files: an hour waits for the last producer's, and comes once through a SIGKILL.
#[test]
fn an_agent_closes_hours_of_trees_when_their_done_files_are_there() {
    let scene = Scene::new().unwrap();
    let pipeline = "[source]\ntype = \"tail\"\npaths = [\"{in}/*.log\"]\n[sink]\ntype = \"file\"\npath = \"{out}/lines\"\n";
    scene.pipeline(pipeline).unwrap();
    let agent = fs::read_to_string(scene.config()).unwrap();
    fs::write(scene.config(), agent.replace("[\"main.toml\"]", "[\"main.toml\", \"tree.toml\"]")).unwrap();
    let (trees, hours) = (scene.root().join("trees"), scene.root().join("hours"));
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    let hour = |back: i64| now.checked_sub(jiff::SignedDuration::from_hours(back)).unwrap();
    let name = |back: i64| hour(back).strftime("%Y%m%d%H").to_string();
    let from = hour(3).strftime("%Y-%m-%dT%H:00:00Z").to_string();
    let text = format!(
        "[bridge]\npath = \"{}/{{topic}}/{{time:%Y-%m-%d/%H}}\"\nfrom = \"{from}\"\n\
         [tree]\nname = \"nginx\"\nproducers = [\"{tree}/a\", \"{tree}/b\"]\nfiles = \"access-%Y%m%d%H*\"\ndone = \"%Y%m%d%H.done\"\n",
        hours.display(),
        tree = trees.display(),
    );
    fs::write(scene.root().join("tree.toml"), text).unwrap();
    for producer in ["a", "b"] {
        fs::create_dir_all(trees.join(producer)).unwrap();
        for back in [3, 2] {
            let file = trees.join(producer).join(format!("access-{}.log", name(back)));
            fs::write(file, format!("{producer} {back}\n")).unwrap();
        }
        fs::write(trees.join(producer).join(format!("{}.done", name(3))), "").unwrap();
    }
    let dir = |back: i64| hours.join("nginx").join(hour(back).strftime("%Y-%m-%d/%H").to_string());
    let lines = |back: i64| {
        let parts = output::files(&dir(back)).unwrap().into_iter().filter(|file| !file.ends_with("_SUCCESS"));
        let mut lines: Vec<String> = parts
            .flat_map(|file| fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        lines.sort();
        lines
    };
    let closed = |back: i64| {
        poll::until("an hour", limits::CONDITION, || Ok(dir(back).join("_SUCCESS").is_file()))
            .unwrap_or_else(|error| panic!("{error}: {:?}", scene.status()));
    };
    let agent = scene.start_ready().unwrap();
    closed(3);
    assert_eq!(lines(3), ["a 3", "b 3"]);
    fs::write(trees.join("a").join(format!("{}.done", name(2))), "").unwrap();
    // The hour that waits is the open one in status.
    let open = format!("\"open_bucket\":\"{}", hour(2).strftime("%Y-%m-%dT%H"));
    let waits = || Ok(scene.status()?.is_some_and(|status| status.mentions(&open)));
    poll::until("the open hour in status", limits::CONDITION, waits)
        .unwrap_or_else(|error| panic!("{error}: {:?}", scene.status()));
    assert!(!dir(2).exists(), "an hour without its last done file");
    agent.kill().unwrap();
    let agent = scene.start_ready().unwrap();
    fs::write(trees.join("b").join(format!("{}.done", name(2))), "").unwrap();
    closed(2);
    assert_eq!((lines(3), lines(2)), (vec!["a 3".into(), "b 3".into()], vec!["a 2".into(), "b 2".into()]));
    agent.stop().unwrap();
}

#[test]
fn check_says_what_bridges_promise_and_where_they_are_wrong() {
    let scene = Scene::new().unwrap();
    let file = scene.root().join("hours.toml");
    let check = |text: &str| {
        fs::write(&file, text).unwrap();
        scene.flumen(&["check", "hours.toml"]).unwrap()
    };
    let right = "[bridge]\npath = \"/logs/{topic}/{time:%Y-%m-%d/%H}\"\n[kafka]\nbrokers = [\"k1:9092\"]\ntopics = [\"access\", \"errors\"]\n";
    let answer = check(right);
    assert!(answer.status.success(), "{}", answer.stderr);
    insta::assert_snapshot!("check_of_a_bridge", answer.stdout);
    let wrong = [
        format!("{right}[sink]\ntype = \"file\"\n"),
        right.replace("[kafka]", "from = \"noon\"\nlateness = \"soon\"\n[kafka]"),
        right.replace("[kafka]", "from = \"noon\"\n[kafka]"),
        format!("{right}tls_ca = \"none.pem\"\n"),
    ];
    let said: Vec<String> = wrong
        .iter()
        .map(|text| {
            let answer = check(text);
            assert_eq!(answer.status.code(), Some(78), "{}", answer.stdout);
            answer.stderr
        })
        .collect();
    insta::assert_snapshot!("errors_of_bridges", said.join("\n"));
}
