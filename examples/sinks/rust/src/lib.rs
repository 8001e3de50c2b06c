//! Appends events as lines to a resource over HTTP, each exactly once.
//!
//! `GET url` answers 200 with the header `flumen-cursor`, or 404 if nothing was stored. `POST url` has lines and two headers: the
//! server stores the lines and `flumen-cursor` in one step, if `flumen-after` is the cursor that it has.

use flumen_sdk::http::{self, Response};
use flumen_sdk::prelude::*;
use flumen_sdk::sink::{Outcome, Sink};

#[derive(Deserialize)]
#[serde(crate = "flumen_sdk::serde", deny_unknown_fields)]
struct Options {
    url: String,
}

struct Append {
    url: String,
    /// What the server has, in hexadecimal.
    stored: String,
}

/// Instead of a cursor, where there is none.
const NONE: &str = "none";

impl Sink for Append {
    const OPTIONS: &'static str = r#"{
        "type": "object", "additionalProperties": false, "required": ["url"],
        "properties": {
            "url": { "type": "string", "pattern": "^https?://", "description": "The resource; `egress.allow` has to name its host and port." }
        }
    }"#;

    fn open(config: Config) -> Result<(Self, Reads), String> {
        let Options { url } = config.parse()?;
        Ok((Self { url, stored: NONE.to_owned() }, Reads::body()))
    }

    fn recovers(&self) -> bool {
        true
    }

    fn recover(&mut self) -> Result<Option<Vec<u8>>, String> {
        let answer = http::get(&self.url).send().map_err(|failure| http::explain(&failure))?;
        self.stored = match (answer.status, answer.header("flumen-cursor")) {
            (200, Some(cursor)) => cursor.to_owned(),
            (404, _) => NONE.to_owned(),
            _ => return Err(unexpected(&answer)),
        };
        if self.stored == NONE { Ok(None) } else { from_hex(&self.stored).map(Some) }
    }

    fn deliver(&mut self, batch: &BatchView, cursor: &[u8]) -> Result<Outcome, String> {
        let mut lines = Vec::new();
        let mut rejected = Vec::new();
        for (row, body) in (0..).zip(batch.body().into_iter().flat_map(Column::iter)) {
            if body.contains(&b'\n') {
                rejected.push((row, "it has a line end in it, and a line cannot".to_owned()));
            }
            lines.extend_from_slice(body);
            lines.push(b'\n');
        }
        // Before anything is stored: the others come again without them.
        if !rejected.is_empty() {
            return Ok(Outcome::Delivered(rejected));
        }
        let cursor = to_hex(cursor);
        let request = http::post(&self.url).header("flumen-cursor", &*cursor).header("flumen-after", &*self.stored);
        let answer = request.body(lines).send().map_err(|failure| http::explain(&failure))?;
        match answer.status {
            200..300 => {
                self.stored = cursor;
                Ok(Outcome::Delivered(Vec::new()))
            }
            429 | 503 => Ok(Outcome::Retry { reason: unexpected(&answer), after_ms: answer.retry_after_ms() }),
            _ => Err(unexpected(&answer)),
        }
    }
}

fn unexpected(answer: &Response) -> String {
    format!("the server says {}: {}", answer.status, answer.excerpt())
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |[high, low]: &[u8; 2]| Some((digit(*high)? << 4 | digit(*low)?) as u8);
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    bytes.filter(|_| rest.is_empty()).ok_or_else(|| format!("the server's cursor {text:?} is not hexadecimal"))
}

flumen_sdk::sink!(Append);
