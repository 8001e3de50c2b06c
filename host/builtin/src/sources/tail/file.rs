//! One incarnation of a file: what it is, how far it is read, and whether it still is what it was.
//!
//! In memory a file has the bytes that were read but not taken as events (`held`), so a truncation
//! or an unlink cannot take back what was read. Every read asks for the last bytes before its
//! offset as well, in the same system call, and compares them: a file that was truncated and has
//! grown past the offset again between two looks is noticed before any of its bytes is taken.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::input::Input;
use super::limits::{HEAD_BYTES, TAIL_BYTES};
use super::lines::State;
use super::out::Out;
use super::position::{Inode, Kind, Mark, Record};

/// Number of a [`TailFile`] in this run.
pub type FileId = u64;

/// Where a file is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// A glob matches its path.
    Matched,
    /// It was renamed to a path that no glob matches.
    Renamed,
    /// No name of it is known; it may still be open.
    Gone(Instant),
}

/// What became of a file since it was read last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The same, perhaps longer.
    None,
    /// Shorter than what was read.
    Truncated,
    /// It begins with other bytes.
    Replaced,
    /// It begins with the same bytes, but those before the offset are different.
    Ambiguous,
}

/// The unfinished event of the file before this one, moved in front of this one's first line.
#[derive(Debug, Clone)]
pub struct Prefix {
    /// Where it was read.
    pub stream: u64,
    /// Where it begins there.
    pub position: u64,
    /// Its bytes: the first so many of what is held.
    pub len: usize,
    /// The position of the file before, when this event is emitted.
    pub record: Vec<u8>,
    /// That file, which waits until then.
    pub from: Option<FileId>,
}

/// See the module.
pub struct TailFile {
    /// What the file system calls it.
    pub inode: Inode,
    /// How it is read.
    pub kind: Kind,
    /// Where it is.
    pub path: PathBuf,
    /// Where it was when it was opened last, without the links that `path` leads through; none if that is
    /// `path`. A hint for the search, when the links lead elsewhere.
    pub real: Option<PathBuf>,
    /// Its `file` header.
    pub label: Arc<str>,
    /// Where it is, in kind.
    pub presence: Presence,
    /// It is gone, and was looked for by its inode in all directories where it may be.
    pub looked_for: bool,
    /// The directory that it was in, as device and inode, when it was looked for.
    pub home: Option<(u64, u64)>,
    /// The last walk that found it.
    pub found_by: u64,
    /// Its stream; none before its first byte.
    pub stream: Option<u64>,
    /// How often the inode began anew.
    pub generation: u32,
    /// The stream of the generation before, whose record goes when this one's comes.
    pub replaces: Option<u64>,
    /// First byte that is not taken.
    pub offset: u64,
    /// First byte that is not read.
    pub read_offset: u64,
    /// Up to [`TAIL_BYTES`] bytes before `offset`, a prefix, and the bytes from `offset` to `read_offset`.
    pub held: Vec<u8>,
    /// How many of `held` are before `offset`.
    pub tail_len: usize,
    /// False after a restart, until the bytes before `offset` have been compared and loaded.
    pub verified: bool,
    /// How far the held bytes have been looked at.
    pub state: State,
    /// See [`Prefix`].
    pub prefix: Option<Prefix>,
    /// It appeared in this run, and has not asked the file before it for an unfinished event.
    pub joins: bool,
    /// It gave its unfinished event to its successor and waits.
    pub handed_over: bool,
    pub(super) head: Mark,
    pub(super) head_bytes: Vec<u8>,
    pub(super) tail: Mark,
    /// Open, if it is.
    pub input: Option<Input>,
    /// When it grew last.
    pub grown: Instant,
    /// It was read to its end, and nothing has come since.
    pub at_end: bool,
    /// An archive that is done.
    pub finished: bool,
    /// Bytes of the archive when it was opened to be read to its end, or to its damage.
    pub archive_bytes: u64,
    /// Bytes of the archive when it was opened.
    pub opened_bytes: u64,
    /// When the file may be tried again.
    pub retry_at: Option<Instant>,
    /// Modification time when it was looked at last.
    pub modified: Option<SystemTime>,
    /// Its length then.
    pub seen_bytes: u64,
    /// An archive that looked like a known file and is not, or has taken its place.
    pub own: bool,
    /// An archive with the content of a file that is still there.
    pub twin: Option<FileId>,
}

