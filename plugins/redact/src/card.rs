//! Payment card numbers: 13 to 19 digits with a valid check digit (Luhn, ISO/IEC 7812-1), first digit 2 to 6, in one run
//! or in groups with one space or dash between (`4111 1111 1111 1111`, `3782-822463-10005`).
//!
//! Such a number is at least 13 bytes of digits, spaces and dashes, so it is enough to look at every 13th byte of the
//! data: a byte of another kind there rules out all 13.

use crate::rows::{RowCursor, Span};
use flumen_sdk::prelude::*;

const DIGITS_MIN: usize = 13;
const DIGITS_MAX: usize = 19;

pub fn find(column: Column<'_>, spans: &mut Vec<Span>) {
    let data = column.data();
    let mut rows = RowCursor::new(column);
    let mut groups = Vec::new();
    let mut probe = DIGITS_MIN - 1;
    // The end of the last run: what lies before it is done.
    let mut done = 0;
    while let Some(byte) = data.get(probe) {
        if !is_part(*byte) {
            probe += DIGITS_MIN;
            continue;
        }
        let (before, from) = rows.around(probe);
        let back = before.iter().rev().take_while(|byte| is_part(**byte)).count().min(probe - done);
        let run =
            Span { start: probe - back, end: probe + from.iter().take_while(|byte| is_part(**byte)).count() };
        if run.end - run.start >= DIGITS_MIN {
            search(data, run, &mut groups, spans);
        }
        done = run.end;
        // A run that ends with its row may be followed by one at once.
        probe = run.end + DIGITS_MIN - 1;
    }
}

#[inline]
fn is_part(byte: u8) -> bool {
    byte.is_ascii_digit() || byte == b' ' || byte == b'-'
}

/// Looks for cards in a run of digits, spaces and dashes.
fn search(data: &[u8], run: Span, groups: &mut Vec<Span>, spans: &mut Vec<Span>) {
    groups.clear();
    let mut at = run.start;
    for group in data.get(run.start..run.end).unwrap_or_default().split(|byte| !byte.is_ascii_digit()) {
        if !group.is_empty() {
            groups.push(Span { start: at, end: at + group.len() });
        }
        at += group.len() + 1;
    }
    let mut rest = groups.as_slice();
    while let [first, after @ ..] = rest {
        match longest_card(data, rest) {
            Some((end, used)) => {
                spans.push(Span { start: first.start, end });
                rest = rest.get(used..).unwrap_or_default();
            }
            None => rest = after,
        }
    }
}

/// The longest card that starts with the first of these groups: where it ends and how many groups it has.
fn longest_card(data: &[u8], groups: &[Span]) -> Option<(usize, usize)> {
    let first = groups.first()?;
    let mut digits = 0;
    let mut longest = None;
    let mut previous: Option<&Span> = None;
    let mut separator = None;
    for (index, group) in groups.iter().enumerate() {
        if let Some(previous) = previous {
            let here = data.get(previous.end);
            let is_first_four = first.end - first.start == 4;
            let is_group = (2..=6).contains(&(group.end - group.start));
            let is_one =
                group.start == previous.end + 1 && separator.is_none_or(|separator| separator == here);
            if !(is_first_four && is_group && is_one) {
                break;
            }
            separator = Some(here);
        }
        previous = Some(group);
        digits += group.end - group.start;
        if digits > DIGITS_MAX {
            break;
        }
        if digits >= DIGITS_MIN && data.get(first.start..group.end).is_some_and(is_card) {
            longest = Some((group.end, index + 1));
        }
    }
    longest
}

fn is_card(text: &[u8]) -> bool {
    let digits = text.iter().filter(|byte| byte.is_ascii_digit()).map(|byte| u32::from(byte - b'0'));
    let sum: u32 = digits
        .rev()
        .enumerate()
        .map(|(place, digit)| match (place % 2, digit * 2) {
            (0, _) => digit,
            (_, double @ 10..) => double - 9,
            (_, double) => double,
        })
        .sum();
    matches!(text.first(), Some(b'2'..=b'6')) && sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_sdk::testing;

    /// Every run of every row, without the skipping.
    fn find_slowly(rows: &[Vec<u8>]) -> Vec<Span> {
        let data = rows.concat();
        let (mut spans, mut groups, mut at) = (Vec::new(), Vec::new(), 0);
        for row in rows {
            for run in row.split(|byte| !is_part(*byte)) {
                search(&data, Span { start: at, end: at + run.len() }, &mut groups, &mut spans);
                at += run.len() + 1;
            }
            at -= 1;
        }
        spans
    }

    #[test]
    fn skipping_misses_nothing() {
        let mut seed = 11_u32;
        let mut next = |below: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) % below
        };
        let cards: [&[u8]; 5] =
            [b"4111111111111111", b"4222222222222", b"3782-822463-10005", b"5105 1051 0510 5100", b"x"];
        let mut found = 0;
        for _ in 0..5_000 {
            let mut rows: Vec<Vec<u8>> = Vec::new();
            for _ in 0..1 + next(4) {
                let mut row = Vec::new();
                for _ in 0..next(5) {
                    row.extend_from_slice(cards[next(5) as usize]);
                    row.extend((0..next(20)).map(|_| b"0123456789 -ab"[next(14) as usize]));
                }
                rows.push(row);
            }
            let mut spans = Vec::new();
            find(testing::bodies(&rows).body().unwrap(), &mut spans);
            assert_eq!(
                spans,
                find_slowly(&rows),
                "{:?}",
                rows.iter().map(|row| row.escape_ascii().to_string()).collect::<Vec<_>>()
            );
            found += spans.len();
        }
        assert!(found > 1_000);
    }
}
