//! A chain of interceptors: which version processes a batch, and what comes out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use flumen_event::Batch;

use crate::budget::{Budget, Gate};
use crate::interceptor::{Interceptor, InterceptorVersion, Processed, Quarantined};
use crate::metrics::{ComponentKind, ComponentMetrics, Metric};
use crate::plan::{ErrorPlan, OnReject};

/// One place of a chain.
pub struct Link {
    /// The plugin in this place.
    pub interceptor: Arc<dyn Interceptor>,
    /// What becomes of rows that it rejects.
    pub on_reject: OnReject,
    /// Its counters.
    pub metrics: Arc<ComponentMetrics>,
    /// It keeps state: how many bytes at most.
    pub state_bytes: Option<u64>,
    budget: Budget,
}

impl Link {
    /// A link with counters of its own.
    pub fn new(interceptor: Arc<dyn Interceptor>, on_reject: OnReject, errors: ErrorPlan) -> Self {
        let metrics = ComponentMetrics::new(ComponentKind::Interceptor, interceptor.name().into());
        Link { interceptor, on_reject, metrics, state_bytes: None, budget: Budget::new(errors) }
    }

    /// The same, keeping state.
    pub fn with_state(mut self, bytes_max: u64) -> Self {
        self.state_bytes = Some(bytes_max);
        self
    }

    /// What it is doing, in a word.
    pub fn state(&self) -> &'static str {
        self.budget.word()
    }
}

/// Interceptors in order. Without any it passes batches through.
#[derive(Default)]
pub struct Chain(pub Vec<Link>);

/// The versions that one batch is processed by, from its first link to its last.
pub struct Versions(Vec<Arc<dyn InterceptorVersion>>);

/// What a chain made of a batch.
pub struct ChainOutput {
    /// Goes on.
    pub kept: Batch,
    /// Goes to the quarantine channel.
    pub quarantined: Vec<Quarantined>,
}

impl Chain {
    /// The present versions. Taken once per batch, by one thread, in the order of the batches.
    pub fn versions(&self) -> Versions {
        Versions(self.0.iter().map(|link| link.interceptor.current()).collect())
    }

    /// The place of an interceptor.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|link| link.interceptor.name() == name)
    }

    /// The first link that keeps state; the number of links if there is none.
    pub fn first_with_state(&self) -> usize {
        self.0.iter().position(|link| link.state_bytes.is_some()).unwrap_or(self.0.len())
    }

    /// Processes a batch by the versions that it was stamped with, from the link at `first` up to the first link that keeps state: from there on
    /// batches go one by one ([`crate::stateful`]). While a plugin is over its error budget and its policy is to
    /// stop, `hold` is called again and again; its error ends the wait, and the batch is as if it had never been here.
    pub fn process<E>(
        &self,
        first: usize,
        versions: &Versions,
        batch: Batch,
        hold: &mut impl FnMut() -> Result<(), E>,
    ) -> Result<ChainOutput, E> {
        let mut kept = batch;
        let mut quarantined = Vec::new();
        let without_state = self.0.iter().zip(&versions.0).take(self.first_with_state());
        for (link, version) in without_state.skip(first) {
            if kept.is_empty() {
                break;
            }
            let mut call = |version: &Arc<dyn InterceptorVersion>, batch| version.process(batch);
            kept = link.process(version, kept, &mut call, &mut quarantined, hold)?;
        }
        Ok(ChainOutput { kept, quarantined })
    }

    /// Processes events of the quarantine by the present versions, from the link at `first` up to the first one that keeps
    /// state. They failed before: they are not held, and count in no error budget.
    pub(crate) fn process_again(&self, first: usize, batch: Batch) -> ChainOutput {
        let mut kept = batch;
        let mut quarantined = Vec::new();
        for link in self.0.iter().take(self.first_with_state()).skip(first) {
            if kept.is_empty() {
                break;
            }
            let mut call = |version: &Arc<dyn InterceptorVersion>, batch| version.process(batch);
            kept = link.process_again(&link.interceptor.current(), kept, &mut call, &mut quarantined);
        }
        ChainOutput { kept, quarantined }
    }
}

