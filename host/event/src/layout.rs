//! The stable byte layout of a batch: what the journal stores and a hop sends.
//!
//! Constraints: little-endian; every column starts at a multiple of 8 bytes from the batch's start;
//! neither direction copies a body. `encode` hands back a list of parts that are written one after
//! the other; `decode` makes a batch whose columns point into the bytes that were read.
//!
//! ```text
//! offset  size  head
//!      0     1  version (1)
//!      1     1  encoding of time:     0 plain, 1 constant
//!      2     1  encoding of stream:   0 plain, 1 constant
//!      3     1  encoding of position: 0 plain
//!      4     4  rows
//!      8     4  headers
//!     12     4  zero
//!     16     8  bytes of all bodies
//!     24     8  bytes of the whole layout (a multiple of 8)
//!     32     8  per header: encoding (0 plain, 1 plain with validity, 2 constant), name length,
//!               2 zero bytes, u32 bytes of the values
//!      .     .  the headers' names one after the other; padding to 8
//!
//! columns, each padded with zeros to 8 bytes
//!   time      rows * i64, or one i64 when constant and there is a row
//!   offsets   (rows + 1) * i32 into the bodies, from 0
//!   bodies
//!   stream    rows * u64, or one u64 when constant and there is a row
//!   position  rows * u64
//!   headers   each: validity (1 bit per row, when its encoding says so), offsets (not when constant), values;
//!             the values of a constant header are the one value
//! ```
//!
//! How it fails: foreign bytes give a [`LayoutError`], never a panic and never a batch that breaks an
//! invariant of [`Batch`]. There is no checksum here; the journal's frame and the hop's have one.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::{Array, BinaryArray, Int64Array, StringArray, UInt64Array};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::ArrowError;
use smallvec::SmallVec;
use thiserror::Error;

use crate::batch::{Batch, BatchError, HeaderColumn};
use crate::limits;

#[cfg(target_endian = "big")]
compile_error!("the layout hands out columns as they lie on disk: little-endian only");

/// The version that `encode` writes and the newest that `decode` reads.
pub const VERSION: u8 = 1;

const HEAD_BYTES: usize = 32;
const HEADER_ENTRY_BYTES: usize = 8;
const ZEROS: [u8; 8] = [0; 8];
const PLAIN: u8 = 0;
const CONSTANT: u8 = 1;
const HEADER_VALIDITY: u8 = 1;
const HEADER_CONSTANT: u8 = 2;

/// Parts below this many bytes are copied together: an entry of an I/O vector, and memory that another thread frees, cost more
/// than the copy.
const COPY_BELOW_BYTES: usize = 4096;

/// Bytes to write, as parts that follow each other. Its length is a multiple of 8.
#[derive(Debug, Clone, Default)]
pub struct Encoded {
    /// Of all parts that were copied.
    small: Vec<u8>,
    parts: Parts,
    len: usize,
}

/// A small batch is one.
type Parts = SmallVec<[Part; 1]>;

#[derive(Debug, Clone)]
enum Part {
    Small(Range<usize>),
    Buffer(Buffer),
}

impl Encoded {
    /// The parts in order.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.parts.iter().map(|part| match part {
            Part::Small(range) => self.small.get(range.clone()).unwrap_or_default(),
            Part::Buffer(buffer) => buffer.as_slice(),
        })
    }

    /// Bytes of all parts.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All parts copied into one buffer.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len);
        self.parts().for_each(|part| all.extend_from_slice(part));
        all
    }
}

/// Collects parts: small pieces are copied together, large buffers are only referenced.
#[derive(Debug, Default)]
pub struct Encoder {
    small: Vec<u8>,
    parts: Parts,
    /// The end of the last part in `small`.
    flushed: usize,
    len: usize,
}

impl Encoder {
    /// With room for small pieces of so many bytes.
    pub fn with_capacity(bytes: usize) -> Encoder {
        Encoder { small: Vec::with_capacity(bytes), ..Encoder::default() }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if nothing was appended.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a copy of `bytes`.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.small.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Appends what `write` appends.
    pub fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.small.len();
        write(&mut self.small);
        self.len += self.small.len() - before;
    }

