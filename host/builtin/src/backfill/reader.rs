//! Reads the files of a backfill and gives what is meant of them to a [`Taker`]: one that puts it, or one that counts.
//!
//! Events are found as tail finds them, from the first byte of a file on, and then left out or not: so a group of lines is the
//! group that tail would make, and has its identity, wherever the range begins. A file is read up to where it ended when the
//! backfill began, and the event that began before that to its end; what was written behind that is tail's.
//!
//! Whether a file is still what it was is looked at as tail does, with every read; a file that is not ends the backfill with the
//! reason. A file that was renamed is found in its directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow_array::{Array, StringArray, UInt32Array};
use flumen_event::Batch;
use flumen_pipeline::plan::BatchPlan;
use flumen_pipeline::{ComponentMetrics, Emission, Quarantined, Stopped};
use thiserror::Error;

use super::begin::{hex, unreadable};
use super::job::{Bounds, Cursor, Job, JobFile, NOTES_MAX};
use super::reading::Reading;
use super::time::Clock;
use crate::sources::tail::chunk::{Chunk, Cutter};
use crate::sources::tail::file::{Change, TailFile};
use crate::sources::tail::input::Input;
use crate::sources::tail::limits::CHUNK_BYTES;
use crate::sources::tail::lines::{End, Splitter};
use crate::sources::tail::out::{CONTINUED_HEADER, Out};
use crate::sources::tail::position::{Inode, Mark, Record, key};

/// Why a backfill does not go on.
#[derive(Debug, Error)]
pub(super) enum Trouble {
    /// The pipeline stops.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// A file cannot be read, or is another one now.
    #[error("{0}")]
    File(String),
}

/// Where events go.
pub(super) trait Taker {
    /// Takes events, and how far the backfill is with them.
    fn take(&mut self, events: Emission, cursor: &Cursor) -> Result<(), Trouble>;

    /// So many bytes were read.
    fn has_read(&mut self, bytes: usize);

    /// A file begins.
    fn begins(&mut self, file: &JobFile, cursor: &Cursor);

    /// Waits so long for the rest of a last line, which its writer may be at. False: it is not waited for.
    fn wait(&mut self, rest: Duration) -> Result<bool, Trouble>;

    /// An error, if whoever takes stops.
    fn look(&self) -> Result<(), Trouble>;
}

/// See the module.
pub(super) struct Reader<'a> {
    job: &'a Job,
    reading: &'a Reading,
    cursor: Cursor,
    cutter: Cutter<'a>,
    out: Out,
    buffer: Vec<u8>,
}

