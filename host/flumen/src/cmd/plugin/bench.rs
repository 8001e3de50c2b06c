//! `flumen plugin bench`: what a plugin costs per event, beside one that does nothing.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use flumen_event::Batch;
use flumen_pipeline::plan::PluginLimits;
use flumen_pipeline::{Decoder, Encoder, Quarantined};
use flumen_plugin::{
    Alone, LoadError, Outside, PluginHost, PluginStats, PluginVersion, Response, Role, SinkAlone,
    SinkFailure, StartCost,
};
use serde::Serialize;

use super::cases;
use crate::Output;
use crate::cmd::{Scratch, lines_batch, print_json, status};
use crate::exit::Failure;

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A plugin's directory, or its component.
    #[arg(default_value = ".")]
    plugin: PathBuf,
    /// The plugin's configuration, as JSON. Default: that of the first case in the directory.
    #[arg(long)]
    config: Option<String>,
    /// Lines to measure with. Default: made-up lines of an access log, 173 bytes each.
    #[arg(long)]
    input: Option<PathBuf>,
    /// Events in a batch.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    rows: u32,
    /// How long to measure each.
    #[arg(long, default_value = "2s", value_parser = flumen_config::parse_duration)]
    time: Duration,
}

/// Rounds that warm up and are not counted.
const WARM_ROUNDS: usize = 3;
/// Rounds of a start.
const START_ROUNDS: u32 = 10;

/// The figures of one plugin.
#[derive(Debug, Serialize)]
struct Figures {
    ns_per_event: f64,
    ns_per_event_min: f64,
    memory_bytes: u64,
    instantiate_ns: u64,
    open_ns: u64,
    load_from_cache_ns: u64,
    first_load_from_cache_ns: u64,
}

/// Measures.
pub fn run(host: &PluginHost, args: &Args, output: Output) -> Result<(), Failure> {
    let wasm = if args.plugin.is_dir() { cases::find_wasm(&args.plugin)? } else { args.plugin.clone() };
    let config = match &args.config {
        Some(config) => config.clone(),
        None => first_config(&args.plugin)?,
    };
    let batch = input(args)?;
    let scratch = Scratch::new()?;
    let no_op = scratch.path().join("no-op.wasm");
    std::fs::write(&no_op, flumen_author::no_op()?)?;
    let nothing = measure(host, &no_op, "{}", &batch, args.time)?;
    let plugin = measure(host, &wasm, &config, &batch, args.time)?;
    if output == Output::Json {
        return print_json(&serde_json::json!({ "plugin": plugin, "no_op": nothing, "rows": batch.rows() }));
    }
    let mut out = std::io::stdout();
    let bytes = batch.body().values().len() / batch.rows().max(1);
    writeln!(out, "{} rows a batch, {bytes} bytes an event, config {config}", batch.rows())?;
    writeln!(
        out,
        "{:<10}{:>14}{:>14}{:>12}{:>16}{:>10}{:>16}{:>16}",
        "",
        "p50 ns/event",
        "min ns/event",
        "memory",
        "instantiate us",
        "open us",
        "load cached us",
        "first load us"
    )?;
    for (name, figures) in [("no-op", nothing), ("plugin", plugin)] {
        writeln!(
            out,
            "{name:<10}{:>14.1}{:>14.1}{:>12}{:>16.1}{:>10.1}{:>16.1}{:>16.1}",
            figures.ns_per_event,
            figures.ns_per_event_min,
            status::size(figures.memory_bytes),
            figures.instantiate_ns as f64 / 1e3,
            figures.open_ns as f64 / 1e3,
            figures.load_from_cache_ns as f64 / 1e3,
            figures.first_load_from_cache_ns as f64 / 1e3,
        )?;
    }
    Ok(())
}

fn first_config(plugin: &Path) -> Result<String, Failure> {
    let found = if plugin.is_dir() { cases::read(plugin)? } else { Vec::new() };
    let first = found.into_iter().find(|found| found.case.open_error.is_none());
    Ok(first.map_or_else(|| "{}".to_owned(), |found| found.case.config_json))
}

fn input(args: &Args) -> Result<Batch, Failure> {
    let rows = args.rows as usize;
    let lines: Vec<Vec<u8>> = match &args.input {
        Some(path) => {
            let file =
                std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            std::io::BufReader::new(file).split(b'\n').take(rows).collect::<Result<_, _>>()?
        }
        None => (0..rows).map(access_log_line).collect(),
    };
    if lines.is_empty() {
        return Err(anyhow::anyhow!("the input has no lines").into());
    }
    Ok(lines_batch(&lines, 0)?)
}

