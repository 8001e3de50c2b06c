//! The bytes of an open file: as they are, or decompressed.
//!
//! Archives are read from front to back; going on at a position means decompressing again up to it.
//! Concatenated gzip members and zstd frames are one stream. An archive that ends too early or does
//! not check out is an error of kind `UnexpectedEof` or `InvalidData`/`InvalidInput`.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, BufReader, IoSliceMut, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use rustix::fs::OFlags;
use zstd::stream::read::Decoder;

use super::position::Kind;

/// An open file.
pub enum Input {
    /// Read anywhere.
    Plain(File),
    /// Read in order.
    Gzip(Box<MultiGzDecoder<File>>, Failure),
    /// Read in order.
    Zstd(Box<Decoder<'static, BufReader<File>>>, Failure),
}

/// An error that came after some bytes of the same read: the bytes go first. (A decoder need not
/// repeat its error; one that forgot it would look like the archive's end.)
#[derive(Debug, Default)]
pub struct Failure(Option<io::Error>);

impl Input {
    /// Opens a regular file. Anything else (a directory, a pipe) is an error, and is not waited for.
    pub fn open(path: &Path, kind: Kind) -> io::Result<(Input, Metadata)> {
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let meta = file.metadata()?;
        if meta.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !meta.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let input = match kind {
            Kind::Plain => Input::Plain(file),
            Kind::Gzip => Input::Gzip(Box::new(MultiGzDecoder::new(file)), Failure::default()),
            Kind::Zstd => Input::Zstd(Box::new(Decoder::new(file)?), Failure::default()),
        };
        Ok((input, meta))
    }

    /// The open file's present metadata.
    pub fn metadata(&self) -> io::Result<Metadata> {
        match self {
            Input::Plain(file) => file.metadata(),
            Input::Gzip(decoder, _) => decoder.get_ref().metadata(),
            Input::Zstd(decoder, _) => decoder.get_ref().get_ref().metadata(),
        }
    }

    /// Reads once: `check` with the bytes before `offset`, `into` with those from it on. Returns
    /// the bytes read of both. An archive ignores `check` and `offset`, and goes on where it is.
    pub fn read(&mut self, check: &mut [u8], into: &mut [u8], offset: u64) -> io::Result<usize> {
        let checked = check.len();
        match self {
            Input::Plain(file) => {
                let from = offset.saturating_sub(checked as u64);
                let mut parts = [IoSliceMut::new(check), IoSliceMut::new(into)];
                loop {
                    match rustix::io::preadv(&*file, &mut parts, from) {
                        Err(rustix::io::Errno::INTR) => {}
                        other => return Ok(other?),
                    }
                }
            }
            Input::Gzip(decoder, failure) => fill(decoder, failure, into).map(|len| checked + len),
            Input::Zstd(decoder, failure) => fill(decoder, failure, into).map(|len| checked + len),
        }
    }

    /// The bytes at a place of a plain file; fewer at its end. Nothing for an archive.
    pub fn look(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut filled = 0;
        if let Input::Plain(file) = self {
            while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                match file.read_at(rest, offset + filled as u64) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }
}

/// Fills the buffer as far as it goes.
fn fill(from: &mut impl Read, failure: &mut Failure, into: &mut [u8]) -> io::Result<usize> {
    if let Some(error) = failure.0.take() {
        return Err(error);
    }
    let mut filled = 0;
    while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if filled > 0 => {
                failure.0 = Some(error);
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
