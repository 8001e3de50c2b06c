//! `flumen run`: the agent itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, unbounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::agent::Agent;
use crate::cmd::plugin::shadow;
use crate::exit::{FAILED, Failure};
use crate::log::Repeats;
use crate::memory::MemoryWatch;
use crate::reload::{By, Reloader};
use crate::supervisor::{Supervisor, Watchdog};
use crate::{cmd, control};

/// Arguments of `flumen run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// flumen.toml, or pipeline and bridge files, or directories of them. Default: flumen.toml in this directory.
    paths: Vec<PathBuf>,
}

/// How often the agent looks at itself: ended sources, failures, its memory, left-out log messages.
const LOOK: Duration = Duration::from_millis(100);

/// What a signal asks for.
enum Asked {
    Stop,
    Reload,
}

/// Runs until a signal, or until all sources have ended.
pub fn run(args: Args, repeats: Repeats) -> Result<(), Failure> {
    let (plan, files) = cmd::load(&args.paths)?;
    let (signalled, signals) = unbounded();
    let mut watcher = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut asked = false;
        for signal in watcher.forever() {
            if signal == SIGHUP {
                // Fails only when the process is ending.
                signalled.send(Asked::Reload).ok();
                continue;
            }
            if asked {
                // The journal has everything; there is nothing that an orderly end would save.
                eprintln!("flumen: second signal, stopping at once");
                std::process::exit(FAILED.into());
            }
            asked = signalled.send(Asked::Stop).is_ok();
        }
    })?;
    let supervisor = Arc::new(Supervisor::from_env());
    let agent = Arc::new(Agent::start(args.paths, plan, files)?);
    let reloader = Reloader::start(&agent, supervisor.clone())?;
    serve(&agent, &reloader)?;
    let plan = agent.plan();
    let data_dir = plan.data_dir.display().to_string();
    let bridges = plan.bridges.len();
    tracing::info!(agent = plan.name, pipelines = plan.pipelines.len(), bridges, data_dir, "ready");
    supervisor.ready(&agent.in_short());
    let (mut watchdog, mut memory) = (Watchdog::from_env(supervisor.clone()), MemoryWatch::default());
    let failure = loop {
        match signals.recv_timeout(LOOK) {
            Ok(Asked::Stop) | Err(RecvTimeoutError::Disconnected) => {
                let limit_s = agent.plan().drain_timeout.as_secs_f64();
                tracing::info!(limit_s, "stopping: sources end, sinks drain");
                break None;
            }
            Ok(Asked::Reload) => reloader.ask(By::Signal),
            Err(RecvTimeoutError::Timeout) => {}
        }
        repeats.report();
        if let Some(failure) = agent.failure() {
            break Some(failure);
        }
        if agent.sources_ended() {
            tracing::info!("all sources have ended; sinks drain");
            break None;
        }
        memory.went_round(&agent);
        watchdog.went_round();
    };
    supervisor.stopping(agent.stop_limit());
    let fine = agent.stop();
    repeats.report();
    match failure {
        Some(failure) => Err(anyhow::anyhow!("no pipeline can go on: {failure}").into()),
        None if fine => Ok(()),
        None => Err(Failure::Reported(FAILED)),
    }
}

/// Answers `flumen status`, `flumen reload`, `flumen plan`, `flumen quarantine`, `flumen journal replay` and
/// `flumen backfill`.
fn serve(agent: &Arc<Agent>, reloader: &Reloader) -> anyhow::Result<()> {
    let (weak, reloader) = (Arc::downgrade(agent), reloader.clone());
    control::serve(&agent.plan().data_dir, move |request| match request {
        "status" => weak.upgrade().and_then(|agent| serde_json::to_string(&agent.status()).ok()),
        "plan" => weak.upgrade().and_then(|agent| serde_json::to_string(&agent.plan_reload()).ok()),
        "reload" | "reload drain" => {
            let answer = reloader.ask_and_wait(By::Command, request.ends_with("drain"));
            answer.and_then(|answer| serde_json::to_string(&*answer).ok())
        }
        other if other.starts_with(shadow::REQUEST) => {
            weak.upgrade().and_then(|agent| shadow::answer(&agent, other))
        }
        other => weak.upgrade().and_then(|agent| {
            cmd::quarantine::answer(&agent, other)
                .or_else(|| cmd::journal::answer(&agent, other))
                .or_else(|| cmd::backfill::answer(&agent, other))
        }),
    })
}
