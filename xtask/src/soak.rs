//! `cargo xtask soak`: the proof of the promise, for as long as one likes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use clap::ValueEnum;
use flumen_tests::disk;
use flumen_tests::generator::Rotation;
use flumen_tests::oracle::Verdict;
use flumen_tests::soak::{self, Channel, Plugin, Report, Soak};
use flumen_tests::soak_kafka::{Flow, KafkaSoak, Mix};
use serde_json::json;

use crate::{build, soak_kafka};

/// A fifth as many kills as changes: half of the changes are in lives that are killed.
const CHANGES_PER_KILL: u32 = 5;

/// What to do to the agent.
#[derive(clap::Args)]
pub struct Arguments {
    /// SIGKILLs
    #[arg(long, default_value_t = 0)]
    kills: u32,
    /// Power cuts: journal and output on an ext4 that loses its page cache (needs root)
    #[arg(long, default_value_t = 0)]
    power_cuts: u32,
    /// Swaps of a plugin and edits of the pipeline, with the kills between them (a fifth as many, unless --kills is given)
    #[arg(long, default_value_t = 0)]
    swaps: u32,
    /// Repeats a run's random choices (not the scheduler's)
    #[arg(long)]
    seed: Option<u64>,
    /// Interceptors in the flow; without this: all three, a third of the kills each
    #[arg(long, value_enum)]
    plugin: Option<Interceptors>,
    /// Rotation of the input
    #[arg(long, value_enum, default_value_t = Rotate::Rename)]
    rotation: Rotate,
    /// Kind of the channel
    #[arg(long, value_enum, default_value_t = Kind::File)]
    channel: Kind,
    /// Errors of the disk meanwhile: EIO, ENOSPC, a full disk for a moment (docs/faults.md). With --kills, --power-cuts or both
    #[arg(long)]
    faults: bool,
    /// Bytes per second into the input
    #[arg(long)]
    bytes_per_s: Option<u64>,
    /// Work below this directory
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Keep the working directory
    #[arg(long)]
    keep: bool,
    /// Use the release build
    #[arg(long)]
    release: bool,
    /// One JSON object as the last line
    #[arg(long)]
    json: bool,
    #[command(flatten, next_help_heading = "Kafka")]
    kafka: soak_kafka::KafkaArguments,
}

#[derive(Clone, Copy, ValueEnum)]
enum Interceptors {
    None,
    Filter,
    AccessLog,
    Dedup,
}

#[derive(Clone, Copy, ValueEnum)]
enum Rotate {
    Rename,
    Copytruncate,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    File,
    /// In memory, and read again
    SourceBacked,
    /// The same, with a second sink
    SourceBackedTwice,
    /// A kill loses what was in memory: as many events as the next start says
    Spillable,
    /// The same
    Memory,
}

impl From<Interceptors> for Plugin {
    fn from(choice: Interceptors) -> Self {
        match choice {
            Interceptors::None => Plugin::None,
            Interceptors::Filter => Plugin::Filter,
            Interceptors::AccessLog => Plugin::AccessLog,
            Interceptors::Dedup => Plugin::Dedup,
        }
    }
}

