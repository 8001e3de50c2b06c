//! Torn tails, flipped bits, lost snapshots.

use std::time::Duration;

use super::basic::*;
use super::disk::{Call, Fault, MemDisk};
use crate::Journal;
use crate::file::format::frame::FrameHeader;
use crate::file::segment::{SegmentFile, segment_id};
use crate::file::{FileConfig, OpenError};

/// Path of the newest segment and the ranges of its commit frames.
fn newest_segment(disk: &MemDisk) -> (String, Vec<std::ops::Range<usize>>) {
    let name = disk.names().into_iter().filter(|name| name.ends_with(".seg")).max().unwrap();
    let mut file = SegmentFile::open(disk, "/j".as_ref(), segment_id(&name).unwrap(), None).unwrap();
    let len = file.len().unwrap();
    let mut frames = Vec::new();
    let mut at = file.checkpoint(len).unwrap().unwrap().1.end();
    while let Some(frame) = file.frame(at, len, true).unwrap() {
        frames.push(at as usize..frame.end() as usize);
        at = frame.end();
    }
    (format!("/j/{name}"), frames)
}

fn wide() -> FileConfig {
    FileConfig { segment_bytes: 64 << 10, snapshot_every_bytes: 1 << 30, window_bytes: 0, ..config() }
}

/// A crashed journal with `commits` commits of one event, each its own group.
fn crashed(commits: u64) -> MemDisk {
    let disk = MemDisk::default();
    let journal = open_with(&disk, wide(), specs()).unwrap();
    for n in 0..commits {
        durable(&journal, put(&[A], batch(n, 1, 40)));
    }
    drop(journal);
    disk
}

#[test]
fn a_torn_tail_is_cut_at_every_byte() {
    let disk = crashed(4);
    let (path, frames) = newest_segment(&disk);
    let last = frames[3].clone();
    let whole = disk.bytes(&path);
    for cut in last.clone() {
        let torn = disk.copy();
        let mut bytes = whole.clone();
        bytes[cut..].fill(0);
        // Some torn tails are not zeros but what was on the disk before.
        if cut % 3 == 0 {
            bytes[cut..].fill(0xa5);
        }
        let changed = bytes[last.clone()] != whole[last.clone()];
        torn.set_bytes(&path, bytes);
        let journal = open_with(&torn, wide(), specs()).unwrap();
        let there = drain(journal.open_reader(A, R0).as_mut());
        if changed {
            assert_eq!(there, [0, 1, 2], "cut at {cut} of {last:?}");
        }
        assert_eq!(journal.status().damaged_commits, 0);
        assert!(!torn.names().iter().any(|name| name.ends_with(".bin")));
        assert_eq!(durable(&journal, put(&[A], batch(there.len() as u64, 1, 40))), there.len() as u64 + 1);
    }
}

/// A write that failed half-way on a full disk is written again at the same place; what it left behind is
/// whole, of this segment, and must not come back.
#[test]
fn frames_of_an_earlier_write_behind_the_end_are_not_taken() {
    for (skipped, previous_crc) in [(1, 0x1234_5678), (2, 0), (5, 7)] {
        let disk = crashed(4);
        let (path, frames) = newest_segment(&disk);
        let mut bytes = disk.bytes(&path);
        let (last, end) = (frames[3].clone(), frames[3].end);
        let (header, _) = FrameHeader::decode(&bytes[last.clone()]).unwrap();
        let mut stale = Vec::new();
        FrameHeader { commit: header.commit + skipped, previous_crc, ..header }.encode(&mut stale);
        stale.extend_from_slice(&bytes[last.start + 64..end]);
        bytes[end..end + stale.len()].copy_from_slice(&stale);
        disk.set_bytes(&path, bytes);
        let journal = open_with(&disk, wide(), specs()).unwrap();
        assert_eq!((journal.status().last_commit, journal.status().damaged_commits), (4, 0));
        assert_eq!(drain(journal.open_reader(A, R0).as_mut()), [0, 1, 2, 3]);
    }
}

