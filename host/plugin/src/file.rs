//! A plugin's file: read, hashed, recognised, and made a component if it is a core module.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use wasmtime::{Engine, Module};

use crate::error::LoadError;
use crate::{encode, limits};

/// What kind of WebAssembly a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A component: loaded as it is.
    Component,
    /// A core module that wit-bindgen made: the host makes a component of it.
    CoreModule,
}

/// A file as it was read.
#[derive(Debug, Clone)]
pub(crate) struct PluginFile {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
    /// BLAKE3 of the bytes, in hex.
    pub(crate) hash: Arc<str>,
    pub(crate) kind: FileKind,
}

/// What tells one state of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    modified: (i64, i64),
    changed: (i64, i64),
    size: u64,
    inode: u64,
    device: u64,
}

impl Fingerprint {
    pub(crate) fn of(path: &Path) -> std::io::Result<Fingerprint> {
        Ok(Self::from(&std::fs::metadata(path)?))
    }
}

impl From<&std::fs::Metadata> for Fingerprint {
    fn from(metadata: &std::fs::Metadata) -> Self {
        Fingerprint {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            size: metadata.size(),
            inode: metadata.ino(),
            device: metadata.dev(),
        }
    }
}

/// Where a plugin's file is: `plugin` is a name or, with a `/` or `.wasm` in it, a path (a relative one starts at `dir`).
/// cargo writes `access_log.wasm` for a package `access-log`: that file is found under the package's name, too.
pub(crate) fn locate(plugin: &str, dir: &Path) -> PathBuf {
    if plugin.contains('/') || plugin.ends_with(".wasm") {
        return dir.join(plugin);
    }
    let path = dir.join(format!("{plugin}.wasm"));
    let as_cargo_writes = dir.join(format!("{}.wasm", plugin.replace('-', "_")));
    if !path.exists() && as_cargo_writes.exists() { as_cargo_writes } else { path }
}

impl PluginFile {
    pub(crate) fn read(path: &Path) -> Result<PluginFile, LoadError> {
        let mut bytes = Vec::new();
        let limit = limits::FILE_BYTES_MAX;
        let file = File::open(path).map_err(|source| LoadError::read(path, source))?;
        let size = file.metadata().map_err(|source| LoadError::read(path, source))?.len();
        if size > limit {
            return Err(LoadError::TooLarge { path: path.to_owned(), bytes: size, limit });
        }
        file.take(limit).read_to_end(&mut bytes).map_err(|source| LoadError::read(path, source))?;
        PluginFile::from_bytes(path, bytes)
    }

    pub(crate) fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<PluginFile, LoadError> {
        let kind = kind_of(path, &bytes)?;
        let hash = blake3::hash(&bytes).to_hex().as_str().into();
        Ok(PluginFile { path: path.to_owned(), bytes, hash, kind })
    }

    /// The component that these bytes are or become.
    pub(crate) fn component(&self, engine: &Engine) -> Result<Cow<'_, [u8]>, LoadError> {
        match self.kind {
            FileKind::Component if encode::is_nested_too_deep(&self.bytes) => {
                let reason =
                    format!("components are nested more than {} deep", limits::NESTED_COMPONENTS_MAX);
                Err(LoadError::Malformed { path: self.path.clone(), reason })
            }
            FileKind::Component => Ok((&self.bytes).into()),
            FileKind::CoreModule => {
                Module::validate(engine, &self.bytes).map_err(|error| LoadError::Malformed {
                    path: self.path.clone(),
                    reason: format!("{error:#}"),
                })?;
                let wrapped = encode::component_of(&self.bytes);
                wrapped
                    .map(Into::into)
                    .map_err(|reason| LoadError::NotAPlugin { path: self.path.clone(), reason })
            }
        }
    }
}

fn kind_of(path: &Path, bytes: &[u8]) -> Result<FileKind, LoadError> {
    let malformed = |reason: &str| LoadError::Malformed { path: path.to_owned(), reason: reason.to_owned() };
    match (bytes.get(..4), bytes.get(4..8)) {
        (Some(b"\0asm"), Some([0x01, 0, 0, 0])) => Ok(FileKind::CoreModule),
        (Some(b"\0asm"), Some([0x0d, 0, 0x01, 0])) => Ok(FileKind::Component),
        (Some(b"\0asm"), Some(version)) => Err(malformed(&format!("unknown version {version:02x?}"))),
        (Some(b"\0asm"), None) => Err(malformed("it ends within its first 8 bytes")),
        _ if bytes.is_empty() => Err(malformed("it is empty")),
        _ => {
            let begins = bytes.get(..bytes.len().min(16)).unwrap_or_default().escape_ascii().to_string();
            Err(LoadError::NotWasm { path: path.to_owned(), begins: format!("\"{begins}\"") })
        }
    }
}
