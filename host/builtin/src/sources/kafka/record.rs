//! A record of Kafka as an event, or as a row of the quarantine.
//!
//! Everything is checked before the first header is set, because a row that was begun has to be ended. Header values
//! and keys that are not UTF-8 are kept as `NAME.hex`; a header that is there twice is kept as `NAME` and `NAME.2`; a
//! header without a value is an empty one. What cannot be an event goes to quarantine with the record as it was.

use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use flumen_event::limits::HEADER_NAME_BYTES_MAX;
use flumen_kafka::flume_avro;
use flumen_kafka::rdkafka::Message;
use flumen_kafka::rdkafka::message::Headers;

use super::limits::{HEADER_BYTES_MAX, HEADERS_MAX, RECORD_BYTES_MAX};
use super::options::{OwnHeaders, Value};
use super::partitions::Partition;
use super::rows::Rows;
use crate::sources::now_ns;

/// Header (`"true"`) of the event of a record without a value.
pub const TOMBSTONE_HEADER: &str = "tombstone";
/// Header of a row of the quarantine that is one part of a record: `2/7`.
pub const PART_HEADER: &str = "flumen.part";
/// Header of a row of the quarantine: the record's headers as lines `name=hex of the value`, where they cannot be headers.
pub const RAW_HEADERS_HEADER: &str = "flumen.record_headers";

/// Header that holds the record's key, here and in Flume.
const KEY_HEADER: &str = "key";
const HEX_SUFFIX: &str = ".hex";

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A row of the batch.
    Taken,
    /// Rows of the quarantine, and why.
    Rejected {
        /// How many.
        rows: usize,
        /// Why.
        reason: String,
    },
}

/// How records become rows.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// What a value is.
    pub value: Value,
    /// Headers that the source makes.
    pub own: OwnHeaders,
}

impl Shape {
    /// Adds a record to `kept`, or to `rejected`.
    pub fn add<M: Message>(
        &self,
        record: &M,
        partition: &Partition,
        kept: &mut Rows,
        rejected: &mut Rows,
    ) -> Outcome {
        let body = record.payload().unwrap_or_default();
        let (event, has_headers) = match self.checked(record, body) {
            Ok(checked) => checked,
            Err((reason, has_headers)) => {
                let rows = self.reject(record, partition, body, has_headers, rejected);
                return Outcome::Rejected { rows, reason };
            }
        };
        // Flume's readers put the record's key over the event's own; here too, so that both see the same.
        let key = record.key().filter(|_| self.own.key && event.is_some());
        let key = key.and_then(|key| std::str::from_utf8(key).ok());
        if let Some(key) = key {
            kept.header(KEY_HEADER, key);
        }
        for (name, value) in event.iter().flat_map(|event| &event.headers) {
            if key.is_none() || *name != KEY_HEADER {
                kept.repeated_header(name, value);
            }
        }
        if has_headers {
            each_header(record, |name, value| put(kept, name, value));
        }
        if record.payload().is_none() {
            kept.header(TOMBSTONE_HEADER, "true");
        }
        self.own_headers(record, partition, kept);
        let body = event.map_or(body, |event| event.body);
        kept.push(partition.stream, record.offset().unsigned_abs(), time_ns(record), body);
        Outcome::Taken
    }

    /// The event inside the value, if values hold one, and whether the record's own headers can be used. Or why this
    /// is no event, and whether its headers can at least be listed.
    pub(super) fn checked<'r, M: Message>(&self, record: &'r M, body: &'r [u8]) -> Checked<'r> {
        let headers = match self.own.record {
            true => check_headers(record),
            false => Ok(false),
        };
        if body.len() > RECORD_BYTES_MAX {
            let reason =
                format!("the value has {} bytes; at most {RECORD_BYTES_MAX} are an event", body.len());
            return Err((reason, headers.is_ok_and(|there| there)));
        }
        let has_headers = headers?;
        let key_bytes = record.key().map_or(0, <[u8]>::len);
        if key_bytes > HEADER_BYTES_MAX {
            return Err((
                format!("the key has {key_bytes} bytes; at most {HEADER_BYTES_MAX} are a header"),
                has_headers,
            ));
        }
        if self.value == Value::Raw || record.payload().is_none() {
            return Ok((None, has_headers));
        }
        let event = flume_avro::decode(body).map_err(|error| (error.to_string(), has_headers))?;
        check_names(event.headers.iter().map(|(name, value)| (*name, value.len())))
            .map_err(|reason| (reason, has_headers))?;
        Ok((Some(event), has_headers))
    }

