//! A sink that does what the lines say: TRAP, LOOP, LIE, MEMORY, ERROR, REJECT. All other lines go to `url`, in one POST for each batch.
//!
//! It keeps no cursor. With `secret` the secret of that name goes before the lines and into a header.
#![allow(clippy::panic)]

use flumen_sdk::http;
use flumen_sdk::prelude::*;
use flumen_sdk::sink::{Outcome, Sink};

#[derive(Deserialize)]
#[serde(crate = "flumen_sdk::serde", deny_unknown_fields)]
struct Options {
    url: String,
    /// Sent before the lines.
    secret: Option<String>,
}

/// The sink.
struct Bad(Options);

impl Sink for Bad {
    fn open(config: Config) -> Result<(Self, Reads), String> {
        Ok((Self(config.parse()?), Reads::body()))
    }

    fn deliver(&mut self, batch: &BatchView, _: &[u8]) -> Result<Outcome, String> {
        let body = batch.body().ok_or("no body")?;
        let (mut lines, mut rejected) = (Vec::new(), Vec::new());
        for (row, line) in (0..).zip(body.iter()) {
            match line {
                b"TRAP" => panic!("the line says so"),
                b"LOOP" => loop {
                    core::hint::black_box(());
                },
                b"MEMORY" => drop(core::hint::black_box(vec![1_u8; 1 << 30])),
                b"LIE" => rejected.push((1_000_000, "no such row".to_owned())),
                b"ERROR" => return Err("the line says so".to_owned()),
                b"REJECT" => rejected.push((row, "the line says so".to_owned())),
                line => {
                    lines.extend_from_slice(line);
                    lines.push(b'\n');
                }
            }
        }
        if lines.is_empty() {
            return Ok(Outcome::Delivered(rejected));
        }
        let request = http::post(&self.0.url);
        let request = match &self.0.secret {
            Some(secret) => {
                request.part(http::Part::Secret(secret.clone())).secret_header("x-key", "", secret)
            }
            None => request,
        };
        let answer = request.body(lines).send().map_err(|failure| http::explain(&failure))?;
        match answer.status {
            200..300 => Ok(Outcome::Delivered(rejected)),
            429 | 503 => Ok(Outcome::Retry { reason: answer.excerpt(), after_ms: answer.retry_after_ms() }),
            status => Err(format!("{status}: {}", answer.excerpt())),
        }
    }
}

flumen_sdk::sink!(Bad);
