//! A journal on a local disk with a failover: the trait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;

use super::commit::compact;
use super::late::LateReader;
use super::open::{self, Parts};
use super::reader::FailoverReader;
use super::state::{Open, Place, Shared};
use super::store::Store;
use super::{READER, switch};
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
    /// Opens the primary, or goes on in the secondary if that was open and the primary's disk is away. A secondary that is not read yet is
    /// not waited for: then the primary is opened later, and its errors are in `status`.
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
                // One that was not opened yet is neither well nor down.
                while probing.state.lock().place == Place::Opening {
                    if probing.wait_end(limits::FAILOVER_TICK) {
                        return;
                    }
                }
                let wait = |pause| probing.wait_end(pause);
                probing.health.run(wait, || {
                    let is_home = probing.state.lock().place.is_home();
                    // One that hangs is not good.
                    probing.is_disk_well.store(false, Ordering::Release);
                    let is_good = probe(!is_home);
                    probing.is_disk_well.store(is_good, Ordering::Release);
                    is_good && probing.is_well()
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
    /// The primary takes commits, and none of them waits for its disk.
    fn is_well(&self) -> bool {
        let open = {
            let mut state = self.state.lock();
            state.look();
            state.alive().cloned()
        };
        let Some(open) = open else { return false };
        // With nothing of ours on its way it fails without a word: its name was, or a new file for its state.
        if let Some(reason) = open.journal.failure() {
            self.has_failed(open.generation, &CommitError::Failed(reason));
            return false;
        }
        open.journal.status().waiting_for.is_none()
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
        let open = self.shared.state.lock().alive().cloned();
        let open = open.ok_or_else(|| refused("its disk has failed"))?;
        let inner = open.channel(channel).ok_or_else(|| refused("there is no such channel"))?;
        // Waits for the disk.
        open.journal.add_reader(inner, reader)?;
        let mut state = self.shared.state.lock();
        if state.alive().is_none_or(|now| now.generation != open.generation) {
            return Err(refused("its disk has failed"));
        }
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
        let commit = if self.acknowledges_late() { compact(commit) } else { commit };
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

    fn acknowledges_late(&self) -> bool {
        self.shared.late > 0
    }

    fn is_read(&self) -> bool {
        self.shared.state.lock().place != Place::Opening
    }

    fn is_over(&self) -> bool {
        self.shared.state.lock().is_over()
    }

    fn failure(&self) -> Option<Arc<str>> {
        self.shared.state.lock().failed.clone()
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
        if usize::from(channel.0) < self.shared.late {
            return Box::new(LateReader::new(self.shared.clone(), channel, reader));
        }
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
            Place::Opening => "opening".to_owned(),
            Place::Home | Place::Leaving => "primary".to_owned(),
            Place::Away => word.to_owned(),
            Place::Returning | Place::Arriving | Place::Arrived => "returning".to_owned(),
        });
        status.failovers = failovers;
        if place == Place::Opening {
            let not_read = || {
                let why = secondary.waiting_for.as_deref().unwrap_or("it was not reached");
                format!("what is in the failover ({word}) is not known yet: {why}")
            };
            let why = reason.unwrap_or_else(not_read);
            status.waiting_for = Some(format!("{why}; it is tried again, and sources and sinks wait"));
        } else if place == Place::Leaving {
            let there = secondary.waiting_for.map(|there| format!("the failover ({word}): {there}"));
            let both: Vec<String> = status.waiting_for.or(reason).into_iter().chain(there).collect();
            status.waiting_for = (!both.is_empty()).then(|| both.join("; "));
        } else if !place.is_home() {
            status.failover_events = secondary.channels.iter().map(|channel| channel.events).sum();
            let why = reason.or(status.waiting_for).unwrap_or_else(|| "the disk of the channel".to_owned());
            let full = secondary.waiting_for.map(|reason| format!("; there: {reason}")).unwrap_or_default();
            status.waiting_for = Some(format!("{why}; events go to the failover ({word}){full}"));
        }
        status
    }

    fn close(&self) -> Result<(), CommitError> {
        let shared = &self.shared;
        shared.end();
        // Who probes may hang with its disk, so nobody waits for its end.
        let Some([switch, _]) = self.threads.lock().take() else { return Ok(()) };
        if switch.join().is_err() {
            tracing::error!(pipeline = shared.name, "the thread of a failover panicked");
        }
        // First: whoever still waits for a ticket of it hears so.
        let secondary = shared.secondary.close();
        let _order = shared.order.lock();
        let (primary, is_dead, place) = {
            let state = shared.state.lock();
            (state.primary.clone(), state.is_dead, state.place)
        };
        let closed = match primary {
            Some(open) if is_dead => {
                shared.tell_unsaved(&open);
                // It lets go of its directory, and of whoever waits in it for what a destination decides.
                if let Err(error) = open.journal.close() {
                    tracing::debug!(pipeline = shared.name, %error, "the journal that failed is closed");
                }
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
        // What waited for a primary that is away is in the secondary.
        let closed = if place.is_home() { closed } else { Ok(()) };
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
        self.shared.end();
        self.threads.lock().take().into_iter().flatten().for_each(|thread| drop(thread.join()));
    }
}
