//! From sources to a component: one recipe per language.

mod c;
mod go;
mod js;
mod python;
mod rust;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::manifest::{Lang, Manifest};
use crate::run::write_if_changed;
use crate::snapshot::Run;

/// Where tools are installed that belong to no project.
const TOOLCHAINS_VAR: &str = "FLUMEN_TOOLCHAINS";
/// What a build leaves for the next one, in the plugin's directory.
const BUILD_DIR: &str = "build";

/// How to build.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Install what is missing, instead of saying how.
    pub install: bool,
    /// Where what is made on the way is kept; absent: `build/` in the plugin's directory.
    pub work_dir: Option<PathBuf>,
    /// Where the component goes; absent: `NAME.wasm` in the plugin's directory.
    pub output: Option<PathBuf>,
    /// Cargo's target directory, for plugins that share what they depend on; absent: one of the plugin's own.
    pub rust_target: Option<PathBuf>,
    /// Runs the start of a language's runtime, which is then in the component as it is when it has started; absent: every
    /// instance starts it.
    pub run: Option<Run>,
}

/// What was built.
#[derive(Debug, Clone)]
pub struct Built {
    /// The component.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// The toolchain in a few words.
    pub toolchain: String,
}

/// Paths of one build.
struct Work<'a> {
    dir: &'a Path,
    manifest: &'a Manifest,
    /// For what is made on the way.
    build: PathBuf,
    install: bool,
    toolchains: PathBuf,
    rust_target: Option<&'a Path>,
    run: Option<Run>,
}

impl Work<'_> {
    fn sdk(&self) -> PathBuf {
        self.dir.join(&self.manifest.sdk)
    }

    /// The file of the sources that has to be there.
    fn source(&self, names: &[&str]) -> Result<PathBuf> {
        let found = names.iter().map(|name| self.dir.join(name)).find(|path| path.is_file());
        found.with_context(|| format!("{} has no {}", self.dir.display(), names.join(" or ")))
    }
}

/// A component and the toolchain that made it.
struct Made {
    component: Vec<u8>,
    toolchain: String,
}

/// Builds the plugin in a directory.
///
/// # Errors
/// If the toolchain is not there (what to type), or the sources do not build (what their tool said).
pub fn build(dir: &Path, options: &Options) -> Result<Built> {
    let started = Instant::now();
    let manifest = Manifest::read(dir)?;
    let dir = fs::canonicalize(dir).with_context(|| format!("there is no {}", dir.display()))?;
    let build = options.work_dir.clone().unwrap_or_else(|| dir.join(BUILD_DIR));
    fs::create_dir_all(&build).with_context(|| format!("cannot make {}", build.display()))?;
    let build = fs::canonicalize(build)?;
    let toolchains = toolchains_dir()?;
    let rust_target = options.rust_target.as_deref();
    let work = Work {
        dir: &dir,
        manifest: &manifest,
        build,
        install: options.install,
        toolchains,
        rust_target,
        run: options.run,
    };
    let made = match manifest.lang {
        Lang::Rust => rust::build(&work),
        Lang::Python => python::build(&work),
        Lang::Js => js::build(&work),
        Lang::Go => go::build(&work),
        Lang::C => c::build(&work),
    };
    let Made { component, toolchain } = made.with_context(|| format!("{} is not built", manifest.name))?;
    let path = options.output.clone().unwrap_or_else(|| manifest.component(&dir));
    replace(&path, &component)?;
    Ok(Built { path, bytes: component.len() as u64, took: started.elapsed(), toolchain })
}

/// In one step: a running agent that watches the file never sees half of it.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let fresh = path.with_extension("wasm.new");
    write_if_changed(&fresh, bytes)?;
    fs::rename(&fresh, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Where tools that belong to no project are: `FLUMEN_TOOLCHAINS`, else below the user's cache.
///
/// # Errors
/// If the user has no home.
pub fn toolchains_dir() -> Result<PathBuf> {
    if let Some(dir) = env::var_os(TOOLCHAINS_VAR) {
        return Ok(PathBuf::from(dir));
    }
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    let cache = cache.with_context(|| format!("there is no HOME: set {TOOLCHAINS_VAR}"))?;
    Ok(cache.join("flumen/toolchains"))
}

/// The error of a toolchain that is not there.
fn missing(what: &str, commands: &[String]) -> anyhow::Error {
    let mut text = format!("{what}; type\n");
    for command in commands {
        text.push_str("  ");
        text.push_str(command);
        text.push('\n');
    }
    text.push_str("or let `flumen plugin build --install` do it");
    anyhow::anyhow!(text)
}

fn step(text: &str) {
    eprintln!("toolchain: {text}");
}

/// Installs Debian's packages, if this is Debian and root asks.
fn apt_install(packages: &[&str]) -> Result<()> {
    step(&format!("apt-get install {}", packages.join(" ")));
    if crate::rust::install_packages(packages).is_err() {
        bail!("not installed; type: {}", apt_command(packages));
    }
    Ok(())
}

fn apt_command(packages: &[&str]) -> String {
    format!(
        "apt-get update && apt-get install -y --no-install-recommends {}   (with sudo)",
        packages.join(" ")
    )
}