impl TailFile {
    /// A file that was never seen.
    pub fn new(path: PathBuf, inode: Inode) -> TailFile {
        let label: Arc<str> = path.to_string_lossy().into();
        TailFile {
            kind: Kind::of(&path),
            inode,
            path,
            real: None,
            label,
            presence: Presence::Matched,
            looked_for: false,
            home: None,
            found_by: 0,
            stream: None,
            generation: 0,
            replaces: None,
            offset: 0,
            read_offset: 0,
            held: Vec::new(),
            tail_len: 0,
            verified: true,
            state: State::default(),
            prefix: None,
            joins: true,
            handed_over: false,
            head: Mark::default(),
            head_bytes: Vec::new(),
            tail: Mark::default(),
            input: None,
            grown: Instant::now(),
            at_end: false,
            finished: false,
            archive_bytes: 0,
            opened_bytes: 0,
            retry_at: None,
            modified: None,
            seen_bytes: 0,
            own: false,
            twin: None,
        }
    }

    /// A file with a committed position.
    pub fn resumed(stream: u64, record: Record) -> TailFile {
        let mut file = TailFile::new(record.path, record.inode);
        file.kind = record.kind;
        file.label = record.label.into();
        file.presence = Presence::Gone(Instant::now());
        file.joins = record.offset == 0;
        file.stream = Some(stream);
        file.generation = record.generation;
        file.offset = record.offset;
        file.read_offset = record.offset;
        file.verified = false;
        file.state = State::resumed(record.mid_line, record.skip_line);
        file.head = record.head;
        file.tail = record.tail;
        file.finished = record.finished;
        file.archive_bytes = record.archive_bytes;
        file
    }

    /// What is committed with the events taken so far.
    pub fn record(&self) -> Record {
        Record {
            kind: self.kind,
            mid_line: self.state.mid_line,
            skip_line: self.state.skip_line,
            finished: self.finished,
            generation: self.generation,
            inode: self.inode,
            offset: self.offset,
            archive_bytes: self.archive_bytes,
            head: self.head,
            tail: self.tail,
            path: self.real_path().to_path_buf(),
            label: self.label.to_string(),
        }
    }

    /// Where it is, without links on the way, as far as that is known.
    pub fn real_path(&self) -> &Path {
        self.real.as_deref().unwrap_or(&self.path)
    }

    /// Bytes read that no event has taken.
    pub fn pending(&self) -> usize {
        self.held.len().saturating_sub(self.tail_len)
    }

    /// The head's fingerprint.
    pub fn head(&self) -> Mark {
        self.head
    }

    /// The fingerprint of the bytes before `offset`.
    pub fn tail(&self) -> Mark {
        self.tail
    }

    /// Begins anew from the first byte, as another stream. Events not taken become `prefix`.
    pub fn restart(&mut self) {
        self.replaces = self.stream.take().or(self.replaces);
        self.generation = self.generation.wrapping_add(1);
        self.begin_at_zero();
    }

    pub(super) fn begin_at_zero(&mut self) {
        self.offset = 0;
        self.read_offset = 0;
        self.held.clear();
        self.tail_len = 0;
        self.verified = true;
        self.state = State::default();
        self.prefix = None;
        self.head = Mark::default();
        self.head_bytes.clear();
        self.tail = Mark::default();
        self.finished = false;
        self.at_end = false;
        self.input = self.input.take().filter(|input| matches!(input, Input::Plain(_)));
    }

