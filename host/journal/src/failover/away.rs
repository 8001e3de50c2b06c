//! The secondary's side of a failover: see [`super`].
//!
//! In the secondary's journal: [`STATE`] (u64 number of this failover; absent: not open), the primary's name (in front of a journal on a
//! local disk), [`DOUBT`] ([`doubt`]), [`POSITION`] and a position's key, or [`GONE`] and the key of one that was removed; state of [`PLUGIN`] and a plugin's name, each key with its expiry and
//! value ([`state_value`]), or an empty one if it was removed. In the primary's: [`CURSOR`] and a channel's name.
//!
//! No lock of this is held while somebody waits, for the secondary or for the primary: what is moved is taken, handed to the primary,
//! and noted when it counts.
//!
//! **Without room.** [`STATE`] alone says whether anything here counts, so it changes in a commit of its own, which takes the space that there
//! is for acknowledgements ([`Away::turn`]): the rest of the segment, or the reserve. What it makes count is durable before, and waits for
//! room; whoever waits may give that up, and what is on its way then counts for nothing, whenever it arrives. The next opening waits for it,
//! since only what has arrived can be passed over. Behind its removal nothing is waited for ([`Away::tidy`]).

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_event::limits::{BYTES_MAX, HEADERS_MAX, ROWS_MAX};
use parking_lot::Mutex;
use thiserror::Error;

use super::doubt::{self, Doubt};
use super::{FailoverPlan, Positions, Primary};
use crate::api::{
    Ack, ChannelId, ChannelSpec, Commit, CommitError, Journal, ReadError, Reader, ReaderId, Ticket,
};
use crate::limits;
use crate::state::{StateOp, StateWrites};

/// The position in the secondary's journal that is there as long as it is open.
pub const STATE: &[u8] = b"failover/state";
const DOUBT: &[u8] = b"failover/doubt";
const POSITION: &[u8] = b"failover/p/";
const GONE: &[u8] = b"failover/g/";
pub(super) const PLUGIN: &str = "failover/";
/// The position in the primary that says how far a channel of the secondary was moved.
pub const CURSOR: &[u8] = b"failover/cursor/";
/// Positions that go with the events: those of sources. A sink's belong to what it read of the primary.
pub const SOURCES: &[u8] = b"source/";
/// The reader of the secondary's channels.
pub const READER: &str = "return";

/// Why the way out or back does not go on.
#[derive(Debug, Clone, Error)]
pub enum AwayError {
    /// The secondary takes nothing.
    #[error("where events go meanwhile: {0}")]
    Lost(#[from] CommitError),
    /// Its events cannot be read now.
    #[error("reading what is to be moved back: {0}")]
    Unread(String),
}

/// The secondary's channel for a channel of the primary.
pub fn channel_spec(name: &str, plan: &FailoverPlan) -> ChannelSpec {
    let FailoverPlan { capacity_events, capacity_bytes, .. } = *plan;
    ChannelSpec { name: name.into(), readers: vec![READER.into()], capacity_events, capacity_bytes }
}

/// One channel of the secondary.
struct Channel {
    channel: ChannelId,
    reader: ReaderId,
    name: String,
}

/// What was read of the secondary, to be moved.
pub struct Moved {
    /// Index of the channel.
    pub channel: usize,
    /// The events.
    pub batch: flumen_event::Batch,
    /// Behind them.
    mark: Vec<u8>,
    cursor: u64,
}

/// Whether whoever waits for the secondary has to give up.
type IsOver = Box<dyn Fn() -> bool + Send + Sync>;

/// The secondary's side.
pub struct Away {
    journal: Arc<dyn Journal>,
    /// Where puts go to channels that are not among `channels`.
    fallback: Option<ChannelId>,
    channels: Vec<Channel>,
    is_over: IsOver,
    back: Mutex<Back>,
    /// What was handed in here, but for puts ([`Away::put`]), and is not known to have arrived. More than one commit: an opening, or what
    /// nobody waited for.
    under_way: Mutex<VecDeque<Arc<dyn Ticket>>>,
    /// Of the last put: it arrives behind all before it.
    last_put: Mutex<Option<Arc<dyn Ticket>>>,
}

/// The way back.
#[derive(Default)]
struct Back {
    /// Of the secondary's channels, by index; none: nobody is on it.
    readers: Vec<Box<dyn Reader>>,
    /// Marks that the primary has.
    marks: Positions,
    /// What was read, and found no room in the primary.
    unmoved: Vec<Moved>,
}

impl Away {
    /// `channels` are the primary's, by index, and the secondary's by name ([`channel_spec`]); puts to others go to `fallback`.
    pub fn new(journal: Arc<dyn Journal>, channels: &[String], fallback: Option<ChannelId>) -> Option<Away> {
        let known = |name: &String| {
            let channel = journal.channel(name)?;
            let reader = journal.reader_id(channel, READER)?;
            Some(Channel { channel, reader, name: name.clone() })
        };
        let channels = channels.iter().map(known).collect::<Option<_>>()?;
        Some(Away {
            journal,
            fallback,
            channels,
            is_over: Box::new(|| false),
            back: Mutex::default(),
            under_way: Mutex::default(),
            last_put: Mutex::default(),
        })
    }

