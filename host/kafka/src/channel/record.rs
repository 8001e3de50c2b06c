//! An event as a Kafka record and back.
//!
//! Plain: the value is the body, the record's headers are the event's. The record's timestamp is when it was put, not the event's
//! time: a topic's retention counts from it, and would take an old event before anybody has read it.
//! Flume's: the value is a bare Avro datum of `AvroFlumeEvent` (a map of strings, then bytes; no magic, no schema id),
//! the key is the header `key`. Both carry the record header [`ID`]: u64 stream, u64 position, i64 time in ns,
//! little-endian, so that identity and time survive; Flume does not look at record headers. A record without it (of
//! another producer) is identified by topic, partition and offset.
//!
//! Foreign records are never refused, because a channel has nowhere to leave them: a value that is no Flume event stays
//! whole as the body and the event says so in the header [`PROBLEM`]; text that is not UTF-8 is replaced by what is.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::Array;
use arrow_array::builder::StringBuilder;
use flumen_event::{Batch, BatchBuilder, BatchError, HeaderColumn, limits as event_limits};
use rdkafka::Message;
use rdkafka::message::{Header, Headers, OwnedHeaders};

/// The record header that holds identity and time.
pub(super) const ID: &str = "flumen.id";
/// The record header of a record that is no event: it ends a transaction whose end a broker lost ([`crate::ends`]).
pub(super) const NOTHING: &str = "flumen.nothing";
/// The value of such a record in a topic of Flume's events: an event without headers and body, for those that do not know it.
pub(super) const FLUME_NOTHING: &[u8] = &[0, 0];
/// The event header that says why a record could not be read as what it should be.
pub(super) const PROBLEM: &str = "flumen.problem";
/// The event header that is the key of a record in Flume's form.
const KEY: &str = "key";

/// What a record takes on the wire beside value, key and headers, at most: lengths, attributes, deltas, the head of its batch.
const OVERHEAD_BYTES: usize = 128;
/// The same for one header.
const HEADER_OVERHEAD_BYTES: usize = 10;

/// Reads the rows of a batch as records, one after the other; its buffer is reused.
pub(super) struct Encoder<'a> {
    batch: &'a Batch,
    is_flume: bool,
    value: Vec<u8>,
}

impl<'a> Encoder<'a> {
    pub fn new(batch: &'a Batch, is_flume: bool) -> Self {
        Encoder { batch, is_flume, value: Vec::new() }
    }

    fn headers_of(batch: &Batch, row: usize) -> impl Iterator<Item = (&str, &str)> {
        batch
            .headers()
            .iter()
            .filter(move |header| header.values.is_valid(row))
            .map(move |header| (&*header.name, header.values.value(row)))
    }

    /// The value. Of a plain record it is the body itself.
    pub fn value(&mut self, row: usize) -> &[u8] {
        let body = self.batch.body().value(row);
        if !self.is_flume {
            return body;
        }
        self.value.clear();
        let count = Self::headers_of(self.batch, row).count();
        if count > 0 {
            push_long(&mut self.value, count as i64);
            for (name, value) in Self::headers_of(self.batch, row) {
                push_bytes(&mut self.value, name.as_bytes());
                push_bytes(&mut self.value, value.as_bytes());
            }
        }
        push_long(&mut self.value, 0);
        push_bytes(&mut self.value, body);
        &self.value
    }

    /// The key, if there is one.
    pub fn key(&self, row: usize) -> Option<&'a [u8]> {
        let keys = self.batch.header(KEY).filter(|keys| self.is_flume && keys.is_valid(row))?;
        Some(keys.value(row).as_bytes())
    }

    /// The record's headers.
    pub fn headers(&self, row: usize) -> OwnedHeaders {
        let mut id = [0; 24];
        let parts = [
            self.batch.stream().value(row).to_le_bytes(),
            self.batch.position().value(row).to_le_bytes(),
            self.batch.time().value(row).to_le_bytes(),
        ];
        id.copy_from_slice(parts.as_flattened());
        let names = if self.is_flume { 0 } else { self.batch.headers().len() };
        let mut headers =
            OwnedHeaders::new_with_capacity(1 + names).insert(Header { key: ID, value: Some(id.as_slice()) });
        if !self.is_flume {
            for (name, value) in Self::headers_of(self.batch, row) {
                headers = headers.insert(Header { key: name, value: Some(value) });
            }
        }
        headers
    }

    /// What the record takes on the wire, at most.
    pub fn bytes(&self, row: usize) -> usize {
        let headers: usize = Self::headers_of(self.batch, row)
            .map(|(name, value)| name.len() + value.len() + HEADER_OVERHEAD_BYTES)
            .sum();
        self.batch.body().value(row).len() + headers + self.key(row).map_or(0, <[u8]>::len) + OVERHEAD_BYTES
    }
}

