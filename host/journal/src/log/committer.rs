//! The thread that writes: it reads the log once, appends groups of commits until they count, and cuts the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::commit::{self, encode_parts};
use super::encode::{hand_in, prepare};
use super::record::{Fault, Header, Kind, cut, decode};
use super::replay::{Recovered, Replay, newer};
use super::shared::{Entry, Opened, Phase, Queued, Shared, State};
use super::{Log, LogError};
use crate::api::{Ack, ChannelId, Commit, CommitError, ReaderId};
use crate::file::format::sealed::Sealer;
use crate::limits;
use crate::memory::new_id;
use crate::state::{StateOp, StateWrites};
use crate::view::{View, Walk};

/// Why the committer ends.
enum Stop {
    /// The journal is closed or dropped.
    Closed,
    /// Another writer has taken the log over.
    Fenced,
    /// It takes no more commits.
    Failed(String),
}

/// A cut that is due.
struct Trim {
    before: u64,
    next_try: Instant,
    is_told: bool,
}

/// A snapshot that goes with a group.
struct Snapshot {
    contents: Vec<Vec<u8>>,
    /// What is needed when it counts: from this place on, and bytes of the log before it.
    needed: Option<(u64, u64)>,
}

/// The committer's side of a journal.
pub(super) struct Committer {
    shared: Arc<Shared>,
    log: Box<dyn Log>,
    /// Tells this opening from those of others.
    session: u64,
    journal: [u8; 16],
    sealer: Option<Arc<Sealer>>,
    /// Number of the last commit that counts.
    number: u64,
    /// A place behind everything that counts, and not behind what comes.
    end: u64,
    /// Bytes of the log up to there.
    log_bytes: u64,
    /// Bytes of it that were cut, or are to be.
    trimmed_bytes: u64,
    /// Of the last snapshot.
    snapshot_bytes: u64,
    /// What was taken from the queue and has no answer.
    group: Vec<Queued>,
    trim: Option<Trim>,
    swept: Instant,
    retry: Duration,
    is_done: bool,
}

impl Committer {
    pub fn new(shared: Arc<Shared>, log: Box<dyn Log>) -> Committer {
        let id = u128::from_le_bytes(new_id(shared.clock.as_ref()));
        let (now, retry) = (shared.clock.now(), shared.config.retry_first);
        Committer {
            shared,
            log,
            session: id as u64,
            journal: id.to_le_bytes(),
            sealer: None,
            number: 0,
            end: 0,
            log_bytes: 0,
            trimmed_bytes: 0,
            snapshot_bytes: 0,
            group: Vec::new(),
            trim: None,
            swept: now,
            retry,
            is_done: false,
        }
    }

    /// Runs until the journal closes and everything handed in counts, or cannot be made to.
    pub fn run(mut self) {
        let stop = self.work().err().unwrap_or(Stop::Closed);
        self.finish(stop);
    }

    fn work(&mut self) -> Result<(), Stop> {
        self.begin()?;
        while self.take_group() {
            if self.group.is_empty() {
                self.idle();
                continue;
            }
            let snapshot = self.snapshot()?;
            self.settle(snapshot)?;
            self.trim();
        }
        Ok(())
    }

    /// Reads the log, and says in it that this session begins. Whoever wrote until then is taken over, and what he wrote in between is
    /// read again.
    fn begin(&mut self) -> Result<(), Stop> {
        loop {
            match self.begin_once() {
                Err(Stop::Fenced) => self.group.clear(),
                other => return other,
            }
        }
    }

    fn begin_once(&mut self) -> Result<(), Stop> {
        let shared = self.shared.clone();
        let config = &shared.config;
        let recovered = loop {
            shared.view.clear();
            let mut replay = Replay::new(&config.name, config.channels.clone(), &config.keys);
            let mut take = |place: u64, record: &[u8]| replay.take(&shared.view, place, record);
            let opened = self.log.open(0, &|| shared.gives_up(), &mut take);
            match opened {
                Ok(end) => {
                    self.end = end;
                    break replay.finish();
                }
                Err(error) => self.pause(error)?,
            }
        };
        self.journal = recovered.journal.unwrap_or_else(|| new_id(shared.clock.as_ref()));
        let sealer = config.keys.writing().map(|key| Sealer::new(key, u128::from_le_bytes(self.journal)));
        self.sealer = sealer.transpose().map_err(|error| Stop::Failed(error.to_string()))?.map(Arc::new);
        (self.number, self.log_bytes) = (recovered.last, recovered.log_bytes);
        let acks = all_acks(&recovered);
        let first = prepare(&shared, self.sealer.as_deref(), Commit { acks, ..Commit::default() });
        let first = first.map_err(|error| Stop::Failed(error.to_string()))?;
        {
            let mut state = shared.state.lock();
            install(&mut state, recovered);
            hand_in(&mut state, first);
            self.group.extend(state.queue.drain(..));
        }
        self.settle(None)?;
        let opened = Opened { journal: self.journal, sealer: self.sealer.clone() };
        let mut state = shared.state.lock();
        state.opened = Some(opened);
        let (commits, bytes) = (state.figures.last_commit, state.figures.segment_bytes);
        drop(state);
        tracing::info!(log = config.name, commits, bytes, "opened");
        shared.changed.notify_all();
        Ok(())
    }

