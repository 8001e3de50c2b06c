//! `flumen bridge` on a real broker: every record in the right hour's files, once, whatever happens.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use flumen_tests::agent::Agent;
use flumen_tests::kafka::client::{self, TxnEnd};
use flumen_tests::kafka::{Broker, BrokerOptions, Client, ConsumeOptions, Message};
use flumen_tests::scene::{Answer, Scene};
use flumen_tests::{limits, locate, output, poll};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
/// The lateness of all tests.
const LATENESS: i64 = 10 * MINUTE;

/// A full hour some hours ago: the broker neither refuses nor forgets it.
fn base_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    now / HOUR * HOUR - 8 * HOUR
}

fn text_of(time_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(time_ms).unwrap().to_string()
}

/// A topic with three partitions, and a scene to bridge it in.
struct World {
    scene: Scene,
    bootstrap: String,
    client: Client,
    topic: &'static str,
    base: i64,
}

impl World {
    fn new(topic: &'static str) -> World {
        World::on(Broker::shared().unwrap(), topic)
    }

    fn on(broker: &Broker, topic: &'static str) -> World {
        let (bootstrap, client) = (broker.bootstrap(), broker.client());
        client.create_topic(topic, 3, &[]).unwrap();
        World { scene: Scene::new().unwrap(), bootstrap, client, topic, base: base_ms() }
    }

    /// Records at (partition, minutes after the base, value).
    fn produce(&self, records: &[(i32, i64, &str)]) {
        let messages: Vec<Message> = records
            .iter()
            .map(|(partition, minute, value)| Message {
                partition: Some(*partition),
                timestamp_ms: Some(self.base + minute * MINUTE),
                ..Message::value(*value)
            })
            .collect();
        self.client.produce(self.topic, &messages).unwrap();
    }

    /// Writes the bridge's file, with output below `out`.
    fn config(&self, out: &str, bridge: &str, kafka: &str) -> PathBuf {
        let text = format!(
            "[bridge]\npath = \"{}/{{topic}}/{{time:%Y-%m-%d/%H}}\"\n{bridge}\n\
             [kafka]\nbrokers = [\"{}\"]\ntopics = [\"{}\"]\n{kafka}\n",
            self.scene.root().join(out).display(),
            self.bootstrap,
            self.topic,
        );
        let path = self.scene.root().join(format!("{out}.toml"));
        fs::write(&path, text).unwrap();
        path
    }

    fn flumen(&self, config: &Path, words: &[&str]) -> Answer {
        let config = config.display().to_string();
        self.scene.flumen(&[&["bridge", &config], words].concat()).unwrap()
    }

    /// Makes the buckets of some hours after the base.
    fn make(&self, config: &Path, hours: std::ops::Range<i64>) {
        let (from, to) = (text_of(self.base + hours.start * HOUR), text_of(self.base + hours.end * HOUR));
        let answer = self.flumen(config, &["--from", &from, "--to", &to]);
        assert!(answer.status.success(), "{}{}", answer.stdout, answer.stderr);
    }

    fn dir(&self, out: &str, hour: i64) -> PathBuf {
        let time = jiff::Timestamp::from_millisecond(self.base + hour * HOUR).unwrap();
        let time = time.to_zoned(jiff::tz::TimeZone::UTC).strftime("%Y-%m-%d/%H").to_string();
        self.scene.root().join(out).join(self.topic).join(time)
    }

