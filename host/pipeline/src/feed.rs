//! The source side: a source's thread, the threads that run its interceptors, and the thread that
//! commits in order.
//!
//! ```text
//! source -> [work queue] -> interceptor threads -> [done queue] -> committer -> journal
//! ```
//! A batch is stamped with its number and with the versions of the plugins when it is emitted, so a
//! swap takes effect between two batches whatever thread processes them. The committer puts results
//! back in order; each commit holds the batch, what was quarantined of it, and the positions it moves.
//! The number of batches between `emit` and the journal is bounded by permits; without one, `emit`
//! waits: that is the back-pressure.
//!
//! Which channels get which rows is the choice of the source's selector ([`crate::selector`]); all of a batch is one commit. A full
//! channel makes the commit wait, and the permits hold the source. When the channel's `keep_alive` has passed, the source is shown as
//! busy ([`FeedState::Busy`]). The commit itself is tried on, in its place: what was emitted before goes in before.
//!
//! `emit` also waits while the process is over its memory budget ([`crate::memory`]).
//!
//! From the first plugin with state on, the committer itself runs the chain ([`crate::stateful`]).
//!
//! A commit that is over a limit of the journal would never be accepted: the batch goes to quarantine as the source emitted it, and what
//! plugins made of it is as if it had never been.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use flumen_event::Batch;
use flumen_journal::{ChannelId, Commit, CommitError, Journal, Put, Ticket};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::chain::{Chain, ChainOutput, Versions};
use crate::component::{BuildError, Place};
use crate::interceptor::Quarantined;
use crate::memory::{InMemory, MemoryGate};
use crate::metrics::{ComponentKind, ComponentMetrics, Metric};
use crate::plan::BatchPlan;
use crate::selector::{Left, Selector};
use crate::source::{Emission, Emit, Progress, Source, SourceContext, SourceError, Stopped, Wake};
use crate::stateful::{Stateful, StatefulOutput, Turn, Wait};
use crate::{limits, quarantine};

/// Makes a source; called at the start and after a panic.
pub type MakeSource = Box<dyn FnMut() -> Result<Box<dyn Source>, BuildError> + Send>;

/// What a feed is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FeedState {
    /// The source runs.
    Running = 0,
    /// The source failed and is tried again.
    Retrying = 1,
    /// The input has ended, or the pipeline stopped; everything is committed.
    Ended = 2,
    /// The journal takes no more commits.
    Failed = 3,
    /// A channel has been full for longer than its `keep_alive`: events wait.
    Busy = 4,
    /// The process has more memory than its budget: events wait.
    Held = 5,
}

/// Why a pipeline takes nothing of a source for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Busy {
    /// The full channel.
    pub channel: Arc<str>,
    /// Events in it when it was looked at last.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Since when a commit waits.
    pub since: Instant,
}

