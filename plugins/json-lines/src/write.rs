//! An event as a line of JSON.

use flumen_sdk::prelude::*;
use jiff::Timestamp;
use serde_json::Value;

use crate::Settings;

/// Writes an event without an end of line; the error says why it cannot be one.
pub fn event(
    settings: &Settings,
    body: &[u8],
    time: Option<i64>,
    columns: &[(HeaderColumn, bool)],
    row: usize,
    line: &mut Vec<u8>,
) -> Result<(), String> {
    if settings.body.is_empty() {
        // The body is the line: it has to be one.
        let value: Value =
            serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))?;
        if !value.is_object() {
            return Err("the body is JSON, but no object".to_owned());
        }
        line.extend_from_slice(value.to_string().as_bytes());
        return Ok(());
    }
    line.push(b'{');
    if let Some(time) = time {
        key(&settings.time, line);
        let time = Timestamp::from_nanosecond(i128::from(time)).map_err(|error| error.to_string())?;
        string(&format!("{time:.9}"), line);
        line.push(b',');
    }
    match std::str::from_utf8(body) {
        Ok(text) => {
            key(&settings.body, line);
            string(text, line);
        }
        Err(_) => {
            key(&format!("{}_base64", settings.body), line);
            line.push(b'"');
            to_base64(body, line);
            line.push(b'"');
        }
    }
    for (column, _) in columns.iter().filter(|(_, is_field)| *is_field) {
        if let Some(value) = column.get_str(row) {
            line.push(b',');
            key(column.name(), line);
            string(value, line);
        }
    }
    if !settings.headers.is_empty() {
        line.push(b',');
        key(&settings.headers, line);
        line.push(b'{');
        let mut separator: &[u8] = b"";
        for (column, _) in columns.iter().filter(|(_, is_field)| !*is_field) {
            if let Some(value) = column.get_str(row) {
                line.extend_from_slice(separator);
                key(column.name(), line);
                string(value, line);
                separator = b",";
            }
        }
        line.push(b'}');
    }
    line.push(b'}');
    Ok(())
}

fn key(name: &str, line: &mut Vec<u8>) {
    string(name, line);
    line.push(b':');
}

fn string(text: &str, line: &mut Vec<u8>) {
    line.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte < 0x20 || *byte == b'"' || *byte == b'\\') {
        let (plain, special) = rest.split_at(at);
        line.extend_from_slice(plain);
        let Some((byte, after)) = special.split_first() else { break };
        match byte {
            b'"' => line.extend_from_slice(b"\\\""),
            b'\\' => line.extend_from_slice(b"\\\\"),
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            b'\t' => line.extend_from_slice(b"\\t"),
            other => line.extend_from_slice(format!("\\u{other:04x}").as_bytes()),
        }
        rest = after;
    }
    line.extend_from_slice(rest);
    line.push(b'"');
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn to_base64(bytes: &[u8], out: &mut Vec<u8>) {
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for sextet in 0..4 {
            let digit = ALPHABET.get((bits >> (18 - 6 * sextet)) as usize & 63);
            out.push(digit.filter(|_| sextet <= group.len()).copied().unwrap_or(b'='));
        }
    }
}

/// The bytes of base64 with padding (RFC 4648).
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for digit in digits {
        let value = ALPHABET.iter().position(|known| known == digit)? as u32;
        bits = (bits << 6 | value) & 0xff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    // What is left over has to be zero: else two texts are the same bytes.
    (bits & ((1 << count) - 1) == 0).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_goes_both_ways() {
        for (plain, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            let mut out = Vec::new();
            to_base64(plain.as_bytes(), &mut out);
            assert_eq!(out, encoded.as_bytes());
            assert_eq!(from_base64(encoded).as_deref(), Some(plain.as_bytes()));
        }
        for wrong in ["Z", "Zg=", "Zh==", "Z===", "Zm 8=", "===="] {
            assert_eq!(from_base64(wrong), None, "{wrong}");
        }
    }
}
