//! Tokens: `Bearer abc`, and the values of keys such as `password=abc`, `"token": "abc"`.

use crate::rows::{RowCursor, Span};
use flumen_sdk::prelude::*;
use memchr::memchr2_iter;
use memchr::memmem::Finder;

/// `Bearer TOKEN` (RFC 6750), in any case that occurs.
pub struct Bearer {
    spellings: [Finder<'static>; 2],
}

impl Default for Bearer {
    fn default() -> Self {
        Self { spellings: [Finder::new(b"earer "), Finder::new(b"EARER ")] }
    }
}

const EARER_LEN: usize = 6;

impl Bearer {
    pub fn find(&self, column: Column<'_>, spans: &mut Vec<Span>) {
        for spelling in &self.spellings {
            let mut rows = RowCursor::new(column);
            for hit in spelling.find_iter(column.data()) {
                let (before, from) = rows.around(hit);
                let token = from.get(EARER_LEN..).unwrap_or_default();
                let len = token.iter().take_while(|byte| is_token(**byte)).count();
                if len > 0 && matches!(before.last(), Some(b'b' | b'B')) {
                    spans.push(Span { start: hit + EARER_LEN, end: hit + EARER_LEN + len });
                }
            }
        }
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=')
}

/// `key=value`, `key: value`, `"key": "value"`, the key in any case and also at the end of a longer one
/// (`user_password`, `accessToken`).
pub struct Keys {
    keys: Vec<Vec<u8>>,
    /// Whether a key ends in this byte: rules out most `=` and `:` of a log line at once.
    is_last: [bool; 256],
}

impl Keys {
    pub fn new(names: &[String]) -> Self {
        let keys: Vec<Vec<u8>> = names.iter().map(|name| name.to_ascii_lowercase().into_bytes()).collect();
        let mut is_last = [false; 256];
        for last in keys.iter().filter_map(|key| key.last()) {
            for byte in [last.to_ascii_lowercase(), last.to_ascii_uppercase()] {
                if let Some(is_last) = is_last.get_mut(usize::from(byte)) {
                    *is_last = true;
                }
            }
        }
        Self { keys, is_last }
    }

    pub fn find(&self, column: Column<'_>, spans: &mut Vec<Span>) {
        let mut rows = RowCursor::new(column);
        for sign in memchr2_iter(b'=', b':', column.data()) {
            let (before, from) = rows.around(sign);
            if !self.is_key(before) {
                continue;
            }
            let after = from.get(1..).unwrap_or_default();
            if let Some((skipped, len)) = value(after) {
                let start = sign + 1 + skipped;
                spans.push(Span { start, end: start + len });
            }
        }
    }

    /// Whether the text before a `=` or `:` ends in a key.
    #[inline]
    fn is_key(&self, before: &[u8]) -> bool {
        let text = match before {
            [text @ .., b'\\', b'"' | b'\''] | [text @ .., b'"' | b'\'' | b' '] => text,
            text => text,
        };
        let Some(last) = text.last() else { return false };
        if !self.is_last.get(usize::from(*last)).copied().unwrap_or(false) {
            return false;
        }
        self.keys.iter().any(|key| {
            match text.len().checked_sub(key.len()).and_then(|at| text.split_at_checked(at)) {
                Some((before, tail)) => tail.eq_ignore_ascii_case(key) && starts_a_word(before, tail),
                None => false,
            }
        })
    }
}

/// Whether `tail` is a word of its own in a name: `user_password`, `userPassword`, not `mypassword`.
fn starts_a_word(before: &[u8], tail: &[u8]) -> bool {
    match before.last() {
        Some(last) if last.is_ascii_alphanumeric() => {
            !last.is_ascii_uppercase() && tail.first().is_some_and(u8::is_ascii_uppercase)
        }
        _ => true,
    }
}

/// In the text behind `=` or `:`: how much stands before the value, and the value's length.
fn value(after: &[u8]) -> Option<(usize, usize)> {
    let blanks = after.iter().take_while(|byte| **byte == b' ').count();
    let text = after.get(blanks..)?;
    let (quote_len, len) = match text {
        // JSON inside of a JSON string.
        [b'\\', b'"', rest @ ..] => {
            (2, rest.iter().position(|byte| matches!(byte, b'\\' | b'"')).unwrap_or(rest.len()))
        }
        [quote @ (b'"' | b'\''), rest @ ..] => (1, quoted_len(rest, *quote)),
        _ => (0, bare_len(text)),
    };
    let is_nothing = quote_len == 0 && matches!(text.get(..len), Some(b"null" | b"true" | b"false"));
    (len > 0 && !is_nothing).then_some((blanks + quote_len, len))
}

fn quoted_len(text: &[u8], quote: u8) -> usize {
    let mut is_escaped = false;
    let end = text.iter().position(|byte| {
        let is_end = *byte == quote && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        is_end
    });
    end.unwrap_or(text.len())
}

/// A word; after the name of an authentication scheme (`authorization: Basic abc`) the next word as well.
fn bare_len(text: &[u8]) -> usize {
    let word_len = word_len(text);
    let word = text.get(..word_len).unwrap_or_default();
    let is_scheme = [&b"basic"[..], b"bearer", b"digest", b"negotiate", b"token"]
        .iter()
        .any(|scheme| word.eq_ignore_ascii_case(scheme));
    match text.get(word_len..) {
        Some([b' ', next @ ..]) if is_scheme => word_len + 1 + self::word_len(next),
        _ => word_len,
    }
}

fn word_len(text: &[u8]) -> usize {
    let is_end = |byte: &u8| {
        byte.is_ascii_whitespace()
            || matches!(byte, b'&' | b';' | b',' | b'"' | b'\'' | b')' | b'}' | b']' | b'>')
    };
    text.iter().position(is_end).unwrap_or(text.len())
}
