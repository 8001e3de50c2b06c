//! Codecs: bytes of a stream to events, events to payloads or to the bytes of files.
//!
//! | trait | macro | for |
//! |---|---|---|
//! | [`Decoder`] | [`decoder!`](crate::decoder) | a source: `[source.NAME.codec]` |
//! | [`Encoder`] | [`encoder!`](crate::encoder) | a sink: `[sink.NAME.codec]` |
//! | both | [`codec!`](crate::codec) | either |
//!
//! ```
//! use flumen_sdk::codec::{Decoded, Decoder};
//! use flumen_sdk::config::Config;
//! /// Records of four bytes.
//! struct Fours;
//! impl Decoder for Fours {
//!     fn open(config: Config) -> Result<Self, String> {
//!         config.none()?;
//!         Ok(Fours)
//!     }
//!     fn decode(&mut self, input: &[u8], _is_last: bool, out: &mut Decoded) -> Result<(), String> {
//!         for (record, number) in input.chunks_exact(4).zip(1..) {
//!             out.event(number * 4, record);
//!         }
//!         Ok(())
//!     }
//! }
//! flumen_sdk::decoder!(Fours);
//! ```
//!
//! A codec keeps nothing between two calls: what was not consumed comes again, with more behind it.

use core::cell::RefCell;

use crate::abi::{NumberList, Reads, wire};
use crate::batch::BatchView;
use crate::config::Config;
use crate::difference::{ColumnBuilder, HeaderBuilder};

/// Finds events in the bytes of a stream.
pub trait Decoder: Sized {
    /// JSON Schema of the configuration: `flumen check` holds the pipeline's file against it before anything runs.
    /// Empty: any configuration, until `open` says otherwise.
    const OPTIONS: &'static str = "";

    /// Reads the configuration. The error is shown to the user as it is.
    fn open(config: Config) -> Result<Self, String>;

    /// Decodes what is whole in `input` into `out`. `is_last`: nothing will follow. The answer depends on the input and the
    /// configuration only. Bytes that are no event go to [`Decoded::bad`]; an `Err` blames the whole input, and the host
    /// then looks for the bytes that are guilty.
    fn decode(&mut self, input: &[u8], is_last: bool, out: &mut Decoded) -> Result<(), String>;
}

/// Makes bytes of events.
pub trait Encoder: Sized {
    /// As [`Decoder::OPTIONS`].
    const OPTIONS: &'static str = "";

    /// Reads the configuration and says which columns to pass.
    fn open(config: Config) -> Result<(Self, Reads), String>;

    /// What stands at the beginning of a file. `seed` is the file's own number, the same for every call about it.
    fn begin(&mut self, seed: u64) -> Result<Vec<u8>, String> {
        let _unused = seed;
        Ok(Vec::new())
    }

    /// Encodes a batch into `out`: a payload for each row, in order, or a rejection of it. `file`: the seed of the file that
    /// it goes to; `None`: messages. In a file payloads follow each other with nothing between them.
    fn encode(&mut self, batch: &BatchView, file: Option<u64>, out: &mut Payloads) -> Result<(), String>;

    /// What stands at the end of a file.
    fn end(&mut self, seed: u64) -> Result<Vec<u8>, String> {
        let _unused = seed;
        Ok(Vec::new())
    }
}

impl Reads {
    /// Adds all headers that a batch has, whatever their names are: [`BatchView::headers`].
    pub fn and_all_headers(self) -> Self {
        Reads { headers: vec!["*".to_owned()], ..self }
    }
}

/// What a decoder finds. By default everything up to the end of the last event or bad bytes is consumed.
pub struct Decoded {
    consumed: u32,
    ends: NumberList<u32>,
    body: ColumnBuilder,
    times: NumberList<i64>,
    time: i64,
    has_times: bool,
    headers: Vec<HeaderBuilder>,
    bad: Vec<(u32, u32, String)>,
}

impl Decoded {
    /// Nothing yet, with room for what an input of this many bytes may hold.
    pub fn with_capacity(input_bytes: usize) -> Self {
        Decoded {
            consumed: 0,
            ends: NumberList::with_capacity(input_bytes / 128),
            body: ColumnBuilder::with_capacity(input_bytes / 128, input_bytes),
            times: NumberList::with_capacity(0),
            time: 0,
            has_times: false,
            headers: Vec::new(),
            bad: Vec::new(),
        }
    }

