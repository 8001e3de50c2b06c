//! Apache Flume 1.11 beside Flumen: its jars, and an agent that lives no longer than the test.
//!
//! Flume's Kafka parts bring the Kafka client 2.7.2, so its jars lie apart from the broker's. An agent is configured as
//! its users do it, in properties for the name [`AGENT_NAME`]; its log holds warnings and worse.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::maven::{self, Artifact};
use super::{install, packages, process};
use crate::{limits, locate, poll};

/// The name that begins every line of a configuration.
pub const AGENT_NAME: &str = "a1";

/// Flume brings no logger; log4j 2.18 is the one it was built with.
const JARS: [Artifact; 9] = [
    ("org.apache.flume", "flume-ng-node", "1.11.0"),
    ("org.apache.flume", "flume-ng-core", "1.11.0"),
    ("org.apache.flume.flume-ng-channels", "flume-file-channel", "1.11.0"),
    ("org.apache.flume.flume-ng-channels", "flume-kafka-channel", "1.11.0"),
    ("org.apache.flume.flume-ng-sources", "flume-taildir-source", "1.11.0"),
    ("org.apache.flume.flume-ng-sources", "flume-kafka-source", "1.11.0"),
    ("org.apache.flume.flume-ng-sinks", "flume-ng-kafka-sink", "1.11.0"),
    ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.18.0"),
    ("org.apache.logging.log4j", "log4j-core", "2.18.0"),
];

/// Warnings only: the Kafka clients say each of their settings at INFO.
const LOG4J: &str = "appender.c.type=Console\nappender.c.name=c\nappender.c.layout.type=PatternLayout\n\
                     appender.c.layout.pattern=%d %p %c{1} %m%n\nrootLogger.level=warn\nrootLogger.appenderRef.c.ref=c\n";

/// The directory of its jars; fetched the first time.
///
/// # Errors
/// If a program is missing (names its Debian package) or the fetch fails.
pub fn ensure() -> Result<&'static Path> {
    static INSTALLED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| install_jars().map_err(|error| format!("{error:#}")));
    installed.as_deref().map_err(|error| anyhow!("Flume cannot be set up: {error}"))
}

fn install_jars() -> Result<PathBuf> {
    let peers = locate::target_dir()?.join("peers");
    let home = peers.join("flume");
    fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    packages::need("setpriv", "util-linux")?;
    packages::need("java", "default-jre-headless")?;
    let _lock = install::lock(&peers)?;
    let lib = home.join("lib");
    maven::ensure(&lib, "flume", &JARS, "Flume's jars with mvn (62 MB)")?;
    Ok(lib)
}

/// A running agent. Dropped, it is killed and its directory removed, unless a test fails: then the path is said.
#[derive(Debug)]
pub struct Flume {
    child: Child,
    home: Option<TempDir>,
    log: PathBuf,
}

impl Flume {
    /// Installs what is missing and starts an agent. In the configuration `{home}` stands for a directory of its own.
    /// It takes seconds until its sources run: wait for what they do.
    ///
    /// # Errors
    /// If it cannot be installed or started.
    pub fn start(configuration: &str) -> Result<Self> {
        let lib = ensure()?;
        let home = tempfile::Builder::new().prefix("flumen-flume-").tempdir()?;
        let dir = home.path();
        let config = dir.join("flume.conf");
        fs::write(&config, configuration.replace("{home}", &dir.display().to_string()))?;
        fs::write(dir.join("log4j2.properties"), LOG4J)?;
        let log = dir.join("flume.log");
        let output = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut java = process::bound("java");
        // As for the broker: without C2 it is up sooner.
        java.args(["-Xmx512m", "-XX:TieredStopAtLevel=1", "-Dfile.encoding=UTF-8"]);
        java.arg("-Dlog4j2.configurationFile=log4j2.properties");
        java.args(["-cp", &format!("{}/*", lib.display()), "org.apache.flume.node.Application"]);
        java.args(["-n", AGENT_NAME, "--no-reload-conf", "-f"]).arg(&config).current_dir(dir);
        java.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        Ok(Self { child: process::spawn(java)?, home: Some(home), log })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails if it ended by itself.
    ///
    /// # Errors
    /// With its status and the end of its log.
    pub fn expect_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("Flume ended by itself ({status})\n{}", self.log_tail()),
        }
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// If it ended by itself before.
    pub fn kill(mut self) -> Result<()> {
        self.expect_running()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM: its sources, channels and sinks stop, and its consumers leave their groups.
    ///
    /// # Errors
    /// If it ended by itself before, or does not end in time.
    pub fn stop(mut self) -> Result<()> {
        self.expect_running()?;
        let pid = Pid::from_raw(i32::try_from(self.id())?).context("no process id")?;
        kill_process(pid, Signal::TERM)?;
        let ended = poll::until("Flume's end", limits::STOP, || Ok(self.child.try_wait()?.is_some()));
        ended.with_context(|| self.log_tail())
    }

    /// The end of its log, for errors.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let keep = usize::try_from(limits::LOG_TAIL_BYTES).unwrap_or(usize::MAX);
        let tail = text.get(text.len().saturating_sub(keep)..).unwrap_or_default();
        format!("--- end of Flume's log ({}):\n{}", self.log.display(), String::from_utf8_lossy(tail))
    }
}

impl Drop for Flume {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.child.kill().is_ok() {
            drop(self.child.wait());
        }
        if std::thread::panicking()
            && let Some(home) = self.home.take()
        {
            eprintln!("Flume's directory is kept for a look: {}", home.keep().display());
        }
    }
}
