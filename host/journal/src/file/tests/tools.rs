//! What the tools say of a journal: whole, damaged, live; and of one batch.

use std::sync::Arc;

use super::basic::*;
use super::disk::MemDisk;
use crate::disk::Disk;
use crate::inspect::trace::{Wanted, trace};
use crate::inspect::verify::{Verdict, verify};
use crate::inspect::{FrameView, Inspector};
use crate::{Journal, StateOp, StateWrites};

fn look(disk: &MemDisk) -> Inspector {
    Inspector::open(Arc::new(disk.clone()), "/j").unwrap()
}

fn verdict(disk: &MemDisk) -> Verdict {
    verify(&look(disk)).unwrap()
}

fn reasons(verdict: &Verdict) -> Vec<&str> {
    verdict.damage.iter().map(|damage| damage.reason.as_str()).collect()
}

/// Several segments: puts to one channel and to both, positions, state, acknowledgements; crashed.
fn filled() -> MemDisk {
    let disk = MemDisk::default();
    let journal = open(&disk);
    for n in 0..200 {
        let mut commit = put(if n % 2 == 0 { &[A] } else { &[A, B] }, batch(n * 3, 3, 50));
        commit.positions.push((b"source/in/at".to_vec(), n.to_le_bytes().to_vec()));
        let mut writes = StateWrites::new("dedup".into());
        writes.push(StateOp { key: &n.to_le_bytes(), value: Some(&[7; 100]), expiry: None });
        commit.state.push(writes);
        durable(&journal, commit);
    }
    let mut done = ack(A, R0, 300);
    done.positions.push((b"sink/r0".to_vec(), vec![1]));
    durable(&journal, done);
    durable(&journal, ack(A, R0, 600));
    // It is written beside the commits.
    while !disk.names().iter().any(|name| name.ends_with(".state")) {
        std::thread::yield_now();
    }
    drop(journal);
    disk
}

#[test]
fn a_sound_journal_is_read_whole() {
    let disk = filled();
    let live = open(&disk);
    durable(&live, put(&[B], batch(600, 4, 10)));
    for verdict in [verdict(&disk), {
        live.close().unwrap();
        verdict(&disk)
    }] {
        assert!(verdict.is_sound() && verdict.segments > 3, "{verdict:?}");
        assert_eq!((verdict.commits, verdict.range, verdict.events), (203, Some((1, 203)), 604));
    }
    let verdict = verdict(&disk);
    assert!(verdict.state_files > 0 && verdict.state_blocks > 0, "{verdict:?}");
}

#[test]
fn every_flipped_byte_of_a_frame_is_named() {
    let disk = filled();
    let segment = look(&disk).segments().unwrap()[1].clone();
    let frames = look(&disk).frames(segment.id).unwrap();
    let FrameView::Commit(commit) = &frames[4] else { panic!("a commit") };
    let path = format!("/j/{}", segment.name);
    let whole = disk.bytes(&path);
    for at in (0..commit.bytes).step_by(7) {
        let mut bytes = whole.clone();
        bytes[(commit.offset + at) as usize] ^= 0x40;
        disk.set_bytes(&path, bytes);
        let verdict = verdict(&disk);
        let missing = format!("the commits {} to {} before it are missing", commit.commit, commit.commit);
        assert_eq!(
            reasons(&verdict),
            ["bytes that are no valid frame, before valid ones", missing.as_str()],
            "byte {at}"
        );
        let damage = &verdict.damage[0];
        assert_eq!((damage.offset, damage.bytes), (Some(commit.offset), Some(commit.bytes)));
        assert_eq!(damage.file, segment.name);
        assert_eq!(verdict.commits, 201);
    }
}

