//! `cargo xtask bench file`: file to file with every acknowledgement durable, beside the raw limit and peers.
//!
//! Rounds are interleaved (raw, flumen, raw, …) and medians are compared, because `fdatasync` costs ten
//! times more on an idle machine than on a busy one.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::flumen::{self, Run, Variant};
use super::input::{self, Input};
use super::rsyslog::{self, Peer, Queue};
use super::{flume, machine, raw, wasm};
use crate::build;
use crate::report::{median, step};

/// How much, and beside what.
#[derive(clap::Args)]
pub struct Arguments {
    /// Bytes of input, in MB
    #[arg(long, default_value_t = 500)]
    size_mb: u64,
    /// Interleaved rounds
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Also the slow peers: rsyslog with a synced disk queue, Flume with its file channel
    #[arg(long)]
    peers: bool,
    /// Not even rsyslog in memory
    #[arg(long, conflicts_with = "peers")]
    no_peers: bool,
    /// Leave out flumen itself: the yardsticks alone, for trying them
    #[arg(long, hide = true)]
    yardsticks_only: bool,
    /// One JSON object as the last line
    #[arg(long)]
    json: bool,
}

/// A peer in memory may take this long for the input.
const PEER_LIMIT: Duration = Duration::from_secs(120);

const VARIANTS: [Variant; 4] =
    [Variant::Filter, Variant::AccessLog, Variant::NoPlugin, Variant::SourceBacked];

/// Measures.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let binary = if arguments.yardsticks_only {
        None
    } else {
        build::plugins()?;
        Some(build::host(true)?)
    };
    let input = input::of_size(arguments.size_mb)?;
    let dir = input::dir()?;
    let mut figures = Figures::default();
    if !arguments.no_peers {
        rsyslog::ensure()?;
    }
    for round in 1..=arguments.rounds {
        step(&format!("round {round} of {}", arguments.rounds), || {
            for (at, variant) in VARIANTS.into_iter().enumerate() {
                figures.raw.push(input.bytes as f64 / 1e6 / raw::run(&input.path, &dir)?);
                let Some(binary) = &binary else { continue };
                let run = flumen::run(binary, &input, variant, &dir)?;
                eprintln!(
                    "    raw {:6.1} MB/s, {} {:6.1} MB/s",
                    figures.raw.last().unwrap_or(&f64::NAN),
                    variant.name(),
                    run.mb_s
                );
                if let Some(runs) = figures.flumen.get_mut(at) {
                    runs.push(run);
                }
            }
            if !arguments.no_peers {
                figures.rsyslog.push(rsyslog::run(&input, Queue::Memory, &dir, PEER_LIMIT)?);
            }
            Ok(())
        })?;
    }
    if arguments.peers {
        figures.synced = attempt("rsyslog, synced disk queue", || {
            rsyslog::run(&input, Queue::SyncedDisk, &dir, PEER_LIMIT)
        });
        figures.flume = attempt("Flume 1.11, file channel", || {
            flume::run(flumen_tests::kafka::flume::ensure()?, &input, &dir)
        });
    }
    if binary.is_some() {
        figures.wasm = attempt("plugins beside native code", wasm::run);
    }
    figures.print(&input);
    if arguments.json {
        println!("{}", figures.json(&input));
    }
    Ok(ExitCode::SUCCESS)
}

/// A yardstick that cannot be had is said and left out.
fn attempt<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Option<T> {
    step(name, work).map_err(|error| eprintln!("    left out: {error:#}")).ok()
}

#[derive(Default)]
struct Figures {
    raw: Vec<f64>,
    flumen: [Vec<Run>; VARIANTS.len()],
    rsyslog: Vec<Peer>,
    synced: Option<Peer>,
    flume: Option<Peer>,
    wasm: Option<Value>,
}

impl Figures {
    fn of(&self, variant: usize, figure: fn(&Run) -> f64) -> f64 {
        let runs = self.flumen.get(variant).map(Vec::as_slice).unwrap_or_default();
        median(&runs.iter().map(figure).collect::<Vec<_>>())
    }

    fn rsyslog(&self, figure: fn(&Peer) -> f64) -> f64 {
        median(&self.rsyslog.iter().map(figure).collect::<Vec<_>>())
    }

