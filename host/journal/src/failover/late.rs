//! A primary that acknowledges late: a source-backed journal, whose commits with events count when their sinks have acknowledged them.
//!
//! Its cursors begin at 0 with each opening, and nothing that was in it outlives one. So what a reader had of an opening is void in the
//! next:
//! - Acknowledgements that were under way, or that waited, are refused when it is opened anew ([`CommitError::Refused`]). They are
//!   not sent again: their cursors would acknowledge other events.
//! - The reader says [`ReadError::Moved`] once. Its sink undoes what it did since its last acknowledgement (by the position that the new
//!   opening has, which says exactly what counts), and seeks to what is acknowledged there.
//! - Until a sink has heard of it (by a seek, that error, or a refusal as it hands in) what it hands in is of the opening before, and is
//!   refused ([`super::state::State::is_stale`]). All that a recovery asks is of one opening, or it begins anew: the answer of a
//!   destination that decides would be lost with the opening that it was given to.
//! - While the primary is dead nothing is handed out, which would be undone; positions that are not of sources wait, since a dead journal
//!   says of what it has not written that it has it.
//!
//! The events are not lost with it: what was not acknowledged is in flight ([`super::flight`]), and goes to the secondary with its numbers.
//! A number is in the commit that is withheld, so it is in the primary exactly when its events are done with.
//!
//! A promise ([`Reader::promise`]) is what its commit will be. So acknowledgements have no numbers here; a promise that no commit followed is
//! decided in the next opening, by what its destination says there, and before that nobody knows which number counts: commits wait, and so
//! does the way back.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use super::commit::refused;
use super::state::{Open, Shared};
use crate::api::{ChannelId, CommitError, Delivery, Promise, Put, ReadError, Reader, ReaderId, Ticket};

/// See the module.
pub(super) struct LateReader {
    shared: Arc<Shared>,
    channel: ChannelId,
    reader: ReaderId,
    /// Of the opening with this number.
    inner: Option<(u64, Box<dyn Reader>)>,
    /// The opening that its sink's cursors are of.
    begun: Option<u64>,
    /// The opening of which its sink was told that it has to go back.
    told: Option<u64>,
    /// The opening that the recovery under way has asked first.
    asked: Cell<Option<u64>>,
}

fn moved() -> ReadError {
    ReadError::Moved("the journal of the channel was opened anew".into())
}

impl LateReader {
    pub fn new(shared: Arc<Shared>, channel: ChannelId, reader: ReaderId) -> LateReader {
        let open = {
            let mut state = shared.state.lock();
            // A sink that begins here has nothing of before, and of what is opened later it has not heard. The first opening has number 1.
            let generation = state.generation.max(1);
            state.heard.insert((channel, reader), generation);
            state.alive().cloned()
        };
        let (inner, asked) = (None, Cell::default());
        let mut late = LateReader { shared, channel, reader, inner, begun: None, told: None, asked };
        // At once: what a sink before it acknowledged and does not count yet is as if it had not been. Later it could come to count between
        // what this one is told of its position and of its cursor.
        if let Some(open) = open {
            late.attach(&open);
        }
        late
    }

    fn alive(&self) -> Option<Open> {
        self.shared.state.lock().alive().cloned()
    }

    fn ids(&self, open: &Open) -> Option<(ChannelId, ReaderId)> {
        open.channel(self.channel).zip(open.reader(self.channel, self.reader))
    }

    /// The reader of this opening; `None`: it is not there any more.
    fn attach(&mut self, open: &Open) -> Option<&mut Box<dyn Reader>> {
        if self.inner.as_ref().is_none_or(|(known, _)| *known != open.generation) {
            let (channel, reader) = self.ids(open)?;
            self.inner = Some((open.generation, open.journal.open_reader(channel, reader)));
        }
        self.inner.as_mut().map(|(_, inner)| inner)
    }

    /// Its sink knows of this opening from here on.
    fn hears(&self, generation: u64) {
        self.shared.state.lock().heard.insert((self.channel, self.reader), generation);
    }

    /// Whether its sink has to go back.
    fn check(&mut self, generation: u64) -> Result<(), ReadError> {
        if self.begun.is_none_or(|begun| begun == generation) {
            return Ok(());
        }
        if self.told.replace(generation) == Some(generation) {
            // Nobody went back: nothing is handed out on top of what cannot be acknowledged.
            let reason = "it was opened anew, and its reader has not gone back to what it acknowledged";
            let source = std::io::Error::other(reason);
            return Err(ReadError::Io { what: "the journal of the channel".into(), source });
        }
        self.hears(generation);
        // What it asked before is of no recovery that begins now.
        self.asked.set(None);
        Err(moved())
    }

