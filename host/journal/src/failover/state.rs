//! What the threads of a failover share.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::flight::Flight;
use super::{Away, FailoverPlan, Health, Opener, Replaced};
use crate::api::{ChannelId, ChannelSpec, Commit, CommitError, Journal, Put, ReaderId, Ticket, Unsaved};
use crate::clock::Clock;

/// In the primary: the number of the last commit there that has no acknowledgements.
pub(super) const NUMBER: &[u8] = b"failover/number";
/// The same of those that have, for each channel and reader by their names. On a full disk they pass puts, and those of other readers; of
/// one reader they are written in their order.
pub(super) const NUMBER_ACKED: &[u8] = b"failover/acked/";
/// In the primary, and in the secondary since it is open: a random name of the primary's journal, so that no other is taken for it.
pub(super) const JOURNAL: &[u8] = b"failover/journal";
/// Keys that are ours, and nobody else's.
pub(super) const OWN: &[u8] = b"failover/";

pub(super) struct Shared {
    /// For the log.
    pub name: String,
    pub plan: FailoverPlan,
    /// The primary's directory.
    pub dir: PathBuf,
    pub opener: Opener,
    pub is_replaced: Replaced,
    pub clock: Arc<dyn Clock>,
    pub health: Health,
    /// The last probe of the primary's disk was good, whatever its journal says.
    pub is_disk_well: AtomicBool,
    /// What an opening of the primary had in memory that nobody has seen: more than the opening before.
    pub unsaved: Mutex<Option<Unsaved>>,
    /// So many of the channels, the first ones, are acknowledged late ([`super::late`]).
    pub late: usize,
    /// The secondary's journal.
    pub secondary: Arc<dyn Journal>,
    /// Held while a commit without acknowledgements is handed in, and while the place changes: never while somebody waits. Comes before
    /// `state`.
    pub order: Mutex<()>,
    pub away: Away,
    pub state: Mutex<State>,
    /// Somebody may find now what it did not before: a primary, room, an end.
    pub changed: Condvar,
    /// The journal closes, or has failed: nobody waits for the secondary any more.
    pub is_ending: Arc<AtomicBool>,
}

/// A channel, whichever journal its events are in.
pub(super) struct Channel {
    pub spec: ChannelSpec,
    /// Names, and whether they still read.
    pub readers: Vec<(String, bool)>,
}

/// The primary's journal, open.
#[derive(Clone)]
pub(super) struct Open {
    pub journal: Arc<dyn Journal>,
    /// Tells openings apart.
    pub generation: u64,
    /// Its channels and readers for ours.
    pub channels: Vec<(ChannelId, Vec<Option<ReaderId>>)>,
}

impl Open {
    pub fn new(journal: Arc<dyn Journal>, generation: u64, channels: &[Channel]) -> Option<Open> {
        let find = |channel: &Channel| {
            let id = journal.channel(&channel.spec.name)?;
            let reader = |(name, _): &(String, bool)| journal.reader_id(id, name);
            Some((id, channel.readers.iter().map(reader).collect()))
        };
        let channels = channels.iter().map(find).collect::<Option<_>>()?;
        Some(Open { journal, generation, channels })
    }

    pub fn channel(&self, ours: ChannelId) -> Option<ChannelId> {
        self.channels.get(usize::from(ours.0)).map(|(id, _)| *id)
    }

    pub fn reader(&self, channel: ChannelId, reader: ReaderId) -> Option<ReaderId> {
        *self.channels.get(usize::from(channel.0))?.1.get(usize::from(reader.0))?
    }

    /// Puts as the primary names its channels.
    pub fn puts(&self, puts: &[Put]) -> Vec<Put> {
        let local = |put: &Put| Put {
            channels: put.channels.iter().filter_map(|channel| self.channel(*channel)).collect(),
            batch: put.batch.clone(),
        };
        puts.iter().map(local).collect()
    }

    /// No channel is full for what it was handed before.
    pub fn unbound(&self) {
        for (channel, _) in &self.channels {
            self.journal.set_capacity(*channel, u64::MAX, u64::MAX);
        }
    }

    /// Each channel holds what it is to hold.
    pub fn bound(&self, channels: &[Channel]) {
        for ((channel, _), own) in self.channels.iter().zip(channels) {
            self.journal.set_capacity(*channel, own.spec.capacity_events, own.spec.capacity_bytes);
        }
    }

    /// A commit as the primary names its channels and readers, with a number.
    pub fn localise(&self, commit: &Commit, number: Option<(&[u8], u64)>) -> Commit {
        let mut commit = commit.clone();
        commit.puts = self.puts(&commit.puts);
        let acks = std::mem::take(&mut commit.acks);
        commit.acks = acks
            .into_iter()
            .filter_map(|ack| {
                let (channel, reader) = (self.channel(ack.channel)?, self.reader(ack.channel, ack.reader)?);
                Some(crate::api::Ack { channel, reader, ..ack })
            })
            .collect();
        let number = number.map(|(key, number)| (key.to_vec(), number.to_le_bytes().to_vec()));
        commit.positions.extend(number);
        commit
    }
}

