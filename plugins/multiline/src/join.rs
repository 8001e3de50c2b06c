//! Which lines belong together. Pure: lines in, events out, what is open between two batches as bytes.
//!
//! An event is known to be whole when the next one begins. So it leaves the flow with the line that says so: it takes that
//! line's place, headers and identity, and keeps the text and the time of its own lines. Every row stands for one event at
//! most, and events of a stream keep their order.

use re::bytes::Regex;

/// What tells where events begin or end.
pub enum Boundary {
    /// A line that matches begins an event.
    Start(Regex),
    /// A line that matches goes on with the one before.
    Continue(Regex),
    /// A line that matches ends an event.
    End(Regex),
}

/// When an event is whole although no line says so.
pub struct Limits {
    pub lines: u32,
    pub bytes: usize,
}

/// An event that may go on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Open {
    /// Of its first line.
    pub time: i64,
    /// When a tick first saw it as it is now; 0: none has.
    pub seen: i64,
    pub lines: u32,
    pub text: Vec<u8>,
    /// Values of the headers that are kept for it.
    pub headers: Vec<Option<String>>,
}

impl Open {
    fn of(line: &[u8], time: i64) -> Open {
        Open { time, seen: 0, lines: 1, text: line.to_vec(), headers: Vec::new() }
    }

    fn add(&mut self, line: &[u8]) {
        self.text.push(b'\n');
        self.text.extend_from_slice(line);
        self.lines += 1;
        self.seen = 0;
    }

    /// `i64 time, i64 seen, u32 lines, u32 headers, (u32 length + 1 or 0, bytes)*, text`, little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24 + self.text.len());
        out.extend_from_slice(&self.time.to_le_bytes());
        out.extend_from_slice(&self.seen.to_le_bytes());
        out.extend_from_slice(&self.lines.to_le_bytes());
        out.extend_from_slice(&(self.headers.len() as u32).to_le_bytes());
        for value in &self.headers {
            let length = value.as_ref().map_or(0, |value| value.len() as u32 + 1);
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(value.as_deref().unwrap_or_default().as_bytes());
        }
        out.extend_from_slice(&self.text);
        out
    }

    /// `None`: not what [`Open::encode`] wrote.
    pub fn decode(mut bytes: &[u8]) -> Option<Open> {
        let time = i64::from_le_bytes(take(&mut bytes)?);
        let seen = i64::from_le_bytes(take(&mut bytes)?);
        let lines = u32::from_le_bytes(take(&mut bytes)?);
        let count = u32::from_le_bytes(take(&mut bytes)?);
        let mut headers = Vec::new();
        for _ in 0..count {
            let value = match u32::from_le_bytes(take(&mut bytes)?) {
                0 => None,
                length => {
                    let (value, rest) = bytes.split_at_checked(length as usize - 1)?;
                    bytes = rest;
                    Some(str::from_utf8(value).ok()?.to_owned())
                }
            };
            headers.push(value);
        }
        Some(Open { time, seen, lines, text: bytes.to_vec(), headers })
    }
}

fn take<const WIDTH: usize>(bytes: &mut &[u8]) -> Option<[u8; WIDTH]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

