//! Headers whose names come from the data: columns that appear when their first value does.

use std::collections::HashMap;

use crate::difference::{Difference, HeaderBuilder};

/// Writes header columns row by row; a name that is new gets a column, in which the rows before are absent.
///
/// Rows of a log repeat their fields in the same order: the next column is guessed, and looked up by name only if the
/// guess is wrong.
#[derive(Default)]
pub struct HeaderTable {
    columns: Vec<HeaderBuilder>,
    numbers: HashMap<String, usize>,
    /// Where the row's value of each column lies in `values`.
    row: Vec<Option<(usize, usize)>>,
    values: Vec<u8>,
    guess: usize,
    rows: usize,
    /// Columns that rows before the present one have.
    settled: usize,
}

impl HeaderTable {
    /// No columns.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the present row a header. A name that comes twice in a row keeps its last value.
    pub fn set(&mut self, name: &str, value: &str) {
        self.put(name, |values| values.extend_from_slice(value.as_bytes()));
    }

    /// The same; the value is written by `write`, which has to write UTF-8.
    pub fn put(&mut self, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
        let column = self.column(name);
        let start = self.values.len();
        write(&mut self.values);
        if let Some(slot) = self.row.get_mut(column) {
            *slot = Some((start, self.values.len()));
        }
    }

    fn column(&mut self, name: &str) -> usize {
        let guess = self.guess;
        let column = match self.columns.get(guess) {
            Some(column) if column.name() == name => guess,
            _ => self.column_by_name(name),
        };
        self.guess = column + 1;
        column
    }

    #[cold]
    fn column_by_name(&mut self, name: &str) -> usize {
        if let Some(column) = self.numbers.get(name) {
            return *column;
        }
        let column = self.columns.len();
        let mut builder = HeaderBuilder::with_capacity(name, self.rows, 0);
        (0..self.rows).for_each(|_| builder.push_absent());
        self.columns.push(builder);
        self.row.push(None);
        self.numbers.insert(name.to_owned(), column);
        column
    }

    /// The row is whole.
    pub fn end_row(&mut self) {
        for (column, slot) in self.columns.iter_mut().zip(&mut self.row) {
            match slot.take() {
                Some((start, end)) => column.push_range(&self.values, start, end),
                None => column.push_absent(),
            }
        }
        self.rows += 1;
        self.settled = self.columns.len();
        self.begin_row();
    }

    /// Takes back what was set since the last row, new columns too: the row is rejected.
    pub fn drop_row(&mut self) {
        for column in self.columns.drain(self.settled..) {
            self.numbers.remove(column.name());
        }
        self.row.truncate(self.settled);
        self.row.iter_mut().for_each(|slot| *slot = None);
        self.begin_row();
    }

    fn begin_row(&mut self) {
        self.values.clear();
        self.guess = 0;
    }

    /// Different names so far.
    pub fn columns(&self) -> usize {
        self.columns.len()
    }

    /// Whether a name has a column.
    pub fn has(&self, name: &str) -> bool {
        self.numbers.contains_key(name)
    }

    /// Moves the columns into an answer that has one row per [`end_row`](Self::end_row).
    pub fn finish(self, difference: &mut Difference) {
        for column in self.columns {
            difference.set_header(column);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Answer;

    #[test]
    fn rows_and_columns_stay_together_whatever_the_order() {
        let mut table = HeaderTable::new();
        table.set("a", "1");
        table.set("b", "2");
        table.end_row();
        table.end_row();
        table.set("c", "x");
        table.set("lost", "x");
        table.drop_row();
        table.set("b", "3");
        table.set("c", "4");
        table.set("b", "5");
        table.end_row();
        let mut difference = Difference::unchanged();
        table.finish(&mut difference);
        let answer = Answer::new(difference, 3);
        let mut names = answer.headers();
        names.sort();
        assert_eq!(names, ["a", "b", "c"]);
        let column = |name| (0..3).map(|row| answer.header(name, row)).collect::<Vec<_>>();
        assert_eq!(column("a"), [Some("1"), None, None]);
        assert_eq!(column("b"), [Some("2"), None, Some("5")]);
        assert_eq!(column("c"), [None, None, Some("4")]);
    }
}
