//! The reader: of each commit what is for its channel, in order, with a stop where all readers acknowledge.

use std::sync::Arc;
use std::time::Duration;

use flumen_event::Batch;

use super::promise::Open;
use super::seats::{Held, State};
use super::{Shared, promise, refused};
use crate::api::{CommitError, Delivery, Promise, Put, ReadError, Reader};

pub(super) struct LateReader {
    shared: Arc<Shared>,
    seat: usize,
    channel: usize,
    cursor: u64,
    /// What its destination holds could not be put into the journal: it is asked again.
    is_unsettled: bool,
}

impl LateReader {
    /// What another reader of the same seat acknowledged and is not in the file is as if it had not been: its destination is
    /// cut back.
    pub fn new(shared: Arc<Shared>, seat: usize) -> LateReader {
        let mut reader = LateReader { shared, seat, channel: usize::MAX, cursor: 0, is_unsettled: false };
        reader.channel = reader.shared.state.lock().seats.get(seat).map_or(usize::MAX, |seat| seat.channel);
        reader.begin_at(0);
        reader
    }

    fn begin_at(&mut self, cursor: u64) {
        let dropped = {
            let mut state = self.shared.state.lock();
            self.cursor = cursor.max(state.released);
            state.go_back(self.seat, self.cursor)
        };
        dropped.into_iter().for_each(|ticket| ticket.resolve(Err(refused())));
    }

    fn stops(&self, state: &State) -> bool {
        state.seats.get(self.seat).is_some_and(|seat| state.stops(seat, self.cursor))
    }

    /// Whether the answer of this reader's destination is awaited.
    fn is_asked(&self) -> bool {
        let state = self.shared.state.lock();
        let name = state.seats.get(self.seat).map(|seat| &seat.name);
        state.undecided.as_ref().is_some_and(|it| Some(&it.reader) == name)
    }

    fn take(&mut self, state: &mut State) -> Option<Delivery> {
        let first = state.reach(self.channel, self.cursor);
        let at = usize::try_from(first.checked_sub(state.released)?).ok()?;
        let batch = part(state.queue.get(at)?, self.channel)?;
        self.cursor = first + 1;
        if let Some(seat) = state.seats.get_mut(self.seat) {
            seat.handed = self.cursor;
        }
        Some(Delivery { first, next: self.cursor, batch, lost_before: 0 })
    }
}

fn part(held: &Held, channel: usize) -> Option<Batch> {
    held.parts.iter().find(|part| part.channel == channel).map(|part| part.batch.clone())
}

impl Reader for LateReader {
    fn next(&mut self, wait: Duration) -> Result<Option<Delivery>, ReadError> {
        let shared = self.shared.clone();
        let deadline = shared.clock.now().checked_add(wait);
        let mut state = shared.state.lock();
        loop {
            if !state.is_open {
                return Err(ReadError::Closing);
            }
            self.cursor = self.cursor.max(state.released);
            if self.stops(&state) {
                return Ok(None);
            }
            if let Some(delivery) = self.take(&mut state) {
                return Ok(Some(delivery));
            }
            let left =
                deadline.map_or(wait, |deadline| deadline.saturating_duration_since(shared.clock.now()));
            if left.is_zero() {
                return Ok(None);
            }
            shared.published.wait_for(&mut state, left);
        }
    }

    fn seek(&mut self, cursor: u64) -> Result<(), ReadError> {
        // Its destination was asked. What it did not answer to is not there.
        let settled = match std::mem::take(&mut self.is_unsettled) {
            true => Err(CommitError::Closing),
            false if self.is_asked() => promise::decide(&self.shared, false),
            false => Ok(()),
        };
        settled.map_err(|error| ReadError::Io {
            what: "what the destination holds".into(),
            source: std::io::Error::other(error.to_string()),
        })?;
        self.begin_at(cursor);
        let mut state = self.shared.state.lock();
        let is_dropped = |promise: &Open| promise.seat == self.seat && promise.cursor > self.cursor;
        if state.promise.as_ref().is_some_and(is_dropped) {
            state.promise = None;
        }
        Ok(())
    }

    fn acknowledged(&self) -> u64 {
        self.shared.state.lock().released
    }

    fn flushes_at(&mut self, cursor: u64, is_due: bool) -> bool {
        let mut state = self.shared.state.lock();
        // A timer of the sink: nothing came since its last acknowledgement.
        let Some(acked) = state.seats.get(self.seat).map(|seat| seat.acked) else { return is_due };
        if cursor <= acked {
            return is_due;
        }
        if is_due {
            state.ask_to_meet(cursor);
            self.shared.published.notify_all();
        }
        state.seats.get(self.seat).is_some_and(|seat| state.stops(seat, cursor))
    }

    fn promises(&self) -> bool {
        true
    }

    fn promise(&mut self, cursor: u64, puts: &[Put], wait: Duration) -> Result<Option<Promise>, CommitError> {
        promise::promise(&self.shared, self.seat, cursor, puts, wait)
    }

    /// Without a promise there are none.
    fn mark(&self, _cursor: u64) -> Vec<u8> {
        Vec::new()
    }

    fn resolve(&mut self, mark: &[u8]) -> Option<u64> {
        let number = promise::number_in(mark, self.shared.id)?;
        if self.is_asked() {
            let is_it = self.shared.state.lock().undecided.as_ref().is_some_and(|it| it.number == number);
            if let Err(error) = promise::decide(&self.shared, is_it) {
                tracing::error!(%error, "what the destination holds could not be put into the journal");
                self.is_unsettled = true;
                return None;
            }
        }
        let state = self.shared.state.lock();
        match &state.promise {
            Some(open) if open.seat == self.seat && open.number == number => Some(open.cursor),
            _ => (number < state.next_promise).then_some(state.released),
        }
    }
}
