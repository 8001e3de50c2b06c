//! What a backfill is about: an operator's words, what they meant when they were given, and how far it is.
//!
//! In the positions of a backfill ([`flumen_pipeline::backfill`]) there are, behind its id:
//!
//! | key | value |
//! |---|---|
//! | `job` | a [`Job`] as JSON: written once, before the first event |
//! | `at` | a [`Cursor`] as JSON: with each batch |
//! | a stream's key | how far its file is read, as tail writes it ([`crate::sources::tail::position`]) |
//! | `done` | a [`Done`] as JSON, in place of all others |
//!
//! The id is a hash of the words: the same command finds what it began, whatever its words mean by then. `done` stays, so that the
//! command that is given once more does not put everything twice; of many the oldest are forgotten.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::time::{Clock, Seen};
use crate::sources::tail::position::{Inode, Kind};

/// Backfills that are remembered after their end: each is some hundred bytes of the journal, and is read at every start.
pub const DONE_MAX: usize = 256;

/// Backfills of a pipeline that have begun and are not at their end: each has a [`Job`] in the journal, and while it is under way threads,
/// instances of plugins, and a connection of the control socket.
pub const BEGUN_MAX: usize = 16;

/// Bytes of a [`Job`]: they are in every checkpoint of the journal until it is at its end. Enough for some 700 files.
pub const JOB_BYTES_MAX: usize = 256 << 10;

/// Files of which a note is kept: notes are in the journal with every batch, and as long as the end is remembered.
pub(super) const NOTES_MAX: usize = 16;

/// Files that an error names of a backfill.
const SHOWN_FILES: usize = 8;

pub(super) const JOB: &[u8] = b"job";
pub(super) const AT: &[u8] = b"at";
pub(super) const DONE: &[u8] = b"done";

/// What an operator says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    /// The source whose way the events go.
    pub source: String,
    /// Whole paths of the files, in the order in which they are read.
    pub files: Vec<String>,
    /// The first time.
    pub from: Option<String>,
    /// The time that all are before.
    pub to: Option<String>,
    /// The first byte.
    pub from_byte: Option<u64>,
    /// The byte that all begin before.
    pub to_byte: Option<u64>,
    /// Times without zone are of UTC, not of this machine's zone.
    pub utc: bool,
}

impl Words {
    /// Names the backfill.
    pub fn id(&self) -> String {
        // Strings and numbers are always JSON.
        let words = serde_json::to_vec(self).unwrap_or_default();
        let hash = blake3::hash(&words).to_hex();
        hash.as_str().get(..32).unwrap_or_default().to_owned()
    }
}

impl Words {
    /// As they are given to the command: of many files the first ones.
    pub fn shown(&self) -> String {
        let mut shown = vec![format!("--source {}", quoted(&self.source))];
        shown.extend(self.files.iter().take(SHOWN_FILES).map(|file| format!("--file {}", quoted(file))));
        if self.files.len() > SHOWN_FILES {
            shown.push(format!("… ({} files)", self.files.len()));
        }
        for (option, time) in [("from", &self.from), ("to", &self.to)] {
            shown.extend(time.iter().map(|time| format!("--{option} {}", quoted(time))));
        }
        for (option, byte) in [("from-byte", self.from_byte), ("to-byte", self.to_byte)] {
            shown.extend(byte.iter().map(|byte| format!("--{option} {byte}")));
        }
        shown.extend(self.utc.then(|| "--utc".to_owned()));
        shown.join(" ")
    }
}

/// As one word of a shell.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-:+@%,".contains(&byte);
    match !word.is_empty() && word.bytes().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// What the words meant: half open, `from` is in and `to` is not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Nanoseconds since 1970.
    pub from_ns: Option<i64>,
    /// See `from_ns`.
    pub to_ns: Option<i64>,
    /// Bytes of the file; of an archive, of its content.
    pub from_byte: Option<u64>,
    /// See `from_byte`.
    pub to_byte: Option<u64>,
}

impl Bounds {
    /// Whether it matters when a line was written.
    pub fn has_times(&self) -> bool {
        self.from_ns.is_some() || self.to_ns.is_some()
    }

    /// Whether an event that begins there is meant, as far as bytes go.
    pub(super) fn has_byte(&self, byte: u64) -> bool {
        self.from_byte.is_none_or(|from| from <= byte) && self.to_byte.is_none_or(|to| byte < to)
    }

    /// The same for an event of which only the byte behind its last one is known.
    pub(super) fn has_end(&self, end: u64) -> bool {
        self.from_byte.is_none_or(|from| from < end) && self.to_byte.is_none_or(|to| end <= to)
    }

    /// Whether a line of this time is meant. What stands before the first time of a file is older than all of it.
    pub(super) fn has_time(&self, time: Option<i64>) -> bool {
        match time {
            Some(time) => {
                self.from_ns.is_none_or(|from| from <= time) && self.to_ns.is_none_or(|to| time < to)
            }
            None => self.from_ns.is_none(),
        }
    }
}

