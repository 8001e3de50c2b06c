//! The trait of interceptors: a batch in, a batch out, and what could not be processed.

use std::sync::Arc;

use flumen_event::Batch;

/// A place in a chain. Its version may be swapped while the pipeline runs.
pub trait Interceptor: Send + Sync {
    /// The plugin's name in the pipeline.
    fn name(&self) -> &str;

    /// The version that batches are given to from now on. The pipeline asks once per batch, in the
    /// order of the batches, and the whole batch is processed by what it got: no batch is processed
    /// by half of each, and no later batch by an older version.
    fn current(&self) -> Arc<dyn InterceptorVersion>;
}

/// One version of a plugin, opened with the running configuration.
pub trait InterceptorVersion: Send + Sync {
    /// Processes a batch. Called from several threads at once; failures are part of the answer:
    /// guilty rows are in `quarantined`, all others have been processed.
    fn process(&self, batch: Batch) -> Processed;
}

/// What became of a batch. Every input row is kept (perhaps changed or repeated), quarantined or dropped.
#[derive(Debug)]
pub struct Processed {
    /// Goes on, in order.
    pub kept: Batch,
    /// Could not be processed.
    pub quarantined: Vec<Quarantined>,
    /// Rows that the plugin left out on purpose (a filter's work).
    pub dropped: u64,
}

/// Events that left the flow, as they were when the interceptor got them.
#[derive(Debug, Clone)]
pub struct Quarantined {
    /// The events.
    pub batch: Batch,
    /// One reason per row.
    pub reasons: Vec<String>,
    /// Who: the plugin's or component's name.
    pub by: Arc<str>,
    /// The plugin's content hash, in hex; empty if it was not a plugin.
    pub hash: Arc<str>,
    /// True if the plugin rejected the rows itself (`on_reject` decides what becomes of them);
    /// false if the plugin failed on them (trap, timeout, memory, lying answer).
    pub rejected: bool,
}
