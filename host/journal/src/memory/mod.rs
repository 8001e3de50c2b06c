//! The memory journal: events in memory, everything else in a file journal.
//!
//! Two of the channel kinds are this journal:
//! - `memory`: a bounded queue. A full one makes puts wait, or drops them after a while ([`WhenFull`]), counted.
//! - `spillable`: when the memory is full, events go to the file, and so do all behind them until the file is drained. So
//!   order is kept across the border: what is in memory is always older than what is in the file, or there is nothing in the file.
//!
//! Flume's transactions: the put list is the [`Commit`], all of it or nothing; the take list is what a reader was handed and
//! did not acknowledge, which stays where it is, so that a rollback ([`crate::Reader::seek`]) finds it at the head, in order.
//!
//! **Bounds.** `capacity` counts the memory that batches really take ([`flumen_event::Batch::memory_bytes`]): a batch that
//! shares a larger buffer is copied out of it first. A put waits if it does not fit; only into an empty channel goes one that is
//! larger than the capacity. What was accepted stays when the capacity becomes less ([`Journal::set_capacity`]); of a channel that overflows
//! that is what its file holds.
//!
//! **What is in the file journal** (`DIR`, see [`crate::file`]): positions, plugin state, the quarantine, and of each channel
//! its numbers (with events alone) and the cursors of its readers (`registers`), in the same commits, in the same order. Behind a channel are two
//! file channels: `NAME` takes what overflows, `NAME/saved` what a clean close finds in memory. A ticket is that of the file
//! journal, and readers see an event when its commit is there: a destination never knows a cursor that the journal forgets.
//!
//! **What a crash costs.** The process dies (`kill -9`, power): the events that were in memory, and nothing else. They are not
//! read again, because the position of their source is in the file journal. How many they are now is
//! [`crate::MemoryFigures::events_at_risk`]; how many they were is known at the next opening, because the numbers say what was
//! put and what was acknowledged ([`crate::MemoryFigures::lost`]). Everything else is consistent: the registers are those of one
//! moment. A clean close loses nothing, in either kind, unless the disk has no room for what is in memory.
//!
//! **What a failed disk costs.** Nothing while the process lives and opens the journal again: what is in memory stays there
//! ([`Journal::unsaved`]), and the opening that succeeds goes on with it ([`MemoryJournal::reopen`]).
//!
//! A full disk holds puts here as well, because their numbers have to be on it; acknowledgements go on, as in the file journal.
//!
//! A channel that was of kind `file` in the same directory goes on: its events are the beginning. The other way round it has to
//! be drained first.

mod channel;
mod commit;
mod open;
mod reader;
mod registers;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

pub use channel::{MemorySpec, WhenFull};
pub(crate) use open::new_id;

use crate::api::{
    AddReaderError, ChannelId, ChannelSpec, ChannelStatus, Commit, CommitError, Journal, JournalStatus,
    MemoryFigures, Put, Reader, ReaderId, Ticket, Unsaved, UnsavedPut,
};
use crate::clock::Clock;
use crate::file::FileJournal;
use crate::limits;
use crate::state::StateStore;
use channel::{Channel, Held};
use reader::MemoryReader;
use registers::{OWN, ReaderRegister, Region, Registers, Store, channel_key, number, reader_key};

/// See the module.
pub struct MemoryJournal {
    shared: Arc<Shared>,
}

struct Shared {
    file: Arc<FileJournal>,
    clock: Arc<dyn Clock>,
    id: [u8; 16],
    /// Held by who takes numbers, until the file journal has them. Comes before `state`.
    order: Mutex<()>,
    state: Mutex<State>,
    /// Puts wait here for acknowledgements.
    space: Condvar,
    /// Readers wait here for events.
    published: Condvar,
}

struct State {
    channels: Vec<Channel>,
    is_open: bool,
}

impl State {
    fn check_open(&self) -> Result<(), CommitError> {
        if self.is_open { Ok(()) } else { Err(CommitError::Closing) }
    }

    /// The file journal's channel for one that is not in memory: it has two for each of ours first.
    fn file_channel(&self, id: ChannelId) -> ChannelId {
        let ours = u16::try_from(self.channels.len()).unwrap_or(u16::MAX);
        ChannelId(id.0.saturating_add(ours))
    }
}

impl Shared {
    fn acknowledged(&self, channel: usize, reader: usize) -> u64 {
        let state = self.state.lock();
        let registers = state.channels.get(channel).map(|channel| &channel.registers);
        registers.and_then(|it| it.readers.get(reader)).map_or(0, |reader| reader.cursor)
    }

