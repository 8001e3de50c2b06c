//! The answer to a batch: the rows that are kept and the columns that changed.
//!
//! The output has one row per kept row; every column given has that many rows. Nothing here is checked in the guest:
//! the host checks every answer, and one that does not fit counts as a failure of the plugin.

use crate::abi::{self, NumberList, wire};

/// What a plugin made of a batch. Starts as "nothing changed".
pub struct Difference {
    wire: wire::Difference,
}

impl Default for Difference {
    fn default() -> Self {
        Self::unchanged()
    }
}

impl Difference {
    /// All rows, in order, as they were.
    pub fn unchanged() -> Self {
        Self {
            wire: wire::Difference {
                rows_from: None,
                body: None,
                time: None,
                set_headers: Vec::new(),
                remove_headers: Vec::new(),
                rejected: Vec::new(),
            },
        }
    }

    /// Which input row each output row came from. Without this call: all rows that are not rejected, in order.
    pub fn keep_rows(&mut self, rows: KeptRows) -> &mut Self {
        self.wire.rows_from = Some(rows.rows.into_wire());
        self
    }

    /// New bodies for all output rows.
    pub fn set_body(&mut self, column: ColumnBuilder) -> &mut Self {
        self.wire.body = Some(column.into_column());
        self
    }

    /// New event times for all output rows: nanoseconds since the Unix epoch, UTC.
    pub fn set_time(&mut self, times: NumberList<i64>) -> &mut Self {
        self.wire.time = Some(times.into_wire());
        self
    }

    /// A header for all output rows; a row that is absent in the column has no such header afterwards.
    pub fn set_header(&mut self, column: HeaderBuilder) -> &mut Self {
        self.wire.set_headers.push(column.into_column());
        self
    }

    /// Removes a header from every row.
    pub fn remove_header(&mut self, name: impl Into<String>) -> &mut Self {
        self.wire.remove_headers.push(name.into());
        self
    }

    /// A row of the input that this plugin cannot work with. The reason is for a person: what is wrong and where. At
    /// most 512 bytes are kept.
    pub fn reject(&mut self, row: usize, reason: impl Into<String>) -> &mut Self {
        self.wire.rejected.push(wire::Rejection { row: row as u32, reason: reason.into() });
        self
    }

    /// Number of rows rejected so far.
    pub fn rejected(&self) -> usize {
        self.wire.rejected.len()
    }

    pub(crate) fn into_wire(self) -> wire::Difference {
        self.wire
    }
}

/// The rows that an answer keeps: input row numbers in the order of the output.
pub struct KeptRows {
    rows: NumberList<u32>,
}

impl KeptRows {
    /// Room for `capacity` rows.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { rows: NumberList::with_capacity(capacity) }
    }

    /// Keeps a row of the input. Keeping it twice makes two events of it.
    #[inline]
    pub fn push(&mut self, row: usize) {
        self.rows.push(row as u32);
    }

    /// How many rows are kept.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether no row is kept.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl FromIterator<usize> for KeptRows {
    fn from_iter<I: IntoIterator<Item = usize>>(rows: I) -> Self {
        Self { rows: rows.into_iter().map(|row| row as u32).collect() }
    }
}

/// Writes a column of byte strings, row by row.
pub struct ColumnBuilder {
    offsets: NumberList<u32>,
    data: Vec<u8>,
}

/// Up to this length a value is copied in blocks: `memory.copy` is a call into the host's engine, which costs more than
/// the copy of a short value.
const BLOCKS_MAX_BYTES: usize = 64;
const BLOCK: usize = 16;

impl ColumnBuilder {
    pub(crate) fn into_column(self) -> wire::BytesColumn {
        abi::bytes_column(self.offsets, self.data)
    }

    /// Room for `rows` rows with `bytes` bytes together.
    pub fn with_capacity(rows: usize, bytes: usize) -> Self {
        let mut offsets = NumberList::with_capacity(rows + 1);
        offsets.push(0);
        Self { offsets, data: Vec::with_capacity(bytes) }
    }

    /// A column of these parts, unchecked.
    pub fn from_parts(offsets: NumberList<u32>, data: Vec<u8>) -> Self {
        Self { offsets, data }
    }

    /// Appends a row.
    #[inline]
    pub fn push(&mut self, value: &[u8]) {
        self.data.extend_from_slice(value);
        self.end_row();
    }

    /// Appends `text[start..end]` as a row: the fastest way to cut fields out of a line, because a short field is
    /// copied together with what follows it in `text` and then cut off. A range outside `text` becomes an empty row.
    #[inline]
    pub fn push_range(&mut self, text: &[u8], start: usize, end: usize) {
        let value_len = end.saturating_sub(start);
        let column_len = self.data.len() + value_len;
        let blocks_len = value_len.next_multiple_of(BLOCK);
        match text.get(start..start + blocks_len) {
            Some(blocks) if value_len <= BLOCKS_MAX_BYTES => {
                for block in blocks.as_chunks::<BLOCK>().0 {
                    self.data.extend_from_slice(block);
                }
                self.data.truncate(column_len);
            }
            _ => self.data.extend_from_slice(text.get(start..end).unwrap_or_default()),
        }
        self.end_row();
    }

    /// Adds to the row that [`end_row`](Self::end_row) will end.
    #[inline]
    pub fn add(&mut self, part: &[u8]) {
        self.data.extend_from_slice(part);
    }

