//! Channel failover: while Kafka cannot be reached, events go to a file channel of the same name on this machine.
//!
//! [`Health`] asks for the brokers' metadata at an interval; after so many failures in a row it says *down*, after so many
//! good answers *up*. The committer then goes
//! - to the file: the positions of the sources as they are now go into the file journal with the first events, so that
//!   from here on they are whole there; the group whose transaction is in doubt goes there too, with its number;
//! - back: the file's events are moved to Kafka in order, each step one transaction with the events and a mark of where
//!   the file was read to (a hop); the last one carries the positions of the sources. Then the file is closed, and only
//!   then Kafka takes the next commit.
//!
//! So after a crash: is the file not open, Kafka's positions count; is it open, the file's count, and Kafka's mark tells
//! what was moved. Sinks read Kafka alone; their acknowledgements wait until it is back.
//!
//! What plugins write meanwhile is in the file with their events, and goes to Kafka before the positions of the sources: as
//! long as the file is open, it is laid over what Kafka has. Kafka alone has all of it, so after a start with the file
//! open the plugins wait for Kafka, and with them the events.
//!
//! In the file journal: [`STATE`] (u64 number of this failover; absent: not open), [`DOUBT`] (u64 number of the group in
//! doubt, then per channel u64 cursor behind its events), [`POSITION`] and a position's key; state of [`PLUGIN`] and a
//! plugin's name, each key with a value as in Kafka, or an empty one if it was removed. In Kafka: [`CURSOR`] and a
//! channel's name.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flumen_journal::{
    Ack, ChannelId, ChannelSpec, Commit, CommitError, Journal, Reader, ReaderId, StateOp, StateWrites, Ticket,
};
use flumen_pipeline::plan::FailoverPlan;
use flumen_pipeline::source::Wake;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::limbo;
use super::options::JournalOptions;
use super::queue::Positions;
use super::registers::{read_state_value, state_value};
use super::topics::POSITIONS;
use crate::admin::questioner;
use crate::context::Context;
use crate::limits;

const STATE: &[u8] = b"failover/state";
const DOUBT: &[u8] = b"failover/doubt";
const POSITION: &[u8] = b"failover/p/";
const PLUGIN: &str = "failover/";
/// The position in Kafka that says how far a channel's file was moved.
pub(super) const CURSOR: &[u8] = b"failover/cursor/";
/// Positions that go with the events: those of sources. A sink's belong to what it read of Kafka.
pub(super) const SOURCES: &[u8] = b"source/";
/// The reader of the file's channels.
pub(super) const READER: &str = "return";

/// The file's channel for a Kafka channel.
pub(super) fn channel_spec(name: &str, plan: &FailoverPlan) -> ChannelSpec {
    let FailoverPlan { capacity_events, capacity_bytes, .. } = *plan;
    ChannelSpec { name: name.into(), readers: vec![READER.into()], capacity_events, capacity_bytes }
}

/// Whether the brokers answer.
pub(super) struct Health {
    plan: FailoverPlan,
    options: Arc<JournalOptions>,
    is_down: AtomicBool,
    wake: Wake,
}

impl Health {
    pub fn new(plan: FailoverPlan, options: Arc<JournalOptions>, wake: Wake) -> Arc<Health> {
        Arc::new(Health { plan, options, is_down: AtomicBool::new(false), wake })
    }

