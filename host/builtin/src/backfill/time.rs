//! The time that stands in a line, at its beginning or near it.
//!
//! Forms: RFC 3339 and ISO 8601 (`2026-11-30T10:00:00.5Z`, `2026-11-30 10:00:00,500 +01:00`), syslog's of RFC 3164 (`Nov 30 10:00:00`,
//! also with a year, as the C library and Apache's error log write it: `Nov 30 10:00:00.5 2026`), Apache's common log format
//! (`[30/Nov/2026:10:00:00 +0000]`), nginx's error log (`2026/11/30 10:00:00`), seconds and milliseconds since 1970 (10 and 13 digits).
//!
//! The first line with a time says which form its file has, and how far from the beginning: a date in a message, or in a
//! stack trace, is not the time of a line. A line that begins with a blank belongs to the line before. A
//! form without zone is read in the zone that is given, one without year in the year that brings it closest before the reference
//! (the time at which the file was written last).
//!
//! Numbers since 1970 are looked for last, and only where a value can begin: many things are ten digits long.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{Offset, TimeZone};
use serde::{Deserialize, Serialize};

/// The forms, for people.
pub const FORMS: &str = "RFC 3339 and ISO 8601 (2026-11-30T10:00:00Z, 2026-11-30 10:00:00,123), syslog (Nov 30 10:00:00), \
    Apache ([30/Nov/2026:10:00:00 +0000]), nginx (2026/11/30 10:00:00), seconds or milliseconds since 1970 (10 or 13 digits)";

/// How many bytes of a line are looked at: an address, a user and more stand before the time of an access log.
const LOOK_BYTES: usize = 256;

/// How much later than in the first line a time may begin: levels and hosts before it differ in length.
const LATER_BYTES: usize = 32;

/// How much later than the reference a time without year may be: clocks differ, and a line may be written while it is read.
const AHEAD_S: i64 = 86_400;

/// How many years before the reference are tried: 29 February is at most eight years away.
const YEARS_BACK: i16 = 8;

const MONTHS: [&[u8]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

/// How a time is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// `2026-11-30T10:00:00Z`, and its relatives.
    Iso,
    /// `Nov 30 10:00:00`.
    Syslog,
    /// `30/Nov/2026:10:00:00 +0000`.
    Apache,
    /// `2026/11/30 10:00:00`.
    Nginx,
    /// Seconds since 1970.
    Seconds,
    /// Milliseconds since 1970.
    Millis,
}

const WRITTEN: [Form; 4] = [Form::Iso, Form::Syslog, Form::Apache, Form::Nginx];
const COUNTED: [Form; 2] = [Form::Seconds, Form::Millis];

/// Where a file has its times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Their form.
    pub form: Form,
    /// Where the first one began in its line.
    pub at: usize,
}

/// Reads times, in nanoseconds since 1970.
#[derive(Debug, Clone)]
pub struct Clock {
    zone: TimeZone,
    reference: Timestamp,
}

impl Clock {
    /// `zone`: of forms that name none. `reference_ns`: about when the lines were written, for forms without a year.
    pub fn new(zone: TimeZone, reference_ns: i64) -> Clock {
        let reference = Timestamp::from_nanosecond(reference_ns.into()).unwrap_or(Timestamp::UNIX_EPOCH);
        Clock { zone, reference }
    }

    /// The time of a line of a file; `seen` is what is known of the file, and is set by its first time.
    pub fn of_line(&self, line: &[u8], seen: &mut Option<Seen>) -> Option<i64> {
        if matches!(line.first(), None | Some(b' ' | b'\t')) {
            return None;
        }
        let Some(Seen { form, at }) = *seen else {
            let (first, time) = self.search(line, LOOK_BYTES, &WRITTEN).or_else(|| {
                // A text with digits is what an eye would take for the time, wherever a number stands.
                self.search(line, LOOK_BYTES, &COUNTED)
            })?;
            *seen = Some(first);
            return Some(time);
        };
        let last = match (form, at) {
            (Form::Apache, _) => LOOK_BYTES,
            (_, 0) => 0,
            (_, at) => at.saturating_add(LATER_BYTES),
        };
        self.search(line, last, &[form]).map(|(_, time)| time)
    }

