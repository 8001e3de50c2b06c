//! The events of the measurements with Kafka: lines of one length that tell when they were written and which they
//! are. `1793000000000 0000000042 …`: 13 digits of milliseconds since 1970, 10 digits of the number, filler.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};

use super::super::input;
use crate::report::step;

/// Where the number begins and ends in a line.
const NUMBER: std::ops::Range<usize> = 14..24;
/// Printable, without a newline, and no line's filler is the next one's.
const FILLER: &str = "GET /wiki/The_Ladder_of_Log_Lines?rev=20817 HTTP/1.1\" 200 18201 \"https://example.org/list?page=7\" \"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\" ";
/// The number of lines that only show that everything is connected; nobody counts them.
const PRELUDE_NUMBER: u64 = 9_999_999_999;
/// How many of them there are.
pub const PRELUDE: u64 = 10;
/// How often a paced writer writes.
const TICK: Duration = Duration::from_millis(5);

/// An input of lines.
#[derive(Debug, Clone)]
pub struct Lines {
    /// The file.
    pub path: PathBuf,
    /// How many.
    pub events: u64,
    /// Bytes of each, without its newline.
    pub event_bytes: usize,
}

impl Lines {
    /// Bytes of all bodies.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.events * self.event_bytes as u64
    }
}

/// A file of so many MB; made if it is not there yet.
///
/// # Errors
/// If it cannot be written.
pub fn of_size(megabytes: u64, event_bytes: usize) -> Result<Lines> {
    let events = megabytes * 1_000_000 / event_bytes as u64;
    let path = input::dir()?.join(format!("lines-{event_bytes}-{megabytes}mb.log"));
    if !path.is_file() {
        step(&format!("writing {events} lines of {event_bytes} bytes"), || {
            let making = path.with_extension("making");
            let mut file = BufWriter::with_capacity(1 << 20, File::create(&making)?);
            let (mut text, time) = (Vec::new(), now_ms());
            for number in 0..events {
                text.clear();
                push(&mut text, number, time, event_bytes);
                file.write_all(&text)?;
            }
            file.into_inner()?.sync_all()?;
            Ok(fs::rename(making, &path)?)
        })?;
    }
    Ok(Lines { path, events, event_bytes })
}

/// A file of [`PRELUDE`] lines.
///
/// # Errors
/// If it cannot be written.
pub fn write_prelude(path: &Path, event_bytes: usize) -> Result<()> {
    let mut text = Vec::new();
    (0..PRELUDE).for_each(|_| push(&mut text, PRELUDE_NUMBER, now_ms(), event_bytes));
    Ok(fs::write(path, text)?)
}

fn push(text: &mut Vec<u8>, number: u64, time_ms: u64, event_bytes: usize) {
    let end = text.len() + event_bytes;
    // Writing to a vector cannot fail.
    let head = format!("{time_ms:013} {number:010} ");
    text.extend_from_slice(head.as_bytes());
    let mut filler = FILLER.bytes().cycle().skip(number as usize % FILLER.len());
    while text.len() < end {
        text.extend(filler.next());
    }
    text.push(b'\n');
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

/// Appends lines to a file at a rate, on a thread of its own.
pub struct Writer {
    written: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Writer {
    /// Begins. It ends after `events` lines, or when told.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn start(path: &Path, events_s: u64, events: u64, event_bytes: usize) -> Result<Self> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        let (written, stopping) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stop) = (written.clone(), stopping.clone());
        let thread = thread::spawn(move || {
            let (begin, mut next, mut text) = (Instant::now(), 0, Vec::new());
            while next < events && !stop.load(Ordering::Relaxed) {
                let due = (begin.elapsed().as_micros() as u64 * events_s / 1_000_000).min(events);
                text.clear();
                (next..due).for_each(|number| push(&mut text, number, now_ms(), event_bytes));
                file.write_all(&text)?;
                next = next.max(due);
                count.store(next, Ordering::Relaxed);
                thread::sleep(TICK);
            }
            Ok(())
        });
        Ok(Self { written, stopping, thread: Some(thread) })
    }

    /// Lines written so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Ends it, if it has not ended. Returns the number of lines.
    ///
    /// # Errors
    /// If a write failed.
    pub fn stop(mut self) -> Result<u64> {
        self.stopping.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the writer has ended already")?;
        thread.join().map_err(|_| anyhow!("the writer panicked"))??;
        Ok(self.written())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

/// What a reader got of the lines that were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Lines that should be there.
    pub events: u64,
    /// Not there at all.
    pub lost: u64,
    /// There once more than they should be, each time counted.
    pub doubled: u64,
    /// No line of ours.
    pub foreign: u64,
}

/// Counts the lines of a file that the oracle wrote.
///
/// # Errors
/// If it cannot be read.
pub fn tally(path: &Path, events: u64, event_bytes: usize) -> Result<Tally> {
    let mut seen = vec![0_u32; usize::try_from(events)?];
    let mut tally = Tally { events, lost: 0, doubled: 0, foreign: 0 };
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let body = line.strip_suffix(b"\n").unwrap_or(&line);
        let number = body.get(NUMBER).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        if number == Some(PRELUDE_NUMBER as usize) {
            continue;
        }
        match number.and_then(|number: usize| seen.get_mut(number)) {
            Some(count) if body.len() == event_bytes => *count += 1,
            _ => tally.foreign += 1,
        }
    }
    tally.lost = seen.iter().filter(|count| **count == 0).count() as u64;
    tally.doubled = seen.iter().map(|count| u64::from(count.saturating_sub(1))).sum();
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_and_what_is_twice_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        let mut text = Vec::new();
        [0, 1, PRELUDE_NUMBER, 1, 1, 4].into_iter().for_each(|number| push(&mut text, number, now_ms(), 170));
        text.extend_from_slice(b"another\n");
        fs::write(&path, text).unwrap();
        let expected = Tally { events: 5, lost: 2, doubled: 2, foreign: 1 };
        assert_eq!(tally(&path, 5, 170).unwrap(), expected);
    }

    #[test]
    fn a_writer_keeps_its_rate() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        let writer = Writer::start(&path, 100_000, 5_000, 64).unwrap();
        let done = || Ok(writer.written() == 5_000);
        flumen_tests::poll::until("all lines", Duration::from_secs(10), done).unwrap();
        assert_eq!(writer.stop().unwrap(), 5_000);
        assert_eq!(fs::metadata(&path).unwrap().len(), 5_000 * 65);
        assert_eq!(
            tally(&path, 5_000, 64).unwrap(),
            Tally { events: 5_000, lost: 0, doubled: 0, foreign: 0 }
        );
    }
}
