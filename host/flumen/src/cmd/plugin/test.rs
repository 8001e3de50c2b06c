//! `flumen plugin test`: cases that are files, and random batches.

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use flumen_plugin::PluginHost;
use flumen_plugin::cases::{Case, CaseActual, CaseOutcome, ExpectedEvent};

use super::cases::{self, Found};
use super::{toml_text, trial};
use crate::Output;
use crate::cmd::print_json;
use crate::exit::{FAILED, Failure};

/// What to test.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The plugin's directory.
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Its component. Default: the only .wasm file in the directory, else what the guest workspace has built.
    #[arg(long)]
    wasm: Option<PathBuf>,
    /// Write what came out into the cases' files, as what is expected from now on.
    #[arg(long)]
    update: bool,
    /// How many random batches (or inputs of a decoder) the plugin has to survive.
    #[arg(long, default_value_t = 50, value_name = "BATCHES")]
    random: u32,
    /// What the random batches begin from; printed by every run.
    #[arg(long)]
    seed: Option<u64>,
}

struct Outcome {
    name: String,
    difference: Option<String>,
}

/// Runs everything.
pub fn run(host: &PluginHost, args: &Args, output: Output) -> Result<(), Failure> {
    let wasm = match &args.wasm {
        Some(wasm) => wasm.clone(),
        None => cases::find_wasm(&args.dir)?,
    };
    let found = cases::read(&args.dir)?;
    if found.is_empty() {
        let reason = "there is nothing to test (see `flumen plugin new`)";
        return Err(
            anyhow::anyhow!("{} has no *.toml file: {reason}", args.dir.join("cases").display()).into()
        );
    }
    if args.update {
        return update(host, &wasm, &found);
    }
    let mut outcomes = Vec::new();
    for Found { case, .. } in &found {
        let outcome = host.run_case(&wasm, case).map_err(|error| Failure::Unfit(vec![error.to_string()]))?;
        let difference = match outcome {
            CaseOutcome::Passed => None,
            CaseOutcome::Failed(difference) => Some(difference),
        };
        outcomes.push(Outcome { name: case.name.clone(), difference });
    }
    let seed = args.seed.unwrap_or_else(fresh_seed);
    if args.random > 0 {
        let name = format!("{} random batches (--seed {seed})", args.random);
        outcomes.push(Outcome { name, difference: trial::run(host, &wasm, &found, args.random, seed)? });
    }
    report(&outcomes, seed, &wasm, output)
}

fn fresh_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::from(since.subsec_nanos()))
}

fn report(outcomes: &[Outcome], seed: u64, wasm: &Path, output: Output) -> Result<(), Failure> {
    let failed = outcomes.iter().filter(|outcome| outcome.difference.is_some()).count();
    let passed = outcomes.len() - failed;
    let mut out = std::io::stdout();
    match output {
        Output::Json => {
            let case = |outcome: &Outcome| {
                let Outcome { name, difference } = outcome;
                serde_json::json!({ "case": name, "passed": difference.is_none(), "difference": difference })
            };
            let cases: Vec<_> = outcomes.iter().map(case).collect();
            print_json(
                &serde_json::json!({ "passed": passed, "failed": failed, "cases": cases, "seed": seed }),
            )?;
        }
        Output::Human => {
            for Outcome { name, difference } in outcomes {
                writeln!(out, "{} {name}", if difference.is_none() { "ok    " } else { "FAILED" })?;
                for line in difference.iter().flat_map(|difference| difference.lines()) {
                    writeln!(out, "       {line}")?;
                }
            }
            writeln!(out, "{passed} passed, {failed} failed ({})", wasm.display())?;
        }
    }
    if failed == 0 { Ok(()) } else { Err(Failure::Reported(FAILED)) }
}

fn update(host: &PluginHost, wasm: &Path, found: &[Found]) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    for Found { path, case } in found {
        let old = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let outcome = host.run_case(wasm, case).map_err(|error| Failure::Unfit(vec![error.to_string()]))?;
        // A case that passes keeps its words: a part of a reason, an unnamed time.
        if outcome == CaseOutcome::Passed {
            writeln!(out, "same    {}", path.display())?;
            continue;
        }
        if case.codec.is_some() {
            writeln!(out, "differs {} (a codec's case is changed by hand)", path.display())?;
            continue;
        }
        if !case.steps.is_empty() {
            return Err(anyhow::anyhow!(
                "{}: a case of steps is not updated; change it by hand",
                path.display()
            )
            .into());
        }
        let actual = host.run_actual(wasm, case).map_err(|error| Failure::Unfit(vec![error.to_string()]))?;
        if let Some(failure) = actual.failure {
            return Err(anyhow::anyhow!(
                "{}: the plugin fails, that is no output: {failure}",
                path.display()
            )
            .into());
        }
        let new = rewritten(&old, case, &actual).with_context(|| format!("{}", path.display()))?;
        std::fs::write(path, new).with_context(|| format!("cannot write {}", path.display()))?;
        writeln!(out, "updated {}", path.display())?;
    }
    Ok(())
}

