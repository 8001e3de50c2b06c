//! A directory with everything that one agent needs: configuration, plugins, data, input and output.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::agent::Agent;
use crate::status::Status;
use crate::{limits, locate, poll};

/// The name of the pipeline that [`Scene::pipeline`] writes.
pub const PIPELINE: &str = "main";

/// A place to run an agent in. Removed at the end, unless the test fails: then its path is printed.
#[derive(Debug)]
pub struct Scene {
    root: Option<tempfile::TempDir>,
    root_path: PathBuf,
    /// The agent's name.
    pub agent_name: String,
    /// The agent's `data_dir`.
    pub data: PathBuf,
    /// Where the pipeline's sink writes, by convention.
    pub output: PathBuf,
    /// Put before `flumen run`, such as `setpriv …`.
    pub wrapper: Vec<String>,
    /// `drain_timeout` of the agent.
    pub drain_timeout: String,
    /// Variables for the agent.
    pub env: Vec<(String, String)>,
    /// The binary; `None`: where [`locate::flumen`] finds it.
    pub binary: Option<PathBuf>,
}

/// The outcome of one command of the CLI.
#[derive(Debug)]
pub struct Answer {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Scene {
    /// An empty scene in the system's temporary directory.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new() -> Result<Self> {
        Self::below(&std::env::temp_dir())
    }

