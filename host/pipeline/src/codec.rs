//! The traits of codecs, and how sources and sinks use one.
//!
//! A *decoder* turns the bytes of a stream into events, an *encoder* turns events into payloads, one each, or into the
//! bytes of a file. Neither keeps anything between two calls: what a decoder did not consume comes again, with more
//! behind it, so a restart reads on at the last byte that was consumed and nothing else has to be remembered.
//!
//! **Identity of a decoded event.** Its position is where its bytes end: that does not depend on how the stream was cut
//! into inputs, so it is the same after every restart. Of several events of the same bytes the first has that position,
//! and the others have [`further_position`]s, which no byte of a stream has.
//!
//! **Failures.** What a codec cannot work with goes to quarantine: events as they were, or the bytes that were none. A
//! version that fails looks for the guilty ones itself ([`Encoder::encode`] and [`Decoder::decode`] have no error), so one
//! bad event costs no other.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use arrow_array::{Array, BinaryArray, Int64Array, UInt64Array};
use flumen_event::{Batch, BatchBuilder, BatchError, HeaderColumn, limits};
use thiserror::Error;

use crate::interceptor::Quarantined;
use crate::metrics::{ComponentKind, ComponentMetrics, Metric};
use crate::plan::OnReject;

/// A place that encodes. Its version may be swapped while the pipeline runs.
pub trait EncoderSlot: Send + Sync {
    /// The codec's name in the pipeline.
    fn name(&self) -> &str;

    /// The version that batches are given to from now on.
    fn current(&self) -> Arc<dyn Encoder>;
}

/// One version of an encoder, opened with the running configuration.
pub trait Encoder: Send + Sync {
    /// What tells this version from others: a plugin's content hash, in hex.
    fn hash(&self) -> &Arc<str>;

    /// Encodes a batch, for the file with this seed or for messages. Failures are part of the answer.
    fn encode(&self, batch: &Batch, file: Option<u64>) -> Encoded;

    /// What stands at the beginning of a file. `seed` is the file's own number, the same for every call about it.
    fn begin(&self, seed: u64) -> Result<Vec<u8>, CodecError>;

    /// What stands at the end of a file.
    fn end(&self, seed: u64) -> Result<Vec<u8>, CodecError>;
}

/// Why a codec did not give a file's beginning or end.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct CodecError(pub String);

/// What an encoder made of a batch. Every row is encoded or quarantined.
#[derive(Debug)]
pub struct Encoded {
    /// The rows that have a payload, as they came, in order.
    pub rows: Batch,
    /// A payload for each of them.
    pub payloads: BinaryArray,
    /// The others.
    pub quarantined: Vec<Quarantined>,
}

/// A place that decodes. Its version may be swapped while the pipeline runs.
pub trait DecoderSlot: Send + Sync {
    /// The codec's name in the pipeline.
    fn name(&self) -> &str;

    /// The version that bytes are given to from now on.
    fn current(&self) -> Arc<dyn Decoder>;
}

/// One version of a decoder, opened with the running configuration.
pub trait Decoder: Send + Sync {
    /// What tells this version from others: a plugin's content hash, in hex.
    fn hash(&self) -> &Arc<str>;

    /// Decodes what is whole in `input`. `is_last`: nothing will follow. Failures are part of the answer.
    fn decode(&self, input: &[u8], is_last: bool) -> Decoded;
}

/// What a decoder made of an input.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// Bytes that are done with, from the first.
    pub consumed: usize,
    /// The events, in order.
    pub events: Events,
    /// Where the bytes of each event end in the input: at least 1, never falling, at most `consumed`.
    pub ends: Vec<u32>,
    /// Bytes that are no event: in order, within `consumed`, outside of events.
    pub bad: Vec<BadBytes>,
}

/// Events without an identity.
#[derive(Debug, Clone)]
pub struct Events {
    /// Their bodies.
    pub body: BinaryArray,
    /// Their times; absent: when they were read.
    pub time: Option<Int64Array>,
    /// Their headers.
    pub headers: Vec<HeaderColumn>,
}

/// Bytes that are no event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadBytes {
    /// Where they are in the input.
    pub bytes: Range<usize>,
    /// Why they are none, for a person.
    pub reason: String,
    /// True if the codec said so itself; false if it failed on them.
    pub is_rejected: bool,
}

