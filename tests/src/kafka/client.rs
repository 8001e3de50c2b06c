//! The oracle: what a client of other make sees in the broker, and what it puts there.
//!
//! Each call is one run of `tests/kafka/client.py` (confluent-kafka), some 0.2 s. Errors have Kafka's
//! name of the error in their text, such as `_AUTHENTICATION`.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::install;
use super::record::{Message, Record};
use crate::{limits, locate, poll, scene};

/// What a broker answers that has just come back, or has just made a topic: it tells who leads a partition a moment before the partition
/// takes questions, and is a coordinator a moment before it has read what it coordinates.
const EARLY: [&str; 8] = [
    "NOT_LEADER_FOR_PARTITION",
    "LEADER_NOT_AVAILABLE",
    "UNKNOWN_LEADER_EPOCH",
    "OFFSET_NOT_AVAILABLE",
    "PREFERRED_LEADER_NOT_AVAILABLE",
    "COORDINATOR_LOAD_IN_PROGRESS",
    "COORDINATOR_NOT_AVAILABLE",
    "NOT_COORDINATOR",
];

thread_local! {
    /// The last look of this thread.
    static LOOKED: RefCell<Option<Look>> = const { RefCell::new(None) };
}

/// See [`Client::look`].
struct Look {
    at: String,
    ended: Instant,
    took: Duration,
}

/// Whom to ask, and with which settings.
#[derive(Debug, Clone)]
pub struct Client {
    bootstrap: String,
    settings: Vec<(String, String)>,
    timeout: Duration,
}

/// What to read.
#[derive(Debug, Clone)]
pub struct ConsumeOptions {
    /// Who reads.
    pub client: Client,
    /// From where; all partitions, from the beginning.
    pub topic: String,
    /// Also what is not committed, or was aborted.
    pub is_uncommitted: bool,
    /// `None`: to the end of every partition. `Some`: until there are so many, or [`Client::within`] is
    /// over (what came until then is the answer).
    pub count: Option<u64>,
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxnEnd {
    /// Its records count.
    Commit,
    /// Its records are there and do not count.
    Abort,
    /// The producer dies and leaves it open.
    Open,
}

/// Where a partition begins and ends; without open transactions' records unless asked otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct PartitionOffsets {
    /// Its number.
    pub partition: i32,
    /// The first offset that is there.
    pub begin: i64,
    /// The offset behind the last record.
    pub end: i64,
}

/// Who leads a partition, and who has all of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PartitionLeader {
    /// Its number.
    pub partition: i32,
    /// The node; -1: nobody.
    pub leader: i32,
    /// The nodes that are in sync.
    pub in_sync: Vec<i32>,
}

/// What a group has committed for a partition.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct GroupOffset {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The next offset to read.
    pub offset: i64,
    /// What the group wrote beside it.
    pub metadata: Option<String>,
}

/// A group as its coordinator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Group {
    /// `STABLE`, `EMPTY`, `DEAD`, …
    pub state: String,
    /// Who is in it.
    pub members: Vec<Member>,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Member {
    /// The coordinator's name for it.
    pub id: String,
    /// The name it gave itself.
    pub client_id: String,
    /// `group.instance.id`, for a static member.
    pub instance: Option<String>,
    /// What it reads: topic and partition.
    pub partitions: Vec<(String, i32)>,
}

impl ConsumeOptions {
    /// All that is committed in a topic.
    #[must_use]
    pub fn new(client: &Client, topic: &str) -> Self {
        Self { client: client.clone(), topic: topic.to_owned(), is_uncommitted: false, count: None }
    }
}

impl Client {
    /// A client of a bootstrap address.
    #[must_use]
    pub fn new(bootstrap: &str) -> Self {
        Self { bootstrap: bootstrap.to_owned(), settings: Vec::new(), timeout: limits::KAFKA_CALL }
    }

