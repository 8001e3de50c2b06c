//! Sources, and the list of their types.

pub mod generator;
pub mod kafka;
pub mod stdin;
pub mod tail;

use flumen_pipeline::{BuildError, ComponentSpec, DecoderLink, Options, Source};

/// A type of source: what `type = "…"` names in a pipeline.
#[derive(Debug, Clone, Copy)]
pub struct SourceType {
    /// Its name and options.
    pub spec: ComponentSpec,
    /// Builds one from checked options. Touches neither files nor network: that is `run`'s work.
    pub build: fn(&Options) -> Result<Box<dyn Source>, BuildError>,
    /// How it decodes with a codec, if it can.
    pub codec: Option<SourceCodec>,
}

/// A source that decodes with a codec, if one is given to it.
#[derive(Debug, Clone, Copy)]
pub struct SourceCodec {
    /// Options that the codec takes the place of.
    pub instead_of: &'static [&'static str],
    /// Builds one with a codec, as [`SourceType::build`] does without.
    pub build: BuildWithCodec,
}

/// Builds a source that decodes with a codec.
pub type BuildWithCodec = fn(&Options, DecoderLink) -> Result<Box<dyn Source>, BuildError>;

/// Every source there is.
pub fn sources() -> Vec<SourceType> {
    vec![
        SourceType { spec: tail::SPEC, build: tail::build, codec: Some(tail::CODEC) },
        SourceType { spec: generator::SPEC, build: generator::build, codec: None },
        SourceType { spec: stdin::SPEC, build: stdin::build, codec: Some(stdin::CODEC) },
        SourceType { spec: kafka::SPEC, build: kafka::build, codec: Some(kafka::CODEC) },
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
