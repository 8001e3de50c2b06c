//! A sink without a pipeline: for its cases, benchmarks and trials.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use flumen_event::{Batch, Rejection};
use flumen_pipeline::plan::PluginLimits;

use crate::abi::{Outcome, Reads, Role};
use crate::answer::{self, RawAnswer};
use crate::error::LoadError;
use crate::failure::Failure;
use crate::host::PluginHost;
use crate::outside::Outside;
use crate::services::Services;
use crate::stats::PluginStats;
use crate::version::{Instance, PluginVersion};

/// See the module.
pub struct SinkAlone {
    version: Arc<PluginVersion>,
    /// Gone after whatever leaves it in doubt, as in a pipeline.
    held: Option<Instance>,
}

/// Why a call of a sink came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkFailure {
    /// It said so, in these words.
    Said(String),
    /// It trapped, took too long, or lied.
    Broke(String),
}

impl PluginHost {
    /// Opens a sink; what it needs is granted.
    pub fn open_sink(
        &self,
        path: &Path,
        name: &str,
        config: &str,
        outside: Outside,
    ) -> Result<SinkAlone, LoadError> {
        let loaded = self.load(self.read(path)?)?;
        let limits = PluginLimits::default();
        let services = Services::new(name.into(), &limits).with_outside(outside);
        let needs = &loaded.shape.needs;
        self.open_loaded(&loaded, Role::Sink, &services, config, needs, limits).map(SinkAlone::new)
    }
}

impl SinkAlone {
    pub(crate) fn new(version: Arc<PluginVersion>) -> SinkAlone {
        SinkAlone { version, held: None }
    }

    /// The columns that cross.
    #[must_use]
    pub fn reads(&self) -> &Reads {
        self.version.reads()
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> PluginStats {
        self.version.stats()
    }

    /// The cursor that its destination has; nothing, too, if it does not recover.
    pub fn recover(&mut self) -> Result<Option<Vec<u8>>, SinkFailure> {
        match self.version.recovers() {
            true => self.call(|instance, _| instance.guest.recover()),
            false => Ok(None),
        }
    }

    /// Delivers a batch of at least one row.
    pub fn deliver(&mut self, batch: &Batch, cursor: &[u8]) -> Result<Outcome, SinkFailure> {
        self.call(|instance, reads| {
            let outcome = instance.guest.deliver(batch, reads, cursor)?;
            instance.batches += 1;
            match outcome {
                Outcome::Delivered(rejected) => checked(rejected, batch).map(Outcome::Delivered),
                retry @ Outcome::Retry { .. } => Ok(retry),
            }
        })
    }

    fn call<Answer>(
        &mut self,
        call: impl FnOnce(&mut Instance, &Reads) -> Result<Answer, Failure>,
    ) -> Result<Answer, SinkFailure> {
        let held = self.held.take().filter(|held| !self.version.is_worn(held));
        let mut instance = match held {
            Some(held) => held,
            None => self.version.take().map_err(told)?,
        };
        let started = Instant::now();
        let answer = call(&mut instance, self.version.reads());
        self.version.services().counters.call(started.elapsed(), instance.guest.memory_bytes());
        let answer = answer.map_err(told)?;
        self.held = Some(instance);
        Ok(answer)
    }
}

/// Rejected rows, held against the batch.
fn checked(rejected: Vec<(u32, String)>, batch: &Batch) -> Result<Vec<(u32, String)>, Failure> {
    let difference = answer::decode(RawAnswer { rejected, ..RawAnswer::default() }, batch.rows())?;
    let rejected =
        difference.rejected.iter().map(|Rejection { row, reason }| (*row, reason.clone())).collect();
    answer::apply(difference, batch)?;
    Ok(rejected)
}

fn told(failure: Failure) -> SinkFailure {
    match failure {
        Failure::Refused(text) => SinkFailure::Said(text),
        failure => SinkFailure::Broke(failure.to_string()),
    }
}
