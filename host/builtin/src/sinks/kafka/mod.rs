//! The sink `kafka`: events to Kafka topics, exactly once.
//!
//! # Protocol
//! A *lane* is a producer with a transactional id of its own, `flumen/AGENT/PIPELINE/SINK/LANE`. Each flush is one
//! transaction per lane: its records, and its progress (`flumen_kafka::progress`) in a compacted topic. So the broker
//! holds both or none, and a read_committed consumer sees each event once.
//!
//! After a start and after every error ([`recovery`]):
//! 1. New producers take the transactional ids over: a producer that had one is fenced, what it left open is
//!    aborted. From here on nobody else can commit as us.
//! 2. We claim the sink by a record that names this process, under the id `flumen/AGENT/PIPELINE/SINK/claim`.
//! 3. The progress is read to its end, committed records only; delivery goes on from there.
//!
//! All lanes commit the same cursor at the same flush. A crash between two of them leaves lanes that are one flush apart:
//! [`Sink::missing`] leaves out the rows of those that are ahead. Which lane a row goes to depends on nothing but the row
//! and the number of lanes, and the number in force is what lane 0's progress says: it changes only at a flush, when
//! every lane is at the same cursor.
//!
//! On a Kafka channel of the same cluster (one lane) the channel's acknowledgement is in the transaction, too: the
//! offsets of its reader's group, with the member's generation. Where delivery goes on is what the group says then,
//! whichever agent asks; the progress record only tells whether the last transaction counted.
//!
//! # How it fails
//! Any error drops the producers, and recovery finds out what the broker holds; the outcome of a commit is never
//! guessed. A record that the broker refuses for good goes to quarantine: the transaction is aborted, the guilty record is
//! found by sending the suspects alone, and the others are sent again ([`refusals`]). *Fenced* has two causes, another
//! agent with the same name, or a transaction that took longer than `transaction_timeout`: the claim tells them
//! apart, and only the first stops the sink for good.
//!
//! # Values by a codec
//! A batch is encoded when it is delivered, by one version of the codec. What it rejects or fails on goes to quarantine
//! like a record that the broker refuses: on record before the transaction ends, and counted with it or not at all.
//!
//! # The other promises
//! `at-least-once`: the same without transactions; acknowledged when the brokers have all of a flush. `at-most-once`:
//! acknowledged in the journal first, then sent, once.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use flumen_event::Batch;
use flumen_journal::Delivery as JournalDelivery;
use flumen_kafka::limits::SERVE_EVERY;
use flumen_kafka::progress::By;
use flumen_pipeline::sink::{Cursors, Sink, SinkContext, Stored};
use flumen_pipeline::{BuildError, FlushPolicy, Metric, Options, SinkError};

pub mod faults;
mod link;
mod options;
mod outbox;
mod patience;
mod recovery;
mod refusals;
mod room;
mod routes;
mod sending;
mod template;
mod values;

pub use options::{SPEC, delivery};

use link::{Link, Sizes};
use options::{Delivery, Settings};
use outbox::Outbox;
use patience::Patience;

use crate::sinks::SinkCodec;

/// Makes one.
pub fn build(options: &Options) -> Result<Box<dyn Sink>, BuildError> {
    Ok(make(Settings::from_options(options)?))
}

/// What a codec does here.
pub const CODEC: SinkCodec = SinkCodec {
    instead_of: &["value"],
    build: |options, codec| Ok(make(Settings { codec: Some(codec), ..Settings::from_options(options)? })),
};

fn make(settings: Settings) -> Box<dyn Sink> {
    let settings = Arc::new(settings);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let by = By { instance: format!("{:016x}", routes::random()), host, pid: std::process::id() };
    let sizes = room::first(&settings);
    let outbox = Outbox::default();
    Box::new(KafkaSink { settings, by, link: None, is_fenced: false, sizes, outbox, served: Instant::now() })
}

struct KafkaSink {
    settings: Arc<Settings>,
    /// Who we are, in claims.
    by: By,
    /// `None`: not recovered.
    link: Option<Link>,
    /// The broker said that another has our transactional id, or that we were too slow.
    is_fenced: bool,
    sizes: Sizes,
    outbox: Outbox,
    /// When the clients were last served by [`Sink::due`].
    served: Instant,
}