    /// A time that is all of a text: what an operator writes. The seconds, and the time of the day, may be left out.
    pub fn of_text(&self, text: &str) -> Option<i64> {
        let bytes = text.trim().as_bytes();
        let whole = |form: &Form| {
            let mut rest = Rest(bytes);
            let time = self.read(*form, &mut rest, true)?;
            rest.0.is_empty().then_some(time)
        };
        WRITTEN.iter().chain(&COUNTED).find_map(whole)
    }

    /// The first time of one of these forms that begins at `last` or before.
    fn search(&self, line: &[u8], last: usize, forms: &[Form]) -> Option<(Seen, i64)> {
        let ends = line.len().min(LOOK_BYTES).min(last.saturating_add(1));
        let mut before = None;
        for (at, byte) in line.iter().enumerate().take(ends) {
            if before.is_none_or(|before: u8| !before.is_ascii_alphanumeric()) {
                for form in forms {
                    if !form.may_begin(before, *byte) {
                        continue;
                    }
                    let mut rest = Rest(line.get(at..).unwrap_or_default());
                    if let Some(time) = self.read(*form, &mut rest, false)
                        && !rest.0.first().is_some_and(u8::is_ascii_alphanumeric)
                    {
                        return Some((Seen { form: *form, at }, time));
                    }
                }
            }
            before = Some(*byte);
        }
        None
    }

    fn read(&self, form: Form, rest: &mut Rest<'_>, may_be_short: bool) -> Option<i64> {
        match form {
            Form::Iso => self.iso(rest, may_be_short),
            Form::Syslog => self.syslog(rest),
            Form::Apache => self.apache(rest),
            Form::Nginx => {
                let date = rest.date(b'/')?;
                rest.byte(b" ")?;
                let time = rest.time()?;
                self.local(DateTime::from_parts(date, time))
            }
            Form::Seconds => rest.count(10, 1_000_000_000),
            Form::Millis => rest.count(13, 1_000_000),
        }
    }

    fn iso(&self, rest: &mut Rest<'_>, may_be_short: bool) -> Option<i64> {
        let date = rest.date(b'-')?;
        if may_be_short && rest.0.is_empty() {
            return self.local(DateTime::from_parts(date, Time::midnight()));
        }
        rest.byte(b"Tt _")?;
        let mut ahead = Rest(rest.0);
        let time = match ahead.time() {
            Some(time) => {
                *rest = ahead;
                time
            }
            None if may_be_short => rest.hour_and_minute()?,
            None => return None,
        };
        let date_time = DateTime::from_parts(date, time);
        match rest.zone() {
            Some(offset) => at(offset, date_time),
            None => self.local(date_time),
        }
    }

    fn syslog(&self, rest: &mut Rest<'_>) -> Option<i64> {
        let month = rest.month()?;
        rest.byte(b" ")?;
        // One digit stands behind two blanks, or one.
        let is_padded = rest.byte(b" ").is_some();
        let mut two = Rest(rest.0);
        let day = match two.digits(2).filter(|_| !is_padded) {
            Some(day) => {
                *rest = two;
                day
            }
            None => rest.digits(1)?,
        };
        rest.byte(b" ")?;
        let mut with_year = Rest(rest.0);
        let before = with_year.digits(4).filter(|_| with_year.byte(b" ").is_some());
        if before.is_some() {
            *rest = with_year;
        }
        let time = rest.time()?;
        let mut with_year = Rest(rest.0);
        let behind = with_year.byte(b" ").and_then(|_| with_year.digits(4));
        let is_year = |year: &i16| {
            (1970..2262).contains(year) && !with_year.0.first().is_some_and(u8::is_ascii_alphanumeric)
        };
        let behind = behind.filter(|_| before.is_none()).filter(is_year);
        if behind.is_some() {
            *rest = with_year;
        }
        let day = i8::try_from(day).ok()?;
        match before.or(behind) {
            Some(year) => self.local(DateTime::from_parts(Date::new(year, month, day).ok()?, time)),
            None => self.in_a_year(month, day, time),
        }
    }

