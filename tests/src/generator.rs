//! Writes access logs as a busy web server does: several files, rotation, lines written in pieces.
//!
//! Every line names itself (`?file=F&turn=T&seq=N`: the T-th incarnation of file F, N from 0 without gaps over
//! all of them), so that the oracle can tell what is missing, doubled or out of order. The status code of a line follows from its number, so that the
//! oracle knows what a filter has to drop.
//!
//! Rotation by rename: `web-F.log` becomes `web-F.log.NNNNN`; the writer may go on in the renamed file
//! for a moment, as nginx does until its signal. Rotation by copytruncate loses by its nature what was
//! not read before the truncation, so the writer stops there until [`Generator::grant_truncation`] says
//! that everything written was delivered.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::oracle::Mark;

/// How files are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// Never.
    None,
    /// Renamed, and a new file begun.
    Rename,
    /// Copied aside (out of the tailed names), and truncated in place.
    CopyTruncate,
}

/// What a generator writes.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where.
    pub dir: PathBuf,
    /// Number of input files written side by side.
    pub files: u32,
    /// Bytes per second over all files; 0: as fast as it can.
    pub bytes_per_s: u64,
    /// Bytes after which a file is rotated.
    pub rotate_bytes: u64,
    /// How it is rotated.
    pub rotation: Rotation,
    /// Stop after this many lines in all; `None`: when told.
    pub lines: Option<u64>,
    /// Whether some lines are no access-log lines ([`is_malformed`]).
    pub has_malformed: bool,
    /// Whether lines come again, as they were, behind later lines of the same file: about one more for each three.
    pub has_doubles: bool,
    /// Of the random choices.
    pub seed: u64,
}

/// Time between two writes to the files.
const TICK: Duration = Duration::from_millis(5);
/// Bytes of a line, about: what a rate in bytes is divided by.
pub const LINE_BYTES: u64 = 173;
/// One write in so many ends inside a line; the rest of the line comes with the next tick.
const TORN_WRITE_ODDS: u32 = 20;
/// One more line for so many.
const DOUBLE_ODDS: u32 = 3;
/// Lines of a file that may come again.
const RECENT_MAX: usize = 5_000;
/// One rotation in two is followed by one more write to the old file.
const LATE_WRITE_ODDS: u32 = 2;

/// A generator on a thread of this process.
#[derive(Debug)]
pub struct Generator {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What the writing thread and its owner share.
#[derive(Debug)]
pub struct Shared {
    written: Vec<AtomicU64>,
    rotations: AtomicU64,
    stopping: AtomicBool,
    wants_truncation: AtomicBool,
}

impl Shared {
    fn new(files: u32) -> Self {
        Self {
            written: (0..files).map(|_| AtomicU64::new(0)).collect(),
            rotations: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            wants_truncation: AtomicBool::new(false),
        }
    }

    /// Whole lines written per file.
    #[must_use]
    pub fn written(&self) -> Vec<u64> {
        self.written.iter().map(|count| count.load(Ordering::SeqCst)).collect()
    }
}

impl Generator {
    /// Starts writing.
    ///
    /// # Errors
    /// If the first files cannot be made.
    pub fn start(load: Load) -> Result<Self> {
        let shared = Arc::new(Shared::new(load.files));
        let of_thread = Arc::clone(&shared);
        let mut writer = Writer::new(load)?;
        let thread =
            thread::Builder::new().name("generator".to_owned()).spawn(move || writer.run(&of_thread))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Whole lines written so far, per file.
    #[must_use]
    pub fn written(&self) -> Vec<u64> {
        self.shared.written()
    }

    /// Rotations so far.
    #[must_use]
    pub fn rotations(&self) -> u64 {
        self.shared.rotations.load(Ordering::SeqCst)
    }

    /// True while the writer stands before a truncation, all files at the end of a line.
    #[must_use]
    pub fn wants_truncation(&self) -> bool {
        self.shared.wants_truncation.load(Ordering::SeqCst)
    }

    /// Everything written was delivered: the writer may truncate and go on.
    pub fn grant_truncation(&self) {
        self.shared.wants_truncation.store(false, Ordering::SeqCst);
    }

    /// Stops at the end of a line and says how many lines each file got.
    ///
    /// # Errors
    /// If writing failed.
    pub fn stop(mut self) -> Result<Vec<u64>> {
        self.join()?;
        Ok(self.written())
    }

    /// Waits until a load with a number of lines is written.
    ///
    /// # Errors
    /// If writing failed.
    pub fn finish(mut self) -> Result<Vec<u64>> {
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_panic| anyhow!("the generator panicked"))??;
        }
        Ok(self.written())
    }

