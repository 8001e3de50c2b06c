//! What a plugin's file is, without running it on events.

use std::path::{Path, PathBuf};
use std::time::Instant;

use flumen_pipeline::plan::PluginLimits;
use serde::Serialize;

use crate::abi::{Description, Reads, Role};
use crate::error::LoadError;
use crate::file::{FileKind, PluginFile};
use crate::host::PluginHost;
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
    /// From the cache of compiled plugins into memory, the file read and hashed before.
    pub load_ns: u64,
    /// A fresh instance, opened.
    pub instantiate_ns: u64,
}

impl PluginHost {
    /// Measures the start of a plugin: the shortest of `rounds`, once it is in the cache.
    pub fn start_cost(&self, path: &Path, config: &str, rounds: u32) -> Result<StartCost, LoadError> {
        let limits = PluginLimits::default();
        let services = Services::new("bench".into(), &limits);
        let file = PluginFile::read(path)?;
        self.load(file.clone())?;
        let nanoseconds = |since: Instant| u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut cost = StartCost { load_ns: u64::MAX, instantiate_ns: u64::MAX };
        for _ in 0..rounds {
            let started = Instant::now();
            let loaded = self.load(file.clone())?;
            cost.load_ns = cost.load_ns.min(nanoseconds(started));
            let role = loaded.shape.roles.first().copied().unwrap_or(Role::Interceptor);
            let version = self.open_loaded(&loaded, role, &services, config, &loaded.shape.needs, limits)?;
            let started = Instant::now();
            version
                .instantiate_once()
                .map_err(|failure| LoadError::Open { path: path.to_owned(), reason: failure.to_string() })?;
            cost.instantiate_ns = cost.instantiate_ns.min(nanoseconds(started));
        }
        Ok(cost)
    }

    /// Looks at a file. `config` is the plugin's configuration as JSON; with `{}` many plugins say what they miss, which
    /// is not an error of this function but [`Inspection::open_error`].
    pub fn inspect(&self, path: &Path, config: &str) -> Result<Inspection, LoadError> {
        let loaded = self.load(PluginFile::read(path)?)?;
        let limits = PluginLimits::default();
        let services = Services::new("inspect".into(), &limits);
        let about = self.describe(&loaded)?;
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
            size_bytes: loaded.file.bytes.len() as u64,
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
