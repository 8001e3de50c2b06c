//! Opening a journal with a failover.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::state::{Channel, NUMBER, NUMBER_ACKED, Open, Place, Shared, State};
use super::{Away, FailoverPlan, Health};
use crate::api::{ChannelSpec, Journal};
use crate::clock::Clock;
use crate::file::OpenError;

/// Opens the primary's journal with channels, at the start and each time that it has failed.
pub type Opener = Box<dyn Fn(Vec<ChannelSpec>) -> Result<Arc<dyn Journal>, OpenError> + Send + Sync>;

/// Whether the primary's disk is well; the argument says whether it has to have room.
pub type Probe = Box<dyn FnMut(bool) -> bool + Send>;

/// What a [`super::FailoverJournal`] is made of.
pub struct Parts {
    /// The pipeline's name, for the log.
    pub name: String,
    /// When.
    pub plan: FailoverPlan,
    /// The primary.
    pub opener: Opener,
    /// Its channels, with its readers.
    pub channels: Vec<ChannelSpec>,
    /// Of its disk.
    pub probe: Probe,
    /// The secondary, open, with the channels of [`super::channel_spec`].
    pub secondary: Arc<dyn Journal>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// What the threads share, and the probe.
pub(super) fn open(parts: Parts) -> Result<(Arc<Shared>, Probe), OpenError> {
    let Parts { name, plan, opener, channels, probe, secondary, clock } = parts;
    let names: Vec<String> = channels.iter().map(|channel| channel.name.clone()).collect();
    let lacks = || OpenError::io("the failover's journal")(std::io::Error::other("it lacks a channel"));
    let away = Away::new(secondary.clone(), &names, None).ok_or_else(lacks)?;
    let is_away = away.is_open();
    let lost = |error: crate::api::CommitError| {
        OpenError::io("the failover's journal")(std::io::Error::other(error.to_string()))
    };
    away.reopen().map_err(lost)?;
    let channel = |spec: ChannelSpec| {
        let readers = spec.readers.iter().map(|name| (name.clone(), true)).collect();
        Channel { spec, readers }
    };
    let state = State {
        channels: channels.into_iter().map(channel).collect(),
        place: if is_away { Place::Away } else { Place::Home },
        primary: None,
        is_dead: true,
        generation: 0,
        number: 0,
        number_acked: 0,
        flights: VecDeque::new(),
        acks: VecDeque::new(),
        held: VecDeque::new(),
        undecided: Vec::new(),
        failovers: 0,
        reason: None,
        failed: None,
        is_closing: false,
    };
    let shared = Shared {
        name,
        health: Health::new(&plan),
        plan,
        opener,
        clock,
        secondary,
        order: Mutex::new(()),
        away: Mutex::new(away),
        state: Mutex::new(state),
        changed: Condvar::new(),
    };
    if is_away {
        shared.health.has_failed();
    }
    match shared.open_primary() {
        Ok(()) => {}
        // Its positions are in the secondary, so the sources can begin.
        Err(error @ OpenError::Io { .. }) if is_away => {
            tracing::error!(pipeline = shared.name, "{error}: events go on to {}", shared.plan.kind.word());
            shared.state.lock().reason = Some(error.to_string());
        }
        Err(error) => return Err(error),
    }
    Ok((Arc::new(shared), probe))
}

impl Shared {
    /// Opens the primary's journal, the first time or once more.
    pub fn open_primary(&self) -> Result<(), OpenError> {
        let (old, specs, generation) = {
            let state = self.state.lock();
            let live = |channel: &Channel| {
                let readers = channel.readers.iter().filter(|(_, live)| *live);
                ChannelSpec {
                    readers: readers.map(|(name, _)| name.clone()).collect(),
                    ..channel.spec.clone()
                }
            };
            let specs = state.channels.iter().map(live).collect();
            (state.primary.clone(), specs, state.generation + 1)
        };
        // It has failed, and says so again.
        if let Some(Err(error)) = old.as_ref().map(|old| old.journal.close()) {
            tracing::debug!(pipeline = self.name, "closing the journal that failed: {error}");
        }
        let journal = (self.opener)(specs)?;
        let number = |key: &[u8]| {
            let value = journal.position(key)?;
            value.as_slice().try_into().ok().map(u64::from_le_bytes)
        };
        let (last, last_acked) =
            (number(NUMBER).unwrap_or_default(), number(NUMBER_ACKED).unwrap_or_default());
        let mut state = self.state.lock();
        let lacks = || OpenError::io("the journal")(std::io::Error::other("it lacks a channel"));
        let open = Open::new(journal, generation, &state.channels).ok_or_else(lacks)?;
        state.generation = generation;
        state.number = state.number.max(last);
        state.number_acked = state.number_acked.max(last_acked);
        // Of what was under way it has some.
        state.held.retain(|flight| {
            let is_there = flight.number.is_some_and(|number| number <= last_acked);
            if is_there {
                flight.cell.answer(Ok(flight.number.unwrap_or_default()));
            }
            !is_there
        });
        state.undecided.clear();
        state.primary = Some(open);
        state.is_dead = false;
        drop(state);
        self.changed.notify_all();
        Ok(())
    }
}
