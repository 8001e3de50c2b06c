//! The language, the names of steps, and what a failed sync loses.

use std::collections::BTreeSet;
use std::io::IoSlice;

use super::*;
use crate::disk::Disk;

fn parse(text: &str) -> Result<Faults, ParseError> {
    Faults::parse(text, &["journal.segment.synced".to_owned()])
}

fn step(name: &str, class: Class) -> Step {
    Step { name: name.to_owned(), class, grows: class == Class::Write }
}

#[test]
fn what_is_not_of_the_language_is_named() {
    for wrong in ["x", "kill=journal.segment.synced:x", "eio=1.1", "eio=x@read", "full=3@read", "seed=-1"] {
        let text = format!("seed=3,{wrong},eio=0");
        assert_eq!(parse(&text).unwrap_err(), ParseError::Word(wrong.to_owned()));
    }
    let unknown = parse("kill=journal.segment.eaten").unwrap_err();
    assert!(unknown.to_string().contains("journal.segment.synced"), "{unknown}");
    for right in
        ["", "kill=journal.segment.synced", "kill=journal.segment.synced:3,eio=1@a.b", "full=9:1, enospc=0.5"]
    {
        parse(right).unwrap();
    }
}

#[test]
fn a_rule_is_about_words_and_classes() {
    let faults = parse("eio=1@journal.sync,enospc=1@snapshot").unwrap();
    let kind = |name, class| faults.refuse(&step(name, class)).err().map(|error| error.kind());
    let eio = io::Error::from(Errno::IO).kind();
    assert_eq!(kind("journal.segment.begun-synced", Class::Sync), Some(eio));
    assert_eq!(kind("journal.segment.written", Class::Write), None);
    assert_eq!(kind("quarantine.segment.synced", Class::Sync), None);
    assert_eq!(kind("quarantine.start.snapshot.written", Class::Write), Some(io::ErrorKind::StorageFull));
    assert_eq!(kind("quarantine.start.snapshot.read", Class::Read), None);
}

#[test]
fn odds_are_met_and_a_seed_repeats_them() {
    let refused = |text: &str| -> Vec<bool> {
        let faults = parse(text).unwrap();
        (0..10_000).map(|_| faults.refuse(&step("journal.segment.read", Class::Read)).is_err()).collect()
    };
    let first = refused("eio=0.2,seed=5");
    assert_eq!(first, refused("eio=0.2,seed=5"));
    assert_ne!(first, refused("eio=0.2,seed=6"));
    let count = first.iter().filter(|refused| **refused).count();
    assert!((1_800..2_200).contains(&count), "{count}");
}

#[test]
fn a_failed_sync_loses_pages_and_nothing_that_was_synced() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(parse("eio=1@first-synced,seed=1").unwrap());
    let disk = FaultyDisk::new(faults, &dir.path().join("journal"));
    let file = disk.create(&dir.path().join("0000000000000001.seg")).unwrap();
    file.write_at(0, &[IoSlice::new(&[1; 16 * 4096])]).unwrap();
    file.sync_data().unwrap();
    file.write_at(100, &[IoSlice::new(&[2; 64 * 4096])]).unwrap();
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(Errno::IO.raw_os_error()));
    let mut bytes = vec![0; 64 * 4096 + 100];
    file.read_at(0, &mut bytes).unwrap();
    assert!(bytes[..100].iter().all(|byte| *byte == 1));
    // Of each page all or nothing: what was synced, or zeros.
    let pages: BTreeSet<BTreeSet<u8>> =
        bytes[4096..].chunks(4096).map(|page| page.iter().copied().collect()).collect();
    assert_eq!(pages, [[0].into(), [1].into(), [2].into()].into());
}

#[test]
fn each_point_has_one_name() {
    let names: BTreeSet<&str> = ANY_JOURNAL.iter().chain(BUSY_JOURNAL).map(|point| point.name).collect();
    assert_eq!(names.len(), ANY_JOURNAL.len() + BUSY_JOURNAL.len());
}
