//! What every measurement with Kafka stands on: one broker, topics, and settings that all producers share.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use flumen_tests::kafka::{Broker, BrokerOptions, Client};
use tempfile::TempDir;

use super::super::input;

/// Partitions of every topic that is measured.
pub const PARTITIONS: u32 = 4;

/// How long a batch waits for more, for every producer of the same library as Flumen's, and as Flumen has it: batches
/// are full all the time, and a shorter wait only makes librdkafka's thread ask without a pause.
pub const LINGER_MS: u32 = 1_000;

/// The same for Java's producers, which wait on a flush.
pub const JAVA_LINGER_MS: u32 = 5;

/// Bytes of a batch, for every producer: librdkafka's default.
pub const BATCH_BYTES: u32 = 1_000_000;

/// One call of the oracle. Reading everything back at the end is the long one.
const ORACLE_LIMIT: Duration = Duration::from_secs(300);

/// What the broker of a person would have and the one of tests has not, because tests run many.
const PROPERTIES: [(&str, &str); 2] = [("num.network.threads", "3"), ("num.io.threads", "8")];

/// A broker with a place to work.
pub struct Ground {
    broker: Broker,
    dir: TempDir,
}

impl Ground {
    /// Starts a broker below the benchmarks' directory.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("kafka-").tempdir_in(input::dir()?)?;
        let options = BrokerOptions {
            heap_mib: 1_024,
            // With the compiler that a broker has in production; those of tests leave it out to start fast.
            jvm: Vec::new(),
            dir: Some(dir.path().join("broker")),
            properties: PROPERTIES.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            ..BrokerOptions::default()
        };
        Ok(Self { broker: Broker::start(&options)?, dir })
    }

    /// Where processes put what they need.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `host:port`.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        self.broker.bootstrap()
    }

    /// The oracle.
    #[must_use]
    pub fn client(&self) -> Client {
        self.broker.client().within(ORACLE_LIMIT)
    }

    /// An empty topic.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn topic(&self, name: &str, configs: &[(&str, &str)]) -> Result<()> {
        self.client().create_topic(name, PARTITIONS, configs)
    }

    /// Runs `work` with an empty topic, and deletes it: the broker's disk is freed at once.
    ///
    /// # Errors
    /// The work's, or the broker's.
    pub fn with_topic<T>(&self, name: &str, work: impl FnOnce(&str) -> Result<T>) -> Result<T> {
        self.topic(name, &[])?;
        let outcome = work(name).with_context(|| format!("at topic {name}"));
        self.client().delete_topic(name)?;
        outcome
    }

    /// Offsets behind the last records, summed: transactions' own marks count too.
    ///
    /// # Errors
    /// If there is no such topic.
    pub fn end(&self, topic: &str) -> Result<u64> {
        let ends = self.client().offsets(topic)?;
        Ok(ends.iter().map(|partition| partition.end.max(0) as u64).sum())
    }

    /// An empty directory that is there as long as its handle.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn scratch(&self, prefix: &str) -> Result<TempDir> {
        Ok(tempfile::Builder::new().prefix(prefix).tempdir_in(self.dir())?)
    }

    /// A path for a file that is written once.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// The broker's processor time so far, in nanoseconds.
    ///
    /// # Errors
    /// If it does not run.
    pub fn cpu_ns(&self) -> Result<u64> {
        flumen_tests::agent::cpu_ns(self.broker.id().context("the broker does not run")?)
    }
}

/// Removes a file that may not be there.
///
/// # Errors
/// If it is there and stays.
pub fn remove(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    Ok(())
}
