//! The file sink as the pipeline uses it: from options, on a real file system.
//!
//! Random crashes, power losses and errors of the disk are in `src/sinks/file/tests.rs`.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::StringArray;
use flumen_builtin::sinks::sinks;
use flumen_event::{BatchBuilder, HeaderColumn};
use flumen_journal::Delivery;
use flumen_pipeline::sink::{Cursors, Sink, SinkCommit, SinkContext};
use flumen_pipeline::source::Wake;
use flumen_pipeline::{ComponentKind, ComponentMetrics, Metric, Options, SinkError, Value};
use parking_lot::Mutex;

/// The journal's record of the sink: its position.
#[derive(Clone, Default)]
struct Record(Arc<Mutex<Option<Vec<u8>>>>);

impl SinkCommit for Record {
    fn commit_position(&mut self, position: &[u8]) -> Result<(), SinkError> {
        *self.0.lock() = Some(position.to_vec());
        Ok(())
    }
}

/// A sink in its directory, with the pipeline's side of the protocol.
struct Outlet {
    record: Record,
    context: SinkContext,
    sink: Box<dyn Sink>,
}

fn text(value: &str) -> Value {
    Value::Text(value.into())
}

impl Outlet {
    fn start(record: &Record, path: &Path, more: &[(&str, Value)]) -> Outlet {
        let mut options = BTreeMap::from([("path".to_owned(), text(path.to_str().unwrap()))]);
        options.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let types = sinks();
        let file = types.iter().find(|kind| kind.spec.kind == "file").unwrap();
        let mut sink = (file.build)(&Options(options)).unwrap();
        let metrics = ComponentMetrics::new(ComponentKind::Sink, "archive".into());
        let mut context =
            SinkContext::new("archive".into(), metrics, Wake::default(), Box::new(record.clone()));
        let committed = record.0.lock().clone();
        sink.recover(&mut context, committed.as_deref(), &mut Cursors::none()).unwrap();
        Outlet { record: record.clone(), context, sink }
    }

    fn recover(&mut self) {
        let committed = self.record.0.lock().clone();
        self.sink.recover(&mut self.context, committed.as_deref(), &mut Cursors::none()).unwrap();
    }

    fn deliver(&mut self, bodies: &[&str], host: Option<&str>) -> Result<(), SinkError> {
        let mut builder = BatchBuilder::default();
        bodies.iter().enumerate().for_each(|(row, body)| builder.push(1, row as u64, 0, body.as_bytes()));
        let hosts: StringArray = bodies.iter().map(|_| host).collect();
        let batch = builder.finish(vec![HeaderColumn { name: "host".into(), values: hosts }]).unwrap();
        self.sink.deliver(&mut self.context, &Delivery { first: 0, next: 0, batch, lost_before: 0 })
    }

    /// One batch of events of several hosts.
    fn deliver_mixed(&mut self, events: &[(&str, &str)]) -> Result<(), SinkError> {
        let mut builder = BatchBuilder::default();
        for (row, (_, body)) in events.iter().enumerate() {
            builder.push(1, row as u64, 0, body.as_bytes());
        }
        let hosts: StringArray = events.iter().map(|(host, _)| Some(*host)).collect();
        let batch = builder.finish(vec![HeaderColumn { name: "host".into(), values: hosts }]).unwrap();
        self.sink.deliver(&mut self.context, &Delivery { first: 0, next: 0, batch, lost_before: 0 })
    }

    /// What waits for the commit of the next flush: bodies with their reasons.
    fn quarantined(&mut self) -> Vec<(String, String)> {
        let groups = self.context.take_quarantined();
        let rows = groups.iter().flat_map(|group| {
            assert_eq!(group.reasons.len(), group.batch.rows());
            group.reasons.iter().enumerate().map(move |(row, reason)| {
                let body = String::from_utf8_lossy(group.batch.body().value(row)).into_owned();
                (body, reason.clone())
            })
        });
        rows.collect()
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        let position = self.sink.flush(&mut self.context, b"")?;
        *self.record.0.lock() = Some(position.clone());
        self.sink.committed(&mut self.context, &position)
    }

