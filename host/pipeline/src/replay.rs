//! Replays events of the quarantine: through the present version of what could not take them, and on from there, exactly once.
//!
//! Two journals take part. A chunk of events becomes one commit of the pipeline's: what the plugins made of them,
//! for the channels; what they failed on again, for the quarantine channel, with its new reason; and the job's
//! progress, as the position `replay/` and the job's id. Only when that is durable, the events are marked as gone in the
//! quarantine's journal ([`Kept::take`]). A crash between the two is seen by the position: what is before it is marked then
//! ([`Kept::catch_up`]), from what the job itself has on record. So an event is in quarantine or replayed, never both, never
//! neither. The position is removed after the job.
//!
//! Where an event goes on: what an interceptor of the pipeline could not take begins with that interceptor; what a
//! source could not take begins with the first. What a sink or its interceptors could not take goes to that sink
//! alone: the header [`HEADER_TO`] names it, with the interceptor to begin with, and other sinks of the channel pass over it.
//! Nobody else may set that header: selectors take it off what sources and plugins hand in, so who put an event into a channel with it
//! is a replay, also in a channel that several agents share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use arrow_array::{Array, StringArray};
use flumen_event::{Batch, BatchError};
use flumen_journal::{ChannelId, Commit, CommitError, Journal, Put};
use parking_lot::{Mutex, MutexGuard};

use crate::chain::{Begin, Chain, Versions};
use crate::kept::{Action, Chunk, Job, Kept, job_id, job_key, route_of};
use crate::limits;
use crate::plan::PipelinePlan;
use crate::quarantine::{self, HEADER_SOURCE, LABELS};
use crate::selector::{PresentSelectors, Selector};
use crate::sink::SinkError;
use crate::source::Wake;
use crate::stateful::{Stateful, Turn};

/// The prefix of a job's position in the pipeline's journal: before which number of the quarantine its events are replayed.
pub const POSITIONS: &[u8] = b"replay/";

/// Whom a replayed event is for: a sink, or `SINK/INTERCEPTOR` to begin with that interceptor of it. Sinks take it off.
pub const HEADER_TO: &str = "flumen.to";

/// How long a put waits for room in a channel before it is looked whether the pipeline stops.
const ROOM: std::time::Duration = std::time::Duration::from_millis(200);

/// Where events go on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Route {
    /// In the pipeline's chain.
    Chain(Begin),
    /// In a channel, with this value of [`HEADER_TO`].
    Sink(ChannelId, String),
}

/// What a replay works with.
pub(crate) struct ReplayPlace {
    /// The pipeline's.
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) kept: Arc<Kept>,
    pub(crate) chain: Arc<Chain>,
    /// The part of the chain that keeps state.
    pub(crate) stateful: Arc<Stateful>,
    pub(crate) selectors: PresentSelectors,
    pub(crate) quarantine: ChannelId,
    /// The plan that the pipeline runs: a reload exchanges it.
    pub(crate) plan: Arc<Mutex<Arc<PipelinePlan>>>,
}

/// Carries out the jobs of one pipeline's quarantine, on a thread of its own.
pub(crate) struct Replayer {
    place: ReplayPlace,
}

/// What becomes of a chunk, and the turn of plugins with state, held until it is handed in.
struct Processing<'a> {
    commit: Commit,
    turn: Option<MutexGuard<'a, Turn>>,
}

enum Step {
    More(Box<Job>),
    Done,
    Failed(String),
}

impl Replayer {
    pub(crate) fn new(place: ReplayPlace) -> Replayer {
        Replayer { place }
    }

    fn routes(&self) -> BTreeMap<String, Route> {
        let plan = self.place.plan.lock().clone();
        routes(&plan, self.place.journal.as_ref())
    }

