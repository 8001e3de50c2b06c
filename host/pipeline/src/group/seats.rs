//! Who has what, and who is next: the state of a group, under its lock.

use std::time::{Duration, Instant};

use flumen_journal::{ChannelId, Journal, Reader, ReaderId};

use super::MemberStatus;
use super::record::{self, Record, Span};
use crate::limits;
use crate::plan::{Balance, GroupKind, GroupPlan};

/// All members, and what is in nobody's hands yet.
pub(super) struct Seats {
    group: String,
    seats: Vec<Seat>,
    /// Events of the channel at or behind this were assigned to nobody.
    pub next: u64,
    /// Reads the channel from `next`; `None`: somebody waits in it.
    pub source: Option<Box<dyn Reader>>,
    /// What it read last, for whoever is chosen.
    pub held: Option<flumen_journal::Delivery>,
    turn: usize,
    dice: u64,
}

/// A member.
pub(super) struct Seat {
    name: String,
    pub record: Record,
    /// Ranges that its destination does not have, for others; still in its record.
    pub released: Vec<Span>,
    /// Where events began that a commit acknowledged which is not durable yet.
    pub undurable: Option<u64>,
    /// It waits for events.
    pub waits: bool,
    /// Somebody makes an assignment to it durable.
    pub expects: bool,
    /// What was read for it.
    pub mail: Option<flumen_journal::Delivery>,
    /// Where it reads in its sequence.
    pub at: u64,
    /// Its destination has recovered since it began, or failed.
    is_ready: bool,
    pub has_ended: bool,
    pub failures: u32,
    rests_until: Option<Instant>,
    begun: Option<Instant>,
}

impl Seat {
    fn new(name: &str, (record, released): (Record, Vec<Span>)) -> Seat {
        Seat {
            name: name.to_owned(),
            at: record.acknowledged(),
            record,
            released,
            undurable: None,
            waits: false,
            expects: false,
            mail: None,
            is_ready: false,
            has_ended: true,
            failures: 0,
            rests_until: None,
            begun: None,
        }
    }

    pub fn begin(&mut self) {
        (self.has_ended, self.is_ready, self.begun) = (false, false, Some(Instant::now()));
    }

    pub fn fail(&mut self, penalty: Duration, penalty_max: Duration, now: Instant) {
        let doubled = penalty.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.rests_until = now.checked_add(doubled.min(penalty_max));
        self.is_ready = false;
        self.begun = None;
        self.mail = None;
    }

    /// It asks for events: its destination has recovered.
    pub fn is_asking(&mut self) {
        self.is_ready = true;
    }

    /// Its destination has recovered since it began, or failed.
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    pub fn release_from(&mut self, number: u64) {
        self.released.extend(self.record.take_from(number));
        self.mail = None;
    }

    fn rests_for(&self, now: Instant) -> Duration {
        self.rests_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// It would get events. One that has just begun is waited for a moment.
    fn is_well(&self, now: Instant) -> bool {
        let has_just_begun =
            self.begun.is_some_and(|begun| now.saturating_duration_since(begun) < limits::GROUP_BEGINS);
        !self.has_ended && self.rests_for(now).is_zero() && (self.is_ready || has_just_begun)
    }

    fn in_flight(&self) -> u64 {
        self.record.spans.iter().map(Span::events).sum()
    }

    fn lowest(&self) -> Option<u64> {
        let spans = self.record.spans.iter().chain(&self.released).map(|span| span.from);
        spans.chain(self.undurable).min()
    }
}

impl Seats {
    pub fn new(plan: &GroupPlan, journal: &dyn Journal, channel: ChannelId, reader: ReaderId) -> Seats {
        let mut source = journal.open_reader(channel, reader);
        let mut seats: Vec<Seat> = Vec::new();
        for sink in &plan.sinks {
            let record = journal.position(&record::key(&plan.name, sink));
            let mut seat = Seat::new(sink, record.and_then(|it| Record::decode(&it)).unwrap_or_default());
            // All begin with the group.
            seat.begin();
            seats.push(seat);
        }
        // Of members that the plan does not have any more.
        let prefix = record::prefix(&plan.name);
        for (key, value) in journal.positions(&prefix) {
            let name = String::from_utf8_lossy(key.get(prefix.len()..).unwrap_or_default()).into_owned();
            let Some(found) = Record::decode(&value).filter(|_| !plan.sinks.contains(&name)) else {
                continue;
            };
            let mut seat = Seat::new(&name, found);
            let events = seat.in_flight();
            if events > 0 {
                tracing::warn!(
                    group = plan.name,
                    sink = name,
                    events,
                    "the sink left the group before its destination could tell what it has: other members get these events"
                );
            }
            seat.release_from(0);
            seats.push(seat);
        }
        let acknowledged = source.acknowledged();
        let next = seats.iter().map(|seat| seat.record.end).fold(acknowledged, u64::max);
        if let Err(error) = source.seek(next) {
            tracing::error!(group = plan.name, %error, "the channel cannot be read from where the group was");
        }
        let dice = next | 1;
        Seats { group: plan.name.clone(), seats, next, source: Some(source), held: None, turn: 0, dice }
    }

    pub fn get_mut(&mut self, at: usize) -> Option<&mut Seat> {
        self.seats.get_mut(at)
    }

    pub fn get(&self, at: usize) -> Option<&Seat> {
        self.seats.get(at)
    }