    fn join(&mut self) -> Result<()> {
        self.shared.stopping.store(true, Ordering::SeqCst);
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_panic| anyhow!("the generator panicked"))?,
            None => Ok(()),
        }
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        // The error of a writer nobody asks about any more has no reader.
        drop(self.join());
    }
}

/// Writes a load in this thread, until it is complete.
///
/// # Errors
/// If writing fails.
pub fn write_now(load: Load) -> Result<Vec<u64>> {
    let shared = Shared::new(load.files);
    Writer::new(load)?.run(&shared)?;
    Ok(shared.written())
}

/// The status code in line number `seq`: 503 in one line of 100, 404 in one of 20.
#[must_use]
pub fn status_of(seq: u64) -> u16 {
    match seq % 100 {
        41 => 503,
        7 | 27 | 47 | 67 | 87 => 404,
        3 | 13 | 23 => 304,
        60 => 201,
        _ => 200,
    }
}

/// True for the lines that no parser of access logs can take, if the load has such: one in 500.
#[must_use]
pub fn is_malformed(seq: u64) -> bool {
    seq % 500 == 77
}

/// Appends a line that is no access-log line.
fn push_malformed(buffer: &mut Vec<u8>, Mark { file, turn, seq }: Mark) {
    buffer.extend_from_slice(
        format!("panic: no access log: ?file={file}&turn={turn}&seq={seq} in /srv/app.c\n").as_bytes(),
    );
}

