//! The one oracle: every sequence number exactly once, in order within each input file.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};

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
    let mut verdict = Verdict::default();
    let mut seen: Vec<Vec<u8>> = written.iter().map(|lines| vec![0; *lines as usize]).collect();
    for (bucket, paths) in output {
        let mut last: HashMap<(u32, u32), u64> = HashMap::new();
        let mut newest_turn: HashMap<u32, u32> = HashMap::new();
        for path in paths {
            let reader =
                BufReader::with_capacity(1 << 20, File::open(path).context("an output file is gone")?);
            for (at, line) in reader.split(b'\n').enumerate() {
                let line = line?;
                let place = || format!("{}, line {}", path.display(), at + 1);
                let known = mark(&line).filter(|mark| is_kept(mark.seq));
                let count =
                    known.and_then(|mark| seen.get_mut(mark.file as usize)?.get_mut(mark.seq as usize));
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
                let before = last.insert((mark.file, mark.turn), mark.seq);
                if before.is_some_and(|before| before > mark.seq) {
                    verdict.out_of_order += 1;
                    verdict.name(|| {
                        format!("out of order: {mark:?} after {before:?} in {bucket} at {}", place())
                    });
                }
                let newest = newest_turn.entry(mark.file).or_insert(mark.turn);
                verdict.crossed += u64::from(*newest > mark.turn);
                *newest = mark.turn.max(*newest);
            }
        }
    }
    for (file, seen) in seen.iter().enumerate() {
        for (seq, count) in seen.iter().enumerate().filter(|(seq, _)| is_kept(*seq as u64)) {
            verdict.events += 1;
            if *count == 0 {
                verdict.lost += 1;
                verdict.name(|| format!("lost: file {file} line {seq} of {}", seen.len()));
            }
        }
    }
    Ok(verdict)
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
    fn what_the_filter_drops_has_to_be_absent() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a-1.log"), "x?file=0&turn=0&seq=0 \nx?file=0&turn=1&seq=1 \n").unwrap();
        let output = output::sequences(dir.path()).unwrap();
        let verdict = judge(&output, &[2], |seq| seq != 1).unwrap();
        assert_eq!((verdict.events, verdict.lost, verdict.foreign), (1, 0, 1));
        assert!(judge(&output, &[2], |_| true).unwrap().holds());
    }
}
