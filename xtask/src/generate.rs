//! The writer of the demo, a process of its own: an access log with rotation by rename.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use flumen_tests::generator::{self, Load, Rotation};
use serde_json::json;

/// What to write.
#[derive(clap::Args)]
pub struct Arguments {
    /// Directory of the log files
    #[arg(long)]
    dir: PathBuf,
    /// Files written side by side
    #[arg(long, default_value_t = 1)]
    files: u32,
    /// Lines in all
    #[arg(long)]
    lines: u64,
    /// Bytes per second; 0: as fast as it goes
    #[arg(long, default_value_t = 0)]
    bytes_per_s: u64,
    /// Rotate after so many bytes; 0: never
    #[arg(long, default_value_t = 0)]
    rotate_bytes: u64,
    /// Of the random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Writes, and prints how many lines each file got.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let written = generator::write_now(Load {
        dir: arguments.dir.clone(),
        files: arguments.files,
        bytes_per_s: arguments.bytes_per_s,
        rotate_bytes: arguments.rotate_bytes,
        rotation: if arguments.rotate_bytes == 0 { Rotation::None } else { Rotation::Rename },
        lines: Some(arguments.lines),
        has_malformed: false,
        has_doubles: false,
        seed: arguments.seed,
    })?;
    println!("{}", json!({ "lines": written.iter().sum::<u64>(), "per_file": written }));
    Ok(ExitCode::SUCCESS)
}
