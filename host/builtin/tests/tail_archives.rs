//! The tail source and compressed files.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use flumen_builtin::sources::tail::position::{Kind, Record};
use flumen_pipeline::Metric;
use flumen_pipeline::source::Emit;
use support::{Journal, Setup};

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn zstd(text: &str) -> Vec<u8> {
    zstd::encode_all(text.as_bytes(), 1).unwrap()
}

fn setup(root: &Path, pattern: &str) -> Setup {
    Setup::tail(root.join(pattern).to_str().unwrap())
}

fn lines(from: usize, to: usize) -> String {
    (from..to).map(|n| format!("line {n} of some length\n")).collect()
}

/// The committed archives with `finished` set: nothing of them may be read again.
#[test]
fn archives_of_several_members_are_read_once() {
    for (extension, pack) in [("gz", gzip as fn(&str) -> Vec<u8>), ("zst", zstd)] {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(format!("a.log.{extension}"));
        let bytes = [pack("one\ntwo\nth"), pack("ree\nlast")].concat();
        std::fs::write(&path, &bytes).unwrap();
        let journal = Journal::default();
        let setup = setup(root.path(), "*.{gz,zst}");
        let run = setup.start(&journal);
        journal.wait_emissions(1);
        journal.wait_count(4);
        run.stop();
        assert_eq!(journal.bodies(), ["one", "two", "three", "last"]);
        assert_eq!(journal.events()[2].identity.position, 8);
        // Read again after a restart? Only a further member would be.
        let run = setup.start(&journal);
        File::options().append(true).open(&path).unwrap().write_all(&pack("\nmore\n")).unwrap();
        journal.wait_count(5);
        run.stop();
        assert_eq!(journal.bodies()[4..], ["more"]);
    }
}

#[test]
fn a_crash_within_an_archive_resumes_at_the_committed_offset() {
    let root = tempfile::tempdir().unwrap();
    let text = lines(0, 50_000);
    for (name, bytes) in [("a.gz", gzip(&text)), ("b.zst", zstd(&text))] {
        std::fs::write(root.path().join(name), bytes).unwrap();
    }
    let journal = Journal::default();
    let mut setup = setup(root.path(), "*");
    setup.batch.rows = 1_000;
    // Else what is left at the end of a chunk goes alone, if the source stands still for a moment: the emissions are counted here.
    let linger = std::mem::replace(&mut setup.batch.linger, Duration::from_secs(3_600));
    for committed in [3, 17, 40] {
        // Before the source is there: what it has emitted by then counts as well.
        let before = journal.events().len();
        let run = setup.start(&journal);
        journal.wait_count(before + (committed + 3) * 1_000);
        run.crash(committed);
        assert_eq!(journal.events().len(), before + committed * 1_000);
    }
    setup.batch.linger = linger;
    let run = setup.start(&journal);
    journal.wait_count(100_000);
    run.stop();
    for name in ["a.gz", "b.zst"] {
        let seen: String = journal
            .events()
            .iter()
            .filter(|seen| seen.file.ends_with(name))
            .map(|seen| format!("{}\n", seen.body))
            .collect();
        assert!(seen == text, "{name}");
    }
}

#[test]
fn an_archive_that_is_still_being_written_is_read_on_when_it_grows() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("a.gz");
    let bytes = gzip(&lines(0, 100_000));
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let journal = Journal::default();
    let run = setup(root.path(), "*.gz").start(&journal);
    run.wait_metric(Metric::SourceErrors, 1);
    let some = journal.events().len();
    assert!(some > 10_000, "{some}");
    File::options().append(true).open(&path).unwrap().write_all(&bytes[bytes.len() / 2..]).unwrap();
    journal.wait_count(100_000);
    run.stop();
    let seen: String = journal.bodies().iter().map(|body| format!("{body}\n")).collect();
    assert!(seen == lines(0, 100_000));
}

#[test]
fn a_damaged_archive_gives_what_is_before_the_damage_and_stops_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let mut bytes = gzip(&lines(0, 100_000));
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].fill(0xff);
    std::fs::write(root.path().join("bad.gz"), &bytes).unwrap();
    std::fs::write(root.path().join("no.gz"), "this is not gzip").unwrap();
    std::fs::write(root.path().join("z.gz"), gzip("good\n")).unwrap();
    let journal = Journal::default();
    let run = setup(root.path(), "*.gz").start(&journal);
    run.wait_metric(Metric::SourceErrors, 2);
    journal.wait("the good file", |events| events.iter().any(|seen| seen.body == "good"));
    run.stop();
    let bad = journal.events().iter().filter(|seen| seen.file.ends_with("bad.gz")).count();
    assert!((10_000..100_000).contains(&bad), "{bad}");
}

/// The second member has no beginning at first, so all of the first one is delivered before the damage.
#[test]
fn a_damaged_archive_that_is_repaired_at_the_same_length_is_read_on() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("a.gz");
    let first = gzip(&lines(0, 50_000));
    let mut bytes = [first.clone(), gzip(&lines(50_000, 60_000))].concat();
    let good = std::mem::take(&mut bytes[first.len()]);
    std::fs::write(&path, &bytes).unwrap();
    let journal = Journal::default();
    let run = setup(root.path(), "*.gz").start(&journal);
    run.wait_metric(Metric::SourceErrors, 1);
    File::options().write(true).open(&path).unwrap().write_all_at(&[good], first.len() as u64).unwrap();
    journal.wait_count(60_000);
    run.stop();
    let seen: String = journal.bodies().iter().map(|body| format!("{body}\n")).collect();
    assert!(seen == lines(0, 60_000));
}

