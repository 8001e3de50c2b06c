//! Commits: which journal each of them goes to.

use std::sync::Arc;
use std::time::Instant;

use super::flight::{Cell, Flight};
use super::state::{NUMBER, Place, Shared};
use crate::api::{Commit, CommitError, Ticket};
use crate::limits;

/// It waits until it is said which of the two it goes to, as for a channel that is full.
fn between() -> CommitError {
    CommitError::Full { channel: "(between its disk and its failover)".into(), events: 0, bytes: 0 }
}

/// What the reader of a late channel had is of an opening of the primary that is gone.
pub(super) fn refused() -> CommitError {
    CommitError::Refused("the journal of the channel was opened anew: its sinks go back".into())
}

/// Bodies that are kept until sinks acknowledge do not hold the larger buffers that they were read in.
pub(super) fn compact(mut commit: Commit) -> Commit {
    commit.puts.iter_mut().for_each(|put| put.batch = put.batch.compact());
    commit
}

impl Shared {
    /// A commit without acknowledgements, where events go now. With the order held; waits for nothing.
    pub fn put(&self, commit: &Commit) -> Result<Box<dyn Ticket>, CommitError> {
        let home = {
            let mut state = self.state.lock();
            state.check()?;
            state.look();
            match state.place {
                Place::Home => {
                    // Who switches leaves a primary that takes nothing.
                    let open = state.alive().filter(|_| state.is_counted).cloned().ok_or_else(between)?;
                    Some((open, state.number + 1))
                }
                Place::Away | Place::Returning => None,
                Place::Opening | Place::Leaving | Place::Arriving | Place::Arrived => return Err(between()),
            }
        };
        let Some((open, number)) = home else {
            let put = self.away.put(commit.clone(), self.clock.now());
            return put.inspect_err(|error| self.lost(error));
        };
        match open.journal.commit(open.localise(commit, Some((NUMBER, number))), Some(self.clock.now())) {
            Ok(ticket) => Ok(Box::new(self.fly(commit, number, ticket.into()))),
            Err(error @ (CommitError::Failed(_) | CommitError::Closing)) => {
                self.state.lock().dies(&error);
                Err(between())
            }
            Err(error) => Err(error),
        }
    }

    fn fly(&self, commit: &Commit, number: u64, ticket: Arc<dyn Ticket>) -> Arc<Cell> {
        let cell = Cell::of(Some(ticket.clone()));
        let mut state = self.state.lock();
        state.number = number;
        let (commit, cell_of) = (commit.clone(), cell.clone());
        state.flights.push_back(Flight { number: Some(number), commit, ticket: Some(ticket), cell: cell_of });
        cell
    }

    /// One with acknowledgements: to the primary, or it waits for that.
    pub fn acknowledge(&self, commit: &Commit) -> Result<Box<dyn Ticket>, CommitError> {
        let mut state = self.state.lock();
        state.check()?;
        state.look();
        let cell = Cell::of(None);
        let mut flight = Flight { number: None, commit: commit.clone(), ticket: None, cell: cell.clone() };
        let open = state.alive().filter(|_| !state.is_behind_held(commit)).cloned();
        let Some(open) = open else {
            state.held.push_back(flight);
            return Ok(Box::new(cell));
        };
        if state.is_stale(commit, open.generation) {
            return Err(refused());
        }
        match state.send(&open, &mut flight, self.clock.now()) {
            Ok(()) => state.acks.push_back(flight),
            Err(error @ (CommitError::Failed(_) | CommitError::Closing)) => {
                state.dies(&error);
                state.held.push_back(flight);
            }
            Err(error) => return Err(error),
        }
        Ok(Box::new(cell))
    }

    /// A call of this opening of the primary has failed.
    pub fn has_failed(&self, generation: u64, error: &CommitError) {
        let mut state = self.state.lock();
        if state.alive().is_some_and(|open| open.generation == generation) && !state.is_over() {
            state.dies(error);
        }
    }

    /// A moment in which room may come; the error that it was full when the deadline is over.
    pub fn wait_for_room(&self, full: CommitError, deadline: Option<Instant>) -> Result<(), CommitError> {
        let now = self.clock.now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Err(full);
        }
        let left = deadline.map_or(limits::FAILOVER_FULL_RETRY, |deadline| {
            deadline.saturating_duration_since(now).min(limits::FAILOVER_FULL_RETRY)
        });
        let mut state = self.state.lock();
        state.check()?;
        self.changed.wait_for(&mut state, left);
        state.check()
    }
}
