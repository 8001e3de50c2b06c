//! How far a file was read: the value of a position in the journal, and the fingerprints in it.
//!
//! Key: the stream id, 8 bytes big-endian. Value, all integers little-endian:
//!
//! ```text
//! version u8 = 1 | kind u8 | flags u8 | generation u32 | dev u64 | inode u64 | birth i64 (MIN: unknown)
//! offset u64 | archive bytes u64 | head length u16 | head hash u128 | tail length u16 | tail hash u128
//! path length u32 | path | label length u32 | label
//! ```
//!
//! `offset` is the first byte after the last event that was emitted (in the decompressed stream of an
//! archive). An unfinished multiline event begins there, so nothing else about it is kept.
//! A value of another version or a damaged one is an error: guessing would lose or repeat a file.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

const VERSION: u8 = 1;
const MID_LINE: u8 = 1;
const SKIP_LINE: u8 = 2;
const FINISHED: u8 = 4;

/// Key of the mark that says "this source has started before" (it matters for `start = "end"`).
pub const STARTED_KEY: &[u8] = b"started";

/// How the bytes of a file become a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As they are.
    Plain,
    /// gzip, one or more members.
    Gzip,
    /// Zstandard, one or more frames.
    Zstd,
}

impl Kind {
    /// By the file's extension.
    pub fn of(path: &Path) -> Kind {
        match path.extension().and_then(OsStr::to_str) {
            Some("gz") => Kind::Gzip,
            Some("zst") => Kind::Zstd,
            _ => Kind::Plain,
        }
    }

    /// True for archives, which are read once.
    pub fn is_archive(self) -> bool {
        self != Kind::Plain
    }
}

/// What the file system says a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Inode {
    /// Device.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Birth time in nanoseconds since the epoch, where the file system has one.
    pub birth: Option<i64>,
}

impl Inode {
    /// Of an open or looked-up file.
    pub fn of(meta: &std::fs::Metadata) -> Inode {
        use std::os::unix::fs::MetadataExt;
        let birth = meta
            .created()
            .ok()
            .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
            .and_then(|since| i64::try_from(since.as_nanos()).ok());
        Inode { dev: meta.dev(), ino: meta.ino(), birth }
    }

    /// False if the number was certainly given to another file since.
    pub fn may_be(&self, other: &Inode) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
            && match (self.birth, other.birth) {
                (Some(a), Some(b)) => a == b,
                _ => true,
            }
    }

    /// True if this may be `other` on a device that has another number now, as after a reboot (btrfs, NFS,
    /// device-mapper). Without a birth time the number alone proves little: then the path has to be the same.
    pub fn may_be_renumbered(&self, other: &Inode, is_same_path: bool) -> bool {
        self.dev != other.dev
            && self.ino == other.ino
            && match (self.birth, other.birth) {
                (Some(a), Some(b)) => a == b,
                _ => is_same_path,
            }
    }
}

/// Length and hash of some bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// How many bytes.
    pub len: u16,
    /// The first 128 bits of their BLAKE3 hash; 0 for no bytes.
    pub hash: u128,
}

impl Mark {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Mark {
        if bytes.is_empty() {
            return Mark::default();
        }
        let mut first = [0; 16];
        blake3::Hasher::new().update(bytes).finalize_xof().fill(&mut first);
        Mark { len: u16::try_from(bytes.len()).unwrap_or(u16::MAX), hash: u128::from_le_bytes(first) }
    }
}

/// One file's committed state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// How it is read.
    pub kind: Kind,
    /// The byte before `offset` is part of an emitted event whose line has not ended.
    pub mid_line: bool,
    /// The line at `offset` was too long; the rest of it is skipped.
    pub skip_line: bool,
    /// An archive that was read to its end.
    pub finished: bool,
    /// How often this inode began anew.
    pub generation: u32,
    /// Which file.
    pub inode: Inode,
    /// First byte that was not emitted.
    pub offset: u64,
    /// Bytes of the archive when it was finished.
    pub archive_bytes: u64,
    /// The first bytes, at most [`super::limits::HEAD_BYTES`] and at most `offset`.
    pub head: Mark,
    /// The last bytes before `offset`, at most [`super::limits::TAIL_BYTES`].
    pub tail: Mark,
    /// Where the file was seen last; without links on the way, where that is known.
    pub path: PathBuf,
    /// The path in its events' `file` header: where it was seen first.
    pub label: String,
}

/// Why a committed position cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RecordError {
    /// Written by a newer Flumen.
    #[error(
        "a position was written in version {0}, this Flumen reads version {VERSION}: use the newer Flumen"
    )]
    Version(u8),
    /// Not what was written.
    #[error("a position of {0} bytes cannot be understood")]
    Damaged(usize),
}

/// The key of a stream's position.
pub fn key(stream: u64) -> Vec<u8> {
    stream.to_be_bytes().to_vec()
}

/// The stream of a key; `None` for other keys.
pub fn stream_of(key: &[u8]) -> Option<u64> {
    key.try_into().ok().map(u64::from_be_bytes)
}

