//! The system's disk behind a gate: a crash closes it between two operations, for good. Who stands before it is told once nobody looks any more.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flumen_journal::{Disk, DiskFile, DiskLock, OsDisk};
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};

#[derive(Default)]
pub struct Gate {
    closed: RwLock<bool>,
    gone: (Mutex<bool>, Condvar),
    broken: AtomicBool,
    full: AtomicBool,
}

/// What still fits when the disk is full: a segment made from the journal's reserve.
const LAST_BYTES: u64 = 16 << 10;

impl Gate {
    /// No operation begins any more; none is under way when this returns.
    pub fn close(&self) {
        *self.closed.write() = true;
    }

    /// The disk is gone for whoever waits before the closed gate, so that the threads of a life that crashed end: on a slow machine there
    /// would be thousands of them otherwise, and each would make it slower.
    pub fn end(&self) {
        *self.gone.0.lock() = true;
        self.gone.1.notify_all();
    }

    /// From now on every operation that writes fails.
    pub fn break_writes(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// From now on there is no space for a whole segment.
    pub fn fill(&self) {
        self.full.store(true, Ordering::Release);
    }

    fn pass(&self, writes: bool) -> io::Result<RwLockReadGuard<'_, bool>> {
        let pass = self.closed.read();
        if *pass {
            drop(pass);
            let mut gone = self.gone.0.lock();
            self.gone.1.wait_while(&mut gone, |gone| !*gone);
            return Err(io::Error::from_raw_os_error(5));
        }
        if writes && self.broken.load(Ordering::Acquire) {
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(pass)
    }
}

#[derive(Clone)]
pub struct GatedDisk(pub Arc<Gate>);

struct GatedFile(Box<dyn DiskFile>, Arc<Gate>);

impl GatedDisk {
    fn file(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(GatedFile(file, self.0.clone()))
    }
}

impl Disk for GatedDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let _pass = self.0.pass(true)?;
        OsDisk.create_dir(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let _pass = self.0.pass(false)?;
        OsDisk.list(dir)
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let _pass = self.0.pass(true)?;
        OsDisk.create(path).map(|file| self.file(file))
    }
    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        let _pass = self.0.pass(false)?;
        OsDisk.open(path, write).map(|file| self.file(file))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let _pass = self.0.pass(true)?;
        OsDisk.rename(from, to)
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        let _pass = self.0.pass(true)?;
        OsDisk.unlink(path)
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        // Images are of a killed process, not of a lost power: no real sync is needed.
        self.0.pass(true).map(drop)
    }
    fn lock(&self, dir: &Path) -> io::Result<Option<Box<dyn DiskLock>>> {
        let _pass = self.0.pass(false)?;
        OsDisk.lock(dir)
    }
}

impl DiskFile for GatedFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let _pass = self.1.pass(false)?;
        self.0.read_at(offset, into)
    }
    fn write_at(&self, offset: u64, from: &[IoSlice<'_>]) -> io::Result<usize> {
        let _pass = self.1.pass(true)?;
        self.0.write_at(offset, from)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.1.pass(true).map(drop)
    }
    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        let _pass = self.1.pass(true)?;
        if bytes > LAST_BYTES && self.1.full.load(Ordering::Acquire) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.preallocate(bytes)
    }
    fn truncate(&self, bytes: u64) -> io::Result<()> {
        let _pass = self.1.pass(true)?;
        self.0.truncate(bytes)
    }
    fn len(&self) -> io::Result<u64> {
        let _pass = self.1.pass(false)?;
        self.0.len()
    }
}
