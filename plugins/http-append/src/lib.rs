//! Appends lines to a resource over HTTP, exactly once. See README.md for what the server does.
//!
//! This is the model of a sink that recovers: the cursor goes with the lines in one request, the server stores both in one
//! step, and takes a request only if it follows what is there. So a request that got no answer is either there, or never
//! will be once the next one is: asking for the cursor tells which.

use flumen_sdk::http::{self, Request, Response};
use flumen_sdk::prelude::*;
use flumen_sdk::sink::{Outcome, Sink};

/// The header that carries a cursor, in hexadecimal.
const CURSOR: &str = "flumen-cursor";
/// The header that carries the cursor which the request follows; `none` if there is none.
const AFTER: &str = "flumen-after";

#[derive(Deserialize)]
#[serde(crate = "flumen_sdk::serde", deny_unknown_fields)]
struct Options {
    url: String,
    secret: Option<String>,
}

/// The sink.
pub struct Append {
    options: Options,
    /// What the server has, in hexadecimal.
    stored: Option<String>,
}

impl Append {
    fn request(&self, method: &str) -> Request {
        let request = Request::new(method, &self.options.url);
        match &self.options.secret {
            Some(secret) => request.secret_header("authorization", "Bearer ", secret),
            None => request,
        }
    }
}

impl Sink for Append {
    const OPTIONS: &'static str = include_str!("../options.json");

    fn open(config: Config) -> Result<(Self, Reads), String> {
        Ok((Self { options: config.parse()?, stored: None }, Reads::body()))
    }

    fn recovers(&self) -> bool {
        true
    }

    fn recover(&mut self) -> Result<Option<Vec<u8>>, String> {
        let answer = self.request("GET").send().map_err(|failure| http::explain(&failure))?;
        self.stored = match answer.status {
            200 => answer.header(CURSOR).map(str::to_owned),
            404 => None,
            _ => return Err(unexpected(&answer)),
        };
        self.stored.as_deref().map(from_hex).transpose()
    }

    fn deliver(&mut self, batch: &BatchView, cursor: &[u8]) -> Result<Outcome, String> {
        let Some(body) = batch.body() else { return Err("the host passed no body".to_owned()) };
        let (lines, rejected) = lines(body);
        // Before anything is stored: the others come again without them.
        if !rejected.is_empty() {
            return Ok(Outcome::Delivered(rejected));
        }
        let cursor = to_hex(cursor);
        let request = self.request("POST").header(CURSOR, &*cursor);
        let request = request.header(AFTER, self.stored.as_deref().unwrap_or("none")).body(lines);
        let answer = request.send().map_err(|failure| http::explain(&failure))?;
        match answer.status {
            200..300 => {
                self.stored = Some(cursor);
                Ok(Outcome::Delivered(Vec::new()))
            }
            429 | 503 => {
                Ok(Outcome::Retry { reason: unexpected(&answer), after_ms: answer.retry_after_ms() })
            }
            _ => Err(unexpected(&answer)),
        }
    }
}

flumen_sdk::sink!(Append);

/// The bodies as lines, and the rows that are none.
fn lines(body: Column<'_>) -> (Vec<u8>, Vec<(u32, String)>) {
    let mut lines = Vec::with_capacity(body.data().len() + body.rows());
    let mut rejected = Vec::new();
    for (row, event) in (0..).zip(body.iter()) {
        if event.contains(&b'\n') {
            rejected.push((row, "it has a line end in it, and a line cannot".to_owned()));
        } else {
            lines.extend_from_slice(event);
            lines.push(b'\n');
        }
    }
    (lines, rejected)
}

fn unexpected(answer: &Response) -> String {
    format!("the server says {}: {}", answer.status, answer.excerpt())
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| DIGITS.get(usize::from(value)).map_or('?', |digit| char::from(*digit));
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let wrong = || format!("the server's cursor {text:?} is not hexadecimal");
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return Err(wrong());
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    pairs.iter().map(byte).collect::<Option<_>>().ok_or_else(wrong)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_goes_through_a_header() {
        let cursor = [0, 1, 0x7f, 0x80, 0xff];
        assert_eq!(to_hex(&cursor), "00017f80ff");
        assert_eq!(from_hex(&to_hex(&cursor)).unwrap(), cursor);
        for wrong in ["0", "zz", "é1"] {
            assert!(from_hex(wrong).is_err(), "{wrong}");
        }
    }
}
