//! A disk in memory with a volatile and a durable image, and faults on demand.
//!
//! Of what was not synced, a power cut leaves any subset: each sector (512 bytes) of each file as it was at the last sync or at
//! any write since, each file's length old or new, each name of a directory old or new. A sync that fails leaves the pages clean, as
//! Linux does: what is read is what was written, what a later sync makes durable is not. When memory is short such pages go, and what
//! is read from then on is what the disk has: [`MemDisk::evict`].

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::disk::{Disk, DiskFile, DiskLock};

const SECTOR: usize = 512;

const ENOSPC: i32 = 28;

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    CreateDir,
    List,
    Create,
    Open,
    Rename,
    Unlink,
    SyncDir,
    Read,
    Write,
    Sync,
    Preallocate,
    Truncate,
    Len,
}

impl Call {
    /// A group whose segment meets such an error is written to a fresh one: it is no want of space, and neither reading nor tidying up.
    fn breaks(self, code: i32) -> bool {
        match self {
            Call::Sync => true,
            Call::Create | Call::Preallocate | Call::Write | Call::Rename | Call::SyncDir => code != ENOSPC,
            Call::CreateDir
            | Call::List
            | Call::Open
            | Call::Unlink
            | Call::Read
            | Call::Truncate
            | Call::Len => false,
        }
    }
}

/// Some coming calls of a kind fail.
#[derive(Debug, Clone)]
pub struct Fault {
    pub call: Call,
    /// So many of them are still fine.
    pub skip: u32,
    /// So many fail then.
    pub times: u32,
    /// The system's number of the error.
    pub code: i32,
}

#[derive(Default)]
pub struct Faults {
    /// Calls that are to fail.
    pub armed: Vec<Fault>,
    /// Calls that failed for that, ever.
    pub fired: u32,
    /// Of them, those after which a group may need a fresh segment (see [`Call::breaks`]).
    pub broke: u32,
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
    pub reads: Reads,
    /// Such calls panic.
    pub panics: Option<Call>,
}

/// What was read of all files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reads {
    pub calls: u64,
    pub bytes: u64,
    /// Of which the disk was told before, so that it could fetch them.
    pub announced_bytes: u64,
}

struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that a failed sync left clean in memory and old on disk: a later sync skips them.
    dropped: BTreeSet<usize>,
    /// Sectors as they were between the last sync and now, if they were written more than once.
    between: Vec<(usize, Vec<u8>)>,
    /// Sectors written since the last sync.
    dirty: BTreeSet<usize>,
    /// Sectors that cannot be read.
    bad: BTreeSet<usize>,
}

impl Inode {
    fn new(bytes: Vec<u8>) -> Node {
        Arc::new(Mutex::new(Inode {
            durable: bytes.clone(),
            now: bytes,
            dropped: BTreeSet::new(),
            between: Vec::new(),
            dirty: BTreeSet::new(),
            bad: BTreeSet::new(),
        }))
    }

    fn sector(bytes: &[u8], index: usize) -> &[u8] {
        bytes.get(index * SECTOR..).map(|rest| &rest[..rest.len().min(SECTOR)]).unwrap_or_default()
    }

    /// What the power leaves of it.
    fn cut(&mut self, random: &mut SmallRng) {
        let len = if random.random_bool(0.5) { self.now.len() } else { self.durable.len() };
        let mut after = self.durable.clone();
        after.resize(len, 0);
        let mode = random.random_range(0..3);
        for (index, sector) in after.chunks_mut(SECTOR).enumerate() {
            let keeps = match mode {
                0 => false,
                1 => true,
                _ => random.random_bool(0.5),
            };
            if !keeps {
                continue;
            }
            let older = self.between.iter().filter(|(at, _)| *at == index && mode == 2);
            let versions: Vec<&[u8]> = older.map(|(_, bytes)| bytes.as_slice()).collect();
            let chosen = if versions.is_empty() { 0 } else { random.random_range(0..=versions.len()) };
            let from = versions.get(chosen).copied().unwrap_or(Inode::sector(&self.now, index));
            let n = from.len().min(sector.len());
            sector[..n].copy_from_slice(&from[..n]);
        }
        self.now = after.clone();
        self.durable = after;
        self.forget();
    }

    /// What differs stays so: its pages are clean from now on.
    fn fail_to_sync(&mut self) {
        let all = 0..self.now.len().div_ceil(SECTOR);
        let differs =
            |index: &usize| Inode::sector(&self.now, *index) != Inode::sector(&self.durable, *index);
        let differ: Vec<usize> = all.filter(differs).collect();
        self.dropped.extend(differ);
    }

