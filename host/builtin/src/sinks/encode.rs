//! Events as bytes: lines of text, JSON objects, or lines for people.
//!
//! An encoder appends rows of a batch to a buffer until the buffer is long enough. It allocates
//! nothing per event and cannot fail.
//!
//! `text` is the body as it is and a newline; a body that contains newlines becomes several lines.
//! `json` is one object per line (NDJSON):
//!
//! ```json
//! {"time":"2024-07-01T09:30:00.000000001Z","body":"…","headers":{"host":"a"},"stream":"00000000000004d2","position":17}
//! ```
//!
//! A body that is not UTF-8 is `"body_base64"` (RFC 4648, with padding) instead of `"body"`. The stream
//! is 16 hexadecimal digits in a string, because JSON readers that use doubles would round it.

use std::borrow::Cow;
use std::ops::Range;

use arrow_array::Array;
use flumen_event::Batch;
use jiff::Timestamp;

/// How an event is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// The body and a newline.
    Text,
    /// One JSON object per line.
    Json,
    /// Time, body and headers, for people.
    Pretty,
}

impl Encoding {
    /// The word in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Encoding::Text => "text",
            Encoding::Json => "json",
            Encoding::Pretty => "pretty",
        }
    }
}

/// Appends events to buffers.
pub(crate) struct Encoder {
    encoding: Encoding,
    /// The second of the last time written, and its text without fraction and `Z`.
    second: Option<i64>,
    second_text: String,
}

impl Encoder {
    pub fn new(encoding: Encoding) -> Self {
        Encoder { encoding, second: None, second_text: String::new() }
    }

    /// Appends rows from the front of `rows` until `out` has `until` bytes or more, at least one.
    /// Returns how many.
    pub fn encode(&mut self, batch: &Batch, rows: Range<usize>, out: &mut Vec<u8>, until: usize) -> usize {
        if self.encoding == Encoding::Text {
            return text(batch, rows, out, until);
        }
        let mut taken = 0;
        for row in rows.start..rows.end.min(batch.rows()) {
            match self.encoding {
                Encoding::Pretty => self.pretty(batch, row, out),
                _ => self.json(batch, row, out),
            }
            taken += 1;
            if out.len() >= until {
                break;
            }
        }
        taken
    }

    fn json(&mut self, batch: &Batch, row: usize, out: &mut Vec<u8>) {
        let headers = batch
            .headers()
            .iter()
            .filter(|header| header.values.is_valid(row))
            .map(|header| (&*header.name, Cow::Borrowed(header.values.value(row))));
        let identity = (batch.stream().value(row), batch.position().value(row));
        self.object(batch.time().value(row), batch.body().value(row), headers, identity, out);
    }

