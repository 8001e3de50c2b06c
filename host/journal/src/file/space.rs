//! A full disk: puts wait in order, acknowledgements go on.
//!
//! Constraints: a commit without acks keeps its place behind the puts, since a source's position must
//! not pass the source's events; an overtaking commit puts to no channel, acknowledges for no reader and writes no key
//! that a waiting one does: a later acknowledgement of a reader says that all before it is done, what it put
//! elsewhere included. So what is on disk is always a history that could have been handed in.
//!
//! Acks go to what is left of the active segment, then to a small segment in the space of the `reserve`
//! file. They let segments be deleted, and that makes space for the puts.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::RESERVE_NAME;
use super::state::{Phase, Queued};
use super::writer::{Select, WriteError, Writer, Written};
use crate::api::CommitError;
use crate::limits;

/// The disk is full.
pub(super) struct Full {
    /// When the waiting commits are tried again.
    retry_at: Instant,
    pause: Duration,
}

/// Until when the committer has nothing to do, unless more is handed in than was known.
pub(super) struct Pause {
    pub left: Duration,
    known: u64,
}

/// What waiting commits write.
#[derive(Default)]
struct Waiting<'a> {
    channels: BTreeSet<u32>,
    readers: BTreeSet<(u16, u16)>,
    positions: BTreeSet<&'a [u8]>,
    state: BTreeSet<(&'a str, &'a [u8])>,
}

impl<'a> Waiting<'a> {
    fn add(&mut self, queued: &'a Queued) {
        self.channels.extend(channels(queued));
        self.readers.extend(queued.head.acks.iter().map(|ack| (ack.channel, ack.reader)));
        self.positions.extend(queued.positions.iter().map(|(key, _)| &**key));
        self.state.extend(keys(queued));
    }

    fn conflicts(&self, queued: &Queued) -> bool {
        channels(queued).any(|channel| self.channels.contains(&channel))
            || queued.head.acks.iter().any(|ack| self.readers.contains(&(ack.channel, ack.reader)))
            || queued.positions.iter().any(|(key, _)| self.positions.contains(&**key))
            || keys(queued).any(|key| self.state.contains(&key))
    }
}

/// Indexes of commits that may overtake the others.
pub(super) fn overtaking(queue: &VecDeque<Box<Queued>>) -> Vec<usize> {
    let mut waiting = Waiting::default();
    let mut free = Vec::new();
    for (index, queued) in queue.iter().enumerate() {
        if queued.may_overtake() && !waiting.conflicts(queued) {
            free.push(index);
        } else {
            waiting.add(queued);
        }
    }
    free
}

/// Channels that a commit puts to.
fn channels(queued: &Queued) -> impl Iterator<Item = u32> {
    queued.head.puts.iter().flat_map(|put| put.channels.iter().map(|part| part.channel))
}

/// Keys of plugin state that a commit writes.
fn keys(queued: &Queued) -> impl Iterator<Item = (&str, &[u8])> {
    let writes = queued.plugin_state.iter().flat_map(|writes| writes.iter());
    writes.flat_map(|writes| writes.iter().map(|op| (&**writes.plugin(), op.key)))
}

impl Writer {
    /// True unless the disk was full a moment ago.
    pub fn may_try_in_order(&self) -> bool {
        self.full.as_ref().is_none_or(|full| self.shared.clock.now() >= full.retry_at)
    }

    /// Puts could not be written for want of space.
    pub fn now_full(&mut self, error: &io::Error) -> Result<(), Arc<str>> {
        if self.full.is_none() {
            self.drop_spares();
            tracing::error!(dir = %self.shared.dir.display(), %error,
                "the disk is full: commits with events wait, acknowledgements go on");
        }
        let mut state = self.shared.state.lock();
        let is_closing = state.phase == Phase::Closing;
        if is_closing {
            // Nobody can wait for space any more; nothing of these was acknowledged to anyone.
            let reason: Arc<str> =
                format!("the disk was still full at the stop, what waited was not stored: {error}").into();
            let free: BTreeSet<usize> = overtaking(&state.queue).into_iter().collect();
            for (index, queued) in std::mem::take(&mut state.queue).into_iter().enumerate() {
                if free.contains(&index) {
                    state.queue.push_back(queued);
                } else {
                    queued.ticket.resolve(Err(CommitError::Failed(reason.clone())));
                }
            }
        }
        let dir = self.shared.dir.display();
        state.status.waiting_for = Some(format!("space on the disk of {dir}: {error}"));
        drop(state);
        if is_closing {
            self.give_up_saving();
        }
        let pause = self.full.as_ref().map(|full| full.pause * 2).unwrap_or(limits::FULL_RETRY_MIN);
        let pause = pause.min(limits::FULL_RETRY_MAX);
        self.full = Some(Full { retry_at: self.shared.clock.now() + pause, pause });
        Ok(())
    }

