//! Buckets: spans of event time that have a directory each.
//!
//! A bucket begins where the clocks of the zone show a whole unit (an hour, a day), so it is what a person calls
//! that hour, and it is as long as that hour really was: when clocks go back, an hour whose name occurs twice is
//! one bucket of two hours; when they go forward, the hour that is left out is no bucket. Units below an hour
//! would break under that, and are for UTC only.

use flumen_pipeline::BuildError;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};

const NS_PER_MINUTE: i64 = 60_000_000_000;

/// The length of buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// This many minutes, counted from the full hour.
    Minutes(i64),
    /// From one full hour to the next.
    Hour,
    /// From midnight to midnight.
    Day,
}

/// The words of the option.
pub(super) const UNITS: &[&str] = &["1m", "5m", "10m", "15m", "30m", "1h", "1d"];

/// A span of event time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bucket {
    /// Its first instant, in nanoseconds since the Unix epoch.
    pub start_ns: i64,
    /// The first instant after it.
    pub end_ns: i64,
}

impl Bucket {
    /// Its first instant, as text.
    pub fn label(&self) -> String {
        time_text(self.start_ns)
    }
}

/// An instant as RFC 3339 in UTC.
pub(super) fn time_text(time_ns: i64) -> String {
    // Every i64 of nanoseconds is within jiff's years.
    Timestamp::from_nanosecond(time_ns.into()).map(|time| time.to_string()).unwrap_or_default()
}

/// Text as [`time_text`] wrote it.
pub(super) fn text_time(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().ok().and_then(|time| i64::try_from(time.as_nanosecond()).ok())
}

/// Which bucket is when.
#[derive(Debug, Clone)]
pub(super) struct Calendar {
    unit: Unit,
    zone: TimeZone,
}

impl Calendar {
    /// `unit` is one of [`UNITS`].
    pub fn new(unit: &str, zone: TimeZone) -> Result<Calendar, BuildError> {
        let unit = match unit {
            "1d" => Unit::Day,
            "1h" => Unit::Hour,
            minutes => Unit::Minutes(minutes.trim_end_matches('m').parse().unwrap_or(1)),
        };
        if matches!(unit, Unit::Minutes(_)) && zone != TimeZone::UTC {
            let fix = "write `time_zone = \"UTC\"`, or buckets of \"1h\" or \"1d\"";
            return Err(BuildError::new(
                "bucket",
                "is shorter than an hour in a zone whose clocks change",
                fix,
            ));
        }
        Ok(Calendar { unit, zone })
    }

    /// The zone of names.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The bucket of an instant.
    pub fn bucket(&self, time_ns: i64) -> Bucket {
        if let (Unit::Minutes(_) | Unit::Hour, true) = (self.unit, self.zone == TimeZone::UTC) {
            let minutes = if let Unit::Minutes(minutes) = self.unit { minutes } else { 60 };
            let length = minutes * NS_PER_MINUTE;
            let start_ns = time_ns.div_euclid(length).saturating_mul(length);
            return Bucket { start_ns, end_ns: start_ns.saturating_add(length) };
        }
        let time = Timestamp::from_nanosecond(time_ns.into()).unwrap_or_default();
        let here = time.to_zoned(self.zone.clone()).datetime();
        let begin = match self.unit {
            Unit::Day => here.date().to_datetime(jiff::civil::Time::midnight()),
            _ => here.with().minute(0).second(0).subsec_nanosecond(0).build().unwrap_or(here),
        };
        let length = if self.unit == Unit::Day { Span::new().days(1) } else { Span::new().hours(1) };
        let end = begin.checked_add(length).unwrap_or(DateTime::MAX);
        let start_ns = self.instant(begin).unwrap_or(time_ns);
        Bucket { start_ns, end_ns: self.instant(end).unwrap_or(i64::MAX) }
    }

    /// The bucket after one.
    pub fn next(&self, bucket: Bucket) -> Bucket {
        self.bucket(bucket.end_ns)
    }

    fn instant(&self, civil: DateTime) -> Option<i64> {
        let zoned: Zoned = civil.to_zoned(self.zone.clone()).ok()?;
        i64::try_from(zoned.timestamp().as_nanosecond()).ok()
    }

