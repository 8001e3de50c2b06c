//! The file system with the faults of [`flumen_journal::faults`], for tests of the real binary.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flumen_journal::faults::{Class, Faults, Point, Step, active, point};

use super::disk::{Disk, SystemDisk};

/// Before the names of this sink's steps.
pub const PLACE: &str = "file-sink";

/// Places at which a test may kill the process, behind [`PLACE`].
pub const POINTS: &[Point] = &[
    point("directory.created", "a directory of the path is there"),
    point("file.created", "a file has its open name; the position with it and length 0 is committed"),
    point("file.written", "a block is written"),
    point("file.synced", "and durable; the position that says so is not committed"),
    point("file.name-synced", "the name of a new file is durable"),
    point("file.renamed", "a full file has its final name"),
    point("file.rename-synced", "and durably; it is still on record"),
    point("file.cut", "at a start: a file has its committed length again"),
    point("file.removed", "at a start: a file of which nothing was committed is gone"),
    point("file.removal-synced", "and durably"),
];

/// A page: what a failed sync loses or keeps as a whole.
const PAGE_BYTES: u64 = 4096;

/// The disk of a sink: the system's, with faults if they are switched on.
pub(super) fn system_disk() -> Box<dyn Disk> {
    match active() {
        Some(faults) => Box::new(FaultyDisk {
            faults,
            system: SystemDisk::default(),
            unsynced: HashMap::new(),
            names: "name-synced",
        }),
        None => Box::<SystemDisk>::default(),
    }
}

struct FaultyDisk {
    faults: Arc<Faults>,
    system: SystemDisk,
    /// What was appended since the last sync.
    unsynced: HashMap<PathBuf, Vec<Range<u64>>>,
    /// What the next sync of a directory makes durable.
    names: &'static str,
}

fn step(done: &str, class: Class) -> Step {
    let grows = matches!(done, "file.created" | "file.written" | "directory.created");
    Step { name: format!("{PLACE}.{done}"), class, grows }
}

impl FaultyDisk {
    /// The pages that were appended are zeros again, or not: the sink never writes a place twice.
    fn lose(&mut self, path: &Path, file: &File) -> io::Result<()> {
        for range in self.unsynced.remove(path).unwrap_or_default() {
            let mut at = range.start;
            while at < range.end {
                let bytes = (PAGE_BYTES - at % PAGE_BYTES).min(range.end - at);
                if self.faults.coin() {
                    file.write_all_at(&vec![0; bytes as usize], at)?;
                }
                at += bytes;
            }
        }
        Ok(())
    }
}

impl Disk for FaultyDisk {
    fn create(&mut self, path: &Path, mode: u32) -> io::Result<File> {
        let file = self.faults.step(&step("file.created", Class::Name), || self.system.create(path, mode))?;
        self.names = "name-synced";
        Ok(file)
    }

    fn open(&mut self, path: &Path) -> io::Result<File> {
        self.faults.step(&step("file.opened", Class::Read), || self.system.open(path))
    }

    fn exists(&mut self, path: &Path) -> io::Result<bool> {
        self.system.exists(path)
    }

    fn may_create_in(&mut self, directory: &Path) -> io::Result<()> {
        self.system.may_create_in(directory)
    }

    fn write_at(&mut self, path: &Path, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let appended = offset..offset + bytes.len() as u64;
        self.unsynced.entry(path.to_owned()).or_default().push(appended);
        let step = step("file.written", Class::Write);
        self.faults.step(&step, || self.system.write_at(path, file, bytes, offset))
    }

    fn sync(&mut self, path: &Path, file: &File) -> io::Result<()> {
        let step = step("file.synced", Class::Sync);
        if let Err(error) = self.faults.refuse(&step) {
            self.lose(path, file)?;
            return Err(error);
        }
        self.system.sync(path, file)?;
        self.unsynced.remove(path);
        self.faults.passed(&step.name);
        Ok(())
    }

    fn cut(&mut self, path: &Path, file: &File, length: u64) -> io::Result<()> {
        self.unsynced.remove(path);
        self.faults.step(&step("file.cut", Class::Write), || self.system.cut(path, file, length))
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.faults.step(&step("file.renamed", Class::Name), || self.system.rename(from, to))?;
        self.names = "rename-synced";
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.faults.step(&step("file.removed", Class::Name), || self.system.remove(path))?;
        self.names = "removal-synced";
        Ok(())
    }

    fn create_directory(&mut self, path: &Path) -> io::Result<()> {
        self.faults.step(&step("directory.created", Class::Name), || self.system.create_directory(path))
    }

    fn sync_directory(&mut self, path: &Path) -> io::Result<()> {
        let done = format!("file.{}", self.names);
        self.faults.step(&step(&done, Class::Sync), || self.system.sync_directory(path))
    }
}
