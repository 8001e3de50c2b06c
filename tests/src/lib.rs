//! The harness of the end-to-end tests, and the soak behind `cargo xtask soak`.
//!
//! Everything here goes through the real binary and real files, as a user would: nothing links to the
//! host's crates. A test sets up a [`scene::Scene`] (a directory with configuration, plugins, input
//! and output), starts an [`agent::Agent`], waits for conditions with a deadline ([`poll`]), and asks
//! the [`oracle`] whether every event came exactly once and in order.
//!
//! Constraints: every wait has a deadline; only processes that were started here are signalled; mounts
//! and loop devices are given back on every way out ([`disk`]).

pub mod agent;
pub mod disk;
pub mod failover;
pub mod flow;
pub mod generator;
pub mod http;
pub mod interceptors;
pub mod kafka;
pub mod kill_points;
pub mod limits;
pub mod locate;
pub mod opensearch;
pub mod oracle;
pub mod output;
pub mod poll;
pub mod reload;
pub mod scene;
pub mod soak;
pub mod soak_changes;
pub mod soak_faults;
pub mod soak_kafka;
pub mod soak_tidy;
pub mod status;