    /// An event whose bytes end at `end` in the input. Several events of the same bytes have the same end.
    pub fn event(&mut self, end: usize, body: &[u8]) -> EventBuilder<'_> {
        self.fill_times();
        self.ends.push(end as u32);
        self.body.push(body);
        self.consume(end);
        EventBuilder { decoded: self, hint: 0 }
    }

    /// Bytes that are no event: they go to quarantine with the reason.
    pub fn bad(&mut self, bytes: core::ops::Range<usize>, reason: impl Into<String>) {
        self.consume(bytes.end);
        self.bad.push((bytes.start as u32, bytes.end as u32, reason.into()));
    }

    /// Bytes up to here are done with, also if there is no event at their end.
    pub fn consume(&mut self, end: usize) {
        self.consumed = self.consumed.max(end as u32);
    }

    /// Events so far.
    pub fn rows(&self) -> usize {
        self.ends.len()
    }

    /// Rows of a column of times so far: without one of its own, an event has the time of the one before it.
    fn fill_times(&mut self) {
        while self.has_times && self.times.len() < self.ends.len() {
            self.times.push(self.time);
        }
    }
}

/// Adds to an event.
pub struct EventBuilder<'a> {
    decoded: &'a mut Decoded,
    hint: usize,
}

impl EventBuilder<'_> {
    /// Its time: nanoseconds since the Unix epoch, UTC. Give every event one, or none: then it is when it was read.
    pub fn time(self, time: i64) -> Self {
        if !self.decoded.has_times {
            self.decoded.has_times = true;
            self.decoded.time = time;
            let before = self.decoded.ends.len() - 1;
            (0..before).for_each(|_| self.decoded.times.push(time));
        }
        self.decoded.time = time;
        self.decoded.fill_times();
        self
    }

    /// A header. The second of the same name is left out.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let row = self.decoded.ends.len() - 1;
        let headers = &mut self.decoded.headers;
        // Events mostly have the same headers in the same order.
        let index = match headers.get(self.hint) {
            Some(header) if header.name() == name => self.hint,
            _ => headers.iter().position(|header| header.name() == name).unwrap_or_else(|| {
                headers.push(HeaderBuilder::with_capacity(name, row + 1, value.len()));
                headers.len() - 1
            }),
        };
        if let Some(header) = headers.get_mut(index)
            && header.rows() <= row
        {
            (header.rows()..row).for_each(|_| header.push_absent());
            header.push(value);
        }
        self.hint = index + 1;
        self
    }
}

/// What an encoder makes: a payload for each row, in order, or a rejection of it.
pub struct Payloads {
    column: ColumnBuilder,
    rejected: Vec<(u32, String)>,
}

impl Payloads {
    /// Room for this many payloads of these bytes together.
    pub fn with_capacity(rows: usize, bytes: usize) -> Self {
        Payloads { column: ColumnBuilder::with_capacity(rows, bytes), rejected: Vec::new() }
    }

    /// The payload of the next row.
    pub fn push(&mut self, payload: &[u8]) {
        self.column.push(payload);
    }

    /// Adds to the payload that [`end_row`](Self::end_row) will end.
    #[inline]
    pub fn add(&mut self, part: &[u8]) {
        self.column.add(part);
    }

    /// Ends a payload that was put together by [`add`](Self::add).
    #[inline]
    pub fn end_row(&mut self) {
        self.column.end_row();
    }

    /// The next row has no payload: it goes to quarantine with the reason.
    pub fn reject(&mut self, row: usize, reason: impl Into<String>) {
        self.rejected.push((row as u32, reason.into()));
    }
}

/// What wit-bindgen generates for `decoding`: a world of its own for each interface, so that a plugin exports what it has. The
/// shapes are those of [`crate::abi`], under names of their own.
#[doc(hidden)]
#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction)]
pub mod decoder_world {
    wit_bindgen::generate!({
        path: "../../../wit/0.2.0",
        inline: "package flumen:decoder; world decoder { export flumen:plugin/decoding@0.2.0; }",
        world: "flumen:decoder/decoder",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_decoder",
        default_bindings_module: "flumen_sdk::codec::decoder_world",
    });
}

