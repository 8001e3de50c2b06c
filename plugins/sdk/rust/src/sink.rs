//! Plugins that deliver: a batch out of the pipeline, into a destination of your own.
//!
//! ```
//! use flumen_sdk::prelude::*;
//! use flumen_sdk::sink::{Outcome, Sink};
//!
//! struct Post {
//!     url: String,
//! }
//!
//! impl Sink for Post {
//!     fn open(config: Config) -> Result<(Self, Reads), String> {
//!         Ok((Self { url: config.as_json().trim_matches('"').to_owned() }, Reads::body()))
//!     }
//!
//!     fn deliver(&mut self, batch: &BatchView, _cursor: &[u8]) -> Result<Outcome, String> {
//!         let lines: Vec<u8> = batch.body().into_iter().flat_map(Column::iter).flatten().copied().collect();
//!         let answer = flumen_sdk::http::post(&self.url).body(lines).send().map_err(|failure| flumen_sdk::http::explain(&failure))?;
//!         match answer.status {
//!             200..300 => Ok(Outcome::Delivered(vec![])),
//!             status => Ok(Outcome::retry(format!("the server says {status}"))),
//!         }
//!     }
//! }
//! flumen_sdk::sink!(Post);
//! ```
//!
//! This one delivers at least once. A destination that can store a few bytes together with the events, in one step, makes
//! it exactly once: see [`Sink::recovers`].

use crate::abi::{Reads, wire};
use crate::batch::BatchView;
use crate::config::Config;
use core::cell::RefCell;

/// What wit-bindgen generates from `wit/0.2.0` for sinks; what both worlds have is the interceptors'.
#[doc(hidden)]
#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit/0.2.0",
        inline: "package flumen:delivering; world sink { export flumen:plugin/delivery@0.2.0; }",
        world: "flumen:delivering/sink",
        pub_export_macro: true,
        export_macro_name: "export_sink",
        default_bindings_module: "flumen_sdk::sink::bindings",
        with: {
            "flumen:plugin/types@0.2.0": crate::abi::bindings::flumen::plugin::types,
        },
    });
}

use bindings::exports::flumen::plugin::delivery as wire_delivery;

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All rows arrived but these, which never will: row numbers with reasons. They go to quarantine.
    ///
    /// A sink that [recovers](Sink::recovers) gives rows here only if it stored **nothing**: the others come again without
    /// them, with the same cursor. So reject before you store.
    Delivered(Vec<(u32, String)>),
    /// Nothing is known to have arrived: the same rows come again.
    Retry {
        /// For a person.
        reason: String,
        /// When; without it at the host's own pace, which slows down.
        after_ms: Option<u32>,
    },
}

impl Outcome {
    /// Again, at the host's pace.
    pub fn retry(reason: impl Into<String>) -> Self {
        Outcome::Retry { reason: reason.into(), after_ms: None }
    }
}

/// A plugin that delivers. Register it with [`sink!`](crate::sink!).
pub trait Sink: Sized {
    /// JSON Schema of the configuration: `flumen check` holds the pipeline's file against it before anything runs.
    /// Empty: any configuration, until `open` says otherwise.
    const OPTIONS: &'static str = "";

    /// Reads the configuration and says which columns to pass.
    fn open(config: Config) -> Result<(Self, Reads), String>;

    /// True: `deliver` stores the cursor with the batch in one step, and `recover` gives it back; every event arrives
    /// exactly once. A request that got no answer may still be carried out late, so let the destination refuse a batch
    /// that does not follow the cursor it has.
    fn recovers(&self) -> bool {
        false
    }

    /// The cursor that the destination has; `None`: it has none. Called before the first batch and whenever it is not known
    /// whether a batch arrived. Only if the sink `recovers`.
    fn recover(&mut self) -> Result<Option<Vec<u8>>, String> {
        Ok(None)
    }

