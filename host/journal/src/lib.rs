//! The journal: the one place of truth of a pipeline.
//!
//! Everything changes by one kind of atomic commit: events that enter channels, positions of
//! streams, acknowledgements of readers, and what plugins remember. All of it, or none of it.
//!
//! Constraints: synchronous, no tokio; disk and time are reached through [`Disk`] and [`Clock`] alone.
//! The trait is [`Journal`]; the implementations here are [`mod@file`], [`memory`] and [`source_backed`], which have a file
//! journal behind them, [`log`], which is in an append-only log that somebody else keeps, and [`failover`], which has two of the others;
//! [`inspect`] reads the files for tools.

mod api;
mod clock;
mod disk;
pub mod failover;
pub mod faults;
pub mod file;
pub mod inspect;
mod keys;
pub mod limits;
pub mod log;
pub mod memory;
pub mod source_backed;
mod state;
mod view;

pub use api::*;
pub use clock::{Clock, OsClock};
pub use disk::{Disk, DiskFile, DiskLock, OsDisk};
pub use file::{Compression, Durability, FileConfig, FileJournal, OpenError};
pub use keys::{Key, KeyError, KeyId, KeyName, Keys};
pub use memory::{MemoryJournal, MemorySpec, WhenFull};
pub use source_backed::SourceBackedJournal;
pub use state::{ByteColumn, StateOp, StateSize, StateStore, StateWrite, StateWrites, state_bytes};
pub use view::MemoryState;
