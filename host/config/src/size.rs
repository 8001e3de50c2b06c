//! Sizes: `"64 KiB"`, `"10MB"`, `"8 GiB"`, `"512"`; binary and decimal units, whole numbers.

/// The units, largest first; letters count as the same in either case.
const UNITS: &[(&str, u64)] = &[
    ("PiB", 1 << 50),
    ("PB", 1_000_000_000_000_000),
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// Reads a size in bytes; the error is the reason.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    if digits.is_empty() {
        return Err("a size begins with a whole number".into());
    }
    let unit = unit.trim_start();
    let factor = if unit.is_empty() {
        1
    } else {
        let found = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
        found.map(|(_, factor)| *factor).ok_or_else(|| {
            if unit.starts_with('.') {
                "a size is a whole number".to_owned()
            } else {
                format!("`{}` is not a unit of size", crate::substitute::quote(unit))
            }
        })?
    };
    let number: u64 = digits.parse().map_err(|_| TOO_LARGE.to_owned())?;
    number.checked_mul(factor).ok_or_else(|| TOO_LARGE.to_owned())
}

const TOO_LARGE: &str = "the size is beyond 64 bits";

/// Writes a size in the largest unit that needs no fraction: [`parse_size`] reads it back.
pub fn format_size(bytes: u64) -> String {
    match UNITS.iter().find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{} {unit}", bytes / factor),
        None => "0 B".into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn examples() {
        for (text, bytes) in [
            ("64 KiB", 64 << 10),
            ("10MB", 10_000_000),
            ("8 GiB", 8 << 30),
            ("0", 0),
            (" 12 b ", 12),
            ("5 kb", 5_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "KiB", "-1", "1.5 GiB", "1 K", "1 KiBs", "99999999999 GiB", "99999999999999999999", "٣ B"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*") {
            drop(parse_size(&text));
        }

        #[test]
        fn round_trip(bytes: u64) {
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn round_trip_of_round_numbers(number in 0u64..5_000, unit in 0..UNITS.len()) {
            let bytes = number * UNITS[unit].1;
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
            prop_assert_eq!(parse_size(&format!("{number}{}", UNITS[unit].0)), Ok(bytes));
        }
    }
}
