//! A plugin's own tests, run in the real sandbox.
//!
//! The files are `cases/*.toml`; `host/config` reads them, since nothing else here reads a user's text. A case passes if
//! the plugin opens, keeps exactly the expected events in their order, and rejects exactly the expected rows.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use arrow_array::Array;
use flumen_event::Batch;
use flumen_pipeline::plan::PluginLimits;
use flumen_pipeline::{Processed, Quarantined};

use crate::abi::Role;
use crate::alone::Alone;
use crate::codec_cases::CodecTask;
use crate::error::LoadError;
use crate::host::PluginHost;
use crate::limits;
use crate::services::Services;
use crate::sink_alone::SinkAlone;
use crate::sink_cases::{self, Script, SinkStep};
use crate::version::PluginVersion;

/// One case.
#[derive(Debug, Clone)]
pub struct Case {
    /// The file's stem.
    pub name: String,
    /// The plugin's configuration.
    pub config_json: String,
    /// The events that it gets.
    pub input: Batch,
    /// The events that have to come out, in order.
    pub expected: Vec<ExpectedEvent>,
    /// Input rows that have to be rejected, with a part of the reason.
    pub rejected: Vec<(u32, String)>,
    /// A part of the error that `open` has to answer with; then nothing else is looked at.
    pub open_error: Option<String>,
    /// Batches and ticks one after the other, for a plugin that remembers. If there are any, the input is theirs.
    pub steps: Vec<Step>,
    /// What a codec has to do; then nothing else is looked at but `open_error`.
    pub codec: Option<CodecTask>,
}

/// One step of a case.
#[derive(Debug, Clone)]
pub struct Step {
    /// What the clock of the host shows; `None`: the time.
    pub now_ns: Option<i64>,
    /// The events that it gets; without any it is ticked.
    pub input: Batch,
    /// The events that have to come out, in order, those that it made behind the others.
    pub expected: Vec<ExpectedEvent>,
    /// As of a case.
    pub rejected: Vec<(u32, String)>,
    /// What only sinks have: without any input the sink is asked for its cursor.
    pub sink: SinkStep,
}

/// An event that has to come out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExpectedEvent {
    /// The body.
    pub body: Vec<u8>,
    /// The time; `None`: any.
    pub time: Option<i64>,
    /// All headers.
    pub headers: BTreeMap<String, String>,
}

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaseOutcome {
    /// As expected.
    Passed,
    /// Not so; the text shows the difference, in lines.
    Failed(String),
}

/// What came out of a case, whatever was expected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaseActual {
    /// What `open` answered with, if it refused; then the rest is empty.
    pub open_error: Option<String>,
    /// The events that came out, in order.
    pub outputs: Vec<ExpectedEvent>,
    /// Input rows that were rejected, with the reason.
    pub rejected: Vec<(u32, String)>,
    /// Why the plugin failed on rows, if it did.
    pub failure: Option<String>,
}

impl PluginHost {
    /// Runs one case and says what came out: what a case's file is written from.
    pub fn run_actual(&self, path: &Path, case: &Case) -> Result<CaseActual, LoadError> {
        let loaded = self.load(self.read(path)?)?;
        let plugin_limits = PluginLimits::default();
        let services = Services::new(case.name.as_str().into(), &plugin_limits);
        let needs = &loaded.shape.needs;
        let role = loaded.shape.roles.first().copied().unwrap_or(Role::Interceptor);
        let opened = self.open_loaded(&loaded, role, &services, &case.config_json, needs, plugin_limits);
        let version = match opened {
            Ok(version) => version,
            Err(LoadError::Refused { text, .. } | LoadError::Open { reason: text, .. }) => {
                return Ok(CaseActual { open_error: Some(text), ..CaseActual::default() });
            }
            Err(error) => return Err(error),
        };
        let (processed, made) = Alone::new(version).process(case.input.clone(), None);
        let failed = processed.quarantined.iter().find(|quarantined| !quarantined.rejected);
        let mut rejected = Vec::new();
        for quarantined in processed.quarantined.iter().filter(|quarantined| quarantined.rejected) {
            rejected
                .extend(input_rows(&case.input, quarantined).into_iter().zip(quarantined.reasons.clone()));
        }
        rejected.sort();
        Ok(CaseActual {
            open_error: None,
            outputs: events(std::iter::once(&processed.kept).chain(&made)),
            rejected,
            failure: failed.map(|failed| failed.reasons.first().cloned().unwrap_or_default()),
        })
    }

