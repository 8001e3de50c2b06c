//! The toolchain that builds guests for `wasm32-unknown-unknown`.
//!
//! There are two ways to have one. **rustup**: the target is installed, or `rustup target add` gets it.
//! **debian**: where rustup cannot download, Debian's own compiler builds the standard library from
//! Debian's sources (`-Zbuild-std`) and `wasm-ld-19` links. They do not mix: rustup's compiler refuses
//! Debian's sources. `FLUMEN_GUEST_TOOLCHAIN=rustup` or `=debian` forces one.
//!
//! Guest builds start from a scrubbed environment. xtask itself runs under cargo, which hands down its
//! toolchain, its flags and its libraries; any of them would turn a guest build into something else.
//! What guests need beyond that (`+simd128`) stands in the guest workspace's `.cargo/config.toml`,
//! which cargo reads in both ways because it runs inside that workspace.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

const TARGET: &str = "wasm32-unknown-unknown";
const FORCE_VAR: &str = "FLUMEN_GUEST_TOOLCHAIN";

/// The download is 20 MB; where there is no way out, rustup would retry for many minutes.
const RUSTUP_ADD_LIMIT: Duration = Duration::from_secs(120);
/// For commands that only look something up on this machine.
const LOOKUP_LIMIT: Duration = Duration::from_secs(30);
/// How often a running command is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How much of a failed command's output goes into the error: its end, where the reason stands.
const ERROR_BYTES_MAX: usize = 2_000;

const DEBIAN_PACKAGES: [&str; 5] = ["rustc-web", "cargo-web", "rust-web-src", "rust-web-llvm", "lld-19"];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_LINKER: &str = "/usr/bin/wasm-ld-19";
/// apt-get has no time limit of its own here: killed while it unpacks, it leaves dpkg broken.
/// Its downloads are limited instead, and its wait for another apt-get.
const APT_OPTIONS: [&str; 6] =
    ["-o", "Acquire::http::Timeout=30", "-o", "Acquire::Retries=1", "-o", "DPkg::Lock::Timeout=120"];

/// A way to build guests that was found to be complete on this machine.
#[derive(Debug, Clone)]
pub struct GuestToolchain {
    way: Way,
    /// What `rustc --version` answers.
    version: String,
}

#[derive(Debug, Clone)]
enum Way {
    /// The toolchain by name: the one that was seen to have the target is the one that builds.
    Rustup {
        toolchain: String,
    },
    Debian,
}

/// Finds a toolchain for guests, or installs what is missing.
///
/// In this order: rustup with the target installed; rustup after `rustup target add`; Debian's packages,
/// installed with apt-get where that is allowed. Says on stderr what it does, a line per step.
///
/// # Errors
/// If no way leads there: why each failed, and what to type.
pub fn ensure_guest_toolchain() -> Result<GuestToolchain> {
    guest_toolchain(true)
}

/// The same, but installs only if `install`.
pub(crate) fn guest_toolchain(install: bool) -> Result<GuestToolchain> {
    let forced = env::var(FORCE_VAR).unwrap_or_default();
    let found = match forced.as_str() {
        "rustup" => rustup(install).map_err(|error| no_toolchain(&[("rustup", error)])),
        "debian" => debian(install).map_err(|error| no_toolchain(&[("debian", error)])),
        "" => rustup(install).or_else(|first| {
            step(&format!("not with rustup: {first:#}"));
            step(&format!("trying Debian's packages ({FORCE_VAR}=debian goes there at once)"));
            debian(install).map_err(|second| no_toolchain(&[("rustup", first), ("debian", second)]))
        }),
        other => bail!("{FORCE_VAR}={other} names no way to build guests; use rustup or debian, or unset it"),
    }?;
    if install {
        step(&format!("using {}", found.describe()));
    }
    Ok(found)
}

/// Where a build with this target directory leaves the core modules: `NAME.wasm`, with `_` for `-`.
pub(crate) fn output(target: &Path) -> PathBuf {
    target.join(TARGET).join("release")
}

