//! Batches and answers for native unit tests (`cargo test`). Whole plugins are tested in the real sandbox by
//! `flumen plugin test DIR`.

use crate::abi::{self, NumberList, Reads, wire};
use crate::batch::{BatchView, Column, HeaderColumn};
use crate::difference::{ColumnBuilder, Difference};

/// One event of a test.
#[derive(Clone, Debug, Default)]
pub struct TestEvent {
    /// The body.
    pub body: Vec<u8>,
    /// Nanoseconds since the Unix epoch, UTC.
    pub time: i64,
    /// Names and values.
    pub headers: Vec<(String, String)>,
}

/// A batch as the host would pass it to a plugin with these `reads`.
pub fn batch(reads: &Reads, events: &[TestEvent]) -> BatchView {
    let column = |values: &mut dyn Iterator<Item = &[u8]>| {
        let mut column = ColumnBuilder::with_capacity(events.len(), 0);
        values.for_each(|value| column.push(value));
        let mut difference = Difference::unchanged();
        difference.set_body(column);
        difference.into_wire().body
    };
    let header = |name: &String| {
        let values: Vec<Option<&str>> = events
            .iter()
            .map(|event| event.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()))
            .collect();
        let mut builder = crate::difference::HeaderBuilder::with_capacity(name.clone(), values.len(), 0);
        values.iter().for_each(|value| builder.push_option(*value));
        let mut difference = Difference::unchanged();
        difference.set_header(builder);
        difference.into_wire().set_headers.pop()
    };
    BatchView::new(wire::Batch {
        rows: events.len() as u32,
        body: if reads.body { column(&mut events.iter().map(|event| event.body.as_slice())) } else { None },
        time: reads
            .time
            .then(|| events.iter().map(|event| event.time).collect::<NumberList<i64>>().into_wire()),
        headers: reads.headers.iter().filter_map(header).collect(),
        identity: reads.identity.then(|| {
            let stream = events.iter().map(|_| 1_u64).collect::<NumberList<u64>>();
            let position = (0..events.len() as u64).collect::<NumberList<u64>>();
            abi::identity_columns(stream, position)
        }),
    })
}

/// A batch of these bodies and nothing else.
pub fn bodies<B: AsRef<[u8]>>(bodies: &[B]) -> BatchView {
    let events: Vec<TestEvent> = bodies
        .iter()
        .map(|body| TestEvent { body: body.as_ref().to_vec(), ..TestEvent::default() })
        .collect();
    batch(&Reads::body(), &events)
}

/// An answer, readable.
pub struct Answer {
    wire: wire::Difference,
    input_rows: usize,
}

impl Answer {
    /// The answer to a batch of `input_rows` rows.
    pub fn new(difference: Difference, input_rows: usize) -> Self {
        Self { wire: difference.into_wire(), input_rows }
    }

    /// Which input row each output row came from.
    pub fn rows(&self) -> Vec<usize> {
        match &self.wire.rows_from {
            Some(rows) => abi::rows_of(rows).iter().map(|row| row as usize).collect(),
            None => {
                let rejected: Vec<usize> = self.rejected().map(|(row, _)| row).collect();
                (0..self.input_rows).filter(|row| !rejected.contains(row)).collect()
            }
        }
    }

    /// Whether rows and columns are all as they were.
    pub fn is_unchanged(&self) -> bool {
        let wire::Difference { rows_from, body, time, set_headers, remove_headers, rejected } = &self.wire;
        rows_from.is_none()
            && body.is_none()
            && time.is_none()
            && set_headers.is_empty()
            && remove_headers.is_empty()
            && rejected.is_empty()
    }

    /// The new body of an output row. `None`: bodies are unchanged.
    pub fn body(&self, row: usize) -> Option<&[u8]> {
        let column = self.wire.body.as_ref()?;
        Some(Column::new(abi::offsets_of(column), &column.data).get(row))
    }

    /// The new time of an output row. `None`: times are unchanged.
    pub fn time(&self, row: usize) -> Option<i64> {
        self.wire.time.as_deref().and_then(|times| abi::times_of(times).get(row))
    }

    /// What an output row has in a header that is set.
    pub fn header(&self, name: &str, row: usize) -> Option<&str> {
        let column = self.wire.set_headers.iter().find(|column| column.name == name)?;
        HeaderColumn::of(column).get_str(row)
    }

    /// The names of the headers that are set.
    pub fn headers(&self) -> Vec<&str> {
        self.wire.set_headers.iter().map(|column| column.name.as_str()).collect()
    }

    /// The names of the headers that are removed.
    pub fn removed(&self) -> &[String] {
        &self.wire.remove_headers
    }

    /// Rejected input rows and their reasons.
    pub fn rejected(&self) -> impl Iterator<Item = (usize, &str)> {
        self.wire.rejected.iter().map(|rejection| (rejection.row as usize, rejection.reason.as_str()))
    }
}
