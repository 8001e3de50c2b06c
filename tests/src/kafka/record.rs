//! Records as the oracle reads and writes them: lines of JSON (their shape: `tests/kafka/client.py`).

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Bytes: text in JSON where they are UTF-8, else base64.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Bytes(pub Vec<u8>);

#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Base64 { base64: String },
}

/// A record of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Record {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset in the partition.
    pub offset: i64,
    /// The key; `None`: there is none.
    pub key: Option<Bytes>,
    /// The value; `None`: a tombstone.
    pub value: Option<Bytes>,
    /// The headers in their order; a name may come more than once.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// Milliseconds since 1970, if the record has a time.
    pub timestamp_ms: Option<i64>,
    /// `create` or `append`, if the record has a time.
    pub timestamp_type: Option<String>,
}

/// A record to be written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Message {
    /// The key.
    pub key: Option<Bytes>,
    /// The value; `None`: a tombstone.
    pub value: Option<Bytes>,
    /// The headers in their order.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// The partition; `None`: by the key, else any.
    pub partition: Option<i32>,
    /// Milliseconds since 1970; `None`: now.
    pub timestamp_ms: Option<i64>,
}

impl Record {
    /// The value as text; empty where there is none.
    #[must_use]
    pub fn text(&self) -> String {
        self.value.as_ref().map(Bytes::text).unwrap_or_default()
    }

    /// The first header of a name, as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<String> {
        let found = self.headers.iter().find(|(known, _)| known == name)?;
        found.1.as_ref().map(Bytes::text)
    }
}

impl Message {
    /// A record with a value only.
    #[must_use]
    pub fn value(value: impl Into<Bytes>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }
}

impl Bytes {
    /// As text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl From<&str> for Bytes {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<String> for Bytes {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<Bytes> for Written {
    fn from(bytes: Bytes) -> Self {
        match String::from_utf8(bytes.0) {
            Ok(text) => Self::Text(text),
            Err(error) => Self::Base64 { base64: to_base64(error.as_bytes()) },
        }
    }
}

impl TryFrom<Written> for Bytes {
    type Error = anyhow::Error;

    fn try_from(written: Written) -> Result<Self> {
        match written {
            Written::Text(text) => Ok(Self(text.into_bytes())),
            Written::Base64 { base64 } => from_base64(&base64).map(Self),
        }
    }
}

/// RFC 4648, section 4.
fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word =
            group.iter().zip([16, 8, 0]).fold(0u32, |word, (byte, shift)| word | u32::from(*byte) << shift);
        for (at, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let letter = ALPHABET.get((word >> shift) as usize & 63).copied().unwrap_or(b'=');
            text.push(if at <= group.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

fn from_base64(text: &str) -> Result<Vec<u8>> {
    let letters = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(letters.len() * 3 / 4);
    for group in letters.chunks(4) {
        let mut word = 0u32;
        for (letter, shift) in group.iter().zip([18, 12, 6, 0]) {
            let digit = ALPHABET.iter().position(|known| known == letter).context("no base64")?;
            word |= u32::try_from(digit)? << shift;
        }
        if group.len() == 1 {
            bail!("base64 ends in the middle of a byte");
        }
        let [_, all @ ..] = word.to_be_bytes();
        bytes.extend(all.iter().take(group.len() - 1));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_come_back() {
        let all: Vec<u8> = (0..=255).rev().collect();
        for bytes in (0..all.len()).map(|len| Bytes(all[..len].to_vec())) {
            let json = serde_json::to_string(&bytes).unwrap();
            assert_eq!(serde_json::from_str::<Bytes>(&json).unwrap(), bytes, "{json}");
        }
        let known = serde_json::to_string(&Bytes(vec![0xff, 0xfe])).unwrap();
        assert_eq!(known, "{\"base64\":\"//4=\"}");
    }
}