    pub fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Acquire)
    }

    /// Asks until the journal closes.
    pub fn run(&self) {
        let mut client = None;
        let (mut failed, mut good) = (0, 0);
        while !self.wake.wait(self.plan.check_interval) {
            if client.is_none() {
                client = self.client();
            }
            if client.as_ref().is_some_and(|client| self.answers(client)) {
                (failed, good) = (0, good + 1);
            } else {
                (failed, good) = (failed + 1, 0);
            }
            let is_down = self.is_down();
            if !is_down && failed >= self.plan.fail_after {
                self.is_down.store(true, Ordering::Release);
            } else if is_down && good >= self.plan.return_after {
                self.is_down.store(false, Ordering::Release);
            }
        }
    }

    fn client(&self) -> Option<BaseConsumer<Context>> {
        let config = self.options.settings.config(&format!("{}/health", self.options.id()));
        let who = format!("journal {}", self.options.pipeline);
        questioner(&who, &self.options.settings, &config).ok()
    }

    fn answers(&self, client: &BaseConsumer<Context>) -> bool {
        let limit = self.plan.check_interval.clamp(Duration::from_secs(1), limits::REQUEST);
        let metadata = client.fetch_metadata(Some(POSITIONS), limit);
        // Serves the client's own events.
        drop(client.poll(Duration::ZERO));
        metadata.is_ok_and(|metadata| !metadata.brokers().is_empty())
    }
}

/// One channel's file.
struct FileChannel {
    channel: ChannelId,
    reader: ReaderId,
    name: String,
    open: Option<Box<dyn Reader>>,
}

/// What was read of a file, to be moved.
pub(super) struct Moved {
    /// Index of the channel.
    pub channel: usize,
    pub batch: flumen_event::Batch,
    /// Behind it, as a mark.
    pub mark: Vec<u8>,
    cursor: u64,
}

/// The file side.
pub(super) struct Failover {
    pub health: Arc<Health>,
    journal: Arc<dyn Journal>,
    quarantine: ChannelId,
    channels: Vec<FileChannel>,
    /// Source positions that Kafka has: what the last step has to remove if it is gone.
    pub kafka_keys: Vec<Vec<u8>>,
    /// Marks that Kafka has.
    pub marks: Positions,
}

impl Failover {
    pub fn new(
        health: Arc<Health>,
        journal: Arc<dyn Journal>,
        quarantine: ChannelId,
        options: &JournalOptions,
    ) -> Option<Failover> {
        let file = |name: &String| {
            let channel = journal.channel(name)?;
            let reader = journal.reader_id(channel, READER)?;
            Some(FileChannel { channel, reader, name: name.clone(), open: None })
        };
        let channels = options.channels.iter().map(|channel| file(&channel.name)).collect::<Option<_>>()?;
        let (kafka_keys, marks) = Default::default();
        Some(Failover { health, journal, quarantine, channels, kafka_keys, marks })
    }

    /// The source positions of the file, if it is open. Takes a new number: what is put from now on is of this life.
    pub fn reopen(&self) -> Result<Option<Positions>, CommitError> {
        let Some(number) = self.number() else { return Ok(None) };
        self.settle(Commit { positions: vec![state(number + 1)], ..Commit::default() })?;
        let all = self.journal.positions(POSITION).into_iter();
        let own = all.filter_map(|(key, value)| Some((key.strip_prefix(POSITION)?.to_vec(), value)));
        Ok(Some(own.collect()))
    }

    fn number(&self) -> Option<u64> {
        let state = self.journal.position(STATE)?;
        state.as_slice().try_into().ok().map(u64::from_le_bytes)
    }

    /// Opens the file with the sources' positions, and with the group in doubt if there is one.
    pub fn open(
        &self,
        positions: Positions,
        doubt: Option<u64>,
        group: Vec<Commit>,
    ) -> Result<(), CommitError> {
        // What the group in doubt quarantines is here now, whether it counts or not.
        let settled = (limbo::KEY.to_vec(), Vec::new());
        let state = state(self.number().unwrap_or(0) + 1);
        // What the last failover left if it ended in a crash.
        self.clear_state()?;
        let mut commit = Commit { positions: vec![state, settled], ..Commit::default() };
        commit.positions.extend(positions.into_iter().map(|(key, value)| (local_key(&key), value)));
        for mut next in group {
            self.localise(&mut next);
            commit.positions.extend(next.positions);
            commit.puts.extend(next.puts);
            commit.state.extend(next.state);
        }
        if let Some(number) = doubt {
            let mut record = number.to_le_bytes().to_vec();
            for file in &self.channels {
                let head = self.head(file.channel);
                let puts = commit.puts.iter().filter(|put| put.channels.contains(&file.channel));
                let rows: u64 = puts.map(|put| put.batch.rows() as u64).sum();
                record.extend((head + rows).to_le_bytes());
            }
            commit.positions.push((DOUBT.to_vec(), record));
        }
        self.settle(commit)
    }

