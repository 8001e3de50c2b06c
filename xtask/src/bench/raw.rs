//! The raw limit: what the disk and the kernel allow a program that does nothing but read a file and write
//! it twice, with `fdatasync` after every 4 MiB of each copy, one after the other.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::Result;

/// Bytes between two syncs of one copy.
const SYNC_BYTES: usize = 4 << 20;

/// Seconds that it takes.
///
/// # Errors
/// If reading or writing fails.
pub fn run(input: &Path, dir: &Path) -> Result<f64> {
    let [first, second] = [dir.join("raw-1"), dir.join("raw-2")];
    let start = Instant::now();
    let mut copies = [File::create(&first)?, File::create(&second)?];
    let file = File::open(input)?;
    let mut buffer = Vec::with_capacity(SYNC_BYTES);
    loop {
        buffer.clear();
        Read::take(&file, SYNC_BYTES as u64).read_to_end(&mut buffer)?;
        if buffer.is_empty() {
            break;
        }
        for copy in &mut copies {
            copy.write_all(&buffer)?;
            copy.sync_data()?;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    for path in [first, second] {
        std::fs::remove_file(path)?;
    }
    Ok(seconds)
}
