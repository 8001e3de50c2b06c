//! Which journal a pipeline's channels need, and opening it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use flumen_journal::failover::{self, DiskProbe, FailoverJournal, FailoverPlan, Parts, SecondaryKind};
use flumen_journal::faults::system_disk;
use flumen_journal::{
    ChannelSpec, FileConfig, FileJournal, Journal, MemoryJournal, MemorySpec, OpenError, OsClock,
    SourceBackedJournal, Unsaved, WhenFull,
};
use flumen_kafka::channel::{JournalOptions, KafkaJournal};
use flumen_kafka::log::{self, LogOptions};
use flumen_pipeline::plan::{ChannelKind, ChannelPlan, PipelinePlan};
use flumen_pipeline::{BuildError, channel_specs, quarantine};

use crate::agent::JOURNAL_DIR;
use crate::exit::Failure;
use crate::faults::FAILOVER_PLACE;
use crate::secondaries;

/// A pipeline, and what its journal has to know beside its plan.
pub struct Owner<'a> {
    /// The agent's name.
    pub agent: &'a str,
    /// The pipeline.
    pub plan: &'a PipelinePlan,
    /// Its directory, where its failover is on record.
    pub dir: &'a Path,
    /// Its plan until now, where this process knows it.
    pub before: Option<&'a PipelinePlan>,
}

/// The journal of a pipeline whose channels are its own. `topic`: its failover, if that is one.
pub fn open_own(
    config: FileConfig,
    owner: &Owner<'_>,
    topic: Option<LogOptions>,
) -> Result<Arc<dyn Journal>, Failure> {
    let plan = owner.plan;
    let (dir, specs) = (config.dir.clone(), channel_specs(plan));
    // The configuration has seen that all are alike.
    let failover = plan.channels.iter().find_map(|channel| channel.failover.clone());
    let opened = match failover {
        None => open_kind(config, plan, specs, None),
        Some(failover) => return open_with_failover(config, owner, failover, specs, topic),
    };
    let journal = opened.map_err(|error| failure(error, &dir))?;
    secondaries::note(owner)?;
    Ok(journal)
}

/// A journal of the kind of the plan's channels. `specs`: of these, and then of the quarantine. `unsaved`: what was in its memory when its
/// disk failed.
fn open_kind(
    config: FileConfig,
    plan: &PipelinePlan,
    specs: Vec<ChannelSpec>,
    unsaved: Option<Unsaved>,
) -> Result<Arc<dyn Journal>, OpenError> {
    let (disk, clock) = (system_disk(JOURNAL_DIR), Arc::new(OsClock));
    let mut specs = specs.into_iter();
    // All channels of a pipeline are of one kind, or in memory in one way.
    if plan.channels.iter().any(|channel| channel.kind == ChannelKind::SourceBacked) {
        let channels = specs.by_ref().take(plan.channels.len()).collect();
        let opened = SourceBackedJournal::open(config, channels, specs.collect(), disk, clock);
        return opened.map(|journal| journal as Arc<dyn Journal>);
    }
    if !plan.channels.iter().any(|channel| channel.kind.is_in_memory()) {
        let opened = FileJournal::open(config, specs.collect(), disk, clock);
        return opened.map(|journal| journal as Arc<dyn Journal>);
    }
    let memory =
        plan.channels.iter().zip(specs.by_ref()).map(|(plan, spec)| memory_spec(plan, spec)).collect();
    // Also where all is in memory: positions that a power cut sets back would bring twice what was delivered.
    let opened = MemoryJournal::reopen(config, memory, specs.collect(), unsaved, disk, clock);
    opened.map(|journal| journal as Arc<dyn Journal>)
}

/// A journal of any kind, with what stands in for it. What is written to `topic` by the agent before is read in its own time: nobody waits for
/// it here.
fn open_with_failover(
    config: FileConfig,
    owner: &Owner<'_>,
    failover: FailoverPlan,
    specs: Vec<ChannelSpec>,
    topic: Option<LogOptions>,
) -> Result<Arc<dyn Journal>, Failure> {
    let plan = owner.plan;
    let channels = specs.iter().map(|spec| failover::channel_spec(&spec.name, &failover)).collect();
    let secondary = match topic {
        Some(topic) => log::open(topic.known(secondaries::goes_on(owner)), channels, config.keys.clone())
            .with_context(|| format!("cannot start the failover of pipeline {} in Kafka", plan.name))?,
        None => {
            let dir = failover.dir.clone().unwrap_or_default().join(&plan.name);
            let elsewhere = FileConfig { dir, ..config.clone() };
            open_secondary(elsewhere, FAILOVER_PLACE, &failover, channels, Vec::new())?
        }
    };
    secondaries::note(owner)?;
    let probe = DiskProbe::new(system_disk(JOURNAL_DIR), config.dir.clone(), config.segment_bytes);
    let (dir, own) = (config.dir.clone(), plan.clone());
    let replaced = dir.join(failover::REPLACED);
    let opened = FailoverJournal::open(Parts {
        name: plan.name.clone(),
        plan: failover,
        dir: dir.clone(),
        opener: Box::new(move |specs, unsaved| open_kind(config.clone(), &own, specs, unsaved)),
        is_replaced: Box::new(move || std::fs::remove_file(&replaced).is_ok()),
        channels: specs,
        late: plan.channels.iter().filter(|channel| channel.kind == ChannelKind::SourceBacked).count(),
        probe: Box::new(move |has_room| probe.is_good(has_room)),
        secondary,
        clock: Arc::new(OsClock),
    });
    opened.map(|journal| journal as Arc<dyn Journal>).map_err(|error| failure(error, &dir))
}