    fn manifest(&self, out: &str, hour: i64) -> Value {
        let text = fs::read_to_string(self.dir(out, hour).join("_SUCCESS")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["content"].clone()
    }

    /// The lines of a bucket, as its `_SUCCESS` lists the files.
    fn lines(&self, out: &str, hour: i64, list: &str) -> Vec<String> {
        let manifest = self.manifest(out, hour);
        let added = manifest["added"].as_array().unwrap().iter();
        let files: Vec<Value> = match list {
            "added" => added.flat_map(|addition| addition["files"].as_array().unwrap().clone()).collect(),
            list => manifest[list].as_array().unwrap().clone(),
        };
        let mut lines = Vec::new();
        for file in files {
            let path = self.dir(out, hour).join(file["name"].as_str().unwrap());
            let unpack = if path.extension().is_some_and(|end| end == "gz") { "gzip -dc" } else { "cat" };
            let text =
                Command::new("sh").args(["-c", &format!("{unpack} < {}", path.display())]).output().unwrap();
            assert!(text.status.success());
            lines.extend(String::from_utf8(text.stdout).unwrap().lines().map(str::to_owned));
        }
        lines
    }

    /// What the definition says, from what another client reads: per hour the records in time, and for each
    /// hour's run the late ones.
    fn expected(&self, hours: i64) -> (Vec<Vec<String>>, Vec<Vec<String>>) {
        let records = client::consume(&ConsumeOptions::new(&self.client, self.topic)).unwrap();
        let (mut in_time, mut late) = (vec![vec![]; hours as usize], vec![vec![]; hours as usize]);
        let mut watermarks: BTreeMap<i32, i64> = BTreeMap::new();
        for record in &records {
            let time = record.timestamp_ms.unwrap() - self.base;
            let seen = watermarks.entry(record.partition).or_insert(i64::MIN / 2);
            // The hour whose run passes here: the first that is not closed after this record.
            let open = ((*seen).max(time) - LATENESS).div_euclid(HOUR).max(0);
            if *seen >= (time.div_euclid(HOUR) + 1) * HOUR + LATENESS {
                if open < hours {
                    late[open as usize].push(record.text());
                }
            } else if time.div_euclid(HOUR) < hours {
                in_time[time.div_euclid(HOUR) as usize].push(record.text());
            }
            *seen = (*seen).max(time);
        }
        (in_time, late)
    }

    fn expect(&self, out: &str, hours: i64) {
        let (in_time, late) = self.expected(hours);
        for hour in 0..hours {
            assert_eq!(self.lines(out, hour, "files"), in_time[hour as usize], "hour {hour}");
            assert_eq!(self.lines(out, hour, "late_files"), late[hour as usize], "late in hour {hour}");
            assert_eq!(self.manifest(out, hour)["records"], in_time[hour as usize].len());
        }
    }
}

/// All files with their bytes, without the bridge's own directory.
fn tree(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let all = output::files(dir).unwrap().into_iter();
    let relative = |path: &Path| path.strip_prefix(dir).unwrap().display().to_string();
    all.filter(|path| !relative(path).starts_with("_flumen/"))
        .map(|path| (relative(&path), fs::read(&path).unwrap()))
        .collect()
}

/// Trees with the same names and bytes; says the first difference as text.
fn expect_same(left: &BTreeMap<String, Vec<u8>>, right: &BTreeMap<String, Vec<u8>>) {
    assert_eq!(left.keys().collect::<Vec<_>>(), right.keys().collect::<Vec<_>>());
    for (name, bytes) in left {
        let same = right[name] == *bytes;
        assert!(
            same,
            "{name}: {}\n{}",
            String::from_utf8_lossy(bytes),
            String::from_utf8_lossy(&right[name])
        );
    }
}

/// Three partitions, three hours and a bit; disorder within the lateness, and records beyond it.
const RECORDS: &[(i32, i64, &str)] = &[
    (0, 0, "a0"),
    (0, 30, "a30"),
    (0, 61, "a61"),
    (0, 59, "a59 out of order"),
    (0, 69, "a69"),
    (0, 58, "a58 just in time"),
    (0, 70, "a70 closes the first hour"),
    (0, 57, "a57 late"),
    (0, 119, "a119"),
    (0, 131, "a131"),
    (0, 100, "a100 late"),
    (0, 5, "a5 very late"),
    (0, 185, "a185"),
    (0, 179, "a179"),
    (0, 190, "a190"),
    (1, 10, "b10"),
    (1, 200, "b200 skips hours"),
    (1, 20, "b20 late"),
    (2, 179, "c179"),
    (2, 120, "c120"),
    (2, 60, "c60"),
    (2, 119, "c119 late"),
    (2, 250, "c250"),
];

#[test]
fn every_record_is_in_its_hour_once_and_a_run_can_be_repeated() {
    let world = World::new("hours");
    let undone = [Message {
        partition: Some(1),
        timestamp_ms: Some(world.base + 12 * MINUTE),
        ..Message::value("undone")
    }];
    world.client.produce_txn(world.topic, "bridge-undone", &undone, TxnEnd::Abort).unwrap();
    // What comes behind it can be read then: a partition that seems to be silent is closed by the clock.
    world.client.wait_ended(world.topic).unwrap();
    world.produce(RECORDS);
    let config = world.config("out", "", "workers = 2");
    world.make(&config, 0..3);
    world.expect("out", 3);
    let first = tree(&world.scene.root().join("out"));

    // What is finished is left alone.
    world.make(&config, 0..3);
    expect_same(&tree(&world.scene.root().join("out")), &first);

    // A file that is lost, or cut, comes back from the offsets in `_SUCCESS`.
    let names: Vec<&String> = first.keys().filter(|name| name.contains("part-")).collect();
    let lost = |at: usize| world.scene.root().join("out").join(names[at]);
    fs::remove_file(lost(0)).unwrap();
    fs::write(lost(names.len() - 1), "x").unwrap();
    world.make(&config, 0..3);
    expect_same(&tree(&world.scene.root().join("out")), &first);

    // Files that a run left which did not live to write `_SUCCESS` are not of the bucket.
    fs::write(world.dir("out", 0).join("part-p00009-left.log"), "left behind\n").unwrap();
    fs::remove_file(world.dir("out", 0).join("_SUCCESS")).unwrap();
    world.make(&config, 0..3);
    expect_same(&tree(&world.scene.root().join("out")), &first);

    // All anew, in any order, with another number of workers, hour by hour: the same bytes.
    fs::remove_dir_all(world.scene.root().join("out")).unwrap();
    let config = world.config("out", "", "workers = 3");
    for hour in [2, 0, 1] {
        let answer = world.flumen(&config, &["--hour", &text_of(world.base + hour * HOUR)]);
        assert!(answer.status.success(), "{}", answer.stderr);
    }
    expect_same(&tree(&world.scene.root().join("out")), &first);
    assert_eq!(world.manifest("out", 0)["partitions"][0]["commit"], 6);
    assert_eq!(
        world.manifest("out", 1)["partitions"][0]["read_start"],
        2,
        "before the end of the first hour"
    );
}

#[test]
fn late_records_are_appended_or_dropped() {
    let world = World::new("late");
    world.produce(RECORDS);
    let (in_time, late) = world.expected(3);
    let config = world.config("append", "late = \"append\"", "");
    world.make(&config, 0..3);
    let mut all: Vec<String> = (0..3).flat_map(|hour| world.lines("append", hour, "added")).collect();
    let mut expected = late.concat();
    all.sort();
    expected.sort();
    assert_eq!(all, expected);
    assert_eq!(world.lines("append", 0, "added"), ["a57 late", "a5 very late"]);
    let manifest = world.manifest("append", 0);
    assert_eq!(manifest["generation"], 3, "one for each later hour that brought late records: {manifest}");
    assert_eq!(manifest["records"], in_time[0].len() + 2);
    let before = tree(&world.scene.root().join("append"));

    // A run that did not live to write its own marker is repeated; what it has appended is not appended twice.
    fs::remove_file(world.dir("append", 2).join("_SUCCESS")).unwrap();
    world.make(&config, 0..3);
    expect_same(&tree(&world.scene.root().join("append")), &before);

    let config = world.config("drop", "late = \"drop\"", "");
    world.make(&config, 0..3);
    let dropped: Vec<Value> =
        (0..3).map(|hour| world.manifest("drop", hour)["late"]["dropped"].clone()).collect();
    assert_eq!(dropped, late.iter().map(Vec::len).collect::<Vec<_>>());
    for hour in 0..3 {
        assert_eq!(world.lines("drop", hour, "files"), in_time[hour as usize]);
    }
}

#[test]
fn the_number_and_the_size_of_files_are_chosen() {
    let world = World::new("files");
    let value = "x".repeat(1_000);
    let lines: Vec<String> = (0..3_000).map(|number| format!("{number} {value}")).collect();
    let mut records: Vec<(i32, i64, &str)> = lines
        .iter()
        .enumerate()
        .map(|(at, line)| ((at % 3) as i32, (at % 60) as i64, line.as_str()))
        .collect();
    records.extend((0..3).map(|partition| (partition, 80, "end")));
    world.produce(&records);
    let (in_time, _) = world.expected(1);
    for (out, options, least, most) in [
        ("one", "files_per_bucket = 1", 1, 1),
        ("two", "files_per_bucket = 2\ncompression = \"gzip\"", 2, 2),
        ("many", "files_per_bucket = 9", 9, 9),
        ("each", "compression = \"gzip\"", 3, 3),
        ("size", "file_size = \"300 KiB\"", 6, 12),
    ] {
        let config = world.config(out, options, "");
        world.make(&config, 0..1);
        let count = world.manifest(out, 0)["files"].as_array().unwrap().len();
        assert!((least..=most).contains(&count), "{out}: {count} files");
        assert_eq!(output::files(&world.dir(out, 0)).unwrap().len(), count + 1, "nothing else lies there");
        assert_eq!(world.lines(out, 0, "files"), in_time[0], "{out}");
    }
}

#[test]
fn times_of_headers_and_bodies_and_json() {
    let world = World::new("times");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    let message = |partition: i32, minute: i64, value: &str| {
        let time = text_of(world.base + minute * MINUTE);
        Message {
            key: Some("k".into()),
            headers: vec![("at".into(), Some(time.as_str().into()))],
            partition: Some(partition),
            timestamp_ms: Some(now),
            ..Message::value(format!("{{\"t\":\"{time}\",\"v\":\"{value}\"}}"))
        }
    };
    let mut messages = vec![message(0, 5, "five"), message(0, 65, "next"), message(0, 59, "fifty-nine")];
    messages.extend((0..3).map(|partition| message(partition, 75, "end")));
    world.client.produce(world.topic, &messages).unwrap();
    for (out, options) in
        [("header", "time = \"header.at\""), ("body", "time = \"body\"\ntime_pattern = '\"t\":\"([^\"]+)\"'")]
    {
        let config = world.config(out, "format = \"json\"", options);
        world.make(&config, 0..1);
        let lines: Vec<Value> =
            world.lines(out, 0, "files").iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2, "{out}: {lines:?}");
        assert!(lines[0]["body"].as_str().unwrap().contains("five"));
        assert!(lines[1]["body"].as_str().unwrap().contains("fifty-nine"));
        assert_eq!(
            (&lines[1]["headers"]["key"], &lines[1]["headers"]["partition"]),
            (&"k".into(), &"0".into())
        );
        assert_eq!((&lines[1]["position"], &lines[1]["headers"]["topic"]), (&2.into(), &"times".into()));
    }
}

