//! Starting the tools of others.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, bail};

/// How much of a failed tool's output goes into the error: its end, where the reason stands.
const OUTPUT_BYTES_MAX: usize = 8_000;

/// A program that is in `PATH`, or in one of these places.
pub(crate) fn find(program: &str, also: &[&Path]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = also.iter().map(|dir| dir.to_path_buf()).chain(env::split_paths(&path));
    dirs.map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Runs a tool to its end; what it says is shown only if it fails.
pub(crate) fn quietly(command: &mut Command) -> Result<String> {
    let answer = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    let mut said = String::from_utf8_lossy(&answer.stdout).into_owned();
    if answer.status.success() {
        return Ok(said);
    }
    said.push_str(&String::from_utf8_lossy(&answer.stderr));
    let program = command.get_program().to_string_lossy();
    bail!("{program} failed ({}):\n{}", answer.status, tail(&said))
}

fn tail(text: &str) -> &str {
    let text = text.trim_end();
    let mut from = text.len().saturating_sub(OUTPUT_BYTES_MAX);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text.get(from..).unwrap_or(text)
}

/// Writes a file that is new or has changed: an unchanged one keeps its time, which build tools look at.
pub(crate) fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
