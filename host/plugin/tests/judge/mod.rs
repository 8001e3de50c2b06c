//! What has to be true of whatever a plugin did to a batch.

use std::collections::BTreeSet;

use arrow_array::Array;
use flumen_event::Batch;
use flumen_pipeline::Processed;

/// Says what is wrong: a batch that breaks its own rules, or a row that is lost, or kept and quarantined.
pub fn judge(input: &Batch, processed: &Processed) -> Result<(), String> {
    valid(&processed.kept)?;
    let of = |batch: &Batch| batch.position().values().iter().copied().collect::<BTreeSet<u64>>();
    let (all, kept) = (of(input), of(&processed.kept));
    let mut out = BTreeSet::new();
    for group in &processed.quarantined {
        valid(&group.batch)?;
        if group.batch.rows() != group.reasons.len() {
            return Err(format!("{} reasons for {} rows", group.reasons.len(), group.batch.rows()));
        }
        for position in group.batch.position().values() {
            if !out.insert(*position) {
                return Err(format!("row {position} is in quarantine twice"));
            }
        }
        if let Some(reason) = group.reasons.iter().find(|reason| !is_printable(reason)) {
            return Err(format!("the reason {reason:?} has control characters"));
        }
    }
    if let Some(both) = kept.intersection(&out).next() {
        return Err(format!("row {both} is kept and in quarantine"));
    }
    let known: BTreeSet<u64> = kept.union(&out).copied().collect();
    if !known.is_subset(&all) {
        return Err("there are rows that the batch did not have".to_owned());
    }
    let missing = (all.len() - known.len()) as u64;
    match missing == processed.dropped {
        true => Ok(()),
        false => Err(format!("{missing} rows are missing, {} are said to be dropped", processed.dropped)),
    }
}

pub fn is_printable(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

/// Everything that arrow does not check again when values are read.
fn valid(batch: &Batch) -> Result<(), String> {
    let rows = batch.rows();
    let lengths = [batch.time().len(), batch.stream().len(), batch.position().len(), batch.body().len()];
    if lengths != [rows; 4]
        || rows > flumen_event::limits::ROWS_MAX
        || batch.bytes() > flumen_event::limits::BYTES_MAX
    {
        return Err(format!("{rows} rows, {} bytes, columns of {lengths:?}", batch.bytes()));
    }
    let is_right = |offsets: &[i32], bytes: usize| {
        offsets.len() == rows + 1
            && offsets.first().is_some_and(|first| *first >= 0)
            && offsets.is_sorted()
            && offsets.last().is_some_and(|last| *last as usize <= bytes)
    };
    if !is_right(batch.body().value_offsets(), batch.body().values().len()) {
        return Err("the body's offsets are wrong".to_owned());
    }
    for header in batch.headers() {
        let values = &header.values;
        let is_text = |row: usize| std::str::from_utf8(values.value(row).as_bytes()).is_ok();
        if !is_right(values.value_offsets(), values.values().len()) || !(0..rows).all(is_text) {
            return Err(format!("the header {:?} is wrong", header.name));
        }
    }
    Ok(())
}
