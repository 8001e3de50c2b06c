//! Header values as parts of a path: an event must never leave the directory.
//!
//! Replaced by `_`: `/`, NUL, all control characters, and every dot before the first other character.
//! So a value is never `.` or `..`, hides no file and makes no directory. Two values that differ only in
//! such characters share their files.

use crate::sinks::limits::PATH_VALUE_BYTES_MAX;

/// Appends a value, at most [`PATH_VALUE_BYTES_MAX`] bytes of it.
pub(super) fn push_value(value: &str, out: &mut String) {
    let start = out.len();
    let mut leading = true;
    for character in value.chars() {
        if out.len() - start + character.len_utf8() > PATH_VALUE_BYTES_MAX {
            break;
        }
        let bad = character == '/' || character.is_control() || (leading && character == '.');
        leading = leading && character == '.';
        out.push(if bad { '_' } else { character });
    }
}

/// The longest prefix of at most `bytes` bytes.
pub(super) fn prefix(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(text: &str) -> String {
        let mut out = String::new();
        push_value(text, &mut out);
        out
    }

    #[test]
    fn values_stay_inside_their_directory() {
        for (given, expected) in [
            ("web-1", "web-1"),
            ("../../etc/passwd", "___.._etc_passwd"),
            ("..", "__"),
            (".hidden", "_hidden"),
            ("a.b.", "a.b."),
            ("a\0b\nc\u{85}d\u{7f}", "a_b_c_d_"),
            ("ünïcode", "ünïcode"),
            ("\\..\\", "\\..\\"),
        ] {
            assert_eq!(value(given), expected);
        }
        assert_eq!(value(&"ü".repeat(300)).len(), PATH_VALUE_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn whatever_the_value_the_result_is_one_harmless_name(text in ".*") {
            let name = value(&text);
            prop_assert!(!name.contains(['/', '\0', '\n']) && !name.starts_with('.'));
            prop_assert!(name.len() <= PATH_VALUE_BYTES_MAX && name.is_empty() == text.is_empty());
        }
    }
}
