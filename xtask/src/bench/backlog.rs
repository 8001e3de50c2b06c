//! `cargo xtask bench backlog`: a start with a backlog of 5 GB in the journal; time to the first delivery.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flumen_tests::output;
use flumen_tests::poll;
use serde_json::json;

use super::memory::HeldBack;
use super::{input, machine};
use crate::build;

/// How much.
#[derive(clap::Args)]
pub struct Arguments {
    /// Bytes in the journal, in MB
    #[arg(long, default_value_t = 5_000)]
    size_mb: u64,
    /// The first delivery has to come within this, in ms
    #[arg(long, default_value_t = 1_000)]
    limit_ms: u64,
    /// One JSON object as the last line
    #[arg(long)]
    json: bool,
}

const FIRST_LIMIT: Duration = Duration::from_secs(120);
/// How long it delivers from the backlog before its memory is looked at.
const DELIVERING: Duration = Duration::from_secs(5);

/// Measures; succeeds if the first delivery came in time.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    build::plugins()?;
    let binary = build::host(true)?;
    let input = input::of_size(arguments.size_mb)?;
    let held = HeldBack::start(binary, &input.path)?;
    // Bodies have no newlines; all but the last batch is enough of a backlog.
    held.wait_read(input.bytes - input.lines - (4 << 20))?;
    let HeldBack { agent, scene } = held;
    agent.kill()?;
    std::fs::remove_file(&scene.output)?;
    std::fs::create_dir(&scene.output)?;
    let start = Instant::now();
    let mut agent = scene.start()?;
    agent.wait_ready()?;
    let ready_ms = start.elapsed().as_millis() as u64;
    let ready_mb = agent.memory()?.peak as f64 / 1e6;
    poll::until("the first delivery", FIRST_LIMIT, || Ok(output::bytes(&scene.output)? > 0))
        .with_context(|| agent.log_tail())?;
    let first_ms = start.elapsed().as_millis() as u64;
    thread::sleep(DELIVERING);
    let peak_mb = agent.memory()?.peak as f64 / 1e6;
    let holds = first_ms < arguments.limit_ms;
    println!(
        "backlog of {} MB, after a SIGKILL: ready {ready_ms} ms after the start of the process ({ready_mb:.1} MB resident), first delivery \
         after {first_ms} ms: {}; peak {peak_mb:.1} MB resident in the {} s of delivering after it",
        arguments.size_mb,
        if holds { "holds" } else { "TOO LATE" },
        DELIVERING.as_secs()
    );
    drop(agent);
    if arguments.json {
        let result = json!({ "size_mb": arguments.size_mb, "ready_ms": ready_ms, "ready_rss_mb": ready_mb, "first_delivery_ms": first_ms,
            "peak_rss_mb": peak_mb, "limit_ms": arguments.limit_ms, "holds": holds, "machine": machine::describe() });
        println!("{result}");
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
