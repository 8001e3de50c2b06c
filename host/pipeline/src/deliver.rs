//! The sink side: a thread per sink that reads its channel, delivers, flushes and acknowledges.
//!
//! The order of steps is the promise: deliver, flush (durable at the destination), one commit of
//! acknowledgement, position and what the sink could not take; when that is durable, the steps that
//! must not be undone. An error at any of them goes back to the last flush: the sink recovers its
//! destination to the position of that flush and events are delivered again from its cursor.
//!
//! A destination that stores the cursor itself moves it before our commit. What the sink or its chain put
//! into quarantine since the last flush would be skipped with everything else if the agent died between
//! the two. So it is put on record first ([`pending`]): a position holds the events, their reasons and the
//! mark that the destination is about to store. The commit of the acknowledgement turns it into events
//! of the quarantine; after a crash the stored mark tells whether it counts. A destination may carry out a step after it was
//! asked what it holds ([`Sink::settles`]): then the record stays beside those of the steps that are tried instead, until one is done.

mod records;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flumen_event::Batch;
use flumen_journal::faults::{self, STORED_MARK_PLACE};
use flumen_journal::{
    Ack, ChannelId, Commit, CommitError, Delivery, Journal, Put, ReadError, Reader, ReaderId, Ticket,
};

use crate::chain::{Chain, Versions};
use crate::component::{BuildError, Place};
use crate::feed::spawn;
use crate::group::{GroupReader, Member};
use crate::interceptor::Quarantined;
use crate::metrics::{ComponentKind, ComponentMetrics, Metric};
use crate::sink::{Cursors, Sink, SinkCommit, SinkContext, SinkError, Stored};
use crate::source::Wake;
use crate::{limits, pending, quarantine, replay};

/// Makes a sink; called at the start and after a panic.
pub type MakeSink = Box<dyn FnMut() -> Result<Box<dyn Sink>, BuildError> + Send>;

/// What a sink is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum OutletState {
    /// It delivers, or waits for events.
    Running = 0,
    /// Its destination failed; it is tried again.
    Retrying = 1,
    /// It stopped; everything flushed is acknowledged.
    Ended = 2,
    /// The journal takes no more acknowledgements.
    Failed = 3,
}

/// A sink under way.
pub struct Outlet {
    /// The sink's name.
    pub name: Arc<str>,
    /// Its counters.
    pub metrics: Arc<ComponentMetrics>,
    /// Its own interceptors.
    pub chain: Arc<Chain>,
    /// Stops it at once, at the next flush boundary.
    pub wake: Wake,
    /// Lets it finish what is in its channel, then end.
    pub finish: Wake,
    /// It ends when it has delivered so much.
    until: Arc<AtomicU64>,
    state: Arc<AtomicU8>,
    thread: JoinHandle<()>,
}

/// Where an outlet reads and acknowledges.
#[derive(Clone)]
pub struct OutletPlace {
    /// The pipeline's journal.
    pub journal: Arc<dyn Journal>,
    /// The channel that it reads.
    pub channel: ChannelId,
    /// Its reader there.
    pub reader: ReaderId,
    /// The reader's name: its own, or its group's.
    pub reader_name: Arc<str>,
    /// Its place in a group, if it is in one.
    pub member: Option<Member>,
    /// The quarantine channel.
    pub quarantine: ChannelId,
}

/// The key of a sink's position in the journal.
pub fn position_key(sink: &str) -> Vec<u8> {
    format!("sink/{sink}").into_bytes()
}

