//! Go: its own toolchain, which makes a module for WASI; an adapter inside of it answers for WASI, and its runtime is
//! started when it is built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Made, Work, missing};
use crate::component::wrap_go;
use crate::run::{find, quietly};
use crate::world;

/// The first release with `go:wasmexport`.
const MINOR_MIN: u32 = 24;
const HOW: &str = "curl -LO https://go.dev/dl/go1.26.0.linux-amd64.tar.gz && sudo tar -C /usr/local -xzf go1.26.0.linux-amd64.tar.gz";

pub(super) fn build(work: &Work<'_>) -> Result<Made> {
    work.source(&["plugin.go", "main.go"])?;
    let (go, version) = toolchain()?;
    let core = work.build.join("core.wasm");
    let mut command = Command::new(go);
    command.current_dir(work.dir).env("GOOS", "wasip1").env("GOARCH", "wasm");
    // The plugin's own go.mod counts, and the SDK beside it needs no sum.
    command.env("GOWORK", "off").env("GOFLAGS", "-mod=mod");
    command.args(["build", "-buildmode=c-shared", "-trimpath", "-ldflags=-checklinkname=0 -s -w", "-o"]);
    quietly(command.arg(&core).arg("."))?;
    let (resolve, world) = world::full(work.dir, work.manifest)?;
    Ok(Made { component: wrap_go(&fs::read(core)?, &resolve, world, work.run)?, toolchain: version })
}

fn toolchain() -> Result<(PathBuf, String)> {
    let what = |found: &str| {
        missing(&format!("Go 1.{MINOR_MIN} or newer is needed, and there is {found}"), &[HOW.to_owned()])
    };
    let go = find("go", &[Path::new("/usr/local/go/bin")]).ok_or_else(|| what("none"))?;
    // "go version go1.26.8 linux/amd64"
    let said = quietly(Command::new(&go).arg("version"))?;
    let version = said.split_whitespace().nth(2).context("go version says nothing")?;
    let minor = version
        .strip_prefix("go1.")
        .and_then(|rest| rest.split(['.', 'r', 'b', '-']).next()?.parse::<u32>().ok());
    // What cannot be read is newer than this.
    if minor.is_some_and(|minor| minor < MINOR_MIN) {
        return Err(what(version));
    }
    Ok((go, version.to_owned()))
}
