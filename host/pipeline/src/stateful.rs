//! The part of a chain from its first plugin with state on: one batch at a time, over all sources of the pipeline.
//!
//! A batch takes the turn, goes through these links, and its commit is handed to the journal before the turn passes on. So the
//! order in which a plugin sees batches is the order of their commits, and the journal's view, which holds what was handed
//! in, is all that the next batch needs to see: it is processed while commits before it still become durable. If a commit
//! fails, the journal takes no more, and the pipeline stops: nothing that was computed from it stays.
//!
//! A journal whose state is elsewhere may not have it yet when the pipeline starts: the first batch waits for it, and for
//! versions that take it over.
//!
//! Links before run on their threads as ever; a chain without state never comes here.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_event::Batch;
use flumen_journal::{
    ChannelId, Clock, Commit, CommitError, Journal, OsClock, Put, StateStore, StateWrites, Ticket,
};
use parking_lot::{Mutex, MutexGuard};

use crate::chain::{Begin, Link, Links, first_with_state};
use crate::interceptor::{InterceptorVersion, Quarantined};
use crate::metrics::Metric;
use crate::source::{Stopped, Wake};
use crate::state::Session;
use crate::{limits, quarantine};

/// See the module.
pub struct Stateful {
    links: Links,
    first: usize,
    pipeline: String,
    store: Arc<dyn StateStore>,
    turn: Mutex<Turn>,
}

/// Whose turn it is. Whoever holds it processes, and hands in the commit, before letting go.
pub struct Turn {
    /// The state is there, and was taken over.
    has_begun: bool,
    /// Per link from the first: the version that processed the last batch.
    versions: Vec<Option<Arc<dyn InterceptorVersion>>>,
    /// Versions that did not take over the state, by link.
    refused: Vec<Option<Arc<dyn InterceptorVersion>>>,
    /// What this turn wrote, by link.
    sessions: Vec<Option<Session>>,
}

/// What became of a batch.
#[derive(Default)]
pub struct StatefulOutput {
    /// Goes on.
    pub kept: Vec<Batch>,
    /// Goes to the quarantine channel.
    pub quarantined: Vec<Quarantined>,
}

/// A plugin that cannot begin: its name, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CannotBegin {
    /// Its name in the pipeline.
    pub plugin: String,
    /// For a person.
    pub reason: String,
}

impl Stateful {
    /// The part of a chain that keeps state, if there is one. `store` is of the journal; `Err`: it has none.
    pub fn of(
        links: &Links,
        pipeline: &str,
        store: Option<Arc<dyn StateStore>>,
    ) -> Result<Option<Arc<Stateful>>, CannotBegin> {
        let first = first_with_state(links);
        let Some(link) = links.get(first) else { return Ok(None) };
        let store = store.ok_or_else(|| CannotBegin {
            plugin: link.interceptor.name().to_owned(),
            reason: "it keeps state, and the channels of this pipeline cannot keep it with their events"
                .to_owned(),
        })?;
        let count = links.len() - first;
        let sessions = std::iter::repeat_with(|| None).take(count).collect();
        let has_begun = store.is_ready();
        let (versions, refused) = (vec![None; count], vec![None; count]);
        let turn = Mutex::new(Turn { has_begun, versions, refused, sessions });
        let stateful = Stateful { links: links.clone(), first, pipeline: pipeline.to_owned(), store, turn };
        if has_begun {
            stateful.check_take_over()?;
        }
        Ok(Some(Arc::new(stateful)))
    }

    /// Waits until the state is there, and versions that take it over: without them the pipeline would not have started.
    fn begin<E>(&self, turn: &mut Turn, hold: &mut impl FnMut() -> Result<(), E>) -> Result<(), E> {
        let mut refused: Option<Vec<Arc<dyn InterceptorVersion>>> = None;
        while !turn.has_begun {
            let versions: Vec<_> = self.links().iter().map(|link| link.interceptor.current()).collect();
            let is_same = |refused: &Vec<Arc<dyn InterceptorVersion>>| {
                refused.iter().zip(&versions).all(|(refused, version)| Arc::ptr_eq(refused, version))
            };
            if self.store.is_ready() && !refused.as_ref().is_some_and(is_same) {
                match self.check_take_over() {
                    Ok(()) => turn.has_begun = true,
                    Err(CannotBegin { plugin, reason }) => {
                        tracing::error!(
                            interceptor = plugin,
                            reason,
                            "events wait for a version that takes over the state"
                        );
                        refused = Some(versions);
                    }
                }
            }
            if !turn.has_begun {
                hold()?;
            }
        }
        Ok(())
    }

    /// A version that cannot take over what an earlier run remembered keeps the pipeline from starting.
    fn check_take_over(&self) -> Result<(), CannotBegin> {
        for link in self.links() {
            let Some(mut session) = self.session(link) else { continue };
            let version = link.interceptor.current();
            take_over(version.as_ref(), &mut session)
                .map_err(|reason| CannotBegin { plugin: link.interceptor.name().to_owned(), reason })?;
        }
        Ok(())
    }