/// Many records in disorder, three hours of them; every partition ends with one that closes the third hour.
fn many(random: &mut SmallRng, count: i64) -> Vec<(i32, i64, String)> {
    let mut records: Vec<(i32, i64, String)> = (0..count)
        .map(|number| {
            let minute = number * 185 / count - random.random_range(0..15);
            (random.random_range(0..3), minute.max(0), format!("{number} {}", "y".repeat(100)))
        })
        .collect();
    records.extend((0..3).map(|partition| (partition, 195, "end".to_owned())));
    records
}

fn borrowed(records: &[(i32, i64, String)]) -> Vec<(i32, i64, &str)> {
    records.iter().map(|(partition, minute, text)| (*partition, *minute, text.as_str())).collect()
}

fn spawn(world: &World, config: &Path, words: &[&str]) -> Agent {
    let mut command = Command::new(locate::flumen().unwrap());
    command.arg("bridge").arg(config).args(words).env("NO_COLOR", "1").current_dir(world.scene.root());
    Agent::spawn(command, &world.scene.log()).unwrap()
}

#[test]
fn a_run_that_is_killed_anywhere_and_repeated_gives_the_same_bytes() {
    const KILLS_MIN: u32 = 3;
    let world = World::new("kills");
    let seed = base_ms() as u64 ^ u64::from(std::process::id());
    eprintln!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    world.produce(&borrowed(&many(&mut random, 20_000)));
    for (late, compression) in [("side", "zstd"), ("append", "gzip")] {
        let options = format!("late = \"{late}\"\ncompression = \"{compression}\"\nfiles_per_bucket = 2");
        let (whole, killed) = (format!("{late}-whole"), format!("{late}-killed"));
        let begun = Instant::now();
        world.make(&world.config(&whole, &options, ""), 0..3);
        let mut took = begun.elapsed();
        let config = world.config(&killed, &options, "");
        let (from, to) = (text_of(world.base), text_of(world.base + 3 * HOUR));
        let mut kills = 0;
        for attempt in 1.. {
            let mut agent = spawn(&world, &config, &["--from", &from, "--to", &to]);
            // Later with each attempt, so that it ends.
            let limit = took.mul_f64(random.random_range(0.0..0.3) + f64::from(attempt) * 0.06);
            match agent.wait_exit(limit) {
                Ok(status) if status.success() && kills >= KILLS_MIN => break,
                Ok(status) if status.success() => {
                    // The machine was busier before: once more from the beginning, with less patience.
                    took /= 2;
                    fs::remove_dir_all(world.scene.root().join(&killed)).unwrap();
                }
                Ok(status) => panic!("{status}: {}", agent.log_tail()),
                Err(_) => match agent.kill() {
                    Ok(()) => kills += 1,
                    Err(error) => assert!(format!("{error:#}").contains("exit status: 0"), "{error:#}"),
                },
            }
        }
        eprintln!("{kills} kills");
        let wrong = tree(&world.scene.root().join(&whole)) != tree(&world.scene.root().join(&killed));
        assert!(!wrong, "{late}: the trees differ");
    }
    let in_files: usize = (0..3).map(|hour| world.lines("append-killed", hour, "files").len()).sum();
    let added: usize = (0..3).map(|hour| world.lines("append-killed", hour, "added").len()).sum();
    let (in_time, late) = world.expected(3);
    assert_eq!((in_files, added), (in_time.concat().len(), late.concat().len()));
}

