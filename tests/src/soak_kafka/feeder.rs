//! A producer on another client, with transactions that are aborted now and then: `tests/kafka/feed.py`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::pipelines::PARTITIONS;
use crate::generator::LINE_BYTES;
use crate::kafka::{install, process};
use crate::{limits, locate, poll};

/// A running producer. Dropped, it is killed.
#[derive(Debug)]
pub struct Feeder {
    child: Child,
    dir: PathBuf,
}

/// What to feed.
#[derive(Debug, Clone)]
pub struct Feed<'a> {
    /// Where.
    pub bootstrap: String,
    /// The topic, of [`PARTITIONS`] partitions.
    pub topic: &'a str,
    /// Bytes per second, about.
    pub bytes_per_s: u64,
    /// Whether some lines are no access-log lines.
    pub has_malformed: bool,
    /// Of the random choices.
    pub seed: u64,
}

/// What it says at its end.
#[derive(Debug, Clone, Deserialize)]
pub struct Fed {
    /// Lines committed per partition.
    pub written: Vec<u64>,
    /// Transactions committed.
    pub transactions: u64,
    /// Transactions aborted.
    pub aborted: u64,
}

impl Feeder {
    /// Starts it; its files are in `dir`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(dir: &Path, feed: &Feed) -> Result<Self> {
        let mut python = process::bound("python3");
        python.env("PYTHONPATH", &install::ensure()?.python);
        python.arg(locate::repository()?.join("tests/kafka/feed.py"));
        python.args(["--bootstrap", &feed.bootstrap, "--topic", feed.topic, "--transactional-id", "feed"]);
        python.arg("--stop").arg(stop_file(dir));
        python.args(["--partitions", &PARTITIONS.to_string(), "--seed", &feed.seed.to_string()]);
        python.args(["--lines-per-s", &(feed.bytes_per_s / LINE_BYTES).to_string()]);
        if feed.has_malformed {
            python.arg("--malformed");
        }
        let (out, err) = (File::create(dir.join("feed.json"))?, File::create(dir.join("feed.log"))?);
        python.stdin(Stdio::null()).stdout(out).stderr(err);
        Ok(Self { child: process::spawn(python)?, dir: dir.to_owned() })
    }

    /// Stops it after the transaction that it is at.
    ///
    /// # Errors
    /// If it ended by itself, or does not end.
    pub fn stop(mut self) -> Result<Fed> {
        fs::write(stop_file(&self.dir), "")?;
        let ended =
            poll::until_some("the end of feed.py", limits::KAFKA_FEED_END, || Ok(self.child.try_wait()?));
        let said = || fs::read_to_string(self.dir.join("feed.log")).unwrap_or_default();
        if !ended.with_context(said)?.success() {
            bail!("feed.py failed: {}", said());
        }
        Ok(serde_json::from_str(&fs::read_to_string(self.dir.join("feed.json"))?)?)
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        // One that is gone already cannot be killed, which is as good.
        if matches!(self.child.try_wait(), Ok(None)) && self.child.kill().is_ok() {
            drop(self.child.wait());
        }
    }
}

fn stop_file(dir: &Path) -> PathBuf {
    dir.join("feed.stop")
}
