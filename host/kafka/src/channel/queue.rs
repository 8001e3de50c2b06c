//! Commits that wait for the committer, in order, and the positions and the plugins' state that they will leave.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_journal::log::CommitCell;
use flumen_journal::{Clock, Commit, CommitError, OsClock, StateWrites};
use parking_lot::{Condvar, Mutex};

use super::remembered::Remembered;
use super::share::ReaderAck;
use crate::limits;

/// Positions by key.
pub(super) type Positions = BTreeMap<Vec<u8>, Vec<u8>>;

/// A commit that was handed in.
pub(super) struct Pending {
    /// Rises by one with each commit of this session.
    pub number: u64,
    /// Puts, positions, state. Its acknowledgements are in `acks`.
    pub commit: Commit,
    /// What readers have finished with, as offsets.
    pub acks: Vec<ReaderAck>,
    /// Bytes of its puts and its state.
    pub bytes: usize,
    /// Who waits.
    pub slot: Arc<CommitCell>,
}

/// What everybody shares.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
    /// What plugins remember. Its locks come after that of `state`.
    pub remembered: Remembered,
}

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<Pending>,
    bytes: usize,
    next: u64,
    /// Positions as Kafka has them; `None` until they were read.
    positions: Option<Positions>,
    /// Positions of sources, if a file has them and Kafka was not reached yet.
    sources: Option<Positions>,
    /// Newer values that are on their way, with the number of their commit.
    overlay: BTreeMap<Vec<u8>, (u64, Vec<u8>)>,
    is_closing: bool,
    failed: Option<Arc<str>>,
}

impl QueueState {
    fn refused(&self) -> Option<CommitError> {
        match &self.failed {
            Some(reason) => Some(CommitError::Failed(reason.clone())),
            None => self.is_closing.then_some(CommitError::Closing),
        }
    }
}

impl Queue {
    /// Hands in a commit; waits while too much waits before it, if it has puts.
    pub fn push(
        &self,
        mut commit: Commit,
        acks: Vec<ReaderAck>,
        deadline: Option<Instant>,
    ) -> Result<Arc<CommitCell>, CommitError> {
        let puts = commit.puts.iter().map(|put| put.batch.bytes());
        let bytes: usize = puts.chain(commit.state.iter().map(StateWrites::bytes)).sum();
        let mut state = self.state.lock();
        loop {
            if let Some(error) = state.refused() {
                return Err(error);
            }
            if commit.puts.is_empty() || state.bytes < limits::QUEUE_BYTES {
                break;
            }
            match deadline {
                None => self.changed.wait(&mut state),
                Some(deadline) => {
                    if self.changed.wait_until(&mut state, deadline).timed_out() {
                        let events = state.waiting.iter().flat_map(|p| &p.commit.puts);
                        let events = events.map(|put| put.batch.rows() as u64).sum();
                        // No channel has this name: who can do without one does not leave it out for this.
                        let channel = "(the queue to Kafka)".into();
                        return Err(CommitError::Full { channel, events, bytes: state.bytes as u64 });
                    }
                }
            }
        }
        state.next += 1;
        let number = state.next;
        for (key, value) in &commit.positions {
            state.overlay.insert(key.clone(), (number, value.clone()));
        }
        if acks.is_empty() {
            // One with acknowledgements may be refused, and has no state.
            self.remembered.hand_in(&mut commit, OsClock.wall_ns());
        }
        state.bytes += bytes;
        let slot = Arc::new(CommitCell::default());
        state.waiting.push_back(Pending { number, commit, acks, bytes, slot: slot.clone() });
        self.changed.notify_all();
        Ok(slot)
    }

    /// Acknowledgements that count already; `number` is of the last group.
    pub fn settled(&self, acks: &[ReaderAck], number: u64) -> Result<Arc<CommitCell>, CommitError> {
        if let Some(error) = self.state.lock().refused() {
            return Err(error);
        }
        acks.iter().for_each(|ack| ack.reader.committed(ack));
        let slot = Arc::new(CommitCell::default());
        slot.answer(Ok(number));
        Ok(slot)
    }

