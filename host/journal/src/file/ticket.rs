//! How the committer tells producers that their commits are durable.
//!
//! Commits that gather for one group share a bell: whoever wrote it wakes one of them and goes on, and that one wakes the others, and the
//! channels' readers. Producers that wait for another group sleep on. It rings when the next group may be written: the one that is woken
//! gets the processor at once, often that of whoever rang, and writes in its place ([`Bells`]).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Condvar;
use rustix::thread::futex;
use smallvec::SmallVec;

use crate::api::{CommitError, Ticket};

/// Wakes all that wait for it: the one who rings wakes one, and that one the others, while the next group is written. To wake a
/// core that sleeps takes a virtual machine as long as to copy ten commits.
pub struct Bell {
    rings: AtomicU32,
    /// Whoever wakes next wakes the others.
    passes_on: AtomicBool,
    /// Readers wait here for events.
    readers: Arc<Condvar>,
}

impl Bell {
    pub fn new(readers: &Arc<Condvar>) -> Arc<Bell> {
        Arc::new(Bell {
            rings: AtomicU32::new(0),
            passes_on: AtomicBool::new(false),
            readers: readers.clone(),
        })
    }

    #[cfg(test)]
    pub fn has_rung(&self) -> bool {
        self.rings.load(Ordering::Acquire) > 0
    }

    /// Counts first: were it known before that whoever comes back wakes the others, one that came back in between (its time was over)
    /// would do so while others still fall asleep, and the one who is woken then would wake none of them.
    pub fn ring(&self) {
        self.count();
        self.wake_one();
    }

    /// From here on nobody falls asleep who looked for its outcome before.
    fn count(&self) {
        self.rings.fetch_add(1, Ordering::Release);
    }

    fn wake_one(&self) {
        // With what was counted: who sees this wakes all that sleep, and nobody joins them.
        self.passes_on.store(true, Ordering::Release);
        if self.wake(1) == 0 {
            self.readers.notify_all();
        }
    }

    /// Until it rings after `rings`, the time is over, or for no reason.
    fn wait(&self, rings: u32, timeout: Option<Duration>) {
        let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
        // Whatever it answers, who waits looks again.
        futex::wait(&self.rings, futex::Flags::PRIVATE, rings, timeout.as_ref()).ok();
        if self.passes_on.swap(false, Ordering::Acquire) {
            self.wake(i32::MAX as u32);
            self.readers.notify_all();
        }
    }

    /// How many were woken. Each of them comes back from [`Bell::wait`].
    fn wake(&self, threads: u32) -> usize {
        let woken = futex::wake(&self.rings, futex::Flags::PRIVATE, threads);
        debug_assert!(woken.is_ok(), "{woken:?}");
        woken.unwrap_or_default()
    }
}

/// Where a commit's outcome arrives.
#[derive(Default)]
pub struct TicketCell {
    outcome: OnceLock<Result<u64, CommitError>>,
    /// Once its commit is handed in.
    bell: OnceLock<Arc<Bell>>,
}

impl TicketCell {
    /// Its commit is in the queue from here on.
    pub fn join(&self, bell: &Arc<Bell>) {
        let again = self.bell.set(bell.clone());
        debug_assert!(again.is_ok(), "a commit is handed in twice");
    }

    pub fn resolve(&self, outcome: Result<u64, CommitError>) {
        self.settle(outcome);
        if let Some(bell) = self.bell.get() {
            bell.ring();
        }
    }

    /// The outcome, if there is one by now.
    pub fn outcome(&self) -> Option<Result<u64, CommitError>> {
        self.outcome.get().cloned()
    }

    /// Who waits sees it when the bell rings.
    fn settle(&self, outcome: Result<u64, CommitError>) {
        let again = self.outcome.set(outcome);
        debug_assert!(again.is_ok(), "a commit has two outcomes");
    }
}

/// The ticket of a commit that is on its way, in the hands of whoever writes.
#[derive(Default)]
pub struct Owed(Arc<TicketCell>);

impl Owed {
    pub fn cell(&self) -> &Arc<TicketCell> {
        &self.0
    }

    pub fn resolve(&self, outcome: Result<u64, CommitError>) {
        self.0.resolve(outcome);
    }
}

impl Drop for Owed {
    /// A panic of whoever writes (a bug) leaves nobody waiting for ever.
    fn drop(&mut self) {
        if std::thread::panicking() && self.0.outcome.get().is_none() {
            self.resolve(Err(CommitError::Failed("writing it panicked (a bug of Flumen)".into())));
        }
    }
}

