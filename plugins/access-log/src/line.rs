//! One line of the formats `common` and `combined` of Apache httpd and nginx:
//!
//! ```text
//! client ident user [10/Oct/2000:13:55:36 -0700] "method path protocol" status bytes "referer" "agent"
//! ```
//!
//! Source: <https://httpd.apache.org/docs/2.4/logs.html#accesslog>. In quoted fields a quote is written `\"` (httpd) or
//! `\x22` (nginx), so a quote that no backslash precedes ends the field.

use crate::time;
use core::fmt;
use memchr::{memchr, memchr2, memmem, memrchr};

/// The fields that become headers, in the order of [`Line::fields`].
pub const FIELDS: [&str; 11] =
    ["client", "ident", "user", "method", "path", "protocol", "status", "bytes", "referer", "agent", "extra"];

/// A field's place in its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// The byte after the last one.
    pub end: usize,
}

impl Span {
    const ABSENT: Self = Self { start: 1, end: 0 };

    fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// Whether the line has this field.
    #[inline]
    pub fn is_present(self) -> bool {
        self.start <= self.end
    }

    /// `-` is how both servers write "nothing".
    #[inline]
    fn unless_dash(self, line: &[u8]) -> Self {
        if self.end == self.start + 1 && line.get(self.start) == Some(&b'-') { Self::ABSENT } else { self }
    }
}

/// A line, taken apart in place.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// By [`FIELDS`].
    pub fields: [Span; FIELDS.len()],
    /// Nanoseconds since the Unix epoch, UTC.
    pub time: i64,
    /// Whether a quoted field has a backslash, so that values must go through [`unescape`].
    pub is_escaped: bool,
}

/// What is wrong with a line, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In words.
    pub what: &'static str,
    /// Byte of the line, from 0.
    pub at: usize,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "not an access log line: {} at byte {}", self.what, self.at)
    }
}

const fn problem(what: &'static str, at: usize) -> Problem {
    Problem { what, at }
}

/// Takes lines apart; remembers the last time, since neighbours often share the second.
#[derive(Default)]
pub struct Parser {
    last: Option<([u8; time::LEN], i64)>,
}

impl Parser {
    /// Takes one line apart.
    #[inline]
    pub fn parse(&mut self, line: &[u8]) -> Result<Line, Problem> {
        let client_end = match memchr(b' ', line) {
            Some(0) => return Err(problem("a space where the client should be", 0)),
            Some(end) => end,
            None if line.is_empty() => return Err(problem("an empty line", 0)),
            None => return Err(problem("no space after the client", line.len())),
        };
        let (ident, user, time_start) = names(line, client_end)?;
        let time = self.time(line, time_start)?;
        let request_start = time_start + time::LEN + 3;
        if line.get(request_start - 3..request_start) != Some(b"] \"") {
            return Err(problem("no `] \"` between time and request", request_start - 3));
        }
        let mut is_escaped = false;
        let request_end =
            quoted(line, request_start, &mut is_escaped, "the request's closing quote is missing")?;
        let [method, path, protocol] = request(line, request_start, request_end);
        let status = Span::new(request_end + 2, request_end + 5);
        check_status(line, status)?;
        let bytes = bytes(line, status.end + 1)?;
        let [referer, agent, extra] = tail(line, bytes.end, &mut is_escaped)?;
        let fields = [
            Span::new(0, client_end),
            ident,
            user,
            method,
            path,
            protocol,
            status,
            bytes.unless_dash(line),
            referer,
            agent,
            extra,
        ];
        Ok(Line { fields, time, is_escaped })
    }

    #[inline]
    fn time(&mut self, line: &[u8], start: usize) -> Result<i64, Problem> {
        let Some(text) = line.get(start..).and_then(|rest| rest.first_chunk::<{ time::LEN }>()) else {
            return Err(problem("the line ends in the time", line.len()));
        };
        if let Some((last, time)) = &self.last
            && last == text
        {
            return Ok(*time);
        }
        let time = time::parse(text).map_err(|(what, at)| problem(what, start + at))?;
        self.last = Some((*text, time));
        Ok(time)
    }
}

