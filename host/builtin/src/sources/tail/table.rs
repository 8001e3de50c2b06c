//! Which files there are: what a walk found, set against what is known.
//!
//! Files are recognised by inode, never by path. A known file that no glob matches any more is
//! looked for by its inode (`search`); while it exists it is read on.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use flumen_pipeline::{Emission, Metric, SourceError};

use super::file::{FileId, Presence, TailFile};
use super::input::Input;
use super::limits::{FORGET_AFTER, FORGET_UNMOUNTED_AFTER, HEAD_BYTES, RESCAN_MIN, RESCAN_SHARE};
use super::position::{Inode, STARTED_KEY};
use super::search::home;
use super::tailer::Tailer;

/// How often the globs may be walked, by what walks cost.
///
/// The clock counts what others did meanwhile as well: a thread that stands still for half a second within a walk would wait
/// a hundred seconds for the next one. It hardly does so in two walks running, so the shorter of the last two is what a walk costs.
/// The very first costs nothing: it finds nothing in the kernel's caches.
#[derive(Debug, Default)]
pub(super) struct Pace {
    last: Duration,
    cost: Duration,
}

impl Pace {
    fn walked(&mut self, took: Duration) {
        self.cost = took.min(self.last);
        self.last = took;
    }

    /// Shortest time from one walk to the next.
    fn least(&self) -> Duration {
        RESCAN_MIN.max(self.cost * RESCAN_SHARE)
    }
}

