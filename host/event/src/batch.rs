//! The table itself and its invariants.

use std::sync::Arc;

use arrow_array::{Array, BinaryArray, Int64Array, StringArray, UInt32Array, UInt64Array};
use arrow_schema::ArrowError;
use thiserror::Error;

use crate::{Identity, limits};

/// A column of one header: a name, and per row a UTF-8 value or nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct HeaderColumn {
    /// The header's name, at most [`limits::HEADER_NAME_BYTES_MAX`] bytes.
    pub name: Arc<str>,
    /// One value per row; null means that this event has no such header.
    pub values: StringArray,
}

/// A table of events. All columns have the same number of rows; header names are unique.
///
/// Cloning is cheap (one reference count).
#[derive(Debug, Clone, PartialEq)]
pub struct Batch(Arc<Columns>);

#[derive(Debug, Clone, PartialEq)]
struct Columns {
    time: Int64Array,
    body: BinaryArray,
    headers: Vec<HeaderColumn>,
    stream: UInt64Array,
    position: UInt64Array,
}

/// Why columns do not make a batch.
#[derive(Debug, Error)]
pub enum BatchError {
    /// A column is shorter or longer than the others.
    #[error("column {column} has {rows} rows, the batch has {expected}")]
    Rows {
        /// Which column.
        column: String,
        /// Its rows.
        rows: usize,
        /// Rows of the body column.
        expected: usize,
    },
    /// Time, body or identity has a null.
    #[error("column {0} has a row without a value")]
    Null(&'static str),
    /// The same header twice.
    #[error("header {0:?} is given twice")]
    HeaderTwice(String),
    /// A header name is empty or too long.
    #[error("header name {0:?} is empty or over {max} bytes", max = limits::HEADER_NAME_BYTES_MAX)]
    HeaderName(String),
    /// One of [`limits`].
    #[error("{what}: {value} is over the limit of {limit}")]
    Limit {
        /// Which limit.
        what: &'static str,
        /// What was given.
        value: usize,
        /// What is allowed.
        limit: usize,
    },
    /// An arrow kernel refused (offset overflow).
    #[error("column arithmetic failed: {0}")]
    Arrow(#[from] ArrowError),
}

impl Batch {
    /// Puts columns together and checks every invariant of the type.
    pub fn new(
        time: Int64Array,
        body: BinaryArray,
        headers: Vec<HeaderColumn>,
        stream: UInt64Array,
        position: UInt64Array,
    ) -> Result<Self, BatchError> {
        let batch = Batch::of(Columns { time, body, headers, stream, position });
        batch.check()?;
        Ok(batch)
    }

    fn of(columns: Columns) -> Batch {
        Batch(Arc::new(columns))
    }

    fn check(&self) -> Result<(), BatchError> {
        let expected = self.rows();
        let columns = self.0.as_ref();
        let fixed: [(&'static str, &dyn Array); 4] = [
            ("time", &columns.time),
            ("body", &columns.body),
            ("stream", &columns.stream),
            ("position", &columns.position),
        ];
        for (name, column) in fixed {
            if column.len() != expected {
                return Err(BatchError::Rows { column: name.into(), rows: column.len(), expected });
            }
            if column.null_count() > 0 {
                return Err(BatchError::Null(name));
            }
        }
        limit("rows of a batch", expected, limits::ROWS_MAX)?;
        limit("headers of a batch", self.0.headers.len(), limits::HEADERS_MAX)?;
        for (index, header) in self.0.headers.iter().enumerate() {
            if header.values.len() != expected {
                let column = format!("header {:?}", header.name);
                return Err(BatchError::Rows { column, rows: header.values.len(), expected });
            }
            if header.name.is_empty() || header.name.len() > limits::HEADER_NAME_BYTES_MAX {
                return Err(BatchError::HeaderName(header.name.to_string()));
            }
            if self.0.headers.iter().take(index).any(|other| other.name == header.name) {
                return Err(BatchError::HeaderTwice(header.name.to_string()));
            }
        }
        limit("bytes of a batch", self.bytes(), limits::BYTES_MAX)
    }

    /// A batch of no rows.
    pub fn empty() -> Self {
        Batch::of(Columns {
            time: Int64Array::from(Vec::<i64>::new()),
            body: BinaryArray::from(Vec::<&[u8]>::new()),
            headers: Vec::new(),
            stream: UInt64Array::from(Vec::<u64>::new()),
            position: UInt64Array::from(Vec::<u64>::new()),
        })
    }

    /// Number of events.
    pub fn rows(&self) -> usize {
        self.0.body.len()
    }

    /// True if there is no event.
    pub fn is_empty(&self) -> bool {
        self.rows() == 0
    }

    /// Nanoseconds since the Unix epoch, UTC.
    pub fn time(&self) -> &Int64Array {
        &self.0.time
    }

    /// The bodies.
    pub fn body(&self) -> &BinaryArray {
        &self.0.body
    }

    /// All headers, in no particular order.
    pub fn headers(&self) -> &[HeaderColumn] {
        &self.0.headers
    }

    /// The column of one header.
    pub fn header(&self, name: &str) -> Option<&StringArray> {
        self.0.headers.iter().find(|header| &*header.name == name).map(|header| &header.values)
    }

    /// The stream of each event.
    pub fn stream(&self) -> &UInt64Array {
        &self.0.stream
    }

    /// The position of each event in its stream.
    pub fn position(&self) -> &UInt64Array {
        &self.0.position
    }

    /// Identity of one event; `None` past the last row.
    pub fn identity(&self, row: usize) -> Option<Identity> {
        (row < self.rows())
            .then(|| Identity { stream: self.0.stream.value(row), position: self.0.position.value(row) })
    }

    /// Bytes of all columns that these rows use: what the batch counts in a channel's capacity.
    pub fn bytes(&self) -> usize {
        let rows = self.rows();
        let headers: usize = self
            .0
            .headers
            .iter()
            .map(|h| range_bytes(h.values.value_offsets()) + rows * 4 + rows.div_ceil(8))
            .sum();
        range_bytes(self.0.body.value_offsets()) + rows * (4 + 8 + 8 + 8) + headers
    }

    /// Bytes of the bodies alone.
    pub fn body_bytes(&self) -> usize {
        range_bytes(self.0.body.value_offsets())
    }

    /// Bytes of memory that the batch holds: its buffers as they were allocated, even where it uses a part of them only.
    /// Buffers that columns share are counted for each.
    pub fn memory_bytes(&self) -> usize {
        let headers: usize = self.0.headers.iter().map(|h| h.values.get_buffer_memory_size()).sum();
        let columns = [
            self.0.time.get_buffer_memory_size(),
            self.0.body.get_buffer_memory_size(),
            self.0.stream.get_buffer_memory_size(),
            self.0.position.get_buffer_memory_size(),
        ];
        columns.iter().sum::<usize>() + headers
    }

    /// The same events in buffers of their own, if those that they are in are far larger than they are: a few rows of a
    /// large batch must not keep all of it.
    pub fn compact(&self) -> Batch {
        if self.memory_bytes() <= 2 * self.bytes() + limits::COMPACT_SLACK_BYTES {
            return self.clone();
        }
        let all = UInt32Array::from_iter_values(0..u32::try_from(self.rows()).unwrap_or(u32::MAX));
        self.take(&all).unwrap_or_else(|_| self.clone())
    }

    /// A run of rows, without a copy. Clamped to the rows there are.
    pub fn slice(&self, first: usize, rows: usize) -> Batch {
        let first = first.min(self.rows());
        let rows = rows.min(self.rows() - first);
        if rows == self.rows() {
            return self.clone();
        }
        let columns = self.0.as_ref();
        Batch::of(Columns {
            time: columns.time.slice(first, rows),
            body: columns.body.slice(first, rows),
            headers: columns
                .headers
                .iter()
                .map(|h| HeaderColumn { name: h.name.clone(), values: h.values.slice(first, rows) })
                .collect(),
            stream: columns.stream.slice(first, rows),
            position: columns.position.slice(first, rows),
        })
    }

    /// The given rows, in the given order; a row may be repeated. A row out of range is an error, and so are more rows
    /// or bytes than a batch may have.
    pub fn take(&self, rows: &UInt32Array) -> Result<Batch, BatchError> {
        self.check_take(rows)?;
        let time = take(&self.0.time, rows)?;
        let body = take(&self.0.body, rows)?;
        let headers = self
            .0
            .headers
            .iter()
            .map(|h| Ok(HeaderColumn { name: h.name.clone(), values: take(&h.values, rows)? }))
            .collect::<Result<Vec<_>, ArrowError>>()?;
        Batch::new(time, body, headers, take(&self.0.stream, rows)?, take(&self.0.position, rows)?)
    }

    /// Rows that only rise are a part of this batch and not larger than it. Others are counted before a kernel
    /// allocates for them: a few row numbers, each of a large row, could ask for terabytes.
    fn check_take(&self, rows: &UInt32Array) -> Result<(), BatchError> {
        if rows.values().is_sorted_by(|row, next| row < next) {
            return Ok(());
        }
        if rows.len() > limits::ROWS_MAX {
            return Err(BatchError::Limit {
                what: "rows of a batch",
                value: rows.len(),
                limit: limits::ROWS_MAX,
            });
        }
        let headers = self.0.headers.iter().map(|header| header.values.value_offsets());
        let columns: Vec<&[i32]> = std::iter::once(self.0.body.value_offsets()).chain(headers).collect();
        let value = rows
            .values()
            .iter()
            .map(|row| columns.iter().map(|offsets| row_bytes(offsets, *row)).sum::<usize>())
            .sum();
        match value > limits::BYTES_MAX {
            true => Err(BatchError::Limit { what: "bytes of a batch", value, limit: limits::BYTES_MAX }),
            false => Ok(()),
        }
    }

    /// Rows of several batches after each other. Headers that one of them lacks are null there.
    pub fn concat(batches: &[Batch]) -> Result<Batch, BatchError> {
        if let [only] = batches {
            return Ok(only.clone());
        }
        if batches.is_empty() {
            return Ok(Batch::empty());
        }
        // Before anything is copied.
        limit("rows of a batch", batches.iter().map(Batch::rows).sum(), limits::ROWS_MAX)?;
        limit("body bytes of a batch", batches.iter().map(Batch::body_bytes).sum(), limits::BYTES_MAX)?;
        let mut names: Vec<Arc<str>> = Vec::new();
        for header in batches.iter().flat_map(|batch| &batch.0.headers) {
            if !names.contains(&header.name) {
                names.push(header.name.clone());
            }
        }
        limit("headers of a batch", names.len(), limits::HEADERS_MAX)?;
        let mut headers = Vec::with_capacity(names.len());
        for name in names {
            let columns: Vec<StringArray> = batches
                .iter()
                .map(|b| b.header(&name).cloned().unwrap_or_else(|| StringArray::new_null(b.rows())))
                .collect();
            headers.push(HeaderColumn { values: concat(columns.iter())?, name });
        }
        Batch::new(
            concat(batches.iter().map(|b| &b.0.time))?,
            concat(batches.iter().map(|b| &b.0.body))?,
            headers,
            concat(batches.iter().map(|b| &b.0.stream))?,
            concat(batches.iter().map(|b| &b.0.position))?,
        )
    }

    /// The same events with one header set to new values (replacing the column if it is there).
    pub fn with_header(mut self, name: &str, values: StringArray) -> Result<Batch, BatchError> {
        let headers = &mut Arc::make_mut(&mut self.0).headers;
        match headers.iter_mut().find(|header| &*header.name == name) {
            Some(header) => header.values = values,
            None => headers.push(HeaderColumn { name: name.into(), values }),
        }
        self.check()?;
        Ok(self)
    }

    /// The same events with identities of their own: a stream, and one position after the other.
    pub fn identified(mut self, first: Identity) -> Batch {
        let rows = self.rows();
        let columns = Arc::make_mut(&mut self.0);
        columns.stream = UInt64Array::from_value(first.stream, rows);
        columns.position = (first.position..first.position.saturating_add(rows as u64)).collect();
        self
    }

    /// The same events without one header.
    pub fn without_header(mut self, name: &str) -> Batch {
        Arc::make_mut(&mut self.0).headers.retain(|header| &*header.name != name);
        self
    }

    pub(crate) fn into_columns(
        self,
    ) -> (Int64Array, BinaryArray, Vec<HeaderColumn>, UInt64Array, UInt64Array) {
        let Columns { time, body, headers, stream, position } = Arc::unwrap_or_clone(self.0);
        (time, body, headers, stream, position)
    }
}

fn limit(what: &'static str, value: usize, limit: usize) -> Result<(), BatchError> {
    if value > limit { Err(BatchError::Limit { what, value, limit }) } else { Ok(()) }
}

fn range_bytes(offsets: &[i32]) -> usize {
    match (offsets.first(), offsets.last()) {
        (Some(first), Some(last)) => (last - first) as usize,
        _ => 0,
    }
}

/// 0 for a row out of range: the kernel finds it.
fn row_bytes(offsets: &[i32], row: u32) -> usize {
    let row = row as usize;
    match (offsets.get(row), offsets.get(row + 1)) {
        (Some(start), Some(end)) => (end - start) as usize,
        _ => 0,
    }
}

fn take<A: Array + Clone + 'static>(column: &A, rows: &UInt32Array) -> Result<A, ArrowError> {
    let options = arrow_select::take::TakeOptions { check_bounds: true };
    let taken = arrow_select::take::take(column, rows, Some(options))?;
    downcast(taken.as_ref())
}

fn concat<'a, A: Array + Clone + 'static>(columns: impl Iterator<Item = &'a A>) -> Result<A, ArrowError> {
    let columns: Vec<&dyn Array> = columns.map(|column| column as &dyn Array).collect();
    downcast(arrow_select::concat::concat(&columns)?.as_ref())
}

fn downcast<A: Array + Clone + 'static>(array: &dyn Array) -> Result<A, ArrowError> {
    // The kernels keep the type of their input, so this is unreachable; an error costs nothing.
    array
        .as_any()
        .downcast_ref::<A>()
        .cloned()
        .ok_or_else(|| ArrowError::CastError("kernel changed the type".into()))
}
