//! `flumen plugin`: look at plugins, run their cases, try them on lines.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use arrow_array::StringArray;
use flumen_config::{CaseEvent, CaseFile};
use flumen_event::{Batch, BatchBuilder, HeaderColumn};
use flumen_pipeline::InterceptorVersion;
use flumen_pipeline::plan::PluginLimits;
use flumen_plugin::cases::{Case, CaseOutcome, ExpectedEvent};
use flumen_plugin::{HostConfig, PluginHost};

use crate::cmd::{Scratch, event_json, lines_batch, print_json};
use crate::exit::{FAILED, Failure, counted};
use crate::{Output, cmd};

/// What to do with plugins.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show what a plugin's file is: world, imports, size, hash, what it reads.
    Inspect {
        /// A component, or a core module that wit-bindgen made.
        file: PathBuf,
        /// The plugin's configuration, as JSON.
        #[arg(long, default_value = "{}")]
        config: String,
    },
    /// Run the cases of a plugin (`DIR/cases/*.toml`) through the sandbox.
    Test {
        /// The plugin's folder.
        dir: PathBuf,
        /// Its component. Default: the only .wasm file in the folder, else what the guest workspace has built.
        #[arg(long)]
        wasm: Option<PathBuf>,
    },
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
    let cache = Scratch::new()?;
    let config = HostConfig { cache_dir: cache.path().to_path_buf(), watch: false };
    let host =
        PluginHost::new(config).map_err(|error| anyhow::anyhow!("cannot start the plugin host: {error}"))?;
    match command {
        Command::Inspect { file, config } => inspect(&host, &file, &config, output),
        Command::Test { dir, wasm } => test(&host, &dir, wasm, output),
        Command::Run { file, config, grant } => run_lines(&host, &file, &config, &grant),
    }
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

fn test(host: &PluginHost, dir: &Path, wasm: Option<PathBuf>, output: Output) -> Result<(), Failure> {
    let wasm = match wasm {
        Some(wasm) => wasm,
        None => find_wasm(dir)?,
    };
    let cases = dir.join("cases");
    let entries = std::fs::read_dir(&cases).with_context(|| format!("cannot read {}", cases.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(
            anyhow::anyhow!("{} has no *.toml file: there is nothing to test", cases.display()).into()
        );
    }
    let mut out = std::io::stdout();
    let mut failed = 0;
    let mut results = Vec::new();
    for path in &files {
        let case = flumen_config::load_case(path, &flumen_config::SystemEnv).map_err(Failure::Config)?;
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let case = to_case(&name, case)?;
        let outcome = host.run_case(&wasm, &case).map_err(|error| Failure::Unfit(vec![error.to_string()]))?;
        let difference = match &outcome {
            CaseOutcome::Passed => None,
            CaseOutcome::Failed(difference) => Some(difference.clone()),
        };
        failed += usize::from(difference.is_some());
        if output == Output::Human {
            writeln!(out, "{} {name}", if difference.is_none() { "ok    " } else { "FAILED" })?;
            for line in difference.iter().flat_map(|difference| difference.lines()) {
                writeln!(out, "       {line}")?;
            }
        }
        results.push(
            serde_json::json!({ "case": name, "passed": difference.is_none(), "difference": difference }),
        );
    }
    let passed = files.len() - failed;
    match output {
        Output::Json => {
            print_json(&serde_json::json!({ "passed": passed, "failed": failed, "cases": results }))?
        }
        Output::Human => writeln!(out, "{passed} passed, {failed} failed ({})", wasm.display())?,
    }
    if failed == 0 { Ok(()) } else { Err(Failure::Reported(FAILED)) }
}

fn find_wasm(dir: &Path) -> anyhow::Result<PathBuf> {
    let mut here = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wasm") {
            here.push(path);
        }
    }
    if let [only] = here.as_slice() {
        return Ok(only.clone());
    }
    let full = dir.canonicalize()?;
    let file = full.file_name().map(|name| name.to_string_lossy().replace('-', "_")).unwrap_or_default();
    let built = Path::new("target/wasm32-unknown-unknown/release").join(format!("{file}.wasm"));
    let found = full.ancestors().map(|above| above.join(&built)).find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "{} has {} and there is no {}: build the plugin, or name its file with --wasm",
            dir.display(),
            counted(here.len(), ".wasm file"),
            built.display()
        )
    })
}

fn to_case(name: &str, file: CaseFile) -> anyhow::Result<Case> {
    let expected =
        |event: CaseEvent| ExpectedEvent { body: event.body, time: event.time_ns, headers: event.headers };
    Ok(Case {
        name: name.to_string(),
        config_json: file.config_json,
        input: to_batch(&file.inputs)?,
        expected: file.outputs.into_iter().map(expected).collect(),
        rejected: file.rejected,
        open_error: file.open_error,
    })
}

fn to_batch(events: &[CaseEvent]) -> anyhow::Result<Batch> {
    let mut builder = BatchBuilder::default();
    for (event, row) in events.iter().zip(0..) {
        builder.push(0, row, event.time_ns.unwrap_or(0), &event.body);
    }
    let mut columns: BTreeMap<&str, Vec<Option<&str>>> = BTreeMap::new();
    for name in events.iter().flat_map(|event| event.headers.keys()) {
        columns
            .entry(name)
            .or_insert_with(|| events.iter().map(|e| e.headers.get(name).map(String::as_str)).collect());
    }
    let headers = columns
        .into_iter()
        .map(|(name, values)| HeaderColumn { name: name.into(), values: StringArray::from(values) })
        .collect();
    Ok(builder.finish(headers)?)
}

fn run_lines(host: &PluginHost, file: &Path, config: &str, grants: &[String]) -> Result<(), Failure> {
    let name = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let plugin = host
        .open(file, &name, config, grants, PluginLimits::default())
        .map_err(|error| Failure::Unfit(vec![error.to_string()]))?;
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
        let processed = plugin.process(lines_batch(&lines, first)?);
        first += lines.len() as u64;
        for row in 0..processed.kept.rows() {
            writeln!(out, "{}", event_json(&processed.kept, row))?;
        }
        kept += processed.kept.rows();
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