    fn asks(&self, generation: u64) {
        self.asked.set(self.asked.get().or(Some(generation)));
    }

    fn close_or_refuse(&self) -> CommitError {
        if self.shared.state.lock().is_over() { CommitError::Closing } else { refused() }
    }
}

impl Reader for LateReader {
    fn next(&mut self, wait: Duration) -> Result<Option<Delivery>, ReadError> {
        let Some(open) = self.alive() else { return self.shared.idle(wait) };
        self.check(open.generation)?;
        if self.begun.is_none() {
            self.begun = Some(open.generation);
            self.hears(open.generation);
        }
        let inner = self.attach(&open).ok_or(ReadError::Closing)?;
        match inner.next(wait) {
            Err(ReadError::Closing) => self.shared.idle(wait),
            other => other,
        }
    }

    fn seek(&mut self, cursor: u64) -> Result<(), ReadError> {
        let asked = self.asked.take();
        let open = self.shared.wait_alive().ok_or(ReadError::Closing)?;
        let generation = open.generation;
        if asked.or(self.begun).is_some_and(|of| of != generation) {
            return Err(moved());
        }
        let sought = self.attach(&open).ok_or(ReadError::Closing)?.seek(cursor);
        if let Err(error) = sought {
            // What its destination says of a promise found no disk. Nobody commits before that counts, so nobody else finds out.
            if matches!(error, ReadError::Io { .. }) {
                self.shared.has_failed(generation, &CommitError::Failed(error.to_string().into()));
            }
            return Err(error);
        }
        (self.begun, self.told) = (Some(generation), None);
        self.hears(generation);
        Ok(())
    }

    fn acknowledged(&self) -> u64 {
        let Some(open) = self.shared.wait_alive() else { return 0 };
        self.asks(open.generation);
        match &self.inner {
            Some((generation, inner)) if *generation == open.generation => inner.acknowledged(),
            _ => {
                let ids = self.ids(&open);
                ids.map_or(0, |(channel, reader)| open.journal.open_reader(channel, reader).acknowledged())
            }
        }
    }

    fn flushes_at(&mut self, cursor: u64, is_due: bool) -> bool {
        let Some(open) = self.alive() else {
            // It will be refused; one that waited for a better time would ask for ever.
            return is_due;
        };
        match &mut self.inner {
            Some((generation, inner))
                if *generation == open.generation && self.begun == Some(*generation) =>
            {
                inner.flushes_at(cursor, is_due)
            }
            // It goes back with its next read.
            _ => false,
        }
    }

    fn promises(&self) -> bool {
        true
    }

    fn promise(&mut self, cursor: u64, puts: &[Put], wait: Duration) -> Result<Option<Promise>, CommitError> {
        let Some(open) = self.alive() else {
            return self.shared.idle(wait).map(|_| None).map_err(|_| CommitError::Closing);
        };
        let generation = open.generation;
        if self.begun != Some(generation) {
            self.hears(generation);
            return Err(refused());
        }
        let puts = open.puts(puts);
        let Some(inner) = self.attach(&open) else { return Err(refused()) };
        match inner.promise(cursor, &puts, wait) {
            Ok(None) => Ok(None),
            Ok(Some(Promise { mark, ticket })) => {
                let ticket = Box::new(Promised { shared: self.shared.clone(), generation, ticket });
                Ok(Some(Promise { mark, ticket }))
            }
            Err(error @ (CommitError::Failed(_) | CommitError::Closing)) => {
                self.shared.has_failed(generation, &error);
                Err(self.close_or_refuse())
            }
            Err(error) => Err(error),
        }
    }

    fn mark(&self, cursor: u64) -> Vec<u8> {
        self.inner.as_ref().map(|(_, inner)| inner.mark(cursor)).unwrap_or_default()
    }

    fn resolve(&mut self, mark: &[u8]) -> Option<u64> {
        let open = self.shared.wait_alive()?;
        self.asks(open.generation);
        self.attach(&open)?.resolve(mark)
    }
}

/// A promise whose journal fails is void: its sink goes back, and nobody is told that the journal is over.
struct Promised {
    shared: Arc<Shared>,
    generation: u64,
    ticket: Box<dyn Ticket>,
}

impl Ticket for Promised {
    fn wait(&self, timeout: Option<Duration>) -> Option<Result<u64, CommitError>> {
        match self.ticket.wait(timeout) {
            Some(Err(error @ (CommitError::Failed(_) | CommitError::Closing))) => {
                self.shared.has_failed(self.generation, &error);
                let is_over = self.shared.state.lock().is_over();
                Some(Err(if is_over { error } else { refused() }))
            }
            other => other,
        }
    }
}
