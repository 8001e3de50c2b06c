//! The trait of interceptors: a batch in, a batch out, and what could not be processed.

use std::sync::Arc;

use std::time::Duration;

use flumen_event::Batch;

use crate::state::Session;

/// A place in a chain. Its version may be swapped while the pipeline runs.
pub trait Interceptor: Send + Sync {
    /// The plugin's name in the pipeline.
    fn name(&self) -> &str;

    /// The version that batches are given to from now on. The pipeline asks once per batch, in the
    /// order of the batches, and the whole batch is processed by what it got: no batch is processed
    /// by half of each, and no later batch by an older version.
    fn current(&self) -> Arc<dyn InterceptorVersion>;

    /// This version did not take over the state of the one that the pipeline holds, which goes on: from now on that is the
    /// current one, also in the status.
    fn refused(&self, _version: &Arc<dyn InterceptorVersion>, _reason: &str) {}
}

/// One version of a plugin, opened with the running configuration.
pub trait InterceptorVersion: Send + Sync {
    /// Processes a batch. Called from several threads at once; failures are part of the answer:
    /// guilty rows are in `quarantined`, all others have been processed.
    fn process(&self, batch: Batch) -> Processed;

    /// The same for a plugin that keeps state: one call at a time. What it writes, and the events that it makes, are in the
    /// session.
    fn process_with(&self, batch: Batch, _session: &mut Session) -> Processed {
        self.process(batch)
    }

    /// What tells it from other versions: its content hash, in hex.
    fn hash(&self) -> &str {
        ""
    }

    /// Its own version, as it says.
    fn version(&self) -> &str {
        ""
    }

    /// Takes over the state of another version, `from` by its own version. An error is for a person, and keeps the other one.
    fn migrate(&self, _from: &str, _session: &mut Session) -> Result<(), String> {
        Ok(())
    }

    /// While it is on probation: the version that comes back if it does not stand it. The pipeline asks for a plugin that
    /// keeps state; without state a version sees to this itself.
    fn before(&self) -> Option<Arc<dyn InterceptorVersion>> {
        None
    }

    /// On probation it was given a batch or a tick. `has_failed`: the version before did better, and that counts.
    fn tried(&self, _has_failed: bool) {}

    /// How often it wants to be told that time passes; `None`: never.
    fn tick_every(&self) -> Option<Duration> {
        None
    }

    /// Time passed. `Err`: it failed, and wrote nothing.
    fn tick(&self, _session: &mut Session) -> Result<(), String> {
        Ok(())
    }
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

impl Processed {
    /// Rows that the plugin failed on. Those that it rejects are its work.
    pub fn failed(&self) -> u64 {
        let groups = self.quarantined.iter().filter(|group| !group.rejected);
        groups.map(|group| group.batch.rows() as u64).sum()
    }
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
