//! Opening a journal with a failover.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::state::{Channel, Identity, JOURNAL, NUMBER, NUMBER_ACKED, Open, Place, Shared, State};
use super::{Away, FailoverPlan, Health};
use crate::api::{ChannelSpec, Commit, CommitError, Journal, Unsaved};
use crate::clock::Clock;
use crate::file::OpenError;
use crate::memory::new_id;

/// A file in the primary's directory by which a user says that another journal may be there than the one that was left.
pub const REPLACED: &str = "replaced";

/// Opens the primary's journal with channels, at the start and each time that it has failed: then with what was in its memory.
pub type Opener =
    Box<dyn Fn(Vec<ChannelSpec>, Option<Unsaved>) -> Result<Arc<dyn Journal>, OpenError> + Send + Sync>;

/// Whether the file [`REPLACED`] is there; takes it away, so that it counts once.
pub type Replaced = Box<dyn Fn() -> bool + Send + Sync>;

/// Whether the primary's disk is well; the argument says whether it has to have room.
pub type Probe = Box<dyn FnMut(bool) -> bool + Send>;

/// What a [`super::FailoverJournal`] is made of.
pub struct Parts {
    /// The pipeline's name, for the log.
    pub name: String,
    /// When.
    pub plan: FailoverPlan,
    /// The primary's directory.
    pub dir: PathBuf,
    /// The primary.
    pub opener: Opener,
    /// Whether another journal in its place is what the user wants.
    pub is_replaced: Replaced,
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
    let Parts { name, plan, dir, opener, is_replaced, channels, probe, secondary, clock } = parts;
    let names: Vec<String> = channels.iter().map(|channel| channel.name.clone()).collect();
    let lacks = || OpenError::io("the failover's journal")(std::io::Error::other("it lacks a channel"));
    let away = Away::new(secondary.clone(), &names, None).ok_or_else(lacks)?;
    let is_away = away.is_open();
    away.reopen().map_err(lost)?;
    // A secondary of an earlier release says nothing of it.
    let known = secondary.position(JOURNAL).filter(|_| is_away);
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
        identity: known.map(|name| Identity { name, written: None }),
        number: 0,
        acked: BTreeMap::new(),
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
        dir,
        opener,
        is_replaced,
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

fn lost(error: CommitError) -> OpenError {
    OpenError::io("the failover's journal")(std::io::Error::other(error.to_string()))
}

/// A number of a commit, of a position.
fn number(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_le_bytes)
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
        // In memory until an opening has succeeded.
        let unsaved = old.as_ref().and_then(|old| old.journal.unsaved());
        let journal = (self.opener)(specs, unsaved)?;
        let identity = self.recognise(journal.as_ref())?;
        let last = journal.position(NUMBER).and_then(|value| number(&value)).unwrap_or_default();
        let acked = journal.positions(NUMBER_ACKED).into_iter();
        let acked: BTreeMap<Vec<u8>, u64> =
            acked.filter_map(|(key, value)| Some((key, number(&value)?))).collect();
        let mut state = self.state.lock();
        let lacks = || OpenError::io("the journal")(std::io::Error::other("it lacks a channel"));
        let open = Open::new(journal, generation, &state.channels).ok_or_else(lacks)?;
        state.generation = generation;
        state.number = state.number.max(last);
        state.identity = identity;
        // Of what was under way it has some: once more, an older position would come over a newer one.
        for flight in std::mem::take(&mut state.held) {
            let last = acked.get(&state.acked_key(&flight.commit));
            match flight.number.filter(|number| last.is_some_and(|last| number <= last)) {
                Some(number) => flight.cell.answer(Ok(number)),
                None => state.held.push_back(flight),
            }
        }
        for (key, last) in acked {
            let known = state.acked.entry(key).or_default();
            *known = last.max(*known);
        }
        state.undecided.clear();
        state.primary = Some(open);
        state.is_dead = false;
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Whether this is the journal that events are to go back to; its name. A directory in which there is none gets a new one, and with
    /// events moved there the old one's would be left behind, and their sources go on from where that one says.
    fn recognise(&self, journal: &dyn Journal) -> Result<Option<Identity>, OpenError> {
        let (expected, is_first) = {
            let state = self.state.lock();
            let expected = state.identity.as_ref().and_then(Identity::known).map(<[u8]>::to_vec);
            (expected, state.generation == 0)
        };
        let found = journal.position(JOURNAL);
        if expected.is_some() && found != expected {
            // Later sinks have cursors of the other one.
            if !(is_first && (self.is_replaced)()) {
                return Err(self.another(found.is_none()));
            }
            tracing::warn!(pipeline = self.name, dir = %self.dir.display(),
                "the journal of the channel was replaced, as its user says");
            self.away.lock().set_own(JOURNAL, Vec::new()).map_err(lost)?;
        }
        if let Some(name) = found {
            return Ok(Some(Identity { name, written: None }));
        }
        let name = new_id(self.clock.as_ref()).to_vec();
        let commit = Commit { positions: vec![(JOURNAL.to_vec(), name.clone())], ..Commit::default() };
        // One that takes nothing fails with the next commit.
        let written = journal.commit(commit, None).ok();
        Ok(written.map(|ticket| Identity { name, written: Some(ticket.into()) }))
    }

    fn another(&self, is_new: bool) -> OpenError {
        let dir = self.dir.display();
        let (kind, hint) =
            if is_new { ("a new one", " (is its disk mounted?)") } else { ("another one", "") };
        let reason = format!(
            "it is {kind}, not the one that the failover stands in for{hint}: events stay in the failover. Mount the disk again; \
             if it is gone for good, with the events in it, stop the agent, make the file {dir}/{REPLACED}, and start it"
        );
        OpenError::io(format!("the journal in {dir}"))(std::io::Error::other(reason))
    }
}
