//! Case files of plugins: what goes in, and what must come out.
//!
//! ```toml
//! config = { keep = { contains = "503" } }
//! [[input]]
//! body = "text"                    # or body_base64
//! time = "2026-01-01T00:00:00Z"    # RFC 3339, as a string or a TOML date
//! headers = { a = "b" }
//! [[output]]
//! body = "text"
//! [[rejected]]
//! row = 0
//! reason = "part of the reason"
//! ```
//! For a plugin that remembers, batches and ticks one after the other, in place of `input`, `output` and `rejected`:
//! ```toml
//! [[step]]
//! now = "2026-01-01T00:00:00Z"     # what the host's clock shows
//! [[step.input]]                   # without any input: a tick
//! body = "text"
//! [[step.output]]                  # what it made itself stands behind what it let through
//! body = "text"
//! ```
//! Steps of a sink say more ([`sink_cases`](crate::sink_cases)). Or what a codec must do
//! ([`codec_cases`](crate::codec_cases)), or `config` and `open_error = "part of the message"` alone. `${…}` is not substituted here: bodies are data.

use std::collections::BTreeMap;
use std::path::Path;

use flumen_pipeline::{OptionKind, OptionSpec, Value};

use crate::base64;
use crate::code::Code;
use crate::codec_cases::{self, CodecCase};
use crate::diagnostic::Diagnostic;
use crate::env::Env;
use crate::json;
use crate::report::{Report, UserFile};
use crate::sink_cases::{self, SinkStep};
use crate::table::TableReader;
use crate::tree::{Entry, Item, Node};
use crate::value;

/// One case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseFile {
    /// The plugin's configuration as JSON; `{}` if the case has none.
    pub config_json: String,
    /// Events that go in, in order.
    pub inputs: Vec<CaseEvent>,
    /// Events that must come out, in order.
    pub outputs: Vec<CaseEvent>,
    /// Rows of the input that must be rejected, each with a part of the reason.
    pub rejected: Vec<(u32, String)>,
    /// The plugin must refuse the configuration, with this part of a message.
    pub open_error: Option<String>,
    /// What a codec must do; then the plugin is one.
    pub codec: Option<CodecCase>,
    /// Steps, in place of inputs and outputs of the file.
    pub steps: Vec<CaseStep>,
}

/// A batch or a tick; of a sink: a delivery, or the question for its cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseStep {
    /// What the host's clock shows, in nanoseconds since the Unix epoch.
    pub now_ns: Option<i64>,
    /// Events that go in, in order; none: a tick.
    pub inputs: Vec<CaseEvent>,
    /// Events that must come out, in order.
    pub outputs: Vec<CaseEvent>,
    /// As of a case.
    pub rejected: Vec<(u32, String)>,
    /// What only sinks have.
    pub sink: SinkStep,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseEvent {
    /// The body.
    pub body: Vec<u8>,
    /// Nanoseconds since the Unix epoch, if given.
    pub time_ns: Option<i64>,
    /// The headers.
    pub headers: BTreeMap<String, String>,
}

const FILE: &[OptionSpec] =
    &[option("open_error", OptionKind::Text, "Part of the message that `open` fails with.")];

const EVENT: &[OptionSpec] = &[
    option("body", OptionKind::Text, "The body as text."),
    option("body_base64", OptionKind::Text, "The body as base64."),
    option("headers", OptionKind::TextMap, "The headers."),
];

const REJECTED: &[OptionSpec] = &[
    OptionSpec {
        required: true,
        ..option("row", OptionKind::Integer { min: 0, max: 65_535 }, "Row of the input.")
    },
    option("reason", OptionKind::Text, "Part of the reason."),
];

const fn option(name: &'static str, kind: OptionKind, about: &'static str) -> OptionSpec {
    OptionSpec { name, kind, required: false, default: None, about }
}

/// Reads a case file; all errors at once.
pub fn load_case(path: &Path, env: &dyn Env) -> Result<CaseFile, Vec<Diagnostic>> {
    let file = UserFile::read(env, path).map_err(|error| vec![*error])?;
    let mut report = Report::new(&file);
    let case = report.parse(None).and_then(|root| read(&root, &mut report));
    match (case, report.into_sorted()) {
        (Some(case), diagnostics) if diagnostics.is_empty() => Ok(case),
        (_, diagnostics) => Err(diagnostics),
    }
}

fn read(root: &Node, report: &mut Report<'_>) -> Option<CaseFile> {
    let mut table = TableReader::new("a case", root, report)?;
    let config = table.get("config");
    let input = table.get("input");
    let output = table.get("output");
    let rejected = table.get("rejected");
    let (decode, encode, bad) = (table.get("decode"), table.get("encode"), table.get("bad"));
    let step = table.get("step");
    let options = table.options(FILE, report);
    table.finish(report);
    let codec = codec_cases::read(decode, encode, bad, report);
    let open_error = options.options.text_opt("open_error").map(str::to_owned);
    if open_error.is_some() {
        for entry in [input, output, rejected, step].into_iter().flatten() {
            let reason = format!("a case with `open_error` has no `{}`: the plugin never opens", entry.key);
            report.error(Code::BadCase, &entry.key_span, reason, "make two cases of it");
        }
    }
    if step.is_some() {
        for entry in [input, output, rejected].into_iter().flatten() {
            let reason = format!("a case with `step` has no `{}` of its own", entry.key);
            report.error(Code::BadCase, &entry.key_span, reason, "put it into a step");
        }
    }
    let steps = list("step", step, report).iter().filter_map(|node| read_step(node, report)).collect();
    let inputs = events("input", input, report);
    let outputs = events("output", output, report);
    let rejected = list("rejected", rejected, report)
        .iter()
        .filter_map(|node| read_rejected(node, inputs.len(), report))
        .collect();
    let config_json = json::config_text("a case", config.map(|entry| &entry.value), report)?;
    Some(CaseFile { config_json, inputs, outputs, rejected, open_error, codec, steps })
}