impl Tailer<'_> {
    pub(super) fn add(&mut self, file: TailFile) -> FileId {
        self.next_id += 1;
        let id = self.next_id;
        self.by_inode.insert(file.inode, id);
        self.by_path.insert(file.path.clone().into_os_string(), id);
        self.files.insert(id, file);
        id
    }

    /// Time until the globs are walked again.
    pub(super) fn scan_due_in(&self) -> Duration {
        let Some(at) = self.scanned_at else { return Duration::ZERO };
        let least = self.pace.least();
        let wait = if self.scan_wanted { least } else { self.settings.rescan_interval.max(least) };
        wait.saturating_sub(at.elapsed())
    }

    /// Walks the globs and sets what they find against what is known.
    pub(super) fn scan(&mut self) {
        let start = Instant::now();
        self.scan_wanted = false;
        let found = self.settings.globs.walk();
        self.watch.set(&found.directories);
        for (path, error) in &found.problems {
            self.complaints.file(path, error);
        }
        self.scans += 1;
        let mut unknown = Vec::new();
        for (path, meta) in &found.files {
            let path = Path::new(path);
            match self.found(path, meta, &found.files) {
                Some(id) => self.look(id, meta, start),
                None => unknown.push((path, meta)),
            }
        }
        self.take_in(&unknown, &found.files, start);
        let missing = self.files.iter().filter(|(_, file)| file.found_by != self.scans);
        let missing: Vec<FileId> = missing.map(|(id, _)| *id).collect();
        self.locate(&missing, &found.directories);
        self.forget(&missing);
        self.scanned_at = Some(Instant::now());
        self.pace.walked(start.elapsed());
    }

    /// The file that an inode is known as.
    pub(super) fn known(&self, inode: &Inode) -> Option<FileId> {
        let unborn = Inode { birth: None, ..*inode };
        self.by_inode.get(inode).or_else(|| self.by_inode.get(&unborn)).copied()
    }

    /// The file at a path, if its inode is known.
    fn found(&mut self, path: &Path, meta: &Metadata, all: &BTreeMap<OsString, Metadata>) -> Option<FileId> {
        let inode = Inode::of(meta);
        let id = self.known(&inode)?;
        let file = self.files.get_mut(&id)?;
        let mut is_at_path = file.path.as_os_str() == path.as_os_str();
        let is_linked_twice = || all.get(file.path.as_os_str()).is_some_and(|it| Inode::of(it) == inode);
        if !is_at_path && !is_linked_twice() {
            if file.presence == Presence::Matched {
                self.context.metrics.add(Metric::SourceRotations, 1);
            }
            let before = std::mem::replace(&mut file.path, path.to_path_buf());
            file.real = match &file.input {
                Some(input) => file.real_path_of(input),
                // Where a position says that it was: `path` may be a link that leads elsewhere later.
                None if matches!(file.presence, Presence::Gone(_)) => Some(before),
                None => None,
            };
            is_at_path = true;
        }
        file.presence = Presence::Matched;
        file.looked_for = false;
        file.found_by = self.scans;
        if is_at_path && self.by_path.get(path.as_os_str()) != Some(&id) {
            self.by_path.insert(path.as_os_str().to_owned(), id);
        }
        Some(id)
    }

    /// Takes in what a walk found and nobody knows: known files on a device that has another number now,
    /// and new ones. All known inodes of the walk have been found before, so none of those is taken for another.
    fn take_in(&mut self, unknown: &[(&Path, &Metadata)], all: &BTreeMap<OsString, Metadata>, now: Instant) {
        if unknown.is_empty() {
            return;
        }
        let mut away: HashMap<u64, Vec<FileId>> = HashMap::new();
        for (id, file) in self.files.iter().filter(|(_, file)| file.found_by != self.scans) {
            away.entry(file.inode.ino).or_default().push(*id);
        }
        for (path, meta) in unknown {
            let back = away.get(&meta.ino()).and_then(|away| self.back_from(away, path, meta));
            if let Some(id) = back {
                self.renumber(id, Inode::of(meta));
            }
            let id = self.found(path, meta, all).unwrap_or_else(|| self.add_new(path, meta));
            self.look(id, meta, now);
        }
    }

    /// Which of these files, that were not found, is the one at a path, on a device with another number.
    fn back_from(&self, away: &[FileId], path: &Path, meta: &Metadata) -> Option<FileId> {
        let inode = Inode::of(meta);
        let back = away.iter().filter_map(|id| {
            let file = self.files.get(id).filter(|file| file.found_by != self.scans)?;
            let is_same_path = file.path == path
                || file.real_path() == path
                || std::fs::canonicalize(path).is_ok_and(|real| real == file.real_path());
            let is_where_it_was =
                || std::fs::metadata(&file.path).is_ok_and(|meta| Inode::of(&meta).may_be(&file.inode));
            let is_it = self.is_renumbered(file, &inode, is_same_path) && !is_where_it_was();
            is_it.then_some((!is_same_path, *id))
        });
        back.min().map(|(_, id)| id)
    }

    fn add_new(&mut self, path: &Path, meta: &Metadata) -> FileId {
        let mut file = TailFile::new(path.to_path_buf(), Inode::of(meta));
        file.found_by = self.scans;
        let id = self.add(file);
        self.fresh.push(id);
        id
    }

    /// The file that was at the path of a new one before it, and may end within an event. Files are in
    /// the order of their births, so no two of them wait for each other.
    pub(super) fn predecessor(&self, id: FileId) -> Option<FileId> {
        let new = self.files.get(&id)?;
        let order = |id: FileId, file: &TailFile| (file.inode.birth, id);
        let before = self.files.iter().filter(|(other, file)| {
            file.label == new.label && !file.kind.is_archive() && order(**other, file) < order(id, new)
        });
        before.max_by_key(|(other, file)| order(**other, file)).map(|(other, _)| *other)
    }

    /// Decides by its metadata, which are of `now` or younger, whether a file has something to read.
    pub(super) fn look(&mut self, id: FileId, meta: &Metadata, now: Instant) {
        let Some(file) = self.files.get_mut(&id) else { return };
        file.seen_bytes = meta.len();
        let modified = meta.modified().unwrap_or(std::time::UNIX_EPOCH);
        let changed = file.modified != Some(modified);
        let due = file.retry_at.is_none_or(|at| at <= now);
        if due {
            // A change that comes before the file may be tried again is kept until then.
            file.modified = Some(modified);
        }
        let ready = if file.finished {
            meta.len() != file.archive_bytes && due
        } else if file.kind.is_archive() && file.archive_bytes > 0 {
            // It broke off: whoever repairs it need not change its length.
            (changed || meta.len() != file.archive_bytes) && due
        } else if file.kind.is_archive() {
            file.input.is_none() && due && meta.len() > 0
        } else {
            (changed || meta.len() != file.read_offset) && due && (meta.len() > 0 || file.read_offset > 0)
        };
        if ready {
            self.ready.insert(id);
        }
    }

    /// Lets go of files that are gone for good, and after a while of their positions.
    fn forget(&mut self, missing: &[FileId]) {
        for id in missing {
            let Some(file) = self.files.get(id) else { continue };
            let Presence::Gone(since) = file.presence else { continue };
            let kept = file.input.is_some() || file.pending() > 0 || file.handed_over;
            // A directory that is not there now (an unmounted disk) may come back with its files.
            // One of a link is there as long as the link's is: what it led to goes with its files (a pod).
            let is_own = |meta: Metadata| meta.dev() == file.inode.dev;
            let is_linked =
                || file.path.parent().and_then(|at| std::fs::metadata(at).ok()).is_some_and(is_own);
            let mounted = home(file).is_some_and(|(device, _)| device == file.inode.dev) || is_linked();
            let after = if mounted { FORGET_AFTER } else { FORGET_UNMOUNTED_AFTER };
            if kept || (file.stream.is_some() && since.elapsed() < after) {
                continue;
            }
            if let Some(stream) = file.stream {
                self.out.note(stream, Vec::new());
            }
            self.remove(*id);
        }
    }

    pub(super) fn remove(&mut self, id: FileId) {
        let Some(file) = self.files.remove(&id) else { return };
        if self.by_inode.get(&file.inode) == Some(&id) {
            self.by_inode.remove(&file.inode);
        }
        self.by_path.retain(|_, at| *at != id);
        self.ready.remove(&id);
        self.waiting.remove(&id);
        self.open.remove(&id);
    }

    pub(super) fn close(&mut self, id: FileId) {
        if let Some(file) = self.files.get_mut(&id) {
            file.close();
        }
        self.open.remove(&id);
    }

    /// Commits that new files exist before their first event, all of a walk at once: a file that is
    /// rotated out of the globs is found again only if there is a record of it.
    pub(super) fn announce_all(&mut self) -> Result<(), SourceError> {
        let fresh = std::mem::take(&mut self.fresh);
        let announced = fresh.into_iter().filter(|id| self.announce(*id)).count();
        if announced > 0 { self.emit() } else { Ok(()) }
    }

    /// Names the stream of a new plain file and notes it. False if there is nothing to note.
    pub(super) fn announce(&mut self, id: FileId) -> bool {
        let Some(file) = self.files.get_mut(&id) else { return false };
        if file.stream.is_some() || file.replaces.is_some() || file.kind.is_archive() {
            return false;
        }
        // What cannot be opened now is announced when it can be read.
        match file.announce(&self.context.name) {
            Ok(()) => {
                file.note(&mut self.out);
                true
            }
            Err(_) => false,
        }
    }

    /// Keeps within `max_open_files`: the file that grew longest ago is closed. One that has no name
    /// any more is not: it could never be opened again.
    pub(super) fn make_room(&mut self) {
        if self.open.len() < self.settings.max_open_files {
            return;
        }
        let closable = self.open.iter().filter_map(|id| self.files.get(id).map(|file| (*id, file)));
        let closable = closable.filter(|(_, file)| {
            !matches!(file.presence, Presence::Gone(_)) && !file.kind.is_archive() && nlink(file) > 0
        });
        if let Some((id, _)) = closable.min_by_key(|(_, file)| (!file.at_end, file.grown)) {
            self.close(id);
        }
    }

    /// The first start with `start = "end"`: files that are there count as read.
    pub(super) fn skip_to_ends(&mut self) -> Result<(), SourceError> {
        for id in std::mem::take(&mut self.ready) {
            let Some(file) = self.files.get_mut(&id) else { continue };
            match file.skip_to_end(&self.context.name) {
                Ok(()) => file.note(&mut self.out),
                // Not skipped: it is read from its beginning when it can be read.
                Err(error) => self.complaints.file(&file.path.clone(), &error),
            }
        }
        let Emission { batch, mut positions, quarantined } = self.out.take()?;
        positions.push((STARTED_KEY.to_vec(), b"1".to_vec()));
        self.context.emit(Emission { batch, positions, quarantined })?;
        Ok(())
    }
}

