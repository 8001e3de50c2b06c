//! What went out and came back, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::failure::Failure;

/// What was done since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct EgressStats {
    /// Requests, connects, writes and reads that were asked for.
    pub calls: u64,
    /// Of these, the ones that the configuration does not allow.
    pub denied: u64,
    /// Of these, the ones without an answer in time.
    pub timeouts: u64,
    /// All that failed, the two above included. An answer with an error's status is none of them.
    pub failures: u64,
    /// Answers with a status of 400 or above.
    pub error_answers: u64,
    /// Bytes written to connections, before TLS.
    pub bytes_sent: u64,
    /// Bytes read from connections, after TLS.
    pub bytes_received: u64,
    /// Time spent in calls.
    pub busy_ns: u64,
    /// Connections made.
    pub connections: u64,
    /// Connections open now, idle ones included.
    pub open_connections: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) calls: AtomicU64,
    pub(crate) denied: AtomicU64,
    pub(crate) timeouts: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) error_answers: AtomicU64,
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) busy_ns: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) open: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

impl Counters {
    /// Counts a call that has ended.
    pub(crate) fn call<T>(&self, took: Duration, outcome: &Result<T, Failure>) {
        add(&self.calls, 1);
        add(&self.busy_ns, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        let Err(failure) = outcome else { return };
        add(&self.failures, 1);
        match failure {
            Failure::Denied(_) => add(&self.denied, 1),
            Failure::TimedOut => add(&self.timeouts, 1),
            _ => {}
        }
    }

    pub(crate) fn snapshot(&self) -> EgressStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EgressStats {
            calls: read(&self.calls),
            denied: read(&self.denied),
            timeouts: read(&self.timeouts),
            failures: read(&self.failures),
            error_answers: read(&self.error_answers),
            bytes_sent: read(&self.bytes_sent),
            bytes_received: read(&self.bytes_received),
            busy_ns: read(&self.busy_ns),
            connections: read(&self.connections),
            open_connections: read(&self.open),
        }
    }
}