    /// Delivers a batch. `cursor` stands for everything up to the end of this batch. After an `Err` nobody knows what
    /// arrived: the instance is dropped, a fresh one is opened and asked for its cursor.
    fn deliver(&mut self, batch: &BatchView, cursor: &[u8]) -> Result<Outcome, String>;
}

/// Where the one instance of a sink lives between calls.
#[doc(hidden)]
pub struct SinkSlot<T> {
    sink: RefCell<Option<T>>,
}

impl<T: Sink> SinkSlot<T> {
    pub const fn new() -> Self {
        Self { sink: RefCell::new(None) }
    }

    pub fn open(&self, config: String) -> Result<wire_delivery::Opened, String> {
        let (sink, reads) = T::open(Config::new(config))?;
        let recovers = sink.recovers();
        self.sink.replace(Some(sink));
        Ok(wire_delivery::Opened { reads: reads.into_wire(), recovers })
    }

    pub fn recover(&self) -> Result<Option<Vec<u8>>, String> {
        self.with(T::recover)
    }

    pub fn deliver(&self, batch: wire::Batch, cursor: Vec<u8>) -> Result<wire_delivery::Outcome, String> {
        let batch = BatchView::new(batch);
        let outcome = self.with(|sink| sink.deliver(&batch, &cursor))?;
        Ok(match outcome {
            Outcome::Delivered(rejected) => {
                let rejected = rejected.into_iter().map(|(row, reason)| wire::Rejection { row, reason });
                wire_delivery::Outcome::Delivered(rejected.collect())
            }
            Outcome::Retry { reason, after_ms } => {
                wire_delivery::Outcome::Retry(wire_delivery::Later { reason, after_ms })
            }
        })
    }

    fn with<R>(&self, call: impl FnOnce(&mut T) -> Result<R, String>) -> Result<R, String> {
        match self.sink.borrow_mut().as_mut() {
            Some(sink) => call(sink),
            None => Err("it was called before open succeeded".to_owned()),
        }
    }
}

impl<T: Sink> Default for SinkSlot<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Stands for the export where there is none, so that the plugin's code counts as used.
#[doc(hidden)]
pub fn native<G>()
where
    G: wire_delivery::Guest,
{
    let _: fn(String) -> _ = G::open;
    let _: fn() -> _ = G::recover;
    let _: fn(wire::Batch, Vec<u8>) -> _ = G::deliver;
}

/// Makes a [`Sink`] the plugin of this crate. Its version and summary are those of `Cargo.toml`.
#[macro_export]
macro_rules! sink {
    ($sink:ty) => {
        const _: () = {
            use $crate::sink::bindings::exports::flumen::plugin::delivery;
            ::std::thread_local! {
                static SLOT: $crate::sink::SinkSlot<$sink> = const { $crate::sink::SinkSlot::new() };
            }
            struct Exported;
            $crate::described!(Exported, <$sink as $crate::sink::Sink>::OPTIONS);
            impl delivery::Guest for Exported {
                fn open(
                    config: ::std::string::String,
                ) -> ::core::result::Result<delivery::Opened, ::std::string::String> {
                    SLOT.with(|slot| slot.open(config))
                }
                fn recover()
                -> ::core::result::Result<::core::option::Option<::std::vec::Vec<u8>>, ::std::string::String>
                {
                    SLOT.with(|slot| slot.recover())
                }
                fn deliver(
                    batch: $crate::abi::bindings::flumen::plugin::types::Batch,
                    cursor: ::std::vec::Vec<u8>,
                ) -> ::core::result::Result<delivery::Outcome, ::std::string::String> {
                    SLOT.with(|slot| slot.deliver(batch, cursor))
                }
            }
            #[cfg(target_arch = "wasm32")]
    $crate::sink::bindings::export_sink!(Exported with_types_in $crate::sink::bindings);
            // Natively (unit tests) there is nobody to export to.
            #[cfg(not(target_arch = "wasm32"))]
            const _: fn() = $crate::sink::native::<Exported>;
        };
    };
}
