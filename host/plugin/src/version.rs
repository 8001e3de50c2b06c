//! One version of a plugin, opened with the running configuration, and its instances.
//!
//! An instance is one store with one owner: it is taken out of the idle ones for one call, and put back only if the call
//! went well. So a failure costs exactly one instance, and threads never wait for each other.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use flumen_event::{Applied, Batch};
use flumen_pipeline::plan::PluginLimits;
use flumen_pipeline::state::Session;
use flumen_pipeline::{InterceptorVersion, Processed, Quarantined};
use parking_lot::Mutex;

use crate::abi::{Guest, Linked, Reads};
use crate::alone::Alone;
use crate::answer;
use crate::byte_isolation;
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
    version: String,
    keeps_state: bool,
    reads: Reads,
    recovers: bool,
    tick_ms: u32,
    linked: Arc<dyn Linked>,
    services: Arc<Services>,
    host: Weak<PluginHost>,
    idle: Mutex<Vec<Instance>>,
    /// One that has done nothing yet, if making one takes so long that it is made in advance.
    spare: Mutex<Option<Instance>>,
    keeps_spare: bool,
    this: Weak<PluginVersion>,
    /// A decoder's.
    pub(crate) search: Mutex<byte_isolation::Spent>,
}

/// A guest and how much it has done.
pub(crate) struct Instance {
    pub(crate) guest: Box<dyn Guest>,
    pub(crate) batches: u64,
}

/// What a version is opened with.
pub(crate) struct Opening {
    pub(crate) hash: Arc<str>,
    /// The plugin's own version; empty if it tells none.
    pub(crate) version: String,
    pub(crate) keeps_state: bool,
    pub(crate) config: String,
    pub(crate) limits: PluginLimits,
    pub(crate) linked: Arc<dyn Linked>,
    pub(crate) services: Arc<Services>,
    pub(crate) host: Weak<PluginHost>,
}

