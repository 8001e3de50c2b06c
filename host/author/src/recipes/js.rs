//! JavaScript and TypeScript: esbuild makes one module of the sources and the SDK, componentize-js puts it and its engine
//! into one component.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Made, Work, apt_install, missing, step};
use crate::run::{find, quietly, write_if_changed};
use crate::world;

const PACKAGE: &str = "@bytecodealliance/componentize-js";
const VERSION: &str = "0.23.0";
const BUNDLER: &str = "esbuild";
const BUNDLER_VERSION: &str = "0.28.2";
/// What a plugin imports of the SDK, and the file. Powers are files of their own, since a bundle imports all that its files do.
const MODULES: [(&str, &str); 4] = [
    ("flumen", "flumen.js"),
    ("flumen/state", "state.js"),
    ("flumen/http", "http.js"),
    ("flumen/tcp", "tcp.js"),
];
/// Arguments: the module, the directory of the interface, the world, the component.
const SCRIPT: &str = include_str!("componentize.mjs");

pub(super) fn build(work: &Work<'_>) -> Result<Made> {
    let source = work.source(&["plugin.ts", "plugin.js"])?;
    let node = node(work)?;
    let modules = modules(work)?;
    let (wit, bundle) = (work.build.join("wit"), work.build.join("bundle.js"));
    let (script, component) = (work.build.join("componentize.mjs"), work.build.join("component.wasm"));
    world::write_own(work.dir, work.manifest, &wit)?;
    let mut esbuild = Command::new(modules.join(".bin/esbuild"));
    esbuild.current_dir(work.dir).arg(&source).args([
        "--bundle",
        "--format=esm",
        "--target=es2022",
        "--log-level=warning",
    ]);
    for (name, file) in MODULES {
        esbuild.arg(format!("--alias:{name}={}", work.sdk().join(file).display()));
    }
    // Host powers: the engine's, not ours to bundle.
    esbuild.arg("--external:flumen:*").arg(format!("--outfile={}", bundle.display()));
    quietly(&mut esbuild)?;
    write_if_changed(&script, SCRIPT.as_bytes())?;
    let mut command = Command::new(node);
    command.current_dir(&work.build).arg(&script).arg(modules.join(PACKAGE)).arg(&bundle).arg(&wit);
    quietly(command.arg(world::OWN_WORLD).arg(&component))?;
    Ok(Made { component: fs::read(component)?, toolchain: format!("componentize-js {VERSION}") })
}

fn node(work: &Work<'_>) -> Result<PathBuf> {
    let find_node = || find("node", &[]);
    if find_node().is_none() && work.install {
        apt_install(&["nodejs", "npm"])?;
    }
    find_node()
        .ok_or_else(|| missing("node is not there (20 or newer)", &[super::apt_command(&["nodejs", "npm"])]))
}

/// The `node_modules` that has both packages: the plugin's, or that of all.
fn modules(work: &Work<'_>) -> Result<PathBuf> {
    let own = work.toolchains.join("js");
    let has_both = |dir: &PathBuf| dir.join(PACKAGE).is_dir() && dir.join(".bin").join(BUNDLER).exists();
    let places = [work.dir.join("node_modules"), own.join("node_modules")];
    if let Some(found) = places.iter().find(|dir| has_both(dir)) {
        return Ok(found.clone());
    }
    let packages = [format!("{PACKAGE}@{VERSION}"), format!("{BUNDLER}@{BUNDLER_VERSION}")];
    let command = format!("npm install --prefix {} {}", own.display(), packages.join(" "));
    if !work.install {
        return Err(missing(&format!("{PACKAGE} and {BUNDLER} are not there"), &[command]));
    }
    step(&command);
    install(&own, &packages)?;
    places
        .into_iter()
        .find(has_both)
        .with_context(|| format!("npm installed {PACKAGE}, but not in {}", own.display()))
}

fn install(own: &Path, packages: &[String]) -> Result<()> {
    fs::create_dir_all(own).with_context(|| format!("cannot make {}", own.display()))?;
    // Else npm looks for a package in the directories above.
    write_if_changed(&own.join("package.json"), b"{\"private\":true}\n")?;
    let mut npm = Command::new("npm");
    npm.current_dir(own).args(["install", "--no-audit", "--no-fund", "--loglevel=error"]).args(packages);
    quietly(&mut npm).map(|_| ())
}
