//! Sources, and the list of their types.

pub mod generator;
pub mod kafka;
pub mod stdin;
pub mod tail;

use flumen_pipeline::{BuildError, ComponentSpec, Options, Source};

/// A type of source: what `type = "…"` names in a pipeline.
#[derive(Debug, Clone, Copy)]
pub struct SourceType {
    /// Its name and options.
    pub spec: ComponentSpec,
    /// Builds one from checked options. Touches neither files nor network: that is `run`'s work.
    pub build: fn(&Options) -> Result<Box<dyn Source>, BuildError>,
}

/// Every source there is.
pub fn sources() -> Vec<SourceType> {
    vec![
        SourceType { spec: tail::SPEC, build: tail::build },
        SourceType { spec: generator::SPEC, build: generator::build },
        SourceType { spec: stdin::SPEC, build: stdin::build },
        SourceType { spec: kafka::SPEC, build: kafka::build },
    ]
}

/// Nanoseconds since the Unix epoch: the time of events whose text has not been parsed yet.
pub(crate) fn now_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Nanoseconds since `start`, for counters.
pub(crate) fn elapsed_ns(start: std::time::Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
