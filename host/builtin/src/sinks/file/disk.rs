//! All file system calls of the file sink, behind one trait, so that tests put failures and power
//! losses between any two of them.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, OFlags, RenameFlags};

use super::ahead::Ahead;

/// What the file sink asks of a file system.
pub(super) trait Disk: Send {
    /// Creates a file that must not exist, with these permissions.
    fn create(&mut self, path: &Path, mode: u32) -> io::Result<File>;
    /// Opens an existing file for writing. A symbolic link is an error.
    fn open(&mut self, path: &Path) -> io::Result<File>;
    /// True if there is anything with that name.
    fn exists(&mut self, path: &Path) -> io::Result<bool>;
    /// Fails if a directory is none, is not there, or takes no names from us.
    fn may_create_in(&mut self, directory: &Path) -> io::Result<()>;
    /// Writes all bytes at an offset.
    fn write_at(&mut self, path: &Path, file: &File, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&mut self, path: &Path, file: &File) -> io::Result<()>;
    /// Cuts a file to a length and makes that durable.
    fn cut(&mut self, path: &Path, file: &File, length: u64) -> io::Result<()>;
    /// Gives a file a name that must not be taken.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&mut self, path: &Path) -> io::Result<()>;
    /// Creates one directory. It may exist.
    fn create_directory(&mut self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_directory(&mut self, path: &Path) -> io::Result<()>;
}

/// The file system of the machine.
#[derive(Default)]
pub(super) struct SystemDisk {
    ahead: Ahead,
}

impl Disk for SystemDisk {
    fn create(&mut self, path: &Path, mode: u32) -> io::Result<File> {
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        // The umask does not apply to what the user has written in the configuration.
        file.set_permissions(Permissions::from_mode(mode))?;
        Ok(file)
    }

    fn open(&mut self, path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path)
    }

    fn exists(&mut self, path: &Path) -> io::Result<bool> {
        match std::fs::symlink_metadata(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn may_create_in(&mut self, directory: &Path) -> io::Result<()> {
        // The dot makes what is no directory an error.
        let inside = directory.join(".");
        let access = Access::WRITE_OK | Access::EXEC_OK;
        Ok(rustix::fs::accessat(CWD, inside.as_path(), access, AtFlags::EACCESS)?)
    }

    fn write_at(&mut self, path: &Path, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)?;
        self.ahead.wrote(path, bytes.len());
        Ok(())
    }

    fn sync(&mut self, path: &Path, file: &File) -> io::Result<()> {
        self.ahead.synced(path);
        file.sync_data()
    }

    fn cut(&mut self, _: &Path, file: &File, length: u64) -> io::Result<()> {
        file.set_len(length)?;
        file.sync_all()
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // Some file systems (NFS, older FUSE) cannot refuse to replace.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                if self.exists(to)? {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                std::fs::rename(from, to)
            }
            done => Ok(done?),
        }
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn create_directory(&mut self, path: &Path) -> io::Result<()> {
        match std::fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            done => done,
        }
    }

    fn sync_directory(&mut self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}
