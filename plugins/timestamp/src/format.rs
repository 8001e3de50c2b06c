//! How a time is written.

use jiff::civil::DateTime;
use jiff::fmt::strtime::BrokenDownTime;
use jiff::fmt::temporal::DateTimeParser;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// Longest text that a time is looked for in: formats are shorter.
const TEXT_BYTES_MAX: usize = 128;

pub struct Format {
    kind: Kind,
    zone: TimeZone,
}

enum Kind {
    /// `2026-01-02T03:04:05.6Z`, with a blank for the `T` if one likes.
    Rfc3339,
    /// A number, of which one second has this many.
    Unix(u32),
    /// As `strptime` has it.
    Pattern(String),
}

impl Format {
    pub fn new(format: &str, zone: &str) -> Result<Format, String> {
        let zone = match zone {
            "UTC" | "Z" => TimeZone::UTC,
            other => DateTimeParser::new().parse_time_zone(other).map_err(|error| {
                format!("config.zone: {error}; write a name such as \"Europe/Berlin\" or an offset such as \"+02:00\"")
            })?,
        };
        let kind = match format {
            "rfc3339" | "iso8601" => Kind::Rfc3339,
            "unix" => Kind::Unix(1),
            "unix-ms" => Kind::Unix(1_000),
            "unix-us" => Kind::Unix(1_000_000),
            "unix-ns" => Kind::Unix(1_000_000_000),
            pattern => {
                check(pattern)?;
                Kind::Pattern(pattern.to_owned())
            }
        };
        Ok(Format { kind, zone })
    }

    /// The time at the beginning of a text, in nanoseconds since the Unix epoch. `present`: the time that the event
    /// has, near which a time without a year is.
    pub fn read(&self, text: &[u8], present: i64) -> Result<i64, String> {
        let text = text.get(..TEXT_BYTES_MAX).unwrap_or(text).trim_ascii_start();
        match &self.kind {
            Kind::Unix(per_second) => unix(text, *per_second),
            Kind::Rfc3339 => self.rfc3339(text),
            Kind::Pattern(pattern) => self.pattern(pattern, text, present),
        }
    }

    fn rfc3339(&self, text: &[u8]) -> Result<i64, String> {
        let is_part = |byte: &u8| byte.is_ascii_digit() || b"-+:.,TtZz".contains(byte);
        let end = text.iter().position(|byte| !is_part(byte)).unwrap_or(text.len());
        // A blank may stand for the `T`.
        let end = match (end, text.get(10)) {
            (10, Some(b' ')) => {
                let rest = text.get(11..).unwrap_or_default();
                11 + rest.iter().position(|byte| !is_part(byte)).unwrap_or(rest.len())
            }
            _ => end,
        };
        let mut found = text.get(..end).unwrap_or_default();
        // Punctuation of the sentence around it.
        while let Some((last, rest)) = found.split_last()
            && b"-+:.,".contains(last)
        {
            found = rest;
        }
        let parser = DateTimeParser::new();
        if let Ok(time) = parser.parse_timestamp(found) {
            return nanoseconds(time);
        }
        let civil = parser.parse_datetime(found).map_err(|error| error.to_string())?;
        self.in_zone(civil)
    }

    fn pattern(&self, pattern: &str, text: &[u8], present: i64) -> Result<i64, String> {
        let (mut parts, _) =
            BrokenDownTime::parse_prefix(pattern, text).map_err(|error| error.to_string())?;
        if parts.timestamp().is_none() && parts.year().is_none() && parts.month().is_some() {
            return self.nearest_year(&mut parts, present);
        }
        if parts.timestamp().is_some() || parts.offset().is_some() || parts.iana_time_zone().is_some() {
            return nanoseconds(parts.to_timestamp().map_err(|error| error.to_string())?);
        }
        self.in_zone(civil(&parts)?)
    }

