//! A journal on a local disk with a failover: the trait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::flight::{Cell, Flight};
use super::open::{self, Parts};
use super::reader::FailoverReader;
use super::state::{NUMBER, OWN, Open, Place, Shared};
use super::store::Store;
use super::{Positions, READER, SOURCES, switch};
use crate::api::{
    AddReaderError, ChannelId, ChannelStatus, Commit, CommitError, Journal, JournalStatus, Reader, ReaderId,
    Ticket,
};
use crate::file::OpenError;
use crate::limits;
use crate::state::StateStore;

/// See [`super`]: the primary is any journal that can be opened anew in its directory.
pub struct FailoverJournal {
    shared: Arc<Shared>,
    /// Who switches, and who probes.
    threads: Mutex<Option<[JoinHandle<()>; 2]>>,
}

impl FailoverJournal {
    /// Opens the primary, or goes on in the secondary if that was open and the primary's disk is away.
    pub fn open(parts: Parts) -> Result<Arc<FailoverJournal>, OpenError> {
        let (shared, mut probe) = open::open(parts)?;
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(format!("{name}-{}", shared.name));
            thread.spawn(run).map_err(OpenError::io("starting a thread of a failover"))
        };
        let switching = shared.clone();
        let switch = spawn("failover", Box::new(move || switch::run(&switching)))?;
        let probing = shared.clone();
        let health = spawn(
            "health",
            Box::new(move || {
                let wait = |pause| probing.wait_end(pause);
                probing.health.run(wait, || {
                    let is_home = probing.state.lock().place == Place::Home;
                    probe(!is_home) && probing.is_well()
                });
            }),
        )?;
        Ok(Arc::new(FailoverJournal { shared: shared.clone(), threads: Mutex::new(Some([switch, health])) }))
    }
}

#[cfg(test)]
impl FailoverJournal {
    pub(super) fn shared_for_tests(&self) -> &Shared {
        &self.shared
    }
}

impl Shared {
    /// The primary as it was opened last; waits until it was, or never will be.
    pub fn wait_primary(&self) -> Option<Open> {
        let mut state = self.state.lock();
        while state.primary.is_none() && !state.is_over() {
            self.changed.wait(&mut state);
        }
        state.primary.clone()
    }

    /// True: the journal is closed, or has failed.
    pub fn wait_end(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut state = self.state.lock();
        while !state.is_over() && !self.changed.wait_until(&mut state, until).timed_out() {}
        state.is_over()
    }

    /// The primary takes commits, and none of them waits for its disk.
    fn is_well(&self) -> bool {
        let (open, waits) = {
            let mut state = self.state.lock();
            state.look();
            let waits = [&state.flights, &state.acks].iter().any(|list| !list.is_empty());
            (state.alive().cloned(), waits || !state.undecided.is_empty())
        };
        // What it waited for last it still says while it is handed nothing.
        open.is_some_and(|open| !waits || open.journal.status().waiting_for.is_none())
    }

    /// How far a reader's acknowledgements go that wait for the primary.
    pub fn held_cursor(&self, channel: ChannelId, reader: ReaderId) -> u64 {
        let state = self.state.lock();
        let acks = state.held.iter().flat_map(|flight| &flight.commit.acks);
        let own = acks.filter(|ack| (ack.channel, ack.reader) == (channel, reader));
        own.map(|ack| ack.cursor).max().unwrap_or(0)
    }

