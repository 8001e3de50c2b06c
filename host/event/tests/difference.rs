//! Batches and differences against a row-wise model: a vector of events, changed one by one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use arrow_array::{Array, BinaryArray, Int64Array, StringArray, UInt32Array, UInt64Array};
use flumen_event::{Applied, ApplyError, Batch, BatchError, Difference, HeaderColumn, Rejection, limits};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;

const NAMES: [&str; 4] = ["host", "level", "né", "x"];

#[derive(Debug, Clone, PartialEq)]
struct Event {
    time: i64,
    body: Vec<u8>,
    stream: u64,
    position: u64,
    headers: BTreeMap<String, String>,
}

type Values = Vec<Option<String>>;

/// A batch as arrow has it after some life: columns with and without nulls, cut out of a longer one.
fn batches() -> impl Strategy<Value = Batch> {
    let value = || option::weighted(0.7, "[a-zé]{0,5}");
    let row =
        (any::<i64>(), vec(any::<u8>(), 0..12), 0u64..3, any::<u64>(), [value(), value(), value(), value()]);
    let used = [any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()];
    (vec(row, 0..24), used, 0usize..8, 0usize..24).prop_map(|(rows, used, first, length)| {
        let column = |index: usize| rows.iter().map(|row| row.4[index].clone()).collect::<StringArray>();
        let headers = (0..NAMES.len()).filter(|index| used[*index]);
        Batch::new(
            Int64Array::from_iter_values(rows.iter().map(|row| row.0)),
            BinaryArray::from_iter_values(rows.iter().map(|row| &row.1)),
            headers.map(|index| HeaderColumn { name: NAMES[index].into(), values: column(index) }).collect(),
            UInt64Array::from_iter_values(rows.iter().map(|row| row.2)),
            UInt64Array::from_iter_values(rows.iter().map(|row| row.3)),
        )
        .unwrap()
        .slice(first, length)
    })
}

fn events(batch: &Batch) -> Vec<Event> {
    let header = |header: &HeaderColumn, row: usize| {
        header.values.is_valid(row).then(|| (header.name.to_string(), header.values.value(row).to_string()))
    };
    let row = |row: usize| {
        let identity = batch.identity(row).unwrap();
        Event {
            time: batch.time().value(row),
            body: batch.body().value(row).to_vec(),
            stream: identity.stream,
            position: identity.position,
            headers: batch.headers().iter().filter_map(|column| header(column, row)).collect(),
        }
    };
    (0..batch.rows()).map(row).collect()
}

/// A difference as plain values. Columns are longer than any output and are cut to it.
#[derive(Debug, Clone)]
struct Plan {
    rows_from: Option<Vec<u32>>,
    rejected: Vec<u32>,
    body: Option<Vec<Vec<u8>>>,
    time: Option<Vec<i64>>,
    set: Vec<(String, Values)>,
    remove: Vec<String>,
}

const COLUMN: usize = 64;

fn plans() -> impl Strategy<Value = (Vec<Index>, Option<Vec<Index>>, Plan)> {
    let name =
        || prop::sample::select(vec!["host", "level", "né", "x", "new", "newer"]).prop_map(String::from);
    let set = prop::collection::btree_map(name(), vec(option::weighted(0.7, "[a-zé]{0,5}"), COLUMN), 0..4);
    let plan = (
        option::of(vec(vec(any::<u8>(), 0..8), COLUMN)),
        option::of(vec(any::<i64>(), COLUMN)),
        set,
        vec(name(), 0..3),
    )
        .prop_map(|(body, time, set, remove)| Plan {
            rows_from: None,
            rejected: Vec::new(),
            body,
            time,
            set: set.into_iter().collect(),
            remove,
        });
    (vec(any::<Index>(), 0..6), option::of(vec(any::<Index>(), 0..COLUMN)), plan)
}

/// Row numbers that this input has: rejections without repeats, and kept rows that are not rejected, moved and
/// repeated at will.
fn honest((rejections, from, mut plan): (Vec<Index>, Option<Vec<Index>>, Plan), rows: usize) -> Plan {
    if rows > 0 {
        let mut seen = BTreeSet::new();
        let rejections = rejections.iter().map(|index| index.index(rows) as u32);
        plan.rejected = rejections.filter(|row| seen.insert(*row)).collect();
    }
    let left: Vec<u32> = (0..rows as u32).filter(|row| !plan.rejected.contains(row)).collect();
    plan.rows_from = from.map(|from| match left.is_empty() {
        true => Vec::new(),
        false => from.iter().map(|index| left[index.index(left.len())]).collect(),
    });
    plan
}

impl Plan {
    fn outputs(&self, rows: usize) -> usize {
        self.rows_from.as_ref().map_or(rows - self.rejected.len(), Vec::len)
    }

