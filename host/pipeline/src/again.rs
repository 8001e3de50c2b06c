//! Puts events that are still in a journal's files to a channel once more, because an operator asks for it.
//!
//! The events keep their identity; they are new events of the channel, so its sinks deliver them again. Each commit holds some of them
//! and how far the request is: the position `again/` and the request's words. So a request that was cut short (a crash, a stop) and is
//! asked for again in the same words goes on where it was, and no event is put twice by it. What words mean changes with time (`2h` ago,
//! the channel's end, which the request itself moves), so the position has the bounds that they had at the beginning, and these count
//! until the last commit, which removes the position. An operator can also give it up.
//!
//! Constraints: it reads the files as a tool does ([`flumen_journal::inspect`]) and holds nothing back: what every reader has acknowledged
//! may be deleted meanwhile, and is counted as missing.

use std::time::{Duration, Instant};

use arrow_array::StringArray;
use flumen_event::Batch;
use flumen_journal::inspect::{InspectError, Inspector};
use flumen_journal::{ChannelId, Commit, CommitError, Journal, Put};
use serde::{Deserialize, Serialize};

use crate::replay::HEADER_TO;

/// The prefix of the positions of requests under way.
pub const POSITIONS: &[u8] = b"again/";

/// The prefix of those that earlier releases left. Their keys have bounds instead of words: no command finds them.
const POSITIONS_OLD: &[u8] = b"again/{";

/// How long a put waits for room in a channel before it is looked whether the agent stops.
const ROOM: Duration = Duration::from_millis(200);

/// Which events of a channel: what an operator's words meant when they were given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// The number of the first.
    pub from: u64,
    /// The number behind the last.
    pub until: u64,
    /// Only events of this time or later, ns since the Unix epoch.
    pub since: Option<i64>,
    /// Only events before this time.
    pub before: Option<i64>,
}

/// The words for the bounds, as they were given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    /// The range of numbers.
    pub number: Option<String>,
    /// The earliest time.
    pub since: Option<String>,
    /// The time that all are before.
    pub before: Option<String>,
}

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Again {
    /// The channel whose events are meant.
    pub channel: String,
    /// What the words mean now.
    #[serde(flatten)]
    pub bounds: Bounds,
    /// With channels and sink they tell whether this is the request that was cut short.
    pub words: Words,
    /// The channel that they enter.
    pub to: String,
    /// The only sink that gets them; `None`: all that read the channel.
    pub sink: Option<String>,
    /// Nothing is put: what was begun in these words is not gone on with.
    #[serde(default)]
    pub gives_up: bool,
}

/// How far a request is, or what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgainReport {
    /// Events that were put.
    pub events: u64,
    /// Of these, events that were put before it was cut short.
    pub before: u64,
    /// Events of the range that are not in the journal any more.
    pub missing: u64,
    /// The bounds of the request that was cut short, and that this one went on with or gave up; `None`: there was none.
    #[serde(default)]
    pub went_on: Option<Bounds>,
}

/// Why it did not come to its end. Asked for again in the same words, it goes on where it was.
#[derive(Debug, thiserror::Error)]
pub enum AgainError {
    /// The journal has no such channel.
    #[error("the pipeline has no channel {0:?}")]
    NoChannel(String),
    /// Its files cannot be read.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// It takes no more.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The agent stops.
    #[error("the agent is stopping; the same command goes on where this one was")]
    Stopped,
    /// Events that do not fit into a batch with the header that names their sink.
    #[error("events from number {0} on cannot be addressed to a sink: {1}")]
    Address(u64, flumen_event::BatchError),
}

/// What a request has done: its position's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What its words meant at the beginning.
    #[serde(flatten)]
    pub bounds: Bounds,
    /// The number behind the last event that was looked at.
    pub cursor: u64,
    /// Events that were put.
    pub events: u64,
    /// Events before the cursor that were not in the journal any more.
    pub missing: u64,
}

impl Progress {
    fn begin(bounds: Bounds) -> Progress {
        Progress { bounds, cursor: bounds.from, events: 0, missing: 0 }
    }

    /// Of a position's value. `None`: another release wrote it, in a form that says something else.
    pub fn read(value: &[u8]) -> Option<Progress> {
        serde_json::from_slice(value).ok()
    }
}

impl Again {
    /// The key of its position: its own words. What they mean is not in it, or the next command would have another one.
    pub fn key(&self) -> Vec<u8> {
        let Words { number, since, before } = &self.words;
        let words = (&self.channel, &self.to, &self.sink, number, since, before);
        // A list of strings is always JSON.
        [POSITIONS, &serde_json::to_vec(&words).unwrap_or_default()].concat()
    }
}

impl Bounds {
    /// The rows of a batch that are meant; `first` is the number of its first row.
    pub fn rows(&self, batch: &Batch, first: u64) -> Vec<u32> {
        let is_meant = |(row, time): &(u32, i64)| {
            (self.from..self.until).contains(&(first + u64::from(*row)))
                && self.since.is_none_or(|since| *time >= since)
                && self.before.is_none_or(|before| *time < before)
        };
        (0..).zip(batch.time().values().iter().copied()).filter(is_meant).map(|(row, _)| row).collect()
    }
}