/// Appends one line in combined format, 173 bytes on average.
pub fn push_line(buffer: &mut Vec<u8>, time: &str, Mark { file, turn, seq }: Mark) {
    const AGENTS: [&str; 4] = [
        "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Firefox/128.0",
        "Mozilla/5.0 (Macintosh; Intel Mac OS X) Safari/605.1.1",
        "Mozilla/5.0 (Windows NT 10.0; Win64) Chrome/131.0.0.0",
        "curl/8.5.0 (checks every minute; ops@shop.eu)",
    ];
    const PATHS: [&str; 4] = ["cart", "item", "search", "img"];
    let pick = |from: &[&'static str; 4], at: u64| from.get((at % 4) as usize).copied().unwrap_or_default();
    // splitmix64: figures that look random and follow from the number.
    let mut mix = seq.wrapping_add(u64::from(file) << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mix = (mix ^ (mix >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mix ^= mix >> 31;
    let (a, b, c) = (mix & 127, (mix >> 8) & 255, (mix >> 16) & 255);
    let status = status_of(seq);
    let bytes = (mix >> 24) % 60_000;
    let path = pick(&PATHS, mix >> 40);
    let agent = pick(&AGENTS, mix >> 42);
    // Writing to a Vec cannot fail.
    drop(writeln!(
        buffer,
        "10.{a}.{b}.{c} - - [{time}] \"GET /shop/{path}?file={file}&turn={turn}&seq={seq} HTTP/1.1\" {status} {bytes} \"a.eu/shop\" \"{agent}\""
    ));
}

/// The present time as access logs write it.
#[must_use]
pub fn log_time() -> String {
    Timestamp::now().strftime("%d/%b/%Y:%H:%M:%S +0000").to_string()
}

/// One input file.
struct Input {
    number: u32,
    path: PathBuf,
    file: File,
    bytes: u64,
    seq: u64,
    /// Of the names of rotated files.
    rotation: u32,
    /// Of the file that is written to.
    turn: u32,
    /// Not yet written end of the last line.
    rest: Vec<u8>,
    /// Renamed already; the next write still goes to the old file.
    is_late: bool,
    /// Lines of this turn that may come again.
    recent: VecDeque<Vec<u8>>,
}

struct Writer {
    load: Load,
    inputs: Vec<Input>,
    random: StdRng,
    lines: u64,
    /// Lines that were due so far, in thousandths.
    started: Instant,
}

impl Writer {
    fn new(load: Load) -> Result<Self> {
        fs::create_dir_all(&load.dir)?;
        let inputs = (0..load.files).map(|number| Input::new(&load.dir, number)).collect::<Result<_>>()?;
        let random = StdRng::seed_from_u64(load.seed);
        Ok(Self { load, inputs, random, lines: 0, started: Instant::now() })
    }

    fn run(&mut self, shared: &Shared) -> Result<()> {
        self.started = Instant::now();
        while !shared.stopping.load(Ordering::SeqCst) {
            let due = self.due();
            if due == 0 && self.is_complete() {
                break;
            }
            self.write(due, shared)?;
            self.rotate(shared)?;
            if self.load.bytes_per_s > 0 {
                thread::sleep(TICK);
            }
        }
        for (input, count) in self.inputs.iter_mut().zip(&shared.written) {
            input.finish_line()?;
            count.store(input.seq, Ordering::SeqCst);
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.load.lines.is_some_and(|lines| self.lines >= lines)
    }

    /// Lines to be written now.
    fn due(&self) -> u64 {
        const AT_ONCE: u64 = 4_000;
        let due = match self.load.bytes_per_s {
            0 => AT_ONCE,
            rate => {
                let total = self.started.elapsed().as_micros() as u64 * (rate / LINE_BYTES) / 1_000_000;
                total.saturating_sub(self.lines).min(AT_ONCE)
            }
        };
        self.load.lines.map_or(due, |lines| due.min(lines.saturating_sub(self.lines)))
    }

    fn write(&mut self, due: u64, shared: &Shared) -> Result<()> {
        let time = log_time();
        let files = self.inputs.len() as u64;
        for (at, (input, count)) in self.inputs.iter_mut().zip(&shared.written).enumerate() {
            let lines = due / files + u64::from((at as u64) < due % files);
            let is_torn = lines > 0 && self.random.random_ratio(1, TORN_WRITE_ODDS);
            let doubles = self.load.has_doubles.then_some(&mut self.random);
            input.write(lines, &time, is_torn, self.load.has_malformed, doubles)?;
            count.store(input.seq, Ordering::SeqCst);
            self.lines += lines;
        }
        Ok(())
    }

    fn rotate(&mut self, shared: &Shared) -> Result<()> {
        let limit = self.load.rotate_bytes;
        let is_due = |input: &Input| input.bytes >= limit && limit > 0;
        match self.load.rotation {
            Rotation::None => {}
            Rotation::Rename => {
                for input in self.inputs.iter_mut().filter(|input| input.is_late || is_due(input)) {
                    input.rotate_by_rename(&mut self.random)?;
                    shared.rotations.fetch_add(1, Ordering::SeqCst);
                }
            }
            Rotation::CopyTruncate => {
                if !self.inputs.iter().any(is_due) {
                    return Ok(());
                }
                let paused = Instant::now();
                for (input, count) in self.inputs.iter_mut().zip(&shared.written) {
                    input.finish_line()?;
                    count.store(input.seq, Ordering::SeqCst);
                }
                shared.wants_truncation.store(true, Ordering::SeqCst);
                while shared.wants_truncation.load(Ordering::SeqCst) {
                    if shared.stopping.load(Ordering::SeqCst) {
                        return Ok(());
                    }
                    thread::sleep(TICK);
                }
                for input in self.inputs.iter_mut().filter(|input| is_due(input)) {
                    input.rotate_by_copy()?;
                    shared.rotations.fetch_add(1, Ordering::SeqCst);
                }
                // The pause is no debt.
                self.started += paused.elapsed();
            }
        }
        Ok(())
    }
}

impl Input {
    fn new(dir: &Path, number: u32) -> Result<Self> {
        let path = dir.join(format!("web-{number}.log"));
        let file = open(&path)?;
        Ok(Self {
            number,
            path,
            file,
            bytes: 0,
            seq: 0,
            rotation: 0,
            turn: 0,
            rest: Vec::new(),
            is_late: false,
            recent: VecDeque::new(),
        })
    }

    /// `seq` counts a torn line only when its rest is written.
    fn write(
        &mut self,
        lines: u64,
        time: &str,
        is_torn: bool,
        has_malformed: bool,
        mut doubles: Option<&mut StdRng>,
    ) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.rest);
        let had_rest = !buffer.is_empty();
        let first = self.seq + u64::from(had_rest);
        for seq in first..first + lines {
            if let Some(random) = &mut doubles {
                self.double(random, &mut buffer);
            }
            let begin = buffer.len();
            let mark = Mark { file: self.number, turn: self.turn, seq };
            if has_malformed && is_malformed(seq) {
                push_malformed(&mut buffer, mark);
            } else {
                push_line(&mut buffer, time, mark);
            }
            if doubles.is_some() {
                self.recent.push_back(buffer.get(begin..).unwrap_or_default().to_vec());
                while self.recent.len() > RECENT_MAX {
                    self.recent.pop_front();
                }
            }
        }
        if buffer.is_empty() {
            return Ok(());
        }
        let mut whole = first + lines;
        if is_torn {
            // Somewhere inside the last line, perhaps right before its newline.
            let cut = buffer.len() - 1 - (self.seq as usize * 7) % 40;
            self.rest = buffer.split_off(cut);
            whole -= 1;
        }
        self.file.write_all(&buffer)?;
        self.bytes += buffer.len() as u64;
        self.seq = whole;
        Ok(())
    }

    /// Now and then a line of before, once more. Each comes again at most once, sooner or later.
    fn double(&mut self, random: &mut StdRng, buffer: &mut Vec<u8>) {
        if random.random_ratio(1, DOUBLE_ODDS) && !self.recent.is_empty() {
            let at = random.random_range(0..self.recent.len());
            if let Some(line) = self.recent.swap_remove_back(at) {
                buffer.extend_from_slice(&line);
            }
        }
    }

    fn finish_line(&mut self) -> Result<()> {
        self.write(0, "", false, false, None)
    }

    fn rotate_by_rename(&mut self, random: &mut StdRng) -> Result<()> {
        if !self.is_late {
            self.rotation += 1;
            let aside = self.path.with_extension(format!("log.{:05}", self.rotation));
            fs::rename(&self.path, aside)?;
            if random.random_ratio(1, LATE_WRITE_ODDS) {
                self.is_late = true;
                return Ok(());
            }
        }
        // A line is never spread over two files.
        self.finish_line()?;
        self.is_late = false;
        self.turn += 1;
        self.recent.clear();
        self.file = open(&self.path)?;
        self.bytes = 0;
        Ok(())
    }

    fn rotate_by_copy(&mut self) -> Result<()> {
        self.rotation += 1;
        let aside = self.path.with_file_name(format!("old-{}-{:05}", self.number, self.rotation));
        fs::copy(&self.path, aside)?;
        self.file.set_len(0)?;
        self.turn += 1;
        self.recent.clear();
        self.bytes = 0;
        Ok(())
    }
}

fn open(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().create(true).append(true).open(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle;

    #[test]
    fn every_number_is_written_once_over_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let load = Load {
            dir: dir.path().to_owned(),
            files: 3,
            bytes_per_s: 20 << 20,
            rotate_bytes: 50_000,
            rotation: Rotation::Rename,
            lines: Some(20_000),
            has_malformed: true,
            has_doubles: false,
            seed: 7,
        };
        let written = write_now(load).unwrap();
        assert_eq!(written.iter().sum::<u64>(), 20_000);
        let mut counts = vec![0_u64; 3];
        let mut all = std::collections::BTreeSet::new();
        let mut bytes = 0;
        for entry in fs::read_dir(dir.path()).unwrap() {
            let text = fs::read(entry.unwrap().path()).unwrap();
            // A file may have been begun and not written to.
            assert!(text.last().is_none_or(|last| *last == b'\n'));
            bytes += text.len();
            for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let mark = oracle::mark(line).unwrap();
                counts[mark.file as usize] += 1;
                assert!(all.insert((mark.file, mark.seq)), "{mark:?} twice");
            }
        }
        assert_eq!(counts, written);
        let average = bytes / 20_000;
        assert!((160..=180).contains(&average), "{average} bytes per line");
    }
}