#[test]
fn follow_closes_hours_by_watermark_and_goes_on_after_a_kill() {
    let world = World::new("follow");
    let mut random = SmallRng::seed_from_u64(7);
    let records = many(&mut random, 3_000);
    // Idle partitions stay open: what closes an hour here is the watermark.
    let config = world.config("follow", "", "idle = \"2d\"");
    let from = text_of(world.base);
    let words = ["--follow", "--from", from.as_str()];
    let marker = |hour: i64| world.dir("follow", hour).join("_SUCCESS");
    let mut agent = spawn(&world, &config, &words);
    let parts: Vec<&[(i32, i64, String)]> = records.chunks(records.len() / 6 + 1).collect();
    for (number, part) in parts.iter().enumerate() {
        world.produce(&borrowed(part));
        if number == 2 {
            poll::until("the first hour", limits::CONDITION, || Ok(marker(0).is_file())).unwrap();
            assert!(!marker(1).is_file(), "the second hour is still open");
        }
        if number % 2 == 0 {
            agent.kill().unwrap();
            agent = spawn(&world, &config, &words);
        }
    }
    poll::until("the third hour", limits::CONDITION, || Ok(marker(2).is_file())).unwrap();
    assert!(!marker(3).is_file(), "the fourth hour is still open");
    agent.stop().unwrap();
    world.expect("follow", 3);
    let config = world.config("named", "", "idle = \"2d\"");
    world.make(&config, 0..3);
    assert!(
        tree(&world.scene.root().join("follow")) == tree(&world.scene.root().join("named")),
        "the same bytes either way"
    );
}

