//! `flumen`: the command line. Parses arguments, hands them to one file per command, and turns the
//! outcome into an exit code.

mod agent;
mod bridges;
mod cmd;
mod control;
mod exit;
mod faults;
mod journals;
mod log;
mod memory;
mod registry;
mod reload;
mod running;
mod secondaries;
mod source_backed;
mod supervisor;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Parser, Subcommand, ValueEnum};
use signal_hook::consts::SIGPIPE;
use signal_hook::flag::register_conditional_shutdown;

/// The log agent whose logic belongs to its users: nothing lost, nothing twice, through your own code.
#[derive(Debug, Parser)]
#[command(name = "flumen", version, disable_help_subcommand = true)]
struct Cli {
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t = Output::Human)]
    output: Output,
    #[command(flatten)]
    log: log::LogArgs,
    #[command(subcommand)]
    command: Command,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Human,
    /// One JSON value.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent.
    Run(cmd::run::Args),
    /// Check configuration and plugins; run nothing.
    Check(cmd::check::Args),
    /// Ask the running agent how it is.
    Status(cmd::status::Args),
    /// Show what a reload would start, stop, change and leave alone.
    Plan(cmd::plan::Args),
    /// Have the running agent read its configuration and its plugins again.
    Reload(cmd::reload::Args),
    /// Kafka topics (or trees with done files) into whole files by event time.
    Bridge(cmd::bridge::Args),
    /// Look at plugins and try them.
    #[command(subcommand)]
    Plugin(cmd::plugin::Command),
    /// Look at a journal.
    #[command(subcommand)]
    Journal(cmd::journal::Command),
    /// Put lines of log files in again: a range that was lost, or never read.
    Backfill(Box<cmd::backfill::Args>),
    /// Look at events that could not be processed.
    #[command(subcommand)]
    Quarantine(cmd::quarantine::Command),
    /// Look into a Kafka cluster and at who reads it; write and read records.
    Kafka(Box<cmd::kafka::Args>),
    /// Print the JSON Schema of the configuration files.
    Schema(cmd::schema::Args),
}

/// glibc keeps what was freed for each thread that asked for it: with it, an agent whose plugins and pipelines were changed 210 times
/// had 57 MB from the system and 10 MB in use, and grew by 40 to 90 KB with each change.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { exit::USAGE } else { 0 };
            return match error.print() {
                Ok(()) => ExitCode::from(code),
                Err(_) => ExitCode::from(exit::FAILED),
            };
        }
    };
    // `run`, `plugin` and `bridge` have something to put in order at their end: they see the error of the write.
    if !matches!(cli.command, Command::Run(_) | Command::Plugin(_) | Command::Bridge(_)) {
        let always = Arc::new(AtomicBool::new(true));
        if let Err(error) = register_conditional_shutdown(SIGPIPE, exit::CLOSED_PIPE.into(), always) {
            return exit::Failure::from(error).report();
        }
    }
    let level = match &cli.command {
        Command::Run(_) => "info",
        Command::Bridge(args) if args.is_service() => "info",
        // What goes wrong with a connection is in the answer.
        Command::Kafka(_) => "error",
        _ => "warn",
    };
    let outcome = log::init(&cli.log, level).and_then(|repeats| match cli.command {
        Command::Run(args) => faults::switch_on().and_then(|()| cmd::run::run(args, repeats)),
        Command::Check(args) => cmd::check::run(args, cli.output),
        Command::Status(args) => cmd::status::run(args, cli.output),
        Command::Plan(args) => cmd::plan::run(args, cli.output),
        Command::Reload(args) => cmd::reload::run(args, cli.output),
        Command::Bridge(args) => faults::switch_on().and_then(|()| cmd::bridge::run(args, cli.output)),
        Command::Plugin(command) => cmd::plugin::run(command, cli.output),
        Command::Journal(command) => cmd::journal::run(command, cli.output),
        Command::Backfill(args) => cmd::backfill::run(*args, cli.output),
        Command::Quarantine(command) => cmd::quarantine::run(command, cli.output),
        Command::Kafka(args) => cmd::kafka::run(*args, cli.output),
        Command::Schema(args) => cmd::schema::run(args),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
