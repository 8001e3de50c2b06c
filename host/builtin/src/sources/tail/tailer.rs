//! The loop: reads a chunk of every file that has something, splits it, emits.
//!
//! One chunk per file and round, so a busy file does not starve the others. Nothing is read while
//! `emit` waits: that is the back-pressure. Reads and splits are timed per chunk, never per event.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::time::{Duration, Instant};

use flumen_pipeline::{Metric, SourceContext, SourceError, Stopped};

use super::chunk::{Chunk, Cutter};
use super::complaints::Complaints;
use super::file::{Change, FileId, Presence, TailFile};
use super::input::Input;
use super::limits::{ACTIVE_FOR, CHUNK_BYTES, ROUND_PAUSE};
use super::lines::{End, Splitter, State};
use super::options::Settings;
use super::out::Out;
use super::position::{Inode, Record, stream_of};
use super::table::Pace;
use super::watch::Watch;
use crate::sources::elapsed_ns;

/// See the module.
pub struct Tailer<'a> {
    pub(super) settings: &'a Settings,
    pub(super) context: &'a mut SourceContext,
    pub(super) files: HashMap<FileId, TailFile>,
    /// The birth time is part of the key: positions of a deleted file and of the one that got its
    /// inode number next are kept side by side.
    pub(super) by_inode: HashMap<Inode, FileId>,
    pub(super) by_path: HashMap<OsString, FileId>,
    pub(super) next_id: FileId,
    /// Files found since the last [`Tailer::announce_all`].
    pub(super) fresh: Vec<FileId>,
    /// Files that may have something to read.
    pub(super) ready: BTreeSet<FileId>,
    /// Files with bytes that no event has taken.
    pub(super) waiting: BTreeSet<FileId>,
    pub(super) open: BTreeSet<FileId>,
    pub(super) out: Out,
    cutter: Cutter<'a>,
    pub(super) buffer: Vec<u8>,
    pub(super) watch: Watch,
    pub(super) complaints: Complaints,
    pub(super) scan_wanted: bool,
    /// Walks so far.
    pub(super) scans: u64,
    pub(super) scanned_at: Option<Instant>,
    pub(super) pace: Pace,
    timers_at: Instant,
}

/// Whether a file has more to read at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum More {
    Yes,
    No,
}