    fn difference(&self, outputs: usize) -> Difference {
        let set = |(name, values): &(String, Values)| HeaderColumn {
            name: name.as_str().into(),
            values: values.iter().take(outputs).cloned().collect(),
        };
        Difference {
            rows_from: self.rows_from.clone().map(UInt32Array::from),
            body: self.body.as_ref().map(|body| BinaryArray::from_iter_values(body.iter().take(outputs))),
            time: self
                .time
                .as_ref()
                .map(|time| Int64Array::from_iter_values(time.iter().take(outputs).copied())),
            set_headers: self.set.iter().map(set).collect(),
            remove_headers: self.remove.iter().map(|name| name.as_str().into()).collect(),
            rejected: self
                .rejected
                .iter()
                .map(|&row| Rejection { row, reason: format!("row {row}") })
                .collect(),
        }
    }

    /// The naive answer: kept, rejected, dropped.
    fn model(&self, input: &[Event]) -> (Vec<Event>, Vec<Event>, usize) {
        let all = || (0..input.len() as u32).filter(|row| !self.rejected.contains(row)).collect();
        let from: Vec<u32> = self.rows_from.clone().unwrap_or_else(all);
        let mut kept = Vec::new();
        for (output, row) in from.iter().enumerate() {
            let mut event = input[*row as usize].clone();
            if let Some(body) = &self.body {
                event.body = body[output].clone();
            }
            if let Some(time) = &self.time {
                event.time = time[output];
            }
            event.headers.retain(|name, _| !self.remove.contains(name));
            for (name, values) in &self.set {
                event.headers.remove(name);
                event.headers.extend(values[output].clone().map(|value| (name.clone(), value)));
            }
            kept.push(event);
        }
        let rejected = self.rejected.iter().map(|row| input[*row as usize].clone()).collect();
        let named: BTreeSet<u32> = from.iter().chain(&self.rejected).copied().collect();
        (kept, rejected, input.len() - named.len())
    }
}

fn assert_model(plan: &Plan, input: &Batch, applied: Applied) {
    let (kept, rejected, dropped) = plan.model(&events(input));
    assert_eq!(events(&applied.kept), kept);
    assert_eq!(events(&applied.rejected), rejected);
    assert_eq!(applied.reasons, plan.rejected.iter().map(|row| format!("row {row}")).collect::<Vec<_>>());
    assert_eq!(applied.dropped, dropped);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn honest_differences_are_the_model(input in batches(), plan in plans()) {
        let plan = honest(plan, input.rows());
        let before = events(&input);
        let applied = plan.difference(plan.outputs(input.rows())).apply(&input).unwrap();
        assert_model(&plan, &input, applied);
        prop_assert_eq!(events(&input), before);
    }

    /// One lie: an error, and which.
    #[test]
    fn a_lie_is_an_error(input in batches(), plan in plans(), lie in 0usize..9, at in any::<Index>(), far in any::<u32>()) {
        let rows = input.rows();
        let plan = honest(plan, rows);
        let outputs = plan.outputs(rows);
        let mut difference = plan.difference(outputs);
        let past = (rows as u32).saturating_add(far % 5 * (far / 5));
        let wrong = if at.index(2) == 0 || outputs == 0 { outputs + 1 } else { outputs - 1 };
        let reason = String::new;
        match lie {
            0 => {
                let mut from: Vec<u32> = plan.rows_from.clone().unwrap_or_default();
                from.insert(at.index(from.len() + 1), past);
                difference.rows_from = Some(from.into());
            }
            1 => difference.rejected.push(Rejection { row: past, reason: reason() }),
            2 => {
                let Some(first) = difference.rejected.first().cloned() else { return Ok(()) };
                difference.rejected.push(first);
            }
            3 => {
                let Some(rejected) = plan.rejected.first() else { return Ok(()) };
                let mut from: Vec<u32> = plan.rows_from.clone().unwrap_or_default();
                from.insert(at.index(from.len() + 1), *rejected);
                difference.rows_from = Some(from.into());
            }
            4 => difference.body = Some(BinaryArray::from_iter_values(vec![b"b"; wrong])),
            5 => difference.time = Some(Int64Array::from(vec![1; wrong])),
            6 => {
                let values = StringArray::from(vec!["v"; wrong]);
                difference.set_headers.push(HeaderColumn { name: "another".into(), values });
            }
            7 => {
                let values = StringArray::from(vec!["v"; outputs]);
                let name: String = ["", &"n".repeat(limits::HEADER_NAME_BYTES_MAX + 1)][at.index(2)].into();
                difference.set_headers.push(HeaderColumn { name: name.into(), values });
            }
            _ => {
                let values = StringArray::from(vec!["v"; outputs]);
                difference.set_headers.push(HeaderColumn { name: "twice".into(), values: values.clone() });
                difference.set_headers.push(HeaderColumn { name: "twice".into(), values });
            }
        }
        let error = difference.apply(&input).expect_err("a lie");
        let fits = match lie {
            0 | 1 => matches!(error, ApplyError::RowOutOfRange { .. }),
            2 => matches!(error, ApplyError::RowTwice(_)),
            // The columns were made for another number of rows; which is found first is no matter.
            3 => matches!(error, ApplyError::RowTwice(_)),
            4..=6 => matches!(error, ApplyError::Column(BatchError::Rows { .. })),
            7 => matches!(error, ApplyError::Column(BatchError::HeaderName(_))),
            _ => matches!(error, ApplyError::Column(BatchError::HeaderTwice(_))),
        };
        prop_assert!(fits, "{error:?} for lie {lie}");
    }

    /// Anything at all: the model's result or an error, never a panic.
    #[test]
    fn noise_is_the_model_or_an_error(
        input in batches(),
        plan in plans(),
        from in option::of(vec(0u32..26, 0..30)),
        rejected in vec(0u32..26, 0..6),
        nulls in any::<bool>(),
        outputs in 0usize..40,
    ) {
        let plan = Plan { rows_from: from, rejected, ..plan.2 };
        let mut difference = plan.difference(outputs);
        if nulls && let Some(from) = &plan.rows_from {
            let with_nulls = from.iter().map(|&row| (row % 3 > 0).then_some(row));
            difference.rows_from = Some(with_nulls.collect());
        }
        let has_nulls = difference.rows_from.as_ref().is_some_and(|from| from.null_count() > 0);
        if let Ok(applied) = difference.apply(&input) {
            prop_assert!(!has_nulls);
            assert_model(&plan, &input, applied);
        }
    }

    #[test]
    fn take_concat_and_slice_are_the_model(
        parts in vec(batches(), 0..4),
        rows in vec(any::<Index>(), 0..30),
        (first, length) in (0usize..40, 0usize..40),
        far in 0u32..5,
    ) {
        let whole = Batch::concat(&parts).unwrap();
        let mut model: Vec<Event> = parts.iter().flat_map(events).collect();
        prop_assert_eq!(events(&whole), model.clone());
        prop_assert_eq!(whole.rows(), model.len());
        prop_assert_eq!(whole.body_bytes(), model.iter().map(|event| event.body.len()).sum::<usize>());

        let slice = whole.slice(first, length);
        let cut: Vec<Event> = model.iter().skip(first).take(length).cloned().collect();
        prop_assert_eq!(events(&slice), cut);
        prop_assert_eq!(whole.slice(first, usize::MAX).rows(), model.len().saturating_sub(first));
        prop_assert!(slice.bytes() <= whole.bytes());

        if !model.is_empty() {
            let rows: Vec<u32> = rows.iter().map(|index| index.index(model.len()) as u32).collect();
            let taken = whole.take(&rows.clone().into()).unwrap();
            let wanted: Vec<Event> = rows.iter().map(|row| model[*row as usize].clone()).collect();
            prop_assert_eq!(events(&taken), wanted);
            let past: UInt32Array = rows.into_iter().chain([model.len() as u32 + far]).collect();
            prop_assert!(whole.take(&past).is_err());
        }

        let values: StringArray = model.iter().map(|event| (event.position % 2 == 0).then_some("even")).collect();
        let changed = whole.with_header("level", values).unwrap().without_header("host");
        for event in &mut model {
            event.headers.retain(|name, _| name != "level" && name != "host");
            if event.position % 2 == 0 {
                event.headers.insert("level".into(), "even".into());
            }
        }
        prop_assert_eq!(events(&changed), model);
    }
}

