//! The trait of sinks, and what the pipeline offers them.
//!
//! Exactly-once rests on three steps in this order: `deliver` writes, `flush` makes it durable at the
//! destination and says what the destination holds then (the sink's *position*), and the pipeline
//! commits acknowledgement and position in one commit. After a crash `recover` gets the last
//! committed position and takes everything after it back out of the destination.
//!
//! A destination that can store a cursor in the same atomic step as the events (Kafka, a database)
//! does so: `flush` gets the cursor as a *mark* and stores it, `recover` reads it back, and the channel is
//! read on from there. What goes to quarantine meanwhile is on record before that step
//! (see `deliver.rs`), so neither side of it can be lost.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use flumen_event::Batch;
use flumen_journal::{Delivery, Reader};
use thiserror::Error;

use crate::component::Place;
use crate::interceptor::Quarantined;
use crate::metrics::ComponentMetrics;
use crate::source::Wake;

/// Delivers events. Runs on its own thread; all calls come from there.
pub trait Sink: Send {
    /// Brings the destination to exactly what `committed` says (`None`: never committed), before the
    /// first delivery and again after every error. If the destination stores marks itself, says what
    /// they come to: events before that are skipped.
    fn recover(
        &mut self,
        context: &mut SinkContext,
        committed: Option<&[u8]>,
        cursors: &mut Cursors<'_>,
    ) -> Result<Option<Stored>, SinkError>;

    /// Of a delivery (before the sink's own interceptors) that ends at `next`, the rows that the
    /// destination has not. Asked between [`Stored::from`] and [`Stored::until`] only.
    fn missing(&self, batch: Batch, next: u64) -> Result<Batch, SinkError> {
        let _unused = next;
        Ok(batch)
    }

    /// Whether what was flushed with this mark is at the destination, for what was put into quarantine with it; `None`:
    /// the cursors of [`Stored`] tell. A sink answers if its reader's cursors say nothing of what others took over.
    fn holds(&self, mark: &[u8]) -> Option<bool> {
        let _unused = mark;
        None
    }

    /// Whether what the destination did not hold at `recover` is never carried out any more, as with a transaction that is aborted then. Of
    /// a request without an answer nobody knows: it may still be on its way, and in a group its events stay with this sink.
    fn settles(&self) -> bool {
        true
    }

    /// Takes events. They may stay in a buffer until `flush`.
    fn deliver(&mut self, context: &mut SinkContext, delivery: &Delivery) -> Result<(), SinkError>;

    /// Brings everything delivered to where the destination may still refuse it: the last chance to
    /// quarantine, for a sink that stores marks. Nothing of it need be durable.
    fn prepare(&mut self, context: &mut SinkContext) -> Result<(), SinkError> {
        let _unused = context;
        Ok(())
    }

    /// Makes everything delivered durable at the destination. Returns the position to be committed
    /// with the acknowledgement (empty if the sink has none). `mark`: the cursor behind what was
    /// delivered, for a destination that stores it in the same atomic step.
    fn flush(&mut self, context: &mut SinkContext, mark: &[u8]) -> Result<Vec<u8>, SinkError>;

    /// The commit of this position is durable: now steps may be taken that must not be undone
    /// (a file gets its final name).
    fn committed(&mut self, context: &mut SinkContext, position: &[u8]) -> Result<(), SinkError>;

    /// True if a timer of the sink is due (roll by time) although no event came: `flush` is called.
    fn due(&mut self) -> bool {
        false
    }

    /// When the pipeline calls `flush`.
    fn flush_policy(&self) -> FlushPolicy;

    /// The most that a sink takes between two flushes, if one flush is one step at its destination: larger deliveries are
    /// cut, so that each step has a mark of its own. Asked before each delivery.
    fn group(&self) -> Option<Group> {
        None
    }

    /// Its destination cannot tell what it holds, and events whose outcome is not known may come twice. A group then gives them to another
    /// sink without waiting for this one.
    fn forgets(&self) -> bool {
        false
    }

    /// The last chance to finish things on a clean stop (files keep their open name or get the final
    /// one). Called after a flush whose commit is durable.
    fn close(&mut self, context: &mut SinkContext) -> Result<(), SinkError> {
        let _unused = context;
        Ok(())
    }
}

/// When delivered events are flushed and acknowledged: whichever comes first.
#[derive(Debug, Clone, Copy)]
pub struct FlushPolicy {
    /// Bytes delivered since the last flush.
    pub bytes: u64,
    /// Time since the first unflushed event.
    pub linger: Duration,
}

/// What a sink takes between two flushes, before its own interceptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Events; at least 1.
    pub rows: usize,
    /// Bytes of their bodies; a single event may have more.
    pub bytes: usize,
}

