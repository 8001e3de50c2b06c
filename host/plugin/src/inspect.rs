//! What a plugin's file is, without running it on events.

use std::path::{Path, PathBuf};
use std::time::Instant;

use flumen_pipeline::plan::PluginLimits;
use serde::Serialize;

use crate::abi::{Description, Reads, Role};
use crate::error::LoadError;
use crate::failure::Failure;
use crate::file::FileKind;
use crate::host::{Loaded, PluginHost};
use crate::limits;
use crate::services::Services;

/// A plugin's file, looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The file.
    pub path: PathBuf,
    /// Component or core module.
    pub kind: FileKind,
    /// The world that it was built for.
    pub world: &'static str,
    /// What it can be to a pipeline, by what it exports.
    #[serde(skip)]
    pub roles: Vec<Role>,
    /// BLAKE3 of the file, in hex.
    pub hash: String,
    /// Its size.
    pub size_bytes: u64,
    /// Interfaces that it imports.
    pub imports: Vec<String>,
    /// Interfaces that it exports.
    pub exports: Vec<String>,
    /// What a pipeline has to grant: `grant = [...]`.
    pub needs: Vec<String>,
    /// What it tells about itself.
    pub about: Description,
    /// What it reads with the given configuration; `None` if it did not open.
    pub reads: Option<Reads>,
    /// Why it did not open with the given configuration.
    pub open_error: Option<String>,
    /// Time for compiling it; `None` if its compiled form was in the cache.
    pub compile_ms: Option<u64>,
}

/// What it takes before the first batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StartCost {
    /// From the plugin's file and the cache to code that can run, nobody having touched either since it was hashed.
    pub load_ns: u64,
    /// The same when both have to be hashed: after a change, or after a start of the machine.
    pub first_load_ns: u64,
    /// A fresh instance, and the end of one: its slot is made as new.
    pub instantiate_ns: u64,
    /// The plugin's own `open`.
    pub open_ns: u64,
}

impl PluginHost {
    /// Measures the start of a plugin: the shortest of `rounds`, once it is in the cache.
    pub fn start_cost(&self, path: &Path, config: &str, rounds: u32) -> Result<StartCost, LoadError> {
        let limits = PluginLimits::default();
        let services = Services::new("bench".into(), &limits);
        let nanoseconds = |since: Instant| u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let load = || -> Result<(Loaded, u64), LoadError> {
            let started = Instant::now();
            let loaded = self.load(self.read(path)?)?;
            Ok((loaded, nanoseconds(started)))
        };
        let first_load = || {
            self.cache.hashes().forget();
            load().map(|(_, ns)| ns)
        };
        first_load()?;
        let first_load_ns = first_load()?.min(first_load()?);
        // What was written a moment ago is hashed each time.
        let deadline = Instant::now() + limits::HASH_SETTLES * 2;
        loop {
            let hashed = self.cache.hashes().made();
            load()?;
            if self.cache.hashes().made() == hashed || Instant::now() > deadline {
                break;
            }
            std::thread::sleep(limits::WATCH_QUIET);
        }
        let (mut load_ns, mut instantiate_ns, mut opened_ns) = (u64::MAX, u64::MAX, u64::MAX);
        let failed =
            |failure: Failure| LoadError::Open { path: path.to_owned(), reason: failure.to_string() };
        for _ in 0..rounds {
            let (loaded, took_ns) = load()?;
            load_ns = load_ns.min(took_ns);
            let role = loaded.shape.roles.first().copied().unwrap_or(Role::Interceptor);
            let version = self.open_loaded(&loaded, role, &services, config, &loaded.shape.needs, limits)?;
            let started = Instant::now();
            version.instantiate_once().map_err(failed)?;
            instantiate_ns = instantiate_ns.min(nanoseconds(started));
            let started = Instant::now();
            version.open_once().map_err(failed)?;
            opened_ns = opened_ns.min(nanoseconds(started));
        }
        let open_ns = opened_ns.saturating_sub(instantiate_ns);
        Ok(StartCost { load_ns, first_load_ns, instantiate_ns, open_ns })
    }

    /// Looks at a file. `config` is the plugin's configuration as JSON; with `{}` many plugins say what they miss, which
    /// is not an error of this function but [`Inspection::open_error`].
    pub fn inspect(&self, path: &Path, config: &str) -> Result<Inspection, LoadError> {
        let loaded = self.load(self.read(path)?)?;
        let limits = PluginLimits::default();
        let services = Services::new("inspect".into(), &limits);
        let about = self.describe(&loaded, &limits)?;
        let role = loaded.shape.roles.first().copied().unwrap_or(Role::Interceptor);
        let opened = self.open_loaded(&loaded, role, &services, config, &loaded.shape.needs, limits);
        let (reads, open_error) = match opened {
            Ok(version) => (Some(version.reads().clone()), None),
            Err(LoadError::Refused { text, .. }) => (None, Some(text)),
            Err(LoadError::Open { reason, .. }) => (None, Some(reason)),
            Err(error) => return Err(error),
        };
        Ok(Inspection {
            path: path.to_owned(),
            kind: loaded.file.kind,
            world: loaded.shape.world,
            roles: loaded.shape.roles.clone(),
            hash: loaded.file.hash.to_string(),
            size_bytes: loaded.file.size_bytes,
            imports: loaded.shape.imports,
            exports: loaded.shape.exports,
            needs: loaded.shape.needs,
            about,
            reads,
            open_error,
            compile_ms: loaded.compiled.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
        })
    }
}
