//! The memory budget of the process: what it may have, what its pipelines may take of it, and what is done when it has more.
//!
//! Every queue has a limit of its own. The budget is the limit of their sum, and of what no queue knows: plugins, fragments, the program.
//! - **Before anything runs** ([`sum`]) pipelines that may take more than `memory_max` are refused; without `memory_max` that is a warning.
//! - **While it runs** the main loop looks at the process's own memory ([`MemoryWatch`]). Above the budget free memory is given back to the
//!   system first ([`allocator`]); if that is not enough, sources wait at [`flumen_pipeline::MemoryGate`] until a tenth of the budget is free.

mod allocator;
mod machine;
mod sum;

use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_pipeline::memory::release_bytes;
use flumen_pipeline::plan::AgentPlan;
use flumen_pipeline::{MemoryChange, MemoryGate};
use serde::Serialize;

pub use machine::{Limit, limit};
pub use sum::{MemorySum, error};

use crate::agent::Agent;

/// How often the memory is looked at while there is enough. Above [`NEAR_PERCENT`] it is each round of the main loop.
const LOOK: Duration = Duration::from_secs(1);

/// Of the budget: from here on a fast source could use up the rest between two looks.
const NEAR_PERCENT: u64 = 75;

/// Of what the machine or the cgroup has, the budget that is not in a file: the rest is for the system, and for what the kernel counts as
/// the process's that is not its own (pages of files that it writes).
const SHARE_PERCENT: u64 = 75;

/// Parts of the sum that a line of the log names.
const PARTS_NAMED: usize = 5;

/// What the process may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Its own memory.
    pub max_bytes: u64,
    /// Who says so.
    pub from: &'static str,
}

impl Budget {
    /// That of a plan; without one, a share of what there is. `None`: nobody knows what there is.
    pub fn of(plan: &AgentPlan, limit: Option<Limit>) -> Option<Budget> {
        let own = plan.memory_max_bytes.map(|max_bytes| Budget { max_bytes, from: "`memory_max`" });
        own.or_else(|| {
            let Limit { bytes, is_of_cgroup } = limit?;
            let from = match is_of_cgroup {
                true => "three quarters of the cgroup's limit",
                false => "three quarters of the machine's memory",
            };
            Some(Budget { max_bytes: percent(bytes, SHARE_PERCENT), from })
        })
    }
}

/// Without the detour over a fraction, and without an overflow.
fn percent(bytes: u64, percent: u64) -> u64 {
    bytes / 100 * percent
}

/// Pipelines may take more than the machine has for them: said, and not refused, since nobody asked for that budget.
pub fn warning(plan: &AgentPlan, budget: Budget, sum: &MemorySum) -> Option<String> {
    if plan.memory_max_bytes.is_some() {
        return None;
    }
    let (reason, fix) = sum.too_much(budget.max_bytes, budget.from)?;
    Some(format!("{reason}; {fix}"))
}

/// The memory of a running agent, for `flumen status`.
#[derive(Debug, Serialize)]
pub struct MemoryView {
    /// Memory of its own, without pages of files.
    pub memory_bytes: Option<u64>,
    /// What it may have.
    pub memory_max_bytes: Option<u64>,
    /// Who says so.
    pub memory_max_from: Option<&'static str>,
    /// Its sources wait because it has more.
    pub is_held_by_memory: bool,
    /// How often they began to, since the start.
    pub times_held_by_memory: u64,
    /// Batches that went through meanwhile, because waiting would have freed nothing.
    pub batches_passed_by_memory: u64,
}

impl MemoryView {
    /// As it is now.
    pub fn of(gate: &MemoryGate, budget: Option<Budget>) -> MemoryView {
        MemoryView {
            memory_bytes: machine::own_bytes(),
            memory_max_bytes: budget.map(|budget| budget.max_bytes),
            memory_max_from: budget.map(|budget| budget.from),
            is_held_by_memory: gate.is_held(),
            times_held_by_memory: gate.times_held(),
            batches_passed_by_memory: gate.passed(),
        }
    }
}

/// Looks at the memory of the process, from the main loop.
#[derive(Default)]
pub struct MemoryWatch {
    last: Option<Instant>,
    is_near: bool,
    /// Whose sum was looked at.
    plan: Option<Arc<AgentPlan>>,
    /// Batches that had passed the gate when it was held last.
    passed: u64,
    /// That holding sources does not help has been said of this plan.
    has_said: bool,
    /// The process cannot be looked at, which was said.
    is_blind: bool,
}

