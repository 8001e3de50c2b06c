//! The time of an access log line: `10/Oct/2000:13:55:36 -0700`.

/// Its length.
pub const LEN: usize = 26;

const NANOS: i64 = 1_000_000_000;

/// To nanoseconds since the Unix epoch, UTC; or what is wrong and at which byte of `text`. Second 60, a leap second, is
/// the first of the next minute.
pub fn parse(text: &[u8; LEN]) -> Result<i64, (&'static str, usize)> {
    let [d1, d2, b'/', m1, m2, m3, b'/', y1, y2, y3, y4, b':', rest @ ..] = text else {
        return Err(("the date is not `dd/Mmm/yyyy:`", 0));
    };
    let [h1, h2, b':', n1, n2, b':', s1, s2, b' ', sign, zh1, zh2, zm1, zm2] = rest else {
        return Err(("the time of day is not `hh:mm:ss +hhmm`", 12));
    };
    let year = pair(*y1, *y2).zip(pair(*y3, *y4)).map(|(high, low)| high * 100 + low);
    let year = year.ok_or(("the year is not four digits", 7))?;
    let month = month([*m1, *m2, *m3]).ok_or(("the month is not one of Jan to Dec", 3))?;
    let day = within(pair(*d1, *d2), 1, days_in(year, month)).ok_or(("no such day", 0))?;
    let hour = within(pair(*h1, *h2), 0, 23).ok_or(("no such hour", 12))?;
    let minute = within(pair(*n1, *n2), 0, 59).ok_or(("no such minute", 15))?;
    let second = within(pair(*s1, *s2), 0, 60).ok_or(("no such second", 18))?;
    let zone_hours = within(pair(*zh1, *zh2), 0, 23).ok_or(("no such time zone", 22))?;
    let zone_minutes = within(pair(*zm1, *zm2), 0, 59).ok_or(("no such time zone", 24))?;
    let zone = match sign {
        b'+' => zone_hours * 60 + zone_minutes,
        b'-' => -(zone_hours * 60 + zone_minutes),
        _ => return Err(("no sign before the time zone", 21)),
    };
    let seconds = days_since_epoch(year, month, day) * 86_400 + hour * 3_600 + (minute - zone) * 60 + second;
    seconds.checked_mul(NANOS).ok_or(("the year is before 1678 or after 2261", 7))
}

fn pair(tens: u8, ones: u8) -> Option<i64> {
    (tens.is_ascii_digit() && ones.is_ascii_digit())
        .then(|| i64::from(tens - b'0') * 10 + i64::from(ones - b'0'))
}

fn within(value: Option<i64>, min: i64, max: i64) -> Option<i64> {
    value.filter(|value| (min..=max).contains(value))
}

fn month(name: [u8; 3]) -> Option<i64> {
    Some(match &name {
        b"Jan" => 1,
        b"Feb" => 2,
        b"Mar" => 3,
        b"Apr" => 4,
        b"May" => 5,
        b"Jun" => 6,
        b"Jul" => 7,
        b"Aug" => 8,
        b"Sep" => 9,
        b"Oct" => 10,
        b"Nov" => 11,
        b"Dec" => 12,
        _ => return None,
    })
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Source: Howard Hinnant, `days_from_civil`, <https://howardhinnant.github.io/date_algorithms.html>.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> Result<i64, (&'static str, usize)> {
        parse(text.as_bytes().first_chunk().unwrap()).map(|nanos| nanos / NANOS)
    }

    #[test]
    fn times() {
        // Compared with `date -u -d ... +%s`.
        assert_eq!(seconds("10/Oct/2000:13:55:36 -0700"), Ok(971_211_336));
        assert_eq!(seconds("01/Jan/1970:00:00:00 +0000"), Ok(0));
        assert_eq!(seconds("29/Feb/2024:23:59:59 +0530"), Ok(1_709_231_399));
        assert_eq!(seconds("31/Dec/1969:23:59:59 +0000"), Ok(-1));
        assert_eq!(seconds("31/Dec/2016:23:59:60 +0000"), seconds("01/Jan/2017:00:00:00 +0000"));
        assert_eq!(seconds("01/Mar/1900:00:00:00 +0000"), Ok(-2_203_891_200));
    }

    #[test]
    fn problems() {
        assert_eq!(seconds("29/Feb/2023:00:00:00 +0000"), Err(("no such day", 0)));
        assert_eq!(seconds("00/Jan/2023:00:00:00 +0000"), Err(("no such day", 0)));
        assert_eq!(seconds("01/Foo/2023:00:00:00 +0000").unwrap_err().1, 3);
        assert_eq!(seconds("01/Jan/2023:24:00:00 +0000").unwrap_err().1, 12);
        assert_eq!(seconds("01/Jan/2023:00:60:00 +0000").unwrap_err().1, 15);
        assert_eq!(seconds("01/Jan/2023:00:00:61 +0000").unwrap_err().1, 18);
        assert_eq!(seconds("01/Jan/2023:00:00:00  0000").unwrap_err().1, 21);
        assert_eq!(seconds("01/Jan/9999:00:00:00 +0000").unwrap_err().1, 7);
        assert_eq!(seconds("2023-01-01T00:00:00+00:00x").unwrap_err().1, 0);
    }
}