impl KafkaSink {
    /// Runs a step; whatever goes wrong, only `recover` helps.
    fn step<T>(
        &mut self,
        context: &mut SinkContext,
        step: impl FnOnce(&mut Link, &mut SinkContext, &Patience) -> Result<T, SinkError>,
    ) -> Result<T, SinkError> {
        let Some(mut link) = self.link.take() else {
            return Err(SinkError::Retry("the connection has to be made first".into()));
        };
        let patience = Patience::new(context.wake.clone());
        let done = step(&mut link, context, &patience);
        match done.is_ok() {
            true => self.link = Some(link),
            false => (self.is_fenced, self.sizes) = (link.is_fenced, link.sizes),
        }
        done
    }
}

impl Sink for KafkaSink {
    fn recover(
        &mut self,
        context: &mut SinkContext,
        _: Option<&[u8]>,
        cursors: &mut Cursors<'_>,
    ) -> Result<Option<Stored>, SinkError> {
        self.link = None;
        self.outbox.recover(context);
        let patience = Patience::new(context.wake.clone());
        if self.is_fenced {
            recovery::look_for_another(&self.settings, &self.by, context, &patience)?;
            self.is_fenced = false;
        }
        let (link, stored) =
            recovery::recover(&self.settings, &self.by, self.sizes, context, cursors, &patience)?;
        self.link = Some(link);
        Ok(stored)
    }

    fn missing(&self, batch: Batch, next: u64) -> Result<Batch, SinkError> {
        match &self.link {
            Some(link) => link.missing(batch, next),
            None => Ok(batch),
        }
    }

    fn holds(&self, mark: &[u8]) -> Option<bool> {
        let link = self.link.as_ref().filter(|link| link.group.is_some())?;
        Some(link.stored_mark == mark)
    }

    fn deliver(&mut self, context: &mut SinkContext, delivery: &JournalDelivery) -> Result<(), SinkError> {
        if self.settings.delivery == Delivery::AtMostOnce {
            let made = values::of(&self.settings, context, delivery.batch.clone());
            self.outbox.deliver(made);
            return Ok(());
        }
        self.step(context, |link, context, patience| {
            link.reach(delivery.next);
            link.deliver(context, delivery.batch.clone(), patience)
        })?;
        faults::passed("records.handed-over");
        Ok(())
    }

    fn prepare(&mut self, context: &mut SinkContext) -> Result<(), SinkError> {
        if self.settings.delivery == Delivery::AtMostOnce {
            return Ok(());
        }
        self.step(context, |link, context, patience| link.settle(context, patience))?;
        faults::passed("records.acknowledged");
        Ok(())
    }

    fn flush(&mut self, context: &mut SinkContext, mark: &[u8]) -> Result<Vec<u8>, SinkError> {
        if self.settings.delivery == Delivery::AtMostOnce {
            self.outbox.flush();
            return Ok(Vec::new());
        }
        self.step(context, |link, context, patience| link.commit(context, mark, patience))?;
        say_flushed(context);
        Ok(Vec::new())
    }

    fn committed(&mut self, context: &mut SinkContext, _: &[u8]) -> Result<(), SinkError> {
        if self.settings.delivery != Delivery::AtMostOnce {
            return Ok(());
        }
        let Some(batches) = self.outbox.committed() else { return Ok(()) };
        let events: u64 = batches.iter().map(|(batch, _)| batch.rows() as u64).sum();
        let sent = self.step(context, |link, context, patience| link.send_once(context, batches, patience));
        match sent {
            Ok(dropped) => {
                context.metrics.add(Metric::SinkDropped, dropped);
                say_flushed(context);
                Ok(())
            }
            Err(error) => {
                context.metrics.add(Metric::SinkDropped, events);
                Err(error)
            }
        }
    }

    fn forgets(&self) -> bool {
        self.settings.delivery == Delivery::AtLeastOnce
    }

    /// It has no timer: while no events come, its clients are served here. What they tell would pile up.
    fn due(&mut self) -> bool {
        if self.served.elapsed() >= SERVE_EVERY {
            self.served = Instant::now();
            self.link.iter().for_each(Link::serve);
        }
        false
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy { bytes: self.settings.transaction_bytes, linger: self.settings.transaction_interval }
    }
}

/// For whoever watches: how long ago it worked.
fn say_flushed(context: &SinkContext) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    context.metrics.set_gauges("delivered_last", [("delivered_last_unix_s".to_owned(), now)]);
}