    fn file_reader(&self, channel: usize, reader: usize, store: Store) -> Option<Box<dyn Reader>> {
        let (id, reader) = {
            let state = self.state.lock();
            let channel = state.channels.get(channel)?;
            let reader = channel.registers.readers.get(reader)?;
            (store.of(channel.files), store.of(reader.file))
        };
        Some(self.file.open_reader(id, reader))
    }

    /// Events and bytes in the files of these channels, as far as something is in them.
    fn file_holds(&self, channels: &BTreeSet<usize>) -> BTreeMap<usize, (u64, u64)> {
        let files: Vec<(usize, [ChannelId; 2])> = {
            let state = self.state.lock();
            let overflows = channels.iter().filter_map(|index| {
                let channel = state.channels.get(*index)?;
                (!channel.registers.regions.is_empty()).then_some((*index, channel.files))
            });
            overflows.collect()
        };
        if files.is_empty() {
            return BTreeMap::new();
        }
        let status = self.file.status();
        let holds = |id: ChannelId| {
            let channel = status.channels.get(usize::from(id.0));
            channel.map_or((0, 0), |channel| (channel.events, channel.bytes))
        };
        let both = |[one, two]: [ChannelId; 2]| (holds(one).0 + holds(two).0, holds(one).1 + holds(two).1);
        files.into_iter().map(|(index, files)| (index, both(files))).collect()
    }

    fn wait(ticket: &dyn Ticket, limit: Option<Duration>) -> Result<(), CommitError> {
        let late = || CommitError::Failed("the disk did not take what was in memory in time".into());
        ticket.wait(limit).unwrap_or_else(|| Err(late())).map(|_| ())
    }
}

impl Journal for MemoryJournal {
    fn channel(&self, name: &str) -> Option<ChannelId> {
        let state = self.shared.state.lock();
        let own = state.channels.iter().position(|channel| channel.spec.channel.name == name);
        match own {
            Some(index) => u16::try_from(index).ok().map(ChannelId),
            None => {
                let id = self.shared.file.channel(name)?.0;
                let ours = u16::try_from(state.channels.len()).ok()?;
                Some(ChannelId(id.checked_sub(ours).filter(|id| *id >= ours)?))
            }
        }
    }

    fn reader_id(&self, channel: ChannelId, reader: &str) -> Option<ReaderId> {
        let state = self.shared.state.lock();
        let Some(own) = state.channels.get(usize::from(channel.0)) else {
            return self.shared.file.reader_id(state.file_channel(channel), reader);
        };
        let is_it = |known: &ReaderRegister| known.live && known.name == reader;
        u16::try_from(own.registers.readers.iter().position(is_it)?).ok().map(ReaderId)
    }

    fn add_reader(&self, channel: ChannelId, reader: &str) -> Result<ReaderId, AddReaderError> {
        let refused = |reason: String| AddReaderError(reason.into());
        let shared = &self.shared;
        let _order = shared.order.lock();
        let (index, files, name) = {
            let state = shared.state.lock();
            let index = usize::from(channel.0);
            let Some(channel) = state.channels.get(index) else {
                return shared.file.add_reader(state.file_channel(channel), reader);
            };
            (index, channel.files, channel.spec.channel.name.clone())
        };
        let file = [shared.file.add_reader(files[0], reader)?, shared.file.add_reader(files[1], reader)?];
        let key = reader_key(&name, reader);
        let before = number(shared.file.position(&key)).map(u64::from_le_bytes);
        let (cursor, register) = {
            let state = shared.state.lock();
            let channel =
                state.channels.get(index).ok_or_else(|| refused("there is no such channel".into()))?;
            let mut cursor = before.unwrap_or(channel.registers.head);
            if let channel::Place::Gone(until) = channel.place(cursor) {
                // What passed while it was away.
                cursor = until;
            }
            (cursor, ReaderRegister { name: reader.to_owned(), cursor, live: true, file })
        };
        let commit = Commit { positions: vec![(key, cursor.to_le_bytes().to_vec())], ..Commit::default() };
        let ticket = shared.file.commit(commit, None).map_err(|error| refused(error.to_string()))?;
        Shared::wait(ticket.as_ref(), Some(limits::MEMORY_CLOSE_WAIT))
            .map_err(|error| refused(error.to_string()))?;
        let mut state = shared.state.lock();
        let channel =
            state.channels.get_mut(index).ok_or_else(|| refused("there is no such channel".into()))?;
        let readers = &mut channel.registers.readers;
        let at = readers.iter().position(|known| known.name == reader).unwrap_or(readers.len());
        match readers.get_mut(at) {
            Some(known) => *known = register,
            None => readers.push(register),
        }
        u16::try_from(at).map(ReaderId).map_err(|_| refused("it has no place".into()))
    }

