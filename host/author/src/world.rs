//! The interface that a plugin is built for.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use wit_parser::{Resolve, WorldId};

use crate::manifest::Manifest;
use crate::run::write_if_changed;

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
        let (kind, powers) = (manifest.kind, manifest.kind.powers());
        if !powers.contains(&power.as_str()) {
            bail!(
                "plugin.toml: imports: there is no {power:?}; the powers of {kind}s are {}",
                powers.join(", ")
            );
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

#[cfg(test)]
mod tests {
    use wit_parser::WorldItem;

    use super::*;
    use crate::manifest::Kind;

    #[test]
    fn kinds_have_the_worlds_of_the_interface() {
        let mut resolve = Resolve::default();
        let package = resolve.push_source("flumen.wit", crate::component::INTERFACE).unwrap();
        for kind in Kind::ALL {
            let world = resolve.select_world(&[package], Some(kind.world())).unwrap();
            let name = |item: &WorldItem| match item {
                WorldItem::Interface { id, .. } => resolve.interfaces[*id].name.clone().unwrap(),
                _ => panic!("{kind} names no interface"),
            };
            let mut imports: Vec<String> = resolve.worlds[world].imports.values().map(name).collect();
            imports.retain(|import| !["types", "egress"].contains(&import.as_str()));
            let mut exports: Vec<String> = resolve.worlds[world].exports.values().map(name).collect();
            exports.retain(|export| export != "about");
            assert_eq!((imports, exports), (words(kind.powers()), words(kind.exports())), "{kind}");
        }
    }

    fn words(of: &[&str]) -> Vec<String> {
        of.iter().map(|word| (*word).to_owned()).collect()
    }
}