/// What takes the events meanwhile, on this machine. `place`: which journal it is; `others` are in a file in any case.
fn open_secondary(
    config: FileConfig,
    place: &str,
    plan: &FailoverPlan,
    channels: Vec<ChannelSpec>,
    others: Vec<ChannelSpec>,
) -> Result<Arc<dyn Journal>, Failure> {
    let dir = config.dir.clone();
    match plan.kind {
        SecondaryKind::File => {
            return open_file(config, place, channels.into_iter().chain(others).collect());
        }
        // The configuration refuses it where it would come here.
        SecondaryKind::Kafka => {
            let reason = format!("a failover of kind `kafka` is no journal in {}", dir.display());
            return Err(anyhow::anyhow!("{reason}; give it kind = \"file\"").into());
        }
        SecondaryKind::Memory | SecondaryKind::Spillable => {}
    }
    let in_memory = |channel| match plan.kind {
        SecondaryKind::Spillable => overflowing(channel, plan.memory_events, plan.memory_bytes),
        _ => MemorySpec { channel, full: WhenFull::Wait },
    };
    let channels = channels.into_iter().map(in_memory).collect();
    let opened = MemoryJournal::open(config, channels, others, system_disk(place), Arc::new(OsClock));
    opened.map(|journal| journal as Arc<dyn Journal>).map_err(|error| failure(error, &dir))
}

/// The journal on this machine beside a Kafka journal.
pub fn open_beside(
    config: FileConfig,
    owner: &Owner<'_>,
    options: &JournalOptions,
) -> Result<Arc<dyn Journal>, Failure> {
    let quarantine = vec![quarantine::channel_spec()];
    let local = match &options.failover {
        None => open_file(config, JOURNAL_DIR, quarantine)?,
        Some(failover) => {
            let channels = KafkaJournal::local_channels(options);
            open_secondary(config, JOURNAL_DIR, failover, channels, quarantine)?
        }
    };
    secondaries::note(owner)?;
    Ok(local)
}

fn memory_spec(plan: &ChannelPlan, spec: ChannelSpec) -> MemorySpec {
    match plan.kind {
        ChannelKind::Spillable { memory_events, memory_bytes } => {
            overflowing(spec, memory_events, memory_bytes)
        }
        ChannelKind::Memory { drop_after: Some(after) } => {
            MemorySpec { channel: spec, full: WhenFull::Drop(after) }
        }
        _ => MemorySpec { channel: spec, full: WhenFull::Wait },
    }
}

/// A channel that goes to its file, which holds what the channel does, when so much is in memory.
fn overflowing(spec: ChannelSpec, events: u64, bytes: u64) -> MemorySpec {
    let full = WhenFull::Overflow { events: spec.capacity_events, bytes: spec.capacity_bytes };
    let channel = ChannelSpec { capacity_events: events, capacity_bytes: bytes, ..spec };
    MemorySpec { channel, full }
}

/// A file journal. `place`: which one it is, the first word of its steps' names.
pub fn open_file(
    config: FileConfig,
    place: &str,
    channels: Vec<ChannelSpec>,
) -> Result<Arc<dyn Journal>, Failure> {
    let dir = config.dir.clone();
    let opened = FileJournal::open(config, channels, system_disk(place), Arc::new(OsClock));
    opened.map(|journal| journal as Arc<dyn Journal>).map_err(|error| failure(error, &dir))
}

/// A failover on the disk of its channel, which a disk cannot take over from. With the channel's name.
pub fn same_disk(plan: &PipelinePlan, journal: &Path) -> Option<(String, BuildError)> {
    let channel = plan.channels.iter().find(|channel| channel.failover.is_some())?;
    let dir = channel.failover.as_ref()?.dir.as_ref()?;
    if device(dir)? != device(journal)? {
        return None;
    }
    let reason = format!(
        "`dir` of `failover` ({}) is on the disk of the channel itself: it would fail together with it",
        dir.display()
    );
    Some((channel.name.clone(), BuildError::new("failover", reason, "name a directory on another disk")))
}

/// The device that a path is on, or will be.
fn device(path: &Path) -> Option<u64> {
    let path = std::path::absolute(path).ok()?;
    let known = path.ancestors().find_map(|part| std::fs::metadata(part).ok());
    known.map(|metadata| metadata.dev())
}

fn failure(error: OpenError, dir: &Path) -> Failure {
    if matches!(error, OpenError::Locked(_)) {
        return Failure::Locked(crate::agent::locked(dir));
    }
    // Most name a file with its path, and with it the pipeline.
    let is_placed = error.to_string().contains(&dir.display().to_string());
    let error = anyhow::Error::new(error);
    if is_placed {
        error.into()
    } else {
        error.context(format!("opening the journal in {}", dir.display())).into()
    }
}
