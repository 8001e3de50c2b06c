//! The beginning of a backfill: files are looked at, and get the identity that tail gives them.
//!
//! **Identity.** Tail names a stream once and keeps the name in its position. A file that the source has read, by its inode or as another
//! form of itself (renamed, compressed, copied), has that stream and that `file` header: its head and the bytes before the committed
//! offset are compared, as at a resume. Lines have the position of their first byte in both. So a line that is put in
//! again has the identity that it had, and `dedup` by identity drops what came already. A file that no position knows gets the
//! name that tail would give it now.

use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::job::{Bounds, JOB_BYTES_MAX, Job, JobFile, Words};
use super::time::{Clock, FORMS};
use crate::sources::now_ns;
use crate::sources::tail::file::{Change, TailFile};
use crate::sources::tail::input::Input;
use crate::sources::tail::limits::{CHUNK_BYTES, HEAD_BYTES};
use crate::sources::tail::position::{Inode, Kind, Mark, Record, stream_of};

/// How much of the first line an error shows.
const SHOWN_BYTES: usize = 200;

/// Looks at the files. `positions`: those of the source. Nothing is put yet, so whatever is wrong costs nothing.
pub fn begin(words: Words, bounds: Bounds, positions: &[(Vec<u8>, Vec<u8>)]) -> Result<Job, String> {
    if let (Some(from), Some(to)) = (bounds.from_ns, bounds.to_ns)
        && from >= to
    {
        return Err("the range is empty: --from is not before --to".to_owned());
    }
    if let (Some(from), Some(to)) = (bounds.from_byte, bounds.to_byte)
        && from >= to
    {
        return Err("the range is empty: --from-byte is not before --to-byte".to_owned());
    }
    let known: Vec<(u64, Record)> = positions
        .iter()
        .filter_map(|(key, value)| Some((stream_of(key)?, Record::decode(value).ok()?)))
        .collect();
    let mut files: Vec<JobFile> = Vec::new();
    for path in &words.files {
        let file = look(path, &words, &bounds, &known)?;
        // By name, by link, or in two forms: its lines would come twice.
        if let Some(same) = files.iter().find(|other| other.stream == file.stream) {
            return Err(format!("{path} and {} are the same file: name one of them", same.path));
        }
        files.push(file);
    }
    let job = Job { words, bounds, files, begun_ns: now_ns() };
    let bytes = serde_json::to_vec(&job).map_err(|error| error.to_string())?.len();
    if bytes > JOB_BYTES_MAX {
        return Err(format!(
            "{} files are too many for one backfill: what has to be remembered of them takes {bytes} bytes, of {JOB_BYTES_MAX} at most; \
             name fewer at once",
            job.files.len()
        ));
    }
    Ok(job)
}

fn look(path: &str, words: &Words, bounds: &Bounds, known: &[(u64, Record)]) -> Result<JobFile, String> {
    let (opened, kind) = (Path::new(path), Kind::of(Path::new(path)));
    let unread = |error: &io::Error| unreadable(path, error);
    let (input, meta) = Input::open(opened, kind).map_err(|error| unread(&error))?;
    let inode = Inode::of(&meta);
    let (head, first_line, has_time) =
        first(opened, kind, &meta, words.utc, bounds.has_times()).map_err(|error| unread(&error))?;
    if meta.len() == 0 && !head.is_empty() {
        return Err(format!(
            "{path} has bytes, and says that it has none: it is no file of a disk (one of /proc), or its first bytes were written just \
             now. Copy it and name the copy, or give the command again"
        ));
    }
    if bounds.has_times()
        && !has_time
        && let Some(line) = first_line
    {
        return Err(format!(
            "{path} has no time that can be read; its first line is {line:?}. Known are {FORMS}; leave --from and --to out, or \
             say which bytes (--from-byte, --to-byte)"
        ));
    }
    let mark = Mark::of(&head);
    let (stream, label) = identity(opened, kind, (&input, &meta), &head, &words.source, known)
        .map_err(|error| unread(&error))?;
    Ok(JobFile {
        path: path.to_owned(),
        label,
        stream,
        dev: inode.dev,
        ino: inode.ino,
        birth: inode.birth,
        bytes: meta.len(),
        modified_ns: modified_ns(&meta),
        head_len: mark.len,
        head_hash: hex(&mark),
    })
}

