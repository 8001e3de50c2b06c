//! One datum of `AvroFlumeEvent { map<string> headers; bytes body }`, without magic or schema.
//!
//! ```text
//! datum   = headers body
//! headers = { block } long(0)
//! block   = long(n) n*(text text)           or long(-n) long(bytes of the block) n*(text text)
//! text    = long(length) UTF-8              body = long(length) bytes
//! long    = zigzag, 7 bits a byte, low bits first, at most 10 bytes
//! ```
//! Source: Avro 1.11 specification, "Binary Encoding"; Flume's `KafkaChannel` and `KafkaSink` with `useFlumeEventFormat`.

use flumen_sdk::codec::Payloads;

/// Longest body or text: nothing longer is an event of Flume.
const LENGTH_MAX: u64 = 64 << 20;

/// One event; borrows from the input.
#[derive(Debug, PartialEq, Eq)]
pub struct Datum<'a> {
    pub headers: Vec<(&'a str, &'a str)>,
    pub body: &'a [u8],
}

/// Why bytes are no datum.
#[derive(Debug, PartialEq, Eq)]
pub enum Broken {
    /// They end within one.
    Short,
    /// What cannot be, and at which byte.
    Wrong(&'static str, usize),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Broken::Short => out.write_str("not in Flume's Avro format: it ends within an event"),
            Broken::Wrong(what, at) => write!(out, "not in Flume's Avro format: {what} at byte {at}"),
        }
    }
}

/// Reads the first datum, and how many bytes it has.
pub fn read(input: &[u8]) -> Result<(Datum<'_>, usize), Broken> {
    let mut input = Input { all: input, at: 0 };
    let mut headers = Vec::new();
    loop {
        let count = input.long()?;
        if count == 0 {
            break;
        }
        if count < 0 {
            // The size of the block, for readers that skip it.
            input.length()?;
        }
        for _ in 0..count.unsigned_abs() {
            // Each takes two bytes at least, so a lying count ends with the input.
            headers.push((input.text()?, input.text()?));
        }
    }
    let body = input.bytes()?;
    Ok((Datum { headers, body }, input.at))
}

struct Input<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn long(&mut self) -> Result<i64, Broken> {
        let start = self.at;
        let mut value: u64 = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.all.get(self.at).ok_or(Broken::Short)?;
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
        Err(Broken::Wrong("an impossible number", start))
    }

    fn length(&mut self) -> Result<usize, Broken> {
        let at = self.at;
        match u64::try_from(self.long()?) {
            Ok(length) if length <= LENGTH_MAX => Ok(length as usize),
            _ => Err(Broken::Wrong("an impossible length", at)),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], Broken> {
        let length = self.length()?;
        let bytes = self.all.get(self.at..self.at + length).ok_or(Broken::Short)?;
        self.at += length;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&'a str, Broken> {
        let at = self.at;
        str::from_utf8(self.bytes()?).map_err(|_| Broken::Wrong("a header that is not UTF-8", at))
    }
}

/// Adds a datum to the payload under construction: one block of headers, or none.
pub fn write(headers: &[(&[u8], &[u8])], body: &[u8], out: &mut Payloads) {
    if !headers.is_empty() {
        put_long(headers.len() as i64, out);
        for (name, value) in headers {
            put_bytes(name, out);
            put_bytes(value, out);
        }
    }
    put_long(0, out);
    put_bytes(body, out);
}

fn put_bytes(bytes: &[u8], out: &mut Payloads) {
    put_long(bytes.len() as i64, out);
    out.add(bytes);
}

fn put_long(value: i64, out: &mut Payloads) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    let mut bytes = [0; 10];
    let mut length = 0;
    for byte in &mut bytes {
        length += 1;
        *byte = rest as u8 & 0x7f;
        rest >>= 7;
        if rest == 0 {
            break;
        }
        *byte |= 0x80;
    }
    out.add(bytes.get(..length).unwrap_or_default());
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    const GOLDEN: &[u8] = b"\x02\x08host\x08web1\x00\x0ahello";

    #[test]
    fn a_datum_is_read_at_its_length_and_no_shorter() {
        let (datum, length) =
            read(&[GOLDEN, b"more"].concat()).map(|(datum, length)| (format!("{datum:?}"), length)).unwrap();
        assert_eq!(length, GOLDEN.len());
        assert_eq!(datum, format!("{:?}", Datum { headers: vec![("host", "web1")], body: b"hello" }));
        for end in 0..GOLDEN.len() {
            assert_eq!(read(&GOLDEN[..end]), Err(Broken::Short), "{end}");
        }
        assert_eq!(read(b"\x00\x00"), Ok((Datum { headers: vec![], body: b"" }, 2)));
        // A block with its size.
        let sized = b"\x01\x14\x08host\x08web1\x00\x0ahello";
        assert_eq!(read(sized).unwrap().0.headers, [("host", "web1")]);
    }

    #[test]
    fn what_cannot_be_is_said() {
        for (bytes, what) in [
            (&b"\x00\x01"[..], "length"),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "number"),
            (b"\x02\x02\xff\x00\x00\x00", "UTF-8"),
            (b"\x00\x80\x80\x80\x80\x40", "length"),
        ] {
            assert!(read(bytes).unwrap_err().to_string().contains(what), "{bytes:?}");
        }
    }

    #[test]
    fn any_bytes_are_a_datum_or_none() {
        let mut state = 7_u64;
        for _ in 0..20_000 {
            let mut bytes = [0; 24];
            for byte in &mut bytes {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (state >> 56) as u8 & if state & 1 << 40 == 0 { 0x0f } else { 0xff };
            }
            if let Ok((_, length)) = read(&bytes) {
                assert!(length > 0 && length <= bytes.len());
            }
        }
    }
}