fn nlink(file: &TailFile) -> u64 {
    file.input.as_ref().and_then(|input| input.metadata().ok()).map_or(0, |meta| meta.nlink())
}

impl TailFile {
    /// Names the stream by the first bytes that are there. (An empty file is announced too: it may get
    /// its first bytes after it was rotated away.)
    fn announce(&mut self, source: &str) -> io::Result<()> {
        let opened;
        let input = match &self.input {
            Some(input) => input,
            None => {
                let (input, meta) = Input::open(&self.path, self.kind)?;
                if !Inode::of(&meta).may_be(&self.inode) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                opened = input;
                &opened
            }
        };
        let head = input.look(0, HEAD_BYTES)?;
        self.real = self.real_path_of(input);
        self.name_stream(source, &head);
        Ok(())
    }

    /// Counts everything up to the last newline as read.
    fn skip_to_end(&mut self, source: &str) -> io::Result<()> {
        let (input, meta) = Input::open(&self.path, self.kind)?;
        if self.kind.is_archive() {
            self.finished = true;
            self.archive_bytes = meta.len();
            self.name_stream(source, b"");
            return Ok(());
        }
        self.real = self.real_path_of(&input);
        self.begin_at(&input, last_line_start(&input, meta.len())?, source)
    }
}

/// The first byte after the last newline; the file's length if there is none near its end.
fn last_line_start(input: &Input, len: u64) -> io::Result<u64> {
    const NEAR: usize = 64 << 10;
    let from = len.saturating_sub(NEAR as u64);
    let near = input.look(from, NEAR)?;
    Ok(match memchr::memrchr(b'\n', &near) {
        Some(at) => from + at as u64 + 1,
        None => from + near.len() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_in_which_the_machine_stood_still_does_not_put_the_next_one_off() {
        let ms = Duration::from_millis;
        let mut pace = Pace::default();
        let mut least_after = |took| {
            pace.walked(took);
            pace.least()
        };
        assert_eq!(least_after(ms(2_000)), RESCAN_MIN);
        assert_eq!(least_after(ms(1)), ms(1) * RESCAN_SHARE);
        assert_eq!(least_after(ms(500)), ms(1) * RESCAN_SHARE);
        assert_eq!(least_after(ms(1)), ms(1) * RESCAN_SHARE);
        // Files that became many cost what they cost.
        least_after(ms(30));
        assert_eq!(least_after(ms(40)), ms(30) * RESCAN_SHARE);
    }
}
