//! Sink groups: several sinks that read a channel as one, so that each event goes to one of them.
//!
//! Every member is a sink with a thread, a destination and a position of its own ([`crate::deliver`]). The group has one reader of the
//! channel. What the reader finds is *assigned*: a range of the channel to one member, which then has it alone.
//!
//! # The rule
//! **An event is at most at one member, unless it is known that this member's destination does not have it and never will.** What a member
//! was handed is in doubt from its assignment until the member's destination was asked: [`Sink::recover`](crate::Sink::recover) has
//! succeeded, which cuts the destination back to what is committed, or says how far it is. Only then, what is behind goes back to the
//! group, and to another member. So:
//! - An assignment is durable before its events are handed out ([`record::Record`], one position per member). After a crash each member
//!   finds its own ranges, and nobody else has them before it has recovered.
//! - An acknowledgement is one commit: the member's record without the range, the position of its destination, what it could not take, and the
//!   group's cursor, which is the first event that is assigned to somebody or to nobody.
//! - A range that changes hands is taken out of one record and put into another in one commit.
//! - A member whose destination may carry out a request after it was asked ([`Sink::settles`](crate::Sink::settles)) gives nothing
//!   back: the late request and another member's would both count. It delivers what it was assigned itself, in the same sequence: of the
//!   late request and the next one its destination takes one.
//! - A member that is away holds what it has in doubt, and nothing else: what comes goes to the others. Its events stay in the
//!   channel, which may fill. A member that remembers nothing ([`Sink::forgets`](crate::Sink::forgets)) may double events anyway: what it has in doubt
//!   goes to the others at once.
//! - A member reads a sequence of its own: the events that were ever assigned to it, numbered from 0. Its cursors and marks are of
//!   that sequence, which only grows; so a destination that stores a mark never goes back, whatever ranges its member is given.
//!
//! What a group promises is the least that its members promise. Order is kept within what one member gets in a row, not over members.
//!
//! # Who gets what
//! *Failover*: the first member in the group's order that is well; the others wait. *Load-balancing*: of the members that wait for events the
//! next one in the circle, any, or the one with the fewest events that are not acknowledged; all are at work at once.
//! A member that fails rests: `penalty` at first, twice as long after each failure in a row, `penalty_max` at most. It is well again when its
//! destination has recovered and the rest is over; a flush that succeeds ends the row.

mod reader;
pub mod record;
mod seats;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use flumen_journal::{ChannelId, Commit, CommitError, Journal, ReaderId, Ticket};
use parking_lot::{Condvar, Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

pub(crate) use self::reader::GroupReader;
use self::seats::Seats;
use crate::plan::{GroupKind, GroupPlan};

/// A group under way.
pub struct SinkGroup {
    pub(crate) plan: GroupPlan,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) channel: ChannelId,
    pub(crate) reader: ReaderId,
    /// From when a member first asked for it: the journal may have to wait for its disk, and sources begin meanwhile.
    seats: OnceLock<Mutex<Seats>>,
    changed: Condvar,
}

/// A member's place in its group.
#[derive(Clone)]
pub struct Member {
    pub(crate) group: Arc<SinkGroup>,
    at: usize,
}

/// Figures of a group.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// The channel that it reads.
    pub channel: String,
    /// `failover` or `load-balancing`.
    pub kind: String,
    /// Its members, in its order.
    pub members: Vec<MemberStatus>,
}

/// Figures of a member.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemberStatus {
    /// The sink.
    pub sink: String,
    /// `ready`, `resting` (it failed), `recovering` (its destination does not answer yet) or `ended`.
    pub state: String,
    /// Events that were assigned to it and are not acknowledged.
    pub in_flight: u64,
    /// Of these, events of which it is not known whether its destination has them: nobody else gets them.
    pub in_doubt: u64,
    /// Failures in a row.
    pub failures: u32,
    /// How long it still rests, in seconds.
    pub rests_for_s: f64,
}

impl MemberStatus {
    /// Of a member of which the journal could not say anything yet.
    fn unknown(sink: &str) -> MemberStatus {
        let (state, rests_for_s) = ("recovering".to_owned(), 0.0);
        MemberStatus { sink: sink.to_owned(), state, in_flight: 0, in_doubt: 0, failures: 0, rests_for_s }
    }
}

impl SinkGroup {
    /// Of a plan; `None`: the journal does not have its reader.
    pub fn new(plan: &GroupPlan, journal: Arc<dyn Journal>) -> Option<Arc<SinkGroup>> {
        let channel = journal.channel(&plan.channel)?;
        let reader = journal.reader_id(channel, &plan.name)?;
        let (plan, seats, changed) = (plan.clone(), OnceLock::new(), Condvar::new());
        Some(Arc::new(SinkGroup { plan, journal, channel, reader, seats, changed }))
    }

