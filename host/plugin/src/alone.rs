//! A plugin without a pipeline: for its cases, benchmarks and trials. What it remembers is in memory.

use std::sync::Arc;

use flumen_event::Batch;
use flumen_journal::MemoryState;
use flumen_pipeline::plan::PluginLimits;
use flumen_pipeline::state::Session;
use flumen_pipeline::{InterceptorVersion, Processed};

use crate::stats::{self, PluginStats};
use crate::version::PluginVersion;

/// See the module.
pub struct Alone<V = Arc<PluginVersion>> {
    version: V,
    state: Arc<MemoryState>,
    name: Arc<str>,
}

impl Alone {
    /// A version that remembers nothing yet.
    pub fn new(version: Arc<PluginVersion>) -> Alone {
        Alone::of(version)
    }

    /// The same state, with another version.
    pub fn swap(&mut self, version: Arc<PluginVersion>) {
        self.version = version;
    }
}

impl<V: AsRef<PluginVersion>> Alone<V> {
    pub(crate) fn of(version: V) -> Self {
        let name = version.as_ref().name().into();
        Alone { version, state: Arc::default(), name }
    }

    /// Processes a batch; with it come the events that the plugin made. `now_ns`: the time it is told, else the clock's.
    pub fn process(&self, batch: Batch, now_ns: Option<i64>) -> (Processed, Vec<Batch>) {
        let mut session = self.session(now_ns);
        let processed = self.version.as_ref().process_with(batch, &mut session);
        (processed, self.commit(session))
    }

    /// Tells the plugin that time has passed; gives the events that it made.
    pub fn tick(&self, now_ns: Option<i64>) -> Result<Vec<Batch>, String> {
        let mut session = self.session(now_ns);
        self.version.as_ref().tick(&mut session)?;
        session.accept();
        Ok(self.commit(session))
    }

    /// What the version did so far.
    pub fn stats(&self) -> PluginStats {
        self.version.as_ref().stats()
    }

    /// Lets the version take over what another one remembered.
    pub fn migrate(&self, from: &str) -> Result<(), String> {
        let mut session = self.session(None);
        self.version.as_ref().migrate(from, &mut session)?;
        session.accept();
        self.commit(session);
        Ok(())
    }

    fn session(&self, now_ns: Option<i64>) -> Session {
        let now_ns = now_ns.unwrap_or_else(stats::now);
        Session::new(self.state.clone(), "alone", &self.name, PluginLimits::DEFAULT.state_bytes, now_ns)
    }

    fn commit(&self, mut session: Session) -> Vec<Batch> {
        let now_ns = session.now_ns();
        session.seal();
        let events = session.take_events();
        session.into_writes().iter().for_each(|writes| self.state.apply(writes, now_ns));
        events
    }
}
