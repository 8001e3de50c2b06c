//! Records: pieces of a content, with a header each. See [`super`] for the bytes.

use arrow_buffer::Buffer;

use crate::file::format::wire::Fields;
use crate::limits;

/// The version that is written, and the newest that is read.
pub(super) const VERSION: u8 = 1;

/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 56;

const MAGIC: &[u8; 4] = b"FLML";

/// Bytes of the largest content: a commit's head and its data, or a part of a snapshot.
const CONTENT_BYTES_MAX: u64 = limits::COMMIT_BYTES_MAX + limits::RECORD_BYTES_MAX;

/// What a content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Commit,
    Snapshot,
}

/// What stands before a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub kind: Kind,
    pub is_sealed: bool,
    /// Drawn at each opening.
    pub session: u64,
    /// Number of the commit; of a snapshot that of the last commit in it.
    pub number: u64,
    pub journal: [u8; 16],
    /// Of this piece.
    pub index: u32,
    pub pieces: u32,
}

/// Why bytes are no piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing of ours.
    Foreign,
    /// Ours, and damaged; the header, if that is sound.
    Damaged(Option<Header>),
    /// Of this newer version.
    Newer(u8),
}

impl Header {
    /// The low half of the journal's id, which is authenticated with what is encrypted.
    pub fn journal_low(&self) -> u64 {
        u128::from_le_bytes(self.journal) as u64
    }

    fn encode(&self, piece: &[u8], out: &mut Vec<u8>) {
        let kind = match self.kind {
            Kind::Commit => 1,
            Kind::Snapshot => 2,
        };
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[VERSION, kind, u8::from(self.is_sealed), 0]);
        out.extend_from_slice(&self.session.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.journal);
        out.extend_from_slice(&self.index.to_le_bytes());
        out.extend_from_slice(&self.pieces.to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(piece).to_le_bytes());
        let crc = crc32c::crc32c(out);
        out.extend_from_slice(&crc.to_le_bytes());
    }
}

/// Records of a content, each of at most so many bytes.
pub(super) fn cut(header: &Header, content: &[u8], record_bytes_max: usize) -> Vec<Vec<u8>> {
    let room = record_bytes_max.saturating_sub(HEADER_BYTES).max(1);
    let pieces = content.len().div_ceil(room);
    let record = |(index, piece): (usize, &[u8])| {
        let mut out = Vec::with_capacity(HEADER_BYTES + piece.len());
        let header = Header { index: index as u32, pieces: pieces as u32, ..*header };
        header.encode(piece, &mut out);
        out.extend_from_slice(piece);
        out
    };
    content.chunks(room).enumerate().map(record).collect()
}

/// The piece in a record.
pub(super) fn decode(record: &[u8]) -> Result<(Header, &[u8]), Fault> {
    if !record.starts_with(MAGIC) {
        return Err(Fault::Foreign);
    }
    let sound = || {
        let (covered, rest) = record.split_at_checked(HEADER_BYTES - 4)?;
        let (crc, piece) = rest.split_first_chunk::<4>()?;
        (u32::from_le_bytes(*crc) == crc32c::crc32c(covered)).then_some((covered, piece))
    };
    let (covered, piece) = sound().ok_or(Fault::Damaged(None))?;
    if let Some(version) = covered.get(MAGIC.len())
        && *version > VERSION
    {
        return Err(Fault::Newer(*version));
    }
    let (header, crc) = fields(covered).ok_or(Fault::Damaged(None))?;
    if crc == crc32c::crc32c(piece) { Ok((header, piece)) } else { Err(Fault::Damaged(Some(header))) }
}