    /// The last such day and time that is not behind the reference.
    fn in_a_year(&self, month: i8, day: i8, time: Time) -> Option<i64> {
        let here = self.zone.to_datetime(self.reference).year();
        let latest = self.reference.as_second().saturating_add(AHEAD_S);
        let of_year = |year: i16| {
            let date_time = DateTime::from_parts(Date::new(year, month, day).ok()?, time);
            self.zone.to_timestamp(date_time).ok().filter(|time| time.as_second() <= latest)
        };
        (here.saturating_sub(YEARS_BACK)..=here.saturating_add(1))
            .rev()
            .find_map(of_year)
            .and_then(nanoseconds)
    }

    fn apache(&self, rest: &mut Rest<'_>) -> Option<i64> {
        let day = i8::try_from(rest.digits(2)?).ok()?;
        rest.byte(b"/")?;
        let month = rest.month()?;
        rest.byte(b"/")?;
        let year = rest.digits(4)?;
        rest.byte(b":")?;
        let date_time = DateTime::from_parts(Date::new(year, month, day).ok()?, rest.time()?);
        match rest.zone() {
            Some(offset) => at(offset, date_time),
            None => self.local(date_time),
        }
    }

    fn local(&self, date_time: DateTime) -> Option<i64> {
        self.zone.to_timestamp(date_time).ok().and_then(nanoseconds)
    }
}

impl Form {
    /// Whether it can begin with this byte behind that one: most of a line is none.
    fn may_begin(self, before: Option<u8>, byte: u8) -> bool {
        match self {
            Form::Iso | Form::Apache | Form::Nginx => byte.is_ascii_digit(),
            Form::Syslog => byte.is_ascii_uppercase(),
            // The present numbers begin with a 1, and will until 2033.
            Form::Seconds | Form::Millis => {
                byte == b'1' && matches!(before, None | Some(b'[' | b'(' | b'"' | b':' | b'=' | b'>'))
            }
        }
    }
}

fn at(offset: Offset, date_time: DateTime) -> Option<i64> {
    offset.to_timestamp(date_time).ok().and_then(nanoseconds)
}

/// From 1677 to 2262.
fn nanoseconds(time: Timestamp) -> Option<i64> {
    i64::try_from(time.as_nanosecond()).ok()
}

