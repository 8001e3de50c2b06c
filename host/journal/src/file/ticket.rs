//! How the committer tells producers that their commits are durable.
//!
//! Commits that gather for one group share a bell, so a group of any size is one system call, made once for all.
//! Producers that wait for another group sleep on.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::thread::futex;

use crate::api::{CommitError, Ticket};

/// Wakes all that wait for it.
#[derive(Default)]
pub struct Bell {
    rings: AtomicU32,
}

impl Bell {
    pub fn ring(&self) {
        self.rings.fetch_add(1, Ordering::Release);
        let woken = futex::wake(&self.rings, futex::Flags::PRIVATE, i32::MAX as u32);
        debug_assert!(woken.is_ok(), "{woken:?}");
    }

    /// Until it rings after `rings`, the time is over, or for no reason.
    fn wait(&self, rings: u32, timeout: Option<Duration>) {
        let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
        // Whatever it answers, who waits looks again.
        let _ = futex::wait(&self.rings, futex::Flags::PRIVATE, rings, timeout.as_ref());
    }
}

/// Where a commit's outcome arrives.
pub struct TicketCell {
    outcome: OnceLock<Result<u64, CommitError>>,
    bell: Arc<Bell>,
}

impl TicketCell {
    pub fn new(bell: Arc<Bell>) -> TicketCell {
        TicketCell { outcome: OnceLock::new(), bell }
    }

    pub fn resolve(&self, outcome: Result<u64, CommitError>) {
        self.settle(outcome);
        self.bell.ring();
    }

    /// Who waits sees it when the bell rings.
    fn settle(&self, outcome: Result<u64, CommitError>) {
        let again = self.outcome.set(outcome);
        debug_assert!(again.is_ok(), "a commit has two outcomes");
    }
}

/// All of a group, with one ring for those that share a bell.
pub fn resolve_all<'a>(outcomes: impl Iterator<Item = (&'a TicketCell, u64)>) {
    let mut last: Option<&Arc<Bell>> = None;
    for (cell, commit) in outcomes {
        if let Some(bell) = last.filter(|last| !Arc::ptr_eq(last, &cell.bell)) {
            bell.ring();
        }
        cell.settle(Ok(commit));
        last = Some(&cell.bell);
    }
    if let Some(bell) = last {
        bell.ring();
    }
}

/// A ticket of a file journal.
pub struct FileTicket(pub Arc<TicketCell>);

impl Ticket for FileTicket {
    fn wait(&self, timeout: Option<Duration>) -> Option<Result<u64, CommitError>> {
        let TicketCell { outcome, bell } = self.0.as_ref();
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            // Before the outcome is looked at: a ring in between ends the wait.
            let rings = bell.rings.load(Ordering::Acquire);
            if let Some(outcome) = outcome.get() {
                return Some(outcome.clone());
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            bell.wait(rings, left);
        }
    }
}