    /// Runs until the pipeline stops.
    pub(crate) fn run(self) {
        let wake = self.place.kept.wake.clone();
        let mut pause = limits::RETRY_FIRST;
        loop {
            match self.run_jobs(&wake) {
                Ok(()) => pause = limits::RETRY_FIRST,
                Err(SinkError::Stopped) => return,
                Err(
                    SinkError::Retry(reason)
                    | SinkError::Moved(reason)
                    | SinkError::Fatal(reason)
                    | SinkError::Again { reason, .. },
                ) => {
                    tracing::error!(%reason, "quarantine: a job cannot go on now, trying again");
                    if wake.wait(pause) {
                        return;
                    }
                    pause = (pause * 2).min(limits::RETRY_MAX);
                    continue;
                }
            }
            if wake.wait(limits::JOB_LOOK) {
                return;
            }
        }
    }

    fn run_jobs(&self, wake: &Wake) -> Result<(), SinkError> {
        while let Some((id, job)) = self.place.kept.next_job() {
            match job.request.action {
                Action::Drop => self.place.kept.drop_events(id, &job)?,
                Action::Replay => self.replay(id, job, wake)?,
            }
        }
        // Of jobs that are done.
        for (key, _) in self.place.journal.positions(POSITIONS) {
            if job_id(POSITIONS, &key).is_some() {
                let commit = Commit { positions: vec![(key, Vec::new())], ..Commit::default() };
                self.commit(commit, wake)?.map_err(SinkError::Retry)?;
            }
        }
        Ok(())
    }

    fn replay(&self, id: u64, mut job: Job, wake: &Wake) -> Result<(), SinkError> {
        if let Some(done) = replayed_to(self.place.journal.position(&job_key(POSITIONS, id))) {
            job = self.place.kept.catch_up(id, &job, done)?;
        }
        if job.routes.is_none() {
            job.routes = Some(self.routes().keys().cloned().collect());
            self.place.kept.take(id, &[], &job, 0)?;
        }
        let mut reader = self.place.kept.reader();
        loop {
            if wake.stopping() {
                return Err(SinkError::Stopped);
            }
            let chunk = self.place.kept.chunk(reader.as_mut(), &job, job.until)?;
            match self.step(id, job, chunk, wake)? {
                Step::More(next) => job = *next,
                Step::Done => return self.place.kept.finish(id, None),
                Step::Failed(reason) => {
                    tracing::error!(job = id, %reason, "quarantine: the replay ends, the rest of its events stay");
                    return self.place.kept.finish(id, Some(reason));
                }
            }
        }
    }

    /// Replays one chunk.
    fn step(&self, id: u64, mut job: Job, chunk: Chunk, wake: &Wake) -> Result<Step, SinkError> {
        let numbers = chunk.numbers();
        if numbers.is_empty() && chunk.next >= job.until {
            return Ok(Step::Done);
        }
        job.cursor = chunk.next;
        job.events += numbers.len() as u64;
        let mut again = 0;
        if !numbers.is_empty() {
            self.place.stateful.begun(&mut || match wake.wait(limits::HOLD_POLL) {
                true => Err(SinkError::Stopped),
                false => Ok(()),
            })?;
            let Processing { mut commit, mut turn } = match self.processed(&chunk) {
                Ok(processing) => processing,
                Err(reason) => return Ok(Step::Failed(reason)),
            };
            let to_quarantine = |put: &&Put| put.channels == [self.place.quarantine];
            again = commit.puts.iter().filter(to_quarantine).map(|put| put.batch.rows() as u64).sum();
            commit.positions.push((job_key(POSITIONS, id), chunk.next.to_le_bytes().to_vec()));
            if let Err(error) = self.commit(commit, wake)? {
                return Ok(Step::Failed(error));
            }
            if let Some(turn) = turn.as_deref_mut() {
                turn.handed_in();
            }
            drop(turn);
        }
        self.place.kept.take(id, &numbers, &job, again)?;
        let is_enough = job.request.limit.is_some_and(|limit| job.events >= limit);
        Ok(if is_enough { Step::Done } else { Step::More(Box::new(job)) })
    }

