//! Times as people and JSON write them.

use std::fmt;

/// A time of the calendar, UTC.
pub struct Civil {
    pub year: i64,
    pub month: i64,
    pub day: i64,
    pub hour: i64,
    second_of_day: i64,
    nanos: i64,
}

impl Civil {
    /// Of nanoseconds since the Unix epoch. The algorithm is Howard Hinnant's `civil_from_days`.
    pub fn of(time: i64) -> Civil {
        let (seconds, nanos) = (time.div_euclid(1_000_000_000), time.rem_euclid(1_000_000_000));
        let (days, second_of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        Civil { year, month, day, hour: second_of_day / 3_600, second_of_day, nanos }
    }
}

/// RFC 3339 with milliseconds: the resolution of a date field.
impl fmt::Display for Civil {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Civil { year, month, day, hour, second_of_day, nanos } = self;
        let (minute, second) = (second_of_day / 60 % 60, second_of_day % 60);
        write!(
            out,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z",
            nanos / 1_000_000
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_calendar() {
        for (nanos, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (1_709_164_799_123_456_789, "2024-02-28T23:59:59.123Z"),
            (1_709_251_199_000_000_000, "2024-02-29T23:59:59.000Z"),
            (4_102_444_800_000_000_000, "2100-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(Civil::of(nanos).to_string(), text);
        }
    }
}