    /// Whoever waits for the secondary gives up when this says so: one that is elsewhere may take for ever.
    pub fn until(self, is_over: impl Fn() -> bool + Send + Sync + 'static) -> Away {
        Away { is_over: Box::new(is_over), ..self }
    }

    /// These are the marks that the primary has.
    pub fn set_marks(&self, marks: Positions) {
        self.back.lock().marks = marks;
    }

    /// The primary has these marks, too.
    pub fn add_marks(&self, marks: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) {
        self.back.lock().marks.extend(marks);
    }

    /// True: events go here.
    pub fn is_open(&self) -> bool {
        self.number().is_some()
    }

    /// The positions, if the secondary is open. Takes a new number: what is put from now on is of this life.
    pub fn reopen(&self) -> Result<Option<Positions>, CommitError> {
        let Some(number) = self.number() else { return Ok(None) };
        self.settle(self.turn(vec![state(number + 1)]))?;
        Ok(Some(self.positions(b"").collect()))
    }

    fn number(&self) -> Option<u64> {
        let state = self.journal.position(STATE)?;
        state.as_slice().try_into().ok().map(u64::from_le_bytes)
    }

    /// Positions that are whole here, and those that were written since the secondary is open.
    pub fn positions(&self, prefix: &[u8]) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> + use<> {
        under(self.journal.as_ref(), POSITION, prefix)
    }

    /// Keys of positions that were removed since the secondary is open.
    pub fn gone(&self, prefix: &[u8]) -> impl Iterator<Item = Vec<u8>> + use<> {
        under(self.journal.as_ref(), GONE, prefix).map(|(key, _)| key)
    }

    /// What is known here of one position: `Some(None)`: it was removed; `None`: nothing.
    pub fn position(&self, key: &[u8]) -> Option<Option<Vec<u8>>> {
        let value = self.journal.position(&[POSITION, key].concat());
        let gone = || self.journal.position(&[GONE, key].concat()).map(|_| None);
        value.map(Some).or_else(gone)
    }

