//! Between the two journals: leaving the primary, and the way back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::away::AwayError;
use super::flight::Flight;
use super::state::{Identity, JOURNAL, NUMBER, Open, Place, Shared};
use super::{CURSOR, Moved, Positions, Primary, SOURCES};
use crate::api::{Commit, CommitError, Put, Ticket};
use crate::limits;
use crate::state::StateWrites;

/// Why the way back does not go on now.
enum Trouble {
    /// A channel of the primary is full: its sinks have to make room.
    Full,
    /// The primary is away again, or the journal closes.
    Again,
    /// The secondary has failed.
    Lost(CommitError),
}

impl From<AwayError> for Trouble {
    fn from(error: AwayError) -> Trouble {
        match error {
            AwayError::Lost(error) => Trouble::Lost(error),
            AwayError::Unread(_) => Trouble::Again,
        }
    }
}

/// Looks after both until the journal closes.
pub(super) fn run(shared: &Shared) {
    let mut opened = Instant::now();
    while !shared.wait_end(limits::FAILOVER_TICK) {
        let (place, is_dead) = {
            let mut state = shared.state.lock();
            state.look();
            (state.place, state.is_dead)
        };
        let is_down = is_dead || shared.health.is_down();
        if !is_dead {
            shared.send_held();
        }
        match place {
            Place::Home if is_down => {
                let _order = shared.order.lock();
                // Without room there the sources wait, as for a full channel.
                drop(shared.leave());
            }
            Place::Home => {}
            Place::Returning if is_down => shared.break_return(),
            Place::Away if is_dead && opened.elapsed() >= shared.plan.check_interval => {
                opened = Instant::now();
                shared.open_again();
            }
            Place::Away if is_down => {}
            Place::Away | Place::Returning => match shared.go_back() {
                Ok(()) | Err(Trouble::Full) => {}
                Err(Trouble::Again) => shared.break_return(),
                Err(Trouble::Lost(error)) => shared.lost(&error),
            },
        }
    }
}

impl Shared {
    /// The secondary has failed: nothing goes on.
    pub fn lost(&self, error: &CommitError) {
        if !matches!(error, CommitError::Failed(_)) {
            return;
        }
        let reason = format!("where events go while the disk of the channel is away: {error}");
        tracing::error!(pipeline = self.name, "{reason}");
        self.state.lock().failed.get_or_insert(reason.into());
        self.changed.notify_all();
    }

    /// Events go to the secondary from here on. With the order held.
    pub fn leave(&self) -> Result<(), CommitError> {
        let (open, commits, name) = {
            let mut state = self.state.lock();
            state.check()?;
            state.look();
            if state.place != Place::Home {
                return Ok(());
            }
            let Some(open) = state.primary.clone() else { return Err(CommitError::Closing) };
            let commits = state.flights.iter().map(|flight| (flight.number, flight.commit.clone()));
            // Empty: it is not known, and one of an earlier time does not count.
            let name = state.identity.as_ref().and_then(Identity::known).unwrap_or_default().to_vec();
            (open, commits.collect(), name)
        };
        let sources: Positions = open.journal.positions(SOURCES).into_iter().collect();
        let waiting = open.journal.status().waiting_for;
        let opened = self.away.lock().open(sources, commits, vec![(JOURNAL.to_vec(), name)]);
        opened.inspect_err(|error| self.lost(error))?;
        self.health.has_failed();
        let mut state = self.state.lock();
        let flights = std::mem::take(&mut state.flights);
        if !state.is_dead {
            state.reason = waiting;
            state.undecided = flights.iter().filter_map(|flight| flight.ticket.clone()).collect();
        }
        for flight in &flights {
            flight.cell.answer(Ok(flight.number.unwrap_or_default()));
        }
        state.place = Place::Away;
        state.failovers += 1;
        let (reason, kind) = (state.reason.clone().unwrap_or_default(), self.plan.kind.word());
        let dir = self.plan.dir.as_ref().map(|dir| dir.display().to_string());
        tracing::error!(
            pipeline = self.name,
            reason,
            dir,
            in_doubt = flights.len(),
            "the disk of the channel takes nothing: events go to the {kind}"
        );
        Ok(())
    }

    /// The primary has failed: perhaps its disk is well by now.
    fn open_again(&self) {
        match self.open_primary() {
            Ok(()) => {
                self.state.lock().reason = Some("the disk of the channel is being probed".into());
                tracing::info!(pipeline = self.name, "the journal of the channel is open again");
            }
            Err(error) => {
                let reason = error.to_string();
                let before = self.state.lock().reason.replace(reason.clone());
                if before.as_ref() != Some(&reason) {
                    tracing::error!(pipeline = self.name, "{reason}");
                }
            }
        }
    }

