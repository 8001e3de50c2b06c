//! Random runs of the file sink under a simulated pipeline: crashes between any two steps, power losses,
//! errors of the disk, restarts with other batch cuts. The oracle after each recovery and at the end: the
//! directory holds exactly the acknowledged events, each once, in order within its bucket.
//!
//! A failure prints its seed; `FLUMEN_SEED=…` runs that one alone, `FLUMEN_RUNS=…` more of them.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_array::StringArray;
use flumen_event::{BatchBuilder, HeaderColumn};
use flumen_journal::Delivery;
use flumen_pipeline::sink::{Cursors, Sink, SinkCommit, SinkContext};
use flumen_pipeline::source::Wake;
use flumen_pipeline::{ComponentKind, ComponentMetrics, Options, SinkError, Value};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::FileSink;
use super::options::Settings;
use super::testing::TroubledDisk;

const FOREIGN: [(&str, &str); 2] = [("a-000002.log", "not ours\n"), ("a-000003.log.open", "nor this\n")];

struct Event {
    time_ns: i64,
    host: Option<&'static str>,
    body: String,
}

/// The journal: what is durable, and what is on its way there.
#[derive(Default)]
struct Record {
    cursor: u64,
    position: Option<Vec<u8>>,
    pending: VecDeque<(u64, Vec<u8>)>,
    /// Durable, and not told to the sink.
    untold: VecDeque<Vec<u8>>,
    /// What the last flush returned; newer files may be on record.
    flushed: Option<Vec<u8>>,
    /// The next commit of the sink's own fails: before it is durable, or after.
    fails: Option<bool>,
}

impl Record {
    fn commit(&mut self, count: usize) {
        for (cursor, position) in self.pending.drain(..count) {
            self.cursor = cursor;
            self.position = Some(position.clone());
            self.flushed = Some(position.clone());
            self.untold.push_back(position);
        }
    }
}

#[derive(Clone, Default)]
struct Journal(Arc<Mutex<Record>>);

impl SinkCommit for Journal {
    fn commit_position(&mut self, position: &[u8]) -> Result<(), SinkError> {
        let mut record = self.0.lock();
        let fails = record.fails.take();
        if fails != Some(true) {
            let all = record.pending.len();
            record.commit(all);
            record.position = Some(position.to_vec());
        }
        if fails.is_some() { Err(SinkError::Retry("the journal".into())) } else { Ok(()) }
    }
}

struct Run {
    random: StdRng,
    root: tempfile::TempDir,
    options: Options,
    events: Vec<Event>,
    disk: TroubledDisk,
    journal: Journal,
    context: SinkContext,
    clock_ms: Arc<AtomicU64>,
    sink: Option<FileSink>,
    /// Events before this were delivered.
    delivered: u64,
    /// Content of files when they were first seen with their final name.
    finals: BTreeMap<String, Vec<u8>>,
    log: Vec<String>,
}

fn options(random: &mut StdRng, root: &Path) -> Options {
    let path = ["a.log", "{header.host}.log", "{time:%Y-%m-%d/%H}/{header.host:-none}", "{time:%H%M}.txt"];
    let path = format!("{}/out/{}", root.display(), path.choose(random).unwrap());
    let text = |value: &str| Value::Text(value.into());
    let mut options = BTreeMap::from([
        ("path".to_owned(), text(&path)),
        ("encoding".to_owned(), text(["text", "json"].choose(random).unwrap())),
        ("compression".to_owned(), text(["none", "gzip", "zstd"].choose(random).unwrap())),
        ("max_open_files".to_owned(), Value::Integer(*[1, 2, 3, 256].choose(random).unwrap())),
        ("roll_size".to_owned(), Value::Size(*[1, 300, 2_000, 1 << 30].choose(random).unwrap())),
        ("roll_count".to_owned(), Value::Integer(*[0, 0, 1, 13].choose(random).unwrap())),
    ]);
    if random.random() {
        options.insert("roll_interval".into(), Value::Duration(std::time::Duration::from_secs(60)));
        options.insert("idle_timeout".into(), Value::Duration(std::time::Duration::from_secs(20)));
    }
    Options(options)
}

