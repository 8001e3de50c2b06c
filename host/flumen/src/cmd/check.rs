//! `flumen check`: everything that can be known before anything runs.

use std::path::PathBuf;

use flumen_config::{Diagnostic, Sources as ConfigFiles};
use flumen_pipeline::ComponentKind;
use flumen_pipeline::plan::{
    AgentPlan, BridgePlan, ChannelPlan, ErrorPlan, GroupKind, GroupPlan, OnError, PipelinePlan,
};
use flumen_pipeline::reliability::{Reliability, loss_window};
use serde::Serialize;

use crate::agent::{component_errors, open_plugins, pipeline_dir};
use crate::cmd::status::size;
use crate::exit::{Failure, counted};
use crate::journals::Owner;
use crate::memory::{Budget, MemorySum};
use crate::{Output, bridges, cmd, memory, registry, secondaries};

/// Arguments of `flumen check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// flumen.toml, or pipeline and bridge files, or directories of them. Default: flumen.toml in this directory.
    paths: Vec<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    pipelines: Vec<PipelineReport>,
    bridges: Vec<BridgeReport>,
    memory: MemoryReport,
}

#[derive(Debug, Serialize)]
struct MemoryReport {
    /// What pipelines can take at most, each with its parts.
    #[serde(flatten)]
    sum: MemorySum,
    /// What the agent may have, where it is checked.
    max_bytes: Option<u64>,
    /// Who says so.
    max_from: Option<&'static str>,
    /// They may take more than there is.
    warning: Option<String>,
}

#[derive(Debug, Serialize)]
struct BridgeReport {
    name: String,
    file: PathBuf,
    /// `kafka` or `tree`.
    kind: &'static str,
    /// Topics, or producers' directories.
    reads: Vec<String>,
    writes: String,
    bucket: String,
    delivery: &'static str,
}

#[derive(Debug, Serialize)]
struct PipelineReport {
    name: String,
    file: PathBuf,
    durable: bool,
    channels: Vec<ChannelReport>,
    sinks: Vec<SinkReport>,
    groups: Vec<GroupReport>,
    plugins: Vec<PluginReport>,
}

#[derive(Debug, Serialize)]
struct ChannelReport {
    name: String,
    kind: String,
    reliability: &'static str,
    /// What can be lost, and when.
    loss_window: String,
}

#[derive(Debug, Serialize)]
struct GroupReport {
    name: String,
    kind: &'static str,
    sinks: Vec<String>,
    delivery: &'static str,
    /// What that means when a sink fails, in words.
    failures: String,
}

#[derive(Debug, Serialize)]
struct SinkReport {
    name: String,
    kind: String,
    delivery: &'static str,
    /// Why it is less than the sink alone would promise.
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery_because: Option<&'static str>,
    /// What becomes of what it has delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct PluginReport {
    name: String,
    path: PathBuf,
    hash: String,
    on_error: &'static str,
    /// What becomes of events that it fails on, in words.
    failures: String,
}

/// Checks and says what each pipeline promises.
pub fn run(args: Args, output: Output) -> Result<(), Failure> {
    let outcome = check(&args.paths);
    if let (Err(Failure::Config(diagnostics)), Output::Json) = (&outcome, output) {
        cmd::print_json(&serde_json::json!({ "errors": diagnostics }))?;
        return Err(Failure::Reported(crate::exit::CONFIG));
    }
    let report = outcome?;
    if output == Output::Json {
        return cmd::print_json(&report);
    }
    for pipeline in &report.pipelines {
        println!("pipeline {} ({})", pipeline.name, pipeline.file.display());
        if !pipeline.durable {
            println!(
                "  journal      durability = \"os\": a power cut can lose, or bring twice, what was taken in the last half minute"
            );
        }
        for channel in &pipeline.channels {
            let ChannelReport { name, kind, reliability, loss_window } = channel;
            println!("  channel      {name:<16} {reliability} ({kind}): {loss_window}");
        }
        for plugin in &pipeline.plugins {
            println!("  plugin       {:<16} {:.12} {}", plugin.name, plugin.hash, plugin.path.display());
            println!("               {}", plugin.failures);
        }
        for sink in &pipeline.sinks {
            let why = sink.delivery_because.map(|why| format!(": {why}")).unwrap_or_default();
            println!("  sink         {:<16} {} ({}){why}", sink.name, sink.delivery, sink.kind);
            sink.note.iter().for_each(|note| println!("               {note}"));
        }
        for group in &pipeline.groups {
            let GroupReport { name, kind, sinks, delivery, failures } = group;
            println!("  group        {name:<16} {delivery} ({kind} of {})", sinks.join(", "));
            println!("               {failures}");
        }
        let memory = report.memory.sum.pipelines.iter().find(|memory| memory.pipeline == pipeline.name);
        if let Some(memory) = memory {
            println!("  memory       {:<16} at most: {}", size(memory.bytes), memory.largest());
        }
    }
    for bridge in &report.bridges {
        let BridgeReport { kind, writes, bucket, delivery, .. } = bridge;
        println!("bridge {} ({})", bridge.name, bridge.file.display());
        println!("  source       {:<16} {kind}", bridge.reads.join(", "));
        println!("  sink         {writes}  {delivery} (a bucket for each {bucket}, whole with _SUCCESS)");
    }
    if !report.pipelines.is_empty() {
        print_memory(&report.memory);
    }
    let pipelines = counted(report.pipelines.len(), "pipeline");
    match report.bridges.len() {
        0 => println!("{pipelines}, no errors"),
        bridges => println!("{pipelines}, {}, no errors", counted(bridges, "bridge")),
    }
    Ok(())
}

