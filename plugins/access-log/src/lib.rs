//! Apache and nginx access logs (formats `common` and `combined`) to headers and event time. See README.md.
//!
//! One pass over the bodies of a batch: a line is taken apart into spans ([`line`]), and each span is copied once, into
//! the column of its header.

pub mod line;
pub mod time;

use flumen_sdk::prelude::*;
use line::{FIELDS, Line, Parser, Problem, unescape};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    fields: Vec<Field>,
    keep_body: bool,
    time: bool,
    extra: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { fields: Field::ALL.to_vec(), keep_body: true, time: true, extra: false }
    }
}

/// The fields that may be named in `fields`, in the order of [`FIELDS`].
#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Field {
    Client,
    Ident,
    User,
    Method,
    Path,
    Protocol,
    Status,
    Bytes,
    Referer,
    Agent,
}

impl Field {
    const ALL: [Self; 10] = [
        Self::Client,
        Self::Ident,
        Self::User,
        Self::Method,
        Self::Path,
        Self::Protocol,
        Self::Status,
        Self::Bytes,
        Self::Referer,
        Self::Agent,
    ];
}

/// The plugin.
pub struct AccessLog {
    /// Which of [`FIELDS`] become headers.
    is_wanted: [bool; FIELDS.len()],
    settings: Settings,
    parser: Parser,
    unescaped: Vec<u8>,
    /// Bytes of each column in the last batch: what the next one is likely to need.
    column_bytes: [usize; FIELDS.len()],
}

impl BatchInterceptor for AccessLog {
    const OPTIONS: &'static str = include_str!("../options.json");

    fn open(config: Config) -> Result<(Self, Reads), String> {
        let settings: Settings = config.parse()?;
        let mut is_wanted = [false; FIELDS.len()];
        for (field, is_wanted) in Field::ALL.iter().zip(&mut is_wanted) {
            *is_wanted = settings.fields.contains(field);
        }
        if let Some(last) = is_wanted.last_mut() {
            *last = settings.extra;
        }
        let plugin = Self {
            is_wanted,
            settings,
            parser: Parser::default(),
            unescaped: Vec::new(),
            column_bytes: [0; FIELDS.len()],
        };
        Ok((plugin, Reads::body()))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let Some(body) = batch.body() else { return Err("the host did not pass the bodies".to_owned()) };
        let mut difference = Difference::unchanged();
        let mut columns = self.columns(batch.rows());
        let mut times = NumberList::with_capacity(if self.settings.time { batch.rows() } else { 0 });
        let is_ascii = is_ascii(body.data());
        let mut start = 0;
        for (row, end) in body.offsets().iter().skip(1).enumerate() {
            let end = end as usize;
            let text = body.data().get(start..end).unwrap_or_default();
            match self.parse(text, is_ascii) {
                Ok(line) => {
                    if self.settings.time {
                        times.push(line.time);
                    }
                    if line.is_escaped {
                        self.push_escaped(&mut columns, text, &line);
                    } else {
                        push(&mut columns, body.data(), start, &line);
                    }
                }
                Err(problem) => {
                    difference.reject(row, problem.to_string());
                }
            }
            start = end;
        }
        let rows = batch.rows() - difference.rejected();
        if rows > 0 {
            self.finish(&mut difference, columns, times, rows);
        }
        Ok(difference)
    }
}

type Columns = [Option<HeaderBuilder>; FIELDS.len()];

impl AccessLog {
    #[inline]
    fn parse(&mut self, text: &[u8], is_ascii: bool) -> Result<Line, Problem> {
        if !is_ascii && let Err(error) = str::from_utf8(text) {
            return Err(Problem { what: "bytes that are not UTF-8", at: error.valid_up_to() });
        }
        let line = self.parser.parse(text)?;
        match line.fields.last() {
            Some(extra) if extra.is_present() && !self.settings.extra => Err(Problem {
                what: "text after the agent (the key `extra = true` makes a header of it)",
                at: extra.start,
            }),
            _ => Ok(line),
        }
    }

    fn columns(&self, rows: usize) -> Columns {
        let mut columns = [const { None }; FIELDS.len()];
        for (index, column) in columns.iter_mut().enumerate() {
            if let (Some(true), Some(name)) = (self.is_wanted.get(index), FIELDS.get(index)) {
                let bytes = self.column_bytes.get(index).copied().unwrap_or(0);
                *column = Some(HeaderBuilder::with_capacity(*name, rows, bytes + bytes / 8 + 64));
            }
        }
        columns
    }

    /// A line with backslashes: rare, so its fields go through a buffer.
    #[cold]
    fn push_escaped(&mut self, columns: &mut Columns, text: &[u8], line: &Line) {
        for (column, span) in columns.iter_mut().zip(line.fields) {
            let Some(column) = column else { continue };
            match text.get(span.start..span.end) {
                Some(value) if span.is_present() => {
                    unescape(value, &mut self.unescaped);
                    column.push_utf8(&self.unescaped);
                }
                _ => column.push_absent(),
            }
        }
    }