impl MemoryWatch {
    /// The main loop has gone round: a look, if one is due.
    pub fn went_round(&mut self, agent: &Agent) {
        if !self.is_near && self.last.is_some_and(|last| last.elapsed() < LOOK) {
            return;
        }
        self.last = Some(Instant::now());
        self.see_plan(agent);
        let gate = agent.memory();
        let Some((budget, bytes)) = self.figures(agent) else {
            // Nothing to hold anybody against.
            gate.look(0, u64::MAX);
            self.is_near = false;
            return;
        };
        let Budget { max_bytes, from } = budget;
        match gate.look(bytes, max_bytes) {
            Some(MemoryChange::Held) => {
                self.passed = gate.passed();
                let below = release_bytes(max_bytes);
                tracing::warn!(
                    memory_bytes = bytes,
                    memory_max_bytes = max_bytes,
                    from,
                    until_below_bytes = below,
                    "the agent has more memory than it may: sources wait, sinks go on"
                );
            }
            Some(MemoryChange::Released) => {
                tracing::info!(
                    memory_bytes = bytes,
                    memory_max_bytes = max_bytes,
                    "enough memory is free: sources go on"
                );
            }
            None if gate.is_held() && gate.passed() > self.passed && !self.has_said => {
                self.has_said = true;
                let largest = MemorySum::of(&agent.plan()).largest(PARTS_NAMED);
                let (in_channels, remembered) = agent.taken_bytes();
                tracing::warn!(
                    memory_bytes = bytes,
                    memory_max_bytes = max_bytes,
                    from,
                    channels_in_memory_bytes = in_channels,
                    remembered_by_plugins_bytes = remembered,
                    "the memory budget is too small for what runs: sources that have nothing in memory wait in vain, and go on one batch at a \
                     time; raise `memory_max`, or lower what is configured (the largest parts: {largest})"
                );
            }
            None => {}
        }
        self.is_near = gate.is_held() || bytes > percent(max_bytes, NEAR_PERCENT);
    }

    /// The budget, and what there is when all that is free was given back, if there was too much.
    fn figures(&mut self, agent: &Agent) -> Option<(Budget, u64)> {
        let budget = agent.budget()?;
        let bytes = machine::own_bytes();
        if bytes.is_none() && !std::mem::replace(&mut self.is_blind, true) {
            tracing::warn!(
                "/proc/self/status does not say how much memory the agent has: its budget holds nobody"
            );
        }
        let bytes = bytes?;
        if !agent.memory().is_held() && bytes <= budget.max_bytes {
            return Some((budget, bytes));
        }
        if !allocator::give_back() {
            tracing::debug!("the allocator does not give free memory back");
        }
        Some((budget, machine::own_bytes().unwrap_or(bytes)))
    }

    /// Once for each plan: whether its pipelines may take more than there is.
    fn see_plan(&mut self, agent: &Agent) {
        let plan = agent.plan();
        if self.plan.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &plan)) {
            return;
        }
        self.has_said = false;
        if let Some(warning) = agent.budget().and_then(|budget| warning(&plan, budget, &MemorySum::of(&plan)))
        {
            tracing::warn!("{warning}");
        }
        self.plan = Some(plan);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_that_of_the_file_or_a_share_of_what_there_is() {
        let plan = |memory_max_bytes| AgentPlan {
            name: "test".into(),
            data_dir: "data".into(),
            plugin_dir: "plugins".into(),
            drain_timeout: Duration::ZERO,
            watch: false,
            memory_max_bytes,
            pipelines: Vec::new(),
            bridges: Vec::new(),
        };
        let limit = |is_of_cgroup| Some(Limit { bytes: 1_000, is_of_cgroup });
        let figures = |budget: Option<Budget>| budget.map(|budget| (budget.max_bytes, budget.from));
        assert_eq!(figures(Budget::of(&plan(Some(400)), limit(true))), Some((400, "`memory_max`")));
        assert_eq!(
            figures(Budget::of(&plan(None), limit(true))),
            Some((750, "three quarters of the cgroup's limit"))
        );
        assert_eq!(
            figures(Budget::of(&plan(None), limit(false))),
            Some((750, "three quarters of the machine's memory"))
        );
        assert_eq!(Budget::of(&plan(None), None), None);
    }
}
