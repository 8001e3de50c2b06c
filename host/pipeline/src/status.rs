//! The figures of a pipeline as plain, serialisable values: what `flumen status` prints.

use std::collections::BTreeMap;

use flumen_journal::{ChannelStatus, JournalStatus, MemoryFigures};
use serde::{Deserialize, Serialize};

use crate::deliver::OutletState;
use crate::feed::{Feed, FeedState};
use crate::group::GroupStatus;
use crate::kept::JobReport;
use crate::metrics::{ComponentMetrics, Metric};
use crate::plan::PipelinePlan;
use crate::reliability::{self, Reliability};
use crate::selector::Left;

/// One pipeline.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PipelineStatus {
    /// Its name.
    pub name: String,
    /// Its file.
    pub file: String,
    /// Why it cannot go on.
    pub failure: Option<String>,
    /// Its sources.
    pub sources: Vec<ComponentStatus>,
    /// Files that are put in again because an operator asked for it, as long as that takes.
    #[serde(default)]
    pub backfills: Vec<BackfillStatus>,
    /// The interceptors between sources and channels, in order.
    pub interceptors: Vec<ComponentStatus>,
    /// The codecs of its sources and sinks.
    pub codecs: Vec<ComponentStatus>,
    /// Its channels, the quarantine's last.
    pub channels: Vec<ChannelFigures>,
    /// Its sinks.
    pub sinks: Vec<SinkStatus>,
    /// Its sink groups.
    #[serde(default)]
    pub groups: Vec<GroupStatus>,
    /// Its journal.
    pub journal: JournalFigures,
    /// Its quarantine.
    pub quarantine: QuarantineStatus,
}

/// A source, an interceptor or a sink.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ComponentStatus {
    /// Its name in the pipeline.
    pub name: String,
    /// `running`, `retrying`, `ended` or `failed`; a source that waits for a full channel: `busy`, for the agent's memory budget: `held`; an interceptor over its error budget: `failing`, `holding` or `bypassed`.
    pub state: String,
    /// Why it is not working now.
    pub error: Option<String>,
    /// How long it has not been working, in seconds, whatever the reasons were.
    pub error_for_s: Option<f64>,
    /// Every metric of its kind ([`Metric`]).
    pub metrics: BTreeMap<String, u64>,
}

/// A backfill under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackfillStatus {
    /// As the source whose way its events go; its figures are those of the backfill alone, since the agent started.
    #[serde(flatten)]
    pub component: ComponentStatus,
    /// The file that is being read.
    pub file: String,
    /// Its number, from 1.
    pub file_number: u64,
    /// How many files there are.
    pub files: u64,
    /// Events that were put, also before the agent started.
    pub events: u64,
}

/// A sink and its own interceptors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SinkStatus {
    /// The sink.
    #[serde(flatten)]
    pub component: ComponentStatus,
    /// Its interceptors.
    pub interceptors: Vec<ComponentStatus>,
}

/// A channel.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChannelFigures {
    /// Its name.
    pub name: String,
    /// Events ever put.
    pub head: u64,
    /// Events that some reader has not acknowledged.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The fuller of events and bytes, in percent of its capacity.
    pub fill_percent: f64,
    /// Seconds since the oldest unacknowledged event was committed.
    pub oldest_unacknowledged_s: Option<f64>,
    /// Cursor of each reader.
    pub readers: BTreeMap<String, u64>,
    /// What it makes of its flow: `end-to-end`, `store-on-failure` or `best-effort`.
    #[serde(default)]
    pub reliability: String,
    /// What can be lost, and when, in words.
    #[serde(default)]
    pub loss_window: String,
    /// Events that would be lost if the agent died now.
    #[serde(default)]
    pub events_at_risk: u64,
    /// Events that were in memory when the agent died before this start.
    #[serde(default)]
    pub events_lost: u64,
    /// Events that were dropped because the channel was full, since the start.
    #[serde(default)]
    pub events_dropped: u64,
    /// Events that went to the file because the memory was full, since the start.
    #[serde(default)]
    pub events_overflowed: u64,
}