    /// Runs one case. An error means that the file is not a plugin at all. What the plugin needs is granted.
    pub fn run_case(&self, path: &Path, case: &Case) -> Result<CaseOutcome, LoadError> {
        if let Some(task) = &case.codec {
            return self.run_codec_case(path, case, task);
        }
        let loaded = self.load(self.read(path)?)?;
        let plugin_limits = PluginLimits::default();
        let script = Script::default();
        let services = Services::new(case.name.as_str().into(), &plugin_limits);
        let services = services.with_outside(script.outside());
        let needs = &loaded.shape.needs;
        let role = match loaded.shape.roles.first() {
            None | Some(Role::Aggregator) => Role::Interceptor,
            Some(role) => *role,
        };
        let opened = self.open_loaded(&loaded, role, &services, &case.config_json, needs, plugin_limits);
        let version = match (opened, &case.open_error) {
            (Ok(version), None) => version,
            (Ok(_), Some(part)) => {
                return Ok(CaseOutcome::Failed(format!(
                    "it opened, but {part:?} was expected as the error of open"
                )));
            }
            (Err(LoadError::Refused { text, .. } | LoadError::Open { reason: text, .. }), Some(part)) => {
                let is_as_expected = text.contains(part.as_str());
                let difference =
                    || format!("error of open\n  expected a part: {part}\n  actual:          {text}");
                return Ok(if is_as_expected {
                    CaseOutcome::Passed
                } else {
                    CaseOutcome::Failed(difference())
                });
            }
            (Err(LoadError::Refused { text, .. } | LoadError::Open { reason: text, .. }), None) => {
                return Ok(CaseOutcome::Failed(format!("it did not open: {text}")));
            }
            (Err(error), _) => return Err(error),
        };
        let differences = match role {
            Role::Sink => sink_cases::run_steps(SinkAlone::new(version), &script, case),
            _ => run_steps(version, case),
        };
        Ok(if differences.is_empty() {
            CaseOutcome::Passed
        } else {
            CaseOutcome::Failed(differences.join("\n"))
        })
    }
}

/// All steps, with one state; the first one that is not as expected ends them.
fn run_steps(version: Arc<PluginVersion>, case: &Case) -> Vec<String> {
    let alone = Alone::new(version);
    let only = Step {
        now_ns: None,
        input: case.input.clone(),
        expected: case.expected.clone(),
        rejected: case.rejected.clone(),
        sink: SinkStep::default(),
    };
    let steps = if case.steps.is_empty() { std::slice::from_ref(&only) } else { &case.steps };
    for (number, step) in steps.iter().enumerate() {
        let (processed, made) = match step.input.is_empty() && !case.steps.is_empty() {
            false => alone.process(step.input.clone(), step.now_ns),
            true => match alone.tick(step.now_ns) {
                Ok(made) => (Processed { kept: Batch::empty(), quarantined: Vec::new(), dropped: 0 }, made),
                Err(reason) => return vec![format!("step {number}: the tick failed: {reason}")],
            },
        };
        let differences = compare(step, &processed, &made);
        if !differences.is_empty() {
            let name = |text| if case.steps.is_empty() { text } else { format!("step {number}: {text}") };
            return differences.into_iter().map(name).collect();
        }
    }
    Vec::new()
}

/// Everything that is not as expected, one text each.
fn compare(case: &Step, processed: &Processed, made: &[Batch]) -> Vec<String> {
    let mut out = Vec::new();
    for quarantined in processed.quarantined.iter().filter(|quarantined| !quarantined.rejected) {
        let rows = input_rows(&case.input, quarantined);
        let reason = quarantined.reasons.first().map(String::as_str).unwrap_or_default();
        out.push(format!("the plugin failed on input rows {rows:?}: {reason}"));
    }
    let actual = events(std::iter::once(&processed.kept).chain(made));
    for (index, expected) in case.expected.iter().enumerate() {
        match actual.get(index) {
            Some(actual) => out.extend(event_difference(index, expected, actual)),
            None => out.push(format!("output {index} is missing\n  expected: {}", shown(expected))),
        }
    }
    for (index, actual) in actual.iter().enumerate().skip(case.expected.len()) {
        out.push(format!("output {index} was not expected\n  actual:   {}", shown(actual)));
    }
    out.extend(rejection_differences(case, processed));
    out
}

