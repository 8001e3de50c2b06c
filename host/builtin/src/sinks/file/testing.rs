//! For tests: a pipeline that keeps commits in memory, and a disk that fails and loses power.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flumen_event::BatchBuilder;
use flumen_journal::Delivery;
use flumen_pipeline::sink::{SinkCommit, SinkContext};
use flumen_pipeline::source::Wake;
use flumen_pipeline::{ComponentKind, ComponentMetrics, SinkError};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::disk::{Disk, SystemDisk};

/// The committed position.
#[derive(Clone, Default)]
pub struct Committed(pub Arc<Mutex<Option<Vec<u8>>>>);

impl SinkCommit for Committed {
    fn commit_position(&mut self, position: &[u8]) -> Result<(), SinkError> {
        *self.0.lock() = Some(position.to_vec());
        Ok(())
    }
}

pub fn context_with(committed: Committed) -> SinkContext {
    let metrics = ComponentMetrics::new(ComponentKind::Sink, "test".into());
    SinkContext::new("test".into(), metrics, Wake::default(), Box::new(committed))
}

pub fn context() -> SinkContext {
    context_with(Committed::default())
}

pub fn delivery(first: u64, bodies: &[&str]) -> Delivery {
    let mut builder = BatchBuilder::default();
    for (row, body) in bodies.iter().enumerate() {
        builder.push(1, first + row as u64, 0, body.as_bytes());
    }
    let next = first + bodies.len() as u64;
    Delivery { first, next, batch: builder.finish(vec![]).unwrap(), lost_before: 0 }
}

/// What the disk does next, and what a power loss takes away. Shared with the test.
pub struct Trouble {
    random: StdRng,
    /// Calls until the next failure; `None`: none.
    pub fails_after: Option<u64>,
    /// After the failure every call fails: the process is as good as dead.
    pub dead: bool,
    pub stays_dead: bool,
    pub calls: u64,
    /// Bytes of each file that a sync made durable.
    synced: BTreeMap<PathBuf, u64>,
    /// Length before a cut that was not made durable.
    uncut: BTreeMap<PathBuf, u64>,
    /// Names changed and not synced, oldest first.
    names: Vec<(PathBuf, NameChange)>,
    trash: PathBuf,
}

enum NameChange {
    Created(PathBuf),
    Renamed(PathBuf, PathBuf),
    /// Where it is kept for the case of a power loss.
    Removed(PathBuf, PathBuf),
}

/// The system's disk with trouble. Not for more than one thread, whatever its type says.
#[derive(Clone)]
pub struct TroubledDisk(pub Arc<Mutex<Trouble>>);

impl TroubledDisk {
    pub fn new(seed: u64, trash: &Path) -> Self {
        TroubledDisk(Arc::new(Mutex::new(Trouble {
            random: StdRng::seed_from_u64(seed),
            fails_after: None,
            dead: false,
            stays_dead: false,
            calls: 0,
            synced: BTreeMap::new(),
            uncut: BTreeMap::new(),
            names: Vec::new(),
            trash: trash.to_owned(),
        })))
    }

    /// Takes away a part of what was never synced: ends of files, names in directories.
    pub fn lose_power(&self) {
        let names = self.0.lock().names.len();
        let kept = self.0.lock().random.random_range(0..=names);
        self.lose_power_but_for(kept);
    }

    /// The same, with so many of the oldest names kept.
    pub fn lose_power_but_for(&self, kept: usize) {
        let mut guard = self.0.lock();
        let trouble = &mut *guard;
        // Per directory a prefix of the changes is durable, as in a journaling file system.
        for (_, change) in trouble.names.drain(..).skip(kept).collect::<Vec<_>>().into_iter().rev() {
            match change {
                NameChange::Created(path) if path.is_dir() => std::fs::remove_dir_all(path).unwrap(),
                NameChange::Created(path) => {
                    trouble.synced.remove(&path);
                    let gone = std::fs::remove_file(path);
                    assert!(gone.is_ok() || gone.is_err_and(|e| e.kind() == io::ErrorKind::NotFound));
                }
                NameChange::Renamed(from, to) => {
                    std::fs::rename(&to, &from).unwrap();
                    let synced = trouble.synced.remove(&to).unwrap();
                    trouble.synced.insert(from.clone(), synced);
                    if let Some(length) = trouble.uncut.remove(&to) {
                        trouble.uncut.insert(from, length);
                    }
                }
                NameChange::Removed(path, kept) => std::fs::rename(kept, path).unwrap(),
            }
        }
        for (path, synced) in &mut trouble.synced {
            let Ok(content) = std::fs::read(path) else { continue };
            assert!(content.len() as u64 >= *synced, "{path:?}");
            let keep = trouble.random.random_range(*synced as usize..=content.len());
            let mut content = content[..keep].to_vec();
            if let Some(length) = trouble.uncut.remove(path) {
                content.resize(content.len().max(length as usize), 0);
            }
            content[*synced as usize..].iter_mut().for_each(|byte| *byte = trouble.random.random());
            *synced = content.len() as u64;
            std::fs::write(path, content).unwrap();
        }
    }

