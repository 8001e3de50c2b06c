//! A disk in memory with a volatile and a durable image, and faults on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::disk::{Disk, DiskFile, DiskLock};

const SECTOR: usize = 512;

#[derive(Default)]
pub struct Faults {
    /// Bytes that files may take together.
    pub capacity: Option<u64>,
    /// This many coming syncs of segments fail.
    pub sync_errors: u32,
    /// This many coming writes of segments fail.
    pub write_errors: u32,
    /// Writes take at most this many bytes per call.
    pub short_writes: Option<usize>,
    /// After this many writes and syncs everything fails: the power is gone.
    pub power_left: Option<u64>,
    pub syncs: u64,
}

struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that a failed sync left clean in memory and old on disk: a later sync skips them.
    dropped: BTreeSet<usize>,
}

type Node = Arc<Mutex<Inode>>;

#[derive(Default)]
pub struct Image {
    names: BTreeMap<PathBuf, Node>,
    durable_names: BTreeMap<PathBuf, Node>,
    locks: BTreeSet<PathBuf>,
    pub faults: Faults,
}

/// Clones are the same disk.
#[derive(Clone, Default)]
pub struct MemDisk(pub Arc<Mutex<Image>>);

struct MemFile {
    disk: MemDisk,
    node: Node,
    segment: bool,
    writable: bool,
}

struct MemLock(MemDisk, PathBuf);

impl DiskLock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        self.0.0.lock().locks.remove(&self.1);
    }
}

