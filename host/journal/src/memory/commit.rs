//! A commit of a memory journal: events to memory (or to the file), everything else to the file journal, in one order.
//!
//! Constraints: one commit at a time takes its numbers and is handed to the file journal, so what is in the file is a prefix
//! of what was handed in. Nothing is waited for meanwhile: who finds no room lets the others pass and comes again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_event::Batch;

use super::channel::{Channel, Held, Way};
use super::registers::{Registers, Store, channel_key, reader_key};
use super::{Shared, State};
use crate::api::{Ack, ChannelId, Commit, CommitError, Journal, Put, Ticket};
use crate::limits;

/// Pause before a commit is tried again that found the quarantine full: its room is not ours to watch.
const FULL_RETRY: Duration = Duration::from_millis(20);

/// A put with what it takes.
struct Weighed {
    channels: BTreeSet<usize>,
    batch: Batch,
    /// Memory that it takes.
    bytes: u64,
}

/// What becomes of a commit if the file journal takes its part of it.
#[derive(Default)]
struct Plan {
    /// For the file journal, beside what the caller gave.
    acks: Vec<Ack>,
    positions: Vec<(Vec<u8>, Vec<u8>)>,
    puts: Vec<Put>,
    /// Some of these go to a channel that may be full.
    may_wait: bool,
    registers: BTreeMap<usize, Registers>,
    held: Vec<(usize, u64, Batch, u64)>,
    overflowed: Vec<Overflowed>,
    dropped: Vec<(usize, u64)>,
}

/// Events of a channel for one of its files.
struct Overflowed {
    channel: usize,
    store: Store,
    rows: u64,
}

/// Why there is no plan.
enum NoPlan {
    /// A channel is full; look again at this time at the latest.
    Full(CommitError, Option<Instant>),
    Wrong(CommitError),
}

/// `Journal::commit`.
pub(super) fn commit(
    shared: &Shared,
    commit: Commit,
    deadline: Option<Instant>,
) -> Result<Box<dyn Ticket>, CommitError> {
    let puts: Vec<Weighed> = commit.puts.iter().filter(|put| !put.batch.is_empty()).map(weigh).collect();
    let Commit { positions, acks, state, .. } = commit;
    let mut rest = Commit { positions, state, ..Commit::default() };
    loop {
        let order = shared.order.lock();
        let planned = {
            let holds =
                shared.file_holds(&puts.iter().flat_map(|put| put.channels.iter().copied()).collect());
            plan(&mut shared.state.lock(), shared.clock.now(), &puts, &acks, &holds)
        };
        let mut plan = match planned {
            Ok(plan) => plan,
            Err(NoPlan::Wrong(error)) => return Err(error),
            Err(NoPlan::Full(error, again)) => {
                drop(order);
                wait_for_room(shared, error, again, deadline)?;
                continue;
            }
        };
        let mut file = if plan.may_wait { rest.clone() } else { std::mem::take(&mut rest) };
        file.acks = std::mem::take(&mut plan.acks);
        file.positions.append(&mut plan.positions);
        file.puts = std::mem::take(&mut plan.puts);
        let now = shared.clock.now();
        match shared.file.commit(file, Some(now)) {
            // The quarantine: what waits for it must not hold up acknowledgements.
            Err(error @ CommitError::Full { .. }) if plan.may_wait => {
                drop(order);
                wait_for_room(shared, error, Some(now + FULL_RETRY), deadline)?;
            }
            Err(error) => return Err(error),
            Ok(ticket) => {
                let ticket: Arc<dyn Ticket> = ticket.into();
                take_over(shared, plan, &ticket);
                return Ok(Box::new(ticket));
            }
        }
    }
}

fn weigh(put: &Put) -> Weighed {
    let channels = put.channels.iter().map(|id| usize::from(id.0)).collect();
    let batch = put.batch.compact();
    let bytes = batch.memory_bytes() as u64;
    Weighed { channels, batch, bytes }
}

fn wait_for_room(
    shared: &Shared,
    full: CommitError,
    again: Option<Instant>,
    deadline: Option<Instant>,
) -> Result<(), CommitError> {
    let now = shared.clock.now();
    if deadline.is_some_and(|deadline| deadline <= now) {
        return Err(full);
    }
    let until = [again, deadline, now.checked_add(limits::MEMORY_WAIT_MAX)].into_iter().flatten().min();
    let left = until.map_or(limits::MEMORY_WAIT_MAX, |until| until.saturating_duration_since(now));
    let mut state = shared.state.lock();
    if state.is_open {
        shared.space.wait_for(&mut state, left);
    }
    state.check_open()
}

fn plan(
    state: &mut State,
    now: Instant,
    puts: &[Weighed],
    acks: &[Ack],
    holds: &BTreeMap<usize, (u64, u64)>,
) -> Result<Plan, NoPlan> {
    state.check_open().map_err(NoPlan::Wrong)?;
    let mut plan = Plan::default();
    for ack in acks {
        plan.acknowledge(state, *ack).map_err(NoPlan::Wrong)?;
    }
    let ways = ways(state, now, puts, holds)?;
    puts.iter().for_each(|put| plan.put(state, put, &ways));
    for (index, next) in &mut plan.registers {
        let Some(channel) = state.channels.get(*index) else { continue };
        let name = &channel.spec.channel.name;
        next.forget_done();
        // With events alone: on a full disk an acknowledgement passes puts that wait, and would say that they were there. A region that is
        // done with is forgotten there with the next put, or at the next opening.
        if next.head != channel.registers.head {
            plan.positions.push((channel_key(name), next.encode()));
        }
        for (reader, before) in next.readers.iter().zip(&channel.registers.readers) {
            if reader.cursor != before.cursor {
                let value = reader.cursor.to_le_bytes().to_vec();
                plan.positions.push((reader_key(name, &reader.name), value));
            }
        }
    }
    Ok(plan)
}

