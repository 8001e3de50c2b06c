//! A bucket out of producers' directories: files that are there whole when a done file says so.
//!
//! Each producer puts the files of a bucket into its directory and then makes an empty done file. When the done files
//! of all producers are there, the bucket is made of all their lines: the file's hour decides, not the line's.
//! Producers are taken in the order of the configuration, files by name, so the result is the same whenever it is
//! made. The position of a line is its number in its producer's bucket.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use globset::Glob;

use super::calendar::Bucket;
use super::error::{BridgeError, io_error};
use super::limits::LINE_BYTES_MAX;
use super::manifest::{Manifest, ProducerEntry};
use super::options::{Settings, TreeInput, expand};
use super::publish::Parts;
use super::spool::{Press, Spool};
use crate::sinks::encode::Encoding;

/// Reads a bucket's lines.
pub(super) fn read(
    settings: &Settings,
    input: &TreeInput,
    bucket: Bucket,
    work: &Path,
    stop: &AtomicBool,
) -> Result<(Manifest, Parts), BridgeError> {
    let named = |pattern: &str| {
        expand(pattern, bucket, settings)
            .map_err(|reason| BridgeError::Input { path: pattern.into(), reason })
    };
    let (done, files) = (named(&input.done)?, named(&input.files)?);
    let lacking: Vec<String> = input
        .producers
        .iter()
        .map(|producer| producer.join(&done))
        .filter(|path| !path.is_file())
        .map(|path| path.display().to_string())
        .collect();
    if !lacking.is_empty() {
        return Err(BridgeError::Incomplete {
            bucket: format!("{} {}", input.name, bucket.label()),
            waits: format!(
                "{} of {} done files are missing ({})",
                lacking.len(),
                input.producers.len(),
                lacking.join(", ")
            ),
        });
    }
    let mut press = Press::new(&settings.output);
    let mut manifest = Manifest::new(&input.name, bucket);
    let mut parts = Parts::default();
    for (number, producer) in input.producers.iter().enumerate() {
        let number = i32::try_from(number).unwrap_or(i32::MAX);
        let mut reader = Reader {
            spool: Spool::new(work, &format!("own-{number}"), number),
            press: &mut press,
            producer: producer.display().to_string(),
            number: u64::from(number.unsigned_abs()),
            time_ns: bucket.start_ns,
            lines: 0,
        };
        let mut entry = ProducerEntry {
            directory: reader.producer.clone(),
            done: done.clone(),
            files: vec![],
            records: 0,
        };
        for (name, path) in listed(producer, &files, &done)? {
            let bytes = reader.file(&path, stop)?;
            entry.files.push((name, bytes));
        }
        entry.records = u64::try_from(reader.lines).unwrap_or(0);
        manifest.producers.push(entry);
        let Reader { spool, press, .. } = reader;
        parts.own.extend(spool.finish(press)?);
    }
    Ok((manifest, parts))
}

/// A producer's files of the bucket, by name.
fn listed(producer: &Path, pattern: &str, done: &str) -> Result<Vec<(String, PathBuf)>, BridgeError> {
    let (inner, names) = pattern.rsplit_once('/').unwrap_or(("", pattern));
    let dir = producer.join(inner);
    let glob = Glob::new(names)
        .map_err(|cause| BridgeError::Input { path: dir.join(names), reason: cause.to_string() })?
        .compile_matcher();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(io_error("cannot list", &dir))? {
        let entry = entry.map_err(io_error("cannot list", &dir))?;
        let path = entry.path();
        let name = path.strip_prefix(producer).unwrap_or(&path).display().to_string();
        if glob.is_match(Path::new(&entry.file_name())) && name != done && path.is_file() {
            found.push((name, path));
        }
    }
    found.sort();
    Ok(found)
}

struct Reader<'a> {
    spool: Spool,
    press: &'a mut Press,
    producer: String,
    number: u64,
    time_ns: i64,
    lines: i64,
}

impl Reader<'_> {
    /// All lines of a file. Gives its bytes on disk.
    fn file(&mut self, path: &Path, stop: &AtomicBool) -> Result<u64, BridgeError> {
        let file = File::open(path).map_err(io_error("cannot open", path))?;
        let bytes = file.metadata().map_err(io_error("cannot look at", path))?.len();
        let reader: Box<dyn Read> = match path.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::new(file))),
            Some("zst") => {
                Box::new(zstd::stream::read::Decoder::new(file).map_err(io_error("cannot unpack", path))?)
            }
            _ => Box::new(file),
        };
        let mut reader = BufReader::with_capacity(256 << 10, reader);
        let mut line = Vec::new();
        loop {
            line.clear();
            let limit = LINE_BYTES_MAX as u64 + 1;
            let count = reader.by_ref().take(limit).read_until(b'\n', &mut line);
            let count = count.map_err(|error| BridgeError::Input {
                path: path.into(),
                reason: format!("cannot be read: {error}"),
            })?;
            if count == 0 {
                return Ok(bytes);
            }
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            if line.len() > LINE_BYTES_MAX {
                let reason = format!("line {} has more than {LINE_BYTES_MAX} bytes", self.lines + 1);
                return Err(BridgeError::Input { path: path.into(), reason });
            }
            if stop.load(Ordering::Relaxed) {
                return Err(BridgeError::Stopped);
            }
            self.line(&line)?;
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<(), BridgeError> {
        let (number, time_ns, position) = (self.number, self.time_ns, self.lines);
        let producer = self.producer.as_str();
        self.lines += 1;
        self.spool.record(self.press, position, |press, out| {
            if press.encoding == Encoding::Json {
                let headers = std::iter::once(("producer", producer.into()));
                press.encoder.object(time_ns, line, headers, (number, position.unsigned_abs()), out);
            } else {
                out.extend_from_slice(line);
                out.push(b'\n');
            }
        })
    }
}