impl Decoded {
    /// Nothing.
    pub fn nothing() -> Decoded {
        let body = BinaryArray::from(Vec::<&[u8]>::new());
        let events = Events { body, time: None, headers: Vec::new() };
        Decoded { consumed: 0, events, ends: Vec::new(), bad: Vec::new() }
    }
}

/// The position of the event with this number (from 1) behind the first event of the same bytes. `position` is the
/// first one's. Unique for positions below 2^47: 128 TiB of a stream, or offsets of a partition.
pub fn further_position(position: u64, number: u64) -> u64 {
    1 << 63 | (position << 16) | (number & 0xffff)
}

/// Further events of the same bytes that have positions.
const FURTHER_MAX: usize = 0xffff;

/// An encoder in its place in a sink.
#[derive(Clone)]
pub struct EncoderLink {
    slot: Arc<dyn EncoderSlot>,
    on_reject: OnReject,
    metrics: Arc<ComponentMetrics>,
}

impl EncoderLink {
    /// With counters of its own.
    pub fn new(slot: Arc<dyn EncoderSlot>, on_reject: OnReject) -> EncoderLink {
        let metrics = ComponentMetrics::new(ComponentKind::Codec, slot.name().into());
        EncoderLink { slot, on_reject, metrics }
    }

    /// Its counters.
    pub fn metrics(&self) -> &Arc<ComponentMetrics> {
        &self.metrics
    }

    /// The codec's name in the pipeline.
    pub fn name(&self) -> &str {
        self.slot.name()
    }

    /// The version that a batch is encoded by, as a whole.
    pub fn current(&self) -> Arc<dyn Encoder> {
        self.slot.current()
    }

    /// Encodes a batch by this version. Rejected rows are left out if they are to be dropped.
    pub fn encode(&self, version: &dyn Encoder, batch: &Batch, file: Option<u64>) -> Encoded {
        let begin = Instant::now();
        // A panic here would be a bug of the host. It costs the batch its way, not its events.
        let encoded = catch_unwind(AssertUnwindSafe(|| version.encode(batch, file)));
        let mut encoded = encoded.unwrap_or_else(|_| self.panicked(batch));
        self.metrics.add(Metric::CodecNs, begin.elapsed().as_nanos() as u64);
        self.metrics.add(Metric::CodecCalls, 1);
        self.metrics.add(Metric::CodecEventsIn, batch.rows() as u64);
        self.metrics.add(Metric::CodecEventsOut, encoded.rows.rows() as u64);
        self.metrics.add(Metric::CodecBytesOut, encoded.bytes().len() as u64);
        for group in &encoded.quarantined {
            let metric = if group.rejected { Metric::CodecRejected } else { Metric::CodecFailed };
            self.metrics.add(metric, group.batch.rows() as u64);
        }
        if self.on_reject == OnReject::Drop {
            encoded.quarantined.retain(|group| !group.rejected);
        }
        encoded
    }

    fn panicked(&self, batch: &Batch) -> Encoded {
        let name = self.slot.name();
        tracing::error!(codec = name, events = batch.rows(), "the codec panicked; events go to quarantine");
        let quarantined = Quarantined {
            batch: batch.clone(),
            reasons: vec!["the codec panicked (a bug of Flumen)".to_owned(); batch.rows()],
            by: name.into(),
            hash: "".into(),
            rejected: false,
        };
        let payloads = BinaryArray::from(Vec::<&[u8]>::new());
        Encoded { rows: Batch::empty(), payloads, quarantined: vec![quarantined] }
    }
}

impl Encoded {
    /// All payloads, one after the other.
    pub fn bytes(&self) -> &[u8] {
        let offsets = self.payloads.value_offsets();
        match (offsets.first(), offsets.last()) {
            (Some(first), Some(last)) => {
                self.payloads.value_data().get(*first as usize..*last as usize).unwrap_or_default()
            }
            _ => &[],
        }
    }
}

impl std::fmt::Debug for EncoderLink {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_tuple("EncoderLink").field(&self.slot.name()).finish()
    }
}

impl std::fmt::Debug for DecoderLink {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_tuple("DecoderLink").field(&self.slot.name()).finish()
    }
}

/// A decoder in its place in a source.
#[derive(Clone)]
pub struct DecoderLink {
    slot: Arc<dyn DecoderSlot>,
    on_reject: OnReject,
    metrics: Arc<ComponentMetrics>,
}

