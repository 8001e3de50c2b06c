//! Taking over another plan while the pipeline runs: interceptors, sources and sinks, each by itself.
//!
//! The journal stays open and everything that did not change runs on. Links of a chain are exchanged between two batches. A
//! source or sink that changed is stopped, everything that it had handed in is durable, and its successor goes on at the
//! committed position, as after a restart. Which parts have to be touched is read off what runs, not off the old plan: so the
//! same steps with the old plan undo an exchange that failed half-way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::chain::{Link, Links};
use crate::component::BuildError;
use crate::limits;
use crate::metrics::ComponentKind;
use crate::pipeline::{
    FeedPlan, Pipeline, RunningFeed, RunningOutlet, StartError, check_stateless, wait_until,
};
use crate::plan::{PipelinePlan, SinkPlan, SourcePlan};
use crate::sink::Sink;
use crate::source::Source;

/// Makes sources and sinks of their plans.
#[derive(Clone, Copy)]
pub struct Makers {
    /// A source.
    pub source: fn(&SourcePlan) -> Result<Box<dyn Source>, BuildError>,
    /// A sink.
    pub sink: fn(&SinkPlan) -> Result<Box<dyn Sink>, BuildError>,
}

/// The interceptors of a pipeline: of its chain, and of its sinks by their names.
#[derive(Clone, Default)]
pub struct PipelineLinks {
    /// The chain.
    pub chain: Links,
    /// Those of each sink.
    pub sinks: BTreeMap<String, Links>,
}

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// A part cannot be made. Everything is as it was.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A part did not end in time. It is being stopped and will not go on: the pipeline has to restart as a whole.
    #[error("{kind} {name} did not stop within {} s", limits::PART_STOP.as_secs())]
    Stuck {
        /// `source` or `sink`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
}

impl PipelineLinks {
    /// The link of this name at this place.
    pub fn find(&self, sink: Option<&str>, name: &str) -> Option<&Arc<Link>> {
        let links = match sink {
            None => Some(&self.chain),
            Some(sink) => self.sinks.get(sink),
        };
        links?.iter().find(|link| link.interceptor.name() == name)
    }
}

impl Pipeline {
    /// The present links of all chains.
    pub fn links(&self) -> PipelineLinks {
        let outlets = self.outlets.lock();
        let own = outlets.iter().map(|it| (it.outlet.name.to_string(), it.outlet.chain.links()));
        PipelineLinks { chain: self.chain.links(), sinks: own.collect() }
    }

    /// Takes over a plan whose channels, readers and journal settings are those of the present one
    /// ([`crate::plan_diff::PipelineDiff::restart`] is empty). After an error of a part the old plan runs on, whole.
    pub fn exchange(
        &self,
        plan: PipelinePlan,
        links: &PipelineLinks,
        makers: Makers,
    ) -> Result<(), ExchangeError> {
        self.check(&plan, makers)?;
        let (old, old_links) = (self.plan(), self.links());
        let plan = Arc::new(plan);
        match self.take_over(&plan, links, makers) {
            Err(ExchangeError::Start(error)) => {
                // What ran a moment ago can be made again, but for the system's limits: those are told.
                self.take_over(&old, &old_links, makers)?;
                Err(error.into())
            }
            outcome => outcome,
        }
    }

    /// Makes every part that would start, before anything is touched.
    fn check(&self, plan: &PipelinePlan, makers: Makers) -> Result<(), StartError> {
        for source in plan.sources.iter().filter(|source| !self.runs_source(plan, source)) {
            (makers.source)(source).map_err(|error| StartError {
                kind: ComponentKind::Source,
                component: source.name.clone(),
                error,
            })?;
        }
        plan.sinks.iter().try_for_each(check_stateless)?;
        for sink in plan.sinks.iter().filter(|sink| !self.runs_sink(sink)) {
            (makers.sink)(sink).map_err(|error| StartError {
                kind: ComponentKind::Sink,
                component: sink.name.clone(),
                error,
            })?;
        }
        Ok(())
    }