impl Link {
    /// One batch through the version that `call` gives it to. It may be called more than once: only the last call counts.
    pub(crate) fn process<E>(
        &self,
        version: &Arc<dyn InterceptorVersion>,
        batch: Batch,
        call: &mut dyn FnMut(&Arc<dyn InterceptorVersion>, Batch) -> Processed,
        quarantined: &mut Vec<Quarantined>,
        hold: &mut impl FnMut() -> Result<(), E>,
    ) -> Result<Batch, E> {
        let rows = batch.rows() as u64;
        self.metrics.add(Metric::InterceptorCalls, 1);
        self.metrics.add(Metric::InterceptorEventsIn, rows);
        let mut version = version.clone();
        loop {
            match self.budget.gate(&mut version, || self.interceptor.current(), Instant::now(), &self.metrics)
            {
                Gate::Process => {}
                Gate::Bypass => {
                    self.metrics.add(Metric::InterceptorBypassed, rows);
                    self.metrics.add(Metric::InterceptorEventsOut, rows);
                    return Ok(batch);
                }
                Gate::Hold => {
                    let begin = Instant::now();
                    hold()?;
                    self.metrics.add(Metric::InterceptorHeldNs, begin.elapsed().as_nanos() as u64);
                    continue;
                }
            }
            let processed = self.call(&version, batch.clone(), call);
            let failed = processed.quarantined.iter().filter(|group| !group.rejected);
            let failed = failed.map(|group| group.batch.rows() as u64).sum();
            if !self.budget.judge(&version, rows, failed, Instant::now(), &self.metrics) {
                return Ok(self.take(processed, quarantined));
            }
        }
    }

    /// As [`Link::process`], for events of the quarantine.
    pub(crate) fn process_again(
        &self,
        version: &Arc<dyn InterceptorVersion>,
        batch: Batch,
        call: &mut dyn FnMut(&Arc<dyn InterceptorVersion>, Batch) -> Processed,
        quarantined: &mut Vec<Quarantined>,
    ) -> Batch {
        self.metrics.add(Metric::InterceptorCalls, 1);
        self.metrics.add(Metric::InterceptorEventsIn, batch.rows() as u64);
        self.take(self.call(version, batch, call), quarantined)
    }

    fn call(
        &self,
        version: &Arc<dyn InterceptorVersion>,
        batch: Batch,
        call: &mut dyn FnMut(&Arc<dyn InterceptorVersion>, Batch) -> Processed,
    ) -> Processed {
        let begin = Instant::now();
        let input = batch.clone();
        // A panic here would be a bug of the host. It costs the batch its way, not its events.
        let processed = catch_unwind(AssertUnwindSafe(|| call(version, batch)));
        self.metrics.add(Metric::InterceptorNs, begin.elapsed().as_nanos() as u64);
        processed.unwrap_or_else(|_| {
            let name = self.interceptor.name();
            tracing::error!(interceptor = name, events = input.rows(), "the plugin host panicked");
            let reasons = vec!["the plugin host panicked (a bug of Flumen)".to_string(); input.rows()];
            let quarantined = vec![Quarantined {
                batch: input,
                reasons,
                by: name.into(),
                hash: "".into(),
                rejected: false,
            }];
            Processed { kept: Batch::empty(), quarantined, dropped: 0 }
        })
    }

    /// Counts what became of a batch, and passes it on.
    fn take(&self, processed: Processed, quarantined: &mut Vec<Quarantined>) -> Batch {
        let metrics = &self.metrics;
        metrics.add(Metric::InterceptorEventsOut, processed.kept.rows() as u64);
        metrics.add(Metric::InterceptorDropped, processed.dropped);
        for group in processed.quarantined {
            let rows = group.batch.rows() as u64;
            metrics.add(
                if group.rejected { Metric::InterceptorRejected } else { Metric::InterceptorFailed },
                rows,
            );
            if !group.rejected || self.on_reject == OnReject::Quarantine {
                quarantined.push(group);
            }
        }
        processed.kept
    }
}
