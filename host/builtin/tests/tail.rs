//! The tail source against real files: rotation, restarts, last lines, limits.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use flumen_builtin::sources::tail::position::Record;
use flumen_event::Batch;
use flumen_pipeline::source::Emit;
use flumen_pipeline::{Emission, Metric, Value};
use support::{Journal, Setup};
use tempfile::TempDir;

struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn glob(&self, pattern: &str) -> Setup {
        Setup::tail(self.path(pattern).to_str().unwrap())
    }

    fn append(&self, name: &str, text: &str) {
        append(&self.path(name), text.as_bytes());
    }
}

fn append(path: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(bytes).unwrap();
}

/// Changes every committed position.
fn rewrite(journal: &Journal, change: impl Fn(&mut Record)) {
    let positions = journal.positions().into_iter().map(|(key, value)| {
        let mut record = Record::decode(&value).unwrap();
        change(&mut record);
        (key, record.encode())
    });
    commit(journal, positions.collect());
}

/// Commits these positions, without events.
fn commit(journal: &Journal, positions: Vec<(Vec<u8>, Vec<u8>)>) {
    journal.clone().emit(Emission { batch: Batch::empty(), positions, quarantined: Vec::new() }).unwrap();
    journal.commit(usize::MAX);
}

fn sorted(journal: &Journal) -> Vec<String> {
    let mut bodies = journal.bodies();
    bodies.sort();
    bodies
}

fn no_timeouts(setup: Setup) -> Setup {
    setup.ms("last_line_timeout", 3_600_000).ms("multiline_timeout", 3_600_000)
}

#[test]
fn lines_of_growing_files_have_their_offsets_and_paths() {
    let place = Place::new();
    place.append("a.log", "one\n\ntwo\r\n");
    let journal = Journal::default();
    let run = place.glob("*.log").start(&journal);
    journal.wait_count(3);
    place.append("a.log", "three\n");
    place.append("b.log", "four\n");
    journal.wait_count(5);
    let mut events = journal.events();
    events.sort_by_key(|seen| (seen.file.clone(), seen.identity.position));
    let seen: Vec<(&str, u64)> =
        events.iter().map(|seen| (seen.body.as_str(), seen.identity.position)).collect();
    assert_eq!(seen, [("one", 0), ("", 4), ("two\r", 5), ("three", 10), ("four", 0)]);
    assert_eq!(events[0].file, place.path("a.log").to_str().unwrap());
    assert_eq!(events[0].identity.stream, events[3].identity.stream);
    assert_ne!(events[0].identity.stream, events[4].identity.stream);
    run.stop();
}

#[test]
fn a_restart_goes_on_at_the_committed_offset_and_repeats_what_was_in_flight() {
    let place = Place::new();
    let journal = Journal::default();
    place.append("a.log", "one\ntwo\n");
    let setup = place.glob("a.log");
    let run = setup.start(&journal);
    journal.wait_count(2);
    run.stop();
    place.append("a.log", "three\n");
    let run = setup.start(&journal);
    journal.wait_count(3);
    run.crash(0);
    assert_eq!(journal.bodies(), ["one", "two"]);
    let run = setup.start(&journal);
    journal.wait_count(3);
    run.stop();
    let events = journal.events();
    assert_eq!(journal.bodies(), ["one", "two", "three"]);
    assert_eq!(events[2].identity.stream, events[0].identity.stream);
    assert_eq!(events[2].identity.position, 8);
}