/// A backfill: its words and what they meant at its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// As they were given.
    pub words: Words,
    /// What they meant.
    pub bounds: Bounds,
    /// The files, as they were then.
    pub files: Vec<JobFile>,
    /// When it began, nanoseconds since 1970.
    pub begun_ns: i64,
}

/// A file of a backfill, as it was at the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFile {
    /// Its whole path.
    pub path: String,
    /// The `file` header of its events: what tail calls it.
    pub label: String,
    /// Their stream: what tail gives them.
    pub stream: u64,
    /// Device.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Birth time, where the file system has one.
    pub birth: Option<i64>,
    /// Its bytes.
    pub bytes: u64,
    /// When it was written last: tells the year of times without one.
    pub modified_ns: i64,
    /// How many of its first bytes are hashed.
    pub head_len: u16,
    /// Their hash, in hex.
    pub head_hash: String,
}

impl JobFile {
    pub(super) fn kind(&self) -> Kind {
        Kind::of(Path::new(&self.path))
    }

    pub(super) fn inode(&self) -> Inode {
        Inode { dev: self.dev, ino: self.ino, birth: self.birth }
    }

    /// Behind the last byte at which an event of it may begin. Nobody appends to an archive.
    pub(super) fn end(&self) -> u64 {
        if self.kind().is_archive() { u64::MAX } else { self.bytes }
    }

    pub(super) fn clock(&self, utc: bool) -> Clock {
        Clock::new(zone(utc), self.modified_ns)
    }
}

/// The zone of times without one.
pub fn zone(utc: bool) -> jiff::tz::TimeZone {
    if utc { jiff::tz::TimeZone::UTC } else { jiff::tz::TimeZone::system() }
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Index of the file that is being read.
    pub file: usize,
    /// Where that has its times.
    pub seen: Option<Seen>,
    /// The last time in it.
    pub last_time: Option<i64>,
    /// Events that were put.
    pub events: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Events that the file's own rules sent to quarantine (lines over the limit).
    pub quarantined: u64,
    /// What an operator should know of the files.
    pub notes: Vec<String>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// When it began, nanoseconds since 1970.
    pub begun_ns: i64,
    /// When it came to its end.
    pub ended_ns: i64,
    /// Events that were put.
    pub events: u64,
    /// Of these, events that were put before it was cut short the last time.
    pub before: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Lines that went to quarantine at once.
    pub quarantined: u64,
    /// What an operator should know of the files.
    pub notes: Vec<String>,
}

/// What the positions of a backfill say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// It was begun.
    pub job: Option<Job>,
    /// How far it came.
    pub at: Cursor,
    /// It came to its end.
    pub done: Option<Done>,
}

impl Stored {
    /// Of positions, without the id in front of their keys. An error: another release wrote them, in a form that says something else.
    pub fn read(positions: &[(Vec<u8>, Vec<u8>)]) -> Result<Stored, String> {
        Ok(Stored {
            job: value(positions, JOB)?,
            at: value(positions, AT)?.unwrap_or_default(),
            done: value(positions, DONE)?,
        })
    }

    /// Whether there is anything.
    pub fn is_any(&self) -> bool {
        self.job.is_some() || self.done.is_some()
    }
}

fn value<T: serde::de::DeserializeOwned>(
    positions: &[(Vec<u8>, Vec<u8>)],
    key: &[u8],
) -> Result<Option<T>, String> {
    let found = positions.iter().find(|(known, _)| known == key);
    found.map(|(_, value)| serde_json::from_slice(value)).transpose().map_err(|error| {
        format!(
            "what the journal says of this backfill cannot be understood ({error}): another release wrote it; go on with that one, \
             or forget it (--forget)"
        )
    })
}

/// The ids whose ends are to be forgotten, of the positions of all backfills: all but the newest.
pub fn outdated(positions: &[(Vec<u8>, Vec<u8>)], keep: usize) -> Vec<String> {
    let done = |(key, value): &(Vec<u8>, Vec<u8>)| {
        let id = key.strip_suffix(DONE)?.strip_suffix(b"/")?;
        let done: Done = serde_json::from_slice(value).ok()?;
        Some((done.ended_ns, String::from_utf8(id.to_vec()).ok()?))
    };
    let mut ends: Vec<(i64, String)> = positions.iter().filter_map(done).collect();
    ends.sort_unstable_by(|one, other| other.cmp(one));
    ends.into_iter().skip(keep).map(|(_, id)| id).collect()
}

