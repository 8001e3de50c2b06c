//! A reader of the primary's channels, over its openings: cursors mean the same in each of them. Where they do not: [`super::late`].

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use super::state::Shared;
use crate::api::{ChannelId, Delivery, ReadError, Reader, ReaderId};

pub(super) struct FailoverReader {
    shared: Arc<Shared>,
    channel: ChannelId,
    reader: ReaderId,
    inner: Option<(u64, Box<dyn Reader>)>,
    /// Where the next delivery begins, if this reader was somewhere.
    next: Option<u64>,
}

impl FailoverReader {
    pub fn new(shared: Arc<Shared>, channel: ChannelId, reader: ReaderId) -> FailoverReader {
        FailoverReader { shared, channel, reader, inner: None, next: None }
    }

    /// The reader of the primary's newest opening; the one of an earlier opening as long as there is no other.
    fn inner(&mut self) -> Result<Option<&mut Box<dyn Reader>>, ReadError> {
        let open = self.shared.state.lock().primary.clone();
        let is_newer = |generation: u64| self.inner.as_ref().is_none_or(|(known, _)| *known != generation);
        if let Some(open) = open.filter(|open| is_newer(open.generation)) {
            let ids = open.channel(self.channel).zip(open.reader(self.channel, self.reader));
            let Some((channel, reader)) = ids else { return Err(ReadError::Closing) };
            let mut inner = open.journal.open_reader(channel, reader);
            if let Some(next) = self.next
                && let Err(error) = inner.seek(next)
            {
                self.next = None;
                self.inner = Some((open.generation, inner));
                return Err(ReadError::Moved(error.to_string()));
            }
            self.inner = Some((open.generation, inner));
        }
        Ok(self.inner.as_mut().map(|(_, inner)| inner))
    }

    /// Waits until there is one, or never will be.
    fn wait(&mut self) -> Option<&mut Box<dyn Reader>> {
        self.shared.wait_opened()?;
        // Where it was does not matter for what is asked.
        self.inner().ok()?;
        self.inner.as_mut().map(|(_, inner)| inner)
    }
}

impl Reader for FailoverReader {
    fn next(&mut self, wait: Duration) -> Result<Option<Delivery>, ReadError> {
        if self.inner()?.is_none() {
            return self.shared.idle(wait);
        }
        let Some((_, inner)) = &mut self.inner else { return Ok(None) };
        match inner.next(wait) {
            Ok(Some(delivery)) => {
                self.next = Some(delivery.next);
                Ok(Some(delivery))
            }
            // The primary has failed, and there is nothing left to read of it.
            Err(ReadError::Closing) => self.shared.idle(wait),
            other => other,
        }
    }

    fn seek(&mut self, cursor: u64) -> Result<(), ReadError> {
        self.next = Some(cursor);
        match self.inner()? {
            Some(inner) => inner.seek(cursor),
            None => Ok(()),
        }
    }

    fn acknowledged(&self) -> u64 {
        let Some(open) = self.shared.wait_opened() else { return 0 };
        let known = match &self.inner {
            Some((generation, inner)) if *generation == open.generation => inner.acknowledged(),
            _ => {
                let ids = open.channel(self.channel).zip(open.reader(self.channel, self.reader));
                ids.map_or(0, |(channel, reader)| open.journal.open_reader(channel, reader).acknowledged())
            }
        };
        known.max(self.shared.held_cursor(self.channel, self.reader))
    }

    fn acknowledger(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.inner.as_ref().and_then(|(_, inner)| inner.acknowledger())
    }

    fn mark(&self, cursor: u64) -> Vec<u8> {
        // Whoever has a cursor has read.
        self.inner.as_ref().map(|(_, inner)| inner.mark(cursor)).unwrap_or_else(|| {
            let ids = self.shared.wait_opened().and_then(|open| {
                let ids = open.channel(self.channel).zip(open.reader(self.channel, self.reader));
                ids.map(|(channel, reader)| open.journal.open_reader(channel, reader))
            });
            ids.map(|reader| reader.mark(cursor)).unwrap_or_default()
        })
    }

    fn resolve(&mut self, mark: &[u8]) -> Option<u64> {
        self.wait()?.resolve(mark)
    }
}