#[test]
fn rename_rotation_reads_the_old_file_to_its_end_also_across_a_restart() {
    let place = Place::new();
    let journal = Journal::default();
    place.append("a.log", "1\n");
    let setup = place.glob("a.log");
    let run = setup.start(&journal);
    journal.wait_count(1);
    let mut old = OpenOptions::new().append(true).open(place.path("a.log")).unwrap();
    std::fs::rename(place.path("a.log"), place.path("a.log.1")).unwrap();
    place.append("a.log", "2\n");
    journal.wait_count(2);
    old.write_all(b"late\n").unwrap();
    journal.wait_count(3);
    run.stop();
    old.write_all(b"later\n").unwrap();
    std::fs::rename(place.path("a.log.1"), place.path("a.log.2")).unwrap();
    let run = setup.start(&journal);
    journal.wait_count(4);
    run.stop();
    let events = journal.events();
    assert_eq!(journal.bodies(), ["1", "2", "late", "later"]);
    assert_eq!(events[3].identity, flumen_event::Identity { stream: events[0].identity.stream, position: 7 });
    assert!(events[3].file.ends_with("/a.log"), "the header keeps the first name");
}

#[test]
fn a_deleted_file_is_read_to_its_end() {
    let place = Place::new();
    let journal = Journal::default();
    place.append("a.log", "1\n");
    let run = place.glob("a.log").start(&journal);
    journal.wait_count(1);
    let mut old = OpenOptions::new().append(true).open(place.path("a.log")).unwrap();
    std::fs::remove_file(place.path("a.log")).unwrap();
    old.write_all(b"2\n").unwrap();
    journal.wait_count(2);
    place.append("a.log", "3\n");
    journal.wait_count(3);
    run.stop();
    assert_eq!(journal.bodies(), ["1", "2", "3"]);
}

#[test]
fn truncation_begins_a_new_stream_even_if_the_file_has_grown_past_the_offset() {
    let place = Place::new();
    let journal = Journal::default();
    place.append("a.log", "first\nsecond\n");
    let setup = place.glob("a.log");
    let run = setup.start(&journal);
    journal.wait_count(2);
    File::options().write(true).open(place.path("a.log")).unwrap().set_len(0).unwrap();
    place.append("a.log", "x\n");
    journal.wait_count(3);
    assert_eq!(run.metrics.get(Metric::SourceRotations), 1);
    run.stop();
    // While nobody looks, it is truncated and grows past the committed offset.
    File::options().write(true).open(place.path("a.log")).unwrap().set_len(0).unwrap();
    place.append("a.log", "longer than before\nand more\n");
    let run = setup.start(&journal);
    journal.wait_count(5);
    run.stop();
    assert_eq!(journal.bodies(), ["first", "second", "x", "longer than before", "and more"]);
    let streams: std::collections::BTreeSet<u64> =
        journal.events().iter().map(|seen| seen.identity.stream).collect();
    assert_eq!(streams.len(), 3);
    assert_eq!(journal.position_count(), 1, "old generations are removed");
}

#[test]
fn the_same_head_and_another_tail_is_a_loud_new_generation() {
    let place = Place::new();
    let journal = Journal::default();
    let head = format!("{}\n", "h".repeat(2_000));
    place.append("a.log", &format!("{head}{}\n", "a".repeat(100)));
    let setup = place.glob("a.log");
    let run = setup.start(&journal);
    journal.wait_count(2);
    run.stop();
    std::fs::write(place.path("a.log"), format!("{head}{}\nmore\n", "b".repeat(100))).unwrap();
    let run = setup.start(&journal);
    journal.wait_count(5);
    assert_eq!(run.metrics.get(Metric::SourceGenerations), 1);
    run.stop();
    assert_eq!(journal.bodies()[2..], [&head[..2_000], &"b".repeat(100), "more"]);
}

#[test]
fn last_line_without_newline() {
    let place = Place::new();
    let journal = Journal::default();
    // It grows before the timeout: one event.
    place.append("a.log", "half");
    let setup = no_timeouts(place.glob("a.log"));
    let run = setup.start(&journal);
    run.wait_metric(Metric::SourceBytesRead, 4);
    place.append("a.log", " and half\n");
    journal.wait_count(1);
    run.stop();
    // Taken after the timeout; the newline that follows is no event, also after a restart.
    let setup = place.glob("a.log").ms("last_line_timeout", 20);
    place.append("a.log", "taken");
    let run = setup.start(&journal);
    journal.wait_count(2);
    run.stop();
    place.append("a.log", "\nnext\n");
    let run = setup.start(&journal);
    journal.wait_count(3);
    // It grows after it was taken: the rest is an event of its own.
    place.append("a.log", "begin");
    journal.wait_count(4);
    run.stop();
    place.append("a.log", " end\nlast\n");
    let run = setup.start(&journal);
    journal.wait_count(6);
    run.stop();
    let seen: Vec<(String, bool)> =
        journal.events().into_iter().map(|seen| (seen.body, seen.continued)).collect();
    let expected = ["half and half", "taken", "next", "begin", " end", "last"];
    assert_eq!(seen, expected.map(|body| (body.to_owned(), body == " end")));
}

