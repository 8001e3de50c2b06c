//! The contents of records: commits and parts of snapshots. See [`super`] for the bytes.
//!
//! How it fails: foreign bytes are `None`, never a panic; a key that is not given is told by name.

use std::io;
use std::sync::Arc;

use arrow_buffer::Buffer;
use flumen_event::Batch;
use flumen_event::layout::{self, Encoded};

use super::record::Header;
use crate::file::format::commit::{CommitHead, Lists, PutHead, decode_lists};
use crate::file::format::packed;
use crate::file::format::registers::Registers;
use crate::file::format::sealed::{Opener, Piece, Sealer};
use crate::file::format::wire::{Fields, put_blob};
use crate::keys::KeyError;
use crate::state::StateWrites;

/// Appends names, for the beginning of a commit's data.
pub(super) fn encode_names(names: &[Arc<str>], out: &mut Vec<u8>) {
    out.extend_from_slice(&(names.len() as u32).to_le_bytes());
    names.iter().for_each(|name| put_blob(out, name.as_bytes()));
}

/// The content of a commit.
pub(super) fn encode(head: &CommitHead, data: &Encoded) -> Vec<u8> {
    let head_bytes = head.encoded_bytes() as usize;
    let mut out = Vec::with_capacity(8 + head_bytes + data.len());
    out.extend_from_slice(&(head_bytes as u32).to_le_bytes());
    out.extend_from_slice(&(data.len() as u32).to_le_bytes());
    head.encode(&mut out);
    data.parts().for_each(|part| out.extend_from_slice(part));
    out
}

/// A commit as it was read.
pub(super) struct LogCommit {
    pub head: CommitHead,
    names: Vec<String>,
    lists: Range,
    data: Buffer,
}

/// Bytes of the data.
struct Range {
    from: usize,
    to: usize,
}

impl LogCommit {
    /// The commit in a content; `None`: it is none.
    ///
    /// # Errors
    /// If its key is not given, or another one under its id.
    pub fn decode(
        header: &Header,
        content: &Buffer,
        opener: &mut Opener,
    ) -> Result<Option<LogCommit>, KeyError> {
        let Some((head, data)) = split(content) else { return Ok(None) };
        let Some(data) = open(header, Piece::Frame, data, opener)? else { return Ok(None) };
        Ok(LogCommit::of(head, data))
    }

    fn of(head: CommitHead, data: Buffer) -> Option<LogCommit> {
        let to = head.lists_bytes as usize;
        let lists = data.get(..to)?;
        let mut fields = Fields::new(lists);
        let count = fields.count(4)?;
        let names = (0..count).map(|_| fields.text().map(str::to_owned)).collect::<Option<Vec<String>>>()?;
        let names_bytes = 4 + names.iter().map(|name| 4 + name.len()).sum::<usize>();
        Some(LogCommit { head, names, lists: Range { from: names_bytes, to }, data })
    }

    /// A channel or a reader.
    pub fn name(&self, index: u32) -> Option<&str> {
        self.names.get(index as usize).map(String::as_str)
    }

    /// Positions and writes to plugins' state.
    pub fn lists(&self) -> Option<Lists> {
        decode_lists(self.data.get(self.lists.from..self.lists.to)?)
    }

    /// The events of a put; `None`: they are not readable.
    pub fn batch(&self, put: &PutHead) -> Option<Batch> {
        let (from, bytes) = (usize::try_from(put.data_offset).ok()?, usize::try_from(put.data_bytes).ok()?);
        let end = from.checked_add(bytes)?;
        if end > self.data.len() {
            return None;
        }
        let laid_out = packed::unpack(put.compression, self.data.slice_with_length(from, bytes))?;
        let batch = layout::decode(laid_out).ok()?;
        (batch.rows() == put.rows as usize).then_some(batch)
    }
}

/// Head and data.
fn split(content: &Buffer) -> Option<(CommitHead, Buffer)> {
    let mut fields = Fields::new(content);
    let (head_bytes, data_bytes) = (fields.u32()? as usize, fields.u32()? as usize);
    let head = CommitHead::decode(fields.bytes(head_bytes)?)?;
    fields.bytes(data_bytes)?;
    fields.is_empty().then(|| (head, content.slice_with_length(8 + head_bytes, data_bytes)))
}

/// What may be encrypted, as it was.
fn open(
    header: &Header,
    piece: Piece,
    data: Buffer,
    opener: &mut Opener,
) -> Result<Option<Buffer>, KeyError> {
    if header.is_sealed { opener.open(piece, header.journal_low(), &data) } else { Ok(Some(data)) }
}

/// A part of a snapshot.
pub(super) enum Part {
    /// The first: positions and cursors.
    Registers(Registers),
    /// What a plugin remembers.
    State(StateWrites),
}

/// The contents of a snapshot's parts.
pub(super) fn encode_parts(
    registers: &Registers,
    state: &[StateWrites],
    sealer: Option<&Sealer>,
) -> io::Result<Vec<Vec<u8>>> {
    let parts = state.len() + 1;
    let mut contents = Vec::with_capacity(parts);
    for index in 0..parts {
        let mut plain = Vec::new();
        match index.checked_sub(1).and_then(|at| state.get(at)) {
            None => registers.encode(&mut plain),
            Some(writes) => writes.encode(&mut plain),
        }
        let data = match sealer {
            Some(sealer) => sealer.seal(Piece::Snapshot, plain.len(), [plain.as_slice()])?,
            None => plain,
        };
        let mut content = Vec::with_capacity(8 + data.len());
        content.extend_from_slice(&(index as u32).to_le_bytes());
        content.extend_from_slice(&(parts as u32).to_le_bytes());
        content.extend_from_slice(&data);
        contents.push(content);
    }
    Ok(contents)
}