/// Ident and user, and where the time starts. A user may hold spaces, an ident may not.
#[inline]
fn names(line: &[u8], client_end: usize) -> Result<(Span, Span, usize), Problem> {
    const NOBODY: &[u8; 6] = b" - - [";
    let rest = line.get(client_end..).unwrap_or_default();
    if rest.first_chunk::<6>() == Some(NOBODY) {
        return Ok((Span::ABSENT, Span::ABSENT, client_end + NOBODY.len()));
    }
    let ident_start = client_end + 1;
    let Some(ident_len) = memchr(b' ', line.get(ident_start..).unwrap_or_default()) else {
        return Err(problem("no space after the ident", line.len()));
    };
    let user_start = ident_start + ident_len + 1;
    let Some(user_len) = memmem::find(line.get(user_start..).unwrap_or_default(), b" [") else {
        return Err(problem("no `[` before the time", user_start));
    };
    let user_end = user_start + user_len;
    let ident = Span::new(ident_start, user_start - 1).unless_dash(line);
    Ok((ident, Span::new(user_start, user_end).unless_dash(line), user_end + 2))
}

/// The end of the quoted field that starts at `start` (behind its quote).
#[inline]
fn quoted(line: &[u8], start: usize, is_escaped: &mut bool, missing: &'static str) -> Result<usize, Problem> {
    let mut from = start;
    loop {
        let Some(hit) = memchr2(b'"', b'\\', line.get(from..).unwrap_or_default()) else {
            return Err(problem(missing, line.len()));
        };
        let hit = from + hit;
        if line.get(hit) == Some(&b'"') {
            return Ok(hit);
        }
        *is_escaped = true;
        from = hit + 2;
    }
}

/// Method, path and protocol. What is not `METHOD path` or `METHOD path HTTP/version` (noise from scanners, TLS on a
/// plain port) is a path as a whole: the server answered it, so it is not the line that is wrong.
#[inline]
fn request(line: &[u8], start: usize, end: usize) -> [Span; 3] {
    let text = line.get(start..end).unwrap_or_default();
    let whole = [Span::ABSENT, Span::new(start, end), Span::ABSENT];
    if text.is_empty() || text == b"-" {
        return [Span::ABSENT; 3];
    }
    let method_len = text.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    if method_len == 0 || text.get(method_len) != Some(&b' ') {
        return whole;
    }
    let path_start = method_len + 1;
    let method = Span::new(start, start + method_len);
    let last_space = match text.last_chunk::<9>() {
        Some([b' ', b'H', b'T', b'T', b'P', b'/', ..]) => Some(text.len() - 9),
        _ => {
            memrchr(b' ', text).filter(|at| text.get(at + 1..).is_some_and(|rest| rest.starts_with(b"HTTP/")))
        }
    };
    match last_space {
        Some(at) if at >= path_start => {
            [method, Span::new(start + path_start, start + at), Span::new(start + at + 1, end)]
        }
        Some(_) => whole,
        None => [method, Span::new(start + path_start, end), Span::ABSENT],
    }
}

#[inline]
fn check_status(line: &[u8], status: Span) -> Result<(), Problem> {
    if line.get(status.start - 1) != Some(&b' ') {
        return Err(problem("no space after the request", status.start - 1));
    }
    let digits = line.get(status.start..status.end);
    if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_digit)) {
        return Err(problem("the status is not three digits", status.start));
    }
    if line.get(status.end) != Some(&b' ') {
        return Err(problem("no space after the three digits of the status", status.end));
    }
    Ok(())
}