    /// Puts commits into the file. The tickets wait for its sync.
    pub fn put(
        &self,
        mut commit: Commit,
        deadline: std::time::Instant,
    ) -> Result<Box<dyn Ticket>, CommitError> {
        self.localise(&mut commit);
        self.journal.commit(commit, Some(deadline))
    }

    /// Channels and keys of the file journal for those of the Kafka journal.
    fn localise(&self, commit: &mut Commit) {
        for put in &mut commit.puts {
            for channel in &mut put.channels {
                *channel = match self.channels.get(usize::from(channel.0)) {
                    Some(file) => file.channel,
                    None => self.quarantine,
                };
            }
        }
        commit.positions.iter_mut().for_each(|(key, _)| *key = local_key(key));
        commit.state = commit.state.iter().map(local_state).collect();
    }

    /// The next part of what plugins wrote while the file was open, the newest write of each key; `None`: that was all.
    pub fn state_part(&self, place: &mut StatePlace) -> Option<StateWrites> {
        let store = self.journal.state()?;
        loop {
            let plugins = place.plugins.get_or_insert_with(|| {
                let names = store.sizes().into_iter().map(|size| size.plugin);
                names.filter(|name| name.starts_with(PLUGIN)).collect()
            });
            let local = plugins.last()?.clone();
            let mut part = StateWrites::new(local.strip_prefix(PLUGIN)?.into());
            let after = place.after.take();
            store.scan(&local, b"", after.as_deref(), 0, &mut |key, value| {
                let (value, expiry) = read_state_value(value).map_or((None, None), |(v, e)| (Some(v), e));
                part.push(StateOp { key, value, expiry });
                place.after = Some(key.to_vec());
                part.bytes() < limits::GROUP_BYTES
            });
            if !part.is_empty() {
                return Some(part);
            }
            plugins.pop();
        }
    }

    fn clear_state(&self) -> Result<(), CommitError> {
        let mut place = StatePlace::default();
        while let Some(part) = self.state_part(&mut place) {
            let mut removals = StateWrites::new(local_plugin(part.plugin()));
            for op in part.iter() {
                removals.push(StateOp { key: op.key, value: None, expiry: None });
            }
            self.settle(Commit { state: vec![removals], ..Commit::default() })?;
        }
        Ok(())
    }

    fn head(&self, channel: ChannelId) -> u64 {
        self.journal.status().channels.get(usize::from(channel.0)).map_or(0, |status| status.head)
    }

    fn settle(&self, commit: Commit) -> Result<(), CommitError> {
        let ticket = self.journal.commit(commit, None)?;
        ticket.wait(None).unwrap_or(Err(CommitError::Closing)).map(|_| ())
    }

    /// Kafka answers: the files are read from where Kafka has them. `number` is the last group that counts there.
    /// True: there was a group in doubt, and it counts.
    pub fn begin_return(&mut self, number: u64) -> Result<bool, CommitError> {
        let doubt = self.journal.position(DOUBT).and_then(|record| decode_doubt(&record));
        let counts = doubt.as_ref().is_some_and(|(of, _)| *of <= number);
        let mut acks = Vec::new();
        for (index, file) in self.channels.iter_mut().enumerate() {
            let mut reader = self.journal.open_reader(file.channel, file.reader);
            let mark = self.marks.get(&cursor_key(&file.name));
            let moved = mark.and_then(|mark| reader.resolve(mark)).unwrap_or(0);
            let behind = doubt.as_ref().filter(|_| counts).and_then(|(_, ends)| ends.get(index));
            let begin = reader.acknowledged().max(moved).max(behind.copied().unwrap_or(0));
            if let Err(error) = reader.seek(begin) {
                return Err(CommitError::Failed(error.to_string().into()));
            }
            acks.push(Ack { channel: file.channel, reader: file.reader, cursor: begin });
            file.open = Some(reader);
        }
        let positions = vec![(DOUBT.to_vec(), Vec::new())];
        self.settle(Commit { acks, positions, ..Commit::default() })?;
        Ok(counts)
    }

