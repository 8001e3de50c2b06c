//! The kill points that the binary tells (`docs/faults.md`), each in turn.

use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Result, bail};

use crate::{limits, locate, scene};

/// All kill points of the binary.
///
/// # Errors
/// If it does not tell them.
pub fn points() -> Result<Vec<String>> {
    let mut command = Command::new(locate::flumen()?);
    command.arg("run").env("FLUMEN_FAULTS", "list");
    let answer = scene::run(command, limits::COMMAND)?;
    let points: Vec<String> =
        answer.stdout.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    if !answer.status.success() || points.is_empty() {
        bail!("no kill points: {}", answer.stderr);
    }
    Ok(points)
}

/// Whether a point is one of a journal, of a failover or of the file sink: what a disk alone decides.
#[must_use]
pub fn is_of_disk(point: &str) -> bool {
    is_of_failover(point)
        || ["journal.", "quarantine.", "file-sink."].iter().any(|place| point.starts_with(place))
}

/// Whether only a pipeline passes a point whose channel has a failover.
#[must_use]
pub fn is_of_failover(point: &str) -> bool {
    ["failover.", "failover-record.", "journal.probe."].iter().any(|place| point.starts_with(place))
}

/// Does all walks, some at a time; those that panicked.
pub fn walk_each<T: Send + Sync>(walks: Vec<T>, at_once: usize, walk: impl Fn(&T) + Sync) -> Vec<T> {
    let (left, failed) = (Mutex::new(walks.into_iter()), Mutex::new(Vec::new()));
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(each) = next() {
                    let walked = std::panic::AssertUnwindSafe(|| walk(&each));
                    if std::panic::catch_unwind(walked).is_err() {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(each);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}
