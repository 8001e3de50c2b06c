//! Runs a source against a journal in memory that can crash: what is in flight is lost, what was
//! committed stays, positions and events together.

#![allow(dead_code, missing_docs, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flumen_builtin::sources::sources;
use flumen_event::Identity;
use flumen_pipeline::plan::BatchPlan;
use flumen_pipeline::source::{Emit, Wake};
use flumen_pipeline::{
    ComponentKind, ComponentMetrics, Emission, Metric, OptionKind, Options, Progress, SourceContext,
    SourceError, Stopped, Value,
};
use parking_lot::{Condvar, Mutex};

/// No wait is longer: far over what a busy machine needs for 50 MB.
const DEADLINE: Duration = Duration::from_secs(90);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub identity: Identity,
    pub body: String,
    pub file: String,
    pub continued: bool,
    pub quarantined: bool,
}

type InFlight = (Vec<Seen>, Vec<(Vec<u8>, Vec<u8>)>);

#[derive(Default)]
struct State {
    positions: BTreeMap<Vec<u8>, Vec<u8>>,
    events: Vec<Seen>,
    in_flight: Vec<InFlight>,
    /// Emissions until a crash.
    crash_in: Option<usize>,
    crashed: bool,
    emissions: usize,
    ended: Option<String>,
}

/// The journal, which outlives runs of the source.
#[derive(Clone, Default)]
pub struct Journal(Arc<(Mutex<State>, Condvar)>);

impl Emit for Journal {
    fn progress(&self) -> Progress {
        let state = self.0.0.lock();
        let emitted = state.emissions as u64;
        Progress { emitted, durable: emitted - state.in_flight.len() as u64 }
    }

    fn emit(&mut self, emission: Emission) -> Result<(), Stopped> {
        let mut state = self.0.0.lock();
        if state.crashed {
            return Err(Stopped);
        }
        if let Some(left) = &mut state.crash_in {
            if *left == 0 {
                state.crashed = true;
                self.0.1.notify_all();
                return Err(Stopped);
            }
            *left -= 1;
        }
        let mut seen = rows(&emission.batch, false);
        for quarantined in &emission.quarantined {
            assert_eq!(quarantined.reasons.len(), quarantined.batch.rows());
            seen.extend(rows(&quarantined.batch, true));
        }
        state.emissions += 1;
        state.in_flight.push((seen, emission.positions));
        self.0.1.notify_all();
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Stopped> {
        self.commit(usize::MAX);
        Ok(())
    }

    fn positions(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.0.0.lock().positions.clone().into_iter().collect()
    }
}

fn rows(batch: &flumen_event::Batch, quarantined: bool) -> Vec<Seen> {
    let text = |name: &str, row: usize| {
        use arrow_array::Array;
        batch.header(name).filter(|c| c.is_valid(row)).map(|c| c.value(row).to_owned())
    };
    (0..batch.rows())
        .map(|row| Seen {
            identity: batch.identity(row).unwrap(),
            body: String::from_utf8_lossy(batch.body().value(row)).into_owned(),
            file: text("file", row).unwrap_or_default(),
            continued: text("flumen.continued", row).is_some(),
            quarantined,
        })
        .collect()
}

impl Journal {
    pub fn commit(&self, emissions: usize) {
        let mut state = self.0.0.lock();
        let count = emissions.min(state.in_flight.len());
        let done: Vec<_> = state.in_flight.drain(..count).collect();
        for (events, positions) in done {
            state.events.extend(events);
            for (key, value) in positions {
                if value.is_empty() {
                    state.positions.remove(&key)
                } else {
                    state.positions.insert(key, value)
                };
            }
        }
    }

    /// All events, committed or in flight.
    pub fn events(&self) -> Vec<Seen> {
        let state = self.0.0.lock();
        state.events.iter().chain(state.in_flight.iter().flat_map(|(events, _)| events)).cloned().collect()
    }

    pub fn bodies(&self) -> Vec<String> {
        self.events().into_iter().map(|seen| seen.body).collect()
    }

    pub fn position_count(&self) -> usize {
        self.0.0.lock().positions.len()
    }

    /// Waits until the events are as wanted, or a crash.
    pub fn wait(&self, what: &str, wanted: impl Fn(&[Seen]) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let events = self.events();
            let mut state = self.0.0.lock();
            if wanted(&events) || state.crashed {
                return;
            }
            let late =
                self.0.1.wait_until(&mut state, deadline.min(Instant::now() + Duration::from_millis(50)));
            if late.timed_out() && Instant::now() >= deadline {
                let last: Vec<_> = events.iter().rev().take(2).collect();
                let all: Vec<_> = events.iter().map(|seen| (seen.identity, &seen.body)).collect();
                if std::env::var("FLUMEN_SEED").is_ok() {
                    println!("{all:#?}");
                }
                panic!(
                    "waited in vain for {what}; {} events, last {last:?}, ended {:?}",
                    events.len(),
                    state.ended
                );
            }
        }
    }

    /// Waits until so many emissions came, in all runs together.
    pub fn wait_emissions(&self, count: usize) {
        let deadline = Instant::now() + DEADLINE;
        let mut state = self.0.0.lock();
        while state.emissions < count {
            assert!(
                !self.0.1.wait_until(&mut state, deadline).timed_out(),
                "waited in vain for {count} emissions"
            );
        }
    }

