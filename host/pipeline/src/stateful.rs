//! The part of a chain from its first plugin with state on: one batch at a time, over all sources of the pipeline.
//!
//! A batch takes the turn, goes through these links, and its commit is handed to the journal before the turn passes on. So the
//! order in which a plugin sees batches is the order of their commits, and the journal's view, which holds what was handed
//! in, is all that the next batch needs to see: it is processed while commits before it still become durable. If a commit
//! fails, the journal takes no more, and the pipeline stops: nothing that was computed from it stays.
//!
//! A version on probation is given each batch first. If it fails, what it wrote for the batch is dropped and the version before it
//! takes the state over and processes the batch, in the same turn; if that does no better, the first result counts. What was
//! committed before stays, whoever wrote it.
//!
//! The links are exchanged in a turn, too, and with them those of the chain. A batch that went through other links before it got its
//! turn is processed anew, by the present ones.
//!
//! A journal whose state is elsewhere may not have it yet when the pipeline starts: the first batch waits for it, and for
//! versions that take it over. What they write for that is in the first commit; if that does not come to be, they take over anew. No
//! version ever works on state that it has not taken over.
//!
//! Links before run on their threads as ever; a chain without state never comes here.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use flumen_event::Batch;
use flumen_journal::{
    ChannelId, Clock, Commit, CommitError, Journal, OsClock, StateStore, StateWrites, Ticket,
};
use parking_lot::{Mutex, MutexGuard};

use crate::chain::{Begin, Link, Links, first_with_state};
use crate::interceptor::{InterceptorVersion, Processed, Quarantined};
use crate::metrics::Metric;
use crate::selector::PresentSelectors;
use crate::source::Wake;
use crate::state::Session;
use crate::{limits, quarantine};

/// See the module.
pub struct Stateful {
    pipeline: String,
    store: Option<Arc<dyn StateStore>>,
    turn: Mutex<Turn>,
    /// The links of the turn, to look at without it.
    links: ArcSwap<Vec<Arc<Link>>>,
    /// Some link keeps state.
    is_needed: AtomicBool,
    /// Somebody waits to exchange the links: a batch that is held gives its turn up.
    is_wanted: AtomicBool,
}

/// Whose turn it is. Whoever holds it processes, and hands in the commit, before letting go.
#[derive(Default)]
pub struct Turn {
    /// Of the whole chain.
    links: Links,
    /// The first one that keeps state.
    first: usize,
    /// Per link from the first: the version that processed the last batch, or took the state over. `None`: it did not, or keeps none.
    versions: Vec<Option<Arc<dyn InterceptorVersion>>>,
    /// The same as of the last commit.
    committed: Vec<Option<Arc<dyn InterceptorVersion>>>,
    /// Versions that did not take over the state, by link.
    refused: Vec<Option<Arc<dyn InterceptorVersion>>>,
    /// By link, while a batch is at work that the version before a failing one processed: the failing one.
    stood_in_for: Vec<Option<Arc<dyn InterceptorVersion>>>,
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

/// Why a batch in its turn is not held on.
pub(crate) enum Wait {
    /// The pipeline stops.
    Stopped,
    /// Somebody waits to exchange the links.
    Exchange,
}

/// Versions that did not take over the state, and when they were asked last.
#[derive(Default)]
struct Refused(Option<(Vec<Arc<dyn InterceptorVersion>>, Instant)>);

impl Refused {
    /// When these were asked last.
    fn asked(&self, versions: &[Arc<dyn InterceptorVersion>]) -> Option<Instant> {
        let (known, at) = self.0.as_ref()?;
        let is_same = known.len() == versions.len()
            && known.iter().zip(versions).all(|(one, other)| Arc::ptr_eq(one, other));
        is_same.then_some(*at)
    }
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
    /// Of a chain without links. `store`: `None` if the journal keeps no state.
    pub fn new(pipeline: &str, store: Option<Arc<dyn StateStore>>) -> Arc<Stateful> {
        Arc::new(Stateful {
            pipeline: pipeline.to_owned(),
            store,
            turn: Mutex::default(),
            links: ArcSwap::default(),
            is_needed: AtomicBool::new(false),
            is_wanted: AtomicBool::new(false),
        })
    }