    /// Clean pages that are not what the disk has are forgotten if `goes` says so; how many sectors are others then.
    fn evict(&mut self, mut goes: impl FnMut() -> bool) -> usize {
        let gone: BTreeSet<usize> = self.dropped.iter().copied().filter(|_| goes()).collect();
        let mut changed = 0;
        for index in &gone {
            let from = index * SECTOR;
            let to = (from + SECTOR).min(self.now.len());
            // The file may be shorter by now.
            let Some(sector) = self.now.get_mut(from..to) else { continue };
            let there = (from..to).map(|at| self.durable.get(at).copied().unwrap_or_default());
            let there: Vec<u8> = there.collect();
            changed += usize::from(*sector != there[..]);
            sector.copy_from_slice(&there);
        }
        self.dropped.retain(|index| !gone.contains(index));
        self.dirty.retain(|index| !gone.contains(index));
        self.between.retain(|(index, _)| !gone.contains(index));
        changed
    }

    fn sync(&mut self) {
        let mut durable = self.now.clone();
        for index in &self.dropped {
            let range = index * SECTOR..((index + 1) * SECTOR).min(self.durable.len()).min(durable.len());
            if range.start < range.end {
                durable[range.clone()].copy_from_slice(&self.durable[range]);
            }
        }
        self.durable = durable;
        self.between.clear();
        self.dirty.clear();
    }

    /// Nothing is only in memory.
    fn forget(&mut self) {
        self.dropped.clear();
        self.between.clear();
        self.dirty.clear();
    }
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

