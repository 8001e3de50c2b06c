//! A chain of interceptors: which version processes a batch, and what comes out.
//!
//! The list of links may be exchanged while batches flow. A batch is processed by the links and the versions that it was
//! stamped with, so an exchange takes effect between two batches, as a swap of a plugin does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use flumen_event::Batch;

use crate::interceptor::{Interceptor, InterceptorVersion, Quarantined};
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
}

impl Link {
    /// A link with counters of its own.
    pub fn new(interceptor: Arc<dyn Interceptor>, on_reject: OnReject) -> Self {
        let metrics = ComponentMetrics::new(ComponentKind::Interceptor, interceptor.name().into());
        Link { interceptor, on_reject, metrics }
    }

    /// A link that goes on with the counters of the one in whose place it comes.
    pub fn in_place_of(old: &Link, interceptor: Arc<dyn Interceptor>, on_reject: OnReject) -> Self {
        Link { interceptor, on_reject, metrics: old.metrics.clone() }
    }
}

/// The links of a chain, in order. An exchange shares those that stay.
pub type Links = Arc<Vec<Arc<Link>>>;

/// Interceptors in order. Without any it passes batches through.
#[derive(Default)]
pub struct Chain(ArcSwap<Vec<Arc<Link>>>);

/// The links and versions that one batch is processed by, from the first link to the last.
pub struct Versions {
    links: Links,
    versions: Vec<Arc<dyn InterceptorVersion>>,
}

/// What a chain made of a batch.
pub struct ChainOutput {
    /// Goes on.
    pub kept: Batch,
    /// Goes to the quarantine channel.
    pub quarantined: Vec<Quarantined>,
}

impl Chain {
    /// A chain of these links.
    pub fn new(links: Links) -> Chain {
        Chain(ArcSwap::new(links))
    }

    /// The present links.
    pub fn links(&self) -> Links {
        self.0.load_full()
    }

    /// From the next batch on, of each source, these links.
    pub fn exchange(&self, links: Links) {
        self.0.store(links);
    }

    /// Whether it passes batches through as they are.
    pub fn is_empty(&self) -> bool {
        self.0.load().is_empty()
    }

    /// The present links and versions. Taken once per batch, by one thread, in the order of the batches.
    pub fn versions(&self) -> Versions {
        let links = self.links();
        let versions = links.iter().map(|link| link.interceptor.current()).collect();
        Versions { links, versions }
    }

    /// Processes a batch by the versions that it was stamped with.
    pub fn process(&self, versions: &Versions, batch: Batch) -> ChainOutput {
        let mut kept = batch;
        let mut quarantined = Vec::new();
        for (link, version) in versions.links.iter().zip(&versions.versions) {
            if kept.is_empty() {
                break;
            }
            kept = link.process(version.as_ref(), kept, &mut quarantined);
        }
        ChainOutput { kept, quarantined }
    }
}

impl Link {
    fn process(
        &self,
        version: &dyn InterceptorVersion,
        batch: Batch,
        quarantined: &mut Vec<Quarantined>,
    ) -> Batch {
        let metrics = &self.metrics;
        metrics.add(Metric::InterceptorCalls, 1);
        metrics.add(Metric::InterceptorEventsIn, batch.rows() as u64);
        let begin = Instant::now();
        let input = batch.clone();
        // A panic here would be a bug of the host. It costs the batch its way, not its events.
        let processed = catch_unwind(AssertUnwindSafe(|| version.process(batch)));
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