fn rejection_differences(case: &Step, processed: &Processed) -> Vec<String> {
    let mut actual: BTreeMap<u32, &str> = BTreeMap::new();
    for quarantined in processed.quarantined.iter().filter(|quarantined| quarantined.rejected) {
        let rows = input_rows(&case.input, quarantined);
        actual.extend(rows.into_iter().zip(quarantined.reasons.iter().map(String::as_str)));
    }
    let mut out = Vec::new();
    for (row, part) in &case.rejected {
        match actual.remove(row) {
            Some(reason) if reason.contains(part.as_str()) => {}
            Some(reason) => out.push(format!(
                "row {row} is rejected for another reason\n  expected a part: {part}\n  actual:          {reason}"
            )),
            None => out.push(format!("row {row} is not rejected\n  expected a part: {part}")),
        }
    }
    let surplus = actual.into_iter();
    out.extend(
        surplus.map(|(row, reason)| {
            format!("row {row} is rejected, which was not expected\n  actual: {reason}")
        }),
    );
    out
}

/// Row numbers by identity: a case's rows have different identities.
fn input_rows(input: &Batch, quarantined: &Quarantined) -> Vec<u32> {
    let row_of = |row| {
        let identity = quarantined.batch.identity(row);
        (0..input.rows()).position(|candidate| input.identity(candidate) == identity)
    };
    (0..quarantined.batch.rows()).filter_map(row_of).filter_map(|row| u32::try_from(row).ok()).collect()
}

fn events<'a>(batches: impl Iterator<Item = &'a Batch>) -> Vec<ExpectedEvent> {
    batches.flat_map(|batch| (0..batch.rows()).map(|row| event(batch, row))).collect()
}

fn event(batch: &Batch, row: usize) -> ExpectedEvent {
    let present = batch.headers().iter().filter(|header| header.values.is_valid(row));
    ExpectedEvent {
        body: batch.body().value(row).to_vec(),
        time: Some(batch.time().value(row)),
        headers: present
            .map(|header| (header.name.to_string(), header.values.value(row).to_owned()))
            .collect(),
    }
}

pub(crate) fn event_difference(
    index: usize,
    expected: &ExpectedEvent,
    actual: &ExpectedEvent,
) -> Option<String> {
    let mut out = String::new();
    let mut line = |what: &str, expected: String, actual: String| {
        // Writing to a String does not fail.
        write!(out, "\n  {what}\n    expected: {expected}\n    actual:   {actual}").ok();
    };
    if expected.body != actual.body {
        line("body", text(&expected.body), text(&actual.body));
    }
    if expected.time.is_some() && expected.time != actual.time {
        line("time", format!("{:?}", expected.time), format!("{:?}", actual.time));
    }
    let names: std::collections::BTreeSet<&String> =
        expected.headers.keys().chain(actual.headers.keys()).collect();
    for name in names {
        let value = |event: &ExpectedEvent| match event.headers.get(name) {
            Some(value) => text(value.as_bytes()),
            None => "no such header".to_owned(),
        };
        let (expected, actual) = (value(expected), value(actual));
        if expected != actual {
            line(&format!("header {name}"), expected, actual);
        }
    }
    (!out.is_empty()).then(|| format!("output {index} differs{out}"))
}

pub(crate) fn shown(event: &ExpectedEvent) -> String {
    format!("{} {:?}", text(&event.body), event.headers)
}

/// Readable, and cut: a body may be large.
pub(crate) fn text(bytes: &[u8]) -> String {
    let cut = bytes.get(..bytes.len().min(limits::TEXT_BYTES_MAX)).unwrap_or(bytes);
    let text = match std::str::from_utf8(cut) {
        Ok(text) => format!("{text:?}"),
        Err(_) => format!("\"{}\"", cut.escape_ascii()),
    };
    if cut.len() < bytes.len() { format!("{text}... ({} bytes)", bytes.len()) } else { text }
}