    /// The next commits, up to a bound; none after a while without. False: the journal closes, and nothing is left.
    fn take_group(&mut self) -> bool {
        let shared = self.shared.clone();
        let mut state = shared.state.lock();
        if state.queue.is_empty() && state.phase == Phase::Open {
            shared.work.wait_for(&mut state, limits::LOG_TICK);
        }
        if state.gives_up(shared.clock.now()) {
            return false;
        }
        let mut bytes = 0;
        while let Some(next) = state.queue.front() {
            if !self.group.is_empty() && bytes + next.bytes() > limits::LOG_GROUP_BYTES {
                break;
            }
            bytes += next.bytes();
            self.group.extend(state.queue.pop_front());
        }
        !self.group.is_empty() || state.phase == Phase::Open
    }

    /// What is done while nothing is to be appended.
    fn idle(&mut self) {
        self.log.idle();
        self.trim();
        let now = self.shared.clock.now();
        if now.saturating_duration_since(self.swept) >= limits::STATE_SWEEP_EVERY {
            self.swept = now;
            self.shared.view.sweep_some(self.shared.clock.wall_ns(), &mut |_, _| {});
        }
    }

    /// Whether a snapshot is due.
    fn is_due(&self, state: &State) -> bool {
        let needed = state.first_needed().map_or(self.log_bytes, |entry| entry.log_bytes);
        let garbage = needed.saturating_sub(self.trimmed_bytes);
        let least = self.snapshot_bytes.saturating_mul(2);
        let config = &self.shared.config;
        let bound = if state.is_all_acknowledged() { config.snapshot_bytes } else { config.garbage_bytes };
        garbage > bound.max(least)
    }

    /// A snapshot for the group, if one is due: then all that is handed in belongs to the group, and the snapshot is of that.
    fn snapshot(&mut self) -> Result<Option<Snapshot>, Stop> {
        let shared = self.shared.clone();
        if !self.is_due(&shared.state.lock()) {
            return Ok(None);
        }
        let view = shared.view.view().lock();
        let mut state = shared.state.lock();
        self.group.extend(state.queue.drain(..));
        let plugins = writes(&view, shared.clock.wall_ns());
        let contents = encode_parts(&state.registers, &plugins, self.sealer.as_deref());
        let needed = state.first_needed().map(|entry| (entry.place, entry.log_bytes));
        drop((state, view));
        let contents = contents.map_err(|error| Stop::Failed(error.to_string()))?;
        Ok(Some(Snapshot { contents, needed }))
    }

    /// Makes the group count.
    fn settle(&mut self, snapshot: Option<Snapshot>) -> Result<(), Stop> {
        let shared = self.shared.clone();
        let mut records = self.records(snapshot.as_ref());
        let end = loop {
            let begun = shared.clock.now();
            shared.state.lock().appending = Some(begun);
            let appended = self.log.append(&records, &|| shared.gives_up());
            let took = shared.clock.now().saturating_duration_since(begun);
            {
                let mut state = shared.state.lock();
                state.appending = None;
                state.figures.write_ns += took.as_nanos() as u64;
            }
            match appended {
                Ok(end) => break end,
                Err(error) => self.pause(error)?,
            }
            let (end, counts) = self.reopen()?;
            if counts {
                tracing::info!(log = shared.config.name, "what was appended in doubt counts");
                break end;
            }
            self.end = end;
            // It may take smaller records by now.
            records = self.records(snapshot.as_ref());
        };
        self.counted(&records, snapshot, end);
        Ok(())
    }

