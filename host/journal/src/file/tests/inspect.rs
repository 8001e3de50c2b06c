//! Looking at a journal that is open, that crashed, and that is damaged.

use std::sync::Arc;

use super::basic::*;
use super::disk::MemDisk;
use crate::inspect::{FrameView, InspectError, Inspector};
use crate::{Commit, Journal, StateOp, StateWrite, StateWrites};

fn look(disk: &MemDisk) -> Inspector {
    Inspector::open(Arc::new(disk.clone()), "/j").unwrap()
}

fn events(inspector: &Inspector, channel: &str, from: u64) -> Vec<u64> {
    let rows = inspector.events(channel, from).unwrap().map(|rows| rows.unwrap());
    rows.flat_map(|rows| rows.batch.position().values().to_vec()).collect()
}

#[test]
fn a_live_journal_is_listed() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    for n in 0..200 {
        durable(&journal, put(if n % 2 == 0 { &[A] } else { &[A, B] }, batch(n * 3, 3, 50)));
    }
    durable(&journal, ack(A, R0, 5));
    let write = StateWrite { plugin: "dedup".into(), key: vec![1], value: Some(vec![2]), expiry: Some(3) };
    let mut writes = StateWrites::new("dedup".into());
    writes.push(StateOp { key: &[1], value: Some(&[2]), expiry: Some(3) });
    durable(
        &journal,
        Commit { state: vec![writes], positions: vec![(vec![7], vec![8])], ..Commit::default() },
    );

    let inspector = look(&disk);
    let segments = inspector.segments().unwrap();
    assert!(segments.len() > 3);
    let mut commits = Vec::new();
    for segment in &segments {
        assert_eq!(segment.checkpoint.as_ref().unwrap().channels[1].name, "b");
        for frame in inspector.frames(segment.id).unwrap() {
            match frame {
                FrameView::Commit(view) => commits.push(view),
                FrameView::Checkpoint { .. } => {}
                FrameView::Damage { .. } => panic!("no damage"),
            }
        }
    }
    assert_eq!(commits.iter().map(|view| view.commit).collect::<Vec<_>>(), (1..=202).collect::<Vec<_>>());
    assert_eq!(commits[200].acks[0].cursor, 5);
    assert_eq!((&commits[201].state, &commits[201].positions), (&vec![write], &vec![(vec![7], vec![8])]));
    assert_eq!(events(&inspector, "a", 0), (0..600).collect::<Vec<_>>());
    assert_eq!(events(&inspector, "a", 301), (301..600).collect::<Vec<_>>());
    assert_eq!(events(&inspector, "b", 4), drain(journal.open_reader(B, R0).as_mut())[4..]);
    assert!(inspector.snapshots().iter().all(|(_, slot)| slot.is_ok()));
    match inspector.events("c", 0) {
        Err(error @ InspectError::NoChannel { .. }) => assert!(error.to_string().contains("a, b"), "{error}"),
        _ => panic!("expected NoChannel"),
    }

    // Segments go and come while it is looked at.
    let rows = inspector.events("a", 0).unwrap();
    durable(&journal, ack(A, R0, 600));
    durable(&journal, ack(A, R1, 600));
    durable(&journal, ack(B, R0, 300));
    // Deletion follows the acknowledgement, before the next group.
    durable(&journal, Commit::default());
    assert!(rows.collect::<Result<Vec<_>, _>>().unwrap().len() < 200);
}

#[test]
fn damage_is_shown_and_skipped() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    for n in 0..9 {
        durable(&journal, put(&[A], batch(n, 1, 50)));
    }
    drop(journal);
    let segment = look(&disk).segments().unwrap()[0].clone();
    let frames = look(&disk).frames(segment.id).unwrap();
    let FrameView::Commit(fourth) = &frames[4] else { panic!("a commit") };
    let path = format!("/j/{}", segment.name);
    let mut bytes = disk.bytes(&path);
    bytes[fourth.offset as usize + 90] ^= 1;
    disk.set_bytes(&path, bytes);
    let inspector = look(&disk);
    let frames = inspector.frames(segment.id).unwrap();
    assert!(
        matches!(frames[4], FrameView::Damage { offset, bytes } if (offset, bytes) == (fourth.offset, fourth.bytes))
    );
    assert_eq!(events(&inspector, "a", 0), [0, 1, 2, 4, 5, 6, 7, 8]);
    assert!(Inspector::open(Arc::new(disk), "/nothing").is_err());
}
