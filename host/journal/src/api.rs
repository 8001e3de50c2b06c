//! The trait that every journal implementation has, and its plain values.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_event::Batch;
use thiserror::Error;

use crate::state::{StateSize, StateStore, StateWrites};

/// A channel of this journal, by its index in the list given at opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(pub u16);

/// A reader of a channel (a sink, a sink group or a stage), by its index in [`ChannelSpec::readers`], or one that was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReaderId(pub u16);

/// A channel as the pipeline's plan names it. Names are stable across restarts; indexes are not.
#[derive(Debug, Clone)]
pub struct ChannelSpec {
    /// Unique in the journal.
    pub name: String,
    /// Names of its readers. A channel without readers keeps nothing.
    pub readers: Vec<String>,
    /// A put waits while the channel holds this many events or more.
    pub capacity_events: u64,
    /// A put waits while the channel holds this many bytes or more ([`Batch::bytes`]).
    pub capacity_bytes: u64,
}

/// One atomic change. Order inside: all parts become visible together.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    /// Events that enter channels; a put to several channels is one copy on disk.
    pub puts: Vec<Put>,
    /// How far each stream was read, or each destination was written: key and opaque value
    /// (the newest value per key is kept). An empty value removes the key.
    pub positions: Vec<(Vec<u8>, Vec<u8>)>,
    /// What readers have finished with.
    pub acks: Vec<Ack>,
    /// What plugins remember. Only for a journal that has [`Journal::state`].
    pub state: Vec<StateWrites>,
}

/// Events for one or more channels. A batch without rows is left out.
#[derive(Debug, Clone)]
pub struct Put {
    /// Where it goes.
    pub channels: Vec<ChannelId>,
    /// The events.
    pub batch: Batch,
}

/// A reader has finished with all events of its channel before `cursor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// The channel.
    pub channel: ChannelId,
    /// The reader.
    pub reader: ReaderId,
    /// Number of events of the channel, from its very first, that are finished.
    pub cursor: u64,
}

/// Why a commit was not accepted or not made durable. Nothing of it is visible.
#[derive(Debug, Clone, Error)]
pub enum CommitError {
    /// A channel stayed full until the deadline.
    #[error("channel {channel:?} is full: {events} events, {bytes} bytes")]
    Full {
        /// Its name.
        channel: String,
        /// Events in it.
        events: u64,
        /// Bytes in it.
        bytes: u64,
    },
    /// The commit is over a limit of the journal; it can never be accepted.
    #[error("commit of {bytes} bytes is over the journal's limit of {limit}")]
    TooLarge {
        /// Its encoded size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// An acknowledgement came too late: what the reader had read belongs to another reader now, or an
    /// acknowledgement before it was refused. Nothing of the commit is visible; the reader has to go back to what
    /// it acknowledged.
    #[error("the acknowledgement was refused: {0}")]
    Refused(Arc<str>),
    /// The journal is being closed.
    #[error("the journal is closing")]
    Closing,
    /// The disk failed in a way that the journal could not work around. It takes no more commits.
    #[error("the journal has failed and takes no more commits: {0}")]
    Failed(Arc<str>),
}

/// A reader was not added, and nothing has changed: why.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a reader cannot be added while the journal is open: {0}")]
pub struct AddReaderError(pub Arc<str>);

/// A commit under way. Dropping it changes nothing.
pub trait Ticket: Send + Sync {
    /// Waits until the commit is durable (as the journal's durability says) and returns its number.
    /// `None` when `timeout` passed first.
    fn wait(&self, timeout: Option<Duration>) -> Option<Result<u64, CommitError>>;
}

impl<T: Ticket + ?Sized> Ticket for Arc<T> {
    fn wait(&self, timeout: Option<Duration>) -> Option<Result<u64, CommitError>> {
        T::wait(self, timeout)
    }
}

/// What an acknowledgement will change is on record ([`Reader::promise`]).
pub struct Promise {
    /// What the destination is to store.
    pub mark: Vec<u8>,
    /// Resolves when the record is durable: not before may the destination take its step.
    pub ticket: Box<dyn Ticket>,
}

/// What a reader is handed: some rows of one put.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Cursor of the first row: the reader's place in the channel, in events.
    pub first: u64,
    /// Cursor behind the last row: what acknowledges this delivery. `first` plus the rows in a file
    /// journal; other journals may count more than rows (a topic's offsets have gaps).
    pub next: u64,
    /// The events.
    pub batch: Batch,
    /// Events before `first` that were lost to damage on disk since the last delivery (already counted and reported).
    pub lost_before: u64,
}

