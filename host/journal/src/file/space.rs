//! A full disk: puts wait in order, acknowledgements go on.
//!
//! Constraints: a commit without acks keeps its place behind the puts, since a source's position must
//! not pass the source's events; one with puts never overtakes; an overtaking commit writes no key
//! that a waiting one writes. So what is on disk is always a history that could have been handed in.
//!
//! Acks go to what is left of the active segment, then to a small segment in the space of the `reserve`
//! file. They let segments be deleted, and that makes space for the puts.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::RESERVE_NAME;
use super::state::{Phase, Queued};
use super::writer::{Select, Writer, Written};
use crate::api::CommitError;
use crate::limits;

/// The disk is full.
pub(super) struct Full {
    /// When the waiting commits are tried again.
    retry_at: Instant,
    pause: Duration,
}

/// Indexes of commits that may overtake the others.
pub(super) fn overtaking(queue: &VecDeque<Queued>) -> Vec<usize> {
    let mut positions: BTreeSet<&[u8]> = BTreeSet::new();
    let mut state: BTreeSet<(&str, &[u8])> = BTreeSet::new();
    let mut free = Vec::new();
    for (index, queued) in queue.iter().enumerate() {
        let conflict = queued.positions.iter().any(|(key, _)| positions.contains(&**key))
            || keys(queued).any(|key| state.contains(&key));
        if queued.may_overtake() && !conflict {
            free.push(index);
        } else {
            positions.extend(queued.positions.iter().map(|(key, _)| &**key));
            state.extend(keys(queued));
        }
    }
    free
}

/// Keys of plugin state that a commit writes.
fn keys(queued: &Queued) -> impl Iterator<Item = (&str, &[u8])> {
    queued.plugin_state.iter().flat_map(|writes| writes.iter().map(|op| (&**writes.plugin(), op.key)))
}

impl Writer {
    /// True unless the disk was full a moment ago.
    pub fn may_try_in_order(&self) -> bool {
        self.full.as_ref().is_none_or(|full| self.shared.clock.now() >= full.retry_at)
    }

    /// Puts could not be written for want of space.
    pub fn now_full(&mut self, error: &io::Error) -> Result<(), Arc<str>> {
        if self.full.is_none() {
            tracing::error!(dir = %self.shared.dir.display(), %error,
                "the disk is full: commits with events wait, acknowledgements go on");
        }
        let mut state = self.shared.state.lock();
        if state.phase == Phase::Closing {
            // Nobody can wait for space any more; nothing of these was acknowledged to anyone.
            let reason: Arc<str> =
                format!("the disk was still full at the stop, what waited was not stored: {error}").into();
            let mut left = VecDeque::new();
            for queued in std::mem::take(&mut state.queue) {
                if queued.may_overtake() {
                    left.push_back(queued);
                } else {
                    queued.ticket.resolve(Err(CommitError::Failed(reason.clone())));
                }
            }
            state.queue = left;
        }
        let dir = self.shared.dir.display();
        state.status.waiting_for = Some(format!("space on the disk of {dir}: {error}"));
        drop(state);
        let pause = self.full.as_ref().map(|full| full.pause * 2).unwrap_or(limits::FULL_RETRY_MIN);
        let pause = pause.min(limits::FULL_RETRY_MAX);
        self.full = Some(Full { retry_at: self.shared.clock.now() + pause, pause });
        Ok(())
    }

    /// Acks, deletion, then a pause that a new commit ends.
    pub fn work_while_full(&mut self) -> Result<(), Arc<str>> {
        let known = self.shared.state.lock().next_order;
        let acks = self.write_retrying(Select::Overtaking)?;
        let deleted = self.collect();
        if deleted > 0 {
            self.retry_now();
            return Ok(());
        }
        self.save_state_when_full();
        let Some(full) = &self.full else { return Ok(()) };
        if matches!(acks, Ok(Written { commits: 1.., .. })) {
            return Ok(());
        }
        let mut state = self.shared.state.lock();
        let closing = state.phase == Phase::Closing;
        if closing && acks.is_err() {
            for queued in state.queue.drain(..) {
                queued.ticket.resolve(Err(CommitError::Failed(
                    "the disk was still full at the stop, what waited was not stored".into(),
                )));
            }
            return Ok(());
        }
        let left = full.retry_at.saturating_duration_since(self.shared.clock.now());
        let living = matches!(state.phase, Phase::Open | Phase::Closing);
        if !left.is_zero() && living && known == state.next_order {
            self.shared.work.wait_for(&mut state, left);
        }
        Ok(())
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

    /// Keeps space aside; on a full disk there is none to keep.
    pub fn make_reserve(&mut self) {
        let path = self.shared.dir.join(RESERVE_NAME);
        let bytes = self.shared.config.reserve_bytes;
        let made = self.shared.disk.create(&path).or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => self.shared.disk.open(&path, true),
            _ => Err(error),
        });
        let made = made
            .and_then(|file| file.preallocate(bytes))
            .and_then(|()| self.shared.disk.sync_dir(&self.shared.dir));
        self.reserve = made.is_ok();
        if let Err(error) = made {
            tracing::warn!(path = %path.display(), %error, "no space is reserved for acknowledgements");
        }
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