impl GuestToolchain {
    /// Builds packages of a guest workspace in release; no names: all of them.
    ///
    /// # Errors
    /// If cargo cannot be started or fails. What it says goes straight to the terminal.
    pub fn build(&self, workspace_dir: &Path, packages: &[&str]) -> Result<()> {
        let mut cargo = self.cargo();
        cargo.current_dir(workspace_dir);
        cargo.args(["build", "--release", "--target", TARGET]);
        // Said here because a `build.target-dir` in the user's own cargo config would move it.
        cargo.arg("--target-dir").arg(target_dir(workspace_dir)?);
        match packages {
            [] => cargo.arg("--workspace"),
            some => cargo.args(some.iter().flat_map(|name| ["--package", name])),
        };
        if matches!(self.way, Way::Debian) {
            cargo.arg("-Zbuild-std=std,panic_abort");
        }
        step(&format!("building {} in {}", names(packages), workspace_dir.display()));
        let status = cargo.status().context("cannot start cargo for the guests")?;
        if !status.success() {
            bail!(
                "the guests in {} do not build with {} ({status}); cargo says why above",
                workspace_dir.display(),
                self.describe()
            );
        }
        Ok(())
    }

    /// Builds one package of its own; what cargo says is shown only if it fails.
    pub(crate) fn build_package(&self, dir: &Path, target: &Path, package: &str) -> Result<()> {
        let mut cargo = self.cargo();
        cargo.current_dir(dir).args([
            "build",
            "--quiet",
            "--release",
            "--target",
            TARGET,
            "--package",
            package,
        ]);
        cargo.arg("--target-dir").arg(target);
        if matches!(self.way, Way::Debian) {
            cargo.arg("-Zbuild-std=std,panic_abort");
        }
        crate::run::quietly(&mut cargo).map(|_| ())
    }

    /// Where `build` leaves the core modules: `NAME.wasm`, with `_` for `-`.
    #[must_use]
    pub fn output_dir(&self, workspace_dir: &Path) -> PathBuf {
        output(&workspace_dir.join("target"))
    }

    /// The toolchain in a few words, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.way {
            Way::Rustup { toolchain } => format!("rustup's {toolchain} ({})", self.version),
            Way::Debian => format!("Debian's {} with its own std sources", self.version),
        }
    }

    fn cargo(&self) -> Command {
        match &self.way {
            Way::Rustup { toolchain } => {
                // Not plain `cargo`: another cargo may stand before rustup's in PATH.
                let mut command = scrubbed("rustup");
                command.args(["run", toolchain, "cargo"]);
                command
            }
            Way::Debian => {
                let mut command = scrubbed(DEBIAN_CARGO);
                // build-std is unstable; Debian ships no nightly.
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", DEBIAN_LINKER);
                command.env("PATH", path_with_usr_bin_first());
                command
            }
        }
    }
}

/// The first way: rustup's active toolchain, with the target added if it lacks it.
fn rustup(install: bool) -> Result<GuestToolchain> {
    if !in_path("rustup") {
        bail!("rustup is not installed");
    }
    // "stable-x86_64-unknown-linux-gnu (default)"
    let active = answer(scrubbed("rustup").args(["show", "active-toolchain"]))?;
    let toolchain = active
        .split_whitespace()
        .next()
        .context("rustup has no active toolchain (rustup default stable)")?
        .to_owned();
    if !has_target(&toolchain)? {
        if !install {
            bail!("{toolchain} lacks {TARGET}");
        }
        step(&format!("rustup target add {TARGET} (at most {} s)", RUSTUP_ADD_LIMIT.as_secs()));
        let mut add = scrubbed("rustup");
        add.args(["target", "add", "--toolchain", &toolchain, TARGET]);
        run_quietly(&mut add, RUSTUP_ADD_LIMIT)?;
        // Trust what is there, not what a command promised.
        if !has_target(&toolchain)? {
            bail!("rustup target add succeeded, but {toolchain} still lacks {TARGET}");
        }
    }
    let version = answer(scrubbed("rustup").args(["run", &toolchain, "rustc", "--version"]))?;
    Ok(GuestToolchain { way: Way::Rustup { toolchain }, version })
}

fn has_target(toolchain: &str) -> Result<bool> {
    let list = answer(scrubbed("rustup").args(["target", "list", "--installed", "--toolchain", toolchain]))?;
    Ok(list.lines().any(|line| line.trim() == TARGET))
}

