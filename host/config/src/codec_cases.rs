//! The parts of a case file that are about codecs.
//!
//! ```toml
//! [decode]
//! text = "one\ntwo\n"              # or base64
//! is_last = true                   # whether the stream ends there; the default
//! left = 0                         # bytes that must not be consumed; the default
//! [[output]]                       # the events, as in other cases
//! body = "one"
//! [[bad]]
//! text = "two\n"                   # or base64: bytes that must be no event, with a part of the reason
//! reason = "part of the reason"
//! ```
//! or
//! ```toml
//! [[input]]                        # the events, as in other cases
//! body = "one"
//! [encode]
//! payloads = ["one"]               # or payloads_base64: what messages must hold
//! [[rejected]]
//! ```
//! or `[encode]` with `file = "…"` (or `file_base64`): all of a file, with its beginning and its end.

use flumen_pipeline::{OptionKind, OptionSpec};

use crate::base64;
use crate::cases::list;
use crate::code::Code;
use crate::report::Report;
use crate::table::{Checked, TableReader};
use crate::tree::{Entry, Node, Span};

/// What a case of a codec is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CodecCase {
    /// Bytes to events.
    Decode {
        /// The bytes.
        input: Vec<u8>,
        /// Whether the stream ends with them.
        is_last: bool,
        /// Bytes at their end that must not be consumed.
        left: usize,
        /// Bytes that must be no event, each with a part of the reason.
        bad: Vec<(Vec<u8>, String)>,
    },
    /// Events to payloads.
    Messages(Vec<Vec<u8>>),
    /// Events to a file.
    File(Vec<u8>),
}

const fn option(name: &'static str, kind: OptionKind, about: &'static str) -> OptionSpec {
    OptionSpec { name, kind, required: false, default: None, about }
}

const DECODE: &[OptionSpec] = &[
    option("text", OptionKind::Text, "The bytes as text."),
    option("base64", OptionKind::Text, "The bytes as base64."),
    option("is_last", OptionKind::Bool, "Whether the stream ends with them."),
    option("left", OptionKind::Integer { min: 0, max: 1 << 30 }, "Bytes that must not be consumed."),
];

const BAD: &[OptionSpec] = &[
    option("text", OptionKind::Text, "The bytes as text."),
    option("base64", OptionKind::Text, "The bytes as base64."),
    option("reason", OptionKind::Text, "Part of the reason."),
];

const ENCODE: &[OptionSpec] = &[
    option("payloads", OptionKind::TextList, "What messages must hold, as text."),
    option("payloads_base64", OptionKind::TextList, "What messages must hold, as base64."),
    option("file", OptionKind::Text, "All of a file, as text."),
    option("file_base64", OptionKind::Text, "All of a file, as base64."),
];

/// Reads what a case says about a codec, if it does.
pub(crate) fn read(
    decode: Option<&Entry>,
    encode: Option<&Entry>,
    bad: Option<&Entry>,
    report: &mut Report<'_>,
) -> Option<CodecCase> {
    if let (Some(bad), None) = (bad, decode) {
        let reason = "`bad` says what a decoder must not take, and there is no `decode`";
        report.error(Code::BadCase, &bad.key_span, reason, "add [decode] with text = \"…\"");
    }
    match (decode, encode) {
        (Some(_), Some(encode)) => {
            let reason = "a case has `decode` or `encode`, not both";
            report.error(Code::BadCase, &encode.key_span, reason, "make two cases of it");
            None
        }
        (Some(decode), None) => read_decode(&decode.value, bad, report),
        (None, Some(encode)) => read_encode(&encode.value, report),
        (None, None) => None,
    }
}

fn read_decode(node: &Node, bad: Option<&Entry>, report: &mut Report<'_>) -> Option<CodecCase> {
    let mut table = TableReader::new("`decode`", node, report)?;
    let checked = table.options(DECODE, report);
    let header = table.span().clone();
    table.finish(report);
    let input = bytes("`decode`", &checked, &header, report);
    let options = &checked.options;
    let left = options.integer_opt("left").and_then(|left| usize::try_from(left).ok()).unwrap_or(0);
    let is_last = options.flag_opt("is_last").unwrap_or(true);
    let bad = list("bad", bad, report).iter().filter_map(|node| read_bad(node, report)).collect();
    Some(CodecCase::Decode { input: input?, is_last, left, bad })
}

fn read_bad(node: &Node, report: &mut Report<'_>) -> Option<(Vec<u8>, String)> {
    let mut table = TableReader::new("`bad`", node, report)?;
    let checked = table.options(BAD, report);
    let header = table.span().clone();
    table.finish(report);
    let reason = checked.options.text_opt("reason").unwrap_or_default().to_owned();
    Some((bytes("`bad`", &checked, &header, report)?, reason))
}

/// `text` or `base64`.
fn bytes(what: &str, checked: &Checked, header: &Span, report: &mut Report<'_>) -> Option<Vec<u8>> {
    match (checked.options.text_opt("text"), checked.options.text_opt("base64")) {
        (Some(text), None) => Some(text.as_bytes().to_vec()),
        (None, Some(encoded)) => from_base64("base64", encoded, checked, header, report),
        (given, _) => {
            // One of a wrong type has been reported.
            if given.is_some() || !["text", "base64"].iter().any(|name| checked.spans.contains_key(*name)) {
                let reason = format!("{what} has `text` or `base64`: one of them");
                report.error(Code::BadCase, header, reason, "give the bytes once");
            }
            None
        }
    }
}

fn from_base64(
    option: &str,
    encoded: &str,
    checked: &Checked,
    header: &Span,
    report: &mut Report<'_>,
) -> Option<Vec<u8>> {
    let decoded = base64::decode(encoded);
    if decoded.is_none() {
        let span = checked.spans.get(option).unwrap_or(header);
        let fix = "use the standard alphabet, with padding";
        report.error(Code::BadBase64, span, format!("`{option}` is not base64"), fix);
    }
    decoded
}

fn read_encode(node: &Node, report: &mut Report<'_>) -> Option<CodecCase> {
    let mut table = TableReader::new("`encode`", node, report)?;
    let checked = table.options(ENCODE, report);
    let header = table.span().clone();
    table.finish(report);
    let options = &checked.options;
    let text = |all: &[String]| all.iter().map(|text| text.as_bytes().to_vec()).collect();
    match (
        options.list_opt("payloads"),
        options.list_opt("payloads_base64"),
        options.text_opt("file"),
        options.text_opt("file_base64"),
    ) {
        (Some(payloads), None, None, None) => Some(CodecCase::Messages(text(payloads))),
        (None, Some(payloads), None, None) => {
            let each = |encoded: &String| from_base64("payloads_base64", encoded, &checked, &header, report);
            payloads.iter().map(each).collect::<Option<Vec<_>>>().map(CodecCase::Messages)
        }
        (None, None, Some(file), None) => Some(CodecCase::File(file.as_bytes().to_vec())),
        (None, None, None, Some(file)) => {
            from_base64("file_base64", file, &checked, &header, report).map(CodecCase::File)
        }
        _ => {
            let reason = "`encode` has one of `payloads`, `payloads_base64`, `file` and `file_base64`";
            report.error(Code::BadCase, &header, reason, "give what must come out, once");
            None
        }
    }
}
