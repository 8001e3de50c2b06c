//! The agent is killed between every two steps of a delivery to a real Kafka broker, and `flumen bridge` between every two of its
//! steps on the file system, each in turn (`docs/faults.md`), and started again: each line is in the topic once, or once in the
//! quarantine; each record is in the files of its hour once. A point that is never reached fails.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use flumen_tests::agent::Agent;
use flumen_tests::generator::{self, Load, Rotation};
use flumen_tests::kafka::{Broker, Client, Message, client};
use flumen_tests::kill_points::{is_of_disk, points, walk_each};
use flumen_tests::oracle::Verdict;
use flumen_tests::scene::Scene;
use flumen_tests::{flow, limits, locate, oracle, output, poll};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use serde_json::Value;

/// Agents side by side: they wait for the broker more than they work.
const AGENTS: usize = 3;

/// Whose points are walked here.
const PLACES: [&str; 3] = ["kafka-sink.", "sink.", "bridge."];

/// The kill points that begin so.
fn points_of(places: &[&str]) -> BTreeSet<String> {
    let all = points().unwrap();
    let known = |point: &String| is_of_disk(point) || PLACES.iter().any(|place| point.starts_with(place));
    assert!(all.iter().all(known), "a point that no test walks: {all:?}");
    all.into_iter().filter(|point| places.iter().any(|place| point.starts_with(place))).collect()
}

/// Waits for an agent that is to kill itself.
fn wait_killed(agent: &mut Agent, faults: &str) {
    let status = agent.wait_exit(limits::KILL_POINT);
    let status = status.unwrap_or_else(|error| panic!("{faults} is never reached: {error:#}"));
    assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{faults}: {}", agent.log_tail());
    assert!(agent.log().unwrap().contains("killed on purpose"), "{faults}: {}", agent.log_tail());
}

/// What is between the source and the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// A file journal, and one lane.
    File,
    /// A file journal, and two lanes, whose transactions end side by side.
    Lanes,
    /// No copy of the events: the topic decides what is promised, and a file sink is of the same place.
    SourceBacked,
    /// A topic of the same broker, whose acknowledgement is in the sink's transaction.
    Channel,
}

/// A kill: in which flow, where, and the how manieth time.
type Kill = (Flow, &'static str, u32);

/// Passed again and again: some times before, so that everything is under way.
const UNDER_WAY: u32 = 3;

const KILLS: &[Kill] = &[
    (Flow::File, "kafka-sink.start.taken-over", 1),
    (Flow::File, "kafka-sink.start.claimed", 1),
    (Flow::File, "kafka-sink.transaction.begun", UNDER_WAY),
    (Flow::File, "kafka-sink.records.handed-over", UNDER_WAY),
    (Flow::File, "kafka-sink.records.acknowledged", UNDER_WAY),
    (Flow::File, "kafka-sink.refusal.taken-back", 1),
    (Flow::File, "sink.refused-on-record", 1),
    (Flow::File, "kafka-sink.progress.handed-over", UNDER_WAY),
    (Flow::File, "kafka-sink.progress.acknowledged", UNDER_WAY),
    (Flow::File, "kafka-sink.transaction.committed", UNDER_WAY),
    // The first transaction of all is that of one lane, and says that there are two from then on.
    (Flow::Lanes, "kafka-sink.transaction.committed", 1),
    (Flow::Lanes, "kafka-sink.progress.acknowledged", UNDER_WAY),
    (Flow::Lanes, "kafka-sink.transaction.committed", UNDER_WAY),
    (Flow::Lanes, "kafka-sink.transaction.committed", UNDER_WAY + 1),
    (Flow::SourceBacked, "kafka-sink.transaction.begun", UNDER_WAY),
    (Flow::SourceBacked, "kafka-sink.records.acknowledged", UNDER_WAY),
    (Flow::SourceBacked, "kafka-sink.refusal.taken-back", 1),
    (Flow::SourceBacked, "sink.promised", UNDER_WAY),
    (Flow::SourceBacked, "kafka-sink.progress.acknowledged", UNDER_WAY),
    (Flow::SourceBacked, "kafka-sink.transaction.committed", UNDER_WAY),
    (Flow::SourceBacked, "sink.promise-kept", 1),
    // What is in the channel comes at once, so one transaction has most of it.
    (Flow::Channel, "kafka-sink.offsets.sent", 1),
    (Flow::Channel, "kafka-sink.progress.acknowledged", 1),
    (Flow::Channel, "kafka-sink.transaction.committed", 1),
];

/// A kill before the one at a point, so that a start finds what that point is about.
fn before(point: &str) -> Option<&'static str> {
    (point == "sink.promise-kept").then_some("kafka-sink.transaction.committed:3")
}