    /// Opens the secondary with the sources' positions and with commits that did not get into the primary, or perhaps did: those
    /// have the number by which it will tell. `own` are positions of the secondary's journal itself. [`CommitError::Full`]: they found no
    /// room, and nothing has changed.
    pub fn open(
        &self,
        positions: Positions,
        commits: Vec<(Option<u64>, Commit)>,
        own: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<(), CommitError> {
        self.open_while(positions, commits, own, &|| true)
    }

    /// The same, and [`CommitError::Full`] as well if it is not needed any more before all of it has arrived here. The commit that makes
    /// it count is handed in behind that: from there on it is not given up, since nobody could say any more which of the two counts.
    pub(super) fn open_while(
        &self,
        positions: Positions,
        commits: Vec<(Option<u64>, Commit)>,
        own: Vec<(Vec<u8>, Vec<u8>)>,
        is_needed: &dyn Fn() -> bool,
    ) -> Result<(), CommitError> {
        let mut ends = self.forget_stale(is_needed)?;
        let mut known: Vec<(Vec<u8>, Vec<u8>)> =
            positions.into_iter().flat_map(|(key, value)| local_position(&key, value)).collect();
        let (mut doubts, mut parts) = (Vec::new(), vec![Commit::default()]);
        let mut bytes = 0;
        for (number, mut commit) in commits {
            self.localise(&mut commit);
            known.append(&mut commit.positions);
            for (channel, end) in self.channels.iter().zip(&mut ends) {
                let puts = commit.puts.iter().filter(|put| put.channels.contains(&channel.channel));
                *end += puts.map(|put| put.batch.rows() as u64).sum::<u64>();
            }
            doubts.extend(number.map(|number| Doubt { number, ends: ends.clone() }));
            // As few as can be: what is put into an empty channel never waits for room.
            let own: usize = commit.puts.iter().map(|put| put.batch.bytes()).sum();
            if bytes + own > limits::FAILOVER_OPEN_BYTES {
                parts.push(Commit::default());
                bytes = 0;
            }
            bytes += own;
            if let Some(part) = parts.last_mut() {
                part.puts.append(&mut commit.puts);
                part.state.append(&mut commit.state);
            }
        }
        if !doubts.is_empty() {
            known.push((DOUBT.to_vec(), doubt::encode(self.channels.len(), &doubts)));
        }
        // By themselves: one commit of those that were on their way may be as large as any may be.
        parts.push(Commit { positions: known, ..Commit::default() });
        let deadline = Instant::now() + limits::FAILOVER_OPEN_WAIT;
        for part in parts {
            self.hand_in(part, Some(deadline))?;
        }
        self.wait_under_way(is_needed)?;
        // Nothing of it counts before this.
        let mut opened = vec![state(self.number().unwrap_or(0) + 1)];
        opened.extend(own);
        self.settle(self.turn(opened))
    }

    /// A commit that says whether what is here counts. That it acknowledges lets it pass what waits for space, and gives it what is kept
    /// aside for acknowledgements; nothing is acknowledged that was not.
    fn turn(&self, positions: Vec<(Vec<u8>, Vec<u8>)>) -> Commit {
        let nothing = |channel: &Channel| Ack { channel: channel.channel, reader: channel.reader, cursor: 0 };
        let acks = self.channels.first().map(nothing).into_iter().collect();
        Commit { positions, acks, ..Commit::default() }
    }

    /// What an opening or a closing left that ended in a crash, or was given up. Returns the end of each channel.
    fn forget_stale(&self, is_needed: &dyn Fn() -> bool) -> Result<Vec<u64>, CommitError> {
        // An acknowledgement does not reach what has not arrived.
        self.wait_under_way(is_needed)?;
        self.clear_state(is_needed)?;
        let ends: Vec<u64> = self.channels.iter().map(|channel| self.head(channel.channel)).collect();
        let ack = |(channel, end): (&Channel, &u64)| Ack {
            channel: channel.channel,
            reader: channel.reader,
            cursor: *end,
        };
        let acks = self.channels.iter().zip(&ends).map(ack).collect();
        let mut positions = vec![(DOUBT.to_vec(), Vec::new())];
        for prefix in [POSITION, GONE] {
            positions.extend(self.journal.positions(prefix).into_iter().map(|(key, _)| (key, Vec::new())));
        }
        self.settle_while(Commit { acks, positions, ..Commit::default() }, is_needed)?;
        Ok(ends)
    }

    /// Puts a commit here. The ticket waits for its sync.
    pub fn put(&self, mut commit: Commit, deadline: Instant) -> Result<Box<dyn Ticket>, CommitError> {
        self.localise(&mut commit);
        let ticket: Arc<dyn Ticket> = self.journal.commit(commit, Some(deadline))?.into();
        *self.last_put.lock() = Some(ticket.clone());
        Ok(Box::new(ticket))
    }

    /// Channels and keys of the secondary's journal for those of the primary's.
    fn localise(&self, commit: &mut Commit) {
        for put in &mut commit.puts {
            let local = |channel: &ChannelId| {
                let known = self.channels.get(usize::from(channel.0)).map(|channel| channel.channel);
                known.or(self.fallback)
            };
            put.channels = put.channels.iter().filter_map(local).collect();
        }
        let positions = std::mem::take(&mut commit.positions);
        commit.positions =
            positions.into_iter().flat_map(|(key, value)| local_position(&key, value)).collect();
        commit.state = commit.state.iter().map(local_state).collect();
    }

    /// The next part of what plugins wrote while the secondary was open, the newest write of each key; `None`: that was all.
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
                part.bytes() < limits::FAILOVER_STEP_BYTES
            });
            if !part.is_empty() {
                return Some(part);
            }
            plugins.pop();
        }
    }

    fn clear_state(&self, is_needed: &dyn Fn() -> bool) -> Result<(), CommitError> {
        let mut place = StatePlace::default();
        while let Some(part) = self.state_part(&mut place) {
            let mut removals = StateWrites::new(local_plugin(part.plugin()));
            for op in part.iter() {
                removals.push(StateOp { key: op.key, value: None, expiry: None });
            }
            self.settle_while(Commit { state: vec![removals], ..Commit::default() }, is_needed)?;
        }
        Ok(())
    }

    fn head(&self, channel: ChannelId) -> u64 {
        self.journal.status().channels.get(usize::from(channel.0)).map_or(0, |status| status.head)
    }

    /// Sets a position of the secondary's journal itself; an empty value removes it.
    pub fn set_own(&self, key: &[u8], value: Vec<u8>) -> Result<(), CommitError> {
        self.settle(Commit { positions: vec![(key.to_vec(), value)], ..Commit::default() })
    }

    fn settle(&self, commit: Commit) -> Result<(), CommitError> {
        self.settle_while(commit, &|| true)
    }

    fn settle_while(&self, commit: Commit, is_needed: &dyn Fn() -> bool) -> Result<(), CommitError> {
        self.hand_in(commit, None)?;
        self.wait_under_way(is_needed)
    }

    fn hand_in(&self, commit: Commit, deadline: Option<Instant>) -> Result<(), CommitError> {
        let ticket = self.journal.commit(commit, deadline)?;
        self.under_way.lock().push_back(ticket.into());
        Ok(())
    }

    /// Waits until all of it has arrived. What is given up stays on its way.
    fn wait_under_way(&self, is_needed: &dyn Fn() -> bool) -> Result<(), CommitError> {
        loop {
            let Some(first) = self.under_way.lock().front().cloned() else { return Ok(()) };
            let outcome = self.wait(first.as_ref(), is_needed)?;
            self.under_way.lock().pop_front();
            outcome?;
        }
    }

    /// An outcome, as long as somebody needs it.
    fn wait(
        &self,
        ticket: &dyn Ticket,
        is_needed: &dyn Fn() -> bool,
    ) -> Result<Result<u64, CommitError>, CommitError> {
        loop {
            match ticket.wait(Some(limits::FAILOVER_TICK)) {
                Some(outcome) => return Ok(outcome),
                None if (self.is_over)() => return Err(CommitError::Closing),
                None if !is_needed() => {
                    return Err(CommitError::Full { channel: "(the failover)".into(), events: 0, bytes: 0 });
                }
                None => {}
            }
        }
    }

    /// Something was left on its way, and has arrived.
    pub(super) fn is_untidy(&self) -> bool {
        let under_way = self.under_way.lock();
        let has_arrived = |ticket: &Arc<dyn Ticket>| ticket.wait(Some(Duration::ZERO)).is_some();
        !under_way.is_empty() && under_way.iter().all(has_arrived)
    }

    /// What is left in a secondary that is closed counts for nothing. It goes as far as there is room and time for it; the rest goes with the
    /// next opening.
    pub(super) fn tidy(&self) {
        let until = Instant::now() + limits::FAILOVER_OPEN_WAIT;
        if let Err(error) = self.forget_stale(&|| Instant::now() < until) {
            tracing::debug!(%error, "what is left in the failover stays until it is next opened");
        }
    }

    /// The primary is well: the secondary is read from where the primary has it. `number` is the last that counts there.
    pub fn begin_return(&self, number: u64) -> Result<(), CommitError> {
        let doubts = self.journal.position(DOUBT).and_then(|record| doubt::decode(&record));
        let counts = doubts.into_iter().flatten().filter(|doubt| doubt.number <= number);
        let counts: Vec<Doubt> = counts.collect();
        let marks = self.back.lock().marks.clone();
        let (mut acks, mut readers) = (Vec::new(), Vec::new());
        for (index, channel) in self.channels.iter().enumerate() {
            let mut reader = self.journal.open_reader(channel.channel, channel.reader);
            let mark = marks.get(&cursor_key(&channel.name));
            let moved = mark.and_then(|mark| reader.resolve(mark)).unwrap_or(0);
            let behind = counts.iter().filter_map(|doubt| doubt.ends.get(index)).max();
            let begin = reader.acknowledged().max(moved).max(behind.copied().unwrap_or(0));
            if let Err(error) = reader.seek(begin) {
                return Err(CommitError::Failed(error.to_string().into()));
            }
            acks.push(Ack { channel: channel.channel, reader: channel.reader, cursor: begin });
            readers.push(reader);
        }
        let positions = vec![(DOUBT.to_vec(), Vec::new())];
        self.settle(Commit { acks, positions, ..Commit::default() })?;
        let mut back = self.back.lock();
        back.readers = readers;
        back.unmoved.clear();
        Ok(())
    }

    /// Waits until everything that was put here can be read: what is on its way cannot, and would look as if it had been moved. Nothing is
    /// written for it, so it takes no room.
    pub(super) fn settle_puts(&self, is_needed: &dyn Fn() -> bool) -> Result<(), CommitError> {
        let last = self.last_put.lock().clone();
        let Some(last) = last else { return Ok(()) };
        self.wait(last.as_ref(), is_needed)?.map(|_| ())
    }

    /// The primary is away again.
    pub fn break_return(&self) {
        let mut back = self.back.lock();
        back.unmoved.clear();
        back.readers.clear();
    }

    /// The next events, up to a bound, and whether there may be more; none: everything was moved.
    fn take(&self) -> Result<(Vec<Moved>, bool), AwayError> {
        let unread = |error: ReadError| AwayError::Unread(error.to_string());
        let mut back = self.back.lock();
        let (mut moved, mut size) = (std::mem::take(&mut back.unmoved), StepSize::default());
        if !moved.is_empty() {
            return Ok((moved, true));
        }
        for (index, reader) in back.readers.iter_mut().enumerate() {
            while size.bytes < limits::FAILOVER_STEP_BYTES {
                let Some(delivery) = reader.next(Duration::ZERO).map_err(unread)? else { break };
                if !size.takes(&delivery.batch) {
                    reader.seek(delivery.first).map_err(unread)?;
                    return Ok((moved, true));
                }
                let (mark, cursor) = (reader.mark(delivery.next), delivery.next);
                moved.push(Moved { channel: index, batch: delivery.batch, mark, cursor });
            }
        }
        Ok((moved, size.bytes >= limits::FAILOVER_STEP_BYTES))
    }

    /// Moves the next events to the primary; their bytes, and no fewer than a step's while there may be more. 0: everything was moved.
    /// After an error the same are tried again, or it begins anew ([`Away::break_return`]) if nobody knows what became of them.
    pub fn move_some<P: Primary>(&self, primary: &mut P) -> Result<usize, P::Trouble> {
        let (moved, may_be_more) = self.take()?;
        if moved.is_empty() {
            return Ok(0);
        }
        let key = |one: &Moved| {
            let channel = self.channels.get(one.channel)?;
            Some((cursor_key(&channel.name), one.mark.clone()))
        };
        let keys: Vec<(Vec<u8>, Vec<u8>)> = moved.iter().filter_map(key).collect();
        if let Err(trouble) = primary.step(&moved, &keys, &[]) {
            self.back.lock().unmoved = moved;
            return Err(trouble);
        }
        self.add_marks(keys);
        self.acknowledge(&moved).map_err(AwayError::Lost)?;
        let bytes: usize = moved.iter().map(|one| one.batch.bytes()).sum();
        Ok(if may_be_more { limits::FAILOVER_STEP_BYTES.max(bytes) } else { bytes })
    }

    /// These events are in the primary.
    fn acknowledge(&self, moved: &[Moved]) -> Result<(), CommitError> {
        let ack = |one: &Moved| {
            let channel = self.channels.get(one.channel)?;
            Some(Ack { channel: channel.channel, reader: channel.reader, cursor: one.cursor })
        };
        let acks = moved.iter().filter_map(ack).collect();
        self.settle(Commit { acks, ..Commit::default() })
    }

    /// Everything was moved: state and positions go to the primary, and the secondary is closed.
    pub fn come_back<P: Primary>(&self, primary: &mut P) -> Result<(), P::Trouble> {
        self.hand_over(primary)?;
        self.close().map_err(AwayError::Lost)?;
        self.tidy();
        Ok(())
    }

    /// State and positions go to the primary, behind all events.
    pub(super) fn hand_over<P: Primary>(&self, primary: &mut P) -> Result<(), P::Trouble> {
        // It is open until its positions are there: what a crash leaves half done is done again.
        let mut place = StatePlace::default();
        while let Some(part) = self.state_part(&mut place) {
            primary.step(&[], &[], &[part])?;
        }
        let mut positions: Vec<(Vec<u8>, Vec<u8>)> = self.gone(b"").map(|key| (key, Vec::new())).collect();
        positions.extend(self.positions(b""));
        primary.step(&[], &positions, &[])
    }

    /// Everything is in the primary, state and positions too: nothing here counts any more. A second time it does nothing.
    pub(super) fn close(&self) -> Result<(), CommitError> {
        self.break_return();
        self.settle(self.turn(vec![(STATE.to_vec(), Vec::new())]))
    }
}

