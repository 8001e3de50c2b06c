//! Encryption at rest: what is on disk, rotation of keys, keys that are missing and wrong, nonces, foreign bytes.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_buffer::Buffer;
use flumen_event::BatchBuilder;
use proptest::collection::vec;
use proptest::prelude::*;

use super::basic::*;
use super::disk::MemDisk;
use crate::file::format::sealed::{Opener, Piece, Sealer};
use crate::file::{Compression, FileConfig, OpenError, SegmentFile};
use crate::inspect::Inspector;
use crate::{Commit, Journal, Key, KeyError, KeyId, Keys, StateOp, StateWrites};

fn key(id: &str, secret: u8) -> Key {
    Key::new(KeyId::new(id).unwrap(), [secret; 32])
}

fn with(keys: &[(&str, u8)]) -> FileConfig {
    let keys: Keys = keys.iter().map(|(id, secret)| key(id, *secret)).collect();
    FileConfig { keys, window_bytes: 0, state_file_every_bytes: 8 << 10, ..config() }
}

/// A commit of everything that a user may call a secret.
fn everything(number: u64) -> Commit {
    let mut builder = BatchBuilder::with_capacity(1, 0);
    builder.push(
        7,
        number,
        1,
        format!("{number} a body that is SECRET {}", "and long ".repeat(60)).as_bytes(),
    );
    let headers = vec![("name".into(), vec![Some("SECRET header")])];
    let batch = builder.finish(headers.into_iter().map(flumen_event_header).collect()).unwrap();
    let mut commit = put(&[A], batch);
    commit.positions.push((b"SECRET file".to_vec(), format!("SECRET place {number}").into_bytes()));
    let mut writes = StateWrites::new("dedup".into());
    let state_key = format!("SECRET key {number}");
    writes.push(StateOp { key: state_key.as_bytes(), value: Some(b"SECRET value"), expiry: None });
    commit.state.push(writes);
    commit
}

fn flumen_event_header((name, values): (Arc<str>, Vec<Option<&str>>)) -> flumen_event::HeaderColumn {
    flumen_event::HeaderColumn { name, values: values.into_iter().collect() }
}

fn files(disk: &MemDisk) -> Vec<(String, Vec<u8>)> {
    let mut names = disk.names();
    names.sort();
    // One may have got another name meanwhile.
    let read = |name: String| Some((name.clone(), disk.0.lock().file(&format!("/j/{name}"))?));
    names.into_iter().filter_map(read).collect()
}

fn files_with(disk: &MemDisk, word: &[u8]) -> Vec<String> {
    let has = |bytes: &[u8]| bytes.windows(word.len()).any(|part| part == word);
    files(disk).into_iter().filter(|(_, bytes)| has(bytes)).map(|(name, _)| name).collect()
}

fn error_of(disk: &MemDisk, keys: &[(&str, u8)]) -> String {
    match open_with(disk, with(keys), specs()) {
        Err(error @ OpenError::Key { .. }) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("opened"),
    }
}

#[test]
fn nothing_is_on_disk_in_clear() {
    for (keys, found) in [(&[][..], true), (&[("a", 1)], false)] {
        let disk = MemDisk::default();
        let journal = open_with(&disk, with(keys), specs()).unwrap();
        for n in 0..40 {
            durable(&journal, everything(n));
        }
        let of_state = || disk.names().iter().any(|name| name.ends_with(".state"));
        let mut n = 40;
        while !of_state() {
            durable(&journal, everything(n));
            n += 1;
        }
        // One without a close, so that the last segment is read at the next start.
        drop(journal);
        let journal = open_with(&disk, with(keys), specs()).unwrap();
        assert_eq!(journal.position(b"SECRET file").unwrap(), format!("SECRET place {}", n - 1).as_bytes());
        let mut values = 0;
        journal.state().unwrap().scan("dedup", b"SECRET", None, 0, &mut |_, value| {
            values += u64::from(value == b"SECRET value");
            true
        });
        assert_eq!(values, n);
        assert_eq!(drain(journal.open_reader(A, R0).as_mut()), (0..n).collect::<Vec<_>>());
        journal.close().unwrap();
        let names = files_with(&disk, b"SECRET");
        assert_eq!(!names.is_empty(), found, "{names:?}");
        if found {
            for kind in [".seg", ".state", "snapshot"] {
                assert!(names.iter().any(|name| name.contains(kind)), "the test sees {kind}: {names:?}");
            }
        }
    }
}

