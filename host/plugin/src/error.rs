//! Errors of the operations of this crate. Each says what happened, where, and what to do.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::failure::printable;
use crate::limits;
use crate::options::OptionError;

use crate::abi::Role;

/// Why the plugin host did not start.
#[derive(Debug, Error)]
pub enum HostError {
    /// The sandbox engine refused its settings on this machine.
    #[error("the WebAssembly engine does not start on this machine: {0}")]
    Engine(String),
    /// A thread could not be started.
    #[error("the thread {name} could not be started: {source}; see `ulimit -u`")]
    Thread {
        /// Which one.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The compile cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Why the directory of compiled plugins cannot be used. Compiled code is trusted, so its directory has to be safe.
#[derive(Debug, Error)]
pub enum CacheError {
    /// The directory cannot be made or read.
    #[error("the compile cache {} cannot be used: {source}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a link, or not a directory.
    #[error("the compile cache {} is not a directory; remove it, it is made again", .0.display())]
    NotADirectory(PathBuf),
    /// Someone else could put code into it.
    #[error("the compile cache {} belongs to user {owner}, this process is user {user}; remove it, it is made again", dir.display())]
    ForeignOwner {
        /// The directory.
        dir: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs this process.
        user: u32,
    },
}

/// Why a plugin was not loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("plugin {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No file of that name.
    #[error("plugin {name:?}: there is no {}; put the plugin's .wasm file there", path.display())]
    Missing {
        /// The plugin's name.
        name: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file is larger than any plugin.
    #[error("plugin {}: {bytes} bytes, a plugin has at most {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// [`crate::limits::FILE_BYTES_MAX`].
        limit: u64,
    },
    /// The file does not begin as WebAssembly does.
    #[error("plugin {}: not WebAssembly (it begins with {begins}); give the .wasm file that the build made", path.display())]
    NotWasm {
        /// The file.
        path: PathBuf,
        /// Its first bytes, readable.
        begins: String,
    },
    /// It begins so, but is damaged or cut off.
    #[error("plugin {}: damaged or incomplete WebAssembly: {shown}; copy the file again", path.display(), shown = shown(reason))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// A core module that cannot be made a component.
    #[error("plugin {}: a core module that was not made from Flumen's interface: {shown}; build it with a Flumen SDK or wit-bindgen, \
             for the target wasm32-unknown-unknown", path.display(), shown = shown(reason))]
    NotAPlugin {
        /// The file.
        path: PathBuf,
        /// What stands in the way.
        reason: String,
    },
    /// A component of another world.
    #[error("plugin {}: it exports no interface of Flumen, such as `flumen:plugin/guest@0.2.0` (its exports: {}); build it from wit/0.2.0", path.display(), list(exports))]
    WrongWorld {
        /// The file.
        path: PathBuf,
        /// What it exports.
        exports: Vec<String>,
    },
    /// A plugin for another place.
    #[error("plugin {}: it was built for the world `{world}`, so it is not {}; name a plugin of the right kind here", path.display(), wanted.with_article())]
    WrongRole {
        /// The file.
        path: PathBuf,
        /// What is needed here.
        wanted: Role,
        /// The world that it was built for.
        world: &'static str,
    },
    /// A function of the interface has another shape.
    #[error("plugin {}: `{function}` is not as in the interface (wit/): {shown}; build it from the released interface", path.display(), shown = shown(reason))]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// Which.
        function: String,
        /// The difference.
        reason: String,
    },
    /// It needs what nobody has.
    #[error("plugin {}: it imports what Flumen does not offer: {}; build it for the world flumen:plugin/interceptor", path.display(), list(imports))]
    UnknownImports {
        /// The file.
        path: PathBuf,
        /// Each by name.
        imports: Vec<String>,
    },
    /// It needs what the pipeline has not granted.
    #[error("plugin {}: it imports {}, which the pipeline does not grant; add `grant = [{}]` to its table", path.display(),
            list(missing), quoted(grants))]
    NotGranted {
        /// The file.
        path: PathBuf,
        /// The powers that are missing.
        missing: Vec<String>,
        /// All powers that it needs, for the fix.
        grants: Vec<String>,
    },
    /// Its own schema does not take the configuration.
    #[error("plugin {}: its configuration is wrong: {}", path.display(), wrong(errors))]
    Options {
        /// The file.
        path: PathBuf,
        /// Each error with its place; at least one.
        errors: Vec<OptionError>,
    },
    /// The schema of its options is none.
    #[error("plugin {}: the JSON Schema that it gives of its options cannot be used: {reason}; its author has to correct it", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Its `egress` cannot be.
    #[error("plugin {}: {error}", path.display())]
    Egress {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: flumen_egress::SettingsError,
    },
    /// The compiler refused it.
    #[error("plugin {}: it does not compile: {shown}", path.display(), shown = shown(reason))]
    Compile {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// `open` answered with an error, in the plugin's own words.
    #[error("plugin {}: {shown}", path.display(), shown = shown(text))]
    Refused {
        /// The file.
        path: PathBuf,
        /// The plugin's words.
        text: String,
    },
    /// `open` did not come back as it should.
    #[error("plugin {}: opening it with its configuration failed: {shown}", path.display(), shown = shown(reason))]
    Open {
        /// The file.
        path: PathBuf,
        /// Trap, timeout, memory or a wrong answer.
        reason: String,
    },
}

impl LoadError {
    /// A word that never changes, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            LoadError::Read { .. } => "plugin-unreadable",
            LoadError::Missing { .. } => "plugin-missing",
            LoadError::TooLarge { .. } => "plugin-too-large",
            LoadError::NotWasm { .. } => "plugin-not-wasm",
            LoadError::Malformed { .. } => "plugin-damaged",
            LoadError::NotAPlugin { .. } => "plugin-not-a-plugin",
            LoadError::WrongWorld { .. } => "plugin-wrong-world",
            LoadError::WrongRole { .. } => "plugin-wrong-role",
            LoadError::WrongShape { .. } => "plugin-wrong-shape",
            LoadError::UnknownImports { .. } => "plugin-unknown-imports",
            LoadError::NotGranted { .. } => "plugin-not-granted",
            LoadError::Options { .. } => "plugin-options",
            LoadError::Schema { .. } => "plugin-schema",
            LoadError::Egress { .. } => "plugin-egress",
            LoadError::Compile { .. } => "plugin-compile",
            LoadError::Refused { .. } => "plugin-refused",
            LoadError::Open { .. } => "plugin-open",
        }
    }

    pub(crate) fn read(path: &Path, source: io::Error) -> LoadError {
        LoadError::Read { path: path.to_owned(), source }
    }
}

/// Words of a file or of a guest as they may be shown.
fn shown(text: &str) -> String {
    printable(text, limits::TEXT_BYTES_MAX)
}

fn wrong(errors: &[OptionError]) -> String {
    let each = errors.iter().map(|error| format!("{}: {}", error.place, error.reason));
    let text = each.collect::<Vec<_>>().join("; ");
    shown(&text)
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(|name| format!("`{}`", shown(name))).collect::<Vec<_>>().join(", ")
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}