impl<'a> Reader<'a> {
    /// Goes on at `cursor`.
    pub(super) fn new(
        job: &'a Job,
        reading: &'a Reading,
        cursor: Cursor,
        batch: BatchPlan,
        metrics: Arc<ComponentMetrics>,
    ) -> Reader<'a> {
        let splitter = Splitter {
            max_line: reading.max_line,
            long: reading.long_lines,
            multiline: reading.multiline.clone(),
            metrics,
        };
        let cutter = Cutter { splitter, codec: reading.codec.as_ref() };
        let out = Out::new(job.words.source.as_str().into(), batch, reading.file_header);
        Reader { job, reading, cursor, cutter, out, buffer: Vec::new() }
    }

    /// Reads all files to their ends. `positions`: those of the backfill. Returns what it did.
    pub(super) fn run(
        mut self,
        positions: &[(Vec<u8>, Vec<u8>)],
        taker: &mut dyn Taker,
    ) -> Result<Cursor, Trouble> {
        let job = self.job;
        self.reading.check(&job.words.source, job.bounds).map_err(Trouble::File)?;
        while let Some(which) = job.files.get(self.cursor.file) {
            let value = positions.iter().find(|(known, _)| *known == key(which.stream));
            let record = value.map(|(_, value)| Record::decode(value)).transpose();
            let record = record.map_err(|error| Trouble::File(format!("{}: {error}", which.path)))?;
            taker.begins(which, &self.cursor);
            let mut file = open(which, record)?;
            self.read(which, &mut file, taker)?;
            self.give(which, taker)?;
            self.end(which, taker)?;
        }
        Ok(self.cursor)
    }

    fn read(&mut self, which: &JobFile, file: &mut TailFile, taker: &mut dyn Taker) -> Result<(), Trouble> {
        while file.offset < which.end() && !self.is_behind(file.offset) {
            taker.look()?;
            let read = file.read(&mut self.buffer, CHUNK_BYTES);
            if !matches!(read, Ok(Ok(_))) {
                // What was read before counts.
                self.give(which, taker)?;
            }
            let new = match read {
                Err(error) => return Err(Trouble::File(self.broken(which, file, &error))),
                Ok(Err(change)) => return Err(Trouble::File(self.changed(which, file, change))),
                Ok(Ok(new)) => new,
            };
            if new > 0 {
                taker.has_read(new);
                self.split(which, file, new, End::Open, taker)?;
                continue;
            }
            if file.pending() == 0 {
                break;
            }
            if let Some(rest) = self.rest_of_quiet(file)
                && taker.wait(rest)?
            {
                continue;
            }
            self.split(which, file, 0, End::Event, taker)?;
            break;
        }
        Ok(())
    }

    /// How long a last line without end may still grow; `None`: nobody writes it.
    fn rest_of_quiet(&self, file: &TailFile) -> Option<Duration> {
        let input = file.input.as_ref().filter(|_| !file.kind.is_archive())?;
        let quiet = input.metadata().ok()?.modified().ok()?.elapsed().ok()?;
        self.reading.last_line_timeout.checked_sub(quiet).filter(|rest| !rest.is_zero())
    }

    /// Whether nothing from this byte on is meant.
    fn is_behind(&self, offset: u64) -> bool {
        self.job.bounds.to_byte.is_some_and(|to| to <= offset)
    }

    /// Splits what is held and `new` bytes behind it (0: the held bytes alone).
    fn split(
        &mut self,
        which: &JobFile,
        file: &mut TailFile,
        new: usize,
        end: End,
        taker: &mut dyn Taker,
    ) -> Result<(), Trouble> {
        let mut chunk = Chunk::new(file, &mut self.buffer, new, end, &mut self.out);
        while chunk.fills(&self.cutter, file, &self.buffer, &mut self.out) {
            self.give(which, taker)?;
        }
        Ok(())
    }

    /// Hands on what is meant of the events so far.
    fn give(&mut self, which: &JobFile, taker: &mut dyn Taker) -> Result<(), Trouble> {
        if self.out.is_empty() {
            return Ok(());
        }
        let emission = self.out.take().map_err(|error| Trouble::File(error.to_string()))?;
        let chosen = self.chosen(which, emission)?;
        let rejected: usize = chosen.quarantined.iter().map(|group| group.batch.rows()).sum();
        if chosen.batch.is_empty() && rejected == 0 {
            // Nothing to put: how far it is read goes with the next events.
            return Ok(());
        }
        self.cursor.events += chosen.batch.rows() as u64;
        self.cursor.bytes += chosen.batch.body_bytes() as u64;
        self.cursor.quarantined += rejected as u64;
        taker.take(chosen, &self.cursor)
    }

    /// A file is done: its position goes, and the cursor is at the next one.
    fn end(&mut self, which: &JobFile, taker: &mut dyn Taker) -> Result<(), Trouble> {
        if !is_there(Path::new(&which.path), &which.inode(), true) {
            self.note(format!(
                "{} was renamed or replaced meanwhile: the file that it had been was read to its end",
                which.path
            ));
        }
        self.cursor.file += 1;
        (self.cursor.seen, self.cursor.last_time) = (None, None);
        let positions = vec![(key(which.stream), Vec::new())];
        taker.take(Emission { batch: Batch::empty(), positions, quarantined: Vec::new() }, &self.cursor)
    }

    fn note(&mut self, note: String) {
        let notes = &mut self.cursor.notes;
        match notes.len() {
            NOTES_MAX => notes.push("and so were other files".to_owned()),
            many if many > NOTES_MAX => {}
            _ => notes.push(note),
        }
    }

    /// The events of the range, in the order of the file: those that are to go to quarantine stand between the others.
    fn chosen(&mut self, which: &JobFile, emission: Emission) -> Result<Emission, Trouble> {
        let Emission { batch, positions, quarantined } = emission;
        let clock = which.clock(self.job.words.utc);
        let ends = self.reading.codec.is_some();
        let mut choice =
            Choice { bounds: self.job.bounds, limit: which.end(), ends, clock, cursor: &mut self.cursor };
        let mut groups = quarantined.into_iter().peekable();
        let (mut rows, mut rejected) = (Vec::new(), Vec::new());
        let continued = batch.header(CONTINUED_HEADER);
        for row in 0..batch.rows() {
            let position = batch.position().value(row);
            while let Some(group) = groups.next_if(|group| first_position(group) < position) {
                rejected.extend(choice.group(group)?);
            }
            if choice.has(position, batch.body().value(row), is_set(continued, row)) {
                rows.push(u32::try_from(row).unwrap_or(u32::MAX));
            }
        }
        for group in groups {
            rejected.extend(choice.group(group)?);
        }
        let batch = taken(&batch, rows)?;
        Ok(Emission { batch, positions, quarantined: rejected })
    }

    fn so_far(&self) -> String {
        format!("{} events were put, and stay", self.cursor.events)
    }

    fn broken(&self, which: &JobFile, file: &TailFile, error: &std::io::Error) -> String {
        let offset = file.read_offset;
        format!(
            "{} (at byte {offset} of its content). {}; once it can be read, the same command goes on",
            unreadable(&which.path, error),
            self.so_far()
        )
    }

    fn changed(&self, which: &JobFile, file: &TailFile, change: Change) -> String {
        let what = match change {
            Change::Truncated | Change::None => "was truncated",
            Change::Replaced => "was overwritten: it begins with other bytes",
            Change::Ambiguous => "was overwritten: the bytes that were read last are others now",
        };
        format!(
            "{} {what} after it was read up to byte {}. {}; what it held behind that is not in it any more. Where there is a \
             copy, name it with --from-byte {}; --forget ends this backfill",
            which.path,
            file.offset,
            self.so_far(),
            file.offset
        )
    }
}