/// Lines of three files: many transactions of [`TRANSACTION`].
const LINES: u64 = 900;
/// Bodies of a transaction, some batches of them.
const TRANSACTION: &str = "8 KiB";
/// The topic takes no more; lines are shorter.
const RECORD_BYTES_MAX: &str = "3000";
/// A line of the fourth file.
const LONG_BYTES: usize = 6_000;
/// Lines of the fourth file, where there is one: the broker refuses them, a second or two for each.
const LONG_LINES: u64 = 2;

/// Whether a walk is about lines that the broker refuses.
fn has_long_lines(point: &str) -> bool {
    point.contains("refus")
}

/// One agent and its topic.
struct Delivery {
    scene: Scene,
    client: Client,
    topic: String,
    /// Lines that have to come, per file.
    written: Vec<u64>,
    /// Lines that have to be in quarantine: those of the fourth file.
    long_lines: u64,
    /// Files of a sink beside the one to Kafka.
    beside: Option<PathBuf>,
}

impl Delivery {
    fn new((flow, point, count): Kill) -> Delivery {
        let broker = Broker::shared().unwrap();
        let client = broker.client();
        let topic = format!("{flow:?}-{point}-{count}").replace('.', "-").to_lowercase();
        client.create_topic(&topic, 2, &[("max.message.bytes", RECORD_BYTES_MAX)]).unwrap();
        let mut scene = Scene::new().unwrap();
        scene.agent_name.clone_from(&topic);
        let brokers = format!("brokers = [\"{}\"]", broker.bootstrap());
        let (channel, lanes) = match flow {
            Flow::File => (String::new(), 1),
            Flow::Lanes => (String::new(), 2),
            // Little room: sinks flush together, and else the first flush would be of everything.
            Flow::SourceBacked => {
                ("[channel]\nkind = \"source-backed\"\ncapacity = { events = 100 }\n".to_owned(), 1)
            }
            Flow::Channel => {
                let own =
                    format!("topic = \"{topic}-channel\"\ngroup = \"{topic}\"\nsession_timeout = \"3s\"");
                (format!("[channel]\nkind = \"kafka\"\n{brokers}\n{own}\n"), 1)
            }
        };
        let beside = (flow == Flow::SourceBacked).then(|| scene.root().join("beside"));
        let file = beside.as_ref().map_or(String::new(), |dir| {
            let path = dir.join("all.log").display().to_string();
            format!("[sink.beside]\ntype = \"file\"\npath = \"{path}\"\nflush_interval = \"20ms\"\n")
        });
        let text = format!(
            "[batch]\nbytes = \"2 KiB\"\nrows = 20\nlinger = \"5ms\"\n{channel}\
             [source.in]\ntype = \"tail\"\npaths = [\"{{in}}/web-*.log\"]\n\
             [sink.out]\ntype = \"kafka\"\n{brokers}\ntopic = \"{topic}\"\nprogress_topic = \"{topic}-progress\"\nlanes = {lanes}\n\
             transaction_bytes = \"{TRANSACTION}\"\ntransaction_interval = \"20ms\"\ntransaction_timeout = \"10s\"\n{file}"
        );
        scene.pipeline(&text).unwrap();
        let load =
            Load { lines: Some(LINES), bytes_per_s: 0, rotation: Rotation::None, ..flow::load(&scene, 7) };
        let written = generator::write_now(load).unwrap();
        let long_lines = if has_long_lines(point) { LONG_LINES } else { 0 };
        fs::write(scene.input().join("web-3.log"), long_text(long_lines)).unwrap();
        Delivery { scene, client, topic, written, long_lines, beside }
    }

    fn die(&mut self, kill: &str) {
        let faults = format!("kill={kill}");
        self.scene.env = vec![("FLUMEN_FAULTS".to_owned(), faults.clone())];
        let mut agent = self.scene.start().unwrap();
        self.scene.env.clear();
        wait_killed(&mut agent, &faults);
    }

    /// Committed values of the topic, as files for the oracle.
    fn collect(&self, dir: &Path) -> u64 {
        client::collect(&self.client, std::slice::from_ref(&self.topic), dir).unwrap()
    }

