//! A destination that keeps what it is told, and a sink that writes to it: exactly-once by a position.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_event::Batch;
use flumen_journal::Delivery;
use flumen_pipeline::deliver::MakeSink;
use flumen_pipeline::sink::SinkContext;
use flumen_pipeline::{BuildError, Cursors, FlushPolicy, Group, Interceptor, Sink, SinkError, Stored};
use parking_lot::{Condvar, Mutex};

use super::{DEADLINE, Dice, Record, records};

/// Shared by the test and all sinks that were ever made for it.
#[derive(Clone)]
pub struct Destination {
    inner: Arc<(Mutex<Inner>, Condvar)>,
    pub policy: FlushPolicy,
    pub group: Option<Group>,
}

struct Inner {
    written: Vec<Record>,
    flushed: usize,
    /// Events of the largest flush.
    largest_flush: usize,
    /// Sinks wait at `deliver`.
    held: bool,
    /// The destination cannot be reached.
    down: bool,
    /// Waits after each delivery, unless the pipeline stops.
    pause: Duration,
    /// Chances in a thousand: an error or a panic at each step.
    faults: u64,
    dice: Dice,
    last_committed: u64,
    /// The destination stores the cursor: what it holds is final, and no position is committed.
    cursor_stored: bool,
    mark: Vec<u8>,
    /// It stores a mark for each of two lanes, one after the other; a stream has its lane.
    lanes: Option<[Lane; 2]>,
    /// It remembers nothing: at least once.
    is_forgetful: bool,
    /// The next flush is done, its answer is lost, and then the destination cannot be reached.
    dies_at_flush: bool,
    /// One flush in so many gets no answer, and is carried out when the destination was asked what it holds: before the next one.
    late_every: u64,
    flushes: u64,
    late: Option<Late>,
    late_done: u64,
}

/// A flush on its way: it counts if it follows what the destination holds.
struct Late {
    follows: Vec<u8>,
    mark: Vec<u8>,
    rows: Vec<Record>,
}

impl Destination {
    pub fn new() -> Destination {
        let inner = Inner {
            written: Vec::new(),
            flushed: 0,
            largest_flush: 0,
            held: false,
            down: false,
            pause: Duration::ZERO,
            faults: 0,
            dice: Dice(7),
            last_committed: 0,
            cursor_stored: false,
            mark: Vec::new(),
            lanes: None,
            is_forgetful: false,
            dies_at_flush: false,
            late_every: 0,
            flushes: 0,
            late: None,
            late_done: 0,
        };
        let policy = FlushPolicy { bytes: 2_000, linger: Duration::from_millis(5) };
        Destination { inner: Arc::new((Mutex::new(inner), Condvar::new())), policy, group: None }
    }

    pub fn with_faults(seed: u64, per_thousand: u64) -> Destination {
        let destination = Destination::new();
        {
            let mut inner = destination.inner.0.lock();
            inner.dice = Dice(seed);
            inner.faults = per_thousand;
        }
        destination
    }

    /// What a crash leaves: everything flushed, and a part of the rest.
    pub fn crash(&self, dice: &mut Dice) -> Destination {
        let next = Destination { policy: self.policy, group: self.group, ..Destination::new() };
        {
            let (old, mut new) = (self.inner.0.lock(), next.inner.0.lock());
            let unflushed = old.written.len() - old.flushed;
            let kept = old.flushed + dice.roll(unflushed as u64 + 1) as usize;
            new.written = old.written[..kept].to_vec();
            new.flushed = old.flushed;
            (new.cursor_stored, new.mark) = (old.cursor_stored, old.mark.clone());
            new.lanes = old.lanes.clone();
            new.is_forgetful = old.is_forgetful;
        }
        next
    }

    pub fn make(&self) -> MakeSink {
        let destination = self.clone();
        let mut first = true;
        Box::new(move || {
            if !std::mem::take(&mut first) {
                destination
                    .maybe_fail_often("while a sink is made", 30)
                    .map_err(|error| BuildError::new("", error.to_string(), "wait"))?;
            }
            Ok(Box::new(DestinationSink(destination.clone())))
        })
    }

    pub fn sink(&self) -> (MakeSink, Vec<Arc<dyn Interceptor>>) {
        (self.make(), Vec::new())
    }

    pub fn records(&self) -> Vec<Record> {
        self.inner.0.lock().written.clone()
    }

    pub fn rows(&self) -> usize {
        self.inner.0.lock().written.len()
    }

    pub fn flushed(&self) -> usize {
        self.inner.0.lock().flushed
    }

    pub fn largest_flush(&self) -> usize {
        self.inner.0.lock().largest_flush
    }

    /// The destination itself remembers how far it was written (in the same atomic step as the events).
    pub fn set_cursor_stored(&self) {
        self.inner.0.lock().cursor_stored = true;
    }