    /// Waits for the journal at first.
    fn seats(&self) -> MutexGuard<'_, Seats> {
        let new = || Seats::new(&self.plan, self.journal.as_ref(), self.channel, self.reader);
        self.seats.get_or_init(|| Mutex::new(new())).lock()
    }

    /// The place of a sink; `None`: it is no member.
    pub fn member(self: &Arc<Self>, sink: &str) -> Option<Member> {
        let at = self.plan.sinks.iter().position(|name| name == sink)?;
        Some(Member { group: self.clone(), at })
    }

    /// Figures for `status`.
    pub fn status(&self) -> GroupStatus {
        let kind = match self.plan.kind {
            GroupKind::Failover => "failover",
            GroupKind::LoadBalancing(_) => "load-balancing",
        };
        GroupStatus {
            name: self.plan.name.clone(),
            channel: self.plan.channel.clone(),
            kind: kind.to_owned(),
            members: match self.seats.get() {
                Some(seats) => seats.lock().status(self.plan.sinks.len(), Instant::now()),
                None => self.plan.sinks.iter().map(|sink| MemberStatus::unknown(sink)).collect(),
            },
        }
    }
}

impl Member {
    /// Names that events for this member may bear ([`crate::replay::HEADER_TO`]): whatever member could not take them, any takes them again.
    pub(crate) fn names(&self) -> Vec<String> {
        let plan = &self.group.plan;
        plan.sinks.iter().cloned().chain([plan.name.clone()]).collect()
    }

    /// It begins: as after a start, nothing is known of its destination.
    pub(crate) fn begin(&self) {
        if let Some(seats) = self.group.seats.get()
            && let Some(seat) = seats.lock().get_mut(self.at)
        {
            seat.begin();
        }
    }

    /// It has ended, and asks for nothing more.
    pub(crate) fn end(&self) {
        let Some(seats) = self.group.seats.get() else { return };
        if let Some(seat) = seats.lock().get_mut(self.at) {
            seat.has_ended = true;
        }
        self.group.changed.notify_all();
    }

    /// Whether nothing is left that it could be given: everything is assigned, and no other member at work has anything.
    pub(crate) fn may_end(&self) -> bool {
        let group = &self.group;
        let status = group.journal.status();
        let head = status.channels.get(usize::from(group.channel.0)).map_or(0, |channel| channel.head);
        group.seats().is_drained(self.at, head)
    }

    /// Its destination failed. `forgets`: what is in doubt may come twice.
    pub(crate) fn failed(&self, forgets: bool) {
        let plan = &self.group.plan;
        let mut seats = self.group.seats();
        if let Some(seat) = seats.get_mut(self.at) {
            seat.fail(plan.penalty, plan.penalty_max, Instant::now());
            if forgets {
                seat.release_from(0);
            }
        }
        drop(seats);
        self.group.changed.notify_all();
    }

    /// Its destination has recovered, and neither has nor will take what is at or behind `until` of its sequence: after a start or a
    /// failure that may go to others. A member that goes back for a reason of its own (it has seen what it must take out) keeps it.
    pub(crate) fn settled(&self, until: u64) {
        let mut seats = self.group.seats();
        if let Some(seat) = seats.get_mut(self.at).filter(|seat| !seat.is_ready()) {
            seat.release_from(until);
        }
        drop(seats);
        self.group.changed.notify_all();
    }

    /// A flush has succeeded.
    pub(crate) fn succeeded(&self) {
        if let Some(seat) = self.group.seats().get_mut(self.at) {
            seat.failures = 0;
        }
    }

    /// Hands in a commit that acknowledges its events before `cursor` of its sequence: with the group's cursor and its record.
    /// If the commit has puts, what it acknowledges counts for others only after [`Member::durable`].
    pub(crate) fn commit(&self, mut commit: Commit, cursor: u64) -> Result<Box<dyn Ticket>, CommitError> {
        let group = &self.group;
        // Held while it is handed in: cursors and records have the order in which they were made.
        let mut seats = group.seats();
        let before = seats.acknowledge(self.at, cursor, !commit.puts.is_empty());
        commit.acks = vec![group.ack(seats.cursor_for(self.at))];
        commit.positions.extend(seats.record(self.at));
        let ticket = group.journal.commit(commit, None);
        if let (Err(_), Some(seat), Some(before)) = (&ticket, seats.get_mut(self.at), before) {
            // Nothing of it counts.
            (seat.record, seat.undurable) = (before, None);
        }
        drop(seats);
        group.changed.notify_all();
        ticket
    }

    /// The last commit with puts is durable.
    pub(crate) fn durable(&self) {
        if let Some(seat) = self.group.seats().get_mut(self.at) {
            seat.undurable = None;
        }
    }
}

impl SinkGroup {
    fn ack(&self, cursor: u64) -> flumen_journal::Ack {
        flumen_journal::Ack { channel: self.channel, reader: self.reader, cursor }
    }
}
