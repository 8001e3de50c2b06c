//! Records of one partition on their way into files: encoded, compressed block by block, on disk under a name of
//! the work directory.
//!
//! A block is complete in itself (a gzip member, a zstd frame, whole lines), so files are made of blocks by putting
//! them one after the other: records are compressed once, however many files a bucket gets. Where a block ends
//! depends only on the records, so the same records give the same bytes.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::error::{BridgeError, io_error};
use super::faults::About;
use super::options::Output;
use crate::sinks::encode::{Encoder, Encoding};
use crate::sinks::file::compress::{Compression, Compressor};
use crate::sinks::limits::{BLOCK_BYTES, WRITE_BYTES};

/// What turns records into blocks; one per thread.
pub(super) struct Press {
    pub encoder: Encoder,
    pub encoding: Encoding,
    compressor: Compressor,
    block_bytes: usize,
}

impl Press {
    pub fn new(output: &Output) -> Press {
        let block_bytes = if output.compression == Compression::None { WRITE_BYTES } else { BLOCK_BYTES };
        Press {
            encoder: Encoder::new(output.encoding),
            encoding: output.encoding,
            compressor: Compressor::new(output.compression),
            block_bytes,
        }
    }
}

/// A block on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub bytes: u64,
    pub records: u64,
    pub first: i64,
    pub last: i64,
}

/// A spool that is written.
pub(super) struct Spool {
    path: PathBuf,
    partition: i32,
    file: Option<File>,
    buffer: Vec<u8>,
    open: Option<Block>,
    blocks: Vec<Block>,
    hash: blake3::Hasher,
}

/// A spool that is whole and durable.
#[derive(Debug)]
pub(super) struct Spooled {
    pub path: PathBuf,
    pub partition: i32,
    pub blocks: Vec<Block>,
    /// BLAKE3 of all of it.
    pub hash: String,
}

impl Spooled {
    pub fn records(&self) -> u64 {
        self.blocks.iter().map(|block| block.records).sum()
    }
}

impl Spool {
    /// Nothing touches the disk before the first block.
    pub fn new(work: &Path, name: &str, partition: i32) -> Spool {
        let (file, buffer, open, blocks) = Default::default();
        Spool { path: work.join(name), partition, file, buffer, open, blocks, hash: blake3::Hasher::new() }
    }

    /// Takes a record that `encode` appends to the buffer.
    pub fn record(
        &mut self,
        press: &mut Press,
        offset: i64,
        encode: impl FnOnce(&mut Press, &mut Vec<u8>),
    ) -> Result<(), BridgeError> {
        encode(press, &mut self.buffer);
        let open = self.open.get_or_insert(Block { bytes: 0, records: 0, first: offset, last: offset });
        open.records += 1;
        open.last = offset;
        if self.buffer.len() >= press.block_bytes { self.write_block(press) } else { Ok(()) }
    }

    fn write_block(&mut self, press: &mut Press) -> Result<(), BridgeError> {
        let Some(mut block) = self.open.take() else { return Ok(()) };
        let path = self.path.as_path();
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let create = || OpenOptions::new().write(true).create_new(true).open(path);
                let file = About::Spool.step("created", create);
                none.insert(file.map_err(io_error("cannot make", path))?)
            }
        };
        let bytes = press.compressor.block(&self.buffer).map_err(io_error("cannot compress into", path))?;
        About::Spool.step("written", || file.write_all(bytes)).map_err(io_error("cannot write", path))?;
        self.hash.update(bytes);
        block.bytes = bytes.len() as u64;
        self.blocks.push(block);
        self.buffer.clear();
        Ok(())
    }

    /// Writes the rest and makes it durable; `None`: there was no record.
    pub fn finish(mut self, press: &mut Press) -> Result<Option<Spooled>, BridgeError> {
        self.write_block(press)?;
        let Some(file) = self.file else { return Ok(None) };
        About::Spool.step("synced", || file.sync_all()).map_err(io_error("cannot sync", &self.path))?;
        let hash = self.hash.finalize().to_hex().to_string();
        Ok(Some(Spooled { path: self.path, partition: self.partition, blocks: self.blocks, hash }))
    }
}
