//! What a batch is stamped with: a version, and after a swap the version before it.
//!
//! A version that was swapped in is on probation for some batches or some time. A batch that it fails on is given to the
//! version before it, and if that one does better its result counts: nothing goes to quarantine for the new version's sake. If
//! it fails more often than it may, or costs too much, the version before comes back by itself, from the next batch on;
//! batches that are stamped with the new one already are processed by the old one, too.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use flumen_event::Batch;
use flumen_pipeline::plan::Probation;
use flumen_pipeline::state::Session;
use flumen_pipeline::{InterceptorVersion, Processed};
use parking_lot::Mutex;

use crate::file::FileKind;
use crate::host::Loaded;
use crate::limits;
use crate::shadow::Shadow;
use crate::swap::PluginSlot;
use crate::version::PluginVersion;

/// A version as batches are stamped with it.
pub(crate) struct Stamp {
    pub(crate) version: Arc<PluginVersion>,
    pub(crate) origin: Origin,
    cost: Cost,
    trial: ArcSwapOption<Trial>,
    shadow: Arc<ArcSwapOption<Shadow>>,
    slot: Weak<PluginSlot>,
}

/// What the file was.
pub(crate) struct Origin {
    pub(crate) kind: FileKind,
    pub(crate) size_bytes: u64,
    pub(crate) imports: Vec<String>,
}

/// A probation under way.
pub(crate) struct Trial {
    /// What comes back.
    before: Arc<Stamp>,
    started: Instant,
    limits: Probation,
    counts: Mutex<Counts>,
    is_lost: AtomicBool,
}

#[derive(Default, Clone, Copy)]
struct Counts {
    batches: u64,
    failures: u64,
}

/// Events and the time that they took, in calls that went well.
#[derive(Default)]
struct Cost {
    events: AtomicU64,
    ns: AtomicU64,
}

enum Verdict {
    GoesOn,
    Stood,
    Lost(String),
}

impl Origin {
    pub(crate) fn of(loaded: Loaded) -> Origin {
        let Loaded { file, shape, .. } = loaded;
        Origin { kind: file.kind, size_bytes: file.size_bytes, imports: shape.imports }
    }
}

impl Cost {
    fn add(&self, events: usize, took: Duration) {
        self.events.fetch_add(events as u64, Ordering::Relaxed);
        self.ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Nanoseconds per event, once it is known well enough.
    fn ns_per_event(&self) -> Option<u64> {
        let events = self.events.load(Ordering::Relaxed);
        (events >= limits::COST_EVENTS_MIN).then(|| self.ns.load(Ordering::Relaxed) / events)
    }
}

impl Trial {
    pub(crate) fn new(before: Arc<Stamp>, limits: Probation) -> Trial {
        let (counts, is_lost) = Default::default();
        Trial { before, started: Instant::now(), limits, counts, is_lost }
    }

    fn judge(&self, cost: &Cost, has_failed: bool) -> Verdict {
        let counts = {
            let mut counts = self.counts.lock();
            counts.batches += 1;
            counts.failures += u64::from(has_failed);
            *counts
        };
        let Counts { batches, failures } = counts;
        if failures > self.limits.failures {
            let reason =
                format!("it failed in {failures} of {batches} batches that the version before it processes");
            return Verdict::Lost(reason);
        }
        let costs = cost.ns_per_event().zip(self.before.cost.ns_per_event());
        if let Some((new, old)) = costs.filter(|_| batches >= limits::COST_BATCHES_MIN) {
            let budget = old.saturating_mul(self.limits.slowdown).max(limits::COST_FLOOR_NS);
            if self.limits.slowdown > 0 && new > budget {
                return Verdict::Lost(format!(
                    "an event costs {new} ns, where the version before it takes {old} ns"
                ));
            }
        }
        if batches >= self.limits.batches || self.started.elapsed() >= self.limits.time {
            Verdict::Stood
        } else {
            Verdict::GoesOn
        }
    }
}

impl Stamp {
    pub(crate) fn new(
        version: Arc<PluginVersion>,
        origin: Origin,
        trial: Option<Trial>,
        shadow: Arc<ArcSwapOption<Shadow>>,
        slot: Weak<PluginSlot>,
    ) -> Stamp {
        let trial = ArcSwapOption::from_pointee(trial);
        Stamp { version, origin, cost: Cost::default(), trial, shadow, slot }
    }

    /// It can still be rolled back.
    pub(crate) fn is_on_probation(&self) -> bool {
        self.trial.load().is_some()
    }

    /// The version that it would be rolled back to.
    pub(crate) fn proven(&self) -> Option<Arc<Stamp>> {
        self.trial.load().as_ref().map(|trial| trial.before.clone())
    }

    /// Processes a batch by this very version; how long that took.
    fn run(&self, batch: Batch) -> (Processed, Duration) {
        let (rows, begin) = (batch.rows(), Instant::now());
        let processed = self.version.process(batch);
        let took = begin.elapsed();
        if failed(&processed) == 0 {
            self.cost.add(rows, took);
        }
        (processed, took)
    }

    fn try_out(&self, trial: &Trial, batch: Batch) -> (Processed, Duration) {
        if trial.is_lost.load(Ordering::Acquire) {
            return trial.before.run(batch);
        }
        let input = batch.clone();
        let (mut processed, mut took) = self.run(batch);
        let mut has_failed = false;
        let guilty = failed(&processed);
        if guilty > 0 {
            let (again, took_again) = trial.before.run(input);
            // Rows that both fail on are the events' fault.
            if failed(&again) < guilty {
                has_failed = true;
                (processed, took) = (again, took + took_again);
            }
        }
        match trial.judge(&self.cost, has_failed) {
            Verdict::GoesOn => {}
            Verdict::Stood => {
                if self.trial.swap(None).is_some() {
                    let (plugin, hash) = (self.version.name(), self.version.hash());
                    tracing::info!(plugin, hash, "the new version stood its probation");
                }
            }
            Verdict::Lost(reason) => {
                trial.is_lost.store(true, Ordering::Release);
                if let Some(slot) = self.slot.upgrade() {
                    slot.roll_back(self, &trial.before, &reason);
                }
            }
        }
        (processed, took)
    }
}

/// Rows that it failed on. Those that it rejects are its work.
fn failed(processed: &Processed) -> u64 {
    let groups = processed.quarantined.iter().filter(|group| !group.rejected);
    groups.map(|group| group.batch.rows() as u64).sum()
}

impl InterceptorVersion for Stamp {
    fn process(&self, batch: Batch) -> Processed {
        let shadow = self.shadow.load();
        let input = shadow.as_ref().map(|_| batch.clone());
        let (processed, took) = match &*self.trial.load() {
            None => self.run(batch),
            Some(trial) => self.try_out(trial, batch),
        };
        if let (Some(shadow), Some(input)) = (shadow.as_ref(), input) {
            shadow.offer(input, &processed, took);
        }
        processed
    }

    fn process_with(&self, batch: Batch, session: &mut Session) -> Processed {
        self.version.process_with(batch, session)
    }

    fn hash(&self) -> &str {
        self.version.hash()
    }

    fn version(&self) -> &str {
        InterceptorVersion::version(&*self.version)
    }

    fn migrate(&self, from: &str, session: &mut Session) -> Result<(), String> {
        self.version.migrate(from, session)
    }

    fn tick_every(&self) -> Option<Duration> {
        self.version.tick_every()
    }

    fn tick(&self, session: &mut Session) -> Result<(), String> {
        self.version.tick(session)
    }
}
