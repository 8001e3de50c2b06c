//! The releases of the interface. Each is one file that turns a component into [`Release`] and [`Guest`]; nothing above
//! this module knows which release a plugin was built for.

mod v0_1;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flumen_event::{Batch, Difference};
use flumen_pipeline::plan::PluginLimits;
use serde::Serialize;
use wasmtime::Engine;
use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;

use crate::error::LoadError;
use crate::failure::{Failure, OpenFailure};
use crate::services::Services;

/// The columns that a plugin asked for when it was opened. No other column crosses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Reads {
    /// The bodies.
    pub body: bool,
    /// The event times.
    pub time: bool,
    /// Streams and positions.
    pub identity: bool,
    /// Headers by name, in the order in which they are passed.
    pub headers: Vec<String>,
}

/// One running copy of a plugin. It has one owner, and is dropped after any failure.
pub(crate) trait Guest: Send {
    /// Called once, first.
    fn open(&mut self, config: &str) -> Result<Reads, OpenFailure>;

    /// `batch` has at least one row. The answer is checked, but not yet against the columns of the batch.
    fn process(&mut self, batch: &Batch, reads: &Reads, time: Duration) -> Result<Difference, Failure>;

    /// Linear memory that it holds.
    fn memory_bytes(&self) -> u64;
}

/// A component with its imports resolved, ready to be instantiated.
pub(crate) trait Release: Send + Sync {
    fn instantiate(&self, services: &Arc<Services>, limits: &PluginLimits)
    -> Result<Box<dyn Guest>, Failure>;
}

/// A component as it is: what it exports and imports by name.
pub(crate) struct Shape {
    pub(crate) world: &'static str,
    /// Without [`v0_1::TYPES`]: every guest names it, and there is nothing in it to call.
    pub(crate) imports: Vec<String>,
    pub(crate) exports: Vec<String>,
    /// Host powers that it needs.
    pub(crate) needs: Vec<String>,
}

/// Looks at a component: it has to be of a known release, and import nothing unknown.
pub(crate) fn shape(engine: &Engine, component: &Component, path: &Path) -> Result<Shape, LoadError> {
    let types = component.component_type();
    let imports = types.imports(engine).map(|(name, _)| name).filter(|name| *name != v0_1::TYPES);
    let imports: Vec<String> = imports.map(str::to_owned).collect();
    let exports: Vec<String> = types.exports(engine).map(|(name, _)| name.to_owned()).collect();
    match types.get_export(engine, v0_1::GUEST).map(|export| export.ty) {
        Some(ComponentItem::ComponentInstance(guest)) => v0_1::check_guest(engine, &types, &guest, path)?,
        _ => return Err(LoadError::WrongWorld { path: path.to_owned(), wanted: v0_1::GUEST, exports }),
    }
    let unknown: Vec<String> = imports.iter().filter(|name| !is_known(name)).cloned().collect();
    if !unknown.is_empty() {
        return Err(LoadError::UnknownImports { path: path.to_owned(), imports: unknown });
    }
    let needs = imports.iter().filter_map(|name| v0_1::power(name)).map(str::to_owned).collect();
    Ok(Shape { world: v0_1::WORLD, imports, exports, needs })
}

fn is_known(import: &str) -> bool {
    v0_1::power(import).is_some() || is_wasi(import)
}

/// Interfaces of WASI, of any version: they load, but lead nowhere (no files, environment, sockets or clocks).
fn is_wasi(import: &str) -> bool {
    import.starts_with("wasi:")
}

/// Resolves the imports of a component that [`shape`] let through. Only what is granted is linked.
pub(crate) fn link(
    engine: &Engine,
    component: &Component,
    shape: &Shape,
    grants: &[String],
    path: &Path,
) -> Result<Box<dyn Release>, LoadError> {
    let missing: Vec<String> = shape.needs.iter().filter(|power| !grants.contains(power)).cloned().collect();
    if !missing.is_empty() {
        let mut all = grants.to_vec();
        all.extend(missing.iter().cloned());
        return Err(LoadError::NotGranted { path: path.to_owned(), missing, grants: all });
    }
    let linked = v0_1::link(engine, component, grants);
    linked.map(|release| Box::new(release) as Box<dyn Release>).map_err(|error| LoadError::WrongShape {
        path: path.to_owned(),
        function: v0_1::WORLD.to_owned(),
        reason: format!("{error:#}"),
    })
}