    /// What tells where the record was. An event that brings such a header keeps its own, as with Flume (whose event
    /// has the record's key by now).
    pub(super) fn own_headers<M: Message>(&self, record: &M, partition: &Partition, rows: &mut Rows) {
        let mut digits = Digits::default();
        if self.own.topic {
            rows.header("topic", &partition.topic);
        }
        if self.own.partition {
            rows.header("partition", &partition.number_text);
        }
        if self.own.offset {
            rows.header("offset", digits.of(record.offset()));
        }
        if self.own.timestamp
            && let Some(ms) = record.timestamp().to_millis()
        {
            rows.header("timestamp", digits.of(ms));
        }
        if self.own.key
            && let Some(key) = record.key()
        {
            match std::str::from_utf8(key) {
                Ok(key) => rows.header(KEY_HEADER, key),
                Err(_) => rows.header("key.hex", &hex(key)),
            };
        }
    }

    pub(super) fn reject<M: Message>(
        &self,
        record: &M,
        partition: &Partition,
        body: &[u8],
        has_headers: bool,
        rows: &mut Rows,
    ) -> usize {
        let parts = body.len().div_ceil(RECORD_BYTES_MAX).max(1);
        for part in 0..parts {
            if parts > 1 {
                rows.header(PART_HEADER, &format!("{}/{parts}", part + 1));
            }
            if part == 0 && has_headers {
                rows.header(RAW_HEADERS_HEADER, &listed(record));
            }
            if part == 0 {
                self.own_headers(record, partition, rows);
            }
            let start = part * RECORD_BYTES_MAX;
            let end = body.len().min(start + RECORD_BYTES_MAX);
            let bytes = body.get(start..end).unwrap_or_default();
            rows.push(partition.stream, record.offset().unsigned_abs(), time_ns(record), bytes);
        }
        parts
    }
}

pub(super) type Checked<'r> = Result<(Option<flume_avro::Event<'r>>, bool), (String, bool)>;

/// Whether there are headers, all of which can be columns. Else why not, and whether they can be listed.
fn check_headers<M: Message>(record: &M) -> Result<bool, (String, bool)> {
    let Some(headers) = record.headers() else { return Ok(false) };
    // rdkafka panics at a name that is not UTF-8, and there is no other way to a header.
    let checked = catch_unwind(AssertUnwindSafe(|| {
        check_names(headers.iter().map(|header| (header.key, header.value.map_or(0, <[u8]>::len))))
    }));
    match checked {
        Ok(Ok(())) => Ok(true),
        Ok(Err(reason)) => Err((reason, true)),
        Err(_) => Err(("a header's name is not UTF-8; the record's headers are left out here".into(), false)),
    }
}

fn check_names<'n>(headers: impl Iterator<Item = (&'n str, usize)>) -> Result<(), String> {
    let (mut count, mut bytes) = (0, 0);
    let mut wrong = None;
    // To the end even if something is wrong: a name that cannot be read must be found.
    for (name, value_bytes) in headers {
        count += 1;
        bytes += name.len() + value_bytes;
        // Room for `.hex` and `.256`.
        if name.is_empty() || name.len() > HEADER_NAME_BYTES_MAX - 8 {
            wrong = Some(format!(
                "a header's name has {} bytes; 1 to {} can be",
                name.len(),
                HEADER_NAME_BYTES_MAX - 8
            ));
        }
    }
    if count > HEADERS_MAX {
        wrong = Some(format!("{count} headers; an event has at most {HEADERS_MAX}"));
    }
    if bytes > HEADER_BYTES_MAX {
        wrong = Some(format!("the headers have {bytes} bytes; at most {HEADER_BYTES_MAX} can be"));
    }
    wrong.map_or(Ok(()), Err)
}

pub(super) fn each_header<M: Message>(record: &M, mut visit: impl FnMut(&str, &[u8])) {
    let Some(headers) = record.headers() else { return };
    for index in 0..headers.count() {
        if let Some(header) = headers.try_get(index) {
            visit(header.key, header.value.unwrap_or_default());
        }
    }
}