/// The journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JournalFigures {
    /// Number of the last durable commit.
    pub last_commit: u64,
    /// Commits made durable since the start.
    pub commits: u64,
    /// Syncs since the start.
    pub syncs: u64,
    /// Bytes written since the start.
    pub bytes_written: u64,
    /// Nanoseconds spent encoding and checksumming.
    pub encode_ns: u64,
    /// Nanoseconds spent writing.
    pub write_ns: u64,
    /// Nanoseconds spent syncing.
    pub sync_ns: u64,
    /// Segments on disk.
    pub segments: u64,
    /// Their bytes.
    pub segment_bytes: u64,
    /// Commits lost to damage.
    pub damaged_commits: u64,
    /// Blocks of what plugins remember that were lost to damage.
    #[serde(default)]
    pub damaged_state_blocks: u64,
    /// Why puts wait now.
    pub waiting_for: Option<String>,
    /// Where events go of a journal that can fail over: `primary` or (Kafka) `shared`; the kind of the failover; `returning`; or
    /// `opening` while it is not known, because the failover was not reached.
    pub failover: Option<String>,
    /// How often events began to go to the failover since the start.
    pub failovers: u64,
    /// Events that are there, of those of the channels.
    #[serde(default)]
    pub failover_events: u64,
    /// What plugins remember.
    #[serde(default)]
    pub state: Vec<StateFigures>,
}

/// What one plugin remembers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StateFigures {
    /// Its name in the pipeline; behind `#`: what the host remembers of it.
    pub plugin: String,
    /// Keys, with those that have expired and are not yet swept.
    pub keys: u64,
    /// Memory that they take.
    pub bytes: u64,
}

/// The quarantine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QuarantineStatus {
    /// Events in it.
    pub events: u64,
    /// Events that expired since the start because it was full.
    pub expired: u64,
    /// Jobs of its operator: under way, and ended not long ago.
    pub jobs: Vec<JobReport>,
}

/// The word of a feed's state.
pub fn feed_word(state: FeedState) -> &'static str {
    match state {
        FeedState::Running => "running",
        FeedState::Retrying => "retrying",
        FeedState::Ended => "ended",
        FeedState::Failed => "failed",
        FeedState::Busy => "busy",
        FeedState::Held => "held",
    }
}

/// Figures of a source, and of what its selector left out.
pub fn source(feed: &Feed) -> ComponentStatus {
    let mut status = component(&feed.metrics, feed_word(feed.state()));
    let Left { skipped, unrouted } = feed.left();
    let skipped = skipped.into_iter();
    let skipped =
        skipped.map(|(channel, events)| (format!("optional channel {channel}/skipped_events"), events));
    status.metrics.extend(skipped);
    if unrouted > 0 {
        status.metrics.insert("selector/unrouted_events".to_owned(), unrouted);
    }
    if let Some(busy) = feed.busy() {
        status.metrics.insert(format!("waits for the full channel {}/events", busy.channel), busy.events);
    }
    status
}

/// The word of an outlet's state.
pub fn outlet_word(state: OutletState) -> &'static str {
    match state {
        OutletState::Running => "running",
        OutletState::Retrying => "retrying",
        OutletState::Ended => "ended",
        OutletState::Failed => "failed",
    }
}

/// Figures of a component.
pub fn component(metrics: &ComponentMetrics, state: &str) -> ComponentStatus {
    ComponentStatus {
        name: metrics.name.to_string(),
        state: state.to_string(),
        error: metrics.error(),
        error_for_s: metrics.error_for().map(|since| since.as_secs_f64()),
        metrics: Metric::ALL
            .iter()
            .filter(|metric| metric.component() == metrics.kind)
            .map(|&metric| (metric.name().to_string(), metrics.get(metric)))
            .chain(metrics.gauges())
            .collect(),
    }
}

