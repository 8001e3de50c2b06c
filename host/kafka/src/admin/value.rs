//! What the value of a record looks like: text, JSON, Flume's Avro, or neither.
//!
//! Flume's Kafka channel, and its sink on request, write a bare Avro datum of `AvroFlumeEvent` without any mark
//! (`useFlumeEventFormat`, `parseAsFlumeEvent`): a map of headers, then the body. Read as text it begins with
//! strange characters. A value counts as Flume's only if all of it reads as one, to the last byte.

use crate::flume_avro;

/// What a value seems to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// No bytes: in a compacted topic it deletes its key.
    Empty,
    /// A JSON object or list.
    Json,
    /// [`flume_avro::Event`].
    FlumeAvro,
    /// UTF-8 without control characters, but for tab and line ends.
    Text,
    /// Something else.
    Binary,
}

impl Look {
    /// In words.
    pub fn word(self) -> &'static str {
        match self {
            Look::Empty => "empty",
            Look::Json => "JSON",
            Look::FlumeAvro => "Flume Avro",
            Look::Text => "text",
            Look::Binary => "binary",
        }
    }
}

/// Looks at a value.
pub fn look(value: &[u8]) -> Look {
    let is_text = |text: &str| !text.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r'));
    match std::str::from_utf8(value) {
        _ if value.is_empty() => Look::Empty,
        Ok(text)
            if text.starts_with(['{', '['])
                && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() =>
        {
            Look::Json
        }
        Ok(text) if is_text(text) => Look::Text,
        _ if flume_avro::decode(value).is_ok() => Look::FlumeAvro,
        _ => Look::Binary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOLDEN: &[u8] = b"\x02\x08host\x08web1\x00\x0ahello";

    #[test]
    fn values_look_like_what_they_are() {
        for (value, expected) in [
            (&b""[..], Look::Empty),
            (b"{\"a\": 1}", Look::Json),
            (b"{not json", Look::Text),
            ("a\tb é\n".as_bytes(), Look::Text),
            (GOLDEN, Look::FlumeAvro),
            (b"\x00\x01\x02\xff", Look::Binary),
        ] {
            assert_eq!(look(value), expected, "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_look(bytes: Vec<u8>) {
            look(&bytes);
        }
    }
}
