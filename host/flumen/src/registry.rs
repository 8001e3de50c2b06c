//! Which components there are: the one place where their specs meet the configuration.

use flumen_builtin::{bridge, sinks, sources};
use flumen_config::Registry;
use flumen_pipeline::plan::{SinkPlan, SourcePlan};
use flumen_pipeline::{BuildError, Sink, Source};

/// The specs, for the configuration.
pub fn registry() -> Registry {
    Registry {
        sources: sources::sources().into_iter().map(|source| source.spec).collect(),
        sinks: sinks::sinks().into_iter().map(|sink| sink.spec).collect(),
        bridge: bridge::TABLES.to_vec(),
    }
}

/// Builds a source of the plan.
pub fn build_source(plan: &SourcePlan) -> Result<Box<dyn Source>, BuildError> {
    let found = sources::sources().into_iter().find(|source| source.spec.kind == plan.kind);
    (found.ok_or_else(|| unknown(&plan.kind))?.build)(&plan.options)
}

/// Builds a sink of the plan.
pub fn build_sink(plan: &SinkPlan) -> Result<Box<dyn Sink>, BuildError> {
    let found = sinks::sinks().into_iter().find(|sink| sink.spec.kind == plan.kind);
    (found.ok_or_else(|| unknown(&plan.kind))?.build)(&plan.options)
}

/// What a sink of the plan promises.
pub fn delivery(plan: &SinkPlan) -> &'static str {
    let found = sinks::sinks().into_iter().find(|sink| sink.spec.kind == plan.kind);
    found.map_or("unknown", |sink| (sink.delivery)(&plan.options))
}

fn unknown(kind: &str) -> BuildError {
    BuildError::new("type", format!("there is no {kind:?}"), "see `flumen schema`")
}
