//! The wire form of interface 0.2.0: the only file that knows how numbers cross the sandbox.
//!
//! Offsets, row numbers and times cross as little-endian bytes. Everything else in the SDK sees [`Numbers`] when it
//! reads and [`NumberList`] when it writes, so a release that changes the wire form changes this file.

use crate::batch::BatchView;
use crate::difference::Difference;

/// What wit-bindgen generates from `wit/0.2.0`.
#[doc(hidden)]
#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit/0.2.0",
        // Without `about`, which every world has and which can be generated once only.
        inline: "package flumen:guest; world interceptor {
            import flumen:plugin/log@0.2.0;
            import flumen:plugin/metrics@0.2.0;
            import flumen:plugin/clock@0.2.0;
            import flumen:plugin/random@0.2.0;
            import flumen:plugin/state@0.2.0;
            import flumen:plugin/http@0.2.0;
            import flumen:plugin/tcp@0.2.0;
            export flumen:plugin/guest@0.2.0;
        }",
        world: "flumen:guest/interceptor",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_interceptor",
        default_bindings_module: "flumen_sdk::abi::bindings",
    });
}

/// What a plugin of any world tells about itself.
#[doc(hidden)]
#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction)]
pub mod about {
    wit_bindgen::generate!({
        path: "../../../wit/0.2.0",
        inline: "package flumen:described; world described { export flumen:plugin/about@0.2.0; }",
        world: "flumen:described/described",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_about",
        default_bindings_module: "flumen_sdk::abi::about",
    });

    pub use exports::flumen::plugin::about::{Description, Guest};
}

pub(crate) use bindings::flumen::plugin::types as wire;

/// A number of fixed width that crosses the sandbox.
pub trait Number: Copy {
    /// Its little-endian bytes.
    type Bytes: Copy + AsRef<[u8]>;
    /// From the wire.
    fn from_wire(bytes: Self::Bytes) -> Self;
    /// To the wire.
    fn to_wire(self) -> Self::Bytes;
    /// Cuts a wire list into numbers; a remainder is left out (the host never sends one).
    fn split(list: &[u8]) -> &[Self::Bytes];
    /// The wire list of these numbers, without a copy.
    fn join(list: Vec<Self::Bytes>) -> Vec<u8>;
}

macro_rules! number {
    ($type:ty, $width:literal) => {
        impl Number for $type {
            type Bytes = [u8; $width];
            #[inline]
            fn from_wire(bytes: Self::Bytes) -> Self {
                Self::from_le_bytes(bytes)
            }
            #[inline]
            fn to_wire(self) -> Self::Bytes {
                self.to_le_bytes()
            }
            #[inline]
            fn split(list: &[u8]) -> &[Self::Bytes] {
                list.as_chunks::<$width>().0
            }
            #[inline]
            fn join(list: Vec<Self::Bytes>) -> Vec<u8> {
                list.into_flattened()
            }
        }
    };
}
number!(u32, 4);
number!(u64, 8);
number!(i64, 8);

/// A column of numbers as it came from the host, read in place.
pub struct Numbers<'a, N: Number> {
    list: &'a [N::Bytes],
}

impl<N: Number> Clone for Numbers<'_, N> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<N: Number> Copy for Numbers<'_, N> {}

impl<'a, N: Number> Numbers<'a, N> {
    fn new(list: &'a [u8]) -> Self {
        Self { list: N::split(list) }
    }

    /// How many numbers there are.
    #[inline]
    pub fn len(self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.list.is_empty()
    }

    /// The number at `index`.
    #[inline]
    pub fn get(self, index: usize) -> Option<N> {
        self.list.get(index).map(|bytes| N::from_wire(*bytes))
    }

    /// All numbers in order.
    #[inline]
    pub fn iter(self) -> impl ExactSizeIterator<Item = N> + DoubleEndedIterator + 'a
    where
        N: 'a,
    {
        self.list.iter().map(|bytes| N::from_wire(*bytes))
    }
}

/// A column of numbers that is being written, already in wire form.
pub struct NumberList<N: Number> {
    list: Vec<N::Bytes>,
}

