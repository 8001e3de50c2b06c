//! What all tests share.

pub mod destination;
pub mod disk;
pub mod plugins;
pub mod script;
pub mod world;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flumen_event::Batch;

/// No wait is longer; far over what a busy machine needs.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// An event, as a test looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub stream: u64,
    pub position: u64,
    pub body: String,
    pub headers: BTreeMap<String, String>,
}

impl Record {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }
}

pub fn records(batch: &Batch) -> Vec<Record> {
    use arrow_array::Array;
    let row = |row: usize| {
        let headers = batch.headers().iter().filter(|header| header.values.is_valid(row));
        Record {
            stream: batch.stream().value(row),
            position: batch.position().value(row),
            body: String::from_utf8(batch.body().value(row).to_vec()).unwrap(),
            headers: headers.map(|h| (h.name.to_string(), h.values.value(row).to_string())).collect(),
        }
    };
    (0..batch.rows()).map(row).collect()
}

/// The oracle: per stream exactly these positions, each once, in order.
pub fn assert_exactly(
    records: &[Record],
    streams: &[u64],
    total: u64,
    wanted: impl Fn(u64) -> bool,
    what: &str,
) {
    for stream in streams {
        let got: Vec<u64> = records.iter().filter(|r| r.stream == *stream).map(|r| r.position).collect();
        let want: Vec<u64> = (0..total).filter(|position| wanted(*position)).collect();
        if got != want {
            let first = got
                .iter()
                .zip(&want)
                .position(|(got, want)| got != want)
                .unwrap_or(got.len().min(want.len()));
            let around = &got[first.saturating_sub(3)..got.len().min(first + 5)];
            panic!(
                "{what}: stream {stream}: {} events, expected {}; the first difference is event {first}: {around:?} instead of {:?}",
                got.len(),
                want.len(),
                want.get(first)
            );
        }
    }
    let strange = records.iter().find(|record| !streams.contains(&record.stream));
    assert!(strange.is_none(), "{what}: {strange:?} is of no known stream");
    for record in records {
        assert_eq!(
            record.body,
            format!("{}/{}", record.stream, record.position),
            "{what}: a body of another event"
        );
    }
}

/// Polls until the condition holds.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Numbers that only depend on a seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0) % below.max(1)
    }
}

pub fn mix(number: u64) -> u64 {
    let a = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let b = (a ^ (a >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    b ^ (b >> 31)
}