/// What was not read of a line.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    /// One of these.
    fn byte(&mut self, of: &[u8]) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        of.contains(first).then(|| {
            self.0 = rest;
            *first
        })
    }

    /// A number of so many digits, at most four.
    fn digits(&mut self, count: usize) -> Option<i16> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        let mut number = 0_i16;
        for digit in digits {
            number = number.checked_mul(10)?.checked_add(digit_of(*digit)?.into())?;
        }
        self.0 = rest;
        Some(number)
    }

    /// `2026-11-30`, with this between its parts.
    fn date(&mut self, between: u8) -> Option<Date> {
        let year = self.digits(4)?;
        self.byte(&[between])?;
        let month = i8::try_from(self.digits(2)?).ok()?;
        self.byte(&[between])?;
        let day = i8::try_from(self.digits(2)?).ok()?;
        Date::new(year, month, day).ok()
    }

    fn hour_and_minute(&mut self) -> Option<Time> {
        let hour = i8::try_from(self.digits(2)?).ok()?;
        self.byte(b":")?;
        let minute = i8::try_from(self.digits(2)?).ok()?;
        Time::new(hour, minute, 0, 0).ok()
    }

    /// `10:00:00`, perhaps with a fraction. A leap second is the second before it.
    fn time(&mut self) -> Option<Time> {
        let hour_and_minute = self.hour_and_minute()?;
        self.byte(b":")?;
        let second = i8::try_from(self.digits(2)?).ok()?;
        let second = if second == 60 { 59 } else { second };
        let fraction = self.fraction();
        Time::new(hour_and_minute.hour(), hour_and_minute.minute(), second, fraction).ok()
    }

    /// Nanoseconds; 0 if there is no fraction.
    fn fraction(&mut self) -> i32 {
        let mut ahead = Rest(self.0);
        let is_one = ahead.byte(b".,").is_some() && ahead.0.first().is_some_and(u8::is_ascii_digit);
        if !is_one {
            return 0;
        }
        let (mut value, mut unit) = (0, 100_000_000);
        while let Some((first, rest)) = ahead.0.split_first()
            && let Some(digit) = digit_of(*first)
        {
            // Behind the ninth digit the unit is 0.
            value += i32::from(digit) * unit;
            unit /= 10;
            ahead.0 = rest;
        }
        *self = Rest(ahead.0);
        value
    }

    /// `Z`, ` UTC`, `+01:00`, ` -0500`, `+01`; nothing is read where there is none.
    fn zone(&mut self) -> Option<Offset> {
        let mut ahead = Rest(self.0);
        let is_apart = ahead.byte(b" ").is_some();
        let offset = ahead.utc(is_apart).or_else(|| ahead.offset(is_apart))?;
        if ahead.0.first().is_some_and(u8::is_ascii_alphanumeric) {
            return None;
        }
        self.0 = ahead.0;
        Some(offset)
    }

    fn utc(&mut self, is_apart: bool) -> Option<Offset> {
        let words: &[&[u8]] = if is_apart { &[b"UTC", b"GMT", b"Z"] } else { &[b"Z", b"z"] };
        let line = self.0;
        self.0 = words.iter().find_map(|word| line.strip_prefix(*word))?;
        Some(Offset::UTC)
    }

    fn offset(&mut self, is_apart: bool) -> Option<Offset> {
        let mut ahead = Rest(self.0);
        let sign = if ahead.byte(b"+-")? == b'-' { -1 } else { 1 };
        let hours = ahead.digits(2)?;
        let has_colon = ahead.byte(b":").is_some();
        let minutes = match ahead.digits(2) {
            Some(minutes) => minutes,
            // `+01` alone; a number behind a blank is rather one of the message.
            None if !has_colon && !is_apart => 0,
            None => return None,
        };
        if hours > 14 || minutes > 59 {
            return None;
        }
        let offset =
            Offset::from_seconds(sign * (i32::from(hours) * 3_600 + i32::from(minutes) * 60)).ok()?;
        self.0 = ahead.0;
        Some(offset)
    }

    /// `Nov`.
    fn month(&mut self) -> Option<i8> {
        let (name, rest) = self.0.split_at_checked(3)?;
        let index = MONTHS.iter().position(|month| *month == name)?;
        self.0 = rest;
        i8::try_from(index + 1).ok()
    }

    /// A number of exactly so many digits, perhaps with a fraction, of a unit of so many nanoseconds.
    fn count(&mut self, digits: usize, unit_ns: i64) -> Option<i64> {
        let (number, rest) = self.0.split_at_checked(digits)?;
        if rest.first().is_some_and(u8::is_ascii_digit) {
            return None;
        }
        let mut value = 0_i64;
        for digit in number {
            value = value.checked_mul(10)?.checked_add(digit_of(*digit)?.into())?;
        }
        self.0 = rest;
        let part = i64::from(self.fraction()) * (unit_ns / 1_000) / 1_000_000;
        value.checked_mul(unit_ns)?.checked_add(part)
    }
}

