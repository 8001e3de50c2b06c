//! What the disk does for a program that appends chunks one after the other, each durable before the next: by the ways
//! in which Linux lets one do that.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, OFlags};

use crate::ring::Ring;
use crate::series::Series;

/// What `O_DIRECT` wants addresses, offsets and lengths to be multiples of.
const ALIGN_BYTES: usize = 4096;

/// A way to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// What the journal does.
    WriteSync,
    /// The write is durable when it returns.
    Dsync,
    /// Past the page cache.
    Direct,
    /// Past the page cache, durable when it returns.
    DirectDsync,
    /// A write and a sync behind it, one system call.
    Ring,
    /// The same past the page cache.
    RingDirect,
}

impl Method {
    /// All of them.
    pub const ALL: [Method; 6] = [
        Method::WriteSync,
        Method::Dsync,
        Method::Direct,
        Method::DirectDsync,
        Method::Ring,
        Method::RingDirect,
    ];

    /// As it is named in the table.
    pub fn name(self) -> &'static str {
        match self {
            Method::WriteSync => "pwritev + fdatasync",
            Method::Dsync => "O_DSYNC",
            Method::Direct => "O_DIRECT + fdatasync",
            Method::DirectDsync => "O_DIRECT, O_DSYNC",
            Method::Ring => "io_uring",
            Method::RingDirect => "io_uring, O_DIRECT",
        }
    }

    fn is_direct(self) -> bool {
        matches!(self, Method::Direct | Method::DirectDsync | Method::RingDirect)
    }

    fn flags(self) -> i32 {
        let dsync = matches!(self, Method::Dsync | Method::DirectDsync);
        let direct = if self.is_direct() { OFlags::DIRECT } else { OFlags::empty() };
        let flags = direct | if dsync { OFlags::DSYNC } else { OFlags::empty() };
        flags.bits() as i32
    }
}

/// What the file is before it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Its blocks are taken, and unwritten.
    Fallocated,
    /// Its blocks were written before.
    Zeros,
}

/// Appends chunks for a time, or until the file is full.
pub fn run(
    dir: &Path,
    method: Method,
    fill: Fill,
    chunk_bytes: usize,
    file_bytes: usize,
    limit: Duration,
) -> io::Result<Series> {
    let path = match fill {
        Fill::Zeros => zeros(dir, file_bytes)?,
        Fill::Fallocated => fallocated(dir, file_bytes)?,
    };
    let file = OpenOptions::new().read(true).write(true).custom_flags(method.flags()).open(&path)?;
    let mut ring = matches!(method, Method::Ring | Method::RingDirect).then(Ring::new).transpose()?;
    // Past the page cache a chunk takes whole blocks.
    let step = if method.is_direct() { chunk_bytes.next_multiple_of(ALIGN_BYTES) } else { chunk_bytes };
    let memory = noise(step + ALIGN_BYTES);
    let start = memory.as_ptr().align_offset(ALIGN_BYTES);
    let chunk = memory.get(start..start + step).unwrap_or_default();
    let mut series = Series::default();
    let started = Instant::now();
    let mut offset = 0;
    while offset + step <= file_bytes && (started.elapsed() < limit || series.is_empty()) {
        let before = Instant::now();
        match (&mut ring, method) {
            (Some(ring), _) => ring.write_and_sync(&file, offset as u64, chunk)?,
            (None, Method::Dsync | Method::DirectDsync) => file.write_all_at(chunk, offset as u64)?,
            (None, _) => {
                file.write_all_at(chunk, offset as u64)?;
                file.sync_data()?;
            }
        }
        series.add(before.elapsed(), chunk_bytes);
        offset += step;
    }
    series.took = started.elapsed();
    if fill == Fill::Fallocated {
        std::fs::remove_file(path)?;
    }
    Ok(series)
}

/// MB/s of `fio` that writes chunks one behind the other, each synced before the next; `None` where it is not installed.
pub fn fio(dir: &Path, chunk_bytes: usize, file_bytes: usize, limit: Duration) -> io::Result<Option<f64>> {
    let path = dir.join("fio");
    let mut fio = Command::new("fio");
    fio.args(["--name=raw", "--rw=write", "--ioengine=psync", "--fdatasync=1", "--output-format=json"]);
    fio.arg(format!("--filename={}", path.display()));
    fio.args([format!("--bs={chunk_bytes}"), format!("--size={file_bytes}")]);
    fio.arg(format!("--runtime={}ms", limit.as_millis()));
    let output = match fio.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        output => output?,
    };
    std::fs::remove_file(path)?;
    let told: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let bytes_s = told.pointer("/jobs/0/write/bw_bytes").and_then(serde_json::Value::as_f64);
    Ok(bytes_s.map(|bytes_s| bytes_s / 1e6))
}

fn fallocated(dir: &Path, bytes: usize) -> io::Result<PathBuf> {
    let path = dir.join("raw");
    let file = File::create(&path)?;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes as u64)?;
    file.sync_all()?;
    Ok(path)
}

/// A file of zeros: it is made once, and overwritten by every run.
pub fn zeros(dir: &Path, bytes: usize) -> io::Result<PathBuf> {
    let path = dir.join("zeros");
    if std::fs::metadata(&path).is_ok_and(|there| there.len() >= bytes as u64) {
        return Ok(path);
    }
    let file = File::create(&path)?;
    let zeros = vec![0; 1 << 20];
    for offset in (0..bytes as u64).step_by(zeros.len()) {
        file.write_all_at(&zeros, offset)?;
    }
    file.sync_all()?;
    Ok(path)
}

/// Bytes that a disk cannot shrink.
pub fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..bytes.div_ceil(8)).flat_map(|_| next()).take(bytes).collect()
}
