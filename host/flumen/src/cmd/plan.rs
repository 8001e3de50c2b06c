//! `flumen plan`: what a reload would start, stop, change and leave alone.

use std::path::PathBuf;

use flumen_pipeline::plan_diff::PlanDiff;
use serde_json::Value;

use crate::cmd::reload;
use crate::exit::{DIFFERS, Failure};
use crate::{Output, agent, bridges, cmd, control};

/// Arguments of `flumen plan`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 the edit could be taken over (with --exit-code: nothing would change), 3 with --exit-code: \
                        something would change, 78 the configuration has errors, 1 a reload would be refused."
)]
pub struct Args {
    /// The agent's flumen.toml, or its pipeline files. Default: flumen.toml in this directory.
    paths: Vec<PathBuf>,
    /// The agent's data directory, instead of a configuration.
    #[arg(long, conflicts_with = "paths")]
    data_dir: Option<PathBuf>,
    /// End with 3 if anything would change.
    #[arg(long)]
    exit_code: bool,
}

/// Asks the running agent, which reads its files as it would for a reload; without one, everything starts.
pub fn run(args: Args, output: Output) -> Result<(), Failure> {
    let data_dir = cmd::data_dir(&args.paths, args.data_dir)?;
    let (changes, answer) = match control::ask_within(&data_dir, "plan", reload::PATIENCE) {
        Ok(reply) => {
            let answer: Value = serde_json::from_str(&reply)?;
            reload::show(&answer, &reply, output)?;
            (answer.get("changed").and_then(Value::as_bool) == Some(true), answer)
        }
        Err(error) => {
            let (plan, files) = cmd::load(&args.paths)?;
            let mut wrong = agent::component_errors(&plan, &files);
            wrong.extend(bridges::errors(&plan, &files));
            if !wrong.is_empty() {
                return Err(Failure::Config(wrong));
            }
            let diff = PlanDiff::start(&plan);
            let text = format!("{error:#}\nno agent runs, so everything starts:\n{diff}");
            let answer = serde_json::json!({
                "ok": true, "code": 0, "generation": 0, "changed": true, "plan": diff, "errors": [], "notes": [], "text": text,
            });
            reload::show(&answer, &answer.to_string(), output)?;
            (true, answer)
        }
    };
    reload::end(&answer)?;
    if args.exit_code && changes { Err(Failure::Reported(DIFFERS)) } else { Ok(()) }
}