#[test]
fn keys_are_exchanged_one_after_the_other() {
    let disk = MemDisk::default();
    let rounds: [&[(&str, u8)]; 4] =
        [&[], &[("a", 1)], &[("b", 2), ("a", 1)], &[("c", 3), ("b", 2), ("a", 1)]];
    for (round, keys) in (0..).zip(rounds) {
        let compression = [Compression::None, Compression::Zstd][round as usize % 2];
        let journal = open_with(&disk, FileConfig { compression, ..with(keys) }, specs()).unwrap();
        for n in 0..30 {
            durable(&journal, everything(round * 30 + n));
        }
        // Both ways of stopping.
        if round % 2 == 0 {
            journal.close().unwrap();
        }
    }
    let all: Keys = [key("a", 1), key("b", 2), key("c", 3)].into_iter().collect();
    let inspector = Inspector::open(Arc::new(disk.clone()), "/j").unwrap().with_keys(&all);
    let mut used: Vec<String> = inspector
        .segments()
        .unwrap()
        .iter()
        .map(|segment| segment.key.map_or(String::new(), |key| key.id.to_string()))
        .collect();
    used.dedup();
    assert_eq!(used, ["", "a", "b", "c"]);
    let rows = inspector.events("a", 0).unwrap().map(|rows| rows.unwrap().batch.position().values().to_vec());
    assert_eq!(rows.flatten().collect::<Vec<_>>(), (0..120).collect::<Vec<_>>());
    // A key that any segment needs cannot be left out, however far back that is.
    assert!(error_of(&disk, &[("c", 3), ("b", 2)]).contains("`a`"));
    let journal = open_with(&disk, with(rounds[3]), specs()).unwrap();
    assert_eq!(drain(journal.open_reader(A, R0).as_mut()), (0..120).collect::<Vec<_>>());
    // When everything that it wrote is done with, it can.
    durable(&journal, ack(A, R0, 120));
    durable(&journal, ack(A, R1, 120));
    for n in 120..240 {
        durable(&journal, everything(n));
        durable(&journal, ack(A, R0, n + 1));
        durable(&journal, ack(A, R1, n + 1));
    }
    let covered = || disk.names().into_iter().filter(|name| name.ends_with(".seg")).count() <= 4;
    let mut n = 240;
    // Without state: or the thread that writes its file would have to be faster than the segments that are written meanwhile.
    while !covered() {
        durable(&journal, Commit { state: Vec::new(), ..everything(n) });
        n += 1;
        durable(&journal, ack(A, R0, n));
        durable(&journal, ack(A, R1, n));
    }
    journal.close().unwrap();
    drop(journal);
    let journal = open_with(&disk, with(&[("c", 3)]), specs()).unwrap();
    assert_eq!(journal.position(b"SECRET file").unwrap(), format!("SECRET place {}", n - 1).as_bytes());
    assert_eq!(journal.status().damaged_commits, 0);
}

/// A journal with the key `a` that crashed: a backlog over segments, snapshots, a file of the state.
fn sealed_journal() -> MemDisk {
    let disk = MemDisk::default();
    let journal = open_with(&disk, with(&[("a", 1)]), specs()).unwrap();
    let mut n = 0;
    while n < 60 || !disk.names().iter().any(|name| name.ends_with(".state")) {
        durable(&journal, everything(n));
        n += 1;
    }
    drop(journal);
    disk
}

