//! The language, the names of steps, and what a failed sync loses.

use std::collections::BTreeSet;
use std::io::IoSlice;

use super::*;
use crate::disk::Disk;

fn parse(text: &str) -> Result<Faults, ParseError> {
    let points =
        ANY_JOURNAL.iter().chain(ROLLING_JOURNAL).chain(BUSY_JOURNAL).chain(FULL_JOURNAL).chain(PROBE);
    let named = |point: &Point| format!("journal.{}", point.name);
    let unwalked: Vec<String> = UNWALKED.iter().map(named).collect();
    Faults::parse(text, &points.map(named).collect::<Vec<_>>(), &unwalked)
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
    // A segment is made when its journal has begun.
    let faults = Arc::new(begun("eio=1@first-synced,seed=1"));
    let disk = FaultyDisk::new(faults, "journal");
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

/// Also what only a running journal does is known under the names of an opening.
fn begun(text: &str) -> Faults {
    let all = ["created", "begun", "begun-synced", "first-written"];
    let points: Vec<String> = all.iter().map(|done| format!("journal.start.segment.{done}")).collect();
    Faults::parse(text, &points, &[]).unwrap()
}

#[test]
fn each_point_has_one_name() {
    let lists = [ANY_JOURNAL, ROLLING_JOURNAL, BUSY_JOURNAL, FULL_JOURNAL, PROBE, UNWALKED];
    let names: BTreeSet<&str> = lists.into_iter().flatten().map(|point| point.name).collect();
    assert_eq!(names.len(), lists.into_iter().map(<[Point]>::len).sum::<usize>());
}

/// What changes the disk, is not named here, and would end the process: a file of another name, and a step of another moment.
#[test]
fn a_step_without_a_point_is_known_only_with_a_reason() {
    let faults = parse("").unwrap();
    for known in [
        "journal.segment.synced",
        "journal.spare.taken",
        "journal.state.named",
        "journal.reserve.removed",
        "journal.probe.removal-synced",
        "journal.start.damage.written",
        "journal.directory.synced",
    ] {
        assert!(faults.is_known(known), "{known}");
    }
    for unknown in [
        "journal.other.created",
        "journal.start.segment.created",
        "quarantine.segment.synced",
        "journal.segment.read",
    ] {
        assert!(!faults.is_known(unknown), "{unknown}");
    }
}

/// The names of all that a disk can be asked for are in the lists: here nothing ends the process.
#[test]
fn steps_with_names_of_their_own_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let in_dir = |name: &str| dir.path().join(name);
    let disk = FaultyDisk::new(Arc::new(parse("").unwrap()), "journal");
    let write = |file: &dyn crate::disk::DiskFile| {
        file.preallocate(4096).unwrap();
        file.write_at(0, &[IoSlice::new(&[1; 100])]).unwrap();
        file.sync_data().unwrap();
    };
    // Nothing was done to names yet.
    disk.sync_dir(dir.path()).unwrap();
    // What recovery copies aside.
    let damaged = in_dir(crate::file::DAMAGED_DIR);
    disk.create_dir(&damaged).unwrap();
    let copy = disk.create(&damaged.join("0000000000000001-00000010.bin")).unwrap();
    copy.write_at(0, &[IoSlice::new(&[1; 100])]).unwrap();
    copy.sync_data().unwrap();
    disk.sync_dir(&damaged).unwrap();
    // The first snapshot ends the start.
    write(disk.create(&in_dir("snapshot.a")).unwrap().as_ref());
    disk.sync_dir(dir.path()).unwrap();
    disk.sync_dir(dir.path()).unwrap();
    // A segment that becomes a spare, which becomes a segment, and is cut before it has any group.
    let (segment, spare) = (in_dir("0000000000000001.seg"), in_dir("spare.0"));
    write(disk.create(&segment).unwrap().as_ref());
    disk.sync_dir(dir.path()).unwrap();
    disk.rename(&segment, &spare).unwrap();
    disk.sync_dir(dir.path()).unwrap();
    let file = disk.open(&spare, true).unwrap();
    write(file.as_ref());
    disk.rename(&spare, &segment).unwrap();
    disk.sync_dir(dir.path()).unwrap();
    file.truncate(50).unwrap();
    let probe = in_dir("probe");
    write(disk.create(&probe).unwrap().as_ref());
    disk.unlink(&probe).unwrap();
    disk.sync_dir(dir.path()).unwrap();
}

/// An opening without room for its first snapshot has begun all the same.
#[test]
fn a_start_on_a_full_disk_ends() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(parse("enospc=1@snapshot").unwrap()), "journal");
    disk.create(&dir.path().join("snapshot.a")).map(drop).unwrap_err();
    disk.create(&dir.path().join("0000000000000001.seg")).map(drop).unwrap();
    disk.sync_dir(dir.path()).unwrap();
}
