//! Python: componentize-py, which puts CPython and the plugin's modules into one component; what they are made of is put
//! together then.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Made, Work, apt_command, apt_install, missing, step};
use crate::merge;
use crate::run::{find, quietly, write_if_changed};
use crate::world;

const TOOL: &str = "componentize-py";
const VERSION: &str = "0.25.1";
const APP: &str = "\
# Written by `flumen plugin build`: what componentize-py looks for.
import flumen
from plugin import Plugin

globals().update(flumen.exports(Plugin))
";

pub(super) fn build(work: &Work<'_>) -> Result<Made> {
    work.source(&["plugin.py"])?;
    let tool = tool(work)?;
    let (wit, app, core) =
        (work.build.join("wit"), work.build.join("app"), work.build.join("component.wasm"));
    world::write_own(work.dir, work.manifest, &wit)?;
    write_if_changed(&app.join("app.py"), APP.as_bytes())?;
    let mut command = Command::new(&tool);
    command.current_dir(&work.build).env("RUST_BACKTRACE", "0").arg("-d").arg(&wit).args([
        "-w",
        world::OWN_WORLD,
        "componentize",
        "--stub-wasi",
    ]);
    for path in [app.as_path(), work.dir, &work.sdk()] {
        command.arg("-p").arg(path);
    }
    quietly(command.args(["app", "-o"]).arg(&core))?;
    let version = quietly(Command::new(&tool).arg("--version"))?;
    Ok(Made { component: merge::merge(fs::read(core)?), toolchain: version.trim().to_owned() })
}

fn tool(work: &Work<'_>) -> Result<PathBuf> {
    let own = work.toolchains.join("python");
    let places = [work.dir.join(".venv/bin"), own.join("bin")];
    let places: Vec<&Path> = places.iter().map(PathBuf::as_path).collect();
    if let Some(found) = find(TOOL, &places) {
        return Ok(found);
    }
    let pip = own.join("bin/pip");
    let commands = [
        format!("python3 -m venv {}", own.display()),
        format!("{} install {TOOL}=={VERSION}", pip.display()),
    ];
    if !work.install {
        return Err(missing(&format!("{TOOL} is not there"), &commands));
    }
    step(&commands.join(" && "));
    let venv = || quietly(Command::new("python3").args(["-m", "venv"]).arg(&own));
    if venv().is_err() {
        let packages = ["python3", "python3-venv"];
        apt_install(&packages)?;
        venv().with_context(|| format!("python3 makes no environment ({})", apt_command(&packages)))?;
    }
    quietly(Command::new(&pip).args(["install", "--quiet", &format!("{TOOL}=={VERSION}")]))?;
    find(TOOL, &places).with_context(|| format!("pip installed {TOOL}, but it is not in {}", own.display()))
}