    fn close(mut self) {
        self.flush().unwrap();
        self.sink.close(&mut self.context).unwrap();
    }
}

/// Names below a directory, with their content.
fn files(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read_to_string(path).unwrap());
            }
        }
    }
    found
}

fn expect(root: &Path, expected: &[(&str, &str)]) {
    let expected: BTreeMap<String, String> =
        expected.iter().map(|(name, content)| ((*name).into(), (*content).into())).collect();
    assert_eq!(files(root), expected);
}

#[test]
fn the_registry_says_what_each_sink_promises() {
    let promises: Vec<_> =
        sinks().iter().map(|kind| (kind.spec.kind, (kind.delivery)(&Options::default()))).collect();
    assert_eq!(
        promises,
        [
            ("file", "exactly-once"),
            ("kafka", "exactly-once"),
            ("console", "at-least-once"),
            ("null", "at-least-once")
        ]
    );
}

#[test]
fn a_file_is_open_until_it_is_full_and_committed_and_a_stop_finishes_the_rest() {
    let root = tempfile::tempdir().unwrap();
    let record = Record::default();
    let mut outlet = Outlet::start(&record, &root.path().join("a.log"), &[("roll_size", Value::Size(6))]);
    outlet.deliver(&["one", "two", "three"], None).unwrap();
    outlet.flush().unwrap();
    expect(root.path(), &[("a-000001.log", "one\ntwo\n"), ("a-000002.log", "three\n")]);
    outlet.deliver(&["x"], None).unwrap();
    outlet.flush().unwrap();
    assert!(files(root.path()).contains_key("a-000003.log.open"));
    outlet.close();
    expect(
        root.path(),
        &[("a-000001.log", "one\ntwo\n"), ("a-000002.log", "three\n"), ("a-000003.log", "x\n")],
    );
    Outlet::start(&record, &root.path().join("a.log"), &[]).close();
    assert_eq!(files(root.path()).len(), 3, "a restart without events makes no file");
}

#[test]
fn after_a_kill_the_file_is_cut_and_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let (record, path) = (Record::default(), root.path().join("sub/dir/a.log"));
    let mut outlet = Outlet::start(&record, &path, &[]);
    outlet.deliver(&["one"], None).unwrap();
    outlet.flush().unwrap();
    outlet.deliver(&["lost and delivered again"], None).unwrap();
    drop(outlet.sink.flush(&mut outlet.context, b"").unwrap());
    drop(outlet);
    expect(root.path(), &[("sub/dir/a-000001.log.open", "one\nlost and delivered again\n")]);
    let mut outlet = Outlet::start(&record, &path, &[]);
    expect(root.path(), &[("sub/dir/a-000001.log.open", "one\n")]);
    outlet.deliver(&["two"], None).unwrap();
    outlet.close();
    expect(root.path(), &[("sub/dir/a-000001.log", "one\ntwo\n")]);
}

#[test]
fn other_settings_finish_the_old_files() {
    let root = tempfile::tempdir().unwrap();
    let (record, path) = (Record::default(), root.path().join("a.log"));
    let mut outlet = Outlet::start(&record, &path, &[]);
    outlet.deliver(&["one"], None).unwrap();
    outlet.flush().unwrap();
    drop(outlet);
    let mut outlet = Outlet::start(&record, &path, &[("encoding", text("json"))]);
    assert!(outlet.sink.due(), "the old file waits for its final name");
    outlet.deliver(&["two"], None).unwrap();
    outlet.close();
    let files = files(root.path());
    assert_eq!(files["a-000001.log"], "one\n");
    assert!(
        files["a-000002.log"].starts_with("{\"time\":\"1970-01-01T00:00:00.000000000Z\",\"body\":\"two\"")
    );
}