/// Figures of all channels of a journal.
pub fn channels(plan: &PipelinePlan, journal: &JournalStatus) -> Vec<ChannelFigures> {
    journal.channels.iter().map(|status| channel(plan, journal, status)).collect()
}

fn channel(plan: &PipelinePlan, journal: &JournalStatus, status: &ChannelStatus) -> ChannelFigures {
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 * 100.0 };
    // A channel in memory and a failover in memory both have some.
    let memory: Vec<_> = journal.memory.iter().filter(|memory| memory.channel == status.name).collect();
    let events = |of: fn(&MemoryFigures) -> u64| -> u64 { memory.iter().map(|memory| of(memory)).sum() };
    // The quarantine is always in a file.
    let planned = plan.channels.iter().find(|planned| planned.name == status.name);
    let reliability = planned.map_or(Reliability::EndToEnd, |planned| Reliability::of(&planned.kind));
    let loss_window = planned.map(|planned| reliability::loss_window(planned, plan.journal.durable));
    ChannelFigures {
        name: status.name.clone(),
        head: status.head,
        events: status.events,
        bytes: status.bytes,
        fill_percent: share(status.events, status.capacity_events)
            .max(share(status.bytes, status.capacity_bytes)),
        oldest_unacknowledged_s: status.oldest_unacknowledged_s,
        readers: status.readers.iter().cloned().collect(),
        reliability: reliability.word().to_owned(),
        loss_window: loss_window.unwrap_or_default(),
        events_at_risk: events(|memory| memory.events_at_risk),
        events_lost: events(|memory| memory.lost),
        events_dropped: events(|memory| memory.dropped),
        events_overflowed: events(|memory| memory.overflowed),
    }
}

/// Figures of a journal.
pub fn journal(status: &JournalStatus) -> JournalFigures {
    JournalFigures {
        last_commit: status.last_commit,
        commits: status.commits,
        syncs: status.syncs,
        bytes_written: status.bytes_written,
        encode_ns: status.encode_ns,
        write_ns: status.write_ns,
        sync_ns: status.sync_ns,
        segments: status.segments,
        segment_bytes: status.segment_bytes,
        damaged_commits: status.damaged_commits,
        damaged_state_blocks: status.damaged_state_blocks,
        waiting_for: status.waiting_for.clone(),
        failover: status.failover.clone(),
        failovers: status.failovers,
        failover_events: status.failover_events,
        state: status
            .state
            .iter()
            .map(|size| StateFigures { plugin: size.plugin.clone(), keys: size.keys, bytes: size.bytes })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{BatchPlan, JournalPlan};

    #[test]
    fn what_is_in_memory_of_a_channel_and_of_its_failover_is_at_risk() {
        let plan = PipelinePlan {
            name: "web".into(),
            file: "web.toml".into(),
            sources: Vec::new(),
            interceptors: Vec::new(),
            interceptor_threads: 1,
            channels: Vec::new(),
            sinks: Vec::new(),
            groups: Vec::new(),
            batch: BatchPlan::default(),
            journal: JournalPlan::default(),
        };
        let figures = |channel: &str, events_at_risk, lost| MemoryFigures {
            channel: channel.into(),
            events_at_risk,
            lost,
            dropped: 1,
            overflowed: 2,
            ..MemoryFigures::default()
        };
        let journal = JournalStatus {
            channels: vec![ChannelStatus { name: "main".into(), ..ChannelStatus::default() }],
            memory: vec![figures("main", 10, 3), figures("other", 100, 30), figures("main", 20, 4)],
            ..JournalStatus::default()
        };
        let [main] = channels(&plan, &journal).try_into().unwrap();
        assert_eq!((main.events_at_risk, main.events_lost), (30, 7));
        assert_eq!((main.events_dropped, main.events_overflowed), (2, 4));
    }
}