    /// Waits until as many lines are in every destination as have to be there.
    fn wait_all(&self, agent: &mut Agent, seen: &Path) {
        let expected: u64 = self.written.iter().sum();
        let mut beside = output::LineCounter::default();
        let mut looked: Option<Instant> = None;
        let all = poll::until("all lines in the topic", flow::DELIVERED, || {
            agent.expect_running()?;
            // Each look is a process of another client.
            if looked.is_some_and(|at| at.elapsed() < limits::KAFKA_LOOK) {
                return Ok(false);
            }
            looked = Some(Instant::now());
            let is_beside = match &self.beside {
                Some(dir) => beside.count(dir)? >= expected,
                None => true,
            };
            let is_refused = self.scene.quarantine()?.len() as u64 >= self.long_lines;
            Ok(is_beside && is_refused && self.collect(seen) >= expected)
        });
        if let Err(error) = all {
            eprintln!("{}: {error:#}\n{}", self.topic, agent.log_tail());
        }
    }

    /// What is wrong with the topic, the quarantine and the files beside.
    fn verdicts(&self, seen: &Path) -> Vec<Verdict> {
        self.collect(seen);
        let refused = tempfile::tempdir().unwrap();
        let lines: String =
            self.scene.quarantine().unwrap().iter().map(|entry| format!("{entry}\n")).collect();
        fs::write(refused.path().join("quarantine.log"), lines).unwrap();
        let judge = |dir: &Path, written: &[u64]| {
            oracle::judge(&output::sequences(dir).unwrap(), written, |_| true).unwrap()
        };
        // In which order the broker refuses what it refuses is nobody's promise.
        let refused = Verdict { out_of_order: 0, ..judge(refused.path(), &[0, 0, 0, self.long_lines]) };
        let mut verdicts = vec![judge(seen, &self.written), refused];
        // It has no limit, and what another sink refuses is not refused here.
        let all = [self.written.as_slice(), &[self.long_lines]].concat();
        verdicts.extend(self.beside.as_deref().map(|dir| judge(dir, &all)));
        verdicts
    }
}

/// Lines that no compression makes short.
fn long_text(lines: u64) -> String {
    let mut random = SmallRng::seed_from_u64(3);
    let mut text = String::new();
    for seq in 0..lines {
        write!(text, "GET /long?file=3&turn=0&seq={seq} ").unwrap();
        (0..LONG_BYTES).for_each(|_| text.push(char::from(random.random_range(b'a'..=b'z'))));
        text.push('\n');
    }
    text
}

#[test]
fn every_line_is_in_the_topic_once_wherever_the_agent_is_killed() {
    let walked: BTreeSet<String> = KILLS.iter().map(|(_, point, _)| (*point).to_owned()).collect();
    assert_eq!(walked, points_of(&["kafka-sink.", "sink."]), "every point has its kills");
    let failed = walk_each(KILLS.to_vec(), AGENTS, |kill| {
        let begun = Instant::now();
        let mut delivery = Delivery::new(*kill);
        let (_, point, count) = kill;
        if let Some(before) = before(point) {
            delivery.die(before);
        }
        delivery.die(&format!("{point}:{count}"));
        let mut agent = delivery.scene.start_ready().unwrap();
        let seen = tempfile::tempdir().unwrap();
        delivery.wait_all(&mut agent, seen.path());
        agent.stop().unwrap();
        let verdicts = delivery.verdicts(seen.path());
        let said: Vec<String> = verdicts.iter().map(Verdict::to_string).collect();
        eprintln!("{kill:?}: {}; {:.1} s", said.join("; "), begun.elapsed().as_secs_f64());
        assert!(verdicts.iter().all(Verdict::holds), "{kill:?}: {}", said.join("; "));
    });
    assert_eq!(failed, [], "these kills");
}

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
/// Hours of the bridge's test; a record behind them closes the last one.
const HOURS: i64 = 3;

/// A topic of hours with records in disorder, and the files that one run made of it which nobody disturbed.
struct Hours {
    base: i64,
    bootstrap: String,
    topic: &'static str,
    /// Per hour its records.
    records: Vec<BTreeSet<String>>,
}

