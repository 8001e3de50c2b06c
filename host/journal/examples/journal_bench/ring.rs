//! `io_uring`, for comparison only.
#![allow(unsafe_code, reason = "the kernel is given the address of memory")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, squeue, types};

/// One at a time.
pub struct Ring(IoUring);

impl Ring {
    pub fn new() -> io::Result<Ring> {
        IoUring::new(4).map(Ring)
    }

    /// A write and, linked to it, a sync; waits for both.
    pub fn write_and_sync(&mut self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let fd = types::Fd(file.as_raw_fd());
        let write = opcode::Write::new(fd, bytes.as_ptr(), bytes.len() as u32).offset(offset).build();
        let sync = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build();
        for entry in [write.flags(squeue::Flags::IO_LINK), sync] {
            // SAFETY: `bytes` and `file` are borrowed until both entries have completed, which is awaited below.
            unsafe { self.0.submission().push(&entry) }.map_err(io::Error::other)?;
        }
        self.0.submit_and_wait(2)?;
        let results: Vec<i32> = self.0.completion().map(|entry| entry.result()).collect();
        match results.as_slice() {
            [written, 0] if *written as usize == bytes.len() => Ok(()),
            [failed, _] if *failed < 0 => Err(io::Error::from_raw_os_error(-failed)),
            [_, failed] if *failed < 0 => Err(io::Error::from_raw_os_error(-failed)),
            other => Err(io::Error::other(format!("a short write: {other:?}"))),
        }
    }
}