/// The first bytes of a file, its first line, and whether any line has a time (looked for only if that is asked).
fn first(
    path: &Path,
    kind: Kind,
    meta: &Metadata,
    utc: bool,
    wants_time: bool,
) -> io::Result<(Vec<u8>, Option<String>, bool)> {
    let clock = Clock::new(super::job::zone(utc), modified_ns(meta));
    let (mut input, _) = Input::open(path, kind)?;
    let (mut head, mut has_time) = (Vec::new(), false);
    // Only the beginning of a line matters: of a long one no more is kept.
    let (mut line, mut line_at) = (Vec::with_capacity(SHOWN_BYTES), 0_usize);
    let mut first_line = None;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut offset = 0;
    let ends = |line: &mut Vec<u8>, first_line: &mut Option<String>| {
        let is_time = clock.of_line(line, &mut None).is_some();
        if first_line.is_none() && !line.is_empty() {
            *first_line = Some(shown(line));
        }
        line.clear();
        is_time
    };
    loop {
        let read = input.read(&mut [], &mut chunk, offset)?;
        let bytes = chunk.get(..read).unwrap_or_default();
        offset += read as u64;
        head.extend_from_slice(bytes.get(..HEAD_BYTES.saturating_sub(head.len())).unwrap_or(bytes));
        head.truncate(HEAD_BYTES);
        if !wants_time {
            return Ok((head, first_line, has_time));
        }
        for byte in bytes {
            if *byte == b'\n' {
                has_time |= ends(&mut line, &mut first_line);
                line_at = 0;
            } else {
                if line_at < LINE_BYTES {
                    line.push(*byte);
                }
                line_at += 1;
            }
            if has_time {
                break;
            }
        }
        if read == 0 {
            has_time |= ends(&mut line, &mut first_line);
        }
        // A chunk is longer than a head, but a file may have grown by a few bytes only.
        if read == 0 || (has_time && (head.len() >= HEAD_BYTES || offset >= meta.len())) {
            return Ok((head, first_line, has_time));
        }
    }
}

/// More than is looked at for a time.
const LINE_BYTES: usize = 512;

/// The stream and the label of a file.
fn identity(
    path: &Path,
    kind: Kind,
    (input, meta): (&Input, &Metadata),
    head: &[u8],
    source: &str,
    known: &[(u64, Record)],
) -> io::Result<(u64, String)> {
    let inode = Inode::of(meta);
    let is_alike = |record: &Record| {
        head.get(..usize::from(record.head.len)).is_some_and(|head| Mark::of(head) == record.head)
    };
    let (own, mut others): (Vec<_>, Vec<_>) =
        known.iter().partition(|(_, record)| record.kind == kind && record.inode.may_be(&inode));
    // Of one that was read little of, a short head proves little: its name has to be alike as well.
    others.retain(|(_, record)| is_whole(record) || is_named(path, record));
    others.sort_by_key(|(_, record)| std::cmp::Reverse(record.offset));
    for (stream, record) in own.iter().chain(&others) {
        if is_alike(record) && is_same(path, kind, (input, meta), *stream, record)? {
            return Ok((*stream, record.label.clone()));
        }
    }
    let mut file = TailFile::new(PathBuf::from(path), inode);
    // Positions of what the inode was before are of other bytes.
    let generations = own.iter().map(|(_, record)| record.generation);
    file.generation = generations.max().map_or(0, |last| last.wrapping_add(1));
    Ok((file.name_stream(source, head), path.to_string_lossy().into_owned()))
}

fn is_whole(record: &Record) -> bool {
    usize::from(record.head.len) == HEAD_BYTES
}

