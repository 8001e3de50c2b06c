//! Compiled plugins on disk, so that a start does not compile again what it compiled before.
//!
//! An entry is native code that will run in this process. So it is only ever made here, in a directory and in files
//! that nobody else can write, and each entry is:
//!
//! ```text
//! rest      the component as the engine serialised it
//! 32 bytes  BLAKE3 of the BLAKE3 of the rest, keyed to the entry: a file copied under another name does not fit
//! 8 bytes   "FLUMENC2"
//! ```
//!
//! The key (also the file's name) is made of the plugin's content hash and everything that decides whether the code fits:
//! engine version and settings, target.
//!
//! An entry is mapped, not read: a large component has 40 MB of code, of which a run touches a part, and processes share it.
//! What is mapped has to be whole: it is hashed when it is used first, and again after every touch of the file and every start
//! of the machine ([`crate::hashes`]). Entries are replaced by renaming, never written to, so what is mapped stays what it was.
//! Where files cannot be mapped as code (a file system that is mounted `noexec`) the entry is read, and hashed as it is read.
//!
//! A host may know the caches of others of the same user (the agent that of commands, and the other way round): an entry that is
//! only there is copied, so what one of them compiled no other compiles again.
//!
//! How it fails: a damaged, foreign or unfitting entry is removed and made again; a
//! cache that cannot be written costs time and is reported once per plugin. Nothing of it stops a plugin from being loaded.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::CacheError;
use crate::hashes::Hashes;
use crate::limits;

const MAGIC: &[u8; 8] = b"FLUMENC2";
const TAIL_BYTES: usize = 32 + 8;
const SUFFIX: &str = "compiled";

/// The directory.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    hashes: Hashes,
}

/// Names one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key(blake3::Hash);

impl Key {
    /// Of a plugin's content hash and the engine's fingerprint.
    pub(crate) fn new(content: &str, engine: &blake3::Hash) -> Key {
        let mut hasher = blake3::Hasher::new();
        let target = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
        for part in [MAGIC, content.as_bytes(), engine.as_bytes(), target.as_bytes()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Key(hasher.finalize())
    }
}

/// Why an entry was not used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Miss {
    /// There is none.
    Absent,
    /// There is one, but it must not be used.
    Unfit(String),
}

/// An entry whose hash is right: what was written here, byte by byte.
#[derive(Debug)]
pub(crate) struct Entry {
    file: File,
    hash: blake3::Hash,
    code_bytes: u64,
}

impl Entry {
    /// A path to the file that was looked at, whatever has its name by now. It begins with the component as the engine
    /// serialised it.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// The component as the engine serialised it, and nothing else.
    pub(crate) fn read(mut self) -> io::Result<Vec<u8>> {
        let mut code = Vec::with_capacity(usize::try_from(self.code_bytes).unwrap_or(0));
        self.file.rewind()?;
        self.file.take(self.code_bytes).read_to_end(&mut code)?;
        if blake3::hash(&code) != self.hash {
            return Err(io::Error::other("it changed while it was read"));
        }
        Ok(code)
    }
}

impl Cache {
    /// Makes the directory if it is not there, and makes sure that nobody else can write to it.
    pub(crate) fn open(dir: &Path) -> Result<Cache, CacheError> {
        let io = |source| CacheError::Io { dir: dir.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
        let metadata = fs::symlink_metadata(dir).map_err(io)?;
        if !metadata.is_dir() {
            return Err(CacheError::NotADirectory(dir.to_owned()));
        }
        let user = rustix::process::geteuid().as_raw();
        if metadata.uid() != user {
            return Err(CacheError::ForeignOwner { dir: dir.to_owned(), owner: metadata.uid(), user });
        }
        if metadata.mode() & 0o077 != 0 {
            // It was open to others. What they may have put into it is theirs or writable by them: never used.
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io)?;
        }
        let cache = Cache { dir: dir.to_owned(), hashes: Hashes::open(dir) };
        cache.remove_leftovers();
        Ok(cache)
    }

    /// One that another process of this user made, to look at; `None` if there is none or others can write to it.
    pub(crate) fn existing(dir: &Path) -> Option<Cache> {
        let metadata = fs::symlink_metadata(dir).ok()?;
        let user = rustix::process::geteuid().as_raw();
        let is_private = metadata.is_dir() && metadata.uid() == user && metadata.mode() & 0o077 == 0;
        is_private.then(|| Cache { dir: dir.to_owned(), hashes: Hashes::open(dir) })
    }