    fn finish(&mut self, difference: &mut Difference, columns: Columns, times: NumberList<i64>, rows: usize) {
        for (column, bytes) in columns.into_iter().zip(&mut self.column_bytes) {
            let Some(column) = column else { continue };
            *bytes = column.bytes();
            if column.is_absent() {
                // Says the same and is smaller.
                difference.remove_header(column.name());
            } else {
                difference.set_header(column);
            }
        }
        if self.settings.time {
            difference.set_time(times);
        }
        if !self.settings.keep_body {
            let mut empty = ColumnBuilder::with_capacity(rows, 0);
            (0..rows).for_each(|_| empty.end_row());
            difference.set_body(empty);
        }
    }
}

#[inline]
fn push(columns: &mut Columns, data: &[u8], start: usize, line: &Line) {
    for (column, span) in columns.iter_mut().zip(line.fields) {
        let Some(column) = column else { continue };
        if span.is_present() {
            column.push_range(data, start + span.start, start + span.end);
        } else {
            column.push_absent();
        }
    }
}

/// Whether all bytes are ASCII. By words, because a fold over bytes does not become vector code: 5 instead of 60 ns per
/// line.
fn is_ascii(data: &[u8]) -> bool {
    const HIGH_BITS: u64 = 0x8080_8080_8080_8080;
    let (blocks, rest) = data.as_chunks::<64>();
    let is_ascii = |block: &[u8; 64]| {
        let words = block.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        words.fold(0, |all, word| all | word) & HIGH_BITS == 0
    };
    blocks.iter().all(is_ascii) && rest.is_ascii()
}

flumen_sdk::batch_interceptor!(AccessLog);

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_sdk::testing::{self, Answer};

    fn run(config: &str, bodies: &[&[u8]]) -> Answer {
        let (mut plugin, _) = AccessLog::open(Config::new(config)).unwrap();
        Answer::new(plugin.process(&testing::bodies(bodies)).unwrap(), bodies.len())
    }

    const GOOD: &[u8] =
        br#"1.2.3.4 - - [01/Jan/1970:00:00:01 +0000] "GET / HTTP/1.1" 200 5 "-" "a \"quoted\" b""#;
    const COMMON: &[u8] = br#"::1 - joe [01/Jan/1970:00:00:02 +0000] "HEAD /x HTTP/1.1" 304 -"#;

    #[test]
    fn rows_and_columns_stay_together() {
        let answer = run("{}", &[GOOD, b"nonsense", COMMON, b"1.2.3.4 \xff"]);
        assert_eq!(answer.rows(), [0, 2]);
        assert_eq!([answer.time(0), answer.time(1)], [Some(1_000_000_000), Some(2_000_000_000)]);
        let row = |row: usize| FIELDS.map(|name| answer.header(name, row));
        let first =
            [Some("1.2.3.4"), None, None, Some("GET"), Some("/"), Some("HTTP/1.1"), Some("200"), Some("5")];
        assert_eq!(row(0)[..8], first);
        assert_eq!(answer.header("agent", 0), Some(r#"a "quoted" b"#));
        let second =
            [Some("::1"), None, Some("joe"), Some("HEAD"), Some("/x"), Some("HTTP/1.1"), Some("304"), None];
        assert_eq!(row(1)[..8], second);
        assert_eq!(answer.header("agent", 1), None);
        assert_eq!(answer.removed(), ["ident", "referer"]);
        let reasons: Vec<_> = answer.rejected().collect();
        assert_eq!(reasons[0], (1, "not an access log line: no space after the client at byte 8"));
        assert_eq!(reasons[1], (3, "not an access log line: bytes that are not UTF-8 at byte 8"));
    }

    #[test]
    fn settings() {
        let answer = run(r#"{"fields":["status","path"],"keep_body":false,"time":false}"#, &[GOOD, COMMON]);
        assert_eq!(answer.headers(), ["path", "status"]);
        assert_eq!(answer.body(1), Some(&b""[..]));
        assert_eq!(answer.time(0), None);
        let mut extra = COMMON.to_vec();
        extra.extend_from_slice(br#" "-" "-" "10.0.0.1" 0.25"#);
        assert!(run("{}", &[&extra]).rejected().next().unwrap().1.contains("extra = true"));
        assert_eq!(run(r#"{"extra":true}"#, &[&extra]).header("extra", 0), Some(r#""10.0.0.1" 0.25"#));
    }

    #[test]
    fn nothing_but_bad_lines() {
        let answer = run("{}", &[b"", b"x"]);
        assert_eq!(answer.rows(), [] as [usize; 0]);
        assert!(answer.headers().is_empty());
    }

    #[test]
    fn errors_name_the_key() {
        let error = AccessLog::open(Config::new(r#"{"fields":["statsu"]}"#)).map(|_| ()).unwrap_err();
        assert!(error.starts_with("config.fields[0]: `statsu` is not known; use `client`"), "{error}");
    }
}
