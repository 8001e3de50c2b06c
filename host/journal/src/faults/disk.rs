//! The operating system's disk with a name for each call, and the faults of [`Faults`].

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use parking_lot::Mutex;

use super::unsynced::Unsynced;
use super::{Class, Faults, Step, active};
use crate::disk::{Disk, DiskFile, DiskLock, OsDisk};
use crate::file::{RESERVE_NAME, UNFINISHED, format, segment_id, state_file_commit};

/// The disk for a journal in this directory: the system's, with faults if they are switched on.
#[must_use]
pub fn system_disk(dir: &Path) -> Arc<dyn Disk> {
    match active() {
        Some(faults) => Arc::new(FaultyDisk::new(faults, dir)),
        None => Arc::new(OsDisk),
    }
}

/// What a file of a journal is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Segment,
    Spare,
    Snapshot,
    State,
    Reserve,
    /// Copies of what is damaged.
    Other,
}

impl Kind {
    fn of(path: &Path) -> Kind {
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let is_aside = path.parent().is_some_and(|dir| dir.ends_with(crate::file::DAMAGED_DIR));
        match &*name {
            _ if is_aside => Kind::Other,
            name if segment_id(name).is_some() => Kind::Segment,
            name if name.starts_with("spare.") => Kind::Spare,
            name if format::snapshot::SLOT_NAMES.contains(&name) => Kind::Snapshot,
            name if name == UNFINISHED || state_file_commit(name).is_some() => Kind::State,
            RESERVE_NAME => Kind::Reserve,
            _ => Kind::Other,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Kind::Segment => "segment",
            Kind::Spare => "spare",
            Kind::Snapshot => "snapshot",
            Kind::State => "state",
            Kind::Reserve => "reserve",
            Kind::Other => "other",
        }
    }
}

/// What the files of one opening of a journal know of it.
struct About {
    faults: Arc<Faults>,
    /// The journal's name in names of steps: its directory's.
    journal: String,
    /// Its first snapshot is durable.
    is_started: AtomicBool,
    /// What the next sync of a directory makes durable.
    names: Mutex<(Kind, &'static str)>,
}

impl About {
    fn step(&self, kind: Kind, done: &str, class: Class) -> Step {
        self.step_of(kind.word(), done, class)
    }

    fn step_of(&self, what: &str, done: &str, class: Class) -> Step {
        let start = if self.is_started.load(Ordering::Relaxed) { "" } else { "start." };
        Step { name: format!("{}.{start}{what}.{done}", self.journal), class, grows: false }
    }

    fn file(self: &Arc<Self>, kind: Kind, stage: u8, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        let (about, stage, unsynced) = (self.clone(), AtomicU8::new(stage), Mutex::default());
        Box::new(FaultyFile { about, kind, stage, file, unsynced })
    }
}

/// See the module.
pub struct FaultyDisk(Arc<About>);

impl FaultyDisk {
    /// For one opening of the journal in this directory.
    #[must_use]
    pub fn new(faults: Arc<Faults>, dir: &Path) -> FaultyDisk {
        let journal = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let names = Mutex::new((Kind::Other, "name-synced"));
        FaultyDisk(Arc::new(About { faults, journal, is_started: AtomicBool::new(false), names }))
    }

