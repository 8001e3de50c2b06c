//! Flumen's own sources and sinks: one file or folder each.
//!
//! A component declares its options as data and builds itself from checked values; `host/config`
//! reads user text, this crate never does. Adding one is a file and a line in `sources()` or `sinks()`.

pub mod backfill;
pub mod bridge;
pub mod sinks;
pub mod sources;