impl Record {
    /// The bytes for the journal.
    pub fn encode(&self) -> Vec<u8> {
        let path = self.path.as_os_str().as_bytes();
        let mut out = Vec::with_capacity(100 + path.len() + self.label.len());
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        out.push(VERSION);
        out.push(match self.kind {
            Kind::Plain => 0,
            Kind::Gzip => 1,
            Kind::Zstd => 2,
        });
        out.push(
            flag(self.mid_line, MID_LINE) | flag(self.skip_line, SKIP_LINE) | flag(self.finished, FINISHED),
        );
        out.extend(self.generation.to_le_bytes());
        out.extend(self.inode.dev.to_le_bytes());
        out.extend(self.inode.ino.to_le_bytes());
        out.extend(self.inode.birth.unwrap_or(i64::MIN).to_le_bytes());
        out.extend(self.offset.to_le_bytes());
        out.extend(self.archive_bytes.to_le_bytes());
        for mark in [self.head, self.tail] {
            out.extend(mark.len.to_le_bytes());
            out.extend(mark.hash.to_le_bytes());
        }
        for text in [path, self.label.as_bytes()] {
            out.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
            out.extend(text);
        }
        out
    }

    /// Reads what [`Record::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Record, RecordError> {
        match bytes.first() {
            Some(&VERSION) => {}
            Some(&other) => return Err(RecordError::Version(other)),
            None => return Err(RecordError::Damaged(0)),
        }
        let mut rest = Fields(bytes.get(1..).unwrap_or_default());
        rest.record().filter(|_| rest.0.is_empty()).ok_or(RecordError::Damaged(bytes.len()))
    }
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn mark(&mut self) -> Option<Mark> {
        Some(Mark { len: u16::from_le_bytes(self.array()?), hash: u128::from_le_bytes(self.array()?) })
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = u32::from_le_bytes(self.array()?);
        self.take(usize::try_from(len).ok()?)
    }

    fn record(&mut self) -> Option<Record> {
        let [kind, flags] = self.array()?;
        Some(Record {
            kind: match kind {
                0 => Kind::Plain,
                1 => Kind::Gzip,
                2 => Kind::Zstd,
                _ => return None,
            },
            mid_line: flags & MID_LINE != 0,
            skip_line: flags & SKIP_LINE != 0,
            finished: flags & FINISHED != 0,
            generation: u32::from_le_bytes(self.array()?),
            inode: Inode {
                dev: self.u64()?,
                ino: self.u64()?,
                birth: Some(i64::from_le_bytes(self.array()?)).filter(|birth| *birth != i64::MIN),
            },
            offset: self.u64()?,
            archive_bytes: self.u64()?,
            head: self.mark()?,
            tail: self.mark()?,
            path: PathBuf::from(OsStr::from_bytes(self.bytes()?)),
            label: String::from_utf8(self.bytes()?.to_vec()).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            kind: Kind::Gzip,
            mid_line: true,
            skip_line: false,
            finished: true,
            generation: 7,
            inode: Inode { dev: 1, ino: 2, birth: Some(-3) },
            offset: 4,
            archive_bytes: 5,
            head: Mark::of(b"head"),
            tail: Mark::of(b"tail"),
            path: "/var/log/a.gz".into(),
            label: "/var/log/a".into(),
        }
    }

    #[test]
    fn another_device_number_is_the_same_file_only_with_its_birth_or_its_path() {
        let inode = |dev, ino, birth| Inode { dev, ino, birth };
        let known = inode(1, 2, Some(3));
        assert!(inode(9, 2, Some(3)).may_be_renumbered(&known, false));
        assert!(!inode(9, 2, Some(4)).may_be_renumbered(&known, true), "born at another time");
        assert!(!inode(9, 7, Some(3)).may_be_renumbered(&known, true), "another number");
        assert!(!inode(1, 2, Some(3)).may_be_renumbered(&known, true), "the device is the same");
        for (found, known) in [(None, Some(3)), (Some(3), None), (None, None)] {
            assert!(inode(9, 2, found).may_be_renumbered(&inode(1, 2, known), true));
            assert!(!inode(9, 2, found).may_be_renumbered(&inode(1, 2, known), false));
        }
    }

    #[test]
    fn record_comes_back_and_its_damaged_forms_are_refused() {
        let bytes = record().encode();
        assert_eq!(Record::decode(&bytes), Ok(record()));
        for len in 0..bytes.len() {
            assert_eq!(Record::decode(&bytes[..len]), Err(RecordError::Damaged(len)));
        }
        let newer: Vec<u8> = std::iter::once(2).chain(bytes[1..].iter().copied()).collect();
        assert_eq!(Record::decode(&newer), Err(RecordError::Version(2)));
        assert_eq!(stream_of(&key(42)), Some(42));
        assert_eq!(stream_of(STARTED_KEY), None);
    }

    /// Written by version 1; must be readable for ever.
    #[test]
    fn version_1_is_read_for_ever() {
        let bytes = record().encode();
        assert_eq!(bytes.len(), 1 + 2 + 4 + 24 + 16 + 36 + 4 + 13 + 4 + 10);
        assert_eq!(&bytes[..7], [1, 1, 5, 7, 0, 0, 0]);
    }
}
