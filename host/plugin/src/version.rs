//! One version of a plugin, opened with the running configuration, and its instances.
//!
//! An instance is one store with one owner: it is taken out of the idle ones for one call, and put back only if the call
//! went well. So a failure costs exactly one instance, and threads never wait for each other.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use flumen_event::{Applied, Batch};
use flumen_pipeline::plan::PluginLimits;
use flumen_pipeline::{InterceptorVersion, Processed, Quarantined};
use parking_lot::Mutex;

use crate::abi::{Guest, Linked, Reads};
use crate::answer;
use crate::failure::{Failure, OpenFailure};
use crate::host::PluginHost;
use crate::isolation::{self, Attempt, Isolated};
use crate::limits;
use crate::services::Services;
use crate::stats::{PluginStats, bump};

/// One version of a plugin: what batches are given to.
pub struct PluginVersion {
    name: Arc<str>,
    hash: Arc<str>,
    config: String,
    limits: PluginLimits,
    reads: Reads,
    linked: Arc<dyn Linked>,
    services: Arc<Services>,
    host: Weak<PluginHost>,
    idle: Mutex<Vec<Instance>>,
}

/// A guest and how much it has done.
pub(crate) struct Instance {
    guest: Box<dyn Guest>,
    batches: u64,
}

/// What a version is opened with.
pub(crate) struct Opening {
    pub(crate) hash: Arc<str>,
    pub(crate) config: String,
    pub(crate) limits: PluginLimits,
    pub(crate) linked: Arc<dyn Linked>,
    pub(crate) services: Arc<Services>,
    pub(crate) host: Weak<PluginHost>,
}

impl PluginVersion {
    /// Makes a first instance and asks it what it reads.
    pub(crate) fn open(opening: Opening) -> Result<Arc<PluginVersion>, OpenFailure> {
        let Opening { hash, config, limits, linked, services, host } = opening;
        let mut version = PluginVersion {
            name: services.name.clone(),
            hash,
            config,
            limits,
            reads: Reads::default(),
            linked,
            services,
            host,
            idle: Mutex::default(),
        };
        let mut guest = version.instantiate().map_err(OpenFailure::Failed)?;
        version.reads = checked(guest.open(&version.config)?)?;
        version.idle.lock().push(Instance { guest, batches: 0 });
        Ok(Arc::new(version))
    }

    /// The plugin's name in the pipeline.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The plugin's content hash, in hex.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The columns that cross.
    pub fn reads(&self) -> &Reads {
        &self.reads
    }

    /// What it did so far.
    pub fn stats(&self) -> PluginStats {
        self.services.stats()
    }

    /// Gives up the instances that are not at work.
    pub(crate) fn drop_idle(&self) {
        let idle = std::mem::take(&mut *self.idle.lock());
        drop(idle);
    }

    fn instantiate(&self) -> Result<Box<dyn Guest>, Failure> {
        let deadline = Instant::now() + limits::INSTANCE_WAIT_MAX;
        loop {
            let made = self.linked.instantiate(&self.services, &self.limits);
            match (&made, self.host.upgrade()) {
                // A call in progress ends by its deadline, so waiting makes room.
                (Err(Failure::HostFull(_)), Some(host)) if Instant::now() < deadline => {
                    host.drop_idle();
                    std::thread::sleep(limits::EPOCH_TICK);
                }
                _ => return made.inspect(|_| bump(&self.services.counters.instances)),
            }
        }
    }

    /// Makes an instance and lets it go: for measuring.
    pub(crate) fn instantiate_once(&self) -> Result<(), Failure> {
        self.opened().map(|_| ())
    }

    /// A fresh instance. One that does not open is tried once more: a whole batch depends on it.
    fn fresh(&self) -> Result<Instance, Failure> {
        self.opened().or_else(|_| self.opened())
    }

    /// A fresh instance, opened as the first one was.
    fn opened(&self) -> Result<Instance, Failure> {
        let mut guest = self.instantiate()?;
        match guest.open(&self.config) {
            Ok(reads) if reads == self.reads => Ok(Instance { guest, batches: 0 }),
            Ok(_) => Err(Failure::Reopen("it wants to read other columns than before".to_owned())),
            Err(OpenFailure::Refused(text)) => Err(Failure::Reopen(text)),
            Err(OpenFailure::Failed(failure)) => Err(Failure::Reopen(failure.to_string())),
        }
    }

