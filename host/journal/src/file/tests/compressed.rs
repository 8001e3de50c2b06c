//! Compressed batches: on disk, across a change of the setting, damaged, and foreign.

use std::sync::Arc;

use arrow_buffer::Buffer;
use flumen_event::layout::{self, Encoded, Encoder};
use flumen_event::{Batch, BatchBuilder};
use proptest::collection::vec;
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use super::basic::*;
use super::disk::MemDisk;
use crate::file::format::packed::{pack, unpack};
use crate::file::{Compression, FileConfig};
use crate::inspect::{FrameView, Inspector};
use crate::{Journal, limits};

const BOTH: [Compression; 2] = [Compression::Lz4, Compression::Zstd];

fn with(compression: Compression) -> FileConfig {
    FileConfig { compression, window_bytes: 0, ..config() }
}

/// One event of bytes that do not shrink.
fn noise(number: u64, bytes: usize) -> Batch {
    let mut body = vec![0; bytes];
    SmallRng::seed_from_u64(number).fill_bytes(&mut body);
    let mut builder = BatchBuilder::with_capacity(1, bytes);
    builder.push(7, number, 1, &body);
    builder.finish(Vec::new()).unwrap()
}

/// Of every put on disk: how it is compressed, and its bytes there.
fn stored(disk: &MemDisk) -> Vec<(Compression, u64)> {
    let inspector = Inspector::open(Arc::new(disk.clone()), "/j").unwrap();
    let segments = inspector.segments().unwrap();
    let frames = segments.iter().flat_map(|segment| inspector.frames(segment.id).unwrap());
    let commits = frames.filter_map(|frame| match frame {
        FrameView::Commit(commit) => Some(commit),
        _ => None,
    });
    commits.flat_map(|commit| commit.puts).map(|put| (put.compression, put.data_bytes)).collect()
}

#[test]
fn a_change_of_the_setting_needs_nothing_of_old_segments() {
    let disk = MemDisk::default();
    let settings = [Compression::None, Compression::Zstd, Compression::Lz4, Compression::None];
    for (round, compression) in (0..).zip(settings) {
        let journal = open_with(&disk, with(compression), specs()).unwrap();
        for n in 0..10 {
            let mut commit = put(&[A, B], batch(round * 100 + n * 10, 10, 100));
            commit.positions.push((b"file".to_vec(), vec![round as u8, n as u8]));
            durable(&journal, commit);
        }
        // Half of the rounds end in a crash: what follows is then read by a recovery.
        if round % 2 == 0 {
            journal.close().unwrap();
        }
    }
    let used: Vec<Compression> = stored(&disk).iter().map(|(compression, _)| *compression).collect();
    let expected: Vec<Compression> = settings.iter().flat_map(|one| [*one; 10]).collect();
    assert_eq!(used, expected);
    let inspector = Inspector::open(Arc::new(disk.clone()), "/j").unwrap();
    let rows = inspector.events("b", 0).unwrap().map(|rows| rows.unwrap().batch.position().values().to_vec());
    assert_eq!(rows.flatten().collect::<Vec<_>>(), (0..400).collect::<Vec<_>>());
    let journal = open(&disk);
    assert_eq!(drain(journal.open_reader(A, R1).as_mut()), (0..400).collect::<Vec<_>>());
    assert_eq!(journal.position(b"file").unwrap(), [3, 9]);
    assert_eq!(journal.status().damaged_commits, 0);
}

#[test]
fn what_does_not_shrink_is_stored_as_it_is() {
    for compression in BOTH {
        let disk = MemDisk::default();
        let journal = open_with(&disk, with(compression), specs()).unwrap();
        let plain = layout::encode(&noise(0, 4_000)).len() as u64;
        durable(&journal, put(&[A], noise(0, 4_000)));
        durable(&journal, put(&[A], batch(1, 1, 4_000)));
        // Too small to be tried.
        durable(&journal, put(&[A], batch(2, 1, 10)));
        let [noise, text, small] = stored(&disk).try_into().unwrap();
        assert_eq!((noise, small.0), ((Compression::None, plain), Compression::None));
        assert!(text.0 == compression && text.1 < plain / 8, "{text:?} of {plain}");
        assert_eq!(drain(journal.open_reader(A, R0).as_mut()), [0, 1, 2]);
    }
}

