//! The plugin host: WebAssembly components between a pipeline's batches.
//!
//! ```text
//! file -> PluginFile -> (cache | compile) -> abi::shape -> abi::link -> PluginVersion -> instances
//!                                                                        ^ PluginSlot swaps it when the file changes
//! ```
//!
//! This is the only crate that knows of the engine, and nothing in its public interface shows it. A plugin is
//! untrusted: it has a deadline that ends in a trap, a memory cap, an answer cap, and neither files nor environment; what it
//! answers is checked before it is used. Whatever it does costs one instance: the batch is tried again, then bisected, and
//! only the guilty rows leave the flow ([`Quarantined`](flumen_pipeline::Quarantined)).

mod abi;
mod alone;
pub mod answer;
mod byte_isolation;
mod cache;
pub mod cases;
mod codec;
pub mod codec_answer;
pub mod codec_cases;
mod encode;
mod engine;
mod error;
mod failure;
mod file;
mod hashes;
mod host;
mod inspect;
mod isolation;
pub mod limits;
mod options;
mod outside;
mod probation;
mod services;
mod shadow;
mod sink;
mod sink_alone;
pub mod sink_cases;
mod spares;
mod start;
mod stats;
mod swap;
mod ticker;
mod version;
mod watch;

pub use abi::{Description, Outcome, Reads, Role};
pub use alone::Alone;
pub use error::{CacheError, HostError, LoadError};
pub use file::FileKind;
pub use flumen_egress::{EgressStats, Failure as EgressFailure, Request, Response, SettingsError};
pub use host::{HostConfig, PluginHost};
pub use inspect::{Inspection, StartCost};
pub use options::OptionError;
pub use outside::Outside;
pub use shadow::{Difference, ShadowBounds, ShadowError, ShadowReport};
pub use sink::PluginSink;
pub use sink_alone::{SinkAlone, SinkFailure};
pub use start::{Names, StartError, started};
pub use stats::{GuestMetric, LastFailure, PluginStats};
pub use swap::{PluginSlot, SlotStatus, SwapOutcome};
pub use version::PluginVersion;
