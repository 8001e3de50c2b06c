//! What a plugin remembers: keys and values that survive restarts, crashes and swaps (`grant = ["state"]`).
//!
//! The writes of a batch are in the same commit as its events: if the batch comes again, the state is as it was before, so
//! the answer is the same. Batches of a plugin with state come one at a time, in order. Every call takes a whole column,
//! because a call costs more than a row: gather the keys of a batch, and ask once.
//!
//! Keys have 1 to 1,024 bytes, values up to 1 MiB. Natively (`cargo test`) there is no host: test with `flumen plugin test`.

use core::time::Duration;

use crate::abi::bindings::flumen::plugin::state as host;
use crate::abi::wire;
use crate::abi::{Numbers, offsets_of};
use crate::batch::Column;
use crate::difference::ColumnBuilder;

/// One bit per row.
pub struct Bits(Vec<u8>);

impl Bits {
    /// Bits from the wire: least significant first.
    pub fn new(bits: Vec<u8>) -> Self {
        Self(bits)
    }

    /// The bit of a row; false for a row that does not exist.
    #[inline]
    pub fn get(&self, row: usize) -> bool {
        self.0.get(row / 8).is_some_and(|byte| byte >> (row % 8) & 1 == 1)
    }

    /// How many bits are set.
    pub fn count(&self) -> usize {
        self.0.iter().map(|byte| byte.count_ones() as usize).sum()
    }
}

/// Values of a column of keys.
pub struct Values {
    wire: wire::BytesColumn,
    present: Bits,
}

impl Values {
    /// The value of the key in this row, if it has one.
    #[inline]
    pub fn get(&self, row: usize) -> Option<&[u8]> {
        self.present.get(row).then(|| column(&self.wire).get(row))
    }
}

/// Keys in byte order, with their values.
pub struct Entries {
    keys: wire::BytesColumn,
    values: wire::BytesColumn,
}

impl Entries {
    /// How many.
    pub fn len(&self) -> usize {
        column(&self.keys).rows()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keys and values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        column(&self.keys).iter().zip(column(&self.values).iter())
    }
}

fn column(wire: &wire::BytesColumn) -> Column<'_> {
    let offsets: Numbers<'_, u32> = offsets_of(wire);
    Column::new(offsets, &wire.data)
}

fn milliseconds(ttl: Option<Duration>) -> Option<u64> {
    ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
}

/// The values of these keys.
pub fn get_many(keys: ColumnBuilder) -> Result<Values, String> {
    let host::Values { offsets, data, present } = host::get_many(&keys.into_column())?;
    Ok(Values { wire: wire::BytesColumn { offsets, data }, present: Bits(present) })
}

/// Sets keys to values. With `ttl` they are forgotten that much later.
pub fn put_many(keys: ColumnBuilder, values: ColumnBuilder, ttl: Option<Duration>) -> Result<(), String> {
    host::put_many(&keys.into_column(), &values.into_column(), milliseconds(ttl))
}

/// Sets each key that has no value yet, to an empty value without `values`. The bits tell which were set now; of equal
/// keys the first.
pub fn insert_if_absent(
    keys: ColumnBuilder,
    values: Option<ColumnBuilder>,
    ttl: Option<Duration>,
) -> Result<Bits, String> {
    let values = values.map(ColumnBuilder::into_column);
    host::insert_if_absent(&keys.into_column(), values.as_ref(), milliseconds(ttl)).map(Bits)
}

/// Forgets keys.
pub fn remove_many(keys: ColumnBuilder) -> Result<(), String> {
    host::remove_many(&keys.into_column())
}

/// Keys that begin with `prefix` and come after `after`, at most `limit`; there may be more behind them unless there are none.
pub fn scan(prefix: &[u8], after: Option<&[u8]>, limit: u32) -> Result<Entries, String> {
    let host::Entries { keys, values } = host::scan(prefix, after, limit)?;
    Ok(Entries { keys, values })
}
