//! Files of the plugins' state: written beside the commits by a thread of their own, read at the start.
//!
//! The view in memory is the truth while the journal runs; on disk it is the newest `%016x.state` and the commits behind it.
//! So a segment that holds such commits stays until a newer file covers them. A file is written as `.new` while commits go on,
//! part of the view by part, and gets its name when everything that it may hold is durable.
//!
//! Constraints: the lock of the view is held for one part at a time; small syncs, so that commits do not wait long for the
//! disk; at most one file is being written, and the one before it stays until the new one is there.
//!
//! How it fails: an error costs the attempt. The old file and the segments stay, and it is tried again. The space of the next
//! file is taken beforehand, so that a disk that the segments filled does not stop the file that they wait for.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use super::format::commit::Location;
use super::format::sealed::{Piece, Sealer};
use super::format::segment::SEGMENT_HEADER_BYTES;
use super::format::state::{STATE_HEADER_BYTES, StateHeader, encode_block};
use super::format::wire::put_blob;
use super::state::Shared;
use super::writer::Writer;
use crate::disk::{DiskFile, write_all_at};
use crate::limits;
use crate::state::{StateOp, encode_op};
use crate::view::Walk;

/// A file's name: the number of its commit.
pub fn state_file_name(commit: u64) -> String {
    format!("{commit:016x}.state")
}

/// The commit in a file's name.
pub fn state_file_commit(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".state").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// While it is written.
pub(crate) const UNFINISHED: &str = "state.new";

/// A written file.
pub(super) struct Written {
    /// All commits that were handed in before this one have to be durable.
    order: u64,
}

/// A file on its way.
pub(super) struct Saving {
    thread: Option<JoinHandle<io::Result<Written>>>,
    cancelled: Arc<AtomicBool>,
    written: Option<Written>,
    header: StateHeader,
    /// Segment at the beginning: what was committed since lies there or later.
    since_segment: u64,
    /// State was committed since the beginning.
    pub has_newer: bool,
}

/// What the committer knows of the files.
#[derive(Default)]
pub(super) struct StateFiles {
    /// The newest complete one.
    pub newest: Option<u64>,
    /// The first segment with state that no complete file covers.
    pub uncovered: Option<u64>,
    /// Bytes of segments since the newest file was begun.
    pub since_bytes: u64,
    pub saving: Option<Saving>,
    /// Bytes taken for the next file.
    reserved_bytes: u64,
    /// There is no space for it.
    is_short: bool,
    /// After a failure: when to try again.
    pub retry_at: Option<Instant>,
    /// The view has what will never be durable.
    is_over: bool,
}

impl StateFiles {
    /// A commit with state is in this segment.
    pub fn committed(&mut self, segment: u64) {
        self.uncovered.get_or_insert(segment);
        if let Some(saving) = &mut self.saving {
            saving.has_newer = true;
        }
    }

    /// A file is to be begun, or ends.
    pub fn needs_care(&self) -> bool {
        self.saving.is_some() || self.uncovered.is_some()
    }

    /// Segments from this one on are needed for the state.
    pub fn needs_from(&self) -> Option<u64> {
        self.uncovered
    }
}

impl Writer {
    /// After each group: begins a file when enough was written, ends one that is complete.
    pub fn maintain_state(&mut self) {
        self.end_saving();
        if self.state_files.saving.is_some() || self.state_files.uncovered.is_none() {
            return;
        }
        let own = self.shared.view.view().lock().bytes();
        let due = self.shared.config.state_file_every_bytes.max(own * limits::STATE_FILE_EVERY_TIMES);
        if self.state_files.reserved_bytes < own {
            self.reserve_state_file(own);
        }
        // The first file is there early: without one, a start would have to look for the first commit with state.
        if self.state_files.newest.is_none() || self.state_files.since_bytes >= due {
            self.begin_saving();
        }
    }

    /// An entry takes less on disk than in memory, so the state's size in memory is enough.
    fn reserve_state_file(&mut self, own: u64) {
        let bytes = (own + own / 4).max(limits::STATE_FILE_BYTES_MIN).next_multiple_of(4096);
        let path = self.shared.dir.join(UNFINISHED);
        let made = open_or_create(&self.shared, &path).and_then(|file| file.preallocate(bytes));
        match made {
            Ok(()) => (self.state_files.reserved_bytes, self.state_files.is_short) = (bytes, false),
            // Tried again after every group: as soon as there is space.
            Err(error) if !std::mem::replace(&mut self.state_files.is_short, true) => {
                tracing::warn!(path = %path.display(), %error, "no space is set aside for the plugins' state");
            }
            Err(_) => {}
        }
    }

