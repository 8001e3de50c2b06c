//! Where the outcome of a commit appears that another thread writes.
//!
//! The first answer holds, and all who wait see it, whether they came before it or after it.
//!
//! Constraint: who takes a commit answers it. That the cell was let go without an answer tells nobody.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::api::{CommitError, Ticket};

/// See the module; shared by whoever writes the commit and by its ticket, which it is itself.
#[derive(Debug, Default)]
pub struct CommitCell {
    outcome: Mutex<Option<Result<u64, CommitError>>>,
    changed: Condvar,
}

impl CommitCell {
    /// The outcome, if there was none yet: the commit's number, or why it does not count.
    pub fn answer(&self, outcome: Result<u64, CommitError>) {
        self.outcome.lock().get_or_insert(outcome);
        self.changed.notify_all();
    }
}

impl Ticket for CommitCell {
    fn wait(&self, timeout: Option<Duration>) -> Option<Result<u64, CommitError>> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut outcome = self.outcome.lock();
        while outcome.is_none() {
            match deadline {
                None => self.changed.wait(&mut outcome),
                Some(deadline) if self.changed.wait_until(&mut outcome, deadline).timed_out() => break,
                Some(_) => {}
            }
        }
        outcome.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_answer_is_that_of_all_who_wait() {
        let cell = CommitCell::default();
        assert!(cell.wait(Some(Duration::ZERO)).is_none());
        let wait = |timeout| cell.wait(timeout);
        std::thread::scope(|scope| {
            let timeouts = [None, Some(Duration::from_secs(60)), Some(Duration::MAX)];
            let waiting = timeouts.map(|timeout| scope.spawn(move || wait(timeout)));
            cell.answer(Ok(7));
            cell.answer(Err(CommitError::Closing));
            for thread in waiting {
                assert!(matches!(thread.join(), Ok(Some(Ok(7)))));
            }
        });
        assert!(matches!(cell.wait(None), Some(Ok(7))));
    }
}