impl PluginVersion {
    /// Makes a first instance and asks it what it reads.
    pub(crate) fn open(opening: Opening) -> Result<Arc<PluginVersion>, OpenFailure> {
        let Opening { hash, version, keeps_state, config, limits, linked, services, host } = opening;
        let mut version = PluginVersion {
            name: services.name.clone(),
            hash,
            version,
            keeps_state,
            tick_ms: 0,
            config,
            limits,
            reads: Reads::default(),
            recovers: false,
            linked,
            services,
            host,
            idle: Mutex::default(),
            spare: Mutex::default(),
            keeps_spare: false,
            this: Weak::new(),
            search: Mutex::default(),
        };
        let started = Instant::now();
        let mut guest = version.instantiate().map_err(OpenFailure::Failed)?;
        version.reads = checked(guest.open(&version.config)?)?;
        version.recovers = guest.recovers();
        version.tick_ms = guest.tick_ms();
        version.keeps_spare = started.elapsed() > limits::SPARE_WORTH && version.services.egress.is_none();
        version.idle.lock().push(Instance { guest, batches: 0 });
        bump(&version.services.counters.instances);
        let version = Arc::new_cyclic(|this| PluginVersion { this: this.clone(), ..version });
        version.ask_spare();
        Ok(version)
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

    /// A sink's: whether its destination keeps the cursor.
    pub(crate) fn recovers(&self) -> bool {
        self.recovers
    }

    pub(crate) fn services(&self) -> &Arc<Services> {
        &self.services
    }

    /// An instance for a sink to keep: one that waits, or a fresh one.
    pub(crate) fn take(&self) -> Result<Instance, Failure> {
        let idle = self.idle.lock().pop();
        idle.map_or_else(|| self.fresh(), Ok)
    }

    /// Whether an instance has done enough, so that a guest that leaks stays harmless. One that has done nothing never has:
    /// what it holds it needs, and so would the next one.
    pub(crate) fn is_worn(&self, instance: &Instance) -> bool {
        let PluginLimits { memory_bytes, recycle_batches, recycle_memory_percent, .. } = self.limits;
        let is_large =
            || instance.guest.memory_bytes() > memory_bytes / 100 * u64::from(recycle_memory_percent);
        instance.batches > 0 && (instance.batches >= recycle_batches || is_large())
    }

    /// What it did so far.
    pub fn stats(&self) -> PluginStats {
        self.services.stats()
    }

    /// Gives up the instances that are not at work.
    pub(crate) fn drop_idle(&self) {
        let idle = std::mem::take(&mut *self.idle.lock());
        let spare = self.spare.lock().take();
        drop((idle, spare));
    }

    /// Whether a fresh instance is there before it is needed.
    pub fn has_spare(&self) -> bool {
        self.spare.lock().is_some()
    }

    fn ask_spare(&self) {
        let host = self.host.upgrade().filter(|_| self.keeps_spare);
        if let Some(spares) = host.as_ref().and_then(|host| host.spares()) {
            spares.ask(self.this.clone());
        }
    }

    /// Makes a fresh instance for later. When there is no room for one, or it does not open, there is none.
    pub(crate) fn make_spare(&self) {
        if self.has_spare() {
            return;
        }
        let made = self.linked.instantiate(&self.services, &self.limits).and_then(|guest| self.opened(guest));
        *self.spare.lock() = made.ok();
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
                _ => return made,
            }
        }
    }

    /// Makes an instance and lets it go: for measuring.
    pub(crate) fn instantiate_once(&self) -> Result<(), Failure> {
        self.instantiate().map(drop)
    }

    /// The same, and opens it.
    pub(crate) fn open_once(&self) -> Result<(), Failure> {
        self.instantiate().and_then(|guest| self.opened(guest)).map(drop)
    }

    /// A fresh instance. One that does not open is tried once more: a whole batch depends on it.
    fn fresh(&self) -> Result<Instance, Failure> {
        let spare = self.spare.lock().take();
        let make = || self.opened(self.instantiate()?);
        let instance = spare.map_or_else(|| make().or_else(|_| make()), Ok)?;
        bump(&self.services.counters.instances);
        self.ask_spare();
        Ok(instance)
    }

    /// Opens a fresh instance as the first one was.
    fn opened(&self, mut guest: Box<dyn Guest>) -> Result<Instance, Failure> {
        match guest.open(&self.config) {
            Ok(reads) if reads == self.reads && guest.recovers() == self.recovers => {
                Ok(Instance { guest, batches: 0 })
            }
            Ok(_) => Err(Failure::Reopen("it wants to read other columns than before".to_owned())),
            Err(OpenFailure::Refused(text)) => Err(Failure::Reopen(text)),
            Err(OpenFailure::Failed(failure)) => Err(Failure::Reopen(failure.to_string())),
        }
    }

    fn put_back(&self, mut instance: Instance) {
        instance.batches += 1;
        let is_worn = self.is_worn(&instance);
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

    fn call(
        &self,
        session: &mut Session,
        rows: &Batch,
        time: Duration,
        is_fresh: bool,
    ) -> Result<Applied, Failure> {
        self.call_guest(is_fresh, |guest| {
            *guest.session() = std::mem::take(session);
            let difference = guest.process(rows, &self.reads, time);
            *session = std::mem::take(guest.session());
            Ok(answer::apply(difference?, rows)?)
        })
    }

    /// Calls an instance: one that is idle, or a fresh one. It works on only if the call went well.
    pub(crate) fn call_guest<Answer>(
        &self,
        is_fresh: bool,
        call: impl FnOnce(&mut dyn Guest) -> Result<Answer, Failure>,
    ) -> Result<Answer, Failure> {
        self.call_uncounted(is_fresh, call).inspect_err(|failure| self.services.counters.failure(failure))
    }

    fn call_uncounted<Answer>(
        &self,
        is_fresh: bool,
        call: impl FnOnce(&mut dyn Guest) -> Result<Answer, Failure>,
    ) -> Result<Answer, Failure> {
        let idle = if is_fresh { None } else { self.idle.lock().pop() };
        let mut instance = match idle {
            Some(instance) => instance,
            None => self.fresh()?,
        };
        let started = Instant::now();
        let answer = call(instance.guest.as_mut());
        self.services.counters.call(started.elapsed(), instance.guest.memory_bytes());
        let answer = answer?;
        self.put_back(instance);
        Ok(answer)
    }

    pub(crate) fn shared_hash(&self) -> &Arc<str> {
        &self.hash
    }

    pub(crate) fn limits(&self) -> &PluginLimits {
        &self.limits
    }

    /// Counts what a batch, or an input, cost.
    pub(crate) fn count(&self, was_retried: bool, was_bisected: bool, was_exhausted: bool) {
        let counters = &self.services.counters;
        let happened = [
            (was_retried, &counters.retries),
            (was_bisected, &counters.bisections),
            (was_exhausted, &counters.budgets_exhausted),
        ];
        happened.iter().filter(|(is_true, _)| *is_true).for_each(|(_, counter)| bump(counter));
    }

    pub(crate) fn quarantined(&self, batch: Batch, reasons: Vec<String>, rejected: bool) -> Quarantined {
        Quarantined { batch, reasons, by: self.name.clone(), hash: self.hash.clone(), rejected }
    }

    pub(crate) fn processed(&self, batch: Batch, isolated: Isolated) -> Processed {
        let Isolated { kept, rejected, failed, dropped, .. } = isolated;
        let quarantined = |batch, reasons, rejected| self.quarantined(batch, reasons, rejected);
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

/// Attempts of one batch. What one writes to the state counts when its rows go on.
struct Attempts<'a> {
    version: &'a PluginVersion,
    session: &'a mut Session,
}

impl Attempt for Attempts<'_> {
    fn attempt(&mut self, rows: &Batch, time: Duration, is_fresh: bool) -> Result<Applied, Failure> {
        let applied = self.version.call(self.session, rows, time, is_fresh);
        let applied =
            applied.and_then(|applied| self.session.fits().map(|()| applied).map_err(Failure::Refused));
        if applied.is_err() {
            self.session.reject();
        }
        applied
    }

    fn settle(&mut self, goes_on: bool) {
        if goes_on { self.session.accept() } else { self.session.reject() }
    }
}

