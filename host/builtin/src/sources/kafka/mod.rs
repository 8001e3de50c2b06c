//! Kafka: reads topics, each committed record once.
//!
//! **Identity.** The stream is a hash of source name, topic, partition and generation; the position in it is the
//! offset. Offsets are committed to the journal with the records (see `partitions`), so that a crash of the agent or
//! of a broker neither loses nor doubles. Only committed records are read (`read_committed`): what a transaction
//! aborted never appears. Offsets have gaps where transactions ended and where a topic was compacted: no loss.
//!
//! **Where reading begins.** At the journal's position or at the group's offset on the broker, whichever is further:
//! partitions move between agents, and each agent's journal knows its own part. The group's offset is committed after
//! the journal, so it is never ahead of what some journal holds. Where neither is there, `start` counts; what it
//! means is then fixed by a commit before the first record. A partition added later to a topic that this agent knows
//! is read from its first record.
//!
//! **Groups.** A partition that has to be given up is given up when everything read of it is durable and the group's
//! offset says so. So with one agent, over restarts, and when agents come and go cleanly, each record is read once. An
//! agent that dies and whose partitions go to another *before it returns* leaves in its journal what it read since
//! its last commit to the group (about a second): these records come twice, once from each. The same when an agent
//! is cut off from the brokers for longer than `session_timeout`; it says so and counts them at most
//! (`records_perhaps_twice`); no offset of such a partition goes to the group any more. With `instance` an agent that returns within `session_timeout` gets its partitions back;
//! with `partitions` they never move: both avoid it. A full pipeline costs no partitions: the heartbeats go on. It
//! holds up the handing over of partitions, because what is not durable cannot be given up. What the client tells meanwhile
//! is served by a thread of its own (`flumen_kafka::told`).
//!
//! **Gaps.** Records that the broker deleted before they were read are named with topic, partition and range, counted
//! (`records_lost`), and `on_gap` decides. A position behind the end means that the topic was made anew, or that its
//! leader lost its log: reading begins at the first record, as a new generation, because that way nothing is skipped.
//! A topic made anew that has already grown past the old position cannot be told from the old one.
//!
//! **Poison.** What cannot be an event (not Flume's format, over a limit) goes to quarantine with its reason and does
//! not stop the others.
//!
//! Map: `options`, `partitions` (positions), `reader` (the loop), `group` (offsets for the group, giving up), `start`
//! (where to begin), `gaps`, `changes` (what the group says), `trouble` (what does not work now), `out` (the batch),
//! `record` (a record as a row), `decoded` (a record as the events that a codec finds in it), `rows` (columns).

pub mod limits;
pub mod partitions;
pub mod record;
pub mod rows;

mod changes;
mod decoded;
mod gaps;
mod group;
mod options;
mod out;
mod reader;
mod start;
mod trouble;

use std::time::Instant;

use flumen_pipeline::{BuildError, Options, Source, SourceContext, SourceError};

pub use options::SPEC;
use options::Settings;
use reader::{End, Reader};

use crate::sources::SourceCodec;

/// Builds the source.
pub fn build(options: &Options) -> Result<Box<dyn Source>, BuildError> {
    Ok(Box::new(Kafka { settings: Settings::new(options)?, fenced: None }))
}

/// What a codec does here: it decodes values.
pub const CODEC: SourceCodec = SourceCodec {
    instead_of: &["value"],
    build: |options, codec| {
        let settings = Settings { codec: Some(codec), ..Settings::new(options)? };
        Ok(Box::new(Kafka { settings, fenced: None }))
    },
};

struct Kafka {
    settings: Settings,
    /// When this agent was last fenced.
    fenced: Option<Instant>,
}

impl Source for Kafka {
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        loop {
            let mut reader = Reader::new(&self.settings, context)?;
            let outcome = reader.run();
            reader.leave();
            let Some(end) = reader.ends else { return outcome };
            drop(reader);
            context.settle()?;
            if end == End::Expelled {
                tracing::warn!(source = %context.name, "the group gave our partitions to others while this agent stood still: joining anew");
                continue;
            }
            if self.fenced.is_some_and(|at| at.elapsed() < self.settings.session_timeout * 2) {
                return rest(&self.settings, context);
            }
            // After an outage longer than `session_timeout` librdkafka fences itself: it sends an old commit again
            // after it joined anew. So once is no proof of another agent; twice is.
            tracing::warn!(source = %context.name, "fenced: another member of the group has this one's `instance`, or had it before an outage; joining anew");
            self.fenced = Some(Instant::now());
        }
    }
}

/// To go on would mean that both agents take the partitions from each other without end.
fn rest(settings: &Settings, context: &mut SourceContext) -> Result<(), SourceError> {
    let instance = settings.instance.as_deref().unwrap_or_default();
    let text = format!(
        "fenced: another agent has joined the group as instance {instance:?} and reads instead of this one; give each \
         agent its own `instance`, then restart this one"
    );
    tracing::error!(source = %context.name, "{text}");
    context.metrics.set_error(Some(text));
    loop {
        context.wait(limits::ASK_AGAIN)?;
    }
}