/// A source under way.
pub struct Feed {
    /// The source's name.
    pub name: Arc<str>,
    /// Its counters.
    pub metrics: Arc<ComponentMetrics>,
    /// Stops it.
    pub wake: Wake,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Where a feed puts its events.
pub struct FeedTarget {
    /// The pipeline's journal.
    pub journal: Arc<dyn Journal>,
    /// Which channels get its events, all in one commit.
    pub selector: Arc<Selector>,
    /// How long a put may wait for each channel before the source is shown as busy.
    pub keep_alive: BTreeMap<String, Duration>,
    /// The quarantine channel.
    pub quarantine: ChannelId,
    /// The part of the chain that keeps state.
    pub stateful: Arc<Stateful>,
    /// Of the process.
    pub memory: Arc<MemoryGate>,
    /// What the keys of its positions begin with in the journal: [`positions_of`], or those of a backfill.
    pub prefix: Vec<u8>,
}

/// What the keys of a source's positions begin with.
pub fn positions_of(source: &str) -> Vec<u8> {
    format!("source/{source}/").into_bytes()
}

struct Shared {
    target: FeedTarget,
    chain: Arc<Chain>,
    in_flight_max: usize,
    pending: Mutex<Pending>,
    changed: Condvar,
    state: AtomicU8,
    busy: Mutex<Option<Busy>>,
    /// The source waits for the memory budget.
    is_held: AtomicBool,
    wake: Wake,
    metrics: Arc<ComponentMetrics>,
}

#[derive(Default)]
struct Pending {
    /// Emitted, not yet handed to the journal.
    in_flight: usize,
    /// Handed to the journal, not yet durable.
    undurable: usize,
}

struct Work {
    number: u64,
    versions: Versions,
    emission: Emission,
}

struct Done {
    number: u64,
    /// Before the chain.
    input: Batch,
    output: ChainOutput,
    /// Of the source, before the chain.
    quarantined: Vec<Quarantined>,
    positions: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Feed {
    /// Starts the threads of one source.
    pub fn start(
        name: &str,
        mut make: MakeSource,
        chain: Arc<Chain>,
        interceptor_threads: usize,
        batch: BatchPlan,
        target: FeedTarget,
        place: Place,
    ) -> Result<Feed, BuildError> {
        let name: Arc<str> = name.into();
        let source = make()?;
        let metrics = ComponentMetrics::new(ComponentKind::Source, name.clone());
        let wake = Wake::default();
        // Also for an empty chain: links may come while the source runs.
        let workers = interceptor_threads.max(1);
        let shared = Arc::new(Shared {
            target,
            chain,
            in_flight_max: limits::QUEUE_BATCHES + workers,
            pending: Mutex::default(),
            changed: Condvar::new(),
            state: AtomicU8::new(FeedState::Running as u8),
            busy: Mutex::default(),
            is_held: AtomicBool::new(false),
            wake: wake.clone(),
            metrics: metrics.clone(),
        });
        let (work_in, work_out) = crossbeam_channel::unbounded();
        let (done_in, done_out) = crossbeam_channel::unbounded();
        let emitter = Emitter { shared: shared.clone(), work: work_in, next: 0 };
        let mut context =
            SourceContext::new(name.clone(), batch, metrics.clone(), wake.clone(), Box::new(emitter));
        context.place = place;
        // The source last: if a thread cannot be started, those before it end by themselves.
        let mut threads = Vec::with_capacity(workers + 2);
        for _ in 0..workers {
            let (shared, work, done) = (shared.clone(), work_out.clone(), done_in.clone());
            threads.push(spawn(&format!("chain-{name}"), move || run_worker(&shared, &work, &done))?);
        }
        let committer = shared.clone();
        threads.push(spawn(&format!("commit-{name}"), move || Committer::new(committer).run(&done_out))?);
        let running = shared.clone();
        let run = move || run_source(source, &mut make, &mut context, &running);
        threads.push(spawn(&format!("source-{name}"), run)?);
        Ok(Feed { name, metrics, wake, shared, threads })
    }

    /// What it is doing.
    pub fn state(&self) -> FeedState {
        match self.shared.state.load(Ordering::Acquire) {
            0 if self.busy().is_some() => FeedState::Busy,
            0 if self.shared.is_held.load(Ordering::Relaxed) => FeedState::Held,
            0 => FeedState::Running,
            1 => FeedState::Retrying,
            2 => FeedState::Ended,
            _ => FeedState::Failed,
        }
    }

    /// The channel that holds it, if one has been full for longer than its `keep_alive`.
    pub fn busy(&self) -> Option<Busy> {
        self.shared.busy.lock().clone()
    }

    /// What its selector left out.
    pub fn left(&self) -> Left {
        self.shared.target.selector.left()
    }

    /// True when all its threads have ended: everything emitted is durable, or the journal refused it.
    pub fn finished(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }
}

/// Starts a named thread. The only reason to fail is the system's limit of threads.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, BuildError> {
    std::thread::Builder::new().name(name.to_string()).spawn(body).map_err(|error| {
        BuildError::new(
            "",
            format!("cannot start a thread: {error}"),
            "raise the limit of threads of this user",
        )
    })
}

fn run_source(source: Box<dyn Source>, make: &mut MakeSource, context: &mut SourceContext, shared: &Shared) {
    let mut source = Some(source);
    let mut pause = limits::RETRY_FIRST;
    loop {
        let (begin, emitted) = (Instant::now(), context.metrics.get(Metric::SourceEvents));
        let error = match source.as_mut() {
            Some(running) => match catch_unwind(AssertUnwindSafe(|| running.run(context))) {
                Ok(Ok(()) | Err(SourceError::Stopped(_))) => return,
                Ok(Err(SourceError::Retry(error))) => error,
                Err(_) => {
                    source = None;
                    "the source panicked (a bug of Flumen); it is made anew".to_string()
                }
            },
            None => match catch_unwind(AssertUnwindSafe(&mut *make)) {
                Ok(Ok(fresh)) => {
                    source = Some(fresh);
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "making the source anew panicked (a bug of Flumen)".to_string(),
            },
        };
        // A source that gets on between its errors is tried again soon.
        if begin.elapsed() > limits::RETRY_MAX || context.metrics.get(Metric::SourceEvents) > emitted {
            pause = limits::RETRY_FIRST;
        }
        tracing::error!(source = &*context.name, %error, retry_in_ms = pause.as_millis() as u64, "source failed");
        context.metrics.add(Metric::SourceErrors, 1);
        context.metrics.set_error(Some(error));
        shared.set_state(FeedState::Retrying);
        if context.settle().is_err() || context.wait(pause).is_err() {
            return;
        }
        pause = (pause * 2).min(limits::RETRY_MAX);
        context.metrics.set_error(None);
        shared.set_state(FeedState::Running);
    }
}

fn run_worker(shared: &Shared, work: &Receiver<Work>, done: &Sender<Done>) {
    for Work { number, versions, emission } in work {
        // A batch that is held when the pipeline stops is not committed: it is read again.
        let mut hold = || shared.hold();
        let Emission { batch, positions, quarantined } = emission;
        let Ok(output) = shared.chain.process(0, &versions, batch.clone(), &mut hold) else { return };
        if done.send(Done { number, input: batch, output, quarantined, positions }).is_err() {
            return;
        }
    }
}

impl Shared {
    fn set_state(&self, state: FeedState) {
        // Failed is final.
        let _previous = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |present| {
            (present != FeedState::Failed as u8).then_some(state as u8)
        });
    }

    /// A moment of a batch that waits for another version of its plugin.
    fn hold(&self) -> Result<(), Stopped> {
        if self.failed() || self.wake.stopping() {
            return Err(Stopped);
        }
        std::thread::sleep(limits::HOLD_POLL);
        Ok(())
    }

    /// Hands a commit in; the source is busy while a channel is full for longer than it may be.
    fn hand_in(&self, commit: Commit) -> Result<Box<dyn Ticket>, CommitError> {
        let FeedTarget { journal, selector, keep_alive, .. } = &self.target;
        let begin = Instant::now();
        let Some(first) = keep_alive.values().min().filter(|_| !commit.puts.is_empty()) else {
            return selector.hand_in(journal.as_ref(), commit, None);
        };
        let mut wait = *first;
        loop {
            // A duration beyond the clock is no limit.
            let deadline = Instant::now().checked_add(wait);
            match selector.hand_in(journal.as_ref(), commit.clone(), deadline) {
                Err(CommitError::Full { channel, events, bytes }) => {
                    let limit = keep_alive.get(&channel).copied().unwrap_or(*first);
                    wait = limit.saturating_sub(begin.elapsed());
                    if wait.is_zero() {
                        self.tell_busy(Busy { channel: channel.into(), events, bytes, since: begin });
                        wait = limits::FULL_LOOK;
                    }
                }
                outcome => {
                    *self.busy.lock() = None;
                    return outcome;
                }
            }
        }
    }

    fn quarantined(&self, groups: impl Iterator<Item = Quarantined>) -> Vec<Put> {
        let FeedTarget { quarantine, selector, .. } = &self.target;
        quarantine::puts(*quarantine, groups.collect(), "source", selector.source())
    }

    fn prefixed(&self, positions: &[(Vec<u8>, Vec<u8>)]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let prefixed = |key: &Vec<u8>| [self.target.prefix.as_slice(), key].concat();
        positions.iter().map(|(key, value)| (prefixed(key), value.clone())).collect()
    }

    /// The commit of a batch whose own the journal can never accept: its events as they were before the chain, to quarantine.
    fn unprocessed(&self, done: Done, error: &CommitError) -> Commit {
        let source = self.metrics.name.clone();
        let events = done.input.rows();
        tracing::error!(source = &*source, events, %error, "a batch goes to quarantine: what becomes of it is too large");
        let group = Quarantined {
            reasons: vec![format!("what became of its batch is too large: {error}"); events],
            batch: done.input,
            by: source,
            hash: "".into(),
            rejected: false,
        };
        let puts = self.quarantined(std::iter::once(group).chain(done.quarantined));
        Commit { puts, positions: self.prefixed(&done.positions), ..Commit::default() }
    }

    /// Counted and logged once for each wait, also one for several channels.
    fn tell_busy(&self, busy: Busy) {
        let mut present = self.busy.lock();
        if present.is_none() {
            self.metrics.add(Metric::SourceBusy, 1);
            let Busy { channel, events, bytes, .. } = &busy;
            tracing::warn!(source = &*self.metrics.name, %channel, events, bytes,
                "the channel has been full for longer than its keep_alive: the source is held");
        }
        *present = Some(busy);
    }

    /// Waits while the process is over its memory budget, and memory can still become free by that ([`crate::memory`]). In a stop nobody
    /// waits: what was read from a pipe goes where there is room for it.
    fn wait_for_memory(&self) {
        let memory = &self.target.memory;
        self.metrics.add(Metric::SourceHeld, 1);
        self.is_held.store(true, Ordering::Relaxed);
        let mut in_memory = None;
        while memory.is_held() && !self.failed() && !self.wake.stopping() {
            memory.wait(limits::MEMORY_LOOK);
            if memory.is_held() && self.waits_in_vain(&mut in_memory) {
                memory.pass();
                break;
            }
        }
        self.is_held.store(false, Ordering::Relaxed);
    }

    /// Whether waiting longer frees nothing. `in_memory`: of the first look at which no batch of this source was on its way any more.
    fn waits_in_vain(&self, in_memory: &mut Option<InMemory>) -> bool {
        {
            let pending = self.pending.lock();
            if pending.in_flight > 0 || pending.undurable > 0 {
                return false;
            }
        }
        let status = self.target.journal.status();
        in_memory.get_or_insert_with(|| InMemory::of(&status)).is_gone(&status)
    }

    fn failed(&self) -> bool {
        self.state.load(Ordering::Acquire) == FeedState::Failed as u8
    }

    /// The part of the chain that keeps state; all of it, if the chain was exchanged since the batch went through its beginning.
    fn in_turn(&self, done: &Done) -> Result<(MutexGuard<'_, Turn>, StatefulOutput), Stopped> {
        let stateful = &self.target.stateful;
        let mut hold = || match stateful.is_wanted() {
            true => Err(Wait::Exchange),
            false => self.hold().map_err(|Stopped| Wait::Stopped),
        };
        loop {
            let mut turn = stateful.turn();
            let begun = match turn.is_of(&done.output.links) {
                true => Ok((done.output.kept.clone(), done.output.quarantined.clone())),
                false => {
                    let (versions, input) = (self.chain.versions(), done.input.clone());
                    let output = self.chain.process(0, &versions, input, &mut hold);
                    output.map(|output| (output.kept, output.quarantined))
                }
            };
            let processed = begun.and_then(|(kept, quarantined)| {
                let mut output = stateful.process(&mut turn, kept, &mut hold)?;
                output.quarantined.extend(quarantined);
                Ok(output)
            });
            match processed {
                Ok(output) => return Ok((turn, output)),
                Err(Wait::Stopped) => return Err(Stopped),
                Err(Wait::Exchange) => drop(turn),
            }
            self.hold()?;
        }
    }
}

struct Emitter {
    shared: Arc<Shared>,
    work: Sender<Work>,
    next: u64,
}

impl Emit for Emitter {
    fn emit(&mut self, emission: Emission) -> Result<(), Stopped> {
        let shared = &self.shared;
        let begin = Instant::now();
        if shared.target.memory.is_held() {
            shared.wait_for_memory();
        }
        {
            let mut pending = shared.pending.lock();
            while pending.in_flight >= shared.in_flight_max {
                if shared.failed() {
                    return Err(Stopped);
                }
                // The timeout only bounds how long a stop goes unnoticed.
                shared.changed.wait_for(&mut pending, Duration::from_millis(100));
                if shared.wake.stopping() {
                    return Err(Stopped);
                }
            }
            if shared.failed() {
                return Err(Stopped);
            }
        }
        shared.metrics.add(Metric::SourceBlockedNs, begin.elapsed().as_nanos() as u64);
        shared.metrics.add(Metric::SourceEvents, emission.batch.rows() as u64);
        shared.metrics.add(Metric::SourceBytes, emission.batch.body_bytes() as u64);
        let work = Work { number: self.next, versions: shared.chain.versions(), emission };
        // Counted last: a panic above must not leave a batch in flight that nobody will commit. Only
        // this thread counts up, so the permit is still there.
        shared.pending.lock().in_flight += 1;
        self.next += 1;
        self.work.send(work).map_err(|_| Stopped)
    }