    /// Kafka is gone again.
    pub fn break_return(&mut self) {
        self.channels.iter_mut().for_each(|file| file.open = None);
    }

    /// The next events of the files, up to a bound; none: everything was moved.
    pub fn read(&mut self) -> Result<Vec<Moved>, String> {
        let (mut moved, mut bytes) = (Vec::new(), 0);
        for (channel, file) in self.channels.iter_mut().enumerate() {
            let Some(reader) = &mut file.open else { continue };
            while bytes < limits::GROUP_BYTES {
                match reader.next(Duration::ZERO).map_err(|error| error.to_string())? {
                    None => break,
                    Some(delivery) => {
                        bytes += delivery.batch.bytes();
                        let (mark, cursor) = (reader.mark(delivery.next), delivery.next);
                        moved.push(Moved { channel, batch: delivery.batch, mark, cursor });
                    }
                }
            }
        }
        Ok(moved)
    }

    /// The key of a channel's mark in Kafka.
    pub fn mark_key(&self, channel: usize) -> Vec<u8> {
        self.channels.get(channel).map(|file| cursor_key(&file.name)).unwrap_or_default()
    }

    /// These events are in Kafka.
    pub fn moved(&self, moved: &[Moved]) -> Result<(), CommitError> {
        let ack = |one: &Moved| {
            let file = self.channels.get(one.channel)?;
            Some(Ack { channel: file.channel, reader: file.reader, cursor: one.cursor })
        };
        let acks = moved.iter().filter_map(ack).collect();
        self.settle(Commit { acks, ..Commit::default() })
    }

    /// Everything is in Kafka, state and positions too.
    pub fn close(&mut self) -> Result<(), CommitError> {
        self.break_return();
        let mut positions = vec![(STATE.to_vec(), Vec::new())];
        positions.extend(self.journal.positions(POSITION).into_iter().map(|(key, _)| (key, Vec::new())));
        self.settle(Commit { positions, ..Commit::default() })?;
        self.clear_state()
    }
}

/// Where [`Failover::state_part`] is.
#[derive(Default)]
pub(super) struct StatePlace {
    plugins: Option<Vec<String>>,
    after: Option<Vec<u8>>,
}

fn local_plugin(plugin: &str) -> Arc<str> {
    format!("{PLUGIN}{plugin}").into()
}

/// Removals and expiries are values in the file: Kafka has to hear of both.
fn local_state(writes: &StateWrites) -> StateWrites {
    let mut local = StateWrites::new(local_plugin(writes.plugin()));
    for op in writes.iter() {
        let value = op.value.map(|value| state_value(value, op.expiry)).unwrap_or_default();
        local.push(StateOp { key: op.key, value: Some(&value), expiry: None });
    }
    local
}

fn state(number: u64) -> (Vec<u8>, Vec<u8>) {
    (STATE.to_vec(), number.to_le_bytes().to_vec())
}

fn local_key(key: &[u8]) -> Vec<u8> {
    [POSITION, key].concat()
}

fn cursor_key(channel: &str) -> Vec<u8> {
    [CURSOR, channel.as_bytes()].concat()
}

