//! What a batch is stamped with: a version, and after a swap the version before it.
//!
//! A version that was swapped in is on probation for some batches or some time. A batch that it fails on is given to the
//! version before it, and if that one does better its result counts: nothing goes to quarantine for the new version's sake. If
//! it fails more often than it may, or costs too much, the version before comes back by itself, from the next batch on;
//! batches that are stamped with the new one already are processed by the old one, too.
//!
//! Where a plugin keeps state, the pipeline gives the batch to the version before ([`flumen_pipeline::stateful`]): what was
//! written to the state has to be undone, and the state taken over, between the two. The counts and the verdict are the same.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// What an event cost in the last batches, in calls that went well.
#[derive(Default)]
struct Cost(Mutex<Costs>);

#[derive(Default)]
struct Costs {
    events: u64,
    /// Nanoseconds per event, and events.
    recent: VecDeque<(u64, u64)>,
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
        let events = events as u64;
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let Some(ns_per_event) = ns.checked_div(events) else { return };
        let mut costs = self.0.lock();
        costs.events = costs.events.saturating_add(events);
        costs.recent.push_back((ns_per_event, events));
        if costs.recent.len() > limits::COST_BATCHES_KEPT {
            costs.recent.pop_front();
        }
    }

    /// Nanoseconds per event, once it is known well enough: half of the events cost less. On a busy machine some batches take
    /// long for no fault of the version's; one that costs too much does so in all.
    fn ns_per_event(&self) -> Option<u64> {
        let costs = self.0.lock();
        if costs.events < limits::COST_EVENTS_MIN {
            return None;
        }
        let mut sorted: Vec<(u64, u64)> = costs.recent.iter().copied().collect();
        sorted.sort_unstable();
        let half = sorted.iter().map(|(_, events)| events).sum::<u64>() / 2;
        let mut below = 0;
        let median = sorted.into_iter().find(|(_, events)| {
            below += events;
            below > half
        });
        median.map(|(ns_per_event, _)| ns_per_event)
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

    /// The version before does not take the state back, so there is nothing to roll back to.
    pub(crate) fn stay(&self) {
        self.trial.store(None);
    }

    /// Processes a batch by this very version; how long that took.
    fn run(&self, batch: Batch) -> (Processed, Duration) {
        self.timed(batch, |batch| self.version.process(batch))
    }

    fn timed(&self, batch: Batch, process: impl FnOnce(Batch) -> Processed) -> (Processed, Duration) {
        let (rows, begin) = (batch.rows(), Instant::now());
        let processed = process(batch);
        let took = begin.elapsed();
        if processed.failed() == 0 {
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
        let guilty = processed.failed();
        if guilty > 0 {
            let (again, took_again) = trial.before.run(input);
            // Rows that both fail on are the events' fault.
            if again.failed() < guilty {
                has_failed = true;
                (processed, took) = (again, took + took_again);
            }
        }
        self.settle(trial, has_failed);
        (processed, took)
    }

    /// Counts a batch, and draws the conclusion.
    fn settle(&self, trial: &Trial, has_failed: bool) {
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
    }
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
        self.timed(batch, |batch| self.version.process_with(batch, session)).0
    }

    fn before(&self) -> Option<Arc<dyn InterceptorVersion>> {
        self.proven().map(|before| before as Arc<dyn InterceptorVersion>)
    }

    fn tried(&self, has_failed: bool) {
        if let Some(trial) = &*self.trial.load() {
            self.settle(trial, has_failed);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_slow_batches_are_not_the_version_s_cost() {
        let cost = Cost::default();
        (0..4).for_each(|_| cost.add(400, Duration::from_micros(8)));
        cost.add(0, Duration::from_secs(1));
        assert_eq!(cost.ns_per_event(), None, "known by too few events");
        // Somebody else had the processor; and a batch of one event costs what a call costs.
        cost.add(400, Duration::from_millis(10));
        (0..20).for_each(|_| cost.add(1, Duration::from_micros(50)));
        assert_eq!(cost.ns_per_event(), Some(20));
        (0..limits::COST_BATCHES_KEPT).for_each(|_| cost.add(400, Duration::from_micros(800)));
        assert_eq!(cost.ns_per_event(), Some(2_000));
    }
}
