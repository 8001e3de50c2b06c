//! What is withheld, where each reader is, and the place at which all of them have acknowledged.
//!
//! A *seat* is a reader of one of our channels. All seats count in one cursor, the number of commits with events; a commit that has
//! nothing for a seat's channel is passed by it unseen, so an acknowledgement at `cursor` says the same as one anywhere up to the
//! next commit that has something for it ([`State::reach`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use flumen_event::Batch;

use super::LateTicket;
use super::promise::{Open, Undecided};
use crate::api::{ChannelId, ChannelSpec, Commit, CommitError, Put, ReaderId, Ticket};
use crate::state::StateWrites;

/// A reader of one of our channels.
pub(super) struct Seat {
    pub channel: usize,
    pub reader: ReaderId,
    pub name: String,
    pub is_live: bool,
    /// Behind the last commit that it was handed.
    pub handed: u64,
    /// Its last acknowledgement, in the file or not.
    pub acked: u64,
    /// Acknowledgements that are not in the file.
    pub entries: VecDeque<Entry>,
}

/// An acknowledgement, with what its sink commits itself.
pub(super) struct Entry {
    pub cursor: u64,
    pub rest: Commit,
    pub ticket: Arc<LateTicket>,
}

/// The events of one commit, and what waits beside them.
pub(super) struct Held {
    pub cursor: u64,
    pub parts: Vec<Part>,
    pub time_ns: i64,
    pub withheld: Withheld,
}

/// What one channel gets of a commit.
pub(super) struct Part {
    pub channel: usize,
    pub batch: Batch,
    pub bytes: u64,
}

/// What goes to the file journal when all have acknowledged.
#[derive(Default)]
pub(super) struct Withheld {
    pub positions: Vec<(Vec<u8>, Vec<u8>)>,
    pub state: Vec<StateWrites>,
    /// For the quarantine.
    pub puts: Vec<Put>,
    pub tickets: Vec<Arc<LateTicket>>,
    pub bytes: usize,
}

/// One of our channels.
pub(super) struct Channel {
    pub spec: ChannelSpec,
    pub events: u64,
    pub bytes: u64,
}

/// Acknowledged by all readers, and handed to the file in one commit.
struct Released {
    ticket: Arc<dyn Ticket>,
    /// Events and bytes, by channel.
    events: Vec<(u64, u64)>,
}

pub(super) struct State {
    pub channels: Vec<Channel>,
    pub seats: Vec<Seat>,
    pub queue: VecDeque<Held>,
    /// Commits with events so far: the cursor behind the last.
    pub head: u64,
    /// Commits before this one are in the file.
    pub released: u64,
    pub withheld_bytes: usize,
    /// Positions that are withheld: the newest value, and the cursor of the commit that has it.
    pub positions: BTreeMap<Vec<u8>, (u64, Vec<u8>)>,
    /// Where every seat has to acknowledge on its way.
    pub meetings: BTreeSet<u64>,
    /// Made by a reader whose destination decides, and not yet acknowledged.
    pub promise: Option<Open>,
    pub next_promise: u64,
    pub undecided: Option<Undecided>,
    /// What the file was handed and has not made durable, oldest first.
    settling: VecDeque<Released>,
    /// Why the file takes no more.
    pub failed: Option<Arc<str>>,
    pub is_open: bool,
}

impl State {
    pub fn new(channels: Vec<ChannelSpec>) -> State {
        let mut seats = Vec::new();
        for (channel, spec) in channels.iter().enumerate() {
            seats.extend(spec.readers.iter().enumerate().map(|(reader, name)| Seat {
                channel,
                reader: ReaderId(u16::try_from(reader).unwrap_or(u16::MAX)),
                name: name.clone(),
                is_live: true,
                handed: 0,
                acked: 0,
                entries: VecDeque::new(),
            }));
        }
        State {
            channels: channels.into_iter().map(|spec| Channel { spec, events: 0, bytes: 0 }).collect(),
            seats,
            queue: VecDeque::new(),
            head: 0,
            released: 0,
            withheld_bytes: 0,
            positions: BTreeMap::new(),
            meetings: BTreeSet::new(),
            promise: None,
            next_promise: 1,
            undecided: None,
            settling: VecDeque::new(),
            failed: None,
            is_open: true,
        }
    }

