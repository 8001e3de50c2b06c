//! The files of one sink that are not final, and the steps of their lives.
//!
//! ```text
//! planned -> open -> closing -> renamed -> (forgotten)
//! ```
//!
//! planned: has a number, is on record with length 0, does not exist; open: takes events under its
//! `.open` name; closing: takes no more; renamed: has its final name, and stays on record until the
//! directory is synced.
//!
//! Each step that only the record could undo is taken after the record is durable: creation after
//! [`Files::announce`], the rename after `committed`. An error in the middle leaves this table wrong;
//! the sink then works on only after [`Files::rebuild`](super::recovery).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flumen_pipeline::SinkError;
use flumen_pipeline::sink::SinkContext;
use rustix::io::Errno;

use super::compress::Compressor;
use super::disk::Disk;
use super::options::Settings;
use super::position::{FileRecord, Position};
use super::route::Bucket;
use crate::sinks::encode::Encoder;

/// Milliseconds since the Unix epoch.
pub(super) type Clock = Box<dyn Fn() -> u64 + Send>;

/// Where a file is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Planned,
    Open,
    Closing,
    Renamed,
}

/// One file.
pub(super) struct Entry {
    pub phase: Phase,
    /// What the last position says of it.
    pub recorded: FileRecord,
    /// A flushed position says that it is closing, and `committed` is awaited.
    pub awaits_commit: bool,
    /// Open until the flush after the last write.
    pub file: Option<File>,
    /// Text that is not written yet.
    pub buffer: Vec<u8>,
    /// Bytes written, including those that are not synced.
    pub length: u64,
    /// Events in them and in the buffer.
    pub events: u64,
    /// Written since the last sync.
    pub dirty: bool,
    /// Time of the last event's arrival.
    pub used_ms: u64,
    /// Order of use, for `max_open_files`.
    pub used: u64,
}

impl Entry {
    pub fn new(phase: Phase, recorded: FileRecord, file: Option<File>, now_ms: u64) -> Entry {
        let (length, events) = (recorded.length, recorded.events);
        let (awaits_commit, dirty, used, used_ms) = (false, false, 0, now_ms);
        Entry {
            phase,
            recorded,
            awaits_commit,
            file,
            buffer: Vec::new(),
            length,
            events,
            dirty,
            used_ms,
            used,
        }
    }
}

/// The table.
pub(super) struct Files {
    pub settings: Settings,
    pub disk: Box<dyn Disk>,
    pub clock: Clock,
    pub next_number: u64,
    pub entries: BTreeMap<u64, Entry>,
    /// Number of the file that takes a bucket's events.
    pub open: HashMap<Arc<str>, u64>,
    /// Open files by their last use.
    pub by_use: BTreeSet<(u64, u64)>,
    /// Closing files whose handle waits for the sync at the next flush.
    pub closing_handles: Vec<u64>,
    /// Directories in which names changed since their last sync.
    pub changed_directories: BTreeSet<PathBuf>,
    /// Directories above files, with the state of their own name: a process that was killed may have made
    /// them and not lived to sync that. True: durable, as this process knows.
    pub ancestors: BTreeMap<PathBuf, bool>,
    /// Files whose sync failed: what was written is not trusted to follow.
    pub suspect: BTreeSet<u64>,
    /// Text in all buffers.
    pub buffered_bytes: usize,
    /// Counts uses of files, for `Entry::used`.
    pub uses: u64,
    pub encoder: Encoder,
    /// The codec's version by which files are written, if there is a codec.
    pub version: Option<Arc<dyn flumen_pipeline::Encoder>>,
    pub compressor: Compressor,
}

/// Buckets whose events no file can take, by their paths, with the reason.
pub(super) type Refused = HashMap<Arc<str>, String>;

/// The final name of a file.
pub(super) fn final_path(record: &FileRecord) -> PathBuf {
    let (head, tail) = record.path.split_at_checked(record.split as usize).unwrap_or((&record.path, ""));
    PathBuf::from(format!("{head}-{:06}{tail}", record.number))
}

/// The name of a file that is being written.
pub(super) fn open_path(record: &FileRecord) -> PathBuf {
    let mut path = final_path(record).into_os_string();
    path.push(".open");
    path.into()
}

/// An error that a user understands: what was being done, to which file, and what the system said.
pub(super) fn failed(doing: &str, path: &Path, error: &io::Error) -> SinkError {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull => "; delivery goes on when there is space again",
        io::ErrorKind::PermissionDenied => "; the user that runs flumen needs write permission there",
        _ => "",
    };
    SinkError::Retry(format!("{doing} {}: {error}{hint}", path.display()))
}

impl Files {
    pub fn new(settings: Settings, disk: Box<dyn Disk>, clock: Clock) -> Self {
        let (encoder, compressor) = (Encoder::new(settings.encoding), Compressor::new(settings.compression));
        Files {
            settings,
            disk,
            clock,
            next_number: 1,
            entries: BTreeMap::new(),
            open: HashMap::new(),
            by_use: BTreeSet::new(),
            closing_handles: Vec::new(),
            changed_directories: BTreeSet::new(),
            ancestors: BTreeMap::new(),
            suspect: BTreeSet::new(),
            buffered_bytes: 0,
            uses: 0,
            encoder,
            version: None,
            compressor,
        }
    }