/// The second way: Debian's packages, installed if they are not there and this process may.
fn debian(install: bool) -> Result<GuestToolchain> {
    if !in_path("dpkg-query") {
        bail!("this is no Debian (no dpkg-query)");
    }
    let missing = missing_packages(&DEBIAN_PACKAGES);
    if !missing.is_empty() && !install {
        bail!("these packages are not installed: {}", missing.join(" "));
    }
    install_packages(&DEBIAN_PACKAGES)?;
    for file in [DEBIAN_RUSTC, DEBIAN_CARGO, DEBIAN_LINKER] {
        if !Path::new(file).is_file() {
            bail!("{file} is missing although its package is installed");
        }
    }
    let version = answer(scrubbed(DEBIAN_RUSTC).arg("--version"))?;
    Ok(GuestToolchain { way: Way::Debian, version })
}

/// Installs those of these packages that are not there.
pub(crate) fn install_packages(packages: &[&str]) -> Result<()> {
    let missing = missing_packages(packages);
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !in_path("apt-get") {
        bail!("these packages are not installed, and there is no apt-get: {list}");
    }
    if !is_root() {
        bail!("these packages are not installed, and only root may install them: {list}");
    }
    // A fresh machine has no package lists, and old lists name files that are gone.
    step("apt-get update");
    let mut update = apt_get();
    update.args(APT_OPTIONS).arg("update");
    if let Err(error) = run_quietly(&mut update, Duration::MAX) {
        // Lists of before may still do.
        step(&format!("apt-get update fails, going on: {error:#}"));
    }
    step(&format!("apt-get install {list}"));
    let mut install = apt_get();
    install.args(APT_OPTIONS).args(["install", "-y", "--no-install-recommends"]).args(&missing);
    run_quietly(&mut install, Duration::MAX)?;
    let missing = missing_packages(packages);
    if !missing.is_empty() {
        bail!("apt-get install succeeded, but these are still missing: {}", missing.join(" "));
    }
    Ok(())
}

/// By package, not by file: `/usr/bin/rustc` may also be Debian's old compiler.
fn missing_packages<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    packages.iter().copied().filter(|name| !is_installed(name)).collect()
}