/// What all pipelines may take together, of what there is.
fn print_memory(memory: &MemoryReport) {
    if let (Some(max_bytes), Some(from)) = (memory.max_bytes, memory.max_from) {
        let (sum, max) = (size(memory.sum.bytes), size(max_bytes));
        println!("memory of all pipelines: {sum} at most, of {max} ({from})");
    }
    memory.warning.iter().for_each(|warning| println!("warning: {warning}"));
}

fn check(paths: &[PathBuf]) -> Result<Report, Failure> {
    let (plan, files) = cmd::load(paths)?;
    let mut wrong = component_errors(&plan, &files);
    wrong.extend(file_errors(&plan, &files));
    wrong.extend(left_behind(&plan, &files));
    wrong.extend(bridges::errors(&plan, &files));
    wrong.extend(bridges::file_errors(&plan, &files));
    // Where the user's commands keep theirs, and the agent's is looked at: a large plugin takes seconds. Without such a place a check
    // compiles into a directory of its own.
    let scratch = cmd::Scratch::new()?;
    let others = vec![plan.data_dir.join(crate::agent::CACHE_DIR)];
    let own =
        cmd::plugin::cache_dir().ok().and_then(|dir| cmd::plugin::one_command(dir, others.clone()).ok());
    let host = own.map_or_else(|| cmd::plugin::one_command(scratch.path().join("compiled"), others), Ok)?;
    let bridges = plan.bridges.iter().map(bridge_report).collect();
    let mut report = Report { pipelines: Vec::new(), bridges, memory: memory_report(&plan) };
    for pipeline in &plan.pipelines {
        let opened = open_plugins(&host, pipeline, &plan.plugin_dir, &files, &mut wrong);
        let plugins = opened.all().map(|slot| {
            let (status, errors) = (slot.status(), &slot.plan().errors);
            let (on_error, failures) = (errors.action.word(), failures(errors));
            PluginReport { name: status.name, path: status.path, hash: status.hash, on_error, failures }
        });
        let sink = |(sink, slot): (&flumen_pipeline::plan::SinkPlan, &Option<_>)| {
            let (delivery, delivery_because) = registry::delivery(pipeline, sink, slot.as_deref());
            let plugin = sink.plugin.as_ref().map(|plugin| format!("plugin {}", plugin.plugin));
            let kind = plugin.unwrap_or_else(|| sink.kind.clone());
            let note = registry::note(sink);
            SinkReport { name: sink.name.clone(), kind, delivery, delivery_because, note }
        };
        let sinks: Vec<SinkReport> = pipeline.sinks.iter().zip(&opened.deliver).map(sink).collect();
        report.pipelines.push(PipelineReport {
            name: pipeline.name.clone(),
            file: pipeline.file.clone(),
            durable: pipeline.journal.durable,
            channels: pipeline.channels.iter().map(|channel| channel_report(channel, pipeline)).collect(),
            groups: pipeline.groups.iter().map(|group| group_report(group, &sinks)).collect(),
            sinks,
            plugins: plugins.collect(),
        });
    }
    if wrong.is_empty() { Ok(report) } else { Err(Failure::Config(wrong)) }
}

fn memory_report(plan: &AgentPlan) -> MemoryReport {
    let (sum, budget) = (MemorySum::of(plan), Budget::of(plan, memory::limit()));
    MemoryReport {
        warning: budget.and_then(|budget| memory::warning(plan, budget, &sum)),
        max_bytes: budget.map(|budget| budget.max_bytes),
        max_from: budget.map(|budget| budget.from),
        sum,
    }
}

