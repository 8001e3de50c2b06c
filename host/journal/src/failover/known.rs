//! What is known of positions, and who waits for whom.
//!
//! Nobody holds a lock while one of the journals is asked. What was read of both belongs together if nothing has changed meanwhile
//! ([`super::state::Seen`]); else it is read once more.

use std::time::{Duration, Instant};

use super::state::{OWN, Open, Place, Seen, Shared, State};
use super::{Positions, SOURCES};
use crate::api::{ChannelId, Delivery, ReadError, ReaderId};
use crate::limits;

impl Shared {
    /// Waits until a question has an answer, or the journal is over.
    fn wait_for<T>(&self, answer: impl Fn(&State) -> Option<T>) -> Option<T> {
        let mut state = self.state.lock();
        loop {
            let found = answer(&state);
            if found.is_some() || state.is_over() {
                return found;
            }
            self.changed.wait(&mut state);
        }
    }

    /// The primary as it was opened last, perhaps dead by now; waits until it was opened, or never will be.
    pub fn wait_opened(&self) -> Option<Open> {
        self.wait_for(|state| state.primary.clone().filter(|_| state.place != Place::Opening))
    }

    /// The same of one that can say what counts: one that acknowledges late and is dead cannot, before it is opened anew.
    pub fn wait_alive(&self) -> Option<Open> {
        if self.late == 0 {
            return self.wait_opened();
        }
        self.wait_for(|state| state.alive().filter(|_| state.place != Place::Opening).cloned())
    }

    /// True: the journal is closed, or has failed.
    pub fn wait_end(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut state = self.state.lock();
        while !state.is_over() && !self.changed.wait_until(&mut state, until).timed_out() {}
        state.is_over()
    }

    /// Where events go is known. What of sources: at home not before the primary can say what counts.
    fn wait_seen(&self, is_of_sources: bool) -> Option<Seen> {
        let is_known = |state: &State| match state.place {
            Place::Opening => false,
            Place::Home => state.is_counted || !is_of_sources,
            _ => true,
        };
        self.wait_for(|state| is_known(state).then(|| state.seen()))
    }

    /// Whom to ask what the primary has under a key or a prefix.
    fn who_knows(&self, is_of_sources: bool) -> Option<Open> {
        // Of sources one that is dead knows all that it was handed.
        if is_of_sources { self.wait_opened() } else { self.wait_alive() }
    }

    /// Nothing has changed since, so what was read meanwhile counts.
    fn still(&self, state: &State, seen: Seen, asked: Option<&Open>, is_of_sources: bool) -> bool {
        let is_alive = |open: &Open| state.alive().is_some_and(|now| now.generation == open.generation);
        // One that died says of what it has not written that it has it.
        let is_sound = self.late == 0 || is_of_sources || asked.is_none_or(is_alive);
        state.is_over() || (state.seen() == seen && is_sound)
    }

    /// All positions with a prefix that count, and those on their way.
    pub fn positions(&self, prefix: &[u8]) -> Positions {
        let is_source = |key: &[u8]| key.starts_with(SOURCES);
        loop {
            let Some(seen) = self.wait_seen(is_source(prefix)) else { return Positions::new() };
            let mut found = Positions::new();
            // Sources' positions are whole in the secondary, so they can begin without the primary.
            let needs_primary = !(seen.is_elsewhere && is_source(prefix));
            let open = needs_primary.then(|| self.who_knows(is_source(prefix))).flatten();
            found.extend(open.iter().flat_map(|open| open.journal.positions(prefix)));
            if seen.is_elsewhere {
                found.retain(|key, _| !is_source(key));
                self.away.gone(prefix).for_each(|key| drop(found.remove(&key)));
                found.extend(self.away.positions(prefix));
            }
            let state = self.state.lock();
            if !self.still(&state, seen, open.as_ref(), is_source(prefix)) {
                continue;
            }
            let held = state.held_positions().filter(|(key, _)| key.starts_with(prefix));
            found.extend(held.cloned());
            found.retain(|key, value| !value.is_empty() && !key.starts_with(OWN));
            return found;
        }
    }

    /// The value of one position.
    pub fn position(&self, key: &[u8]) -> Option<Vec<u8>> {
        if key.starts_with(OWN) {
            return None;
        }
        let is_of_sources = key.starts_with(SOURCES);
        loop {
            let held = {
                let state = self.state.lock();
                let found = state.held_positions().rev().find(|(known, _)| known == key);
                found.map(|(_, value)| value.clone())
            };
            if held.is_some() {
                return held.filter(|value| !value.is_empty());
            }
            let seen = self.wait_seen(is_of_sources)?;
            let known = if seen.is_elsewhere { self.away.position(key) } else { None };
            let (open, found) = match known {
                Some(known) => (None, known),
                None if seen.is_elsewhere && is_of_sources => (None, None),
                None => {
                    let open = self.who_knows(is_of_sources)?;
                    let found = open.journal.position(key);
                    (Some(open), found)
                }
            };
            if self.still(&self.state.lock(), seen, open.as_ref(), is_of_sources) {
                return found;
            }
        }
    }

    /// How far a reader's acknowledgements go that wait for the primary.
    pub fn held_cursor(&self, channel: ChannelId, reader: ReaderId) -> u64 {
        let state = self.state.lock();
        let acks = state.held.iter().flat_map(|flight| &flight.commit.acks);
        let own = acks.filter(|ack| (ack.channel, ack.reader) == (channel, reader));
        own.map(|ack| ack.cursor).max().unwrap_or(0)
    }

    /// The primary is away, and may come back within this time.
    pub fn idle(&self, wait: Duration) -> Result<Option<Delivery>, ReadError> {
        let mut state = self.state.lock();
        if state.is_over() {
            return Err(ReadError::Closing);
        }
        if !wait.is_zero() {
            self.changed.wait_for(&mut state, wait.min(limits::FAILOVER_TICK));
        }
        Ok(None)
    }
}
