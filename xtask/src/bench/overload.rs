//! `cargo xtask bench overload`: a sink at a tenth of the rate of its input, for a minute; then it may go as fast as it can.
//! Memory has to stay where it is, the source has to be held back, and every line has to come once and in order.
//!
//! The sink is `console`, and what slows it down is who reads its pipe: the agent sees what it sees of any slow receiver.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use flumen_tests::agent::Agent;
use flumen_tests::poll;
use flumen_tests::scene::Scene;
use serde_json::json;

use super::load::Writer;
use super::{input, machine};
use crate::build;

/// How much.
#[derive(clap::Args)]
pub struct Arguments {
    /// Events per second that are written
    #[arg(long, default_value_t = 100_000)]
    events_s: u64,
    /// For how long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Bytes of a line
    #[arg(long, default_value_t = 173)]
    event_bytes: usize,
    /// One JSON object as the last line
    #[arg(long)]
    json: bool,
}

/// So many times slower than the input is the sink.
const SLOWER: u64 = 10;
/// How often the reader's rate is held, and memory looked at.
const TICK: Duration = Duration::from_millis(20);
/// Of the whole, after the load.
const DRAIN: Duration = Duration::from_secs(300);
/// More of its own memory than after a quarter of the time counts as growth.
const GROWTH_MAX: u64 = 16 << 20;

/// What the reader of the pipe and the others tell each other.
#[derive(Default)]
struct Shared {
    /// Lines that were read.
    read: AtomicU64,
    /// The minute is over.
    is_free: AtomicBool,
}

/// Measures; succeeds if everything came once and memory stayed where it was.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut scene = Scene::below(&input::dir()?)?;
    scene.binary = Some(build::host(true)?);
    scene.pipeline(
        "[source.in]\ntype = \"tail\"\npaths = [\"{in}/load.log\"]\n[channel.main]\ncapacity = { bytes = \"256 MiB\" }\n[sink.out]\ntype = \"console\"\n",
    )?;
    // The harness appends to this file what the agent prints.
    let pipe = scene.log().with_extension("out");
    if !Command::new("mkfifo").arg(&pipe).status()?.success() {
        bail!("cannot make the pipe {}", pipe.display());
    }
    let writer = Writer {
        path: scene.input().join("load.log"),
        events_s: arguments.events_s,
        events: arguments.events_s * arguments.seconds,
        event_bytes: arguments.event_bytes,
    };
    let shared = Shared::default();
    let measured = thread::scope(|scope| {
        let reading = scope.spawn(|| read(&pipe, &writer, &shared));
        // The reader waits for somebody who writes.
        let give_up = |_: &anyhow::Error| drop(OpenOptions::new().write(true).open(&pipe));
        let agent = scene.start_ready().inspect_err(give_up)?;
        let measured = observe(&writer, &scene, &agent, &shared).with_context(|| agent.log_tail());
        shared.is_free.store(true, Ordering::Relaxed);
        // Without the agent nobody writes any more, and the reader ends.
        agent.stop()?;
        let read = reading.join().map_err(|_| anyhow!("the reader panicked"))?;
        measured.and_then(|measured| read.map(|()| measured))
    })?;
    let Measured { early, late, peak, held_back, drained } = measured;
    let is_flat = late <= early + GROWTH_MAX;
    let mb = |bytes: u64| bytes as f64 / 1e6;
    println!(
        "{} events/s of {} bytes for {} s to a sink at a tenth of it: {:.1} MB of its own after a quarter of that, {:.1} MB at the end of it, \
         peak {:.1} MB resident; {held_back} events not read by then; drained in {:.1} s, each once and in order: {}",
        writer.events_s,
        writer.event_bytes,
        arguments.seconds,
        mb(early),
        mb(late),
        mb(peak),
        drained.as_secs_f64(),
        if is_flat { "holds" } else { "GROWING" }
    );
    if arguments.json {
        println!(
            "{}",
            json!({ "early_mb": mb(early), "late_mb": mb(late), "peak_rss_mb": mb(peak), "held_back_events": held_back,
                "drain_s": drained.as_secs_f64(), "holds": is_flat, "machine": machine::describe() })
        );
    }
    Ok(if is_flat && held_back > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Bytes, events and time.
struct Measured {
    /// Its own memory after a quarter of the load.
    early: u64,
    /// The most of it after that, until the load is over.
    late: u64,
    /// Resident, of all.
    peak: u64,
    /// Events that the source had not taken when the load was over.
    held_back: u64,
    drained: Duration,
}

fn observe(writer: &Writer, scene: &Scene, agent: &Agent, shared: &Shared) -> Result<Measured> {
    let stopping = AtomicBool::new(false);
    thread::scope(|scope| {
        let (begin, stop) = (Instant::now(), &stopping);
        let writing = scope.spawn(move || writer.run(begin, stop));
        let load = Duration::from_secs(writer.events / writer.events_s);
        let (mut early, mut late) = (0, 0);
        while begin.elapsed() < load {
            let own = agent.memory()?.anonymous;
            let most = if begin.elapsed() < load / 4 { &mut early } else { &mut late };
            *most = own.max(*most);
            thread::sleep(TICK);
        }
        writing.join().map_err(|_| anyhow!("the writer panicked"))??;
        let taken = scene.status()?.context("no status")?.metric("source", "events_out");
        shared.is_free.store(true, Ordering::Relaxed);
        let begin = Instant::now();
        poll::until("every line", DRAIN, || Ok(shared.read.load(Ordering::Relaxed) >= writer.events))?;
        let drained = begin.elapsed();
        Ok(Measured {
            early,
            late,
            peak: agent.memory()?.peak,
            held_back: writer.events.saturating_sub(taken),
            drained,
        })
    })
}

/// Reads lines at a tenth of the load's rate until it is over, and looks at the number of each.
fn read(pipe: &Path, writer: &Writer, shared: &Shared) -> Result<()> {
    let mut lines = BufReader::with_capacity(1 << 16, File::open(pipe)?);
    let (mut line, mut wanted, begin) = (Vec::new(), 0_u64, Instant::now());
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line)? == 0 {
            return match wanted == writer.events {
                true => Ok(()),
                false => bail!("{wanted} lines of {} came", writer.events),
            };
        }
        let number = line.get(..10).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        if number != Some(wanted) || line.len() != writer.event_bytes + 1 {
            bail!("instead of line {wanted} came {:?}", String::from_utf8_lossy(&line));
        }
        wanted += 1;
        shared.read.store(wanted, Ordering::Relaxed);
        let is_early = || wanted > begin.elapsed().as_millis() as u64 * writer.events_s / SLOWER / 1_000;
        while !shared.is_free.load(Ordering::Relaxed) && is_early() {
            thread::sleep(TICK);
        }
    }
}
