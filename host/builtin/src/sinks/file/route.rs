//! Which bucket each row of a batch belongs to.
//!
//! Rows that follow each other mostly share their bucket, so a row is compared with the row before it
//! (time within the span of the last one, header values equal) and only a change is looked up. A batch
//! of one bucket is one run; without placeholders no row is looked at.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow_array::{Array, StringArray};
use flumen_event::Batch;

use super::template::Template;
use crate::sinks::limits::PATHS_CACHED_MAX;

/// A path without its running number: all events that render to it, in order, in one file after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bucket {
    /// The rendered path.
    pub path: Arc<str>,
    /// Where in it the number is inserted.
    pub split: u32,
    /// The part of its directory in which no header takes part ([`Template::fixed_directory`]).
    pub fixed: Option<Arc<str>>,
}

/// Rows of one bucket that follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    bucket: usize,
    first: usize,
    /// The rows.
    pub rows: Range<usize>,
}

/// Finds buckets, and remembers them.
pub(super) struct Router {
    template: Template,
    /// From time span and header values as they are, to an index in `buckets`.
    by_values: HashMap<Box<[u8]>, usize>,
    /// Different values may render to the same path.
    by_path: HashMap<Arc<str>, usize>,
    buckets: Vec<Bucket>,
    key: Vec<u8>,
    runs: Vec<Run>,
}

impl Router {
    pub fn new(template: Template) -> Self {
        let (by_values, by_path) = (HashMap::new(), HashMap::new());
        Router { template, by_values, by_path, buckets: Vec::new(), key: Vec::new(), runs: Vec::new() }
    }

    /// The buckets of a batch, each with its rows in order.
    pub fn route(&mut self, batch: &Batch) -> Vec<(Bucket, &[Run])> {
        if self.by_values.len() > PATHS_CACHED_MAX {
            self.by_values.clear();
            self.by_path.clear();
            self.buckets.clear();
        }
        self.runs.clear();
        self.find_runs(batch);
        if self.runs.len() > 1 {
            self.runs.sort_unstable_by_key(|run| (run.bucket, run.first));
        }
        let buckets = &self.buckets;
        self.runs
            .chunk_by(|a, b| a.bucket == b.bucket)
            .filter_map(|runs| Some((buckets.get(runs.first()?.bucket)?.clone(), runs)))
            .collect()
    }

    fn find_runs(&mut self, batch: &Batch) {
        let columns: Vec<Option<&StringArray>> =
            self.template.headers().iter().map(|header| batch.header(&header.name)).collect();
        let (mut from, mut to) = (0, 0);
        let mut current: Option<(usize, usize)> = None;
        for (row, time) in batch.time().values().iter().enumerate() {
            let same =
                from <= *time && *time < to && columns.iter().flatten().all(|column| same_value(column, row));
            if same && current.is_some() {
                continue;
            }
            let bucket = self.bucket(*time, &columns, row);
            (from, to) = self.template.same_time(*time);
            match current {
                Some((same, _)) if same == bucket => continue,
                Some((other, first)) => self.runs.push(Run { bucket: other, first, rows: first..row }),
                None => {}
            }
            current = Some((bucket, row));
            if columns.iter().flatten().next().is_none() && (from, to) == (i64::MIN, i64::MAX) {
                break;
            }
        }
        if let Some((bucket, first)) = current {
            self.runs.push(Run { bucket, first, rows: first..batch.rows() });
        }
    }

    fn bucket(&mut self, time: i64, columns: &[Option<&StringArray>], row: usize) -> usize {
        let values = columns.iter().map(|column| column.filter(|c| c.is_valid(row)).map(|c| c.value(row)));
        self.key.clear();
        self.key.extend_from_slice(&self.template.same_time(time).0.to_le_bytes());
        for value in values.clone() {
            let value = value.unwrap_or_default();
            self.key.extend_from_slice(&(value.len() as u32).to_le_bytes());
            self.key.extend_from_slice(value.as_bytes());
        }
        if let Some(bucket) = self.by_values.get(self.key.as_slice()) {
            return *bucket;
        }
        let values: Vec<Option<&str>> = values.collect();
        let (path, split) = self.template.render(time, &values);
        let path: Arc<str> = path.into();
        let bucket = *self.by_path.entry(path.clone()).or_insert_with(|| {
            let fixed = self.template.fixed_directory(time).map(Arc::from);
            self.buckets.push(Bucket { path, split: split as u32, fixed });
            self.buckets.len() - 1
        });
        self.by_values.insert(self.key.as_slice().into(), bucket);
        bucket
    }
}

/// True if a row has the value of the row before it.
fn same_value(column: &StringArray, row: usize) -> bool {
    match row.checked_sub(1) {
        Some(before) if column.is_valid(row) && column.is_valid(before) => {
            column.value(row) == column.value(before)
        }
        Some(before) => column.is_valid(row) == column.is_valid(before),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "runs are ranges")]

    use super::*;
    use flumen_event::{BatchBuilder, HeaderColumn};
    use jiff::tz::TimeZone;

    fn routed(template: &str, rows: &[(i64, Option<&str>)]) -> Vec<(String, Vec<Range<usize>>)> {
        let mut builder = BatchBuilder::default();
        for (row, (time, _)) in rows.iter().enumerate() {
            builder.push(0, row as u64, time * 1_000_000_000, b"x");
        }
        let hosts = rows.iter().map(|(_, host)| *host).collect();
        let batch = builder.finish(vec![HeaderColumn { name: "host".into(), values: hosts }]).unwrap();
        let mut router = Router::new(Template::parse(template, "", TimeZone::UTC).unwrap());
        let twice = [router.route(&batch).len(), router.route(&batch).len()];
        assert_eq!(twice[0], twice[1], "the cache changes nothing");
        let routing = router.route(&batch);
        routing
            .into_iter()
            .map(|(b, runs)| (b.path.to_string(), runs.iter().map(|r| r.rows.clone()).collect()))
            .collect()
    }

    #[test]
    fn without_placeholders_a_batch_is_one_run() {
        assert_eq!(routed("/a.log", &[(0, None), (9_999_999, Some("x"))]), [("/a.log".into(), vec![0..2])]);
        assert_eq!(routed("/a.log", &[]), []);
    }

    #[test]
    fn rows_of_a_bucket_keep_their_order() {
        let rows = [(0, Some("a")), (1, Some("b")), (2, Some("a")), (3, Some("a")), (4, None), (5, Some(""))];
        assert_eq!(
            routed("/{header.host}", &rows),
            [("/a".into(), vec![0..1, 2..4]), ("/b".into(), vec![1..2]), ("/unknown".into(), vec![4..6])]
        );
    }

    #[test]
    fn times_and_different_values_of_one_path() {
        let rows = [(0, Some("a/b")), (3_599, Some("a_b")), (3_600, Some("a_b")), (3_599, Some("a/b"))];
        assert_eq!(
            routed("/{header.host}-{time:%H}", &rows),
            [("/a_b-00".into(), vec![0..2, 3..4]), ("/a_b-01".into(), vec![2..3])]
        );
    }

    #[test]
    fn a_header_that_no_event_has() {
        assert_eq!(routed("/{header.nothing:-x}", &[(0, None), (1, None)]), [("/x".into(), vec![0..2])]);
    }
}
