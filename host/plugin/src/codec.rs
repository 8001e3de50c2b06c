//! Versions of plugins as codecs: the same limits, instances and search for the guilty as interceptors have.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::builder::BinaryBuilder;
use arrow_array::{Array, BinaryArray};
use flumen_event::{Applied, Batch, Difference};
use flumen_pipeline::codec::{CodecError, Decoded, Encoded};
use flumen_pipeline::{Decoder, DecoderSlot, Encoder, EncoderSlot, Processed};

use crate::abi::FilePart;
use crate::answer;
use crate::byte_isolation::{self, DecodeAttempt};
use crate::failure::Failure;
use crate::isolation::{self, Attempt};
use crate::swap::PluginSlot;
use crate::version::PluginVersion;

/// Encodes; keeps the payloads of the calls that went well, whose rows the search for the guilty keeps.
struct Encoding<'a> {
    version: &'a PluginVersion,
    file: Option<u64>,
    payloads: Vec<BinaryArray>,
    bytes: usize,
}

impl Attempt for Encoding<'_> {
    fn attempt(&mut self, rows: &Batch, time: Duration, is_fresh: bool) -> Result<Applied, Failure> {
        let (file, reads) = (self.file, self.version.reads());
        let called = self.version.call_guest(is_fresh, |guest| {
            let encoded = guest.encode(rows, reads, file, time)?;
            let difference = Difference { rejected: encoded.rejected, ..Difference::default() };
            Ok((answer::apply(difference, rows)?, encoded.payloads))
        });
        let (applied, payloads) = called.and_then(|(applied, payloads)| {
            // Several answers, each within its limit, can be too much together.
            let bytes = self.bytes + payloads.value_data().len();
            if bytes > flumen_event::limits::BYTES_MAX {
                return Err(Failure::Oversized { limit_bytes: flumen_event::limits::BYTES_MAX as u64 });
            }
            self.bytes = bytes;
            Ok((applied, payloads))
        })?;
        self.payloads.push(payloads);
        Ok(applied)
    }

    fn settle(&mut self, goes_on: bool) {
        if !goes_on {
            self.payloads.pop();
        }
    }
}

impl Encoder for PluginVersion {
    fn hash(&self) -> &Arc<str> {
        self.shared_hash()
    }

    fn encode(&self, batch: &Batch, file: Option<u64>) -> Encoded {
        if batch.is_empty() {
            return Encoded { rows: Batch::empty(), payloads: joined(&[]), quarantined: Vec::new() };
        }
        let mut encoding = Encoding { version: self, file, payloads: Vec::new(), bytes: 0 };
        let isolated = isolation::isolate(&mut encoding, batch, self.limits().time);
        self.count(isolated.was_retried, isolated.was_bisected, isolated.was_exhausted);
        let payloads = joined(&encoding.payloads);
        let Processed { kept, quarantined, .. } = self.processed(batch.clone(), isolated);
        // Rows that are kept are those of the calls that went well, in their order. If that ever were not so, it must not
        // go unnoticed which payload is whose.
        let is_whole = kept.rows() == payloads.len();
        debug_assert!(is_whole, "{} rows, {} payloads", kept.rows(), payloads.len());
        match is_whole {
            true => Encoded { rows: kept, payloads, quarantined },
            false => {
                let reasons =
                    vec!["the host lost track of payloads (a bug of Flumen)".to_owned(); batch.rows()];
                let all = self.quarantined(batch.clone(), reasons, false);
                Encoded { rows: Batch::empty(), payloads: joined(&[]), quarantined: vec![all] }
            }
        }
    }

    fn begin(&self, seed: u64) -> Result<Vec<u8>, CodecError> {
        self.around(FilePart::Begin, seed)
    }

    fn end(&self, seed: u64) -> Result<Vec<u8>, CodecError> {
        self.around(FilePart::End, seed)
    }
}

impl PluginVersion {
    fn around(&self, part: FilePart, seed: u64) -> Result<Vec<u8>, CodecError> {
        let time = self.limits().time;
        let call = |is_fresh| self.call_guest(is_fresh, |guest| guest.around(part, seed, time));
        call(false).or_else(|_| call(true)).map_err(|failure| CodecError(failure.to_string()))
    }
}

/// Columns one after the other. A single one, the usual case, is not copied.
fn joined(columns: &[BinaryArray]) -> BinaryArray {
    if let [only] = columns {
        return only.clone();
    }
    let rows = columns.iter().map(BinaryArray::len).sum();
    let bytes = columns.iter().map(|column| column.value_data().len()).sum();
    let mut all = BinaryBuilder::with_capacity(rows, bytes);
    columns.iter().flatten().flatten().for_each(|value| all.append_value(value));
    all.finish()
}

impl DecodeAttempt for &PluginVersion {
    fn attempt(
        &mut self,
        input: &[u8],
        is_last: bool,
        time: Duration,
        is_fresh: bool,
    ) -> Result<Decoded, Failure> {
        self.call_guest(is_fresh, |guest| guest.decode(input, is_last, time))
    }
}

impl Decoder for PluginVersion {
    fn hash(&self) -> &Arc<str> {
        self.shared_hash()
    }

    fn decode(&self, input: &[u8], is_last: bool) -> Decoded {
        // Held while it decodes: a version decodes for one source, on one thread.
        let mut search = self.search.lock();
        let isolated = byte_isolation::isolate(&mut &*self, input, is_last, self.limits().time, &mut search);
        drop(search);
        self.count(isolated.was_retried, isolated.was_bisected, isolated.was_exhausted);
        isolated.decoded
    }
}

impl EncoderSlot for PluginSlot {
    fn name(&self) -> &str {
        &self.plan().name
    }

    fn current(&self) -> Arc<dyn Encoder> {
        self.version()
    }
}

impl DecoderSlot for PluginSlot {
    fn name(&self) -> &str {
        &self.plan().name
    }

    fn current(&self) -> Arc<dyn Decoder> {
        self.version()
    }
}