    fn settle(&mut self) -> Result<(), Stopped> {
        let shared = &self.shared;
        let mut pending = shared.pending.lock();
        while pending.in_flight > 0 || pending.undurable > 0 {
            if shared.failed() || shared.wake.stopping() {
                return Err(Stopped);
            }
            shared.changed.wait_for(&mut pending, Duration::from_millis(100));
        }
        Ok(())
    }

    fn progress(&self) -> Progress {
        let pending = self.shared.pending.lock();
        let open = (pending.in_flight + pending.undurable) as u64;
        Progress { emitted: self.next, durable: self.next.saturating_sub(open) }
    }

    fn positions(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let prefix = &self.shared.target.prefix;
        let all = self.shared.target.journal.positions(prefix);
        all.into_iter()
            .map(|(key, value)| (key.strip_prefix(prefix.as_slice()).unwrap_or(&key).to_vec(), value))
            .collect()
    }
}

/// Commits results in the order in which their batches were emitted.
struct Committer {
    shared: Arc<Shared>,
    waiting: BTreeMap<u64, Done>,
    next: u64,
    tickets: VecDeque<Box<dyn Ticket>>,
}

impl Committer {
    fn new(shared: Arc<Shared>) -> Self {
        Committer { shared, waiting: BTreeMap::new(), next: 0, tickets: VecDeque::new() }
    }

