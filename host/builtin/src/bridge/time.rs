//! When a record happened.
//!
//! The record's own timestamp, a header, or a part of the body. A time that is missing, cannot be read, or lies
//! further ahead of the record's own timestamp than `clock_skew` is replaced by that timestamp and counted: one
//! wrong clock must not close everybody's buckets. From it follows where reading for a bucket begins: no
//! record of it can have a timestamp before its start less `clock_skew`.

use flumen_pipeline::BuildError;
use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use regex::bytes::Regex;

/// Where the time is.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// The record's timestamp.
    Record,
    /// A header.
    Header(String),
    /// The first group of a pattern (or all that it matches) in the body.
    Body(Box<Regex>),
}

/// Where the time of records is, and how to read it.
#[derive(Debug, Clone)]
pub(super) struct EventTime {
    pub place: Place,
    /// A format for strptime; without it RFC 3339 or a number since the epoch.
    format: Option<String>,
    zone: TimeZone,
    pub skew_ns: i64,
}

impl EventTime {
    /// From the options `time`, `time_pattern`, `time_format`, `clock_skew`.
    pub fn new(
        time: &str,
        pattern: Option<&str>,
        format: Option<&str>,
        skew_ns: i64,
        zone: TimeZone,
    ) -> Result<EventTime, BuildError> {
        let place = match (time, time.strip_prefix("header."), pattern) {
            ("record", _, None) => Place::Record,
            (_, Some(name), None) if !name.is_empty() => Place::Header(name.into()),
            ("body", _, Some(pattern)) => Place::Body(Box::new(Regex::new(pattern).map_err(|cause| {
                BuildError::new("time_pattern", cause.to_string(), "mend the regular expression")
            })?)),
            ("body", ..) => {
                let fix = r#"add it, for instance time_pattern = '"time":"([^"]+)"'"#;
                return Err(BuildError::new("time_pattern", "is missing, but `time` is \"body\"", fix));
            }
            (_, _, Some(_)) if time == "record" || time.starts_with("header.") => {
                let fix = "write `time = \"body\"`, or remove it";
                return Err(BuildError::new(
                    "time_pattern",
                    format!("is given, but `time` is {time:?}"),
                    fix,
                ));
            }
            _ => {
                let fix = "write \"record\", \"header.NAME\" or \"body\"";
                return Err(BuildError::new("time", format!("{time:?} is no place of a time"), fix));
            }
        };
        if format.is_some() && matches!(place, Place::Record) {
            let fix = "remove it: a record's timestamp is a number";
            return Err(BuildError::new("time_format", "is given, but `time` is \"record\"", fix));
        }
        Ok(EventTime { place, format: format.map(str::to_owned), zone, skew_ns })
    }

    /// How far before a bucket reading begins.
    pub fn ahead_ns(&self) -> i64 {
        if matches!(self.place, Place::Record) { 0 } else { self.skew_ns }
    }

    /// The event's time, and whether it is the record's for want of a better one.
    pub fn of<'a>(
        &self,
        record_ns: i64,
        body: &[u8],
        header: impl FnOnce(&str) -> Option<&'a [u8]>,
    ) -> (i64, bool) {
        let text = match &self.place {
            Place::Record => return (record_ns, false),
            Place::Header(name) => header(name),
            Place::Body(pattern) => pattern
                .captures(body)
                .and_then(|found| found.get(1).or(found.get(0)))
                .map(|found| found.as_bytes()),
        };
        let time =
            text.and_then(|text| std::str::from_utf8(text).ok()).and_then(|text| self.parse(text.trim()));
        match time {
            Some(time_ns) if time_ns <= record_ns.saturating_add(self.skew_ns) => (time_ns, false),
            _ => (record_ns, true),
        }
    }

    fn parse(&self, text: &str) -> Option<i64> {
        let time = match &self.format {
            None if text.bytes().all(|byte| byte.is_ascii_digit()) => return epoch(text),
            None => text.parse::<Timestamp>().ok()?,
            Some(format) => {
                let parts = strtime::parse(format, text).ok()?;
                match parts.to_timestamp() {
                    Ok(time) => time,
                    Err(_) => parts.to_datetime().ok()?.to_zoned(self.zone.clone()).ok()?.timestamp(),
                }
            }
        };
        i64::try_from(time.as_nanosecond()).ok()
    }
}

/// A number since the epoch in s, ms, µs or ns: which one, its length tells (from 1973 to 2286).
fn epoch(digits: &str) -> Option<i64> {
    let unit_ns = match digits.len() {
        1..=10 => 1_000_000_000,
        11..=13 => 1_000_000,
        14..=16 => 1_000,
        17..=19 => 1,
        _ => return None,
    };
    digits.parse::<i64>().ok()?.checked_mul(unit_ns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::calendar::text_time;

    const RECORD: i64 = 1_795_244_400_000_000_000;

    fn of(time: &str, pattern: Option<&str>, format: Option<&str>, value: &str) -> (i64, bool) {
        let time = EventTime::new(time, pattern, format, 600_000_000_000, TimeZone::UTC).unwrap();
        time.of(RECORD, value.as_bytes(), |name| (name == "at").then_some(value.as_bytes()))
    }

    #[test]
    fn times_in_headers_and_bodies() {
        let expected = text_time("2026-11-21T06:59:00.5Z").unwrap();
        for value in ["2026-11-21T06:59:00.5Z", "2026-11-21T07:59:00.5+01:00", "1795244340500"] {
            assert_eq!(of("header.at", None, None, value), (expected, false), "{value}");
        }
        let second = text_time("2026-11-21T06:59:00Z").unwrap();
        assert_eq!(of("header.at", None, None, "1795244340"), (second, false));
        let json = r#"{"a":1,"time":"2026-11-21T06:59:00Z"}"#;
        assert_eq!(of("body", Some(r#""time":"([^"]+)""#), None, json), (second, false));
        let line = r#"10.0.0.1 - - [21/Nov/2026:07:59:00 +0100] "GET / HTTP/1.1" 200 5"#;
        assert_eq!(of("body", Some(r"\[([^\]]+)\]"), Some("%d/%b/%Y:%H:%M:%S %z"), line), (second, false));
        assert_eq!(
            of("body", Some(r"\S+ \S+$"), Some("%Y-%m-%d %H:%M:%S"), "x 2026-11-21 06:59:00"),
            (second, false)
        );
    }

    #[test]
    fn what_is_no_time_or_of_a_wrong_clock_is_the_records() {
        for value in ["", "soon", "99999999999999999999", "2027-01-01T00:00:00Z", "9999999999"] {
            assert_eq!(of("header.at", None, None, value), (RECORD, true), "{value}");
        }
        assert_eq!(of("header.other", None, None, "1"), (RECORD, true));
        assert_eq!(of("record", None, None, "1"), (RECORD, false));
    }

    #[test]
    fn options_that_do_not_fit() {
        for (time, pattern, format, option) in [
            ("body", None, None, "time_pattern"),
            ("body", Some("("), None, "time_pattern"),
            ("record", Some("x"), None, "time_pattern"),
            ("record", None, Some("%Y"), "time_format"),
            ("header.", None, None, "time"),
            ("yesterday", None, None, "time"),
        ] {
            let error = EventTime::new(time, pattern, format, 0, TimeZone::UTC).unwrap_err();
            assert_eq!(error.option, option, "{time} {error:?}");
        }
    }
}