/// Which events are meant.
struct Choice<'a> {
    bounds: Bounds,
    /// Events behind it are tail's.
    limit: u64,
    /// Positions are behind the last byte of their event.
    ends: bool,
    clock: Clock,
    cursor: &'a mut Cursor,
}

impl Choice<'_> {
    fn has(&mut self, position: u64, body: &[u8], is_continued: bool) -> bool {
        if self.ends {
            let end = end_of(position);
            return end <= self.limit && self.bounds.has_end(end);
        }
        if self.bounds.has_times()
            && !is_continued
            && let Some(time) = self.clock.of_line(first_line(body), &mut self.cursor.seen)
        {
            self.cursor.last_time = Some(time);
        }
        position < self.limit && self.bounds.has_byte(position) && self.bounds.has_time(self.cursor.last_time)
    }

    /// What is meant of a group that goes to quarantine.
    fn group(&mut self, group: Quarantined) -> Result<Option<Quarantined>, Trouble> {
        let Quarantined { batch, mut reasons, by, hash, rejected } = group;
        let mut rows = Vec::new();
        let mut keeps = Vec::with_capacity(batch.rows());
        for row in 0..batch.rows() {
            let is_meant = self.has(batch.position().value(row), batch.body().value(row), false);
            if is_meant {
                rows.push(u32::try_from(row).unwrap_or(u32::MAX));
            }
            keeps.push(is_meant);
        }
        let mut keeps = keeps.into_iter();
        reasons.retain(|_| keeps.next().unwrap_or(true));
        let batch = taken(&batch, rows)?;
        Ok((!batch.is_empty()).then_some(Quarantined { batch, reasons, by, hash, rejected }))
    }
}