    /// Fails when it is time: true in the middle of the call, after a part of it was done.
    fn call(&self) -> io::Result<bool> {
        let mut trouble = self.0.lock();
        trouble.calls += 1;
        if trouble.dead {
            return Err(io::Error::other("dead"));
        }
        match trouble.fails_after {
            Some(0) => {
                trouble.fails_after = None;
                trouble.dead = trouble.stays_dead;
                if trouble.random.random() { Ok(true) } else { Err(error()) }
            }
            Some(left) => {
                trouble.fails_after = Some(left - 1);
                Ok(false)
            }
            None => Ok(false),
        }
    }

    fn changed(&self, path: &Path, change: NameChange) {
        self.0.lock().names.push((path.parent().unwrap().to_owned(), change));
    }
}

fn error() -> io::Error {
    io::Error::from_raw_os_error(28)
}

/// After the call was done: fails if it is time.
fn then<T>(fails: bool, value: T) -> io::Result<T> {
    if fails { Err(error()) } else { Ok(value) }
}

impl Disk for TroubledDisk {
    fn create(&mut self, path: &Path, mode: u32) -> io::Result<File> {
        let fails = self.call()?;
        let file = SystemDisk::default().create(path, mode)?;
        self.0.lock().synced.insert(path.to_owned(), 0);
        self.changed(path, NameChange::Created(path.to_owned()));
        then(fails, file)
    }

    fn open(&mut self, path: &Path) -> io::Result<File> {
        then(self.call()?, SystemDisk::default().open(path)?)
    }

    fn exists(&mut self, path: &Path) -> io::Result<bool> {
        then(self.call()?, SystemDisk::default().exists(path)?)
    }

    fn may_create_in(&mut self, directory: &Path) -> io::Result<()> {
        let fails = self.call()?;
        SystemDisk::default().may_create_in(directory)?;
        then(fails, ())
    }

    fn write_at(&mut self, path: &Path, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let fails = self.call()?;
        let part = if fails { self.0.lock().random.random_range(0..=bytes.len()) } else { bytes.len() };
        SystemDisk::default().write_at(path, file, &bytes[..part], offset)?;
        then(fails, ())
    }

    fn sync(&mut self, path: &Path, file: &File) -> io::Result<()> {
        // A failed sync makes nothing durable; the pages are gone for good.
        if self.call()? {
            return Err(io::Error::from_raw_os_error(5));
        }
        let length = file.metadata()?.len();
        let mut trouble = self.0.lock();
        trouble.uncut.remove(path);
        trouble.synced.insert(path.to_owned(), length);
        Ok(())
    }

    fn cut(&mut self, path: &Path, file: &File, length: u64) -> io::Result<()> {
        let fails = self.call()?;
        let before = file.metadata()?.len();
        file.set_len(length)?;
        let mut trouble = self.0.lock();
        let durable = trouble.synced.get(path).copied().unwrap_or(length);
        assert!(durable >= length, "a committed length was never synced: {path:?}");
        trouble.synced.insert(path.to_owned(), length);
        if fails {
            let longest = trouble.uncut.entry(path.to_owned()).or_insert(0);
            *longest = before.max(*longest);
            return Err(error());
        }
        trouble.uncut.remove(path);
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let fails = self.call()?;
        SystemDisk::default().rename(from, to)?;
        let mut trouble = self.0.lock();
        let synced = trouble.synced.remove(from).unwrap_or(0);
        trouble.synced.insert(to.to_owned(), synced);
        if let Some(length) = trouble.uncut.remove(from) {
            trouble.uncut.insert(to.to_owned(), length);
        }
        drop(trouble);
        self.changed(from, NameChange::Renamed(from.to_owned(), to.to_owned()));
        then(fails, ())
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        let fails = self.call()?;
        let calls = self.0.lock().calls;
        let kept = self.0.lock().trash.join(calls.to_string());
        std::fs::rename(path, &kept)?;
        self.changed(path, NameChange::Removed(path.to_owned(), kept));
        then(fails, ())
    }

    fn create_directory(&mut self, path: &Path) -> io::Result<()> {
        let fails = self.call()?;
        SystemDisk::default().create_directory(path)?;
        self.changed(path, NameChange::Created(path.to_owned()));
        then(fails, ())
    }

    fn sync_directory(&mut self, path: &Path) -> io::Result<()> {
        let fails = self.call()?;
        if !path.is_dir() {
            return Err(io::ErrorKind::NotFound.into());
        }
        if !fails {
            self.0.lock().names.retain(|(directory, _)| directory != path);
        }
        then(fails, ())
    }
}