fn fields(covered: &[u8]) -> Option<(Header, u32)> {
    let mut fields = Fields::new(covered);
    fields.bytes(MAGIC.len())?;
    let version = fields.u8()?;
    let kind = match fields.u8()? {
        1 => Kind::Commit,
        2 => Kind::Snapshot,
        _ => return None,
    };
    let (sealed, zero) = (fields.u8()?, fields.u8()?);
    let (session, number) = (fields.u64()?, fields.u64()?);
    let journal = fields.bytes(16)?.try_into().ok()?;
    let (index, pieces, crc) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let header = Header { kind, is_sealed: sealed == 1, session, number, journal, index, pieces };
    let is_known = version != 0 && sealed <= 1 && zero == 0;
    (is_known && index < pieces && fields.is_empty()).then_some((header, crc))
}

/// Puts pieces together. What is not whole is dropped.
#[derive(Default)]
pub(super) struct Assembler {
    open: Option<(Header, Vec<u8>)>,
}

impl Assembler {
    /// The next piece; the content, if it is whole with that.
    pub fn take(&mut self, header: &Header, piece: &[u8]) -> Option<(Header, Buffer)> {
        let (first, mut content) = match self.open.take() {
            _ if header.index == 0 => (*header, Vec::new()),
            Some((before, content)) if (Header { index: before.index + 1, ..before }) == *header => {
                (*header, content)
            }
            _ => return None,
        };
        if (content.len() + piece.len()) as u64 > CONTENT_BYTES_MAX {
            return None;
        }
        content.extend_from_slice(piece);
        if header.index + 1 == header.pieces {
            return Some((first, Buffer::from_vec(content)));
        }
        self.open = Some((first, content));
        None
    }

    /// What was not whole never will be.
    pub fn clear(&mut self) {
        self.open = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn header() -> Header {
        let (session, number, journal) = (7, 9, [3; 16]);
        Header { kind: Kind::Commit, is_sealed: false, session, number, journal, index: 0, pieces: 0 }
    }

    fn assembled(records: &[Vec<u8>]) -> Option<Vec<u8>> {
        let mut assembler = Assembler::default();
        let mut whole = None;
        for record in records {
            match decode(record) {
                Ok((header, piece)) => whole = assembler.take(&header, piece).or(whole),
                Err(_) => assembler.clear(),
            }
        }
        whole.map(|(_, content)| content.to_vec())
    }

    proptest! {
        #[test]
        fn a_content_comes_back_in_pieces(content in vec(any::<u8>(), 1..400), room in 1_usize..90) {
            let records = cut(&header(), &content, HEADER_BYTES + room);
            prop_assert!(records.iter().all(|record| record.len() <= HEADER_BYTES + room));
            prop_assert_eq!(assembled(&records), Some(content));
        }

        #[test]
        fn without_a_piece_or_with_a_changed_byte_it_does_not(
            content in vec(any::<u8>(), 1..300), room in 1_usize..90, at in any::<prop::sample::Index>(), bit in 0_u32..8,
        ) {
            let records = cut(&header(), &content, HEADER_BYTES + room);
            let hit = at.index(records.len());
            let mut missing = records.clone();
            missing.remove(hit);
            prop_assert_eq!(assembled(&missing), None);
            let mut changed = records;
            let byte = at.index(changed[hit].len());
            changed[hit][byte] ^= 1_u8 << bit;
            prop_assert_eq!(assembled(&changed), None);
        }

        #[test]
        fn any_bytes_are_a_piece_or_none(bytes in vec(any::<u8>(), 0..120), is_ours in any::<bool>()) {
            let bytes = if is_ours { [MAGIC.as_slice(), bytes.as_slice()].concat() } else { bytes };
            let _either = decode(&bytes);
        }
    }

    #[test]
    fn a_newer_version_is_told_and_no_damage() {
        let mut record = cut(&header(), b"content", 100).remove(0);
        record[4] = VERSION + 1;
        assert_eq!(decode(&record), Err(Fault::Damaged(None)));
        let crc = crc32c::crc32c(&record[..52]);
        record[52..56].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&record), Err(Fault::Newer(VERSION + 1)));
        assert_eq!(decode(b"something else"), Err(Fault::Foreign));
    }
}
