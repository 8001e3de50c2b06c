//! What is withheld, and what goes to the file journal.
//!
//! The order of locks: `order`, the view, `state`. A withheld commit takes its place in the queue and in the view under both
//! of the latter, so that plugins and the file see one order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_event::Batch;
use parking_lot::MutexGuard;

use super::seats::{Entry, Held, Part, State, Withheld};
use super::{LateTicket, Shared, promise};
use crate::api::{Ack, ChannelId, Commit, CommitError, Journal, Put, Ticket};
use crate::limits;
use crate::state::StateWrites;

/// Pause before a commit is tried again that found the quarantine full: its room is not ours to watch.
pub(super) const FULL_RETRY: Duration = Duration::from_millis(20);

/// `Journal::commit`.
pub(super) fn commit(
    shared: &Shared,
    mut commit: Commit,
    deadline: Option<Instant>,
) -> Result<Box<dyn Ticket>, CommitError> {
    let (own, others): (Vec<Ack>, Vec<Ack>) = commit.acks.iter().partition(|ack| shared.is_own(ack.channel));
    if let Some(first) = own.first() {
        let is_first = |ack: &Ack| (ack.channel, ack.reader) == (first.channel, first.reader);
        let seat = shared.state.lock().seat_of(first.channel, first.reader);
        let Some(seat) = seat.filter(|_| own.iter().all(is_first)) else {
            return Err(CommitError::Failed(format!("the plan has no such reader: {own:?}").into()));
        };
        let cursor = own.iter().map(|ack| ack.cursor).fold(0, u64::max);
        commit.acks = others;
        return acknowledge(shared, seat, cursor, commit, deadline);
    }
    let is_quarantine_alone =
        commit.puts.is_empty() && commit.positions.is_empty() && commit.state.is_empty();
    if !commit.acks.is_empty() && is_quarantine_alone {
        // The keeper: it depends on nothing that is withheld.
        return shared.file.commit(commit, deadline).inspect_err(|_| shared.look());
    }
    withhold(shared, commit, deadline)
}

/// What each of our channels gets of a commit, and the puts for others.
fn split(shared: &Shared, puts: Vec<Put>) -> Result<(Vec<Part>, Vec<Put>), CommitError> {
    let (mut own, mut others): (Vec<(usize, Vec<Batch>)>, _) = (Vec::new(), Vec::new());
    for Put { channels, batch } in puts {
        if batch.is_empty() {
            continue;
        }
        let (ours, rest): (Vec<ChannelId>, Vec<ChannelId>) =
            channels.into_iter().partition(|channel| shared.is_own(*channel));
        for channel in ours.into_iter().map(|channel| usize::from(channel.0)) {
            match own.iter_mut().find(|(known, _)| *known == channel) {
                Some((_, batches)) => batches.push(batch.clone()),
                None => own.push((channel, vec![batch.clone()])),
            }
        }
        if !rest.is_empty() {
            others.push(Put { channels: rest, batch });
        }
    }
    // One delivery is one commit: what does not fit into one batch cannot be acknowledged as one.
    let part = |(channel, batches): (usize, Vec<Batch>)| {
        let batch = Batch::concat(&batches).map_err(|error| CommitError::Failed(error.to_string().into()))?;
        let batch = batch.compact();
        Ok(Part { channel, bytes: batch.memory_bytes() as u64, batch })
    };
    Ok((own.into_iter().map(part).collect::<Result<_, CommitError>>()?, others))
}