    /// What becomes of a chunk. `Err`: something of it has no way any more.
    fn processed(&self, chunk: &Chunk) -> Result<Processing<'_>, String> {
        let routes = self.routes();
        let selectors =
            self.place.selectors.get().ok_or("the journal does not have all channels of the plan")?;
        let mut groups: Vec<((&Route, &Selector), Vec<Batch>)> = Vec::new();
        for (_, batch, rows) in &chunk.parts {
            let sources = batch.header(HEADER_SOURCE);
            let source =
                |row: u32| sources.filter(|of| of.is_valid(row as usize)).map(|of| of.value(row as usize));
            let key = |row: &u32| (route_of(batch, *row as usize), source(*row));
            let keys: Vec<(String, Option<&str>)> = rows.iter().map(key).collect();
            for key in keys.iter().collect::<BTreeSet<_>>() {
                let (from, source) = key;
                let gone = || format!("{from} is not in the pipeline any more: ask for the replay again");
                let route = routes.get(from).ok_or_else(gone)?;
                let place = (route, selectors.get(source.or_else(|| from.strip_prefix("source/"))).as_ref());
                let of_key = rows.iter().zip(&keys).filter(|(_, of)| *of == key).map(|(row, _)| *row);
                let taken =
                    batch.take(&of_key.collect::<Vec<_>>().into()).map_err(|error| error.to_string())?;
                // The event may have brought an address with it: only this replay gives it one.
                let labels = LABELS.into_iter().chain([HEADER_TO]);
                let plain = labels.fold(taken, |batch, label| batch.without_header(label));
                let is_same =
                    |known: &(&Route, &Selector)| known.0 == place.0 && std::ptr::eq(known.1, place.1);
                match groups.iter_mut().find(|(known, _)| is_same(known)) {
                    Some((_, batches)) => batches.push(plain),
                    None => groups.push((place, vec![plain])),
                }
            }
        }
        let mut out = Processing { commit: Commit::default(), turn: None };
        for ((route, selector), batches) in groups {
            // Events with very different headers do not fit into one batch.
            let batches = Batch::concat(&batches).map_or(batches, |all| vec![all]);
            for batch in batches {
                match route {
                    Route::Chain(begin) => self.process_again(begin, selector, batch, &mut out),
                    Route::Sink(channel, to) => {
                        let values = StringArray::from_iter_values(std::iter::repeat_n(to, batch.rows()));
                        let batch =
                            batch.with_header(HEADER_TO, values).map_err(|error| error.to_string())?;
                        out.commit.puts.push(Put { channels: vec![*channel], batch });
                    }
                }
            }
        }
        // All groups of the chunk are one turn: each sees what those before it wrote.
        out.commit.state = out.turn.as_deref_mut().map(Turn::take_state).unwrap_or_default();
        Ok(out)
    }

    /// Through the chain, the part that keeps state last.
    fn process_again<'a>(
        &'a self,
        begin: &Begin,
        selector: &Selector,
        batch: Batch,
        out: &mut Processing<'a>,
    ) {
        let ReplayPlace { chain, stateful, journal, quarantine, .. } = &self.place;
        let mut output = chain.process_again(begin, batch.clone());
        let needs_turn = output.needs_state() && !output.kept.is_empty();
        let kept = if needs_turn {
            let turn = out.turn.get_or_insert_with(|| stateful.turn());
            if !turn.is_of(&output.links) {
                output = chain.process_again(begin, batch);
            }
            let processed = stateful.process_again(turn, begin, output.kept);
            output.quarantined.extend(processed.quarantined);
            processed.kept
        } else {
            vec![output.kept]
        };
        let quarantined = output.quarantined;
        out.commit.puts.extend(quarantine::puts(*quarantine, quarantined, "source", selector.source()));
        // An operator wants all of them: this waits for optional channels too.
        out.commit.puts.extend(kept.into_iter().flat_map(|batch| selector.puts(batch, journal.as_ref())));
    }

    /// Commits and waits until it is durable. The inner error: it can never be accepted.
    fn commit(&self, commit: Commit, wake: &Wake) -> Result<Result<(), String>, SinkError> {
        let ticket = loop {
            match self.place.journal.commit(commit.clone(), Some(Instant::now() + ROOM)) {
                Ok(ticket) => break ticket,
                Err(CommitError::Full { .. }) if !wake.stopping() => {}
                Err(CommitError::Full { .. } | CommitError::Closing) => return Err(SinkError::Stopped),
                Err(error @ CommitError::TooLarge { .. }) => return Ok(Err(error.to_string())),
                Err(error) => return Err(failed(error)),
            }
        };
        loop {
            match ticket.wait(Some(ROOM)) {
                Some(outcome) => return outcome.map(|_| Ok(())).map_err(failed),
                // Whether it counted is seen at the next start.
                None if wake.stopping() => return Err(SinkError::Stopped),
                None => {}
            }
        }
    }
}