    /// Appends a buffer, by reference when it is large.
    pub fn buffer(&mut self, buffer: Buffer) {
        if buffer.len() < COPY_BELOW_BYTES {
            return self.bytes(&buffer);
        }
        self.flush();
        self.len += buffer.len();
        self.parts.push(Part::Buffer(buffer));
    }

    /// Appends some bytes of a buffer, which is counted as used only if they are many.
    fn range(&mut self, buffer: &Buffer, range: Range<usize>) {
        match range.len() < COPY_BELOW_BYTES {
            true => self.bytes(buffer.get(range).unwrap_or_default()),
            false => self.buffer(buffer.slice_with_length(range.start, range.len())),
        }
    }

    /// Appends what another one has collected.
    pub fn encoded(&mut self, encoded: Encoded) {
        for part in encoded.parts {
            match part {
                Part::Small(range) => self.bytes(encoded.small.get(range).unwrap_or_default()),
                Part::Buffer(buffer) => self.buffer(buffer),
            }
        }
    }

    /// Appends zeros up to a multiple of 8.
    pub fn pad(&mut self) {
        let zeros = self.len.next_multiple_of(8) - self.len;
        self.bytes(ZEROS.get(..zeros).unwrap_or_default());
    }

    /// What was collected.
    pub fn finish(mut self) -> Encoded {
        self.pad();
        self.flush();
        Encoded { small: self.small, parts: self.parts, len: self.len }
    }

    fn flush(&mut self) {
        if self.small.len() > self.flushed {
            self.parts.push(Part::Small(self.flushed..self.small.len()));
            self.flushed = self.small.len();
        }
    }
}

