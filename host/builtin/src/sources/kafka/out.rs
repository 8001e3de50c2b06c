//! The unfinished batch: rows, what goes to quarantine, and the partitions that they move.
//!
//! Constraint: a record and the position behind it are in the same emission.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_event::limits;
use flumen_pipeline::plan::BatchPlan;
use flumen_pipeline::{Emission, Quarantined, SourceError};

use super::decoded::Decoded;
use super::limits::{COLUMN_BYTES_MAX, NAMES_MAX, REJECTED_BYTES_MAX};
use super::partitions::{Partition, Position, Table, encode, key};
use super::record::Outcome;
use super::rows::Rows;

/// Bytes of bodies in one batch at most: the rest of the limit is for the last record and for the headers.
const BYTES_MAX: usize = limits::BYTES_MAX / 4;

/// See the module.
pub struct Out {
    source: Arc<str>,
    plan: BatchPlan,
    /// Events.
    pub kept: Rows,
    /// Records for the quarantine.
    pub rejected: Rows,
    reasons: Vec<String>,
    /// What a codec could not work with.
    undecoded: Vec<Quarantined>,
    undecoded_bytes: usize,
    touched: Vec<usize>,
    since: Option<Instant>,
}

impl Out {
    /// An empty one.
    pub fn new(source: Arc<str>, plan: BatchPlan) -> Out {
        let (kept, rejected, reasons, touched) = Default::default();
        let (undecoded, undecoded_bytes) = Default::default();
        Out { source, plan, kept, rejected, reasons, undecoded, undecoded_bytes, touched, since: None }
    }

    /// True if the events of a record may be added to this batch: they have to be in one.
    pub fn fits(&self, decoded: &Decoded) -> bool {
        let Decoded::Events(intake) = decoded else { return true };
        let rows = self.kept.rows() + intake.events.rows();
        let bytes = self.kept.bytes() + self.kept.column_bytes() + intake.events.bytes();
        rows <= limits::ROWS_MAX && bytes <= BYTES_MAX
    }

    /// Sends what a codec could not work with to quarantine.
    pub fn quarantine(&mut self, group: Quarantined) {
        self.undecoded_bytes += group.batch.bytes();
        self.undecoded.push(group);
    }

    /// Notes what became of a record.
    pub fn note(&mut self, outcome: Outcome) {
        if let Outcome::Rejected { rows, reason } = outcome {
            self.reasons.extend(std::iter::repeat_n(reason, rows));
        }
    }

    /// The partition's position is in this batch.
    #[inline]
    pub fn touch(&mut self, index: usize, partition: &mut Partition) {
        if !partition.is_touched {
            partition.is_touched = true;
            self.touched.push(index);
            self.since.get_or_insert_with(Instant::now);
        }
    }

    /// True when the batch has to go before another record is added.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.kept.rows() >= self.plan.rows.clamp(1, limits::ROWS_MAX)
            || self.kept.bytes() >= self.plan.bytes.clamp(1, BYTES_MAX)
            || self.kept.column_bytes() >= COLUMN_BYTES_MAX
            || self.kept.names() >= NAMES_MAX
            || self.rejected.bytes() + self.rejected.column_bytes() + self.undecoded_bytes
                >= REJECTED_BYTES_MAX
    }

    /// Time until the batch has lingered long enough; `None` if there is nothing to emit.
    pub fn due_in(&self) -> Option<Duration> {
        self.since.map(|since| self.plan.linger.saturating_sub(since.elapsed()))
    }

    /// True if there is nothing to emit.
    pub fn is_empty(&self) -> bool {
        self.touched.is_empty()
    }

    /// Everything so far, as one emission, and where its partitions are then; empty again afterwards.
    pub fn take(&mut self, table: &mut Table) -> Result<(Emission, Vec<(usize, i64)>), SourceError> {
        let retry = |error: flumen_event::BatchError| SourceError::Retry(error.to_string());
        let batch = self.kept.finish().map_err(retry)?;
        let rejected = self.rejected.finish().map_err(retry)?;
        let reasons = std::mem::take(&mut self.reasons);
        let mut quarantined = std::mem::take(&mut self.undecoded);
        self.undecoded_bytes = 0;
        if !rejected.is_empty() {
            quarantined.push(Quarantined {
                batch: rejected,
                reasons,
                by: self.source.clone(),
                hash: "".into(),
                rejected: false,
            });
        }
        let mut positions = Vec::with_capacity(self.touched.len());
        let mut moved = Vec::with_capacity(self.touched.len());
        for index in self.touched.drain(..) {
            if let Some(partition) = table.get_mut(index) {
                partition.is_touched = false;
                let position = Position { next: partition.next, generation: partition.generation };
                positions.push((key(&partition.topic, partition.number), encode(position)));
                moved.push((index, partition.next));
            }
        }
        self.since = None;
        Ok((Emission { batch, positions, quarantined }, moved))
    }

    /// Forgets everything: it is read again, by this agent or another.
    pub fn discard(&mut self, table: &mut Table) {
        // Only whether it worked could be an error, and it is thrown away.
        drop(self.take(table));
        for partition in table.iter_mut() {
            partition.next = partition.emitted;
            partition.is_touched = false;
        }
    }
}
