//! Waiting for a condition with a deadline: the only way in which tests wait.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::limits;

/// Waits until `condition` gives a value.
///
/// # Errors
/// If `limit` passes first (`what` is in the message), or the condition fails.
pub fn until_some<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("waited {} s in vain for: {what}", limit.as_secs());
        }
        thread::sleep(limits::POLL);
    }
}

/// Waits until `condition` is true.
///
/// # Errors
/// As [`until_some`].
pub fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    until_some(what, limit, || Ok(condition()?.then_some(())))
}