/// Why bytes are not a batch.
#[derive(Debug, Error)]
pub enum LayoutError {
    /// Written by a newer Flumen.
    #[error("batch layout version {0} is newer than {VERSION}")]
    Version(u8),
    /// The bytes end too early, or their lengths do not add up.
    #[error("batch layout: {0} does not fit its length")]
    Length(&'static str),
    /// A field has a value that it cannot have.
    #[error("batch layout: {0} is not valid")]
    Invalid(&'static str),
    /// The columns do not make a batch.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A column is not what it should be (UTF-8, offsets).
    #[error("batch layout: {0}")]
    Column(#[from] ArrowError),
}

/// The layout of a batch. Bodies are referenced, not copied.
pub fn encode(batch: &Batch) -> Encoded {
    let mut out = Encoder::default();
    encode_into(batch, &mut out);
    out.finish()
}

/// Appends the layout of a batch; what was appended before has a length that is a multiple of 8.
pub fn encode_into(batch: &Batch, out: &mut Encoder) {
    let start = out.len();
    let rows = batch.rows();
    let time = number_encoding(batch.time().values());
    let stream = number_encoding(batch.stream().values());
    let headers: Vec<HeaderParts> = batch.headers().iter().map(|h| HeaderParts::of(&h.values)).collect();
    let names: usize = batch.headers().iter().map(|h| h.name.len()).sum();
    let number = |encoding: u8| if encoding == CONSTANT { 8 } else { rows * 8 };
    let offsets = ((rows + 1) * 4).next_multiple_of(8);
    let body = range_of(batch.body().value_offsets());
    let body_bytes = body.len();
    let total = (HEAD_BYTES + headers.len() * HEADER_ENTRY_BYTES + names).next_multiple_of(8)
        + number(time)
        + number(stream)
        + rows * 8
        + offsets
        + body_bytes.next_multiple_of(8)
        + headers.iter().map(|header| header.bytes(rows)).sum::<usize>();

    out.bytes(&[VERSION, time, stream, PLAIN]);
    out.bytes(&(rows as u32).to_le_bytes());
    out.bytes(&(headers.len() as u32).to_le_bytes());
    out.bytes(&[0; 4]);
    out.bytes(&(body_bytes as u64).to_le_bytes());
    out.bytes(&(total as u64).to_le_bytes());
    for (parts, header) in headers.iter().zip(batch.headers()) {
        out.bytes(&[parts.encoding, header.name.len() as u8, 0, 0]);
        out.bytes(&(parts.values.len() as u32).to_le_bytes());
    }
    batch.headers().iter().for_each(|header| out.bytes(header.name.as_bytes()));
    out.pad();

    numbers(out, batch.time().values().inner(), time);
    match batch.body().offsets() {
        offsets if offsets.first() == 0 => out.range(offsets.inner().inner(), 0..(rows + 1) * 4),
        offsets => out.buffer(rebased(offsets)),
    }
    out.pad();
    out.range(batch.body().values(), body);
    out.pad();
    numbers(out, batch.stream().values().inner(), stream);
    numbers(out, batch.position().values().inner(), PLAIN);
    for header in headers {
        [header.validity, header.offsets, Some(header.values)].into_iter().flatten().for_each(|part| {
            out.buffer(part);
            out.pad();
        });
    }
    debug_assert_eq!(out.len() - start, total, "the length in the head is the length written");
}

fn number_encoding<T: PartialEq + Copy>(values: &[T]) -> u8 {
    match values.split_first() {
        Some((first, rest)) if rest.iter().all(|value| value == first) => CONSTANT,
        _ => PLAIN,
    }
}

fn numbers(out: &mut Encoder, values: &Buffer, encoding: u8) {
    match encoding {
        CONSTANT => out.range(values, 0..8),
        _ => out.range(values, 0..values.len()),
    }
}

fn range_of(offsets: &[i32]) -> Range<usize> {
    match (offsets.first(), offsets.last()) {
        (Some(first), Some(last)) => *first as usize..*last as usize,
        _ => 0..0,
    }
}

/// Offsets from 0, in one buffer of exactly rows + 1 numbers.
fn rebased(offsets: &OffsetBuffer<i32>) -> Buffer {
    match offsets.first() {
        0 => offsets.inner().inner().clone(),
        first => offsets.iter().map(|offset| offset - first).collect::<Vec<i32>>().into(),
    }
}

/// How one header column is written.
struct HeaderParts {
    encoding: u8,
    validity: Option<Buffer>,
    offsets: Option<Buffer>,
    values: Buffer,
}

impl HeaderParts {
    fn of(column: &StringArray) -> HeaderParts {
        let range = range_of(column.value_offsets());
        let values = column.values().slice_with_length(range.start, range.len());
        if let Some(nulls) = column.nulls().filter(|nulls| nulls.null_count() > 0) {
            let validity = nulls.inner().sliced().slice_with_length(0, column.len().div_ceil(8));
            let offsets = Some(rebased(column.offsets()));
            return HeaderParts { encoding: HEADER_VALIDITY, validity: Some(validity), offsets, values };
        }
        match constant_bytes(column.value_offsets(), &values) {
            Some(bytes) => HeaderParts {
                encoding: HEADER_CONSTANT,
                validity: None,
                offsets: None,
                values: values.slice_with_length(0, bytes),
            },
            None => HeaderParts {
                encoding: PLAIN,
                validity: None,
                offsets: Some(rebased(column.offsets())),
                values,
            },
        }
    }

    fn bytes(&self, rows: usize) -> usize {
        let validity = if self.validity.is_some() { rows.div_ceil(8).next_multiple_of(8) } else { 0 };
        let offsets = if self.offsets.is_some() { ((rows + 1) * 4).next_multiple_of(8) } else { 0 };
        validity + offsets + self.values.len().next_multiple_of(8)
    }
}

/// Length of the value that all rows (two or more) share. Costs one pass over the lengths, and one
/// comparison of the values with themselves, shifted by one value, when all lengths are equal.
fn constant_bytes(offsets: &[i32], values: &[u8]) -> Option<usize> {
    let rows = offsets.len().checked_sub(1).filter(|rows| *rows >= 2)?;
    let length = values.len() / rows;
    let even = offsets.windows(2).all(|pair| matches!(pair, [a, b] if (b - a) as usize == length));
    let shifted = values.get(length..)?;
    (even && shifted == values.get(..shifted.len())?).then_some(length)
}

/// The batch in `bytes`, which may be longer than the layout. Columns point into `bytes`; only if
/// its address is not a multiple of 8, all of it is copied once.
pub fn decode(bytes: Buffer) -> Result<Batch, LayoutError> {
    let bytes = if bytes.as_ptr().align_offset(8) == 0 { bytes } else { Buffer::from(bytes.as_slice()) };
    let mut input = Input { bytes, at: 0 };
    let head = Head::read(&mut input)?;
    let rows = head.rows;
    let entries = head.header_entries(&mut input)?;

    let time = input.number_column(head.time, rows, "time")?;
    let offsets = input.offsets(rows, head.body_bytes)?;
    let body = BinaryArray::try_new(offsets, input.take(head.body_bytes, "bodies")?, None)?;
    let stream = input.number_column(head.stream, rows, "stream")?;
    let position = input.number_column(PLAIN, rows, "position")?;
    let mut headers = Vec::with_capacity(entries.len());
    for entry in entries {
        let values = input.header_column(&entry, rows)?;
        headers.push(HeaderColumn { name: entry.name, values });
    }
    if input.at != head.total {
        return Err(LayoutError::Length("the whole"));
    }
    let time = Int64Array::new(ScalarBuffer::new(time, 0, rows), None);
    let stream = UInt64Array::new(ScalarBuffer::new(stream, 0, rows), None);
    let position = UInt64Array::new(ScalarBuffer::new(position, 0, rows), None);
    Ok(Batch::new(time, body, headers, stream, position)?)
}

/// Bytes of the layout that begins at `bytes`, as its head says; `None` when that is not a head.
pub fn encoded_len(bytes: &[u8]) -> Option<usize> {
    let field = bytes.get(24..32)?;
    usize::try_from(u64::from_le_bytes(field.try_into().ok()?)).ok()
}

struct Head {
    time: u8,
    stream: u8,
    rows: usize,
    headers: usize,
    body_bytes: usize,
    total: usize,
}

struct HeaderEntry {
    name: Arc<str>,
    encoding: u8,
    value_bytes: usize,
}

impl Head {
    fn read(input: &mut Input) -> Result<Head, LayoutError> {
        let [version, time, stream, position] = input.array::<4>("head")?;
        if version == 0 || version > VERSION {
            return Err(if version == 0 {
                LayoutError::Invalid("version")
            } else {
                LayoutError::Version(version)
            });
        }
        if time > CONSTANT || stream > CONSTANT || position != PLAIN {
            return Err(LayoutError::Invalid("encoding"));
        }
        let rows = input.u32("head")?;
        let headers = input.u32("head")?;
        if input.u32("head")? != 0 {
            return Err(LayoutError::Invalid("reserved field"));
        }
        let body_bytes = input.u64("head")?;
        let total = input.u64("head")?;
        if rows > limits::ROWS_MAX || headers > limits::HEADERS_MAX {
            return Err(LayoutError::Invalid("number of rows or headers"));
        }
        if body_bytes > limits::BYTES_MAX || !total.is_multiple_of(8) || total > input.bytes.len() {
            return Err(LayoutError::Length("the whole"));
        }
        if rows == 0 && (time == CONSTANT || stream == CONSTANT) {
            return Err(LayoutError::Invalid("constant of no rows"));
        }
        Ok(Head { time, stream, rows, headers, body_bytes, total })
    }

    fn header_entries(&self, input: &mut Input) -> Result<Vec<HeaderEntry>, LayoutError> {
        let mut fixed = Vec::with_capacity(self.headers);
        for _ in 0..self.headers {
            let [encoding, name_bytes, zero_a, zero_b] = input.array::<4>("headers")?;
            let value_bytes = input.u32("headers")?;
            if encoding > HEADER_CONSTANT || zero_a != 0 || zero_b != 0 {
                return Err(LayoutError::Invalid("header encoding"));
            }
            fixed.push((encoding, usize::from(name_bytes), value_bytes));
        }
        let mut entries = Vec::with_capacity(self.headers);
        let mut expanded: usize = 0;
        for (encoding, name_bytes, value_bytes) in fixed {
            let name = input.unpadded(name_bytes, "header names")?;
            let name = std::str::from_utf8(&name).map_err(|_| LayoutError::Invalid("header name"))?.into();
            // A constant is repeated in memory: a few foreign bytes must not become gigabytes.
            let repeats = if encoding == HEADER_CONSTANT { self.rows } else { 1 };
            expanded = expanded.saturating_add(value_bytes.saturating_mul(repeats));
            if expanded > limits::BYTES_MAX {
                return Err(LayoutError::Length("header values"));
            }
            entries.push(HeaderEntry { name, encoding, value_bytes });
        }
        input.skip_padding()?;
        Ok(entries)
    }
}

/// Reads forward; every length is checked before it is used.
struct Input {
    bytes: Buffer,
    at: usize,
}

impl Input {
    fn unpadded(&mut self, bytes: usize, what: &'static str) -> Result<Buffer, LayoutError> {
        let end = self.at.checked_add(bytes).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(LayoutError::Length(what))?;
        let part = self.bytes.slice_with_length(self.at, bytes);
        self.at = end;
        Ok(part)
    }

    fn skip_padding(&mut self) -> Result<(), LayoutError> {
        let padding = self.at.next_multiple_of(8) - self.at;
        match self.unpadded(padding, "padding")?.iter().all(|byte| *byte == 0) {
            true => Ok(()),
            false => Err(LayoutError::Invalid("padding")),
        }
    }

    /// A column of that many bytes, and its padding.
    fn take(&mut self, bytes: usize, what: &'static str) -> Result<Buffer, LayoutError> {
        let part = self.unpadded(bytes, what)?;
        self.skip_padding()?;
        Ok(part)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], LayoutError> {
        let part = self.unpadded(N, what)?;
        part.as_slice().try_into().map_err(|_| LayoutError::Length(what))
    }

    fn u32(&mut self, what: &'static str) -> Result<usize, LayoutError> {
        Ok(u32::from_le_bytes(self.array(what)?) as usize)
    }

    fn u64(&mut self, what: &'static str) -> Result<usize, LayoutError> {
        usize::try_from(u64::from_le_bytes(self.array(what)?)).map_err(|_| LayoutError::Length(what))
    }

    /// Eight bytes per row.
    fn number_column(
        &mut self,
        encoding: u8,
        rows: usize,
        what: &'static str,
    ) -> Result<Buffer, LayoutError> {
        if encoding == PLAIN {
            return self.take(rows * 8, what);
        }
        let value = u64::from_le_bytes(self.array(what)?);
        Ok(vec![value; rows].into())
    }

    /// Checked offsets that begin at 0 and end at `bytes`.
    fn offsets(&mut self, rows: usize, bytes: usize) -> Result<OffsetBuffer<i32>, LayoutError> {
        let column = self.take((rows + 1) * 4, "offsets")?;
        let offsets = ScalarBuffer::<i32>::new(column, 0, rows + 1);
        let rising = offsets.windows(2).all(|pair| matches!(pair, [a, b] if a <= b));
        let ends = offsets.first() == Some(&0) && offsets.last().copied() == i32::try_from(bytes).ok();
        if !(rising && ends) {
            return Err(LayoutError::Invalid("offsets"));
        }
        Ok(OffsetBuffer::new(offsets))
    }

    fn header_column(&mut self, entry: &HeaderEntry, rows: usize) -> Result<StringArray, LayoutError> {
        if entry.encoding == HEADER_CONSTANT {
            let value = self.take(entry.value_bytes, "header values")?;
            let value = std::str::from_utf8(&value).map_err(|_| LayoutError::Invalid("header value"))?;
            let offsets = OffsetBuffer::from_repeated_length(value.len(), rows);
            return Ok(StringArray::try_new(offsets, value.repeat(rows).into_bytes().into(), None)?);
        }
        let validity = match entry.encoding {
            HEADER_VALIDITY => Some(self.take(rows.div_ceil(8), "validity")?),
            _ => None,
        };
        let nulls = validity.map(|bits| NullBuffer::new(BooleanBuffer::new(bits, 0, rows)));
        let offsets = self.offsets(rows, entry.value_bytes)?;
        let values = self.take(entry.value_bytes, "header values")?;
        Ok(StringArray::try_new(offsets, values, nulls)?)
    }
}