fn read_step(node: &Node, report: &mut Report<'_>) -> Option<CaseStep> {
    let mut table = TableReader::new("`step`", node, report)?;
    let now = table.get("now");
    let input = table.get("input");
    let output = table.get("output");
    let rejected = table.get("rejected");
    let request = table.get("request");
    let options = table.options(sink_cases::STEP, report);
    table.finish(report);
    let sink = sink_cases::read(&options, request, report);
    let now_ns = match now {
        Some(entry) => Some(read_time(&entry.value, report)?),
        None => None,
    };
    let inputs = events("input", input, report);
    let outputs = events("output", output, report);
    let rejected = list("rejected", rejected, report)
        .iter()
        .filter_map(|node| read_rejected(node, inputs.len(), report))
        .collect();
    Some(CaseStep { now_ns, inputs, outputs, rejected, sink })
}

pub(crate) fn list<'a>(name: &str, entry: Option<&'a Entry>, report: &mut Report<'_>) -> &'a [Node] {
    match entry.map(|entry| &entry.value) {
        None => &[],
        Some(Node { item: Item::List(nodes), .. }) => nodes,
        Some(node) => {
            let reason = format!("`{name}` is a list of tables, but this is {}", node.type_word());
            let fix = format!("write the header with two brackets: [[{name}]]");
            report.error(Code::WrongType, &node.span, reason, fix);
            &[]
        }
    }
}

fn events(name: &str, entry: Option<&Entry>, report: &mut Report<'_>) -> Vec<CaseEvent> {
    list(name, entry, report).iter().filter_map(|node| read_event(name, node, report)).collect()
}

fn read_event(name: &str, node: &Node, report: &mut Report<'_>) -> Option<CaseEvent> {
    let mut table = TableReader::new(format!("`{name}`"), node, report)?;
    let checked = table.options(EVENT, report);
    let time = table.get("time");
    let header = table.span().clone();
    table.finish(report);
    let time_ns = match time {
        Some(entry) => Some(read_time(&entry.value, report)?),
        None => None,
    };
    let options = &checked.options;
    let body = match (options.text_opt("body"), options.text_opt("body_base64")) {
        (Some(body), None) => body.as_bytes().to_vec(),
        (None, Some(encoded)) => match base64::decode(encoded) {
            Some(body) => body,
            None => {
                let span = checked.spans.get("body_base64").unwrap_or(&header);
                let fix = "use the standard alphabet, with padding";
                report.error(Code::BadBase64, span, "`body_base64` is not base64", fix);
                return None;
            }
        },
        (Some(_), Some(_)) => {
            let reason = "an event has `body` or `body_base64`, not both";
            report.error(Code::BadCase, &header, reason, "remove one of them");
            return None;
        }
        // A body of a wrong type has been reported.
        (None, None) if checked.spans.contains_key("body") || checked.spans.contains_key("body_base64") => {
            return None;
        }
        (None, None) => {
            let reason = format!("`{name}` needs `body`");
            report.error(Code::MissingKey, &header, reason, "add body = \"…\", or body_base64 = \"…\"");
            return None;
        }
    };
    Some(CaseEvent { body, time_ns, headers: options.map_opt("headers").cloned().unwrap_or_default() })
}

fn read_time(node: &Node, report: &mut Report<'_>) -> Option<i64> {
    let text = match &node.item {
        Item::Text(text) | Item::Datetime(text) => text.as_str(),
        _ => {
            value::check("time", node, &OptionKind::Text, report);
            return None;
        }
    };
    let parsed: Result<jiff::Timestamp, _> = text.parse();
    let time = parsed.ok().and_then(|time| i64::try_from(time.as_nanosecond()).ok());
    if time.is_none() {
        let reason = "`time` is not a time of RFC 3339 between the years 1677 and 2262";
        report.error(Code::BadTime, &node.span, reason, "write, for example, \"2026-01-01T00:00:00Z\"");
    }
    time
}

fn read_rejected(node: &Node, inputs: usize, report: &mut Report<'_>) -> Option<(u32, String)> {
    let mut table = TableReader::new("`rejected`", node, report)?;
    let checked = table.options(REJECTED, report);
    let header = table.span().clone();
    table.finish(report);
    let Some(Value::Integer(row)) = checked.options.0.get("row") else { return None };
    let row = u32::try_from(*row).ok()?;
    if row as usize >= inputs {
        let span = checked.spans.get("row").unwrap_or(&header);
        let reason = format!("there is no row {row}: the case has {inputs} inputs");
        report.error(Code::BadCase, span, reason, "rows are counted from 0");
        return None;
    }
    Some((row, checked.options.text_opt("reason").unwrap_or_default().to_owned()))
}
