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
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use flumen_pipeline::Metric;
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
    for committed in [3, 17, 40] {
        let run = setup.start(&journal);
        let before = journal.events().len();
        journal.wait_count(before + (committed + 3) * 1_000);
        run.crash(committed);
        assert_eq!(journal.events().len(), before + committed * 1_000);
    }
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