/// After a failure of the journal nothing may be marked: what it shows as pending never became durable.
fn failed(error: CommitError) -> SinkError {
    match error {
        CommitError::Refused(_) | CommitError::Full { .. } | CommitError::TooLarge { .. } => {
            SinkError::Retry(error.to_string())
        }
        CommitError::Closing | CommitError::Failed(_) => SinkError::Stopped,
    }
}

/// The value of a job's position in the pipeline's journal.
pub fn replayed_to(position: Option<Vec<u8>>) -> Option<u64> {
    position.and_then(|value| value.as_slice().try_into().ok()).map(u64::from_le_bytes)
}

/// Where events of each of [`route_of`] go on.
fn routes(plan: &PipelinePlan, journal: &dyn Journal) -> BTreeMap<String, Route> {
    let mut routes = BTreeMap::new();
    for interceptor in &plan.interceptors {
        let begin = Begin::At(interceptor.name.clone());
        routes.insert(format!("interceptor/{}", interceptor.name), Route::Chain(begin));
    }
    let mut add = |role: &str, name: &str, route: &Route| {
        routes.insert(format!("{role}/{name}"), route.clone());
        // Kept by an older release, which named no role: only if no other component has the name.
        let is_source = plan.sources.iter().any(|source| source.name == name);
        let is_sink = plan.sinks.iter().any(|sink| sink.name == name);
        if is_source != is_sink {
            routes.insert(format!("/{name}"), route.clone());
        }
    };
    for source in &plan.sources {
        add("source", &source.name, &Route::Chain(Begin::First));
    }
    for sink in &plan.sinks {
        let Some(channel) = journal.channel(&sink.channel) else { continue };
        add("sink", &sink.name, &Route::Sink(channel, sink.name.clone()));
    }
    for sink in &plan.sinks {
        let Some(channel) = journal.channel(&sink.channel) else { continue };
        for interceptor in &sink.interceptors {
            let to = format!("{}/{}", sink.name, interceptor.name);
            routes.insert(format!("interceptor/{}", interceptor.name), Route::Sink(channel, to));
        }
    }
    // A channel that is a topic: it stands behind all interceptors.
    if plan.channels.len() == 1 {
        routes.insert("/kafka channel".into(), Route::Chain(Begin::Behind));
    }
    routes
}

/// What a sink (its name, or all of its group) makes of a batch of its channel: its rows in order, each part with the interceptor of its own chain that it
/// begins with. Rows for other sinks are left out.
pub(crate) fn for_sink(
    names: &[String],
    versions: &Versions,
    batch: Batch,
) -> Result<Vec<(usize, Batch)>, BatchError> {
    let Some(to) = batch.header(HEADER_TO) else { return Ok(vec![(0, batch)]) };
    let begin = |value: &str| {
        let (of, link) = value.split_once('/').map_or((value, None), |(of, link)| (of, Some(link)));
        let at = link.map_or(Some(versions.len()), |link| versions.position(link));
        // An interceptor that is not there any more: the whole chain.
        names.iter().any(|name| name == of).then_some(at.unwrap_or(0))
    };
    let of_row = |row: usize| if to.is_valid(row) { begin(to.value(row)) } else { Some(0) };
    let mut runs: Vec<(usize, Vec<u32>)> = Vec::new();
    for row in 0..batch.rows() {
        let Some(at) = of_row(row) else { continue };
        match runs.last_mut() {
            Some((last, rows)) if *last == at => rows.push(row as u32),
            _ => runs.push((at, vec![row as u32])),
        }
    }
    let plain = batch.clone().without_header(HEADER_TO);
    runs.into_iter().map(|(at, rows)| Ok((at, plain.take(&rows.into())?))).collect()
}
