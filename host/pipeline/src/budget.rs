//! The error budget of an interceptor: how much a plugin may fail before the pipeline's policy takes over.
//!
//! Counted are the events of the last [`ErrorPlan::window`], and never fewer than the last [`ErrorPlan::events_min`]: a
//! quiet flow is judged by its last events, however old they are. Above the budget
//! - `quarantine` goes on as below it, and says so;
//! - `stop` holds the batch (and with it the source) until another version of the plugin is there, which then gets it;
//! - `bypass` lets whole batches pass by the plugin unchanged. Now and then ([`limits::BYPASS_PROBE`]) one batch is
//!   given to the plugin again; if it comes back within the budget, the plugin is back at work.
//!
//! A batch whose failures pass the budget is not half done: under `stop` and `bypass` what the plugin made of it is
//! thrown away.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::interceptor::InterceptorVersion;
use crate::limits;
use crate::metrics::{ComponentMetrics, Metric};
use crate::plan::{ErrorPlan, OnError};

/// Parts of the window: what is too old leaves in such steps.
const SLOTS: u32 = 8;

/// What becomes of a batch before the plugin sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// The plugin gets it.
    Process,
    /// It goes on unchanged.
    Bypass,
    /// It waits.
    Hold,
}

/// One link's budget.
pub(crate) struct Budget {
    plan: ErrorPlan,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    slots: VecDeque<Slot>,
    /// The version that `slots` are about.
    judged: Option<Weak<dyn InterceptorVersion>>,
    /// The version that passed its budget last. Weak, but its address is not given to another one meanwhile.
    tripped: Option<Weak<dyn InterceptorVersion>>,
    /// The policy is at work.
    is_open: bool,
    probe_at: Option<Instant>,
    is_probing: bool,
}

#[derive(Clone, Copy)]
struct Slot {
    until: Instant,
    counts: Counts,
}

#[derive(Default, Clone, Copy)]
struct Counts {
    events: u64,
    failed: u64,
    batches: u64,
    failed_batches: u64,
}

fn is_over(part: u64, whole: u64, percent: u8) -> bool {
    u128::from(part) * 100 > u128::from(whole) * u128::from(percent)
}

impl Counts {
    fn of(events: u64, failed: u64) -> Counts {
        Counts { events, failed, batches: 1, failed_batches: u64::from(failed > 0) }
    }

    fn plus(self, other: Counts) -> Counts {
        Counts {
            events: self.events + other.events,
            failed: self.failed + other.failed,
            batches: self.batches + other.batches,
            failed_batches: self.failed_batches + other.failed_batches,
        }
    }

    fn is_over(&self, plan: &ErrorPlan) -> bool {
        is_over(self.failed, self.events, plan.events_percent)
            || is_over(self.failed_batches, self.batches, plan.batches_percent)
    }
}

impl Budget {
    pub(crate) fn new(plan: ErrorPlan) -> Budget {
        Budget { plan, state: Mutex::default() }
    }