    /// Names the stream by what is known of it now; it keeps this name from then on.
    pub fn name_stream(&mut self, source: &str, first_bytes: &[u8]) -> u64 {
        if let Some(stream) = self.stream {
            return stream;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"flumen tail stream 1");
        hasher.update(&(source.len() as u64).to_le_bytes());
        hasher.update(source.as_bytes());
        for number in [self.inode.dev, self.inode.ino, self.inode.birth.unwrap_or(i64::MIN).cast_unsigned()] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&self.generation.to_le_bytes());
        hasher.update(first_bytes.get(..HEAD_BYTES).unwrap_or(first_bytes));
        let mut id = [0; 8];
        hasher.finalize_xof().fill(&mut id);
        *self.stream.insert(u64::from_le_bytes(id))
    }

    /// Reads up to `chunk` more bytes: `buffer` gets what is held, and after it what is new.
    pub fn read(&mut self, buffer: &mut Vec<u8>, chunk: usize) -> io::Result<Result<usize, Change>> {
        let held = self.held.len();
        if buffer.len() < held + chunk {
            buffer.resize(held + chunk, 0);
        }
        let Some((front, into)) = buffer.split_at_mut_checked(held) else { return Ok(Ok(0)) };
        front.copy_from_slice(&self.held);
        let Some(input) = self.input.as_mut() else { return Ok(Ok(0)) };
        let own = held.saturating_sub(self.prefix.as_ref().map_or(0, |prefix| prefix.len));
        let mut check = [0; TAIL_BYTES];
        let check = check.get_mut(..own.min(TAIL_BYTES)).unwrap_or_default();
        let into = into.get_mut(..chunk).unwrap_or_default();
        let read = input.read(check, into, self.read_offset)?;
        let Some(new) = read.checked_sub(check.len()) else { return Ok(Err(Change::Truncated)) };
        if !self.kind.is_archive() && !front.ends_with(check) {
            let head = input.look(0, usize::from(self.head.len))?;
            let same = Mark::of(&head) == self.head;
            return Ok(Err(if same { Change::Ambiguous } else { Change::Replaced }));
        }
        if new == 0 && check.is_empty() && input.metadata()?.len() < self.read_offset {
            return Ok(Err(Change::Truncated));
        }
        self.read_offset += new as u64;
        Ok(Ok(new))
    }

    /// How the bytes of `held` (and those read behind them) lie in a buffer.
    pub fn pass(&self) -> Pass {
        Pass {
            tail: self.tail_len,
            prefix: self.prefix.as_ref().map_or(0, |prefix| prefix.len),
            taken: 0,
            offset: self.offset,
        }
    }

    /// Events up to `pass.taken` are in `out`: moves the offset and notes it there.
    pub fn settle(&mut self, pass: &Pass, buffer: &[u8], out: &mut Out) {
        if pass.taken > 0
            && let Some(prefix) = self.prefix.take()
        {
            out.note(prefix.stream, prefix.record);
        }
        let before = self.offset;
        self.offset = pass.offset + pass.taken.saturating_sub(pass.prefix) as u64;
        let first = pass.tail + pass.prefix;
        let end = (pass.tail + pass.taken).max(first);
        let own = if pass.prefix > 0 { first } else { 0 };
        let read = buffer.get(own..end).unwrap_or_default();
        self.tail = Mark::of(read.get(read.len().saturating_sub(TAIL_BYTES)..).unwrap_or_default());
        if usize::from(self.head.len) < HEAD_BYTES && self.offset > before {
            let from = end.saturating_sub(usize::try_from(self.offset - before).unwrap_or(usize::MAX));
            let fresh = buffer.get(from..end).unwrap_or_default();
            let missing = HEAD_BYTES.saturating_sub(self.head_bytes.len()).min(fresh.len());
            self.head_bytes.extend_from_slice(fresh.get(..missing).unwrap_or_default());
            self.head = Mark::of(&self.head_bytes);
            if self.head_bytes.len() >= HEAD_BYTES {
                self.head_bytes = Vec::new();
            }
        }
        self.note(out);
    }

    /// Notes the present offset.
    pub fn note(&mut self, out: &mut Out) {
        if let Some(stream) = self.stream {
            out.note(stream, self.record().encode());
            if let Some(old) = self.replaces.take().filter(|old| *old != stream) {
                out.note(old, Vec::new());
            }
        }
    }

    /// Keeps of the buffer what was not taken, and the bytes before it.
    pub fn hold(&mut self, pass: &Pass, buffer: &[u8], end: usize) {
        let taken = pass.tail + pass.taken;
        let own = if pass.prefix > 0 && pass.taken > 0 { pass.prefix } else { 0 };
        let tail = TAIL_BYTES.min(taken.saturating_sub(own));
        let kept = buffer.get(taken - tail..end).unwrap_or_default();
        self.held.clear();
        self.held.extend_from_slice(kept);
        self.held.shrink_to(kept.len() * 2);
        self.tail_len = tail;
    }

    /// Closes it. What is held stays, unless it can be loaded again.
    pub fn close(&mut self) {
        self.input = None;
        if self.pending() == 0 && self.prefix.is_none() {
            self.held = Vec::new();
            self.tail_len = 0;
            self.head_bytes = Vec::new();
            self.verified = self.offset == 0;
        }
    }

    /// The held bytes belong to another file now: this one is read up to `read_offset`.
    pub fn give_away(&mut self) {
        let ended = self.held.last() == Some(&b'\n');
        let fresh = self.held.get(self.tail_len..).unwrap_or_default();
        if usize::from(self.head.len) < HEAD_BYTES {
            let missing = HEAD_BYTES.saturating_sub(self.head_bytes.len()).min(fresh.len());
            self.head_bytes.extend_from_slice(fresh.get(..missing).unwrap_or_default());
            self.head = Mark::of(&self.head_bytes);
        }
        self.held.drain(..self.held.len().saturating_sub(TAIL_BYTES));
        self.tail_len = self.held.len();
        self.tail = Mark::of(&self.held);
        self.offset = self.read_offset;
        self.state = State::resumed(!ended, false);
    }

    /// True if the file's length is not what was read of it.
    pub fn has_more(&self) -> bool {
        if self.kind.is_archive() {
            return self.input.is_some();
        }
        let meta = match &self.input {
            Some(input) => input.metadata(),
            None if matches!(self.presence, Presence::Gone(_)) => return false,
            None => std::fs::metadata(&self.path).and_then(|meta| {
                if Inode::of(&meta).may_be(&self.inode) {
                    Ok(meta)
                } else {
                    Err(io::ErrorKind::NotFound.into())
                }
            }),
        };
        meta.is_ok_and(|meta| meta.len() != self.read_offset)
    }
}