#[test]
fn a_flipped_bit_in_a_compressed_batch_costs_its_commit_only() {
    for compression in BOTH {
        let disk = MemDisk::default();
        let journal = open_with(&disk, with(compression), specs()).unwrap();
        for n in 0..9 {
            durable(&journal, put(&[A], batch(n * 5, 5, 300)));
        }
        drop(journal);
        let inspector = Inspector::open(Arc::new(disk.clone()), "/j").unwrap();
        let segment = inspector.segments().unwrap()[0].clone();
        let frames = inspector.frames(segment.id).unwrap();
        let FrameView::Commit(fourth) = &frames[4] else { panic!("a commit") };
        let path = format!("/j/{}", segment.name);
        let mut bytes = disk.bytes(&path);
        bytes[(fourth.offset + fourth.bytes) as usize - 20] ^= 1;
        disk.set_bytes(&path, bytes);
        let journal = open_with(&disk, with(compression), specs()).unwrap();
        let expected: Vec<u64> = (0..15).chain(20..45).collect();
        assert_eq!(drain(journal.open_reader(A, R0).as_mut()), expected);
        assert_eq!(journal.status().damaged_commits, 1);
    }
}

fn encoded(parts: &[Vec<u8>]) -> Encoded {
    let mut encoder = Encoder::default();
    parts.iter().for_each(|part| encoder.buffer(Buffer::from_slice_ref(part)));
    encoder.finish()
}

#[test]
fn a_few_bytes_do_not_become_many() {
    for compression in BOTH {
        let zeros = encoded(&[vec![0; 1 << 20]]);
        let packed = pack(compression, &zeros).unwrap();
        assert!(packed.len() < 10_000);
        let says = |total: u32, section: u32| {
            let mut bytes = packed.clone();
            bytes[..4].copy_from_slice(&total.to_le_bytes());
            bytes[8..12].copy_from_slice(&section.to_le_bytes());
            unpack(compression, Buffer::from_vec(bytes))
        };
        assert_eq!(says(1 << 20, 1 << 20).unwrap().len(), 1 << 20);
        let over = limits::COMMIT_BYTES_MAX as u32 + 8;
        assert_eq!(says(over, over), None, "more than a commit may be");
        assert_eq!(says(2 << 20, 1 << 20), None, "sections that do not add up");
        assert_eq!(says((1 << 20) - 8, (1 << 20) - 8), None, "more in it than it says");
        assert_eq!(says(2 << 20, 2 << 20), None, "less in it than it says");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn what_was_packed_is_unpacked(
        parts in vec((any::<u8>(), 0usize..5_000, any::<bool>()), 1..6),
        zstd in any::<bool>(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let compression = BOTH[usize::from(zstd)];
        let parts: Vec<Vec<u8>> = parts.iter().map(|(seed, bytes, is_noise)| {
            let mut part = vec![*seed; *bytes];
            if *is_noise {
                SmallRng::seed_from_u64(u64::from(*seed)).fill_bytes(&mut part);
            }
            part
        }).collect();
        let plain = encoded(&parts);
        let Some(packed) = pack(compression, &plain) else { return Ok(()) };
        prop_assert!(packed.len() < plain.len() && packed.len().is_multiple_of(8));
        let again = unpack(compression, Buffer::from_slice_ref(&packed));
        prop_assert_eq!(again.map(|bytes| bytes.to_vec()), Some(plain.to_vec()));
        // Its padding may be missing, nothing else.
        let shorter = unpack(compression, Buffer::from_slice_ref(&packed[..cut.index(packed.len())]));
        prop_assert!(shorter.is_none_or(|bytes| bytes.as_slice() == plain.to_vec()));
        let mut changed = packed;
        for (at, value) in changes {
            let at = at.index(changed.len());
            changed[at] = value;
        }
        if let Some(bytes) = unpack(compression, Buffer::from_vec(changed)) {
            prop_assert!(bytes.len() as u64 <= limits::COMMIT_BYTES_MAX);
        }
    }

    #[test]
    fn noise_is_no_packed_batch(bytes in vec(any::<u8>(), 0..200), zstd in any::<bool>()) {
        let _ = unpack(BOTH[usize::from(zstd)], Buffer::from_vec(bytes)).and_then(|bytes| layout::decode(bytes).ok());
    }
}
