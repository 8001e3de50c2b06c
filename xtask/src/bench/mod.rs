//! `cargo xtask bench`: figures with their yardsticks from the same run.

mod backlog;
mod dedup;
mod file;
mod flume;
mod flumen;
mod input;
mod journal;
mod kafka;
mod load;
mod machine;
mod memory;
mod overload;
mod raw;
mod rsyslog;
mod tail;
mod wasm;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

/// What to measure.
#[derive(Subcommand)]
pub enum Command {
    /// File to file, every acknowledgement durable, beside the raw limit and other agents
    File(file::Arguments),
    /// Resident memory while a sink is held back for half of 2 GB
    Memory(memory::Arguments),
    /// Time to the first delivery after a start with a backlog of 5 GB
    Backlog(backlog::Arguments),
    /// `dedup` with more than a million keys alive: events per second, memory for each key
    Dedup(dedup::Arguments),
    /// The file journal beside the raw disk: ways to write, group commit, compression
    Journal(journal::Arguments),
    /// Plugins in every language: ns per event beside native code, starts, the pause of a swap
    Plugins(wasm::Arguments),
    /// Sohu's load for five minutes, and its table of batch sizes: how late each event is
    Load(load::Arguments),
    /// Many files: a steady load over a thousand, and ten thousand that are idle
    Tail(tail::Arguments),
    /// A sink at a tenth of its input's rate for a minute: memory, and what comes
    Overload(overload::Arguments),
    /// Files to Kafka, beside plain producers and Flume; a steady load; S3's table; kills
    Kafka(kafka::Arguments),
}

/// Measures.
pub fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::File(arguments) => file::run(arguments),
        Command::Memory(arguments) => memory::run(arguments),
        Command::Backlog(arguments) => backlog::run(arguments),
        Command::Dedup(arguments) => dedup::run(arguments),
        Command::Journal(arguments) => journal::run(arguments),
        Command::Plugins(arguments) => wasm::plugins(arguments),
        Command::Load(arguments) => load::run(arguments),
        Command::Tail(arguments) => tail::run(arguments),
        Command::Overload(arguments) => overload::run(arguments),
        Command::Kafka(arguments) => kafka::run(arguments),
    }
}