    fn retire_reader(&self, channel: ChannelId, reader: ReaderId) {
        let _order = self.shared.order.lock();
        let file = {
            let mut state = self.shared.state.lock();
            let other = state.file_channel(channel);
            match state.channels.get_mut(usize::from(channel.0)) {
                None => vec![(other, reader)],
                Some(own) => {
                    let files = own.files;
                    let Some(register) = own.registers.readers.get_mut(usize::from(reader.0)) else { return };
                    register.live = false;
                    let readers = register.file;
                    // Where it was stays known: the next commit writes what is left of the regions.
                    own.registers.forget_done();
                    own.release();
                    files.into_iter().zip(readers).collect()
                }
            }
        };
        file.into_iter().for_each(|(channel, reader)| self.shared.file.retire_reader(channel, reader));
        self.shared.space.notify_all();
    }

    fn set_capacity(&self, channel: ChannelId, events: u64, bytes: u64) {
        let shared = &self.shared;
        {
            let mut state = shared.state.lock();
            let other = state.file_channel(channel);
            match state.channels.get_mut(usize::from(channel.0)) {
                Some(own) => own.set_capacity(events, bytes),
                None => shared.file.set_capacity(other, events, bytes),
            }
        }
        shared.space.notify_all();
    }

    fn commit(&self, commit: Commit, deadline: Option<Instant>) -> Result<Box<dyn Ticket>, CommitError> {
        commit::commit(&self.shared, commit, deadline)
    }

    fn failure(&self) -> Option<Arc<str>> {
        self.shared.file.failure()
    }

    fn position(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.shared.file.position(key).filter(|_| !key.starts_with(OWN))
    }

    fn positions(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let all = self.shared.file.positions(prefix).into_iter();
        all.filter(|(key, _)| !key.starts_with(OWN)).collect()
    }

    fn state(&self) -> Option<Arc<dyn StateStore>> {
        self.shared.file.state()
    }

    fn open_reader(&self, channel: ChannelId, reader: ReaderId) -> Box<dyn Reader> {
        let (index, file) = {
            let state = self.shared.state.lock();
            (usize::from(channel.0), (state.channels.len(), state.file_channel(channel)))
        };
        if index >= file.0 {
            return self.shared.file.open_reader(file.1, reader);
        }
        Box::new(MemoryReader::new(self.shared.clone(), index, usize::from(reader.0)))
    }

    fn status(&self) -> JournalStatus {
        let mut status = self.shared.file.status();
        let now_ns = self.shared.clock.wall_ns();
        let state = self.shared.state.lock();
        let files = std::mem::take(&mut status.channels);
        let ours = state.channels.len();
        for channel in &state.channels {
            let file = |store: Store| files.get(usize::from(store.of(channel.files).0));
            status.channels.push(channel_status(
                channel,
                [file(Store::Overflow), file(Store::Saved)],
                now_ns,
            ));
            status.memory.push(figures(channel));
        }
        status.channels.extend(files.into_iter().skip(2 * ours));
        status
    }

    fn unsaved(&self) -> Option<Unsaved> {
        let state = self.shared.state.lock();
        let mut puts = Vec::new();
        for channel in &state.channels {
            puts.extend(channel.held.iter().map(|held| UnsavedPut {
                channel: channel.spec.channel.name.clone(),
                first: held.first,
                batch: held.batch.clone(),
                time_ns: held.time_ns,
            }));
        }
        Some(Unsaved { journal: self.shared.id, puts })
    }

    fn close(&self) -> Result<(), CommitError> {
        let saved = self.save();
        let closed = self.shared.file.close();
        saved.and(closed)
    }
}

impl MemoryJournal {
    /// Takes no more commits, and brings what is in memory to the files. What they do not take stays ([`Journal::unsaved`]).
    fn save(&self) -> Result<(), CommitError> {
        let shared = &self.shared;
        let order = shared.order.lock();
        let mut commits = Vec::new();
        let is_owed = {
            let mut state = shared.state.lock();
            if !std::mem::replace(&mut state.is_open, false) {
                return Ok(());
            }
            // Of what still waits for the disk itself nobody was told that it is here: the file journal does with it what it can.
            let is_durable = |held: &Held| matches!(held.ticket.wait(Some(Duration::ZERO)), Some(Ok(_)));
            let is_owed = state.channels.iter().any(|channel| channel.held.iter().any(is_durable));
            state.channels.iter().for_each(|channel| save_channel(channel, &mut commits));
            is_owed
        };
        shared.published.notify_all();
        shared.space.notify_all();
        let mut last = None;
        for commit in commits {
            last = Some(shared.file.commit(commit, None)?);
        }
        drop(order);
        let Some(ticket) = last.filter(|_| is_owed) else { return Ok(()) };
        Shared::wait(ticket.as_ref(), Some(limits::MEMORY_CLOSE_WAIT))?;
        shared.state.lock().channels.iter_mut().for_each(Channel::forget_held);
        Ok(())
    }
}