    /// What a user typed: `2026-11-21T07`, `2026-11-21`, `2026-11-21T07:15`, or with an offset as in RFC 3339.
    /// Without an offset it is a time of the zone.
    pub fn parse(&self, text: &str) -> Option<i64> {
        if let Some(time_ns) = text_time(text) {
            return Some(time_ns);
        }
        let hour_only = text.len() == 13 && text.as_bytes().get(10).is_some_and(|b| matches!(b, b'T' | b' '));
        let padded = if hour_only { format!("{text}:00") } else { text.to_owned() };
        let civil = padded.parse::<DateTime>().ok()?;
        self.instant(civil)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn calendar(unit: &str, zone: &str) -> Calendar {
        Calendar::new(unit, crate::sinks::file::zone(zone).unwrap()).unwrap()
    }

    fn span(calendar: &Calendar, time: &str) -> (String, String) {
        let bucket = calendar.bucket(text_time(time).unwrap());
        (bucket.label(), time_text(bucket.end_ns))
    }

    #[test]
    fn hours_days_and_changes_of_clocks() {
        for (unit, zone, time, from, to) in [
            ("1h", "UTC", "2026-11-21T07:59:59.999Z", "2026-11-21T07:00:00Z", "2026-11-21T08:00:00Z"),
            ("15m", "UTC", "2026-11-21T07:15:00Z", "2026-11-21T07:15:00Z", "2026-11-21T07:30:00Z"),
            ("1d", "UTC", "1969-12-31T23:59:59Z", "1969-12-31T00:00:00Z", "1970-01-01T00:00:00Z"),
            ("1h", "Asia/Kolkata", "2026-11-21T07:10:00Z", "2026-11-21T06:30:00Z", "2026-11-21T07:30:00Z"),
            // 02:00 to 03:00 occurs twice.
            ("1h", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T00:00:00Z", "2026-10-25T02:00:00Z"),
            ("1h", "Europe/Berlin", "2026-10-25T01:30:00Z", "2026-10-25T00:00:00Z", "2026-10-25T02:00:00Z"),
            // 02:00 to 03:00 does not occur.
            ("1h", "Europe/Berlin", "2026-03-29T00:30:00Z", "2026-03-29T00:00:00Z", "2026-03-29T01:00:00Z"),
            ("1h", "Europe/Berlin", "2026-03-29T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"),
            ("1d", "Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
        ] {
            assert_eq!(span(&calendar(unit, zone), time), (from.into(), to.into()), "{unit} {zone} {time}");
        }
        assert!(Calendar::new("15m", crate::sinks::file::zone("Europe/Berlin").unwrap()).is_err());
    }

    #[test]
    fn what_a_user_types() {
        let berlin = calendar("1h", "Europe/Berlin");
        for text in ["2026-11-21T07", "2026-11-21 07:00", "2026-11-21T06:00:00Z", "2026-11-21T07:00+01:00"] {
            assert_eq!(berlin.parse(text).map(time_text).as_deref(), Some("2026-11-21T06:00:00Z"), "{text}");
        }
        assert_eq!(berlin.parse("2026-11-21").map(time_text).as_deref(), Some("2026-11-20T23:00:00Z"));
        for text in ["", "tomorrow", "2026-13-01", "07", "2026-11-21T"] {
            assert_eq!(berlin.parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn buckets_tile_time(seconds in 0i64..4_000_000_000, which in 0usize..4) {
            let (unit, zone) =
                [("1h", "Europe/Berlin"), ("1d", "America/New_York"), ("10m", "UTC"), ("1h", "Australia/Lord_Howe")][which];
            let calendar = calendar(unit, zone);
            let time = seconds * 1_000_000_000;
            let bucket = calendar.bucket(time);
            prop_assert!(bucket.start_ns <= time && time < bucket.end_ns, "{bucket:?} {time}");
            prop_assert_eq!(calendar.bucket(bucket.start_ns), bucket);
            prop_assert_eq!(calendar.next(bucket).start_ns, bucket.end_ns);
        }
    }
}