/// As a compressor does: the archive is there before the file goes.
fn compress(root: &Path, name: &str, text: &str) {
    // In one step, so that no part of it is found.
    std::fs::write(root.join("made"), gzip(text)).unwrap();
    std::fs::rename(root.join("made"), root.join(format!("{name}.gz"))).unwrap();
}

/// Makes a file that has its name as its only line, and waits for that: what was there before it was found by then.
fn mark(root: &Path, journal: &Journal, name: &str) {
    std::fs::write(root.join(name), format!("{name}\n")).unwrap();
    journal.wait(name, |events| events.iter().any(|seen| seen.body == name));
}

#[test]
fn an_archive_takes_the_place_of_its_file_among_several_that_begin_alike() {
    let header = format!("{}\n", "h".repeat(2_047));
    for round in 0..20 {
        let root = tempfile::tempdir().unwrap();
        let (log, rotated) = (root.path().join("slow.log"), root.path().join("slow.log.1"));
        // The file that follows has nothing but the header, or is shorter than the rotated one, or longer.
        let more = [0, 50, 200][round % 3];
        let old = header.clone() + &lines(0, 100);
        let new = header.clone() + &lines(1_000, 1_000 + more);
        let journal = Journal::default();
        std::fs::write(&log, &old).unwrap();
        let run = setup(root.path(), "slow.log*").start(&journal);
        journal.wait_count(101);
        std::fs::rename(&log, &rotated).unwrap();
        std::fs::write(&log, &new).unwrap();
        journal.wait_count(102 + more);
        compress(root.path(), "slow.log.1", &old);
        std::fs::remove_file(&rotated).unwrap();
        mark(root.path(), &journal, "slow.log.x");
        // The archive has been read by then.
        mark(root.path(), &journal, "slow.log.y");
        run.stop();
        let mut seen = journal.bodies();
        seen.sort();
        let mut expected: Vec<&str> =
            old.lines().chain(new.lines()).chain(["slow.log.x", "slow.log.y"]).collect();
        expected.sort_unstable();
        assert_eq!(seen, expected, "round {round}");
        let records = journal.positions().into_iter().map(|(_, value)| Record::decode(&value).unwrap());
        let archived = records.filter(|record| record.kind == Kind::Gzip && record.finished).count();
        assert_eq!(archived, 1, "round {round}: it has the position of its own file");
    }
}

/// A copy that is made while the file is there and goes on, or is truncated (copytruncate with compression), is nothing new.
#[test]
fn an_archive_of_a_file_that_goes_on_does_not_come_beside_it() {
    for truncates in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let log = root.path().join("a.log");
        let journal = Journal::default();
        std::fs::write(&log, lines(0, 100)).unwrap();
        let run = setup(root.path(), "a.log*").start(&journal);
        journal.wait_count(100);
        std::fs::write(root.path().join("a.log.1.gz"), gzip(&lines(0, 100))).unwrap();
        mark(root.path(), &journal, "a.log.x");
        if truncates {
            std::fs::write(&log, "").unwrap();
            mark(root.path(), &journal, "a.log.y");
        }
        File::options().append(true).open(&log).unwrap().write_all(b"newer\n").unwrap();
        journal.wait("what is new", |events| events.iter().any(|seen| seen.body == "newer"));
        mark(root.path(), &journal, "a.log.z");
        run.stop();
        let count = 103 + usize::from(truncates);
        assert_eq!(journal.bodies().len(), count, "truncated: {truncates}");
    }
}

#[test]
fn a_rotated_file_that_is_compressed_does_not_come_twice() {
    for restart in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let (plain, archive) = (root.path().join("a.log.1"), root.path().join("a.log.1.gz"));
        let journal = Journal::default();
        let setup = setup(root.path(), "a.log*");
        std::fs::write(&plain, lines(0, 100)).unwrap();
        let mut run = Some(setup.start(&journal));
        journal.wait_count(100);
        if restart {
            run.take().unwrap().stop();
            // While the agent is down the file grows, is compressed and removed.
            std::fs::write(&archive, gzip(&lines(0, 150))).unwrap();
            std::fs::remove_file(&plain).unwrap();
            run = Some(setup.start(&journal));
            journal.wait_count(150);
        } else {
            std::fs::write(&archive, gzip(&lines(0, 100))).unwrap();
            std::fs::write(root.path().join("a.log.2"), "x\n").unwrap();
            journal.wait_count(101);
            std::fs::remove_file(&plain).unwrap();
        }
        std::fs::write(root.path().join("a.log.3"), "end\n").unwrap();
        journal.wait("the end", |events| events.iter().any(|seen| seen.body == "end"));
        run.unwrap().stop();
        let events: Vec<_> =
            journal.events().into_iter().filter(|seen| seen.body.starts_with("line")).collect();
        let seen: String = events.iter().map(|seen| format!("{}\n", seen.body)).collect();
        assert_eq!(seen, lines(0, if restart { 150 } else { 100 }));
        assert!(events.iter().all(|seen| seen.identity.stream == events[0].identity.stream));
    }
}
