//! The operating system's disk with a name for each call, and the faults of [`Faults`].

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use parking_lot::Mutex;

use super::unsynced::Unsynced;
use super::{Class, Faults, Step, active};
use crate::disk::{Disk, DiskFile, DiskLock, OsDisk};
use crate::failover::PROBE_NAME;
use crate::file::{DAMAGED_DIR, RESERVE_NAME, UNFINISHED, format, segment_id, state_file_commit};

/// The disk for one opening of a journal, or for its probe: the system's, with faults if they are switched on. `place`: which journal it
/// is, the first word of its steps' names.
#[must_use]
pub fn system_disk(place: &str) -> Arc<dyn Disk> {
    match active() {
        Some(faults) => Arc::new(FaultyDisk::new(faults, place)),
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
    /// Of a failover, which asks whether the disk is well.
    Probe,
    /// Copies of what is damaged, and the directory that they are in.
    Damage,
    /// Nothing that is known here: a step that changes it has no point.
    Other,
}

impl Kind {
    fn of(path: &Path) -> Kind {
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        match &*name {
            _ if path.parent().is_some_and(is_damage_dir) => Kind::Damage,
            name if segment_id(name).is_some() => Kind::Segment,
            name if name.starts_with("spare.") => Kind::Spare,
            name if format::snapshot::SLOT_NAMES.contains(&name) => Kind::Snapshot,
            name if name == UNFINISHED || state_file_commit(name).is_some() => Kind::State,
            RESERVE_NAME => Kind::Reserve,
            PROBE_NAME => Kind::Probe,
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
            Kind::Probe => "probe",
            Kind::Damage => "damage",
            Kind::Other => "other",
        }
    }
}

fn is_damage_dir(dir: &Path) -> bool {
    dir.ends_with(DAMAGED_DIR)
}

/// What the files of one opening of a journal know of it.
struct About {
    faults: Arc<Faults>,
    /// Which journal it is, in names of steps.
    journal: String,
    /// Its first snapshot is durable, or there is no room for it: then the opening goes on without.
    is_started: AtomicBool,
    /// What the next sync of the directory makes durable, if anything was done to its names since the last one.
    names: Mutex<Option<(Kind, &'static str)>>,
}

impl About {
    fn step(&self, kind: Kind, done: &str, class: Class) -> Step {
        // A probe is of no opening.
        let is_started = kind == Kind::Probe || self.is_started.load(Ordering::Relaxed);
        self.named(is_started, kind.word(), done, class)
    }

    fn step_of_dir(&self, done: &str, class: Class) -> Step {
        self.named(self.is_started.load(Ordering::Relaxed), "directory", done, class)
    }

    fn named(&self, is_started: bool, what: &str, done: &str, class: Class) -> Step {
        let start = if is_started { "" } else { "start." };
        Step { name: format!("{}.{start}{what}.{done}", self.journal), class, grows: false }
    }

    /// Does a step of a file.
    fn do_step<T>(&self, kind: Kind, step: &Step, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let done = self.faults.step(step, call);
        self.look(kind, done.as_ref().err());
        done
    }

    /// An opening without room for its first snapshot does without, and begins.
    fn look(&self, kind: Kind, error: Option<&io::Error>) {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let is_full =
            error.is_some_and(|error| matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge));
        if kind == Kind::Snapshot && is_full {
            self.is_started.store(true, Ordering::Relaxed);
        }
    }

    fn file(self: &Arc<Self>, kind: Kind, stage: u8, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        let (about, stage, unsynced) = (self.clone(), AtomicU8::new(stage), Mutex::default());
        Box::new(FaultyFile { about, kind, stage, file, unsynced })
    }
}

/// See the module.
pub struct FaultyDisk(Arc<About>);

impl FaultyDisk {
    /// For one opening of a journal, or for its probe. `place`: which journal it is.
    #[must_use]
    pub fn new(faults: Arc<Faults>, place: &str) -> FaultyDisk {
        let (journal, is_started, names) = (place.to_owned(), AtomicBool::new(false), Mutex::default());
        FaultyDisk(Arc::new(About { faults, journal, is_started, names }))
    }
}

impl Disk for FaultyDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return OsDisk.create_dir(dir);
        }
        let step = match is_damage_dir(dir) {
            true => self.0.step(Kind::Damage, "created", Class::Name),
            false => self.0.step_of_dir("created", Class::Name),
        };
        self.0.faults.step(&Step { grows: true, ..step }, || OsDisk.create_dir(dir))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.faults.step(&self.0.step_of_dir("listed", Class::Read), || OsDisk.list(dir))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let kind = Kind::of(path);
        let step = Step { grows: true, ..self.0.step(kind, "created", Class::Name) };
        let made = || {
            let file = OsDisk.create(path)?;
            if kind != Kind::Damage {
                *self.0.names.lock() = Some((kind, "name-synced"));
            }
            Ok(file)
        };
        Ok(self.0.file(kind, NEW, self.0.do_step(kind, &step, made)?))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        let kind = Kind::of(path);
        let step = self.0.step(kind, "opened", Class::Read);
        let opened = self.0.do_step(kind, &step, || OsDisk.open(path, write))?;
        // A spare begins as a new segment does.
        Ok(self.0.file(kind, if kind == Kind::Spare { NEW } else { GOES_ON }, opened))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (before, after) = (Kind::of(from), Kind::of(to));
        let (done, synced) = match (before, after) {
            (Kind::Spare, Kind::Segment) => ("taken", "name-synced"),
            (Kind::Segment, Kind::Spare) => ("spared", "removal-synced"),
            (Kind::Segment, Kind::Damage) => ("set-aside", "removal-synced"),
            _ => ("named", "name-synced"),
        };
        self.0.do_step(before, &self.0.step(before, done, Class::Name), || {
            OsDisk.rename(from, to)?;
            *self.0.names.lock() = Some((before, synced));
            Ok(())
        })
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let kind = Kind::of(path);
        self.0.do_step(kind, &self.0.step(kind, "removed", Class::Name), || {
            OsDisk.unlink(path)?;
            *self.0.names.lock() = Some((kind, "removal-synced"));
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if is_damage_dir(dir) {
            let step = self.0.step(Kind::Damage, "name-synced", Class::Sync);
            return self.0.faults.step(&step, || OsDisk.sync_dir(dir));
        }
        let names = *self.0.names.lock();
        let step = match names {
            Some((kind, synced)) => self.0.step(kind, synced, Class::Sync),
            None => self.0.step_of_dir("synced", Class::Sync),
        };
        let sync = || {
            OsDisk.sync_dir(dir)?;
            // What another thread did meanwhile is for the next one.
            let mut now = self.0.names.lock();
            if *now == names {
                *now = None;
            }
            Ok(())
        };
        self.0.do_step(names.map_or(Kind::Other, |(kind, _)| kind), &step, sync)
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
        self.about.do_step(self.kind, &step, || self.file.read_at(offset, into))
    }

    fn write_at(&self, offset: u64, from: &[IoSlice<'_>]) -> io::Result<usize> {
        let stage = (self.stage.load(Ordering::Relaxed) + 1).min(GOES_ON);
        let (kind, written, _) = self.name(stage);
        let bytes: usize = from.iter().map(|slice| slice.len()).sum();
        let grows = offset + bytes as u64 > self.file.len()?;
        let step = Step { grows, ..self.about.step(kind, written, Class::Write) };
        self.about.do_step(kind, &step, || {
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
        self.file.sync_data().inspect_err(|error| self.about.look(kind, Some(error)))?;
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
        self.about.do_step(self.kind, &step, || self.file.preallocate(bytes))
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        // A spare that is cut has the name of a segment by now.
        let kind = if self.kind == Kind::Spare { Kind::Segment } else { self.kind };
        let step = self.about.step(kind, "cut", Class::Write);
        self.about.do_step(kind, &step, || self.file.truncate(bytes))
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
}
