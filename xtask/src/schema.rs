//! `cargo xtask schema`: what is generated from the code that reads the configuration, and checked in.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Result, bail};
use flumen_tests::{locate, scene};

use crate::build;
use crate::report::step;

/// Write or check.
#[derive(clap::Args)]
pub struct Arguments {
    /// Change nothing; fail if a file is stale
    #[arg(long)]
    check: bool,
}

/// What `flumen schema WHICH` prints, and where it is kept.
const FILES: [(&str, &str); 5] = [
    ("pipeline", "config/schema/pipeline.schema.json"),
    ("agent", "config/schema/agent.schema.json"),
    ("bridge", "config/schema/bridge.schema.json"),
    ("reference", "config/REFERENCE.md"),
    ("worlds", "docs/plugins/worlds.md"),
];
const LIMIT: Duration = Duration::from_secs(30);

/// Writes or checks.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let binary = build::host(false)?;
    if arguments.check { check(&binary) } else { write(&binary) }?;
    Ok(ExitCode::SUCCESS)
}

fn write(binary: &Path) -> Result<()> {
    let root = locate::repository()?;
    for (which, path) in FILES {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&root))?;
        fs::write(&path, generated(binary, which)?)?;
        eprintln!("    {}", path.display());
    }
    Ok(())
}

/// Fails if a file is not as the code would write it now.
///
/// # Errors
/// With the names of the stale ones.
pub fn check(binary: &Path) -> Result<()> {
    step("schema and reference of the configuration are up to date", || {
        let root = locate::repository()?;
        let mut stale = Vec::new();
        for (which, path) in FILES {
            if fs::read_to_string(root.join(path)).ok() != Some(generated(binary, which)?) {
                stale.push(path);
            }
        }
        if !stale.is_empty() {
            bail!("stale: {}; run `cargo xtask schema` and check in what it writes", stale.join(", "));
        }
        Ok(())
    })
}

fn generated(binary: &Path, which: &str) -> Result<String> {
    let mut command = Command::new(binary);
    command.args(["schema", which]);
    let answer = scene::run(command, LIMIT)?;
    if !answer.status.success() {
        bail!("flumen schema {which}: {} {}", answer.status, answer.stderr.trim());
    }
    Ok(answer.stdout)
}