#[test]
fn a_line_of_50_mb_is_split_with_bounded_memory() {
    let place = Place::new();
    let journal = Journal::default();
    let line: Vec<u8> = (0..50_000_000_u32).map(|n| b'a' + (n / 7 % 26) as u8).collect();
    append(&place.path("a.log"), &line);
    place.append("a.log", "\nshort\n");
    let run = place.glob("a.log").start(&journal);
    journal.wait("the short line", |events| events.last().is_some_and(|seen| seen.body == "short"));
    assert_eq!(run.metrics.get(Metric::SourceLinesSplit), 1);
    run.stop();
    let events = journal.events();
    assert_eq!(events.len(), 50_000_000_usize.div_ceil(1 << 20) + 1);
    assert!(events.iter().enumerate().all(|(n, seen)| seen.continued == (0 < n && n < events.len() - 1)));
    let whole: String = events[..events.len() - 1].iter().map(|seen| seen.body.as_str()).collect();
    assert!(whole.as_bytes() == line);
}

#[test]
fn a_line_of_50_mb_goes_to_quarantine_and_its_rest_is_skipped_also_across_a_crash() {
    let place = Place::new();
    let journal = Journal::default();
    place.append("a.log", "before\n");
    append(&place.path("a.log"), &vec![b'z'; 50_000_000]);
    let setup = place.glob("a.log").text("long_lines", "quarantine");
    let run = setup.start(&journal);
    journal.wait_count(2);
    run.stop();
    place.append("a.log", "zz\nafter\n");
    let run = setup.start(&journal);
    journal.wait_count(3);
    run.stop();
    let events = journal.events();
    let seen: Vec<(usize, bool)> = events.iter().map(|seen| (seen.body.len(), seen.quarantined)).collect();
    assert_eq!(seen, [(6, false), (1 << 20, true), (5, false)]);
    assert_eq!(events[1].identity.position, 7);
}

#[test]
fn multiline_event_is_one_across_rename_rotation_and_restart() {
    for restart in [false, true] {
        let place = Place::new();
        let journal = Journal::default();
        let setup = no_timeouts(place.glob("a.log")).text("multiline_start", "^E");
        place.append("a.log", "E1\n at x\nE2\n at a\n");
        let run = setup.start(&journal);
        journal.wait_count(1);
        let running = if restart {
            run.crash(usize::MAX);
            None
        } else {
            Some(run)
        };
        std::fs::rename(place.path("a.log"), place.path("a.log.1")).unwrap();
        place.append("a.log", " at b\n at c\nE3\nE4\n");
        let run = running.unwrap_or_else(|| setup.start(&journal));
        journal.wait_count(3);
        run.stop();
        let events = journal.events();
        assert_eq!(journal.bodies(), ["E1\n at x", "E2\n at a\n at b\n at c", "E3"]);
        assert_eq!(
            events[1].identity,
            flumen_event::Identity { stream: events[0].identity.stream, position: 9 }
        );
        assert_eq!(events[2].identity.position, 12);
        // Nothing comes twice after another restart.
        let run = no_timeouts(place.glob("a.log")).text("multiline_start", "^E").ms("multiline_timeout", 20);
        let run = run.start(&journal);
        journal.wait_count(4);
        run.stop();
        assert_eq!(journal.bodies()[3..], ["E4"]);
    }
}

