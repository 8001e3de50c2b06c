//! The source-backed journal: for sources that can be read again. Bodies are in memory only, and are never written twice.
//!
//! **The rule.** A commit of a source (or of a plugin's tick, or of a replay) is *withheld*: its events go to memory, and its
//! positions, plugin state and quarantined events wait beside them. What every reader has acknowledged becomes a commit of the file
//! journal: in it are, in their order and in one step, all withheld parts up to that place, and what the sinks commit
//! themselves (their positions). So the file journal always says exactly what it would say if the commits that
//! are not delivered had never been made. It is the file journal with empty channels, and whatever holds for that over
//! crashes holds here: after one, sources read again from their positions, plugins remember what they remembered then,
//! each sink's destination is cut back to its position, and nothing has to be the same as before the crash: not the cuts of
//! the batches, not the order of the sources, not what a plugin makes of an event.
//!
//! **Several readers** ([`seats`]). One that has more than another after a crash would need the same events again in the same
//! batches, for the other alone: a plugin that looks at the clock, that was exchanged, or ran out of time once could not make them. So
//! none ever has more, as the file says: positions of all sinks are of one place. They get there by *meetings*: when a sink
//! would flush, all flush where the foremost is ([`crate::Reader::flushes_at`]), and what they acknowledge there is one commit. Between
//! two meetings each goes at its own pace; acknowledgements wait for the slowest, up to
//! what a sink has under way or the channel holds, and then it holds the others and the source. The slowest waits for nobody.
//!
//! **What follows.**
//! - A cursor counts commits, not events, and a delivery is all events of one commit: what is acknowledged is whole. Cursors begin
//!   at 0 with each opening, because nothing that is in the channel outlives the process.
//! - A destination that stores a cursor is ahead of the positions after a crash between its step and our commit. So what the commit
//!   will be is on record before that step, and what the destination stores decides about it ([`promise`]). One of them can decide: the
//!   others have to be cut back to their position (files), or be at-least-once. `flumen check` refuses the rest.
//! - Tickets come late: when the readers have acknowledged ([`Journal::acknowledges_late`]). A source that gives something up (a
//!   partition) waits for them, as ever.
//! - Positions and state that a caller sees include what is withheld of sources.
//!
//! **Bounds.** Memory is counted as in [`crate::memory`]; a full channel makes puts wait. What is withheld without events goes with the last
//! commit that has some, or at once if there is none. What plugins remember is in memory twice.
//!
//! **When it is safe**: as long as what a source has read and the sinks have not yet delivered can be read again after a crash.
//! Rotation by rename is safe where the rotated file is still matched or still there; `copytruncate`, and a file that is
//! deleted before it was delivered, are not: with the process goes the only copy. A topic of Kafka is safe within its retention.

mod commit;
mod promise;
mod reader;
mod remembered;
mod seats;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::api::{
    Ack, ChannelId, ChannelSpec, ChannelStatus, Commit, CommitError, Journal, JournalStatus, Reader,
    ReaderId, Ticket,
};
use crate::clock::Clock;
use crate::disk::Disk;
use crate::file::{FileConfig, FileJournal, OpenError};
use crate::limits;
use crate::memory::events_in_files;
use crate::state::StateStore;
use crate::view::{MemoryState, Walk};
use reader::LateReader;
use remembered::Remembered;
use seats::State;

/// See the module.
pub struct SourceBackedJournal {
    shared: Arc<Shared>,
}

struct Shared {
    file: Arc<FileJournal>,
    clock: Arc<dyn Clock>,
    /// Names this journal in marks.
    id: [u8; 16],
    /// Our channels: the first ones, as in the file journal behind.
    own: u16,
    /// Says nothing, but lets a commit overtake puts on a full disk, as every acknowledgement does.
    stand_in: Option<Ack>,
    /// With everything handed in.
    view: Arc<MemoryState>,
    /// Held while a commit is handed to the file journal. Comes before `state`.
    order: Mutex<()>,
    state: Mutex<State>,
    space: Condvar,
    published: Condvar,
}

impl Shared {
    fn is_own(&self, channel: ChannelId) -> bool {
        channel.0 < self.own
    }

    /// The state, once it is known what a destination made of an earlier promise, if that `concerns` the caller; or the journal closes.
    fn decided(&self, concerns: impl Fn(&promise::Undecided) -> bool) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        while state.is_open && state.undecided.as_ref().is_some_and(&concerns) {
            self.published.wait_for(&mut state, limits::MEMORY_WAIT_MAX);
        }
        state
    }

    /// Looks whether the file takes no more, for good. Then whoever waits for an acknowledgement hears so, because none comes to count
    /// any more. What is withheld stays known and what is undecided stays so, until the journal closes.
    fn look(&self) {
        let Some(reason) = self.file.failure() else { return };
        let tickets = self.state.lock().fail(&reason);
        tickets.into_iter().for_each(|ticket| ticket.resolve(Err(CommitError::Failed(reason.clone()))));
        self.space.notify_all();
        self.published.notify_all();
    }
}

