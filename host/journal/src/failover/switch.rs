//! Between the two journals: leaving the primary, and the way back. One thread does both, and holds no lock while it waits; what is put
//! meanwhile finds a place in which it waits for its deadline ([`Place`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::away::AwayError;
use super::flight::Flight;
use super::open::last_number;
use super::state::{Identity, JOURNAL, Open, Place, Shared};
use super::{CURSOR, FailoverPlan, Moved, Positions, Primary, SOURCES};
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

/// What was on its way to the primary when it was left.
struct Leaving {
    open: Open,
    commits: Vec<(Option<u64>, Commit)>,
    /// The primary's.
    name: Vec<u8>,
}

/// Looks after both until the journal closes.
pub(super) fn run(shared: &Shared) {
    if !shared.begin_late() {
        return;
    }
    let mut opened = Instant::now();
    while !shared.wait_end(limits::FAILOVER_TICK) {
        let (place, is_dead, is_counted) = {
            let mut state = shared.state.lock();
            state.look();
            (state.place, state.is_dead, state.is_counted)
        };
        let is_down = is_dead || shared.health.is_down();
        if !is_dead {
            shared.count();
            shared.send_held();
        }
        let is_due = is_dead && opened.elapsed() >= shared.plan.check_interval;
        let outcome = match place {
            // Nothing is on its way to one that cannot say yet what counts, so there is nothing to be left.
            Place::Home if is_dead && !is_counted => {
                if is_due {
                    opened = Instant::now();
                    shared.open_again();
                }
                Ok(())
            }
            Place::Home if is_down => {
                // Without room there the sources wait, as for a full channel.
                if shared.leave(opened).is_err() && shared.may_be_well(opened) {
                    opened = Instant::now();
                    shared.open_again();
                }
                Ok(())
            }
            Place::Home => {
                if shared.away.is_untidy() {
                    shared.away.tidy();
                }
                Ok(())
            }
            Place::Opening | Place::Leaving => Ok(()),
            Place::Arrived => shared.finish(),
            Place::Returning | Place::Arriving if is_down => Err(Trouble::Again),
            Place::Away if is_due => {
                opened = Instant::now();
                shared.open_again();
                Ok(())
            }
            Place::Away if is_down => Ok(()),
            Place::Away | Place::Returning | Place::Arriving => shared.go_back(),
        };
        match outcome {
            Ok(()) | Err(Trouble::Full) => {}
            Err(Trouble::Again) => shared.break_return(),
            Err(Trouble::Lost(error)) => shared.lost(&error),
        }
    }
}

impl Shared {
    /// Nobody waits for the secondary any more, and nothing is begun.
    pub fn end(&self) {
        self.is_ending.store(true, Ordering::Release);
        self.state.lock().is_closing = true;
        self.changed.notify_all();
    }