    fn print(&self, input: &Input) {
        let raw = median(&self.raw);
        println!(
            "{} lines, {:.1} MB, from the page cache; medians of {} rounds",
            input.lines,
            input.bytes as f64 / 1e6,
            self.rsyslog.len().max(self.flumen.first().map_or(0, Vec::len))
        );
        println!("{:<42} {:>8} {:>6} {:>13} {:>8}  durable?", "", "MB/s", "ratio", "CPU ns/event", "peak MB");
        let row = |name: &str, mb_s: f64, cpu: f64, memory: f64, durable: &str| {
            println!("{name:<42} {mb_s:>8.2} {:>6.2} {cpu:>13.0} {memory:>8.1}  {durable}", mb_s / raw);
        };
        println!(
            "{:<42} {raw:>8.2} {:>6.2} {:>13} {:>8}  fdatasync every 4 MiB, twice",
            "the raw limit: read, write twice", 1.0, "", ""
        );
        for (at, variant) in VARIANTS.into_iter().enumerate() {
            row(
                variant.name(),
                self.of(at, |run| run.mb_s),
                self.of(at, |run| run.cpu_ns_per_event),
                self.of(at, |run| run.peak_rss_mb),
                "every acknowledgement",
            );
        }
        if !self.rsyslog.is_empty() {
            row(
                "rsyslog, memory",
                self.rsyslog(|peer| peer.mb_s),
                self.rsyslog(|peer| peer.cpu_ns_per_event),
                self.rsyslog(|peer| peer.peak_rss_mb),
                "no",
            );
        }
        for (name, peer, durable) in [
            ("rsyslog, synced disk queue", self.synced, "every event"),
            ("Flume 1.11, file channel", self.flume, "every transaction"),
        ] {
            if let Some(peer) = peer {
                let part = if peer.is_extrapolated { " (part of the input)" } else { "" };
                row(&format!("{name}{part}"), peer.mb_s, peer.cpu_ns_per_event, peer.peak_rss_mb, durable);
            }
        }
        println!("\nns per event of each step (by its own clock; steps run side by side):");
        for (at, variant) in VARIANTS.into_iter().enumerate() {
            let Some(run) = self.flumen.get(at).and_then(|runs| runs.last()) else { continue };
            let steps: Vec<String> =
                run.ns_per_event.iter().map(|(step, ns)| format!("{step} {ns:.0}")).collect();
            println!("  {:<28} {}", variant.name(), steps.join(", "));
        }
        if let Some(wasm) = &self.wasm {
            println!("plugins alone: {wasm}");
        }
    }

    fn json(&self, input: &Input) -> Value {
        let raw = median(&self.raw);
        let variants: serde_json::Map<String, Value> = VARIANTS
            .into_iter()
            .enumerate()
            .map(|(at, variant)| {
                let last = self.flumen.get(at).and_then(|runs| runs.last());
                let figures = json!({
                    "mb_s": self.of(at, |run| run.mb_s),
                    "cpu_ns_per_event": self.of(at, |run| run.cpu_ns_per_event),
                    "peak_rss_mb": self.of(at, |run| run.peak_rss_mb),
                    "anonymous_rss_mb": self.of(at, |run| run.anonymous_rss_mb),
                    "ns_per_event": last.map(|run| &run.ns_per_event),
                });
                (variant.name().to_owned(), figures)
            })
            .collect();
        let peer = |peer: Option<Peer>| {
            peer.map(|peer| json!({ "mb_s": peer.mb_s, "events_s": peer.events_s, "cpu_ns_per_event": peer.cpu_ns_per_event, "peak_rss_mb": peer.peak_rss_mb, "is_extrapolated": peer.is_extrapolated }))
        };
        let mb_s = self.of(0, |run| run.mb_s);
        let ratio = |name: &str| self.wasm.as_ref().and_then(|wasm| wasm.get(name)).cloned();
        json!({
            "mb_s": mb_s,
            "cpu_ns_per_event": self.of(0, |run| run.cpu_ns_per_event),
            "peak_rss_mb": self.of(0, |run| run.peak_rss_mb),
            "ratio_to_raw_limit": mb_s / raw,
            "ratio_to_rsyslog_memory": (!self.rsyslog.is_empty()).then(|| mb_s / self.rsyslog(|peer| peer.mb_s)),
            // The same flow without a second copy of the bodies.
            "source_backed_ratio": self.of(3, |run| run.mb_s) / mb_s,
            "wasm_to_native_ratio": ratio("wasm_to_native_ratio"),
            "raw_limit_mb_s": raw,
            "rsyslog_memory_mb_s": (!self.rsyslog.is_empty()).then(|| self.rsyslog(|peer| peer.mb_s)),
            "rsyslog_synced": peer(self.synced),
            "flume_file_channel": peer(self.flume),
            "variants": variants,
            "plugins_alone": self.wasm,
            "events": input.lines,
            "input_mb": input.bytes as f64 / 1e6,
            "durability": "every acknowledgement after fdatasync",
            "machine": machine::describe(),
        })
    }
}
