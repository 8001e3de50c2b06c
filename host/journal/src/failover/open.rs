//! Opening a journal with a failover: the secondary first, since it says whether the primary's positions count.
//!
//! A secondary that is elsewhere may not be read yet ([`Journal::is_read`]). Then nobody waits for it here: who switches opens the
//! primary when it was, and until then everybody waits who asks or puts ([`Place::Opening`]).

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::commit::refused;
use super::state::{Channel, Identity, JOURNAL, NUMBER, NUMBER_ACKED, Open, Place, Shared, State};
use super::{Away, FailoverPlan, Health};
use crate::api::{ChannelSpec, Commit, CommitError, Journal, Ticket, Unsaved};
use crate::clock::Clock;
use crate::file::OpenError;
use crate::limits;
use crate::memory::new_id;

/// A file in the primary's directory by which a user says that another journal may be there than the one that was left.
pub const REPLACED: &str = "replaced";

/// Opens the primary's journal with channels, at the start and each time that it has failed: then with what was in its memory.
pub type Opener =
    Box<dyn Fn(Vec<ChannelSpec>, Option<Unsaved>) -> Result<Arc<dyn Journal>, OpenError> + Send + Sync>;

/// Whether the file [`REPLACED`] is there; takes it away, so that it counts once.
pub type Replaced = Box<dyn Fn() -> bool + Send + Sync>;

/// Whether the primary's disk is well; the argument says whether it has to have room.
pub type Probe = Box<dyn FnMut(bool) -> bool + Send>;

/// What a [`super::FailoverJournal`] is made of.
pub struct Parts {
    /// The pipeline's name, for the log.
    pub name: String,
    /// When.
    pub plan: FailoverPlan,
    /// The primary's directory.
    pub dir: PathBuf,
    /// The primary.
    pub opener: Opener,
    /// Whether another journal in its place is what the user wants.
    pub is_replaced: Replaced,
    /// Its channels, with its readers.
    pub channels: Vec<ChannelSpec>,
    /// So many of them, the first ones, are acknowledged late ([`Journal::acknowledges_late`]): those of a source-backed journal that are
    /// its own, and not the quarantine's. 0: it is no such journal.
    pub late: usize,
    /// Of its disk.
    pub probe: Probe,
    /// The secondary, open, with the channels of [`super::channel_spec`].
    pub secondary: Arc<dyn Journal>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// What the threads share, and the probe.
pub(super) fn open(parts: Parts) -> Result<(Arc<Shared>, Probe), OpenError> {
    let Parts { name, plan, dir, opener, is_replaced, channels, late, probe, secondary, clock } = parts;
    let names: Vec<String> = channels.iter().map(|channel| channel.name.clone()).collect();
    let lacks = || OpenError::io("the failover's journal")(std::io::Error::other("it lacks a channel"));
    let away = Away::new(secondary.clone(), &names, None).ok_or_else(lacks)?;
    let is_ending = Arc::new(AtomicBool::new(false));
    let ends = is_ending.clone();
    let away = away.until(move || ends.load(Ordering::Acquire));
    let shared = Shared {
        name,
        health: Health::new(&plan),
        is_disk_well: AtomicBool::new(false),
        unsaved: Mutex::default(),
        away,
        plan,
        dir,
        opener,
        is_replaced,
        clock,
        late,
        secondary,
        order: Mutex::new(()),
        state: Mutex::new(State::new(channels, late)),
        changed: Condvar::new(),
        is_ending,
    };
    if shared.secondary.is_read() {
        shared.begin()?;
    }
    Ok((Arc::new(shared), probe))
}

fn lost(error: CommitError) -> OpenError {
    OpenError::io("the failover's journal")(std::io::Error::other(error.to_string()))
}

/// Of the last commit that counts in the primary.
pub(super) fn last_number(journal: &dyn Journal) -> u64 {
    journal.position(NUMBER).and_then(|value| number(&value)).unwrap_or_default()
}

/// A number of a commit, of a position.
fn number(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_le_bytes)
}

impl State {
    fn new(channels: Vec<ChannelSpec>, late: usize) -> State {
        let channel = |spec: ChannelSpec| {
            let readers = spec.readers.iter().map(|name| (name.clone(), true)).collect();
            Channel { spec, readers }
        };
        State {
            channels: channels.into_iter().map(channel).collect(),
            place: Place::Opening,
            primary: None,
            is_dead: true,
            generation: 0,
            late,
            is_counted: false,
            heard: BTreeMap::new(),
            identity: None,
            number: 0,
            acked: BTreeMap::new(),
            flights: VecDeque::new(),
            acks: VecDeque::new(),
            held: VecDeque::new(),
            undecided: Vec::new(),
            failovers: 0,
            reason: None,
            failed: None,
            is_closing: false,
        }
    }
}