/// The same for `encoding`.
#[doc(hidden)]
#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction)]
pub mod encoder_world {
    wit_bindgen::generate!({
        path: "../../../wit/0.2.0",
        inline: "package flumen:encoder; world encoder { export flumen:plugin/encoding@0.2.0; }",
        world: "flumen:encoder/encoder",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_encoder",
        default_bindings_module: "flumen_sdk::codec::encoder_world",
    });
}

// From the shapes of one world to those of the SDK, and back: columns move, nothing is copied.

impl From<encoder_world::flumen::plugin::types::Batch> for BatchView {
    fn from(batch: encoder_world::flumen::plugin::types::Batch) -> BatchView {
        let headers = batch.headers.into_iter().map(|header| wire::HeaderColumn {
            name: header.name,
            offsets: header.offsets,
            data: header.data,
            present: header.present,
        });
        BatchView::new(wire::Batch {
            rows: batch.rows,
            body: batch.body.map(|body| wire::BytesColumn { offsets: body.offsets, data: body.data }),
            time: batch.time,
            headers: headers.collect(),
            identity: batch.identity.map(|identity| wire::IdentityColumns {
                stream: identity.stream,
                position: identity.position,
            }),
        })
    }
}

impl From<Reads> for encoder_world::flumen::plugin::types::Reads {
    fn from(reads: Reads) -> Self {
        let Reads { body, time, identity, headers } = reads;
        Self { body, time, identity, headers }
    }
}

impl From<Payloads> for encoder_world::exports::flumen::plugin::encoding::Encoded {
    fn from(payloads: Payloads) -> Self {
        use encoder_world::flumen::plugin::types::{BytesColumn, Rejection};
        let wire::BytesColumn { offsets, data } = payloads.column.into_wire();
        let rejected = payloads.rejected.into_iter().map(|(row, reason)| Rejection { row, reason });
        Self { payloads: BytesColumn { offsets, data }, rejected: rejected.collect() }
    }
}

impl From<Decoded> for decoder_world::exports::flumen::plugin::decoding::Decoded {
    fn from(mut decoded: Decoded) -> Self {
        use decoder_world::exports::flumen::plugin::decoding::{BadBytes, Events};
        use decoder_world::flumen::plugin::types::{BytesColumn, HeaderColumn};
        decoded.fill_times();
        let rows = decoded.ends.len();
        let header = |mut header: HeaderBuilder| {
            (header.rows()..rows).for_each(|_| header.push_absent());
            let wire::HeaderColumn { name, offsets, data, present } = header.into_wire();
            HeaderColumn { name, offsets, data, present }
        };
        let wire::BytesColumn { offsets, data } = decoded.body.into_wire();
        let bad = decoded.bad.into_iter().map(|(begin, end, reason)| BadBytes { begin, end, reason });
        Self {
            consumed: decoded.consumed,
            events: Events {
                rows: rows as u32,
                body: BytesColumn { offsets, data },
                time: decoded.has_times.then(|| decoded.times.into_wire()),
                headers: decoded.headers.into_iter().map(header).collect(),
            },
            ends: decoded.ends.into_wire(),
            bad: bad.collect(),
        }
    }
}

/// Where the one instance of a codec lives between calls.
#[doc(hidden)]
pub struct CodecSlot<T> {
    codec: RefCell<Option<T>>,
}

impl<T> CodecSlot<T> {
    pub const fn new() -> Self {
        Self { codec: RefCell::new(None) }
    }

    fn with<Answer>(&self, call: impl FnOnce(&mut T) -> Result<Answer, String>) -> Result<Answer, String> {
        match self.codec.borrow_mut().as_mut() {
            Some(codec) => call(codec),
            None => Err("called before open succeeded".to_owned()),
        }
    }
}

impl<T> Default for CodecSlot<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Decoder> CodecSlot<T> {
    pub fn open_decoder(&self, config: String) -> Result<(), String> {
        self.codec.replace(Some(T::open(Config::new(config))?));
        Ok(())
    }

    pub fn decode<Answer: From<Decoded>>(&self, input: &[u8], is_last: bool) -> Result<Answer, String> {
        let mut out = Decoded::with_capacity(input.len());
        self.with(|decoder| decoder.decode(input, is_last, &mut out))?;
        Ok(out.into())
    }
}

