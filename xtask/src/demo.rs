//! `cargo xtask demo`: examples/quickstart under harm, judged by a program that knows nothing of Flumen.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flumen_tests::agent::Agent;
use flumen_tests::output::{self, LineCounter};
use flumen_tests::{locate, oracle, poll, scene};
use serde_json::Value;

use crate::build;

/// How much to do.
#[derive(clap::Args)]
pub struct Arguments {
    /// Lines to write
    #[arg(long, default_value_t = 240_000)]
    lines: u64,
    /// Bytes per second
    #[arg(long, default_value_t = 3_000_000)]
    bytes_per_s: u64,
}

/// The writer ends by itself; this is for a machine that stands still.
const WRITER_LIMIT: Duration = Duration::from_secs(300);
/// From the last line written to the last line delivered.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);
/// Reading both sides.
const VERIFY_LIMIT: Duration = Duration::from_secs(120);
/// Input files side by side.
const FILES: u32 = 2;

/// What is done when so many percent of the lines are delivered.
const SCRIPT: [(u64, Harm); 5] = [
    (15, Harm::Swap("swap-b")),
    (30, Harm::Kill),
    (45, Harm::Break),
    (60, Harm::Swap("swap-a")),
    (75, Harm::Kill),
];

#[derive(Clone, Copy)]
enum Harm {
    /// Copy another build over the running one.
    Swap(&'static str),
    /// Copy half a file over it.
    Break,
    /// SIGKILL and a new start.
    Kill,
}

/// Builds, runs, judges.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    build::plugins()?;
    let binary = build::host(false)?;
    let started = Instant::now();
    let mut demo = Demo::new(binary, started)?;
    demo.perform(arguments)?;
    let holds = demo.verify()?;
    demo.say(&format!("everything is in {}", demo.dir.display()));
    println!("demo {} in {:.1} s", if holds { "passed" } else { "FAILED" }, started.elapsed().as_secs_f64());
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Demo {
    dir: PathBuf,
    binary: PathBuf,
    started: Instant,
    counter: LineCounter,
}

impl Demo {
    fn new(binary: PathBuf, started: Instant) -> Result<Self> {
        let dir = locate::target_dir()?.join("demo");
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        for name in ["in", "out", "plugins"] {
            fs::create_dir_all(dir.join(name))?;
        }
        let demo = Self { dir, binary, started, counter: LineCounter::default() };
        demo.install("access-log", "access-log")?;
        demo.install("swap-a", "version")?;
        Ok(demo)
    }

    fn say(&self, text: &str) {
        println!("{:6.1} s  {text}", self.started.elapsed().as_secs_f64());
    }

    fn install(&self, plugin: &str, name: &str) -> Result<()> {
        fs::copy(locate::plugin(plugin)?, self.plugin(name))?;
        Ok(())
    }

    fn plugin(&self, name: &str) -> PathBuf {
        self.dir.join("plugins").join(format!("{name}.wasm"))
    }

    fn start(&self) -> Result<Agent> {
        let config = locate::repository()?.join("examples/quickstart/flumen.toml");
        let mut command = Command::new(&self.binary);
        command.arg("run").arg(config).env("QUICKSTART_DIR", &self.dir).env("NO_COLOR", "1");
        let mut agent = Agent::spawn(command, &self.dir.join("agent.log"))?;
        agent.wait_ready()?;
        Ok(agent)
    }

