//! `flumen kafka`: what a person needs at night, without Java.

mod check;
mod connection;
mod consume;
mod lag;
mod produce;
mod topics;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::Output;
use crate::exit::Failure;

/// Arguments of `flumen kafka`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    connection: connection::Args,
    #[command(subcommand)]
    command: Command,
}

/// What to do with a cluster.
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Look whether brokers, topics and transactions are fit for Flumen; exit code 1 if something is not.
    Check,
    /// List, describe, make and delete topics.
    Topics(topics::Args),
    /// Show how far behind consumer groups are.
    Lag(lag::Args),
    /// Write lines of the standard input to a topic.
    Produce(produce::Args),
    /// Print records of a topic.
    Consume(consume::Args),
}

/// Does it.
pub fn run(args: Args, output: Output) -> Result<(), Failure> {
    let connection = args.connection.open()?;
    let is_json = output == Output::Json || args.connection.json;
    match args.command {
        Command::Check => check::run(&connection, is_json),
        Command::Topics(args) => topics::run(&args, &connection, is_json),
        Command::Lag(args) => lag::run(&args, &connection, is_json),
        Command::Produce(args) => produce::run(&args, &connection),
        Command::Consume(args) => consume::run(&args, &connection),
    }
}

/// Notes that a person wants an end (Ctrl-C, SIGTERM); a second time ends at once.
fn interrupted() -> Result<Arc<AtomicBool>, Failure> {
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let code = 128 + signal;
        signal_hook::flag::register_conditional_shutdown(signal, code, asked.clone())?;
        signal_hook::flag::register(signal, asked.clone())?;
    }
    Ok(asked)
}

fn is_set(flag: &AtomicBool) -> bool {
    flag.load(Ordering::Relaxed)
}

/// Columns as wide as their widest cell; numbers to the right.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = head
        .iter()
        .enumerate()
        .map(|(at, name)| {
            let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
            cells.chain([name.len()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, &width) in cells.zip(&widths) {
            let is_number = cell.starts_with(|c: char| c.is_ascii_digit() || c == '-');
            line += &if is_number { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
        }
        line.trim_end().to_string() + "\n"
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}
