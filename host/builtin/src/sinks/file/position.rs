//! The position of a file sink: every file that is not final, as of one flush.
//!
//! The journal keeps it in the same commit as the acknowledgement, and gives it back to
//! `recover` as it was. Little-endian:
//!
//! ```text
//! u8   version (1)
//! u64  fingerprint of the settings that shape the bytes of a file
//! u64  next running number
//! u32  files, then for each:
//!   u64 number   u64 length, in bytes on disk   u64 events   u64 opened, ms since the Unix epoch
//!   u8  closing (0 or 1)   u32 split   u32 path length   path (UTF-8)
//! u64  the first 8 bytes of the BLAKE3 hash of all before
//! ```
//!
//! How it fails: an unknown version or a wrong checksum is an error that stops delivery with words.
//! Guessing would lose or double events.

use std::sync::Arc;

use thiserror::Error;

const VERSION: u8 = 1;

/// What the destination holds, in files that are not final.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// See the module.
    pub fingerprint: u64,
    /// The number of the next file. No number is ever used twice.
    pub next_number: u64,
    /// In the order of their numbers.
    pub files: Vec<FileRecord>,
}

/// One file that has its `.open` name, or will have it, or was about to lose it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecord {
    /// The running number in its name.
    pub number: u64,
    /// Bytes on disk that are committed. 0: the file may not exist.
    pub length: u64,
    /// Events in these bytes.
    pub events: u64,
    /// When it was created.
    pub opened_ms: u64,
    /// No event will be added; it gets its final name.
    pub closing: bool,
    /// The path without the number. Shared by all files of a bucket.
    pub path: Arc<str>,
    /// Where in `path` the number is inserted.
    pub split: u32,
}

/// Why bytes are not a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PositionError {
    /// A newer Flumen wrote it.
    #[error("it has version {0}; this flumen reads version 1")]
    Version(u8),
    /// The checksum or a length is wrong.
    #[error("it is damaged")]
    Damaged,
}

impl Position {
    /// The bytes to commit.
    pub fn encode(&self) -> Vec<u8> {
        let paths: usize = self.files.iter().map(|file| file.path.len()).sum();
        let mut out = Vec::with_capacity(29 + self.files.len() * 41 + paths);
        out.push(VERSION);
        out.extend_from_slice(&self.fingerprint.to_le_bytes());
        out.extend_from_slice(&self.next_number.to_le_bytes());
        out.extend_from_slice(&(self.files.len() as u32).to_le_bytes());
        for file in &self.files {
            for number in [file.number, file.length, file.events, file.opened_ms] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.push(u8::from(file.closing));
            out.extend_from_slice(&file.split.to_le_bytes());
            out.extend_from_slice(&(file.path.len() as u32).to_le_bytes());
            out.extend_from_slice(file.path.as_bytes());
        }
        let sum = checksum(&out);
        out.extend_from_slice(&sum);
        out
    }

    /// The position in committed bytes.
    pub fn decode(bytes: &[u8]) -> Result<Position, PositionError> {
        use PositionError::Damaged;
        match bytes.first() {
            Some(&VERSION) => {}
            Some(&other) => return Err(PositionError::Version(other)),
            None => return Err(Damaged),
        }
        let (content, sum) = bytes.split_last_chunk::<8>().ok_or(Damaged)?;
        if checksum(content) != *sum {
            return Err(Damaged);
        }
        let mut input = Input(content.get(1..).ok_or(Damaged)?);
        let mut position =
            Position { fingerprint: input.u64()?, next_number: input.u64()?, files: Vec::new() };
        for _ in 0..input.u32()? {
            let [number, length, events, opened_ms] =
                [input.u64()?, input.u64()?, input.u64()?, input.u64()?];
            let closing = input.bytes(1)? == [1];
            let split = input.u32()?;
            let path_bytes = input.u32()? as usize;
            let path = std::str::from_utf8(input.bytes(path_bytes)?).map_err(|_| Damaged)?;
            if !path.is_char_boundary(split as usize) {
                return Err(Damaged);
            }
            position.files.push(FileRecord {
                number,
                length,
                events,
                opened_ms,
                closing,
                path: path.into(),
                split,
            });
        }
        if input.0.is_empty() { Ok(position) } else { Err(Damaged) }
    }
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    blake3::Hasher::new().update(bytes).finalize_xof().fill(&mut sum);
    sum
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], PositionError> {
        let (part, rest) = self.0.split_at_checked(count).ok_or(PositionError::Damaged)?;
        self.0 = rest;
        Ok(part)
    }

    fn u64(&mut self) -> Result<u64, PositionError> {
        let bytes = self.bytes(8)?.try_into().map_err(|_| PositionError::Damaged)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn u32(&mut self) -> Result<u32, PositionError> {
        let bytes = self.bytes(4)?.try_into().map_err(|_| PositionError::Damaged)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Position {
        let file = |number, path: &str, closing| FileRecord {
            number,
            length: 1 << 40,
            events: 3,
            opened_ms: 1_700_000_000_000,
            closing,
            path: path.into(),
            split: 5,
        };
        Position {
            fingerprint: 7,
            next_number: 12,
            files: vec![file(3, "/a/bü.log", false), file(11, "/a/b.log", true)],
        }
    }

    #[test]
    fn comes_back_as_it_was() {
        assert_eq!(Position::decode(&Position::default().encode()), Ok(Position::default()));
        let example = Position {
            files: example().files.into_iter().map(|f| FileRecord { split: 4, ..f }).collect(),
            ..example()
        };
        assert_eq!(Position::decode(&example.encode()), Ok(example));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let bytes = Position { files: vec![], ..example() }.encode();
        for at in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            assert!(Position::decode(&damaged).is_err(), "bit {at}");
        }
        for length in 0..bytes.len() {
            assert!(Position::decode(&bytes[..length]).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut bytes = example().encode();
        bytes[0] = 9;
        assert_eq!(Position::decode(&bytes), Err(PositionError::Version(9)));
    }
}
