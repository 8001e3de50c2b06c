//! A source that can be read again: event `n` of a stream is always the same, and so are its batches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow_array::StringArray;
use flumen_event::{Batch, BatchBuilder, HeaderColumn};
use flumen_pipeline::feed::MakeSource;
use flumen_pipeline::{BuildError, Emission, Source, SourceContext, SourceError};
use parking_lot::Mutex;

use super::{Dice, mix};

#[derive(Clone)]
pub struct Script {
    pub stream: u64,
    pub total: u64,
    pub rows_max: u64,
    /// Events handed over, counted again after every restart.
    pub emitted: Arc<AtomicU64>,
    /// Chances in a thousand: an error or a panic at each step.
    pub faults: u64,
    pub dice: Arc<Mutex<Dice>>,
    /// Stays after the last event until the pipeline stops.
    pub stays: bool,
    /// No batch begins here or later until it is raised.
    pub gate: Arc<AtomicU64>,
}

impl Script {
    pub fn new(stream: u64, total: u64, rows_max: u64) -> Script {
        Script {
            stream,
            total,
            rows_max,
            emitted: Arc::default(),
            faults: 0,
            dice: Arc::new(Mutex::new(Dice(stream))),
            stays: false,
            gate: Arc::new(AtomicU64::new(u64::MAX)),
        }
    }

    pub fn make(&self) -> MakeSource {
        let script = self.clone();
        let mut first = true;
        Box::new(move || {
            // The first one must work: it is made by the pipeline's start.
            if !std::mem::take(&mut first) {
                match script.fault(8) {
                    Fault::None => {}
                    Fault::Error => return Err(BuildError::new("", "not now", "wait")),
                    Fault::Panic => panic!("a fault of the test while a source is made"),
                }
            }
            Ok(Box::new(script.clone()))
        })
    }

    /// Rows of the batch that begins here.
    pub fn rows_at(&self, at: u64) -> u64 {
        (1 + mix(self.stream << 32 | at) % self.rows_max).min(self.total - at)
    }

    /// Where batches begin.
    pub fn starts(&self) -> Vec<u64> {
        let next = |at: &u64| Some(*at + self.rows_at(*at)).filter(|at| *at < self.total);
        std::iter::successors(Some(0), next).collect()
    }

    /// `times` as likely as it says.
    fn fault(&self, times: u64) -> Fault {
        let mut dice = self.dice.lock();
        match dice.roll(1000) {
            number if number >= self.faults * times => Fault::None,
            number if number % 2 == 0 => Fault::Error,
            _ => Fault::Panic,
        }
    }

    fn maybe_fail(&self, when: &str) -> Result<(), SourceError> {
        match self.fault(1) {
            Fault::None => Ok(()),
            Fault::Error => Err(SourceError::Retry(format!("a fault of the test {when}"))),
            Fault::Panic => panic!("a fault of the test {when}"),
        }
    }
}

enum Fault {
    None,
    Error,
    Panic,
}

pub fn batch(stream: u64, from: u64, rows: u64) -> Batch {
    let mut builder = BatchBuilder::with_capacity(rows as usize, 0);
    for position in from..from + rows {
        builder.push(stream, position, position as i64, format!("{stream}/{position}").as_bytes());
    }
    let odd = (from..from + rows).map(|position| (position % 2 == 1).then(|| format!("odd-{position}")));
    let host = StringArray::from_iter_values((0..rows).map(|_| "host-1"));
    let headers = vec![
        HeaderColumn { name: "host".into(), values: host },
        HeaderColumn { name: "odd".into(), values: odd.collect() },
    ];
    builder.finish(headers).unwrap()
}

impl Source for Script {
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        let stored = context.positions().into_iter().find(|(key, _)| key == b"at").map(|(_, value)| value);
        let mut at = stored.map_or(0, |value| u64::from_le_bytes(value.try_into().unwrap()));
        while at < self.total {
            if context.stopping() {
                return Ok(());
            }
            if at >= self.gate.load(Ordering::Acquire) {
                context.wait(Duration::from_millis(1))?;
                continue;
            }
            self.maybe_fail("before an emission")?;
            let rows = self.rows_at(at);
            let batch = batch(self.stream, at, rows);
            at += rows;
            let positions = vec![(b"at".to_vec(), at.to_le_bytes().to_vec())];
            context.emit(Emission { batch, positions, quarantined: Vec::new() })?;
            self.emitted.fetch_add(rows, Ordering::AcqRel);
            self.maybe_fail("after an emission")?;
        }
        if !self.stays {
            return Ok(());
        }
        loop {
            context.wait(Duration::from_secs(60))?;
        }
    }
}