    /// From the next turn on these links; `and` is done in between. `Ok(false)`: there was no turn within `limit`, and nothing has
    /// changed.
    pub fn exchange(&self, links: &Links, limit: Duration, and: impl FnOnce()) -> Result<bool, CannotBegin> {
        let is_needed = first_with_state(links) < links.len();
        if !is_needed && !self.is_needed() {
            and();
            return Ok(true);
        }
        self.is_wanted.store(true, Ordering::Release);
        let turn = self.turn.try_lock_for(limit);
        self.is_wanted.store(false, Ordering::Release);
        let Some(mut turn) = turn else { return Ok(false) };
        turn.begin();
        let is_ready = self.store.as_ref().is_none_or(|store| store.is_ready());
        // Without the state only whether there will be one.
        let is_known = |link: &&Arc<Link>| turn.place(link).is_some_and(|place| turn.took_over(place));
        for link in links.iter().filter(|link| link.state_bytes.is_some() && !is_known(link)) {
            self.check_take_over(link, is_ready)?;
        }
        turn.exchange(links.clone());
        self.links.store(links.clone());
        self.is_needed.store(is_needed, Ordering::Release);
        and();
        Ok(true)
    }

    /// Whether some link keeps state.
    pub fn is_needed(&self) -> bool {
        self.is_needed.load(Ordering::Acquire)
    }

    /// Whether whoever holds its batch in a turn is to give the turn up.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Acquire)
    }

    /// Once the state is there, the links take it over. False: batches wait, for the state or for a version that can.
    fn try_begin(&self, turn: &mut Turn, refused: &mut Refused) -> bool {
        if turn.part().enumerate().all(|(index, link)| turn.has_begun(index, &link)) {
            return true;
        }
        if self.store.as_ref().is_some_and(|store| !store.is_ready()) {
            return false;
        }
        let versions: Vec<_> = turn.part().map(|link| link.interceptor.current()).collect();
        let asked = refused.asked(&versions);
        if asked.is_some_and(|asked| asked.elapsed() < limits::TAKE_OVER_AGAIN) {
            return false;
        }
        for ((index, link), version) in turn.part().enumerate().zip(&versions) {
            if turn.has_begun(index, &link) {
                continue;
            }
            match self.begin_link(turn, index, &link, version) {
                Ok(()) if refused.0.is_some() => link.metrics.set_error(None),
                Ok(()) => {}
                Err(CannotBegin { plugin, reason }) => {
                    if asked.is_none() {
                        tracing::error!(
                            interceptor = plugin,
                            reason,
                            "events wait for a version that takes over the state"
                        );
                    }
                    let error = format!("events wait for a version that takes over the state: {reason}");
                    link.metrics.set_error(Some(error));
                    *refused = Refused(Some((versions.clone(), Instant::now())));
                    return false;
                }
            }
        }
        true
    }

    /// A version takes over the state. What it writes belongs to this turn.
    fn begin_link(
        &self,
        turn: &mut Turn,
        index: usize,
        link: &Link,
        version: &Arc<dyn InterceptorVersion>,
    ) -> Result<(), CannotBegin> {
        let mut session = self.take_session(turn, index, link).ok_or_else(|| no_state(link))?;
        take_over(version.as_ref(), &mut session).map_err(|reason| cannot_begin(link, reason))?;
        session.accept();
        turn.seal(index, &mut session);
        turn.put(index, session);
        if let Some(last) = turn.versions.get_mut(index) {
            *last = Some(version.clone());
        }
        Ok(())
    }

    /// Waits until the state is there, and versions that take it over: without them the pipeline would not have started.
    fn begin<E>(&self, turn: &mut Turn, hold: &mut impl FnMut() -> Result<(), E>) -> Result<(), E> {
        let mut refused = Refused::default();
        while !self.try_begin(turn, &mut refused) {
            hold()?;
        }
        Ok(())
    }