/// Where the events of each channel go: all events of one commit go one way.
fn ways(
    state: &mut State,
    now: Instant,
    puts: &[Weighed],
    holds: &BTreeMap<usize, (u64, u64)>,
) -> Result<BTreeMap<usize, Way>, NoPlan> {
    let mut totals: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    for put in puts {
        for channel in &put.channels {
            let total = totals.entry(*channel).or_default();
            *total = (total.0 + put.batch.rows() as u64, total.1 + put.bytes);
        }
    }
    let mut ways = BTreeMap::new();
    for (index, (rows, bytes)) in totals {
        let Some(channel) = state.channels.get_mut(index) else { continue };
        let in_files = holds.get(&index).copied().unwrap_or_default();
        let way = match channel.registers.needed() {
            // Nobody reads it, so nothing is kept.
            None => Way::Memory,
            Some(_) => channel.way(rows, bytes, in_files, now),
        };
        if let Way::Wait(again) = way {
            return Err(NoPlan::Full(channel.full(), again));
        }
        ways.insert(index, way);
    }
    Ok(ways)
}

impl Plan {
    fn next<'a>(&'a mut self, index: usize, channel: &Channel) -> &'a mut Registers {
        self.registers.entry(index).or_insert_with(|| channel.registers.clone())
    }

    fn acknowledge(&mut self, state: &State, ack: Ack) -> Result<(), CommitError> {
        let index = usize::from(ack.channel.0);
        let Some(channel) = state.channels.get(index) else {
            self.acks.push(Ack { channel: state.file_channel(ack.channel), ..ack });
            return Ok(());
        };
        let files = channel.files;
        let next = self.next(index, channel);
        let (head, regions) = (next.head, next.regions.clone());
        let reader = next.readers.get_mut(usize::from(ack.reader.0)).filter(|reader| reader.live);
        let unknown = || CommitError::Failed(format!("the plan has no such reader: {ack:?}").into());
        let reader = reader.ok_or_else(unknown)?;
        reader.cursor = reader.cursor.max(ack.cursor.min(head));
        let cursor = reader.cursor;
        let own = reader.file;
        let begun = regions.iter().filter(|region| region.first < cursor);
        self.acks.extend(begun.map(|region| {
            let (channel, reader) = (region.store.of(files), region.store.of(own));
            Ack { channel, reader, cursor: region.file_cursor(cursor) }
        }));
        if self.acks.is_empty() {
            // Says nothing, but lets the commit overtake puts on a full disk, as every acknowledgement does.
            self.acks.push(Ack { channel: files[0], reader: own[0], cursor: 0 });
        }
        Ok(())
    }

    fn put(&mut self, state: &State, put: &Weighed, ways: &BTreeMap<usize, Way>) {
        let rows = put.batch.rows() as u64;
        let mut to_file: Vec<ChannelId> = Vec::new();
        for index in &put.channels {
            let Some(channel) = state.channels.get(*index) else {
                to_file.push(state.file_channel(ChannelId(u16::try_from(*index).unwrap_or(u16::MAX))));
                self.may_wait = true;
                continue;
            };
            let is_read = channel.registers.needed().is_some();
            match ways.get(index) {
                Some(Way::Dropped) => self.dropped.push((*index, rows)),
                Some(Way::File) => {
                    let (files, head) = (channel.files, channel.file_heads[0]);
                    let store = self.next(*index, channel).append(Store::Overflow, rows, head);
                    to_file.push(store.of(files));
                    self.overflowed.push(Overflowed { channel: *index, store, rows });
                }
                _ => {
                    let next = self.next(*index, channel);
                    let first = next.head;
                    next.head += rows;
                    if is_read {
                        self.held.push((*index, first, put.batch.clone(), put.bytes));
                    }
                }
            }
        }
        if !to_file.is_empty() {
            self.puts.push(Put { channels: to_file, batch: put.batch.clone() });
        }
    }
}

fn take_over(shared: &Shared, plan: Plan, ticket: &Arc<dyn Ticket>) {
    let time_ns = shared.clock.wall_ns();
    let mut state = shared.state.lock();
    for (index, first, batch, bytes) in plan.held {
        let Some(channel) = state.channels.get_mut(index) else { continue };
        channel.held_bytes += bytes;
        channel.held.push_back(Held { first, batch, bytes, time_ns, ticket: ticket.clone() });
    }
    for (index, rows) in plan.dropped {
        let Some(channel) = state.channels.get_mut(index) else { continue };
        if channel.dropped == 0 {
            tracing::warn!(channel = %channel.spec.channel.name, "the channel is full and nothing is acknowledged: events are dropped");
        }
        channel.dropped += rows;
    }
    for Overflowed { channel, store, rows } in plan.overflowed {
        let Some(channel) = state.channels.get_mut(channel) else { continue };
        channel.overflowed += rows;
        *store.of_mut(&mut channel.file_heads) += rows;
        channel.spilling = Some(ticket.clone());
    }
    let mut has_room = false;
    for (index, next) in plan.registers {
        let Some(channel) = state.channels.get_mut(index) else { continue };
        let moves =
            next.readers.iter().zip(&channel.registers.readers).any(|(new, old)| new.cursor > old.cursor);
        channel.registers = next;
        if moves {
            channel.full_since = None;
            channel.release();
            has_room = true;
        }
    }
    drop(state);
    shared.published.notify_all();
    if has_room {
        shared.space.notify_all();
    }
}
