//! Durations of many operations, and the middle of several runs.

use std::time::Duration;

/// One run.
#[derive(Debug, Default, Clone)]
pub struct Series {
    latencies: Vec<Duration>,
    bytes: usize,
    /// From the first to the last.
    pub took: Duration,
}

impl Series {
    pub fn add(&mut self, latency: Duration, bytes: usize) {
        self.latencies.push(latency);
        self.bytes += bytes;
    }

    pub fn is_empty(&self) -> bool {
        self.latencies.is_empty()
    }

    pub fn len(&self) -> usize {
        self.latencies.len()
    }

    pub fn append(&mut self, other: Series) {
        self.latencies.extend(other.latencies);
        self.bytes += other.bytes;
        self.took = self.took.max(other.took);
    }

    pub fn mb_s(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.took.as_secs_f64()
    }

    pub fn per_s(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    /// In milliseconds; `share` from 0 to 1.
    pub fn percentile_ms(&self, share: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort();
        let last = sorted.len().saturating_sub(1);
        let at = (last as f64 * share).round() as usize;
        sorted.get(at).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    }
}

/// The middle; `NaN` of none.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
