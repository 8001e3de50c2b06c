//! What a person asks a Kafka cluster at night, and the few changes that he makes.
//!
//! Bottom up: [`link`] (a client that gives up soon and says why), [`brokers`] (each one by name), [`topics`],
//! [`offsets`], [`sizes`], [`groups`], [`transactions`] (read from the coordinator's own topic), [`progress`] (of Flumen's sinks), [`value`] (what a record
//! looks like), and [`check`], which puts them together into findings.
//!
//! Everything here answers within a limit, changes nothing unless its name says so, and never takes the identity
//! of an agent: a check fences nobody.

pub mod brokers;
mod bytes;
pub mod check;
pub mod groups;
pub mod link;
mod native;
pub mod offsets;
pub mod progress;
pub mod sizes;
pub mod topics;
pub mod transactions;
pub mod value;

pub use link::{Link, Trouble};
pub(crate) use native::{admin_client, partition_reader, serve, set_token};
pub use native::{give_token, questioner};