/// True if a record is no event.
pub(super) fn is_nothing<M: Message>(message: &M) -> bool {
    // Few records are as short, and only of those the headers are looked at twice.
    let may_be = message.payload().is_none_or(|value| value.is_empty() || value == FLUME_NOTHING);
    let is_marked = || message.headers().is_some_and(|h| h.iter().any(|header| header.key == NOTHING));
    // See `Decoder::push`.
    may_be && catch_unwind(AssertUnwindSafe(is_marked)).unwrap_or(false)
}

/// Collects records into a batch.
pub(super) struct Decoder {
    is_flume: bool,
    rows: BatchBuilder,
    columns: Vec<(Arc<str>, StringBuilder)>,
}

impl Decoder {
    pub fn new(is_flume: bool) -> Self {
        Decoder { is_flume, rows: BatchBuilder::default(), columns: Vec::new() }
    }

    pub fn rows(&self) -> usize {
        self.rows.rows()
    }

    pub fn bytes(&self) -> usize {
        self.rows.bytes()
    }

    /// True if another record with unknown headers could break the limit of a batch.
    pub fn has_many_columns(&self) -> bool {
        self.columns.len() * 2 > event_limits::HEADERS_MAX
    }

    /// Takes a record. `stream`: the identity of records that have none.
    pub fn push<M: Message>(&mut self, message: &M, stream: u64) {
        let value = message.payload().unwrap_or_default();
        let mut headers: Vec<(Cow<'_, str>, Cow<'_, str>)> = Vec::new();
        let mut id = None;
        // A header's name that is not UTF-8 panics inside the client library: the record has no headers then.
        let read = catch_unwind(AssertUnwindSafe(|| {
            for header in message.headers().into_iter().flat_map(Headers::iter) {
                match header.value {
                    Some(value) if header.key == ID => id = parse_id(value),
                    Some(value) => headers.push((header.key.into(), String::from_utf8_lossy(value))),
                    None => {}
                }
            }
        }));
        let mut problem = read.is_err().then_some("a header's name is not UTF-8");
        let mut body = value;
        if self.is_flume {
            headers.clear();
            match flume_event(value) {
                Some((own, own_body)) => {
                    headers.extend(
                        own.into_iter()
                            .map(|(n, v)| (String::from_utf8_lossy(n), String::from_utf8_lossy(v))),
                    );
                    body = own_body;
                }
                None => problem = Some("not a Flume event"),
            }
            if let Some(key) = message.key() {
                headers.retain(|(name, _)| name != KEY);
                headers.push((KEY.into(), String::from_utf8_lossy(key)));
            }
        }
        if let Some(problem) = problem {
            headers.push((PROBLEM.into(), problem.into()));
        }
        let created = || message.timestamp().to_millis().unwrap_or(0).saturating_mul(1_000_000);
        let (stream, position, time) =
            id.unwrap_or_else(|| (stream, message.offset().unsigned_abs(), created()));
        self.rows.push(stream, position, time, body);
        for (name, value) in headers {
            self.set(&name, &value);
        }
    }

    /// One header of the row pushed last; the last of several with one name counts, as in Flume.
    fn set(&mut self, name: &str, value: &str) {
        if name.is_empty() || name.len() > event_limits::HEADER_NAME_BYTES_MAX {
            return;
        }
        let row = self.rows.rows().saturating_sub(1);
        let at = match self.columns.iter().position(|(known, _)| &**known == name) {
            Some(at) => at,
            None if self.columns.len() >= event_limits::HEADERS_MAX => return,
            None => {
                self.columns.push((name.into(), StringBuilder::new()));
                self.columns.len() - 1
            }
        };
        if let Some((_, column)) = self.columns.get_mut(at).filter(|(_, column)| builder_rows(column) <= row)
        {
            column.append_nulls(row - builder_rows(column));
            column.append_value(value);
        }
    }

    pub fn finish(mut self) -> Result<Batch, BatchError> {
        let rows = self.rows.rows();
        let columns = self.columns.iter_mut().map(|(name, column)| {
            column.append_nulls(rows - builder_rows(column));
            HeaderColumn { name: name.clone(), values: column.finish() }
        });
        let columns = columns.collect();
        self.rows.finish(columns)
    }
}

fn builder_rows(column: &StringBuilder) -> usize {
    arrow_array::builder::ArrayBuilder::len(column)
}

fn parse_id(value: &[u8]) -> Option<(u64, u64, i64)> {
    let (stream, rest) = value.split_first_chunk::<8>()?;
    let (position, rest) = rest.split_first_chunk::<8>()?;
    let time = rest.first_chunk::<8>().filter(|_| rest.len() == 8)?;
    Some((u64::from_le_bytes(*stream), u64::from_le_bytes(*position), i64::from_le_bytes(*time)))
}

type Pairs<'a> = Vec<(&'a [u8], &'a [u8])>;