    /// As [`Destination::set_cursor_stored`], in two lanes that are not committed together.
    pub fn set_laned(&self) {
        let mut inner = self.inner.0.lock();
        inner.cursor_stored = true;
        inner.lanes = Some(Default::default());
    }

    /// Stores the cursor, and carries one flush in so many out late.
    pub fn set_late(&self, every: u64) {
        let mut inner = self.inner.0.lock();
        inner.cursor_stored = true;
        inner.late_every = every;
    }

    /// Flushes of events that were carried out late.
    pub fn late_done(&self) -> u64 {
        self.inner.0.lock().late_done
    }

    /// The destination remembers nothing, like a terminal: events may come twice.
    pub fn set_forgetful(&self) {
        self.inner.0.lock().is_forgetful = true;
    }

    pub fn set_held(&self, held: bool) {
        self.inner.0.lock().held = held;
        self.inner.1.notify_all();
    }

    pub fn dies_at_flush(&self) {
        self.inner.0.lock().dies_at_flush = true;
    }

    pub fn is_down(&self) -> bool {
        self.inner.0.lock().down
    }

    pub fn set_down(&self, down: bool) {
        self.inner.0.lock().down = down;
    }

    pub fn set_pause(&self, pause: Duration) {
        self.inner.0.lock().pause = pause;
    }

    /// Waits until so many events are there (flushed or not).
    pub fn wait_for_rows(&self, rows: usize) {
        let deadline = Instant::now() + DEADLINE;
        let mut inner = self.inner.0.lock();
        while inner.written.len() < rows {
            let timed_out = self.inner.1.wait_until(&mut inner, deadline).timed_out();
            assert!(!timed_out, "timed out: {} of {rows} events are there", inner.written.len());
        }
    }

    fn maybe_fail(&self, when: &str) -> Result<(), SinkError> {
        self.maybe_fail_often(when, 1)
    }

    /// `times` as likely as it says.
    fn maybe_fail_often(&self, when: &str, times: u64) -> Result<(), SinkError> {
        let fault = {
            let mut inner = self.inner.0.lock();
            let faults = inner.faults * times;
            let number = inner.dice.roll(1000);
            (number < faults).then_some(number)
        };
        match fault {
            None => Ok(()),
            Some(number) if number % 2 == 0 => Err(SinkError::Retry(format!("a fault of the test {when}"))),
            Some(_) => panic!("a fault of the test {when}"),
        }
    }
}

/// One of two lanes.
#[derive(Default, Clone)]
struct Lane {
    mark: Vec<u8>,
    cursor: u64,
    open: Vec<Record>,
}

struct DestinationSink(Destination);

impl Inner {
    /// What is on its way to a destination that is late, before what is flushed now.
    fn flush_late(&mut self, mark: &[u8]) -> Result<(), SinkError> {
        let unflushed = self.written.split_off(self.flushed);
        if let Some(late) = self.late.take_if(|late| late.follows == self.mark) {
            self.late_done += u64::from(!late.rows.is_empty());
            self.written.extend(late.rows);
            (self.flushed, self.mark) = (self.written.len(), late.mark);
            return Err(SinkError::Retry("this does not follow what is here".into()));
        }
        self.flushes += 1;
        if self.flushes.is_multiple_of(self.late_every) {
            self.late = Some(Late { follows: self.mark.clone(), mark: mark.to_vec(), rows: unflushed });
            return Err(SinkError::Retry("no answer".into()));
        }
        self.written.extend(unflushed);
        Ok(())
    }

    fn recover_lanes(&mut self, cursors: &mut Cursors<'_>) -> Option<Stored> {
        let acknowledged = cursors.acknowledged();
        let lanes = self.lanes.as_mut()?;
        for lane in lanes.iter_mut() {
            lane.open.clear();
            let stored = if lane.mark.is_empty() { None } else { cursors.resolve(&lane.mark) };
            lane.cursor = stored.unwrap_or(acknowledged).max(acknowledged);
        }
        let [a, b] = [lanes[0].cursor, lanes[1].cursor];
        Some(Stored { from: a.min(b), until: a.max(b) })
    }
}

fn number(position: &[u8]) -> usize {
    u64::from_le_bytes(position.try_into().unwrap()) as usize
}