    pub fn check_open(&self) -> Result<(), CommitError> {
        match &self.failed {
            _ if !self.is_open => Err(CommitError::Closing),
            Some(reason) => Err(CommitError::Failed(reason.clone())),
            None => Ok(()),
        }
    }

    /// The file takes no more. The tickets that wait for it.
    pub fn fail(&mut self, reason: &Arc<str>) -> Vec<Arc<LateTicket>> {
        self.failed.get_or_insert_with(|| reason.clone());
        let withheld = self.queue.iter_mut().flat_map(|held| held.withheld.tickets.drain(..));
        let entries = self.seats.iter_mut().flat_map(|seat| seat.entries.drain(..));
        withheld.chain(entries.map(|entry| entry.ticket)).collect()
    }

    pub fn seat_of(&self, channel: ChannelId, reader: ReaderId) -> Option<usize> {
        let is_it = |seat: &Seat| seat.channel == usize::from(channel.0) && seat.reader == reader;
        self.seats.iter().position(is_it)
    }

    pub fn has_reader(&self, channel: usize) -> bool {
        self.seats.iter().any(|seat| seat.is_live && seat.channel == channel)
    }

    /// The first commit at or after `cursor` that has something for a channel; the head if there is none.
    pub fn reach(&self, channel: usize, cursor: u64) -> u64 {
        let from = usize::try_from(cursor.saturating_sub(self.released)).unwrap_or(usize::MAX);
        let has_part = |held: &&Held| held.parts.iter().any(|part| part.channel == channel);
        self.queue.iter().skip(from).find(has_part).map_or(self.head, |held| held.cursor)
    }

    /// Whether a seat that has finished all before `cursor` acknowledges there before it goes on.
    pub fn stops(&self, seat: &Seat, cursor: u64) -> bool {
        if cursor <= seat.acked {
            return false;
        }
        let first = self.meetings.range(cursor..).next();
        first.is_some_and(|meeting| *meeting <= self.reach(seat.channel, cursor))
    }

    /// A seat would flush at `cursor`. If nobody has asked for a meeting ahead of it, it is where the foremost seat is:
    /// nobody has passed it yet. With one seat that is here.
    pub fn ask_to_meet(&mut self, cursor: u64) {
        if self.meetings.range(cursor..).next().is_none() {
            let handed = self.seats.iter().filter(|seat| seat.is_live).map(|seat| seat.handed);
            self.meetings.insert(handed.fold(cursor, u64::max));
        }
    }

    /// Whether every seat has acknowledged at a place; `without`: that one aside.
    pub fn have_acked(&self, at: u64, without: Option<usize>) -> bool {
        let others = self.seats.iter().enumerate().filter(|(index, _)| Some(*index) != without);
        others.map(|(_, seat)| seat).filter(|seat| seat.is_live).all(|seat| {
            let last = self.places(seat).filter(|place| *place <= at).max();
            last.is_some_and(|last| at <= self.reach(seat.channel, last))
        })
    }

    fn places(&self, seat: &Seat) -> impl Iterator<Item = u64> {
        std::iter::once(self.released).chain(seat.entries.iter().map(|entry| entry.cursor))
    }

    /// The last place at which every seat has acknowledged, if something is withheld before it.
    pub fn joint(&self) -> Option<u64> {
        let live = || self.seats.iter().filter(|seat| seat.is_live);
        let mut candidates: Vec<u64> = live().flat_map(|seat| self.places(seat)).collect();
        if candidates.is_empty() {
            candidates.push(self.head);
        }
        let joint = candidates.into_iter().filter(|at| self.have_acked(*at, None)).max()?;
        let has_entry = |seat: &Seat| seat.entries.front().is_some_and(|entry| entry.cursor <= joint);
        (joint > self.released || self.seats.iter().any(has_entry)).then_some(joint)
    }