fn is_named(path: &Path, record: &Record) -> bool {
    let name = path.to_string_lossy();
    record.head.len > 0
        && (name.starts_with(record.label.as_str()) || name.starts_with(&*record.path.to_string_lossy()))
}

/// Whether all that was read of a known file is the beginning of this one.
fn is_same(
    path: &Path,
    kind: Kind,
    (input, meta): (&Input, &Metadata),
    stream: u64,
    record: &Record,
) -> io::Result<bool> {
    let mut probe = TailFile::new(PathBuf::from(path), Inode::of(meta));
    probe.kind = kind;
    probe.adopt(Some(stream), record.clone());
    if !kind.is_archive() {
        return Ok(probe.verify(input, meta.len())? == Change::None);
    }
    let (mut archive, _) = Input::open(path, kind)?;
    Ok(probe.skip(&mut archive, &mut vec![0; CHUNK_BYTES])? == Change::None)
}

fn modified_ns(meta: &Metadata) -> i64 {
    let since = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.and_then(|since| i64::try_from(since.as_nanos()).ok()).unwrap_or_else(now_ns)
}

/// The hash of a mark as text.
pub(super) fn hex(mark: &Mark) -> String {
    format!("{:032x}", mark.hash)
}

/// The beginning of a line, for people.
pub(super) fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(line.get(..SHOWN_BYTES).unwrap_or(line)).into_owned()
}