#[test]
fn multiline_event_is_one_wherever_a_crash_falls_around_a_rotation() {
    for committed in 1..6 {
        let place = Place::new();
        let journal = Journal::default();
        let setup = no_timeouts(place.glob("a.log")).text("multiline_start", "^E");
        place.append("a.log", "E1\nE2\n at a\n");
        let run = setup.start(&journal);
        journal.wait_count(1);
        std::fs::rename(place.path("a.log"), place.path("a.log.1")).unwrap();
        place.append("a.log", " at b\n");
        place.append("a.log", "E3\nE4\n");
        journal.wait_count(3);
        run.crash(committed);
        let run = setup.start(&journal);
        journal.wait_count(3);
        run.stop();
        assert_eq!(journal.bodies(), ["E1", "E2\n at a\n at b", "E3"], "{committed} emissions committed");
    }
}

/// Where births are not known, or two fall into one tick of the file system's clock, they do not say which file was there first.
#[test]
fn multiline_event_is_one_across_a_rotation_that_only_the_offsets_tell() {
    let place = Place::new();
    let journal = Journal::default();
    let setup = no_timeouts(place.glob("a.log")).text("multiline_start", "^E");
    place.append("a.log", "E1\nE2\n at a\n");
    let run = setup.start(&journal);
    journal.wait_count(1);
    run.stop();
    std::fs::rename(place.path("a.log"), place.path("a.log.1")).unwrap();
    place.append("a.log", " at b\nE3\nE4\n");
    let run = setup.start(&journal);
    journal.wait_count(3);
    // Of this life only that the new file is there becomes durable.
    run.crash(1);
    let mut positions = Vec::new();
    for (key, value) in journal.positions() {
        let mut record = Record::decode(&value).unwrap();
        record.inode.birth = None;
        // Keys are hashes; here their order is the wrong one.
        let stream: u64 = if record.offset == 0 { 1 } else { 2 };
        positions.push((key, Vec::new()));
        positions.push((stream.to_be_bytes().to_vec(), record.encode()));
    }
    commit(&journal, positions);
    let offsets = journal.positions().into_iter().map(|(_, value)| Record::decode(&value).unwrap().offset);
    assert_eq!(offsets.collect::<Vec<_>>(), [0, 3]);
    let run = setup.start(&journal);
    journal.wait_count(3);
    run.stop();
    assert_eq!(journal.bodies(), ["E1", "E2\n at a\n at b", "E3"]);
}

#[test]
fn multiline_event_is_one_across_copytruncate() {
    let place = Place::new();
    let journal = Journal::default();
    let setup = no_timeouts(place.glob("a.log")).text("multiline_continue", r"^\s");
    place.append("a.log", "E1\nE2\n at a\n");
    let run = setup.start(&journal);
    run.wait_metric(Metric::SourceBytesRead, 12);
    std::fs::write(place.path("a.log"), "").unwrap();
    place.append("a.log", " at b\nE3\n");
    journal.wait_count(2);
    run.stop();
    assert_eq!(journal.bodies(), ["E1", "E2\n at a\n at b"]);
    let setup = setup.ms("multiline_timeout", 20);
    let run = setup.start(&journal);
    journal.wait_count(3);
    run.stop();
    assert_eq!(journal.bodies()[2..], ["E3"]);
}

#[test]
fn multiline_limits_and_timeouts() {
    let place = Place::new();
    let journal = Journal::default();
    let setup = place.glob("a.log").text("multiline_start", "^E");
    let setup = setup.set("multiline_max_lines", Value::Integer(3)).ms("multiline_timeout", 20);
    place.append("a.log", "E1\n1\n2\n3\n4\nE2\nE3\n5\n");
    let run = setup.start(&journal);
    journal.wait_count(4);
    place.append("a.log", "6\n");
    journal.wait_count(5);
    run.stop();
    assert_eq!(journal.bodies(), ["E1\n1\n2", "3\n4", "E2", "E3\n5", "6"]);
}