    fn links(&self) -> &[Arc<Link>] {
        self.links.get(self.first..).unwrap_or_default()
    }

    fn take_session(&self, turn: &mut Turn, index: usize, link: &Link) -> Option<Session> {
        turn.sessions.get_mut(index).and_then(Option::take).or_else(|| self.session(link))
    }

    fn session(&self, link: &Link) -> Option<Session> {
        let now_ns = OsClock.wall_ns();
        let name: Arc<str> = link.interceptor.name().into();
        link.state_bytes.map(|max| Session::new(self.store.clone(), &self.pipeline, &name, max, now_ns))
    }

    /// Waits for the turn. What the one before did not commit is as if it had never been written.
    pub fn turn(&self) -> MutexGuard<'_, Turn> {
        let mut turn = self.turn.lock();
        turn.sessions.iter_mut().for_each(|session| *session = None);
        turn
    }

    /// Processes a batch by the present versions. `hold` as in [`crate::chain::Chain::process`].
    pub fn process<E>(
        &self,
        turn: &mut Turn,
        batch: Batch,
        hold: &mut impl FnMut() -> Result<(), E>,
    ) -> Result<StatefulOutput, E> {
        self.begin(turn, hold)?;
        let mut out = StatefulOutput { kept: vec![batch], ..StatefulOutput::default() };
        self.run(turn, 0, &mut out, &mut Way::Held(hold))?;
        Ok(out)
    }

    /// Waits until batches can be processed: before [`Stateful::process_again`].
    pub(crate) fn begun<E>(&self, hold: &mut impl FnMut() -> Result<(), E>) -> Result<(), E> {
        self.begin(&mut self.turn(), hold)
    }

    /// Processes events of the quarantine, as [`crate::chain::Chain::process_again`] does.
    pub(crate) fn process_again(&self, turn: &mut Turn, begin: &Begin, batch: Batch) -> StatefulOutput {
        let first = begin.place(&self.links);
        let mut out = StatefulOutput { kept: vec![batch], ..StatefulOutput::default() };
        let mut way: Way<'_, fn() -> Result<(), Infallible>> = Way::Again;
        match self.run(turn, first.saturating_sub(self.first), &mut out, &mut way) {
            Ok(()) => out,
        }
    }

    /// Tells one link that time passed, and gives what it makes to the links behind it.
    fn tick<E>(
        &self,
        turn: &mut Turn,
        index: usize,
        hold: &mut impl FnMut() -> Result<(), E>,
    ) -> Result<StatefulOutput, E> {
        self.begin(turn, hold)?;
        let mut out = StatefulOutput::default();
        let Some(link) = self.links().get(index) else { return Ok(out) };
        let Some(mut session) = self.take_session(turn, index, link) else { return Ok(out) };
        let version = turn.version(index, link, link.interceptor.current(), &mut session);
        let begin = Instant::now();
        let ticked = version.tick(&mut session);
        link.metrics.add(Metric::InterceptorNs, begin.elapsed().as_nanos() as u64);
        match ticked {
            Ok(()) => session.accept(),
            Err(reason) => {
                session.abandon();
                link.metrics.add(Metric::InterceptorTicksFailed, 1);
                tracing::error!(interceptor = link.interceptor.name(), reason, "the plugin failed at a tick");
            }
        }
        session.seal();
        out.kept = made_by(link, &mut session);
        turn.put(index, session);
        self.run(turn, index + 1, &mut out, &mut Way::Held(hold))?;
        Ok(out)
    }

    /// What is kept goes through the links from this one on.
    fn run<E>(
        &self,
        turn: &mut Turn,
        from: usize,
        out: &mut StatefulOutput,
        way: &mut Way<'_, impl FnMut() -> Result<(), E>>,
    ) -> Result<(), E> {
        for (index, link) in self.links().iter().enumerate().skip(from) {
            let batches: Vec<Batch> = out.kept.drain(..).filter(|batch| !batch.is_empty()).collect();
            if batches.is_empty() {
                return Ok(());
            }
            let mut session = self.take_session(turn, index, link).unwrap_or_default();
            for batch in batches {
                let current = link.interceptor.current();
                let mut call = |version: &Arc<dyn InterceptorVersion>, batch| match link.state_bytes {
                    None => version.process(batch),
                    Some(_) => {
                        // Of an attempt that is thrown away, or in which the host panicked, nothing is left.
                        session.abandon();
                        let version = turn.version(index, link, version.clone(), &mut session);
                        version.process_with(batch, &mut session)
                    }
                };
                let kept = match way {
                    Way::Held(hold) => {
                        link.process(&current, batch, &mut call, &mut out.quarantined, *hold)?
                    }
                    Way::Again => link.process_again(&current, batch, &mut call, &mut out.quarantined),
                };
                out.kept.push(kept);
                session.seal();
            }
            out.kept.extend(made_by(link, &mut session));
            turn.put(index, session);
        }
        Ok(())
    }
}

/// The events that a link made.
fn made_by(link: &Link, session: &mut Session) -> Vec<Batch> {
    let made = session.take_events();
    link.metrics.add(Metric::InterceptorEventsOut, made.iter().map(|batch| batch.rows() as u64).sum());
    made
}