fn withhold(
    shared: &Shared,
    commit: Commit,
    deadline: Option<Instant>,
) -> Result<Box<dyn Ticket>, CommitError> {
    let Commit { puts, positions, state: writes, acks } = commit;
    let (mut parts, puts) = split(shared, puts)?;
    let rest = Commit { puts, positions, state: writes, acks };
    loop {
        let order = shared.order.lock();
        let mut view = shared.view.view().lock();
        let state = shared.state.lock();
        state.check_open()?;
        if state.undecided.is_some() {
            drop((view, order));
            let unknown =
                CommitError::Full { channel: "(its sink has not answered)".into(), events: 0, bytes: 0 };
            wait_for_room(shared, state, unknown, None, deadline)?;
            continue;
        }
        // A channel that nobody reads keeps nothing.
        parts.retain(|part| state.has_reader(part.channel));
        if let Some(full) = full(&state, &parts) {
            drop((view, order));
            wait_for_room(shared, state, full, None, deadline)?;
            continue;
        }
        let now_ns = shared.clock.wall_ns();
        let is_alone = parts.is_empty() && state.queue.is_empty();
        if !is_alone {
            rest.state.iter().for_each(|writes| view.apply(writes, now_ns, &mut |_| {}));
            drop(view);
            return Ok(Box::new(enqueue(shared, state, parts, rest)));
        }
        drop(state);
        match shared.file.commit(rest.clone(), Some(shared.clock.now())) {
            Err(error @ CommitError::Full { .. }) => {
                drop((view, order));
                let again = Some(shared.clock.now() + FULL_RETRY);
                wait_for_room(shared, shared.state.lock(), error, again, deadline)?;
            }
            Err(error) => {
                shared.look();
                return Err(error);
            }
            Ok(real) => {
                rest.state.iter().for_each(|writes| view.apply(writes, now_ns, &mut |_| {}));
                return Ok(real);
            }
        }
    }
}

/// Events to the end of the queue; what waits goes with them, or with the last that are there.
fn enqueue(
    shared: &Shared,
    mut state: MutexGuard<'_, State>,
    parts: Vec<Part>,
    rest: Commit,
) -> Arc<LateTicket> {
    let Commit { puts, positions, state: writes, .. } = rest;
    let lists: usize = positions.iter().map(|(key, value)| key.len() + value.len()).sum();
    let remembered: usize = writes.iter().map(StateWrites::bytes).sum();
    let quarantined: usize = puts.iter().map(|put| put.batch.memory_bytes()).sum();
    let weight = lists + remembered + quarantined;
    if !parts.is_empty() {
        let cursor = state.head;
        state.head += 1;
        for part in &parts {
            if let Some(channel) = state.channels.get_mut(part.channel) {
                channel.events += part.batch.rows() as u64;
                channel.bytes += part.bytes;
            }
        }
        let time_ns = shared.clock.wall_ns();
        state.queue.push_back(Held { cursor, parts, time_ns, withheld: Withheld::default() });
    }
    state.withheld_bytes += weight;
    let cursor = state.head.saturating_sub(1);
    for (key, value) in &positions {
        state.positions.insert(key.clone(), (cursor, value.clone()));
    }
    let ticket = Arc::new(LateTicket::default());
    if let Some(Held { withheld, .. }) = state.queue.back_mut() {
        withheld.positions.extend(positions);
        withheld.state.extend(writes);
        withheld.puts.extend(puts);
        withheld.tickets.push(ticket.clone());
        withheld.bytes += weight;
    }
    drop(state);
    shared.published.notify_all();
    ticket
}

/// A put waits if it does not fit; only into an empty channel goes one that is larger than all of it.
fn full(state: &State, parts: &[Part]) -> Option<CommitError> {
    let has_no_room = |part: &&Part| {
        state.channels.get(part.channel).is_some_and(|channel| {
            let (events, bytes) = (channel.events + part.batch.rows() as u64, channel.bytes + part.bytes);
            channel.events > 0
                && (events > channel.spec.capacity_events || bytes > channel.spec.capacity_bytes)
        })
    };
    let is_heavy = state.withheld_bytes >= limits::WITHHELD_BYTES_MAX && !state.queue.is_empty();
    let of = parts.iter().find(has_no_room).map(|part| part.channel).or(is_heavy.then_some(0))?;
    let channel = state.channels.get(of)?;
    Some(CommitError::Full {
        channel: channel.spec.name.clone(),
        events: channel.events,
        bytes: channel.bytes,
    })
}