impl Outlet {
    /// Starts the sink's thread.
    pub fn start(
        name: &str,
        mut make: MakeSink,
        chain: Chain,
        place: OutletPlace,
        stands: Place,
    ) -> Result<Outlet, BuildError> {
        let name: Arc<str> = name.into();
        let sink = make()?;
        let metrics = ComponentMetrics::new(ComponentKind::Sink, name.clone());
        let (wake, finish) = (Wake::default(), Wake::default());
        let state = Arc::new(AtomicU8::new(OutletState::Running as u8));
        let chain = Arc::new(chain);
        let commit = |key| {
            let (place, wake) = (place.clone(), wake.clone());
            PositionCommit { place, key, wake }
        };
        let (position, pending) = (commit(position_key(&name)), commit(pending::key(&name)));
        let mut context = SinkContext::new(name.clone(), metrics.clone(), wake.clone(), Box::new(position));
        context.place = stands;
        let until = Arc::new(AtomicU64::new(u64::MAX));
        let names = place.member.as_ref().map_or_else(|| vec![name.to_string()], Member::names);
        let mut runner = Runner {
            names,
            reader: match &place.member {
                Some(member) => Box::new(GroupReader::new(member.clone())),
                None => place.journal.open_reader(place.channel, place.reader),
            },
            key: position_key(&name),
            pending,
            unsettled: Vec::new(),
            chain: chain.clone(),
            context,
            place,
            finish: finish.clone(),
            until: until.clone(),
            state: state.clone(),
            acks: VecDeque::new(),
            unflushed: None,
            cursor: 0,
            stored: None,
            rest: None,
            taken: (0, 0),
            under_way: (0, 0),
            burst: Burst::default(),
        };
        let thread = spawn(&format!("sink-{name}"), move || runner.run(sink, &mut make))?;
        Ok(Outlet { name, metrics, chain, wake, finish, until, state, thread })
    }

    /// What it is doing.
    pub fn state(&self) -> OutletState {
        match self.state.load(Ordering::Acquire) {
            0 => OutletState::Running,
            1 => OutletState::Retrying,
            2 => OutletState::Ended,
            _ => OutletState::Failed,
        }
    }

    /// Lets it deliver all events of its channel before this one, then end.
    pub fn finish_at(&self, cursor: u64) {
        self.until.store(cursor, Ordering::Release);
    }

    /// True when its thread has ended.
    pub fn finished(&self) -> bool {
        self.thread.is_finished()
    }
}

/// A commit of the sink's position alone. It repeats the present cursor as an acknowledgement, so
/// that on a full disk it overtakes puts like any other acknowledgement.
struct PositionCommit {
    place: OutletPlace,
    key: Vec<u8>,
    wake: Wake,
}

impl SinkCommit for PositionCommit {
    fn commit_position(&mut self, position: &[u8]) -> Result<(), SinkError> {
        self.commit(self.key.clone(), position.to_vec())
    }
}

impl PositionCommit {
    fn commit(&self, key: Vec<u8>, value: Vec<u8>) -> Result<(), SinkError> {
        let OutletPlace { journal, channel, reader, .. } = &self.place;
        let status = journal.status();
        let acknowledged = status
            .channels
            .get(channel.0 as usize)
            .and_then(|status| status.readers.iter().find(|(name, _)| **name == *self.place.reader_name))
            .map_or(0, |(_, cursor)| *cursor);
        let commit = Commit {
            positions: vec![(key, value)],
            acks: vec![Ack { channel: *channel, reader: *reader, cursor: acknowledged }],
            ..Commit::default()
        };
        let ticket = journal.commit(commit, None).map_err(stop_or_retry)?;
        wait_for(ticket.as_ref(), &self.wake)
    }
}

/// Waits until a commit is durable, or the pipeline stops.
fn wait_for(ticket: &dyn Ticket, wake: &Wake) -> Result<(), SinkError> {
    loop {
        match ticket.wait(Some(limits::SINK_WAIT)) {
            Some(outcome) => return outcome.map(|_| ()).map_err(stop_or_retry),
            None if wake.stopping() => return Err(SinkError::Stopped),
            None => {}
        }
    }
}

fn stop_or_retry(error: CommitError) -> SinkError {
    match error {
        CommitError::Closing | CommitError::Failed(_) => SinkError::Stopped,
        other => SinkError::Retry(other.to_string()),
    }
}

