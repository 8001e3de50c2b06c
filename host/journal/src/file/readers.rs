//! Readers that come and go while the journal is open.
//!
//! Constraints: a reader's index never changes while the journal is open. A new reader begins at the end of what is durable, one
//! that was there before goes on where it was: as at an opening. The committer adds it between two groups and begins a
//! segment, whose checkpoint has it: its acknowledgements stand behind a durable record of its name. What only retires
//! needs no record: an opening is told again who reads.
//!
//! How it fails: if the segment cannot be begun, nothing has changed. A channel that nobody reads keeps nothing, not even what is
//! on its way, so it gets no reader before the next opening.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::format::registers::{ChannelRegister, ReaderRegister};
use super::state::{Shared, State};
use super::writer::{WriteError, Writer};
use crate::api::{AddReaderError, ChannelId, ReaderId};
use crate::limits;

/// What the committer has not taken over yet.
pub enum ReaderChange {
    Add {
        channel: usize,
        name: String,
        reply: Arc<Reply>,
    },
    /// Done in [`State`] already.
    Retire {
        channel: usize,
        reader: usize,
    },
}

/// Where the outcome of an addition arrives.
#[derive(Default)]
pub struct Reply {
    outcome: Mutex<Option<Result<ReaderId, AddReaderError>>>,
    arrived: Condvar,
}

impl Reply {
    fn resolve(&self, outcome: Result<ReaderId, AddReaderError>) {
        *self.outcome.lock() = Some(outcome);
        self.arrived.notify_all();
    }

    pub fn wait(&self) -> Result<ReaderId, AddReaderError> {
        let mut outcome = self.outcome.lock();
        loop {
            match outcome.take() {
                Some(outcome) => return outcome,
                None => self.arrived.wait(&mut outcome),
            }
        }
    }
}

/// `Journal::add_reader`.
pub fn add(shared: &Shared, channel: ChannelId, name: &str) -> Result<ReaderId, AddReaderError> {
    ask(shared, channel, name)?.wait()
}

/// Asks the committer for it.
pub fn ask(shared: &Shared, channel: ChannelId, name: &str) -> Result<Arc<Reply>, AddReaderError> {
    let reply = Arc::new(Reply::default());
    {
        let mut state = shared.state.lock();
        state.check_open().map_err(|error| refused(error.to_string()))?;
        let channel = usize::from(channel.0);
        let change = ReaderChange::Add { channel, name: name.to_owned(), reply: reply.clone() };
        state.reader_changes.push(change);
    }
    shared.work.notify_one();
    Ok(reply)
}

/// `Journal::retire_reader`.
pub fn retire(shared: &Shared, channel: ChannelId, reader: ReaderId) {
    let (channel, reader) = (usize::from(channel.0), usize::from(reader.0));
    {
        let mut state = shared.state.lock();
        let register = state.registers.channels.get_mut(channel);
        let Some(register) = register.and_then(|it| it.readers.get_mut(reader)) else { return };
        register.live = false;
        shared.note_kept(&state);
        state.release(channel);
        state.reader_changes.push(ReaderChange::Retire { channel, reader });
    }
    shared.work.notify_one();
    shared.space.notify_all();
}

fn refused(reason: impl Into<Arc<str>>) -> AddReaderError {
    AddReaderError(reason.into())
}

impl State {
    /// Nothing changes any more: whoever waits is told.
    pub fn refuse_reader_changes(&mut self, reason: &str) {
        for change in std::mem::take(&mut self.reader_changes) {
            if let ReaderChange::Add { reply, .. } = change {
                reply.resolve(Err(refused(reason)));
            }
        }
    }
}

impl Writer {
    /// Takes over who reads, between two groups.
    pub fn change_readers(&mut self) {
        let changes = std::mem::take(&mut self.shared.state.lock().reader_changes);
        let has_retired = changes.iter().any(|change| matches!(change, ReaderChange::Retire { .. }));
        for change in changes {
            match change {
                ReaderChange::Add { channel, name, reply } => reply.resolve(self.add_reader(channel, &name)),
                ReaderChange::Retire { channel, reader } => {
                    let register = self.applied.channels.get_mut(channel);
                    if let Some(reader) = register.and_then(|it| it.readers.get_mut(reader)) {
                        reader.live = false;
                    }
                }
            }
        }
        if has_retired {
            self.collect();
        }
    }

    fn add_reader(&mut self, channel: usize, name: &str) -> Result<ReaderId, AddReaderError> {
        let register = self.applied.channels.get_mut(channel);
        let register = register.ok_or_else(|| refused("there is no such channel"))?;
        let before = register.clone();
        let index = enter(register, name)?;
        let Some(reader) = register.readers.get(index).cloned() else {
            return Err(refused("it has no place"));
        };
        if let Err(error) = self.roll(0, self.shared.config.segment_bytes, false) {
            if let Some(register) = self.applied.channels.get_mut(channel) {
                *register = before;
            }
            if matches!(error, WriteError::Broken(_)) {
                // The new file may come back after a crash, and would make void what is written to the old one.
                self.active = None;
            }
            let (WriteError::Full(error) | WriteError::Broken(error)) = error;
            return Err(refused(format!("writing {}: {error}", self.shared.dir.display())));
        }
        let mut state = self.shared.state.lock();
        if let Some(register) = state.registers.channels.get_mut(channel) {
            match register.readers.get_mut(index) {
                Some(known) => known.live = true,
                None => register.readers.push(reader),
            }
        }
        self.shared.note_kept(&state);
        if let Some(channel) = state.channels.get_mut(channel) {
            channel.delivered.resize_with(channel.delivered.len().max(index + 1), VecDeque::new);
        }
        drop(state);
        // The checkpoint alone has its name: were that damaged, nothing would say whose numbers the segment's frames have.
        if let Err(error) = self.snapshot() {
            tracing::error!(dir = %self.shared.dir.display(), %error, "no snapshot with a new reader");
        }
        u16::try_from(index).map(ReaderId).map_err(|_| refused("it has no place"))
    }
}

/// Makes a reader live; its index.
fn enter(register: &mut ChannelRegister, name: &str) -> Result<usize, AddReaderError> {
    if register.needed().is_none() {
        return Err(refused("nobody reads its channel, which so keeps nothing"));
    }
    if let Some(index) = register.readers.iter().position(|reader| reader.name == name) {
        if let Some(reader) = register.readers.get_mut(index) {
            reader.live = true;
        }
        return Ok(index);
    }
    if register.readers.len() > limits::RETIRED_MAX {
        return Err(refused("too many readers came and went since the journal was opened"));
    }
    register.readers.push(ReaderRegister {
        name: name.to_owned(),
        live: true,
        cursor: register.head,
        bytes: register.head_bytes,
        ..ReaderRegister::default()
    });
    Ok(register.readers.len() - 1)
}