impl Shared {
    /// Whether what is in the secondary counts. Its own word, which is durable before anything of it does. Waits for nothing.
    pub fn is_secondary_open(&self) -> bool {
        self.secondary.is_read() && self.secondary.position(super::STATE).is_some()
    }
}

/// The name of the primary's journal ([`JOURNAL`]).
#[derive(Clone)]
pub(super) struct Identity {
    pub name: Vec<u8>,
    /// Of the commit that wrote it; `None`: it was there.
    pub written: Option<Arc<dyn Ticket>>,
}

impl Identity {
    /// `None` as long as the journal itself may have forgotten it.
    pub fn known(&self) -> Option<&[u8]> {
        let is_there = |ticket: &Arc<dyn Ticket>| matches!(ticket.wait(Some(Duration::ZERO)), Some(Ok(_)));
        self.written.as_ref().is_none_or(is_there).then_some(self.name.as_slice())
    }
}

/// Where events go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It is not known yet: the secondary was not read, or the primary not opened. They wait.
    Opening,
    /// To the primary.
    Home,
    /// They wait until what was on its way to the primary is in the secondary, or the primary is well again.
    Leaving,
    /// To the secondary.
    Away,
    /// To the secondary, while it is moved to the primary.
    Returning,
    /// They wait until the rest of it was moved.
    Arriving,
    /// Everything is in the primary, and counts there. They wait until the secondary is closed.
    Arrived,
}

impl Place {
    /// Whether the secondary's positions count.
    pub fn is_elsewhere(self) -> bool {
        matches!(self, Place::Away | Place::Returning | Place::Arriving)
    }

    /// Whether nothing was left of the primary.
    pub fn is_home(self) -> bool {
        matches!(self, Place::Home | Place::Leaving)
    }
}

/// What an answer depends on: as long as it is the same, what was read of both journals belongs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub is_elsewhere: bool,
    generation: u64,
}

pub(super) struct State {
    pub channels: Vec<Channel>,
    pub place: Place,
    /// The primary as it was opened last. `None`: it was not opened yet.
    pub primary: Option<Open>,
    /// It takes no more commits: another opening is needed.
    pub is_dead: bool,
    pub generation: u64,
    /// So many of `channels`, the first ones, are acknowledged late.
    pub late: usize,
    /// What the primary's `NUMBER` says counts. Not while a destination has to say first what became of a promise.
    pub is_counted: bool,
    /// Of each reader that is late, the newest opening that its sink has heard of: by a seek, or by an answer that sends it back.
    pub heard: BTreeMap<(ChannelId, ReaderId), u64>,
    /// Of the journal that events are to go back to; `None`: not known.
    pub identity: Option<Identity>,
    /// Of the last commit without acknowledgements.
    pub number: u64,
    /// Of the last with, by [`State::acked_key`].
    pub acked: BTreeMap<Vec<u8>, u64>,
    /// Without acknowledgements, at the primary.
    pub flights: VecDeque<Flight>,
    /// With acknowledgements, at the primary.
    pub acks: VecDeque<Flight>,
    /// With acknowledgements, waiting for the primary. Behind those of `acks` of the same reader.
    pub held: VecDeque<Flight>,
    /// What the primary may still write of what the secondary has got.
    pub undecided: Vec<Arc<dyn Ticket>>,
    pub failovers: u64,
    /// Why the primary is away.
    pub reason: Option<String>,
    /// The secondary has failed.
    pub failed: Option<Arc<str>>,
    pub is_closing: bool,
}

impl State {
    pub fn check(&self) -> Result<(), CommitError> {
        match &self.failed {
            Some(reason) => Err(CommitError::Failed(reason.clone())),
            None if self.is_closing => Err(CommitError::Closing),
            None => Ok(()),
        }
    }

    pub fn is_over(&self) -> bool {
        self.check().is_err()
    }

    pub fn seen(&self) -> Seen {
        Seen { is_elsewhere: self.place.is_elsewhere(), generation: self.generation }
    }

    /// Whether it acknowledges what has no place in another opening.
    pub fn is_late(&self, commit: &Commit) -> bool {
        commit.acks.iter().any(|ack| usize::from(ack.channel.0) < self.late)
    }

    /// Whether a commit that is late acknowledges what was read of an earlier opening than this. Whoever handed it in hears so, and goes
    /// back before it hands in another.
    pub fn is_stale(&mut self, commit: &Commit, generation: u64) -> bool {
        if !self.is_late(commit) {
            return false;
        }
        let mut is_stale = false;
        for ack in &commit.acks {
            if let Some(heard) = self.heard.get_mut(&(ack.channel, ack.reader)) {
                is_stale |= std::mem::replace(heard, generation) != generation;
            }
        }
        is_stale
    }

