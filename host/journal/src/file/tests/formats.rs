//! Foreign bytes where frames, heads, registers and snapshots should be.

use proptest::collection::vec;
use proptest::prelude::*;
use smallvec::smallvec;

use super::basic::*;
use super::disk::MemDisk;
use crate::disk::Disk;
use crate::file::format::commit::{
    AckRecord, CommitHead, Location, PutChannel, PutHead, decode_lists, encode_lists,
};
use crate::file::format::frame::{FrameHeader, Kind};
use crate::file::format::registers::{ChannelRegister, ReaderRegister, Registers};
use crate::file::format::segment::SegmentHeader;
use crate::file::format::snapshot::{SegmentInfo, Snapshot};
use crate::file::format::wire::Fields;
use crate::file::{Compression, FileConfig};
use crate::{Journal, StateOp, StateWrite, StateWrites};

fn head() -> CommitHead {
    let channels = smallvec![PutChannel { channel: 3, first: 9, bytes_before: 100 }; 2];
    CommitHead {
        puts: smallvec![PutHead {
            channels,
            rows: 5,
            data_offset: 16,
            data_bytes: 800,
            compression: Compression::Lz4,
            bytes: 700,
        }],
        acks: vec![AckRecord {
            channel: 1,
            reader: 2,
            cursor: 3,
            bytes: 4,
            location: Location { segment: 5, offset: 6 },
        }],
        time_ns: -4,
        lists_bytes: 8,
        has_state: true,
    }
}

fn snapshot() -> Snapshot {
    let reader = ReaderRegister { name: "r".into(), live: true, cursor: 1, bytes: 2, ..Default::default() };
    let channel =
        ChannelRegister { name: "c".into(), live: false, head: 9, head_bytes: 8, readers: vec![reader] };
    let positions = [(b"k"[..].into(), b"v"[..].into())].into();
    Snapshot {
        generation: 4,
        journal: 5 << 90,
        registers: Registers { last_commit: 3, state_generation: 2, channels: vec![channel], positions },
        scan: Location { segment: 7, offset: 64 },
        scan_crc: 1,
        durable: 3,
        next_segment: 8,
        segments: vec![SegmentInfo {
            id: 7,
            first_commit: 1,
            created_ns: 2,
            end: 3,
            heads: vec![(4, 5)],
            key: None,
        }],
    }
}

#[test]
fn round_trips() {
    let mut bytes = Vec::new();
    head().encode(&mut bytes);
    assert_eq!(bytes.len() as u64, head().encoded_bytes());
    assert_eq!(CommitHead::decode(&bytes), Some(head()));
    assert_eq!(Snapshot::decode(&snapshot().encode()), Ok(snapshot()));
    let header =
        SegmentHeader { journal: 1 << 100, segment: 2, first_commit: 3, created_ns: 4, names_crc: 5 };
    let (bytes, crc) = header.encode();
    assert_eq!(SegmentHeader::decode(&bytes), Ok((header, crc)));
    let positions = vec![(b"a".to_vec(), vec![])];
    let write = StateWrite { plugin: "p".into(), key: vec![1], value: None, expiry: Some(-1) };
    let state = vec![write.clone(), StateWrite { value: Some(vec![]), expiry: None, ..write }];
    let mut bytes = Vec::new();
    let mut writes = StateWrites::new("p".into());
    writes.push(StateOp { key: &[1], value: None, expiry: Some(-1) });
    writes.push(StateOp { key: &[1], value: Some(&[]), expiry: None });
    encode_lists(&positions, &[writes], &mut bytes);
    assert_eq!(decode_lists(&bytes), Some((positions, state)));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn a_changed_header_is_never_accepted(at in 0usize..64, flip in 1u8..=255, numbers in any::<[u64; 4]>()) {
        let [commit, durable, segment, journal] = numbers;
        let header = FrameHeader {
            kind: Kind::Commit, is_sealed: segment % 2 == 1, data_bytes: 8, head_bytes: 16, commit, durable, segment, journal,
            previous_crc: 1, head_crc: 2, data_crc: 3,
        };
        let mut bytes = Vec::new();
        let crc = header.encode(&mut bytes);
        prop_assert_eq!(FrameHeader::decode(&bytes), Some((header, crc)));
        bytes[at] ^= flip;
        prop_assert_eq!(FrameHeader::decode(&bytes), None);
    }

    #[test]
    fn changed_bytes_never_panic(changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..5), cut in any::<prop::sample::Index>()) {
        let change = |mut bytes: Vec<u8>| {
            for (at, value) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            bytes
        };
        let mut whole = Vec::new();
        head().encode(&mut whole);
        let cut = cut.index(whole.len());
        prop_assert!(CommitHead::decode(&whole[..cut]).is_none());
        let changed = change(whole);
        // One put or acknowledgement less is a head too, of fewer bytes: what is taken for one is all that it says.
        for bytes in [&changed[..], &changed[..cut]] {
            if let Some(head) = CommitHead::decode(bytes) {
                let mut again = Vec::new();
                head.encode(&mut again);
                prop_assert_eq!(again.as_slice(), bytes);
            }
        }
        let sealed = snapshot().encode();
        let bytes = change(sealed.clone());
        prop_assert!(bytes == sealed || Snapshot::decode(&bytes).is_err());
        let _ = Registers::decode(&mut Fields::new(&bytes[64..]));
        let _ = decode_lists(&bytes);
    }

    #[test]
    fn noise_never_panics(bytes in vec(any::<u8>(), 0..300)) {
        let _ = (CommitHead::decode(&bytes), decode_lists(&bytes), FrameHeader::decode(&bytes));
        let _ = Registers::decode(&mut Fields::new(&bytes));
        let _ = (Snapshot::decode(&bytes), SegmentHeader::decode(&bytes));
    }
}

/// Written by the last program of version 1, which then crashed: 60 commits, acknowledgements, positions, state.
#[test]
fn a_journal_of_version_1_is_read_and_goes_on() {
    let from = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/v1");
    let disk = MemDisk::default();
    disk.create_dir("/j".as_ref()).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("/j/{}", path.file_name().unwrap().to_str().unwrap());
        drop(disk.create(name.as_ref()).unwrap());
        disk.set_bytes(&name, std::fs::read(path).unwrap());
    }
    for compression in [Compression::None, Compression::Zstd] {
        let journal = open_with(&disk, FileConfig { compression, ..config() }, specs()).unwrap();
        assert_eq!(journal.status().damaged_commits, 0);
        let more = journal.status().last_commit - 62;
        let all = 300 + more;
        assert_eq!(drain(journal.open_reader(A, R0).as_mut()), (150..all).collect::<Vec<_>>());
        assert_eq!(drain(journal.open_reader(A, R1).as_mut()), (0..all).collect::<Vec<_>>());
        assert_eq!(journal.position(b"file").unwrap(), [59]);
        let mut keys = Vec::new();
        journal.state().unwrap().scan("dedup", b"", None, 0, &mut |key, value| {
            keys.push((key[0], value.to_vec()));
            true
        });
        assert_eq!(keys, (0..60).map(|n| (n, vec![n])).collect::<Vec<_>>());
        durable(&journal, put(&[A], batch(all, 1, 400)));
    }
}
