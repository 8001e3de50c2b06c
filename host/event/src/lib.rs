//! The batch: a table of events, one column per field.
//!
//! A batch is the only unit that moves between the parts of Flumen, is stored in
//! the journal or enters a plugin's sandbox. This crate holds its shape, the
//! identity of events, the difference that a plugin answers with, the byte layout
//! of the journal, and the limits of all of them.
//!
//! Constraints: no I/O, no async, no clock. In memory a batch is arrow-rs arrays;
//! rows are moved with arrow's kernels, none are written here.

mod batch;
mod builder;
mod difference;
pub mod layout;
pub mod limits;

pub use batch::{Batch, BatchError, HeaderColumn};
pub use builder::BatchBuilder;
pub use difference::{Applied, ApplyError, Difference, Rejection};

/// Where an event was read; the same after every restart and redelivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// What was read: one incarnation of a file, a topic's partition, a generator's run.
    pub stream: u64,
    /// Where in it: a byte offset, a Kafka offset, a sequence number.
    pub position: u64,
}
