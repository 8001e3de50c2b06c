//! Write Flumen plugins in Rust.
//!
//! A plugin is a component that the agent hands whole batches to: a table with one column per field. It answers with
//! the difference: which rows it keeps and which columns it changed. There are three ways to write one:
//!
//! | trait | sees | for |
//! |---|---|---|
//! | [`Filter`](event::Filter) | one event, answers keep or drop | a filter in seven lines |
//! | [`Interceptor`](event::Interceptor) | one event, edits, splits, rejects it | most plugins |
//! | [`Aggregator`](aggregate::Aggregator) | the columns, and time passing; makes events of its own | counts, windows |
//! | [`BatchInterceptor`](batch::BatchInterceptor) | the columns, without a copy | speed: no work per event that you do not write |
//!
//! ```
//! use flumen_sdk::prelude::*;
//! #[derive(Default)]
//! struct OnlyErrors;
//! impl Filter for OnlyErrors {
//!     fn keep(&mut self, event: Event) -> bool {
//!         event.body().contains_bytes(b" 503 ")
//!     }
//! }
//! flumen_sdk::filter!(OnlyErrors);
//! ```
//!
//! What a plugin calls from [`host`] must be granted by the pipeline (`grant = ["log"]`); what it does not call is not
//! imported by the finished component. Errors that one event is to blame for are rejections of that row; an `Err` from
//! a whole batch makes the host try again and then look for the guilty rows by bisecting.

pub mod abi;
pub mod aggregate;
pub mod batch;
pub mod bytes;
pub mod codec;
pub mod config;
pub mod difference;
pub mod event;
mod export;
pub mod find;
pub mod host;
pub mod http;
pub mod sink;
pub mod state;
pub mod table;
pub mod tcp;
pub mod testing;

#[doc(hidden)]
pub use export::{Slot, native};
#[cfg(feature = "config")]
pub use {serde, serde_json};

/// Everything that a plugin usually names.
pub mod prelude {
    pub use crate::abi::{NumberList, Numbers, Reads};
    pub use crate::batch::{BatchInterceptor, BatchView, Column, HeaderColumn};
    pub use crate::bytes::BytesExt;
    pub use crate::config::Config;
    pub use crate::difference::{ColumnBuilder, Difference, HeaderBuilder, KeptRows};
    pub use crate::event::{Edit, Event, Filter, Interceptor};
    pub use crate::find::{Finder, find_rows};
    pub use crate::host::{clock, log, metrics};
    pub use crate::table::HeaderTable;
    #[cfg(feature = "config")]
    pub use serde::Deserialize;
}
