//! The plugin host: one engine, one compile cache, and all plugins of the process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use flumen_pipeline::plan::{InterceptorPlan, PluginLimits};
use parking_lot::Mutex;
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::abi::{self, Description, Role, Shape};
use crate::cache::{Cache, Entry, Key, Miss};
use crate::engine;
use crate::error::{HostError, LoadError};
use crate::failure::OpenFailure;
use crate::file::PluginFile;
use crate::limits;
use crate::options;
use crate::services::Services;
use crate::spares::Spares;
use crate::swap::PluginSlot;
use crate::version::{Opening, PluginVersion};
use crate::watch::Watch;

/// How the plugin host is set up.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Compiled plugins are kept here; made if it is not there, private to this user.
    pub cache_dir: PathBuf,
    /// Where others of this user keep theirs: what is there is not compiled again. Left alone otherwise.
    pub other_caches: Vec<PathBuf>,
    /// Whether the files of slots are watched. Commands that load a plugin once need it not.
    pub watch: bool,
}

impl HostConfig {
    /// With this cache, watching.
    pub fn new(cache_dir: impl Into<PathBuf>) -> HostConfig {
        HostConfig { cache_dir: cache_dir.into(), other_caches: Vec::new(), watch: true }
    }
}

/// The only thing that knows of WebAssembly in a process. Its threads end when it and all its plugins are gone.
pub struct PluginHost {
    engine: Engine,
    engine_fingerprint: blake3::Hash,
    pub(crate) cache: Cache,
    other_caches: Vec<PathBuf>,
    /// One compilation at a time: a large component takes half a gigabyte.
    compiling: Mutex<()>,
    versions: Mutex<Vec<Weak<PluginVersion>>>,
    watch: Option<Watch>,
    /// Of a running agent, as the watch.
    spares: Option<Spares>,
    this: Weak<PluginHost>,
}

/// A file that was found fit: compiled, its imports known.
pub(crate) struct Loaded {
    pub(crate) file: PluginFile,
    pub(crate) component: Component,
    pub(crate) shape: Shape,
    /// Time for making the component and compiling it; `None` if it came from the cache.
    pub(crate) compiled: Option<Duration>,
}

/// Nothing is written to the log while a file is looked at.
const QUIET: PluginLimits = PluginLimits { log_lines_per_s: 0, ..PluginLimits::DEFAULT };

impl PluginHost {
    /// Starts the engine, opens the cache and starts the threads that watch deadlines and files.
    pub fn new(config: HostConfig) -> Result<Arc<PluginHost>, HostError> {
        let engine = engine::new()?;
        let cache = Cache::open(&config.cache_dir)?;
        let (watch, spares) = match config.watch {
            true => (Some(Watch::start()?), Some(Spares::start()?)),
            false => (None, None),
        };
        Ok(Arc::new_cyclic(|this| PluginHost {
            engine_fingerprint: engine::fingerprint(&engine),
            engine,
            cache,
            other_caches: config.other_caches,
            compiling: Mutex::new(()),
            versions: Mutex::default(),
            watch,
            spares,
            this: this.clone(),
        }))
    }

    /// Opens a plugin as the pipeline says, from `plugin_dir/NAME.wasm` or the path that the plan gives, and from now on
    /// swaps it when its file changes.
    pub fn slot(&self, plan: InterceptorPlan, plugin_dir: &Path) -> Result<Arc<PluginSlot>, LoadError> {
        let patience = if self.is_watching() { limits::START_WAIT_MAX } else { Duration::ZERO };
        self.slot_within(Role::Interceptor, plan, plugin_dir, patience)
    }

    /// The same for another role.
    pub fn slot_of(
        &self,
        role: Role,
        plan: InterceptorPlan,
        plugin_dir: &Path,
    ) -> Result<Arc<PluginSlot>, LoadError> {
        let patience = if self.is_watching() { limits::START_WAIT_MAX } else { Duration::ZERO };
        self.slot_within(role, plan, plugin_dir, patience)
    }

    /// The same; a file that does not load, but was changed a moment ago, is looked at again for this long.
    pub fn slot_within(
        &self,
        role: Role,
        plan: InterceptorPlan,
        plugin_dir: &Path,
        patience: Duration,
    ) -> Result<Arc<PluginSlot>, LoadError> {
        let slot = PluginSlot::open(self.this.clone(), role, plan, plugin_dir, patience)?;
        if let Some(watch) = &self.watch {
            watch.add(&slot);
        }
        Ok(slot)
    }