pub(super) fn put(rows: &mut Rows, name: &str, value: &[u8]) {
    match std::str::from_utf8(value) {
        Ok(text) => rows.repeated_header(name, text),
        Err(_) => rows.repeated_header(&format!("{name}{HEX_SUFFIX}"), &hex(value)),
    }
}

/// Headers as text, up to the size of a record's value.
fn listed<M: Message>(record: &M) -> String {
    let mut text = String::new();
    each_header(record, |name, value| {
        if text.len() + name.len() + 2 * value.len() < RECORD_BYTES_MAX {
            text.push_str(name);
            text.push('=');
            text.push_str(&hex(value));
            text.push('\n');
        }
    });
    text
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string cannot fail.
        write!(text, "{byte:02x}").ok();
    }
    text
}

pub(super) fn time_ns<M: Message>(record: &M) -> i64 {
    record.timestamp().to_millis().map_or_else(now_ns, |ms| ms.saturating_mul(1_000_000))
}

/// A number as text, without an allocation.
#[derive(Default)]
struct Digits([u8; 20]);

impl Digits {
    fn of(&mut self, number: i64) -> &str {
        let mut at = self.0.len();
        let mut rest = number.unsigned_abs();
        loop {
            at -= 1;
            if let Some(digit) = self.0.get_mut(at) {
                *digit = b'0' + (rest % 10) as u8;
            }
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        if number < 0 {
            at -= 1;
            if let Some(sign) = self.0.get_mut(at) {
                *sign = b'-';
            }
        }
        self.0.get(at..).and_then(|digits| std::str::from_utf8(digits).ok()).unwrap_or("0")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::kafka::partitions::{Position, Table};
    use flumen_event::Batch;
    use flumen_kafka::rdkafka::Timestamp;
    use flumen_kafka::rdkafka::message::{Header, OwnedHeaders, OwnedMessage};
    use proptest::prelude::*;

    const ALL: OwnHeaders =
        OwnHeaders { topic: true, partition: true, offset: true, timestamp: true, key: true, record: true };

    fn record(value: Option<&[u8]>, key: Option<&[u8]>, headers: &[(&str, Option<&[u8]>)]) -> OwnedMessage {
        let owned = headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: *value }));
        let headers = (!headers.is_empty()).then_some(owned);
        let (value, key) = (value.map(<[u8]>::to_vec), key.map(<[u8]>::to_vec));
        OwnedMessage::new(value, key, "t".into(), Timestamp::CreateTime(1_500), 3, 42, headers)
    }

    fn add(value: Value, record: &OwnedMessage) -> (Outcome, Batch, Batch) {
        let mut table = Table::new("k".into(), Vec::new()).unwrap();
        let index = table.index("t", 3);
        table.set(index, Position { next: 0, generation: 0 });
        let (mut kept, mut rejected) = Default::default();
        let outcome =
            Shape { value, own: ALL }.add(record, table.get(index).unwrap(), &mut kept, &mut rejected);
        (outcome, kept.finish().unwrap(), rejected.finish().unwrap())
    }

    fn header<'b>(batch: &'b Batch, name: &str) -> Option<&'b str> {
        batch.header(name).map(|column| column.value(0))
    }

    #[test]
    fn a_record_is_an_event_with_where_it_was() {
        let (outcome, kept, rejected) = add(
            Value::Raw,
            &record(Some(b"body"), Some(b"k"), &[("a", Some(b"1")), ("a", None), ("b", Some(b"\xff"))]),
        );
        assert_eq!((outcome, rejected.rows()), (Outcome::Taken, 0));
        assert_eq!(kept.body().value(0), b"body");
        assert_eq!((kept.time().value(0), kept.position().value(0)), (1_500_000_000, 42));
        for (name, value) in [
            ("topic", "t"),
            ("partition", "3"),
            ("offset", "42"),
            ("timestamp", "1500"),
            ("key", "k"),
            ("a", "1"),
            ("a.2", ""),
            ("b.hex", "ff"),
        ] {
            assert_eq!(header(&kept, name), Some(value), "{name}");
        }
        let (_, kept, _) = add(Value::Raw, &record(None, Some(b"\xfe"), &[("topic", Some(b"mine"))]));
        assert_eq!(kept.body().value(0), b"");
        let found = ["tombstone", "key.hex", "topic", "key"].map(|name| header(&kept, name));
        assert_eq!(found, [Some("true"), Some("fe"), Some("mine"), None]);
    }

    #[test]
    fn flume_values_bring_headers_and_poison_is_kept_as_it_was() {
        let (outcome, kept, _) =
            add(Value::FlumeAvro, &record(Some(b"\x02\x08host\x08web1\x00\x0ahello"), None, &[]));
        assert_eq!(outcome, Outcome::Taken);
        assert_eq!((kept.body().value(0), header(&kept, "host")), (&b"hello"[..], Some("web1")));
        let keyed = b"\x04\x06key\x0ainner\x02a\x021\x00\x00";
        for (key, expected) in [(&b"outer"[..], "outer"), (b"\xfe", "inner")] {
            let (_, kept, _) = add(Value::FlumeAvro, &record(Some(keyed), Some(key), &[]));
            assert_eq!((header(&kept, "key"), header(&kept, "a")), (Some(expected), Some("1")));
            assert_eq!(header(&kept, "key.2"), None);
        }
        let poison = record(Some(b"plain text"), Some(b"k"), &[("a", Some(b"1"))]);
        let (outcome, kept, rejected) = add(Value::FlumeAvro, &poison);
        let Outcome::Rejected { rows: 1, reason } = outcome else { panic!("{outcome:?}") };
        assert!(reason.contains("Flume's Avro"), "{reason}");
        assert_eq!((kept.rows(), rejected.body().value(0)), (0, &b"plain text"[..]));
        assert_eq!(
            (header(&rejected, "key"), header(&rejected, RAW_HEADERS_HEADER)),
            (Some("k"), Some("a=31\n"))
        );
    }

    #[test]
    fn what_is_over_a_limit_goes_whole() {
        let large = vec![7; RECORD_BYTES_MAX + 1];
        let (outcome, _, rejected) = add(Value::Raw, &record(Some(&large), None, &[("a", Some(b"1"))]));
        assert!(matches!(outcome, Outcome::Rejected { rows: 2, .. }), "{outcome:?}");
        assert_eq!((rejected.body().value(0).len(), rejected.body().value(1).len()), (RECORD_BYTES_MAX, 1));
        assert_eq!((header(&rejected, PART_HEADER), header(&rejected, "topic")), (Some("1/2"), Some("t")));
        assert_eq!(rejected.identity(0), rejected.identity(1));
        let many: Vec<_> = (0..=HEADERS_MAX).map(|number| format!("h{number}")).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_str(), Some(&b"x"[..]))).collect();
        for (wrong, reason) in [
            (record(Some(b"v"), None, &many), "257 headers"),
            (record(Some(b"v"), None, &[("", Some(b"x"))]), "name has 0 bytes"),
            (record(Some(b"v"), None, &[(&"n".repeat(248), Some(b"x"))]), "name has 248 bytes"),
            (record(Some(b"v"), None, &[("n", Some(&large[..=HEADER_BYTES_MAX]))]), "the headers have"),
            (record(Some(b"v"), Some(&large[..=HEADER_BYTES_MAX]), &[]), "the key has"),
        ] {
            let (outcome, kept, rejected) = add(Value::Raw, &wrong);
            let Outcome::Rejected { reason: said, .. } = outcome else { panic!("{reason}: {outcome:?}") };
            assert!(said.contains(reason), "{said}");
            assert_eq!((kept.rows(), rejected.rows()), (0, 1));
        }
    }

    #[test]
    fn numbers_are_written() {
        for number in [0, 7, 10, -1, i64::MAX, i64::MIN] {
            assert_eq!(Digits::default().of(number), number.to_string());
        }
    }

    proptest! {
        #[test]
        fn any_record_is_one_row(
            value: Option<Vec<u8>>, key: Option<Vec<u8>>,
            headers in prop::collection::vec(("[a-c]{0,2}", prop::option::of(prop::collection::vec(any::<u8>(), 0..3))), 0..6),
            is_avro: bool,
        ) {
            let borrowed: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
            let record = record(value.as_deref(), key.as_deref(), &borrowed);
            let (_, kept, rejected) = add(if is_avro { Value::FlumeAvro } else { Value::Raw }, &record);
            prop_assert_eq!(kept.rows() + rejected.rows(), 1);
            if rejected.rows() == 1 || !is_avro {
                let body = if kept.rows() == 1 { kept.body().value(0) } else { rejected.body().value(0) };
                prop_assert_eq!(body, value.as_deref().unwrap_or_default());
            }
        }
    }
}