#[test]
fn a_file_that_someone_cut_or_removed_is_reported_and_delivery_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let (record, path) = (Record::default(), root.path().join("{header.host}.log"));
    let mut outlet = Outlet::start(&record, &path, &[]);
    outlet.deliver(&["one", "two"], Some("cut")).unwrap();
    outlet.deliver(&["three"], Some("removed")).unwrap();
    outlet.flush().unwrap();
    drop(outlet);
    std::fs::write(root.path().join("cut-000001.log.open"), "one\n").unwrap();
    std::fs::remove_file(root.path().join("removed-000002.log.open")).unwrap();
    let mut outlet = Outlet::start(&record, &path, &[]);
    assert_eq!(outlet.context.metrics.get(Metric::SinkFilesDamaged), 2);
    outlet.deliver(&["four"], Some("cut")).unwrap();
    outlet.deliver(&["five"], Some("removed")).unwrap();
    outlet.close();
    expect(
        root.path(),
        &[("cut-000001.log", "one\n"), ("cut-000003.log", "four\n"), ("removed-000004.log", "five\n")],
    );
}

#[test]
fn what_was_written_to_a_removed_file_is_not_acknowledged() {
    let root = tempfile::tempdir().unwrap();
    let mut outlet = Outlet::start(&Record::default(), &root.path().join("sub/a.log"), &[]);
    outlet.deliver(&["one"], None).unwrap();
    outlet.flush().unwrap();
    std::fs::remove_dir_all(root.path().join("sub")).unwrap();
    outlet.deliver(&["two"], None).unwrap();
    let error = outlet.flush().unwrap_err();
    assert!(error.to_string().contains("was removed"), "{error}");
    outlet.recover();
    assert_eq!(outlet.context.metrics.get(Metric::SinkFilesDamaged), 1);
    outlet.deliver(&["two"], None).unwrap();
    outlet.close();
    expect(root.path(), &[("sub/a-000002.log", "two\n")]);
}

#[test]
fn a_position_that_cannot_be_read_touches_nothing() {
    let root = tempfile::tempdir().unwrap();
    let (record, path) = (Record::default(), root.path().join("a.log"));
    let mut outlet = Outlet::start(&record, &path, &[]);
    outlet.deliver(&["one"], None).unwrap();
    outlet.flush().unwrap();
    let error = outlet
        .sink
        .recover(&mut outlet.context, Some(b"\x09from the future"), &mut Cursors::none())
        .unwrap_err();
    assert!(error.to_string().contains("version 9"), "{error}");
    assert!(outlet.deliver(&["two"], None).is_err(), "nothing works before recover does");
    expect(root.path(), &[("a-000001.log.open", "one\n")]);
}

#[test]
fn no_event_leaves_the_directory_and_no_file_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let inside = root.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(inside.join("a-000004"), "mine").unwrap();
    let mut outlet = Outlet::start(&Record::default(), &inside.join("{header.host}"), &[]);
    for host in ["../../etc/x", "..", "/etc/passwd", "a", "\0"] {
        outlet.deliver(&[host], Some(host)).unwrap();
    }
    outlet.close();
    let names: Vec<String> = files(root.path()).into_keys().collect();
    assert_eq!(
        names,
        ["_-000006", "__-000002", "___.._etc_x-000001", "_etc_passwd-000003", "a-000004", "a-000005"]
            .map(|name| format!("inside/{name}"))
    );
    assert_eq!(files(&inside)["a-000004"], "mine");
}

#[test]
fn events_whose_header_leads_to_no_directory_go_to_quarantine_and_the_others_to_their_files() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("x"), "not ours").unwrap();
    let (record, path) = (Record::default(), root.path().join("{header.host}/sub/a.log"));
    let events = [("x", "one"), ("y", "two"), ("x", "three")];
    let mut outlet = Outlet::start(&record, &path, &[]);
    outlet.deliver_mixed(&events).unwrap();
    // Killed before the flush: what was quarantined was committed as little as what was written.
    drop(outlet);
    let mut outlet = Outlet::start(&record, &path, &[]);
    outlet.deliver_mixed(&events).unwrap();
    let mut refused = outlet.quarantined();
    refused.sort();
    let bodies: Vec<&str> = refused.iter().map(|(body, _)| body.as_str()).collect();
    assert_eq!(bodies, ["one", "three"]);
    let at = root.path().join("x/sub").display().to_string();
    assert!(refused[0].1.contains(&at) && refused[0].1.contains("Not a directory"), "{refused:?}");
    outlet.close();
    expect(root.path(), &[("x", "not ours"), ("y/sub/a-000002.log", "two\n")]);
}