/// The size of the answer: digits, or `-`.
#[inline]
fn bytes(line: &[u8], start: usize) -> Result<Span, Problem> {
    let rest = line.get(start..).unwrap_or_default();
    let len = match rest.first() {
        Some(b'-') => 1,
        _ => rest.iter().take_while(|byte| byte.is_ascii_digit()).count(),
    };
    if len == 0 || rest.get(len).is_some_and(|byte| *byte != b' ') {
        return Err(problem("the number of bytes is neither digits nor `-`", start));
    }
    Ok(Span::new(start, start + len))
}

/// What `combined` adds, and what may follow it.
#[inline]
fn tail(line: &[u8], start: usize, is_escaped: &mut bool) -> Result<[Span; 3], Problem> {
    if start == line.len() {
        return Ok([Span::ABSENT; 3]);
    }
    let referer_start = start + 2;
    if line.get(start..referer_start) != Some(b" \"") {
        return Err(problem("no quote before the referer", start + 1));
    }
    let referer_end = quoted(line, referer_start, is_escaped, "the referer's closing quote is missing")?;
    let agent_start = referer_end + 3;
    if line.get(referer_end + 1..agent_start) != Some(b" \"") {
        return Err(problem("no ` \"` between referer and agent", referer_end + 1));
    }
    let agent_end = quoted(line, agent_start, is_escaped, "the agent's closing quote is missing")?;
    let extra = match line.get(agent_end + 1) {
        None => Span::ABSENT,
        Some(b' ') => Span::new(agent_end + 2, line.len()),
        Some(_) => return Err(problem("no space after the agent", agent_end + 1)),
    };
    let referer = Span::new(referer_start, referer_end).unless_dash(line);
    Ok([referer, Span::new(agent_start, agent_end).unless_dash(line), extra])
}

