//! A sink that is a plugin.
//!
//! Batches are gathered up to the sink's own size, then given to `deliver` with the cursor behind them: one flush is one
//! call. What the plugin says then decides:
//!
//! - *delivered*: acknowledged. Rejected rows go to quarantine. If the destination keeps the cursor (`recovers`), rejections
//!   say that nothing was stored: they are put on record first, and the others come again, so that neither side is lost or
//!   doubled whenever the agent dies.
//! - *retry*: the same events come again, after the pause that the plugin asks for, or one that grows.
//! - An error, a trap, a timeout: nobody knows what arrived. The instance is dropped, a fresh one is asked for its cursor if it
//!   recovers, and what the destination has not comes again. Without a cursor everything comes again.
//!
//! A batch that the plugin traps on twice is halved until the guilty event stands alone; that one goes to quarantine. A
//! destination that is away is not a guilty event: errors in words and time spent waiting for answers never lead there.

mod suspect;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::UInt32Array;
use flumen_event::{Batch, Identity, Rejection};
use flumen_journal::Delivery;
use flumen_pipeline::{
    BuildError, Cursors, FlushPolicy, Group, Options, Sink, SinkContext, SinkError, Stored,
};

use self::suspect::{Suspect, Verdict};
use crate::abi::Outcome;
use crate::answer::{self, RawAnswer};
use crate::failure::Failure;
use crate::limits;
use crate::stats::bump;
use crate::swap::PluginSlot;
use crate::version::{Instance, PluginVersion};

/// When a batch goes to the plugin: whichever comes first.
#[derive(Debug, Clone, Copy)]
struct Policy {
    events: usize,
    bytes: usize,
    linger: Duration,
}

/// Delivers through a plugin.
pub struct PluginSink {
    slot: Arc<PluginSlot>,
    policy: Policy,
    /// The instance at work; gone after whatever leaves it in doubt.
    held: Option<Held>,
    /// What was delivered since the last flush.
    group: Vec<Batch>,
    /// Events of the channel that it came from.
    events: u64,
    suspect: Suspect,
    /// Rows that the destination refused, and why. They wait for the batch to come again.
    refused: HashMap<(Identity, u32), String>,
}

struct Held {
    version: Arc<PluginVersion>,
    instance: Instance,
    /// How long the last call waited for the outside.
    waited_ns: u64,
}

/// What a call came to.
enum Called {
    Delivered(Vec<Rejection>),
    Retry { reason: String, after: Option<Duration> },
}

impl PluginSink {
    /// With the options `batch_events`, `batch_bytes` and `linger`.
    pub fn new(slot: Arc<PluginSlot>, options: &Options) -> Result<PluginSink, BuildError> {
        let policy = Policy {
            events: usize::try_from(options.integer("batch_events")?).unwrap_or(1).max(1),
            bytes: usize::try_from(options.size("batch_bytes")?).unwrap_or(usize::MAX),
            linger: options.duration("linger")?,
        };
        Ok(PluginSink {
            slot,
            policy,
            held: None,
            group: Vec::new(),
            events: 0,
            suspect: Suspect::default(),
            refused: HashMap::new(),
        })
    }

    /// An instance of the version that runs now: the one at work, if it still fits.
    fn hold(&mut self) -> Result<Held, SinkError> {
        let version = self.slot.version();
        match self.held.take() {
            Some(held) if held.is_fit(&version) => Ok(held),
            _ => {
                let taken = version.take();
                let instance = taken.map_err(|failure| self.failed(&version, &failure))?;
                Ok(Held { version, instance, waited_ns: 0 })
            }
        }
    }

    fn failed(&self, version: &PluginVersion, failure: &Failure) -> SinkError {
        version.services().counters.failure(failure);
        SinkError::Retry(failure.to_string())
    }