    /// Forgets everything but the numbers used and the files that cannot be trusted.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.open.clear();
        self.by_use.clear();
        self.closing_handles.clear();
        self.ancestors.clear();
        self.buffered_bytes = 0;
    }

    /// Adds a file from a position. An open one takes the next events of its bucket.
    pub fn insert(&mut self, entry: Entry) {
        if entry.phase == Phase::Open {
            self.open.insert(entry.recorded.path.clone(), entry.recorded.number);
            self.by_use.insert((entry.used, entry.recorded.number));
        }
        self.entries.insert(entry.recorded.number, entry);
    }

    /// The position as of the last flush, with files planned since then at length 0.
    pub fn recorded(&self) -> Position {
        Position {
            fingerprint: self.fingerprint(),
            next_number: self.next_number,
            files: self.entries.values().map(|entry| entry.recorded.clone()).collect(),
        }
    }

    /// Puts a file on record for every bucket that has none, and may have one: one durable commit for all of them.
    pub fn announce<'a>(
        &mut self,
        context: &mut SinkContext,
        buckets: impl Iterator<Item = &'a Bucket>,
    ) -> Result<Refused, SinkError> {
        let before = self.entries.len();
        let mut refused = Refused::new();
        for bucket in buckets {
            if self.open.contains_key(&bucket.path) {
                continue;
            }
            if let Some(reason) = self.plan(bucket)? {
                refused.insert(bucket.path.clone(), reason);
            }
        }
        if self.entries.len() > before {
            context.commit_position(&self.recorded().encode())?;
        }
        Ok(refused)
    }

    /// The same for a bucket that had a file in this delivery.
    pub fn announce_one(&mut self, context: &mut SinkContext, bucket: &Bucket) -> Result<(), SinkError> {
        match self.announce(context, std::iter::once(bucket))?.remove(&bucket.path) {
            // When the delivery comes again it begins with this look, and the rows are refused as a whole.
            Some(reason) => Err(SinkError::Retry(reason)),
            None => Ok(()),
        }
    }

    /// The next number for a bucket; `Some`: why there can be no file.
    fn plan(&mut self, bucket: &Bucket) -> Result<Option<String>, SinkError> {
        let now_ms = (self.clock)();
        let mut record = FileRecord {
            number: self.next_number,
            length: 0,
            events: 0,
            opened_ms: now_ms,
            closing: false,
            path: bucket.path.clone(),
            split: bucket.split,
        };
        if let Some(reason) = self.misled(bucket, &open_path(&record)) {
            return Ok(Some(reason));
        }
        // Never on record is a name that exists already: recovery removes files of length 0.
        loop {
            let [open, last] = [open_path(&record), final_path(&record)];
            let mut taken = false;
            for path in [&open, &last] {
                taken |= self.disk.exists(path).map_err(|e| failed("looking for", path, &e))?;
            }
            self.next_number = record.number + 1;
            if !taken {
                break;
            }
            record.number = self.next_number;
        }
        self.open.insert(bucket.path.clone(), record.number);
        self.entries.insert(record.number, Entry::new(Phase::Planned, record, None, now_ms));
        Ok(None)
    }

    /// Why no file can be where a header leads: an event may name what is there and is no directory, or somebody else's.
    /// With the part of the path that no event has a say in something is wrong for all events: they wait until it is mended.
    fn misled(&mut self, bucket: &Bucket, path: &Path) -> Option<String> {
        let fixed = Path::new(bucket.fixed.as_deref()?);
        let error = self.look(path).err()?;
        let is_fixed_part_fine = match Errno::from_io_error(&error)? {
            // No event makes a link to nowhere: what it leads to may be a disk that is not mounted yet.
            Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG => {
                matches!(self.disk.exists(&fixed.join(".")), Ok(true)) || self.reach(fixed).is_ok()
            }
            // Where nothing may be made in the fixed part either, it is not the event that has to be mended.
            Errno::ACCESS | Errno::PERM => self.reach(fixed).is_ok(),
            _ => false,
        };
        let path = path.display();
        is_fixed_part_fine.then(|| format!("its headers lead to {path}, where no file can be: {error}"))
    }

    /// Fails if a file of this name can be neither there nor made.
    fn look(&mut self, path: &Path) -> io::Result<()> {
        if let Some(directory) = path.parent() {
            self.reach(directory)?;
        }
        self.disk.exists(path)?;
        Ok(())
    }

    /// Fails if no file can be made in a directory, nor the directory in the nearest one above it that is there.
    fn reach(&mut self, directory: &Path) -> io::Result<()> {
        for directory in directory.ancestors() {
            match self.disk.may_create_in(directory) {
                // What has the name and is not found is a link to nowhere.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !self.disk.exists(directory)? => {}
                done => return done,
            }
        }
        Ok(())
    }

    /// The number of the file that takes the next event of a bucket; the file exists.
    pub fn ready(&mut self, context: &mut SinkContext, bucket: &Bucket) -> Result<u64, SinkError> {
        loop {
            self.announce_one(context, bucket)?;
            let Some(number) = self.open.get(&bucket.path).copied() else { continue };
            let planned = self.entries.get(&number).filter(|entry| entry.phase == Phase::Planned);
            let Some(record) = planned.map(|entry| entry.recorded.clone()) else { return Ok(number) };
            self.limit_handles()?;
            if self.create(&record)? {
                return Ok(number);
            }
            // Someone else took the name after `plan` looked. The next number, under a new record.
            self.open.remove(&bucket.path);
            self.entries.remove(&number);
        }
    }

    /// Creates a planned file. False: the name is taken.
    fn create(&mut self, record: &FileRecord) -> Result<bool, SinkError> {
        let path = open_path(record);
        let mut created = self.disk.create(&path, self.settings.mode);
        if created.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            self.create_parents(&path)?;
            created = self.disk.create(&path, self.settings.mode);
        }
        let file = match created {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => {
                // It may be there (only its permissions failed), so recovery has to look.
                if let Some(entry) = self.entries.get_mut(&record.number) {
                    entry.phase = Phase::Open;
                }
                return Err(failed("creating", &path, &error));
            }
        };
        self.changed_directories.extend(path.parent().map(Path::to_owned));
        self.note_ancestors(&path);
        if let Some(entry) = self.entries.get_mut(&record.number) {
            entry.file = Some(file);
            entry.phase = Phase::Open;
            self.by_use.insert((entry.used, record.number));
        }
        Ok(true)
    }

    fn create_parents(&mut self, path: &Path) -> Result<(), SinkError> {
        let mut missing = Vec::new();
        for directory in path.ancestors().skip(1) {
            if self.disk.exists(directory).map_err(|e| failed("looking for", directory, &e))? {
                break;
            }
            missing.push(directory);
        }
        for directory in missing.into_iter().rev() {
            self.disk.create_directory(directory).map_err(|e| failed("creating directory", directory, &e))?;
            self.changed_directories.extend(directory.parent().map(Path::to_owned));
        }
        Ok(())
    }

    fn note_ancestors(&mut self, path: &Path) {
        for directory in path.ancestors().skip(1).filter(|directory| directory.parent().is_some()) {
            if self.ancestors.contains_key(directory) {
                break;
            }
            self.ancestors.insert(directory.to_owned(), false);
        }
    }

    /// Keeps the number of open handles within `max_open_files` before one is added.
    fn limit_handles(&mut self) -> Result<(), SinkError> {
        let max = self.settings.open_files_max;
        if self.by_use.len() + self.closing_handles.len() < max {
            return Ok(());
        }
        while self.by_use.len() >= max {
            let Some((_, oldest)) = self.by_use.first().copied() else { break };
            self.finish(oldest)?;
        }
        for number in std::mem::take(&mut self.closing_handles) {
            self.sync_and_let_go(number)?;
        }
        Ok(())
    }

    fn sync_and_let_go(&mut self, number: u64) -> Result<(), SinkError> {
        self.sync(number)?;
        if let Some(entry) = self.entries.get_mut(&number) {
            entry.file = None;
        }
        Ok(())
    }

    /// A file takes no more events.
    pub fn finish(&mut self, number: u64) -> Result<(), SinkError> {
        if self.drop_planned(number) {
            return Ok(());
        }
        self.put_end(number);
        self.write_out(number)?;
        if let Some(entry) = self.entries.get_mut(&number) {
            entry.phase = Phase::Closing;
            entry.buffer = Vec::new();
            self.open.remove(&entry.recorded.path);
            self.by_use.remove(&(entry.used, number));
            self.closing_handles.extend(entry.file.is_some().then_some(number));
        }
        Ok(())
    }

    /// Open files whose time is over.
    pub fn overdue(&self) -> Vec<u64> {
        let now_ms = (self.clock)();
        let over = |since_ms: u64, limit: Option<u64>| match (now_ms.checked_sub(since_ms), limit) {
            (_, None) => false,
            (Some(age_ms), Some(limit)) => age_ms >= limit,
            // The clock went back: the age is unknown, and a file must not stay open for ever.
            (None, Some(_)) => true,
        };
        let due = |entry: &Entry| {
            over(entry.recorded.opened_ms, self.settings.roll_interval_ms)
                || over(entry.used_ms, self.settings.idle_timeout_ms)
        };
        let open = self.open.values().filter(|number| self.entries.get(number).is_some_and(due));
        open.copied().collect()
    }

    /// True if a flush would finish a file or bring one nearer to its final name.
    pub fn due(&self) -> bool {
        self.entries.values().any(|entry| entry.phase == Phase::Closing && !entry.awaits_commit)
            || !self.overdue().is_empty()
    }
}
