//! The value of a Kafka record as Flume writes it: one event as a bare Avro datum.
//!
//! ```text
//! datum   = headers body                    AvroFlumeEvent{map<string> headers; bytes body}, no magic, no schema
//! headers = { block } long(0)
//! block   = long(n) n*(text text)           or long(-n) long(bytes of the block) n*(text text)
//! text    = long(length) UTF-8              body = long(length) bytes
//! long    = zigzag, 7 bits a byte, low bits first, at most 10 bytes
//! ```
//! Source: Avro 1.11 specification, "Binary Encoding"; Flume's `KafkaSource` with `useFlumeEventFormat`.
//! Stricter than Flume's reader: bytes behind the body are an error, because text that is not of this format often
//! begins like it.

use thiserror::Error;

/// One event; borrows from the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// Names and values, in the order of the value.
    pub headers: Vec<(&'a str, &'a str)>,
    /// The body.
    pub body: &'a [u8],
}

/// Why a value is not an event. `at`: the byte where it stopped making sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FlumeAvroError {
    /// It ends too early.
    #[error("not in Flume's Avro format: it ends within {what}")]
    Short {
        /// Within what.
        what: &'static str,
    },
    /// A length that cannot be.
    #[error("not in Flume's Avro format: the length of {what} at byte {at} is impossible")]
    Length {
        /// Of what.
        what: &'static str,
        /// Where.
        at: usize,
    },
    /// A header that is not text.
    #[error("not in Flume's Avro format: a header at byte {at} is not UTF-8")]
    Text {
        /// Where.
        at: usize,
    },
    /// More follows the body.
    #[error("not in Flume's Avro format: {bytes} bytes follow the body")]
    Trailing {
        /// How many.
        bytes: usize,
    },
}

/// Appends a value: one block of headers, or none.
pub fn encode<'a>(headers: impl Iterator<Item = (&'a str, &'a str)> + Clone, body: &[u8], out: &mut Vec<u8>) {
    let count = headers.clone().count();
    if count > 0 {
        put_long(count as i64, out);
        for (name, value) in headers {
            put_bytes(name.as_bytes(), out);
            put_bytes(value.as_bytes(), out);
        }
    }
    put_long(0, out);
    put_bytes(body, out);
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put_long(bytes.len() as i64, out);
    out.extend_from_slice(bytes);
}

fn put_long(value: i64, out: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Reads one value. Allocates for the list of headers only, and never more than the value has bytes.
pub fn decode(bytes: &[u8]) -> Result<Event<'_>, FlumeAvroError> {
    let mut input = Input { all: bytes, at: 0 };
    let mut headers = Vec::new();
    loop {
        let count = input.long("the headers")?;
        if count == 0 {
            break;
        }
        if count < 0 {
            // The size of the block, for readers that skip it.
            input.length("a block of headers")?;
        }
        for _ in 0..count.unsigned_abs() {
            // Each takes two bytes at least, so a lying count ends with the input.
            headers.push((input.text()?, input.text()?));
        }
    }
    let body = input.bytes("the body")?;
    match input.rest() {
        0 => Ok(Event { headers, body }),
        bytes => Err(FlumeAvroError::Trailing { bytes }),
    }
}

struct Input<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn rest(&self) -> usize {
        self.all.len().saturating_sub(self.at)
    }

    fn long(&mut self, what: &'static str) -> Result<i64, FlumeAvroError> {
        let start = self.at;
        let mut value: u64 = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.all.get(self.at).ok_or(FlumeAvroError::Short { what })?;
            self.at += 1;
            // The tenth byte has room for one bit.
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()));
            }
        }
        Err(FlumeAvroError::Length { what, at: start })
    }

    fn length(&mut self, what: &'static str) -> Result<usize, FlumeAvroError> {
        let at = self.at;
        usize::try_from(self.long(what)?).map_err(|_| FlumeAvroError::Length { what, at })
    }

    fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], FlumeAvroError> {
        let length = self.length(what)?;
        let end = self.at.checked_add(length).ok_or(FlumeAvroError::Short { what })?;
        let bytes = self.all.get(self.at..end).ok_or(FlumeAvroError::Short { what })?;
        self.at = end;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&'a str, FlumeAvroError> {
        let bytes = self.bytes("a header")?;
        std::str::from_utf8(bytes).map_err(|_| FlumeAvroError::Text { at: self.at - bytes.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOLDEN: &[u8] = b"\x02\x08host\x08web1\x00\x0ahello";

    #[test]
    fn golden_bytes() {
        let event = decode(GOLDEN).unwrap();
        assert_eq!((event.headers, event.body), (vec![("host", "web1")], &b"hello"[..]));
        let plain = decode(b"\x00\x0ahello").unwrap();
        assert_eq!((plain.headers, plain.body), (vec![], &b"hello"[..]));
        // A block of negative count, with its size, and a second block.
        let blocks = decode(b"\x01\x08\x02a\x02b\x02\x02c\x00\x00\x00").unwrap();
        assert_eq!((blocks.headers, blocks.body), (vec![("a", "b"), ("c", "")], &b""[..]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |bytes: &[u8]| decode(bytes).unwrap_err().to_string();
        for end in 0..GOLDEN.len() {
            assert!(error(&GOLDEN[..end]).contains("ends within"), "{end}");
        }
        assert!(error(b"\x00\x02ab").contains("1 bytes follow"));
        assert!(error(b"\x02\x02\xff\x00\x00\x00").contains("byte 2 is not UTF-8"));
        assert!(error(b"\x00\x01").contains("length of the body at byte 1"));
        assert!(error(&[0xff; 20]).contains("length of the headers at byte 0"));
        // A count of 2^62 ends at once.
        assert!(error(b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f").contains("ends within"));
    }

    proptest! {
        #[test]
        fn foreign_bytes_are_an_event_or_an_error(bytes: Vec<u8>) {
            if let Ok(event) = decode(&bytes) {
                prop_assert!(event.body.len() < bytes.len());
            }
        }

        #[test]
        fn what_was_written_comes_back(headers: Vec<(String, String)>, body: Vec<u8>, splits in 1usize..4) {
            let mut value = Vec::new();
            for block in headers.chunks(splits) {
                put_long(block.len() as i64, &mut value);
                for text in block.iter().flat_map(|(name, text)| [name, text]) {
                    put_long(text.len() as i64, &mut value);
                    value.extend_from_slice(text.as_bytes());
                }
            }
            put_long(0, &mut value);
            put_long(body.len() as i64, &mut value);
            value.extend_from_slice(&body);
            let event = decode(&value).unwrap();
            let expected: Vec<(&str, &str)> = headers.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            prop_assert_eq!(event.headers, expected);
            prop_assert_eq!(event.body, &body[..]);
        }
    }

    #[test]
    fn golden_bytes_are_written() {
        let mut out = Vec::new();
        encode([("host", "web1")].into_iter(), b"hello", &mut out);
        assert_eq!(out, GOLDEN);
        out.clear();
        encode(std::iter::empty(), b"hello", &mut out);
        assert_eq!(out, b"\x00\x0ahello");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(headers: Vec<(String, String)>, body: Vec<u8>) {
            let mut out = Vec::new();
            let pairs = || headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            encode(pairs(), &body, &mut out);
            let event = decode(&out).unwrap();
            prop_assert_eq!(event.headers, pairs().collect::<Vec<_>>());
            prop_assert_eq!(event.body, &body);
        }
    }
}
