//! Delivers events to Elasticsearch, OpenSearch or any other HTTP bulk API. See README.md for the options.
//!
//! At least once, and idempotent: an event's id is its identity, so one that comes again is there already. Each row has its
//! own verdict in the answer: what the server will never take is rejected with its reason, what it cannot take now makes
//! the batch come again. A request that is refused as a whole is halved until the guilty event is found.

mod answer;
mod document;
mod options;
mod template;
mod time;

use answer::Verdict;
use document::Bulk;
use flumen_sdk::http::{self, Request};
use flumen_sdk::prelude::*;
use flumen_sdk::sink::{Outcome, Sink};
use options::Options;

/// The sink.
pub struct BulkSink {
    options: Options,
}

/// What became of the rows of one request.
enum Sent {
    Done,
    Later { reason: String, after_ms: Option<u32> },
}

impl Sink for BulkSink {
    const OPTIONS: &'static str = include_str!("../options.json");

    fn open(config: Config) -> Result<(Self, Reads), String> {
        let options = Options::parse(&config)?;
        let reads = options.reads();
        Ok((Self { options }, reads))
    }

    fn deliver(&mut self, batch: &BatchView, _: &[u8]) -> Result<Outcome, String> {
        let mut rejected = Vec::new();
        let bulk = Bulk::new(&self.options, batch, &mut rejected);
        let sent = self.send(&bulk, 0, bulk.rows(), &mut rejected)?;
        Ok(match sent {
            Sent::Done => Outcome::Delivered(rejected),
            Sent::Later { reason, after_ms } => Outcome::Retry { reason, after_ms },
        })
    }
}

flumen_sdk::sink!(BulkSink);

impl BulkSink {
    /// Sends the documents from `first` to `end`.
    fn send(
        &self,
        bulk: &Bulk,
        first: usize,
        end: usize,
        rejected: &mut Vec<(u32, String)>,
    ) -> Result<Sent, String> {
        let Some(lines) = bulk.lines(first, end).filter(|lines| !lines.is_empty()) else {
            return Ok(Sent::Done);
        };
        let answer = self.request().body(lines).send().map_err(|failure| http::explain(&failure))?;
        let says = || format!("the server says {}: {}", answer.status, answer.excerpt());
        match answer.status {
            200..300 => self.judge(bulk, (first, end), &answer.body, rejected),
            // The request as a whole: too large, or not to be parsed because of one document.
            400 | 413 if end - first > 1 => {
                let middle = first + (end - first) / 2;
                match self.send(bulk, first, middle, rejected)? {
                    Sent::Done => self.send(bulk, middle, end, rejected),
                    later => Ok(later),
                }
            }
            400 | 413 => {
                rejected.extend(bulk.row(first).map(|row| (row, says())));
                Ok(Sent::Done)
            }
            429 | 502 | 503 | 504 => Ok(Sent::Later { reason: says(), after_ms: answer.retry_after_ms() }),
            401 | 403 => Err(format!("{}; see `authorization` and its secret", says())),
            _ => Err(says()),
        }
    }

    fn request(&self) -> Request {
        let request = http::post(&self.options.bulk_url).header("content-type", "application/x-ndjson");
        match &self.options.authorization {
            Some(authorization) => {
                let scheme = format!("{} ", authorization.scheme);
                request.secret_header("authorization", &scheme, &authorization.secret)
            }
            None => request,
        }
    }

    /// Reads the verdicts of an answer.
    fn judge(
        &self,
        bulk: &Bulk,
        (first, end): (usize, usize),
        body: &[u8],
        rejected: &mut Vec<(u32, String)>,
    ) -> Result<Sent, String> {
        let verdicts = answer::verdicts(body, end - first)?;
        let later = verdicts.iter().find_map(|verdict| match verdict {
            Verdict::Later(reason) => Some(reason.clone()),
            _ => None,
        });
        if let Some(reason) = later {
            return Ok(Sent::Later { reason, after_ms: None });
        }
        for (document, verdict) in (first..).zip(verdicts) {
            if let (Verdict::Never(reason), Some(row)) = (verdict, bulk.row(document)) {
                rejected.push((row, reason));
            }
        }
        Ok(Sent::Done)
    }
}
