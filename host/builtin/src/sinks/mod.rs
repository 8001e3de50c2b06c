//! The sinks that are built in: one file or folder each, one line in [`sinks`] each.

use flumen_pipeline::sink::Sink;
use flumen_pipeline::{BuildError, ComponentSpec, Options};

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
}

/// All of them, in the order of the docs.
pub fn sinks() -> Vec<SinkType> {
    vec![
        SinkType { spec: file::SPEC, delivery: |_| "exactly-once", build: file::build },
        SinkType { spec: kafka::SPEC, delivery: kafka::delivery, build: kafka::build },
        SinkType { spec: console::SPEC, delivery: |_| "at-least-once", build: console::build },
        SinkType { spec: null::SPEC, delivery: |_| "at-least-once", build: null::build },
    ]
}
