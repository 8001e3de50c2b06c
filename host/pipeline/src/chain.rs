//! A chain of interceptors: which version processes a batch, and what comes out.
//!
//! The list of links may be exchanged while batches flow. A batch is processed by the links and the versions that it was
//! stamped with, so an exchange takes effect between two batches, as a swap of a plugin does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use flumen_event::Batch;

use crate::budget::{Budget, Gate};
use crate::interceptor::{Interceptor, InterceptorVersion, Processed, Quarantined};
use crate::metrics::{ComponentKind, ComponentMetrics, Metric};
use crate::plan::{InterceptorPlan, OnReject};

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
    pub fn new(interceptor: Arc<dyn Interceptor>, plan: &InterceptorPlan) -> Self {
        let metrics = ComponentMetrics::new(ComponentKind::Interceptor, interceptor.name().into());
        let state_bytes = plan.keeps_state().then_some(plan.limits.state_bytes);
        Link {
            interceptor,
            on_reject: plan.on_reject,
            metrics,
            state_bytes,
            budget: Budget::new(plan.errors),
        }
    }

    /// What it is doing, in a word.
    pub fn state(&self) -> &'static str {
        self.budget.word()
    }

    /// A link that goes on with the counters of the one in whose place it comes.
    pub fn in_place_of(old: &Link, interceptor: Arc<dyn Interceptor>, plan: &InterceptorPlan) -> Self {
        Link { metrics: old.metrics.clone(), ..Link::new(interceptor, plan) }
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
    /// The links that it went through, up to the first one that keeps state.
    pub links: Links,
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

    /// Processes a batch by the versions that it was stamped with, from the link at `first` up to the first one that keeps
    /// state: from there on batches go one by one ([`crate::stateful`]). While a plugin is over its error budget and its policy is
    /// to stop, `hold` is called again and again; its error ends the wait, and the batch is as if it had never been here. So does an
    /// exchange of the links: then the batch is processed by the new ones.
    pub fn process<E>(
        &self,
        first: usize,
        versions: &Versions,
        batch: Batch,
        hold: &mut impl FnMut() -> Result<(), E>,
    ) -> Result<ChainOutput, E> {
        match self.pass(first, versions, batch.clone(), hold) {
            Ok(output) => return Ok(output),
            Err(Held::Ended(error)) => return Err(error),
            Err(Held::Exchanged) => {}
        }
        let (mut old, mut first) = (self.versions(), versions.place_in(first, &self.links()));
        loop {
            match self.pass(first, &old, batch.clone(), hold) {
                Ok(output) => return Ok(output),
                Err(Held::Ended(error)) => return Err(error),
                Err(Held::Exchanged) => {
                    let new = self.versions();
                    first = old.place_in(first, &new.links);
                    old = new;
                }
            }
        }
    }

    fn pass<E>(
        &self,
        first: usize,
        versions: &Versions,
        batch: Batch,
        hold: &mut impl FnMut() -> Result<(), E>,
    ) -> Result<ChainOutput, Held<E>> {
        let mut hold = || match Arc::ptr_eq(&versions.links, &self.0.load()) {
            true => hold().map_err(Held::Ended),
            false => Err(Held::Exchanged),
        };
        let mut kept = batch;
        let mut quarantined = Vec::new();
        let links = versions.links.iter().zip(&versions.versions).take(first_with_state(&versions.links));
        for (link, version) in links.skip(first) {
            if kept.is_empty() {
                break;
            }
            let mut call = |version: &Arc<dyn InterceptorVersion>, batch| version.process(batch);
            kept = link.process(version, kept, &mut call, &mut quarantined, &mut hold)?;
        }
        Ok(ChainOutput { kept, quarantined, links: versions.links.clone() })
    }

    /// Processes events of the quarantine by the present versions, up to the first link that keeps state. They failed before:
    /// they are not held, and count in no error budget.
    pub(crate) fn process_again(&self, begin: &Begin, batch: Batch) -> ChainOutput {
        let links = self.links();
        let mut kept = batch;
        let mut quarantined = Vec::new();
        for link in links.iter().take(first_with_state(&links)).skip(begin.place(&links)) {
            if kept.is_empty() {
                break;
            }
            let mut call = |version: &Arc<dyn InterceptorVersion>, batch| version.process(batch);
            kept = link.process_again(&link.interceptor.current(), kept, &mut call, &mut quarantined);
        }
        ChainOutput { kept, quarantined, links }
    }
}

/// Why a batch that was held is not processed.
enum Held<E> {
    /// Who waits for it gave up.
    Ended(E),
    /// Its links are no longer those of the chain.
    Exchanged,
}

/// Where events of the quarantine begin again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Begin {
    /// With the first interceptor.
    First,
    /// With this one; with the first if it is not there any more.
    At(String),
    /// Behind the last one.
    Behind,
}

impl Begin {
    /// The place of the link to begin with.
    pub(crate) fn place(&self, links: &[Arc<Link>]) -> usize {
        match self {
            Begin::First => 0,
            Begin::At(name) => position(links, name).unwrap_or(0),
            Begin::Behind => links.len(),
        }
    }
}

/// The first link that keeps state; the number of links if there is none.
pub(crate) fn first_with_state(links: &[Arc<Link>]) -> usize {
    links.iter().position(|link| link.state_bytes.is_some()).unwrap_or(links.len())
}

fn position(links: &[Arc<Link>], name: &str) -> Option<usize> {
    links.iter().position(|link| link.interceptor.name() == name)
}

impl ChainOutput {
    /// Whether there are links with state to go through.
    pub fn needs_state(&self) -> bool {
        first_with_state(&self.links) < self.links.len()
    }
}

impl Versions {
    /// How many interceptors there are.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// The place of an interceptor.
    pub fn position(&self, name: &str) -> Option<usize> {
        position(&self.links, name)
    }

    /// Where a batch that was to begin at `first` begins among other links: at the first of its interceptors that is there.
    fn place_in(&self, first: usize, links: &[Arc<Link>]) -> usize {
        if first == 0 {
            return 0;
        }
        let rest = self.links.iter().skip(first);
        let found = rest.filter_map(|link| position(links, link.interceptor.name())).next();
        found.unwrap_or(links.len())
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
            let failed = processed.failed();
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