    /// `Oct 11 22:14:15`: of last year, this one and the next, the year that brings it nearest to the event's time; for
    /// a 29th of February, which none of them may have, the last year that had one.
    fn nearest_year(&self, parts: &mut BrokenDownTime, present: i64) -> Result<i64, String> {
        let now = Timestamp::from_nanosecond(i128::from(present)).map_err(|error| error.to_string())?;
        let this_year = now.to_zoned(self.zone.clone()).year();
        let mut of = |year: i16| {
            parts.set_year(Some(year)).map_err(|error| error.to_string())?;
            self.in_zone(civil(parts)?)
        };
        let near = [this_year - 1, this_year, this_year + 1].map(&mut of);
        let nearest = near.iter().flatten().min_by_key(|time| time.abs_diff(present)).copied();
        match (nearest, near) {
            (Some(time), _) => Ok(time),
            (None, [problem, ..]) => (2..=8).find_map(|ago| of(this_year - ago).ok()).map_or(problem, Ok),
        }
    }

    /// A time that a clock of the zone showed. Of the two hours when it was set back the first; in the hour that it
    /// skipped, as if it had not been set.
    fn in_zone(&self, civil: DateTime) -> Result<i64, String> {
        let time = self.zone.to_ambiguous_timestamp(civil).compatible();
        nanoseconds(time.map_err(|error| error.to_string())?)
    }
}

fn civil(parts: &BrokenDownTime) -> Result<DateTime, String> {
    match parts.hour() {
        // A date alone is its midnight.
        None => parts.to_date().map(|date| date.at(0, 0, 0, 0)).map_err(|error| error.to_string()),
        // Second 60, a leap second, is the first of the next minute.
        Some(_) if parts.second() == Some(60) => {
            let civil = parts.to_datetime().map_err(|error| error.to_string())?;
            civil.checked_add(1.second()).map_err(|error| error.to_string())
        }
        Some(_) => parts.to_datetime().map_err(|error| error.to_string()),
    }
}

fn nanoseconds(time: Timestamp) -> Result<i64, String> {
    i64::try_from(time.as_nanosecond()).map_err(|_| "the year is before 1678 or after 2261".to_owned())
}

/// Digits, and a fraction if one likes: exact, without floating point.
fn unix(text: &[u8], per_second: u32) -> Result<i64, String> {
    const TOO_LARGE: &str = "the number is too large for a time in this unit";
    let (is_negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 {
        return Err("it does not begin with a number".to_owned());
    }
    let (whole, rest) = text.split_at(digits);
    let unit = 1_000_000_000 / i64::from(per_second);
    let mut number = 0_i64;
    for digit in whole {
        let grown = number.checked_mul(10).and_then(|number| number.checked_add(i64::from(digit - b'0')));
        number = grown.ok_or(TOO_LARGE)?;
    }
    let mut nanos = number.checked_mul(unit).ok_or(TOO_LARGE)?;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let mut unit = unit / 10;
        for digit in fraction.iter().take_while(|byte| byte.is_ascii_digit()) {
            nanos = nanos.checked_add(unit * i64::from(digit - b'0')).ok_or(TOO_LARGE)?;
            unit /= 10;
        }
    }
    Ok(if is_negative { -nanos } else { nanos })
}

