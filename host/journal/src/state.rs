//! What plugins remember, as the journal's users see it: writes on their way into a commit, and the view of
//! everything that was written.
//!
//! Writes and columns are flat bytes: a batch writes thousands of keys, and none of them is an allocation here.

use std::sync::Arc;

use crate::file::format::wire::{Fields, put_blob};

/// Flag of a write: there is a value.
const VALUE: u8 = 1;

/// Flag of a write: it expires.
const EXPIRY: u8 = 2;

/// One write to a plugin's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateWrite {
    /// The plugin's name in the pipeline.
    pub plugin: String,
    /// Key.
    pub key: Vec<u8>,
    /// Value; `None` deletes.
    pub value: Option<Vec<u8>>,
    /// Nanoseconds since the Unix epoch after which the entry is as good as deleted.
    pub expiry: Option<i64>,
}

/// Writes to one plugin's state, in order; of two writes of a key the later one holds.
///
/// ```text
/// per write: blob key, u8 flags (1 value, 2 expiry), i64 expiry, blob value
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateWrites {
    plugin: Arc<str>,
    bytes: Vec<u8>,
    count: u32,
}

/// A write of [`StateWrites`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateOp<'a> {
    /// Key.
    pub key: &'a [u8],
    /// Value; `None` deletes.
    pub value: Option<&'a [u8]>,
    /// As in [`StateWrite::expiry`].
    pub expiry: Option<i64>,
}

impl StateWrites {
    /// No writes yet. `plugin` is the plugin's name in the pipeline.
    pub fn new(plugin: Arc<str>) -> Self {
        StateWrites { plugin, bytes: Vec::new(), count: 0 }
    }

    /// Whose state it is.
    pub fn plugin(&self) -> &Arc<str> {
        &self.plugin
    }

    /// Number of writes.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// True without writes.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of all writes together; no key with its value has more.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Appends a write; its place, for [`StateWrites::at`].
    pub fn push(&mut self, op: StateOp<'_>) -> u32 {
        let at = self.bytes.len() as u32;
        encode_op(op, &mut self.bytes);
        self.count += 1;
        at
    }

    /// Appends all of it: blob plugin, u32 count, blob writes.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_blob(out, self.plugin.as_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        put_blob(out, &self.bytes);
    }

    /// What [`StateWrites::encode`] appended.
    pub(crate) fn decode(fields: &mut Fields<'_>) -> Option<StateWrites> {
        let plugin = fields.text()?.into();
        let count = fields.u32()?;
        let writes = StateWrites { plugin, bytes: fields.blob()?.to_vec(), count };
        (writes.iter().count() == count as usize).then_some(writes)
    }

    /// The write at a place.
    pub fn at(&self, place: u32) -> Option<StateOp<'_>> {
        decode_op(&mut Fields::new(self.bytes.get(place as usize..)?))
    }

    /// All writes, in order.
    pub fn iter(&self) -> impl Iterator<Item = StateOp<'_>> {
        let mut fields = Fields::new(&self.bytes);
        std::iter::from_fn(move || decode_op(&mut fields))
    }
}

/// Appends a write.
pub(crate) fn encode_op(op: StateOp<'_>, out: &mut Vec<u8>) {
    put_blob(out, op.key);
    let flags = if op.value.is_some() { VALUE } else { 0 } | if op.expiry.is_some() { EXPIRY } else { 0 };
    out.push(flags);
    out.extend_from_slice(&op.expiry.unwrap_or_default().to_le_bytes());
    put_blob(out, op.value.unwrap_or_default());
}

/// The next write.
pub(crate) fn decode_op<'a>(fields: &mut Fields<'a>) -> Option<StateOp<'a>> {
    let key = fields.blob()?;
    let (flags, expiry) = (fields.u8()?, fields.i64()?);
    let value = fields.blob()?;
    let op = StateOp {
        key,
        value: (flags & VALUE != 0).then_some(value),
        expiry: (flags & EXPIRY != 0).then_some(expiry),
    };
    (flags <= VALUE | EXPIRY).then_some(op)
}

/// A column of byte strings: `rows + 1` little-endian `u32` offsets into data.
#[derive(Debug, Clone, Copy)]
pub struct ByteColumn<'a> {
    offsets: &'a [u8],
    data: &'a [u8],
}

impl<'a> ByteColumn<'a> {
    /// `None` if the offsets do not begin at 0, fall, or do not end where the data ends.
    pub fn new(offsets: &'a [u8], data: &'a [u8]) -> Option<ByteColumn<'a>> {
        let mut before = 0;
        let (numbers, rest) = offsets.as_chunks::<4>();
        for (index, number) in numbers.iter().enumerate() {
            let number = u32::from_le_bytes(*number);
            if number < before || (index == 0 && number != 0) {
                return None;
            }
            before = number;
        }
        let is_whole = rest.is_empty() && !numbers.is_empty() && before as usize == data.len();
        is_whole.then_some(ByteColumn { offsets, data })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        (self.offsets.len() / 4).saturating_sub(1)
    }

    /// True without rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A row; empty if there is no such row.
    pub fn row(&self, index: usize) -> &'a [u8] {
        let number = |at: usize| {
            let bytes = self.offsets.get(at * 4..)?.first_chunk::<4>()?;
            Some(u32::from_le_bytes(*bytes) as usize)
        };
        let range = number(index).zip(number(index + 1));
        range.and_then(|(start, end)| self.data.get(start..end)).unwrap_or_default()
    }
}

/// How much one plugin remembers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StateSize {
    /// The plugin's name in the pipeline.
    pub plugin: String,
    /// Keys, with those that have expired and are not yet swept.
    pub keys: u64,
    /// Memory that they take, in bytes: [`state_bytes`] of each.
    pub bytes: u64,
}

/// Memory of one key with its value, in bytes: its allocation and its share of the table.
pub fn state_bytes(key: &[u8], value: &[u8]) -> u64 {
    crate::view::entry_bytes(key.len() + value.len())
}

/// The newest values of all keys: those of durable commits, and of commits on their way.
///
/// An entry whose expiry is before `now_ns` is not seen, whether it was swept or not.
pub trait StateStore: Send + Sync {
    /// False: what was remembered is elsewhere and was not read yet; every other call waits until it was.
    fn is_ready(&self) -> bool {
        true
    }

    /// Calls `each` with every key's index and its value, in order. `each` must not call the store.
    fn get_many(
        &self,
        plugin: &str,
        keys: &ByteColumn<'_>,
        now_ns: i64,
        each: &mut dyn FnMut(usize, Option<&[u8]>),
    );

    /// Calls `each` with the keys that begin with `prefix` and come after `after`, and their values, in byte
    /// order, until it answers false. `each` must not call the store. The first scan of a plugin sorts its keys, and from then on
    /// they are kept in order.
    fn scan(
        &self,
        plugin: &str,
        prefix: &[u8],
        after: Option<&[u8]>,
        now_ns: i64,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    );

    /// How much a plugin remembers.
    fn size(&self, plugin: &str) -> StateSize;

    /// Forgets everything of a plugin that has expired.
    fn sweep(&self, plugin: &str, now_ns: i64);

    /// How much each plugin remembers, by name.
    fn sizes(&self) -> Vec<StateSize>;
}
