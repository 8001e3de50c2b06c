//! Commits that were handed in and are not known to be durable, and where their outcome appears.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::api::{Ack, Commit, CommitError, Ticket};
use crate::limits;

/// A commit that the primary was given, or that waits for it.
pub(super) struct Flight {
    /// By which the primary tells whether it has it. `None`: with acknowledgements, and it was never handed to the primary.
    pub number: Option<u64>,
    /// As it was handed in.
    pub commit: Commit,
    /// The primary's; `None`: it waits for the primary.
    pub ticket: Option<Arc<dyn Ticket>>,
    pub cell: Arc<Cell>,
}

impl Flight {
    /// It was handed to the primary, perhaps once more.
    pub fn sent(&mut self, ticket: Arc<dyn Ticket>) {
        self.cell.sent(ticket.clone());
        self.ticket = Some(ticket);
    }

    /// The primary's answer, if there is one.
    pub fn outcome(&self) -> Option<Result<u64, CommitError>> {
        self.ticket.as_ref()?.wait(Some(Duration::ZERO))
    }

    /// Both acknowledge for the same reader: their order counts.
    pub fn shares_reader(&self, other: &Commit) -> bool {
        let is_same = |ack: &Ack, known: &Ack| (ack.channel, ack.reader) == (known.channel, known.reader);
        self.commit.acks.iter().any(|ack| other.acks.iter().any(|known| is_same(ack, known)))
    }
}

/// Where an outcome appears, whichever journal it comes from.
#[derive(Default)]
pub(super) struct Cell {
    state: Mutex<CellState>,
    changed: Condvar,
}

#[derive(Default)]
struct CellState {
    /// The primary's ticket.
    ticket: Option<Arc<dyn Ticket>>,
    outcome: Option<Result<u64, CommitError>>,
}

impl Cell {
    pub fn of(ticket: Option<Arc<dyn Ticket>>) -> Arc<Cell> {
        Arc::new(Cell { state: Mutex::new(CellState { ticket, outcome: None }), changed: Condvar::new() })
    }

    /// It was handed to the primary, perhaps once more.
    pub fn sent(&self, ticket: Arc<dyn Ticket>) {
        self.state.lock().ticket = Some(ticket);
        self.changed.notify_all();
    }

    pub fn answer(&self, outcome: Result<u64, CommitError>) {
        self.state.lock().outcome.get_or_insert(outcome);
        self.changed.notify_all();
    }

    /// A slice of a wait. An error of the primary is no outcome: the commit goes elsewhere. That a reader began again is one.
    fn wait_slice(&self, left: Duration) -> Option<Result<u64, CommitError>> {
        let ticket = {
            let state = self.state.lock();
            if state.outcome.is_some() {
                return state.outcome.clone();
            }
            state.ticket.clone()
        };
        match ticket.and_then(|ticket| ticket.wait(Some(left))) {
            Some(outcome @ (Ok(_) | Err(CommitError::Refused(_)))) => {
                self.answer(outcome.clone());
                return Some(outcome);
            }
            Some(Err(_)) => {}
            // The primary's ticket has waited.
            None if self.state.lock().ticket.is_some() => return self.state.lock().outcome.clone(),
            None => {}
        }
        let mut state = self.state.lock();
        if state.outcome.is_none() && !left.is_zero() {
            self.changed.wait_for(&mut state, left);
        }
        state.outcome.clone()
    }
}

impl Ticket for Cell {
    fn wait(&self, timeout: Option<Duration>) -> Option<Result<u64, CommitError>> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let slice = left.map_or(limits::FAILOVER_TICK, |left| left.min(limits::FAILOVER_TICK));
            if let Some(outcome) = self.wait_slice(slice) {
                return Some(outcome);
            }
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
        }
    }
}
