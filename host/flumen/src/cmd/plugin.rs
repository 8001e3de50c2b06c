//! `flumen plugin`: look at plugins, run their cases, try them on lines.

mod author;
mod bench;
mod cases;
mod dev;
mod fetch;
mod install;
mod random;
pub mod shadow;
mod test;
mod trial;

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flumen_pipeline::plan::PluginLimits;
use flumen_plugin::{HostConfig, PluginHost};

use crate::cmd::{event_json, lines_batch, print_json};
use crate::exit::Failure;
use crate::{Output, cmd};

/// What to do with plugins.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a directory with a plugin that builds at once.
    New(author::NewArgs),
    /// Build a plugin's directory into one component.
    Build(author::BuildArgs),
    /// Show what a plugin's file is: world, imports, size, hash, what it reads.
    Inspect {
        /// A component, or a core module that wit-bindgen made.
        file: PathBuf,
        /// The plugin's configuration, as JSON.
        #[arg(long, default_value = "{}")]
        config: String,
    },
    /// Run the cases of a plugin (`DIR/cases/*.toml`) and random batches through the sandbox.
    Test(test::Args),
    /// Measure what a plugin costs per event, beside one that does nothing.
    Bench(bench::Args),
    /// Build, test and show the difference of the outputs whenever a file is saved.
    Dev(dev::Args),
    /// Write a built plugin and its digest under its version's name.
    Package(install::PackageArgs),
    /// Put a plugin into the plugin directory: from a directory, a URL or an OCI registry, noted in plugins.lock.
    Install(install::InstallArgs),
    /// Run a new version beside the one of a running agent, on live events and without effect, and show the differences.
    Shadow(shadow::Args),
    /// Run one plugin over the lines of standard input; each event that comes out is a JSON line.
    Run {
        /// A component, or a core module that wit-bindgen made.
        file: PathBuf,
        /// The plugin's configuration, as JSON.
        #[arg(long, default_value = "{}")]
        config: String,
        /// Host powers to grant, with commas between.
        #[arg(long, value_delimiter = ',', value_parser = ["log", "metrics", "clock", "random"])]
        grant: Vec<String>,
    },
}

/// Lines given to the plugin at once by `plugin run`.
const RUN_ROWS: usize = 1_000;

/// Does it.
pub fn run(command: Command, output: Output) -> Result<(), Failure> {
    match command {
        Command::New(args) => author::new(args, output),
        Command::Build(args) => author::build(args, output),
        Command::Inspect { file, config } => inspect(&*host()?, &file, &config, output),
        Command::Test(args) => test::run(&*host()?, &args, output),
        Command::Bench(args) => bench::run(&*host()?, &args, output),
        Command::Package(args) => install::package(&*host()?, &args, output),
        Command::Install(args) => install::install(&*host()?, &args, output),
        Command::Shadow(args) => shadow::run(args, output),
        Command::Dev(args) => dev::run(&*host()?, &args),
        Command::Run { file, config, grant } => run_lines(&*host()?, &file, &config, &grant),
    }
}

/// A host for one command. Compiled plugins are kept in the user's own cache: a large one takes seconds.
fn host() -> Result<Arc<PluginHost>, Failure> {
    one_command(cache_dir().map_err(Failure::from)?, Vec::new())
}

/// Where the commands of this user keep compiled plugins.
pub fn cache_dir() -> anyhow::Result<PathBuf> {
    Ok(flumen_author::toolchains_dir()?.with_file_name("compiled"))
}

/// A host that watches nothing.
pub fn one_command(cache_dir: PathBuf, other_caches: Vec<PathBuf>) -> Result<Arc<PluginHost>, Failure> {
    if let Some(parent) = cache_dir.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let host = PluginHost::new(HostConfig { watch: false, other_caches, ..HostConfig::new(cache_dir) });
    Ok(host.map_err(|error| anyhow::anyhow!("cannot start the plugin host: {error}"))?)
}

fn inspect(host: &PluginHost, file: &Path, config: &str, output: Output) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    let found = host.inspect(file, config).map_err(|error| Failure::Unfit(vec![error.to_string()]))?;
    if output == Output::Json {
        return print_json(&found);
    }
    let list = |names: &[String]| if names.is_empty() { "none".to_string() } else { names.join(", ") };
    writeln!(out, "file      {}", found.path.display())?;
    writeln!(out, "kind      {}", serde_json::to_value(found.kind)?.as_str().unwrap_or("?"))?;
    writeln!(out, "world     {}", found.world)?;
    writeln!(out, "size      {} ({} bytes)", cmd::status::size(found.size_bytes), found.size_bytes)?;
    writeln!(out, "hash      {}", found.hash)?;
    writeln!(out, "imports   {}", list(&found.imports))?;
    writeln!(out, "exports   {}", list(&found.exports))?;
    writeln!(out, "grants    {}", list(&found.needs))?;
    match (&found.reads, &found.open_error) {
        (Some(reads), _) => writeln!(out, "reads     {}", serde_json::to_string(reads)?)?,
        (None, Some(error)) => writeln!(
            out,
            "reads     unknown: open said: {error}\n          give its configuration with --config"
        )?,
        (None, None) => {}
    }
    if let Some(ms) = found.compile_ms {
        writeln!(out, "compiled  in {ms} ms")?;
    }
    Ok(())
}

fn run_lines(host: &PluginHost, file: &Path, config: &str, grants: &[String]) -> Result<(), Failure> {
    let name = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let plugin = host
        .open(file, &name, config, grants, PluginLimits::default())
        .map_err(|error| Failure::Unfit(vec![error.to_string()]))?;
    let alone = flumen_plugin::Alone::new(plugin);
    if std::io::stdin().is_terminal() {
        eprintln!("reading lines from the terminal; end with Ctrl-D");
    }
    let mut input = std::io::stdin().lock();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let (mut first, mut kept, mut left, mut dropped) = (0, 0, 0, 0);
    loop {
        let mut lines = Vec::new();
        while lines.len() < RUN_ROWS {
            let mut line = Vec::new();
            if input.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            lines.push(line);
        }
        if lines.is_empty() {
            break;
        }
        let (processed, made) = alone.process(lines_batch(&lines, first)?, None);
        first += lines.len() as u64;
        for row in 0..processed.kept.rows() {
            writeln!(out, "{}", event_json(&processed.kept, row))?;
        }
        for batch in &made {
            for row in 0..batch.rows() {
                writeln!(out, "{}", event_json(batch, row))?;
            }
        }
        kept += processed.kept.rows() + made.iter().map(flumen_event::Batch::rows).sum::<usize>();
        dropped += processed.dropped;
        for group in processed.quarantined {
            for (row, reason) in group.reasons.iter().enumerate().take(group.batch.rows()) {
                let line = group.batch.position().value(row) + 1;
                eprintln!("line {line} {}: {reason}", if group.rejected { "rejected" } else { "failed" });
                left += 1;
            }
        }
    }
    out.flush()?;
    eprintln!("{first} lines in, {kept} events out, {dropped} dropped, {left} rejected or failed");
    if first == 0 && kept == 0 {
        return Err(bail_empty().into());
    }
    Ok(())
}

fn bail_empty() -> anyhow::Error {
    anyhow::anyhow!("standard input was empty: give lines, for example `flumen plugin run FILE < access.log`")
}

/// A basic string of TOML, which has JSON's escapes, and wants one for DEL, too.
fn toml_text(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}