/// Why a read failed.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The disk failed; the read can be tried again.
    #[error("reading {what}: {source}")]
    Io {
        /// File and offset.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// Events that were handed out belong to another reader now (a channel that agents share). Whoever reads
    /// undoes what it did with what is not acknowledged, and seeks to [`Reader::acknowledged`].
    #[error("{0}")]
    Moved(String),
    /// The journal is closing and there is nothing left to read, or it has failed.
    #[error("the journal is closing")]
    Closing,
}

/// Reads one channel in order, for one reader. Damage is skipped, counted and reported, never an error.
pub trait Reader: Send {
    /// The next rows after those handed out last, or `None` when there are none within `wait`.
    fn next(&mut self, wait: Duration) -> Result<Option<Delivery>, ReadError>;

    /// Goes back (or forward) to a cursor at or after the acknowledged one: the next delivery begins there.
    fn seek(&mut self, cursor: u64) -> Result<(), ReadError>;

    /// The acknowledged cursor that the journal knows (committed, or on its way).
    fn acknowledged(&self) -> u64;

    /// How a destination of the journal's own kind acknowledges in the same atomic step in which it takes the events, if
    /// it can at all: a type of the crate that both are made with. [`Commit`] still gets the acknowledgement.
    fn acknowledger(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }

    /// Whether whoever reads finishes now what it has before `cursor`, and acknowledges there. `is_due`: it would by itself. A
    /// journal in which acknowledgements of several readers are one commit says where, and hands nothing out behind that place
    /// meanwhile.
    fn flushes_at(&mut self, cursor: u64, is_due: bool) -> bool {
        let _unused = cursor;
        is_due
    }

    /// True: a destination that stores marks gets them by [`Reader::promise`], not by [`Reader::mark`].
    fn promises(&self) -> bool {
        false
    }

    /// Puts on record what the acknowledgement of `cursor` will change, with what the sink put into quarantine; the mark that the
    /// destination stores then tells after a crash whether it counts. `None`: it cannot be known yet, within `wait`; other readers have
    /// to come as far.
    fn promise(&mut self, cursor: u64, puts: &[Put], wait: Duration) -> Result<Option<Promise>, CommitError> {
        let _unused = (cursor, puts, wait);
        Err(CommitError::Failed("this journal promises nothing".into()))
    }

    /// A cursor as bytes that mean the same after any restart, and name the journal: what a destination
    /// stores beside the events. `cursor` is acknowledged, or the end of a delivery of this reader.
    fn mark(&self, cursor: u64) -> Vec<u8>;

    /// The cursor of a mark; `None` if the mark is of another journal or names events that this one
    /// does not have: to skip up to there would lose events.
    fn resolve(&mut self, mark: &[u8]) -> Option<u64>;
}

/// One channel's figures.
#[derive(Debug, Clone, Default)]
pub struct ChannelStatus {
    /// Its name.
    pub name: String,
    /// Events ever put.
    pub head: u64,
    /// Events put that some reader has not acknowledged.
    pub events: u64,
    /// Their bytes (exact for what was put since the start, estimated by whole commits before).
    pub bytes: u64,
    /// Capacity in events; 0: no bound of its own.
    pub capacity_events: u64,
    /// Capacity in bytes; 0: no bound of its own.
    pub capacity_bytes: u64,
    /// Seconds since the oldest unacknowledged event was committed.
    pub oldest_unacknowledged_s: Option<f64>,
    /// Per reader: name and acknowledged cursor.
    pub readers: Vec<(String, u64)>,
}