    pub(crate) fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(format!("{}.{SUFFIX}", key.0.to_hex()))
    }

    /// Of plugins and of entries.
    pub(crate) fn hashes(&self) -> &Hashes {
        &self.hashes
    }

    pub(crate) fn get(&self, key: &Key) -> Result<Entry, Miss> {
        let path = self.path(key);
        let unfit = |reason: &str| Miss::Unfit(format!("{}: {reason}", path.display()));
        let mut file = match open_private(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Miss::Absent),
            Err(error) => return Err(unfit(&error.to_string())),
        };
        let metadata = file.metadata().map_err(|error| unfit(&error.to_string()))?;
        let mut tail = [0; TAIL_BYTES];
        let code_bytes = metadata
            .len()
            .checked_sub(TAIL_BYTES as u64)
            .filter(|bytes| *bytes > 0)
            .ok_or_else(|| unfit("damaged"))?;
        file.read_exact_at(&mut tail, code_bytes).map_err(|error| unfit(&error.to_string()))?;
        let hash = match self.hashes.known(&file) {
            Some(hash) => hash,
            None => self.hashes.hash(&mut file, code_bytes).map_err(|error| unfit(&error.to_string()))?,
        };
        if tail != seal(key, &hash) {
            return Err(unfit("damaged"));
        }
        Ok(Entry { file, hash, code_bytes })
    }

    /// Writes an entry beside its place and moves it there, so that a half-written one is never seen.
    pub(crate) fn put(&self, key: &Key, code: &[u8]) -> io::Result<()> {
        let path = self.path(key);
        write_private(&path, &[code, &seal(key, &blake3::hash(code))])?;
        self.remove_oldest(&path);
        Ok(())
    }

    pub(crate) fn remove(&self, key: &Key) {
        // If it cannot be removed it is found unfit the next time again.
        fs::remove_file(self.path(key)).ok();
    }

    /// Temporary files of processes that were killed while they wrote.
    fn remove_leftovers(&self) {
        let hour_ago = SystemTime::now() - Duration::from_secs(3_600);
        for (path, metadata) in self.files() {
            let is_old = metadata.modified().is_ok_and(|modified| modified < hour_ago);
            if is_old && path.extension().is_some_and(|suffix| suffix == "tmp") {
                fs::remove_file(path).ok();
            }
        }
    }

    fn remove_oldest(&self, newest: &Path) {
        let mut entries: Vec<(SystemTime, u64, PathBuf)> = self
            .files()
            .filter(|(path, _)| path.extension().is_some_and(|suffix| suffix == SUFFIX) && path != newest)
            .map(|(path, metadata)| {
                (metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len(), path)
            })
            .collect();
        entries.sort();
        let mut bytes: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, size, path) in entries {
            if bytes <= limits::CACHE_BYTES_MAX {
                return;
            }
            fs::remove_file(path).ok();
            bytes -= size;
        }
    }

    fn files(&self) -> impl Iterator<Item = (PathBuf, fs::Metadata)> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
    }
}

/// The end of an entry whose code has this hash.
fn seal(key: &Key, code: &blake3::Hash) -> [u8; TAIL_BYTES] {
    let mut tail = [0; TAIL_BYTES];
    let (seal, magic) = tail.split_at_mut(32);
    seal.copy_from_slice(blake3::keyed_hash(key.0.as_bytes(), code.as_bytes()).as_bytes());
    magic.copy_from_slice(MAGIC);
    tail
}

/// Opens a file that nobody but this user can write; a link is none.
pub(crate) fn open_private(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other("not a file of this user"));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(io::Error::other("others can write it"));
    }
    Ok(file)
}

/// Writes a file beside its place and moves it there, so that a half-written one is never seen.
pub(crate) fn write_private(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = write(&temporary, parts).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // What is left of it goes with the next start at the latest.
        fs::remove_file(&temporary).ok();
    }
    written
}

fn write(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    fs::remove_file(path)
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    parts.iter().try_for_each(|part| file.write_all(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(content: &str) -> Key {
        Key::new(content, &blake3::hash(b"engine"))
    }

    fn unfit(miss: Result<Entry, Miss>) -> String {
        match miss {
            Err(Miss::Unfit(reason)) => reason,
            other => panic!("expected an unfit entry, got {other:?}"),
        }
    }

    #[test]
    fn an_entry_comes_back_and_no_other_key_finds_it() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("a/b")).unwrap();
        assert_eq!(cache.get(&key("one")).unwrap_err(), Miss::Absent);
        cache.put(&key("one"), b"code").unwrap();
        assert_eq!(cache.get(&key("one")).unwrap().read().unwrap(), b"code");
        assert_eq!(cache.get(&key("two")).unwrap_err(), Miss::Absent);
        // Not even when a file is moved under its name.
        fs::copy(cache.path(&key("one")), cache.path(&key("two"))).unwrap();
        assert!(unfit(cache.get(&key("two"))).ends_with("damaged"));
        assert_eq!(fs::metadata(dir.path().join("a/b")).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn another_cache_is_looked_at_if_it_is_private_and_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("compiled");
        assert!(Cache::existing(&path).is_none());
        assert!(!path.exists(), "it is not made");
        Cache::open(&path).unwrap().put(&key("one"), b"code").unwrap();
        assert_eq!(Cache::existing(&path).unwrap().get(&key("one")).unwrap().read().unwrap(), b"code");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(Cache::existing(&path).is_none());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        assert!(Cache::existing(&dir.path().join("link")).is_none());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        cache.put(&key("one"), b"the code").unwrap();
        let path = cache.path(&key("one"));
        let good = fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bad).unwrap();
            assert!(unfit(cache.get(&key("one"))).ends_with("damaged"));
        }
        for bytes in 0..good.len() {
            fs::write(&path, &good[..bytes]).unwrap();
            assert!(unfit(cache.get(&key("one"))).ends_with("damaged"));
        }
        fs::write(&path, good).unwrap();
        assert_eq!(cache.get(&key("one")).unwrap().read().unwrap(), b"the code");
    }

    #[test]
    fn what_others_can_write_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        cache.put(&key("one"), b"code").unwrap();
        let path = cache.path(&key("one"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
        assert!(unfit(cache.get(&key("one"))).ends_with("others can write it"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(cache.get(&key("one")).is_ok());
        fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        unfit(cache.get(&key("one")));

        let open = dir.path().join("open");
        DirBuilder::new().mode(0o777).create(&open).unwrap();
        Cache::open(&open).unwrap();
        assert_eq!(fs::metadata(&open).unwrap().mode() & 0o777, 0o700);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&open, &link).unwrap();
        assert!(matches!(Cache::open(&link), Err(CacheError::NotADirectory(_))));
    }
}
