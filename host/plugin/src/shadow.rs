//! A version that runs beside the one at work: on the same batches, without effect, to see where they differ.
//!
//! The flow never waits for it. A batch and what became of it are offered to a short queue; what does not fit is counted and
//! left out. Everything else happens on the thread of who asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use arrow_array::Array;
use flumen_event::Batch;
use flumen_pipeline::{InterceptorVersion, Processed};
use serde::Serialize;
use thiserror::Error;

use crate::error::LoadError;
use crate::limits;
use crate::version::PluginVersion;

/// Grants whose effects stay inside: lines are not written, counters are thrown away.
pub(crate) const HARMLESS: &[&str] = &["log", "metrics", "clock", "random"];

/// How long it may go on.
#[derive(Debug, Clone, Copy)]
pub struct ShadowBounds {
    /// Time.
    pub time: Duration,
    /// Events.
    pub rows: u64,
    /// Differences that are shown.
    pub examples: usize,
}

/// Why it cannot run beside.
#[derive(Debug, Error)]
pub enum ShadowError {
    /// The file is not fit.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// One at a time.
    #[error("another version runs beside {0} already; wait for its end")]
    Busy(String),
    /// What it does would count.
    #[error("{0} is granted `{1}`: what the new version does with it could not be thrown away")]
    Effects(String, String),
}

/// What both made of the same events. Events are counted by their identity.
#[derive(Debug, Default, Serialize)]
pub struct ShadowReport {
    /// Hash of the new version.
    pub hash: String,
    /// Seconds that it ran.
    pub seconds: f64,
    /// Events that both processed.
    pub events: u64,
    /// Events that came too fast and were left out.
    pub events_left_out: u64,
    /// The same in both.
    pub same: u64,
    /// In both, but different.
    pub changed: u64,
    /// Only the running version keeps it.
    pub only_running: u64,
    /// Only the new version keeps it.
    pub only_new: u64,
    /// Events that the running version rejects or fails on.
    pub quarantined_running: u64,
    /// Events that the new version rejects or fails on.
    pub quarantined_new: u64,
    /// Of these, failures of the new version.
    pub failed_new: u64,
    /// Nanoseconds per event of the running version.
    pub running_ns_per_event: u64,
    /// Nanoseconds per event of the new version.
    pub new_ns_per_event: u64,
    /// The first differences.
    #[serde(skip)]
    pub differences: Vec<Difference>,
    /// The first reason why the new version put an event into quarantine.
    pub reason: Option<String>,
}

/// One event that they do not agree on.
#[derive(Debug, Clone)]
pub struct Difference {
    /// As it came.
    pub input: Batch,
    /// What the running version made of it; perhaps nothing.
    pub running: Batch,
    /// What the new version made of it.
    pub new: Batch,
}

/// Where batches are offered.
pub(crate) struct Shadow {
    queue: SyncSender<Offer>,
    left_out: AtomicU64,
}

struct Offer {
    input: Batch,
    kept: Batch,
    quarantined: u64,
    took: Duration,
}

impl Shadow {
    /// Once per batch, by whoever processed it. Never waits.
    pub(crate) fn offer(&self, input: Batch, processed: &Processed, took: Duration) {
        let rows = input.rows() as u64;
        let quarantined = processed.quarantined.iter().map(|group| group.batch.rows() as u64).sum();
        let offer = Offer { input, kept: processed.kept.clone(), quarantined, took };
        if self.queue.try_send(offer).is_err() {
            self.left_out.fetch_add(rows, Ordering::Relaxed);
        }
    }
}

/// Runs a version beside the flow until a bound is reached.
pub(crate) fn run(
    place: &ArcSwapOption<Shadow>,
    name: &str,
    version: Arc<PluginVersion>,
    bounds: ShadowBounds,
) -> Result<ShadowReport, ShadowError> {
    let (queue, offers) = sync_channel(limits::SHADOW_QUEUE);
    let shadow = Arc::new(Shadow { queue, left_out: AtomicU64::new(0) });
    let before = place.compare_and_swap(&None::<Arc<Shadow>>, Some(shadow.clone()));
    if before.is_some() {
        return Err(ShadowError::Busy(name.to_owned()));
    }
    let report = compare(&version, &offers, bounds);
    place.store(None);
    Ok(ShadowReport { events_left_out: shadow.left_out.load(Ordering::Relaxed), ..report })
}

