//! A compressed batch, in the place of the batch in a commit's data.
//!
//! ```text
//! u32 bytes of the batch as it was laid out, a multiple of 8
//! u32 sections, per section: u32 bytes laid out, u32 bytes here (as many: it is stored as it is)
//! the sections one after the other: a block of LZ4 or a frame of Zstandard each; padding to 8
//! ```
//! A section is a column or several small ones, so a body is compressed from where it lies. What the lists of a commit
//! hold is not compressed: a start reads them of every frame.
//!
//! How it fails: foreign bytes are `None`. The sizes are checked against each other and against
//! [`limits::COMMIT_BYTES_MAX`] before memory is taken for them: a few bytes cannot become more than a commit may be.

use std::cell::RefCell;

use arrow_buffer::{Buffer, MutableBuffer};
use flumen_event::Batch;
use flumen_event::layout::{self, Encoded, Encoder};
use zstd::bulk::{Compressor, Decompressor};

use super::wire::{Fields, pad};
use crate::limits;

/// How a batch is compressed on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4 blocks: cheap, log text shrinks three to five times.
    Lz4,
    /// Zstandard frames of level [`limits::ZSTD_LEVEL`]: dearer, log text shrinks five to ten times.
    Zstd,
}

impl Compression {
    /// Its number on disk.
    pub(super) fn number(self) -> u8 {
        match self {
            Compression::None => 0,
            Compression::Lz4 => 1,
            Compression::Zstd => 2,
        }
    }

    /// By its number on disk.
    pub(super) fn of(number: u8) -> Option<Compression> {
        [Compression::None, Compression::Lz4, Compression::Zstd].into_iter().find(|it| it.number() == number)
    }
}

/// What a thread keeps, since it is dear to make.
#[derive(Default)]
struct Contexts {
    scratch: Vec<u8>,
    compressor: Option<Compressor<'static>>,
    decompressor: Option<Decompressor<'static>>,
}

thread_local! {
    static CONTEXTS: RefCell<Contexts> = RefCell::default();
}

/// Appends a batch, compressed if that pays; how it is.
pub fn append(compression: Compression, batch: &Batch, data: &mut Encoder) -> Compression {
    if compression == Compression::None {
        layout::encode_into(batch, data);
        data.pad();
        return Compression::None;
    }
    let plain = layout::encode(batch);
    let packed = pack(compression, &plain);
    match packed {
        Some(packed) => {
            data.buffer(Buffer::from_vec(packed));
            compression
        }
        None => {
            data.encoded(plain);
            Compression::None
        }
    }
}

/// The compressed form; `None` if it does not pay: the batch is small, or shrinks by less than an eighth.
pub fn pack(compression: Compression, batch: &Encoded) -> Option<Vec<u8>> {
    let is_of_use =
        batch.len() >= limits::COMPRESS_BYTES_MIN && batch.len() as u64 <= limits::COMMIT_BYTES_MAX;
    let wanted = compression != Compression::None && is_of_use;
    wanted.then(|| CONTEXTS.with_borrow_mut(|contexts| contexts.pack(compression, batch))).flatten()
}

/// The batch as it was laid out; `None` if the bytes are not one.
pub fn unpack(compression: Compression, stored: Buffer) -> Option<Buffer> {
    match compression {
        Compression::None => Some(stored),
        _ => CONTEXTS.with_borrow_mut(|contexts| contexts.unpack(compression, &stored)),
    }
}

impl Contexts {
    fn pack(&mut self, compression: Compression, batch: &Encoded) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(8 + batch.parts().len() * 8 + batch.len() / 4);
        out.extend_from_slice(&u32::try_from(batch.len()).ok()?.to_le_bytes());
        out.extend_from_slice(&(batch.parts().len() as u32).to_le_bytes());
        let sizes_at = out.len();
        out.resize(sizes_at + batch.parts().len() * 8, 0);
        let enough = batch.len() - batch.len() / 8;
        for (index, part) in batch.parts().enumerate() {
            let shrunk = self.compress(compression, part).filter(|bytes| *bytes < part.len());
            let stored = match shrunk {
                Some(bytes) => self.scratch.get(..bytes)?,
                None => part,
            };
            out.extend_from_slice(stored);
            let sizes = out.get_mut(sizes_at + index * 8..)?.first_chunk_mut::<8>()?;
            *sizes = (part.len() as u64 | (stored.len() as u64) << 32).to_le_bytes();
            if out.len() > enough {
                return None;
            }
        }
        pad(&mut out);
        if self.scratch.len() > limits::COMPRESS_SCRATCH_BYTES_MAX {
            self.scratch = Vec::new();
        }
        Some(out)
    }

    /// Compresses to the beginning of the scratch memory; the bytes there. `None`: it cannot be done.
    fn compress(&mut self, compression: Compression, part: &[u8]) -> Option<usize> {
        let room = match compression {
            Compression::None => return None,
            Compression::Lz4 => lz4_flex::block::get_maximum_output_size(part.len()),
            Compression::Zstd => zstd::zstd_safe::compress_bound(part.len()),
        };
        if self.scratch.len() < room {
            self.scratch.resize(room, 0);
        }
        let to = self.scratch.as_mut_slice();
        if compression == Compression::Lz4 {
            return lz4_flex::block::compress_into(part, to).ok();
        }
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            none => none.insert(Compressor::new(limits::ZSTD_LEVEL).ok()?),
        };
        compressor.compress_to_buffer(part, to).ok()
    }

    fn unpack(&mut self, compression: Compression, stored: &[u8]) -> Option<Buffer> {
        let mut fields = Fields::new(stored);
        let total = fields.u32()? as usize;
        let sections = fields.count(8)?;
        let sizes = (0..sections)
            .map(|_| Some((fields.u32()? as usize, fields.u32()? as usize)))
            .collect::<Option<Vec<_>>>()?;
        let fits = total.is_multiple_of(8)
            && total as u64 <= limits::COMMIT_BYTES_MAX
            && sum(sizes.iter().map(|(laid_out, _)| *laid_out)) == Some(total)
            && sum(sizes.iter().map(|(_, here)| *here)).is_some_and(|here| fields.has_padded(here));
        if !fits {
            return None;
        }
        let mut memory = MutableBuffer::from_len_zeroed(total);
        let mut to = memory.as_slice_mut();
        for (laid_out, here) in sizes {
            let (section, rest) = to.split_at_mut_checked(laid_out)?;
            let bytes = fields.bytes(here)?;
            match laid_out == here {
                true => section.copy_from_slice(bytes),
                false => self.decompress(compression, bytes, section)?,
            }
            to = rest;
        }
        Some(memory.into())
    }

    /// Fills `to` exactly.
    fn decompress(&mut self, compression: Compression, from: &[u8], to: &mut [u8]) -> Option<()> {
        let filled = match compression {
            Compression::None => return None,
            Compression::Lz4 => lz4_flex::block::decompress_into(from, to).ok()?,
            Compression::Zstd => {
                let decompressor = match &mut self.decompressor {
                    Some(decompressor) => decompressor,
                    none => none.insert(Decompressor::new().ok()?),
                };
                decompressor.decompress_to_buffer(from, to).ok()?
            }
        };
        (filled == to.len()).then_some(())
    }
}

fn sum(mut sizes: impl Iterator<Item = usize>) -> Option<usize> {
    sizes.try_fold(0, usize::checked_add)
}
