//! From a type to the exports of a component.

use crate::abi::{self, wire};
use crate::batch::BatchInterceptor;
use crate::config::Config;
use core::cell::RefCell;

/// Where the one instance of a plugin lives between calls.
#[doc(hidden)]
pub struct Slot<T> {
    plugin: RefCell<Option<T>>,
}

impl<T: BatchInterceptor> Slot<T> {
    pub const fn new() -> Self {
        Self { plugin: RefCell::new(None) }
    }

    pub fn open(&self, config: String) -> Result<wire::Reads, String> {
        let (plugin, reads) = T::open(Config::new(config))?;
        self.plugin.replace(Some(plugin));
        Ok(reads.into_wire())
    }

    pub fn process(&self, batch: wire::Batch) -> Result<wire::Difference, String> {
        match self.plugin.borrow_mut().as_mut() {
            Some(plugin) => abi::process(batch, |batch| plugin.process(batch)),
            None => Err("process was called before open succeeded".to_owned()),
        }
    }
}

impl<T: BatchInterceptor> Default for Slot<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Stands for the export where there is none, so that the plugin's code counts as used.
#[doc(hidden)]
pub fn native<G>()
where
    G: abi::bindings::exports::flumen::plugin::guest::Guest,
{
    let _: fn(String) -> _ = G::open;
    let _: fn(wire::Batch) -> _ = G::process;
}

/// Makes the plugin of this crate tell about itself: version and summary are those of `Cargo.toml`.
#[doc(hidden)]
#[macro_export]
macro_rules! described {
    ($exported:ident, $options:expr) => {
        impl $crate::abi::about::Guest for $exported {
            fn describe() -> $crate::abi::about::Description {
                $crate::abi::about::Description {
                    version: ::std::string::String::from(::core::env!("CARGO_PKG_VERSION")),
                    summary: ::std::string::String::from(::core::env!("CARGO_PKG_DESCRIPTION")),
                    options: ::std::string::String::from($options),
                }
            }
        }
        #[cfg(target_arch = "wasm32")]
        $crate::abi::about::export_about!($exported with_types_in $crate::abi::about);
        // Natively (unit tests, baselines) there is nobody to export to.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() -> $crate::abi::about::Description =
            <$exported as $crate::abi::about::Guest>::describe;
    };
}

/// Makes a [`BatchInterceptor`] the plugin of this crate. Its version and summary are those of `Cargo.toml`.
#[macro_export]
macro_rules! batch_interceptor {
    ($plugin:ty) => {
        const _: () = {
            ::std::thread_local! {
                static SLOT: $crate::Slot<$plugin> = const { $crate::Slot::new() };
            }
            struct Exported;
            $crate::described!(Exported, <$plugin as $crate::batch::BatchInterceptor>::OPTIONS);
            impl $crate::abi::bindings::exports::flumen::plugin::guest::Guest for Exported {
                fn open(
                    config: ::std::string::String,
                ) -> ::core::result::Result<
                    $crate::abi::bindings::flumen::plugin::types::Reads,
                    ::std::string::String,
                > {
                    SLOT.with(|slot| slot.open(config))
                }
                fn process(
                    batch: $crate::abi::bindings::flumen::plugin::types::Batch,
                ) -> ::core::result::Result<
                    $crate::abi::bindings::flumen::plugin::types::Difference,
                    ::std::string::String,
                > {
                    SLOT.with(|slot| slot.process(batch))
                }
            }
            #[cfg(target_arch = "wasm32")]
    $crate::abi::bindings::export_interceptor!(Exported with_types_in $crate::abi::bindings);
            // Natively (unit tests, baselines) there is nobody to export to.
            #[cfg(not(target_arch = "wasm32"))]
            const _: fn() = $crate::native::<Exported>;
        };
    };
}

/// Makes an [`Interceptor`](crate::event::Interceptor) the plugin of this crate.
#[macro_export]
macro_rules! interceptor {
    ($plugin:ty) => {
        $crate::batch_interceptor!($crate::event::Events<$plugin>);
    };
}

/// Makes a [`Filter`](crate::event::Filter) the plugin of this crate.
#[macro_export]
macro_rules! filter {
    ($plugin:ty) => {
        $crate::batch_interceptor!($crate::event::Kept<$plugin>);
    };
}