fn digit_of(byte: u8) -> Option<u8> {
    byte.is_ascii_digit().then(|| byte - b'0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ns(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_nanosecond() as i64
    }

    /// Two hours ahead of UTC, last written in the evening of 30 November 2026.
    fn clock() -> Clock {
        Clock::new(TimeZone::fixed(jiff::tz::offset(2)), ns("2026-11-30T20:00:00Z"))
    }

    fn of(line: &str) -> Option<i64> {
        clock().of_line(line.as_bytes(), &mut None)
    }

    #[test]
    fn each_form_is_read() {
        for (line, time) in [
            ("2026-11-30T10:00:00Z started", "2026-11-30T10:00:00Z"),
            ("2026-11-30T10:00:00.25+01:00 started", "2026-11-30T09:00:00.25Z"),
            ("2026-11-30t10:00:00-0330 started", "2026-11-30T13:30:00Z"),
            ("2026-11-30 10:00:00 started", "2026-11-30T08:00:00Z"),
            ("2026-11-30 10:00:00,123 INFO", "2026-11-30T08:00:00.123Z"),
            ("2026-11-30 10:00:00.1234567891 INFO", "2026-11-30T08:00:00.123456789Z"),
            ("2026-11-30 10:00:00 +0000 ruby", "2026-11-30T10:00:00Z"),
            ("2026-11-30 10:00:00.5 UTC [12] LOG", "2026-11-30T10:00:00.5Z"),
            ("2026-11-30 10:00:00 -12 in stock", "2026-11-30T08:00:00Z"),
            ("2026-11-30 10:00:00-web-1", "2026-11-30T08:00:00Z"),
            ("2026-11-30 23:59:60Z leap", "2026-11-30T23:59:59Z"),
            ("[INFO] 2026-11-30 10:00:00 started", "2026-11-30T08:00:00Z"),
            (r#"{"level":1234567890,"time":"2026-11-30T10:00:00Z"}"#, "2026-11-30T10:00:00Z"),
            ("Nov 30 10:00:00 web sshd[7]: in", "2026-11-30T08:00:00Z"),
            ("<34>Nov  3 10:00:00 web su: in", "2026-11-03T08:00:00Z"),
            ("Nov 3 10:00:00.5 web su: in", "2026-11-03T08:00:00.5Z"),
            ("Dec 30 10:00:00 a year ago", "2025-12-30T08:00:00Z"),
            ("Dec  1 10:00:00 a clock that is ahead", "2026-12-01T08:00:00Z"),
            ("Feb 29 10:00:00 in a leap year", "2024-02-29T08:00:00Z"),
            ("Nov 30 2020 10:00:00 cisco", "2020-11-30T08:00:00Z"),
            ("[Mon Nov 30 10:00:00.123456 2020] [core:error]", "2020-11-30T08:00:00.123456Z"),
            (r#"::1 - frank [30/Nov/2026:10:00:00 -0700] "GET /"#, "2026-11-30T17:00:00Z"),
            ("30/Nov/2026:10:00:00 no zone", "2026-11-30T08:00:00Z"),
            ("2026/11/30 10:00:00 [error] 7#7: *1", "2026-11-30T08:00:00Z"),
            ("2026/11/30 10:00:00.25 go", "2026-11-30T08:00:00.25Z"),
            ("1796032800 started", "2026-11-30T10:00:00Z"),
            ("1796032800.123    45 10.0.0.1 TCP_MISS", "2026-11-30T10:00:00.123Z"),
            (r#"{"ts":1796032800123,"n":1}"#, "2026-11-30T10:00:00.123Z"),
            ("ts=1796032800123.5 n=1", "2026-11-30T10:00:00.1235Z"),
        ] {
            assert_eq!(of(line), Some(ns(time)), "{line}");
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for line in [
            "",
            "started",
            " 2026-11-30T10:00:00Z behind a blank",
            "\tat Main.main(2026-11-30T10:00:00Z)",
            "x2026-11-30T10:00:00Z",
            "2026-11-30",
            "2026-11-30T10:00",
            "2026-13-30T10:00:00Z",
            "2026-02-30 10:00:00",
            "2026-11-30T25:00:00Z",
            "2026-11-30T10:00:00Zulu",
            "Nov 31 10:00:00",
            "Now 30 10:00:00",
            "17960328001 eleven digits",
            "id 1796032800 is no place of a time",
            "0796032800 not of this time",
        ] {
            assert_eq!(of(line), None, "{line}");
        }
        let late = format!("{} 2026-11-30T10:00:00Z", "x".repeat(LOOK_BYTES));
        assert_eq!(of(&late), None);
    }

    /// What the first time of a file says counts for the others.
    #[test]
    fn a_date_in_a_message_is_not_the_time_of_its_line() {
        let (clock, mut seen) = (clock(), None);
        let mut read = |line: &str| clock.of_line(line.as_bytes(), &mut seen);
        assert_eq!(read("no time yet"), None);
        assert!(read("2026-11-30T10:00:00Z the first").is_some());
        assert_eq!(read("Caused by: Late: due 2026-11-29T10:00:00Z"), None);
        assert_eq!(read("2026/11/30 10:00:00 another form"), None);
        assert!(read("2026-11-30 10:00:01 without a zone").is_some());

        let mut seen = None;
        let mut read = |line: &str| clock.of_line(line.as_bytes(), &mut seen);
        assert!(read("INFO 2026-11-30T10:00:00Z").is_some());
        assert!(read("CRITICAL 2026-11-30T10:00:00Z").is_some());
        assert_eq!(
            read("at position 17 of the statement that was sent by 10.0.0.1: 2026-11-30T10:00:00Z"),
            None
        );

        let mut seen = None;
        let mut read = |line: &str| clock.of_line(line.as_bytes(), &mut seen);
        assert!(read("::1 - - [30/Nov/2026:10:00:00 +0000]").is_some());
        let long = format!("2001:db8::{} - - [30/Nov/2026:10:00:00 +0000]", "f".repeat(150));
        assert!(read(&long).is_some(), "whatever stands before it");
    }

    #[test]
    fn an_operator_may_leave_parts_out() {
        for (text, time) in [
            ("2026-11-30", "2026-11-29T22:00:00Z"),
            (" 2026-11-30 10:00 ", "2026-11-30T08:00:00Z"),
            ("2026-11-30T10:00Z", "2026-11-30T10:00:00Z"),
            ("2026-11-30T10:00:00.5+02:00", "2026-11-30T08:00:00.5Z"),
            ("30/Nov/2026:10:00:00 +0000", "2026-11-30T10:00:00Z"),
            ("Nov 30 10:00:00", "2026-11-30T08:00:00Z"),
            ("1796032800", "2026-11-30T10:00:00Z"),
        ] {
            assert_eq!(clock().of_text(text), Some(ns(time)), "{text}");
        }
        for text in ["", "2026-11-30T10:00:00Z x", "yesterday", "2026-11", "10:00"] {
            assert_eq!(clock().of_text(text), None, "{text}");
        }
    }

    /// In a zone with summer time: the hour that there is twice is its first one, the one that there is not is the next.
    #[test]
    fn hours_of_a_change_of_the_clocks_have_a_time() {
        let rule = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let clock = Clock::new(rule, ns("2026-11-30T20:00:00Z"));
        let read = |line: &str| clock.of_line(line.as_bytes(), &mut None);
        assert_eq!(read("2026-10-25 02:30:00 x"), Some(ns("2026-10-25T00:30:00Z")));
        assert_eq!(read("2026-03-29 02:30:00 x"), Some(ns("2026-03-29T01:30:00Z")));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(line in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut seen = None;
            clock().of_line(&line, &mut seen);
            for form in WRITTEN.into_iter().chain(COUNTED) {
                clock().of_line(&line, &mut Some(Seen { form, at: line.len() }));
            }
            clock().of_text(&String::from_utf8_lossy(&line));
        }

        /// Nearly a time is harder than noise.
        #[test]
        fn changed_times_are_read_without_a_panic(
            which in 0..8_usize, at in 0..40_usize, byte in any::<u8>(), cut in 0..60_usize,
        ) {
            let lines: [&[u8]; 8] = [
                b"2026-11-30T10:00:00.123456789+01:00 x", b"2026-11-30 10:00:00,1 UTC x", b"Nov 30 10:00:00 2026 x",
                b"Feb 29 10:00:00 x", b"[30/Nov/2026:10:00:00 +0000]", b"2026/11/30 10:00:00 x", b"1796032800.123 x",
                b"9999-12-31T23:59:60-14:00 x",
            ];
            let mut line = lines[which].to_vec();
            if let Some(changed) = line.get_mut(at) {
                *changed = byte;
            }
            line.truncate(cut);
            clock().of_line(&line, &mut None);
            clock().of_text(&String::from_utf8_lossy(&line));
        }
    }
}
