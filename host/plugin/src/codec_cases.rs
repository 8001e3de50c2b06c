//! A codec's own tests, run in the real sandbox, as [`cases`](crate::cases) are.

use std::path::Path;

use arrow_array::Array;
use flumen_event::Batch;
use flumen_pipeline::codec::{BadBytes, Decoded, Events};
use flumen_pipeline::plan::PluginLimits;
use flumen_pipeline::{Decoder, Encoder};

use crate::abi::Role;
use crate::cases::{Case, CaseOutcome, ExpectedEvent, event_difference, shown, text};
use crate::error::LoadError;
use crate::host::PluginHost;
use crate::services::Services;
use crate::version::PluginVersion;

/// What a codec has to do.
#[derive(Debug, Clone)]
pub enum CodecTask {
    /// Bytes to events.
    Decode {
        /// The bytes.
        input: Vec<u8>,
        /// Whether the stream ends with them.
        is_last: bool,
        /// Bytes that have to be left over.
        left: usize,
        /// The events that have to come out, in order.
        expected: Vec<ExpectedEvent>,
        /// Bytes that have to be no event, in order, each with a part of the reason.
        bad: Vec<(Vec<u8>, String)>,
    },
    /// Events to payloads, or to a file.
    Encode {
        /// The events.
        input: Box<Batch>,
        /// Payloads of messages, or all of one file.
        expected: Vec<Vec<u8>>,
        /// Whether it is a file, with its beginning and its end.
        is_file: bool,
        /// Rows that have to be rejected, each with a part of the reason.
        rejected: Vec<(u32, String)>,
    },
}

/// The seed of a case's file.
const SEED: u64 = 1;

impl PluginHost {
    /// Runs one case of a codec. An error means that the file is not a codec of this kind. What it needs is granted.
    pub(crate) fn run_codec_case(
        &self,
        path: &Path,
        case: &Case,
        task: &CodecTask,
    ) -> Result<CaseOutcome, LoadError> {
        let role = match task {
            CodecTask::Decode { .. } => Role::Decoder,
            CodecTask::Encode { .. } => Role::Encoder,
        };
        let loaded = self.load(self.read(path)?)?;
        let limits = PluginLimits::default();
        let services = Services::new(case.name.as_str().into(), &limits);
        let needs = &loaded.shape.needs;
        let version = match self.open_loaded(&loaded, role, &services, &case.config_json, needs, limits) {
            Ok(version) => version,
            Err(LoadError::Refused { text, .. } | LoadError::Open { reason: text, .. }) => {
                return Ok(CaseOutcome::Failed(format!("it did not open: {text}")));
            }
            Err(error) => return Err(error),
        };
        let differences = match task {
            CodecTask::Decode { input, is_last, left, expected, bad } => {
                let (events, found, consumed) = read_all(&version, input, *is_last);
                let mut out = compare_events(expected, &events);
                out.extend(compare_bad(bad, &found));
                let actual = input.len() - consumed;
                if actual != *left {
                    out.push(format!("{actual} bytes are left over, {left} were expected"));
                }
                out
            }
            CodecTask::Encode { input, expected, is_file, rejected } => {
                encode(&version, input, expected, *is_file, rejected)
            }
        };
        Ok(match differences.is_empty() {
            true => CaseOutcome::Passed,
            false => CaseOutcome::Failed(differences.join("\n")),
        })
    }
}

/// Events, bytes that are none with the reason, and how many bytes were consumed.
type Read = (Vec<ExpectedEvent>, Vec<(Vec<u8>, String)>, usize);

/// As a source does: what is left comes again until nothing is consumed.
fn read_all(version: &PluginVersion, input: &[u8], is_last: bool) -> Read {
    let (mut events, mut bad, mut at) = (Vec::new(), Vec::new(), 0);
    loop {
        let rest = input.get(at..).unwrap_or_default();
        let Decoded { consumed, events: found, bad: wrong, .. } = version.decode(rest, is_last);
        events.extend((0..found.body.len()).map(|row| event(&found, row)));
        bad.extend(
            wrong
                .into_iter()
                .map(|BadBytes { bytes, reason, .. }| (rest.get(bytes).unwrap_or_default().to_vec(), reason)),
        );
        at += consumed;
        if consumed == 0 || at >= input.len() {
            return (events, bad, at);
        }
    }
}

