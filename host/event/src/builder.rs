//! Builds a batch row by row or from ready buffers.

use arrow_array::{BinaryArray, Int64Array, UInt64Array};
use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};

use crate::batch::{Batch, BatchError, HeaderColumn};
use crate::limits;

/// Collects events of one stream. Bodies are appended to one buffer, so an event costs no allocation.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    time: Vec<i64>,
    offsets: Vec<i32>,
    data: Vec<u8>,
    stream: Vec<u64>,
    position: Vec<u64>,
}

impl BatchBuilder {
    /// An empty builder with room for `rows` events of `bytes` bytes together.
    pub fn with_capacity(rows: usize, bytes: usize) -> Self {
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        BatchBuilder {
            time: Vec::with_capacity(rows),
            offsets,
            data: Vec::with_capacity(bytes),
            stream: Vec::with_capacity(rows),
            position: Vec::with_capacity(rows),
        }
    }

    /// Appends an event. The caller keeps within [`limits::ROWS_MAX`] and [`limits::BYTES_MAX`]
    /// (see [`BatchBuilder::is_full_for`]); `finish` refuses what is over.
    pub fn push(&mut self, stream: u64, position: u64, time: i64, body: &[u8]) {
        if self.offsets.is_empty() {
            self.offsets.push(0);
        }
        self.data.extend_from_slice(body);
        self.offsets.push(i32::try_from(self.data.len()).unwrap_or(i32::MAX));
        self.time.push(time);
        self.stream.push(stream);
        self.position.push(position);
    }

    /// Events so far.
    pub fn rows(&self) -> usize {
        self.position.len()
    }

    /// Body bytes so far.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// True if there is no event.
    pub fn is_empty(&self) -> bool {
        self.position.is_empty()
    }

    /// True if an event of `body_bytes` would break a limit of the batch.
    pub fn is_full_for(&self, body_bytes: usize) -> bool {
        self.rows() >= limits::ROWS_MAX
            || (self.data.len() + body_bytes + (self.rows() + 1) * 28) > limits::BYTES_MAX
    }

    /// The batch, with the given headers on it; the builder is empty again afterwards.
    pub fn finish(&mut self, headers: Vec<HeaderColumn>) -> Result<Batch, BatchError> {
        if self.data.len() > limits::BYTES_MAX {
            let value = self.data.len();
            self.clear();
            return Err(BatchError::Limit { what: "bytes of a batch", value, limit: limits::BYTES_MAX });
        }
        if self.offsets.is_empty() {
            self.offsets.push(0);
        }
        let offsets = OffsetBuffer::new(ScalarBuffer::from(std::mem::take(&mut self.offsets)));
        let body = BinaryArray::try_new(offsets, Buffer::from_vec(std::mem::take(&mut self.data)), None)?;
        let time = Int64Array::from(std::mem::take(&mut self.time));
        let stream = UInt64Array::from(std::mem::take(&mut self.stream));
        let position = UInt64Array::from(std::mem::take(&mut self.position));
        Batch::new(time, body, headers, stream, position)
    }

    fn clear(&mut self) {
        *self = BatchBuilder::default();
    }
}
