//! `flumen reload`: has the running agent read its configuration and its plugins again, and says what came of it.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::exit::{FAILED, Failure};
use crate::{Output, cmd, control};

/// Arguments of `flumen reload`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 taken over (or nothing to do), 78 the configuration has errors, 1 refused, or failed and \
                        taken back. Unless it is 0 everything runs on as it was."
)]
pub struct Args {
    /// The agent's flumen.toml (to find its data directory). Default: flumen.toml in this directory.
    paths: Vec<PathBuf>,
    /// The agent's data directory, instead of a configuration.
    #[arg(long, conflicts_with = "paths")]
    data_dir: Option<PathBuf>,
    /// Where an edit takes a channel or a sink away that still holds events: stop the sources and deliver them first.
    #[arg(long)]
    drain: bool,
}

/// A reload opens plugins, drains channels, waits for syncs; this is only a bound for an agent that hangs.
pub const PATIENCE: Duration = Duration::from_secs(900);

/// Asks and prints.
pub fn run(args: Args, output: Output) -> Result<(), Failure> {
    let data_dir = cmd::data_dir(&args.paths, args.data_dir)?;
    let request = if args.drain { "reload drain" } else { "reload" };
    let reply = control::ask_within(&data_dir, request, PATIENCE)?;
    let answer: Value = serde_json::from_str(&reply)?;
    let generation = answer.get("generation").and_then(Value::as_u64).unwrap_or(0);
    let is_ok = show(&answer, &reply, output)?;
    if output == Output::Human && is_ok {
        match answer.get("changed").and_then(Value::as_bool) {
            Some(true) => println!("reloaded: generation {generation}"),
            _ => println!("still generation {generation}"),
        }
    } else if output == Output::Human {
        eprintln!("flumen: not reloaded; generation {generation} runs on as it was");
    }
    end(&answer)
}

/// Prints an answer. True: it is not an error.
pub fn show(answer: &Value, reply: &str, output: Output) -> Result<bool, Failure> {
    let is_ok = answer.get("ok").and_then(Value::as_bool) == Some(true);
    let text = answer.get("text").and_then(Value::as_str).unwrap_or(reply).trim_end();
    match output {
        Output::Json => println!("{}", reply.trim_end()),
        Output::Human if is_ok => println!("{text}"),
        Output::Human => eprintln!("{text}"),
    }
    Ok(is_ok)
}

/// The exit code that an answer asks for.
pub fn end(answer: &Value) -> Result<(), Failure> {
    let code = answer.get("code").and_then(Value::as_u64).and_then(|code| u8::try_from(code).ok());
    match code.unwrap_or(FAILED) {
        0 => Ok(()),
        code => Err(Failure::Reported(code)),
    }
}
