//! `cargo xtask bench memory`: 2 GB through the default pipeline while the sink is held back for half of it.
//! The sink is held back by a file that stands where its directory should be.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flumen_tests::agent::Agent;
use flumen_tests::output;
use flumen_tests::poll;
use flumen_tests::scene::Scene;
use serde_json::json;

use super::{input, machine};
use crate::build;

/// How much.
#[derive(clap::Args)]
pub struct Arguments {
    /// Bytes of input, in MB
    #[arg(long, default_value_t = 2_000)]
    size_mb: u64,
    /// Resident memory may not pass this, in MB
    #[arg(long, default_value_t = 150.0)]
    limit_mb: f64,
    /// One JSON object as the last line
    #[arg(long)]
    json: bool,
}

const RUN_LIMIT: Duration = Duration::from_secs(900);

/// Measures; succeeds if the memory stayed below the limit.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    build::plugins()?;
    let binary = build::host(true)?;
    let input = input::of_size(arguments.size_mb)?;
    let started = Instant::now();
    let held = HeldBack::start(binary, &input.path)?;
    let half = input.bytes / 2;
    held.wait_read(half)?;
    let peak_held = held.agent.memory()?.peak;
    let out = held.release()?;
    poll::until("all bytes in the output", RUN_LIMIT, || Ok(output::bytes(&out)? >= input.bytes))
        .with_context(|| held.agent.log_tail())?;
    let memory = held.agent.memory()?;
    let HeldBack { agent, .. } = held;
    agent.stop()?;
    let peak_mb = memory.peak as f64 / 1e6;
    let holds = peak_mb < arguments.limit_mb;
    println!(
        "{} MB, sink held back for {} MB: peak {peak_mb:.1} MB resident ({:.1} MB while held back; {:.1} MB at the end, {:.1} MB of it anonymous) in {:.1} s: {}",
        arguments.size_mb,
        half / 1_000_000,
        peak_held as f64 / 1e6,
        memory.now as f64 / 1e6,
        memory.anonymous as f64 / 1e6,
        started.elapsed().as_secs_f64(),
        if holds { "holds" } else { "TOO MUCH" }
    );
    if arguments.json {
        let result = json!({ "size_mb": arguments.size_mb, "peak_rss_mb": peak_mb, "limit_mb": arguments.limit_mb, "holds": holds, "seconds": started.elapsed().as_secs_f64(), "machine": machine::describe() });
        println!("{result}");
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// An agent whose sink cannot write yet.
pub struct HeldBack {
    /// The agent.
    pub agent: Agent,
    /// Its place.
    pub scene: Scene,
}

impl HeldBack {
    /// Starts it over an input.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(binary: PathBuf, input: &std::path::Path) -> Result<Self> {
        let mut scene = Scene::below(&input::dir()?)?;
        scene.binary = Some(binary);
        scene.install("filter", "filter")?;
        fs::remove_dir(&scene.output)?;
        fs::write(&scene.output, "in the way")?;
        scene.pipeline(&format!(
            "[source.access]\ntype = \"tail\"\npaths = [\"{}\"]\n[[interceptor]]\nplugin = \"filter\"\nconfig = {{ drop = {{ contains = \"no line has this\" }} }}\n[channel.main]\ncapacity = {{ events = 100_000_000, bytes = \"64 GiB\" }}\n[sink.out]\ntype = \"file\"\npath = \"{{out}}/all.log\"\n",
            input.display()
        ))?;
        let agent = scene.start_ready()?;
        Ok(Self { agent, scene })
    }

    /// Waits until so many bytes are in the journal.
    ///
    /// # Errors
    /// If they do not come.
    pub fn wait_read(&self, bytes: u64) -> Result<()> {
        poll::until("the source to read its part", RUN_LIMIT, || {
            Ok(self.scene.status()?.is_some_and(|status| status.metric("source", "bytes_out") >= bytes))
        })
        .with_context(|| self.agent.log_tail())
    }

    /// Lets the sink go. Returns the output directory.
    ///
    /// # Errors
    /// If the directory cannot be made.
    pub fn release(&self) -> Result<PathBuf> {
        fs::remove_file(&self.scene.output)?;
        fs::create_dir(&self.scene.output)?;
        Ok(self.scene.output.clone())
    }
}