    /// A version that cannot take over what was remembered before does not begin; nothing does if there is nowhere to remember it.
    fn check_take_over(&self, link: &Link, is_ready: bool) -> Result<(), CannotBegin> {
        let mut session = self.session(link).ok_or_else(|| no_state(link))?;
        if !is_ready {
            return Ok(());
        }
        let taken_over = take_over(link.interceptor.current().as_ref(), &mut session);
        taken_over.map_err(|reason| cannot_begin(link, reason))
    }

    fn take_session(&self, turn: &mut Turn, index: usize, link: &Link) -> Option<Session> {
        turn.sessions.get_mut(index).and_then(Option::take).or_else(|| self.session(link))
    }

    fn session(&self, link: &Link) -> Option<Session> {
        let (max, store) = link.state_bytes.zip(self.store.clone())?;
        let name: Arc<str> = link.interceptor.name().into();
        Some(Session::new(store, &self.pipeline, &name, max, OsClock.wall_ns()))
    }

    /// Waits for the turn. What the one before did not commit is as if it had never been written.
    pub fn turn(&self) -> MutexGuard<'_, Turn> {
        let mut turn = self.turn.lock();
        turn.begin();
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
        let mut refused = Refused::default();
        while self.is_needed() && !self.try_begin(&mut self.turn(), &mut refused) {
            hold()?;
        }
        Ok(())
    }

    /// Processes events of the quarantine, as [`crate::chain::Chain::process_again`] does.
    pub(crate) fn process_again(&self, turn: &mut Turn, begin: &Begin, batch: Batch) -> StatefulOutput {
        let first = begin.place(&turn.links);
        let mut out = StatefulOutput { kept: vec![batch], ..StatefulOutput::default() };
        let mut way: Way<'_, fn() -> Result<(), Infallible>> = Way::Again;
        match self.run(turn, first.saturating_sub(turn.first), &mut out, &mut way) {
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
        let Some(link) = turn.part().nth(index) else { return Ok(out) };
        let link = link.as_ref();
        let Some(mut session) = self.take_session(turn, index, link) else { return Ok(out) };
        let begin = Instant::now();
        let mut run = |version: &dyn InterceptorVersion, session: &mut Session| {
            let ticked = version.tick(session).and_then(|()| session.fits());
            match ticked {
                Ok(()) => session.accept(),
                Err(_) => session.reject(),
            }
            let failures = u64::from(ticked.is_err());
            (ticked, failures)
        };
        let current = link.interceptor.current();
        let ticked = turn.attempt(index, link, current, &mut session, &mut run, &Err);
        link.metrics.add(Metric::InterceptorNs, begin.elapsed().as_nanos() as u64);
        if let Err(reason) = ticked {
            tick_failed(link, &reason);
        }
        turn.seal(index, &mut session);
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
        for (index, link) in turn.part().enumerate().skip(from) {
            let link = link.as_ref();
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
                        let mut run = |version: &dyn InterceptorVersion, session: &mut Session| {
                            let processed = process_with(link, version, &batch, session);
                            let failures = processed.failed();
                            (processed, failures)
                        };
                        let cannot = |reason| guilty(link, version.as_ref(), &batch, reason);
                        turn.attempt(index, link, version.clone(), &mut session, &mut run, &cannot)
                    }
                };
                let kept = match way {
                    Way::Held(hold) => {
                        link.process(&current, batch, &mut call, &mut out.quarantined, *hold)?
                    }
                    Way::Again => link.process_again(&current, batch, &mut call, &mut out.quarantined),
                };
                out.kept.push(kept);
                turn.seal(index, &mut session);
            }
            out.kept.extend(made_by(link, &mut session));
            turn.put(index, session);
        }
        Ok(())
    }
}

