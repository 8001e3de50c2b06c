//! A sink's own tests, run in the real sandbox, as [`cases`](crate::cases) are: what it sends is compared, and answered as
//! the case says.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use flumen_egress::{Failure, Request, Response};
use parking_lot::Mutex;

use crate::abi::Outcome;
use crate::cases::{Case, Step, text};
use crate::outside::{Outside, joined};
use crate::sink_alone::{SinkAlone, SinkFailure};

/// What a step has of a sink.
#[derive(Debug, Clone, Default)]
pub struct SinkStep {
    /// The cursor behind the batch.
    pub cursor: Vec<u8>,
    /// The cursor that it has to answer when it is asked.
    pub recovered: Option<Vec<u8>>,
    /// A part of the reason for which the batch has to come again, and when.
    pub retry: Option<(String, Option<Duration>)>,
    /// A part of the error that it has to answer with.
    pub error: Option<String>,
    /// Requests that it has to send, in order.
    pub exchanges: Vec<Exchange>,
}

/// A request that has to be sent, and what it is answered. What is absent is not compared.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// `GET`, `POST`, ...
    pub method: Option<String>,
    /// The address.
    pub url: Option<String>,
    /// Headers that it has to have, among others.
    pub headers: BTreeMap<String, String>,
    /// All of the body.
    pub body: Option<Vec<u8>>,
    /// What it is answered.
    pub answer: Result<Response, Failure>,
}

/// The requests of the step at hand.
#[derive(Default)]
struct Expected {
    number: usize,
    left: VecDeque<Exchange>,
    differences: Vec<String>,
}

/// Plays the outside of a case.
#[derive(Clone, Default)]
pub(crate) struct Script(Arc<Mutex<Expected>>);

impl Script {
    pub(crate) fn outside(&self) -> Outside {
        let expected = self.0.clone();
        Outside::new(move |request| expected.lock().answer(request))
    }

    fn begin(&self, step: &SinkStep) {
        *self.0.lock() = Expected { left: step.exchanges.clone().into(), ..Expected::default() };
    }

    /// What was not as expected since the beginning of the step.
    fn end(&self) -> Vec<String> {
        let Expected { number, left, differences } = std::mem::take(&mut *self.0.lock());
        let missing = (number..).zip(&left).map(|(number, _)| format!("request {number} is not sent"));
        differences.into_iter().chain(missing).collect()
    }
}

impl Expected {
    fn answer(&mut self, request: &Request) -> Result<Response, Failure> {
        let Some(exchange) = self.left.pop_front() else {
            let what = format!("{} {}", request.method, request.url);
            self.differences.push(format!("a request was not expected\n  actual: {what}"));
            return Err(Failure::Denied("the case does not expect it".to_owned()));
        };
        let number = self.number;
        self.number += 1;
        let mut compare = |what: &str, expected: &[u8], actual: &[u8]| {
            if expected != actual {
                self.differences.push(format!(
                    "{what} of request {number} differs\n  expected: {}\n  actual:   {}",
                    text(expected),
                    text(actual)
                ));
            }
        };
        if let Some(method) = &exchange.method {
            compare("the method", method.as_bytes(), request.method.as_bytes());
        }
        if let Some(url) = &exchange.url {
            compare("the address", url.as_bytes(), request.url.as_bytes());
        }
        if let Some(body) = &exchange.body {
            compare("the body", body, &joined(&request.body));
        }
        for (name, value) in &exchange.headers {
            let sent = request.headers.iter().find(|(sent, _)| sent.eq_ignore_ascii_case(name));
            let sent = sent.map_or_else(|| b"no such header".to_vec(), |(_, parts)| joined(parts));
            compare(&format!("header {name}"), value.as_bytes(), &sent);
        }
        exchange.answer
    }
}

/// All steps; the first one that is not as expected ends them.
pub(crate) fn run_steps(mut sink: SinkAlone, script: &Script, case: &Case) -> Vec<String> {
    if case.steps.is_empty() {
        return vec![
            "a case of a sink has steps: [[step]] with [[step.input]] and [[step.request]]".to_owned(),
        ];
    }
    for (number, step) in case.steps.iter().enumerate() {
        script.begin(&step.sink);
        let mut differences = run_step(&mut sink, step);
        differences.extend(script.end());
        if !differences.is_empty() {
            return differences.into_iter().map(|text| format!("step {number}: {text}")).collect();
        }
    }
    Vec::new()
}

fn run_step(sink: &mut SinkAlone, step: &Step) -> Vec<String> {
    let SinkStep { cursor, recovered, retry, error, .. } = &step.sink;
    let outcome = match step.input.is_empty() {
        true => match sink.recover() {
            Ok(cursor) => {
                let shown = |cursor: &Option<Vec<u8>>| cursor.as_deref().map_or("none".to_owned(), text);
                let is_expected = error.is_some() || cursor == *recovered;
                return match (is_expected, error) {
                    (_, Some(part)) => vec![not_failed(part)],
                    (true, None) => Vec::new(),
                    (false, None) => vec![format!(
                        "the cursor differs\n  expected: {}\n  actual:   {}",
                        shown(recovered),
                        shown(&cursor)
                    )],
                };
            }
            Err(failure) => Err(failure),
        },
        false => sink.deliver(&step.input, cursor),
    };
    match (outcome, error, retry) {
        (Err(SinkFailure::Said(text)), Some(part), _) => part_difference("the error", part, &text),
        (Err(SinkFailure::Said(text) | SinkFailure::Broke(text)), ..) => vec![format!("it failed: {text}")],
        (Ok(_), Some(part), _) => vec![not_failed(part)],
        (Ok(Outcome::Retry { reason, after }), None, Some((part, expected))) => {
            let mut out = part_difference("the reason to retry", part, &reason);
            if after != *expected {
                out.push(format!("it asks to come again in {after:?}, {expected:?} was expected"));
            }
            out
        }
        (Ok(Outcome::Retry { reason, .. }), None, None) => {
            vec![format!("the batch shall come again, which was not expected: {reason}")]
        }
        (Ok(Outcome::Delivered(_)), None, Some((part, _))) => {
            vec![format!("it is delivered, but was to come again\n  expected a part: {part}")]
        }
        (Ok(Outcome::Delivered(rejected)), None, None) => rejection_differences(&step.rejected, &rejected),
    }
}

fn not_failed(part: &str) -> String {
    format!("it did not fail\n  expected a part: {part}")
}

fn part_difference(what: &str, part: &str, actual: &str) -> Vec<String> {
    if actual.contains(part) {
        return Vec::new();
    }
    vec![format!("{what} differs\n  expected a part: {part}\n  actual:          {actual}")]
}

fn rejection_differences(expected: &[(u32, String)], actual: &[(u32, String)]) -> Vec<String> {
    let mut left: BTreeMap<u32, &str> = actual.iter().map(|(row, reason)| (*row, reason.as_str())).collect();
    let mut out = Vec::new();
    for (row, part) in expected {
        match left.remove(row) {
            Some(reason) => out.extend(part_difference(&format!("the rejection of row {row}"), part, reason)),
            None => out.push(format!("row {row} is not rejected\n  expected a part: {part}")),
        }
    }
    out.extend(
        left.iter().map(|(row, reason)| {
            format!("row {row} is rejected, which was not expected\n  actual: {reason}")
        }),
    );
    out
}