impl Hours {
    fn new(topic: &'static str) -> Hours {
        let broker = Broker::shared().unwrap();
        broker.client().create_topic(topic, 3, &[]).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        let base = now / HOUR * HOUR - 8 * HOUR;
        let mut random = SmallRng::seed_from_u64(11);
        let mut records = vec![BTreeSet::new(); HOURS as usize];
        let mut messages = Vec::new();
        let count = 1_500;
        for number in 0..count {
            let minute = (number * 184 / count - random.random_range(0..15)).max(0);
            let value = format!("{number} of minute {minute}");
            if let Some(hour) = records.get_mut((minute / 60) as usize) {
                hour.insert(value.clone());
            }
            messages.push(Message {
                partition: Some(random.random_range(0..3)),
                timestamp_ms: Some(base + minute * MINUTE),
                ..Message::value(value)
            });
        }
        messages.extend((0..3).map(|partition| Message {
            partition: Some(partition),
            timestamp_ms: Some(base + 195 * MINUTE),
            ..Message::value("end")
        }));
        broker.client().produce(topic, &messages).unwrap();
        Hours { base, bootstrap: broker.bootstrap(), topic, records }
    }

    fn hour(&self, hour: i64) -> String {
        jiff::Timestamp::from_millisecond(self.base + hour * HOUR).unwrap().to_string()
    }

    fn config(&self, scene: &Scene, options: &str) -> PathBuf {
        let text = format!(
            "[bridge]\npath = \"{}/{{topic}}/{{time:%Y-%m-%d/%H}}\"\n{options}\n\
             [kafka]\nbrokers = [\"{}\"]\ntopics = [\"{}\"]\nidle = \"2d\"\n",
            scene.output.display(),
            self.bootstrap,
            self.topic,
        );
        let path = scene.root().join("bridge.toml");
        fs::write(&path, text).unwrap();
        path
    }

    /// A bridge that follows; with faults or without.
    fn follow(&self, scene: &Scene, options: &str, faults: Option<&str>) -> Agent {
        let mut command = Command::new(locate::flumen().unwrap());
        command.arg("bridge").arg(self.config(scene, options)).args(["--follow", "--from", &self.hour(0)]);
        command.env("NO_COLOR", "1").current_dir(scene.root());
        command.envs(faults.map(|faults| ("FLUMEN_FAULTS", faults)));
        Agent::spawn(command, &scene.log()).unwrap()
    }

    fn die(&self, scene: &Scene, options: &str, kill: &str) {
        let faults = format!("kill={kill}");
        wait_killed(&mut self.follow(scene, options, Some(&faults)), &faults);
    }

    /// Lets a bridge make all hours, to the progress behind the last one.
    fn finish(&self, scene: &Scene, options: &str, faults: Option<&str>) -> Agent {
        let mut agent = self.follow(scene, options, faults);
        let progress = scene.output.join(format!("_flumen/{}.progress", self.topic));
        let last = format!("\"next\": \"{}\"", self.hour(HOURS));
        poll::until("all hours", flow::DELIVERED, || {
            agent.expect_running()?;
            Ok(fs::read_to_string(&progress).is_ok_and(|text| text.contains(&last)))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log_tail()));
        agent
    }

    /// Each record is in a file of its own hour once, and each file in a `_SUCCESS`; in `late` the files are of the hour in whose
    /// run they came.
    fn judge(&self, scene: &Scene, has_late: bool) {
        let there: BTreeSet<PathBuf> =
            output::files(&scene.output.join(self.topic)).unwrap().into_iter().collect();
        let markers = there.iter().filter(|path| path.ends_with("_SUCCESS"));
        assert_eq!(markers.flat_map(|marker| of_bucket(marker)).collect::<BTreeSet<PathBuf>>(), there);
        let mut seen: Vec<Vec<String>> = vec![Vec::new(); HOURS as usize];
        for path in there.iter().filter(|path| !path.ends_with("_SUCCESS")) {
            let is_late = path.parent().unwrap().ends_with("late");
            let dir = if is_late { path.parent().unwrap().parent().unwrap() } else { path.parent().unwrap() };
            let hour = (0..HOURS).find(|hour| dir == self.dir(scene, *hour)).unwrap();
            for line in fs::read_to_string(path).unwrap().lines() {
                let minute: i64 = line.rsplit_once(' ').unwrap().1.parse().unwrap();
                assert!(if is_late { minute / 60 < hour } else { minute / 60 == hour }, "{line} in {path:?}");
                assert!(has_late || !is_late, "{path:?}");
                seen[(minute / 60) as usize].push(line.to_owned());
            }
        }
        for (hour, (seen, written)) in seen.iter_mut().zip(&self.records).enumerate() {
            seen.sort();
            let expected: Vec<&String> = written.iter().collect();
            assert_eq!(seen.iter().collect::<Vec<_>>(), expected, "hour {hour}");
        }
    }

