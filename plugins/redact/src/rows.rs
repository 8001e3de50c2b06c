//! Spans of a column's data, and the row that a position lies in.

use flumen_sdk::prelude::*;

/// Bytes of a column's data, all of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: usize,
    pub end: usize,
}

/// Walks the rows of a column along with positions that only rise.
pub struct RowCursor<'a> {
    column: Column<'a>,
    row: usize,
    start: usize,
    end: usize,
}

impl<'a> RowCursor<'a> {
    pub fn new(column: Column<'a>) -> Self {
        Self { column, row: 0, start: 0, end: column.offsets().get(1).unwrap_or(0) as usize }
    }

    /// The text before and from `position` on, within its row.
    #[inline]
    pub fn around(&mut self, position: usize) -> (&'a [u8], &'a [u8]) {
        let offsets = self.column.offsets();
        while self.end <= position {
            self.row += 1;
            let Some(end) = offsets.get(self.row + 1) else { return (&[], &[]) };
            self.start = self.end;
            self.end = end as usize;
        }
        let data = self.column.data();
        (data.get(self.start..position).unwrap_or_default(), data.get(position..self.end).unwrap_or_default())
    }
}