impl<T: Encoder> CodecSlot<T> {
    pub fn open_encoder<Answer: From<Reads>>(&self, config: String) -> Result<Answer, String> {
        let (encoder, reads) = T::open(Config::new(config))?;
        self.codec.replace(Some(encoder));
        Ok(reads.into())
    }

    pub fn encode<Batch: Into<BatchView>, Answer: From<Payloads>>(
        &self,
        batch: Batch,
        file: Option<u64>,
    ) -> Result<Answer, String> {
        let batch = batch.into();
        let bytes = batch.body().map_or(0, |body| body.data().len());
        let mut out = Payloads::with_capacity(batch.rows(), bytes + batch.rows() * 16);
        self.with(|encoder| encoder.encode(&batch, file, &mut out))?;
        Ok(out.into())
    }

    pub fn begin(&self, seed: u64) -> Result<Vec<u8>, String> {
        self.with(|encoder| encoder.begin(seed))
    }

    pub fn end(&self, seed: u64) -> Result<Vec<u8>, String> {
        self.with(|encoder| encoder.end(seed))
    }
}

/// Makes a [`Decoder`](crate::codec::Decoder) the plugin of this crate. Its version and summary are those of `Cargo.toml`.
#[macro_export]
macro_rules! decoder {
    ($decoder:ty) => {
        $crate::__described_codec!(<$decoder as $crate::codec::Decoder>::OPTIONS);
        $crate::__decoder!($decoder);
    };
}

/// Makes an [`Encoder`](crate::codec::Encoder) the plugin of this crate.
#[macro_export]
macro_rules! encoder {
    ($encoder:ty) => {
        $crate::__described_codec!(<$encoder as $crate::codec::Encoder>::OPTIONS);
        $crate::__encoder!($encoder);
    };
}