    /// An empty scene below a directory.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn below(parent: &Path) -> Result<Self> {
        let root = tempfile::Builder::new().prefix("flumen-").tempdir_in(parent)?;
        let root_path = root.path().to_owned();
        let scene = Self {
            agent_name: "test".to_owned(),
            data: root_path.join("data"),
            output: root_path.join("out"),
            root: Some(root),
            root_path,
            wrapper: Vec::new(),
            drain_timeout: "30s".to_owned(),
            env: Vec::new(),
            binary: None,
        };
        for dir in [scene.input(), scene.plugin_dir(), scene.output.clone(), scene.data.clone()] {
            fs::create_dir_all(dir)?;
        }
        Ok(scene)
    }

    /// The directory of the scene.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root_path
    }

    /// Where input files are, by convention.
    #[must_use]
    pub fn input(&self) -> PathBuf {
        self.root_path.join("in")
    }

    /// The agent's `plugin_dir`.
    #[must_use]
    pub fn plugin_dir(&self) -> PathBuf {
        self.root_path.join("plugins")
    }

    /// The agent's log: standard error of all its runs.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.root_path.join("agent.log")
    }

    /// Keeps the directory at the end.
    pub fn keep(&mut self) -> PathBuf {
        if let Some(root) = self.root.take() {
            drop(root.keep());
        }
        self.root_path.clone()
    }

    /// Copies a built plugin into the plugin directory, as `cp` does: over what is there, not by rename.
    ///
    /// # Errors
    /// If it was not built.
    pub fn install(&self, plugin: &str, name: &str) -> Result<()> {
        let from = locate::plugin(plugin)?;
        fs::copy(&from, self.plugin_dir().join(format!("{name}.wasm")))?;
        Ok(())
    }

    /// Writes `flumen.toml` and the pipeline file. In the text, `{in}` and `{out}` stand for the directories.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn pipeline(&self, text: &str) -> Result<()> {
        let quoted = |path: &Path| path.display().to_string();
        let agent = format!(
            "[agent]\nname = \"{}\"\ndata_dir = \"{}\"\nplugin_dir = \"{}\"\ndrain_timeout = \"{}\"\npipelines = [\"{PIPELINE}.toml\"]\n",
            self.agent_name,
            quoted(&self.data),
            quoted(&self.plugin_dir()),
            self.drain_timeout,
        );
        fs::write(self.config(), agent)?;
        let text = text.replace("{in}", &quoted(&self.input())).replace("{out}", &quoted(&self.output));
        fs::write(self.root_path.join(format!("{PIPELINE}.toml")), text)?;
        Ok(())
    }

    /// The path of `flumen.toml`.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root_path.join("flumen.toml")
    }

    fn binary(&self) -> Result<PathBuf> {
        self.binary.clone().map_or_else(locate::flumen, Ok)
    }

    /// Starts the agent; does not wait for its ready line.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self) -> Result<Agent> {
        let mut words: Vec<String> = self.wrapper.clone();
        words.push(self.binary()?.display().to_string());
        words.push("run".to_owned());
        words.push(self.config().display().to_string());
        let (program, arguments) = words.split_first().context("no program")?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.root_path).env("NO_COLOR", "1");
        // Of who runs the tests.
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        Agent::spawn(command, &self.log())
    }

    /// Starts the agent and waits for its ready line.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_ready(&self) -> Result<Agent> {
        let mut agent = self.start()?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Runs another command of `flumen` to its end.
    ///
    /// # Errors
    /// If it cannot be started or takes longer than [`limits::COMMAND`].
    pub fn flumen<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Answer> {
        let mut command = Command::new(self.binary()?);
        command.args(arguments).current_dir(&self.root_path).env("NO_COLOR", "1");
        run(command, limits::COMMAND)
    }

    /// `flumen status`; `None` while the agent does not answer.
    ///
    /// # Errors
    /// If it answers something that is not JSON.
    pub fn status(&self) -> Result<Option<Status>> {
        let data = self.data.display().to_string();
        let answer = self.flumen(&["status", "--data-dir", &data, "--output", "json"])?;
        if !answer.status.success() {
            return Ok(None);
        }
        let value = serde_json::from_str(&answer.stdout)
            .with_context(|| format!("`flumen status` gave no JSON: {}", answer.stdout))?;
        Ok(Some(Status(value)))
    }

    /// `flumen status` of an agent that runs: a busy machine may let it wait longer than the command does.
    ///
    /// # Errors
    /// As [`Scene::status`]; and if it does not answer within [`limits::CONDITION`].
    pub fn answered(&self) -> Result<Status> {
        poll::until_some("an answer to `flumen status`", limits::CONDITION, || self.status())
    }

    /// What `flumen status` of an agent that runs tells people, waited for as in [`Scene::answered`].
    ///
    /// # Errors
    /// As [`Scene::answered`].
    pub fn shown(&self) -> Result<String> {
        let data = self.data.display().to_string();
        poll::until_some("an answer to `flumen status`", limits::CONDITION, || {
            let answer = self.flumen(&["status", "--data-dir", &data])?;
            Ok(answer.status.success().then_some(answer.stdout))
        })
    }

    /// `flumen quarantine show`: the events as JSON objects.
    ///
    /// # Errors
    /// If the command fails.
    pub fn quarantine(&self) -> Result<Vec<Value>> {
        let data = self.data.display().to_string();
        let all = usize::MAX.to_string();
        let words = [
            "quarantine",
            "show",
            "--limit",
            &all,
            "--data-dir",
            &data,
            "--pipeline",
            PIPELINE,
            "--output",
            "json",
        ];
        let answer = self.flumen(&words)?;
        if !answer.status.success() {
            bail!("`flumen quarantine show` failed ({}): {}{}", answer.status, answer.stdout, answer.stderr);
        }
        let json = |line: &str| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"));
        answer.stdout.lines().map(json).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let path = self.keep();
            eprintln!("the scene is kept for a look: {}", path.display());
        }
    }
}

/// Runs a command to its end, with a limit.
///
/// # Errors
/// If it cannot be started or takes longer than `limit` (it is killed then).
pub fn run(mut command: Command, limit: Duration) -> Result<Answer> {
    // Files, not pipes: a full pipe would stop the child while nobody reads.
    let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?);
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let ended = poll::until_some(&format!("the end of {command:?}"), limit, || Ok(child.try_wait()?));
    let status = match ended {
        Ok(status) => status,
        Err(error) => {
            child.kill()?;
            child.wait()?;
            return Err(error);
        }
    };
    Ok(Answer { status, stdout: whole(&mut out)?, stderr: whole(&mut err)? })
}

/// Copies a directory with everything in it (`cp -a`).
///
/// # Errors
/// If cp fails.
pub fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command.arg("-a").arg(from).arg(to);
    let answer = run(command, limits::COMMAND)?;
    if !answer.status.success() {
        bail!("cp: {}", answer.stderr.trim());
    }
    Ok(())
}

fn whole(file: &mut File) -> Result<String> {
    use std::io::{Read, Seek};
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
