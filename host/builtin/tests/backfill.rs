//! Backfills of real files: which lines, their identity, stops at any place, files that change.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::BinaryArray;
use flate2::Compression;
use flate2::write::GzEncoder;
use flumen_builtin::backfill::{self, Bounds, Done, Job, Outcome, Reading, Words};
use flumen_event::Identity;
use flumen_pipeline::backfill::BackfillProgress;
use flumen_pipeline::codec::Decoded;
use flumen_pipeline::plan::{BatchPlan, OnReject, SelectorPlan, SourcePlan};
use flumen_pipeline::source::{Emit, Wake};
use flumen_pipeline::{
    ComponentKind, ComponentMetrics, Decoder, DecoderLink, DecoderSlot, Emission, Options, Progress,
    SourceContext, SourceError, Stopped, Value,
};
use parking_lot::Mutex;
use support::{Journal, Setup};
use tempfile::TempDir;

/// 30 November 2026, 10:00:00 UTC.
const TEN_O_CLOCK: i64 = 1_796_032_800;

type Hook = Box<dyn FnMut(usize) + Send>;

/// Takes emissions: each is durable at once, or not there at all.
#[derive(Clone, Default)]
struct Store(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    positions: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Identity, body, `file`, and whether it went to quarantine.
    events: Vec<(Identity, String, String, bool)>,
    emissions: usize,
    /// Emissions until it stops.
    left: Option<usize>,
    /// Called before each emission, with its number.
    hook: Option<Hook>,
}

impl Emit for Store {
    fn progress(&self) -> Progress {
        Progress { emitted: 0, durable: 0 }
    }

