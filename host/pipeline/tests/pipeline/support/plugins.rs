//! Interceptors made of closures.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::{StringArray, UInt32Array};
use flumen_event::Batch;
use flumen_pipeline::{Interceptor, InterceptorVersion, Processed, Quarantined};
use parking_lot::Mutex;

use super::Dice;

type Process = dyn Fn(Batch) -> Processed + Send + Sync;

struct Version(Box<Process>);

impl InterceptorVersion for Version {
    fn process(&self, batch: Batch) -> Processed {
        (self.0)(batch)
    }
}

pub struct Plugin {
    name: String,
    current: Mutex<Arc<dyn InterceptorVersion>>,
    /// Looking up the version takes a random time.
    dice: Option<Mutex<Dice>>,
}

impl Plugin {
    pub fn new(name: &str, process: impl Fn(Batch) -> Processed + Send + Sync + 'static) -> Arc<Plugin> {
        let current: Arc<dyn InterceptorVersion> = Arc::new(Version(Box::new(process)));
        Arc::new(Plugin { name: name.into(), current: Mutex::new(current), dice: None })
    }

    pub fn slow_to_find(self: Arc<Plugin>, seed: u64) -> Arc<Plugin> {
        let mut plugin = Arc::into_inner(self).unwrap();
        plugin.dice = Some(Mutex::new(Dice(seed)));
        Arc::new(plugin)
    }

    pub fn swap(&self, process: impl Fn(Batch) -> Processed + Send + Sync + 'static) {
        *self.current.lock() = Arc::new(Version(Box::new(process)));
    }
}

impl Interceptor for Plugin {
    fn name(&self) -> &str {
        &self.name
    }

    fn current(&self) -> Arc<dyn InterceptorVersion> {
        if let Some(dice) = &self.dice {
            let micros = dice.lock().roll(400);
            busy(Duration::from_micros(micros));
        }
        self.current.lock().clone()
    }
}

/// Work that takes a while.
pub fn busy(duration: Duration) {
    let until = std::time::Instant::now() + duration;
    while std::time::Instant::now() < until {
        std::thread::yield_now();
    }
}

pub fn all(batch: Batch) -> Processed {
    Processed { kept: batch, quarantined: Vec::new(), dropped: 0 }
}

pub fn rows_where(batch: &Batch, wanted: impl Fn(u64) -> bool) -> Batch {
    let rows: UInt32Array =
        (0..batch.rows() as u32).filter(|row| wanted(batch.position().value(*row as usize))).collect();
    batch.take(&rows).unwrap()
}

/// Keeps some positions and leaves the others out.
pub fn keep(batch: Batch, wanted: impl Fn(u64) -> bool) -> Processed {
    let kept = rows_where(&batch, wanted);
    let dropped = (batch.rows() - kept.rows()) as u64;
    Processed { kept, quarantined: Vec::new(), dropped }
}

pub fn quarantine(batch: &Batch, by: &str, rejected: bool, wanted: impl Fn(u64) -> bool) -> Quarantined {
    let batch = rows_where(batch, wanted);
    let reasons = batch.position().values().iter().map(|position| format!("reason {position}")).collect();
    Quarantined { batch, reasons, by: by.into(), hash: "abc".into(), rejected }
}

pub fn label(batch: Batch, header: &str, value: &str) -> Batch {
    let values = StringArray::from_iter_values(std::iter::repeat_n(value, batch.rows()));
    batch.with_header(header, values).unwrap()
}
