//! Aggregators: plugins that also make events of their own, from what they keep in [`state`](crate::state).

use core::cell::RefCell;

use crate::abi::{self, NumberList, Reads, wire};
use crate::batch::BatchView;
use crate::config::Config;
use crate::difference::{ColumnBuilder, Difference, HeaderBuilder};

/// A plugin that makes events of its own. Register it with [`aggregator!`](crate::aggregator). The pipeline has to grant
/// `state`. What is between two calls is in the state and nowhere else.
pub trait Aggregator: Sized {
    /// As [`BatchInterceptor::OPTIONS`](crate::batch::BatchInterceptor::OPTIONS).
    const OPTIONS: &'static str = "";

    /// Reads the configuration; says which columns to pass, and how often [`tick`](Self::tick) is called.
    fn open(config: Config) -> Result<(Self, Opened), String>;

    /// What becomes of the batch's rows, and new events.
    fn process(&mut self, batch: &BatchView) -> Result<(Difference, Option<Events>), String>;

    /// Time passes, also when no event comes. `now`: nanoseconds since the Unix epoch.
    fn tick(&mut self, now: i64) -> Result<Option<Events>, String>;
}

/// What an aggregator says when it is opened.
pub struct Opened {
    /// The columns that it wants to see.
    pub reads: Reads,
    /// How often it is ticked, in milliseconds; 0: never.
    pub tick_ms: u32,
}

/// New events. They go on behind the batch, with identities that the host gives them.
#[derive(Default)]
pub struct Events {
    rows: u32,
    body: Option<ColumnBuilder>,
    times: Vec<i64>,
    headers: Vec<HeaderBuilder>,
}

impl Events {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.rows as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Adds an event: nanoseconds since the Unix epoch, a body, headers by name.
    pub fn push(&mut self, time: i64, body: &[u8], headers: &[(&str, &str)]) {
        self.body.get_or_insert_with(|| ColumnBuilder::with_capacity(16, 1024)).push(body);
        self.times.push(time);
        for (name, _) in headers {
            if !self.headers.iter().any(|column| column.name() == *name) {
                let mut column = HeaderBuilder::with_capacity(*name, 16, 256);
                (0..self.rows).for_each(|_| column.push_absent());
                self.headers.push(column);
            }
        }
        for column in &mut self.headers {
            let value = headers.iter().find(|(name, _)| *name == column.name()).map(|(_, value)| *value);
            column.push_option(value);
        }
        self.rows += 1;
    }

    fn into_wire(self) -> wire::Events {
        let body = self.body.unwrap_or_else(|| ColumnBuilder::with_capacity(0, 0));
        let times: NumberList<i64> = self.times.into_iter().collect();
        wire::Events {
            rows: self.rows,
            body: body.into_column(),
            time: Some(times.into_wire()),
            headers: self.headers.into_iter().map(HeaderBuilder::into_column).collect(),
        }
    }
}

/// What wit-bindgen generates for `aggregation`. The shapes are those of [`crate::abi`].
#[doc(hidden)]
#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction)]
pub mod world {
    wit_bindgen::generate!({
        path: "../../../wit/0.2.0",
        inline: "package flumen:aggregate; world aggregate { export flumen:plugin/aggregation@0.2.0; }",
        world: "flumen:aggregate/aggregate",
        with: { "flumen:plugin/types@0.2.0": crate::abi::bindings::flumen::plugin::types },
        pub_export_macro: true,
        export_macro_name: "export_aggregator",
        default_bindings_module: "flumen_sdk::aggregate::world",
    });
}

use world::exports::flumen::plugin::aggregation as exported;

/// Where the one instance of an aggregator lives between calls.
#[doc(hidden)]
pub struct AggregatorSlot<T> {
    plugin: RefCell<Option<T>>,
}

impl<T: Aggregator> AggregatorSlot<T> {
    pub const fn new() -> Self {
        Self { plugin: RefCell::new(None) }
    }

    pub fn open(&self, config: String) -> Result<exported::Opened, String> {
        let (plugin, Opened { reads, tick_ms }) = T::open(Config::new(config))?;
        self.plugin.replace(Some(plugin));
        Ok(exported::Opened { reads: reads.into_wire(), tick_ms })
    }

    pub fn process(&self, batch: wire::Batch) -> Result<exported::Aggregate, String> {
        self.with(|plugin| {
            let (rows, emitted) = plugin.process(&abi::view(batch))?;
            let emitted = emitted.filter(|events| !events.is_empty()).map(Events::into_wire);
            Ok(exported::Aggregate { rows: rows.into_wire(), emitted })
        })
    }

    pub fn tick(&self, now: i64) -> Result<Option<wire::Events>, String> {
        self.with(|plugin| Ok(plugin.tick(now)?.filter(|events| !events.is_empty()).map(Events::into_wire)))
    }

    fn with<A>(&self, call: impl FnOnce(&mut T) -> Result<A, String>) -> Result<A, String> {
        match self.plugin.borrow_mut().as_mut() {
            Some(plugin) => call(plugin),
            None => Err("it was called before open succeeded".to_owned()),
        }
    }
}

impl<T: Aggregator> Default for AggregatorSlot<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Stands for the export where there is none, so that the plugin's code counts as used.
#[doc(hidden)]
pub fn native<G: exported::Guest>() {
    let _: fn(String) -> _ = G::open;
    let _: fn(wire::Batch) -> _ = G::process;
    let _: fn(i64) -> _ = G::tick;
}

/// Makes an [`Aggregator`](crate::aggregate::Aggregator) the plugin of this crate.
#[macro_export]
macro_rules! aggregator {
    ($plugin:ty) => {
        const _: () = {
            ::std::thread_local! {
                static SLOT: $crate::aggregate::AggregatorSlot<$plugin> =
                    const { $crate::aggregate::AggregatorSlot::new() };
            }
            struct Exported;
            $crate::described!(Exported, <$plugin as $crate::aggregate::Aggregator>::OPTIONS);
            impl $crate::aggregate::world::exports::flumen::plugin::aggregation::Guest for Exported {
                fn open(
                    config: ::std::string::String,
                ) -> ::core::result::Result<
                    $crate::aggregate::world::exports::flumen::plugin::aggregation::Opened,
                    ::std::string::String,
                > {
                    SLOT.with(|slot| slot.open(config))
                }
                fn process(
                    batch: $crate::abi::bindings::flumen::plugin::types::Batch,
                ) -> ::core::result::Result<
                    $crate::aggregate::world::exports::flumen::plugin::aggregation::Aggregate,
                    ::std::string::String,
                > {
                    SLOT.with(|slot| slot.process(batch))
                }
                fn tick(
                    now: i64,
                ) -> ::core::result::Result<
                    ::core::option::Option<$crate::abi::bindings::flumen::plugin::types::Events>,
                    ::std::string::String,
                > {
                    SLOT.with(|slot| slot.tick(now))
                }
            }
            #[cfg(target_arch = "wasm32")]
    $crate::aggregate::world::export_aggregator!(Exported with_types_in $crate::aggregate::world);
            #[cfg(not(target_arch = "wasm32"))]
            const _: fn() = $crate::aggregate::native::<Exported>;
        };
    };
}