    /// One event as a line of JSON, for callers that have no batch. `identity`: stream and position.
    pub fn object<'a>(
        &mut self,
        time_ns: i64,
        body: &[u8],
        headers: impl Iterator<Item = (&'a str, Cow<'a, str>)>,
        identity: (u64, u64),
        out: &mut Vec<u8>,
    ) {
        out.extend_from_slice(b"{\"time\":\"");
        self.time(time_ns, out);
        match std::str::from_utf8(body) {
            Ok(_) => {
                out.extend_from_slice(b"\",\"body\":\"");
                json_string(body, out);
            }
            Err(_) => {
                out.extend_from_slice(b"\",\"body_base64\":\"");
                base64(body, out);
            }
        }
        out.extend_from_slice(b"\",\"headers\":{");
        let mut separator: &[u8] = b"\"";
        for (name, value) in headers {
            out.extend_from_slice(separator);
            separator = b",\"";
            json_string(name.as_bytes(), out);
            out.extend_from_slice(b"\":\"");
            json_string(value.as_bytes(), out);
            out.push(b'"');
        }
        out.extend_from_slice(b"},\"stream\":\"");
        let (stream, position) = identity;
        (0..16).rev().for_each(|digit| out.push(hex_digit((stream >> (digit * 4)) as u8)));
        out.extend_from_slice(b"\",\"position\":");
        decimal(position, 1, out);
        out.extend_from_slice(b"}\n");
    }

    fn pretty(&mut self, batch: &Batch, row: usize, out: &mut Vec<u8>) {
        self.time(batch.time().value(row), out);
        out.extend_from_slice(b"  ");
        printable(&String::from_utf8_lossy(batch.body().value(row)), out);
        for header in batch.headers().iter().filter(|header| header.values.is_valid(row)) {
            out.extend_from_slice(b"  ");
            printable(&header.name, out);
            out.push(b'=');
            printable(header.values.value(row), out);
        }
        out.push(b'\n');
    }

    /// RFC 3339 in UTC with nanoseconds.
    fn time(&mut self, time_ns: i64, out: &mut Vec<u8>) {
        let second = time_ns.div_euclid(1_000_000_000);
        if self.second != Some(second) {
            // Every i64 of nanoseconds lies between the years 1677 and 2262, which jiff can write.
            let text = Timestamp::from_second(second).map(|time| time.to_string()).unwrap_or_default();
            self.second_text = text.trim_end_matches('Z').into();
            self.second = Some(second);
        }
        out.extend_from_slice(self.second_text.as_bytes());
        out.push(b'.');
        decimal(time_ns.rem_euclid(1_000_000_000).unsigned_abs(), 9, out);
        out.push(b'Z');
    }
}

fn text(batch: &Batch, rows: Range<usize>, out: &mut Vec<u8>, until: usize) -> usize {
    let Some(offsets) = batch.body().value_offsets().get(rows.start..=rows.end) else { return 0 };
    let values = batch.body().value_data();
    let (Some(first), Some(last)) = (offsets.first(), offsets.last()) else { return 0 };
    // All of it, or up to `until` and the event that passes it: one growth at most in the usual case.
    out.reserve(
        ((last - first) as usize + rows.len()).min(until.saturating_sub(out.len()).saturating_add(4_096)),
    );
    let mut taken = 0;
    for pair in offsets.windows(2) {
        if let [from, to] = pair
            && let Some(body) = values.get(*from as usize..*to as usize)
        {
            out.extend_from_slice(body);
        }
        out.push(b'\n');
        taken += 1;
        if out.len() >= until {
            break;
        }
    }
    taken
}

/// UTF-8 text between the quotes of a JSON string.
fn json_string(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte < 0x20 || *byte == b'"' || *byte == b'\\') {
        let (plain, special) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((byte, after)) = special.split_first() else { break };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            other => {
                out.extend_from_slice(b"\\u00");
                out.push(hex_digit(other >> 4));
                out.push(hex_digit(*other));
            }
        }
        rest = after;
    }
    out.extend_from_slice(rest);
}

/// Text without control characters: log data must not drive a terminal.
fn printable(text: &str, out: &mut Vec<u8>) {
    for character in text.chars() {
        let mut bytes = [0; 4];
        match character {
            '\t' => out.push(b'\t'),
            c if c.is_control() => c.escape_default().for_each(|c| out.push(c as u8)),
            c => out.extend_from_slice(c.encode_utf8(&mut bytes).as_bytes()),
        }
    }
}

fn hex_digit(value: u8) -> u8 {
    match value & 15 {
        digit @ 0..=9 => b'0' + digit,
        digit => b'a' + digit - 10,
    }
}

/// A number with at least `digits` digits.
fn decimal(mut value: u64, digits: usize, out: &mut Vec<u8>) {
    let start = out.len();
    while value > 0 || out.len() - start < digits {
        out.push(b'0' + (value % 10) as u8);
        value /= 10;
    }
    if let Some(written) = out.get_mut(start..) {
        written.reverse();
    }
}

fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for sextet in 0..4 {
            let value = (bits >> (18 - 6 * sextet)) & 63;
            let digit = if sextet <= group.len() { ALPHABET.get(value as usize) } else { None };
            out.push(digit.copied().unwrap_or(b'='));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::StringArray;
    use flumen_event::{BatchBuilder, HeaderColumn};

    fn batch(bodies: &[&[u8]]) -> Batch {
        let mut builder = BatchBuilder::default();
        for (row, body) in bodies.iter().enumerate() {
            builder.push(u64::MAX - 1, row as u64, 1_700_000_000_000_000_007 + row as i64, body);
        }
        let odd: StringArray =
            bodies.iter().enumerate().map(|(row, _)| (row != 1).then_some("a\"b\\c\u{1}ü\n")).collect();
        builder.finish(vec![HeaderColumn { name: "q\"".into(), values: odd }]).unwrap()
    }

    fn encoded(encoding: Encoding, bodies: &[&[u8]]) -> String {
        let mut out = Vec::new();
        let batch = batch(bodies);
        assert_eq!(
            Encoder::new(encoding).encode(&batch, 0..bodies.len(), &mut out, usize::MAX),
            bodies.len()
        );
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_is_the_body_and_a_newline_also_of_a_slice() {
        assert_eq!(encoded(Encoding::Text, &[b"a", b"", b"ccc"]), "a\n\nccc\n");
        let slice = batch(&[b"a", b"bb", b"ccc", b"d"]).slice(1, 3);
        let mut out = Vec::new();
        assert_eq!(text(&slice, 1..3, &mut out, usize::MAX), 2);
        assert_eq!(out, b"ccc\nd\n");
    }

    #[test]
    fn stops_after_the_event_that_reaches_the_limit() {
        let batch = batch(&[b"aaaa", b"bbbb", b"cccc"]);
        let mut out = Vec::new();
        assert_eq!(Encoder::new(Encoding::Text).encode(&batch, 0..3, &mut out, 6), 2);
        assert_eq!(Encoder::new(Encoding::Text).encode(&batch, 2..3, &mut out, 0), 1, "at least one");
        assert_eq!(out, b"aaaa\nbbbb\ncccc\n");
    }

    #[test]
    fn json_of_odd_bytes_is_read_back_by_a_json_reader() {
        let every_byte: Vec<u8> = (0..=255).collect();
        let all_controls: Vec<u8> = (0..128).collect();
        let bodies: [&[u8]; 6] =
            [b"plain", b"\xff\xfe", &every_byte, &all_controls, b"", "\u{2028}\u{10ffff}".as_bytes()];
        for (row, line) in encoded(Encoding::Json, &bodies).lines().enumerate() {
            let value: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            match std::str::from_utf8(bodies[row]) {
                Ok(text) => assert_eq!(value["body"], text),
                Err(_) => assert!(value.get("body").is_none() && value["body_base64"].is_string(), "{line}"),
            }
            assert_eq!(value["stream"], "fffffffffffffffe");
            assert_eq!(value["position"], row);
            assert_eq!(
                value["time"],
                format!("2023-11-14T22:13:20.00000000{}Z", 7 + row)
                    .as_str()
                    .replace(".0000000010", ".000000010")
                    .replace(".0000000011", ".000000011")
                    .replace(".0000000012", ".000000012")
            );
            assert_eq!(value["headers"].get("q\"").is_some(), row != 1);
        }
    }

    #[test]
    fn base64_as_in_rfc_4648() {
        for (plain, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            let mut out = Vec::new();
            base64(plain.as_bytes(), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), encoded);
        }
    }

    #[test]
    fn times_before_1970_and_at_the_ends_of_i64() {
        let mut encoder = Encoder::new(Encoding::Json);
        for (time, expected) in [
            (-1, "1969-12-31T23:59:59.999999999Z"),
            (i64::MIN, "1677-09-21T00:12:43.145224192Z"),
            (i64::MAX, "2262-04-11T23:47:16.854775807Z"),
        ] {
            let mut out = Vec::new();
            encoder.time(time, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn pretty_lets_no_control_character_through() {
        let line = encoded(Encoding::Pretty, &[b"a\x1b[2J\x07\tb"]);
        assert!(line.starts_with("2023-11-14T22:13:20.000000007Z  a\\u{1b}[2J\\u{7}\tb  q\"="), "{line}");
    }
}