fn channel_report(channel: &ChannelPlan, pipeline: &PipelinePlan) -> ChannelReport {
    ChannelReport {
        name: channel.name.clone(),
        kind: channel.kind.word().to_owned(),
        reliability: Reliability::of(&channel.kind).word(),
        loss_window: loss_window(channel, pipeline.journal.durable),
    }
}

/// A group promises the least that its sinks do.
fn group_report(group: &GroupPlan, sinks: &[SinkReport]) -> GroupReport {
    let members = || sinks.iter().filter(|sink| group.sinks.contains(&sink.name));
    let with = |promise: &str| members().find(|sink| sink.delivery == promise).map(|sink| sink.name.as_str());
    let (delivery, failures) = match (with("at-most-once"), with("at-least-once")) {
        (Some(sink), _) => ("at-most-once", format!("the sink {sink} may lose what it has when it fails")),
        (None, Some(sink)) => {
            let reason = format!(
                "what the sink {sink} has when it fails may come twice; what others have waits for them"
            );
            ("at-least-once", reason)
        }
        (None, None) => {
            let reason = "what a sink has when it fails waits until its destination says whether it is there (a plugin's until the plugin has \
                          delivered it); all else goes to the others, and stays in the channel until then";
            ("exactly-once", reason.to_owned())
        }
    };
    let kind = match group.kind {
        GroupKind::Failover => "failover",
        GroupKind::LoadBalancing(_) => "load-balancing",
    };
    GroupReport { name: group.name.clone(), kind, sinks: group.sinks.clone(), delivery, failures }
}

/// What becomes of the events that a plugin fails on.
fn failures(errors: &ErrorPlan) -> String {
    const BELOW: &str = "events that it fails on go to quarantine";
    let ErrorPlan { action, events_percent, batches_percent, window, events_min } = errors;
    let above = match action {
        OnError::Quarantine => return BELOW.into(),
        OnError::Stop => "events wait until there is another version of it",
        OnError::Bypass => "events pass it by unchanged",
    };
    let window_s = window.as_secs_f64();
    format!(
        "{BELOW}; above {events_percent} % of the events or {batches_percent} % of the batches of {window_s} s (at least {events_min} events) {above}"
    )
}

fn bridge_report(plan: &BridgePlan) -> BridgeReport {
    let text = |table: &str, option: &str| {
        plan.tables.get(table).and_then(|options| options.text_opt(option)).unwrap_or_default().to_owned()
    };
    let list = |table: &str, option: &str| {
        plan.tables.get(table).and_then(|options| options.list_opt(option)).map(<[String]>::to_vec)
    };
    let (kind, reads) = match list("kafka", "topics") {
        Some(topics) => ("kafka", topics),
        None => ("tree", list("tree", "producers").unwrap_or_default()),
    };
    BridgeReport {
        name: plan.name.clone(),
        file: plan.file.clone(),
        kind,
        reads,
        writes: text("bridge", "path"),
        bucket: text("bridge", "bucket"),
        // Each record once, in its bucket or late: whatever was killed is made again with the same bytes.
        delivery: "exactly-once",
    }
}

/// Failovers that a start would leave with events in them.
fn left_behind(plan: &AgentPlan, files: &ConfigFiles) -> Vec<Diagnostic> {
    let of = |pipeline: &PipelinePlan| {
        let dir = pipeline_dir(&plan.data_dir, &pipeline.name);
        let owner = Owner { agent: &plan.name, plan: pipeline, dir: &dir, before: None };
        let (channel, error) = secondaries::left_behind(&owner)?;
        Some(files.diagnostic_for(&pipeline.name, ComponentKind::Channel, &channel, &error))
    };
    plan.pipelines.iter().filter_map(of).collect()
}

/// Files that options name and that are not there, or not what they should be.
fn file_errors(plan: &AgentPlan, files: &ConfigFiles) -> Vec<Diagnostic> {
    let mut wrong = Vec::new();
    for pipeline in &plan.pipelines {
        let sources =
            pipeline.sources.iter().map(|source| (ComponentKind::Source, &source.name, &source.options));
        let sinks = pipeline.sinks.iter().map(|sink| (ComponentKind::Sink, &sink.name, &sink.options));
        for (kind, name, options) in sources.chain(sinks) {
            if let Err(error) = registry::check_files(options) {
                wrong.push(files.diagnostic_for(&pipeline.name, kind, name, &error));
            }
        }
        for channel in &pipeline.channels {
            if let Err(error) = registry::check_failover_files(channel) {
                let (kind, name) = (ComponentKind::Channel, &channel.name);
                wrong.push(files.diagnostic_for(&pipeline.name, kind, name, &error));
            }
        }
    }
    wrong
}