/// Makes a [`Decoder`](crate::codec::Decoder) and an [`Encoder`](crate::codec::Encoder) the plugin of this crate: one for
/// sources, the other for sinks. A plugin has one description: the options of both are those of the decoder.
#[macro_export]
macro_rules! codec {
    ($decoder:ty, $encoder:ty) => {
        $crate::__described_codec!(<$decoder as $crate::codec::Decoder>::OPTIONS);
        $crate::__decoder!($decoder);
        $crate::__encoder!($encoder);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __described_codec {
    ($options:expr) => {
        const _: () = {
            struct Described;
            $crate::described!(Described, $options);
        };
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __decoder {
    ($decoder:ty) => {
        const _: () = {
            struct Exported;
            $crate::__decoding!(Exported, $decoder);
            #[cfg(target_arch = "wasm32")]
            $crate::codec::decoder_world::export_decoder!(Exported with_types_in $crate::codec::decoder_world);
            // Natively there is nobody to export to.
            #[cfg(not(target_arch = "wasm32"))]
            const _: fn() = $crate::codec::native_decoder::<Exported>;
        };
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __encoder {
    ($encoder:ty) => {
        const _: () = {
            struct Exported;
            $crate::__encoding!(Exported, $encoder);
            #[cfg(target_arch = "wasm32")]
            $crate::codec::encoder_world::export_encoder!(Exported with_types_in $crate::codec::encoder_world);
            #[cfg(not(target_arch = "wasm32"))]
            const _: fn() = $crate::codec::native_encoder::<Exported>;
        };
    };
}

/// Stands for the export where there is none, so that the plugin's code counts as used.
#[doc(hidden)]
pub fn native_decoder<G: decoder_world::exports::flumen::plugin::decoding::Guest>() {
    let _: fn(String) -> _ = G::open;
    let _: fn(Vec<u8>, bool) -> _ = G::decode;
}

#[doc(hidden)]
pub fn native_encoder<G: encoder_world::exports::flumen::plugin::encoding::Guest>() {
    let _: fn(String) -> _ = G::open;
    let _: fn(u64) -> _ = G::begin;
    let _: fn(_, Option<u64>) -> _ = G::encode;
    let _: fn(u64) -> _ = G::end;
}

#[doc(hidden)]
#[macro_export]
macro_rules! __decoding {
    ($exported:ty, $decoder:ty) => {
        ::std::thread_local! {
            static DECODER: $crate::codec::CodecSlot<$decoder> = const { $crate::codec::CodecSlot::new() };
        }
        impl $crate::codec::decoder_world::exports::flumen::plugin::decoding::Guest for $exported {
            fn open(config: ::std::string::String) -> ::core::result::Result<(), ::std::string::String> {
                DECODER.with(|slot| slot.open_decoder(config))
            }
            fn decode(
                input: ::std::vec::Vec<u8>,
                is_last: bool,
            ) -> ::core::result::Result<
                $crate::codec::decoder_world::exports::flumen::plugin::decoding::Decoded,
                ::std::string::String,
            > {
                DECODER.with(|slot| slot.decode(&input, is_last))
            }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __encoding {
    ($exported:ty, $encoder:ty) => {
        ::std::thread_local! {
            static ENCODER: $crate::codec::CodecSlot<$encoder> = const { $crate::codec::CodecSlot::new() };
        }
        impl $crate::codec::encoder_world::exports::flumen::plugin::encoding::Guest for $exported {
            fn open(
                config: ::std::string::String,
            ) -> ::core::result::Result<
                $crate::codec::encoder_world::flumen::plugin::types::Reads,
                ::std::string::String,
            > {
                ENCODER.with(|slot| slot.open_encoder(config))
            }
            fn begin(seed: u64) -> ::core::result::Result<::std::vec::Vec<u8>, ::std::string::String> {
                ENCODER.with(|slot| slot.begin(seed))
            }
            fn encode(
                batch: $crate::codec::encoder_world::flumen::plugin::types::Batch,
                file: ::core::option::Option<u64>,
            ) -> ::core::result::Result<
                $crate::codec::encoder_world::exports::flumen::plugin::encoding::Encoded,
                ::std::string::String,
            > {
                ENCODER.with(|slot| slot.encode(batch, file))
            }
            fn end(seed: u64) -> ::core::result::Result<::std::vec::Vec<u8>, ::std::string::String> {
                ENCODER.with(|slot| slot.end(seed))
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use decoder_world::exports::flumen::plugin::decoding::Decoded as DecodedOut;

    fn numbers(list: &[u8]) -> Vec<u32> {
        list.chunks_exact(4)
            .map(|bytes| bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
            .collect()
    }

    #[test]
    fn what_an_event_lacks_is_absent_and_times_go_on() {
        let mut out = Decoded::with_capacity(0);
        out.event(2, b"a").header("x", "1");
        out.event(4, b"bb").time(7).header("y", "2").header("x", "3");
        out.bad(4..6, "no event");
        out.event(8, b"");
        out.consume(9);
        let DecodedOut { consumed, events, ends, bad } = out.into();
        assert_eq!((consumed, events.rows, numbers(&ends)), (9, 3, vec![2, 4, 8]));
        assert_eq!(
            (events.body.data.as_slice(), numbers(&events.body.offsets)),
            (b"abb".as_slice(), vec![0, 1, 3, 3])
        );
        assert_eq!(events.time, Some([7_i64; 3].iter().flat_map(|time| time.to_le_bytes()).collect()));
        let headers: Vec<_> = events
            .headers
            .iter()
            .map(|header| {
                (
                    header.name.as_str(),
                    header.data.as_slice(),
                    header.present.clone(),
                    numbers(&header.offsets),
                )
            })
            .collect();
        assert_eq!(
            headers,
            [
                ("x", b"13".as_slice(), Some(vec![0b011]), vec![0, 1, 2, 2]),
                ("y", b"2".as_slice(), Some(vec![0b010]), vec![0, 0, 1, 1]),
            ]
        );
        assert_eq!(bad.iter().map(|bad| (bad.begin, bad.end)).collect::<Vec<_>>(), [(4, 6)]);
    }

    #[test]
    fn a_header_given_twice_keeps_its_first_value() {
        let mut out = Decoded::with_capacity(0);
        out.event(1, b"").header("x", "1").header("x", "2");
        let DecodedOut { events, consumed, .. } = out.into();
        let header = events.headers.first().map(|header| (header.data.clone(), header.present.clone()));
        assert_eq!((header, events.time, consumed), (Some((b"1".to_vec(), None)), None, 1));
    }
}
