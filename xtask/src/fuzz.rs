//! `cargo xtask fuzz`: plugin files and answers that are nearly right, through the real engine.

use std::process::ExitCode;

use anyhow::{Result, bail};
use flumen_tests::locate;

use crate::build::cargo;
use crate::report::step;

/// For how long, and from where.
#[derive(clap::Args)]
pub struct Arguments {
    /// For how long
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// The same cases as a run that printed this
    #[arg(long)]
    seed: Option<u64>,
    /// Only this case of the seed
    #[arg(long, requires = "seed")]
    only: Option<u64>,
}

/// Runs it.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    fuzz(arguments.minutes, arguments.seed, arguments.only)?;
    Ok(ExitCode::SUCCESS)
}

/// Fuzzes; a failure says how it is repeated, and where its file is.
///
/// # Errors
/// If a case failed.
pub fn fuzz(minutes: f64, seed: Option<u64>, only: Option<u64>) -> Result<()> {
    let root = locate::repository()?;
    let keep = locate::target_dir()?.join("fuzz");
    let mut command = cargo();
    // Without a package: the features of one alone are others, and the engine would be built once more.
    command.current_dir(root).args(["run", "--quiet", "--example", "plugin_fuzz", "--"]);
    command.arg("--minutes").arg(minutes.to_string()).arg("--keep").arg(&keep);
    seed.iter().for_each(|seed| _ = command.arg("--seed").arg(seed.to_string()));
    only.iter().for_each(|only| _ = command.arg("--only").arg(only.to_string()));
    step(&format!("fuzzing of plugin files and answers, {minutes} minutes"), || {
        let status = command.status()?;
        if status.success() {
            return Ok(());
        }
        // A death by a signal says nothing more; the file that was tried is there.
        bail!(
            "{status}; files are in {}: current.wasm is the last one. A file that has to stay harmless goes to host/plugin/tests/cases/",
            keep.display()
        )
    })
}