/// A batch that an attempt made too much of is guilty as a whole: which of its rows, only who isolates them could tell.
fn process_with(
    link: &Link,
    version: &dyn InterceptorVersion,
    batch: &Batch,
    session: &mut Session,
) -> Processed {
    let processed = version.process_with(batch.clone(), session);
    match session.refused() {
        None => processed,
        Some(reason) => {
            session.abandon();
            guilty(link, version, batch, reason)
        }
    }
}

fn guilty(link: &Link, version: &dyn InterceptorVersion, batch: &Batch, reason: String) -> Processed {
    let group = Quarantined {
        batch: batch.clone(),
        reasons: vec![reason; batch.rows()],
        by: link.interceptor.name().into(),
        hash: version.hash().into(),
        rejected: false,
    };
    Processed { kept: Batch::empty(), quarantined: vec![group], dropped: 0 }
}

fn cannot_begin(link: &Link, reason: String) -> CannotBegin {
    CannotBegin { plugin: link.interceptor.name().to_owned(), reason }
}

fn no_state(link: &Link) -> CannotBegin {
    let reason = "it keeps state, and the channels of this pipeline cannot keep it with their events";
    cannot_begin(link, reason.to_owned())
}

fn tick_failed(link: &Link, reason: &str) {
    link.metrics.add(Metric::InterceptorTicksFailed, 1);
    tracing::error!(interceptor = link.interceptor.name(), reason, "the plugin failed at a tick");
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
    /// Whether a batch that went through these links up to the first one with state goes on here.
    pub fn is_of(&self, links: &Links) -> bool {
        Arc::ptr_eq(&self.links, links)
    }

    /// The links from the first one with state on.
    fn part(&self) -> impl Iterator<Item = Arc<Link>> + use<> {
        let (links, first) = (self.links.clone(), self.first);
        (first..links.len()).filter_map(move |index| links.get(index).cloned())
    }

    fn place(&self, link: &Arc<Link>) -> Option<usize> {
        self.part().position(|known| Arc::ptr_eq(&known, link))
    }

    /// What the turn before did not commit is gone, also where no session tells of it: who is held leaves its own behind.
    fn begin(&mut self) {
        self.sessions.iter_mut().for_each(|session| *session = None);
        self.stood_in_for.iter_mut().for_each(|version| *version = None);
        self.versions.clone_from(&self.committed);
    }

    /// Whether this link is to process batches: nothing has to be taken over first.
    fn has_begun(&self, index: usize, link: &Link) -> bool {
        link.state_bytes.is_none() || self.took_over(index)
    }

    /// Whether some version of this link took over the state.
    fn took_over(&self, index: usize) -> bool {
        self.versions.get(index).is_some_and(Option::is_some)
    }

    /// Links that stay know which versions they were at.
    fn exchange(&mut self, links: Links) {
        let mut next = Turn { first: first_with_state(&links), links, ..Turn::default() };
        for link in next.part() {
            let place = self.place(&link);
            let of = |list: &[Option<Arc<dyn InterceptorVersion>>]| list.get(place?).cloned().flatten();
            next.versions.push(of(&self.versions));
            next.committed.push(of(&self.committed));
            next.refused.push(of(&self.refused));
            next.stood_in_for.push(None);
            next.sessions.push(None);
        }
        *self = next;
    }

    /// Everything that was written in this turn: it belongs into the commit of what came out. When that is handed in,
    /// [`Turn::handed_in`] says so.
    pub fn take_state(&mut self) -> Vec<StateWrites> {
        self.sessions.iter_mut().filter_map(Option::take).flat_map(Session::into_writes).collect()
    }

    /// The journal took the commit: what this turn wrote counts, whoever wrote it.
    pub fn handed_in(&mut self) {
        self.committed.clone_from(&self.versions);
    }

    /// Lets a version work on a batch or a tick, and the one before it if it fails while it is on probation. `run` says how much
    /// failed; what it wrote and was accepted belongs to the batch. `cannot` answers for a version that does not take over the state.
    fn attempt<Answer>(
        &mut self,
        index: usize,
        link: &Link,
        current: Arc<dyn InterceptorVersion>,
        session: &mut Session,
        run: &mut dyn FnMut(&dyn InterceptorVersion, &mut Session) -> (Answer, u64),
        cannot: &dyn Fn(String) -> Answer,
    ) -> Answer {
        self.abandon(index, session);
        let version = match self.version(index, link, current, session) {
            Ok(version) => version,
            Err(reason) => return cannot(reason),
        };
        let (mut answer, failures) = run(version.as_ref(), session);
        let Some(before) = version.before() else { return answer };
        let mut has_failed = false;
        if failures > 0 {
            let aside = session.set_aside();
            let taken_over = take_over(before.as_ref(), session);
            let again = taken_over.map(|()| {
                session.accept();
                run(before.as_ref(), session)
            });
            match again {
                // Rows that both fail on are the events' fault.
                Ok((again, fewer)) if fewer < failures => {
                    (answer, has_failed) = (again, true);
                    self.stand_in(index, version.clone(), before);
                }
                outcome => {
                    session.take_back(aside);
                    session.set_writer(version.hash(), version.version());
                    if let Err(reason) = outcome {
                        let interceptor = link.interceptor.name();
                        tracing::warn!(
                            interceptor,
                            reason,
                            "the version before does not take the state back"
                        );
                    }
                }
            }
        }
        version.tried(has_failed);
        answer
    }

    /// The version before another processed the batch: it wrote the state last.
    fn stand_in(
        &mut self,
        index: usize,
        version: Arc<dyn InterceptorVersion>,
        before: Arc<dyn InterceptorVersion>,
    ) {
        if let (Some(last), Some(stood_in_for)) =
            (self.versions.get_mut(index), self.stood_in_for.get_mut(index))
        {
            (*last, *stood_in_for) = (Some(before), Some(version));
        }
    }

    /// Of an attempt that is thrown away, or in which the host panicked, nothing is left.
    fn abandon(&mut self, index: usize, session: &mut Session) {
        session.abandon();
        let thrown_away = self.stood_in_for.get_mut(index).and_then(Option::take);
        if let (Some(version), Some(last)) = (thrown_away, self.versions.get_mut(index)) {
            session.set_writer(version.hash(), version.version());
            *last = Some(version);
        }
    }

    /// The batch is done.
    fn seal(&mut self, index: usize, session: &mut Session) {
        session.seal();
        if let Some(stood_in_for) = self.stood_in_for.get_mut(index) {
            *stood_in_for = None;
        }
    }

    fn put(&mut self, index: usize, session: Session) {
        if let Some(place) = self.sessions.get_mut(index) {
            *place = Some(session);
        }
    }

    /// The version that processes the next batch: the present one, if it takes over the state of the one before. `Err`: it does not,
    /// and there is none before.
    fn version(
        &mut self,
        index: usize,
        link: &Link,
        current: Arc<dyn InterceptorVersion>,
        session: &mut Session,
    ) -> Result<Arc<dyn InterceptorVersion>, String> {
        let is_current = |known: &Option<Arc<dyn InterceptorVersion>>| {
            known.as_ref().is_some_and(|known| Arc::ptr_eq(known, &current))
        };
        let (Some(last), Some(refused)) = (self.versions.get_mut(index), self.refused.get_mut(index)) else {
            return Ok(current);
        };
        if is_current(last) {
            return Ok(current);
        }
        if let Some(last) = last.as_ref().filter(|_| is_current(refused)) {
            return Ok(last.clone());
        }
        match (take_over(current.as_ref(), session), last.as_ref()) {
            (Ok(()), _) => {
                session.accept();
                session.seal();
                *last = Some(current.clone());
                Ok(current)
            }
            (Err(reason), Some(last)) => {
                session.reject();
                tracing::error!(
                    interceptor = link.interceptor.name(),
                    reason,
                    "the new version does not take over the state: the old one goes on"
                );
                link.interceptor.refused(&current, &reason);
                *refused = Some(current);
                Ok(last.clone())
            }
            // Only of a replay: its events go back. All others wait for a version that can ([`Stateful::begin`]).
            (Err(reason), None) => {
                session.reject();
                Err(format!("it does not take over the state: {reason}"))
            }
        }
    }
}