    fn take_over(
        &self,
        plan: &Arc<PipelinePlan>,
        links: &PipelineLinks,
        makers: Makers,
    ) -> Result<(), ExchangeError> {
        // Sources that go stop under the old chain: what they read was read for it.
        self.stop_feeds(|running| {
            plan.sources.iter().any(|source| running.made_from == FeedPlan::of(plan, source))
        })?;
        self.chain.exchange(links.chain.clone());
        self.stop_outlets(|running| plan.sinks.iter().any(|sink| running.is_of(sink)))?;
        *self.plan.lock() = plan.clone();
        let own = |sink: &SinkPlan| links.sinks.get(&sink.name).cloned().unwrap_or_default();
        for sink in &plan.sinks {
            let present = self.outlets.lock().iter().find(|running| running.is_of(sink)).cloned();
            if let Some(running) = present {
                running.outlet.chain.exchange(own(sink));
                continue;
            }
            let (made, make) = (sink.clone(), makers.sink);
            let outlet = self.start_outlet(sink, Box::new(move || make(&made)), own(sink))?;
            self.outlets.lock().push(outlet);
        }
        for source in plan.sources.iter().filter(|source| !self.runs_source(plan, source)) {
            let (made, make) = (source.clone(), makers.source);
            let feed = self.start_feed(plan, source, Box::new(move || make(&made)))?;
            self.feeds.lock().push(feed);
        }
        let place = |names: &[&str], name: &str| names.iter().position(|other| *other == name);
        let names: Vec<&str> = plan.sources.iter().map(|source| source.name.as_str()).collect();
        self.feeds.lock().sort_by_key(|running| place(&names, &running.feed.name));
        let names: Vec<&str> = plan.sinks.iter().map(|sink| sink.name.as_str()).collect();
        self.outlets.lock().sort_by_key(|running| place(&names, &running.outlet.name));
        Ok(())
    }

    fn runs_source(&self, plan: &PipelinePlan, source: &SourcePlan) -> bool {
        let wanted = FeedPlan::of(plan, source);
        self.feeds.lock().iter().any(|running| running.made_from == wanted)
    }

    fn runs_sink(&self, sink: &SinkPlan) -> bool {
        self.outlets.lock().iter().any(|running| running.is_of(sink))
    }

    fn stop_feeds(&self, stays: impl Fn(&RunningFeed) -> bool) -> Result<(), ExchangeError> {
        let going: Vec<_> = self.feeds.lock().iter().filter(|running| !stays(running)).cloned().collect();
        going.iter().for_each(|running| running.feed.wake.stop());
        wait_until(Instant::now() + limits::PART_STOP, || going.iter().all(|it| it.feed.finished()));
        if let Some(stuck) = going.iter().find(|running| !running.feed.finished()) {
            return Err(ExchangeError::Stuck { kind: "source", name: stuck.feed.name.to_string() });
        }
        self.feeds.lock().retain(|running| stays(running));
        Ok(())
    }

    fn stop_outlets(&self, stays: impl Fn(&RunningOutlet) -> bool) -> Result<(), ExchangeError> {
        let going: Vec<_> = self.outlets.lock().iter().filter(|running| !stays(running)).cloned().collect();
        going.iter().for_each(|running| running.outlet.wake.stop());
        wait_until(Instant::now() + limits::PART_STOP, || going.iter().all(|it| it.outlet.finished()));
        if let Some(stuck) = going.iter().find(|running| !running.outlet.finished()) {
            return Err(ExchangeError::Stuck { kind: "sink", name: stuck.outlet.name.to_string() });
        }
        self.outlets.lock().retain(|running| stays(running));
        Ok(())
    }
}

impl RunningOutlet {
    fn is_of(&self, sink: &SinkPlan) -> bool {
        self.made_from == SinkPlan { interceptors: Vec::new(), ..sink.clone() }
    }
}
