//! Pipelines: sources, interceptors and sinks around one journal.
//!
//! `source -> interceptors -> commit | channel -> sink interceptors -> sink`
//!
//! Every component runs on a thread of its own; between them are bounded queues, so a slow part
//! holds back the part before it and memory does not grow with the backlog. What is stored where
//! is decided by the journal's commit alone: a source's batch and its position are one commit, a
//! sink's cursor and what its destination holds are one commit.
//!
//! This crate has the traits of the parts ([`Source`], [`Interceptor`], [`Sink`]), the plain values
//! that describe a pipeline ([`plan`]) and the machinery that runs it. It names no concrete component.

pub mod again;
pub mod backfill;
mod budget;
pub mod chain;
pub mod codec;
pub mod component;
pub mod deliver;
pub mod exchange;
pub mod feed;
pub mod group;
pub mod interceptor;
pub mod kept;
pub mod limits;
pub mod memory;
pub mod metrics;
mod pending;
pub mod pipeline;
pub mod plan;
pub mod plan_diff;
pub mod quarantine;
pub mod reliability;
pub mod replay;
pub mod selector;
pub mod sink;
pub mod source;
pub mod state;
pub mod stateful;
pub mod status;

pub use codec::{Decoder, DecoderLink, DecoderSlot, Encoder, EncoderLink, EncoderSlot};
pub use component::{BuildError, ComponentSpec, OptionKind, OptionSpec, Options, Place, Value};
pub use interceptor::{Interceptor, InterceptorVersion, Processed, Quarantined};
pub use memory::{MemoryChange, MemoryGate};
pub use metrics::{ComponentKind, ComponentMetrics, Metric};
pub use pipeline::{Parts, Pipeline, StartError, StopOutcome, channel_specs};
pub use sink::{Cursors, FlushPolicy, Group, Sink, SinkContext, SinkError, Stored};
pub use source::{Emission, Progress, Source, SourceContext, SourceError, Stopped};