/// Replaces `value` by its text without the backslashes of `\"` and `\\`. Other escapes (`\x16`, `\n`) stay as they were
/// logged.
pub fn unescape(value: &[u8], out: &mut Vec<u8>) {
    out.clear();
    let mut rest = value;
    while let Some(at) = memchr(b'\\', rest) {
        let (before, from) = rest.split_at(at);
        out.extend_from_slice(before);
        match from {
            [b'\\', next @ (b'"' | b'\\'), after @ ..] => {
                out.push(*next);
                rest = after;
            }
            [backslash, after @ ..] => {
                out.push(*backslash);
                rest = after;
            }
            [] => rest = from,
        }
    }
    out.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(line: &str) -> Vec<(&'static str, &str)> {
        let parsed = Parser::default().parse(line.as_bytes()).unwrap();
        let named = FIELDS.into_iter().zip(parsed.fields).filter(|(_, span)| span.is_present());
        named.map(|(name, span)| (name, &line[span.start..span.end])).collect()
    }

    const COMBINED: &str = r#"127.0.0.1 id frank [10/Oct/2000:13:55:36 -0700] "GET /a?b=c HTTP/1.0" 200 2326 "http://x/" "Moz (x)""#;

    #[test]
    fn combined_and_common() {
        let expected = [
            ("client", "127.0.0.1"),
            ("ident", "id"),
            ("user", "frank"),
            ("method", "GET"),
            ("path", "/a?b=c"),
            ("protocol", "HTTP/1.0"),
            ("status", "200"),
            ("bytes", "2326"),
            ("referer", "http://x/"),
            ("agent", "Moz (x)"),
        ];
        assert_eq!(fields(COMBINED), expected);
        let common = r#"127.0.0.1 id frank [10/Oct/2000:13:55:36 -0700] "GET /a?b=c HTTP/1.0" 200 2326"#;
        assert_eq!(fields(common), expected[..8]);
    }

    #[test]
    fn requests() {
        let check = |request: &str, expected: &[(&str, &str)]| {
            let line = format!(r#"::1 - - [10/Oct/2000:13:55:36 -0700] "{request}" 400 -"#);
            let fields = fields(&line);
            let middle: Vec<_> =
                fields.iter().filter(|(name, _)| !["client", "status"].contains(name)).copied().collect();
            assert_eq!(middle, expected, "{request}");
        };
        check("GET / HTTP/2", &[("method", "GET"), ("path", "/"), ("protocol", "HTTP/2")]);
        check("GET /a b HTTP/1.1", &[("method", "GET"), ("path", "/a b"), ("protocol", "HTTP/1.1")]);
        check("GET /", &[("method", "GET"), ("path", "/")]);
        check("GET HTTP/1.1", &[("path", "GET HTTP/1.1")]);
        check("GET  HTTP/1.1", &[("method", "GET"), ("path", ""), ("protocol", "HTTP/1.1")]);
        check("-", &[]);
        check("", &[]);
        check(r"\x16\x03\x01", &[("path", r"\x16\x03\x01")]);
        check(r#"GET /\" HTTP/1.1"#, &[("method", "GET"), ("path", r#"/\""#), ("protocol", "HTTP/1.1")]);
    }

    #[test]
    fn problems_name_what_and_where() {
        let check = |line: &str, what: &str, at: usize| {
            let problem = Parser::default().parse(line.as_bytes()).unwrap_err();
            assert_eq!((problem.what, problem.at), (what, at), "{line}");
        };
        check("", "an empty line", 0);
        check("nonsense", "no space after the client", 8);
        check(" x", "a space where the client should be", 0);
        check("a b", "no space after the ident", 3);
        check("a b c", "no `[` before the time", 4);
        check("a - - [10/Oct/2000", "the line ends in the time", 18);
        check("a - - [10/Oct/2000:13:55:36 -0700]", "no `] \"` between time and request", 33);
        check("a - - [10/Oct/2000:13:55:36 -0700] \"GET", "the request's closing quote is missing", 39);
        check(r#"a - - [10/Oct/2000:13:55:36 -0700] "" x00 1"#, "the status is not three digits", 38);
        check(
            r#"a - - [10/Oct/2000:13:55:36 -0700] "" 2000 1"#,
            "no space after the three digits of the status",
            41,
        );
        check(
            r#"a - - [10/Oct/2000:13:55:36 -0700] "" 200 1x"#,
            "the number of bytes is neither digits nor `-`",
            42,
        );
        check(r#"a - - [10/Oct/2000:13:55:36 -0700] "" 200 1 x"#, "no quote before the referer", 44);
        check(
            r#"a - - [10/Oct/2000:13:55:36 -0700] "" 200 1 "\""#,
            "the referer's closing quote is missing",
            47,
        );
        check(
            r#"a - - [10/Oct/2000:13:55:36 -0700] "" 200 1 "" -"#,
            "no ` \"` between referer and agent",
            46,
        );
        check(r#"a - - [10/Oct/2000:13:55:36 -0700] "" 200 1 "" ""x"#, "no space after the agent", 49);
    }

    #[test]
    fn no_cut_or_flipped_line_panics() {
        for len in 0..=COMBINED.len() {
            let mut lines = vec![COMBINED.as_bytes()[..len].to_vec()];
            for byte in [b'"', b'\\', b' ', b'[', 0, 0xff] {
                let mut line = COMBINED.as_bytes().to_vec();
                if let Some(place) = line.get_mut(len) {
                    *place = byte;
                }
                lines.push(line);
            }
            for line in lines {
                let spans =
                    Parser::default().parse(&line).map_or(Vec::new(), |parsed| parsed.fields.to_vec());
                assert!(
                    spans.iter().all(|span| !span.is_present() || line.get(span.start..span.end).is_some())
                );
            }
        }
    }

    #[test]
    fn only_quotes_and_backslashes_are_unescaped() {
        let check = |value: &str, expected: &str| {
            let mut out = b"old".to_vec();
            unescape(value.as_bytes(), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        };
        check(r#"a \"b\" c"#, r#"a "b" c"#);
        check(r"\\\\", r"\\");
        check(r"\x16\", r"\x16\");
        check(r#"\\\""#, r#"\""#);
        check("", "");
    }
}