/// Carries a request out, on a journal that is open, reading its files beside it.
pub fn put_again(
    journal: &dyn Journal,
    files: &Inspector,
    request: &Again,
    stops: &dyn Fn() -> bool,
) -> Result<AgainReport, AgainError> {
    let key = request.key();
    let begun = journal.position(&key).and_then(|value| Progress::read(&value));
    let went_on = begun.as_ref().map(|begun| begun.bounds);
    let mut progress = begun.unwrap_or_else(|| Progress::begin(request.bounds));
    let before = progress.events;
    // What is given up may have been for a channel that is gone.
    if !request.gives_up {
        let to = journal.channel(&request.to).ok_or_else(|| AgainError::NoChannel(request.to.clone()))?;
        put_rest(journal, files, (request, key.as_slice(), to), &mut progress, stops)?;
    }
    end(journal, key, stops)?;
    Ok(AgainReport { events: progress.events, before, missing: progress.missing, went_on })
}

/// What is behind the cursor, with the cursor.
fn put_rest(
    journal: &dyn Journal,
    files: &Inspector,
    (request, key, to): (&Again, &[u8], ChannelId),
    progress: &mut Progress,
    stops: &dyn Fn() -> bool,
) -> Result<(), AgainError> {
    let bounds = progress.bounds;
    for rows in files.events(&request.channel, progress.cursor)? {
        let rows = rows?;
        if rows.first >= bounds.until {
            break;
        }
        progress.missing += rows.missing_before;
        progress.cursor = (rows.first + rows.batch.rows() as u64).min(bounds.until);
        let meant = bounds.rows(&rows.batch, rows.first);
        if meant.is_empty() {
            continue;
        }
        progress.events += meant.len() as u64;
        let address = |error| AgainError::Address(rows.first, error);
        let mut batch = rows.batch.take(&meant.into()).map_err(address)?;
        if let Some(sink) = &request.sink {
            let values = StringArray::from_iter_values(std::iter::repeat_n(sink, batch.rows()));
            batch = batch.with_header(HEADER_TO, values).map_err(address)?;
        }
        let value = serde_json::to_vec(&*progress).unwrap_or_default();
        let puts = vec![Put { channels: vec![to], batch }];
        commit(journal, Commit { puts, positions: vec![(key.to_vec(), value)], ..Commit::default() }, stops)?;
    }
    // What is behind the last event that is there.
    progress.missing += bounds.until.saturating_sub(progress.cursor);
    Ok(())
}

/// Removes the position, and those that nobody would remove.
fn end(journal: &dyn Journal, key: Vec<u8>, stops: &dyn Fn() -> bool) -> Result<(), AgainError> {
    let old = journal.positions(POSITIONS_OLD);
    if !old.is_empty() {
        tracing::warn!("{} replays that an earlier release did not end are given up", old.len());
    }
    let keys = std::iter::once(key).chain(old.into_iter().map(|(key, _)| key));
    let positions = keys.map(|key| (key, Vec::new())).collect();
    commit(journal, Commit { positions, ..Commit::default() }, stops)
}