/// Lets a version take over from the one that wrote the state last, if that was another one.
fn take_over(version: &dyn InterceptorVersion, session: &mut Session) -> Result<(), String> {
    match session.writer() {
        Some((hash, _)) if hash == version.hash() => return Ok(()),
        Some((_, from)) => version.migrate(&from, session).and_then(|()| session.fits())?,
        None => {}
    }
    session.set_writer(version.hash(), version.version());
    Ok(())
}

/// Where ticks put what they make.
pub struct TickTarget {
    /// The pipeline's journal.
    pub journal: Arc<dyn Journal>,
    /// Of the pipeline's sources: what a plugin emits without an event has none.
    pub selectors: PresentSelectors,
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
        let Some(selectors) = self.selectors.get() else {
            return Err(CommitError::Failed("the plan has a channel that the journal does not have".into()));
        };
        let selector = selectors.get(None);
        let put = |batch| selector.puts(batch, self.journal.as_ref());
        commit.puts = out.kept.into_iter().flat_map(put).collect();
        commit.puts.extend(quarantine::puts(self.quarantine, out.quarantined, "source", None));
        if commit.puts.is_empty() && commit.state.is_empty() {
            return Ok(None);
        }
        selector.hand_in(self.journal.as_ref(), commit, None).map(Some)
    }
}

