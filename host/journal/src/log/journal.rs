//! The journal itself: the trait, on top of what is shared and the committer.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::committer::Committer;
use super::encode;
use super::reader::LogChannelReader;
use super::shared::{Channel, Phase, Shared, State};
use super::{Log, LogConfig};
use crate::api::{
    ChannelId, ChannelSpec, ChannelStatus, Commit, CommitError, Journal, JournalStatus, Reader, ReaderId,
    Ticket,
};
use crate::clock::Clock;
use crate::file::format::registers::{ChannelRegister, ReaderRegister, Registers};
use crate::limits;
use crate::state::{ByteColumn, StateSize, StateStore};
use crate::view::MemoryState;

/// See [`super`].
pub struct LogJournal {
    shared: Arc<Shared>,
    committer: Mutex<Option<JoinHandle<()>>>,
}

impl LogJournal {
    /// Begins to open: the log is reached from a thread, for as long as it takes. Its readers are those that it is opened with.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn open(config: LogConfig, log: Box<dyn Log>, clock: Arc<dyn Clock>) -> io::Result<Arc<LogJournal>> {
        let state = State {
            phase: Phase::Open,
            opened: None,
            registers: Registers {
                channels: config.channels.iter().map(register).collect(),
                ..Registers::default()
            },
            channels: config.channels.iter().map(channel).collect(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            next_number: 1,
            waiting_for: None,
            appending: None,
            figures: JournalStatus::default(),
            is_unfinished: false,
            damaged: BTreeSet::new(),
        };
        let name = format!("log-{}", config.name);
        let shared = Arc::new(Shared {
            config,
            clock,
            readers: log.readers(),
            view: MemoryState::default(),
            state: Mutex::new(state),
            work: Condvar::new(),
            changed: Condvar::new(),
            encode_ns: AtomicU64::new(0),
        });
        let committer = Committer::new(shared.clone(), log);
        let committer = std::thread::Builder::new().name(name).spawn(move || committer.run())?;
        Ok(Arc::new(LogJournal { shared, committer: Mutex::new(Some(committer)) }))
    }

    fn end(&self, phase: Phase) {
        {
            let mut state = self.shared.state.lock();
            if state.phase == Phase::Open {
                state.phase = phase;
            }
        }
        self.shared.work.notify_all();
        self.shared.changed.notify_all();
    }
}

fn channel(spec: &ChannelSpec) -> Channel {
    Channel {
        capacity_events: spec.capacity_events,
        capacity_bytes: spec.capacity_bytes,
        is_kept: !spec.readers.is_empty(),
        durable_head: 0,
        index: VecDeque::new(),
    }
}

/// As long as the log was not read.
fn register(spec: &ChannelSpec) -> ChannelRegister {
    let reader =
        |name: &String| ReaderRegister { name: name.clone(), live: true, ..ReaderRegister::default() };
    let readers = spec.readers.iter().map(reader).collect();
    ChannelRegister { name: spec.name.clone(), live: true, readers, ..ChannelRegister::default() }
}

fn index(found: Option<usize>) -> Option<u16> {
    found.and_then(|index| u16::try_from(index).ok())
}

impl Journal for LogJournal {
    fn channel(&self, name: &str) -> Option<ChannelId> {
        let channels = &self.shared.config.channels;
        index(channels.iter().position(|channel| channel.name == name)).map(ChannelId)
    }

    fn reader_id(&self, channel: ChannelId, reader: &str) -> Option<ReaderId> {
        let spec = self.shared.config.channels.get(usize::from(channel.0))?;
        index(spec.readers.iter().position(|known| known == reader)).map(ReaderId)
    }

    fn retire_reader(&self, channel: ChannelId, reader: ReaderId) {
        {
            let mut state = self.shared.wait_read();
            let own = state.registers.channels.get_mut(usize::from(channel.0));
            let Some(register) = own.and_then(|own| own.readers.get_mut(usize::from(reader.0))) else {
                return;
            };
            register.live = false;
            state.release(usize::from(channel.0));
        }
        self.shared.changed.notify_all();
    }

    fn set_capacity(&self, channel: ChannelId, events: u64, bytes: u64) {
        if let Some(channel) = self.shared.state.lock().channels.get_mut(usize::from(channel.0)) {
            (channel.capacity_events, channel.capacity_bytes) = (events, bytes);
        }
        self.shared.changed.notify_all();
    }

    fn commit(&self, commit: Commit, deadline: Option<Instant>) -> Result<Box<dyn Ticket>, CommitError> {
        encode::commit(&self.shared, commit, deadline)
    }

    fn is_read(&self) -> bool {
        self.shared.state.lock().opened.is_some()
    }

