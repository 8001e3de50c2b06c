//! What a plugin answers: not a new batch but the difference to its input.

use std::sync::Arc;

use arrow_array::{Array, BinaryArray, Int64Array, UInt32Array};
use arrow_buffer::{Buffer, OffsetBuffer};
use thiserror::Error;

use crate::batch::{Batch, BatchError, HeaderColumn};
use crate::limits;

/// A row of the input that a plugin cannot work with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Row number in the input batch.
    pub row: u32,
    /// What is wrong with it, for a person.
    pub reason: String,
}

/// The answer to a batch. `None` and empty lists mean "unchanged".
///
/// Columns given here have one row per *output* row.
#[derive(Debug, Clone, Default)]
pub struct Difference {
    /// Which input row each output row came from. `None`: all that are not rejected, in order.
    pub rows_from: Option<UInt32Array>,
    /// New bodies.
    pub body: Option<BinaryArray>,
    /// New times.
    pub time: Option<Int64Array>,
    /// Headers to set; a null removes the header from that row.
    pub set_headers: Vec<HeaderColumn>,
    /// Headers to remove from all rows.
    pub remove_headers: Vec<Arc<str>>,
    /// Input rows that leave the flow.
    pub rejected: Vec<Rejection>,
}

/// A batch after a difference.
#[derive(Debug)]
pub struct Applied {
    /// The events that go on, in order.
    pub kept: Batch,
    /// The rejected events as they were in the input.
    pub rejected: Batch,
    /// One reason per row of `rejected`.
    pub reasons: Vec<String>,
    /// Input rows that are named neither as kept nor as rejected.
    pub dropped: usize,
}

/// Why a difference does not fit its input: the answer lied.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// A row number that the input does not have.
    #[error("{what} names row {row}, the batch has {rows}")]
    RowOutOfRange {
        /// `rows-from` or `rejected`.
        what: &'static str,
        /// The row named.
        row: u32,
        /// Rows of the input.
        rows: usize,
    },
    /// A row is rejected twice, or rejected and kept.
    #[error("row {0} is rejected and also kept, or rejected twice")]
    RowTwice(u32),
    /// A column of the answer is not as long as the output, or a limit is passed.
    #[error(transparent)]
    Column(#[from] BatchError),
}

impl Difference {
    /// Applies the difference with arrow's kernels. Costs nothing per row that is not moved:
    /// an empty difference returns the input itself.
    pub fn apply(mut self, input: &Batch) -> Result<Applied, ApplyError> {
        if self.is_empty() {
            return Ok(Applied {
                kept: input.clone(),
                rejected: input.slice(0, 0),
                reasons: Vec::new(),
                dropped: 0,
            });
        }
        let rows = input.rows();
        // Both lists are compared with the headers one by one.
        for (what, value) in
            [("headers set", self.set_headers.len()), ("headers removed", self.remove_headers.len())]
        {
            if value > limits::HEADERS_MAX {
                return Err(BatchError::Limit { what, value, limit: limits::HEADERS_MAX }.into());
            }
        }
        let mut rejected = vec![false; if self.rejected.is_empty() { 0 } else { rows }];
        for rejection in &self.rejected {
            let out_of_range = ApplyError::RowOutOfRange { what: "rejected", row: rejection.row, rows };
            let mark = rejected.get_mut(rejection.row as usize).ok_or(out_of_range)?;
            if std::mem::replace(mark, true) {
                return Err(ApplyError::RowTwice(rejection.row));
            }
        }
        let rows_from = match self.rows_from.take() {
            Some(from) => Some(from),
            None if self.rejected.is_empty() => None,
            None => Some(rejected.iter().zip(0u32..).filter(|(out, _)| !**out).map(|(_, row)| row).collect()),
        };
        let (moved, dropped) = match &rows_from {
            None => (input.clone(), 0),
            Some(from) => {
                let dropped = check_rows(from, &rejected, rows, self.rejected.len())?;
                (self.unreplaced(input)?.take(from)?, dropped)
            }
        };
        let rejected_rows: UInt32Array = self.rejected.iter().map(|rejection| rejection.row).collect();
        // Taking none costs as much as taking a few.
        let rejected =
            if self.rejected.is_empty() { input.slice(0, 0) } else { input.take(&rejected_rows)? };
        let reasons =
            std::mem::take(&mut self.rejected).into_iter().map(|rejection| rejection.reason).collect();
        let (mut time, mut body, mut headers, stream, position) = moved.into_columns();
        headers.retain(|header| !self.replaces(&header.name));
        if let Some(new) = self.body {
            body = new;
        }
        if let Some(new) = self.time {
            time = new;
        }
        headers.extend(self.set_headers);
        // `Batch::new` compares with the body, so a body of the wrong length must be named itself.
        if body.len() != stream.len() {
            let column = "body".to_string();
            return Err(BatchError::Rows { column, rows: body.len(), expected: stream.len() }.into());
        }
        let kept = Batch::new(time, body, headers, stream, position)?;
        Ok(Applied { kept, rejected, reasons, dropped })
    }

    /// Nothing is to be done.
    fn is_empty(&self) -> bool {
        let Difference { rows_from, body, time, set_headers, remove_headers, rejected } = self;
        let columns = rows_from.is_none() && body.is_none() && time.is_none();
        columns && set_headers.is_empty() && remove_headers.is_empty() && rejected.is_empty()
    }

    /// The input without what the answer replaces: an event that is split into a thousand is not copied a thousand times
    /// first, only to be thrown away.
    fn unreplaced(&self, input: &Batch) -> Result<Batch, BatchError> {
        let (time, mut body, mut headers, stream, position) = input.clone().into_columns();
        if self.body.is_some() {
            body = BinaryArray::new(OffsetBuffer::new_zeroed(input.rows()), Buffer::default(), None);
        }
        headers.retain(|header| !self.replaces(&header.name));
        Batch::new(time, body, headers, stream, position)
    }

    fn replaces(&self, header: &str) -> bool {
        self.remove_headers.iter().any(|name| **name == *header)
            || self.set_headers.iter().any(|set| *set.name == *header)
    }
}

/// Checks `rows_from` against the input and the rejected rows; returns how many rows are dropped.
fn check_rows(
    from: &UInt32Array,
    rejected: &[bool],
    rows: usize,
    rejections: usize,
) -> Result<usize, ApplyError> {
    let mut named = 0;
    let mut rising = true;
    let mut previous: Option<u32> = None;
    for &row in from.values() {
        if row as usize >= rows {
            return Err(ApplyError::RowOutOfRange { what: "rows-from", row, rows });
        }
        if rejected.get(row as usize).copied().unwrap_or(false) {
            return Err(ApplyError::RowTwice(row));
        }
        rising &= previous.is_none_or(|previous| previous < row);
        previous = Some(row);
        named += 1;
    }
    if !rising {
        // Moved or repeated rows: only then a set is needed to know which rows are named.
        let mut seen = vec![false; rows];
        from.values().iter().for_each(|&row| {
            if let Some(mark) = seen.get_mut(row as usize) {
                *mark = true;
            }
        });
        named = seen.iter().filter(|seen| **seen).count();
    }
    Ok(rows - named - rejections)
}
