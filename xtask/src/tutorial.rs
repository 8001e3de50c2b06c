//! `cargo xtask tutorial LANGUAGE`: types what `docs/plugins/LANGUAGE.md` says, word by word, in an empty directory.
//!
//! Blocks that begin with ```` ```sh ```` are what a user types. A command that fails ends it.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use flumen_tests::locate;

use crate::build;

/// Which page.
#[derive(clap::Args)]
pub struct Arguments {
    /// rust, c, go, js or python
    #[arg(value_parser = build::LANGUAGES)]
    language: String,
    /// Install the toolchain anew, as on a machine that has none
    #[arg(long)]
    fresh: bool,
    /// With a release build, as users have
    #[arg(long)]
    release: bool,
}

/// Longer than that, it was not ten minutes.
const LIMIT: &str = "600";
/// The agent runs in the background of the same shell, and ends with it, whatever happens.
const BEFORE: &str = "set -euo pipefail; set -m; trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n";

/// Builds `flumen` and runs a page.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let binary = build::host(arguments.release)?;
    let started = Instant::now();
    page(&binary, &arguments.language, arguments.fresh)?;
    println!("{}: {:.0} s", arguments.language, started.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

/// Runs a page with this binary.
///
/// # Errors
/// If a command fails or it takes more than ten minutes.
pub fn page(binary: &Path, language: &str, is_fresh: bool) -> Result<()> {
    let page = locate::repository()?.join("docs/plugins").join(format!("{language}.md"));
    let text = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    let script = format!("{BEFORE}{}", typed(&text));
    let scratch = tempfile::tempdir()?;
    let toolchains =
        if is_fresh { scratch.path().join("toolchains") } else { locate::target_dir()?.join("toolchains") };
    let dir = scratch.path().join("empty");
    fs::create_dir(&dir)?;
    let bin = binary.parent().context("a binary without a directory")?;
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", LIMIT, "bash", "-c", &script]).current_dir(dir);
    command.env("PATH", path).env("FLUMEN_TOOLCHAINS", toolchains);
    let status = command.status().context("cannot start bash")?;
    if !status.success() {
        bail!("{}: a command fails ({status}); what it says is above", page.display());
    }
    Ok(())
}

/// Everything between ```` ```sh ```` and ```` ``` ````.
fn typed(text: &str) -> String {
    let blocks = text.split("\n```sh\n").skip(1).filter_map(|rest| rest.split("\n```").next());
    blocks.map(|block| format!("{block}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_typed_is_run() {
        let text = "a\n```sh\none\ntwo\n```\n```toml\nnot = 1\n```\n```sh\nthree\n```\n";
        assert_eq!(typed(text), "one\ntwo\nthree\n");
    }
}