fn event(events: &Events, row: usize) -> ExpectedEvent {
    let present = events.headers.iter().filter(|header| header.values.is_valid(row));
    ExpectedEvent {
        body: events.body.value(row).to_vec(),
        time: events.time.as_ref().map(|times| times.value(row)),
        headers: present
            .map(|header| (header.name.to_string(), header.values.value(row).to_owned()))
            .collect(),
    }
}

fn compare_events(expected: &[ExpectedEvent], actual: &[ExpectedEvent]) -> Vec<String> {
    let mut out = Vec::new();
    for (index, expected) in expected.iter().enumerate() {
        match actual.get(index) {
            Some(actual) => out.extend(event_difference(index, expected, actual)),
            None => out.push(format!("output {index} is missing\n  expected: {}", shown(expected))),
        }
    }
    for (index, actual) in actual.iter().enumerate().skip(expected.len()) {
        out.push(format!("output {index} was not expected\n  actual:   {}", shown(actual)));
    }
    out
}

fn compare_bad(expected: &[(Vec<u8>, String)], actual: &[(Vec<u8>, String)]) -> Vec<String> {
    let mut out = Vec::new();
    for index in 0..expected.len().max(actual.len()) {
        match (expected.get(index), actual.get(index)) {
            (Some((bytes, part)), Some((found, reason))) if bytes == found && reason.contains(part) => {}
            (Some((bytes, part)), Some((found, reason))) => out.push(format!(
                "bad bytes {index} differ\n    expected: {} ({part})\n    actual:   {} ({reason})",
                text(bytes),
                text(found)
            )),
            (Some((bytes, part)), None) => {
                out.push(format!("bad bytes {index} are missing\n  expected: {} ({part})", text(bytes)));
            }
            (None, Some((found, reason))) => {
                out.push(format!(
                    "bad bytes {index} were not expected\n  actual: {} ({reason})",
                    text(found)
                ));
            }
            (None, None) => {}
        }
    }
    out
}

fn encode(
    version: &PluginVersion,
    input: &Batch,
    expected: &[Vec<u8>],
    is_file: bool,
    rejected: &[(u32, String)],
) -> Vec<String> {
    let mut out = Vec::new();
    let encoded = version.encode(input, is_file.then_some(SEED));
    let actual: Vec<Vec<u8>> = match is_file {
        false => encoded.payloads.iter().flatten().map(<[u8]>::to_vec).collect(),
        true => {
            let mut file = Vec::new();
            for part in [version.begin(SEED), Ok(encoded.bytes().to_vec()), version.end(SEED)] {
                match part {
                    Ok(bytes) => file.extend(bytes),
                    Err(error) => out.push(error.to_string()),
                }
            }
            vec![file]
        }
    };
    for index in 0..expected.len().max(actual.len()) {
        let shown =
            |payload: Option<&Vec<u8>>| payload.map_or_else(|| "none".to_owned(), |bytes| text(bytes));
        let (expected, actual) = (expected.get(index), actual.get(index));
        if expected != actual {
            let what = if is_file { "the file".to_owned() } else { format!("payload {index}") };
            out.push(format!(
                "{what} differs\n    expected: {}\n    actual:   {}",
                shown(expected),
                shown(actual)
            ));
        }
    }
    let mut found: Vec<(u64, &str, bool)> = Vec::new();
    for group in &encoded.quarantined {
        let rows = group.batch.position().values().iter().zip(&group.reasons);
        found.extend(rows.map(|(row, reason)| (*row, reason.as_str(), group.rejected)));
    }
    for (row, part) in rejected {
        let is_found = |(at, reason, is_rejected): &(u64, &str, bool)| {
            *at == u64::from(*row) && *is_rejected && reason.contains(part.as_str())
        };
        match found.iter().position(is_found) {
            Some(index) => drop(found.remove(index)),
            None => out.push(format!("row {row} is not rejected so\n  expected a part: {part}")),
        }
    }
    out.extend(found.iter().map(|(row, reason, _)| format!("row {row} has no payload\n  actual: {reason}")));
    out
}