    fn records(&self, snapshot: Option<&Snapshot>) -> Vec<Vec<u8>> {
        let room = self.log.record_bytes_max();
        let (session, journal, is_sealed) = (self.session, self.journal, self.sealer.is_some());
        let header = |kind: Kind, number: u64| {
            let (index, pieces) = (0, 0);
            Header { kind, is_sealed, session, number, journal, index, pieces }
        };
        let mut records = Vec::new();
        for queued in &self.group {
            let content = commit::encode(&queued.head, &queued.data);
            records.extend(cut(&header(Kind::Commit, queued.number), &content, room));
        }
        if let Some(snapshot) = snapshot {
            let last = self.group.last().map_or(self.number, |queued| queued.number);
            let header = header(Kind::Snapshot, last);
            records.extend(snapshot.contents.iter().flat_map(|content| cut(&header, content, room)));
        }
        records
    }

    /// Opens the log again; where it ends, and whether the group counts.
    fn reopen(&mut self) -> Result<(u64, bool), Stop> {
        let shared = self.shared.clone();
        loop {
            let (mut is_other, mut counts) = (false, false);
            let (session, number) = (self.session, self.number);
            let mut take = |place: u64, record: &[u8]| {
                match decode(record) {
                    Ok((header, _)) | Err(Fault::Damaged(Some(header))) => {
                        is_other |= header.session != session && header.number > number;
                        counts |= header.session == session && header.number > number;
                    }
                    Err(Fault::Newer(version)) => return Err(newer(&shared.config.name, place, version)),
                    Err(Fault::Foreign | Fault::Damaged(None)) => {}
                }
                Ok(())
            };
            let opened = self.log.open(self.end, &|| shared.gives_up(), &mut take);
            match opened {
                Ok(_) if is_other => return Err(Stop::Fenced),
                Ok(end) => return Ok((end, counts)),
                Err(error) => self.pause(error)?,
            }
        }
    }

    /// The group counts.
    fn counted(&mut self, records: &[Vec<u8>], snapshot: Option<Snapshot>, end: u64) {
        let bytes: u64 = records.iter().map(|record| record.len() as u64).sum();
        let (place, log_bytes) = (self.end, self.log_bytes);
        let group = std::mem::take(&mut self.group);
        self.number = group.last().map_or(self.number, |queued| queued.number);
        (self.end, self.log_bytes) = (end, log_bytes + bytes);
        if let Some(snapshot) = snapshot {
            let (before, trimmed) = snapshot.needed.unwrap_or((place, log_bytes));
            let contents = snapshot.contents.iter().map(|content| content.len() as u64);
            (self.snapshot_bytes, self.trimmed_bytes) = (contents.sum(), trimmed.min(log_bytes));
            self.trim =
                Some(Trim { before: before.min(place), next_try: self.shared.clock.now(), is_told: false });
        }
        {
            let mut state = self.shared.state.lock();
            for queued in &group {
                state.queue_bytes = state.queue_bytes.saturating_sub(queued.bytes());
                publish(&mut state, queued, place, log_bytes);
            }
            let figures = &mut state.figures;
            figures.last_commit = self.number;
            figures.commits += group.len() as u64;
            figures.syncs += 1;
            figures.bytes_written += bytes;
            figures.segment_bytes = self.log_bytes - self.trimmed_bytes;
            if state.waiting_for.take().is_some() {
                tracing::info!(log = self.shared.config.name, "the log works again");
            }
        }
        self.retry = self.shared.config.retry_first;
        group.iter().for_each(|queued| queued.cell.answer(Ok(queued.number)));
        self.shared.changed.notify_all();
    }

    /// Cuts the log, if that is due.
    fn trim(&mut self) {
        let now = self.shared.clock.now();
        let Some(trim) = self.trim.as_mut().filter(|trim| trim.next_try <= now) else { return };
        match self.log.trim(trim.before) {
            Ok(()) => self.trim = None,
            Err(error) => {
                trim.next_try = now + limits::LOG_TRIM_RETRY;
                if !std::mem::replace(&mut trim.is_told, true) {
                    let log = &self.shared.config.name;
                    tracing::warn!(log, "what nobody needs any more stays in the log: {error}");
                }
            }
        }
    }

    /// The log did not do what it was asked: says so, and waits a little, if it may be asked again.
    fn pause(&mut self, error: LogError) -> Result<(), Stop> {
        let reason = match error {
            LogError::Final(reason) => return Err(Stop::Failed(reason)),
            LogError::Unknown(reason) => reason,
        };
        let shared = &self.shared;
        let until = shared.clock.now() + self.retry;
        self.retry = (self.retry * 2).min(limits::LOG_RETRY_MAX);
        let mut state = shared.state.lock();
        if state.waiting_for.replace(reason.clone()).is_none() {
            tracing::error!(log = shared.config.name, "{reason}");
        } else {
            tracing::debug!(log = shared.config.name, "{reason}");
        }
        loop {
            let now = shared.clock.now();
            if state.gives_up(now) {
                return Err(Stop::Closed);
            }
            let left = until.saturating_duration_since(now);
            if left.is_zero() {
                return Ok(());
            }
            shared.work.wait_for(&mut state, left);
        }
    }

