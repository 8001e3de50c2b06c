//! The parts of a case file that are about sinks: steps in which they deliver, or are asked for their cursor.
//!
//! ```toml
//! [[step]]                          # without any input: `recover`
//! recovered = "c1"                  # the cursor that it has to answer; absent: none
//! [[step.request]]                  # what it sends, in order, and what it is answered
//! method = "GET"                    # `method`, `url`, `headers` (among others) and `body` are compared if given
//! url = "http://store.example/log"
//! status = 200                      # the default
//! answer = "text"                   # the body of the answer
//! answer_headers = { flumen-cursor = "6331" }
//!
//! [[step]]                          # `deliver`
//! cursor = "c2"
//! [[step.input]]
//! body = "text"
//! [[step.request]]
//! fails = "timed-out"               # in place of an answer: denied, unreachable, timed-out, too-large
//! [[step.rejected]]                 # as in other cases; or
//! # retry = "part of the reason", with retry_after = "5s" if it asks for a time; or error = "part of the message"
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use flumen_pipeline::{OptionKind, OptionSpec};

use crate::cases::list;
use crate::code::Code;
use crate::report::Report;
use crate::table::{Checked, TableReader};
use crate::tree::{Entry, Node};

/// What a step says of a sink.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SinkStep {
    /// The cursor behind the batch.
    pub cursor: Vec<u8>,
    /// The cursor that it must answer, if it is asked.
    pub recovered: Option<Vec<u8>>,
    /// A part of the reason for which the batch must come again.
    pub retry: Option<String>,
    /// When.
    pub retry_after: Option<Duration>,
    /// A part of the error that it must answer with.
    pub error: Option<String>,
    /// Requests that it must send, in order.
    pub requests: Vec<CaseRequest>,
}

/// A request, and what it is answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaseRequest {
    /// `GET`, `POST`, ...
    pub method: Option<String>,
    /// The address.
    pub url: Option<String>,
    /// Headers that it must have, among others.
    pub headers: BTreeMap<String, String>,
    /// All of the body.
    pub body: Option<String>,
    /// What goes wrong, in place of an answer.
    pub fails: Option<String>,
    /// The answer's status.
    pub status: u16,
    /// The answer's body.
    pub answer: String,
    /// The answer's headers.
    pub answer_headers: BTreeMap<String, String>,
}

const fn option(name: &'static str, kind: OptionKind, about: &'static str) -> OptionSpec {
    OptionSpec { name, kind, required: false, default: None, about }
}

const RETRY_AFTER: OptionKind =
    OptionKind::Duration { min: Duration::ZERO, max: Duration::from_secs(u32::MAX as u64 / 1_000) };

/// Keys of a step that only a sink has.
pub(crate) const STEP: &[OptionSpec] = &[
    option("cursor", OptionKind::Text, "The cursor behind the batch."),
    option("recovered", OptionKind::Text, "The cursor that the sink has to answer."),
    option("retry", OptionKind::Text, "Part of the reason for which the batch has to come again."),
    option("retry_after", RETRY_AFTER, "When it has to come again."),
    option("error", OptionKind::Text, "Part of the error that the sink has to answer with."),
];

const REQUEST: &[OptionSpec] = &[
    option("method", OptionKind::Text, "The method."),
    option("url", OptionKind::Text, "The address."),
    option("headers", OptionKind::TextMap, "Headers that it has, among others."),
    option("body", OptionKind::Text, "The body as text."),
    option("fails", OptionKind::Choice(FAILURES), "What goes wrong, in place of an answer."),
    option("status", OptionKind::Integer { min: 100, max: 599 }, "The answer's status."),
    option("answer", OptionKind::Text, "The answer's body."),
    option("answer_headers", OptionKind::TextMap, "The answer's headers."),
];

const FAILURES: &[&str] = &["denied", "unreachable", "timed-out", "too-large"];

/// What a step says of a sink, its options read before.
pub(crate) fn read(step: &Checked, requests: Option<&Entry>, report: &mut Report<'_>) -> SinkStep {
    let options = &step.options;
    let text = |name| options.text_opt(name).map(str::to_owned);
    let bytes = |name| text(name).map(String::into_bytes);
    if let (Some(_), Some(span)) = (options.text_opt("retry"), step.spans.get("error")) {
        report.error(Code::BadCase, span, "a step has `retry` or `error`, not both", "remove one of them");
    }
    let requests = list("step.request", requests, report);
    SinkStep {
        cursor: bytes("cursor").unwrap_or_default(),
        recovered: bytes("recovered"),
        retry: text("retry"),
        retry_after: options.duration_opt("retry_after"),
        error: text("error"),
        requests: requests.iter().filter_map(|node| read_request(node, report)).collect(),
    }
}

fn read_request(node: &Node, report: &mut Report<'_>) -> Option<CaseRequest> {
    let mut table = TableReader::new("`request`", node, report)?;
    let checked = table.options(REQUEST, report);
    table.finish(report);
    let options = &checked.options;
    let text = |name| options.text_opt(name).map(str::to_owned);
    let map = |name| options.map_opt(name).cloned().unwrap_or_default();
    if let (Some(_), Some(span)) = (options.text_opt("fails"), checked.spans.get("status")) {
        report.error(Code::BadCase, span, "a request that fails has no answer", "remove `status` or `fails`");
    }
    Some(CaseRequest {
        method: text("method"),
        url: text("url"),
        headers: map("headers"),
        body: text("body"),
        fails: text("fails"),
        status: options.integer_opt("status").and_then(|status| u16::try_from(status).ok()).unwrap_or(200),
        answer: text("answer").unwrap_or_default(),
        answer_headers: map("answer_headers"),
    })
}