fn os(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

impl Image {
    pub fn file(&self, path: &str) -> Option<Vec<u8>> {
        Some(self.names.get(Path::new(path))?.lock().now.clone())
    }

    fn used(&self) -> u64 {
        self.names.values().map(|node| node.lock().now.len() as u64).sum()
    }

    fn tick(&mut self) -> io::Result<()> {
        match &mut self.faults.power_left {
            Some(0) => Err(os(5)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl MemDisk {
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.0.lock().faults);
    }

    /// The power went: unsynced sectors and names survive or not, as the seed says.
    pub fn crash(&self, seed: u64) {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut image = self.0.lock();
        let mut names = image.durable_names.clone();
        let all: BTreeSet<PathBuf> = image.names.keys().chain(image.durable_names.keys()).cloned().collect();
        for path in all {
            if random.random_bool(0.5) {
                match image.names.get(&path) {
                    Some(node) => names.insert(path, node.clone()),
                    None => names.remove(&path),
                };
            }
        }
        for node in names.values() {
            let mut inode = node.lock();
            let len = if random.random_bool(0.5) { inode.now.len() } else { inode.durable.len() };
            let mut after = inode.durable.clone();
            after.resize(len, 0);
            let mode = random.random_range(0..3);
            for (index, sector) in after.chunks_mut(SECTOR).enumerate() {
                let keep = match mode {
                    0 => false,
                    1 => true,
                    _ => random.random_bool(0.5),
                };
                if let Some(now) = inode.now.get(index * SECTOR..).filter(|_| keep) {
                    let n = now.len().min(sector.len());
                    sector[..n].copy_from_slice(&now[..n]);
                }
            }
            inode.now = after.clone();
            inode.durable = after;
        }
        image.names = names.clone();
        image.durable_names = names;
        image.faults = Faults { capacity: image.faults.capacity, ..Faults::default() };
    }

    pub fn names(&self) -> Vec<String> {
        let image = self.0.lock();
        image.names.keys().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    pub fn bytes(&self, path: &str) -> Vec<u8> {
        self.0.lock().names[Path::new(path)].lock().now.clone()
    }

    pub fn set_bytes(&self, path: &str, bytes: Vec<u8>) {
        let image = self.0.lock();
        let mut inode = image.names[Path::new(path)].lock();
        inode.now = bytes.clone();
        inode.durable = bytes;
    }

    /// Another disk with the same content.
    pub fn copy(&self) -> MemDisk {
        let image = self.0.lock();
        let copy = |(path, node): (&PathBuf, &Node)| {
            let now = node.lock().now.clone();
            (
                path.clone(),
                Arc::new(Mutex::new(Inode { durable: now.clone(), now, dropped: BTreeSet::new() })),
            )
        };
        let names: BTreeMap<PathBuf, Node> = image.names.iter().map(copy).collect();
        let image = Image { durable_names: names.clone(), names, ..Image::default() };
        MemDisk(Arc::new(Mutex::new(image)))
    }
}

impl Disk for MemDisk {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let image = self.0.lock();
        let here = image.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(here.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let node =
            Arc::new(Mutex::new(Inode { now: Vec::new(), durable: Vec::new(), dropped: BTreeSet::new() }));
        let mut image = self.0.lock();
        image.tick()?;
        if image.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        image.names.insert(path.to_path_buf(), node.clone());
        let segment = path.extension().is_some_and(|e| e == "seg");
        Ok(Box::new(MemFile { disk: self.clone(), node, segment, writable: true }))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        let image = self.0.lock();
        let node = image.names.get(path).ok_or(io::ErrorKind::NotFound)?.clone();
        let segment = path.extension().is_some_and(|e| e == "seg");
        Ok(Box::new(MemFile { disk: self.clone(), node, segment, writable: write }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut image = self.0.lock();
        image.tick()?;
        let node = image.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        image.names.insert(to.to_path_buf(), node);
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut image = self.0.lock();
        image.tick()?;
        image.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut image = self.0.lock();
        image.tick()?;
        let Image { names, durable_names, .. } = &mut *image;
        durable_names.retain(|path, _| path.parent() != Some(dir));
        let here = names.iter().filter(|(path, _)| path.parent() == Some(dir));
        durable_names.extend(here.map(|(path, node)| (path.clone(), node.clone())));
        Ok(())
    }

    fn lock(&self, dir: &Path) -> io::Result<Option<Box<dyn DiskLock>>> {
        let free = self.0.lock().locks.insert(dir.to_path_buf());
        Ok(free.then(|| Box::new(MemLock(self.clone(), dir.to_path_buf())) as Box<dyn DiskLock>))
    }
}

impl DiskFile for MemFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let inode = self.node.lock();
        let from = inode.now.get(offset as usize..).unwrap_or_default();
        let n = from.len().min(into.len());
        into[..n].copy_from_slice(&from[..n]);
        Ok(n)
    }

    fn write_at(&self, offset: u64, from: &[IoSlice<'_>]) -> io::Result<usize> {
        assert!(self.writable);
        assert!(from.len() <= 1024);
        let mut bytes: Vec<u8> = from.iter().flat_map(|slice| slice.to_vec()).collect();
        let mut image = self.disk.0.lock();
        image.tick()?;
        if self.segment && image.faults.write_errors > 0 {
            image.faults.write_errors -= 1;
            return Err(os(5));
        }
        bytes.truncate(image.faults.short_writes.unwrap_or(usize::MAX));
        let end = offset as usize + bytes.len();
        let grows = end.saturating_sub(self.node.lock().now.len()) as u64;
        if image.faults.capacity.is_some_and(|capacity| grows > 0 && image.used() + grows > capacity) {
            return Err(os(28));
        }
        let mut inode = self.node.lock();
        if inode.now.len() < end {
            inode.now.resize(end, 0);
        }
        inode.now[offset as usize..end].copy_from_slice(&bytes);
        inode.dropped.retain(|index| !(offset as usize / SECTOR..end.div_ceil(SECTOR)).contains(index));
        Ok(bytes.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut image = self.disk.0.lock();
        image.tick()?;
        image.faults.syncs += 1;
        let mut inode = self.node.lock();
        if self.segment && image.faults.sync_errors > 0 {
            image.faults.sync_errors -= 1;
            let sector = |bytes: &[u8], index: usize| bytes.chunks(SECTOR).nth(index).map(<[u8]>::to_vec);
            let all = 0..inode.now.len().div_ceil(SECTOR);
            let differ: Vec<usize> =
                all.filter(|i| sector(&inode.now, *i) != sector(&inode.durable, *i)).collect();
            inode.dropped.extend(differ);
            return Err(os(5));
        }
        let mut durable = inode.now.clone();
        for index in &inode.dropped {
            let range = index * SECTOR..((index + 1) * SECTOR).min(inode.durable.len()).min(durable.len());
            if range.start < range.end {
                durable[range.clone()].copy_from_slice(&inode.durable[range]);
            }
        }
        inode.durable = durable;
        Ok(())
    }

    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        let mut image = self.disk.0.lock();
        image.tick()?;
        let grows = bytes.saturating_sub(self.node.lock().now.len() as u64);
        if image.faults.capacity.is_some_and(|capacity| grows > 0 && image.used() + grows > capacity) {
            return Err(os(28));
        }
        let mut inode = self.node.lock();
        if (inode.now.len() as u64) < bytes {
            inode.now.resize(bytes as usize, 0);
        }
        Ok(())
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.disk.0.lock().tick()?;
        self.node.lock().now.resize(bytes as usize, 0);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.node.lock().now.len() as u64)
    }
}
