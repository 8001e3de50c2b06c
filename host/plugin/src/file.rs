//! A plugin's file: read, hashed, recognised, and made a component if it is a core module.

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use wasmtime::{Engine, Module};

use crate::error::LoadError;
use crate::hashes::Hashes;
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

/// A file whose content is known.
#[derive(Debug)]
pub(crate) struct PluginFile {
    pub(crate) path: PathBuf,
    pub(crate) size_bytes: u64,
    /// BLAKE3 of the bytes, in hex.
    pub(crate) hash: Arc<str>,
    pub(crate) kind: FileKind,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Read(Vec<u8>),
    /// Hashed before: it is read if it has to be compiled after all.
    Unread(File),
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

    /// Whether both of its times are before this one, in seconds.
    pub(crate) fn is_older_than(&self, seconds: i64) -> bool {
        self.modified.0 < seconds && self.changed.0 < seconds
    }

    /// Another state of the same file.
    pub(crate) fn is_same_file(&self, other: &Fingerprint) -> bool {
        (self.inode, self.device) == (other.inode, other.device)
    }

    /// All that it is made of.
    pub(crate) fn numbers(&self) -> [i64; 7] {
        let Fingerprint { modified, changed, size, inode, device } = *self;
        let [size, inode, device] = [size, inode, device].map(u64::cast_signed);
        [device, inode, size, modified.0, modified.1, changed.0, changed.1]
    }

    pub(crate) fn from_numbers(numbers: [i64; 7]) -> Fingerprint {
        let [device, inode, size, modified, modified_ns, changed, changed_ns] = numbers;
        let [size, inode, device] = [size, inode, device].map(i64::cast_unsigned);
        Fingerprint { modified: (modified, modified_ns), changed: (changed, changed_ns), size, inode, device }
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
    pub(crate) fn read(path: &Path, hashes: &Hashes) -> Result<PluginFile, LoadError> {
        let unreadable = |source| LoadError::read(path, source);
        let limit = limits::FILE_BYTES_MAX;
        let file = File::open(path).map_err(unreadable)?;
        let size_bytes = file.metadata().map_err(unreadable)?.len();
        if size_bytes > limit {
            return Err(LoadError::TooLarge { path: path.to_owned(), bytes: size_bytes, limit });
        }
        if let Some(hash) = hashes.known(&file) {
            let mut begin = [0; 16];
            let begin = read_at_most(&file, &mut begin).map_err(unreadable)?;
            let (kind, hash) = (kind_of(path, begin)?, hash.to_hex().as_str().into());
            return Ok(PluginFile {
                path: path.to_owned(),
                size_bytes,
                hash,
                kind,
                content: Content::Unread(file),
            });
        }
        let seen = hashes.look(&file);
        let mut bytes = Vec::new();
        (&file).take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
        let kind = kind_of(path, &bytes)?;
        let hash = blake3::hash(&bytes);
        hashes.remember(seen, &file, hash);
        Ok(PluginFile {
            path: path.to_owned(),
            size_bytes: bytes.len() as u64,
            hash: hash.to_hex().as_str().into(),
            kind,
            content: Content::Read(bytes),
        })
    }

    /// The component that its bytes are or become.
    pub(crate) fn component(&self, engine: &Engine) -> Result<Cow<'_, [u8]>, LoadError> {
        let bytes = self.bytes()?;
        let malformed = |reason| LoadError::Malformed { path: self.path.clone(), reason };
        match self.kind {
            FileKind::Component if encode::is_nested_too_deep(&bytes) => {
                let most = limits::NESTED_COMPONENTS_MAX;
                Err(malformed(format!("components are nested more than {most} deep")))
            }
            FileKind::Component => Ok(bytes),
            FileKind::CoreModule => {
                Module::validate(engine, &bytes).map_err(|error| malformed(format!("{error:#}")))?;
                let wrapped = encode::component_of(&bytes);
                wrapped
                    .map(Into::into)
                    .map_err(|reason| LoadError::NotAPlugin { path: self.path.clone(), reason })
            }
        }
    }

    fn bytes(&self) -> Result<Cow<'_, [u8]>, LoadError> {
        let file = match &self.content {
            Content::Read(bytes) => return Ok(bytes.into()),
            Content::Unread(file) => file,
        };
        let unreadable = |source| LoadError::read(&self.path, source);
        let mut bytes = Vec::new();
        let mut begin = file;
        begin.rewind().map_err(unreadable)?;
        begin.take(limits::FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(unreadable)?;
        if *blake3::hash(&bytes).to_hex().as_str() != *self.hash {
            return Err(unreadable(std::io::Error::other("it changed while it was read")));
        }
        Ok(bytes.into())
    }
}

/// The beginning of a file.
fn read_at_most<'a>(file: &File, buffer: &'a mut [u8]) -> std::io::Result<&'a [u8]> {
    let read = file.read_at(buffer, 0)?;
    Ok(buffer.get(..read).unwrap_or_default())
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