    /// Opens a plugin once, without watching its file.
    pub fn open(
        &self,
        path: &Path,
        name: &str,
        config: &str,
        grants: &[String],
        limits: PluginLimits,
    ) -> Result<Arc<PluginVersion>, LoadError> {
        self.open_as(Role::Interceptor, path, name, config, grants, limits)
    }

    /// The same for a plugin of another role.
    pub fn open_as(
        &self,
        role: Role,
        path: &Path,
        name: &str,
        config: &str,
        grants: &[String],
        limits: PluginLimits,
    ) -> Result<Arc<PluginVersion>, LoadError> {
        let loaded = self.load(self.read(path)?)?;
        let services = Services::new(name.into(), &limits);
        self.open_loaded(&loaded, role, &services, config, grants, limits)
    }

    /// Whether it serves a running agent, and not one look at a file.
    pub(crate) fn is_watching(&self) -> bool {
        self.watch.is_some()
    }

    pub(crate) fn spares(&self) -> Option<&Spares> {
        self.spares.as_ref()
    }

    /// Reads a plugin's file, or as much of it as is not known.
    pub(crate) fn read(&self, path: &Path) -> Result<PluginFile, LoadError> {
        PluginFile::read(path, self.cache.hashes())
    }

    pub(crate) fn load(&self, file: PluginFile) -> Result<Loaded, LoadError> {
        let (component, compiled) = self.compile(&file)?;
        let shape = abi::shape(&self.engine, &component, &file.path)?;
        Ok(Loaded { file, component, shape, compiled })
    }

    pub(crate) fn open_loaded(
        &self,
        loaded: &Loaded,
        role: Role,
        services: &Arc<Services>,
        config: &str,
        grants: &[String],
        limits: PluginLimits,
    ) -> Result<Arc<PluginVersion>, LoadError> {
        let Loaded { file, component, shape, .. } = loaded;
        let linked = abi::link(&self.engine, component, shape, role, grants, &file.path)?.into();
        // Whose state it takes over is told by versions.
        let keeps_state = shape.needs.iter().any(|power| power == "state");
        let version = match keeps_state {
            true => self.describe(loaded, &limits)?.version,
            false => String::new(),
        };
        let opening = Opening {
            hash: file.hash.clone(),
            version,
            keeps_state,
            config: config.to_owned(),
            limits,
            linked,
            services: services.clone(),
            host: self.this.clone(),
        };
        let path = file.path.clone();
        let version = PluginVersion::open(opening).map_err(|failure| match failure {
            OpenFailure::Refused(text) => LoadError::Refused { path, text },
            OpenFailure::Failed(failure) => LoadError::Open { path, reason: failure.to_string() },
        })?;
        let mut versions = self.versions.lock();
        versions.retain(|version| version.strong_count() > 0);
        versions.push(Arc::downgrade(&version));
        Ok(version)
    }

    /// Holds a configuration against what the plugin tells of its options. A plugin for another place is left to
    /// [`Self::open_loaded`], which says so: its options are not what is wrong.
    pub(crate) fn check_options(
        &self,
        loaded: &Loaded,
        role: Role,
        config: &str,
        limits: &PluginLimits,
    ) -> Result<(), LoadError> {
        if !abi::fits(&loaded.shape, role) {
            return Ok(());
        }
        let path = || loaded.file.path.clone();
        let schema = self.describe(loaded, limits)?.options;
        match options::check(&schema, config) {
            Ok(errors) if errors.is_empty() => Ok(()),
            Ok(errors) => Err(LoadError::Options { path: path(), errors }),
            Err(reason) => Err(LoadError::Schema { path: path(), reason }),
        }
    }

    /// What a plugin tells about itself. An instance that needs more than the usual limits to be made at all is given what its
    /// place gives; one whose place gives less is only asked here, so it is not held to that.
    pub(crate) fn describe(&self, loaded: &Loaded, limits: &PluginLimits) -> Result<Description, LoadError> {
        let Loaded { file, component, shape, .. } = loaded;
        let limits = PluginLimits {
            time: limits.time.max(QUIET.time),
            memory_bytes: limits.memory_bytes.max(QUIET.memory_bytes),
            ..QUIET
        };
        let services = Services::new("describe".into(), &limits);
        abi::describe(&self.engine, component, shape, &services, &limits, &file.path)
    }