    fn run(mut self, done: &Receiver<Done>) {
        let outcome = self.commit_all(done);
        if let Err(error) = outcome {
            if !matches!(error, CommitError::Closing) {
                tracing::error!(%error, "the journal takes no more events; the pipeline stops");
                self.shared.metrics.set_error(Some(error.to_string()));
            }
            self.shared.state.store(FeedState::Failed as u8, Ordering::Release);
            self.shared.wake.stop();
        } else {
            self.shared.set_state(FeedState::Ended);
        }
        self.shared.changed.notify_all();
    }

    fn commit_all(&mut self, done: &Receiver<Done>) -> Result<(), CommitError> {
        loop {
            let received = if self.tickets.is_empty() {
                done.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                done.recv_timeout(limits::COMMIT_POLL)
            };
            match received {
                Ok(result) => {
                    self.waiting.insert(result.number, result);
                    while let Some(ready) = self.waiting.remove(&self.next) {
                        self.next += 1;
                        if !self.commit(ready)? {
                            return self.reap(0);
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.reap(0),
            }
            // Then the channel's capacity bounds them.
            let is_late = self.shared.target.journal.acknowledges_late();
            self.reap(if is_late { usize::MAX } else { limits::COMMITS_IN_FLIGHT })?;
        }
    }

    /// False: the pipeline stops, and this batch stays out.
    fn commit(&mut self, done: Done) -> Result<bool, CommitError> {
        let target = &self.shared.target;
        let mut commit = Commit::default();
        // Held until the commit is handed in: commits have the order in which plugins saw their batches.
        let mut turn = None;
        let ChainOutput { kept, quarantined, .. } = &done.output;
        let needs_state = done.output.needs_state() || target.stateful.is_needed();
        let (kept, quarantined) = if needs_state && !kept.is_empty() {
            // A batch that is held when the pipeline stops is not committed: it is read again.
            let Ok((held, output)) = self.shared.in_turn(&done) else { return Ok(false) };
            commit.state = turn.insert(held).take_state();
            (output.kept, output.quarantined)
        } else {
            (vec![kept.clone()], quarantined.clone())
        };
        let journal = target.journal.as_ref();
        commit.puts.extend(kept.into_iter().flat_map(|batch| target.selector.puts(batch, journal)));
        commit.puts.extend(self.shared.quarantined(quarantined.into_iter().chain(done.quarantined.clone())));
        commit.positions = self.shared.prefixed(&done.positions);
        if !commit.puts.is_empty() || !commit.positions.is_empty() || !commit.state.is_empty() {
            let ticket = match self.shared.hand_in(commit) {
                Err(error @ CommitError::TooLarge { .. }) => {
                    // Not handed in: the turn forgets what plugins wrote.
                    drop(turn);
                    self.shared.hand_in(self.shared.unprocessed(done, &error))?
                }
                outcome => {
                    let ticket = outcome?;
                    if let Some(turn) = turn.as_deref_mut() {
                        turn.handed_in();
                    }
                    drop(turn);
                    ticket
                }
            };
            self.tickets.push_back(ticket);
            self.shared.pending.lock().undurable += 1;
        }
        self.shared.pending.lock().in_flight -= 1;
        self.shared.changed.notify_all();
        Ok(true)
    }

    /// Takes off what is durable; waits while more than `keep` are not.
    fn reap(&mut self, keep: usize) -> Result<(), CommitError> {
        while let Some(ticket) = self.tickets.front() {
            let wait = if self.tickets.len() > keep { None } else { Some(Duration::ZERO) };
            match ticket.wait(wait) {
                None => return Ok(()),
                Some(outcome) => outcome?,
            };
            self.tickets.pop_front();
            self.shared.pending.lock().undurable -= 1;
            self.shared.changed.notify_all();
        }
        Ok(())
    }
}
