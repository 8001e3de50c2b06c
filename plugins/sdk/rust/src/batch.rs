//! The batch as the host passed it: columns that are read in place.

use crate::abi::{self, Numbers, Reads, wire};
use crate::config::Config;
use crate::difference::Difference;

/// A plugin that works on columns. Register it with [`batch_interceptor!`](crate::batch_interceptor).
pub trait BatchInterceptor: Sized {
    /// JSON Schema of the configuration: `flumen check` holds the pipeline's file against it before anything runs.
    /// Empty: any configuration, until `open` says otherwise.
    const OPTIONS: &'static str = "";

    /// Reads the configuration and says which columns to pass. The error is shown to the user as it is: name the wrong
    /// key and the fix ([`Config::parse`] does).
    fn open(config: Config) -> Result<(Self, Reads), String>;

    /// One batch in, the difference out. The answer may depend on the batch and the configuration only: after a crash
    /// the same batch may come again. Rows that this plugin cannot work with go to [`Difference::reject`]; an `Err`
    /// blames the whole batch.
    fn process(&mut self, batch: &BatchView) -> Result<Difference, String>;
}

/// A batch: a table of 1 to 65,536 events, at most 64 MiB.
pub struct BatchView {
    wire: wire::Batch,
}

impl BatchView {
    pub(crate) fn new(wire: wire::Batch) -> Self {
        Self { wire }
    }

    /// Number of events.
    #[inline]
    pub fn rows(&self) -> usize {
        self.wire.rows as usize
    }

    /// The bodies. `None` if [`Reads`] did not name them.
    #[inline]
    pub fn body(&self) -> Option<Column<'_>> {
        self.wire.body.as_ref().map(|column| Column { offsets: abi::offsets_of(column), data: &column.data })
    }

    /// The event times in nanoseconds since the Unix epoch, UTC. `None` if [`Reads`] did not name them.
    #[inline]
    pub fn time(&self) -> Option<Numbers<'_, i64>> {
        self.wire.time.as_deref().map(abi::times_of)
    }

    /// The streams and the positions in them. `None` if [`Reads`] did not name the identity.
    #[inline]
    pub fn identity(&self) -> Option<(Numbers<'_, u64>, Numbers<'_, u64>)> {
        self.wire.identity.as_ref().map(abi::identities_of)
    }

    /// The header column with this number, in the order of [`Reads`].
    #[inline]
    pub fn header(&self, index: usize) -> Option<HeaderColumn<'_>> {
        self.wire.headers.get(index).map(HeaderColumn::of)
    }

    /// All header columns, in the order of [`Reads`].
    #[inline]
    pub fn headers(&self) -> impl ExactSizeIterator<Item = HeaderColumn<'_>> {
        self.wire.headers.iter().map(HeaderColumn::of)
    }
}

/// A column of byte strings: row `i` is `data[offsets[i]..offsets[i + 1]]`.
#[derive(Clone, Copy)]
pub struct Column<'a> {
    offsets: Numbers<'a, u32>,
    data: &'a [u8],
}

impl<'a> Column<'a> {
    /// A column over borrowed parts.
    pub fn new(offsets: Numbers<'a, u32>, data: &'a [u8]) -> Self {
        Self { offsets, data }
    }

    /// Number of rows.
    #[inline]
    pub fn rows(self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// The bytes of a row; empty for a row that does not exist.
    #[inline]
    pub fn get(self, row: usize) -> &'a [u8] {
        self.range(row).and_then(|range| self.data.get(range)).unwrap_or_default()
    }

    /// Where the row lies in [`data`](Self::data).
    #[inline]
    pub fn range(self, row: usize) -> Option<core::ops::Range<usize>> {
        Some(self.offsets.get(row)? as usize..self.offsets.get(row + 1)? as usize)
    }

    /// All rows in order.
    #[inline]
    pub fn iter(self) -> impl ExactSizeIterator<Item = &'a [u8]> + 'a {
        let ends = self.offsets.iter().skip(1);
        let mut start = self.offsets.get(0).unwrap_or(0) as usize;
        ends.map(move |end| {
            let row = self.data.get(start..end as usize).unwrap_or_default();
            start = end as usize;
            row
        })
    }

    /// The bytes of all rows, one after the other.
    #[inline]
    pub fn data(self) -> &'a [u8] {
        self.data
    }

    /// `rows + 1` offsets into [`data`](Self::data).
    #[inline]
    pub fn offsets(self) -> Numbers<'a, u32> {
        self.offsets
    }
}

/// The values of one header: UTF-8 or nothing per row.
#[derive(Clone, Copy)]
pub struct HeaderColumn<'a> {
    name: &'a str,
    values: Column<'a>,
    present: Option<&'a [u8]>,
}

impl<'a> HeaderColumn<'a> {
    pub(crate) fn of(column: &'a wire::HeaderColumn) -> Self {
        Self {
            name: &column.name,
            values: Column { offsets: abi::header_offsets_of(column), data: &column.data },
            present: column.present.as_deref(),
        }
    }

    /// The header's name.
    #[inline]
    pub fn name(self) -> &'a str {
        self.name
    }

    /// Whether the row has this header.
    #[inline]
    pub fn is_present(self, row: usize) -> bool {
        match self.present {
            None => row < self.values.rows(),
            Some(bits) => bits.get(row / 8).is_some_and(|byte| byte >> (row % 8) & 1 == 1),
        }
    }

    /// The row's value, if it has one.
    #[inline]
    pub fn get(self, row: usize) -> Option<&'a [u8]> {
        self.is_present(row).then(|| self.values.get(row))
    }

    /// The row's value as text, if it has one. The host promises UTF-8.
    #[inline]
    pub fn get_str(self, row: usize) -> Option<&'a str> {
        self.get(row).and_then(|value| str::from_utf8(value).ok())
    }

    /// The values without their presence: rows that do not have the header are empty.
    #[inline]
    pub fn values(self) -> Column<'a> {
        self.values
    }

    /// One bit per row, least significant first. `None`: every row has the header.
    #[inline]
    pub fn present(self) -> Option<&'a [u8]> {
        self.present
    }
}
