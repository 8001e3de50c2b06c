//! The input of the benchmarks: access-log lines of 173 bytes, made once and kept.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flumen_tests::generator::{self, LINE_BYTES, Load, Rotation};
use flumen_tests::locate;
use memchr::memmem;

use crate::report::step;

/// An input file and what is in it.
#[derive(Debug, Clone)]
pub struct Input {
    /// Where it is.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: u64,
    /// Its lines.
    pub lines: u64,
    /// Lines without [`DROPPED`], and their bytes.
    pub kept_lines: u64,
    /// Their bytes.
    pub kept_bytes: u64,
}

/// What the filter drops: one line in a hundred.
pub const DROPPED: &str = "\" 503 ";

/// Where the benchmarks work: on the disk of the target directory.
///
/// # Errors
/// If there is no target directory.
pub fn dir() -> Result<PathBuf> {
    let dir = locate::target_dir()?.join("bench");
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// The input of a size; made if it is not there yet.
///
/// # Errors
/// If it cannot be written.
pub fn of_size(megabytes: u64) -> Result<Input> {
    let lines = megabytes * 1_000_000 / LINE_BYTES;
    let home = dir()?.join(format!("input-{megabytes}mb"));
    let path = home.join("web-0.log");
    if !path.is_file() {
        step(&format!("writing {megabytes} MB of access log ({lines} lines)"), || {
            let making = home.with_extension("making");
            let load = Load {
                dir: making.clone(),
                files: 1,
                bytes_per_s: 0,
                rotate_bytes: 0,
                rotation: Rotation::None,
                lines: Some(lines),
                has_malformed: false,
                has_doubles: false,
                seed: 1,
            };
            generator::write_now(load)?;
            File::open(making.join("web-0.log"))?.sync_all()?;
            Ok(fs::rename(making, &home)?)
        })?;
    }
    measure(&path)
}

fn measure(path: &Path) -> Result<Input> {
    let needle = memmem::Finder::new(DROPPED);
    let mut input = Input { path: path.to_owned(), bytes: 0, lines: 0, kept_lines: 0, kept_bytes: 0 };
    let mut file = File::open(path).context("the input is gone")?;
    let mut buffer = Vec::new();
    loop {
        let begun = buffer.len();
        let count = file.by_ref().take(8 << 20).read_to_end(&mut buffer)?;
        let whole = memchr::memrchr(b'\n', &buffer).map_or(0, |at| at + 1);
        let part = buffer.get(..whole).unwrap_or_default();
        let lines = memchr::memchr_iter(b'\n', part).count() as u64;
        input.bytes += whole as u64;
        input.lines += lines;
        input.kept_lines += lines;
        input.kept_bytes += whole as u64;
        for hit in needle.find_iter(part) {
            let start =
                part.get(..hit).and_then(|before| memchr::memrchr(b'\n', before)).map_or(0, |at| at + 1);
            let end = part
                .get(hit..)
                .and_then(|after| memchr::memchr(b'\n', after))
                .map_or(whole, |at| hit + at + 1);
            input.kept_lines -= 1;
            input.kept_bytes -= (end - start) as u64;
        }
        buffer.drain(..whole);
        if count == 0 || (begun == buffer.len() && whole == 0) {
            return Ok(input);
        }
    }
}