impl<N: Number> NumberList<N> {
    /// An empty list with room for `capacity` numbers.
    #[inline]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { list: Vec::with_capacity(capacity) }
    }

    /// Appends a number.
    #[inline]
    pub fn push(&mut self, number: N) {
        self.list.push(number.to_wire());
    }

    /// How many numbers there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The numbers so far.
    #[inline]
    pub fn as_numbers(&self) -> Numbers<'_, N> {
        Numbers { list: &self.list }
    }

    pub(crate) fn into_wire(self) -> Vec<u8> {
        N::join(self.list)
    }
}

impl<N: Number> Extend<N> for NumberList<N> {
    fn extend<I: IntoIterator<Item = N>>(&mut self, numbers: I) {
        self.list.extend(numbers.into_iter().map(N::to_wire));
    }
}

impl<N: Number> FromIterator<N> for NumberList<N> {
    fn from_iter<I: IntoIterator<Item = N>>(numbers: I) -> Self {
        Self { list: numbers.into_iter().map(N::to_wire).collect() }
    }
}

/// The columns that a plugin wants to see. What it does not name never crosses the sandbox and costs nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    pub(crate) body: bool,
    pub(crate) time: bool,
    pub(crate) identity: bool,
    pub(crate) headers: Vec<String>,
}

impl Reads {
    /// No column at all: only the number of rows.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// The body.
    pub fn body() -> Self {
        Self { body: true, ..Self::default() }
    }

    /// The event time.
    pub fn time() -> Self {
        Self { time: true, ..Self::default() }
    }

    /// Adds the body.
    pub fn and_body(mut self) -> Self {
        self.body = true;
        self
    }

    /// Adds the event time.
    pub fn and_time(mut self) -> Self {
        self.time = true;
        self
    }

    /// Adds the identity: the stream and the position in it.
    pub fn and_identity(mut self) -> Self {
        self.identity = true;
        self
    }

    /// Adds a header. Naming one twice is the same as once.
    pub fn and_header(mut self, name: impl Into<String>) -> Self {
        let name = name.into();
        if !self.headers.contains(&name) {
            self.headers.push(name);
        }
        self
    }

    /// The number of the header's column: what [`BatchView::header`] takes.
    pub fn header_index(&self, name: &str) -> Option<usize> {
        self.headers.iter().position(|header| header == name)
    }

    pub(crate) fn into_wire(self) -> wire::Reads {
        let Self { body, time, identity, headers } = self;
        wire::Reads { body, time, identity, headers }
    }
}

pub(crate) fn offsets_of(column: &wire::BytesColumn) -> Numbers<'_, u32> {
    Numbers::new(&column.offsets)
}

pub(crate) fn header_offsets_of(column: &wire::HeaderColumn) -> Numbers<'_, u32> {
    Numbers::new(&column.offsets)
}

pub(crate) fn times_of(list: &[u8]) -> Numbers<'_, i64> {
    Numbers::new(list)
}

pub(crate) fn rows_of(list: &[u8]) -> Numbers<'_, u32> {
    Numbers::new(list)
}

pub(crate) fn identities_of(columns: &wire::IdentityColumns) -> (Numbers<'_, u64>, Numbers<'_, u64>) {
    (Numbers::new(&columns.stream), Numbers::new(&columns.position))
}

pub(crate) fn bytes_column(offsets: NumberList<u32>, data: Vec<u8>) -> wire::BytesColumn {
    wire::BytesColumn { offsets: offsets.into_wire(), data }
}

pub(crate) fn header_column(
    name: String,
    offsets: NumberList<u32>,
    data: Vec<u8>,
    present: Option<Vec<u8>>,
) -> wire::HeaderColumn {
    wire::HeaderColumn { name, offsets: offsets.into_wire(), data, present }
}

pub(crate) fn identity_columns(stream: NumberList<u64>, position: NumberList<u64>) -> wire::IdentityColumns {
    wire::IdentityColumns { stream: stream.into_wire(), position: position.into_wire() }
}

/// A wire batch, for the code above.
pub(crate) fn view(batch: wire::Batch) -> BatchView {
    BatchView::new(batch)
}

/// Hands a wire batch to the code above and its answer back to the wire.
pub(crate) fn process(
    batch: wire::Batch,
    process: impl FnOnce(&BatchView) -> Result<Difference, String>,
) -> Result<wire::Difference, String> {
    process(&BatchView::new(batch)).map(Difference::into_wire)
}
