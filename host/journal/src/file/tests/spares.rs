//! Segments that are written again.

use super::basic::*;
use super::disk::MemDisk;
use crate::file::{Durability, FileConfig, FileJournal};
use crate::{Journal, Key, KeyId, Keys};

fn spares(disk: &MemDisk) -> Vec<String> {
    disk.names().into_iter().filter(|name| name.starts_with("spare")).collect()
}

/// Puts and acknowledges events `from..to`, one commit each.
fn pass(journal: &FileJournal, from: u64, to: u64) {
    for n in from..to {
        durable(journal, put(&[A], batch(n, 1, 300)));
        durable(journal, ack(A, R0, n + 1));
        durable(journal, ack(A, R1, n + 1));
    }
}

fn newest_segment(disk: &MemDisk) -> Vec<u8> {
    let name = disk.names().into_iter().filter(|name| name.ends_with(".seg")).max().unwrap();
    disk.bytes(&format!("/j/{name}"))
}

#[test]
fn what_stands_in_a_spare_never_counts() {
    let disk = MemDisk::default();
    let journal = open(&disk);
    pass(&journal, 0, 60);
    assert!(spares(&disk).len() == 1 || spares(&disk).len() == 2, "{:?}", disk.names());
    let mut n = 60;
    // Until a segment has begun in a spare: what is behind its frames is of an earlier one.
    while newest_segment(&disk)[12_000..].iter().all(|byte| *byte == 0) {
        pass(&journal, n, n + 1);
        n += 1;
        assert!(n < 400, "no spare was used");
    }
    for seed in 0..20 {
        let crashed = disk.copy();
        crashed.crash(seed);
        let journal = open(&crashed);
        assert_eq!(spares(&crashed), [""; 0], "those of an earlier opening go");
        assert_eq!(journal.status().damaged_commits, 0);
        assert_eq!(journal.open_reader(A, R0).acknowledged(), n);
        durable(&journal, put(&[A], batch(n, 1, 300)));
        assert_eq!(drain(journal.open_reader(A, R0).as_mut()), [n]);
    }
}

#[test]
fn there_are_none_without_syncs_on_a_full_disk_and_of_another_key() {
    let disk = MemDisk::default();
    let os = FileConfig { durability: Durability::Os, ..config() };
    let journal = open_with(&disk, os, specs()).unwrap();
    pass(&journal, 0, 100);
    assert_eq!(spares(&disk), [""; 0]);

    // A journal in clear, which then gets a key: nothing of it stays.
    let disk = MemDisk::default();
    let journal = open(&disk);
    for n in 0..60 {
        durable(&journal, put(&[A], batch(n, 1, 300)));
    }
    journal.close().unwrap();
    let key = Key::new(KeyId::new("a").unwrap(), [1; 32]);
    let keys: Keys = [key].into_iter().collect();
    let journal = open_with(&disk, FileConfig { keys, ..config() }, specs()).unwrap();
    let before = disk.names().len();
    durable(&journal, ack(A, R0, 60));
    durable(&journal, ack(A, R1, 60));
    durable(&journal, put(&[A], batch(60, 1, 300)));
    assert!(disk.names().len() < before);
    assert_eq!(spares(&disk), [""; 0]);
    pass(&journal, 61, 160);
    assert_ne!(spares(&disk), [""; 0], "those of its own key are kept");

    disk.faults(|faults| faults.capacity = Some(0));
    let stuck = journal.commit(put(&[A], batch(160, 1, 40_000)), None).unwrap();
    while journal.status().waiting_for.is_none() {
        std::thread::yield_now();
    }
    assert_eq!(spares(&disk), [""; 0], "their space is given back");
    disk.faults(|faults| faults.capacity = None);
    stuck.wait(Some(LIMIT)).expect("in time").unwrap();
}