#[test]
fn start_at_the_end_skips_what_is_there_and_nothing_later() {
    let place = Place::new();
    let journal = Journal::default();
    place.append("a.log", "old\nold too\nhal");
    // What is there of the line must not be taken for idle while this thread stands still.
    let setup = no_timeouts(place.glob("*.log")).text("start", "end");
    let run = setup.start(&journal);
    journal.wait_emissions(1);
    place.append("a.log", "f\n");
    journal.wait_count(1);
    run.stop();
    place.append("b.log", "new\n");
    let run = setup.start(&journal);
    journal.wait_count(2);
    run.stop();
    assert_eq!(journal.bodies(), ["half", "new"]);
}

#[test]
fn empty_files_directories_and_files_that_vanish() {
    let place = Place::new();
    let journal = Journal::default();
    place.append("empty.log", "");
    std::fs::create_dir(place.path("dir.log")).unwrap();
    let setup = place.glob("*.log").set(
        "paths",
        Value::TextList(
            ["*.log", "dir.log"].map(|name| place.path(name).to_str().unwrap().to_owned()).to_vec(),
        ),
    );
    let run = setup.start(&journal);
    run.wait_metric(Metric::SourceErrors, 1);
    std::fs::remove_dir(place.path("dir.log")).unwrap();
    place.append("dir.log", "a file now\n");
    journal.wait_count(1);
    place.append("empty.log", "not empty\n");
    journal.wait_count(2);
    std::fs::remove_file(place.path("dir.log")).unwrap();
    std::fs::create_dir(place.path("dir.log")).unwrap();
    place.append("empty.log", "more\n");
    journal.wait_count(3);
    run.stop();
    assert_eq!(journal.bodies(), ["a file now", "not empty", "more"]);
}

/// Root passes permission checks, so this only proves something for other users.
#[test]
fn a_file_without_permission_is_read_when_it_gets_it() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let journal = Journal::default();
    place.append("a.log", "secret\n");
    std::fs::set_permissions(place.path("a.log"), std::fs::Permissions::from_mode(0o0)).unwrap();
    let root = File::open(place.path("a.log")).is_ok();
    let run = place.glob("a.log").start(&journal);
    if !root {
        run.wait_metric(Metric::SourceErrors, 1);
    }
    std::fs::set_permissions(place.path("a.log"), std::fs::Permissions::from_mode(0o600)).unwrap();
    journal.wait_count(1);
    run.stop();
}

#[test]
fn more_files_than_may_be_open() {
    let place = Place::new();
    let journal = Journal::default();
    let setup = place.glob("*.log").set("max_open_files", Value::Integer(3));
    let run = setup.start(&journal);
    for round in 0..3 {
        for file in 0..20 {
            place.append(&format!("{file}.log"), &format!("{round}\n"));
        }
        journal.wait_count(20 * (round + 1));
        assert!(run.metrics.get(Metric::SourceFilesOpen) <= 3);
    }
    run.stop();
    assert_eq!(journal.events().len(), 60);
}

#[test]
fn a_change_is_noticed_by_polling_alone() {
    let place = Place::new();
    let journal = Journal::default();
    // A link to a directory elsewhere: the file's own directory is not watched.
    std::fs::create_dir(place.path("real")).unwrap();
    place.append("real/target", "1\n");
    std::os::unix::fs::symlink(place.path("real/target"), place.path("a.log")).unwrap();
    let run = place.glob("*.log").start(&journal);
    journal.wait_count(1);
    place.append("real/target", "2\n");
    journal.wait_count(2);
    run.stop();
    assert_eq!(journal.bodies(), ["1", "2"]);
}

