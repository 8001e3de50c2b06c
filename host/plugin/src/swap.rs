//! A place in a pipeline's chain, whose plugin is swapped when its file changes.
//!
//! A new file is read, validated, compiled and opened with the running configuration while the old version works on;
//! only then is it put in its place, between two batches. Whatever goes wrong changes nothing but the status. The old
//! version is gone when its last batch is, and the new one has stood its probation ([`crate::probation`]).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use flumen_pipeline::plan::{InterceptorPlan, PluginLimits};
use flumen_pipeline::{Interceptor, InterceptorVersion};
use parking_lot::Mutex;
use serde::Serialize;

use crate::abi::{Reads, Role};
use crate::error::LoadError;
use crate::file::{FileKind, Fingerprint, locate};
use crate::host::{Loaded, PluginHost};
use crate::limits;
use crate::probation::{Origin, Stamp, Trial};
use crate::services::Services;
use crate::shadow::{self, Shadow, ShadowBounds, ShadowError, ShadowReport};
use crate::stats::PluginStats;
use crate::version::PluginVersion;

/// A plugin at work in a pipeline.
pub struct PluginSlot {
    role: Role,
    plan: InterceptorPlan,
    dir: PathBuf,
    host: Weak<PluginHost>,
    services: Arc<Services>,
    /// What the next batch is stamped with.
    stamp: ArcSwap<Stamp>,
    shadow: Arc<ArcSwapOption<Shadow>>,
    this: Weak<PluginSlot>,
    state: Mutex<State>,
    /// Held while a file is loaded: one reload of a slot at a time.
    reloading: Mutex<()>,
}

/// What is known of the file and of past swaps.
#[derive(Debug)]
struct State {
    path: PathBuf,
    generation: u64,
    swaps: u64,
    rollbacks: u64,
    /// The content that was rolled back, or did not take over the state: it is not tried again by itself.
    refused: Option<Arc<str>>,
    /// Versions that were in place, the newest last, each as long as somebody holds it: a pipeline may go on with one of them.
    earlier: Vec<Weak<Stamp>>,
    last_swap_error: Option<String>,
    /// The state of the file that was tried last; `None`: there was no file.
    tried: Option<Fingerprint>,
}

impl State {
    fn remember(&mut self, stamp: &Arc<Stamp>) {
        self.earlier.retain(|earlier| earlier.strong_count() > 0);
        self.earlier.push(Arc::downgrade(stamp));
    }
}

/// What a reload did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SwapOutcome {
    /// The file's content is what runs already.
    Unchanged,
    /// A new version runs.
    Swapped {
        /// Hash of the old content.
        from: String,
        /// Hash of the new content.
        to: String,
    },
}

/// What `flumen status` shows of a plugin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SlotStatus {
    /// Its name in the pipeline.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// Component or core module.
    pub kind: FileKind,
    /// BLAKE3 of the file that runs, in hex.
    pub hash: String,
    /// Size of the file that runs.
    pub size_bytes: u64,
    /// 1 for the version that the agent started with, one more for each swap.
    pub version_generation: u64,
    /// Swaps that succeeded.
    pub swaps: u64,
    /// Versions that did not stand their probation, or did not take over the state.
    pub rollbacks: u64,
    /// The version that runs was swapped in and can still be rolled back.
    pub on_probation: bool,
    /// Why the file that is there now does not run; `None` if it does.
    pub last_swap_error: Option<String>,
    /// Columns that cross.
    pub reads: Reads,
    /// What it imports.
    pub imports: Vec<String>,
    /// What it did.
    pub stats: PluginStats,
}