    /// Ends a row that was put together by [`add`](Self::add).
    #[inline]
    pub fn end_row(&mut self) {
        self.offsets.push(self.data.len() as u32);
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Bytes so far.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    pub(crate) fn into_wire(self) -> wire::BytesColumn {
        abi::bytes_column(self.offsets, self.data)
    }
}

/// Writes the column of one header, row by row.
pub struct HeaderBuilder {
    name: String,
    column: ColumnBuilder,
    rows: usize,
    /// Made when the first absent row comes: a column without absent rows has no bits.
    present: Option<Vec<u8>>,
}

impl HeaderBuilder {
    pub(crate) fn into_column(self) -> wire::HeaderColumn {
        let HeaderBuilder { name, column, present, .. } = self;
        abi::header_column(name, column.offsets, column.data, present)
    }

    /// Room for `rows` rows with `bytes` bytes together.
    pub fn with_capacity(name: impl Into<String>, rows: usize, bytes: usize) -> Self {
        Self { name: name.into(), column: ColumnBuilder::with_capacity(rows, bytes), rows: 0, present: None }
    }

    /// A column of these parts, unchecked.
    pub fn from_parts(name: impl Into<String>, column: ColumnBuilder, present: Option<Vec<u8>>) -> Self {
        Self { name: name.into(), rows: column.rows(), column, present }
    }

    /// Appends a row that has this value.
    #[inline]
    pub fn push(&mut self, value: &str) {
        self.push_utf8(value.as_bytes());
    }

    /// Appends a row that has this value, which the caller knows to be UTF-8. If it is not, the answer is a lying one.
    #[inline]
    pub fn push_utf8(&mut self, value: &[u8]) {
        self.column.push(value);
        self.mark(true);
    }

    /// [`ColumnBuilder::push_range`] for a text that the caller knows to be UTF-8.
    #[inline]
    pub fn push_range(&mut self, text: &[u8], start: usize, end: usize) {
        self.column.push_range(text, start, end);
        self.mark(true);
    }

    /// Appends a row that does not have this header.
    #[inline]
    pub fn push_absent(&mut self) {
        self.column.end_row();
        self.mark(false);
    }

    /// Appends a row that has this value, or none.
    #[inline]
    pub fn push_option(&mut self, value: Option<&str>) {
        match value {
            Some(value) => self.push(value),
            None => self.push_absent(),
        }
    }

    #[inline]
    fn mark(&mut self, is_present: bool) {
        let row = self.rows;
        self.rows += 1;
        if self.present.is_none() && is_present {
            return;
        }
        let present = self.present.get_or_insert_with(|| all_present(row));
        if row.is_multiple_of(8) {
            present.push(u8::from(is_present));
        } else if let Some(last) = present.last_mut() {
            *last |= u8::from(is_present) << (row % 8);
        }
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes so far.
    pub fn bytes(&self) -> usize {
        self.column.bytes()
    }

    /// The header's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn into_wire(self) -> wire::HeaderColumn {
        let HeaderBuilder { name, column, present, .. } = self;
        abi::header_column(name, column.offsets, column.data, present)
    }

    /// Whether no row has this header so far.
    pub fn is_absent(&self) -> bool {
        self.present.as_ref().map_or(self.rows == 0, |present| present.iter().all(|byte| *byte == 0))
    }
}

/// Bits for `rows` rows that all are present.
fn all_present(rows: usize) -> Vec<u8> {
    let mut bits = Vec::with_capacity(1024.max(rows / 8 + 1));
    bits.resize(rows / 8, u8::MAX);
    if !rows.is_multiple_of(8) {
        bits.push((1_u8 << (rows % 8)) - 1);
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn presence_is_one_bit_per_row() {
        for absent in [vec![], vec![0], vec![8], vec![7, 8, 9], vec![3, 16], (0..20).collect::<Vec<_>>()] {
            let mut header = HeaderBuilder::with_capacity("h", 20, 0);
            for row in 0..20 {
                if absent.contains(&row) { header.push_absent() } else { header.push(&row.to_string()) }
            }
            assert_eq!(header.is_absent(), absent.len() == 20);
            let mut difference = Difference::unchanged();
            difference.set_header(header);
            let output = testing::Answer::new(difference, 20);
            for row in 0..20 {
                let expected = (!absent.contains(&row)).then(|| row.to_string());
                assert_eq!(output.header("h", row), expected.as_deref(), "{row} of {absent:?}");
            }
        }
    }

    #[test]
    fn a_range_is_cut_off_exactly() {
        let text: Vec<u8> = (0..200_u8).collect();
        let mut column = ColumnBuilder::with_capacity(0, 0);
        let mut expected: Vec<&[u8]> = Vec::new();
        for start in 0..text.len() {
            for end in
                [start, start + 1, start + 15, start + 16, start + 17, start + 64, start + 65, text.len()]
            {
                if let Some(value) = text.get(start..end) {
                    column.push_range(&text, start, end);
                    expected.push(value);
                }
            }
        }
        let mut difference = Difference::unchanged();
        difference.set_body(column);
        let output = testing::Answer::new(difference, expected.len());
        for (row, value) in expected.iter().enumerate() {
            assert_eq!(output.body(row), Some(*value));
        }
    }
}
