//! The journal: the one place of truth of a pipeline.
//!
//! Everything changes by one kind of atomic commit: events that enter channels, positions of
//! streams, acknowledgements of readers, and what plugins remember. All of it, or none of it.
//!
//! Constraints: synchronous, no tokio; disk and time are reached through [`Disk`] and [`Clock`] alone.
//! The trait is [`Journal`]; the implementation here is [`mod@file`]; [`inspect`] reads its files for tools.

mod api;
mod clock;
mod disk;
pub mod file;
pub mod inspect;
pub mod limits;
mod state;
mod view;

pub use api::*;
pub use clock::{Clock, OsClock};
pub use disk::{Disk, DiskFile, DiskLock, OsDisk};
pub use file::{Durability, FileConfig, FileJournal, OpenError};
pub use state::{ByteColumn, StateOp, StateSize, StateStore, StateWrite, StateWrites, state_bytes};
pub use view::MemoryState;