    /// With more settings of librdkafka; the last of a name counts.
    #[must_use]
    pub fn with(mut self, settings: impl IntoIterator<Item = (String, String)>) -> Self {
        self.settings.extend(settings);
        self
    }

    /// With another time limit for each call.
    #[must_use]
    pub fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Makes a topic and waits until its partitions have leaders.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn create_topic(&self, topic: &str, partitions: u32, configs: &[(&str, &str)]) -> Result<()> {
        let partitions = partitions.to_string();
        let configs = joined(configs);
        let mut words = vec!["create-topic", topic, "--partitions", &partitions];
        words.extend(configs.iter().flat_map(|config| ["--config", config]));
        self.call(&words).map(drop)
    }

    /// Makes a topic whose partitions lie on these nodes, the preferred leader first.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn place_topic(&self, topic: &str, replicas: &[&[u16]], configs: &[(&str, &str)]) -> Result<()> {
        let nodes = |nodes: &&[u16]| nodes.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        let replicas = replicas.iter().map(nodes).collect::<Vec<_>>().join(":");
        let configs = joined(configs);
        let mut words = vec!["create-topic", topic, "--replicas", &replicas];
        words.extend(configs.iter().flat_map(|config| ["--config", config]));
        self.call(&words).map(drop)
    }

    /// Who leads each partition of a topic.
    ///
    /// # Errors
    /// If there is no such topic.
    pub fn leaders(&self, topic: &str) -> Result<Vec<PartitionLeader>> {
        Ok(serde_json::from_str(&self.ask(&["leaders", topic])?)?)
    }

    /// Waits until all replicas of a topic are in sync, and lets the preferred ones lead.
    ///
    /// # Errors
    /// If that does not come in time.
    pub fn elect_leaders(&self, topic: &str) -> Result<()> {
        self.ask(&["elect-leaders", topic]).map(drop)
    }

    /// Deletes a topic and waits until it is gone.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn delete_topic(&self, topic: &str) -> Result<()> {
        self.call(&["delete-topic", topic]).map(drop)
    }

    /// Gives a topic more partitions, `total` of them, and waits for their leaders.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn add_partitions(&self, topic: &str, total: u32) -> Result<()> {
        self.call(&["add-partitions", topic, &total.to_string()]).map(drop)
    }

    /// Sets configs of a topic.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn alter_config(&self, topic: &str, configs: &[(&str, &str)]) -> Result<()> {
        let configs = joined(configs);
        let mut words = vec!["alter-config", topic];
        words.extend(configs.iter().map(String::as_str));
        self.call(&words).map(drop)
    }

    /// Adds a rule of the authorizer: `allow` or `deny`, a user, an operation (`write`), a kind
    /// (`topic`, `group`, `transactional_id`) and a name.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn acl(&self, rule: [&str; 5]) -> Result<()> {
        let mut words = vec!["acl"];
        words.extend(rule);
        self.call(&words).map(drop)
    }

    /// Deletes the records of a partition before an offset.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn delete_records(&self, topic: &str, partition: i32, before: i64) -> Result<()> {
        self.call(&["delete-records", topic, &partition.to_string(), &before.to_string()]).map(drop)
    }

    /// Writes records.
    ///
    /// # Errors
    /// If one is not taken.
    pub fn produce(&self, topic: &str, messages: &[Message]) -> Result<()> {
        let file = spool(messages)?;
        self.call(&["produce", topic, &path(file.path())]).map(drop)
    }

    /// Writes each line of a file as a value; `None`: to any partition.
    ///
    /// # Errors
    /// If one is not taken.
    pub fn produce_lines(&self, topic: &str, lines: &Path, partition: Option<i32>) -> Result<()> {
        let lines = path(lines);
        let partition = partition.map(|number| number.to_string());
        let mut words = vec!["produce", topic, &lines, "--lines"];
        words.extend(partition.iter().flat_map(|number| ["--partition", number]));
        self.call(&words).map(drop)
    }

    /// Writes records in one transaction.
    ///
    /// # Errors
    /// If one is not taken, or the transaction fails.
    pub fn produce_txn(&self, topic: &str, id: &str, messages: &[Message], end: TxnEnd) -> Result<()> {
        let file = spool(messages)?;
        let end = match end {
            TxnEnd::Commit => "commit",
            TxnEnd::Abort => "abort",
            TxnEnd::Open => "open",
        };
        let input = path(file.path());
        self.call(&["produce-txn", topic, &input, "--transactional-id", id, "--end", end]).map(drop)
    }

    /// Begin and end of every partition, as `read_committed` sees them.
    ///
    /// # Errors
    /// If there is no such topic.
    pub fn offsets(&self, topic: &str) -> Result<Vec<PartitionOffsets>> {
        Ok(serde_json::from_str(&self.ask(&["offsets", topic])?)?)
    }

    /// Waits until no transaction is open in a topic: a coordinator answers before it writes an end into the partitions. One that its
    /// producer left open lasts for a minute, unless it says otherwise, and until the broker next looks.
    ///
    /// # Errors
    /// If there is no such topic, or one stays open.
    pub fn wait_ended(&self, topic: &str) -> Result<()> {
        let all = self.clone().with([("isolation.level".to_owned(), "read_uncommitted".to_owned())]);
        let has_ended = || Ok(self.offsets(topic)? == all.offsets(topic)?);
        poll::until(&format!("the end of all transactions in {topic}"), limits::CONDITION * 2, has_ended)
    }

    /// What a group has committed; empty for a group that is not known.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn group_offsets(&self, group: &str) -> Result<Vec<GroupOffset>> {
        Ok(serde_json::from_str(&self.ask(&["group-offsets", group])?)?)
    }

    /// Puts the offsets that an empty group has into a transaction, and dies with it open; how many. The broker ends it
    /// after `timeout`, when it next looks (every ten seconds).
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn hold_offsets(&self, group: &str, id: &str, timeout: Duration) -> Result<u64> {
        let timeout_ms = timeout.as_millis().to_string();
        let words = ["hold-offsets", group, "--transactional-id", id, "--txn-timeout-ms", &timeout_ms];
        Ok(self.call(&words)?.trim().parse()?)
    }

    /// Who is in a group.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn members(&self, group: &str) -> Result<Group> {
        Ok(serde_json::from_str(&self.ask(&["members", group])?)?)
    }

    /// Asks until the broker answers as one that knows what it leads.
    fn ask(&self, words: &[&str]) -> Result<String> {
        poll::until_some("a broker that knows what it leads", self.timeout, || match self.look(words) {
            Err(error) if is_early(&error.to_string()) => {
                eprintln!("asked again after: {error:#}");
                Ok(None)
            }
            answer => answer.map(Some),
        })
    }

    /// As [`Client::call`], for what is looked at again and again: each look is a process, and as long as one took, the next one leaves the
    /// machine to what is waited for.
    fn look(&self, words: &[&str]) -> Result<String> {
        let at = format!("{} {:?} {:?}", self.bootstrap, self.settings, words.get(..2));
        let last = LOOKED.take().filter(|look| look.at == at);
        thread::sleep(last.map_or(Duration::ZERO, |look| look.took.saturating_sub(look.ended.elapsed())));
        let begun = Instant::now();
        let answer = self.call(words);
        LOOKED.set(Some(Look { at, ended: Instant::now(), took: begun.elapsed().min(limits::KAFKA_LOOK) }));
        answer
    }

    /// Runs one command of `client.py`; its standard output.
    fn call(&self, words: &[&str]) -> Result<String> {
        let mut python = Command::new("python3");
        python.env("PYTHONPATH", &install::ensure()?.python);
        python.arg(locate::repository()?.join("tests/kafka/client.py"));
        python.args(["--bootstrap", &self.bootstrap, "--timeout", &self.timeout.as_secs_f64().to_string()]);
        for (name, value) in &self.settings {
            python.args(["--property", &format!("{name}={value}")]);
        }
        python.args(words);
        let answer = scene::run(python, self.timeout + limits::COMMAND)?;
        if !answer.status.success() {
            let name = words.first().copied().unwrap_or_default();
            bail!("{name} at {}: {}", self.bootstrap, answer.stderr.trim());
        }
        Ok(answer.stdout)
    }
}

