//! The trait of sources, and what the pipeline offers them.

use std::sync::Arc;
use std::time::Duration;

use flumen_event::Batch;
use parking_lot::{Condvar, Mutex};
use thiserror::Error;

use crate::component::Place;
use crate::interceptor::Quarantined;
use crate::metrics::ComponentMetrics;
use crate::plan::BatchPlan;

/// Reads events from somewhere. Runs on its own thread.
pub trait Source: Send {
    /// Reads until [`SourceContext::stopping`] or the end of the input. Begins where
    /// [`SourceContext::positions`] says; is called again after an error, when everything emitted
    /// has been committed.
    ///
    /// An event's identity must be the same after every restart. A batch and the positions that it
    /// moves are emitted together and become one commit.
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError>;
}

/// Why a source stopped before its end.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The pipeline is stopping; not a failure.
    #[error("stopping")]
    Stopped(#[from] Stopped),
    /// Tried again after a pause, and reported.
    #[error("{0}")]
    Retry(String),
}

/// The pipeline takes no more from this source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("stopping")]
pub struct Stopped;

/// Events and the positions that they move; one commit.
#[derive(Debug, Clone)]
pub struct Emission {
    /// The events; may have no rows (a position alone).
    pub batch: Batch,
    /// Keys and values as in [`SourceContext::positions`]; an empty value removes the key.
    pub positions: Vec<(Vec<u8>, Vec<u8>)>,
    /// Events that the source itself could not take (a line over the limit).
    pub quarantined: Vec<Quarantined>,
}

/// Where a source's emissions go. The pipeline implements it; tests implement it too.
pub trait Emit: Send {
    /// Hands over an emission, in order. Waits while the pipeline is full: that is the back-pressure.
    fn emit(&mut self, emission: Emission) -> Result<(), Stopped>;

    /// Waits until everything emitted so far is durable.
    fn settle(&mut self) -> Result<(), Stopped>;

    /// Emissions so far (of this run and of those before it), and how many of them, from the first, are durable.
    fn progress(&self) -> Progress;

    /// Committed positions of this source, key and value, in key order.
    fn positions(&self) -> Vec<(Vec<u8>, Vec<u8>)>;
}

/// How far emissions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Handed over.
    pub emitted: u64,
    /// Of these, from the first, committed and durable.
    pub durable: u64,
}

/// A flag that ends waits. Cloned into threads (file notifications) that wake their source.
#[derive(Debug, Clone, Default)]
pub struct Wake(Arc<(Mutex<WakeState>, Condvar)>);

#[derive(Debug, Default)]
struct WakeState {
    woken: bool,
    stopping: bool,
}

impl Wake {
    /// Ends the present or next [`Wake::wait`].
    pub fn wake(&self) {
        self.0.0.lock().woken = true;
        self.0.1.notify_all();
    }

    /// Ends this and all later waits.
    pub fn stop(&self) {
        self.0.0.lock().stopping = true;
        self.0.1.notify_all();
    }

    /// True after [`Wake::stop`].
    pub fn stopping(&self) -> bool {
        self.0.0.lock().stopping
    }

    /// Waits for `timeout`, a wake or a stop, whichever is first. True: stopping.
    pub fn wait(&self, timeout: Duration) -> bool {
        let mut state = self.0.0.lock();
        if !state.woken && !state.stopping {
            self.0.1.wait_for(&mut state, timeout);
        }
        state.woken = false;
        state.stopping
    }
}

/// What the pipeline offers to a source.
pub struct SourceContext {
    /// The source's name in the pipeline.
    pub name: Arc<str>,
    /// Where it stands.
    pub place: Place,
    /// How batches grow.
    pub batch: BatchPlan,
    /// Its counters. `SourceEvents` and `SourceBytes` are counted by the pipeline at `emit`;
    /// all others by the source.
    pub metrics: Arc<ComponentMetrics>,
    /// Ends waits; a clone may be given to other threads.
    pub wake: Wake,
    emit: Box<dyn Emit>,
}

impl SourceContext {
    /// Puts a context together.
    pub fn new(
        name: Arc<str>,
        batch: BatchPlan,
        metrics: Arc<ComponentMetrics>,
        wake: Wake,
        emit: Box<dyn Emit>,
    ) -> Self {
        SourceContext { name, place: Place::default(), batch, metrics, wake, emit }
    }

    /// See [`Emit::emit`].
    pub fn emit(&mut self, emission: Emission) -> Result<(), Stopped> {
        self.emit.emit(emission)
    }

    /// See [`Emit::settle`].
    pub fn settle(&mut self) -> Result<(), Stopped> {
        self.emit.settle()
    }

    /// See [`Emit::progress`].
    pub fn progress(&self) -> Progress {
        self.emit.progress()
    }

    /// See [`Emit::positions`].
    pub fn positions(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.emit.positions()
    }

    /// True when the source has to return soon. Events read but not emitted are read again later.
    pub fn stopping(&self) -> bool {
        self.wake.stopping()
    }

    /// Waits for `timeout`, a wake or a stop. `Err`: stopping.
    pub fn wait(&self, timeout: Duration) -> Result<(), Stopped> {
        if self.wake.wait(timeout) { Err(Stopped) } else { Ok(()) }
    }
}