impl PluginSlot {
    pub(crate) fn open(
        host: Weak<PluginHost>,
        role: Role,
        plan: InterceptorPlan,
        dir: &Path,
        patience: Duration,
    ) -> Result<Arc<PluginSlot>, LoadError> {
        let path = locate(&plan.plugin, dir);
        let strong = host.upgrade().ok_or_else(|| gone(&path))?;
        let tried = match Fingerprint::of(&path) {
            Ok(fingerprint) => fingerprint,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(LoadError::Missing { name: plan.plugin, path });
            }
            Err(source) => return Err(LoadError::read(&path, source)),
        };
        let services = Services::new(plan.name.as_str().into(), &plan.limits)
            .with_egress(plan.egress.as_ref())
            .map_err(|error| LoadError::Egress { path: path.clone(), error })?;
        let loaded = load_when_whole(&strong, &path, patience)?;
        strong.check_options(&loaded, role, &plan.config, &plan.limits)?;
        let version =
            strong.open_loaded(&loaded, role, &services, &plan.config, &plan.grants, plan.limits)?;
        let state = State {
            path,
            generation: 1,
            swaps: 0,
            rollbacks: 0,
            refused: None,
            earlier: Vec::new(),
            last_swap_error: None,
            tried: Some(tried),
        };
        let (state, reloading, dir) = (Mutex::new(state), Mutex::new(()), dir.to_owned());
        let shadow: Arc<ArcSwapOption<Shadow>> = Arc::default();
        Ok(Arc::new_cyclic(|this| {
            let stamp = Stamp::new(version, Origin::of(loaded), None, shadow.clone(), this.clone());
            let (stamp, this) = (ArcSwap::from_pointee(stamp), this.clone());
            PluginSlot { role, plan, dir, host, services, stamp, shadow, this, state, reloading }
        }))
    }

    /// Everything about it that a user may want to see.
    pub fn status(&self) -> SlotStatus {
        // In this order: a swap stores the version while it holds the state.
        let state = self.state.lock();
        let stamp = self.stamp.load_full();
        let (version, origin) = (&stamp.version, &stamp.origin);
        SlotStatus {
            name: self.plan.name.clone(),
            path: state.path.clone(),
            kind: origin.kind,
            hash: version.hash().to_owned(),
            size_bytes: origin.size_bytes,
            version_generation: state.generation,
            swaps: state.swaps,
            rollbacks: state.rollbacks,
            on_probation: stamp.is_on_probation(),
            last_swap_error: state.last_swap_error.clone(),
            reads: version.reads().clone(),
            imports: origin.imports.clone(),
            stats: self.services.stats(),
        }
    }

    /// Counters alone.
    pub fn stats(&self) -> PluginStats {
        self.services.stats()
    }

    /// What it was opened for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The version that runs.
    pub(crate) fn version(&self) -> Arc<PluginVersion> {
        self.stamp.load_full().version.clone()
    }

    /// A sink's: whether its destination keeps the cursor, so that every event arrives exactly once.
    pub fn recovers(&self) -> bool {
        self.stamp.load().version.recovers()
    }

    /// The plan that it was made from.
    pub fn plan(&self) -> &InterceptorPlan {
        &self.plan
    }

    /// Reads the file now and swaps if its content is new. An error changes nothing; it is also in the status.
    pub fn reload_now(&self) -> Result<SwapOutcome, LoadError> {
        let _one_at_a_time = self.reloading.lock();
        let path = locate(&self.plan.plugin, &self.dir);
        // Before the read: a change during the read differs from it, so it is seen as a change again.
        let tried = Fingerprint::of(&path).ok();
        let outcome = self.reload(&path);
        let mut state = self.state.lock();
        state.tried = tried;
        let plugin = self.plan.name.as_str();
        match &outcome {
            // What was rolled back stays told while its file is there.
            Ok(SwapOutcome::Unchanged) if state.refused.is_some() => {}
            Ok(SwapOutcome::Unchanged) => state.last_swap_error = None,
            Ok(SwapOutcome::Swapped { .. }) => {}
            Err(error @ LoadError::Missing { .. }) => {
                // Taken out on purpose, perhaps: no error yet.
                tracing::warn!(plugin, "the plugin's file is gone, what was loaded works on");
                state.last_swap_error = Some(error.to_string());
            }
            Err(error) => {
                let text = error.to_string();
                // A polled failure is logged once.
                if state.last_swap_error.as_ref() != Some(&text) {
                    tracing::error!(plugin, "plugin not swapped, the old version works on: {text}");
                }
                state.last_swap_error = Some(text);
            }
        }
        outcome
    }

    /// Whether the file's content is new and would run. Touches nothing.
    pub fn check_file(&self) -> Result<bool, LoadError> {
        let path = self.path();
        let host = self.host.upgrade().ok_or_else(|| gone(&path))?;
        if !path.exists() {
            return Err(LoadError::Missing { name: self.plan.plugin.clone(), path });
        }
        let file = host.read(&path)?;
        let is_refused = self.state.lock().refused.as_ref() == Some(&file.hash);
        if is_refused || *file.hash == *self.stamp.load().version.hash() {
            return Ok(false);
        }
        let (loaded, plan) = (host.load(file)?, &self.plan);
        host.check_options(&loaded, self.role, &plan.config, &plan.limits)?;
        host.open_loaded(&loaded, self.role, &self.services, &plan.config, &plan.grants, plan.limits)?;
        Ok(true)
    }

    fn reload(&self, path: &Path) -> Result<SwapOutcome, LoadError> {
        let host = self.host.upgrade().ok_or_else(|| gone(path))?;
        if !path.exists() {
            return Err(LoadError::Missing { name: self.plan.plugin.clone(), path: path.to_owned() });
        }
        let file = host.read(path)?;
        let old = self.stamp.load_full().version.clone();
        {
            let mut state = self.state.lock();
            if state.refused.as_ref() == Some(&file.hash) {
                return Ok(SwapOutcome::Unchanged);
            }
            state.refused = None;
        }
        if *file.hash == *old.hash() {
            return Ok(SwapOutcome::Unchanged);
        }
        let loaded = host.load(file)?;
        let plan = &self.plan;
        host.check_options(&loaded, self.role, &plan.config, &plan.limits)?;
        let version =
            host.open_loaded(&loaded, self.role, &self.services, &plan.config, &plan.grants, plan.limits)?;
        let (from, to) = (old.hash().to_owned(), version.hash().to_owned());
        let mut state = self.state.lock();
        // A version that has not stood its own probation is not what the next one is measured by.
        let proven = self.stamp.load().proven().unwrap_or_else(|| self.stamp.load_full());
        let has_trial = self.role == Role::Interceptor && plan.limits.probation.batches > 0;
        let trial = has_trial.then(|| Trial::new(proven, plan.limits.probation));
        let stamp = Stamp::new(version, Origin::of(loaded), trial, self.shadow.clone(), self.this.clone());
        state.remember(&self.stamp.swap(Arc::new(stamp)));
        state.path = path.to_owned();
        // With it: a version that is rolled back at once tells so afterwards.
        state.last_swap_error = None;
        state.generation += 1;
        state.swaps += 1;
        tracing::info!(plugin = plan.name, from, to, generation = state.generation, "plugin swapped");
        Ok(SwapOutcome::Swapped { from, to })
    }

    /// A version did not stand its probation: the one before it is back from the next batch on.
    pub(crate) fn roll_back(&self, from: &Stamp, to: &Arc<Stamp>, reason: &str) {
        let mut state = self.state.lock();
        let present = self.stamp.load_full();
        if !std::ptr::eq(Arc::as_ptr(&present), from) {
            return;
        }
        // The pipeline goes on with it if the other one does not take the state back.
        state.remember(&present);
        self.put_back(&mut state, &present, to, reason);
    }

    fn put_back(&self, state: &mut State, from: &Stamp, to: &Arc<Stamp>, reason: &str) {
        self.stamp.store(to.clone());
        let (hash, back) = (from.version.hash(), to.version.hash());
        let text = format!("rolled back to {back:.12}: {reason}");
        tracing::error!(plugin = self.plan.name, from = hash, to = back, "plugin rolled back: {reason}");
        state.refused = Some(hash.into());
        state.last_swap_error = Some(text);
        state.generation += 1;
        state.rollbacks += 1;
    }

    /// Lets another file process the batches that flow from now on, beside this one and without effect, within bounds; shows
    /// where they differ. Waits for it.
    pub fn shadow(&self, file: &Path, bounds: ShadowBounds) -> Result<ShadowReport, ShadowError> {
        let host = self.host.upgrade().ok_or_else(|| gone(file))?;
        let plan = &self.plan;
        if let Some(grant) = plan.grants.iter().find(|grant| !shadow::HARMLESS.contains(&grant.as_str())) {
            return Err(ShadowError::Effects(plan.name.clone(), grant.clone()));
        }
        let limits = PluginLimits { log_lines_per_s: 0, ..plan.limits };
        let version = host.open(file, &plan.name, &plan.config, &plan.grants, limits)?;
        shadow::run(&self.shadow, &plan.name, version, bounds)
    }

    /// Where the file is looked for: its directory is watched.
    pub(crate) fn path(&self) -> PathBuf {
        locate(&self.plan.plugin, &self.dir)
    }

    /// True if the file is not the one that was tried last.
    pub(crate) fn is_changed(&self) -> bool {
        Fingerprint::of(&self.path()).ok() != self.state.lock().tried
    }
}