impl Shared {
    /// The secondary was read: opens the primary, or goes on without it if its positions are in the secondary.
    fn begin(&self) -> Result<(), OpenError> {
        let is_away = self.away.is_open();
        self.away.reopen().map_err(lost)?;
        if is_away {
            // A secondary of an earlier release says nothing of it.
            let known = self.secondary.position(JOURNAL);
            self.state.lock().identity = known.map(|name| Identity { name, written: None });
            self.health.has_failed();
        }
        let reason = match self.open_primary() {
            Ok(()) => None,
            // Its positions are in the secondary, so the sources can begin.
            Err(error @ OpenError::Io { .. }) if is_away => {
                let kind = self.plan.kind.word();
                tracing::error!(pipeline = self.name, "{error}: events go on to {kind}");
                Some(error.to_string())
            }
            Err(error) => return Err(error),
        };
        let mut state = self.state.lock();
        state.place = if is_away { Place::Away } else { Place::Home };
        state.reason = reason;
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Begins when the secondary was read, if it was not when the journal was opened. Nobody can be told any more what is wrong with the
    /// primary, so it is in `status`, and tried again. False: the journal closes, or has failed.
    pub fn begin_late(&self) -> bool {
        let mut tried: Option<Instant> = None;
        loop {
            if self.state.lock().place != Place::Opening {
                return true;
            }
            if self.secondary.is_over() {
                self.lost(&CommitError::Failed("it ended before it was read".into()));
            }
            if self.wait_end(limits::FAILOVER_TICK) {
                return false;
            }
            let is_due = tried.is_none_or(|tried| tried.elapsed() >= self.plan.check_interval);
            if !is_due || !self.secondary.is_read() {
                continue;
            }
            tried = Some(Instant::now());
            match self.begin() {
                Ok(()) => tracing::info!(pipeline = self.name, "the failover was read: events go on"),
                Err(error) => self.tell(error.to_string()),
            }
        }
    }

    /// Why the primary cannot be opened, in the log if that is news.
    pub fn tell(&self, reason: String) {
        let before = self.state.lock().reason.replace(reason.clone());
        if before.as_ref() != Some(&reason) {
            tracing::error!(pipeline = self.name, "{reason}");
        }
    }

    /// Opens the primary's journal, the first time or once more.
    fn open_primary(&self) -> Result<(), OpenError> {
        let (old, specs, generation) = {
            let state = self.state.lock();
            let live = |channel: &Channel| {
                let readers = channel.readers.iter().filter(|(_, live)| *live);
                ChannelSpec {
                    readers: readers.map(|(name, _)| name.clone()).collect(),
                    ..channel.spec.clone()
                }
            };
            let specs = state.channels.iter().map(live).collect();
            (state.primary.clone(), specs, state.generation + 1)
        };
        // It has failed, and says so again.
        if let Some(Err(error)) = old.as_ref().map(|old| old.journal.close()) {
            tracing::debug!(pipeline = self.name, "closing the journal that failed: {error}");
        }
        // In memory until an opening has succeeded, and taken everything.
        let unsaved = self.unsaved.lock().clone();
        let unsaved = unsaved.or_else(|| old.as_ref().and_then(|old| old.journal.unsaved()));
        let journal = (self.opener)(specs, unsaved)?;
        let identity = self.recognise(journal.as_ref())?;
        let is_counted = journal.is_read();
        let last = if is_counted { last_number(journal.as_ref()) } else { 0 };
        let acked = if self.late > 0 { Vec::new() } else { journal.positions(NUMBER_ACKED) };
        let acked = acked.into_iter().filter_map(|(key, value)| Some((key, number(&value)?)));
        let acked: BTreeMap<Vec<u8>, u64> = acked.collect();
        let lacks = || OpenError::io("the journal")(std::io::Error::other("it lacks a channel"));
        let open = Open::new(journal, generation, &self.state.lock().channels).ok_or_else(lacks)?;
        let sent = self.send_again(&open, last)?;
        let mut state = self.state.lock();
        state.settle_flights(last, sent);
        state.generation = generation;
        state.number = state.number.max(last);
        state.is_counted = is_counted;
        state.identity = identity;
        // Of what was under way it has some: once more, an older position would come over a newer one.
        for flight in std::mem::take(&mut state.held) {
            if state.is_late(&flight.commit) {
                flight.cell.answer(Err(refused()));
                continue;
            }
            let last = acked.get(&state.acked_key(&flight.commit));
            match flight.number.filter(|number| last.is_some_and(|last| number <= last)) {
                Some(number) => flight.cell.answer(Ok(number)),
                None => state.held.push_back(flight),
            }
        }
        for (key, last) in acked {
            let known = state.acked.entry(key).or_default();
            *known = last.max(*known);
        }
        state.undecided.clear();
        open.bound(&state.channels);
        state.primary = Some(open);
        state.is_dead = false;
        drop(state);
        *self.unsaved.lock() = None;
        self.changed.notify_all();
        Ok(())
    }

    /// What was on its way to the primary when that failed, and found no room in the secondary: what this opening lacks of it is handed in once
    /// more, in its order, before anybody sees the opening. So nobody finds less in it than what was handed in. After an error nobody sees it,
    /// and its number says the next time what has come of it.
    fn send_again(&self, open: &Open, last: u64) -> Result<BTreeMap<u64, Arc<dyn Ticket>>, OpenError> {
        let missing = self.state.lock().missing(last);
        if missing.is_empty() {
            return Ok(BTreeMap::new());
        }
        let failed = |reason: String| OpenError::io("the channel's journal")(std::io::Error::other(reason));
        if !open.journal.is_read() {
            return Err(failed("a destination has not said yet what became of a promise".into()));
        }
        open.unbound();
        let now = self.clock.now();
        let send = |(number, commit): &(u64, Commit)| {
            let commit = open.localise(commit, Some((NUMBER, *number)));
            open.journal.commit(commit, Some(now)).map(|ticket| (*number, ticket.into()))
        };
        let sent: Result<BTreeMap<u64, Arc<dyn Ticket>>, CommitError> = missing.iter().map(send).collect();
        sent.map_err(|error| {
            // It may have some of that in its memory, and says so.
            if let Err(error) = open.journal.close() {
                tracing::debug!(pipeline = self.name, "closing what did not take everything: {error}");
            }
            *self.unsaved.lock() = open.journal.unsaved();
            failed(error.to_string())
        })
    }

    /// The primary has failed: perhaps its disk is well by now.
    pub fn open_again(&self) {
        match self.open_primary() {
            Ok(()) => {
                self.state.lock().reason = Some("the disk of the channel is being probed".into());
                tracing::info!(pipeline = self.name, "the journal of the channel is open again");
            }
            Err(error) => self.tell(error.to_string()),
        }
    }

    /// A destination has said by now what became of a promise: the primary says what counts. Nothing is withheld before, so the name that it
    /// may lack is in no promise.
    pub fn count(&self) {
        let (open, known) = {
            let state = self.state.lock();
            let open = state.alive().filter(|_| !state.is_counted).cloned();
            (open, state.identity.clone())
        };
        let Some(open) = open.filter(|open| open.journal.is_read()) else { return };
        let identity = known.or_else(|| self.name_it(open.journal.as_ref()));
        let last = last_number(open.journal.as_ref());
        let mut state = self.state.lock();
        if state.alive().is_some_and(|now| now.generation == open.generation) {
            state.identity = identity;
            state.number = state.number.max(last);
            state.is_counted = true;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Gives the primary a name.
    fn name_it(&self, journal: &dyn Journal) -> Option<Identity> {
        let name = new_id(self.clock.as_ref()).to_vec();
        let commit = Commit { positions: vec![(JOURNAL.to_vec(), name.clone())], ..Commit::default() };
        // One that takes nothing fails with the next commit.
        let ticket = journal.commit(commit, None).ok()?;
        Some(Identity { name, written: Some(ticket.into()) })
    }

    /// Whether this is the journal that events are to go back to; its name. A directory in which there is none gets a new one, and with
    /// events moved there the old one's would be left behind, and their sources go on from where that one says.
    fn recognise(&self, journal: &dyn Journal) -> Result<Option<Identity>, OpenError> {
        let (expected, is_first) = {
            let state = self.state.lock();
            let expected = state.identity.as_ref().and_then(Identity::known).map(<[u8]>::to_vec);
            (expected, state.generation == 0)
        };
        let found = journal.position(JOURNAL);
        if expected.is_some() && found != expected {
            // Later sinks have cursors of the other one.
            if !(is_first && (self.is_replaced)()) {
                return Err(self.another(found.is_none()));
            }
            tracing::warn!(pipeline = self.name, dir = %self.dir.display(),
                "the journal of the channel was replaced, as its user says");
            self.away.set_own(JOURNAL, Vec::new()).map_err(lost)?;
        }
        if let Some(name) = found {
            return Ok(Some(Identity { name, written: None }));
        }
        // It takes nothing before a promise is decided.
        Ok(if journal.is_read() { self.name_it(journal) } else { None })
    }

    fn another(&self, is_new: bool) -> OpenError {
        let dir = self.dir.display();
        let (kind, hint) =
            if is_new { ("a new one", " (is its disk mounted?)") } else { ("another one", "") };
        let reason = format!(
            "it is {kind}, not the one that the failover stands in for{hint}: events stay in the failover. Mount the disk again; \
             if it is gone for good, with the events in it, stop the agent, make the file {dir}/{REPLACED}, and start it"
        );
        OpenError::io(format!("the journal in {dir}"))(std::io::Error::other(reason))
    }
}