    /// A commit without acknowledgements, where events go now.
    fn put(&self, commit: &Commit) -> Result<Box<dyn Ticket>, CommitError> {
        let open = {
            let mut state = self.state.lock();
            state.check()?;
            state.look();
            state.alive().filter(|_| state.place == Place::Home).cloned()
        };
        if let Some(open) = open {
            let number = self.state.lock().number + 1;
            match open.journal.commit(open.localise(commit, Some((NUMBER, number))), Some(self.clock.now())) {
                Ok(ticket) => return Ok(Box::new(self.fly(commit, number, ticket.into()))),
                Err(error @ (CommitError::Failed(_) | CommitError::Closing)) => {
                    self.state.lock().dies(&error);
                }
                Err(error) => return Err(error),
            }
        }
        if self.state.lock().place == Place::Home {
            self.leave()?;
        }
        let put = self.away.lock().put(commit.clone(), self.clock.now());
        put.inspect_err(|error| self.lost(error))
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
    fn acknowledge(&self, commit: &Commit) -> Result<Box<dyn Ticket>, CommitError> {
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

    /// The journal closes while the primary has failed: nothing takes what that had in memory.
    fn tell_unsaved(&self, open: &Open) {
        let events: u64 = open.journal.status().memory.iter().map(|figures| figures.events_at_risk).sum();
        if events > 0 {
            tracing::error!(
                pipeline = self.name,
                events,
                "the disk of the channel is away: what is in its memory is lost with this stop"
            );
        }
    }

    fn wait_for_room(&self, full: CommitError, deadline: Option<Instant>) -> Result<(), CommitError> {
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

    /// All positions with a prefix that count, and those on their way.
    fn positions(&self, prefix: &[u8]) -> Positions {
        let is_source = |key: &[u8]| key.starts_with(SOURCES);
        let over = {
            // Nothing comes back meanwhile.
            let away = self.away.lock();
            let is_away = self.state.lock().place != Place::Home;
            let over = || (away.gone(prefix).collect::<Vec<_>>(), away.positions(prefix).collect::<Vec<_>>());
            is_away.then(over)
        };
        let mut found = Positions::new();
        // Sources' positions are whole in the secondary, so they can begin without the primary.
        if !(over.is_some() && is_source(prefix))
            && let Some(open) = self.wait_primary()
        {
            found.extend(open.journal.positions(prefix));
        }
        if let Some((gone, known)) = over {
            found.retain(|key, _| !is_source(key));
            gone.iter().for_each(|key| drop(found.remove(key)));
            found.extend(known);
        }
        let state = self.state.lock();
        let held = state.held.iter().flat_map(|flight| &flight.commit.positions);
        for (key, value) in held.filter(|(key, _)| key.starts_with(prefix)) {
            found.insert(key.clone(), value.clone());
        }
        found.retain(|key, value| !value.is_empty() && !key.starts_with(OWN));
        found
    }

    fn position(&self, key: &[u8]) -> Option<Vec<u8>> {
        if key.starts_with(OWN) {
            return None;
        }
        let held = {
            let state = self.state.lock();
            let mut all = state.held.iter().flat_map(|flight| &flight.commit.positions).rev();
            all.find(|(known, _)| known == key).map(|(_, value)| value.clone())
        };
        if held.is_some() {
            return held.filter(|value| !value.is_empty());
        }
        {
            // Nothing comes back meanwhile.
            let away = self.away.lock();
            if self.state.lock().place != Place::Home {
                let known = away.position(key);
                if known.is_some() || key.starts_with(SOURCES) {
                    return known.flatten();
                }
            }
        }
        self.wait_primary()?.journal.position(key)
    }
}

impl Journal for FailoverJournal {
    fn channel(&self, name: &str) -> Option<ChannelId> {
        let state = self.shared.state.lock();
        let index = state.channels.iter().position(|channel| channel.spec.name == name)?;
        u16::try_from(index).ok().map(ChannelId)
    }

    fn reader_id(&self, channel: ChannelId, reader: &str) -> Option<ReaderId> {
        let state = self.shared.state.lock();
        let readers = &state.channels.get(usize::from(channel.0))?.readers;
        let index = readers.iter().position(|(name, live)| *live && name == reader)?;
        u16::try_from(index).ok().map(ReaderId)
    }

    fn add_reader(&self, channel: ChannelId, reader: &str) -> Result<ReaderId, AddReaderError> {
        let refused = |reason: &str| AddReaderError(reason.into());
        let _order = self.shared.order.lock();
        let mut state = self.shared.state.lock();
        let open = state.alive().cloned().ok_or_else(|| refused("its disk has failed"))?;
        let inner = open.channel(channel).ok_or_else(|| refused("there is no such channel"))?;
        open.journal.add_reader(inner, reader)?;
        let readers = state.channels.get_mut(usize::from(channel.0)).map(|channel| &mut channel.readers);
        let readers = readers.ok_or_else(|| refused("there is no such channel"))?;
        let at = readers.iter().position(|(name, _)| name == reader).unwrap_or(readers.len());
        match readers.get_mut(at) {
            Some(known) => known.1 = true,
            None => readers.push((reader.to_owned(), true)),
        }
        state.primary = Open::new(open.journal, open.generation, &state.channels);
        u16::try_from(at).map(ReaderId).map_err(|_| refused("it has no place"))
    }

    fn retire_reader(&self, channel: ChannelId, reader: ReaderId) {
        let mut state = self.shared.state.lock();
        let readers = state.channels.get_mut(usize::from(channel.0)).map(|channel| &mut channel.readers);
        if let Some(known) = readers.and_then(|readers| readers.get_mut(usize::from(reader.0))) {
            known.1 = false;
        }
        if let Some(open) = state.alive()
            && let Some((channel, reader)) = open.channel(channel).zip(open.reader(channel, reader))
        {
            open.journal.retire_reader(channel, reader);
        }
    }

    fn set_capacity(&self, channel: ChannelId, events: u64, bytes: u64) {
        let mut state = self.shared.state.lock();
        if let Some(channel) = state.channels.get_mut(usize::from(channel.0)) {
            (channel.spec.capacity_events, channel.spec.capacity_bytes) = (events, bytes);
        }
        if let Some((open, channel)) = state.alive().and_then(|open| Some((open, open.channel(channel)?))) {
            open.journal.set_capacity(channel, events, bytes);
        }
    }

    fn commit(&self, commit: Commit, deadline: Option<Instant>) -> Result<Box<dyn Ticket>, CommitError> {
        loop {
            let outcome = if commit.acks.is_empty() {
                let _order = self.shared.order.lock();
                self.shared.put(&commit)
            } else {
                self.shared.acknowledge(&commit)
            };
            match outcome {
                Err(full @ CommitError::Full { .. }) => self.shared.wait_for_room(full, deadline)?,
                other => return other,
            }
        }
    }

    fn is_over(&self) -> bool {
        self.shared.state.lock().is_over()
    }

    fn takes_acknowledgements(&self) -> bool {
        let mut state = self.shared.state.lock();
        state.look();
        state.alive().is_some()
    }

    fn position(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.shared.position(key)
    }

    fn positions(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.shared.positions(prefix).into_iter().collect()
    }

    fn state(&self) -> Option<Arc<dyn StateStore>> {
        Some(Arc::new(Store(self.shared.clone())))
    }

    fn open_reader(&self, channel: ChannelId, reader: ReaderId) -> Box<dyn Reader> {
        Box::new(FailoverReader::new(self.shared.clone(), channel, reader))
    }

    fn status(&self) -> JournalStatus {
        let shared = &self.shared;
        let (open, place, failovers, reason) = {
            let state = shared.state.lock();
            (state.primary.clone(), state.place, state.failovers, state.reason.clone())
        };
        let secondary = shared.secondary.status();
        let mut status = open.map(|open| open.journal.status()).unwrap_or_default();
        status.channels = self.channels_status(&status.channels, &secondary);
        status.state = Store(shared.clone()).sizes();
        status.memory.extend(secondary.memory);
        // Each journal counts what its own disk lost.
        status.damaged_commits += secondary.damaged_commits;
        status.damaged_state_blocks += secondary.damaged_state_blocks;
        let word = shared.plan.kind.word();
        status.failover = Some(match place {
            Place::Home => "primary".to_owned(),
            Place::Away => word.to_owned(),
            Place::Returning => "returning".to_owned(),
        });
        status.failovers = failovers;
        if place != Place::Home {
            status.failover_events = secondary.channels.iter().map(|channel| channel.events).sum();
            let why = reason.or(status.waiting_for).unwrap_or_else(|| "the disk of the channel".to_owned());
            let full = secondary.waiting_for.map(|reason| format!("; there: {reason}")).unwrap_or_default();
            status.waiting_for = Some(format!("{why}; events go to the failover ({word}){full}"));
        }
        status
    }

    fn close(&self) -> Result<(), CommitError> {
        let shared = &self.shared;
        shared.state.lock().is_closing = true;
        shared.changed.notify_all();
        // Who probes may hang with its disk, so nobody waits for its end.
        let Some([switch, _]) = self.threads.lock().take() else { return Ok(()) };
        if switch.join().is_err() {
            tracing::error!(pipeline = shared.name, "the thread of a failover panicked");
        }
        let _order = shared.order.lock();
        let (primary, is_dead, place) = {
            let state = shared.state.lock();
            (state.primary.clone(), state.is_dead, state.place)
        };
        let closed = match primary {
            Some(open) if is_dead => {
                shared.tell_unsaved(&open);
                Ok(())
            }
            Some(open) => open.journal.close(),
            None => Ok(()),
        };
        // Whoever still waits asks the primary's ticket first.
        let mut state = shared.state.lock();
        let flights = std::mem::take(&mut state.flights).into_iter().chain(std::mem::take(&mut state.acks));
        for flight in flights.chain(std::mem::take(&mut state.held)) {
            let outcome = flight.outcome().unwrap_or(Err(CommitError::Closing));
            flight.cell.answer(outcome);
        }
        let failed = state.check();
        drop(state);
        let secondary = shared.secondary.close();
        // What waited for a primary that is away is in the secondary.
        let closed = if place == Place::Home { closed } else { Ok(()) };
        match failed {
            Err(error @ CommitError::Failed(_)) => Err(error),
            _ => closed.and(secondary),
        }
    }
}

impl FailoverJournal {
    /// What waits in the secondary is of the channel.
    fn channels_status(&self, primary: &[ChannelStatus], secondary: &JournalStatus) -> Vec<ChannelStatus> {
        let primary: BTreeMap<&str, &ChannelStatus> =
            primary.iter().map(|channel| (channel.name.as_str(), channel)).collect();
        let is_open = self.shared.is_secondary_open();
        let state = self.shared.state.lock();
        let all = state.channels.iter().map(|channel| {
            let spec = &channel.spec;
            let known = primary.get(spec.name.as_str()).map(|known| (*known).clone());
            let mut status = known.unwrap_or_else(|| ChannelStatus {
                name: spec.name.clone(),
                capacity_events: spec.capacity_events,
                capacity_bytes: spec.capacity_bytes,
                ..ChannelStatus::default()
            });
            // When it is not open, what is there is left of a crash, and counts for nothing.
            let there = secondary.channels.iter().find(|there| is_open && there.name == spec.name);
            if let Some(there) = there.filter(|there| there.readers.iter().any(|(name, _)| name == READER)) {
                status.events += there.events;
                status.bytes += there.bytes;
                let oldest = [status.oldest_unacknowledged_s, there.oldest_unacknowledged_s];
                status.oldest_unacknowledged_s = oldest.into_iter().flatten().reduce(f64::max);
            }
            status
        });
        all.collect()
    }
}

impl Drop for FailoverJournal {
    /// Without a close: stops where it is.
    fn drop(&mut self) {
        self.shared.state.lock().is_closing = true;
        self.shared.changed.notify_all();
        self.threads.lock().take().into_iter().flatten().for_each(|thread| drop(thread.join()));
    }
}