    fn tick(&mut self, call: Call) -> io::Result<()> {
        self.fault(call)?;
        match &mut self.faults.power_left {
            Some(0) => Err(os(5)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn fault(&mut self, call: Call) -> io::Result<()> {
        assert!(self.faults.panics != Some(call), "a panic that the test wants");
        let Some(at) = self.faults.armed.iter().position(|fault| fault.call == call) else { return Ok(()) };
        let fault = &mut self.faults.armed[at];
        if fault.skip > 0 {
            fault.skip -= 1;
            return Ok(());
        }
        let code = fault.code;
        fault.times = fault.times.saturating_sub(1);
        if fault.times == 0 {
            self.faults.armed.remove(at);
        }
        self.faults.fired += 1;
        self.faults.broke += u32::from(call.breaks(code));
        Err(os(code))
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
            node.lock().cut(&mut random);
        }
        image.names = names.clone();
        image.durable_names = names;
        let Faults { capacity, fired, broke, .. } = image.faults;
        image.faults = Faults { capacity, fired, broke, ..Faults::default() };
    }

    /// The system forgets what a failed sync left in memory only, all of it or a part, as the seed says; how many sectors are read
    /// as something else then.
    pub fn evict(&self, seed: u64) -> usize {
        let mut random = SmallRng::seed_from_u64(seed);
        let is_all = random.random_bool(0.5);
        let image = self.0.lock();
        let nodes = image.names.values();
        nodes.map(|node| node.lock().evict(|| is_all || random.random_bool(0.5))).sum()
    }

    /// What was read since this was asked last.
    pub fn take_reads(&self) -> Reads {
        std::mem::take(&mut self.0.lock().faults.reads)
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
        inode.forget();
    }

    /// A file that is there, durable.
    pub fn add(&self, path: &str, bytes: Vec<u8>) {
        let mut image = self.0.lock();
        let node = Inode::new(bytes);
        image.names.insert(path.into(), node.clone());
        image.durable_names.insert(path.into(), node);
    }

    /// A file that is gone, durably.
    pub fn take(&self, path: &str) {
        let mut image = self.0.lock();
        image.names.remove(Path::new(path));
        image.durable_names.remove(Path::new(path));
    }

    /// A page (4 KiB: what the system reads at once) that cannot be read any more.
    pub fn spoil(&self, path: &str, offset: usize) {
        let first = offset / 4096 * 4096 / SECTOR;
        self.0.lock().names[Path::new(path)].lock().bad.extend(first..first + 4096 / SECTOR);
    }

    /// Bytes that files take together.
    pub fn used(&self) -> u64 {
        self.0.lock().used()
    }

    fn forget_all(&self) {
        self.0.lock().names.values().for_each(|node| node.lock().forget());
    }

    /// Everything that was written becomes durable: the process ended, the machine did not.
    pub fn write_back(&self) {
        let mut image = self.0.lock();
        image.durable_names = image.names.clone();
        for node in image.names.values() {
            let mut inode = node.lock();
            inode.durable = inode.now.clone();
        }
        drop(image);
        self.forget_all();
    }

    /// Another disk with the same content.
    pub fn copy(&self) -> MemDisk {
        let image = self.0.lock();
        let copy = |(path, node): (&PathBuf, &Node)| (path.clone(), Inode::new(node.lock().now.clone()));
        let names: BTreeMap<PathBuf, Node> = image.names.iter().map(copy).collect();
        let image = Image { durable_names: names.clone(), names, ..Image::default() };
        MemDisk(Arc::new(Mutex::new(image)))
    }
}

impl Disk for MemDisk {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        self.0.lock().fault(Call::CreateDir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut image = self.0.lock();
        image.fault(Call::List)?;
        let here = image.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(here.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let node = Inode::new(Vec::new());
        let mut image = self.0.lock();
        image.tick(Call::Create)?;
        if image.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        image.names.insert(path.to_path_buf(), node.clone());
        let segment = path.extension().is_some_and(|e| e == "seg");
        Ok(Box::new(MemFile { disk: self.clone(), node, segment, writable: true }))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        let mut image = self.0.lock();
        image.fault(Call::Open)?;
        let node = image.names.get(path).ok_or(io::ErrorKind::NotFound)?.clone();
        let segment = path.extension().is_some_and(|e| e == "seg");
        Ok(Box::new(MemFile { disk: self.clone(), node, segment, writable: write }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut image = self.0.lock();
        image.tick(Call::Rename)?;
        let node = image.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        image.names.insert(to.to_path_buf(), node);
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut image = self.0.lock();
        image.tick(Call::Unlink)?;
        image.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut image = self.0.lock();
        image.tick(Call::SyncDir)?;
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
        {
            let mut image = self.disk.0.lock();
            image.fault(Call::Read)?;
            image.faults.reads.calls += 1;
        }
        let inode = self.node.lock();
        let from = inode.now.get(offset as usize..).unwrap_or_default();
        let n = from.len().min(into.len());
        let sectors = offset as usize / SECTOR..(offset as usize + n).div_ceil(SECTOR);
        if n > 0 && inode.bad.range(sectors).next().is_some() {
            return Err(os(5));
        }
        into[..n].copy_from_slice(&from[..n]);
        // Whoever has both locks took the disk's first.
        drop(inode);
        self.disk.0.lock().faults.reads.bytes += n as u64;
        Ok(n)
    }

    fn will_need(&self, _: u64, bytes: u64) {
        self.disk.0.lock().faults.reads.announced_bytes += bytes;
    }

    fn write_at(&self, offset: u64, from: &[IoSlice<'_>]) -> io::Result<usize> {
        assert!(self.writable);
        assert!(from.len() <= 1024);
        let mut bytes: Vec<u8> = from.iter().flat_map(|slice| slice.to_vec()).collect();
        let mut image = self.disk.0.lock();
        image.tick(Call::Write)?;
        if self.segment && image.faults.write_errors > 0 {
            image.faults.write_errors -= 1;
            return Err(os(5));
        }
        bytes.truncate(image.faults.short_writes.unwrap_or(usize::MAX));
        let end = offset as usize + bytes.len();
        let grows = end.saturating_sub(self.node.lock().now.len()) as u64;
        if image.faults.capacity.is_some_and(|capacity| grows > 0 && image.used() + grows > capacity) {
            return Err(os(ENOSPC));
        }
        let mut inode = self.node.lock();
        if inode.now.len() < end {
            inode.now.resize(end, 0);
        }
        for index in offset as usize / SECTOR..end.div_ceil(SECTOR) {
            if !inode.dirty.insert(index) {
                let before = Inode::sector(&inode.now, index).to_vec();
                inode.between.push((index, before));
            }
            inode.dropped.remove(&index);
            inode.bad.remove(&index);
        }
        inode.now[offset as usize..end].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut image = self.disk.0.lock();
        let fails = self.segment && image.faults.sync_errors > 0;
        image.faults.sync_errors -= u32::from(fails);
        let outcome = image.tick(Call::Sync).and(if fails { Err(os(5)) } else { Ok(()) });
        if let Err(error) = outcome {
            self.node.lock().fail_to_sync();
            return Err(error);
        }
        image.faults.syncs += 1;
        self.node.lock().sync();
        Ok(())
    }

    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        let mut image = self.disk.0.lock();
        image.tick(Call::Preallocate)?;
        let grows = bytes.saturating_sub(self.node.lock().now.len() as u64);
        if image.faults.capacity.is_some_and(|capacity| grows > 0 && image.used() + grows > capacity) {
            return Err(os(ENOSPC));
        }
        let mut inode = self.node.lock();
        if (inode.now.len() as u64) < bytes {
            inode.now.resize(bytes as usize, 0);
        }
        Ok(())
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.disk.0.lock().tick(Call::Truncate)?;
        self.node.lock().now.resize(bytes as usize, 0);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.0.lock().fault(Call::Len)?;
        Ok(self.node.lock().now.len() as u64)
    }
}
