//! What a plugin did and suffered, in numbers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flumen_egress::EgressStats;
use parking_lot::Mutex;
use serde::Serialize;

use crate::failure::Failure;

/// Counters of one plugin since its slot was made; swaps do not reset them. Events are counted by the pipeline.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PluginStats {
    /// Calls of `process`, retries and parts of bisected batches included.
    pub calls: u64,
    /// Time in these calls, crossings included.
    pub busy_ns: u64,
    /// Calls that ended in a trap.
    pub traps: u64,
    /// Calls that ran into their deadline.
    pub timeouts: u64,
    /// Calls that asked for more memory than the limit.
    pub memory_failures: u64,
    /// Answers that were larger than the limit.
    pub oversized_answers: u64,
    /// Answers that broke the interface's rules.
    pub lying_answers: u64,
    /// Calls that the plugin itself ended with an error.
    pub errors: u64,
    /// Batches that were given to a fresh instance after a failure.
    pub retries: u64,
    /// Batches that were bisected.
    pub bisections: u64,
    /// Batches in which the search for guilty rows ended at a limit.
    pub budgets_exhausted: u64,
    /// Instances that were put to work.
    pub instances: u64,
    /// Instances that were replaced after their batches or at their memory's high-water mark.
    pub recycled: u64,
    /// Most linear memory that an instance had.
    pub memory_max_bytes: u64,
    /// Log lines over the rate or over the bytes per batch.
    pub log_lines_dropped: u64,
    /// Calls of `metrics` with a wrong name, a name too many, over the rate, or over the bytes per batch.
    pub metric_calls_dropped: u64,
    /// The last failure and when it happened.
    pub last_failure: Option<LastFailure>,
    /// Counters and gauges that the plugin itself keeps.
    pub guest_metrics: BTreeMap<String, GuestMetric>,
    /// What it sent and got, if it may.
    pub egress: Option<EgressStats>,
}

/// A failure with its time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LastFailure {
    /// Nanoseconds since the Unix epoch, UTC.
    pub time: i64,
    /// What happened.
    pub text: String,
}

/// A counter or gauge of the plugin's own.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestMetric {
    /// Only grows.
    Counter(u64),
    /// Whatever was set last.
    Gauge(f64),
}

macro_rules! counters {
    ($($name:ident),+) => {
        /// The live form of [`PluginStats`].
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)+
            last_failure: Mutex<Option<LastFailure>>,
        }

        impl Counters {
            pub(crate) fn snapshot(&self, guest_metrics: BTreeMap<String, GuestMetric>) -> PluginStats {
                PluginStats {
                    $($name: self.$name.load(Ordering::Relaxed),)+
                    last_failure: self.last_failure.lock().clone(),
                    guest_metrics,
                    egress: None,
                }
            }
        }
    };
}

counters!(
    calls,
    busy_ns,
    traps,
    timeouts,
    memory_failures,
    oversized_answers,
    lying_answers,
    errors,
    retries,
    bisections,
    budgets_exhausted,
    instances,
    recycled,
    memory_max_bytes,
    log_lines_dropped,
    metric_calls_dropped
);

impl Counters {
    pub(crate) fn call(&self, took: Duration, memory_bytes: u64) {
        bump(&self.calls);
        self.busy_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.memory_max_bytes.fetch_max(memory_bytes, Ordering::Relaxed);
    }

    pub(crate) fn failure(&self, failure: &Failure) {
        match failure {
            Failure::Trap(_) => bump(&self.traps),
            Failure::Timeout(_) => bump(&self.timeouts),
            Failure::Memory { .. } => bump(&self.memory_failures),
            Failure::Oversized { .. } => bump(&self.oversized_answers),
            Failure::Lying(_) | Failure::Abi(_) => bump(&self.lying_answers),
            Failure::Refused(_) => bump(&self.errors),
            Failure::Instantiate(_) | Failure::HostFull(_) | Failure::Reopen(_) => {}
        }
        *self.last_failure.lock() = Some(LastFailure { time: now(), text: failure.to_string() });
    }
}

pub(crate) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Nanoseconds since the Unix epoch; 0 on a clock before it.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
