//! A place in a pipeline's chain, whose plugin is swapped when its file changes.
//!
//! A new file is read, validated, compiled and opened with the running configuration while the old version works on;
//! only then is it put in its place, between two batches. Whatever goes wrong changes nothing but the status. The old
//! version is gone when its last batch is.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use flumen_pipeline::plan::InterceptorPlan;
use flumen_pipeline::{Interceptor, InterceptorVersion};
use parking_lot::Mutex;
use serde::Serialize;

use crate::abi::{Reads, Role};
use crate::error::LoadError;
use crate::file::{FileKind, Fingerprint, PluginFile, locate};
use crate::host::{Loaded, PluginHost};
use crate::limits;
use crate::services::Services;
use crate::stats::PluginStats;
use crate::version::PluginVersion;

/// A plugin at work in a pipeline.
pub struct PluginSlot {
    role: Role,
    plan: InterceptorPlan,
    dir: PathBuf,
    host: Weak<PluginHost>,
    services: Arc<Services>,
    version: ArcSwap<PluginVersion>,
    state: Mutex<State>,
    /// Held while a file is loaded: one reload of a slot at a time.
    reloading: Mutex<()>,
}

/// What is known of the file and of past swaps.
#[derive(Debug)]
struct State {
    path: PathBuf,
    kind: FileKind,
    size_bytes: u64,
    imports: Vec<String>,
    generation: u64,
    swaps: u64,
    last_swap_error: Option<String>,
    /// The state of the file that was tried last; `None`: there was no file.
    tried: Option<Fingerprint>,
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
        let patience = if strong.is_watching() { limits::START_WAIT_MAX } else { Duration::ZERO };
        let loaded = load_when_whole(&strong, &path, patience)?;
        strong.check_options(&loaded, &plan.config)?;
        let version =
            strong.open_loaded(&loaded, role, &services, &plan.config, &plan.grants, plan.limits)?;
        let state = State {
            path,
            kind: loaded.file.kind,
            size_bytes: loaded.file.bytes.len() as u64,
            imports: loaded.shape.imports,
            generation: 1,
            swaps: 0,
            last_swap_error: None,
            tried: Some(tried),
        };
        let (state, reloading) = (Mutex::new(state), Mutex::new(()));
        let (dir, version) = (dir.to_owned(), ArcSwap::new(version));
        Ok(Arc::new(PluginSlot { role, plan, dir, host, services, version, state, reloading }))
    }

    /// Everything about it that a user may want to see.
    pub fn status(&self) -> SlotStatus {
        // In this order: a swap stores the version while it holds the state.
        let state = self.state.lock();
        let version = self.version.load_full();
        SlotStatus {
            name: self.plan.name.clone(),
            path: state.path.clone(),
            kind: state.kind,
            hash: version.hash().to_owned(),
            size_bytes: state.size_bytes,
            version_generation: state.generation,
            swaps: state.swaps,
            last_swap_error: state.last_swap_error.clone(),
            reads: version.reads().clone(),
            imports: state.imports.clone(),
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
        self.version.load_full()
    }

    /// A sink's: whether its destination keeps the cursor, so that every event arrives exactly once.
    pub fn recovers(&self) -> bool {
        self.version.load().recovers()
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
            Ok(SwapOutcome::Unchanged) => state.last_swap_error = None,
            Ok(SwapOutcome::Swapped { from, to }) => {
                state.last_swap_error = None;
                tracing::info!(plugin, from, to, generation = state.generation, "plugin swapped");
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

    fn reload(&self, path: &Path) -> Result<SwapOutcome, LoadError> {
        let host = self.host.upgrade().ok_or_else(|| gone(path))?;
        if !path.exists() {
            return Err(LoadError::Missing { name: self.plan.plugin.clone(), path: path.to_owned() });
        }
        let file = PluginFile::read(path)?;
        let old = self.version.load_full();
        if *file.hash == *old.hash() {
            return Ok(SwapOutcome::Unchanged);
        }
        let loaded = host.load(file)?;
        let plan = &self.plan;
        host.check_options(&loaded, &plan.config)?;
        let version =
            host.open_loaded(&loaded, self.role, &self.services, &plan.config, &plan.grants, plan.limits)?;
        let outcome = SwapOutcome::Swapped { from: old.hash().to_owned(), to: version.hash().to_owned() };
        let mut state = self.state.lock();
        self.version.store(version);
        state.path = path.to_owned();
        state.kind = loaded.file.kind;
        state.size_bytes = loaded.file.bytes.len() as u64;
        state.imports = loaded.shape.imports;
        state.generation += 1;
        state.swaps += 1;
        Ok(outcome)
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
        self.version.load_full()
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
        let outcome = PluginFile::read(path).and_then(|file| host.load(file));
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
