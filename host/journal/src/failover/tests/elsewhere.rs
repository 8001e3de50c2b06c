//! A journal that is elsewhere: it is not read until it is let go, and whoever asks it for something waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::api::{ChannelId, Commit, CommitError, Journal, JournalStatus, Reader, ReaderId, Ticket};
use crate::state::StateStore;

/// Lets it go.
#[derive(Default)]
pub struct Gate {
    is_open: Mutex<bool>,
    changed: Condvar,
    /// It cannot be reached any more: what it is handed is not told to be durable.
    pub is_silent: AtomicBool,
}

impl Gate {
    pub fn open(&self) {
        *self.is_open.lock() = true;
        self.changed.notify_all();
    }

    fn is_open(&self) -> bool {
        *self.is_open.lock()
    }

    fn wait(&self) {
        let mut is_open = self.is_open.lock();
        self.changed.wait_while(&mut is_open, |is_open| !*is_open);
    }
}

/// See the module.
pub struct Elsewhere {
    inner: Arc<dyn Journal>,
    gate: Arc<Gate>,
}

impl Elsewhere {
    pub fn new(inner: Arc<dyn Journal>, gate: Arc<Gate>) -> Elsewhere {
        Elsewhere { inner, gate }
    }
}

impl Journal for Elsewhere {
    fn channel(&self, name: &str) -> Option<ChannelId> {
        self.inner.channel(name)
    }

    fn reader_id(&self, channel: ChannelId, reader: &str) -> Option<ReaderId> {
        self.inner.reader_id(channel, reader)
    }

    fn set_capacity(&self, channel: ChannelId, events: u64, bytes: u64) {
        self.inner.set_capacity(channel, events, bytes);
    }

    fn commit(&self, commit: Commit, deadline: Option<Instant>) -> Result<Box<dyn Ticket>, CommitError> {
        self.gate.wait();
        let ticket = self.inner.commit(commit, deadline)?;
        Ok(Box::new(Told { ticket, gate: self.gate.clone() }))
    }

    fn is_read(&self) -> bool {
        self.gate.is_open()
    }

    fn position(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.gate.wait();
        self.inner.position(key)
    }

    fn positions(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.gate.wait();
        self.inner.positions(prefix)
    }

    fn state(&self) -> Option<Arc<dyn StateStore>> {
        self.inner.state()
    }

    fn open_reader(&self, channel: ChannelId, reader: ReaderId) -> Box<dyn Reader> {
        self.gate.wait();
        self.inner.open_reader(channel, reader)
    }

    fn status(&self) -> JournalStatus {
        let waiting_for = (!self.gate.is_open()).then(|| "brokers that answer".to_owned());
        JournalStatus { waiting_for, ..self.inner.status() }
    }

    fn close(&self) -> Result<(), CommitError> {
        self.gate.open();
        self.inner.close()
    }
}

/// A ticket, as long as nothing is silent.
struct Told {
    ticket: Box<dyn Ticket>,
    gate: Arc<Gate>,
}

impl Ticket for Told {
    fn wait(&self, timeout: Option<Duration>) -> Option<Result<u64, CommitError>> {
        if self.gate.is_silent.load(Ordering::Acquire) {
            std::thread::sleep(timeout.unwrap_or_default());
            return None;
        }
        self.ticket.wait(timeout)
    }
}
