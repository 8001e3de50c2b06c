//! `flumen journal`: what is on disk. All but `replay --yes` only read, also while the agent runs.

mod chosen;
mod export;
mod inspect;
mod replay;
mod trace;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use flumen_journal::inspect::Inspector;
use flumen_journal::{Key, KeyId, Keys, OsDisk};

use self::chosen::Chosen;
pub use self::replay::answer;
use crate::Output;
use crate::agent::JOURNAL_DIR;
use crate::exit::Failure;

/// What to do with a journal.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show segments, commits, cursors, positions and rates.
    Inspect {
        #[command(flatten)]
        place: Place,
        /// Show every commit, not only counts.
        #[arg(long)]
        commits: bool,
    },
    /// Read everything and say what is damaged.
    #[command(after_help = "Exit codes: 0 nothing is damaged, 1 something is, or the files cannot be read.")]
    Verify {
        #[command(flatten)]
        place: Place,
    },
    /// Print the events of a channel as lines of JSON, as long as they are in the journal.
    Export {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        chosen: Chosen,
        /// Print at most this many events.
        #[arg(long)]
        limit: Option<u64>,
    },
    /// Follow one batch: read, committed, handed out, acknowledged.
    Trace {
        #[command(flatten)]
        place: Place,
        /// The number of its commit (17), an event of it by its number in a channel (main:1234), or by its identity
        /// (STREAM/POSITION).
        id: String,
    },
    /// Put events of a channel to a channel once more: its sinks deliver them again.
    ///
    /// Without --yes it only says what it would do. The running agent does it; without one it is done at once. If it is cut
    /// short, the same command goes on where it was, with the events that it meant at the beginning, also where its words (2h,
    /// or no end) mean others by now; --give-up ends that.
    Replay(replay::Args),
}

/// A journal.
#[derive(Debug, clap::Args)]
pub struct Place {
    /// A pipeline's directory (`DATA_DIR/pipelines/NAME`), or its journal's below it.
    dir: PathBuf,
    /// A key of an encrypted journal, and the file that has its 64 hexadecimal digits; for each key of the journal.
    #[arg(long = "key", value_name = "ID=FILE")]
    keys: Vec<String>,
}

impl Place {
    fn journal_dir(&self) -> PathBuf {
        let below = self.dir.join(JOURNAL_DIR);
        if below.is_dir() { below } else { self.dir.clone() }
    }

    fn inspector(&self) -> Result<Inspector, Failure> {
        let keys = self.keys.iter().map(|key| read_key(key)).collect::<Result<Keys>>()?;
        Ok(Inspector::open(Arc::new(OsDisk), self.journal_dir())?.with_keys(&keys))
    }
}

fn read_key(given: &str) -> Result<Key> {
    let parts = given.split_once('=').and_then(|(id, file)| Some((KeyId::new(id)?, file)));
    let (id, file) = parts.with_context(|| format!("--key {given}: write --key ID=FILE"))?;
    let text = std::fs::read_to_string(file).with_context(|| format!("--key {id}: reading {file}"))?;
    Key::from_hex(id, &text)
        .with_context(|| format!("--key {id}: {file} does not hold 64 hexadecimal digits"))
}

/// Does it.
pub fn run(command: Command, output: Output) -> Result<(), Failure> {
    match command {
        Command::Inspect { place, commits } => inspect::run(&place.inspector()?, commits, output),
        Command::Verify { place } => verify::run(&place.inspector()?, output),
        Command::Export { place, chosen, limit } => export::run(&place.inspector()?, &chosen, limit),
        Command::Trace { place, id } => trace::run(&place, &id, output),
        Command::Replay(args) => replay::run(args, output),
    }
}

/// A time of the journal as people write it.
fn shown_time(time_ns: i64) -> String {
    jiff::Timestamp::from_nanosecond(time_ns.into()).map_or_else(|_| "?".to_owned(), |time| time.to_string())
}
