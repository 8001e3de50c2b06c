//! `flumen run`: the agent itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::agent::Agent;
use crate::exit::{FAILED, Failure};
use crate::log::Repeats;
use crate::{cmd, control};

/// Arguments of `flumen run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// flumen.toml, or pipeline and bridge files, or directories of them. Default: flumen.toml in this directory.
    paths: Vec<PathBuf>,
}

/// How often the agent looks at itself: ended sources, failures, left-out log messages.
const LOOK: Duration = Duration::from_millis(100);

/// Runs until a signal, or until all sources have ended.
pub fn run(args: Args, repeats: Repeats) -> Result<(), Failure> {
    let (plan, files) = cmd::load(&args.paths)?;
    let (signalled, signals) = bounded(2);
    let mut watcher = Signals::new([SIGTERM, SIGINT])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut asked = false;
        for _ in watcher.forever() {
            if asked {
                // The journal has everything; there is nothing that an orderly end would save.
                eprintln!("flumen: second signal, stopping at once");
                std::process::exit(FAILED.into());
            }
            asked = signalled.send(()).is_ok();
        }
    })?;
    let agent = Arc::new(Agent::start(plan, &files)?);
    let answering = Arc::downgrade(&agent);
    control::serve(&agent.plan.data_dir, move |request| match request {
        "status" => answering.upgrade().and_then(|agent| serde_json::to_string(&agent.status()).ok()),
        other => answering.upgrade().and_then(|agent| cmd::quarantine::answer(&agent, other)),
    })?;
    let data_dir = agent.plan.data_dir.display().to_string();
    let bridges = agent.plan.bridges.len();
    tracing::info!(
        agent = agent.plan.name,
        pipelines = agent.plan.pipelines.len(),
        bridges,
        data_dir,
        "ready"
    );
    let failure = loop {
        match signals.recv_timeout(LOOK) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                tracing::info!(
                    limit_s = agent.plan.drain_timeout.as_secs_f64(),
                    "stopping: sources end, sinks drain"
                );
                break None;
            }
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
    };
    let fine = agent.stop();
    repeats.report();
    match failure {
        Some(failure) => Err(anyhow::anyhow!("no pipeline can go on: {failure}").into()),
        None if fine => Ok(()),
        None => Err(Failure::Reported(FAILED)),
    }
}