/// What a step has so far. A primary that acknowledges late makes one batch of all that a channel gets with a commit, so it is no more than
/// a batch may be.
#[derive(Default)]
struct StepSize {
    rows: usize,
    bytes: usize,
    headers: BTreeSet<Arc<str>>,
}

impl StepSize {
    /// Adds a batch, if it fits. The first one does.
    fn takes(&mut self, batch: &flumen_event::Batch) -> bool {
        let names = || batch.headers().iter().map(|header| &header.name);
        let (rows, bytes) = (self.rows + batch.rows(), self.bytes + batch.bytes());
        let headers = self.headers.len() + names().filter(|name| !self.headers.contains(*name)).count();
        // Where a row lacks a header there is an offset and a bit.
        let most = bytes + rows * headers * 5;
        let fits = rows <= ROWS_MAX && headers <= HEADERS_MAX && most <= BYTES_MAX;
        if !fits && self.rows > 0 {
            return false;
        }
        self.headers.extend(names().cloned());
        (self.rows, self.bytes) = (rows, bytes);
        true
    }
}

/// Where [`Away::state_part`] is.
#[derive(Default)]
pub struct StatePlace {
    plugins: Option<Vec<String>>,
    after: Option<Vec<u8>>,
}

fn under(
    journal: &dyn Journal,
    place: &'static [u8],
    prefix: &[u8],
) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> + use<> {
    let all = journal.positions(&[place, prefix].concat()).into_iter();
    all.filter_map(move |(key, value)| Some((key.strip_prefix(place)?.to_vec(), value)))
}