/// Commits, and waits until it is durable or the agent stops.
pub(crate) fn commit(
    journal: &dyn Journal,
    commit: Commit,
    stops: &dyn Fn() -> bool,
) -> Result<(), AgainError> {
    let ticket = loop {
        match journal.commit(commit.clone(), Some(Instant::now() + ROOM)) {
            Err(CommitError::Full { .. }) if !stops() => {}
            Err(CommitError::Full { .. }) => return Err(AgainError::Stopped),
            other => break other?,
        }
    };
    loop {
        match ticket.wait(Some(ROOM)) {
            Some(outcome) => return Ok(outcome.map(|_| ())?),
            None if stops() => return Err(AgainError::Stopped),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flumen_event::BatchBuilder;
    use flumen_journal::{ChannelSpec, FileConfig, FileJournal, OsClock, OsDisk};

    use super::*;

    struct World {
        _dir: tempfile::TempDir,
        journal: Arc<FileJournal>,
        files: Inspector,
    }

    /// 50 events in `main`, ten to a put; their times are their numbers. `second` is full with 10.
    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let spec = |name: &str, capacity_events| ChannelSpec {
            name: name.into(),
            readers: vec!["reader".into()],
            capacity_events,
            capacity_bytes: u64::MAX,
        };
        let config = FileConfig { dir: dir.path().to_owned(), ..FileConfig::default() };
        let specs = vec![spec("main", u64::MAX), spec("second", 10)];
        let journal = FileJournal::open(config, specs, Arc::new(OsDisk), Arc::new(OsClock)).unwrap();
        let files = Inspector::open(Arc::new(OsDisk), dir.path()).unwrap();
        let world = World { _dir: dir, journal, files };
        (0..5).for_each(|put| world.put(put * 10));
        world
    }

    impl World {
        fn put(&self, from: u64) {
            let mut builder = BatchBuilder::default();
            (from..from + 10).for_each(|number| builder.push(1, number, number as i64, b"x"));
            let channels = vec![self.journal.channel("main").unwrap()];
            let puts = vec![Put { channels, batch: builder.finish(vec![]).unwrap() }];
            self.journal.commit_and_wait(Commit { puts, ..Commit::default() }, None).unwrap();
        }

        fn head(&self, channel: usize) -> u64 {
            self.journal.status().channels[channel].head
        }

        fn run(&self, request: &Again) -> Result<AgainReport, AgainError> {
            let is_full = || {
                let status = self.journal.status();
                let channel = &status.channels[1];
                channel.events >= channel.capacity_events
            };
            put_again(self.journal.as_ref(), &self.files, request, &is_full)
        }

        /// Puts until `second` is full, which then has room, and `main` has more.
        fn cut_short(&self, request: &Again) -> u64 {
            assert!(matches!(self.run(request), Err(AgainError::Stopped)));
            self.journal.set_capacity(self.journal.channel("second").unwrap(), u64::MAX, u64::MAX);
            self.put(50);
            self.head(1)
        }
    }

    fn request(bounds: Bounds) -> Again {
        let words = Words { since: Some("2h".into()), ..Words::default() };
        let (channel, to) = ("main".into(), "second".into());
        Again { channel, bounds, words, to, sink: None, gives_up: false }
    }

    fn first() -> Bounds {
        Bounds { from: 0, until: 50, since: Some(5), before: None }
    }

    /// What the same words mean later.
    fn later() -> Bounds {
        Bounds { from: 3, until: 60, since: Some(8), before: None }
    }

    #[test]
    fn the_same_words_go_on_with_the_bounds_of_the_beginning_and_then_begin_anew() {
        let world = world();
        let before = world.cut_short(&request(first()));
        assert_eq!(before, 15);
        let done = world.run(&request(later())).unwrap();
        assert_eq!(done, AgainReport { events: 45, before, missing: 0, went_on: Some(first()) });
        assert_eq!((world.head(1), world.journal.positions(POSITIONS)), (45, vec![]));
        let done = world.run(&request(later())).unwrap();
        assert_eq!(done, AgainReport { events: 52, ..AgainReport::default() });
        assert_eq!(world.head(1), 45 + 52);
    }

    fn is_other(change: impl Fn(&mut Again)) -> bool {
        let mut other = request(first());
        change(&mut other);
        other.key() != request(first()).key()
    }

    #[test]
    fn other_words_are_another_request() {
        let world = world();
        world.cut_short(&request(first()));
        assert!(is_other(|it| it.channel = "second".into()));
        assert!(is_other(|it| it.to = "main".into()));
        assert!(is_other(|it| it.sink = Some("2h".into())));
        assert!(is_other(|it| it.words.since = None));
        assert!(is_other(|it| it.words = Words { before: Some("2h".into()), ..Words::default() }));
        assert!(is_other(|it| it.words.number = Some("0..50".into())));
        assert!(!is_other(|it| it.bounds = later()));
        let words = Words { number: Some("0..50".into()), ..Words::default() };
        let done = world.run(&Again { words, ..request(first()) }).unwrap();
        assert_eq!((done.events, done.before, done.went_on), (45, 0, None));
        assert_eq!(world.journal.positions(POSITIONS).len(), 1, "the other one is still there");
    }

    #[test]
    fn what_is_given_up_is_not_gone_on_with() {
        let world = world();
        let before = world.cut_short(&request(first()));
        let given_up = world.run(&Again { gives_up: true, ..request(later()) }).unwrap();
        assert_eq!((given_up.events, given_up.before, given_up.went_on), (before, before, Some(first())));
        assert_eq!((world.head(1), world.journal.positions(POSITIONS)), (before, vec![]));
        let done = world.run(&request(later())).unwrap();
        assert_eq!((done.events, done.before, done.went_on), (52, 0, None));
    }

    /// The key was the request with its bounds, the value did not have them.
    #[test]
    fn what_an_earlier_release_did_not_end_goes_with_the_next_replay() {
        let world = world();
        let value = br#"{"cursor":20,"events":20,"missing":0}"#;
        let old = br#"again/{"channel":"main","from":0,"until":50,"since":null,"before":null,"to":"second","sink":null}"#;
        let positions = [old.to_vec(), request(first()).key()].map(|key| (key, value.to_vec())).to_vec();
        world.journal.commit_and_wait(Commit { positions, ..Commit::default() }, None).unwrap();
        world.journal.set_capacity(world.journal.channel("second").unwrap(), u64::MAX, u64::MAX);
        let done = world.run(&request(first())).unwrap();
        assert_eq!(done, AgainReport { events: 45, ..AgainReport::default() });
        assert!(world.journal.positions(POSITIONS).is_empty());
    }
}