    /// The word in `status`.
    pub(crate) fn word(&self) -> &'static str {
        match (self.state.lock().is_open, self.plan.action) {
            (false, _) => "running",
            (true, OnError::Quarantine) => "failing",
            (true, OnError::Stop) => "holding",
            (true, OnError::Bypass) => "bypassed",
        }
    }

    /// What becomes of a batch that was stamped with `version`. It is replaced if it has passed its budget and `current` is another.
    pub(crate) fn gate(
        &self,
        version: &mut Arc<dyn InterceptorVersion>,
        current: impl FnOnce() -> Arc<dyn InterceptorVersion>,
        now: Instant,
        metrics: &ComponentMetrics,
    ) -> Gate {
        let mut state = self.state.lock();
        if self.plan.action == OnError::Quarantine || state.tripped.is_none() {
            return Gate::Process;
        }
        if state.is_tripped(version) {
            *version = current();
        }
        if !state.is_tripped(version) {
            if state.is_open {
                state.close();
                metrics.set_error(None);
                tracing::info!(
                    interceptor = &*metrics.name,
                    "another version of the plugin: it is at work again"
                );
            }
            return Gate::Process;
        }
        if !state.is_open {
            return Gate::Process;
        }
        if self.plan.action == OnError::Stop {
            return Gate::Hold;
        }
        if !state.is_probing && state.probe_at.is_some_and(|at| at <= now) {
            state.is_probing = true;
            return Gate::Process;
        }
        Gate::Bypass
    }

    /// Counts what the plugin did. True: the batch is to be gated again, as if the plugin had not seen it.
    pub(crate) fn judge(
        &self,
        version: &Arc<dyn InterceptorVersion>,
        events: u64,
        failed: u64,
        now: Instant,
        metrics: &ComponentMetrics,
    ) -> bool {
        let batch = Counts::of(events, failed);
        let mut state = self.state.lock();
        if state.is_open && state.is_tripped(version) && self.plan.action != OnError::Quarantine {
            return self.judge_probe(&mut state, batch, now, metrics);
        }
        if !is(&state.judged, version) {
            state.close();
            state.judged = Some(Arc::downgrade(version));
        }
        let counts = state.count(batch, now, &self.plan);
        let is_over = counts.events >= self.plan.events_min && counts.is_over(&self.plan);
        if is_over && !state.is_open {
            self.trip(&mut state, version, counts, now, metrics);
        } else if !is_over && metrics.error().is_some() {
            state.is_open = false;
            metrics.set_error(None);
            tracing::info!(interceptor = &*metrics.name, "the plugin is within its error budget again");
        }
        state.is_open && failed > 0 && self.plan.action != OnError::Quarantine
    }

    /// A batch that was on its way when the policy took over, or one that tries the plugin again.
    fn judge_probe(
        &self,
        state: &mut State,
        batch: Counts,
        now: Instant,
        metrics: &ComponentMetrics,
    ) -> bool {
        if !std::mem::take(&mut state.is_probing) {
            return batch.failed > 0;
        }
        if !is_over(batch.failed, batch.events, self.plan.events_percent) {
            state.close();
            metrics.set_error(None);
            tracing::info!(
                interceptor = &*metrics.name,
                "the plugin works again and is not bypassed any more"
            );
            return false;
        }
        state.probe_at = Some(now + limits::BYPASS_PROBE);
        true
    }

    fn trip(
        &self,
        state: &mut State,
        version: &Arc<dyn InterceptorVersion>,
        counts: Counts,
        now: Instant,
        metrics: &ComponentMetrics,
    ) {
        state.is_open = true;
        state.is_probing = false;
        state.tripped = Some(Arc::downgrade(version));
        state.probe_at = Some(now + limits::BYPASS_PROBE);
        metrics.add(Metric::InterceptorBudgetPassed, 1);
        let what = match self.plan.action {
            OnError::Quarantine => "they go to quarantine",
            OnError::Stop => "events wait here until there is another version of the plugin",
            OnError::Bypass => "events pass it by unchanged",
        };
        let Counts { events, failed, batches, failed_batches } = counts;
        let error = format!(
            "over its error budget: it failed on {failed} of {events} events, in {failed_batches} of {batches} batches; {what}"
        );
        tracing::error!(interceptor = &*metrics.name, on_error = self.plan.action.word(), "{error}");
        metrics.set_error(Some(error));
    }
}

fn is(known: &Option<Weak<dyn InterceptorVersion>>, version: &Arc<dyn InterceptorVersion>) -> bool {
    known.as_ref().is_some_and(|known| known.as_ptr().cast::<()>() == Arc::as_ptr(version).cast::<()>())
}

impl State {
    fn is_tripped(&self, version: &Arc<dyn InterceptorVersion>) -> bool {
        is(&self.tripped, version)
    }

    fn close(&mut self) {
        self.is_open = false;
        self.is_probing = false;
        self.slots.clear();
    }

    /// Counts of the window with this batch.
    fn count(&mut self, batch: Counts, now: Instant, plan: &ErrorPlan) -> Counts {
        let step = plan.window / SLOTS;
        match self.slots.back_mut() {
            Some(last) if now < last.until => last.counts = last.counts.plus(batch),
            _ => self.slots.push_back(Slot { until: now + step, counts: batch }),
        }
        let mut all = self.slots.iter().fold(Counts::default(), |all, slot| all.plus(slot.counts));
        while let Some(first) = self.slots.front() {
            let is_old =
                now.saturating_duration_since(first.until) > plan.window.max(Duration::from_millis(1));
            // The rest alone has to be enough to judge by.
            if !is_old || all.events - first.counts.events < plan.events_min {
                break;
            }
            let Counts { events, failed, batches, failed_batches } = first.counts;
            all = Counts {
                events: all.events - events,
                failed: all.failed - failed,
                batches: all.batches - batches,
                failed_batches: all.failed_batches - failed_batches,
            };
            self.slots.pop_front();
        }
        all
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
