//! A batch under construction whose rows have different headers.
//!
//! Headers are set first, then [`Rows::push`] ends the row. A name's column is made when the name first appears;
//! rows without it are null. Nothing is allocated per row once the names are there.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use flumen_event::{Batch, BatchBuilder, BatchError, HeaderColumn};

/// Below this a batch is no measure for the next one.
const ROWS_LIKE_BEFORE: usize = 64;

struct Column {
    name: Arc<str>,
    values: StringBuilder,
}

/// See the module.
#[derive(Default)]
pub struct Rows {
    builder: BatchBuilder,
    columns: Vec<Column>,
    by_name: HashMap<Arc<str>, usize>,
    /// The column after the one that was set last: records mostly have the same headers in the same order.
    hint: usize,
    header_bytes: usize,
}

impl Rows {
    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.builder.rows()
    }

    /// Body bytes so far.
    pub fn bytes(&self) -> usize {
        self.builder.bytes()
    }

    /// Header names so far.
    pub fn names(&self) -> usize {
        self.columns.len()
    }

    /// Bytes of the header columns so far, with offsets and validity.
    pub fn column_bytes(&self) -> usize {
        self.header_bytes + self.columns.len() * (self.rows() + 1) * 5
    }

    fn column(&mut self, name: &str) -> usize {
        if let Some(column) = self.columns.get(self.hint)
            && *column.name == *name
        {
            return self.hint;
        }
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        let name: Arc<str> = name.into();
        self.by_name.insert(name.clone(), self.columns.len());
        self.columns.push(Column { name, values: StringBuilder::new() });
        self.columns.len() - 1
    }

    /// Sets a header of the row that comes next. False: it has it already, and keeps it.
    pub fn header(&mut self, name: &str, value: &str) -> bool {
        let row = self.builder.rows();
        let index = self.column(name);
        let Some(column) = self.columns.get_mut(index) else { return false };
        let filled = arrow_array::builder::ArrayBuilder::len(&column.values);
        if filled > row {
            return false;
        }
        column.values.append_nulls(row - filled);
        column.values.append_value(value);
        self.header_bytes += value.len();
        self.hint = index + 1;
        true
    }

    /// Sets a header that may be there several times: the second is `NAME.2`, and so on.
    pub fn repeated_header(&mut self, name: &str, value: &str) {
        if self.header(name, value) {
            return;
        }
        let mut number = 2;
        while !self.header(&format!("{name}.{number}"), value) {
            number += 1;
        }
    }

    /// Ends the row.
    #[inline]
    pub fn push(&mut self, stream: u64, position: u64, time: i64, body: &[u8]) {
        self.builder.push(stream, position, time, body);
        self.hint = 0;
    }

    /// The batch; empty again afterwards.
    pub fn finish(&mut self) -> Result<Batch, BatchError> {
        let rows = self.builder.rows();
        let mut headers = Vec::with_capacity(self.columns.len());
        self.columns.retain_mut(|column| {
            let filled = arrow_array::builder::ArrayBuilder::len(&column.values);
            if filled == 0 {
                return false;
            }
            column.values.append_nulls(rows - filled.min(rows));
            let values = column.values.finish();
            if rows >= ROWS_LIKE_BEFORE {
                column.values = StringBuilder::with_capacity(rows + rows / 8, values.values().len());
            }
            headers.push(HeaderColumn { name: column.name.clone(), values });
            true
        });
        self.by_name = self.columns.iter().enumerate().map(|(at, c)| (c.name.clone(), at)).collect();
        (self.hint, self.header_bytes) = (0, 0);
        let batch = self.builder.finish(headers)?;
        if rows >= ROWS_LIKE_BEFORE {
            let bytes = batch.body_bytes();
            self.builder = BatchBuilder::with_capacity(rows + rows / 8, bytes + bytes / 8);
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::Array;

    fn column(batch: &Batch, name: &str) -> Vec<Option<String>> {
        batch.header(name).unwrap().iter().map(|value| value.map(str::to_owned)).collect()
    }

    #[test]
    fn rows_without_a_header_are_null() {
        let mut rows = Rows::default();
        rows.header("a", "1");
        rows.push(1, 0, 0, b"x");
        rows.header("b", "2");
        rows.header("a", "3");
        rows.push(1, 1, 0, b"y");
        rows.push(1, 2, 0, b"z");
        let batch = rows.finish().unwrap();
        assert_eq!(column(&batch, "a"), [Some("1".into()), Some("3".into()), None]);
        assert_eq!(column(&batch, "b"), [None, Some("2".into()), None]);
        rows.header("b", "4");
        rows.push(1, 3, 0, b"");
        let batch = rows.finish().unwrap();
        assert_eq!(column(&batch, "b"), [Some("4".into())]);
        assert!(batch.header("a").is_none());
        assert_eq!(batch.header("b").unwrap().len(), 1);
        assert_eq!(rows.finish().unwrap().rows(), 0);
        assert_eq!(rows.names(), 0);
    }

    #[test]
    fn a_repeated_header_keeps_all_values() {
        let mut rows = Rows::default();
        for value in ["1", "2", "3"] {
            rows.repeated_header("a", value);
        }
        assert!(!rows.header("a", "own"));
        rows.push(1, 0, 0, b"x");
        let batch = rows.finish().unwrap();
        assert_eq!(column(&batch, "a"), [Some("1".into())]);
        assert_eq!(column(&batch, "a.3"), [Some("3".into())]);
    }
}
