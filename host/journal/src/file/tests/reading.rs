//! How often the disk is read: not at all by a reader that keeps up, in large pieces and once by one that is behind.

use std::time::Duration;

use flumen_event::{Batch, BatchBuilder};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use super::basic::*;
use super::disk::{MemDisk, Reads};
use crate::file::format::segment::SEGMENT_HEADER_BYTES;
use crate::file::{Compression, FileConfig, FileJournal, segment_id, segment_name};
use crate::limits::{READ_AHEAD_BYTES, READ_FIRST_BYTES};
use crate::{Commit, Journal, Key, KeyId, Put};

/// Segments of two pieces, of which nothing is in memory, and no snapshots meanwhile.
fn wide() -> FileConfig {
    FileConfig {
        segment_bytes: 2 * READ_AHEAD_BYTES as u64,
        window_bytes: 0,
        snapshot_every_bytes: 1 << 30,
        ..config()
    }
}

fn encrypted() -> FileConfig {
    let key = Key::new(KeyId::new("a").unwrap(), [1; 32]);
    FileConfig { keys: [key].into_iter().collect(), ..wide() }
}

/// One event of 1 KiB, of which half does not shrink.
fn event(number: u64) -> Batch {
    let mut body = vec![b'x'; 1 << 10];
    SmallRng::seed_from_u64(number).fill_bytes(&mut body[..512]);
    let mut builder = BatchBuilder::with_capacity(1, body.len());
    builder.push(7, number, 1, &body);
    builder.finish(Vec::new()).unwrap()
}

/// Commits with so many puts of one event each until there are four segments; how many events.
fn fill(journal: &FileJournal, puts: u64) -> u64 {
    let mut events = 0;
    while journal.status().segments < 4 {
        let commit = |first: u64| {
            let put = |number| Put { channels: vec![A], batch: event(number) };
            let puts = (first..first + puts).map(put).collect();
            journal.commit(Commit { puts, ..Commit::default() }, None).unwrap()
        };
        let tickets: Vec<_> = (events..events + 400).step_by(puts as usize).map(commit).collect();
        tickets.last().unwrap().wait(Some(LIMIT)).expect("in time").unwrap();
        events += 400;
    }
    events
}

fn stored(journal: &FileJournal) -> (u64, u64) {
    let status = journal.status();
    (status.segments, status.segment_bytes)
}

/// A backlog of small frames was read from its beginning to its end.
fn assert_in_pieces(journal: &FileJournal, reads: Reads, case: &str) {
    let (segments, bytes) = stored(journal);
    // Of each segment its header, its first frames, and what is left behind the last whole piece.
    let most = bytes / READ_AHEAD_BYTES as u64 + 4 * segments;
    assert!(reads.calls <= most, "{case}: {reads:?} of {bytes} bytes, {most} reads at most");
    assert!(reads.bytes <= bytes + bytes / 100, "{case}: {reads:?} of {bytes} bytes");
    // The counter sees them all.
    assert!(reads.bytes >= bytes - bytes / 100, "{case}: {reads:?} of {bytes} bytes");
    // All but the first piece and a bit of each segment.
    assert!(reads.announced_bytes >= bytes / 3, "{case}: {reads:?} of {bytes} bytes");
}

#[test]
fn a_reader_that_keeps_up_does_not_read_the_disk() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    let (mut fast, mut slow) = (journal.open_reader(A, R0), journal.open_reader(A, R1));
    disk.take_reads();
    // The other one is behind the window all the time: that is trimmed at its cost.
    for n in (0..400).step_by(4) {
        for event in n..n + 4 {
            durable(&journal, put(&[A], batch(event, 1, 300)));
        }
        assert_eq!(drain(fast.as_mut()), (n..n + 4).collect::<Vec<_>>());
        durable(&journal, ack(A, R0, n + 4));
    }
    assert!(journal.status().segments > 5, "{:?}", journal.status());
    assert_eq!(disk.take_reads(), Reads::default());
    // It reads the disk until it is there, and from then on no more.
    assert_eq!(drain(slow.as_mut()), (0..400).collect::<Vec<_>>());
    let reads = disk.take_reads();
    assert!(reads.bytes > journal.status().segment_bytes / 2, "{reads:?}");
    for n in 400..500 {
        durable(&journal, put(&[A, B], batch(n, 1, 300)));
        assert_eq!((drain(fast.as_mut()), drain(slow.as_mut())), (vec![n], vec![n]));
        durable(&journal, ack(A, R0, n + 1));
    }
    assert_eq!(disk.take_reads(), Reads::default());
}