/// Headers and body of an Avro datum; `None`: it is none, or something follows it.
fn flume_event(mut datum: &[u8]) -> Option<(Pairs<'_>, &[u8])> {
    let mut headers = Vec::new();
    loop {
        let mut count = take_long(&mut datum)?;
        if count == 0 {
            break;
        }
        if count < 0 {
            // A block that says its size.
            take_long(&mut datum)?;
            count = count.checked_neg()?;
        }
        // Each entry takes two bytes at least.
        if usize::try_from(count).ok()? > datum.len() / 2 {
            return None;
        }
        for _ in 0..count {
            headers.push((take_bytes(&mut datum)?, take_bytes(&mut datum)?));
        }
    }
    let body = take_bytes(&mut datum)?;
    datum.is_empty().then_some((headers, body))
}

fn push_long(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    push_long(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

fn take_long(from: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

fn take_bytes<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_long(from)?).ok()?;
    let (bytes, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::StringArray;
    use proptest::prelude::*;
    use rdkafka::Timestamp;
    use rdkafka::message::OwnedMessage;

    fn batch(rows: &[(&str, Option<&str>)]) -> Batch {
        let mut builder = BatchBuilder::default();
        for (row, (body, _)) in rows.iter().enumerate() {
            builder.push(9, row as u64, 1_700_000_000_123_456_789, body.as_bytes());
        }
        let values = StringArray::from(rows.iter().map(|(_, host)| *host).collect::<Vec<_>>());
        builder.finish(vec![HeaderColumn { name: "host".into(), values }]).unwrap()
    }

    fn through(batch: &Batch, is_flume: bool) -> Batch {
        let mut decoder = Decoder::new(is_flume);
        let mut encoder = Encoder::new(batch, is_flume);
        for row in 0..batch.rows() {
            let (headers, key) = (encoder.headers(row), encoder.key(row).map(<[u8]>::to_vec));
            let time = Timestamp::CreateTime(1);
            let value = Some(encoder.value(row).to_vec());
            decoder.push(&OwnedMessage::new(value, key, "t".into(), time, 0, 5, Some(headers)), 77);
        }
        decoder.finish().unwrap()
    }

    #[test]
    fn events_come_back() {
        let batch = batch(&[("hello", Some("web1")), ("", None), ("x", Some(""))]);
        assert_eq!(through(&batch, false), batch);
        assert_eq!(through(&batch, true), batch);
    }

    /// wire.md, D6: what Flume's Kafka channel writes.
    #[test]
    fn flume_bytes_are_flumes() {
        let batch = batch(&[("hello", Some("web1")), ("hello", None)]);
        let mut encoder = Encoder::new(&batch, true);
        assert_eq!(encoder.value(0), b"\x02\x08host\x08web1\x00\x0ahello");
        assert_eq!(encoder.value(1), b"\x00\x0ahello");
        // A block with its size, as Avro allows.
        let sized = b"\x01\x14\x08host\x08web1\x00\x0ahello";
        assert_eq!(flume_event(sized), Some((vec![(&b"host"[..], &b"web1"[..])], &b"hello"[..])));
    }

    #[test]
    fn what_is_no_event_is_known() {
        let time = Timestamp::CreateTime(3);
        let record = |value: &[u8], header| {
            let headers = OwnedHeaders::new().insert(Header { key: header, value: Some(b"") });
            OwnedMessage::new(Some(value.to_vec()), None, "t".into(), time, 0, 5, Some(headers))
        };
        assert!(is_nothing(&record(b"", NOTHING)) && is_nothing(&record(FLUME_NOTHING, NOTHING)));
        assert!(!is_nothing(&record(b"", ID)) && !is_nothing(&record(b"text", NOTHING)));
    }

    #[test]
    fn foreign_records_are_identified_by_their_place() {
        let mut decoder = Decoder::new(true);
        let time = Timestamp::CreateTime(3);
        let key = Some(b"k".to_vec());
        decoder.push(&OwnedMessage::new(Some(b"text".to_vec()), key, "t".into(), time, 0, 5, None), 77);
        decoder.push(&OwnedMessage::new(None, None, "t".into(), time, 0, 6, None), 77);
        let batch = decoder.finish().unwrap();
        assert_eq!((batch.stream().value(0), batch.position().value(1)), (77, 6));
        assert_eq!((batch.body().value(0), batch.time().value(0)), (&b"text"[..], 3_000_000));
        assert_eq!(batch.header(PROBLEM).unwrap().value(0), "not a Flume event");
        assert_eq!(batch.header(KEY).unwrap().value(0), "k");
        assert!(batch.header(KEY).unwrap().is_null(1));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_event_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            flume_event(&bytes);
            parse_id(&bytes);
        }

        #[test]
        fn longs_come_back(value in any::<i64>()) {
            let mut bytes = Vec::new();
            push_long(&mut bytes, value);
            prop_assert_eq!(take_long(&mut bytes.as_slice()), Some(value));
        }
    }
}