#[test]
fn follow_waits_for_brokers_and_goes_on_alone() {
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    let world = World::on(&broker, "outage");
    let config = world.config("out", "", "idle = \"2d\"");
    let from = text_of(world.base);
    let mut agent = spawn(&world, &config, &["--follow", "--from", &from]);
    world.produce(&[(0, 1, "a1"), (0, 75, "a75"), (1, 75, "b75"), (2, 30, "c30")]);
    agent.wait_log("following", limits::CONDITION).unwrap();
    broker.kill().unwrap();
    agent.wait_log("127.0.0.1", limits::CONDITION).unwrap();
    broker.restart().unwrap();
    world.produce(&[(2, 59, "c59"), (2, 75, "c75")]);
    let marker = world.dir("out", 0).join("_SUCCESS");
    poll::until("the first hour", limits::CONDITION, || Ok(marker.is_file())).unwrap();
    agent.stop().unwrap();
    world.expect("out", 1);
}

/// A topic that is made anew has none of the offsets that are on record: that is said, and not tried again for ever.
#[test]
fn a_topic_that_was_made_anew_is_told_as_such() {
    let world = World::new("remade");
    world.produce(&[(0, 1, "a1"), (0, 75, "a75"), (1, 75, "b75"), (2, 75, "c75")]);
    let config = world.config("out", "", "idle = \"2d\"\ngaps = \"count\"");
    let from = text_of(world.base);
    let agent = spawn(&world, &config, &["--follow", "--from", &from]);
    let progress = world.scene.root().join("out/_flumen/remade.progress");
    poll::until("the first hour", limits::CONDITION, || Ok(progress.is_file())).unwrap();
    agent.kill().unwrap();
    world.client.delete_topic(world.topic).unwrap();
    poll::until("the topic anew", limits::CONDITION, || {
        Ok(world.client.create_topic(world.topic, 3, &[]).is_ok())
    })
    .unwrap();
    let answer = world.flumen(&config, &["--follow"]);
    assert_eq!(answer.status.code(), Some(1), "{}{}", answer.stdout, answer.stderr);
    for part in ["partition 0", "offset 1", "ends at 0", "made anew", "remade.progress"] {
        assert!(answer.stderr.contains(part), "{part:?} is not in: {}", answer.stderr);
    }
}