    /// Acknowledgements that wait for the primary. What finds a channel full waits on, and with it what its reader has behind it; those of
    /// others make the room.
    fn send_held(&self) {
        let mut state = self.state.lock();
        let Some(open) = state.alive().cloned() else { return };
        let (mut waiting, mut failed) = (VecDeque::<Flight>::new(), None);
        while let Some(mut flight) = state.held.pop_front() {
            if waiting.iter().any(|before| before.shares_reader(&flight.commit)) {
                waiting.push_back(flight);
                continue;
            }
            match state.send(&open, &mut flight, self.clock.now()) {
                Ok(()) => state.acks.push_back(flight),
                Err(CommitError::Full { .. }) => waiting.push_back(flight),
                Err(error @ (CommitError::Failed(_) | CommitError::Closing)) => {
                    waiting.push_back(flight);
                    failed = Some(error);
                    break;
                }
                Err(error) => flight.cell.answer(Err(error)),
            }
        }
        waiting.append(&mut state.held);
        state.held = waiting;
        if let Some(error) = failed {
            state.dies(&error);
        }
    }

    /// The primary is away again.
    fn break_return(&self) {
        self.away.lock().break_return();
        let mut state = self.state.lock();
        if state.place == Place::Returning {
            state.place = Place::Away;
            tracing::info!(pipeline = self.name, "the way back was broken off");
        }
    }

    /// The way back, as far as it goes.
    fn go_back(&self) -> Result<(), Trouble> {
        let (open, place) = {
            let mut state = self.state.lock();
            // A primary that has failed says of what it was handed that it has it, so it is looked at before it is asked.
            state.look();
            let Some(open) = state.alive().filter(|_| state.undecided.is_empty()).cloned() else {
                return Ok(());
            };
            (open, state.place)
        };
        if place == Place::Away {
            self.begin_return(&open).map_err(AwayError::Lost)?;
        }
        let mut step = Step { shared: self, open };
        loop {
            let moved = self.away.lock().move_some(&mut step)?;
            if self.state.lock().is_over() || self.health.is_down() {
                return Err(Trouble::Again);
            }
            // Nearly there: what is put now waits for the primary, or a busy source would never let it end.
            if moved < limits::FAILOVER_STEP_BYTES {
                return self.come_back(&mut step);
            }
        }
    }

    fn begin_return(&self, open: &Open) -> Result<(), CommitError> {
        let number = open.journal.position(NUMBER);
        let number = number.and_then(|value| value.as_slice().try_into().ok()).map_or(0, u64::from_le_bytes);
        let mut away = self.away.lock();
        away.marks = open.journal.positions(CURSOR).into_iter().collect();
        away.begin_return(number)?;
        self.state.lock().place = Place::Returning;
        tracing::info!(
            pipeline = self.name,
            "the disk of the channel is well: what is in the {} is moved to it",
            self.plan.kind.word()
        );
        Ok(())
    }

    fn come_back(&self, step: &mut Step<'_>) -> Result<(), Trouble> {
        let _order = self.order.lock();
        let mut away = self.away.lock();
        away.settle_puts().map_err(AwayError::Lost)?;
        while away.move_some(step)? > 0 {}
        away.come_back(step)?;
        let mut state = self.state.lock();
        state.place = Place::Home;
        state.reason = None;
        tracing::info!(pipeline = self.name, "everything was moved: events go to the channel's disk again");
        Ok(())
    }
}

/// Commits of the way back.
struct Step<'a> {
    shared: &'a Shared,
    open: Open,
}

impl Step<'_> {
    fn failed(&self, error: &CommitError) -> Trouble {
        self.shared.state.lock().dies(error);
        Trouble::Again
    }

    fn wait(&self, ticket: Arc<dyn Ticket>) -> Result<(), Trouble> {
        let until = Instant::now() + limits::FAILOVER_STEP_WAIT;
        loop {
            match ticket.wait(Some(limits::FAILOVER_TICK)) {
                Some(Ok(_)) => return Ok(()),
                Some(Err(error)) => return Err(self.failed(&error)),
                None => {}
            }
            let mut state = self.shared.state.lock();
            if state.is_over() || Instant::now() >= until {
                // It may come to count later: before that is decided nobody knows where to go on.
                state.undecided.push(ticket);
                return Err(Trouble::Again);
            }
        }
    }
}

impl Primary for Step<'_> {
    type Trouble = Trouble;

    fn step(
        &mut self,
        moved: &[Moved],
        positions: &[(Vec<u8>, Vec<u8>)],
        state: &[StateWrites],
    ) -> Result<(), Trouble> {
        let put = |one: &Moved| {
            let (channel, _) = self.open.channels.get(one.channel)?;
            Some(Put { channels: vec![*channel], batch: one.batch.clone() })
        };
        let commit = Commit {
            puts: moved.iter().filter_map(put).collect(),
            positions: positions.to_vec(),
            state: state.to_vec(),
            acks: Vec::new(),
        };
        match self.open.journal.commit(commit, Some(self.shared.clock.now())) {
            Ok(ticket) => self.wait(ticket.into()),
            Err(CommitError::Full { .. }) => Err(Trouble::Full),
            Err(error) => Err(self.failed(&error)),
        }
    }
}