/// What a tick made that is too large for a commit is as if the tick had not been: the plugin still has it, and is told of the time again.
fn hand_in_tick(
    target: &TickTarget,
    link: &Link,
    turn: &mut Turn,
    out: StatefulOutput,
) -> Result<Option<Box<dyn Ticket>>, CommitError> {
    match target.commit(out, turn.take_state()) {
        Ok(ticket) => {
            turn.handed_in();
            Ok(ticket)
        }
        Err(error @ CommitError::TooLarge { .. }) => {
            tick_failed(link, &error.to_string());
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Ticks until `wake` stops: each link at its interval, between two batches, also when no event comes.
pub fn run_ticks(stateful: &Stateful, target: &TickTarget, wake: &Wake) -> Result<(), CommitError> {
    let (mut links, mut due) = (Links::default(), Vec::new());
    let mut last: Option<Box<dyn Ticket>> = None;
    loop {
        let now = Instant::now();
        let mut next = now + limits::TICK_LOOK;
        let present = stateful.links.load_full();
        if !Arc::ptr_eq(&links, &present) {
            links = present;
            due = vec![None; links.len()];
        }
        let first = first_with_state(&links);
        for (index, (link, due)) in links.iter().zip(&mut due).skip(first).enumerate() {
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
            if !turn.is_of(&links) {
                next = now;
                break;
            }
            let mut hold = || match wake.wait(limits::HOLD_POLL) {
                true => Err(Wait::Stopped),
                false if stateful.is_wanted() => Err(Wait::Exchange),
                false => Ok(()),
            };
            let out = match stateful.tick(&mut turn, index, &mut hold) {
                Ok(out) => out,
                Err(Wait::Stopped) => return Ok(()),
                Err(Wait::Exchange) => {
                    // It ticks again in a turn after that of whoever waits for this one.
                    (*due, next) = (Some(now), Instant::now() + limits::HOLD_POLL);
                    break;
                }
            };
            last = hand_in_tick(target, link, &mut turn, out)?;
        }
        if wake.wait(next.saturating_duration_since(Instant::now())) {
            return settle(target, last);
        }
    }
}

/// Sinks that are told to finish do so when they find nothing more: what was handed in has to be there by then. Where tickets wait for the
/// readers, these find events that are not durable, too.
fn settle(target: &TickTarget, last: Option<Box<dyn Ticket>>) -> Result<(), CommitError> {
    if let Some(ticket) = last.filter(|_| !target.journal.acknowledges_late())
        && let Some(outcome) = ticket.wait(None)
    {
        outcome?;
    }
    Ok(())
}