#[test]
fn a_key_that_is_missing_or_wrong_is_named_and_nothing_changes() {
    let disk = sealed_journal();
    let before = files(&disk);
    let missing = error_of(&disk, &[("b", 2)]);
    assert!(missing.starts_with("/j/snapshot.") && missing.contains("`a`, which is not given"), "{missing}");
    assert!(missing.contains("[[journal.key]] with id = \"a\""), "{missing}");
    assert!(error_of(&disk, &[]).contains("`a`, which is not given"));
    let wrong = error_of(&disk, &[("a", 2)]);
    assert!(wrong.contains("another key `a`"), "{wrong}");
    // Without snapshots the segments tell, and without those that the snapshots name, the file of the state.
    let no_slots = disk.copy();
    for slot in ["/j/snapshot.a", "/j/snapshot.b"] {
        no_slots.set_bytes(slot, vec![0; 64]);
    }
    assert!(error_of(&no_slots, &[("b", 2)]).contains(".seg is encrypted with the key `a`"));
    assert!(error_of(&no_slots, &[("a", 2)]).contains(".seg is encrypted with another key `a`"));
    assert_eq!(files(&disk), before, "nothing changed");
    let journal = open_with(&disk, with(&[("b", 2), ("a", 1)]), specs()).unwrap();
    assert_eq!(journal.status().damaged_commits, 0);
    assert!(drain(journal.open_reader(A, R0).as_mut()).len() >= 60);
    let look = Inspector::open(Arc::new(disk.clone()), "/j").unwrap();
    assert!(look.segments().unwrap_err().to_string().contains("which is not given"));
    assert!(look.snapshots().iter().all(|(_, slot)| slot.as_ref().is_err_and(|why| why.contains("`"))));
}

#[test]
fn damage_is_found_with_any_key() {
    let disk = sealed_journal();
    let name = disk.names().into_iter().filter(|name| name.ends_with(".seg")).min().unwrap();
    let path = format!("/j/{name}");
    let mut file = SegmentFile::open(&disk, "/j".as_ref(), 1, None).unwrap();
    let len = file.len().unwrap();
    // Heads are in clear.
    let first = file.frame(64, len, false).unwrap().unwrap();
    let second = file.frame(first.end(), len, false).unwrap().unwrap();
    let mut bytes = disk.bytes(&path);
    bytes[second.end() as usize - 30] ^= 1;
    disk.set_bytes(&path, bytes);
    assert!(error_of(&disk, &[("b", 2)]).contains("`a`"));
    let journal = open_with(&disk, with(&[("a", 1)]), specs()).unwrap();
    assert_eq!(drain(journal.open_reader(A, R0).as_mut())[0], 1);
    assert_eq!(journal.status().damaged_commits, 1);
}

/// Every whole piece on the disk: its key, salt and number, and its bytes. What a power cut left of one is none that was written.
fn pieces(disk: &MemDisk, id: &str) -> Vec<([u8; 48], Vec<u8>)> {
    let segments = disk.names().into_iter().filter_map(|name| crate::file::segment_id(&name));
    let headers =
        segments.filter_map(|id| SegmentFile::open(disk, "/j".as_ref(), id, None).ok()?.header.ok());
    let mut journals: Vec<u64> = headers.map(|(header, _)| header.journal as u64).collect();
    journals.dedup();
    let keys: Keys = [key(id, 1)].into_iter().collect();
    let mut opener = Opener::new(&keys);
    let mut is_whole = |sealed: &[u8]| {
        let kinds = [Piece::Frame, Piece::Snapshot, Piece::State];
        let mut ways = kinds.iter().flat_map(|kind| journals.iter().map(move |journal| (*kind, *journal)));
        ways.any(|(kind, journal)| matches!(opener.open(kind, journal, sealed), Ok(Some(_))))
    };
    let mut name = [0; 16];
    name[..id.len()].copy_from_slice(id.as_bytes());
    let fingerprint = key(id, 1).name().fingerprint.to_le_bytes();
    let mark: Vec<u8> = name.iter().chain(&fingerprint).copied().collect();
    let mut found = Vec::new();
    for (_, bytes) in files(disk) {
        for at in (0..bytes.len().saturating_sub(56)).step_by(8).filter(|at| bytes[*at..].starts_with(&mark))
        {
            let length = u32::from_le_bytes(bytes[at + 48..at + 52].try_into().unwrap()) as usize + 16;
            let padded = at + 56 + length.next_multiple_of(8);
            if let Some(piece) = bytes.get(at + 56..at + 56 + length)
                && bytes.get(at..padded).is_some_and(&mut is_whole)
            {
                found.push((bytes[at..at + 48].try_into().unwrap(), piece.to_vec()));
            }
        }
    }
    found
}

