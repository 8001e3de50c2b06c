//! The sinks that are built in: one file or folder each, one line in [`sinks`] each.

use flumen_pipeline::sink::Sink;
use flumen_pipeline::{BuildError, ComponentSpec, EncoderLink, Options};

pub mod console;
pub(crate) mod encode;
pub mod file;
pub mod kafka;
pub mod limits;
pub mod null;

/// A kind of sink that can be named in a pipeline file.
pub struct SinkType {
    /// Its `type`, its description and its options.
    pub spec: ComponentSpec,
    /// What it promises across a crash with these options: `"exactly-once"`, `"at-least-once"` or
    /// `"at-most-once"`. Shown by `flumen check`.
    pub delivery: fn(&Options) -> &'static str,
    /// Makes one from options that were checked against `spec`. Touches nothing outside the process.
    pub build: fn(&Options) -> Result<Box<dyn Sink>, BuildError>,
    /// How it encodes with a codec, if it can.
    pub codec: Option<SinkCodec>,
}

/// A sink that encodes with a codec, if one is given to it.
pub struct SinkCodec {
    /// Options that the codec takes the place of.
    pub instead_of: &'static [&'static str],
    /// Makes one with a codec, as [`SinkType::build`] does without.
    pub build: BuildWithCodec,
}

/// Makes a sink that encodes with a codec.
pub type BuildWithCodec = fn(&Options, EncoderLink) -> Result<Box<dyn Sink>, BuildError>;

/// All of them, in the order of the docs.
pub fn sinks() -> Vec<SinkType> {
    vec![
        SinkType {
            spec: file::SPEC,
            delivery: |_| "exactly-once",
            build: file::build,
            codec: Some(file::CODEC),
        },
        SinkType {
            spec: kafka::SPEC,
            delivery: kafka::delivery,
            build: kafka::build,
            codec: Some(kafka::CODEC),
        },
        SinkType {
            spec: console::SPEC,
            delivery: |_| "at-least-once",
            build: console::build,
            codec: Some(console::CODEC),
        },
        SinkType { spec: null::SPEC, delivery: |_| "at-least-once", build: null::build, codec: None },
    ]
}