/// One commit for each put that somebody still needs, with the numbers that say where it is.
fn save_channel(channel: &Channel, commits: &mut Vec<Commit>) {
    let (mut registers, mut heads) = (channel.registers.clone(), channel.file_heads);
    let Some(needed) = registers.needed() else { return };
    let name = &channel.spec.channel.name;
    for held in &channel.held {
        let skip = needed.saturating_sub(held.first);
        let (first, batch) = (held.first + skip, held.batch.slice(skip as usize, held.batch.rows()));
        let rows = batch.rows() as u64;
        let regions = &mut registers.regions;
        // Behind the last region that is before it, if that ends here.
        let at = regions.partition_point(|region| region.first < first);
        let follows = at.checked_sub(1).and_then(|at| regions.get_mut(at)).filter(|it| it.end() == first);
        let store = match follows {
            Some(region) => {
                region.rows += rows;
                region.store
            }
            None => {
                let file_first = Store::Saved.of(heads);
                regions.insert(at, Region { store: Store::Saved, first, rows, file_first });
                Store::Saved
            }
        };
        *store.of_mut(&mut heads) += rows;
        commits.push(Commit {
            puts: vec![Put { channels: vec![store.of(channel.files)], batch }],
            positions: vec![(channel_key(name), registers.encode())],
            ..Commit::default()
        });
    }
}

fn channel_status(channel: &Channel, files: [Option<&ChannelStatus>; 2], now_ns: i64) -> ChannelStatus {
    let (spec, registers) = (&channel.spec.channel, &channel.registers);
    let in_files = !registers.regions.is_empty();
    let files = || files.iter().flatten().filter(|_| in_files);
    let oldest = channel.held.front().map(|held| now_ns.saturating_sub(held.time_ns).max(0) as f64 / 1e9);
    let oldest = oldest.into_iter().chain(files().filter_map(|file| file.oldest_unacknowledged_s));
    let (more_events, more_bytes) = match channel.spec.full {
        WhenFull::Overflow { events, bytes } => (events, bytes),
        WhenFull::Wait | WhenFull::Drop(_) => (0, 0),
    };
    let readers = registers.readers.iter().filter(|reader| reader.live);
    ChannelStatus {
        name: spec.name.clone(),
        head: registers.head,
        events: registers.needed().map_or(0, |needed| registers.head - needed),
        bytes: channel.held_bytes + files().map(|file| file.bytes).sum::<u64>(),
        capacity_events: spec.capacity_events.saturating_add(more_events),
        capacity_bytes: spec.capacity_bytes.saturating_add(more_bytes),
        oldest_unacknowledged_s: oldest.reduce(f64::max),
        readers: readers.map(|reader| (reader.name.clone(), reader.cursor)).collect(),
    }
}

fn figures(channel: &Channel) -> MemoryFigures {
    MemoryFigures {
        channel: channel.spec.channel.name.clone(),
        events_at_risk: channel.at_risk(),
        bytes: channel.held_bytes,
        lost: channel.lost,
        dropped: channel.dropped,
        overflowed: channel.overflowed,
        overflows: channel.overflows(),
    }
}

/// Events of a channel that was in memory, and that a clean close saved for its readers.
pub(crate) fn events_in_files(file: &FileJournal, channel: &ChannelSpec) -> u64 {
    let record = file.position(&channel_key(&channel.name));
    let Some((_, regions)) = record.and_then(|record| Registers::decode(&record)) else { return 0 };
    let cursor =
        |reader: &String| number(file.position(&reader_key(&channel.name, reader))).map(u64::from_le_bytes);
    let needed = channel.readers.iter().filter_map(cursor).min().unwrap_or(0);
    let saved = regions.iter().filter(|region| region.store == Store::Saved);
    saved.map(|region| region.end().saturating_sub(region.first.max(needed))).sum()
}

#[cfg(test)]
fn regions(journal: &MemoryJournal) -> Vec<Region> {
    journal.shared.state.lock().channels[0].registers.regions.clone()
}