/// Why a file cannot be read, and what to do.
pub(super) fn unreadable(path: &str, error: &io::Error) -> String {
    let fix = match error.kind() {
        io::ErrorKind::PermissionDenied => "; the agent's user needs permission to read it",
        io::ErrorKind::NotFound => "; the agent looks for it on its own machine",
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            "; if it is an archive, it ends too early or is damaged"
        }
        _ => "",
    };
    format!("cannot read {path}: {error}{fix}")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::sources::tail::position::key;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Place {
            Place(tempfile::tempdir().unwrap())
        }

        fn write(&self, name: &str, bytes: &[u8]) -> String {
            let path = self.0.path().join(name);
            fs::write(&path, bytes).unwrap();
            path.display().to_string()
        }
    }

    fn words(files: &[&str]) -> Words {
        let files = files.iter().map(ToString::to_string).collect();
        Words { source: "in".into(), files, ..Words::default() }
    }

    fn times() -> Bounds {
        Bounds { from_ns: Some(0), ..Bounds::default() }
    }

    fn lines(count: usize) -> Vec<u8> {
        (0..count).flat_map(|number| format!("2026-11-30T10:00:00Z line {number}\n").into_bytes()).collect()
    }

    /// What tail has on record of a file that was read up to `offset`.
    fn record(path: &str, text: &[u8], offset: usize) -> (Vec<u8>, Vec<u8>) {
        let meta = fs::metadata(path).unwrap();
        let record = Record {
            kind: Kind::Plain,
            mid_line: false,
            skip_line: false,
            finished: false,
            generation: 3,
            inode: Inode::of(&meta),
            offset: offset as u64,
            archive_bytes: 0,
            head: Mark::of(&text[..offset.min(HEAD_BYTES)]),
            tail: Mark::of(&text[offset.saturating_sub(64)..offset]),
            path: path.into(),
            label: "/the/label".into(),
        };
        (key(77), record.encode())
    }

    fn of(path: &str, positions: &[(Vec<u8>, Vec<u8>)]) -> (u64, String) {
        let job = begin(words(&[path]), Bounds::default(), positions).unwrap();
        (job.files[0].stream, job.files[0].label.clone())
    }

    #[test]
    fn a_file_that_tail_knows_keeps_its_identity_in_every_form() {
        let (place, text) = (Place::new(), lines(200));
        let path = place.write("a.log", &text);
        let positions = [record(&path, &text, 3_100)];
        let known = (77, "/the/label".to_owned());
        assert_eq!(of(&path, &positions), known);
        let copy = place.write("b.log", &text);
        assert_eq!(of(&copy, &positions), known, "a copy");
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, &text).unwrap();
        let archive = place.write("a.log.1.gz", &packed.finish().unwrap());
        assert_eq!(of(&archive, &positions), known, "an archive");
        let archive = place.write("a.log.1.zst", &zstd::encode_all(text.as_slice(), 1).unwrap());
        assert_eq!(of(&archive, &positions), known, "an archive");

        // The same head, and other bytes before the offset: another file, also in the same inode.
        let mut other = text.clone();
        other[3_090] = b'x';
        let begins_alike = place.write("c.log", &other);
        assert_ne!(of(&begins_alike, &positions).0, 77);
        fs::write(&path, &other).unwrap();
        let anew = of(&path, &positions);
        assert_ne!(anew.0, 77);
        assert_ne!(anew.0, of(&path, &[]).0, "another generation");
        // Of a short head, the name decides.
        let text = lines(2);
        let short = place.write("s.log", &text);
        let positions = [record(&short, &text, text.len())];
        assert_eq!(of(&short, &positions), known);
        let copy = place.write("t.log", &text);
        assert_ne!(of(&copy, &positions).0, 77);
    }

    #[test]
    fn an_unknown_file_has_the_name_that_tail_would_give_it() {
        let place = Place::new();
        let path = place.write("a.log", &lines(200));
        let mut file = TailFile::new((&path).into(), Inode::of(&fs::metadata(&path).unwrap()));
        assert_eq!(of(&path, &[]), (file.name_stream("in", &lines(200)), path.clone()));
    }

    #[test]
    fn more_files_than_can_be_remembered_are_refused() {
        let place = Place::new();
        let name = "n".repeat(200);
        let files: Vec<String> = (0..450).map(|at| place.write(&format!("{name}{at}"), b"")).collect();
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let error = begin(words(&files), Bounds::default(), &[]).unwrap_err();
        assert!(error.starts_with("450 files are too many") && error.contains("name fewer"), "{error}");
        assert!(begin(words(&files[..100]), Bounds::default(), &[]).is_ok());
    }

    #[test]
    fn what_is_wrong_is_said_before_anything_is_put() {
        let place = Place::new();
        let wrong = |files: &[&str], bounds: Bounds| begin(words(files), bounds, &[]).unwrap_err();
        let timeless = place.write("timeless.log", b"\nfirst line\nsecond line\n");
        let error = wrong(&[&timeless], times());
        assert!(error.contains("\"first line\"") && error.contains("RFC 3339"), "{error}");
        assert!(begin(words(&[&timeless]), Bounds::default(), &[]).is_ok(), "without times");
        let late = place.write("late.log", format!("{}2026-11-30T10:00:00Z x", "no\n".repeat(9)).as_bytes());
        assert!(begin(words(&[&late]), times(), &[]).is_ok(), "the last line has no end");
        let empty = place.write("empty.log", b"");
        assert!(begin(words(&[&empty]), times(), &[]).is_ok(), "nothing to read");

        let (a, link) = (place.write("a.log", &lines(200)), place.0.path().join("link.log"));
        std::os::unix::fs::symlink(&a, &link).unwrap();
        let error = wrong(&[&a, link.to_str().unwrap()], times());
        assert!(error.contains("are the same file"), "{error}");
        assert!(wrong(&["/no/such.log"], times()).contains("on its own machine"));
        let cut = place.write("cut.gz", &[0x1f, 0x8b, 8, 0]);
        assert!(wrong(&[&cut], times()).contains("ends too early"));
        assert!(wrong(&[place.0.path().to_str().unwrap()], times()).contains("cannot read"));
        assert!(wrong(&["/proc/self/status"], Bounds::default()).contains("says that it has none"));
        let empty = Bounds { from_ns: Some(7), to_ns: Some(7), ..Bounds::default() };
        assert!(wrong(&[&a], empty).contains("--from is not before --to"));
        let empty = Bounds { from_byte: Some(8), to_byte: Some(7), ..Bounds::default() };
        assert!(wrong(&[&a], empty).contains("--from-byte is not before"));
    }
}
