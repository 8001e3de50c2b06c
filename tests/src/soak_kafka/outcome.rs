//! What came of a run: everything has to arrive, once, and the oracle says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Flow;
use super::pipelines;
use super::stage::{Host, Stage};
use crate::agent::Agent;
use crate::kafka::client;
use crate::kafka::{Client, ConsumeOptions};
use crate::oracle::{self, Verdict};
use crate::output;
use crate::{limits, poll};

/// What the broker logs when it ends a transaction without telling some of its partitions, for want of a leader at
/// that moment (KAFKA-20734). The producer's next transaction there then decides over the records of both.
const SKIPPED_MARKERS: &str = "these partitions are likely deleted already and hence can be skipped";

impl Stage<'_> {
    /// Everything has to arrive, and a SIGTERM to end the agents well.
    pub(super) fn drain(&mut self, written: &[u64]) -> Result<()> {
        self.deliver_and_stop(written)?;
        // What a sink took back, because its group changed just when it was asked to stop, is for its next start.
        if self.soak.flow == Flow::Channel && self.count()? < self.soak.plugin.kept(written) {
            self.note("lines were taken back at the end: once more");
            self.start_agents()?;
            self.deliver_and_stop(written)?;
        }
        // What came behind the last look is one too many.
        self.count().map(drop)
    }

    fn deliver_and_stop(&mut self, written: &[u64]) -> Result<()> {
        if let Err(error) = self.wait_delivered(written) {
            eprintln!("{error:#}\njudged as it is");
        }
        self.hosts.iter_mut().filter(|host| host.agent.is_some()).try_for_each(Host::stop)
    }

    fn wait_delivered(&mut self, written: &[u64]) -> Result<()> {
        let expected = self.soak.plugin.kept(written);
        let (mut most, mut progress) = (0, Instant::now());
        let waited = poll::until("all events at their destination", Duration::from_secs(3_600), || {
            self.expect_agents()?;
            let count = self.count()?;
            if count > most {
                (most, progress) = (count, Instant::now());
            }
            if progress.elapsed() > limits::KAFKA_NO_PROGRESS {
                bail!("no progress at {count} of {expected} lines");
            }
            if count < expected {
                thread::sleep(limits::KAFKA_LOOK);
            }
            Ok(count >= expected)
        });
        waited.with_context(|| {
            let tails = self.hosts.iter().filter_map(|host| host.agent.as_ref().map(Agent::log_tail));
            tails.collect::<Vec<_>>().join("\n")
        })
    }

    /// Events at their destination now.
    pub(super) fn count(&mut self) -> Result<u64> {
        let output = self.hosts.last().context("no scene")?.scene.output.clone();
        match self.soak.flow {
            Flow::KafkaToFile | Flow::Channel => self.counter.count(&output),
            Flow::FileToKafka | Flow::SourceBacked | Flow::Bare => {
                client::collect(&self.oracle(), &pipelines::topics(self.soak), &output)
            }
        }
    }

    pub(super) fn judge(&self, written: &[u64]) -> Result<Verdict> {
        oracle::judge(&output::sequences(self.output()?)?, written, |seq| self.soak.plugin.keeps(seq))
    }

    /// The files beside Kafka, if there are some. They have what Kafka has.
    pub(super) fn judge_beside(&self, written: &[u64]) -> Result<Option<Verdict>> {
        if self.soak.flow != Flow::SourceBacked {
            return Ok(None);
        }
        let dir = format!("{}{}", self.output()?.display(), pipelines::BESIDE);
        let sequences = output::sequences(Path::new(&dir))?;
        oracle::judge(&sequences, written, |seq| self.soak.plugin.keeps(seq)).map(Some)
    }

    /// Where the destination is, or what came out of it.
    pub(super) fn output(&self) -> Result<&Path> {
        Ok(&self.hosts.last().context("no scene")?.scene.output)
    }

    /// Records that were written and do not count.
    pub(super) fn undone(&self) -> Result<u64> {
        if self.soak.flow == Flow::Channel {
            return Ok(0);
        }
        let scratch = tempfile::NamedTempFile::new()?;
        let mut undone = 0;
        for topic in pipelines::topics(self.soak) {
            let mut options = ConsumeOptions::new(&self.oracle(), &topic);
            let committed = client::values_to_file(&options, scratch.path())?;
            options.is_uncommitted = true;
            undone += client::values_to_file(&options, scratch.path())?.saturating_sub(committed);
        }
        Ok(undone)
    }

    /// How often the broker broke its own promise.
    pub(super) fn skipped_markers(&self) -> Result<u64> {
        let log = fs::read_to_string(self.broker.dir().join("broker.log"))?;
        Ok(log.matches(SKIPPED_MARKERS).count() as u64)
    }

    pub(super) fn oracle(&self) -> Client {
        self.broker.client().within(limits::KAFKA_NO_PROGRESS)
    }
}

/// Keys of a topic that are in more than one partition: `TOPIC/pN/KEY.log`.
///
/// # Errors
/// If the directory cannot be read.
pub fn spread_keys(dir: &Path) -> Result<u64> {
    let mut partitions: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for path in output::files(dir)? {
        let relative = path.strip_prefix(dir)?.display().to_string();
        let mut parts = relative.split('/');
        if let (Some(topic), Some(partition), Some(key)) = (parts.next(), parts.next(), parts.next())
            && key != "none.log"
        {
            partitions.entry((topic.to_owned(), key.to_owned())).or_default().insert(partition.to_owned());
        }
    }
    Ok(partitions.values().filter(|found| found.len() > 1).count() as u64)
}