    fn perform(&mut self, arguments: &Arguments) -> Result<()> {
        let mut agent = self.start()?;
        self.say(&format!("flumen runs (process {})", agent.id()));
        let mut writer = Writer::start(&self.dir.join("in"), arguments)?;
        self.say(&format!(
            "a writer (process {}) writes {} lines into {FILES} files and rotates them",
            writer.0.id(),
            arguments.lines
        ));
        for (percent, harm) in SCRIPT {
            let goal = arguments.lines * percent / 100;
            let delivered = self.wait_delivered(&mut agent, goal, WRITER_LIMIT)?;
            match harm {
                Harm::Swap(plugin) => {
                    self.install(plugin, "version")?;
                    self.say(&format!(
                        "{delivered} lines delivered: {plugin}.wasm copied over the running plugin"
                    ));
                }
                Harm::Break => {
                    let whole = fs::read(locate::plugin("swap-b")?)?;
                    fs::write(self.plugin("version"), whole.get(..whole.len() / 2).unwrap_or_default())?;
                    self.say(&format!(
                        "{delivered} lines delivered: half a file copied over the running plugin"
                    ));
                }
                Harm::Kill => {
                    let id = agent.id();
                    agent.kill()?;
                    self.say(&format!("{delivered} lines delivered: process {id} killed with SIGKILL"));
                    agent = self.start()?;
                    self.say(&format!("flumen runs again (process {})", agent.id()));
                }
            }
        }
        let lines = writer.finish()?;
        self.say(&format!("the writer is done: {lines} lines"));
        self.wait_delivered(&mut agent, lines, DRAIN_LIMIT)?;
        self.say("all delivered; SIGTERM");
        agent.stop()?;
        self.say("flumen has drained and ended with 0");
        Ok(())
    }

    fn wait_delivered(&mut self, agent: &mut Agent, goal: u64, limit: Duration) -> Result<u64> {
        let waited = poll::until_some(&format!("{goal} lines in the output"), limit, || {
            agent.expect_running()?;
            let count = self.counter.count(&self.dir.join("out"))?;
            Ok((count >= goal).then_some(count))
        });
        waited.with_context(|| agent.log_tail())
    }

    fn verify(&self) -> Result<bool> {
        let (input, output) = (self.dir.join("in"), self.dir.join("out"));
        let mut python = Command::new("python3");
        python.arg(locate::repository()?.join("examples/quickstart/verify.py")).args([&input, &output]);
        match scene::run(python, VERIFY_LIMIT) {
            Ok(answer) => {
                self.say("verify.py compares every line written with every line delivered:");
                print!("{}{}", answer.stdout, answer.stderr);
                Ok(answer.status.success())
            }
            Err(error) => {
                self.say(&format!(
                    "python3 does not run here ({error:#}); the oracle of the tests judges instead:"
                ));
                verify_without_python(&input, &output)
            }
        }
    }
}

fn verify_without_python(input: &Path, output: &Path) -> Result<bool> {
    let mut written = vec![0_u64; FILES as usize];
    for line in output::files(input)?
        .iter()
        .map(fs::read)
        .collect::<Result<Vec<_>, _>>()?
        .concat()
        .split(|b| *b == b'\n')
    {
        let count = oracle::mark(line).and_then(|mark| written.get_mut(mark.file as usize));
        if let Some(count) = count {
            *count += 1;
        }
    }
    let verdict = oracle::judge(&output::sequences(output)?, &written, |_| true)?;
    println!("{verdict:#?}");
    Ok(verdict.holds())
}

/// The writing process. Killed if the demo ends early.
struct Writer(Child);

impl Writer {
    fn start(dir: &Path, arguments: &Arguments) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.arg("generate").arg("--dir").arg(dir).stdin(Stdio::null()).stdout(Stdio::piped());
        let figures = [
            ("--files", u64::from(FILES)),
            ("--lines", arguments.lines),
            ("--bytes-per-s", arguments.bytes_per_s),
            ("--rotate-bytes", arguments.bytes_per_s * 2),
        ];
        for (name, figure) in figures {
            command.args([name, &figure.to_string()]);
        }
        Ok(Self(command.spawn().context("cannot start the writer")?))
    }

    fn finish(&mut self) -> Result<u64> {
        let status = poll::until_some("the end of the writer", WRITER_LIMIT, || Ok(self.0.try_wait()?))?;
        if !status.success() {
            bail!("the writer failed: {status}");
        }
        let out = self.0.stdout.take().context("the writer has no output")?;
        let answer: Value = serde_json::from_reader(out)?;
        answer.get("lines").and_then(Value::as_u64).context("the writer did not say how much it wrote")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) && self.0.kill().is_ok() {
            drop(self.0.wait());
        }
    }
}