    /// On a full disk with nothing left to delete: the state's file may be what segments wait for.
    pub fn save_state_when_full(&mut self) {
        self.end_saving();
        if self.state_files.saving.is_none() && self.state_files.uncovered.is_some() {
            self.begin_saving();
        }
    }

    fn begin_saving(&mut self) {
        let now = self.shared.clock.now();
        if self.state_files.is_over || self.state_files.retry_at.is_some_and(|at| now < at) {
            return;
        }
        let scan = match &self.active {
            Some(active) => active.place(),
            None => Location { segment: self.next_segment, offset: SEGMENT_HEADER_BYTES as u64 },
        };
        let is_sealed = self.shared.sealer.is_some();
        let header =
            StateHeader { journal: self.shared.journal, commit: self.next_commit - 1, scan, is_sealed };
        let cancelled = Arc::new(AtomicBool::new(false));
        let (shared, stop) = (self.shared.clone(), cancelled.clone());
        let save = move || {
            let written = write_file(&shared, &header, &stop);
            shared.saved.store(true, Ordering::Release);
            // Under the lock, or the committer could begin to wait just now.
            drop(shared.state.lock());
            shared.work.notify_all();
            written
        };
        match std::thread::Builder::new().name("journal-state".into()).spawn(save) {
            Ok(thread) => {
                #[cfg(test)]
                while self.is_stepped && !thread.is_finished() {
                    std::thread::yield_now();
                }
                let since_segment = header.scan.segment;
                let thread = Some(thread);
                self.state_files.since_bytes = 0;
                let saving =
                    Saving { thread, cancelled, written: None, header, since_segment, has_newer: false };
                self.state_files.saving = Some(saving);
            }
            Err(error) => self.saving_failed(&error),
        }
    }

    /// Takes over what the thread wrote; names the file when what it holds is durable.
    fn end_saving(&mut self) {
        let Some(mut saving) = self.state_files.saving.take() else { return };
        if saving.written.is_none() {
            if !saving.thread.as_ref().is_some_and(JoinHandle::is_finished)
                && !self.shared.saved.load(Ordering::Acquire)
            {
                self.state_files.saving = Some(saving);
                return;
            }
            self.shared.saved.store(false, Ordering::Release);
            let outcome = saving.thread.take().map(JoinHandle::join);
            match outcome.unwrap_or_else(|| Ok(Err(io::Error::other("no thread")))) {
                Ok(Ok(written)) => saving.written = Some(written),
                Ok(Err(error)) => return self.saving_failed(&error),
                Err(_) => {
                    return self.saving_failed(&io::Error::other("the thread panicked (a bug of Flumen)"));
                }
            }
        }
        let order = saving.written.as_ref().map(|written| written.order).unwrap_or(u64::MAX);
        let oldest = self.shared.state.lock().queue.front().map(|queued| queued.order);
        if oldest.is_some_and(|oldest| oldest < order) {
            self.state_files.saving = Some(saving);
            return;
        }
        if let Err(error) = self.name_file(&saving) {
            self.saving_failed(&error);
        }
    }

    fn name_file(&mut self, saving: &Saving) -> io::Result<()> {
        // The commits in the file are durable, and from now on a snapshot says so: should damage take them, they are
        // missed, not cut off as never written while the state has them. It also syncs what is not synced by itself.
        self.snapshot()?;
        let (disk, dir) = (&self.shared.disk, &self.shared.dir);
        disk.rename(&dir.join(UNFINISHED), &dir.join(state_file_name(saving.header.commit)))?;
        if let Err(error) = disk.sync_dir(dir) {
            self.take_back(saving.header.commit);
            return Err(error);
        }
        self.state_files.reserved_bytes = 0;
        let old = self.state_files.newest.replace(saving.header.commit);
        self.state_files.uncovered = saving.has_newer.then_some(saving.since_segment);
        self.state_files.retry_at = None;
        if let Some(old) = old.filter(|old| *old != saving.header.commit)
            && let Err(error) = disk.unlink(&dir.join(state_file_name(old)))
        {
            tracing::warn!(dir = %dir.display(), %error, "an old file of the plugins' state stays behind");
        }
        Ok(())
    }

    /// Removes a file whose name may not last: the one before it stays the newest, and nothing else would remove this one before the
    /// next start. Should the name come back, the next start takes it as it is: complete, and all in it durable.
    fn take_back(&self, commit: u64) {
        // It has replaced one of the same name, which is still the newest.
        if self.state_files.newest == Some(commit) {
            return;
        }
        let path = self.shared.dir.join(state_file_name(commit));
        if let Err(error) = self.shared.disk.unlink(&path) {
            tracing::warn!(path = %path.display(), %error, "a file of the plugins' state stays behind");
        }
    }