/// The part in a content, with its index and how many there are; `None`: it is none.
pub(super) fn decode_part(
    header: &Header,
    content: &Buffer,
    opener: &mut Opener,
) -> Result<Option<(u32, u32, Part)>, KeyError> {
    let mut fields = Fields::new(content);
    let Some((index, parts)) = fields.u32().zip(fields.u32()).filter(|(index, parts)| index < parts) else {
        return Ok(None);
    };
    let data = content.slice_with_length(8, content.len() - 8);
    let Some(data) = open(header, Piece::Snapshot, data, opener)? else { return Ok(None) };
    let mut fields = Fields::new(&data);
    let part = match index {
        0 => Registers::decode(&mut fields).map(Part::Registers),
        _ => StateWrites::decode(&mut fields).map(Part::State),
    };
    Ok(part.filter(|_| fields.is_empty()).map(|part| (index, parts, part)))
}

#[cfg(test)]
mod tests {
    use super::super::record::Kind;
    use super::*;
    use crate::file::format::commit::{AckRecord, PutChannel, encode_lists};
    use crate::keys::Keys;
    use crate::state::StateOp;
    use flumen_event::BatchBuilder;
    use flumen_event::layout::Encoder;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use smallvec::smallvec;

    fn header() -> Header {
        let (session, number, journal) = (1, 2, [9; 16]);
        Header { kind: Kind::Commit, is_sealed: false, session, number, journal, index: 0, pieces: 1 }
    }

    fn content() -> Vec<u8> {
        let mut builder = BatchBuilder::with_capacity(2, 0);
        (0..2).for_each(|number| builder.push(7, number, 1, b"body"));
        let batch = builder.finish(Vec::new()).unwrap();
        let mut lists = Vec::new();
        encode_names(&["main".into(), "return".into()], &mut lists);
        encode_lists(&[(b"key".to_vec(), b"value".to_vec())], &[], &mut lists);
        let lists_bytes = lists.len() as u32;
        let mut data = Encoder::default();
        data.bytes(&lists);
        data.pad();
        let data_offset = data.len() as u64;
        layout::encode_into(&batch, &mut data);
        let data = data.finish();
        let put = PutHead {
            channels: smallvec![PutChannel { channel: 0, first: 5, bytes_before: 50 }],
            rows: 2,
            data_offset,
            data_bytes: data.len() as u64 - data_offset,
            compression: crate::Compression::None,
            bytes: 10,
        };
        let ack = AckRecord { channel: 0, reader: 1, cursor: 3, bytes: 9, location: Default::default() };
        let head =
            CommitHead { puts: smallvec![put], acks: vec![ack], time_ns: 4, lists_bytes, has_state: false };
        encode(&head, &data)
    }

    fn decoded(content: Vec<u8>) -> Option<LogCommit> {
        let mut opener = Opener::new(&Keys::default());
        LogCommit::decode(&header(), &Buffer::from_vec(content), &mut opener).unwrap()
    }

    #[test]
    fn a_commit_comes_back() {
        let commit = decoded(content()).unwrap();
        assert_eq!((commit.name(0), commit.name(1), commit.name(2)), (Some("main"), Some("return"), None));
        assert_eq!(commit.lists().unwrap().0, [(b"key".to_vec(), b"value".to_vec())]);
        assert_eq!(commit.batch(&commit.head.puts[0]).unwrap().body().value(1), b"body");
        assert_eq!(commit.head.acks[0].cursor, 3);
    }

    #[test]
    fn the_parts_of_a_snapshot_come_back() {
        let mut writes = StateWrites::new("dedup".into());
        writes.push(StateOp { key: b"k", value: Some(b"v"), expiry: Some(3) });
        let registers = Registers { last_commit: 8, ..Registers::default() };
        let parts = encode_parts(&registers, std::slice::from_ref(&writes), None).unwrap();
        let mut opener = Opener::new(&Keys::default());
        let mut part = |at: usize| {
            let content = Buffer::from_vec(parts[at].clone());
            decode_part(&header(), &content, &mut opener).unwrap().unwrap()
        };
        assert!(matches!(part(0), (0, 2, Part::Registers(found)) if found == registers));
        assert!(matches!(part(1), (1, 2, Part::State(found)) if found == writes));
    }

    proptest! {
        #[test]
        fn changed_bytes_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), length in any::<prop::sample::Index>()) {
            let mut bytes = content();
            let hit = at.index(bytes.len());
            bytes[hit] = byte;
            let mut cut = bytes.clone();
            cut.truncate(length.index(bytes.len() + 1));
            for bytes in [bytes, cut] {
                if let Some(commit) = decoded(bytes) {
                    drop(commit.lists());
                    commit.head.puts.iter().for_each(|put| drop(commit.batch(put)));
                }
            }
        }

        #[test]
        fn any_bytes_are_a_content_or_none(bytes in vec(any::<u8>(), 0..200), is_sealed in any::<bool>()) {
            let header = Header { is_sealed, ..header() };
            let content = Buffer::from_vec(bytes);
            let mut opener = Opener::new(&Keys::default());
            drop(LogCommit::decode(&header, &content, &mut opener));
            drop(decode_part(&header, &content, &mut opener));
        }
    }
}
