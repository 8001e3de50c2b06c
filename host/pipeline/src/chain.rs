//! A chain of interceptors: which version processes a batch, and what comes out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use flumen_event::Batch;

use crate::interceptor::{Interceptor, InterceptorVersion, Processed, Quarantined};
use crate::metrics::{ComponentKind, ComponentMetrics, Metric};
use crate::plan::OnReject;

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
}

impl Link {
    /// A link with counters of its own.
    pub fn new(interceptor: Arc<dyn Interceptor>, on_reject: OnReject) -> Self {
        let metrics = ComponentMetrics::new(ComponentKind::Interceptor, interceptor.name().into());
        Link { interceptor, on_reject, metrics, state_bytes: None }
    }

    /// The same, keeping state.
    pub fn with_state(mut self, bytes_max: u64) -> Self {
        self.state_bytes = Some(bytes_max);
        self
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

    /// The first link that keeps state; the number of links if there is none.
    pub fn first_with_state(&self) -> usize {
        self.0.iter().position(|link| link.state_bytes.is_some()).unwrap_or(self.0.len())
    }

    /// Processes a batch by the versions that it was stamped with, up to the first link that keeps state: from there on
    /// batches go one by one.
    pub fn process(&self, versions: &Versions, batch: Batch) -> ChainOutput {
        let mut kept = batch;
        let mut quarantined = Vec::new();
        for (link, version) in
            self.0.iter().zip(&versions.0).take_while(|(link, _)| link.state_bytes.is_none())
        {
            if kept.is_empty() {
                break;
            }
            kept = link.process(|batch| version.process(batch), kept, &mut quarantined);
        }
        ChainOutput { kept, quarantined }
    }
}

impl Link {
    /// One batch through one version, counted; a panic costs the batch its way.
    pub(crate) fn process(
        &self,
        call: impl FnOnce(Batch) -> Processed,
        batch: Batch,
        quarantined: &mut Vec<Quarantined>,
    ) -> Batch {
        let metrics = &self.metrics;
        metrics.add(Metric::InterceptorCalls, 1);
        metrics.add(Metric::InterceptorEventsIn, batch.rows() as u64);
        let begin = Instant::now();
        let input = batch.clone();
        // A panic here would be a bug of the host. It costs the batch its way, not its events.
        let processed = catch_unwind(AssertUnwindSafe(|| call(batch)));
        metrics.add(Metric::InterceptorNs, begin.elapsed().as_nanos() as u64);
        let Ok(processed) = processed else {
            let name = self.interceptor.name();
            tracing::error!(
                interceptor = name,
                events = input.rows(),
                "the plugin host panicked; events go to quarantine"
            );
            metrics.add(Metric::InterceptorFailed, input.rows() as u64);
            let reasons = vec!["the plugin host panicked (a bug of Flumen)".to_string(); input.rows()];
            quarantined.push(Quarantined {
                batch: input,
                reasons,
                by: name.into(),
                hash: "".into(),
                rejected: false,
            });
            return Batch::empty();
        };
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
