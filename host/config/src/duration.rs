//! Durations: `"250ms"`, `"10s"`, `"1h30m"`; whole numbers, each unit once, larger units first.

use std::time::Duration;

/// The units in nanoseconds, largest first.
const UNITS: &[(&str, u128)] = &[
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Reads a duration; the error is the reason.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    let mut units = UNITS.iter();
    let mut total: u128 = 0;
    if rest.is_empty() {
        return Err("a duration is not empty".into());
    }
    while !rest.is_empty() {
        let (digits, after) = split(rest, |c| c.is_ascii_digit());
        if digits.is_empty() {
            return Err("a duration is whole numbers, each with its unit".into());
        }
        let (unit, after) = split(after.trim_start(), |c| !c.is_ascii_digit() && !c.is_whitespace());
        let factor = match units.find(|(name, _)| *name == unit) {
            Some((_, factor)) => *factor,
            None if unit.is_empty() => {
                return Err(format!("`{}` has no unit", crate::substitute::quote(digits)));
            }
            None if UNITS.iter().any(|(name, _)| *name == unit) => {
                return Err("each unit stands once, larger ones first".into());
            }
            None => return Err(format!("`{}` is not a unit of time", crate::substitute::quote(unit))),
        };
        let number: u64 = digits.parse().map_err(|_| TOO_LONG.to_owned())?;
        total = total.checked_add(u128::from(number) * factor).ok_or(TOO_LONG)?;
        rest = after.trim_start();
    }
    let seconds = u64::try_from(total / NANOS).map_err(|_| TOO_LONG.to_owned())?;
    let nanoseconds = u32::try_from(total % NANOS).map_err(|_| TOO_LONG.to_owned())?;
    Ok(Duration::new(seconds, nanoseconds))
}

const NANOS: u128 = 1_000_000_000;
const TOO_LONG: &str = "the duration is too long";

fn split(text: &str, inside: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !inside(c)).unwrap_or(text.len()))
}

/// Writes a duration; [`parse_duration`] reads it back.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = duration.as_nanos();
    if rest == 0 {
        return "0s".into();
    }
    let mut text = String::new();
    for (unit, factor) in UNITS {
        if rest >= *factor {
            text.push_str(&format!("{}{unit}", rest / factor));
            rest %= factor;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn examples() {
        for (text, ms) in [
            ("250ms", 250),
            ("10s", 10_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
            ("1h30m", 5_400_000),
            (" 1h 30m ", 5_400_000),
            ("2 s", 2_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in
            ["", "5", "s", "-1s", "1.5s", "1 week", "30m1h", "1s1s", "1h30", "99999999999999999999s", "1M"]
        {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(format_duration(Duration::from_millis(5_400_250)), "1h30m250ms");
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*") {
            drop(parse_duration(&text));
        }

        #[test]
        fn never_panics_on_what_looks_right(text in "([0-9]{1,22}(d|h|m|s|ms|us|ns| )){0,5}") {
            drop(parse_duration(&text));
        }

        #[test]
        fn round_trip(seconds: u64, nanoseconds in 0u32..1_000_000_000) {
            let duration = Duration::new(seconds, nanoseconds);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }
}