impl Sink for DestinationSink {
    fn recover(
        &mut self,
        _: &mut SinkContext,
        committed: Option<&[u8]>,
        cursors: &mut Cursors<'_>,
    ) -> Result<Option<Stored>, SinkError> {
        self.0.maybe_fail("at recover")?;
        let mut inner = self.0.inner.0.lock();
        if inner.down {
            return Err(SinkError::Retry("the destination is down".into()));
        }
        if let Some(stored) = inner.recover_lanes(cursors) {
            return Ok(Some(stored));
        }
        if inner.cursor_stored {
            let flushed = inner.flushed;
            inner.written.truncate(flushed);
            let stored = if inner.mark.is_empty() { None } else { cursors.resolve(&inner.mark) };
            let cursor = stored.unwrap_or(cursors.acknowledged());
            return Ok(Some(Stored { from: cursor, until: cursor }));
        }
        if inner.is_forgetful {
            return Ok(None);
        }
        let length = committed.map_or(0, number);
        assert!(
            length <= inner.flushed,
            "{length} events are committed, but only {} were flushed",
            inner.flushed
        );
        inner.written.truncate(length);
        inner.flushed = length;
        inner.last_committed = length as u64;
        Ok(None)
    }

    fn missing(&self, batch: Batch, next: u64) -> Result<Batch, SinkError> {
        let inner = self.0.inner.0.lock();
        let lanes = inner.lanes.as_ref().unwrap();
        let is_missing = |row: &usize| lanes[batch.stream().value(*row) as usize % 2].cursor < next;
        let rows: Vec<u32> = (0..batch.rows()).filter(is_missing).map(|row| row as u32).collect();
        Ok(batch.take(&rows.into()).unwrap())
    }

    fn deliver(&mut self, context: &mut SinkContext, delivery: &Delivery) -> Result<(), SinkError> {
        let rows = records(&delivery.batch);
        if let Some(lanes) = &mut self.0.inner.0.lock().lanes {
            rows.into_iter().for_each(|row| lanes[row.stream as usize % 2].open.push(row));
            return Ok(());
        }
        assert!(!rows.is_empty() && delivery.lost_before == 0);
        let half = rows.len() / 2;
        let (first, second) = rows.split_at(half);
        let pause = {
            let mut inner = self.0.inner.0.lock();
            while inner.held {
                self.0.inner.1.wait(&mut inner);
            }
            inner.written.extend_from_slice(first);
            inner.pause
        };
        self.0.maybe_fail("in the middle of a delivery")?;
        self.0.inner.0.lock().written.extend_from_slice(second);
        self.0.inner.1.notify_all();
        if !pause.is_zero() {
            context.wake.wait(pause);
        }
        Ok(())
    }

    fn flush(&mut self, _: &mut SinkContext, mark: &[u8]) -> Result<Vec<u8>, SinkError> {
        self.0.maybe_fail("before a flush")?;
        for lane in 0..2 {
            let mut inner = self.0.inner.0.lock();
            let Some(lanes) = &mut inner.lanes else { break };
            lanes[lane].mark = mark.to_vec();
            let rows = std::mem::take(&mut lanes[lane].open);
            inner.written.extend(rows);
            inner.flushed = inner.written.len();
            self.0.inner.1.notify_all();
            drop(inner);
            self.0.maybe_fail("between two lanes")?;
        }
        if self.0.inner.0.lock().lanes.is_some() {
            return Ok(Vec::new());
        }
        if self.0.inner.0.lock().late_every > 0 {
            self.0.inner.0.lock().flush_late(mark)?;
        }
        let length = {
            let mut inner = self.0.inner.0.lock();
            inner.largest_flush = inner.largest_flush.max(inner.written.len() - inner.flushed);
            inner.flushed = inner.written.len();
            inner.mark = mark.to_vec();
            if !inner.cursor_stored && !inner.is_forgetful { Some(inner.flushed as u64) } else { None }
        };
        {
            let mut inner = self.0.inner.0.lock();
            if std::mem::take(&mut inner.dies_at_flush) {
                inner.down = true;
                return Err(SinkError::Retry("the answer of a flush is lost".into()));
            }
        }
        let Some(length) = length else {
            self.0.maybe_fail("after a flush")?;
            return Ok(Vec::new());
        };
        self.0.maybe_fail("after a flush")?;
        Ok(length.to_le_bytes().to_vec())
    }

    fn committed(&mut self, _: &mut SinkContext, position: &[u8]) -> Result<(), SinkError> {
        if position.is_empty() {
            return Ok(());
        }
        let length = number(position) as u64;
        {
            let mut inner = self.0.inner.0.lock();
            assert!(length >= inner.last_committed, "commits are told in order");
            inner.last_committed = length;
        }
        self.0.maybe_fail("at committed")
    }

    fn flush_policy(&self) -> FlushPolicy {
        // What is flushed behind a late one is not the same: more has come.
        let times = if self.0.inner.0.lock().late.is_some() { 3 } else { 1 };
        FlushPolicy { bytes: self.0.policy.bytes * times, ..self.0.policy }
    }

    fn group(&self) -> Option<Group> {
        self.0.group
    }

    fn settles(&self) -> bool {
        self.0.inner.0.lock().late_every == 0
    }

    fn forgets(&self) -> bool {
        self.0.inner.0.lock().is_forgetful
    }
}