pub(super) fn local_plugin(plugin: &str) -> Arc<str> {
    format!("{PLUGIN}{plugin}").into()
}

/// Removals and expiries are values here: the primary has to hear of both.
fn local_state(writes: &StateWrites) -> StateWrites {
    let mut local = StateWrites::new(local_plugin(writes.plugin()));
    for op in writes.iter() {
        let value = op.value.map(|value| state_value(value, op.expiry)).unwrap_or_default();
        local.push(StateOp { key: op.key, value: Some(&value), expiry: None });
    }
    local
}

/// The same of positions.
fn local_position(key: &[u8], value: Vec<u8>) -> [(Vec<u8>, Vec<u8>); 2] {
    let gone = if value.is_empty() { vec![1] } else { Vec::new() };
    [([POSITION, key].concat(), value), ([GONE, key].concat(), gone)]
}

fn state(number: u64) -> (Vec<u8>, Vec<u8>) {
    (STATE.to_vec(), number.to_le_bytes().to_vec())
}

fn cursor_key(channel: &str) -> Vec<u8> {
    [CURSOR, channel.as_bytes()].concat()
}

/// u8 whether it expires, i64 when, the value. Little-endian.
fn state_value(value: &[u8], expiry: Option<i64>) -> Vec<u8> {
    let mut bytes = vec![u8::from(expiry.is_some())];
    bytes.extend(expiry.unwrap_or(0).to_le_bytes());
    bytes.extend(value);
    bytes
}

/// Value and expiry; `None`: removed.
pub(super) fn read_state_value(bytes: &[u8]) -> Option<(&[u8], Option<i64>)> {
    let (flag, rest) = bytes.split_first()?;
    let (expiry, value) = rest.split_first_chunk::<8>()?;
    Some((value, (*flag == 1).then(|| i64::from_le_bytes(*expiry))))
}