#[test]
fn a_flipped_bit_costs_its_commit_only() {
    let disk = crashed(9);
    let (path, frames) = newest_segment(&disk);
    for at in (frames[4].start..frames[4].end).step_by(3) {
        let disk = disk.copy();
        let mut bytes = disk.bytes(&path);
        bytes[at] ^= 0x10;
        disk.set_bytes(&path, bytes);
        let journal = open_with(&disk, wide(), specs()).unwrap();
        assert_eq!(journal.status().damaged_commits, 1, "flip at {at}");
        let mut reader = journal.open_reader(A, R0);
        let mut there = Vec::new();
        let mut lost = Vec::new();
        while let Some(delivery) = reader.next(Duration::ZERO).unwrap() {
            if delivery.lost_before > 0 {
                lost.push((delivery.first, delivery.lost_before));
            }
            there.extend(numbers(&delivery));
        }
        assert_eq!(there, [0, 1, 2, 3, 5, 6, 7, 8], "flip at {at} in {:?}", frames[4]);
        assert_eq!(lost, [(5, 1)]);
        assert_eq!(journal.status().damaged_commits, 1, "counted once");
        let name = format!("{}-{:08x}.bin", &path[3..19], frames[4].start);
        assert!(disk.names().contains(&name), "{name} in {:?}", disk.names());
        assert_eq!(durable(&journal, put(&[A], batch(9, 1, 1))), 10);
        assert_eq!(drain(reader.as_mut()), [9]);
    }
}

#[test]
fn a_bit_that_flips_while_open_costs_its_commit_only() {
    let disk = MemDisk::default();
    let journal = open_with(&disk, wide(), specs()).unwrap();
    for n in 0..9 {
        durable(&journal, put(&[A], batch(n, 1, 40)));
    }
    let (path, frames) = newest_segment(&disk);
    let mut bytes = disk.bytes(&path);
    bytes[frames[0].start + 3] ^= 1;
    bytes[frames[3].end - 20] ^= 1;
    bytes[frames[8].start + 70] ^= 1;
    disk.set_bytes(&path, bytes);
    for reader in [R0, R1] {
        assert_eq!(drain(journal.open_reader(A, reader).as_mut()), [1, 2, 4, 5, 6, 7]);
    }
    assert_eq!(journal.status().damaged_commits, 3);
}

#[test]
fn damage_over_several_commits_and_a_whole_segment() {
    let disk = MemDisk::default();
    let journal =
        open_with(&disk, FileConfig { snapshot_every_bytes: 1 << 30, ..config() }, specs()).unwrap();
    for n in 0..300 {
        durable(&journal, put(&[A], batch(n, 1, 100)));
    }
    drop(journal);
    let mut segments: Vec<String> = disk.names().into_iter().filter(|name| name.ends_with(".seg")).collect();
    segments.sort();
    assert!(segments.len() > 4);
    disk.set_bytes(&format!("/j/{}", segments[2]), vec![0x55; 16 << 10]);
    let journal = open(&disk);
    let there = drain(journal.open_reader(A, R0).as_mut());
    let damaged = journal.status().damaged_commits;
    assert!(damaged > 10);
    assert_eq!(there.len() as u64 + damaged, 300);
    assert_eq!(there.last(), Some(&299));
}

#[test]
fn one_or_both_snapshots_damaged() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    for n in 0..200 {
        let mut commit = put(&[A], batch(n, 1, 100));
        commit.positions.push((b"p".to_vec(), n.to_le_bytes().to_vec()));
        durable(&journal, commit);
        if n % 10 == 0 {
            durable(&journal, ack(A, R0, n));
        }
    }
    drop(journal);
    for slots in [&["/j/snapshot.a"][..], &["/j/snapshot.b"], &["/j/snapshot.a", "/j/snapshot.b"]] {
        let disk = disk.copy();
        for slot in slots {
            let mut bytes = disk.bytes(slot);
            bytes[80] ^= 4;
            disk.set_bytes(slot, bytes);
        }
        let journal = open(&disk);
        assert_eq!(journal.position(b"p").unwrap(), 199u64.to_le_bytes());
        assert_eq!(drain(journal.open_reader(A, R0).as_mut()), (190..200).collect::<Vec<_>>());
        assert_eq!(drain(journal.open_reader(A, R1).as_mut()), (0..200).collect::<Vec<_>>());
        assert_eq!(journal.status().damaged_commits, 0);
        journal.close().unwrap();
    }
}

