//! Event time from the text of an event. See README.md.

mod format;

use flumen_sdk::prelude::*;
use format::Format;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    #[serde(default = "body")]
    from: String,
    format: String,
    #[serde(default = "utc")]
    zone: String,
    #[serde(default)]
    after: String,
    #[serde(default)]
    on_mismatch: OnMismatch,
    #[serde(default)]
    header: Option<String>,
}

fn body() -> String {
    "body".to_owned()
}

fn utc() -> String {
    "UTC".to_owned()
}

/// What becomes of an event without a readable time.
#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum OnMismatch {
    #[default]
    Reject,
    Keep,
}

/// The plugin.
pub struct Timestamp {
    /// The header that is read; `None`: the body.
    from: Option<String>,
    after: Option<Finder>,
    after_bytes: usize,
    format: Format,
    on_mismatch: OnMismatch,
    header: Option<String>,
}

impl BatchInterceptor for Timestamp {
    const OPTIONS: &'static str = include_str!("../options.json");

    fn open(config: Config) -> Result<(Self, Reads), String> {
        let Settings { from, format, zone, after, on_mismatch, header } = config.parse()?;
        let format = Format::new(&format, &zone)?;
        if header.as_deref() == Some("") {
            return Err("config.header: an empty name; name a header, or leave the key out".to_owned());
        }
        let (from, reads) = match from.as_str() {
            "body" => (None, Reads::body()),
            other => match other.strip_prefix("header.").filter(|name| !name.is_empty()) {
                Some(name) => (Some(name.to_owned()), Reads::nothing().and_header(name)),
                None => {
                    return Err(format!(
                        "config.from: `{other}` is not known; use \"body\" or \"header.NAME\""
                    ));
                }
            },
        };
        // The time that the event has: kept if there is none in the text, and a year for formats that have none.
        let reads = reads.and_time();
        let after_bytes = after.len();
        let after = (after_bytes > 0).then(|| Finder::new(&after));
        Ok((Self { from, after, after_bytes, format, on_mismatch, header }, reads))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let header = batch.header(0);
        let texts = match &self.from {
            None => batch.body(),
            Some(_) => header.map(HeaderColumn::values),
        };
        let (Some(texts), Some(present)) = (texts, batch.time()) else {
            return Err("the host did not pass what the time is read from".to_owned());
        };
        let mut difference = Difference::unchanged();
        let mut times = NumberList::with_capacity(batch.rows());
        for (row, (text, present)) in texts.iter().zip(present.iter()).enumerate() {
            match self.read(text, present) {
                Ok(time) => times.push(time),
                Err(_) if self.on_mismatch == OnMismatch::Keep => times.push(present),
                Err(reason) => {
                    difference.reject(row, format!("no time: {reason}"));
                }
            }
        }
        if times.is_empty() {
            return Ok(difference);
        }
        if let Some(name) = &self.header {
            let mut column = HeaderBuilder::with_capacity(name, times.len(), times.len() * 13);
            for time in times.as_numbers().iter() {
                column.push(&time.div_euclid(1_000_000).to_string());
            }
            difference.set_header(column);
        }
        difference.set_time(times);
        Ok(difference)
    }
}

impl Timestamp {
    fn read(&self, text: &[u8], present: i64) -> Result<i64, String> {
        let text = match &self.after {
            None => text,
            Some(finder) => {
                let at = finder.find(text).ok_or("the text of `after` is not in it")?;
                text.get(at + self.after_bytes..).unwrap_or_default()
            }
        };
        self.format.read(text, present)
    }
}

flumen_sdk::batch_interceptor!(Timestamp);

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_sdk::testing::{self, Answer, TestEvent};

    fn run(config: &str, events: &[TestEvent]) -> Answer {
        let (mut plugin, reads) = Timestamp::open(Config::new(config)).unwrap();
        Answer::new(plugin.process(&testing::batch(&reads, events)).unwrap(), events.len())
    }

    fn event(body: &str) -> TestEvent {
        TestEvent { body: body.into(), time: 1_700_000_000_000_000_000, headers: Vec::new() }
    }

    #[test]
    fn a_time_behind_a_text_and_one_that_is_missing() {
        let events =
            [event("x [2026-01-02 03:04:05,678] y"), event("nothing"), event("[2026-13-02 00:00:00,0]")];
        let config = r#"{"format":"%Y-%m-%d %H:%M:%S,%f","after":"[","header":"timestamp"}"#;
        let answer = run(config, &events);
        assert_eq!(answer.rows(), [0]);
        assert_eq!(answer.time(0), Some(1_767_323_045_678_000_000));
        assert_eq!(answer.header("timestamp", 0), Some("1767323045678"));
        let reasons: Vec<_> = answer.rejected().map(|(_, reason)| reason.to_owned()).collect();
        assert_eq!(reasons[0], "no time: the text of `after` is not in it");
        assert!(reasons[1].starts_with("no time: "), "{reasons:?}");
        let config = r#"{"format":"%Y-%m-%d %H:%M:%S,%f","after":"[","on_mismatch":"keep"}"#;
        let answer = run(config, &events);
        assert_eq!(answer.rows(), [0, 1, 2]);
        assert_eq!(answer.time(1), Some(1_700_000_000_000_000_000));
    }

    #[test]
    fn a_header_is_read() {
        let mut with = event("");
        with.headers.push(("ts".to_owned(), "1767323045.5".to_owned()));
        let answer = run(r#"{"from":"header.ts","format":"unix"}"#, &[with, event("")]);
        assert_eq!((answer.rows(), answer.time(0)), (vec![0], Some(1_767_323_045_500_000_000)));
    }

    #[test]
    fn errors_name_the_key() {
        let error = |config: &str| Timestamp::open(Config::new(config)).map(|_| ()).unwrap_err();
        assert!(error("{}").contains("`format` is missing"));
        assert!(error(r#"{"format":"%Q%"}"#).starts_with("config.format: "));
        assert!(error(r#"{"format":"unix","zone":"Mars/Base"}"#).starts_with("config.zone: "));
        assert!(error(r#"{"format":"unix","from":"ts"}"#).starts_with("config.from: "));
    }
}
