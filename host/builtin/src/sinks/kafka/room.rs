//! How large a record may be.
//!
//! librdkafka takes memory for each request up to `message.max.bytes`, or what is queued for the partition, whatever the
//! request holds (2.12, `rd_kafka_msgset_writer_alloc_buf`). With its greatest value that is up to 32 MB for a batch of
//! one, and a request to each partition is under way. So producers are set up for records as they come, and made anew when a
//! larger one comes. What is too large for a topic is still for the broker to say: it counts compressed bytes.

use flumen_event::Batch;
use flumen_kafka::produce::Values;
use flumen_pipeline::SinkError;
use flumen_pipeline::sink::SinkContext;

use super::link::{Link, Sizes};
use super::options::{Delivery, Settings};
use super::patience::Patience;
use super::sending::Broken;
use super::values::Columns;
use crate::sinks::limits;

/// At first.
pub(super) fn first(settings: &Settings) -> Sizes {
    let batch = settings.batch_bytes;
    let record = usize::try_from(batch).unwrap_or(limits::KAFKA_RECORD_BYTES_MAX);
    Sizes { batch, record: record.clamp(limits::KAFKA_RECORD_BYTES_FIRST, limits::KAFKA_RECORD_BYTES_MAX) }
}

impl Link {
    /// Sees to it that the producers take the records of a batch that is about to be sent.
    pub fn make_room(
        &mut self,
        context: &mut SinkContext,
        batch: &Batch,
        values: &Values,
        patience: &Patience,
    ) -> Result<(), SinkError> {
        let beside = Columns::new(&self.settings, batch).bytes_max() + limits::KAFKA_RECORD_OVERHEAD_BYTES;
        let bytes = values.longest() + beside;
        if bytes <= self.sizes.record || self.sizes.record >= limits::KAFKA_RECORD_BYTES_MAX {
            return Ok(());
        }
        self.sizes.record = bytes.next_power_of_two().min(limits::KAFKA_RECORD_BYTES_MAX);
        let is_transactional = self.settings.delivery == Delivery::ExactlyOnce;
        if !is_transactional {
            // What was sent has to arrive before its producer goes.
            self.settle(context, patience)?;
        }
        self.renew_lanes(context, patience)?;
        if !is_transactional {
            return Ok(());
        }
        match self.send_all(context, patience) {
            // A refusal is settled with what comes next.
            Ok(()) | Err(Broken::Refused) => Ok(()),
            Err(Broken::Error(error)) => Err(error),
        }
    }
}