fn decode_doubt(record: &[u8]) -> Option<(u64, Vec<u64>)> {
    let (number, mut rest) = record.split_first_chunk::<8>()?;
    let mut ends = Vec::new();
    while let Some((end, after)) = rest.split_first_chunk::<8>() {
        ends.push(u64::from_le_bytes(*end));
        rest = after;
    }
    rest.is_empty().then(|| (u64::from_le_bytes(*number), ends))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_journal::{FileConfig, FileJournal, OsClock, OsDisk};
    use flumen_pipeline::quarantine;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn failover(dir: &std::path::Path) -> Failover {
        let config = FileConfig { dir: dir.join("j"), reserve_bytes: 0, ..FileConfig::default() };
        let specs = vec![quarantine::channel_spec()];
        let journal = FileJournal::open(config, specs, Arc::new(OsDisk), Arc::new(OsClock)).unwrap();
        let quarantine = journal.channel(quarantine::CHANNEL).unwrap();
        let plain = BTreeMap::from([(
            "brokers".to_owned(),
            flumen_pipeline::Value::TextList(vec!["127.0.0.1:1".to_owned()]),
        )]);
        let plain = flumen_pipeline::Options(plain);
        let options = JournalOptions::new("a", "p", &[("main", &plain, vec![])]).unwrap();
        let options = JournalOptions { channels: Vec::new(), ..options };
        let plan = FailoverPlan {
            check_interval: Duration::from_secs(1),
            fail_after: 1,
            return_after: 1,
            capacity_events: 1,
            capacity_bytes: 1,
        };
        let health = Health::new(plan, Arc::new(options.clone()), Wake::default());
        Failover::new(health, journal, quarantine, &options).unwrap()
    }

    fn writes(plugin: &str, ops: &[(&str, Option<&str>, Option<i64>)]) -> StateWrites {
        let mut writes = StateWrites::new(plugin.into());
        for (key, value, expiry) in ops {
            let (key, value) = (key.as_bytes(), value.map(str::as_bytes));
            writes.push(StateOp { key, value, expiry: *expiry });
        }
        writes
    }

    fn all(failover: &Failover) -> Vec<StateWrites> {
        let mut place = StatePlace::default();
        std::iter::from_fn(|| failover.state_part(&mut place)).collect()
    }

    /// The newest write of each key, removals and expiries too, in the next life as well; nothing of it is left when the file is
    /// closed, or when a crash left it and the file is opened again.
    #[test]
    fn what_plugins_write_meanwhile_is_kept_until_the_file_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let away = failover(dir.path());
        let commit = |state| Commit { state, ..Commit::default() };
        let doubt = commit(vec![writes("a", &[("k1", Some("old"), None), ("k2", Some("v"), Some(5))])]);
        away.open(Positions::new(), Some(7), vec![doubt]).unwrap();
        let next = commit(vec![
            writes("a", &[("k1", Some("new"), None), ("k3", None, None)]),
            writes("b", &[("", None, None)]),
        ]);
        let soon = std::time::Instant::now() + Duration::from_secs(10);
        away.put(next, soon).unwrap().wait(None).unwrap().unwrap();
        let expected = [
            writes("b", &[("", None, None)]),
            writes("a", &[("k1", Some("new"), None), ("k2", Some("v"), Some(5)), ("k3", None, None)]),
        ];
        assert_eq!(all(&away), expected);
        away.journal.close().unwrap();
        let mut away = failover(dir.path());
        assert!(away.reopen().unwrap().is_some());
        assert_eq!(all(&away), expected);
        away.close().unwrap();
        assert_eq!(all(&away), []);
        // A crash between the end of a failover and its last step.
        away.settle(commit(vec![local_state(&writes("a", &[("k", Some("stale"), None)]))])).unwrap();
        away.open(Positions::new(), None, vec![commit(vec![writes("a", &[("k4", Some("v"), None)])])])
            .unwrap();
        assert_eq!(all(&away), [writes("a", &[("k4", Some("v"), None)])]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Some((_, ends)) = decode_doubt(&bytes) {
                prop_assert_eq!(bytes.len(), 8 + 8 * ends.len());
            }
        }
    }
}
