//! Taking over another plan while the pipeline runs: interceptors, sources and sinks, each by itself.
//!
//! The journal stays open and everything that did not change runs on. Links of a chain are exchanged between two batches. A
//! source or sink that changed is stopped, everything that it had handed in is durable, and its successor goes on at the
//! committed position, as after a restart.
//!
//! A sink that begins to read a channel gets a reader there, which begins where a restart would let it begin. One that no longer
//! reads it delivers first what is in the channel at that moment; if it cannot in time, nothing changes. Its reader is kept
//! until the whole reload has succeeded ([`Pipeline::retire_readers`]): what a way back would need is still there. Which parts have to be touched is read off what runs, not off the old plan: so the
//! same steps with the old plan undo an exchange that failed half-way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_journal::AddReaderError;

use crate::chain::{Link, Links};
use crate::deliver::MakeSink;
use crate::feed::MakeSource;
use crate::limits;
use crate::metrics::{ComponentKind, ComponentMetrics};
use crate::pipeline::{
    FeedPlan, Pipeline, RunningFeed, RunningOutlet, StartError, check_stateless, wait_until,
};
use crate::plan::{PipelinePlan, SinkPlan, SourcePlan};
use crate::plan_diff::{Vanishing, VanishingPart};

/// Makes sources and sinks of their plans, each with the counters of its codec.
pub trait Makers {
    /// Of a source.
    fn source(&self, plan: &SourcePlan) -> (MakeSource, Option<Arc<ComponentMetrics>>);
    /// Of a sink.
    fn sink(&self, plan: &SinkPlan) -> (MakeSink, Option<Arc<ComponentMetrics>>);
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
        /// `source`, `backfill` or `sink`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Sinks that would end have not delivered what is in their channels. Everything is as it was.
    #[error("there are events that were not delivered")]
    Held(Vec<(Vanishing, u64)>),
    /// A sink has no reader. Everything is as it was; the pipeline can restart as a whole.
    #[error(transparent)]
    Reader(#[from] AddReaderError),
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

    /// Takes over a plan whose channels and journal settings are those of the present one
    /// ([`crate::plan_diff::PipelineDiff::restart`] is empty). After an error of a part the old plan runs on, whole. `drain`: how
    /// long sinks that end may take to deliver what is in their channels; `None`: what they have not delivered is not asked for.
    pub fn exchange(
        &self,
        plan: PipelinePlan,
        links: &PipelineLinks,
        makers: &dyn Makers,
        drain: Option<Duration>,
    ) -> Result<(), ExchangeError> {
        self.check(&plan, makers)?;
        let (old, old_links) = (self.plan(), self.links());
        let plan = Arc::new(plan);
        let drained = drain.map_or(Ok(()), |limit| self.drain_outlets(&plan, limit));
        let begun = drained.and_then(|()| self.add_readers(&plan));
        match begun.and_then(|()| self.take_over(&plan, links, makers)) {
            Err(error @ ExchangeError::Stuck { .. }) => Err(error),
            Err(error) => {
                // What ran a moment ago can be made again, but for the system's limits: those are told.
                self.take_over(&old, &old_links, makers)?;
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// After a reload that has succeeded, or was taken back: nothing is kept any more for sinks that the plan does not have.
    pub fn retire_readers(&self) {
        let plan = self.plan();
        for channel in self.journal.status().channels {
            let of_plan = plan.channels.iter().any(|known| known.name == channel.name && !known.is_shared());
            let Some(id) = self.journal.channel(&channel.name).filter(|_| of_plan) else { continue };
            let gone = channel.readers.iter().filter(|(name, _)| !reads(&plan, name, &channel.name));
            let gone = gone.filter_map(|(name, _)| self.journal.reader_id(id, name));
            gone.for_each(|reader| self.journal.retire_reader(id, reader));
        }
    }

    /// Lets the sinks that end deliver what is in their channels now. `Err`: those that did not are stopped.
    fn drain_outlets(&self, plan: &PipelinePlan, limit: Duration) -> Result<(), ExchangeError> {
        let status = self.journal.status();
        let channel = |name: &str| status.channels.iter().find(|channel| channel.name == name);
        let ends = |running: &&Arc<RunningOutlet>| {
            let sink = &running.made_from;
            !plan.sinks.iter().any(|known| known.name == sink.name && known.channel == sink.channel)
        };
        let going: Vec<_> = self.outlets.lock().iter().filter(ends).cloned().collect();
        let heads: Vec<u64> = going
            .iter()
            .map(|running| channel(&running.made_from.channel).map_or(0, |channel| channel.head))
            .collect();
        going.iter().zip(&heads).for_each(|(running, head)| running.outlet.finish_at(*head));
        wait_until(Instant::now() + limit, || going.iter().all(|it| it.outlet.finished()));
        // Where acknowledgements wait for other sinks, one that still waits has none that lasts.
        let is_late =
            |running: &Arc<RunningOutlet>| self.journal.acknowledges_late() && !running.outlet.finished();
        let late: Vec<bool> = going.iter().map(is_late).collect();
        self.stop_outlets(|running| !going.iter().any(|other| std::ptr::eq(&**other, running)))?;
        let status = self.journal.status();
        let held = going.iter().zip(heads).zip(late).filter_map(|((running, head), is_late)| {
            let sink = &running.made_from;
            let channel = status.channels.iter().find(|channel| channel.name == sink.channel)?;
            let old = self.plan();
            let reader = old.reader_of(sink);
            let (_, cursor) = channel.readers.iter().find(|(name, _)| name == reader)?;
            let part = VanishingPart::Sink(sink.name.clone());
            let vanishing = Vanishing { channel: sink.channel.clone(), part };
            (*cursor < head || is_late).then(|| (vanishing, head.saturating_sub(*cursor).max(1)))
        });
        let held: Vec<_> = held.collect();
        if held.is_empty() { Ok(()) } else { Err(ExchangeError::Held(held)) }
    }

    fn add_readers(&self, plan: &PipelinePlan) -> Result<(), ExchangeError> {
        for sink in &plan.sinks {
            let channel = self.journal.channel(&sink.channel);
            let channel = channel.ok_or_else(|| AddReaderError("there is no such channel".into()))?;
            let reader = plan.reader_of(sink);
            if self.journal.reader_id(channel, reader).is_none() {
                self.journal.add_reader(channel, reader)?;
            }
        }
        Ok(())
    }

    /// Makes every part that would start, before anything is touched.
    fn check(&self, plan: &PipelinePlan, makers: &dyn Makers) -> Result<(), StartError> {
        for source in plan.sources.iter().filter(|source| !self.runs_source(plan, source)) {
            (makers.source(source).0)().map_err(|error| StartError {
                kind: ComponentKind::Source,
                component: source.name.clone(),
                error,
            })?;
        }
        plan.sinks.iter().try_for_each(check_stateless)?;
        for sink in plan.sinks.iter().filter(|sink| !self.runs_sink(sink)) {
            (makers.sink(sink).0)().map_err(|error| StartError {
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
        makers: &dyn Makers,
    ) -> Result<(), ExchangeError> {
        // Sources that go stop under the old chain: what they read was read for it.
        self.stop_feeds(|running| {
            plan.sources.iter().any(|source| running.made_from == FeedPlan::of(plan, source))
        })?;
        self.stop_backfills(plan)?;
        self.exchange_chain(plan, &links.chain)?;
        self.stop_outlets(|running| plan.sinks.iter().any(|sink| running.is_of(sink)))?;
        *self.plan.lock() = plan.clone();
        // One that began meanwhile began with the plan before.
        self.stop_backfills(plan)?;
        for channel in plan.channels.iter().filter(|channel| !channel.is_shared()) {
            if let Some(id) = self.journal.channel(&channel.name) {
                self.journal.set_capacity(id, channel.capacity_events, channel.capacity_bytes);
            }
        }
        let own = |sink: &SinkPlan| links.sinks.get(&sink.name).cloned().unwrap_or_default();
        for sink in &plan.sinks {
            let present = self.outlets.lock().iter().find(|running| running.is_of(sink)).cloned();
            if let Some(running) = present {
                running.outlet.chain.exchange(own(sink));
                continue;
            }
            let (make, codec) = makers.sink(sink);
            let outlet = self.start_outlet(sink, make, own(sink))?;
            self.outlets.lock().push(outlet);
            put(&mut self.codecs.lock().sinks, &sink.name, codec);
        }
        for source in plan.sources.iter().filter(|source| !self.runs_source(plan, source)) {
            let (make, codec) = makers.source(source);
            let feed = self.start_feed(plan, source, make)?;
            self.feeds.lock().push(feed);
            put(&mut self.codecs.lock().sources, &source.name, codec);
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

fn reads(plan: &PipelinePlan, reader: &str, channel: &str) -> bool {
    plan.readers(channel).contains(&reader)
}

fn put(
    codecs: &mut BTreeMap<String, Arc<ComponentMetrics>>,
    part: &str,
    codec: Option<Arc<ComponentMetrics>>,
) {
    match codec {
        Some(codec) => codecs.insert(part.to_owned(), codec),
        None => codecs.remove(part),
    };
}

impl RunningOutlet {
    fn is_of(&self, sink: &SinkPlan) -> bool {
        self.made_from == SinkPlan { interceptors: Vec::new(), ..sink.clone() }
    }
}
