//! The journal itself: the trait, on top of the committer's queue and the readers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use flumen_journal::failover::{self, Away, Health, SOURCES};
use flumen_journal::{
    ChannelId, ChannelSpec, ChannelStatus, Commit, CommitError, Journal, JournalStatus, Reader, ReaderId,
    StateOp, StateStore, StateWrites, Ticket,
};
use flumen_pipeline::quarantine;
use flumen_pipeline::source::Wake;
use parking_lot::Mutex;
use thiserror::Error;

use super::committer::{Committer, Figures};
use super::health;
use super::limbo::Limbo;
use super::monitor::{Ends, Monitor};
use super::options::JournalOptions;
use super::place::Place;
use super::queue::Queue;
use super::reader::KafkaReader;
use super::remembered::Store;
use super::share::ReaderShared;
use super::topics::STATE;
use crate::limits;

/// What a record of the topic of state has beside key and value, at most: three names, lengths, the head of its batch.
const STATE_OVERHEAD_BYTES: usize = 1_024;

/// Why a journal could not begin. An unreachable cluster is none: the journal waits for it.
#[derive(Debug, Error)]
pub enum KafkaOpenError {
    /// The file journal beside lacks the quarantine channel.
    #[error("the journal on this machine has no channel `quarantine`; this is a bug of Flumen: report it")]
    NoQuarantine,
    /// The file journal beside takes nothing.
    #[error("the journal on this machine: {0}")]
    Local(#[from] CommitError),
    /// The system's limit of threads.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// A journal whose channels are Kafka topics. The channel after those of the options is the quarantine's.
pub struct KafkaJournal {
    options: Arc<JournalOptions>,
    queue: Arc<Queue>,
    figures: Arc<Figures>,
    /// Readers of each channel.
    readers: Vec<Vec<Arc<ReaderShared>>>,
    /// On this machine: the quarantine.
    local: Arc<dyn Journal>,
    place: Place,
    local_quarantine: ChannelId,
    ends: Arc<Mutex<Vec<Ends>>>,
    wake: Wake,
    committer: Mutex<Option<JoinHandle<()>>>,
}

impl KafkaJournal {
    /// The channels that the journal beside must have for the failover, besides the quarantine's.
    pub fn local_channels(options: &JournalOptions) -> Vec<ChannelSpec> {
        let specs = options.failover.iter().flat_map(|plan| {
            options.channels.iter().map(|channel| failover::channel_spec(&channel.name, plan))
        });
        specs.collect()
    }

    /// Begins to open: the cluster is reached from a thread. `local` is a file journal with the quarantine's
    /// channel ([`quarantine::channel_spec`]); it is closed with this one.
    /// With a failover, it has the channels of [`KafkaJournal::local_channels`] too, in a file or in memory.
    pub fn open(
        options: JournalOptions,
        local: Arc<dyn Journal>,
    ) -> Result<Arc<KafkaJournal>, KafkaOpenError> {
        let local_quarantine = local.channel(quarantine::CHANNEL).ok_or(KafkaOpenError::NoQuarantine)?;
        let place = Place::of(local.as_ref())?;
        let options = Arc::new(options);
        let queue = Arc::new(Queue::default());
        let events = options.channels.iter().map(|_| AtomicU64::new(0)).collect();
        let figures = Arc::new(Figures { events, ..Figures::default() });
        let readers: Vec<Vec<_>> = options
            .channels
            .iter()
            .map(|channel| {
                let reader =
                    |(name, group): &(String, String)| ReaderShared::new(name, &channel.topic, group);
                channel.readers.iter().map(reader).collect()
            })
            .collect();
        let limbo = Limbo { journal: local.clone(), channel: local_quarantine };
        let (wake, ends) = (Wake::default(), Arc::new(Mutex::new(Vec::new())));
        let health = options.failover.as_ref().map(|plan| Arc::new(Health::new(plan)));
        let names: Vec<String> = options.channels.iter().map(|channel| channel.name.clone()).collect();
        let away = |health| Some((health, Away::new(local.clone(), &names, Some(local_quarantine))?));
        let failover = health.clone().map(|health| away(health).ok_or(KafkaOpenError::NoQuarantine));
        let failover = failover.transpose()?;
        let committer = Committer::new(options.clone(), queue.clone(), limbo, figures.clone(), failover);
        let monitor = Monitor {
            options: options.clone(),
            figures: figures.clone(),
            found: ends.clone(),
            wake: wake.clone(),
        };
        let thread = |name: String| std::thread::Builder::new().name(name);
        thread(format!("watch-{}", options.pipeline)).spawn(move || monitor.run())?;
        if let Some((health, plan)) = health.zip(options.failover.as_ref()) {
            let (options, wake, interval) = (options.clone(), wake.clone(), plan.check_interval);
            thread(format!("health-{}", options.pipeline))
                .spawn(move || health::run(&health, &options, interval, &wake))?;
        }
        let committer = thread(format!("kafka-{}", options.pipeline)).spawn(move || committer.run())?;
        let committer = Mutex::new(Some(committer));
        Ok(Arc::new(KafkaJournal {
            options,
            queue,
            figures,
            readers,
            local,
            place,
            local_quarantine,
            ends,
            wake,
            committer,
        }))
    }

    fn quarantine(&self) -> ChannelId {
        ChannelId(u16::try_from(self.options.channels.len()).unwrap_or(u16::MAX))
    }

    /// A value of a plugin that the topic of state does not take.
    fn check_state(&self, state: &[StateWrites]) -> Result<(), CommitError> {
        let limit = self.figures.state_record_bytes.load(Ordering::Relaxed);
        // Most commits have less in all.
        for writes in state.iter().filter(|writes| writes.bytes() + STATE_OVERHEAD_BYTES > limit && limit > 0)
        {
            let bytes_of = |op: StateOp<'_>| op.key.len() + op.value.map_or(0, <[u8]>::len);
            let largest = writes.iter().map(bytes_of).max().unwrap_or(0) + STATE_OVERHEAD_BYTES;
            if largest > limit {
                let (plugin, topic) = (writes.plugin(), STATE);
                tracing::error!(%plugin, topic, limit, "the topic does not take what the plugin remembers: raise its `max.message.bytes`");
                return Err(CommitError::TooLarge { bytes: largest as u64, limit: limit as u64 });
            }
        }
        Ok(())
    }

    fn channel_status(&self, index: usize) -> ChannelStatus {
        let ends = self.ends.lock().get(index).cloned().unwrap_or_default();
        let behind = |(partition, offset): (i32, i64)| {
            let end = usize::try_from(partition).ok().and_then(|partition| ends.get(partition));
            end.map_or(0, |end| u64::try_from(end - offset).unwrap_or(0))
        };
        let name = self.options.channels.get(index).map(|channel| channel.name.clone()).unwrap_or_default();
        let readers = self.readers.get(index).map(Vec::as_slice).unwrap_or_default();
        let cursors = readers.iter().map(|reader| (reader.name.clone(), reader.progress().0));
        let open = readers.iter().map(|reader| reader.progress().1).max().unwrap_or(0);
        let waiting = readers.iter().map(|reader| reader.unfinished().into_iter().map(behind).sum());
        ChannelStatus {
            name,
            head: ends.iter().map(|end| end.unsigned_abs()).sum(),
            // What is known at once, and what the last look found; the ends of transactions count as events.
            events: waiting.max().unwrap_or(0).max(open),
            bytes: 0,
            capacity_events: 0,
            capacity_bytes: 0,
            oldest_unacknowledged_s: None,
            readers: cursors.collect(),
        }
    }
}

impl Journal for KafkaJournal {
    fn channel(&self, name: &str) -> Option<ChannelId> {
        if name == quarantine::CHANNEL {
            return Some(self.quarantine());
        }
        let index = self.options.channels.iter().position(|channel| channel.name == name)?;
        u16::try_from(index).ok().map(ChannelId)
    }

    fn reader_id(&self, channel: ChannelId, reader: &str) -> Option<ReaderId> {
        if channel == self.quarantine() {
            return self.local.reader_id(self.local_quarantine, reader);
        }
        let readers = self.readers.get(usize::from(channel.0))?;
        let index = readers.iter().position(|known| known.name == reader)?;
        u16::try_from(index).ok().map(ReaderId)
    }

    fn commit(&self, mut commit: Commit, deadline: Option<Instant>) -> Result<Box<dyn Ticket>, CommitError> {
        let quarantine = self.quarantine();
        let is_local = !commit.acks.is_empty() && commit.acks.iter().all(|ack| ack.channel == quarantine);
        if is_local && commit.puts.is_empty() && commit.positions.is_empty() && commit.state.is_empty() {
            commit.acks.iter_mut().for_each(|ack| ack.channel = self.local_quarantine);
            return self.local.commit(commit, deadline);
        }
        commit.positions.iter_mut().for_each(|(key, _)| self.place.mark(key));
        let mut acks = Vec::new();
        for ack in std::mem::take(&mut commit.acks) {
            let readers = self.readers.get(usize::from(ack.channel.0));
            let reader = readers.and_then(|readers| readers.get(usize::from(ack.reader.0)));
            let unknown = || CommitError::Refused("there is no such reader".into());
            let offsets = reader.ok_or_else(unknown)?.acknowledge(ack.cursor);
            acks.push(offsets.map_err(|reason| CommitError::Refused(reason.into()))?);
        }
        let has_more = !commit.puts.is_empty() || !commit.positions.is_empty() || !commit.state.is_empty();
        if !has_more && !acks.is_empty() && acks.iter().all(|ack| ack.is_settled) {
            // A sink's own transaction has it all.
            return Ok(Box::new(self.queue.settled(&acks, self.figures.groups.load(Ordering::Relaxed))?));
        }
        self.check_state(&commit.state)?;
        Ok(Box::new(self.queue.push(commit, acks, deadline)?))
    }

    fn is_over(&self) -> bool {
        self.queue.is_closing()
    }

    fn failure(&self) -> Option<Arc<str>> {
        self.queue.failed()
    }

    fn takes_acknowledgements(&self) -> bool {
        let word = self.options.failover.as_ref().map(|plan| plan.kind.word());
        word.is_none() || self.figures.failover.lock().as_deref() != word
    }

    fn position(&self, key: &[u8]) -> Option<Vec<u8>> {
        let mut placed = key.to_vec();
        self.place.mark(&mut placed);
        let key = placed.as_slice();
        self.queue.with_positions(key.starts_with(SOURCES), |durable, newer| {
            let value = newer.get(key).map(|(_, value)| value).or_else(|| durable.get(key));
            value.filter(|value| !value.is_empty()).cloned()
        })
    }

    fn positions(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.queue.with_positions(prefix.starts_with(SOURCES), |durable, newer| {
            let mut all = std::collections::BTreeMap::new();
            let has_prefix = |key: &&Vec<u8>| key.starts_with(prefix);
            all.extend(durable.iter().filter(|(key, _)| has_prefix(key)));
            all.extend(newer.iter().filter(|(key, _)| has_prefix(key)).map(|(key, (_, value))| (key, value)));
            let kept = all.into_iter().filter(|(_, value)| !value.is_empty());
            kept.filter_map(|(key, value)| Some((self.place.unmark(key)?, value.clone()))).collect()
        })
    }

    fn state(&self) -> Option<Arc<dyn StateStore>> {
        Some(Arc::new(Store(self.queue.clone())))
    }

    fn open_reader(&self, channel: ChannelId, reader: ReaderId) -> Box<dyn Reader> {
        let readers = self.readers.get(usize::from(channel.0));
        let shared = readers.and_then(|readers| readers.get(usize::from(reader.0)));
        let Some(shared) = shared else { return self.local.open_reader(self.local_quarantine, reader) };
        let is_flume =
            self.options.channels.get(usize::from(channel.0)).is_some_and(|channel| channel.is_flume);
        Box::new(KafkaReader::new(shared.clone(), self.options.clone(), is_flume, self.queue.clone()))
    }

    fn status(&self) -> JournalStatus {
        let mut channels: Vec<ChannelStatus> =
            (0..self.options.channels.len()).map(|index| self.channel_status(index)).collect();
        let JournalStatus { channels: mut local, memory, damaged_commits, damaged_state_blocks, .. } =
            self.local.status();
        // What waits in the file is of the channel.
        let mut failover_events = 0;
        for channel in &mut channels {
            let Some(file) = local.iter().find(|file| file.name == channel.name) else { continue };
            channel.events += file.events;
            channel.bytes += file.bytes;
            failover_events += file.events;
        }
        local.retain(|file| file.name == quarantine::CHANNEL);
        channels.extend(local);
        let get = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let figures = &self.figures;
        let failed = self.queue.failed().map(|reason| reason.to_string());
        JournalStatus {
            last_commit: get(&figures.groups),
            commits: get(&figures.commits),
            syncs: get(&figures.groups),
            bytes_written: get(&figures.bytes),
            encode_ns: get(&figures.encode_ns),
            sync_ns: get(&figures.commit_ns),
            failover: figures.failover.lock().clone(),
            failovers: get(&figures.failovers),
            failover_events,
            // On this machine; what is damaged in Kafka its brokers say.
            damaged_commits,
            damaged_state_blocks,
            waiting_for: failed.or_else(|| figures.waiting_for.lock().clone()),
            channels,
            state: self.queue.remembered.sizes(),
            memory,
            ..JournalStatus::default()
        }
    }

    fn close(&self) -> Result<(), CommitError> {
        self.queue.close();
        self.wake.stop();
        let Some(committer) = self.committer.lock().take() else { return Ok(()) };
        let until = Instant::now() + limits::CLOSE;
        while !committer.is_finished() && Instant::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let closed = self.local.close();
        match self.queue.failed() {
            Some(reason) => Err(CommitError::Failed(reason)),
            None => closed,
        }
    }
}

impl Drop for KafkaJournal {
    fn drop(&mut self) {
        self.queue.close();
        self.wake.stop();
    }
}