    fn failure(&self) -> Option<Arc<str>> {
        match &self.shared.state.lock().phase {
            Phase::Failed(reason) => Some(reason.clone()),
            _ => None,
        }
    }

    fn is_over(&self) -> bool {
        let state = self.shared.state.lock();
        state.opened.is_none() && state.phase != Phase::Open
    }

    fn position(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.shared.wait_read().registers.positions.get(key).map(|value| value.to_vec())
    }

    fn positions(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let state = self.shared.wait_read();
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let found = state.registers.positions.range::<[u8], _>(from);
        let found = found.take_while(|(key, _)| key.starts_with(prefix));
        found.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    }

    fn state(&self) -> Option<Arc<dyn StateStore>> {
        Some(Arc::new(LogState(self.shared.clone())))
    }

    fn open_reader(&self, channel: ChannelId, reader: ReaderId) -> Box<dyn Reader> {
        let (channel, reader) = (usize::from(channel.0), usize::from(reader.0));
        Box::new(LogChannelReader::new(self.shared.clone(), channel, reader))
    }

    /// Waits for nothing: as long as the log was not read, there is nothing in it.
    fn status(&self) -> JournalStatus {
        let sizes = self.shared.view.sizes();
        let now_ns = self.shared.clock.wall_ns();
        let state = self.shared.state.lock();
        let channels = state.channels.iter().zip(&state.registers.channels);
        let unread = state.opened.is_none().then(|| "the log was not read yet".to_owned());
        let now = self.shared.clock.now();
        let taking = state.appending.map(|since| now.saturating_duration_since(since));
        let slow = taking.filter(|taking| *taking > limits::LOG_SLOW);
        let slow = slow.map(|taking| format!("the log has not answered for {} s", taking.as_secs()));
        JournalStatus {
            encode_ns: self.shared.encode_ns.load(Ordering::Relaxed),
            waiting_for: state.waiting_for.clone().or(slow).or(unread),
            channels: channels.map(|(channel, register)| channel_status(channel, register, now_ns)).collect(),
            state: sizes,
            ..state.figures.clone()
        }
    }

    fn close(&self) -> Result<(), CommitError> {
        self.end(Phase::Closing(self.shared.clock.now() + self.shared.config.close_within));
        let mut committer = self.committer.lock();
        if committer.take().is_some_and(|committer| committer.join().is_err()) {
            tracing::error!(log = self.shared.config.name, "the committer panicked (a bug of Flumen)");
        }
        let state = self.shared.state.lock();
        match &state.phase {
            Phase::Failed(reason) => Err(CommitError::Failed(reason.clone())),
            _ if state.is_unfinished => Err(CommitError::Closing),
            _ => Ok(()),
        }
    }
}

impl Drop for LogJournal {
    fn drop(&mut self) {
        self.end(Phase::Dropped);
    }
}

fn channel_status(channel: &Channel, register: &ChannelRegister, now_ns: i64) -> ChannelStatus {
    let (events, bytes) = register.held();
    let oldest = channel.index.front().map(|entry| now_ns.saturating_sub(entry.time_ns).max(0) as f64 / 1e9);
    let readers = register.readers.iter().filter(|reader| reader.live);
    ChannelStatus {
        name: register.name.clone(),
        head: register.head,
        events,
        bytes,
        capacity_events: channel.capacity_events,
        capacity_bytes: channel.capacity_bytes,
        oldest_unacknowledged_s: oldest,
        readers: readers.map(|reader| (reader.name.clone(), reader.cursor)).collect(),
    }
}

/// What plugins remember, once the log was read.
struct LogState(Arc<Shared>);

impl LogState {
    fn view(&self) -> &MemoryState {
        drop(self.0.wait_read());
        &self.0.view
    }
}

impl StateStore for LogState {
    fn is_ready(&self) -> bool {
        self.0.state.lock().opened.is_some()
    }

    fn get_many(
        &self,
        plugin: &str,
        keys: &ByteColumn<'_>,
        now_ns: i64,
        each: &mut dyn FnMut(usize, Option<&[u8]>),
    ) {
        self.view().get_many(plugin, keys, now_ns, each);
    }

    fn scan(
        &self,
        plugin: &str,
        prefix: &[u8],
        after: Option<&[u8]>,
        now_ns: i64,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) {
        self.view().scan(plugin, prefix, after, now_ns, each);
    }

    fn size(&self, plugin: &str) -> StateSize {
        self.view().size(plugin)
    }

    fn sweep(&self, plugin: &str, now_ns: i64) {
        self.view().sweep(plugin, now_ns);
    }

    fn sizes(&self) -> Vec<StateSize> {
        self.view().sizes()
    }
}