/// How batches go through a link.
enum Way<'a, Hold> {
    /// Under its error budget.
    Held(&'a mut Hold),
    /// Without: they failed before.
    Again,
}

impl Turn {
    /// Everything that was written in this turn: it belongs into the commit of what came out.
    pub fn take_state(&mut self) -> Vec<StateWrites> {
        self.sessions.iter_mut().filter_map(Option::take).flat_map(Session::into_writes).collect()
    }

    fn put(&mut self, index: usize, session: Session) {
        if let Some(place) = self.sessions.get_mut(index) {
            *place = Some(session);
        }
    }

    /// The version that processes the next batch: the present one, if it takes over the state of the one before.
    fn version(
        &mut self,
        index: usize,
        link: &Link,
        current: Arc<dyn InterceptorVersion>,
        session: &mut Session,
    ) -> Arc<dyn InterceptorVersion> {
        let is_current = |known: &Option<Arc<dyn InterceptorVersion>>| {
            known.as_ref().is_some_and(|known| Arc::ptr_eq(known, &current))
        };
        let (Some(last), Some(refused)) = (self.versions.get_mut(index), self.refused.get_mut(index)) else {
            return current;
        };
        if is_current(last) {
            return current;
        }
        if let Some(last) = last.as_ref().filter(|_| is_current(refused)) {
            return last.clone();
        }
        match (take_over(current.as_ref(), session), last.as_ref()) {
            // At the start it was tried before, so without an older version it goes on.
            (Err(reason), Some(last)) => {
                session.reject();
                tracing::error!(
                    interceptor = link.interceptor.name(),
                    reason,
                    "the new version does not take over the state: the old one goes on"
                );
                link.interceptor.refused(&current, &reason);
                *refused = Some(current);
                last.clone()
            }
            (outcome, _) => {
                match outcome {
                    Ok(()) => session.accept(),
                    Err(_) => session.abandon(),
                }
                session.seal();
                *last = Some(current.clone());
                current
            }
        }
    }
}

/// Lets a version take over from the one that wrote the state last, if that was another one.
fn take_over(version: &dyn InterceptorVersion, session: &mut Session) -> Result<(), String> {
    match session.writer() {
        Some((hash, _)) if hash == version.hash() => return Ok(()),
        Some((_, from)) => version.migrate(&from, session)?,
        None => {}
    }
    session.set_writer(version.hash(), version.version());
    Ok(())
}

/// Where ticks put what they make.
pub struct TickTarget {
    /// The pipeline's journal.
    pub journal: Arc<dyn Journal>,
    /// As of sources.
    pub channels: Vec<ChannelId>,
    /// The quarantine channel.
    pub quarantine: ChannelId,
}

impl TickTarget {
    fn commit(
        &self,
        out: StatefulOutput,
        state: Vec<StateWrites>,
    ) -> Result<Option<Box<dyn Ticket>>, CommitError> {
        let mut commit = Commit { state, ..Commit::default() };
        let put = |batch| Put { channels: self.channels.clone(), batch };
        commit.puts = out.kept.into_iter().filter(|batch| !batch.is_empty()).map(put).collect();
        commit.puts.extend(quarantine::puts(self.quarantine, out.quarantined, "source"));
        if commit.puts.is_empty() && commit.state.is_empty() {
            return Ok(None);
        }
        self.journal.commit(commit, None).map(Some)
    }
}

/// Ticks until `wake` stops: each link at its interval, between two batches, also when no event comes.
pub fn run_ticks(stateful: &Stateful, target: &TickTarget, wake: &Wake) -> Result<(), CommitError> {
    let mut due: Vec<Option<Instant>> = vec![None; stateful.links().len()];
    let mut last: Option<Box<dyn Ticket>> = None;
    loop {
        let now = Instant::now();
        let mut next = now + limits::TICK_LOOK;
        for (index, (link, due)) in stateful.links().iter().zip(&mut due).enumerate() {
            let every = link.state_bytes.and_then(|_| link.interceptor.current().tick_every());
            let Some(every) = every.filter(|every| *every > Duration::ZERO) else {
                *due = None;
                continue;
            };
            // A new version may want it sooner.
            let at = due.unwrap_or(now + every).min(now + every);
            *due = Some(at);
            if at > now {
                next = next.min(at);
                continue;
            }
            *due = Some(now + every);
            next = next.min(now + every);
            // One commit at a time: the disk sets the pace of ticks that are too many.
            if let Some(ticket) = last.take()
                && let Some(outcome) = ticket.wait(None)
            {
                outcome?;
            }
            let mut turn = stateful.turn();
            let mut hold = || match wake.wait(limits::HOLD_POLL) {
                true => Err(Stopped),
                false => Ok(()),
            };
            let Ok(out) = stateful.tick(&mut turn, index, &mut hold) else { return Ok(()) };
            last = target.commit(out, turn.take_state())?;
        }
        if wake.wait(next.saturating_duration_since(Instant::now())) {
            return Ok(());
        }
    }
}
