//! Records whose values a codec decodes: one value is one whole input.
//!
//! The first event of a record has the record's offset as its position, the others have further positions of it, so a
//! record that is read again gives the same identities. All events of a record are in one emission, with the offset
//! behind it. Bytes that are no event go to quarantine with the codec's name and hash; the record's other events go on.

use flumen_event::Batch;
use flumen_kafka::rdkafka::Message;
use flumen_pipeline::codec::{Intake, Origin};
use flumen_pipeline::{DecoderLink, Quarantined};

use super::limits::{DECODED_BYTES_MAX, HEADERS_MAX};
use super::out::Out;
use super::partitions::Partition;
use super::record::{Outcome, Shape, each_header, put, time_ns};
use super::rows::Rows;

/// What became of a value.
pub enum Decoded {
    /// Events and bytes that are none.
    Events(Box<Intake>),
    /// More than a batch can hold: why.
    TooMuch(String),
}

impl Shape {
    /// Decodes a record's value. `None`: it has none, or something else is wrong with the record.
    pub fn decode<M: Message>(&self, codec: &DecoderLink, record: &M, stream: u64) -> Option<Decoded> {
        let value = record.payload()?;
        self.checked(record, value).ok()?;
        let base = record.offset().unsigned_abs();
        let intake = codec.decode_message(value, Origin { stream, base, time: time_ns(record) });
        let names = intake.events.headers().len();
        if names > HEADERS_MAX {
            let reason = format!("its events have {names} headers; at most {HEADERS_MAX} can be");
            return Some(Decoded::TooMuch(reason));
        }
        let mut own = record.topic().len() + record.key().map_or(0, <[u8]>::len) + 64;
        each_header(record, |name, value| own += name.len() + 2 * value.len());
        let bytes = intake.events.bytes() + intake.events.rows() * own;
        if bytes > DECODED_BYTES_MAX {
            let reason =
                format!("its events have {bytes} bytes; at most {DECODED_BYTES_MAX} are taken of a record");
            return Some(Decoded::TooMuch(reason));
        }
        Some(Decoded::Events(Box::new(intake)))
    }

    /// Adds what became of a record's value.
    pub fn add_decoded<M: Message>(
        &self,
        record: &M,
        partition: &Partition,
        decoded: Decoded,
        out: &mut Out,
    ) -> Outcome {
        let intake = match decoded {
            Decoded::Events(intake) => intake,
            Decoded::TooMuch(reason) => {
                let value = record.payload().unwrap_or_default();
                let rows = self.reject(record, partition, value, self.own.record, &mut out.rejected);
                return Outcome::Rejected { rows, reason };
            }
        };
        for row in 0..intake.events.rows() {
            self.event(record, partition, &intake.events, row, &mut out.kept);
        }
        for group in intake.quarantined {
            let mut rows = Rows::default();
            for row in 0..group.batch.rows() {
                self.event(record, partition, &group.batch, row, &mut rows);
            }
            match rows.finish() {
                Ok(batch) => out.quarantine(Quarantined { batch, ..group }),
                Err(error) => {
                    tracing::warn!(%error, "bytes go to quarantine without the record's headers");
                    out.quarantine(group);
                }
            }
        }
        Outcome::Taken
    }

    /// Adds a row of a batch, with the record's headers behind its own.
    fn event<M: Message>(
        &self,
        record: &M,
        partition: &Partition,
        events: &Batch,
        row: usize,
        rows: &mut Rows,
    ) {
        for header in events.headers() {
            if arrow_array::Array::is_valid(&header.values, row) {
                rows.header(&header.name, header.values.value(row));
            }
        }
        if self.own.record {
            each_header(record, |name, value| put(rows, name, value));
        }
        self.own_headers(record, partition, rows);
        let (position, time) = (events.position().value(row), events.time().value(row));
        rows.push(partition.stream, position, time, events.body().value(row));
    }
}