/// The rows of a batch; the batch itself, if these are all.
fn taken(batch: &Batch, rows: Vec<u32>) -> Result<Batch, Trouble> {
    match rows.len() {
        0 => Ok(Batch::empty()),
        all if all == batch.rows() => Ok(batch.clone()),
        _ => batch.take(&UInt32Array::from(rows)).map_err(|error| Trouble::File(error.to_string())),
    }
}

fn first_position(group: &Quarantined) -> u64 {
    group.batch.position().values().first().copied().unwrap_or_default()
}

fn is_set(column: Option<&StringArray>, row: usize) -> bool {
    column.is_some_and(|column| column.is_valid(row))
}

fn first_line(body: &[u8]) -> &[u8] {
    memchr::memchr(b'\n', body).and_then(|end| body.get(..end)).unwrap_or(body)
}

/// Where the bytes of a decoded event end: see [`flumen_pipeline::codec::further_position`].
fn end_of(position: u64) -> u64 {
    if position >> 63 == 0 { position } else { (position & !(1 << 63)) >> 16 }
}

/// Opens a file where it was left, and looks whether it still is what it was.
fn open(which: &JobFile, record: Option<Record>) -> Result<TailFile, Trouble> {
    let done = record.as_ref().map_or(0, |record| record.offset);
    let path = place_of(which, done)?;
    let unread = |error: std::io::Error| Trouble::File(unreadable(&path.to_string_lossy(), &error));
    let (mut input, meta) = Input::open(&path, which.kind()).map_err(unread)?;
    let is_fresh = record.is_none();
    let mut file = match record {
        Some(record) => TailFile::resumed(which.stream, record),
        None => TailFile::new(path.clone(), which.inode()),
    };
    file.path.clone_from(&path);
    file.kind = which.kind();
    file.inode = Inode::of(&meta);
    file.label = which.label.as_str().into();
    file.stream = Some(which.stream);
    file.opened_bytes = meta.len();
    let change = if meta.len() < which.bytes {
        Change::Truncated
    } else if !file.kind.is_archive() {
        let head = input.look(0, usize::from(which.head_len)).map_err(unread)?;
        match hex(&Mark::of(&head)) == which.head_hash {
            true => file.verify(&input, meta.len()).map_err(unread)?,
            false => Change::Replaced,
        }
    } else if meta.len() != which.bytes {
        Change::Replaced
    } else if is_fresh {
        Change::None
    } else {
        file.skip(&mut input, &mut vec![0; CHUNK_BYTES]).map_err(unread)?
    };
    if change != Change::None {
        return Err(Trouble::File(format!(
            "{} is not what it was when this backfill began: it was truncated or overwritten. Its first {done} bytes were done; \
             where there is a copy of the rest, name it with --from-byte {done}; --forget ends this backfill",
            path.display()
        )));
    }
    file.input = Some(input);
    Ok(file)
}

/// Where the file is now: at its path, or under another name in its directory.
fn place_of(which: &JobFile, done: u64) -> Result<PathBuf, Trouble> {
    let (path, inode) = (PathBuf::from(&which.path), which.inode());
    if is_there(&path, &inode, true) {
        return Ok(path);
    }
    let beside = path.parent().and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten();
    let found = beside.flatten().map(|entry| entry.path()).find(|path| is_there(path, &inode, false));
    found.ok_or_else(|| {
        Trouble::File(format!(
            "{} is another file now, or none, and the one that this backfill began with is not in its directory. Its first \
             {done} bytes were done: name it as it is called now, with --from-byte {done} (of the content, if it is an archive \
             now); --forget ends this backfill",
            which.path
        ))
    })
}

/// Whether it may be that file; its bytes are compared when it is opened. A device may have another number since (after a reboot).
fn is_there(path: &Path, inode: &Inode, is_same_path: bool) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| {
        let found = Inode::of(&meta);
        found.may_be(inode) || found.may_be_renumbered(inode, is_same_path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_decoded_event_is_in_its_position() {
        let further = flumen_pipeline::codec::further_position(1_234, 7);
        assert_eq!((end_of(1_234), end_of(further)), (1_234, 1_234));
        assert_eq!(first_line(b"one\ntwo"), b"one");
        assert_eq!(first_line(b"one"), b"one");
    }
}