fn wait_for_room(
    shared: &Shared,
    mut state: MutexGuard<'_, State>,
    full: CommitError,
    again: Option<Instant>,
    deadline: Option<Instant>,
) -> Result<(), CommitError> {
    let now = shared.clock.now();
    if deadline.is_some_and(|deadline| deadline <= now) {
        return Err(full);
    }
    let until = [again, deadline].into_iter().flatten().min();
    let left = until.map_or(limits::MEMORY_WAIT_MAX, |until| {
        until.saturating_duration_since(now).min(limits::MEMORY_WAIT_MAX)
    });
    state.check_open()?;
    shared.space.wait_for(&mut state, left);
    state.check_open()
}

/// An acknowledgement: in its place among those of the same reader, and in the file when all readers are there.
fn acknowledge(
    shared: &Shared,
    seat: usize,
    cursor: u64,
    rest: Commit,
    deadline: Option<Instant>,
) -> Result<Box<dyn Ticket>, CommitError> {
    let ticket = Arc::new(LateTicket::default());
    let mut entry = Some(Entry { cursor, rest, ticket: ticket.clone() });
    loop {
        let order = shared.order.lock();
        if let Some(mut entry) = entry.take() {
            let mut state = shared.state.lock();
            state.check_open()?;
            let head = state.head;
            let promise = state.promise.clone().filter(|it| (it.seat, it.cursor) == (seat, entry.cursor));
            let Some(seat) = state.seats.get_mut(seat) else { return Err(super::refused()) };
            if let Some(promise) = promise {
                entry.rest.positions.push(promise::kept(&seat.name, promise.number));
                if entry.rest.puts.is_empty() {
                    entry.rest.puts = promise.puts;
                }
            }
            seat.acked = seat.acked.max(entry.cursor.min(head));
            entry.cursor = seat.acked;
            seat.entries.push_back(entry);
            shared.published.notify_all();
        }
        match release(shared) {
            Ok(()) => return Ok(Box::new(ticket)),
            Err(error @ CommitError::Full { .. }) => {
                drop(order);
                let again = Some(shared.clock.now() + FULL_RETRY);
                let waited = wait_for_room(shared, shared.state.lock(), error, again, deadline);
                waited.inspect_err(|_| take_back(shared, seat, &ticket))?;
            }
            Err(error) => {
                take_back(shared, seat, &ticket);
                return Err(error);
            }
        }
    }
}

/// The acknowledgement was not taken: nothing of it is to be there.
fn take_back(shared: &Shared, seat: usize, ticket: &Arc<LateTicket>) {
    let mut state = shared.state.lock();
    let released = state.released;
    if let Some(seat) = state.seats.get_mut(seat) {
        seat.entries.retain(|entry| !Arc::ptr_eq(&entry.ticket, ticket));
        seat.acked = seat.entries.back().map_or(released, |entry| entry.cursor);
    }
}

/// What all readers have acknowledged goes to the file, in one commit. Under `order`.
pub(super) fn release(shared: &Shared) -> Result<(), CommitError> {
    let (joint, mut file) = {
        let state = shared.state.lock();
        state.check_open()?;
        let Some(joint) = state.joint() else { return Ok(()) };
        (joint, state.gather(joint))
    };
    file.acks.extend(shared.stand_in);
    let taken = shared.file.commit(file, Some(shared.clock.now()));
    let real: Arc<dyn Ticket> = taken.inspect_err(|_| shared.look())?.into();
    let tickets = shared.state.lock().release(joint, &real);
    tickets.into_iter().for_each(|ticket| ticket.resolve(Ok(real.clone())));
    shared.space.notify_all();
    shared.published.notify_all();
    Ok(())
}