/// Where an input was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The stream of its events.
    pub stream: u64,
    /// The position of its first byte.
    pub base: u64,
    /// The time of events that say nothing about it.
    pub time: i64,
}

/// What became of an input.
#[derive(Debug)]
pub struct Intake {
    /// Bytes that are done with.
    pub consumed: usize,
    /// The events.
    pub events: Batch,
    /// Bytes that are none.
    pub quarantined: Vec<Quarantined>,
}

impl DecoderLink {
    /// With counters of its own.
    pub fn new(slot: Arc<dyn DecoderSlot>, on_reject: OnReject) -> DecoderLink {
        let metrics = ComponentMetrics::new(ComponentKind::Codec, slot.name().into());
        DecoderLink { slot, on_reject, metrics }
    }

    /// Its counters.
    pub fn metrics(&self) -> &Arc<ComponentMetrics> {
        &self.metrics
    }

    /// Takes what is whole in the bytes of a stream. To be called again with the rest until nothing is consumed.
    /// An input of `bytes_max` bytes or more, or the last one, of which nothing can be consumed goes to quarantine.
    pub fn decode(&self, input: &[u8], is_last: bool, bytes_max: usize, origin: Origin) -> Intake {
        let version = self.slot.current();
        let mut decoded = self.call(version.as_ref(), input, is_last);
        if decoded.consumed == 0 && !input.is_empty() && (is_last || input.len() >= bytes_max) {
            decoded = no_end(input, is_last);
            self.metrics.add(Metric::CodecFailed, 1);
        }
        let key = |end: usize| origin.base.wrapping_add(end as u64);
        let mut numbers = Numbers::default();
        let mut positions = Vec::with_capacity(decoded.ends.len());
        positions.extend(decoded.ends.iter().map(|end| numbers.next(key(*end as usize))));
        let bad = std::mem::take(&mut decoded.bad);
        let bad = bad.into_iter().map(|bad| (key(bad.bytes.end), bad)).collect();
        self.intake(version.as_ref(), input, origin, decoded, positions, bad)
    }

    /// Takes a message: all of it, in one call or more. Its events have the message's own position and further ones.
    pub fn decode_message(&self, message: &[u8], origin: Origin) -> Intake {
        let version = self.slot.current();
        let mut numbers = Numbers::default();
        let mut whole = Intake { consumed: 0, events: Batch::empty(), quarantined: Vec::new() };
        let mut parts = Vec::new();
        loop {
            let input = message.get(whole.consumed..).unwrap_or_default();
            let mut decoded = self.call(version.as_ref(), input, true);
            let rows = numbers.given + decoded.ends.len() + decoded.bad.len();
            if decoded.consumed == 0 && !input.is_empty() {
                decoded = no_end(input, true);
                self.metrics.add(Metric::CodecFailed, 1);
            } else if rows > FURTHER_MAX {
                decoded = all_bad(input, format!("the message holds more than {FURTHER_MAX} events"));
            }
            let positions = decoded.ends.iter().map(|_| numbers.next(origin.base)).collect();
            let bad = std::mem::take(&mut decoded.bad);
            let bad = bad.into_iter().map(|bad| (numbers.next(origin.base), bad)).collect();
            let part = self.intake(version.as_ref(), input, origin, decoded, positions, bad);
            whole.consumed += part.consumed;
            whole.quarantined.extend(part.quarantined);
            parts.push(part.events);
            if whole.consumed >= message.len() {
                break;
            }
        }
        match Batch::concat(&parts) {
            Ok(events) => whole.events = events,
            Err(error) => {
                let bad = BadBytes { bytes: 0..message.len(), reason: too_much(&error), is_rejected: false };
                let position = origin.base;
                whole.quarantined =
                    self.quarantined(version.as_ref(), message, origin, vec![(position, bad)]);
            }
        }
        whole
    }

