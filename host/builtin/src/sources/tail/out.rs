//! The batch under construction: rows, their headers, and the positions that they move.
//!
//! Constraint: a row and the position behind it are always in the same emission. So whoever splits
//! a chunk stops when [`Out::is_full`], notes the position reached, emits, and only then goes on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::builder::StringBuilder;
use arrow_array::{Array, StringArray};
use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use flumen_event::{Batch, BatchBuilder, BatchError, HeaderColumn, limits};
use flumen_pipeline::codec::Intake;
use flumen_pipeline::plan::BatchPlan;
use flumen_pipeline::{Emission, Quarantined, SourceError};

use super::position;

/// Header with the path of the file that an event was read from.
pub const FILE_HEADER: &str = "file";

/// Header (`"true"`) of an event that is a further part of the line whose first part is the event before.
pub const CONTINUED_HEADER: &str = "flumen.continued";

/// Bytes of bodies, and of the `file` column, in one batch at most: the rest of the limit is for
/// the last event, which may be large, and for what interceptors add.
const BYTES_MAX: usize = limits::BYTES_MAX / 4;

/// Below this a column is built anew; above, slices of one prepared column are handed out.
const REPEATED_ROWS_MIN: usize = 64;

/// Where the rows of a chunk come from.
#[derive(Debug, Clone)]
pub struct Place {
    /// Their stream.
    pub stream: u64,
    /// Position of the chunk's first byte (wrapping below 0 where a prefix of another file precedes it).
    pub base: u64,
    /// Identity of an event that begins at the chunk's first byte, if it began in another file.
    pub first: Option<(u64, u64)>,
    /// Their time.
    pub time: i64,
}

/// See the module.
pub struct Out {
    name: Arc<str>,
    plan: BatchPlan,
    file_header: bool,
    rows_max: usize,
    builder: BatchBuilder,
    runs: Vec<(usize, Arc<str>)>,
    continued: Vec<usize>,
    quarantined: Vec<Quarantined>,
    /// What a codec made of chunks, in place of rows.
    decoded: Decoded,
    positions: Vec<(u64, Vec<u8>)>,
    position_of: HashMap<u64, usize>,
    since: Option<Instant>,
    prepared: Option<(Arc<str>, StringArray)>,
}

impl Out {
    /// An empty one for the source `name`.
    pub fn new(name: Arc<str>, plan: BatchPlan, file_header: bool) -> Out {
        let mut out = Out {
            name,
            plan,
            file_header,
            rows_max: 0,
            builder: BatchBuilder::default(),
            runs: Vec::new(),
            continued: Vec::new(),
            quarantined: Vec::new(),
            decoded: Decoded::default(),
            positions: Vec::new(),
            position_of: HashMap::new(),
            since: None,
            prepared: None,
        };
        out.reset();
        out
    }

    fn reset(&mut self) {
        self.rows_max = self.plan.rows.clamp(1, limits::ROWS_MAX);
        self.since = None;
    }

    /// The following rows are of a file with this label.
    pub fn begin(&mut self, label: &Arc<str>) {
        self.rows_max = self.rows_max.min((BYTES_MAX / label.len().max(1)).max(1));
        let rows = self.builder.rows();
        match self.runs.last_mut() {
            Some((_, last)) if Arc::ptr_eq(last, label) => {}
            Some((first, last)) if *first == rows => *last = label.clone(),
            _ => self.runs.push((rows, label.clone())),
        }
    }

    /// Appends the event that begins at byte `start` of its chunk.
    #[inline]
    pub fn push(&mut self, place: &Place, start: usize, body: &[u8], continued: bool) {
        let (stream, position) = identity(place, start);
        if continued {
            self.continued.push(self.builder.rows());
        }
        self.builder.push(stream, position, place.time, body);
    }

    /// Sends the beginning of an event to quarantine instead.
    pub fn quarantine(&mut self, place: &Place, start: usize, body: &[u8], reason: String) {
        let (stream, position) = identity(place, start);
        let mut builder = BatchBuilder::with_capacity(1, body.len());
        builder.push(stream, position, place.time, body);
        let headers = match self.runs.last() {
            Some((_, label)) if self.file_header => {
                vec![HeaderColumn { name: FILE_HEADER.into(), values: StringArray::from(vec![&**label]) }]
            }
            _ => Vec::new(),
        };
        match builder.finish(headers) {
            Ok(batch) => self.quarantined.push(Quarantined {
                batch,
                reasons: vec![reason],
                by: self.name.clone(),
                hash: "".into(),
                rejected: false,
            }),
            // One row below the limits is a batch; if it ever were not, the log says so.
            Err(error) => tracing::error!(source = %self.name, %error, "a line could not be quarantined"),
        }
    }

