//! What was written to a file since its last sync, so that a failed sync can lose it.
//!
//! After a failed `fdatasync` Linux takes the pages for clean: what was not written back is gone as soon as a page leaves the cache,
//! and nobody hears of it again. Which pages those are is not known, so each of them is lost or not by a coin.

use std::io::{self, IoSlice};

use crate::disk::{DiskFile, write_all_at};

/// A page: what is lost or not as a whole.
const PAGE_BYTES: u64 = 4096;

/// Where was written, and what stood there before.
#[derive(Debug, Default)]
pub struct Unsynced(Vec<(u64, Vec<u8>)>);

impl Unsynced {
    /// Before a write of so many bytes.
    pub fn note(&mut self, file: &dyn DiskFile, offset: u64, bytes: usize) -> io::Result<()> {
        let mut before = vec![0; bytes];
        file.read_at(offset, &mut before)?;
        self.0.push((offset, before));
        Ok(())
    }

    /// After a sync that worked.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// After one that failed: page by page there stands again what stood there before, or not.
    pub fn lose(&mut self, file: &dyn DiskFile, mut is_lost: impl FnMut() -> bool) -> io::Result<()> {
        let len = file.len()?;
        for (offset, before) in std::mem::take(&mut self.0).into_iter().rev() {
            let (mut at, mut rest) = (offset, before.as_slice());
            while !rest.is_empty() && at < len {
                let wanted = (PAGE_BYTES - at % PAGE_BYTES).min(len - at);
                let (page, behind) = rest.split_at(rest.len().min(wanted as usize));
                if is_lost() {
                    write_all_at(file, at, &mut [IoSlice::new(page)])?;
                }
                (at, rest) = (at + page.len() as u64, behind);
            }
        }
        Ok(())
    }
}
