//! What the threads of a failover share.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::flight::Flight;
use super::{Away, FailoverPlan, Health, Opener};
use crate::api::{ChannelId, ChannelSpec, Commit, CommitError, Journal, ReaderId, Ticket};
use crate::clock::Clock;

/// In the primary: the number of the last commit there that has no acknowledgements.
pub(super) const NUMBER: &[u8] = b"failover/number";
/// The same of those that have, and put events.
pub(super) const NUMBER_ACKED: &[u8] = b"failover/number-acked";
/// Keys that are ours, and nobody else's.
pub(super) const OWN: &[u8] = b"failover/";

pub(super) struct Shared {
    /// For the log.
    pub name: String,
    pub plan: FailoverPlan,
    pub opener: Opener,
    pub clock: Arc<dyn Clock>,
    pub health: Health,
    /// The secondary's journal.
    pub secondary: Arc<dyn Journal>,
    /// Held by a commit without acknowledgements, and by who switches. Comes before `away` and `state`.
    pub order: Mutex<()>,
    /// Comes before `state`.
    pub away: Mutex<Away>,
    pub state: Mutex<State>,
    /// Somebody may find now what it did not before: a primary, room, an end.
    pub changed: Condvar,
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

    /// A commit as the primary names its channels and readers, with a number.
    pub fn localise(&self, commit: &Commit, number: Option<(&[u8], u64)>) -> Commit {
        let mut commit = commit.clone();
        for put in &mut commit.puts {
            put.channels = put.channels.iter().filter_map(|channel| self.channel(*channel)).collect();
        }
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

/// Where events go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// To the primary.
    Home,
    /// To the secondary.
    Away,
    /// To the secondary, while it is moved to the primary.
    Returning,
}

pub(super) struct State {
    pub channels: Vec<Channel>,
    pub place: Place,
    /// The primary as it was opened last. `None`: it was not opened yet.
    pub primary: Option<Open>,
    /// It takes no more commits: another opening is needed.
    pub is_dead: bool,
    pub generation: u64,
    /// Of the last commit without acknowledgements, and of the last with.
    pub number: u64,
    pub number_acked: u64,
    /// Without acknowledgements, at the primary.
    pub flights: VecDeque<Flight>,
    /// With acknowledgements, at the primary.
    pub acks: VecDeque<Flight>,
    /// With acknowledgements, waiting for the primary. Behind all of `acks`.
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

    /// The primary, if it takes commits.
    pub fn alive(&self) -> Option<&Open> {
        self.primary.as_ref().filter(|_| !self.is_dead)
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

    /// Takes off what is durable by now; sees whether the primary has failed.
    pub fn look(&mut self) {
        let mut failed = None;
        for list in [&mut self.flights, &mut self.acks] {
            while let Some(outcome) = list.front().and_then(Flight::outcome) {
                if let Err(error) = outcome {
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