impl Interceptor for PluginSlot {
    fn name(&self) -> &str {
        &self.plan.name
    }

    fn current(&self) -> Arc<dyn InterceptorVersion> {
        self.stamp.load_full()
    }

    /// The one that the pipeline goes on with is in place again. It need not be the one that a rollback leads to: another that is
    /// still on probation may have written the state. The pipeline holds it, so it is the newest that is still there.
    fn refused(&self, version: &Arc<dyn InterceptorVersion>, reason: &str) {
        let mut state = self.state.lock();
        let present = self.stamp.load_full();
        // The next one may be in its place already.
        if !std::ptr::addr_eq(Arc::as_ptr(&present), Arc::as_ptr(version)) {
            return;
        }
        let mut held = state.earlier.iter().rev().filter_map(Weak::upgrade);
        let Some(back) = held.find(|earlier| !Arc::ptr_eq(earlier, &present)) else { return };
        if back.proven().is_some_and(|before| Arc::ptr_eq(&before, &present)) {
            back.stay();
        }
        self.put_back(&mut state, &present, &back, &format!("it does not take over the state: {reason}"));
    }
}

fn gone(path: &Path) -> LoadError {
    LoadError::read(path, std::io::Error::other("the plugin host is shut down"))
}

impl std::fmt::Debug for PluginSlot {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("PluginSlot").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// Loads a file at the start of the agent. One that fails and was changed a moment ago is most likely being copied: an agent
/// that starts in that moment (after a crash, say) looks again instead of giving up.
fn load_when_whole(host: &PluginHost, path: &Path, patience: Duration) -> Result<Loaded, LoadError> {
    let started = Instant::now();
    let mut is_told = false;
    loop {
        // Before the read: what was fresh then may be old when a slow compiler says no.
        let (was_fresh, before) = (is_fresh(path), Fingerprint::of(path).ok());
        let outcome = host.read(path).and_then(|file| host.load(file));
        let may_be_whole_soon = was_fresh || Fingerprint::of(path).ok() != before;
        if outcome.is_ok() || !may_be_whole_soon || started.elapsed() >= patience {
            return outcome;
        }
        if !std::mem::replace(&mut is_told, true) {
            tracing::warn!(path = %path.display(), "the plugin's file does not load, but it is new: it may still be copied, so the start waits");
        }
        std::thread::sleep(limits::WATCH_QUIET);
    }
}

/// Whether the file was changed within [`limits::START_WAIT_MAX`]: a copy over a busy disk can stand still for seconds. The
/// clock of a file system may be a moment ahead of this process's, and a clock that was set back makes the file old.
fn is_fresh(path: &Path) -> bool {
    let changed = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    let age = |changed: SystemTime| changed.elapsed().unwrap_or_else(|ahead| ahead.duration());
    changed.is_ok_and(|changed| age(changed) < limits::START_WAIT_MAX)
}
