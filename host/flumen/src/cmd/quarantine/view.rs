//! `list` and `show`: read from the files, without a word to the agent.

use std::collections::BTreeMap;

use arrow_array::Array;
use flumen_event::Batch;
use flumen_journal::inspect::{InspectError, Inspector};
use flumen_pipeline::kept::filter::Filter;
use flumen_pipeline::kept::gone::Gone;
use flumen_pipeline::kept::{JOBS, Job, job_id, job_key};
use flumen_pipeline::{quarantine as q, replay};
use serde_json::{Value, json};

use super::Place;
use crate::Output;
use crate::agent::{JOURNAL_DIR, QUARANTINE_DIR};
use crate::cmd::{event_json, print_json};
use crate::exit::Failure;

/// What has left a quarantine.
struct Left {
    /// Events before this.
    cursor: u64,
    gone: Gone,
    /// Replays whose events are in the pipeline's journal, but not yet marked here: those before `until`.
    replayed: Vec<Job>,
}

impl Left {
    fn rows(&self, filter: &Filter, batch: &Batch, first: u64) -> Vec<u32> {
        let mut rows = filter.rows(batch, first);
        rows.retain(|row| !self.gone.contains(first + u64::from(*row)));
        for job in &self.replayed {
            let taken = job.rows(batch, first, &self.gone);
            rows.retain(|row| taken.binary_search(row).is_err());
        }
        rows
    }
}

fn left(kept: &Inspector, place: &Place, pipeline: &str) -> Result<Left, Failure> {
    let registers = kept.present()?;
    let channel = registers.channels.iter().find(|channel| channel.name == q::KEPT_CHANNEL);
    let cursor = channel.and_then(|channel| channel.readers.first()).map_or(0, |reader| reader.cursor);
    let positions = || registers.positions.iter().map(|(key, value)| (&**key, &**value));
    let jobs = positions().filter_map(|(key, value)| Some((job_id(JOBS, key)?, Job::decode(value)?)));
    let jobs: Vec<(u64, Job)> = jobs.collect();
    let mut replayed = Vec::new();
    if !jobs.is_empty() {
        let journal = place.inspector(pipeline, JOURNAL_DIR)?.present()?;
        for (id, job) in jobs {
            let done = journal.positions.get(job_key(replay::POSITIONS, id).as_slice());
            if let Some(until) = replay::replayed_to(done.map(|value| value.to_vec())) {
                replayed.push(Job { until, ..job });
            }
        }
    }
    Ok(Left { cursor, gone: Gone::read(positions()), replayed })
}

/// Calls `visit` with the events of each pipeline that are meant, batch by batch, until it says stop: the pipeline, the
/// number of the batch's first event, the batch, its rows.
fn each(
    place: &Place,
    filter: &Filter,
    mut visit: impl FnMut(&str, u64, &Batch, &[u32]) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    for name in &place.pipelines {
        let inspector = match place.inspector(name, QUARANTINE_DIR) {
            // It has not been started yet.
            Err(InspectError::NotAJournal(_)) => continue,
            other => other?,
        };
        let left = left(&inspector, place, name)?;
        let mut events = match inspector.events(q::KEPT_CHANNEL, left.cursor) {
            Ok(events) => events,
            Err(InspectError::NoChannel { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        while let Some(rows) = events.next().transpose()? {
            let meant = left.rows(filter, &rows.batch, rows.first);
            if !meant.is_empty() && !visit(name, rows.first, &rows.batch, &meant)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn header<'a>(batch: &'a Batch, name: &str, row: usize) -> &'a str {
    batch.header(name).filter(|values| values.is_valid(row)).map_or("", |values| values.value(row))
}

pub(super) fn list(place: &Place, filter: &Filter, output: Output) -> Result<(), Failure> {
    type Group = (String, String, String, String, String);
    let mut groups: BTreeMap<Group, u64> = BTreeMap::new();
    each(place, filter, |pipeline, _, batch, rows| {
        for row in rows {
            let of = |name: &str| header(batch, name, *row as usize).to_string();
            let group = (
                pipeline.to_string(),
                of(q::HEADER_BY),
                of(q::HEADER_KIND),
                of(q::HEADER_HASH),
                of(q::HEADER_REASON),
            );
            *groups.entry(group).or_default() += 1;
        }
        Ok(true)
    })?;
    let total: u64 = groups.values().sum();
    if output == Output::Json {
        let groups: Vec<Value> = groups
            .into_iter()
            .map(|((pipeline, by, kind, hash, reason), events)| {
                json!({ "pipeline": pipeline, "by": by, "kind": kind, "hash": hash, "reason": reason, "events": events })
            })
            .collect();
        return print_json(&json!({ "events": total, "groups": groups }));
    }
    for ((pipeline, by, kind, hash, reason), events) in &groups {
        let version = if hash.is_empty() { String::new() } else { format!(" {hash:.12}") };
        println!("{events:>8}  {pipeline}  {by}{version} {kind}: {}", reason.escape_debug());
    }
    println!("{}", crate::exit::counted(usize::try_from(total)?, "event"));
    Ok(())
}

pub(super) fn show(place: &Place, filter: &Filter, limit: u64, output: Output) -> Result<(), Failure> {
    let mut room = limit;
    each(place, filter, |pipeline, first, batch, rows| {
        for row in rows.iter().map(|row| *row as usize) {
            if room == 0 {
                eprintln!("there are more; raise --limit");
                return Ok(false);
            }
            room -= 1;
            print_event(pipeline, first + row as u64, batch, row, output)?;
        }
        Ok(true)
    })
}

fn print_event(
    pipeline: &str,
    number: u64,
    batch: &Batch,
    row: usize,
    output: Output,
) -> Result<(), Failure> {
    if output == Output::Json {
        let mut event = event_json(batch, row);
        if let Some(event) = event.as_object_mut() {
            event.insert("pipeline".into(), pipeline.into());
            event.insert("number".into(), number.into());
        }
        return print_json(&event);
    }
    let body = String::from_utf8_lossy(batch.body().value(row)).escape_debug().to_string();
    let (plugin, kind) = (header(batch, q::HEADER_BY, row), header(batch, q::HEADER_KIND, row));
    let reason = header(batch, q::HEADER_REASON, row).escape_debug();
    println!("#{number} {pipeline}: {plugin} {kind}: {reason}\n    {body}");
    Ok(())
}