impl InterceptorVersion for PluginVersion {
    fn process(&self, batch: Batch) -> Processed {
        match self.keeps_state {
            // Outside of a pipeline nothing is remembered from one batch to the next.
            true => Alone::of(self).process(batch, None).0,
            false => self.process_with(batch, &mut Session::default()),
        }
    }

    fn process_with(&self, batch: Batch, session: &mut Session) -> Processed {
        if batch.is_empty() {
            return Processed { kept: batch, quarantined: Vec::new(), dropped: 0 };
        }
        let mut attempts = Attempts { version: self, session };
        let isolated = isolation::isolate(&mut attempts, &batch, self.limits.time);
        self.count(isolated.was_retried, isolated.was_bisected, isolated.was_exhausted);
        self.processed(batch, isolated)
    }

    fn hash(&self) -> &str {
        &self.hash
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn migrate(&self, from: &str, session: &mut Session) -> Result<(), String> {
        self.with_state(session, |guest| match guest.migrate(from) {
            Ok(()) => Ok(()),
            Err(OpenFailure::Refused(text)) => Err(Failure::Refused(text)),
            Err(OpenFailure::Failed(failure)) => Err(failure),
        })
    }

    fn tick_every(&self) -> Option<Duration> {
        (self.tick_ms > 0).then(|| Duration::from_millis(u64::from(self.tick_ms)))
    }

    fn tick(&self, session: &mut Session) -> Result<(), String> {
        let now_ns = session.now_ns();
        self.with_state(session, |guest| guest.tick(now_ns, self.limits.time))
    }
}

impl PluginVersion {
    /// A call that has no rows: when it fails it is tried once more, by a fresh instance.
    fn with_state(
        &self,
        session: &mut Session,
        call: impl Fn(&mut dyn Guest) -> Result<(), Failure>,
    ) -> Result<(), String> {
        let mut attempt = |is_fresh| {
            let called = self.call_guest(is_fresh, |guest| {
                *guest.session() = std::mem::take(session);
                let called = call(guest);
                *session = std::mem::take(guest.session());
                called
            });
            called.inspect_err(|_| session.reject())
        };
        attempt(false).or_else(|_| attempt(true)).map_err(|failure| failure.to_string())
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

impl AsRef<PluginVersion> for PluginVersion {
    fn as_ref(&self) -> &PluginVersion {
        self
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
