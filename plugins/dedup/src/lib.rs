//! Lets each event through once within a time. See README.md.

use std::time::Duration;

use flumen_sdk::config::duration;
use flumen_sdk::prelude::*;
use flumen_sdk::state;
use siphasher::sip128::SipHasher13;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    #[serde(default = "identity")]
    by: String,
    #[serde(default = "ten_minutes")]
    window: String,
    #[serde(default)]
    without: Without,
    #[serde(default)]
    when_full: WhenFull,
}

fn identity() -> String {
    "identity".to_owned()
}

fn ten_minutes() -> String {
    "10m".to_owned()
}

#[derive(Default, Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Without {
    #[default]
    Keep,
    Reject,
}

#[derive(Default, Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum WhenFull {
    #[default]
    Fail,
    Pass,
}

/// What makes two events the same.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Identity,
    Body,
    Header,
}

/// A text of this length or less is a key as it is; a longer one is a hash of 128 bits.
const TEXT_MAX: usize = 40;

/// The plugin.
pub struct Dedup {
    by: By,
    window: Duration,
    without: Without,
    when_full: WhenFull,
}

impl BatchInterceptor for Dedup {
    const OPTIONS: &'static str = include_str!("../options.json");

    fn open(config: Config) -> Result<(Self, Reads), String> {
        let Settings { by, window, without, when_full } = config.parse()?;
        let (by, reads) = match by.as_str() {
            "identity" => (By::Identity, Reads::nothing().and_identity()),
            "body" => (By::Body, Reads::body()),
            other => match other.strip_prefix("header.").filter(|name| !name.is_empty()) {
                Some(name) => (By::Header, Reads::nothing().and_header(name)),
                None => {
                    return Err(format!(
                        "config.by: `{other}` is not known; use \"identity\", \"body\" or \"header.NAME\""
                    ));
                }
            },
        };
        let window = duration(&window).ok_or_else(|| {
            format!("config.window: `{window}` is not a time; write a number with ms, s, m, h or d, such as \"10m\"")
        })?;
        Ok((Self { by, window, without, when_full }, reads))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let (keys, missing) = self.keys(batch)?;
        let mut difference = Difference::unchanged();
        let new = match state::insert_if_absent(keys, None, Some(self.window)) {
            Ok(new) => new,
            Err(_) if self.when_full == WhenFull::Pass => return Ok(difference),
            Err(error) => return Err(error),
        };
        let mut next_missing = missing.iter().copied().peekable();
        let mut key = 0;
        let mut kept = KeptRows::with_capacity(batch.rows());
        for row in 0..batch.rows() {
            let is_kept = if next_missing.next_if_eq(&row).is_some() {
                if self.without == Without::Reject {
                    difference.reject(row, "it has no such header to tell it from others");
                }
                self.without == Without::Keep
            } else {
                key += 1;
                new.get(key - 1)
            };
            if is_kept {
                kept.push(row);
            }
        }
        if kept.len() < batch.rows() {
            difference.keep_rows(kept);
        }
        Ok(difference)
    }
}

impl Dedup {
    /// The keys of the rows, and the rows that have none.
    fn keys(&self, batch: &BatchView) -> Result<(ColumnBuilder, Vec<usize>), String> {
        let mut keys = ColumnBuilder::with_capacity(batch.rows(), batch.rows() * 17);
        let mut missing = Vec::new();
        match (self.by, batch.identity(), batch.body(), batch.header(0)) {
            (By::Identity, Some((streams, positions)), ..) => {
                for (stream, position) in streams.iter().zip(positions.iter()) {
                    keys.add(b"i");
                    keys.add(&stream.to_le_bytes());
                    keys.add(&position.to_le_bytes());
                    keys.end_row();
                }
            }
            (By::Body, _, Some(body), _) => body.iter().for_each(|body| push_text(&mut keys, b'b', body)),
            (By::Header, .., Some(header)) => {
                for row in 0..batch.rows() {
                    match header.get(row) {
                        Some(value) => push_text(&mut keys, b'h', value),
                        None => missing.push(row),
                    }
                }
            }
            _ => return Err("the host did not pass what tells events apart".to_owned()),
        }
        Ok((keys, missing))
    }
}

fn push_text(keys: &mut ColumnBuilder, kind: u8, text: &[u8]) {
    if text.len() <= TEXT_MAX {
        keys.add(&[kind]);
        keys.add(text);
    } else {
        // Another kind: a hash is not taken for a text.
        keys.add(&[kind.to_ascii_uppercase()]);
        // It is kept on disk, so it is one whose algorithm is fixed.
        keys.add(&SipHasher13::new().hash(text).as_bytes());
    }
    keys.end_row();
}

flumen_sdk::batch_interceptor!(Dedup);

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_sdk::testing::{self, TestEvent};

    #[test]
    fn keys_tell_events_apart() {
        let long = |end: &str| format!("{}{end}", "x".repeat(100));
        let texts = ["", "a", "b", &"y".repeat(40), &"y".repeat(41), &long("1"), &long("2")];
        let event = |text: &&str| TestEvent {
            body: text.as_bytes().to_vec(),
            headers: vec![("h".to_owned(), text.to_string())],
            ..TestEvent::default()
        };
        let events: Vec<TestEvent> = texts.iter().map(event).collect();
        for by in ["identity", "body", "header.h"] {
            let (plugin, reads) = Dedup::open(Config::new(format!(r#"{{"by":"{by}"}}"#))).unwrap();
            let (keys, missing) = plugin.keys(&testing::batch(&reads, &events)).unwrap();
            assert_eq!((keys.rows(), missing.len()), (texts.len(), 0), "{by}");
            assert!(keys.bytes() < texts.len() * (TEXT_MAX + 3));
        }
        // Keys that older builds wrote have to be found again.
        let hash = SipHasher13::new().hash(&[b'x'; TEXT_MAX + 1]);
        assert_eq!((hash.h1, hash.h2), (8_294_754_897_080_939_091, 2_886_643_544_138_498_012));
    }

    #[test]
    fn errors_name_the_key() {
        let error = |config: &str| Dedup::open(Config::new(config)).map(|_| ()).unwrap_err();
        assert!(error(r#"{"by":"user"}"#).starts_with("config.by: `user` is not known"));
        assert!(error(r#"{"window":"ten"}"#).starts_with("config.window: `ten` is not a time"));
        assert!(error(r#"{"window":"99999999999999999d"}"#).starts_with("config.window"));
        assert_eq!(duration("90s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("2d"), Some(Duration::from_secs(172_800)));
        assert_eq!(duration("s"), None);
    }
}