    pub fn wait_count(&self, count: usize) {
        self.wait(&format!("{count} events"), |events| events.len() >= count);
    }
}

/// A running source.
pub struct Run {
    journal: Journal,
    wake: Wake,
    thread: Option<JoinHandle<()>>,
    pub metrics: Arc<ComponentMetrics>,
}

pub struct Setup {
    pub kind: &'static str,
    pub options: BTreeMap<String, Value>,
    pub batch: BatchPlan,
}

impl Setup {
    pub fn new(kind: &'static str) -> Setup {
        let spec = sources().into_iter().find(|source| source.spec.kind == kind).unwrap().spec;
        let options = spec
            .options
            .iter()
            .filter_map(|o| Some((o.name.to_owned(), value(o.kind, o.default?))))
            .collect();
        let batch = BatchPlan { linger: Duration::from_millis(2), ..BatchPlan::default() };
        Setup { kind, options, batch }
    }

    pub fn tail(path: &str) -> Setup {
        Setup::new("tail")
            .set("paths", Value::TextList(vec![path.to_owned()]))
            .ms("rescan_interval", 50)
            .ms("poll_interval", 20)
    }

    pub fn set(mut self, name: &str, value: Value) -> Setup {
        self.options.insert(name.to_owned(), value);
        self
    }

    pub fn ms(self, name: &str, ms: u64) -> Setup {
        self.set(name, Value::Duration(Duration::from_millis(ms)))
    }

    pub fn text(self, name: &str, text: &str) -> Setup {
        self.set(name, Value::Text(text.to_owned()))
    }

    pub fn start(&self, journal: &Journal) -> Run {
        let source = sources().into_iter().find(|source| source.spec.kind == self.kind).unwrap();
        let mut source = (source.build)(&Options(self.options.clone())).unwrap();
        let metrics = ComponentMetrics::new(ComponentKind::Source, "test".into());
        let wake = Wake::default();
        {
            let mut state = journal.0.0.lock();
            state.in_flight.clear();
            state.crashed = false;
            state.ended = None;
        }
        let mut context = SourceContext::new(
            "test".into(),
            self.batch,
            metrics.clone(),
            wake.clone(),
            Box::new(journal.clone()),
        );
        let ends = journal.clone();
        let thread = std::thread::spawn(move || {
            let result = source.run(&mut context);
            if let Err(SourceError::Retry(error)) = &result {
                panic!("the source failed: {error}");
            }
            ends.0.0.lock().ended = Some(format!("{result:?}"));
            ends.0.1.notify_all();
        });
        Run { journal: journal.clone(), wake, thread: Some(thread), metrics }
    }
}

impl Run {
    /// A crash at the emission after `emissions` more.
    pub fn crash_in(&self, emissions: usize) {
        self.journal.0.0.lock().crash_in = Some(emissions);
    }

    /// A crash now: of what is in flight only the first `committed` emissions become durable.
    pub fn crash(mut self, committed: usize) {
        self.journal.commit(committed);
        {
            let mut state = self.journal.0.0.lock();
            state.crashed = true;
            state.crash_in = None;
        }
        self.wake.stop();
        self.thread.take().unwrap().join().unwrap();
        let mut state = self.journal.0.0.lock();
        state.in_flight.clear();
        // Whoever looks at the journal between two lives may also write to it.
        state.crashed = false;
    }

    /// A clean stop: everything emitted becomes durable.
    pub fn stop(mut self) {
        self.wake.stop();
        self.thread.take().unwrap().join().unwrap();
        self.journal.commit(usize::MAX);
        self.journal.0.0.lock().crash_in = None;
    }

    /// Waits for the source's own end.
    pub fn join(mut self) {
        self.thread.take().unwrap().join().unwrap();
        self.journal.commit(usize::MAX);
    }

    pub fn wait_metric(&self, metric: Metric, least: u64) {
        let deadline = Instant::now() + DEADLINE;
        while self.metrics.get(metric) < least {
            assert!(Instant::now() < deadline, "waited in vain for {metric:?} >= {least}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.wake.stop();
    }
}

/// Defaults as TOML text; only what the specs here use.
fn value(kind: OptionKind, text: &str) -> Value {
    let text = text.trim_matches('"');
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = || text[..digits].parse::<u64>().unwrap();
    match (kind, text[digits..].trim()) {
        (OptionKind::Text | OptionKind::Choice(_), _) => Value::Text(text.to_owned()),
        (OptionKind::Bool, _) => Value::Bool(text == "true"),
        (OptionKind::Integer { .. }, _) => Value::Integer(number() as i64),
        (OptionKind::Size { .. }, "") => Value::Size(number()),
        (OptionKind::Size { .. }, "KiB") => Value::Size(number() << 10),
        (OptionKind::Size { .. }, "MiB") => Value::Size(number() << 20),
        (OptionKind::Duration { .. }, "ms") => Value::Duration(Duration::from_millis(number())),
        (OptionKind::Duration { .. }, "s") => Value::Duration(Duration::from_secs(number())),
        (OptionKind::Duration { .. }, "m") => Value::Duration(Duration::from_secs(60 * number())),
        (OptionKind::TextList, _) => Value::TextList(Vec::new()),
        other => panic!("default {text:?} of {other:?}"),
    }
}
