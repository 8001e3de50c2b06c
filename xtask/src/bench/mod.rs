//! `cargo xtask bench`: figures with their yardsticks from the same run.

mod backlog;
mod dedup;
mod file;
mod flume;
mod flumen;
mod input;
mod kafka;
mod machine;
mod memory;
mod raw;
mod rsyslog;
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
    /// Plugins in every language: ns per event beside native code, starts, the pause of a swap
    Plugins(wasm::Arguments),
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
        Command::Plugins(arguments) => wasm::plugins(arguments),
        Command::Kafka(arguments) => kafka::run(arguments),
    }
}