    /// True when the batch has to go before another row is pushed.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.builder.rows() >= self.rows_max
            || self.builder.bytes() >= self.plan.bytes.clamp(1, BYTES_MAX)
            || self.quarantined.len() >= QUARANTINED_MAX
            || self.decoded.is_full(&self.plan)
    }

    /// True if what a codec made of a chunk may go into this batch. It may not be parted, because one position moves
    /// behind all of it.
    pub fn fits(&self, intake: &Intake) -> bool {
        self.decoded.fits(&intake.events)
    }

    /// Adds what a codec made of a chunk.
    pub fn push_decoded(&mut self, intake: Intake) {
        let label = self.runs.last().filter(|_| self.file_header).map(|(_, label)| label.clone());
        let labelled = |batch: Batch| match &label {
            Some(label) => with_label(batch, label),
            None => batch,
        };
        self.decoded.push(labelled(intake.events));
        for group in intake.quarantined {
            self.decoded.quarantined_bytes += group.batch.bytes();
            self.quarantined.push(Quarantined { batch: labelled(group.batch), ..group });
        }
    }

    /// Notes how far a stream is read with the rows pushed so far (an empty record removes it).
    pub fn note(&mut self, stream: u64, record: Vec<u8>) {
        match self.position_of.get(&stream).and_then(|index| self.positions.get_mut(*index)) {
            Some((_, old)) => *old = record,
            None => {
                self.position_of.insert(stream, self.positions.len());
                self.positions.push((stream, record));
            }
        }
        self.since.get_or_insert_with(Instant::now);
    }

    /// Time until the batch has lingered long enough; `None` if there is nothing to emit.
    pub fn due_in(&self) -> Option<Duration> {
        self.since.map(|since| self.plan.linger.saturating_sub(since.elapsed()))
    }

    /// True if there is nothing to emit.
    pub fn is_empty(&self) -> bool {
        self.since.is_none()
            && self.builder.is_empty()
            && self.decoded.batches.is_empty()
            && self.quarantined.is_empty()
    }

    /// Everything so far, as one emission; empty again afterwards.
    pub fn take(&mut self) -> Result<Emission, SourceError> {
        let rows = self.builder.rows();
        let mut headers = Vec::new();
        if self.file_header && rows > 0 {
            headers.push(HeaderColumn { name: FILE_HEADER.into(), values: self.file_column(rows)? });
        }
        if !self.continued.is_empty() {
            let mut column = StringBuilder::new();
            let mut next = 0;
            for row in std::mem::take(&mut self.continued) {
                column.append_nulls(row.saturating_sub(next));
                column.append_value("true");
                next = row + 1;
            }
            column.append_nulls(rows.saturating_sub(next));
            headers.push(HeaderColumn { name: CONTINUED_HEADER.into(), values: column.finish() });
        }
        let batch = match self.decoded.take() {
            Some(batch) => batch,
            None => self.builder.finish(headers),
        };
        let batch = batch.map_err(|error| SourceError::Retry(error.to_string()))?;
        let last = self.runs.pop().map(|(_, label)| (0, label));
        self.runs.clear();
        self.runs.extend(last);
        self.position_of.clear();
        let positions = std::mem::take(&mut self.positions);
        let positions =
            positions.into_iter().map(|(stream, record)| (position::key(stream), record)).collect();
        self.reset();
        if let Some((_, label)) = self.runs.last() {
            self.rows_max = self.rows_max.min((BYTES_MAX / label.len().max(1)).max(1));
        }
        if rows >= REPEATED_ROWS_MIN {
            // Under load the next batch is as large: no growing, no copies.
            self.builder =
                BatchBuilder::with_capacity(rows + rows / 8, batch.body_bytes() + batch.body_bytes() / 8);
        }
        Ok(Emission { batch, positions, quarantined: std::mem::take(&mut self.quarantined) })
    }

    /// The `file` column. A batch of one file, the usual case under load, gets a slice of a column
    /// that was made once: no bytes are written per event.
    fn file_column(&mut self, rows: usize) -> Result<StringArray, SourceError> {
        let retry = |error: BatchError| SourceError::Retry(error.to_string());
        if let [(_, label)] = self.runs.as_slice()
            && rows >= REPEATED_ROWS_MIN
        {
            let made = match &self.prepared {
                Some((of, column)) if Arc::ptr_eq(of, label) && column.len() >= rows => column.clone(),
                _ => {
                    let made = repeated(&[(label.clone(), rows.max(self.rows_max))]).map_err(retry)?;
                    self.prepared = Some((label.clone(), made.clone()));
                    made
                }
            };
            return Ok(made.slice(0, rows));
        }
        let mut counts = Vec::with_capacity(self.runs.len());
        for (index, (first, label)) in self.runs.iter().enumerate() {
            let end = self.runs.get(index + 1).map_or(rows, |(next, _)| *next);
            counts.push((label.clone(), end.saturating_sub(*first)));
        }
        repeated(&counts).map_err(retry)
    }
}