/// Whoever acknowledged has begun again, or is gone.
fn refused() -> CommitError {
    CommitError::Refused("its reader began again, or is not there any more".into())
}

/// The ticket of a commit that is withheld.
#[derive(Default)]
struct LateTicket {
    /// Of the commit that it became a part of.
    real: Mutex<Option<Result<Arc<dyn Ticket>, CommitError>>>,
    arrived: Condvar,
}

impl LateTicket {
    fn resolve(&self, real: Result<Arc<dyn Ticket>, CommitError>) {
        *self.real.lock() = Some(real);
        self.arrived.notify_all();
    }
}

impl Ticket for LateTicket {
    fn wait(&self, timeout: Option<Duration>) -> Option<Result<u64, CommitError>> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let real = {
            let mut real = self.real.lock();
            match deadline {
                None => self.arrived.wait_while(&mut real, |real| real.is_none()),
                Some(deadline) => {
                    self.arrived.wait_while_until(&mut real, |real| real.is_none(), deadline);
                }
            }
            real.clone()?
        };
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match real {
            Ok(ticket) => ticket.wait(left),
            Err(error) => Some(Err(error)),
        }
    }
}

impl SourceBackedJournal {
    /// Opens a journal, or makes one in an empty or absent directory. `channels` are ours; `others` are in the file.
    pub fn open(
        config: FileConfig,
        channels: Vec<ChannelSpec>,
        others: Vec<ChannelSpec>,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<SourceBackedJournal>, OpenError> {
        let dir = config.dir.clone();
        let specs = channels.iter().cloned().chain(others).collect();
        let file = FileJournal::open(config, specs, disk, clock.clone())?;
        let status = file.status().channels;
        for (channel, status) in channels.iter().zip(&status) {
            let left = status.events + events_in_files(file.as_ref(), channel);
            if left > 0 {
                let reason = format!(
                    "channel {} holds {left} events of the kind that it was before; start it once more with that kind, until they are delivered",
                    channel.name
                );
                return Err(OpenError::NotAJournal { dir, reason });
            }
        }
        let readers: Vec<String> = channels.iter().flat_map(|channel| channel.readers.clone()).collect();
        let found = promise::find(file.as_ref(), &readers, clock.as_ref());
        let found = found.map_err(|reason| OpenError::NotAJournal { dir, reason })?;
        promise::keep_id(file.as_ref(), found.id)?;
        let view = MemoryState::default();
        let (mut walk, now_ns) = (Walk::default(), clock.wall_ns());
        let from = file.remembered().clone();
        while from.view().lock().walk(&mut walk, now_ns, &mut |plugin, op| view.load(plugin, op)) {}
        let own = u16::try_from(channels.len()).unwrap_or(u16::MAX);
        let mut state = State::new(channels);
        (state.next_promise, state.undecided) = (found.next, found.undecided);
        let channel = |seat: &seats::Seat| ChannelId(u16::try_from(seat.channel).unwrap_or(u16::MAX));
        let stand_in = state.seats.first();
        let stand_in = stand_in.map(|seat| Ack { channel: channel(seat), reader: seat.reader, cursor: 0 });
        let shared = Shared {
            file,
            clock,
            id: found.id,
            own,
            stand_in,
            view: Arc::new(view),
            order: Mutex::default(),
            state: Mutex::new(state),
            space: Condvar::new(),
            published: Condvar::new(),
        };
        Ok(Arc::new(SourceBackedJournal { shared: Arc::new(shared) }))
    }
}

impl Journal for SourceBackedJournal {
    fn channel(&self, name: &str) -> Option<ChannelId> {
        self.shared.file.channel(name)
    }

    fn reader_id(&self, channel: ChannelId, reader: &str) -> Option<ReaderId> {
        if !self.shared.is_own(channel) {
            return self.shared.file.reader_id(channel, reader);
        }
        let state = self.shared.state.lock();
        let of_channel = |seat: &&seats::Seat| seat.channel == usize::from(channel.0) && seat.is_live;
        state.seats.iter().filter(of_channel).find(|seat| seat.name == reader).map(|seat| seat.reader)
    }

    fn acknowledges_late(&self) -> bool {
        true
    }

    /// False until a destination has said what became of an earlier promise.
    fn is_read(&self) -> bool {
        self.shared.state.lock().undecided.is_none()
    }

    /// Whoever waited for a destination's answer did not get it: what it is told then may be from before the promise.
    fn is_over(&self) -> bool {
        !self.shared.state.lock().is_open
    }

    fn failure(&self) -> Option<Arc<str>> {
        self.shared.file.failure()
    }

    fn takes_acknowledgements(&self) -> bool {
        self.shared.look();
        self.shared.state.lock().check_open().is_ok()
    }

    fn commit(&self, commit: Commit, deadline: Option<Instant>) -> Result<Box<dyn Ticket>, CommitError> {
        commit::commit(&self.shared, commit, deadline)
    }

