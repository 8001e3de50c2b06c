//! Which events of a quarantine are meant.

use arrow_array::{Array, StringArray};
use flumen_event::Batch;
use serde::{Deserialize, Serialize};

use crate::quarantine::{HEADER_BY, HEADER_HASH, HEADER_KIND, HEADER_REASON};

/// An event is meant if everything that is said here is true of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// The plugin or component that could not take it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The beginning of the plugin's content hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// `rejected` or `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// A part of the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Event time from here on, in nanoseconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<i64>,
    /// Event time before this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<i64>,
    /// Headers with these values.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    /// Numbers from the first to before the second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numbers: Option<(u64, u64)>,
}

impl Filter {
    /// The rows of a batch that are meant; `first` is the number of its first row.
    pub fn rows(&self, batch: &Batch, first: u64) -> Vec<u32> {
        let columns = [HEADER_BY, HEADER_KIND, HEADER_HASH, HEADER_REASON].map(|name| batch.header(name));
        let is = |wanted: &Option<String>, test: fn(&str, &str) -> bool, column, row| {
            wanted.as_deref().is_none_or(|wanted| test(value(column, row), wanted))
        };
        let has_labels = |row: usize| {
            let [by, kind, hash, reason] = columns;
            is(&self.by, |value, wanted| value == wanted, by, row)
                && is(&self.kind, |value, wanted| value == wanted, kind, row)
                && is(&self.hash, |value, wanted| value.starts_with(wanted), hash, row)
                && is(&self.reason, |value, wanted| value.contains(wanted), reason, row)
        };
        let headers: Vec<_> =
            self.headers.iter().map(|(name, wanted)| (batch.header(name), wanted)).collect();
        let time = batch.time();
        let is_in_time = |row: usize| {
            let time = time.value(row);
            self.since.is_none_or(|since| time >= since) && self.before.is_none_or(|before| time < before)
        };
        let has_headers = |row: usize| {
            headers.iter().all(|(column, wanted)| {
                column.is_some_and(|column| column.is_valid(row) && column.value(row) == wanted.as_str())
            })
        };
        let is_numbered = |row: usize| {
            let number = first + row as u64;
            self.numbers.is_none_or(|(from, to)| from <= number && number < to)
        };
        let is_meant =
            |row: &usize| is_numbered(*row) && is_in_time(*row) && has_labels(*row) && has_headers(*row);
        (0..batch.rows()).filter(is_meant).map(|row| row as u32).collect()
    }
}

fn value(column: Option<&StringArray>, row: usize) -> &str {
    column.filter(|column| column.is_valid(row)).map_or("", |column| column.value(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interceptor::Quarantined;
    use crate::quarantine;
    use flumen_event::BatchBuilder;

    fn batch() -> Batch {
        let mut builder = BatchBuilder::default();
        (0..6).for_each(|row| builder.push(1, row, row as i64 * 10, b"x"));
        let batch = builder.finish(vec![]).unwrap();
        let hosts = StringArray::from(vec![Some("a"), Some("b"), None, Some("a"), Some("a"), None]);
        let batch = batch.with_header("host", hosts).unwrap();
        let reasons = (0..6).map(|row| format!("bad number {row}")).collect();
        quarantine::labelled(Quarantined {
            batch,
            reasons,
            by: "parse".into(),
            hash: "abcdef".into(),
            rejected: true,
        })
        .unwrap()
    }

    #[test]
    fn everything_that_is_said_has_to_be_true() {
        let text = |text: &str| Some(text.to_owned());
        let check = |filter: Filter, rows: &[u32]| assert_eq!(filter.rows(&batch(), 100), rows, "{filter:?}");
        check(Filter::default(), &[0, 1, 2, 3, 4, 5]);
        check(Filter { by: text("parse"), kind: text("rejected"), ..Filter::default() }, &[0, 1, 2, 3, 4, 5]);
        check(Filter { by: text("pars"), ..Filter::default() }, &[]);
        check(Filter { kind: text("failed"), ..Filter::default() }, &[]);
        check(Filter { hash: text("abc"), reason: text("number 3"), ..Filter::default() }, &[3]);
        check(Filter { since: Some(10), before: Some(40), ..Filter::default() }, &[1, 2, 3]);
        check(Filter { headers: vec![("host".into(), "a".into())], ..Filter::default() }, &[0, 3, 4]);
        check(Filter { headers: vec![("host".into(), String::new())], ..Filter::default() }, &[]);
        check(Filter { headers: vec![("none".into(), "a".into())], ..Filter::default() }, &[]);
        check(Filter { numbers: Some((102, 104)), since: Some(30), ..Filter::default() }, &[3]);
    }
}