/// Gives a line to what is open. Returns the event that is whole now.
pub fn join(boundary: &Boundary, limits: &Limits, open: &mut Option<Open>, line: &[u8], time: i64) -> Option<Open> {
    let begins = match boundary {
        Boundary::Start(start) => start.is_match(line),
        Boundary::Continue(goes_on) => !goes_on.is_match(line),
        Boundary::End(_) => false,
    };
    let whole = match open {
        Some(_) if begins => open.replace(Open::of(line, time)),
        // The line would make it too large: it begins the next one.
        Some(event) if event.text.len() + 1 + line.len() > limits.bytes => open.replace(Open::of(line, time)),
        Some(event) => {
            event.add(line);
            None
        }
        None => {
            *open = Some(Open::of(line, time));
            None
        }
    };
    let is_over = open.as_ref().is_some_and(|event| event.lines >= limits.lines);
    let ends = matches!(boundary, Boundary::End(end) if end.is_match(line));
    match whole {
        // One event for one row: what this line has closed as well waits for the next one.
        Some(whole) => Some(whole),
        None if is_over || ends => open.take(),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(boundary: Boundary, limits: &Limits, lines: &[&str]) -> (Vec<String>, Option<String>) {
        let mut open = None;
        let text = |open: Open| String::from_utf8(open.text).unwrap();
        let mut out = Vec::new();
        for (time, line) in lines.iter().enumerate() {
            out.extend(join(&boundary, limits, &mut open, line.as_bytes(), time as i64).map(text));
            // What is open may be stored between any two lines.
            open = open.map(|open: Open| Open::decode(&open.encode()).unwrap());
        }
        (out, open.map(text))
    }

    const WIDE: Limits = Limits { lines: 100, bytes: 1_000 };

    fn regex(pattern: &str) -> Regex {
        Regex::new(pattern).unwrap()
    }

    #[test]
    fn boundaries() {
        let lines = ["A 1", " a", " b", "B 2", "C 3", " c"];
        let whole = (vec!["A 1\n a\n b".to_owned(), "B 2".into()], Some("C 3\n c".to_owned()));
        assert_eq!(run(Boundary::Start(regex("^[A-Z]")), &WIDE, &lines), whole);
        assert_eq!(run(Boundary::Continue(regex("^ ")), &WIDE, &lines), whole);
        let ended = run(Boundary::End(regex(";$")), &WIDE, &["a", "b;", "c;", "d"]);
        assert_eq!(ended, (vec!["a\nb;".to_owned(), "c;".into()], Some("d".to_owned())));
    }

    #[test]
    fn an_event_has_an_end() {
        let few = Limits { lines: 3, bytes: 1_000 };
        let lines = ["A", " 1", " 2", " 3", " 4", "B"];
        let (whole, open) = run(Boundary::Start(regex("^[A-Z]")), &few, &lines);
        assert_eq!(whole, ["A\n 1\n 2", " 3\n 4"]);
        assert_eq!(open.as_deref(), Some("B"));
        let small = Limits { lines: 100, bytes: 7 };
        let (whole, open) = run(Boundary::Start(regex("^[A-Z]")), &small, &["A", " 12", " 34", " 5"]);
        assert_eq!((whole, open.as_deref()), (vec!["A\n 12".to_owned()], Some(" 34\n 5")));
    }

    #[test]
    fn no_byte_is_lost_or_doubled_and_each_row_stands_for_one_event() {
        let pieces = ["A", "B;", " c", " d;", "", " long long long"];
        let mut seed = 9_u32;
        let mut next = |below: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) as usize % below
        };
        for round in 0..600 {
            let lines: Vec<&str> = (0..next(20)).map(|_| pieces[next(pieces.len())]).collect();
            let limits = Limits { lines: 1 + next(5) as u32, bytes: 1 + next(30) };
            let boundary = match round % 3 {
                0 => Boundary::Start(regex("^[A-Z]")),
                1 => Boundary::Continue(regex("^ ")),
                _ => Boundary::End(regex(";$")),
            };
            let (whole, open) = run(boundary, &limits, &lines);
            let all: Vec<&str> = whole.iter().chain(&open).flat_map(|text| text.split('\n')).collect();
            assert_eq!(all, lines, "{round}");
        }
    }

    #[test]
    fn bytes_of_others_are_refused() {
        let open = Open { headers: vec![None, Some("é".into()), Some(String::new())], ..Open::of(b"x", 7) };
        let bytes = open.encode();
        assert_eq!(Open::decode(&bytes), Some(open));
        for cut in 0..bytes.len() - 1 {
            // A cut within the text is a shorter text.
            assert!(Open::decode(&bytes[..cut]).is_none(), "{cut}");
        }
    }
}