    /// Takes out what a member has finished; what it had before, for a commit that is not taken.
    pub fn acknowledge(&mut self, at: usize, number: u64, has_puts: bool) -> Option<Record> {
        let seat = self.seats.get_mut(at)?;
        let before = seat.record.clone();
        let lowest = seat.record.finish(number);
        if has_puts {
            seat.undurable = lowest;
        }
        Some(before)
    }

    /// The group's cursor in a commit of this member, which acknowledges what it has finished itself.
    pub fn cursor_for(&self, at: usize) -> u64 {
        let lowest = |(index, seat): (usize, &Seat)| match index == at {
            true => seat.record.spans.iter().chain(&seat.released).map(|span| span.from).min(),
            false => seat.lowest(),
        };
        self.seats.iter().enumerate().filter_map(lowest).min().unwrap_or(self.next)
    }

    /// The position that a member's record is.
    pub fn record(&self, at: usize) -> Option<(Vec<u8>, Vec<u8>)> {
        let seat = self.seats.get(at)?;
        Some((record::key(&self.group, &seat.name), seat.record.encode(&seat.released)))
    }

    /// Whether this member may take over what another has released.
    pub fn is_next(&self, plan: &GroupPlan, at: usize, now: Instant) -> bool {
        match plan.kind {
            GroupKind::Failover => self.first_well(plan, now) == Some(at),
            GroupKind::LoadBalancing(_) => self.is_free(at, now),
        }
    }

    /// Whether all up to `head` is assigned and `me` has read all of its own, and only `me` has something, or who has ended.
    pub fn is_drained(&self, me: usize, head: u64) -> bool {
        let has_read_all = |seat: &Seat| seat.record.spans.iter().all(|span| span.behind(seat.at).is_none());
        let is_idle = |(at, seat): (usize, &Seat)| {
            let is_done =
                if at == me { has_read_all(seat) } else { seat.has_ended || seat.record.spans.is_empty() };
            seat.released.is_empty() && is_done
        };
        self.held.is_none() && self.next >= head && self.seats.iter().enumerate().all(is_idle)
    }

    fn first_well(&self, plan: &GroupPlan, now: Instant) -> Option<usize> {
        let seats = self.seats.iter().take(plan.sinks.len());
        seats.enumerate().find(|(_, seat)| seat.is_well(now)).map(|(at, _)| at)
    }

    fn is_free(&self, at: usize, now: Instant) -> bool {
        let is_free = |seat: &Seat| seat.is_well(now) && seat.record.spans.len() < limits::GROUP_SPANS;
        self.seats.get(at).is_some_and(is_free)
    }

    /// Who gets the next events; `me` asks, others wait. `None`: nobody for now.
    pub fn choose(&mut self, plan: &GroupPlan, me: usize, now: Instant) -> Option<usize> {
        let members = plan.sinks.len();
        let waits = |seats: &Seats, at: usize| {
            at == me || seats.seats.get(at).is_some_and(|seat| seat.waits && !seat.expects)
        };
        let balance = match plan.kind {
            // Others are not given what the first one would take in a moment.
            GroupKind::Failover => return self.first_well(plan, now).filter(|at| waits(self, *at)),
            GroupKind::LoadBalancing(balance) => balance,
        };
        let free: Vec<usize> = (0..members).filter(|at| waits(self, *at) && self.is_free(*at, now)).collect();
        let chosen = match balance {
            Balance::RoundRobin => free.iter().find(|at| **at >= self.turn).or(free.first()).copied(),
            Balance::Random => {
                // xorshift64
                self.dice ^= self.dice << 13;
                self.dice ^= self.dice >> 7;
                self.dice ^= self.dice << 17;
                let at = self.dice.checked_rem(free.len() as u64).unwrap_or_default();
                free.get(usize::try_from(at).unwrap_or_default()).copied()
            }
            Balance::LeastInFlight => {
                let in_flight = |at: &usize| self.seats.get(*at).map_or(u64::MAX, Seat::in_flight);
                free.iter().copied().min_by_key(in_flight)
            }
        };
        if let Some(chosen) = chosen {
            self.turn = (chosen + 1) % members.max(1);
        }
        chosen
    }

    /// Assigns fresh events of the channel, and says which positions are to be committed.
    pub fn assign(&mut self, to: usize, from: u64, until: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.next = self.next.max(until);
        if let Some(seat) = self.seats.get_mut(to) {
            seat.record.assign(from, until);
        }
        self.record(to).into_iter().collect()
    }

    /// Assigns what somebody released, if anybody did; with the positions to be committed.
    pub fn take_over(&mut self, to: usize) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
        let from = self.seats.iter().position(|seat| !seat.released.is_empty())?;
        let span = self.seats.get_mut(from)?.released.remove(0);
        self.seats.get_mut(to)?.record.assign(span.from, span.until);
        let mut positions: Vec<_> = self.record(to).into_iter().collect();
        positions.extend(self.record(from).filter(|_| from != to));
        Some(positions)
    }

    pub fn status(&self, members: usize, now: Instant) -> Vec<MemberStatus> {
        let of_seat = |seat: &Seat| {
            let (in_flight, rests) = (seat.in_flight(), seat.rests_for(now));
            let state = match seat {
                _ if seat.has_ended => "ended",
                _ if !rests.is_zero() => "resting",
                _ if !seat.is_ready => "recovering",
                _ => "ready",
            };
            MemberStatus {
                sink: seat.name.clone(),
                state: state.to_owned(),
                in_flight,
                in_doubt: if seat.is_ready { 0 } else { in_flight },
                failures: seat.failures,
                rests_for_s: rests.as_secs_f64(),
            }
        };
        self.seats.iter().take(members).map(of_seat).collect()
    }
}
