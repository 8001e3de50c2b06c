//! `flumen check`: everything that can be known before anything runs.

use std::path::PathBuf;

use flumen_config::{Diagnostic, Sources as ConfigFiles};
use flumen_pipeline::ComponentKind;
use flumen_pipeline::plan::{AgentPlan, BridgePlan, ErrorPlan, OnError};
use flumen_plugin::{HostConfig, PluginHost};
use serde::Serialize;

use crate::agent::{component_errors, open_plugins};
use crate::exit::{Failure, counted};
use crate::{Output, bridges, cmd, registry};

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
    sinks: Vec<SinkReport>,
    plugins: Vec<PluginReport>,
}

#[derive(Debug, Serialize)]
struct SinkReport {
    name: String,
    kind: String,
    delivery: &'static str,
    /// Why it is less than the sink alone would promise.
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery_because: Option<&'static str>,
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
                "  journal      durability = \"os\": a power cut can lose what was taken in the last half minute"
            );
        }
        for plugin in &pipeline.plugins {
            println!("  plugin       {:<16} {:.12} {}", plugin.name, plugin.hash, plugin.path.display());
            println!("               {}", plugin.failures);
        }
        for sink in &pipeline.sinks {
            let why = sink.delivery_because.map(|why| format!(": {why}")).unwrap_or_default();
            println!("  sink         {:<16} {} ({}){why}", sink.name, sink.delivery, sink.kind);
        }
    }
    for bridge in &report.bridges {
        let BridgeReport { kind, writes, bucket, delivery, .. } = bridge;
        println!("bridge {} ({})", bridge.name, bridge.file.display());
        println!("  source       {:<16} {kind}", bridge.reads.join(", "));
        println!("  sink         {writes}  {delivery} (a bucket for each {bucket}, whole with _SUCCESS)");
    }
    let pipelines = counted(report.pipelines.len(), "pipeline");
    match report.bridges.len() {
        0 => println!("{pipelines}, no errors"),
        bridges => println!("{pipelines}, {}, no errors", counted(bridges, "bridge")),
    }
    Ok(())
}

fn check(paths: &[PathBuf]) -> Result<Report, Failure> {
    let (plan, files) = cmd::load(paths)?;
    let mut wrong = component_errors(&plan, &files);
    wrong.extend(file_errors(&plan, &files));
    wrong.extend(bridges::errors(&plan, &files));
    wrong.extend(bridges::file_errors(&plan, &files));
    // A check leaves nothing behind, so it compiles into a directory of its own.
    let cache = cmd::Scratch::new()?;
    let config = HostConfig { cache_dir: cache.path().to_path_buf(), watch: false };
    let host =
        PluginHost::new(config).map_err(|error| anyhow::anyhow!("cannot start the plugin host: {error}"))?;
    let bridges = plan.bridges.iter().map(bridge_report).collect();
    let mut report = Report { pipelines: Vec::new(), bridges };
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
            SinkReport { name: sink.name.clone(), kind, delivery, delivery_because }
        };
        report.pipelines.push(PipelineReport {
            name: pipeline.name.clone(),
            file: pipeline.file.clone(),
            durable: pipeline.journal.durable,
            sinks: pipeline.sinks.iter().zip(&opened.deliver).map(sink).collect(),
            plugins: plugins.collect(),
        });
    }
    if wrong.is_empty() { Ok(report) } else { Err(Failure::Config(wrong)) }
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
    }
    wrong
}