#[test]
fn no_nonce_is_used_twice_with_a_key() {
    let disk = MemDisk::default();
    let mut seen: HashMap<[u8; 48], Vec<u8>> = HashMap::new();
    let mut again = 0;
    for round in 0..12_u64 {
        let journal = open_with(&disk, with(&[("a", 1)]), specs()).unwrap();
        let from = journal.status().last_commit;
        for n in from..from + 12 {
            // Abandoned segments: the group is written again.
            disk.faults(|faults| {
                faults.sync_errors = u32::from(n % 5 == 3);
                faults.write_errors = u32::from(n % 7 == 3);
            });
            durable(&journal, everything(n));
            for (nonce, piece) in pieces(&disk, "a") {
                again += u64::from(seen.contains_key(&nonce));
                assert_eq!(
                    seen.entry(nonce).or_insert(piece.clone()),
                    &piece,
                    "another text under one nonce"
                );
            }
        }
        disk.faults(|faults| (faults.sync_errors, faults.write_errors) = (0, 0));
        drop(journal);
        disk.crash(round);
    }
    assert!(seen.len() > 150 && again > 100, "{} nonces, {again} seen again", seen.len());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn what_was_encrypted_is_read_with_its_key_alone(
        plain in vec(any::<u8>(), 0..300),
        changes in vec((any::<prop::sample::Index>(), 1u8..=255), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let sealer = Sealer::new(&key("a", 1), 5).unwrap();
        let halves = plain.split_at(plain.len() / 2);
        let sealed = sealer.seal(Piece::Frame, plain.len(), [halves.0, halves.1]).unwrap();
        let other = sealer.seal(Piece::Frame, plain.len(), [plain.as_slice()]).unwrap();
        prop_assert!(sealed != other && sealed.len().is_multiple_of(8));
        let open = |keys: &[Key], piece, journal, bytes: &[u8]| {
            let opened = Opener::new(&keys.iter().cloned().collect()).open(piece, journal, bytes);
            opened.map(|opened| opened.map(|bytes: Buffer| bytes.to_vec()))
        };
        let keys = [key("b", 2), key("a", 1)];
        prop_assert_eq!(open(&keys, Piece::Frame, 5, &sealed), Ok(Some(plain)));
        prop_assert_eq!(open(&keys, Piece::State, 5, &sealed), Ok(None), "another piece");
        prop_assert_eq!(open(&keys, Piece::Frame, 6, &sealed), Ok(None), "another journal");
        let id = KeyId::new("a").unwrap();
        prop_assert_eq!(open(&keys[..1], Piece::Frame, 5, &sealed), Err(KeyError::Missing(id)));
        prop_assert_eq!(open(&[key("a", 2)], Piece::Frame, 5, &sealed), Err(KeyError::Wrong(id)));
        let shorter = &sealed[..cut.index(sealed.len())];
        let mut changed = sealed.clone();
        for (at, value) in changes {
            let at = at.index(changed.len());
            changed[at] ^= value;
        }
        for bytes in [shorter, changed.as_slice()] {
            let opened = open(&keys, Piece::Frame, 5, bytes);
            let only_padding = bytes.len() < sealed.len() && sealed[bytes.len()..].iter().all(|byte| *byte == 0);
            prop_assert!(bytes == sealed || only_padding || !matches!(opened, Ok(Some(_))));
        }
    }

    #[test]
    fn noise_is_no_encrypted_piece(bytes in vec(any::<u8>(), 0..200)) {
        let opened = Opener::new(&[key("a", 1)].into_iter().collect()).open(Piece::Frame, 5, &bytes);
        prop_assert!(!matches!(opened, Ok(Some(_))));
    }
}