    /// Whoever waits is answered.
    fn finish(&mut self, stop: Stop) {
        self.is_done = true;
        let log = &self.shared.config.name;
        let failure = match stop {
            Stop::Closed => None,
            Stop::Failed(reason) => Some(reason),
            Stop::Fenced => Some(format!(
                "{log}: fenced: another agent with the same name runs the same pipeline, and has taken the log over; give each agent a \
                 name of its own"
            )),
        };
        let mut state = self.shared.state.lock();
        match failure {
            Some(reason) => {
                tracing::error!(log, "{reason}");
                state.phase = Phase::Failed(reason.into());
            }
            None if state.phase != Phase::Dropped => state.phase = Phase::Closed,
            None => {}
        }
        let error = state.check_open().err().unwrap_or(CommitError::Closing);
        let left: Vec<Queued> = self.group.drain(..).chain(state.queue.drain(..)).collect();
        // What an opening writes was handed in by nobody.
        state.is_unfinished = state.opened.is_some() && !left.is_empty();
        drop(state);
        left.iter().for_each(|queued| queued.cell.answer(Err(error.clone())));
        self.shared.changed.notify_all();
    }
}

impl Drop for Committer {
    /// A panic (a bug) leaves nobody waiting for ever.
    fn drop(&mut self) {
        if !self.is_done {
            self.finish(Stop::Failed("the committer panicked (a bug of Flumen)".into()));
        }
    }
}

/// The cursors of all configured readers, so that the log knows them before they acknowledge.
fn all_acks(recovered: &Recovered) -> Vec<Ack> {
    let mut acks = Vec::new();
    for (channel, register) in recovered.registers.channels.iter().enumerate() {
        for (reader, known) in register.readers.iter().enumerate().filter(|(_, known)| known.live) {
            if register.live {
                let (channel, reader) = (ChannelId(id(channel)), ReaderId(id(reader)));
                acks.push(Ack { channel, reader, cursor: known.cursor });
            }
        }
    }
    acks
}

fn id(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}

/// Takes over what the log said.
fn install(state: &mut State, recovered: Recovered) {
    let Recovered { registers, index, last, damaged, .. } = recovered;
    for ((channel, index), register) in state.channels.iter_mut().zip(index).zip(&registers.channels) {
        (channel.index, channel.durable_head) = (index, register.head);
    }
    (state.registers, state.next_number, state.queue_bytes) = (registers, last.saturating_add(1), 0);
    state.figures.last_commit = last;
    state.figures.damaged_commits = damaged;
}

/// Events of a commit that counts can be read.
fn publish(state: &mut State, queued: &Queued, place: u64, log_bytes: u64) {
    for (at, put) in queued.head.puts.iter().enumerate() {
        for part in &put.channels {
            let Some(index) = queued.channels.get(part.channel as usize).copied() else { continue };
            let entry = Entry {
                commit: queued.number,
                put: at,
                first: part.first,
                rows: u64::from(put.rows),
                bytes_before: part.bytes_before,
                bytes: put.bytes,
                time_ns: queued.head.time_ns,
                place,
                log_bytes,
            };
            let needed = state.registers.channels.get(index).and_then(|register| register.needed());
            let Some(channel) = state.channels.get_mut(index) else { continue };
            channel.durable_head = entry.end();
            if channel.is_kept && needed.is_some_and(|needed| needed < entry.end()) {
                channel.index.push_back(entry);
            }
        }
    }
}

/// Everything that plugins remember, in parts.
fn writes(view: &View, now_ns: i64) -> Vec<StateWrites> {
    let mut parts: Vec<StateWrites> = Vec::new();
    let mut walk = Walk::default();
    let mut put = |plugin: &Arc<str>, op: StateOp<'_>| {
        let fits =
            |part: &&mut StateWrites| part.plugin() == plugin && part.bytes() < limits::STATE_BLOCK_BYTES;
        match parts.last_mut().filter(fits) {
            Some(part) => {
                part.push(op);
            }
            None => {
                let mut part = StateWrites::new(plugin.clone());
                part.push(op);
                parts.push(part);
            }
        }
    };
    while view.walk(&mut walk, now_ns, &mut put) {}
    parts
}