/// Bells of commits that have their outcome, and did not ring yet.
#[derive(Default)]
pub struct Bells(SmallVec<[Arc<Bell>; 1]>);

impl Bells {
    /// A commit is durable: who waits for it sees it when its bell rings.
    pub fn settle(&mut self, cell: &TicketCell, commit: u64) {
        cell.settle(Ok(commit));
        // Those that gathered together follow each other.
        if let Some(bell) = cell.bell.get()
            && self.0.last().is_none_or(|last| !Arc::ptr_eq(last, bell))
        {
            self.0.push(bell.clone());
        }
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn ring(&mut self) {
        self.0.drain(..).for_each(|bell| bell.ring());
    }
}

/// A ticket of a file journal.
pub struct FileTicket(pub Arc<TicketCell>);

impl Ticket for FileTicket {
    fn wait(&self, timeout: Option<Duration>) -> Option<Result<u64, CommitError>> {
        let TicketCell { outcome, bell } = self.0.as_ref();
        // Handed in before anybody got the ticket.
        let Some(bell) = bell.get() else { return self.0.outcome() };
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

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    fn settle_and_ring<'a>(cells: impl Iterator<Item = &'a TicketCell>) {
        let mut bells = Bells::default();
        cells.zip(0..).for_each(|(cell, commit)| bells.settle(cell, commit));
        bells.ring();
    }

    #[test]
    fn one_ring_wakes_all_of_a_group_and_nobody_else() {
        let (bell, later) = (Bell::new(&Arc::default()), Bell::new(&Arc::default()));
        let cell = |bell: &Arc<Bell>| {
            let cell = Arc::<TicketCell>::default();
            cell.join(bell);
            cell
        };
        let group: Vec<Arc<TicketCell>> = (0..40).map(|_| cell(&bell)).collect();
        let other = cell(&later);
        std::thread::scope(|scope| {
            let wait = |cell: &Arc<TicketCell>| {
                let ticket = FileTicket(cell.clone());
                scope.spawn(move || ticket.wait(None))
            };
            let waiting: Vec<_> = group.iter().map(wait).collect();
            // Those that do not wait yet find their outcome.
            settle_and_ring(group.iter().map(AsRef::as_ref));
            for (thread, commit) in waiting.into_iter().zip(0..) {
                assert!(matches!(thread.join(), Ok(Some(Ok(number))) if number == commit));
            }
        });
        let ticket = FileTicket(other.clone());
        assert!(ticket.wait(Some(Duration::ZERO)).is_none());
        assert!(ticket.wait(Some(Duration::from_millis(5))).is_none());
        other.resolve(Err(CommitError::Closing));
        assert!(matches!(ticket.wait(None), Some(Err(CommitError::Closing))));
    }

    /// Somebody's time is over between the two steps of a ring: the one who is woken by it wakes the others nevertheless.
    #[test]
    fn one_that_comes_back_within_a_ring_takes_it_from_nobody() {
        let bell = Bell::new(&Arc::default());
        bell.count();
        bell.wait(0, Some(Duration::ZERO));
        bell.wake_one();
        assert!(bell.passes_on.load(Ordering::Relaxed));
    }

    /// Whether or not somebody waits for the group's commits.
    #[test]
    fn readers_hear_of_every_group() {
        for producers in [0, 1, 5] {
            let readers = Arc::<Condvar>::default();
            let (bell, published) = (Bell::new(&readers), Mutex::new(false));
            let cells: Vec<_> = (0..producers).map(|_| Arc::<TicketCell>::default()).collect();
            cells.iter().for_each(|cell| cell.join(&bell));
            std::thread::scope(|scope| {
                for cell in &cells {
                    let ticket = FileTicket(cell.clone());
                    scope.spawn(move || ticket.wait(None));
                }
                let reader = scope.spawn(|| {
                    let mut published = published.lock();
                    while !*published {
                        assert!(!readers.wait_for(&mut published, Duration::from_secs(30)).timed_out());
                    }
                });
                *published.lock() = true;
                let of_nobody = TicketCell::default();
                of_nobody.join(&bell);
                let all = cells.iter().map(AsRef::as_ref).chain([&of_nobody]);
                settle_and_ring(all);
                reader.join().unwrap();
            });
        }
    }
}