    /// Gives up all instances that are not at work, to make room for one that has work.
    pub(crate) fn drop_idle(&self) {
        let versions: Vec<_> = self.versions.lock().iter().filter_map(Weak::upgrade).collect();
        versions.iter().for_each(|version| version.drop_idle());
    }

    fn compile(&self, file: &PluginFile) -> Result<(Component, Option<Duration>), LoadError> {
        let key = Key::new(&file.hash, &self.engine_fingerprint);
        if let Some(component) = self.cached(&key) {
            return Ok((component, None));
        }
        let _one_at_a_time = self.compiling.lock();
        // Another thread may have compiled the same file meanwhile, and another process before.
        let found = self.cached(&key).or_else(|| self.copied(&key));
        if let Some(component) = found {
            return Ok((component, None));
        }
        let started = Instant::now();
        let bytes = file.component(&self.engine)?;
        let component = self.compile_bytes(&bytes).map_err(|reason| {
            let path = file.path.clone();
            match reason.contains("failed to parse WebAssembly") || reason.contains("(at offset 0x") {
                true => LoadError::Malformed { path, reason },
                false => LoadError::Compile { path, reason },
            }
        })?;
        let took = started.elapsed();
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(plugin = %file.path.display(), ms, "plugin compiled");
        let written = component.serialize().map_err(|error| format!("{error:#}"));
        let written = written.and_then(|code| self.cache.put(&key, &code).map_err(|error| error.to_string()));
        if let Err(reason) = written {
            tracing::warn!(plugin = %file.path.display(), "the compiled plugin is not kept: {reason}");
        }
        Ok((component, Some(took)))
    }

    /// A bug of the compiler that a file brings out is that file's error: the agent goes on.
    fn compile_bytes(&self, bytes: &[u8]) -> Result<Component, String> {
        let compile = std::panic::AssertUnwindSafe(|| Component::from_binary(&self.engine, bytes));
        match std::panic::catch_unwind(compile) {
            Ok(compiled) => compiled.map_err(|error| format!("{error:#}")),
            Err(_) => Err("the compiler failed on it; please report it with the file".to_owned()),
        }
    }

    /// Takes an entry over from another cache.
    fn copied(&self, key: &Key) -> Option<Component> {
        let find = |dir: &PathBuf| Cache::existing(dir)?.get(key).ok()?.read().ok();
        let code = self.other_caches.iter().find_map(find)?;
        self.cache.put(key, &code).ok()?;
        self.cached(key)
    }

    fn cached(&self, key: &Key) -> Option<Component> {
        let entry = match self.cache.get(key) {
            Ok(entry) => entry,
            Err(Miss::Absent) => return None,
            Err(Miss::Unfit(reason)) => {
                tracing::warn!("a compiled plugin is made again: {reason}");
                self.cache.remove(key);
                return None;
            }
        };
        match self.deserialize(entry) {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!("a compiled plugin is made again: {error:#}");
                self.cache.remove(key);
                None
            }
        }
    }

    #[allow(unsafe_code)]
    fn deserialize(&self, entry: Entry) -> wasmtime::Result<Component> {
        // SAFETY: the bytes must be what `Component::serialize` returned, and stay so. An `Entry` is only made by
        // `Cache::get`, which checks that the file belongs to this user, that nobody else can write it or its directory, and that
        // the BLAKE3 of its bytes is the one that `Cache::put` wrote (keyed by content hash, engine version and settings,
        // target): neither damage nor a foreign file gets here. The path leads to the very file that was looked at, and
        // Flumen never writes to an entry: it puts another in its place, and this one stays as long as it is mapped. The tail
        // behind the code is no part of the engine's sections.
        let mapped = unsafe { Component::deserialize_file(&self.engine, entry.path()) };
        mapped.or_else(|_| {
            let code = entry.read()?;
            // SAFETY: as above; these bytes were hashed as they were read, and are in our memory.
            unsafe { Component::deserialize(&self.engine, code) }
        })
    }
}

impl std::fmt::Debug for PluginHost {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("PluginHost").field("cache", &self.cache).finish_non_exhaustive()
    }
}