/// What is acknowledged by all goes: of each segment the header is read, to see that it is ours.
#[test]
fn a_segment_that_goes_costs_one_look_at_its_header() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    let mut readers = [R0, R1].map(|reader| journal.open_reader(A, reader));
    disk.take_reads();
    for n in 0..400 {
        durable(&journal, put(&[A], batch(n, 1, 300)));
        for (reader, id) in readers.iter_mut().zip([R0, R1]) {
            assert_eq!(drain(reader.as_mut()), [n]);
            durable(&journal, ack(A, id, n + 1));
        }
    }
    journal.close().unwrap();
    let there: Vec<u64> = disk.names().iter().filter_map(|name| segment_id(name)).collect();
    let gone = there.iter().max().unwrap() - there.len() as u64;
    assert!(gone > 5, "{:?}", disk.names());
    let bytes = gone * SEGMENT_HEADER_BYTES as u64;
    assert_eq!(disk.take_reads(), Reads { calls: gone, bytes, announced_bytes: 0 });
}

#[test]
fn a_reader_that_is_behind_reads_large_pieces_once() {
    let ways = [
        ("plain", wide(), 1),
        ("several puts in a commit", wide(), 4),
        ("lz4", FileConfig { compression: Compression::Lz4, ..wide() }, 1),
        ("zstd, encrypted", FileConfig { compression: Compression::Zstd, ..encrypted() }, 1),
        ("encrypted, several puts in a commit", encrypted(), 4),
    ];
    for (way, config, puts) in ways {
        let disk = MemDisk::default();
        let journal = open_with(&disk, config.clone(), specs()).unwrap();
        let events = fill(&journal, puts);
        let all: Vec<u64> = (0..events).collect();
        disk.take_reads();
        assert_eq!(drain(journal.open_reader(A, R0).as_mut()), all, "{way}");
        assert_in_pieces(&journal, disk.take_reads(), way);
        drop(journal);
        let journal = open_with(&disk, config, specs()).unwrap();
        disk.take_reads();
        assert_eq!(drain(journal.open_reader(A, R1).as_mut()), all, "{way}");
        assert_in_pieces(&journal, disk.take_reads(), &format!("{way}, after a restart"));
    }
}

#[test]
fn a_large_frame_is_one_read() {
    let disk = MemDisk::default();
    let journal = open_with(&disk, wide(), specs()).unwrap();
    let events = 16;
    for n in 0..events {
        durable(&journal, put(&[A], batch(n, 1, 400 << 10)));
    }
    disk.take_reads();
    assert_eq!(drain(journal.open_reader(A, R0).as_mut()), (0..events).collect::<Vec<_>>());
    let (reads, (segments, bytes)) = (disk.take_reads(), stored(&journal));
    assert!(segments > 2 && reads.bytes >= bytes, "{reads:?}, {segments} segments of {bytes} bytes");
    assert!(reads.calls <= events + 2 * segments, "{reads:?}, {segments} segments");
    // With each the next one's head, and once of each segment what is read when nothing is known of it.
    let more = events * 4096 + segments * READ_FIRST_BYTES as u64;
    assert!(reads.bytes <= bytes + more, "{reads:?} of {bytes} bytes, {more} more at most");
}

/// At the end of the segment that is written to: what comes is read when it is durable, and once, over rolls.
#[test]
fn a_reader_at_the_end_of_what_is_on_disk_reads_what_comes_once() {
    let disk = MemDisk::default();
    let journal = open_with(&disk, FileConfig { window_bytes: 0, ..config() }, specs()).unwrap();
    let mut reader = journal.open_reader(A, R0);
    disk.take_reads();
    let events = 300;
    for n in 0..events {
        durable(&journal, put(&[A], batch(n, 1, 300)));
        assert_eq!(drain(reader.as_mut()), [n]);
    }
    let (reads, (segments, bytes)) = (disk.take_reads(), stored(&journal));
    assert!(segments > 5, "{segments}");
    assert!((events..=events + 2 * segments).contains(&reads.calls), "{reads:?}, {segments} segments");
    assert_eq!((reads.bytes, reads.announced_bytes), (bytes, 0));
}

/// Where one piece ends and the next begins: each flipped bit costs its own event.
#[test]
fn damage_at_the_border_of_two_pieces_costs_its_commit_only() {
    let disk = MemDisk::default();
    let journal = open_with(&disk, wide(), specs()).unwrap();
    let events = fill(&journal, 1);
    let path = format!("/j/{}", segment_name(1));
    let mut bytes = disk.bytes(&path);
    let border = SEGMENT_HEADER_BYTES + READ_FIRST_BYTES;
    for at in [border - 16, border + READ_AHEAD_BYTES / 2, border + READ_AHEAD_BYTES - 1_000] {
        bytes[at] ^= 1;
    }
    disk.set_bytes(&path, bytes);
    let mut reader = journal.open_reader(A, R0);
    let (mut there, mut lost) = (Vec::new(), 0);
    while let Some(delivery) = reader.next(Duration::ZERO).unwrap() {
        lost += delivery.lost_before;
        there.extend(numbers(&delivery));
    }
    assert_eq!((there.len() as u64, lost, journal.status().damaged_commits), (events - 3, 3, 3));
    assert!(there.is_sorted() && there.last() == Some(&(events - 1)));
}