/// Figures of a channel whose events are in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryFigures {
    /// The channel's name.
    pub channel: String,
    /// Events that would be lost if the process died now.
    pub events_at_risk: u64,
    /// Memory that they take, in bytes.
    pub bytes: u64,
    /// Events that were in memory when the process died, and that some reader had not acknowledged, as of this opening.
    pub lost: u64,
    /// Events that were dropped because the channel was full, since the start.
    pub dropped: u64,
    /// Events that went to the file because the memory was full, since the start.
    pub overflowed: u64,
    /// What is put now goes there: it takes no memory, until the file is drained.
    pub overflows: bool,
}

/// What a journal had in memory alone when its disk failed: the next opening of the same journal goes on with it.
#[derive(Debug, Clone)]
pub struct Unsaved {
    /// Names the journal.
    pub journal: [u8; 16],
    /// Of each channel in their order.
    pub puts: Vec<UnsavedPut>,
}

/// A put that is in memory alone.
#[derive(Debug, Clone)]
pub struct UnsavedPut {
    /// The channel's name.
    pub channel: String,
    /// Number of its first event in the channel.
    pub first: u64,
    /// The events.
    pub batch: Batch,
    /// When they were put, in nanoseconds since 1970.
    pub time_ns: i64,
}

/// The journal's figures since it was opened.
#[derive(Debug, Clone, Default)]
pub struct JournalStatus {
    /// Number of the last durable commit.
    pub last_commit: u64,
    /// Commits made durable.
    pub commits: u64,
    /// Groups written (one sync each).
    pub syncs: u64,
    /// Bytes written to segments.
    pub bytes_written: u64,
    /// Time that callers spent encoding, compressing, encrypting and checksumming, in nanoseconds.
    pub encode_ns: u64,
    /// Time spent in writes, in nanoseconds.
    pub write_ns: u64,
    /// Time spent in syncs, in nanoseconds.
    pub sync_ns: u64,
    /// Segments on disk and their bytes.
    pub segments: u64,
    /// Bytes that they take.
    pub segment_bytes: u64,
    /// Commits lost to damage, found at opening or while reading.
    pub damaged_commits: u64,
    /// Blocks of the plugins' state lost to damage, found at opening: at least, where the file does not say how many it had.
    pub damaged_state_blocks: u64,
    /// Why puts wait now (full disk), in words.
    pub waiting_for: Option<String>,
    /// Where events go of a journal that can fail over: `primary` or (Kafka) `shared`; the kind of the failover; `returning` (to the
    /// failover, while it is moved); or `opening` (it is not known yet, so they wait).
    pub failover: Option<String>,
    /// How often events began to go to the failover, since the start.
    pub failovers: u64,
    /// Events that are there; they are among those of the channels, too.
    pub failover_events: u64,
    /// Per channel.
    pub channels: Vec<ChannelStatus>,
    /// What plugins remember.
    pub state: Vec<StateSize>,
    /// Of channels that are in memory.
    pub memory: Vec<MemoryFigures>,
}

impl JournalStatus {
    /// Whether events go to a failover, or are on their way back from it.
    pub fn is_away(&self) -> bool {
        self.failover.as_deref().is_some_and(|place| !HOME.contains(&place))
    }
}

/// [`JournalStatus::failover`] where nothing is in a failover.
const HOME: [&str; 2] = ["primary", "shared"];

/// The one trait of every journal. All calls may be made from any thread.
pub trait Journal: Send + Sync {
    /// Index of a channel.
    fn channel(&self, name: &str) -> Option<ChannelId>;

