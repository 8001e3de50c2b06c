//! A member's reader: its own sequence, which it and the others fill from the channel.
//!
//! A member that waits for events reads the channel for the whole group: whatever it finds is assigned to who is chosen, and is handed
//! over when the assignment is durable. What a member was assigned and has not finished it reads again by a reader of its own.

use std::time::{Duration, Instant};

use flumen_journal::{Commit, CommitError, Delivery, ReadError, Reader};
use parking_lot::MutexGuard;

use super::Member;
use super::record::{self, Span};
use super::seats::{Seat, Seats};
use crate::limits;
use crate::selector::fnv1a;

/// Bytes behind the journal's own mark: the number in the member's sequence, and a hash of whose it is.
const MARK_BYTES: usize = 16;

/// See the module.
pub(crate) struct GroupReader {
    member: Member,
    /// Reads what the member has, again; knows the journal's marks.
    own: Box<dyn Reader>,
}

/// What became of a read of its own.
enum Own {
    Read(Box<Delivery>),
    /// All of the range is damaged.
    Lost,
    NotYet,
}

impl GroupReader {
    pub(crate) fn new(member: Member) -> GroupReader {
        let group = &member.group;
        let own = group.journal.open_reader(group.channel, group.reader);
        member.begin();
        GroupReader { member, own }
    }

    fn whose(&self) -> u64 {
        let plan = &self.member.group.plan;
        let name = plan.sinks.get(self.member.at).map_or("", String::as_str);
        fnv1a(&record::key(&plan.name, name))
    }

    /// What it was assigned before and has not read yet.
    fn read_own(&mut self, span: Span) -> Result<Own, ReadError> {
        self.own.seek(span.from)?;
        // It may not be readable yet: a segment that is being begun, a window that has let go of it.
        let Some(found) = self.own.next(limits::HOLD_POLL)? else { return Ok(Own::NotYet) };
        if found.first >= span.until {
            return Ok(Own::Lost);
        }
        let lost_before = found.first.saturating_sub(span.from);
        let left = usize::try_from(span.until - found.first).unwrap_or(usize::MAX);
        let rows = found.batch.rows().min(left);
        let first = span.first + lost_before;
        let next = first + rows as u64;
        Ok(Own::Read(Box::new(Delivery { first, next, batch: found.batch.slice(0, rows), lost_before })))
    }

    /// Makes an assignment durable. The lock is not held meanwhile.
    fn commit(
        &self,
        seats: MutexGuard<'_, Seats>,
        positions: Vec<(Vec<u8>, Vec<u8>)>,
        to: usize,
    ) -> Result<(), ReadError> {
        let group = &self.member.group;
        // With an acknowledgement, so that on a full disk it overtakes puts like any other.
        let acks = vec![group.ack(seats.cursor_for(usize::MAX))];
        let ticket = group.journal.commit(Commit { positions, acks, ..Commit::default() }, None);
        drop(seats);
        let outcome = ticket.and_then(|ticket| ticket.wait(None).unwrap_or(Err(CommitError::Closing)));
        let mut seats = group.seats();
        if let Some(seat) = seats.get_mut(to) {
            seat.expects = false;
        }
        drop(seats);
        group.changed.notify_all();
        outcome.map(|_| ()).map_err(|_| ReadError::Closing)
    }

    /// The next span of its sequence that it has not read.
    fn unread(seat: &Seat) -> Option<Span> {
        seat.record.spans.iter().find_map(|span| span.behind(seat.at))
    }
}

