//! What a record holds: value, key and headers, made of the rows of a batch.

use std::ffi::CString;
use std::sync::Arc;

use arrow_array::{Array, StringArray};
use flumen_event::Batch;
use flumen_kafka::flume_avro;
use flumen_kafka::produce::{self, Values};
use flumen_pipeline::sink::SinkContext;

use super::options::{HeadersSent, KeyOf, Settings, ValueForm};
use crate::sinks::encode::{Encoder, Encoding};

/// A batch and the values of its rows. With a codec, the rows that it made a value of: the others go to quarantine.
pub(super) fn of(settings: &Settings, context: &mut SinkContext, batch: Batch) -> (Batch, Arc<Values>) {
    let Some(codec) = &settings.codec else {
        let values = values(settings.value, &batch);
        return (batch, values);
    };
    let encoded = codec.encode(codec.current().as_ref(), &batch, None);
    context.quarantine_groups(encoded.quarantined);
    (encoded.rows, Arc::new(Values::Bodies(encoded.payloads)))
}

/// The values of a batch's rows. Bodies are not copied.
fn values(form: ValueForm, batch: &Batch) -> Arc<Values> {
    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    match form {
        ValueForm::Raw => return Arc::new(Values::Bodies(batch.body().clone())),
        ValueForm::Json => {
            let mut encoder = Encoder::new(Encoding::Json);
            for row in 0..batch.rows() {
                encoder.encode(batch, row..row + 1, &mut bytes, usize::MAX);
                // A line's end is for files.
                bytes.pop();
                ends.push(bytes.len());
            }
        }
        ValueForm::FlumeAvro => {
            for row in 0..batch.rows() {
                let headers = batch.headers().iter().filter(|header| header.values.is_valid(row));
                let headers = headers.map(|header| (&*header.name, header.values.value(row)));
                flume_avro::encode(headers, batch.body().value(row), &mut bytes);
                ends.push(bytes.len());
            }
        }
    }
    Arc::new(Values::Encoded { bytes, ends })
}

/// Keys and headers of a batch's rows.
pub(super) struct Columns<'a> {
    batch: &'a Batch,
    key: KeyColumn<'a>,
    headers: Vec<(CString, &'a StringArray)>,
}

enum KeyColumn<'a> {
    None,
    Header(Option<&'a StringArray>),
    BodyHash,
}

impl<'a> Columns<'a> {
    pub fn new(settings: &Settings, batch: &'a Batch) -> Columns<'a> {
        let is_sent = |name: &str| match &settings.headers {
            HeadersSent::None => false,
            HeadersSent::All => true,
            HeadersSent::These(names) => names.iter().any(|sent| sent == name),
        };
        let sent = batch.headers().iter().filter(|header| is_sent(&header.name));
        // A name with a 0 in it cannot be said to librdkafka.
        let headers = sent.filter_map(|header| Some((CString::new(&*header.name).ok()?, &header.values)));
        let key = match &settings.key {
            KeyOf::None => KeyColumn::None,
            KeyOf::Header(name) => KeyColumn::Header(batch.header(name)),
            KeyOf::BodyHash => KeyColumn::BodyHash,
        };
        Columns { batch, key, headers: headers.collect() }
    }

    /// The key of a row; `scratch` is where it is made if it is not a column.
    pub fn key<'s>(&self, row: usize, scratch: &'s mut [u8; 16]) -> Option<&'s [u8]>
    where
        'a: 's,
    {
        match &self.key {
            KeyColumn::None => None,
            KeyColumn::Header(column) => {
                let column: &'a StringArray = (*column)?;
                column.is_valid(row).then(|| column.value(row).as_bytes())
            }
            KeyColumn::BodyHash => {
                let hash = blake3::hash(self.batch.body().value(row));
                let digits = hash.as_bytes().iter().flat_map(|byte| [byte >> 4, byte & 15]);
                for (digit, place) in digits.zip(scratch.iter_mut()) {
                    *place = char::from_digit(u32::from(digit), 16).map_or(b'0', |digit| digit as u8);
                }
                Some(scratch)
            }
        }
    }