    /// Acks, deletion, then a pause that a new commit ends.
    pub fn work_while_full(&mut self) -> Result<Option<Pause>, Arc<str>> {
        let known = self.shared.state.lock().next_order;
        let acks = self.write_retrying(Select::Overtaking)?;
        self.bells.ring();
        let deleted = self.collect();
        if deleted > 0 {
            self.retry_now();
            return Ok(None);
        }
        self.save_state_when_full();
        let Some(retry_at) = self.full.as_ref().map(|full| full.retry_at) else { return Ok(None) };
        if matches!(acks, Ok(Written { commits: 1.., .. })) {
            return Ok(None);
        }
        let mut state = self.shared.state.lock();
        let closing = state.phase == Phase::Closing;
        if closing && acks.is_err() {
            for queued in state.queue.drain(..) {
                queued.ticket.resolve(Err(CommitError::Failed(
                    "the disk was still full at the stop, what waited was not stored".into(),
                )));
            }
            drop(state);
            self.give_up_saving();
            return Ok(None);
        }
        let left = retry_at.saturating_duration_since(self.shared.clock.now());
        Ok((!left.is_zero()).then_some(Pause { left, known }))
    }

    /// Waits as [`Writer::work`] said, unless there is something to do by now.
    pub fn wait(&self, pause: &Pause) {
        let mut state = self.shared.state.lock();
        let living = matches!(state.phase, Phase::Open | Phase::Closing);
        // Whoever brought it called before this lock was taken.
        let is_news = pause.known != state.next_order
            || !state.reader_changes.is_empty()
            || self.shared.saved.load(Ordering::Acquire);
        if living && !is_news {
            self.shared.work.wait_for(&mut state, pause.left);
        }
    }

    fn retry_now(&mut self) {
        if let Some(full) = &mut self.full {
            *full = Full { retry_at: self.shared.clock.now(), pause: limits::FULL_RETRY_MIN };
        }
    }

    /// A commit in order was written: there is space again.
    pub fn no_longer_full(&mut self) {
        if self.full.take().is_none() {
            return;
        }
        tracing::info!(dir = %self.shared.dir.display(), "there is space again");
        self.shared.state.lock().status.waiting_for = None;
        if !self.reserve && self.shared.config.reserve_bytes > 0 {
            self.make_reserve();
        }
    }

    /// Before puts get a segment on a disk that was full: space is kept aside again. What acknowledgements left of the reserve is for
    /// the snapshots that deletion needs; puts would take it, and free nothing.
    pub fn reserve_before_puts(&mut self) -> Result<(), WriteError> {
        if self.full.is_none() || self.reserve || self.shared.config.reserve_bytes == 0 {
            return Ok(());
        }
        match self.take_reserve().map_err(WriteError::from) {
            Err(WriteError::Full(error)) => Err(WriteError::Full(error)),
            // It is not space that is missing: they need not wait for it.
            _ => Ok(()),
        }
    }

    /// Keeps space aside; on a full disk there is none to keep.
    pub fn make_reserve(&mut self) {
        if let Err(error) = self.take_reserve() {
            tracing::warn!(dir = %self.shared.dir.display(), %error, "no space is reserved for acknowledgements");
        }
    }

    fn take_reserve(&mut self) -> io::Result<()> {
        let path = self.shared.dir.join(RESERVE_NAME);
        let (disk, bytes) = (&self.shared.disk, self.shared.config.reserve_bytes);
        let made = disk.create(&path).or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => disk.open(&path, true),
            _ => Err(error),
        });
        let made =
            made.and_then(|file| file.preallocate(bytes)).and_then(|()| disk.sync_dir(&self.shared.dir));
        self.reserve = made.is_ok();
        if made.is_err()
            && let Err(error) = disk.unlink(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a part of the reserve stays behind");
        }
        made
    }

    /// Gives the reserved space up; false when there is none.
    pub fn release_reserve(&mut self) -> bool {
        if !std::mem::take(&mut self.reserve) {
            return false;
        }
        let path = self.shared.dir.join(RESERVE_NAME);
        let gone = self.shared.disk.unlink(&path).and_then(|()| self.shared.disk.sync_dir(&self.shared.dir));
        tracing::warn!(dir = %self.shared.dir.display(), released = gone.is_ok(),
            "the reserved space is used for acknowledgements");
        gone.is_ok()
    }
}