    fn do_step<T>(&self, step: &Step, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.0.faults.step(step, call)
    }
}

impl Disk for FaultyDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return OsDisk.create_dir(dir);
        }
        let step = Step { grows: true, ..self.0.step_of("directory", "created", Class::Name) };
        self.do_step(&step, || OsDisk.create_dir(dir))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.do_step(&self.0.step_of("directory", "listed", Class::Read), || OsDisk.list(dir))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let kind = Kind::of(path);
        let step = Step { grows: true, ..self.0.step(kind, "created", Class::Name) };
        let made = || {
            let file = OsDisk.create(path)?;
            *self.0.names.lock() = (kind, "name-synced");
            Ok(file)
        };
        Ok(self.0.file(kind, NEW, self.do_step(&step, made)?))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        let kind = Kind::of(path);
        let opened = self.do_step(&self.0.step(kind, "opened", Class::Read), || OsDisk.open(path, write))?;
        // A spare begins as a new segment does.
        Ok(self.0.file(kind, if kind == Kind::Spare { NEW } else { GOES_ON }, opened))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (before, after) = (Kind::of(from), Kind::of(to));
        let (done, synced) = match (before, after) {
            (Kind::Spare, Kind::Segment) => ("taken", "name-synced"),
            (Kind::Segment, Kind::Spare) => ("spared", "removal-synced"),
            (Kind::Segment, Kind::Other) => ("set-aside", "removal-synced"),
            _ => ("named", "name-synced"),
        };
        self.do_step(&self.0.step(before, done, Class::Name), || {
            OsDisk.rename(from, to)?;
            *self.0.names.lock() = (before, synced);
            Ok(())
        })
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let kind = Kind::of(path);
        self.do_step(&self.0.step(kind, "removed", Class::Name), || {
            OsDisk.unlink(path)?;
            *self.0.names.lock() = (kind, "removal-synced");
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let (kind, synced) = *self.0.names.lock();
        self.do_step(&self.0.step(kind, synced, Class::Sync), || OsDisk.sync_dir(dir))
    }

    fn lock(&self, dir: &Path) -> io::Result<Option<Box<dyn DiskLock>>> {
        OsDisk.lock(dir)
    }
}

/// Nothing was written to it.
const NEW: u8 = 0;
/// Its header and checkpoint were.
const BEGUN: u8 = 1;
/// Its first group was.
const FIRST: u8 = 2;
/// More was.
const GOES_ON: u8 = 3;

struct FaultyFile {
    about: Arc<About>,
    kind: Kind,
    /// How far a segment is.
    stage: AtomicU8,
    file: Box<dyn DiskFile>,
    unsynced: Mutex<Unsynced>,
}

impl FaultyFile {
    /// Names of writes and syncs at a stage. What began as a spare is a segment from its first group on.
    fn name(&self, stage: u8) -> (Kind, &'static str, &'static str) {
        match (self.kind, stage) {
            (Kind::Segment | Kind::Spare, BEGUN) => (self.kind, "begun", "begun-synced"),
            (Kind::Segment | Kind::Spare, FIRST) => (Kind::Segment, "first-written", "first-synced"),
            (Kind::Spare, GOES_ON) => (Kind::Segment, "written", "synced"),
            (kind, _) => (kind, "written", "synced"),
        }
    }
}

impl DiskFile for FaultyFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let step = self.about.step(self.kind, "read", Class::Read);
        self.about.faults.step(&step, || self.file.read_at(offset, into))
    }

    fn write_at(&self, offset: u64, from: &[IoSlice<'_>]) -> io::Result<usize> {
        let stage = (self.stage.load(Ordering::Relaxed) + 1).min(GOES_ON);
        let (kind, written, _) = self.name(stage);
        let bytes: usize = from.iter().map(|slice| slice.len()).sum();
        let grows = offset + bytes as u64 > self.file.len()?;
        let step = Step { grows, ..self.about.step(kind, written, Class::Write) };
        self.about.faults.step(&step, || {
            self.unsynced.lock().note(self.file.as_ref(), offset, bytes)?;
            self.stage.store(stage, Ordering::Relaxed);
            self.file.write_at(offset, from)
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let (kind, _, synced) = self.name(self.stage.load(Ordering::Relaxed));
        let step = self.about.step(kind, synced, Class::Sync);
        if let Err(error) = self.about.faults.refuse(&step) {
            self.unsynced.lock().lose(self.file.as_ref(), || self.about.faults.coin())?;
            return Err(error);
        }
        self.file.sync_data()?;
        self.unsynced.lock().clear();
        self.about.faults.passed(&step.name);
        if kind == Kind::Snapshot {
            self.about.is_started.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        let grows = bytes > self.file.len()?;
        let step = Step { grows, ..self.about.step(self.kind, "allocated", Class::Write) };
        self.about.faults.step(&step, || self.file.preallocate(bytes))
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        let (kind, ..) = self.name(self.stage.load(Ordering::Relaxed));
        let step = self.about.step(kind, "cut", Class::Write);
        self.about.faults.step(&step, || self.file.truncate(bytes))
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
}