/// Reads records, in order of partition and offset.
///
/// # Errors
/// If there is no such topic, the broker refuses, or the end does not come in time.
pub fn consume(options: &ConsumeOptions) -> Result<Vec<Record>> {
    let file = tempfile::NamedTempFile::new()?;
    read_into(options, file.path(), false)?;
    let parse = |line: &str| serde_json::from_str(line).with_context(|| format!("no record: {line}"));
    BufReader::new(File::open(file.path())?).lines().map(|line| parse(&line?)).collect()
}

/// Writes the values of all records into a file, each ended by a newline, in order of partition and
/// offset; a tombstone is an empty line. Gives their number. For millions of records.
///
/// # Errors
/// As [`consume`].
pub fn values_to_file(options: &ConsumeOptions, output: &Path) -> Result<u64> {
    read_into(options, output, true)
}

/// Writes all records into a file, a line of JSON each, and gives their number.
///
/// # Errors
/// As [`consume`].
pub fn records_to_file(options: &ConsumeOptions, output: &Path) -> Result<u64> {
    read_into(options, output, false)
}

/// Appends the committed values that are new since the last call to a file per topic, partition and key:
/// `DIR/TOPIC/pN/none.log` without a key, else `DIR/TOPIC/pN/KEY.log`, all but letters and digits as `_`. Gives how many there are now.
///
/// # Errors
/// If there is no such topic, or the end does not come in time; nothing is doubled by a call that failed.
pub fn collect(client: &Client, topics: &[String], dir: &Path) -> Result<u64> {
    let dir = path(dir);
    let mut words = vec!["collect", &dir];
    words.extend(topics.iter().map(String::as_str));
    let read: Read = serde_json::from_str(&client.look(&words)?)?;
    Ok(read.records)
}