/// Soaks; succeeds if nothing was lost, doubled or out of order.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.kills == 0
        && arguments.swaps == 0
        && arguments.power_cuts == 0
        && !arguments.kafka.is_asked()
    {
        bail!("nothing to do: give --kills N, --swaps N, --power-cuts N, --kafka N or --away SECONDS");
    }
    if arguments.faults && arguments.kills == 0 && arguments.power_cuts == 0 {
        bail!("--faults goes with --kills N or --power-cuts N: it is their agents' disks that fail");
    }
    if arguments.faults && matches!(arguments.rotation, Rotate::Copytruncate) {
        bail!("--faults is not for --rotation copytruncate: what is truncated has to be delivered before");
    }
    if arguments.power_cuts > 0 {
        disk::require_root("--power-cuts")?;
    }
    build::plugins()?;
    let binary = build::host(arguments.release)?;
    let seed = arguments.seed.unwrap_or_else(seed_of_now);
    println!("seed {seed}");
    let mut reports = Vec::new();
    for mut soak in soaks(arguments, seed) {
        soak.binary = Some(binary.clone());
        let report = soak::run(&soak)?;
        println!("{report}");
        reports.push(report);
    }
    let mut holds = reports.iter().all(Report::holds);
    let mut summary = summary(&reports, seed);
    if arguments.kafka.is_asked() {
        let mut base = KafkaSoak::new(Flow::FileToKafka, Plugin::None, Mix::default(), seed);
        base.bytes_per_s = arguments.bytes_per_s.unwrap_or(base.bytes_per_s);
        base.dir.clone_from(&arguments.dir);
        base.binary = Some(binary);
        (base.keep, base.is_talkative) = (arguments.keep, true);
        let (holds_with_kafka, with_kafka) = arguments.kafka.run(&base, &plugins(arguments))?;
        holds &= holds_with_kafka;
        if reports.is_empty() {
            summary = with_kafka;
        } else if let Some(summary) = summary.as_object_mut() {
            summary.insert("kafka".to_owned(), with_kafka);
        }
    }
    println!("{}", if holds { "nothing lost, nothing twice, in order" } else { "THE PROMISE DOES NOT HOLD" });
    if arguments.json {
        println!("{summary}");
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn plugins(arguments: &Arguments) -> Vec<Plugin> {
    match arguments.plugin {
        Some(plugin) => vec![Plugin::from(plugin)],
        None => vec![Plugin::None, Plugin::Filter, Plugin::AccessLog],
    }
}

fn soaks(arguments: &Arguments, seed: u64) -> Vec<Soak> {
    let plugins = plugins(arguments);
    let count = plugins.len() as u32;
    let mut soaks = Vec::new();
    for (at, plugin) in (0_u32..).zip(plugins) {
        // The remainder goes to the first.
        let share = |times: u32| times / count + u32::from(at < times % count);
        if arguments.swaps == 0 {
            soaks.push(Soak::kills(share(arguments.kills), seed, plugin));
        }
        soaks.push(Soak::power_cuts(share(arguments.power_cuts), seed, plugin));
    }
    if arguments.swaps > 0 {
        soaks.push(changes(arguments, seed));
    }
    soaks.retain(|soak| soak.times > 0);
    for soak in &mut soaks {
        soak.rotation = match arguments.rotation {
            Rotate::Rename => Rotation::Rename,
            Rotate::Copytruncate => Rotation::CopyTruncate,
        };
        soak.channel = match arguments.channel {
            Kind::File => Channel::File,
            Kind::SourceBacked => Channel::SourceBacked,
            Kind::SourceBackedTwice => Channel::SourceBackedTwice,
            Kind::Spillable => Channel::Spillable,
            Kind::Memory => Channel::Memory,
        };
        soak.has_faults = arguments.faults;
        soak.bytes_per_s = arguments.bytes_per_s.unwrap_or(soak.bytes_per_s);
        soak.dir.clone_from(&arguments.dir);
        soak.keep = arguments.keep;
        (soak.is_talkative, soak.is_tidy) = (true, !arguments.keep);
    }
    soaks
}

/// A run with many changes: the plugin decides which versions can be told to have a bug.
fn changes(arguments: &Arguments, seed: u64) -> Soak {
    let kills =
        if arguments.kills > 0 { arguments.kills } else { arguments.swaps.div_ceil(CHANGES_PER_KILL) };
    let plugin = arguments.plugin.map_or(Plugin::AccessLog, Plugin::from);
    Soak { changes: arguments.swaps, ..Soak::kills(kills, seed, plugin) }
}

/// All runs together.
fn summary(reports: &[Report], seed: u64) -> serde_json::Value {
    // Output and quarantine together: a line has to come out in exactly one of them.
    let both =
        |report: &Report, figure: fn(&Verdict) -> u64| figure(&report.verdict) + figure(&report.quarantine);
    let sum = |figure: fn(&Verdict) -> u64| reports.iter().map(|report| both(report, figure)).sum::<u64>();
    json!({
        "kills": reports.iter().map(|report| report.kills).sum::<u32>(),
        "lost": sum(|verdict| verdict.lost),
        "doubled": sum(|verdict| verdict.doubled),
        "out_of_order": sum(|verdict| verdict.out_of_order),
        "foreign": sum(|verdict| verdict.foreign),
        "quarantined": reports.iter().map(|report| report.quarantine.events).sum::<u64>(),
        "events": sum(|verdict| verdict.events),
        "edits": reports.iter().map(|report| report.edits).sum::<u32>(),
        "rollbacks": reports.iter().map(|report| report.rollbacks).sum::<u32>(),
        "stops": reports.iter().map(|report| report.stops).sum::<u32>(),
        "refused": reports.iter().map(|report| report.refused).sum::<u64>(),
        "counted_lost": reports.iter().map(|report| report.counted_lost).sum::<u64>(),
        "swaps": reports.iter().map(|report| report.swaps).sum::<u32>(),
        "rotations": reports.iter().map(|report| report.rotations).sum::<u64>(),
        "seconds": reports.iter().map(|report| report.seconds).sum::<f64>(),
        "seed": seed,
        "runs": reports,
    })
}

/// Any number will do; it is printed.
fn seed_of_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ (now.as_secs() << 20)
}
