//! The disk as the journal sees it: a few operations, so that a test can take its place.
//!
//! Constraints: what was written is durable only after `sync_data` of the file; that a name was
//! created, renamed or removed is durable only after `sync_dir`. An error of `sync_data` means that the
//! data written before may be lost, whatever a later `sync_data` says.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags, FlockOperation};

use crate::limits;

/// Held as long as the directory is locked.
pub trait DiskLock: Send + Sync {}

/// Directories and names.
pub trait Disk: Send + Sync {
    /// Makes a directory and those above it, durably.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Names of the entries of a directory, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Makes a file that must not be there yet, open for reading and writing.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file that is there.
    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>>;

    /// Renames a file, replacing one that has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name.
    fn unlink(&self, path: &Path) -> io::Result<()>;

    /// Makes the names of a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Locks a directory against other processes; `None` when another one holds it.
    fn lock(&self, dir: &Path) -> io::Result<Option<Box<dyn DiskLock>>>;
}

/// An open file.
#[allow(clippy::len_without_is_empty, reason = "a length that has to be asked for, and may fail")]
pub trait DiskFile: Send + Sync {
    /// Reads at an offset; fewer bytes than asked for only at the end of the file.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize>;

    /// Says that these bytes will be read next, so that a disk may fetch them meanwhile.
    fn will_need(&self, _offset: u64, _bytes: u64) {}

    /// Writes slices one after the other at an offset; may write fewer bytes than given.
    fn write_at(&self, offset: u64, from: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Makes the content (and length) durable.
    fn sync_data(&self) -> io::Result<()>;

    /// Reserves space for the first `bytes` bytes; the length becomes at least that.
    fn preallocate(&self, bytes: u64) -> io::Result<()>;

    /// Sets the length.
    fn truncate(&self, bytes: u64) -> io::Result<()>;

    /// The length.
    fn len(&self) -> io::Result<u64>;
}

/// Entries of one I/O vector that Linux takes (`IOV_MAX`).
pub(crate) const IO_SLICES_MAX: usize = 1024;

/// Writes all slices, in calls of at most [`IO_SLICES_MAX`], however few bytes a call takes.
pub(crate) fn write_all_at(
    file: &dyn DiskFile,
    mut offset: u64,
    mut from: &mut [IoSlice<'_>],
) -> io::Result<()> {
    IoSlice::advance_slices(&mut from, 0);
    while !from.is_empty() {
        let call = from.get(..from.len().min(IO_SLICES_MAX)).unwrap_or_default();
        let written = match file.write_at(offset, call) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        offset += written as u64;
        IoSlice::advance_slices(&mut from, written);
    }
    Ok(())
}

/// Tries a read again before its error counts: a short trouble must not cost data.
pub(crate) fn try_again<T>(read: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let mut outcome = read();
    for _ in 1..limits::READ_FAILURES_MAX {
        if outcome.as_ref().err().is_none_or(|error| error.kind() == io::ErrorKind::NotFound) {
            break;
        }
        outcome = read();
    }
    outcome
}

/// [`DiskFile::read_at`], tried again.
pub(crate) fn read_again(file: &dyn DiskFile, offset: u64, into: &mut [u8]) -> io::Result<usize> {
    let mut outcome = file.read_at(offset, into);
    for _ in 1..limits::READ_FAILURES_MAX {
        if outcome.is_ok() {
            break;
        }
        outcome = file.read_at(offset, into);
    }
    outcome
}

/// The disk or the file system is damaged at this place (EIO, EBADMSG, EUCLEAN): trying again will not help.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let damage = [Errno::IO, Errno::BADMSG, Errno::UCLEAN];
    error.raw_os_error().is_some_and(|code| damage.iter().any(|known| known.raw_os_error() == code))
}

/// The operating system's disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsDisk;

struct OsFile(File);

/// The open lock file; closing it lets go of the lock.
struct OsLock(#[allow(dead_code, reason = "held for its lock")] File);

impl DiskLock for OsLock {}

impl Disk for OsDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let is_new = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
        let new = dir.ancestors().take_while(is_new).count();
        std::fs::create_dir_all(dir)?;
        // A new name lies in the directory above it.
        for made in dir.ancestors().take(new) {
            let above = made.parent().filter(|above| !above.as_os_str().is_empty());
            File::open(above.unwrap_or(Path::new(".")))?.sync_all()?;
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Box::new(OsFile(file)))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OsFile(OpenOptions::new().read(true).write(write).open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn lock(&self, dir: &Path) -> io::Result<Option<Box<dyn DiskLock>>> {
        let path = dir.join(crate::file::LOCK_NAME);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Box::new(OsLock(file)))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl DiskFile for OsFile {
    fn read_at(&self, mut offset: u64, mut into: &mut [u8]) -> io::Result<usize> {
        let wanted = into.len();
        while !into.is_empty() {
            match self.0.read_at(into, offset) {
                Ok(0) => break,
                Ok(read) => {
                    offset += read as u64;
                    into = into.get_mut(read..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(wanted - into.len())
    }

    fn will_need(&self, offset: u64, bytes: u64) {
        // A hint: without it the read itself fetches them. Without a length it would mean all of the file.
        if let Some(bytes) = NonZeroU64::new(bytes) {
            _ = rustix::fs::fadvise(&self.0, offset, Some(bytes), Advice::WillNeed);
        }
    }

    fn write_at(&self, offset: u64, from: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(rustix::io::pwritev(&self.0, from, offset)?)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, bytes) {
            // A file system without the call gets a sparse file: a full disk is then met by the write.
            Err(rustix::io::Errno::OPNOTSUPP) => self.0.set_len(bytes),
            other => Ok(other?),
        }
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}