/// Events that codecs made, until they are one batch.
#[derive(Default)]
struct Decoded {
    batches: Vec<Batch>,
    rows: usize,
    bytes: usize,
    names: HashSet<Arc<str>>,
    quarantined_bytes: usize,
}

impl Decoded {
    fn is_full(&self, plan: &BatchPlan) -> bool {
        self.rows >= plan.rows.clamp(1, limits::ROWS_MAX)
            || self.bytes.max(self.quarantined_bytes) >= plan.bytes.clamp(1, BYTES_MAX)
    }

    fn fits(&self, events: &Batch) -> bool {
        let fresh = events.headers().iter().filter(|header| !self.names.contains(&header.name)).count();
        self.batches.is_empty()
            || (self.rows + events.rows() <= limits::ROWS_MAX
                && self.bytes + events.bytes() <= BYTES_MAX
                // A name that only some chunks have costs every row of the others an offset.
                && self.names.len() + fresh <= DECODED_NAMES_MAX)
    }

    fn push(&mut self, events: Batch) {
        if events.is_empty() {
            return;
        }
        self.rows += events.rows();
        self.bytes += events.bytes();
        self.names.extend(events.headers().iter().map(|header| header.name.clone()));
        self.batches.push(events);
    }

    fn take(&mut self) -> Option<Result<Batch, BatchError>> {
        let Decoded { batches, .. } = std::mem::take(self);
        (!batches.is_empty()).then(|| Batch::concat(&batches))
    }
}

/// Header names over all chunks of one batch: as many as fit beside [`BYTES_MAX`] when each is in one chunk only.
const DECODED_NAMES_MAX: usize = 128;

/// The events with the `file` header. Without it where they have no room for it: a batch cannot be parted here.
fn with_label(batch: Batch, label: &Arc<str>) -> Batch {
    let rows = batch.rows();
    let labelled =
        repeated(&[(label.clone(), rows)]).and_then(|values| batch.clone().with_header(FILE_HEADER, values));
    labelled.unwrap_or_else(|error| {
        tracing::warn!(file = %label, events = rows, %error, "events go on without the header `file`");
        batch
    })
}

/// Lines in quarantine per emission.
const QUARANTINED_MAX: usize = 16;

#[inline]
fn identity(place: &Place, start: usize) -> (u64, u64) {
    match place.first {
        Some(first) if start == 0 => first,
        _ => (place.stream, place.base.wrapping_add(start as u64)),
    }
}

/// A column in which each text is repeated a number of times.
fn repeated(runs: &[(Arc<str>, usize)]) -> Result<StringArray, BatchError> {
    let rows: usize = runs.iter().map(|(_, count)| count).sum();
    let bytes: usize = runs.iter().map(|(text, count)| text.len() * count).sum();
    let mut offsets = Vec::with_capacity(rows + 1);
    let mut values = Vec::with_capacity(bytes);
    offsets.push(0);
    for (text, count) in runs {
        for _ in 0..*count {
            values.extend_from_slice(text.as_bytes());
            offsets.push(i32::try_from(values.len()).unwrap_or(i32::MAX));
        }
    }
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    Ok(StringArray::try_new(offsets, Buffer::from_vec(values), None)?)
}
