//! Finds the rows that a plugin fails on, so that all others flow on.
//!
//! A batch that fails is tried once more by a fresh instance. If that fails too, it is cut in halves, and every half that
//! fails again, until single rows are left; a row that fails alone in a fresh instance is guilty and goes to quarantine
//! with the reason. Order is kept: segments are worked on from the first row to the last.
//!
//! The search is bounded ([`limits::GUILTY_ROWS_MAX`], [`limits::ISOLATION_TIME_FACTOR`]): past that, segments are still
//! tried, but one that fails goes to quarantine as a whole. So every row has an end in bounded time, and none is lost.

use std::time::{Duration, Instant};

use flumen_event::{Applied, Batch};

use crate::failure::Failure;
use crate::limits;

/// Calls the plugin. A failed call costs the instance; `is_fresh` asks for one that has processed nothing yet.
pub(crate) trait Attempt {
    fn attempt(&mut self, rows: &Batch, time: Duration, is_fresh: bool) -> Result<Applied, Failure>;

    /// After an attempt that went well: whether its rows go on. If not, it is as if it had not been made.
    fn settle(&mut self, goes_on: bool);
}

/// What became of the rows, in order.
#[derive(Debug, Default)]
pub(crate) struct Isolated {
    /// Outputs that go on.
    pub(crate) kept: Vec<Batch>,
    /// Rows that the plugin rejected, with its reasons.
    pub(crate) rejected: Vec<(Batch, Vec<String>)>,
    /// Rows that the plugin failed on, with one reason for each segment.
    pub(crate) failed: Vec<(Batch, String)>,
    pub(crate) dropped: u64,
    pub(crate) was_retried: bool,
    pub(crate) was_bisected: bool,
    pub(crate) was_exhausted: bool,
    rows: usize,
    bytes: usize,
}

/// Processes a batch of at least one row.
pub(crate) fn isolate(plugin: &mut impl Attempt, batch: &Batch, limit: Duration) -> Isolated {
    let mut out = Isolated::default();
    let started = Instant::now();
    match plugin.attempt(batch, limit, false) {
        Ok(applied) => {
            plugin.settle(out.accept(batch, applied));
            return out;
        }
        Err(failure) if failure.is_about_instance() => {
            out.failed.push((batch.clone(), failure.to_string()));
            return out;
        }
        Err(_) => out.was_retried = true,
    }
    match plugin.attempt(batch, limit, true) {
        Ok(applied) => plugin.settle(out.accept(batch, applied)),
        Err(failure) if failure.is_about_instance() || batch.rows() == 1 => {
            out.failed.push((batch.clone(), failure.to_string()));
        }
        Err(_) => {
            out.was_bisected = true;
            let search = Search { limit, spent: counted(started, limit * 2), guilty: 0 };
            search.run(plugin, batch, &mut out);
        }
    }
    out
}

/// What a failed call counts for: no more than it was given. A busy machine lets it take longer, and that says nothing
/// about the plugin.
pub(crate) fn counted(started: Instant, given: Duration) -> Duration {
    started.elapsed().min(given)
}

struct Search {
    limit: Duration,
    /// Time of failed calls.
    spent: Duration,
    guilty: u32,
}

impl Search {
    fn run(mut self, plugin: &mut impl Attempt, batch: &Batch, out: &mut Isolated) {
        // The next segment is the last one here.
        let mut segments = Vec::new();
        push_halves(&mut segments, batch);
        while let Some(rows) = segments.pop() {
            let is_over = self.is_over();
            let (started, time) = (Instant::now(), self.time());
            let failure = match plugin.attempt(&rows, time, false) {
                Ok(applied) => {
                    plugin.settle(out.accept(&rows, applied));
                    continue;
                }
                Err(failure) => failure,
            };
            self.spent += counted(started, time);
            if failure.is_about_instance() {
                out.failed.push((rows, failure.to_string()));
                out.failed.extend(segments.drain(..).rev().map(|rows| (rows, failure.to_string())));
            } else if is_over.is_some() {
                out.was_exhausted = true;
                let why = is_over.unwrap_or_default();
                out.failed.push((rows, format!("{failure}; not looked at row by row: {why}")));
            } else if rows.rows() > 1 {
                push_halves(&mut segments, &rows);
            } else {
                self.confirm(plugin, rows, out);
            }
        }
    }

    /// A single row is guilty only if it fails with the whole time in a fresh instance.
    fn confirm(&mut self, plugin: &mut impl Attempt, row: Batch, out: &mut Isolated) {
        let started = Instant::now();
        match plugin.attempt(&row, self.limit, true) {
            Ok(applied) => plugin.settle(out.accept(&row, applied)),
            Err(failure) => {
                self.spent += counted(started, self.limit);
                self.guilty += 1;
                out.failed.push((row, failure.to_string()));
            }
        }
    }

    fn is_out_of_time(&self) -> bool {
        self.spent >= self.limit * limits::ISOLATION_TIME_FACTOR
    }

    /// Which limit of the search is reached.
    fn is_over(&self) -> Option<String> {
        if self.guilty >= limits::GUILTY_ROWS_MAX {
            return Some(format!("budget of {} failures per batch reached", limits::GUILTY_ROWS_MAX));
        }
        let factor = limits::ISOLATION_TIME_FACTOR;
        self.is_out_of_time().then(|| format!("failed calls of the batch took {factor} times the time limit"))
    }

    /// Time for one segment. After [`limits::GUILTY_ROWS_MAX`] quick failures it is whole again, because a segment that
    /// is only slow must not go to quarantine; after slow ones it stays short, or the batch would have no end.
    fn time(&self) -> Duration {
        if self.guilty >= limits::GUILTY_ROWS_MAX && !self.is_out_of_time() {
            return self.limit;
        }
        (self.limit / limits::SUSPECT_TIME_DIVISOR).max(limits::SUSPECT_TIME_MIN).min(self.limit)
    }
}

fn push_halves(segments: &mut Vec<Batch>, rows: &Batch) {
    let half = rows.rows() / 2;
    segments.push(rows.slice(half, rows.rows() - half));
    segments.push(rows.slice(0, half));
}

impl Isolated {
    /// Takes over a segment's output, unless all outputs together would be more than one batch may be.
    fn accept(&mut self, input: &Batch, applied: Applied) -> bool {
        let Applied { kept, rejected, reasons, dropped } = applied;
        let (rows, bytes) = (self.rows + kept.rows(), self.bytes + kept.bytes());
        if rows > flumen_event::limits::ROWS_MAX || bytes > flumen_event::limits::BYTES_MAX {
            let reason = format!(
                "the outputs of this batch's parts are over the limit together: {rows} rows, {bytes} bytes"
            );
            self.failed.push((input.clone(), reason));
            return false;
        }
        (self.rows, self.bytes) = (rows, bytes);
        self.dropped += dropped as u64;
        self.kept.push(kept);
        if !rejected.is_empty() {
            self.rejected.push((rejected, reasons));
        }
        true
    }
}

#[cfg(test)]
#[path = "isolation_tests.rs"]
mod tests;