impl Reader for GroupReader {
    fn next(&mut self, wait: Duration) -> Result<Option<Delivery>, ReadError> {
        let deadline = Instant::now() + wait;
        let member = self.member.clone();
        let (group, me) = (&member.group, member.at);
        loop {
            let mut seats = group.seats();
            let Some(seat) = seats.get_mut(me) else { return Err(ReadError::Closing) };
            seat.is_asking();
            if let Some(mail) = seat.mail.take_if(|_| !seat.expects) {
                seat.at = mail.next;
                return Ok(Some(mail));
            }
            if let Some(span) = Self::unread(seat).filter(|_| !seat.expects) {
                drop(seats);
                let (at, found) = match self.read_own(span)? {
                    Own::Read(found) => (found.next, Some(found)),
                    // The journal has counted what damage cost. It is done with when what is behind it is acknowledged.
                    Own::Lost => (span.end(), None),
                    Own::NotYet if Instant::now() >= deadline => return Ok(None),
                    Own::NotYet => continue,
                };
                if let Some(seat) = group.seats().get_mut(me) {
                    seat.at = at;
                }
                match found {
                    Some(found) => return Ok(Some(*found)),
                    None => continue,
                }
            }
            let now = Instant::now();
            if seats.is_next(&group.plan, me, now)
                && let Some(positions) = seats.take_over(me)
            {
                self.commit(seats, positions, me)?;
                continue;
            }
            if seats.held.is_none()
                && let Some(mut source) = seats.source.take()
            {
                drop(seats);
                let found = source.next(deadline.saturating_duration_since(now).min(limits::SINK_WAIT));
                let mut seats = group.seats();
                seats.source = Some(source);
                seats.held = found?;
                let is_empty = seats.held.is_none();
                drop(seats);
                group.changed.notify_all();
                if is_empty && Instant::now() >= deadline {
                    return Ok(None);
                }
                continue;
            }
            if seats.held.is_some()
                && let Some(to) = seats.choose(&group.plan, me, now)
                && let Some(held) = seats.held.take()
            {
                self.hand_over(seats, held, to)?;
                continue;
            }
            let is_expecting = seats.get(me).is_some_and(|seat| seat.expects);
            if now >= deadline && !is_expecting {
                return Ok(None);
            }
            let until =
                if is_expecting { now + limits::SINK_WAIT } else { deadline.min(now + limits::HOLD_POLL) };
            if let Some(seat) = seats.get_mut(me) {
                seat.waits = true;
            }
            group.changed.wait_until(&mut seats, until);
            if let Some(seat) = seats.get_mut(me) {
                seat.waits = false;
            }
        }
    }

    fn seek(&mut self, cursor: u64) -> Result<(), ReadError> {
        let mut seats = self.member.group.seats();
        if let Some(seat) = seats.get_mut(self.member.at) {
            seat.mail = None;
            seat.at = cursor.max(seat.record.acknowledged());
        }
        Ok(())
    }

    fn acknowledged(&self) -> u64 {
        let seats = self.member.group.seats();
        seats.get(self.member.at).map_or(0, |seat| seat.record.acknowledged())
    }

    fn mark(&self, cursor: u64) -> Vec<u8> {
        let seats = self.member.group.seats();
        let spans = seats.get(self.member.at).map(|seat| &seat.record.spans);
        let span =
            spans.and_then(|spans| spans.iter().find(|span| (span.first..=span.end()).contains(&cursor)));
        // The journal has the events that the mark is about, or it is another one.
        let place = span.map_or_else(|| self.own.acknowledged(), |span| span.from + (cursor - span.first));
        drop(seats);
        let mut mark = self.own.mark(place);
        mark.extend(cursor.to_le_bytes());
        mark.extend(self.whose().to_le_bytes());
        mark
    }

    fn resolve(&mut self, mark: &[u8]) -> Option<u64> {
        let (of_journal, own) = mark.split_at_checked(mark.len().checked_sub(MARK_BYTES)?)?;
        let (cursor, whose) = own.split_first_chunk::<8>()?;
        let is_own = whose == self.whose().to_le_bytes() && self.own.resolve(of_journal).is_some();
        let cursor = u64::from_le_bytes(*cursor);
        let seats = self.member.group.seats();
        let next = seats.get(self.member.at)?.record.next;
        (is_own && cursor <= next).then_some(cursor)
    }
}

impl GroupReader {
    /// Assigns what was read, and gives it to its member.
    fn hand_over(
        &self,
        mut seats: MutexGuard<'_, Seats>,
        held: Delivery,
        to: usize,
    ) -> Result<(), ReadError> {
        let (from, until) = (held.first, held.next);
        let positions = seats.assign(to, from, until);
        if let Some(seat) = seats.get_mut(to) {
            let next = seat.record.next;
            let first = next - (until - from);
            // Only if it has nothing else to read before: else it reads this again.
            let is_next = Self::unread(seat)
                .is_some_and(|span| span.behind(seat.at).is_some_and(|it| it.first == first));
            seat.mail = is_next.then_some(Delivery { first, next, ..held });
            seat.expects = true;
        }
        self.commit(seats, positions, to)
    }
}

impl Drop for GroupReader {
    fn drop(&mut self) {
        self.member.end();
    }
}