fn large(rows: usize, bytes: usize) -> Batch {
    Batch::new(
        Int64Array::from(vec![0; rows]),
        BinaryArray::from_iter_values(vec![vec![b'x'; bytes]; rows]),
        Vec::new(),
        UInt64Array::from(vec![1; rows]),
        UInt64Array::from_iter_values(0..rows as u64),
    )
    .unwrap()
}

/// A short answer that asks for a terabyte is refused before anything is allocated: no machine has it.
#[test]
fn repeated_rows_are_counted_before_they_are_copied() {
    let input = large(1, 32 << 20);
    let rows = UInt32Array::from(vec![0; limits::ROWS_MAX]);
    let difference = Difference { rows_from: Some(rows), ..Difference::default() };
    assert!(matches!(difference.apply(&input), Err(ApplyError::Column(BatchError::Limit { .. }))));
    let more = UInt32Array::from(vec![0; limits::ROWS_MAX + 1]);
    assert!(matches!(large(1, 0).take(&more), Err(BatchError::Limit { .. })));
}

#[test]
fn limits_of_lists_and_of_concat() {
    let remove_headers = (0..=limits::HEADERS_MAX).map(|n| n.to_string().into()).collect();
    let difference = Difference { remove_headers, ..Difference::default() };
    assert!(matches!(difference.apply(&large(1, 1)), Err(ApplyError::Column(BatchError::Limit { .. }))));
    let half = large(1, limits::BYTES_MAX / 2);
    assert!(matches!(Batch::concat(&[half.clone(), half.clone()]), Err(BatchError::Limit { .. })));
    let many = large(limits::ROWS_MAX, 0);
    assert!(matches!(Batch::concat(&[many.clone(), many.slice(0, 1)]), Err(BatchError::Limit { .. })));
}
