#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;

use flumen_event::{BatchBuilder, Difference};
use proptest::prelude::*;

use super::*;

/// A plugin that fails on some rows: by position.
#[derive(Default)]
struct Fake {
    guilty: BTreeSet<u64>,
    /// Fails once, whatever it gets.
    hiccups: u32,
    /// Fails if it is given more rows than this.
    rows_max: Option<usize>,
    instance_fails_after: Option<u32>,
    /// A call that fails takes this many times as long as it was given: the machine is busy.
    late: u32,
    calls: u32,
    fresh: u32,
}

impl Attempt for Fake {
    fn settle(&mut self, _: bool) {}

    fn attempt(&mut self, rows: &Batch, time: Duration, is_fresh: bool) -> Result<Applied, Failure> {
        self.calls += 1;
        self.fresh += u32::from(is_fresh);
        if self.instance_fails_after.is_some_and(|calls| self.calls > calls) {
            return Err(Failure::Instantiate("gone".into()));
        }
        if self.hiccups > 0 {
            self.hiccups -= 1;
            return Err(Failure::Trap("hiccup".into()));
        }
        if self.rows_max.is_some_and(|max| rows.rows() > max) {
            return Err(Failure::Trap("too many".into()));
        }
        match rows.position().values().iter().find(|position| self.guilty.contains(position)) {
            Some(position) => {
                std::thread::sleep(time * self.late);
                Err(Failure::Trap(format!("row {position}")))
            }
            None => Ok(Difference::default().apply(rows).unwrap()),
        }
    }
}

fn batch(rows: u64) -> Batch {
    let mut builder = BatchBuilder::default();
    (0..rows).for_each(|row| builder.push(1, row, 0, b"body"));
    builder.finish(Vec::new()).unwrap()
}

fn positions<'a>(batches: impl IntoIterator<Item = &'a Batch>) -> Vec<u64> {
    batches.into_iter().flat_map(|batch| batch.position().values().to_vec()).collect()
}

const LIMIT: Duration = Duration::from_secs(60);

proptest! {
    /// Every row comes out exactly once, in order, and as long as the budget lasts exactly the guilty ones are quarantined.
    #[test]
    fn no_row_is_lost_or_doubled(rows in 1_u64..600, guilty in prop::collection::btree_set(0_u64..600, 0..40), hiccups in 0_u32..2) {
        let guilty: BTreeSet<u64> = guilty.into_iter().filter(|row| *row < rows).collect();
        let mut plugin = Fake { guilty: guilty.clone(), hiccups, ..Fake::default() };
        let out = isolate(&mut plugin, &batch(rows), LIMIT);
        let kept = positions(&out.kept);
        let failed = positions(out.failed.iter().map(|(batch, _)| batch));
        prop_assert!(kept.is_sorted() && failed.is_sorted());
        let all: BTreeSet<u64> = kept.iter().chain(&failed).copied().collect();
        prop_assert_eq!(kept.len() + failed.len(), rows as usize);
        prop_assert_eq!(all.len(), rows as usize);
        prop_assert!(kept.iter().all(|row| !guilty.contains(row)));
        if guilty.len() <= limits::GUILTY_ROWS_MAX as usize {
            prop_assert_eq!(failed, guilty.into_iter().collect::<Vec<_>>());
        } else {
            prop_assert!(out.was_exhausted);
        }
        // At most 16 searches of log2(rows) halvings with both halves tried, and what is left at the end.
        prop_assert!(plugin.calls < 2 + 17 * 2 * 11, "{} calls", plugin.calls);
    }
}

/// Two calls of the whole, two for each of ten halvings, one to be sure.
#[test]
fn one_row_of_a_thousand_costs_23_calls() {
    let mut plugin = Fake { guilty: [321].into(), ..Fake::default() };
    let out = isolate(&mut plugin, &batch(1_000), LIMIT);
    assert_eq!(positions(out.failed.iter().map(|(batch, _)| batch)), [321]);
    assert_eq!((plugin.calls, plugin.fresh), (23, 2));
}

#[test]
fn a_hiccup_costs_one_retry() {
    let mut plugin = Fake { hiccups: 1, ..Fake::default() };
    let out = isolate(&mut plugin, &batch(100), LIMIT);
    assert_eq!((plugin.calls, plugin.fresh), (2, 1));
    assert!(out.failed.is_empty() && out.was_retried && !out.was_bisected);
}

#[test]
fn a_busy_machine_does_not_end_the_search() {
    let mut plugin = Fake { guilty: [5].into(), late: 10, ..Fake::default() };
    let out = isolate(&mut plugin, &batch(8), Duration::from_millis(2));
    assert_eq!(positions(out.failed.iter().map(|(batch, _)| batch)), [5]);
    assert!(!out.was_exhausted);
}

#[test]
fn a_batch_that_is_too_large_is_processed_in_parts() {
    let mut plugin = Fake { rows_max: Some(30), ..Fake::default() };
    let out = isolate(&mut plugin, &batch(100), LIMIT);
    assert!(out.failed.is_empty());
    assert_eq!(positions(&out.kept), (0..100).collect::<Vec<_>>());
}

#[test]
fn without_instances_the_rest_is_quarantined_at_once() {
    let mut plugin = Fake { instance_fails_after: Some(0), ..Fake::default() };
    let out = isolate(&mut plugin, &batch(100), LIMIT);
    assert_eq!(plugin.calls, 1);
    assert_eq!(positions(out.failed.iter().map(|(batch, _)| batch)), (0..100).collect::<Vec<_>>());
    assert!(out.failed[0].1.contains("no instance of the plugin could be made: gone"));

    let mut plugin = Fake { guilty: [0, 99].into(), instance_fails_after: Some(5), ..Fake::default() };
    let out = isolate(&mut plugin, &batch(100), LIMIT);
    assert_eq!(plugin.calls, 6);
    let mut rows = positions(out.failed.iter().map(|(batch, _)| batch));
    rows.extend(positions(&out.kept));
    rows.sort();
    assert_eq!(rows, (0..100).collect::<Vec<_>>());
}
