//! One running `flumen run`: start, signals, end, and what the kernel knows about it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{limits, poll};

/// What the agent says on standard error when sources and sinks run.
const READY_WORD: &str = " ready ";

/// A running agent. Dropped while it runs, it is killed.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: PathBuf,
    /// Where this process's part of the log begins; the log is appended to over restarts.
    log_start: u64,
    started: Instant,
}

impl Agent {
    /// Starts a command; its standard error is appended to `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(mut command: Command, log: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(log)?;
        let log_start = file.metadata()?.len();
        let out = OpenOptions::new().create(true).append(true).open(log.with_extension("out"))?;
        command.stdin(Stdio::null()).stdout(out).stderr(file);
        let started = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { child, log: log.to_owned(), log_start, started })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// When it was started.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// What this process has logged so far.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn log(&self) -> Result<String> {
        let mut file = File::open(&self.log)?;
        file.seek(SeekFrom::Start(self.log_start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The end of the log, for errors.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = self.log().unwrap_or_default();
        let keep = usize::try_from(limits::LOG_TAIL_BYTES).unwrap_or(usize::MAX);
        let skip = text.len().saturating_sub(keep);
        let tail: String =
            text.char_indices().filter(|(at, _)| *at >= skip).map(|(_, letter)| letter).collect();
        format!("--- end of the agent's log ({}):\n{tail}", self.log.display())
    }

    /// Waits for the ready line.
    ///
    /// # Errors
    /// If it does not come in time or the agent ends before: with the end of its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.wait_log(READY_WORD, limits::READY)
    }

    /// Waits for the ready line, or until it ends.
    ///
    /// # Errors
    /// If neither comes in time: with the end of its log.
    pub fn wait_ready_or_end(&mut self) -> Result<()> {
        let waited = poll::until("the agent to be ready or to end", limits::READY, || {
            Ok(self.child.try_wait()?.is_some() || self.log()?.contains(READY_WORD))
        });
        waited.with_context(|| self.log_tail())
    }

    /// Waits until the log has a text.
    ///
    /// # Errors
    /// If it does not come in time or the agent ends before: with the end of its log.
    pub fn wait_log(&mut self, text: &str, limit: Duration) -> Result<()> {
        let waited = poll::until(&format!("`{text}` in the agent's log"), limit, || {
            let found = self.log()?.contains(text);
            if !found {
                self.expect_running()?;
            }
            Ok(found)
        });
        waited.with_context(|| self.log_tail())
    }

    /// Fails if the agent ended by itself.
    ///
    /// # Errors
    /// With the exit status and the end of the log.
    pub fn expect_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the agent ended by itself ({status})\n{}", self.log_tail()),
        }
    }

    /// SIGKILL, unless it has ended by itself: how it ended, and what it logged.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn end(mut self) -> Result<(ExitStatus, String)> {
        // Of one that has ended and was not waited for, the kernel takes the signal and does nothing.
        self.child.kill()?;
        Ok((self.child.wait()?, self.log()?))
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// If it ended by itself before.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        let status = self.child.wait()?;
        if status.signal() != Some(Signal::KILL.as_raw()) {
            bail!("the agent ended by itself ({status}) before the kill\n{}", self.log_tail());
        }
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?).context("no process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// SIGSTOP, and waits until all of it stands still. A thread within a call of the kernel does so behind its end, and until then its
    /// sync is under way.
    ///
    /// # Errors
    /// If it is gone, or does not stand still in time.
    pub fn stand_still(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        poll::until("the agent to stand still", limits::CONDITION, || self.is_stopped())
    }

    /// Whether it was stopped by a signal and all of its threads stand still.
    ///
    /// # Errors
    /// If it is gone.
    pub fn is_stopped(&self) -> Result<bool> {
        for thread in fs::read_dir(format!("/proc/{}/task", self.id()))? {
            // One that ends meanwhile is not there the next time.
            let Ok(stat) = fs::read_to_string(thread?.path().join("stat")) else { return Ok(false) };
            // The name in parentheses may hold spaces; the state comes behind it.
            if !stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T')) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If it does not within `limit` (it is killed then).
    pub fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let ended = poll::until_some("the end of the agent", limit, || Ok(self.child.try_wait()?));
        ended.with_context(|| self.log_tail())
    }

    /// SIGTERM; expects that it drains and ends with 0.
    ///
    /// # Errors
    /// If it ends otherwise, or not in time.
    pub fn stop(mut self) -> Result<()> {
        self.expect_running()?;
        self.signal(Signal::TERM)?;
        let status = self.wait_exit(limits::STOP)?;
        if !status.success() {
            bail!("the agent did not end well after SIGTERM: {status}\n{}", self.log_tail());
        }
        Ok(())
    }

    /// Processor time used so far, in nanoseconds (the kernel counts it in steps of 10 ms).
    ///
    /// # Errors
    /// If it is gone.
    pub fn cpu_ns(&self) -> Result<u64> {
        cpu_ns(self.id())
    }

    /// Largest and present resident memory, in bytes.
    ///
    /// # Errors
    /// If it is gone.
    pub fn memory(&self) -> Result<Memory> {
        memory(self.id())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // An agent that is gone already cannot be killed, which is as good.
        if matches!(self.child.try_wait(), Ok(None)) && self.child.kill().is_ok() {
            drop(self.child.wait());
        }
    }
}

/// Resident memory of a process, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// The most it ever had.
    pub peak: u64,
    /// What it has.
    pub now: u64,
    /// What it has of its own (without pages of files).
    pub anonymous: u64,
}

/// Processor time (user and system) of a running process, in nanoseconds.
///
/// # Errors
/// If it is gone.
pub fn cpu_ns(id: u32) -> Result<u64> {
    /// Clock ticks of /proc on every Linux that there is (`getconf CLK_TCK`).
    const TICK_NS: u64 = 10_000_000;
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name in parentheses may hold spaces; utime and stime are the 12th and 13th field after it.
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat has no name")?;
    let ticks = |at: usize| -> Result<u64> {
        Ok(fields.split_whitespace().nth(at).context("/proc/PID/stat is short")?.parse()?)
    };
    Ok((ticks(11)? + ticks(12)?) * TICK_NS)
}

/// Resident memory of a running process.
///
/// # Errors
/// If it is gone.
pub fn memory(id: u32) -> Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let bytes = |name: &str| -> Result<u64> {
        let line =
            status.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name}"))?;
        let kib: u64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
        Ok(kib * 1024)
    };
    Ok(Memory { peak: bytes("VmHWM:")?, now: bytes("VmRSS:")?, anonymous: bytes("RssAnon:")? })
}