struct Runner {
    place: OutletPlace,
    key: Vec<u8>,
    /// Puts what waits for the destination on record.
    pending: PositionCommit,
    /// What is on record of steps that may still be carried out.
    unsettled: Vec<pending::Record>,
    chain: Arc<Chain>,
    context: SinkContext,
    finish: Wake,
    until: Arc<AtomicU64>,
    state: Arc<AtomicU8>,
    reader: Box<dyn Reader>,
    acks: VecDeque<PendingAck>,
    unflushed: Option<Unflushed>,
    /// Events before this are delivered (not all of them flushed).
    cursor: u64,
    /// What the destination said it holds, if it stores marks.
    stored: Option<Stored>,
    /// What was cut off the last delivery, because the sink is to flush first ([`Sink::group`]).
    rest: Option<Delivery>,
    /// Rows and body bytes given to the sink since the last flush, before its chain; with those under way.
    taken: (usize, usize),
    /// Those of the delivery that has not come to the sink yet: a flush meanwhile has nothing of it.
    under_way: (usize, usize),
    /// Whom events may be addressed to that it takes.
    names: Vec<String>,
    burst: Burst,
}

/// The end of a burst: when nothing comes any more, what is left of it does not wait for the linger of a trickle. At most one flush more
/// for each that was full.
#[derive(Default)]
struct Burst {
    /// The last flush was full.
    is_on: bool,
    idle_since: Option<Instant>,
}

impl Burst {
    /// What is not flushed is the rest of a burst, and nothing came behind it.
    fn is_over(&self) -> bool {
        self.is_on && self.idle_since.is_some_and(|since| since.elapsed() >= limits::BURST_END)
    }
}

/// How many of the first `most` rows have bodies of at most this many bytes together; `least` of them in any case.
fn rows_within(batch: &Batch, least: usize, most: usize, bytes: usize) -> usize {
    let offsets = batch.body().value_offsets();
    let begin = offsets.first().copied().unwrap_or(0);
    let fits = |end: &i32| usize::try_from(end.saturating_sub(begin)).is_ok_and(|length| length <= bytes);
    let rows = offsets.get(1..).unwrap_or_default().partition_point(fits);
    rows.max(least).min(most)
}

struct PendingAck {
    ticket: Box<dyn Ticket>,
    position: Vec<u8>,
}

/// What was delivered since the last flush.
struct Unflushed {
    since: Instant,
    events: u64,
    bytes: u64,
}

impl Runner {
    fn run(&mut self, sink: Box<dyn Sink>, make: &mut MakeSink) {
        let mut sink = Some(sink);
        let mut pause = limits::RETRY_FIRST;
        // Since the last pause: a step of the sink's own work ([`SinkError::Again`]) is none.
        let (mut begin, mut cursor) = (Instant::now(), self.context.metrics.get(Metric::SinkCursor));
        loop {
            let mut own_pause = None;
            let error = match sink.as_mut() {
                Some(running) => {
                    match catch_unwind(AssertUnwindSafe(|| self.deliver_all(running.as_mut()))) {
                        Ok(Ok(())) => return self.ended(),
                        Ok(Err(SinkError::Stopped)) => return self.stopped(),
                        Ok(Err(SinkError::Again { after, .. })) if after.is_zero() => continue,
                        Ok(Err(SinkError::Again { reason, after })) => {
                            own_pause = Some(after.min(limits::OWN_PAUSE_MAX));
                            reason
                        }
                        Ok(Err(SinkError::Moved(reason))) => {
                            tracing::info!(
                                sink = &*self.context.name,
                                "{reason}: back to the last acknowledgement"
                            );
                            if self.context.wake.wait(limits::RETRY_FIRST) {
                                return self.ended();
                            }
                            continue;
                        }
                        Ok(Err(SinkError::Retry(error))) => error,
                        Ok(Err(SinkError::Fatal(error))) => return self.failed(error),
                        Err(_) => {
                            sink = None;
                            "the sink panicked (a bug of Flumen); it is made anew".to_string()
                        }
                    }
                }
                None => match catch_unwind(AssertUnwindSafe(&mut *make)) {
                    Ok(Ok(fresh)) => {
                        sink = Some(fresh);
                        continue;
                    }
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "making the sink anew panicked (a bug of Flumen)".to_string(),
                },
            };
            // A sink that gets on between its errors is tried again soon.
            let now = self.context.metrics.get(Metric::SinkCursor);
            if begin.elapsed() > limits::RETRY_MAX || now > cursor {
                pause = limits::RETRY_FIRST;
            }
            cursor = now;
            let waits = own_pause.unwrap_or(pause);
            tracing::error!(sink = &*self.context.name, %error, retry_in_ms = waits.as_millis() as u64, "sink failed");
            self.context.metrics.add(Metric::SinkErrors, 1);
            self.context.metrics.set_error(Some(error));
            self.state.store(OutletState::Retrying as u8, Ordering::Release);
            if let Some(member) = &self.place.member {
                member.failed(sink.as_ref().is_some_and(|sink| sink.forgets()));
            }
            if self.context.wake.wait(waits) {
                return self.ended();
            }
            begin = Instant::now();
            if own_pause.is_some() {
                continue;
            }
            pause = (pause * 2).min(limits::RETRY_MAX);
        }
    }

