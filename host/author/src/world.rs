//! The interface that a plugin is built for.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use wit_parser::{Resolve, WorldId};

use crate::manifest::Manifest;
use crate::run::write_if_changed;

/// Powers that a world can import.
const POWERS: [&str; 7] = ["log", "metrics", "clock", "random", "state", "http", "tcp"];
/// The world that `write_own` makes.
pub(crate) const OWN_WORLD: &str = "this-plugin";

/// The one file of a release.
fn read(dir: &Path) -> Result<String> {
    let path = dir.join("flumen.wit");
    fs::read_to_string(&path)
        .with_context(|| format!("{} cannot be read: it is Flumen's interface", path.display()))
}

/// The interface, and the world of the plugin's kind with every power: what C and Go do not call is left out later.
pub(crate) fn full(dir: &Path, manifest: &Manifest) -> Result<(Resolve, WorldId)> {
    let wit = dir.join(&manifest.wit);
    let mut resolve = Resolve::default();
    let package = resolve.push_source("flumen.wit", &read(&wit)?)?;
    let world = resolve.select_world(&[package], Some(manifest.kind.world()))?;
    Ok((resolve, world))
}

/// Writes the interface with a world of the plugin's own: Python and JavaScript tools import all that a world names, so
/// it names what the manifest does and nothing else.
pub(crate) fn write_own(dir: &Path, manifest: &Manifest, to: &Path) -> Result<()> {
    let mut text = read(&dir.join(&manifest.wit))?;
    let mut world = String::new();
    for power in &manifest.imports {
        if !POWERS.contains(&power.as_str()) {
            bail!("plugin.toml: imports: there is no {power:?}; the powers are {}", POWERS.join(", "));
        }
        // Writing to a String does not fail.
        writeln!(world, "    import {power};").ok();
    }
    for export in manifest.kind.exports() {
        writeln!(world, "    export {export};").ok();
    }
    write!(text, "\n/// Of this plugin.\nworld {OWN_WORLD} {{\n{world}    export about;\n}}\n").ok();
    write_if_changed(&to.join("flumen.wit"), text.as_bytes())
}
