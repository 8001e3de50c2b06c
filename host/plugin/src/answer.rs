//! From the bytes that a guest answered with to a [`Difference`], or the exact reason why not.
//!
//! Pure: no sandbox, no clock, no allocation that the answer's own size does not bound. Each list is used as the buffer
//! of an arrow array, without a copy. What [`decode`] lets through, [`Difference::apply`] checks against the input:
//! row numbers in range, no row both rejected and kept, columns as long as the output.

use arrow_array::{BinaryArray, Int64Array, StringArray, UInt32Array, UInt64Array};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use flumen_event::{Batch, Difference, HeaderColumn, Rejection};
use thiserror::Error;

use crate::failure::{cut, printable};

/// `bytes-column` of the interface as it came.
#[derive(Debug, Clone, Default)]
pub struct RawColumn {
    /// rows + 1 little-endian `u32`.
    pub offsets: Vec<u8>,
    /// The bytes.
    pub data: Vec<u8>,
}

/// `header-column` of the interface as it came.
#[derive(Debug, Clone, Default)]
pub struct RawHeader {
    /// The header's name.
    pub name: String,
    /// rows + 1 little-endian `u32`.
    pub offsets: Vec<u8>,
    /// The bytes, not yet known to be UTF-8.
    pub data: Vec<u8>,
    /// A bit per row.
    pub present: Option<Vec<u8>>,
}

/// `difference` of the interface as it came.
#[derive(Debug, Clone, Default)]
pub struct RawAnswer {
    /// Little-endian `u32` row numbers.
    pub rows_from: Option<Vec<u8>>,
    /// New bodies.
    pub body: Option<RawColumn>,
    /// Little-endian `i64` times.
    pub time: Option<Vec<u8>>,
    /// Headers to set.
    pub set_headers: Vec<RawHeader>,
    /// Headers to remove.
    pub remove_headers: Vec<String>,
    /// Row numbers with reasons.
    pub rejected: Vec<(u32, String)>,
}

/// `events` of the interface as it came.
#[derive(Debug, Clone, Default)]
pub struct RawEvents {
    /// How many.
    pub rows: u32,
    /// Their bodies.
    pub body: RawColumn,
    /// Little-endian `i64` times.
    pub time: Option<Vec<u8>>,
    /// Their headers.
    pub headers: Vec<RawHeader>,
}

/// Which rule of the interface the answer breaks, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{column}: {rule}")]
pub struct AnswerError {
    /// The column or list.
    pub column: String,
    /// What is wrong with it.
    pub rule: String,
}

pub(crate) fn lie<T>(column: &str, rule: impl Into<String>) -> Result<T, AnswerError> {
    Err(AnswerError { column: column.to_owned(), rule: rule.into() })
}

/// Checks everything that can be checked without the input's columns; `rows` is the number of input rows.
pub fn decode(raw: RawAnswer, rows: usize) -> Result<Difference, AnswerError> {
    let RawAnswer { rows_from, body, time, set_headers, remove_headers, rejected } = raw;
    if rejected.len() > rows {
        return lie("rejected", format!("{} rejections of {rows} rows", rejected.len()));
    }
    let rows_from = rows_from.map(row_numbers).transpose()?;
    let output = match &rows_from {
        Some(from) => from.len(),
        None => rows - rejected.len(),
    };
    if output > flumen_event::limits::ROWS_MAX {
        return lie(
            "rows-from",
            format!("{output} rows, a batch has at most {}", flumen_event::limits::ROWS_MAX),
        );
    }
    let body = body.map(|column| binary("body", column, output)).transpose()?;
    let time = time.map(|list| times(list, output)).transpose()?;
    if set_headers.len() > flumen_event::limits::HEADERS_MAX {
        let limit = flumen_event::limits::HEADERS_MAX;
        return lie("set-headers", format!("{} headers, a batch has at most {limit}", set_headers.len()));
    }
    check_names(&set_headers)?;
    let set_headers =
        set_headers.into_iter().map(|raw| header(raw, output)).collect::<Result<Vec<_>, _>>()?;
    let remove_headers = remove_headers.into_iter().map(Into::into).collect();
    let rejected = rejected.into_iter().map(|(row, reason)| rejection(row, &reason)).collect();
    Ok(Difference { rows_from, body, time, set_headers, remove_headers, rejected })
}