    /// Everything that is withheld up to a place, in its order.
    pub fn gather(&self, joint: u64) -> Commit {
        let mut commit = Commit::default();
        for held in self.queue.iter().take_while(|held| held.cursor < joint) {
            commit.positions.extend(held.withheld.positions.iter().cloned());
            commit.state.extend(held.withheld.state.iter().cloned());
            commit.puts.extend(held.withheld.puts.iter().cloned());
        }
        for entry in self.entries_up_to(joint) {
            commit.positions.extend(entry.rest.positions.iter().cloned());
            commit.state.extend(entry.rest.state.iter().cloned());
            commit.puts.extend(entry.rest.puts.iter().cloned());
            commit.acks.extend(entry.rest.acks.iter().copied());
        }
        commit
    }

    fn entries_up_to(&self, joint: u64) -> impl Iterator<Item = &Entry> {
        self.seats.iter().flat_map(move |seat| seat.entries.iter().take_while(move |it| it.cursor <= joint))
    }

    /// What was gathered is handed to the file. The tickets that wait for it.
    pub fn release(&mut self, joint: u64, real: &Arc<dyn Ticket>) -> Vec<Arc<LateTicket>> {
        let mut tickets = Vec::new();
        let mut released = Released { ticket: real.clone(), events: vec![(0, 0); self.channels.len()] };
        while self.queue.front().is_some_and(|held| held.cursor < joint) {
            let Some(held) = self.queue.pop_front() else { break };
            for part in &held.parts {
                if let Some(channel) = self.channels.get_mut(part.channel) {
                    channel.events -= part.batch.rows() as u64;
                    channel.bytes -= part.bytes;
                }
                if let Some((events, bytes)) = released.events.get_mut(part.channel) {
                    *events += part.batch.rows() as u64;
                    *bytes += part.bytes;
                }
            }
            self.withheld_bytes -= held.withheld.bytes;
            tickets.extend(held.withheld.tickets);
        }
        self.released = self.released.max(joint);
        for seat in &mut self.seats {
            while seat.entries.front().is_some_and(|entry| entry.cursor <= joint) {
                tickets.extend(seat.entries.pop_front().map(|entry| entry.ticket));
            }
            seat.acked = seat.acked.max(joint);
            seat.handed = seat.handed.max(joint);
        }
        self.meetings = self.meetings.split_off(&(joint + 1));
        if self.promise.as_ref().is_some_and(|promise| promise.cursor <= joint) {
            self.promise = None;
        }
        self.positions.retain(|_, (of, _)| *of >= joint);
        if released.events.iter().any(|(events, _)| *events > 0) {
            self.settling.push_back(released);
        }
        self.settle();
        tickets
    }

    /// Forgets what is durably released.
    pub fn settle(&mut self) {
        let is_durable = |it: &Released| matches!(it.ticket.wait(Some(Duration::ZERO)), Some(Ok(_)));
        while self.settling.pop_front_if(|it| is_durable(it)).is_some() {}
    }

    /// Events and bytes of a channel that are released and not durably so: their source has to have them still.
    pub fn settling(&self, channel: usize) -> (u64, u64) {
        let of_channel = self.settling.iter().filter_map(|it| it.events.get(channel));
        of_channel.fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1))
    }

    /// A seat begins again at `cursor`: what it said behind that is as if it had not.
    pub fn go_back(&mut self, seat: usize, cursor: u64) -> Vec<Arc<LateTicket>> {
        let released = self.released;
        let Some(seat) = self.seats.get_mut(seat) else { return Vec::new() };
        let kept = seat.entries.partition_point(|entry| entry.cursor <= cursor);
        let dropped = seat.entries.split_off(kept);
        seat.acked = seat.entries.back().map_or(released, |entry| entry.cursor);
        seat.handed = cursor;
        dropped.into_iter().map(|entry| entry.ticket).collect()
    }
}