fn compare(version: &PluginVersion, offers: &Receiver<Offer>, bounds: ShadowBounds) -> ShadowReport {
    let mut report = ShadowReport { hash: version.hash().to_owned(), ..ShadowReport::default() };
    let begun = Instant::now();
    let (mut running, mut new) = (Duration::ZERO, Duration::ZERO);
    while report.events < bounds.rows {
        let Offer { input, kept, quarantined, took } =
            match offers.recv_timeout(bounds.time.saturating_sub(begun.elapsed())) {
                Ok(offer) => offer,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            };
        let begin = Instant::now();
        let processed = version.process(input.clone());
        new += begin.elapsed();
        running += took;
        report.events += input.rows() as u64;
        report.quarantined_running += quarantined;
        for group in &processed.quarantined {
            let rows = group.batch.rows() as u64;
            report.quarantined_new += rows;
            report.failed_new += if group.rejected { 0 } else { rows };
            report.reason = report.reason.take().or_else(|| group.reasons.first().cloned());
        }
        report.add(&input, &kept, &processed.kept, bounds.examples);
        if begun.elapsed() >= bounds.time {
            break;
        }
    }
    let per_event =
        |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).checked_div(report.events);
    let (running, new) = (per_event(running).unwrap_or(0), per_event(new).unwrap_or(0));
    let seconds = begun.elapsed().as_secs_f64();
    ShadowReport { running_ns_per_event: running, new_ns_per_event: new, seconds, ..report }
}

/// The rows of each event: an event may be there more than once, or not at all.
fn by_identity(batch: &Batch) -> BTreeMap<(u64, u64), Vec<u32>> {
    let mut rows: BTreeMap<(u64, u64), Vec<u32>> = BTreeMap::new();
    for row in 0..batch.rows() {
        let identity = (batch.stream().value(row), batch.position().value(row));
        rows.entry(identity).or_default().push(row as u32);
    }
    rows
}

impl ShadowReport {
    fn add(&mut self, input: &Batch, running: &Batch, new: &Batch, examples: usize) {
        let (of_running, of_new) = (by_identity(running), by_identity(new));
        for (identity, rows) in by_identity(input) {
            let none = Vec::new();
            let (ours, theirs) =
                (of_running.get(&identity).unwrap_or(&none), of_new.get(&identity).unwrap_or(&none));
            let is_same = ours.len() == theirs.len()
                && ours.iter().zip(theirs).all(|(a, b)| is_same(running, *a as usize, new, *b as usize));
            match (ours.is_empty(), theirs.is_empty()) {
                _ if is_same => self.same += 1,
                (false, true) => self.only_running += 1,
                (true, false) => self.only_new += 1,
                _ => self.changed += 1,
            }
            if is_same || self.differences.len() >= examples {
                continue;
            }
            let taken = |batch: &Batch, rows: &[u32]| batch.take(&rows.to_vec().into());
            if let (Ok(input), Ok(running), Ok(new)) =
                (taken(input, &rows), taken(running, ours), taken(new, theirs))
            {
                self.differences.push(Difference { input, running, new });
            }
        }
    }
}

fn is_same(a: &Batch, at_a: usize, b: &Batch, at_b: usize) -> bool {
    a.body().value(at_a) == b.body().value(at_b)
        && a.time().value(at_a) == b.time().value(at_b)
        && headers(a, at_a) == headers(b, at_b)
}

fn headers(batch: &Batch, row: usize) -> BTreeMap<&str, &str> {
    let present = batch.headers().iter().filter(|header| header.values.is_valid(row));
    present.map(|header| (&*header.name, header.values.value(row))).collect()
}
