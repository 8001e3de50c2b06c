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

/// Waits until there are so many, however long that takes, as long as there come more.
///
/// # Errors
/// If none came for `patience` (how many there are is in the message), or they cannot be counted.
pub fn until_counted(
    what: &str,
    patience: Duration,
    expected: u64,
    mut count: impl FnMut() -> Result<u64>,
) -> Result<()> {
    let (mut most, mut since) = (0, Instant::now());
    loop {
        let now = count()?;
        if now >= expected {
            return Ok(());
        }
        if now > most {
            (most, since) = (now, Instant::now());
        } else if since.elapsed() > patience {
            bail!("no more for {} s at {now} of {expected}: {what}", patience.as_secs());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_waited_for_as_long_as_it_grows() {
        // Each look is a while after the one before.
        let mut grows = 0;
        let patience = limits::POLL * 3;
        until_counted("more", patience, 20, || {
            grows += 1;
            Ok(grows)
        })
        .unwrap();
        let error = until_counted("more", patience, 9, || Ok(7)).unwrap_err().to_string();
        assert!(error.contains("at 7 of 9: more"), "{error}");
    }
}
