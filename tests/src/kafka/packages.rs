//! Programs of the machine that the broker needs, or that build librdkafka, and the Debian packages that bring them.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use anyhow::{Result, bail};

use crate::{limits, scene};

/// apt-get has no time limit of its own here: killed while it unpacks, it leaves dpkg broken.
/// Its downloads are limited instead, and its wait for another apt-get.
const APT_OPTIONS: [&str; 6] =
    ["-o", "Acquire::http::Timeout=30", "-o", "Acquire::Retries=1", "-o", "DPkg::Lock::Timeout=120"];

/// Makes sure that a program can be started; installs its Debian package where this process may.
///
/// # Errors
/// If it is missing and cannot be installed: names the package.
pub fn need(program: &str, package: &str) -> Result<()> {
    if in_path(program) {
        return Ok(());
    }
    let remedy = format!("apt-get install -y --no-install-recommends {package}");
    if !in_path("apt-get") || !is_root() {
        bail!("`{program}` is not there; on Debian, as root: {remedy}");
    }
    super::install::step(&format!("`{program}` is not there: {remedy}"));
    // A fresh machine has no package lists. Where the update fails, those of before may still do.
    if let Err(error) = apt_get(&["update"]) {
        super::install::step(&format!("going on: {error:#}"));
    }
    apt_get(&["install", "-y", "--no-install-recommends", package])?;
    if !in_path(program) {
        bail!("`{remedy}` succeeded, but `{program}` is still not there");
    }
    Ok(())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(APT_OPTIONS).args(arguments);
    let answer = scene::run(command, limits::APT)?;
    if !answer.status.success() {
        bail!("`apt-get {}` fails ({}): {}", arguments.join(" "), answer.status, answer.stderr.trim());
    }
    Ok(())
}

fn in_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// `/proc/self` belongs to the effective user.
fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}