/// `examples/kafka-to-files`: what its README promises.
#[test]
fn the_example_makes_hours() {
    let world = World::new("access");
    let line = |minute: i64, name: &str| {
        format!("{{\"time\":\"{}\",\"path\":\"/{name}\"}}", text_of(world.base + minute * MINUTE))
    };
    let lines = [line(1, "a"), line(65, "b"), line(59, "c")];
    let mut records: Vec<(i32, i64, &str)> = lines.iter().map(|line| (0, 300, line.as_str())).collect();
    let closing = line(75, "end");
    records.extend((0..3).map(|partition| (partition, 300, closing.as_str())));
    world.produce(&records);
    let text = fs::read_to_string(locate::repository().unwrap().join("examples/kafka-to-files/bridge.toml"))
        .unwrap();
    let config = world.scene.root().join("bridge.toml");
    let address = &world.bootstrap;
    assert!(text.contains("127.0.0.1:9092"));
    fs::write(&config, text.replace("127.0.0.1:9092", address)).unwrap();
    let mut agent = spawn(&world, &config, &["--follow"]);
    let marker = world.dir("out", 0).join("_SUCCESS");
    poll::until("the first hour", limits::CONDITION, || Ok(marker.is_file())).unwrap();
    agent.expect_running().unwrap();
    agent.stop().unwrap();
    assert_eq!(world.manifest("out", 0)["records"], 2);
    let names = output::files(&world.dir("out", 0)).unwrap();
    assert!(names.iter().any(|name| name.ends_with("part-00000-of-00001.log.zst")), "{names:?}");
}

#[test]
fn silent_partitions_are_closed_by_the_clock() {
    let world = World::new("idle");
    world.produce(&[(0, 10, "one"), (0, 70, "close"), (1, 20, "two")]);
    let config = world.config("out", "", "idle = \"0s\"");
    world.make(&config, 0..1);
    assert_eq!(world.lines("out", 0, "files"), ["one", "two"]);
    let manifest = world.manifest("out", 0);
    let closed: Vec<&Value> =
        (0..3).map(|partition| &manifest["partitions"][partition]["closed_by"]).collect();
    assert_eq!(closed, ["watermark", "idle", "idle"]);
    // What comes after that is late, and in the run of the next hour.
    world.produce(&[(1, 30, "too late"), (1, 135, "close")]);
    world.make(&config, 1..2);
    assert_eq!(world.lines("out", 1, "late_files"), ["too late"]);
    assert_eq!(world.lines("out", 1, "files"), ["close"]);

    // Out of order: an hour that is made after a later one leaves to it what that has taken over.
    let config = world.config("order", "", "idle = \"0s\"");
    world.make(&config, 2..3);
    world.produce(&[(2, 15, "for the first"), (2, 125, "for the third hour")]);
    world.make(&config, 3..4);
    world.make(&config, 0..2);
    let lists =
        |list: &str| -> Vec<Vec<String>> { (0..4).map(|hour| world.lines("order", hour, list)).collect() };
    let (own, late) = (lists("files").concat(), lists("late_files"));
    assert_eq!(own, ["one", "two", "too late", "close", "close"]);
    assert_eq!(late[3], ["for the first", "for the third hour"]);
}