/// What `client.py` says after reading.
#[derive(Deserialize)]
struct Read {
    records: u64,
}

fn read_into(options: &ConsumeOptions, output: &Path, is_values: bool) -> Result<u64> {
    let output = path(output);
    let isolation = if options.is_uncommitted { "read_uncommitted" } else { "read_committed" };
    let mut words = vec!["consume", &options.topic, "--output", &output, "--isolation", isolation];
    if is_values {
        words.push("--values");
    }
    let count = options.count.map(|count| count.to_string());
    words.extend(count.iter().flat_map(|count| ["--count", count]));
    let read: Read = serde_json::from_str(&options.client.look(&words)?)?;
    Ok(read.records)
}

/// Whether an error of `client.py` is one of [`EARLY`].
fn is_early(error: &str) -> bool {
    EARLY.iter().any(|code| error.contains(&format!("error: {code}:")))
}

fn spool(messages: &[Message]) -> Result<tempfile::NamedTempFile> {
    let file = tempfile::NamedTempFile::new()?;
    let mut writer = BufWriter::new(file.reopen()?);
    for message in messages {
        serde_json::to_writer(&mut writer, message)?;
        writer.write_all(b"\n")?;
    }
    writer.flush()?;
    Ok(file)
}

fn joined(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn path(path: &Path) -> String {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_does_not_know_yet_what_it_leads_is_asked_again() {
        let said = |code: &str| format!("offsets at 127.0.0.1:9092: error: {code}: Broker: …");
        assert!(EARLY.iter().all(|code| is_early(&said(code))));
        for lasting in ["UNKNOWN_TOPIC_OR_PART", "TOPIC_AUTHORIZATION_FAILED", "TIMEOUT"] {
            assert!(!is_early(&said(lasting)), "{lasting}");
        }
    }
}