    fn position(&self, key: &[u8]) -> Option<Vec<u8>> {
        let state =
            self.shared.decided(|promise| promise.commit.positions.iter().any(|(known, _)| known == key));
        match state.positions.get(key) {
            Some((_, value)) => Some(value.clone()).filter(|value| !value.is_empty()),
            None => self.shared.file.position(key),
        }
    }

    fn positions(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let state = self.shared.decided(|promise| promise.changes(prefix));
        let mut all: BTreeMap<Vec<u8>, Vec<u8>> = self.shared.file.positions(prefix).into_iter().collect();
        let newer = state.positions.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded));
        for (key, (_, value)) in newer.take_while(|(key, _)| key.starts_with(prefix)) {
            all.insert(key.clone(), value.clone());
        }
        all.into_iter().filter(|(key, value)| !value.is_empty() && !key.starts_with(promise::OWN)).collect()
    }

    fn state(&self) -> Option<Arc<dyn StateStore>> {
        Some(Arc::new(Remembered(self.shared.clone())))
    }

    fn retire_reader(&self, channel: ChannelId, reader: ReaderId) {
        let shared = &self.shared;
        let _order = shared.order.lock();
        let dropped = {
            let mut state = shared.state.lock();
            let Some(at) = state.seat_of(channel, reader) else {
                drop(state);
                return shared.file.retire_reader(channel, reader);
            };
            let dropped = state.go_back(at, 0);
            if let Some(seat) = state.seats.get_mut(at) {
                seat.is_live = false;
            }
            dropped
        };
        dropped.into_iter().for_each(|ticket| ticket.resolve(Err(refused())));
        // What waited for it alone. If the quarantine is full now, the next acknowledgement does it.
        if let Err(error) = commit::release(shared) {
            tracing::debug!(%error, "a reader is gone, and what waited for it waits on");
        }
    }

    fn set_capacity(&self, channel: ChannelId, events: u64, bytes: u64) {
        let shared = &self.shared;
        if !shared.is_own(channel) {
            return shared.file.set_capacity(channel, events, bytes);
        }
        if let Some(channel) = shared.state.lock().channels.get_mut(usize::from(channel.0)) {
            (channel.spec.capacity_events, channel.spec.capacity_bytes) = (events, bytes);
        }
        shared.space.notify_all();
    }

    fn open_reader(&self, channel: ChannelId, reader: ReaderId) -> Box<dyn Reader> {
        let seat = self.shared.state.lock().seat_of(channel, reader);
        match seat {
            Some(seat) => Box::new(LateReader::new(self.shared.clone(), seat)),
            None => self.shared.file.open_reader(channel, reader),
        }
    }

    fn status(&self) -> JournalStatus {
        let remembered = self.shared.view.sizes();
        let mut status = self.shared.file.status();
        status.state = remembered;
        let now_ns = self.shared.clock.wall_ns();
        let mut state = self.shared.state.lock();
        state.settle();
        for (index, own) in status.channels.iter_mut().enumerate().take(state.channels.len()) {
            *own = channel_status(&state, index, now_ns);
        }
        status
    }

    /// What is not delivered is forgotten: it will be read again.
    fn close(&self) -> Result<(), CommitError> {
        let _order = self.shared.order.lock();
        let (queue, entries) = {
            let mut state = self.shared.state.lock();
            state.is_open = false;
            let entries: Vec<_> = state.seats.iter_mut().flat_map(|seat| seat.entries.drain(..)).collect();
            (std::mem::take(&mut state.queue), entries)
        };
        let withheld = queue.into_iter().flat_map(|held| held.withheld.tickets);
        for ticket in withheld.chain(entries.into_iter().map(|entry| entry.ticket)) {
            ticket.resolve(Err(CommitError::Closing));
        }
        self.shared.space.notify_all();
        self.shared.published.notify_all();
        self.shared.file.close()
    }
}

fn channel_status(state: &State, index: usize, now_ns: i64) -> ChannelStatus {
    let Some(channel) = state.channels.get(index) else { return ChannelStatus::default() };
    let holds = |held: &&seats::Held| held.parts.iter().any(|part| part.channel == index);
    let oldest = state.queue.iter().find(holds);
    let readers = state.seats.iter().filter(|seat| seat.channel == index && seat.is_live);
    let (settling, settling_bytes) = state.settling(index);
    ChannelStatus {
        name: channel.spec.name.clone(),
        head: state.head,
        events: channel.events + settling,
        bytes: channel.bytes + settling_bytes,
        capacity_events: channel.spec.capacity_events,
        capacity_bytes: channel.spec.capacity_bytes,
        oldest_unacknowledged_s: oldest.map(|held| now_ns.saturating_sub(held.time_ns).max(0) as f64 / 1e9),
        readers: readers.map(|seat| (seat.name.clone(), state.reach(index, seat.acked))).collect(),
    }
}