/// Why a sink could not go on. The pipeline waits, calls `recover` with the last position that a
/// flush returned, and delivers again from the cursor of that flush.
#[derive(Debug, Error)]
pub enum SinkError {
    /// The destination failed; tried again with a growing pause, and reported.
    #[error("{0}")]
    Retry(String),
    /// As `Retry`, but the pause is the sink's choice. Without one it is a step of its work and not reported.
    #[error("{reason}")]
    Again {
        /// Why.
        reason: String,
        /// How long to wait.
        after: Duration,
    },
    /// Nothing failed: what was delivered since the last flush may be another's now. The same without a report.
    #[error("{0}")]
    Moved(String),
    /// The pipeline is stopping.
    #[error("stopping")]
    Stopped,
    /// The sink must not go on (another agent has taken its place). It stops for good, and says so.
    #[error("{0}")]
    Fatal(String),
}

/// What a destination that stores marks holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// All events before this cursor are there.
    pub from: u64,
    /// None at or after this cursor is there. Between the two, some are (see [`Sink::missing`]).
    pub until: u64,
}

/// Marks as cursors, for [`Sink::recover`].
pub struct Cursors<'a>(Option<&'a mut dyn Reader>);

impl<'a> Cursors<'a> {
    /// Of the sink's reader.
    pub fn new(reader: &'a mut dyn Reader) -> Self {
        Cursors(Some(reader))
    }

    /// Of a sink that was never given anything, as in a test of it alone.
    pub fn none() -> Self {
        Cursors(None)
    }

    /// Events before this cursor are acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.0.as_ref().map_or(0, |reader| reader.acknowledged())
    }

    /// See [`Reader::acknowledger`].
    pub fn acknowledger(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.0.as_ref().and_then(|reader| reader.acknowledger())
    }

    /// The cursor of a mark that [`Sink::flush`] was given; `None` (and an error in the log) if it was
    /// written with another journal (this one was deleted, or lost its end).
    pub fn resolve(&mut self, mark: &[u8]) -> Option<u64> {
        let cursor = self.0.as_mut().and_then(|reader| reader.resolve(mark));
        if cursor.is_none() {
            tracing::error!(
                "the cursor stored at the destination is of another journal, or past the end of this one: \
                 it is not used, and what the destination holds may come twice"
            );
        }
        cursor
    }
}

/// Where a sink's own commits go. The pipeline implements it; tests implement it too.
pub trait SinkCommit: Send {
    /// Commits a position without an acknowledgement and waits until it is durable: what a sink must
    /// have on record before it does something that only the record can undo (creating a file).
    fn commit_position(&mut self, position: &[u8]) -> Result<(), SinkError>;
}

/// What the pipeline offers to a sink.
pub struct SinkContext {
    /// The sink's name in the pipeline.
    pub name: Arc<str>,
    /// Where it stands.
    pub place: Place,
    /// Its counters. Delivered events and bytes are counted by the pipeline.
    pub metrics: Arc<ComponentMetrics>,
    /// Tells when the pipeline stops.
    pub wake: Wake,
    commit: Box<dyn SinkCommit>,
    quarantined: Vec<Quarantined>,
}

impl SinkContext {
    /// Puts a context together.
    pub fn new(
        name: Arc<str>,
        metrics: Arc<ComponentMetrics>,
        wake: Wake,
        commit: Box<dyn SinkCommit>,
    ) -> Self {
        SinkContext { name, place: Place::default(), metrics, wake, commit, quarantined: Vec::new() }
    }

    /// See [`SinkCommit::commit_position`].
    pub fn commit_position(&mut self, position: &[u8]) -> Result<(), SinkError> {
        self.commit.commit_position(position)
    }

    /// Sends events that this destination can never take to quarantine, in the commit that
    /// acknowledges them.
    pub fn quarantine(&mut self, batch: Batch, reasons: Vec<String>) {
        let by = self.name.clone();
        self.quarantined.push(Quarantined { batch, reasons, by, hash: "".into(), rejected: false });
    }

    /// Sends what a codec could not encode to quarantine, in the same way.
    pub fn quarantine_groups(&mut self, groups: Vec<Quarantined>) {
        self.quarantined.extend(groups);
    }

    /// Bytes of what was quarantined since the last flush.
    pub(crate) fn quarantined_bytes(&self) -> usize {
        self.quarantined.iter().map(|group| group.batch.bytes()).sum()
    }

    /// What was quarantined since the last call.
    pub fn take_quarantined(&mut self) -> Vec<Quarantined> {
        std::mem::take(&mut self.quarantined)
    }
}