    /// No row has more bytes of key and headers, as librdkafka counts them.
    pub fn bytes_max(&self) -> usize {
        let longest = |column: &StringArray| produce::longest(column.value_offsets());
        let key = match &self.key {
            KeyColumn::None => 0,
            KeyColumn::Header(column) => column.map_or(0, longest),
            KeyColumn::BodyHash => 16,
        };
        let header = |(name, values): &(CString, &StringArray)| header_bytes(name, longest(values));
        key + self.headers.iter().map(header).sum::<usize>()
    }

    /// The headers of a row, into `out`.
    pub fn headers<'s>(&'s self, row: usize, out: &mut Vec<(&'s CString, &'s [u8])>) {
        out.clear();
        let present = self.headers.iter().filter(|(_, values)| values.is_valid(row));
        out.extend(present.map(|(name, values)| (name, values.value(row).as_bytes())));
    }
}

/// Bytes of a record's header with its lengths.
pub(super) fn header_bytes(name: &CString, value: usize) -> usize {
    name.as_bytes().len() + value + 10
}

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_event::{BatchBuilder, HeaderColumn};

    fn batch() -> Batch {
        let mut builder = BatchBuilder::default();
        builder.push(1, 0, 1_700_000_000_000_000_000, b"hello");
        builder.push(1, 5, 0, b"");
        let host = [Some("web1"), None].into_iter().collect();
        builder.finish(vec![HeaderColumn { name: "host".into(), values: host }]).unwrap()
    }

    #[test]
    fn values_in_each_form() {
        let value = |form, row| String::from_utf8_lossy(values(form, &batch()).get(row)).into_owned();
        assert_eq!(value(ValueForm::Raw, 0), "hello");
        assert_eq!(value(ValueForm::Raw, 1), "");
        assert_eq!(
            value(ValueForm::Json, 0),
            r#"{"time":"2023-11-14T22:13:20.000000000Z","body":"hello","headers":{"host":"web1"},"stream":"0000000000000001","position":0}"#
        );
        assert!(value(ValueForm::Json, 1).ends_with("\"position\":5}"));
        // shared/wire.md D6.
        assert_eq!(value(ValueForm::FlumeAvro, 0), "\x02\x08host\x08web1\x00\x0ahello");
        assert_eq!(value(ValueForm::FlumeAvro, 1), "\x00\x00");
        assert_eq!(value(ValueForm::FlumeAvro, 2), "");
    }

    #[test]
    fn no_row_has_more_bytes_than_is_said() {
        let with = |words: &[(&str, &str)]| super::super::options::tests::settings(words).unwrap();
        let batch = batch();
        for (form, longest) in [(ValueForm::Raw, 5), (ValueForm::FlumeAvro, 18)] {
            let values = values(form, &batch);
            assert_eq!(values.longest(), longest);
            assert!((0..2).all(|row| values.get(row).len() <= longest));
        }
        let of = |words: &[(&str, &str)]| Columns::new(&with(words), &batch).bytes_max();
        assert_eq!(of(&[]), 0);
        assert_eq!(of(&[("key", "body-hash")]), 16);
        assert_eq!(of(&[("key", "header.host")]), 4);
        assert_eq!(of(&[("key", "header.host"), ("headers", "*")]), 4 + "host".len() + 4 + 10);
    }

    #[test]
    fn keys_and_headers() {
        let with = |words: &[(&str, &str)]| super::super::options::tests::settings(words).unwrap();
        let batch = batch();
        let key = |settings: &Settings, row| {
            let mut scratch = [0; 16];
            Columns::new(settings, &batch).key(row, &mut scratch).map(<[u8]>::to_vec)
        };
        assert_eq!(key(&with(&[]), 0), None);
        assert_eq!(key(&with(&[("key", "header.host")]), 0), Some(b"web1".to_vec()));
        assert_eq!(key(&with(&[("key", "header.host")]), 1), None);
        assert_eq!(key(&with(&[("key", "header.no")]), 0), None);
        assert_eq!(
            key(&with(&[("key", "body-hash")]), 0),
            Some(b"ea8f163db38682925e4491c5e58d4bb3"[..16].to_vec())
        );
        for (sent, expected) in [("*", 1), ("host,no", 1), ("no", 0)] {
            let settings = with(&[("headers", sent)]);
            let columns = Columns::new(&settings, &batch);
            let mut out = Vec::new();
            columns.headers(0, &mut out);
            assert_eq!(out.len(), expected, "{sent}");
            columns.headers(1, &mut out);
            assert!(out.is_empty(), "{sent}");
        }
    }
}
