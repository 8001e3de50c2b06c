//! Random input: a plugin may reject what it does not understand, but it must not fail.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use flumen_event::Batch;
use flumen_pipeline::plan::PluginLimits;
use flumen_pipeline::{Decoder, Encoder, InterceptorVersion, Quarantined};
use flumen_plugin::cases::Case;
use flumen_plugin::{Alone, LoadError, Outside, PluginHost, PluginVersion, Role, SinkFailure};

use super::cases::Found;
use super::random::Batches;
use crate::exit::Failure;

/// Batches, or inputs of a decoder, that one instance gets.
const ROUNDS: u32 = 3;

/// What the plugin failed on, if it did.
pub fn run(
    host: &PluginHost,
    wasm: &Path,
    found: &[Found],
    batches: u32,
    seed: u64,
) -> Result<Option<String>, Failure> {
    let unfit = |error: LoadError| Failure::Unfit(vec![error.to_string()]);
    let inspected = host.inspect(wasm, "{}").map_err(unfit)?;
    let opening: Vec<&Case> =
        found.iter().map(|found| &found.case).filter(|case| case.open_error.is_none()).collect();
    let trial = Trial { host, wasm, needs: &inspected.needs };
    let mut made = Batches::new(seed, &opening);
    for number in 0..batches {
        for role in &inspected.roles {
            let config = made.config().to_owned();
            let failed = match role {
                Role::Interceptor | Role::Aggregator => trial.intercept(&mut made, &config, number)?,
                Role::Decoder => trial.decode(&mut made, &config),
                Role::Encoder => trial.encode(&mut made, &config)?,
                Role::Sink => trial.deliver(&mut made, &config)?,
            };
            if let Some(failed) = failed {
                return Ok(Some(format!("it failed in batch {number}, with config {config}\n{failed}")));
            }
        }
    }
    Ok(None)
}

struct Trial<'a> {
    host: &'a PluginHost,
    wasm: &'a Path,
    needs: &'a [String],
}

impl Trial<'_> {
    /// Nothing if it does not open: its own case says so.
    fn open(&self, role: Role, config: &str) -> Option<Arc<PluginVersion>> {
        self.host.open_as(role, self.wasm, "test", config, self.needs, PluginLimits::default()).ok()
    }

    fn intercept(
        &self,
        made: &mut Batches<'_>,
        config: &str,
        number: u32,
    ) -> Result<Option<String>, Failure> {
        let Some(version) = self.open(Role::Interceptor, config) else { return Ok(None) };
        let batch = made.batch(&version.reads().headers)?;
        let alone = Alone::new(version.clone());
        let (processed, _) = alone.process(batch, None);
        if let Some(failed) = first_failure(&processed.quarantined) {
            return Ok(Some(failed));
        }
        // Long before the events, among them, and long after them.
        let now = [i64::MIN, 0, i64::MAX].get(number as usize % 3).copied();
        let reason = if version.tick_every().is_some() { alone.tick(now).err() } else { None };
        Ok(reason.map(|reason| format!("  the tick failed: {reason}")))
    }

    fn decode(&self, made: &mut Batches<'_>, config: &str) -> Option<String> {
        let version = self.open(Role::Decoder, config)?;
        (0..ROUNDS).find_map(|round| {
            let input = made.input();
            let decoded = version.decode(&input, round == 0);
            let bad = decoded.bad.into_iter().find(|bad| !bad.is_rejected)?;
            let bytes = shown(input.get(bad.bytes).unwrap_or_default());
            Some(format!("  reason: {}\n  bytes:  {bytes}", bad.reason))
        })
    }

    fn encode(&self, made: &mut Batches<'_>, config: &str) -> Result<Option<String>, Failure> {
        let Some(version) = self.open(Role::Encoder, config) else { return Ok(None) };
        for file in [None, Some(1)] {
            let batch = made.batch(&version.reads().headers)?;
            if let Some(failed) = first_failure(&version.encode(&batch, file).quarantined) {
                return Ok(Some(failed));
            }
        }
        let around = [version.begin(1), version.end(1)].into_iter().find_map(Result::err);
        Ok(around.map(|error| format!("  the beginning or the end of a file failed: {error}")))
    }

    /// Requests get random answers.
    fn deliver(&self, made: &mut Batches<'_>, config: &str) -> Result<Option<String>, Failure> {
        let answers = Mutex::new(made.answers());
        let outside = Outside::new(move |_| answers.lock().unwrap_or_else(PoisonError::into_inner).answer());
        let Ok(mut sink) = self.host.open_sink(self.wasm, "test", config, outside) else { return Ok(None) };
        for _ in 0..ROUNDS {
            if let Err(SinkFailure::Broke(reason)) = sink.recover() {
                return Ok(Some(format!("  asked for its cursor: {reason}")));
            }
            let batch = made.batch(&sink.reads().headers)?;
            if let Err(SinkFailure::Broke(reason)) = sink.deliver(&batch, b"cursor") {
                let bodies = first_body(&batch);
                return Ok(Some(format!("  reason: {reason}\n  body of the first event: {bodies}")));
            }
        }
        Ok(None)
    }
}

fn first_failure(quarantined: &[Quarantined]) -> Option<String> {
    let failed = quarantined.iter().find(|group| !group.rejected)?;
    let reason = failed.reasons.first().map(String::as_str).unwrap_or_default();
    Some(format!("  reason: {reason}\n  body:   {}", first_body(&failed.batch)))
}

fn first_body(batch: &Batch) -> String {
    if batch.is_empty() { "none".to_owned() } else { shown(batch.body().value(0)) }
}

fn shown(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    format!("\"{}\"", text.get(..text.len().min(500)).unwrap_or(&text))
}