/// A pattern is tried on a time that it wrote itself: what it cannot read back, it never reads.
fn check(pattern: &str) -> Result<(), String> {
    let wrong = |reason: String| {
        Err(format!("config.format: {reason}; see README.md for what may stand in a format"))
    };
    if !pattern.contains('%') {
        return wrong(format!("`{pattern}` is not known and no pattern: it has no `%`"));
    }
    let sample = DateTime::constant(2025, 10, 25, 13, 45, 56, 123_456_789);
    let zoned = match TimeZone::UTC.to_zoned(sample) {
        Ok(zoned) => zoned,
        Err(error) => return wrong(error.to_string()),
    };
    let written = match jiff::fmt::strtime::format(pattern, &zoned) {
        Ok(written) => written,
        Err(error) => return wrong(error.to_string()),
    };
    match BrokenDownTime::parse(pattern, &written) {
        Ok(parts) if parts.timestamp().is_some() || (parts.month().is_some() && parts.day().is_some()) => {
            Ok(())
        }
        Ok(parts) if parts.day_of_year().is_some() => Ok(()),
        Ok(_) => wrong("it has no day and month".to_owned()),
        Err(error) => wrong(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRESENT: i64 = 1_767_400_000_000_000_000;

    #[track_caller]
    fn check_time(format: &str, zone: &str, text: &str, expected: &str) {
        let read = Format::new(format, zone).unwrap().read(text.as_bytes(), PRESENT).unwrap();
        assert_eq!(Timestamp::from_nanosecond(i128::from(read)).unwrap().to_string(), expected);
    }

    #[test]
    fn formats() {
        check_time("rfc3339", "UTC", "2026-01-02T03:04:05.678+01:00 rest", "2026-01-02T02:04:05.678Z");
        check_time("rfc3339", "UTC", "2026-01-02 03:04:05, rest", "2026-01-02T03:04:05Z");
        check_time("rfc3339", "Europe/Berlin", "2026-07-02T03:04:05", "2026-07-02T01:04:05Z");
        check_time("unix", "UTC", "1767323045.123456789x", "2026-01-02T03:04:05.123456789Z");
        check_time("unix-ms", "UTC", "1767323045678", "2026-01-02T03:04:05.678Z");
        check_time("unix-us", "UTC", "-1", "1969-12-31T23:59:59.999999Z");
        check_time("unix-ns", "UTC", "1", "1970-01-01T00:00:00.000000001Z");
        check_time(
            "%d/%b/%Y:%H:%M:%S %z",
            "UTC",
            "10/Oct/2000:13:55:36 -0700] \"GET",
            "2000-10-10T20:55:36Z",
        );
        check_time(
            "%Y-%m-%d %H:%M:%S,%f",
            "+02:00",
            "2026-01-02 03:04:05,678 INFO",
            "2026-01-02T01:04:05.678Z",
        );
        check_time("%Y%m%d", "UTC", "20260102", "2026-01-02T00:00:00Z");
        check_time("%s", "UTC", "1767323045", "2026-01-02T03:04:05Z");
    }

    #[test]
    fn a_time_without_a_year_is_near_the_event() {
        // The event was read on 2026-01-03.
        check_time("%b %d %H:%M:%S", "UTC", "Jan  2 03:04:05 host", "2026-01-02T03:04:05Z");
        check_time("%b %d %H:%M:%S", "UTC", "Dec 31 23:59:59 host", "2025-12-31T23:59:59Z");
        check_time("%b %d %H:%M:%S", "UTC", "Feb 29 00:00:00 host", "2024-02-29T00:00:00Z");
    }

    #[test]
    fn clocks_that_are_set() {
        check_time("%F %T", "Europe/Berlin", "2026-10-25 02:30:00", "2026-10-25T00:30:00Z");
        check_time("%F %T", "Europe/Berlin", "2026-03-29 02:30:00", "2026-03-29T01:30:00Z");
    }

    #[test]
    fn what_is_no_time() {
        let read = |format: &str, text: &[u8]| Format::new(format, "UTC").unwrap().read(text, PRESENT);
        for text in [&b""[..], b"x", b"\xff\xfe", b"2026-02-30T00:00:00Z", b"99999999999999999999"] {
            for format in ["rfc3339", "unix", "unix-ns", "%F %T", "%b %d %H:%M:%S"] {
                let outcome = read(format, text);
                let is_number = format.starts_with("unix") && text.starts_with(b"2026");
                assert_eq!(outcome.is_ok(), is_number, "{format} {text:?}: {outcome:?}");
            }
        }
        assert!(Format::new("%H:%M", "UTC").map(|_| ()).unwrap_err().contains("no day and month"));
        assert!(Format::new("rfc", "UTC").map(|_| ()).unwrap_err().contains("no `%`"));
    }
}