    fn saving_failed(&mut self, error: &io::Error) {
        tracing::warn!(dir = %self.shared.dir.display(), %error,
            "the plugins' state was not written to a file of its own: segments stay, and it is tried again");
        // What a failed sync leaves is not to be trusted; what a full disk leaves is the space for the next attempt.
        if error.kind() != io::ErrorKind::StorageFull {
            self.state_files.reserved_bytes = 0;
            let gone = self.shared.disk.unlink(&self.shared.dir.join(UNFINISHED));
            if let Err(error) = gone.or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            }) {
                tracing::warn!(dir = %self.shared.dir.display(), %error, "an unfinished file stays behind");
            }
        }
        self.state_files.retry_at = Some(self.shared.clock.now() + limits::STATE_FILE_RETRY);
    }

    /// Commits were given up that the view has: from now on it is written to no file.
    pub fn give_up_saving(&mut self) {
        self.state_files.is_over = true;
        self.cancel_saving();
    }

    /// At the end of the journal: the thread stops, the next start does without its file.
    pub fn cancel_saving(&mut self) {
        let Some(mut saving) = self.state_files.saving.take() else { return };
        saving.cancelled.store(true, Ordering::Release);
        if saving.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(dir = %self.shared.dir.display(), "writing the plugins' state panicked");
        }
    }
}

/// The file under its unfinished name, complete and synced.
fn write_file(shared: &Shared, header: &StateHeader, cancelled: &AtomicBool) -> io::Result<Written> {
    let path = shared.dir.join(UNFINISHED);
    let file = open_or_create(shared, &path)?;
    let sealer = shared.sealer.as_ref();
    let mut out = Out { file: file.as_ref(), sealer, commit: header.commit, at: 0, synced: 0, blocks: 0 };
    out.write(&header.encode())?;
    let now_ns = shared.clock.wall_ns();
    let mut walk = Walk::default();
    let mut part: Vec<(Arc<str>, Vec<u8>)> = Vec::new();
    loop {
        if cancelled.load(Ordering::Acquire) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        part.clear();
        let goes_on =
            shared.view.view().lock().walk(&mut walk, now_ns, &mut |plugin, op| push(&mut part, plugin, op));
        for (_, payload) in &part {
            out.block(false, payload)?;
        }
        if !goes_on {
            break;
        }
    }
    // Everything in the file was handed in before this.
    let order = shared.state.lock().next_order;
    let blocks = out.blocks;
    out.block(true, &blocks.to_le_bytes())?;
    file.truncate(out.at)?;
    file.sync_data()?;
    Ok(Written { order })
}

fn open_or_create(shared: &Shared, path: &Path) -> io::Result<Box<dyn DiskFile>> {
    match shared.disk.open(path, true) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => shared.disk.create(path),
        other => other,
    }
}

/// Adds an entry to the last block of a part, or begins one.
fn push(part: &mut Vec<(Arc<str>, Vec<u8>)>, plugin: &Arc<str>, op: StateOp<'_>) {
    let has_room =
        |block: &(Arc<str>, Vec<u8>)| block.0 == *plugin && block.1.len() < limits::STATE_BLOCK_BYTES;
    if !part.last().is_some_and(has_room) {
        let mut payload = Vec::new();
        put_blob(&mut payload, plugin.as_bytes());
        part.push((plugin.clone(), payload));
    }
    if let Some((_, payload)) = part.last_mut() {
        encode_op(op, payload);
    }
}

struct Out<'a> {
    file: &'a dyn DiskFile,
    sealer: Option<&'a Sealer>,
    commit: u64,
    at: u64,
    synced: u64,
    blocks: u64,
}

impl Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        write_all_at(self.file, self.at, &mut [IoSlice::new(bytes)])?;
        self.at += bytes.len() as u64;
        if self.at - self.synced >= limits::STATE_SYNC_BYTES {
            self.file.sync_data()?;
            self.synced = self.at;
        }
        Ok(())
    }

    fn block(&mut self, is_end: bool, payload: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(payload.len() + 128);
        match self.sealer {
            Some(sealer) => {
                let sealed = sealer.seal(Piece::State, payload.len(), [payload])?;
                encode_block(is_end, &sealed, self.commit, &mut bytes);
            }
            None => encode_block(is_end, payload, self.commit, &mut bytes),
        }
        self.blocks += 1;
        self.write(&bytes)
    }
}

/// Paths of a journal's state files, the newest first.
pub(super) fn state_files(dir: &Path, names: &[String]) -> Vec<(u64, PathBuf)> {
    let mut files: Vec<(u64, PathBuf)> =
        names.iter().filter_map(|name| Some((state_file_commit(name)?, dir.join(name)))).collect();
    files.sort_by_key(|file| std::cmp::Reverse(file.0));
    files
}

const _: () = assert!(STATE_HEADER_BYTES.is_multiple_of(8));