    /// What waits for the primary and will be there.
    pub fn held_positions(&self) -> impl DoubleEndedIterator<Item = &(Vec<u8>, Vec<u8>)> {
        let lasting = self.held.iter().filter(move |flight| !self.is_late(&flight.commit));
        lasting.flat_map(|flight| &flight.commit.positions)
    }

    /// The primary, if it takes commits.
    pub fn alive(&self) -> Option<&Open> {
        self.primary.as_ref().filter(|_| !self.is_dead)
    }

    /// Where the primary says how far it has the acknowledgements of a commit's reader.
    pub fn acked_key(&self, commit: &Commit) -> Vec<u8> {
        let names = commit.acks.first().and_then(|ack| {
            let channel = self.channels.get(usize::from(ack.channel.0))?;
            let (reader, _) = channel.readers.get(usize::from(ack.reader.0))?;
            Some((channel.spec.name.as_str(), reader.as_str()))
        });
        let (channel, reader) = names.unwrap_or_default();
        [NUMBER_ACKED, channel.as_bytes(), b"/", reader.as_bytes()].concat()
    }

    /// One of the same reader waits for the primary: a commit with acknowledgements has to go behind it.
    pub fn is_behind_held(&self, commit: &Commit) -> bool {
        self.held.iter().any(|flight| flight.shares_reader(commit))
    }

    /// Hands a commit with acknowledgements to the primary. After an error it was not taken.
    pub fn send(&mut self, open: &Open, flight: &mut Flight, now: Instant) -> Result<(), CommitError> {
        if self.late > 0 {
            // A promise is to be exactly what its commit is. What is late is never sent to another opening, and other acknowledgements
            // there have nothing beside them that an older one would set back.
            let commit = open.localise(&flight.commit, None);
            flight.sent(open.journal.commit(commit, Some(now))?.into());
            return Ok(());
        }
        let key = self.acked_key(&flight.commit);
        let last = self.acked.get(&key).copied().unwrap_or(0);
        let number = flight.number.unwrap_or(last + 1);
        let commit = open.localise(&flight.commit, Some((key.as_slice(), number)));
        let ticket: Arc<dyn Ticket> = open.journal.commit(commit, Some(now))?.into();
        self.acked.insert(key, last.max(number));
        flight.number = Some(number);
        flight.sent(ticket);
        Ok(())
    }

    /// The primary takes no more.
    pub fn dies(&mut self, reason: &CommitError) {
        if !self.is_dead {
            self.is_dead = true;
            self.reason = Some(reason.to_string());
        }
        // In their order, and what is known to be there stays there.
        let acks = std::mem::take(&mut self.acks);
        let left = acks.into_iter().filter(|flight| !matches!(flight.outcome(), Some(Ok(_))));
        for flight in left.rev() {
            self.held.push_front(Flight { ticket: None, ..flight });
        }
    }

    /// What an opening lacks of what was on its way, by its last number.
    pub fn missing(&self, last: u64) -> Vec<(u64, Commit)> {
        let numbered = self.flights.iter().filter_map(|flight| Some((flight.number?, flight.commit.clone())));
        numbered.filter(|(number, _)| *number > last).collect()
    }

    /// An opening says by its last number what it has of what was on its way; the rest was handed in once more, as [`State::missing`] gave it.
    pub fn settle_flights(&mut self, last: u64, mut sent: BTreeMap<u64, Arc<dyn Ticket>>) {
        for mut flight in std::mem::take(&mut self.flights) {
            match flight.number.filter(|number| *number <= last) {
                Some(number) => flight.cell.answer(Ok(number)),
                None => {
                    if let Some(ticket) = flight.number.and_then(|number| sent.remove(&number)) {
                        flight.sent(ticket);
                    }
                    self.flights.push_back(flight);
                }
            }
        }
    }

    /// Takes off what is durable by now; sees whether the primary has failed.
    pub fn look(&mut self) {
        let mut failed = None;
        for list in [&mut self.flights, &mut self.acks] {
            while let Some(outcome) = list.front().and_then(Flight::outcome) {
                // Refused: its reader began again, which is an answer.
                if let Err(error) = outcome
                    && !matches!(error, CommitError::Refused(_))
                {
                    failed = Some(error);
                    break;
                }
                list.pop_front();
            }
        }
        self.undecided.retain(|ticket| match ticket.wait(Some(Duration::ZERO)) {
            None => true,
            Some(Ok(_)) => false,
            Some(Err(error)) => {
                failed = Some(error);
                false
            }
        });
        if let Some(error) = failed.filter(|_| !self.is_over()) {
            self.dies(&error);
        }
    }
}
