//! The pipeline through its public API, with a file journal and parts of its own.
//!
//! The oracle of all of them: every identity exactly once, in the order of its stream. A crash is an
//! image: the disk stops between two operations, and the pipeline is left behind as it is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod backfills;
mod chains;
mod errors;
mod exchange;
mod failures;
mod groups;
mod held;
mod memory;
mod pressure;
mod quarantined;
mod replays;
mod restart;
mod room;
mod selectors;
mod sinks;
mod sources;
mod stateful;
mod stops;
mod support;
