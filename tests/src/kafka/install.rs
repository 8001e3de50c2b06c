//! What a broker and its oracle need on disk: jars, the Python client, certificates, a formatted data
//! directory.
//!
//! Everything lies below `<target>/peers`, in one directory per part. A part is filled in a directory
//! beside its place and renamed into it, under a lock that all processes of this target directory
//! share; `.complete` in it says of what it was made, so a changed version replaces it. Maven and pip
//! are used with their ordinary configuration.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{FlockOperation, flock};

use super::maven::{self, Artifact};
use super::tls::{self, TlsFiles};
use super::{packages, properties};
use crate::{limits, locate, scene};

/// The newest listed release of Kafka does not resolve; this one does.
const JARS: [Artifact; 3] = [
    ("org.apache.kafka", "kafka_2.13", "4.3.1"),
    ("org.apache.kafka", "kafka-tools", "4.3.1"),
    ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.25.1"),
];
const PYTHON_CLIENT: &str = "confluent-kafka==2.16.1";
/// Any id: `StorageTool random-uuid` made this one.
const CLUSTER_ID: &str = "4L6g3nShT-eMCtK--X86sw";
const COMPLETE: &str = ".complete";

/// Where everything lies.
#[derive(Debug, Clone)]
pub struct Installed {
    /// The broker's jars.
    pub lib: PathBuf,
    /// `PYTHONPATH` of the oracle.
    pub python: PathBuf,
    /// A data directory as `StorageTool format` leaves it, SCRAM users included. Copied for each broker:
    /// that takes no time, the tool takes seconds.
    pub formatted: PathBuf,
    /// Classes of a broker as the virtual machine has them in memory: with it a start takes 1.9 s of CPU instead of 3. Not there before
    /// [`ensure_archive`].
    pub archive: PathBuf,
    /// Keys and certificates.
    pub tls: TlsFiles,
}

/// Installs what is missing; after the first time in this process it only answers.
///
/// # Errors
/// If a program is missing (names its Debian package) or a download fails.
pub fn ensure() -> Result<&'static Installed> {
    static INSTALLED: OnceLock<Result<Installed, String>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        let ensured = locate::target_dir().and_then(|target| ensure_in(&target.join("peers")));
        ensured.map_err(|error| format!("{error:#}"))
    });
    installed.as_ref().map_err(|error| anyhow!("Kafka cannot be set up: {error}"))
}

fn ensure_in(peers: &Path) -> Result<Installed> {
    let kafka = peers.join("kafka");
    fs::create_dir_all(&kafka).with_context(|| format!("cannot make {}", kafka.display()))?;
    packages::need("setpriv", "util-linux")?;
    packages::need("java", "default-jre-headless")?;
    packages::need("python3", "python3")?;
    let _lock = lock(peers)?;
    let lib = kafka.join("lib");
    maven::ensure(&lib, "kafka", &JARS, "Kafka's jars with mvn (54 MB)")?;
    let python = peers.join("python");
    part(&python, &format!("{PYTHON_CLIENT}, {}", python_version()?), fill_python)?;
    let certificates = kafka.join("tls");
    part(&certificates, tls::RECIPE, tls::fill)?;
    let formatted = kafka.join("formatted");
    let recipe = format!("{CLUSTER_ID} {:?} {:?}", JARS, properties::USER);
    part(&formatted, &recipe, |dir| fill_formatted(dir, &lib))?;
    let archive = kafka.join("archive").join("broker.jsa");
    Ok(Installed { lib, python, formatted, archive, tls: TlsFiles::in_dir(&certificates) })
}

/// Makes the archive of classes unless it is there. `run`: starts a broker with such an option of java, and stops it.
///
/// # Errors
/// If that broker does not start or end.
pub(super) fn ensure_archive(installed: &Installed, run: impl FnOnce(String) -> Result<()>) -> Result<()> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if *done {
        return Ok(());
    }
    let _lock = lock(&locate::target_dir()?.join("peers"))?;
    let archive = &installed.archive;
    let dir = archive.parent().context("the archive has no directory")?;
    let recipe = format!("{} {:?} {}", java_version()?, JARS, installed.lib.display());
    part(dir, &recipe, |work| {
        step("an archive of a broker's classes");
        let name = archive.file_name().context("the archive has no name")?;
        run(format!("-XX:ArchiveClassesAtExit={}", work.join(name).display()))
    })?;
    *done = true;
    Ok(())
}

/// The archive fits one virtual machine.
fn java_version() -> Result<String> {
    let mut java = Command::new("java");
    java.arg("--version");
    Ok(scene::run(java, limits::COMMAND)?.stdout)
}

/// Held until the file is closed. Other processes wait here while one installs.
pub(crate) fn lock(peers: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(peers.join(".lock"))?;
    flock(&file, FlockOperation::LockExclusive).context("cannot lock the directory of peers")?;
    Ok(file)
}

/// Fills a directory unless it is there and was made of the same `recipe`.
pub(super) fn part(dest: &Path, recipe: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if fs::read_to_string(dest.join(COMPLETE)).is_ok_and(|found| found == recipe) {
        return Ok(());
    }
    let parent = dest.parent().context("a part has no parent directory")?;
    let work = tempfile::Builder::new().prefix(".filling-").tempdir_in(parent)?;
    fill(work.path())?;
    fs::write(work.path().join(COMPLETE), recipe)?;
    if dest.exists() {
        fs::remove_dir_all(dest)?;
    }
    fs::rename(work.keep(), dest).with_context(|| format!("cannot put {} in place", dest.display()))
}

fn fill_python(dir: &Path) -> Result<()> {
    step(&format!("pip install {PYTHON_CLIENT}"));
    let mut has_pip = Command::new("python3");
    has_pip.args(["-m", "pip", "--version"]);
    if !scene::run(has_pip, limits::COMMAND)?.status.success() {
        bail!("python3 has no pip; on Debian, as root: apt-get install -y python3-pip");
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]);
    pip.args(["--only-binary=:all:", "--target"]).arg(dir).arg(PYTHON_CLIENT);
    succeed(pip, limits::FETCH)
}

/// The client has a part in machine code that fits one version of Python.
fn python_version() -> Result<String> {
    let mut python = Command::new("python3");
    python.arg("--version");
    Ok(scene::run(python, limits::COMMAND)?.stdout.trim().to_owned())
}

fn fill_formatted(dir: &Path, lib: &Path) -> Result<()> {
    step("formatting a data directory");
    let scratch = tempfile::tempdir()?;
    let config = scratch.path().join("server.properties");
    fs::write(&config, properties::for_format(dir))?;
    let mut java = Command::new("java");
    java.args(["-cp", &format!("{}/*", lib.display()), "kafka.tools.StorageTool", "format"]);
    java.args(["-t", CLUSTER_ID, "-c"]).arg(&config);
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let (name, password) = properties::USER;
        java.args(["--add-scram", &format!("{mechanism}=[name={name},password={password}]")]);
    }
    succeed(java, limits::COMMAND)
}

/// Runs a command to its end; its words are in the error.
pub(super) fn succeed(command: Command, limit: std::time::Duration) -> Result<()> {
    let line = format!("{command:?}");
    let answer = scene::run(command, limit)?;
    if !answer.status.success() {
        let said = format!("{}\n{}", answer.stdout.trim(), answer.stderr.trim());
        bail!("`{line}` fails ({}): {}", answer.status, said.trim());
    }
    Ok(())
}

/// Says what is being done, for those who wait.
pub(super) fn step(text: &str) {
    eprintln!("peers: {text}");
}
