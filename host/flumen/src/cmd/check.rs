//! `flumen check`: everything that can be known before anything runs.

use std::path::PathBuf;

use flumen_plugin::{HostConfig, PluginHost};
use serde::Serialize;

use crate::exit::{Failure, counted};
use crate::{Output, cmd, registry};

/// Arguments of `flumen check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// flumen.toml, or pipeline files, or directories of them. Default: flumen.toml in this directory.
    paths: Vec<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    pipelines: Vec<PipelineReport>,
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
}

#[derive(Debug, Serialize)]
struct PluginReport {
    name: String,
    path: PathBuf,
    hash: String,
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
            println!("  journal      durability = \"os\": a power cut can lose what was taken in the last half minute");
        }
        for plugin in &pipeline.plugins {
            println!("  plugin       {:<16} {:.12} {}", plugin.name, plugin.hash, plugin.path.display());
        }
        for sink in &pipeline.sinks {
            println!("  sink         {:<16} {} ({})", sink.name, sink.delivery, sink.kind);
        }
    }
    println!("{}, no errors", counted(report.pipelines.len(), "pipeline"));
    Ok(())
}

fn check(paths: &[PathBuf]) -> Result<Report, Failure> {
    let (plan, files) = cmd::load(paths)?;
    let mut wrong = Vec::new();
    for pipeline in &plan.pipelines {
        let mut note = |component: &str, error| wrong.push(files.diagnostic_for(&pipeline.name, component, &error));
        for source in &pipeline.sources {
            registry::build_source(source).err().into_iter().for_each(|error| note(&source.name, error));
        }
        for sink in &pipeline.sinks {
            registry::build_sink(sink).err().into_iter().for_each(|error| note(&sink.name, error));
        }
    }
    if !wrong.is_empty() {
        return Err(Failure::Config(wrong));
    }
    // A check leaves nothing behind, so it compiles into a directory of its own.
    let cache = cmd::Scratch::new()?;
    let config = HostConfig { cache_dir: cache.path().to_path_buf(), watch: false };
    let host = PluginHost::new(config).map_err(|error| anyhow::anyhow!("cannot start the plugin host: {error}"))?;
    let mut unfit = Vec::new();
    let mut report = Report { pipelines: Vec::new() };
    for pipeline in &plan.pipelines {
        let all = pipeline.interceptors.iter().chain(pipeline.sinks.iter().flat_map(|sink| &sink.interceptors));
        let mut plugins = Vec::new();
        for interceptor in all {
            match host.slot(interceptor.clone(), &plan.plugin_dir) {
                Ok(slot) => {
                    let status = slot.status();
                    plugins.push(PluginReport { name: status.name, path: status.path, hash: status.hash });
                }
                Err(error) => unfit.push(format!("{}: {error}", pipeline.file.display())),
            }
        }
        let sink = |sink: &flumen_pipeline::plan::SinkPlan| SinkReport {
            name: sink.name.clone(),
            kind: sink.kind.clone(),
            delivery: registry::delivery(&sink.kind),
        };
        report.pipelines.push(PipelineReport {
            name: pipeline.name.clone(),
            file: pipeline.file.clone(),
            durable: pipeline.journal.durable,
            sinks: pipeline.sinks.iter().map(sink).collect(),
            plugins,
        });
    }
    if unfit.is_empty() { Ok(report) } else { Err(Failure::Unfit(unfit)) }
}