    /// The next group: what waits, up to a bound; waits for more for a short while, because a transaction costs the
    /// same for one event as for thousands. Empty after `timeout` or when the journal closes.
    pub fn take_group(&self, timeout: Duration) -> Vec<Pending> {
        let mut state = self.state.lock();
        if state.waiting.is_empty() && !state.is_closing {
            self.changed.wait_for(&mut state, timeout);
        }
        if state.waiting.is_empty() {
            return Vec::new();
        }
        let until = Instant::now() + limits::GROUP_LINGER;
        while state.bytes < limits::GROUP_BYTES && !state.is_closing {
            if self.changed.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        let (mut group, mut bytes) = (Vec::new(), 0);
        while let Some(next) = state.waiting.front() {
            if !group.is_empty() && bytes + next.bytes > limits::GROUP_BYTES {
                break;
            }
            bytes += next.bytes;
            group.extend(state.waiting.pop_front());
        }
        group
    }

    /// The positions of these commits count now.
    pub fn committed(&self, group: &[Pending]) {
        let mut state = self.state.lock();
        for pending in group {
            state.settle(pending, true);
        }
        self.changed.notify_all();
    }

    /// They never will.
    pub fn refused(&self, pending: &Pending) {
        self.state.lock().settle(pending, false);
        self.changed.notify_all();
    }

    /// Positions as they were read, after the state; whoever waits goes on.
    pub fn set_positions(&self, positions: Positions) {
        self.state.lock().positions = Some(positions);
        self.changed.notify_all();
    }

    /// Positions of sources that a file has: sources can begin without Kafka.
    pub fn set_sources(&self, sources: Positions) {
        self.state.lock().sources = Some(sources);
        self.changed.notify_all();
    }

    /// The positions with a prefix that count now, without those on their way.
    pub fn durable(&self, prefix: &[u8]) -> Positions {
        let state = self.state.lock();
        let known = state.positions.as_ref().or(state.sources.as_ref()).into_iter().flatten();
        let own = known.filter(|(key, _)| key.starts_with(prefix));
        own.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// True when positions and state were read.
    pub fn is_open(&self) -> bool {
        self.state.lock().positions.is_some()
    }

    /// Waits until positions and state were read, or never will be.
    pub fn wait_open(&self) {
        let mut state = self.state.lock();
        while state.positions.is_none() && state.refused().is_none() {
            self.changed.wait(&mut state);
        }
    }

    /// Waits until the positions are known, then asks them. `default` if the journal closes before.
    pub fn with_positions<T: Default>(
        &self,
        is_source: bool,
        ask: impl FnOnce(&Positions, &BTreeMap<Vec<u8>, (u64, Vec<u8>)>) -> T,
    ) -> T {
        let mut state = self.state.lock();
        let knows = |state: &QueueState| state.positions.is_some() || (is_source && state.sources.is_some());
        while !knows(&state) && state.refused().is_none() {
            self.changed.wait(&mut state);
        }
        state
            .positions
            .as_ref()
            .or(state.sources.as_ref().filter(|_| is_source))
            .map_or_else(T::default, |positions| ask(positions, &state.overlay))
    }

    /// No more commits.
    pub fn close(&self) {
        self.state.lock().is_closing = true;
        self.changed.notify_all();
    }

    pub fn is_closing(&self) -> bool {
        self.state.lock().is_closing
    }

    /// Everything handed in and not committed is answered with an error.
    pub fn fail(&self, reason: Option<Arc<str>>) {
        let mut state = self.state.lock();
        if let Some(reason) = reason {
            state.failed.get_or_insert(reason);
        }
        state.is_closing = true;
        let error = state.refused().unwrap_or(CommitError::Closing);
        for pending in state.waiting.drain(..) {
            pending.slot.answer(Err(error.clone()));
        }
        self.changed.notify_all();
    }

    pub fn failed(&self) -> Option<Arc<str>> {
        self.state.lock().failed.clone()
    }

    pub fn is_empty(&self) -> bool {
        self.state.lock().waiting.is_empty()
    }
}

impl QueueState {
    fn settle(&mut self, pending: &Pending, counts: bool) {
        self.bytes = self.bytes.saturating_sub(pending.bytes);
        for (key, value) in &pending.commit.positions {
            let known = self.positions.as_mut().or(self.sources.as_mut());
            if let Some(positions) = known.filter(|_| counts) {
                if value.is_empty() {
                    positions.remove(key);
                } else {
                    positions.insert(key.clone(), value.clone());
                }
            }
            if self.overlay.get(key).is_some_and(|(number, _)| *number == pending.number) {
                self.overlay.remove(key);
            }
        }
    }
}
