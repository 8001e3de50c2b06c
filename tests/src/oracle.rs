//! The one oracle: every sequence number exactly once, in order within each input file.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use memchr::memmem;
use serde::Serialize;

use crate::limits;
use crate::output::Sequences;

/// How a line names itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The input file's number.
    pub file: u32,
    /// Which incarnation of it, counted by rotations.
    pub turn: u32,
    /// The line's number, over all incarnations.
    pub seq: u64,
}

/// What the oracle found. All figures but `events` and `crossed` have to be zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Lines that had to come.
    pub events: u64,
    /// Lines that did not come.
    pub lost: u64,
    /// Deliveries beyond the first.
    pub doubled: u64,
    /// Lines that came after a later line of their input file in the same bucket.
    pub out_of_order: u64,
    /// Lines of a rotated file that came after lines of the file that took its place. Order is promised
    /// within a file; this says how far it goes beyond.
    pub crossed: u64,
    /// Lines that nobody wrote (torn, or dropped by the filter and there all the same).
    pub foreign: u64,
    /// The first problems in words.
    #[serde(skip)]
    pub problems: Vec<String>,
}

impl Verdict {
    /// True if nothing is wrong.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.out_of_order == 0 && self.foreign == 0
    }

    /// As [`Verdict::holds`], but exactly so many lines are lost.
    #[must_use]
    pub fn holds_but_for(&self, lost: u64) -> bool {
        self.lost == lost && Self { lost: 0, problems: Vec::new(), ..self.clone() }.holds()
    }

    fn name(&mut self, problem: impl FnOnce() -> String) {
        if self.problems.len() < limits::PROBLEMS_NAMED {
            self.problems.push(problem());
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { events, lost, doubled, out_of_order, crossed, foreign, problems } = self;
        write!(
            formatter,
            "{events} events: {lost} lost, {doubled} doubled, {out_of_order} out of order, {foreign} foreign ({crossed} crossed a rotation)"
        )?;
        problems.iter().try_for_each(|problem| write!(formatter, "\n    {problem}"))
    }
}

/// The mark of a line; `None` if it has none (or only a torn one).
#[must_use]
pub fn mark(line: &[u8]) -> Option<Mark> {
    let at = memmem::find(line, b"?file=")? + b"?file=".len();
    let (file, rest) = number(line.get(at..)?)?;
    let (turn, rest) = number(rest.strip_prefix(b"&turn=")?)?;
    let rest = rest.strip_prefix(b"&seq=")?;
    let (seq, rest) = number(rest)?;
    // A number at the very end of a line may have lost digits.
    (!rest.is_empty()).then_some(Mark {
        file: u32::try_from(file).ok()?,
        turn: u32::try_from(turn).ok()?,
        seq,
    })
}

fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = text.split_at_checked(digits)?;
    Some((std::str::from_utf8(number).ok()?.parse().ok()?, rest))
}

/// Judges an output. `written`: lines per input file; `is_kept`: which of them have to come.
///
/// # Errors
/// If a file cannot be read.
pub fn judge(output: &Sequences, written: &[u64], is_kept: impl Fn(u64) -> bool) -> Result<Verdict> {
    let mut oracle = Oracle::new(is_kept);
    for (bucket, paths) in output {
        for path in paths {
            oracle.read(bucket, path)?;
        }
    }
    Ok(oracle.verdict(written))
}

/// Reads an output file by file while it grows; a file that was read may be removed. It remembers a byte for each line.
#[derive(Debug)]
pub struct Oracle<K> {
    is_kept: K,
    verdict: Verdict,
    /// How often each line of each input file came.
    seen: Vec<Vec<u8>>,
    orders: HashMap<String, Order>,
}

/// How far a bucket is.
#[derive(Debug, Default)]
struct Order {
    last: HashMap<(u32, u32), u64>,
    newest_turn: HashMap<u32, u32>,
}

impl<K: Fn(u64) -> bool> Oracle<K> {
    /// `is_kept`: which lines have to come.
    #[must_use]
    pub fn new(is_kept: K) -> Self {
        Self { is_kept, verdict: Verdict::default(), seen: Vec::new(), orders: HashMap::new() }
    }