#[test]
fn what_is_wrong_with_the_fixed_part_of_a_path_is_no_events_fault() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    std::fs::write(&out, "not a directory").unwrap();
    let mut outlet = Outlet::start(&Record::default(), &out.join("{header.host}/a.log"), &[]);
    let error = outlet.deliver(&["one"], Some("y")).unwrap_err();
    assert!(error.to_string().contains("Not a directory"), "{error}");
    assert!(outlet.quarantined().is_empty());
    std::fs::remove_file(&out).unwrap();
    outlet.recover();
    outlet.deliver(&["one"], Some("y")).unwrap();
    outlet.close();
    assert_eq!(files(&out).into_values().collect::<Vec<_>>(), ["one\n"]);
}

#[test]
fn a_file_is_finished_by_time_without_events() {
    let root = tempfile::tempdir().unwrap();
    let interval = Value::Duration(Duration::from_millis(30));
    let mut outlet =
        Outlet::start(&Record::default(), &root.path().join("a.log"), &[("roll_interval", interval)]);
    outlet.deliver(&["one"], None).unwrap();
    outlet.flush().unwrap();
    let begin = Instant::now();
    // On a busy machine it may be due by the first flush.
    while !root.path().join("a-000001.log").exists() {
        assert!(begin.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
        if outlet.sink.due() {
            outlet.flush().unwrap();
        }
    }
    expect(root.path(), &[("a-000001.log", "one\n")]);
    assert!(!outlet.sink.due());
}

#[test]
fn more_buckets_than_open_files() {
    let root = tempfile::tempdir().unwrap();
    let open = [("max_open_files", Value::Integer(3))];
    let mut outlet = Outlet::start(&Record::default(), &root.path().join("{header.host}.log"), &open);
    for round in 0..3 {
        for host in 0..10 {
            outlet.deliver(&[&format!("{round} {host}")], Some(&host.to_string())).unwrap();
            let held = std::fs::read_dir("/proc/self/fd")
                .unwrap()
                .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
            assert!(held.filter(|path| path.starts_with(root.path())).count() <= 3);
        }
    }
    outlet.close();
    let files = files(root.path());
    assert_eq!(files.len(), 30, "each was finished before its bucket came again");
    assert!(files.values().all(|content| content.lines().count() == 1));
}

/// A file system of 1 MiB that is really full.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` without the right to mount.
    fn mount(at: PathBuf) -> Option<SmallDisk> {
        std::fs::create_dir(&at).unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(&at)
            .output();
        mounted.is_ok_and(|output| output.status.success()).then_some(SmallDisk(at))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", self.0.display());
    }
}

#[test]
fn a_full_disk_is_said_in_words_and_when_it_has_room_nothing_is_lost_or_doubled() {
    let root = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(root.path().join("disk")) else {
        eprintln!("SKIPPED: needs the right to mount a tmpfs (run as root)");
        return;
    };
    let ballast = disk.0.join("ballast");
    std::fs::write(&ballast, vec![0; 900 << 10]).unwrap();
    let mut outlet = Outlet::start(&Record::default(), &disk.0.join("a.log"), &[]);
    let line = |round: usize, row: usize| format!("{round:04} {row:04} {}", "x".repeat(89));
    let (mut round, mut errors) = (0, 0);
    while round < 12 {
        let lines: Vec<String> = (0..200).map(|row| line(round, row)).collect();
        let bodies: Vec<&str> = lines.iter().map(String::as_str).collect();
        match outlet.deliver(&bodies, None).and_then(|()| outlet.flush()) {
            Ok(()) => round += 1,
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("a-000001.log.open") && error.contains("No space left"), "{error}");
                outlet.recover();
                errors += 1;
                if errors == 3 {
                    std::fs::remove_file(&ballast).unwrap();
                }
                assert!(errors < 10, "{error}");
            }
        }
    }
    assert!(errors >= 3, "the disk was never full");
    outlet.close();
    let expected: String =
        (0..12).flat_map(|round| (0..200).map(move |row| line(round, row) + "\n")).collect();
    assert!(files(&disk.0)["a-000001.log"] == expected);
}