#[test]
fn trees_with_done_files() {
    let scene = Scene::new().unwrap();
    let config = scene.root().join("tree.toml");
    let input = scene.input().display().to_string();
    let text = format!(
        "[bridge]\npath = \"{}/{{topic}}/{{time:%Y-%m-%d/%H}}\"\ncompression = \"gzip\"\nfiles_per_bucket = 1\n\
         [tree]\nname = \"nginx\"\nproducers = [\"{input}/a\", \"{input}/b\"]\nfiles = \"access-%Y%m%d%H*\"\ndone = \"%Y%m%d%H.done\"\n",
        scene.output.display()
    );
    fs::write(&config, text).unwrap();
    for producer in ["a", "b"] {
        let dir = scene.input().join(producer);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("access-2026112107-1.log"), format!("{producer} one\n{producer} two\n")).unwrap();
        fs::write(dir.join("access-2026112107-2.log"), format!("{producer} without an end")).unwrap();
        fs::write(dir.join("access-2026112108.log"), "another hour\n").unwrap();
    }
    let packed = scene.input().join("b/access-2026112107-1.log");
    assert!(Command::new("gzip").arg(&packed).status().unwrap().success());
    let hour = |hour: &str| scene.flumen(&["bridge", &config.display().to_string(), "--hour", hour]).unwrap();
    fs::write(scene.input().join("a/2026112107.done"), "").unwrap();
    let answer = hour("2026-11-21T07");
    assert_eq!(answer.status.code(), Some(75), "{}", answer.stderr);
    assert!(
        answer.stderr.contains("1 of 2 done files are missing")
            && answer.stderr.contains("b/2026112107.done"),
        "{}",
        answer.stderr
    );
    assert!(!scene.output.join("nginx/2026-11-21").exists());

    fs::write(scene.input().join("b/2026112107.done"), "").unwrap();
    let answer = hour("2026-11-21T07");
    assert!(answer.status.success(), "{}", answer.stderr);
    let dir = scene.output.join("nginx/2026-11-21/07");
    let text = Command::new("gzip").arg("-dc").arg(dir.join("part-00000-of-00001.log.gz")).output().unwrap();
    let expected = "a one\na two\na without an end\nb one\nb two\nb without an end\n";
    assert_eq!(String::from_utf8(text.stdout).unwrap(), expected);
    let before = tree(&scene.output);
    assert_eq!(before.len(), 2);
    fs::remove_dir_all(&dir).unwrap();
    assert!(hour("2026-11-21T07").status.success());
    assert_eq!(tree(&scene.output), before);

    // A file that is cut in the middle of its compressed data makes no bucket.
    let bytes = fs::read(packed.with_extension("log.gz")).unwrap();
    fs::write(packed.with_extension("log.gz"), &bytes[..bytes.len() - 9]).unwrap();
    fs::remove_dir_all(&dir).unwrap();
    let answer = hour("2026-11-21T07");
    assert_eq!(answer.status.code(), Some(1));
    assert!(answer.stderr.contains("access-2026112107-1.log.gz: cannot be read"), "{}", answer.stderr);
    assert!(!dir.exists());
}

