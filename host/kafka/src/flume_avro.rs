//! Values in Flume's own format, as its Kafka channel writes them and its sink and source do on demand.
//!
//! A bare Avro datum of the record `AvroFlumeEvent {headers: map<string>, body: bytes}`: no magic, no schema id.
//!
//! ```text
//! map    blocks, then a 0: count (of entries) | [negative count, size in bytes] , each entry: string, string
//! body   bytes
//! string, bytes   length, then that many bytes
//! number zigzag varint of 64 bits, little end first
//! ```
//!
//! Sources: Flume `flume.avdl`; the Avro specification, "Binary encoding". Written: one block with a positive count.
//!
//! How it fails: [`decode`] takes any bytes and gives an event or a reason; it allocates nothing.

use std::str::Utf8Error;

use thiserror::Error;

/// Why bytes are no event in Flume's format.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// They end in the middle.
    #[error("it ends in the middle, after {0} bytes")]
    Short(usize),
    /// A number has more than 64 bits.
    #[error("a number at byte {0} has more than 64 bits")]
    Number(usize),
    /// A length or count is negative or beyond the bytes that there are.
    #[error("a length at byte {at} is {length}")]
    Length {
        /// Where.
        at: usize,
        /// What it says.
        length: i64,
    },
    /// A header is not text.
    #[error("a header is not UTF-8: {0}")]
    Text(#[from] Utf8Error),
    /// There is something behind the body.
    #[error("{0} bytes follow behind the event")]
    Behind(usize),
}

/// Appends an event.
pub fn encode<'a>(headers: impl Iterator<Item = (&'a str, &'a str)> + Clone, body: &[u8], out: &mut Vec<u8>) {
    let count = headers.clone().count();
    if count > 0 {
        number(count as i64, out);
        for (name, value) in headers {
            bytes(name.as_bytes(), out);
            bytes(value.as_bytes(), out);
        }
    }
    number(0, out);
    bytes(body, out);
}

fn bytes(bytes: &[u8], out: &mut Vec<u8>) {
    number(bytes.len() as i64, out);
    out.extend_from_slice(bytes);
}

fn number(value: i64, out: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Reads an event: hands each header to `header` (name, value; a name may come twice, the last one counts) and
/// returns the body.
pub fn decode<'a>(
    bytes: &'a [u8],
    mut header: impl FnMut(&'a str, &'a str),
) -> Result<&'a [u8], DecodeError> {
    let mut input = Input { bytes, at: 0 };
    loop {
        let at = input.at;
        let mut count = input.number()?;
        if count == 0 {
            break;
        }
        if count < 0 {
            input.number()?;
            count = count.checked_neg().ok_or(DecodeError::Length { at, length: count })?;
        }
        // Each entry takes two bytes at least.
        if count as u64 > (bytes.len() as u64) / 2 {
            return Err(DecodeError::Length { at, length: count });
        }
        for _ in 0..count {
            let name = std::str::from_utf8(input.run()?)?;
            header(name, std::str::from_utf8(input.run()?)?);
        }
    }
    let body = input.run()?;
    match bytes.len() - input.at {
        0 => Ok(body),
        behind => Err(DecodeError::Behind(behind)),
    }
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn number(&mut self) -> Result<i64, DecodeError> {
        let start = self.at;
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or(DecodeError::Short(self.at))?;
            self.at += 1;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err(DecodeError::Number(start))
    }

    fn run(&mut self) -> Result<&'a [u8], DecodeError> {
        let at = self.at;
        let length = self.number()?;
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let end = end.ok_or(DecodeError::Length { at, length })?;
        let run = self.bytes.get(self.at..end).ok_or(DecodeError::Short(self.bytes.len()))?;
        self.at = end;
        Ok(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// shared/wire.md D6, hand-encoded from the specification.
    const GOLDEN: &[u8] = b"\x02\x08host\x08web1\x00\x0ahello";

    fn decoded(bytes: &[u8]) -> Result<(Vec<(String, String)>, Vec<u8>), DecodeError> {
        let mut headers = Vec::new();
        let body = decode(bytes, |name, value| headers.push((name.to_owned(), value.to_owned())))?;
        Ok((headers, body.to_vec()))
    }

    fn encoded(headers: &[(String, String)], body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(headers.iter().map(|(name, value)| (name.as_str(), value.as_str())), body, &mut out);
        out
    }

    #[test]
    fn bytes_are_those_of_flume() {
        let headers = [("host".to_owned(), "web1".to_owned())];
        assert_eq!(encoded(&headers, b"hello"), GOLDEN);
        assert_eq!(encoded(&[], b"hello"), b"\x00\x0ahello");
        assert_eq!(decoded(GOLDEN), Ok((headers.to_vec(), b"hello".to_vec())));
        // A block may say its size: a negative count.
        let sized = b"\x01\x14\x08host\x08web1\x00\x0ahello";
        assert_eq!(decoded(sized), Ok((headers.to_vec(), b"hello".to_vec())));
    }

    #[test]
    fn each_fault_has_its_reason() {
        assert_eq!(decoded(b""), Err(DecodeError::Short(0)));
        assert_eq!(decoded(&GOLDEN[..16]), Err(DecodeError::Short(16)));
        assert_eq!(decoded(b"\x00\x0ahello!"), Err(DecodeError::Behind(1)));
        assert_eq!(decoded(b"\x00\x01"), Err(DecodeError::Length { at: 1, length: -1 }));
        assert_eq!(decoded(&[0xff; 12]), Err(DecodeError::Number(0)));
        assert!(matches!(decoded(b"\x02\x02\xff\x00\x00\x00"), Err(DecodeError::Text(_))));
        let mut huge = Vec::new();
        number(i64::MAX, &mut huge);
        assert_eq!(decoded(&huge), Err(DecodeError::Length { at: 0, length: i64::MAX }));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(headers in prop::collection::vec(("\\PC*", "\\PC*"), 0..5), body: Vec<u8>) {
            prop_assert_eq!(decoded(&encoded(&headers, &body)), Ok((headers, body)));
        }

        #[test]
        fn any_bytes_have_an_answer(bytes: Vec<u8>) {
            decoded(&bytes).ok();
        }
    }
}