    fn ended(&self) {
        self.state.store(OutletState::Ended as u8, Ordering::Release);
    }

    /// Stopped on its way. If nobody asked for that, the journal has failed: the pipeline cannot go on,
    /// and says so.
    fn stopped(&self) {
        let is_asked_to = self.until.load(Ordering::Acquire) < u64::MAX;
        if self.context.wake.stopping() || self.finish.stopping() || is_asked_to {
            return self.ended();
        }
        self.failed("the journal takes no more acknowledgements".to_string());
    }

    fn failed(&self, reason: String) {
        tracing::error!(sink = &*self.context.name, "{reason}; the sink stops");
        self.context.metrics.set_error(Some(reason));
        self.state.store(OutletState::Failed as u8, Ordering::Release);
    }

    /// Recovers, then delivers until the pipeline stops.
    fn deliver_all(&mut self, sink: &mut dyn Sink) -> Result<(), SinkError> {
        self.recover(sink)?;
        loop {
            if self.context.wake.stopping() || (self.has_reached_end() && self.may_flush()) {
                return self.stop(sink);
            }
            let policy = sink.flush_policy();
            let wait = match &self.unflushed {
                Some(unflushed) => {
                    policy.linger.saturating_sub(unflushed.since.elapsed()).min(limits::SINK_WAIT)
                }
                None => limits::SINK_WAIT,
            };
            let wait = match self.burst.is_on && self.unflushed.is_some() {
                true => wait.min(limits::BURST_END),
                false => wait,
            };
            // While acknowledgements are under way the wait is short, so that their last steps are not late.
            let wait = if self.acks.is_empty() { wait } else { wait.min(Duration::from_millis(10)) };
            // Asked before the read: only a read that began when all had come finds the channel empty.
            let is_finishing = self.finish.stopping();
            // A member waits for the others: what they fail on is its to deliver.
            let may_end = is_finishing && self.place.member.as_ref().is_none_or(Member::may_end);
            let wait = match (is_finishing, may_end) {
                (false, _) => wait,
                (true, false) => wait.min(limits::HOLD_POLL),
                (true, true) => Duration::ZERO,
            };
            let asked = Instant::now();
            match self.next(sink, wait) {
                Ok(Some(delivery)) => {
                    self.burst.idle_since = None;
                    self.deliver(sink, delivery)?;
                }
                Ok(None) if may_end && self.rest.is_none() && !self.stops_here() => return self.stop(sink),
                Ok(None) if self.unflushed.is_none() => self.works_again(),
                Ok(None) => drop(self.burst.idle_since.get_or_insert(asked)),
                // Nothing can be acknowledged any more, so nothing more is flushed.
                Err(ReadError::Closing) => return Err(SinkError::Stopped),
                Err(ReadError::Moved(reason)) => {
                    tracing::info!(sink = &*self.context.name, "{reason}: back to the last acknowledgement");
                    self.recover(sink)?;
                    continue;
                }
                Err(error) => return Err(SinkError::Retry(error.to_string())),
            }
            let is_full = self.is_full(sink)
                || self.unflushed.as_ref().is_some_and(|unflushed| unflushed.bytes >= policy.bytes);
            let due = is_full
                || self
                    .unflushed
                    .as_ref()
                    .is_some_and(|it| it.since.elapsed() >= policy.linger || self.burst.is_over());
            // What goes to quarantine waits in memory and becomes one commit.
            let due = due || self.context.quarantined_bytes() >= limits::SINK_QUARANTINE_BYTES;
            let due = due || sink.due();
            if self.reader.flushes_at(self.cursor, due) {
                self.flush(sink)?;
                self.burst = Burst { is_on: is_full, idle_since: None };
            }
            self.reap(sink, limits::ACKS_IN_FLIGHT)?;
        }
    }

