//! rsyslog beside it: imfile to omfile, with its queue in memory and with a synced disk queue.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flumen_tests::agent;
use flumen_tests::output;
use flumen_tests::poll;
use flumen_tests::scene;

use super::input::Input;

/// A measured peer.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Input bytes per second, in MB.
    pub mb_s: f64,
    /// Events per second.
    pub events_s: f64,
    /// Processor time per event.
    pub cpu_ns_per_event: f64,
    /// Resident memory.
    pub peak_rss_mb: f64,
    /// Measured over a part of the input only.
    pub is_extrapolated: bool,
}

/// Whether the queue survives a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// In memory.
    Memory,
    /// On disk, synced.
    SyncedDisk,
}

const DAEMON: &str = "/usr/sbin/rsyslogd";
const INSTALL_LIMIT: Duration = Duration::from_secs(180);
/// Its synced queue takes some 200 events a second: it is measured over this time, not over the input.
const SYNCED_TIME: Duration = Duration::from_secs(10);

/// Makes sure that it is installed.
///
/// # Errors
/// If it is not and cannot be: what to type.
pub fn ensure() -> Result<()> {
    if Path::new(DAEMON).is_file() {
        return Ok(());
    }
    flumen_tests::disk::require_root("installing rsyslog (apt-get install rsyslog)")?;
    let mut apt = Command::new("apt-get");
    apt.args(["install", "-y", "--no-install-recommends", "rsyslog"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    let answer = scene::run(apt, INSTALL_LIMIT)?;
    if !Path::new(DAEMON).is_file() {
        bail!("rsyslog cannot be installed ({}): {}", answer.status, answer.stderr.trim());
    }
    Ok(())
}

/// Runs it once.
///
/// # Errors
/// If it does not deliver everything in time.
pub fn run(input: &Input, queue: Queue, dir: &Path, limit: Duration) -> Result<Peer> {
    let home = tempfile::Builder::new().prefix("rsyslog-").tempdir_in(dir)?;
    for name in ["state", "out"] {
        fs::create_dir(home.path().join(name))?;
    }
    let config = home.path().join("rsyslog.conf");
    fs::write(&config, configuration(&input.path, home.path(), queue))?;
    let log = OpenOptions::new().create(true).append(true).open(home.path().join("log"))?;
    let mut command = Command::new(DAEMON);
    command.args(["-n", "-i"]).arg(home.path().join("pid")).arg("-f").arg(&config);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let start = Instant::now();
    let mut daemon = Daemon(command.spawn().context("cannot start rsyslogd")?);
    let out: PathBuf = home.path().join("out");
    let limit = if queue == Queue::SyncedDisk { SYNCED_TIME } else { limit };
    let waited = poll::until("all bytes in rsyslog's output", limit, || {
        if let Some(status) = daemon.0.try_wait()? {
            let log = fs::read_to_string(home.path().join("log")).unwrap_or_default();
            bail!("rsyslogd ended by itself ({status}): {log}");
        }
        Ok(output::bytes(&out)? >= input.bytes)
    });
    let seconds = start.elapsed().as_secs_f64();
    let bytes = output::bytes(&out)?;
    if queue == Queue::Memory || bytes == 0 {
        waited?;
    }
    let (cpu_ns, memory) = (agent::cpu_ns(daemon.0.id())?, agent::memory(daemon.0.id())?);
    daemon.0.kill()?;
    daemon.0.wait()?;
    let events = input.lines as f64 * (bytes as f64 / input.bytes as f64);
    Ok(Peer {
        mb_s: bytes as f64 / 1e6 / seconds,
        events_s: events / seconds,
        cpu_ns_per_event: cpu_ns as f64 / events,
        peak_rss_mb: memory.peak as f64 / 1e6,
        is_extrapolated: bytes < input.bytes,
    })
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) && self.0.kill().is_ok() {
            drop(self.0.wait());
        }
    }
}

fn configuration(input: &Path, home: &Path, queue: Queue) -> String {
    let home = home.display();
    let (queue, sync) = match queue {
        Queue::Memory => {
            ("queue.type=\"LinkedList\" queue.size=\"200000\" queue.dequeueBatchSize=\"4096\"", "off")
        }
        Queue::SyncedDisk => (
            "queue.type=\"Disk\" queue.filename=\"q\" queue.syncqueuefiles=\"on\" queue.checkpointInterval=\"1\"",
            "on",
        ),
    };
    format!(
        r#"global(workDirectory="{home}/state" maxMessageSize="64k")
module(load="imfile" mode="inotify")
template(name="raw" type="string" string="%msg%\n")
ruleset(name="copy" {queue}) {{
  action(type="omfile" file="{home}/out/all.log" template="raw" sync="{sync}")
}}
input(type="imfile" File="{}" Tag="a" ruleset="copy")
"#,
        input.display()
    )
}
