//! What an author of plugins needs besides the sandbox: a directory to start from, the toolchain of each language, and the
//! way from sources to a component.
//!
//! ```text
//! plugin.toml -> Manifest -> recipes::LANG (finds the toolchain, makes a core module or a component) -> component -> NAME.wasm
//! ```
//!
//! Everything that a new plugin needs (sources, SDK, interface, cases) is embedded: an installed `flumen` alone makes it. The
//! engine is deliberately absent: running a plugin is `flumen-plugin`'s. It fails by saying what is missing and the command
//! that gets it.

mod component;
mod embedded;
mod manifest;
mod merge;
mod recipes;
mod reference;
mod run;
mod rust;
mod scaffold;
mod snapshot;
mod world;

pub use component::{no_op, wrap};
pub use embedded::example;
pub use manifest::{Kind, Lang, MANIFEST, Manifest};
pub use recipes::{Built, Options, build, toolchains_dir};
pub use reference::worlds_markdown;
pub use rust::{GuestToolchain, ensure_guest_toolchain};
pub use scaffold::{New, create};
pub use snapshot::{GLOBAL, INITIALIZE, MEMORY, Run, State};
