//! Processes that end with this one, however it ends.
//!
//! The kernel kills them (`PR_SET_PDEATHSIG`, set by `setpriv`, since nothing unsafe may run here
//! between fork and exec). It does so when the *thread* that started them ends, and a test's thread
//! ends long before the process: a thread that never ends starts them all.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use anyhow::{Context, Result};

struct Job {
    command: Command,
    answer: Sender<io::Result<Child>>,
}

/// A command that the kernel kills when this process is gone. Ctrl-C in a terminal does not reach it.
#[must_use]
pub fn bound(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]).process_group(0);
    command
}

/// Starts a command made by [`bound`].
///
/// # Errors
/// If it cannot be started.
pub fn spawn(command: Command) -> Result<Child> {
    static KEEPER: OnceLock<Sender<Job>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        thread::spawn(move || {
            for mut job in jobs {
                let started = job.command.spawn();
                // Who asked has gone: then nobody wants the child either.
                if let Err(unsent) = job.answer.send(started)
                    && let Ok(mut child) = unsent.0
                {
                    drop(child.kill());
                    drop(child.wait());
                }
            }
        });
        sender
    });
    let line = format!("{command:?}");
    let (answer, started) = channel();
    keeper.send(Job { command, answer }).ok().context("the thread that starts processes is gone")?;
    let child = started.recv().context("the thread that starts processes is gone")?;
    child.with_context(|| format!("cannot start {line}"))
}

/// Removes a directory as soon as this process is gone, for what lives in a static and is never dropped.
///
/// A shell waits for the end of a pipe that only this process holds.
///
/// # Errors
/// If the shell cannot be started.
pub fn remove_after_exit(dir: &Path) -> Result<()> {
    let mut shell = Command::new("sh");
    // Twice: what was killed a moment ago may still write.
    shell.args(["-c", "read line; rm -rf -- \"$1\"; sleep 1; rm -rf -- \"$1\"", "sh"]).arg(dir);
    shell.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = shell.spawn().context("cannot start sh")?;
    // Its end of the pipe has to stay open until the process ends.
    std::mem::forget(child);
    Ok(())
}