/// A buffer with the held bytes of a file in front: `tail` bytes before the offset, `prefix` bytes of
/// the file before, then the file's own. `taken` counts from behind the tail.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    /// Bytes before the offset.
    pub tail: usize,
    /// Bytes of the file before.
    pub prefix: usize,
    /// Bytes taken as events.
    pub taken: usize,
    /// The offset that `tail` ends at.
    pub offset: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(file: &mut TailFile, path: &std::path::Path) -> Result<usize, Change> {
        if file.input.is_none() {
            let (input, meta) = Input::open(path, Kind::Plain).unwrap();
            assert_eq!(file.verify(&input, meta.len()).unwrap(), Change::None);
            file.input = Some(input);
        }
        let mut buffer = Vec::new();
        let held = file.held.len();
        let read = file.read(&mut buffer, 1_000).unwrap()?;
        file.held = buffer[..held + read].to_vec();
        Ok(read)
    }

    #[test]
    fn a_read_notices_what_happened_to_an_open_file_before_it_takes_a_byte() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a");
        let long = "x".repeat(3_000);
        for (then, change) in [
            ("new and longer than what was there before\n", Change::Truncated),
            (long.as_str(), Change::Ambiguous),
            ("", Change::Truncated),
        ] {
            std::fs::write(&path, "first\nsecond\n".repeat(10)).unwrap();
            let mut file = TailFile::new(path.clone(), Inode::of(&std::fs::metadata(&path).unwrap()));
            assert_eq!(read_all(&mut file, &path), Ok(130));
            assert_eq!(read_all(&mut file, &path), Ok(0));
            std::fs::write(&path, then).unwrap();
            assert_eq!(read_all(&mut file, &path), Err(change), "{then:?}");
        }
    }

    #[test]
    fn streams_differ_by_source_generation_and_first_bytes() {
        let inode = Inode { dev: 1, ino: 2, birth: None };
        let name = |source: &str, restarts: u32, bytes: &[u8]| {
            let mut file = TailFile::new("/a".into(), inode);
            (0..restarts).for_each(|_| file.restart());
            file.name_stream(source, bytes)
        };
        let streams = [name("a", 0, b"x"), name("b", 0, b"x"), name("a", 1, b"x"), name("a", 0, b"y")];
        assert_eq!(streams.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
        assert_eq!(name("a", 0, b"x"), streams[0]);
    }
}
