//! `flumen quarantine`: events that could not be processed or delivered. `list` and `show` only read, also while the agent
//! runs; `replay` and `drop` ask the running agent, or leave it a job for its next start.

mod chosen;
mod jobs;
mod view;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use flumen_journal::inspect::{InspectError, Inspector};
use flumen_journal::{Keys, OsDisk};
use flumen_pipeline::kept::Action;

pub use self::chosen::{Chosen, numbers, time};
pub use self::jobs::answer;
use crate::agent::pipeline_dir;
use crate::exit::Failure;
use crate::{Output, cmd};

/// What to do with the quarantine.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Count events by pipeline, plugin and reason.
    List {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        chosen: Chosen,
    },
    /// Print the events themselves, each with its reason.
    Show {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        chosen: Chosen,
        /// Print at most this many events.
        #[arg(long, default_value_t = 100)]
        limit: u64,
    },
    /// Give events to the present version of the plugin that could not take them, and on from there, exactly once.
    ///
    /// What a sink could not take goes to that sink alone. Events that fail again stay, with their new reason. The agent
    /// does it; if it is not running, it does it when it starts. Ctrl-C ends the waiting, not the replay.
    Replay {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        chosen: Chosen,
        /// At most this many events of each pipeline, the oldest.
        #[arg(long)]
        limit: Option<u64>,
    },
    /// Delete events for good.
    Drop {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        chosen: Chosen,
        /// At most this many events of each pipeline, the oldest.
        #[arg(long)]
        limit: Option<u64>,
        /// Really all of them: needed if nothing else says which.
        #[arg(long)]
        all: bool,
    },
}

/// Whose quarantine.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// The agent's flumen.toml (to find its data directory). Default: flumen.toml in this directory.
    paths: Vec<PathBuf>,
    /// The agent's data directory, instead of a configuration.
    #[arg(long, conflicts_with = "paths")]
    data_dir: Option<PathBuf>,
    /// Only this pipeline.
    #[arg(long)]
    pipeline: Option<String>,
}

/// The data directory, and the pipelines whose quarantine is meant.
struct Place {
    data_dir: PathBuf,
    pipelines: Vec<String>,
    /// Of pipelines with a configuration at hand: the keys of their journals.
    keys: BTreeMap<String, Keys>,
}

impl Place {
    fn keys(&self, pipeline: &str) -> Keys {
        self.keys.get(pipeline).cloned().unwrap_or_default()
    }

    /// For one of a pipeline's journals, by the name of its directory.
    fn inspector(&self, pipeline: &str, journal: &str) -> Result<Inspector, InspectError> {
        let dir = pipeline_dir(&self.data_dir, pipeline).join(journal);
        Ok(Inspector::open(Arc::new(OsDisk), dir)?.with_keys(&self.keys(pipeline)))
    }
}

impl Which {
    fn place(self) -> Result<Place, Failure> {
        let (data_dir, keys) = match self.data_dir {
            Some(data_dir) => (data_dir, BTreeMap::new()),
            None => {
                let agent = cmd::load(&self.paths)?.0;
                let keys = agent.pipelines.into_iter().map(|pipeline| (pipeline.name, pipeline.journal.keys));
                (agent.data_dir, keys.collect())
            }
        };
        let known = cmd::pipelines_in(&data_dir)?;
        let pipelines = match self.pipeline {
            Some(name) if known.contains(&name) => vec![name],
            Some(name) => {
                return Err(anyhow::anyhow!("no pipeline {name:?}; there are: {}", known.join(", ")).into());
            }
            None => known,
        };
        Ok(Place { data_dir, pipelines, keys })
    }
}

/// Does it.
pub fn run(command: Command, output: Output) -> Result<(), Failure> {
    match command {
        Command::List { which, chosen } => view::list(&which.place()?, &chosen.filter()?, output),
        Command::Show { which, chosen, limit } => {
            view::show(&which.place()?, &chosen.filter()?, limit, output)
        }
        Command::Replay { which, chosen, limit } => {
            jobs::ask(&which.place()?, Action::Replay, chosen.filter()?, limit, output)
        }
        Command::Drop { which, chosen, limit, all } => {
            let filter = chosen.filter()?;
            if filter == flumen_pipeline::kept::filter::Filter::default() && limit.is_none() && !all {
                return Err(anyhow::anyhow!(
                    "this would delete every event in quarantine; say which (--by, --reason, --limit …), or --all"
                )
                .into());
            }
            jobs::ask(&which.place()?, Action::Drop, filter, limit, output)
        }
    }
}
