//! A reader of a memory channel: a take list. What was taken and not acknowledged is still there, and a seek back
//! (Flume's rollback) hands it out again from the head, in order.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::channel::Place;
use super::registers::{Region, Store};
use crate::api::{Delivery, ReadError, Reader, Ticket};
use crate::limits;

/// First byte of a mark: then the journal's id (16 bytes) and the cursor (8), little-endian.
const MARK_VERSION: u8 = 2;

pub(super) struct MemoryReader {
    shared: Arc<Shared>,
    channel: usize,
    reader: usize,
    cursor: u64,
    lost: u64,
    inner: Option<Inner>,
}

/// The reader of a file channel, and where it is.
struct Inner {
    store: Store,
    reader: Box<dyn Reader>,
    cursor: u64,
}

impl MemoryReader {
    pub fn new(shared: Arc<Shared>, channel: usize, reader: usize) -> MemoryReader {
        let cursor = shared.acknowledged(channel, reader);
        MemoryReader { shared, channel, reader, cursor, lost: 0, inner: None }
    }

    fn deliver(&mut self, next: u64, batch: flumen_event::Batch) -> Delivery {
        let first = std::mem::replace(&mut self.cursor, next);
        Delivery { first, next, batch, lost_before: std::mem::take(&mut self.lost) }
    }

    fn lose_until(&mut self, cursor: u64) {
        let lost = cursor.saturating_sub(self.cursor);
        tracing::error!(channel = self.channel, lost, from = self.cursor, "events are not there any more");
        self.lost += lost;
        self.cursor = cursor;
    }

    /// The next of a region, or `None` when it is not there within `wait`.
    fn read(
        &mut self,
        region: Region,
        spilling: Option<&dyn Ticket>,
        wait: Duration,
    ) -> Result<Option<Delivery>, ReadError> {
        // Asked before the read: only then an empty answer means that the file has lost what was there.
        let is_durable =
            spilling.is_none_or(|ticket| matches!(ticket.wait(Some(Duration::ZERO)), Some(Ok(_))));
        let target = region.file_cursor(self.cursor);
        let mut inner = match self.inner.take().filter(|inner| inner.store == region.store) {
            Some(inner) => inner,
            None => {
                let reader = self.shared.file_reader(self.channel, self.reader, region.store);
                let Some(reader) = reader else { return Err(ReadError::Closing) };
                Inner { store: region.store, reader, cursor: u64::MAX }
            }
        };
        if inner.cursor != target {
            inner.reader.seek(target)?;
        }
        let found = inner.reader.next(wait)?;
        inner.cursor = found.as_ref().map_or(target, |found| found.next);
        self.inner = Some(inner);
        let Some(found) = found else {
            if is_durable {
                self.lose_until(region.end());
            }
            return Ok(None);
        };
        if found.first > target {
            self.lose_until(self.cursor + (found.first - target));
        }
        let next = self.cursor + found.batch.rows() as u64;
        Ok(Some(self.deliver(next, found.batch)))
    }
}

impl Reader for MemoryReader {
    fn next(&mut self, wait: Duration) -> Result<Option<Delivery>, ReadError> {
        let shared = self.shared.clone();
        let deadline = shared.clock.now().checked_add(wait);
        loop {
            let left = deadline
                .map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(shared.clock.now()));
            let place = {
                let mut state = shared.state.lock();
                if !state.is_open {
                    return Err(ReadError::Closing);
                }
                let Some(channel) = state.channels.get(self.channel) else { return Ok(None) };
                let reader = channel.registers.readers.get(self.reader);
                self.cursor = self.cursor.max(reader.map_or(0, |reader| reader.cursor));
                match channel.place(self.cursor) {
                    Place::End if left.is_zero() => return Ok(None),
                    Place::End => {
                        shared.published.wait_for(&mut state, left.min(limits::MEMORY_WAIT_MAX));
                        continue;
                    }
                    place => place,
                }
            };
            match place {
                Place::Held(batch, ticket) => match ticket.wait(Some(left)) {
                    Some(Ok(_)) => return Ok(Some(self.deliver(self.cursor + batch.rows() as u64, *batch))),
                    Some(Err(_)) => return Err(ReadError::Closing),
                    None => return Ok(None),
                },
                Place::File(region, spilling) => {
                    let before = self.cursor;
                    match self.read(region, spilling.as_deref(), left)? {
                        None if self.cursor > before => {}
                        found => return Ok(found),
                    }
                }
                Place::Gone(until) => self.lose_until(until),
                Place::End => {}
            }
        }
    }

    fn seek(&mut self, cursor: u64) -> Result<(), ReadError> {
        self.cursor = cursor.max(self.acknowledged());
        self.lost = 0;
        Ok(())
    }

    fn acknowledged(&self) -> u64 {
        self.shared.acknowledged(self.channel, self.reader)
    }

    fn mark(&self, cursor: u64) -> Vec<u8> {
        let mut mark = vec![MARK_VERSION];
        mark.extend(self.shared.id);
        mark.extend(cursor.to_le_bytes());
        mark
    }

    fn resolve(&mut self, mark: &[u8]) -> Option<u64> {
        let (version, rest) = mark.split_first()?;
        let (id, cursor) = rest.split_first_chunk::<16>()?;
        let cursor = u64::from_le_bytes(cursor.try_into().ok()?);
        let state = self.shared.state.lock();
        let head = state.channels.get(self.channel)?.registers.head;
        (*version == MARK_VERSION && *id == self.shared.id && cursor <= head).then_some(cursor)
    }
}