/// New events; without times they have `now_ns`. Their identities are not theirs yet.
pub fn events(raw: RawEvents, now_ns: i64) -> Result<Batch, AnswerError> {
    let RawEvents { rows, body, time, headers } = raw;
    let rows = rows as usize;
    if rows > flumen_event::limits::ROWS_MAX {
        let max = flumen_event::limits::ROWS_MAX;
        return lie("emitted", format!("{rows} events, a batch has at most {max}"));
    }
    let body = binary("body", body, rows)?;
    let time = time.map(|list| times(list, rows)).transpose()?;
    let time = time.unwrap_or_else(|| Int64Array::from_value(now_ns, rows));
    check_names(&headers)?;
    let headers = headers.into_iter().map(|raw| header(raw, rows)).collect::<Result<Vec<_>, _>>()?;
    let none = || UInt64Array::from_value(0, rows);
    Batch::new(time, body, headers, none(), none()).or_else(|error| lie("emitted", error.to_string()))
}

/// Applies the answer. What does not fit the input is a lie as well.
pub(crate) fn apply(difference: Difference, input: &Batch) -> Result<flumen_event::Applied, AnswerError> {
    difference
        .apply(input)
        .map_err(|error| AnswerError { column: "the difference".to_owned(), rule: error.to_string() })
}

/// The reason goes into the quarantine, and from there into what people read.
pub(crate) fn rejection(row: u32, reason: &str) -> Rejection {
    Rejection { row, reason: printable(reason, flumen_event::limits::REASON_BYTES_MAX) }
}

pub(crate) fn check_names(headers: &[RawHeader]) -> Result<(), AnswerError> {
    let max = flumen_event::limits::HEADER_NAME_BYTES_MAX;
    let mut names = std::collections::HashSet::with_capacity(headers.len());
    for RawHeader { name, .. } in headers {
        let shown = cut(name, max);
        if name.is_empty() || name.len() > max {
            return lie("set-headers", format!("the name {shown:?} is empty or over {max} bytes"));
        }
        if !names.insert(name) {
            return lie("set-headers", format!("the name {shown:?} is given twice"));
        }
    }
    Ok(())
}

fn row_numbers(list: Vec<u8>) -> Result<UInt32Array, AnswerError> {
    if !list.len().is_multiple_of(4) {
        return lie("rows-from", format!("{} bytes are not a list of 4-byte numbers", list.len()));
    }
    let rows = list.len() / 4;
    Ok(UInt32Array::new(ScalarBuffer::new(aligned::<u32>(list), 0, rows), None))
}

pub(crate) fn times(list: Vec<u8>, rows: usize) -> Result<Int64Array, AnswerError> {
    if list.len() != rows * 8 {
        return lie("time", format!("{} bytes for {rows} rows of 8", list.len()));
    }
    Ok(Int64Array::new(ScalarBuffer::new(aligned::<i64>(list), 0, rows), None))
}

pub(crate) fn binary(column: &str, raw: RawColumn, rows: usize) -> Result<BinaryArray, AnswerError> {
    let offsets = offsets(column, raw.offsets, raw.data.len(), rows)?;
    BinaryArray::try_new(offsets, Buffer::from_vec(raw.data), None)
        .or_else(|error| lie(column, error.to_string()))
}

