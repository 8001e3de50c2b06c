//! Tests of the SDKs for Python and JavaScript, without a sandbox: what a plugin says, and what crosses. They take a second,
//! where a component of these languages takes half a minute.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use flumen_tests::locate;

use crate::bindings;
use crate::build::check;
use crate::report::step;

/// Where the tests are, from the repository.
const TESTS: &str = "plugins/sdk/tests";
/// Everything that a plugin can import and export.
const WORLD: &str = "\nworld everything {
    import log;
    import state;
    import http;
    import tcp;
    export about;
    export guest;
    export aggregation;
    export decoding;
    export encoding;
    export delivery;
}\n";

/// Runs them, with the toolchains that `build::languages` made sure of.
///
/// # Errors
/// If a test fails.
pub fn test() -> Result<()> {
    let (root, target) = (locate::repository()?, locate::target_dir()?);
    let (work, toolchains) = (target.join("sdk-tests"), target.join("toolchains"));
    if work.is_dir() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work)?;
    step("tests of the SDK for Python", || python(&root, &work, &toolchains.join("python/bin")))?;
    step("tests of the SDK for JavaScript", || js(&root, &work, &toolchains.join("js/node_modules/.bin")))
}

/// A program of a toolchain, or of this machine.
fn program(dir: &Path, name: &str) -> PathBuf {
    Some(dir.join(name)).filter(|path| path.exists()).unwrap_or_else(|| name.into())
}

fn python(root: &Path, work: &Path, bin: &Path) -> Result<()> {
    let wit =
        fs::read_to_string(root.join(bindings::WIT).join("flumen.wit")).context("there is no interface")?;
    fs::write(work.join("flumen.wit"), wit + WORLD)?;
    let generated = work.join("bindings");
    let mut componentize = Command::new(program(bin, "componentize-py"));
    componentize.current_dir(work).args(["-q", "-d", "flumen.wit", "-w", "everything", "bindings"]);
    check(componentize.arg(&generated))?;
    let path = std::env::join_paths([generated, root.join("plugins/sdk/python")])?;
    let mut python = Command::new(program(bin, "python3"));
    // Nothing is left in the repository.
    python.env("PYTHONPATH", path).env("PYTHONDONTWRITEBYTECODE", "1");
    check(python.arg(root.join(TESTS).join("test_flumen.py")).arg("--quiet"))
}

fn js(root: &Path, work: &Path, bin: &Path) -> Result<()> {
    let (tests, sdk) = (root.join(TESTS), root.join("plugins/sdk/js"));
    let bundle = work.join("test_flumen.mjs");
    let mut esbuild = Command::new(program(bin, "esbuild"));
    esbuild.arg(tests.join("test_flumen.js")).args([
        "--bundle",
        "--format=esm",
        "--platform=node",
        "--log-level=warning",
    ]);
    let host = tests.join("host.js");
    for (name, file) in [
        ("flumen", sdk.join("flumen.js")),
        ("flumen/state", sdk.join("state.js")),
        ("flumen/http", sdk.join("http.js")),
        ("flumen/tcp", sdk.join("tcp.js")),
        ("flumen:plugin/state@0.2.0", host.clone()),
        ("flumen:plugin/http@0.2.0", host.clone()),
        ("flumen:plugin/tcp@0.2.0", host),
    ] {
        esbuild.arg(format!("--alias:{name}={}", file.display()));
    }
    check(esbuild.arg(format!("--outfile={}", bundle.display())))?;
    check(Command::new("node").args(["--test", "--test-reporter=dot"]).arg(&bundle))
}
