//! Random batches: a plugin may reject what it does not understand, but it must not fail.

use std::collections::BTreeMap;

use arrow_array::StringArray;
use flumen_event::{Batch, BatchBuilder, HeaderColumn};
use flumen_plugin::cases::Case;
use flumen_plugin::codec_cases::CodecTask;
use flumen_plugin::{EgressFailure, Response};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Rows of a batch.
const ROWS_MAX: usize = 64;
/// A body is rarely longer than this.
const BODY_BYTES_MAX: usize = 400;
const LONG_BODY_BYTES: usize = 70_000;
/// Pieces of which texts are made: what parsers trip over.
const PIECES: [&str; 22] = [
    "",
    " ",
    "\"",
    "\\",
    "\\\"",
    "[",
    "]",
    "{",
    "}",
    ":",
    ",",
    "=",
    "-",
    "\n",
    "\0",
    "ü",
    "\u{1F600}",
    "é",
    "null",
    "-1",
    "99999999999999999999",
    "1e309",
];

/// Makes batches from what the cases hold and from nothing.
pub struct Batches<'a> {
    rng: SmallRng,
    /// Bodies that the plugin knows.
    bodies: Vec<&'a [u8]>,
    cases: &'a [&'a Case],
}

impl<'a> Batches<'a> {
    /// The same batches for the same seed.
    pub fn new(seed: u64, cases: &'a [&'a Case]) -> Batches<'a> {
        let bodies = cases.iter().flat_map(|case| bodies(case)).collect();
        Batches { rng: SmallRng::seed_from_u64(seed), bodies, cases }
    }

    /// One of the cases' configurations.
    pub fn config(&mut self) -> &'a str {
        self.cases.choose(&mut self.rng).map_or("{}", |case| case.config_json.as_str())
    }

    /// A batch with these headers among others.
    pub fn batch(&mut self, headers: &[String]) -> anyhow::Result<Batch> {
        let rows = self.rng.random_range(1..=ROWS_MAX);
        let mut builder = BatchBuilder::default();
        for position in 0..rows as u64 {
            let time = match self.rng.random_range(0..4) {
                0 => i64::MIN,
                1 => i64::MAX,
                2 => 0,
                _ => self.rng.random_range(0..2_000_000_000_000_000_000),
            };
            let body = self.body();
            builder.push(1, position, time, &body);
        }
        let mut columns: BTreeMap<&str, Vec<Option<String>>> = BTreeMap::new();
        for name in headers.iter().map(String::as_str).chain(["another"]) {
            if self.rng.random_bool(0.8) {
                let values = (0..rows).map(|_| self.rng.random_bool(0.7).then(|| self.text())).collect();
                columns.insert(name, values);
            }
        }
        let column = |(name, values): (&str, Vec<Option<String>>)| HeaderColumn {
            name: name.into(),
            values: StringArray::from(values),
        };
        Ok(builder.finish(columns.into_iter().map(column).collect())?)
    }

    /// Bytes of a stream.
    pub fn input(&mut self) -> Vec<u8> {
        (0..self.rng.random_range(1..4)).flat_map(|_| self.body()).collect()
    }

    /// Answers to requests, without an end.
    pub fn answers(&mut self) -> Answers {
        Answers(SmallRng::seed_from_u64(self.rng.random()))
    }

    fn body(&mut self) -> Vec<u8> {
        match self.rng.random_range(0..10) {
            0 => Vec::new(),
            1 if self.rng.random_bool(0.05) => self.bytes(LONG_BODY_BYTES),
            1..3 => self.bytes(BODY_BYTES_MAX),
            3..5 => self.text().into_bytes(),
            _ => self.changed(),
        }
    }

    /// A body of the cases with a few changes.
    fn changed(&mut self) -> Vec<u8> {
        let mut body = self.bodies.choose(&mut self.rng).map_or_else(Vec::new, |body| body.to_vec());
        for _ in 0..self.rng.random_range(0..4) {
            let at = self.rng.random_range(0..=body.len());
            match self.rng.random_range(0..3) {
                0 => body.truncate(at),
                1 => {
                    let piece = PIECES.choose(&mut self.rng).copied().unwrap_or_default();
                    body.splice(at..at, piece.bytes());
                }
                _ => {
                    if let Some(byte) = body.get_mut(at) {
                        *byte = self.rng.random();
                    }
                }
            }
        }
        body
    }

    fn bytes(&mut self, max: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.rng.random_range(0..max)];
        self.rng.fill(bytes.as_mut_slice());
        bytes
    }

    fn text(&mut self) -> String {
        (0..self.rng.random_range(0..12)).filter_map(|_| PIECES.choose(&mut self.rng).copied()).collect()
    }
}

/// What a plugin is to find in a stream, or in events.
fn bodies(case: &Case) -> Vec<&[u8]> {
    let batches = std::iter::once(&case.input).chain(case.steps.iter().map(|step| &step.input));
    let mut bodies: Vec<&[u8]> = batches.flat_map(|batch| batch.body().iter().flatten()).collect();
    match &case.codec {
        Some(CodecTask::Decode { input, .. }) => bodies.push(input),
        Some(CodecTask::Encode { input, .. }) => bodies.extend(input.body().iter().flatten()),
        None => {}
    }
    bodies
}

/// See [`Batches::answers`].
pub struct Answers(SmallRng);

impl Answers {
    /// The next one.
    pub fn answer(&mut self) -> Result<Response, EgressFailure> {
        let rng = &mut self.0;
        if rng.random_bool(0.1) {
            return Err(EgressFailure::TimedOut);
        }
        let status = [200, 204, 301, 404, 429, 500, 503].choose(rng).copied().unwrap_or(200);
        let mut body = vec![0; rng.random_range(0..BODY_BYTES_MAX)];
        rng.fill(body.as_mut_slice());
        let names = ["retry-after", "content-type", "flumen-cursor"];
        let mut value = || PIECES.choose(rng).copied().unwrap_or_default().to_owned();
        let headers = names.into_iter().map(|name| (name.to_owned(), value())).collect();
        Ok(Response { status, headers, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_batches() {
        let make = |seed| {
            let mut batches = Batches::new(seed, &[]);
            (0..20).map(|_| batches.batch(&["h".to_owned()]).unwrap()).collect::<Vec<_>>()
        };
        assert!(make(7) == make(7));
        assert!(make(7) != make(8));
    }
}