#[test]
fn what_is_wrong_is_said_and_nothing_is_touched() {
    let world = World::new("wrong");
    world.produce(&[(0, 10, "one"), (0, 70, "close"), (1, 70, "close"), (2, 70, "close")]);
    let config = world.config("out", "", "");
    let hour = text_of(world.base);
    let said = |config: &Path, words: &[&str], code: i32, parts: &[&str]| {
        let answer = world.flumen(config, words);
        assert_eq!(answer.status.code(), Some(code), "{words:?}: {}{}", answer.stdout, answer.stderr);
        for part in parts {
            assert!(answer.stderr.contains(part), "{part:?} is not in: {}", answer.stderr);
        }
    };
    // An hour that is not over.
    let future = text_of(world.base + 30 * HOUR);
    said(&config, &["--hour", &future], 75, &["is not complete yet", "partition", "try again later"]);
    assert!(!world.dir("out", 30).exists());
    // A time that is none, and too many hours.
    said(&config, &["--hour", "noon"], 2, &["\"noon\" is no time"]);
    said(&config, &["--from", "1900-01-01", "--to", "2026-01-01"], 2, &["buckets apart"]);
    said(&config, &[], 2, &["--hour"]);
    said(&config, &["--from", &hour], 2, &["--from needs --to or --follow"]);

    // A manifest that was changed, or is of another topic.
    world.make(&config, 0..1);
    let marker = world.dir("out", 0).join("_SUCCESS");
    let right = fs::read_to_string(&marker).unwrap();
    let before = tree(&world.scene.root().join("out"));
    fs::write(&marker, right.replace("\"commit\": 1", "\"commit\": 2")).unwrap();
    let changed = tree(&world.scene.root().join("out"));
    assert_ne!(before, changed);
    said(
        &config,
        &["--hour", &hour],
        1,
        &["_SUCCESS cannot be trusted: its sum is wrong", "remove the file"],
    );
    fs::write(&marker, "").unwrap();
    said(&config, &["--hour", &hour], 1, &["_SUCCESS cannot be trusted", "Nothing was changed"]);
    fs::remove_file(&marker).unwrap();
    world.make(&config, 0..1);
    expect_same(&tree(&world.scene.root().join("out")), &before);

    // Settings that would give other files than the ones that are missing.
    let file = before.keys().find(|name| name.contains("part-")).unwrap();
    fs::remove_file(world.scene.root().join("out").join(file)).unwrap();
    let zstd = world.config("out", "compression = \"zstd\"", "");
    said(&zstd, &["--hour", &hour], 1, &["the settings of files have changed", "Nothing was changed"]);
    assert_eq!(tree(&world.scene.root().join("out")).len(), before.len() - 1);

    // Two bridges.
    let follow = world.config("out", "", "idle = \"2d\"");
    let mut agent = spawn(&world, &follow, &["--follow"]);
    agent.wait_log("following", limits::CONDITION).unwrap();
    said(&follow, &["--hour", &hour], 75, &["another bridge is at work"]);
    agent.kill().unwrap();

    // Progress that cannot be read.
    let progress = world.scene.root().join("out/_flumen/wrong.progress");
    fs::write(&progress, "{}").unwrap();
    said(&follow, &["--follow"], 1, &["wrong.progress cannot be trusted", "remove the file"]);
    assert_eq!(fs::read_to_string(&progress).unwrap(), "{}");

    // Retention took the beginning.
    world.client.delete_records(world.topic, 0, 1).unwrap();
    let config = world.config("gone", "", "");
    said(
        &config,
        &["--hour", &hour],
        1,
        &["retention has removed records", "partition 0", "gaps = \"count\""],
    );
    let config = world.config("gone", "", "gaps = \"count\"");
    world.make(&config, 0..1);
    assert_eq!(world.manifest("gone", 0)["records"], 0);
    let config = world.config("none", "", "");

    // A topic, and a broker, that are not there.
    let text = fs::read_to_string(&config).unwrap();
    let other = world.scene.root().join("other.toml");
    fs::write(&other, text.replace("[\"wrong\"]", "[\"nowhere\"]")).unwrap();
    said(&other, &["--hour", &hour], 1, &["topic `nowhere`", "does not exist"]);
    said(&other, &["--follow", "--from", &hour], 1, &["topic `nowhere`", "does not exist"]);
    fs::write(&other, text.replace(&world.bootstrap, "127.0.0.1:1")).unwrap();
    said(&other, &["--hour", &hour], 1, &["no answer from 127.0.0.1:1"]);
}

#[test]
fn a_wrong_file_has_all_its_errors_with_their_places() {
    let scene = Scene::new().unwrap();
    let config = scene.root().join("bridge.toml");
    let said = |text: &str| {
        fs::write(&config, text).unwrap();
        let answer =
            scene.flumen(&["bridge", &config.display().to_string(), "--hour", "2026-11-21T07"]).unwrap();
        assert_eq!(answer.status.code(), Some(78), "{}", answer.stderr);
        answer.stderr
    };
    let all =
        said("[bridge]\nlateness = \"soon\"\nlate = \"never\"\ncolour = 1\n[kafka]\nbrokers = [\"k:1\"]\n");
    for part in
        ["needs `path`", "needs `topics`", "`lateness`", "`late`", "no key `colour`", "bridge.toml:2:"]
    {
        assert!(all.contains(part), "{part} is not in {all}");
    }
    let kafka = "[kafka]\nbrokers = [\"k:1\"]\ntopics = [\"a\", \"b\"]\n";
    for (text, part) in [
        (format!("[bridge]\npath = \"/l/{{topic}}/{{time:%H}}\"\n{kafka}"), "is the same for the buckets"),
        (format!("[bridge]\npath = \"/l/{{time:%Y%m%d%H}}\"\n{kafka}"), "would share their directories"),
        (format!("[bridge]\npath = \"/l/{{header.x}}/{{time:%Y%m%d%H}}\"\n{kafka}"), "{header.x}"),
        ("[bridge]\npath = \"/l/{topic}/{time:%Y%m%d%H}\"\n".into(), "nothing to read"),
        (kafka.into(), "no [bridge]"),
        (
            format!("[bridge]\npath = \"/l/{{topic}}/{{time:%Y%m%d%H}}\"\n{kafka}time = \"body\"\n"),
            "time_pattern",
        ),
    ] {
        let stderr = said(&text);
        assert!(stderr.contains(part), "{part} is not in {stderr}");
    }
}