#[test]
fn not_a_journal_and_newer_versions() {
    let disk = MemDisk::default();
    crate::Disk::create(&disk, "/j/holiday.jpg".as_ref()).unwrap();
    let error = open_with(&disk, config(), specs()).err().unwrap();
    assert!(matches!(error, OpenError::NotAJournal { .. }), "{error}");
    assert_eq!(
        error.to_string(),
        "/j cannot be used as the journal: it holds holiday.jpg, and no journal; move that elsewhere, or name another directory"
    );

    let disk = crashed(1);
    let reseal = |bytes: &mut Vec<u8>| {
        bytes[8] = 9;
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    };
    let mut bytes = disk.bytes("/j/snapshot.a");
    let slot = if bytes.is_empty() { "/j/snapshot.b" } else { "/j/snapshot.a" };
    bytes = disk.bytes(slot);
    reseal(&mut bytes);
    disk.set_bytes(slot, bytes);
    let error = open_with(&disk, config(), specs()).err().unwrap();
    assert!(matches!(error, OpenError::NewerVersion { version: 9, .. }), "{error}");
    let told = format!(
        "{slot} has format version 9; this program reads up to {}: start the release of Flumen that wrote it, or a newer one",
        crate::file::format::VERSION
    );
    assert_eq!(error.to_string(), told);
}

/// What the system says is told once, also by who prints an error with its sources.
#[test]
fn an_error_of_the_disk_is_told_with_its_place_and_what_helps() {
    let disk = crashed(1);
    disk.faults(|faults| faults.armed.push(Fault { call: Call::List, skip: 0, times: 1, code: 13 }));
    let error = open_with(&disk, config(), specs()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "listing /j: Permission denied (os error 13); the user that runs flumen needs read and write permission there"
    );
    assert!(std::error::Error::source(&error).is_none());
}

#[test]
fn readers_and_channels_come_and_go() {
    let disk = MemDisk::default();
    let journal =
        open_with(&disk, config(), vec![spec("a", &["r0", "r1"], 1000), spec("gone", &["x"], 1000)]).unwrap();
    durable(&journal, put(&[A, B], batch(0, 10, 1)));
    durable(&journal, ack(B, R0, 3));
    durable(&journal, ack(A, R1, 2));
    journal.close().unwrap();
    // Other order, a new reader, one reader and one channel less.
    let journal =
        open_with(&disk, config(), vec![spec("new", &["n"], 1000), spec("a", &["r9", "r0"], 1000)]).unwrap();
    assert_eq!(
        (journal.channel("a"), journal.reader_id(B, "r0"), journal.channel("gone")),
        (Some(B), Some(R1), None)
    );
    assert_eq!(drain(journal.open_reader(B, R1).as_mut()), (0..10).collect::<Vec<_>>());
    assert_eq!(drain(journal.open_reader(B, R0).as_mut()), [0; 0], "a new reader begins at the end");
    durable(&journal, put(&[A, B], batch(10, 2, 1)));
    assert_eq!(drain(journal.open_reader(B, R0).as_mut()), [10, 11]);
    assert_eq!(drain(journal.open_reader(A, R0).as_mut()), [10, 11], "a new channel begins at 0");
    drop(journal);
    let journal =
        open_with(&disk, config(), vec![spec("gone", &["x"], 1000), spec("a", &["r1"], 1000)]).unwrap();
    assert_eq!(drain(journal.open_reader(A, R0).as_mut()), (3..10).collect::<Vec<_>>());
    assert_eq!(drain(journal.open_reader(B, R0).as_mut()), (2..12).collect::<Vec<_>>());
}