pub(crate) fn header(raw: RawHeader, rows: usize) -> Result<HeaderColumn, AnswerError> {
    let RawHeader { name, offsets: list, data, present } = raw;
    let column = format!("header {name:?}");
    let offsets = offsets(&column, list, data.len(), rows)?;
    let nulls = present.map(|bits| presence(&column, bits, &offsets, rows)).transpose()?.flatten();
    let data = Buffer::from_vec(data);
    // Checks that the data is UTF-8 and that every offset is at a character.
    match StringArray::try_new(offsets.clone(), data.clone(), nulls) {
        Ok(values) => Ok(HeaderColumn { name: name.into(), values }),
        Err(error) => match offsets.windows(2).position(|pair| !is_utf8(&data, pair)) {
            Some(row) => lie(&column, format!("row {row} is not UTF-8")),
            None => lie(&column, error.to_string()),
        },
    }
}

fn is_utf8(data: &[u8], range: &[i32]) -> bool {
    let [start, end] = range else { return false };
    data.get(*start as usize..*end as usize).is_some_and(|value| std::str::from_utf8(value).is_ok())
}

/// `None` if every row is present.
fn presence(
    column: &str,
    bits: Vec<u8>,
    offsets: &[i32],
    rows: usize,
) -> Result<Option<NullBuffer>, AnswerError> {
    if bits.len() != rows.div_ceil(8) {
        return lie(column, format!("{} bytes of presence for {rows} rows", bits.len()));
    }
    let nulls = NullBuffer::new(BooleanBuffer::new(Buffer::from_vec(bits), 0, rows));
    if nulls.null_count() == 0 {
        return Ok(None);
    }
    let full = offsets
        .windows(2)
        .zip(nulls.iter())
        .position(|(pair, present)| !present && matches!(pair, [start, end] if start != end));
    match full {
        Some(row) => lie(column, format!("row {row} is not present but has a value")),
        None => Ok(Some(nulls)),
    }
}

/// `rows + 1` numbers from 0, never falling, to `data_bytes`.
fn offsets(
    column: &str,
    list: Vec<u8>,
    data_bytes: usize,
    rows: usize,
) -> Result<OffsetBuffer<i32>, AnswerError> {
    if list.len() != (rows + 1) * 4 {
        let wanted = (rows + 1) * 4;
        return lie(column, format!("{} bytes of offsets, {rows} rows need {wanted}", list.len()));
    }
    let offsets = ScalarBuffer::<i32>::new(aligned::<i32>(list), 0, rows + 1);
    let (first, last) = (offsets.first().copied().unwrap_or(-1), offsets.last().copied().unwrap_or(-1));
    if first != 0 {
        return lie(column, format!("the first offset is {}, not 0", first as u32));
    }
    if i32::try_from(data_bytes).ok() != Some(last) {
        return lie(column, format!("the last offset is {}, the data has {data_bytes} bytes", last as u32));
    }
    // Numbers of 2^31 and more are negative here, and fall: the data ends below.
    if let Some(row) = offsets.windows(2).position(|pair| !matches!(pair, [start, end] if start <= end)) {
        return lie(column, format!("offset {} is less than the one before it, or beyond the data", row + 1));
    }
    Ok(OffsetBuffer::new(offsets))
}

/// The list as a buffer of `T`s. Allocations of this size are aligned already; if one is not, it is copied.
fn aligned<T>(list: Vec<u8>) -> Buffer {
    match list.as_ptr().align_offset(align_of::<T>()) {
        0 => Buffer::from_vec(list),
        _ => Buffer::from(list.as_slice()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_rejection_has_nothing_that_a_terminal_obeys() {
        let Rejection { row, reason } = rejection(3, "\x1b[2Jbad\r\n");
        assert_eq!((row, reason.as_str()), (3, "\\u{1b}[2Jbad\\r\\n"));
        let long = rejection(0, &"\x1b".repeat(1_000)).reason;
        assert!(long.len() <= flumen_event::limits::REASON_BYTES_MAX, "{} bytes", long.len());
    }
}