    fn call(&self, version: &dyn Decoder, input: &[u8], is_last: bool) -> Decoded {
        let begin = Instant::now();
        let decoded = catch_unwind(AssertUnwindSafe(|| version.decode(input, is_last)));
        self.metrics.add(Metric::CodecNs, begin.elapsed().as_nanos() as u64);
        self.metrics.add(Metric::CodecCalls, 1);
        let mut decoded = decoded.unwrap_or_else(|_| {
            tracing::error!(codec = self.slot.name(), "the codec panicked; its input goes to quarantine");
            all_bad(input, "the codec panicked (a bug of Flumen)".to_owned())
        });
        decoded.consumed = decoded.consumed.min(input.len());
        self.metrics.add(Metric::CodecBytesIn, decoded.consumed as u64);
        self.metrics.add(Metric::CodecEventsOut, decoded.ends.len() as u64);
        for bad in &decoded.bad {
            self.metrics.add(if bad.is_rejected { Metric::CodecRejected } else { Metric::CodecFailed }, 1);
        }
        decoded
    }

    fn intake(
        &self,
        version: &dyn Decoder,
        input: &[u8],
        origin: Origin,
        decoded: Decoded,
        positions: Vec<u64>,
        mut bad: Vec<(u64, BadBytes)>,
    ) -> Intake {
        let consumed = decoded.consumed;
        let last = positions.last().copied();
        let events = batch(decoded.events, positions, origin).unwrap_or_else(|error| {
            // Within the limits of an answer, and still more than a batch: all of it, as it was.
            let position = last.unwrap_or(origin.base);
            bad = vec![(
                position,
                BadBytes { bytes: 0..consumed, reason: too_much(&error), is_rejected: false },
            )];
            Batch::empty()
        });
        Intake { consumed, events, quarantined: self.quarantined(version, input, origin, bad) }
    }

    fn quarantined(
        &self,
        version: &dyn Decoder,
        input: &[u8],
        origin: Origin,
        bad: Vec<(u64, BadBytes)>,
    ) -> Vec<Quarantined> {
        let mut groups = Vec::new();
        for is_rejected in [true, false] {
            if is_rejected && self.on_reject == OnReject::Drop {
                continue;
            }
            let (mut rows, mut reasons) = (BatchBuilder::default(), Vec::new());
            for (position, bad) in bad.iter().filter(|(_, bad)| bad.is_rejected == is_rejected) {
                let bytes = input.get(bad.bytes.clone()).unwrap_or_default();
                rows.push(origin.stream, *position, origin.time, bytes);
                reasons.push(bad.reason.clone());
            }
            if rows.is_empty() {
                continue;
            }
            match rows.finish(Vec::new()) {
                Ok(batch) => groups.push(Quarantined {
                    batch,
                    reasons,
                    by: self.slot.name().into(),
                    hash: version.hash().clone(),
                    rejected: is_rejected,
                }),
                // The bytes of one input, each once, are a batch.
                Err(error) => {
                    tracing::error!(codec = self.slot.name(), %error, "bytes could not be quarantined");
                }
            }
        }
        groups
    }
}

fn batch(events: Events, positions: Vec<u64>, origin: Origin) -> Result<Batch, BatchError> {
    let Events { body, time, headers } = events;
    let rows = body.len();
    let time = time.unwrap_or_else(|| Int64Array::from(vec![origin.time; rows]));
    let stream = UInt64Array::from(vec![origin.stream; rows]);
    Batch::new(time, body, headers, stream, UInt64Array::from(positions))
}

fn too_much(error: &BatchError) -> String {
    format!("what the codec made of these bytes is no batch: {error}")
}

fn no_end(input: &[u8], is_last: bool) -> Decoded {
    let bytes = input.len();
    all_bad(
        input,
        match is_last {
            true => format!("the codec takes none of these {bytes} bytes, and nothing follows"),
            false => format!("the codec finds no whole event in {bytes} bytes (`max_line`)"),
        },
    )
}

fn all_bad(input: &[u8], reason: String) -> Decoded {
    let bytes = input.len();
    let bad = BadBytes { bytes: 0..bytes, reason, is_rejected: false };
    Decoded { consumed: bytes, bad: vec![bad], ..Decoded::nothing() }
}

/// Positions of events whose bytes have these keys, in order.
#[derive(Default)]
struct Numbers {
    key: Option<u64>,
    given: usize,
}

impl Numbers {
    fn next(&mut self, key: u64) -> u64 {
        if self.key.replace(key) != Some(key) {
            self.given = 0;
        }
        self.given += 1;
        match self.given - 1 {
            0 => key,
            number => further_position(key, number as u64),
        }
    }
}

/// As many events as one answer may have: their further numbers fit.
const _: () = assert!(limits::ROWS_MAX - 1 <= FURTHER_MAX);

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