    /// Reads a whole file, and says how many lines it has. Those of a bucket have to come in their order.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(&mut self, bucket: &str, path: &Path) -> Result<u64> {
        let order = self.orders.entry(bucket.to_owned()).or_default();
        let verdict = &mut self.verdict;
        let mut lines = 0;
        let file = File::open(path).context("an output file is gone")?;
        for line in BufReader::with_capacity(1 << 20, file).split(b'\n') {
            let line = line?;
            lines += 1;
            let place = || format!("{}, line {lines}", path.display());
            let known = mark(&line).filter(|mark| (self.is_kept)(mark.seq));
            let count = known.and_then(|mark| count_of(&mut self.seen, mark));
            let (Some(mark), Some(count)) = (known, count) else {
                verdict.foreign += 1;
                verdict.name(|| format!("foreign: {}: {}", place(), String::from_utf8_lossy(&line)));
                continue;
            };
            *count = count.saturating_add(1);
            if *count > 1 {
                verdict.doubled += 1;
                verdict.name(|| format!("doubled: {mark:?} at {}", place()));
                continue;
            }
            let before = order.last.insert((mark.file, mark.turn), mark.seq);
            if before.is_some_and(|before| before > mark.seq) {
                verdict.out_of_order += 1;
                verdict
                    .name(|| format!("out of order: {mark:?} after {before:?} in {bucket} at {}", place()));
            }
            let newest = order.newest_turn.entry(mark.file).or_insert(mark.turn);
            verdict.crossed += u64::from(*newest > mark.turn);
            *newest = mark.turn.max(*newest);
        }
        Ok(lines)
    }

    /// Whether a line came.
    #[must_use]
    pub fn has(&self, mark: Mark) -> bool {
        let count = self.seen.get(mark.file as usize).and_then(|seen| seen.get(mark.seq as usize));
        count.is_some_and(|count| *count > 0)
    }

    /// Whether a line has to come.
    #[must_use]
    pub fn keeps(&self, mark: Mark) -> bool {
        (self.is_kept)(mark.seq)
    }

    /// At the end. `written`: lines per input file.
    #[must_use]
    pub fn verdict(mut self, written: &[u64]) -> Verdict {
        let verdict = &mut self.verdict;
        self.seen.resize_with(self.seen.len().max(written.len()), Vec::new);
        for (file, seen) in self.seen.iter_mut().enumerate() {
            let lines = written.get(file).map_or(0, |lines| *lines as usize);
            for (seq, _) in seen.iter().enumerate().skip(lines).filter(|(_, count)| **count > 0) {
                verdict.foreign += 1;
                verdict.name(|| format!("foreign: file {file} has no line {seq}"));
            }
            seen.resize(lines, 0);
            for (seq, count) in seen.iter().enumerate().filter(|(seq, _)| (self.is_kept)(*seq as u64)) {
                verdict.events += 1;
                if *count == 0 {
                    verdict.lost += 1;
                    verdict.name(|| format!("lost: file {file} line {seq} of {lines}"));
                }
            }
        }
        self.verdict
    }
}

/// Input files, and lines of each, that a mark may name: no soak comes near. A damaged line may say anything.
const FILES_MAX: u32 = 1_000;
const LINES_MAX: u64 = 1 << 28;

fn count_of(seen: &mut Vec<Vec<u8>>, mark: Mark) -> Option<&mut u8> {
    if mark.file >= FILES_MAX || mark.seq >= LINES_MAX {
        return None;
    }
    let (file, seq) = (mark.file as usize, mark.seq as usize);
    seen.resize_with(seen.len().max(file + 1), Vec::new);
    let lines = seen.get_mut(file)?;
    lines.resize(lines.len().max(seq + 1), 0);
    lines.get_mut(seq)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output;
    use std::fs;

    #[test]
    fn finds_each_kind_of_fault() {
        let dir = tempfile::tempdir().unwrap();
        let line = |file: u32, seq: u64| format!("GET /x?file={file}&turn=0&seq={seq} HTTP\n");
        let first = [line(0, 0), line(0, 1), line(0, 1), line(1, 2), line(1, 0)].concat();
        fs::write(dir.path().join("a-1.log"), first).unwrap();
        fs::write(dir.path().join("a-10.log"), line(0, 4)).unwrap();
        fs::write(dir.path().join("a-9.log.open"), line(0, 3) + "torn ?file=0&turn=0&seq=4").unwrap();
        let verdict = judge(&output::sequences(dir.path()).unwrap(), &[5, 3], |_| true).unwrap();
        let Verdict { events, lost, doubled, out_of_order, foreign, .. } = verdict;
        assert_eq!((events, lost, doubled, out_of_order, foreign), (8, 2, 1, 1, 1), "{:?}", verdict.problems);
    }

    #[test]
    fn files_may_be_gone_when_they_were_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let mut oracle = Oracle::new(|_| true);
        for (seqs, bucket) in [([0, 1], "a"), ([2, 3], "b"), ([3, 4], "a")] {
            fs::write(&path, seqs.map(|seq| format!("?file=0&turn=0&seq={seq} x\n")).concat()).unwrap();
            assert_eq!(oracle.read(bucket, &path).unwrap(), 2);
            fs::remove_file(&path).unwrap();
        }
        assert!(
            oracle.has(Mark { file: 0, turn: 0, seq: 4 }) && !oracle.has(Mark { file: 1, turn: 0, seq: 0 })
        );
        let Verdict { events, lost, doubled, foreign, .. } = oracle.verdict(&[4, 1]);
        assert_eq!((events, lost, doubled, foreign), (5, 1, 1, 1));
        fs::write(&path, "?file=0&turn=0&seq=1 x\n?file=0&turn=0&seq=0 x\n").unwrap();
        let mut oracle = Oracle::new(|_| true);
        assert_eq!(oracle.read("a", &path).unwrap(), 2);
        assert_eq!(oracle.verdict(&[2]).out_of_order, 1);
    }

    #[test]
    fn what_the_filter_drops_has_to_be_absent() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a-1.log"), "x?file=0&turn=0&seq=0 \nx?file=0&turn=1&seq=1 \n").unwrap();
        let output = output::sequences(dir.path()).unwrap();
        let verdict = judge(&output, &[2], |seq| seq != 1).unwrap();
        assert_eq!((verdict.events, verdict.lost, verdict.foreign), (1, 0, 1));
        assert!(judge(&output, &[2], |_| true).unwrap().holds());
    }
}
