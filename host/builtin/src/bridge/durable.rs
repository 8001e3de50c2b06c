//! Steps on the file system that outlive a power cut.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

use super::error::{BridgeError, io_error};
use super::faults::About;

/// Makes the names in a directory durable; `done`: what is so then.
pub(super) fn sync_directory(dir: &Path, about: About, done: &str) -> Result<(), BridgeError> {
    let sync = || File::open(dir).and_then(|dir| dir.sync_all());
    about.step(done, sync).map_err(io_error("cannot sync the directory", dir))
}

/// Makes a directory and all above it, durably. They may exist.
pub(super) fn make_directories(dir: &Path) -> Result<(), BridgeError> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_directories(parent)?;
        match About::Directory.step("created", || fs::create_dir(dir)) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && dir.is_dir() => {}
            made => made.map_err(io_error("cannot make the directory", dir))?,
        }
        sync_directory(parent, About::Directory, "synced")?;
    }
    Ok(())
}

/// Puts a small file in place: readers see the old one or the new one, also after a power cut.
pub(super) fn replace(path: &Path, bytes: &[u8], about: About) -> Result<(), BridgeError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.tmp"));
    let write = || {
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
            file.write_all(bytes)?;
            Ok(file)
        };
        let file = about.step("written", write)?;
        about.step("synced", || file.sync_all())
    };
    write().map_err(io_error("cannot write", &temporary))?;
    rename(&temporary, path, about, "named")?;
    path.parent().map_or(Ok(()), |parent| sync_directory(parent, about, "name-synced"))
}

/// Gives a synced file its final name; what had it is replaced.
pub(super) fn rename(from: &Path, to: &Path, about: About, done: &str) -> Result<(), BridgeError> {
    about.step(done, || fs::rename(from, to)).map_err(io_error("cannot rename to", to))
}

/// Removes a file that may be gone already.
pub(super) fn remove(path: &Path, about: About) -> Result<(), BridgeError> {
    match about.step("removed", || fs::remove_file(path)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        done => done.map_err(io_error("cannot remove", path)),
    }
}

/// An empty directory of that name.
pub(super) fn empty_directory(dir: &Path) -> Result<(), BridgeError> {
    match About::Work.step("emptied", || fs::remove_dir_all(dir)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(io_error("cannot remove", dir)(error));
        }
        _ => {}
    }
    make_directories(dir)
}