#[test]
fn a_file_that_is_rotated_behind_a_link_is_read_to_its_end_also_across_a_restart() {
    for is_by_older_release in [false, true] {
        let place = Place::new();
        let journal = Journal::default();
        std::fs::create_dir(place.path("real")).unwrap();
        place.append("real/target", "1\n");
        std::os::unix::fs::symlink(place.path("real/target"), place.path("a.log")).unwrap();
        let setup = place.glob("*.log");
        let run = setup.start(&journal);
        journal.wait_count(1);
        run.stop();
        if is_by_older_release {
            // Its positions have the path of the link.
            rewrite(&journal, |record| record.path = place.path("a.log"));
        }
        place.append("real/target", "unread\n");
        std::fs::rename(place.path("real/target"), place.path("real/target.1")).unwrap();
        place.append("real/target", "new\n");
        let run = setup.start(&journal);
        journal.wait_count(3);
        run.stop();
        assert_eq!(sorted(&journal), ["1", "new", "unread"]);
    }
}

#[test]
fn a_file_is_read_to_its_end_where_it_was_when_the_link_to_its_directory_leads_elsewhere() {
    let place = Place::new();
    let journal = Journal::default();
    std::fs::create_dir(place.path("v1")).unwrap();
    std::fs::create_dir(place.path("v2")).unwrap();
    place.append("v1/a.log", "1\n");
    std::os::unix::fs::symlink(place.path("v1"), place.path("current")).unwrap();
    let setup = place.glob("current/*.log");
    let run = setup.start(&journal);
    journal.wait_count(1);
    run.stop();
    place.append("v1/a.log", "unread\n");
    place.append("v2/a.log", "new\n");
    std::fs::remove_file(place.path("current")).unwrap();
    std::os::unix::fs::symlink(place.path("v2"), place.path("current")).unwrap();
    let run = setup.start(&journal);
    journal.wait_count(3);
    run.stop();
    assert_eq!(sorted(&journal), ["1", "new", "unread"]);
}

#[test]
fn a_file_goes_on_when_its_device_has_another_number_after_a_reboot() {
    for (is_birth_known, is_rotated) in [(true, false), (false, false), (true, true)] {
        let place = Place::new();
        let journal = Journal::default();
        place.append("a.log", "1\n2\n");
        if is_birth_known && std::fs::metadata(place.path("a.log")).unwrap().created().is_err() {
            continue;
        }
        let setup = place.glob("[ab].log");
        let run = setup.start(&journal);
        journal.wait_count(2);
        run.stop();
        rewrite(&journal, |record| {
            record.inode.dev += 1;
            record.inode.birth = record.inode.birth.filter(|_| is_birth_known);
        });
        place.append("a.log", "3\n");
        if is_rotated {
            std::fs::rename(place.path("a.log"), place.path("a.log.1")).unwrap();
        }
        let run = setup.start(&journal);
        journal.wait_count(3);
        place.append("b.log", "end\n");
        journal.wait("the end", |events| events.last().is_some_and(|seen| seen.body == "end"));
        run.stop();
        assert_eq!(journal.bodies(), ["1", "2", "3", "end"], "{is_birth_known} {is_rotated}");
        let events = journal.events();
        assert!(events[..3].iter().all(|seen| seen.identity.stream == events[0].identity.stream));
        assert_eq!(journal.position_count(), 2);
    }
}

#[test]
fn a_rotated_file_is_read_on_when_its_directory_comes_back() {
    let place = Place::new();
    let journal = Journal::default();
    std::fs::create_dir(place.path("disk")).unwrap();
    place.append("disk/a.log", "1\n");
    let paths = ["disk/a.log", "b.log"].map(|name| place.path(name).to_str().unwrap().to_owned());
    let setup = place.glob("*.log").set("paths", Value::TextList(paths.to_vec()));
    let run = setup.start(&journal);
    journal.wait_count(1);
    run.stop();
    place.append("disk/a.log", "unread\n");
    std::fs::rename(place.path("disk/a.log"), place.path("disk/a.log.1")).unwrap();
    std::fs::rename(place.path("disk"), place.path("away")).unwrap();
    place.append("b.log", "2\n");
    let run = setup.start(&journal);
    // A walk has looked for the file in vain by then.
    journal.wait_count(2);
    std::fs::rename(place.path("away"), place.path("disk")).unwrap();
    journal.wait_count(3);
    run.stop();
    assert_eq!(journal.bodies(), ["1", "2", "unread"]);
}