    fn dir(&self, scene: &Scene, hour: i64) -> PathBuf {
        let time = jiff::Timestamp::from_millisecond(self.base + hour * HOUR).unwrap();
        let time = time.to_zoned(jiff::tz::TimeZone::UTC).strftime("%Y-%m-%d/%H").to_string();
        scene.output.join(self.topic).join(time)
    }
}

/// A `_SUCCESS` and the files that it names.
fn of_bucket(marker: &Path) -> Vec<PathBuf> {
    let value: Value = serde_json::from_str(&fs::read_to_string(marker).unwrap()).unwrap();
    let list = |value: &Value| value.as_array().unwrap().clone();
    let (content, added) = (&value["content"], list(&value["content"]["added"]));
    let files =
        [&content["files"], &content["late_files"]].into_iter().chain(added.iter().map(|it| &it["files"]));
    let names = files.flat_map(list).map(|file| marker.with_file_name(file["name"].as_str().unwrap()));
    names.chain([marker.to_owned()]).collect()
}

/// All files with their contents. Of `_SUCCESS` without what counts its writes, and its sum.
fn tree(scene: &Scene) -> BTreeMap<String, String> {
    let all = output::files(&scene.output).unwrap().into_iter();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(&scene.output).unwrap().display().to_string();
        if !path.ends_with("_SUCCESS") {
            return (name, text);
        }
        let mut value: Value = serde_json::from_str(&text).unwrap();
        value["content"]["generation"].take();
        value["sum"].take();
        (name, value.to_string())
    };
    all.map(read).collect()
}

/// What a walk of the bridge's options are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Late {
    Append,
    Side,
}

impl Late {
    fn options(self) -> &'static str {
        match self {
            Late::Append => "late = \"append\"\nfiles_per_bucket = 2",
            Late::Side => "late = \"side\"\nfiles_per_bucket = 2",
        }
    }
}

/// Other files of the same records: what a run of these leaves behind is stale for the next one.
const OTHERS: &str = "late = \"append\"";

#[test]
fn every_record_is_in_its_hour_once_wherever_the_bridge_is_killed() {
    let hours = Hours::new("kill-points");
    let whole = |late: Late| {
        let scene = Scene::new().unwrap();
        hours.finish(&scene, late.options(), None).stop().unwrap();
        hours.judge(&scene, late == Late::Side);
        tree(&scene)
    };
    let (append, side) = (whole(Late::Append), whole(Late::Side));
    let points: Vec<String> = points_of(&["bridge."]).into_iter().collect();
    assert!(points.len() > 20, "{points:?}");
    let failed = walk_each(points, AGENTS, |point| {
        let scene = Scene::new().unwrap();
        let late = if point.starts_with("bridge.late.") { Late::Side } else { Late::Append };
        let before = match point.as_str() {
            "bridge.stale.removed" => Some("bridge.file.place-synced"),
            "bridge.addition.removed" | "bridge.addition.removal-synced" => {
                Some("bridge.addition.name-synced")
            }
            _ => None,
        };
        before.iter().for_each(|before| hours.die(&scene, OTHERS, before));
        hours.die(&scene, late.options(), point);
        hours.finish(&scene, late.options(), None).stop().unwrap();
        hours.judge(&scene, late == Late::Side);
        // Hours that were finished with other options keep the files of these.
        assert!(
            before.is_some()
                || tree(&scene) == if late == Late::Side { side.clone() } else { append.clone() },
            "{point}"
        );
        eprintln!("{point}");
    });
    assert_eq!(failed, Vec::<String>::new());
}

/// A disk that refuses some of a bridge's steps: those hours are made again, and come to the same.
#[test]
fn a_bridge_whose_disk_fails_makes_the_same_files() {
    let hours = Hours::new("bad-disk");
    let scene = Scene::new().unwrap();
    let options = Late::Append.options();
    hours.finish(&scene, options, Some("seed=5,eio=0.03@bridge,enospc=0.03@bridge")).stop().unwrap();
    hours.judge(&scene, false);
    let log = fs::read_to_string(scene.log()).unwrap();
    assert!(log.contains("refused on purpose"), "{log}");
    let undisturbed = Scene::new().unwrap();
    hours.finish(&undisturbed, options, None).stop().unwrap();
    assert!(tree(&scene) == tree(&undisturbed));
}
