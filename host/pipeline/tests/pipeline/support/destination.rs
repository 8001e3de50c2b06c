//! A destination that keeps what it is told, and a sink that writes to it: exactly-once by a position.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_journal::Delivery;
use flumen_pipeline::deliver::MakeSink;
use flumen_pipeline::sink::SinkContext;
use flumen_pipeline::{BuildError, FlushPolicy, Interceptor, Sink, SinkError};
use parking_lot::{Condvar, Mutex};

use super::{DEADLINE, Dice, Record, records};

/// Shared by the test and all sinks that were ever made for it.
#[derive(Clone)]
pub struct Destination {
    inner: Arc<(Mutex<Inner>, Condvar)>,
    pub policy: FlushPolicy,
}

struct Inner {
    written: Vec<Record>,
    flushed: usize,
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
    cursor: u64,
    /// It remembers nothing: at least once.
    is_forgetful: bool,
}

impl Destination {
    pub fn new() -> Destination {
        let inner = Inner {
            written: Vec::new(),
            flushed: 0,
            held: false,
            down: false,
            pause: Duration::ZERO,
            faults: 0,
            dice: Dice(7),
            last_committed: 0,
            cursor_stored: false,
            cursor: 0,
            is_forgetful: false,
        };
        let policy = FlushPolicy { bytes: 2_000, linger: Duration::from_millis(5) };
        Destination { inner: Arc::new((Mutex::new(inner), Condvar::new())), policy }
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
        let next = Destination { policy: self.policy, ..Destination::new() };
        {
            let (old, mut new) = (self.inner.0.lock(), next.inner.0.lock());
            let unflushed = old.written.len() - old.flushed;
            let kept = old.flushed + dice.roll(unflushed as u64 + 1) as usize;
            new.written = old.written[..kept].to_vec();
            new.flushed = old.flushed;
            (new.cursor_stored, new.cursor) = (old.cursor_stored, old.cursor);
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
            Ok(Box::new(DestinationSink(destination.clone(), 0)))
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

    /// The destination itself remembers how far it was written (in the same atomic step as the events).
    pub fn set_cursor_stored(&self) {
        self.inner.0.lock().cursor_stored = true;
    }

    /// The destination remembers nothing, like a terminal: events may come twice.
    pub fn set_forgetful(&self) {
        self.inner.0.lock().is_forgetful = true;
    }

    pub fn set_held(&self, held: bool) {
        self.inner.0.lock().held = held;
        self.inner.1.notify_all();
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

/// With the cursor behind what was delivered.
struct DestinationSink(Destination, u64);

fn number(position: &[u8]) -> usize {
    u64::from_le_bytes(position.try_into().unwrap()) as usize
}

impl Sink for DestinationSink {
    fn recover(&mut self, _: &mut SinkContext, committed: Option<&[u8]>) -> Result<Option<u64>, SinkError> {
        self.0.maybe_fail("at recover")?;
        let mut inner = self.0.inner.0.lock();
        if inner.down {
            return Err(SinkError::Retry("the destination is down".into()));
        }
        if inner.cursor_stored {
            let flushed = inner.flushed;
            inner.written.truncate(flushed);
            self.1 = inner.cursor;
            return Ok(Some(inner.cursor));
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

    fn deliver(&mut self, context: &mut SinkContext, delivery: &Delivery) -> Result<(), SinkError> {
        let rows = records(&delivery.batch);
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
        self.1 = delivery.first + delivery.batch.rows() as u64;
        if !pause.is_zero() {
            context.wake.wait(pause);
        }
        Ok(())
    }

    fn flush(&mut self, _: &mut SinkContext) -> Result<Vec<u8>, SinkError> {
        self.0.maybe_fail("before a flush")?;
        let length = {
            let mut inner = self.0.inner.0.lock();
            inner.flushed = inner.written.len();
            inner.cursor = self.1;
            if inner.cursor_stored || inner.is_forgetful {
                return Ok(Vec::new());
            }
            inner.flushed as u64
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
        self.0.policy
    }
}
