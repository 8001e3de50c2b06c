//! `flumen bridge`: Kafka topics (or trees with done files) into whole files by event time.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::ArgGroup;
use flumen_builtin::bridge::{Bridge, BridgeError, Bucket, Done, Held, TABLES, Watch, limits};
use flumen_config::SystemEnv;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::Output;
use crate::exit::{FAILED, Failure, LATER, USAGE, counted};

/// Arguments of `flumen bridge`.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("which").required(true).multiple(true).args(["hour", "from", "follow"]))]
pub struct Args {
    /// The bridge's file: `[bridge]`, and `[kafka]` or `[tree]`.
    config: PathBuf,
    /// Make the bucket of this time: 2026-11-21T07, 2026-11-21, or with minutes and offset.
    #[arg(long, value_name = "TIME", conflicts_with_all = ["from", "to", "follow"])]
    hour: Option<String>,
    /// Make the buckets from this time on (with --to); with --follow: where to begin if it never ran here.
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Up to this time, which is not in them.
    #[arg(long, value_name = "TIME", requires = "from", conflicts_with = "follow")]
    to: Option<String>,
    /// Make buckets as they close, until a signal.
    #[arg(long)]
    follow: bool,
}

impl Args {
    /// It runs until a signal, and its log is what a person sees of it.
    pub fn is_service(&self) -> bool {
        self.follow
    }
}

/// Does it.
pub fn run(args: Args, output: Output) -> Result<(), Failure> {
    let bridge = load(&args.config)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // A second signal ends the process at once: whatever was not finished is made again.
        signal_hook::flag::register_conditional_shutdown(signal, FAILED.into(), stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    let time = |text: &Option<String>| text.as_deref().map(|text| parse(&bridge, text)).transpose();
    let (hour, from, to) = (time(&args.hour)?, time(&args.from)?, time(&args.to)?);
    if args.follow {
        return follow(&bridge, from, &stop, output);
    }
    let buckets = match (hour, from, to) {
        (Some(hour), ..) => vec![bridge.bucket(hour)],
        (None, Some(from), Some(to)) => span(&bridge, from, to)?,
        _ => return Err(usage("--from needs --to or --follow")),
    };
    named(&bridge, &buckets, &stop, output)
}

fn load(path: &std::path::Path) -> Result<Bridge, Failure> {
    let tables = flumen_config::load_tables(path, &TABLES, "bridge", &SystemEnv).map_err(Failure::Config)?;
    let options = tables.options("bridge").cloned().unwrap_or_default();
    Bridge::build(&options, tables.options("kafka"), tables.options("tree"))
        .map_err(|(table, error)| Failure::Config(vec![tables.diagnostic_for(table, &error)]))
}

fn usage(reason: &str) -> Failure {
    eprintln!("flumen: {reason}");
    Failure::Reported(USAGE)
}

fn parse(bridge: &Bridge, text: &str) -> Result<i64, Failure> {
    let wrong =
        || usage(&format!("{text:?} is no time; write for instance 2026-11-21T07 or 2026-11-21T07:00+01:00"));
    bridge.parse_time(text).ok_or_else(wrong)
}

/// The buckets that begin in `[from, to)`.
fn span(bridge: &Bridge, from: i64, to: i64) -> Result<Vec<Bucket>, Failure> {
    let mut buckets = Vec::new();
    let mut bucket = bridge.bucket(from);
    while bucket.start_ns < to {
        if buckets.len() >= limits::BUCKETS_MAX {
            return Err(usage(&format!(
                "--from and --to are more than {} buckets apart",
                limits::BUCKETS_MAX
            )));
        }
        buckets.push(bucket);
        bucket = bridge.next(bucket);
    }
    if buckets.is_empty() { Err(usage("there is no bucket between --from and --to")) } else { Ok(buckets) }
}

/// Each topic's buckets in order. What is wrong with one topic does not stop the others.
fn named(bridge: &Bridge, buckets: &[Bucket], stop: &AtomicBool, output: Output) -> Result<(), Failure> {
    let mut code = None;
    for name in bridge.names() {
        let outcome = bridge.hold(&name).and_then(|held| {
            buckets.iter().try_for_each(|bucket| {
                let done = bridge.make(&held, *bucket, stop)?;
                print(&done, output);
                Ok(())
            })
        });
        if let Err(error) = outcome {
            eprintln!("flumen: {error}");
            let is_later = matches!(error, BridgeError::Incomplete { .. } | BridgeError::Locked { .. });
            let own = if is_later { LATER } else { FAILED };
            code = Some(if code == Some(FAILED) { FAILED } else { own });
        }
    }
    code.map_or(Ok(()), |code| Err(Failure::Reported(code)))
}

/// A thread for each topic.
fn follow(bridge: &Bridge, from: Option<i64>, stop: &AtomicBool, output: Output) -> Result<(), Failure> {
    let held: Vec<Held> =
        bridge.names().iter().map(|name| bridge.hold(name)).collect::<Result<_, _>>().map_err(failure)?;
    let report = |done: &Done| print(done, output);
    let failed = std::thread::scope(|scope| {
        let threads: Vec<_> = held
            .iter()
            .map(|held| scope.spawn(|| bridge.follow(held, from, stop, &Watch::new(held.name()), &report)))
            .collect();
        let mut failed = 0;
        for thread in threads {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    eprintln!("flumen: {error}");
                    failed += 1;
                }
                Err(_) => failed += 1,
            }
        }
        failed
    });
    if failed > 0 {
        eprintln!("flumen: {} ended with an error", counted(failed, "topic"));
        return Err(Failure::Reported(FAILED));
    }
    Ok(())
}

fn failure(error: BridgeError) -> Failure {
    match error {
        BridgeError::Locked { .. } => Failure::Locked(error.to_string()),
        other => Failure::Other(other.into()),
    }
}

/// One line for each bucket. Nobody reading any more is no reason to stop making buckets.
fn print(done: &Done, output: Output) {
    let Done { dir, manifest, made } = done;
    let line = if output == Output::Json {
        let dir = dir.display().to_string();
        let text = json!({ "made": made, "directory": dir, "manifest": manifest });
        text.to_string()
    } else {
        let mut line = format!(
            "{} {}  {}: {} in {}",
            manifest.name,
            manifest.start,
            if *made { "made" } else { "was there" },
            many(manifest.records, "record"),
            many(manifest.all_files().count() as u64, "file"),
        );
        for (count, what) in [
            (manifest.late.side, "in late/"),
            (manifest.late.appended, "appended"),
            (manifest.late.dropped, "dropped"),
        ] {
            if count > 0 {
                line.push_str(&format!(", {count} late {what}"));
            }
        }
        format!("{line}  {} (generation {})", dir.display(), manifest.generation)
    };
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        tracing::debug!(%error, "cannot print");
    }
}

fn many(number: u64, what: &str) -> String {
    counted(usize::try_from(number).unwrap_or(usize::MAX), what)
}
