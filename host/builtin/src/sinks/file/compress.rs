//! Blocks of text as gzip members or zstd frames.
//!
//! Each block is complete in itself and a file is blocks one after the other, which both formats
//! define as a valid file (RFC 1952 section 2.2, RFC 8878 section 3). So a file that is cut after any
//! block, at a committed length, is whole, and no compressor state belongs to a file.

use std::io::{self, Write};

use flate2::write::GzEncoder;

/// How the bytes of a file are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Not at all.
    None,
    /// gzip, level 6.
    Gzip,
    /// Zstandard, level 3, with checksums.
    Zstd,
}

impl Compression {
    /// What file names end with.
    pub fn suffix(self) -> &'static str {
        match self {
            Compression::None => "",
            Compression::Gzip => ".gz",
            Compression::Zstd => ".zst",
        }
    }

    /// The word in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }
}

/// Compresses blocks of all files of a sink.
pub(crate) struct Compressor {
    compression: Compression,
    /// Made at the first block and used for all.
    zstd: Option<zstd::bulk::Compressor<'static>>,
    out: Vec<u8>,
}

impl Compressor {
    pub fn new(compression: Compression) -> Self {
        Compressor { compression, zstd: None, out: Vec::new() }
    }

    /// The bytes to write for a block of text.
    pub fn block<'a>(&'a mut self, text: &'a [u8]) -> io::Result<&'a [u8]> {
        self.out.clear();
        match self.compression {
            Compression::None => return Ok(text),
            Compression::Gzip => {
                let mut encoder = GzEncoder::new(&mut self.out, flate2::Compression::new(6));
                encoder.write_all(text)?;
                encoder.finish()?;
            }
            Compression::Zstd => {
                let compressor = match &mut self.zstd {
                    Some(compressor) => compressor,
                    none => {
                        let mut compressor = zstd::bulk::Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL)?;
                        compressor.include_checksum(true)?;
                        none.insert(compressor)
                    }
                };
                self.out.reserve(zstd::zstd_safe::compress_bound(text.len()));
                compressor.compress_to_buffer(text, &mut self.out)?;
            }
        }
        Ok(&self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn blocks_after_each_other_are_one_file() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let mut compressor = Compressor::new(compression);
            let mut file = Vec::new();
            for block in ["one\n".repeat(50_000), "two\n".into()] {
                file.extend_from_slice(compressor.block(block.as_bytes()).unwrap());
            }
            let mut text = String::new();
            match compression {
                Compression::Gzip => {
                    flate2::read::MultiGzDecoder::new(&file[..]).read_to_string(&mut text).unwrap()
                }
                _ => zstd::stream::read::Decoder::new(&file[..]).unwrap().read_to_string(&mut text).unwrap(),
            };
            assert_eq!(text, "one\n".repeat(50_000) + "two\n");
        }
    }
}
