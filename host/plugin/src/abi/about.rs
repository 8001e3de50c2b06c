//! What a plugin tells about itself.

use std::sync::Arc;

use flumen_pipeline::plan::PluginLimits;
use serde::Serialize;
use wasmtime::Engine;
use wasmtime::component::types::{self, ComponentInstance};
use wasmtime::component::{ComponentType, InstancePre, Lift, TypedFunc};

use super::store::{self, HostSide, Room};
use crate::error::LoadError;
use crate::failure::{Failure, printable};
use crate::limits;
use crate::services::Services;

const DESCRIBE: &str = "describe";

#[derive(ComponentType, Lift)]
#[component(record)]
struct DescriptionOut {
    version: String,
    summary: String,
    options: String,
}

/// What a plugin tells about itself. Version and summary are the plugin's, cut and made printable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Description {
    /// Its own version; empty if it has none.
    pub version: String,
    /// One line for a person.
    pub summary: String,
    /// JSON Schema of its configuration; empty: any.
    pub options: String,
}

/// The function has to have the right type.
pub(super) fn check(
    engine: &Engine,
    component: &types::Component,
    about: &ComponentInstance,
    interface: &str,
    path: &std::path::Path,
) -> Result<(), LoadError> {
    let check = store::Check { engine, component, exported: about, interface, path };
    check.function::<(), (DescriptionOut,)>(DESCRIBE)
}

/// Asks an instance made for this alone.
pub(super) fn describe(
    engine: &Engine,
    ready: &InstancePre<HostSide>,
    interface: &str,
    services: &Arc<Services>,
    plugin_limits: &PluginLimits,
) -> Result<Description, Failure> {
    let (mut room, describe) = Room::new(engine, ready, services, plugin_limits, |store, instance| {
        store::function(store, instance, interface, DESCRIBE)
    })?;
    let describe: TypedFunc<(), (DescriptionOut,)> = describe;
    let (DescriptionOut { version, summary, options },) =
        room.call_plain(&describe, (), plugin_limits.time)?;
    if options.len() > limits::OPTIONS_SCHEMA_BYTES_MAX {
        return Err(Failure::Refused(format!(
            "the schema of its options has {} bytes, more than {}",
            options.len(),
            limits::OPTIONS_SCHEMA_BYTES_MAX
        )));
    }
    Ok(shown(&version, &summary, options))
}

fn shown(version: &str, summary: &str, options: String) -> Description {
    let shown = |text: &str| printable(text, limits::DESCRIPTION_BYTES_MAX);
    Description { version: shown(version), summary: shown(summary), options }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_plugin_tells_about_itself_has_nothing_that_a_terminal_obeys() {
        let summary = format!("\x1b[2Jnice{}", "!".repeat(limits::DESCRIPTION_BYTES_MAX));
        let told = shown("1.0\r", &summary, "{}".to_owned());
        assert_eq!((told.version.as_str(), told.options.as_str()), ("1.0\\r", "{}"));
        assert!(told.summary.starts_with("\\u{1b}[2Jnice!"), "{}", told.summary);
        assert_eq!(told.summary.len(), limits::DESCRIPTION_BYTES_MAX);
    }
}