    /// Index of a reader of a channel.
    fn reader_id(&self, channel: ChannelId, reader: &str) -> Option<ReaderId>;

    /// Adds a reader of a channel that has one, while everything goes on. A new name begins at the channel's end, one that was there
    /// before goes on where it was: as if the journal were opened with it. Waits until that is durable.
    fn add_reader(&self, _channel: ChannelId, _reader: &str) -> Result<ReaderId, AddReaderError> {
        Err(AddReaderError("the readers of a channel are those that its journal was opened with".into()))
    }

    /// From now on nothing is kept for a reader; where it was stays known. Nobody may read or acknowledge as it any more.
    fn retire_reader(&self, _channel: ChannelId, _reader: ReaderId) {}

    /// How much a channel holds from now on: puts that wait look again. A channel whose events are kept elsewhere goes by its own.
    fn set_capacity(&self, _channel: ChannelId, _events: u64, _bytes: u64) {}

    /// Hands in a commit. Waits while a channel that it puts to is full, until `deadline`
    /// (`None`: for as long as it takes); a commit without puts never waits. Commits become durable
    /// in the order in which this call returned. A full disk makes commits with puts wait inside the
    /// journal, in order, while acknowledgements go on; it is not an error.
    fn commit(&self, commit: Commit, deadline: Option<Instant>) -> Result<Box<dyn Ticket>, CommitError>;

    /// As [`Journal::commit`], and waits until the commit is durable; its number. For a caller that has nothing else to do: a
    /// journal may write it in the caller's thread.
    fn commit_and_wait(&self, commit: Commit, deadline: Option<Instant>) -> Result<u64, CommitError> {
        self.commit(commit, deadline)?.wait(None).unwrap_or(Err(CommitError::Closing))
    }

    /// True: a commit with events is made durable together with the acknowledgement of its events, so its ticket waits for the
    /// reader. Who hands commits in must not wait for tickets before it hands in more.
    fn acknowledges_late(&self) -> bool {
        false
    }

    /// False: what it holds is not known yet, because it is elsewhere and was not reached. Whoever asks for a position, a head or a
    /// reader's place waits for it.
    fn is_read(&self) -> bool {
        true
    }

    /// It takes no more commits, and what it says of positions may be less than what is true: one whose positions are elsewhere, and
    /// that ended before it had read them, knows none. Who would change something for want of a position has to ask this behind it.
    fn is_over(&self) -> bool {
        false
    }

    /// Why it has failed: only another opening can go on. It may fail with nothing of anybody's on its way.
    fn failure(&self) -> Option<Arc<str>> {
        None
    }

    /// Whether acknowledgements that are handed in now can become durable: not while where they belong is away, and events go to a
    /// failover. Who stops does not wait for them then.
    fn takes_acknowledgements(&self) -> bool {
        true
    }

    /// The newest durable or pending value of a position.
    fn position(&self, key: &[u8]) -> Option<Vec<u8>>;

    /// All positions whose key begins with `prefix`, in key order.
    fn positions(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)>;

    /// What plugins remember; `None`: this journal keeps no such thing, and refuses commits with state.
    fn state(&self) -> Option<Arc<dyn StateStore>> {
        None
    }

    /// A reader of a channel that begins at its acknowledged cursor. One at a time per reader.
    fn open_reader(&self, channel: ChannelId, reader: ReaderId) -> Box<dyn Reader>;

    /// Figures for `status`.
    fn status(&self) -> JournalStatus;

    /// Of one that has failed and is closed: what it has in memory alone. `None`: it keeps no events there.
    fn unsaved(&self) -> Option<Unsaved> {
        None
    }

    /// Takes no more commits, makes all handed in durable, writes a snapshot and lets go of the
    /// directory. Readers get [`ReadError::Closing`]. A second call does nothing but wait for the first.
    fn close(&self) -> Result<(), CommitError>;
}