    fn put_back(&self, mut instance: Instance) {
        instance.batches += 1;
        let PluginLimits { memory_bytes, recycle_batches, recycle_memory_percent, .. } = self.limits;
        let is_worn = instance.batches >= recycle_batches
            || instance.guest.memory_bytes() > memory_bytes / 100 * u64::from(recycle_memory_percent);
        let mut idle = self.idle.lock();
        if !is_worn && idle.len() < limits::IDLE_INSTANCES_MAX {
            idle.push(instance);
        } else {
            if is_worn {
                bump(&self.services.counters.recycled);
            }
            // Unmapping takes longer than the lock should be held.
            drop(idle);
            drop(instance);
        }
    }

    fn call(&self, rows: &Batch, time: Duration, is_fresh: bool) -> Result<Applied, Failure> {
        let idle = if is_fresh { None } else { self.idle.lock().pop() };
        let mut instance = match idle {
            Some(instance) => instance,
            None => self.fresh()?,
        };
        let started = Instant::now();
        let answer = instance.guest.process(rows, &self.reads, time);
        self.services.counters.call(started.elapsed(), instance.guest.memory_bytes());
        let applied = answer::apply(answer?, rows)?;
        self.put_back(instance);
        Ok(applied)
    }

    fn processed(&self, batch: Batch, isolated: Isolated) -> Processed {
        let Isolated { kept, rejected, failed, dropped, .. } = isolated;
        let quarantined = |batch, reasons, rejected| Quarantined {
            batch,
            reasons,
            by: self.name.clone(),
            hash: self.hash.clone(),
            rejected,
        };
        let kept = match Batch::concat(&kept) {
            Ok(kept) => kept,
            // Only headers can be too many here: rows and bytes were counted on the way.
            Err(error) => {
                let reasons = vec![
                    format!("the outputs of this batch's parts do not fit together: {error}");
                    batch.rows()
                ];
                let quarantined = vec![quarantined(batch, reasons, false)];
                return Processed { kept: Batch::empty(), quarantined, dropped: 0 };
            }
        };
        let rejected = rejected.into_iter().map(|(batch, reasons)| quarantined(batch, reasons, true));
        let failed = failed.into_iter().map(|(batch, reason)| {
            let reasons = vec![reason; batch.rows()];
            quarantined(batch, reasons, false)
        });
        Processed { kept, quarantined: rejected.chain(failed).collect(), dropped }
    }
}

impl Attempt for &PluginVersion {
    fn attempt(&mut self, rows: &Batch, time: Duration, is_fresh: bool) -> Result<Applied, Failure> {
        self.call(rows, time, is_fresh).inspect_err(|failure| self.services.counters.failure(failure))
    }
}

impl InterceptorVersion for PluginVersion {
    fn process(&self, batch: Batch) -> Processed {
        if batch.is_empty() {
            return Processed { kept: batch, quarantined: Vec::new(), dropped: 0 };
        }
        let isolated = isolation::isolate(&mut &*self, &batch, self.limits.time);
        let counters = &self.services.counters;
        let happened = [
            (isolated.was_retried, &counters.retries),
            (isolated.was_bisected, &counters.bisections),
            (isolated.was_exhausted, &counters.budgets_exhausted),
        ];
        happened.iter().filter(|(is_true, _)| *is_true).for_each(|(_, counter)| bump(counter));
        self.processed(batch, isolated)
    }
}

/// The headers that a plugin wants to read have to be possible names, each once.
fn checked(reads: Reads) -> Result<Reads, OpenFailure> {
    let max = flumen_event::limits::HEADER_NAME_BYTES_MAX;
    let mut names = HashSet::new();
    let wrong = |text: String| Err(OpenFailure::Failed(Failure::Refused(text)));
    if reads.headers.len() > flumen_event::limits::HEADERS_MAX {
        return wrong(format!(
            "it wants to read {} headers, more than an event can have",
            reads.headers.len()
        ));
    }
    for name in &reads.headers {
        if name.is_empty() || name.len() > max {
            return wrong(format!("it wants to read a header whose name is empty or over {max} bytes"));
        }
        if !names.insert(name) {
            return wrong(format!("it wants to read the header {name:?} twice"));
        }
    }
    Ok(reads)
}

impl From<Failure> for OpenFailure {
    fn from(failure: Failure) -> OpenFailure {
        OpenFailure::Failed(failure)
    }
}

impl std::fmt::Debug for PluginVersion {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("PluginVersion")
            .field("name", &self.name)
            .field("hash", &self.hash)
            .finish_non_exhaustive()
    }
}
