//! Where the binary, the built plugins and the repository are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Names the binary to be tested, instead of the one beside the test.
pub const BINARY_VAR: &str = "FLUMEN_BIN";
/// Names the directory of built plugins, instead of `target/plugins`.
pub const PLUGINS_VAR: &str = "FLUMEN_PLUGINS";

/// The root of the repository.
///
/// # Errors
/// If this crate was moved away from it.
pub fn repository() -> Result<PathBuf> {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.parent().map(Path::to_owned).context("tests/ has no parent directory")
}

/// Cargo's target directory of this run.
///
/// # Errors
/// If the running program does not lie in one.
pub fn target_dir() -> Result<PathBuf> {
    let exe = env::current_exe().context("where is the running program?")?;
    // target/PROFILE/xtask or target/PROFILE/deps/TEST-HASH
    let profile = profile_dir(&exe)?;
    profile.parent().map(Path::to_owned).context("the profile directory has no parent")
}

fn profile_dir(exe: &Path) -> Result<PathBuf> {
    let dir = exe.parent().context("the running program lies in no directory")?;
    let is_deps = dir.file_name().is_some_and(|name| name == "deps");
    let profile = if is_deps { dir.parent() } else { Some(dir) };
    profile.map(Path::to_owned).context("the running program lies outside of a target directory")
}

/// The `flumen` binary: `FLUMEN_BIN`, else the one that was built in the profile of the running program.
///
/// # Errors
/// If it was not built: what to type.
pub fn flumen() -> Result<PathBuf> {
    let path = match env::var_os(BINARY_VAR) {
        Some(path) => PathBuf::from(path),
        None => profile_dir(&env::current_exe()?)?.join("flumen"),
    };
    if !path.is_file() {
        bail!("{} is not there: run `cargo build -p flumen` first, or set {BINARY_VAR}", path.display());
    }
    Ok(path)
}

/// The directory of built plugins: `FLUMEN_PLUGINS`, else `target/plugins`.
///
/// # Errors
/// If the target directory is not known.
pub fn plugins() -> Result<PathBuf> {
    match env::var_os(PLUGINS_VAR) {
        Some(path) => Ok(PathBuf::from(path)),
        None => Ok(target_dir()?.join("plugins")),
    }
}

/// A built plugin by name.
///
/// # Errors
/// If it was not built: what to type.
pub fn plugin(name: &str) -> Result<PathBuf> {
    let path = plugins()?.join(format!("{name}.wasm"));
    if !path.is_file() {
        bail!("{} is not there: run `cargo xtask plugins` first", path.display());
    }
    Ok(path)
}
