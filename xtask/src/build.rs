//! Builds: the host, and the guests.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use flumen_tests::kafka::packages;
use flumen_tests::locate;

use crate::bindings;
use crate::report::step;

/// Extension of a guest module.
const WASM: &str = "wasm";

/// The cargo that runs this xtask.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // cargo tells this xtask about its own package; the builds that it starts are not about it.
    for (name, _) in env::vars_os() {
        let is_about_xtask = name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_"));
        if is_about_xtask || name == "CARGO_MANIFEST_DIR" || name == "CARGO_MANIFEST_PATH" {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command with its output to the terminal.
///
/// # Errors
/// If it fails.
pub fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("failed ({status}): {command:?}");
    }
    Ok(())
}

/// What builds librdkafka and OpenSSL, which the host brings with it.
const NATIVE_TOOLS: [(&str, &str); 3] = [("make", "make"), ("g++", "g++"), ("perl", "perl")];

/// Makes sure that the host can be built on a fresh machine.
fn native_tools() -> Result<()> {
    NATIVE_TOOLS.into_iter().try_for_each(|(program, package)| packages::need(program, package))
}

/// Builds the binary and returns its path.
///
/// # Errors
/// If it does not build.
pub fn host(is_release: bool) -> Result<PathBuf> {
    native_tools()?;
    let profile = if is_release { "release" } else { "dev" };
    let binary = locate::target_dir()?.join(if is_release { "release" } else { "debug" }).join("flumen");
    step(
        &format!(
            "building flumen ({profile}; the first build takes minutes, it brings its own Wasm compiler)"
        ),
        || {
            let root = locate::repository()?;
            // Of the workspace: dependencies have the features that tests and examples want, and none is built twice.
            check(cargo().current_dir(root).args([
                "build",
                "--quiet",
                "--workspace",
                "--bin",
                "flumen",
                "--profile",
                profile,
            ]))
        },
    )?;
    Ok(binary)
}

/// Builds the binary and all tests of the host together, so that both see the same features of every
/// dependency and none is built twice.
///
/// # Errors
/// If something does not build.
pub fn host_and_tests() -> Result<PathBuf> {
    native_tools()?;
    let root = locate::repository()?;
    step("building flumen and all tests (the first build takes minutes)", || {
        check(cargo().current_dir(&root).args(["build", "--quiet", "--workspace", "--all-targets"]))
    })?;
    Ok(locate::target_dir()?.join("debug").join("flumen"))
}

/// Builds all guests into `target/plugins/NAME.wasm`. Core modules: the host wraps them itself.
///
/// # Errors
/// If there is no toolchain or a guest does not build.
pub fn plugins() -> Result<()> {
    let workspace = locate::repository()?.join("plugins");
    let toolchain = step("looking for a toolchain for plugins", flumen_author::ensure_guest_toolchain)?;
    step("building the plugins", || {
        toolchain.build(&workspace, &[])?;
        let count = collect(&toolchain.output_dir(&workspace), &locate::plugins()?)?;
        eprintln!("    {count} plugins in {}", locate::plugins()?.display());
        Ok(())
    })
}

/// Languages with a page in `docs/plugins/`.
pub const LANGUAGES: [&str; 5] = ["rust", "c", "go", "js", "python"];

/// An example: the same small plugin of a kind, in one language.
#[derive(Debug, Clone)]
pub struct Example {
    /// `keep-rust`: its component in `target/plugins/`.
    pub name: String,
    /// Its directory, from the repository.
    pub dir: PathBuf,
    /// The directory of its SDK, from the repository.
    sdk: PathBuf,
}

/// All of them.
#[must_use]
pub fn examples() -> Vec<Example> {
    let of_kind = |kind| {
        let (dir, name) = flumen_author::example(kind);
        flumen_author::Lang::ALL.into_iter().map(move |lang| Example {
            name: format!("{name}-{lang}"),
            dir: Path::new(dir).join(lang.word()),
            sdk: Path::new("plugins/sdk").join(lang.word()),
        })
    };
    flumen_author::Kind::ALL.into_iter().flat_map(of_kind).collect()
}

/// Builds all examples into `target/plugins/NAME-LANGUAGE.wasm`. Toolchains that are missing are installed below
/// `target/toolchains/`, those of Debian by apt-get. What has not changed is not built again.
///
/// # Errors
/// If a toolchain cannot be had or an example does not build.
pub fn languages(binary: &Path) -> Result<()> {
    let all = || examples().iter().try_for_each(|example| language(binary, example));
    step("building the example of each kind in every language", all)
}

/// With the binary, as its author would.
fn language(binary: &Path, example: &Example) -> Result<()> {
    let (root, target) = (locate::repository()?, locate::target_dir()?);
    let Example { name, dir, sdk } = example;
    let work_dir = target.join("languages").join(name);
    let output = locate::plugins()?.join(format!("{name}.wasm"));
    let dir = root.join(dir);
    let (stamp, stamp_file) = (stamp(&[&dir, &root.join(sdk)])?, work_dir.join("stamp"));
    if output.is_file() && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
        return Ok(());
    }
    fs::create_dir_all(&work_dir)?;
    let mut build = Command::new(binary);
    build.args(["plugin", "build", "--install"]).arg(&dir).arg("--to").arg(&output);
    build.arg("--work-dir").arg(&work_dir);
    // With the other guests: they share what they depend on.
    build.arg("--rust-target").arg(root.join("plugins/target"));
    check(build.env("FLUMEN_TOOLCHAINS", target.join("toolchains")))?;
    fs::write(stamp_file, stamp).context("cannot write a stamp")
}

/// Changes when a file of these directories, the interface or the way of building does.
fn stamp(dirs: &[&Path]) -> Result<String> {
    let root = locate::repository()?;
    let mut hasher = DefaultHasher::new();
    let mut todo: Vec<PathBuf> = dirs.iter().map(|dir| dir.to_path_buf()).collect();
    todo.extend([root.join(bindings::WIT), root.join("host/author/src"), root.join("host/author/wat")]);
    let mut files = Vec::new();
    while let Some(path) = todo.pop() {
        let is_made = path
            .file_name()
            .is_some_and(|name| ["build", "__pycache__", "Cargo.lock"].iter().any(|made| name == *made));
        if is_made || path.extension().is_some_and(|extension| extension == WASM) {
            continue;
        }
        match path.is_dir() {
            true => {
                todo.extend(fs::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?)
            }
            false => files.push(path),
        }
    }
    files.sort();
    for path in files {
        path.hash(&mut hasher);
        fs::read(&path)?.hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// Copies `some_name.wasm` to `some-name.wasm`, as users name their plugins.
fn collect(from: &Path, to: &Path) -> Result<usize> {
    fs::create_dir_all(to)?;
    let mut count = 0;
    for entry in fs::read_dir(from).with_context(|| format!("no plugins in {}", from.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != WASM) {
            continue;
        }
        let stem = path.file_stem().and_then(|stem| stem.to_str()).context("a plugin without a name")?;
        fs::copy(&path, to.join(stem.replace('_', "-")).with_extension(WASM))?;
        count += 1;
    }
    Ok(count)
}