    /// Whether everything is delivered that was there when this sink was asked to end.
    fn has_reached_end(&self) -> bool {
        self.cursor >= self.until.load(Ordering::Acquire)
    }

    /// Whether a flush may be here. Where sinks flush together and others have passed this place it is where they are.
    fn may_flush(&mut self) -> bool {
        self.unflushed.is_none() || self.reader.flushes_at(self.cursor, true)
    }

    /// Whether the reader gives nothing more before a flush.
    fn stops_here(&mut self) -> bool {
        self.unflushed.is_some() && self.reader.flushes_at(self.cursor, false)
    }

    fn recover(&mut self, sink: &mut dyn Sink) -> Result<(), SinkError> {
        self.unflushed = None;
        self.rest = None;
        (self.taken, self.under_way) = ((0, 0), (0, 0));
        self.context.take_quarantined();
        // Acknowledgements handed in before an error are committed in order; what a rename waits for
        // is in the position, and recovery does it.
        // One that was refused is as good as never made: the journal's position is from before it.
        while let Some(ack) = self.acks.pop_front() {
            match wait_for(ack.ticket.as_ref(), &self.context.wake) {
                Ok(()) | Err(SinkError::Retry(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let committed = self.place.journal.position(&self.key).filter(|position| !position.is_empty());
        // A destination that is cut back to no position loses what it has.
        if self.place.journal.is_over() {
            return Err(SinkError::Stopped);
        }
        let mut cursors = Cursors::new(self.reader.as_mut());
        let stored = sink.recover(&mut self.context, committed.as_deref(), &mut cursors)?;
        let acknowledged = self.reader.acknowledged();
        self.stored = stored.map(|stored| Stored {
            from: stored.from.max(acknowledged),
            until: stored.until.max(acknowledged),
        });
        let cursor = self.stored.map_or(acknowledged, |stored| stored.from);
        // What its destination does not have may go to others, unless that may still carry out what it was asked for before: then
        // the member keeps its ranges, and delivers them itself. One that forgets may double events anyway.
        if let Some(member) = self.place.member.as_ref().filter(|_| sink.settles() || sink.forgets()) {
            member.settled(self.stored.map_or(acknowledged, |stored| stored.until));
        }
        self.seek(cursor)?;
        self.cursor = cursor;
        self.context.metrics.set(Metric::SinkCursor, cursor);
        self.context.metrics.set(Metric::SinkHandedOut, cursor);
        let settled = self.settle_pending(sink)?;
        if cursor > acknowledged || settled.is_some() {
            self.acknowledge(Vec::new(), settled, cursor)?;
        }
        Ok(())
    }

    /// The next delivery, cut to what the sink still takes before its next flush.
    fn next(&mut self, sink: &dyn Sink, wait: Duration) -> Result<Option<Delivery>, ReadError> {
        let mut delivery = match self.rest.take() {
            Some(rest) => rest,
            None => match self.reader.next(wait)? {
                Some(delivery) => delivery,
                None => return Ok(None),
            },
        };
        let Some(group) = sink.group() else { return Ok(Some(delivery)) };
        let (rows, bytes) = self.taken;
        let rows = rows_within(
            &delivery.batch,
            usize::from(rows == 0),
            group.rows.saturating_sub(rows),
            group.bytes.saturating_sub(bytes),
        );
        if rows < delivery.batch.rows() {
            // Where cursors count more than rows, there is none for a place within a delivery.
            let can_be_cut = delivery.next - delivery.first == delivery.batch.rows() as u64;
            if !can_be_cut && self.taken.0 == 0 {
                self.take(&delivery.batch);
                return Ok(Some(delivery));
            }
            if !can_be_cut || rows == 0 {
                self.rest = Some(delivery);
                return Ok(None);
            }
            let cut = delivery.first + rows as u64;
            let behind = delivery.batch.slice(rows, delivery.batch.rows() - rows);
            let next = std::mem::replace(&mut delivery.next, cut);
            self.rest = Some(Delivery { first: cut, next, lost_before: 0, batch: behind });
            delivery.batch = delivery.batch.slice(0, rows);
        }
        self.take(&delivery.batch);
        Ok(Some(delivery))
    }

    /// Counts what is given to the sink.
    fn take(&mut self, batch: &Batch) {
        self.under_way = (batch.rows(), batch.body_bytes());
        self.taken.0 += batch.rows();
        self.taken.1 += batch.body_bytes();
    }

    /// Whether the sink takes nothing more before its next flush.
    fn is_full(&self, sink: &dyn Sink) -> bool {
        let (rows, bytes) = self.taken;
        rows > 0
            && sink
                .group()
                .is_some_and(|group| rows >= group.rows || bytes >= group.bytes || self.rest.is_some())
    }

    fn seek(&mut self, cursor: u64) -> Result<(), SinkError> {
        self.rest = None;
        self.reader.seek(cursor).map_err(|error| SinkError::Retry(error.to_string()))
    }

    /// Only a flush shows that the destination works, or that there is nothing to deliver: opening it is not enough.
    fn works_again(&mut self) {
        if self.state.swap(OutletState::Running as u8, Ordering::AcqRel) == OutletState::Retrying as u8 {
            tracing::info!(sink = &*self.context.name, "sink works again");
            self.context.metrics.set_error(None);
        }
    }

    fn deliver(&mut self, sink: &mut dyn Sink, mut delivery: Delivery) -> Result<(), SinkError> {
        let begin = Instant::now();
        if let Some(stored) = self.stored.filter(|stored| delivery.first < stored.until) {
            if delivery.next > stored.until {
                // Only the part up to there may be at the destination already; the rest is read again.
                let rows = usize::try_from(stored.until - delivery.first).unwrap_or(usize::MAX);
                delivery.batch = delivery.batch.slice(0, rows);
                delivery.next = stored.until;
                self.seek(stored.until)?;
            }
            delivery.batch = sink.missing(delivery.batch, delivery.next)?;
        }
        let next = delivery.next;
        if delivery.lost_before > 0 {
            self.context.metrics.add(Metric::SinkLostToDamage, delivery.lost_before);
        }
        let versions = self.chain.versions();
        let parts = replay::for_sink(&self.names, &versions, delivery.batch);
        let parts = parts.map_err(|error| SinkError::Retry(error.to_string()))?;
        let (mut kept, mut quarantined) = (Vec::with_capacity(parts.len()), Vec::new());
        for (first, batch) in parts {
            let (rest, refused) = self.intercept(sink, first, &versions, batch)?;
            kept.push(rest);
            quarantined.extend(refused);
        }
        // Not before the last part: while one is held, what was delivered before is flushed, and its acknowledgement would take
        // these rows to quarantine although it does not cover them.
        self.context.quarantine_groups(quarantined);
        delivery.batch = Batch::concat(&kept).map_err(|error| SinkError::Retry(error.to_string()))?;
        let (events, bytes) = (delivery.batch.rows() as u64, delivery.batch.body_bytes() as u64);
        self.context.metrics.set(Metric::SinkHandedOut, next);
        if events > 0 {
            sink.deliver(&mut self.context, &delivery)?;
        }
        self.cursor = next;
        self.under_way = (0, 0);
        let unflushed = self.unflushed.get_or_insert(Unflushed { since: begin, events: 0, bytes: 0 });
        unflushed.events += events;
        unflushed.bytes += bytes;
        self.context.metrics.add(Metric::SinkDeliverNs, begin.elapsed().as_nanos() as u64);
        Ok(())
    }

    /// The sink's own interceptors, from the one at `first`: what goes on, and what goes to quarantine.
    fn intercept(
        &mut self,
        sink: &mut dyn Sink,
        first: usize,
        versions: &Versions,
        batch: Batch,
    ) -> Result<(Batch, Vec<Quarantined>), SinkError> {
        if first >= versions.len() {
            return Ok((batch, Vec::new()));
        }
        let chain = self.chain.clone();
        let output = chain.process(first, versions, batch, &mut || self.hold(sink))?;
        Ok((output.kept, output.quarantined))
    }

    /// A moment of a batch that waits for another version of its plugin. What was delivered before it is finished.
    fn hold(&mut self, sink: &mut dyn Sink) -> Result<(), SinkError> {
        if self.unflushed.is_some() && self.reader.flushes_at(self.cursor, true) {
            self.flush(sink)?;
        }
        self.reap(sink, limits::ACKS_IN_FLIGHT)?;
        if self.context.wake.wait(limits::HOLD_POLL) { Err(SinkError::Stopped) } else { Ok(()) }
    }

    fn flush(&mut self, sink: &mut dyn Sink) -> Result<(), SinkError> {
        let begin = Instant::now();
        sink.prepare(&mut self.context)?;
        let early = quarantine::puts(self.place.quarantine, self.context.take_quarantined(), "sink", None);
        let is_promised = self.stored.is_some() && self.reader.promises();
        let mark = if is_promised { self.promise(&early)? } else { self.reader.mark(self.cursor) };
        let has_any = !early.is_empty() || !self.unsettled.is_empty();
        let pending = self.stored.is_some() && !is_promised && has_any;
        if pending {
            self.put_on_record(&mark, &early)?;
        }
        let position = sink.flush(&mut self.context, &mark)?;
        // What began before this step comes too late, unless there was nothing to be done.
        if self.unflushed.is_some() {
            self.unsettled.clear();
        }
        let mut quarantined = early;
        quarantined.extend(quarantine::puts(
            self.place.quarantine,
            self.context.take_quarantined(),
            "sink",
            None,
        ));
        let metrics = self.context.metrics.clone();
        metrics.add(Metric::SinkFlushNs, begin.elapsed().as_nanos() as u64);
        metrics.add(Metric::SinkFlushes, 1);
        metrics.add(Metric::SinkQuarantined, quarantined.iter().map(|put| put.batch.rows() as u64).sum());
        self.acknowledge(position, (pending || !quarantined.is_empty()).then_some(quarantined), self.cursor)?;
        self.taken = self.under_way;
        if let Some(unflushed) = self.unflushed.take() {
            metrics.add(Metric::SinkEvents, unflushed.events);
            metrics.add(Metric::SinkBytes, unflushed.bytes);
        }
        metrics.set(Metric::SinkCursor, self.cursor);
        if let Some(member) = &self.place.member {
            member.succeeded();
        }
        self.works_again();
        Ok(())
    }

    /// What the acknowledgement will change is on record; the mark by which the destination decides about it.
    fn promise(&mut self, early: &[Put]) -> Result<Vec<u8>, SinkError> {
        loop {
            let promised =
                self.reader.promise(self.cursor, early, limits::SINK_WAIT).map_err(stop_or_retry)?;
            if let Some(promise) = promised {
                wait_for(promise.ticket.as_ref(), &self.context.wake)?;
                faults::passed(STORED_MARK_PLACE, "promised");
                return Ok(promise.mark);
            }
            if self.context.wake.stopping() {
                return Err(SinkError::Stopped);
            }
        }
    }

    /// One commit: the cursor, the position, and what could not be delivered (`Some`: with the end of its
    /// record, if it was on record).
    fn acknowledge(
        &mut self,
        position: Vec<u8>,
        quarantined: Option<Vec<Put>>,
        cursor: u64,
    ) -> Result<(), SinkError> {
        let OutletPlace { journal, channel, reader, member, .. } = &self.place;
        let mut commit =
            Commit { acks: vec![Ack { channel: *channel, reader: *reader, cursor }], ..Commit::default() };
        if let Some(puts) = quarantined {
            commit.puts = puts;
            if self.stored.is_some() || journal.position(&self.pending.key).is_some() {
                commit.positions.push((self.pending.key.clone(), pending::encode(&self.unsettled)));
            }
        }
        if !position.is_empty() {
            commit.positions.push((self.key.clone(), position.clone()));
        }
        let has_puts = !commit.puts.is_empty();
        let ticket = match member {
            Some(member) => member.commit(commit, cursor),
            None => journal.commit(commit, None),
        };
        let ticket = ticket.map_err(stop_or_retry)?;
        if has_puts {
            // On a full disk acknowledgements pass puts. A later cursor must not become durable before
            // the events that this commit takes out of the flow: a crash between would lose them.
            wait_for(ticket.as_ref(), &self.context.wake)?;
            member.iter().for_each(Member::durable);
        }
        self.acks.push_back(PendingAck { ticket, position });
        Ok(())
    }

    /// Does the last steps of acknowledgements that are durable; waits while more than `keep` are not.
    fn reap(&mut self, sink: &mut dyn Sink, keep: usize) -> Result<(), SinkError> {
        while let Some(ack) = self.acks.front() {
            if self.acks.len() > keep {
                wait_for(ack.ticket.as_ref(), &self.context.wake)?;
            } else {
                match ack.ticket.wait(Some(Duration::ZERO)) {
                    None => return Ok(()),
                    Some(outcome) => outcome.map_err(stop_or_retry)?,
                };
            }
            if let Some(ack) = self.acks.pop_front() {
                sink.committed(&mut self.context, &ack.position)?;
            }
        }
        Ok(())
    }

    /// A clean stop: flush what was delivered, wait for its commit, let the sink finish.
    fn stop(&mut self, sink: &mut dyn Sink) -> Result<(), SinkError> {
        if !self.may_flush() {
            // Others would have to acknowledge here, and have passed it. It is delivered again.
            return Err(SinkError::Stopped);
        }
        self.flush(sink)?;
        while let Some(ack) = self.acks.pop_front() {
            self.wait_last(ack.ticket.as_ref())?;
            sink.committed(&mut self.context, &ack.position)?;
        }
        sink.close(&mut self.context)
    }

    /// Not [`wait_for`]: the pipeline is stopping, and this commit is what the stop waits for. Other sinks may have to come as far.
    fn wait_last(&self, ticket: &dyn Ticket) -> Result<(), SinkError> {
        let mut since = None;
        loop {
            if let Some(outcome) = ticket.wait(Some(limits::SINK_WAIT)) {
                return outcome.map(|_| ()).map_err(stop_or_retry);
            }
            if self.context.wake.stopping() {
                let since = *since.get_or_insert_with(Instant::now);
                // Where acknowledgements go is away: it will not come.
                if since.elapsed() >= limits::STOP_COMMIT || !self.place.journal.takes_acknowledgements() {
                    return Err(SinkError::Stopped);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_event::BatchBuilder;

    #[test]
    fn a_delivery_is_cut_by_rows_and_by_bytes() {
        let mut builder = BatchBuilder::default();
        (0..10).for_each(|row| builder.push(1, row, 7, &[b'x'; 10]));
        let batch = builder.finish(vec![]).unwrap();
        for (most, bytes, rows) in
            [(100, 1_000, 10), (3, 1_000, 3), (100, 35, 3), (100, 30, 3), (100, 5, 1), (0, 99, 0)]
        {
            assert_eq!(rows_within(&batch, 1, most, bytes), rows, "{most} rows, {bytes} bytes");
            let part = batch.slice(4, 6);
            assert_eq!(rows_within(&part, 1, most, bytes), rows.min(6), "{most} rows, {bytes} bytes");
        }
    }
}