    /// The secondary has failed: nothing goes on.
    pub fn lost(&self, error: &CommitError) {
        if !matches!(error, CommitError::Failed(_)) {
            return;
        }
        let reason = format!("where events go while the disk of the channel is away: {error}");
        tracing::error!(pipeline = self.name, "{reason}");
        self.state.lock().failed.get_or_insert(reason.into());
        self.is_ending.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// From here on: no commit is half handed in.
    fn set_place(&self, place: Place) {
        let _order = self.order.lock();
        self.state.lock().place = place;
        self.changed.notify_all();
    }

    /// Whether a primary that has failed is to be opened anew although what was on its way to it is not in the secondary: that has no room for
    /// it, and the disk is well again. `opened`: when that was tried last.
    fn may_be_well(&self, opened: Instant) -> bool {
        let is_dead = {
            let state = self.state.lock();
            state.is_dead && !state.is_over()
        };
        is_dead
            && opened.elapsed() >= self.plan.check_interval
            && self.is_disk_well.load(Ordering::Acquire)
            && self.secondary.status().waiting_for.is_some()
    }

    /// Events go to the secondary from here on. Not if the primary is well before everything has arrived there that was on its way to it:
    /// then they go on to the primary, and what is in the secondary counts for nothing.
    fn leave(&self, opened: Instant) -> Result<(), CommitError> {
        let Some(leaving) = self.begin_leaving()? else { return Ok(()) };
        let sources: Positions = leaving.open.journal.positions(SOURCES).into_iter().collect();
        let waiting = leaving.open.journal.status().waiting_for;
        let in_doubt = leaving.commits.len();
        // What was on its way is in memory anyway: it finds room however little the secondary may hold.
        self.bound_secondary(false);
        // One that is elsewhere, or full, may take for ever, and the primary may be well again before.
        let is_needed = || {
            let is_dead = {
                let mut state = self.state.lock();
                state.look();
                state.is_dead
            };
            if is_dead { !self.may_be_well(opened) } else { self.health.is_down() }
        };
        let own = vec![(JOURNAL.to_vec(), leaving.name)];
        let opened = self.away.open_while(sources, leaving.commits, own, &is_needed);
        self.bound_secondary(true);
        if let Err(error) = opened {
            self.lost(&error);
            self.set_place(Place::Home);
            return Err(error);
        }
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
        drop(state);
        self.changed.notify_all();
        let dir = self.plan.dir.as_ref().map(|dir| dir.display().to_string());
        tracing::error!(
            pipeline = self.name,
            reason,
            dir,
            in_doubt,
            "the disk of the channel takes nothing: events go to the {kind}"
        );
        Ok(())
    }

    /// Events wait from here on, and what is on its way stays what it is. `None`: there is nothing to be left.
    fn begin_leaving(&self) -> Result<Option<Leaving>, CommitError> {
        let _order = self.order.lock();
        let mut state = self.state.lock();
        state.check()?;
        state.look();
        let open = state.primary.clone().filter(|_| state.place == Place::Home && state.is_counted);
        let Some(open) = open else { return Ok(None) };
        let commits = state.flights.iter().map(|flight| (flight.number, flight.commit.clone())).collect();
        // Empty: it is not known, and one of an earlier time does not count.
        let name = state.identity.as_ref().and_then(Identity::known).unwrap_or_default().to_vec();
        state.place = Place::Leaving;
        Ok(Some(Leaving { open, commits, name }))
    }

    /// Whether the secondary holds no more than it is to.
    fn bound_secondary(&self, is_bounded: bool) {
        let FailoverPlan { capacity_events, capacity_bytes, .. } = self.plan;
        let (events, bytes) =
            if is_bounded { (capacity_events, capacity_bytes) } else { (u64::MAX, u64::MAX) };
        let names: Vec<String> = {
            let state = self.state.lock();
            state.channels.iter().map(|channel| channel.spec.name.clone()).collect()
        };
        for channel in names.iter().filter_map(|name| self.secondary.channel(name)) {
            self.secondary.set_capacity(channel, events, bytes);
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
        self.away.break_return();
        let is_broken = {
            let _order = self.order.lock();
            let mut state = self.state.lock();
            let is_returning = matches!(state.place, Place::Returning | Place::Arriving);
            if is_returning {
                state.place = Place::Away;
            }
            is_returning
        };
        self.changed.notify_all();
        if is_broken {
            tracing::info!(pipeline = self.name, "the way back was broken off");
        }
    }

    /// The way back, as far as it goes.
    fn go_back(&self) -> Result<(), Trouble> {
        let (open, place) = {
            let mut state = self.state.lock();
            // A primary that has failed says of what it was handed that it has it, so it is looked at before it is asked.
            state.look();
            let is_decided = state.undecided.is_empty() && state.is_counted;
            let Some(open) = state.alive().filter(|_| is_decided).cloned() else {
                return Ok(());
            };
            (open, state.place)
        };
        if place == Place::Away {
            self.begin_return(&open).map_err(AwayError::Lost)?;
        }
        let mut step = Step { shared: self, open };
        loop {
            let moved = self.away.move_some(&mut step)?;
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
        let number = last_number(open.journal.as_ref());
        self.away.set_marks(open.journal.positions(CURSOR).into_iter().collect());
        self.away.begin_return(number)?;
        self.set_place(Place::Returning);
        tracing::info!(
            pipeline = self.name,
            "the disk of the channel is well: what is in the {} is moved to it",
            self.plan.kind.word()
        );
        Ok(())
    }

    fn come_back(&self, step: &mut Step<'_>) -> Result<(), Trouble> {
        self.set_place(Place::Arriving);
        if let Err(trouble) = self.move_rest(step) {
            // Until it goes on, sources do.
            self.set_place(Place::Returning);
            return Err(trouble);
        }
        // All of it counts in the primary from here on.
        self.set_place(Place::Arrived);
        self.finish()
    }

    fn move_rest(&self, step: &mut Step<'_>) -> Result<(), Trouble> {
        let is_needed = || {
            let mut state = self.state.lock();
            state.look();
            !state.is_dead && !self.health.is_down()
        };
        match self.away.settle_puts(&is_needed) {
            Err(CommitError::Full { .. }) => return Err(Trouble::Again),
            settled => settled.map_err(AwayError::Lost)?,
        }
        while self.away.move_some(step)? > 0 {}
        self.away.hand_over(step)
    }

    /// The primary has everything: the secondary is closed, and then the primary takes the next commit. What is left there is in nobody's way.
    fn finish(&self) -> Result<(), Trouble> {
        self.away.close().map_err(AwayError::Lost)?;
        self.state.lock().reason = None;
        self.set_place(Place::Home);
        tracing::info!(pipeline = self.name, "everything was moved: events go to the channel's disk again");
        self.away.tidy();
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
        self.shared.has_failed(self.open.generation, error);
        Trouble::Again
    }

    /// One that acknowledges late takes as long as its sinks do, and is waited for as long as it is well.
    fn wait(&self, ticket: Arc<dyn Ticket>) -> Result<(), Trouble> {
        let shared = self.shared;
        let until = (shared.late == 0).then(|| Instant::now() + limits::FAILOVER_STEP_WAIT);
        loop {
            match ticket.wait(Some(limits::FAILOVER_TICK)) {
                Some(Ok(_)) => return Ok(()),
                Some(Err(error)) => return Err(self.failed(&error)),
                None => shared.send_held(),
            }
            let is_down = shared.health.is_down();
            let mut state = shared.state.lock();
            state.look();
            let is_late = until.is_some_and(|until| Instant::now() >= until);
            if state.is_over() || state.is_dead || is_late || (shared.late > 0 && is_down) {
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