#[test]
fn lost_files_bad_headers_and_bad_state_are_named() {
    let disk = filled();
    let segments = look(&disk).segments().unwrap();
    let (gone, bad) = (segments[2].clone(), segments[4].clone());
    let lost = disk.copy();
    lost.unlink(format!("/j/{}", gone.name).as_ref()).unwrap();
    assert!(reasons(&verdict(&lost))[0].contains("are missing"), "{:?}", verdict(&lost));

    let headless = disk.copy();
    let path = format!("/j/{}", bad.name);
    let mut bytes = headless.bytes(&path);
    bytes[20] ^= 1;
    headless.set_bytes(&path, bytes);
    assert!(reasons(&verdict(&headless)).contains(&"the header is not valid"));

    let journal = open(&disk);
    journal.close().unwrap();
    drop(journal);
    let state = disk.names().into_iter().find(|name| name.ends_with(".state")).unwrap();
    let path = format!("/j/{state}");
    let mut bytes = disk.bytes(&path);
    bytes[100] ^= 1;
    disk.set_bytes(&path, bytes);
    assert_eq!(reasons(&verdict(&disk)), ["a block of the plugins' state is damaged"]);

    for slot in ["snapshot.a", "snapshot.b"] {
        let mut bytes = disk.bytes(&format!("/j/{slot}"));
        bytes[30] ^= 1;
        disk.set_bytes(&format!("/j/{slot}"), bytes);
        let found = verdict(&disk);
        let bad = reasons(&found).iter().filter(|reason| reason.starts_with("no snapshot is valid")).count();
        // One is enough.
        assert_eq!(bad, if slot == "snapshot.a" { 0 } else { 2 }, "{found:?}");
    }
}

#[test]
fn a_batch_is_followed_from_its_source_to_every_reader() {
    let disk = filled();
    let inspector = look(&disk);
    let of_commit = trace(&inspector, &Wanted::Commit(100)).unwrap().unwrap();
    // Batch 99: events 297 to 299 of the channel a; of b, 147 to 149.
    let event = Wanted::Event { channel: "b".into(), number: 148 };
    let identity = Wanted::Identity { stream: 7, position: 298 };
    for wanted in [event, identity] {
        let found = trace(&inspector, &wanted).unwrap().unwrap();
        assert_eq!((found.commit.commit, &found.segment), (100, &of_commit.segment), "{wanted:?}");
    }
    assert!(of_commit.is_durable);
    assert_eq!(of_commit.commit.positions, [(b"source/in/at".to_vec(), 99u64.to_le_bytes().to_vec())]);
    let [put] = of_commit.puts.as_slice() else { panic!("{of_commit:?}") };
    assert_eq!((put.rows, put.identities.as_slice()), (3, &[(7, 297, 299)][..]));
    let [a, b] = put.channels.as_slice() else { panic!("{put:?}") };
    assert_eq!((&*a.name, a.first, a.end, &*b.name, b.first, b.end), ("a", 297, 300, "b", 147, 150));
    let [r0, r1] = a.readers.as_slice() else { panic!("{a:?}") };
    assert_eq!((r0.cursor, r0.acknowledged.map(|(commit, _)| commit)), (600, Some(201)));
    assert_eq!(r0.positions, [b"sink/r0".to_vec()]);
    assert_eq!((r1.cursor, r1.acknowledged), (0, None));
    assert_eq!(
        b.readers.iter().map(|reader| (reader.cursor, reader.acknowledged)).collect::<Vec<_>>(),
        [(0, None)]
    );
    // The next batch is acknowledged by the later commit.
    let next = trace(&inspector, &Wanted::Event { channel: "a".into(), number: 300 }).unwrap().unwrap();
    assert_eq!(next.puts[0].channels[0].readers[0].acknowledged.map(|(commit, _)| commit), Some(202));
    for missing in [
        Wanted::Commit(999),
        Wanted::Event { channel: "x".into(), number: 0 },
        Wanted::Identity { stream: 8, position: 1 },
    ] {
        assert!(trace(&inspector, &missing).unwrap().is_none());
    }
}