    fn emit(&mut self, emission: Emission) -> Result<(), Stopped> {
        let mut state = self.0.lock();
        if let Some(left) = &mut state.left {
            *left = left.checked_sub(1).ok_or(Stopped)?;
        }
        let number = state.emissions;
        state.emissions += 1;
        if let Some(hook) = &mut state.hook {
            hook(number);
        }
        let quarantined = emission.quarantined.iter().map(|group| (&group.batch, true));
        for (batch, is_quarantined) in std::iter::once((&emission.batch, false)).chain(quarantined) {
            for row in 0..batch.rows() {
                let body = String::from_utf8_lossy(batch.body().value(row)).into_owned();
                let file = batch.header("file").map(|file| file.value(row).to_owned()).unwrap_or_default();
                state.events.push((batch.identity(row).unwrap(), body, file, is_quarantined));
            }
        }
        for (key, value) in emission.positions {
            match value.is_empty() {
                true => state.positions.remove(&key),
                false => state.positions.insert(key, value),
            };
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Stopped> {
        Ok(())
    }

    fn positions(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.0.lock().positions.clone().into_iter().collect()
    }
}

impl Store {
    fn bodies(&self) -> Vec<String> {
        self.0.lock().events.iter().map(|(_, body, ..)| body.clone()).collect()
    }

    fn hook(&self, hook: impl FnMut(usize) + Send + 'static) {
        self.0.lock().hook = Some(Box::new(hook));
    }
}

struct Place {
    dir: TempDir,
    setup: Setup,
    codec: Option<DecoderLink>,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::tail(dir.path().join("*.log*").to_str().unwrap()).ms("last_line_timeout", 20);
        Place { dir, setup, codec: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    fn reading(&self) -> Reading {
        Reading::of(&self.plan(self.setup.kind), self.codec.clone()).unwrap()
    }

    fn plan(&self, kind: &str) -> SourcePlan {
        let (options, selector) = (Options(self.setup.options.clone()), SelectorPlan::default());
        SourcePlan { name: "test".into(), kind: kind.to_owned(), codec: None, options, selector }
    }

    /// `None`: it was stopped.
    fn run(&self, job: &Job, store: &Store, rows: usize) -> Option<Result<Done, String>> {
        let outcome = Outcome::default();
        let progress = Arc::<BackfillProgress>::default();
        let mut make = backfill::make(job.clone(), self.reading(), progress, outcome.clone());
        let metrics = ComponentMetrics::new(ComponentKind::Source, "test".into());
        let batch = BatchPlan { rows, ..BatchPlan::default() };
        let store = Box::new(store.clone());
        let mut context = SourceContext::new("test".into(), batch, metrics, Wake::default(), store);
        match make().unwrap().run(&mut context) {
            Ok(()) => Some(outcome.lock().take().unwrap()),
            Err(SourceError::Stopped(_)) => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn put(&self, job: &Job) -> Vec<String> {
        let store = Store::default();
        let done = self.run(job, &store, 3).unwrap().unwrap();
        assert_eq!(done.events, store.bodies().len() as u64);
        store.bodies()
    }
}

fn append(path: &Path, text: &str) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

fn job(files: &[&str], bounds: Bounds) -> Job {
    job_beside(files, bounds, &[])
}

fn job_beside(files: &[&str], bounds: Bounds, positions: &[(Vec<u8>, Vec<u8>)]) -> Job {
    let files = files.iter().map(ToString::to_string).collect();
    backfill::begin(Words { source: "test".into(), files, ..Words::default() }, bounds, positions).unwrap()
}

/// From this second behind ten o'clock to before that one.
fn seconds(from: i64, to: i64) -> Bounds {
    let ns = |second: i64| Some((TEN_O_CLOCK + second) * 1_000_000_000);
    Bounds { from_ns: ns(from), to_ns: ns(to), ..Bounds::default() }
}

/// A line for each second, each with a trace of two lines.
fn traces(count: usize) -> String {
    (0..count)
        .map(|at| format!("2026-11-30T10:00:{at:02}Z line {at}\n\tat one {at}\nCaused by: {at}\n"))
        .collect()
}

#[test]
fn lines_of_the_range_come_with_the_lines_that_belong_to_them() {
    let place = Place::new();
    let path = place.write("a.log", format!("of the file before\n{}", traces(9)));
    let text = traces(9);
    let of = |from: usize, to: usize| {
        text.lines().skip(from * 3).take((to - from) * 3).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(place.put(&job(&[&path], seconds(2, 5))), of(2, 5));
    assert_eq!(place.put(&job(&[&path], seconds(8, 99))), of(8, 9));
    assert!(place.put(&job(&[&path], seconds(20, 99))).is_empty());
    // What stands before the first time is older than all of it.
    let until = Bounds { from_ns: None, ..seconds(0, 2) };
    assert_eq!(place.put(&job(&[&path], until))[..2], ["of the file before", &of(0, 1)[0]]);
    // A file has times of its own: the last one of another says nothing about it.
    let other = place.write("b.log", "without\n2026-11-30T10:00:03Z other\n");
    assert_eq!(
        place.put(&job(&[&path, &other], seconds(3, 4))),
        [of(3, 4), vec!["2026-11-30T10:00:03Z other".into()]].concat()
    );
}

#[test]
fn bytes_choose_lines_by_where_they_begin() {
    let place = Place::new();
    let path = place.write("a.log", "one\ntwo\nthree\nfour\n");
    let of =
        |from_byte, to_byte| place.put(&job(&[&path], Bounds { from_byte, to_byte, ..Bounds::default() }));
    assert_eq!(of(Some(4), Some(14)), ["two", "three"]);
    assert_eq!(of(Some(5), Some(15)), ["three", "four"]);
    assert_eq!(of(None, Some(4)), ["one"]);
    assert_eq!(of(Some(14), None), ["four"]);
    assert!(of(Some(15), None).is_empty());
}

/// Everything that tail made of a file, backfill makes of it again: in the file, and in what becomes of it.
#[test]
fn events_are_those_of_tail() {
    let with = |name: &str, value: Value| {
        let mut place = Place::new();
        place.setup = Setup { options: place.setup.options.clone(), ..Setup::new("tail") }.set(name, value);
        place
    };
    let plain = Place::new();
    let grouped = with("multiline_start", Value::Text("^2026".into()));
    let pieces = with("max_line", Value::Size(64));
    let long = |at: usize| if at == 7 { "x".repeat(300) } else { String::new() };
    let text: String =
        (0..60).map(|at| format!("2026-11-30T10:00:{at:02}Z {at}{}\n\tat {at}\n", long(at))).collect();
    for place in [plain, grouped, pieces] {
        let path = place.write("a.log", &text);
        let journal = Journal::default();
        let run = place.setup.start(&journal);
        // The last group is taken when the file was idle for a while, or not at all.
        let least = if place.setup.options.contains_key("multiline_start") { 59 } else { 120 };
        journal.wait_count(least);
        run.stop();
        let tailed: Vec<_> =
            journal.events().into_iter().map(|seen| (seen.identity, seen.body, seen.file, false)).collect();
        let positions = journal.positions();

        let check = |path: &str| {
            let store = Store::default();
            let job = job_beside(&[path], Bounds::default(), &positions);
            place.run(&job, &store, 7).unwrap().unwrap();
            let events = store.0.lock().events.clone();
            assert_eq!(events[..tailed.len()], tailed, "{path}");
            assert!(events.len() - tailed.len() <= 1);
        };
        check(&path);
        fs::rename(&path, place.path("a.log.1")).unwrap();
        check(place.path("a.log.1").to_str().unwrap());
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(text.as_bytes()).unwrap();
        fs::remove_file(place.path("a.log.1")).unwrap();
        check(&place.write("a.log.1.gz", packed.finish().unwrap()));
        check(&place.write("a.log.1.zst", zstd::encode_all(text.as_bytes(), 1).unwrap()));
    }
}

#[test]
fn stopped_after_any_emission_it_goes_on_and_each_line_comes_once() {
    for name in ["a.log", "a.log.zst"] {
        let place = Place::new();
        let text = traces(30);
        let packed = if name == "a.log" {
            text.clone().into_bytes()
        } else {
            zstd::encode_all(text.as_bytes(), 1).unwrap()
        };
        let files = [place.write(name, &packed), place.write("b.log", text.replace("line", "other"))];
        let job = job(&[&files[0], &files[1]], seconds(2, 28));
        let whole = place.put(&job);
        assert_eq!(whole.len(), 2 * 26 * 3);
        for step in 1..7 {
            let store = Store::default();
            let mut lives = 0;
            let done = loop {
                store.0.lock().left = Some(step);
                lives += 1;
                if let Some(done) = place.run(&job, &store, 5) {
                    break done.unwrap();
                }
            };
            assert_eq!(store.bodies(), whole, "{name}, {step} emissions in a life");
            assert!(
                lives > 3 && done.events == whole.len() as u64 && done.before > 0,
                "{lives} lives: {done:?}"
            );
            let left = store.positions();
            assert_eq!((left.len(), left[0].0.as_slice()), (1, &b"done"[..]), "nothing else stays");
            // Once more it does nothing.
            store.0.lock().left = Some(0);
            assert_eq!(place.run(&job, &store, 5).unwrap().unwrap(), done);
        }
    }
}

/// What is written after the beginning is tail's, but for the end of a line that had begun.
#[test]
fn a_file_that_grows_is_read_up_to_where_it_ended() {
    let place = Place::new();
    let path = place.write("a.log", "one\ntwo\nthr");
    let (job, store) = (job(&[&path], Bounds::default()), Store::default());
    let grows = place.path("a.log");
    store.hook(move |number| {
        if number == 0 {
            append(&grows, "ee\nfour\nfive\n");
        }
    });
    place.run(&job, &store, 100).unwrap().unwrap();
    assert_eq!(store.bodies(), ["one", "two", "three"]);
}

/// More than two reads.
fn long_text() -> String {
    (0..60_000).map(|at| format!("2026-11-30T10:00:00Z line {at}\n")).collect()
}

#[test]
fn a_file_that_is_truncated_meanwhile_ends_it_with_the_reason() {
    for then in ["new\n".to_owned(), "y".repeat(3_000_000)] {
        let place = Place::new();
        let path = place.write("a.log", long_text());
        let (job, store) = (job(&[&path], Bounds::default()), Store::default());
        let changes = place.path("a.log");
        store.hook(move |number| {
            if number == 1 {
                fs::write(&changes, &then).unwrap();
            }
        });
        let error = place.run(&job, &store, 8_192).unwrap().unwrap_err();
        let events = store.bodies().len();
        assert!(events > 0 && events < 60_000, "{events}");
        assert!(error.contains("was truncated") || error.contains("was overwritten"), "{error}");
        assert!(
            error.contains("--from-byte") && error.contains(&format!("{events} events were put")),
            "{error}"
        );
        let whole: Vec<String> = long_text().lines().take(events).map(str::to_owned).collect();
        assert_eq!(store.bodies(), whole, "what was read before is right");
        let again = place.run(&job, &store, 8_192).unwrap().unwrap_err();
        assert!(again.contains("is not what it was") && again.contains("--forget"), "{again}");
        assert_eq!(store.bodies().len(), events);
    }
}

#[test]
fn a_file_that_is_renamed_is_read_on_and_one_that_is_gone_is_not_guessed() {
    let place = Place::new();
    let path = place.write("a.log", long_text());
    let (job, store) = (job(&[&path], Bounds::default()), Store::default());
    store.0.lock().left = Some(3);
    assert!(place.run(&job, &store, 8_192).is_none());
    let before = store.bodies().len();
    fs::rename(&path, place.path("elsewhere")).unwrap();
    place.write("a.log", "another\n");
    store.0.lock().left = None;
    let done = place.run(&job, &store, 8_192).unwrap().unwrap();
    assert_eq!((done.events, done.before), (60_000, before as u64));
    assert!(done.notes[0].contains("was renamed or replaced"), "{:?}", done.notes);
    assert_eq!(store.bodies().len(), 60_000);

    let store = Store::default();
    let (path, other) = (place.write("b.log", long_text()), tempfile::tempdir().unwrap());
    let job = job_beside(&[&path], Bounds::default(), &[]);
    store.0.lock().left = Some(3);
    assert!(place.run(&job, &store, 8_192).is_none());
    fs::rename(&path, other.path().join("b.log")).unwrap();
    store.0.lock().left = None;
    let error = place.run(&job, &store, 8_192).unwrap().unwrap_err();
    let done: usize = store.bodies().iter().map(|line| line.len() + 1).sum();
    assert!(error.contains(&format!("--from-byte {done} ")), "{error}");
    // Which is the place to go on from.
    let moved = other.path().join("b.log").display().to_string();
    let rest = Bounds { from_byte: Some(done as u64), ..Bounds::default() };
    let rest = place.put(&job_beside(&[&moved], rest, &[]));
    assert_eq!([store.bodies(), rest].concat(), long_text().lines().collect::<Vec<_>>());
}

/// As after a reboot on btrfs, NFS or a device mapper.
#[test]
fn a_file_is_found_when_its_device_has_another_number() {
    let place = Place::new();
    let path = place.write("a.log", traces(9));
    let (mut job, store) = (job(&[&path], Bounds::default()), Store::default());
    job.files[0].dev += 1;
    let done = place.run(&job, &store, 100).unwrap().unwrap();
    assert_eq!((store.bodies().len(), done.notes.len()), (27, 0), "{done:?}");
}

/// Notes are in the journal with every batch: their number has an end.
#[test]
fn of_many_files_that_are_renamed_some_are_named() {
    let place = Place::new();
    let paths: Vec<String> =
        (0..20).map(|at| place.write(&format!("{at}.log"), format!("line {at}\n"))).collect();
    let files: Vec<&str> = paths.iter().map(String::as_str).collect();
    let (job, store) = (job(&files, Bounds::default()), Store::default());
    let renamed = paths.clone();
    store.hook(move |number| {
        if number == 0 {
            renamed.iter().for_each(|path| fs::rename(path, format!("{path}.1")).unwrap());
        }
    });
    let done = place.run(&job, &store, 100).unwrap().unwrap();
    assert_eq!((store.bodies().len(), done.notes.len()), (20, 17), "{done:?}");
    assert_eq!(done.notes[16], "and so were other files");
}

#[test]
fn an_archive_that_breaks_off_gives_what_is_there() {
    let place = Place::new();
    let mut packed = GzEncoder::new(Vec::new(), Compression::none());
    packed.write_all(long_text().as_bytes()).unwrap();
    let mut packed = packed.finish().unwrap();
    packed.truncate(packed.len() / 2);
    let path = place.write("a.log.gz", packed);
    let (job, store) = (job(&[&path], Bounds::default()), Store::default());
    let error = place.run(&job, &store, 8_192).unwrap().unwrap_err();
    let events = store.bodies();
    assert!(events.len() > 20_000, "{}", events.len());
    assert!(error.contains(&format!("{} events were put", events.len())), "{error}");
    assert!(long_text().lines().zip(&events).all(|(line, event)| line == event));
}

#[test]
fn lines_over_the_limit_go_to_quarantine_if_they_are_in_the_range() {
    let mut place = Place::new();
    place.setup = Setup { options: place.setup.options.clone(), ..Setup::new("tail") }
        .set("max_line", Value::Size(64))
        .text("long_lines", "quarantine");
    let line = |at: usize| {
        format!("2026-11-30T10:00:{at:02}Z {at} {}\n", "x".repeat(if at.is_multiple_of(2) { 100 } else { 1 }))
    };
    let path = place.write("a.log", (0..10).map(line).collect::<String>());
    let (job, store) = (job(&[&path], seconds(4, 8)), Store::default());
    let done = place.run(&job, &store, 100).unwrap().unwrap();
    assert_eq!((done.events, done.quarantined), (2, 2));
    let times = |is_quarantined: bool| {
        let events = store.0.lock().events.clone();
        let of = events.into_iter().filter(|event| event.3 == is_quarantined);
        of.map(|(_, body, ..)| body[17..19].to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(times(false), ["05", "07"]);
    assert_eq!(times(true), ["04", "06"]);
}

#[test]
fn a_look_counts_what_would_be_put_and_what_is_left() {
    let place = Place::new();
    let path = place.write("a.log", traces(30));
    let job = job(&[&path], seconds(2, 28));
    let whole = place.put(&job);
    let count = backfill::count(&job, &place.reading(), &[]).unwrap();
    let bytes: usize = whole.iter().map(String::len).sum();
    assert_eq!((count.lines, count.events, count.bytes), (78, 78, bytes as u64));
    let (first, last) = (count.first.unwrap(), count.last.unwrap());
    assert_eq!((first.line.as_str(), last.line.as_str()), (whole[0].as_str(), whole[77].as_str()));
    assert_eq!((first.file, first.position), (path, traces(2).len() as u64));

    let store = Store::default();
    store.0.lock().left = Some(4);
    assert!(place.run(&job, &store, 5).is_none());
    let left = backfill::count(&job, &place.reading(), &store.positions()).unwrap();
    assert_eq!(left.lines + store.bodies().len() as u64, 78);
    assert!(left.lines < 78);

    let grouped = place.setup.text("multiline_start", "^2026");
    let place = Place { dir: place.dir, setup: grouped, codec: None };
    let count = backfill::count(&job, &place.reading(), &[]).unwrap();
    assert_eq!((count.lines, count.events), (78, 26));
}

/// Events end with `;`.
struct Semicolons(Arc<str>);

impl Decoder for Semicolons {
    fn hash(&self) -> &Arc<str> {
        &self.0
    }

    fn decode(&self, input: &[u8], _is_last: bool) -> Decoded {
        let mut decoded = Decoded::nothing();
        let (mut bodies, mut from) = (Vec::new(), 0);
        for (at, _) in input.iter().enumerate().filter(|(_, byte)| **byte == b';') {
            bodies.push(&input[from..at]);
            from = at + 1;
            decoded.ends.push(from as u32);
        }
        decoded.consumed = from;
        decoded.events.body = BinaryArray::from(bodies);
        decoded
    }
}

struct Slot;

impl DecoderSlot for Slot {
    fn name(&self) -> &str {
        "semicolons"
    }

    fn current(&self) -> Arc<dyn Decoder> {
        Arc::new(Semicolons("abc".into()))
    }
}

/// Then there are no lines, and bytes are behind events, as tail has them.
#[test]
fn a_codec_finds_the_events() {
    let mut place = Place::new();
    place.codec = Some(DecoderLink::new(Arc::new(Slot), OnReject::Quarantine));
    let path = place.write("a.log", "one;t\no;three;fo");
    let store = Store::default();
    let done = place.run(&job(&[&path], Bounds::default()), &store, 100).unwrap().unwrap();
    assert_eq!((done.events, done.quarantined), (3, 1));
    assert_eq!(store.bodies(), ["one", "t\no", "three", "fo"]);
    let positions: Vec<u64> = store.0.lock().events.iter().map(|(identity, ..)| identity.position).collect();
    assert_eq!(positions, [4, 8, 14, 16]);
    let bytes = Bounds { from_byte: Some(4), to_byte: Some(14), ..Bounds::default() };
    assert_eq!(place.put(&job(&[&path], bytes)), ["t\no", "three"]);
    let count = backfill::count(&job(&[&path], bytes), &place.reading(), &[]).unwrap();
    assert_eq!((count.lines, count.events), (2, 2));
}

/// Its source got a codec since it began: there are no times to choose by, and the range is not forgotten for that.
#[test]
fn a_codec_that_comes_meanwhile_puts_nothing_outside_of_the_range() {
    let mut place = Place::new();
    let path = place.write("a.log", traces(9));
    let (job, store) = (job(&[&path], seconds(2, 5)), Store::default());
    store.0.lock().left = Some(2);
    assert!(place.run(&job, &store, 2).is_none());
    store.0.lock().left = None;
    place.codec = Some(DecoderLink::new(Arc::new(Slot), OnReject::Quarantine));
    let error = place.run(&job, &store, 2).unwrap().unwrap_err();
    assert!(error.contains("with a codec, not by lines"), "{error}");
    let error = backfill::count(&job, &place.reading(), &store.positions()).unwrap_err();
    assert!(error.contains("with a codec, not by lines"), "{error}");
    place.codec = None;
    place.run(&job, &store, 2).unwrap().unwrap();
    assert_eq!(store.bodies().len(), 9);
}

/// A source that is no tail: lines as tail has them by default. What it decodes is no text of a file.
#[test]
fn another_source_lends_its_way_alone() {
    let place = Place::new();
    let reading = Reading::of(&place.plan("stdin"), None).unwrap();
    let path = place.write("a.log", traces(2));
    assert_eq!(backfill::count(&job(&[&path], Bounds::default()), &reading, &[]).unwrap().lines, 6);
    let codec = DecoderLink::new(Arc::new(Slot), OnReject::Quarantine);
    let error = Reading::of(&place.plan("kafka"), Some(codec)).unwrap_err();
    assert!(error.reason.contains("of type `kafka`"), "{error}");
}