fn events(random: &mut StdRng) -> Vec<Event> {
    let hosts = [Some("a"), Some("b"), Some("c.d"), Some("../x"), None];
    let (mut host, mut time_ns) = (None, 1_700_000_000_000_000_000);
    (0..random.random_range(1..400))
        .map(|id| {
            if random.random_ratio(1, 3) {
                host = *hosts.choose(random).unwrap();
            }
            time_ns += random.random_range(-20..40) * 1_000_000_000;
            Event { time_ns, host, body: format!("{id:05}{}", "x".repeat(random.random_range(0..60))) }
        })
        .collect()
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut random = StdRng::seed_from_u64(seed);
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("trash")).unwrap();
        std::fs::create_dir(root.path().join("out")).unwrap();
        for (name, content) in FOREIGN {
            std::fs::write(root.path().join("out").join(name), content).unwrap();
        }
        let (options, events) = (options(&mut random, root.path()), events(&mut random));
        let disk = TroubledDisk::new(seed, &root.path().join("trash"));
        let journal = Journal::default();
        let metrics = ComponentMetrics::new(ComponentKind::Sink, "test".into());
        let context = SinkContext::new("test".into(), metrics, Wake::default(), Box::new(journal.clone()));
        let clock_ms = Arc::new(AtomicU64::new(1_700_000_000_000));
        let (sink, delivered, finals, log) = (None, 0, BTreeMap::new(), Vec::new());
        Run { random, root, options, events, disk, journal, context, clock_ms, sink, delivered, finals, log }
    }

    fn total(&self) -> u64 {
        self.events.len() as u64
    }

    fn delivery(&mut self) -> Delivery {
        let first = self.delivered;
        let rows = self.random.random_range(1..=60).min(self.total() - first);
        let mut builder = BatchBuilder::default();
        let events = &self.events[first as usize..(first + rows) as usize];
        for (row, event) in events.iter().enumerate() {
            builder.push(9, first + row as u64, event.time_ns, event.body.as_bytes());
        }
        let hosts: StringArray = events.iter().map(|event| event.host).collect();
        let batch = builder.finish(vec![HeaderColumn { name: "host".into(), values: hosts }]).unwrap();
        // A slice of a longer batch: offsets do not begin at 0.
        Delivery { first, next: first + batch.rows() as u64, batch, lost_before: 0 }
    }

    /// One step of the pipeline. An error is what the pipeline would see.
    fn step(&mut self) -> Result<(), SinkError> {
        let Some(mut sink) = self.sink.take() else { return self.start() };
        let done = self.step_of(&mut sink);
        self.sink = Some(sink);
        done
    }

    fn step_of(&mut self, sink: &mut FileSink) -> Result<(), SinkError> {
        self.clock_ms.fetch_add(self.random.random_range(0..3_000), Ordering::Relaxed);
        match self.random.random_range(0..10) {
            0..4 if self.delivered < self.total() => {
                let delivery = self.delivery();
                self.log.push(format!("deliver {}+{}", delivery.first, delivery.batch.rows()));
                sink.deliver(&mut self.context, &delivery)?;
                self.delivered += delivery.batch.rows() as u64;
            }
            choice @ 0..7 => {
                if sink.due() || choice > 4 {
                    self.log.push("flush".into());
                    let position = sink.flush(&mut self.context, b"")?;
                    self.journal.0.lock().pending.push_back((self.delivered, position));
                }
            }
            7 => self.journal.0.lock().commit_some(&mut self.random),
            8 => {
                let position = self.journal.0.lock().untold.pop_front();
                if let Some(position) = position {
                    self.log.push("committed".into());
                    sink.committed(&mut self.context, &position)?;
                }
            }
            _ => self.plan_trouble(),
        }
        Ok(())
    }

    fn plan_trouble(&mut self) {
        if self.random.random_ratio(1, 4) {
            self.journal.0.lock().fails = Some(self.random.random());
        } else if self.random.random_ratio(1, 2) {
            let mut trouble = self.disk.0.lock();
            trouble.fails_after = Some(self.random.random_range(0..25));
            trouble.stays_dead = self.random.random();
        }
    }

    /// A new process, or the old one after an error: recovers and looks at the directory.
    fn start(&mut self) -> Result<(), SinkError> {
        let clock_ms = self.clock_ms.clone();
        let clock = Box::new(move || clock_ms.load(Ordering::Relaxed));
        let settings = Settings::from_options(&self.options).unwrap();
        let sink = FileSink::new(settings, Box::new(self.disk.clone()), clock);
        self.sink = Some(sink);
        let mut record = self.journal.0.lock();
        record.flushed = record.position.clone();
        drop(record);
        self.recover()
    }

    fn recover(&mut self) -> Result<(), SinkError> {
        let (cursor, position) = {
            let mut record = self.journal.0.lock();
            let all = record.pending.len();
            record.commit(all);
            record.untold.clear();
            // `Sink` promises the position of the last flush; the pipeline has a newer one at hand.
            let newest = self.random.random();
            (record.cursor, if newest { record.position.clone() } else { record.flushed.clone() })
        };
        self.log.push(format!("recover to {cursor}"));
        self.delivered = cursor;
        let sink = self.sink.as_mut().unwrap();
        sink.recover(&mut self.context, position.as_deref(), &mut Cursors::none())?;
        self.check(cursor);
        Ok(())
    }

    /// The process dies, perhaps with the machine.
    fn crash(&mut self) {
        self.sink = None;
        let mut record = self.journal.0.lock();
        record.fails = None;
        record.commit_some(&mut self.random);
        record.pending.clear();
        drop(record);
        let mut trouble = self.disk.0.lock();
        (trouble.dead, trouble.fails_after) = (false, None);
        drop(trouble);
        let power = self.random.random();
        self.log.push(if power { "POWER LOSS" } else { "KILL" }.into());
        if power {
            self.disk.lose_power();
        }
    }

    fn until_all_is_delivered(&mut self) {
        let mut steps = 0;
        while self.journal.0.lock().cursor < self.total() || self.random.random_ratio(9, 10) {
            steps += 1;
            assert!(steps < 20_000, "no progress");
            // Later less trouble, so that it ends.
            if self.random.random_ratio(1, 30 + steps / 10) {
                self.crash();
            }
            if self.step().is_err() {
                self.log.push("error".into());
                let dies = self.disk.0.lock().dead || self.random.random_ratio(1, 4);
                if dies || (self.sink.is_some() && self.recover().is_err()) {
                    self.crash();
                }
            }
        }
        self.crash();
        self.start().unwrap();
        self.close();
    }

    fn close(&mut self) {
        let sink = self.sink.as_mut().unwrap();
        while self.delivered < self.events.len() as u64 {
            let mut one = BatchBuilder::default();
            let event = &self.events[self.delivered as usize];
            one.push(9, self.delivered, event.time_ns, event.body.as_bytes());
            let host: StringArray = [event.host].into_iter().collect();
            let batch = one.finish(vec![HeaderColumn { name: "host".into(), values: host }]).unwrap();
            sink.deliver(
                &mut self.context,
                &Delivery { first: self.delivered, next: self.delivered, batch, lost_before: 0 },
            )
            .unwrap();
            self.delivered += 1;
        }
        let position = sink.flush(&mut self.context, b"").unwrap();
        sink.committed(&mut self.context, &position).unwrap();
        sink.close(&mut self.context).unwrap();
        self.check(self.total());
        let open = self.files().keys().filter(|name| name.ends_with(".open")).count();
        assert_eq!(open, 0, "a clean stop leaves final names only");
        let finals: Vec<String> = self.finals.keys().cloned().collect();
        let files = self.files();
        assert!(finals.iter().all(|name| files.contains_key(name)), "a final file is gone");
        let damaged = self.context.metrics.get(flumen_pipeline::Metric::SinkFilesDamaged);
        assert_eq!(damaged, 0, "nobody touched the files, and some were reported");
    }

    /// Our files, by their path below the root.
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let out = self.root.path().join("out");
        read_below(&out, &out, &mut files);
        for (name, content) in FOREIGN {
            assert_eq!(files.remove(name).as_deref(), Some(content.as_bytes()), "{name} was touched");
        }
        files
    }

    /// The oracle.
    fn check(&mut self, cursor: u64) {
        let mut expected: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let template = Settings::from_options(&self.options).unwrap().template;
        for (id, event) in self.events.iter().enumerate().take(cursor as usize) {
            let hosts: Vec<_> = template.headers().iter().map(|_| event.host).collect();
            let (path, split) = template.render(event.time_ns, &hosts);
            expected.entry(format!("{}|{}", &path[..split], &path[split..])).or_default().push(id as u64);
        }
        let mut found: BTreeMap<String, BTreeMap<u64, Vec<u64>>> = BTreeMap::new();
        let mut numbers = std::collections::BTreeSet::new();
        for (name, content) in self.files() {
            let (head, rest) = name.rsplit_once('-').unwrap();
            let (number, tail) = rest.split_at(6);
            let number: u64 = number.parse().unwrap();
            assert!(numbers.insert(number), "number {number} is used twice");
            let bucket =
                format!("{}/out/{head}|{}", self.root.path().display(), tail.trim_end_matches(".open"));
            let ids = ids(&name, &content, self.options.text("encoding").unwrap());
            found.entry(bucket).or_default().insert(number, ids);
            if !name.ends_with(".open") {
                let before = self.finals.entry(name.clone()).or_insert_with(|| content.clone());
                assert!(*before == content, "{name} is final and has changed");
            }
        }
        let found: BTreeMap<String, Vec<u64>> = found
            .into_iter()
            .map(|(bucket, files)| (bucket, files.into_values().flatten().collect()))
            .collect();
        assert_eq!(found, expected, "after acknowledging {cursor}");
    }
}