impl<'a> Tailer<'a> {
    /// Where the committed positions say.
    pub fn resume(settings: &'a Settings, context: &'a mut SourceContext) -> Result<Tailer<'a>, SourceError> {
        let positions = context.positions();
        let metrics = context.metrics.clone();
        let mut tailer = Tailer {
            files: HashMap::new(),
            by_inode: HashMap::new(),
            by_path: HashMap::new(),
            next_id: 0,
            fresh: Vec::new(),
            ready: BTreeSet::new(),
            waiting: BTreeSet::new(),
            open: BTreeSet::new(),
            out: Out::new(context.name.clone(), context.batch, settings.file_header),
            cutter: Cutter {
                splitter: Splitter {
                    max_line: settings.max_line,
                    long: settings.long_lines,
                    multiline: settings.multiline.clone(),
                    metrics: metrics.clone(),
                },
                codec: settings.codec.as_ref(),
            },
            buffer: Vec::new(),
            watch: Watch::new(context.wake.clone()),
            complaints: Complaints::new(context.name.clone(), metrics),
            scan_wanted: true,
            scans: 0,
            scanned_at: None,
            pace: Pace::default(),
            timers_at: Instant::now(),
            settings,
            context,
        };
        let mut known = Vec::new();
        for (key, value) in &positions {
            let Some(stream) = stream_of(key) else { continue };
            let record = Record::decode(value).map_err(|error| SourceError::Retry(error.to_string()))?;
            known.push((stream, record));
        }
        // Of files that were born in one tick of the clock (or where births are not known) the numbers say which came first,
        // and keys are hashes: one that nothing was taken of came last.
        known.sort_by_key(|(_, record)| record.offset == 0);
        for (stream, record) in known {
            tailer.add(TailFile::resumed(stream, record));
        }
        let first_start = positions.is_empty();
        tailer.scan();
        if first_start && tailer.settings.start_at_end {
            tailer.skip_to_ends()?;
        }
        tailer.announce_all()?;
        Ok(tailer)
    }

    /// Until the pipeline stops.
    pub fn run(&mut self) -> Result<(), SourceError> {
        loop {
            if self.context.stopping() {
                return Err(Stopped.into());
            }
            let notified = self.watch.take();
            self.scan_wanted |= notified.scan;
            for path in notified.changed {
                match self.by_path.get(path.as_os_str()) {
                    Some(id) => {
                        self.ready.insert(*id);
                    }
                    None => self.scan_wanted = true,
                }
            }
            if self.scan_due_in().is_zero() {
                self.scan();
                self.announce_all()?;
            }
            let more = self.round()?;
            self.timers()?;
            if self.out.due_in().is_some_and(|due| due.is_zero()) {
                self.emit()?;
            }
            if !more {
                self.pause()?;
            }
        }
    }

    fn pause(&mut self) -> Result<(), Stopped> {
        self.context.metrics.set(Metric::SourceFilesOpen, self.open.len() as u64);
        let mut wait = self.scan_due_in().min(self.timers_at.saturating_duration_since(Instant::now()));
        if let Some(due) = self.out.due_in() {
            wait = wait.min(due);
        }
        let started = Instant::now();
        self.context.wait(wait)?;
        // A writer's every line is a wake: a short pause gathers them.
        while let Some(rest) = ROUND_PAUSE.checked_sub(started.elapsed()).filter(|rest| !rest.is_zero()) {
            self.context.wait(rest)?;
        }
        Ok(())
    }

    pub(super) fn emit(&mut self) -> Result<(), SourceError> {
        if !self.out.is_empty() {
            let emission = self.out.take()?;
            self.context.emit(emission)?;
        }
        Ok(())
    }

    /// One chunk of every ready file. True if some of them have more.
    fn round(&mut self) -> Result<bool, SourceError> {
        let mut any = false;
        for id in std::mem::take(&mut self.ready) {
            if self.context.stopping() {
                return Err(Stopped.into());
            }
            if self.read(id)? == More::Yes {
                self.ready.insert(id);
                any = true;
            }
        }
        Ok(any)
    }

    pub(super) fn read(&mut self, id: FileId) -> Result<More, SourceError> {
        let Some(file) = self.files.get(&id) else { return Ok(More::No) };
        if file.handed_over || file.retry_at.is_some_and(|at| at > Instant::now()) || self.twin_is_there(file)
        {
            return Ok(More::No);
        }
        let (fresh, begins) = (file.stream.is_none(), file.offset == 0 && file.read_offset == 0);
        if file.input.is_none() && !self.open(id)? {
            return Ok(More::No);
        }
        if fresh && self.announce(id) {
            self.emit()?;
        }
        if begins && !self.take_over(id)? {
            return Ok(More::Yes);
        }
        let start = Instant::now();
        let Some(file) = self.files.get_mut(&id) else { return Ok(More::No) };
        let read = file.read(&mut self.buffer, CHUNK_BYTES);
        self.context.metrics.add(Metric::SourceReadNs, elapsed_ns(start));
        match read {
            Err(error) => {
                self.failed(id, &error)?;
                Ok(More::No)
            }
            Ok(Err(change)) => {
                self.changed(id, change)?;
                Ok(More::Yes)
            }
            Ok(Ok(0)) => {
                if let Some(file) = self.files.get_mut(&id) {
                    file.at_end = true;
                }
                self.end_of_archive(id)?;
                Ok(More::No)
            }
            Ok(Ok(new)) => {
                self.context.metrics.add(Metric::SourceBytesRead, new as u64);
                if fresh && self.is_twin(id, new)? {
                    return Ok(More::Yes);
                }
                self.split(id, new, End::Open)?;
                let Some(file) = self.files.get_mut(&id) else { return Ok(More::No) };
                file.at_end = new < CHUNK_BYTES && !file.kind.is_archive();
                Ok(if file.at_end { More::No } else { More::Yes })
            }
        }
    }

    /// Splits what is held and `new` bytes behind it (0: the held bytes alone, which the buffer need not have).
    fn split(&mut self, id: FileId, new: usize, end: End) -> Result<(), SourceError> {
        if self.out.is_full() {
            self.emit()?;
        }
        let start = Instant::now();
        let mut blocked = Duration::ZERO;
        let Some(file) = self.files.get_mut(&id) else { return Ok(()) };
        if new > 0 {
            file.grown = Instant::now();
            let (pass, until) = (file.pass(), file.held.len() + new);
            let own = self.buffer.get(pass.tail + pass.prefix..until).unwrap_or_default();
            file.name_stream(&self.context.name, own);
        }
        let from = file.prefix.as_ref().and_then(|prefix| prefix.from);
        let mut chunk = Chunk::new(file, &mut self.buffer, new, end, &mut self.out);
        while chunk.fills(&self.cutter, file, &self.buffer, &mut self.out) {
            let waits = Instant::now();
            let emission = self.out.take()?;
            self.context.emit(emission)?;
            blocked += waits.elapsed();
        }
        let (pending, released) = (file.pending() > 0, file.prefix.is_none());
        self.context.metrics.add(Metric::SourceSplitNs, elapsed_ns(start + blocked));
        if pending {
            self.waiting.insert(id);
            let timeout = self.settings.last_line_timeout.min(self.settings.multiline_timeout);
            self.timers_at = self.timers_at.min(Instant::now() + timeout);
        } else {
            self.waiting.remove(&id);
        }
        if released && let Some(before) = from {
            if let Some(file) = self.files.get_mut(&before) {
                file.handed_over = false;
            }
            self.ready.insert(before);
        }
        Ok(())
    }

    /// Whether what is held of an idle file is taken as it is: a line is, unfinished bytes of a codec only when no
    /// writer finds the file any more.
    fn is_rest_taken(&self, file: &TailFile) -> bool {
        self.settings.codec.is_none() || file.presence != Presence::Matched
    }

    /// Takes what is held as events.
    pub(super) fn flush(&mut self, id: FileId, end: End) -> Result<(), SourceError> {
        self.split(id, 0, end)
    }

    /// Opens a file and compares it with what was read of it. False: not now.
    fn open(&mut self, id: FileId) -> Result<bool, SourceError> {
        self.make_room();
        let Some(file) = self.files.get_mut(&id) else { return Ok(false) };
        if matches!(file.presence, Presence::Gone(_)) {
            file.at_end = true;
            return Ok(false);
        }
        let opened = Input::open(&file.path, file.kind).and_then(|(input, meta)| {
            if Inode::of(&meta).may_be(&file.inode) {
                Ok((input, meta))
            } else {
                Err(io::ErrorKind::NotFound.into())
            }
        });
        let (mut input, meta) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.failed(id, &error)?;
                return Ok(false);
            }
        };
        file.finished = false;
        file.retry_at = None;
        file.opened_bytes = meta.len();
        let change = if file.kind.is_archive() {
            self.buffer.resize(self.buffer.len().max(CHUNK_BYTES), 0);
            let held = file.pending() > 0;
            if held {
                // Decompression goes on at the first byte not taken: what is held is read again.
                file.held.truncate(file.tail_len);
                file.state = State::resumed(file.state.mid_line, file.state.skip_line);
            }
            file.skip(&mut input, &mut self.buffer)
        } else {
            file.verify(&input, meta.len())
        };
        match change {
            Err(error) => {
                self.failed(id, &error)?;
                Ok(false)
            }
            Ok(change) => {
                file.real = file.real_path_of(&input);
                file.input = Some(input);
                self.open.insert(id);
                if change != Change::None {
                    self.changed(id, change)?;
                    return Ok(self.files.get(&id).is_some_and(|file| file.input.is_some()));
                }
                Ok(true)
            }
        }
    }

    /// A file could not be opened or read: reported, and tried again when a scan finds it changed.
    fn failed(&mut self, id: FileId, error: &io::Error) -> Result<(), SourceError> {
        let Some(file) = self.files.get_mut(&id) else { return Ok(()) };
        if error.kind() == io::ErrorKind::NotFound {
            self.scan_wanted = true;
        } else if file.kind.is_archive() && error.raw_os_error().is_none() {
            let what = format!(
                "the archive ends or is damaged at byte {} of its content ({error})",
                file.read_offset
            );
            self.complaints.say(
                &file.path,
                &what,
                "what came before is delivered; read on when the file changes",
            );
            file.archive_failed();
        } else {
            self.complaints.file(&file.path, error);
            file.retry_at = Some(Instant::now() + self.settings.rescan_interval);
        }
        file.at_end = true;
        self.close(id);
        Ok(())
    }

    fn end_of_archive(&mut self, id: FileId) -> Result<(), SourceError> {
        if !self.files.get(&id).is_some_and(|file| file.kind.is_archive()) {
            return Ok(());
        }
        self.flush(id, End::Event)?;
        let Some(file) = self.files.get_mut(&id) else { return Ok(()) };
        file.archive_bytes = file.opened_bytes;
        file.finished = true;
        file.name_stream(&self.context.name, b"");
        file.note(&mut self.out);
        self.close(id);
        Ok(())
    }

    /// Idle lines and events are taken, open files looked at, idle ones closed.
    fn timers(&mut self) -> Result<(), SourceError> {
        let now = Instant::now();
        if now < self.timers_at {
            return Ok(());
        }
        self.timers_at = now + self.settings.poll_interval;
        for id in self.waiting.clone() {
            let Some(file) = self.files.get(&id) else { continue };
            let timeout = match (&self.settings.multiline, file.held.last()) {
                (None, _) => self.settings.last_line_timeout,
                (Some(_), Some(b'\n')) => self.settings.multiline_timeout,
                (Some(_), _) => self.settings.multiline_timeout.max(self.settings.last_line_timeout),
            };
            let left = timeout.saturating_sub(file.grown.elapsed());
            if !left.is_zero() {
                self.timers_at = self.timers_at.min(now + left);
            } else if file.has_more() {
                // It grew while `emit` waited: the line is not idle.
                self.ready.insert(id);
            } else if !self.ready.contains(&id) && self.is_rest_taken(file) {
                self.flush(id, End::Event)?;
            }
        }
        for id in self.open.clone() {
            let Some(file) = self.files.get(&id) else { continue };
            let idle = now.saturating_duration_since(file.grown);
            let is_idle = idle >= self.settings.close_idle_after;
            // Each walk looks at what it finds: what did not grow for a while waits for that. Before it is closed it is looked at as well.
            let waits = file.presence == Presence::Matched && idle >= ACTIVE_FOR && !is_idle;
            if !file.kind.is_archive() && !waits && file.has_more() {
                self.ready.insert(id);
            } else if file.at_end && file.pending() == 0 && is_idle {
                self.close(id);
            }
        }
        Ok(())
    }
}