    /// Takes the refused rows out of the batch.
    fn without_refused(&mut self, context: &mut SinkContext) -> Result<(), SinkError> {
        let batch = self.gathered()?;
        let (mut kept, mut left, mut reasons) = (Vec::new(), Vec::new(), Vec::new());
        for (row, key) in (0..).zip(keys(&batch)) {
            match self.refused.get(&key) {
                Some(reason) => {
                    left.push(row);
                    reasons.push(reason.clone());
                }
                None => kept.push(row),
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        context.quarantine(rows_of(&batch, left)?, reasons);
        self.group = if kept.is_empty() { Vec::new() } else { vec![rows_of(&batch, kept)?] };
        Ok(())
    }

    /// Everything since the last flush, as one batch.
    fn gathered(&mut self) -> Result<Batch, SinkError> {
        let batch = match self.group.as_slice() {
            [only] => return Ok(only.clone()),
            several => Batch::concat(several),
        };
        // Only after interceptors of its own a group may be too much for one batch: fewer events come then.
        let batch = batch.map_err(|error| {
            self.suspect.narrow(self.events);
            again(format!("{} events do not fit together: {error}", self.events))
        })?;
        self.group = vec![batch.clone()];
        Ok(batch)
    }

    /// Remembers what the destination refused. The same batch comes again, and `prepare` takes these rows out.
    fn refuse(&mut self, batch: &Batch, rejected: Vec<Rejection>) {
        let keys: Vec<_> = keys(batch).collect();
        for Rejection { row, reason } in rejected {
            if let Some(key) = keys.get(row as usize) {
                self.refused.insert(*key, reason);
            }
        }
    }

    /// After a call whose outcome is not known. `Ok`: it is settled after all.
    fn doubt(
        &mut self,
        context: &mut SinkContext,
        failure: &Failure,
        batch: Batch,
        mark: &[u8],
    ) -> Result<(), SinkError> {
        let text = failure.to_string();
        let version = self.slot.version();
        let counters = &version.services().counters;
        match self.suspect.failed(self.events) {
            Verdict::Again => {
                bump(&counters.retries);
                Err(again(text))
            }
            Verdict::Fewer => {
                bump(&counters.bisections);
                Err(again(text))
            }
            Verdict::Guilty => {
                let mut held = self.hold()?;
                // It may have arrived before the plugin failed.
                let arrived = held.version.recovers() && self.ask(&mut held)?.as_deref() == Some(mark);
                self.held = Some(held);
                if !arrived {
                    let rows = batch.rows();
                    context.quarantine(batch, vec![text; rows]);
                }
                Ok(())
            }
        }
    }

    /// The cursor that the destination has.
    fn ask(&self, held: &mut Held) -> Result<Option<Vec<u8>>, SinkError> {
        let mark = held.recover().map_err(|failure| self.failed(&held.version, &failure))?;
        match mark {
            Some(mark) if mark.len() > limits::CURSOR_BYTES_MAX => {
                let reason =
                    format!("`recover` gave a cursor of {} bytes, which is none of Flumen's", mark.len());
                Err(SinkError::Retry(reason))
            }
            mark => Ok(mark),
        }
    }

    fn done(&mut self) {
        self.suspect.passed(self.events);
        self.group.clear();
        self.events = 0;
        self.refused.clear();
    }
}

impl Sink for PluginSink {
    fn recover(
        &mut self,
        _: &mut SinkContext,
        _: Option<&[u8]>,
        cursors: &mut Cursors<'_>,
    ) -> Result<Option<Stored>, SinkError> {
        self.group.clear();
        self.events = 0;
        let mut held = self.hold()?;
        let stored = match held.version.recovers() {
            false => None,
            true => {
                let mark = self.ask(&mut held)?;
                let from = mark.and_then(|mark| cursors.resolve(&mark)).unwrap_or(0);
                Some(Stored { from, until: from })
            }
        };
        self.held = Some(held);
        Ok(stored)
    }

    fn deliver(&mut self, _: &mut SinkContext, delivery: &Delivery) -> Result<(), SinkError> {
        self.group.push(delivery.batch.clone());
        self.events += delivery.next.saturating_sub(delivery.first);
        Ok(())
    }

    fn prepare(&mut self, context: &mut SinkContext) -> Result<(), SinkError> {
        if self.refused.is_empty() || self.group.is_empty() {
            return Ok(());
        }
        self.without_refused(context)
    }

    fn flush(&mut self, context: &mut SinkContext, mark: &[u8]) -> Result<Vec<u8>, SinkError> {
        if self.group.is_empty() {
            self.done();
            return Ok(Vec::new());
        }
        let batch = self.gathered()?;
        let current = self.slot.version();
        let Some(mut held) = self.held.take().filter(|held| held.is_fit(&current)) else {
            // A new version, or a worn instance: whoever takes over asks for the cursor first.
            return Err(again("another instance takes over".to_owned()));
        };
        match held.deliver(&batch, mark) {
            Ok(Called::Retry { reason, after }) => {
                self.held = Some(held);
                return Err(match after {
                    Some(after) => SinkError::Again { reason, after: after.max(Duration::from_millis(1)) },
                    None => SinkError::Retry(reason),
                });
            }
            Ok(Called::Delivered(rejected)) if rejected.is_empty() => self.held = Some(held),
            Ok(Called::Delivered(rejected)) => {
                let recovers = held.version.recovers();
                self.held = Some(held);
                if recovers {
                    self.refuse(&batch, rejected);
                    return Err(again("the destination refused events; the others come again".to_owned()));
                }
                let (rows, reasons) =
                    rejected.into_iter().map(|rejected| (rejected.row, rejected.reason)).unzip();
                context.quarantine(rows_of(&batch, rows)?, reasons);
            }
            Err(failure) => {
                let is_the_batch = held.is_about_batch(&failure);
                let error = self.failed(&held.version, &failure);
                drop(held);
                if !is_the_batch {
                    return Err(error);
                }
                self.doubt(context, &failure, batch, mark)?;
            }
        }
        self.done();
        Ok(Vec::new())
    }

    fn committed(&mut self, _: &mut SinkContext, _: &[u8]) -> Result<(), SinkError> {
        Ok(())
    }

    fn settles(&self) -> bool {
        false
    }

    fn forgets(&self) -> bool {
        !self.slot.recovers()
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy { bytes: self.policy.bytes as u64, linger: self.policy.linger }
    }

    fn group(&self) -> Option<Group> {
        Some(Group { rows: self.suspect.most(self.policy.events), bytes: self.policy.bytes })
    }
}

impl Held {
    fn is_fit(&self, current: &Arc<PluginVersion>) -> bool {
        Arc::ptr_eq(&self.version, current) && !self.version.is_worn(&self.instance)
    }

    fn recover(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let started = Instant::now();
        let mark = self.instance.guest.recover();
        self.counted(started);
        mark
    }

    fn deliver(&mut self, batch: &Batch, mark: &[u8]) -> Result<Called, Failure> {
        let started = Instant::now();
        let before = self.egress_ns();
        let outcome = self.instance.guest.deliver(batch, self.version.reads(), mark);
        self.waited_ns = self.egress_ns().saturating_sub(before);
        self.instance.batches += 1;
        self.counted(started);
        let rejected = match outcome? {
            Outcome::Retry { reason, after } => return Ok(Called::Retry { reason, after }),
            Outcome::Delivered(rejected) => rejected,
        };
        let difference = answer::decode(RawAnswer { rejected, ..RawAnswer::default() }, batch.rows())?;
        let rejected = difference.rejected.clone();
        answer::apply(difference, batch)?;
        Ok(Called::Delivered(rejected))
    }

    fn counted(&self, started: Instant) {
        self.version.services().counters.call(started.elapsed(), self.instance.guest.memory_bytes());
    }

    fn egress_ns(&self) -> u64 {
        self.version.services().egress.as_ref().map_or(0, |egress| egress.stats().busy_ns)
    }

    /// Whether a failure may come from the events, and not from the destination or the instance.
    fn is_about_batch(&self, failure: &Failure) -> bool {
        match failure {
            Failure::Trap(_)
            | Failure::Memory { .. }
            | Failure::Oversized { .. }
            | Failure::Lying(_)
            | Failure::Abi(_) => true,
            // A server that does not answer takes the time as well.
            Failure::Timeout(time) => u128::from(self.waited_ns) < time.as_nanos() / 2,
            Failure::Refused(_) | Failure::Instantiate(_) | Failure::HostFull(_) | Failure::Reopen(_) => {
                false
            }
        }
    }
}

fn again(reason: String) -> SinkError {
    SinkError::Again { reason, after: Duration::ZERO }
}

/// What tells a row of a batch from all others, also when the batch comes again: an interceptor may have repeated an event.
fn keys(batch: &Batch) -> impl Iterator<Item = (Identity, u32)> {
    let mut seen: HashMap<Identity, u32> = HashMap::new();
    (0..batch.rows()).filter_map(|row| batch.identity(row)).map(move |identity| {
        let times = seen.entry(identity).or_default();
        *times += 1;
        (identity, *times)
    })
}

fn rows_of(batch: &Batch, rows: Vec<u32>) -> Result<Batch, SinkError> {
    batch.take(&UInt32Array::from(rows)).map_err(|error| SinkError::Retry(error.to_string()))
}

impl std::fmt::Debug for PluginSink {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("PluginSink").field("slot", &self.slot).finish_non_exhaustive()
    }
}
