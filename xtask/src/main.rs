//! `cargo xtask`: everything that is done to this repository, one file per command.

mod bench;
mod bindings;
mod build;
mod demo;
mod fuzz;
mod generate;
mod host_tests;
mod kafka;
mod report;
mod schema;
mod sdk;
mod soak;
mod soak_kafka;
mod test;
mod tutorial;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, proves and measures Flumen", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Flumen at work in under a minute: real lines, your own Wasm, a swap, a SIGKILL, nothing lost
    Demo(demo::Arguments),
    /// Everything that has to hold: unit tests, end-to-end tests, plugins, lints
    Test(test::Arguments),
    /// Builds all plugins into target/plugins, and the example in every language
    Plugins,
    /// Writes the JSON Schema of the configuration; --check: says whether it is up to date
    Schema(schema::Arguments),
    /// Writes the generated half of the SDKs for C and Go; --check: says whether it is up to date
    Bindings(bindings::Arguments),
    /// Kills the agent (or cuts the power, or harms Kafka) again and again while data flows and plugins are swapped
    Soak(soak::Arguments),
    /// Measures, beside yardsticks from the same run
    #[command(subcommand)]
    Bench(bench::Command),
    /// Plugin files and answers that are nearly right, until something breaks
    Fuzz(fuzz::Arguments),
    /// A Kafka broker on this machine, to try things on; runs until Ctrl-C
    Kafka(kafka::Arguments),
    /// Types what a page of docs/plugins says, word by word
    Tutorial(tutorial::Arguments),
    /// rustfmt and clippy, as `test` runs them
    Lint,
    /// Writes access logs (the writer of the demo)
    #[command(hide = true)]
    Generate(generate::Arguments),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Plugins => {
            build::plugins()?;
            build::languages(&build::host(false)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Schema(arguments) => schema::run(&arguments),
        Command::Bindings(arguments) => bindings::run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Bench(command) => bench::run(&command),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Kafka(arguments) => kafka::run(&arguments),
        Command::Tutorial(arguments) => tutorial::run(&arguments),
        Command::Lint => test::lint(),
        Command::Generate(arguments) => generate::run(&arguments),
    }
}