fn is_installed(package: &str) -> bool {
    // An unknown package is an error to dpkg-query, and to us simply not installed.
    answer(scrubbed("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

fn apt_get() -> Command {
    let mut command = scrubbed("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// The error that ends it all: every reason, then what to type.
fn no_toolchain(tried: &[(&str, anyhow::Error)]) -> anyhow::Error {
    let mut text = format!("there is no toolchain for guests ({TARGET})\n");
    for (way, error) in tried {
        text.push_str(&format!("  {way}: {error:#}\n"));
    }
    text.push_str("do one of these, then try again:\n");
    text.push_str(&format!("  rustup target add {TARGET}\n"));
    text.push_str("  sudo apt-get update && sudo apt-get install -y --no-install-recommends ");
    text.push_str(&DEBIAN_PACKAGES.join(" "));
    anyhow!(text)
}

fn names(packages: &[&str]) -> String {
    if packages.is_empty() { "all guests".to_owned() } else { packages.join(", ") }
}

fn step(text: &str) {
    eprintln!("guest toolchain: {text}");
}

/// Absolute, since cargo is started in another folder than this process.
fn target_dir(workspace_dir: &Path) -> Result<PathBuf> {
    let dir = fs::canonicalize(workspace_dir)
        .with_context(|| format!("there is no guest workspace at {}", workspace_dir.display()))?;
    Ok(dir.join("target"))
}

/// A command without what the surrounding cargo and rustup left in the environment.
fn scrubbed(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| !is_kept(name)) {
            command.env_remove(&name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// What a guest build may inherit: of cargo's variables only those about the network, the terminal and
/// the linkers (proc macros are linked for the host), of Rust's own only where rustup lives.
fn is_kept(name: &str) -> bool {
    const CARGO_KEPT: [&str; 7] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    match name {
        // cargo run and rustup put the libraries of their compiler here; Debian's must not load them.
        "LD_LIBRARY_PATH" => false,
        "RUSTUP_TOOLCHAIN"
        | "RUSTUP_TOOLCHAIN_SOURCE"
        | "RUST_RECURSION_COUNT"
        | "RUSTFLAGS"
        | "RUSTDOC"
        | "RUSTDOCFLAGS" => false,
        _ if name.starts_with("RUSTC") => false,
        _ if name.starts_with("CARGO_TARGET_") => name.ends_with("_LINKER"),
        _ if name.starts_with("CARGO") => CARGO_KEPT.iter().any(|kept| name.starts_with(kept)),
        _ => true,
    }
}

fn path_with_usr_bin_first() -> OsString {
    let mut path = OsString::from("/usr/bin");
    if let Some(rest) = env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    path
}

fn in_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// `/proc/self` belongs to the effective user.
fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Runs a command that looks something up and gives its trimmed output.
fn answer(command: &mut Command) -> Result<String> {
    run_quietly(command, LOOKUP_LIMIT)
}

/// Runs a command, kills it at the limit, and gives its standard output. If it fails, the end of all
/// that it said is in the error.
///
/// The output goes to files, not pipes: nobody has to read them while the command runs, and a
/// grandchild that outlives it cannot keep them open for us.
fn run_quietly(command: &mut Command, limit: Duration) -> Result<String> {
    let start = Instant::now();
    run_until(command, limit, || start.elapsed() >= limit)
}

/// The same, of a limit that is reached when `is_over` says so.
fn run_until(command: &mut Command, limit: Duration, is_over: impl Fn() -> bool) -> Result<String> {
    let line = command_line(command);
    let mut out = tempfile::tempfile().context("cannot make a temporary file")?;
    let mut err = tempfile::tempfile().context("cannot make a temporary file")?;
    command.stdout(out.try_clone()?).stderr(err.try_clone()?);
    let ended = wait(command, is_over).with_context(|| format!("`{line}` does not run"))?;
    let said = read_back(&mut out)?;
    if ended.is_some_and(|status| status.success()) {
        return Ok(said.trim().to_owned());
    }
    let all = format!("{}\n{}", said.trim(), read_back(&mut err)?.trim());
    match ended {
        Some(status) => bail!("`{line}` fails ({status}): {}", tail(all.trim())),
        None => bail!("`{line}` did not end within {} s: {}", limit.as_secs(), tail(all.trim())),
    }
}

/// The command's end, or nothing if it had to be killed.
fn wait(command: &mut Command, is_over: impl Fn() -> bool) -> Result<Option<ExitStatus>> {
    let mut child = command.spawn()?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if is_over() {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

fn read_back(file: &mut fs::File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn tail(text: &str) -> &str {
    let mut from = text.len().saturating_sub(ERROR_BYTES_MAX);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text.get(from..).unwrap_or(text)
}

fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_hands_down_does_not_reach_guests() {
        let gone = [
            "CARGO",
            "CARGO_BUILD_TARGET",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_MANIFEST_DIR",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_TARGET_DIR",
            "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS",
            "LD_LIBRARY_PATH",
            "RUSTC",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ];
        for name in gone {
            assert!(!is_kept(name), "{name}");
        }
        let kept = [
            "CARGO_HOME",
            "CARGO_NET_OFFLINE",
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER",
            "HOME",
            "PATH",
            "RUSTUP_HOME",
            "RUST_BACKTRACE",
        ];
        for name in kept {
            assert!(is_kept(name), "{name}");
        }
    }

    #[test]
    fn a_command_that_hangs_is_killed_and_its_words_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (said, start) = (dir.path().join("said"), Instant::now());
        let mut command = Command::new("sh");
        command.args(["-c", "echo no route to host >&2; : > \"$0\"; exec sleep 600"]).arg(&said);
        // Over when its words are out, and no sooner: a process may stand still for seconds before its first step.
        let error =
            run_until(&mut command, Duration::from_secs(8), || said.exists()).unwrap_err().to_string();
        assert!(error.contains("did not end within 8 s: no route to host"), "{error}");
        let error = run_quietly(Command::new("sleep").arg("600"), Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("did not end within 1 s"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(120));
    }

    #[test]
    fn a_command_that_fails_says_why() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo reason >&2; exit 3"]);
        let error = run_quietly(&mut command, LOOKUP_LIMIT).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("out\nreason"), "{error}");
    }

    #[test]
    fn the_final_error_names_every_reason_and_every_remedy() {
        let error =
            no_toolchain(&[("rustup", anyhow!("no network")), ("debian", anyhow!("not root"))]).to_string();
        for part in
            ["rustup: no network", "debian: not root", "rustup target add wasm32", "rust-web-llvm lld-19"]
        {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_long_output_is_cut_between_characters() {
        assert_eq!(tail("short"), "short");
        let long = "ä".repeat(ERROR_BYTES_MAX);
        assert!(tail(&format!("x{long}")).len() <= ERROR_BYTES_MAX);
    }
}
