//! What `at-most-once` sends when the journal has acknowledged it.

use std::collections::VecDeque;
use std::sync::Arc;

use flumen_event::Batch;
use flumen_kafka::produce::Values;
use flumen_pipeline::Metric;
use flumen_pipeline::sink::SinkContext;

/// A batch and the values of its rows.
type Made = (Batch, Arc<Values>);

/// Batches by flush.
#[derive(Default)]
pub(super) struct Outbox {
    delivered: Vec<Made>,
    flushed: VecDeque<Vec<Made>>,
}

impl Outbox {
    pub fn deliver(&mut self, made: Made) {
        self.delivered.push(made);
    }

    /// What was delivered becomes one group; it is acknowledged next.
    pub fn flush(&mut self) {
        self.flushed.push_back(std::mem::take(&mut self.delivered));
    }

    /// The oldest group, acknowledged now.
    pub fn committed(&mut self) -> Option<Vec<Made>> {
        self.flushed.pop_front()
    }

    /// After an error. What was only delivered comes again; groups that were flushed are acknowledged by now without
    /// having been sent.
    pub fn recover(&mut self, context: &SinkContext) {
        self.delivered.clear();
        let lost: u64 = self.flushed.drain(..).flatten().map(|(batch, _)| batch.rows() as u64).sum();
        if lost > 0 {
            context.metrics.add(Metric::SinkDropped, lost);
            tracing::error!(
                sink = &*context.name,
                events = lost,
                "acknowledged, and not sent: lost (at-most-once)"
            );
        }
    }
}