/// Those that have begun and are not at their end, of the positions of all backfills: the oldest first.
pub fn begun(positions: &[(Vec<u8>, Vec<u8>)]) -> Vec<Job> {
    let job = |(key, value): &(Vec<u8>, Vec<u8>)| {
        key.strip_suffix(JOB)?.strip_suffix(b"/")?;
        serde_json::from_slice::<Job>(value).ok()
    };
    let mut jobs: Vec<Job> = positions.iter().filter_map(job).collect();
    jobs.sort_by_key(|job| job.begun_ns);
    jobs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_half_open() {
        let times = Bounds { from_ns: Some(10), to_ns: Some(20), ..Bounds::default() };
        let meant: Vec<i64> = (8..22).filter(|time| times.has_time(Some(*time))).collect();
        assert_eq!(meant, (10..20).collect::<Vec<_>>());
        assert!(!times.has_time(None), "before the first time");
        assert!(Bounds { from_ns: None, ..times }.has_time(None));
        assert!(times.has_times() && !Bounds::default().has_times());

        let bytes = Bounds { from_byte: Some(10), to_byte: Some(20), ..Bounds::default() };
        let meant: Vec<u64> = (8..22).filter(|byte| bytes.has_byte(*byte)).collect();
        assert_eq!(meant, (10..20).collect::<Vec<_>>());
        // An event of the bytes 10 to 19 ends at 20; one that ends at 10 was before.
        let meant: Vec<u64> = (8..22).filter(|byte| bytes.has_end(*byte)).collect();
        assert_eq!(meant, (11..21).collect::<Vec<_>>());
        assert!(Bounds::default().has_byte(u64::MAX) && Bounds::default().has_end(0));
    }

    #[test]
    fn other_words_are_another_backfill() {
        let words = || Words { source: "a".into(), files: vec!["/a".into()], ..Words::default() };
        let others = [
            Words { source: "b".into(), ..words() },
            Words { files: vec!["/b".into()], ..words() },
            Words { files: vec!["/a".into(), "/b".into()], ..words() },
            Words { from: Some("2h".into()), ..words() },
            Words { to: Some("2h".into()), ..words() },
            Words { from_byte: Some(7), ..words() },
            Words { to_byte: Some(7), ..words() },
            Words { utc: true, ..words() },
        ];
        let ids: std::collections::BTreeSet<String> =
            others.iter().map(Words::id).chain([words().id(), words().id()]).collect();
        assert_eq!(ids.len(), others.len() + 1);
        assert!(ids.iter().all(|id| id.len() == 32));
    }

    fn done(ended_ns: i64) -> Vec<u8> {
        let done =
            Done { begun_ns: 0, ended_ns, events: 1, before: 0, bytes: 2, quarantined: 0, notes: Vec::new() };
        serde_json::to_vec(&done).unwrap()
    }

    #[test]
    fn the_oldest_ends_are_forgotten_and_what_is_under_way_is_not() {
        let positions = vec![
            (b"a/done".to_vec(), done(3)),
            (b"b/done".to_vec(), done(1)),
            (b"c/done".to_vec(), done(2)),
            (b"d/at".to_vec(), done(0)),
            (b"d/job".to_vec(), b"{}".to_vec()),
        ];
        assert_eq!(outdated(&positions, 2), ["b"]);
        assert_eq!(outdated(&positions, 0), ["a", "c", "b"]);
        assert!(outdated(&positions, 3).is_empty());
    }

    #[test]
    fn what_has_begun_is_told_from_what_is_at_its_end() {
        let job = |begun_ns| {
            let (words, bounds, files) = Default::default();
            serde_json::to_vec(&Job { words, bounds, files, begun_ns }).unwrap()
        };
        let positions = vec![
            (b"a/job".to_vec(), job(3)),
            (b"a/at".to_vec(), serde_json::to_vec(&Cursor::default()).unwrap()),
            (b"b/done".to_vec(), done(1)),
            (b"c/job".to_vec(), job(2)),
            // A stream's key, which is any eight bytes.
            (b"c/9999/job".to_vec(), b"how far a file is".to_vec()),
        ];
        let begun: Vec<i64> = begun(&positions).iter().map(|job| job.begun_ns).collect();
        assert_eq!(begun, [2, 3]);
    }

    /// They give them as arguments, to be read and to be copied.
    #[test]
    fn words_are_shown_as_they_are_given() {
        let words = Words { source: "in".into(), files: vec!["/a b".into()], utc: true, ..Words::default() };
        assert_eq!(words.shown(), "--source in --file '/a b' --utc");
        let all = Words {
            files: vec!["/it's".into(), "/c".into()],
            from: Some("2h".into()),
            to: Some("2026-11-30 10:00".into()),
            from_byte: Some(7),
            to_byte: Some(9),
            utc: false,
            ..words
        };
        let shown = "--source in --file '/it'\\''s' --file /c --from 2h --to '2026-11-30 10:00' --from-byte 7 --to-byte 9";
        assert_eq!(all.shown(), shown);
        let many = Words { files: vec!["/a".into(); 12], ..Words::default() };
        assert!(many.shown().ends_with("--file /a … (12 files)"), "{}", many.shown());
    }

    #[test]
    fn what_another_release_wrote_is_not_taken_for_nothing() {
        assert!(!Stored::read(&[]).unwrap().is_any());
        assert!(Stored::read(&[(DONE.to_vec(), done(7))]).unwrap().is_any());
        assert!(Stored::read(&[(JOB.to_vec(), b"{}".to_vec())]).unwrap_err().contains("--forget"));
    }
}