impl Record {
    fn commit_some(&mut self, random: &mut StdRng) {
        let count = random.random_range(0..=self.pending.len());
        self.commit(count);
    }
}

fn read_below(root: &Path, directory: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_below(root, &path, files);
        } else {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
}

fn ids(name: &str, content: &[u8], encoding: &str) -> Vec<u64> {
    let mut text = String::new();
    match name.trim_end_matches(".open") {
        name if name.ends_with(".gz") => flate2::read::MultiGzDecoder::new(content).read_to_string(&mut text),
        name if name.ends_with(".zst") => zstd::Decoder::new(content).unwrap().read_to_string(&mut text),
        _ => (&mut &content[..]).read_to_string(&mut text),
    }
    .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(text.ends_with('\n'), "{name} ends within a line");
    let body = |line: &str| match encoding {
        "json" => {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["body"].as_str().unwrap().to_owned()
        }
        _ => line.to_owned(),
    };
    text.lines().map(|line| body(line)[..5].parse().unwrap()).collect()
}

/// Recovery dies at its `call`-th step; the next process makes every file final without a write; then the
/// power fails and takes all that was not synced.
fn dies_in_recovery(seed: u64, call: u64) {
    let mut run = Run::new(seed);
    // A directory for each, so that no sync for one file serves the other.
    let out = run.root.path().join("out");
    ["b", "c"].iter().for_each(|host| std::fs::create_dir(out.join(host)).unwrap());
    let path = format!("{}/{{header.host}}/a.log", out.display());
    let text = Value::Text("text".into());
    run.options = Options(BTreeMap::from([("path".into(), Value::Text(path)), ("encoding".into(), text)]));
    run.events = (0..6).map(|id| Event { time_ns: 0, host: Some("b"), body: format!("{id:05}") }).collect();
    run.events.push(Event { time_ns: 0, host: Some("c"), body: "00006".into() });
    let deliver = |run: &mut Run, rows: std::ops::Range<usize>| {
        let delivery = super::testing::delivery(0, &[]);
        let mut sink = run.sink.take().unwrap();
        for id in rows {
            let event = &run.events[id];
            let mut one = BatchBuilder::default();
            one.push(9, id as u64, 0, event.body.as_bytes());
            let host: StringArray = [event.host].into_iter().collect();
            let batch = one.finish(vec![HeaderColumn { name: "host".into(), values: host }]).unwrap();
            sink.deliver(&mut run.context, &Delivery { batch, ..delivery.clone() }).unwrap();
        }
        run.sink = Some(sink);
    };
    let flush = |run: &mut Run, cursor: u64| {
        let mut sink = run.sink.take().unwrap();
        let position = sink.flush(&mut run.context, b"").unwrap();
        let mut record = run.journal.0.lock();
        (record.cursor, record.position) = (cursor, Some(position.clone()));
        drop(record);
        sink.committed(&mut run.context, &position).unwrap();
        run.sink = Some(sink);
    };
    run.start().unwrap();
    deliver(&mut run, 0..3);
    flush(&mut run, 3);
    deliver(&mut run, 3..7);
    // Durable, and not committed.
    drop(run.sink.take().unwrap().flush(&mut run.context, b"").unwrap());
    (run.disk.0.lock().fails_after, run.disk.0.lock().stays_dead) = (Some(call), true);
    let survived = run.start().is_ok();
    run.sink = None;
    (run.disk.0.lock().fails_after, run.disk.0.lock().dead) = (None, false);
    run.options.0.insert("file_mode".into(), Value::Text("0600".into()));
    run.options.0.insert("roll_count".into(), Value::Integer(1));
    run.options.0.insert("encoding".into(), Value::Text("json".into()));
    let settings = Settings::from_options(&run.options).unwrap();
    let mut sink = FileSink::new(settings, Box::new(run.disk.clone()), Box::new(|| 0));
    let position = run.journal.0.lock().position.clone();
    sink.recover(&mut run.context, position.as_deref(), &mut Cursors::none()).unwrap();
    run.sink = Some(sink);
    flush(&mut run, 3);
    flush(&mut run, 3);
    run.sink = None;
    run.disk.lose_power_but_for(0);
    run.options.0.insert("encoding".into(), Value::Text("text".into()));
    assert_eq!(
        run.files().keys().collect::<Vec<_>>(),
        ["b/a-000001.log"],
        "step {call}, survived: {survived}"
    );
    run.check(3);
}

#[test]
fn each_step_of_a_recovery_can_be_its_last() {
    (0..24).for_each(|call| (0..6).for_each(|seed| dies_in_recovery(seed, call)));
}

fn run(seed: u64) {
    let mut run = Run::new(seed);
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.until_all_is_delivered()));
    if let Err(panic) = done {
        let log = run.log.iter().rev().take(40).rev().cloned().collect::<Vec<_>>().join("\n  ");
        eprintln!("FLUMEN_SEED={seed} fails with {:?}; last steps:\n  {log}", run.options);
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn each_event_exactly_once_across_crashes_power_losses_and_errors() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("FLUMEN_SEED") {
        return run(seed);
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let first = now.as_micros() as u64;
    let runs = number("FLUMEN_RUNS").unwrap_or(100);
    eprintln!("seeds {first}..{}", first + runs);
    (first..first + runs).for_each(run);
}
