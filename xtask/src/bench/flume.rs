//! Flume 1.11 beside it ([`flumen_tests::kafka::flume`] installs it): TAILDIR source, file channel, file_roll sink.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flumen_tests::agent;
use flumen_tests::output;
use flumen_tests::poll;

use super::input::Input;
use super::rsyslog::Peer;

/// It needs minutes for the whole input: measured over this time.
const RUN_TIME: Duration = Duration::from_secs(45);

/// Runs it for a while.
///
/// # Errors
/// If it delivers nothing.
pub fn run(lib: &Path, input: &Input, dir: &Path) -> Result<Peer> {
    let home = tempfile::Builder::new().prefix("flume-").tempdir_in(dir)?;
    let out = home.path().join("out");
    fs::create_dir(&out)?;
    let start = Instant::now();
    let mut daemon = start_agent(lib, home.path(), &configuration(&input.path, home.path()))?;
    // Its start takes seconds: measured from the first byte out.
    let first = poll::until("Flume's first byte", RUN_TIME, || Ok(output::bytes(&out)? > 0));
    first.with_context(|| fs::read_to_string(home.path().join("log")).unwrap_or_default())?;
    let first = Instant::now();
    let waited =
        poll::until("all bytes in Flume's output", RUN_TIME, || Ok(output::bytes(&out)? >= input.bytes));
    let (seconds, bytes) = (first.elapsed().as_secs_f64(), output::bytes(&out)?);
    if waited.is_err() && bytes == 0 {
        bail!("Flume delivered nothing in {} s", start.elapsed().as_secs());
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

/// Starts an agent named `a1` with its log in `home/log`.
///
/// # Errors
/// If java does not run here.
pub fn start_agent(lib: &Path, home: &Path, configuration: &str) -> Result<Daemon> {
    let config = home.join("flume.conf");
    fs::write(&config, configuration)?;
    let log = OpenOptions::new().create(true).append(true).open(home.join("log"))?;
    let mut java = Command::new("java");
    java.args(["-Xmx2g", "-cp", &format!("{}/*", lib.display()), "org.apache.flume.node.Application"]);
    java.args(["-n", "a1", "--no-reload-conf", "-f"]).arg(&config).current_dir(home);
    java.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(Daemon(java.spawn().context("java does not run here")?))
}

/// A running agent; dropped, it is killed.
pub struct Daemon(pub Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) && self.0.kill().is_ok() {
            drop(self.0.wait());
        }
    }
}

fn configuration(input: &Path, home: &Path) -> String {
    let home = home.display();
    format!(
        "a1.sources=s\na1.sources.s.type=TAILDIR\na1.sources.s.filegroups=f\na1.sources.s.filegroups.f={}\n\
         a1.sources.s.positionFile={home}/state/pos.json\na1.sources.s.batchSize=5000\n\
         a1.sources.s.maxBatchCount=9223372036854775807\na1.sources.s.channels=c\na1.channels=c\n\
         a1.channels.c.type=file\na1.channels.c.checkpointDir={home}/state/cp\na1.channels.c.dataDirs={home}/state/data\n\
         a1.channels.c.capacity=1000000\na1.channels.c.transactionCapacity=10000\na1.sinks=k\n\
         a1.sinks.k.type=file_roll\na1.sinks.k.channel=c\na1.sinks.k.sink.directory={home}/out\n\
         a1.sinks.k.sink.rollInterval=0\na1.sinks.k.sink.batchSize=5000\na1.sinks.k.batchSize=5000\n",
        input.display()
    )
}
