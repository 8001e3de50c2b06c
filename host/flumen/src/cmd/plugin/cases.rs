//! A plugin's directory as commands see it: its component, its cases.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use arrow_array::StringArray;
use flumen_config::{CaseEvent, CaseFile, CaseRequest, CaseStep, CodecCase};
use flumen_event::{Batch, BatchBuilder, HeaderColumn};
use flumen_plugin::cases::{Case, ExpectedEvent, Step};
use flumen_plugin::codec_cases::CodecTask;
use flumen_plugin::sink_cases::{Exchange, SinkStep};
use flumen_plugin::{EgressFailure, Response};

use crate::exit::{Failure, counted};

/// A case and the file that it was read from.
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// The case.
    pub case: Case,
}

/// All cases of a directory, by name. None if it has no `cases/`.
pub fn read(dir: &Path) -> Result<Vec<Found>, Failure> {
    let cases = dir.join("cases");
    let mut files = Vec::new();
    if cases.is_dir() {
        for entry in std::fs::read_dir(&cases).with_context(|| format!("cannot read {}", cases.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                files.push(path);
            }
        }
    }
    files.sort();
    files.into_iter().map(read_one).collect()
}

/// One case.
pub fn read_one(path: PathBuf) -> Result<Found, Failure> {
    let file = flumen_config::load_case(&path, &flumen_config::SystemEnv).map_err(Failure::Config)?;
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let case = to_case(&name, file)?;
    Ok(Found { path, case })
}

/// The component of a directory: the only one in it, else what the guest workspace has built.
pub fn find_wasm(dir: &Path) -> anyhow::Result<PathBuf> {
    let mut here = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wasm") {
            here.push(path);
        }
    }
    if let [only] = here.as_slice() {
        return Ok(only.clone());
    }
    let full = dir.canonicalize()?;
    let file = full.file_name().map(|name| name.to_string_lossy().replace('-', "_")).unwrap_or_default();
    let built = Path::new("target/wasm32-unknown-unknown/release").join(format!("{file}.wasm"));
    let found = full.ancestors().map(|above| above.join(&built)).find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "{} has {} and there is no {}: build the plugin, or name its file with --wasm",
            dir.display(),
            counted(here.len(), ".wasm file"),
            built.display()
        )
    })
}

fn to_case(name: &str, file: CaseFile) -> anyhow::Result<Case> {
    let codec = match file.codec.clone() {
        Some(codec) => Some(to_task(&file, codec)?),
        None => None,
    };
    let expected =
        |event: CaseEvent| ExpectedEvent { body: event.body, time: event.time_ns, headers: event.headers };
    let mut read = 0;
    let mut steps = Vec::with_capacity(file.steps.len());
    for CaseStep { now_ns, inputs, outputs, rejected, sink } in file.steps {
        let input = to_batch(&inputs, read)?;
        read += inputs.len() as u64;
        let expected = outputs.into_iter().map(expected).collect();
        steps.push(Step { now_ns, input, expected, rejected, sink: to_sink_step(sink) });
    }
    Ok(Case {
        name: name.to_string(),
        config_json: file.config_json,
        input: to_batch(&file.inputs, 0)?,
        expected: file.outputs.into_iter().map(expected).collect(),
        rejected: file.rejected,
        open_error: file.open_error,
        steps,
        codec,
    })
}

fn to_task(file: &CaseFile, codec: CodecCase) -> anyhow::Result<CodecTask> {
    let encode = |expected, is_file| {
        let (input, rejected) = (Box::new(to_batch(&file.inputs, 0)?), file.rejected.clone());
        Ok(CodecTask::Encode { input, expected, is_file, rejected })
    };
    match codec {
        CodecCase::Messages(expected) => encode(expected, false),
        CodecCase::File(bytes) => encode(vec![bytes], true),
        CodecCase::Decode { input, is_last, left, bad } => {
            let expected = file.outputs.iter().cloned().map(|event| ExpectedEvent {
                body: event.body,
                time: event.time_ns,
                headers: event.headers,
            });
            Ok(CodecTask::Decode { input, is_last, left, expected: expected.collect(), bad })
        }
    }
}

fn to_sink_step(step: flumen_config::SinkStep) -> SinkStep {
    SinkStep {
        cursor: step.cursor,
        recovered: step.recovered,
        retry: step.retry.map(|reason| (reason, step.retry_after)),
        error: step.error,
        exchanges: step.requests.into_iter().map(to_exchange).collect(),
    }
}

fn to_exchange(request: CaseRequest) -> Exchange {
    let CaseRequest { method, url, headers, body, fails, status, answer, answer_headers } = request;
    let said = "the case says so".to_owned();
    let answer = match fails.as_deref() {
        None => {
            Ok(Response { status, headers: answer_headers.into_iter().collect(), body: answer.into_bytes() })
        }
        Some("denied") => Err(EgressFailure::Denied(said)),
        Some("unreachable") => Err(EgressFailure::Unreachable(said)),
        Some("too-large") => Err(EgressFailure::TooLarge(0)),
        Some(_) => Err(EgressFailure::TimedOut),
    };
    Exchange { method, url, headers, body: body.map(String::into_bytes), answer }
}

/// Events of one stream, from this position on.
fn to_batch(events: &[CaseEvent], first: u64) -> anyhow::Result<Batch> {
    let mut builder = BatchBuilder::default();
    for (event, position) in events.iter().zip(first..) {
        builder.push(0, position, event.time_ns.unwrap_or(0), &event.body);
    }
    let mut columns: BTreeMap<&str, Vec<Option<&str>>> = BTreeMap::new();
    for name in events.iter().flat_map(|event| event.headers.keys()) {
        columns
            .entry(name)
            .or_insert_with(|| events.iter().map(|e| e.headers.get(name).map(String::as_str)).collect());
    }
    let headers = columns
        .into_iter()
        .map(|(name, values)| HeaderColumn { name: name.into(), values: StringArray::from(values) })
        .collect();
    Ok(builder.finish(headers)?)
}
