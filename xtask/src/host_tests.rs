//! The tests of the host: cargo builds them and says where they are, and each binary is run here.
//!
//! Those with a Kafka broker wait for it, for groups and for timeouts more than they work: one after the other they leave half of the machine
//! idle. So two of them run side by side. All others have the machine for themselves.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use flumen_tests::kafka::install;
use flumen_tests::locate;
use serde::Deserialize;

use crate::build::cargo;
use crate::report::step;
use crate::test::{Tally, count};

/// How the names of test binaries with a Kafka broker begin.
const KAFKA: &str = "kafka_";

/// Such binaries at a time.
const KAFKA_AT_ONCE: usize = 2;

/// Those that take minutes, first: else one of them is under way alone at the end.
const LONG: [&str; 5] = ["kafka_source", "kafka_kill", "kafka_sink", "kafka_channel_state", "kafka_cluster"];

/// Threads of each of them.
const KAFKA_THREADS: &str = "2";

/// A message of `cargo --message-format=json`, as far as it is read.
#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// A binary with tests.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Binary {
    name: String,
    path: PathBuf,
    /// Where it runs: the directory of its package.
    dir: PathBuf,
    /// Tests of a crate through its public side, not those beside its code.
    is_integration: bool,
}

impl Binary {
    fn has_kafka(&self) -> bool {
        self.is_integration && self.name.starts_with(KAFKA)
    }

    fn run(&self, threads: Option<&str>, prefix: &str) -> Result<Tally> {
        let mut command = Command::new(&self.path);
        command.current_dir(&self.dir).env("CARGO_MANIFEST_DIR", &self.dir);
        // A snapshot that is written instead of compared proves nothing.
        command.env("INSTA_UPDATE", "no").env("CI", "true");
        command.env(locate::PLUGINS_VAR, locate::plugins()?);
        command.envs(threads.map(|threads| ("RUST_TEST_THREADS", threads)));
        println!("     Running {} ({})", self.name, self.path.display());
        count(&mut command, prefix)
    }
}

/// Unit tests of all crates, and the end-to-end tests; one that cannot be run counts as failed.
pub fn run(no_e2e: bool) -> Result<Tally> {
    step("tests of the host, end-to-end tests and soaks", || {
        let binaries = binaries(no_e2e)?;
        let (mut kafka, others): (Vec<Binary>, Vec<Binary>) =
            binaries.into_iter().partition(Binary::has_kafka);
        kafka.sort_by_key(|binary| LONG.iter().position(|long| *long == binary.name).unwrap_or(LONG.len()));
        let mut tally = Tally::default();
        for binary in &others {
            tally.add(&binary.name, binary.run(None, ""));
        }
        if !kafka.is_empty() {
            install::ensure()?;
            side_by_side(&kafka, &mut tally);
        }
        let mut docs = cargo();
        docs.current_dir(locate::repository()?).args(["test", "--workspace", "--no-fail-fast", "--doc"]);
        tally.add("documentation", count(&mut docs, ""));
        Ok(tally)
    })
}

/// Some at a time, each line with the name of its binary.
fn side_by_side(binaries: &[Binary], tally: &mut Tally) {
    let (next, sum) = (Mutex::new(binaries.iter()), Mutex::new(tally));
    let take = || next.lock().unwrap_or_else(PoisonError::into_inner).next();
    thread::scope(|scope| {
        for _ in 0..KAFKA_AT_ONCE {
            scope.spawn(|| {
                while let Some(binary) = take() {
                    let outcome = binary.run(Some(KAFKA_THREADS), &format!("{}: ", binary.name));
                    sum.lock().unwrap_or_else(PoisonError::into_inner).add(&binary.name, outcome);
                }
            });
        }
    });
}

/// All binaries with tests, built.
fn binaries(no_e2e: bool) -> Result<Vec<Binary>> {
    let mut command = cargo();
    command.current_dir(locate::repository()?);
    command.args(["test", "--workspace", "--no-run", "--quiet", "--message-format=json"]);
    if no_e2e {
        command.args(["--lib", "--bins"]);
    }
    let out = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !out.status.success() {
        bail!("cargo does not build the tests ({})", out.status);
    }
    let messages = String::from_utf8(out.stdout).context("what cargo says is no text")?;
    let mut found: Vec<Binary> = messages.lines().filter_map(binary).collect();
    found.sort_by(|a, b| (&a.dir, a.is_integration, &a.name).cmp(&(&b.dir, b.is_integration, &b.name)));
    if found.is_empty() {
        bail!("cargo names no binary with tests");
    }
    Ok(found)
}

/// Of a message that is about a binary with tests.
fn binary(message: &str) -> Option<Binary> {
    let message: Message = serde_json::from_str(message).ok()?;
    let is_test = message.reason == "compiler-artifact" && message.profile.is_some_and(|it| it.test);
    let target = message.target.filter(|_| is_test)?;
    let dir = message.manifest_path.as_deref().and_then(Path::parent)?.to_owned();
    let is_integration = target.kind.iter().any(|kind| kind == "test");
    Some(Binary { name: target.name, path: message.executable?, dir, is_integration })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binaries_are_found_in_what_cargo_says() {
        let artifact = |name: &str, kind: &str, test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/r/tests/Cargo.toml","target":{{"name":"{name}","kind":["{kind}"]}},"profile":{{"test":{test}}},"executable":"/t/{name}-1"}}"#
            )
        };
        let found = |line: &str| binary(line).map(|binary| (binary.has_kafka(), binary.dir));
        let dir = PathBuf::from("/r/tests");
        assert_eq!(found(&artifact("kafka_sink", "test", true)), Some((true, dir.clone())));
        assert_eq!(found(&artifact("kafka_unit", "lib", true)), Some((false, dir.clone())));
        assert_eq!(found(&artifact("kill", "test", true)), Some((false, dir)));
        assert_eq!(found(&artifact("flumen", "bin", false)), None);
        assert_eq!(found(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(found("no message"), None);
    }
}