/// The text of a case with other results. What stands before them stays, comments too.
fn rewritten(old: &str, case: &Case, actual: &CaseActual) -> anyhow::Result<String> {
    let is_result = |line: &&str| {
        ["[[output]]", "[[rejected]]", "open_error"].iter().any(|begin| line.trim_start().starts_with(begin))
    };
    let kept: Vec<&str> = old.lines().take_while(|line| !is_result(line)).collect();
    let rest = old.lines().skip(kept.len());
    if rest.clone().any(|line| line.trim_start().starts_with("[[input]]")) {
        bail!("an [[input]] stands behind a result: move it up, then it can be updated");
    }
    let mut text = kept.join("\n").trim_end().to_owned();
    text.push('\n');
    if let Some(error) = &actual.open_error {
        if case.input.rows() > 0 {
            bail!("the plugin refuses the configuration of a case that has inputs: {error}");
        }
        writeln!(text, "open_error = {}", toml_text(error))?;
    }
    for event in &actual.outputs {
        write_event(&mut text, event)?;
    }
    for (row, reason) in &actual.rejected {
        write!(text, "\n[[rejected]]\nrow = {row}\nreason = {}\n", toml_text(reason))?;
    }
    Ok(text)
}

fn write_event(text: &mut String, event: &ExpectedEvent) -> anyhow::Result<()> {
    text.push_str("\n[[output]]\n");
    match std::str::from_utf8(&event.body) {
        Ok(body) => writeln!(text, "body = {}", toml_text(body))?,
        Err(_) => writeln!(text, "body_base64 = \"{}\"", base64(&event.body))?,
    }
    // 0 is what an event without a time has.
    if let Some(time) = event.time.filter(|time| *time != 0) {
        writeln!(text, "time = \"{}\"", jiff::Timestamp::from_nanosecond(time.into())?)?;
    }
    if !event.headers.is_empty() {
        let headers: Vec<String> = event
            .headers
            .iter()
            .map(|(name, value)| format!("{} = {}", toml_key(name), toml_text(value)))
            .collect();
        writeln!(text, "headers = {{ {} }}", headers.join(", "))?;
    }
    Ok(())
}

fn toml_key(name: &str) -> String {
    let is_bare = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    if is_bare { name.to_owned() } else { toml_text(name) }
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let number =
            chunk.iter().fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let letter = LETTERS.get((number >> (18 - 6 * place) & 63) as usize).copied().unwrap_or(b'=');
            out.push(if place <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_has_padding() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"\xff\xfe\x78\xff", "//54/w=="),
        ] {
            assert_eq!(base64(bytes), text);
        }
    }

    #[test]
    fn results_are_replaced_and_the_rest_stays() {
        let old = "# why\nconfig = { a = 1 }\n[[input]]\nbody = \"x\" # in\n\n[[output]]\nbody = \"old\"\n";
        let case = Case {
            name: "c".into(),
            config_json: "{}".into(),
            input: flumen_event::Batch::empty(),
            expected: Vec::new(),
            rejected: Vec::new(),
            open_error: None,
            steps: Vec::new(),
            codec: None,
        };
        let headers = [("a b".to_owned(), "1".to_owned())].into();
        let outputs = vec![ExpectedEvent { body: b"n\"w".to_vec(), time: Some(0), headers }];
        let actual = CaseActual { outputs, rejected: vec![(1, "no".into())], ..CaseActual::default() };
        let new = rewritten(old, &case, &actual).unwrap();
        assert_eq!(
            new,
            "# why\nconfig = { a = 1 }\n[[input]]\nbody = \"x\" # in\n\n[[output]]\nbody = \"n\\\"w\"\nheaders = { \"a b\" = \"1\" }\n\
             \n[[rejected]]\nrow = 1\nreason = \"no\"\n"
        );
        let mixed = "[[output]]\nbody = \"x\"\n[[input]]\nbody = \"x\"\n";
        assert!(rewritten(mixed, &case, &actual).is_err());
    }
}