/// One in twenty has status 503.
fn access_log_line(row: usize) -> Vec<u8> {
    let status = if row.is_multiple_of(20) { 503 } else { 200 };
    let mut line = format!(
        "192.0.2.{} - - [21/Nov/2026:10:{:02}:{:02} +0000] \"GET /shop/item/{row}?ref=home HTTP/1.1\" {status} {} \
         \"https://example.org/shop\" \"Mozilla/5.0 (X11; Linux x86_64; rv:1",
        row % 250,
        row / 60 % 60,
        row % 60,
        1_000 + row % 9_000
    )
    .into_bytes();
    line.resize(172, b'0');
    line.push(b'"');
    line
}

fn measure(
    host: &PluginHost,
    wasm: &Path,
    config: &str,
    batch: &Batch,
    time: Duration,
) -> Result<Figures, Failure> {
    let mut subject = Subject::open(host, wasm, config)?;
    let mut times = Vec::new();
    let begun = Instant::now();
    while times.len() < WARM_ROUNDS * 2 || begun.elapsed() < time {
        let input = batch.clone();
        let started = Instant::now();
        let failed = subject.round(input);
        times.push(started.elapsed().as_nanos() as f64 / batch.rows() as f64);
        if let Some(reason) = failed {
            return Err(anyhow::anyhow!("{} fails on this input: {reason}", wasm.display()).into());
        }
    }
    let mut counted = times.split_off(WARM_ROUNDS);
    counted.sort_by(f64::total_cmp);
    let StartCost { load_ns, first_load_ns, instantiate_ns, open_ns } =
        host.start_cost(wasm, config, START_ROUNDS).map_err(unfit)?;
    Ok(Figures {
        ns_per_event: counted.get(counted.len() / 2).copied().unwrap_or(f64::NAN),
        ns_per_event_min: counted.first().copied().unwrap_or(f64::NAN),
        memory_bytes: subject.stats().memory_max_bytes,
        instantiate_ns,
        open_ns,
        load_from_cache_ns: load_ns,
        first_load_from_cache_ns: first_load_ns,
    })
}

/// What is measured: an interceptor or an aggregator at work on a batch, an encoder on it, a decoder on its lines, a sink
/// whose requests are answered at once.
enum Subject {
    Intercept(Alone),
    Encode(Arc<PluginVersion>),
    Decode(Arc<PluginVersion>),
    Deliver(Box<SinkAlone>),
}

impl Subject {
    fn open(host: &PluginHost, wasm: &Path, config: &str) -> Result<Subject, Failure> {
        let inspected = host.inspect(wasm, config).map_err(unfit)?;
        let open = |role| {
            let limits = PluginLimits::default();
            host.open_as(role, wasm, "bench", config, &inspected.needs, limits).map_err(unfit)
        };
        let is = |role| inspected.roles.contains(&role);
        Ok(match () {
            () if is(Role::Sink) => {
                let taken = |_: &_| Ok(Response { status: 200, headers: Vec::new(), body: Vec::new() });
                let sink = host.open_sink(wasm, "bench", config, Outside::new(taken)).map_err(unfit)?;
                Subject::Deliver(Box::new(sink))
            }
            () if is(Role::Encoder) => Subject::Encode(open(Role::Encoder)?),
            () if is(Role::Decoder) => Subject::Decode(open(Role::Decoder)?),
            // With a state of its own, if it keeps one.
            () => Subject::Intercept(Alone::new(open(Role::Interceptor)?)),
        })
    }

    /// Once through; gives what it failed on.
    fn round(&mut self, batch: Batch) -> Option<String> {
        let failed = |quarantined: Vec<Quarantined>| {
            let mut failed = quarantined.into_iter().filter(|group| !group.rejected);
            failed.next().map(|group| group.reasons.into_iter().next().unwrap_or_default())
        };
        match self {
            Subject::Intercept(alone) => failed(alone.process(batch, None).0.quarantined),
            Subject::Encode(version) => failed(version.encode(&batch, None).quarantined),
            Subject::Decode(version) => {
                let lines: Vec<u8> =
                    batch.body().iter().flatten().flat_map(|line| [line, b"\n"].concat()).collect();
                let bad = version.decode(&lines, true).bad;
                bad.into_iter().find(|bad| !bad.is_rejected).map(|bad| bad.reason)
            }
            Subject::Deliver(sink) => match sink.deliver(&batch, b"cursor") {
                Ok(_) => None,
                Err(SinkFailure::Said(reason) | SinkFailure::Broke(reason)) => Some(reason),
            },
        }
    }

    fn stats(&self) -> PluginStats {
        match self {
            Subject::Intercept(alone) => alone.stats(),
            Subject::Encode(version) | Subject::Decode(version) => version.stats(),
            Subject::Deliver(sink) => sink.stats(),
        }
    }
}

fn unfit(error: LoadError) -> Failure {
    Failure::Unfit(vec![error.to_string()])
}
