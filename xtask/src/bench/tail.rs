//! `cargo xtask bench tail`: many files. A steady load spread over a thousand of them, and ten thousand that are idle.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flumen_tests::agent::Agent;
use flumen_tests::scene::Scene;
use flumen_tests::{output, poll};
use serde::Serialize;
use serde_json::json;

use super::{input, machine};
use crate::build;

/// How many, and how much.
#[derive(clap::Args)]
pub struct Arguments {
    /// Files that are written side by side
    #[arg(long, default_value_t = 1_000)]
    files: u32,
    /// Into all of them together, in MB/s
    #[arg(long, default_value_t = 24.0)]
    mb_s: f64,
    /// For so long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Files of which nothing comes
    #[arg(long, default_value_t = 10_000)]
    idle_files: u32,
    /// For so long
    #[arg(long, default_value_t = 30)]
    idle_seconds: u64,
    /// One JSON object as the last line
    #[arg(long)]
    json: bool,
}

/// How long anything may take that is not timed.
const LIMIT: Duration = Duration::from_secs(300);
/// After the last event, before an agent counts as idle.
const SETTLE: Duration = Duration::from_secs(10);
/// How often the writer writes, and the output is looked at.
const TICK: Duration = Duration::from_millis(20);
/// Lines that are written at once into one file.
const LINES_AT_ONCE: usize = 20;
/// A line of an access log, as long as those of `bench file`.
const LINE: &str = "203.0.113.77 - - [29/Nov/2026:12:00:00 +0000] \"GET /catalogue/item/4711?session=0123456789abcdef HTTP/1.1\" 200 5321 \"https://shop.example/\" \"Mozilla/5.0 (X11; Linux x86_64)\"\n";

/// A steady load.
#[derive(Debug, Serialize)]
struct Load {
    files: u32,
    mb_s: f64,
    delivered_mb_s: f64,
    /// What was written and not delivered, at most, after the first five seconds.
    behind_s_max: f64,
    cpu_percent: f64,
    cpu_ns_per_event: f64,
    peak_rss_mb: f64,
}

/// Nothing to do.
#[derive(Debug, Serialize)]
struct Idle {
    files: u32,
    cpu_percent: f64,
    rss_mb: f64,
}

/// Measures both.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let binary = build::host(true)?;
    let load = load(arguments, &binary)?;
    println!(
        "{} files, {} MB/s for {} s: {:.1} MB/s delivered, {:.2} s behind at most, {:.0} % of a core ({:.0} ns per event), {:.0} MB resident at most",
        load.files,
        load.mb_s,
        arguments.seconds,
        load.delivered_mb_s,
        load.behind_s_max,
        load.cpu_percent,
        load.cpu_ns_per_event,
        load.peak_rss_mb
    );
    let idle = idle(arguments, &binary)?;
    println!(
        "{} idle files for {} s: {:.2} % of a core, {:.0} MB resident",
        idle.files, arguments.idle_seconds, idle.cpu_percent, idle.rss_mb
    );
    if arguments.json {
        println!("{}", json!({ "load": load, "idle": idle, "machine": machine::describe() }));
    }
    Ok(ExitCode::SUCCESS)
}

/// An agent that has delivered a line of each file.
fn start(binary: &Path, files: u32) -> Result<(Scene, Agent, Vec<PathBuf>)> {
    let mut scene = Scene::below(&input::dir()?)?;
    scene.binary = Some(binary.to_owned());
    scene.pipeline(
        "[source.access]\ntype = \"tail\"\npaths = [\"{in}/*/*.log\"]\n[sink.out]\ntype = \"file\"\npath = \"{out}/all.log\"\n",
    )?;
    let mut paths = Vec::new();
    for number in 0..files {
        // As directories of services have them, not all in one.
        let dir = scene.input().join(format!("service-{:03}", number / 100));
        fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{number}.log"));
        fs::write(&path, LINE)?;
        paths.push(path);
    }
    let agent = scene.start_ready()?;
    let first = u64::from(files) * LINE.len() as u64;
    poll::until("the first line of each file", LIMIT, || Ok(output::bytes(&scene.output)? >= first))
        .with_context(|| agent.log_tail())?;
    Ok((scene, agent, paths))
}

fn load(arguments: &Arguments, binary: &Path) -> Result<Load> {
    let (scene, agent, paths) = start(binary, arguments.files)?;
    let open = |path| OpenOptions::new().append(true).open(path);
    let mut open = paths.iter().map(open).collect::<std::io::Result<Vec<File>>>()?;
    let chunk = LINE.repeat(LINES_AT_ONCE);
    let first = output::bytes(&scene.output)?;
    let cpu_before = agent.cpu_ns()?;
    let (begin, length) = (Instant::now(), Duration::from_secs(arguments.seconds));
    let (mut written, mut behind_max, mut turn) = (0_u64, 0_u64, 0_usize);
    while begin.elapsed() < length {
        let due = (begin.elapsed().as_secs_f64() * arguments.mb_s * 1e6) as u64;
        while written < due {
            let count = open.len();
            let file = open.get_mut(turn % count).context("no file")?;
            file.write_all(chunk.as_bytes())?;
            written += chunk.len() as u64;
            turn += 1;
        }
        let delivered = output::bytes(&scene.output)? - first;
        if begin.elapsed() > Duration::from_secs(5) {
            behind_max = behind_max.max(written - delivered.min(written));
        }
        thread::sleep(TICK);
    }
    poll::until("all bytes in the output", LIMIT, || Ok(output::bytes(&scene.output)? - first >= written))
        .with_context(|| agent.log_tail())?;
    let seconds = begin.elapsed().as_secs_f64();
    let (cpu_ns, memory) = (agent.cpu_ns()? - cpu_before, agent.memory()?);
    agent.stop()?;
    Ok(Load {
        files: arguments.files,
        mb_s: arguments.mb_s,
        delivered_mb_s: written as f64 / 1e6 / seconds,
        behind_s_max: behind_max as f64 / 1e6 / arguments.mb_s,
        cpu_percent: cpu_ns as f64 / 1e7 / seconds,
        cpu_ns_per_event: cpu_ns as f64 / (written as f64 / LINE.len() as f64),
        peak_rss_mb: memory.peak as f64 / 1e6,
    })
}

fn idle(arguments: &Arguments, binary: &Path) -> Result<Idle> {
    let (_scene, agent, _) = start(binary, arguments.idle_files)?;
    thread::sleep(SETTLE);
    let (cpu_before, begin) = (agent.cpu_ns()?, Instant::now());
    thread::sleep(Duration::from_secs(arguments.idle_seconds));
    let (cpu_ns, seconds) = (agent.cpu_ns()? - cpu_before, begin.elapsed().as_secs_f64());
    let memory = agent.memory()?;
    agent.stop()?;
    Ok(Idle {
        files: arguments.idle_files,
        cpu_percent: cpu_ns as f64 / 1e7 / seconds,
        rss_mb: memory.now as f64 / 1e6,
    })
}
